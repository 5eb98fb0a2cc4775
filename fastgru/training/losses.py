"""Losses as in Keras 3: values for each sample, their mean under weights and masks, and the gradient of that.

N rows, T steps, C classes. A loss of predictions (N, …, C) has values (N, …): one for each sample, or for each step.
(Source: keras/src/losses and keras/src/backend/tensorflow/nn.py of Keras 3; values are float32, sums float64.)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from ..layers.base import Array
from ..layers.training_step import LogitGradient
from .names import find

#: d (N, …) of the values -> the gradient of y_pred, or of its logits
Slope = Callable[[Array], "Array | LogitGradient"]

_EPSILON = np.float32(1e-7)  # keras.config.epsilon()


class Loss(ABC):
    """A function of labels and predictions.

    Parameters
    ----------
    reduction : {"sum_over_batch_size", "sum"}
        The mean over all values, or their sum.
    """

    #: The activation whose input (`TrainingStep.logits`) the loss prefers to its output.
    activation: str | None = None

    def __init__(self, *, reduction: str = "sum_over_batch_size", name: str | None = None) -> None:
        if reduction not in ("sum_over_batch_size", "sum"):
            raise ValueError(f"reduction: expected 'sum_over_batch_size' or 'sum', found {reduction!r}")
        self.reduction = reduction
        self.name = name or _snake(type(self).__name__)

    @abstractmethod
    def per_sample(self, y_true: Array, y_pred: Array, logits: Array | None) -> tuple[Array, Slope]:
        """Values (N, …), and how their gradients go back. ``y_true`` has the rank that `labels` gives it."""

    def labels(self, y_true: Any, y_pred: Array) -> Array:
        """Labels as float32 in y_pred's shape; one axis of size 1 more or less at the end is forgiven."""
        return _numbers(y_true, y_pred)

    def counted(self, y_true: Array) -> Array | None:
        """A mask of labels that count; None where all do."""
        return None

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None, mask: Any = None) -> float:
        """The loss of predictions: the mean, or the sum, of all values times their weights."""
        return self.value_and_gradient(y_true, y_pred, sample_weight, mask)[0]

    def value_and_gradient(
        self, y_true: Any, y_pred: Any, sample_weight: Any = None, mask: Any = None, logits: Array | None = None
    ) -> tuple[float, Array | LogitGradient]:
        """The loss and its gradient by ``y_pred``.

        Parameters
        ----------
        y_true
            Labels: see each loss.
        y_pred : float32 (N, …, C)
        sample_weight : (N,) or of the values' shape, optional
        mask : bool, of the values' shape, optional
            Values at False don't count, and the mean is over the others.
        logits : float32, as y_pred, optional
            x where ``y_pred`` is ``activation``(x). The gradient is then by x: a `LogitGradient`.

        Raises
        ------
        ValueError
            For labels of another rank or size, or outside of the classes.
        """
        y_pred = np.asarray(y_pred, np.float32)
        labels = self.labels(y_true, y_pred)
        values, slope = self.per_sample(labels, y_pred, logits)
        if (counted := self.counted(labels)) is not None:
            mask = counted if mask is None else counted & np.asarray(mask, bool)
        weights = _weights(values.shape, sample_weight, mask, self.reduction)
        count = float(values.size) if self.reduction == "sum_over_batch_size" else 1.0
        if values.size == 0:
            return 0.0, np.zeros_like(y_pred)
        if weights is None:
            return float(values.sum(dtype=np.float64)) / count, slope(np.full(values.shape, 1 / count, np.float32))
        total = float((values.astype(np.float64) * weights).sum()) / count
        return total, slope((weights / count).astype(np.float32))


