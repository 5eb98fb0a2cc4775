"""How a conversion says no: the target, the layer, what it can't express and why."""

from __future__ import annotations

from ..formats import FormatError
from ..layers.base import Layer

__all__ = ["refusal"]


def refusal(target: str, path: str, layer: Layer | None, why: str, remedy: str = "") -> FormatError:
    """The error (for the caller to raise) that ``target`` can't express the layer at ``path``."""
    what = f"layer {path!r} ({layer.class_name()})" if layer is not None else f"{path}"
    tail = f"; {remedy}" if remedy else ""
    return FormatError(f"{target} can't express {what}: {why}{tail}")
