"""GRU, and RNN over GRU cells, as Keras means them.

The equations are in `fastgru.reference`; what stands at padded steps is in docs of `ops.gru`.
Dimensions: N rows, T time steps, I input features, H units.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import ops
from .base import NEWEST, Array, Dialect, Layer, Shape, as_float32
from .cells import GRUCell, StackedRNNCells
from .recurrent_training import scan_and_back
from .training_step import Back, TrainingStep

if TYPE_CHECKING:
    from .reader import Reader


class RNN(Layer):
    """Run GRU cells, stacked in the order given, over the time axis.

    Parameters
    ----------
    cell
        A `GRUCell`, a list of them, or `StackedRNNCells`.
    return_sequences
        The output of every step (N, T, H) rather than of the last processed one (N, H).
    return_state
        Return ``[output, state, …]``, one state (N, H) per cell.
    go_backwards
        Process from the last step to the first; the output stays in processing order.
    stateful
        Start from the final states of the call before, until `reset_states`.
    zero_output_for_mask
        Masked steps give 0 instead of repeating the output before them.
    time_major
        Inputs and outputs are (T, N, …).
    """

    call_arguments = ("initial_state", "mask")
    _own = (
        "return_sequences",
        "return_state",
        "go_backwards",
        "stateful",
        "zero_output_for_mask",
        "time_major",
    )

    def __init__(
        self,
        cell: GRUCell | StackedRNNCells | Sequence[GRUCell],
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        zero_output_for_mask: bool = False,
        name: str | None = None,
        *,
        time_major: bool = False,
        dialect: Dialect = NEWEST,
    ) -> None:
        super().__init__(name)
        self.stacked = not isinstance(cell, GRUCell)
        if isinstance(cell, StackedRNNCells):
            self.cells = cell.cells
        else:
            self.cells = [cell] if isinstance(cell, GRUCell) else list(cell)
        if not self.cells:
            raise ValueError(f"layer {self.name!r} (RNN): expected at least one cell, found none")
        self.return_sequences = bool(return_sequences)
        self.return_state = bool(return_state)
        self.go_backwards = bool(go_backwards)
        self.stateful = bool(stateful)
        self.zero_output_for_mask = bool(zero_output_for_mask)
        self.time_major = bool(time_major)
        self.states: list[Array] | None = None
        self._dialect = dialect
        self._turn = threading.Lock()

    @classmethod
    def from_config(cls, config: Mapping[str, Any], reader: Reader) -> Layer:
        own = {key: config[key] for key in cls._own if key in config}
        cell = reader.cell(config["cell"])
        return cls(cell, name=config.get("name"), dialect=reader.dialect, **own)

    def get_config(self) -> dict[str, Any]:
        cells = [{"class_name": "GRUCell", "config": c.get_config()} for c in self.cells]
        stack = {"class_name": "StackedRNNCells", "config": {"cells": cells}}
        own = {key: getattr(self, key) for key in self._own}
        return {"name": self.name, **own, "cell": stack if self.stacked else cells[0]}

    def parts(self) -> dict[str, Layer]:
        if self.stacked:
            return {f"cell/cells_{i}": cell for i, cell in enumerate(self.cells)}
        return {"cell": self.cells[0]}

    def build(self, shape: Shape, rng: np.random.Generator) -> None:
        width = shape[-1]
        for cell in self.cells:
            cell.build((width,), rng)
            width = cell.units
        self.assign({})

    # -- scoring ---------------------------------------------------------------------------

    def forward(self, x: Any, mask: Any, num_threads: int | None, initial_state: Any = None) -> tuple[Any, Any]:
        if isinstance(x, (list, tuple)):
            # Keras 2 passes [x, state, …] where Keras 3 passes initial_state.
            initial_state = list(x[1:]) or initial_state
            x = x[0]
            mask = mask[0] if isinstance(mask, (list, tuple)) else mask
        y, states = self.scan(x, mask, initial_state, num_threads)
        if self.go_backwards and self.return_sequences:
            y = y[::-1] if self.time_major else y[:, ::-1]
        return ([y, *states] if self.return_state else y), self.output_mask(mask)

    def train(self, x: Any, mask: Any, step: TrainingStep, initial_state: Any = None) -> tuple[Any, Any, Back]:
        several, given = isinstance(x, (list, tuple)), initial_state is not None
        if several:
            initial_state = list(x[1:]) or initial_state
            x = x[0]
            mask = mask[0] if isinstance(mask, (list, tuple)) else mask
        y, states, scan_back = scan_and_back(self, x, mask, initial_state, step)
        flips = self.go_backwards and self.return_sequences
        axis = 0 if self.time_major else 1

        def back(dy: Any) -> Any:
            dy, *dstates = dy if self.return_state else [dy, *[None] * len(self.cells)]
            if dy is not None and flips:
                dy = np.flip(dy, axis)
            dx, dh0s = scan_back(dy, dstates)
            return [dx, *dh0s] if several else (dx, dh0s) if given else dx

        y = np.flip(y, axis) if flips else y
        return ([y, *states] if self.return_state else y), self.output_mask(mask), back

    def output_count(self) -> int:
        return 1 + len(self.cells) * self.return_state

    def output_mask(self, mask: Any) -> Any:
        """The mask of the output (of each, when states are returned) for the input's mask."""
        own = mask if self.return_sequences else None
        return [own, *([None] * len(self.cells))] if self.return_state else own

    def scan(
        self, x: Array, mask: Array | None, initial_state: Any, num_threads: int | None, out: Array | None = None
    ) -> tuple[Array, list[Array]]:
        """The output in *input* order (N, T, H), or the last (N, H), and the final states.

        ``out``, with return_sequences, is where the output goes.
        """
        if not self.stateful:
            return self._scan(x, mask, initial_state, num_threads, out)
        with self._turn:  # one call after the other, or the states would mix
            y, states = self._scan(x, mask, initial_state, num_threads, out)
            self.states = [np.array(state) for state in states]
        return y, states

    def _scan(
        self, x: Array, mask: Array | None, initial_state: Any, num_threads: int | None, out: Array | None
    ) -> tuple[Array, list[Array]]:
        x = as_float32(x)
        self._check_input(x)
        rows = x.shape[1] if self.time_major else x.shape[0]
        start = self._start(initial_state, rows)
        if mask is not None and self.time_major:
            mask = mask.T
        common: dict[str, Any] = {
            "mask": mask,
            "reverse": self.go_backwards,
            "batch_first": not self.time_major,
            "num_threads": num_threads,
        }
        states: list[Array] = []
        for cell, h0 in zip(self.cells[:-1], start[:-1], strict=True):
            x, h_n = ops.gru(x, cell.packed, h0=h0, padding="zero", **common)
            states.append(h_n)
        cell, h0 = self.cells[-1], start[-1]
        if self.return_sequences:
            padding = "zero" if self.zero_output_for_mask else "keras"
            y, h_n = ops.gru(x, cell.packed, h0=h0, padding=padding, out=out, **common)
            if self._dialect.leading_state and padding == "keras":
                self._fill_leading(y, mask, h0)
        else:
            h_n = ops.gru_final(x, cell.packed, h0, **common)
            y = h_n if mask is None else self._last_output(h_n, mask, h0)
        states.append(h_n)
        return y, states

    def _last_output(self, h_n: Array, mask: Array, h0: Array | None) -> Array:
        """y of the last *processed* step, which is not h_n where that step gave 0."""
        keeps = self.keeps_last(mask, h0)
        return h_n if keeps is None else np.where(keeps, h_n, np.float32(0.0))

    def keeps_last(self, mask: Array, h0: Array | None) -> Array | None:
        """(N, 1): whose last *processed* step gave h_n, the others' gave 0; None: everybody's."""
        if self.zero_output_for_mask:
            keeps: Array = mask[:, 0 if self.go_backwards else -1]
        elif h0 is None or self._dialect.leading_state:
            return None
        else:
            keeps = np.asarray(mask.any(axis=1))  # a row without valid steps outputs 0, its state stays h0
        return keeps[:, None]

    def _fill_leading(self, y: Array, mask: Array | None, h0: Array | None) -> None:
        """keras-team ≤ 2.2: masked steps before the first valid one give the initial state."""
        if mask is None or h0 is None:
            return
        by_row = y.transpose(1, 0, 2) if self.time_major else y
        np.copyto(by_row, h0[:, None, :], where=self.leading(mask)[:, :, None])

    def leading(self, mask: Array) -> Array:
        """(N, T): masked steps that are processed before the first valid one."""
        ordered = mask[:, ::-1] if self.go_backwards else mask
        leading: Array = np.logical_not(np.logical_or.accumulate(ordered, axis=1))
        return leading[:, ::-1] if self.go_backwards else leading

    def _check_input(self, x: Array) -> None:
        width = self.cells[0].width
        if x.ndim != 3 or x.shape[2] != width:
            order = "(T, N, I)" if self.time_major else "(N, T, I)"
            hint = "; a GRU before it needs return_sequences=True" if x.ndim == 2 else ""
            raise ValueError(
                f"layer {self.name!r} ({self.class_name()}): expected {order} with I = {width}, found {x.shape}{hint}"
            )

    def _start(self, initial_state: Any, rows: int) -> list[Array | None]:
        """The states to start from, one per cell; None is zeros."""
        stored = self.states if self.stateful else None
        if stored is not None and stored[0].shape[0] != rows:
            raise ValueError(
                f"layer {self.name!r}: stateful with {stored[0].shape[0]} rows, found {rows}; "
                "call reset_states() before another batch size"
            )
        wins = stored is not None and self._dialect.stored_state_wins
        if initial_state is None or (wins and stored and any(s.any() for s in stored)):
            return list(stored) if stored is not None else [None] * len(self.cells)
        given = initial_state if isinstance(initial_state, (list, tuple)) else [initial_state]
        flat = [s for g in given for s in (g if isinstance(g, (list, tuple)) else [g])]
        if len(flat) != len(self.cells):
            raise ValueError(f"layer {self.name!r}: expected {len(self.cells)} initial states, found {len(flat)}")
        checked: list[Array | None] = []
        for cell, state in zip(self.cells, flat, strict=True):
            if state is None:
                checked.append(None)
                continue
            array = np.ascontiguousarray(state, np.float32)
            if array.shape != (rows, cell.units):
                raise ValueError(
                    f"layer {self.name!r}: initial_state: expected {(rows, cell.units)}, found {array.shape}"
                )
            checked.append(array)
        return checked

    def reset_states(self) -> None:
        """Start the next call of a stateful layer from zeros."""
        self.states = None

    def describe(self) -> str:
        flags = [key for key in self._own if getattr(self, key)]
        return "; ".join([*(cell.describe() for cell in self.cells), *flags])


