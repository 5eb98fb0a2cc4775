"""ops.gru_backward: against the reference in float64 on every instruction set, bit for bit where that is promised."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers_core import ACTIVATIONS, CALM, ISAS, OTHER_ISAS, PARALLEL_WORK, Case, assert_same, cases
from helpers_gradients import (
    NAMES,
    assert_gradients,
    assert_same_gradients,
    expected,
    gradients,
    in_layout,
    kinks,
    nearest_kink,
    upstream,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fastgru import gradients as gradients_module
from fastgru import ops

SETTINGS = settings(deadline=None, max_examples=250, derandomize=True, print_blob=False)
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"reset_after": False},
    {"activation": "relu", "recurrent_activation": "hard_sigmoid"},
    {"reset_after": False, "activation": "softsign", "update_gate": "new"},
)
FAR = 1e-5  # from a kink, for float32 to stand on the same side of it

SEED = 7  # with it none of the small cases stands near a kink, whatever the activation


def compare(case: Case, isa: str | None = None, dy: bool = True, dh_n: bool = True, choose: bool = False) -> None:
    """One case against the reference, on one instruction set or all; `choose`: Hypothesis may take another."""
    up, d = upstream(case)
    up, d = up if dy else None, d if dh_n else None
    with nearest_kink() as distances:
        right = expected(case, up, d)
    if choose:  # what grows without limit can be compared only while it is small
        assume(distances[-1] > FAR)
        assume(
            case.variant["recurrent_activation"] in CALM or max(np.abs(g).max() for g in right if g is not None) < 30
        )
    assert distances[-1] > FAR, "the case stands at a kink: choose another seed"
    for name in ISAS if isa is None else (isa,):
        try:
            assert_gradients(gradients(case, up, d, name), right)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


# --- against the reference -------------------------------------------------------------------------------------------


@SETTINGS
@given(cases(), st.booleans(), st.booleans())
def test_gradients_match_reference(case: Case, dy: bool, dh_n: bool) -> None:
    activations = case.variant["activation"], case.variant["recurrent_activation"]
    few = case.N * case.T * case.H < 2e4  # one out of so many stands near a kink now and then, out of more always
    assume(case.work < 2e7 and (few or not any(map(kinks, activations))))
    compare(case, dy=dy, dh_n=dh_n, choose=True)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("update_gate", ["old", "new"])
@pytest.mark.parametrize("biases", ["none", "ih", "hh", "both"])
def test_every_gate_and_bias(isa: str, reset_after: bool, update_gate: str, biases: str) -> None:
    for N in (1, 2, 6, 40):
        variant = {"reset_after": reset_after, "update_gate": update_gate}
        compare(Case(N, 5, 9, 21, biases=biases, h0=True, variant=variant), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("place", ["activation", "recurrent_activation"])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_every_activation_in_either_place(activation: Any, place: str, isa: str) -> None:
    for reset_after in (True, False):
        for N in (1, 3, 9):
            compare(Case(N, 3, 5, 18, seed=SEED, h0=True, variant={"reset_after": reset_after, place: activation}), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("ragged", ["lengths", "mask", "offsets"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("padding", ["zero", "keras"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_every_kind_of_padding(isa: str, ragged: str, reverse: bool, padding: str, batch_first: bool) -> None:
    for h0, dh_n in ((True, True), (False, False)):
        case = Case(9, 7, 4, 10, ragged=ragged, h0=h0, reverse=reverse, padding=padding, batch_first=batch_first)
        compare(case, isa, dh_n=dh_n)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("reset_after", [True, False])
def test_no_sum_over_steps_loses_its_tail(isa: str, reset_after: bool) -> None:
    """ΣT on both sides of every block of terms (112) and of small tiles: the last block is shorter than the others."""
    for N, T in ((1, 1), (1, 3), (3, 37), (1, 112), (2, 56), (1, 113), (5, 45), (8, 28), (15, 15), (7, 33)):
        compare(Case(N, T, 6, 7, h0=True, variant={"reset_after": reset_after}), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("reset_after", [True, False])
def test_no_product_loses_its_tail(isa: str, reset_after: bool) -> None:
    """Sizes on both sides of every panel width and of every block of products: 3 H and H are summed over for dh."""
    for size in (1, 2, 3, 5, 8, 15, 16, 17, 23, 25, 33, 37, 38, 47, 49, 56, 57, 63, 65, 75, 111, 113, 129):
        for N in (1, 3):
            compare(Case(N, 2, size, 11, variant={"reset_after": reset_after}), isa)
            compare(Case(N, 2, 4, size, h0=True, variant={"reset_after": reset_after}), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("reset_after", [True, False])
def test_a_slot_starts_its_next_row_from_dh_n(isa: str, reset_after: bool) -> None:
    """More rows than slots and lengths that differ: rows move between slots, each with its own gradient."""
    for dh_n in (True, False):
        compare(Case(150, 12, 3, 13, ragged="lengths", h0=True, variant={"reset_after": reset_after}), isa, dh_n=dh_n)


@pytest.mark.parametrize("rows, steps", [(0, 3), (2, 0), (0, 0)])
def test_nothing_to_do(rows: int, steps: int) -> None:
    case = Case(rows, steps, 3, 4, h0=True)
    dy, dh_n = upstream(case)
    assert_gradients(gradients(case, dy, dh_n), expected(case, dy, dh_n))


def test_rows_without_steps() -> None:
    case = Case(5, 3, 2, 4, h0=True)
    a, (dy, dh_n) = case.arrays(), upstream(case)
    for raggedness in ({"lengths": [0] * 5}, {"mask": np.zeros((5, 3), bool)}):
        for padding in ("zero", "keras"):
            run = ops.gru(a["x"], case.packed(), h0=a["h0"], padding=padding, return_cache=True, **raggedness)
            g = ops.gru_backward(dy, run[2], dh_n)
            assert_same(g.dh0, dh_n)
            assert not any(gradient.any() for name, gradient in zip(NAMES, g, strict=True) if name != "dh0")


def test_no_gradient_gives_none() -> None:
    case = Case(5, 4, 3, 6, h0=True)
    assert not any(gradient.any() for gradient in gradients(case, None, None))


# --- bit for bit -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", OTHER_ISAS)
def test_isas_agree(isa: str) -> None:
    @settings(SETTINGS, max_examples=60)
    @given(cases())
    def run(case: Case) -> None:
        assume(case.work < 1e7)
        assert_same_gradients(gradients(case, *upstream(case), isa), gradients(case, *upstream(case), "scalar"), isa)

    run()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("ragged", ["none", "lengths", "mask", "offsets"])
def test_threads_change_nothing(isa: str, variant: dict[str, Any], ragged: str) -> None:
    case = Case(67, 10, 40, 65, ragged=ragged, h0=True, padding="keras", variant=variant)
    assert case.work > 2.5 * PARALLEL_WORK  # also where masks leave a half of it
    up, packed = upstream(case), case.packed(isa)
    right = gradients(case, *up, packed=packed, num_threads=1)
    for threads in (2, 3, 1000):
        found = gradients(case, *up, packed=packed, num_threads=threads)
        assert_same_gradients(found, right, f"{threads} threads")


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 9])
def test_threads_change_nothing_with_few_rows(rows: int) -> None:
    for reset_after in (True, False):
        case = Case(rows, 60, 130, 129, h0=True, variant={"reset_after": reset_after})
        assert case.work > PARALLEL_WORK
        right = gradients(case, *upstream(case))
        for threads in (2, 3, 8):
            assert_same_gradients(gradients(case, *upstream(case), num_threads=threads), right, f"{threads} threads")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("reverse", [False, True])
def test_splitting_the_batch_changes_no_row(isa: str, variant: dict[str, Any], reverse: bool) -> None:
    """dx and dh0 of a row don't depend on its neighbours, or on which tile or slot it falls into."""
    case = Case(71, 6, 33, 21, h0=True, reverse=reverse, variant=variant)
    a, packed, (dy, dh_n) = case.arrays(), case.packed(isa), upstream(case)
    for lengths in (None, a["lengths"]):

        def run(rows: slice, lengths: Any = lengths) -> ops.Gradients:
            some = None if lengths is None else lengths[rows]
            x, h0 = a["x"][rows], a["h0"][rows]
            cache = ops.gru(x, packed, h0=h0, lengths=some, reverse=reverse, return_cache=True)[2]
            return ops.gru_backward(dy[rows], cache, dh_n[rows])

        right = run(slice(None))
        for step in (1, 2, 3, 5, 8, 9, 64):
            for first in range(0, 71, step):
                rows = slice(first, first + step)
                found = run(rows)
                assert_same(found.dx, right.dx[rows], f"dx, {step} rows")
                assert_same(found.dh0, right.dh0[rows], f"dh0, {step} rows")


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("N", [1, 2, 5, 20, 150])
def test_padding_changes_nothing(N: int, reverse: bool) -> None:
    """More padding, other values in it and in its dy, a mask of the same steps, offsets: the same bits, weights too."""
    case = Case(N, 14, 5, 19, ragged="lengths", h0=True, reverse=reverse)
    a, packed, (dy, dh_n) = case.arrays(), case.packed(), upstream(case)
    lengths, valid = a["lengths"], np.arange(14) < a["lengths"][:, None]

    def run(x: Any, dy: Any, **raggedness: Any) -> ops.Gradients:
        cache = ops.gru(x, packed, h0=a["h0"], reverse=reverse, return_cache=True, **raggedness)[2]
        return ops.gru_backward(dy, cache, dh_n)

    right = run(a["x"], dy, lengths=lengths)
    assert not right.dx[~valid].any()
    for rubbish in (np.nan, np.inf):
        longer = np.full((N, 23, 5), rubbish, np.float32), np.full((N, 23, 19), rubbish, np.float32)
        for room, values in zip(longer, (a["x"], dy), strict=True):
            room[:, :14][valid] = values[valid]
        found = run(*longer, lengths=lengths)
        assert not found.dx[:, 14:].any()
        assert_same_gradients(found._replace(dx=found.dx[:, :14].copy()), right, "longer")
        found = run(*longer, mask=np.arange(23) < lengths[:, None])
        assert_same_gradients(found._replace(dx=found.dx[:, :14].copy()), right, "right-padded mask")
    rng = np.random.default_rng(N)
    mask = np.zeros((N, 20), bool)
    for row, n in zip(mask, lengths, strict=True):
        row[rng.choice(20, n, replace=False)] = True
    scattered = np.full((N, 20, 5), np.nan, np.float32), np.full((N, 20, 19), np.nan, np.float32)
    for room, values in zip(scattered, (a["x"], dy), strict=True):
        room[mask] = values[valid]
    found = run(*scattered, mask=mask)
    assert not found.dx[~mask].any()
    assert_same_gradients(found._replace(dx=found.dx[mask]), right._replace(dx=right.dx[valid]), "mask")
    found = run(a["x"][valid], dy[valid], offsets=np.concatenate([[0], np.cumsum(lengths)]))
    assert_same_gradients(found, right._replace(dx=right.dx[valid]), "offsets")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("N", [1, 3, 30])
