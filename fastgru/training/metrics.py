"""Metrics as in Keras 3: sums over batches, and what they come to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..layers.base import Array
from .losses import Loss, MeanAbsoluteError, MeanSquaredError, spread
from .names import find


class Metric(ABC):
    """The weighted mean over all samples of a value for each.

    Labels and predictions as the losses take them; ``sample_weight`` (N,) or of the values' shape.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.reset_state()

    def reset_state(self) -> None:
        """Forget all batches."""
        self._total = self._weight = 0.0

    def update_state(self, y_true: Any, y_pred: Array, sample_weight: Any = None) -> None:
        """Add one batch."""
        values = self.values(np.asarray(y_true), np.asarray(y_pred, np.float32)).astype(np.float64)
        weights = np.ones(values.shape)
        if sample_weight is not None:
            weights = spread("sample_weight", np.asarray(sample_weight, np.float64), values.shape)
        self._total += float((values * weights).sum())
        self._weight += float(weights.sum())

    def state(self) -> dict[str, Any]:
        """All numbers and arrays that the metric holds: its sums among them."""
        return {key: v for key, v in vars(self).items() if isinstance(v, (int, float, np.generic, np.ndarray))}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave.

        Raises
        ------
        ValueError
            For the state of another metric.
        """
        own = self.state()
        if set(state) != set(own) or any(np.shape(state[key]) != np.shape(value) for key, value in own.items()):
            raise ValueError(f"metric {self.name!r}: expected a state of {sorted(own)}, found {sorted(state)[:20]}")
        for key, value in own.items():
            kept = np.array(state[key], value.dtype) if isinstance(value, np.ndarray) else type(value)(state[key])
            setattr(self, key, kept)

    def result(self) -> float:
        """The mean so far; 0 before the first batch."""
        return self._total / self._weight if self._weight else 0.0

    @abstractmethod
    def values(self, y_true: Array, y_pred: Array) -> Array:
        """A number for each sample, or for each step."""


class SparseCategoricalAccuracy(Metric):
    """How often the class has the largest prediction."""

    def __init__(self, name: str = "sparse_categorical_accuracy") -> None:
        super().__init__(name)

    def values(self, y_true: Array, y_pred: Array) -> Array:
        return np.asarray(_classes(y_true, y_pred) == y_pred.argmax(-1))


class CategoricalAccuracy(Metric):
    """How often labels and predictions have their largest number in the same place."""

    def __init__(self, name: str = "categorical_accuracy") -> None:
        super().__init__(name)

    def values(self, y_true: Array, y_pred: Array) -> Array:
        return np.asarray(y_true.argmax(-1) == y_pred.argmax(-1))


class BinaryAccuracy(Metric):
    """How often predictions beyond ``threshold`` agree with labels of 1, the mean over the last axis."""

    def __init__(self, name: str = "binary_accuracy", threshold: float = 0.5) -> None:
        super().__init__(name)
        self.threshold = np.float32(threshold)

    def values(self, y_true: Array, y_pred: Array) -> Array:
        labels = y_true.reshape(y_pred.shape)
        return np.asarray((labels == (y_pred > self.threshold)).mean(-1))


class SparseTopKCategoricalAccuracy(Metric):
    """How often fewer than ``k`` predictions are above that of the class."""

    def __init__(self, k: int = 5, name: str = "sparse_top_k_categorical_accuracy") -> None:
        super().__init__(name)
        self.k = k

    def values(self, y_true: Array, y_pred: Array) -> Array:
        own = np.take_along_axis(y_pred, _classes(y_true, y_pred)[..., None], -1)
        return np.asarray((y_pred > own).sum(-1) < self.k)


class TopKCategoricalAccuracy(SparseTopKCategoricalAccuracy):
    """The same for one-hot labels."""

    def __init__(self, k: int = 5, name: str = "top_k_categorical_accuracy") -> None:
        super().__init__(k, name)

    def values(self, y_true: Array, y_pred: Array) -> Array:
        return super().values(y_true.argmax(-1), y_pred)


class LossMetric(Metric):
    """The mean of a loss's values."""

    def __init__(self, loss: Loss, name: str = "") -> None:
        super().__init__(name or loss.name)
        self.loss = loss

    def values(self, y_true: Array, y_pred: Array) -> Array:
        return self.loss.per_sample(self.loss.labels(y_true, y_pred), y_pred, None)[0]


METRICS: dict[str, Any] = {
    "sparse_categorical_accuracy": SparseCategoricalAccuracy,
    "categorical_accuracy": CategoricalAccuracy,
    "binary_accuracy": BinaryAccuracy,
    "sparse_top_k_categorical_accuracy": SparseTopKCategoricalAccuracy,
    "top_k_categorical_accuracy": TopKCategoricalAccuracy,
    "mae": lambda: LossMetric(MeanAbsoluteError(), "mae"),
    "mean_absolute_error": lambda: LossMetric(MeanAbsoluteError()),
    "mse": lambda: LossMetric(MeanSquaredError(), "mse"),
    "mean_squared_error": lambda: LossMetric(MeanSquaredError()),
}


def get(metric: str | Metric, y_true: Array, y_pred: Array) -> Metric:
    """A metric by its name, or as it is. "accuracy" is the kind that the first labels and predictions ask for.

    Raises
    ------
    ValueError, TypeError
        For a name that is not known, offering the nearest; for anything else.
    """
    if isinstance(metric, Metric):
        return metric
    if not isinstance(metric, str):
        raise TypeError(f"metric: expected a name or a fastgru metric, found {type(metric).__name__}")
    if metric in ("accuracy", "acc"):
        kind: Any = SparseCategoricalAccuracy
        if y_pred.shape[-1] == 1:
            kind = BinaryAccuracy
        elif y_true.shape == y_pred.shape:
            kind = CategoricalAccuracy
        return kind(name=metric)  # type: ignore[no-any-return]
    found: Metric = find("metric", metric, {**METRICS, "accuracy": None})()
    return found


def check(metric: str | Metric) -> str | Metric:
    """The metric, if `get` will know it; raises as `get` does."""
    if metric not in ("accuracy", "acc"):
        get(metric, np.zeros(1), np.zeros((1, 2)))
    return metric


def _classes(y_true: Array, y_pred: Array) -> Array:
    classes = y_true[..., 0] if y_true.ndim == y_pred.ndim and y_true.shape[-1] == 1 else y_true
    return np.asarray(classes).astype(np.int64)
