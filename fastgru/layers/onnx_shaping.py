"""ONNX operators that move elements: shapes, slices, joins, gathers, and the makers of new arrays.

What was an attribute in an early opset is an input in a later one; each function takes both.
(Source: onnx/docs/Operators.md and Changelog.md.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..formats.onnx_tensors import ELEMENTS
from ..formats.untrusted import LIMITS
from .base import Array, as_float32
from .onnx_node import VARIADIC, NodeSpec, Operator


def axes_of(node: NodeSpec, given: Array | None, rank: int) -> tuple[int, ...] | None:
    """The axes that a node names by attribute or input, counted from the front; None if it names none."""
    axes = node.integers("axes") if given is None else tuple(int(a) for a in given.reshape(-1))
    if axes is None:
        return None
    if any(not -rank <= a < rank for a in axes) or len({a % rank for a in axes}) != len(axes):
        raise ValueError(f"axes: expected different ones within {rank} axes, found {axes}")
    return tuple(a % rank for a in axes)


def axis_of(axis: int, rank: int) -> int:
    """One axis, counted from the front."""
    if not -rank <= axis < rank:
        raise ValueError(f"axis: expected one of {rank}, found {axis}")
    return axis % rank


#: Floats in the widest vector: packed weights have whole vectors of outputs, even where there is one.
WIDEST = 16


def check_size(elements: float, dtype: np.dtype[Any]) -> None:
    """Raise before an array is made that no model needs: its size may be any number in the file."""
    if elements * dtype.itemsize > LIMITS.onnx_made:
        raise ValueError(f"expected to make at most {LIMITS.onnx_made} bytes, found {elements:.3g} of {dtype}")


def floats(x: Array) -> Array:
    """``x`` as float32, which may be four times the bytes of whole numbers or booleans, and of a view of one."""
    if x.dtype != np.float32:
        check_size(x.size, np.dtype(np.float32))
    return as_float32(x)


def check_broadcast(*values: Array) -> None:
    """The same for operands that together are larger than each: (N, 1) beside (1, M)."""
    if math.prod(v.size for v in values) * 8 <= LIMITS.onnx_made:
        return  # no broadcast of them is larger, whatever the type
    sizes = np.broadcast_shapes(*(v.shape for v in values))
    check_size(math.prod(sizes), max((v.dtype for v in values), key=lambda kind: kind.itemsize))


def whole(values: Array, name: str) -> list[int]:
    """An input that holds whole numbers, such as a shape."""
    if values.dtype.kind not in "iu":
        raise ValueError(f"{name}: expected whole numbers, found {values.dtype}")
    return [int(v) for v in values.reshape(-1)]


# -- one array, the same elements --------------------------------------------------------------


def _identity(node: NodeSpec, x: Array) -> Array:
    return x


def _dropout(node: NodeSpec, x: Array, ratio: Array | None = None, training: Array | None = None) -> list[Any]:
    if training is not None and bool(training):
        raise ValueError("training_mode: expected False, found True; export the model in inference mode (model.eval())")
    return [x, np.ones(x.shape, bool) if len(node.outputs) > 1 and node.outputs[1] else None]


def _reshape(node: NodeSpec, x: Array, shape: Array) -> Array:
    sizes = whole(shape, "shape")
    if not node.integer("allowzero", 0):
        sizes = [x.shape[i] if n == 0 else n for i, n in enumerate(sizes)]
    return x.reshape(sizes)


def _flatten(node: NodeSpec, x: Array) -> Array:
    axis = node.integer("axis", 1)
    if not -x.ndim <= axis <= x.ndim:
        raise ValueError(f"axis: expected one of {x.ndim}, found {axis}")
    axis += x.ndim if axis < 0 else 0
    rows = int(np.prod(x.shape[:axis], dtype=np.int64))
    return x.reshape(rows, int(np.prod(x.shape[axis:], dtype=np.int64)))


def _squeeze(node: NodeSpec, x: Array, axes: Array | None = None) -> Array:
    return np.squeeze(x, axes_of(node, axes, x.ndim) or None)


def _unsqueeze(node: NodeSpec, x: Array, axes: Array | None = None) -> Array:
    count = len(node.integers("axes") or ()) if axes is None else axes.size
    named = axes_of(node, axes, x.ndim + count)
    if named is None:
        raise ValueError("axes: expected some, found none")
    return np.expand_dims(x, named)


def _transpose(node: NodeSpec, x: Array) -> Array:
    return np.transpose(x, node.integers("perm"))


# -- parts -------------------------------------------------------------------------------------


def _slice(
    node: NodeSpec,
    x: Array,
    starts: Array | None = None,
    ends: Array | None = None,
    axes: Array | None = None,
    steps: Array | None = None,
) -> Array:
    if starts is None or ends is None:  # opset 1 … 9
        first, last = node.integers("starts"), node.integers("ends")
    else:
        first, last = tuple(whole(starts, "starts")), tuple(whole(ends, "ends"))
    if first is None or last is None or len(first) != len(last):
        raise ValueError("expected as many starts as ends")
    named = axes_of(node, axes, x.ndim)
    named = tuple(range(len(first))) if named is None else named
    by = [1] * len(first) if steps is None else whole(steps, "steps")
    if len(named) != len(first) or len(by) != len(first) or len(first) > x.ndim:
        raise ValueError(f"expected one start, end and step for each axis {named}, found {first}, {last}, {by}")
    key = [slice(None)] * x.ndim
    for axis, start, end, step in zip(named, first, last, by, strict=True):
        key[axis] = slice(start, end, step)  # numbers beyond the axis are cut to it, as in Python
    return x[tuple(key)]


def _split(node: NodeSpec, x: Array, split: Array | None = None) -> list[Array]:
    axis = axis_of(node.integer("axis", 0), x.ndim)
    sizes = node.integers("split") if split is None else tuple(whole(split, "split"))
    parts = len(node.outputs)
    if sizes is None:
        if node.integer("num_outputs", parts) != parts:
            raise ValueError(f"num_outputs: expected {parts}, as many as the outputs")
        step = -(-x.shape[axis] // parts)  # the last part is smaller where they can't be equal
        sizes = tuple(min(step, max(0, x.shape[axis] - i * step)) for i in range(parts))
    if len(sizes) != parts or min(sizes) < 0 or sum(sizes) != x.shape[axis]:
        raise ValueError(f"split: expected {parts} sizes that sum to {x.shape[axis]}, found {sizes}")
    return np.split(x, np.cumsum(sizes[:-1]), axis)


def _index(indices: Array, size: int) -> Array:
    """Indices of an axis, negative ones counted from its end."""
    if indices.dtype.kind not in "iu":
        raise ValueError(f"indices: expected whole numbers, found {indices.dtype}")
    if indices.size and not (-size <= indices.min() and indices.max() < size):
        raise ValueError(f"indices: expected -{size} … {size - 1}, found {indices.min()} … {indices.max()}")
    return indices


def _gather(node: NodeSpec, x: Array, indices: Array) -> Array:
    axis = axis_of(node.integer("axis", 0), x.ndim)
    check_size(indices.size * math.prod(x.shape[:axis] + x.shape[axis + 1 :]), x.dtype)
    places = _index(indices, x.shape[axis])
    if not places.ndim:  # one step of a sequence: a view, where `take` would put all of a transposed x in order first
        key: tuple[Any, ...] = (*[slice(None)] * axis, int(places))
        return np.asarray(x[key])
    return np.take(x, places, axis)


def _gather_elements(node: NodeSpec, x: Array, indices: Array) -> Array:
    axis = axis_of(node.integer("axis", 0), x.ndim)
    fits = all(n <= m for i, (n, m) in enumerate(zip(indices.shape, x.shape, strict=True)) if i != axis)
    if not fits:
        raise ValueError("indices: expected a shape within that of the data")
    head = tuple(slice(None) if i == axis else slice(n) for i, n in enumerate(indices.shape))
    return np.take_along_axis(x[head], _index(indices, x.shape[axis]), axis)


def _scatter_elements(node: NodeSpec, x: Array, indices: Array, updates: Array) -> Array:
    axis = axis_of(node.integer("axis", 0), x.ndim)
    fits = all(n <= m for i, (n, m) in enumerate(zip(indices.shape, x.shape, strict=True)) if i != axis)
    if not fits or updates.shape != indices.shape:
        raise ValueError("indices: expected the shape of the updates, within that of the data")
    places: list[Any] = list(np.indices(indices.shape, sparse=True))
    places[axis] = _index(indices, x.shape[axis])
    return _scattered(node, x, tuple(places), updates)


def _scatter_nd(node: NodeSpec, x: Array, indices: Array, updates: Array) -> Array:
    depth = indices.shape[-1] if indices.ndim else 0
    if not 1 <= depth <= x.ndim or updates.shape != indices.shape[:-1] + x.shape[depth:]:
        raise ValueError(f"updates: expected one of the shape {x.shape[depth:]} for each index, found {updates.shape}")
    return _scattered(node, x, tuple(_index(indices[..., i], x.shape[i]) for i in range(depth)), updates)


def _scattered(node: NodeSpec, x: Array, places: tuple[Any, ...], updates: Array) -> Array:
    check_size(x.size, x.dtype)
    y = x.copy()
    reduction = node.text("reduction", "none")
    if reduction == "none":
        y[places] = updates
        return y
    joins = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}
    if reduction not in joins:
        raise ValueError(f"attribute reduction: expected none, {', '.join(joins)}, found {reduction!r}")
    joins[reduction].at(y, places, updates)
    return y


def _non_zero(node: NodeSpec, x: Array) -> Array:
    check_size(int(np.count_nonzero(x)) * x.ndim, np.dtype(np.int64))
    return np.stack(np.nonzero(x)) if x.ndim else np.zeros((0, np.count_nonzero(x)), np.int64)


def _triangle(node: NodeSpec, x: Array, k: Array | None = None) -> Array:
    check_size(x.size, x.dtype)
    by = 0 if k is None else max(-(2**31), min(2**31, int(k.reshape(-1)[0])))
    return np.triu(x, by) if node.integer("upper", 1) else np.tril(x, by)


def _gather_nd(node: NodeSpec, x: Array, indices: Array) -> Array:
    batch = node.integer("batch_dims", 0)
    depth = indices.shape[-1]
    if not 0 <= batch < indices.ndim or batch + depth > x.ndim or x.shape[:batch] != indices.shape[:batch]:
        raise ValueError(f"expected indices into {x.ndim} axes after {batch} of the batch")
    check_size(math.prod(indices.shape[:-1] + x.shape[batch + depth :]), x.dtype)
    parts = [_index(indices[..., i], x.shape[batch + i]) for i in range(depth)]
    rest = indices.ndim - 1 - batch
    rows = [
        np.arange(n).reshape([-1 if i == axis else 1 for i in range(batch)] + [1] * rest)
        for axis, n in enumerate(x.shape[:batch])
    ]
    return np.asarray(x[(*rows, *parts)])


def _reverse_sequence(node: NodeSpec, x: Array, lengths: Array) -> Array:
    """Each row's first lengths[row] steps the other way round; the others stay."""
    batch, time = node.integer("batch_axis", 1), node.integer("time_axis", 0)
    if {batch, time} != {0, 1}:
        raise ValueError(f"batch_axis and time_axis: expected 0 and 1, found {batch} and {time}")
    by_row = x.swapaxes(0, 1) if batch == 1 else x
    counts = whole(lengths, "sequence_lens")
    rows, steps = by_row.shape[:2]
    if len(counts) != rows or any(not 0 <= n <= steps for n in counts):
        raise ValueError(f"sequence_lens: expected {rows} of 0 … {steps}, found {counts!s:.80}")
    y = by_row.copy()
    for row, count in enumerate(counts):
        y[row, :count] = by_row[row, :count][::-1]
    return y.swapaxes(0, 1) if batch == 1 else y


