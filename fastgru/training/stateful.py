"""States that stateful layers carry from one batch to the next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..layers.base import Layer

#: By the path of the layer: an array (N, H) for each cell, or None before the first batch.
States = dict[str, Any]


def states(paths: Iterable[tuple[str, Layer]]) -> States:
    """The states of all stateful layers. A batch puts others in their place, and leaves these as they are."""
    return {path: layer.states for path, layer in _stateful(paths)}


def set_states(paths: Iterable[tuple[str, Layer]], kept: Mapping[str, Any]) -> None:
    """Go on from what `states` gave."""
    for path, layer in _stateful(paths):
        layer.states = kept[path]


@contextmanager
def without_states(paths: Iterable[tuple[str, Layer]]) -> Iterator[None]:
    """Inside, layers start from zeros; afterwards they have the states of before."""
    paths = list(paths)
    kept = states(paths)
    set_states(paths, dict.fromkeys(kept))
    try:
        yield
    finally:
        set_states(paths, kept)


def _stateful(paths: Iterable[tuple[str, Layer]]) -> Iterator[tuple[str, Any]]:
    return ((path, layer) for path, layer in paths if getattr(layer, "stateful", False))
