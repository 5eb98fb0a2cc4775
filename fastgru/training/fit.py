"""The loop that trains: batches, steps, epochs, what is called between them.

It knows a network by what `Network` asks of it, and no Model.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ..formats import FormatError
from ..layers.base import Array, Layer
from ..layers.ragged import Ragged
from ..layers.training_step import Gradient, TrainingStep
from .data import Batch, Rows
from .losses import Loss, spread
from .metrics import Metric
from .metrics import get as get_metric
from .optimizers import Optimizer
from .stateful import set_states, states, without_states

#: Gives loss and metrics so far, by name
Logs = Callable[[], Mapping[str, float]]

_ANY = np.zeros((1, 2), np.float32)


class Network(Protocol):
    """What is trained: one output."""

    def train(self, x: Any, mask: Any, step: TrainingStep) -> tuple[Any, Any, Callable[[Any], Any]]:
        """Output, its mask, and the way back."""
        ...

    def score(self, x: Any, mask: Any, num_threads: int | None) -> tuple[Any, Any]:
        """Output and mask as in scoring."""
        ...

    def paths(self) -> Iterator[tuple[str, Layer]]:
        """Every layer, those inside others included, by the path under which a file keeps its weights."""
        ...


@dataclass
class Compiled:
    """What `compile` was given; ``owned`` are the weights that training may change in place, ``memory`` is a run's."""

    loss: Loss
    optimizer: Optimizer
    metrics: list[str | Metric]
    owned: dict[str, Array] = field(default_factory=dict)
    memory: dict[Any, Any] = field(default_factory=dict)
    rate: float | None = field(init=False)  # the learning rate as it was given; None for a schedule

    def __post_init__(self) -> None:
        rate = self.optimizer.learning_rate
        self.rate = None if callable(rate) else float(rate)

    def names(self, prefix: str = "") -> list[str]:
        """The names by which loss and metrics are measured."""
        own = [m if m in ("accuracy", "acc") else get_metric(m, _ANY, _ANY).name for m in self.metrics]
        return [f"{prefix}{name}" for name in ("loss", *own)]


class Meter:
    """Loss and metrics of some batches, means over their rows. As in Keras, metrics know masks, but no weights."""

    def __init__(self, compiled: Compiled) -> None:
        self._compiled = compiled
        self._metrics: list[Metric] | None = None
        self._total = self._rows = 0.0
        self._kept: Sequence[Mapping[str, Any]] = ()
        self._path = ""

    def add(self, loss: float, y_true: Array, y_pred: Array, mask: Array | None) -> None:
        """Add a batch. The first one says which kind of accuracy is meant."""
        if self._metrics is None:
            self._metrics = [get_metric(metric, y_true, y_pred) for metric in self._compiled.metrics]
            for metric in self._metrics:
                metric.reset_state()
            for metric, state in zip(self._metrics, self._kept, strict=bool(self._kept)):
                try:
                    metric.set_state(state)
                except (KeyError, TypeError, ValueError, OverflowError) as error:
                    raise FormatError(f"{self._path}: metrics: expected their states, found {error}") from error
        self._total, self._rows = self._total + loss * len(y_true), self._rows + len(y_true)
        for metric in self._metrics:
            metric.update_state(y_true, y_pred, mask)

    def state(self) -> tuple[float, float, list[dict[str, Any]]]:
        """The loss's sum, the number of rows, and the metrics' states; none before the first batch."""
        return self._total, self._rows, [metric.state() for metric in self._metrics or ()]

    def set_state(self, total: float, rows: float, metrics: Sequence[Mapping[str, Any]], path: str) -> None:
        """Go on from what `state` gave and the file ``path`` kept: a state that fits no metric is refused by `add`."""
        self._total, self._rows, self._kept, self._path = total, rows, metrics, path

    def logs(self) -> dict[str, float]:
        """By name, the loss first."""
        loss = self._total / self._rows if self._rows else 0.0
        logs = {"loss": loss}
        for metric in self._metrics or ():
            logs |= metric.results()
        return logs


