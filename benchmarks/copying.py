"""A copying task over 200 steps: how much of the loss's gradient reaches a state, the further back it lies.

    python benchmarks/copying.py [--seeds 5] [--steps 250]     # some minutes
    python benchmarks/copying.py --update                      # what was measured last, into docs/copying.md

A row shows one of 8 symbols, then 200 blanks; after the last the symbol is asked for. GRUs (of fastgru's `ops.gru`) and
plain tanh networks (NumPy, here) of 64 units have the same softmax layer, data, loss and optimiser. Measured is the
norm of dL/dh_t of every state h_t, over that of the last, before training and after it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import report
import trainers
from numpy.typing import NDArray

from fastgru import ops
from fastgru.training.optimizers import Adam

Array = NDArray[np.float32]
Weights = dict[str, Array]
SYMBOLS, BLANKS, UNITS, ROWS, RATE = 8, 200, 64, 64, 0.01
OUT = report.ROOT / "build" / "benchmarks" / "copying.json"
PAGE, PICTURE = report.ROOT / "docs" / "copying.md", report.ROOT / "docs" / "copying.svg"


def batch(rng: np.random.Generator, rows: int) -> tuple[Array, NDArray[np.int64]]:
    """x (N, 1 + BLANKS, SYMBOLS + 1), one-hot, and the symbols (N,)."""
    symbols = rng.integers(0, SYMBOLS, rows)
    x = np.zeros((rows, 1 + BLANKS, SYMBOLS + 1), np.float32)
    x[np.arange(rows), 0, symbols] = 1
    x[:, 1:, SYMBOLS] = 1
    return x, symbols


# -- initial weights -------------------------------------------------------------------------------


def glorot(rng: np.random.Generator, outputs: int, inputs: int) -> Array:
    limit = np.sqrt(6 / (inputs + outputs))
    return rng.uniform(-limit, limit, (outputs, inputs)).astype(np.float32)


def orthogonal(rng: np.random.Generator, rows: int, columns: int) -> Array:
    q, r = np.linalg.qr(rng.standard_normal((max(rows, columns), min(rows, columns))))
    q = q * np.sign(np.diag(r))
    return (q if rows >= columns else q.T).astype(np.float32)


def gru_weights(rng: np.random.Generator, chrono: bool) -> Weights:
    """Keras' initialisers; with `chrono` the update gate's bias is log u, u uniform in 1 … BLANKS - 1.

    (Source: Tallec and Ollivier, 2018, "Can recurrent neural networks warp time?"; z weighs the old state here.)
    """
    bias = np.zeros(3 * UNITS, np.float32)
    if chrono:
        bias[UNITS : 2 * UNITS] = np.log(rng.uniform(1, BLANKS - 1, UNITS))
    weights = {"weight_ih": glorot(rng, 3 * UNITS, SYMBOLS + 1), "weight_hh": orthogonal(rng, 3 * UNITS, UNITS)}
    return {**weights, "bias_ih": bias, "bias_hh": np.zeros(3 * UNITS, np.float32)}


def rnn_weights(rng: np.random.Generator, gain: float) -> Weights:
    """Keras' initialisers, the recurrent weights times `gain`."""
    recurrent = np.float32(gain) * orthogonal(rng, UNITS, UNITS)
    kernel = glorot(rng, UNITS, SYMBOLS + 1)
    return {"weight_ih": kernel, "weight_hh": recurrent, "bias": np.zeros(UNITS, np.float32)}


# -- networks --------------------------------------------------------------------------------------


