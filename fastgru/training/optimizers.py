"""Optimisers as in Keras 3: gradients into weights, in place, one step at a time.

A gradient that is `SparseRows` moves a table as the whole gradient would, rows of zeros included: SGD and Adagrad leave
those alone, and read only the others; momentum, RMSprop and Adam move every row, as Keras does. An id that a batch
holds twice has one gradient, the sum of both; Keras on TensorFlow squares them apart, in slots and in norms to clip.
(Source: keras/src/optimizers of Keras 3; slots and weights are float32.)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from .._core.arrays import adam
from ..layers.base import Array
from ..layers.training_step import Gradient, SparseRows
from .names import find
from .schedules import Schedule
from .schedules import learning_rate as rate_at


class Optimizer(ABC):
    """What all optimisers share: the learning rate, clipping, weight decay, and their slots.

    Parameters
    ----------
    learning_rate : float or schedule
    weight_decay : float, optional
        Before each step a weight loses this share of itself, times the learning rate.
    clipnorm, global_clipnorm, clipvalue : float, optional
        At most one: gradients are scaled down to this norm, each or all together, or cut to ± this value.
    """

    #: Arrays of a weight's shape that are kept from step to step, and what they start from.
    slots: tuple[str, ...] = ()

    def __init__(
        self,
        learning_rate: float | Schedule = 0.001,
        *,
        weight_decay: float | None = None,
        clipnorm: float | None = None,
        global_clipnorm: float | None = None,
        clipvalue: float | None = None,
    ) -> None:
        clips = {"clipnorm": clipnorm, "global_clipnorm": global_clipnorm, "clipvalue": clipvalue}
        given = [name for name, value in clips.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)}: expected at most one kind of clipping")
        for name, value in {**clips, "weight_decay": weight_decay}.items():
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}: expected a finite number of at least 0, found {value!r}")
        if not callable(learning_rate):
            rate_at(learning_rate, 0)  # what can't be a rate is refused before a run begins, and writes a checkpoint
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.clipnorm, self.global_clipnorm, self.clipvalue = clipnorm, global_clipnorm, clipvalue
        self.iterations = 0
        self._state: dict[str, dict[str, Array]] = {}

    def apply(self, gradients: Mapping[str, Gradient], weights: Mapping[str, Array]) -> None:
        """One step.

        Parameters
        ----------
        gradients : float32, or SparseRows
            By the name of the weight.
        weights : float32
            Changed in place; those without a gradient stay as they are.

        Raises
        ------
        ValueError
            For a gradient without a weight, or of another shape.
        """
        for name, gradient in gradients.items():
            if name not in weights or _shape(gradient) != weights[name].shape:
                found = weights[name].shape if name in weights else "none"
                raise ValueError(f"gradient of {name!r}: expected a weight of shape {_shape(gradient)}, found {found}")
        rate = np.float32(rate_at(self.learning_rate, self.iterations))
        self.iterations += 1
        for name, gradient in self._clipped(gradients).items():
            weight = weights[name]
            if self.weight_decay:
                weight -= weight * (np.float32(self.weight_decay) * rate)
            if name not in self._state:
                self._state[name] = {slot: self.start(slot, weight) for slot in self.slots}
            self.update(weight, gradient, rate, self._state[name])

    @abstractmethod
    def update(self, weight: Array, gradient: Gradient, rate: np.float32, slots: dict[str, Array]) -> None:
        """Change one weight, and its slots, in place."""

    def start(self, slot: str, weight: Array) -> Array:
        """What a slot holds before the first step."""
        return np.zeros(weight.shape, np.float32)

    # -- state -----------------------------------------------------------------------------

    def state(self) -> dict[str, Array]:
        """All that the next step depends on beside the weights: slots by "slot/weight", and the number of steps."""
        found = {f"{slot}/{name}": a for name, slots in self._state.items() for slot, a in slots.items()}
        return {**found, "iterations": np.array(self.iterations, np.int64)}

    def set_state(self, state: Mapping[str, Array]) -> None:
        """Go on from what `state` gave.

        Raises
        ------
        ValueError
            For the state of another kind of optimiser.
        """
        kept: dict[str, dict[str, Array]] = {}
        for key, value in state.items():
            slot, _, name = key.partition("/")
            if key != "iterations":
                kept.setdefault(name, {})[slot] = np.array(value, np.float32, order="C")
        wrong = [name for name, slots in kept.items() if set(slots) != set(self.slots)]
        if wrong or "iterations" not in state:
            found = f"{sorted(kept[wrong[0]])} for {wrong[0]!r}" if wrong else "no number of steps"
            raise ValueError(f"state: expected that of {type(self).__name__}, {list(self.slots)}, found {found}")
        self._state, self.iterations = kept, int(state["iterations"])

    # -- clipping --------------------------------------------------------------------------

    def _clipped(self, gradients: Mapping[str, Gradient]) -> dict[str, Gradient]:
        found = dict(gradients)
        if self.clipnorm is not None:
            return {name: _scaled(g, _shrink(self.clipnorm, _square(g))) for name, g in found.items()}
        if self.global_clipnorm is not None:
            factor = _shrink(self.global_clipnorm, sum(_square(g) for g in found.values()))
            return {name: _scaled(g, factor) for name, g in found.items()}
        if self.clipvalue is not None:
            most = np.float32(self.clipvalue)
            return {name: _with_values(g, np.clip(_values(g), -most, most)) for name, g in found.items()}
        return found


class SGD(Optimizer):
    """w -= rate · g; with momentum μ v = μ v - rate · g and w += v, or Nesterov's w += μ v - rate · g."""

    def __init__(
        self,
        learning_rate: float | Schedule = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, **options)
        self.momentum, self.nesterov = _part("momentum", momentum), nesterov
        self.slots = ("momentum",) if momentum else ()

    def update(self, weight: Array, gradient: Gradient, rate: np.float32, slots: dict[str, Array]) -> None:
        if not self.momentum:
            if isinstance(gradient, SparseRows):
                weight[gradient.ids] -= rate * gradient.values
            else:
                weight -= rate * gradient
            return
        step, velocity = rate * _dense(gradient), slots["momentum"]
        velocity *= self.momentum
        velocity -= step
        weight += self.momentum * velocity - step if self.nesterov else velocity


