"""BatchNormalization with its moving statistics, and LayerNormalization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .base import Array, Layer, Shape, as_float32


class BatchNormalization(Layer):
    """(x − moving_mean) / √(moving_variance + ε) · gamma + beta along ``axis``."""

    arguments = ("axis", "epsilon", "center", "scale")

    def __init__(
        self,
        axis: int | Sequence[int] | Mapping[str, Any] = -1,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        axes = _axes(axis)
        if len(axes) != 1:
            raise ValueError(f"layer {self.name!r} (BatchNormalization): axis: expected one axis, found {axes}")
        self.axis = axes[0]
        self.epsilon = float(epsilon)
        self.center = bool(center)
        self.scale = bool(scale)

    def weight_names(self) -> tuple[str, ...]:
        learned = ["gamma"] * self.scale + ["beta"] * self.center
        return (*learned, "moving_mean", "moving_variance")

    def check(self, weights: Mapping[str, Array]) -> None:
        expected = weights["moving_mean"].shape
        for name, value in weights.items():
            if value.ndim != 1 or value.shape != expected:
                raise ValueError(f"{name}: expected {expected}, found {value.shape}")

    def prepare(self) -> None:
        w = {name: value.astype(np.float64) for name, value in self.weights.items()}
        factor = w.get("gamma", 1.0) / np.sqrt(w["moving_variance"] + self.epsilon)
        shift = w.get("beta", 0.0) - w["moving_mean"] * factor
        self._factor = np.asarray(factor).astype(np.float32)
        self._shift = np.asarray(shift).astype(np.float32)

    def build(self, shape: Shape, rng: np.random.Generator) -> None:
        width = shape[self.axis]
        start = {"gamma": 1, "beta": 0, "moving_mean": 0, "moving_variance": 1}
        self.assign({n: np.full(width, start[n], np.float32) for n in self.weight_names()})

    def forward(self, x: Any, mask: Any, num_threads: int | None, initial_state: Any = None) -> tuple[Any, Any]:
        x = as_float32(x)
        factor, shift = self._factor, self._shift
        if not -x.ndim <= self.axis < x.ndim or x.shape[self.axis] != factor.shape[0]:
            raise ValueError(
                f"layer {self.name!r} (BatchNormalization): expected {factor.shape[0]} features "
                f"on axis {self.axis}, found {x.shape}"
            )
        if self.axis not in (-1, x.ndim - 1):
            shape = [1] * x.ndim
            shape[self.axis] = -1
            factor, shift = factor.reshape(shape), shift.reshape(shape)
        return x * factor + shift, mask

    def describe(self) -> str:
        return f"{len(self._factor)}" if self.ready else ""


class LayerNormalization(Layer):
    """(x − mean) / √(var + ε) · gamma + beta over ``axis`` of each row (Ba et al., 2016)."""

    arguments = ("axis", "epsilon", "center", "scale", "rms_scaling")

    def __init__(
        self,
        axis: int | Sequence[int] | Mapping[str, Any] = -1,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        rms_scaling: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        self.axis = _axes(axis)
        self.epsilon = float(epsilon)
        self.center = bool(center)
        self.scale = bool(scale)
        self.rms_scaling = bool(rms_scaling)

    def weight_names(self) -> tuple[str, ...]:
        beta = self.center and not self.rms_scaling
        return tuple(["gamma"] * (self.scale or self.rms_scaling) + ["beta"] * beta)

    def prepare(self) -> None:
        self._gamma = as_float32(self.weights["gamma"]) if "gamma" in self.weights else None
        self._beta = as_float32(self.weights["beta"]) if "beta" in self.weights else None

    def build(self, shape: Shape, rng: np.random.Generator) -> None:
        own = [shape[axis] for axis in self.axis]
        start = {"gamma": 1, "beta": 0}
        self.assign({n: np.full(own, start[n], np.float32) for n in self.weight_names()})

    def forward(self, x: Any, mask: Any, num_threads: int | None, initial_state: Any = None) -> tuple[Any, Any]:
        x = as_float32(x)
        axes = tuple(sorted(axis % x.ndim for axis in self.axis))
        sizes = tuple(x.shape[axis] for axis in axes)
        shape = [n if axis in axes else 1 for axis, n in enumerate(x.shape)]
        for name, value in (("gamma", self._gamma), ("beta", self._beta)):
            if value is not None and value.shape != sizes:
                raise ValueError(
                    f"layer {self.name!r} (LayerNormalization): {name} {value.shape} does not "
                    f"fit axes {axes} of inputs {x.shape}"
                )
        if self.rms_scaling:
            y = x / np.sqrt(np.square(x).mean(axis=axes, keepdims=True) + np.float32(self.epsilon))
        else:
            centred = x - x.mean(axis=axes, keepdims=True)
            variance = np.square(centred).mean(axis=axes, keepdims=True)
            y = centred / np.sqrt(variance + np.float32(self.epsilon))
        if self._gamma is not None:
            y = y * self._gamma.reshape(shape)
        return (y if self._beta is None else y + self._beta.reshape(shape)), mask


def _axes(axis: int | Sequence[int] | Mapping[str, Any]) -> list[int]:
    """Axes as a list; tf.keras saves a wrapped list as {'class_name': 'ListWrapper', …}."""
    if isinstance(axis, Mapping):
        axis = axis["config"]
    return [int(axis)] if isinstance(axis, int) else [int(a) for a in axis]
