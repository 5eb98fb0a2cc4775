"""Activation functions by Keras' names, and the layers that only apply one.

Those of the engine come from `ops.activate`; the others are NumPy, elementwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import ops
from .._core.isa import check_activation
from .base import NEWEST, Array, Dialect, Layer, as_float32, expect_shape
from .slopes import Trained, softmax_back, with_slope
from .training_step import Back, LogitGradient, TrainingStep, sum_to

if TYPE_CHECKING:
    from .reader import Reader

Function = Callable[[Array], Array]
#: A name, or (name, α, β).
Spec = str | tuple[str, float, float]

#: What a GRU's gates can use: the kernels know these.
GATE_ACTIVATIONS = (
    "linear sigmoid tanh hard_sigmoid relu softsign elu selu softplus affine leaky_relu thresholded_relu scaled_tanh"
).split()


def softmax(x: Array, axis: int | tuple[int, ...] = -1) -> Array:
    """exp(x − max) / Σ exp(x − max) along ``axis``."""
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return np.asarray(e / e.sum(axis=axis, keepdims=True))


def log_softmax(x: Array, axis: int = -1) -> Array:
    """x − log Σ exp(x) along ``axis``."""
    shifted = x - x.max(axis=axis, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True)))


def _sigmoid(x: Array) -> Array:
    return ops.activate(x, "sigmoid")


def _gelu(x: Array) -> Array:
    """x Φ(x) with the exact normal distribution (Hendrycks and Gimpel, 2016)."""
    erf = np.asarray(np.frompyfunc(math.erf, 1, 1)(x / math.sqrt(2.0)), np.float32)
    return np.asarray(0.5 * x * (1.0 + erf))


def _hard_silu(x: Array) -> Array:
    return np.asarray(x * np.clip(x / 6.0 + 0.5, 0.0, 1.0))


def _clip6(x: Array) -> Array:
    return np.clip(x, 0.0, 6.0)


def _silu(x: Array) -> Array:
    return np.asarray(x * _sigmoid(x))


#: Elementwise functions that the engine does not have, by their Keras names.
_OTHERS: dict[str, Function] = {
    "softmax": softmax,
    "log_softmax": log_softmax,
    "exponential": np.exp,
    "silu": _silu,
    "swish": _silu,
    "gelu": _gelu,
    "relu6": _clip6,
    "mish": lambda x: np.asarray(x * ops.activate(ops.activate(x, "softplus"), "tanh")),
    "hard_silu": _hard_silu,
    "hard_swish": _hard_silu,
    "log_sigmoid": lambda x: np.asarray(-ops.activate(-x, "softplus")),
    "hard_tanh": lambda x: np.clip(x, -1.0, 1.0),
    "tanh_shrink": lambda x: np.asarray(x - ops.activate(x, "tanh")),
    "celu": lambda x: ops.activate(x, "elu"),
}


def gate_spec(value: Any, dialect: Dialect, where: str) -> Spec:
    """The engine's spelling of a gate activation given as name, config or (name, α, β).

    Raises
    ------
    ValueError
        For an activation that a GRU's gates cannot use.
    """
    if value is None:
        return "linear"
    if isinstance(value, (list, tuple)) and len(value) == 3:
        return (str(value[0]), float(value[1]), float(value[2]))
    if isinstance(value, Mapping):
        value = _function_name(value, where)
    if value == "hard_sigmoid":
        return dialect.hard_sigmoid
    if value == "leaky_relu":
        return ("leaky_relu", 0.2, 0.0)
    if isinstance(value, str) and value in GATE_ACTIVATIONS:
        return value
    raise ValueError(
        f"{where}: activation {value!r} is not one that a GRU here can use; supported are {', '.join(GATE_ACTIVATIONS)}"
    )


def _function_name(value: Mapping[str, Any], where: str) -> str:
    """The name in a serialised activation *function*; a person's own function is refused."""
    name = value.get("config")
    if isinstance(name, Mapping):
        name = name.get("name")
    module = str(value.get("module") or "keras")
    if not isinstance(name, str) or module.split(".")[0] not in ("keras", "tf_keras"):
        raise ValueError(
            f"{where}: the activation {name if isinstance(name, str) else value!r} is a Python "
            "function of the model's author; nothing from a file is executed. Save the model "
            "with a built-in activation"
        )
    return name


def function(value: Any, dialect: Dialect, where: str) -> Function | None:
    """The function that a name, config or (name, α, β) means; None for linear.

    Raises
    ------
    ValueError
        For an unknown activation.
    """
    if isinstance(value, Mapping):
        value = _function_name(value, where)
    if isinstance(value, str) and value in _OTHERS:
        return _OTHERS[value]
    try:
        spec = gate_spec(value, dialect, where)
    except ValueError:
        known = sorted({*GATE_ACTIVATIONS, *_OTHERS})
        raise ValueError(f"{where}: unknown activation {value!r}; supported are {', '.join(known)}") from None
    return None if spec == "linear" else lambda x: ops.activate(x, spec)


