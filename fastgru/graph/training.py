"""A graph in training: forward keeping what the way back needs, then back through the calls in reverse order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..layers.base import Array
from ..layers.bidirectional import Bidirectional
from ..layers.recurrent import RNN
from ..layers.training_step import Back, LogitGradient, TrainingStep
from .plan import Graph, Node, Ref, fill


def untrainable(graph: Graph, input_gradients: bool = False) -> str:
    """Why a graph cannot be trained, naming the layer; empty where it can."""
    return _refusal(graph, *_wanted(graph, input_gradients))


def learns(graph: Graph) -> bool:
    """Whether any layer of the graph has weights that get gradients."""
    return any(node.layer.learns() for node in graph.nodes)


def train(
    graph: Graph,
    inputs: list[Any],
    masks: list[Any],
    step: TrainingStep,
    *,
    input_gradients: bool = False,
) -> tuple[list[Any], list[Any], Callable[[list[Any]], list[Any]]]:
    """`Graph.run` as in training, and the way back.

    Parameters
    ----------
    inputs, masks
        As `Graph.run` takes them.
    input_gradients
        Whether the gradients of the inputs are wanted. Without them calls that no weight comes before are not gone back
        through, and may be of layers that can't be.

    Returns
    -------
    outputs, masks
    back
        Called at most once with the gradient of each output (an array, a `LogitGradient`, or None). The weights'
        gradients are in ``step.gradients`` afterwards; it returns those of the inputs, None where there is none.

    Raises
    ------
    ValueError
        Naming the layer that gradients cannot pass, before anything is computed.
    """
    depends, wanted = _wanted(graph, input_gradients)
    if reason := _refusal(graph, depends, wanted):
        raise ValueError(reason)
    values: list[Any] = [None] * graph.slots
    shown: list[Any] = [None] * graph.slots
    for slot, value, mask in zip(graph.inputs, inputs, masks, strict=True):
        values[slot], shown[slot] = value, mask
    backs: list[Back | None] = []
    for node, goes_back in zip(graph.nodes, wanted, strict=True):
        y, mask, back = _call(node, values, shown, step, goes_back)
        if step.watch is not None:
            step.watch(node.layer, y)
        backs.append(back)
        several = isinstance(y, list)
        for index, slot in node.outputs:
            values[slot] = y[index] if several else y
            shown[slot] = (mask[index] if isinstance(mask, list) else None) if several else mask

    def go_back(doutputs: list[Any]) -> list[Any]:
        gradients: list[list[Any]] = [[] for _ in range(graph.slots)]  # every use of a slot leaves one
        for slot, gradient in zip(graph.outputs, doutputs, strict=True):
            if gradient is not None:
                gradients[slot].append(gradient)
        while backs:
            back, node = backs.pop(), graph.nodes[len(backs)]
            found = [(index, gradients[slot]) for index, slot in node.outputs]
            if back is not None and any(parts for _, parts in found):
                _go_back(node, back, found, gradients)
            for _, slot in node.outputs:
                gradients[slot] = []
        return [_total(gradients[slot]) if input_gradients else None for slot in graph.inputs]

    return [values[s] for s in graph.outputs], [shown[s] for s in graph.outputs], go_back


def check_gradients(dys: Any, shapes: Sequence[tuple[int, ...]]) -> None:
    """Raise ValueError or TypeError unless there is a gradient, or None, of the shape of each output."""
    if not isinstance(dys, (list, tuple)) or len(dys) != len(shapes):
        found = f"{len(dys)} of them" if isinstance(dys, (list, tuple)) else type(dys).__name__
        raise ValueError(f"dy: expected a list of the gradients of {len(shapes)} outputs, found {found}")
    for i, (dy, shape) in enumerate(zip(dys, shapes, strict=True)):
        array = dy.dx if isinstance(dy, LogitGradient) else dy
        if array is None:
            continue
        if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
            kind = str(array.dtype) if isinstance(array, np.ndarray) else type(array).__name__
            raise TypeError(f"dy: expected an array of floats for output {i}, found {kind}")
        if array.shape != shape:
            raise ValueError(f"dy: expected the shape {shape} of output {i}, found {array.shape}")


def _wanted(graph: Graph, input_gradients: bool) -> tuple[list[bool], list[bool]]:
    """Which slots depend on weights that are trained, and which calls gradients pass: those between such weights and
    the outputs, but not where only a mask comes from."""
    depends = [False] * graph.slots
    for slot in graph.inputs:
        depends[slot] = input_gradients
    before = []
    for node, refs in zip(graph.nodes, graph.differentiable, strict=True):
        before.append(node.layer.learns() or any(depends[ref.slot] for ref in refs))
        for _, slot in node.outputs:
            depends[slot] = before[-1]
    reached = [False] * graph.slots
    for slot in graph.outputs:
        reached[slot] = True
    wanted = []
    for i in reversed(range(len(graph.nodes))):
        wanted.append(before[i] and any(reached[slot] for _, slot in graph.nodes[i].outputs))
        if wanted[-1]:
            for ref in graph.differentiable[i]:
                reached[ref.slot] = True
    return depends, wanted[::-1]


def _refusal(graph: Graph, depends: list[bool], wanted: list[bool]) -> str:
    """Why one of the wanted calls cannot be gone back through; empty where all can."""
    for node, refs, goes_back in zip(graph.nodes, graph.differentiable, wanted, strict=True):
        through = any(depends[ref.slot] for ref in refs)
        if goes_back and (reason := node.layer.untrainable(through)):
            return reason
    return ""


def _call(
    node: Node, values: list[Any], shown: list[Any], step: TrainingStep, goes_back: bool
) -> tuple[Any, Any, Back | None]:
    """One call, with the inputs and masks that `Graph.run` would give it."""
    layer = node.layer
    x = fill(node.x, values)
    mask = None if isinstance(node.x, tuple) else fill(node.x, shown)
    if node.mask is not None:
        given = fill(node.mask, values)
        mask = given if isinstance(given, list) else np.asarray(given).astype(bool)
    layer.ensure_ready(x)
    state = None if node.state is None else fill(node.state, values)
    hides = node.hides and isinstance(layer, (RNN, Bidirectional))
    fed = None if hides else mask
    if not goes_back and layer.untrainable():
        y, out = layer.forward(x, fed, step.num_threads, state)
        back: Back | None = None
    else:
        y, out, back = layer.train(x, fed, step, state)
    if hides:
        assert isinstance(layer, (RNN, Bidirectional))
        out = layer.output_mask(mask)
    return y, out, back if goes_back else None


def _go_back(node: Node, back: Back, found: list[tuple[int, list[Any]]], gradients: list[list[Any]]) -> None:
    """Back through one call: from the gradients of its outputs to those of its inputs and states."""
    if node.layer.output_count() > 1:
        dy: list[Any] = [None] * node.layer.output_count()
        for index, parts in found:
            dy[index] = _total(parts)
        dx = back(dy)
    else:
        dx = back(_total([part for _, some in found for part in some]))
    if node.state is not None:
        dx, dstate = dx
        _scatter(_flat(node.state), dstate, gradients)
    _scatter(node.x, dx, gradients)


def _total(parts: list[Any]) -> Any:
    """The sum in the order given; None for nothing. Gradients of logits take those of the output itself with them."""
    arrays = [part for part in parts if not isinstance(part, LogitGradient)]
    logits = [part for part in parts if isinstance(part, LogitGradient)]
    if logits:
        arrays += [part.dy for part in logits if part.dy is not None]
        return LogitGradient(_total([part.dx for part in logits]), _total(arrays))
    total: Array | None = None
    for part in arrays:
        total = part if total is None else total + part
    return total


def _flat(template: Any) -> list[Any]:
    """The leaves of nested lists, as an RNN flattens its initial states."""
    if isinstance(template, (list, tuple)):
        return [leaf for t in template for leaf in _flat(t)]
    return [template]


def _scatter(template: Any, gradient: Any, gradients: list[list[Any]]) -> None:
    """Leave gradients at the slots to which a template refers, which has their structure."""
    if gradient is None:
        return
    if isinstance(template, Ref):
        gradients[template.slot].append(gradient)
    elif isinstance(template, dict):
        for key, t in template.items():
            _scatter(t, gradient[key], gradients)
    elif isinstance(template, (list, tuple)):
        for t, g in zip(template, gradient, strict=True):
            _scatter(t, g, gradients)
