"""An ONNX graph under construction, in plain Python: nodes, initialisers, and values with rank, sizes and kind.

Nothing here imports onnx: `to_onnx` turns the finished graph into a model. Everything is float32, int64 or bool.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from ..formats.untrusted import FormatError
from ..layers.base import Array, Layer

T = TypeVar("T")
#: One size per axis: a number, a name ("N", "T"), or None where it depends on the input in a way that has no name.
Sizes = tuple[int | str | None, ...]

#: The largest int64: "to the end" in Slice.
END = 2**63 - 1


@dataclass(frozen=True)
class Value:
    """One tensor of the graph.

    ``kind`` is float32, int64 or bool (int32 for lengths). ``mask`` (N, T) bool says which steps are valid, if not all.
    """

    name: str
    sizes: Sizes
    kind: str = "float32"
    mask: Value | None = None

    @property
    def rank(self) -> int:
        return len(self.sizes)


@dataclass(frozen=True)
class Step:
    """One node: operator, name, inputs ("" is none given), outputs, attributes."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]


def kind_of(value: Any) -> str:
    """The kind of constant numbers."""
    return {"i": "int64", "u": "int64", "b": "bool"}.get(np.asarray(value).dtype.kind, "float32")


class Builder:
    """Collects nodes and initialisers; ``opset`` decides the spelling of the reductions."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.steps: list[Step] = []
        self.tensors: dict[str, Array] = {}
        self._names: set[str] = set()
        self._path: list[Layer] = []
        self._stored: dict[Hashable, Any] = {}

    # -- where we are ----------------------------------------------------------------------

    @contextmanager
    def inside(self, layer: Layer) -> Iterator[None]:
        """Name what is added after ``layer``, and errors too."""
        self._path.append(layer)
        yield
        self._path.pop()

    def path(self, *more: str) -> str:
        """The name of something inside the layers that are open."""
        return "/".join([*(layer.name for layer in self._path if layer.name), *more])

    def refuse(self, why: str) -> FormatError:
        """The error (for the caller to raise) that ONNX can't express the open layer."""
        if not self._path:
            return FormatError(f"ONNX: {why}")
        return FormatError(f"ONNX: layer {self.path()!r} ({self._path[-1].class_name()}): {why}")

    def unique(self, name: str) -> str:
        """``name``, numbered if it is taken."""
        free, number = name, 0
        while free in self._names:
            number += 1
            free = f"{name}_{number}"
        self._names.add(free)
        return free

    # -- nodes and initialisers ------------------------------------------------------------

    def add(
        self, op: str, inputs: Sequence[Value | None], sizes: Sizes, kind: str = "float32", **attributes: Any
    ) -> Value:
        """One node with one output; the mask of the first input stays."""
        mask = inputs[0].mask if inputs and inputs[0] is not None else None
        return replace(self.several(op, inputs, [sizes], kind, **attributes)[0], mask=mask)

    def several(
        self, op: str, inputs: Sequence[Value | None], sizes: Sequence[Sizes], kind: str = "float32", **attributes: Any
    ) -> list[Value]:
        """One node with an output for each of ``sizes``."""
        name = self.unique(self.path(op))
        outputs = [name] if len(sizes) == 1 else [self.unique(f"{name}:{i}") for i in range(len(sizes))]
        names = tuple("" if v is None else v.name for v in inputs)
        self.steps.append(Step(op, name, names, tuple(outputs), attributes))
        return [Value(output, s, kind) for output, s in zip(outputs, sizes, strict=True)]

    def weight(self, owner: object, name: str, array: Array) -> Value:
        """The initialiser ``name`` of ``owner``, stored at the first call only."""
        key = (id(owner), name)
        return self.once(key, lambda: self._store(self.path(name), np.ascontiguousarray(array, np.float32)))

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What ``make`` gives, made at the first call only."""
        if key not in self._stored:
            self._stored[key] = make()
        found: T = self._stored[key]
        return found

    def constant(self, value: Any, kind: str = "") -> Value:
        """A small constant; equal ones are stored once. ``kind`` is that of the numbers when left out."""
        array = np.array(value, kind or kind_of(value), order="C")
        key = (array.dtype.str, array.shape, array.tobytes())
        return self.once(key, lambda: self._store("constant", array))

    def _store(self, name: str, array: Array) -> Value:
        name = self.unique(name)
        self.tensors[name] = array
        return Value(name, array.shape, str(array.dtype))

    def named(self, values: Sequence[Value], names: Sequence[str]) -> list[Value]:
        """The graph's outputs under the names that they shall have, which `unique` gave out."""
        produced = {output for step in self.steps for output in step.outputs}
        renamed: dict[str, str] = {}
        copies: list[Step] = []
        for value, name in zip(values, names, strict=True):
            if value.name in produced and value.name not in renamed:
                renamed[value.name] = name
            else:  # an input of the model, a constant, or one value twice
                source = renamed.get(value.name, value.name)
                copies.append(Step("Identity", self.unique("Identity"), (source,), (name,), {}))

        def new(parts: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(renamed.get(part, part) for part in parts)

        self.steps = [replace(s, inputs=new(s.inputs), outputs=new(s.outputs)) for s in self.steps] + copies
        self._drop_unused(set(names))
        return [replace(value, name=name) for value, name in zip(values, names, strict=True)]

    def _drop_unused(self, needed: set[str]) -> None:
        """Masks that nothing looked at leave nodes that no output needs."""
        kept = []
        for step in reversed(self.steps):
            if needed.intersection(step.outputs):
                needed.update(step.inputs)
                kept.append(step)
        self.steps = kept[::-1]
        self.tensors = {name: array for name, array in self.tensors.items() if name in needed}

    # -- what several layers need ----------------------------------------------------------

    def value(self, x: Any) -> Value:
        """``x``, or the constant that it is."""
        return x if isinstance(x, Value) else self.constant(x)

    def floats(self, x: Any) -> Value:
        """``x`` in float32."""
        return self.cast(x, "float32") if isinstance(x, Value) else self.constant(x, "float32")

    def cast(self, x: Value, kind: str) -> Value:
        """``x`` as float32, int64 (fractions cut off) or bool (not 0)."""
        if x.kind == kind:
            return x
        number = {"float32": 1, "int32": 6, "int64": 7, "bool": 9}[kind]  # TensorProto.DataType
        return self.add("Cast", [x], x.sizes, kind, to=number)

    def transpose(self, x: Value, order: Sequence[int]) -> Value:
        return self.add("Transpose", [x], tuple(x.sizes[i] for i in order), x.kind, perm=list(order))

    def squeeze(self, x: Value, axis: int) -> Value:
        """``x`` without ``axis``, whose size is 1."""
        axis %= x.rank
        return self.add("Squeeze", [x, self.constant([axis])], x.sizes[:axis] + x.sizes[axis + 1 :], x.kind)

    def unsqueeze(self, x: Value, *axes: int) -> Value:
        """``x`` with axes of size 1, at their places in the result."""
        rank = x.rank + len(axes)
        places = sorted(axis % rank for axis in axes)
        sizes = list(x.sizes)
        for place in places:
            sizes.insert(place, 1)
        return self.add("Unsqueeze", [x, self.constant(places)], tuple(sizes), x.kind) if places else x

    def binary(self, op: str, a: Any, b: Any, kind: str = "") -> Value:
        """An elementwise operator on two tensors; both masks are lost but for a's."""
        a, b = self.value(a), self.value(b)
        return self.add(op, [a, b], self.broadcast(a, b), kind or a.kind)

    def broadcast(self, *values: Value) -> Sizes:
        """The sizes of several values side by side, as NumPy has it."""
        rank = max(v.rank for v in values)
        columns = zip(*((1,) * (rank - v.rank) + v.sizes for v in values), strict=True)
        sizes: list[int | str | None] = []
        for column in columns:
            found = {size for size in column if size != 1}
            known = [size for size in found if isinstance(size, int)]
            if len(known) > 1:
                raise self.refuse(f"expected inputs of one shape, found {[v.sizes for v in values]}")
            sizes.append(known[0] if known else 1 if not found else found.pop() if len(found) == 1 else None)
        return tuple(sizes)

    def reduce(self, op: str, x: Value, axes: Sequence[int], keepdims: bool) -> Value:
        """ReduceMean, ReduceMax, …: axes are an input since opset 18, for ReduceSum since 13."""
        axes = sorted(axis % x.rank for axis in axes)
        sizes = tuple(1 if i in axes else n for i, n in enumerate(x.sizes) if keepdims or i not in axes)
        if self.opset >= 18 or op == "ReduceSum":
            return self.add(op, [x, self.constant(axes)], sizes, x.kind, keepdims=int(keepdims))
        return self.add(op, [x], sizes, x.kind, axes=axes, keepdims=int(keepdims))

    def part(self, x: Value, axis: int, start: int, stop: int = END, step: int = 1) -> Value:
        """``x[start:stop:step]`` along one axis."""
        axis %= x.rank
        size, whole = x.sizes[axis], (start, stop, step) in ((0, END, 1), (-1, -END, -1))
        if isinstance(size, int):
            # -END is "before the first" for a negative step; a slice spells that None
            size = len(range(*slice(start, None if stop in (END, -END) else stop, step).indices(size)))
        elif not whole:
            size = None
        inputs = [self.constant([n]) for n in (start, stop, axis, step)]
        return self.add("Slice", [x, *inputs], (*x.sizes[:axis], size, *x.sizes[axis + 1 :]), x.kind)

    def flip(self, x: Value, axis: int) -> Value:
        """``x`` with one axis in reverse."""
        return self.part(x, axis, -1, -END, -1)

    def concat(self, values: Sequence[Value], axis: int) -> Value:
        """Values side by side along ``axis``."""
        if len(values) == 1:
            return values[0]
        axis %= values[0].rank
        along = [v.sizes[axis] for v in values]
        total = sum(n for n in along if isinstance(n, int)) if all(isinstance(n, int) for n in along) else None
        sizes = list(self.broadcast(*(replace(v, sizes=(*v.sizes[:axis], 1, *v.sizes[axis + 1 :])) for v in values)))
        sizes[axis] = total
        return self.add("Concat", values, tuple(sizes), values[0].kind, axis=axis)

    def size(self, x: Value, axis: int) -> Value:
        """The size of one axis, int64 (1,)."""
        return self.several("Shape", [x], [(1,)], "int64", start=axis, end=axis + 1)[0]

    def reshape(self, x: Value, shape: Sequence[int | tuple[Value, int]], sizes: Sizes) -> Value:
        """``x`` in another shape: numbers (−1 as usual, 0 copies the axis), or the size of a value's axis."""
        if all(isinstance(n, int) for n in shape):
            return self.add("Reshape", [x, self.constant(np.asarray(shape, np.int64))], sizes, x.kind)
        parts = [self.constant([n]) if isinstance(n, int) else self.size(*n) for n in shape]
        return self.add("Reshape", [x, self.concat(parts, 0)], sizes, x.kind)
