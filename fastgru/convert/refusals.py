"""How a conversion says no: the file, the target, the layer, what it can't express and why."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..formats import FormatError
from ..layers.base import Layer

__all__ = ["about", "refusal"]


@contextmanager
def about(path: str, *others: str) -> Iterator[None]:
    """Errors inside the block begin with ``path``, unless they begin with one of ``others``."""
    try:
        yield
    except (ValueError, TypeError) as error:
        if str(error).startswith(tuple(f"{name}:" for name in (path, *others))):
            raise
        raise FormatError(f"{path}: {error}") from error


def refusal(target: str, path: str, layer: Layer | None, why: str, remedy: str = "") -> FormatError:
    """The error (for the caller to raise) that ``target`` can't express the layer at ``path``."""
    what = f"layer {path!r} ({layer.class_name()})" if layer is not None else f"{path}"
    tail = f"; {remedy}" if remedy else ""
    return FormatError(f"{target} can't express {what}: {why}{tail}")