# -- several arrays, larger ones ---------------------------------------------------------------


def _concat(node: NodeSpec, *values: Array) -> Array:
    if "axis" not in node.attributes:
        raise ValueError("attribute axis: expected one, found none")
    if len({v.dtype for v in values}) > 1:
        raise ValueError("expected inputs of one type")
    check_size(sum(v.size for v in values), values[0].dtype)
    return np.concatenate(values, axis_of(node.integer("axis", 0), values[0].ndim))


def _expand(node: NodeSpec, x: Array, shape: Array) -> Array:
    wanted = np.broadcast_shapes(x.shape, tuple(whole(shape, "shape")))
    check_size(math.prod(wanted), x.dtype)
    return np.broadcast_to(x, wanted)


def _tile(node: NodeSpec, x: Array, repeats: Array) -> Array:
    times = whole(repeats, "repeats")
    if len(times) != x.ndim or any(n < 0 for n in times):
        raise ValueError(f"repeats: expected {x.ndim} of 0 or more, found {times}")
    check_size(x.size * math.prod(times), x.dtype)
    return np.tile(x, times)


def _pad(
    node: NodeSpec, x: Array, pads: Array | None = None, value: Array | None = None, axes: Array | None = None
) -> Array:
    mode = node.text("mode", "constant")
    if mode not in ("constant", "edge", "reflect", "wrap"):
        raise ValueError(f"attribute mode: expected constant, edge, reflect or wrap, found {mode!r}")
    given = node.integers("pads") if pads is None else tuple(whole(pads, "pads"))
    named = axes_of(node, axes, x.ndim)
    named = tuple(range(x.ndim)) if named is None else named
    if given is None or len(given) != 2 * len(named):
        raise ValueError(f"pads: expected {2 * len(named)} numbers, found {given}")
    before = dict(zip(named, given[: len(named)], strict=True))
    after = dict(zip(named, given[len(named) :], strict=True))
    sizes = [n + before.get(i, 0) + after.get(i, 0) for i, n in enumerate(x.shape)]
    if any(n + min(0, before.get(i, 0)) + min(0, after.get(i, 0)) < 0 for i, n in enumerate(x.shape)):
        raise ValueError(f"pads: expected at most what is there to be cut off {x.shape}, found {given}")
    check_size(math.prod(sizes), x.dtype)
    # a negative pad cuts off
    cut = tuple(
        slice(max(0, -before.get(i, 0)), n - max(0, -after.get(i, 0)) if after.get(i, 0) < 0 else None)
        for i, n in enumerate(x.shape)
    )
    width = [(max(0, before.get(i, 0)), max(0, after.get(i, 0))) for i in range(x.ndim)]
    if mode != "constant":
        how: Any = mode  # NumPy's names are the same
        return np.pad(x[cut], width, how)
    fill: Any = node.number("value", 0.0) if value is None else value.reshape(())
    return np.pad(x[cut], width, constant_values=fill)


