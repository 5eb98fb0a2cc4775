"""A picture of a history: what is drawn, what is written, what is said where matplotlib is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fastgru.training import plot
from fastgru.training.fit import History


def seen() -> History:
    history = History()
    for epoch in range(3):
        history.add(epoch, {"loss": 1 / (epoch + 1), "auc": 0.5, "val_loss": 1.0, "val_auc": 0.4})
    return history


def test_every_measure_has_an_axis_and_both_lines() -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'fastgru[plot]'")
    figure = seen().plot()
    labels = [[line.get_label() for line in axes.get_lines()] for axes in figure.axes]
    assert labels == [["loss", "val_loss"], ["auc", "val_auc"]]
    assert list(figure.axes[0].get_lines()[0].get_xdata()) == [1, 2, 3]
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_validation_after_some_epochs_only() -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'fastgru[plot]'")
    history = History([0, 1, 2, 3, 4], {"loss": [5.0, 4.0, 3.0, 2.0, 1.0], "val_loss": [4.5, 2.5]})
    assert list(history.plot().axes[0].get_lines()[1].get_xdata()) == [2, 4]


@pytest.mark.parametrize(("suffix", "begins"), [("svg", b"<?xml"), ("PNG", b"\x89PNG"), ("pdf", b"%PDF")])
def test_a_file(tmp_path: Path, suffix: str, begins: bytes) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'fastgru[plot]'")
    seen().plot(tmp_path / f"out.{suffix}")
    assert (tmp_path / f"out.{suffix}").read_bytes().startswith(begins)
    assert [path.name for path in tmp_path.iterdir()] == [f"out.{suffix}"]


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"plot: expected matplotlib.*pip install 'fastgru\[plot\]'"):
        seen().plot(tmp_path / "out.svg")
    assert list(tmp_path.iterdir()) == []


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"plot: expected a name that ends in \.pdf, \.png, \.svg"):
        plot.history(seen(), tmp_path / "out.txt")
    with pytest.raises(ValueError, match="history: expected at least one epoch"):
        plot.history(History())
