"""GRU, and RNN over GRU cells, as Keras means them.

The equations are in `fastgru.reference`; what stands at padded steps is in docs of `ops.gru`.
Dimensions: N rows, T time steps, I input features, H units.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import gates, ops
from .activations import gate_spec
from .base import NEWEST, Array, Dialect, Layer, Shape, as_float32, expect_shape, glorot_uniform

if TYPE_CHECKING:
    from .reader import Reader


class GRUCell(Layer):
    """One GRU's weights and equations; `RNN` runs it over time.

    Parameters
    ----------
    units
        H.
    activation, recurrent_activation
        A Keras name or ``(name, alpha, beta)``. hard_sigmoid is clip(x/6 + .5), as in Keras 3.
    reset_after
        Apply the reset gate after (True) or before (False) the recurrent product.
    update_gate
        "old": z keeps the old state (Keras, PyTorch); "new": z admits the new one (Chung, 2014).
    """

    arguments = (
        "units",
        "activation",
        "recurrent_activation",
        "use_bias",
        "reset_after",
        "update_gate",
    )

    def __init__(
        self,
        units: int,
        activation: Any = "tanh",
        recurrent_activation: Any = "sigmoid",
        use_bias: bool = True,
        reset_after: bool = True,
        name: str | None = None,
        *,
        update_gate: str = "old",
        dialect: Dialect = NEWEST,
    ) -> None:
        super().__init__(name)
        self.units = int(units)
        self.activation = activation
        self.recurrent_activation = recurrent_activation
        self.use_bias = bool(use_bias)
        self.reset_after = bool(reset_after)
        self.update_gate = update_gate
        where = f"layer {self.name!r} (GRU)"
        self._activation = gate_spec(activation, dialect, where)
        self._recurrent_activation = gate_spec(recurrent_activation, dialect, where)
        self.cudnn = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any], reader: Reader) -> GRUCell:
        return cls(
            config["units"],
            config.get("activation", "tanh"),
            config.get("recurrent_activation", reader.dialect.default_recurrent_activation),
            config.get("use_bias", True),
            # The key exists since keras-team 2.1.5; files without it are reset-before.
            config.get("reset_after", False),
            config.get("name"),
            update_gate=config.get("update_gate", "old"),
            dialect=reader.dialect,
        )

    def weight_names(self) -> tuple[str, ...]:
        names = ("kernel", "recurrent_kernel")
        return (*names, "bias") if self.use_bias else names

    def check(self, weights: Mapping[str, Array]) -> None:
        h = self.units
        kernel = weights["kernel"]
        expect_shape("kernel", kernel, (kernel.shape[0] if kernel.ndim else 0, 3 * h))
        expect_shape("recurrent_kernel", weights["recurrent_kernel"], (h, 3 * h))
        if self.use_bias:
            self._check_bias(weights["bias"])

    def _check_bias(self, bias: Array) -> None:
        h = self.units
        # Keras' rule: (2, 3H) reset-after, (3H,) reset-before, (6H,) written by CuDNNGRU.
        if bias.shape == (6 * h,) and self.reset_after:
            self.cudnn = True
            return
        expected = (6 * h,) if self.cudnn else (2, 3 * h) if self.reset_after else (3 * h,)
        if bias.shape != expected:
            kinds = {(2, 3 * h): "reset_after=True", (3 * h,): "reset_after=False"}
            found = kinds.get(bias.shape, "CuDNNGRU" if bias.shape == (6 * h,) else "no GRU")
            raise ValueError(
                f"bias: expected {expected} because the config says "
                f"reset_after={self.reset_after}, found {bias.shape}, which belongs to {found}; "
                "config and weights contradict each other"
            )

    def prepare(self) -> None:
        w = {name: as_float32(value) for name, value in self.weights.items()}
        if self.cudnn:
            canonical = gates.from_cudnn_gru(w["kernel"], w["recurrent_kernel"], w["bias"])
        else:
            canonical = gates.from_keras(
                w["kernel"],
                w["recurrent_kernel"],
                w.get("bias"),
                reset_after=self.reset_after,
            )
        self.width = int(w["kernel"].shape[0])
        self.packed = ops.pack_gru(
            *canonical,
            reset_after=self.reset_after,
            update_gate=self.update_gate,
            activation=self._activation,
            recurrent_activation=self._recurrent_activation,
        )

    def build(self, shape: Shape, rng: np.random.Generator) -> None:
        h = self.units
        # Orthogonal recurrent kernel: Keras' default (Saxe et al., 2014).
        q, r = np.linalg.qr(rng.standard_normal((3 * h, h)))
        weights = {
            "kernel": glorot_uniform(rng, (shape[-1], 3 * h)),
            "recurrent_kernel": (q * np.sign(np.diag(r))).T.astype(np.float32),
        }
        if self.use_bias:
            weights["bias"] = np.zeros((2, 3 * h) if self.reset_after else 3 * h, np.float32)
        self.assign(weights)

    def describe(self) -> str:
        parts = [f"{self.width if self.ready else '?'} → {self.units}"]
        parts.append("CuDNN" if self.cudnn else f"reset_{'after' if self.reset_after else 'before'}")
        for label, spec, usual in (
            ("", self._activation, "tanh"),
            ("gates ", self._recurrent_activation, "sigmoid"),
        ):
            if spec != usual:
                shown = spec if isinstance(spec, str) else f"{spec[0]}({spec[1]:.3g}, {spec[2]:g})"
                parts.append(label + shown)
        return ", ".join(parts)


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

    def output_mask(self, mask: Any) -> Any:
        """The mask of the output (of each, when states are returned) for the input's mask."""
        own = mask if self.return_sequences else None
        return [own, *([None] * len(self.cells))] if self.return_state else own

    def scan(
        self, x: Array, mask: Array | None, initial_state: Any, num_threads: int | None
    ) -> tuple[Array, list[Array]]:
        """The output in *input* order (N, T, H), or the last (N, H), and the final states."""
        if not self.stateful:
            return self._scan(x, mask, initial_state, num_threads)
        with self._turn:  # one call after the other, or the states would mix
            y, states = self._scan(x, mask, initial_state, num_threads)
            self.states = [np.array(state) for state in states]
        return y, states

    def _scan(
        self, x: Array, mask: Array | None, initial_state: Any, num_threads: int | None
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
            y, h_n = ops.gru(x, cell.packed, h0=h0, padding=padding, **common)
            if self._dialect.leading_state and padding == "keras":
                self._fill_leading(y, mask, h0)
        else:
            h_n = ops.gru_final(x, cell.packed, h0, **common)
            y = h_n if mask is None else self._last_output(h_n, mask, h0)
        states.append(h_n)
        return y, states

    def _last_output(self, h_n: Array, mask: Array, h0: Array | None) -> Array:
        """y of the last *processed* step, which is not h_n where that step gave 0."""
        if self.zero_output_for_mask:
            keeps: Array = mask[:, 0 if self.go_backwards else -1]
        elif h0 is None or self._dialect.leading_state:
            return h_n
        else:
            keeps = np.asarray(mask.any(axis=1))  # a row without valid steps outputs 0, its state stays h0
        return np.where(keeps[:, None], h_n, np.float32(0.0))

    def _fill_leading(self, y: Array, mask: Array | None, h0: Array | None) -> None:
        """keras-team ≤ 2.2: masked steps before the first valid one give the initial state."""
        if mask is None or h0 is None:
            return
        ordered = mask[:, ::-1] if self.go_backwards else mask
        leading = np.logical_not(np.logical_or.accumulate(ordered, axis=1))
        if self.go_backwards:
            leading = leading[:, ::-1]
        by_row = y.transpose(1, 0, 2) if self.time_major else y
        np.copyto(by_row, h0[:, None, :], where=leading[:, :, None])

    def _check_input(self, x: Array) -> None:
        width = self.cells[0].width
        if x.ndim != 3 or x.shape[2] != width:
            order = "(T, N, I)" if self.time_major else "(N, T, I)"
            raise ValueError(
                f"layer {self.name!r} ({self.class_name()}): expected {order} with I = {width}, found {x.shape}"
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

    def assign(self, weights: Mapping[str, Array]) -> None:
        """Check and keep ``weights``, then pack them for scoring."""
        self.cells[0].assign(weights)
        self.weights = self.cells[0].weights
        self.ready = True

    def build(self, shape: Shape, rng: np.random.Generator) -> None:
        self.cells[0].build(shape, rng)
        self.assign(self.cells[0].weights)


class StackedRNNCells:
    """Several cells that `RNN` runs as one, each feeding the next at every step."""

    def __init__(self, cells: Sequence[GRUCell], name: str | None = None) -> None:
        self.cells = list(cells)
        self.name = name or ""


class Bidirectional(Layer):
    """One recurrent layer forwards, one backwards, merged.

    Parameters
    ----------
    layer
        The forward layer, a `GRU` or `RNN`.
    merge_mode
        "concat", "sum", "mul", "ave", or None for a list of both outputs.
    backward_layer
        Made from ``layer``'s config with go_backwards flipped when left out.
    """

    call_arguments = ("initial_state", "mask")

    def __init__(
        self,
        layer: RNN,
        merge_mode: str | None = "concat",
        backward_layer: RNN | None = None,
        name: str | None = None,
        *,
        dialect: Dialect = NEWEST,
    ) -> None:
        super().__init__(name)
        if merge_mode not in ("concat", "sum", "mul", "ave", None):
            raise ValueError(
                f"layer {self.name!r}: merge_mode: expected concat, sum, mul, ave or None, found {merge_mode!r}"
            )
        self.merge_mode = merge_mode
        self.forward_layer = layer
        self.backward_layer = _reversed(layer) if backward_layer is None else backward_layer
        for key in ("stateful", "return_sequences", "return_state"):
            here, there = getattr(layer, key), getattr(self.backward_layer, key)
            if here != there:
                raise ValueError(
                    f"layer {self.name!r} (Bidirectional): expected one {key} for both "
                    f"directions, found {here} and {there}"
                )
        if layer.go_backwards == self.backward_layer.go_backwards:
            raise ValueError(
                f"layer {self.name!r} (Bidirectional): expected directions that differ, found "
                f"go_backwards={layer.go_backwards} twice"
            )
        if dialect.bidirectional_zeroes:
            for part in (self.forward_layer, self.backward_layer):
                part.zero_output_for_mask = part.return_sequences

    @classmethod
    def from_config(cls, config: Mapping[str, Any], reader: Reader) -> Layer:
        forward = reader.rnn(config.get("layer") or config["forward_layer"])
        second = config.get("backward_layer")
        backward = None if second is None else reader.rnn(second)
        if backward is None:
            entry = dict(config.get("layer") or config["forward_layer"])
            inner = dict(entry["config"])
            inner["go_backwards"] = not inner.get("go_backwards", False)
            backward = reader.rnn({**entry, "config": inner})
        return cls(
            forward,
            config.get("merge_mode", "concat"),
            backward,
            config.get("name"),
            dialect=reader.dialect,
        )

    def get_config(self) -> dict[str, Any]:
        def entry(layer: RNN) -> dict[str, Any]:
            return {"class_name": layer.class_name(), "config": layer.get_config()}

        return {
            "name": self.name,
            "merge_mode": self.merge_mode,
            "layer": entry(self.forward_layer),
            "backward_layer": entry(self.backward_layer),
        }

    def parts(self) -> dict[str, Layer]:
        return {"forward_layer": self.forward_layer, "backward_layer": self.backward_layer}

    def build(self, shape: Shape, rng: np.random.Generator) -> None:
        self.forward_layer.build(shape, rng)
        self.backward_layer.build(shape, rng)
        self.assign({})

    def forward(self, x: Any, mask: Any, num_threads: int | None, initial_state: Any = None) -> tuple[Any, Any]:
        if isinstance(x, (list, tuple)):
            initial_state = list(x[1:]) or initial_state
            x = x[0]
            mask = mask[0] if isinstance(mask, (list, tuple)) else mask
        first, second = self.forward_layer, self.backward_layer
        starts: tuple[Any, Any] = (None, None)
        if initial_state is not None:
            half = len(initial_state) // 2
            starts = (initial_state[:half], initial_state[half:])
        x = as_float32(x)
        y, states = first.scan(x, mask, starts[0], num_threads)
        y_back, states_back = second.scan(x, mask, starts[1], num_threads)
        if first.return_sequences and first.go_backwards:
            # `scan` gives input order; Keras leaves the forward half in processing order and
            # flips the other half, so a backwards "forward" layer flips both.
            axis = 0 if first.time_major else 1
            y, y_back = np.flip(y, axis), np.flip(y_back, axis)
        merged: Any
        if self.merge_mode == "concat":
            merged = np.concatenate([y, y_back], axis=-1)
        elif self.merge_mode == "sum":
            merged = y + y_back
        elif self.merge_mode == "mul":
            merged = y * y_back
        elif self.merge_mode == "ave":
            merged = (y + y_back) / np.float32(2.0)
        else:
            merged = [y, y_back]
        if first.return_state:
            merged = [*(merged if isinstance(merged, list) else [merged]), *states, *states_back]
        return merged, self.output_mask(mask)

    def output_mask(self, mask: Any) -> Any:
        """The mask of the output (of each, when there are several) for the input's mask."""
        first = self.forward_layer
        own = mask if first.return_sequences else None
        masks = [own] * (2 if self.merge_mode is None else 1)
        if first.return_state:
            masks += [None] * (len(first.cells) + len(self.backward_layer.cells))
        return masks if len(masks) > 1 else own

    def describe(self) -> str:
        mode = self.merge_mode or "both outputs"
        first, second = self.forward_layer.describe(), self.backward_layer.describe()
        same = first == second.replace("; go_backwards", "")
        return f"{mode}; {first}" if same else f"{mode}; forward {first}; backward {second}"


def _reversed(layer: RNN) -> RNN:
    """A layer with the same arguments that runs the other way."""
    flags = {key: getattr(layer, key) for key in RNN._own}
    flags["go_backwards"] = not layer.go_backwards
    cells = [_copy(cell) for cell in layer.cells]
    if isinstance(layer, GRU):
        twin: RNN = GRU(layer.units, name=layer.name, dialect=layer._dialect, **flags)
        twin.cells = cells
        return twin
    return RNN(cells if layer.stacked else cells[0], name=layer.name, dialect=layer._dialect, **flags)


def _copy(cell: GRUCell) -> GRUCell:
    twin = GRUCell(cell.units, use_bias=cell.use_bias, reset_after=cell.reset_after)
    for key in ("activation", "recurrent_activation", "update_gate", "name", "cudnn"):
        setattr(twin, key, getattr(cell, key))
    twin._activation, twin._recurrent_activation = cell._activation, cell._recurrent_activation
    return twin
