"""A GRU cell's weights in canonical form, whatever layout and convention it came in."""

from __future__ import annotations

from .. import gates, nn
from .._core.isa import check_activation
from ..layers.base import Layer, as_float32
from ..layers.bidirectional import Bidirectional
from ..layers.cells import GRUCell
from ..layers.core import Input
from ..layers.recurrent import GRU
from ..models import Sequential
from ..ops import Activation

__all__ = ["as_model", "canonical"]


def canonical(cell: GRUCell) -> gates.Weights:
    """float32, PyTorch's layout, gates r z n, z weighing the old state.

    Exact: a cell whose z weighs the new state (`update_gate`) has its update gate negated; where that is not the same
    model, the cell could not have been made.
    """
    w = {name: as_float32(value) for name, value in cell.weights.items()}
    if cell.cudnn:
        return gates.from_cudnn_gru(w["kernel"], w["recurrent_kernel"], w["bias"])
    weights = gates.from_keras(w["kernel"], w["recurrent_kernel"], w.get("bias"), reset_after=cell.reset_after)
    return gates.negate_update(weights) if cell.update_gate == "new" else weights


def as_model(gru: nn.GRU | nn.GRUCell) -> Sequential:
    """A PyTorch-shaped GRU as Keras layers: Input((None, I)), then a GRU or Bidirectional a layer, all steps out."""
    made: list[Layer] = [Input((None, gru.input_size))]
    for suffix in [""] if isinstance(gru, nn.GRUCell) else [f"_l{i}" for i in range(gru.num_layers)]:
        layer: Layer = _layer(gru, suffix)
        if isinstance(gru, nn.GRU) and gru.bidirectional:
            layer = Bidirectional(_layer(gru, suffix), backward_layer=_layer(gru, f"{suffix}_reverse", backwards=True))
            layer.assign({})
        made.append(layer)
    model = Sequential(made, name="gru")
    model.ready = True
    return model


def _layer(gru: nn.GRU | nn.GRUCell, suffix: str, backwards: bool = False) -> GRU:
    """One layer and direction, its weights in Keras' layout."""
    layer = GRU(
        gru.hidden_size,
        _spelt(gru.activation),
        _spelt(gru.recurrent_activation),
        use_bias=gru.bias,
        reset_after=gru.reset_after,
        return_sequences=True,
        go_backwards=backwards,
    )
    state = gru.state_dict()
    ih, hh = state["weight_ih" + suffix], state["weight_hh" + suffix]
    weights = gates.Weights(ih, hh, state.get("bias_ih" + suffix), state.get("bias_hh" + suffix))
    stored = [w for w in gates.to_keras(weights, reset_after=gru.reset_after) if w is not None]
    layer.assign(dict(zip(layer.weight_names(), stored, strict=True)))
    return layer


def _spelt(activation: Activation) -> Activation:
    """The engine's own α and β written out: a name alone has others in Keras."""
    name, alpha, beta = check_activation(activation)
    return (name, alpha, beta) if alpha or beta else name
