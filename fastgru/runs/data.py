"""Inputs, labels and weights out of the files of a run, and whether a model takes them: all before it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import tables
from ..formats import FormatError
from ..layers import Embedding
from ..layers.base import Array
from ..models import Model
from ..training.losses import Loss
from .config import Data

_ROWS = 4096  # of a table, parsed at once


@dataclass
class Rows:
    """Arrays of as many rows; ``x`` has one for each input of the model. ``columns`` are those of a table's x."""

    path: str
    x: list[Array]
    y: Array
    sample_weight: Array | None
    columns: list[str] | None = None

    @property
    def inputs(self) -> Any:
        """As `Model.fit` takes them."""
        return self.x[0] if len(self.x) == 1 else self.x


def read(files: Any, data: Data, model: Model, like: Rows | None = None) -> Rows:
    """The arrays of a file, or of a file for each part. A table's x has the columns of ``like``, by their names.

    Raises
    ------
    FormatError
        For a file of another kind, a name that is not in it, and rows that differ in number.
    """
    if isinstance(files, dict):
        parts = {part: _npy(path) for part, path in files.items()}
        rows = Rows(files["x"], [parts["x"]], parts["y"], parts.get("sample_weight"))
    elif Path(files).suffix.lower() in (".csv", ".tsv"):
        rows = _table(files, data, model, like)
    else:
        rows = _archive(files, data, model)
    counts = {"y": len(rows.y), **{f"x[{i}]": len(x) for i, x in enumerate(rows.x)}}
    if rows.sample_weight is not None:
        counts["sample_weight"] = len(rows.sample_weight)
    if len(set(counts.values())) > 1 or not len(rows.y):
        raise FormatError(f"{rows.path}: expected one number of rows, above 0, found {counts}")
    return rows


def _npy(path: str) -> Array:
    table = tables.open_table(path)
    if not isinstance(table, tables.NpyReader):
        raise FormatError(f"{path}: expected a .npy file; an .npz or a table is given alone")
    return next(table.chunks(max(1, table.rows)))[""]


def _archive(path: str, data: Data, model: Model) -> Rows:
    table = tables.open_table(path)
    if not isinstance(table, tables.NpzReader):
        raise FormatError(f'{path}: expected .npz, .csv or .tsv; .npy files are given as {{x = "FILE", y = "FILE"}}')
    ends = [end.name for end in model.inputs]
    x = data.x or (ends if len(ends) > 1 else ["x"])
    y = data.y or ["y"]
    if len(y) > 1:
        raise FormatError(f"{path}: expected one array of labels, found {y}")
    weight = [data.sample_weight] if data.sample_weight else []
    for name in (*x, *y, *weight):
        if name not in table.names:
            raise FormatError(f"{path}: expected the arrays {[*x, *y, *weight]}, found {list(table.names)}")
    arrays = [table.array(name) for name in (*x, *y, *weight)]
    for name, array in zip((*x, *y, *weight), arrays, strict=True):
        if not array.ndim:
            raise FormatError(f"{path}:{name}: expected at least one axis, found ()")
    return Rows(path, arrays[: len(x)], arrays[len(x)], arrays[-1] if weight else None)


def _table(path: str, data: Data, model: Model, like: Rows | None) -> Rows:
    """Named columns; those of x, of several steps, as the model's input has them."""
    table = tables.CsvReader(path, "\t" if path.lower().endswith(".tsv") else ",")
    columns = [name.strip() for name in table.title]
    if not columns:
        raise FormatError(f"{path}: expected names of columns in the first line, found numbers")
    if twice := [name for i, name in enumerate(columns) if name in columns[:i]]:
        raise FormatError(f"{path}: expected names of columns that differ, found {twice[0]!r} twice")
    y = data.y or ["y"]
    weight = [data.sample_weight] if data.sample_weight else []
    x = data.x or (like.columns if like else None) or [name for name in columns if name not in (*y, *weight)]
    for name in (*x, *y, *weight):
        if name not in columns:
            shown = ", ".join(columns[:20]) + ("…" if len(columns) > 20 else "")
            raise FormatError(f"{path}: expected a column {name!r}, found {shown}")
    if not x:
        raise FormatError(f"{path}: expected columns beside {', '.join((*y, *weight))}, found none")
    values = np.concatenate([chunk[""].astype(np.float64) for chunk in table.chunks(_ROWS)])
    inputs, labels, weights = (_whole(values[:, [columns.index(n) for n in names]]) for names in (x, y, weight))
    if len(model.inputs) > 1:
        raise FormatError(f"{path}: the model has {len(model.inputs)} inputs; give them as arrays of an .npz file")
    inputs = tables.unflatten(inputs, model.inputs[0].shape, path)
    return Rows(path, [inputs], labels[:, 0] if len(y) == 1 else labels, weights[:, 0] if weight else None, x)


def _whole(values: Array) -> Array:
    """As int64 where all numbers are whole: ids and classes."""
    finite = np.isfinite(values).all() and bool((np.abs(values) < 2**53).all())
    return values.astype(np.int64) if finite and bool((values == np.trunc(values)).all()) else values


def check(rows: Rows, model: Model, loss: Loss, y_pred: Array) -> None:
    """Refuse what would stop training later; ``y_pred`` are the outputs of one row.

    Raises
    ------
    FormatError
        For inputs of another shape, inputs and weights that are not finite, ids out of an Embedding, and labels that
        the loss does not take.
    """
    for x, end in zip(rows.x, model.inputs, strict=True):
        _expect_finite(rows.path, "x", x)
        wanted = (None, *(end.shape or x.shape[1:]))
        if len(wanted) == x.ndim and any(n not in (None, m) for n, m in zip(wanted, x.shape, strict=True)):
            raise FormatError(f"{rows.path}: input {end.name!r}: expected {wanted}, found {x.shape}")
    if rows.sample_weight is not None:
        _expect_finite(rows.path, "sample_weight", rows.sample_weight)
    first = model.layers[0]
    if isinstance(first, Embedding) and len(model.inputs) == 1 and rows.x[0].size:
        low, high = rows.x[0].min(), rows.x[0].max()
        if low < 0 or high >= first.input_dim:
            raise FormatError(f"{rows.path}: x: expected ids 0 … {first.input_dim - 1}, found {low} … {high}")
    shape = (len(rows.y), *y_pred.shape[1:])
    try:
        loss.labels(rows.y, np.broadcast_to(np.zeros((), np.float32), shape))
    except ValueError as error:
        raise FormatError(f"{rows.path}: {error}") from error


def _expect_finite(path: str, what: str, values: Array) -> None:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        place = np.unravel_index(int(np.argmin(np.isfinite(values))), values.shape)
        found, where = values[place], ", ".join(map(str, place))
        raise FormatError(f"{path}: {what}: expected finite numbers, found {found} at [{where}]")


def paths(data: Data) -> Sequence[str]:
    """Every file that is read."""
    found: list[str] = []
    for files in (data.train, data.validation, data.test):
        found += files.values() if isinstance(files, dict) else [files] if files else []
    return found
