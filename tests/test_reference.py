"""The reference's backward pass against central differences of its forward pass, in float64, by name."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from helpers_core import ACTIVATIONS, assert_close
from helpers_gradients import NAMES, STEP, WEIGHTS, differences, kinks, nearest_kink

from fastgru import reference

N, T, I, H = 3, 4, 2, 2
ATOL, RTOL = 1e-8, 1e-7
LENGTHS = np.array([4, 0, 2])
MASK = np.array([[0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 0, 1]], bool)


def inputs(seed: int, biases: str = "both", h0: bool = True) -> dict[str, Any]:
    """x, weights and h0: None where a call has none."""
    rng = np.random.default_rng(seed)
    a: dict[str, Any] = {
        "x": rng.standard_normal((N, T, I)),
        "weight_ih": rng.uniform(-1, 1, (3 * H, I)),
        "weight_hh": rng.uniform(-1, 1, (3 * H, H)),
        "bias_ih": rng.uniform(-1, 1, 3 * H),
        "bias_hh": rng.uniform(-1, 1, 3 * H),
        "h0": rng.uniform(-1, 1, (N, H)),
    }
    absent = {"both": (), "ih": ("bias_hh",), "hh": ("bias_ih",), "none": ("bias_ih", "bias_hh")}[biases]
    return {name: None if name in absent or (name == "h0" and not h0) else v for name, v in a.items()}


def both_ways(a: dict[str, Any], dh_n: bool = True, **call: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Gradients of Σ dy ⊙ y + Σ dh_n ⊙ h_n by name: of the backward pass, and of central differences."""
    rng = np.random.default_rng(5)
    dy, d = rng.standard_normal((*a["x"].shape[:2], H)), rng.standard_normal((N, H)) if dh_n else None

    def loss() -> float:
        y, h_n = reference.gru(**a, **call)
        return float((dy * y).sum() + (0 if d is None else (d * h_n).sum()))

    with nearest_kink() as distances:
        found = dict(zip(NAMES, reference.gru_backward(dy, d, **a, **call), strict=True))
    assert distances[-1] > 20 * STEP, "the case stands at a kink: choose another seed"
    names = [name for name, v in a.items() if v is not None]
    return {f"d{n}": found[f"d{n}"] for n in names}, {f"d{n}": differences(loss, a[n]) for n in names}


