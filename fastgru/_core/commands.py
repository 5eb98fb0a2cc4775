"""Whether this process is the ``fastgru`` command, told before any of it is imported."""

from __future__ import annotations

import sys
from pathlib import Path


def is_command() -> bool:
    """True for the installed script and for ``python -m fastgru``, False where others import the package."""
    program = sys.argv[0] if sys.argv else ""
    if program == "-m":  # while the module that it names is being found
        given = sys.orig_argv
        return "-m" in given and given[given.index("-m") + 1 :][:1] == ["fastgru"]
    return Path(program).stem == "fastgru"
