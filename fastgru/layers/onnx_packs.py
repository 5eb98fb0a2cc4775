"""The packed weights of one ONNX graph: once for each constant, however many nodes share it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from .base import Array

T = TypeVar("T")


class Packs:
    """Packs weights, and gives what was packed before.

    Parameters
    ----------
    room : int
        How many bytes of weights are packed in all. One matrix may be packed with each of many biases; a node that
        finds no room packs at each call instead.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        # with the arrays themselves, or others could take their places
        self._made: dict[Hashable, tuple[tuple[Array | None, ...], Any]] = {}

    def get(self, weights: tuple[Array | None, ...], variant: Hashable, pack: Callable[[], T]) -> T | None:
        """``pack()``, or what it gave for the same memory and ``variant``; None where there is no room."""
        key = (tuple(None if w is None else _place(w) for w in weights), variant)
        if key not in self._made:
            size = sum(w.nbytes for w in weights if w is not None)
            if size > self._room:
                return None
            self._made[key] = weights, pack()
            self._room -= size
        found: T = self._made[key][1]
        return found


def _place(x: Array) -> Hashable:
    return x.__array_interface__["data"][0], x.dtype.str, x.shape, x.strides
