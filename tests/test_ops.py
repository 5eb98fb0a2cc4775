"""ops on good input of every kind, and on bad input of every kind: an error that names the argument, never a crash."""

from __future__ import annotations

import copy
import os
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers_core import Case, assert_close, assert_same, output_of, weights

import fastgru
from fastgru import ops, reference

N, T, I, H = 4, 5, 3, 6
RNG = np.random.default_rng(0)
X = RNG.standard_normal((N, T, I)).astype(np.float32)
H0 = RNG.standard_normal((N, H)).astype(np.float32)
W = weights(RNG, I, H)
W_LIST = [W[name] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
PACKED = ops.pack_gru(*W_LIST)
DENSE = ops.pack_dense(np.ones((2, I)), np.ones(2))
RAGGED_LIST = [[1.0, 2.0], [3.0]]
READ_ONLY = np.zeros((N, T, H), np.float32)
READ_ONLY.flags.writeable = False


def overlapping() -> tuple[Any, Any]:
    """x, and an out of the right shape and dtype inside the same memory."""
    room = np.zeros(N * T * (I + H), np.float32)
    return room[: N * T * I].reshape(N, T, I), room[N * T * I - 1 :][: N * T * H].reshape(N, T, H)


# --- good input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype",
    ["float64", "float16", "longdouble", "int64", "int8", "uint8", "uint64", "bool", ">f4", "<f8", ">f8", ">i2"],
)
def test_other_dtypes_are_rounded_to_float32_once(dtype: str) -> None:
    values = RNG.integers(0, 2, (N, T, I)) if dtype == "bool" else RNG.integers(0, 5, (N, T, I))
    x = (values + (0.1 if np.dtype(dtype).kind == "f" else 0)).astype(dtype)
    before = x.copy()
    y, h_n = ops.gru(x, PACKED, h0=np.abs(H0 * 3).astype(dtype))
    assert y.dtype == h_n.dtype == np.float32
    h0 = np.abs(H0 * 3).astype(dtype).astype(np.float32)
    assert_same(y, ops.gru(x.astype(np.float32), PACKED, h0=h0)[0])
    assert np.array_equal(x, before)
    w = [a.astype(dtype) for a in W_LIST] if np.dtype(dtype).kind == "f" else W_LIST
    expected = ops.gru(X, *[np.asarray(a, np.float32) for a in w])[0]
    assert_same(ops.gru(X, *w)[0], expected)


def test_lists_and_foreign_arrays() -> None:
    class OnlyArray:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            return X.astype(dtype or np.float32)

    class OnlyDLPack:
        def __dlpack__(self, **kwargs: Any) -> Any:
            return X.__dlpack__(**kwargs)

        def __dlpack_device__(self) -> Any:
            return X.__dlpack_device__()

    expected = ops.gru(X, PACKED)[0]
    for x in (X.tolist(), memoryview(X), OnlyArray(), OnlyDLPack(), X.view(np.memmap), tuple(map(list, X))):
        assert_same(ops.gru(x, PACKED)[0], expected)
    lists = [w.tolist() for w in W_LIST]
    assert_same(ops.gru(X.tolist(), *lists, h0=H0.tolist(), lengths=[5, 5, 5, 5])[0], ops.gru(X, *W_LIST, H0)[0])


def test_unaligned_and_byte_swapped_buffers() -> None:
    room = np.zeros(X.nbytes + 1, np.uint8)
    unaligned = room[1:].view(np.float32).reshape(X.shape)
    unaligned[...] = X
    expected = ops.gru(X, PACKED)[0]
    assert not unaligned.flags.aligned
    assert_same(ops.gru(unaligned, PACKED)[0], expected)
    records = np.zeros((N, T), np.dtype([("tag", "u1"), ("x", np.float32, (I,))]))  # strides no multiple of 4
    records["x"] = X
    assert_same(ops.gru(records["x"], PACKED)[0], expected)
    assert_same(ops.gru(X.astype(X.dtype.newbyteorder()), PACKED)[0], expected)