def test_layout_changes_nothing(isa: str, N: int) -> None:
    case = Case(N, 8, 6, 21, h0=True)
    a, packed, (dy, dh_n) = case.arrays(), case.packed(isa), upstream(case)

    def run(x: Any, dy: Any, dh_n: Any = dh_n, **call: Any) -> ops.Gradients:
        cache = ops.gru(x, packed, h0=a["h0"], return_cache=True, **call)[2]
        return ops.gru_backward(dy, cache, dh_n)

    right = run(a["x"], dy)
    turned = right._replace(dx=right.dx.transpose(1, 0, 2))
    x, d = (np.ascontiguousarray(b.transpose(1, 0, 2)) for b in (a["x"], dy))
    assert_same_gradients(run(x, d, batch_first=False), turned, "time major")
    assert_same_gradients(run(a["x"].transpose(1, 0, 2), d, batch_first=False), turned, "transposed x")
    assert_same_gradients(run(x, dy.transpose(1, 0, 2), batch_first=False), turned, "transposed dy")
    assert_same_gradients(run(*map(np.asfortranarray, (a["x"], dy, dh_n))), right, "Fortran order")
    room = np.zeros((2 * N, 3 * 8, 50), np.float32)
    for name, place in {
        "every other row": room[::2, :8, :21],
        "rows backwards": room[N - 1 :: -1, :8, :21],
        "every third step": room[:N, ::3, 5:26],
        "steps backwards": room[:N, 7::-1, 1:22],
        "units apart": room[:N, :8, :42:2],
    }.items():
        place[...] = dy
        before = room.copy()
        assert_same_gradients(run(a["x"], place), right, name)
        assert np.array_equal(room, before)
        y = room[:N, ::3, 9:30]
        assert_same_gradients(run(a["x"], dy, out=y), right, "y inside wider rows")
    one = np.broadcast_to(dy[:1, :1], dy.shape)
    assert_same_gradients(run(a["x"], one), run(a["x"], one.copy()), "dy without strides")


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("ragged", ["none", "lengths", "mask", "offsets"])
def test_recomputing_changes_nothing(variant: dict[str, Any], ragged: str) -> None:
    for reverse, batch_first, padding in ((False, True, "zero"), (True, False, "keras"), (False, False, "keras")):
        case = Case(9, 6, 5, 17, 0, "both", ragged, True, reverse, padding, batch_first=batch_first, variant=variant)
        kept, again = (gradients(case, *upstream(case), return_cache=mode) for mode in (True, "recompute"))
        assert_same_gradients(again, kept)


