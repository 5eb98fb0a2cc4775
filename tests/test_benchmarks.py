"""The meter itself: what it calls the limit, who it says has lost, what it does about engines that crash; the guard."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"
TOOL = ROOT / "tools" / "instruction_counts.py"

bench = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="benchmarks/ does not lie beside these tests")
needs_tool = pytest.mark.skipif(not TOOL.is_file(), reason="tools/ does not lie beside these tests")


def load(path: Path) -> ModuleType:
    """A module by its file, under a name of its own."""
    spec = importlib.util.spec_from_file_location(f"tested_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


# ---------------------------------------------------------------------------------------------------------- shapes


@bench
@pytest.mark.parametrize(
    ("sizes", "milliseconds"),
    [  # by hand: FLOPs over 100 GFLOP/s, bytes over 100 GB/s
        (("step", 1, 1, 128, 128), 4 * 3 * 128 * 256 / 1e8),  # bytes of both weights
        (("sequence", 1, 100, 128, 128), (2 * 3 * 128 * 128 * 100 + 4 * 3 * 128 * 128 * 100) / 1e8),
        (("batch", 32, 20, 100, 100), 2 * 3 * 100 * 200 * 640 / 1e8),
        (("stack", 32, 20, 100, 100, 2), 2 * 2 * 3 * 100 * 200 * 640 / 1e8),
    ],
)
def test_limit_is_the_larger_of_arithmetic_and_reading(sizes: tuple[Any, ...], milliseconds: float) -> None:
    shapes = load(BENCHMARKS / "shapes.py")
    assert 1e3 * shapes.limit(shapes.Case(*sizes), 1e11, 1e11) == pytest.approx(milliseconds)


@bench
def test_limit_of_ragged_rows_counts_valid_steps() -> None:
    shapes = load(BENCHMARKS / "shapes.py")
    dense, ragged = (shapes.Case(kind, 64, 50, 128, 128) for kind in ("batch", "ragged"))
    share = shapes.lengths(ragged).sum() / (64 * 50)
    assert shapes.limit(ragged, 1e11, 1e12) == pytest.approx(share * shapes.limit(dense, 1e11, 1e12))


# ---------------------------------------------------------------------------------------------------------- report


def numbers(ms: float, **more: Any) -> dict[str, Any]:
    every = dict.fromkeys(("p10", "p50", "p90", "p99", "wall_p50"), ms)
    return every | {"calls": 3, "rounds": [ms] * 3, "error": 1e-7, "peak": 10**8} | more


def result(report: ModuleType, times: dict[str, float | None], name: str = "batch 1, 1, 8, 8") -> dict[str, Any]:
    """A row in which engines take so many ms; None: it failed."""
    entries = {}
    for engine, ms in times.items():
        ways = {"one": numbers(ms)} if ms is not None else {"one": {"failed": "its process ended with status -11"}}
        entries[engine] = {"configurations": ways, "best": "one" if ms is not None else None}
    case = {"kind": name.split()[0], "H": int(name.split()[-1]) if " " in name else 8}
    row: dict[str, Any] = {"name": name, "threads": 1, "clock": "cpu", "engines": entries, "flops": 1e11, "case": case}
    return row | report.verdict(row, [0.5] * 3)


def results_of(*rows: dict[str, Any]) -> dict[str, Any]:
    about = {"version": "1.0", "counted": True, "import_seconds": 0.1}
    engines: dict[str, Any] = {engine: about for row in rows for engine in row["engines"]}
    machine = dict.fromkeys(("processor", "system", "python", "date", "load_before", "load_after"), "?")
    engines["Absent"] = {"absent": "No module named 'absent'"}
    machine |= {"processors": 1, "caches": ["L1"]}  # type: ignore[dict-item]  # a mixture
    return {"machine": machine, "quick": False, "minutes": 1, "engines": engines, "rows": list(rows), "own": []}


@bench
def test_lost_cases_come_first_and_int8_does_not_count() -> None:
    report = load(BENCHMARKS / "report.py")
    won = result(report, {"fastgru": 1.0, "PyTorch": 2.0, "PyTorch int8": 0.4}, "won")
    lost = result(report, {"fastgru": 1.0, "PyTorch": 0.9, "NumPy": 3.0}, "lost")
    worse = result(report, {"fastgru": 1.0, "PyTorch": 0.5, "NumPy": 3.0}, "worse")
    assert (won["fastest"], won["ratio"], won["share"]) == ("PyTorch", 2.0, 0.5)
    assert [report.word(row) for row in (won, lost)] == ["", "LOST"]
    assert [row["name"] for row in report.in_order([won, lost, worse])] == ["worse", "lost", "won"]
    text = report.page(results_of(won, lost, worse))
    assert text.startswith("2 of 3 cases lost: worse on 1 (PyTorch, 0.50), lost on 1 (PyTorch, 0.90)")
    assert "Absent is absent: No module named 'absent'" in text


@bench
@pytest.mark.parametrize(
    ("ms", "limit", "word"), [(1.2, 0.5, "short"), (1.2, 0.95, ""), (1.3, 0.1, ""), (0.9, 0.99, "LOST")]
)
def test_what_is_short(ms: float, limit: float, word: str) -> None:
    report = load(BENCHMARKS / "report.py")
    row = result(report, {"fastgru": 1.0, "PyTorch": ms})
    assert report.word(row | report.verdict(row, [limit] * 3)) == word


@bench
def test_training_counts_three_forward_passes_and_has_shares_of_its_own() -> None:
    shapes, report = load(BENCHMARKS / "shapes.py"), load(BENCHMARKS / "report.py")
    forward, training = (shapes.Case(kind, 64, 50, 128, 128) for kind in ("batch", "training"))
    assert shapes.limit(training, 1e11, 1e12) == 3 * shapes.limit(forward, 1e11, 1e12)
    for name, limit, word in (
        ("training 1, 1, 8, 128", 0.8, ""),
        ("training 1, 1, 8, 128", 0.79, "short"),
        ("training 1, 1, 8, 256", 0.84, "short"),
    ):
        row = result(report, {"fastgru": 1.0, "PyTorch": 2.0}, name)
        assert report.word(row | report.verdict(row, [limit] * 3)) == word


@bench
def test_what_an_engine_cannot_do_is_no_failure() -> None:
    report = load(BENCHMARKS / "report.py")
    row = result(report, {"fastgru": 1.0, "PyTorch": 2.0, "JAX": None}, "training 1, 1, 8, 8")
    row["engines"]["JAX"]["configurations"]["one"]["failed"] = "NotImplementedError: forward only"
    text = report.page(results_of(row))
    assert "Failed" not in text and "failed" not in text and "| –" in text


@bench
def test_random_shapes_are_no_listed_ones_and_have_a_nearest() -> None:
    shapes = load(BENCHMARKS / "shapes.py")
    drawn = shapes.random_cases()
    assert len(set(drawn)) == 20 and drawn == shapes.random_cases()
    assert all(case.H % 8 and case.I != case.H for case in drawn)
    assert {case.reset_after for case in drawn} == {case.time_major for case in drawn} == {True, False}
    assert {case.kind for case in drawn} == {"batch", "ragged", "sequence", "step"}
    near = shapes.nearest(shapes.Case("batch", 60, 9, 120, 130), shapes.CASES)
    assert near == shapes.Case("batch", 64, 50, 128, 128)


@bench
def test_failures_are_shown_and_a_ratio_is_of_the_same_rounds() -> None:
    report = load(BENCHMARKS / "report.py")
    row = result(report, {"fastgru": 1.0, "PyTorch": 2.0, "JAX": None})
    text = report.page(results_of(row))
    assert "Failed: JAX, one: its process ended with status -11 (batch 1, 1, 8, 8 on 1)" in text and "| failed" in text
    mine, peer = (row["engines"][engine]["configurations"]["one"] for engine in ("fastgru", "PyTorch"))
    mine["rounds"], peer["rounds"] = [1.0, 10.0, 1.0], [2.0, 20.0, 2.0]  # a slow moment meets both
    assert report.verdict(row, [])["ratio"] == 2.0
    failed = result(report, {"fastgru": None, "PyTorch": 2.0})
    assert report.word(failed) == "FAILED" and report.line(failed) and report.page(results_of(failed))


@bench
def test_tables_stand_between_the_markers(tmp_path: Path) -> None:
    report = load(BENCHMARKS / "report.py")
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n", encoding="utf-8")
    report.insert(page, "new")
    assert page.read_text(encoding="utf-8") == f"before\n{report.BEGIN}\nnew\n{report.END}\nafter\n"
    page.write_text("no markers", encoding="utf-8")
    with pytest.raises(ValueError, match="expected <!-- table:begin -->"):
        report.insert(page, "new")
    for real in (ROOT / "README.md", ROOT / "docs" / "performance.md"):
        text = real.read_text(encoding="utf-8")
        assert text.count(report.BEGIN) == text.count(report.END) == 1, real


# --------------------------------------------------------------------------------------------------------- engines

CRASHING = """
import os
NAME, CONFIGURATIONS, COUNTED = "Crashing", ("one",), True
def version(): return "1.0"
def prepare(case, threads, configuration):
    print("text on the output that the answers go by")
    if case.H == 128:
        raise RuntimeError("no such size")
    os.write(2, b"about to fall\\n")
    os._exit(3)
