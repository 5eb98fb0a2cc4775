"""Checkpoints: all that a training run goes on from, in one file that is whole or not there.

A safetensors file with a checksum, as those of saved models. What is no array is JSON in its ``__metadata__``, under
"checkpoint"; the tensors are

    weights/LAYER/NAME           of all layers, moving statistics included
    states/LAYER/I               of stateful layers
    optimizer/SLOT/LAYER/NAME    what the optimiser keeps for a weight
    metrics/I/NAME               arrays among the sums of the epoch in progress
    callbacks/I/NAME             arrays that callbacks keep

Random numbers need no state: initial weights, order and dropout follow from the seed and the numbers of epoch and step.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..formats import FormatError, ModelFile, read, write_safetensors
from ..formats.replacing import remove_leftovers
from ..formats.untrusted import Source
from ..layers.base import Array, Layer
from .callbacks import Callback
from .fit import Compiled, History, Meter, Network, NotFinite
from .schedules import learning_rate

_KEY, _VERSION = "checkpoint", 1
_ELSE = "fit as that run did, or start anew without resume"

Path = str | os.PathLike[str]


@dataclass(frozen=True)
class Checkpoint:
    """A file that was read: ``facts`` is its JSON, of which `read_checkpoint` has checked what lies at the top."""

    path: str
    facts: dict[str, Any]
    tensors: Mapping[str, Array]

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return int(self.facts["about"]["seed"])

    def part(self, prefix: str) -> dict[str, Array]:
        """The tensors below a prefix."""
        return {key[len(prefix) :]: value for key, value in self.tensors.items() if key.startswith(prefix)}

    def copied(self, prefix: str) -> dict[str, Array]:
        """The same, in memory of their own."""
        return {key: np.array(value) for key, value in self.part(prefix).items()}


def find_checkpoint(checkpoint: Path | None, every: int | None, resume: Path | bool | None) -> Checkpoint | None:
    """What `fit` goes on from; None where it starts.

    Raises
    ------
    ValueError
        For arguments that don't fit each other.
    FileNotFoundError
        If the file to go on from is not there, or the folder to write to.
    FileExistsError
        If a checkpoint that is not gone on from would be overwritten.
    FormatError
        If the file is not a checkpoint, or damaged.
    """
    if every is not None and (checkpoint is None or every < 1):
        raise ValueError(f"checkpoint_every: expected at least 1, and checkpoint=PATH, found {every}, {checkpoint!r}")
    if resume is True and checkpoint is None:
        raise ValueError("resume: True goes on from checkpoint=PATH, found none; name it, or give resume=PATH")
    target = None if checkpoint is None else os.fspath(checkpoint)
    start = target if resume is True else os.fspath(resume) if resume else None
    if resume is True and not os.path.exists(start or ""):
        start = None
    if start is not None and not os.path.exists(start):
        advice = "give checkpoint=PATH, resume=True to go on where there is a checkpoint and start where there is none"
        raise FileNotFoundError(errno.ENOENT, f"no checkpoint to go on from; {advice}", start)
    if target is not None:
        if os.path.isdir(target):
            raise IsADirectoryError(errno.EISDIR, "checkpoint: expected a file, found a folder", target)
        folder = os.path.dirname(os.path.realpath(target))
        if not os.path.isdir(folder):
            raise FileNotFoundError(errno.ENOENT, "no such folder to write checkpoints to; make it first", folder)
        if os.path.exists(target) and (start is None or not os.path.samefile(target, start)):
            raise FileExistsError(
                errno.EEXIST, "another run's checkpoint; go on from it with resume=True, or delete it", target
            )
        remove_leftovers(target)
    return None if start is None else read_checkpoint(start)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a file that `Run.save` wrote; its tensors view the file.

    Raises
    ------
    FormatError
        If it is not a checkpoint, or was changed.
    """
    return from_file(read(path))


def from_file(file: ModelFile) -> Checkpoint:
    """Return the checkpoint that a file holds; raises as `read_checkpoint`."""
    source = Source(file.path, b"")
    if file.format != "fastgru-safetensors" or _KEY not in file.metadata:
        raise source.refuse("", expected="a checkpoint that fit wrote", found=f"a file of format {file.format}")
    facts = source.json("checkpoint", file.metadata[_KEY])
    with source.parsing("checkpoint", "a run's settings, position and history"):
        if facts["version"] != _VERSION:
            raise source.refuse("checkpoint", expected=f"version {_VERSION}", found=repr(facts["version"])[:40])
        _count(facts["about"]["seed"])
        _count(facts["epoch"])
        _count(facts["batch"])
        if type(facts["stopped"]) is not bool:
            raise ValueError("stopped is no bool")
        _history(facts["history"])
        if not all(isinstance(state, dict) for key in ("metrics", "callbacks") for state in facts[key]):
            raise ValueError("a state is no object")
    return Checkpoint(file.path, facts, file.tensors)


