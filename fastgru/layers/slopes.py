"""Activation functions with their way back: each takes x and gives y and a function from dy to dx.

Where a function has a kink, its slope there is what TensorFlow takes: that of the flat or lower side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import ops
from .training_step import LogitGradient

Array = NDArray[Any]
#: x -> y, and dy -> dx
Trained = Callable[[Array], tuple[Array, Callable[[Array], Array]]]
#: (dy, x, y, α, β) -> dx
_Slope = Callable[[Array, Array, Array, float, float], Array]

_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772  # Klambauer et al., 2017


def _sigmoid(x: Array) -> Array:
    return ops.activate(x, "sigmoid")


def _tanh(x: Array) -> Array:
    return ops.activate(x, "tanh")


def _where(condition: Array, a: Any, b: Any = 0.0) -> Array:
    return np.where(condition, a, np.float32(b) if isinstance(b, float) else b)


def _silu(dy: Array, x: Array, y: Array, a: float, b: float) -> Array:
    s = _sigmoid(x)
    return np.asarray(dy * (s + y * (1 - s)))


def _gelu(dy: Array, x: Array, y: Array, a: float, b: float) -> Array:
    """Φ(x) + x φ(x), with Φ(x) = y / x away from 0."""
    small = np.abs(x) < 1e-3
    phi = np.float32(1 / np.sqrt(2 * np.pi)) * np.exp(-0.5 * x * x)
    cumulative = np.where(small, np.float32(0.5) + x * phi, y / np.where(small, np.float32(1), x))
    return dy * (cumulative + x * phi)


def _mish(dy: Array, x: Array, y: Array, a: float, b: float) -> Array:
    t = _tanh(ops.activate(x, "softplus"))
    return np.asarray(dy * (t + x * _sigmoid(x) * (1 - t * t)))


def _hard_silu(dy: Array, x: Array, y: Array, a: float, b: float) -> Array:
    return dy * (np.clip(x / 6 + 0.5, 0, 1) + _where(np.abs(x) < 3, x / 6))


def _scaled_tanh(dy: Array, x: Array, y: Array, a: float, b: float) -> Array:
    t = _tanh(x * np.float32(b))
    return np.asarray(dy * np.float32(a * b) * (1 - t * t))


def _square(x: Array) -> Array:
    return x * x


#: By the names that `activations.function` knows.
SLOPES: dict[str, _Slope] = {
    "linear": lambda dy, x, y, a, b: dy,
    "sigmoid": lambda dy, x, y, a, b: dy * y * (1 - y),
    "tanh": lambda dy, x, y, a, b: dy * (1 - y * y),
    "hard_sigmoid": lambda dy, x, y, a, b: _where((y > 0) & (y < 1), dy * np.float32(a)),
    "relu": lambda dy, x, y, a, b: _where(y > 0, dy),
    "softsign": lambda dy, x, y, a, b: dy * _square(1 - np.abs(y)),
    "elu": lambda dy, x, y, a, b: _where(x > 0, dy, dy * (y + np.float32(a))),
    "selu": lambda dy, x, y, a, b: (
        dy * _where(x > 0, np.float32(_SELU_SCALE), y + np.float32(_SELU_SCALE * _SELU_ALPHA))
    ),
    "softplus": lambda dy, x, y, a, b: dy * _sigmoid(x),
    "affine": lambda dy, x, y, a, b: dy * np.float32(a),
    "leaky_relu": lambda dy, x, y, a, b: _where(x > 0, dy, dy * np.float32(a)),
    "thresholded_relu": lambda dy, x, y, a, b: _where(x > a, dy),
    "scaled_tanh": _scaled_tanh,
    "softmax": lambda dy, x, y, a, b: softmax_back(dy, y),
    "log_softmax": lambda dy, x, y, a, b: dy - np.exp(y) * dy.sum(axis=-1, keepdims=True),
    "exponential": lambda dy, x, y, a, b: dy * y,
    "silu": _silu,
    "swish": _silu,
    "gelu": _gelu,
    "relu6": lambda dy, x, y, a, b: _where((x > 0) & (x < 6), dy),
    "mish": _mish,
    "hard_silu": _hard_silu,
    "hard_swish": _hard_silu,
    "log_sigmoid": lambda dy, x, y, a, b: dy * _sigmoid(-x),
    "hard_tanh": lambda dy, x, y, a, b: _where(np.abs(x) < 1, dy),
    "tanh_shrink": lambda dy, x, y, a, b: dy * _square(x - y),
    "celu": lambda dy, x, y, a, b: _where(x > 0, dy, dy * (y + 1)),
}


def softmax_back(dy: Array, y: Array, axis: int | tuple[int, ...] = -1) -> Array:
    """dx of y = softmax(x) along ``axis``."""
    weighted = dy * y
    return np.asarray(weighted - y * weighted.sum(axis=axis, keepdims=True))


def with_slope(spec: tuple[str, float, float], apply: Callable[[Array], Array] | None) -> Trained:
    """The function ``apply`` (None: linear) that is called (name, α, β), with its way back."""
    name, alpha, beta = spec
    slope = SLOPES[name]

    def run(x: Array) -> tuple[Array, Callable[[Array], Array]]:
        y = x if apply is None else apply(x)

        def back(dy: Array | LogitGradient) -> Array:
            if isinstance(dy, LogitGradient):
                return dy.through(back)
            return slope(dy, x, y, alpha, beta)

        return y, back

    return run
