"""scikit-learn's digits read row by row, and the engines that learn them, each in a process of its own.

The model is two recurrent layers and a softmax; the 8 rows of an image, 8 pixels each, are the time steps. Every engine
computes loss and accuracy of each epoch, takes 32 rows a step in an order that it draws anew, and moves by Adam.
Initialisers are each framework's defaults: Keras' in fastgru and Keras, PyTorch's in PyTorch.
"""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import json
import multiprocessing
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import native
import numpy as np
from engines import THREAD_VARIABLES
from numpy.typing import NDArray

BATCH = 32


class Data(NamedTuple):
    x_train: NDArray[np.float32]  # (N, 8, 8) in 0 … 1
    y_train: NDArray[np.int64]
    x_test: NDArray[np.float32]
    y_test: NDArray[np.int64]


class Trainer(NamedTuple):
    """A model of one engine, with its initial weights."""

    fit: Callable[[int, Callable[[], None]], None]  # so many epochs; calls back after each
    accuracy: Callable[[], float]  # on the rows that it has not learnt from
    parameters: int


@functools.cache
def digits(seed: int) -> Data:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    found = load_digits()
    x, y = (found.images / 16).astype(np.float32), found.target.astype(np.int64)
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.25, stratify=y, random_state=seed)
    return Data(x_train, y_train, x_test, y_test)


def fastgru_trainer(cell: str, sizes: tuple[int, int], seed: int, threads: int) -> Trainer:
    """fastgru.Sequential, compiled and fit as in Keras."""
    from fastgru import Sequential, layers

    assert cell == "GRU"
    data = digits(seed)
    first, second = sizes
    model = Sequential(
        [layers.GRU(first, return_sequences=True), layers.GRU(second), layers.Dense(10, activation="softmax")]
    )
    model.compile(loss="sparse_categorical_crossentropy", optimizer="adam", metrics=["accuracy"])
    # No epoch: draws the weights
    settings: dict[str, Any] = {"batch_size": BATCH, "verbose": 0, "seed": seed, "num_threads": threads}
    model.fit(data.x_train, data.y_train, epochs=0, **settings)

    def fit(epochs: int, after: Callable[[], None]) -> None:
        calls = [lambda epoch, logs: after()]
        model.fit(data.x_train, data.y_train, epochs=epochs, callbacks=calls, **settings)

    def accuracy() -> float:
        return float(model.evaluate(data.x_test, data.y_test, num_threads=threads)[1])

    return Trainer(fit, accuracy, model.count_params())


