"""What the tests of layers and models share: Keras' RNN loop in float64, in Keras' weight layout.

Written from keras/src/layers/rnn/gru.py and the TensorFlow backend's ``rnn``, without gates.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray
ROWS, STEPS, WIDTH, UNITS = 4, 6, 3, 5

FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": np.tanh,
    "sigmoid": lambda v: 1 / (1 + np.exp(-v)),
    "relu": lambda v: np.maximum(v, 0),
    "softsign": lambda v: v / (1 + abs(v)),
    "linear": lambda v: v,
    "hard_sigmoid": lambda v: np.clip(v / 6 + 0.5, 0, 1),
}


def weights(units: int = UNITS, width: int = WIDTH, reset_after: bool = True, seed: int = 0) -> list[Array]:
    """kernel, recurrent_kernel, bias as Keras stores them."""
    rng = np.random.default_rng(seed)
    bias = (2, 3 * units) if reset_after else (3 * units,)
    return [(0.4 * rng.standard_normal(s)).astype(np.float32) for s in ((width, 3 * units), (units, 3 * units), bias)]


def step(
    x: Array, h: Array, w: list[Array], reset_after: bool, activation: str = "tanh", recurrent: str = "sigmoid"
) -> Array:
    kernel, recurrent_kernel, bias = (v.astype(np.float64) for v in w)
    act, gate = FUNCTIONS[activation], FUNCTIONS[recurrent]
    b, c = (bias[0], bias[1]) if reset_after else (bias, np.zeros(bias.shape))
    xz, xr, xn = np.split(x @ kernel + b, 3, axis=-1)
    uz, ur, un = np.split(recurrent_kernel, 3, axis=-1)
    cz, cr, cn = np.split(c, 3)
    z, r = gate(xz + h @ uz + cz), gate(xr + h @ ur + cr)
    n = act(xn + r * (h @ un + cn)) if reset_after else act(xn + (r * h) @ un)
    return z * h + (1 - z) * n


def run(
    x: Array,
    cells: list[tuple[list[Array], dict[str, Any]]],
    mask: Array | None = None,
    h0: list[Array] | None = None,
    go_backwards: bool = False,
    zero_output: bool = False,
) -> tuple[Array, list[Array]]:
    """Outputs (N, T, H) in processing order, and the final state of every cell."""
    x = np.asarray(x, np.float64)
    n, t, _ = x.shape
    states = [np.zeros((n, w[0].shape[1] // 3)) for w, _ in cells] if h0 is None else list(h0)
    before = np.zeros((n, cells[-1][0][0].shape[1] // 3))
    outputs = []
    for i in reversed(range(t)) if go_backwards else range(t):
        value, new = x[:, i], []
        for (w, kind), h in zip(cells, states, strict=True):
            value = step(value, h, w, **kind)
            new.append(value)
        if mask is not None:
            valid = mask[:, i, None]
            states = [np.where(valid, a, b) for a, b in zip(new, states, strict=True)]
            before = np.where(valid, value, 0 if zero_output else before)
        else:
            states, before = new, value
        outputs.append(before)
    return np.stack(outputs, axis=1), states


def mask_of(kind: str, rows: int = ROWS, steps: int = STEPS) -> Array | None:
    """(rows, steps) valid steps; each row of its own length."""
    t = np.arange(steps)
    lengths = np.array([steps, 4, 1, 2])[:rows, None]
    if kind == "right":
        return t < lengths
    if kind == "left":
        return t >= steps - lengths
    if kind == "middle":
        return (t < 1) | (t >= steps - lengths // 2)
    if kind == "alternating":
        return (t + np.arange(rows)[:, None]) % 2 == 0
    if kind == "all":
        valid = np.ones((rows, steps), bool)
        valid[1] = False
        return valid
    return None


MASKS = ("none", "right", "left", "middle", "alternating", "all")


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def close(found: Any, expected: Any, atol: float = 3e-6) -> None:
    found = np.asarray(found)
    assert found.dtype == np.float32
    assert found.shape == np.shape(expected), f"expected {np.shape(expected)}, found {found.shape}"
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=atol)
