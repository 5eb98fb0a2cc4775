"""Learning rates that depend on the number of the step, by Keras' names and formulas."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

#: Number of the step, from 0 -> learning rate
Schedule = Callable[[int], float]


def learning_rate(rate: float | Schedule, step: int) -> float:
    """The learning rate of a step.

    Raises
    ------
    ValueError
        If it is no finite number of at least 0.
    """
    value = float(rate(step) if callable(rate) else rate)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"learning_rate: expected a finite number of at least 0, found {value} at step {step}")
    return value


@dataclass(frozen=True)
class ExponentialDecay:
    """initial · rate^(step / decay_steps); with ``staircase`` in steps of decay_steps."""

    initial_learning_rate: float
    decay_steps: float
    decay_rate: float
    staircase: bool = False

    def __post_init__(self) -> None:
        _expect(self.decay_steps > 0, "decay_steps", "a number above 0", self.decay_steps)

    def __call__(self, step: int) -> float:
        exponent = step / self.decay_steps
        return self.initial_learning_rate * self.decay_rate ** (math.floor(exponent) if self.staircase else exponent)


@dataclass(frozen=True)
class CosineDecay:
    """Half a cosine from the initial rate to alpha times it, after a linear rise to ``warmup_target`` where given."""

    initial_learning_rate: float
    decay_steps: float
    alpha: float = 0.0
    warmup_target: float | None = None
    warmup_steps: float = 0

    def __post_init__(self) -> None:
        _expect(self.decay_steps > 0, "decay_steps", "a number above 0", self.decay_steps)
        _expect(self.warmup_steps >= 0, "warmup_steps", "a number of at least 0", self.warmup_steps)

    def __call__(self, step: int) -> float:
        start = self.initial_learning_rate
        if self.warmup_target is not None:
            if step < self.warmup_steps:
                return start + (self.warmup_target - start) * step / self.warmup_steps
            start, step = self.warmup_target, step - int(self.warmup_steps)
        share = min(step, self.decay_steps) / self.decay_steps
        return start * ((1 - self.alpha) * 0.5 * (1 + math.cos(math.pi * share)) + self.alpha)


@dataclass(frozen=True)
class PiecewiseConstantDecay:
    """values[i] up to and including step boundaries[i], the last value after all of them."""

    boundaries: Sequence[int]
    values: Sequence[float]

    def __post_init__(self) -> None:
        expected = f"one value more than the {len(self.boundaries)} boundaries"
        _expect(len(self.values) == len(self.boundaries) + 1, "values", expected, self.values)
        rises = all(a < b for a, b in zip(self.boundaries, self.boundaries[1:], strict=False))
        _expect(rises, "boundaries", "rising numbers", self.boundaries)

    def __call__(self, step: int) -> float:
        return float(self.values[sum(step > boundary for boundary in self.boundaries)])


@dataclass(frozen=True)
class Warmup:
    """A linear rise from 0 over ``steps`` steps to what ``then`` gives, which begins after it."""

    then: float | Schedule
    steps: int

    def __post_init__(self) -> None:
        _expect(self.steps > 0, "steps", "a number above 0", self.steps)

    def __call__(self, step: int) -> float:
        if step < self.steps:
            return learning_rate(self.then, 0) * step / self.steps
        return learning_rate(self.then, step - self.steps)


def _expect(holds: bool, name: str, expected: str, found: object) -> None:
    if not holds:
        raise ValueError(f"{name}: expected {expected}, found {found!r}")
