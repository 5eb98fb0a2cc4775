"""Weights in the tile layout of an instruction set: see fg_linear and fg_gru in simd/table.h."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastgru._core.panels import move

F32 = NDArray[np.float32]


def aligned_zeros(size: int) -> F32:
    """`size` float32 zeros whose first byte lies on a cache line (64 bytes)."""
    room = np.zeros(size + 16, np.float32)
    first = -room.ctypes.data % 64 // 4
    return room[first : first + size]


def pack_panels(weight: F32, lanes: NDArray[np.int64], width: int) -> F32:
    """Panels (K, V·W) one after another; `lanes` names the row of `weight` (M, K) for each output lane, -1 for none."""
    packed = aligned_zeros(len(lanes) * weight.shape[1])
    move(packed, weight, lanes, width, True)
    return packed


def unpack_panels(packed: F32, lanes: NDArray[np.int64], inputs: int, width: int, weight: F32) -> None:
    """Write the rows that `lanes` names back into `weight` (M, K): the inverse of `pack_panels`."""
    move(packed, weight, lanes, width, False)


def pack_vector(vector: F32 | None, lanes: NDArray[np.int64]) -> F32:
    """A bias in the order of `lanes`, zeros where there is none."""
    packed = aligned_zeros(len(lanes))
    if vector is not None:
        packed[...] = np.where(lanes < 0, np.float32(0), vector[lanes])
    return packed


def gate_lanes(gate: int, hidden_size: int, width: int) -> NDArray[np.int64]:
    """Row numbers of one gate (0 r, 1 z, 2 n) of a (3H, K) matrix, (G, W), padded with -1."""
    groups = -(-hidden_size // width)
    lanes = np.full(groups * width, -1, np.int64)
    lanes[:hidden_size] = np.arange(gate * hidden_size, (gate + 1) * hidden_size)
    return lanes.reshape(groups, width)