@dataclass
class Run:
    """A training run: who takes part in it, and how far it has come.

    Parameters
    ----------
    settings
        What decides the numbers beside network, optimiser and loss: the seed, sizes; plain values. A checkpoint goes
        on only where all of these are the same.
    epoch, batch
        The next ones; ``meter`` holds what the batches of this epoch came to so far.
    stopped
        Whether a callback has ended training.
    """

    network: Network
    compiled: Compiled
    callbacks: Sequence[Any]
    settings: dict[str, Any]
    history: History = field(default_factory=History)
    epoch: int = 0
    batch: int = 0
    stopped: bool = False

    def __post_init__(self) -> None:
        self.meter = Meter(self.compiled)
        self.about: dict[str, Any] = json.loads(json.dumps(self._about()))

    def _about(self) -> dict[str, Any]:
        optimizer = {k: v for k, v in _described(self.compiled.optimizer).items() if k != "iterations"}
        if self.compiled.rate is not None:
            optimizer["learning_rate"] = self.compiled.rate  # callbacks may have moved it since
        layers = {}
        for path, layer in self.network.paths():
            shapes = {name: value.shape for name, value in layer.weights.items()}
            layers[path] = {
                "class": f"{layer.class_name()}, {layer.describe()}",
                "trainable": layer.trainable,
                **shapes,
            }
        return {
            **self.settings,
            "loss": _described(self.compiled.loss),
            "optimizer": optimizer,
            "metrics": [_described(metric) for metric in self.compiled.metrics],
            "callbacks": [type(call).__name__ for call in self._keepers()],
            "layers": layers,
        }

    def _keepers(self) -> list[Callback]:
        """The callbacks that have a state."""
        return [c for c in self.callbacks if isinstance(c, Callback) and type(c).state is not Callback.state]

    # -- writing ---------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write a checkpoint over the last one.

        Raises
        ------
        NotFinite
            If a weight, state or slot is NaN or inf: the file stays the one before.
        OSError
            If it cannot be written: the file stays the one before.
        """
        tensors = {f"weights/{path}/{name}": v for path, layer, name, v in self._weights()}
        for path_, layer in self.network.paths():
            for i, state in enumerate(getattr(layer, "states", None) or ()):
                tensors[f"states/{path_}/{i}"] = state
        tensors |= {f"optimizer/{key}": value for key, value in self.compiled.optimizer.state().items()}
        for name, value in tensors.items():
            if not np.isfinite(value).all():
                raise NotFinite(
                    f"epoch {self.epoch}, before batch {self.batch}: {name}: expected finite numbers, found NaN or "
                    f"inf; {os.fspath(path)} is still the checkpoint before; lower the learning rate, or clip gradients"
                )
        rate = self.compiled.optimizer.learning_rate
        loss, rows, metrics = self.meter.state()
        facts = {
            "version": _VERSION,
            "about": self.about,
            "epoch": self.epoch,
            "batch": self.batch,
            "stopped": self.stopped,
            "learning_rate": None if callable(rate) else float(rate),
            "history": {"epoch": self.history.epoch, "history": self.history.history},
            "loss": [loss, rows],
            "metrics": [_parted(f"metrics/{i}", state, tensors) for i, state in enumerate(metrics)],
            "callbacks": [_parted(f"callbacks/{i}", c.state(), tensors) for i, c in enumerate(self._keepers())],
        }
        write_safetensors(path, tensors, {_KEY: json.dumps(facts, separators=(",", ":"))})

    def _weights(self) -> Iterator[tuple[str, Layer, str, Array]]:
        for path, layer in self.network.paths():
            for name, value in layer.weights.items():
                yield path, layer, name, value

    # -- going on --------------------------------------------------------------------------

    def go_on(self, saved: Checkpoint, steps: int | None = None) -> None:
        """Take the state of a checkpoint over; `go_on_callbacks` takes that of callbacks, once they have begun.

        ``steps`` are the batches of an epoch, where that is known.

        Raises
        ------
        ValueError
            If it is of another run, naming what differs. Nothing has been changed then.
        FormatError
            If it contradicts itself.
        """
        if different := list(_differences(saved.facts["about"], self.about)):
            more = f", and {len(different) - 4} more" if len(different) > 4 else ""
            raise ValueError(
                f"{saved.path}: expected a checkpoint of this run, found one where {', '.join(different[:4])}{more}; "
                f"{_ELSE}"
            )
        with Source(saved.path, b"").parsing("checkpoint", "the state of the run that it describes"):
            weights, states, slots = self._checked(saved)
            history, epoch, batch = (saved.facts[key] for key in ("history", "epoch", "batch"))
            if history["epoch"] != list(range(self.epoch, self.epoch + len(history["epoch"]))):
                raise ValueError("a history of other epochs")
            if epoch != self.epoch + len(history["epoch"]) or (steps is not None and batch >= steps):
                raise ValueError(f"a position after epoch {epoch}, batch {batch}, that the run has not come to"[:200])
            loss, rows = map(_number, saved.facts["loss"])
            metrics = [{**state, **saved.copied(f"metrics/{i}/")} for i, state in enumerate(saved.facts["metrics"])]
            for state in metrics:
                [_number(value) for value in state.values() if not isinstance(value, (bool, np.ndarray))]
            if len(saved.facts["callbacks"]) != len(self._keepers()) or len(metrics) not in (
                0,
                len(self.about["metrics"]),
            ):
                raise ValueError("states of other callbacks or metrics")
            self._rate(saved.facts["learning_rate"])
            self.compiled.optimizer.set_state(slots)
        for path, layer in self.network.paths():
            for name, value in layer.weights.items():
                value[...] = weights[f"{path}/{name}"]
            if layer.weights:
                layer.assign(layer.weights)  # packs them
            if hasattr(layer, "states"):
                layer.states = states[path] or None
        self.meter.set_state(loss, rows, metrics, saved.path)
        self.history = _history(saved.facts["history"])
        self.epoch, self.batch, self.stopped = (saved.facts[key] for key in ("epoch", "batch", "stopped"))

    def go_on_callbacks(self, saved: Checkpoint) -> None:
        """Give callbacks the states they had."""
        for i, (call, state) in enumerate(zip(self._keepers(), saved.facts["callbacks"], strict=True)):
            try:
                call.set_state({**state, **saved.copied(f"callbacks/{i}/")})
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                name = type(call).__name__
                raise FormatError(
                    f"{saved.path}: callback {i} ({name}): expected its state, found {error!r}"
                ) from error

    def _rate(self, saved: Any) -> None:
        optimizer = self.compiled.optimizer
        if not callable(optimizer.learning_rate):
            optimizer.learning_rate = learning_rate(_number(saved), 0)

    def _checked(self, saved: Checkpoint) -> tuple[dict[str, Array], dict[str, list[Array]], dict[str, Array]]:
        """Weights, states by layer, and slots, all of the shapes that this run's have, and finite."""
        weights, slots, states = saved.part("weights/"), saved.part("optimizer/"), {}
        own = {f"{path}/{name}": value.shape for path, _, name, value in self._weights()}
        if set(weights) != set(own):
            raise ValueError("weights of other names")
        for key, value in weights.items():
            _same(key, value, own[key])
        steps = slots["iterations"]
        if steps.dtype != np.int64 or steps.ndim or steps < 0:
            raise ValueError("no number of steps")
        for key, value in slots.items():
            if key != "iterations":
                _same(key, value, own[key.partition("/")[2]])
        for path, layer in self.network.paths():
            found = {key: v for key, v in saved.part(f"states/{path}/").items() if "/" not in key}
            states[path] = [np.array(found[str(i)]) for i in range(len(found))]
            cells = getattr(layer, "cells", [])
            if found and (not getattr(layer, "stateful", False) or len(found) != len(cells)):
                raise ValueError(f"{len(found)} states for {path}")
            for state, cell in zip(states[path], cells, strict=False):
                _same(path, state, (len(state), cell.units))
        return weights, states, slots


