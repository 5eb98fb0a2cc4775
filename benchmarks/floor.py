"""Is any framework faster? fastgru, PyTorch and ONNX Runtime side by side on eight forward passes of one GRU layer.

How far to trust it: it times what this machine did during some minutes, with whatever else ran on it. Each engine has a
fresh process of its own, on the same processors, and they take turns round by round, so that a slow moment meets all;
medians are shown with the 10th and 90th percentile of the rounds. Weights and inputs are the same, and the outputs are
compared with each other. Every engine gets its own best conditions: PyTorch and ONNX Runtime the time-major layout they
work in, ONNX Runtime bound inputs and outputs (nothing is copied or allocated in a call), fastgru the batch-first
layout of most data and a Python call that allocates its result.

    python benchmarks/floor.py [--threads 1 2] [--seconds 1.0] [--json FILE] [--readme FILE]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import platform
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Run = Callable[[], Any]


class Case(NamedTuple):
    """One GRU layer, whole sequence out."""

    name: str
    N: int
    T: int
    I: int
    H: int


CASES = (
    Case("step", 1, 1, 128, 128),
    Case("step", 1, 1, 512, 512),
    Case("sequence", 1, 100, 128, 128),
    Case("sequence", 1, 100, 512, 512),
    Case("batch", 32, 20, 100, 100),
    Case("batch", 64, 50, 128, 128),
    Case("batch", 256, 50, 256, 256),
    Case("batch", 128, 50, 512, 512),
)
BATCHES = CASES[4:]
PACKAGES = {"fastgru": "fastgru", "PyTorch": "torch", "ONNX Runtime": "onnxruntime"}
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "FASTGRU_NUM_THREADS")
# Set on some machines to make an old OpenBLAS pick a kernel; they slow a new one down
SLOW_VARIABLES = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")


def data(case: Case) -> dict[str, Any]:
    """Weights as PyTorch initialises them, and x (N, T, I)."""
    rng = np.random.default_rng(1)
    limit = case.H**-0.5
    shapes = {
        "weight_ih_l0": (3 * case.H, case.I),
        "weight_hh_l0": (3 * case.H, case.H),
        "bias_ih_l0": (3 * case.H,),
        "bias_hh_l0": (3 * case.H,),
    }
    weights = {name: rng.uniform(-limit, limit, shape).astype(np.float32) for name, shape in shapes.items()}
    return weights | {"x": rng.standard_normal((case.N, case.T, case.I)).astype(np.float32)}


def lengths_of(case: Case) -> Any:
    """Uniform in 1 … T."""
    return np.random.default_rng(2).integers(1, case.T + 1, case.N)


# -------------------------------------------------------------------------------- engines: a case -> a call without
# arguments that returns y, and whether y is time-major


def prepare_fastgru(case: Case, threads: int, variant: str) -> Run:
    import fastgru

    weights = data(case)
    x = weights.pop("x")
    gru = fastgru.nn.GRU(case.I, case.H, batch_first=True, reset_after=variant != "reset before")
    gru.load_state_dict(weights)
    lengths = lengths_of(case) if variant == "ragged" else None
    return lambda: gru(x, None, lengths, num_threads=threads)[0]


def prepare_torch(case: Case, threads: int, variant: str) -> Run:
    import torch

    torch.set_num_threads(threads)
    weights = {name: torch.from_numpy(value) for name, value in data(case).items()}
    x = weights.pop("x").transpose(0, 1).contiguous()
    gru = torch.nn.GRU(case.I, case.H)
    gru.load_state_dict(weights)

    def run() -> Any:
        with torch.inference_mode():
            return gru(x)[0].numpy()

    return run


def prepare_onnxruntime(case: Case, threads: int, variant: str) -> Run:
    import onnx
    import onnxruntime

    weights = data(case)
    x = np.ascontiguousarray(weights["x"].swapaxes(0, 1))

    def zrn(a: Any) -> Any:
        r, z, n = np.split(a, 3)
        return np.concatenate([z, r, n])

    tensors = {
        "W": zrn(weights["weight_ih_l0"])[None],
        "R": zrn(weights["weight_hh_l0"])[None],
        "B": np.concatenate([zrn(weights["bias_ih_l0"]), zrn(weights["bias_hh_l0"])])[None],
    }
    node = onnx.helper.make_node("GRU", ["x", *tensors], ["y"], hidden_size=case.H, linear_before_reset=1)
    graph = onnx.helper.make_graph(
        [node],
        "gru",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x.shape)],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (case.T, 1, case.N, case.H))],
        [onnx.numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    opset = onnx.helper.make_opsetid("", 14)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    binding = session.io_binding()
    y = np.empty((case.T, 1, case.N, case.H), np.float32)
    binding.bind_ortvalue_input("x", onnxruntime.OrtValue.ortvalue_from_numpy(x))
    binding.bind_output("y", "cpu", 0, np.float32, y.shape, y.ctypes.data)

    def run() -> Any:
        session.run_with_iobinding(binding)
        return y[:, 0]

    return run


ENGINES: dict[str, Callable[[Case, int, str], Run]] = {
    "fastgru": prepare_fastgru,
    "PyTorch": prepare_torch,
    "ONNX Runtime": prepare_onnxruntime,
}


def work(engine: str, threads: int, pipe: Connection) -> None:
    """A process of one engine: prepares runs by key, times them, hands outputs over."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    runs: dict[Any, Run] = {}
    while True:
        command, key, argument = pipe.recv()
        if command == "stop":
            return
        if command == "prepare":
            runs[key] = ENGINES[engine](*argument)
            for _ in range(3):
                runs[key]()
            pipe.send(None)
        elif command == "time":
            run = runs[key]
            start = time.perf_counter()
            for _ in range(argument):
                run()
            pipe.send((time.perf_counter() - start) / argument)
        elif command == "output":
            y = np.array(runs[key]())
            pipe.send(y if engine == "fastgru" else y.swapaxes(0, 1))
        elif command == "forget":
            del runs[key]
            pipe.send(None)


