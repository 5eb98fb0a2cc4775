"""Pooling over the time axis."""

from __future__ import annotations

from typing import Any

import numpy as np

from .base import Layer, as_float32


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


class GlobalMaxPooling1D(GlobalAveragePooling1D):
    """Maximum over all time steps. Keras ignores the mask here."""

    def pool(self, x: Any, mask: Any, time: int, features: int) -> Any:
        """Reduce the axis ``time``; the mask has no effect."""
        return x.max(axis=time, keepdims=self.keepdims)
