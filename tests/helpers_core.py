"""What the tests of the core share: random cases, the reference on them, the tolerance, Python in a fresh process."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

import fastgru
from fastgru import ops, reference

ISAS: tuple[str, ...] = fastgru.build_info()["isas"]
OTHER_ISAS = tuple(isa for isa in ISAS if isa != "scalar")
PARALLEL_WORK = 2e6  # _core/isa.pyx: below so many multiply-adds a call takes one thread whatever num_threads says

# every activation, with parameters that are not the usual ones where there are any
ACTIVATIONS: tuple[Any, ...] = (
    "linear",
    "sigmoid",
    "tanh",
    "hard_sigmoid",
    ("hard_sigmoid", 1 / 6, 0.5),
    "relu",
    "softsign",
    "elu",
    ("elu", 0.7, 0.0),
    "selu",
    "softplus",
    ("affine", 0.6, -0.1),
    "leaky_relu",
    ("leaky_relu", 0.3, 0.0),
    ("thresholded_relu", 0.4, 0.0),
    ("scaled_tanh", 1.3, 0.7),
)


def assert_close(actual: Any, expected: Any, atol: float = 2e-6, rtol: float = 1e-5) -> None:
    """|actual - expected| <= atol + rtol |expected| everywhere; NaN only where NaN is expected."""
    assert actual.shape == expected.shape, f"expected shape {expected.shape}, found {actual.shape}"
    assert np.array_equal(np.isnan(actual), np.isnan(expected)), "NaN in other places than expected"
    excess = np.nan_to_num(np.abs(actual - expected) - (atol + rtol * np.abs(expected)), nan=0.0, posinf=np.inf)
    if excess.size and excess.max() > 0:
        at = np.unravel_index(int(excess.argmax()), excess.shape)
        raise AssertionError(f"at {tuple(map(int, at))}: expected {expected[at]!r}, found {actual[at]!r}")


def assert_same(actual: Any, expected: Any, what: str = "") -> None:
    """Equal bit for bit (NaN payloads aside)."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    if not np.array_equal(actual, expected, equal_nan=True):
        differ = ~((actual == expected) | (np.isnan(actual) & np.isnan(expected)))
        at = tuple(int(i) for i in np.argwhere(differ)[0])
        raise AssertionError(
            f"{what}: {differ.sum()} of {differ.size} differ, first at {at}: {actual[at]} {expected[at]}"
        )


def weights(rng: np.random.Generator, inputs: int, hidden: int, biases: str = "both") -> dict[str, Any]:
    """Random float32 weights within PyTorch's limits (contractive); biases: none, ih, hh or both."""
    limit = hidden**-0.5
    shapes = {"weight_ih": (3 * hidden, inputs), "weight_hh": (3 * hidden, hidden)}
    for name in ("ih", "hh"):
        if biases in (name, "both"):
            shapes["bias_" + name] = (3 * hidden,)
    made: dict[str, Any] = {n: rng.uniform(-limit, limit, shape).astype(np.float32) for n, shape in shapes.items()}
    return {name: made.get(name) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}


