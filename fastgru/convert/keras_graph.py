"""A model's graph as a functional config of Keras 3: layers in Keras' own order, each with its calls.

The order counts: Keras numbers the groups of a weights file by it, and when it loads a model it sorts the layers anew.
(Keras 3.15: src/ops/function.py `map_graph`; src/models/functional.py `get_config`, `functional_from_config`.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from ..graph import Graph, Ref
from ..graph.plan import Node, leaves
from ..layers.base import Layer
from ..layers.bidirectional import Bidirectional
from ..layers.operations import Operation
from ..layers.recurrent import RNN
from ..models import Model, Sequential
from .keras_layers import Entry, Scope, input_entry, layer_entry
from .keras_operations import constant, operation_call, operation_entry

__all__ = ["functional_config"]

#: The layer, the number of its call, the number of the output.
_End = tuple[str, int, int]


def functional_config(
    model: Model,
    scope: Scope,
    batches: dict[str, int | None],
    inner: Callable[[Model, Scope], Entry],
) -> Entry:
    """The config of a functional model; ``inner`` makes the entries of models in it."""
    graph = model.graph
    ends: dict[int, _End] = {slot: (end.name, 0, 0) for slot, end in zip(graph.inputs, model.inputs, strict=True)}
    calls: Counter[str] = Counter()
    for node in graph.nodes:
        name, number = node.layer.name, calls[node.layer.name]
        calls[name] += 1
        ends.update({slot: (name, number, index) for index, slot in node.outputs})

    def tensor(ref: Any) -> Entry:
        assert isinstance(ref, Ref)
        config = {"shape": [None], "dtype": "float32", "keras_history": list(ends[ref.slot])}
        return {"class_name": "__keras_tensor__", "config": config}

    entries: dict[str, Entry] = {}
    for end in model.inputs:
        if end.shape is None:
            raise scope.refuse(end, "the shape of the input is not in the file")
        entries[end.name] = {**input_entry(end, end.name, batches.get(end.name)), "name": end.name, "inbound_nodes": []}
    for node in graph.nodes:
        layer = node.layer
        made, positional, named = _call(node, scope)
        if layer.name not in entries:
            if isinstance(layer, Operation):
                own = operation_entry(layer, made)
            else:
                own = inner(layer, scope) if isinstance(layer, Model) else layer_entry(layer, scope)
            entries[layer.name] = {**own, "name": layer.name, "inbound_nodes": []}
        call = {"args": constant(positional, tensor), "kwargs": constant(named, tensor)}
        entries[layer.name]["inbound_nodes"].append(call)
    names = [end.name for end in model.inputs]
    outputs = [_output(graph, ends[slot]) for slot in graph.outputs]
    keys = model._output_keys
    listed: Any = outputs[0] if len(outputs) == 1 else outputs
    return {
        "name": model.name,
        "trainable": model.trainable,
        "layers": [entries[name] for name in _order(graph, names, keys)],
        "input_layers": [[name, 0, 0] for name in names] if len(names) > 1 else [names[0], 0, 0],
        "output_layers": listed if keys is None else dict(zip(keys, outputs, strict=True)),
    }


def _output(graph: Graph, end: _End) -> list[Any]:
    """An output as [layer, call, number]: Keras counts the calls of a functional model from 1 here."""
    name, number, index = end
    layer: Layer | None = next((n.layer for n in graph.nodes if n.layer.name == name), None)
    functional = isinstance(layer, Model) and not isinstance(layer, Sequential)
    return [name, number + functional, index]


def _call(node: Node, scope: Scope) -> tuple[dict[str, Any], list[Any], dict[str, Any]]:
    """What makes an op object (nothing for layers), then positional and named arguments of the call."""
    layer, x = node.layer, node.x
    if isinstance(layer, Operation):
        made, positional = operation_call(layer, x)
        return made, positional, {}
    state = node.state
    if isinstance(layer, (RNN, Bidirectional)) and isinstance(x, list):
        x, state = x[0], x[1:] or state  # Keras 2 passes [x, state, …]
    if state is not None:
        half = layer.forward_layer if isinstance(layer, Bidirectional) else layer
        if getattr(half, "stateful", False) and scope.dialect.stored_state_wins:
            why = "it is stateful and called with a state, which tf.keras ignores from the second call on"
            raise scope.refuse(layer, why)
    named = {"initial_state": state, "mask": node.mask}
    return {}, [x], {key: value for key, value in named.items() if value is not None}


def _order(graph: Graph, inputs: list[str], keys: tuple[str, ...] | None) -> list[str]:
    """The names of inputs and layers as Keras sorts them: by depth, then by when a walk from the outputs meets them."""
    makers = {slot: node for node in graph.nodes for _, slot in node.outputs}
    sources = dict(zip(graph.inputs, inputs, strict=True))
    met: dict[str, int] = {}  # layer → when it was met first
    finished: list[Node | str] = []  # nodes from inputs to outputs; an input is its name
    done: set[Any] = set()
    outputs = list(graph.outputs)
    if keys is not None:  # Keras walks a dict by sorted keys
        outputs = [outputs[keys.index(key)] for key in sorted(keys)]
    stack: list[tuple[Any, bool]] = [(slot, False) for slot in reversed(outputs)]
    while stack:
        item, left = stack.pop()
        if left:
            finished.append(item)
            continue
        step: Any = sources.get(item) if item in sources else makers[item]
        key = step if isinstance(step, str) else id(step)
        if key in done:
            continue
        done.add(key)
        met.setdefault(step if isinstance(step, str) else step.layer.name, len(met))
        stack.append((step, True))
        if not isinstance(step, str):
            stack += [(slot, False) for slot in reversed(_parents(step))]
    depths: dict[Any, int] = {}
    layers: dict[str, int] = {}
    for step in reversed(finished):
        key, name = (step, step) if isinstance(step, str) else (id(step), step.layer.name)
        depth = max(depths.get(key, 0), layers.get(name, 0))
        depths[key] = layers[name] = depth
        for slot in [] if isinstance(step, str) else _parents(step):
            parent = sources[slot] if slot in sources else id(makers[slot])
            depths[parent] = max(depths.get(parent, 0), depth + 1)
    for name in inputs:
        layers.setdefault(name, 0)
        met.setdefault(name, -1)
    return sorted(layers, key=lambda name: (-layers[name], met[name]))


def _parents(node: Node) -> list[int]:
    """The slots that a call takes, in the order in which Keras flattens its arguments (dicts by sorted keys)."""
    x = {key: node.x[key] for key in sorted(node.x)} if isinstance(node.x, dict) else node.x
    return [ref.slot for ref in leaves([x, node.state, node.mask], Ref)]