class Adagrad(Optimizer):
    """a += g²; w -= rate · g / √(a + ε)."""

    slots = ("accumulator",)

    def __init__(
        self,
        learning_rate: float | Schedule = 0.001,
        initial_accumulator_value: float = 0.1,
        epsilon: float = 1e-7,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, **options)
        self.initial_accumulator_value, self.epsilon = initial_accumulator_value, np.float32(epsilon)

    def start(self, slot: str, weight: Array) -> Array:
        return np.full_like(weight, self.initial_accumulator_value)

    def update(self, weight: Array, gradient: Gradient, rate: np.float32, slots: dict[str, Array]) -> None:
        total, values = slots["accumulator"], _values(gradient)
        rows: Any = gradient.ids if isinstance(gradient, SparseRows) else ...
        squares = total[rows] + values * values
        total[rows] = squares
        weight[rows] -= rate * values / np.sqrt(squares + self.epsilon)


class RMSprop(Optimizer):
    """v = ρ v + (1 - ρ) g²; w -= rate · g / √(v + ε), with the mean gradient's square taken from v if ``centered``."""

    def __init__(
        self,
        learning_rate: float | Schedule = 0.001,
        rho: float = 0.9,
        momentum: float = 0.0,
        epsilon: float = 1e-7,
        centered: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, **options)
        self.rho, self.momentum, self.epsilon = _part("rho", rho), _part("momentum", momentum), np.float32(epsilon)
        self.centered = centered
        self.slots = ("velocity", *(("momentum",) if momentum else ()), *(("average_gradient",) if centered else ()))

    def update(self, weight: Array, gradient: Gradient, rate: np.float32, slots: dict[str, Array]) -> None:
        g, velocity, rest = _dense(gradient), slots["velocity"], np.float32(1) - self.rho
        velocity *= self.rho
        velocity += rest * (g * g)
        under = velocity
        if self.centered:
            mean = slots["average_gradient"]
            mean *= self.rho
            mean += rest * g
            under = velocity - mean * mean
        step = rate * g / np.sqrt(under + self.epsilon)
        if self.momentum:
            slots["momentum"] *= self.momentum
            slots["momentum"] += step
            step = slots["momentum"]
        weight -= step