def assert_all_close(found: dict[str, Any], right: dict[str, Any]) -> None:
    for name, gradient in right.items():
        assert gradient.any(), f"{name}: nothing to compare"
        try:
            assert_close(found[name], gradient, ATOL, RTOL)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_slope(activation: Any) -> None:
    x = np.linspace(-6, 6, 401) + 1e-3
    for kink in kinks(activation):
        x = x[np.abs(x - kink) > 2 * STEP]
    assert len(x) > 395
    up, down = (reference.activate(x + s, activation) for s in (STEP, -STEP))
    assert_close(reference.slope(x, activation), (up - down) / (2 * STEP), 1e-9, 1e-8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_slope_far_out(activation: Any, dtype: Any) -> None:
    """Finite and the same as nearer by, without a warning, in x's dtype."""
    far, near = (reference.slope(np.array([-s, s], dtype), activation) for s in (1e30, 1e3))
    assert far.dtype == dtype and np.isfinite(far).all()
    assert_close(far, near, 2e-6)  # softsign has 1e-6 left there


@pytest.mark.parametrize("place", ["activation", "recurrent_activation"])
@pytest.mark.parametrize("update_gate", ["old", "new"])
@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_every_activation_in_either_place(activation: Any, reset_after: bool, update_gate: str, place: str) -> None:
    variant = {"reset_after": reset_after, "update_gate": update_gate, place: activation}
    a = inputs(1)
    a["x"] = a["x"][:, :2].copy()  # two steps meet every path: the second starts from a computed state
    assert_all_close(*both_ways(a, **variant))


@pytest.mark.parametrize("padding", ["zero", "keras"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("ragged", ["none", "lengths", "mask"])
@pytest.mark.parametrize("reset_after", [True, False])
def test_every_kind_of_call(reset_after: bool, ragged: str, reverse: bool, padding: str) -> None:
    call = {"none": {}, "lengths": {"lengths": LENGTHS}, "mask": {"mask": MASK}}[ragged]
    for dh_n, update_gate in ((True, "old"), (False, "new")):
        variant = {"reset_after": reset_after, "update_gate": update_gate}
        assert_all_close(*both_ways(inputs(2), dh_n, reverse=reverse, padding=padding, **call, **variant))


@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("h0", [False, True])
@pytest.mark.parametrize("biases", ["none", "ih", "hh", "both"])
def test_absent_inputs(biases: str, h0: bool, reset_after: bool) -> None:
    assert_all_close(*both_ways(inputs(3, biases, h0), reset_after=reset_after))


@pytest.mark.parametrize("reset_after, update_gate", list(itertools.product([True, False], ["old", "new"])))
def test_one_step(reset_after: bool, update_gate: str) -> None:
    """gru_cell_backward by itself; the gates' gradients of either side are those of that side's bias."""
    a = inputs(4)
    x, h, w = a["x"][:, 0].copy(), a["h0"], [a[name] for name in WEIGHTS]
    d = np.random.default_rng(6).standard_normal((N, H))
    variant = {"reset_after": reset_after, "update_gate": update_gate}

    def loss() -> float:
        return float((d * reference.gru_cell(x, h, *w, **variant)).sum())

    dx, dh, input_side, recurrent_side = reference.gru_cell_backward(d, x, h, *w, **variant)
    assert_close(dx, differences(loss, x), ATOL, RTOL)
    assert_close(dh, differences(loss, h), ATOL, RTOL)
    assert_close(input_side.sum(axis=0), differences(loss, w[2]), ATOL, RTOL)
    assert_close(recurrent_side.sum(axis=0), differences(loss, w[3]), ATOL, RTOL)


def test_padded_steps_take_no_part() -> None:
    a, rng = inputs(5), np.random.default_rng(7)
    dy, dh_n = rng.standard_normal((N, T, H)), rng.standard_normal((N, H))
    expected = reference.gru_backward(dy, dh_n, **a, mask=MASK)
    a["x"][~MASK], dy[~MASK] = 1e3, np.nan
    found = reference.gru_backward(dy, dh_n, **a, mask=MASK)
    for name, f, e in zip(NAMES, found, expected, strict=True):
        assert np.array_equal(f, e), name
    assert not found[0][~MASK].any()
    assert np.array_equal(found[1][1], dh_n[1])  # a row without steps hands its gradient through


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_and_shapes_follow_the_inputs(dtype: Any) -> None:
    a = {name: v.astype(dtype) for name, v in inputs(6).items()}
    for reset_after in (True, False):
        found = reference.gru_backward(np.ones((N, T, H), dtype), None, **a, reset_after=reset_after)
        for gradient, name in zip(found, ("x", "h0", *WEIGHTS), strict=True):
            assert gradient.shape == a[name].shape and gradient.dtype == dtype, name


@pytest.mark.parametrize("fault", ["zeros", "gates swapped", "sign", "recurrent bias of n", "one element"])
def test_the_comparison_bites(fault: str) -> None:
    found, right = both_ways(inputs(7))
    assert_all_close(found, right)
    g = found["dbias_hh"] if fault == "recurrent bias of n" else found["dweight_hh"]
    if fault == "zeros":
        g[...] = 0
    elif fault == "gates swapped":
        g[:H], g[H : 2 * H] = g[H : 2 * H].copy(), g[:H].copy()
    elif fault == "sign":
        g[H : 2 * H] *= -1
    elif fault == "recurrent bias of n":
        g[2 * H :] = found["dbias_ih"][2 * H :]
    else:
        g[0, 0] *= 1 + 1e-5
    with pytest.raises(AssertionError, match="dbias_hh" if fault == "recurrent bias of n" else "dweight_hh"):
        assert_all_close(found, right)
