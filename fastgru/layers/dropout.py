"""Layers that act in training only: Dropout and its kin, and noise. Scoring leaves them out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .base import Layer, Shape, as_float32
from .core import Identity
from .training_step import Back, TrainingStep

if TYPE_CHECKING:
    from .reader import Reader


class Dropout(Identity):
    """In training: 0 with probability ``rate``, the others times 1 / (1 - rate) (Srivastava et al., 2014).

    Parameters
    ----------
    rate
        0 ... 1.
    noise_shape
        The mask's shape, None where it is as wide as the input; 1 shares a decision along an axis.
    seed
        Draws apart from layers with other seeds; the training step's own seed counts as well.
    """

    arguments: tuple[str, ...] = ("rate", "noise_shape", "seed")

    def __init__(
        self,
        rate: float = 0.0,
        noise_shape: Sequence[int | None] | None = None,
        seed: int | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        if not 0 <= rate <= 1:
            raise ValueError(f"layer {self.name!r} ({self.class_name()}): rate: expected 0 … 1, found {rate!r}")
        self.rate = float(rate)
        self.noise_shape = None if noise_shape is None else tuple(noise_shape)
        self.seed = seed

    @classmethod
    def from_config(cls, config: Mapping[str, Any], reader: Reader) -> Layer:
        given: dict[str, Any] = {
            "rate": plain_rate(config.get("rate", config.get("p"))),
            "noise_shape": _plain_shape(config.get("noise_shape")),
            "seed": plain_seed(config.get("seed")),
        }
        return cls(name=config.get("name"), **{key: given[key] for key in cls.arguments})

    def mask_shape(self, shape: Shape) -> Shape:
        """The shape of the mask for inputs of ``shape``."""
        if self.noise_shape is None:
            return shape
        if len(self.noise_shape) != len(shape):
            raise ValueError(
                f"layer {self.name!r} ({self.class_name()}): noise_shape: expected {len(shape)} sizes for inputs "
                f"{shape}, found {self.noise_shape}"
            )
        return tuple(n if own is None else own for own, n in zip(self.noise_shape, shape, strict=True))

    def train(self, x: Any, mask: Any, step: TrainingStep, initial_state: Any = None) -> tuple[Any, Any, Back]:
        x = as_float32(x)
        if self.rate == 0:
            return x, mask, lambda dy: dy
        keep = step.keep(self.mask_shape(x.shape), self.rate, self.seed)
        return x * keep, mask, lambda dy: dy * keep

    def describe(self) -> str:
        return f"rate {self.rate:g}"


class SpatialDropout1D(Dropout):
    """Dropout of whole features: one decision for all time steps (N, 1, I) (Tompson et al., 2014)."""

    arguments = ("rate", "seed")

    def __init__(self, rate: float = 0.0, seed: int | None = None, name: str | None = None) -> None:
        super().__init__(rate, None, seed, name)

    def mask_shape(self, shape: Shape) -> Shape:
        """(N, 1, I)."""
        if len(shape) != 3:
            raise ValueError(f"layer {self.name!r} (SpatialDropout1D): expected (N, T, I), found {shape}")
        return (shape[0], 1, shape[2])


class AlphaDropout(Dropout):
    """Dropout that keeps mean and variance of what selu gives (Klambauer et al., 2017)."""

    def train(self, x: Any, mask: Any, step: TrainingStep, initial_state: Any = None) -> tuple[Any, Any, Back]:
        x = as_float32(x)
        if self.rate == 0:
            return x, mask, lambda dy: dy
        low = -1.6732632423543772 * 1.0507009873554805  # what selu tends to
        keep = step.keep(self.mask_shape(x.shape), self.rate, self.seed) > 0
        a = ((1 - self.rate) * (1 + self.rate * low**2)) ** -0.5 if self.rate < 1 else 0.0
        factor, shift = np.float32(a), np.float32(-a * low * self.rate)
        return factor * np.where(keep, x, np.float32(low)) + shift, mask, lambda dy: dy * (factor * keep)


class GaussianDropout(Dropout):
    """Times random numbers of mean 1 and variance rate / (1 - rate) (Srivastava et al., 2014)."""

    arguments = ("rate", "seed")

    def __init__(self, rate: float = 0.0, seed: int | None = None, name: str | None = None) -> None:
        super().__init__(rate, None, seed, name)

    def train(self, x: Any, mask: Any, step: TrainingStep, initial_state: Any = None) -> tuple[Any, Any, Back]:
        x = as_float32(x)
        if self.rate in (0, 1):  # 1: an infinite variance, where Keras divides by zero
            return x, mask, lambda dy: dy
        noise = 1 + np.float32(math.sqrt(self.rate / (1 - self.rate))) * step.normal(x.shape, self.seed)
        return x * noise, mask, lambda dy: dy * noise


class GaussianNoise(Identity):
    """Plus random numbers of mean 0 and standard deviation ``stddev``."""

    arguments = ("stddev", "seed")

    def __init__(self, stddev: float = 0.0, seed: int | None = None, name: str | None = None) -> None:
        super().__init__(name)
        self.stddev = float(stddev)
        self.seed = seed

    @classmethod
    def from_config(cls, config: Mapping[str, Any], reader: Reader) -> Layer:
        given = config.get("stddev")
        stddev = float(given) if isinstance(given, (int, float)) else 0.0
        return cls(stddev, plain_seed(config.get("seed")), config.get("name"))

    def train(self, x: Any, mask: Any, step: TrainingStep, initial_state: Any = None) -> tuple[Any, Any, Back]:
        x = as_float32(x)
        noise = np.float32(self.stddev) * step.normal(x.shape, self.seed)
        return x + noise, mask, lambda dy: dy


class ActivityRegularization(Identity):
    """Adds a penalty on what passes to Keras' loss, which training here does not have."""

    arguments = ("l1", "l2")

    def __init__(self, l1: float = 0.0, l2: float = 0.0, name: str | None = None) -> None:
        super().__init__(name)
        self.l1, self.l2 = _penalty(l1), _penalty(l2)

    def untrainable(self, through: bool = False) -> str:
        if not self.l1 and not self.l2:
            return ""
        return (
            f"cannot train through layer {self.name!r} (ActivityRegularization): its penalty is not part of a loss here"
        )


# Scoring never looks at what follows, so that something strange in a file must not keep it from being scored.


def plain_rate(value: Any) -> float:
    """A rate of a config, 0 if it is none."""
    return float(value) if isinstance(value, (int, float)) and 0 <= value <= 1 else 0.0


def plain_seed(value: Any) -> int | None:
    """A seed of a config, None if it is none."""
    return value if isinstance(value, int) else None


def _penalty(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0


def _plain_shape(value: Any) -> list[int | None] | None:
    whole = isinstance(value, list) and all(n is None or (isinstance(n, int) and n > 0) for n in value)
    return value if whole else None
