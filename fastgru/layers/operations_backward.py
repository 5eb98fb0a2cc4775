"""The ways back through the operations of a graph: for each a function from dy to the gradients of its arguments.

Called as ``back(dy, y, **arguments)`` with the arguments of the function in `operations.OPERATIONS`; what the result
leaves out has no gradient. Comparisons and rounding have none at all, as in TensorFlow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .activations import trained
from .base import NEWEST, Array, as_float32
from .merge import batched_product
from .slopes import softmax_back, with_slope
from .training_step import sum_to

Found = dict[str, Any]


def _nothing(dy: Array, out: Array, **arguments: Any) -> Found:
    return {}


def _same(dy: Array, out: Array, x: Any) -> Found:
    return {"x": dy}


def _both(by_x: Callable[..., Array], by_y: Callable[..., Array]) -> Callable[..., Found]:
    """An elementwise function of two arguments: its gradient by each, for (dy, x, y, out)."""

    def back(dy: Array, out: Array, x: Any, y: Any) -> Found:
        found = {}
        for name, value, by in (("x", x, by_x), ("y", y, by_y)):
            if isinstance(value, np.ndarray):
                with np.errstate(divide="ignore", invalid="ignore"):
                    found[name] = sum_to(np.broadcast_to(by(dy, x, y, out), out.shape), value.shape)
        return found

    return back


def _one(by_x: Callable[..., Array]) -> Callable[..., Found]:
    """An elementwise function of one argument: its gradient for (dy, x, out)."""

    def back(dy: Array, out: Array, x: Any) -> Found:
        with np.errstate(divide="ignore", invalid="ignore"):
            return {"x": by_x(dy, as_float32(x), out)}

    return back


def _activation(name: str) -> Callable[..., Found]:
    run = trained(name, NEWEST, name)
    return lambda dy, out, x: {"x": run(as_float32(x))[1](dy)}


def _elu(dy: Array, out: Array, x: Any, alpha: float = 1.0) -> Found:
    return {"x": np.where(x > 0, dy, dy * (out + np.float32(alpha)))}


def _leaky_relu(dy: Array, out: Array, x: Any, negative_slope: float = 0.2) -> Found:
    return {"x": np.where(x > 0, dy, dy * np.float32(negative_slope))}


def _gelu(dy: Array, out: Array, x: Any, approximate: bool = True) -> Found:
    if not approximate:
        return {"x": trained("gelu", NEWEST, "gelu")(as_float32(x))[1](dy)}
    c, k = np.float32(np.sqrt(2.0 / np.pi)), np.float32(0.044715)
    t, t_back = with_slope(("tanh", 0.0, 0.0), np.tanh)(c * (x + k * x * x * x))
    return {"x": np.float32(0.5) * (dy * (1 + t) + t_back(dy * x) * c * (1 + 3 * k * x * x))}


def _spread(dy: Array, x: Array, axis: Any, keepdims: bool) -> Array:
    """dy of a reduction with the reduced axes put back, of size 1."""
    if axis is None:
        return dy.reshape([1] * x.ndim)
    return dy if keepdims else np.expand_dims(dy, tuple(axis) if isinstance(axis, (list, tuple)) else axis)


def _sum(dy: Array, out: Array, x: Any, axis: Any = None, keepdims: bool = False) -> Found:
    return {"x": np.broadcast_to(_spread(dy, x, axis, keepdims), x.shape)}


def _mean(dy: Array, out: Array, x: Any, axis: Any = None, keepdims: bool = False) -> Found:
    return {"x": np.broadcast_to(_spread(dy / np.float32(x.size / max(out.size, 1)), x, axis, keepdims), x.shape)}


def _extreme(dy: Array, out: Array, x: Any, axis: Any = None, keepdims: bool = False) -> Found:
    """Shared equally by all that are the maximum (minimum)."""
    chosen = x == _spread(out, x, axis, keepdims)
    axes = tuple(axis) if isinstance(axis, (list, tuple)) else axis
    return {"x": chosen * (_spread(dy, x, axis, keepdims) / chosen.sum(axis=axes, keepdims=True, dtype=np.float32))}


def _cast(dy: Array, out: Array, x: Any, dtype: Any = "float32") -> Found:
    return {"x": dy} if out.dtype.kind == "f" else {}


def _get_item(dy: Array, out: Array, x: Any, key: Any) -> Found:
    dx = np.zeros(x.shape, np.float32)
    where = tuple(key) if isinstance(key, (list, tuple)) else (key,)
    if all(part is None or part is Ellipsis or isinstance(part, (int, slice)) for part in where):
        dx[where] = dy
    else:
        np.add.at(dx, where, dy)  # an index that comes twice
    return {"x": dx}


def _where(dy: Array, out: Array, condition: Any, x1: Any = None, x2: Any = None) -> Found:
    chosen = np.asarray(condition, bool)
    parts = (("x1", x1, np.where(chosen, dy, 0)), ("x2", x2, np.where(chosen, 0, dy)))
    return {name: sum_to(part, x.shape) for name, x, part in parts if isinstance(x, np.ndarray)}


def _clip(dy: Array, out: Array, x: Any, x_min: Any = None, x_max: Any = None) -> Found:
    inside = np.ones(x.shape, bool)
    if x_min is not None:
        inside &= x >= x_min
    if x_max is not None:
        inside &= x <= x_max
    return {"x": np.where(inside, dy, 0)}


def _reshaped(dy: Array, out: Array, x: Any, **how: Any) -> Found:
    return {"x": dy.reshape(x.shape)}


def _transpose(dy: Array, out: Array, x: Any, axes: Any = None) -> Found:
    return {"x": np.transpose(dy, None if axes is None else np.argsort(axes))}


def _swapaxes(dy: Array, out: Array, x: Any, axis1: int, axis2: int) -> Found:
    return {"x": np.swapaxes(dy, axis1, axis2)}


def _concatenate(dy: Array, out: Array, xs: Sequence[Any], axis: int = -1) -> Found:
    return {"xs": np.split(dy, np.cumsum([np.shape(x)[axis] for x in xs])[:-1], axis=axis)}


def _stack(dy: Array, out: Array, xs: Sequence[Any], axis: int = 0) -> Found:
    return {"xs": list(np.moveaxis(dy, axis, 0))}


def _repeat(dy: Array, out: Array, x: Any, repeats: int, axis: int | None = None) -> Found:
    if axis is None:
        return {"x": dy.reshape(-1, repeats).sum(axis=1).reshape(x.shape)}
    axis = axis % x.ndim
    return {"x": dy.reshape(*x.shape[: axis + 1], repeats, *x.shape[axis + 1 :]).sum(axis=axis + 1)}


def _tile(dy: Array, out: Array, x: Any, repeats: Any) -> Found:
    times = list(repeats) if isinstance(repeats, (list, tuple)) else [repeats]
    rank = max(len(times), x.ndim)
    times = [1] * (rank - len(times)) + times
    shape = [1] * (rank - x.ndim) + list(x.shape)
    split = dy.reshape([n for pair in zip(times, shape, strict=True) for n in pair])
    return {"x": split.sum(axis=tuple(range(0, 2 * rank, 2))).reshape(x.shape)}


def _flip(dy: Array, out: Array, x: Any, axis: Any = None) -> Found:
    return {"x": np.flip(dy, tuple(axis) if isinstance(axis, (list, tuple)) else axis)}


def _matmul(dy: Array, out: Array, x: Any, y: Any) -> Found:
    rows = int(np.prod(x.shape[:-2]))
    flat, a, b = (v.reshape(rows, *v.shape[-2:]) for v in (dy, x, y))
    by_x = batched_product(flat, b, None).reshape(x.shape)
    return {"x": by_x, "y": batched_product(a.swapaxes(1, 2), flat.swapaxes(1, 2), None).reshape(y.shape)}


def _softmax(dy: Array, out: Array, x: Any, axis: Any = -1) -> Found:
    return {"x": softmax_back(dy, out, -1 if axis is None else axis)}


def _log_softmax(dy: Array, out: Array, x: Any, axis: int = -1) -> Found:
    return {"x": dy - np.exp(out) * dy.sum(axis=axis, keepdims=True)}


_divide = _both(lambda dy, x, y, out: dy / y, lambda dy, x, y, out: -dy * out / y)
_steps = (
    "FloorDivide Sign Floor Round Equal NotEqual Greater GreaterEqual Less LessEqual LogicalAnd LogicalOr LogicalNot"
)

#: By the names of `operations.OPERATIONS`; no gradient passes the others.
BACKS: dict[str, Callable[..., Found]] = {
    **dict.fromkeys([*_steps.split(), "Any", "All", "ZerosLike", "OnesLike", "StopGradient"], _nothing),
    "Add": _both(lambda dy, x, y, out: dy, lambda dy, x, y, out: dy),
    "Subtract": _both(lambda dy, x, y, out: dy, lambda dy, x, y, out: -dy),
    "Multiply": _both(lambda dy, x, y, out: dy * y, lambda dy, x, y, out: dy * x),
    "Divide": _divide,
    "TrueDivide": _divide,
    "Power": _both(
        lambda dy, x, y, out: dy * y * np.power(x, np.subtract(y, 1)),
        lambda dy, x, y, out: dy * out * np.where(np.asarray(x) > 0, np.log(np.maximum(x, 1e-38)), 0),
    ),
    "Maximum": _both(lambda dy, x, y, out: dy * (x >= y), lambda dy, x, y, out: dy * np.logical_not(x >= y)),
    "Minimum": _both(lambda dy, x, y, out: dy * (x <= y), lambda dy, x, y, out: dy * np.logical_not(x <= y)),
    "Negative": _one(lambda dy, x, out: -dy),
    "Absolute": _one(lambda dy, x, out: dy * np.sign(x)),
    "Abs": _one(lambda dy, x, out: dy * np.sign(x)),
    "Square": _one(lambda dy, x, out: dy * 2 * x),
    "Sqrt": _one(lambda dy, x, out: dy / (2 * out)),
    "Rsqrt": _one(lambda dy, x, out: dy * -0.5 * out * out * out),
    "Reciprocal": _one(lambda dy, x, out: -dy * out * out),
    "Exp": _one(lambda dy, x, out: dy * out),
    "Log": _one(lambda dy, x, out: dy / x),
    "Log1p": _one(lambda dy, x, out: dy / (1 + x)),
    "Sin": _one(lambda dy, x, out: dy * np.cos(x)),
    "Cos": _one(lambda dy, x, out: -dy * np.sin(x)),
    "Mean": _mean,
    "Sum": _sum,
    "Max": _extreme,
    "Min": _extreme,
    "Cast": _cast,
    "GetItem": _get_item,
    "Where": _where,
    "Clip": _clip,
    "Reshape": _reshaped,
    "ExpandDims": _reshaped,
    "Squeeze": _reshaped,
    "Transpose": _transpose,
    "Swapaxes": _swapaxes,
    "Concatenate": _concatenate,
    "Stack": _stack,
    "Repeat": _repeat,
    "Tile": _tile,
    "Flip": _flip,
    "Matmul": _matmul,
    "Softmax": _softmax,
    "LogSoftmax": _log_softmax,
    "LeakyRelu": _leaky_relu,
    "Elu": _elu,
    "Gelu": _gelu,
    "Identity": _same,
    **{
        name: _activation(name.lower())
        for name in ("Relu", "Relu6", "Sigmoid", "Tanh", "Softplus", "Softsign", "Selu", "Silu")
    },
    "HardSigmoid": _activation("hard_sigmoid"),
}