@settings(SETTINGS, max_examples=40)
@given(cases())
def test_recomputing_any_case_changes_nothing(case: Case) -> None:
    assume(case.work < 1e7)
    kept, again = (gradients(case, *upstream(case), return_cache=mode) for mode in (True, "recompute"))
    assert_same_gradients(again, kept)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_cache_changes_nothing_in_the_forward_pass(variant: dict[str, Any]) -> None:
    for N, ragged in ((1, "none"), (5, "lengths"), (70, "mask"), (9, "offsets")):
        case = Case(N, 6, 5, 17, ragged=ragged, h0=True, variant=variant)
        plain = case.run()
        for mode in (True, "recompute"):
            run = case.call(ops.gru, case.packed(), num_threads=1, return_cache=mode)
            for found, right in zip(run[:2], plain, strict=True):
                assert_same(found, right)


def test_passes_in_several_threads_at_once() -> None:
    made = [Case(n, 9, 12, 20, seed=n, ragged="lengths", h0=True) for n in (1, 4, 9, 33)] * 6
    right = [gradients(case, *upstream(case)) for case in made]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda case: gradients(case, *upstream(case), num_threads=2), made))
    for f, r in zip(found, right, strict=True):
        assert_same_gradients(f, r)


def test_a_row_of_nan_stays_its_own() -> None:
    case = Case(9, 5, 4, 10, h0=True)
    a, packed, (dy, dh_n) = case.arrays(), case.packed(), upstream(case)
    right = ops.gru_backward(dy, ops.gru(a["x"], packed, h0=a["h0"], return_cache=True)[2], dh_n)
    x = a["x"].copy()
    x[3, 2] = np.nan
    found = ops.gru_backward(dy, ops.gru(x, packed, h0=a["h0"], return_cache=True)[2], dh_n)
    others = np.arange(9) != 3
    assert np.isnan(found.dx[3]).any() and np.isnan(found.dweight_ih).any()
    assert_same(found.dx[others], right.dx[others])
    assert_same(found.dh0[others], right.dh0[others])


