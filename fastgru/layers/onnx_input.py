"""The inputs of an ONNX graph: unlike those of Keras, with every axis declared and no batch apart from the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .base import Array, as_float32
from .core import Input


class OnnxInput(Input):
    """A declared input.

    Parameters
    ----------
    whole
        The size of every axis; where any fits, None, or a name that axes of one size share. None instead of a tuple:
        any number of axes.
    dtype
        NumPy's name of the element type.
    """

    def __init__(self, whole: Sequence[int | str | None] | None, dtype: str, name: str) -> None:
        sizes = None if not whole else [n if isinstance(n, int) else None for n in whole[1:]]
        super().__init__(sizes, dtype, name)
        self.whole = None if whole is None else tuple(whole)

    def take(self, value: Any) -> Array:
        """``value`` as the graph takes it: floats as float32, whole numbers and booleans in their declared type.

        Raises
        ------
        ValueError, TypeError
            For another shape, what is no array of numbers, and fractions where whole numbers are declared.
        """
        x = np.asarray(value)
        if x.dtype.kind not in "fiub" and x.dtype.name != "bfloat16":
            raise TypeError(f"input {self.name!r}: expected numbers, found {x.dtype}")
        if self.whole is not None:
            fits = len(self.whole) == x.ndim and all(
                n == m or not isinstance(n, int) for n, m in zip(self.whole, x.shape, strict=True)
            )
            if not fits:
                raise ValueError(f"input {self.name!r}: expected shape {self._shown()}, found {x.shape}")
        kind = np.dtype("float32" if self.dtype.startswith(("float", "bfloat")) else self.dtype)
        if kind.kind == "f":
            return as_float32(x)
        if kind == x.dtype:
            return x
        if x.dtype.kind == "f" and not bool((np.isfinite(x) & (x == np.trunc(x))).all()):
            raise ValueError(f"input {self.name!r}: expected {kind}, found fractions, NaN or inf")
        if kind.kind in "iu" and x.size:
            limits, low, high = np.iinfo(kind), x.min(), x.max()
            if not (limits.min <= int(low) and int(high) <= limits.max):
                raise ValueError(f"input {self.name!r}: expected {kind}, found {low} … {high}")
        return x.astype(kind)

    def describe(self) -> str:
        return f"{self.dtype} {self._shown()}"

    def _shown(self) -> str:
        if self.whole is None:
            return "?"
        return "(" + ", ".join("any" if n is None else str(n) for n in self.whole) + ")"

    def sample(self, rng: np.random.Generator, sizes: dict[str, int]) -> Array | None:
        """Random values that fit, equal names getting equal sizes; None where the shape isn't known, or is huge."""
        if self.whole is None:
            return None
        shape = []
        for n in self.whole:
            free = 4 if not sizes else 7  # the first named axis is as a rule the batch
            shape.append(n if isinstance(n, int) else free if n is None else sizes.setdefault(n, free))
        if np.prod(shape, dtype=float) > 1e6:
            return None
        if self.dtype.startswith(("int", "uint", "bool")):
            return rng.integers(0, 2, shape)
        return rng.standard_normal(shape).astype(np.float32)


def onnx_inputs(x: Any, ends: Sequence[OnnxInput]) -> list[Array]:
    """One checked array for each input, from an array, a list in the file's order, or a dict by name.

    Raises
    ------
    ValueError, TypeError
        For other inputs, one that does not fit, and axes of one name that differ in size.
    """
    arrays = _arrays(x, ends)
    seen: dict[str, tuple[str, int, int]] = {}
    for end, value in zip(ends, arrays, strict=True):
        for axis, name in enumerate(end.whole or ()):
            if isinstance(name, str):
                first, place, size = seen.setdefault(name, (end.name, axis, value.shape[axis]))
                if size != value.shape[axis]:
                    raise ValueError(
                        f"input {end.name!r}: expected {size} in axis {axis}, as in axis {place} of {first!r}: the "
                        f"model calls both {name!r}; found shape {value.shape}"
                    )
    return arrays


def _arrays(x: Any, ends: Sequence[OnnxInput]) -> list[Array]:
    names = [end.name for end in ends]
    if isinstance(x, Mapping):
        if set(map(str, x)) != set(names):
            raise ValueError(f"x: expected the inputs {names}, found {list(x)}")
        return [end.take(x[end.name]) for end in ends]
    if len(ends) == 1 and not (isinstance(x, (list, tuple)) and len(x) == 1 and hasattr(x[0], "shape")):
        return [ends[0].take(x)]
    if not isinstance(x, (list, tuple)) or len(x) != len(ends):
        found = f"{len(x)} of them" if isinstance(x, (list, tuple)) else type(x).__name__
        raise ValueError(f"x: expected a list or dict of the inputs {names}, found {found}")
    return [end.take(v) for end, v in zip(ends, x, strict=True)]
