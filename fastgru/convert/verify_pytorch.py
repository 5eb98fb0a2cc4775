"""Weights by PyTorch's names, proven: each module on the inputs that its layer had, in fastgru's nn and in PyTorch.

A state_dict has no graph to run, so the model runs, and every layer with weights is compared on what went into it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .. import loading, nn
from ..formats import ModelFile
from ..layers.activations import PReLU
from ..layers.base import Array, Layer
from ..layers.bidirectional import Bidirectional
from ..layers.core import Dense, TimeDistributed
from ..layers.normalization import BatchNormalization, LayerNormalization
from ..layers.recurrent import RNN
from ..models import Model
from . import frameworks
from .cases import Case, gru_cases, score, skipped
from .report import Comparison, Report
from .to_pytorch import Module, modules
from .trace import Call, trace

__all__ = ["compare_modules", "compare_state_dict"]

#: A module on an input (and, for GRUs, h0 or None): its output, for GRUs (y, h_n), all NumPy arrays, batch first.
Run = Callable[..., Any]


def compare_modules(model: Model, copy: ModelFile, made: list[Case], report: Report) -> None:
    """Compare every module of a model's state_dict with the layers that it stands for."""
    parts = modules(model)
    own = {part.name: _own_gru(part, copy) for part in parts if part.kind == "GRU"}
    torch = frameworks.Torch.load(copy, report)
    theirs = {part.name: torch.module(part) for part in parts} if torch else {}
    errors = {part.name: Comparison(part.name or "the whole model", part.kind) for part in parts}
    beside = Comparison("PyTorch")
    report.skipped = skipped(model, made)
    for case in made:
        if case.lengths is not None:
            report.skipped[case.name] = "they are no weights: PyTorch is given them by packed sequences"
            continue
        outputs = Comparison(case.name)
        calls = trace(model, case.inputs)
        for part in parts:
            firsts = [c for c in calls if c.path == part.paths[0]]
            lasts = [c for c in calls if c.path == part.paths[-1]]
            for first, last in zip(firsts, lasts, strict=True):
                for run, whole in ((own.get(part.name), None), (theirs.get(part.name), beside)):
                    if run is not None:
                        found = _apply(run, first, last)
                        for a, b in zip((found[i] for i in last.numbers), last.y, strict=True):
                            for comparison in filter(None, (errors[part.name], outputs, whole)):
                                comparison.add(a, b)
        report.inputs.append(outputs)
    report.layers = [errors[name] for name in (theirs or own)]
    if rest := [part.name for part in parts if not theirs and part.name not in own]:
        report.notes.append(f"by their weights alone, since PyTorch is not installed: {', '.join(rest)}")
    if torch:
        torch.done(beside)
    report.expect([*report.layers, *report.inputs, beside])


def compare_state_dict(
    gru: Model | nn.GRU | nn.GRUCell, tensors: Mapping[str, Array], prefix: str, report: Report
) -> None:
    """Compare a GRU with the one that the target holds at ``prefix``, and with torch.nn of the target."""
    assert not isinstance(gru, Model)
    copy = ModelFile("", "", None, dict(tensors), (), report.target)
    again = loading.from_file(copy, prefix)
    assert not isinstance(again, Model)
    if isinstance(gru, nn.GRU) and isinstance(again, nn.GRU):
        again.batch_first = gru.batch_first
    part = modules(gru)[0]
    part = Module(prefix.removesuffix("."), part.kind, part.arguments, part.tensors, ())
    torch = frameworks.Torch.load(copy, report)
    theirs = torch.module(part) if torch else None
    error, beside = Comparison(prefix.removesuffix(".") or part.kind, part.kind), Comparison("PyTorch")
    made = gru_cases(gru)
    report.skipped |= skipped(gru, made)
    for case in made:
        expected = score(gru, case)
        outputs = Comparison(case.name)
        for comparison, run in ((error, again), (beside, theirs)):
            if run is not None:
                for a, b in zip(_listed(run(*case.inputs)), expected, strict=True):
                    comparison.add(a, b)
                    outputs.add(a, b)
        report.inputs.append(outputs)
    report.layers.append(error)
    if torch:
        torch.done(beside)
    report.expect([error, *report.inputs, beside])


def _own_gru(part: Module, copy: ModelFile) -> Run:
    gru = loading.from_file(copy, part.name)
    assert isinstance(gru, nn.GRU)
    gru.batch_first = True
    return gru


def _listed(y: Any) -> list[Array]:
    return [np.asarray(v) for v in (y if isinstance(y, (list, tuple)) else [y])]


def _apply(run: Run, first: Call, last: Call) -> list[Array]:
    """What the layer (or the stack of GRUs from ``first`` to ``last``) gives, by way of its module."""
    layer = last.layer
    if isinstance(layer, (RNN, Bidirectional)):
        x, *states = first.x if isinstance(first.x, list) else [first.x]
        given = states or (_listed(first.state) if first.state is not None else [])
        h0 = np.stack(given) if given else None
        return _recurrent_outputs(layer, *run(np.asarray(x, np.float32), h0))
    return [_on_features(run, layer, np.asarray(first.x))]


def _recurrent_outputs(layer: RNN | Bidirectional, y: Array, h_n: Array) -> list[Array]:
    """What Keras returns, from what PyTorch does: the last step is the last state of each direction."""
    both = isinstance(layer, Bidirectional)
    half: RNN = layer.forward_layer if isinstance(layer, Bidirectional) else layer
    output = y if half.return_sequences else np.concatenate(list(h_n[-2 if both else -1 :]), axis=-1)
    states = list(h_n[-2 * len(half.cells) if both else -len(half.cells) :]) if half.return_state else []
    return [output, *states]


def _on_features(run: Run, layer: Layer, x: Array) -> Array:
    """A layer that works on features, by a module that has them elsewhere."""
    if isinstance(layer, TimeDistributed):
        y = _on_features(run, layer.layer, x.reshape(-1, *x.shape[2:]))
        return y.reshape(*x.shape[:2], *y.shape[1:])
    if isinstance(layer, BatchNormalization):
        return _moved(run, x, layer.axis, 1)
    if isinstance(layer, PReLU):
        return _moved(run, x, -1, 1) if x.ndim > 1 else np.asarray(run(x))
    if isinstance(layer, LayerNormalization):
        axes = sorted(axis % x.ndim for axis in layer.axis)
        ends = list(range(x.ndim - len(axes), x.ndim))
        return np.moveaxis(run(np.moveaxis(x, axes, ends)), ends, axes)
    y = np.asarray(run(x))
    if isinstance(layer, Dense):
        if layer._layer is not None:
            return np.asarray(layer._layer.forward(y, None, None)[0])
        return y if layer._apply is None else layer._apply(y)
    return y


def _moved(run: Run, x: Array, axis: int, to: int) -> Array:
    return np.moveaxis(run(np.moveaxis(x, axis, to)), to, axis)
