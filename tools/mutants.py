"""Seeded faults in the kernels, forward and back: each is built in a copy of the tree; a named test must fail on it.

    python tools/mutants.py [NAME ...]

A test that can't fail proves nothing. Needs a compiler, Cython, setuptools, NumPy, pytest and hypothesis. Exit codes: 0
every mutant was found, 1 one survived, 2 something else went wrong (a pattern that no longer fits, a failing build).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("fastgru", "setup.py", "pyproject.toml", "README.md", "LICENSE", "tests")
BUILT = shutil.ignore_patterns("*.so", "*.pyd", "__pycache__", "golden", ".hypothesis")


class Mutant(NamedTuple):
    """One fault: in `file` the text `old`, which must stand there exactly once, becomes `new`; `test` must find it."""

    name: str
    file: str
    old: str
    new: str
    test: str


MUTANTS = (
    Mutant(
        "swapped gate",
        "fastgru/simd/gru_step.c",
        "R_ = 0, Z_ = VEC_WIDTH,",
        "R_ = VEC_WIDTH, Z_ = 0,",
        "tests/test_kernels.py::test_both_conventions",
    ),
    Mutant(
        "dropped bias",  # the recurrent bias of n, inside r * (...)
        "fastgru/_core/gru.pyx",
        "arrays.append(pack_vector(bias_hh, n))",
        "arrays.append(pack_vector(None, n))",
        "tests/test_kernels.py::test_every_bias_reaches_its_gate",
    ),
    Mutant(
        "state reset one step late",  # a slot's next row takes its first step from the last row's state
        "fastgru/_core/gru.pyx",
        "            h[active] = j.h0 + r * j.h0_row if j.h0 != NULL else zeros\n",
        "            if taken <= j.slots:\n"
        "                h[active] = j.h0 + r * j.h0_row if j.h0 != NULL else zeros\n",
        "tests/test_kernels.py::test_a_slot_starts_its_next_row_from_h0",
    ),
    Mutant(
        "k-tail lost",  # the last block of products, where it is shorter than the others
        "fastgru/simd/product.h",
        "for (; b.k0 < K; b.k0 += step)",
        "for (; b.k0 == 0 || b.k0 + step <= K; b.k0 += step)",
        "tests/test_kernels.py::test_no_product_loses_its_tail",
    ),
    Mutant(
        "stale thread workspace",  # threads find each other's numbers in their scratch memory
        "fastgru/_core/gru.pyx",
        "    workspace += k * j.workspace\n",
        "    workspace += 0 * k * j.workspace\n",
        "tests/test_threads.py::test_parallel_workspaces_are_apart",
    ),
    Mutant(
        "swapped gate gradient",  # the update gate's value is read where the reset gate's stands
        "fastgru/simd/gru_backward.c",
        "z = load_units(kept(cache, 2, unit, left), left)",
        "z = load_units(kept(cache, 1, unit, left), left)",
        "tests/test_gradients.py::test_every_gate_and_bias",
    ),
    Mutant(
        "bias gradient of other columns",  # that of bias_hh is not bias_ih's with reset_after
        "fastgru/_core/backward.pyx",
        "column_sums[H:] if after else None",
        "column_sums[: 3 * H] if after else None",
        "tests/test_gradients.py::test_every_gate_and_bias",
    ),
    Mutant(
        "steps lost from a sum",  # the last block of terms, where it is shorter than the others
        "fastgru/_core/backward.pyx",
        "    if terms > 0:\n        add_block(",
        "    if terms == FG_KC:\n        add_block(",
        "tests/test_gradients.py::test_no_sum_over_steps_loses_its_tail",
    ),
    Mutant(
        "gradient left in its slot",  # a row that moves to a free slot finds the gradient of the one before
        "fastgru/_core/backward.pyx",
        "                memcpy(dh + i * padded, dh + active * padded, padded * sizeof(float))\n",
        "                pass\n",
        "tests/test_gradients.py::test_a_slot_starts_its_next_row_from_dh_n",
    ),
    Mutant(
        "dh_n missed at a refill",  # a slot's next row starts from 0
        "fastgru/_core/backward.pyx",
        "            if b.dh_n != NULL:\n                memcpy(dh + active * padded",
        "            if b.dh_n != NULL and taken <= j.slots:\n                memcpy(dh + active * padded",
        "tests/test_gradients.py::test_a_slot_starts_its_next_row_from_dh_n",
    ),
)


class Broken(Exception):
    """Neither found nor survived."""


def run(command: list[str], folder: Path, timeout: float) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("FASTGRU_", "OMP_"))}
    env["PYTHONPATH"] = str(folder)
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=timeout)


def build(folder: Path, mutant: Mutant | None) -> None:
    """A copy of the tree with one fault in it, compiled in place."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=BUILT)
        elif source.exists():
            shutil.copy(source, folder / name)
    for generated in (folder / "fastgru" / "_core").glob("*.c"):
        generated.unlink()
    if mutant is not None:
        path = folder / mutant.file
        text = path.read_text(encoding="utf-8")
        if text.count(mutant.old) != 1:
            raise Broken(f"{mutant.file} holds {mutant.old.strip()!r} {text.count(mutant.old)} times, expected once")
        path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    built = run([sys.executable, "setup.py", "build_ext", "--inplace"], folder, 600)
    if built.returncode:
        raise Broken(f"the build failed:\n{built.stdout[-2000:]}{built.stderr[-2000:]}")
    where = run([sys.executable, "-c", "import fastgru; print(fastgru.__file__)"], folder, 60)
    if str(folder.resolve()) not in where.stdout:
        raise Broken(f"fastgru came from {where.stdout.strip() or where.stderr[-500:]}, expected {folder}")


def failing_test(folder: Path, tests: list[str]) -> str | None:
    """The first of the tests that fails, crashes or hangs; None if all pass."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", *tests]
    try:
        done = run(command, folder, 300)
    except subprocess.TimeoutExpired:
        return f"{tests[0]} (hung)"
    if done.returncode == 0:
        return None
    if done.returncode < 0:
        return f"{tests[0]} (crashed, signal {-done.returncode})"
    failed = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("FAILED ")]
    if done.returncode != 1 or not failed:
        raise Broken(f"pytest ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-1000:]}")
    return failed[0]


def attempt(mutant: Mutant | None) -> tuple[str, str]:
    """(found, survived, broken or, without a fault, passed; the test that failed or what went wrong)."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        try:
            build(folder, mutant)
            if mutant is None:
                failed = failing_test(folder, sorted({m.test for m in MUTANTS}))
                return ("passed", "") if failed is None else ("broken", f"{failed} fails without any fault")
            failed = failing_test(folder, [mutant.test])
        except (Broken, OSError, subprocess.TimeoutExpired) as error:
            return "broken", str(error)
    return ("survived", mutant.test) if failed is None else ("found", failed)


def main(names: list[str]) -> int:
    chosen = [m for m in MUTANTS if not names or m.name in names]
    if not chosen:
        print(f"expected names out of: {', '.join(m.name for m in MUTANTS)}", file=sys.stderr)
        return 2
    start = time.monotonic()
    attempts: list[Mutant | None] = [None, *chosen]
    with ThreadPoolExecutor(2) as pool:
        results = dict(zip(attempts, pool.map(attempt, attempts), strict=True))
    for mutant, (verdict, detail) in results.items():
        print(f"{mutant.name if mutant else '(no fault)':<28} {verdict:<9} {detail}")
    print(f"{time.monotonic() - start:.0f} s")
    verdicts = {verdict for verdict, _ in results.values()}
    return 2 if "broken" in verdicts else 1 if "survived" in verdicts else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
