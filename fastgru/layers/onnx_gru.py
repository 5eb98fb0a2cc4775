"""ONNX's GRU operator: both directions, both layouts, on the kernels; constant weights are packed once.

Letters: N batch, T time, I input, H hidden, D directions. (Source: onnx/docs/Operators.md, GRU.)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from .. import gates, ops
from .base import Array, as_float32
from .onnx_clipped_gru import ClippedGRU
from .onnx_gru_attributes import KEYS, GRUAttributes, read_attributes
from .onnx_node import Computed, NodeSpec, OnnxNode, Operator
from .onnx_packs import Packs
from .onnx_shaping import WIDEST, check_size

Direction = ops.PackedGRU | ClippedGRU


class GRU(OnnxNode):
    """X, W (D, 3H, I), R (D, 3H, H), B (D, 6H), sequence_lens (N,), initial_h → Y, Y_h.

    Padded steps are 0 in Y, and Y_h of a row without steps is 0, as in ONNX Runtime. Weights that the graph computes
    are packed at each call.
    """

    def __init__(self, spec: NodeSpec, operator: Operator) -> None:
        super().__init__(spec, operator)
        self.attributes: GRUAttributes = read_attributes(spec)
        self._packed: list[Direction] | None = None

    def take_constants(self, inputs: Sequence[Array | None | Computed], packs: Packs) -> None:
        w, r, b = (*inputs, None)[1:4]
        if isinstance(w, np.ndarray) and isinstance(r, np.ndarray) and not isinstance(b, Computed):
            cells = []
            for d, weights in enumerate(self._directions(w, r, b)):
                variant = ("GRU", self.attributes.activations[d], self.attributes.reset_after, self.attributes.clip)
                cells.append(packs.get(weights, variant, partial(self._cell, d, *weights)))
            packed = [cell for cell in cells if cell is not None]
            self._packed = packed if len(packed) == len(cells) else None

    def run(self, x: Sequence[Any], num_threads: int | None) -> Any:
        values, w, r, b, lengths, start = (*x, None, None, None)[:6]
        cells = self._packed
        if cells is None:
            directions = self._directions(w, r, b)
            hidden = r.shape[2]
            check_size(len(directions) * 3 * (hidden + WIDEST) * (w.shape[2] + hidden), np.dtype(np.float32))  # packed
            cells = [self._cell(d, *weights) for d, weights in enumerate(directions)]
        if not self.attributes.batch_first:
            return self._scan(as_float32(values), cells, lengths, start, num_threads)
        # states stand batch first too: (N, D, H)
        start = start.swapaxes(0, 1) if start is not None and start.ndim == 3 else start
        y, y_h = self._scan(as_float32(values), cells, lengths, start, num_threads)
        return [y, None if y_h is None else y_h.swapaxes(0, 1)]

    # -- weights ---------------------------------------------------------------------------

    def _directions(self, w: Array, r: Array, b: Array | None) -> list[tuple[Array, Array, Array | None]]:
        """The weights of each direction; ValueError naming the input that does not fit the others."""
        directions = len(self.attributes.reverses)
        hidden = r.shape[2] if self.attributes.hidden_size is None and r.ndim == 3 else self.attributes.hidden_size
        width = w.shape[2] if w.ndim == 3 else "I"
        expected: dict[str, tuple[Any, ...]] = {
            "W": (directions, _times(3, hidden), width),
            "R": (directions, _times(3, hidden), hidden),
            "B": (directions, _times(6, hidden)),
        }
        for name, value in (("W", w), ("R", r), ("B", b)):
            if value is not None and value.shape != expected[name]:
                raise ValueError(f"{name}: expected shape {expected[name]}, found {value.shape}")
        return [
            (as_float32(w[d]), as_float32(r[d]), None if b is None else as_float32(b[d])) for d in range(directions)
        ]

    def _cell(self, d: int, w: Array, r: Array, b: Array | None) -> Direction:
        recurrent_activation, activation = self.attributes.activations[d]
        weights = gates.from_onnx(w, r, b)
        variant: dict[str, Any] = {
            "reset_after": self.attributes.reset_after,
            "activation": activation,
            "recurrent_activation": recurrent_activation,
        }
        if self.attributes.clip is None:
            return ops.pack_gru(*weights, **variant)
        return ClippedGRU(weights, **variant, clip=self.attributes.clip)

    # -- scoring ---------------------------------------------------------------------------

    def _scan(
        self, x: Array, cells: list[Direction], lengths: Array | None, start: Array | None, num_threads: int | None
    ) -> list[Array | None]:
        """Y in its layout, Y_h (D, N, H); None for the one that nobody needs."""
        batch_first = self.attributes.batch_first
        width, hidden = cells[0].input_size, cells[0].hidden_size
        if x.ndim != 3 or x.shape[2] != width:
            raise ValueError(f"X: expected {'(N, T' if batch_first else '(T, N'}, {width}), found {x.shape}")
        steps, rows = x.shape[1::-1] if batch_first else x.shape[:2]
        _check(lengths, start, rows, steps, (len(cells), rows, hidden))
        wants_y, wants_h = (*self.spec.outputs, False)[:2]
        check_size(max(steps, 1) * rows * len(cells) * hidden, np.dtype(np.float32))
        y_h = np.empty((len(cells), rows, hidden), np.float32)
        shape = (rows, steps, len(cells), hidden) if batch_first else (steps, len(cells), rows, hidden)
        y = np.empty(shape, np.float32) if wants_y else None
        for d, (cell, reverse) in enumerate(zip(cells, self.attributes.reverses, strict=True)):
            out = None if y is None or not y.size else y[:, :, d] if batch_first else y[:, d]
            h0 = None if start is None else np.ascontiguousarray(start[d], np.float32)
            y_h[d] = self._direction(cell, x, h0, lengths, reverse, out, num_threads)
        if steps == 0 or (lengths is not None and not lengths.all()):
            y_h[:, True if steps == 0 else np.asarray(lengths) == 0] = 0
        return [y, y_h if wants_h else None]

    def _direction(
        self,
        cell: Direction,
        x: Array,
        h0: Array | None,
        lengths: Array | None,
        reverse: bool,
        out: Array | None,
        num_threads: int | None,
    ) -> Array:
        """The final state (N, H); the sequence goes to ``out``."""
        batch_first = self.attributes.batch_first
        if isinstance(cell, ClippedGRU):
            y, h_n = cell.run(x.swapaxes(0, 1) if batch_first else x, h0, lengths, reverse, num_threads)
            if out is not None:
                out[...] = y.swapaxes(0, 1) if batch_first else y
            return h_n
        common: dict[str, Any] = {
            "lengths": lengths,
            "reverse": reverse,
            "batch_first": batch_first,
            "num_threads": num_threads,
        }
        if out is None:
            return ops.gru_final(x, cell, h0, **common)
        final: Array = ops.gru(x, cell, h0=h0, out=out, **common)[1]
        return final

    def describe(self) -> str:
        a = self.attributes
        parts = [] if self._packed is None else [f"{self._packed[0].input_size} → {self._packed[0].hidden_size}"]
        parts.append(f"reset_{'after' if a.reset_after else 'before'}")
        parts += ["bidirectional"] if len(a.reverses) > 1 else ["reverse"] if a.reverses[0] else []
        parts += ["batch first"] if a.batch_first else []
        shown = [n if not (p or q) else f"{n}({p:.3g}, {q:g})" for pair in a.activations for n, p, q in pair]
        parts += [] if shown == ["sigmoid", "tanh"] * len(a.reverses) else [", ".join(shown)]
        return ", ".join(parts + ([] if a.clip is None else [f"clip {a.clip:g}"]))


def _times(n: int, hidden: Any) -> Any:
    return n * hidden if isinstance(hidden, int) else f"{n}H"


def _check(lengths: Array | None, start: Array | None, rows: int, steps: int, states: tuple[int, ...]) -> None:
    if start is not None and start.shape != states:
        raise ValueError(f"initial_h: expected {states} for (D, N, H), found {start.shape}")
    if lengths is None:
        return
    if lengths.shape != (rows,) or lengths.dtype.kind not in "iu":
        raise ValueError(f"sequence_lens: expected {rows} whole numbers, found {lengths.dtype} {lengths.shape}")
    if rows and not (0 <= lengths.min() and lengths.max() <= steps):
        raise ValueError(f"sequence_lens: expected 0 … {steps}, found {lengths.min()} … {lengths.max()}")


GRUS: dict[str, tuple[type[OnnxNode], Operator]] = {"GRU": (GRU, Operator(lambda *_: None, (3, 6), KEYS, outputs=2))}
