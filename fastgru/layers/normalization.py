"""BatchNormalization with its moving statistics, and LayerNormalization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import ops
from .base import Array, Layer, Shape, as_float32
from .training_step import Back, TrainingStep


class BatchNormalization(Layer):
    """(x − moving_mean) / √(moving_variance + ε) · gamma + beta along ``axis``.

    In training mean and variance are those of the batch (of its valid steps; Ioffe and Szegedy, 2015), and the moving
    ones follow: moving = momentum · moving + (1 − momentum) · batch's. A frozen layer is run as in scoring.
    """

    arguments = ("axis", "momentum", "epsilon", "center", "scale", "renorm")

    def __init__(
        self,
        axis: int | Sequence[int] | Mapping[str, Any] = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        name: str | None = None,
        *,
        renorm: bool = False,
    ) -> None:
        super().__init__(name)
        axes = _axes(axis)
        if len(axes) != 1:
            raise ValueError(f"layer {self.name!r} (BatchNormalization): axis: expected one axis, found {axes}")
        self.axis = axes[0]
        self.momentum = float(momentum)
        self.renorm = bool(renorm)
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

    def trainable_names(self) -> tuple[str, ...]:
        return self.weight_names()[:-2] if self.trainable else ()

    def untrainable(self, through: bool = False) -> str:
        if not self.renorm or not self.trainable:
            return ""
        return f"cannot train through layer {self.name!r} (BatchNormalization): renorm has no backward pass here"

    def train(self, x: Any, mask: Any, step: TrainingStep, initial_state: Any = None) -> tuple[Any, Any, Back]:
        y, mask = self.forward(x, mask, None)  # checks x
        x, axis, names = as_float32(x), self.axis % y.ndim, self.trainable_names()
        if not self.trainable:
            factor = self._factor.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
            return y, mask, lambda dy: dy * factor
        rows, valid, count = self._rows(x), None, np.float32(x.size // x.shape[axis])
        if mask is not None:
            if mask.ndim != x.ndim - 1:
                raise ValueError(
                    f"layer {self.name!r} (BatchNormalization): expected a mask of one axis less than x, found "
                    f"{mask.shape} for {x.shape}"
                )
            valid = self._rows(np.broadcast_to(mask[..., None], x.shape))
            count = valid.sum(axis=0, dtype=np.float32) + np.float32(1e-7)  # as Keras has it
        mean = ops.column_sums(rows if valid is None else np.where(valid, rows, np.float32(0.0))) / count
        centred = rows - mean
        counted = centred if valid is None else np.where(valid, centred, np.float32(0.0))
        variance = ops.column_sums(np.square(counted)) / count
        inverse = 1 / np.sqrt(variance + np.float32(self.epsilon))
        normal = centred * inverse
        gamma = as_float32(self.weights["gamma"]) if self.scale else np.float32(1.0)
        scaled = normal * gamma if self.scale else normal
        self._follow(step, {"moving_mean": mean, "moving_variance": variance})

        def back(dy: Array) -> Array:
            dy = self._rows(dy)
            by_gamma, by_beta = ops.column_sums(dy * normal), ops.column_sums(dy)
            for name, gradient in (("gamma", by_gamma), ("beta", by_beta)):
                if name in names:
                    step.add(self, name, gradient)
            share = (by_beta + normal * by_gamma) / count  # what every counted row has by mean and variance
            if valid is not None:
                share = np.where(valid, share, np.float32(0.0))
            return self._from_rows((dy - share) * (gamma * inverse), x.shape)

        return self._from_rows(scaled + self.weights["beta"] if self.center else scaled, x.shape), mask, back

    def _follow(self, step: TrainingStep, batch: dict[str, Array]) -> None:
        """Leave the new moving statistics in the step, behind those of an earlier call of this layer."""
        new = step.updates.setdefault(self, {})
        for name, value in batch.items():
            old = as_float32(new.get(name, self.weights[name]))
            new[name] = np.float32(self.momentum) * old + np.float32(1 - self.momentum) * value

    def _rows(self, x: Array) -> Array:
        """x (…, C, …) as contiguous rows (R, C)."""
        moved = np.moveaxis(x, self.axis, -1)
        return np.ascontiguousarray(moved).reshape(-1, moved.shape[-1])

    def _from_rows(self, rows: Array, shape: Shape) -> Array:
        axis = self.axis % len(shape)
        moved = (*shape[:axis], *shape[axis + 1 :], shape[axis])
        return np.moveaxis(rows.reshape(moved), -1, axis)

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
        centred = x - x.mean(axis=axes, keepdims=True)
        variance = np.square(centred).mean(axis=axes, keepdims=True)
        # rms_scaling: Keras divides by the standard deviation, not by the root mean square
        y = (x if self.rms_scaling else centred) / np.sqrt(variance + np.float32(self.epsilon))
        if self._gamma is not None:
            y = y * self._gamma.reshape(shape)
        return (y if self._beta is None else y + self._beta.reshape(shape)), mask

    def train(self, x: Any, mask: Any, step: TrainingStep, initial_state: Any = None) -> tuple[Any, Any, Back]:
        y, mask = self.forward(x, mask, None)
        x = as_float32(x)
        axes = tuple(sorted(axis % x.ndim for axis in self.axis))
        centred = x - x.mean(axis=axes, keepdims=True)
        variance = np.square(centred).mean(axis=axes, keepdims=True)
        inverse = 1 / np.sqrt(variance + np.float32(self.epsilon))
        normal = (x if self.rms_scaling else centred) * inverse
        gamma = (
            None if self._gamma is None else self._gamma.reshape([n if i in axes else 1 for i, n in enumerate(x.shape)])
        )

        def back(dy: Array) -> Array:
            for name, gradient in (("gamma", dy * normal), ("beta", dy)):
                if name in self.trainable_names():
                    step.add(self, name, _sum_but(gradient, axes))
            if gamma is not None:
                dy = dy * gamma
            share = centred * inverse * (dy * normal).mean(axis=axes, keepdims=True)  # by the variance
            if not self.rms_scaling:
                share = share + dy.mean(axis=axes, keepdims=True)  # by the mean
            dx: Array = (dy - share) * inverse
            return dx

        return y, mask, back


def _sum_but(x: Array, axes: tuple[int, ...]) -> Array:
    """x summed over all axes but ``axes``."""
    kept = tuple(x.shape[axis] for axis in axes)
    moved = np.moveaxis(x, axes, range(x.ndim - len(axes), x.ndim))
    return ops.column_sums(np.ascontiguousarray(moved).reshape(-1, int(np.prod(kept)))).reshape(kept)


def _axes(axis: int | Sequence[int] | Mapping[str, Any]) -> list[int]:
    """Axes as a list; tf.keras saves a wrapped list as {'class_name': 'ListWrapper', …}."""
    if isinstance(axis, Mapping):
        axis = axis["config"]
    return [int(axis)] if isinstance(axis, int) else [int(a) for a in axis]
