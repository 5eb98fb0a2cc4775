"""Equal bit for bit: over instruction sets, threads, splits of the batch, layouts, padding. No tolerance here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers_core import ISAS, OTHER_ISAS, PARALLEL_WORK, Case, assert_same, cases
from hypothesis import given, settings

import fastgru
from fastgru import ops

SETTINGS = settings(deadline=None, max_examples=100, derandomize=True, print_blob=False)
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"reset_after": False},
    {"activation": "relu", "recurrent_activation": "hard_sigmoid"},
    {"reset_after": False, "activation": "softsign", "update_gate": "new"},
)


@pytest.mark.parametrize("isa", OTHER_ISAS)
def test_isas_agree(isa: str) -> None:
    @SETTINGS
    @given(cases())
    def run(case: Case) -> None:
        for found, expected in zip(case.run(isa), case.run("scalar"), strict=True):
            assert_same(found, expected, isa)

    run()


@pytest.mark.parametrize("isa", OTHER_ISAS)
def test_isas_agree_on_dense_layers(isa: str) -> None:
    rng = np.random.default_rng(1)
    for N in (1, 2, 7, 33, 65):
        for K, M in ((1, 1), (5, 24), (129, 40), (130, 9), (300, 4)):
            x, w, b = (rng.standard_normal(s).astype(np.float32) for s in ((N, K), (M, K), (M,)))
            expected = ops.dense(x, ops.pack_dense(w, b, _isa="scalar"))
            assert_same(ops.dense(x, ops.pack_dense(w, b, _isa=isa)), expected, isa)


@pytest.mark.parametrize("isa", OTHER_ISAS)
def test_isas_agree_on_special_values(isa: str) -> None:
    """Infinities, signed zeros, subnormals and huge weights go the same way through every header."""
    rng = np.random.default_rng(2)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-40, 3e38, -3e38, 1e-30, 1.0], np.float32)
    for reset_after in (True, False):
        case = Case(40, 6, 5, 13, variant={"reset_after": reset_after})
        x = rng.choice(special, size=(40, 6, 5), p=[0.2, 0.1, *[0.02] * 8, 0.54])
        with np.errstate(all="ignore"):
            expected = ops.gru(x, case.packed("scalar"), num_threads=1)
            for found, e in zip(ops.gru(x, case.packed(isa), num_threads=1), expected, strict=True):
                assert_same(found, e, isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("ragged", ["none", "lengths", "mask", "offsets"])
def test_threads_change_nothing(isa: str, variant: dict[str, Any], ragged: str) -> None:
    case = Case(67, 16, 40, 65, ragged=ragged, h0=True, padding="keras", variant=variant)
    assert case.work > 4 * PARALLEL_WORK  # also where masks leave a half of it
    packed = case.packed(isa)
    y, h_n = case.call(ops.gru, packed, padding="keras", num_threads=1)
    for threads in (2, 3, 7, 1000):
        y_now, h_now = case.call(ops.gru, packed, padding="keras", num_threads=threads)
        assert_same(y_now, y, f"y, {threads} threads")
        assert_same(h_now, h_n, f"h_n, {threads} threads")
        assert_same(case.call(ops.gru_final, packed, num_threads=threads), h_n, f"gru_final, {threads} threads")


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8, 9, 16, 33])
def test_threads_change_nothing_with_few_rows(rows: int) -> None:
    case = Case(rows, 60, 130, 129, h0=True)
    assert case.work > PARALLEL_WORK
    for threads in (2, 3, 8):
        for found, expected in zip(case.run(None, threads), case.run(None, 1), strict=True):
            assert_same(found, expected, f"{threads} threads")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("ragged", ["none", "lengths", "mask", "offsets"])
@pytest.mark.parametrize("reverse", [False, True])
def test_threads_change_nothing_for_a_single_row(isa: str, ragged: str, reverse: bool) -> None:
    """Its units may be shared out: every thread waits for the others after each step."""
    for h0, variant in ((True, {}), (False, {"activation": "relu"}), (True, {"reset_after": False})):
        case = Case(1, 24, 33, 257, ragged=ragged, reverse=reverse, h0=h0, variant=variant, padding="keras")
        assert case.work > 2.5 * PARALLEL_WORK  # also where a mask leaves a half of it
        packed = case.packed(isa)
        y, h_n = case.call(ops.gru, packed, padding="keras", num_threads=1)
        for threads in (2, 3):
            y_now, h_now = case.call(ops.gru, packed, padding="keras", num_threads=threads)
            assert_same(y_now, y, f"y, {threads} threads")
            assert_same(h_now, h_n, f"h_n, {threads} threads")
        assert_same(case.call(ops.gru_final, packed, num_threads=2), h_n, "gru_final, 2 threads")


def test_threads_change_nothing_in_dense_layers() -> None:
    rng = np.random.default_rng(3)
    x, w, b = (rng.standard_normal(s).astype(np.float32) for s in ((500, 130), (70, 130), (70,)))
    assert 500 * 130 * 70 > PARALLEL_WORK
    packed = ops.pack_dense(w, b)
    for threads in (2, 3, 9):
        assert_same(ops.dense(x, packed, num_threads=threads), ops.dense(x, packed, num_threads=1))


def test_threads_change_nothing_in_a_stack() -> None:
    rng = np.random.default_rng(4)
    gru = fastgru.nn.GRU(33, 50, num_layers=3, bidirectional=True, batch_first=True)
    x, lengths = rng.standard_normal((40, 20, 33)), rng.integers(0, 21, 40)
    expected = gru(x, lengths=lengths, num_threads=1)
    for threads in (2, 5):
        for found, e in zip(gru(x, lengths=lengths, num_threads=threads), expected, strict=True):
            assert_same(found, e)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_splitting_the_batch_changes_nothing(isa: str, variant: dict[str, Any]) -> None:
    """A row's result does not depend on its neighbours, or on which tile, slot or projection it falls into."""
    case = Case(37, 9, 70, 41, h0=True, variant=variant)
    a, packed = case.arrays(), case.packed(isa)
    for lengths in (None, a["lengths"]):
        y, h_n = ops.gru(a["x"], packed, h0=a["h0"], lengths=lengths)
        for step in (1, 2, 3, 4, 5, 7, 8, 9, 16, 36):
            for first in range(0, 37, step):
                rows = slice(first, first + step)
                some = None if lengths is None else lengths[rows]
                y_now, h_now = ops.gru(a["x"][rows], packed, h0=a["h0"][rows], lengths=some)
                assert_same(y_now, y[rows], f"y, {step} rows")
                assert_same(h_now, h_n[rows], f"h_n, {step} rows")


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("N", [1, 2, 6, 9, 70])
def test_splitting_time_changes_nothing(variant: dict[str, Any], N: int) -> None:
    """Handing h_n over as h0: one call of T steps, or T calls, projected ahead or not."""
    case = Case(N, 20, 11, 26, h0=True, variant=variant)
    a, packed = case.arrays(), case.packed()
    y, h_n = ops.gru(a["x"], packed, h0=a["h0"])
    for step in (1, 3, 7):
        h, parts = a["h0"], []
        for t in range(0, 20, step):
            part, h = ops.gru(a["x"][:, t : t + step], packed, h0=h)
            parts.append(part)
        assert_same(np.concatenate(parts, axis=1), y, f"{step} steps")
        assert_same(h, h_n, f"{step} steps")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("N", [1, 3, 30])
