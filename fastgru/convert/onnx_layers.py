"""Keras-shaped layers in ONNX's operators: one function for each layer, and the table of them.

Each takes the builder, the layer, its input (a `Value`, or a list where the layer takes several) and its initial
state, and returns its output or a list of them. A mask goes on where the layer hands its own on, and is refused where
the layer would look at it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np

from ..layers import (
    GRU,
    RNN,
    Add,
    Average,
    BatchNormalization,
    Bidirectional,
    Concatenate,
    Dense,
    Dot,
    Embedding,
    Flatten,
    GlobalAveragePooling1D,
    GlobalMaxPooling1D,
    Input,
    Layer,
    LayerNormalization,
    Masking,
    Maximum,
    Minimum,
    Multiply,
    Permute,
    RepeatVector,
    Reshape,
    Subtract,
)
from . import onnx_activations, onnx_recurrent
from .onnx_builder import Builder, Sizes, Value
from .onnx_masks import all_valid, both, chosen, either

Emitter = Callable[[Builder, Any, Any, Any], Any]


# -- core -----------------------------------------------------------------------------------


def identity(g: Builder, layer: Layer, x: Value, state: Any) -> Value:
    return x


def embedding(g: Builder, layer: Embedding, x: Value, state: Any) -> Value:
    ids = g.cast(g.value(x), "int64")
    table = g.weight(layer, "embeddings", layer.weights["embeddings"])
    y = g.add("Gather", [table, ids], (*ids.sizes, layer.output_dim))
    if not layer.mask_zero:
        return replace(y, mask=x.mask)
    return replace(y, mask=replace(_not_equal(g, ids, 0), mask=None))


def masking(g: Builder, layer: Masking, x: Value, state: Any) -> Value:
    """Steps of padding become 0; NaN counts as valid."""
    x = replace(g.floats(x), mask=None)
    differs = g.cast(_not_equal(g, x, np.float32(layer.mask_value)), "float32")
    valid = g.cast(g.reduce("ReduceMax", differs, [-1], False), "bool")
    return replace(chosen(g, valid, x, g.constant(np.float32(0))), mask=valid)


def _not_equal(g: Builder, x: Value, value: Any) -> Value:
    same = g.binary("Equal", x, value, "bool")
    return g.add("Not", [same], same.sizes, "bool")


def dense(g: Builder, layer: Dense, x: Value, state: Any) -> Value:
    x = g.floats(x)
    if x.sizes[-1] not in (layer._width, None):
        raise g.refuse(f"expected inputs of width {layer._width}, found {x.sizes}")
    kernel = g.weight(layer, "kernel", layer.weights["kernel"])
    y = g.add("MatMul", [x, kernel], (*x.sizes[:-1], layer.units))
    if layer.use_bias:
        y = g.add("Add", [y, g.weight(layer, "bias", layer.weights["bias"])], y.sizes)
    return replace(onnx_activations.of_layer(g, layer, y), mask=x.mask)


# -- normalization --------------------------------------------------------------------------


def batch_normalization(g: Builder, layer: BatchNormalization, x: Value, state: Any) -> Value:
    """Folded to x · factor + shift, as it is scored here."""
    x = g.floats(x)
    if not -x.rank <= layer.axis < x.rank or x.sizes[layer.axis] not in (layer._factor.shape[0], None):
        raise g.refuse(f"expected {layer._factor.shape[0]} features on axis {layer.axis}, found {x.sizes}")
    shape = [1] * (x.rank - layer.axis % x.rank)
    shape[0] = -1
    rank = f"_{len(shape)}" if len(shape) > 1 else ""
    factor = g.weight(layer, "factor" + rank, layer._factor.reshape(shape))
    shift = g.weight(layer, "shift" + rank, layer._shift.reshape(shape))
    return g.add("Add", [g.add("Mul", [x, factor], x.sizes), shift], x.sizes)


def layer_normalization(g: Builder, layer: LayerNormalization, x: Value, state: Any) -> Value:
    """ONNX's operator where it has the same meaning (the last axes, and a gamma), else its parts."""
    x = g.floats(x)
    axes = sorted(axis % x.rank for axis in layer.axis)
    sizes = [x.sizes[axis] for axis in axes]
    for name, value in layer.weights.items():
        if len(value.shape) != len(axes) or any(m not in (n, None) for n, m in zip(value.shape, sizes, strict=True)):
            raise g.refuse(f"{name} {value.shape} does not fit axes {axes} of inputs {x.sizes}")
    trailing = axes == list(range(x.rank - len(axes), x.rank))
    if trailing and "gamma" in layer.weights and not layer.rms_scaling:
        weights = [g.weight(layer, name, layer.weights[name]) for name in layer.weight_names()]
        return g.add("LayerNormalization", [x, *weights], x.sizes, axis=axes[0] - x.rank, epsilon=layer.epsilon)
    centred = g.binary("Sub", x, g.reduce("ReduceMean", x, axes, True))
    variance = g.reduce("ReduceMean", g.binary("Mul", centred, centred), axes, True)
    deviation = g.add("Sqrt", [g.binary("Add", variance, np.float32(layer.epsilon))], variance.sizes)
    y = g.binary("Div", x if layer.rms_scaling else centred, deviation)
    for name, op in (("gamma", "Mul"), ("beta", "Add")):
        if name in layer.weights:
            value = layer.weights[name]
            shape = [value.shape[axes.index(i)] if i in axes else 1 for i in range(axes[0], x.rank)]
            label = name if trailing else f"{name}_{x.rank}"
            y = g.add(op, [y, g.weight(layer, label, value.reshape(shape))], x.sizes)
    return y


