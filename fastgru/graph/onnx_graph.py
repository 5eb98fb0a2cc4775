"""The config of an ONNX graph → a `Graph`.

Nodes that no output needs are dropped before they are looked at. Nodes that only rearrange constants run once, here:
exporters compute a GRU's weights from the framework's so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..formats.untrusted import MIB, FormatError
from ..layers.base import Array
from ..layers.onnx_input import OnnxInput
from ..layers.onnx_node import VARIADIC, Computed, NodeSpec, OnnxNode
from ..layers.onnx_operators import OPERATORS, onnx_node
from .plan import Graph, Node, Ref

#: Constants made at load may take this many times the bytes of the file's own, and a mebibyte.
_GROWTH = 4


@dataclass(frozen=True)
class OnnxGraph:
    """A graph that runs, its nodes by name, its ends."""

    graph: Graph
    layers: dict[str, OnnxNode]
    inputs: tuple[OnnxInput, ...]
    output_names: tuple[str, ...]


@dataclass(frozen=True)
class _Entry:
    """One node of the config, its plain values checked for their types."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


def read_onnx_graph(config: Mapping[str, Any], tensors: Mapping[str, Array], path: str) -> OnnxGraph:
    """The graph of a config that `formats.read` gives for an ONNX model, with its constants.

    Raises
    ------
    FormatError
        Naming the node: an operator that is not supported, values that nothing gives, constants that don't fit.
    """
    return _Reader(config, tensors, path).read()


