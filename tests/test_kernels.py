"""Every instruction set that this machine can run, against the reference in float64."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_core import ACTIVATIONS, ISAS, Case, assert_close, cases, output_of, run_python
from hypothesis import given, settings

import fastgru
from fastgru import ops

SETTINGS = settings(deadline=None, max_examples=80, derandomize=True, print_blob=False)


@pytest.mark.parametrize("isa", ISAS)
def test_gru_matches_reference(isa: str) -> None:
    @SETTINGS
    @given(cases())
    def run(case: Case) -> None:
        y, h_n = case.run(isa)
        y_expected, h_expected = case.expected()
        assert_close(y, y_expected)
        assert_close(h_n, h_expected)
        assert_close(case.call(ops.gru_final, case.packed(isa), num_threads=1), h_expected)

    run()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("biases", ["none", "ih", "hh", "both"])
def test_every_bias_reaches_its_gate(isa: str, reset_after: bool, biases: str) -> None:
    """Also the recurrent bias of n, which stands inside r * (...) and is stored apart."""
    case = Case(5, 6, 7, 19, biases=biases, variant={"reset_after": reset_after})
    assert_close(case.run(isa)[0], case.expected()[0])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("update_gate", ["old", "new"])
@pytest.mark.parametrize("recurrent_activation", ["sigmoid", "hard_sigmoid"])
def test_both_conventions(isa: str, reset_after: bool, update_gate: str, recurrent_activation: Any) -> None:
    variant = {
        "reset_after": reset_after,
        "update_gate": update_gate,
        "recurrent_activation": recurrent_activation,
    }
    for N in (1, 2, 6, 40):
        case = Case(N, 8, 9, 21, h0=True, variant=variant)
        for found, expected in zip(case.run(isa), case.expected(), strict=True):
            assert_close(found, expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_every_activation_in_either_place(isa: str, activation: Any) -> None:
    for reset_after in (True, False):
        for place in ("activation", "recurrent_activation"):
            for N in (1, 3, 9):
                case = Case(N, 3, 5, 18, h0=True, variant={"reset_after": reset_after, place: activation})
                assert_close(case.run(isa)[0], case.expected()[0])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("reset_after", [True, False])
def test_no_product_loses_its_tail(isa: str, reset_after: bool) -> None:
    """Sizes on both sides of every block of k (64, 128) and of every panel width, one row and many."""
    for size in (63, 64, 65, 127, 128, 129, 191, 255, 257):
        for N in (1, 2, 7):
            wide = Case(N, 3, size, 11, variant={"reset_after": reset_after})
            high = Case(N, 3, 4, size, variant={"reset_after": reset_after}, h0=True)
            for case in (wide, high):
                assert_close(case.run(isa)[0], case.expected()[0])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("reset_after", [True, False])
def test_every_number_of_rows(isa: str, reset_after: bool) -> None:
    """1 … 40 rows and around the block of 64: every way in which rows fall into tiles."""
    for N in (*range(1, 41), 63, 64, 65, 127, 128, 129, 200):
        case = Case(N, 2, 3, 17, variant={"reset_after": reset_after})
        assert_close(case.run(isa)[0], case.expected()[0])


@pytest.mark.parametrize("isa", ISAS)
def test_a_slot_starts_its_next_row_from_h0(isa: str) -> None:
    """More rows than slots and lengths that differ: rows follow each other in a slot, each from its own state."""
    for h0 in (False, True):
        for reset_after in (True, False):
            case = Case(150, 12, 5, 13, ragged="lengths", h0=h0, variant={"reset_after": reset_after})
            for found, expected in zip(case.run(isa), case.expected(), strict=True):
                assert_close(found, expected)
            h_n = case.call(ops.gru_final, case.packed(isa), num_threads=1)
            assert_close(h_n, case.expected()[1])


@pytest.mark.parametrize("isa", ISAS)
def test_dense_matches_a_product_in_float64(isa: str) -> None:
    rng = np.random.default_rng(0)
    for N in (1, 2, 3, 5, 8, 9, 64, 65, 130):
        for K, M in ((1, 1), (3, 7), (8, 8), (9, 25), (65, 33), (129, 16), (200, 100), (7, 131)):
            x, w, b = (rng.uniform(-1, 1, s).astype(np.float32) for s in ((N, K), (M, K), (M,)))
            for bias in (b, None):
                packed = ops.pack_dense(w, bias, _isa=isa)
                assert packed.isa == isa
                expected = x.astype(np.float64) @ w.astype(np.float64).T + (0 if bias is None else b)
                assert_close(ops.dense(x, packed), expected, atol=1e-6 * K**0.5)


@pytest.mark.parametrize("isa", ISAS)
def test_nan_stays_in_its_row_and_does_not_vanish(isa: str) -> None:
    """x86's min and max swallow NaN if the constant stands second: a broken input must not become a plausible state."""
    for variant in ({}, {"reset_after": False}, {"recurrent_activation": "hard_sigmoid"}, {"activation": "relu"}):
        case = Case(6, 4, 5, 10, variant=variant)
        x = case.arrays()["x"]
        x[2, 1, 3] = np.nan
        y, h_n = ops.gru(x, case.packed(isa))
        assert np.isnan(y[2, 1:]).all() and np.isnan(h_n[2]).all()
        assert not np.isnan(np.delete(y, 2, axis=0)).any() and not np.isnan(y[2, :1]).any()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("reset_after", [True, False])
