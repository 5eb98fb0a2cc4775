"""Losses: Keras' values and gradients live, the equations by differences, and labels that don't fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers_parity import framework

from fastgru.layers import LogitGradient
from fastgru.training import losses

RNG = np.random.default_rng(7)
#: name: our loss, Keras' class, its arguments, how labels are drawn for predictions of a shape
CASES: dict[str, tuple[losses.Loss, str, dict[str, Any], str]] = {
    "sparse": (losses.SparseCategoricalCrossentropy(), "SparseCategoricalCrossentropy", {}, "classes"),
    "sparse logits": (
        losses.SparseCategoricalCrossentropy(from_logits=True),
        "SparseCategoricalCrossentropy",
        {"from_logits": True},
        "classes",
    ),
    "sparse ignoring": (
        losses.SparseCategoricalCrossentropy(ignore_class=2),
        "SparseCategoricalCrossentropy",
        {"ignore_class": 2},
        "classes",
    ),
    "categorical": (losses.CategoricalCrossentropy(), "CategoricalCrossentropy", {}, "shares"),
    "categorical smooth": (
        losses.CategoricalCrossentropy(label_smoothing=0.2),
        "CategoricalCrossentropy",
        {"label_smoothing": 0.2},
        "shares",
    ),
    "categorical logits": (
        losses.CategoricalCrossentropy(from_logits=True),
        "CategoricalCrossentropy",
        {"from_logits": True},
        "shares",
    ),
    "binary": (losses.BinaryCrossentropy(), "BinaryCrossentropy", {}, "bits"),
    "binary smooth": (
        losses.BinaryCrossentropy(label_smoothing=0.1),
        "BinaryCrossentropy",
        {"label_smoothing": 0.1},
        "bits",
    ),
    "binary logits": (
        losses.BinaryCrossentropy(from_logits=True),
        "BinaryCrossentropy",
        {"from_logits": True},
        "bits",
    ),
    "mse": (losses.MeanSquaredError(), "MeanSquaredError", {}, "numbers"),
    "mae": (losses.MeanAbsoluteError(), "MeanAbsoluteError", {}, "numbers"),
    "huber": (losses.Huber(delta=0.7), "Huber", {"delta": 0.7}, "numbers"),
    "mse sum": (losses.MeanSquaredError(reduction="sum"), "MeanSquaredError", {"reduction": "sum"}, "numbers"),
}


def softmax(x: Any) -> Any:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def drawn(kind: str, loss: losses.Loss, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Labels and predictions."""
    x = RNG.normal(size=shape).astype(np.float32)
    logits = getattr(loss, "from_logits", True)
    if kind == "classes":
        return RNG.integers(0, shape[-1], shape[:-1]), x if logits else softmax(x)
    if kind == "shares":
        return softmax(RNG.normal(size=shape)).astype(np.float32), x if logits else softmax(x)
    if kind == "bits":
        return RNG.integers(0, 2, shape).astype(np.float32), x if logits else 1 / (1 + np.exp(-x))
    return RNG.normal(size=shape).astype(np.float32), x


