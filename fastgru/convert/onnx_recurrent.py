"""GRUs as ONNX's GRU operator: gates z r n, time first, one node for one layer and one or both directions.

ONNX Runtime's CPU kernels know layout 0 only, so batch-first models are transposed around the node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .. import gates
from ..layers.base import as_float32
from ..layers.bidirectional import Bidirectional
from ..layers.cells import GRUCell
from ..layers.recurrent import RNN
from .onnx_builder import Builder, Value
from .onnx_masks import Compact, compact, to_front, to_places

Spec = tuple[str, float, float]

#: Ours → the operator's name, and which of α and β it takes.
ACTIVATIONS = {
    "sigmoid": ("Sigmoid", 0),
    "tanh": ("Tanh", 0),
    "relu": ("Relu", 0),
    "softsign": ("Softsign", 0),
    "softplus": ("Softplus", 0),
    "elu": ("Elu", 1),
    "leaky_relu": ("LeakyRelu", 1),
    "thresholded_relu": ("ThresholdedRelu", 1),
    "hard_sigmoid": ("HardSigmoid", 2),
    "affine": ("Affine", 2),
    "scaled_tanh": ("ScaledTanh", 2),
}


@dataclass(frozen=True)
class Direction:
    """One direction of one GRU layer; ``owner`` is whose weights are stored once, however often it is called."""

    owner: object
    weights: gates.Weights
    reset_after: bool
    activation: Spec
    recurrent_activation: Spec
    reverse: bool = False

    @property
    def units(self) -> int:
        return int(self.weights.weight_hh.shape[1])


def gru(
    g: Builder,
    x: Value,
    directions: Sequence[Direction],
    h0: Value | None,
    label: str = "",
    lengths: Value | None = None,
) -> tuple[Value, Value]:
    """One GRU node: x (T, N, I), h0 (D, N, H) or None → Y (T, D, N, H) and Y_h (D, N, H)."""
    first = directions[0]
    made = [gates.to_onnx(d.weights) for d in directions]
    arrays = [np.stack([w[0] for w in made]), np.stack([w[1] for w in made])]
    if any(w[2] is not None for w in made):
        zeros = np.zeros(6 * first.units, np.float32)
        arrays.append(np.stack([zeros if w[2] is None else w[2] for w in made]))
    weights = [g.weight(first.owner, name + label, a) for name, a in zip("WRB", arrays, strict=False)]
    inputs = [x, *weights, *[None] * (3 - len(weights)), lengths, h0]
    while inputs[-1] is None:
        inputs.pop()
    attributes: dict[str, Any] = {"hidden_size": first.units, "linear_before_reset": int(first.reset_after)}
    if len(directions) > 1:
        attributes["direction"] = "bidirectional"
    elif first.reverse:
        attributes["direction"] = "reverse"
    t, n, _ = x.sizes
    sizes = [(t, len(directions), n, first.units), (len(directions), n, first.units)]
    y, y_h = g.several("GRU", inputs, sizes, **attributes, **_activations(g, directions))
    return y, y_h


def _activations(g: Builder, directions: Sequence[Direction]) -> dict[str, Any]:
    """α and β are queues: an activation takes from each only if it uses it."""
    names: list[str] = []
    alphas: list[float] = []
    betas: list[float] = []
    for name, alpha, beta in (s for d in directions for s in (d.recurrent_activation, d.activation)):
        if name == "linear":
            name, alpha, beta = "affine", 1.0, 0.0
        if name not in ACTIVATIONS:
            known = ", ".join(sorted({*ACTIVATIONS, "linear"}))
            raise g.refuse(f"expected an activation that ONNX's GRU has ({known}), found {name}")
        operator, parameters = ACTIVATIONS[name]
        names.append(operator)
        alphas += [alpha][:parameters]
        betas += [beta] * (parameters == 2)
    if names == ["Sigmoid", "Tanh"] * len(directions):
        return {}  # the operator's default
    found: dict[str, Any] = {"activations": names}
    found.update({"activation_alpha": alphas} if alphas else {})
    found.update({"activation_beta": betas} if betas else {})
    return found


def direction_of(cell: GRUCell, reverse: bool) -> Direction:
    """A Keras-shaped cell, its weights in canonical form."""
    w = {name: as_float32(value) for name, value in cell.weights.items()}
    if cell.cudnn:
        weights = gates.from_cudnn_gru(w["kernel"], w["recurrent_kernel"], w["bias"])
    else:
        weights = gates.from_keras(w["kernel"], w["recurrent_kernel"], w.get("bias"), reset_after=cell.reset_after)
    if cell.update_gate == "new":
        weights = gates.negate_update(weights)
    packed = cell.packed
    return Direction(cell, weights, packed.reset_after, packed.activation, packed.recurrent_activation, reverse)


# -- Keras' layers --------------------------------------------------------------------------


def rnn(g: Builder, layer: RNN, x: Any, state: Any) -> Any:
    """GRU, RNN and CuDNNGRU."""
    x, state = _arguments(g, x, state)
    over, moved = _entrance(g, layer, x)
    starts = _states(g, layer.cells, state)
    y, finals = _scan(g, layer, over, starts, moved)
    y = _output(g, layer, y, starts[-1], moved)
    y = g.flip(y, 1) if layer.go_backwards and layer.return_sequences else y
    return [y, *finals] if layer.return_state else y


def bidirectional(g: Builder, layer: Bidirectional, x: Any, state: Any) -> Any:
    """Both directions in one node where they agree, else in two."""
    x, state = _arguments(g, x, state)
    first, second = layer.forward_layer, layer.backward_layer
    over, moved = _entrance(g, first, x)
    _refuse_kept_state(g, second)
    half = 0 if state is None else len(state) // 2
    given = (None, None) if state is None else (state[:half], state[half:])
    starts = [_states(g, p.cells, s) for p, s in zip((first, second), given, strict=True)]
    if _fits_one_node(first, second):
        y, y_h = _scan_both(g, first, second, over, starts, moved)
        finals = [_final(g, _pick(g, y_h, 0, i), starts[i][0], moved) for i in (0, 1)]
        if layer.merge_mode == "concat" and moved is None:
            y = g.transpose(y, (2, 0, 1, 3)) if first.return_sequences else g.transpose(y_h, (1, 0, 2))
            kept = y.rank - 2
            merged: Any = g.reshape(y, [0] * kept + [-1], (*y.sizes[:kept], 2 * first.cells[0].units))
            return [merged, *finals] if first.return_state else merged
        ends = [_pick(g, y, 1, i) for i in (0, 1)] if first.return_sequences else finals
    else:
        pairs = [_scan(g, p, over, s, moved) for p, s in zip((first, second), starts, strict=True)]
        ends = [y for y, _ in pairs]
        finals = [h for _, own in pairs for h in own]
    ends = [_output(g, p, y, s[-1], moved) for p, y, s in zip((first, second), ends, starts, strict=True)]
    if first.return_sequences and first.go_backwards:
        ends = [g.flip(y, 1) for y in ends]
    merged = _merge(g, layer.merge_mode, ends)
    return [*(merged if isinstance(merged, list) else [merged]), *finals] if first.return_state else merged


def _merge(g: Builder, mode: str | None, halves: list[Value]) -> Any:
    if mode is None:
        return list(halves)
    if mode == "concat":
        return g.concat(halves, -1)
    merged = g.binary("Mul" if mode == "mul" else "Add", halves[0], halves[1])
    return g.binary("Div", merged, np.float32(2)) if mode == "ave" else merged


def _fits_one_node(first: RNN, second: RNN) -> bool:
    """Whether ONNX's bidirectional GRU means these two: one hidden_size and reset placement, forwards first."""
    if len(first.cells) != 1 or len(second.cells) != 1 or first.go_backwards:
        return False
    a, b = first.cells[0], second.cells[0]
    return a.units == b.units and a.reset_after == b.reset_after and a.width == b.width


