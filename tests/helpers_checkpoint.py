"""A training run that can be killed at any moment: tests start it as a process of its own, and run it to its end here.

    python helpers_checkpoint.py CHECKPOINT OUT [slow]

``slow`` makes each save take some hundredths of a second, so that many kills fall into one.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from fastgru import Sequential, layers
from fastgru.formats import safetensors
from fastgru.training import callbacks, metrics, optimizers, schedules

Array = np.ndarray
EPOCHS = 4


def data(rows: int = 60) -> tuple[Any, Any, Any]:
    """x, y, and a weight for each row."""
    rng = np.random.default_rng(3)
    y = rng.integers(0, 3, rows)
    x = rng.normal(size=(rows, 6, 4)) + y[:, None, None]
    return x.astype(np.float32), y, rng.uniform(0.5, 1.5, rows).astype(np.float32)


def model(optimizer: Any) -> Any:
    """Dropout of inputs, states and outputs, and moving averages."""
    made = Sequential(
        [
            layers.GRU(8, return_sequences=True, dropout=0.2, recurrent_dropout=0.2),
            layers.BatchNormalization(),
            layers.GRU(6),
            layers.Dropout(0.3),
            layers.Dense(3, activation="softmax"),
        ]
    )
    return made.compile(
        optimizer, "sparse_categorical_crossentropy", ["accuracy", metrics.SparseTopKCategoricalAccuracy(2)]
    )


def adam() -> optimizers.Optimizer:
    rate = schedules.Warmup(schedules.CosineDecay(0.02, 40), 5)
    return optimizers.Adam(rate, global_clipnorm=1.0)


def fit(made: Any, **options: Any) -> Any:
    """Everything at once; 5 batches an epoch."""
    x, y, weights = data()
    given = {"epochs": EPOCHS, "batch_size": 10, "validation_split": 0.2, "verbose": 0, "num_threads": 1}
    return made.fit(x, y, sample_weight=weights, **{**given, **options})


def outcome(made: Any, history: Any) -> dict[str, Array]:
    """All that two runs have to agree in, by name."""
    found = {f"weights/{i}": w for i, w in enumerate(made.get_weights())}
    found |= {f"optimizer/{key}": value for key, value in made.optimizer.state().items()}
    found |= {f"history/{key}": np.array(values) for key, values in history.history.items()}
    return found | {"epoch": np.array(history.epoch)}


def different(a: dict[str, Array], b: dict[str, Array]) -> list[str]:
    """The names under which two outcomes are not the same to the bit."""
    return sorted(
        key
        for key in a.keys() | b.keys()
        if key not in a or key not in b or a[key].shape != b[key].shape or a[key].tobytes() != b[key].tobytes()
    )


class Killed(Exception):
    """What ends a run of this process."""


class Kill(callbacks.Callback):
    """Ends a run after so many calls of a kind."""

    def __init__(self, kind: str, after: int) -> None:
        self.kind, self.left = kind, after

    def _count(self, kind: str) -> None:
        self.left -= kind == self.kind
        if self.left < 0:
            raise Killed

    def on_batch_end(self, batch: int, logs: Mapping[str, float]) -> None:
        self._count("batch")

    def on_epoch_begin(self, epoch: int) -> None:
        self._count("begin")

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float]) -> None:
        self._count("end")


def stopper() -> callbacks.EarlyStopping:
    return callbacks.EarlyStopping("val_loss", patience=3, restore_best_weights=True)


def whole(optimizer: Callable[[], Any], calls: Callable[[], list[Any]] = list, **options: Any) -> dict[str, Any]:
    made = model(optimizer())
    return outcome(made, fit(made, seed=5, callbacks=calls(), **options))


def interrupted(path: Path, **options: Any) -> Any:
    """A checkpoint in the middle of epoch 1."""
    with suppress(Killed):
        given = {"seed": 5, "callbacks": [Kill("batch", 7)], "checkpoint": path, "checkpoint_every": 1, **options}
        fit(model(adam()), **given)
        raise AssertionError("expected it to be killed")
    return path


class _Slow:
    """A file that takes its time."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, data: Any) -> None:
        view = memoryview(data).cast("B")
        for part in (view[: len(view) // 2], view[len(view) // 2 :]):
            self._file.write(part)
            self._file.flush()
            time.sleep(0.0005)


def slow_saves() -> None:
    """Make every save of this process slow, and its last steps too."""
    replacing = safetensors.replacing

    @contextmanager
    def slowly(path: Any) -> Iterator[Any]:
        with replacing(path) as file:
            yield _Slow(file)
            time.sleep(0.005)  # written, and not yet named
        time.sleep(0.005)

    safetensors.replacing = slowly  # type: ignore[assignment]


if __name__ == "__main__":
    checkpoint, out, *rest = sys.argv[1:]
    if rest == ["slow"]:
        slow_saves()
    print("ready", flush=True)
    trained = model(adam())
    ended = fit(
        trained,
        seed=11,
        callbacks=[callbacks.EarlyStopping("val_loss", patience=EPOCHS, restore_best_weights=True)],
        checkpoint=checkpoint,
        checkpoint_every=1,
        resume=True,
    )
    np.savez(f"{out}.npz", **{key.replace("/", "|"): value for key, value in outcome(trained, ended).items()})
    os.replace(f"{out}.npz", out)  # whole, or not there
