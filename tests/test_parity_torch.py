"""Live comparison with PyTorch: nn.GRU and nn.GRUCell, the same weights and inputs, tensors in."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from helpers_core import assert_close, assert_same

from fastgru import nn, ops

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'fastgru[parity]'")
pytestmark = pytest.mark.parity("torch")

N, T, I, H = 5, 9, 6, 11
LENGTHS = [3, 9, 1, 7, 9]  # PyTorch refuses 0
ATOL = 2e-6


def pair(*args: Any, **kwargs: Any) -> tuple[Any, nn.GRU]:
    """A module of PyTorch, and ours with its weights."""
    torch.manual_seed(0)
    theirs = torch.nn.GRU(*args, **kwargs).eval()
    ours = nn.GRU(*args, **kwargs)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", ["batch", "lengths", "unbatched"])
@pytest.mark.parametrize("with_h0", [False, True])
def test_gru(layers: int, bidirectional: bool, bias: bool, batch_first: bool, kind: str, with_h0: bool) -> None:
    theirs, ours = pair(I, H, layers, bias=bias, batch_first=batch_first, bidirectional=bidirectional)
    x = torch.randn(N, T, I) if batch_first else torch.randn(T, N, I)
    L = layers * (2 if bidirectional else 1)
    h0 = torch.randn(L, N, H) if with_h0 else None
    if kind == "unbatched":
        x, h0 = torch.randn(T, I), torch.randn(L, H) if with_h0 else None
    with torch.no_grad():
        if kind == "lengths":
            packed = torch.nn.utils.rnn.pack_padded_sequence(x, LENGTHS, batch_first, enforce_sorted=False)
            y, h_n = theirs(packed, h0)
            y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, batch_first)
        else:
            y, h_n = theirs(x, h0)
    found = ours(x, h0, LENGTHS if kind == "lengths" else None)
    assert found[0].shape == tuple(y.shape) and found[1].shape == tuple(h_n.shape)
    assert_close(found[0], y.numpy(), ATOL)
    assert_close(found[1], h_n.numpy(), ATOL)
    if kind == "lengths":
        rows = found[0] if batch_first else found[0].transpose(1, 0, 2)
        for row, n in zip(rows, LENGTHS, strict=True):
            assert (row[n:] == 0).all() and (row[:n] != 0).any()


def test_y_keeps_all_steps_where_pytorch_cuts_them() -> None:
    theirs, ours = pair(I, H, batch_first=True)
    x, lengths = torch.randn(N, T, I), [4, 2, 1, 3, 4]
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    with torch.no_grad():
        y, _ = torch.nn.utils.rnn.pad_packed_sequence(theirs(packed)[0], batch_first=True)
    found, _ = ours(x, lengths=torch.tensor(lengths))
    assert y.shape[1] == 4 and found.shape[1] == T
    assert_close(found[:, :4], y.numpy(), ATOL)
    assert (found[:, 4:] == 0).all()


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (1, 40, 64, 64), (3, 2, 130, 17), (33, 12, 20, 100), (70, 6, 1, 129)])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_other_sizes(sizes: tuple[int, ...], bidirectional: bool) -> None:
    rows, steps, inputs, hidden = sizes
    theirs, ours = pair(inputs, hidden, 2, batch_first=True, bidirectional=bidirectional)
    x = torch.randn(rows, steps, inputs)
    with torch.no_grad():
        expected = theirs(x)
    for found, e in zip(ours(x), expected, strict=True):
        assert_close(found, e.numpy(), ATOL)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("with_h", [True, False])
def test_cell(bias: bool, batched: bool, with_h: bool) -> None:
    torch.manual_seed(1)
    theirs, ours = torch.nn.GRUCell(I, H, bias), nn.GRUCell(I, H, bias)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(N, I) if batched else torch.randn(I)
    h = (torch.randn(N, H) if batched else torch.randn(H)) if with_h else None
    with torch.no_grad():
        expected = theirs(x, h) if with_h else theirs(x)
    found = ours(x, h)
    assert found.shape == tuple(expected.shape)
    assert_close(found, expected.numpy(), ATOL)


@pytest.mark.parametrize("bidirectional, bias, layers", list(itertools.product([False, True], [False, True], [1, 2])))
def test_state_dict_round_trip(bidirectional: bool, bias: bool, layers: int) -> None:
    """PyTorch to us and back, strictly: every name, order and value."""
    theirs, ours = pair(I, H, layers, bias=bias, bidirectional=bidirectional)
    state = ours.state_dict()
    assert list(state) == list(theirs.state_dict())
    again = torch.nn.GRU(I, H, layers, bias=bias, bidirectional=bidirectional)
    again.load_state_dict({name: torch.from_numpy(w) for name, w in state.items()}, strict=True)
    x = torch.randn(T, N, I)
    with torch.no_grad():
        assert torch.equal(again(x)[0], theirs(x)[0])


def test_tensors_of_every_kind_are_inputs() -> None:
    theirs, ours = pair(I, H, batch_first=True)
    x = torch.randn(N, T, I)
    expected = ours(x.numpy())[0]
    for view in (x, x.double(), x.transpose(0, 1).contiguous().transpose(0, 1), x.expand(N, T, I), x.detach()):
        assert_same(ours(view)[0], expected)
    assert_same(ours(x.half())[0], ours(x.half().float().numpy())[0])
    assert_same(ours(torch.ones(N, T, I, dtype=torch.int32))[0], ours(np.ones((N, T, I)))[0])
    w = [p.detach() for p in theirs.parameters()]
    assert_same(ops.gru(x, *w)[0], expected)
    mask = torch.arange(T)[None] < torch.tensor(LENGTHS)[:, None]
    assert_same(ops.gru(x, *w, mask=mask)[0], ours(x, lengths=torch.tensor(LENGTHS))[0])
    packed = ops.pack_dense(w[0], w[2])
    assert_close(ops.dense(x, packed), torch.nn.functional.linear(x, w[0], w[2]).numpy(), ATOL)


def test_a_tensor_that_needs_a_gradient_is_refused_by_name() -> None:
    _, ours = pair(I, H)
    for call in (
        lambda x: ours(x),
        lambda x: ops.gru(x, np.ones((3, I)), np.ones((3, 1))),
        lambda x: ops.dense(x, ops.pack_dense(np.ones((1, I)))),
        lambda x: ops.activate(x, "tanh"),
    ):
        with pytest.raises(TypeError, match=r"^x: can't be read as a NumPy array .*detach"):
            call(torch.randn(T, N, I, requires_grad=True))


def test_the_comparison_bites() -> None:
    """A swapped gate and a lost recurrent bias are far outside the tolerance."""
    theirs, ours = pair(I, H)
    x = torch.randn(T, N, I)
    with torch.no_grad():
        expected = theirs(x)[0].numpy()
    state = ours.state_dict()
    for change in ("gates", "bias"):
        spoilt = {name: w.copy() for name, w in state.items()}
        if change == "gates":
            w = spoilt["weight_hh_l0"]
            w[:H], w[H : 2 * H] = w[H : 2 * H].copy(), w[:H].copy()
        else:
            spoilt["bias_hh_l0"][2 * H :] = 0
        ours.load_state_dict(spoilt)
        with pytest.raises(AssertionError):
            assert_close(ours(x)[0], expected, ATOL)
