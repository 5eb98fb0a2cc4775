"""Weights in the tile layout of an instruction set: see fg_linear and fg_gru in simd/table.h."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from fastgru._core.arrays import move

F32 = NDArray[np.float32]


def aligned(size: int, zeros: bool) -> F32:
    """Room for `size` float32 whose first byte lies on a cache line (64 bytes)."""
    room = np.zeros(size + 16, np.float32) if zeros else np.empty(size + 16, np.float32)
    first = -room.__array_interface__["data"][0] % 64 // 4
    return room[first : first + size]


def pack_panels(weight: F32, lanes: NDArray[np.int64], width: int) -> F32:
    """Panels (K, V·W) one after another; `lanes` names the row of `weight` (M, K) for each output lane, -1 for none."""
    packed = aligned(len(lanes) * weight.shape[1], zeros=bool(lanes[-1] < 0))  # padding ends with the last lane
    move(packed, weight, lanes, width, True)
    return packed


def unpack_panels(packed: F32, lanes: NDArray[np.int64], inputs: int, width: int, weight: F32) -> None:
    """Write the rows that `lanes` names back into `weight` (M, K): the inverse of `pack_panels`."""
    move(packed, weight, lanes, width, False)


def transposed(a: F32) -> F32:
    """aᵀ, C-contiguous: one panel, as wide as `a` has rows, moved by cache lines, which NumPy's copy is not."""
    rows, columns = a.shape
    return pack_panels(a, padded_range(rows, 1), rows).reshape(columns, rows)


def pack_vector(vector: F32 | None, lanes: NDArray[np.int64]) -> F32:
    """A bias in the order of `lanes`, zeros where there is none."""
    packed = aligned(len(lanes), zeros=True)
    if vector is not None:
        move(packed, vector.reshape(-1, 1), lanes, 1, True)
    return packed


@functools.lru_cache(64)
def gru_lanes(hidden_size: int, width: int, reset_after: bool) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
    """Which row of a (3H, K) matrix each output lane of each pass holds, and those of n alone; not to be written to."""
    r, z, n = (_gate_lanes(gate, hidden_size, width) for gate in range(3))
    if reset_after:
        return [np.stack([r, z, n], axis=1).ravel()], n.ravel()
    return [np.concatenate([r.ravel(), z.ravel()]), n.ravel()], n.ravel()


@functools.lru_cache(64)
def padded_range(size: int, width: int) -> NDArray[np.int64]:
    """0 … size - 1, padded with -1 to whole vectors: the lanes of a matrix in its own order; not to be written to."""
    lanes = np.full(-(-size // width) * width, -1, np.int64)
    lanes[:size] = np.arange(size)
    return lanes


def _gate_lanes(gate: int, hidden_size: int, width: int) -> NDArray[np.int64]:
    """Row numbers of one gate (0 r, 1 z, 2 n) of a (3H, K) matrix, (G, W), padded with -1."""
    lanes = padded_range(hidden_size, width)
    return np.where(lanes < 0, -1, lanes + gate * hidden_size).reshape(-1, width)
