"""scikit-learn's digits, read row by row: what fastgru, Keras and a plain PyTorch loop learn, and how fast.

    python benchmarks/digits.py --accuracy [--seeds 5] [--epochs 30]   # some minutes: the more, the fewer processors
    python benchmarks/digits.py --speed [--threads 1 2]                # a minute; wants an idle machine
    python benchmarks/digits.py --update                               # what was measured last, into docs/digits.md

The model: GRU(128, return_sequences), GRU(64), Dense(10, softmax); Adam, 32 rows a step, 30 epochs.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path
from typing import Any

import native
import numpy as np
import report
import trainers

SIZES = (128, 64)
OUT = report.ROOT / "build" / "benchmarks" / "digits.json"
PAGE = report.ROOT / "docs" / "digits.md"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def accuracy(engines: list[str], seeds: int, epochs: int) -> dict[str, Any]:
    """On the test rows of each seed's split, each engine on one thread, one after another."""
    found: dict[str, Any] = {}
    for engine in engines:
        process = trainers.Process(engine, native.processors()[-1:])
        learnt = [process.ask("learn", "GRU", SIZES, seed, epochs) for seed in range(seeds)]
        process.stop()
        values = [each["accuracy"] for each in learnt]
        found[engine] = {"accuracy": values, "parameters": learnt[0]["parameters"]}
        say(f"  {engine}: {np.mean(values):.4f} ± {np.std(values, ddof=1) if seeds > 1 else 0:.4f}")
    return trainers.conditions() | {"epochs": epochs, "engines": found}


def interleaved(processes: dict[str, trainers.Process], turns: int, epochs: int) -> dict[str, list[float]]:
    """Seconds of epochs of prepared models, which take turns, in another order each time."""
    times: dict[str, list[float]] = {name: [] for name in processes}
    order, shuffle = list(processes), random.Random(1).shuffle
    for _ in range(turns):
        shuffle(order)
        for name in order:
            times[name] += processes[name].ask("epochs", name, epochs)
            time.sleep(0.05)  # threads of the engine before may still spin
    return times


def speed(engines: list[str], settings: list[int], turns: int, epochs: int) -> dict[str, Any]:
    """Milliseconds of an epoch by number of threads and engine, all engines pinned to the same processors."""
    found: dict[str, Any] = {}
    for threads in settings:
        processes = {engine: trainers.Process(engine, native.processors()[-threads:]) for engine in engines}
        for engine, process in processes.items():
            process.ask("prepare", engine, "GRU", SIZES, 0)
        times = interleaved(processes, turns, epochs)
        for process in processes.values():
            process.stop()
        found[str(threads)] = {engine: [1e3 * t for t in values] for engine, values in times.items()}
        medians = {engine: 1e3 * float(np.median(values)) for engine, values in times.items()}
        say(f"  {threads} threads: " + ", ".join(f"{engine} {ms:.0f} ms" for engine, ms in medians.items()))
    return trainers.conditions() | {"milliseconds": found}


def speed_table(measured: dict[str, Any]) -> str:
    lines = ["| threads | engine | an epoch, ms (10 % … 90 %) | a step, ms | over fastgru's |", "|--:|---|--:|--:|--:|"]
    steps = -(-1347 // trainers.BATCH)
    for threads, engines in measured["milliseconds"].items():
        for engine, ms in engines.items():
            low, middle, high = np.percentile(ms, [10, 50, 90])
            over = f"{middle / np.median(engines['fastgru']):.2f}" if "fastgru" in engines else ""
            spread = f"{middle:.0f} ({low:.0f} … {high:.0f})"
            lines.append(f"| {threads} | {engine} | {spread} | {middle / steps:.2f} | {over} |")
    return "\n".join(lines)


def accuracy_table(measured: dict[str, Any]) -> str:
    lines = ["| engine | parameters | accuracy, mean | standard deviation | each seed |", "|---|--:|--:|--:|---|"]
    for engine, each in measured["engines"].items():
        values = each["accuracy"]
        deviation = f"{np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
        every = ", ".join(f"{v:.4f}" for v in values)
        lines.append(f"| {engine} | {each['parameters']} | {np.mean(values):.4f} | {deviation} | {every} |")
    return "\n".join(lines)


def text(results: dict[str, Any]) -> str:
    """Both tables, as far as they were measured, and on what."""
    parts = []
    for name, table in (("speed", speed_table), ("accuracy", accuracy_table)):
        if name in results:
            parts += [table(results[name]), trainers.described(results[name])]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=str(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--accuracy", action="store_true")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--update", action="store_true", help="write the tables into docs/digits.md")
    parser.add_argument("--only", nargs="+", choices=trainers.ENGINES, help="default: all that are installed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=30, help="of --accuracy")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of --speed")
    parser.add_argument("--turns", type=int, default=8, help="of --speed: of each engine, of 3 epochs that count")
    parser.add_argument("--out", type=Path, default=OUT, help="file of the results")
    arguments = parser.parse_args()
    here = [engine for engine in arguments.only or trainers.ENGINES if engine in trainers.versions()]
    settings = [n for n in arguments.threads if n <= len(native.processors())]
    results: dict[str, Any] = {}
    if arguments.accuracy:
        results = trainers.keep(arguments.out, "accuracy", accuracy(here, arguments.seeds, arguments.epochs))
    if arguments.speed:
        results = trainers.keep(arguments.out, "speed", speed(here, settings, arguments.turns, 3))
    results = results or trainers.read(arguments.out)
    print(text(results))
    if arguments.update:
        report.insert(PAGE, text(results))


if __name__ == "__main__":
    main()