class Adam(Optimizer):
    """m += (1 - β₁)(g - m); v += (1 - β₂)(g² - v); w -= rate √(1 - β₂ᵗ) / (1 - β₁ᵗ) · m / (√v + ε)."""

    def __init__(
        self,
        learning_rate: float | Schedule = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        amsgrad: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, **options)
        self.beta_1, self.beta_2 = _part("beta_1", beta_1), _part("beta_2", beta_2)
        self.epsilon, self.amsgrad = np.float32(epsilon), amsgrad
        self.slots = ("momentum", "velocity", *(("velocity_hat",) if amsgrad else ()))

    def update(self, weight: Array, gradient: Gradient, rate: np.float32, slots: dict[str, Array]) -> None:
        bias = math.sqrt(1 - float(self.beta_2) ** self.iterations) / (1 - float(self.beta_1) ** self.iterations)
        flat = np.asarray(weight, np.float32, order="C")
        adam(
            flat,
            np.asarray(_dense(gradient), np.float32, order="C"),
            slots["momentum"],
            slots["velocity"],
            slots.get("velocity_hat"),
            np.float32(1) - self.beta_1,
            np.float32(1) - self.beta_2,
            np.float32(rate * bias),
            self.epsilon,
        )
        if flat is not weight:
            weight[...] = flat


class AdamW(Adam):
    """Adam with weight decay (Loshchilov and Hutter, 2019)."""

    def __init__(self, learning_rate: float | Schedule = 0.001, weight_decay: float = 0.004, **options: Any) -> None:
        super().__init__(learning_rate, weight_decay=weight_decay, **options)


OPTIMIZERS: dict[str, type[Optimizer]] = {
    "sgd": SGD,
    "adagrad": Adagrad,
    "rmsprop": RMSprop,
    "adam": Adam,
    "adamw": AdamW,
}


def get(optimizer: str | Optimizer) -> Optimizer:
    """An optimiser by its name, with Keras' defaults, or as it is.

    Raises
    ------
    ValueError, TypeError
        For a name that is not known, offering the nearest; for anything else.
    """
    if isinstance(optimizer, Optimizer):
        return optimizer
    if not isinstance(optimizer, str):
        raise TypeError(f"optimizer: expected a name or a fastgru optimiser, found {type(optimizer).__name__}")
    return find("optimizer", optimizer, OPTIMIZERS)()


# -- gradients -------------------------------------------------------------------------------------


def _values(gradient: Gradient) -> Array:
    return gradient.values if isinstance(gradient, SparseRows) else gradient


def _dense(gradient: Gradient) -> Array:
    return gradient.dense() if isinstance(gradient, SparseRows) else gradient


def _shape(gradient: Gradient) -> tuple[int, ...]:
    if isinstance(gradient, SparseRows):
        return (gradient.rows, *gradient.values.shape[1:])
    return gradient.shape


def _with_values(gradient: Gradient, values: Array) -> Gradient:
    if isinstance(gradient, SparseRows):
        return SparseRows(gradient.ids, values, gradient.rows)
    return values


def _scaled(gradient: Gradient, factor: np.float32) -> Gradient:
    return gradient if factor == 1 else _with_values(gradient, _values(gradient) * factor)


def _square(gradient: Gradient) -> float:
    values = _values(gradient).astype(np.float64)
    return float((values * values).sum())


def _shrink(most: float, square: float) -> np.float32:
    norm = math.sqrt(square)
    return np.float32(most / norm) if norm > most else np.float32(1)


def _part(name: str, value: float) -> np.float32:
    if not 0 <= value < 1:
        raise ValueError(f"{name}: expected a number from 0 to below 1, found {value!r}")
    return np.float32(value)
