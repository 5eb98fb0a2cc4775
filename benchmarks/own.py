"""fastgru against itself: pairs of settings that take turns in one process, and the ratio of their times."""

from __future__ import annotations

from typing import Any, NamedTuple

import engines
import numpy as np
import shapes
from limits import Limits

BATCHES = tuple(case for case in shapes.CASES if case.kind == "batch")
GROWING = shapes.Case("batch", 64, 50, 128, 128)


class Pair(NamedTuple):
    """time of `over` / time of `under` / scale, and what is aimed at."""

    what: str
    over: shapes.Case
    under: shapes.Case
    scale: float = 1.0
    most: float | None = None
    least: float | None = None
    threads_over: int | None = None


def pairs(threads: int, quick: bool) -> list[Pair]:
    found = []
    for case in BATCHES[:2] if quick else BATCHES:
        ragged = case._replace(kind="ragged")
        row_lengths = shapes.lengths(ragged)
        assert row_lengths is not None
        share = float(row_lengths.mean()) / case.T
        found.append(Pair("reset before / after the product", case._replace(reset_after=False), case, most=1.10))
        found.append(Pair("ragged / dense, over the share of valid steps", ragged, case, share, most=1.10))
        if threads > 1:
            found.append(Pair(f"one thread / {threads}", case, case, least=0.925 * threads, threads_over=1))
    for times in () if quick or threads > 1 else (10, 100):
        for what, longer in (("T", GROWING._replace(T=50 * times)), ("N", GROWING._replace(N=64 * times))):
            found.append(Pair(f"{times} times the {what}, over {times}", longer, GROWING, times, 1.10, 0.90))
    return found


def measure_random(
    worker: engines.Worker, limits: Limits, rows: list[dict[str, Any]], seconds: float
) -> list[dict[str, Any]]:
    """Shapes drawn at random: which part of the nearest listed case's share of the limit each reaches."""
    threads, found = len(worker.processors), []
    listed = {shapes.Case(**row["case"]): row for row in rows if row["threads"] == threads and row["share"]}
    for case in shapes.random_cases():
        if not any(other.kind == case.kind for other in listed):
            continue
        near = shapes.nearest(case, listed)
        repeats, why = engines.prepare(worker, "random", case)
        limit_ms: list[float] = []

        def between(case: shapes.Case = case, limit_ms: list[float] = limit_ms) -> None:
            limit_ms.append(1e3 * shapes.limit(case, limits.flops(), limits.bandwidth(shapes.working_set(case))))

        run = {"random": (worker, "random")}
        answers, failed = engines.rounds({} if why else run, {"random": repeats}, seconds, 5, between)
        worker.ask("forget", key="random")
        layout = f"reset {'after' if case.reset_after else 'before'}, {'time' if case.time_major else 'batch'} first"
        what = f"{case.name}, {layout}: share of the limit / that of"
        failed = {"": why} if why else failed
        row: dict[str, Any] = {"what": what, "case": near.name, "threads": threads, "failed": failed}
        if not row["failed"]:
            clock = "cpu" if threads == 1 and case.T > 1 else "wall"
            took = [1e-6 * float(np.median(answer[clock])) for answer in answers["random"]]
            ratio = float(np.median(np.array(limit_ms) / took)) / listed[near]["share"]
            row |= {"ratio": ratio, "most": None, "least": 0.9, "good": ratio >= 0.9}
        found.append(row)
    return found


def measure(worker: engines.Worker, seconds: float, quick: bool) -> list[dict[str, Any]]:
    """The median over the rounds of each pair's ratio, and whether it is as aimed."""
    threads, rows = len(worker.processors), []
    for pair in pairs(threads, quick):
        repeats: dict[str, int] = {}
        failed: dict[str, str] = {}
        for key, case, on in (("over", pair.over, pair.threads_over or threads), ("under", pair.under, threads)):
            repeats[key], why = engines.prepare(worker, key, case, threads=on)
            if why:
                failed[key] = why
        both = {key: (worker, key) for key in repeats}
        answers, more = engines.rounds({} if failed else both, repeats, seconds, 3, lambda: None)
        failed |= more
        for key in both:
            worker.ask("forget", key=key)
        row: dict[str, Any] = {"what": pair.what, "case": pair.under.name, "threads": threads, "failed": failed}
        if not failed:
            clock = "cpu" if threads == 1 else "wall"
            over, under = ([np.median(a[clock]) for a in answers[key]] for key in ("over", "under"))
            ratio = float(np.median(np.array(over) / np.array(under))) / pair.scale
            good = (pair.most is None or ratio <= pair.most) and (pair.least is None or ratio >= pair.least)
            row |= {"ratio": ratio, "most": pair.most, "least": pair.least, "good": good}
        rows.append(row)
    return rows
