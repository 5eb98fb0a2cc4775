"""The op nodes of Keras graphs (``x + 1``, ``x[:, -1]``, ``ops.mean(x, 1)``) in ONNX's operators.

One function for each operation, with the arguments that `layers.operations` gives it. What ONNX has no exact operator
for is not in the table, and refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..layers.operations import Operation
from ..layers.tensorflow_operations import GraphNode
from . import onnx_activations
from .onnx_builder import END, Builder, Value, kind_of


def operation(g: Builder, layer: Operation, x: Any, state: Any) -> Value:
    """One node of arithmetic; none carries a mask on."""
    positional, named = x if isinstance(x, tuple) else ([x], {})
    if isinstance(layer, GraphNode):
        left = list(x) if isinstance(x, list) else [x]
        total = len(left) + len(layer.constants)
        positional = [layer.constants[i] if i in layer.constants else left.pop(0) for i in range(total)]
        named = {}
    if layer.operation not in OPERATIONS:
        raise g.refuse(f"ONNX has no exact counterpart; operations that are exported: {', '.join(sorted(OPERATIONS))}")
    arguments = {**layer.parameters, **named}
    return replace(OPERATIONS[layer.operation](g, *positional, **arguments), mask=None)


# -- elementwise ----------------------------------------------------------------------------


def _pair(g: Builder, x: Any, y: Any) -> tuple[Value, Value]:
    """Both in one kind: int64 if both are whole numbers, else float32; a bool beside a number is one."""
    a, b = _alike(g, [x, y])
    return a, b


def _numbers(g: Builder, x: Any, y: Any) -> tuple[Value, Value]:
    a, b = _pair(g, x, y)
    return (g.cast(a, "int64"), g.cast(b, "int64")) if a.kind == "bool" else (a, b)


def _arithmetic(op: str, floats: bool = False) -> Callable[..., Value]:
    def run(g: Builder, x: Any, y: Any) -> Value:
        a, b = (g.floats(x), g.floats(y)) if floats else _numbers(g, x, y)
        return g.binary(op, a, b)

    return run


def _comparison(op: str, negated: bool = False) -> Callable[..., Value]:
    def run(g: Builder, x: Any, y: Any) -> Value:
        a, b = _numbers(g, x, y)
        found = g.binary(op, a, b, "bool")
        return g.add("Not", [found], found.sizes, "bool") if negated else found

    return run


def _logical(op: str) -> Callable[..., Value]:
    def run(g: Builder, x: Any, y: Any) -> Value:
        return g.binary(op, g.cast(g.value(x), "bool"), g.cast(g.value(y), "bool"), "bool")

    return run


def _not(g: Builder, x: Any) -> Value:
    x = g.cast(g.value(x), "bool")
    return g.add("Not", [x], x.sizes, "bool")


def _unary(op: str) -> Callable[..., Value]:
    def run(g: Builder, x: Any) -> Value:
        x = g.floats(x)
        return g.add(op, [x], x.sizes)

    return run


def _whole_too(op: str) -> Callable[..., Value]:
    """Operators that keep whole numbers whole."""

    def run(g: Builder, x: Any) -> Value:
        x = g.value(x)
        x = g.cast(x, "int64") if x.kind == "bool" else x
        return g.add(op, [x], x.sizes, x.kind)

    return run


def _square(g: Builder, x: Any) -> Value:
    a, b = _numbers(g, x, x)
    return g.binary("Mul", a, b)


def _rsqrt(g: Builder, x: Any) -> Value:
    root = _unary("Sqrt")(g, x)
    return g.add("Reciprocal", [root], root.sizes)


def _activation(name: str) -> Callable[..., Value]:
    return lambda g, x: onnx_activations.by_name(g, name, x)


def _softmax(op: str) -> Callable[..., Value]:
    def run(g: Builder, x: Any, axis: Any = -1) -> Value:
        if axis is not None and not isinstance(axis, int):
            raise g.refuse(f"expected one axis, found {axis}")
        return onnx_activations.softmax(g, g.floats(x), -1 if axis is None else axis, op)

    return run


def _leaky_relu(g: Builder, x: Any, negative_slope: float = 0.2) -> Value:
    return onnx_activations.by_spec(g, ("leaky_relu", float(negative_slope), 0.0), g.floats(x))


def _elu(g: Builder, x: Any, alpha: float = 1.0) -> Value:
    return onnx_activations.by_spec(g, ("elu", float(alpha), 0.0), g.floats(x))


def _gelu(g: Builder, x: Any, approximate: bool = True) -> Value:
    return onnx_activations.gelu(g, g.floats(x), approximate)


def _where(g: Builder, condition: Any, x1: Any = None, x2: Any = None) -> Value:
    a, b = _pair(g, x1, x2)
    shown = g.cast(g.value(condition), "bool")
    return g.add("Where", [shown, a, b], g.broadcast(shown, a, b), a.kind)


def _clip(g: Builder, x: Any, x_min: Any = None, x_max: Any = None) -> Value:
    y: Value = g.value(x)
    for op, bound in (("Max", x_min), ("Min", x_max)):
        if bound is not None:
            y = g.binary(op, *_numbers(g, y, bound))
    return y


def _cast(g: Builder, x: Any, dtype: Any = "float32") -> Value:
    name = dtype.get("config", {}).get("name", "float32") if isinstance(dtype, Mapping) else dtype
    name = str(name).removeprefix("<dtype: '").removesuffix("'>")
    if name.startswith(("int", "uint")) and name not in ("int32", "int64"):
        raise g.refuse(f"expected a cast to float32, int32, int64 or bool, found {name}, which would wrap around")
    kind = "int64" if name.startswith("int") else "bool" if name == "bool" else "float32"
    return g.cast(g.value(x), kind)


def _filled(number: int) -> Callable[..., Value]:
    def run(g: Builder, x: Any) -> Value:
        x = g.value(x)
        shape = g.add("Shape", [x], (x.rank,), "int64")
        ones = g.add("Expand", [g.constant(number, x.kind), shape], x.sizes, x.kind)
        return ones

    return run


def _identity(g: Builder, x: Any) -> Value:
    return g.value(x)


# -- reductions -----------------------------------------------------------------------------


def _reduction(op: str) -> Callable[..., Value]:
    def run(g: Builder, x: Any, axis: Any = None, keepdims: bool = False) -> Value:
        x = g.value(x)
        axes = range(x.rank) if axis is None else axis if isinstance(axis, (list, tuple)) else [axis]
        boolean = op in ("Any", "All") or (op in ("ReduceMax", "ReduceMin") and x.kind == "bool")
        if boolean:
            x = g.cast(g.cast(x, "bool"), "float32")
        elif op in ("ReduceMean", "ReduceSum", "ReduceProd") and (x.kind == "bool" or op == "ReduceMean"):
            x = g.floats(x)
        y = g.reduce({"Any": "ReduceMax", "All": "ReduceMin"}.get(op, op), x, [int(a) for a in axes], bool(keepdims))
        return g.cast(y, "bool") if boolean else y

    return run


# -- moving numbers -------------------------------------------------------------------------


def _get_item(g: Builder, x: Value, key: Any) -> Value:
    """``x[key]`` for numbers, slices, None and … ; arrays of indices are refused."""
    keys = list(key) if isinstance(key, (list, tuple)) else [key]
    if not all(k is None or k is Ellipsis or isinstance(k, (int, slice)) and not isinstance(k, bool) for k in keys):
        raise g.refuse(f"expected an index of numbers and slices, found {key}")
    taken = sum(isinstance(k, (int, slice)) for k in keys)
    if keys.count(Ellipsis) > 1 or taken > x.rank:
        raise g.refuse(f"expected an index that fits inputs {x.sizes}, found {key}")
    at = keys.index(Ellipsis) if Ellipsis in keys else len(keys)
    keys[at : at + 1] = [slice(None)] * (x.rank - taken)
    axis = 0
    fixed: list[tuple[int, int]] = []
    new: list[int] = []
    for k in keys:
        if k is None:
            new.append(axis - len(fixed) + len(new))
            continue
        if isinstance(k, slice):
            x = _slice(g, x, axis, k)
        else:
            fixed.append((axis, int(k)))
        axis += 1
    for place, index in reversed(fixed):
        sizes = (*x.sizes[:place], *x.sizes[place + 1 :])
        x = g.add("Gather", [x, g.constant(index)], sizes, x.kind, axis=place)
    return g.unsqueeze(x, *new) if new else x


def _slice(g: Builder, x: Value, axis: int, key: slice) -> Value:
    if key == slice(None):
        return x
    bounds = [None if n is None else int(n) for n in (key.start, key.stop, key.step)]
    step = 1 if bounds[2] is None else bounds[2]
    start = bounds[0] if bounds[0] is not None else 0 if step > 0 else -1
    stop = bounds[1] if bounds[1] is not None else END if step > 0 else -END
    return g.part(x, axis, start, stop, step)


def _reshape(g: Builder, x: Value, newshape: Any) -> Value:
    """As here: a leading −1 keeps the batch."""
    shape = [-1 if n is None else int(n) for n in newshape]
    keeps = bool(shape) and shape[0] == -1
    rest = shape[1:] if keeps else shape
    if 0 in shape:
        raise g.refuse(f"expected sizes of 1 and more, found {shape}")
    sizes: list[int | str | None] = [None if n == -1 else n for n in rest]
    source = x.sizes[1:] if keeps else x.sizes
    known = [n for n in source if isinstance(n, int)]
    if rest.count(-1) == 1 and len(known) == len(source):
        sizes[rest.index(-1)] = int(np.prod(known)) // max(1, int(np.prod([n for n in rest if n != -1])))
    return g.reshape(x, [0, *rest] if keeps else rest, (x.sizes[0], *sizes) if keeps else tuple(sizes))


def _expand_dims(g: Builder, x: Any, axis: Any = -1) -> Value:
    return g.unsqueeze(g.value(x), *(axis if isinstance(axis, (list, tuple)) else [axis]))


def _squeeze(g: Builder, x: Value, axis: Any = None) -> Value:
    if axis is None or axis == []:
        if not all(isinstance(n, int) for n in x.sizes[1:]) or not x.sizes or x.sizes[0] == 1:
            raise g.refuse("expected the axis to squeeze, because not every size is known")
        axis = [i for i, n in enumerate(x.sizes) if n == 1]
    axes = sorted((a % x.rank for a in (axis if isinstance(axis, (list, tuple)) else [axis])), reverse=True)
    for a in axes:
        x = g.squeeze(x, a)
    return x


def _transpose(g: Builder, x: Value, axes: Any = None) -> Value:
    return g.transpose(x, range(x.rank)[::-1] if axes is None else [int(a) % x.rank for a in axes])


def _swapaxes(g: Builder, x: Value, axis1: int, axis2: int) -> Value:
    order = list(range(x.rank))
    order[axis1], order[axis2] = order[axis2], order[axis1]
    return g.transpose(x, order)


def _alike(g: Builder, xs: Sequence[Any]) -> list[Value]:
    """Values of one kind: float32 if one is, else int64 if one is, else bool."""
    kinds = {x.kind if isinstance(x, Value) else kind_of(x) for x in xs}
    kind = next(k for k in ("float32", "int64", "bool") if k in kinds)
    return [g.cast(x, kind) if isinstance(x, Value) else g.constant(x, kind) for x in xs]


def _concatenate(g: Builder, xs: Sequence[Any], axis: int = -1) -> Value:
    return g.concat(_alike(g, xs), int(axis))


def _stack(g: Builder, xs: Sequence[Any], axis: int = 0) -> Value:
    return g.concat([g.unsqueeze(v, int(axis)) for v in _alike(g, xs)], int(axis))


def _tile(g: Builder, x: Value, repeats: Any) -> Value:
    counts = [int(n) for n in (repeats if isinstance(repeats, (list, tuple)) else [repeats])]
    x = g.unsqueeze(x, *range(len(counts) - x.rank)) if len(counts) > x.rank else x
    counts = [1] * (x.rank - len(counts)) + counts
    sizes = tuple(n if k == 1 else n * k if isinstance(n, int) else None for n, k in zip(x.sizes, counts, strict=True))
    return g.add("Tile", [x, g.constant(counts)], sizes, x.kind)


def _repeat(g: Builder, x: Value, repeats: Any, axis: int | None = None) -> Value:
    if axis is None or not isinstance(repeats, int):
        raise g.refuse("expected repeat with one number and an axis")
    axis %= x.rank
    wide = g.unsqueeze(x, axis + 1)
    tiled = _tile(g, wide, [repeats if i == axis + 1 else 1 for i in range(wide.rank)])
    size = x.sizes[axis]
    shape: list[Any] = [n if isinstance(n, int) else (x, i) for i, n in enumerate(x.sizes)]
    shape[axis] = -1
    sizes = (*x.sizes[:axis], size * repeats if isinstance(size, int) else None, *x.sizes[axis + 1 :])
    return g.reshape(tiled, shape, sizes)


def _flip(g: Builder, x: Value, axis: Any = None) -> Value:
    for a in range(x.rank) if axis is None else axis if isinstance(axis, (list, tuple)) else [axis]:
        x = g.flip(x, int(a))
    return x


def _matmul(g: Builder, x: Any, y: Any) -> Value:
    a, b = g.floats(x), g.floats(y)
    if a.rank < 3 or b.rank != a.rank:
        raise g.refuse(f"expected two batches of matrices, found {a.sizes}, {b.sizes}")
    return g.add("MatMul", [a, b], (*a.sizes[:-1], b.sizes[-1]))


#: Keras 3 op classes, as in `layers.operations.OPERATIONS`. Not here: FloorDivide, Mod, Log1p, which ONNX lacks.
OPERATIONS: dict[str, Callable[..., Value]] = {
    "Add": _arithmetic("Add"),
    "Subtract": _arithmetic("Sub"),
    "Multiply": _arithmetic("Mul"),
    "Divide": _arithmetic("Div", floats=True),
    "TrueDivide": _arithmetic("Div", floats=True),
    "Power": _arithmetic("Pow"),
    "Maximum": _arithmetic("Max"),
    "Minimum": _arithmetic("Min"),
    "Negative": _whole_too("Neg"),
    "Absolute": _whole_too("Abs"),
    "Abs": _whole_too("Abs"),
    "Sign": _whole_too("Sign"),
    "Square": _square,
    "Sqrt": _unary("Sqrt"),
    "Rsqrt": _rsqrt,
    "Reciprocal": _unary("Reciprocal"),
    "Exp": _unary("Exp"),
    "Log": _unary("Log"),
    "Floor": _unary("Floor"),
    "Round": _unary("Round"),
    "Sin": _unary("Sin"),
    "Cos": _unary("Cos"),
    "Equal": _comparison("Equal"),
    "NotEqual": _comparison("Equal", negated=True),
    "Greater": _comparison("Greater"),
    "GreaterEqual": _comparison("GreaterOrEqual"),
    "Less": _comparison("Less"),
    "LessEqual": _comparison("LessOrEqual"),
    "LogicalAnd": _logical("And"),
    "LogicalOr": _logical("Or"),
    "LogicalNot": _not,
    "Mean": _reduction("ReduceMean"),
    "Sum": _reduction("ReduceSum"),
    "Prod": _reduction("ReduceProd"),
    "Max": _reduction("ReduceMax"),
    "Min": _reduction("ReduceMin"),
    "Any": _reduction("Any"),
    "All": _reduction("All"),
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
    "ZerosLike": _filled(0),
    "OnesLike": _filled(1),
    "Matmul": _matmul,
    "Softmax": _softmax("Softmax"),
    "LogSoftmax": _softmax("LogSoftmax"),
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
