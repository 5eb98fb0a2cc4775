"""The checks themselves: what comes out is safe to hand to C, and no copy is made without need."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgru import checks


def safe(a: Any) -> bool:
    """What the kernels rely on: float32 in this machine's order, aligned, whole strides, last axis contiguous."""
    last = a.size == 0 or a.shape[-1] <= 1 or a.strides[-1] == 4  # NumPy gives empty arrays strides of 0
    return (
        type(a) is np.ndarray
        and a.dtype == np.float32
        and bool(a.dtype.isnative)
        and bool(a.flags.aligned)
        and all(s % 4 == 0 for s in a.strides)
        and last
    )


@st.composite
def views(draw: st.DrawFn) -> Any:
    """An array of three axes through some chain of views: any strides, offsets, byte orders."""
    dtype = draw(st.sampled_from(["<f4", ">f4", "<f8", "<f2", "<i4", ">i8", "?", "u1"]))
    shape = draw(st.tuples(*[st.integers(0, 5)] * 3))
    lead = draw(st.sampled_from([0, 1, 2, 4, 7]))  # bytes: not a multiple of the item is unaligned
    count = int(np.prod(shape))
    room = np.zeros(lead + count * np.dtype(dtype).itemsize, np.uint8)
    a = room[lead:].view(dtype)[:count].reshape(shape)
    a[...] = np.arange(count).reshape(shape) % 7
    a = a.transpose(draw(st.permutations([0, 1, 2])))
    steps = st.sampled_from([1, 2, -1, -2])
    a = a[:: draw(steps), :: draw(steps), :: draw(steps)]
    if draw(st.booleans()) and a.shape[1] > 0:
        a = np.broadcast_to(a[:, :1], a.shape)
    return a


@settings(deadline=None, max_examples=300, derandomize=True)
@given(views())
def test_float32_is_safe_and_equal_for_any_view(a: Any) -> None:
    b = checks.float32(a, "a", ("A", "B", "C"))
    assert safe(b) and b.shape == a.shape
    assert np.array_equal(b, a.astype(np.float32))


def test_float32_copies_only_where_it_must() -> None:
    x = np.zeros((6, 5, 8), np.float32)
    for view in (
        x,
        x[::2],
        x[:, ::-1],
        x[:, :, 2:5],
        x.transpose(1, 0, 2),
        x[:, :, :1],
        np.broadcast_to(x[:1], x.shape),
    ):
        assert checks.float32(view, "x", ("N", "T", "I")) is view
    for view in (x[:, :, ::2], x.transpose(0, 2, 1), x[:, :, ::-1], x.astype(float), x.astype(">f4")):
        assert not np.shares_memory(checks.float32(view, "x", ("N", "T", "I")), view)


def test_subclasses_become_plain_arrays() -> None:
    class Sub(np.ndarray):
        pass

    x = np.ones((2, 3), np.float32)
    for value in (x.view(Sub), x.view(np.memmap), x.view(np.matrix), np.ma.masked_array(x)):
        b = checks.float32(value, "x", (2, 3))
        assert type(b) is np.ndarray and np.shares_memory(b, x)


def test_bfloat16_is_read_as_numbers() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes (bfloat16 for NumPy) is not installed")
    a = np.array([1.5, -2.0, 3e38], ml_dtypes.bfloat16)
    assert np.array_equal(checks.float32(a, "a", (3,)), a.astype(np.float32))


def test_an_array_that_cannot_be_read_is_a_type_error() -> None:
    class Elsewhere:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            raise RuntimeError("on another device")

    class Exporter:
        def __dlpack__(self, **_: Any) -> Any:
            raise BufferError("on another device")

        def __dlpack_device__(self) -> Any:
            return (1, 0)

    for value in (Elsewhere(), Exporter()):
        with pytest.raises(TypeError, match="^w: can't be read as a NumPy array .*on another device"):
            checks.as_array(value, "w")