def _shape(node: NodeSpec, x: Array) -> Array:
    start, end = node.integer("start", 0), node.integer("end", x.ndim)
    start, end = (min(max(n + x.ndim if n < 0 else n, 0), x.ndim) for n in (start, end))
    return np.array(x.shape[start:end], np.int64)


def _size(node: NodeSpec, x: Array) -> Array:
    return np.array(x.size, np.int64)


def _constant_of_shape(node: NodeSpec, shape: Array) -> Array:
    value, wanted = _one(node.attributes.get("value")), whole(shape, "shape")
    check_size(math.prod(wanted), np.asarray(value).dtype)
    return np.full(wanted, value)


def _one(value: Any) -> Any:
    """The number that a tensor attribute holds, in its type; 0 as float32 where it is left out."""
    if value is None:
        return np.float32(0)
    if not isinstance(value, Mapping) or not isinstance(value.get("values"), Sequence) or len(value["values"]) != 1:
        raise ValueError(f"attribute value: expected one number, found {value!r:.80}")
    if value.get("dtype") == "bfloat16" or value.get("dtype") not in ELEMENTS.values():
        raise ValueError(f"attribute value: expected a known type, found {value.get('dtype')!r:.80}")
    return np.dtype(value["dtype"]).type(value["values"][0])