def test_layout_changes_nothing(isa: str, N: int) -> None:
    case = Case(N, 8, 6, 21, h0=True)
    a, packed = case.arrays(), case.packed(isa)
    x, h0 = a["x"], a["h0"]
    y, h_n = ops.gru(x, packed, h0=h0)

    def check(found: tuple[Any, Any], what: str) -> None:
        assert_same(found[0], y, what)
        assert_same(found[1], h_n, what)

    time_major = ops.gru(np.ascontiguousarray(x.transpose(1, 0, 2)), packed, h0=h0, batch_first=False)
    check((time_major[0].transpose(1, 0, 2), time_major[1]), "time major")
    view = ops.gru(x.transpose(1, 0, 2), packed, h0=h0, batch_first=False)
    check((view[0].transpose(1, 0, 2), view[1]), "transposed view")
    check(ops.gru(np.asfortranarray(x), packed, h0=np.asfortranarray(h0)), "Fortran order")
    room = np.zeros((2 * N, 3 * 8, 4 * 6), np.float32)
    for name, place in {
        "every other row": room[::2, :8, :6],
        "rows backwards": room[N - 1 :: -1, :8, :6],
        "every third step": room[:N, ::3, 5:11],
        "steps backwards": room[:N, 7::-1, 1:7],
        "features apart": room[:N, :8, ::4],
        "features backwards": room[:N, :8, 5::-1],
    }.items():
        place[...] = x
        check(ops.gru(place, packed, h0=h0), name)
    wide = np.zeros((N, 50), np.float32)
    wide[:, 7:28] = h0
    check(ops.gru(x, packed, h0=wide[:, 7:28]), "h0 inside wider rows")
    offsets = np.arange(N + 1) * 8
    flat = ops.gru(x.reshape(-1, 6), packed, h0=h0, offsets=offsets)
    check((flat[0].reshape(y.shape), flat[1]), "offsets")
    check(ops.gru(x, packed, h0=h0, lengths=[8] * N), "lengths")
    check(ops.gru(x, packed, h0=h0, mask=np.ones((N, 8), bool)), "mask")


