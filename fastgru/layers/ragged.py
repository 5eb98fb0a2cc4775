"""Rows of unequal length, as one padded array and a mask. N rows, T steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .base import Array


@dataclass(frozen=True)
class Ragged:
    """Arrays (T_i, …) that differ in T_i only."""

    rows: Sequence[Array]

    @classmethod
    def of(cls, value: Any, what: str) -> Ragged | None:
        """``value`` if it is a list of arrays of unequal length, or an array of such objects; None for all else.

        Raises
        ------
        ValueError, TypeError
            Naming the row that differs from the first in more than its length, or holds no numbers.
        """
        if isinstance(value, np.ndarray):
            if value.dtype != object or value.ndim != 1:
                return None
        elif not isinstance(value, (list, tuple)):
            return None
        if not len(value) or not all(hasattr(row, "__len__") for row in value):
            return None
        if len({len(row) for row in value}) == 1 and not isinstance(value, np.ndarray):
            return None
        rows = [_row(row, f"{what}, row {i}") for i, row in enumerate(value)]
        first = next((i for i, row in enumerate(rows) if len(row)), 0)
        shape = rows[first].shape[1:]
        for i, row in enumerate(rows):
            if not len(row):
                rows[i] = np.zeros((0, *shape), rows[first].dtype)
            elif row.shape[1:] != shape:
                raise ValueError(f"{what}, row {i}: expected {(None, *shape)} as in row {first}, found {row.shape}")
        return cls(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> Ragged:
        return Ragged(self.rows[part])

    def lengths(self) -> list[int]:
        """T_i of each row."""
        return [len(row) for row in self.rows]

    def padded(self, which: Sequence[int] | Array, fill: float = 0.0) -> tuple[Array, Array]:
        """These rows (n, T, …), ``fill`` after their ends, and their mask (n, T); T is at least 1."""
        rows = [self.rows[i] for i in which]
        lengths = np.array([len(row) for row in rows], np.int64)
        steps = max(1, int(lengths.max(initial=0)))
        like = np.result_type(*{row.dtype for row in rows})
        if like.kind != "f" and np.array(fill).astype(like) != fill:  # -1 in uint8, 0.5 in integers
            like = np.result_type(np.float32)
        padded = np.full((len(rows), steps, *rows[0].shape[1:]), fill, like)
        for place, row in zip(padded, rows, strict=True):
            place[: len(row)] = row
        return padded, np.arange(steps) < lengths[:, None]


def _row(row: Any, where: str) -> Array:
    try:
        array: Array = np.asarray(row)
    except ValueError as error:
        raise ValueError(f"{where}: expected an array whose first axis alone differs, found {error}") from error
    if array.ndim == 0 or (array.dtype.kind not in "fiub" and array.size):
        raise TypeError(f"{where}: expected an array of numbers, found {array.dtype} of shape {array.shape}")
    return array