def test_zero_strides() -> None:
    one = np.broadcast_to(X[:1, :1], (N, T, I))
    assert_same(ops.gru(one, PACKED)[0], ops.gru(one.copy(), PACKED)[0])
    flat = np.broadcast_to(np.float32(0.3), (N, T, I))
    h0 = np.broadcast_to(H0[0], (N, H))
    assert_same(ops.gru(flat, PACKED, h0=h0)[0], ops.gru(flat.copy(), PACKED, h0=h0.copy())[0])


@pytest.mark.parametrize("rows, steps", [(0, 5), (4, 0), (0, 0)])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("ragged", ["none", "lengths", "mask"])
def test_no_rows_or_no_steps(rows: int, steps: int, batch_first: bool, ragged: str) -> None:
    shape = (rows, steps) if batch_first else (steps, rows)
    more: dict[str, Any] = {} if ragged == "none" else {ragged: np.zeros((rows, steps)[: 1 + (ragged == "mask")], int)}
    for h0 in (None, H0[:rows]):
        y, h_n = ops.gru(np.zeros((*shape, I)), PACKED, h0=h0, batch_first=batch_first, **more)
        assert y.shape == (*shape, H) and y.dtype == np.float32
        assert_same(h_n, np.zeros((rows, H), np.float32) if h0 is None else h0)
        assert_same(ops.gru_final(np.zeros((*shape, I)), PACKED, h0, batch_first=batch_first, **more), h_n)


def test_empty_offsets() -> None:
    y, h_n = ops.gru(np.zeros((0, I)), PACKED, offsets=[0])
    assert y.shape == (0, H) and h_n.shape == (0, H)
    y, h_n = ops.gru(np.zeros((0, I)), PACKED, offsets=[0, 0, 0], h0=H0[:2])
    assert y.shape == (0, H) and np.array_equal(h_n, H0[:2])
    y, h_n = ops.gru(X[0], PACKED, offsets=[0, 0, 3, 3, 5], h0=H0)
    assert_same(y[:3], ops.gru(X[:1, :3], PACKED, h0=H0[1:2])[0][0])
    assert_same(h_n[[0, 2]], H0[[0, 2]])


def test_lengths_and_masks_of_other_integers() -> None:
    lengths = np.array([5, 0, 3, 1])
    expected = ops.gru(X, PACKED, lengths=lengths)[0]
    mask = np.arange(T) < lengths[:, None]
    for kind in ("int8", "uint64", ">i4", "float32", "int64"):
        assert_same(ops.gru(X, PACKED, lengths=lengths.astype(kind))[0], expected)
        if kind != "float32":
            assert_same(ops.gru(X, PACKED, mask=mask.astype(kind))[0], expected)
    assert_same(ops.gru(X, PACKED, mask=np.asfortranarray(mask))[0], expected)
    assert_same(ops.gru(X, PACKED, lengths=np.repeat(lengths, 2)[::2])[0], expected)


@pytest.mark.parametrize("padding", ["zero", "keras"])
@pytest.mark.parametrize("reverse", [False, True])
def test_padding_rules_by_hand(padding: str, reverse: bool) -> None:
    """zero: 0 at padded steps. keras: the previous output in order of processing, 0 before the first."""
    mask = np.array([[0, 1, 0, 0, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]], bool)
    y, h_n = ops.gru(X, PACKED, h0=H0, mask=mask, padding=padding, reverse=reverse)
    assert_same(h_n[2], H0[2], "a row without steps keeps its state")
    assert (y[2] == 0).all()
    a, b = (y[0, 4], y[0, 1]) if reverse else (y[0, 1], y[0, 4])  # first and second processed
    assert_same(h_n[0], b)
    keras = padding == "keras"
    middle = a if keras else np.zeros(H, np.float32)
    assert_same(y[0, 2], middle)
    assert_same(y[0, 3], middle)
    assert_same(y[0, 0], b if reverse and keras else np.zeros(H, np.float32))
    if not reverse:
        assert_same(y[3, 4], y[3, 0] if keras else np.zeros(H, np.float32))
    else:
        assert (y[3, 1:] == 0).all()


