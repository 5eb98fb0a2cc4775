"""A GRU whose gates see inputs and states through dropout masks of their own: Keras' recurrent_dropout.

r = σ(W_r (m_r x) + b_r + U_r (k_r h) + c_r), z likewise, n = φ(W_n (m_n x) + b_n + r (U_n (k_n h) + c_n)), or with
reset-before n = φ(W_n (m_n x) + b_n + U_n (r k_n h)); h' = n + z (h - n) with the h that nothing dropped. The masks of
a row stay the same for all its steps. (Source of the order of operations: keras/src/layers/rnn/gru.py.)

The kernels multiply one h with all gates' weights, so here every gate's products are calls of their own, step by step:
several times slower than `ops.gru`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import gates, ops
from .._core.isa import check_activation
from .base import Array, Layer
from .slopes import with_slope
from .training_step import TrainingStep

if TYPE_CHECKING:
    from .cells import GRUCell
    from .recurrent import RNN

_ZERO = np.float32(0.0)


def gru_with_gate_masks(
    layer: RNN,
    cell: GRUCell,
    owner: Layer,
    x: Array,
    h0: Array | None,
    mask: Array | None,
    padding: str,
    input_masks: list[Array],
    state_masks: list[Array],
    step: TrainingStep,
) -> tuple[Array, Array, Callable[[Array | None, Array | None], tuple[Array, Array | None]]]:
    """y and h_n of one cell and the way back, as `ops.gru` with ``padding`` and `ops.gru_backward`.

    input_masks (N, I) and state_masks (N, H): one for each of the gates r z n, or none.
    """
    threads = step.num_threads
    by_time = x if layer.time_major else x.swapaxes(0, 1)  # (T, N, I)
    steps, rows = by_time.shape[:2]
    valid = None if mask is None else np.ascontiguousarray(mask.T)[..., None]  # (T, N, 1)
    if valid is not None:
        by_time = np.where(valid, by_time, _ZERO)  # padding may hold anything
    run = _Gates(cell, by_time, input_masks, state_masks, threads)
    order = range(steps - 1, -1, -1) if layer.go_backwards else range(steps)
    h = np.zeros((rows, cell.units), np.float32) if h0 is None else h0
    before, y = np.zeros_like(h), np.empty((steps, rows, cell.units), np.float32)
    for t in order:
        new = run.forward(t, h)
        if valid is None:
            h = y[t] = new
            continue
        h = np.where(valid[t], new, h)
        before = y[t] = np.where(valid[t], new, before if padding == "keras" else _ZERO)
    final = h

    def back(dy: Array | None, dh_n: Array | None) -> tuple[Array, Array | None]:
        dh = np.zeros_like(final) if dh_n is None else dh_n
        dys = None if dy is None else dy if layer.time_major else dy.swapaxes(0, 1)
        repeated = np.zeros_like(final)  # the gradient of an output that later padded steps repeat
        for t in reversed(order):
            d = _ZERO if dys is None else dys[t]
            if valid is None:
                dh = run.backward(t, dh + d)
                continue
            if padding == "keras":
                d = d + repeated
                repeated = np.where(valid[t], _ZERO, d)
            dh = run.backward(t, np.where(valid[t], dh + d, _ZERO)) + np.where(valid[t], _ZERO, dh)
        cell.add_gradients(step, owner, run.weight_gradients())
        dx = run.input_gradient()
        return (dx if layer.time_major else dx.swapaxes(0, 1)), None if h0 is None else dh

    return (y if layer.time_major else np.ascontiguousarray(y.swapaxes(0, 1))), final, back


class _Gates:
    """The products and gates of every step, kept for the way back. Lists hold one array for each of r z n."""

    def __init__(
        self, cell: GRUCell, x: Array, input_masks: list[Array], state_masks: list[Array], threads: int | None
    ) -> None:
        weights = cell.canonical()
        if cell.update_gate == "new":
            weights = gates.negate_update(weights)
        self.cell, self.threads, self.state_masks, self.input_masks = cell, threads, state_masks, input_masks
        self.w, self.u = np.split(weights.weight_ih, 3), np.split(weights.weight_hh, 3)
        b = [None] * 3 if weights.bias_ih is None else np.split(weights.bias_ih, 3)
        c = [None] * 3 if weights.bias_hh is None else np.split(weights.bias_hh, 3)
        self.packed_u = [ops.pack_dense(u, bias) for u, bias in zip(self.u, c, strict=True)]
        self.packed_back = [ops.pack_dense(u.T) for u in self.u]
        self.x = [x * m for m in input_masks] or [x] * 3
        self.ahead = [self._dense(v, ops.pack_dense(w, bias)) for v, w, bias in zip(self.x, self.w, b, strict=True)]
        self.recurrent = with_slope(check_activation(cell._recurrent_activation), _apply(cell._recurrent_activation))
        self.activation = with_slope(check_activation(cell._activation), _apply(cell._activation))
        self.kept: dict[int, Any] = {}
        shape = (*x.shape[:2], cell.units)
        self.da = [np.zeros(shape, np.float32) for _ in range(3)]  # gradients before the activations
        self.dq = np.zeros(shape, np.float32) if cell.reset_after else self.da[2]  # of what U_n gives
        self.states = [np.zeros(shape, np.float32) for _ in range(3)]  # what U_r, U_z, U_n were multiplied with

    def _dense(self, x: Array, packed: ops.PackedDense) -> Array:
        return ops.dense(x, packed, num_threads=self.threads)

    def forward(self, t: int, h: Array) -> Array:
        """h' of step t from h."""
        seen = [h * m for m in self.state_masks] or [h] * 3
        r, r_back = self.recurrent(self.ahead[0][t] + self._dense(seen[0], self.packed_u[0]))
        z, z_back = self.recurrent(self.ahead[1][t] + self._dense(seen[1], self.packed_u[1]))
        if self.cell.reset_after:
            q = self._dense(seen[2], self.packed_u[2])
            n, n_back = self.activation(self.ahead[2][t] + r * q)
        else:
            q = r * seen[2]
            n, n_back = self.activation(self.ahead[2][t] + self._dense(q, self.packed_u[2]))
        for kept, value in zip(self.states, (seen[0], seen[1], seen[2] if self.cell.reset_after else q), strict=True):
            kept[t] = value
        self.kept[t] = (h, r, z, n, q, seen[2], r_back, z_back, n_back)
        new: Array = n + z * (h - n)
        return new

    def backward(self, t: int, d: Array) -> Array:
        """dh of step t from the gradient of h'."""
        h, r, z, n, q, seen, r_back, z_back, n_back = self.kept.pop(t)
        da_n, da_z = n_back(d * (1 - z)), z_back(d * (h - n))
        if self.cell.reset_after:
            dq = da_n * r
            da_r, by_n = r_back(da_n * q), self._dense(dq, self.packed_back[2])
            self.dq[t] = dq
        else:
            back = self._dense(da_n, self.packed_back[2])
            da_r, by_n = r_back(back * seen), back * r
        self.da[0][t], self.da[1][t], self.da[2][t] = da_r, da_z, da_n
        parts = [self._dense(da_r, self.packed_back[0]), self._dense(da_z, self.packed_back[1]), by_n]
        if self.state_masks:
            parts = [p * m for p, m in zip(parts, self.state_masks, strict=True)]
        dh: Array = d * z + parts[0] + parts[1] + parts[2]
        return dh

    def weight_gradients(self) -> gates.Weights:
        """Of all steps, in PyTorch's layout."""
        recurrent = [self.da[0], self.da[1], self.dq]
        ih = [ops.outer_sum(a, x, num_threads=self.threads) for a, x in zip(self.da, self.x, strict=True)]
        hh = [ops.outer_sum(a, h, num_threads=self.threads) for a, h in zip(recurrent, self.states, strict=True)]
        b = np.concatenate([ops.column_sums(a) for a in self.da]) if self.cell.use_bias else None
        c = np.concatenate([ops.column_sums(a) for a in recurrent]) if self.cell.use_bias else None
        found = gates.Weights(np.concatenate(ih), np.concatenate(hh), b, c if self.cell.reset_after else None)
        return gates.negate_update(found) if self.cell.update_gate == "new" else found

    def input_gradient(self) -> Array:
        """dx (T, N, I)."""
        parts = [self._dense(a, ops.pack_dense(w.T)) for a, w in zip(self.da, self.w, strict=True)]
        if self.input_masks:
            parts = [p * m for p, m in zip(parts, self.input_masks, strict=True)]
        dx: Array = parts[0] + parts[1] + parts[2]
        return dx


def _apply(spec: Any) -> Callable[[Array], Array] | None:
    return None if spec == "linear" else lambda x: ops.activate(x, spec)
