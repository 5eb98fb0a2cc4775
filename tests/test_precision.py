"""Rounding error against the reference in float64, beside PyTorch's: contractive weights, N = 16, T = 200.

Ours is the same on every machine (test_bitwise.py), so the figures of PyTorch may also be recorded ones. All is
computed in a process of its own with one thread for BLAS: on a busy machine its threads wait minutes for each other.

    python tests/test_precision.py [torch]      prints [RMS, maximum] of ours (and of PyTorch's) for each shape and seed
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_core import weights

import fastgru
from fastgru import ops, reference

N, T, SEEDS = 16, 200, 8
SHAPES = ((64, 64), (128, 64), (128, 128), (256, 64), (256, 256), (512, 64))  # H, I
# RMS error of PyTorch 2.13 (AVX2, one thread) on the cases below, geometric mean over the seeds
RECORDED = {(64, 64): 4.2741e-08, (128, 64): 3.3975e-08, (128, 128): 5.5942e-08, (256, 64): 2.6048e-08}


def case(H: int, I: int, seed: int) -> tuple[list[Any], Any, Any]:  # noqa: E741 - the letters of the whole project
    """Weights as PyTorch initialises them, x, and the exact y."""
    rng = np.random.default_rng(seed)
    w = list(weights(rng, I, H).values())
    x = rng.standard_normal((N, T, I)).astype(np.float32)
    return w, x, reference.gru(x.astype(np.float64), *[a.astype(np.float64) for a in w])[0]


def errors(y: Any, exact: Any) -> list[float]:
    """RMS and maximum."""
    error = np.abs(y - exact)
    return [float(np.sqrt(np.mean(error**2))), float(error.max())]


def measure(H: int, I: int, with_torch: bool) -> list[list[list[float]]]:  # noqa: E741
    """For each seed, errors of ours, then of PyTorch's."""
    found = []
    for seed in range(SEEDS):
        w, x, exact = case(H, I, seed)
        found.append([errors(ops.gru(x, *w)[0], exact)])
        if with_torch:
            import torch

            module = torch.nn.GRU(I, H, batch_first=True)
            names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
            module.load_state_dict({name: torch.from_numpy(a) for name, a in zip(names, w, strict=True)})
            with torch.no_grad():
                found[-1].append(errors(module(torch.from_numpy(x))[0].numpy(), exact))
    return found


@functools.cache
def measured(*more: str) -> dict[str, Any]:
    """`measure` of each shape in a process of its own: "H I" -> (seeds, ours and theirs, RMS and maximum)."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    path = [str(Path(fastgru.__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, __file__, *more],
        env={**os.environ, **one, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return {shape: np.array(found) for shape, found in json.loads(done.stdout).items()}


def limit(H: int) -> float:
    return 1.0 if H >= 128 else 1.1


@pytest.mark.parametrize("H, I", RECORDED)
def test_rms_error_is_at_most_the_recorded_one(H: int, I: int) -> None:  # noqa: E741
    ratio = float(np.exp(np.mean(np.log(measured()[f"{H} {I}"][:, 0, 0])))) / RECORDED[H, I]
    assert ratio <= limit(H), f"RMS error is {ratio:.3f} of PyTorch's, expected at most {limit(H)}"


@pytest.mark.slow
@pytest.mark.parity("torch")
@pytest.mark.parametrize("H, I", SHAPES)
def test_error_is_at_most_pytorchs(H: int, I: int) -> None:  # noqa: E741
    if importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch is not installed: pip install 'fastgru[parity]'")
    ratios = measured("torch")[f"{H} {I}"]
    ratios = ratios[:, 0] / ratios[:, 1]
    rms, largest = float(np.exp(np.mean(np.log(ratios[:, 0])))), float(ratios[:, 1].max())
    print(f"H={H} I={I}: RMS {rms:.3f} of PyTorch's, maximum {largest:.3f}")
    assert rms <= limit(H), f"RMS error is {rms:.3f} of PyTorch's, expected at most {limit(H)}: {ratios[:, 0]}"
    assert largest <= 1.5, f"maximum error is {largest:.3f} of PyTorch's, expected at most 1.5: {ratios[:, 1]}"


def test_one_chain_of_512_terms_would_fail() -> None:
    """The check bites: summing k without blocks (float32, in order) is far beyond what is allowed."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((2000, 512)).astype(np.float32) for _ in range(2))
    exact = np.sum(a.astype(np.float64) * b, axis=1)
    chain, blocked = np.zeros(2000, np.float32), np.zeros(2000, np.float32)
    for k in range(512):
        chain = chain + a[:, k] * b[:, k]
    for k0 in range(0, 512, 64):
        part = np.zeros(2000, np.float32)
        for k in range(k0, k0 + 64):
            part = part + a[:, k] * b[:, k]
        blocked = blocked + part
    assert errors(blocked, exact)[0] < 0.7 * errors(chain, exact)[0]


if __name__ == "__main__":
    torch = "torch" in sys.argv
    print(json.dumps({f"{H} {I}": measure(H, I, torch) for H, I in (SHAPES if torch else RECORDED)}))