def trained(value: Any, dialect: Dialect, where: str) -> Trained:
    """The same function with its way back."""
    apply = function(value, dialect, where)
    if isinstance(value, Mapping):
        value = _function_name(value, where)
    if isinstance(value, str) and value in _OTHERS:
        return with_slope((value, 0.0, 0.0), apply)
    return with_slope(check_activation(gate_spec(value, dialect, where)), apply)


class Activation(Layer):
    """Apply an activation function (a Keras name, or ``(name, alpha, beta)``)."""

    arguments = ("activation",)

    def __init__(self, activation: Any, name: str | None = None, *, dialect: Dialect = NEWEST) -> None:
        super().__init__(name)
        self.activation = activation
        self._layer = activation if isinstance(activation, Layer) else None
        where = f"layer {self.name!r} (Activation)"
        self._apply = None if self._layer else function(activation, dialect, where)
        self._dialect = dialect

    @classmethod
    def from_config(cls, config: Mapping[str, Any], reader: Reader) -> Layer:
        activation = reader.activation(config.get("activation"))
        return cls(activation, config.get("name"), dialect=reader.dialect)

    def forward(self, x: Any, mask: Any, num_threads: int | None, initial_state: Any = None) -> tuple[Any, Any]:
        x = as_float32(x)
        if self._layer is not None:
            return self._layer.forward(x, mask, num_threads)
        return (x if self._apply is None else self._apply(x)), mask

    def untrainable(self, through: bool = False) -> str:
        return "" if self._layer is None else self._layer.untrainable()

    def train(self, x: Any, mask: Any, step: TrainingStep, initial_state: Any = None) -> tuple[Any, Any, Back]:
        x = as_float32(x)
        if self._layer is not None:
            return self._layer.train(x, mask, step)
        y, back = trained(self.activation, self._dialect, f"layer {self.name!r} (Activation)")(x)
        step.note_logits(y, x, self.activation)
        return y, mask, back

    def describe(self) -> str:
        return str(self.activation if self._layer is None else self._layer.class_name())