# -- merges ---------------------------------------------------------------------------------


def _same_rank(g: Builder, x: Any) -> list[Value]:
    """Lower ranks get axes of size 1 after the batch, as Keras' merges do."""
    values = [g.floats(v) for v in x]
    rank = max(v.rank for v in values)
    return [v if v.rank in (0, rank) else g.unsqueeze(v, *range(1, rank - v.rank + 1)) for v in values]


def _merge(op: str, masked: Callable[[Builder, list[Value]], Value] | None = None) -> Emitter:
    """A merge by a binary operator; from Keras 3.4 some look at the masks too."""

    def merge(g: Builder, layer: Any, x: Any, state: Any) -> Value:
        values = _same_rank(g, x)
        masks = [v.mask for v in values]
        newest = layer._dialect.merges_or
        if newest and masked is not None and any(m is not None for m in masks):
            return replace(masked(g, values), mask=either(g, masks))
        merged = reduce(lambda a, b: g.binary(op, a, b), values)
        return replace(merged, mask=either(g, masks) if newest else both(g, masks))

    return merge


def _masked_product(g: Builder, values: list[Value]) -> Value:
    """A masked input counts as 1; a step that all inputs mask is 0."""
    one, zero = g.constant(np.float32(1)), g.constant(np.float32(0))
    shown = [v if v.mask is None else chosen(g, v.mask, v, one) for v in values]
    product = reduce(lambda a, b: g.binary("Mul", a, b), shown)
    mask = either(g, [v.mask for v in values])
    return product if mask is None else chosen(g, mask, product, zero)


def _masked_choice(op: str) -> Callable[[Builder, list[Value]], Value]:
    """A masked input gives way to the other."""

    def choose(g: Builder, values: list[Value]) -> Value:
        result, shown = values[0], values[0].mask
        for x in values[1:]:
            mask = x.mask
            x = x if mask is None else chosen(g, mask, x, result)
            result = result if shown is None else chosen(g, shown, result, x)
            shown = either(g, [shown, mask])
            result = g.binary(op, result, x)
        return result

    return choose


def average(g: Builder, layer: Average, x: Any, state: Any) -> Value:
    total: Value = _merge("Add")(g, layer, x, state)
    return g.binary("Div", total, np.float32(len(x)))


def concatenate(g: Builder, layer: Concatenate, x: Any, state: Any) -> Value:
    values = [g.floats(v) for v in x]
    if any(v.rank != values[0].rank for v in values):
        raise g.refuse(f"expected inputs of one rank, found {[v.sizes for v in values]}")
    y = replace(g.concat(values, layer.axis), mask=None)
    masks = [v.mask for v in values]
    if all(m is None for m in masks):
        return y
    if layer.axis % y.rank < y.rank - 1:
        spread = [all_valid(g, v) if v.mask is None else v.mask for v in values]
        return replace(y, mask=g.concat(spread, layer.axis % y.rank))
    # OR with an input without a mask: every step is valid
    return replace(y, mask=either(g, masks) if layer._dialect.merges_or else both(g, masks))


def dot(g: Builder, layer: Dot, x: Any, state: Any) -> Value:
    a, b = (replace(g.floats(v), mask=None) for v in x)
    pair = [layer.axes] * 2 if isinstance(layer.axes, int) else layer.axes
    a, b = (_last(g, v, axis) for v, axis in zip((a, b), pair, strict=True))
    if layer.normalize:
        a, b = _unit(g, a), _unit(g, b)
    if a.rank == b.rank == 2:
        return g.reduce("ReduceSum", g.binary("Mul", a, b), [-1], True)
    left = a if a.rank == 3 else g.unsqueeze(a, 1)
    right = g.transpose(b, (0, 2, 1)) if b.rank == 3 else g.unsqueeze(b, 2)
    y = g.add("MatMul", [left, right], (left.sizes[0], left.sizes[1], right.sizes[2]))
    return y if a.rank == b.rank == 3 else g.squeeze(y, 1 if a.rank == 2 else 2)