class GRU(RNN):
    """Keras' GRU layer: the arguments of `GRUCell` and `RNN` together."""

    def __init__(
        self,
        units: int,
        activation: Any = "tanh",
        recurrent_activation: Any = "sigmoid",
        use_bias: bool = True,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        reset_after: bool = True,
        zero_output_for_mask: bool = False,
        name: str | None = None,
        *,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        seed: int | None = None,
        implementation: int = 2,
        time_major: bool = False,
        update_gate: str = "old",
        dialect: Dialect = NEWEST,
    ) -> None:
        cell = GRUCell(
            units,
            activation,
            recurrent_activation,
            use_bias,
            reset_after,
            name,
            update_gate=update_gate,
            dropout=dropout,
            recurrent_dropout=recurrent_dropout,
            seed=seed,
            implementation=implementation,
            dialect=dialect,
        )
        super().__init__(
            cell,
            return_sequences,
            return_state,
            go_backwards,
            stateful,
            zero_output_for_mask,
            name,
            time_major=time_major,
            dialect=dialect,
        )

    @property
    def units(self) -> int:
        """H."""
        return self.cells[0].units

    @classmethod
    def from_config(cls, config: Mapping[str, Any], reader: Reader) -> GRU:
        cell = GRUCell.from_config(config, reader)
        return cls._around(cell, config, reader)

    @classmethod
    def from_cudnn_config(cls, config: Mapping[str, Any], reader: Reader) -> GRU:
        """CuDNNGRU: tanh and sigmoid, reset-after, whatever else the config says."""
        fixed = {"activation": "tanh", "recurrent_activation": "sigmoid", "reset_after": True}
        cell = GRUCell.from_config({**config, **fixed, "use_bias": True}, reader)
        cell.cudnn = True
        return cls._around(cell, config, reader)

    @classmethod
    def _around(cls, cell: GRUCell, config: Mapping[str, Any], reader: Reader) -> GRU:
        own = {key: config[key] for key in cls._own if key in config}
        layer = cls(cell.units, name=config.get("name"), dialect=reader.dialect, **own)
        layer.cells = [cell]
        return layer

    def get_config(self) -> dict[str, Any]:
        own = {key: getattr(self, key) for key in self._own}
        return {**self.cells[0].get_config(), "name": self.name, **own}

    def class_name(self) -> str:
        return "CuDNNGRU" if self.cells[0].cudnn else "GRU"

    def weight_names(self) -> tuple[str, ...]:
        return self.cells[0].weight_names()

    def parts(self) -> dict[str, Layer]:
        return {}

    def untrainable(self, through: bool = False) -> str:
        return self.cells[0].untrainable()

    def assign(self, weights: Mapping[str, Array]) -> None:
        """Check and keep ``weights``, then pack them for scoring."""
        self.cells[0].assign(weights)
        self.weights = self.cells[0].weights
        self.ready = True

    def build(self, shape: Shape, rng: np.random.Generator) -> None:
        self.cells[0].build(shape, rng)
        self.assign(self.cells[0].weights)