"""
ABSENT = """
NAME, CONFIGURATIONS, COUNTED = "Absent", ("one", "two"), True
def version():
    import a_module_that_nobody_has
"""
WRONG = """
import numpy as np
import shapes
NAME, CONFIGURATIONS, COUNTED = "Wrong", ("one",), True
def version(): return "1.0"
def prepare(case, threads, configuration):
    y = np.zeros((case.N, case.T, case.H), np.float32)
    return shapes.Run(lambda x: None, lambda: y, lambda y: y, lambda: y[:, 0])
"""


@bench
def test_engines_that_crash_are_absent_or_wrong_harm_no_other(tmp_path: Path) -> None:
    """A whole comparison, small: fastgru and NumPy beside engines with every fault."""
    shutil.copytree(BENCHMARKS, tmp_path / "benchmarks", ignore=shutil.ignore_patterns("results", "__pycache__"))
    (tmp_path / "fastgru").mkdir()
    shutil.copy(ROOT / "fastgru" / "reference.py", tmp_path / "fastgru")
    for name, source in (("crashing", CRASHING), ("missing", ABSENT), ("wrong", WRONG)):
        (tmp_path / "benchmarks" / "peers" / f"{name}.py").write_text(source, encoding="utf-8")
    arguments = ["--threads", "1", "--cases", "step", "--seconds", "0.01", "--out", str(tmp_path / "out"), "--quick"]
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'benchmarks')!r}); import engines\n"
        "engines.ADAPTORS = ('fastgru_calls', 'numpy_loop', 'crashing', 'missing', 'wrong')\n"
        f"import compare, own; own.BATCHES = (); sys.argv[1:] = {arguments!r}; compare.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "compare.json").read_text(encoding="utf-8"))
    assert found["engines"]["Absent"]["absent"] == "No module named 'a_module_that_nobody_has'"
    small, large = found["rows"]
    assert [row["fastest"] for row in (small, large)] == ["NumPy", "NumPy"]
    assert all(row["ratio"] > 0 for row in (small, large))
    why = [row["engines"]["Crashing"]["configurations"]["one"]["failed"] for row in (small, large)]
    assert why == ["RuntimeError: no such size", "its process ended with status 3: about to fall"]
    assert "differs by" in small["engines"]["Wrong"]["configurations"]["one"]["failed"]
    best = small["engines"]["fastgru"]
    numbers = best["configurations"][best["best"]]
    assert numbers["p10"] <= numbers["p50"] <= numbers["p90"] <= numbers["p99"] and numbers["error"] < 1e-6
    if shutil.which("cc"):
        assert small["flops"] > 1e8 and small["bandwidth"] > 1e8 and 0 < small["share"]
    assert "Crashing, one: RuntimeError: no such size (step 1, 1, 128, 128 on 1)" in done.stdout


@bench
def test_a_check_fails_on_another_output() -> None:
    """The worker's comparison sees zeros, swapped gates and one wrong row."""
    code = """
import sys; sys.path.insert(0, sys.argv[1])
import numpy as np, shapes, worker
from peers import numpy_loop
for kind in ("batch", "ragged", "stack"):
    case = shapes.Case(kind, 9, 5, 7, 6, 2 if kind == "stack" else 1)
    good = numpy_loop.prepare(case, 1, "step by step")
    assert worker.check(case, good) < 1e-6, kind
    for spoil in (np.zeros_like, lambda y: y[::-1], lambda y: np.where(np.arange(9)[:, None, None] == 8, np.nan, y)):
        assert worker.check(case, good._replace(output=lambda y: spoil(good.output(y)))) > 1e-3, kind
"""
    done = subprocess.run([sys.executable, "-c", code, str(BENCHMARKS)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# -------------------------------------------------------------------------------------------------------- training


@bench
@pytest.mark.slow
def test_digits_are_learnt_and_reported() -> None:
    """One epoch of few rows by every engine that is here, in a process of its own; the tables of the pages."""
    pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install 'fastgru[bench]'")
    code = """
import sys; sys.path.insert(0, sys.argv[1])
import trainers, digits, lstm
if __name__ == "__main__":
    trainers.conditions()
    for engine in trainers.versions():
        process = trainers.Process(engine, trainers.native.processors()[-1:])
        parameters = 3 * 4 * (8 + 4 + 2) + 3 * 3 * (4 + 3 + 2) + 3 * 10 + 10
        assert process.ask("prepare", "key", "GRU", (4, 3), 0) == parameters
        times = process.ask("epochs", "key", 1)
        learnt = process.ask("learn", "GRU", (4, 3), 0, 1)
        process.stop()
        assert len(times) == 1 and times[0] > 0 and 0 <= learnt["accuracy"] <= 1
"""
    done = subprocess.run([sys.executable, "-c", code, str(BENCHMARKS)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@bench
def test_pages_of_training_show_what_was_measured() -> None:
    code = """
import sys; sys.path.insert(0, sys.argv[1])
import digits, lstm
about = {"processor": "p", "system": "s", "python": "3", "versions": {"fastgru": "1"}, "date": "d"}
speed = about | {"milliseconds": {"1": {"fastgru": [86.0, 86.0], "Keras": [258.0, 258.0]}}}
right = about | {"engines": {"fastgru": {"accuracy": [0.9, 1.0], "parameters": 7}}}
text = digits.text({"speed": speed, "accuracy": right})
assert "| 1 | Keras | 258 (258 … 258) | 6.00 | 3.00 |" in text, text
assert "| fastgru | 7 | 0.9500 | 0.0707 | 0.9000, 1.0000 |" in text, text
name = next(iter(lstm.MODELS))
found = about | {"milliseconds": {name: [5.0]}, "parameters": {name: 9}}
assert f"| {name} | 9 | 5 (5 … 5) |  |  |" in lstm.table({"speed": found})
"""
    done = subprocess.run([sys.executable, "-c", code, str(BENCHMARKS)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@bench
def test_gradients_of_the_copying_task_are_slopes_of_its_loss() -> None:
    code = """
import sys; sys.path.insert(0, sys.argv[1])
import numpy as np, copying
copying.BLANKS = 9
for name, (network, make) in copying.NETWORKS.items():
    rng = np.random.default_rng(0)
    w, (x, symbols) = make(rng), copying.batch(rng, 5)
    w |= {"dense": copying.glorot(rng, copying.SYMBOLS, copying.UNITS), "dense_bias": np.zeros(8, np.float32)}
    def loss(w):
        return copying.slope(network.forward(w, x)[0], w["dense"], w["dense_bias"], symbols)[0]
    h, cache = network.forward(w, x)
    d = copying.slope(h, w["dense"], w["dense_bias"], symbols)[1] @ w["dense"]
    found = network.back(w, d, cache)["weight_hh"]
    steepest = float(np.linalg.norm(found))
    up, down = (loss(w | {"weight_hh": w["weight_hh"] + e * found / steepest}) for e in (0.01, -0.01))
    assert abs((up - down) / 0.02 - steepest) < 0.05 * steepest + 1e-4, (name, up, down, steepest)
    walk = list(network.walk(w, x, lambda h: d))
    assert len(walk) == 10 and np.array_equal(walk[0], d)
"""
    done = subprocess.run([sys.executable, "-c", code, str(BENCHMARKS)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ----------------------------------------------------------------------------------------------------------- guard


@needs_tool
def test_counts_fail_from_three_percent_on() -> None:
    tool = load(TOOL)
    assert tool.compare({"a": 1030}, {"a": 1000})[1] and not tool.compare({"a": 1031}, {"a": 1000})[1]
    assert tool.compare({"a": 500, "new": 7}, {"a": 1000})[1]
    lines, good = tool.compare({"a": 1}, None)
    assert good and lines == ["  not recorded"]
    assert "GROWN" in tool.compare({"a": 2000}, {"a": 1000})[0][0]


@needs_tool
def test_missing_valgrind_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tool = load(TOOL)
    monkeypatch.setattr(tool, "pair", lambda isa: isa)
    monkeypatch.setattr(tool.shutil, "which", lambda name: None)
    assert tool.main(["--check"]) == 77
    assert "valgrind is not here" in capsys.readouterr().out


@needs_tool
@pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="setup.py does not lie beside these tests")
def test_counted_kernels_are_compiled_as_the_package_is() -> None:
    tool, text = load(TOOL), (ROOT / "setup.py").read_text(encoding="utf-8")
    assert json.dumps(tool.FLAGS)[1:-1] in text
    for isa, flags in tool.ISAS.items():
        assert re.search(rf'"{isa}": \([^\n]*{re.escape(json.dumps(flags))}', text), isa


@needs_tool
@pytest.mark.skipif(
    not (shutil.which("cc") and (ROOT / "fastgru" / "simd" / "all.c").is_file()), reason="no compiler or no C here"
)
def test_driver_runs_every_recorded_case(tmp_path: Path) -> None:
    """Without valgrind: it compiles, and its cases are those of the book."""
    tool = load(TOOL)
    driver = tool.build("scalar", tmp_path)
    names = tool.run(str(driver)).stdout.splitlines()
    for name in names:
        tool.run(str(driver), name)
    for pair, counts in json.loads(tool.RECORDED.read_text(encoding="utf-8")).items():
        assert set(counts) == set(names), pair
        assert all(np.array(list(counts.values())) >= tool.FEWEST)
