"""Metrics: scikit-learn's numbers, Keras' own, batch by batch, with weights and masks; and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers_parity import framework

from fastgru import Sequential, layers
from fastgru.training import metrics

ROWS, CLASSES = 300, 4


def binary(seed: int = 0) -> tuple[Any, Any, Any]:
    """Labels, predictions that know something of them, and weights; predictions lie between AUC's thresholds."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, ROWS)
    places = np.clip(rng.normal(90 + 30 * y, 40), 0, 198).astype(np.int64)
    return y, ((places + 0.5) / 199).astype(np.float32), rng.uniform(0, 2, ROWS).astype(np.float32)


def several(seed: int = 1) -> tuple[Any, Any, Any]:
    """Classes, of which 2 is rare, their probabilities, and weights."""
    rng = np.random.default_rng(seed)
    y = rng.choice(CLASSES, ROWS, p=[0.4, 0.3, 0.05, 0.25])
    x = rng.normal(size=(ROWS, CLASSES)) + 1.5 * np.eye(CLASSES)[y]
    powers = np.exp(x)
    probabilities = (powers / powers.sum(-1, keepdims=True)).astype(np.float32)
    return y, probabilities, rng.uniform(0, 2, ROWS).astype(np.float32)


def measured(metric: metrics.Metric, y: Any, p: Any, weights: Any = None, parts: int = 3) -> Any:
    """The result over some batches."""
    metric.reset_state()
    for rows in np.array_split(np.arange(len(y)), parts):
        metric.update_state(y[rows], p[rows], None if weights is None else weights[rows])
    return metric.result()


@pytest.mark.parity("sklearn")
@pytest.mark.parametrize("weighted", [False, True])
def test_binary_metrics_of_scikit_learn(weighted: bool) -> None:
    sklearn, (y, p, w) = framework("sklearn.metrics"), binary()
    weights = w if weighted else None
    for threshold in (0.3, 0.5):
        options = {"sample_weight": weights, "zero_division": 0}
        right = {
            metrics.Precision(threshold): sklearn.precision_score(y, p > threshold, **options),
            metrics.Recall(threshold): sklearn.recall_score(y, p > threshold, **options),
            metrics.F1Score("macro", threshold): sklearn.f1_score(y, p > threshold, **options),
        }
        for metric, value in right.items():
            for labels, predictions in ((y, p), (y, p[:, None]), (y[:, None], p[:, None])):
                assert measured(metric, labels, predictions, weights) == pytest.approx(value, rel=1e-6)


@pytest.mark.parity("sklearn")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("average", ["micro", "macro", "weighted", None])
@pytest.mark.parametrize("sparse", [False, True])
def test_f1_of_scikit_learn(average: str | None, weighted: bool, sparse: bool) -> None:
    sklearn, (y, p, w) = framework("sklearn.metrics"), several()
    weights = w if weighted else None
    right = sklearn.f1_score(y, p.argmax(-1), average=average, sample_weight=weights, labels=range(CLASSES))
    found = measured(metrics.F1Score(average), y if sparse else np.eye(CLASSES)[y], p, weights)
    np.testing.assert_allclose(found, right, rtol=1e-6)


@pytest.mark.parity("sklearn")
@pytest.mark.parametrize("class_id", range(CLASSES))
def test_one_class_of_scikit_learn(class_id: int) -> None:
    sklearn, (y, p, w) = framework("sklearn.metrics"), several()
    chosen = p.argmax(-1) == class_id
    for kind, score in ((metrics.Precision, sklearn.precision_score), (metrics.Recall, sklearn.recall_score)):
        right = score(y == class_id, chosen, sample_weight=w)
        assert measured(kind(top_k=1, class_id=class_id), y, p, w) == pytest.approx(right, rel=1e-6)