def _arguments(g: Builder, x: Any, state: Any) -> tuple[Value, Any]:
    """Input and flat initial states; Keras 2 passes [x, state, …] where Keras 3 passes initial_state."""
    if isinstance(x, (list, tuple)):
        state = list(x[1:]) or state
        x = x[0]
    if state is not None:
        given = state if isinstance(state, (list, tuple)) else [state]
        state = [s for part in given for s in (part if isinstance(part, (list, tuple)) else [part])]
    return g.floats(x), state


def _entrance(g: Builder, layer: RNN, x: Value) -> tuple[Value, Compact | None]:
    """x as (T, N, I), valid steps in front if it has a mask."""
    _refuse_kept_state(g, layer)
    width = layer.cells[0].width
    if x.rank != 3 or (isinstance(x.sizes[2], int) and x.sizes[2] != width):
        raise g.refuse(f"expected (N, T, I) with I = {width}, found {x.sizes}")
    moved = None if x.mask is None else compact(g, x.mask)
    x = replace(x, mask=None)
    return g.transpose(x if moved is None else to_front(g, x, moved), (1, 0, 2)), moved


def _refuse_kept_state(g: Builder, layer: RNN) -> None:
    if layer.stateful:
        raise g.refuse("stateful: an ONNX model keeps no state between calls; set stateful=False")
    if layer.time_major:
        raise g.refuse("time_major: only batch-major layers are exported; set time_major=False")


