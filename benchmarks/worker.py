"""The process of one engine in one configuration: prepares cases and times calls, as lines of JSON tell it.

python benchmarks/worker.py ADAPTOR CONFIGURATION PROCESSOR [PROCESSOR ...]
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import shapes

POOL = 2  # inputs that take turns
CHECKED_ROWS = 8  # as many rows of the output are compared with the reference, evenly spread


def memory(field: str) -> int | None:
    """Bytes of VmRSS or VmHWM (its peak); None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
    except (OSError, StopIteration):
        return None


def forget_peak() -> None:
    """Let VmHWM begin anew, where the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        pass  # then the peak is that of all cases so far


def reference() -> Any:
    """fastgru/reference.py alone: NumPy, and nothing of fastgru's code."""
    path = Path(__file__).parent.parent / "fastgru" / "reference.py"
    spec = importlib.util.spec_from_file_location("reference", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def timed(run: shapes.Run, pool: list[shapes.F32], repeats: int, with_cpu: bool) -> dict[str, list[int]]:
    """Nanoseconds of each call: wall clock, and what all threads of the process computed."""
    wall, cpu = [], []
    clock, cpu_clock = time.perf_counter_ns, time.process_time_ns if with_cpu else (lambda: 0)
    gc.disable()
    for i in range(repeats + (repeats > 1)):
        result = None
        run.feed(pool[i % len(pool)])
        c0 = cpu_clock()
        t0 = clock()
        result = run.call()
        t1 = clock()
        c1 = cpu_clock()
        wall.append(t1 - t0)
        cpu.append(c1 - c0)
    del result
    gc.enable()
    skip = int(repeats > 1)  # the first call after the others' turns finds cold caches
    return {"wall": wall[skip:], "cpu": cpu[skip:] if with_cpu else []}


def warm_up(run: shapes.Run, pool: list[shapes.F32]) -> int:
    """Nanoseconds of the fastest of the first calls: two, or as many as fit into 0.2 s, ten at most."""
    end = time.perf_counter() + 0.2
    once: list[int] = []
    while len(once) < 2 or len(once) < 10 and time.perf_counter() < end:
        once += timed(run, pool, 1, False)["wall"]
    return min(once)


def check(case: shapes.Case, run: shapes.Run) -> float:
    """The largest error of one more call, in the rows that are looked at, at valid steps."""
    x, lengths = shapes.inputs(case, POOL), shapes.lengths(case)
    rows = np.unique(np.linspace(0, case.N - 1, CHECKED_ROWS).astype(int))
    h0 = run.state()[rows].astype(float) if case.kind == "step" and run.state else None
    run.feed(x)
    if case.kind == "training":
        return check_gradients(case, x, *run.output(run.call()))
    y = np.asarray(run.output(run.call()))
    if y.shape != (case.N, case.T, case.H):
        raise ValueError(f"output: expected shape {(case.N, case.T, case.H)}, found {y.shape}")
    expected, gru = x[rows].astype(float), reference().gru
    for layer in shapes.layers(case):
        weights = [a.astype(float) for a in layer]
        expected, _ = gru(expected, *weights, h0, reset_after=case.reset_after)
    valid = np.arange(case.T) < (np.full(case.N, case.T) if lengths is None else lengths)[rows, None]
    error = np.abs(y[rows] - expected)[valid].max()
    return float(error) if np.isfinite(error) else 1e30  # JSON has no infinity


def check_gradients(case: shapes.Case, x: shapes.F32, dx: shapes.F32, dweight_hh: shapes.F32) -> float:
    """The largest error of two gradients, over their largest element."""
    given = [a.astype(float) for a in (shapes.gradient(case), x, *shapes.layers(case)[0])]
    wanted_dx, _, _, wanted_dweight_hh, *_ = reference().gru_backward(
        given[0], None, *given[1:], reset_after=case.reset_after
    )
    worst = 0.0
    for name, found, wanted in (("dx", dx, wanted_dx), ("dweight_hh", dweight_hh, wanted_dweight_hh)):
        if found.shape != wanted.shape:
            raise ValueError(f"{name}: expected shape {wanted.shape}, found {found.shape}")
        worst = max(worst, float(np.abs(found - wanted).max() / np.abs(wanted).max()))
    return worst if np.isfinite(worst) else 1e30  # JSON has no infinity


def serve(adaptor: Any, configuration: str, threads: int, ask: Any, answer: Any) -> None:
    runs: dict[str, tuple[shapes.Case, shapes.Run, list[shapes.F32]]] = {}
    befores: dict[str, int | None] = {}  # bytes in memory before a case was prepared
    for line in ask:
        command = json.loads(line)
        what, key = command["do"], command.get("key", "")
        try:
            reply: dict[str, Any] = {}
            if what == "prepare":
                forget_peak()
                before = memory("VmRSS")
                case = shapes.Case(*command["case"])
                run = adaptor.prepare(case, command.get("threads", threads), configuration)
                befores[key] = before
                runs[key] = case, run, [shapes.inputs(case, i) for i in range(POOL)]
                reply["once"] = warm_up(run, runs[key][2])
            elif what == "time":
                case, run, pool = runs[key]
                reply = dict(timed(run, pool, command["repeats"], threads == 1 and case.T > 1))
            elif what == "check":
                case, run, _ = runs[key]
                reply["peak"] = memory("VmHWM")
                if reply["peak"] is not None and befores[key] is not None:
                    reply["own_peak"] = reply["peak"] - befores[key]
                reply["error"] = check(case, run)
            elif what == "forget":
                runs.pop(key, None)
                gc.collect()
            else:
                raise ValueError(f"no such command: {what}")
        except Exception as error:  # whatever an engine raises is its result
            reply = {
                "failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error) else ''}"
            }
        answer.write(json.dumps(reply) + "\n")
        answer.flush()


def main() -> None:
    name, configuration, *pinned = sys.argv[1:]
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(p) for p in pinned})
    answer = os.fdopen(os.dup(1), "w")  # engines may print: theirs goes to the error stream
    os.dup2(2, 1)
    adaptor = importlib.import_module(f"peers.{name}")
    start, before = time.perf_counter(), memory("VmRSS")
    try:
        hello: dict[str, Any] = {"version": adaptor.version()}
    except (ImportError, OSError) as error:
        hello = {"absent": str(error).strip().splitlines()[0][:200]}
    hello |= {"import": time.perf_counter() - start, "before": before, "after": memory("VmRSS")}
    answer.write(json.dumps(hello) + "\n")
    answer.flush()
    if "version" in hello:
        serve(adaptor, configuration, len(pinned), sys.stdin, answer)


if __name__ == "__main__":
    main()
