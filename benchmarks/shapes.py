"""The one table of shapes that is timed, what each costs at least, and the numbers that go in.

Letters: N batch, T time, I input, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]


class Case(NamedTuple):
    """One or more GRU layers forward, the whole sequence out.

    kind: "step" carries the state from call to call; "ragged" has rows of 1 … T valid steps; "stack" has two layers;
    "training" is forward and backward of one layer, all gradients out.
    """

    kind: str
    N: int
    T: int
    I: int
    H: int
    layers: int = 1
    reset_after: bool = True
    time_major: bool = False  # of fastgru's arrays; its peers have the layout that they prefer

    @property
    def name(self) -> str:
        return f"{self.kind} {self.N}, {self.T}, {self.I}, {self.H}"


CASES = (
    Case("step", 1, 1, 128, 128),
    Case("step", 1, 1, 512, 512),
    Case("sequence", 1, 100, 128, 128),
    Case("sequence", 1, 100, 512, 512),
    Case("stack", 1, 100, 400, 400, layers=2),  # the recurrent part of a speech enhancer such as NSNet2
    Case("batch", 32, 20, 100, 100),
    Case("batch", 64, 50, 128, 128),
    Case("ragged", 64, 50, 128, 128),
    Case("batch", 256, 50, 256, 256),
    Case("ragged", 256, 50, 256, 256),
    Case("batch", 128, 50, 512, 512),
    Case("training", 64, 50, 128, 128),
    Case("training", 256, 50, 256, 256),
)
QUICK = tuple(case for case in CASES if case.N * case.T * case.H**2 < 1e8)


def random_cases(count: int = 20) -> list[Case]:
    """Shapes that nobody chose: sizes uniform in their logarithms, I other than H, H no multiple of 8."""
    rng, found = np.random.default_rng(4), []

    def between(low: int, high: int) -> int:
        return int(round(np.exp(rng.uniform(np.log(low), np.log(high)))))

    while len(found) < count:
        kind = ("batch", "batch", "ragged", "sequence", "step")[len(found) % 5]
        N = 1 if kind in ("step", "sequence") else between(32, 256)
        T = 1 if kind == "step" else between(10, 150 if kind == "sequence" else 60)
        I, H = between(16, 600), between(90, 600)
        case = Case(kind, N, T, I, H, 1, bool(rng.integers(2)), bool(rng.integers(2)))
        if H % 8 and I != H and limit(case, 1.0, np.inf) < 5e9:  # 50 ms of one core
            found.append(case)
    return found


def nearest(case: Case, listed: Iterable[Case]) -> Case:
    """The listed case of the same kind that is least far in N, I and H, each by its logarithm."""
    mine = np.log([case.N, case.I, case.H])
    return min(
        (other for other in listed if other.kind == case.kind),
        key=lambda other: float(np.abs(np.log([other.N, other.I, other.H]) - mine).sum()),
    )


def weights(case: Case) -> dict[str, F32]:
    """By PyTorch's names, gates r z n, distributed as PyTorch initialises them."""
    rng, limit = np.random.default_rng(1), case.H**-0.5
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(case.layers):
        shapes[f"weight_ih_l{layer}"] = (3 * case.H, case.H if layer else case.I)
        shapes[f"weight_hh_l{layer}"] = (3 * case.H, case.H)
        shapes[f"bias_ih_l{layer}"] = shapes[f"bias_hh_l{layer}"] = (3 * case.H,)
    return {name: rng.uniform(-limit, limit, shape).astype(np.float32) for name, shape in shapes.items()}


def layers(case: Case) -> list[tuple[F32, F32, F32, F32]]:
    """The same weights: (weight_ih, weight_hh, bias_ih, bias_hh) of each layer."""
    w = weights(case)
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return [tuple(w[f"{name}_l{layer}"] for name in names) for layer in range(case.layers)]  # type: ignore[misc]  # four


def swap_gates(a: F32) -> F32:
    """Gates r z n along the first axis to z r n, the order of Keras, ONNX, OpenVINO and oneDNN; and back."""
    r, z, n = np.split(a, 3)
    return np.concatenate([z, r, n])


def inputs(case: Case, number: int) -> F32:
    """Input x (N, T, I) of the `number`-th call."""
    return np.random.default_rng(100 + number).standard_normal((case.N, case.T, case.I)).astype(np.float32)


def gradient(case: Case) -> F32:
    """Gradient dy (N, T, H) of the whole output, the same in every call."""
    return np.random.default_rng(3).standard_normal((case.N, case.T, case.H)).astype(np.float32)


def lengths(case: Case) -> NDArray[np.int64] | None:
    """Valid steps of each row of a ragged case, uniform in 1 … T."""
    return np.random.default_rng(2).integers(1, case.T + 1, case.N) if case.kind == "ragged" else None


def working_set(case: Case) -> int:
    """Bytes of the weights that every step reads again: with T > 1, the input's can be read once for many steps."""
    return 4 * 3 * case.H * (case.H if case.T > 1 else case.I + case.H)


def limit(case: Case, flops: float, bandwidth: float) -> float:
    """Seconds below which this machine cannot do the case.

    Each layer is two products: the input's, of all steps at once, and the state's, step after step. Each takes at least
    its FLOPs over `flops` (1/s) and its weights' bytes over `bandwidth` (bytes/s, measured at `working_set`). The way
    back has two products for each, of the same size: the gradient of what came in, and that of the weights.
    """
    row_lengths = lengths(case)
    rows = case.N * case.T if row_lengths is None else int(row_lengths.sum())
    seconds = 0.0
    for layer in range(case.layers):
        for inner, passes in ((case.H if layer else case.I, 1), (case.H, case.T)):
            weight = 3 * case.H * inner
            seconds += max(2 * weight * rows / flops, 4 * weight * passes / bandwidth)
    return seconds * (3 if case.kind == "training" else 1)


def forward_only(case: Case) -> None:
    """Raise for engines that cannot train."""
    if case.kind == "training":
        raise NotImplementedError("forward only")


def only(wanted: str, configuration: str) -> None:
    """Raise where a configuration is not the one in which an engine does a case."""
    if configuration != wanted:
        raise NotImplementedError(f"as {wanted} only")


class Run(NamedTuple):
    """What an adaptor makes of a case."""

    feed: Callable[[F32], None]  # takes x (N, T, I), not timed: in place, where the engine can read its input in place
    call: Callable[[], Any]  # timed
    output: Callable[[Any], Any]  # what the call returned -> y (N, T, H); or dx (N, T, I) and dweight_hh (3H, H)
    state: Callable[[], NDArray[Any]] | None = None  # of a "step": (N, H) from which the next call starts
