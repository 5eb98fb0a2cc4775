"""What `fit` takes as data, as the batches of one epoch after the other.

Arrays and ragged rows are cut into batches here; generators, sequences of batches and other iterables come cut.
N rows, T steps. A pass goes over all data once; as in Keras an epoch is a pass, or a number of steps.
"""

from __future__ import annotations

import itertools
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..layers.base import Array
from ..layers.ragged import Ragged


@dataclass(frozen=True)
class Batch:
    """Rows of one step.

    Parameters
    ----------
    x
        An array (N, …) for each input.
    masks
        (N, T) for each input, None where it has no padding.
    y
        Labels (N, …).
    weights
        (N,), or of the loss's values' shape, or None.
    labelled
        (N, T): the steps that have labels; None where all do.
    """

    x: list[Array]
    masks: list[Array | None]
    y: Array
    weights: Array | None = None
    labelled: Array | None = None

    def __len__(self) -> int:
        return len(self.y)

    def counted(self, mask: Array | None) -> Array | None:
        """An output's mask without the steps that have no labels."""
        if self.labelled is None:
            return mask
        return self.labelled if mask is None else np.asarray(mask, bool) & self.labelled


@dataclass(frozen=True)
class Rows:
    """Data that is there as a whole: inputs, labels and weights, each an array or ragged.

    ``fill`` is what stands behind the end of an input's rows where they are padded.
    """

    x: list[Array | Ragged]
    y: Array | Ragged
    weights: Array | Ragged | None
    fill: Sequence[float]

    def __len__(self) -> int:
        return len(self.y)

    def take(self, which: Array) -> Batch:
        """These rows as a batch."""
        inputs = [_taken(v, which, fill) for v, fill in zip(self.x, self.fill, strict=True)]
        y, labelled = _taken(self.y, which)
        weights = None if self.weights is None else _taken(self.weights, which)[0]
        return Batch([x for x, _ in inputs], [mask for _, mask in inputs], y, weights, labelled)

    def split(self, share: float) -> tuple[Rows, Rows]:
        """The first rows to train on, and a share of them, the last ones, to validate on."""
        if not 0 < share < 1:
            raise ValueError(f"validation_split: expected a number between 0 and 1, found {share!r}")
        at = int(len(self) * (1 - share))
        return self._part(slice(at)), self._part(slice(at, None))

    def describe(self) -> dict[str, Any]:
        """Shape and dtype of each part."""
        return {"x": [_size(v) for v in self.x], "y": _size(self.y), "sample_weight": _size(self.weights)}

    def _part(self, part: slice) -> Rows:
        weights = None if self.weights is None else self.weights[part]
        return Rows([v[part] for v in self.x], self.y[part], weights, self.fill)


def _size(values: Array | Ragged | None) -> str | None:
    if isinstance(values, Ragged):
        return f"{len(values)} rows of {sum(values.lengths())} steps"
    return None if values is None else f"{values.dtype} {list(values.shape)}"


def _taken(values: Array | Ragged, which: Array, fill: float = 0.0) -> tuple[Array, Array | None]:
    return values.padded(which, fill) if isinstance(values, Ragged) else (values[which], None)


