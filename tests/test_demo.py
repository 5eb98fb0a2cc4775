"""The demo scores the golden files right, and says so when a number is wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from fastgru import demo


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One short round, and no framework even where one is installed: the parity tests run those."""
    monkeypatch.setattr(demo, "ROUNDS", 1)
    monkeypatch.setattr(demo, "ROUND_SECONDS", 0.0)
    monkeypatch.setattr(demo, "BATCHES", (1, 3))
    monkeypatch.setattr(demo, "_installed", lambda *names: False)


def test_every_number_is_right(golden: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--golden", str(golden)]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in demo.FILES)
    assert "All numbers are right." in printed


@pytest.mark.parametrize("name", demo.FILES)
def test_a_wrong_number_is_found(name: str, golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for each in demo.FILES:
        shutil.copy(golden / each, tmp_path)
        shutil.copy((golden / each).with_suffix(".expected.npz"), tmp_path)
    file = (tmp_path / name).with_suffix(".expected.npz")
    with np.load(file) as recorded:
        arrays = dict(recorded)
    key = "y" if "y" in arrays else "y0"
    arrays[key] = arrays[key].copy()
    arrays[key].flat[-1] += 3e-5 * max(1.0, np.abs(arrays[key]).max())
    np.savez(file, **arrays)
    assert demo.main(["--golden", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "fastgru differs" in printed and "WRONG" in printed


def test_without_files_it_says_what_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--golden", str(tmp_path)]) == 2
    assert "expected keras_text_gru.keras" in capsys.readouterr().err


def test_worst_counts_wrong_shapes_and_nan() -> None:
    ones = [np.ones((2, 3), np.float32)]
    assert demo.worst(ones, ones) == 0
    assert demo.worst([np.ones((2, 1), np.float32)], ones) == float("inf")
    assert demo.worst([np.full((2, 3), np.nan, np.float32)], ones) == float("inf")


def test_it_runs_in_the_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From the folder that one stands in, and from anywhere when the package lies in a checkout."""
    (tmp_path / "tests" / "golden").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert demo.golden_folder() == tmp_path / "tests" / "golden"
