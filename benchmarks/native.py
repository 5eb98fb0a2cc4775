"""This machine: its processors, and small C and C++ sources compiled for it when they are needed."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

BUILD = Path(__file__).parent.parent / "build" / "benchmarks"


def library(source: Path, *flags: str) -> ctypes.CDLL:
    """Load `source` as a shared library; compiled anew only when it or the flags have changed.

    Raises
    ------
    OSError
        There is no compiler, or it refuses: its own words.
    """
    compiler = os.environ.get("CXX" if source.suffix == ".cpp" else "CC") or (
        "c++" if source.suffix == ".cpp" else "cc"
    )
    if not shutil.which(compiler.split()[0]):
        raise OSError(f"{source.name}: no compiler ({compiler})")
    # the processor counts: -march=native means another thing on another one
    key = hashlib.sha256(source.read_bytes() + repr((compiler, flags, processor())).encode()).hexdigest()[:16]
    target = BUILD / f"{source.stem}-{key}.so"
    if not target.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_suffix(f".{os.getpid()}")
        command = [*compiler.split(), "-O3", "-shared", "-fPIC", "-o", str(unfinished), str(source), *flags]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(f"{source.name}: {done.stderr.strip().splitlines()[0] if done.stderr else 'not compiled'}")
        unfinished.replace(target)
    return ctypes.CDLL(str(target))


def processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        import platform

        return platform.processor() or platform.machine()


def processors() -> list[int]:
    """Those that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [*range(os.cpu_count() or 1)]
