"""Elementwise functions: sigmoid and tanh over the floats themselves, the others against the reference.

By default every 64th run of 16384 neighbouring floats is tried; FASTGRU_EXHAUSTIVE=1 tries every float in ±100.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from helpers_core import ACTIVATIONS, ISAS, OTHER_ISAS, assert_close, assert_same
from numpy.typing import NDArray

from fastgru import ops, reference

F32 = NDArray[np.float32]
EXHAUSTIVE = os.environ.get("FASTGRU_EXHAUSTIVE", "") == "1"
RUN = 1 << 20 if EXHAUSTIVE else 1 << 14
BITS_OF_100 = int(np.float32(100).view(np.uint32))
TINY = np.finfo(np.float32).tiny  # the smallest normal number


def runs(limit: int = BITS_OF_100) -> Iterator[F32]:
    """Neighbouring floats from 0 up to the one with bits `limit`; each run also holds the next one's first."""
    for first in range(0, limit + 1, 1 << 20):
        yield np.arange(first, min(first + RUN + 1, limit + 1), dtype=np.uint32).view(np.float32)
    yield np.arange(limit - RUN, limit + 1, dtype=np.uint32).view(np.float32)


def near(*centres: float) -> F32:
    """The 2¹⁵ floats around each of some numbers, where formulas change over: one run each."""
    bits = [np.arange(-(1 << 14), 1 << 14) + int(np.float32(c).view(np.uint32)) for c in centres]
    return np.concatenate(bits).astype(np.uint32).view(np.float32).reshape(len(centres), -1)


def check_sigmoid(x: F32) -> None:
    """One run of neighbouring floats of one sign, rising."""
    y = ops.activate(x, "sigmoid")
    exact = 1 / (1 + np.exp(-x.astype(np.float64)))
    error = np.abs(y - exact)
    worst = int(error.argmax())
    assert error[worst] <= 1.2e-7, f"sigmoid({x[worst]!r}): expected {exact[worst]}, found {y[worst]}"
    normal = exact >= TINY
    ulps = error[normal] / np.spacing(exact[normal].astype(np.float32))
    if ulps.size and ulps.max() > 4:
        i = int(ulps.argmax())
        raise AssertionError(
            f"sigmoid({x[normal][i]!r}): {ulps[i]:.1f} ulp off, expected {exact[normal][i]}, found {y[normal][i]}"
        )
    assert ((y >= 0) & (y <= 1)).all()
    falls = np.flatnonzero(np.diff(y) < 0)
    assert falls.size == 0, f"sigmoid falls {falls.size} times, first after {x[falls[0]]!r}"


def check_tanh(x: F32) -> None:
    """One run of neighbouring positive floats, rising."""
    y = ops.activate(x, "tanh")
    exact = np.tanh(x.astype(np.float64))
    error = np.abs(y - exact)
    worst = int(error.argmax())
    assert error[worst] <= 1.2e-7, f"tanh({x[worst]!r}): expected {exact[worst]}, found {y[worst]}"
    assert ((y >= 0) & (y <= 1)).all()
    falls = np.flatnonzero(np.diff(y) < 0)
    assert falls.size == 0, f"tanh falls {falls.size} times, first after {x[falls[0]]!r}"
    assert_same(ops.activate(-x, "tanh").view(np.uint32), (-y).view(np.uint32), "tanh is odd")


def test_sigmoid_right_and_never_falling() -> None:
    last = -1.0
    for x in runs():
        check_sigmoid(x)
        check_sigmoid(-x[::-1])
        if x[0] >= 0 and x[0] > last:
            last = float(x[0])
    assert last > 90
    for x in near(1.0, 17.3287, 16.6355, 87.33, 87.336545, 88.0, 0.34657359):
        check_sigmoid(x)
        check_sigmoid(-x[::-1])


def test_tanh_right_odd_and_never_falling() -> None:
    for x in runs():
        check_tanh(x)
    for x in near(9.25, 9.01, 0.17328680, 0.5, 1.0, 8.664, 1e-4):
        check_tanh(x)


def test_no_fall_between_the_runs() -> None:
    """A coarse comb over the whole range sees steps that lie between two runs."""
    x = np.arange(0, BITS_OF_100, 997, dtype=np.uint32).view(np.float32)
    x = np.concatenate([-x[::-1], x])
    for name in ("sigmoid", "tanh"):
        assert (np.diff(ops.activate(x, name)) >= 0).all()


