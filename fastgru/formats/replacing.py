"""Writing a file so that it is either whole or not there."""

from __future__ import annotations

import errno
import glob
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from .untrusted import FormatError

__all__ = ["remove_leftovers", "replacing", "take_place"]

#: No space, quota, file too large, a failing disk: errors of writing, which don't say what was written
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG, errno.EIO)


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
        If it cannot be written; where the disk is full, saying so and naming `path`.
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
    except BaseException as error:
        if os.path.exists(temporary):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.errno in _FULL and error.filename is None:
            kept = "the old file is as it was" if os.path.exists(target) else "nothing was written"
            raise OSError(error.errno, f"{error.strerror}; {kept}", target) from error
        raise


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Remove what processes that were killed while writing `path` have left beside it."""
    folder, name = os.path.split(os.path.realpath(os.fspath(path)))
    for found in glob.glob(f".{glob.escape(name)}.*.tmp", root_dir=folder):
        if re.fullmatch(r"[0-9a-f]{12}", found[len(name) + 2 : -4]):
            os.unlink(os.path.join(folder, found))


def take_place(temporary: str, target: str) -> None:
    """Give a finished file its name, in one step, and see the name itself onto the disk."""
    os.replace(temporary, target)
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(os.path.dirname(target) or ".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
