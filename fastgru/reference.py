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


def _parts(activation: str | tuple[Any, ...]) -> tuple[str, float, float]:
    """Name, alpha and beta of an activation given by name or as (name, alpha, beta)."""
    name = activation if isinstance(activation, str) else str(activation[0])
    given = [] if isinstance(activation, str) else list(activation[1:])
    values = [*given, *DEFAULTS.get(name, (0.0, 0.0))[len(given) :]]
    return name, values[0], values[1]


def activate(x: Array, activation: str | tuple[Any, ...]) -> Array:
    """An activation by name, or (name, alpha, beta)."""
    name, alpha, beta = _parts(activation)
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
    new_h: Array = (1 - z) * n + z * h if update_gate == "old" else (1 - z) * h + z * n
    return new_h


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


# --- backward ---------------------------------------------------------------------------------------------------------
#
# With d = ∂L/∂h' and the pre-activations a_r, a_z, a_n (r = σ(a_r) and so on), convention K:
#
#   dn = d ⊙ (1 - z)          dz = d ⊙ (h - n)          dh ← d ⊙ z
#   da_n = dn ⊙ φ'(a_n)       da_z = dz ⊙ σ'(a_z)
#   reset after:   q = U_n h + c_n, dq = da_n ⊙ r, dr = da_n ⊙ q
#                  dh += dr' U_r + da_z U_z + dq U_n              with dr' = da_r = dr ⊙ σ'(a_r)
#   reset before:  q = r ⊙ h, dq = da_n U_n, dr = dq ⊙ h, dh += dq ⊙ r + da_r U_r + da_z U_z
#   dx = da_r W_r + da_z W_z + da_n W_n
#   dW = Σ da ⊗ x, db = Σ da;  dU_r = Σ da_r ⊗ h, dU_z = Σ da_z ⊗ h, dU_n = Σ dq ⊗ h (after) or Σ da_n ⊗ q (before);
#   dc_r = Σ da_r, dc_z = Σ da_z, dc_n = Σ dq (after) or Σ da_n (before).
#
# Convention C is K with z ← 1 - z: dn = d ⊙ z, dz = d ⊙ (n - h), dh ← d ⊙ (1 - z).

SLOPES: dict[str, Callable[[Array, float, float], Array]] = {
    "linear": lambda x, a, b: np.ones_like(x),
    "sigmoid": lambda x, a, b: 1 / (1 + np.exp(-x)) / (1 + np.exp(x)),
    "tanh": lambda x, a, b: 1 - np.tanh(x) ** 2,
    "hard_sigmoid": lambda x, a, b: np.where((a * x + b > 0) & (a * x + b < 1), a, 0),
    "relu": lambda x, a, b: np.where(x > 0, 1, 0),
    "softsign": lambda x, a, b: 1 / (1 + np.abs(x)) ** 2,
    "elu": lambda x, a, b: np.where(x < 0, a * np.exp(np.minimum(x, 0)), 1),
    "selu": lambda x, a, b: 1.0507009873554805 * np.where(x < 0, 1.6732632423543772 * np.exp(np.minimum(x, 0)), 1),
    "softplus": lambda x, a, b: 1 / (1 + np.exp(-x)),
    "affine": lambda x, a, b: np.full_like(x, a),
    "leaky_relu": lambda x, a, b: np.where(x > 0, 1, a),
    "thresholded_relu": lambda x, a, b: np.where(x <= a, 0, 1),
    "scaled_tanh": lambda x, a, b: a * b * (1 - np.tanh(b * x) ** 2),
}


def slope(x: Array, activation: str | tuple[Any, ...]) -> Array:
    """The derivative of `activate`."""
    name, alpha, beta = _parts(activation)
    with np.errstate(over="ignore"):
        derivative: Array = SLOPES[name](x, alpha, beta).astype(x.dtype)
    return derivative


