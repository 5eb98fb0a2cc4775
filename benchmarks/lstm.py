"""GRU against LSTM on scikit-learn's digits: parameters, speed, accuracy; of one hidden size, of one number of weights.

    python benchmarks/lstm.py --accuracy [--seeds 5] [--epochs 30]
    python benchmarks/lstm.py --speed                # a minute; wants an idle machine
    python benchmarks/lstm.py --update               # what was measured last, into docs/lstm.md

Model and training are those of benchmarks/digits.py; fastgru has no LSTM, so that both cells run in PyTorch.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import digits
import native
import numpy as np
import report
import trainers

OUT = report.ROOT / "build" / "benchmarks" / "lstm.json"
PAGE = report.ROOT / "docs" / "lstm.md"
# name: engine, cell, units of both layers. 110 and 56 make as many parameters as a GRU of 128 and 64, within 0.2 %
MODELS: dict[str, tuple[str, str, tuple[int, int]]] = {
    "GRU 128, 64 (fastgru)": ("fastgru", "GRU", (128, 64)),
    "GRU 128, 64 (PyTorch)": ("PyTorch", "GRU", (128, 64)),
    "LSTM 128, 64 (PyTorch)": ("PyTorch", "LSTM", (128, 64)),
    "LSTM 110, 56 (PyTorch)": ("PyTorch", "LSTM", (110, 56)),
}


def start(threads: int) -> dict[str, trainers.Process]:
    """A process for each model's engine."""
    here = trainers.versions()
    engines = dict.fromkeys(engine for engine, _, _ in MODELS.values() if engine in here)
    processes = {engine: trainers.Process(engine, native.processors()[-threads:]) for engine in engines}
    return {name: processes[engine] for name, (engine, _, _) in MODELS.items() if engine in processes}


def accuracy(seeds: int, epochs: int) -> dict[str, Any]:
    processes, found = start(1), {}
    for name, process in processes.items():
        learnt = [process.ask("learn", *MODELS[name][1:], seed, epochs) for seed in range(seeds)]
        found[name] = [each["accuracy"] for each in learnt]
        digits.say(f"  {name}: {np.mean(found[name]):.4f}")
    for process in dict.fromkeys(processes.values()):
        process.stop()
    return trainers.conditions() | {"accuracy": found, "epochs": epochs}


def speed(turns: int) -> dict[str, Any]:
    processes = start(1)
    parameters = {name: process.ask("prepare", name, *MODELS[name][1:], 0) for name, process in processes.items()}
    times = digits.interleaved(processes, turns, 3)
    for process in dict.fromkeys(processes.values()):
        process.stop()
    milliseconds = {name: [1e3 * t for t in values] for name, values in times.items()}
    return trainers.conditions() | {"milliseconds": milliseconds, "parameters": parameters}


def table(results: dict[str, Any]) -> str:
    lines = [
        "| model | parameters | an epoch, ms, one thread (10 % … 90 %) | accuracy, mean | standard deviation |",
        "|---|--:|--:|--:|--:|",
    ]
    for name in MODELS:
        parameters = ms = mean = deviation = ""
        if name in results.get("speed", {}).get("milliseconds", {}):
            parameters = str(results["speed"]["parameters"][name])
            low, middle, high = np.percentile(results["speed"]["milliseconds"][name], [10, 50, 90])
            ms = f"{middle:.0f} ({low:.0f} … {high:.0f})"
        if name in results.get("accuracy", {}).get("accuracy", {}):
            values = results["accuracy"]["accuracy"][name]
            mean, deviation = f"{np.mean(values):.4f}", f"{np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
        lines.append(f"| {name} | {parameters} | {ms} | {mean} | {deviation} |")
    for part in ("speed", "accuracy"):
        if part in results:
            lines += ["", f"{part.capitalize()}: {trainers.described(results[part])}"]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=str(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--accuracy", action="store_true")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--update", action="store_true", help="write the table into docs/lstm.md")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=30, help="of --accuracy")
    parser.add_argument("--turns", type=int, default=8, help="of --speed: of each model, of 3 epochs that count")
    parser.add_argument("--out", type=Path, default=OUT, help="file of the results")
    arguments = parser.parse_args()
    if arguments.accuracy:
        trainers.keep(arguments.out, "accuracy", accuracy(arguments.seeds, arguments.epochs))
    if arguments.speed:
        trainers.keep(arguments.out, "speed", speed(arguments.turns))
    text = table(trainers.read(arguments.out))
    print(text)
    if arguments.update:
        report.insert(PAGE, text)


if __name__ == "__main__":
    main()
