"""The permutations of gates, each against the equations written out, gate by gate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers_core import weights

from fastgru import gates, reference

I, H = 3, 4
RNG = np.random.default_rng(0)


def canonical(biases: str = "both") -> gates.Weights:
    w = weights(RNG, I, H, biases)
    return gates.Weights(*[None if a is None else a.astype(np.float64) for a in w.values()])


def block(name: str, shape: tuple[int, ...]) -> Any:
    """A recognisable block: no two gates, kinds or elements share a value."""
    start = {"r": 100, "z": 200, "n": 300}[name[-1]] * {"W": 1, "U": 10, "b": 100, "c": 1000}[name[0]]
    return np.arange(start, start + np.prod(shape), dtype=float).reshape(shape)


W, U = {g: block("W" + g, (H, I)) for g in "rzn"}, {g: block("U" + g, (H, H)) for g in "rzn"}
B, C = {g: block("b" + g, (H,)) for g in "rzn"}, {g: block("c" + g, (H,)) for g in "rzn"}
EXPECTED = gates.Weights(*[np.concatenate([part[g] for g in "rzn"]) for part in (W, U, B, C)])


def assert_weights(found: gates.Weights, expected: gates.Weights) -> None:
    for name in gates.Weights._fields:
        a, b = getattr(found, name), getattr(expected, name)
        assert (a is None) == (b is None), name
        assert a is None or np.array_equal(a, b), name


def test_keras_order_is_z_r_n_and_transposed() -> None:
    kernel, recurrent = (np.concatenate([part[g].T for g in "zrn"], axis=1) for part in (W, U))
    two = np.stack([np.concatenate([part[g] for g in "zrn"]) for part in (B, C)])
    assert_weights(gates.from_keras(kernel, recurrent, two, reset_after=True), EXPECTED)
    assert_weights(gates.from_keras(kernel, recurrent, two[0], reset_after=False), EXPECTED._replace(bias_hh=None))
    assert_weights(
        gates.from_keras(kernel, recurrent, None, reset_after=True), EXPECTED._replace(bias_ih=None, bias_hh=None)
    )


@pytest.mark.parametrize("reset_after", [True, False])
def test_a_bias_that_contradicts_reset_after_is_refused(reset_after: bool) -> None:
    kernel, recurrent = np.zeros((I, 3 * H)), np.zeros((H, 3 * H))
    for shape in ((3 * H,) if reset_after else (2, 3 * H), (6 * H,), (3 * H + 1,), (2, 2), (1, 3 * H)):
        with pytest.raises(ValueError, match=f"^bias: expected .* for reset_after={reset_after}, found"):
            gates.from_keras(kernel, recurrent, np.zeros(shape), reset_after=reset_after)


@pytest.mark.parametrize("biases", ["none", "ih", "hh", "both"])
@pytest.mark.parametrize("reset_after", [True, False])
def test_to_keras_inverts_from_keras(biases: str, reset_after: bool) -> None:
    w = canonical(biases)
    kernel, recurrent, bias = gates.to_keras(w, reset_after=reset_after)
    back = gates.from_keras(kernel, recurrent, bias, reset_after=reset_after)
    assert np.array_equal(back.weight_ih, w.weight_ih) and np.array_equal(back.weight_hh, w.weight_hh)
    x = RNG.standard_normal((2, 5, I))
    for found, expected in zip(
        reference.gru(x, *back, reset_after=reset_after), reference.gru(x, *w, reset_after=reset_after), strict=True
    ):
        assert np.allclose(found, expected, atol=1e-15)
    assert (bias is None) == (biases == "none")


@pytest.mark.parametrize("biases", ["none", "ih", "hh", "both"])
def test_onnx_order_is_z_r_n_with_biases_end_to_end(biases: str) -> None:
    given = {"none": (False, False), "ih": (True, False), "hh": (False, True), "both": (True, True)}[biases]
    own = [bias if has else None for bias, has in zip(EXPECTED[2:], given, strict=True)]
    w, r, b = gates.to_onnx(gates.Weights(EXPECTED.weight_ih, EXPECTED.weight_hh, *own))
    assert np.array_equal(w, np.concatenate([W[g] for g in "zrn"]))
    assert np.array_equal(r, np.concatenate([U[g] for g in "zrn"]))
    expected = [part[g] if has else np.zeros(H) for part, has in zip((B, C), given, strict=True) for g in "zrn"]
    assert (b is None) == (biases == "none")
    assert b is None or np.array_equal(b, np.concatenate(expected))


def test_cudnn_blocks_are_memory_not_matrices() -> None:
    """Each gate's (I, H) kernel block holds W_g (H, I) row after row; recurrent blocks are U_g as it is."""
    kernel = np.concatenate([W[g].reshape(I, H) for g in "zrn"], axis=1)
    recurrent = np.concatenate([U[g] for g in "zrn"], axis=1)
    bias = np.concatenate([B[g] for g in "zrn"] + [C[g] for g in "zrn"])
    assert_weights(gates.from_cudnn_gru(kernel, recurrent, bias), EXPECTED)
    assert_weights(gates.from_cudnn_gru(np.asfortranarray(kernel), recurrent[:, :], bias), EXPECTED)
    with pytest.raises(ValueError, match=r"^bias: expected \(24,\) for CuDNNGRU, found \(12,\)$"):
        gates.from_cudnn_gru(kernel, recurrent, bias[:12])


@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("recurrent", ["sigmoid", ("hard_sigmoid", 0.2, 0.5), ("hard_sigmoid", 1 / 6, 0.5)])
def test_negating_the_update_gate_changes_the_convention(reset_after: bool, recurrent: Any) -> None:
    w = canonical()
    x, h0 = RNG.standard_normal((3, 6, I)) * 2, RNG.standard_normal((3, H))
    variant = {"reset_after": reset_after, "recurrent_activation": recurrent}
    old = reference.gru(x, *gates.negate_update(w), h0, **variant)
    new = reference.gru(x, *w, h0, update_gate="new", **variant)
    for found, expected in zip(old, new, strict=True):
        assert np.allclose(found, expected, atol=1e-14)


@pytest.mark.parametrize("biases", ["none", "ih", "hh", "both"])
def test_negating_twice_is_nothing_and_touches_z_alone(biases: str) -> None:
    w = canonical(biases)
    once = gates.negate_update(w)
    assert_weights(gates.negate_update(once), w)
    for before, after in zip(w, once, strict=True):
        if before is not None and after is not None:
            assert np.array_equal(after[:H], before[:H]) and np.array_equal(after[2 * H :], before[2 * H :])
            assert np.array_equal(after[H : 2 * H], -before[H : 2 * H])


def test_which_activations_have_a_mirror() -> None:
    """By the definition: σ(-a) = 1 - σ(a)."""
    a = np.linspace(-4, 4, 101)
    for activation in (
        ("sigmoid", 0.0, 0.0),
        ("hard_sigmoid", 0.2, 0.5),
        ("hard_sigmoid", 0.2, 0.4),
        ("tanh", 0.0, 0.0),
        ("relu", 0.0, 0.0),
        ("linear", 0.0, 0.0),
        ("softsign", 0.0, 0.0),
        ("softplus", 0.0, 0.0),
    ):
        mirrored = np.allclose(reference.activate(-a, activation), 1 - reference.activate(a, activation))
        assert gates.has_mirror(activation) == mirrored, activation
