"""GRU layers in training: forward over time with dropout, and back through time.

Dimensions: N rows, T time steps, I input features, H units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import gates, ops
from .base import Array, Layer, as_float32
from .cells import GRUCell
from .gate_dropout import gru_with_gate_masks
from .training_step import TrainingStep

if TYPE_CHECKING:
    from .recurrent import RNN

#: (dy, gradients of the final states) -> (dx, gradients of the initial states); None where there is none.
ScanBack = Callable[[Array | None, Sequence[Array | None]], tuple[Array, list[Array | None]]]
#: (dy, dh_n) -> (dx, dh0)
CellBack = Callable[[Array | None, Array | None], tuple[Array, Array | None]]


def scan_and_back(
    layer: RNN, x: Array, mask: Array | None, initial_state: Any, step: TrainingStep
) -> tuple[Array, list[Array], ScanBack]:
    """What `RNN.scan` gives, in training, and the way back."""
    if not layer.stateful:
        return _scan(layer, x, mask, initial_state, step)
    with layer._turn:
        y, states, back = _scan(layer, x, mask, initial_state, step)
        layer.states = [np.array(state) for state in states]
    return y, states, back


def _scan(
    layer: RNN, x: Array, mask: Array | None, initial_state: Any, step: TrainingStep
) -> tuple[Array, list[Array], ScanBack]:
    x = as_float32(x)
    layer._check_input(x)
    start = layer._start(initial_state, x.shape[1] if layer.time_major else x.shape[0])
    if mask is not None and layer.time_major:
        mask = mask.T
    sequences, last = layer.return_sequences, len(layer.cells) - 1
    states: list[Array] = []
    backs: list[CellBack] = []
    y = x
    for i, (cell, h0) in enumerate(zip(layer.cells, start, strict=True)):
        padding = "keras" if i == last and sequences and not layer.zero_output_for_mask else "zero"
        y, h_n, back = _run_cell(layer, cell, y, h0, mask, padding, step)
        states.append(h_n)
        backs.append(back)
    keeps = leading = None
    if mask is not None and not sequences:
        keeps = layer.keeps_last(mask, start[last])
    elif mask is not None and start[last] is not None and layer._dialect.leading_state and padding == "keras":
        y = y.copy()  # the cache refers to the array without these
        layer._fill_leading(y, mask, start[last])
        leading = layer.leading(mask)[:, :, None]

    def scan_back(dy: Array | None, dstates: Sequence[Array | None]) -> tuple[Array, list[Array | None]]:
        found = list(dstates)
        if not sequences and dy is not None:
            dy = dy if keeps is None else np.where(keeps, dy, np.float32(0.0))
            found[last] = dy if found[last] is None else found[last] + dy
            dy = None
        dh0s: list[Array | None] = []
        by_leading = None
        if dy is not None and leading is not None:
            by_row = dy.swapaxes(0, 1) if layer.time_major else dy
            by_leading = np.where(leading, by_row, np.float32(0.0)).sum(axis=1)
        for back, dh_n in zip(reversed(backs), reversed(found), strict=True):
            dy, dh0 = back(dy, dh_n)
            dh0s.insert(0, dh0)
        if by_leading is not None:
            dh0s[last] = dh0s[last] + by_leading
        assert dy is not None
        return dy, dh0s

    final = states[last] if keeps is None else np.where(keeps, states[last], np.float32(0.0))
    return (y if sequences else final), states, scan_back


def _run_cell(
    layer: RNN, cell: GRUCell, x: Array, h0: Array | None, mask: Array | None, padding: str, step: TrainingStep
) -> tuple[Array, Array, CellBack]:
    """y of every step and h_n of one cell, with the dropout of its inputs and states, and the way back."""
    owner: Layer = cell if layer.parts() else layer  # who keeps the weights
    rows = x.shape[1] if layer.time_major else x.shape[0]

    def draw(count: int, width: int, rate: float) -> list[Array]:
        return [step.keep((rows, width), rate, cell.seed) for _ in range(count if rate else 0)]

    if cell.recurrent_dropout or (cell.dropout and cell.implementation == 1):
        input_masks = draw(3, cell.width, cell.dropout)
        state_masks = draw(3, cell.units, cell.recurrent_dropout)
        return gru_with_gate_masks(layer, cell, owner, x, h0, mask, padding, input_masks, state_masks, step)
    drawn = draw(1, cell.width, cell.dropout)
    keep = drawn[0][None] if drawn and layer.time_major else drawn[0][:, None] if drawn else None
    y, h_n, cache = ops.gru(
        x if keep is None else x * keep,
        cell.packed,
        h0=h0,
        mask=mask,
        reverse=layer.go_backwards,
        batch_first=not layer.time_major,
        padding=padding,
        num_threads=step.num_threads,
        return_cache=step.memory.pop(cell, True),
    )

    def back(dy: Array | None, dh_n: Array | None) -> tuple[Array, Array | None]:
        g = ops.gru_backward(dy, cache, dh_n, num_threads=step.num_threads)
        step.memory[cell] = cache
        cell.add_gradients(step, owner, gates.Weights(g.dweight_ih, g.dweight_hh, g.dbias_ih, g.dbias_hh))
        return (g.dx if keep is None else g.dx * keep), g.dh0

    return y, h_n, back
