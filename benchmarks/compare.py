"""fastgru and its peers on one GRU after another: is it faster, and how far is it from what this machine can do?

How far to trust it: it times what this machine did during some minutes, with whatever else ran on it. Every engine has
a process of its own for each configuration, pinned to the same processors; they take turns, in another order each
round, so that a slow moment meets all. Inputs change in place before every call, outputs are compared with the
reference in float64. What the machine can do at best is measured in between. docs/performance.md says more.

    python benchmarks/compare.py [--quick] [--update] [--threads 1 2] [--only fastgru_calls ort] [--cases step batch]
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import engines
import native
import numpy as np
import own
import report
import shapes
from limits import Limits

ROOT = Path(__file__).parent.parent


def machine(processors: list[int]) -> dict[str, Any]:
    caches = []
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        caches.append(f"L{level} {kind.lower()} {size}")
    return {
        "processor": native.processor(),
        "processors": len(processors),
        "caches": caches,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }


def load() -> float | None:
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None


def summary(answers: list[dict[str, list[int]]], clock: str) -> dict[str, Any]:
    """Milliseconds of a call, over all calls of all rounds; and the median of each round."""
    calls = 1e-6 * np.concatenate([np.array(answer[clock]) for answer in answers])
    percentiles = dict(zip(("p10", "p50", "p90", "p99"), np.percentile(calls, [10, 50, 90, 99]).tolist(), strict=True))
    wall = 1e-6 * np.concatenate([np.array(answer["wall"]) for answer in answers])
    medians = [1e-6 * float(np.median(answer[clock])) for answer in answers]
    return percentiles | {"wall_p50": float(np.median(wall)), "calls": len(calls), "rounds": medians}


def measure(
    case: shapes.Case, workers: list[engines.Worker], limits: Limits | None, seconds: float, fewest: int
) -> Any:
    """One case on one number of threads: every configuration's numbers, the limit's, and the verdict."""
    threads = len(workers[0].processors)
    clock = "cpu" if threads == 1 and case.T > 1 else "wall"
    found: dict[str, dict[str, Any]] = {}
    runs: dict[str, tuple[engines.Worker, str]] = {}
    repeats: dict[str, int] = {}
    for worker in workers:
        name = f"{worker.engine}\n{worker.configuration}"
        repeats[name], why = engines.prepare(worker, "case", case)
        found[name] = {"failed": why}
        if repeats[name]:
            runs[name] = worker, "case"
    limit_ms: list[float] = []
    peaks: list[tuple[float, float]] = []

    def between() -> None:
        if limits:
            peaks.append((limits.flops(), limits.bandwidth(shapes.working_set(case))))
            limit_ms.append(1e3 * shapes.limit(case, *peaks[-1]))

    answers, failed = engines.rounds(runs, repeats, seconds, fewest, between)
    for name, (worker, _) in runs.items():
        checked: dict[str, Any] = worker.ask("check", key="case") if name in answers else {"failed": failed[name]}
        if checked.get("error", 0) > report.WRONG and worker.engine not in report.NOT_COUNTED:
            checked = {"failed": f"its output differs by {checked['error']:.1e} from the equations"}
        found[name] = checked if "failed" in checked else summary(answers[name], clock) | checked
    for worker, _ in runs.values():
        worker.ask("forget", key="case")

    row: dict[str, Any] = {"case": case._asdict(), "name": case.name, "threads": threads, "clock": clock, "engines": {}}
    for worker in workers:
        entry = row["engines"].setdefault(worker.engine, {"configurations": {}, "best": None})
        entry["configurations"][worker.configuration] = found[f"{worker.engine}\n{worker.configuration}"]
    for entry in row["engines"].values():
        medians = {c: numbers["p50"] for c, numbers in entry["configurations"].items() if "p50" in numbers}
        entry["best"] = min(medians, key=lambda c: medians[c], default=None)
    if peaks:
        row["flops"], row["bandwidth"] = (float(np.median(p)) for p in zip(*peaks, strict=True))
    return row | report.verdict(row, limit_ms)


def describe(workers: list[engines.Worker], described: dict[str, Any]) -> None:
    """Versions, and what an import costs: the least over all processes of an engine."""
    for worker in workers:
        module, hello = importlib.import_module(f"peers.{worker.adaptor}"), worker.hello
        entry = described.setdefault(worker.engine, {"counted": module.COUNTED, "about": str(module.__doc__).strip()})
        if "version" not in hello:
            entry["absent"] = hello.get("absent") or hello["failed"]
            continue
        entry["version"] = hello["version"]
        entry["import_seconds"] = min(hello["import"], entry.get("import_seconds", np.inf))
        if hello["after"]:
            entry["import_bytes"] = min(hello["after"] - hello["before"], entry.get("import_bytes", np.inf))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=str(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    processors = native.processors()
    parser.add_argument("--quick", action="store_true", help="one thread, the smaller cases, few rounds: two minutes")
    parser.add_argument(
        "--threads", type=int, nargs="+", help="default: one, and all processors that this process may use"
    )
    parser.add_argument("--only", nargs="+", choices=engines.ADAPTORS, default=engines.ADAPTORS, metavar="ADAPTOR")
    parser.add_argument(
        "--cases", nargs="+", help="kinds out of: " + ", ".join(dict.fromkeys(c.kind for c in shapes.CASES))
    )
    parser.add_argument("--seconds", type=float, help="at least, of rounds for each case (default: 12, quick: 1)")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "benchmarks", help="folder of the results")
    parser.add_argument("--update", action="store_true", help="write the tables into docs/performance.md and README.md")
    arguments = parser.parse_args()
    quick = arguments.quick
    settings = arguments.threads or ([1] if quick else sorted({1, len(processors)}))
    if max(settings) > len(processors):
        parser.error(f"--threads: this process may use {len(processors)} processors")
    cases = [
        case
        for case in (shapes.QUICK if quick else shapes.CASES)
        if not arguments.cases or case.kind in arguments.cases
    ]
    seconds, fewest = arguments.seconds or (1.0 if quick else 12.0), 3 if quick else 5

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    began = time.monotonic()
    arguments.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"machine": machine(processors), "quick": quick, "engines": {}, "rows": [], "own": []}
    results["machine"]["load_before"] = load()

    def save() -> None:  # after each case: what is measured is not lost with the rest
        results["machine"]["load_after"] = load()
        results["minutes"] = round((time.monotonic() - began) / 60, 1)
        (arguments.out / "compare.json").write_text(json.dumps(results, indent=1), encoding="utf-8")

    adaptors = [a for a in engines.ADAPTORS if a in arguments.only]
    for threads in settings:
        say(f"{threads} thread{'s' * (threads > 1)}: starting {len(adaptors)} engines")
        pinned = processors[-threads:]
        workers = engines.start(adaptors, pinned, say)
        describe(workers, results["engines"])
        workers = [w for w in workers if "version" in w.hello]
        if not workers:
            raise SystemExit("no engine is here, fastgru neither: python -m pip install -e '.[bench]'")
        try:
            limits = Limits(pinned)
        except OSError as error:
            limits, results["no_limits"] = None, str(error)
        for case in cases:
            row = measure(case, workers, limits, seconds, fewest)
            results["rows"].append(row)
            say("  " + report.line(row))
            save()
        mine = next((w for w in workers if w.configuration == "nn.GRU"), None)
        if mine:
            results["own"] += own.measure(mine, min(seconds, 3.0), quick)
        if mine and limits and not quick:
            results["own"] += own.measure_random(mine, limits, results["rows"], min(seconds, 1.0))
        for each in workers:
            each.stop()

    save()
    text = report.page(results)
    (arguments.out / "compare.md").write_text(text, encoding="utf-8")
    print(text)
    say(f"{results['minutes']} minutes; compare.json, .md and, with matplotlib, .svg are in {arguments.out}")
    picture = report.picture(results, arguments.out / "compare.svg")
    if arguments.update:
        report.update(results, picture)


if __name__ == "__main__":
    main()
