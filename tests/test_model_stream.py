"""Model.stream: each step gives what predict gives for the sequence so far."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import fastgru
from fastgru import Sequential, layers


def test_golden_model_step_by_step(golden: Path) -> None:
    model = fastgru.load(golden / "keras_text_gru.keras")
    x = np.load(golden / "keras_text_gru.expected.npz")["x0"]
    ids = x[(x != 0).all(axis=1)] if (x != 0).all(axis=1).any() else np.maximum(x, 1)
    stream = model.stream(len(ids))
    for t in range(ids.shape[1]):
        assert np.array_equal(stream.step(ids[:, t]), model.predict(ids[:, : t + 1]))
    first = stream.step(ids[:, 0])
    stream.reset()
    assert np.array_equal(stream.step(ids[:, 0]), model.predict(ids[:, :1]))
    assert not np.array_equal(first, model.predict(ids[:, :1]))
    assert [s.shape[0] for s in stream.state] == [len(ids)] * len(stream.state)


@pytest.mark.parametrize("sequences", [True, False])
def test_every_stepwise_layer(sequences: bool) -> None:
    model = Sequential(
        [
            layers.TimeDistributed(layers.Dense(6)),
            layers.LayerNormalization(),
            layers.RNN([layers.GRUCell(5), layers.GRUCell(7)], return_sequences=True),
            layers.BatchNormalization(),
            layers.ELU(),
            layers.GRU(4, return_sequences=sequences),
            layers.Dropout(0.5),
            layers.Dense(3, activation="softmax"),
        ]
    )
    x = np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)
    y = model.predict(x)
    stream = model.stream(2)
    for t in range(5):
        step = stream.step(x[:, t])
        assert np.array_equal(step, y[:, t] if sequences else model.predict(x[:, : t + 1]))
    assert [s.shape for s in stream.state] == [(2, 5), (2, 7), (2, 4)]


def test_refused_by_name() -> None:
    x = np.zeros((2, 5, 8), np.float32)
    for layer in (layers.Bidirectional(layers.GRU(3), name="both"), layers.GRU(3, go_backwards=True, name="both")):
        model = Sequential([layer])
        model.predict(x)
        with pytest.raises(ValueError, match="'both'"):
            model.stream()
    model = Sequential([layers.GRU(3)])
    model.predict(x)
    stream = model.stream(2)
    for bad in (np.zeros((3, 8)), np.zeros((2, 7)), np.zeros(2), 1.0):
        with pytest.raises(ValueError, match="expected"):
            stream.step(bad)
    with pytest.raises(ValueError, match="batch_size"):
        model.stream(0)
