"""What the tests of gradients share: central differences, distance to the kinks of activations, a case's gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from helpers_core import Case, assert_close, assert_same

from fastgru import ops, reference

NAMES = ops.Gradients._fields  # dx, dh0, dweight_ih, dweight_hh, dbias_ih, dbias_hh
WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
STEP = 1e-5  # of central differences in float64: errors of 1e-10 by rounding and by the third derivative

# where an activation's slope jumps, by alpha and beta: there neither differences nor float32 can be compared
KINKS: dict[str, Callable[[float, float], tuple[float, ...]]] = {
    "hard_sigmoid": lambda a, b: (-b / a, (1 - b) / a),
    "relu": lambda a, b: (0.0,),
    "elu": lambda a, b: () if a == 1 else (0.0,),
    "selu": lambda a, b: (0.0,),
    "leaky_relu": lambda a, b: (0.0,),
    "thresholded_relu": lambda a, b: (a,),
}


def kinks(activation: Any) -> tuple[float, ...]:
    name, alpha, beta = reference._parts(activation)
    return KINKS[name](alpha, beta) if name in KINKS else ()


@contextmanager
def nearest_kink() -> Iterator[list[float]]:
    """Collects how near the reference's backward passes come to a kink; the list ends with the smallest distance."""
    found, slope = [np.inf], reference.slope

    def watched(x: Any, activation: Any) -> Any:
        for kink in kinks(activation):
            found.append(min(found[-1], float(np.abs(x - kink).min(initial=np.inf))))
        return slope(x, activation)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "slope", watched)
        yield found


def differences(loss: Callable[[], float], a: Any) -> Any:
    """The gradient of a loss by every element of `a`, which the loss reads: central differences."""
    gradient = np.zeros_like(a)
    for i in np.ndindex(a.shape):
        kept = a[i]
        a[i] = kept + STEP
        up = loss()
        a[i] = kept - STEP
        gradient[i] = (up - loss()) / (2 * STEP)
        a[i] = kept
    return gradient


def upstream(case: Case) -> tuple[Any, Any]:
    """dy (N, T, H) and dh_n (N, H) of a loss, as batch-first rows whatever the layout of the call."""
    rng = np.random.default_rng(case.seed + 1)
    return tuple(rng.standard_normal(s).astype(np.float32) for s in ((case.N, case.T, case.H), (case.N, case.H)))


def in_layout(case: Case, rows: Any) -> Any:
    """Batch-first rows (N, T, ...) in the layout of the case's call."""
    if case.ragged == "offsets":
        return np.concatenate([row[:n] for row, n in zip(rows, case.arrays()["lengths"], strict=True)])
    return rows if case.batch_first else np.ascontiguousarray(rows.transpose(1, 0, 2))


def expected(case: Case, dy: Any, dh_n: Any) -> ops.Gradients:
    """The reference's gradients in float64, in the layout of the call; None where the case has no such input."""
    a = case.arrays()
    mask, lengths = a.pop("mask"), a.pop("lengths")
    wide = {name: None if v is None else v.astype(np.float64) for name, v in a.items()}
    found = reference.gru_backward(
        np.zeros((case.N, case.T, case.H)) if dy is None else dy.astype(np.float64),
        None if dh_n is None else dh_n.astype(np.float64),
        **wide,
        lengths=lengths if case.ragged in ("lengths", "offsets") else None,
        mask=mask if case.ragged == "mask" else None,
        reverse=case.reverse,
        padding="zero" if case.ragged == "offsets" else case.padding,  # with offsets there is none, nor its dy
        **case.variant,
    )
    absent = {"dh0": a["h0"] is None, "dbias_ih": a["bias_ih"] is None, "dbias_hh": a["bias_hh"] is None}
    named = {name: None if absent.get(name) else g for name, g in zip(NAMES, found, strict=True)}
    return ops.Gradients(**{**named, "dx": in_layout(case, named["dx"])})


def gradients(
    case: Case,
    dy: Any,
    dh_n: Any,
    isa: str | None = None,
    num_threads: int | None = 1,
    return_cache: bool | str = True,
    packed: ops.PackedGRU | None = None,
) -> ops.Gradients:
    """The same through ops; dy as batch-first rows."""
    packed = case.packed(isa) if packed is None else packed
    run = case.call(ops.gru, packed, padding=case.padding, num_threads=num_threads, return_cache=return_cache)
    return ops.gru_backward(None if dy is None else in_layout(case, dy), run[2], dh_n, num_threads=num_threads)


def assert_gradients(found: ops.Gradients, right: ops.Gradients, atol: float = 3e-6, rtol: float = 1e-5) -> None:
    """Every gradient by name: |found - right| <= atol max(1, largest) + rtol |right|.

    An element is a sum of many terms, which may cancel, so its rounding error follows the size of the terms. Of that
    the largest element tells: of dx and dh0, or of all weights and biases (a bias alone may have three elements).
    """
    for names in (NAMES[:2], NAMES[2:]):
        largest = max(float(np.abs(r).max(initial=1.0)) for n in names if (r := getattr(right, n)) is not None)
        for name in names:
            f, r = getattr(found, name), getattr(right, name)
            if f is None or r is None:
                assert f is None and r is None, f"{name}: expected {type(r).__name__}, found {type(f).__name__}"
                continue
            try:
                assert_close(f, r, atol * largest, rtol)
            except AssertionError as error:
                raise AssertionError(f"{name}: {error}") from None


def assert_same_gradients(found: ops.Gradients, right: ops.Gradients, what: str = "") -> None:
    """Every gradient equal bit for bit."""
    for name, f, r in zip(NAMES, found, right, strict=True):
        assert (f is None) == (r is None), name
        if f is not None:
            assert_same(f, r, f"{name}, {what}")
