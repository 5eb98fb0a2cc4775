"""Operations that Keras saves as nodes of a graph: ``x + 1``, ``x[:, -1]``, ``ops.mean(x, 1)``.

Keras 3 saves op classes (module ``keras.src.ops…``, class ``GetItem``); `tensorflow_operations`
translates TensorFlow's names to them. All meet in one table of NumPy functions; what is not in it
is refused. None carries a mask on.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import ops
from ..formats.untrusted import FormatError
from .activations import function, log_softmax, softmax
from .base import NEWEST, Array, Layer, as_float32
from .merge import batched_product
from .operations_backward import BACKS
from .training_step import Back, TrainingStep

if TYPE_CHECKING:
    from .reader import Reader

_DTYPES = {
    "bool": np.bool_,
    "int8": np.int8,
    "uint8": np.uint8,
    "int16": np.int16,
    "uint16": np.uint16,
    "int32": np.int32,
    "uint32": np.uint32,
    "int64": np.int64,
    "uint64": np.uint64,
}


def _axis(axis: Any) -> Any:
    return tuple(int(a) for a in axis) if isinstance(axis, (list, tuple)) else axis


def _reduction(name: str) -> Callable[..., Array]:
    def reduce(x: Any, axis: Any = None, keepdims: bool = False) -> Array:
        if name in ("mean", "sum", "prod"):
            x = as_float32(x) if np.asarray(x).dtype.kind != "i" or name == "mean" else x
        method: Callable[..., Array] = getattr(np, name)
        return np.asarray(method(x, axis=_axis(axis), keepdims=keepdims))

    return reduce


def _activation(name: str) -> Callable[..., Array]:
    apply = function(name, NEWEST, name)

    def run(x: Any) -> Array:
        return as_float32(x) if apply is None else apply(as_float32(x))

    return run


def _gelu(x: Any, approximate: bool = True) -> Array:
    x = as_float32(x)
    if not approximate:
        exact = function("gelu", NEWEST, "gelu")
        return x if exact is None else exact(x)
    inner = np.float32(np.sqrt(2.0 / np.pi)) * (x + np.float32(0.044715) * x * x * x)
    return np.asarray(np.float32(0.5) * x * (1 + ops.activate(inner, "tanh")))


def _elu(x: Any, alpha: float = 1.0) -> Array:
    return ops.activate(as_float32(x), ("elu", float(alpha), 0.0))


def _divide(x: Any, y: Any) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.divide(x, y))


def _binary(operation: Callable[..., Any]) -> Callable[..., Array]:
    def run(x: Any, y: Any) -> Array:
        return np.asarray(operation(x, y))

    return run


def _unary(operation: Callable[..., Any]) -> Callable[..., Array]:
    def run(x: Any) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(operation(x))

    return run


def _cast(x: Any, dtype: Any = "float32") -> Array:
    name = dtype.get("config", {}).get("name", "float32") if isinstance(dtype, Mapping) else dtype
    kind = _DTYPES.get(str(name).removeprefix("<dtype: '").removesuffix("'>"), np.float32)
    return np.asarray(x, kind)


def _get_item(x: Array, key: Any) -> Array:
    return np.asarray(x[tuple(key) if isinstance(key, list) else key])


def _where(condition: Any, x1: Any = None, x2: Any = None) -> Array:
    return np.asarray(np.where(np.asarray(condition, bool), x1, x2))


def _clip(x: Any, x_min: Any = None, x_max: Any = None) -> Array:
    return np.asarray(np.clip(x, x_min, x_max))


def _reshape(x: Array, newshape: Any) -> Array:
    shape = [-1 if n is None else int(n) for n in newshape]
    return x.reshape([x.shape[0], *shape[1:]] if shape[0] == -1 else shape)


def _expand_dims(x: Array, axis: Any = -1) -> Array:
    return np.expand_dims(x, _axis(axis))


def _squeeze(x: Array, axis: Any = None) -> Array:
    return np.squeeze(x, _axis(axis) if axis != [] else None)


def _transpose(x: Array, axes: Any = None) -> Array:
    return np.transpose(x, axes)


def _concatenate(xs: Sequence[Any], axis: int = -1) -> Array:
    return np.concatenate(xs, axis=axis)


def _stack(xs: Sequence[Any], axis: int = 0) -> Array:
    return np.stack(xs, axis=axis)


def _repeat(x: Any, repeats: int, axis: int | None = None) -> Array:
    return np.repeat(x, repeats, axis=axis)


def _tile(x: Any, repeats: Any) -> Array:
    return np.tile(x, repeats)


def _swapaxes(x: Any, axis1: int, axis2: int) -> Array:
    return np.swapaxes(x, axis1, axis2)


def _flip(x: Any, axis: Any = None) -> Array:
    return np.flip(x, _axis(axis))


def _softmax(x: Any, axis: int = -1) -> Array:
    return softmax(as_float32(x), -1 if axis is None else axis)


def _log_softmax(x: Any, axis: int = -1) -> Array:
    return log_softmax(as_float32(x), axis)


def _leaky_relu(x: Any, negative_slope: float = 0.2) -> Array:
    return ops.activate(as_float32(x), ("leaky_relu", float(negative_slope), 0.0))


def _matmul(x: Any, y: Any) -> Array:
    a, b = as_float32(x), as_float32(y)
    if a.ndim < 3 or b.ndim != a.ndim or a.shape[:-2] != b.shape[:-2]:
        raise ValueError(f"matmul: expected two batches of matrices, found {a.shape}, {b.shape}")
    rows = int(np.prod(a.shape[:-2]))
    left = a.reshape(rows, *a.shape[-2:])
    right = np.swapaxes(b.reshape(rows, *b.shape[-2:]), 1, 2)
    return batched_product(left, right, None).reshape(*a.shape[:-1], b.shape[-1])


def _identity(x: Any) -> Any:
    return x


#: Keras 3 op classes. Left of each argument list stand the tensors, in Keras' order.
OPERATIONS: dict[str, Callable[..., Any]] = {
    "Add": _binary(np.add),
    "Subtract": _binary(np.subtract),
    "Multiply": _binary(np.multiply),
    "Divide": _divide,
    "TrueDivide": _divide,
    "FloorDivide": _binary(np.floor_divide),
    "Mod": _binary(np.mod),
    "Power": _binary(np.power),
    "Maximum": _binary(np.maximum),
    "Minimum": _binary(np.minimum),
    "Negative": _unary(np.negative),
    "Absolute": _unary(np.abs),
    "Abs": _unary(np.abs),
    "Square": _unary(np.square),
    "Sqrt": _unary(np.sqrt),
    "Rsqrt": _unary(lambda x: 1 / np.sqrt(x)),
    "Reciprocal": _unary(np.reciprocal),
    "Exp": _unary(np.exp),
    "Log": _unary(np.log),
    "Log1p": _unary(np.log1p),
    "Sign": _unary(np.sign),
    "Floor": _unary(np.floor),
    "Round": _unary(np.round),
    "Sin": _unary(np.sin),
    "Cos": _unary(np.cos),
    "Equal": _binary(np.equal),
    "NotEqual": _binary(np.not_equal),
    "Greater": _binary(np.greater),
    "GreaterEqual": _binary(np.greater_equal),
    "Less": _binary(np.less),
    "LessEqual": _binary(np.less_equal),
    "LogicalAnd": _binary(np.logical_and),
    "LogicalOr": _binary(np.logical_or),
    "LogicalNot": _unary(np.logical_not),
    "Mean": _reduction("mean"),
    "Sum": _reduction("sum"),
    "Prod": _reduction("prod"),
    "Max": _reduction("max"),
    "Min": _reduction("min"),
    "Any": _reduction("any"),
    "All": _reduction("all"),
    "Cast": _cast,
    "GetItem": _get_item,
    "Where": _where,
    "Clip": _clip,
    "Reshape": _reshape,
    "ExpandDims": _expand_dims,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Swapaxes": _swapaxes,
    "Concatenate": _concatenate,
    "Stack": _stack,
    "Repeat": _repeat,
    "Tile": _tile,
    "Flip": _flip,
    "ZerosLike": _unary(np.zeros_like),
    "OnesLike": _unary(np.ones_like),
    "Matmul": _matmul,
    "Softmax": _softmax,
    "LogSoftmax": _log_softmax,
    "Relu": _activation("relu"),
    "Relu6": _activation("relu6"),
    "LeakyRelu": _leaky_relu,
    "Sigmoid": _activation("sigmoid"),
    "Tanh": _activation("tanh"),
    "HardSigmoid": _activation("hard_sigmoid"),
    "Softplus": _activation("softplus"),
    "Softsign": _activation("softsign"),
    "Elu": _elu,
    "Selu": _activation("selu"),
    "Silu": _activation("silu"),
    "Gelu": _gelu,
    "Identity": _identity,
    "StopGradient": _identity,
}

#: Arguments without an effect on the numbers.
IGNORED = ("name", "trainable", "training")


def constant(config: Mapping[str, Any]) -> Array:
    """The array of a serialised tensor: {"value": nested lists, "dtype": name}."""
    kind = _DTYPES.get(str(config.get("dtype")), np.float32)
    return np.asarray(config.get("value"), kind)


class Operation(Layer):
    """One node of pure arithmetic; its input is the pair (positional, named) of arguments."""

    def __init__(self, operation: str, parameters: Mapping[str, Any], name: str | None) -> None:
        super().__init__(name)
        self.operation = operation
        self.parameters = dict(parameters)
        self._run = OPERATIONS[operation]
        self._accepts = set(inspect.signature(self._run).parameters)
        self.parameters = self.known(self.parameters)
        self.ready = True

    def class_name(self) -> str:
        return self.operation

    def known(self, named: Mapping[str, Any]) -> dict[str, Any]:
        """``named`` without switches that are off; an argument that would change the result and is
        not implemented raises ValueError."""
        kept = {k: v for k, v in named.items() if k in self._accepts}
        for key, value in named.items():
            if key not in kept and value is not None and value is not False:
                raise ValueError(
                    f"operation {self.name!r} ({self.operation}): expected the arguments "
                    f"{sorted(self._accepts)}, found {key}={value!r}"
                )
        return kept

    def forward(self, x: Any, mask: Any, num_threads: int | None, initial_state: Any = None) -> tuple[Any, Any]:
        positional, named = x
        try:
            y = self._run(*positional, **{**self.parameters, **named})
        except (TypeError, ValueError, IndexError) as error:
            shapes = [np.shape(v) for v in positional if isinstance(v, np.ndarray)]
            raise ValueError(f"operation {self.name!r} ({self.operation}) on inputs {shapes}: {error}") from error
        if isinstance(y, np.ndarray) and y.dtype == np.float64:
            y = y.astype(np.float32)
        return y, None

    def untrainable(self, through: bool = False) -> str:
        if self.operation in BACKS:
            return ""
        known = ", ".join(sorted(BACKS))
        return f"cannot train through operation {self.name!r} ({self.operation}): only through {known}"

    def train(self, x: Any, mask: Any, step: TrainingStep, initial_state: Any = None) -> tuple[Any, Any, Back]:
        y, none = self.forward(x, mask, step.num_threads)
        positional, named = x
        given = inspect.signature(self._run).bind(*positional, **{**self.parameters, **named}).arguments

        def back(dy: Array) -> tuple[list[Any], dict[str, Any]]:
            found = {key: _as_float32(value) for key, value in BACKS[self.operation](dy, y, **given).items()}
            by_name = {key: found.get(key) for key in named}
            return [found.get(key) for key, _ in zip(given, positional, strict=False)], by_name

        return y, none, back

    def describe(self) -> str:
        return ", ".join(f"{k} {v}" for k, v in self.parameters.items())


def _as_float32(gradient: Any) -> Any:
    """Constants of Python and NumPy may have made a gradient float64."""
    return [as_float32(g) for g in gradient] if isinstance(gradient, list) else as_float32(gradient)


def from_keras3(class_name: str, config: Mapping[str, Any], name: str, reader: Reader) -> Layer:
    """The operation of a Keras 3 op node; FormatError when it is not in the table."""
    if class_name not in OPERATIONS:
        raise unknown(class_name, name, reader, sorted(OPERATIONS))
    parameters = {k: reader.value(v) for k, v in config.items() if k not in IGNORED}
    if class_name != "Cast":
        parameters.pop("dtype", None)
    return Operation(class_name, parameters, name)


def unknown(op: str, name: str, reader: Reader, known: Sequence[str]) -> FormatError:
    return FormatError(
        f"{reader.path}: node {name!r} is the operation {op!r}, which is not supported; supported "
        f"operations are {', '.join(known)}. Replace it by one of them, or cut the model before "
        "it and save that"
    )
