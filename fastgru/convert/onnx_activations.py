"""Activation functions, by Keras' names or as layers, in ONNX's operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..layers.activations import ELU, Activation, LeakyReLU, PReLU, ReLU, Softmax, ThresholdedReLU, gate_spec
from ..layers.base import NEWEST, Dialect
from .onnx_builder import Builder, Value

#: Names whose operator's defaults are Keras' constants.
_PLAIN = {
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "relu": "Relu",
    "softsign": "Softsign",
    "softplus": "Softplus",
    "selu": "Selu",
    "celu": "Elu",
    "exponential": "Exp",
}


def by_name(g: Builder, activation: Any, x: Value, dialect: Dialect = NEWEST) -> Value:
    """What `layers.activations.function` means for a name, a config, (name, α, β), or None."""
    x = g.floats(x)
    if isinstance(activation, Mapping):
        config = activation.get("config")
        activation = config.get("name") if isinstance(config, Mapping) else config
    if isinstance(activation, str) and activation in _PLAIN:
        return g.add(_PLAIN[activation], [x], x.sizes)
    if isinstance(activation, str) and activation in _COMPOSED:
        return _COMPOSED[activation](g, x)
    return by_spec(g, gate_spec(activation, dialect, g.path()), x)


def by_spec(g: Builder, spec: Any, x: Value) -> Value:
    """An activation of the engine: a name or (name, α, β)."""
    name, alpha, beta = spec if not isinstance(spec, str) else (spec, 0.0, 0.0)
    if name == "linear":
        return x
    if name in _PLAIN:
        return g.add(_PLAIN[name], [x], x.sizes)
    if name == "elu":
        return g.add("Elu", [x], x.sizes, alpha=alpha if spec != "elu" else 1.0)
    if name == "hard_sigmoid":
        return g.add("HardSigmoid", [x], x.sizes, alpha=alpha, beta=beta)
    if name == "leaky_relu":
        return g.add("LeakyRelu", [x], x.sizes, alpha=alpha)
    if name == "thresholded_relu":
        return g.add("ThresholdedRelu", [x], x.sizes, alpha=alpha)
    if name == "affine":
        return g.binary("Add", g.binary("Mul", x, np.float32(alpha)), np.float32(beta))
    if name == "scaled_tanh":
        inner = g.binary("Mul", x, np.float32(beta))
        return g.binary("Mul", g.add("Tanh", [inner], x.sizes), np.float32(alpha))
    raise g.refuse(f"expected an activation that ONNX has, found {name!r}")


def softmax(g: Builder, x: Value, axis: int = -1, op: str = "Softmax") -> Value:
    return g.add(op, [x], x.sizes, axis=axis)


def gelu(g: Builder, x: Value, approximate: bool = False) -> Value:
    """x Φ(x), or the formula with tanh (Hendrycks and Gimpel, 2016)."""
    if not approximate:
        erf = g.binary("Mul", x, np.float32(1 / np.sqrt(2)))
        one = g.binary("Add", g.add("Erf", [erf], x.sizes), np.float32(1))
    else:
        cube = g.binary("Mul", g.binary("Mul", g.binary("Mul", x, np.float32(0.044715)), x), x)
        inner = g.binary("Mul", g.binary("Add", x, cube), np.float32(np.sqrt(2 / np.pi)))
        one = g.binary("Add", g.add("Tanh", [inner], x.sizes), np.float32(1))
    return g.binary("Mul", g.binary("Mul", x, np.float32(0.5)), one)


def _clip(g: Builder, x: Value, low: float, high: float) -> Value:
    return g.add("Clip", [x, g.constant(np.float32(low)), g.constant(np.float32(high))], x.sizes)


def _silu(g: Builder, x: Value) -> Value:
    return g.binary("Mul", x, g.add("Sigmoid", [x], x.sizes))


def _hard_silu(g: Builder, x: Value) -> Value:
    return g.binary("Mul", x, g.add("HardSigmoid", [x], x.sizes, alpha=1 / 6, beta=0.5))


def _mish(g: Builder, x: Value) -> Value:
    return g.binary("Mul", x, g.add("Tanh", [g.add("Softplus", [x], x.sizes)], x.sizes))


def _log_sigmoid(g: Builder, x: Value) -> Value:
    minus = g.add("Neg", [x], x.sizes)
    return g.add("Neg", [g.add("Softplus", [minus], x.sizes)], x.sizes)


_COMPOSED: dict[str, Callable[[Builder, Value], Value]] = {
    "softmax": softmax,
    "log_softmax": lambda g, x: softmax(g, x, op="LogSoftmax"),
    "silu": _silu,
    "swish": _silu,
    "gelu": gelu,
    "relu6": lambda g, x: _clip(g, x, 0, 6),
    "hard_tanh": lambda g, x: _clip(g, x, -1, 1),
    "mish": _mish,
    "hard_silu": _hard_silu,
    "hard_swish": _hard_silu,
    "log_sigmoid": _log_sigmoid,
    "tanh_shrink": lambda g, x: g.binary("Sub", x, g.add("Tanh", [x], x.sizes)),
}


# -- layers that only apply one -------------------------------------------------------------


def activation_layer(g: Builder, layer: Activation, x: Value, state: Any) -> Value:
    return of_layer(g, layer, g.floats(x))


def of_layer(g: Builder, layer: Any, x: Value) -> Value:
    """The activation of a Dense or Activation layer: a function, or a layer (LeakyReLU() and such)."""
    if layer._layer is None:
        return by_name(g, layer.activation, x, layer._dialect)
    inner = layer._layer
    with g.inside(inner):
        found: Value = LAYERS[type(inner)](g, inner, x, None)
    return found


def relu(g: Builder, layer: ReLU, x: Value, state: Any) -> Value:
    x = g.floats(x)
    slope, threshold = layer.negative_slope, layer.threshold
    if threshold == 0 and slope == 0:
        y = g.add("Relu", [x], x.sizes)
    elif threshold == 0:
        y = g.add("LeakyRelu", [x], x.sizes, alpha=slope)
    else:
        low = g.binary("Mul", g.binary("Sub", x, np.float32(threshold)), np.float32(slope))
        above = g.binary("GreaterOrEqual", x, np.float32(threshold), "bool")
        y = g.add("Where", [above, x, low], x.sizes)
    return y if layer.max_value is None else g.binary("Min", y, np.float32(layer.max_value))


def leaky_relu(g: Builder, layer: LeakyReLU, x: Value, state: Any) -> Value:
    x = g.floats(x)
    return g.add("LeakyRelu", [x], x.sizes, alpha=layer.negative_slope)


def thresholded_relu(g: Builder, layer: ThresholdedReLU, x: Value, state: Any) -> Value:
    x = g.floats(x)
    return g.add("ThresholdedRelu", [x], x.sizes, alpha=layer.theta)


def elu(g: Builder, layer: ELU, x: Value, state: Any) -> Value:
    x = g.floats(x)
    return g.add("Elu", [x], x.sizes, alpha=layer.alpha)


def prelu(g: Builder, layer: PReLU, x: Value, state: Any) -> Value:
    x = g.floats(x)
    return g.add("PRelu", [x, g.weight(layer, "alpha", layer.weights["alpha"])], x.sizes)


def softmax_layer(g: Builder, layer: Softmax, x: Value, state: Any) -> Value:
    x = g.floats(x)
    axes = layer._axes
    if x.mask is not None:
        if x.mask.rank != x.rank:
            raise g.refuse(f"expected a mask that fits the input {x.sizes}, found {x.mask.sizes}")
        hidden = g.add("Where", [x.mask, x, g.constant(np.float32(-1e9))], x.sizes)
        x = replace(hidden, mask=x.mask)
    if isinstance(axes, int):
        return softmax(g, x, axes)
    low = g.binary("Sub", x, g.reduce("ReduceMax", x, axes, True))
    e = g.add("Exp", [low], x.sizes)
    return g.binary("Div", e, g.reduce("ReduceSum", e, axes, True))


#: The table's values take a layer of the key's class.
LAYERS: dict[type, Any] = {
    Activation: activation_layer,
    ReLU: relu,
    LeakyReLU: leaky_relu,
    ThresholdedReLU: thresholded_relu,
    ELU: elu,
    PReLU: prelu,
    Softmax: softmax_layer,
}
