"""`Model.compile`, `fit`, `evaluate`: a model as `fastgru.training` trains it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..layers.base import Array, Layer, initial_weights_from
from ..layers.training_step import TrainingStep
from ..training import fit as loop
from ..training import losses, optimizers
from ..training.callbacks import Call, Callback
from ..training.fit import Compiled, History
from ..training.metrics import Metric
from .model import Model, progress


class _Network:
    """A model with one output, as `training.fit` sees it."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def train(self, x: Any, mask: Any, step: TrainingStep) -> tuple[Any, Any, Callable[[Any], Any]]:
        return self._model.train(x, mask, step)

    def score(self, x: Any, num_threads: int | None) -> tuple[Any, Any]:
        return self._model.forward(x, None, num_threads)

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

    return Compiled(losses.get(loss), optimizers.get(optimizer), [check(metric) for metric in metrics])


def fit(
    model: Model,
    x: Any,
    y: Any,
    batch_size: int = 32,
    epochs: int = 1,
    verbose: bool | int = 1,
    callbacks: Sequence[Callback | Callable[[int, Mapping[str, float]], Any]] = (),
    validation_split: float = 0.0,
    validation_data: tuple[Any, ...] | None = None,
    shuffle: bool = True,
    class_weight: Mapping[int, float] | None = None,
    sample_weight: Any = None,
    initial_epoch: int = 0,
    seed: int | None = None,
    num_threads: int | None = None,
) -> History:
    """Train a compiled model, as ``keras.Model.fit``.

    Parameters
    ----------
    x, y
        Inputs as `Model.predict` takes them, and labels as the loss does.
    batch_size, epochs, shuffle
        Rows of a step; passes over all rows; whether each pass takes them in another order.
    verbose
        0 is silent; else a line for each epoch, and a progress bar.
    callbacks
        `training.callbacks`, or functions of an epoch's number and its logs.
    validation_split, validation_data
        A share of the rows, the last ones, or (x, y) or (x, y, weights), on which loss and metrics are measured after
        each epoch as "val_…".
    class_weight, sample_weight
        A weight for each class, by its number; for each row.
    seed
        Initial weights, order and dropout follow from it; drawn where it is not given.

    Returns
    -------
    History

    Raises
    ------
    ValueError, TypeError
        For arguments that don't fit each other; nothing has been trained then.
    NotFinite
        For a loss or gradient that is NaN or inf, naming batch and layer; the weights are those of the batch before.
    """
    network, how = _Network(model), _compiled(model)
    inputs, labels, weights = _data(model, x, y, sample_weight, class_weight, "x")
    seed = secrets.randbits(63) if seed is None else seed
    if batch_size < 1 or epochs < 0:
        raise ValueError(f"batch_size, epochs: expected at least 1 and 0, found {batch_size} and {epochs}")
    validation = None if validation_data is None else _validation(model, validation_data)
    if validation is None and validation_split:
        inputs, labels, weights, validation = _split(inputs, labels, weights, validation_split)
    if not len(labels):
        raise ValueError("x: expected rows to train on, found none")
    _prepare(network, how, inputs, seed)
    calls = [call if isinstance(call, Callback) else Call(call) for call in callbacks]
    for call in calls:
        call.model = model
        call.on_train_begin()
    history, model.stop_training = History(), False

    def after(batch: int, seen: Mapping[str, float]) -> None:
        for call in calls:
            call.on_batch_end(batch, seen)

    try:
        for number in range(initial_epoch, epochs):
            for call in calls:
                call.on_epoch_begin(number)
            order = np.random.Generator(np.random.Philox(key=seed, counter=number)).permutation(len(labels))
            logs = loop.epoch(
                network,
                how,
                inputs,
                labels,
                weights,
                order if shuffle else None,
                batch_size=batch_size,
                seed=seed,
                number=number,
                num_threads=num_threads,
                progress=lambda batches: progress(batches, verbose),
                after=after,
            )
            if validation is not None:
                found = loop.evaluate(network, how, *validation, batch_size, num_threads)
                logs |= {f"val_{key}": value for key, value in found.items()}
            if verbose:
                print(f"Epoch {number + 1}/{epochs}: {', '.join(f'{key} {value:.4g}' for key, value in logs.items())}")
            history.add(number, logs)
            for call in calls:
                call.on_epoch_end(number, logs)
            if model.stop_training:
                break
    finally:
        for call in calls:
            call.on_train_end()
    return history