class Worker:
    """The other end of `work`."""

    def __init__(self, engine: str, threads: int) -> None:
        for name in THREAD_VARIABLES:
            os.environ[name] = str(threads)
        for name in SLOW_VARIABLES:
            os.environ.pop(name, None)
        context = multiprocessing.get_context("spawn")  # a fresh interpreter that reads these variables
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(engine, threads, theirs), daemon=True)
        self.process.start()
        theirs.close()  # so that a worker that dies is an EOFError here, not a wait for ever

    def ask(self, command: str, key: Any, argument: Any = None) -> Any:
        self.pipe.send((command, key, argument))
        return self.pipe.recv()

    def stop(self) -> None:
        self.pipe.send(("stop", None, None))
        self.process.join()


def take_turns(runs: dict[str, tuple[Worker, Any]], seconds: float) -> dict[str, list[float]]:
    """Milliseconds of a call in each round, by name. About `seconds` for each run, 7 rounds at least."""
    repeats = {}
    for name, (worker, key) in runs.items():
        once = min(worker.ask("time", key, 1) for _ in range(2))
        repeats[name] = max(1, int(seconds / 20 / max(once, 1e-7)))
    rounds: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds * len(runs)
    while len(min(rounds.values(), key=len)) < 7 or time.perf_counter() < end:
        for name, (worker, key) in runs.items():
            time.sleep(0.002)  # threads of the engine before may still spin
            rounds[name].append(1e3 * worker.ask("time", key, repeats[name]))
    return rounds


def ratio_of(a: list[float], b: list[float]) -> float:
    """a / b, the median over the rounds: what slows one round slows both."""
    return float(np.median(np.array(a) / b))


def compare(threads: int, seconds: float, engines: list[str]) -> list[dict[str, Any]]:
    """All cases on `threads` threads; the worst first."""
    workers = {engine: Worker(engine, threads) for engine in engines}
    rows = []
    for case in CASES:
        for worker in workers.values():
            worker.ask("prepare", case, (case, threads, ""))
        times = take_turns({engine: (worker, case) for engine, worker in workers.items()}, seconds)
        outputs = {engine: worker.ask("output", case) for engine, worker in workers.items()}
        for worker in workers.values():
            worker.ask("forget", case)
        ratios = [ratio_of(times[engine], times["fastgru"]) for engine in engines if engine != "fastgru"]
        difference = max(float(np.abs(outputs["fastgru"] - y).max()) for y in outputs.values())
        ms = {engine: [float(v) for v in np.percentile(values, [10, 50, 90])] for engine, values in times.items()}
        row = {"case": case._asdict(), "threads": threads, "ms": ms, "difference": difference}
        rows.append(row | {"ratio": min(ratios, default=None)})
    for worker in workers.values():
        worker.stop()
    return sorted(rows, key=lambda row: row["ratio"] or 0)


def print_comparison(rows: list[dict[str, Any]], threads: int, engines: list[str]) -> None:
    print(f"\n{threads} thread{'s' * (threads > 1)}: median ms of a call (10th … 90th percentile of the rounds)\n")
    print(f"{'case N, T, I, H':<26}" + "".join(f"{engine:>27}" for engine in engines) + "    fastest peer / fastgru")
    for row in rows:
        name, *sizes = row["case"].values()
        cells = "".join(f"{m:>10.4g} ({a:.4g} … {b:.4g})".rjust(27) for a, m, b in (row["ms"][e] for e in engines))
        verdict = "" if row["ratio"] is None else f"{row['ratio']:>10.2f}{'   LOST' if row['ratio'] < 1 else ''}"
        wrong = f"   outputs differ by {row['difference']:.1e}!" if row["difference"] > 2e-5 else ""
        print(f"{name + ' ' + ', '.join(map(str, sizes)):<26}{cells}{verdict}{wrong}", flush=True)
    if len(engines) > 1:
        lost = sum(row["ratio"] < 1 for row in rows)
        print(
            f"\n{lost} of {len(rows)} lost; largest difference of outputs {max(row['difference'] for row in rows):.1e}"
        )


