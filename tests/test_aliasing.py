"""Arrays of the caller's that change, overlap or come from elsewhere, and objects that are made in odd ways."""

from __future__ import annotations

import contextlib
import copy
import pickle

import numpy as np
import pytest

from fastgru import nn, ops

RNG = np.random.default_rng(0)
WEIGHTS = [RNG.standard_normal(shape).astype(np.float32) / 4 for shape in ((21, 3), (21, 7))]


@pytest.mark.parametrize("return_cache", [True, "recompute"])
@pytest.mark.parametrize("kind", ["lengths", "offsets"])
def test_a_cache_keeps_its_own_lengths(kind: str, return_cache: bool | str) -> None:
    x = RNG.standard_normal((4, 50, 3) if kind == "lengths" else (50, 3)).astype(np.float32)
    given = np.array([3, 2, 2, 1] if kind == "lengths" else [0, 20, 30, 50])
    mine = given.copy()
    y, _, cache = ops.gru(x, *WEIGHTS, **{kind: mine}, return_cache=return_cache)
    mine[...] = np.array([40, 50, 1, 1] if kind == "lengths" else [0, 1, 2, 50])  # refilled for the next batch
    found = ops.gru_backward(np.ones_like(y), cache)
    y, _, cache = ops.gru(x, *WEIGHTS, **{kind: given}, return_cache=True)
    assert np.array_equal(found.dweight_hh, ops.gru_backward(np.ones_like(y), cache).dweight_hh)


def test_an_output_over_its_own_offsets_or_itself() -> None:
    room = np.zeros(1000, np.float32)
    offsets = room[:8].view(np.int64)
    offsets[:] = [0, 3, 5, 9]
    x = RNG.standard_normal((9, 3)).astype(np.float32)
    expected, _ = ops.gru(x, *WEIGHTS, offsets=[0, 3, 5, 9])
    y, _ = ops.gru(x, *WEIGHTS, offsets=offsets, out=room[: 9 * 7].reshape(9, 7))
    assert np.array_equal(y, expected)
    itself = np.lib.stride_tricks.as_strided(np.zeros(99, np.float32), (2, 3, 7), (4, 8, 4))
    with pytest.raises(ValueError, match="out"):
        ops.gru(np.zeros((2, 3, 3), np.float32), *WEIGHTS, out=itself)


def test_packed_weights_cannot_be_empty_or_replaced() -> None:
    packed = ops.pack_gru(*WEIGHTS)
    for cls in (ops.PackedGRU, ops.PackedDense):
        with pytest.raises(TypeError):
            cls.__new__(cls)
    x = np.ones((1, 2, 3), np.float32)
    before, _ = ops.gru(x, packed)
    with contextlib.suppress(TypeError):
        packed.__init__(*WEIGHTS, None, None, True, "tanh", "sigmoid", None)  # type: ignore[misc]
    assert np.array_equal(ops.gru(x, packed)[0], before)


def test_one_record_of_a_structured_array() -> None:
    x = np.zeros(1, dtype=[("x", "f4", (3, 4)), ("b", "i1")])["x"]  # strides (49, 16, 4)
    y, h_n = nn.GRU(4, 5, batch_first=True)(x)
    assert y.shape == (1, 3, 5) and h_n.shape == (1, 1, 5)


@pytest.mark.parametrize("module", [nn.GRU(3, 4, num_layers=2, bidirectional=True), nn.GRUCell(3, 4)])
def test_modules_are_pickled_and_copied_by_their_weights(module: nn.GRU | nn.GRUCell) -> None:
    x = RNG.standard_normal((2, 3) if isinstance(module, nn.GRUCell) else (5, 2, 3)).astype(np.float32)
    for other in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        assert np.array_equal(np.asarray(module(x)[0]), np.asarray(other(x)[0]))


def test_activation_parameters_must_be_finite_numbers() -> None:
    for bad in (("elu", 10**400), ("elu", None), ("elu", float("nan"))):
        with pytest.raises(ValueError, match="activation"):
            ops.pack_gru(*WEIGHTS, activation=bad)