@pytest.mark.parity("keras")
@pytest.mark.parametrize("weighted", ["plain", "weights", "mask", "both"])
@pytest.mark.parametrize("shape", [(7, 5), (4, 6, 3), (5, 1)], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_of_keras(case: str, shape: tuple[int, ...], weighted: str) -> None:
    keras = framework("keras")
    tf = framework("tensorflow")
    loss, name, options, kind = CASES[case]
    if shape[-1] == 1 and kind in ("classes", "shares"):
        shape = (5, 4)
    y_true, y_pred = drawn(kind, loss, shape)
    weights = RNG.uniform(0, 2, shape[:1]).astype(np.float32) if weighted in ("weights", "both") else None
    mask = RNG.random(shape[:-1]) < 0.7 if weighted in ("mask", "both") else None
    if mask is not None:
        mask[0] = True
    given = tf.Variable(y_pred)
    theirs = getattr(keras.losses, name)(**options)
    with tf.GradientTape() as tape:
        labels = tf.constant(y_true)
        if mask is not None:  # as a layer's output carries it
            keras.src.backend.set_keras_mask(predicted := tf.identity(given), tf.constant(mask))
        else:
            predicted = tf.identity(given)
        wide = weights
        if weights is not None and len(shape) == 3:  # Keras spreads (N,) over (N, T) only with an axis more
            wide = weights[:, None]
        wanted = theirs(labels, predicted, sample_weight=wide)
    gradient = tape.gradient(wanted, given).numpy()
    value, found = loss.value_and_gradient(y_true, y_pred, weights, mask)
    assert not isinstance(found, LogitGradient)
    assert value == pytest.approx(float(wanted), rel=2e-6, abs=1e-6)
    np.testing.assert_allclose(found, gradient, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_the_values(case: str) -> None:
    loss, _, _, kind = CASES[case]
    y_true, y_pred = drawn(kind, loss, (3, 4))
    weights = np.array([0.5, 1.0, 2.0])
    _, gradient = loss.value_and_gradient(y_true, y_pred, weights)
    step = np.float32(2e-3)
    for place in np.ndindex(y_pred.shape):
        up, down = y_pred.copy(), y_pred.copy()
        up[place] += step
        down[place] -= step
        difference = (loss(y_true, up, weights) - loss(y_true, down, weights)) / (2 * float(step))
        assert np.asarray(gradient)[place] == pytest.approx(difference, rel=0.05, abs=0.02)


@pytest.mark.parametrize(
    ("loss", "activation", "kind"),
    [
        (losses.SparseCategoricalCrossentropy(), softmax, "classes"),
        (losses.CategoricalCrossentropy(label_smoothing=0.1), softmax, "shares"),
        (losses.BinaryCrossentropy(), lambda x: 1 / (1 + np.exp(-x)), "bits"),
    ],
    ids=["sparse", "categorical", "binary"],
)
def test_logits_are_preferred_where_they_are_known(
    loss: losses.Loss, activation: Callable[[Any], Any], kind: str
) -> None:
    """Through the probabilities nothing comes back once these are 0 or 1."""
    x = np.array([[60.0, -60.0, 0.0], [-80.0, 80.0, 1.0]], np.float32)
    y_true = {"classes": np.array([1, 0]), "shares": np.eye(3, dtype=np.float32)[[1, 0]]}.get(
        kind, np.array([[0, 1, 1], [1, 0, 0]], np.float32)
    )
    value, gradient = loss.value_and_gradient(y_true, activation(x).astype(np.float32), logits=x)
    assert isinstance(gradient, LogitGradient)
    assert value > 30 / 3
    assert np.abs(gradient.dx).max() > 0.1


def test_a_mask_leaves_out_and_the_mean_is_over_the_rest() -> None:
    y_true, y_pred = np.zeros((2, 3, 1)), np.arange(6, dtype=np.float32).reshape(2, 3, 1)
    mask = np.array([[True, False, False], [True, True, False]])
    value, gradient = losses.MeanSquaredError().value_and_gradient(y_true, y_pred, mask=mask)
    assert value == pytest.approx((0 + 9 + 16) / 3)
    assert not np.asarray(gradient)[~mask].any()


def test_names() -> None:
    for name in ("mse", "MSE", "mean_squared_error", "MeanSquaredError"):
        assert isinstance(losses.get(name), losses.MeanSquaredError)
    with pytest.raises(ValueError, match="did you mean 'sparse_categorical_crossentropy'"):
        losses.get("sparse_categorical_crosentropy")
    with pytest.raises(TypeError, match="loss: expected a name"):
        losses.get(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("loss", "y_true", "message"),
    [
        ("sparse_categorical_crossentropy", [0, 3], r"expected classes 0 … 2.*found 3 at \[1\]"),
        ("sparse_categorical_crossentropy", [0, -1], r"expected classes 0 … 2.*found -1 at \[1\]"),
        ("sparse_categorical_crossentropy", [0, 0.5], r"whole numbers, found 0.5 at \[1\]"),
        ("sparse_categorical_crossentropy", [0, np.nan], r"whole numbers, found nan"),
        ("sparse_categorical_crossentropy", [0], r"one class for each.*found \(1,\)"),
        ("sparse_categorical_crossentropy", np.eye(3)[:2], r"one class for each.*found \(2, 3\)"),
        ("categorical_crossentropy", [0, 1], r"sparse_categorical_crossentropy.*found \(2,\)"),
        ("binary_crossentropy", np.full((2, 3), 2), r"labels from 0 to 1, found 2.0 at \[0, 0\], 6 such"),
        ("mse", np.full((2, 3), np.nan), r"expected numbers, found nan"),
        ("mse", np.zeros((2, 4)), r"shape \(2, 3\), found \(2, 4\)"),
        ("mse", np.array([["a"] * 3] * 2), "expected numbers, found dtype"),
    ],
)
def test_labels_that_do_not_fit(loss: str, y_true: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        losses.get(loss)(y_true, np.full((2, 3), 1 / 3, np.float32))


def test_weights_that_do_not_fit() -> None:
    y = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"sample_weight: expected one number for each of the values \(2,\)"):
        losses.get("mse")(y, y, sample_weight=np.ones(3))
    with pytest.raises(ValueError, match="sample_weight: expected finite"):
        losses.get("mse")(y, y, sample_weight=[1, np.inf])


def test_no_rows() -> None:
    value, gradient = losses.get("mse").value_and_gradient(np.zeros((0, 3)), np.zeros((0, 3), np.float32))
    assert value == 0
    assert np.asarray(gradient).shape == (0, 3)