@pytest.mark.parametrize("N", [1, 3, 30])
def test_out_may_be_any_view_of_rows(N: int) -> None:
    case = Case(N, 8, 6, 21, ragged="lengths", padding="keras")
    y, h_n = case.run()
    room = np.full((2 * N, 24, 60), 7.0, np.float32)
    for place in (room[::2, :8, 3:24], room[:N, ::3, 30:51], room[N - 1 :: -1, 7::-1, 10:31]):
        room[...] = 7.0
        found = case.call(ops.gru, case.packed(), padding="keras", out=place)
        assert found[0] is place
        assert_same(np.ascontiguousarray(place), y)
        assert_same(found[1], h_n)
        place[...] = 7.0
        assert (room == 7.0).all(), "something was written beside out"


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("N", [1, 2, 5, 20, 150])
def test_padding_changes_nothing(N: int, reverse: bool) -> None:
    """More padding, other values in it, a mask with the same steps elsewhere, no padding at all: the same bits."""
    case = Case(N, 14, 5, 19, ragged="lengths", h0=True, reverse=reverse)
    a, packed = case.arrays(), case.packed()
    lengths, x, h0 = a["lengths"], a["x"], a["h0"]
    y, h_n = case.run()
    flat = ops.gru(
        np.concatenate([row[:n] for row, n in zip(x, lengths, strict=True)]),
        packed,
        h0=h0,
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        reverse=reverse,
    )
    assert_same(flat[1], h_n)
    assert_same(flat[0], np.concatenate([row[:n] for row, n in zip(y, lengths, strict=True)]))
    padding = np.arange(14) >= lengths[:, None]
    assert (y[padding] == 0).all()
    for rubbish in (np.nan, np.inf, 1e30):
        spoilt = x.copy()
        spoilt[padding] = rubbish
        longer = np.concatenate([spoilt, np.full((N, 9, 5), rubbish, np.float32)], axis=1)
        found = ops.gru(longer, packed, h0=h0, lengths=lengths, reverse=reverse)
        assert_same(found[0][:, :14], y)
        assert_same(found[1], h_n)
        assert (found[0][:, 14:] == 0).all()
        assert_same(ops.gru_final(longer, packed, h0=h0, lengths=lengths, reverse=reverse), h_n)
    rng = np.random.default_rng(N)
    scattered = np.full((N, 20, 5), np.nan, np.float32)
    mask = np.zeros((N, 20), bool)
    for i, n in enumerate(lengths):
        steps = np.sort(rng.choice(20, n, replace=False))
        scattered[i, steps], mask[i, steps] = x[i, :n], True
    found = ops.gru(scattered, packed, h0=h0, mask=mask, reverse=reverse)
    assert_same(found[1], h_n)
    for i, n in enumerate(lengths):
        assert_same(found[0][i, mask[i]], y[i, :n])
    assert (found[0][~mask] == 0).all()


@pytest.mark.parametrize("N", [1, 4, 30])
def test_the_same_call_twice_gives_the_same_bits(N: int) -> None:
    case = Case(N, 30, 40, 70)
    first = case.run(None, 2)
    for _ in range(3):
        for found, expected in zip(case.run(None, 2), first, strict=True):
            assert_same(found, expected)


def test_final_state_alone_has_the_bits_of_the_sequence() -> None:
    for N in (1, 3, 9, 100):
        for ragged in ("none", "lengths", "mask", "offsets"):
            for reverse in (False, True):
                case = Case(N, 11, 7, 22, ragged=ragged, h0=True, reverse=reverse)
                packed = case.packed()
                assert_same(case.call(ops.gru_final, packed), case.call(ops.gru, packed)[1])
                again = replace(case, batch_first=False)
                assert_same(again.call(ops.gru_final, packed), case.call(ops.gru, packed)[1])


def test_packing_ahead_or_in_the_call_is_the_same() -> None:
    case = Case(9, 5, 6, 20, variant={"reset_after": False, "update_gate": "new"})
    a = case.arrays()
    w = [a[name] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    found = ops.gru(a["x"], *w, reset_after=False, update_gate="new")
    for f, e in zip(found, case.run(), strict=True):
        assert_same(f, e)


def test_a_bias_of_zeros_is_no_bias() -> None:
    for reset_after in (True, False):
        case = Case(9, 5, 6, 20, biases="none", variant={"reset_after": reset_after})
        a, zeros = case.arrays(), np.zeros(60, np.float32)
        found = ops.gru(a["x"], a["weight_ih"], a["weight_hh"], zeros, zeros, reset_after=reset_after)
        for f, e in zip(found, case.run(), strict=True):
            assert_same(f, e)
