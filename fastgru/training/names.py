"""What a user names by a string: found by any of its names, or refused with the nearest one."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
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
    near = difflib.get_close_matches(_plain(name), plain, 1, 0.5)
    hint = f"; did you mean {plain[near[0]]!r}?" if near else ""
    raise ValueError(f"{what}: expected one of {', '.join(sorted(known))}, found {name!r}{hint}")


def _plain(name: str) -> str:
    return name.replace("_", "").lower()
