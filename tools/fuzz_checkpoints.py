"""Checkpoints of a small run, and going on from one: what `fit(resume=…)` does with its file, from the bytes on."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_guard import NAME

from fastgru import Sequential, formats, layers
from fastgru.formats import FormatError
from fastgru.models.training import _compiled, _Network
from fastgru.training import callbacks, checkpoint, metrics, optimizers
from fastgru.training.fit import Meter

_OTHER_RUN = "expected a checkpoint of this run, found one where "
_MORE_THAN_SETTINGS = ("loss", "optimizer", "metrics", "callbacks", "layers")
_STEPS = 3
_BATCH = (np.array([[0.0], [1.0]], np.float32), np.array([[0.25], [0.75]], np.float32))
_run: checkpoint.Run  # the run that goes on from each input; made with the honest files
_start: checkpoint.Checkpoint  # where it is put back to before each


class _Keep(callbacks.Callback):
    """Keeps each file that the run writes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.found: dict[bytes, None] = {}

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.found[self._path.read_bytes()] = None

    def on_train_end(self, logs: Any = None) -> None:
        self.found[self._path.read_bytes()] = None


def _model() -> Any:
    model = Sequential([layers.GRU(3, stateful=True), layers.BatchNormalization(), layers.Dense(1)])
    return model.compile(optimizers.Adam(0.01), "binary_crossentropy", ["accuracy", metrics.AUC(20)])


def _callbacks() -> list[callbacks.Callback]:
    return [callbacks.EarlyStopping("loss", patience=5, restore_best_weights=True)]


def honest() -> list[bytes]:
    """Return checkpoints from the begin, the midst of an epoch and the end of one run."""
    global _run, _start
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 4, 2)).astype(np.float32), rng.integers(0, 2, (12, 1)).astype(np.float32)
    model, calls = _model(), _callbacks()
    options: dict[str, Any] = {"batch_size": 4, "epochs": 3, "shuffle": False, "seed": 1, "verbose": 0}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        keep = _Keep(path)
        model.fit(x, y, callbacks=[*calls, keep], checkpoint=path, checkpoint_every=2, **options)
        keep.on_train_end()
    _start = _read(next(iter(keep.found)))
    settings = {key: value for key, value in _start.facts["about"].items() if key not in _MORE_THAN_SETTINGS}
    _run = checkpoint.Run(_Network(model), _compiled(model), calls, settings)
    for data in keep.found:
        _go_on(_read(data))  # each is accepted
    return list(keep.found)


def _read(data: bytes) -> checkpoint.Checkpoint:
    return checkpoint.from_file(formats.read_bytes(data, NAME))


def _go_on(saved: checkpoint.Checkpoint) -> None:
    """What `fit` takes from the file: before its first batch, and with it the states of metrics."""
    _run.epoch, _run.meter = 0, Meter(_run.compiled)
    _run.go_on(saved, _STEPS)
    _run.go_on_callbacks(saved)
    _run.meter.add(0.5, *_BATCH, None)


def go_on(data: bytes) -> None:
    """Take the state of a run from a checkpoint; that of another run is refused as it should be."""
    saved = _read(data)
    try:
        _go_on(saved)
    except FormatError:
        raise
    except ValueError as error:
        if _OTHER_RUN not in str(error) or len(str(error)) > 3000:
            raise
        raise FormatError(str(error)) from None
    finally:
        _go_on(_start)