def own_ratios(threads: int, seconds: float) -> list[dict[str, Any]]:
    """fastgru against itself: reset placement, threads, ragged lengths. Each pair takes turns in one process."""
    worker = Worker("fastgru", threads)
    rows = []
    for case in BATCHES:
        share = float(lengths_of(case).sum()) / (case.N * case.T)
        pairs = [
            ("reset before / reset after", 1.0, 1.10, (1, "reset before"), (1, "")),
            (f"ragged / dense, over the share of the steps ({share:.2f})", share, 1.10, (1, "ragged"), (1, "")),
        ]
        if threads > 1:
            pairs.append((f"one thread / {threads} threads", 1.0, None, (1, ""), (threads, "")))
        for what, scale, most, *settings in pairs:
            for setting in settings:
                worker.ask("prepare", setting, (case, *setting))
            times = take_turns({str(setting): (worker, setting) for setting in settings}, seconds / 2)
            ratio = ratio_of(*(times[str(setting)] for setting in settings)) / scale
            good = ratio <= most if most else ratio >= 1.7
            rows.append({"case": case._asdict(), "what": what, "ratio": ratio, "good": good})
            for setting in settings:
                worker.ask("forget", setting)
    worker.stop()
    return rows


def print_ratios(rows: list[dict[str, Any]]) -> None:
    print("\nfastgru against itself, medians; aims: reset before and ragged at most 1.10, two threads at least 1.7\n")
    for row in sorted(rows, key=lambda row: (row["good"], row["what"][:6])):
        name, *sizes = row["case"].values()
        text = f"{name + ' ' + ', '.join(map(str, sizes)):<26}{row['what']:<60}{row['ratio']:>6.2f}"
        print(text + ("" if row["good"] else "   MISSED"))


BEGIN, END = "<!-- table of benchmarks/floor.py -->", "<!-- end of table -->"


def write_table(page: Path, header: str, rows: list[dict[str, Any]], engines: list[str]) -> None:
    """Put the comparison between the markers of a page, in the order of CASES."""
    text = page.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    lines = ["| threads | case (N, T, I, H) | " + " | ".join(engines) + " | fastest other / fastgru |"]
    lines.append("|---" * (len(engines) + 3) + "|")
    for row in sorted(rows, key=lambda r: (r["threads"], CASES.index(Case(**r["case"])))):
        name, *sizes = row["case"].values()
        cells = [str(row["threads"]), f"{name} {', '.join(map(str, sizes))}"]
        cells += [f"{row['ms'][engine][1]:.3g}" for engine in engines]
        lines.append("| " + " | ".join([*cells, f"{row['ratio']:.2f}" if row["ratio"] else ""]) + " |")
    table = "\n".join([BEGIN, f"Median ms of a call. {header}", "", *lines, END])
    page.write_text(before + table + after, encoding="utf-8")


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, min(2, available)}))
    parser.add_argument("--seconds", type=float, default=1.0, help="for each engine and case (default: 1.0)")
    parser.add_argument("--json", type=Path, help="write the numbers to this file too")
    parser.add_argument("--readme", type=Path, help="write the table between the markers of this page too")
    arguments = parser.parse_args()
    engines = [engine for engine, module in PACKAGES.items() if importlib.util.find_spec(module)]
    if "ONNX Runtime" in engines and not importlib.util.find_spec("onnx"):
        engines.remove("ONNX Runtime")

    import fastgru

    print(str(__doc__).rsplit("\n\n", 1)[0])
    versions = {engine: importlib.metadata.version(PACKAGES[engine]) for engine in engines if engine != "fastgru"}
    versions = {"fastgru": f"{fastgru.__version__} ({fastgru.build_info()['isa']})"} | versions
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    header = (
        f"{processor()}, {available} processors, load {load} at the start; Python {platform.python_version()}; {named}."
    )
    print(f"\n{header}")
    for engine in PACKAGES.keys() - set(engines):
        print(f"{engine} is not installed (or onnx for ONNX Runtime): pip install 'fastgru[bench]'")
    results: dict[str, Any] = {"versions": versions, "processor": processor(), "compared": []}
    for threads in arguments.threads:
        rows = compare(threads, arguments.seconds, engines)
        print_comparison(rows, threads, engines)
        results["compared"] += rows
    results["own"] = own_ratios(max(arguments.threads), arguments.seconds)
    print_ratios(results["own"])
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1), encoding="utf-8")
    if arguments.readme:
        write_table(arguments.readme, header, results["compared"], engines)


if __name__ == "__main__":
    main()
