"""`fastgru demo`: score models that Keras and PyTorch wrote, compare with what those frameworks computed, time it.

Each model lies beside NAME.expected.npz: the inputs, the framework's own outputs, and the versions that wrote them. The
models are timed against the NumPy reference, and against Keras and PyTorch where these are installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fastgru
from fastgru import formats, gates, nn, reference
from fastgru.loading import load

Array = NDArray[Any]
Run = Callable[[], Any]

FILES = ("keras_text_gru.keras", "keras_reset_after.keras", "keras_reset_before.keras", "torch_bigru.pt")
BATCHES = (1, 256)
ROUNDS, ROUND_SECONDS = 15, 0.004


@dataclass(frozen=True)
class Case:
    """A model file, the inputs that a framework was given, and what it answered."""

    path: Path
    writer: str
    inputs: list[Array]
    outputs: list[Array]

    @property
    def is_torch(self) -> bool:
        return self.path.suffix == ".pt"

    def batch(self, rows: int) -> list[Array]:
        """The inputs repeated or cut to `rows`; h0 of PyTorch has its rows on axis 1."""
        axes = [0, 1] if self.is_torch else [0] * len(self.inputs)
        return [np.take(a, np.arange(rows) % a.shape[axis], axis) for a, axis in zip(self.inputs, axes, strict=True)]


def read_case(path: Path) -> Case:
    with np.load(path.with_suffix(".expected.npz")) as recorded:
        versions = dict(str(line).split("=", 1) for line in recorded["versions"])
        arrays = {name: recorded[name] for name in recorded.files if name != "versions"}
    names = (["x", "h0"], ["y", "h_n"]) if path.suffix == ".pt" else (["x0"], ["y0"])
    writer = versions["writer"]
    label = {"keras": "Keras", "torch": "PyTorch"}.get(writer, writer)
    inputs, outputs = ([arrays[name] for name in group] for group in names)
    return Case(path, f"{label} {versions.get(writer, '').split('+')[0]}".strip(), inputs, outputs)


# ---------------------------------------------------------------------------------------------------------- engines
# Each takes a case and returns a function of its inputs, or None where the framework is not installed.

Scorer = Callable[[list[Array]], list[Array]]


def with_fastgru(case: Case) -> Scorer:
    model = load(case.path)
    if isinstance(model, nn.GRU):
        model.batch_first = True  # state_dicts don't say; these were recorded so
        return lambda inputs: list(model(*inputs, num_threads=1))
    if isinstance(model, nn.GRUCell):
        raise ValueError(f"{case.path}: expected a model or a GRU, found a cell")
    return lambda inputs: [model.predict(inputs[0], num_threads=1)]


def with_numpy(case: Case) -> Scorer:
    """The equations of `fastgru.reference` in float32: a few lines of NumPy, nothing compiled but NumPy itself."""
    file = formats.read(case.path)
    t = file.tensors
    if file.config is None:
        return lambda inputs: _reference_stack(t, *inputs)
    layers = [(layer["class_name"], layer["config"]) for layer in file.config["config"]["layers"]]

    def predict(inputs: list[Array]) -> list[Array]:
        x = inputs[0]
        for kind, config in layers:
            name = config["name"]
            if kind == "Embedding":
                x = t[f"{name}/embeddings"][x]
            elif kind == "GRU":
                after = config["reset_after"]
                weights = gates.from_keras(
                    t[f"{name}/kernel"], t[f"{name}/recurrent_kernel"], t.get(f"{name}/bias"), reset_after=after
                )
                y, h_n = reference.gru(x, *weights, reset_after=after)
                x = y if config["return_sequences"] else h_n
            elif kind == "Dense":
                x = x @ t[f"{name}/kernel"] + t[f"{name}/bias"]
                if config["activation"] == "softmax":
                    x = np.exp(x - x.max(-1, keepdims=True))
                    x /= x.sum(-1, keepdims=True)
        return [x]

    return predict


def _reference_stack(t: dict[str, Array], x: Array, h0: Array) -> list[Array]:
    """A PyTorch stack, both directions."""
    h_n = []
    for layer in range(len(h0) // 2):
        halves = []
        for d, suffix in enumerate((f"_l{layer}", f"_l{layer}_reverse")):
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            weights = gates.Weights(*(t[name + suffix] for name in names))
            y, h = reference.gru(x, *weights, h0[2 * layer + d], reverse=d == 1)
            halves.append(y)
            h_n.append(h)
        x = np.concatenate(halves, -1)
    return [x, np.stack(h_n)]


def _installed(*names: str) -> bool:
    return all(importlib.util.find_spec(name) for name in names)


def with_keras(case: Case) -> Scorer | None:
    if case.is_torch or not _installed("keras"):
        return None
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    model = keras.models.load_model(case.path)
    # predict_on_batch is the compiled function itself; model.predict costs some 50 ms more per call
    return lambda inputs: [np.asarray(model.predict_on_batch(*inputs))]


def with_torch(case: Case) -> Scorer | None:
    if not case.is_torch or not _installed("torch"):
        return None
    import torch

    state = torch.load(case.path, weights_only=True)
    layers = sum(name.startswith("weight_ih") for name in state) // 2
    hidden, features = state["weight_ih_l0"].shape[0] // 3, state["weight_ih_l0"].shape[1]
    gru = torch.nn.GRU(features, hidden, num_layers=layers, bidirectional=True, batch_first=True)
    gru.load_state_dict(state)

    def predict(inputs: list[Array]) -> list[Array]:
        with torch.inference_mode():
            return [a.numpy() for a in gru(*(torch.from_numpy(a) for a in inputs))]

    return predict


# ---------------------------------------------------------------------------------------------------- compare and time


def worst(outputs: list[Array], expected: list[Array]) -> float:
    """max |y - recorded| as a share of the tolerance 2e-5 · max(1, |recorded|max); inf for a wrong shape or a NaN."""
    share = 0.0
    for y, e in zip(outputs, expected, strict=True):
        if y.shape != e.shape or not np.isfinite(y).all():
            return float("inf")
        difference = np.abs(y.astype(np.float64) - e).max()
        share = max(share, float(difference) / (2e-5 * max(1.0, float(np.abs(e).max()))))
    return share


def medians(runs: dict[str, Run]) -> dict[str, float]:
    """Median milliseconds of one call for each engine; the engines take turns, so that drift meets all alike."""
    repeats = {}
    for name, run in runs.items():
        run()
        start = time.perf_counter()
        run()
        repeats[name] = max(1, int(ROUND_SECONDS / max(time.perf_counter() - start, 1e-7)))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                run()
            seconds[name].append((time.perf_counter() - start) / repeats[name])
    return {name: 1e3 * statistics.median(values) for name, values in seconds.items()}


def bound(scorer: Scorer, inputs: list[Array]) -> Run:
    return lambda: scorer(inputs)


def golden_folder() -> Path | None:
    """tests/golden of the checkout that one stands in, or that the package lies in."""
    places = [Path.cwd(), Path(fastgru.__file__).resolve().parent.parent]
    return next((p / "tests/golden" for p in places if (p / "tests/golden").is_dir()), None)


MAKERS: dict[str, Callable[[Case], Scorer | None]] = {
    "fastgru": with_fastgru,
    "NumPy": with_numpy,
    "Keras": with_keras,
    "PyTorch": with_torch,
}

NOTES = """
error  the largest difference from the outputs that the framework itself recorded, as a share of the tolerance
       2e-5 · max(1, |y|max): at most 1 is right
