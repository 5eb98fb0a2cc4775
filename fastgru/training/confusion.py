"""Precision, recall, F1 and the area under a curve: counts of what was predicted right and wrong, as in Keras 3.

Labels are 0 or 1 in the predictions' shape (for one column also without it), or whole numbers, one for each row of
probabilities: these count as their one-hot rows. Padded steps count nowhere; in Keras 3 these metrics know no masks.
(Source: keras/src/metrics/confusion_metrics.py, f_score_metrics.py)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..layers.base import Array
from .losses import SparseCategoricalCrossentropy, spread
from .metric import Metric

_EPSILON = 1e-7


class _Rates(Metric):
    """Counts at one threshold: true positives, and all of what they are a share of."""

    settings = ("thresholds", "top_k", "class_id")

    def __init__(self, thresholds: float | None, top_k: int | None, class_id: int | None, name: str) -> None:
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k: expected a whole number of at least 1, found {top_k!r}")
        if thresholds is not None and not (np.ndim(thresholds) == 0 and 0 <= thresholds <= 1):
            raise ValueError(f"thresholds: expected one number from 0 to 1, found {thresholds!r}")
        self.thresholds, self.top_k, self.class_id = thresholds, top_k, class_id
        super().__init__(name)

    def reset_state(self) -> None:
        self._right = self._all = 0.0

    def update_state(self, y_true: Any, y_pred: Array, sample_weight: Any = None) -> None:
        labels, y_pred, weights = _prepared(y_true, y_pred, sample_weight)
        labels, least = labels != 0, 0.5 if self.top_k is None else -np.inf
        positive = y_pred > np.float32(least if self.thresholds is None else self.thresholds)
        if self.top_k is not None:
            best = np.argsort(-y_pred, -1, kind="stable")[..., : self.top_k]
            chosen = np.zeros(y_pred.shape, bool)
            np.put_along_axis(chosen, best, True, -1)
            positive &= chosen
        if self.class_id is not None:
            if not -y_pred.shape[-1] <= self.class_id < y_pred.shape[-1]:
                raise ValueError(f"class_id: expected one of {y_pred.shape[-1]} classes, found {self.class_id}")
            labels, positive, weights = (v[..., self.class_id] for v in (labels, positive, weights))
        self._right += float(weights[labels & positive].sum())
        self._all += float(weights[self.among(labels, positive)].sum()) + 0.0 * float(weights.sum())

    def among(self, labels: Array, positive: Array) -> Array:
        """What the true positives are a share of."""
        raise NotImplementedError

    def result(self) -> float:
        """The share; 0 where there is nothing to have a share of."""
        return float(_share(self._right, self._all))


class Precision(_Rates):
    """True positives of all that were predicted positive.

    Parameters
    ----------
    thresholds : float, 0 … 1
        Predictions above it are positive; 0.5, or with ``top_k`` any.
    top_k : int, optional
        Only the k largest predictions of a row are positive.
    class_id : int, optional
        Count only this class.
    """

    def __init__(
        self,
        thresholds: float | None = None,
        top_k: int | None = None,
        class_id: int | None = None,
        name: str = "precision",
    ) -> None:
        super().__init__(thresholds, top_k, class_id, name)

    def among(self, labels: Array, positive: Array) -> Array:
        return positive


class Recall(_Rates):
    """True positives of all whose label is 1. Parameters as for `Precision`."""

    def __init__(
        self,
        thresholds: float | None = None,
        top_k: int | None = None,
        class_id: int | None = None,
        name: str = "recall",
    ) -> None:
        super().__init__(thresholds, top_k, class_id, name)

    def among(self, labels: Array, positive: Array) -> Array:
        return labels


class F1Score(Metric):
    """2 · precision · recall / (precision + recall), for each class.

    Parameters
    ----------
    average : "micro", "macro", "weighted" or None
        Of the counts of all classes; of the classes' scores; weighted by how many labels they have; none: `result`
        is an array.
    threshold : float, 0 … 1, optional
        Predictions above it are positive. Without one it is the largest of a row, so that of a single column each row
        is positive: give 0.5 there.
    """

    settings = ("threshold",)

    def __init__(self, average: str | None = None, threshold: float | None = None, name: str = "f1_score") -> None:
        if average not in (None, "micro", "macro", "weighted"):
            raise ValueError(f"average: expected 'micro', 'macro', 'weighted' or None, found {average!r}")
        if threshold is not None and not 0 < threshold <= 1:
            raise ValueError(f"threshold: expected a number above 0, at most 1, found {threshold!r}")
        self.average, self.threshold = average, threshold
        super().__init__(name)

    def reset_state(self) -> None:
        self._counts = np.zeros((3, 0))  # of each class: true positives, predicted, labelled

    def update_state(self, y_true: Any, y_pred: Array, sample_weight: Any = None) -> None:
        labels, y_pred, weights = (v.reshape(-1, v.shape[-1]) for v in _prepared(y_true, y_pred, sample_weight))
        if self.threshold is None:
            positive = (y_pred >= y_pred.max(-1, keepdims=True)) & (np.abs(y_pred) > 1e-9)
        else:
            positive = y_pred > np.float32(self.threshold)
        counts = np.stack([(weights * v).sum(0) for v in (labels * positive, positive, labels)])
        if not self._counts.size:
            self._counts = np.zeros(counts.shape)
        if counts.shape != self._counts.shape:
            raise ValueError(f"y_pred: expected {self._counts.shape[1]} classes as before, found {counts.shape[1]}")
        self._counts += counts

    def result(self) -> Any:
        """A float; without an average an array (C,)."""
        right, predicted, labelled = self._counts.sum(1) if self.average == "micro" else self._counts
        precision, recall = right / (predicted + _EPSILON), right / (labelled + _EPSILON)
        scores = 2 * precision * recall / (precision + recall + _EPSILON)
        if self.average == "weighted":
            return float((scores * labelled).sum() / (labelled.sum() + _EPSILON))
        if self.average is None:
            return np.asarray(scores)
        return float(np.mean(scores)) if np.size(scores) else 0.0

    def set_state(self, state: Mapping[str, Any]) -> None:
        counts = np.asarray(state.get("_counts", ()))
        if counts.ndim == 2 and len(counts) == 3:
            self._counts = np.zeros(counts.shape)
        super().set_state(state)


class AUC(Metric):
    """The area under a curve that is known at some thresholds.

    Parameters
    ----------
    num_thresholds : int
        Evenly from 0 to 1, both ends included.
    curve : "ROC" or "PR"
        True by false positive rate, or precision by recall.
    summation_method : "interpolation", "minoring" or "majoring"
        Between two thresholds: trapezes (for "PR" as Davis and Goadrich, 2006), the smaller or the larger value.
    thresholds : sequence of float, optional
        Others, from 0 to 1; the ends are added.
    from_logits : bool
        Predictions are numbers before a sigmoid.
    """

    settings = ("num_thresholds", "thresholds", "from_logits")

    def __init__(
        self,
        num_thresholds: int = 200,
        curve: str = "ROC",
        summation_method: str = "interpolation",
        name: str = "auc",
        thresholds: Sequence[float] | None = None,
        from_logits: bool = False,
    ) -> None:
        if curve not in ("ROC", "PR"):
            raise ValueError(f"curve: expected 'ROC' or 'PR', found {curve!r}")
        if summation_method not in ("interpolation", "minoring", "majoring"):
            raise ValueError(
                f"summation_method: expected 'interpolation', 'minoring' or 'majoring', found {summation_method!r}"
            )
        if thresholds is not None:
            thresholds = sorted(map(float, thresholds))
            if not all(0 <= t <= 1 for t in thresholds):
                raise ValueError(f"thresholds: expected numbers from 0 to 1, found {thresholds}")
            num_thresholds = len(thresholds) + 2
        if not 1 < num_thresholds <= 1 << 24:  # beyond that float32 knows no such thresholds
            raise ValueError(f"num_thresholds: expected a whole number from 2 to {1 << 24}, found {num_thresholds!r}")
        self.num_thresholds, self.thresholds = num_thresholds, thresholds
        self.curve, self.summation_method, self.from_logits = curve, summation_method, from_logits
        super().__init__(name)

    def reset_state(self) -> None:
        self._true, self._false = np.zeros(self.num_thresholds), np.zeros(self.num_thresholds)

    def update_state(self, y_true: Any, y_pred: Array, sample_weight: Any = None) -> None:
        labels, p, weights = (v.reshape(-1) for v in _prepared(y_true, y_pred, sample_weight))
        if self.from_logits:
            small = np.exp(-np.abs(p))
            p = np.where(p >= 0, 1, small) / (1 + small)
        p = np.clip(np.nan_to_num(p), 0, 1)
        if self.thresholds is None:
            above = np.ceil(p * np.float32(self.num_thresholds - 1)).astype(np.int64) - 1
        else:  # how many thresholds lie below; the first always does
            above = np.searchsorted(np.array(self.thresholds, np.float32), p, "left")
        above = np.maximum(above, 0)
        labels = labels != 0
        self._true += np.bincount(above, weights * labels, self.num_thresholds)
        self._false += np.bincount(above, weights * ~labels, self.num_thresholds)

    def result(self) -> float:
        """The area; 0 where there are no labels of 1, or none of 0."""
        tp, fp = (v[::-1].cumsum()[::-1] for v in (self._true, self._false))  # above each threshold
        positive = tp + fp
        if self.curve == "PR" and self.summation_method == "interpolation":
            right, d = tp[:-1] - tp[1:], positive[:-1] - positive[1:]
            slope = _share(right, np.maximum(d, 0))
            start = tp[1:] - slope * positive[1:]
            both = (positive[:-1] > 0) & (positive[1:] > 0)
            ratio = np.where(both, _share(positive[:-1], positive[1:]), 1.0)
            return float(_share(slope * (right + start * np.log(ratio)), np.full(len(right), tp[0])).sum())
        recall = _share(tp, np.full(len(tp), tp[0]))
        x, y = (_share(fp, np.full(len(fp), fp[0])), recall) if self.curve == "ROC" else (recall, _share(tp, positive))
        heights = {"interpolation": (y[:-1] + y[1:]) / 2, "minoring": np.minimum(y[:-1], y[1:])}
        return float(((x[:-1] - x[1:]) * heights.get(self.summation_method, np.maximum(y[:-1], y[1:]))).sum())


def _prepared(y_true: Any, y_pred: Any, sample_weight: Any) -> tuple[Array, Array, Array]:
    """Labels (float64), predictions (float32) and weights (float64), of one shape (…, C).

    A prediction that is NaN has the weight NaN, unless it has none: so does then the result.
    """
    labels, y_pred = np.asarray(y_true), np.asarray(y_pred, np.float32)
    if y_pred.ndim < 2:
        y_pred = y_pred.reshape(-1, 1)
    rows, columns = y_pred.shape[:-1], y_pred.shape[-1]
    weights = np.ones(y_pred.shape)
    if sample_weight is not None:
        given = np.asarray(sample_weight, np.float64)
        weights = weights * (given if given.shape == y_pred.shape else spread("sample_weight", given, rows)[..., None])
    if columns > 1 and labels.shape in (rows, (*rows, 1)):
        counted = weights.any(-1)  # what is padding may hold any number
        classes = SparseCategoricalCrossentropy().labels(np.where(counted, labels.reshape(rows), 0), y_pred)
        labels = classes[..., None] == np.arange(columns)
    elif columns == 1 and labels.shape == rows:
        labels = labels[..., None]
    if labels.shape != y_pred.shape:
        raise ValueError(
            f"y: expected labels of 0 and 1 in the predictions' shape {y_pred.shape}, or one class for each row, "
            f"found {labels.shape}"
        )
    weights[np.isnan(y_pred) & (weights != 0)] = np.nan
    return labels.astype(np.float64), y_pred, weights


def _share(part: Any, whole: Any) -> Array:
    """part / whole, 0 where the whole is 0."""
    return np.asarray(np.divide(part, whole, out=np.zeros(np.shape(whole)), where=np.asarray(whole) != 0))
