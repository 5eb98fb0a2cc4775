"""Gradients of `ops.gru`: what a forward pass keeps, and the pass back through it.

The equations are in `fastgru.reference`, derived above `gru_cell_backward`.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastgru import gates
from fastgru._core.backward import backward
from fastgru._core.gru import PackedGRU
from fastgru._core.isa import check_num_threads
from fastgru.checks import F32, I64, float32, output

# The alpha with which an activation's slope can be told from its value: all that the cache keeps
_TELLS: dict[str, tuple[str, Callable[[float], bool]]] = {
    "elu": ("> 0", lambda alpha: alpha > 0),
    "leaky_relu": ("> 0", lambda alpha: alpha > 0),
    "thresholded_relu": (">= 0", lambda alpha: alpha >= 0),
    "scaled_tanh": ("other than 0", lambda alpha: alpha != 0),
}


class Gradients(NamedTuple):
    """Gradients of a loss by the inputs of one `ops.gru` call, float32 in their shapes; None without such an input."""

    dx: F32
    dh0: F32 | None
    dweight_ih: F32
    dweight_hh: F32
    dbias_ih: F32 | None
    dbias_hh: F32 | None


_CLAIM = threading.Lock()


@dataclass
class GRUCache:
    """What `ops.gru(..., return_cache=True)` keeps for `gru_backward`: used once, since the gradients overwrite it.

    Memory: 16 H bytes for each valid (row, step) in `gates`, plus references to x, h0, y and the packed weights. The
    backward pass drops x, h0 and y, and keeps `gates` for the next forward pass: ``return_cache=cache`` takes it over,
    which saves what new memory costs (5 % of a step at H = 256). With "recompute" there are only the references: the
    backward pass runs the forward one again, into memory it frees.
    """

    packed: PackedGRU
    x: F32
    h0: F32 | None
    y: F32
    gates: F32 | None
    place: I64 | None
    step_first: I64 | None
    lengths: I64 | None
    valid: I64 | None
    offsets: I64 | None
    time_major: bool
    reverse: bool
    repeat: bool
    used: bool = False

    @property
    def rows(self) -> int:
        """N."""
        return len(self.offsets) - 1 if self.offsets is not None else int(self.x.shape[1 if self.time_major else 0])

    def check_unused(self) -> None:
        """Raise RuntimeError after a backward pass."""
        if self.used:
            raise RuntimeError("cache: used before: a backward pass overwrites it; run the forward pass again")

    def take(self, shape: tuple[int, int]) -> F32:
        """Memory for an array: that of this cache, which must have been used, if there is enough of it."""
        with _CLAIM:
            if not self.used:
                raise ValueError(
                    "return_cache: expected True or a used cache, found one that gru_backward has not used"
                )
            kept, self.gates = self.gates, None
        size = shape[0] * shape[1]
        return np.empty(shape, np.float32) if kept is None or kept.size < size else kept.ravel()[:size].reshape(shape)

    @property
    def nbytes(self) -> int:
        """Bytes that the cache itself holds, beside the arrays it refers to."""
        return 0 if self.gates is None else self.gates.nbytes


@functools.lru_cache(256)
def check_trainable(activation: tuple[str, float, float], recurrent_activation: tuple[str, float, float]) -> None:
    """Raise ValueError for an activation without a derivative here."""
    for role, (name, alpha, _) in (("activation", activation), ("recurrent_activation", recurrent_activation)):
        wanted, holds = _TELLS.get(name, ("", lambda alpha: True))
        if not holds(alpha):
            raise ValueError(f"{role}: no gradient through {name} with alpha {alpha}: expected alpha {wanted}")


def gru_backward(
    dy: Any, cache: GRUCache, dh_n: Any = None, *, num_threads: int | None = None, out: Any = None
) -> Gradients:
    """Gradients of Σ dy ⊙ y + Σ dh_n ⊙ h_n by everything that went into `ops.gru`.

    Parameters
    ----------
    dy : array of y's shape, or None for zeros
        What stands at padded steps does not count with padding "zero"; with "keras" it belongs to the output that is
        repeated there.
    cache : GRUCache
        Of one forward pass; used up by this call. It refers to that pass's x, h0 and y, which must not have changed.
    dh_n : (N, H), optional
        Gradient of the final state; zeros if None.
    num_threads : int, optional
    out : float32 array of x's shape, optional
        Where dx is written: its last axis contiguous, apart from all that went into the two passes.

    Returns
    -------
    Gradients
        dx as x (0 at padded steps), dh0 (N, H), dweight_ih (3H, I), dweight_hh (3H, H), dbias_ih and dbias_hh (3H,).
        For truncated backpropagation through time hand h_n on as the next h0 and drop dh0, or pass it back as dh_n.

    Raises
    ------
    RuntimeError
        The cache has been used before.
    TypeError, ValueError
        Naming the argument, what was expected and what was found.
    """
    if not isinstance(cache, GRUCache):
        raise TypeError(
            f"cache: expected the third result of gru(..., return_cache=True), found {type(cache).__name__}"
        )
    cache.check_unused()
    packed, hidden = cache.packed, cache.packed.hidden_size
    if dy is not None:
        dy = float32(dy, "dy", cache.y.shape)
        if cache.repeat and cache.lengths is not None:
            dy = _fold_repeats(dy, cache)
    if dh_n is not None:
        dh_n = np.ascontiguousarray(float32(dh_n, "dh_n", (cache.rows, hidden)))
    if out is not None:
        output(out, "out", cache.x.shape, (cache.x, cache.h0, cache.y, cache.gates, dy, dh_n))
    if num_threads is not None:
        check_num_threads(num_threads)  # before the cache is used up
    with _CLAIM:  # of two threads with one cache, one finds it used
        cache.check_unused()
        cache.used = True
        memory, cache.gates = cache.gates, None  # nobody takes it over before this pass is done with it
    kept = memory if memory is not None else recompute(cache, num_threads)
    weights = gates.Weights(*packed.weights(), None, None)
    recurrent, inputs = gates.for_backward(weights, reset_after=packed.reset_after)
    dx, dh0, dw_ih, dw_hh, db_ih, db_hh = backward(
        packed,
        recurrent,
        inputs,
        cache.x,
        cache.h0,
        cache.y,
        kept,
        cache.place,
        cache.step_first,
        dy,
        dh_n,
        packed.has_bias_ih or packed.has_bias_hh,
        out,
        cache.lengths,
        cache.valid,
        cache.offsets,
        cache.time_major,
        cache.reverse,
        num_threads,
    )
    has_h0 = cache.h0 is not None
    cache.x = cache.y = np.empty(0, np.float32)  # what is left to the next pass is memory
    cache.h0, cache.gates = None, memory
    db_ih = gates.from_cache_order(db_ih)
    found = gates.Weights(
        gates.from_cache_order(dw_ih),
        np.ascontiguousarray(dw_hh),
        db_ih if packed.has_bias_ih else None,
        (db_ih.copy() if db_hh is None else db_hh) if packed.has_bias_hh else None,
    )
    if packed.update_gate == "new":
        found = gates.negate_update(found)
    return Gradients(dx, dh0 if has_h0 else None, *found)


def recompute(cache: GRUCache, num_threads: int | None) -> F32:
    """Run the forward pass again for what it did not keep: (ΣT, 4H)."""
    steps = cache.y.size // cache.packed.hidden_size if cache.lengths is None else int(cache.lengths.sum())
    kept = np.empty((steps, 4 * cache.packed.hidden_size), np.float32)
    h_n = np.empty((cache.rows, cache.packed.hidden_size), np.float32)
    cache.packed.run(
        cache.x,
        cache.h0,
        np.empty_like(cache.y),
        h_n,
        cache.lengths,
        cache.valid,
        cache.offsets,
        cache.time_major,
        cache.reverse,
        cache.repeat,
        num_threads,
        kept,
        cache.place,
        cache.step_first,
    )
    return kept


def _fold_repeats(dy: F32, cache: GRUCache) -> F32:
    """dy where each padded step's gradient has gone to the valid output that was repeated there."""
    dy = dy.copy()
    by_time: NDArray[Any] = dy if cache.time_major else dy.swapaxes(0, 1)  # (T, N, H), a view
    steps, rows = by_time.shape[:2]
    assert cache.lengths is not None
    valid = np.arange(steps)[:, None] < cache.lengths
    if cache.valid is not None:
        valid = np.zeros((steps, rows), bool)
        for row, length in enumerate(cache.lengths):
            valid[cache.valid[row, :length], row] = True
    before = 1 if cache.reverse else -1  # where the step that was processed before this one stands
    for t in range(steps) if cache.reverse else range(steps - 1, -1, -1):
        if 0 <= t + before < steps:
            by_time[t + before] += np.where(valid[t, :, None], 0, by_time[t])
    return dy
