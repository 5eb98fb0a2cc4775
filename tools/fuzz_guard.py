"""Runs one input through a reader, and says what it did that no reader may do.

A reader of untrusted bytes returns, or raises FormatError with a message that names the file and the cause. While it
runs it imports nothing, opens nothing, starts nothing, allocates little and ends soon.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
import traceback
import tracemalloc
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple

from fastgru.formats import FormatError

NAME = "fuzzed.bin"
"""What the file is called in errors."""

SECONDS = 2.0
TIMES_HONEST = 4
OBJECTS = 8 << 20
"""Bytes of Python objects that headers of the size of the golden files may take, beside 4 × the honest size."""
MARGIN = 64 << 20
"""Bytes of address space that the allocators may reserve beyond that."""
LONGEST_MESSAGE = 4000

# Audit events that say nothing about files, modules, processes or networks
HARMLESS = frozenset({"builtins.id", "sys._getframe", "object.__getattr__", "array.__new__"})


class Forbidden(BaseException):
    """Stops what must not happen; not an Exception, so that no reader catches it."""


class Verdict(NamedTuple):
    """What became of one input; `finding` is empty where all is well."""

    finding: str
    seconds: float
    peak: int
    accepted: bool


class _Watch:
    """The audit hook, which can't be removed, and the switch that arms it."""

    armed = False
    events: list[str] = []
    installed = False
    folder = ""


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _Watch.armed and event not in HARMLESS:
        if _Watch.folder and event == "mmap.__new__":
            return
        if _Watch.folder and event == "open" and os.path.realpath(arguments[0]).startswith(_Watch.folder + os.sep):
            return
        _Watch.events.append(f"{event} {str(arguments)[:200]}")
        raise Forbidden(_Watch.events[-1])


def _alarm(number: int, frame: FrameType | None) -> None:
    raise Forbidden(f"no end after {SECONDS} s of processor time")


class Guard:
    """Judges inputs of one reader. Made in the process that runs them.

    Memory is watched in two ways that cost nothing: the limit of the address space stops what is asked for and not
    used, and an input that makes the process larger than it ever was is run again with each allocation counted.

    Parameters
    ----------
    target : callable
        Takes the bytes; returns, or raises FormatError.
    honest : int
        The size of the largest honest file of the kind, in bytes: the measure of what may be allocated.
    folder : str
        Where files may be opened; "" for nowhere.
    """

    def __init__(self, target: Callable[[bytes], Any], honest: int, folder: str = "") -> None:
        _Watch.folder = folder
        self._target = target
        self._honest = honest
        warnings.simplefilter("ignore")  # to show one, Python opens the source file
        if not _Watch.installed:
            sys.addaudithook(_audit)
            _Watch.installed = True
        signal.signal(signal.SIGPROF, _alarm)
        # the sanitizer keeps what is freed, and its shadow is larger than any limit: it looks for other faults
        self._sanitized = "asan" in os.environ.get("LD_PRELOAD", "")
        if not self._sanitized:
            _limit_address_space(TIMES_HONEST * honest + OBJECTS + MARGIN)
        self.start()

    def judge(self, data: bytes, count: bool = False) -> Verdict:
        """Run the reader on `data`; `count` its allocations in any case."""
        most = TIMES_HONEST * max(self._honest, len(data)) + OBJECTS
        before = _largest()
        finding, accepted, seconds = self._run(data)
        # what C code took is in it as well, where the process was never larger
        peak = 0 if self._sanitized else _largest() - before
        if not finding and (count or peak):
            tracemalloc.start()
            try:
                finding, _, _ = self._run(data)
                peak = max(peak, tracemalloc.get_traced_memory()[1])
            finally:
                tracemalloc.stop()
        if peak > most and not finding:
            finding = f"allocated {peak} bytes for a file of {len(data)}; at most {most} expected"
        return Verdict(finding, seconds, peak, accepted)

    def start(self) -> None:
        """Call what the process has taken by now its usual size."""
        self._usual = _largest()

    @property
    def grown(self) -> bool:
        """Whether the process is so much larger than at `start` that it could hide an allocation: end it."""
        return not self._sanitized and _largest() - self._usual > TIMES_HONEST * self._honest + OBJECTS

    def _run(self, data: bytes) -> tuple[str, bool, float]:
        """Return (finding, whether the file was accepted, seconds)."""
        _Watch.events.clear()
        finding, accepted = "", False
        started = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        _Watch.armed = True
        try:
            self._target(data)
            accepted = True
        except FormatError as error:
            _disarm()
            finding = _complaint(error)
        except KeyboardInterrupt:
            raise
        except BaseException:
            _disarm()
            finding = traceback.format_exc(limit=-30)
        finally:
            _disarm()
        if _Watch.events and not finding:
            finding = f"swallowed an attempt: {_Watch.events[0]}"
        return finding, accepted, time.process_time() - started


def _largest() -> int:
    """Return the largest size that this process has had in memory, in bytes."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


def _limit_address_space(more: int) -> None:
    """Let the process grow by `more` bytes from here, where the system tells how large it is."""
    statm = "/proc/self/statm"
    if os.path.exists(statm):
        with open(statm) as file:
            size = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + more, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _disarm() -> None:
    _Watch.armed = False
    signal.setitimer(signal.ITIMER_PROF, 0)


def _complaint(error: FormatError) -> str:
    """Say what is wrong with a refusal: it must name the file and the cause, shortly."""
    text = str(error)
    problem = ""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, MemoryError):
        cause = cause.__cause__ or cause.__context__
    if cause is not None:
        problem = "an allocation beyond the address space was tried"
    elif len(text) > LONGEST_MESSAGE:
        problem = f"a message of {len(text)} characters"
    elif not text.startswith(NAME + ":") or len(text) < len(NAME) + 12:
        problem = "the message names no file or no cause"
    elif text.startswith(f"{NAME}: expected a model file, found bytes that do not parse"):
        problem = "only the last net caught this: the message names no cause"
    if not problem:
        return ""
    return f"{problem}: {text[:500]}\n" + "".join(traceback.format_exception(error, limit=-30))[-6000:]