@pytest.mark.parametrize("isa", ISAS)
def test_limits_and_nan(isa: str) -> None:
    x = np.array([np.inf, -np.inf, np.nan, 3e38, -3e38, 0.0, -0.0, 1e-45, -1e-45], np.float32)
    one, zero, nan = 1.0, 0.0, np.nan
    with np.errstate(all="raise"):
        sigmoid, tanh = ops.activate(x, "sigmoid", _isa=isa), ops.activate(x, "tanh", _isa=isa)
        hard, relu = ops.activate(x, "hard_sigmoid", _isa=isa), ops.activate(x, "relu", _isa=isa)
    assert_same(sigmoid, np.array([one, zero, nan, one, zero, 0.5, 0.5, 0.5, 0.5], np.float32))
    assert_same(tanh, np.array([one, -one, nan, one, -one, 0.0, -0.0, 1e-45, -1e-45], np.float32))
    assert np.signbit(tanh[6]) and not np.signbit(tanh[5])
    assert_same(hard, np.array([one, zero, nan, one, zero, 0.5, 0.5, 0.5, 0.5], np.float32))
    assert np.isnan(relu[2]) and (relu[[1, 4, 8]] == 0).all() and relu[0] == np.inf and relu[3] == np.float32(3e38)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_nan_in_nan_out(isa: str, activation: Any) -> None:
    """At each place of a vector, and in the tail."""
    for size in (1, 5, 16, 21):
        for at in range(size):
            x = np.linspace(-2, 2, size, dtype=np.float32)
            x[at] = np.nan
            y = ops.activate(x, activation, _isa=isa)
            assert np.array_equal(np.isnan(y), np.isnan(x))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_matches_reference(isa: str, activation: Any) -> None:
    rng = np.random.default_rng(5)
    for size in (0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 5000):
        x = (rng.standard_normal(size) * rng.choice([1e-3, 1, 30], size)).astype(np.float32)
        y = ops.activate(x, activation, _isa=isa)
        assert_close(y, reference.activate(x.astype(np.float64), activation), atol=1.3e-7, rtol=4e-7)


@pytest.mark.parametrize("isa", OTHER_ISAS)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_isas_agree(isa: str, activation: Any) -> None:
    """Random bit patterns: every exponent, subnormals, infinities and NaN among them."""
    rng = np.random.default_rng(6)
    anything = rng.integers(0, 2**32, 100_003, dtype=np.uint32).view(np.float32)
    usual = (rng.standard_normal(100_003) * 5).astype(np.float32)
    with np.errstate(all="ignore"):
        for x in (anything, usual):
            found, expected = ops.activate(x, activation, _isa=isa), ops.activate(x, activation, _isa="scalar")
            assert_same(found, expected, isa)
            assert np.array_equal(np.signbit(found), np.signbit(expected) | (np.isnan(found) & np.signbit(found)))


def test_the_popular_rational_tanh_would_fail() -> None:
    """The check bites: a 13/6 rational in float32 has millions of falling steps."""
    x = np.arange(int(np.float32(1).view(np.uint32)), int(np.float32(1).view(np.uint32)) + (1 << 18), dtype=np.uint32)
    x = x.view(np.float32)
    numerator = (-2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08)
    numerator += (1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03)
    denominator = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)
    square, p, q = x * x, np.zeros_like(x), np.zeros_like(x)
    for c in numerator:
        p = p * square + np.float32(c)
    for c in denominator:
        q = q * square + np.float32(c)
    assert (np.diff(x * p / q) < 0).any()


@pytest.mark.parametrize("activation", ["sigmoid", "relu", ("affine", 2.0, 1.0)], ids=str)
def test_shape_and_input_are_kept(activation: Any) -> None:
    x = np.arange(24.0).reshape(2, 3, 4)
    before = x.copy()
    flat = ops.activate(x.ravel(), activation)
    for view in (x, np.asfortranarray(x)):
        y = ops.activate(view, activation)
        assert y.dtype == np.float32 and y.flags.c_contiguous
        assert_same(y, flat.reshape(2, 3, 4))
    assert_same(ops.activate(x[::-1, ::2, ::-2], activation), flat.reshape(2, 3, 4)[::-1, ::2, ::-2].copy())
    assert ops.activate(3.0, activation).shape == ()
    assert ops.activate(np.zeros((0, 3)), activation).shape == (0, 3)
    assert np.array_equal(x, before)
