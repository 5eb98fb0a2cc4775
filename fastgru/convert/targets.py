"""The formats that a model can be written in: which suffix means which, and what writes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .. import nn
from ..formats import FormatError, ModelFile, write_safetensors
from ..formats.pytorch_writer import write_pytorch
from ..formats.replacing import replacing
from ..layers.base import Array
from ..models import Model
from .report import Report
from .to_pytorch import modules, state_dict

__all__ = ["TARGETS", "target_format", "write"]

Source = Model | nn.GRU | nn.GRUCell | ModelFile


@dataclass(frozen=True)
class Target:
    """A format: what to call it, the suffixes that mean it, and what writes it and returns the number of tensors."""

    title: str
    suffixes: tuple[str, ...]
    write: Callable[[str, Source, Report, int], int]


def target_format(path: str, to: str | None) -> str:
    """The key in `TARGETS` of what ``path`` is to be.

    Raises
    ------
    FormatError
        For an unknown suffix, or an unknown ``to``.
    """
    if to is not None:
        if to not in TARGETS:
            raise FormatError(f"{path}: expected a format of {', '.join(TARGETS)}, found {to!r}")
        return to
    for name, target in TARGETS.items():
        if path.lower().endswith(target.suffixes):
            return name
    listed = ", ".join(suffix for target in TARGETS.values() for suffix in target.suffixes)
    raise FormatError(f"{path}: expected a name that ends in one of {listed}; or say the format")


def write(kind: str, path: str, model: Source, report: Report, opset: int) -> None:
    """Write the file, whole or not at all, and put into the report what is to be known of it."""
    report.tensors = TARGETS[kind].write(path, model, report, opset)
    if isinstance(model, Model):
        report.notes += [note for note in model.notes if note not in report.notes]
    elif isinstance(model, ModelFile):
        report.notes += model.notes


def _write_own(path: str, model: Source, report: Report, opset: int) -> int:
    if not isinstance(model, Model):
        return _write_pytorch(path, model, report, opset)
    model.write(path)  # whatever it is called
    return len(model.all_tensors())


def _write_pytorch(path: str, model: Source, report: Report, opset: int) -> int:
    tensors = dict(model.tensors) if isinstance(model, ModelFile) else state_dict(model)
    if path.lower().endswith(".safetensors"):
        write_safetensors(path, tensors, {"format": "pt"})
    else:
        write_pytorch(path, tensors)
    if not isinstance(model, ModelFile):
        report.notes += [str(module) for module in modules(model)]
    return len(tensors)


def _write_keras(path: str, model: Source, report: Report, opset: int) -> int:
    from ..formats.keras_writer import write_keras

    config, tensors = _keras(model)
    write_keras(path, config, tensors)
    return len(tensors)


def _write_keras_weights(path: str, model: Source, report: Report, opset: int) -> int:
    from ..formats.keras_writer import write_weights_h5

    config, tensors = _keras(model)
    write_weights_h5(path, config, tensors)
    report.notes.append("weights alone: model.load_weights() of a Keras model with the same layers reads them")
    return len(tensors)


def _keras(model: Source) -> tuple[dict[str, Any], dict[str, Array]]:
    from .to_keras import keras_config

    assert not isinstance(model, ModelFile)
    return keras_config(model)


def _write_onnx(path: str, model: Source, report: Report, opset: int) -> int:
    from .to_onnx import onnx_model

    assert not isinstance(model, ModelFile)
    try:
        data = onnx_model(model, opset=opset)
    except FormatError:
        raise
    except (ImportError, ValueError) as error:  # no package that writes it, or none of this opset
        raise FormatError(f"{path}: {error}") from error
    with replacing(path) as file:
        file.write(data)
    return len(model.state_dict() if not isinstance(model, Model) else model.all_tensors())


#: By the names that ``to`` takes.
TARGETS: dict[str, Target] = {
    "fastgru": Target("fastgru safetensors", (".safetensors",), _write_own),
    "pytorch": Target("PyTorch state_dict", (".pt", ".pth"), _write_pytorch),
    "keras-weights": Target("Keras weights", (".weights.h5",), _write_keras_weights),
    "keras": Target("Keras 3", (".keras",), _write_keras),
    "onnx": Target("ONNX", (".onnx",), _write_onnx),
}