@pytest.mark.parity("sklearn")
@pytest.mark.parametrize("weighted", [False, True])
def test_areas_of_scikit_learn(weighted: bool) -> None:
    """Where predictions lie between thresholds the trapezes are exact, and the bounds hold the average precision."""
    sklearn, (y, p, w) = framework("sklearn.metrics"), binary()
    weights = w if weighted else None
    right = sklearn.roc_auc_score(y, p, sample_weight=weights)
    assert measured(metrics.AUC(), y, p, weights) == pytest.approx(right, rel=1e-6)
    right = sklearn.average_precision_score(y, p, sample_weight=weights)
    low, found, high = (
        measured(metrics.AUC(curve="PR", summation_method=how), y, p, weights)
        for how in ("minoring", "interpolation", "majoring")
    )
    assert low <= right <= high
    assert found == pytest.approx(right, abs=high - low)


@pytest.mark.parity("sklearn")
def test_the_area_of_any_predictions_lies_between_the_bounds() -> None:
    sklearn, (y, _, _) = framework("sklearn.metrics"), binary()
    p = np.random.default_rng(5).beta(0.3, 0.3 + y).astype(np.float32)
    right = sklearn.roc_auc_score(y, p)
    low, found, high = (
        measured(metrics.AUC(summation_method=how), y, p) for how in ("minoring", "interpolation", "majoring")
    )
    assert low <= right <= high
    assert abs(found - right) <= (high - low) / 2
    close = [measured(metrics.AUC(20001, summation_method=how), y, p) for how in ("minoring", "majoring")]
    assert low <= close[0] <= right <= close[1] <= high


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "precision": ("Precision", {}),
    "precision at 0.3": ("Precision", {"thresholds": 0.3}),
    "precision of two": ("Precision", {"top_k": 2}),
    "precision of class 1": ("Precision", {"class_id": 1, "thresholds": 0.2}),
    "recall": ("Recall", {}),
    "recall of two": ("Recall", {"top_k": 2, "class_id": 2}),
    "f1": ("F1Score", {}),
    "f1 micro": ("F1Score", {"average": "micro"}),
    "f1 macro": ("F1Score", {"average": "macro", "threshold": 0.4}),
    "f1 weighted": ("F1Score", {"average": "weighted"}),
    "auc": ("AUC", {}),
    "auc of 7": ("AUC", {"num_thresholds": 7}),
    "auc minoring": ("AUC", {"summation_method": "minoring"}),
    "auc majoring": ("AUC", {"summation_method": "majoring", "curve": "PR"}),
    "auc pr": ("AUC", {"curve": "PR"}),
    "auc elsewhere": ("AUC", {"thresholds": [0.1, 0.25, 0.3, 0.8]}),
    "auc of logits": ("AUC", {"from_logits": True}),
}


@pytest.mark.parity("keras")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_metrics_of_keras(kind: str, weighted: bool) -> None:
    keras = framework("keras")
    name, options = KINDS[kind]
    y, p, w = several()
    labels = np.eye(CLASSES, dtype=np.float32)[y]
    theirs, mine = getattr(keras.metrics, name)(**options), getattr(metrics, name)(**options)
    if options.get("from_logits"):
        p = np.log(p)
    for rows in np.array_split(np.arange(ROWS), 3):
        weights = w[rows] if weighted else None
        theirs.update_state(labels[rows], p[rows], weights)
        mine.update_state(labels[rows], p[rows], weights)
    np.testing.assert_allclose(mine.result(), np.asarray(theirs.result()), rtol=2e-6, atol=1e-7)


@pytest.mark.parity("keras")
@pytest.mark.parametrize("kind", ["auc", "auc pr", "auc of 7", "precision", "recall"])
def test_binary_metrics_of_keras(kind: str) -> None:
    keras = framework("keras")
    name, options = KINDS[kind]
    y, p, w = binary()
    p = np.concatenate([p[3:], np.array([0, 1, 0.5], np.float32)])  # on thresholds
    theirs = getattr(keras.metrics, name)(**options)
    theirs.update_state(y, p, w)
    assert measured(getattr(metrics, name)(**options), y, p, w, 1) == pytest.approx(float(theirs.result()), rel=2e-6)