@dataclass(frozen=True)
class Case:
    """One call of ops.gru, made of nothing but plain values, so that a failure prints as something to paste."""

    N: int
    T: int
    I: int  # noqa: E741 - the letters of the whole project
    H: int
    seed: int = 0
    biases: str = "both"
    ragged: str = "none"  # none, lengths, mask, offsets
    h0: bool = False
    reverse: bool = False
    padding: str = "zero"
    batch_first: bool = True
    variant: dict[str, Any] = field(default_factory=dict)

    def arrays(self) -> dict[str, Any]:
        """x (N, T, I), weights, h0, lengths and mask: as batch-first rows, whatever the layout of the call."""
        rng = np.random.default_rng(self.seed)
        made = weights(rng, self.I, self.H, self.biases)
        made["x"] = rng.standard_normal((self.N, self.T, self.I)).astype(np.float32)
        made["h0"] = rng.uniform(-1, 1, (self.N, self.H)).astype(np.float32) if self.h0 else None
        made["lengths"] = rng.integers(0, self.T + 1, self.N)
        if self.N:
            made["lengths"][rng.integers(self.N)] = self.T
        made["mask"] = rng.random((self.N, self.T)) < 0.6
        return made

    def expected(self) -> tuple[Any, Any]:
        """y and h_n of the reference in float64, in the layout of the call."""
        a = {
            k: v.astype(np.float64) if getattr(v, "dtype", None) == np.float32 else v for k, v in self.arrays().items()
        }
        mask = a.pop("mask")
        lengths = a.pop("lengths")
        y, h_n = reference.gru(
            **a,
            lengths=lengths if self.ragged in ("lengths", "offsets") else None,
            mask=mask if self.ragged == "mask" else None,
            reverse=self.reverse,
            padding=self.padding,
            **self.variant,
        )
        if self.ragged == "offsets":
            return np.concatenate([row[:n] for row, n in zip(y, lengths, strict=True)]), h_n
        return (y if self.batch_first else y.transpose(1, 0, 2)), h_n

    def packed(self, isa: str | None = None) -> ops.PackedGRU:
        a = self.arrays()
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        packed = ops.pack_gru(*(a[name] for name in names), **self.variant, _isa=isa)
        assert isa is None or packed.isa == isa
        return packed

    def run(self, isa: str | None = None, num_threads: int | None = 1) -> tuple[Any, Any]:
        """The same through ops.gru, on one instruction set."""
        return self.call(ops.gru, self.packed(isa), padding=self.padding, num_threads=num_threads)

    def call(self, function: Any, packed: ops.PackedGRU, **more: Any) -> Any:
        """ops.gru or ops.gru_final on this case's inputs."""
        a = self.arrays()
        x = a["x"] if self.batch_first else np.ascontiguousarray(a["x"].transpose(1, 0, 2))
        if self.ragged == "offsets":
            x = np.concatenate([row[:n] for row, n in zip(a["x"], a["lengths"], strict=True)])
            more["offsets"] = np.concatenate([[0], np.cumsum(a["lengths"])])
        elif self.ragged != "none":
            more[self.ragged] = a[self.ragged]
        return function(x, packed, h0=a["h0"], reverse=self.reverse, batch_first=self.batch_first, **more)

    @property
    def work(self) -> float:
        """Multiply-adds of the call, if no step is padding."""
        return float(self.N) * self.T * 3 * self.H * (self.H + self.I)


# around the vector widths (4, 8, 16), the tiles (4 and 8 rows), the blocks of rows (64) and of products (64, 128)
ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 17, 31, 64, 65, 71)
STEPS = (1, 2, 3, 5, 9, 33)
INPUTS = (1, 2, 3, 5, 8, 13, 31, 64, 65, 129, 200)
HIDDEN = (1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 24, 25, 31, 33, 40, 47, 49, 64, 65, 72, 100, 129, 150)
# an unbounded update gate makes the state grow without limit: there only few steps can be compared
CALM = ("sigmoid", "hard_sigmoid", ("hard_sigmoid", 1 / 6, 0.5))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any call of ops.gru: sizes, variant, raggedness, layout."""
    recurrent = draw(st.sampled_from(("sigmoid", "sigmoid", *ACTIVATIONS)))
    gates = ("old", "new") if recurrent in CALM and recurrent != "softsign" else ("old",)
    return Case(
        N=draw(st.sampled_from(ROWS)),
        T=draw(st.sampled_from(STEPS if recurrent in CALM else STEPS[:3])),
        I=draw(st.sampled_from(INPUTS)),
        H=draw(st.sampled_from(HIDDEN)),
        seed=draw(st.integers(0, 2**16)),
        biases=draw(st.sampled_from(("none", "ih", "hh", "both"))),
        ragged=draw(st.sampled_from(("none", "lengths", "mask", "offsets"))),
        h0=draw(st.booleans()),
        reverse=draw(st.booleans()),
        padding=draw(st.sampled_from(("zero", "keras"))),
        batch_first=draw(st.booleans()),
        variant={
            "reset_after": draw(st.booleans()),
            "update_gate": draw(st.sampled_from(gates)),
            "activation": draw(st.sampled_from(("tanh", "tanh", *ACTIVATIONS))),
            "recurrent_activation": recurrent,
        },
    )


def run_python(code: str, timeout: float = 60, **env: str) -> subprocess.CompletedProcess[str]:
    """`code` in a fresh Python that finds this fastgru, without inherited switches of ours or of OpenMP."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("FASTGRU_ISA", "FASTGRU_NUM", "OMP_", "GOMP_"))}
    here = [str(Path(fastgru.__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, "PYTHONPATH": os.pathsep.join(here), **env},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def output_of(code: str, timeout: float = 60, **env: str) -> str:
    """What `code` prints in a fresh Python; an error if it fails."""
    done = run_python(code, timeout, **env)
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr[-2000:]}"
    return done.stdout.strip()
