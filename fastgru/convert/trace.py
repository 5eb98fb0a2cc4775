"""A model run call by call, to look between its layers: which masks arrive where, and what each layer gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..graph import Graph, Ref, input_arrays, sample_inputs
from ..graph.plan import fill, leaves
from ..layers.base import Array, Layer
from ..layers.bidirectional import Bidirectional
from ..layers.core import Embedding, Identity, Masking
from ..layers.onnx_control import turns
from ..layers.onnx_node import OnnxNode
from ..layers.recurrent import RNN
from ..layers.shaping import Flatten, Permute, RepeatVector, Reshape
from ..models import Model, walk

__all__ = ["Call", "masked_calls", "run_through", "trace"]


@dataclass(frozen=True)
class Call:
    """One call of a layer: what went in, what came out, and the masks of both.

    ``path`` is the layer's, "encoder/gru" inside a model "encoder"; ``x`` is an array or a list, as the layer takes it;
    ``mask`` is what the layer looked at (None for a GRU that runs without the mask it got); ``y`` lists those outputs
    that the model uses, and ``numbers`` says which of the layer's they are.
    """

    path: str
    layer: Layer
    x: Any
    mask: Any
    state: Any
    y: list[Array]
    numbers: tuple[int, ...]


def trace(model: Model, inputs: Iterable[Array], masks: Iterable[Any] | None = None) -> list[Call]:
    """Every call of every layer that is no model, in the order in which they run."""
    calls: list[Call] = []
    arrays = list(inputs)
    shown = [None] * len(arrays) if masks is None else list(masks)
    model.reset_states()
    with turns():
        _run(model.graph, arrays, shown, "", calls)
    model.reset_states()
    return calls


def run_through(model: Model, inputs: Iterable[Array], change: Callable[[Array], Array]) -> list[Array]:
    """The outputs of a model in which what a layer computes goes through ``change`` on its way to the next.

    Layers that only copy or rearrange their input compute nothing.
    """
    arrays = list(inputs)
    model.reset_states()
    with turns():
        y, _ = _run(model.graph, arrays, [None] * len(arrays), "", [], change)
    model.reset_states()
    return list(y)


def _run(
    graph: Graph,
    inputs: list[Any],
    masks: list[Any],
    path: str,
    calls: list[Call],
    change: Callable[[Array], Array] | None = None,
) -> tuple[Any, Any]:
    """As `Graph.run`, a call at a time: each is run by a graph of its own."""
    values: list[Any] = [None] * graph.slots
    shown: list[Any] = [None] * graph.slots
    for slot, value, mask in zip(graph.inputs, inputs, masks, strict=True):
        values[slot], shown[slot] = value, mask
    for node in graph.nodes:
        x, layer = fill(node.x, values), node.layer
        mask = None if isinstance(node.x, tuple) else fill(node.x, shown)
        if node.mask is not None:
            given = fill(node.mask, values)
            mask = given if isinstance(given, list) else np.asarray(given).astype(bool)
        where = f"{path}{layer.name}"
        if isinstance(layer, Model):
            arrays = input_arrays(x, layer.inputs)
            ends = [end.name for end in layer.inputs]
            inner = [mask[name] for name in ends] if isinstance(mask, Mapping) else mask
            inner = list(inner) if isinstance(inner, (list, tuple)) else [inner] * len(arrays)
            y, y_mask = _run(layer.graph, arrays, inner, f"{where}/", calls, change)
            for index, slot in node.outputs:
                values[slot], shown[slot] = y[index], y_mask[index]
            continue
        used = sorted({ref.slot for ref in leaves((node.x, node.mask, node.state), Ref)})
        slots = tuple(slot for _, slot in node.outputs)
        step = Graph((replace(node, free=()),), tuple(used), slots, graph.slots)
        y, y_mask = step.run([values[s] for s in used], [shown[s] for s in used], None)
        y = y if change is None or _rearranges(layer) else [change(v) for v in y]
        for slot, value, its_mask in zip(slots, y, y_mask, strict=True):
            values[slot], shown[slot] = value, its_mask
        state = None if node.state is None else fill(node.state, values)
        hidden = node.hides and isinstance(layer, (RNN, Bidirectional))
        calls.append(
            Call(where, layer, x, None if hidden else mask, state, y, tuple(index for index, _ in node.outputs))
        )
    return [values[s] for s in graph.outputs], [shown[s] for s in graph.outputs]


def _rearranges(layer: Layer) -> bool:
    if isinstance(layer, OnnxNode):
        return layer.operator.rearranges
    return isinstance(layer, (Identity, Embedding, Masking, Flatten, Permute, RepeatVector, Reshape))


def masked_calls(model: Model) -> list[tuple[str, Layer, bool]]:
    """The path of each layer that a mask of the model's own (Masking, mask_zero, mask=…) reaches, the layer, and
    whether it is called with an initial state.

    Found by running the model. Where the shape of its inputs isn't known, every layer of a model that has a layer
    which makes masks counts.
    """
    samples = sample_inputs(model.graph, model.inputs)
    if samples is None:
        makes = any(isinstance(v, Masking) or (isinstance(v, Embedding) and v.mask_zero) for v in walk(model))
        return [(layer.name, layer, True) for layer in walk(model)] if makes else []
    found = [call for call in trace(model, samples) if any(m is not None for m in _flat(call.mask))]
    return [(call.path, call.layer, call.state is not None or isinstance(call.x, list)) for call in found]


def _flat(mask: Any) -> list[Any]:
    if isinstance(mask, Mapping):
        return list(mask.values())
    return list(mask) if isinstance(mask, (list, tuple)) else [mask]