Keras  timed by predict_on_batch, its compiled function; model.predict adds tens of ms a call
These models are small on purpose, and a call is mostly overhead. `make bench` times the sizes that people use."""


def print_model(path: Path) -> int:
    """Print the rows of one model; return how many engines gave other numbers than the file's framework."""
    case = read_case(path)
    made = {engine: make(case) for engine, make in MAKERS.items()}
    scorers = {engine: scorer for engine, scorer in made.items() if scorer is not None}
    shares = {engine: worst(scorer(case.inputs), case.outputs) for engine, scorer in scorers.items()}
    first = f"{path.name:<25}{case.writer:<16}{shares['fastgru']:>7.3f}"
    for rows in BATCHES:
        times = medians({engine: bound(scorer, case.batch(rows)) for engine, scorer in scorers.items()})
        cells = "".join(f"{times[engine]:>10.3f}" if engine in times else f"{'-':>10}" for engine in MAKERS)
        print(f"{first:<48}{rows:>7}{cells}", flush=True)
        first = ""
    wrong = {engine: share for engine, share in shares.items() if not share <= 1}
    for engine, share in wrong.items():
        print(f"  {engine} differs from what {case.writer} recorded by {share:.3g} times the tolerance")
    return len(wrong)


def main(argv: Sequence[str] | None = None) -> int:
    """Print one table; return 0 if every number is right, 1 if one is not, 2 without files to score."""
    parser = argparse.ArgumentParser(prog="fastgru demo", description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--golden", type=Path, help="folder of the model files (default: tests/golden of the checkout)")
    folder = parser.parse_args(argv).golden or golden_folder()
    if folder is None or not all((folder / name).is_file() for name in FILES):
        where = folder or "tests/golden"
        print(f"demo: expected {', '.join(FILES)} in {where}; run it in a checkout, or give --golden", file=sys.stderr)
        return 2
    info = fastgru.build_info()
    print(f"fastgru {info['version']}, {info['isa']}, one thread; NumPy {np.__version__}, any threads")
    print("Median milliseconds of a call:\n")
    print(f"{'model':<25}{'written by':<16}{'error':>7}{'batch':>7}" + "".join(f"{engine:>10}" for engine in MAKERS))
    wrong = sum(print_model(folder / name) for name in FILES)
    print(NOTES)
    missing = [label for label, module in (("Keras", "keras"), ("PyTorch", "torch")) if not _installed(module)]
    if missing:
        print(f"-      {' and '.join(missing)}: not installed here, or not this model's framework")
    print("\nAll numbers are right." if not wrong else f"\n{wrong} results are WRONG, see above.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