@pytest.mark.parity("keras")
def test_evaluate_of_keras_with_a_mask() -> None:
    """A label for each step. Padding counts nowhere; in Keras it does in those metrics that are no means."""
    keras = framework("keras")
    ids = np.random.default_rng(2).integers(1, 9, (24, 5))
    ids[:12, 3:] = 0
    y = ((ids % 3) == 1).astype(np.float32)[..., None]
    theirs, mine = (
        sequential([a.Embedding(9, 4, mask_zero=True), a.GRU(6, return_sequences=True), a.Dense(1, "sigmoid")])
        for sequential, a in ((keras.Sequential, keras.layers), (Sequential, layers))
    )
    theirs.compile(
        "sgd",
        "binary_crossentropy",
        metrics=[keras.metrics.AUC(name="auc"), keras.metrics.Precision(name="precision"), "mae"],
    )
    mine.compile("sgd", "binary_crossentropy", metrics=[metrics.AUC(), metrics.Precision(), "mae"])
    mine.predict(ids[:1])
    theirs.predict(ids[:1], verbose=0)
    mine.set_weights([3 * weight for weight in theirs.get_weights()])
    theirs.set_weights(mine.get_weights())
    wanted = theirs.evaluate(ids, y, batch_size=10, verbose=0, return_dict=True)
    found = mine.evaluate(ids, y, batch_size=10, return_dict=True)
    assert found["mae"] == pytest.approx(wanted["mae"], rel=1e-5)
    p, valid = mine.predict(ids), ids != 0
    for metric in (metrics.AUC(), metrics.Precision()):
        assert found[metric.name] == pytest.approx(measured(metric, y[valid], p[valid]))
        assert wanted[metric.name] == pytest.approx(measured(metric, y, p), rel=1e-5)


@pytest.mark.parametrize("kind", ["Precision", "Recall", "F1Score", "AUC"])
def test_a_mask_is_as_if_what_it_hides_were_not_there(kind: str) -> None:
    y, p, _ = several()
    y, p, mask = y.reshape(60, 5), p.reshape(60, 5, CLASSES), np.random.default_rng(3).random((60, 5)) < 0.6
    metric = getattr(metrics, kind)()
    hidden = np.where(mask, y, -7)  # padding holds what is no class
    np.testing.assert_array_equal(measured(metric, hidden, p, mask), measured(metric, y[mask], p[mask]))


@pytest.mark.parametrize("kind", [metrics.Precision, metrics.F1Score, metrics.AUC, metrics.SparseCategoricalAccuracy])
def test_a_state_goes_on(kind: Any) -> None:
    y, p, w = several()
    whole, first, second = kind(), kind(), kind()
    first.update_state(y[:100], p[:100], w[:100])
    second.set_state(first.state())
    for metric in (first, second):
        metric.update_state(y[100:], p[100:], w[100:])
    for rows in (slice(0, 100), slice(100, None)):
        whole.update_state(y[rows], p[rows], w[rows])
    np.testing.assert_array_equal(second.result(), whole.result())
    with pytest.raises(ValueError, match="expected a state of"):
        second.set_state({"other": 1})


@pytest.mark.parametrize(
    "metric",
    [metrics.AUC(20), metrics.Precision(0.4), metrics.F1Score(threshold=0.4), metrics.SparseTopKCategoricalAccuracy(2)],
    ids=lambda metric: metric.name,
)
def test_a_state_brings_no_settings(metric: Any) -> None:
    """Or a forged one could change them: more thresholds than the sums have rooms for."""
    assert metric.settings and all(key.startswith("_") for key in metric.state())
    with pytest.raises(ValueError, match="expected a state of"):
        metric.set_state({**metric.state(), metric.settings[0]: 65})


