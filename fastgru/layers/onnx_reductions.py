"""ONNX operators along axes: reductions, softmax, normalisations, running sums. (Source: onnx/docs/Operators.md.)"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .activations import log_softmax, softmax
from .base import Array
from .onnx_node import NodeSpec, Operator
from .onnx_shaping import axes_of, axis_of, check_broadcast, check_size, floats


def _reduction(function: Callable[..., Any]) -> Operator:
    """The axes are an attribute or, in later opsets, an input; none named means all."""

    def run(node: NodeSpec, x: Array, axes: Array | None = None) -> Any:
        named = axes_of(node, axes, x.ndim)
        if not named:
            if node.integer("noop_with_empty_axes", 0):
                return x
            named = tuple(range(x.ndim))
        _check_kept(x, named, x.dtype)
        return function(x, axis=named, keepdims=bool(node.integer("keepdims", 1)))

    return Operator(run, (1, 2), ("axes", "keepdims", "noop_with_empty_axes"))


def _check_kept(x: Array, axes: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """`check_size` of what stays: axes of no size hide how large the others are."""
    check_size(math.prod(n for i, n in enumerate(x.shape) if i not in axes), dtype)


def _extreme(function: Callable[..., Any], sign: float) -> Callable[..., Any]:
    """The largest or smallest of nothing is the least or most that the type has."""

    def run(x: Array, axis: Any, keepdims: bool) -> Any:
        if x.dtype.kind == "f":
            initial: Any = -sign * np.inf
        elif x.dtype.kind == "b":
            initial = sign < 0
        else:
            initial = np.iinfo(x.dtype).min if sign > 0 else np.iinfo(x.dtype).max
        return function(x, axis=axis, keepdims=keepdims, initial=initial)

    return run


def _sum(x: Array, axis: Any, keepdims: bool) -> Any:
    return np.sum(x, axis=axis, keepdims=keepdims, dtype=x.dtype)


def _prod(x: Array, axis: Any, keepdims: bool) -> Any:
    return np.prod(x, axis=axis, keepdims=keepdims, dtype=x.dtype)


def _mean(x: Array, axis: Any, keepdims: bool) -> Any:
    count = int(np.prod([x.shape[a] for a in axis], dtype=np.int64))
    if x.dtype.kind == "f":
        return _sum(x, axis, keepdims) / np.float32(count)  # of nothing: NaN, as in ONNX Runtime
    return np.trunc(np.sum(x, axis=axis, keepdims=keepdims) / count).astype(x.dtype)


def _l1(x: Array, axis: Any, keepdims: bool) -> Any:
    return _sum(np.abs(x), axis, keepdims)


def _l2(x: Array, axis: Any, keepdims: bool) -> Any:
    return np.sqrt(_sum(np.square(floats(x)), axis, keepdims))


def _sum_square(x: Array, axis: Any, keepdims: bool) -> Any:
    return _sum(np.square(x), axis, keepdims)


def _log_sum(x: Array, axis: Any, keepdims: bool) -> Any:
    return np.log(_sum(floats(x), axis, keepdims))


def _log_sum_exp(x: Array, axis: Any, keepdims: bool) -> Any:
    x = floats(x)
    most = np.max(x, axis=axis, keepdims=True, initial=-np.inf)
    most = np.where(np.isfinite(most), most, np.float32(0))
    total = np.log(_sum(np.exp(x - most), axis, True)) + most
    return total if keepdims else np.squeeze(total, axis)


def _arg(function: Callable[..., Any]) -> Operator:
    def run(node: NodeSpec, x: Array) -> Any:
        axis = axis_of(node.integer("axis", 0), x.ndim)
        _check_kept(x, (axis,), np.dtype(np.int64))
        last = node.integer("select_last_index", 0)
        found = function(np.flip(x, axis) if last else x, axis=axis, keepdims=bool(node.integer("keepdims", 1)))
        return (x.shape[axis] - 1 - found if last else found).astype(np.int64)

    return Operator(run, (1, 1), ("axis", "keepdims", "select_last_index"))


def _along(function: Callable[..., Array]) -> Operator:
    """Softmax and its logarithm: before opset 13 over all axes from one on (1 by default), then over one (-1)."""

    def run(node: NodeSpec, x: Array) -> Array:
        x = floats(x)
        if x.size == 0:
            return x
        if node.opset >= 13:
            return function(x, axis_of(node.integer("axis", -1), x.ndim))
        axis = node.integer("axis", 1)
        rows = int(np.prod(x.shape[: axis if axis == x.ndim else axis_of(axis, x.ndim)], dtype=np.int64))
        return function(x.reshape(rows, -1), 1).reshape(x.shape)

    return Operator(run, (1, 1), ("axis",))


def _cumulative_sum(node: NodeSpec, x: Array, axis: Array) -> Any:
    along = axis_of(int(axis.reshape(-1)[0]), x.ndim)
    ordered = np.flip(x, along) if node.integer("reverse", 0) else x
    total = np.cumsum(ordered, along, dtype=x.dtype)
    if node.integer("exclusive", 0):
        total = np.roll(total, 1, along)
        total[tuple(slice(0, 1) if i == along else slice(None) for i in range(x.ndim))] = 0
    return np.flip(total, along) if node.integer("reverse", 0) else total


def _batch_normalization(node: NodeSpec, x: Array, scale: Array, bias: Array, mean: Array, variance: Array) -> Any:
    if node.integer("training_mode", 0) or any(node.outputs[1:]):
        raise ValueError("expected inference, found training mode; export the model in inference mode (model.eval())")
    if node.integer("spatial", 1) != 1:
        raise ValueError("attribute spatial: expected 1, found 0")
    shape = [-1 if i == 1 else 1 for i in range(x.ndim)]
    check_broadcast(x, *(v.reshape(shape) for v in (scale, bias, mean, variance)))
    factor = floats(scale) / np.sqrt(floats(variance) + np.float32(node.number("epsilon", 1e-5)))
    return (floats(x) - mean.reshape(shape)) * factor.reshape(shape) + bias.reshape(shape)


def _layer_normalization(node: NodeSpec, x: Array, scale: Array, bias: Array | None = None) -> list[Any]:
    check_broadcast(*(v for v in (x, scale, bias) if v is not None))
    x = floats(x)
    axes = tuple(range(axis_of(node.integer("axis", -1), x.ndim), x.ndim))
    _check_kept(x, axes, x.dtype)
    mean = x.mean(axis=axes, keepdims=True)
    centred = x - mean
    inverse = 1 / np.sqrt(np.square(centred).mean(axis=axes, keepdims=True) + np.float32(node.number("epsilon", 1e-5)))
    y = centred * inverse * scale
    return [y if bias is None else y + bias, mean, inverse]


def _rms_normalization(node: NodeSpec, x: Array, scale: Array) -> Any:
    check_broadcast(x, scale)
    x = floats(x)
    axes = tuple(range(axis_of(node.integer("axis", -1), x.ndim), x.ndim))
    square = np.square(x).mean(axis=axes, keepdims=True)
    return x / np.sqrt(square + np.float32(node.number("epsilon", 1e-5))) * scale


def _instance_normalization(node: NodeSpec, x: Array, scale: Array, bias: Array) -> Any:
    """Each channel of each row by itself: a group of one."""
    return _by_groups(node, x, scale, bias, x.shape[1] if x.ndim > 1 else 0)


def _group_normalization(node: NodeSpec, x: Array, scale: Array, bias: Array) -> Any:
    groups = node.integer("num_groups", 0)
    if node.opset < 21 and 0 < groups == scale.size and x.ndim > 1:  # one factor for each group
        scale, bias = (np.repeat(v, x.shape[1] // groups) for v in (scale, bias))
    return _by_groups(node, x, scale, bias, groups)


def _by_groups(node: NodeSpec, x: Array, scale: Array, bias: Array, groups: int) -> Any:
    x = floats(x)
    if x.ndim < 3 or groups < 1 or x.shape[1] % groups or not scale.shape == bias.shape == (x.shape[1],):
        raise ValueError(f"expected x (N, C, axes …) of {groups} equal groups of channels, scale and bias (C,)")
    parts = x.reshape(x.shape[0], groups, -1) if x.size else x.reshape(x.shape[0], groups, 0)
    centred = parts - parts.mean(axis=2, keepdims=True)
    spread = np.sqrt(np.square(centred).mean(axis=2, keepdims=True) + np.float32(node.number("epsilon", 1e-5)))
    shape = (-1, *[1] * (x.ndim - 2))
    return (centred / spread).reshape(x.shape) * floats(scale).reshape(shape) + floats(bias).reshape(shape)


def _top_k(node: NodeSpec, x: Array, k: Array | None = None) -> list[Any]:
    """The largest or smallest, in order; of equal ones the first. Their values and places."""
    axis = axis_of(node.integer("axis", -1), x.ndim)
    count, size = node.integer("k", 0) if k is None else int(k.reshape(-1)[0]), x.shape[axis]
    if not 0 <= count <= size:
        raise ValueError(f"K: expected 0 … {size}, found {count}")
    check_size(x.size, np.dtype(np.int64))
    if node.integer("largest", 1):
        places = size - 1 - np.flip(np.argsort(np.flip(x, axis), axis, kind="stable"), axis)
    else:
        places = np.argsort(x, axis, kind="stable")
    places = np.take(places, range(count), axis).astype(np.int64)
    return [np.take_along_axis(x, places, axis), places]


REDUCTIONS: dict[str, Operator] = {
    "ReduceSum": _reduction(_sum),
    "ReduceMean": _reduction(_mean),
    "ReduceMax": _reduction(_extreme(np.max, 1.0)),
    "ReduceMin": _reduction(_extreme(np.min, -1.0)),
    "ReduceProd": _reduction(_prod),
    "ReduceL1": _reduction(_l1),
    "ReduceL2": _reduction(_l2),
    "ReduceSumSquare": _reduction(_sum_square),
    "ReduceLogSum": _reduction(_log_sum),
    "ReduceLogSumExp": _reduction(_log_sum_exp),
    "ArgMax": _arg(np.argmax),
    "ArgMin": _arg(np.argmin),
    "Softmax": _along(softmax),
    "LogSoftmax": _along(log_softmax),
    "CumSum": Operator(_cumulative_sum, (2, 2), ("exclusive", "reverse")),
    "BatchNormalization": Operator(
        _batch_normalization, (5, 5), ("epsilon", "momentum", "training_mode", "spatial"), outputs=5
    ),
    "RMSNormalization": Operator(_rms_normalization, (2, 2), ("axis", "epsilon", "stash_type")),
    "InstanceNormalization": Operator(_instance_normalization, (3, 3), ("epsilon",)),
    "GroupNormalization": Operator(_group_normalization, (3, 3), ("epsilon", "num_groups", "stash_type")),
    "TopK": Operator(_top_k, (1, 2), ("axis", "largest", "sorted", "k"), outputs=2),
    "LayerNormalization": Operator(_layer_normalization, (2, 3), ("axis", "epsilon", "stash_type"), outputs=3),
}
