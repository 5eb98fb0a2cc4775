"""Inputs on which two copies of a model must agree: random ones, and the edges where wrong copies part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import nn
from ..graph import sample_inputs
from ..layers.base import Array
from ..layers.core import Embedding, Masking
from ..models import Model, walk

__all__ = ["Case", "cases", "gru_cases", "score", "skipped"]

#: Far out on every activation: gates that are 0 or 1, n that is -1 or 1.
_SATURATING = np.float32(50.0)


@dataclass(frozen=True)
class Case:
    """Inputs by a name; ``lengths`` as `Model.predict` takes them, for the inputs that have a time axis."""

    name: str
    inputs: list[Array]
    lengths: list[Any] | None = None


def cases(model: Model, rows: int | None = None) -> list[Case]:
    """Random inputs, zeros, saturation, one step, the model's own masks, lengths; empty where shapes are not known.

    ``rows``, for models of a fixed batch size, is how many.
    """
    samples = sample_inputs(model.graph, model.inputs)
    if samples is None:
        return []
    if rows is not None:
        samples = [np.concatenate([x] * -(-rows // len(x)))[:rows] for x in samples]
    return list(_cases(model, samples))


def _cases(model: Model, samples: list[Array]) -> Iterator[Case]:
    yield Case("random", samples)
    yield Case("zeros", [np.zeros_like(x) for x in samples])
    if any(x.dtype.kind == "f" for x in samples):
        yield Case("saturating", [x * _SATURATING if x.dtype.kind == "f" else x for x in samples])
    # an axis after the batch whose size is free is time
    free = [end.shape is None or (len(end.shape) > 0 and end.shape[0] is None) for end in model.inputs]
    if any(free) and not model.one_batch:
        yield Case("one step", [x[:, :1] if f and x.ndim > 1 else x for x, f in zip(samples, free, strict=True)])
    padding = _padding(model)
    if padding:
        yield Case("masked", [_masked(x, padding) for x in samples])
    timed = [x.ndim == 3 or (x.ndim == 2 and x.dtype.kind in "iu") for x in samples]
    if any(timed) and not model.one_batch:
        yield Case("lengths", samples, [_lengths(x) if t else None for x, t in zip(samples, timed, strict=True)])


def skipped(model: Model | nn.GRU | nn.GRUCell, made: list[Case]) -> dict[str, str]:
    """Why the other kinds of input are not among ``made``, the cases of the model; empty where there are none."""
    if isinstance(model, Model):
        whole = "the graph of an ONNX file has no axis known to be time" if model.format == "onnx" else ""
        whole = whole or ("rows and steps of a stateful or time-major model are its own" if model.one_batch else "")
        why = {
            "saturating": "all inputs are ids",
            "one step": whole or "the number of steps is fixed",
            "masked": "no layer masks steps",
            "lengths": whole or "no input has steps",
        }
    else:
        why = {"one step": "a cell knows no other", "masked": "a GRU of PyTorch masks nothing"}
        why["lengths"] = "they come beside a GRU of PyTorch, by packed sequences"
    names = {case.name for case in made}
    return {kind: reason for kind, reason in why.items() if kind not in names} if made else {}


def _padding(model: Model) -> dict[str, float]:
    """What marks a step as padding: of features ("f"), of ids ("i")."""
    found: dict[str, float] = {}
    for layer in walk(model):
        if isinstance(layer, Masking):
            found["f"] = layer.mask_value
        elif isinstance(layer, Embedding) and layer.mask_zero:
            found["i"] = 0
    return found


def _masked(x: Array, padding: dict[str, float]) -> Array:
    """Padding on the right, on the left, in the middle, and everywhere, a row each."""
    value = padding.get("i" if x.dtype.kind in "iu" else "f")
    if value is None or x.ndim < 2 or x.shape[1] < 2:
        return x
    marked = x.copy()
    steps = x.shape[1]
    spans = [slice(steps // 2, None), slice(0, 1), slice(1, -1), slice(None)]
    for row, span in zip(marked, spans, strict=False):
        row[span] = value
    return marked


def _lengths(x: Array) -> Array:
    """All steps, some, one and none."""
    steps = x.shape[1]
    return np.resize(np.array([steps, max(1, steps - 2), min(1, steps), 0]), len(x))


def gru_cases(gru: nn.GRU | nn.GRUCell) -> list[Case]:
    """x and h0 in PyTorch's shapes: random, zeros, saturating, one step."""
    rng = np.random.default_rng(20240501)
    rows, steps = 4, 7

    def case(name: str, factor: float, length: int = steps) -> Case:
        if isinstance(gru, nn.GRUCell):
            shapes: list[tuple[int, ...]] = [(rows, gru.input_size), (rows, gru.hidden_size)]
        else:
            first = (rows, length) if gru.batch_first else (length, rows)
            states = gru.num_layers * (2 if gru.bidirectional else 1)
            shapes = [(*first, gru.input_size), (states, rows, gru.hidden_size)]
        x, h0 = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
        return Case(name, [x * np.float32(factor), h0 * np.float32(min(factor, 1.0))])

    made = [case("random", 1.0), case("zeros", 0.0), case("saturating", float(_SATURATING))]
    return made if isinstance(gru, nn.GRUCell) else [*made, case("one step", 1.0, 1)]


def score(model: Model | nn.GRU | nn.GRUCell, case: Case) -> list[Array]:
    """The outputs of a model, from fresh states; of a PyTorch-shaped GRU y and h_n, for x and h0."""
    if not isinstance(model, Model):
        y = model(*case.inputs)
        return list(y) if isinstance(y, tuple) else [y]
    model.reset_states()
    x: Any = case.inputs if len(case.inputs) > 1 else case.inputs[0]
    lengths: Any = case.lengths if case.lengths is None or len(case.inputs) > 1 else case.lengths[0]
    y = model.predict(x, lengths=lengths)
    model.reset_states()
    if isinstance(y, dict):
        return list(y.values())
    return y if isinstance(y, list) else [y]