# --- truncated backpropagation through time --------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("parts", [(6, 6), (1, 4, 7)])
def test_passing_dh0_back_is_the_whole_pass(variant: dict[str, Any], parts: tuple[int, ...]) -> None:
    """Chunks of time, states handed forward and gradients back: the bits of one pass, weights but for the sum."""
    case = Case(7, 12, 5, 17, h0=True, variant=variant)
    a, packed, (dy, dh_n) = case.arrays(), case.packed(), upstream(case)
    right = gradients(case, dy, dh_n)
    h, caches, edges = a["h0"], [], np.cumsum((0, *parts))
    for first, last in zip(edges[:-1], edges[1:], strict=True):
        _, h, cache = ops.gru(a["x"][:, first:last], packed, h0=h, return_cache=True)
        caches.append(cache)
    d, found = dh_n, []
    for cache, first, last in reversed(list(zip(caches, edges[:-1], edges[1:], strict=True))):
        found.insert(0, ops.gru_backward(dy[:, first:last], cache, d))
        d = found[0].dh0
    assert_same(np.concatenate([g.dx for g in found], axis=1), right.dx)
    assert_same(d, right.dh0)
    sums = [sum(g[i] for g in found) for i in range(2, 6)]
    assert_gradients(ops.Gradients(right.dx, right.dh0, *sums), right)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_truncated_is_each_chunk_by_itself(variant: dict[str, Any]) -> None:
    """h_n handed on as a constant: each chunk's gradients are the reference's for that chunk from that state."""
    whole = Case(6, 12, 5, 11, h0=True, variant=variant)
    a, packed, (dy, _) = whole.arrays(), whole.packed(), upstream(whole)
    h = a["h0"]
    for t in range(0, 12, 4):

        class Chunk(Case):
            """The same weights, four steps, the state that came before."""

            def arrays(self, t: int = t, h: Any = h) -> dict[str, Any]:
                return {**a, "x": a["x"][:, t : t + 4], "h0": h}

        _, h, cache = ops.gru(a["x"][:, t : t + 4], packed, h0=h, return_cache=True)
        right = expected(Chunk(6, 4, 5, 11, h0=True, variant=variant), dy[:, t : t + 4], None)
        assert_gradients(ops.gru_backward(dy[:, t : t + 4], cache), right)