def _scan(
    g: Builder, layer: RNN, x: Value, starts: Sequence[Value | None], moved: Compact | None
) -> tuple[Value, list[Value]]:
    """x (T, N, I) → the outputs (T, N, H) in input order, or the last (N, H), and the final states."""
    finals: list[Value] = []
    lengths = None if moved is None else moved.lengths
    for cell, start in zip(layer.cells, starts, strict=True):
        h0 = None if start is None else g.unsqueeze(start, 0)
        y, y_h = gru(g, x, [direction_of(cell, layer.go_backwards)], h0, lengths=lengths)
        finals.append(_final(g, g.squeeze(y_h, 0), start, moved))
        if cell is not layer.cells[-1] or layer.return_sequences:
            x = g.squeeze(y, 1)
    return (x if layer.return_sequences else finals[-1]), finals


def _scan_both(
    g: Builder, first: RNN, second: RNN, x: Value, starts: list[list[Value | None]], moved: Compact | None
) -> tuple[Value, Value]:
    """x (T, N, I) → Y (T, 2, N, H) and Y_h (2, N, H)."""
    ends = [s[0] for s in starts]
    h0 = None
    if any(s is not None for s in ends):
        if any(s is None for s in ends):
            raise g.refuse("expected an initial state for both directions, found one")
        h0 = g.concat([g.unsqueeze(s, 0) for s in ends if s is not None], 0)
    directions = [direction_of(first.cells[0], False), direction_of(second.cells[0], True)]
    return gru(g, x, directions, h0, lengths=None if moved is None else moved.lengths)


def _final(g: Builder, state: Value, start: Value | None, moved: Compact | None) -> Value:
    """A row without valid steps keeps its initial state."""
    if moved is None:
        return state
    other = g.constant(np.float32(0)) if start is None else start
    return g.add("Where", [moved.has_steps(g), state, other], state.sizes)


def _output(g: Builder, layer: RNN, y: Value, start: Value | None, moved: Compact | None) -> Value:
    """What the layer gives, in input order: all steps (N, T, H), or that of the last *processed* one (N, H)."""
    zeroes, leading = layer.zero_output_for_mask, layer._dialect.leading_state
    if layer.return_sequences:
        y = g.transpose(y, (1, 0, 2))
        if moved is None:
            return y
        padding = "zero" if zeroes else "keras"
        return to_places(g, y, moved, padding, layer.go_backwards, start if leading and not zeroes else None)
    if moved is None or (not zeroes and (start is None or leading)):
        return y
    if zeroes:
        keeps = g.part(moved.mask, 1, 0, 1) if layer.go_backwards else g.part(moved.mask, 1, -1)
    else:
        keeps = moved.has_steps(g)  # a row without valid steps gives 0, its state stays h0
    return g.add("Where", [keeps, y, g.constant(np.float32(0))], y.sizes)


def _states(g: Builder, cells: Sequence[GRUCell], state: Any) -> list[Value | None]:
    """One initial state (N, H) for each cell, None for zeros."""
    if state is None:
        return [None] * len(cells)
    if len(state) != len(cells):
        raise g.refuse(f"expected {len(cells)} initial states, found {len(state)}")
    found: list[Value | None] = []
    for cell, given in zip(cells, state, strict=True):
        value = None if given is None else replace(g.floats(given), mask=None)
        if value is not None and (value.rank != 2 or value.sizes[1] not in (cell.units, None)):
            raise g.refuse(f"expected an initial state (N, {cell.units}), found {value.sizes}")
        found.append(value)
    return found


def _pick(g: Builder, x: Value, axis: int, index: int) -> Value:
    """x at one place of an axis, without that axis."""
    return g.add("Gather", [x, g.constant(index)], (*x.sizes[:axis], *x.sizes[axis + 1 :]), axis=axis)
