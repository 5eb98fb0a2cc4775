"""ONNX's GRU node as Keras' layers, one for each direction."""

from __future__ import annotations

from typing import Any

from .. import gates, layers
from ..layers.base import Array, as_float32
from ..layers.onnx_gru_attributes import GRUAttributes

__all__ = ["halves"]


def halves(a: GRUAttributes, w: Array, r: Array, b: Array | None, sequences: bool) -> list[layers.GRU]:
    """A layer for each direction; W (D, 3H, I), R (D, 3H, H), B (D, 6H) or None as the node has them.

    With reset-before Keras has one bias, the sum of ONNX's two.
    """
    return [_half(a, w, r, b, d, sequences) for d in range(len(a.reverses))]


def _half(a: GRUAttributes, w: Array, r: Array, b: Array | None, d: int, sequences: bool) -> layers.GRU:
    bias = None if b is None else as_float32(b[d])
    weights = gates.from_onnx(as_float32(w[d]), as_float32(r[d]), bias)
    recurrent, activation = (_name(spec) for spec in a.activations[d])
    made = layers.GRU(
        r.shape[2],
        activation,
        recurrent,
        use_bias=b is not None,
        return_sequences=sequences,
        go_backwards=a.reverses[d],
        reset_after=a.reset_after,
    )
    stored = gates.to_keras(weights, reset_after=a.reset_after)
    made.assign(dict(zip(made.weight_names(), (v for v in stored if v is not None), strict=True)))
    return made


def _name(spec: tuple[str, float, float]) -> Any:
    """An activation by its name alone, where that says it."""
    if spec == ("affine", 1.0, 0.0):
        return "linear"
    return spec if spec[1] or spec[2] else spec[0]
