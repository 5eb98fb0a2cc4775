"""Stateful layers in training: the state goes from batch to batch, its gradient does not (truncated BPTT)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers_parity import framework

from fastgru import Sequential, layers
from fastgru.layers.training_step import TrainingStep
from fastgru.training import callbacks, optimizers
from fastgru.training.fit import NotFinite

RNG = np.random.default_rng(11)
#: Four long rows in three parts, one after the other, as batches of four rows
LONG = RNG.normal(size=(4, 15, 3)).astype(np.float32)
X = np.concatenate([LONG[:, :5], LONG[:, 5:10], LONG[:, 10:]])
Y = RNG.normal(size=(12, 1)).astype(np.float32)


def small(**options: Any) -> Any:
    return Sequential([layers.GRU(4, stateful=True, **options), layers.Dense(1)])


def started(model: Any = None, optimizer: Any = "sgd") -> Any:
    """Compiled, its weights the same each time."""
    model = (model or small()).compile(optimizer, "mse")
    model.fit(X[:4], Y[:4], epochs=0, seed=3, verbose=0)
    return model


def gru(model: Any) -> Any:
    return model.layers[0]


class Reset(callbacks.Callback):
    """As users do it: a new epoch begins the rows anew."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.model.reset_states()


def test_building_leaves_no_state() -> None:
    assert gru(started()).states is None


def test_the_state_goes_on_as_if_the_rows_were_whole() -> None:
    model = Sequential([layers.GRU(4, stateful=True, return_sequences=True), layers.Dense(1)])
    model.compile(optimizers.SGD(0.0), "mse")
    parts = [model.train_on_batch(X[i : i + 4], np.zeros((4, 5)), seed=3) for i in (0, 4, 8)]
    model.reset_states()
    assert np.mean(parts) == pytest.approx(model.test_on_batch(LONG, np.zeros((4, 15))), rel=1e-5)


@pytest.mark.parametrize("layer", ["gru", "stack", "bidirectional"])
def test_gradients_are_those_of_a_start_from_the_state(layer: str) -> None:
    """The second batch's gradients: numerically, in float64 differences of a loss whose start is held fixed."""
    made: Any = {
        "gru": lambda: layers.GRU(4, stateful=True),
        "stack": lambda: layers.RNN([layers.GRUCell(4), layers.GRUCell(3)], stateful=True),
        "bidirectional": lambda: layers.Bidirectional(layers.GRU(4, stateful=True)),
    }[layer]()
    model = started(Sequential([made, layers.Dense(1)]))
    model.test_on_batch(X[:4], Y[:4])
    paths = [part for part in (made, *made.parts().values()) if getattr(part, "stateful", False)]
    kept = [part.states for part in paths]
    assert all(any(s.any() for s in states) for states in kept)

    def loss() -> float:
        for part, states in zip(paths, kept, strict=True):
            part.states = states
        y = np.asarray(model.predict(X[4:8]), np.float64)
        return float(np.square(y - Y[4:8]).mean())

    loss()
    for part, states in zip(paths, kept, strict=True):
        part.states = states
    step = TrainingStep()
    y, _, back = model.train(X[4:8], None, step)
    back((2 * (y - Y[4:8]) / y.size).astype(np.float32))
    checked = 0
    for owner, found in step.gradients.items():
        for name, gradient in found.items():
            weight = owner.weights[name]
            dense = np.asarray(gradient)
            for place in [tuple(RNG.integers(0, n) for n in weight.shape) for _ in range(6)]:
                ends = []
                for side in (1, -1):
                    weights = {k: np.array(v) for k, v in owner.weights.items()}
                    weights[name][place] += np.float32(side * 2e-2)
                    before, _ = owner.weights, owner.assign(weights)
                    ends.append((loss(), float(weights[name][place])))
                    owner.assign(before)
                slope = (ends[0][0] - ends[1][0]) / (ends[0][1] - ends[1][1])
                assert dense[place] == pytest.approx(slope, rel=2e-2, abs=2e-4), (name, place)
                checked += 1
    assert checked >= 24


