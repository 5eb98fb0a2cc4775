"""Weights into panels: transposed arrays as rows that follow each other, whatever the sizes; and back."""

from __future__ import annotations

import numpy as np
from helpers_core import ISAS, assert_same
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgru import ops
from fastgru._core import packing

sizes = st.sampled_from([1, 2, 3, 7, 8, 9, 15, 16, 17, 24, 31, 33, 48])


@given(hidden=sizes, inputs=sizes, after=st.booleans(), isa=st.sampled_from(ISAS))
@settings(max_examples=60, deadline=None)
def test_a_transposed_matrix_is_packed_as_its_copy(hidden: int, inputs: int, after: bool, isa: str) -> None:
    rng = np.random.default_rng(0)
    ih, hh = (rng.standard_normal((n, 3 * hidden)).astype(np.float32) for n in (inputs, hidden))
    b, c = rng.standard_normal((2, 3 * hidden)).astype(np.float32)
    packed = ops.pack_gru(ih.T, hh.T, b, c, reset_after=after, _isa=isa)
    copied = ops.pack_gru(ih.T.copy(), hh.T.copy(), b, c, reset_after=after, _isa=isa)
    for mine, theirs in zip(packed.weights(), (ih.T, hh.T), strict=True):
        assert_same(mine, theirs, "unpacked")
    x = rng.standard_normal((3, 4, inputs)).astype(np.float32)
    assert_same(ops.gru(x, packed)[0], ops.gru(x, copied)[0], "scored")
    dense = [ops.dense(x, ops.pack_dense(w, b, _isa=isa)) for w in (ih.T, ih.T.copy())]
    assert_same(*dense, "dense")


@given(rows=sizes, columns=sizes, lay=st.sampled_from("CF"))
@settings(max_examples=40, deadline=None)
def test_transposed_is_what_numpy_copies(rows: int, columns: int, lay: str) -> None:
    a = np.array(np.random.default_rng(1).random((rows, columns)), np.float32, order=lay)  # type: ignore[call-overload]
    found = packing.transposed(a)
    assert found.flags.c_contiguous
    assert_same(found, a.T, "transposed")
