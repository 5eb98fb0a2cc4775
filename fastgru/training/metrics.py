"""Metrics as in Keras 3: accuracies, means of losses, and all metrics by name."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..layers.base import Array
from .confusion import AUC, F1Score, Precision, Recall
from .losses import Loss, MeanAbsoluteError, MeanSquaredError
from .metric import MeanMetric, Metric
from .names import find

__all__ = [
    "AUC",
    "BinaryAccuracy",
    "CategoricalAccuracy",
    "F1Score",
    "LossMetric",
    "Metric",
    "Precision",
    "Recall",
    "SparseCategoricalAccuracy",
    "SparseTopKCategoricalAccuracy",
    "TopKCategoricalAccuracy",
    "check",
    "get",
]


class SparseCategoricalAccuracy(MeanMetric):
    """How often the class has the largest prediction."""

    def __init__(self, name: str = "sparse_categorical_accuracy") -> None:
        super().__init__(name)

    def values(self, y_true: Array, y_pred: Array) -> Array:
        return np.asarray(_classes(y_true, y_pred) == y_pred.argmax(-1))


class CategoricalAccuracy(MeanMetric):
    """How often labels and predictions have their largest number in the same place."""

    def __init__(self, name: str = "categorical_accuracy") -> None:
        super().__init__(name)

    def values(self, y_true: Array, y_pred: Array) -> Array:
        return np.asarray(y_true.argmax(-1) == y_pred.argmax(-1))


class BinaryAccuracy(MeanMetric):
    """How often predictions beyond ``threshold`` agree with labels of 1, the mean over the last axis."""

    settings = ("threshold",)

    def __init__(self, name: str = "binary_accuracy", threshold: float = 0.5) -> None:
        super().__init__(name)
        self.threshold = np.float32(threshold)

    def values(self, y_true: Array, y_pred: Array) -> Array:
        labels = y_true.reshape(y_pred.shape)
        return np.asarray((labels == (y_pred > self.threshold)).mean(-1))


class SparseTopKCategoricalAccuracy(MeanMetric):
    """How often fewer than ``k`` predictions are above that of the class."""

    settings = ("k",)

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


class LossMetric(MeanMetric):
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
    "precision": Precision,
    "recall": Recall,
    "f1_score": F1Score,
    "auc": AUC,
}
#: By name only: the average is in the name, "f1" is the macro one. One column is a probability, not classes.
_F1 = {"f1": "macro", "f1_micro": "micro", "f1_macro": "macro", "f1_weighted": "weighted"}


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
    if metric in _F1:
        return F1Score(_F1[metric], 0.5 if y_pred.shape[-1] == 1 else None, name=metric)
    found: Metric = find("metric", metric, {**METRICS, **dict.fromkeys(["accuracy", *_F1])})()
    return found


def check(metric: str | Metric) -> str | Metric:
    """The metric, if `get` will know it; raises as `get` does."""
    if metric not in ("accuracy", "acc"):
        get(metric, np.zeros(1), np.zeros((1, 2)))
    return metric


def _classes(y_true: Array, y_pred: Array) -> Array:
    classes = y_true[..., 0] if y_true.ndim == y_pred.ndim and y_true.shape[-1] == 1 else y_true
    return np.asarray(classes).astype(np.int64)
