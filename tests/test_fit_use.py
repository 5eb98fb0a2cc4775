"""What surrounds training: predict on other data, callbacks, bars, fine-tuning of files, and the way back's guards."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_parity import framework
from test_fit_data import LENGTHS, RAGGED, STEPS, Numbered, X, Y, batches, padded, same, small

import fastgru
from fastgru import Sequential, layers
from fastgru.layers.training_step import TrainingStep
from fastgru.training import callbacks, metrics
from fastgru.training.progress import Bar

GOLDEN = Path(__file__).parent / "golden"


# -- predict --------------------------------------------------------------------------------------


def test_predict_of_batches() -> None:
    model = small()
    wanted = model.predict(X)
    for give in (batches(), Numbered(), iter([X[:8], X[8:]])):
        np.testing.assert_allclose(model.predict(give), wanted, rtol=1e-6)
    np.testing.assert_allclose(model.predict(batches(5), steps=2), wanted[:10], rtol=1e-6)
    with pytest.raises(ValueError, match="expected batches, found none"):
        model.predict(iter([]))


@pytest.mark.parametrize("batch_size", [None, 3])
def test_predict_of_ragged_rows(batch_size: int | None) -> None:
    whole, steps = small(), small(True)
    given = padded(RAGGED)
    np.testing.assert_array_equal(whole.predict(RAGGED, batch_size=batch_size), whole.predict(given, LENGTHS))
    found = steps.predict(RAGGED, batch_size=batch_size)
    wanted = steps.predict(given, LENGTHS)
    assert [len(row) for row in found] == LENGTHS
    for row, other, n in zip(found, wanted, LENGTHS, strict=True):
        np.testing.assert_array_equal(row, other[:n])
    ids = Sequential([layers.Embedding(9, 3, mask_zero=True), layers.GRU(4)])
    rows = [[1, 2, 3], [4], [5, 6]]
    np.testing.assert_array_equal(ids.predict(rows), ids.predict(np.array([[1, 2, 3], [4, 0, 0], [5, 6, 0]])))
    with pytest.raises(ValueError, match="lengths, mask: expected None beside batches and ragged rows"):
        whole.predict(RAGGED, LENGTHS)
    with pytest.raises(ValueError, match="batch_size: expected at least 1"):
        whole.predict(RAGGED, batch_size=0)


# -- callbacks and bars ---------------------------------------------------------------------------


EVENTS = [
    f"on_{what}_{end}" for what in ("train", "epoch", "train_batch", "test", "test_batch") for end in ("begin", "end")
]


def watched(base: type) -> tuple[Any, list[Any]]:
    seen: list[Any] = []

    def method(name: str) -> Any:
        def called(self: Any, *values: Any, **named: Any) -> None:
            logs = named.get("logs", values[-1] if values and not isinstance(values[-1], (int, np.integer)) else None)
            number = [int(v) for v in values[:1] if isinstance(v, (int, np.integer))]
            seen.append((name, *number, *sorted(logs or ())))

        return called

    return type("Watch", (base,), {name: method(name) for name in EVENTS})(), seen


@pytest.mark.parity("keras")
def test_callbacks_are_called_as_keras_calls_them() -> None:
    keras = framework("keras")
    theirs = keras.Sequential([keras.layers.Input((5, 3)), keras.layers.GRU(4), keras.layers.Dense(3, "softmax")])
    theirs.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    call, wanted = watched(keras.callbacks.Callback)
    options: dict[str, Any] = {"batch_size": 8, "epochs": 2, "verbose": 0, "validation_data": (X[:9], Y[:9])}
    theirs.fit(X, Y, callbacks=[call], **options)
    theirs.evaluate(X, Y, batch_size=8, verbose=0, callbacks=[call])
    for base in (callbacks.Callback, keras.callbacks.Callback):  # a Keras callback will do
        mine, found = watched(base)
        model = small()
        model.fit(X, Y, callbacks=[mine], **options)
        model.evaluate(X, Y, 8, callbacks=[mine])
        assert found == wanted
        assert {**mine.params, "metrics": None} == {**call.params, "metrics": None}
        assert mine.model is model


def test_callbacks_may_measure_more() -> None:
    class More(callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            logs["mine"] = float(epoch)

    stop = callbacks.EarlyStopping("mine", mode="min", patience=2)
    found = small().fit(X, Y, epochs=9, verbose=0, callbacks=[More(), stop])
    assert found.history["mine"] == [0.0, 1.0, 2.0]
    assert small().fit(X, Y, verbose=0, callbacks=More()).history["mine"] == [0.0]


def test_what_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    small().fit(X, Y, 8, epochs=2, verbose=2)
    out, err = capfd.readouterr()
    assert [text[:15] for text in out.splitlines()] == ["Epoch 1/2: loss", "Epoch 2/2: loss"]
    assert err == ""
    small().fit(X, Y, 8, epochs=2, verbose="auto")
    out, err = capfd.readouterr()
    assert len(out.splitlines()) == 2
    assert "Epoch 1/2" in err
    assert "loss " in err
    assert "accuracy " in err
    assert "/3" in err
    model = small()
    model.evaluate(X, Y, 8, verbose=1)
    model.predict(X, batch_size=8, verbose=1)
    out, err = capfd.readouterr()
    assert out.startswith("loss ")
    assert "Evaluate" in err
    model.predict(X, verbose=2)
    model.evaluate(X, Y)
    assert capfd.readouterr() == ("", "")


def test_a_bar_asks_for_metrics_some_times_a_second_only() -> None:
    asked = 0

    def logs() -> dict[str, float]:
        nonlocal asked
        asked += 1
        return {"loss": 1.0}

    began = time.monotonic()
    with Bar(1, 5000, "Epoch 1/1") as bar:
        for _ in range(5000):
            bar.step(logs)
    assert 1 <= asked <= 2 + 10 * (time.monotonic() - began)
    with Bar(0, 10, "") as silent:
        silent.step(lambda: pytest.fail("nobody looks"))


# -- files ----------------------------------------------------------------------------------------


def test_a_model_without_weights_is_not_saved(tmp_path: Path) -> None:
    model = Sequential([layers.GRU(4), layers.Dense(3)])
    with pytest.raises(ValueError, match="layer 'gru': expected weights to save, found none; fit or predict makes"):
        model.save(tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["k3_nested.keras", "k3_nested.h5", "k3_bidirectional.keras", "k3_stateful.keras"])
def test_files_are_trained_saved_and_read_again(name: str, tmp_path: Path) -> None:
    from fastgru.graph import sample_inputs

    model = fastgru.load(GOLDEN / name)
    inputs = sample_inputs(model.graph, model.inputs)
    assert inputs is not None
    given: Any = inputs if len(inputs) > 1 else inputs[0]
    if len(model.graph.outputs) > 1:
        with pytest.raises(ValueError, match="expected one output to train, found"):
            model.compile("sgd", "mse").fit(given, given, verbose=0)
        return
    y = model.predict(given)
    model.reset_states()
    frozen = [layer for layer in model.layers if not layer.trainable]
    kept = [layer.get_weights() for layer in frozen]
    before = [w for layer in model.layers if layer.trainable for w in layer.get_weights()]
    model.compile("adam", "mse").fit(given, y + 0.5, epochs=3, verbose=0, seed=0, shuffle=False)
    after = [w for layer in model.layers if layer.trainable for w in layer.get_weights()]
    assert any(not np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    for layer, weights in zip(frozen, kept, strict=True):  # the file said so
        for a, b in zip(layer.get_weights(), weights, strict=True):
            np.testing.assert_array_equal(a, b)
    model.save(tmp_path / "tuned.safetensors")
    again = fastgru.load(tmp_path / "tuned.safetensors")
    model.reset_states()
    np.testing.assert_array_equal(again.predict(given), model.predict(given))
    assert [layer.trainable for layer in again.layers] == [layer.trainable for layer in model.layers]


@pytest.mark.parametrize("name", ["keras_text_gru.keras", "k3_nested.keras"])
def test_what_is_frozen_stays_frozen_in_a_file(name: str, tmp_path: Path) -> None:
    model = fastgru.load(GOLDEN / name)
    for i, layer in enumerate(model.layers):
        layer.trainable = i % 2 == 0
    model.save(tmp_path / "m.safetensors")
    again = fastgru.load(tmp_path / "m.safetensors")
    for one, other in zip(model.layers, again.layers, strict=True):
        if one.weights or one.parts():
            assert one.trainable == other.trainable
    untouched = fastgru.load(GOLDEN / name)
    assert untouched.get_config() is untouched._entry["config"]


# -- the way back of Model.train ------------------------------------------------------------------


def test_the_way_back_is_guarded() -> None:
    model = small()
    with pytest.raises(TypeError, match="step: expected a TrainingStep, found NoneType"):
        model.train(X, None, None)
    step = TrainingStep()
    y, _, back = model.train(X, None, step)
    with pytest.raises(ValueError, match=r"dy: expected the shape \(20, 3\) of output 0, found \(20, 4\)"):
        back(np.zeros((20, 4), np.float32))
    with pytest.raises(TypeError, match="dy: expected an array of floats for output 0, found int64"):
        back(np.zeros((20, 3), np.int64))
    with pytest.raises(TypeError, match="dy: expected an array of floats for output 0, found float"):
        back(1.0)
    assert not step.gradients
    back(np.ones_like(y))  # what was refused does not count
    assert step.gradients
    with pytest.raises(ValueError, match="back: expected one call, found a second"):
        back(np.ones_like(y))


def test_ragged_and_padded_rows_train_alike() -> None:
    """Of a batch of its own each, on the machine's own bits."""
    one, other = small(True), small(True)
    mask = np.arange(5) < np.array(LENGTHS)[:, None]
    one.fit(RAGGED, STEPS, 10, shuffle=False, verbose=0)
    other.fit(
        padded(RAGGED), padded(STEPS), 10, sample_weight=mask * (mask.size / mask.sum()), shuffle=False, verbose=0
    )
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    with pytest.raises(AssertionError):
        same(one, small(True))


