"""The config of an ONNX graph → a `Graph`, the bodies of its If, Loop and Scan nodes the same way.

Nodes that only rearrange constants run once, here: exporters compute a GRU's weights from the framework's so. What a
body takes from the graphs around it is constant there too, or becomes an input of its node.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..formats.untrusted import MIB, FormatError
from ..layers.base import Array
from ..layers.onnx_control import Body, Step
from ..layers.onnx_input import OnnxInput
from ..layers.onnx_node import VARIADIC, Computed, NodeSpec, OnnxNode
from ..layers.onnx_operators import OPERATORS, onnx_node
from ..layers.onnx_packs import Packs
from .onnx_config import Entry, GraphEntry, read_onnx_config
from .plan import Graph, Node, Ref

#: Constants made at load may take this many times the bytes of the file's own, and a mebibyte; packed ones as many.
_GROWTH = 4


@dataclass(frozen=True)
class OnnxGraph:
    """A graph that runs, its nodes by name, its ends."""

    graph: Graph
    layers: dict[str, OnnxNode]
    inputs: tuple[OnnxInput, ...]
    output_names: tuple[str, ...]


def read_onnx_graph(config: Mapping[str, Any], tensors: Mapping[str, Array], path: str) -> OnnxGraph:
    """The graph of a config that `formats.read` gives for an ONNX model, with its constants.

    Raises
    ------
    FormatError
        Naming the node: an operator that is not supported, values that nothing gives, constants that don't fit.
    """
    read, opset = read_onnx_config(config, tensors, path)
    values = {name: _locked(value) for name, value in tensors.items()}
    room = MIB + _GROWTH * sum(v.nbytes for v in tensors.values())
    file = _File(path, opset, values, room, Packs(room))
    builder = _Builder(read, {}, file)
    graph = builder.build([])
    inputs = tuple(OnnxInput(end.shape, str(end.dtype), end.name) for end in read.inputs)
    return OnnxGraph(graph, builder.layers, inputs, tuple(end.name for end in read.outputs))


@dataclass
class _File:
    """What all graphs of a file share. ``room`` is how many bytes of constants may still be made at load."""

    path: str
    opset: int
    tensors: Mapping[str, Array]
    room: int
    packs: Packs

    def bad(self, problem: str) -> FormatError:
        return FormatError(f"{self.path}: {problem}")


class _Builder:
    """Builds one graph, the model's own or a body, whose names were checked. ``around`` are constants from outside."""

    def __init__(self, read: GraphEntry, around: Mapping[str, Array], file: _File) -> None:
        self._read = read
        self._file = file
        self._constants = {**around, **{name: file.tensors[key] for name, key in read.constants.items()}}
        self._repeats: Counter[str] = Counter()
        self.layers: dict[str, OnnxNode] = {}

    def build(self, captured: list[str]) -> Graph:
        """The graph; its inputs are its own, then those that are ``captured`` from the graphs around it."""
        inputs = [*(end.name for end in self._read.inputs), *captured]
        outputs = [end.name for end in self._read.outputs]
        entries = self._read.entries
        wanted = {name for entry in entries for name in entry.uses} | set(outputs)
        slots = {name: slot for slot, name in enumerate(inputs)}
        nodes: list[tuple[OnnxNode, Entry]] = []
        for entry in entries:
            layer = self._layer(entry, wanted)
            if not self._fold(layer, entry):
                nodes.append((layer, entry))
                given = [n for n in entry.outputs if n in wanted and n]
                slots.update({name: len(slots) + i for i, name in enumerate(given)})
        for name in outputs:  # a constant that is an output takes part as a node
            if name in self._constants and name not in slots:
                self._add_constant(name, nodes, slots)
        return self._graph(nodes, slots, len(inputs), outputs)

    # -- nodes -----------------------------------------------------------------------------

    def _layer(self, entry: Entry, wanted: set[str]) -> OnnxNode:
        name = entry.name
        while name in self.layers:  # names of nodes need not differ, those of layers do
            self._repeats[entry.name] += 1
            name = f"{entry.name}_{self._repeats[entry.name]}"
        outputs = tuple(n in wanted and n != "" for n in entry.outputs)
        spec = NodeSpec(name, entry.op, self._file.opset, entry.attributes, outputs)
        try:
            layer = onnx_node(spec, len(entry.inputs))
            operator = OPERATORS[entry.op][1]
            fewest, most = operator.inputs
            required = fewest if most < VARIADIC else len(entry.inputs)
            if any(not n for i, n in enumerate(entry.inputs[:required]) if i not in operator.optional):
                raise ValueError(f"expected its first {required} inputs, found one left out")
            known = [self._known(n) for n in entry.inputs]
            layer.floats = sum(v.size for v in known if isinstance(v, np.ndarray) and v.dtype.kind == "f")
            with np.errstate(all="ignore"):  # weights may hold anything
                layer.take_constants(known, self._file.packs)
                layer.take_bodies({key: self._body(entry, body) for key, body in entry.bodies.items()})
        except FormatError:  # from inside a body
            raise
        except (ValueError, TypeError) as error:
            raise self._file.bad(f"node {name!r} ({entry.op}): {error}") from error
        self.layers[name] = layer
        return layer

    def _known(self, name: str) -> Array | None | Computed:
        return None if not name else self._constants.get(name, Computed())

    def _captured(self, entry: Entry) -> list[str]:
        """What the bodies of a node take from here when it runs."""
        return [n for n in entry.captured if n not in self._constants]

    def _body(self, entry: Entry, body: GraphEntry) -> Body:
        names = {n: n for n in entry.captured}
        if entry.op == "Loop":
            names |= _handed_on(entry, body)
        around = {name: self._constants[n] for name, n in names.items() if n in self._constants}
        builder = _Builder(body, around, self._file)
        graph = builder.build(self._captured(entry))
        constants = tuple(v for node in graph.nodes for v in node.x if not isinstance(v, Ref))
        first, places = len(constants), iter(range(len(constants)))
        steps = tuple(
            Step(
                builder.layers[node.layer.name],
                tuple(first + v.slot if isinstance(v, Ref) else next(places) for v in node.x),
                tuple((index, first + slot) for index, slot in node.outputs),
                tuple(first + slot for slot in node.free),
            )
            for node in graph.nodes
        )
        results = tuple(first + slot for slot in graph.outputs)
        ends = tuple((e.dtype, e.shape) for e in body.outputs)
        return Body(steps, constants, results, first + graph.slots, len(body.inputs), ends, builder.layers)

    def _fold(self, layer: OnnxNode, entry: Entry) -> bool:
        """Run a node that rearranges constants; the size of what it makes is bounded by that of what it takes."""
        values = [self._constants.get(n) if n else None for n in entry.inputs]
        if not layer.operator.rearranges or any(v is None and n for v, n in zip(values, entry.inputs, strict=True)):
            return False
        if sum(v.nbytes for v in values if v is not None) > self._file.room:
            return False
        try:
            made, _ = layer.forward(tuple(values), None, 1)
        except ValueError as error:
            raise self._file.bad(str(error)) from error
        for name, value in zip(entry.outputs, made if isinstance(made, list) else [made], strict=False):
            if name:
                self._file.room -= value.nbytes * (value.base is None)  # views cost nothing
                self._constants[name] = _locked(value)
        return True

    def _add_constant(self, name: str, nodes: list[tuple[OnnxNode, Entry]], slots: dict[str, int]) -> None:
        entry = Entry(f"{name} (constant)", "Identity", (name,), (name,), {}, {})
        nodes.append((self._layer(entry, {name}), entry))
        slots[name] = len(slots)

    def _graph(
        self, nodes: list[tuple[OnnxNode, Entry]], slots: dict[str, int], inputs: int, outputs: list[str]
    ) -> Graph:
        last = {name: i for i, (_, entry) in enumerate(nodes) for name in entry.uses if name in slots}
        kept = set(outputs)
        calls = []
        for i, (layer, entry) in enumerate(nodes):
            # a tuple: the graph then passes no masks
            x = tuple(self._argument(n, slots) for n in (*entry.inputs, *self._captured(entry)))
            given = tuple((k, slots[n]) for k, n in enumerate(entry.outputs) if n in slots)
            free = tuple(slots[n] for n in dict.fromkeys(entry.uses) if last.get(n) == i and n not in kept)
            calls.append(Node(layer, x, given, free=free))
        return Graph(tuple(calls), tuple(range(inputs)), tuple(slots[n] for n in outputs), len(slots))

    def _argument(self, name: str, slots: Mapping[str, int]) -> Any:
        if not name:
            return None
        return self._constants[name] if name in self._constants else Ref(slots[name])


def _handed_on(entry: Entry, body: GraphEntry) -> dict[str, str]:
    """The carried values that the body of a Loop hands on as they are: their names in it → around it.

    These are the same in every turn. tf2onnx carries the weights of a layer so, and a constant can be packed once.
    """
    origin = {end.name: end.name for end in body.inputs}
    for node in body.entries:
        if node.op == "Identity" and node.inputs and node.outputs and node.inputs[0] in origin:
            origin[node.outputs[0]] = origin[node.inputs[0]]
    carried = zip(entry.inputs[2:], body.inputs[2:], body.outputs[1:], strict=False)
    return {end.name: name for name, end, out in carried if origin.get(out.name) == end.name}


def _locked(value: Any) -> Array:
    """A constant in the form in which operators take it, read-only: floats as float32."""
    array = np.asarray(value)
    array = array.astype(np.float32) if array.dtype.kind == "f" and array.dtype != np.float32 else array.view()
    array.flags.writeable = False
    return array