def evaluate(
    model: Model,
    x: Any,
    y: Any,
    batch_size: int = 32,
    verbose: bool | int = 0,
    sample_weight: Any = None,
    return_dict: bool = False,
    num_threads: int | None = None,
) -> Any:
    """[loss, metrics…], as ``keras.Model.evaluate``; the loss alone where there are no metrics."""
    how = _compiled(model)
    inputs, labels, weights = _data(model, x, y, sample_weight, None, "x")
    logs = loop.evaluate(_Network(model), how, inputs, labels, weights, batch_size, num_threads)
    if verbose:
        print(", ".join(f"{key} {value:.4g}" for key, value in logs.items()))
    if return_dict:
        return logs
    return list(logs.values()) if len(logs) > 1 else logs["loss"]


def train_on_batch(model: Model, x: Any, y: Any, sample_weight: Any, *, seed: int) -> float:
    """One step; the loss of before it."""
    network, how = _Network(model), _compiled(model)
    inputs, labels, weights = _data(model, x, y, sample_weight, None, "x")
    _prepare(network, how, inputs, seed)
    return loop.step(network, how, inputs, labels, weights, seed=seed, num_threads=None)[0]


def _prepare(network: _Network, how: Compiled, inputs: list[Array], seed: int) -> None:
    """Draw weights for layers that have none, and make all of them training's own."""
    if not all(layer.ready for _, layer in network.paths()):
        with initial_weights_from(seed):
            network.score([v[:1] for v in inputs], None)
    loop.own_weights(network, how)


def _compiled(model: Model) -> Compiled:
    if model._compiled is None:
        raise ValueError(f"model {model.name!r}: expected a compiled model; call compile(loss=…) first")
    if len(model.graph.outputs) != 1:
        raise ValueError(f"model {model.name!r}: expected one output to train, found {len(model.graph.outputs)}")
    return model._compiled


def _data(
    model: Model, x: Any, y: Any, sample_weight: Any, class_weight: Mapping[int, float] | None, what: str
) -> tuple[list[Array], Array, Array | None]:
    """Inputs, labels and weights of one number of rows."""
    inputs, labels = model._inputs(x), np.asarray(y)
    rows = inputs[0].shape[0]
    if labels.ndim == 0 or len(labels) != rows:
        raise ValueError(f"y: expected labels for the {rows} rows of {what}, found shape {labels.shape}")
    weights = None if sample_weight is None else np.asarray(sample_weight, np.float32)
    if weights is not None and (weights.ndim == 0 or len(weights) != rows):
        raise ValueError(f"sample_weight: expected one for each of {rows} rows, found shape {weights.shape}")
    if class_weight is not None:
        classes = labels.argmax(-1) if labels.ndim == 2 and labels.shape[-1] > 1 else labels.reshape(rows, -1)[:, 0]
        missing = sorted(set(classes.tolist()) - set(class_weight))
        if missing:
            raise ValueError(f"class_weight: expected a weight for each class, found none for {missing[0]}")
        by_class = np.array([class_weight[c] for c in classes.tolist()], np.float32)
        weights = by_class if weights is None else weights * by_class.reshape(rows, *(1,) * (weights.ndim - 1))
    return inputs, labels, weights


def _validation(model: Model, given: tuple[Any, ...]) -> tuple[list[Array], Array, Array | None]:
    if not isinstance(given, (tuple, list)) or len(given) not in (2, 3):
        raise ValueError("validation_data: expected (x, y) or (x, y, sample_weight)")
    return _data(model, given[0], given[1], given[2] if len(given) == 3 else None, None, "validation_data")


def _split(inputs: list[Array], labels: Array, weights: Array | None, share: float) -> tuple[Any, ...]:
    """The first rows to train on, and the last ones to validate on."""
    if not 0 < share < 1:
        raise ValueError(f"validation_split: expected a number between 0 and 1, found {share!r}")
    at = int(len(labels) * (1 - share))
    late = None if weights is None else weights[at:]
    validation = ([v[at:] for v in inputs], labels[at:], late)
    return [v[:at] for v in inputs], labels[:at], None if weights is None else weights[:at], validation
