"""The calls of a model's graph, one after the other, nested models among them, as nodes of an ONNX graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..graph import Graph
from ..graph.plan import Node, fill
from ..layers.base import Layer
from ..layers.bidirectional import Bidirectional
from ..layers.core import Dense, Identity, Input, TimeDistributed
from ..layers.operations import Operation
from ..layers.recurrent import RNN
from ..layers.tensorflow_operations import GraphNode
from ..models import Model, Sequential
from .onnx_builder import Builder, Value
from .onnx_layers import LAYERS
from .onnx_operations import operation


def run(g: Builder, graph: Graph, inputs: list[Value]) -> list[Value]:
    """The values of the graph's outputs, masks as `Graph.run` hands them on."""
    slots: list[Any] = [None] * graph.slots
    for slot, value in zip(graph.inputs, inputs, strict=True):
        slots[slot] = value
    for node in graph.nodes:
        state = None if node.state is None else fill(node.state, slots)
        y = _call(g, node, fill(node.x, slots), state, slots)
        for index, slot in node.outputs:
            slots[slot] = y[index] if isinstance(y, list) else y
    return [slots[slot] for slot in graph.outputs]


def _call(g: Builder, node: Node, x: Any, state: Any, slots: list[Any]) -> Any:
    layer = node.layer
    if node.mask is not None:
        x = _with_mask(g, x, fill(node.mask, slots))
    if not isinstance(layer, (RNN, Bidirectional)):
        return emit(g, layer, x, state)
    # A recurrent layer looks at the mask of its first input, and hands it on with its sequences.
    first = x[0] if isinstance(x, (list, tuple)) else x
    mask = first.mask if isinstance(first, Value) else None
    y = emit(g, layer, _with_mask(g, x, None) if node.hides else x, state)
    shown = layer.output_mask(mask)
    if isinstance(y, list):
        return [replace(v, mask=m) for v, m in zip(y, shown, strict=True)]
    return replace(y, mask=shown)


def _with_mask(g: Builder, x: Any, mask: Any) -> Any:
    """x with a mask that its call names, or a list of them; None hides the mask that it has."""
    if isinstance(x, (list, tuple)):
        masks = mask if isinstance(mask, (list, tuple)) else [mask] * len(x)
        return [_with_mask(g, v, m) for v, m in zip(x, masks, strict=True)]
    if not isinstance(x, Value):
        return x
    return replace(x, mask=None if mask is None else replace(g.cast(g.value(mask), "bool"), mask=None))


def emit(g: Builder, layer: Layer, x: Any, state: Any) -> Any:
    """Add one layer; its output, or a list of several.

    Raises
    ------
    FormatError
        Naming the layer and what of it ONNX can't express.
    """
    with g.inside(layer):
        if isinstance(layer, Identity):  # Dropout and its kin: scoring leaves them out
            return x
        if type(layer) not in _LAYERS:
            raise g.refuse("has no counterpart in ONNX here; cut the model before it")
        if not layer.ready and not isinstance(layer, Model):
            raise g.refuse("has no weights yet; load or set them first (set_weights), or score an input once")
        return _LAYERS[type(layer)](g, layer, x, state)


def declared(g: Builder, end: Input, x: Value) -> Value:
    """``x`` in the rank and kind that an input declares, as `Input.cast` has it."""
    if end.shape is not None and x.rank != len(end.shape) + 1:
        if x.rank == len(end.shape) + 2 and x.sizes[-1] == 1:
            x = g.squeeze(x, -1)
        elif x.rank == len(end.shape) and end.shape and end.shape[-1] == 1:
            x = g.unsqueeze(x, -1)
        else:
            raise g.refuse(f"input {end.name!r}: expected {(None, *end.shape)}, found {x.sizes}")
    if end.dtype.startswith(("int", "uint")):
        return g.cast(x, "int64")
    if end.dtype == "bool":
        return g.cast(x, "bool")
    return x if end.exact else g.floats(x)


def _model(g: Builder, layer: Model, x: Any, state: Any) -> Any:
    """A nested model: its inputs in the order of its config."""
    if isinstance(x, Mapping):
        x = [x[end.name] for end in layer.inputs]
    values = list(x) if isinstance(x, (list, tuple)) else [x]
    if len(values) != len(layer.inputs):
        raise g.refuse(f"expected {len(layer.inputs)} inputs, found {len(values)}")
    inputs = [declared(g, end, g.value(v)) for end, v in zip(layer.inputs, values, strict=True)]
    outputs = run(g, layer.graph, inputs)
    return outputs[0] if len(outputs) == 1 else outputs


def _time_distributed(g: Builder, layer: TimeDistributed, x: Value, state: Any) -> Value:
    """(N, T, …) as (N·T, …) rows; layers that look at the last axis only take it as it is."""
    inner = layer.layer
    if x.rank < 3:
        raise g.refuse(f"expected (N, T, …), found {x.sizes}")
    if isinstance(inner, (Dense, Identity)):
        found: Value = emit(g, inner, replace(x, mask=None), None)
        return replace(found, mask=x.mask)
    rows = g.reshape(replace(x, mask=None), _sizes_of(g, x, [-1], 2), (None, *x.sizes[2:]))
    y: Any = emit(g, inner, rows, None)
    if isinstance(y, list):
        raise g.refuse(f"expected an inner layer with one output, found {len(y)}")
    shape = [(x, 0), (x, 1), *_sizes_of(g, y, [], 1)]
    found = g.reshape(y, shape, (*x.sizes[:2], *y.sizes[1:]))
    mask = x.mask
    if mask is None and y.mask is not None:
        shape = [(x, 0), (x, 1), *_sizes_of(g, y.mask, [], 1)]
        mask = g.reshape(y.mask, shape, (*x.sizes[:2], *y.mask.sizes[1:]))
    return replace(found, mask=mask)


def _sizes_of(g: Builder, x: Value, first: list[Any], axis: int) -> list[Any]:
    """``first`` and the sizes of the axes from ``axis`` on, as `Builder.reshape` takes them."""
    return [*first, *(n if isinstance(n, int) else (x, axis + i) for i, n in enumerate(x.sizes[axis:]))]


_LAYERS: dict[type, Any] = {
    **LAYERS,
    TimeDistributed: _time_distributed,
    Operation: operation,
    GraphNode: operation,
    Model: _model,
    Sequential: _model,
}