@dataclass
class History:
    """What was measured: ``history`` has a list of a number an epoch for "loss", each metric, and both with "val_"."""

    epoch: list[int] = field(default_factory=list)
    history: dict[str, list[float]] = field(default_factory=dict)

    def add(self, epoch: int, logs: Mapping[str, float]) -> None:
        """One epoch's numbers."""
        self.epoch.append(epoch)
        for key, value in logs.items():
            self.history.setdefault(key, []).append(float(value))

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw it, and write the file if there is a path: see `plot.history`."""
        from . import plot

        return plot.history(self, path)


_ADVICE = "lower the learning rate, or clip gradients with clipnorm"


class NotFinite(ArithmeticError):
    """A loss, gradient or weight that is NaN or inf."""


def step(
    network: Network,
    compiled: Compiled,
    batch: Batch,
    *,
    seed: int,
    num_threads: int | None,
    where: str = "",
) -> tuple[float, Array, Array | None]:
    """One batch: forward, back, weights moved. Returns the loss, output and mask of before.

    Raises
    ------
    NotFinite
        Naming the batch, and the layer whose gradient it was; nothing has been moved then.
    """
    kept = states(network.paths())
    try:
        number, memory = compiled.optimizer.iterations, compiled.memory
        run = TrainingStep(seed, number, rows=len(batch), num_threads=num_threads, memory=memory)
        y_pred, mask, back = network.train(batch.x, batch.masks, run)
        mask = batch.counted(mask)
        kind = compiled.loss.activation
        logits = run.logits(y_pred, kind) if kind else None
        loss, gradient = compiled.loss.value_and_gradient(batch.y, y_pred, batch.weights, mask, logits)
        if not math.isfinite(loss):
            raise NotFinite(f"{where}loss: expected a finite number, found {loss}; {_cause(network, batch, run)}")
        back(gradient)
        _move(network, compiled.optimizer, run, where)
    except BaseException:
        set_states(network.paths(), kept)
        raise
    return loss, y_pred, mask


def _move(network: Network, optimizer: Optimizer, run: TrainingStep, where: str) -> None:
    """The step's gradients and statistics into the layers' weights, once all of them are known to be finite."""
    gradients: dict[str, Gradient] = {}
    weights: dict[str, Array] = {}
    moved: list[tuple[Layer, dict[str, Array]]] = []
    for path, layer in network.paths():
        found, updates = run.gradients.get(layer, {}), run.updates.get(layer, {})
        if found or updates:
            moved.append((layer, updates))
        for name, gradient in found.items():
            values = gradient if isinstance(gradient, np.ndarray) else gradient.values
            if not np.isfinite(values).all():
                raise NotFinite(
                    f"{where}layer {path!r}: the gradient of {name!r} is not finite; lower the learning rate, or clip "
                    "gradients with clipnorm"
                )
            gradients[f"{path}/{name}"], weights[f"{path}/{name}"] = gradient, layer.weights[name]
    optimizer.apply(gradients, weights)
    for layer, updates in moved:
        for name, value in updates.items():
            layer.weights[name][...] = value
        layer.assign(layer.weights)  # packs them


def own_weights(network: Network, compiled: Compiled) -> None:
    """Make every weight an array of training's own: those of a file may be mapped from it, others are the caller's."""
    for path, layer in network.paths():
        if any(compiled.owned.get(f"{path}/{name}") is not value for name, value in layer.weights.items()):
            layer.assign({name: np.array(value, np.float32, order="C") for name, value in layer.weights.items()})
            compiled.owned.update({f"{path}/{name}": value for name, value in layer.weights.items()})


def check(network: Network, compiled: Compiled, rows: Rows) -> None:
    """Compare all labels and weights with the output that the model gives the first row; states stay as they are.

    Raises
    ------
    ValueError
        For labels and weights that the loss cannot take, and what the layers refuse.
    """
    first = rows.take(np.arange(1))
    with without_states(network.paths()):
        shape = network.score(first.x, first.masks, None)[0].shape[1:]
    if isinstance(rows.y, Ragged):
        for i, y in enumerate(rows.y.rows):
            _check_labels(compiled.loss, y[None], (1, len(y), *shape[1:]), f"row {i}: ")
    else:
        _check_labels(compiled.loss, rows.y, (len(rows), *shape), "")
    if rows.weights is not None and not isinstance(rows.weights, Ragged):
        steps = rows.weights.shape[1:2] if isinstance(rows.y, Ragged) else shape[:1]
        spread("sample_weight", rows.weights, (len(rows), *steps, *shape[1:])[: len(shape)])


def _check_labels(loss: Loss, y: Array, shape: tuple[int, ...], where: str) -> None:
    try:
        loss.labels(y, np.broadcast_to(np.float32(0), shape))
    except ValueError as error:
        raise ValueError(f"{where}{error}") from error


def evaluate(
    network: Network,
    compiled: Compiled,
    batches: Iterable[Batch],
    *,
    num_threads: int | None,
    before: Callable[[int], None] = lambda batch: None,
    after: Callable[[int, Logs], None] = lambda batch, logs: None,
) -> dict[str, float]:
    """Loss and metrics of a scored set. ``before`` and ``after`` are called around each batch as in `epoch`."""
    meter = Meter(compiled)
    for i, batch in enumerate(batches):
        before(i)
        y_pred, mask = network.score(batch.x, batch.masks, num_threads)
        mask = batch.counted(mask)
        meter.add(compiled.loss(batch.y, y_pred, batch.weights, mask), batch.y, y_pred, mask)
        after(i, meter.logs)
    return meter.logs()


def epoch(
    network: Network,
    compiled: Compiled,
    batches: Iterable[Batch],
    *,
    seed: int,
    number: int,
    num_threads: int | None,
    start: int = 0,
    meter: Meter,
    before: Callable[[int], None] = lambda batch: None,
    after: Callable[[int, Logs], None] = lambda batch, logs: None,
) -> dict[str, float]:
    """All batches once: those of an epoch from batch ``start`` on, measured by ``meter``.

    ``before`` and ``after`` are called around each, ``after`` with what gives loss and metrics of those so far.

    Raises
    ------
    NotFinite
        As `step` does, and for weights that the last step made NaN or inf.
    """
    for i, batch in enumerate(batches, start):
        before(i)
        where = f"epoch {number}, batch {i}: "
        loss, y_pred, mask = step(network, compiled, batch, seed=seed, num_threads=num_threads, where=where)
        meter.add(loss, batch.y, y_pred, mask)
        after(i, meter.logs)
    if culprit := _weight_not_finite(network):
        raise NotFinite(f"epoch {number}, after its last batch: {culprit}; {_ADVICE}")
    return meter.logs()


def _cause(network: Network, batch: Batch, run: TrainingStep) -> str:
    """Where what is not finite came from: the inputs, a weight, or the first layer whose output it is; what to do."""
    if not all(np.isfinite(v).all() for v in batch.x if v.dtype.kind == "f"):
        return "the batch's inputs hold NaN or inf"
    if culprit := _weight_not_finite(network):
        return f"{culprit} since the batch before; {_ADVICE}"
    names, found = {layer: path for path, layer in network.paths()}, []
    again = TrainingStep(run.seed, run.number, rows=run.rows, num_threads=run.num_threads)

    def watch(layer: Layer, y: Any) -> None:
        parts = y if isinstance(y, list) else [y]
        if not all(np.isfinite(v).all() for v in parts):
            found.append(names.get(layer, layer.name))

    again.watch = watch
    network.train(batch.x, batch.masks, again)
    return f"layer {found[0]!r} is the first whose output is not finite; {_ADVICE}" if found else _ADVICE


def _weight_not_finite(network: Network) -> str:
    for path, layer in network.paths():
        for name, value in layer.weights.items():
            if not np.isfinite(value).all():
                return f"layer {path!r}: {name!r} is not finite"
    return ""
