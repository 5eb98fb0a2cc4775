"""A model as a list of calls in topological order, and how it runs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..layers.base import Layer
from ..layers.bidirectional import Bidirectional
from ..layers.recurrent import RNN


@dataclass(frozen=True)
class Ref:
    """The value in one slot of a running graph."""

    slot: int


@dataclass(frozen=True)
class Node:
    """One call of a layer.

    ``x`` is a Ref, a list or dict holding Refs, or for an `Operation` the pair (args, kwargs).
    ``outputs`` are pairs (number of the output, slot); ``free`` are slots not needed afterwards.
    ``hides`` says that the call runs without the mask of its input (`Dialect.state_hides_mask`).
    """

    layer: Layer
    x: Any
    outputs: tuple[tuple[int, int], ...]
    mask: Any = None
    state: Any = None
    free: tuple[int, ...] = ()
    hides: bool = False


@dataclass(frozen=True)
class Graph:
    """Calls in an order in which each finds its inputs."""

    nodes: tuple[Node, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    slots: int

    @cached_property
    def differentiable(self) -> tuple[list[Ref], ...]:
        """The slots that each call has a gradient for, when it has one at all."""
        return tuple(leaves((node.x, node.state), Ref) for node in self.nodes)

    def run(self, inputs: list[Any], masks: list[Any], num_threads: int | None) -> tuple[list[Any], list[Any]]:
        """Outputs and their masks for one value and mask per input."""
        values: list[Any] = [None] * self.slots
        shown: list[Any] = [None] * self.slots
        for slot, value, mask in zip(self.inputs, inputs, masks, strict=True):
            values[slot] = value
            shown[slot] = mask
        for node in self.nodes:
            x = node.x
            if type(x) is Ref:
                mask = shown[x.slot]
                x = values[x.slot]
            else:
                mask = None if type(x) is tuple else fill(x, shown)
                x = fill(x, values)
            if node.mask is not None:
                given = fill(node.mask, values)
                mask = given if isinstance(given, list) else np.asarray(given).astype(bool)
            layer = node.layer
            if not layer.ready:
                layer.ensure_ready(x)
            state = None if node.state is None else fill(node.state, values)
            if node.hides and isinstance(layer, (RNN, Bidirectional)):
                y, _ = layer.forward(x, None, num_threads, state)
                mask = layer.output_mask(mask)
            else:
                y, mask = layer.forward(x, mask, num_threads, state)
            if type(y) is list:
                several = type(mask) is list
                for index, slot in node.outputs:
                    values[slot] = y[index]
                    shown[slot] = mask[index] if several else None
            else:
                for _, slot in node.outputs:
                    values[slot] = y
                    shown[slot] = mask
            for slot in node.free:
                values[slot] = shown[slot] = None
        return [values[s] for s in self.outputs], [shown[s] for s in self.outputs]


def fill(template: Any, values: list[Any]) -> Any:
    """``template`` with every Ref replaced by its value."""
    if type(template) is Ref:
        return values[template.slot]
    if isinstance(template, list):
        return [fill(t, values) for t in template]
    if isinstance(template, tuple):
        return tuple(fill(t, values) for t in template)
    if isinstance(template, dict):
        return {k: fill(t, values) for k, t in template.items()}
    return template


def leaves(template: Any, kind: type) -> list[Any]:
    """All leaves of type ``kind`` in nested lists, tuples and dicts, in order."""
    if isinstance(template, kind):
        return [template]
    if isinstance(template, (list, tuple)):
        return [leaf for t in template for leaf in leaves(t, kind)]
    if isinstance(template, dict):
        return [leaf for t in template.values() for leaf in leaves(t, kind)]
    return []


def chain(layers: list[Layer]) -> Graph:
    """A Sequential model: each layer feeds the next."""
    nodes = [Node(layer, Ref(i), ((0, i + 1),), free=(i,) if i else ()) for i, layer in enumerate(layers)]
    return Graph(tuple(nodes), (0,), (len(layers),), len(layers) + 1)
