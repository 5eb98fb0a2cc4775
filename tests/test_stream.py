"""nn.GRU.stream: step by step gives what the whole sequence gives, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from fastgru import nn


@pytest.mark.parametrize("rows", [1, 3, 200])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("reset_after", [True, False])
def test_steps_equal_the_sequence(rows: int, layers: int, reset_after: bool) -> None:
    gru = nn.GRU(5, 33, num_layers=layers, reset_after=reset_after)
    x = np.random.default_rng(0).standard_normal((6, rows, 5)).astype(np.float32)
    y, h_n = gru(x)
    stream = gru.stream(rows)
    for t in range(6):
        assert np.array_equal(stream.step(x[t]), y[t])
    assert np.array_equal(stream.state, h_n)


def test_state_is_read_written_and_reset_in_place() -> None:
    gru = nn.GRU(4, 6)
    x = np.ones((3, 4), np.float32)
    stream = gru.stream(3)
    first = stream.step(x).copy()
    stream.reset([0, 2])
    assert not stream.state[:, [0, 2]].any() and np.array_equal(stream.state[0, 1], first[1])
    assert np.array_equal(stream.step(x)[[0, 2]], first[[0, 2]])
    stream.reset()
    assert not stream.state.any()
    stream.state[...] = 0.5
    assert np.array_equal(stream.step(x), gru(x[None], np.full((1, 3, 6), 0.5, np.float32))[0][0])


@pytest.mark.parametrize("rows", [1, 200])
@pytest.mark.parametrize("layers", [1, 2])
def test_an_output_fed_back_is_read_before_it_is_written(rows: int, layers: int) -> None:
    gru = nn.GRU(64, 64, num_layers=layers)
    x = np.random.default_rng(1).standard_normal((rows, 64)).astype(np.float32)
    ours, theirs = gru.stream(rows), gru.stream(rows)
    y, kept = ours.step(x), theirs.step(x).copy()
    for _ in range(3):
        y, kept = ours.step(y), theirs.step(kept).copy()
        assert np.array_equal(y, kept)
    assert np.array_equal(ours.step(ours.state[-1, ::-1]), theirs.step(theirs.state[-1, ::-1].copy()))


def test_other_dtypes_and_bad_input() -> None:
    gru = nn.GRU(3, 5)
    stream = gru.stream(2)
    x = np.ones((2, 3))
    assert np.array_equal(stream.step(x), gru(x[None])[0][0])
    for bad in (np.ones((3, 3)), np.ones((2, 4)), np.ones(3), "x", None):
        with pytest.raises((TypeError, ValueError), match="x"):
            stream.step(bad)
    with pytest.raises(ValueError, match="batch_size"):
        gru.stream(0)
    with pytest.raises(ValueError, match="num_threads"):
        gru.stream(num_threads=0)
    with pytest.raises(ValueError, match="bidirectional"):
        nn.GRU(3, 5, bidirectional=True).stream()
