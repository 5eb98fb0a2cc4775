"""The other end of worker.py: a process for each engine and configuration, which may crash without harm to the rest."""

from __future__ import annotations

import importlib
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import shapes

HERE = Path(__file__).parent
ADAPTORS = (  # fastgru first; the others as tables show them
    "fastgru_calls",
    "pytorch",
    "pytorch_int8",
    "ort",
    "openvino_cpu",
    "onednn",
    "jax_scan",
    "tensorflow_keras",
    "numpy_loop",
)
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "FASTGRU_NUM_THREADS")
# Set on some machines to make an old OpenBLAS pick a kernel; they slow a new one down
SLOW_VARIABLES = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
TURN = 0.02  # seconds of calls in one turn of one engine
MOST_REPEATS = 500
PAUSE = 0.004  # between turns: threads of the engine before may still spin
PATIENCE = 300.0  # seconds for any one command, after which an engine has failed


class Worker:
    """One engine, configuration and set of processors. Every answer is a dict; {"failed": why} when there is none."""

    def __init__(self, adaptor: str, configuration: str, processors: list[int]) -> None:
        self.adaptor, self.configuration, self.processors = adaptor, configuration, processors
        self.engine = str(importlib.import_module(f"peers.{adaptor}").NAME)
        self.errors = tempfile.TemporaryFile("w+")
        self.hello = self.start()

    def start(self) -> dict[str, Any]:
        environment = {k: v for k, v in os.environ.items() if k not in SLOW_VARIABLES}
        environment |= dict.fromkeys(THREAD_VARIABLES, str(len(self.processors)))
        command = [
            sys.executable,
            str(HERE / "worker.py"),
            self.adaptor,
            self.configuration,
            *map(str, self.processors),
        ]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=self.errors, text=True, env=environment
        )
        return self.answer()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout
        timer = threading.Timer(PATIENCE, self.process.kill)
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        if line:
            return dict(json.loads(line))
        status = self.process.wait()
        self.errors.seek(0)
        said = [text.strip() for text in self.errors if text.strip()]
        return {"failed": f"its process ended with status {status}{': ' + said[-1][:200] if said else ''}"}

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        if self.process.poll() is not None:  # it crashed in an earlier case: another chance in this one
            if do != "prepare":
                return {"failed": "its process has ended"}
            self.start()
        assert self.process.stdin
        try:
            self.process.stdin.write(json.dumps({"do": do} | arguments) + "\n")
            self.process.stdin.flush()
        except OSError:
            pass  # it ended: the answer says how
        return self.answer()

    def stop(self) -> None:
        assert self.process.stdin
        try:
            self.process.stdin.close()
        except OSError:
            pass  # it has ended already
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()


def start(adaptors: list[str], processors: list[int], say: Callable[[str], None]) -> list[Worker]:
    """A worker for every configuration."""
    workers = []
    for adaptor in adaptors:
        for configuration in importlib.import_module(f"peers.{adaptor}").CONFIGURATIONS:
            worker = Worker(adaptor, configuration, processors)
            workers.append(worker)
            if "version" not in worker.hello:
                say(f"  {worker.engine}: {worker.hello.get('absent') or worker.hello['failed']}")
                break  # one configuration tells that it is not here
    return workers


def rounds(
    runs: dict[str, tuple[Worker, str]],
    repeats: dict[str, int],
    seconds: float,
    fewest: int,
    between: Callable[[], None],
) -> tuple[dict[str, list[dict[str, list[int]]]], dict[str, str]]:
    """Let all take turns, in another order each time, and `between` once in each round.

    Returns what each worker answered, round by round, and why others failed. A run is a worker and the key of its case.
    """
    answers: dict[str, list[dict[str, list[int]]]] = {name: [] for name in runs}
    failed: dict[str, str] = {}
    order, end, done = list(runs), time.perf_counter() + seconds, 0
    shuffle = random.Random(1).shuffle
    while order and (done < fewest or time.perf_counter() < end):
        shuffle(order)
        between()
        for name in list(order):
            time.sleep(PAUSE)
            worker, key = runs[name]
            answer = worker.ask("time", key=key, repeats=repeats[name])
            if "failed" in answer:
                failed[name] = answer["failed"]
                order.remove(name)
                del answers[name]
            else:
                answers[name].append(answer)
        done += 1
    return answers, failed


def prepare(worker: Worker, key: str, case: shapes.Case, **more: Any) -> tuple[int, str]:
    """Calls for each turn; or 0, and why there can be none."""
    answer = worker.ask("prepare", key=key, case=case, **more)
    if "failed" in answer:
        return 0, answer["failed"]
    return max(1, min(MOST_REPEATS, int(TURN * 1e9 / max(answer["once"], 1)))), ""
