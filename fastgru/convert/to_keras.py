"""A model as Keras 3 says it: the config of a `.keras` file, and the tensors by the names in that config.

Everything is written anew from the layers, so that files of every Keras, and models that never saw one, come out in
Keras 3's spelling. What Keras 3 computes otherwise than the Keras of the source is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import gates, nn
from ..layers.base import NEWEST, Array, Dialect, Layer
from ..layers.bidirectional import Bidirectional
from ..layers.cells import GRUCell
from ..layers.core import Embedding, Identity, Input
from ..layers.merge import Merge
from ..layers.recurrent import GRU, RNN
from ..models import Model, Sequential, walk
from .cells import as_model, canonical
from .keras_graph import functional_config
from .keras_layers import TARGET, Entry, Scope, entry, input_entry, layer_entry
from .refusals import refusal
from .trace import masked_calls

__all__ = ["batch_sizes", "keras_config"]


def keras_config(model: Model | nn.GRU | nn.GRUCell) -> tuple[Entry, dict[str, Array]]:
    """The config of a Keras 3 model, {"class_name": …, "config": …}, and its tensors by config path.

    Parameters
    ----------
    model
        A `Model` or `Sequential`, or a PyTorch-shaped GRU: that becomes Input((None, I)) and a GRU or Bidirectional a
        layer, each giving every step.

    Returns
    -------
    tuple of dict and dict
        The tensors ("gru/kernel", "inner/dense/bias") are as stored, in Keras 3's layout.

    Raises
    ------
    FormatError
        Naming the layer and what of it Keras 3 can't express.
    """
    if not isinstance(model, Model):
        return keras_config(as_model(model))
    dialect = NEWEST if model._entry is None else Dialect.of(model.version)
    _check_masks(model, dialect)
    return _model_entry(model, Scope(dialect), ""), dict(_tensors(model, ""))


def _model_entry(model: Model, scope: Scope, path: str) -> Entry:
    inside = Scope.of(model, scope.dialect, path)
    batches = batch_sizes(model)
    if not path and model.stateful and None in batches.values():
        stateful = next(layer for layer in walk(model) if getattr(layer, "stateful", False))
        raise inside.refuse(stateful, "a stateful layer needs the number of rows, and the source does not fix it")
    if isinstance(model, Sequential):
        return entry("Sequential", _sequential_config(model, inside, batches, nested=bool(path)), "keras")

    def inner(part: Model, around: Scope) -> Entry:
        return _model_entry(part, around, around.path + part.name)

    made = entry("Functional", functional_config(model, inside, batches, inner), "keras.src.models.functional")
    return {**made, "registered_name": "Functional"}


def _sequential_config(model: Sequential, scope: Scope, batches: Mapping[str, int | None], nested: bool) -> Entry:
    listed = [
        _model_entry(layer, scope, scope.path + layer.name) if isinstance(layer, Model) else layer_entry(layer, scope)
        for layer in model.layers
    ]
    end = _input_of(model)
    if end is not None:
        name = end.name or "input"
        while name in (layer.name for layer in model.layers):
            name += "_layer"
        listed.insert(0, input_entry(end, name, batches.get(end.name)))
    elif not nested:  # one that is called by another model learns its shapes there
        raise scope.refuse(model.layers[0], "the shape of the input is not in the file")
    return {"name": model.name, "trainable": model.trainable, "layers": listed}


def _input_of(model: Sequential) -> Input | None:
    """The input; where no file says its shape, as the first layer that knows its width has it."""
    end = model.inputs[0]
    if end.shape is not None:
        return end
    for layer in model.layers:
        first: Any = layer.forward_layer if isinstance(layer, Bidirectional) else layer
        if isinstance(first, RNN):
            return Input((None, first.cells[0].width), end.dtype, end.name)
        if isinstance(first, Embedding):
            return Input((None,), end.dtype, end.name)
        if not isinstance(first, Identity):
            return None
    return None


def batch_sizes(model: Model) -> dict[str, int | None]:
    """Rows by the name of the input, where the source's config fixes them."""
    said = Scope.of(model, NEWEST, "").said
    first = model.layers[0].name if isinstance(model, Sequential) and model.layers else ""
    sizes: dict[str, int | None] = {}
    for end in model.inputs:
        shapes = [
            config.get(key)
            for config in (said.get(end.name, {}), said.get(first, {}))
            for key in ("batch_shape", "batch_input_shape")
        ]
        known = next((shape for shape in shapes if isinstance(shape, (list, tuple)) and shape), [None])
        sizes[end.name] = known[0] if isinstance(known[0], int) else None
    return sizes


# -- masks: where versions of Keras differ ----------------------------------------------------


def _check_masks(model: Model, dialect: Dialect) -> None:
    """Refuse masks where Keras 3 makes something else of them than the Keras of the source."""
    for path, layer, state in masked_calls(model):
        why = ""
        half: Any = layer.forward_layer if isinstance(layer, Bidirectional) else layer
        if isinstance(layer, Merge) and not dialect.merges_or:
            why = "a mask reaches a merge: Keras before 3.4 ANDs masks, and Keras 3.4 ORs them"
        elif isinstance(half, RNN) and state and not dialect.state_hides_mask:
            why = "a mask and an initial state reach it: Keras 3 then runs it without the mask"
        elif isinstance(layer, Bidirectional) and half.return_sequences and not dialect.bidirectional_zeroes:
            why = "a mask reaches it: Keras 3 gives zeros at masked steps, the source the output before them"
        elif isinstance(half, RNN) and half.stateful and half.return_sequences and dialect.leading_state:
            why = "it is stateful and masked: leading masked steps give the state in the source, 0 in Keras 3"
        if why:
            raise refusal(TARGET, path, layer, why)


# -- tensors -----------------------------------------------------------------------------------


def _tensors(layer: Layer, path: str) -> dict[str, Array]:
    """The tensors of a layer and those inside it, under the names that readers of the config expect."""
    own: dict[str, Array] = {}
    if isinstance(layer, GRU):
        own = _cell_tensors(layer.cells[0])
    elif isinstance(layer, GRUCell):
        own = _cell_tensors(layer)
    else:
        own = dict(layer.weights)
    found = {f"{path}/{name}" if path else name: value for name, value in own.items()}
    for part, inner in layer.parts().items():
        found.update(_tensors(inner, f"{path}/{part}" if path else part))
    return found


def _cell_tensors(cell: GRUCell) -> dict[str, Array]:
    if not cell.cudnn and cell.update_gate == "old":
        return dict(cell.weights)  # as stored, to the bit
    stored = gates.to_keras(canonical(cell), reset_after=cell.reset_after)
    return dict(zip(cell.weight_names(), (v for v in stored if v is not None), strict=True))
