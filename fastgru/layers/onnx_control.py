"""ONNX's control flow: If, Loop and Scan run the graphs in their attributes.

Their inputs end with what those graphs, the bodies, use of the graphs around them. Loops are bounded: a file may say
any number of turns, or leave the end to a condition that never turns false.
(Source: onnx/docs/Operators.md; Scan as from opset 9.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..formats.untrusted import LIMITS
from .base import Array, Layer
from .onnx_node import VARIADIC, NodeSpec, OnnxNode, Operator
from .onnx_packs import Packs
from .onnx_shaping import axis_of, check_size

#: The dtype and shape of an output as declared: a size is a name or None where any fits, each None where not said.
Declared = tuple[str | None, tuple[int | str | None, ...] | None]
_OBJECT = 128  # bytes of an array beside its elements


@dataclass(frozen=True)
class Step:
    """A node of a body: the slots of its inputs, (number, slot) for each output that somebody needs, and the slots that
    nobody needs after it."""

    layer: OnnxNode
    inputs: tuple[int, ...]
    outputs: tuple[tuple[int, int], ...]
    free: tuple[int, ...]


@dataclass(frozen=True)
class Body:
    """A graph in an attribute, laid out so that a turn costs little beside its nodes.

    Attributes
    ----------
    steps : tuple of Step
    constants : tuple
        What the first slots hold in every turn. After them come the inputs: its own, then what it uses of the graphs
        around it.
    results : tuple of int
        The slots of its outputs.
    slots : int
    inputs : int
        How many are its own.
    outputs : tuple of Declared
    layers : mapping
        Its nodes by name.
    """

    steps: tuple[Step, ...]
    constants: tuple[Any, ...]
    results: tuple[int, ...]
    slots: int
    inputs: int
    outputs: tuple[Declared, ...]
    layers: Mapping[str, OnnxNode]

    def run(self, inputs: list[Array], num_threads: int | None) -> list[Array]:
        """Its outputs."""
        values: list[Any] = [*self.constants, *inputs]
        values += [None] * (self.slots - len(values))
        for step in self.steps:
            y = step.layer.step([values[i] for i in step.inputs], num_threads)
            if type(y) is list:
                for index, slot in step.outputs:
                    values[slot] = y[index]
            else:
                for _, slot in step.outputs:
                    values[slot] = y
            for slot in step.free:
                values[slot] = None
        return [values[i] for i in self.results]


class ControlNode(OnnxNode):
    """A node with bodies."""

    def __init__(self, spec: NodeSpec, operator: Operator) -> None:
        super().__init__(spec, operator)
        self._bodies: dict[str, Body] = {}
        self._own = 0  # how many of the inputs are the node's own

    def take_constants(self, inputs: Sequence[Any], packs: Packs) -> None:
        self._own = len(inputs)

    def take_bodies(self, bodies: Mapping[str, Body]) -> None:
        graphs = self.graphs()
        if set(bodies) != set(graphs):
            raise ValueError(f"expected the graphs {list(graphs)} in attributes, found {list(bodies)}")
        self._bodies = dict(bodies)
        for key, body in bodies.items():
            self.check_body(f"attribute {key}", body.inputs, len(body.outputs))

    def graphs(self) -> tuple[str, ...]:
        """The attributes that are graphs."""
        return ("body",)

    def check_body(self, where: str, inputs: int, outputs: int) -> None:
        """Raise ValueError unless a body with so many inputs and outputs fits the node."""
        raise NotImplementedError

    def parts(self) -> dict[str, Layer]:
        return {f"{key}/{name}": layer for key, b in self._bodies.items() for name, layer in b.layers.items()}

    def count_params(self) -> int:
        return sum(layer.count_params() for layer in self.parts().values())

    def describe(self) -> str:
        return ", ".join(f"{key} of {len(b.layers)} nodes" for key, b in self._bodies.items())


class If(ControlNode):
    """The outputs of one of two bodies, neither of which has inputs of its own."""

    def graphs(self) -> tuple[str, ...]:
        return ("then_branch", "else_branch")

    def check_body(self, where: str, inputs: int, outputs: int) -> None:
        _expect(f"{where}: inputs", 0, inputs)
        _expect_more(f"{where}: outputs", len(self.spec.outputs), outputs)

    def run(self, x: Sequence[Any], num_threads: int | None) -> Any:
        branch = self._bodies["then_branch" if _truth(x[0]) else "else_branch"]
        return branch.run(list(x[1:]), num_threads)


class Loop(ControlNode):
    """M, cond and values v → v after the last turn, and what each turn gives beside it, joined along a new first axis.

    The body takes the number of the turn, cond and v, and gives cond, v and the rest. A turn comes while there are
    fewer than M (if M is there) and cond is true; cond is the body's after each turn, also where the node has none,
    as ONNX Runtime takes it.
    """

    def check_body(self, where: str, inputs: int, outputs: int) -> None:
        _expect(f"{where}: inputs", self._own, inputs)
        _expect_more(f"{where}: outputs", 1 + max(self._own - 2, len(self.spec.outputs)), outputs)

    def run(self, x: Sequence[Any], num_threads: int | None) -> Any:
        body, count = self._bodies["body"], self._own - 2
        most = None if x[0] is None else _number(x[0])
        going = x[1] is None or _truth(x[1])
        carried, around = list(x[2 : self._own]), list(x[self._own :])
        made, turn = _Made(body.outputs[1 + count :], self.spec.outputs[count:]), 0
        with turns() as left:
            while going and (most is None or turn < most):
                left.take()
                found = body.run([np.array(turn, np.int64), np.array(True), *carried, *around], num_threads)
                going, carried = _truth(found[0]), found[1 : 1 + count]
                made.add(found[1 + count :])
                turn += 1
        return [*carried, *(made.joined(i) for i in range(len(body.outputs) - 1 - count))]


class Scan(ControlNode):
    """States and arrays → states after the last step, and what each step gives beside them.

    A step takes the states and one slice of each array, along its axis and in its direction.
    """

    def __init__(self, spec: NodeSpec, operator: Operator) -> None:
        if spec.opset < 9:
            raise ValueError("expected the Scan of opset 9 or later; export the model with a later opset_version")
        super().__init__(spec, operator)

    def check_body(self, where: str, inputs: int, outputs: int) -> None:
        node = self.spec
        self._scanned = node.integer("num_scan_inputs", 0)
        if not 1 <= self._scanned <= self._own:
            raise ValueError(f"attribute num_scan_inputs: expected 1 … {self._own}, found {self._scanned}")
        self._states = self._own - self._scanned
        _expect(f"{where}: inputs", self._own, inputs)
        _expect_more(f"{where}: outputs", max(self._states, len(node.outputs)), outputs)
        made = outputs - self._states
        self._in_axes, self._out_axes, self._in_back, self._out_back = (
            _listed(node, key, size)
            for key, size in (
                ("scan_input_axes", self._scanned),
                ("scan_output_axes", made),
                ("scan_input_directions", self._scanned),
                ("scan_output_directions", made),
            )
        )

    def run(self, x: Sequence[Any], num_threads: int | None) -> Any:
        body = self._bodies["body"]
        states, around = list(x[: self._states]), list(x[self._own :])
        arrays = [
            np.moveaxis(v, axis_of(axis, v.ndim), 0)[:: -1 if back else 1]
            for v, axis, back in zip(x[self._states : self._own], self._in_axes, self._in_back, strict=True)
        ]
        if len({len(v) for v in arrays}) != 1:
            raise ValueError(f"expected arrays of one length, found {[len(v) for v in arrays]}")
        made = _Made(body.outputs[self._states :], self.spec.outputs[self._states :])
        with turns() as left:
            for step in range(len(arrays[0])):
                left.take()
                found = body.run([*states, *(v[step, ...] for v in arrays), *around], num_threads)
                states = found[: self._states]
                made.add(found[self._states :])
        ways = enumerate(zip(self._out_axes, self._out_back, strict=True))
        return [*states, *(made.joined(i, axis, bool(back)) for i, (axis, back) in ways)]


class _Made:
    """What turns give beside what they carry: for each output values of one type and shape, joined along a new axis.

    Outputs that nobody needs are not kept.
    """

    def __init__(self, ends: Sequence[Declared], wanted: Sequence[bool]) -> None:
        self._ends = ends
        self._values: list[list[Array]] = [[] for _ in ends]
        self._kept = [i for i, want in enumerate(wanted) if want]
        self._bytes = 0

    def add(self, values: Sequence[Array]) -> None:
        for i in self._kept:
            value, before = values[i], self._values[i]
            if before and (value.shape != before[0].shape or value.dtype != before[0].dtype):
                found = " and ".join(f"{v.dtype} {v.shape}" for v in (before[0], value))
                raise ValueError(f"expected one type and shape in every turn, found {found}")
            self._bytes += value.nbytes + _OBJECT
            check_size(self._bytes, np.dtype(np.uint8))
            before.append(value if value.base is None else np.array(value))  # a view would keep all of its array

    def joined(self, i: int, axis: int = 0, back: bool = False) -> Array | None:
        if i not in self._kept:
            return None
        values = self._values[i]
        if values:
            return np.stack(values[:: -1 if back else 1], axis_of(axis, values[0].ndim + 1))
        kind, shape = self._ends[i]  # nothing ran: what is declared tells the shape, as far as it does
        sizes = [n if isinstance(n, int) else 0 for n in shape or ()]
        sizes.insert(axis_of(axis, len(sizes) + 1), 0)
        return np.empty(sizes, "float32" if kind is None or "float" in kind else kind)


class _Turns:
    """How many turns loops may still take."""

    def __init__(self) -> None:
        self._left = LIMITS.onnx_turns

    def take(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"expected at most {LIMITS.onnx_turns} turns of all loops in a call, found more")


_TURNS: ContextVar[_Turns | None] = ContextVar("fastgru_onnx_turns", default=None)


@contextmanager
def turns() -> Iterator[_Turns]:
    """The turns that are left: one number for all loops of a call, beside each other or inside."""
    around = _TURNS.get()
    if around is not None:
        yield around
        return
    left = _Turns()
    token = _TURNS.set(left)
    try:
        yield left
    finally:
        _TURNS.reset(token)


def _truth(value: Array) -> bool:
    if value.dtype != bool or value.size != 1:
        raise ValueError(f"cond: expected one boolean, found {value.dtype} {value.shape}")
    return bool(value.item())


def _number(value: Array) -> int:
    if value.dtype.kind not in "iu" or value.size != 1:
        raise ValueError(f"M: expected one whole number, found {value.dtype} {value.shape}")
    return int(value.item())


def _listed(node: NodeSpec, key: str, size: int) -> tuple[int, ...]:
    """An attribute with one whole number for each array; zeros where it is left out."""
    values = node.integers(key)
    if values is not None and len(values) != size:
        raise ValueError(f"attribute {key}: expected {size}, found {len(values)}")
    return (0,) * size if values is None else values


def _expect(what: str, expected: int, found: int) -> None:
    if expected != found:
        raise ValueError(f"{what}: expected {expected}, found {found}")


def _expect_more(what: str, expected: int, found: int) -> None:
    """Outputs at the end that a node leaves out are not in its list."""
    if found < expected:
        raise ValueError(f"{what}: expected {expected} or more, found {found}")


_SCAN = """body num_scan_inputs scan_input_axes scan_output_axes scan_input_directions scan_output_directions
directions""".split()

CONTROL: dict[str, tuple[type[OnnxNode], Operator]] = {
    "If": (If, Operator(lambda *_: None, (1, 1), ("then_branch", "else_branch"), outputs=VARIADIC)),
    "Loop": (Loop, Operator(lambda *_: None, (2, VARIADIC), ("body",), outputs=VARIADIC, optional=(0, 1))),
    "Scan": (Scan, Operator(lambda *_: None, (1, VARIADIC), tuple(_SCAN), outputs=VARIADIC)),
}