# --- the cache -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ragged", ["none", "lengths", "mask", "offsets"])
def test_memory_of_the_cache(ragged: str) -> None:
    """16 H bytes for each valid step, nothing for padding."""
    case = Case(9, 7, 4, 13, ragged=ragged)
    a = case.arrays()
    steps = {"none": 9 * 7, "mask": int(a["mask"].sum())}.get(ragged, int(a["lengths"].sum()))
    cache = case.call(ops.gru, case.packed(), return_cache=True)[2]
    assert cache.nbytes == 16 * 13 * steps
    assert case.call(ops.gru, case.packed(), return_cache="recompute")[2].nbytes == 0


def test_a_used_cache_gives_its_memory_to_the_next() -> None:
    """Taken where it is large enough, refused while it is in use; nothing of the last pass is left in the results."""
    large, small = Case(5, 6, 4, 13), Case(3, 6, 4, 13, ragged="lengths")
    y, _, cache = large.call(ops.gru, large.packed(), return_cache=True)
    memory = cache.gates
    with pytest.raises(ValueError, match=r"^return_cache: expected True or a used cache"):
        large.call(ops.gru, large.packed(), return_cache=cache)
    ops.gru_backward(y, cache)
    y, _, again = small.call(ops.gru, small.packed(), return_cache=cache)
    assert np.shares_memory(again.gates, memory) and cache.nbytes == 0
    fresh = small.call(ops.gru, small.packed(), return_cache=True)[2]
    for found, right in zip(ops.gru_backward(y, again), ops.gru_backward(y, fresh), strict=True):
        assert (found is None and right is None) or np.array_equal(found, right)
    _, _, larger = large.call(ops.gru, large.packed(), return_cache=again)
    assert not np.shares_memory(larger.gates, memory)


@pytest.mark.parametrize("ragged", ["none", "lengths", "mask", "offsets"])
def test_dx_into_a_given_array(ragged: str) -> None:
    """All of it is written, padding too, and nothing beside it; whatever the strides."""
    case = Case(5, 6, 4, 13, ragged=ragged)
    y, _, cache = case.call(ops.gru, case.packed(), return_cache=True)
    right = ops.gru_backward(y, case.call(ops.gru, case.packed(), return_cache=True)[2])
    room = np.full((*right.dx.shape[:-1], 7), np.nan, np.float32)
    found = ops.gru_backward(y, cache, out=room[..., 2:6])
    assert np.shares_memory(found.dx, room) and np.isnan(room[..., [0, 1, 6]]).all()
    for a, b in zip(found, right, strict=True):
        assert (a is None and b is None) or np.array_equal(a, b)


def test_where_dx_cannot_go() -> None:
    y, _, cache = CASE.call(ops.gru, CASE.packed(), return_cache=True)
    with pytest.raises(ValueError, match=r"^out: expected shape"):
        ops.gru_backward(y, cache, out=np.empty((1, 2, 3), np.float32))
    with pytest.raises(TypeError, match=r"^out: expected a float32 ndarray"):
        ops.gru_backward(y, cache, out=np.empty(cache.x.shape))
    kept = cache.gates.ravel()[: cache.x.size].reshape(cache.x.shape)
    for place in (cache.x, kept):
        with pytest.raises(ValueError, match=r"^out: shares memory with an input"):
            ops.gru_backward(y, cache, out=place)
    ops.gru_backward(y, cache)  # none of these has used it up