@pytest.mark.parity("keras")
@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("kind", ["gru", "sequences", "bidirectional"])
def test_losses_and_states_of_keras(kind: str, reset: bool) -> None:
    keras = framework("keras")

    def made(a: Any) -> list[Any]:
        if kind == "bidirectional":
            return [a.Bidirectional(a.GRU(4, stateful=True)), a.Dense(1)]
        if kind == "sequences":
            return [a.GRU(4, stateful=True, return_sequences=True), a.GRU(3, stateful=True), a.Dense(1)]
        return [a.GRU(4, stateful=True), a.Dense(1)]

    theirs = keras.Sequential([keras.layers.Input(batch_shape=(4, 5, 3)), *made(keras.layers)])
    theirs.compile(keras.optimizers.SGD(0.1), "mse")
    mine = started(Sequential(made(layers)), optimizers.SGD(0.1))
    mine.set_weights(theirs.get_weights())

    class Theirs(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            for layer in self.model.layers:
                if hasattr(layer, "reset_states"):
                    layer.reset_states()

    options: dict[str, Any] = {"batch_size": 4, "epochs": 3, "shuffle": False, "verbose": 0}
    held = (X[4:8] / 2, Y[4:8])
    wanted = theirs.fit(X, Y, **options, validation_data=held, callbacks=[Theirs()] if reset else [])
    found = mine.fit(X, Y, **options, validation_data=held, callbacks=[Reset()] if reset else [])
    for key in ("loss", "val_loss"):
        np.testing.assert_allclose(found.history[key], wanted.history[key], rtol=1e-4, err_msg=key)
    for a, b in zip(mine.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    for one, other in zip(mine.layers, theirs.layers, strict=True):
        parts = (
            [(one.forward_layer, other.forward_layer), (one.backward_layer, other.backward_layer)]
            if kind == "bidirectional" and hasattr(one, "forward_layer")
            else [(one, other)]
        )
        for ours, keras_layer in parts:
            if getattr(ours, "stateful", False):
                state = np.asarray(keras_layer.states[0])
                np.testing.assert_allclose(ours.states[0], state, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mine.evaluate(X, Y, 4), theirs.evaluate(X, Y, batch_size=4, verbose=0), rtol=1e-4)


def test_reset_states() -> None:
    model = started()
    first = model.test_on_batch(X[:4], Y[:4])
    assert model.test_on_batch(X[:4], Y[:4]) != first
    model.reset_states()
    assert model.test_on_batch(X[:4], Y[:4]) == first
    gru(model).reset_state()
    assert model.test_on_batch(X[:4], Y[:4]) == first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 5}, "x: expected a number of rows that batch_size 5 divides, found 12: stateful layers"),
        ({"validation_data": (X[:6], Y[:6])}, "validation_data: expected a number of rows that batch_size 4 divides"),
        (
            {"validation_data": (X[:4], Y[:4]), "validation_batch_size": 2},
            "validation_data: expected batches of 4 rows",
        ),
        (
            {"validation_split": 0.5, "batch_size": 6, "validation_batch_size": 3},
            "validation_data: expected batches of 6",
        ),
    ],
)
def test_batches_of_other_sizes(options: dict[str, Any], message: str) -> None:
    model, other = started(), started()
    with pytest.raises(ValueError, match=message):
        model.fit(X, Y, **{"batch_size": 4, "shuffle": False, "verbose": 0, **options})
    for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert gru(model).states is None


def test_a_batch_of_another_size_than_the_state() -> None:
    model = started()
    model.train_on_batch(X[:4], Y[:4])
    before, states = model.get_weights(), gru(model).states
    for call in (model.train_on_batch, model.test_on_batch):
        with pytest.raises(ValueError, match=r"stateful with 4 rows, found 2; call reset_states\(\)"):
            call(X[:2], Y[:2])
    with pytest.raises(ValueError, match="stateful with 4 rows, found 6"):
        model.fit(X, Y, 6, shuffle=False, verbose=0)
    assert gru(model).states is states
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    model.reset_states()
    model.train_on_batch(X[:2], Y[:2])


def test_a_batch_that_fails_leaves_the_state_of_before() -> None:
    model = started()
    model.train_on_batch(X[:4], Y[:4])
    states = gru(model).states
    with pytest.raises(NotFinite):
        model.train_on_batch(np.full_like(X[:4], np.nan), Y[:4])
    assert gru(model).states is states


def test_shuffled_rows_are_told() -> None:
    with pytest.warns(UserWarning, match="shuffle: expected False"):
        started().fit(X, Y, 4, verbose=0)
