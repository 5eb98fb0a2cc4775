"""How far two right float32 evaluations of a model may be apart: what rounding in its layers does to its outputs.

A normalisation of numbers that hardly differ divides by next to nothing: what the layer before it rounded away comes
out many times as large. So the condition of each model is measured, where it matters.
"""

from __future__ import annotations

import numpy as np

from ..layers.base import Array
from ..models import Model
from .cases import Case, score
from .trace import run_through

__all__ = ["moved"]

#: Times max(1, |v|): eight float32 roundings. ONNX Runtime's sigmoid and tanh are off by five.
_ROUNDING = 1e-6
_DRAWS = 8


def moved(model: Model, case: Case) -> float:
    """By how much an output moves when each element that a layer gives is moved up or down by a rounding."""
    rng = np.random.default_rng(20240501)

    def rounded(v: Array) -> Array:
        if v.dtype.kind != "f" or not v.size:
            return v
        step = rng.choice([-_ROUNDING, _ROUNDING], v.shape) * np.maximum(1.0, np.abs(v))
        return np.where(v == 0, v, v + step).astype(v.dtype)  # a zero is exact: masked, or of a ReLU

    most = 0.0
    expected = score(model, case)
    for _ in range(_DRAWS):
        for a, b in zip(run_through(model, case.inputs, rounded), expected, strict=True):
            with np.errstate(invalid="ignore"):
                gap = np.abs(np.asarray(a, np.float64) - b)
            most = max(most, float(gap[np.isfinite(gap)].max(initial=0.0)))
    return most
