"""`load` and `load_state_dict`: by content, whatever a file is called."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from . import formats, nn
from .formats import FormatError, ModelFile
from .formats.keras_draft import CannotTell, draft, questions
from .layers.base import Array
from .models import Model

_WEIGHT = re.compile(r"^(?P<prefix>(?:.*\.)?)weight_(?P<part>ih|hh)(?P<layer>_l\d+(?:_reverse)?)?$")


Config = str | os.PathLike[str] | Mapping[str, Any]


def load(
    path: str | os.PathLike[str], prefix: str | None = None, config: Config | None = None
) -> Model | nn.GRU | nn.GRUCell:
    """Load a trained model.

    Parameters
    ----------
    path
        A Keras file (.keras, .h5), an ONNX model (with the [onnx] extra), one saved by `Model.save`, or a PyTorch
        state_dict (.pt, legacy pickle, .safetensors). The content decides, not the suffix.
    prefix
        For state_dicts: where the GRU is, e.g. ``"encoder.rnn"``, with or without its last dot.
        Not needed when the file holds one GRU.
    config
        For Keras weights without their architecture (save_weights): the JSON of ``model.to_json()``, as a file or
        itself, or a .keras file of the same architecture. See `draft_config`.

    Returns
    -------
    `Model` for Keras and ONNX files; `nn.GRU` (batch_first as in PyTorch: False) or, for keys without
    ``_l0``, `nn.GRUCell` for state_dicts.

    Raises
    ------
    FormatError
        Naming the file, what was expected, what was found and what to do.
    """
    return from_file(formats.read(path, config), prefix)


def from_file(file: ModelFile, prefix: str | None = None) -> Model | nn.GRU | nn.GRUCell:
    """As `load`, for a file that was read already."""
    if "checkpoint" in file.metadata:
        raise FormatError(
            f"{file.path}: expected a model, found a checkpoint of training; fit(resume=PATH) goes on from it"
        )
    if file.config is None and file.format == "keras-weights":
        raise _without_architecture(file)
    if file.config is None:
        return _recurrent(file, prefix)
    if prefix is not None:
        raise FormatError(f"{file.path}: prefix: expected None, because this is a whole model, found {prefix!r}")
    return Model.from_model_file(file)


def load_state_dict(path: str | os.PathLike[str], config: Config | None = None) -> dict[str, Array]:
    """The tensors of a PyTorch (or any) file by their dotted names, as stored.

    bfloat16 and float8 become float32; all other dtypes are kept. Keras weights without their architecture are named
    by their place in the file, and with ``config`` by their layers, as other Keras files are.
    """
    return dict(formats.read(path, config).tensors)


def draft_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What Keras weights tell of their architecture: a config with "?" where they are silent.

    Sizes, biases and the reset placement of a plain chain of Embedding, GRU, Bidirectional and Dense layers stand in
    the weights. Activations, masks, directions, which outputs are whole sequences, and layers without weights do not:
    fill them in from the training code, and give the result to `load` as ``config``.

    Raises
    ------
    FormatError
        If the file is not one of Keras weights alone, or these are no plain chain.
    """
    file = formats.read(path)
    if file.config is not None or file.format != "keras-weights":
        raise FormatError(f"{file.path}: expected Keras weights alone, found {file.format}; load it as it is")
    try:
        return draft({name: tensor.shape for name, tensor in file.tensors.items()}, file.version)
    except CannotTell as error:
        raise FormatError(
            f"{file.path}: expected a chain of Embedding, GRU, Bidirectional and Dense layers, found that {error}; "
            "write the architecture with model.to_json() where the model was trained"
        ) from error


def _without_architecture(file: ModelFile) -> FormatError:
    """Weights alone are no model: say what is there, what is missing, and how that can be told."""
    try:
        asked = questions(draft({name: tensor.shape for name, tensor in file.tensors.items()}, file.version))
        told = (
            f"The weights tell a chain but not {', '.join(asked)}, nor layers without weights: "
            '`fastgru info FILE --draft model.json` writes what they tell, with a "?" at each of these to fill in. '
        )
    except CannotTell:
        told = ""
    return FormatError(
        f"{file.path}: expected a model with its layers, found weights alone (save_weights): "
        f"{_by_layer(file.tensors)}; give config=, the JSON of model.to_json() or a .keras file of the same "
        f"architecture (on the command line --config). {told}Or in Keras, call model.save('model.keras') and load "
        "that file; load_state_dict gives the tensors as they are"
    )


def _by_layer(tensors: Mapping[str, Array]) -> str:
    """The shapes of each group of weights, in a line."""
    groups: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        groups.setdefault(name.rpartition("/")[0].removesuffix("/vars"), []).append(str(tensor.shape))
    shown = ", ".join(f"{name} {' '.join(shapes)}" for name, shapes in list(groups.items())[:40])
    return shown + (f" and {len(groups) - 40} more" if len(groups) > 40 else "")


