"""What one training step carries through the layers: random numbers, and the gradients they leave behind.

A layer's `train` returns its output, its mask and a function `back`, which takes the gradient of the output, leaves the
gradients of the layer's weights in the step, and returns the gradient of the input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import ops

if TYPE_CHECKING:
    from .base import Layer

Array = NDArray[Any]
#: Gradient of the output -> gradient of the input, in the structure of the input; None where there is none.
Back = Callable[[Any], Any]


@dataclass(frozen=True)
class SparseRows:
    """The gradient of a table of which a batch reads few rows: all others are 0.

    Parameters
    ----------
    ids : int64 (R,), ascending, each once
    values : float32 (R, U)
    rows : int
        Rows of the whole table.
    """

    ids: Array
    values: Array
    rows: int

    @classmethod
    def summed(cls, ids: Array, values: Array, rows: int) -> SparseRows:
        """Of values (M, U) with repeated ids (M,): those of one id are added in the order in which they come."""
        unique, place = np.unique(ids, return_inverse=True)
        return cls(unique.astype(np.int64), ops.sum_rows(values, place.reshape(-1), len(unique)), rows)

    def dense(self) -> Array:
        """The whole gradient (rows, U)."""
        full = np.zeros((self.rows, self.values.shape[1]), np.float32)
        full[self.ids] = self.values
        return full

    def __add__(self, other: SparseRows) -> SparseRows:
        ids, values = np.concatenate([self.ids, other.ids]), np.concatenate([self.values, other.values])
        return SparseRows.summed(ids, values, self.rows)


Gradient = Array | SparseRows


@dataclass(frozen=True)
class LogitGradient:
    """The gradient of the x of an output y = softmax(x) or sigmoid(x), in place of that of y.

    Where y has rounded to 0 or 1 the way through y is blind: a loss that knows x (`TrainingStep.logits`) can hand its
    gradient over directly. ``dy`` is that of y by what else y is used for, None where that is nothing.
    """

    dx: Array
    dy: Array | None = None

    def through(self, back: Callable[[Array], Array]) -> Array:
        """The whole gradient of x, where ``back`` takes dy to x."""
        return self.dx if self.dy is None else self.dx + back(self.dy)


class TrainingStep:
    """One forward and backward pass.

    Parameters
    ----------
    seed, number
        Which random numbers dropout draws: those of the step ``number`` of a run with this seed.
    rows, first_row
        Rows of this pass, and the place of the first in its batch: a batch that is split into passes of some rows each
        draws what it would draw in one.
    num_threads
        As in `ops`; changes no result.
    memory
        What the steps of a run hand on to each other, so that its memory is not new in each: used caches, by cell.

    Attributes
    ----------
    gradients
        By layer and name of the weight, in Keras' layout, summed over all calls of the layer.
    updates
        New values of weights that no gradient moves (moving statistics), by layer and name.
    watch
        Called with each layer of a model and its output, as they are computed.
    """

    def __init__(
        self,
        seed: int = 0,
        number: int = 0,
        *,
        rows: int | None = None,
        first_row: int = 0,
        num_threads: int | None = None,
        memory: dict[Any, Any] | None = None,
    ) -> None:
        self.seed = seed
        self.number = number
        self.rows = rows
        self.first_row = first_row
        self.num_threads = num_threads
        self.memory = {} if memory is None else memory
        self.gradients: dict[Layer, dict[str, Gradient]] = {}
        self.updates: dict[Layer, dict[str, Array]] = {}
        self.watch: Callable[[Layer, Any], None] | None = None
        self._logits: list[tuple[Array, Array, str]] = []
        self._draws = 0

    def add(self, layer: Layer, name: str, gradient: Gradient) -> None:
        """Leave a weight's gradient; those of several calls of one layer are added up."""
        found = self.gradients.setdefault(layer, {})
        found[name] = found[name] + gradient if name in found else gradient

    def note_logits(self, y: Array, x: Array, activation: Any) -> None:
        """Remember that y = activation(x), where a loss may prefer x."""
        if activation in ("softmax", "sigmoid"):
            self._logits.append((y, x, activation))

    def logits(self, y: Array, activation: str) -> Array | None:
        """The x of an output y = activation(x) of this step ("softmax" or "sigmoid"), if it is one."""
        return next((x for found, x, name in self._logits if found is y and name == activation), None)

    def random_bits(self, shape: tuple[int, ...], seed: int | None = None) -> Array:
        """uint32 of a shape, by the counter-based generator Philox (Salmon et al., 2011).

        What stands in a row follows from seed, step, the number of the draw in this step, and the row's place in the
        batch: neither threads nor the split of the batch change it.
        """
        draw, self._draws = self._draws, self._draws + 1
        width = int(np.prod(shape[1:]))
        blocks = -(-width // 8)  # of 256 bits: every row starts with one of its own
        before = self.first_row * (shape[0] // self.rows) if self.rows else 0
        key = np.array([self.seed % 2**64, 0 if seed is None else seed % 2**64], np.uint64)
        counter = np.array([before * blocks, draw, self.number, 0], np.uint64)
        generator = np.random.Philox(key=key, counter=counter)
        words = generator.random_raw(shape[0] * blocks * 4).astype("<u8", copy=False).view("<u4")
        return words.reshape(shape[0], blocks * 8)[:, :width].reshape(shape)

    def keep(self, shape: tuple[int, ...], rate: float, seed: int | None = None) -> Array:
        """A dropout mask: 0 with probability ``rate``, else 1 / (1 - rate)."""
        if rate >= 1.0:
            return np.zeros(shape, np.float32)
        dropped = self.random_bits(shape, seed) < np.uint32(min(round(rate * 2**32), 2**32 - 1))
        return np.where(dropped, np.float32(0.0), np.float32(1.0 / (1.0 - rate)))

    def normal(self, shape: tuple[int, ...], seed: int | None = None) -> Array:
        """Standard normal numbers of a shape (Box and Muller, 1958)."""
        bits = self.random_bits((*shape, 2), seed).astype(np.float64)
        radius = np.sqrt(-2 * np.log((bits[..., 0] + 1) / 2**32))
        return np.asarray((radius * np.cos(bits[..., 1] * (2 * np.pi / 2**32))).astype(np.float32))


def sum_to(gradient: Array, shape: tuple[int, ...]) -> Array:
    """The gradient of an array of ``shape`` that was broadcast to that of ``gradient``."""
    lead = tuple(range(gradient.ndim - len(shape)))
    ones = tuple(i + len(lead) for i, n in enumerate(shape) if n == 1 and gradient.shape[i + len(lead)] != 1)
    return gradient.sum(axis=(*lead, *ones), keepdims=True).reshape(shape) if lead or ones else gradient
