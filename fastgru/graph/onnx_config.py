"""The config of an ONNX graph as values checked for their types: its ends, its nodes, and the bodies inside them.

What no output needs is dropped here, before anybody looks at it. Names are checked for their scopes: a body sees the
values of the graphs around it that come before its node, and gives none of them again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..formats.onnx_tensors import ELEMENTS
from ..formats.untrusted import LIMITS, FormatError

__all__ = ["End", "Entry", "GraphEntry", "read_onnx_config"]


@dataclass(frozen=True)
class End:
    """An input or output as declared; a size is a name or None where any fits, dtype and shape None if not said."""

    name: str
    dtype: str | None = None
    shape: tuple[int | str | None, ...] | None = None


@dataclass(frozen=True)
class GraphEntry:
    """A graph: the model's own, or the body of a node.

    ``constants`` are those that a body has for itself: names in it → names of tensors of the file.
    """

    inputs: tuple[End, ...]
    outputs: tuple[End, ...]
    entries: tuple[Entry, ...]
    constants: Mapping[str, str]

    def from_outside(self) -> list[str]:
        """The values of the graphs around it that a body uses."""
        own = {end.name for end in self.inputs}.union(self.constants, *(entry.outputs for entry in self.entries))
        used = dict.fromkeys(name for entry in self.entries for name in entry.uses)
        used.update(dict.fromkeys(end.name for end in self.outputs))
        return [name for name in used if name and name not in own]


@dataclass(frozen=True)
class Entry:
    """One node. ``captured`` are the values of the graphs around them that its bodies use."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    bodies: Mapping[str, GraphEntry]
    captured: tuple[str, ...] = ()

    @property
    def uses(self) -> tuple[str, ...]:
        """All values that it needs."""
        return (*self.inputs, *self.captured)

    def __str__(self) -> str:
        return f"node {self.name!r} ({self.op})"


def _is_shape(value: Any) -> bool:
    return value is None or (
        isinstance(value, list) and all(n is None or type(n) is str or (type(n) is int and n >= 0) for n in value)
    )


def read_onnx_config(config: Mapping[str, Any], tensors: Mapping[str, Any], path: str) -> tuple[GraphEntry, int]:
    """The graph of a config and its opset. Its ``constants`` are the tensors that no body has for itself.

    Raises
    ------
    FormatError
        For values of other types, names that nothing gives or that are given twice, bodies nested too deep.
    """
    return _Reader(tensors, path).read(config)


