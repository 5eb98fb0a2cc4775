"""What a user names by a string: found by any of its names, or refused with the nearest one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


def find(what: str, name: str, known: Mapping[str, T]) -> T:
    """The entry of `known` with this name, in CamelCase, snake_case or short.

    Raises
    ------
    ValueError
        Naming the nearest known name, and all of them.
    """
    plain = {_plain(key): key for key in known}
    if _plain(name) in plain:
        return known[plain[_plain(name)]]
    raise ValueError(f"{what}: expected one of {', '.join(sorted(known))}, found {name!r}{nearest(name, known)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error's text that offers the nearest known name; empty where none is near."""
    plain = {_plain(key): key for key in known}
    near = difflib.get_close_matches(_plain(name), plain, 1, 0.5)
    return f"; did you mean {plain[near[0]]!r}?" if near else ""


def _plain(name: str) -> str:
    return name.replace("_", "").lower()