def _last(g: Builder, x: Value, axis: int) -> Value:
    """``axis`` moved to the end."""
    if x.rank > 3 or not -x.rank <= axis < x.rank or axis % x.rank == 0:
        raise g.refuse(f"expected inputs (N, K) or (N, T, K) and axes after the batch, found {x.sizes}, axis {axis}")
    axis %= x.rank
    order = [*(i for i in range(x.rank) if i != axis), axis]
    return x if order == sorted(order) else g.transpose(x, order)


def _unit(g: Builder, x: Value) -> Value:
    square = g.reduce("ReduceSum", g.binary("Mul", x, x), [-1], True)
    return g.binary("Div", x, g.add("Sqrt", [g.binary("Max", square, np.float32(1e-12))], square.sizes))


# -- pooling and shaping: the mask ends here ------------------------------------------------


def global_average(g: Builder, layer: GlobalAveragePooling1D, x: Value, state: Any) -> Value:
    x = g.floats(x)
    if x.mask is None:
        return _pool(g, layer, x, "ReduceMean")
    first = layer.data_format == "channels_first"
    valid = g.unsqueeze(x.mask, 1 if first else 2)
    shown = replace(g.add("Where", [valid, x, g.constant(np.float32(0))], x.sizes), mask=None)
    total = _pool(g, layer, shown, "ReduceSum")
    return g.binary("Div", total, g.reduce("ReduceSum", g.cast(valid, "float32"), [2 if first else 1], layer.keepdims))


def global_max(g: Builder, layer: GlobalMaxPooling1D, x: Value, state: Any) -> Value:
    return _pool(g, layer, g.floats(x), "ReduceMax")


def _pool(g: Builder, layer: GlobalAveragePooling1D, x: Value, op: str) -> Value:
    if x.rank != 3:
        raise g.refuse(f"expected (N, T, I), found {x.sizes}")
    time = 2 if layer.data_format == "channels_first" else 1
    return replace(g.reduce(op, x, [time], layer.keepdims), mask=None)


def flatten(g: Builder, layer: Flatten, x: Value, state: Any) -> Value:
    return replace(g.add("Flatten", [x], (x.sizes[0], _product(x.sizes[1:])), x.kind, axis=1), mask=None)


def _product(sizes: Sizes) -> int | None:
    known = [n for n in sizes if isinstance(n, int)]
    return int(np.prod(known, dtype=np.int64)) if len(known) == len(sizes) else None


def reshape(g: Builder, layer: Reshape, x: Value, state: Any) -> Value:
    target = layer.target_shape
    if 0 in target:
        raise g.refuse(f"expected sizes of 1 and more, found {target}")
    total, others = _product(x.sizes[1:]), int(np.prod([n for n in target if n != -1], dtype=np.int64))
    if total is not None and (total % others if -1 in target else total != others):
        raise g.refuse(f"expected inputs that fit {target}, found {x.sizes}")
    free = None if total is None else total // others
    sizes = tuple(free if n == -1 else n for n in target)
    return replace(g.reshape(x, (0, *target), (x.sizes[0], *sizes)), mask=None)


def permute(g: Builder, layer: Permute, x: Value, state: Any) -> Value:
    if x.rank != len(layer.dims) + 1:
        raise g.refuse(f"expected {len(layer.dims) + 1} axes, found {x.sizes}")
    return replace(g.transpose(x, (0, *layer.dims)), mask=None)


def repeat_vector(g: Builder, layer: RepeatVector, x: Value, state: Any) -> Value:
    if x.rank != 2:
        raise g.refuse(f"expected (N, I), found {x.sizes}")
    wide = g.unsqueeze(x, 1)
    y = g.add("Tile", [wide, g.constant([1, layer.n, 1])], (x.sizes[0], layer.n, x.sizes[1]), x.kind)
    return replace(y, mask=None)


#: Exact classes: a class derived from one of these may mean something else.
LAYERS: dict[type, Emitter] = {
    Input: identity,
    Embedding: embedding,
    Masking: masking,
    Dense: dense,
    GRU: onnx_recurrent.rnn,
    RNN: onnx_recurrent.rnn,
    Bidirectional: onnx_recurrent.bidirectional,
    BatchNormalization: batch_normalization,
    LayerNormalization: layer_normalization,
    Add: _merge("Add"),
    Subtract: _merge("Sub"),
    Multiply: _merge("Mul", _masked_product),
    Maximum: _merge("Max", _masked_choice("Max")),
    Minimum: _merge("Min", _masked_choice("Min")),
    Average: average,
    Concatenate: concatenate,
    Dot: dot,
    GlobalAveragePooling1D: global_average,
    GlobalMaxPooling1D: global_max,
    Flatten: flatten,
    Reshape: reshape,
    Permute: permute,
    RepeatVector: repeat_vector,
    **onnx_activations.LAYERS,
}
