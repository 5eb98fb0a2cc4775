"""What all metrics share, and those that are a mean over samples. `metrics` has them all by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..layers.base import Array
from .losses import spread


class Metric(ABC):
    """Sums over batches, and what they come to.

    Labels and predictions as the losses take them; ``sample_weight`` (N,) or one for each step. What a metric sums is
    kept in float64, in attributes.

    Attributes
    ----------
    settings
        Names of attributes that are not sums: a checkpoint does not keep them, nor can one change them.
    """

    settings: tuple[str, ...] = ()

    def __init__(self, name: str) -> None:
        self.name = name
        self.reset_state()

    @abstractmethod
    def reset_state(self) -> None:
        """Forget all batches."""

    @abstractmethod
    def update_state(self, y_true: Any, y_pred: Array, sample_weight: Any = None) -> None:
        """Add one batch."""

    @abstractmethod
    def result(self) -> Any:
        """The measure so far: a float, or an array of one for each class."""

    def results(self) -> dict[str, float]:
        """The measure by name; one for each class by NAME_0, NAME_1, …"""
        found = self.result()
        if np.ndim(found) == 0:
            return {self.name: float(found)}
        return {f"{self.name}_{i}": float(value) for i, value in enumerate(found)}

    def state(self) -> dict[str, Any]:
        """All numbers and arrays that the metric holds, but its `settings`."""
        kinds = (int, float, np.generic, np.ndarray)
        return {key: v for key, v in vars(self).items() if isinstance(v, kinds) and key not in self.settings}

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


class MeanMetric(Metric):
    """The weighted mean over all samples of a value for each; ``sample_weight`` may be of the values' shape."""

    def reset_state(self) -> None:
        self._total = self._weight = 0.0

    def update_state(self, y_true: Any, y_pred: Array, sample_weight: Any = None) -> None:
        values = self.values(np.asarray(y_true), np.asarray(y_pred, np.float32)).astype(np.float64)
        weights = np.ones(values.shape)
        if sample_weight is not None:
            weights = spread("sample_weight", np.asarray(sample_weight, np.float64), values.shape)
        self._total += float((values * weights).sum())
        self._weight += float(weights.sum())

    def result(self) -> float:
        """The mean so far; 0 before the first batch."""
        return self._total / self._weight if self._weight else 0.0

    @abstractmethod
    def values(self, y_true: Array, y_pred: Array) -> Array:
        """A number for each sample, or for each step."""
