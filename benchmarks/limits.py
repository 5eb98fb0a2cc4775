"""What this machine can do at best, measured in the same minutes as everything else."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path

import native
import numpy as np


class Limits:
    """Peak FLOP/s and read bandwidth (bytes/s) of one thread on each processor. OSError without a compiler."""

    def __init__(self, processors: list[int], seconds: float = 0.001) -> None:
        last = None
        for flags in (("-march=native",), ("-mcpu=native",), ()):  # x86, Arm, a compiler that knows neither
            try:
                self.library = native.library(Path(__file__).parent / "limits.c", *flags)
                break
            except OSError as error:
                last = error
        else:
            raise last or OSError("limits.c: not compiled")
        self.library.fma_peak.restype = self.library.read_bandwidth.restype = ctypes.c_double
        self.processors, self.seconds = processors, ctypes.c_double(seconds)

    def flops(self) -> float:
        return self._together([lambda: self.library.fma_peak(self.seconds)] * len(self.processors))

    def bandwidth(self, bytes_: int) -> float:
        """Of reading `bytes_` bytes again and again, an equal part for each thread."""
        parts = [np.ones(bytes_ // 4 // len(self.processors), np.float32) for _ in self.processors]
        pointer = ctypes.POINTER(ctypes.c_float)

        def read(part: np.ndarray) -> Callable[[], float]:
            return lambda: self.library.read_bandwidth(
                part.ctypes.data_as(pointer), ctypes.c_long(part.size), self.seconds
            )

        return self._together([read(part) for part in parts])

    def _together(self, measures: list[Callable[[], float]]) -> float:
        """The sum of what all measure at the same time, each on its processor; C runs without Python's lock."""
        rates, start = [0.0] * len(measures), threading.Barrier(len(measures))

        def work(i: int) -> None:
            if hasattr(os, "sched_setaffinity"):  # of this thread alone
                os.sched_setaffinity(0, {self.processors[i]})
            start.wait()
            rates[i] = measures[i]()

        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(measures))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(rates)
