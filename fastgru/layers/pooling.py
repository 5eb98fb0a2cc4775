"""Pooling over the time axis."""

from __future__ import annotations

from typing import Any

import numpy as np

from .base import Array, Layer, as_float32
from .training_step import Back, TrainingStep


class GlobalAveragePooling1D(Layer):
    """Mean over the (valid) time steps; NaN for a row without any, as in Keras."""

    arguments = ("data_format", "keepdims")
    call_arguments = ("mask",)

    def __init__(self, data_format: str | None = None, keepdims: bool = False, name: str | None = None) -> None:
        super().__init__(name)
        self.data_format = data_format or "channels_last"
        self.keepdims = bool(keepdims)
        self.ready = True

    def forward(self, x: Any, mask: Any, num_threads: int | None, initial_state: Any = None) -> tuple[Any, Any]:
        x = as_float32(x)
        if x.ndim != 3:
            raise ValueError(f"layer {self.name!r} ({self.class_name()}): expected (N, T, I), found {x.shape}")
        first = self.data_format == "channels_first"
        return self.pool(x, mask, 2 if first else 1, 1 if first else 2), None

    def pool(self, x: Any, mask: Any, time: int, features: int) -> Any:
        """Reduce the axis ``time``; ``mask`` (N, T) or None."""
        if mask is None:
            return x.mean(axis=time, keepdims=self.keepdims)
        valid = np.expand_dims(mask, features)
        total = np.where(valid, x, np.float32(0.0)).sum(axis=time, keepdims=self.keepdims)
        count = valid.sum(axis=time, keepdims=self.keepdims, dtype=np.float32)
        with np.errstate(invalid="ignore"):
            return total / count

    def train(self, x: Any, mask: Any, step: TrainingStep, initial_state: Any = None) -> tuple[Any, Any, Back]:
        x = as_float32(x)
        y, none = self.forward(x, mask, None)
        time = 2 if self.data_format == "channels_first" else 1

        def back(dy: Array) -> Array:
            spread = dy if self.keepdims else np.expand_dims(dy, time)
            return self.unpool(spread, x, y if self.keepdims else np.expand_dims(y, time), mask, time)

        return y, none, back

    def unpool(self, dy: Array, x: Array, y: Array, mask: Any, time: int) -> Array:
        """The gradient of x from that of y, both with an axis ``time`` of size 1; 0 for a row without valid steps."""
        if mask is None:
            return np.broadcast_to(dy / np.float32(x.shape[time]), x.shape)
        valid = np.expand_dims(mask, 3 - time)
        count = np.maximum(valid.sum(axis=time, keepdims=True, dtype=np.float32), np.float32(1.0))
        return np.where(valid, dy / count, np.float32(0.0))


class GlobalMaxPooling1D(GlobalAveragePooling1D):
    """Maximum over all time steps. Keras ignores the mask here."""

    def pool(self, x: Any, mask: Any, time: int, features: int) -> Any:
        """Reduce the axis ``time``; the mask has no effect."""
        return x.max(axis=time, keepdims=self.keepdims)

    def unpool(self, dy: Array, x: Array, y: Array, mask: Any, time: int) -> Array:
        """The gradient of x: shared equally by the steps that have the maximum, as in TensorFlow."""
        largest = x == y
        count = largest.sum(axis=time, keepdims=True, dtype=np.float32)
        with np.errstate(invalid="ignore", divide="ignore"):  # a NaN is no maximum of anything
            return np.where(largest, dy / count, np.float32(0.0))
