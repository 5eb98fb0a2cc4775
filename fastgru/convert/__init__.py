"""Models from one framework's files into another's, and the proof that they are the same.

What a target can't express is refused with the layer and the reason, never approximated.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Mapping
from typing import Any

from .. import formats, loading, nn, tables
from ..formats import FormatError, ModelFile
from ..formats.replacing import take_place
from ..models import Model
from ..models.onnx import OnnxModel
from .from_onnx import as_layers
from .refusals import about
from .report import Mismatch, Report
from .targets import TARGETS, target_format, write
from .verify import verify as verify_target

__all__ = ["TARGETS", "Mismatch", "Report", "convert"]

Path = str | os.PathLike[str]
_OPSET = 17


def convert(
    source: Path,
    target: Path,
    *,
    to: str | None = None,
    prefix: str | None = None,
    config: Path | Mapping[str, Any] | None = None,
    verify: bool = False,
    opset: int | None = None,
) -> Report:
    """Convert a model file.

    Parameters
    ----------
    source
        Any file that `fastgru.load` or `fastgru.load_state_dict` reads.
    target
        The file to write; its suffix says the format: .safetensors (our own for models, PyTorch's names for
        state_dicts), .pt or .pth, .keras, .weights.h5, .onnx.
    to
        The format, if not the suffix decides: one of `TARGETS`.
    prefix
        For state_dicts: which GRU. Without it, a state_dict that stays one keeps all its tensors.
    config
        For Keras weights alone: their architecture, as in `fastgru.load`.
    verify
        Read the target back and compare it with the source, layer by layer, on random and edge inputs; then run the
        frameworks of both sides, where they are installed. The target takes its name only if all agree.
    opset
        Of an ONNX target: from 17, the default, to the newest that the onnx package knows.

    Returns
    -------
    Report

    Raises
    ------
    FormatError
        If the source can't be read, the target can't express it, or a package is missing that writes the target
        (h5py for Keras, onnx for ONNX); no file is left then.
    Mismatch
        A FormatError: the target was written and computes something else. It is removed.
    OSError
        If a file can't be read or written.
    """
    path = os.fspath(target)
    kind = target_format(path, to)
    tables.check_apart(path, *(given for given in (source, config) if isinstance(given, (str, os.PathLike))))
    if opset is not None and kind != "onnx":
        raise FormatError(f"{path}: opset: expected none for a target that is no ONNX file, found {opset}")
    file = formats.read(source) if config is None else formats.read(source, config)
    tables.check_apart(path, *file.data_files)
    with about(file.path):
        model = _model(file, kind, prefix)
    if kind == "fastgru" and not isinstance(model, Model):
        kind = "pytorch"  # a GRU without a graph has PyTorch's names in our files too
    report = Report(file.path, path, file.format, file.version, TARGETS[kind].title, file.data_files)
    report.notes += _left_out(file, model, prefix)
    if not verify:
        with tables.told_of(path), about(file.path, path):
            write(kind, path, model, report, opset or _OPSET)
        return report
    real = os.path.realpath(path)
    temporary = os.path.join(os.path.dirname(real), f".{secrets.token_hex(6)}.{os.path.basename(path)}")
    try:
        with about(file.path, temporary, path):
            with tables.told_of(path):
                write(kind, temporary, model, report, opset or _OPSET)
            verify_target(kind, temporary, file, model, report)
        take_place(temporary, real)
    except FormatError as error:
        text = str(error).replace(temporary, path)
        raise (Mismatch(text, report) if isinstance(error, Mismatch) else FormatError(text)) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    return report


def _left_out(file: ModelFile, model: Model | nn.GRU | nn.GRUCell | ModelFile, prefix: str | None) -> list[str]:
    """A note on what a state_dict holds beside the GRU that was taken out of it."""
    if not isinstance(model, (nn.GRU, nn.GRUCell)):
        return []
    lead = next(iter(loading.find_grus(file.tensors))) if prefix is None else prefix
    lead += "." if lead and not lead.endswith(".") else ""
    kept = {lead + name for name in model.state_dict()}
    left = [name for name in file.tensors if name not in kept]
    shown = ", ".join(left[:8]) + (f" and {len(left) - 8} more" if len(left) > 8 else "")
    return [f"left out, since only the GRU was taken: {shown}"] if left else []


def _model(file: ModelFile, kind: str, prefix: str | None) -> Model | nn.GRU | nn.GRUCell | ModelFile:
    """What is to be written: a model, or a whole state_dict as the file that it is."""
    if file.config is not None and prefix is not None:
        raise FormatError(f"{file.path}: prefix: expected none for a file with a whole model, found {prefix!r}")
    if file.config is None and prefix is None and kind in ("fastgru", "pytorch"):
        return file
    model = loading.from_file(file, prefix)
    if isinstance(model, OnnxModel) and kind not in ("fastgru", "onnx"):
        return as_layers(model)  # operators of a graph as the layers that they are, if they are
    return model