@pytest.mark.parametrize("mode", [True, "recompute"])
def test_a_cache_is_used_once(mode: bool | str) -> None:
    case = Case(3, 4, 2, 5)
    y, _, cache = case.call(ops.gru, case.packed(), return_cache=mode)
    ops.gru_backward(y, cache)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"^cache: used before.*run the forward pass again"):
            ops.gru_backward(y, cache)


def test_inputs_are_left_alone() -> None:
    for padding in ("zero", "keras"):
        case = Case(5, 6, 3, 7, ragged="mask", h0=True, padding=padding)
        a, packed, given = case.arrays(), case.packed(), upstream(case)
        y, h_n, cache = ops.gru(a["x"], packed, h0=a["h0"], mask=a["mask"], padding=padding, return_cache=True)
        arrays = [*given, a["x"], a["h0"], y, h_n]
        before = [b.copy() for b in arrays]
        for b in arrays:
            b.flags.writeable = False
        g = ops.gru_backward(given[0], cache, given[1])
        for b, kept in zip(arrays, before, strict=True):
            assert_same(b, kept)
        for name, gradient in zip(NAMES, g, strict=True):
            assert gradient.dtype == np.float32 and gradient.flags.writeable and gradient.flags.c_contiguous, name
            assert not any(np.shares_memory(gradient, other) for other in (*arrays, *g) if other is not gradient), name


def test_other_dtypes_are_rounded_once() -> None:
    case = Case(3, 4, 2, 5)
    dy, dh_n = upstream(case)
    right = gradients(case, dy, dh_n)
    assert_same_gradients(gradients(case, dy.astype(">f4"), dh_n.astype(np.float64)), right)
    ones = gradients(case, np.ones((3, 4, 5), np.int8), np.zeros((3, 5), bool))
    assert_same_gradients(ones, gradients(case, np.ones((3, 4, 5)), None))
    cache = case.call(ops.gru, case.packed(), return_cache=True)[2]
    assert_same_gradients(ops.gru_backward(dy.tolist(), cache, dh_n.tolist()), right)


# --- bad input -------------------------------------------------------------------------------------------------------

CASE = Case(3, 4, 2, 5)
BAD: tuple[tuple[dict[str, Any], type[Exception], str], ...] = (
    ({"dy": np.zeros((3, 4, 6))}, ValueError, r"^dy: expected shape \(3, 4, 5\), found \(3, 4, 6\)"),
    ({"dy": np.zeros((4, 3, 5))}, ValueError, r"^dy: expected shape \(3, 4, 5\), found \(4, 3, 5\)"),
    ({"dy": np.zeros((3, 5))}, ValueError, r"^dy: expected shape \(3, 4, 5\), found \(3, 5\)"),
    ({"dy": 1.0}, ValueError, r"^dy: expected shape \(3, 4, 5\), found \(\)"),
    ({"dy": np.zeros((3, 4, 5), complex)}, TypeError, r"^dy: expected real numbers, found dtype complex128"),
    ({"dy": "dy"}, TypeError, r"^dy: expected real numbers"),
    ({"dh_n": np.zeros((3, 4))}, ValueError, r"^dh_n: expected shape \(3, 5\), found \(3, 4\)"),
    ({"dh_n": np.zeros((1, 3, 5))}, ValueError, r"^dh_n: expected shape \(3, 5\), found \(1, 3, 5\)"),
    ({"dh_n": object()}, TypeError, r"^dh_n: expected real numbers"),
    ({"num_threads": 0}, ValueError, r"^num_threads: expected a whole number >= 1 or None, found 0"),
    ({"num_threads": "two"}, (TypeError, ValueError), r"^num_threads: "),
)


@pytest.mark.parametrize("bad, error, message", BAD, ids=lambda v: str(v)[:40] if isinstance(v, str) else "")
def test_bad_input_is_refused_and_leaves_the_cache(bad: dict[str, Any], error: Any, message: str) -> None:
    dy, dh_n = upstream(CASE)
    cache = CASE.call(ops.gru, CASE.packed(), return_cache=True)[2]
    good = {"dy": dy, "dh_n": dh_n, "num_threads": 1}
    with pytest.raises(error, match=message):
        ops.gru_backward(**{**good, **bad}, cache=cache)
    assert_same_gradients(ops.gru_backward(**good, cache=cache), gradients(CASE, dy, dh_n))