# -- validation after each few epochs --------------------------------------------------------------


def test_callbacks_wait_for_validation(tmp_path: Path) -> None:
    model, saved = small(), []
    stop = callbacks.EarlyStopping("val_loss", min_delta=9.0, patience=1)
    best = callbacks.ModelCheckpoint(tmp_path / "{epoch}.safetensors", save_best_only=True)
    log = callbacks.CSVLogger(tmp_path / "log.csv")
    options: Any = {"validation_data": (X, Y), "validation_freq": 2, "verbose": 0, "seed": 1}
    history = model.fit(X, Y, epochs=9, callbacks=[stop, best, log, lambda epoch, logs: saved.append(epoch)], **options)
    assert saved == [0, 1, 2, 3] and stop.stopped_epoch == 3
    assert "1.safetensors" not in {path.name for path in tmp_path.iterdir()}
    assert (tmp_path / "2.safetensors").exists()
    loss, val_loss = history.history["loss"], history.history["val_loss"]
    lines = [f"{i},{loss[i]}," + (f"{val_loss[i // 2]}" if i % 2 else "") for i in range(4)]
    text = (tmp_path / "log.csv").read_text()
    assert [line.rstrip(",") for line in text.splitlines()][0].startswith("epoch,loss")
    rows = [line.split(",") for line in text.splitlines()]
    place = [rows[0].index(name) for name in ("epoch", "loss", "val_loss")]
    assert [",".join(row[i] for i in place) for row in rows[1:]] == lines


