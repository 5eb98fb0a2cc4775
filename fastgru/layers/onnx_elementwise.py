"""ONNX operators that work element by element: arithmetic, activations, comparisons, casts.

(Source: onnx/docs/Operators.md, opset 7 and later, where operands broadcast as in NumPy.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np

from .. import ops
from ..formats.onnx_tensors import ELEMENTS
from .base import Array
from .onnx_node import VARIADIC, Function, NodeSpec, Operator
from .onnx_shaping import check_broadcast, check_size, floats

#: TensorProto.DataType → NumPy, of those that it has. Doubles are computed in float32, as everything here.
DTYPES: dict[int, type[np.generic]] = {
    number: np.dtype("float32" if kind == "float64" else kind).type
    for number, kind in ELEMENTS.items()
    if kind != "bfloat16"
}
_DOUBLE = 11


def _unary(function: Callable[[Array], Any], *, real: bool = False) -> Operator:
    def run(node: NodeSpec, x: Array) -> Any:
        return function(floats(x) if real else x)

    return Operator(run, (1, 1))


def _broadcast(function: Function, inputs: tuple[int, int], attributes: tuple[str, ...] = ()) -> Operator:
    """Operands broadcast, to no more than any node may make."""

    def run(node: NodeSpec, *values: Array | None) -> Any:
        check_broadcast(*(v for v in values if v is not None))
        return function(node, *values)

    return Operator(run, inputs, attributes)


def _binary(function: Callable[[Array, Array], Any]) -> Operator:
    def run(node: NodeSpec, a: Array, b: Array) -> Any:
        if a.dtype.kind != b.dtype.kind:
            raise ValueError(f"expected operands of one type, found {a.dtype} and {b.dtype}")
        return function(a, b)

    return _broadcast(run, (2, 2))


def _variadic(function: Callable[[Array, Array], Any], *, mean: bool = False) -> Operator:
    def run(node: NodeSpec, *values: Array) -> Any:
        total = reduce(function, values)
        return total / np.float32(len(values)) if mean else total

    return _broadcast(run, (1, VARIADIC))


def _divide(a: Array, b: Array) -> Any:
    """Whole numbers divide as in C: the result is cut towards 0."""
    if a.dtype.kind == "f":
        return np.divide(a, b)
    if not np.all(b):
        raise ValueError("division of whole numbers by 0")
    quotient = np.floor_divide(a, b)
    return quotient + ((quotient < 0) & (quotient * b != a))


def _modulo(node: NodeSpec, a: Array, b: Array) -> Any:
    if node.integer("fmod", 0):
        return np.fmod(a, b)
    if a.dtype.kind == "f" and node.opset < 28:
        raise ValueError("attribute fmod: expected 1 for floats, found 0")
    return np.mod(a, b)


def _power(node: NodeSpec, x: Array, exponent: Array) -> Any:
    """The result has the type of the base."""
    if x.dtype.kind == "f":
        return np.power(x, floats(exponent))
    check_size(math.prod(np.broadcast_shapes(x.shape, exponent.shape)), np.dtype(np.float64))
    return np.power(x.astype(np.float64), exponent).astype(x.dtype)


def _activation(name: str, alpha: float | None = None, beta: float | None = None) -> Operator:
    """An activation of the engine, with the attributes that it has and their defaults."""

    def run(node: NodeSpec, x: Array) -> Array:
        if alpha is None:
            return ops.activate(floats(x), name)
        second = 0.0 if beta is None else node.number("beta", beta)
        return ops.activate(floats(x), (name, node.number("alpha", alpha), second))

    keys = ("alpha",) * (alpha is not None) + ("beta",) * (beta is not None)
    return Operator(run, (1, 1), keys)


def _relu(node: NodeSpec, x: Array) -> Any:
    return ops.activate(x, "relu") if x.dtype.kind == "f" else np.maximum(x, 0)


def _selu(node: NodeSpec, x: Array) -> Any:
    alpha = np.float32(node.number("alpha", 1.6732632423543772))
    gamma = np.float32(node.number("gamma", 1.0507009873554805))
    x = floats(x)
    return gamma * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _celu(node: NodeSpec, x: Array) -> Any:
    alpha = np.float32(node.number("alpha", 1.0))
    x = floats(x)
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0) / alpha))


def _prelu(node: NodeSpec, x: Array, slope: Array) -> Any:
    return np.where(x < 0, slope * x, x)


_erf = np.frompyfunc(math.erf, 1, 1)


def _erf32(x: Array) -> Any:
    """Part by part: the numbers come as objects, eight times as large."""
    y = np.empty(x.size, np.float32)
    flat = x.reshape(-1)
    for i in range(0, x.size, 1 << 16):
        y[i : i + (1 << 16)] = _erf(flat[i : i + (1 << 16)])
    return y.reshape(x.shape)


def _gelu(node: NodeSpec, x: Array) -> Any:
    x = floats(x)
    if node.text("approximate", "none") == "tanh":
        inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
        return np.float32(0.5) * x * (1 + ops.activate(inner, "tanh"))
    return np.float32(0.5) * x * (1 + _erf32(x / np.float32(math.sqrt(2))))


def _hard_swish(x: Array) -> Any:
    return x * ops.activate(x, ("hard_sigmoid", 1 / 6, 0.5))


def _mish(x: Array) -> Any:
    return x * ops.activate(ops.activate(x, "softplus"), "tanh")


def _swish(node: NodeSpec, x: Array) -> Any:
    x = floats(x)
    return x * ops.activate(np.float32(node.number("alpha", 1.0)) * x, "sigmoid")


def _clip(node: NodeSpec, x: Array, low: Array | None = None, high: Array | None = None) -> Any:
    """The bounds are attributes before opset 11; if they cross, the upper one wins."""
    if node.opset < 11:
        low = np.float32(node.number("min", -math.inf))  # type: ignore[assignment]
        high = np.float32(node.number("max", math.inf))  # type: ignore[assignment]
    elif node.attributes:
        raise ValueError("expected the bounds as inputs from opset 11 on, found attributes")
    x = x if low is None else np.maximum(x, low)
    return x if high is None else np.minimum(x, high)


def cast_to(x: Array, kind: int) -> Any:
    """``x`` in a TensorProto.DataType; half precision rounds, and is computed with in float32."""
    if kind not in DTYPES:
        raise ValueError(f"expected to cast to one of the types {sorted(DTYPES)}, found {kind}")
    check_size(x.size, np.dtype(DTYPES[kind]))
    return x.astype(DTYPES[kind])


def _cast(node: NodeSpec, x: Array) -> Any:
    if (
        node.integer("to", 1) == _DOUBLE
        and x.dtype.kind in "iu"
        and x.size
        and max(-int(x.min()), int(x.max())) > 2**24
    ):
        raise ValueError("expected whole numbers of at most 2**24, since doubles are computed in float32")
    return cast_to(x, node.integer("to", 1))


def _cast_like(node: NodeSpec, x: Array, like: Array) -> Any:
    check_size(x.size, like.dtype)
    return x.astype(like.dtype)


def _where(node: NodeSpec, condition: Array, a: Array, b: Array) -> Any:
    return np.where(condition.astype(bool), a, b)


def _is_inf(node: NodeSpec, x: Array) -> Any:
    found = np.zeros(x.shape, bool)
    if node.integer("detect_negative", 1):
        found = found | np.isneginf(x)
    return found | np.isposinf(x) if node.integer("detect_positive", 1) else found


def _logic(function: Any) -> Function:
    def run(node: NodeSpec, a: Array, b: Array) -> Any:
        return function(a.astype(bool), b.astype(bool))

    return run


ELEMENTWISE: dict[str, Operator] = {
    "Add": _binary(np.add),
    "Sub": _binary(np.subtract),
    "Mul": _binary(np.multiply),
    "Div": _binary(_divide),
    "Mod": _broadcast(_modulo, (2, 2), ("fmod",)),
    "Pow": _broadcast(_power, (2, 2)),
    "Sum": _variadic(np.add),
    "Mean": _variadic(np.add, mean=True),
    "Max": _variadic(np.maximum),
    "Min": _variadic(np.minimum),
    "Neg": _unary(np.negative),
    "Abs": _unary(np.abs),
    "Sign": _unary(np.sign),
    "Floor": _unary(np.floor),
    "Ceil": _unary(np.ceil),
    "Round": _unary(np.round),
    "Sqrt": _unary(np.sqrt, real=True),
    "Reciprocal": _unary(lambda x: 1 / x, real=True),
    "Exp": _unary(np.exp, real=True),
    "Log": _unary(np.log, real=True),
    "Sin": _unary(np.sin, real=True),
    "Cos": _unary(np.cos, real=True),
    "Erf": _unary(_erf32, real=True),
    "Clip": _broadcast(_clip, (1, 3), ("min", "max")),
    "Sigmoid": _activation("sigmoid"),
    "Tanh": _activation("tanh"),
    "Relu": Operator(_relu, (1, 1)),
    "LeakyRelu": _activation("leaky_relu", 0.01),
    "ThresholdedRelu": _activation("thresholded_relu", 1.0),
    "HardSigmoid": _activation("hard_sigmoid", 0.2, 0.5),
    "Elu": _activation("elu", 1.0),
    "Selu": Operator(_selu, (1, 1), ("alpha", "gamma")),
    "Celu": Operator(_celu, (1, 1), ("alpha",)),
    "PRelu": _broadcast(_prelu, (2, 2)),
    "Gelu": Operator(_gelu, (1, 1), ("approximate",)),
    "HardSwish": _unary(_hard_swish, real=True),
    "Mish": _unary(_mish, real=True),
    "Swish": Operator(_swish, (1, 1), ("alpha",)),
    "Softplus": _activation("softplus"),
    "Softsign": _activation("softsign"),
    "Cast": Operator(_cast, (1, 1), ("to", "saturate", "round_mode")),
    "CastLike": Operator(_cast_like, (2, 2), ("saturate", "round_mode")),
    "Where": _broadcast(_where, (3, 3)),
    "Not": _unary(np.logical_not),
    "And": _broadcast(_logic(np.logical_and), (2, 2)),
    "Or": _broadcast(_logic(np.logical_or), (2, 2)),
    "Xor": _broadcast(_logic(np.logical_xor), (2, 2)),
    "Equal": _binary(np.equal),
    "Less": _binary(np.less),
    "LessOrEqual": _binary(np.less_equal),
    "Greater": _binary(np.greater),
    "GreaterOrEqual": _binary(np.greater_equal),
    "IsNaN": _unary(np.isnan, real=True),
    "IsInf": Operator(_is_inf, (1, 1), ("detect_negative", "detect_positive")),
}
