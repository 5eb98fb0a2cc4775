"""Layers that only move numbers: Flatten, Reshape, Permute, RepeatVector. All drop the mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .base import Layer
from .training_step import Back, TrainingStep


class Flatten(Layer):
    """(N, …) → (N, product of the rest)."""

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name)
        self.ready = True

    def forward(self, x: Any, mask: Any, num_threads: int | None, initial_state: Any = None) -> tuple[Any, Any]:
        return x.reshape(x.shape[0], int(np.prod(x.shape[1:]))), None

    def train(self, x: Any, mask: Any, step: TrainingStep, initial_state: Any = None) -> tuple[Any, Any, Back]:
        return *self.forward(x, mask, None), lambda dy: dy.reshape(x.shape)


class Reshape(Layer):
    """(N, …) → (N, *target_shape), with at most one −1."""

    arguments = ("target_shape",)

    def __init__(self, target_shape: Sequence[int | None], name: str | None = None) -> None:
        super().__init__(name)
        self.target_shape = tuple(-1 if n is None else int(n) for n in target_shape)
        self.ready = True

    def forward(self, x: Any, mask: Any, num_threads: int | None, initial_state: Any = None) -> tuple[Any, Any]:
        try:
            if x.size == 0 and -1 in self.target_shape:
                known = int(np.prod([n for n in self.target_shape if n != -1]))
                free = int(np.prod(x.shape[1:])) // max(known, 1)
                shape = tuple(free if n == -1 else n for n in self.target_shape)
                return x.reshape(x.shape[0], *shape), None
            return x.reshape(x.shape[0], *self.target_shape), None
        except ValueError:
            raise ValueError(
                f"layer {self.name!r} (Reshape): expected inputs that fit {self.target_shape}, found {x.shape}"
            ) from None

    def train(self, x: Any, mask: Any, step: TrainingStep, initial_state: Any = None) -> tuple[Any, Any, Back]:
        return *self.forward(x, mask, None), lambda dy: dy.reshape(x.shape)

    def describe(self) -> str:
        return f"(None, {', '.join(map(str, self.target_shape))})"


class Permute(Layer):
    """Reorder the axes after the batch; ``dims`` counts from 1."""

    arguments = ("dims",)

    def __init__(self, dims: Sequence[int], name: str | None = None) -> None:
        super().__init__(name)
        self.dims = tuple(int(d) for d in dims)
        if sorted(self.dims) != list(range(1, len(self.dims) + 1)):
            raise ValueError(
                f"layer {self.name!r} (Permute): dims: expected a permutation of 1 … "
                f"{len(self.dims)}, found {self.dims}"
            )
        self.ready = True

    def forward(self, x: Any, mask: Any, num_threads: int | None, initial_state: Any = None) -> tuple[Any, Any]:
        if x.ndim != len(self.dims) + 1:
            raise ValueError(f"layer {self.name!r} (Permute): expected {len(self.dims) + 1} axes, found {x.shape}")
        return np.transpose(x, (0, *self.dims)), None

    def train(self, x: Any, mask: Any, step: TrainingStep, initial_state: Any = None) -> tuple[Any, Any, Back]:
        back = np.argsort((0, *self.dims))
        return *self.forward(x, mask, None), lambda dy: np.transpose(dy, back)

    def describe(self) -> str:
        return str(self.dims)


class RepeatVector(Layer):
    """(N, I) → (N, n, I)."""

    arguments = ("n",)

    def __init__(self, n: int, name: str | None = None) -> None:
        super().__init__(name)
        self.n = int(n)
        self.ready = True

    def forward(self, x: Any, mask: Any, num_threads: int | None, initial_state: Any = None) -> tuple[Any, Any]:
        if x.ndim != 2:
            raise ValueError(f"layer {self.name!r} (RepeatVector): expected (N, I), found {x.shape}")
        return np.repeat(x[:, None, :], self.n, axis=1), None

    def train(self, x: Any, mask: Any, step: TrainingStep, initial_state: Any = None) -> tuple[Any, Any, Back]:
        return *self.forward(x, mask, None), lambda dy: dy.sum(axis=1)

    def describe(self) -> str:
        return f"n {self.n}"
