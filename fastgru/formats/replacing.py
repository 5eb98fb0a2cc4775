"""Writing a file so that it is either whole or not there."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from .untrusted import FormatError

__all__ = ["replacing", "take_place"]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Give a binary file to write; it becomes `path` when the block ends, and vanishes if the block raises.

    The bytes go to a temporary file beside the target, are synced, and take the target's name in one step: a crash
    leaves the old file whole.

    Raises
    ------
    FormatError
        If `path` is a folder.
    OSError
        If it cannot be written.
    """
    target = os.path.realpath(os.fspath(path))
    if os.path.isdir(target):
        raise FormatError(f"{target}: expected a file to write, found a folder; add a file name")
    folder, name = os.path.split(target)
    temporary = os.path.join(folder, f".{name}.{secrets.token_hex(6)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        take_place(temporary, target)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


def take_place(temporary: str, target: str) -> None:
    """Give a finished file its name, in one step, and see the name itself onto the disk."""
    os.replace(temporary, target)
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(os.path.dirname(target) or ".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