class Gru:
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")

    def forward(self, w: Weights, x: Array) -> tuple[Array, Any]:
        _, h, cache = ops.gru(x, *(w[name] for name in self.names), return_cache=True)
        return h, cache

    def back(self, w: Weights, dh: Array, cache: Any) -> Weights:
        found = ops.gru_backward(None, cache, dh)
        return {name: getattr(found, f"d{name}") for name in self.names}

    def walk(self, w: Weights, x: Array, last: Any) -> Iterator[Array]:
        """dL/dh_t from the last state to the first: the sequence in segments of one step, which hand dh over."""
        packed = ops.pack_gru(*(w[name] for name in self.names))
        h, caches = np.zeros((len(x), UNITS), np.float32), []
        for t in range(x.shape[1]):
            _, h, cache = ops.gru(x[:, t : t + 1], packed, h0=h, return_cache=True)
            caches.append(cache)
        dh = last(h)
        while caches:
            yield dh
            dh = ops.gru_backward(None, caches.pop(), dh).dh0


class Rnn:
    """h' = tanh(W x + U h + b)."""

    names = ("weight_ih", "weight_hh", "bias")

    def forward(self, w: Weights, x: Array) -> tuple[Array, Any]:
        ahead = x @ w["weight_ih"].T + w["bias"]
        states = [np.zeros((len(x), UNITS), np.float32)]
        for t in range(x.shape[1]):
            states.append(np.tanh(ahead[:, t] + states[-1] @ w["weight_hh"].T))
        return states[-1], (x, states)

    def back(self, w: Weights, dh: Array, cache: Any) -> Weights:
        x, states = cache
        found = {name: np.zeros_like(w[name]) for name in self.names}
        for t in range(x.shape[1] - 1, -1, -1):
            da = dh * (1 - states[t + 1] ** 2)
            found["weight_ih"] += da.T @ x[:, t]
            found["weight_hh"] += da.T @ states[t]
            found["bias"] += da.sum(0)
            dh = da @ w["weight_hh"]
        return found

    def walk(self, w: Weights, x: Array, last: Any) -> Iterator[Array]:
        """dL/dh_t from the last state to the first."""
        h, (_, states) = self.forward(w, x)
        dh = last(h)
        for t in range(x.shape[1] - 1, -1, -1):
            yield dh
            dh = (dh * (1 - states[t + 1] ** 2)) @ w["weight_hh"]


NETWORKS: dict[str, tuple[Any, Any]] = {
    "GRU, update gate's bias log u": (Gru(), lambda rng: gru_weights(rng, True)),
    "GRU, bias 0": (Gru(), lambda rng: gru_weights(rng, False)),
    "plain RNN, orthogonal": (Rnn(), lambda rng: rnn_weights(rng, 1.0)),
    "plain RNN, orthogonal × 2": (Rnn(), lambda rng: rnn_weights(rng, 2.0)),
}


# -- what is measured ------------------------------------------------------------------------------


def slope(h: Array, dense: Array, bias: Array, symbols: NDArray[np.int64]) -> tuple[float, Array]:
    """The mean cross-entropy of softmax(h Wᵀ + b), and its gradient by the logits."""
    logits = h @ dense.T + bias
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    rows = np.arange(len(h))
    loss = float(-np.log(np.maximum(p[rows, symbols], 1e-30)).mean())
    p[rows, symbols] -= 1
    return loss, p / np.float32(len(h))


def norms(network: Any, w: Weights, seed: int) -> list[float]:
    """‖dL/dh_t‖ over ‖dL/dh_T‖ for every state, from the last to the first; means over rows of a batch."""
    x, symbols = batch(np.random.default_rng(1000 + seed), ROWS)

    def last(h: Array) -> Array:
        return slope(h, w["dense"], w["dense_bias"], symbols)[1] @ w["dense"]

    found = [float(np.linalg.norm(dh.astype(np.float64), axis=1).mean()) for dh in network.walk(w, x, last)]
    return [value / found[0] for value in found]


def accuracy(network: Any, w: Weights, seed: int) -> float:
    x, symbols = batch(np.random.default_rng(2000 + seed), 512)
    h, _ = network.forward(w, x)
    return float(((h @ w["dense"].T + w["dense_bias"]).argmax(1) == symbols).mean())