def test_shapes_are_named_in_errors() -> None:
    with pytest.raises(ValueError, match=r"^w: expected shape \(3, N\), found \(2, 5\)$"):
        checks.float32(np.zeros((2, 5)), "w", (3, "N"))
    with pytest.raises(ValueError, match=r"^w: expected shape \(4,\), found \(\)$"):
        checks.float32(1.0, "w", (4,))


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=6), st.integers(0, 8))
def test_offsets_that_pass_stay_inside_x(offsets: list[int], steps: int) -> None:
    """Whatever passes is 0 … steps and never falls: the kernels add these to pointers."""
    for given_offsets in (offsets, [0, *offsets, steps], [0, *sorted(o % (steps + 1) for o in offsets), steps]):
        try:
            found = checks.check_offsets(given_offsets, steps)
        except (ValueError, TypeError) as error:
            assert str(error).startswith("offsets: ")
        else:
            assert found.dtype == np.int64 and found.flags.c_contiguous
            assert found[0] == 0 and found[-1] == steps and all(a <= b for a, b in zip(found, found[1:], strict=False))


def test_offsets_that_overflow_do_not_pass() -> None:
    """Differences of these are all positive in int64."""
    overflowing = np.array([0, 2**63 - 1, -(2**63), -1, 4])
    with np.errstate(over="ignore"):
        assert (np.diff(overflowing) >= 0).all()
    with pytest.raises(ValueError, match="^offsets: "):
        checks.check_offsets(overflowing, 4)


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.integers(0, 6), st.integers(0, 7), st.integers(0, 2**32))
def test_a_mask_becomes_lengths_and_valid_steps(rows: int, steps: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scattered = rng.random((rows, steps)) < rng.choice([0.0, 0.3, 0.7, 1.0])
    right_padded = np.arange(steps) < rng.integers(0, steps + 1, rows)[:, None]
    for mask in (scattered, right_padded):
        lengths, valid = checks.check_mask(mask, rows, steps)
        if lengths is None:
            assert mask.all() and valid is None
            continue
        assert lengths.dtype == np.int64 and np.array_equal(lengths, mask.sum(axis=1))
        if valid is None:
            assert np.array_equal(mask, np.arange(steps) < lengths[:, None])
            continue
        assert valid.dtype == np.int64 and valid.shape == (rows, steps) and valid.flags.c_contiguous
        for row, n, steps_of_row in zip(mask, lengths, valid, strict=True):
            assert np.array_equal(steps_of_row[:n], np.flatnonzero(row))


def test_a_right_padded_mask_needs_no_list_of_steps() -> None:
    assert checks.check_mask(np.ones((2, 3), bool), 2, 3) == (None, None)
    assert checks.check_mask(np.array([[1, 1, 0], [0, 0, 0]]), 2, 3)[1] is None


@pytest.mark.parametrize("value", [[1, 2**63], [2**64 - 1], [1e300], [-1e300], [float("nan")], [0.5], [1 << 70]])
def test_whole_numbers_refuse_what_int64_cannot_hold(value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="^n: expected"):
        checks.whole_numbers(value, "n", ("N",))


def test_output_must_be_apart_and_plain() -> None:
    x = np.zeros((2, 3), np.float32)
    assert checks.output(x, "out", (2, 3), (None, np.zeros(3, np.float32))) is x
    unaligned = np.zeros(25, np.uint8)[1:].view(np.float32).reshape(2, 3)
    odd_rows = np.lib.stride_tricks.as_strided(np.zeros(40, np.uint8).view(np.float32), (2, 3), (14, 4))
    one_row = np.lib.stride_tricks.as_strided(np.zeros(3, np.float32), (2, 3), (0, 4))
    for bad in (unaligned, odd_rows, one_row, np.zeros((3, 2), np.float32).T):
        with pytest.raises(ValueError, match="^out: expected"):
            checks.output(bad, "out", (2, 3), ())
    with pytest.raises(ValueError, match="^out: shares memory with an input"):
        checks.output(x, "out", (2, 3), (x[1:],))


def test_an_empty_output_is_taken_whatever_its_strides() -> None:
    """NumPy gives views of empty arrays strides of 0."""
    for shape in ((0, 2, 8), (2, 0, 8), (0, 0, 8)):
        half = np.empty(shape, np.float32)[..., :4]
        assert checks.output(half, "out", half.shape, ()) is half
