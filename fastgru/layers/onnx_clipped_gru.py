"""A GRU whose activations get clipped inputs, which the kernels don't know: step by step, right and slow.

The products are the dense kernel's, the rest is NumPy. Equations as in `fastgru.reference`, with every pre-activation a
replaced by min(max(a, -clip), clip).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import ops
from ..gates import Weights
from .base import Array


class ClippedGRU:
    """One direction.

    Parameters
    ----------
    weights
        In canonical form.
    clip
        The bound, above 0.
    """

    def __init__(
        self, weights: Weights, *, reset_after: bool, activation: Any, recurrent_activation: Any, clip: float
    ) -> None:
        self.hidden_size = weights.weight_hh.shape[1]
        self.input_size = weights.weight_ih.shape[1]
        self._reset_after = reset_after
        self._phi, self._sigma = activation, recurrent_activation
        self._clip = np.float32(clip)
        gates, new = np.split(weights.weight_hh, [2 * self.hidden_size])
        c = weights.bias_hh
        c_gates, c_new = (None, None) if c is None else np.split(c, [2 * self.hidden_size])
        self._input = ops.pack_dense(weights.weight_ih, weights.bias_ih)
        self._gates = ops.pack_dense(gates, c_gates)
        self._new = ops.pack_dense(new, c_new)

    def run(
        self, x: Array, h0: Array | None, lengths: Array | None, reverse: bool, num_threads: int | None
    ) -> tuple[Array, Array]:
        """x (T, N, I) → y (T, N, H), 0 at padded steps, and h_n (N, H)."""
        steps, rows = x.shape[:2]
        h = np.zeros((rows, self.hidden_size), np.float32) if h0 is None else h0.copy()
        y = np.zeros((steps, rows, self.hidden_size), np.float32)
        inputs = ops.dense(x, self._input, num_threads=num_threads)
        valid = np.ones((steps, rows), bool) if lengths is None else np.arange(steps)[:, None] < lengths
        for t in reversed(range(steps)) if reverse else range(steps):
            now = valid[t][:, None]
            h = np.where(now, self._step(inputs[t], h, num_threads), h)
            y[t] = np.where(now, h, np.float32(0))
        return y, h

    def _step(self, inputs: Array, h: Array, num_threads: int | None) -> Array:
        x_gates, x_new = np.split(inputs, [2 * self.hidden_size], axis=1)
        both = self._activate(x_gates + ops.dense(h, self._gates, num_threads=num_threads), self._sigma)
        r, z = np.split(both, 2, axis=1)
        if self._reset_after:
            recurrent = r * ops.dense(h, self._new, num_threads=num_threads)
        else:
            recurrent = ops.dense(r * h, self._new, num_threads=num_threads)
        n = self._activate(x_new + recurrent, self._phi)
        return np.asarray((1 - z) * n + z * h)

    def _activate(self, a: Array, activation: Any) -> Array:
        return ops.activate(np.clip(a, -self._clip, self._clip), activation)