def measure(name: str, seed: int, steps: int) -> dict[str, Any]:
    network, make = NETWORKS[name]
    rng = np.random.default_rng(seed)
    w = make(rng)
    w |= {"dense": glorot(rng, SYMBOLS, UNITS), "dense_bias": np.zeros(SYMBOLS, np.float32)}
    optimizer, before = Adam(RATE, global_clipnorm=1.0), norms(network, w, seed)
    for _ in range(steps):
        x, symbols = batch(rng, ROWS)
        h, cache = network.forward(w, x)
        _, d = slope(h, w["dense"], w["dense_bias"], symbols)
        gradients = network.back(w, d @ w["dense"], cache) | {"dense": d.T @ h, "dense_bias": d.sum(0)}
        optimizer.apply(gradients, w)
    return {"before": before, "after": norms(network, w, seed), "accuracy": accuracy(network, w, seed)}


def table(results: dict[str, Any]) -> str:
    lines = [
        f"| network | ‖dL/dh‖ {BLANKS} steps back, over the last's, before training | after {results['steps']} steps "
        "| accuracy then |",
        "|---|--:|--:|--:|",
    ]
    for name, seeds in results["networks"].items():
        cells = [spread([each[when][-1] for each in seeds]) for when in ("before", "after")]
        right = [each["accuracy"] for each in seeds]
        lines.append(
            f"| {name} | {cells[0]} | {cells[1]} | {np.mean(right):.2f} ({min(right):.2f} … {max(right):.2f}) |"
        )
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """The median, and the least and the largest."""
    low, middle, high = min(values), float(np.median(values)), max(values)
    return f"{middle:.0e} ({low:.0e} … {high:.0e})"


def picture(results: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "fastgru", "font.size": 9})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for axis, when, title in zip(
        axes, ("before", "after"), ("before training", f"after {results['steps']} steps"), strict=True
    ):
        for i, (name, seeds) in enumerate(results["networks"].items()):
            every = np.maximum([each[when] for each in seeds], 1e-30)
            shown = np.arange(0, every.shape[1], 8)
            axis.plot(shown, np.median(every, 0)[shown], color=f"C{i}", label=name)
            axis.fill_between(shown, every.min(0)[shown], every.max(0)[shown], color=f"C{i}", alpha=0.15, linewidth=0)
        axis.set_yscale("log")
        axis.set_ylim(1e-14, 1e14)
        axis.grid(alpha=0.3)
        axis.set_title(title)
        axis.set_xlabel("steps back from the loss")
    axes[0].set_ylabel("‖dL/dh‖, over that of the last state")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=str(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=250, help="of training")
    parser.add_argument("--update", action="store_true", help="table and picture of the last run into docs/")
    parser.add_argument("--out", type=Path, default=OUT, help="file of the results")
    arguments = parser.parse_args()
    if not arguments.update:
        networks: dict[str, list[Any]] = {}
        for name in NETWORKS:
            networks[name] = [measure(name, seed, arguments.steps) for seed in range(arguments.seeds)]
            print(f"  {name}: done", file=sys.stderr, flush=True)
        trainers.keep(
            arguments.out, "copying", trainers.conditions() | {"steps": arguments.steps, "networks": networks}
        )
    results = trainers.read(arguments.out)["copying"]
    print(table(results))
    if arguments.update:
        picture(results, PICTURE)
        report.insert(PAGE, f"![Norms of gradients]({PICTURE.name})\n\n{table(results)}\n\n{conditions(results)}")


def conditions(results: dict[str, Any]) -> str:
    seeds = len(next(iter(results["networks"].values())))
    return (
        f"Of {seeds} seeds the median, the least and the largest; of the accuracies (512 rows) the mean. "
        f"fastgru {results['versions']['fastgru']}, NumPy {np.__version__}; {results['date']}."
    )


if __name__ == "__main__":
    main()
