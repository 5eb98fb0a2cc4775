"""How masks travel through layers and merges, by the version of the file, and what padding means."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers_layers import normal, weights

from fastgru import layers
from fastgru.layers import Dialect
from fastgru.models import Sequential

X = normal(3, 5, 4, seed=1)
MASK = np.arange(5) < np.array([[5], [3], [0]])
OTHER = np.arange(5) >= np.array([[1], [2], [4]])
OLD, NEW = Dialect((3, 3)), Dialect((3, 4))


@pytest.mark.parametrize(
    "layer",
    [
        layers.Dropout(0.1),
        layers.Dense(2),
        layers.Activation("tanh"),
        layers.BatchNormalization(),
        layers.LayerNormalization(),
        layers.TimeDistributed(layers.Dense(2)),
        layers.LeakyReLU(),
        layers.ReLU(),
        layers.ELU(),
        layers.PReLU(),
        layers.GRU(2, return_sequences=True),
        layers.Bidirectional(layers.GRU(2, return_sequences=True)),
        Sequential([layers.Dense(2)]),
    ],
    ids=lambda v: v.class_name(),
)
def test_passes(layer: Any) -> None:
    layer.ensure_ready(X)
    np.testing.assert_array_equal(layer.forward(X, MASK, None)[1], MASK)


@pytest.mark.parametrize(
    "layer",
    [
        layers.Flatten(),
        layers.Reshape((4, 5)),
        layers.Permute((2, 1)),
        layers.GlobalAveragePooling1D(),
        layers.GlobalMaxPooling1D(),
        layers.GRU(2),
        layers.Bidirectional(layers.GRU(2)),
    ],
    ids=lambda v: v.class_name(),
)
def test_drops(layer: Any) -> None:
    layer.ensure_ready(X)
    assert layer.forward(X, MASK, None)[1] is None


def test_backwards_emits_its_mask_unreversed() -> None:
    layer = layers.GRU(2, return_sequences=True, go_backwards=True)
    layer.ensure_ready(X)
    np.testing.assert_array_equal(layer.forward(X, MASK, None)[1], MASK)


def test_several_outputs_have_a_mask_each() -> None:
    layer = layers.GRU(2, return_sequences=True, return_state=True)
    layer.ensure_ready(X)
    masks = layer.forward(X, MASK, None)[1]
    assert masks[0] is MASK and masks[1] is None
    both = layers.Bidirectional(layers.GRU(2, return_sequences=True), None)
    both.ensure_ready(X)
    assert both.forward(X, MASK, None)[1] == [MASK, MASK]


def test_a_later_masking_replaces_the_mask() -> None:
    np.testing.assert_array_equal(layers.Masking().forward(X, MASK, None)[1], np.ones((3, 5), bool))


def merged(layer: Any, *masks: Any) -> Any:
    return layer.forward([X, X + 1], list(masks), None)


@pytest.mark.parametrize("kind", [layers.Add, layers.Multiply, layers.Maximum, layers.Average])
def test_merges_before_3_4_and_those_that_exist(kind: Any) -> None:
    layer = kind(dialect=OLD)
    np.testing.assert_array_equal(merged(layer, MASK, OTHER)[1], MASK & OTHER)
    np.testing.assert_array_equal(merged(layer, MASK, None)[1], MASK)
    assert merged(layer, None, None)[1] is None


@pytest.mark.parametrize("kind", [layers.Add, layers.Multiply, layers.Maximum, layers.Average])
def test_merges_from_3_4_or_them_and_none_wins(kind: Any) -> None:
    layer = kind(dialect=NEW)
    np.testing.assert_array_equal(merged(layer, MASK, OTHER)[1], MASK | OTHER)
    assert merged(layer, MASK, None)[1] is None


def test_concatenate() -> None:
    for dialect, both in ((OLD, MASK & OTHER), (NEW, MASK | OTHER)):
        features, time = layers.Concatenate(dialect=dialect), layers.Concatenate(1, dialect=dialect)
        np.testing.assert_array_equal(merged(features, MASK, OTHER)[1], both)
        np.testing.assert_array_equal(merged(time, MASK, OTHER)[1], np.concatenate([MASK, OTHER], 1))
    np.testing.assert_array_equal(merged(layers.Concatenate(dialect=OLD), MASK, None)[1], MASK)
    assert merged(layers.Concatenate(dialect=NEW), MASK, None)[1].all()


def test_new_merges_replace_masked_operands() -> None:
    m, o = MASK[..., None], OTHER[..., None]
    product, _ = merged(layers.Multiply(dialect=NEW), MASK, OTHER)
    expected = np.where(m, X, 1) * np.where(o, X + 1, 1) * (m | o)
    np.testing.assert_array_equal(product, expected.astype(np.float32))
    largest, _ = merged(layers.Maximum(dialect=NEW), MASK, None)
    np.testing.assert_array_equal(largest, np.maximum(np.where(m, X, X + 1), X + 1))
    old, _ = merged(layers.Multiply(dialect=OLD), MASK, OTHER)
    np.testing.assert_array_equal(old, X * (X + 1))


def test_dot_drops_masks() -> None:
    assert merged(layers.Dot(2), MASK, OTHER)[1] is None


class TestPadding:
    def model(self, **arguments: Any) -> Sequential:
        gru = layers.GRU(5, return_sequences=True, **arguments)
        gru.set_weights(weights(5, 4))
        last = layers.GRU(5)
        last.set_weights(weights(5, 5, seed=2))
        return Sequential([gru, last])

    def test_lengths_are_the_mask_of_right_padding(self) -> None:
        model = self.model()
        found = model.predict(X, lengths=[5, 3, 0])
        np.testing.assert_array_equal(found, model.predict(X, mask=MASK))
        garbage = np.where(MASK[..., None], X, np.nan).astype(np.float32)
        np.testing.assert_array_equal(found, model.predict(garbage, lengths=[5, 3, 0]))

    def test_padding_is_as_if_it_were_not_there(self) -> None:
        model = self.model()
        np.testing.assert_array_equal(model.predict(X, lengths=[3, 3, 3]), model.predict(X[:, :3]))
        middle = np.array([[True, False, True, True, False]] * 3)
        np.testing.assert_array_equal(model.predict(X, mask=middle), model.predict(X[:, [0, 2, 3]]))

    def test_embedding_without_mask_zero_keeps_given_lengths(self) -> None:
        model = Sequential([layers.Embedding(9, 4), layers.GRU(3)])
        ids = np.random.default_rng(0).integers(0, 9, (3, 5))
        np.testing.assert_array_equal(model.predict(ids, lengths=[2, 2, 2]), model.predict(ids[:, :2]))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"lengths": [5, 3]}, r"lengths: expected \(3,\), found \(2,\)"),
            ({"lengths": [5, 3, 6]}, r"lengths: expected 0 … 5, found 3 … 6"),
            ({"lengths": [5, 3, -1]}, r"lengths: expected 0 … 5, found -1 … 5"),
            ({"lengths": [5, 3, np.nan]}, "lengths: expected whole numbers"),
            ({"mask": np.ones((3, 4), bool)}, r"mask: expected \(3, 5\), found \(3, 4\)"),
            ({"mask": MASK, "lengths": [5, 3, 0]}, "at most one of lengths and mask"),
        ],
    )
    def test_bad(self, arguments: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            self.model().predict(X, **arguments)
