"""What happens between epochs and batches, by Keras' names."""

from __future__ import annotations

import csv
import errno
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np

from ..formats import check_suffix
from .names import nearest

Logs = Mapping[str, float]


class Trained(Protocol):
    """The model that is trained."""

    stop_training: bool

    def get_weights(self) -> list[Any]:
        """Weights in Keras' order."""
        ...

    def set_weights(self, weights: list[Any]) -> None:
        """Set them."""
        ...

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file."""
        ...


class Callback:
    """Called by `fit` and `evaluate`; ``model`` and ``params`` are set before. Subclasses override what they need.

    Logs are loss and metrics by name. Those of an epoch may be added to: the callbacks that come after, and the
    History, see what was added.
    """

    model: Any = None
    params: Mapping[str, Any] = {}

    def set_model(self, model: Any) -> None:
        """The model that is trained."""
        self.model = model

    def set_params(self, params: Mapping[str, Any]) -> None:
        """ "epochs", "steps" of an epoch (None where not known), "verbose", and the names of the "metrics"."""
        self.params = params

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Before the first epoch."""

    def on_train_end(self, logs: Logs | None = None) -> None:
        """After the last epoch, also when training ends by an error."""

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Before an epoch, numbered from 0."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """After an epoch and its validation."""

    def on_train_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """Before a batch."""
        self.on_batch_begin(batch, logs)

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """After a batch, with loss and metrics of the epoch so far."""
        self.on_batch_end(batch, logs)

    def on_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """Another name of `on_train_batch_begin`."""

    def on_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Another name of `on_train_batch_end`."""

    def on_test_begin(self, logs: Logs | None = None) -> None:
        """Before `evaluate`, or the validation of an epoch."""

    def on_test_end(self, logs: Logs | None = None) -> None:
        """After it, with loss and metrics."""

    def on_test_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """Before a batch of it."""

    def on_test_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """After a batch of it, with loss and metrics so far."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: numbers, strings and arrays. Those that override it override `set_state` too."""
        return {}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave; called after `on_train_begin`."""


class Call(Callback):
    """Any callable: called after each epoch with its number and what was measured."""

    def __init__(self, function: Callable[[int, Mapping[str, float]], Any]) -> None:
        self.function = function

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.function(epoch, logs)


class Calls:
    """All callbacks of a run, called one after the other.

    Parameters
    ----------
    callbacks
        Callbacks, or functions of an epoch's number and its logs. An object with Keras' methods will do.

    Raises
    ------
    TypeError
        For anything else.
    ValueError
        For a monitor of a name that nothing measures.
    """

    def __init__(self, callbacks: Any, model: Any, params: Mapping[str, Any]) -> None:
        given = [callbacks] if isinstance(callbacks, Callback) or callable(callbacks) else list(callbacks or ())
        self.calls = [_callback(call) for call in given]
        adds = False  # somebody else's callback may measure more
        for call in self.calls:
            if isinstance(call, _Monitor) and call.needed and not adds:
                call.check(params["metrics"])
            adds = adds or isinstance(call, Call) or type(call).__module__ != __name__
        for call in self.calls:
            call.set_params(params)
            call.set_model(model)

    def __call__(self, event: str, *values: Any) -> None:
        for call in self.calls:
            getattr(call, event)(*values)

    def batch_end(self, kind: str, batch: int, logs: Callable[[], Logs]) -> None:
        """After a batch of kind "train" or "test"; ``logs`` is asked only if somebody listens: metrics cost time."""
        names = [f"on_{kind}_batch_end", *(["on_batch_end"] if kind == "train" else [])]
        calls = [call for call in self.calls if any(_overrides(call, name) for name in names)]
        found = logs() if calls else {}
        for call in calls:
            getattr(call, names[0])(batch, found)


def _overrides(call: Any, name: str) -> bool:
    return getattr(type(call), name, None) is not getattr(Callback, name)


def _callback(call: Any) -> Any:
    if not isinstance(call, type):
        if isinstance(call, Callback) or all(hasattr(call, name) for name in ("set_model", "on_epoch_end")):
            return call
        if callable(call):
            return Call(call)
    found = f"the class {call.__name__}" if isinstance(call, type) else type(call).__name__
    raise TypeError(f"callbacks: expected callbacks, or functions of an epoch and its logs, found {found}")


class _Monitor(Callback):
    """Watches one number. ``mode`` "auto" takes what is called accuracy or AUC for better when larger."""

    def __init__(self, monitor: str, mode: str, min_delta: float) -> None:
        if mode not in ("auto", "min", "max"):
            raise ValueError(f"mode: expected 'auto', 'min' or 'max', found {mode!r}")
        larger = mode == "max" or (mode == "auto" and any(part in monitor.lower() for part in ("acc", "auc", "f1")))
        self.monitor, self._sign, self.min_delta = monitor, 1.0 if larger else -1.0, abs(min_delta)
        self.best = -float("inf")
        self.needed = True  # whether an unknown name is an error

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self.best = -float("inf")

    def check(self, names: Iterable[str]) -> None:
        """Raise ValueError, offering the nearest name, unless ``monitor`` is one of these, or a class of one."""
        name, _, number = self.monitor.rpartition("_")
        if self.monitor not in names and not (number.isdigit() and name in names):
            hint = nearest(self.monitor, names)
            if self.monitor.startswith("val_") and "val_loss" not in names:
                hint = "; val_ needs validation_data or validation_split"
            raise ValueError(f"monitor: expected one of {sorted(names)}, found {self.monitor!r}{hint}")

    def measured(self, logs: Logs) -> bool:
        """Whether this epoch has the number: validation may come after each few epochs only."""
        unvalidated = not any(name.startswith("val_") for name in logs)
        if self.monitor.startswith("val_") and unvalidated and "val_loss" in self.params.get("metrics", ()):
            return False
        if self.monitor not in logs:
            hint = nearest(self.monitor, logs)
            raise ValueError(f"monitor: expected one of {sorted(logs)}, found {self.monitor!r}{hint}")
        return True

    def improved(self, logs: Logs) -> bool:
        """Whether this epoch is the best so far."""
        value = self._sign * logs[self.monitor]
        if not value - self.min_delta > self.best:
            return False
        self.best = value
        return True

    def state(self) -> dict[str, Any]:
        return {"best": self.best}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self.best = float(state["best"])


class EarlyStopping(_Monitor):
    """End training after ``patience`` epochs without improvement."""

    def __init__(
        self,
        monitor: str = "val_loss",
        min_delta: float = 0.0,
        patience: int = 0,
        mode: str = "auto",
        restore_best_weights: bool = False,
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        self.patience, self.restore_best_weights = patience, restore_best_weights
        self._weights: list[Any] | None = None
        self._waited = 0
        self.stopped_epoch = 0

    def on_train_begin(self, logs: Logs | None = None) -> None:
        super().on_train_begin(logs)
        self._waited, self._weights = 0, None

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if not self.measured(logs):
            return
        if self.improved(logs):
            self._waited = 0
            if self.restore_best_weights:
                self._weights = self.model.get_weights()
            return
        self._waited += 1
        if self._waited >= self.patience:
            self.model.stop_training, self.stopped_epoch = True, epoch

    def on_train_end(self, logs: Logs | None = None) -> None:
        if self._weights is not None:
            self.model.set_weights(self._weights)

    def state(self) -> dict[str, Any]:
        kept = {f"weights/{i}": weight for i, weight in enumerate(self._weights or ())}
        return {**super().state(), "waited": self._waited, "stopped_epoch": self.stopped_epoch, **kept}

    def set_state(self, state: Mapping[str, Any]) -> None:
        super().set_state(state)
        self._waited, self.stopped_epoch = int(state["waited"]), int(state["stopped_epoch"])
        if not self.restore_best_weights or self.best == -float("inf"):
            return
        wanted = [weight.shape for weight in self.model.get_weights()]
        found = [np.array(state.get(f"weights/{i}", np.nan), np.float32) for i in range(len(wanted))]
        if [weight.shape for weight in found] != wanted:
            raise ValueError(
                "restore_best_weights: expected the best weights in the checkpoint, found none that fit; the run that "
                "wrote it kept none"
            )
        self._weights = found


class ModelCheckpoint(_Monitor):
    """Save the model after each epoch, or only after the best so far. The path may hold ``{epoch}``.

    It writes models, for others to load; ``fit(checkpoint=…)`` is what keeps a run that is killed.
    """

    def __init__(
        self,
        filepath: str | os.PathLike[str],
        monitor: str = "val_loss",
        verbose: bool | int = 0,
        save_best_only: bool = False,
        save_weights_only: bool = False,
        mode: str = "auto",
        save_freq: str = "epoch",
        initial_value_threshold: float | None = None,
    ) -> None:
        super().__init__(monitor, mode, 0.0)
        if save_weights_only:
            raise ValueError("save_weights_only: expected False, found True; a saved model is weights and architecture")
        if save_freq != "epoch":
            raise ValueError(
                f"save_freq: expected 'epoch', found {save_freq!r}; fit(checkpoint=PATH, checkpoint_every=N) keeps a "
                "run every N batches"
            )
        self.filepath, self.save_best_only, self.verbose = os.fspath(filepath), save_best_only, verbose
        self.needed = save_best_only
        check_suffix(self.filepath)
        self.initial_value_threshold = initial_value_threshold

    def on_train_begin(self, logs: Logs | None = None) -> None:
        super().on_train_begin(logs)
        folder = os.path.dirname(self.filepath)
        if folder and "{" not in folder and not os.path.isdir(folder):  # known before an epoch has been spent
            raise FileNotFoundError(errno.ENOENT, "no such folder to save models to; make it first", folder)
        if self.initial_value_threshold is not None:
            self.best = self._sign * self.initial_value_threshold

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if not self.save_best_only or (self.measured(logs) and self.improved(logs)):
            path = self.filepath.format(epoch=epoch + 1, **logs)
            self.model.save(path)
            if self.verbose:
                print(f"Epoch {epoch + 1}: saved {path}")


class CSVLogger(Callback):
    """One row an epoch, its columns named in the first line; what an epoch has not measured is empty.

    A run that is gone on with drops the rows that came after its checkpoint.
    """

    def __init__(self, filename: str | os.PathLike[str], separator: str = ",", append: bool = False) -> None:
        self.filename, self.separator, self.append = os.fspath(filename), separator, append
        self._size = 0
        self._columns: list[str] = []

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self._columns = self._title() if self.append else []
        self._size = os.path.getsize(self.filename) if self._columns else 0

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        started = bool(self._columns)
        if not started:
            self._columns = ["epoch", *logs]
            validated = any(name.startswith("val_") for name in self.params.get("metrics", ()))
            if validated and not any(name.startswith("val_") for name in logs):  # comes after each few epochs
                self._columns += [f"val_{name}" for name in logs]
        with open(self.filename, "a" if started else "w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, delimiter=self.separator)
            if not started:
                rows.writerow(self._columns)
            values = {**logs, "epoch": epoch}
            rows.writerow([values.get(name, "") for name in self._columns])
            self._size = file.tell()

    def _title(self) -> list[str]:
        """The columns of the file; none where it is empty or not there."""
        if not os.path.exists(self.filename):
            return []
        with open(self.filename, newline="", encoding="utf-8") as file:
            return next(csv.reader(file, delimiter=self.separator), [])

    def state(self) -> dict[str, Any]:
        return {"size": self._size}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self._size = int(state["size"])
        self._columns = self._title() if self._size > 0 else []
        if os.path.exists(self.filename) and 0 < self._size < os.path.getsize(self.filename):
            os.truncate(self.filename, self._size)


class LearningRateScheduler(Callback):
    """``schedule``(epoch, rate) is the learning rate of an epoch."""

    def __init__(self, schedule: Callable[[int, float], float]) -> None:
        self.schedule = schedule

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        optimizer = self.model.optimizer
        if callable(optimizer.learning_rate):
            raise ValueError("learning_rate: expected a number, found a schedule; there is nothing to set each epoch")
        optimizer.learning_rate = float(self.schedule(epoch, optimizer.learning_rate))
