"""ops.outer_sum, column_sums and dense_backward: the sums over rows that gradients of weights are made of."""

from __future__ import annotations

import numpy as np
import pytest
from helpers_core import ISAS, assert_close, assert_same
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgru import ops

sizes = st.sampled_from([0, 1, 2, 7, 8, 15, 16, 17, 33, 111, 112, 113, 225])
widths = st.sampled_from([1, 2, 3, 7, 8, 9, 16, 17, 31, 48, 50])


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@given(rows=sizes, m=widths, n=widths, isa=st.sampled_from(ISAS), threads=st.sampled_from([1, 2, 3]))
@settings(max_examples=60, deadline=None)
def test_outer_sum_is_the_product(rows: int, m: int, n: int, isa: str, threads: int) -> None:
    a, b = normal(rows, m), normal(rows, n, seed=1)
    found = ops.outer_sum(a, b, num_threads=threads, _isa=isa)
    assert found.flags.c_contiguous
    right = a.astype(np.float64).T @ b.astype(np.float64)
    assert_close(found, right, 2e-7 * max(1, rows), 1e-5)
    assert_close(ops.column_sums(a, _isa=isa), a.sum(axis=0, dtype=np.float64), 2e-7 * max(1, rows), 1e-5)


def test_leading_axes_are_rows() -> None:
    a, b = normal(3, 5, 4), normal(3, 5, 6, seed=1)
    assert_same(ops.outer_sum(a, b), ops.outer_sum(a.reshape(15, 4), b.reshape(15, 6)), "rows")
    assert_same(ops.column_sums(a), ops.column_sums(a.reshape(15, 4)), "rows")
    strided = np.ascontiguousarray(a.swapaxes(0, 1)).swapaxes(0, 1)
    assert_same(ops.outer_sum(strided, b), ops.outer_sum(a, b), "strides")


@pytest.mark.parametrize("isa", ISAS)
def test_same_bits_for_any_number_of_threads_and_instruction_set(isa: str) -> None:
    a, b = normal(500, 130), normal(500, 70, seed=1)  # enough work for several threads
    one = ops.outer_sum(a, b, num_threads=1)
    for threads in (1, 2, 3, 16):
        assert_same(ops.outer_sum(a, b, num_threads=threads, _isa=isa), one, f"{isa}, {threads} threads")
    assert_same(ops.column_sums(a, _isa=isa), ops.column_sums(a), isa)


def test_dense_backward() -> None:
    x, weight, dy = normal(4, 3, 5), normal(7, 5, seed=1), normal(4, 3, 7, seed=2)
    dx, dweight, dbias = ops.dense_backward(dy, x, weight)
    wide = [v.astype(np.float64) for v in (x, weight, dy)]
    assert_close(dx, wide[2] @ wide[1], 3e-6, 1e-5)
    assert_close(dweight, np.einsum("ntm,ntk->mk", wide[2], wide[0]), 3e-6, 1e-5)
    assert_close(dbias, wide[2].sum(axis=(0, 1)), 3e-6, 1e-5)


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match=r"b: expected shape \(3, 'N'\), as a has, found \(4, 2\)"):
        ops.outer_sum(normal(3, 2), normal(4, 2))
    with pytest.raises(TypeError, match="a: expected real numbers"):
        ops.column_sums(np.array(["x"]))
    with pytest.raises(ValueError, match="num_threads"):
        ops.outer_sum(normal(3, 2), normal(3, 2), num_threads=0)
