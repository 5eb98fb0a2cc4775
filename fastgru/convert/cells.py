"""A GRU cell's weights in canonical form, whatever layout and convention it came in."""

from __future__ import annotations

from collections.abc import Iterator

from .. import gates, nn
from ..layers.base import as_float32
from ..layers.bidirectional import Bidirectional
from ..layers.cells import GRUCell
from ..layers.core import Input
from ..layers.recurrent import GRU, RNN
from ..models import Sequential

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
    state = gru.state_dict()
    cell = isinstance(gru, nn.GRUCell)
    kind = {"activation": gru.activation, "recurrent_activation": gru.recurrent_activation}

    def layer(suffix: str, backwards: bool = False) -> GRU:
        made = GRU(
            gru.hidden_size,
            use_bias=gru.bias,
            reset_after=gru.reset_after,
            return_sequences=True,
            go_backwards=backwards,
            **kind,
        )
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        weights = gates.Weights(*(state.get(name + suffix) for name in names))  # type: ignore[arg-type]
        stored = gates.to_keras(weights, reset_after=gru.reset_after)
        made.assign(dict(zip(made.weight_names(), stored, strict=False)))
        return made

    def stack() -> Iterator[RNN | Bidirectional]:
        for suffix in [""] if cell else [f"_l{i}" for i in range(gru.num_layers)]:
            if not cell and gru.bidirectional:
                both = Bidirectional(layer(suffix), backward_layer=layer(f"{suffix}_reverse", backwards=True))
                both.assign({})
                yield both
            else:
                yield layer(suffix)

    model = Sequential([Input((None, gru.input_size)), *stack()], name="gru")
    model.ready = True
    return model