def test_out_is_used_and_returned() -> None:
    out = np.empty((N, T, H), np.float32)
    y, _ = ops.gru(X, PACKED, out=out)
    assert y is out
    assert_same(out, ops.gru(X, PACKED)[0])
    flat = np.empty((N * T, H), np.float32)
    assert ops.gru(X.reshape(-1, I), PACKED, offsets=np.arange(N + 1) * T, out=flat)[0] is flat
    assert_same(flat.reshape(N, T, H), out)


def test_inputs_are_not_written() -> None:
    arrays = [X.copy(), *[w.copy() for w in W_LIST], H0.copy()]
    for a in arrays:
        a.flags.writeable = False
    lengths = np.array([1, 5, 0, 2])
    lengths.flags.writeable = False
    for update_gate in ("old", "new"):
        ops.gru(*arrays, lengths=lengths, update_gate=update_gate, padding="keras")


def test_dense_keeps_leading_axes() -> None:
    w, b = RNG.standard_normal((7, I)), RNG.standard_normal(7)
    packed = ops.pack_dense(w, b)
    expected = X.astype(np.float64) @ w.T + b
    assert (packed.input_size, packed.output_size) == (I, 7)
    assert_close(ops.dense(X, packed), expected)
    assert_close(ops.dense(X[0, 0], packed), expected[0, 0])
    assert_close(ops.dense(X[::-1, ::2], packed), expected[::-1, ::2])
    assert_close(ops.dense(np.asfortranarray(X), packed), expected)
    assert ops.dense(np.zeros((2, 0, I)), packed).shape == (2, 0, 7)
    assert ops.dense(np.zeros((0, I)), packed).shape == (0, 7)


def test_packed_says_what_it_is() -> None:
    packed = ops.pack_gru(*W_LIST, reset_after=False, activation=("elu", 0.5), recurrent_activation="hard_sigmoid")
    assert (packed.input_size, packed.hidden_size, packed.reset_after) == (I, H, False)
    assert packed.activation == ("elu", 0.5, 0.0) and packed.nbytes >= 4 * 3 * H * (I + H + 1)
    assert packed.recurrent_activation == ("hard_sigmoid", pytest.approx(0.2), 0.5)
    assert "3 -> 6" in repr(packed) and packed.isa in repr(packed)
    for thing in (packed, DENSE):
        for copied in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="pickle the weights"):
                copied(thing)


def test_packed_keeps_its_weights_when_the_arrays_change() -> None:
    w = [a.copy() for a in W_LIST]
    packed = ops.pack_gru(*w)
    expected = ops.gru(X, packed)[0]
    for a in w:
        a[...] = np.nan
    assert_same(ops.gru(X, packed)[0], expected)


def test_unpacked_weights_take_the_variant() -> None:
    variant = {"reset_after": False, "activation": "relu", "recurrent_activation": ("hard_sigmoid", 0.3, 0.5)}
    expected = reference.gru(X.astype(float), *[w.astype(float) for w in W_LIST], update_gate="new", **variant)
    for found, e in zip(ops.gru(X, *W_LIST, update_gate="new", **variant), expected, strict=True):
        assert_close(found, e)