def _same(name: str, found: Array, shape: tuple[int, ...]) -> None:
    if found.dtype != np.float32 or found.shape != shape or not np.isfinite(found).all():
        raise ValueError(f"{name}: expected finite float32 of shape {shape}, found {found.dtype} of {found.shape}")


def _parted(prefix: str, state: Mapping[str, Any], tensors: dict[str, Array]) -> dict[str, Any]:
    """A state without its arrays, which go to ``tensors``."""
    arrays = {key: value for key, value in state.items() if isinstance(value, np.ndarray)}
    tensors.update({f"{prefix}/{key}": value for key, value in arrays.items()})
    return {k: v.item() if isinstance(v, np.generic) else v for k, v in state.items() if k not in arrays}


def _history(facts: Mapping[str, Any]) -> History:
    logs = {str(key): [float(_number(v)) for v in values] for key, values in facts["history"].items()}
    return History([_count(number) for number in facts["epoch"]], logs)


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no count"[:100])
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float):
        raise ValueError(f"{value!r} is no number"[:100])
    return float(value)


def _described(value: Any, depth: int = 5) -> Any:
    """What tells one object from another of its class: plain values, in lists and dicts."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if not depth:
        return type(value).__name__
    if isinstance(value, (list, tuple)):
        return [_described(v, depth - 1) for v in value]
    if hasattr(value, "__qualname__"):  # a function
        return value.__qualname__
    kept = {k: v for k, v in getattr(value, "__dict__", {}).items() if not k.startswith("_")}
    return {"class": type(value).__name__, **{k: _described(v, depth - 1) for k, v in kept.items()}}


def _differences(there: Any, here: Any, where: str = "") -> Iterator[str]:
    """What differs between two trees of plain values, in words."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in [*here, *(key for key in there if key not in here)]:
            yield from _differences(there.get(key), here.get(key), f"{where} {key}".strip())
    elif there != here:
        yield f"{where[:160]} is {_short(there)} and here {_short(here)}"


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("class", "given"))[:80]
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
