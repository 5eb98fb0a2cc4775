"""Inputs that fit a model, to compare two copies of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..layers.base import Array
from ..layers.core import Embedding, Identity, Input
from ..layers.onnx_input import OnnxInput
from ..layers.recurrent import RNN
from .plan import Graph, Ref, leaves


def sample_inputs(graph: Graph, ends: Sequence[Input]) -> list[Array] | None:
    """One random array per input, drawn with a fixed seed; None where shapes cannot be told."""
    rng = np.random.default_rng(20240501)
    samples: list[Array] = []
    if ends and isinstance(ends[0], OnnxInput):
        return _onnx_samples(ends, rng)
    for end, slot in zip(ends, graph.inputs, strict=True):
        users: list[Any] = [n.layer for n in graph.nodes if leaves(n.x, Ref) == [Ref(slot)]]
        first: Any = next((u for u in users if not isinstance(u, Identity)), None)
        shape = end.shape
        if isinstance(getattr(first, "graph", None), Graph) and len(first.inputs) == 1:
            inner = sample_inputs(first.graph, first.inputs)  # a nested model
            if inner is None:
                return None
            samples += inner
            continue
        if shape is None and isinstance(first, Embedding):
            shape = (None,)
        elif shape is None and isinstance(first, RNN):
            shape = (None, first.cells[0].width)
        if shape is None or np.prod([n or 1 for n in shape], dtype=float) > 1e6:
            return None
        whole = (4, *(7 if n is None else n for n in shape))
        if isinstance(first, Embedding):
            samples.append(rng.integers(0, first.input_dim, whole))
        elif end.dtype.startswith(("int", "uint", "bool")):
            samples.append(rng.integers(0, 2, whole))
        else:
            samples.append(rng.standard_normal(whole).astype(np.float32))
    return samples


def _onnx_samples(ends: Sequence[Input], rng: np.random.Generator) -> list[Array] | None:
    sizes: dict[str, int] = {}
    samples = [end.sample(rng, sizes) for end in ends if isinstance(end, OnnxInput)]
    known = [x for x in samples if x is not None]
    return known if len(known) == len(samples) else None