class _Reader:
    def __init__(self, tensors: Mapping[str, Any], path: str) -> None:
        self._tensors = tensors
        self._path = path
        self._taken: set[str] = set()  # tensors that belong to bodies

    def read(self, config: Mapping[str, Any]) -> tuple[GraphEntry, int]:
        opset = config.get("opset")
        inputs = self._ends(config.get("inputs"), "inputs")
        if any(end.dtype is None for end in inputs):
            raise self._bad("inputs: expected name, dtype and shape, found no dtype")
        outputs = tuple(map(End, self._names(config.get("outputs"), "outputs")))
        if type(opset) is not int or not outputs:
            raise self._bad("expected a graph with an opset and outputs")
        if not all(map(_is_shape, self._list(config.get("output_shapes", []), "output_shapes"))):
            raise self._bad("output_shapes: expected shapes")
        entries = self._needed(self._entries(config, 0), outputs)
        constants = {name: name for name in self._tensors if name not in self._taken}
        graph = GraphEntry(inputs, outputs, entries, constants)
        self._check_names(graph, (), "")
        return graph, opset

    # -- types -----------------------------------------------------------------------------

    def _ends(self, value: Any, what: str) -> tuple[End, ...]:
        found = []
        for entry in self._list(value, what):
            shape, kind = (entry.get("shape"), entry.get("dtype")) if isinstance(entry, Mapping) else (None, "")
            known = kind is None or kind in ELEMENTS.values()
            named = isinstance(entry, Mapping) and type(entry.get("name")) is str
            if not named or not known or not _is_shape(shape):
                raise self._bad(f"{what}: expected name, dtype and shape, found {entry!s:.80}")
            found.append(End(entry["name"], kind, None if shape is None else tuple(shape)))
        return tuple(found)

    def _entries(self, config: Mapping[str, Any], depth: int) -> list[Entry]:
        return [self._entry(value, depth) for value in self._list(config.get("nodes"), "nodes")]

    def _entry(self, value: Any, depth: int) -> Entry:
        if not isinstance(value, Mapping):
            raise self._bad(f"nodes: expected a node, found {value!s:.80}")
        name, op, given = value.get("name"), value.get("op"), value.get("attributes")
        if type(name) is not str or type(op) is not str or not isinstance(given, Mapping):
            raise self._bad(f"nodes: expected name, op and attributes, found {value!s:.80}")
        inputs = self._names(value.get("inputs"), f"node {name!r}: inputs")
        outputs = self._names(value.get("outputs"), f"node {name!r}: outputs")
        bodies, attributes = {}, {}
        for key, attribute in given.items():
            if isinstance(attribute, Mapping) and "graph" in attribute:
                bodies[key] = self._body(attribute["graph"], f"node {name!r}: {key}", depth + 1)
            else:
                attributes[key] = attribute
        while inputs and not inputs[-1] and not bodies:  # optional inputs that are left out; the place in a Loop counts
            inputs.pop()
        while outputs and not outputs[-1]:
            outputs.pop()
        captured = dict.fromkeys(n for body in bodies.values() for n in body.from_outside())
        return Entry(name, op, tuple(inputs), tuple(outputs), attributes, bodies, tuple(captured))

    def _body(self, config: Any, what: str, depth: int) -> GraphEntry:
        if depth > LIMITS.onnx_depth:
            raise self._bad(
                f"{what}: expected graphs inside graphs at most {LIMITS.onnx_depth} deep, found deeper ones"
            )
        if not isinstance(config, Mapping):
            raise self._bad(f"{what}: expected a graph, found {type(config).__name__}")
        inputs, outputs = (self._ends(config.get(k), f"{what}: {k}") for k in ("inputs", "outputs"))
        constants = config.get("constants")
        if not isinstance(constants, Mapping):
            raise self._bad(f"{what}: constants: expected names, found {type(constants).__name__}")
        for name, key in constants.items():
            if type(key) is not str or key not in self._tensors:
                raise self._bad(f"{what}: constant {name!r}: expected the name of a tensor, found {key!s:.80}")
        self._taken.update(constants.values())
        return GraphEntry(inputs, outputs, self._needed(self._entries(config, depth), outputs), constants)

    def _list(self, value: Any, what: str) -> list[Any]:
        if not isinstance(value, list):
            raise self._bad(f"{what}: expected a list, found {type(value).__name__}")
        return value

    def _names(self, value: Any, what: str) -> list[str]:
        names = list(self._list(value, what))
        if any(type(n) is not str for n in names):
            raise self._bad(f"{what}: expected names, found {names!s:.80}")
        return names

    # -- names -----------------------------------------------------------------------------

    @staticmethod
    def _needed(entries: list[Entry], outputs: tuple[End, ...]) -> tuple[Entry, ...]:
        needed, kept = {end.name for end in outputs}, []
        for entry in reversed(entries):
            if needed.intersection(n for n in entry.outputs if n):
                needed.update(entry.uses)
                kept.append(entry)
        return tuple(kept[::-1])

    def _check_names(self, graph: GraphEntry, around: tuple[set[str], ...], where: str) -> None:
        """Every value has one giver, which comes before its users. ``around`` are the names that a body sees."""
        known: set[str] = set()

        def add(names: list[str], expected: str) -> None:
            if len(set(names)) != len(names) or any(n in seen for n in names for seen in (known, *around)):
                raise self._bad(f"{where}{expected}, found {names!s:.200}")
            known.update(names)

        add([end.name for end in graph.inputs], "inputs: expected names that differ")
        if around:
            add(list(graph.constants), "constants: expected new names")
        known.update(graph.constants)
        for entry in graph.entries:
            missing = [n for n in entry.uses if n and not any(n in seen for seen in (known, *around))]
            if missing:
                found = f"found {missing[0]!r}, which none does"
                raise self._bad(f"{where}{entry}: expected inputs that a node before it gives, {found}")
            for key, body in entry.bodies.items():
                self._check_names(body, (known, *around), f"{where[-200:]}{entry!s:.200}: {key}: ")
            add([n for n in entry.outputs if n], f"{entry}: expected outputs of new names")
        for end in graph.outputs:
            if not end.name or not any(end.name in seen for seen in (known, *around)):
                raise self._bad(f"{where}expected outputs that a node gives, found {end.name!r}, which none does")

    def _bad(self, problem: str) -> FormatError:
        return FormatError(f"{self._path}: {problem}")
