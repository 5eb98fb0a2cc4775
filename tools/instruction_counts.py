"""How many instructions each kernel executes, counted by callgrind: a guard that no noise on the machine disturbs.

    python tools/instruction_counts.py [--check | --record]

Counts belong to an instruction set, a compiler's version and a libc (the scalar kernels call its fmaf). --check
compares with tools/instruction_counts/recorded.json; a pair that is not recorded passes, and is named. --record writes
the pairs of this machine into it. Fewer instructions are not always faster: measure before you record.

Exit codes: 0 all well, 1 a count has grown by more than 3 %, 2 the driver does not compile or run, 77 valgrind or a
compiler is not here.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "tools" / "instruction_counts"
RECORDED = HERE / "recorded.json"
SIMD = ROOT / "fastgru" / "simd"
# As in setup.py
FLAGS = ["-std=c11", "-O3", "-fno-math-errno", "-ffp-contract=off", "-fvisibility=hidden", "-g0"]
ISAS = {"scalar": [], "avx2": ["-mavx2", "-mfma"]}
MOST = 1.03
FEWEST = 1000  # every case does more

Counts = dict[str, int]


class Missing(Exception):
    """A program that this needs is not here."""


def run(*command: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}")
    return done


def compiler() -> list[str]:
    command = os.environ.get("CC", "cc").split()
    if not shutil.which(command[0]):
        raise Missing(f"{command[0]} (a C compiler)")
    return command


def pair(isa: str) -> str:
    """What a record belongs to."""
    text = run(*compiler(), "--version").stdout.splitlines()[0]
    version = re.search(r"\d+\.\d+\.\d+", text.split(")")[-1]) or re.search(r"\d+\.\d+(\.\d+)?", text)
    name = "clang" if "clang" in text else "gcc"
    return f"{isa}, {name} {version[0] if version else text}, {' '.join(platform.libc_ver())}, {platform.machine()}"


def runs_here(isa: str) -> bool:
    """Whether this processor has what the instruction set needs."""
    if isa == "scalar":
        return True
    try:
        words = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return False
    return isa in words and "fma" in words


def build(isa: str, folder: Path) -> Path:
    driver = folder / f"driver-{isa}"
    macros = [f"-DFG_ISA_{isa.upper()}=1", f"-DFG_TABLE=fg_table_{isa}", f"-I{SIMD}"]
    # two files, so that the driver's shapes are no constants of the kernels
    kernels = folder / f"kernels-{isa}.o"
    run(*compiler(), *FLAGS, *ISAS[isa], *macros, "-c", str(SIMD / "all.c"), "-o", str(kernels))
    run(*compiler(), *FLAGS, *macros, str(HERE / "driver.c"), str(kernels), "-lm", "-o", str(driver))
    return driver


def count(driver: Path, case: str) -> int:
    command = ["valgrind", "--tool=callgrind", "--toggle-collect=measured", "--callgrind-out-file=/dev/null"]
    said = run(*command, str(driver), case).stderr
    collected = re.search(r"Collected\s*:\s*(\d+)", said)
    if not collected or int(collected[1]) < FEWEST:
        raise RuntimeError(f"{case}: callgrind saw no kernel at work: does driver.c still fit table.h?\n{said}")
    return int(collected[1])


def counts(isa: str) -> Counts:
    """Instructions of each case, by name."""
    if not shutil.which("valgrind"):
        raise Missing("valgrind")
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        driver = build(isa, Path(folder))
        names = run(str(driver)).stdout.splitlines()
        return dict(zip(names, pool.map(lambda name: count(driver, name), names), strict=True))


def compare(found: Counts, recorded: Counts | None) -> tuple[list[str], bool]:
    """What to print of one pair, and whether no count has grown too much."""
    if recorded is None:
        return ["  not recorded"], True
    lines, good = [], True
    for name, number in found.items():
        before = recorded.get(name)
        change = "not recorded" if before is None else f"{100 * (number / before - 1):+.1f} %"
        grown = before is not None and number > MOST * before
        good = good and not grown
        lines.append(f"  {name:<42}{number:>12}  {change}{'   GROWN' if grown else ''}")
    return lines + [
        f"  {name:<42}{'':>12}  recorded, but no longer a case" for name in recorded.keys() - found.keys()
    ], good


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=str(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="fail where a recorded count has grown (the default)")
    what.add_argument("--record", action="store_true", help="write the counts of this machine's pairs")
    record = parser.parse_args(arguments).record
    book: dict[str, Counts] = json.loads(RECORDED.read_text(encoding="utf-8")) if RECORDED.exists() else {}
    good = True
    try:
        for isa in filter(runs_here, ISAS):
            key = pair(isa)
            print(key, flush=True)
            found = counts(isa)
            lines, well = compare(found, book.get(key))
            print("\n".join(lines), flush=True)
            good = good and well
            if record:
                book[key] = found
    except Missing as missing:
        print(f"not counted: {missing} is not here")
        return 77
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 2
    if record:
        RECORDED.write_text(json.dumps(book, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        return 0
    if not good:
        print("A count has grown by more than 3 %. If it must, measure with benchmarks/compare.py, and then --record.")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