class ReLU(Layer):
    """max(0, x), with a ceiling, a slope below and a threshold."""

    arguments = ("max_value", "negative_slope", "threshold")

    def __init__(
        self,
        max_value: float | None = None,
        negative_slope: float | None = 0.0,
        threshold: float | None = 0.0,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        self.max_value = _number(max_value)
        self.negative_slope = _number(negative_slope) or 0.0
        self.threshold = _number(threshold) or 0.0
        self.ready = True

    def forward(self, x: Any, mask: Any, num_threads: int | None, initial_state: Any = None) -> tuple[Any, Any]:
        x = as_float32(x)
        low = np.float32(self.negative_slope) * (x - np.float32(self.threshold))
        y = np.where(x >= self.threshold, x, low)
        return (y if self.max_value is None else np.minimum(y, np.float32(self.max_value))), mask

    def train(self, x: Any, mask: Any, step: TrainingStep, initial_state: Any = None) -> tuple[Any, Any, Back]:
        x = as_float32(x)

        def back(dy: Array) -> Array:
            dx = np.where(x > self.threshold, dy, np.float32(self.negative_slope) * dy)
            return dx if self.max_value is None else np.where(x < self.max_value, dx, np.float32(0.0))

        return *self.forward(x, mask, None), back


class LeakyReLU(Layer):
    """x where positive, else slope · x. Keras 2 calls the slope ``alpha``."""

    arguments = ("negative_slope",)

    def __init__(self, negative_slope: float = 0.3, name: str | None = None, *, alpha: float | None = None) -> None:
        super().__init__(name)
        slope = _number(negative_slope if alpha is None else alpha)
        self.negative_slope = 0.3 if slope is None else slope
        self.ready = True

    @classmethod
    def from_config(cls, config: Mapping[str, Any], reader: Reader) -> Layer:
        slope = config.get("negative_slope", config.get("alpha", 0.3))
        return cls(slope, config.get("name"))

    def forward(self, x: Any, mask: Any, num_threads: int | None, initial_state: Any = None) -> tuple[Any, Any]:
        x = as_float32(x)
        return np.where(x > 0, x, np.float32(self.negative_slope) * x), mask

    def train(self, x: Any, mask: Any, step: TrainingStep, initial_state: Any = None) -> tuple[Any, Any, Back]:
        x = as_float32(x)
        slope = np.float32(self.negative_slope)
        return *self.forward(x, mask, None), lambda dy: np.where(x > 0, dy, slope * dy)


class ThresholdedReLU(Layer):
    """x where x > theta, else 0."""

    arguments = ("theta",)

    def __init__(self, theta: float = 1.0, name: str | None = None) -> None:
        super().__init__(name)
        self.theta = _number(theta) or 0.0
        self.ready = True

    def forward(self, x: Any, mask: Any, num_threads: int | None, initial_state: Any = None) -> tuple[Any, Any]:
        x = as_float32(x)
        return np.where(x > np.float32(self.theta), x, np.float32(0.0)), mask

    def train(self, x: Any, mask: Any, step: TrainingStep, initial_state: Any = None) -> tuple[Any, Any, Back]:
        x = as_float32(x)
        above = x > np.float32(self.theta)
        return *self.forward(x, mask, None), lambda dy: np.where(above, dy, np.float32(0.0))


class ELU(Layer):
    """x where positive, else alpha · (exp(x) − 1)."""

    arguments = ("alpha",)

    def __init__(self, alpha: float = 1.0, name: str | None = None) -> None:
        super().__init__(name)
        number = _number(alpha)
        self.alpha = 1.0 if number is None else number
        self.ready = True

    def forward(self, x: Any, mask: Any, num_threads: int | None, initial_state: Any = None) -> tuple[Any, Any]:
        x = as_float32(x)
        return np.where(x > 0, x, np.float32(self.alpha) * np.expm1(np.minimum(x, 0))), mask

    def train(self, x: Any, mask: Any, step: TrainingStep, initial_state: Any = None) -> tuple[Any, Any, Back]:
        x = as_float32(x)
        alpha = np.float32(self.alpha)
        return *self.forward(x, mask, None), lambda dy: np.where(x > 0, dy, dy * alpha * np.exp(np.minimum(x, 0)))


class PReLU(Layer):
    """x where positive, else alpha · x, with one learned alpha per feature (or shared axes)."""

    arguments = ("shared_axes",)

    def __init__(self, shared_axes: list[int] | int | None = None, name: str | None = None) -> None:
        super().__init__(name)
        self.shared_axes = [shared_axes] if isinstance(shared_axes, int) else shared_axes

    def weight_names(self) -> tuple[str, ...]:
        return ("alpha",)

    def build(self, shape: tuple[int, ...], rng: np.random.Generator) -> None:
        own = [1 if axis in (self.shared_axes or ()) else n for axis, n in enumerate(shape)]
        self.assign({"alpha": np.zeros(own[1:], np.float32)})

    def prepare(self) -> None:
        self._alpha = as_float32(self.weights["alpha"])

    def forward(self, x: Any, mask: Any, num_threads: int | None, initial_state: Any = None) -> tuple[Any, Any]:
        x = as_float32(x)
        try:
            np.broadcast_shapes(x.shape[1:], self._alpha.shape)
        except ValueError:
            expect_shape(f"PReLU {self.name!r}: alpha", self._alpha, x.shape[1:])
        return np.where(x > 0, x, self._alpha * x), mask

    def train(self, x: Any, mask: Any, step: TrainingStep, initial_state: Any = None) -> tuple[Any, Any, Back]:
        x = as_float32(x)
        alpha = self._alpha

        def back(dy: Array) -> Array:
            below = np.where(x > 0, np.float32(0.0), dy)
            if self.trainable:
                step.add(self, "alpha", sum_to(below * x, (1, *alpha.shape))[0])
            return np.where(x > 0, dy, alpha * below)

        return *self.forward(x, mask, None), back


class Softmax(Layer):
    """Softmax along ``axis``; a mask that reaches it takes no share."""

    arguments = ("axis",)
    call_arguments = ("mask",)

    def __init__(self, axis: int | list[int] = -1, name: str | None = None) -> None:
        super().__init__(name)
        self.axis = axis
        self._axes = axis if isinstance(axis, int) else tuple(axis)
        self.ready = True

    def forward(self, x: Any, mask: Any, num_threads: int | None, initial_state: Any = None) -> tuple[Any, Any]:
        x = as_float32(x)
        if mask is not None:
            try:
                shown = np.broadcast_to(mask, x.shape)
            except ValueError:
                raise ValueError(
                    f"layer {self.name!r} (Softmax): expected a mask that fits the input "
                    f"{x.shape}, found {np.shape(mask)}"
                ) from None
            x = np.where(shown, x, np.float32(-1e9))
        return softmax(x, self._axes), mask

    def train(self, x: Any, mask: Any, step: TrainingStep, initial_state: Any = None) -> tuple[Any, Any, Back]:
        y, mask = self.forward(x, mask, None)
        if mask is None and self._axes in (-1, y.ndim - 1):
            step.note_logits(y, as_float32(x), "softmax")

        def back(dy: Array | LogitGradient) -> Array:
            if isinstance(dy, LogitGradient):
                return dy.through(back)
            dx = softmax_back(dy, y, self._axes)
            return dx if mask is None else np.where(np.broadcast_to(mask, y.shape), dx, np.float32(0.0))

        return y, mask, back


def _number(value: Any) -> float | None:
    """A number, or one that Keras 2 wrote as {'type': 'ndarray', 'value': …}."""
    if isinstance(value, Mapping):
        value = value.get("value")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"expected a number, found {value!r}")
    return float(value)