def find_grus(tensors: Mapping[str, Array]) -> dict[str, str]:
    """Prefix → what is there: a GRU's or GRUCell's weights, told from LSTMs and RNNs by shape."""
    found: dict[str, str] = {}
    for name, tensor in tensors.items():
        match = _WEIGHT.match(name)
        if match is None or match["part"] != "hh" or tensor.ndim != 2:
            continue
        rows, hidden = tensor.shape
        first = match["layer"] in (None, "_l0")
        partner = tensors.get(name.replace("weight_hh", "weight_ih"))
        if rows != 3 * hidden or not first or partner is None or partner.ndim != 2:
            continue
        found[match["prefix"]] = _describe(tensors, match["prefix"], partner.shape[1], hidden, match["layer"] is None)
    return found


def _describe(tensors: Mapping[str, Array], prefix: str, inputs: int, hidden: int, cell: bool) -> str:
    """As `nn.GRU` and `nn.GRUCell` print themselves, less what a state_dict doesn't say."""
    if cell:
        return f"GRUCell({inputs}, {hidden})"
    names = (name.removeprefix(prefix) for name in tensors if name.startswith(prefix))
    weights = [m for m in (re.fullmatch(r"weight_hh_l(\d+)(_reverse)?", name) for name in names) if m]
    layers = len({m[1] for m in weights})
    return (
        f"GRU({inputs}, {hidden}"
        + f", num_layers={layers}" * (layers > 1)
        + ", bias=False" * (f"{prefix}bias_ih_l0" not in tensors)
        + ", bidirectional=True" * any(m[2] for m in weights)
        + ")"
    )


def _recurrent(file: ModelFile, prefix: str | None) -> nn.GRU | nn.GRUCell:
    grus = find_grus(file.tensors)
    listed = ", ".join(f"{p!r}: {what}" for p, what in sorted(grus.items()))
    if not grus:
        raise FormatError(
            f"{file.path}: expected the weights of a GRU (weight_ih_l0 (3H, I), weight_hh_l0 "
            f"(3H, H)), found {_sample(file.tensors)}{_hint(file.tensors)}"
        )
    if prefix is None:
        if len(grus) > 1:
            raise FormatError(
                f"{file.path}: expected one GRU, found {len(grus)}: {listed}; choose one by prefix= (--prefix)"
            )
        prefix = next(iter(grus))
    elif prefix and not prefix.endswith("."):
        prefix += "."
    if prefix not in grus:
        raise FormatError(f"{file.path}: no GRU at prefix {prefix!r}; found {listed}{_hint(file.tensors)}")
    weights = _weights(file.tensors, prefix, cell=grus[prefix].startswith("GRUCell"))
    try:
        return _cell(weights) if "weight_ih" in weights else _layers(weights)
    except (KeyError, ValueError, TypeError) as error:
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise FormatError(f"{file.path}: GRU at prefix {prefix!r}: {text}") from error


def _weights(tensors: Mapping[str, Array], prefix: str, *, cell: bool) -> dict[str, Array]:
    kind = r"(weight|bias)_(ih|hh)" + ("" if cell else r"_l\d+(_reverse)?")
    return {
        name[len(prefix) :]: np.asarray(tensor)
        for name, tensor in tensors.items()
        if name.startswith(prefix) and re.fullmatch(kind, name[len(prefix) :])
    }


def _cell(weights: Mapping[str, Array]) -> nn.GRUCell:
    rows, inputs = weights["weight_ih"].shape
    cell = nn.GRUCell(inputs, rows // 3, bias="bias_ih" in weights)
    cell.load_state_dict(weights)
    return cell


def _layers(weights: Mapping[str, Array]) -> nn.GRU:
    rows, inputs = weights["weight_ih_l0"].shape
    numbers = {int(re.findall(r"_l(\d+)", name)[0]) for name in weights}
    gru = nn.GRU(
        inputs,
        rows // 3,
        num_layers=max(numbers) + 1,
        bias="bias_ih_l0" in weights,
        bidirectional="weight_ih_l0_reverse" in weights,
    )
    gru.load_state_dict(weights)
    return gru


def _sample(tensors: Mapping[str, Any]) -> str:
    names = list(tensors)
    shown = ", ".join(f"{n} {tuple(np.shape(tensors[n]))}" for n in names[:6]) or "no tensors"
    return shown + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _hint(tensors: Mapping[str, Any]) -> str:
    normed = [n for n in tensors if re.search(r"weight_[ih]h_l\d+.*_[gv]$|parametrizations", n)]
    if normed:
        return (
            f"; {normed[0]} is a weight under weight_norm: remove the parametrisation in PyTorch "
            "(torch.nn.utils.remove_weight_norm, or parametrize.remove_parametrizations) and save "
            "the state_dict again"
        )
    return ""
