"""What fit, evaluate and the others take as data: arrays, batches, ragged rows; and what they refuse."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_parity import framework

from fastgru import Sequential, layers
from fastgru.training import callbacks

RNG = np.random.default_rng(7)
X = RNG.normal(size=(20, 5, 3)).astype(np.float32)
Y = RNG.integers(0, 3, 20)


def small(steps: bool = False) -> Any:
    """A classifier of rows, or of steps; its weights are the same each time."""
    model = Sequential([layers.GRU(4, return_sequences=steps), layers.Dense(3, activation="softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy", ["accuracy"])
    model.fit(X[:1], Y[:1, None].repeat(5, 1) if steps else Y[:1], epochs=0, seed=1, verbose=0)
    return model


def batches(size: int = 8, weights: Any = None) -> Iterator[Any]:
    for low in range(0, 20, size):
        part = slice(low, low + size)
        yield (X[part], Y[part]) if weights is None else (X[part], Y[part], weights[part])


class Numbered:
    """As a keras.utils.PyDataset."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.passes = 0

    def __len__(self) -> int:
        return 3

    def __getitem__(self, i: int) -> Any:
        self.asked.append(i)
        return list(batches())[i]

    def on_epoch_end(self) -> None:
        self.passes += 1


def same(a: Any, b: Any) -> None:
    for one, other in zip(a.get_weights(), b.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


class Counting(callbacks.Callback):
    def __init__(self) -> None:
        self.batches: list[int] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.batches.append(0)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batches[-1] += 1


# -- batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("give", [lambda: batches(), lambda: Numbered(), lambda: iter(list(batches()))])
def test_batches_train_as_arrays_do(give: Any) -> None:
    by_array, by_batch = small(), small()
    wanted = by_array.fit(X, Y, batch_size=8, shuffle=False, verbose=0, validation_data=(X, Y))
    found = by_batch.fit(give(), shuffle=False, verbose=0, validation_data=Numbered())
    assert {k: v for k, v in found.history.items() if k[:3] != "val"} == {
        k: v for k, v in wanted.history.items() if k[:3] != "val"
    }
    assert found.history["val_loss"] == pytest.approx(wanted.history["val_loss"], rel=1e-6)
    same(by_array, by_batch)
    assert by_batch.evaluate(give()) == pytest.approx(by_array.evaluate(X, Y, batch_size=8))


def test_batches_bring_their_weights() -> None:
    weights = np.linspace(0, 2, 20)
    by_array, by_batch = small(), small()
    by_array.fit(X, Y, 8, sample_weight=weights, shuffle=False, verbose=0)
    by_batch.fit(batches(weights=weights), verbose=0)
    same(by_array, by_batch)
    assert by_batch.evaluate(batches(weights=weights)) == by_array.evaluate(X, Y, 8, sample_weight=weights)


def test_numbered_batches_are_shuffled_by_number() -> None:
    data = Numbered()
    small().fit(data, epochs=4, seed=2, verbose=0)
    passes = [data.asked[i : i + 3] for i in range(0, 12, 3)]
    assert all(sorted(part) == [0, 1, 2] for part in passes)
    assert len({tuple(part) for part in passes}) > 1
    assert data.passes == 4


@pytest.mark.parametrize(
    ("give", "options", "wanted"),
    [
        (lambda: batches(2), {"steps_per_epoch": 3, "epochs": 3}, [3, 3, 3]),
        (lambda: batches(2), {"steps_per_epoch": 4, "epochs": 3}, [4, 4, 2]),
        (lambda: batches(2), {"steps_per_epoch": 5, "epochs": 3}, [5, 5]),
        (lambda: batches(2), {"epochs": 2}, [10]),
        (lambda: list(batches(2))[:7], {}, None),
        (Numbered, {"steps_per_epoch": 2, "epochs": 3}, [2, 1, 2]),
        (Numbered, {"steps_per_epoch": 5, "epochs": 2}, [3, 3]),
    ],
)
def test_steps_of_epochs(give: Any, options: dict[str, Any], wanted: list[int] | None) -> None:
    seen = Counting()
    if wanted is None:  # a list is inputs, never batches
        with pytest.raises((ValueError, TypeError)):
            small().fit(give(), verbose=0)
        return
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        history = small().fit(give(), verbose=0, callbacks=[seen], **options)
    assert seen.batches == wanted
    assert history.epoch == list(range(len(wanted)))
    steps, epochs = options.get("steps_per_epoch"), options["epochs"]
    complete = len(wanted) == epochs and all(n == steps for n in wanted)
    assert bool(told) == (not complete)
    assert all("ran out of data" in str(warning.message) for warning in told)


@pytest.mark.parity("keras")
def test_steps_of_epochs_over_arrays_are_those_of_keras() -> None:
    keras = framework("keras")
    theirs = keras.Sequential([keras.layers.Input((5, 3)), keras.layers.GRU(4), keras.layers.Dense(3, "softmax")])
    theirs.compile("sgd", "sparse_categorical_crossentropy")
    mine = small()
    theirs.set_weights(mine.get_weights())
    options: dict[str, Any] = {"batch_size": 4, "steps_per_epoch": 3, "epochs": 5, "shuffle": False, "verbose": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = theirs.fit(X, Y, **options, validation_data=(X, Y), validation_steps=2, validation_batch_size=3)
        found = mine.fit(X, Y, **options, validation_data=(X, Y), validation_steps=2, validation_batch_size=3)
    for key in ("loss", "val_loss"):
        np.testing.assert_allclose(found.history[key], wanted.history[key], rtol=1e-4)


@pytest.mark.parity("keras")
def test_generators_are_those_of_keras() -> None:
    keras = framework("keras")

    class Data(keras.utils.PyDataset):  # type: ignore[misc]
        def __len__(self) -> int:
            return 3

        def __getitem__(self, i: int) -> Any:
            return list(batches(weights=np.linspace(0.5, 2, 20)))[i]

    theirs = keras.Sequential([keras.layers.Input((5, 3)), keras.layers.GRU(4), keras.layers.Dense(3, "softmax")])
    theirs.compile("adam", "sparse_categorical_crossentropy")
    for give in (lambda: batches(8), Data):
        mine = small().compile("adam", "sparse_categorical_crossentropy")
        theirs.set_weights(mine.get_weights())
        theirs.compile("adam", "sparse_categorical_crossentropy")
        wanted = theirs.fit(give(), epochs=1, shuffle=False, verbose=0, validation_data=give())
        found = mine.fit(give(), epochs=1, shuffle=False, verbose=0, validation_data=give())
        for key in ("loss", "val_loss"):
            np.testing.assert_allclose(found.history[key], wanted.history[key], rtol=1e-4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: iter([X]), "x, batch 0: expected \\(x, y\\) or \\(x, y, sample_weight\\), found ndarray"),
        (lambda: iter([(X,)]), "x, batch 0: expected .*, found 1 of them"),
        (lambda: iter([(X, Y, Y, Y)]), "found 4 of them"),
        (lambda: iter([(X, Y[:3])]), "x, batch 0: y: expected labels for the 20 rows of x, found shape \\(3,\\)"),
        (lambda: iter([(X[:, :, :2], Y)]), "expected \\(N, T, I\\) with I = 3"),
        (lambda: iter([(X[:0], Y[:0])]), "x, batch 0: expected rows, found none"),
        (lambda: iter([(X, Y + 5)]), "expected classes 0 … 2"),
        (lambda: iter([]), "expected batches, found a generator that gives none"),
    ],
)
def test_wrong_batches(given: Any, message: str) -> None:
    model, other = small(), small()
    for call in (model.fit, model.evaluate):
        with pytest.raises((ValueError, TypeError), match=message):
            call(given(), verbose=0)
    same(model, other)