def keras_trainer(cell: str, sizes: tuple[int, int], seed: int, threads: int) -> Trainer:
    """keras.Sequential on TensorFlow, compiled and fit."""
    os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", KERAS_BACKEND="tensorflow", CUDA_VISIBLE_DEVICES="")
    import keras
    import tensorflow as tf

    if tf.config.threading.get_intra_op_parallelism_threads() != threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    data = digits(seed)
    keras.utils.set_random_seed(seed)
    layer = getattr(keras.layers, cell)
    model = keras.Sequential(
        [
            keras.Input((8, 8)),
            layer(sizes[0], return_sequences=True),
            layer(sizes[1]),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(loss="sparse_categorical_crossentropy", optimizer="adam", metrics=["accuracy"])

    def fit(epochs: int, after: Callable[[], None]) -> None:
        call = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: after())
        model.fit(data.x_train, data.y_train, batch_size=BATCH, epochs=epochs, verbose=0, callbacks=[call])

    def accuracy() -> float:
        return float(model.evaluate(data.x_test, data.y_test, verbose=0)[1])

    return Trainer(fit, accuracy, model.count_params())


def torch_trainer(cell: str, sizes: tuple[int, int], seed: int, threads: int) -> Trainer:
    """A plain loop: rows by index, without a DataLoader, and nothing read out of a tensor before an epoch ends."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    data = digits(seed)
    x_train, y_train, x_test, y_test = (torch.from_numpy(a) for a in data)
    kind, (first, second) = getattr(torch.nn, cell), sizes
    one, two = kind(8, first, batch_first=True), kind(first, second, batch_first=True)
    dense = torch.nn.Linear(second, 10)
    parameters = [p for module in (one, two, dense) for p in module.parameters()]
    optimizer = torch.optim.Adam(parameters)

    def forward(x: Any) -> Any:
        return dense(two(one(x)[0])[0][:, -1])

    def fit(epochs: int, after: Callable[[], None]) -> None:
        for _ in range(epochs):
            total, right = torch.zeros(()), torch.zeros((), dtype=torch.int64)
            for rows in torch.randperm(len(x_train)).split(BATCH):
                x, y = x_train[rows], y_train[rows]
                optimizer.zero_grad()
                logits = forward(x)
                loss = torch.nn.functional.cross_entropy(logits, y)
                loss.backward()
                optimizer.step()
                total += loss.detach() * len(rows)
                right += (logits.argmax(1) == y).sum()
            _ = total.item() / len(x_train), right.item() / len(x_train)
            after()

    @torch.no_grad()
    def accuracy() -> float:
        return float((forward(x_test).argmax(1) == y_test).float().mean())

    return Trainer(fit, accuracy, sum(p.numel() for p in parameters))


ENGINES: dict[str, tuple[Callable[[str, tuple[int, int], int, int], Trainer], tuple[str, ...]]] = {
    "fastgru": (fastgru_trainer, ("fastgru",)),
    "Keras": (keras_trainer, ("keras", "tensorflow-cpu", "tensorflow")),
    "PyTorch": (torch_trainer, ("torch",)),
}


class Process:
    """One engine on some processors; asked for what it shall measure."""

    def __init__(self, engine: str, processors: list[int]) -> None:
        before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(len(processors))))
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, engine, processors), daemon=True)
        self.process.start()
        other.close()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})

    def ask(self, what: str, *arguments: Any) -> Any:
        """The answer of `_Served`'s method."""
        self.pipe.send((what, arguments))
        answer = self.pipe.recv()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def stop(self) -> None:
        self.pipe.close()
        self.process.join(10)


class _Served:
    def __init__(self, engine: str, threads: int) -> None:
        self.make, self.threads = ENGINES[engine][0], threads
        self.made: dict[str, Trainer] = {}

    def prepare(self, key: str, cell: str, sizes: tuple[int, int], seed: int) -> int:
        """Make a model and let it learn one epoch, which is not counted; the number of its parameters."""
        self.made[key] = self.make(cell, sizes, seed, self.threads)
        self.made[key].fit(1, lambda: None)
        return self.made[key].parameters

    def epochs(self, key: str, count: int) -> list[float]:
        """Seconds of so many epochs of one call of fit, after one that is not counted."""
        times: list[float] = []
        self.made[key].fit(count + 1, lambda: times.append(time.perf_counter()))
        return np.diff(times).tolist()

    def learn(self, cell: str, sizes: tuple[int, int], seed: int, epochs: int) -> dict[str, Any]:
        """Accuracy on the test rows after so many epochs from the beginning."""
        trainer = self.make(cell, sizes, seed, self.threads)
        trainer.fit(epochs, lambda: None)
        return {"accuracy": trainer.accuracy(), "parameters": trainer.parameters}


def _serve(pipe: Any, engine: str, processors: list[int]) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, processors)
    served = _Served(engine, len(processors))
    while True:
        try:
            what, arguments = pipe.recv()
        except EOFError:
            return
        try:
            answer = getattr(served, what)(*arguments)
        except Exception as error:
            answer = RuntimeError(f"{engine}: {type(error).__name__}: {error}")
        pipe.send(answer)


def versions() -> dict[str, str]:
    """Of all engines that are here."""
    found = {}
    for engine, (_, packages) in ENGINES.items():
        here = []
        for package in packages:
            try:
                here.append(importlib.metadata.version(package))
            except importlib.metadata.PackageNotFoundError:
                pass
        if engine == "fastgru" and not here:  # a checkout that is not installed
            import fastgru

            here = [fastgru.__version__]
        if here:
            found[engine] = " / ".join(here[:2])
    return found


def conditions() -> dict[str, Any]:
    """What a page says of the machine."""
    return {
        "processor": native.processor(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "date": datetime.date.today().isoformat(),
    }


def described(results: dict[str, Any]) -> str:
    """`conditions` in a line."""
    engines = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    load = f"load average at the end {results['load']}; " if results.get("load") is not None else ""
    about = f"{results['processor']}; {results['system']}; Python {results['python']}; {engines}"
    return f"{about}; {load}{results['date']}."


def read(path: Path) -> dict[str, Any]:
    """What was measured before; nothing, if nothing was."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def keep(path: Path, part: str, found: dict[str, Any]) -> dict[str, Any]:
    """Write one part of a file of results, beside the others that are there; all of them."""
    results = read(path) | {part: found}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1), encoding="utf-8")
    return results
