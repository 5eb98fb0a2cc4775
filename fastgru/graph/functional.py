"""A functional Keras config → a `Graph`.

Two spellings of a call exist: Keras 2 writes lists ``["layer", call, tensor, {kwargs}]``, Keras 3
writes ``{"args": …, "kwargs": …}`` with ``__keras_tensor__`` leaves. Calls that no output needs are
dropped before their layers are made, so that what they hold cannot refuse the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..formats.untrusted import FormatError
from ..layers.base import Layer
from ..layers.core import Input
from ..layers.operations import Operation
from ..layers.reader import MODELS, Reader
from ..layers.tensorflow_operations import tensorflow_arguments
from .plan import Graph, Node, Ref, leaves


@dataclass(frozen=True)
class Tensor:
    """The output number ``index`` of call number ``call`` of the layer ``layer``."""

    layer: str
    call: int
    index: int


@dataclass(frozen=True)
class Functional:
    """What a functional config says: its graph, the layers in use, names and order of its ends."""

    graph: Graph
    layers: dict[str, Layer]
    inputs: tuple[Input, ...]
    output_names: tuple[str, ...]
    output_keys: tuple[str, ...] | None


class GraphReader:
    """Reads one functional config; ``name`` is the model's, for errors."""

    def __init__(self, config: Mapping[str, Any], name: str, reader: Reader) -> None:
        self._reader = reader
        self._name = name
        self._entries: dict[str, Mapping[str, Any]] = {}
        entries = config.get("layers")
        if not isinstance(entries, list) or not entries:
            raise self._bad("expected a list of layers, found none")
        for entry in entries:
            if not isinstance(entry, Mapping):
                raise self._bad(f"expected a layer, found {str(entry)[:80]}")
            inner = entry.get("config")
            own = inner.get("name") if isinstance(inner, Mapping) else None
            layer_name = str(entry.get("name") or own or "")
            if layer_name in self._entries:
                raise self._bad(f"expected layer names that differ, found {layer_name!r} twice")
            self._entries[layer_name] = entry
        self._layers: dict[str, Layer] = {}
        self._config = config

    def read(self) -> Functional:
        """The functional model.

        Raises
        ------
        FormatError
            For calls that form a loop, refer to what does not exist, or that cannot be scored.
        """
        inputs, _ = self._ends("input_layers")
        outputs, keys = self._ends("output_layers")
        outputs = [self._as_output(t) for t in outputs]
        order = self._order(outputs, set(inputs))
        slots = {tensor: i for i, tensor in enumerate(inputs)}
        calls = [(layer, call, *self._call(layer, call)) for layer, call in order]
        needed = [leaves((x, mask, state), Tensor) for _, _, x, mask, state in calls]
        for tensor in [*(t for n in needed for t in n), *outputs]:
            slots.setdefault(tensor, len(slots))
        for tensor in slots:
            if tensor.index and any((tensor.layer, tensor.call) == (t.layer, t.call) for t in inputs):
                raise self._bad(f"input {tensor.layer!r} is one tensor, but number {tensor.index} is in use")
        last = {t: i for i, n in enumerate(needed) for t in n}
        kept = set(outputs)
        nodes = []
        for i, (layer, call, x, mask, state) in enumerate(calls):
            given = sorted((t.index, slot) for t, slot in slots.items() if (t.layer, t.call) == (layer, call))
            free = [slots[t] for t in dict.fromkeys(needed[i]) if last[t] == i and t not in kept]
            count = self._layer(layer).output_count()
            if not all(0 <= index < count for index, _ in given):
                raise self._bad(f"layer {layer!r} returns {count} outputs, but number {given[-1][0]} is in use")
            bound = [_bind(part, slots) for part in (x, mask, state)]
            hides = state is not None and mask is None and self._reader.dialect.state_hides_mask
            nodes.append(Node(self._layer(layer), bound[0], tuple(given), bound[1], bound[2], tuple(free), hides))
        graph = Graph(
            tuple(nodes),
            tuple(slots[t] for t in inputs),
            tuple(slots[t] for t in outputs),
            len(slots),
        )
        ends = tuple(self._input(t, graph) for t in inputs)
        used = {name: self._layers[name] for name in self._entries if name in self._layers}
        return Functional(graph, used, ends, tuple(t.layer for t in outputs), keys)

    # -- the ends --------------------------------------------------------------------------

    def _ends(self, key: str) -> tuple[list[Tensor], tuple[str, ...] | None]:
        value = self._config.get(key)
        keys: tuple[str, ...] | None = None
        if isinstance(value, Mapping):
            keys = tuple(map(str, value))
            value = list(value.values())
        ends = self._end_tensors(value)
        if not ends:
            raise self._bad(f"{key}: expected at least one [layer, call, tensor], found none")
        return ends, keys if keys and len(keys) == len(ends) else None

    def _end_tensors(self, value: Any) -> list[Tensor]:
        tensor = self._tensor(value)
        if tensor is not None:
            return [tensor]
        if isinstance(value, (list, tuple)):
            return [t for v in value for t in self._end_tensors(v)]
        if isinstance(value, Mapping):
            return [t for v in value.values() for t in self._end_tensors(v)]
        raise self._bad(f"expected [layer, call, tensor], found {str(value)[:80]}")

    def _input(self, tensor: Tensor, graph: Graph) -> Input:
        layer = self._layer(tensor.layer)
        if not isinstance(layer, Input):
            raise self._bad(f"input {tensor.layer!r}: expected an InputLayer, found {layer.class_name()}")
        slot = graph.inputs[list(self._ends("input_layers")[0]).index(tensor)]
        users = [n.layer for n in graph.nodes if Ref(slot) in leaves((n.x, n.mask, n.state), Ref)]
        # An id beyond 2**24 would not survive float32, whatever the config says the dtype is.
        layer.exact = bool(users) and not any(isinstance(u, Operation) for u in users)
        return layer

    # -- order -----------------------------------------------------------------------------

    def _order(self, outputs: list[Tensor], inputs: set[Tensor]) -> list[tuple[str, int]]:
        """The calls that the outputs need, each after those it needs (depth first, no recursion)."""
        sources = {(t.layer, t.call) for t in inputs}
        done: dict[tuple[str, int], None] = {}
        open_calls: set[tuple[str, int]] = set()
        stack = [((t.layer, t.call), False) for t in reversed(outputs)]
        while stack:
            call, finished = stack.pop()
            if call in done or call in sources:
                continue
            if finished:
                done[call] = None
                open_calls.discard(call)
                continue
            if call in open_calls:
                raise self._bad(f"the calls of layer {call[0]!r} form a loop")
            open_calls.add(call)
            stack.append((call, True))
            parents = leaves(self._call(*call), Tensor)
            stack += [((t.layer, t.call), False) for t in reversed(parents)]
        return list(done)

    # -- calls -----------------------------------------------------------------------------

    def _call(self, name: str, number: int) -> tuple[Any, Any, Any]:
        """Input, mask and initial state of call ``number`` of a layer."""
        nodes = self._inbound(name)
        if not 0 <= number < len(nodes):
            raise self._bad(f"layer {name!r}: expected call {number}, found {len(nodes)} in its inbound_nodes")
        layer = self._layer(name)
        node = nodes[number]
        if isinstance(node, Mapping):
            positional, named = self._keras3(node, name)
        else:
            positional, named = self._keras2(node)
            if isinstance(layer, Operation):
                named = tensorflow_arguments(layer.operation, named)
        if isinstance(layer, Operation):
            return (positional, layer.known(named)), None, None
        return self._arguments(layer, name, positional, named)

    def _arguments(self, layer: Layer, name: str, positional: list[Any], named: dict[str, Any]) -> tuple[Any, Any, Any]:
        """Sort a layer's arguments into input, mask and initial state."""
        if not positional:
            first = next((k for k in ("inputs", "sequences", "x") if k in named), None)
            if first is None:
                raise self._bad(f"layer {name!r}: expected a call with inputs, found none")
            positional = [named.pop(first)]
        x = positional[0]
        parts = x if isinstance(x, list) else list(x.values()) if isinstance(x, dict) else [x]
        if not parts or not all(isinstance(p, (Tensor, int, float, np.ndarray)) for p in parts):
            raise self._bad(f"layer {name!r}: expected a call with tensors, found {str(x)[:80]}")
        if not leaves(x, Tensor) or (isinstance(x, dict) and layer.class_name() not in MODELS):
            raise self._bad(f"layer {name!r}: expected a call with tensors, found {str(x)[:80]}")
        named = {**dict(zip(layer.call_arguments, positional[1:], strict=False)), **named}
        mask, state = named.pop("mask", None), named.pop("initial_state", None)
        others = [k for k, v in named.items() if leaves(v, Tensor) and k != "training"]
        others += ["constants"] * bool(named.get("constants"))
        if others:
            raise self._bad(
                f"layer {name!r}: the call argument {others[0]!r} is not supported; supported are "
                f"{', '.join(layer.call_arguments)}"
            )
        mask = mask if leaves(mask, Tensor) else None
        return x, mask, state if leaves(state, Tensor) else None

    def _keras3(self, node: Mapping[str, Any], name: str) -> tuple[list[Any], dict[str, Any]]:
        args, kwargs = node.get("args", []), node.get("kwargs", {})
        if not isinstance(args, list) or not isinstance(kwargs, Mapping):
            raise self._bad(f"layer {name!r}: expected args and kwargs, found {str(node)[:80]}")
        return [self._keras3_value(a) for a in args], {str(k): self._keras3_value(v) for k, v in kwargs.items()}

    def _keras3_value(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            if value.get("class_name") == "__keras_tensor__":
                history = value.get("config", {}).get("keras_history")
                tensor = self._tensor(history)
                if tensor is None:
                    raise self._bad(f"keras_history: expected a known layer, found {history}")
                return tensor
            if "class_name" in value:
                return self._reader.value(value)
            return {str(k): self._keras3_value(v) for k, v in value.items()}
        return [self._keras3_value(v) for v in value] if isinstance(value, list) else value

    def _keras2(self, node: Any) -> tuple[list[Any], dict[str, Any]]:
        named: dict[str, Any] = {}
        x = self._keras2_first(node, named)
        if isinstance(x, list) and len(x) == 1 and not isinstance(node[0], str):
            x = x[0]
        return [x], {str(k): self._keras2_value(v) for k, v in named.items()}

    def _keras2_first(self, value: Any, named: dict[str, Any]) -> Any:
        """The nested input; the kwargs that Keras 2 repeats in each leaf go into ``named``."""
        if isinstance(value, Mapping):
            return {str(k): self._keras2_first(v, named) for k, v in value.items()}
        if not isinstance(value, list) or not value:
            raise self._bad(f"inbound_nodes: expected [layer, call, tensor], found {value!r}"[:200])
        if isinstance(value[0], str) and len(value) in (3, 4):
            if len(value) == 4 and isinstance(value[3], Mapping):
                named.update(value[3])
            if value[0] == "_CONSTANT_VALUE":
                return self._reader.value(value[2])
            return self._known(value)
        return [self._keras2_first(v, named) for v in value]

    def _keras2_value(self, value: Any) -> Any:
        tensor = self._tensor(value)
        if tensor is not None:
            return self._base(tensor)
        if isinstance(value, list):
            if len(value) in (3, 4) and value[0] == "_CONSTANT_VALUE":
                return self._reader.value(value[2])
            return [self._keras2_value(v) for v in value]
        return self._reader.value(value)

    # -- references ------------------------------------------------------------------------

    def _tensor(self, value: Any) -> Tensor | None:
        if (
            isinstance(value, (list, tuple))
            and len(value) in (3, 4)
            and isinstance(value[0], str)
            and value[0] in self._entries
            and type(value[1]) is int
            and type(value[2]) is int
        ):
            return Tensor(value[0], value[1], value[2])
        return None

    def _known(self, value: list[Any]) -> Tensor:
        tensor = self._tensor(value)
        if tensor is None:
            raise self._bad(f"inbound_nodes: expected a known layer, found {str(value)[:80]}")
        return self._base(tensor)

    def _base(self, tensor: Tensor) -> Tensor:
        """Keras 2 counts the calls of a nested model from 1: its own definition is call 0."""
        if self._entries[tensor.layer].get("class_name") not in MODELS:
            return tensor
        count = len(self._inbound(tensor.layer))
        used = self._calls_used(tensor.layer)
        if max(used) < count and (0 in used or not self._starts_with_input(tensor.layer)):
            return tensor
        return Tensor(tensor.layer, tensor.call - 1, tensor.index)

    def _calls_used(self, name: str) -> set[int]:
        """The numbers by which Keras 2 calls refer to the calls of one layer."""
        found = {t.call for t in self._ends("output_layers")[0] if t.layer == name}
        for entry in self._entries.values():
            stack = [entry.get("inbound_nodes") or []]
            while stack:
                value = stack.pop()
                tensor = self._tensor(value)
                if tensor is not None and tensor.layer == name:
                    found.add(tensor.call)
                if isinstance(value, (list, tuple)):
                    stack += value
                elif isinstance(value, Mapping):
                    stack += value.values()
        return found

    def _starts_with_input(self, name: str) -> bool:
        """Whether a nested model has a definition call: a Sequential without inputs has none."""
        config = self._entries[name].get("config")
        if self._entries[name].get("class_name") != "Sequential":
            return True
        layers = config.get("layers") if isinstance(config, Mapping) else config
        first = layers[0] if isinstance(layers, list) and layers else {}
        return first.get("class_name") == "InputLayer" or "batch_input_shape" in first.get("config", {})

    def _as_output(self, tensor: Tensor) -> Tensor:
        """Keras 3 too counts the calls of nested Functional models from 1 in output_layers."""
        if self._entries[tensor.layer].get("class_name") not in MODELS:
            return tensor
        nodes = self._inbound(tensor.layer)
        if nodes and not isinstance(nodes[0], Mapping):
            return self._base(tensor)
        functional = self._entries[tensor.layer].get("class_name") != "Sequential"
        if tensor.call >= len(nodes) or (functional and tensor.call > 0):
            return Tensor(tensor.layer, tensor.call - 1, tensor.index)
        return tensor

    def _inbound(self, name: str) -> list[Any]:
        nodes = self._entries[name].get("inbound_nodes") or []
        if not isinstance(nodes, list):
            raise self._bad(f"layer {name!r}: inbound_nodes: expected a list")
        return nodes

    def _layer(self, name: str) -> Layer:
        if name not in self._layers:
            self._layers[name] = self._reader.layer(self._entries[name])
            self._layers[name].name = name
        return self._layers[name]

    def _bad(self, problem: str) -> FormatError:
        return FormatError(f"{self._reader.path}: model {self._name!r}: {problem}")


def _bind(template: Any, slots: Mapping[Tensor, int]) -> Any:
    """``template`` with every Tensor replaced by the Ref of its slot."""
    if isinstance(template, Tensor):
        return Ref(slots[template])
    if isinstance(template, list):
        return [_bind(t, slots) for t in template]
    if isinstance(template, tuple):
        return tuple(_bind(t, slots) for t in template)
    if isinstance(template, dict):
        return {k: _bind(t, slots) for k, t in template.items()}
    return template