class SparseCategoricalCrossentropy(Loss):
    """-log p of the class. Labels: whole numbers 0 … C - 1, (N, …) or (N, …, 1).

    Parameters
    ----------
    from_logits : bool
        Predictions are numbers before a softmax.
    ignore_class : int, optional
        Labels of this number do not count, and may be outside of the classes.
    """

    activation = "softmax"

    def __init__(self, from_logits: bool = False, ignore_class: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.from_logits = from_logits
        self.ignore_class = ignore_class

    def labels(self, y_true: Any, y_pred: Array) -> Array:
        classes = _whole(y_true)
        if classes.ndim == y_pred.ndim and classes.shape[-1:] == (1,):
            classes = classes[..., 0]
        _expect_shape(classes, y_pred.shape[:-1], f"predictions {y_pred.shape}: one class for each")
        wrong = (classes < 0) | (classes >= y_pred.shape[-1])
        if self.ignore_class is not None:
            wrong &= classes != self.ignore_class
        _refuse(wrong, classes, f"classes 0 … {y_pred.shape[-1] - 1}, as there are {y_pred.shape[-1]} predictions")
        return classes

    def counted(self, y_true: Array) -> Array | None:
        return None if self.ignore_class is None else np.asarray(y_true != self.ignore_class)

    def per_sample(self, y_true: Array, y_pred: Array, logits: Array | None) -> tuple[Array, Slope]:
        given = y_pred if self.from_logits else logits
        counted = self.counted(y_true)
        place = (y_true if counted is None else np.where(counted, y_true, 0))[..., None]
        if given is not None:
            values, probabilities = _softmax_entropy(given, place)
        else:
            clipped = np.clip(y_pred, _EPSILON, 1 - _EPSILON)
            total = clipped.sum(-1, keepdims=True)
            values = (np.log(total) - np.log(np.take_along_axis(clipped, place, -1)))[..., 0]

        def slope(d: Array) -> Array | LogitGradient:
            d = d[..., None]
            if given is not None:
                dx = probabilities * d
                np.put_along_axis(dx, place, np.take_along_axis(dx, place, -1) - d, -1)
                return dx if self.from_logits else LogitGradient(dx)
            dy = np.broadcast_to(d / total, y_pred.shape).copy()
            chosen = np.take_along_axis(dy, place, -1) - d / np.take_along_axis(clipped, place, -1)
            np.put_along_axis(dy, place, chosen, -1)
            return np.where(_inside(y_pred), dy, np.float32(0))

        return values, slope


class CategoricalCrossentropy(Loss):
    """-Σ t log p over the classes. Labels: probabilities (N, …, C), mostly one-hot.

    Parameters
    ----------
    from_logits : bool
        Predictions are numbers before a softmax.
    label_smoothing : float, 0 … 1
        t becomes (1 - s) t + s / C.
    """

    activation = "softmax"

    def __init__(self, from_logits: bool = False, label_smoothing: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        self.from_logits = from_logits
        self.label_smoothing = _share("label_smoothing", label_smoothing)

    def labels(self, y_true: Any, y_pred: Array) -> Array:
        targets = _same_shape(y_true, y_pred, "probabilities; for whole numbers use sparse_categorical_crossentropy")
        s = np.float32(self.label_smoothing)
        return targets * (1 - s) + s / np.float32(y_pred.shape[-1]) if s else targets

    def per_sample(self, y_true: Array, y_pred: Array, logits: Array | None) -> tuple[Array, Slope]:
        given = y_pred if self.from_logits else logits
        if given is not None:
            top = given.max(-1, keepdims=True)
            powers = np.exp(given - top)
            total = powers.sum(-1, keepdims=True)
            values = (y_true * (np.log(total) - (given - top))).sum(-1)
        else:
            sums = y_pred.sum(-1, keepdims=True)
            shares = y_pred / sums
            clipped = np.clip(shares, _EPSILON, 1 - _EPSILON)
            values = -(y_true * np.log(clipped)).sum(-1)

        def slope(d: Array) -> Array | LogitGradient:
            d = d[..., None]
            if given is not None:
                dx = d * (powers / total * y_true.sum(-1, keepdims=True) - y_true)
                return dx if self.from_logits else LogitGradient(dx)
            dshares = np.where(_inside(shares), -d * y_true / clipped, np.float32(0))
            dy: Array = (dshares - (dshares * shares).sum(-1, keepdims=True)) / sums
            return dy

        return values, slope


class BinaryCrossentropy(Loss):
    """-(t log p + (1 - t) log(1 - p)), the mean over the last axis. Labels: 0 … 1, in the predictions' shape.

    Parameters
    ----------
    from_logits : bool
        Predictions are numbers before a sigmoid.
    label_smoothing : float, 0 … 1
        t becomes (1 - s) t + s / 2.
    """

    activation = "sigmoid"

    def __init__(self, from_logits: bool = False, label_smoothing: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        self.from_logits = from_logits
        self.label_smoothing = _share("label_smoothing", label_smoothing)

    def labels(self, y_true: Any, y_pred: Array) -> Array:
        targets = _numbers(y_true, y_pred)
        _refuse((targets < 0) | (targets > 1), targets, "labels from 0 to 1")
        s = np.float32(self.label_smoothing)
        return targets * (1 - s) + s * np.float32(0.5) if s else targets

    def per_sample(self, y_true: Array, y_pred: Array, logits: Array | None) -> tuple[Array, Slope]:
        given = y_pred if self.from_logits else logits
        if given is not None:
            values = np.maximum(given, 0) - given * y_true + np.log1p(np.exp(-np.abs(given)))
        else:
            p = np.clip(y_pred, _EPSILON, 1 - _EPSILON)
            values = -(y_true * np.log(p) + (1 - y_true) * np.log(1 - p))

        def slope(d: Array) -> Array | LogitGradient:
            d = d[..., None] / np.float32(y_pred.shape[-1])
            if given is not None:
                small = np.exp(-np.abs(given))
                dx = d * (np.where(given >= 0, 1, small) / (1 + small) - y_true)
                return dx if self.from_logits else LogitGradient(dx)
            return np.where(_inside(y_pred), d * (p - y_true) / (p * (1 - p)), np.float32(0))

        return values.mean(-1, dtype=np.float32), slope


class MeanSquaredError(Loss):
    """(y - t)², the mean over the last axis. Labels: numbers in the predictions' shape."""

    def per_sample(self, y_true: Array, y_pred: Array, logits: Array | None) -> tuple[Array, Slope]:
        error = y_pred - y_true
        return _mean(error * error), lambda d: error * (d[..., None] * np.float32(2 / y_pred.shape[-1]))


class MeanAbsoluteError(Loss):
    """|y - t|, the mean over the last axis. Labels: numbers in the predictions' shape."""

    def per_sample(self, y_true: Array, y_pred: Array, logits: Array | None) -> tuple[Array, Slope]:
        error = y_pred - y_true
        return _mean(np.abs(error)), lambda d: np.sign(error) * (d[..., None] / np.float32(y_pred.shape[-1]))


class Huber(Loss):
    """e² / 2 where the error |e| is at most delta, else delta |e| - delta² / 2; the mean over the last axis.

    Parameters
    ----------
    delta : float > 0
    """

    def __init__(self, delta: float = 1.0, **options: Any) -> None:
        super().__init__(name=options.pop("name", "huber_loss"), **options)
        if not delta > 0:
            raise ValueError(f"delta: expected a number above 0, found {delta!r}")
        self.delta = np.float32(delta)

    def per_sample(self, y_true: Array, y_pred: Array, logits: Array | None) -> tuple[Array, Slope]:
        error, delta = y_pred - y_true, self.delta
        size = np.abs(error)
        values = np.where(
            size <= delta, np.float32(0.5) * error * error, delta * size - np.float32(0.5) * delta * delta
        )
        return _mean(values), lambda d: np.clip(error, -delta, delta) * (d[..., None] / np.float32(y_pred.shape[-1]))


LOSSES: dict[str, type[Loss]] = {
    "sparse_categorical_crossentropy": SparseCategoricalCrossentropy,
    "categorical_crossentropy": CategoricalCrossentropy,
    "binary_crossentropy": BinaryCrossentropy,
    "bce": BinaryCrossentropy,
    "mean_squared_error": MeanSquaredError,
    "mse": MeanSquaredError,
    "mean_absolute_error": MeanAbsoluteError,
    "mae": MeanAbsoluteError,
    "huber": Huber,
    "huber_loss": Huber,
}


def get(loss: str | Loss) -> Loss:
    """A loss by its name, or as it is.

    Raises
    ------
    ValueError, TypeError
        For a name that is not known, offering the nearest; for anything else.
    """
    if isinstance(loss, Loss):
        return loss
    if not isinstance(loss, str):
        raise TypeError(f"loss: expected a name or a fastgru loss, found {type(loss).__name__}")
    return find("loss", loss, LOSSES)()


# -- values ----------------------------------------------------------------------------------------


def _softmax_entropy(x: Array, place: Array) -> tuple[Array, Array]:
    """-log softmax(x) at `place` (…, 1), and softmax(x)."""
    shifted = x - x.max(-1, keepdims=True)
    powers = np.exp(shifted)
    total = powers.sum(-1, keepdims=True)
    return (np.log(total) - np.take_along_axis(shifted, place, -1))[..., 0], powers / total


def _mean(values: Array) -> Array:
    return np.asarray(values.mean(-1, dtype=np.float32))


def _inside(p: Array) -> Array:
    """Where clipping to [ε, 1 - ε] changes nothing, so that a gradient passes."""
    return (p >= _EPSILON) & (p <= 1 - _EPSILON)


def _weights(shape: tuple[int, ...], sample_weight: Any, mask: Any, reduction: str) -> Array | None:
    """float64 weights of the values; with a mask and a mean they are scaled so that the mean is over what counts."""
    weights = None
    if mask is not None:
        weights = spread("mask", np.asarray(mask).astype(np.float64), shape)
        if reduction == "sum_over_batch_size":
            weights = weights * (weights.size / max(weights.sum(), 1e-7))
    if sample_weight is not None:
        given = np.asarray(sample_weight, np.float64)
        if not np.isfinite(given).all():
            raise ValueError("sample_weight: expected finite numbers, found inf or NaN")
        given = spread("sample_weight", given, shape)
        weights = given if weights is None else weights * given
    return weights


def spread(what: str, weights: Array, shape: tuple[int, ...]) -> Array:
    """Weights (N,), (N, 1) or of the values' shape, in the values' shape."""
    if weights.ndim == len(shape) + 1 and weights.shape[-1] == 1:
        weights = weights[..., 0]
    if weights.ndim < len(shape):
        weights = weights.reshape(weights.shape + (1,) * (len(shape) - weights.ndim))
    fits = weights.ndim == len(shape) and all(n in (1, m) for n, m in zip(weights.shape, shape, strict=True))
    if not fits or weights.shape[:1] != shape[:1]:
        raise ValueError(f"{what}: expected one number for each of the values {shape}, found shape {weights.shape}")
    return np.broadcast_to(weights, shape)


# -- labels ----------------------------------------------------------------------------------------


def _numbers(y_true: Any, y_pred: Array) -> Array:
    return _same_shape(y_true, y_pred, "labels in the predictions' shape")


def _same_shape(y_true: Any, y_pred: Array, expected: str) -> Array:
    labels = np.asarray(y_true)
    if labels.dtype.kind not in "fiub":
        raise ValueError(f"y: expected numbers, found dtype {labels.dtype}")
    labels = labels.astype(np.float32)
    if labels.ndim == y_pred.ndim - 1 and y_pred.shape[-1] == 1:
        labels = labels[..., None]
    _expect_shape(labels, y_pred.shape, expected)
    _refuse(np.isnan(labels), labels, "numbers")
    return labels


def _whole(y_true: Any) -> Array:
    labels = np.asarray(y_true)
    if labels.dtype.kind not in "fiub":
        raise ValueError(f"y: expected whole numbers, found dtype {labels.dtype}")
    if labels.dtype.kind == "f":
        _refuse(~np.isfinite(labels) | (labels != np.floor(labels)), labels, "whole numbers")
    return labels.astype(np.int64)


def _expect_shape(labels: Array, shape: tuple[int, ...], expected: str) -> None:
    if labels.shape != shape:
        raise ValueError(f"y: expected {expected}, shape {shape}, found {labels.shape}")


def _refuse(wrong: Array, labels: Array, expected: str) -> None:
    if wrong.any():
        place = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
        where = ", ".join(map(str, place))
        raise ValueError(f"y: expected {expected}, found {labels[place]} at [{where}], {int(wrong.sum())} such in all")


def _share(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: expected a number from 0 to 1, found {value!r}")
    return float(value)


def _snake(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
