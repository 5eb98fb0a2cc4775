"""ONNX MatMul, Gemm and Einsum: a constant matrix is packed once, for the dense kernel. No BLAS."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import ops
from .base import Array, as_float32
from .onnx_node import VARIADIC, Computed, NodeSpec, OnnxNode, Operator
from .onnx_packs import Packs
from .onnx_shaping import WIDEST, check_broadcast, check_size

_FLOAT = np.dtype(np.float32)


class MatMul(OnnxNode):
    """A B, as numpy.matmul: batches of matrices broadcast."""

    def take_constants(self, inputs: Sequence[Array | None | Computed], packs: Packs) -> None:
        b = _matrix(inputs[1])
        self._packed = None if b is None else packs.get((b, None), None, lambda: _pack(b))

    def run(self, x: Sequence[Any], num_threads: int | None) -> Any:
        a, b = x
        _expect_floats(a, b)
        if self._packed is not None and a.ndim:
            return _dense(a, self._packed, num_threads)
        return product(a, b, num_threads)

    def describe(self) -> str:
        return "" if self._packed is None else f"{self._packed.input_size} → {self._packed.output_size}"


class Gemm(OnnxNode):
    """α A' B' + β C, where ' may transpose; a constant B is packed, with a constant C that is a bias."""

    def take_constants(self, inputs: Sequence[Array | None | Computed], packs: Packs) -> None:
        node = self.spec
        self._alpha, self._beta = np.float32(node.number("alpha", 1.0)), np.float32(node.number("beta", 1.0))
        self._trans_a, self._trans_b = bool(node.integer("transA", 0)), bool(node.integer("transB", 0))
        self._packed = None
        self._biased = False
        b, c = _matrix(inputs[1]), inputs[2] if len(inputs) > 2 else None
        if b is None:
            return
        matrix = b.T if self._trans_b else b
        if isinstance(c, np.ndarray) and self._alpha == 1 and c.shape in ((matrix.shape[1],), (1, matrix.shape[1])):
            bias, beta = as_float32(c).reshape(-1), self._beta
            self._packed = packs.get((matrix, bias), float(beta), lambda: _pack(matrix, beta * bias))
            self._biased = self._packed is not None
        else:
            self._packed = packs.get((matrix, None), None, lambda: _pack(matrix))

    def run(self, x: Sequence[Any], num_threads: int | None) -> Any:
        a, b, c = (*x, None)[:3]
        _expect_floats(a, b)
        if a.ndim != 2 or b.ndim != 2:
            raise ValueError("expected two matrices")
        a = a.T if self._trans_a else a
        if self._packed is not None:
            y = _dense(a, self._packed, num_threads)
        else:
            y = product(a, b.T if self._trans_b else b, num_threads)
        y = y if self._alpha == 1 else self._alpha * y
        if c is None or self._biased:
            return y
        check_broadcast(y, c)
        return y + (as_float32(c) if self._beta == 1 else self._beta * as_float32(c))

    def describe(self) -> str:
        return "" if self._packed is None else f"{self._packed.input_size} → {self._packed.output_size}"


def _matrix(value: Any) -> Array | None:
    """A constant that can be packed: a matrix of floats that isn't empty."""
    fits = isinstance(value, np.ndarray) and value.ndim == 2 and value.dtype.kind == "f" and value.size
    return value if fits else None


def _pack(b: Array, bias: Array | None = None) -> ops.PackedDense:
    return ops.pack_dense(np.ascontiguousarray(as_float32(b).T), bias)


def _expect_floats(a: Array, b: Array) -> None:
    if a.dtype.kind != "f" or b.dtype.kind != "f":
        raise ValueError("expected floats: products of whole numbers are not computed here")


def _dense(a: Array, packed: ops.PackedDense, num_threads: int | None) -> Array:
    if a.shape[-1] != packed.input_size:
        raise ValueError(f"expected {packed.input_size} in the last axis of the first input, found {a.shape[-1]}")
    check_size(math.prod(a.shape[:-1]) * packed.output_size, _FLOAT)
    return ops.dense(a, packed, num_threads=num_threads)


def product(a: Array, b: Array, num_threads: int | None) -> Array:
    """numpy.matmul of two computed arrays, one dense product for each matrix of the second."""
    if not a.ndim or not b.ndim:
        raise ValueError("expected at least one axis")
    rows, columns = (a[None] if a.ndim == 1 else a), (b[:, None] if b.ndim == 1 else b)
    if rows.shape[-1] != columns.shape[-2]:
        raise ValueError(f"expected sizes that fit, found {rows.shape[-1]} and {columns.shape[-2]}")
    batch = np.broadcast_shapes(rows.shape[:-2], columns.shape[:-2])
    shape = (*batch, rows.shape[-2], columns.shape[-1])
    check_size(math.prod(shape), _FLOAT)
    check_size(columns.shape[-2] * (columns.shape[-1] + WIDEST), _FLOAT)  # packed
    y = np.zeros(shape, np.float32)
    if y.size and rows.shape[-1]:
        if columns.ndim == 2 or columns.size == columns.shape[-1] * columns.shape[-2]:
            matrix = columns.reshape(columns.shape[-2:])
            y = ops.dense(rows, _pack(matrix), num_threads=num_threads).reshape(y.shape)
        else:
            left = np.broadcast_to(rows, (*batch, *rows.shape[-2:]))
            right = np.broadcast_to(columns, (*batch, *columns.shape[-2:]))
            for place in np.ndindex(*batch):
                y[place] = ops.dense(left[place], _pack(right[place]), num_threads=num_threads)
    y = y[..., 0] if b.ndim == 1 else y
    return y if a.ndim > 1 else (y[..., 0, :] if b.ndim > 1 else y[..., 0])


def _einsum(node: NodeSpec, *values: Array) -> Any:
    """Sums of products by letters. Its time goes with the product of all letters' sizes, which is bounded."""
    equation = node.text("equation", "").replace(" ", "")
    terms = equation.partition("->")[0].split(",")
    if not re.fullmatch(r"[A-Za-z,.]*(->[A-Za-z.]*)?", equation) or len(terms) != len(values):
        raise ValueError(f"attribute equation: expected letters for {len(values)} inputs, found {equation!r:.80}")
    if len({v.dtype for v in values}) > 1:
        raise ValueError("expected inputs of one type")
    sizes: dict[str, int] = {}
    around = []
    for term, value in zip(terms, values, strict=True):
        head, dots, tail = term.partition("...")
        rest = value.ndim - len(tail)
        if rest < len(head) or (rest > len(head) and not dots):
            raise ValueError(f"attribute equation: expected {value.ndim} axes, found {term!r:.80}")
        around.append(value.shape[len(head) : rest])
        for letter, n in zip(head + tail, value.shape[: len(head)] + value.shape[rest:], strict=True):
            sizes[letter] = max(n, sizes.get(letter, 0))
    check_size(math.prod(sizes.values()) * math.prod(np.broadcast_shapes(*around)), values[0].dtype)
    return np.einsum(equation, *values)


PRODUCTS: dict[str, tuple[type[OnnxNode], Operator]] = {
    "MatMul": (MatMul, Operator(product, (2, 2))),
    "Einsum": (OnnxNode, Operator(_einsum, (1, VARIADIC), ("equation",))),
    "Gemm": (Gemm, Operator(product, (2, 3), ("alpha", "beta", "transA", "transB"))),
}