class Source(Protocol):
    """Data pass by pass. ``count`` are the batches of a pass, None where only going through it tells."""

    count: int | None

    def first(self) -> Batch:
        """Rows of the first batch, at least one, to look at."""
        ...

    def describe(self) -> Any:
        """Sizes, as plain values."""
        ...

    def batches(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The pass of this number, from its batch ``start`` on."""
        ...


class Cut:
    """Rows cut into batches, the last of as many as are left. ``order`` gives a pass's order of the rows."""

    def __init__(self, rows: Rows, batch_size: int, order: Callable[[int, int], Array] | None = None) -> None:
        self._rows, self._size, self._order = rows, batch_size, order
        self.count: int | None = -(-len(rows) // batch_size)

    def first(self) -> Batch:
        return self._rows.take(np.arange(1))

    def describe(self) -> Any:
        return self._rows.describe()

    def batches(self, number: int, start: int = 0) -> Iterator[Batch]:
        order = np.arange(len(self._rows)) if self._order is None else self._order(number, len(self._rows))
        for low in range(start * self._size, len(order), self._size):
            yield self._rows.take(order[low : low + self._size])


class Numbered:
    """Batches by number: an object with a length and ``[i]``, such as a Keras PyDataset.

    Its ``on_epoch_end``, if it has one, is called after each pass.
    """

    def __init__(
        self, data: Any, batch: Callable[[Any, str], Batch], order: Callable[[int, int], Array] | None = None
    ) -> None:
        self._data, self._batch, self._order = data, batch, order
        self.count: int | None = len(data)
        if not self.count:
            raise ValueError("x: expected batches, found a sequence of none")

    def first(self) -> Batch:
        return self._batch(self._data[0], "x, batch 0")

    def describe(self) -> Any:
        return f"{self.count} batches"

    def batches(self, number: int, start: int = 0) -> Iterator[Batch]:
        count = len(self._data)
        order = np.arange(count) if self._order is None else self._order(number, count)
        for i in order[start:].tolist():
            yield self._batch(self._data[i], f"x, batch {i}")
        if callable(end := getattr(self._data, "on_epoch_end", None)):
            end()


class Streamed:
    """Batches one after the other: a generator, which is passed through once, or anything that can be iterated."""

    count: int | None = None

    def __init__(self, data: Any, batch: Callable[[Any, str], Batch]) -> None:
        self._data, self._batch = data, batch
        self._running: Iterator[Any] | None = iter(data)
        self._seen = next(self._running, None)
        if self._seen is None:
            raise ValueError("x: expected batches, found a generator that gives none")

    def __length_hint__(self) -> int:
        return operator.length_hint(self._data, 0)

    def first(self) -> Batch:
        return self._batch(self._seen, "x, batch 0")

    def describe(self) -> Any:
        return "batches"

    def batches(self, number: int, start: int = 0) -> Iterator[Batch]:
        if self._running is None:
            running = iter(self._data)
        else:
            running, self._running = itertools.chain([self._seen], self._running), None
        for i, given in enumerate(running):
            if i >= start:
                yield self._batch(given, f"x, batch {i}")


class Feed:
    """The batches of each epoch: those of a pass, or ``steps`` of them, as Keras counts.

    Where the batches of a pass are known, what an epoch holds follows from its number alone.
    """

    def __init__(self, source: Source, steps: int | None = None, what: str = "x") -> None:
        self.source, self._steps, self.what = source, steps, what
        self._running: Iterator[Batch] | None = None
        #: Steps of an epoch, None where only going through it tells; for a progress bar.
        self.steps = steps or source.count or operator.length_hint(source, 0) or None

    def describe(self) -> Any:
        """What tells this data from other data, but for the numbers in it."""
        return self.source.describe()

    def drop(self, number: int) -> None:
        """Go past an epoch: draw its batches where only that leads to those after, and end the pass that it ends."""
        steps, count = self._steps, self.source.count
        if count is None:
            batches = self.epoch(number)
        else:
            of_pass = 0 if steps is None else number % -(-count // steps) * steps
            batches = self._batches(number, count if steps is None else min(steps, count - of_pass))
        for _ in batches:
            pass

    def drop_again(self) -> None:
        """The same for what `again` gives."""
        self._running = None
        self.drop(0)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from its batch ``start`` on. Warns of fewer than asked for."""
        found = start
        for batch in self._batches(number, start):
            found += 1
            yield batch
        if self._steps is not None and 0 < found < self._steps:
            warnings.warn(
                f"epoch {number}: {self.what} ran out of data: expected {self._steps} batches, found {found}",
                stacklevel=2,
            )

    def again(self) -> Iterator[Batch]:
        """The first epoch once more; of a generator the next batches."""
        self._running = None
        return self.epoch(0)

    def _batches(self, number: int, start: int) -> Iterator[Batch]:
        steps, count = self._steps, self.source.count
        if steps is None:
            yield from self.source.batches(number, start)
        elif count is None:
            for i in range(steps):
                if self._running is None:
                    self._running = self.source.batches(number)
                batch = next(self._running, None)
                if batch is None:
                    self._running = None
                    return
                if i >= start:
                    yield batch
        else:
            epochs = -(-count // steps)  # of a pass; the last one has what is left of it
            low = (number % epochs) * steps
            whole = self.source.batches(number // epochs, low + start)
            yield from itertools.islice(whole, min(steps, count - low) - start)
            if low + steps >= count:
                next(whole, None)  # the pass has an end


def is_batches(x: Any) -> bool:
    """Whether ``x`` gives batches: no array, list or dict of them, but something to iterate or to index."""
    if isinstance(x, (list, tuple, str, bytes, Mapping)) or any(hasattr(x, a) for a in ("__array__", "shape")):
        return False
    return hasattr(x, "__iter__") or (hasattr(x, "__len__") and hasattr(x, "__getitem__"))


def source_of(
    x: Any, batch: Callable[[Any, str], Batch], order: Callable[[int, int], Array] | None = None
) -> Numbered | Streamed:
    """The batches that ``x`` gives. ``order`` holds for those that are numbered."""
    numbered = hasattr(x, "__len__") and hasattr(x, "__getitem__")
    return Numbered(x, batch, order) if numbered else Streamed(x, batch)


def unpacked(given: Any, where: str) -> tuple[Any, Any, Any]:
    """x, y and sample_weight, or None, of one batch.

    Raises
    ------
    ValueError
        For anything but (x, y) or (x, y, sample_weight).
    """
    if isinstance(given, (tuple, list)) and len(given) in (2, 3):
        return given[0], given[1], given[2] if len(given) == 3 else None
    found = f"{len(given)} of them" if isinstance(given, (tuple, list)) else type(given).__name__
    raise ValueError(f"{where}: expected (x, y) or (x, y, sample_weight), found {found}")
