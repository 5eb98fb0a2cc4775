"""Layers that are not recurrent, against NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers_layers import close, normal

from fastgru import layers
from fastgru.layers import activations

X = normal(4, 6, 3, seed=1)


class TestEmbedding:
    TABLE = normal(7, 2, seed=3)

    def layer(self, **arguments: Any) -> layers.Embedding:
        layer = layers.Embedding(7, 2, **arguments)
        layer.set_weights([self.TABLE])
        return layer

    @pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8, np.float32])
    def test_rows(self, dtype: Any) -> None:
        ids = np.array([[0, 3], [6, 1]], dtype)
        np.testing.assert_array_equal(self.layer()(ids), self.TABLE[ids.astype(int)])

    @pytest.mark.parametrize(("bad", "found"), [(-1, "-1"), (7, "7"), (10**12, "1000000000000")])
    def test_ids_out_of_range(self, bad: int, found: str) -> None:
        with pytest.raises(ValueError, match=rf"expected ids in 0 … 6, found {found}$"):
            self.layer()(np.array([[0, bad]]))

    def test_not_ids(self) -> None:
        with pytest.raises(ValueError, match="ids contain NaN"):
            self.layer()(np.array([[np.nan]]))
        with pytest.raises(TypeError, match="expected integer ids, found <U1"):
            self.layer()(np.array([["a"]]))

    def test_mask(self) -> None:
        ids = np.array([[0, 3], [6, 0]])
        assert self.layer().forward(ids, None, None)[1] is None
        np.testing.assert_array_equal(self.layer(mask_zero=True).forward(ids, None, None)[1], ids != 0)

    def test_table_of_another_shape(self) -> None:
        with pytest.raises(ValueError, match=r"embeddings: expected shape \(7, 2\), found \(2, 7\)"):
            layers.Embedding(7, 2).set_weights([self.TABLE.T])


def test_masking_keeps_nan_and_zeroes_the_rest() -> None:
    x = np.array([[[1, 1], [1, 2], [np.nan, 1]]], np.float32)
    y, mask = layers.Masking(1.0).forward(x, None, None)
    np.testing.assert_array_equal(mask, [[False, True, True]])
    np.testing.assert_array_equal(y, [[[0, 0], [1, 2], [np.nan, 1]]])


class TestDense:
    def test_values(self) -> None:
        kernel, bias = normal(3, 5, seed=2), normal(5, seed=3)
        layer = layers.Dense(5, activation="tanh")
        layer.set_weights([kernel, bias])
        close(layer(X), np.tanh(X.astype(float) @ kernel + bias))
        close(layer(X[0, 0][None]), np.tanh(X[0, :1].astype(float) @ kernel + bias))
        bare = layers.Dense(5, use_bias=False)
        bare.set_weights([kernel])
        close(bare(X.astype(np.float64)), X.astype(float) @ kernel)

    def test_an_activation_layer(self) -> None:
        layer = layers.Dense(5, activation=layers.LeakyReLU(0.2))
        layer.set_weights([normal(3, 5), np.zeros(5, np.float32)])
        y = X.astype(float) @ normal(3, 5)
        close(layer(X), np.where(y > 0, y, 0.2 * y))

    def test_width(self) -> None:
        layer = layers.Dense(5)
        layer(X)
        with pytest.raises(ValueError, match=r"expected inputs of width 3, found \(4, 6, 2\)"):
            layer(X[..., :2])


def test_time_distributed() -> None:
    inner = layers.Dense(2)
    layer = layers.TimeDistributed(inner)
    y = layer(X)
    for t in range(6):
        np.testing.assert_array_equal(y[:, t], inner(X[:, t]))
    with pytest.raises(ValueError, match=r"expected \(N, T, …\), found \(4, 6\)"):
        layer(X[..., 0])


class TestNormalization:
    @pytest.mark.parametrize("axis", [-1, 1, 2])
    @pytest.mark.parametrize("scale", [True, False])
    def test_batch(self, axis: int, scale: bool) -> None:
        size = X.shape[axis]
        gamma, beta, mean, variance = (np.abs(normal(size, seed=s)) + 0.1 for s in range(4))
        layer = layers.BatchNormalization(axis, epsilon=0.01, scale=scale)
        layer.set_weights([gamma, beta, mean, variance] if scale else [beta, mean, variance])
        shape = [1] * 3
        shape[axis] = -1
        m, v, b = (a.reshape(shape) for a in (mean, variance, beta))
        g = gamma.reshape(shape) if scale else 1
        close(layer(X), (X.astype(float) - m) / np.sqrt(v + 0.01) * g + b)

    def test_batch_width(self) -> None:
        layer = layers.BatchNormalization()
        layer(X)
        with pytest.raises(ValueError, match=r"expected 3 features on axis -1, found \(4, 6, 2\)"):
            layer(X[..., :2])

    @pytest.mark.parametrize("axis", [-1, [1, 2]])
    def test_layer(self, axis: Any) -> None:
        axes = (2,) if axis == -1 else (1, 2)
        shape = tuple(X.shape[a] for a in axes)
        gamma, beta = normal(*shape, seed=1), normal(*shape, seed=2)
        layer = layers.LayerNormalization(axis, epsilon=0.01)
        layer.set_weights([gamma, beta])
        x = X.astype(float)
        mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
        close(layer(X), (x - mean) / np.sqrt(var + 0.01) * gamma + beta)

    def test_rms(self) -> None:
        """Keras divides by the standard deviation there, without subtracting the mean."""
        layer = layers.LayerNormalization(rms_scaling=True, epsilon=0.01)
        layer.set_weights([np.full(3, 2.0)])
        x = X.astype(float)
        close(layer(X), 2 * x / np.sqrt(x.var(-1, keepdims=True) + 0.01))


class TestPooling:
    MASK = np.arange(6) < np.array([[6], [2], [1], [0]])

    def test_average(self) -> None:
        close(layers.GlobalAveragePooling1D()(X), X.mean(1))
        found = layers.GlobalAveragePooling1D(keepdims=True)(X, self.MASK)
        expected = [X[i, : max(n, 1)].mean(0) for i, n in enumerate((6, 2, 1))]
        close(found[:3, 0], expected)
        assert np.isnan(found[3]).all()

    def test_max_ignores_the_mask(self) -> None:
        np.testing.assert_array_equal(layers.GlobalMaxPooling1D()(X, self.MASK), X.max(1))
        np.testing.assert_array_equal(layers.GlobalMaxPooling1D("channels_first")(X), X.max(2))


class TestShaping:
    def test_values(self) -> None:
        np.testing.assert_array_equal(layers.Flatten()(X), X.reshape(4, 18))
        np.testing.assert_array_equal(layers.Reshape((2, -1))(X), X.reshape(4, 2, 9))
        np.testing.assert_array_equal(layers.Permute((2, 1))(X), X.transpose(0, 2, 1))
        np.testing.assert_array_equal(layers.RepeatVector(3)(X[:, 0]), np.repeat(X[:, :1], 3, 1))

    def test_no_rows(self) -> None:
        assert layers.Flatten()(X[:0]).shape == (0, 18)
        assert layers.Reshape((2, -1))(X[:0]).shape == (0, 2, 9)

    def test_errors(self) -> None:
        with pytest.raises(ValueError, match=r"expected inputs that fit \(4, 5\), found \(4, 6, 3\)"):
            layers.Reshape((4, 5))(X)
        with pytest.raises(ValueError, match=r"a permutation of 1 … 2, found \(0, 1\)"):
            layers.Permute((0, 1))
        with pytest.raises(ValueError, match=r"expected 3 axes, found \(4, 6\)"):
            layers.Permute((2, 1))(X[..., 0])
        with pytest.raises(ValueError, match=r"expected \(N, I\), found \(4, 6, 3\)"):
            layers.RepeatVector(2)(X)


class TestActivations:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("linear", lambda v: v),
            ("relu", lambda v: np.maximum(v, 0)),
            ("relu6", lambda v: np.clip(v, 0, 6)),
            ("sigmoid", lambda v: 1 / (1 + np.exp(-v))),
            ("exponential", np.exp),
            ("silu", lambda v: v / (1 + np.exp(-v))),
            ("softmax", lambda v: np.exp(v) / np.exp(v).sum(-1, keepdims=True)),
            ("log_softmax", lambda v: v - np.log(np.exp(v).sum(-1, keepdims=True))),
            ("softplus", lambda v: np.log1p(np.exp(v))),
            ("mish", lambda v: v * np.tanh(np.log1p(np.exp(v)))),
            ("hard_silu", lambda v: v * np.clip(v / 6 + 0.5, 0, 1)),
            ("log_sigmoid", lambda v: -np.log1p(np.exp(-v))),
            ("hard_sigmoid", lambda v: np.clip(v / 6 + 0.5, 0, 1)),
            ("leaky_relu", lambda v: np.where(v > 0, v, 0.2 * v)),
            (("elu", 0.5, 0.0), lambda v: np.where(v > 0, v, 0.5 * np.expm1(v))),
        ],
    )
    def test_by_name(self, name: Any, expected: Any) -> None:
        close(layers.Activation(name)(3 * X), expected(3 * X.astype(float)), atol=1e-5)

    def test_layers(self) -> None:
        x = X.astype(float)
        close(layers.ReLU(0.8, 0.1, 0.2)(X), np.minimum(np.where(x >= 0.2, x, 0.1 * (x - 0.2)), 0.8))
        close(layers.LeakyReLU()(X), np.where(x > 0, x, 0.3 * x))
        close(layers.LeakyReLU(alpha=0.1)(X), np.where(x > 0, x, 0.1 * x))
        close(layers.ThresholdedReLU(0.5)(X), np.where(x > 0.5, x, 0))
        close(layers.ELU(0.7)(X), np.where(x > 0, x, 0.7 * np.expm1(x)))
        alpha = normal(6, 3, seed=5)
        prelu = layers.PReLU()
        prelu.set_weights([alpha])
        close(prelu(X), np.where(x > 0, x, alpha * x))
        close(layers.Softmax(1)(X), np.exp(x) / np.exp(x).sum(1, keepdims=True))

    def test_softmax_takes_a_mask(self) -> None:
        mask = np.array([[True, True, False]] * 4)
        y = layers.Softmax()(X[:, 0], mask)
        assert not y[:, 2].any()
        close(y.sum(-1), np.ones(4))
        with pytest.raises(ValueError, match=r"a mask that fits the input \(4, 3\), found \(4, 2\)"):
            layers.Softmax()(X[:, 0], mask[:, :2])

    def test_unknown(self) -> None:
        with pytest.raises(ValueError, match=r"unknown activation 'nope'; supported are affine, celu"):
            layers.Activation("nope")
        assert activations.function("linear", layers.Dialect(), "") is None


class TestMerges:
    A, B = normal(4, 6, 3, seed=7), normal(4, 6, 3, seed=8)

    def test_values(self) -> None:
        a, b = self.A.astype(float), self.B.astype(float)
        pair = [self.A, self.B]
        close(layers.Add()([*pair, self.A]), a + b + a)
        close(layers.Subtract()(pair), a - b)
        close(layers.Multiply()(pair), a * b)
        close(layers.Average()(pair), (a + b) / 2)
        close(layers.Maximum()(pair), np.maximum(a, b))
        close(layers.Minimum()(pair), np.minimum(a, b))
        close(layers.Concatenate()(pair), np.concatenate([a, b], -1))
        close(layers.Concatenate(1)(pair), np.concatenate([a, b], 1))

    def test_lower_ranks_get_axes_after_the_batch(self) -> None:
        close(layers.Add()([self.A, self.B[:, 0]]), self.A + self.B[:, :1])

    @pytest.mark.parametrize(
        ("axes", "equation"),
        [(2, "nik,njk->nij"), (1, "nki,nkj->nij"), ((2, -1), "nik,njk->nij"), ((1, 1), "nki,nkj->nij")],
    )
    def test_dot(self, axes: Any, equation: str) -> None:
        a, b = self.A.astype(float), self.B.astype(float)
        close(layers.Dot(axes)([self.A, self.B]), np.einsum(equation, a, b), atol=1e-5)

    def test_dot_of_vectors(self) -> None:
        a, b = self.A[:, 0].astype(float), self.B[:, 0].astype(float)
        close(layers.Dot(1)([self.A[:, 0], self.B[:, 0]]), (a * b).sum(1, keepdims=True))
        lengths = np.sqrt((a**2).sum(1) * (b**2).sum(1))
        cosine = ((a * b).sum(1) / lengths)[:, None]
        close(layers.Dot(1, normalize=True)([self.A[:, 0], self.B[:, 0]]), cosine)
        close(layers.Dot((2, 1))([self.A, self.B[:, 0]]), np.einsum("ntk,nk->nt", self.A.astype(float), b))

    def test_errors(self) -> None:
        with pytest.raises(ValueError, match=r"\(Add\): expected inputs of one shape, found"):
            layers.Add()([self.A, self.B[:, :4]])
        with pytest.raises(ValueError, match=r"\(Concatenate\): expected inputs that agree but for axis -1"):
            layers.Concatenate()([self.A, self.B[:, :4]])
        with pytest.raises(ValueError, match=r"\(Subtract\): expected 2 inputs, found 1"):
            layers.Subtract()([self.A])
        with pytest.raises(ValueError, match=r"\(Add\): expected a list of inputs, found ndarray"):
            layers.Add()(self.A)
        with pytest.raises(ValueError, match=r"\(Dot\): axes 1 of inputs .* differ in size"):
            layers.Dot(1)([self.A, self.B[:, :4]])
        with pytest.raises(ValueError, match=r"\(Dot\): axes: expected axes after the batch"):
            layers.Dot(0)([self.A, self.B])


def test_dropout_and_its_kin_do_nothing() -> None:
    mask = np.ones((4, 6), bool)
    y, shown = layers.Dropout(0.5).forward(X, mask, None)
    assert y is X and shown is mask


@pytest.mark.parametrize("units", [0, -1, 8.5, "8", None, True, float("nan"), float("inf"), 2**70], ids=str)
@pytest.mark.parametrize("kind", [layers.GRU, layers.GRUCell, layers.Dense], ids=lambda kind: kind.__name__)
def test_units_that_are_none(kind: Any, units: Any) -> None:
    with pytest.raises(ValueError, match=r"^units: expected a whole number of at least 1, found "):
        kind(units)


def test_units_as_numbers_of_others() -> None:
    assert layers.GRU(np.int32(3)).units == layers.Dense(3.0).units == 3
