"""The GRUs of a model file, whatever its format: each direction in canonical form, and its variant."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from .. import gates, loading, ops
from .._core.isa import check_activation
from ..formats import ModelFile
from ..layers import onnx_gru
from ..layers.base import Array, Layer, as_float32
from ..layers.bidirectional import Bidirectional
from ..layers.recurrent import GRU, RNN
from ..models import Model
from .cells import canonical

__all__ = ["DirectedGRU", "grus_of"]

Activation = tuple[str, float, float]


@dataclass(frozen=True)
class DirectedGRU:
    """One direction of one GRU.

    Attributes
    ----------
    name : str
        Where it is: "gru_1", "bidirectional/backward_layer", "encoder.rnn.l0_reverse".
    weights : gates.Weights
        float32, PyTorch's layout, gates r z n.
    reset_after, activation, recurrent_activation
        The variant; activations with their α and β.
    layer : str
        The layer that it is a direction of, "" if that has one only.
    tensors : tuple of str
        The tensors of the file that it is made of.
    """

    name: str
    weights: gates.Weights
    reset_after: bool
    activation: Activation
    recurrent_activation: Activation
    layer: str
    tensors: tuple[str, ...]

    @property
    def sizes(self) -> tuple[int, int]:
        """I, H."""
        return self.weights.weight_ih.shape[1], self.weights.weight_hh.shape[1]

    @property
    def path(self) -> str:
        """Its name with "/" between the parts, without the operator that ends the names of ONNX nodes."""
        return re.sub(r"/GRU(_\d+)?(?=/|$)", "", self.name.replace(".", "/"))

    def same_weights(self, other: DirectedGRU) -> bool:
        """Whether all weights are equal, bit for bit."""
        return all(
            x is y is None or (x is not None and y is not None and np.array_equal(x, y))
            for x, y in zip(self.weights, other.weights, strict=True)
        )

    def run(self, x: Array, weights: gates.Weights | None = None, reset_after: bool | None = None) -> Array:
        """y (N, T, H) for x (N, T, I), with other weights or reset placement where these are given."""
        packed = ops.pack_gru(
            *(self.weights if weights is None else weights),
            reset_after=self.reset_after if reset_after is None else reset_after,
            activation=self.activation,
            recurrent_activation=self.recurrent_activation,
        )
        y: Array = ops.gru(x, packed)[0]
        return y


def grus_of(file: ModelFile, model: Model | None) -> list[DirectedGRU]:
    """Every GRU of a file in its order; none for a config of which no model could be made."""
    if file.config is None:
        return [gru for prefix in loading.find_grus(file.tensors) for gru in _of_state_dict(file.tensors, prefix)]
    return [] if model is None else [*_of_layers(model, ""), *_of_nodes(model)]


def _of_state_dict(tensors: Mapping[str, Array], prefix: str) -> Iterator[DirectedGRU]:
    part = f"{prefix}weight_hh"
    for name in [n for n in tensors if n.startswith(part) and n.removeprefix(part).count(".") == 0]:
        suffix = name.removeprefix(part)
        names = [f"{prefix}{kind}{suffix}" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        found = [as_float32(tensors[n]) if n in tensors else None for n in names]
        weights = gates.Weights(*found)  # type: ignore[arg-type]
        if weights.weight_ih is None or not _fit(weights):
            continue
        base = suffix.removesuffix("_reverse")
        both = f"{prefix}weight_hh{base}_reverse" in tensors
        yield DirectedGRU(
            (prefix + suffix.removeprefix("_")).removesuffix(".") or "gru",
            weights,
            True,
            check_activation("tanh"),
            check_activation("sigmoid"),
            (prefix + base.removeprefix("_")) if both else "",
            tuple(n for n in names if n in tensors),
        )


def _fit(weights: gates.Weights) -> bool:
    rows, hidden = weights.weight_hh.shape if weights.weight_hh.ndim == 2 else (0, 0)
    vectors = [b for b in (weights.bias_ih, weights.bias_hh) if b is not None]
    fits = rows == 3 * hidden and hidden > 0 and weights.weight_ih.ndim == 2 and len(weights.weight_ih) == rows
    return fits and all(b.shape == (rows,) for b in vectors)


def _of_layers(layer: Layer, path: str, both: str = "") -> Iterator[DirectedGRU]:
    """Keras-shaped layers, those inside others included."""
    for name, part in layer.parts().items():
        where = f"{path}/{name}" if path else name
        if not isinstance(part, RNN):
            yield from _of_layers(part, where, where if isinstance(part, Bidirectional) else "")
            continue
        cells = [(where, part.cells[0])] if isinstance(part, GRU) else []
        for at, cell in cells or [(f"{where}/{inner}", c) for inner, c in zip(part.parts(), part.cells, strict=True)]:
            yield DirectedGRU(
                at,
                canonical(cell),
                cell.reset_after,
                check_activation(cell._activation),
                check_activation(cell._recurrent_activation),
                f"{both}{at.removeprefix(where)}" if both else "",
                tuple(f"{at}/{weight}" for weight in cell.weight_names()),
            )


def _of_nodes(model: Model) -> Iterator[DirectedGRU]:
    """GRU nodes of an ONNX graph whose weights are constants; one for those that share all of them."""
    seen: set[tuple[object, ...]] = set()
    for node in model.graph.nodes:
        if not isinstance(node.layer, onnx_gru.GRU):
            continue
        w, r, b = (*node.x, None, None)[1:4]
        if not isinstance(w, np.ndarray) or not isinstance(r, np.ndarray) or not isinstance(b, np.ndarray | None):
            continue
        attributes = node.layer.attributes
        key = (*map(id, (w, r, b)), attributes.reset_after, *attributes.activations)
        if key in seen:  # a layer that is called twice
            continue
        seen.add(key)
        two = len(attributes.reverses) > 1
        for d, (recurrent_activation, activation) in enumerate(attributes.activations):
            direction = ("/forward", "/backward")[d] if two else ""
            yield DirectedGRU(
                node.layer.name + direction,
                gates.from_onnx(w[d], r[d], None if b is None else b[d]),
                attributes.reset_after,
                activation,
                recurrent_activation,
                node.layer.name if two else "",
                tuple(n for n, t in model.all_tensors().items() if any(_is(t, v) for v in (w, r, b))),
            )


def _is(tensor: Array, constant: Array | None) -> bool:
    """Whether a constant of the graph is a tensor of the file: a view of it, or it as float32."""
    if constant is None or tensor.shape != constant.shape:
        return False
    return np.shares_memory(tensor, constant) or bool(np.array_equal(as_float32(tensor), constant))