def test_a_decaying_state_becomes_zero_not_subnormal(isa: str, reset_after: bool) -> None:
    """With zero weights z = 1/2 and n = 0: the state halves at each step, and would crawl through the subnormals."""
    H, T = 11, 160
    packed = ops.pack_gru(np.zeros((3 * H, 2)), np.zeros((3 * H, H)), reset_after=reset_after, _isa=isa)
    h0 = np.linspace(-1, 1, 2 * H).reshape(2, H)
    y, h_n = ops.gru(np.zeros((2, T, 2)), packed, h0=h0)
    tiny = np.finfo(np.float32).tiny
    assert ((y == 0) | (np.abs(y) >= tiny)).all()
    assert (y[:, 99:] == 0).sum() > 0 and (h_n == 0).all()
    halved = h0.astype(np.float32)[:, None] * 0.5 ** np.arange(1, 61, dtype=np.float32)[:, None]
    assert np.array_equal(y[:, :60], halved)  # powers of two: exact until the flush


@pytest.mark.parametrize("isa", ISAS)
def test_fastgru_isa_forces_an_isa(isa: str) -> None:
    code = """
import numpy as np, fastgru
from fastgru import ops
p, d = ops.pack_gru(np.ones((3, 1)), np.ones((3, 1))), ops.pack_dense(np.ones((1, 1)))
print(fastgru.build_info()["isa"], p.isa, d.isa, fastgru.nn.GRU(1, 1)._stack.layers[0].isa)
"""
    assert output_of(code, FASTGRU_ISA=isa).split() == [isa] * 4


@pytest.mark.parametrize("isa", ["sse9", "AVX2 ", *sorted({"avx512", "neon"}.difference(ISAS))])
def test_fastgru_isa_refuses_what_cannot_run(isa: str) -> None:
    done = run_python("import fastgru", FASTGRU_ISA=isa)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: FASTGRU_ISA={isa}") and ISAS[0] in last


def test_isas_are_named_and_an_unproven_one_is_not_chosen() -> None:
    info = fastgru.build_info()
    assert "scalar" in ISAS and set(ISAS) <= {"scalar", "wide", "avx2", "avx512", "neon"}
    chosen = output_of('import fastgru; print(fastgru.build_info()["isa"])')
    assert chosen in ISAS and chosen not in ("wide", "avx512")
    assert set(info) == {"version", "isa", "isas", "openmp", "compiler"}
    with pytest.raises(ValueError, match="isa: expected one of .*scalar.*found 'mmx'"):
        ops.pack_gru(np.ones((3, 1)), np.ones((3, 1)), _isa="mmx")


CHECKED = Case(3, 5, 8, 12, variant={"reset_after": True})


@pytest.mark.parametrize(
    "fault", ["zeros", "one gate for another", "transposed weight", "one bias gone", "shifted step"]
)
def test_the_checker_itself_bites(fault: str) -> None:
    """assert_close must reject what a broken kernel would produce."""
    y, _ = CHECKED.expected()
    assert_close(y.astype(np.float32), y)
    a = CHECKED.arrays()
    w = [a[name] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    H = CHECKED.H
    if fault == "one gate for another":
        w = [np.concatenate([m[H : 2 * H], m[:H], m[2 * H :]]) for m in w]
    elif fault == "transposed weight":
        w[1] = np.concatenate([np.ascontiguousarray(m.T) for m in np.split(w[1], 3)])
    elif fault == "one bias gone":
        w[3] = np.concatenate([w[3][: 2 * H], np.zeros(H, np.float32)])
    wrong = np.zeros_like(y) if fault == "zeros" else ops.gru(a["x"], *w)[0]
    if fault == "shifted step":
        wrong = np.concatenate([np.zeros_like(y[:, :1]), y[:, :-1]], axis=1)
    with pytest.raises(AssertionError):
        assert_close(wrong, y)


def test_cases_cover_both_sides_of_the_thread_threshold() -> None:
    """The sizes of the threaded tests mean something only above the threshold."""
    assert replace(CHECKED, N=1, T=1).work < 2e6 < Case(64, 20, 64, 64).work


def test_the_mutants_still_fit_the_sources() -> None:
    """`make mutants` takes minutes; that each of its patches still applies is seen here at once."""
    root = Path(__file__).parent.parent
    if not (root / "tools" / "mutants.py").exists() or not (root / "fastgru" / "simd").exists():
        pytest.skip("needs a source tree")
    mutants = runpy.run_path(str(root / "tools" / "mutants.py"))["MUTANTS"]
    assert len(mutants) >= 5
    for mutant in mutants:
        count = (root / mutant.file).read_text(encoding="utf-8").count(mutant.old)
        assert count == 1, f"{mutant.name}: {mutant.file} holds {mutant.old!r} {count} times, expected once"
