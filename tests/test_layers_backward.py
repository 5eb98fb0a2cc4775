"""Every layer's way back against float64 central differences of what the layer means, written down here in NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers_gradients import differences
from helpers_layers import MASKS, mask_of, run
from helpers_training import assert_derivative, assert_gradient, upstream, weight_gradients
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgru import layers
from fastgru.layers import Layer, TrainingStep, slopes

Array = np.ndarray
N, T, F = 4, 6, 3  # rows, steps, features: those of mask_of


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def away_from(x: Array, *kinks: float) -> Array:
    """x with every element at least 0.01 from where a slope jumps."""
    for kink in kinks:
        near = np.abs(x - kink) < 0.01
        x = np.where(near, np.float32(kink + 0.02), x)
    return x


def check(
    layer: Layer, meaning: Callable[..., Any], x: Any, mask: Any = None, atol: float = 3e-6, state: Any = None
) -> TrainingStep:
    """Outputs and all gradients of one call against ``meaning(x..., *weights[, states])``, all in float64."""
    several = isinstance(x, list)
    arrays = x if several else [x]
    layer.ensure_ready(x)
    start = layer.get_weights()
    rng = np.random.default_rng(3)
    if start:  # ones and zeros would hide mistakes; positive, because some are variances
        layer.set_weights([(0.3 + 0.5 * rng.random(w.shape)).astype(np.float32) for w in start])
    step = TrainingStep()
    y, _, back = layer.train(x, mask, step, state)
    dy = upstream(y)
    dx = back(dy)
    wide = [v.astype(np.float64) for v in (*arrays, *layer.get_weights(), *(state or []))]

    def loss() -> float:
        found = meaning(*wide)
        pairs = zip(found, dy, strict=True) if isinstance(dy, list) else [(found, dy)]
        return float(sum((np.asarray(f) * d).sum() for f, d in pairs))

    expected = meaning(*wide)
    for found, right in zip(y, expected, strict=True) if isinstance(y, list) else [(y, expected)]:
        assert found.shape == np.shape(right)
        np.testing.assert_allclose(found, right, rtol=1e-5, atol=atol)
    dstates = []
    if state is not None:
        dx, dstates = dx
    found_x = dx if several else [dx]
    gradients = weight_gradients(layer, step)
    for i, found in enumerate([*found_x, *gradients, *dstates]):
        if found is not None and wide[i].size > 24:
            assert_derivative(found, loss, wide[i], f"{layer.class_name()}: gradient {i}", atol)
        elif found is not None:
            assert_gradient(found, differences(loss, wide[i]), f"{layer.class_name()}: gradient {i}", atol)
    assert all(g is not None for g in [*found_x, *dstates])
    trained = sum(map(len, trainable_names(layer)))
    assert sum(g is not None for g in gradients) == trained
    return step


def trainable_names(layer: Layer) -> list[tuple[str, ...]]:
    return [layer.trainable_names(), *(n for part in layer.parts().values() for n in trainable_names(part))]


# -- activations ---------------------------------------------------------------------------


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def erf(x: Array) -> Array:
    return np.vectorize(math.erf)(x)


def softmax(x: Array, axis: Any = -1) -> Array:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def softplus(x: Array) -> Array:
    return np.log1p(np.exp(x))


SCALE, ALPHA = 1.0507009873554805, 1.6732632423543772
#: name or spec: what it means, and where its slope jumps
FUNCTIONS: dict[Any, tuple[Callable[[Array], Array], tuple[float, ...]]] = {
    "linear": (lambda x: x, ()),
    "sigmoid": (sigmoid, ()),
    "tanh": (np.tanh, ()),
    "hard_sigmoid": (lambda x: np.clip(x / 6 + 0.5, 0, 1), (-3, 3)),
    ("hard_sigmoid", 0.2, 0.5): (lambda x: np.clip(0.2 * x + 0.5, 0, 1), (-2.5, 2.5)),
    "relu": (lambda x: np.maximum(x, 0), (0,)),
    "softsign": (lambda x: x / (1 + np.abs(x)), ()),
    "elu": (lambda x: np.where(x > 0, x, np.exp(x) - 1), ()),
    ("elu", 0.7, 0.0): (lambda x: np.where(x > 0, x, 0.7 * (np.exp(x) - 1)), (0,)),
    "selu": (lambda x: SCALE * np.where(x > 0, x, ALPHA * (np.exp(x) - 1)), (0,)),
    "softplus": (softplus, ()),
    ("affine", 0.6, -0.1): (lambda x: 0.6 * x - 0.1, ()),
    "leaky_relu": (lambda x: np.where(x > 0, x, 0.2 * x), (0,)),
    ("leaky_relu", 0.3, 0.0): (lambda x: np.where(x > 0, x, 0.3 * x), (0,)),
    ("thresholded_relu", 0.4, 0.0): (lambda x: np.where(x > 0.4, x, 0), (0.4,)),
    ("scaled_tanh", 1.3, 0.7): (lambda x: 1.3 * np.tanh(0.7 * x), ()),
    "softmax": (softmax, ()),
    "log_softmax": (lambda x: np.log(softmax(x)), ()),
    "exponential": (np.exp, ()),
    "silu": (lambda x: x * sigmoid(x), ()),
    "swish": (lambda x: x * sigmoid(x), ()),
    "gelu": (lambda x: x * 0.5 * (1 + erf(x / np.sqrt(2))), ()),
    "relu6": (lambda x: np.clip(x, 0, 6), (0, 6)),
    "mish": (lambda x: x * np.tanh(softplus(x)), ()),
    "hard_silu": (lambda x: x * np.clip(x / 6 + 0.5, 0, 1), (-3, 3)),
    "hard_swish": (lambda x: x * np.clip(x / 6 + 0.5, 0, 1), (-3, 3)),
    "log_sigmoid": (lambda x: -softplus(-x), ()),
    "hard_tanh": (lambda x: np.clip(x, -1, 1), (-1, 1)),
    "tanh_shrink": (lambda x: x - np.tanh(x), ()),
    "celu": (lambda x: np.where(x > 0, x, np.exp(x) - 1), ()),
}


def test_every_activation_has_a_case() -> None:
    assert {f if isinstance(f, str) else f[0] for f in FUNCTIONS} == set(slopes.SLOPES)


@pytest.mark.parametrize("activation", FUNCTIONS, ids=str)
def test_activation(activation: Any) -> None:
    meaning, kinks = FUNCTIONS[activation]
    x = away_from(np.concatenate([2 * normal(4, 5), 4 * normal(4, 5, seed=1), np.zeros((1, 5), np.float32)]), *kinks)
    check(layers.Activation(activation), meaning, x, atol=1e-5)
    check(layers.Dense(5, activation), lambda x, w, b: meaning(x @ w + b), away_from(normal(3, 5)), atol=1e-5)


def test_activation_layers() -> None:
    x = away_from(2 * normal(N, F, 5), 0, 0.1, 0.5, 1)
    check(layers.ReLU(), lambda x: np.maximum(x, 0), x)
    check(
        layers.ReLU(0.5, 0.1, 0.1),
        lambda x: np.minimum(np.where(x >= 0.1, x, 0.1 * (x - 0.1)), 0.5),
        x,
    )
    check(layers.LeakyReLU(0.15), lambda x: np.where(x > 0, x, 0.15 * x), x)
    check(layers.ThresholdedReLU(1.0), lambda x: np.where(x > 1, x, 0), x)
    check(layers.ELU(0.7), lambda x: np.where(x > 0, x, 0.7 * np.expm1(x)), x)
    check(layers.PReLU(), lambda x, a: np.where(x > 0, x, a * x), x)
    check(layers.PReLU([1]), lambda x, a: np.where(x > 0, x, a * x), x)
    check(layers.Activation(layers.ELU()), lambda x: np.where(x > 0, x, np.expm1(x)), x)
    leaky = FUNCTIONS["leaky_relu"][0]
    check(layers.Dense(2, layers.LeakyReLU(0.2)), lambda x, w, b: leaky(x @ w + b), x)


def test_softmax_layer() -> None:
    x, shown = normal(N, F, 5), np.random.default_rng(1).random((N, F, 5)) > 0.3
    check(layers.Softmax(), softmax, x)
    check(layers.Softmax(1), lambda x: softmax(x, 1), x)
    check(layers.Softmax([1, 2]), lambda x: softmax(x, (1, 2)), x)
    check(layers.Softmax(), lambda x: softmax(np.where(shown, x, -1e9)), x, shown)


# -- weights, shapes, pooling --------------------------------------------------------------


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("shape", [(7, 5), (3, 4, 5), (2, 3, 2, 5)])
def test_dense(shape: tuple[int, ...], use_bias: bool) -> None:
    check(layers.Dense(6, "tanh", use_bias), lambda x, w, b=0.0: np.tanh(x @ w + b), normal(*shape))


def test_embedding() -> None:
    ids = np.array([[3, 1, 3, 0], [1, 1, 4, 3]])
    layer = layers.Embedding(6, 3, mask_zero=True)
    layer.ensure_ready(ids)
    step = TrainingStep()
    y, mask, back = layer.train(ids, None, step)
    np.testing.assert_array_equal(mask, ids != 0)
    dy = upstream(y)
    assert back(dy) is None
    rows = step.gradients[layer]["embeddings"]
    assert isinstance(rows, layers.SparseRows)
    np.testing.assert_array_equal(rows.ids, [0, 1, 3, 4])
    table = layer.weights["embeddings"].astype(np.float64)
    assert_gradient(rows.dense(), differences(lambda: float((table[ids] * dy).sum()), table))


def test_sparse_rows_add_up() -> None:
    ids, values = np.array([4, 1, 4, 2, 1, 4]), normal(6, 3)
    found = layers.SparseRows.summed(ids, values, 7)
    order = np.zeros((7, 3), np.float32)
    for i, v in zip(ids, values, strict=True):  # one after the other, as they come
        order[i] += v
    np.testing.assert_array_equal(found.dense(), order)
    both = found + layers.SparseRows.summed(np.array([2, 6]), values[:2], 7)
    np.testing.assert_array_equal(both.ids, [1, 2, 4, 6])
    order[[2, 6]] += values[:2]
    np.testing.assert_array_equal(both.dense(), order)
    empty = layers.SparseRows.summed(ids[:0], values[:0], 7)
    assert empty.ids.size == 0 and not empty.dense().any()


def test_masking() -> None:
    x = normal(N, T, F)
    x[1, 2] = x[3, 4:] = 0.0
    valid = x.any(axis=-1)[..., None]
    check(layers.Masking(), lambda x: np.where(valid, x, 0), x)


def test_shaping() -> None:
    x = normal(N, T, F)
    check(layers.Flatten(), lambda x: x.reshape(N, -1), x)
    check(layers.Reshape((F, -1)), lambda x: x.reshape(N, F, T), x)
    check(layers.Permute((2, 1)), lambda x: x.transpose(0, 2, 1), x)
    check(layers.Permute((3, 1, 2)), lambda x: x.transpose(0, 3, 1, 2), normal(2, 3, 4, 5))
    check(layers.RepeatVector(3), lambda x: np.repeat(x[:, None], 3, axis=1), normal(N, F))
    check(layers.Identity(), lambda x: x, x)
    check(layers.TimeDistributed(layers.Dense(2, "tanh")), lambda x, w, b: np.tanh(x @ w + b), x)
    check(layers.TimeDistributed(layers.Flatten()), lambda x: x.reshape(N, T, -1), normal(N, T, 2, 2))


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("keepdims", [True, False])
def test_pooling(kind: str, keepdims: bool) -> None:
    x, mask = normal(N, T, F), mask_of(kind)
    valid = np.ones((N, T, 1)) if mask is None else mask[..., None].astype(float)

    def mean(x: Array, axis: int = 1) -> Array:
        shown = valid if axis == 1 else valid.swapaxes(1, 2)
        total, count = (x * shown).sum(axis=axis, keepdims=keepdims), shown.sum(axis=axis, keepdims=keepdims)
        return total / np.where(count == 0, np.nan, count)

    if kind != "all":  # a row without valid steps is NaN, and NaN has no differences
        check(layers.GlobalAveragePooling1D(keepdims=keepdims), mean, x, mask)
        first = layers.GlobalAveragePooling1D("channels_first", keepdims)
        check(first, lambda x: mean(x, 2), np.ascontiguousarray(x.swapaxes(1, 2)), mask)
    check(layers.GlobalMaxPooling1D(keepdims=keepdims), lambda x: x.max(axis=1, keepdims=keepdims), x, mask)


def test_pooling_without_valid_steps_has_no_gradient() -> None:
    layer, x, mask = layers.GlobalAveragePooling1D(), normal(N, T, F), mask_of("all")
    y, _, back = layer.train(x, mask, TrainingStep())
    assert np.isnan(y[1]).all()
    dx = back(np.ones_like(y))
    assert not dx[1].any() and np.isfinite(dx).all()


def test_the_maximum_shares_its_gradient() -> None:
    x = np.array([[[1.0], [3.0], [3.0], [0.0]]], np.float32)
    _, _, back = layers.GlobalMaxPooling1D().train(x, None, TrainingStep())
    np.testing.assert_array_equal(back(np.ones((1, 1), np.float32))[0, :, 0], [0, 0.5, 0.5, 0])


# -- merges --------------------------------------------------------------------------------


def pair(seed: int = 0) -> list[Array]:
    return [normal(N, T, F, seed=seed), normal(N, T, F, seed=seed + 1)]


def test_merges() -> None:
    a, b = pair()
    check(layers.Add(), lambda a, b, c: a + b + c, [a, b, normal(N, T, F, seed=5)])
    check(layers.Subtract(), lambda a, b: a - b, [a, b])
    check(layers.Average(), lambda a, b: (a + b) / 2, [a, b])
    check(layers.Multiply(), lambda a, b, c: a * b * c, [a, b, normal(N, T, F, seed=5)])
    check(layers.Maximum(), lambda a, b, c: np.maximum(np.maximum(a, b), c), [a, b, normal(N, T, F, seed=5)])
    check(layers.Minimum(), np.minimum, [a, b])
    check(layers.Concatenate(), lambda a, b: np.concatenate([a, b], -1), [a, normal(N, T, 2)])
    check(layers.Concatenate(1), lambda a, b: np.concatenate([a, b], 1), [a, normal(N, 2, F)])


@pytest.mark.parametrize(
    "layer", [layers.Add(), layers.Multiply(), layers.Maximum(), layers.Average()], ids=Layer.class_name
)
def test_merges_broadcast(layer: Layer) -> None:
    names = {"Add": np.add, "Multiply": np.multiply, "Maximum": np.maximum, "Average": lambda a, b: (a + b) / 2}
    meaning = names[layer.class_name()]
    check(layer, meaning, [normal(N, T, F), normal(N, 1, F, seed=1)])
    check(layer, meaning, [normal(N, T, F), normal(N, T, 1, seed=1)])
    check(layer, lambda a, b: meaning(a, b[:, None]), [normal(N, T, F), normal(N, F, seed=1)])


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("name", ["Multiply", "Maximum", "Minimum", "Add", "Average"])
def test_merges_of_masked_inputs(name: str, both: bool) -> None:
    a, b = pair()
    masks = [mask_of("right"), mask_of("alternating") if both else None]
    ma = masks[0][..., None]
    mb = np.ones((N, T, 1), bool) if masks[1] is None else masks[1][..., None]

    def multiply(a: Array, b: Array) -> Array:
        product = np.where(ma, a, 1) * np.where(mb, b, 1)
        return np.where(ma | mb, product, 0) if both else product

    def choose(function: Callable[..., Array]) -> Callable[..., Array]:
        def one(a: Array, b: Array) -> Array:
            only_a, only_b = ma & ~mb, mb & ~ma
            # both masked: the first stays
            return np.where(only_a | ~(ma | mb), a, np.where(only_b, b, function(a, b)))

        return one

    meanings: dict[str, Callable[..., Array]] = {
        "Multiply": multiply,
        "Maximum": choose(np.maximum),
        "Minimum": choose(np.minimum),
        "Add": np.add,
        "Average": lambda a, b: (a + b) / 2,
    }
    check(getattr(layers, name)(), meanings[name], [a, b], masks)
    old = layers.Dialect((3, 0))
    plain = {"Multiply": np.multiply, "Maximum": np.maximum, "Minimum": np.minimum}
    check(getattr(layers, name)(dialect=old), plain.get(name, meanings[name]), [a, b], masks)


def test_equals_go_to_the_first() -> None:
    a = np.ones((1, 3), np.float32)
    for layer in (layers.Maximum(), layers.Minimum()):
        _, _, back = layer.train([a, a.copy()], None, TrainingStep())
        by_a, by_b = back(a)
        np.testing.assert_array_equal(by_a, a)
        np.testing.assert_array_equal(by_b, 0 * a)


@pytest.mark.parametrize("normalize", [True, False])
def test_dot(normalize: bool) -> None:
    def unit(x: Array, axis: int) -> Array:
        return x / np.sqrt((x * x).sum(axis=axis, keepdims=True)) if normalize else x

    a, b = normal(N, T, F), normal(N, 5, F, seed=1)
    check(layers.Dot(2, normalize), lambda a, b: np.einsum("nik,njk->nij", unit(a, 2), unit(b, 2)), [a, b])
    c = normal(N, T, 2, seed=2)
    check(layers.Dot((1, 1), normalize), lambda a, c: np.einsum("nki,nkj->nij", unit(a, 1), unit(c, 1)), [a, c])
    d = normal(N, F, seed=3)
    check(layers.Dot((2, 1), normalize), lambda a, d: np.einsum("nik,nk->ni", unit(a, 2), unit(d, 1)), [a, d])
    check(layers.Dot((1, 2), normalize), lambda d, a: np.einsum("nk,nik->ni", unit(d, 1), unit(a, 2)), [d, a])
    e = normal(N, F, seed=4)
    check(layers.Dot(1, normalize), lambda d, e: (unit(d, 1) * unit(e, 1)).sum(1, keepdims=True), [d, e])


# -- normalisation -------------------------------------------------------------------------


def test_layer_normalization() -> None:
    x = normal(N, T, F)

    def meaning(x: Array, axes: tuple[int, ...], gamma: Any = 1.0, beta: Any = 0.0, epsilon: float = 1e-3) -> Array:
        mean, var = x.mean(axis=axes, keepdims=True), x.var(axis=axes, keepdims=True)
        return (x - mean) / np.sqrt(var + epsilon) * gamma + beta

    check(layers.LayerNormalization(), lambda x, g, b: meaning(x, (2,), g, b), x)
    check(layers.LayerNormalization([1, 2]), lambda x, g, b: meaning(x, (1, 2), g, b), x)
    check(layers.LayerNormalization(1, 0.1), lambda x, g, b: meaning(x, (1,), g[:, None], b[:, None], 0.1), x)
    check(layers.LayerNormalization(scale=False), lambda x, b: meaning(x, (2,), 1.0, b), x)
    check(layers.LayerNormalization(center=False), lambda x, g: meaning(x, (2,), g), x)
    check(layers.LayerNormalization(center=False, scale=False), lambda x: meaning(x, (2,)), x)

    def scaled(x: Array, gamma: Array) -> Array:
        return x / np.sqrt(x.var(axis=2, keepdims=True) + 1e-3) * gamma

    check(layers.LayerNormalization(rms_scaling=True), scaled, x + 1)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("axis", [-1, 1])
def test_batch_normalization(axis: int, kind: str) -> None:
    x, mask = 2 * normal(N, T, F) + 1, mask_of(kind)
    others = tuple(i for i in range(3) if i != axis % 3)
    w = np.ones((N, T, F)) if mask is None else np.broadcast_to(mask[..., None], (N, T, F)).astype(float)

    def moments(x: Array) -> tuple[Array, Array]:
        count = w.sum(axis=others, keepdims=True) + (0.0 if mask is None else 1e-7)
        mean = (x * w).sum(axis=others, keepdims=True) / count
        return mean, (w * (x - mean) ** 2).sum(axis=others, keepdims=True) / count

    def meaning(x: Array, *learned: Array) -> Array:
        gamma, beta = (v.reshape([-1 if i == axis % 3 else 1 for i in range(3)]) for v in learned[:2])
        mean, var = moments(x)
        return (x - mean) / np.sqrt(var + 0.01) * gamma + beta

    layer = layers.BatchNormalization(axis, momentum=0.9, epsilon=0.01)
    step = check(layer, meaning, x, mask, atol=1e-5)
    for name, batch in zip(("moving_mean", "moving_variance"), moments(x.astype(np.float64)), strict=True):
        expected = 0.9 * layer.weights[name] + 0.1 * batch.reshape(-1)
        np.testing.assert_allclose(step.updates[layer][name], expected, rtol=1e-5)
        assert step.updates[layer][name].dtype == np.float32


def test_batch_normalization_without_scale_or_centre() -> None:
    x = normal(9, F)

    def meaning(x: Array, gamma: Any = 1.0, beta: Any = 0.0) -> Array:
        return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-3) * gamma + beta

    check(layers.BatchNormalization(scale=False), lambda x, b, m, v: meaning(x, 1.0, b), x)
    check(layers.BatchNormalization(center=False), lambda x, g, m, v: meaning(x, g), x)


def test_frozen_batch_normalization_is_that_of_scoring() -> None:
    layer = layers.BatchNormalization(epsilon=0.01)
    layer.trainable = False
    step = check(layer, lambda x, g, b, m, v: (x - m) / np.sqrt(v + 0.01) * g + b, normal(N, T, F))
    assert not step.updates and not step.gradients


def test_two_calls_of_one_batch_normalization_follow_each_other() -> None:
    layer, x = layers.BatchNormalization(momentum=0.5), normal(9, F)
    layer.ensure_ready(x)
    step = TrainingStep()
    for _ in range(2):
        y, _, back = layer.train(x, None, step)
        back(np.ones_like(y))
    np.testing.assert_allclose(step.updates[layer]["moving_mean"], 0.75 * x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(step.gradients[layer]["beta"], np.full(F, 18.0))


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_norms_and_pooling_on_random_shapes_and_masks(data: st.DataObject) -> None:
    rows, steps, width = (data.draw(st.integers(1, top)) for top in (5, 5, 4))
    flat = data.draw(st.lists(st.booleans(), min_size=rows * steps, max_size=rows * steps))
    mask = np.array(flat).reshape(rows, steps)
    x = normal(rows, steps, width, seed=data.draw(st.integers(0, 99)))
    w = mask[..., None].astype(float)

    def batch(x: Array, gamma: Array, beta: Array, *moving: Array) -> Array:
        count = w.sum() + 1e-7
        mean = (x * w).sum((0, 1)) / count
        return (x - mean) / np.sqrt((w * (x - mean) ** 2).sum((0, 1)) / count + 0.05) * gamma + beta

    def layer(x: Array, gamma: Array, beta: Array) -> Array:
        mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) / np.sqrt(var + 0.05) * gamma + beta

    check(layers.BatchNormalization(epsilon=0.05), batch, x, mask, atol=1e-5)
    check(layers.LayerNormalization(epsilon=0.05), layer, x, mask, atol=1e-5)
    if mask.any(axis=1).all():
        check(layers.GlobalAveragePooling1D(), lambda x: (x * w).sum(1) / w.sum(1), x, mask)
    check(layers.Dense(3, "softmax"), lambda x, kernel, bias: softmax(x @ kernel + bias), x, mask)


# -- recurrent -----------------------------------------------------------------------------

KINDS = [{"reset_after": after, "update_gate": gate} for after in (True, False) for gate in ("old", "new")]


def in_convention(w: list[Array], gate: str) -> list[Array]:
    """Weights for the loop in helpers_layers, which knows z as the weight of the old state only."""
    if gate == "old":
        return w
    sign = np.ones(w[1].shape[1])
    sign[: w[1].shape[0]] = -1  # Keras' order: z first
    return [v * sign for v in w]


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("sequences", [False, True])
def test_gru(kind: str, backwards: bool, sequences: bool) -> None:
    variant = (MASKS.index(kind) + backwards + 2 * sequences) % 4
    options, zero, mask = KINDS[variant], variant < 2, mask_of(kind)
    layer = layers.GRU(
        5,
        return_sequences=sequences,
        return_state=True,
        go_backwards=backwards,
        zero_output_for_mask=zero,
        **options,
    )
    cell_kind = {"reset_after": options["reset_after"]}

    def meaning(x: Array, kernel: Array, recurrent: Array, bias: Array, h0: Array) -> list[Array]:
        w = in_convention([kernel, recurrent, bias], options["update_gate"])
        y, states = run(x, [(w, cell_kind)], mask, [h0], backwards, zero)
        return [y if sequences else y[:, -1], *states]

    check(layer, meaning, normal(N, T, F), mask, atol=5e-6, state=[normal(N, 5, seed=9)])


@pytest.mark.parametrize("sequences", [False, True])
@pytest.mark.parametrize("kind", ["none", "middle"])
def test_stacked_cells(kind: str, sequences: bool) -> None:
    mask = mask_of(kind)
    kinds = [{"reset_after": True}, {"reset_after": False}]
    cells = [layers.GRUCell(4), layers.GRUCell(3, reset_after=False)]
    layer = layers.RNN(cells, return_sequences=sequences, return_state=True)

    def meaning(x: Array, *w: Array) -> list[Array]:
        both = [(list(w[:3]), kinds[0]), (list(w[3:6]), kinds[1])]
        y, states = run(x, both, mask, list(w[6:]))
        return [y if sequences else y[:, -1], *states]

    check(layer, meaning, normal(N, T, F), mask, atol=5e-6, state=[normal(N, 4, seed=1), normal(N, 3, seed=2)])


@pytest.mark.parametrize("mode", ["concat", "sum", "mul", "ave", None])
@pytest.mark.parametrize("sequences", [False, True])
def test_bidirectional(mode: str | None, sequences: bool) -> None:
    mask = mask_of("middle")
    layer = layers.Bidirectional(layers.GRU(4, return_sequences=sequences, return_state=True), mode)

    def meaning(x: Array, *w: Array) -> list[Array]:
        kind = {"reset_after": True}
        y, s = run(x, [(list(w[:3]), kind)], mask, [w[6]], False, sequences)
        b, s_back = run(x, [(list(w[3:6]), kind)], mask, [w[7]], True, sequences)
        ends = (y, b[:, ::-1]) if sequences else (y[:, -1], b[:, -1])
        merges = {"concat": np.concatenate(ends, -1), "sum": sum(ends), "mul": ends[0] * ends[1], "ave": sum(ends) / 2}
        return [*(ends if mode is None else [merges[mode]]), *s, *s_back]

    check(layer, meaning, normal(N, T, F), mask, atol=1e-5, state=[normal(N, 4, seed=1), normal(N, 4, seed=2)])


def test_initial_states_in_the_list_of_inputs() -> None:
    """Keras 2 writes [x, state, …]."""

    def meaning(x: Array, h0: Array, *w: Array) -> Array:
        return run(x, [(list(w), {"reset_after": True})], None, [h0])[0][:, -1]

    check(layers.GRU(5), meaning, [normal(N, T, F), normal(N, 5, seed=1)])
    both = layers.Bidirectional(layers.GRU(5))

    def two(x: Array, h: Array, h_back: Array, *w: Array) -> Array:
        y = run(x, [(list(w[:3]), {"reset_after": True})], None, [h])[0][:, -1]
        b = run(x, [(list(w[3:]), {"reset_after": True})], None, [h_back], True)[0][:, -1]
        return np.concatenate([y, b], -1)

    check(both, two, [normal(N, T, F), normal(N, 5, seed=1), normal(N, 5, seed=2)])


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("backwards", [False, True])
def test_leading_masked_steps_give_the_initial_state_in_old_keras(kind: str, backwards: bool) -> None:
    mask = mask_of(kind)
    old = layers.Dialect((2, 2), team=True)
    layer = layers.GRU(5, return_sequences=True, go_backwards=backwards, reset_after=False, dialect=old)

    def meaning(x: Array, *w: Array) -> Array:
        y, _ = run(x, [(list(w[:3]), {"reset_after": False})], mask, [w[3]], backwards)
        if mask is None:
            return y
        ordered = mask[:, ::-1] if backwards else mask
        leading = ~np.logical_or.accumulate(ordered, axis=1)
        return np.where(leading[..., None], w[3][:, None], y)

    check(layer, meaning, normal(N, T, F), mask, atol=5e-6, state=[normal(N, 5, seed=3)])


def test_time_major() -> None:
    mask = mask_of("middle")
    layer = layers.GRU(5, return_sequences=True, time_major=True, go_backwards=True)

    def meaning(x: Array, *w: Array) -> Array:
        return run(x.swapaxes(0, 1), [(list(w), {"reset_after": True})], mask, None, True)[0].swapaxes(0, 1)

    check(layer, meaning, normal(T, N, F), np.ascontiguousarray(mask.T), atol=5e-6)


def test_cudnn_layout() -> None:
    """CuDNNGRU stores every gate in another order; its gradients come in that order too."""
    layer = layers.GRU(5)
    layer.cells[0].cudnn = True
    rng = np.random.default_rng(0)
    layer.set_weights([(0.3 * rng.standard_normal(s)).astype(np.float32) for s in ((F, 15), (5, 15), (30,))])
    x, step = normal(N, T, F), TrainingStep()
    y, _, back = layer.train(x, None, step)
    dy = upstream(y)
    back(dy)
    wide = [v.astype(np.float64) for v in layer.get_weights()]

    def loss() -> float:
        kernel, recurrent = (
            np.concatenate([b.reshape(b.shape[::-1]).T for b in np.split(v, 3, axis=1)], axis=1) for v in wide[:2]
        )
        w = [kernel, recurrent, wide[2].reshape(2, 15)]
        return float((run(x, [(w, {"reset_after": True})])[0][:, -1] * dy).sum())

    for found, w in zip(weight_gradients(layer, step), wide, strict=True):
        assert_gradient(found, differences(loss, w), "cudnn", 5e-6)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_gru_on_random_shapes_and_masks(data: st.DataObject) -> None:
    rows, steps, width, units = (data.draw(st.integers(1, top)) for top in (4, 5, 4, 5))
    flat = data.draw(st.lists(st.booleans(), min_size=rows * steps, max_size=rows * steps))
    mask = np.array(flat).reshape(rows, steps) if data.draw(st.booleans()) else None
    sequences, backwards, zero, after = (data.draw(st.booleans()) for _ in range(4))
    layer = layers.GRU(
        units,
        return_sequences=sequences,
        go_backwards=backwards,
        zero_output_for_mask=zero,
        reset_after=after,
        recurrent_activation=data.draw(st.sampled_from(["sigmoid", "softsign"])),
    )
    kind = {"reset_after": after, "recurrent": layer.cells[0].recurrent_activation}

    def meaning(x: Array, *w: Array) -> Array:
        y = run(x, [(list(w), kind)], mask, None, backwards, zero)[0]
        return y if sequences else y[:, -1]

    check(layer, meaning, normal(rows, steps, width), mask, atol=5e-6)


# -- the checker bites ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "break_it",
    [
        lambda m: m.setitem(slopes.SLOPES, "tanh", lambda dy, x, y, a, b: dy * (1 - y)),
        lambda m: m.setattr("fastgru.layers.cells.gates.to_keras", swapped_gates),
        lambda m: m.setattr("fastgru.ops.column_sums", lambda a, **k: 0 * a.reshape(-1, a.shape[-1]).sum(axis=0)),
        lambda m: m.setattr("fastgru.ops.outer_sum", lambda a, b, **k: real_outer(a, b)[::-1]),
        lambda m: m.setattr("fastgru.layers.normalization._sum_but", lambda x, axes: x.sum(axis=0)[0]),
        lambda m: m.setattr("fastgru.layers.merge.sum_to", lambda g, shape: np.broadcast_to(g.mean(), shape)),
        lambda m: m.setattr("fastgru.layers.pooling.GlobalMaxPooling1D.unpool", lambda s, dy, x, y, m, t: 0 * x + dy),
    ],
    ids=["slope", "gates", "bias", "kernel", "gamma", "broadcast", "maximum"],
)
def test_the_checker_bites(break_it: Callable[[pytest.MonkeyPatch], None]) -> None:
    def everything() -> None:
        check(layers.Dense(4, "tanh"), lambda x, w, b: np.tanh(x @ w + b), normal(5, 3))
        test_gru("right", False, True)
        test_layer_normalization()
        test_merges_broadcast(layers.Add())
        test_pooling("none", False)

    everything()
    with pytest.MonkeyPatch.context() as patch:
        break_it(patch)
        with pytest.raises(AssertionError):
            everything()


def real_outer(a: Array, b: Array) -> Array:
    return np.ascontiguousarray(np.tensordot(a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1]), (0, 0)))


def swapped_gates(found: Any, *, reset_after: bool) -> tuple[Array, ...]:
    bias = np.stack([found.bias_ih, found.bias_hh]) if reset_after else found.bias_ih
    return found.weight_ih.T, found.weight_hh.T, bias
