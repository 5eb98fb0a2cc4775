"""`Model.compile`, `fit`, `evaluate`: a model as `fastgru.training` trains it."""

from __future__ import annotations

import itertools
import os
import secrets
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from ..graph import train
from ..layers.base import Array, Layer, initial_weights_from
from ..layers.training_step import TrainingStep
from ..training import fit as loop
from ..training import losses, optimizers
from ..training.callbacks import Calls
from ..training.checkpoint import Run, find_checkpoint
from ..training.data import Batch, Cut, Feed, Rows, Source, is_batches
from ..training.fit import Compiled, History, Meter
from ..training.metrics import Metric
from ..training.progress import Bar, check_verbose, line
from ..training.stateful import without_states
from .feeding import check_stateful, rows_of, source
from .model import Model


class _Network:
    """A model with one output, as `training.fit` sees it."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def train(self, x: Any, mask: Any, step: TrainingStep) -> tuple[Any, Any, Callable[[Any], Any]]:
        model = self._model
        outputs, shown, back = train(model.graph, model._inputs(x), model._masks(x, mask), step)
        return outputs[0], shown[0], lambda dy: back([dy])

    def score(self, x: Any, mask: Any, num_threads: int | None) -> tuple[Any, Any]:
        return self._model.forward(x, mask, num_threads)

    def paths(self) -> Iterator[tuple[str, Layer]]:
        seen: set[Layer] = set()
        for name, layer in self._model.parts().items():
            yield from _paths(name, layer, seen)


def _paths(path: str, layer: Layer, seen: set[Layer]) -> Iterator[tuple[str, Layer]]:
    if layer in seen:  # shared: its gradients are summed already
        return
    seen.add(layer)
    yield path, layer
    for name, part in layer.parts().items():
        yield from _paths(f"{path}/{name}", part, seen)


def compiled(
    optimizer: str | optimizers.Optimizer, loss: str | losses.Loss | None, metrics: Sequence[str | Metric]
) -> Compiled:
    """What `Model.compile` keeps.

    Raises
    ------
    ValueError, TypeError
        For names that are not known, offering the nearest.
    """
    if loss is None:
        raise ValueError("loss: expected a name or a fastgru loss, found none")
    if isinstance(metrics, (str, Metric)):
        raise TypeError(f"metrics: expected a list, found {metrics!r}")
    from ..training.metrics import check

    metrics = [check(metric) for metric in metrics]
    names = [metric if isinstance(metric, str) else metric.name for metric in metrics]
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise ValueError(f"metrics: expected names that differ, found {twice[0]!r} twice; give one of them a name=")
    return Compiled(losses.get(loss), optimizers.get(optimizer), metrics)


def fit(
    model: Model,
    x: Any,
    y: Any = None,
    batch_size: int | None = None,
    epochs: int = 1,
    verbose: bool | int | str = 1,
    callbacks: Any = None,
    validation_split: float = 0.0,
    validation_data: Any = None,
    shuffle: bool = True,
    class_weight: Mapping[int, float] | None = None,
    sample_weight: Any = None,
    initial_epoch: int = 0,
    steps_per_epoch: int | None = None,
    validation_steps: int | None = None,
    validation_batch_size: int | None = None,
    validation_freq: int = 1,
    *,
    seed: int | None = None,
    num_threads: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    resume: str | os.PathLike[str] | bool | None = None,
) -> History:
    """Train a compiled model, as ``keras.Model.fit``.

    Parameters
    ----------
    x, y
        Inputs as `Model.predict` takes them, and labels as the loss does. An input may be ragged: a list of arrays of
        unequal length; labels are then for rows, or ragged too, for steps. Or x alone gives batches (x, y) or
        (x, y, sample_weight): a generator, anything else to iterate, or an object with a length and ``[i]``.
    batch_size, epochs, shuffle
        Rows of a step, 32 if not given; passes over all rows; whether each pass takes them (or batches with numbers)
        in another order. For stateful layers the order is what continues what: shuffle=False.
    verbose
        0 is silent; 1 a progress bar, and a line for each epoch; 2 the lines alone.
    callbacks
        `training.callbacks`, or functions of an epoch's number and its logs.
    validation_split, validation_data
        A share of the rows, the last ones, or (x, y), (x, y, weights), or what gives batches, on which loss and metrics
        are measured after each epoch as "val_…".
    class_weight, sample_weight
        A weight for each class, by its number; for each row, or step.
    steps_per_epoch, validation_steps
        Batches of an epoch, and of its validation, if not all: the next ones come in the next.
    validation_batch_size, validation_freq
        ``batch_size`` if not given; validation after each so many epochs.
    seed
        Initial weights, order and dropout follow from it; drawn where it is not given.
    checkpoint, checkpoint_every
        A file that is replaced, whole, at the start, after each epoch, and where asked for after each so many batches
        of an epoch. It holds all that the run goes on from.
    resume
        Go on from this checkpoint, to the bit as if it had never been left; ``True``: from ``checkpoint``, or start
        where there is none yet. Data, model, optimiser and options are to be those of that run; ``epochs`` may grow.
        A generator is to start where it started then: the batches that were trained on are drawn again, and dropped.

    Returns
    -------
    History
        With the epochs before, where a run was resumed.

    Raises
    ------
    ValueError, TypeError
        For arguments that don't fit each other; nothing has been trained then.
    NotFinite
        For a loss or gradient that is NaN or inf, naming batch and layer; the weights are those of the batch before.
    FormatError, OSError
        For a checkpoint that is damaged, not there, another run's, or cannot be written; the old file is whole.
    """
    network, how, level = _Network(model), _compiled(model), check_verbose(verbose)
    counts = {"batch_size": batch_size, "steps_per_epoch": steps_per_epoch, "validation_steps": validation_steps}
    counts |= {"validation_batch_size": validation_batch_size, "validation_freq": validation_freq}
    _check_counts(1, **counts, checkpoint_every=checkpoint_every)
    _check_counts(0, epochs=epochs, initial_epoch=initial_epoch)
    saved = find_checkpoint(checkpoint, checkpoint_every, resume)
    if seed is None:
        seed = secrets.randbits(63) if saved is None else saved.seed
    _check_seed(seed)
    size = 32 if batch_size is None else batch_size
    order = _order(seed) if shuffle else None
    rows, held = None, None
    if is_batches(x):
        if validation_split:
            raise ValueError("validation_split: expected 0, since x gives batches; give validation_data")
        train: Source = source(model, x, y, sample_weight, class_weight, order)
    else:
        rows = rows_of(model, x, y, sample_weight, class_weight, "x")
        if validation_data is None and validation_split:
            rows, held = rows.split(validation_split)
        if not len(rows):
            raise ValueError("x: expected rows to train on, found none")
        check_stateful(model, len(rows), size, "x")
        if model.stateful and shuffle and len(rows) > size:
            warnings.warn(
                "shuffle: expected False, since stateful layers take each row for the next of one", stacklevel=3
            )
        train = Cut(rows, size, order)
    checked = [rows] if rows is not None else []
    validation: Source | None = None
    val_size = size if validation_batch_size is None else validation_batch_size
    if validation_data is not None and is_batches(validation_data):
        validation = source(model, validation_data, None, None, None)
    elif validation_data is not None or held is not None:
        held = _validation(model, validation_data) if held is None else held
        if not len(held):
            raise ValueError("validation_data: expected rows, found none")
        check_stateful(model, len(held), val_size, "validation_data", None if rows is None else min(size, len(rows)))
        validation = Cut(held, val_size)
        checked.append(held)
    feed = Feed(train, steps_per_epoch)
    val_feed = None if validation is None else Feed(validation, validation_steps, "validation_data")
    names = [key for prefix in ("", "val_")[: 1 + (validation is not None)] for key in how.names(prefix)]
    params = {"epochs": epochs, "steps": feed.steps, "verbose": level, "metrics": names}
    calls = Calls(callbacks, model, params)
    settings = {**counts, "batch_size": size, "seed": int(seed), "shuffle": bool(shuffle), "first epoch": initial_epoch}
    settings |= {"data": feed.describe(), "validation_data": None if val_feed is None else val_feed.describe()}
    with _unbuilt_on_error(network):
        _prepare(network, how, train, seed)
        for part in checked:
            loop.check(network, how, part)
        run = Run(network, how, calls.calls, settings, epoch=initial_epoch)
        if saved is not None:
            run.go_on(saved, feed.steps)
    calls("on_train_begin")
    if saved is not None:
        run.go_on_callbacks(saved)
        for number in range(initial_epoch, run.epoch):
            feed.drop(number)
            if val_feed is not None and (number + 1) % validation_freq == 0:
                val_feed.drop_again()
    elif checkpoint is not None:
        run.save(checkpoint)
    saved = None  # unmaps the file, which is to be replaced
    history, model.stop_training = run.history, run.stopped
    logs: dict[str, float] = {}

    def before(batch: int) -> None:
        if checkpoint is not None and checkpoint_every and batch > run.batch and batch % checkpoint_every == 0:
            run.batch = batch
            run.save(checkpoint)
        calls("on_train_batch_begin", batch)

    try:
        for number in range(run.epoch, epochs):
            if model.stop_training:
                break
            run.epoch, start = number, run.batch
            batches = feed.epoch(number, start)
            first = next(batches, None)
            if first is None:
                warnings.warn(f"epoch {number}: x ran out of data; training ends", stacklevel=3)
                break
            if not start:
                calls("on_epoch_begin", number)
            began = time.monotonic()
            with Bar(level, feed.steps, f"Epoch {number + 1}/{epochs}", start) as bar:
                logs = loop.epoch(
                    network,
                    how,
                    itertools.chain([first], batches),
                    seed=seed,
                    number=number,
                    num_threads=num_threads,
                    start=start,
                    meter=run.meter,
                    before=before,
                    after=partial(_after, calls, "train", bar),
                )
            if val_feed is not None and (number + 1) % validation_freq == 0:
                found = _measure(network, how, val_feed, calls, 0, num_threads)
                logs |= {f"val_{key}": value for key, value in found.items()}
                if not found:
                    warnings.warn(f"epoch {number}: validation_data ran out of data; nothing is measured", stacklevel=3)
            if level:
                print(f"Epoch {number + 1}/{epochs}: {line(logs)} ({time.monotonic() - began:.3g} s)")
            calls("on_epoch_end", number, logs)
            history.add(number, logs)
            run.epoch, run.batch, run.meter, run.stopped = number + 1, 0, Meter(how), bool(model.stop_training)
            if checkpoint is not None:
                run.save(checkpoint)
    finally:
        how.memory.clear()
        calls("on_train_end", logs)
    return history


def evaluate(
    model: Model,
    x: Any,
    y: Any = None,
    batch_size: int | None = None,
    verbose: bool | int | str = 0,
    sample_weight: Any = None,
    steps: int | None = None,
    callbacks: Any = None,
    return_dict: bool = False,
    *,
    num_threads: int | None = None,
) -> Any:
    """[loss, metrics…], as ``keras.Model.evaluate``; the loss alone where there are no metrics.

    ``x`` and ``y`` as `fit` takes them; ``steps`` batches of it, if not all.
    """
    network, how, level = _Network(model), _compiled(model), check_verbose(verbose)
    _check_counts(1, batch_size=batch_size, steps=steps)
    data: Source
    if is_batches(x):
        data = source(model, x, y, sample_weight, None)
    else:
        rows, size = rows_of(model, x, y, sample_weight, None, "x"), 32 if batch_size is None else batch_size
        if not len(rows):
            raise ValueError("x: expected rows to evaluate, found none")
        check_stateful(model, len(rows), size, "x")
        loop.check(network, how, rows)
        data = Cut(rows, size)
    feed = Feed(data, steps)
    calls = Calls(callbacks, model, {"epochs": 1, "steps": feed.steps, "verbose": level, "metrics": how.names()})
    logs = _measure(network, how, feed, calls, level, num_threads)
    if level:
        print(line(logs))
    return _returned(logs, return_dict)


def train_on_batch(
    model: Model,
    x: Any,
    y: Any,
    sample_weight: Any,
    class_weight: Mapping[int, float] | None,
    return_dict: bool,
    *,
    seed: int,
) -> Any:
    """One step; loss and metrics of before it."""
    network, how = _Network(model), _compiled(model)
    batch = _batch(model, x, y, sample_weight, class_weight)
    _prepare(network, how, batch, seed)
    loss, y_pred, mask = loop.step(network, how, batch, seed=seed, num_threads=None)
    meter = loop.Meter(how)
    meter.add(loss, batch.y, y_pred, mask)
    return _returned(meter.logs(), return_dict)


def test_on_batch(model: Model, x: Any, y: Any, sample_weight: Any, return_dict: bool) -> Any:
    """Loss and metrics of one batch."""
    batch = _batch(model, x, y, sample_weight, None)
    return _returned(loop.evaluate(_Network(model), _compiled(model), [batch], num_threads=None), return_dict)


def _batch(model: Model, x: Any, y: Any, sample_weight: Any, class_weight: Mapping[int, float] | None) -> Batch:
    rows = rows_of(model, x, y, sample_weight, class_weight, "x")
    if not len(rows):
        raise ValueError("x: expected rows, found none")
    return rows.take(np.arange(len(rows)))


def _measure(
    network: _Network, how: Compiled, feed: Feed, calls: Calls, level: int, num_threads: int | None
) -> dict[str, float]:
    """Loss and metrics of an epoch's batches; empty where there are none."""
    batches = feed.again()
    first = next(batches, None)
    if first is None:
        return {}
    calls("on_test_begin")
    with Bar(level, feed.steps, "Evaluate") as bar:
        logs = loop.evaluate(
            network,
            how,
            itertools.chain([first], batches),
            num_threads=num_threads,
            before=partial(calls, "on_test_batch_begin"),
            after=partial(_after, calls, "test", bar),
        )
    calls("on_test_end", logs)
    return logs