def test_no_blas_and_no_numpy_products_in_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thread pools fight, and results vary: between validation and return only our kernels compute."""
    gru = fastgru.nn.GRU(I, H, num_layers=2, bidirectional=True, batch_first=True)
    cell = fastgru.nn.GRUCell(I, H)

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a scoring call used NumPy's product")

    for module in (np, np.linalg):
        for name in ("matmul", "dot", "einsum", "vdot", "inner", "outer", "tensordot", "matvec", "vecdot", "vecmat"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, refuse)
    lengths = [5, 0, 2, 3]
    ops.gru(X, PACKED, h0=H0)
    ops.gru(X.astype(float), *W_LIST, lengths=lengths, padding="keras", update_gate="new")
    ops.gru(X, PACKED, mask=X[:, :, 0] > 0, reverse=True)
    ops.gru(X.reshape(-1, I), PACKED, offsets=np.arange(N + 1) * T)
    ops.gru_final(X, PACKED, lengths=lengths)
    ops.dense(X, DENSE)
    ops.activate(X, "tanh")
    gru(X, lengths=lengths)
    gru(X[0])
    cell(X[:, 0], H0)


# --- bad input -------------------------------------------------------------------------------------------------------

V, TE = ValueError, TypeError  # short names for a table
Bad = tuple[str, Callable[[], Any], type[Exception], str]


def gru(**changes: Any) -> Callable[[], Any]:
    return lambda: ops.gru(**{"x": X, "weight_ih": PACKED, **changes})


def with_weights(**changes: Any) -> Callable[[], Any]:
    return lambda: ops.gru(X, **{**W, **changes})


def pack(**changes: Any) -> Callable[[], Any]:
    return lambda: ops.pack_gru(**{**W, **changes})


NOT_NUMBERS: dict[str, Any] = {
    "strings": np.full((N, T, I), "a"),
    "bytes": b"abc",
    "objects": X.astype(object),
    "complex": X.astype(complex),
    "dates": np.zeros((N, T, I), "datetime64[s]"),
    "records": np.zeros((N, T), [("a", "f4"), ("b", "f4"), ("c", "f4")]),
    "ragged list": RAGGED_LIST,
    "None": None,
    "a dict": {"x": 1},
    "a set": {1, 2},
    "a function": len,
    "text": "x",
}

BAD: list[Bad] = [
    *[(f"x {what}", gru(x=x), TE, r"^x: ") for what, x in NOT_NUMBERS.items()],
    *[(f"h0 {what}", gru(h0=x), TE, r"^h0: ") for what, x in NOT_NUMBERS.items() if x is not None],
    *[(f"weight_hh {what}", with_weights(weight_hh=x), TE, r"^weight_hh: ") for what, x in NOT_NUMBERS.items()],
    *[(f"weight_ih {what}", pack(weight_ih=x), TE, r"^weight_ih: ") for what, x in NOT_NUMBERS.items()],
    *[(f"bias {what}", pack(bias_hh=x), TE, r"^bias_hh: ") for what, x in NOT_NUMBERS.items() if x is not None],
    *[(f"dense x {what}", lambda x=x: ops.dense(x, DENSE), TE, r"^x: ") for what, x in NOT_NUMBERS.items()],
    *[(f"activate {what}", lambda x=x: ops.activate(x, "tanh"), TE, r"^x: ") for what, x in NOT_NUMBERS.items()],
    *[(f"final x {what}", lambda x=x: ops.gru_final(x, PACKED), TE, r"^x: ") for what, x in NOT_NUMBERS.items()],
    ("x 2-D", gru(x=X[0]), V, r"^x: expected shape \(N, T, 3\), found \(5, 3\)$"),
    ("x 4-D", gru(x=X[None]), V, r"^x: expected shape \(N, T, 3\), found \(1, 4, 5, 3\)$"),
    ("x 0-D", gru(x=1.0), V, r"^x: expected shape \(N, T, 3\), found \(\)$"),
    ("x width", gru(x=X[:, :, :2]), V, r"^x: expected shape \(N, T, 3\), found \(4, 5, 2\)$"),
    ("x width 0", gru(x=X[:, :, :0]), V, r"^x: expected shape \(N, T, 3\), found \(4, 5, 0\)$"),
    ("x time major", gru(x=X[:, :, :2], batch_first=False), V, r"^x: expected shape \(T, N, 3\), found \(4, 5, 2\)$"),
    ("x flat", gru(x=X, offsets=[0, 5]), V, r"^x: expected shape \(ΣT, 3\), found \(4, 5, 3\)$"),
    ("h0 rows", gru(h0=H0[:3]), V, r"^h0: expected shape \(4, 6\), found \(3, 6\)$"),
    ("h0 one row", gru(h0=H0[:1]), V, r"^h0: expected shape \(4, 6\), found \(1, 6\)$"),
    ("h0 width", gru(h0=H0[:, :5]), V, r"^h0: expected shape \(4, 6\), found \(4, 5\)$"),
    ("h0 rank", gru(h0=H0[None]), V, r"^h0: expected shape \(4, 6\), found \(1, 4, 6\)$"),
    ("h0 of (T, N)", gru(h0=H0, batch_first=False), V, r"^h0: expected shape \(5, 6\), found \(4, 6\)$"),
    # lengths
    ("lengths long", gru(lengths=[1, 2, 6, 4]), V, r"^lengths: expected 0 … 5 .* found 6 for row 2$"),
    ("lengths negative", gru(lengths=[1, -1, 2, 3]), V, r"^lengths: .* found -1 for row 1$"),
    ("lengths NaN", gru(lengths=[1.0, np.nan, 2.0, 3.0]), V, r"^lengths: expected whole numbers, found nan$"),
    ("lengths inf", gru(lengths=[1.0, np.inf, 2.0, 3.0]), V, r"^lengths: expected whole numbers, found inf$"),
    ("lengths half", gru(lengths=[1.0, 2.5, 2.0, 3.0]), V, r"^lengths: expected whole numbers, found 2.5$"),
    (
        "lengths huge",
        gru(lengths=np.array([1, 2**64 - 1, 2, 3], np.uint64)),
        V,
        r"^lengths: .* 18446744073709551615$",
    ),
    ("lengths 1e30", gru(lengths=[1.0, 1e30, 2.0, 3.0]), V, r"^lengths: .* 1e\+30$"),
    ("lengths lowest", gru(lengths=[1, -(2**63), 2, 3]), V, r"^lengths: .* found -9223372036854775808 for row 1$"),
    ("lengths few", gru(lengths=[1, 2, 3]), V, r"^lengths: expected shape \(4,\), found \(3,\)$"),
    ("lengths 2-D", gru(lengths=[[1, 2, 3, 4]]), V, r"^lengths: expected shape \(4,\), found \(1, 4\)$"),
    ("lengths number", gru(lengths=3), V, r"^lengths: expected shape \(4,\), found \(\)$"),
    ("lengths bool", gru(lengths=[True] * 4), TE, r"^lengths: expected whole numbers, found dtype bool$"),
    ("lengths text", gru(lengths=list("abcd")), TE, r"^lengths: expected whole numbers, found dtype <U1$"),
    ("lengths None inside", gru(lengths=[1, None, 2, 3]), TE, r"^lengths: expected whole numbers, found dtype object$"),
    ("lengths ragged", gru(lengths=RAGGED_LIST), TE, r"^lengths: "),
    ("lengths complex", gru(lengths=[1j] * 4), TE, r"^lengths: expected whole numbers, found dtype complex128$"),
    ("lengths time major", gru(lengths=[1, 2, 3, 4], batch_first=False), V, r"^lengths: expected shape \(5,\)"),
    # mask
    ("mask shape", gru(mask=np.ones((N, T - 1), bool)), V, r"^mask: expected shape \(4, 5\).* found \(4, 4\)$"),
    ("mask transposed", gru(mask=np.ones((T, N), bool)), V, r"^mask: expected shape \(4, 5\).* found \(5, 4\)$"),
    ("mask 3-D", gru(mask=np.ones((N, T, 1), bool)), V, r"^mask: expected shape \(4, 5\).* found \(4, 5, 1\)$"),
    ("mask floats", gru(mask=np.ones((N, T))), TE, r"^mask: expected booleans.* found dtype float64$"),
    ("mask text", gru(mask=np.full((N, T), "y")), TE, r"^mask: expected booleans.* found dtype <U1$"),
    ("mask objects", gru(mask=np.full((N, T), None)), TE, r"^mask: expected booleans.* found dtype object$"),
    ("mask ragged", gru(mask=RAGGED_LIST), TE, r"^mask: "),
    # offsets
    *[
        (
            f"offsets {offsets}",
            lambda o=offsets: ops.gru(X[0], PACKED, offsets=o),
            V,
            r"^offsets: expected N\+1 .* found \[",
        )
        for offsets in (
            [1, 5],
            [0, 4],
            [0, 6],
            [0, 3, 2, 5],
            [0, -1, 5],
            [],
            [5],
            [0, 2**61, 5],
            [0, 2**63 - 1, -(2**63), -1, 5],  # the differences overflow to positive numbers
        )
    ],
    (
        "offsets 2-D",
        lambda: ops.gru(X[0], PACKED, offsets=[[0, 5]]),
        V,
        r"^offsets: expected shape \(N\+1,\), found \(1, 2\)$",
    ),
    (
        "offsets NaN",
        lambda: ops.gru(X[0], PACKED, offsets=[0, np.nan, 5]),
        V,
        r"^offsets: expected whole numbers, found nan$",
    ),
    ("offsets text", lambda: ops.gru(X[0], PACKED, offsets=["0", "5"]), TE, r"^offsets: expected whole numbers"),
    (
        "two of them",
        gru(lengths=[1] * 4, mask=np.ones((N, T), bool)),
        V,
        r"^lengths, mask, offsets: expected at most one",
    ),
    (
        "offsets and lengths",
        lambda: ops.gru(X[0], PACKED, offsets=[0, 5], lengths=[5]),
        V,
        r"^lengths, mask, offsets: ",
    ),
    # weights
    (
        "weight_hh missing",
        lambda: ops.gru(X, W["weight_ih"]),
        TE,
        r"^weight_hh: expected an array \(3H, H\), found None",
    ),
    (
        "weight_hh wide",
        with_weights(weight_hh=W["weight_hh"][:, :5]),
        V,
        r"^weight_hh: expected shape \(3H, H\).*\(18, 5\)$",
    ),
    ("weight_hh transposed", with_weights(weight_hh=W["weight_hh"].T), V, r"^weight_hh: expected .* found \(6, 18\)$"),
    ("weight_hh rank", with_weights(weight_hh=W["weight_hh"][0]), V, r"^weight_hh: expected .* found \(6,\)$"),
    ("weight_hh empty", with_weights(weight_hh=np.zeros((0, 0))), V, r"^weight_hh: expected .*H >= 1, found \(0, 0\)$"),
    (
        "weight_ih rows",
        with_weights(weight_ih=W["weight_ih"][:17]),
        V,
        r"^weight_ih: expected shape \(18, I\), found \(17, 3\)$",
    ),
    (
        "weight_ih width",
        with_weights(weight_ih=np.zeros((18, 0))),
        V,
        r"^weight_ih: expected .*I >= 1, found \(18, 0\)$",
    ),
    (
        "weight_ih and x",
        with_weights(weight_ih=np.zeros((18, 4))),
        V,
        r"^x: expected shape \(N, T, 4\), found \(4, 5, 3\)$",
    ),
    ("bias_ih long", with_weights(bias_ih=np.zeros(19)), V, r"^bias_ih: expected shape \(18,\), found \(19,\)$"),
    ("bias_hh 2-D", with_weights(bias_hh=np.zeros((2, 18))), V, r"^bias_hh: expected shape \(18,\), found \(2, 18\)$"),
    ("bias_hh number", with_weights(bias_hh=0.0), V, r"^bias_hh: expected shape \(18,\), found \(\)$"),
    ("packed and more", gru(weight_hh=W["weight_hh"]), V, r"^weight_hh, bias_ih, bias_hh: expected None beside packed"),
    ("packed and bias", gru(bias_hh=W["bias_hh"]), V, r"^weight_hh, bias_ih, bias_hh: expected None beside packed"),
    ("packed and variant", gru(reset_after=False), V, r"^reset_after: the packed weights hold it already"),
    ("packed and activation", gru(activation="relu"), V, r"^activation: the packed weights hold it already"),
    ("dense as gru", gru(weight_ih=DENSE), TE, r"^weight_hh: "),
    # variant
    ("update_gate", pack(update_gate="both"), V, r"^update_gate: expected 'old' or 'new', found 'both'$"),
    ("update_gate None", pack(update_gate=None), V, r"^update_gate: expected 'old' or 'new', found None$"),
    *[
        (
            f"new with {a}",
            pack(update_gate="new", recurrent_activation=a),
            V,
            r"^update_gate: 'new' needs a recurrent_act",
        )
        for a in ("tanh", "relu", "linear", "softsign", ("hard_sigmoid", 0.2, 0.4), ("affine", 1.0, 0.5), "softplus")
    ],
    *[
        (f"{place} {a}", pack(**{place: a}), V, rf"^{place}: .*")
        for place in ("activation", "recurrent_activation")
        for a in (
            "swish",
            "",
            "Tanh",
            None,
            7,
            (),
            ("tanh", 1, 2, 3),
            ("elu", "x"),
            "affine",
            ("affine", 1.0),
            "thresholded_relu",
            "scaled_tanh",
            np.tanh,
            b"tanh",
        )
    ],
    ("activate name", lambda: ops.activate(X, "swish"), V, r"^activation: .* found 'swish'$"),
    ("activate parameters", lambda: ops.activate(X, "affine"), V, r"^activation: affine has no usual parameters"),
    ("padding", gru(padding="same"), V, r"^padding: expected 'zero' or 'keras', found 'same'$"),
    ("padding None", gru(padding=None), V, r"^padding: expected 'zero' or 'keras', found None$"),
    # threads
    *[(f"num_threads {n}", gru(num_threads=n), V, r"^num_threads: .* found ") for n in (0, -1, -(10**30))],
    *[
        (f"num_threads {n!r}", gru(num_threads=n), TE, r"^num_threads: .* found ")
        for n in (1.0, "2", True, [1], np.nan)
    ],
    ("dense num_threads", lambda: ops.dense(X, DENSE, num_threads=0), V, r"^num_threads: "),
    ("final num_threads", lambda: ops.gru_final(X, PACKED, num_threads="1"), TE, r"^num_threads: "),
    ("set_num_threads 0", lambda: fastgru.set_num_threads(0), V, r"^num_threads: .* found 0$"),
    ("set_num_threads None", lambda: fastgru.set_num_threads(None), TE, r"^num_threads: .* found None$"),
    # out
    ("out list", gru(out=[[0.0]]), TE, r"^out: expected a float32 ndarray, found list$"),
    ("out float64", gru(out=np.zeros((N, T, H))), TE, r"^out: expected a float32 ndarray, found float64$"),
    ("out swapped", gru(out=np.zeros((N, T, H), ">f4")), TE, r"^out: expected a float32 ndarray, found >f4$"),
    ("out shape", gru(out=np.zeros((T, N, H), np.float32)), V, r"^out: expected shape \(4, 5, 6\), found \(5, 4, 6\)$"),
    ("out read-only", gru(out=READ_ONLY), V, r"^out: expected a writeable array"),
    ("out columns", gru(out=np.zeros((N, H, T), np.float32).transpose(0, 2, 1)), V, r"^out: .*last axis"),
    ("out every other", gru(out=np.zeros((N, T, 2 * H), np.float32)[:, :, ::2]), V, r"^out: .*last axis"),
    ("out zero strides", gru(out=np.lib.stride_tricks.as_strided(H0.copy(), (N, T, H), (0, 0, 4))), V, r"^out: "),
    # packed
    (
        "final weights",
        lambda: ops.gru_final(X, W["weight_ih"]),
        TE,
        r"^packed: expected the result of pack_gru, found ndarray$",
    ),
    (
        "final dense",
        lambda: ops.gru_final(X, DENSE),
        TE,
        r"^packed: expected the result of pack_gru, found PackedDense$",
    ),
    ("dense gru", lambda: ops.dense(X, PACKED), TE, r"^packed: expected the result of pack_dense, found PackedGRU$"),
    ("dense width", lambda: ops.dense(X[..., :2], DENSE), V, r"^x: expected shape \(4, 5, 3\), found \(4, 5, 2\)$"),
    ("dense number", lambda: ops.dense(1.0, DENSE), V, r"^x: expected shape .* found \(\)$"),
    ("pack_dense rank", lambda: ops.pack_dense(np.ones(3)), V, r"^weight: expected shape \(M, K\), found \(3,\)$"),
    ("pack_dense empty", lambda: ops.pack_dense(np.ones((0, 3))), V, r"^weight: expected .*>= 1, found \(0, 3\)$"),
    (
        "pack_dense bias",
        lambda: ops.pack_dense(np.ones((2, 3)), np.ones(3)),
        V,
        r"^bias: expected shape \(2,\), found \(3,\)$",
    ),
    ("pack_dense text", lambda: ops.pack_dense("w"), TE, r"^weight: "),
]


@pytest.mark.parametrize("call, error, message", [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input_is_named(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises((ValueError, TypeError), match=message) as caught:
            call()
    assert isinstance(caught.value, error), f"expected {error.__name__}, found {caught.value!r}"


def test_out_must_not_overlap_an_input() -> None:
    x, out = overlapping()
    with pytest.raises(ValueError, match="^out: shares memory with an input"):
        ops.gru(x, PACKED, out=out)
    out = np.zeros((N, T, H), np.float32)
    with pytest.raises(ValueError, match="^out: shares memory with an input"):
        ops.gru(X, PACKED, h0=out[:, 0], out=out)


def test_a_refused_call_writes_nothing() -> None:
    out = np.full((N, T, H), 7.0, np.float32)
    for more in ({"lengths": [9] * N}, {"num_threads": 0}, {"h0": H0[:2]}, {"padding": "x"}):
        with pytest.raises((ValueError, TypeError)):
            ops.gru(X, PACKED, out=out, **more)
    assert (out == 7.0).all()


def test_weights_too_large_for_float32_become_infinite_not_a_crash() -> None:
    with np.errstate(over="ignore"):
        y, _ = ops.gru(np.full((1, 3, I), 1e300), PACKED)
    assert y.shape == (1, 3, H)


def test_a_huge_declared_batch_is_a_memory_error() -> None:
    """A broadcast view takes no memory, its result would: an exception, not a killed process."""
    code = """
import resource, numpy as np
from fastgru import ops
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
packed = ops.pack_gru(np.ones((24, 1)), np.ones((24, 8)))
x = np.broadcast_to(np.float32(0), (1 << 20, 1 << 20, 1))
try:
    ops.gru(x, packed)
except MemoryError:
    print("MemoryError")
"""
    pytest.importorskip("resource", reason="needs POSIX resource limits")
    if "asan" in os.environ.get("LD_PRELOAD", ""):
        pytest.skip("the address sanitizer reserves more address space than the limit set here")
    assert output_of(code) == "MemoryError"


def test_case_of_the_helpers_agrees_with_a_plain_call() -> None:
    """The helper that the other files rely on builds the call that its fields name."""
    case = Case(N, T, I, H, h0=True, ragged="lengths", batch_first=False)
    a = case.arrays()
    w = [a[name] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    y, h_n = ops.gru(a["x"].transpose(1, 0, 2), *w, a["h0"], lengths=a["lengths"], batch_first=False)
    assert_same(case.run()[0], y)
    assert_same(case.run()[1], h_n)