def test_a_wrong_batch_is_named() -> None:
    with pytest.raises(ValueError, match="x, batch 2: y: expected labels"):
        small().fit((pair for pair in [(X, Y), (X, Y), (X, Y[:2])]), verbose=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"y": Y}, "y: expected none, since x gives batches"),
        ({"sample_weight": Y}, "sample_weight: expected none, since x gives batches"),
        ({"validation_split": 0.5}, "validation_split: expected 0, since x gives batches"),
        ({"steps_per_epoch": 0}, "steps_per_epoch: expected at least 1, found 0"),
    ],
)
def test_what_batches_come_without(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small().fit(batches(), verbose=0, **options)


# -- ragged rows ----------------------------------------------------------------------------------


LENGTHS = [5, 2, 3, 5, 1, 4, 2, 5, 3, 3]
RAGGED = [X[i, :n] for i, n in enumerate(LENGTHS)]
STEPS = [RNG.integers(0, 3, n) for n in LENGTHS]


def padded(rows: Any, steps: int = 5) -> Any:
    out = np.zeros((len(rows), steps, *np.shape(rows[0])[1:]), np.asarray(rows[0]).dtype)
    for place, row in zip(out, rows, strict=True):
        place[: len(row)] = row
    return out


@pytest.mark.parity("keras")
@pytest.mark.parametrize("steps", [False, True])
@pytest.mark.parametrize("masking", [None, -9.0])
def test_ragged_rows_are_keras_masked_rows(steps: bool, masking: float | None) -> None:
    keras = framework("keras")
    value = -9.0
    theirs = keras.Sequential(
        [
            keras.layers.Input((None, 3)),
            keras.layers.Masking(value),
            keras.layers.GRU(4, return_sequences=steps),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    theirs.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    own = [] if masking is None else [layers.Masking(masking)]
    mine = Sequential([*own, layers.GRU(4, return_sequences=steps), layers.Dense(3, activation="softmax")])
    mine.compile("sgd", "sparse_categorical_crossentropy", ["accuracy"])
    mine.predict(X[:1])
    mine.set_weights(theirs.get_weights())
    filled = np.where(np.arange(5)[:, None] < np.array(LENGTHS)[:, None, None], X[:10], np.float32(value))
    labels = padded(STEPS) if steps else Y[:10]
    given = STEPS if steps else Y[:10]
    np.testing.assert_allclose(
        mine.evaluate(RAGGED, given, 10), theirs.evaluate(filled, labels, batch_size=10, verbose=0), rtol=1e-4
    )
    wanted = theirs.fit(filled, labels, batch_size=4, epochs=3, shuffle=False, verbose=0)
    found = mine.fit(RAGGED, given, 4, epochs=3, shuffle=False, verbose=0)
    for key in ("loss", "accuracy"):
        np.testing.assert_allclose(found.history[key], wanted.history[key], rtol=1e-4, err_msg=key)
    for a, b in zip(mine.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_ragged_rows_in_batches_of_their_own_and_validation() -> None:
    one, other = small(True), small(True)
    one.fit(RAGGED, STEPS, 4, shuffle=False, verbose=0)
    other.fit(((RAGGED[i : i + 4], STEPS[i : i + 4]) for i in (0, 4, 8)), verbose=0)
    same(one, other)
    found = one.fit(RAGGED, STEPS, verbose=0, validation_split=0.3)
    assert set(found.history) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert one.train_on_batch(RAGGED, STEPS, return_dict=True)["loss"] > 0
    weights = [np.full(n, 2.0) for n in LENGTHS]
    assert one.evaluate(RAGGED, STEPS, sample_weight=weights)[0] == pytest.approx(2 * one.evaluate(RAGGED, STEPS)[0])


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (RAGGED, STEPS[:9], "y: expected labels for the 10 rows of x, found 9 of them"),
        (RAGGED, [*STEPS[:9], np.zeros(2, int)], "y, row 9: expected the 3 steps of x, found 2"),
        ([*RAGGED[:9], np.zeros((2, 4))], STEPS, r"x, row 9: expected \(None, 3\) as in row 0, found \(2, 4\)"),
        ([*RAGGED[:9], np.full((2, 3), "a")], STEPS, "x, row 9: expected an array of numbers, found <U1"),
        (X[:10], STEPS, "y: expected an array, found rows of unequal length"),
        (RAGGED, [*STEPS[:9], np.array([0, 1, 7])], "row 9: y: expected classes 0 … 2"),
        (RAGGED, Y[:10], "y: expected .* one class for each"),
    ],
)
def test_ragged_rows_that_do_not_fit(x: Any, y: Any, message: str) -> None:
    model, other = small(True), small(True)
    with pytest.raises((ValueError, TypeError), match=message):
        model.fit(x, y, verbose=0)
    same(model, other)


# -- nothing is trained on what does not fit ------------------------------------------------------


LATE = Y.copy()
LATE[-1] = 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"y": LATE}, r"y: expected classes 0 … 2, .* found 3 at \[19\]"),
        ({"y": np.where(np.arange(20) == 19, np.nan, 1.0)}, r"found nan at \[19\]"),
        ({"y": Y[:, None, None]}, r"one class for each, shape \(20,\), found \(20, 1, 1\)"),
        ({"y": None}, "y: expected labels for the 20 rows of x, found none"),
        ({"y": Y[:19]}, r"y: expected labels for the 20 rows of x, found shape \(19,\)"),
        ({"sample_weight": np.ones((20, 2))}, r"sample_weight: expected .* found shape \(20, 2\)"),
        ({"sample_weight": np.ones(19)}, r"sample_weight: expected one for each of 20 rows, found shape \(19,\)"),
        ({"validation_data": (X[:0], Y[:0])}, "validation_data: expected rows, found none"),
        ({"validation_data": (X, LATE)}, "y: expected classes 0 … 2"),
        ({"validation_data": (X[:, :, :2], Y)}, r"expected \(N, T, I\) with I = 3"),
        ({"validation_data": (X, Y[:3])}, "validation_data: y: expected labels for the 20 rows"),
        ({"validation_data": (X, Y, np.ones(3))}, "validation_data: sample_weight: expected one for each"),
        ({"batch_size": 0}, "batch_size: expected at least 1, found 0"),
        ({"epochs": -1}, "epochs: expected at least 0, found -1"),
        ({"batch_size": 2.5}, "batch_size: expected a whole number, found 2.5"),
        ({"verbose": 3}, "verbose: expected 0, 1, 2 or 'auto', found 3"),
        ({"callbacks": [callbacks.EarlyStopping("val_loss")]}, r"monitor: expected one of \['accuracy', 'loss'\]"),
        ({"callbacks": [callbacks.EarlyStopping("acuracy")]}, "found 'acuracy'; did you mean 'accuracy'"),
        ({"callbacks": [3]}, "callbacks: expected callbacks, or functions .*, found int"),
        ({"callbacks": [callbacks.EarlyStopping]}, "found the class EarlyStopping"),
    ],
)
def test_bad_input_is_found_before_anything_is_trained(options: dict[str, Any], message: str) -> None:
    model, other = small(), small()
    with pytest.raises((ValueError, TypeError), match=message):
        model.fit(X, **{"y": Y, "batch_size": 4, "shuffle": False, "verbose": 0, **options})
    same(model, other)
    assert model.optimizer.iterations == 0