def _after(calls: Calls, kind: str, bar: Bar, batch: int, logs: loop.Logs) -> None:
    bar.step(logs)
    calls.batch_end(kind, batch, logs)


def _returned(logs: dict[str, float], return_dict: bool) -> Any:
    if return_dict:
        return logs
    return list(logs.values()) if len(logs) > 1 else logs["loss"]


def _order(seed: int) -> Callable[[int, int], Array]:
    """An order of each pass: of so many rows, or batches."""

    def order(number: int, count: int) -> Array:
        return np.random.Generator(np.random.Philox(key=seed, counter=number)).permutation(count)

    return order


def _prepare(network: _Network, how: Compiled, data: Source | Batch, seed: int) -> None:
    """Draw weights for layers that have none, and make all of them training's own."""
    if not all(layer.ready for _, layer in network.paths()):
        batch = data if isinstance(data, Batch) else data.first()
        with initial_weights_from(seed), without_states(network.paths()):
            network.score([v[:1] for v in batch.x], [None if m is None else m[:1] for m in batch.masks], None)
    loop.own_weights(network, how)


@contextmanager
def _unbuilt_on_error(network: _Network) -> Iterator[None]:
    """Layers that were built inside are not, if the block raises."""
    fresh = [layer for _, layer in network.paths() if not layer.ready]
    try:
        yield
    except BaseException:
        for layer in fresh:
            layer.ready = False
        raise


def _compiled(model: Model) -> Compiled:
    if model._compiled is None:
        raise ValueError(f"model {model.name!r}: expected a compiled model; call compile(loss=…) first")
    if len(model.graph.outputs) != 1:
        raise ValueError(f"model {model.name!r}: expected one output to train, found {len(model.graph.outputs)}")
    return model._compiled


def _check_counts(least: int, /, **counts: Any) -> None:
    for name, value in counts.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise TypeError(f"{name}: expected a whole number, found {value!r}")
        if value < least:
            raise ValueError(f"{name}: expected at least {least}, found {value}")


def _check_seed(seed: Any) -> None:
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise TypeError(f"seed: expected a whole number, found {seed!r}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed: expected a whole number from 0 to below 2^64, found {seed}")


def _validation(model: Model, given: Any) -> Rows:
    if not isinstance(given, (tuple, list)) or len(given) not in (2, 3):
        raise ValueError("validation_data: expected (x, y) or (x, y, sample_weight), or what gives batches of these")
    try:
        return rows_of(model, given[0], given[1], given[2] if len(given) == 3 else None, None, "validation_data")
    except (TypeError, ValueError) as error:
        raise type(error)(f"validation_data: {error}") from error
