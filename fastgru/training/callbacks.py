"""What happens between epochs, by Keras' names."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol


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
    """Called by `fit`; ``model`` is set before. Subclasses override what they need."""

    model: Any = None

    def on_train_begin(self) -> None:
        """Before the first epoch."""

    def on_epoch_begin(self, epoch: int) -> None:
        """Before an epoch, numbered from 0."""

    def on_batch_end(self, batch: int, logs: Mapping[str, float]) -> None:
        """After a batch, with loss and metrics of the epoch so far."""

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float]) -> None:
        """After an epoch and its validation."""

    def on_train_end(self) -> None:
        """After the last epoch, also when training ends by an error."""


class Call(Callback):
    """Any callable: called after each epoch with its number and what was measured."""

    def __init__(self, function: Callable[[int, Mapping[str, float]], Any]) -> None:
        self.function = function

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float]) -> None:
        self.function(epoch, logs)


class _Monitor(Callback):
    """Watches one number. ``mode`` "auto" takes what is called accuracy or AUC for better when larger."""

    def __init__(self, monitor: str, mode: str, min_delta: float) -> None:
        if mode not in ("auto", "min", "max"):
            raise ValueError(f"mode: expected 'auto', 'min' or 'max', found {mode!r}")
        larger = mode == "max" or (mode == "auto" and any(part in monitor.lower() for part in ("acc", "auc", "f1")))
        self.monitor, self._sign, self.min_delta = monitor, 1.0 if larger else -1.0, abs(min_delta)
        self.best = -float("inf")

    def on_train_begin(self) -> None:
        self.best = -float("inf")

    def improved(self, logs: Mapping[str, float]) -> bool:
        """Whether this epoch is the best so far."""
        if self.monitor not in logs:
            raise ValueError(f"monitor: expected one of {sorted(logs)}, found {self.monitor!r}")
        value = self._sign * logs[self.monitor]
        if not value - self.min_delta > self.best:
            return False
        self.best = value
        return True


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

    def on_train_begin(self) -> None:
        super().on_train_begin()
        self._waited, self._weights = 0, None

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float]) -> None:
        if self.improved(logs):
            self._waited = 0
            if self.restore_best_weights:
                self._weights = self.model.get_weights()
            return
        self._waited += 1
        if self._waited >= self.patience:
            self.model.stop_training, self.stopped_epoch = True, epoch

    def on_train_end(self) -> None:
        if self._weights is not None:
            self.model.set_weights(self._weights)


class ModelCheckpoint(_Monitor):
    """Save the model after each epoch, or only after the best so far. The path may hold ``{epoch}``."""

    def __init__(
        self,
        filepath: str | os.PathLike[str],
        monitor: str = "val_loss",
        save_best_only: bool = False,
        mode: str = "auto",
    ) -> None:
        super().__init__(monitor, mode, 0.0)
        self.filepath, self.save_best_only = os.fspath(filepath), save_best_only

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float]) -> None:
        if not self.save_best_only or self.improved(logs):
            self.model.save(self.filepath.format(epoch=epoch + 1, **logs))


class CSVLogger(Callback):
    """One row an epoch."""

    def __init__(self, filename: str | os.PathLike[str], separator: str = ",", append: bool = False) -> None:
        self.filename, self.separator, self.append = os.fspath(filename), separator, append
        self._started = append

    def on_train_begin(self) -> None:
        self._started = self.append and os.path.exists(self.filename)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float]) -> None:
        with open(self.filename, "a" if self._started else "w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, delimiter=self.separator)
            if not self._started:
                rows.writerow(["epoch", *logs])
            rows.writerow([epoch, *logs.values()])
        self._started = True


class LearningRateScheduler(Callback):
    """``schedule``(epoch, rate) is the learning rate of an epoch."""

    def __init__(self, schedule: Callable[[int, float], float]) -> None:
        self.schedule = schedule

    def on_epoch_begin(self, epoch: int) -> None:
        optimizer = self.model.optimizer
        if callable(optimizer.learning_rate):
            raise ValueError("learning_rate: expected a number, found a schedule; there is nothing to set each epoch")
        optimizer.learning_rate = float(self.schedule(epoch, optimizer.learning_rate))
