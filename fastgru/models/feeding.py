"""What callers give `fit`, `evaluate` and `predict` as data, checked against a model's inputs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..graph import Ref, given_inputs
from ..layers.base import Array
from ..layers.core import Masking
from ..layers.ragged import Ragged
from ..training.data import Batch, Numbered, Rows, Streamed, is_batches, source_of, unpacked
from ..training.progress import progress
from .model import Model

Classes = Mapping[int, float]

#: Ragged rows that are scored at once.
_ROWS = 256


def source(
    model: Model,
    x: Any,
    y: Any,
    sample_weight: Any,
    class_weight: Classes | None,
    order: Callable[[int, int], Array] | None = None,
) -> Numbered | Streamed:
    """Batches that ``x`` gives by itself.

    Raises
    ------
    ValueError
        If labels or weights are given beside it.
    """
    for name, value in (("y", y), ("sample_weight", sample_weight)):
        if value is not None:
            raise ValueError(f"{name}: expected none, since x gives batches (x, y) or (x, y, sample_weight)")

    def batch(given: Any, where: str) -> Batch:
        values, labels, weights = unpacked(given, where)
        try:
            found = rows_of(model, values, labels, weights, class_weight, "x")
            if not len(found):
                raise ValueError("expected rows, found none")
            return found.take(np.arange(len(found)))
        except (TypeError, ValueError) as error:
            raise type(error)(f"{where}: {error}") from error

    return source_of(x, batch, order)


def rows_of(model: Model, x: Any, y: Any, sample_weight: Any, class_weight: Classes | None, what: str) -> Rows:
    """Inputs, labels and weights of one number of rows.

    Raises
    ------
    ValueError, TypeError
        For inputs that the model doesn't take, and numbers of rows or steps that differ.
    """
    inputs, fill = columns(model, x, what)
    rows = len(inputs[0])
    if y is None:
        raise ValueError(f"y: expected labels for the {rows} rows of {what}, found none")
    ragged = next((v for v in inputs if isinstance(v, Ragged)), None)
    labels = _column(y, "y", ragged)
    if found := _other_than(labels, rows):
        raise ValueError(f"y: expected labels for the {rows} rows of {what}, found {found}")
    weights = None if sample_weight is None else _column(sample_weight, "sample_weight", ragged)
    if weights is not None and (found := _other_than(weights, rows)):
        raise ValueError(f"sample_weight: expected one for each of {rows} rows, found {found}")
    if isinstance(weights, np.ndarray):
        weights = weights.astype(np.float32)
    if class_weight is not None:
        by_class = _by_class(labels, class_weight)
        if isinstance(weights, Ragged):
            raise ValueError("class_weight: expected none beside a sample_weight for each step")
        weights = by_class if weights is None else weights * by_class.reshape(rows, *(1,) * (weights.ndim - 1))
    return Rows(inputs, labels, weights, fill)


def columns(model: Model, x: Any, what: str = "x") -> tuple[list[Array | Ragged], list[float]]:
    """Each input as an array, or as ragged rows where it is a list of arrays of unequal length; what pads those."""
    found = _ragged(model, x, what)
    if found is not None:
        return found
    return [*model._inputs(x)], [0.0] * len(model.inputs)


def _ragged(model: Model, x: Any, what: str) -> tuple[list[Array | Ragged], list[float]] | None:
    """`columns`, if any is ragged."""
    given = given_inputs(x, model.inputs, "x")
    names = [what] if len(given) == 1 else [f"{what}, input {end.name!r}" for end in model.inputs]
    ragged = [Ragged.of(value, name) for value, name in zip(given, names, strict=True)]
    if not any(ragged):
        return None
    sizes = [len(value) for value in given]
    if len(set(sizes)) > 1:
        raise ValueError(f"{what}: expected one number of rows for all inputs, found {sizes}")
    fill = [_fill(model, i) for i in range(len(given))]
    # One row says whether rank and dtype are right: padding gives all the same.
    one = [value[:1] if part is None else part.padded([0])[0] for value, part in zip(given, ragged, strict=True)]
    model._inputs(one)
    whole = [np.asarray(v) if part is None else part for v, part in zip(given, ragged, strict=True)]
    return whole, fill


def check_stateful(model: Model, rows: int, batch_size: int, what: str, like: int | None = None) -> None:
    """Raise ValueError where batches of a stateful model would differ in size from one another, or from ``like``."""
    if model.stateful and like is not None and min(rows, batch_size) != like:
        raise ValueError(
            f"{what}: expected batches of {like} rows as in training, found {min(rows, batch_size)}: stateful layers "
            "keep a state for each row of a batch"
        )
    if model.stateful and rows > batch_size and rows % batch_size:
        raise ValueError(
            f"{what}: expected a number of rows that batch_size {batch_size} divides, found {rows}: stateful layers "
            "keep a state for each row of a batch"
        )


def predict(
    model: Model,
    x: Any,
    lengths: Any,
    mask: Any,
    batch_size: int | None,
    num_threads: int | None,
    verbose: bool | int | str,
    steps: int | None,
) -> Any:
    """`Model.predict` for batches and ragged rows; None for what is neither.

    Raises
    ------
    ValueError
        For lengths or masks beside these, which have their own, and as `Model.predict` does.
    """
    batches = is_batches(x)
    found = None if batches else _ragged(model, x, "x")
    if not batches and found is None:
        return None
    if lengths is not None or mask is not None:
        raise ValueError("lengths, mask: expected None beside batches and ragged rows")
    if batches:
        given = (x[i] for i in range(len(x))) if hasattr(x, "__getitem__") and hasattr(x, "__len__") else iter(x)
        if steps is None and hasattr(x, "__len__"):
            steps = len(x)
        parts = [
            model.predict(part[0] if isinstance(part, tuple) else part, num_threads=num_threads)
            for part in progress(itertools.islice(given, steps), verbose)
        ]
        if not parts:
            raise ValueError("x: expected batches, found none")
        return _joined(parts, len(model.graph.outputs) > 1)
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, found {batch_size}")
    assert found is not None
    inputs, fill = found
    rows = Rows(inputs, np.zeros(len(inputs[0])), None, fill)
    size = len(rows) if model.one_batch and batch_size is None else batch_size or _ROWS
    outputs = []
    for low in progress(range(0, len(rows), size), verbose):
        batch = rows.take(np.arange(low, min(low + size, len(rows))))
        valid = next(m for m in batch.masks if m is not None)
        values, masks = model.graph.run(model._inputs(batch.x), batch.masks, num_threads)
        outputs.append([_rows(y, m, valid) for y, m in zip(values, masks, strict=True)])
    return model._finish([_joined(list(parts), False) for parts in zip(*outputs, strict=True)])


def _rows(y: Array, mask: Any, valid: Array) -> Any:
    """An output with a mask as a list of its rows without their padding."""
    if mask is None or y.shape[:2] != valid.shape:
        return np.array(y, np.float32)
    return [np.array(row[:n], np.float32) for row, n in zip(y, valid.sum(axis=1), strict=True)]


def _joined(parts: list[Any], several: bool) -> Any:
    """The outputs of one batch after the other; ``several``: each is a list, or dict, of outputs."""
    first = parts[0]
    if isinstance(first, dict):
        return {key: _joined([part[key] for part in parts], False) for key in first}
    if several:
        return [_joined([part[i] for part in parts], False) for i in range(len(first))]
    if isinstance(first, list):
        return [row for part in parts for row in part]
    if len({part.shape[1:] for part in parts}) > 1:
        found = " and ".join(str(shape) for shape in sorted({part.shape for part in parts})[:2])
        raise ValueError(f"predict: expected outputs of one shape, found {found}; score batches one by one")
    return np.concatenate(parts)


def _fill(model: Model, index: int) -> float:
    """What pads an input: the number that a Masking layer on it takes for padding."""
    slot = Ref(model.graph.inputs[index])
    masking = [node.layer for node in model.graph.nodes if node.x == slot and isinstance(node.layer, Masking)]
    return masking[0].mask_value if masking else 0.0


def _column(value: Any, what: str, like: Ragged | None) -> Array | Ragged:
    """Labels or weights: an array, or a list of arrays with the lengths of the ragged inputs."""
    found = Ragged.of(value, what)
    if found is None:
        return np.asarray(value)
    if like is None:
        raise ValueError(f"{what}: expected an array, found rows of unequal length beside inputs of one length")
    for i, (steps, wanted) in enumerate(zip(found.lengths(), like.lengths(), strict=False)):
        if steps != wanted:
            raise ValueError(f"{what}, row {i}: expected the {wanted} steps of x, found {steps}")
    return found


def _other_than(values: Array | Ragged, rows: int) -> str:
    """What was found in place of values for so many rows; empty where there are as many."""
    if isinstance(values, Ragged):
        return "" if len(values) == rows else f"{len(values)} of them"
    return "" if values.ndim and len(values) == rows else f"shape {values.shape}"


def _by_class(labels: Array | Ragged, class_weight: Classes) -> Array:
    if not isinstance(class_weight, Mapping):
        found = type(class_weight).__name__
        raise TypeError(f"class_weight: expected a dict {{class: weight}}, found {found}; dict(enumerate(…)) makes one")
    if isinstance(labels, Ragged):
        raise ValueError("class_weight: expected labels of rows, found those of steps; give a sample_weight")
    one_hot = labels.ndim == 2 and labels.shape[-1] > 1
    if labels[:1].size > 1 and not (one_hot and ((labels >= 0) & (labels <= 1)).all()):
        raise ValueError(
            f"class_weight: expected labels of rows, found those of steps, shape {labels.shape}; give a sample_weight"
        )
    classes = labels.argmax(-1) if one_hot else labels.reshape(len(labels))
    missing = sorted(set(classes.tolist()) - set(class_weight))
    if missing:
        raise ValueError(f"class_weight: expected a weight for each class, found none for {missing[0]}")
    return np.array([class_weight[c] for c in classes.tolist()], np.float32)
