"""ONNX operators over windows of the axes after (N, C): convolution and pooling. (Source: onnx/docs/Operators.md.)

A window's elements are gathered beside each other, so that a convolution is one dense product. Time and memory go with
the number of windows times their size, which is held to what a node may make.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import ops
from .base import Array
from .onnx_node import Computed, NodeSpec, OnnxNode, Operator
from .onnx_packs import Packs
from .onnx_shaping import WIDEST, check_size, floats

_FLOAT = np.dtype(np.float32)
_PADDED = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")
_PLACES = ("auto_pad", "dilations", "kernel_shape", "pads", "strides")


@dataclass(frozen=True)
class _Window:
    """Where the windows of one axis lie. ``rest``: steps after the padding that the last window may reach into."""

    size: int
    stride: int
    dilation: int
    before: int
    after: int
    rest: int
    count: int

    @property
    def reach(self) -> int:
        return (self.size - 1) * self.dilation + 1


def _windows(node: NodeSpec, sizes: Sequence[int], kernel: Sequence[int]) -> list[_Window]:
    """The windows on axes of these sizes."""
    rank, mode = len(sizes), node.text("auto_pad", "NOTSET")
    given = {key: node.integers(key) or (1,) * rank for key in ("strides", "dilations")}
    pads = node.integers("pads") or (0,) * 2 * rank
    if mode not in _PADDED:
        raise ValueError(f"attribute auto_pad: expected one of {', '.join(_PADDED)}, found {mode!r}")
    if rank < 1 or len(kernel) != rank or len(pads) != 2 * rank or any(len(v) != rank for v in given.values()):
        raise ValueError(f"expected (N, C, axes …), and a kernel, strides, dilations and pads for {rank} axes")
    if min(kernel) < 1 or min(pads) < 0 or any(min(v) < 1 for v in given.values()):
        raise ValueError("expected a kernel, strides and dilations of 1 or more, and pads of 0 or more")
    pads = pads if mode == "NOTSET" else (0,) * 2 * rank
    ways = zip(sizes, kernel, *given.values(), pads[:rank], pads[rank:], strict=True)
    return [_window(node, mode, *numbers) for numbers in ways]


def _window(
    node: NodeSpec, mode: str, n: int, size: int, stride: int, dilation: int, before: int, after: int
) -> _Window:
    reach = (size - 1) * dilation + 1
    if mode.startswith("SAME"):
        count = -(-n // stride)
        total = max(0, (count - 1) * stride + reach - n)
        before = total // 2 if mode == "SAME_UPPER" else total - total // 2
        return _Window(size, stride, dilation, before, total - before, 0, count)
    room = n + before + after - reach
    count = room // stride + 1 if room >= 0 else 0
    if node.integer("ceil_mode", 0) and room >= 0 and room % stride and count * stride < n + before:
        count += 1  # a last window that is cut off, unless it would start in the padding behind
    rest = max(0, (count - 1) * stride - room) if count else 0
    return _Window(size, stride, dilation, before, after, rest, count)


def _gathered(x: Array, windows: Sequence[_Window], fill: Any, *, beyond: Any = None) -> Array:
    """x (N, C, axes …) → a view (N, C, windows …, window …), padded; ``beyond`` fills what is after the padding."""
    counts, sizes = [w.count for w in windows], [w.size for w in windows]
    check_size(math.prod(x.shape[:2]) * math.prod(counts) * math.prod(sizes), x.dtype)
    padded = [n + w.before + w.after + w.rest for n, w in zip(x.shape[2:], windows, strict=True)]
    check_size(math.prod(x.shape[:2]) * math.prod(padded), x.dtype)
    if 0 in counts:
        return np.zeros((*x.shape[:2], *counts, *sizes), x.dtype)
    edges = [(0, 0), (0, 0), *((w.before, w.after) for w in windows)]
    x = np.pad(x, edges, constant_values=fill) if any(map(any, edges)) else x
    rest = [(0, 0), (0, 0), *((0, w.rest) for w in windows)]
    x = np.pad(x, rest, constant_values=fill if beyond is None else beyond) if any(map(any, rest)) else x
    axes = tuple(range(2, x.ndim))
    seen = np.lib.stride_tricks.sliding_window_view(x, [w.reach for w in windows], axes)
    steps = [slice(0, (w.count - 1) * w.stride + 1, w.stride) for w in windows]
    view: Array = seen[(slice(None), slice(None), *steps, *(slice(None, None, w.dilation) for w in windows))]
    return view


class Conv(OnnxNode):
    """x (N, C, axes …), W (M, C / groups, kernel …), bias (M,) → (N, M, windows …). One constant group is packed."""

    def take_constants(self, inputs: Sequence[Array | None | Computed], packs: Packs) -> None:
        self._packed, self._groups, w = None, self.spec.integer("group", 1), inputs[1]
        if self._groups < 1:
            raise ValueError(f"attribute group: expected 1 or more, found {self._groups}")
        if isinstance(w, np.ndarray) and w.ndim > 2 and w.size and w.dtype.kind == "f" and self._groups == 1:
            self._packed = packs.get((w, None), "conv", lambda: _pack(w))

    def run(self, x: Sequence[Any], num_threads: int | None) -> Any:
        v, w, bias = (*x, None)[:3]
        if v.dtype.kind != "f" or w.dtype.kind != "f" or v.ndim < 3 or w.ndim != v.ndim:
            raise ValueError("expected floats x (N, C, axes …) and W (M, C / groups, kernel …)")
        if v.shape[1] != w.shape[1] * self._groups or len(w) % self._groups:
            raise ValueError(f"expected {w.shape[1]} channels for each of {self._groups} groups, found {v.shape[1]}")
        if (self.spec.integers("kernel_shape") or w.shape[2:]) != w.shape[2:]:
            raise ValueError(f"attribute kernel_shape: expected {w.shape[2:]}, that of W")
        places = _windows(self.spec, v.shape[2:], w.shape[2:])
        shape = (v.shape[0], *(p.count for p in places), len(w))
        check_size(math.prod(shape), _FLOAT)
        seen = np.moveaxis(_gathered(v, places, 0), 1, len(places) + 1)  # (N, windows …, C, window …)
        y = self._products(seen.reshape(math.prod(shape[:-1]), -1), w, num_threads) if seen.size else 0
        y = np.zeros(shape, np.float32) + np.reshape(y, shape if seen.size else ())
        return np.moveaxis(y if bias is None else y + floats(bias), -1, 1)

    def _products(self, rows: Array, w: Array, num_threads: int | None) -> Array:
        """(rows, C · window) and W → (rows, M)."""
        if self._groups == 1:
            packed = _pack(w) if self._packed is None else self._packed
            return ops.dense(rows, packed, num_threads=num_threads)
        parts = rows.reshape(len(rows), self._groups, -1)
        kernels = w.reshape(self._groups, len(w) // self._groups, -1)
        y: Array = np.einsum("rgk,gmk->rgm", parts, kernels).reshape(len(rows), len(w))
        return y


def _pack(w: Array) -> ops.PackedDense:
    rows = w.reshape(len(w), -1)
    check_size(rows.shape[1] * (len(rows) + WIDEST), _FLOAT)
    return ops.pack_dense(np.ascontiguousarray(floats(rows)), None)


def _kernel(node: NodeSpec, x: Array) -> list[_Window]:
    kernel = node.integers("kernel_shape")
    if kernel is None or x.ndim < 3:
        raise ValueError("expected (N, C, axes …) and the attribute kernel_shape")
    return _windows(node, x.shape[2:], kernel)


def _max_pool(node: NodeSpec, x: Array) -> Any:
    """The largest of each window and, where asked for, its place among all elements of x."""
    least = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    places = _kernel(node, x)
    seen = _gathered(x, places, least)
    y = np.max(seen, axis=tuple(range(x.ndim, seen.ndim)), initial=least)
    if not (node.outputs[1:] and node.outputs[1]):
        return y
    steps = math.prod(x.shape[2:])
    check_size(seen.size, np.dtype(np.int64))
    order = "F" if node.integer("storage_order", 0) else "C"
    flat: Any = np.arange(steps)
    numbers = _gathered(flat.reshape((1, 1, *x.shape[2:]), order=order), places, 0).reshape(*y.shape[2:], -1)
    best = np.argmax(seen.reshape(*y.shape, -1), -1) if seen.size else np.zeros(y.shape, np.int64)
    within = np.take_along_axis(np.broadcast_to(numbers, (*y.shape, numbers.shape[-1])), best[..., None], -1)[..., 0]
    return [y, within + steps * np.arange(math.prod(x.shape[:2])).reshape(*x.shape[:2], *[1] * (x.ndim - 2))]


def _average_pool(node: NodeSpec, x: Array) -> Any:
    """Padding counts, if at all, as zeros; what is after it never does."""
    x, places = floats(x), _kernel(node, x)
    seen = _gathered(x, places, 0)
    axes = tuple(range(x.ndim, seen.ndim))
    ones = np.ones((1, 1, *x.shape[2:]), np.float32)
    counts = _gathered(ones, places, float(node.integer("count_include_pad", 0)), beyond=0.0)
    return seen.sum(axis=axes, dtype=np.float32) / counts.sum(axis=axes, dtype=np.float32)


def _global(function: Callable[..., Any]) -> Operator:
    """(N, C, axes …) → (N, C, 1 …)."""

    def run(node: NodeSpec, x: Array) -> Any:
        if x.ndim < 3 or 0 in x.shape[2:]:
            raise ValueError("expected (N, C, axes …), none of them empty")
        return function(floats(x), axis=tuple(range(2, x.ndim)), keepdims=True)

    return Operator(run, (1, 1))


WINDOWS: dict[str, tuple[type[OnnxNode], Operator]] = {
    "Conv": (Conv, Operator(lambda *_: None, (2, 3), (*_PLACES, "group"))),
    "MaxPool": (OnnxNode, Operator(_max_pool, (1, 1), (*_PLACES, "ceil_mode", "storage_order"), outputs=2)),
    "AveragePool": (OnnxNode, Operator(_average_pool, (1, 1), (*_PLACES, "ceil_mode", "count_include_pad"))),
    "GlobalAveragePool": (OnnxNode, _global(np.mean)),
    "GlobalMaxPool": (OnnxNode, _global(np.max)),
}
