"""A picture of a `History`, with matplotlib, which is installed by ``pip install 'fastgru[plot]'``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_SUFFIXES = (".pdf", ".png", ".svg")


def check(path: str | os.PathLike[str]) -> None:
    """Refuse what `history` would, before there is anything to draw.

    Raises
    ------
    ValueError
        For a name with another suffix.
    ImportError
        Where matplotlib is not installed.
    """
    if Path(path).suffix.lower() not in _SUFFIXES:
        raise ValueError(f"{os.fspath(path)}: plot: expected a name that ends in {', '.join(_SUFFIXES)}")
    _figure()


def history(history: Any, path: str | os.PathLike[str] | None = None) -> Any:
    """Loss and metrics over epochs, those of validation dashed, an axis for each.

    Parameters
    ----------
    history : History
    path : path, optional
        A .svg, .png or .pdf file to write, whole or not at all.

    Returns
    -------
    matplotlib.figure.Figure
        Of no window; notebooks show it.

    Raises
    ------
    ValueError
        For a history without epochs, or a name with another suffix.
    ImportError
        Where matplotlib is not installed.
    """
    if path is not None:
        check(path)
    logs: Mapping[str, Sequence[float]] = history.history
    names = [name for name in logs if not (name.startswith("val_") and name[4:] in logs)]
    if not history.epoch or not names:
        raise ValueError("history: expected at least one epoch, found none")
    figure = _figure()(figsize=(4.8, 1 + 2.2 * len(names)), layout="constrained")
    epochs = [number + 1 for number in history.epoch]
    marker = "o" if len(epochs) == 1 else ""
    for axes, name in zip(figure.subplots(len(names), sharex=True, squeeze=False)[:, 0], names, strict=True):
        axes.plot(epochs, logs[name], marker=marker, label=name)
        if seen := logs.get(f"val_{name}"):
            every = len(epochs) // len(seen)  # validation_freq
            axes.plot(epochs[every - 1 :: every][: len(seen)], seen, "--", marker=marker, label=f"val_{name}")
        axes.set_ylabel(name)
        axes.legend(frameon=False)
        axes.grid(alpha=0.3)
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    if path is not None:
        from ..formats.replacing import replacing

        with replacing(path) as file:
            figure.savefig(file, format=Path(path).suffix[1:].lower())
    return figure


def _figure() -> Any:
    """The class, without the state of pyplot: no window, no backend is chosen."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot: expected matplotlib, which is not here: pip install 'fastgru[plot]'") from error
    return Figure
