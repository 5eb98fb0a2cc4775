"""What callers give, as what the kernels take: each function returns an array that is safe to hand to C, or raises a
TypeError or ValueError that names the argument, what was expected and what was found."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
_FLOAT32 = np.dtype(np.float32)


def as_array(value: Any, name: str) -> NDArray[Any]:
    """Anything with the buffer, ``__array__`` or DLPack protocol, as an ndarray."""
    if type(value) is np.ndarray:  # subclasses (memmap, matrix) become plain arrays below: the kernels take no others
        return value
    try:
        if hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
            return np.from_dlpack(value)
        return np.asarray(value)
    except (RuntimeError, BufferError) as error:  # a torch tensor that requires grad, or lives on another device
        raise TypeError(f"{name}: can't be read as a NumPy array ({error})") from None
    except (ValueError, TypeError) as error:
        raise TypeError(f"{name}: expected an array of numbers, found {type(value).__name__} ({error})") from None


def float32(value: Any, name: str, shape: tuple[int | str, ...]) -> F32:
    """Real numbers of a shape, as float32 with a contiguous last axis. Letters in `shape` stand for any size.

    float64 and integers are rounded to float32 once, here. No copy is made of float32 whose last axis is contiguous,
    whatever the strides of the other axes.
    """
    a = strided(value, name, shape)
    return a.copy() if a.shape[-1] > 1 and a.strides[-1] != 4 else a


def strided(value: Any, name: str, shape: tuple[int | str, ...]) -> F32:
    """As `float32`, of any strides of whole floats: a transposed matrix is not copied."""
    a = as_array(value, name)
    if a.dtype is not _FLOAT32 and a.dtype.kind not in "fiub":
        # bfloat16 of ml_dtypes has kind "V" and casts by itself; everything else that isn't a number does not
        if a.dtype.name != "bfloat16":
            raise TypeError(f"{name}: expected real numbers, found dtype {a.dtype}")
    if a.shape != shape:
        if a.ndim != len(shape) or any(isinstance(n, int) and n != m for n, m in zip(shape, a.shape, strict=True)):
            raise ValueError(f"{name}: expected shape {_text(shape)}, found {a.shape}")
    if a.dtype is not _FLOAT32 and (a.dtype != np.float32 or not a.dtype.isnative):
        a = a.astype(np.float32)
    flags = a.flags
    if flags.aligned and (
        flags.c_contiguous or all(s % 4 == 0 for n, s in zip(a.shape, a.strides, strict=True) if n > 1)
    ):
        return a
    return a.copy()  # ascontiguousarray would hand a misaligned array back as it is


def output(value: Any, name: str, shape: tuple[int, ...], inputs: tuple[Any, ...]) -> F32:
    """An array to write into: float32, of the shape, writeable, its last axis contiguous, apart from the inputs."""
    if not isinstance(value, np.ndarray) or value.dtype != np.float32 or not value.dtype.isnative:
        found = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
        raise TypeError(f"{name}: expected a float32 ndarray, found {found}")
    if value.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, found {value.shape}")
    if not value.size:
        return value  # nothing is written; the strides of an empty view are 0
    flat = _overlaps_itself(value)
    contiguous = value.shape[-1] <= 1 or value.strides[-1] == 4
    if not value.flags.writeable or not value.flags.aligned or flat or not contiguous:
        raise ValueError(
            f"{name}: expected a writeable array whose last axis is contiguous, found strides {value.strides}"
        )
    if any(s % 4 for n, s in zip(value.shape, value.strides, strict=True) if n > 1):
        raise ValueError(f"{name}: expected strides of whole floats, found {value.strides} bytes")
    if any(a is not None and np.shares_memory(value, a) for a in inputs):
        raise ValueError(f"{name}: shares memory with an input; give an array of its own")
    return value


def _overlaps_itself(a: NDArray[Any]) -> bool:
    """Whether two elements of an array may lie in one place (as_strided, broadcast_to)."""
    reach = 0  # bytes that the axes inside this one cover, beyond the first element
    for stride, size in sorted((abs(s), n) for s, n in zip(a.strides, a.shape, strict=True) if n > 1):
        if stride < reach + a.itemsize:
            return True
        reach += stride * (size - 1)
    return False


def size(value: Any, name: str) -> int:
    """A whole number of at least 1; 8.0 is one, as the JSON of some writers has it."""
    real = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not real or not 1 <= value < 2**62 or value != int(value):
        raise ValueError(f"{name}: expected a whole number of at least 1, found {value!r}"[:200])
    return int(value)


def whole_numbers(value: Any, name: str, shape: tuple[int | str, ...]) -> I64:
    """Whole numbers of a shape as contiguous int64; floats only if they are whole.

    Always a copy: the kernels index with them while other threads run, and a cache keeps them for the backward pass.
    """
    a = as_array(value, name)
    if a.dtype.kind not in "fiu":
        raise TypeError(f"{name}: expected whole numbers, found dtype {a.dtype}")
    if a.ndim != len(shape) or any(isinstance(n, int) and n != m for n, m in zip(shape, a.shape, strict=True)):
        raise ValueError(f"{name}: expected shape {_text(shape)}, found {a.shape}")
    if a.dtype.kind == "f":
        a = a.astype(np.float64)
        bad = ~np.isfinite(a) | (a != np.trunc(a))
        if bad.any():
            raise ValueError(f"{name}: expected whole numbers, found {a[bad].flat[0]}")
    if a.dtype.kind in "fu" and a.size and (a.max() >= 2**62 or a.min() <= -(2**62)):
        raise ValueError(f"{name}: expected numbers within ±2**62, found {a.min()} … {a.max()}")
    return np.array(a, np.int64, order="C", copy=True)


def check_lengths(value: Any, rows: int, steps: int) -> I64:
    """Lengths (N,), each 0 … T."""
    lengths = whole_numbers(value, "lengths", (rows,))
    if rows and (lengths.min() < 0 or lengths.max() > steps):
        row = int(np.flatnonzero((lengths < 0) | (lengths > steps))[0])
        raise ValueError(f"lengths: expected 0 … {steps} (the steps of x), found {lengths[row]} for row {row}")
    return lengths


def check_mask(value: Any, rows: int, steps: int) -> tuple[I64 | None, I64 | None]:
    """A mask (N, T) as (lengths, valid): valid[i, :lengths[i]] are row i's steps; None for a right-padded mask."""
    a = as_array(value, "mask")
    if a.dtype.kind not in "biu":
        raise TypeError(f"mask: expected booleans, True at valid steps, found dtype {a.dtype}")
    if a.shape != (rows, steps):
        raise ValueError(
            f"mask: expected shape ({rows}, {steps}), one flag for each row and step of x, found {a.shape}"
        )
    mask = a.astype(bool, copy=False)
    lengths = np.count_nonzero(mask, axis=1).astype(np.int64, copy=False)
    if not rows or lengths.min() == steps:
        return None, None
    if np.array_equal(mask, np.arange(steps) < lengths[:, None]):
        return lengths, None
    return lengths, np.argsort(~mask, axis=1, kind="stable").astype(np.int64, copy=False)


def check_offsets(value: Any, steps: int) -> I64:
    """Offsets (N+1,): from 0, never falling, to ΣT."""
    offsets = whole_numbers(value, "offsets", ("N+1",))
    # compared, not subtracted: a difference of int64 can overflow and look like a step forward
    if offsets.size < 1 or offsets[0] != 0 or offsets[-1] != steps or (offsets[1:] < offsets[:-1]).any():
        raise ValueError(
            f"offsets: expected N+1 whole numbers that start at 0, never fall and end at {steps} (the rows of x), "
            f"found {np.array2string(offsets, threshold=8)}"
        )
    return offsets


def _text(shape: tuple[int | str, ...]) -> str:
    return "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"
