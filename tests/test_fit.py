"""compile, fit, evaluate: Keras' losses step by step, what a user of Keras expects around them, and bad input."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_parity import framework

import fastgru
from fastgru import Sequential, layers
from fastgru.training import callbacks, optimizers
from fastgru.training.fit import NotFinite


def data(rows: int = 64, seed: int = 0) -> tuple[Any, Any]:
    """Rows of 6 steps of 4 numbers; the class says which of three ramps was added to the noise."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, rows)
    ramps = np.stack([np.linspace(0, 1, 6), np.linspace(1, 0, 6), np.full(6, 0.5)])
    return (0.3 * rng.normal(size=(rows, 6, 4)) + ramps[y][:, :, None]).astype(np.float32), y


def small() -> Any:
    return Sequential([layers.GRU(12, return_sequences=True), layers.GRU(8), layers.Dense(3, activation="softmax")])


def compiled(optimizer: Any = "adam", **options: Any) -> Any:
    return small().compile(optimizer, "sparse_categorical_crossentropy", options.pop("metrics", ["accuracy"]))


@pytest.mark.parity("keras")
@pytest.mark.parametrize(
    ("name", "options"),
    [("Adam", {"learning_rate": 0.01}), ("SGD", {"learning_rate": 0.1, "momentum": 0.9}), ("Adagrad", {})],
)
def test_losses_of_keras_over_50_steps(name: str, options: dict[str, Any]) -> None:
    keras = framework("keras")
    x, y = data(96)
    theirs = keras.Sequential(
        [
            keras.layers.Input((6, 4)),
            keras.layers.GRU(12, return_sequences=True),
            keras.layers.GRU(8),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    theirs.compile(getattr(keras.optimizers, name)(**options), "sparse_categorical_crossentropy")
    mine = small().compile(getattr(optimizers, name)(**options), "sparse_categorical_crossentropy")
    mine.predict(x[:1])
    mine.set_weights(theirs.get_weights())
    wanted, found = [], []
    for i in range(50):
        rows = np.arange(i * 16, i * 16 + 16) % 96
        wanted.append(float(theirs.train_on_batch(x[rows], y[rows])))
        found.append(mine.train_on_batch(x[rows], y[rows]))
        theirs.reset_metrics() if hasattr(theirs, "reset_metrics") else None
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    for a, b in zip(mine.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parity("keras")
def test_masks_and_weights_of_keras() -> None:
    """A label for each step: padded steps count nowhere, in training and in evaluate; metrics know no weights."""
    keras = framework("keras")
    ids = np.random.default_rng(2).integers(1, 9, (24, 5))
    ids[:12, 3:] = 0
    y, weights = ids % 3, np.linspace(0.5, 2, 24).astype(np.float32)
    own = (keras.layers, layers)
    theirs, mine = (
        sequential(
            [a.Embedding(9, 4, mask_zero=True), a.GRU(6, return_sequences=True), a.Dense(3, activation="softmax")]
        )
        for sequential, a in zip((keras.Sequential, Sequential), own, strict=True)
    )
    theirs.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    mine.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    mine.predict(ids[:1])
    theirs.predict(ids[:1], verbose=0)
    given = theirs.get_weights()
    mine.set_weights(given)
    for options in ({}, {"sample_weight": weights[:, None]}):
        wanted = theirs.evaluate(ids, y, batch_size=24, verbose=0, return_dict=True, **options)
        assert mine.evaluate(ids, y, batch_size=24, return_dict=True, **options) == pytest.approx(wanted, rel=1e-5)
    for _ in range(3):
        theirs.train_on_batch(ids, y, sample_weight=weights[:, None])
        mine.train_on_batch(ids, y, sample_weight=weights)
    for a, b, before in zip(mine.get_weights(), theirs.get_weights(), given, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
        assert not np.array_equal(a, before)  # the caller's arrays are the caller's


def test_weights_that_were_asked_for_stay() -> None:
    x, y = data()
    model = compiled()
    model.train_on_batch(x, y)
    asked = model.get_weights()
    kept = [w.copy() for w in asked]
    model.train_on_batch(x, y)
    for a, b in zip(asked, kept, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(not np.array_equal(a, b) for a, b in zip(model.get_weights(), kept, strict=True))


def test_a_gradient_that_is_not_finite_moves_nothing() -> None:
    x, y = data()
    model = Sequential([layers.BatchNormalization(), layers.GRU(4), layers.Dense(1)]).compile("sgd", "mse")
    model.predict(x[:1])
    model.layers[-1].set_weights([np.full((4, 1), 1e30, np.float32), np.zeros(1, np.float32)])
    before = model.get_weights()
    with pytest.raises(NotFinite):
        model.train_on_batch(x, np.full((64, 1), -1e8))
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_it_learns() -> None:
    x, y = data(256)
    model = compiled(optimizers.Adam(0.01))
    history = model.fit(x, y, epochs=12, verbose=0, seed=3, validation_split=0.25)
    assert set(history.history) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert history.epoch == list(range(12))
    assert history.history["loss"][-1] < 0.5 * history.history["loss"][0]
    loss, accuracy = model.evaluate(*data(100, seed=9))
    assert accuracy > 0.9
    assert model.evaluate(*data(100, seed=9), return_dict=True) == {"loss": loss, "accuracy": accuracy}


def test_a_seed_decides_everything_and_threads_nothing() -> None:
    x, y = data()
    runs = []
    for num_threads in (1, 2):
        model = Sequential([layers.GRU(8), layers.Dropout(0.5), layers.Dense(3, activation="softmax")])
        model.compile("adam", "sparse_categorical_crossentropy")
        history = model.fit(x, y, epochs=2, verbose=0, seed=5, num_threads=num_threads)
        runs.append((history.history, model.get_weights()))
    assert runs[0][0] == runs[1][0]
    for a, b in zip(runs[0][1], runs[1][1], strict=True):
        np.testing.assert_array_equal(a, b)


def test_weights_of_rows_and_classes() -> None:
    x, y = data(12)
    alike = compiled()
    alike.fit(x[:1], y[:1], epochs=0, verbose=0, seed=1)
    rest = {int(c): float(c == 0) for c in range(3)}
    by_class = alike.evaluate(x, y, sample_weight=[rest[int(c)] for c in y])[0]
    only = alike.evaluate(x[y == 0], y[y == 0])[0]
    assert by_class * 12 == pytest.approx(only * (y == 0).sum(), rel=1e-5)
    trained = []
    for options in ({"class_weight": rest}, {"sample_weight": np.array([rest[int(c)] for c in y])}):
        model = compiled()
        model.fit(x, y, verbose=0, seed=1, shuffle=False, **options)
        trained.append(model.get_weights())
    for a, b in zip(*trained, strict=True):
        np.testing.assert_array_equal(a, b)


def test_frozen_layers_stay() -> None:
    x, y = data()
    model = compiled()
    model.predict(x[:1])
    model.layers[0].trainable = False
    before = [w.copy() for w in model.get_weights()]
    model.fit(x, y, verbose=0, seed=1)
    for i, (a, b) in enumerate(zip(before, model.get_weights(), strict=True)):
        assert np.array_equal(a, b) == (i < 3)


def test_a_loaded_keras_model_goes_on(tmp_path: Path) -> None:
    model = fastgru.load(Path(__file__).parent / "golden" / "keras_text_gru.keras")
    ids = np.random.default_rng(0).integers(1, 20, (32, 7))
    outputs = model.predict(ids)
    model.compile("sgd", "mse")
    target = np.zeros_like(outputs)
    before = model.evaluate(ids, target)
    model.fit(ids, target, epochs=3, verbose=0, seed=0)
    assert model.evaluate(ids, target) < before
    model.save(tmp_path / "tuned.safetensors")
    np.testing.assert_array_equal(fastgru.load(tmp_path / "tuned.safetensors").predict(ids), model.predict(ids))


def test_callbacks(tmp_path: Path) -> None:
    x, y = data()
    seen: list[tuple[int, dict[str, float]]] = []
    stop = callbacks.EarlyStopping("loss", patience=1, min_delta=10, restore_best_weights=True)
    rates: list[float] = []

    class Watch(callbacks.Callback):
        def on_batch_end(self, batch: int, logs: Mapping[str, float]) -> None:
            rates.append(self.model.optimizer.learning_rate)

    model = compiled()
    history = model.fit(
        x,
        y,
        epochs=10,
        verbose=0,
        seed=1,
        callbacks=[
            lambda epoch, logs: seen.append((epoch, dict(logs))),
            callbacks.CSVLogger(tmp_path / "log.csv"),
            callbacks.ModelCheckpoint(tmp_path / "at-{epoch}.safetensors"),
            callbacks.LearningRateScheduler(lambda epoch, rate: 0.001 * (epoch + 1)),
            Watch(),
            stop,
        ],
    )
    assert history.epoch == [0, 1] == [epoch for epoch, _ in seen]
    assert stop.stopped_epoch == 1
    assert rates == [0.001] * 2 + [0.002] * 2
    assert (tmp_path / "log.csv").read_text().splitlines()[0] == "epoch,loss,accuracy"
    saved = fastgru.load(tmp_path / "at-1.safetensors")
    np.testing.assert_array_equal(saved.predict(x), model.predict(x))  # the best weights came back


def test_what_is_not_finite_stops_and_names_the_batch() -> None:
    x, y = data()
    x[40] = np.nan
    model = compiled()
    with pytest.raises(NotFinite, match=r"epoch 0, batch 1: loss: .* the batch's inputs hold NaN"):
        model.fit(x, y, verbose=0, seed=1, shuffle=False)
    assert all(np.isfinite(w).all() for w in model.get_weights())


def test_it_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    x, y = data()
    compiled().fit(x, y, epochs=2, seed=1)
    out = capsys.readouterr().out
    assert "Epoch 1/2: loss " in out
    assert "accuracy" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"y": np.zeros(3)}, r"y: expected labels for the 64 rows of x, found shape \(3,\)"),
        ({"y": np.full(64, 7)}, "expected classes 0 … 2"),
        ({"batch_size": 0}, "batch_size: expected at least 1, found 0"),
        ({"validation_split": 1.5}, "validation_split: expected a number between 0 and 1"),
        ({"sample_weight": np.ones(3)}, "sample_weight: expected one for each of 64 rows"),
        ({"class_weight": {0: 1.0}}, "class_weight: expected a weight for each class, found none for 1"),
        ({"seed": -1}, "seed: expected a whole number from 0 to below 2.64, found -1"),
        ({"initial_epoch": -1}, "initial_epoch: expected at least 0, found -1"),
        ({"validation_data": 3}, r"validation_data: expected \(x, y\)"),
        (
            {"callbacks": [callbacks.EarlyStopping("val_loss")]},
            r"monitor: expected one of \['accuracy', 'loss'\], .*; val_ needs validation_data or validation_split",
        ),
    ],
)
def test_bad_input(options: dict[str, Any], message: str) -> None:
    x, y = data()
    given = {"y": y, "verbose": 0, "seed": 0, **options}
    with pytest.raises(ValueError, match=message):
        compiled().fit(x, **given)


def test_compile_first() -> None:
    x, y = data()
    with pytest.raises(ValueError, match="call compile"):
        small().fit(x, y)
    with pytest.raises(ValueError, match="loss: expected a name"):
        small().compile("adam")
    with pytest.raises(ValueError, match="did you mean 'adam'"):
        small().compile("adm", "mse")
    with pytest.raises(ValueError, match="metric: expected one of .* did you mean"):
        small().compile("adam", "mse", ["acuracy"])
    with pytest.raises(TypeError, match="metrics: expected a list"):
        small().compile("adam", "mse", "accuracy")


def test_weights_that_were_given_stay_the_callers() -> None:
    model = small()
    before = model.predict(data(4)[0])
    given = model.get_weights()
    model.set_weights(given)
    for w in given:
        w += 1
    np.testing.assert_array_equal(model.predict(data(4)[0]), before)
    assert not any(np.array_equal(a, b) for a, b in zip(model.get_weights(), given, strict=True))