def test_one_batch() -> None:
    model, other = small(), small()
    loss, accuracy = model.test_on_batch(X, Y)
    found = model.train_on_batch(X, Y, return_dict=True)
    assert found == {"loss": pytest.approx(loss, rel=1e-6), "accuracy": accuracy}
    other.train_on_batch(X, Y, class_weight=dict.fromkeys(range(3), 1.0))
    same(model, other)
    for call in (model.train_on_batch, model.test_on_batch):
        with pytest.raises(ValueError, match="y: expected classes 0 … 2"):
            call(X, LATE)
        with pytest.raises(ValueError, match="expected rows, found none"):
            call(X[:0], Y[:0])
    same(model, other)
    with pytest.raises(ValueError, match="call compile"):
        Sequential([layers.GRU(2)]).test_on_batch(X, Y)


def test_save_says_what_it_cannot_write(tmp_path: Path) -> None:
    model = small()
    for suffix in (".keras", ".h5", ".onnx", ".pt", ".PTH"):
        path = tmp_path / f"a{suffix}"
        with pytest.raises(ValueError, match=r"then: fastgru convert .*a\.safetensors .*a\." + suffix[1:]):
            model.save(path)
        assert not path.exists()
        with pytest.raises(ValueError, match="fastgru convert"):
            callbacks.ModelCheckpoint(path)
    model.save(tmp_path / "a.safetensors")
    model.save(tmp_path / "no-suffix.v2")


