"""What a GRU is, in NumPy, any float dtype: the specification that the kernels are tested against.

    r = σ(W_r x + b_r + U_r h + c_r)
    z = σ(W_z x + b_z + U_z h + c_z)
    n = φ(W_n x + b_n + r ⊙ (U_n h + c_n))     reset_after
    n = φ(W_n x + b_n + U_n (r ⊙ h) + c_n)     reset before
    h' = (1 - z) ⊙ n + z ⊙ h                   update_gate "old" (convention K: Cho 2014, PyTorch, Keras, ONNX)
    h' = (1 - z) ⊙ h + z ⊙ n                   update_gate "new" (convention C: Chung 2014)

Letters: N batch, T time, I input, H hidden. Readable and slow on purpose; nothing in the package computes with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def _expm1_negative(x: Array) -> Array:
    return np.expm1(np.minimum(x, 0))


ACTIVATIONS: dict[str, Callable[[Array, float, float], Array]] = {
    "linear": lambda x, a, b: x,
    "sigmoid": lambda x, a, b: 1 / (1 + np.exp(-x)),
    "tanh": lambda x, a, b: np.tanh(x),
    "hard_sigmoid": lambda x, a, b: np.clip(a * x + b, 0, 1),
    "relu": lambda x, a, b: np.maximum(x, 0),
    "softsign": lambda x, a, b: x / (1 + np.abs(x)),
    "elu": lambda x, a, b: np.where(x < 0, a * _expm1_negative(x), x),
    "selu": lambda x, a, b: 1.0507009873554805 * np.where(x < 0, 1.6732632423543772 * _expm1_negative(x), x),
    "softplus": lambda x, a, b: np.logaddexp(x, 0),
    "affine": lambda x, a, b: a * x + b,
    "leaky_relu": lambda x, a, b: np.where(x < 0, a * x, x),
    "thresholded_relu": lambda x, a, b: np.where(x <= a, 0, x),
    "scaled_tanh": lambda x, a, b: a * np.tanh(b * x),
}
DEFAULTS = {"hard_sigmoid": (0.2, 0.5), "elu": (1.0, 0.0), "leaky_relu": (0.01, 0.0)}


def activate(x: Array, activation: str | tuple[Any, ...]) -> Array:
    """An activation by name, or (name, alpha, beta)."""
    name, *given = (activation,) if isinstance(activation, str) else activation
    alpha, beta = [*given, *DEFAULTS.get(name, (0.0, 0.0))[len(given) :]]
    with np.errstate(over="ignore"):
        return ACTIVATIONS[name](x, alpha, beta)


def gru_cell(
    x: Array,
    h: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    *,
    reset_after: bool = True,
    update_gate: str = "old",
    activation: str | tuple[Any, ...] = "tanh",
    recurrent_activation: str | tuple[Any, ...] = "sigmoid",
) -> Array:
    """One step: x (N, I), h (N, H) -> h' (N, H)."""
    H = weight_hh.shape[1]
    b = np.zeros(3 * H, x.dtype) if bias_ih is None else bias_ih
    c = np.zeros(3 * H, x.dtype) if bias_hh is None else bias_hh
    x_r, x_z, x_n = np.split(x @ weight_ih.T + b, 3, axis=1)
    U_r, U_z, U_n = np.split(weight_hh, 3)
    c_r, c_z, c_n = np.split(c, 3)
    r = activate(x_r + h @ U_r.T + c_r, recurrent_activation)
    z = activate(x_z + h @ U_z.T + c_z, recurrent_activation)
    n = activate(x_n + (r * (h @ U_n.T + c_n) if reset_after else (r * h) @ U_n.T + c_n), activation)
    return (1 - z) * n + z * h if update_gate == "old" else (1 - z) * h + z * n


def gru(
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    h0: Array | None = None,
    *,
    lengths: Array | None = None,
    mask: Array | None = None,
    reverse: bool = False,
    padding: str = "zero",
    **variant: Any,
) -> tuple[Array, Array]:
    """A whole layer: x (N, T, I) -> y (N, T, H), h_n (N, H); `variant` as in `gru_cell`.

    Steps with a False mask (or at or beyond the row's length) leave the state alone. There y is 0 (padding "zero"), or
    the previous output in order of processing, 0 before the first (padding "keras").
    """
    N, T, _ = x.shape
    H = weight_hh.shape[1]
    h = np.zeros((N, H), x.dtype) if h0 is None else h0.copy()
    valid = np.ones((N, T), bool)
    if lengths is not None:
        valid = np.arange(T) < np.asarray(lengths)[:, None]
    if mask is not None:
        valid = np.asarray(mask, bool)
    y = np.zeros((N, T, H), x.dtype)
    previous = np.zeros((N, H), x.dtype)
    for t in reversed(range(T)) if reverse else range(T):
        now = valid[:, t, None]
        h = np.where(now, gru_cell(x[:, t], h, weight_ih, weight_hh, bias_ih, bias_hh, **variant), h)
        previous = np.where(now, h, previous if padding == "keras" else 0)
        y[:, t] = previous
    return y, h