@pytest.mark.parametrize("cache", [None, 1, "y", (None, None, None), np.zeros((3, 4, 5), np.float32)], ids=str)
def test_another_thing_than_a_cache_is_refused(cache: Any) -> None:
    with pytest.raises(TypeError, match=r"^cache: expected the third result of gru.*found"):
        ops.gru_backward(np.zeros((3, 4, 5)), cache)


@pytest.mark.parametrize("mode", [1, 0, None, "yes", "Recompute"])
def test_unknown_kinds_of_cache_are_refused(mode: Any) -> None:
    with pytest.raises(ValueError, match=r"^return_cache: expected True, False, 'recompute' or a used cache, found"):
        CASE.call(ops.gru, CASE.packed(), return_cache=mode)


@pytest.mark.parametrize("place", ["activation", "recurrent_activation"])
@pytest.mark.parametrize(
    "activation, wanted",
    [
        (("elu", -1.0, 0.0), "> 0"),
        (("elu", 0.0, 0.0), "> 0"),
        (("leaky_relu", -0.1, 0.0), "> 0"),
        (("leaky_relu", 0.0, 0.0), "> 0"),
        (("thresholded_relu", -1.0, 0.0), ">= 0"),
        (("scaled_tanh", 0.0, 1.0), "other than 0"),
    ],
    ids=str,
)
def test_activations_whose_value_does_not_tell_the_slope(activation: Any, wanted: str, place: str) -> None:
    case = replace(CASE, variant={place: activation})
    case.call(ops.gru, case.packed())  # scoring needs no slope
    for mode in (True, "recompute"):
        with pytest.raises(ValueError, match=rf"^{place}: no gradient through {activation[0]} .*alpha {wanted}$"):
            case.call(ops.gru, case.packed(), return_cache=mode)


@pytest.mark.parametrize("activation", [("thresholded_relu", 0.0, 0.0), ("scaled_tanh", -1.2, 0.7)], ids=str)
def test_the_edges_that_are_not_refused(activation: Any) -> None:
    compare(Case(4, 3, 2, 5, seed=2, h0=True, variant={"activation": activation}))


# --- the checkers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_comparison_bites(name: str) -> None:
    """Zeros, swapped gates, a lost step, one wrong element and a missing gradient are outside the tolerance."""
    case = Case(6, 5, 9, 7, h0=True)
    up = upstream(case)
    right, found = expected(case, *up), gradients(case, *up)
    assert_gradients(found, right)
    good = getattr(found, name)
    spoilt = [np.zeros_like(good), np.roll(good, 7, axis=0), good.copy(), -good]
    spoilt[2].flat[-1] += 1e-4
    if name.startswith(("dweight", "dbias")):
        spoilt.append(good[np.r_[7:14, 0:7, 14:21]])
        a = case.arrays()
        cache = ops.gru(a["x"][:5], case.packed(), h0=a["h0"][:5], return_cache=True)[2]
        spoilt.append(getattr(ops.gru_backward(up[0][:5], cache, up[1][:5]), name))  # a row is missing from the sums
    for bad in (*spoilt, None):
        with pytest.raises(AssertionError, match=f"^{name}: "):
            assert_gradients(found._replace(**{name: bad}), right)
    bits = good.copy()
    bits.flat[0] = np.nextafter(bits.flat[0], np.float32(9))
    with pytest.raises(AssertionError, match=f"^{name}"):
        assert_same_gradients(found._replace(**{name: bits}), found)


def test_layouts_of_the_helper_are_those_of_the_call() -> None:
    for ragged in ("none", "lengths", "offsets"):
        for batch_first in (True, False):
            case = Case(4, 3, 2, 5, ragged=ragged, batch_first=batch_first)
            y = case.call(ops.gru, case.packed())[0]
            assert in_layout(case, upstream(case)[0]).shape == y.shape


def test_memory_is_not_taken_over_while_it_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread's forward pass may ask for it as soon as the backward pass has begun."""
    case = Case(5, 4, 3, 6)
    cache = ops.gru(case.arrays()["x"], case.packed(), return_cache=True)[2]
    kept, backward = cache.gates, gradients_module.backward

    def meanwhile(*arguments: Any) -> Any:
        assert not np.shares_memory(cache.take(kept.shape), kept)
        return backward(*arguments)

    monkeypatch.setattr(gradients_module, "backward", meanwhile)
    ops.gru_backward(None, cache)
    assert np.shares_memory(cache.take(kept.shape), kept)
