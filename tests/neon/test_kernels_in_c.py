"""The tables of kernels in C against each other: on this processor, and NEON on an emulated one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "test_neon.py"
pytestmark = pytest.mark.slow


def run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, str(TOOL), *arguments], capture_output=True, text=True, timeout=600)
    if done.returncode == 77:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_neon_and_its_double_width_equal_scalar_on_an_emulated_processor() -> None:
    output = run("--cases", "150")
    for isa in ("neon", "wide", "scalar"):
        assert any(line.startswith(f"{isa} (") and line.endswith("equal bit for bit") for line in output.splitlines())


def test_this_processors_tables_equal_scalar() -> None:
    output = run("--native", "--cases", "1000")
    assert output.count("equal bit for bit") >= 2