class _Reader:
    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, Array], path: str) -> None:
        self._path = path
        self._config = config
        self._constants = {name: _locked(value) for name, value in tensors.items()}
        self._room = MIB + _GROWTH * sum(v.nbytes for v in tensors.values())
        self._layers: dict[str, OnnxNode] = {}
        self._repeats: Counter[str] = Counter()

    def read(self) -> OnnxGraph:
        inputs = self._inputs()
        outputs = self._names(self._config.get("outputs"), "outputs")
        opset = self._config.get("opset")
        if type(opset) is not int or not outputs:
            raise self._bad("expected a graph with an opset and outputs")
        entries = self._needed(self._entries(), outputs)
        self._check_order(entries, [end.name for end in inputs], outputs)
        wanted = {name for entry in entries for name in entry.inputs} | set(outputs)
        slots = {end.name: slot for slot, end in enumerate(inputs)}
        nodes: list[tuple[OnnxNode, _Entry]] = []
        for entry in entries:
            layer = self._layer(entry, opset, wanted)
            if not self._fold(layer, entry):
                nodes.append((layer, entry))
                given = [n for n in entry.outputs if n in wanted and n]
                slots.update({name: len(slots) + i for i, name in enumerate(given)})
        for name in outputs:  # a constant that is an output takes part as a node
            if name in self._constants and name not in slots:
                self._add_constant(name, opset, nodes, slots)
        return OnnxGraph(self._graph(nodes, slots, len(inputs), outputs), self._layers, tuple(inputs), tuple(outputs))

    # -- the config ------------------------------------------------------------------------

    def _inputs(self) -> list[OnnxInput]:
        found = []
        for entry in self._list(self._config.get("inputs"), "inputs"):
            whole, kind = (entry.get("shape"), entry.get("dtype")) if isinstance(entry, Mapping) else (None, None)
            fits = whole is None or (
                isinstance(whole, list)
                and all(n is None or type(n) is str or (type(n) is int and n >= 0) for n in whole)
            )
            if not isinstance(entry, Mapping) or type(entry.get("name")) is not str or kind not in _KINDS or not fits:
                raise self._bad(f"inputs: expected name, dtype and shape, found {entry!s:.80}")
            found.append(OnnxInput(whole, str(kind), entry["name"]))
        if len({end.name for end in found}) != len(found):
            raise self._bad("inputs: expected names that differ")
        return found

    def _entries(self) -> list[_Entry]:
        return [self._entry(value) for value in self._list(self._config.get("nodes"), "nodes")]

    def _entry(self, value: Any) -> _Entry:
        if not isinstance(value, Mapping):
            raise self._bad(f"nodes: expected a node, found {value!s:.80}")
        name, op, attributes = value.get("name"), value.get("op"), value.get("attributes")
        if type(name) is not str or type(op) is not str or not isinstance(attributes, Mapping):
            raise self._bad(f"nodes: expected name, op and attributes, found {value!s:.80}")
        inputs = self._names(value.get("inputs"), f"node {name!r}: inputs")
        outputs = self._names(value.get("outputs"), f"node {name!r}: outputs")
        while inputs and not inputs[-1]:  # optional inputs that are left out
            inputs.pop()
        while outputs and not outputs[-1]:
            outputs.pop()
        return _Entry(name, op, tuple(inputs), tuple(outputs), attributes)

    def _list(self, value: Any, what: str) -> list[Any]:
        if not isinstance(value, list):
            raise self._bad(f"{what}: expected a list, found {type(value).__name__}")
        return value

    def _names(self, value: Any, what: str) -> list[str]:
        names = list(self._list(value, what))
        if any(type(n) is not str for n in names):
            raise self._bad(f"{what}: expected names, found {names!s:.80}")
        return names

    @staticmethod
    def _needed(entries: list[_Entry], outputs: list[str]) -> list[_Entry]:
        needed, kept = set(outputs), []
        for entry in reversed(entries):
            if needed.intersection(n for n in entry.outputs if n):
                needed.update(entry.inputs)
                kept.append(entry)
        return kept[::-1]

    def _check_order(self, entries: list[_Entry], inputs: list[str], outputs: list[str]) -> None:
        """Every value has one giver, which comes before its users."""
        known = {*inputs, *self._constants}
        for entry in entries:
            missing = [n for n in entry.inputs if n and n not in known]
            if missing:
                raise self._bad(
                    f"node {entry.name!r} ({entry.op}): expected inputs that a node before it gives, found "
                    f"{missing[0]!r}, which none does"
                )
            given = [n for n in entry.outputs if n]
            if len(set(given)) != len(given) or known.intersection(given):
                raise self._bad(f"node {entry.name!r} ({entry.op}): expected outputs of new names, found {given}")
            known.update(given)
        if missing := [n for n in outputs if n not in known]:
            raise self._bad(f"expected outputs that a node gives, found {missing[0]!r}, which none does")

    # -- nodes -----------------------------------------------------------------------------

    def _layer(self, entry: _Entry, opset: int, wanted: set[str]) -> OnnxNode:
        name = entry.name
        while name in self._layers:  # names of nodes need not differ, those of layers do
            self._repeats[entry.name] += 1
            name = f"{entry.name}_{self._repeats[entry.name]}"
        spec = NodeSpec(name, entry.op, opset, entry.attributes, tuple(n in wanted and n != "" for n in entry.outputs))
        try:
            layer = onnx_node(spec, len(entry.inputs))
            fewest, most = OPERATORS[entry.op][1].inputs
            required = fewest if most < VARIADIC else len(entry.inputs)
            if "" in entry.inputs[:required]:
                raise ValueError(f"expected its first {required} inputs, found one left out")
            known = [self._known(n) for n in entry.inputs]
            layer.floats = sum(v.size for v in known if isinstance(v, np.ndarray) and v.dtype.kind == "f")
            with np.errstate(all="ignore"):  # weights may hold anything
                layer.take_constants(known)
        except (ValueError, TypeError) as error:
            raise self._bad(f"node {name!r} ({entry.op}): {error}") from error
        self._layers[name] = layer
        return layer

    def _known(self, name: str) -> Array | None | Computed:
        return None if not name else self._constants.get(name, Computed())

    def _fold(self, layer: OnnxNode, entry: _Entry) -> bool:
        """Run a node that rearranges constants; the size of what it makes is bounded by that of what it takes."""
        values = [self._constants.get(n) if n else None for n in entry.inputs]
        if not layer.operator.rearranges or any(v is None and n for v, n in zip(values, entry.inputs, strict=True)):
            return False
        if sum(v.nbytes for v in values if v is not None) > self._room:
            return False
        try:
            made, _ = layer.forward(tuple(values), None, 1)
        except ValueError as error:
            raise self._bad(str(error)) from error
        for name, value in zip(entry.outputs, made if isinstance(made, list) else [made], strict=False):
            if name:
                self._room -= value.nbytes * (value.base is None)  # views cost nothing
                self._constants[name] = _locked(value)
        return True

    def _add_constant(self, name: str, opset: int, nodes: list[tuple[OnnxNode, _Entry]], slots: dict[str, int]) -> None:
        entry = _Entry(f"{name} (constant)", "Identity", (name,), (name,), {})
        nodes.append((self._layer(entry, opset, {name}), entry))
        slots[name] = len(slots)

    def _graph(
        self, nodes: list[tuple[OnnxNode, _Entry]], slots: dict[str, int], inputs: int, outputs: list[str]
    ) -> Graph:
        last = {name: i for i, (_, entry) in enumerate(nodes) for name in entry.inputs if name in slots}
        kept = set(outputs)
        calls = []
        for i, (layer, entry) in enumerate(nodes):
            # a tuple: the graph then passes no masks
            x = tuple(self._argument(n, slots) for n in entry.inputs)
            given = tuple((k, slots[n]) for k, n in enumerate(entry.outputs) if n in slots)
            free = tuple(slots[n] for n in dict.fromkeys(entry.inputs) if last.get(n) == i and n not in kept)
            calls.append(Node(layer, x, given, free=free))
        return Graph(tuple(calls), tuple(range(inputs)), tuple(slots[n] for n in outputs), len(slots))

    def _argument(self, name: str, slots: Mapping[str, int]) -> Any:
        if not name:
            return None
        return self._constants[name] if name in self._constants else Ref(slots[name])

    def _bad(self, problem: str) -> FormatError:
        return FormatError(f"{self._path}: {problem}")


_KINDS = "float16 bfloat16 float32 float64 bool int8 int16 int32 int64 uint8 uint16 uint32 uint64".split()


def _locked(value: Any) -> Array:
    """A constant in the form in which operators take it, read-only: floats as float32."""
    array = np.asarray(value)
    array = array.astype(np.float32) if array.dtype.kind == "f" and array.dtype != np.float32 else array.view()
    array.flags.writeable = False
    return array
