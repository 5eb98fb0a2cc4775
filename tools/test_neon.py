"""Compile the kernels and tests/neon/test_tables.c for AArch64, and run them on an emulated processor.

    python tools/test_neon.py [--native] [--sanitize] [--cases N]

Needs aarch64-linux-gnu-gcc and qemu-aarch64 (Debian: gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user). --native
takes this machine's compiler and processor instead. Exit codes: 0 equal bit for bit, 1 not, 77 a tool is missing.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SIMD = ROOT / "fastgru" / "simd"
MISSING = 77
# as in setup.py
FLAGS = ["-std=c11", "-O3", "-fno-math-errno", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
X86: dict[str, list[str]] = {
    "scalar": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f"],
    "wide": ["-mavx2", "-mfma"],
}
ARM: dict[str, list[str]] = {"scalar": [], "neon": [], "wide": []}


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def build(compiler: str, isas: dict[str, list[str]], more: list[str], folder: Path) -> Path:
    """all.c once per instruction set, dispatch.c, the test: one program."""
    flags = [*FLAGS, *more, f"-I{SIMD}"]
    objects = [folder / f"{isa}.o" for isa in isas]
    commands = [
        [compiler, *flags, *own, f"-DFG_ISA_{isa.upper()}=1", "-c", str(SIMD / "all.c"), "-o", str(target)]
        for (isa, own), target in zip(isas.items(), objects, strict=True)
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(run, commands))
    have = [f"-DFG_HAVE_{isa.upper()}=1" for isa in isas]
    sources = [str(SIMD / "dispatch.c"), str(ROOT / "tests" / "neon" / "test_tables.c")]
    program = folder / "test_tables"
    run([compiler, *flags, *have, *sources, *map(str, objects), "-o", str(program), "-lm"])
    return program


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--native", action="store_true", help="this machine's own compiler and processor")
    parser.add_argument(
        "--sanitize", action="store_true", help="with the address and undefined sanitizers (native only)"
    )
    parser.add_argument("--cases", type=int, default=0, help="random shapes to try (default: 300, native 2000)")
    options = parser.parse_args()
    arm = not options.native or platform.machine() in ("aarch64", "arm64")
    tools = ["gcc"] if options.native else ["aarch64-linux-gnu-gcc", "qemu-aarch64"]
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        print(f"not run: {' and '.join(missing)} missing (Debian: apt-get install gcc-aarch64-linux-gnu "
              "libc6-dev-arm64-cross qemu-user; for --native: gcc)")  # fmt: skip
        return MISSING
    if not (SIMD / "all.c").exists():
        print(f"not run: {SIMD} has no sources: this needs a source tree")
        return MISSING
    more = [] if options.native else ["-static"]
    if options.sanitize:
        more += ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g", "-O1"]
    cases = options.cases or (2000 if options.native else 300)
    with tempfile.TemporaryDirectory() as folder:
        program = build(tools[0], ARM if arm else X86, more, Path(folder))
        emulator = [] if options.native else ["qemu-aarch64"]
        return subprocess.run([*emulator, str(program), str(cases)]).returncode


if __name__ == "__main__":
    sys.exit(main())