def gru_cell_backward(
    d: Array,
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
) -> tuple[Array, Array, Array, Array]:
    """Gradients of one step given d = ∂L/∂h' (N, H): dx (N, I), dh (N, H), [da_r da_z da_n] (N, 3H) for the input's
    side, and [da_r da_z dq] (after) or [da_r da_z da_n] (before) (N, 3H) for the recurrent side."""
    H = weight_hh.shape[1]
    b = np.zeros(3 * H, x.dtype) if bias_ih is None else bias_ih
    c = np.zeros(3 * H, x.dtype) if bias_hh is None else bias_hh
    x_r, x_z, x_n = np.split(x @ weight_ih.T + b, 3, axis=1)
    U_r, U_z, U_n = np.split(weight_hh, 3)
    c_r, c_z, c_n = np.split(c, 3)
    a_r, a_z = x_r + h @ U_r.T + c_r, x_z + h @ U_z.T + c_z
    r, z = activate(a_r, recurrent_activation), activate(a_z, recurrent_activation)
    q = h @ U_n.T + c_n if reset_after else r * h
    a_n = x_n + (r * q if reset_after else q @ U_n.T + c_n)
    n = activate(a_n, activation)

    if update_gate == "old":
        dn, dz, dh = d * (1 - z), d * (h - n), d * z
    else:
        dn, dz, dh = d * z, d * (n - h), d * (1 - z)
    da_n, da_z = dn * slope(a_n, activation), dz * slope(a_z, recurrent_activation)
    if reset_after:
        dq, dr = da_n * r, da_n * q
        dh = dh + dq @ U_n
    else:
        dq = da_n @ U_n
        dr = dq * h
        dh = dh + dq * r
    da_r = dr * slope(a_r, recurrent_activation)
    dh = dh + da_r @ U_r + da_z @ U_z
    inputs = np.concatenate([da_r, da_z, da_n], axis=1)
    recurrent = np.concatenate([da_r, da_z, dq if reset_after else da_n], axis=1)
    return inputs @ weight_ih, dh, inputs, recurrent


def gru_backward(
    dy: Array,
    dh_n: Array | None,
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
) -> tuple[Array, Array, Array, Array, Array, Array]:
    """Gradients of Σ dy ⊙ y + Σ dh_n ⊙ h_n of `gru`: dx, dh0, dweight_ih, dweight_hh, dbias_ih, dbias_hh."""
    N, T, _ = x.shape
    H = weight_hh.shape[1]
    weights = (weight_ih, weight_hh, bias_ih, bias_hh)
    valid = np.ones((N, T), bool)
    if lengths is not None:
        valid = np.arange(T) < np.asarray(lengths)[:, None]
    if mask is not None:
        valid = np.asarray(mask, bool)
    order = list(reversed(range(T))) if reverse else list(range(T))
    states = [np.zeros((N, H), x.dtype) if h0 is None else h0]
    for t in order:
        states.append(np.where(valid[:, t, None], gru_cell(x[:, t], states[-1], *weights, **variant), states[-1]))
    dx, d = np.zeros_like(x), np.zeros((N, H), x.dtype) if dh_n is None else dh_n.copy()
    dw_ih, dw_hh = np.zeros_like(weight_ih), np.zeros_like(weight_hh)
    db_ih, db_hh = np.zeros(3 * H, x.dtype), np.zeros(3 * H, x.dtype)
    repeated = np.zeros((N, H), x.dtype)  # dy of the padded steps that repeat the valid output before them
    for t, h in zip(reversed(order), reversed(states[:-1]), strict=True):
        now = valid[:, t, None]
        repeated = repeated + dy[:, t] if padding == "keras" else np.where(now, dy[:, t], 0)
        step, dh, inputs, recurrent = gru_cell_backward(np.where(now, d + repeated, 0), x[:, t], h, *weights, **variant)
        dx[:, t] = step
        d = np.where(now, dh, d)
        repeated = np.where(now, 0, repeated)
        dw_ih += inputs.T @ x[:, t]
        dw_hh[: 2 * H] += recurrent[:, : 2 * H].T @ h
        reset_after = variant.get("reset_after", True)
        if reset_after:
            dw_hh[2 * H :] += recurrent[:, 2 * H :].T @ h
        else:
            r = activate(
                x[:, t] @ weight_ih[:H].T
                + (0 if bias_ih is None else bias_ih[:H])
                + h @ weight_hh[:H].T
                + (0 if bias_hh is None else bias_hh[:H]),
                variant.get("recurrent_activation", "sigmoid"),
            )
            dw_hh[2 * H :] += recurrent[:, 2 * H :].T @ (r * h)
        db_ih += inputs.sum(axis=0)
        db_hh += recurrent.sum(axis=0)
    return dx, d, dw_ih, dw_hh, db_ih, db_hh