def test_validation_that_runs_out() -> None:
    with pytest.warns(UserWarning, match="epoch 1: validation_data ran out of data; nothing is measured"):
        found = small().fit(X, Y, epochs=2, verbose=0, validation_data=batches())
    assert len(found.history["loss"]) == 2
    assert len(found.history["val_loss"]) == 1
    seen = small().fit(X, Y, epochs=3, verbose=0, validation_data=Numbered(), validation_freq=2)
    assert len(seen.history["val_loss"]) == 1
    with pytest.raises(ValueError, match="expected rows to evaluate, found none"):
        small().evaluate(X[:0], Y[:0])


@pytest.mark.parametrize("labels", [np.zeros((20, 5, 1)), np.full((20, 5), 2), np.zeros((20, 5, 3))])
def test_class_weights_are_for_rows(labels: Any) -> None:
    """Of labels of steps the first one, or the largest, would be taken for the row's."""
    with pytest.raises(ValueError, match="class_weight: expected labels of rows, found those of steps, shape"):
        small().fit(X, labels, class_weight={0: 1.0, 1: 2.0, 2: 3.0}, verbose=0)


@pytest.mark.parametrize(("kind", "masked"), [("uint8", -1.0), ("int64", 0.5), ("float32", 0.5)])
def test_ragged_rows_are_padded_with_what_masking_takes_for_padding(kind: str, masked: float) -> None:
    model = Sequential([layers.Input((None, 3)), layers.Masking(masked), layers.GRU(4)])
    rows = [np.arange(1, 3 * n + 1).reshape(n, 3).astype(kind) for n in (5, 2, 3)]
    alone = np.concatenate([model.predict(row[None].astype(np.float32)) for row in rows])
    np.testing.assert_array_equal(model.predict(rows), alone)
