"""What callers give a model, as the arrays and masks that its graph takes, or an error that says
which input, what was expected and what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..layers.base import Array
from ..layers.core import Input


def input_arrays(x: Any, ends: Sequence[Input]) -> list[Array]:
    """One array per input, in the model's order, all with one number of rows.

    Raises
    ------
    ValueError, TypeError
        For the wrong inputs, rank or dtype.
    """
    if len(ends) == 1 and isinstance(x, np.ndarray):
        return [_input_array(x, ends[0])]
    arrays = [_input_array(v, end) for v, end in zip(given_inputs(x, ends, "x"), ends, strict=True)]
    for array, end in zip(arrays, ends, strict=True):
        if array.shape[0] != arrays[0].shape[0]:
            raise ValueError(
                f"x: expected one number of rows for all inputs, found {arrays[0].shape[0]} "
                f"and {array.shape[0]} in {end.name!r}"
            )
    return arrays


def input_masks(inputs: Sequence[Array], lengths: Any, mask: Any, ends: Sequence[Input]) -> list[Any]:
    """One mask (N, T) or None per input, from at most one of ``lengths`` and ``mask``."""
    if lengths is not None and mask is not None:
        raise ValueError("expected at most one of lengths and mask, found both")
    given = given_inputs(lengths if mask is None else mask, ends, "lengths" if mask is None else "mask")
    make = _mask_of_lengths if mask is None else _mask_array
    return [None if v is None else make(v, array) for v, array in zip(given, inputs, strict=True)]


def given_inputs(x: Any, ends: Sequence[Input], what: str) -> list[Any]:
    """The parts of a list or dict in the model's order."""
    names = [end.name for end in ends]
    if isinstance(x, Mapping):
        if sorted(map(str, x)) != sorted(names):
            raise ValueError(f"{what}: expected the inputs {names}, found {list(x)}")
        return [x[name] for name in names]
    if len(names) == 1:
        if isinstance(x, (list, tuple)) and len(x) == 1 and hasattr(x[0], "shape"):
            rank = None if ends[0].shape is None else len(ends[0].shape) + 1
            if rank is None or len(x[0].shape) >= rank or what != "x":
                return [x[0]]
        return [x]
    if not isinstance(x, (list, tuple)) or len(x) != len(names):
        found = f"{len(x)} of them" if isinstance(x, (list, tuple)) else type(x).__name__
        raise ValueError(f"{what}: expected a list or dict of the inputs {names}, found {found}")
    return list(x)


def _input_array(value: Any, end: Input) -> Array:
    """``value`` as an array of the rank that the input declares, as Keras adjusts it."""
    array: Array = value if isinstance(value, np.ndarray) else np.asarray(value)
    if array.dtype.kind not in "fiub":
        found = "a function; call it where it is a generator" if callable(value) else array.dtype
        raise TypeError(f"input {end.name!r}: expected numbers, found {found}")
    if end.shape is not None:
        rank = len(end.shape) + 1
        if array.ndim == rank + 1 and array.shape[-1] == 1:
            array = array[..., 0]
        elif array.ndim == rank - 1 and end.shape and end.shape[-1] == 1:
            array = array[..., None]
        if array.ndim != rank:
            raise ValueError(f"input {end.name!r}: expected {(None, *end.shape)}, found {array.shape}")
    if array.ndim == 0:
        raise ValueError(f"input {end.name!r}: expected a batch of rows, found one number")
    return end.cast(array)


def _mask_array(mask: Any, x: Array) -> Array:
    array = np.asarray(mask)
    if array.shape != x.shape[:2] or x.ndim < 2:
        raise ValueError(f"mask: expected {x.shape[:2]}, found {array.shape}")
    if array.dtype.kind not in "biu":
        raise TypeError(f"mask: expected booleans, found {array.dtype}")
    return array.astype(bool)


def _mask_of_lengths(lengths: Any, x: Array) -> Array:
    array = np.asarray(lengths)
    if x.ndim < 2 or array.shape != x.shape[:1]:
        raise ValueError(f"lengths: expected {x.shape[:1]}, found {array.shape}")
    whole = array.dtype.kind in "iu" or bool((np.isfinite(array) & (array == np.trunc(array))).all())
    if not whole:
        raise ValueError("lengths: expected whole numbers, found fractions, NaN or inf")
    if array.size and (array.min() < 0 or array.max() > x.shape[1]):
        raise ValueError(f"lengths: expected 0 … {x.shape[1]}, found {array.min()} … {array.max()}")
    return np.asarray(np.arange(x.shape[1]) < array[:, None])
