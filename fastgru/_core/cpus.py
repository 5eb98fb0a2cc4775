"""How many threads a call may use when nobody says so: what the process was given, what its environment asks for."""

from __future__ import annotations

import os
import sys

_CGROUPS = "/sys/fs/cgroup/"


def default_num_threads() -> int:
    """The least of affinity, cgroup quota, FASTGRU_NUM_THREADS and OMP_NUM_THREADS (where set)."""
    limits = [affinity(), _cgroup_quota() if sys.platform == "linux" else None, _own_limit(), _openmp_limit()]
    return min(limit for limit in limits if limit is not None)


def affinity() -> int:
    """CPUs that the calling thread may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cgroup_quota() -> int | None:
    """CPUs that the cgroup (v2, then v1) grants this process, or None."""
    try:
        quota, period = _read("cpu.max").split()
        return None if quota == "max" else max(int(quota) // int(period), 1)
    except (OSError, ValueError, ZeroDivisionError):
        pass
    try:
        granted = int(_read("cpu/cpu.cfs_quota_us"))
        every = int(_read("cpu/cpu.cfs_period_us"))
        return None if granted <= 0 or every <= 0 else max(granted // every, 1)
    except (OSError, ValueError):
        return None


def _read(name: str) -> str:
    with open(_CGROUPS + name) as file:
        return file.read()


def _own_limit() -> int | None:
    """FASTGRU_NUM_THREADS, or None where it is not set."""
    text = os.environ.get("FASTGRU_NUM_THREADS", "").strip()
    if not text:
        return None
    if not text.isdecimal() or len(text) > 9 or int(text) < 1:
        raise ImportError(f"FASTGRU_NUM_THREADS: expected a whole number >= 1, found {text[:40]!r}")
    return int(text)


def _openmp_limit() -> int | None:
    """OMP_NUM_THREADS, the first of its list, or None where it says nothing."""
    text = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return max(int(text), 1) if text.isdecimal() and len(text) < 10 else None
