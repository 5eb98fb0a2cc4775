"""Bidirectional: one recurrent layer forwards, one backwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .base import NEWEST, Array, Dialect, Layer, Shape, as_float32
from .cells import GRUCell
from .recurrent import GRU, RNN
from .recurrent_training import scan_and_back
from .training_step import Back, TrainingStep

if TYPE_CHECKING:
    from .reader import Reader


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
        merged: Any = None
        halves: tuple[Any, Any] = (None, None)
        if self.merge_mode == "concat" and first.return_sequences and x.ndim == 3:
            units = first.cells[-1].units
            merged = np.empty((*x.shape[:2], units + second.cells[-1].units), np.float32)
            halves = (merged[..., :units], merged[..., units:])
        y, states = first.scan(x, mask, starts[0], num_threads, halves[0])
        y_back, states_back = second.scan(x, mask, starts[1], num_threads, halves[1])
        if first.return_sequences and first.go_backwards:
            # `scan` gives input order; Keras leaves the forward half in processing order and
            # flips the other half, so a backwards "forward" layer flips both.
            axis = 0 if first.time_major else 1
            y, y_back = np.flip(y, axis), np.flip(y_back, axis)
            merged = None if merged is None else np.flip(merged, axis)
        merged = self._merge([y, y_back]) if merged is None else merged
        if first.return_state:
            merged = [*(merged if isinstance(merged, list) else [merged]), *states, *states_back]
        return merged, self.output_mask(mask)

    def train(self, x: Any, mask: Any, step: TrainingStep, initial_state: Any = None) -> tuple[Any, Any, Back]:
        several, given = isinstance(x, (list, tuple)), initial_state is not None
        if several:
            initial_state = list(x[1:]) or initial_state
            x = x[0]
            mask = mask[0] if isinstance(mask, (list, tuple)) else mask
        first, second = self.forward_layer, self.backward_layer
        half = 0 if initial_state is None else len(initial_state) // 2
        starts = (None, None) if initial_state is None else (initial_state[:half], initial_state[half:])
        ys: list[Array] = []
        states: list[list[Array]] = []
        backs = []
        axis, flips = 0 if first.time_major else 1, first.return_sequences and first.go_backwards
        for part, start in zip((first, second), starts, strict=True):
            y, final, scan_back = scan_and_back(part, x, mask, start, step)
            ys.append(np.flip(y, axis) if flips else y)
            states.append(final)
            backs.append(scan_back)

        def back(dy: Any) -> Any:
            parts = dy if isinstance(dy, list) else [dy]
            count = 2 if self.merge_mode is None else 1
            dys = self._unmerge(parts[:count], ys)
            ends = parts[count:] if first.return_state else [None] * sum(map(len, states))
            dstates = (ends[: len(states[0])], ends[len(states[0]) :])
            found = []
            for d, scan_back, final in zip(dys, backs, dstates, strict=True):
                found.append(scan_back(np.flip(d, axis) if flips and d is not None else d, final))
            (dx, dh0s), (dx_back, dh0s_back) = found
            dx = dx + dx_back
            return [dx, *dh0s, *dh0s_back] if several else (dx, [*dh0s, *dh0s_back]) if given else dx

        merged = self._merge(ys)
        if first.return_state:
            merged = [*(merged if isinstance(merged, list) else [merged]), *states[0], *states[1]]
        return merged, self.output_mask(mask), back

    def _merge(self, ys: list[Array]) -> Any:
        """Both outputs as ``merge_mode`` says."""
        y, y_back = ys
        if self.merge_mode == "concat":
            return np.concatenate([y, y_back], axis=-1)
        if self.merge_mode == "sum":
            return y + y_back
        if self.merge_mode == "mul":
            return y * y_back
        if self.merge_mode == "ave":
            return (y + y_back) / np.float32(2.0)
        return [y, y_back]

    def _unmerge(self, dy: list[Any], ys: list[Array]) -> list[Array | None]:
        """The gradient of both outputs from that of what `_merge` gave."""
        if self.merge_mode is None or dy[0] is None:
            return dy if len(dy) == 2 else [None, None]
        d = dy[0]
        if self.merge_mode == "concat":
            width = ys[0].shape[-1]
            return [np.ascontiguousarray(d[..., :width]), np.ascontiguousarray(d[..., width:])]
        if self.merge_mode == "mul":
            return [d * ys[1], d * ys[0]]
        half = d / np.float32(2.0) if self.merge_mode == "ave" else d
        return [half, half]

    def output_count(self) -> int:
        first, second = self.forward_layer, self.backward_layer
        states = (len(first.cells) + len(second.cells)) * first.return_state
        return (2 if self.merge_mode is None else 1) + states

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
        twin.trainable = layer.trainable
        return twin
    return RNN(cells if layer.stacked else cells[0], name=layer.name, dialect=layer._dialect, **flags)


def _copy(cell: GRUCell) -> GRUCell:
    twin = GRUCell(cell.units, use_bias=cell.use_bias, reset_after=cell.reset_after)
    for key in (*cell.arguments, "name", "cudnn", "trainable"):
        setattr(twin, key, getattr(cell, key))
    twin._activation, twin._recurrent_activation = cell._activation, cell._recurrent_activation
    return twin
