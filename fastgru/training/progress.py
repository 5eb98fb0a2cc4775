"""What `fit`, `evaluate` and `predict` show of their work."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

#: Seconds between two looks at loss and metrics.
_PAUSE = 0.1


def check_verbose(verbose: Any) -> int:
    """0 silent, 1 a bar and a line, 2 a line, as in Keras.

    Raises
    ------
    ValueError
        For anything but these, True, False and "auto".
    """
    level = {"auto": 1}.get(verbose, verbose) if isinstance(verbose, str) else verbose
    if isinstance(level, (bool, int)) and level in (0, 1, 2):
        return int(level)
    raise ValueError(f"verbose: expected 0, 1, 2 or 'auto', found {verbose!r}")


class Bar:
    """A bar with loss, metrics and the time left, on stderr; nothing unless ``verbose`` is 1.

    ``total`` steps, None where they are not known, of which ``done`` are done. It goes away when its work is.
    """

    def __init__(self, verbose: int, total: int | None, title: str, done: int = 0) -> None:
        self._bar: Any = None
        self._next = 0.0
        if verbose == 1:
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, desc=title, unit="batch", leave=False, mininterval=_PAUSE)

    def step(self, logs: Callable[[], Mapping[str, float]]) -> None:
        """One step more. ``logs`` is asked some times a second only: metrics cost time."""
        if self._bar is None:
            return
        self._bar.update()
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _PAUSE
            self._bar.set_postfix_str(line(logs()))

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


def progress(steps: Any, verbose: bool | int | str) -> Any:
    """``steps``, with a bar if ``verbose`` is 1 or "auto"."""
    if verbose not in (1, "auto"):
        return steps
    from tqdm import tqdm

    return tqdm(steps, unit="batch")


def line(logs: Mapping[str, float]) -> str:
    """Names and numbers, the loss first."""
    return ", ".join(f"{key} {value:.4g}" for key, value in logs.items())