def test_names() -> None:
    y, p, _ = several()
    x = np.random.default_rng(0).normal(size=(ROWS, 5, 3)).astype(np.float32)
    model = Sequential([layers.GRU(8), layers.Dense(CLASSES, activation="softmax")])
    names = ["accuracy", "precision", "Recall", "f1", "f1_micro", "f1_weighted", "f1_score", "auc", "mae"]
    model.compile("adam", "sparse_categorical_crossentropy", names[:-1])
    history = model.fit(x, y, epochs=2, verbose=0, seed=0, validation_split=0.2)
    classes = [f"f1_score_{i}" for i in range(CLASSES)]
    wanted = ["loss", "accuracy", "precision", "recall", *names[3:6], *classes, "auc"]
    assert list(history.history) == [*wanted, *(f"val_{name}" for name in wanted)]
    found = model.evaluate(x, y, return_dict=True)
    p = model.predict(x)
    assert found["f1"] == pytest.approx(np.mean([found[name] for name in classes]))
    assert found["f1_micro"] == pytest.approx(found["accuracy"], rel=1e-5)
    assert found["auc"] == pytest.approx(measured(metrics.AUC(), y, p))


def test_a_single_column_is_no_choice_of_classes() -> None:
    y, p, _ = binary()
    by_name = metrics.get("f1", y, p[:, None])
    assert measured(by_name, y, p[:, None]) == measured(metrics.F1Score("macro", 0.5), y, p[:, None])


def test_nan_is_not_hidden() -> None:
    y, p, w = several()
    p[7, 2] = np.nan
    for metric in (metrics.Precision(), metrics.Recall(), metrics.F1Score("macro"), metrics.AUC()):
        assert np.isnan(measured(metric, y, p))
        w[7] = 0
        assert np.isfinite(measured(metric, y, p, w))


def test_nothing_is_zero() -> None:
    for metric in (metrics.Precision(), metrics.Recall(), metrics.F1Score("macro"), metrics.AUC(), metrics.AUC()):
        assert metric.result() == 0.0
    ones = measured(metrics.AUC(), np.ones(9), np.linspace(0, 1, 9))
    assert ones == 0.0  # no label of 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: metrics.Precision(1.5), "thresholds: expected one number from 0 to 1, found 1.5"),
        (lambda: metrics.Precision([0.1, 0.2]), "thresholds: expected one number"),  # type: ignore[arg-type]
        (lambda: metrics.Recall(top_k=0), "top_k: expected a whole number of at least 1"),
        (lambda: metrics.F1Score("makro"), "average: expected 'micro', 'macro', 'weighted' or None, found 'makro'"),
        (lambda: metrics.F1Score(threshold=0.0), "threshold: expected a number above 0"),
        (lambda: metrics.AUC(1), "num_thresholds: expected a whole number from 2"),
        (lambda: metrics.AUC(curve="roc"), "curve: expected 'ROC' or 'PR'"),
        (lambda: metrics.AUC(summation_method="mean"), "summation_method: expected"),
        (lambda: metrics.AUC(thresholds=[2.0]), "thresholds: expected numbers from 0 to 1"),
        (lambda: measured(metrics.AUC(), np.zeros((4, 3)), np.zeros((4, 2))), r"predictions' shape \(2, 2\)"),
        (lambda: measured(metrics.Recall(), np.full(4, 9), np.zeros((4, 2))), "expected classes 0 … 1"),
        (lambda: measured(metrics.Recall(class_id=2), np.zeros(4, int), np.zeros((4, 2))), "class_id: expected one of"),
        (lambda: metrics.check("precison"), "did you mean 'precision'"),
        (lambda: metrics.check("f1_makro"), "did you mean 'f1_ma"),
        (
            lambda: Sequential().compile("sgd", "mse", ["auc", metrics.AUC(curve="PR")]),
            "metrics: expected names that differ, found 'auc' twice",
        ),
    ],
)
def test_bad_input(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