def _range(node: NodeSpec, start: Array, limit: Array, delta: Array) -> Array:
    if not delta.item():
        raise ValueError("delta: expected a number other than 0")
    first, last, step = (v.item() for v in (start, limit, delta))
    check_size((last - first) / step, np.dtype(np.float64))
    return np.asarray(np.arange(first, last, step), start.dtype)


def _one_hot(node: NodeSpec, indices: Array, depth: Array, values: Array) -> Array:
    size = int(depth.reshape(-1)[0])
    axis = axis_of(node.integer("axis", -1), indices.ndim + 1)
    if size < 0:
        raise ValueError(f"depth: expected 0 or more, found {size}")
    check_size(size, np.dtype(np.int64))  # no indices at all hide how large it is
    check_size(indices.size * size, values.dtype)
    places = np.arange(size).reshape([-1 if i == axis else 1 for i in range(indices.ndim + 1)])
    chosen = np.where(indices < 0, indices + size, indices)
    return np.asarray(np.where(np.expand_dims(chosen, axis) == places, values[1], values[0]))


SHAPING: dict[str, Operator] = {
    "Identity": Operator(_identity, (1, 1), rearranges=True),
    "Dropout": Operator(_dropout, (1, 3), ("ratio", "seed"), outputs=2),
    "Reshape": Operator(_reshape, (2, 2), ("allowzero",), rearranges=True),
    "Flatten": Operator(_flatten, (1, 1), ("axis",), rearranges=True),
    "Squeeze": Operator(_squeeze, (1, 2), ("axes",), rearranges=True),
    "Unsqueeze": Operator(_unsqueeze, (1, 2), ("axes",), rearranges=True),
    "Transpose": Operator(_transpose, (1, 1), ("perm",), rearranges=True),
    "Slice": Operator(_slice, (1, 5), ("starts", "ends", "axes"), rearranges=True),
    "Split": Operator(_split, (1, 2), ("axis", "split", "num_outputs"), outputs=VARIADIC, rearranges=True),
    "Gather": Operator(_gather, (2, 2), ("axis",)),
    "GatherElements": Operator(_gather_elements, (2, 2), ("axis",)),
    "ScatterElements": Operator(_scatter_elements, (3, 3), ("axis", "reduction")),
    "ScatterND": Operator(_scatter_nd, (3, 3), ("reduction",)),
    "NonZero": Operator(_non_zero, (1, 1)),
    "Trilu": Operator(_triangle, (1, 2), ("upper",)),
    "GatherND": Operator(_gather_nd, (2, 2), ("batch_dims",)),
    "ReverseSequence": Operator(_reverse_sequence, (2, 2), ("batch_axis", "time_axis")),
    "Concat": Operator(_concat, (1, VARIADIC), ("axis",), rearranges=True),
    "Expand": Operator(_expand, (2, 2)),
    "Tile": Operator(_tile, (2, 2)),
    "Pad": Operator(_pad, (1, 4), ("mode", "pads", "value")),
    "Shape": Operator(_shape, (1, 1), ("start", "end"), rearranges=True),
    "Size": Operator(_size, (1, 1)),
    "ConstantOfShape": Operator(_constant_of_shape, (1, 1), ("value",)),
    "Range": Operator(_range, (3, 3), ("stash_type",)),
    "OneHot": Operator(_one_hot, (3, 3), ("axis",)),
}
