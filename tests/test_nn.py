"""nn.GRU and nn.GRUCell against a stack of reference layers: shapes, names, layouts, state_dict, bad input."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers_core import assert_close, assert_same

import fastgru
from fastgru import nn, reference

N, T, I, H = 4, 6, 3, 7
RNG = np.random.default_rng(0)
X = RNG.standard_normal((N, T, I)).astype(np.float32)
LENGTHS = np.array([6, 2, 0, 5])
NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def stacked_reference(gru: nn.GRU, x: Any, h0: Any = None, lengths: Any = None) -> tuple[Any, Any]:
    """y and h_n in float64 for batch-first x; h0 and h_n (L·D, N, H)."""
    w = {name: a.astype(np.float64) for name, a in gru.state_dict().items()}
    variant = {
        "reset_after": gru.reset_after,
        "activation": gru.activation,
        "recurrent_activation": gru.recurrent_activation,
    }
    y, states = x.astype(np.float64), []
    for layer in range(gru.num_layers):
        outputs = []
        for direction in ("", "_reverse")[: 2 if gru.bidirectional else 1]:
            some = [w.get(f"{name}_l{layer}{direction}") for name in NAMES]
            start = None if h0 is None else h0[len(states)].astype(np.float64)
            out, h_n = reference.gru(y, *some, start, lengths=lengths, reverse=bool(direction), **variant)
            outputs.append(out)
            states.append(h_n)
        y = np.concatenate(outputs, axis=2)
    return y, np.stack(states)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("ragged", [False, True])
def test_stack_matches_reference(layers: int, bidirectional: bool, bias: bool, ragged: bool) -> None:
    for reset_after, with_h0 in itertools.product((True, False), (True, False)):
        gru = nn.GRU(I, H, layers, bias, True, bidirectional, reset_after=reset_after)
        D = 2 if bidirectional else 1
        h0 = RNG.standard_normal((layers * D, N, H)).astype(np.float32) if with_h0 else None
        lengths = LENGTHS if ragged else None
        y, h_n = gru(X, h0, lengths)
        assert y.shape == (N, T, D * H) and h_n.shape == (layers * D, N, H)
        assert y.dtype == h_n.dtype == np.float32
        y_expected, h_expected = stacked_reference(gru, X, h0, lengths)
        assert_close(y, y_expected)
        assert_close(h_n, h_expected)
        gru.batch_first = False
        y_now, h_now = gru(X.transpose(1, 0, 2), h0, lengths)
        assert_same(y_now.transpose(1, 0, 2), y)
        assert_same(h_now, h_n)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_one_sequence_without_a_batch_axis(bidirectional: bool, batch_first: bool) -> None:
    gru = nn.GRU(I, H, 2, batch_first=batch_first, bidirectional=bidirectional)
    L = 4 if bidirectional else 2
    h0 = RNG.standard_normal((L, H)).astype(np.float32)
    many = (X[:1], h0[:, None]) if batch_first else (X[0][:, None], h0[:, None])
    y, h_n = gru(X[0], h0)
    assert y.shape == (T, H * L // 2) and h_n.shape == (L, H)
    expected = gru(*many)
    assert_same(y, expected[0].reshape(y.shape))
    assert_same(h_n, expected[1][:, 0])
    assert_same(gru(X[0])[0], gru(many[0])[0].reshape(y.shape))


def test_batch_first_is_read_at_each_call() -> None:
    gru = nn.GRU(I, H)
    assert gru(X)[1].shape == (1, T, H)
    gru.batch_first = True
    assert gru(X)[1].shape == (1, N, H)


@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_cell_is_one_step(reset_after: bool, bias: bool) -> None:
    cell = nn.GRUCell(I, H, bias, reset_after=reset_after)
    w = {name: a.astype(np.float64) for name, a in cell.state_dict().items()}
    h = RNG.standard_normal((N, H)).astype(np.float32)
    some = [w.get(name) for name in NAMES]
    for state in (h, None, h.astype(np.float64), h.tolist(), np.asfortranarray(h)):
        old = np.zeros((N, H)) if state is None else h.astype(np.float64)
        found = cell(X[:, 0], state)
        assert found.shape == (N, H) and found.dtype == np.float32
        assert_close(found, reference.gru_cell(X[:, 0].astype(np.float64), old, *some, reset_after=reset_after))
    one = cell(X[0, 0], h[0])
    assert one.shape == (H,)
    assert_same(one, cell(X[:1, 0], h[:1])[0])
    assert_same(cell(X[0, 0]), cell(X[:1, 0])[0])


def test_cell_and_layer_agree_bit_for_bit() -> None:
    gru, cell = nn.GRU(I, H, batch_first=True), nn.GRUCell(I, H)
    cell.load_state_dict({name[:-3]: a for name, a in gru.state_dict().items()})
    h = np.zeros((N, H), np.float32)
    for t in range(T):
        h = cell(X[:, t], h)
    assert_same(h, gru(X)[1][0])


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_other_inputs_give_the_same_bits(lengths: Any) -> None:
    """The quick call path takes plain float32; everything else is converted, and must come out the same."""
    gru = nn.GRU(I, H, 2, batch_first=True, bidirectional=True)
    h0 = RNG.standard_normal((4, N, H)).astype(np.float32)
    y, h_n = gru(X, h0, lengths)
    room = np.zeros((2 * N, 3 * T, 2 * I), np.float32)
    room[::2, ::3, ::2] = X
    record = np.zeros((N, T), np.dtype([("tag", "u1"), ("x", np.float32, (I,))]))
    record["x"] = X
    for x in (
        X.astype(float),
        X.tolist(),
        X.view(np.memmap),
        X.astype(">f4"),
        np.asfortranarray(X),
        room[::2, ::3, ::2],
    ):
        for state in (h0, h0.astype(float), np.asfortranarray(h0), h0.tolist(), h0.view(np.memmap)):
            found = gru(x, state, lengths)
            assert_same(found[0], y)
            assert_same(found[1], h_n)
    assert_same(gru(record["x"], h0, lengths)[0], y)
    for view in (X[::-1], X[:, ::-1], X[1:2], np.broadcast_to(X[:1], X.shape), np.broadcast_to(X[:, :1], X.shape)):
        some = None if lengths is None else lengths[: len(view)]
        assert_same(gru(view, lengths=some)[0], gru(view.copy(), lengths=some)[0])


@pytest.mark.parametrize("rows, steps", [(0, T), (N, 0), (0, 0), (1, 1)])
@pytest.mark.parametrize("batch_first", [True, False])
def test_no_rows_or_no_steps(rows: int, steps: int, batch_first: bool) -> None:
    gru = nn.GRU(I, H, 2, batch_first=batch_first, bidirectional=True)
    shape = (rows, steps) if batch_first else (steps, rows)
    h0 = RNG.standard_normal((4, rows, H)).astype(np.float32)
    for lengths in (None, np.full(rows, steps)):
        y, h_n = gru(np.zeros((*shape, I), np.float32), h0, lengths)
        assert y.shape == (*shape, 2 * H) and h_n.shape == (4, rows, H)
        if steps == 0:
            assert_same(h_n, h0)
    y, h_n = gru(np.zeros((0, I), np.float32), h0=np.ones((4, H)))
    assert y.shape == (0, 2 * H) and (h_n == 1).all()
    assert nn.GRUCell(I, H)(np.zeros((0, I))).shape == (0, H)


def test_all_lengths_zero() -> None:
    gru = nn.GRU(I, H, 2, batch_first=True)
    h0 = RNG.standard_normal((2, N, H)).astype(np.float32)
    y, h_n = gru(X, h0, [0] * N)
    assert (y == 0).all()
    assert_same(h_n, h0)


def test_state_dict_has_pytorchs_names_shapes_and_order() -> None:
    gru = nn.GRU(I, H, 2, bidirectional=True)
    found = {name: a.shape for name, a in gru.state_dict().items()}
    expected = {}
    for layer, width in ((0, I), (1, 2 * H)):
        for direction in ("", "_reverse"):
            s = f"_l{layer}{direction}"
            expected |= {"weight_ih" + s: (3 * H, width), "weight_hh" + s: (3 * H, H)}
            expected |= {"bias_ih" + s: (3 * H,), "bias_hh" + s: (3 * H,)}
    assert list(found.items()) == list(expected.items())
    assert list(nn.GRU(I, H, bias=False).state_dict()) == ["weight_ih_l0", "weight_hh_l0"]
    assert list(nn.GRUCell(I, H).state_dict()) == list(NAMES)


def test_state_dict_copies_both_ways() -> None:
    a, b = nn.GRU(I, H, 2), nn.GRU(I, H, 2)
    taken = a.state_dict()
    b.load_state_dict(taken)
    expected = a(X)[0]
    assert_same(b(X)[0], expected)
    for w in taken.values():
        w[...] = 0
    assert_same(a(X)[0], expected)
    assert_same(b(X)[0], expected)


def test_initial_weights_are_uniform_within_pytorchs_limit() -> None:
    w = np.concatenate([a.ravel() for a in nn.GRU(50, 64, 2).state_dict().values()])
    assert np.abs(w).max() <= 1 / 8 and abs(w.mean()) < 1e-3 and np.isclose(w.std(), 1 / 8 / 3**0.5, rtol=0.02)
    assert not np.array_equal(nn.GRUCell(I, H).state_dict()["bias_ih"], nn.GRUCell(I, H).state_dict()["bias_ih"])


def test_a_failed_load_changes_nothing() -> None:
    gru = nn.GRU(I, H)
    before, y = gru.state_dict(), gru(X)[0]
    good = nn.GRU(I, H).state_dict()
    for bad in (
        {k: v for k, v in good.items() if k != "bias_hh_l0"},
        {**good, "weight_ih_l1": good["weight_hh_l0"]},
        {**good, "bias_hh_l0": good["bias_hh_l0"][:-1]},
        {**good, "bias_hh_l0": "zeros"},
        {},
    ):
        with pytest.raises((KeyError, ValueError, TypeError)):
            gru.load_state_dict(bad)
    for name, w in gru.state_dict().items():
        assert_same(w, before[name])
    assert_same(gru(X)[0], y)


GRU, BATCH_FIRST, CELL = nn.GRU(I, H, 2), nn.GRU(I, H, 2, batch_first=True), nn.GRUCell(I, H)
GOOD = GRU.state_dict()
WHAT: dict[str, Any] = {
    "strings": np.full((N, T, I), "a"),
    "objects": X.astype(object),
    "complex": X.astype(complex),
    "ragged list": [[1.0, 2.0], [3.0]],
    "None": None,
    "a dict": {},
    "text": "x",
}
BAD: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    *[(f"x {what}", lambda x=x: GRU(x), TypeError, "^x: ") for what, x in WHAT.items()],
    *[(f"cell x {what}", lambda x=x: CELL(x), TypeError, "^x: ") for what, x in WHAT.items()],
    *[(f"h0 {what}", lambda x=x: GRU(X, x), TypeError, "^h0: ") for what, x in WHAT.items() if x is not None],
    *[(f"cell h {what}", lambda x=x: CELL(X[0], x), TypeError, "^h: ") for what, x in WHAT.items() if x is not None],
    ("x width", lambda: GRU(X[..., :2]), ValueError, r"^x: expected shape \(T, N, 3\), found \(4, 6, 2\)$"),
    (
        "x width, batch",
        lambda: BATCH_FIRST(X[..., :2]),
        ValueError,
        r"^x: expected shape \(N, T, 3\), found \(4, 6, 2\)$",
    ),
    ("x 1-D", lambda: GRU(X[0, 0]), ValueError, r"^x: expected shape \(T, N, 3\), found \(3,\)$"),
    ("x 4-D", lambda: GRU(X[None]), ValueError, r"^x: expected shape \(T, N, 3\), found \(1, 4, 6, 3\)$"),
    ("x 2-D width", lambda: GRU(X[0, :, :2]), ValueError, r"^x: expected shape \(T, 3\), found \(6, 2\)$"),
    (
        "h0 rows",
        lambda: GRU(X, np.zeros((2, N, H))),
        ValueError,
        r"^h0: expected shape \(2, 6, 7\), found \(2, 4, 7\)$",
    ),
    (
        "h0 layers",
        lambda: GRU(X, np.zeros((1, T, H))),
        ValueError,
        r"^h0: expected shape \(2, 6, 7\), found \(1, 6, 7\)$",
    ),
    ("h0 float32 rows", lambda: GRU(X, np.zeros((2, N, H), np.float32)), ValueError, r"^h0: .*found \(2, 4, 7\)$"),
    ("h0 float32 layers", lambda: GRU(X, np.zeros((3, T, H), np.float32)), ValueError, r"^h0: .*found \(3, 6, 7\)$"),
    ("h0 float32 width", lambda: GRU(X, np.zeros((2, T, 8), np.float32)), ValueError, r"^h0: .*found \(2, 6, 8\)$"),
    ("h0 2-D for a batch", lambda: GRU(X, np.zeros((2, H), np.float32)), ValueError, r"^h0: .*found \(2, 7\)$"),
    ("h0 3-D for one", lambda: GRU(X[0], np.zeros((2, 1, H), np.float32)), ValueError, r"^h0: expected shape \(2, 7\)"),
    ("lengths long", lambda: BATCH_FIRST(X, lengths=[1, 2, 3, 7]), ValueError, "^lengths: .* found 7 for row 3$"),
    ("lengths negative", lambda: BATCH_FIRST(X, lengths=[1, 2, 3, -7]), ValueError, "^lengths: .* found -7 for row 3$"),
    ("lengths NaN", lambda: BATCH_FIRST(X, lengths=[1, 2, 3, np.nan]), ValueError, "^lengths: .* found nan$"),
    ("lengths of T", lambda: GRU(X, lengths=[1] * N), ValueError, r"^lengths: expected shape \(6,\), found \(4,\)$"),
    ("lengths text", lambda: GRU(X, lengths="abc"), TypeError, "^lengths: "),
    ("lengths for one", lambda: GRU(X[0], lengths=[3]), ValueError, "^lengths: expected None for one sequence"),
    *[
        (f"threads {n!r}", lambda n=n: GRU(X, num_threads=n), TypeError, "^num_threads: ")
        for n in (1.5, "1", True, [2])
    ],
    *[(f"threads {n}", lambda n=n: GRU(X, num_threads=n), ValueError, "^num_threads: ") for n in (0, -3)],
    ("cell threads", lambda: CELL(X[0], num_threads=0), ValueError, "^num_threads: "),
    ("cell width", lambda: CELL(X[0, :, :2]), ValueError, r"^x: expected shape \(N, 3\), found \(6, 2\)$"),
    ("cell 1-D width", lambda: CELL(X[0, 0, :2]), ValueError, r"^x: expected shape \(3,\), found \(2,\)$"),
    ("cell rank", lambda: CELL(X), ValueError, r"^x: expected shape \(N, 3\), found \(4, 6, 3\)$"),
    ("cell h rows", lambda: CELL(X[0], np.zeros((5, H))), ValueError, r"^h: expected shape \(6, 7\), found \(5, 7\)$"),
    ("cell h rank", lambda: CELL(X[0, 0], np.zeros((1, H))), ValueError, r"^h: expected shape \(7,\), found \(1, 7\)$"),
    *[
        (
            f"{name} {size!r}",
            lambda kw={name: size}: nn.GRU(**{"input_size": 2, "hidden_size": 2, **kw}),
            ValueError,
            name,
        )
        for name in ("input_size", "hidden_size", "num_layers")
        for size in (0, -1, 1.0, "2", None, True)
    ],
    ("cell size", lambda: nn.GRUCell(0, 2), ValueError, "^input_size: expected a whole number >= 1, found 0$"),
    ("activation", lambda: nn.GRU(2, 2, activation="swish"), ValueError, "^activation: .*found 'swish'$"),
    ("recurrent", lambda: nn.GRUCell(2, 2, recurrent_activation="swish"), ValueError, "^recurrent_activation: .*swish"),
    ("missing", lambda: GRU.load_state_dict({}), KeyError, "missing .*weight_ih_l0.*unknown none"),
    ("unknown", lambda: GRU.load_state_dict({**GOOD, "w": 1}), KeyError, "missing none, unknown .*w"),
    (
        "shape",
        lambda: GRU.load_state_dict({**GOOD, "weight_hh_l1": np.zeros((21, 6))}),
        ValueError,
        r"^weight_hh_l1: expected shape \(21, 7\), found \(21, 6\)$",
    ),
    ("not numbers", lambda: GRU.load_state_dict({**GOOD, "bias_ih_l0": None}), TypeError, "^bias_ih_l0: expected"),
]


@pytest.mark.parametrize("call, error, message", [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input_is_named(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises((ValueError, TypeError, KeyError)) as caught:
            call()
    assert isinstance(caught.value, error), f"expected {error.__name__}, found {caught.value!r}"
    caught.match(message)


def test_bad_num_threads_is_refused_also_without_rows() -> None:
    for call in (lambda: GRU(np.zeros((T, 0, I), np.float32), num_threads=0), lambda: GRU(X[:0], num_threads=0)):
        with pytest.raises(ValueError, match="^num_threads: "):
            call()


def test_repr_says_what_differs() -> None:
    assert repr(nn.GRU(3, 5)) == "GRU(3, 5, batch_first=False)"
    text = repr(nn.GRU(3, 5, 2, False, True, True, reset_after=False))
    assert text == "GRU(3, 5, num_layers=2, bias=False, bidirectional=True, reset_after=False, batch_first=True)"
    assert repr(nn.GRUCell(3, 5)) == "GRUCell(3, 5)"


# --- streams ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 3, 9, 70])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("reset_after", [True, False])
def test_a_stream_has_the_bits_of_the_sequence(rows: int, layers: int, reset_after: bool) -> None:
    gru = nn.GRU(I, H, layers, batch_first=True, reset_after=reset_after)
    x = np.random.default_rng(rows).standard_normal((rows, T, I)).astype(np.float32)
    y, h_n = gru(x)
    stream = gru.stream(rows)
    assert stream.batch_size == rows and stream.state.shape == (layers, rows, H) and (stream.state == 0).all()
    for t in range(T):
        assert_same(stream.step(x[:, t]), y[:, t])
    assert_same(stream.state, h_n)
    other = gru.stream(rows)
    for t in range(T):  # what must be converted first
        assert_same(other.step(x[:, t].tolist() if t % 2 else x[:, t].astype(float)), y[:, t])


def test_a_streams_state_can_be_set_and_reset() -> None:
    gru = nn.GRU(I, H, 2, batch_first=True)
    h0 = RNG.standard_normal((2, N, H)).astype(np.float32)
    stream = gru.stream(N)
    stream.state[...] = h0
    y, h_n = gru(X, h0)
    for t in range(T):
        assert_same(stream.step(X[:, t]), y[:, t])
    assert_same(stream.state, h_n)
    stream.reset([1, 3])
    assert (stream.state[:, [1, 3]] == 0).all()
    assert_same(stream.state[:, [0, 2]], h_n[:, [0, 2]])
    fresh = gru(X[:, :1])[0][:, 0]
    assert_same(stream.step(X[:, 0])[[1, 3]], fresh[[1, 3]])
    stream.reset()
    assert (stream.state == 0).all()
    assert_same(stream.step(X[:, 0]), fresh)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("what", ["output", "state", "output backwards", "part of the state"])
def test_a_stream_may_be_fed_its_own_output(layers: int, what: str) -> None:
    gru = nn.GRU(H, H, layers, batch_first=True)
    stream, apart = gru.stream(N), gru.stream(N)
    first = RNG.standard_normal((N, H)).astype(np.float32)
    y = stream.step(first)
    apart.step(first)
    for _ in range(5):
        x = {"output": y, "state": stream.state[0], "output backwards": y[::-1]}.get(what, stream.state[-1, ::-1])
        copied = x.copy()
        y = stream.step(x)
        assert_same(y, apart.step(copied))
        assert_same(stream.state, apart.state)


def test_streams_of_one_model_are_apart() -> None:
    gru = nn.GRU(I, H, batch_first=True)
    a, b = gru.stream(N), gru.stream(N)
    y = gru(X)[0]
    a.step(X[:, 0])
    assert (b.state == 0).all()
    assert_same(b.step(X[:, 0]), y[:, 0])
    assert_same(a.step(X[:, 1]), y[:, 1])


def test_bad_stream_input_is_named_and_changes_nothing() -> None:
    gru = nn.GRU(I, H)
    stream = gru.stream(2)
    for bad, error in (
        (np.zeros((3, I)), ValueError),
        (np.zeros((3, I), np.float32), ValueError),
        (np.zeros((2, I + 1), np.float32), ValueError),
        (np.zeros(I, np.float32), ValueError),
        (np.zeros((1, 2, I)), ValueError),
        (None, TypeError),
        ("x", TypeError),
        (np.zeros((2, I), complex), TypeError),
        ([[1.0], [2.0, 3.0]], TypeError),
    ):
        with pytest.raises(error, match="^x: "):
            stream.step(bad)
    assert (stream.state == 0).all()
    for rows in (0, -1, 1.0, None, "1"):
        with pytest.raises(ValueError, match="^batch_size: "):
            gru.stream(rows)
    with pytest.raises(ValueError, match="^num_threads: "):
        gru.stream(1, num_threads=0)
    with pytest.raises(ValueError, match="bidirectional"):
        nn.GRU(I, H, bidirectional=True).stream()


def test_a_stream_outlives_its_model_and_a_new_state_dict() -> None:
    """It keeps the weights that it was made with: nothing it points into is freed under it."""
    gru = nn.GRU(I, H, batch_first=True)
    y = gru(X)[0]
    stream = gru.stream(N)
    gru.load_state_dict(nn.GRU(I, H).state_dict())
    del gru
    for t in range(T):
        assert_same(stream.step(X[:, t]), y[:, t])


# --- results ---------------------------------------------------------------------------------------------------------


def test_results_are_new_arrays() -> None:
    """Not views of a workspace: a later call leaves earlier results alone."""
    y, h_n = BATCH_FIRST(X)
    kept = y.copy(), h_n.copy()
    BATCH_FIRST(X + 1)
    assert_same(y, kept[0])
    assert_same(h_n, kept[1])
    assert y.flags.writeable and y.flags.owndata and fastgru.nn.GRU is nn.GRU