def test_a_log_that_is_appended_to_keeps_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("val_loss,epoch,loss\n1.0,0,2.0\n")
    log = callbacks.CSVLogger(path, append=True)
    log.on_train_begin()
    log.on_epoch_end(1, {"loss": 3.0, "other": 4.0})
    assert path.read_text().splitlines() == ["val_loss,epoch,loss", "1.0,0,2.0", ",1,3.0"]


def test_the_score_of_one_class_can_be_watched() -> None:
    model = small().compile("sgd", "sparse_categorical_crossentropy", [metrics.F1Score()])
    options: Any = {"validation_split": 0.25, "epochs": 3, "verbose": 0}
    stop = callbacks.EarlyStopping("val_f1_score_0", min_delta=9.0, patience=1)
    assert len(model.fit(X, Y, callbacks=[stop], **options).epoch) == 2
    with pytest.raises(ValueError, match=r"monitor: expected one of .*'f1_score_0'.*, found 'f1_score'"):
        model.fit(X, Y, callbacks=[callbacks.EarlyStopping("f1_score")], **options)


def test_what_is_wrong_is_said_before_an_epoch(tmp_path: Path) -> None:
    x, y = np.zeros((4, 3, 2), np.float32), np.zeros((4, 1), np.float32)
    made = Sequential([layers.GRU(3), layers.Dense(1)]).compile("sgd", "mse")
    keep = callbacks.ModelCheckpoint(tmp_path / "nowhere" / "a.safetensors")
    with pytest.raises(FileNotFoundError, match="no such folder to save models to; make it first: .*nowhere"):
        made.fit(x, y, callbacks=[keep], verbose=0)
    with pytest.raises(TypeError, match="class_weight: expected a dict {class: weight}, found list"):
        made.fit(x, y, class_weight=[1, 2], verbose=0)
    with pytest.raises(TypeError, match="expected numbers, found a function; call it where it is a generator"):
        made.fit(lambda: iter([(x, y)]), verbose=0)
