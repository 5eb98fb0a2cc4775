"""A Keras-shaped model one time step at a time: what `predict` gives for the sequence so far, not run again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ._core.stream import Stream
from .checks import F32, float32
from .graph import Graph, Ref
from .layers.activations import ELU, Activation, LeakyReLU, ReLU, Softmax, ThresholdedReLU
from .layers.base import Array, Layer, as_float32
from .layers.core import Dense, Embedding, Identity, Input, TimeDistributed
from .layers.normalization import BatchNormalization, LayerNormalization
from .layers.recurrent import RNN

__all__ = ["ModelStream"]

#: layers whose output at one step depends on that step alone
_STEPWISE = (
    Activation,
    BatchNormalization,
    Dense,
    ELU,
    Identity,
    Input,
    LayerNormalization,
    LeakyReLU,
    ReLU,
    Softmax,
    ThresholdedReLU,
    TimeDistributed,
)


class ModelStream:
    """One time step a call through a chain of layers, the GRUs' states kept inside. Made by `Model.stream`.

    One stream belongs to one batch of sequences and to one thread at a time; streams of a model share its weights.
    """

    def __init__(self, graph: Graph, batch_size: int, num_threads: int | None = None) -> None:
        if isinstance(batch_size, bool) or not hasattr(batch_size, "__index__") or batch_size < 1:
            raise ValueError(f"batch_size: expected a whole number >= 1, found {batch_size!r}")
        self.batch_size = int(batch_size)
        self._num_threads = num_threads
        self._streams: list[Stream] = []
        self._steps: list[Callable[[Array], Array]] = []
        in_time = True  # whether values still have a time axis, of length 1 here
        for layer in _chain(graph):
            in_time = self._add(layer, in_time)
        self._in_time = in_time

    def _add(self, layer: Layer, in_time: bool) -> bool:
        if isinstance(layer, RNN):
            if not in_time:
                raise _refusal(layer, "it takes a sequence, and a layer before it returned only its last output")
            for flag in ("go_backwards", "time_major", "return_state"):
                if getattr(layer, flag):
                    raise _refusal(layer, f"{flag}=True")
            for cell in layer.cells:
                self._add_gru(cell.packed)
            if not layer.return_sequences:
                self._steps.append(lambda x: x[:, 0])
                return False
            return True
        if isinstance(layer, Embedding):
            self._steps.append(lambda ids: self._embed(layer, ids))
        elif isinstance(layer, _STEPWISE):
            if not isinstance(layer, (Identity, Input)):
                self._steps.append(lambda x: layer.forward(x, None, self._num_threads)[0])
        else:
            raise _refusal(layer, "it needs more than the step at hand")
        return in_time

    def _add_gru(self, packed: Any) -> None:
        width = packed.input_size

        def convert(x: Any) -> F32:
            return float32(x, "x", (self.batch_size, width))

        stream = Stream([packed], self.batch_size, convert, self._num_threads)
        self._streams.append(stream)
        self._steps.append(lambda x: stream.step(x[:, 0])[:, None])

    def _embed(self, layer: Embedding, ids: Array) -> Array:
        if layer.mask_zero and not ids.all():
            raise ValueError(f"layer {layer.name!r} (Embedding): id 0 is padding; step only rows that have a next item")
        rows: Array = layer.forward(ids, None, None)[0]
        return rows

    @property
    def state(self) -> tuple[F32, ...]:
        """The state (N, H) of each GRU, first to last, to be read and written in place."""
        return tuple(stream.state[0] for stream in self._streams)

    def reset(self, rows: Any = None) -> None:
        """Set the states of some rows (a number, a list, a slice, a boolean mask), or of all, to zero."""
        for stream in self._streams:
            stream.reset(rows)

    def step(self, x: Any) -> F32:
        """Take one time step.

        Parameters
        ----------
        x : (N, I), or ids (N,) for a model that begins with an Embedding

        Returns
        -------
        float32, what `predict` gives for the sequences so far: (N, …), without a time axis.

        Raises
        ------
        TypeError, ValueError
            Naming what was expected and what was found.
        """
        value = np.asarray(x)
        if value.ndim < 1 or value.shape[0] != self.batch_size:
            raise ValueError(f"x: expected {self.batch_size} rows, found shape {value.shape}")
        value = value[:, None]
        for step in self._steps:
            value = step(value)
        if self._in_time:
            value = value[:, 0]
        return np.array(as_float32(value))  # the GRUs' own output arrays are filled again by the next step


def _chain(graph: Graph) -> Iterator[Layer]:
    """The layers of a model in which each feeds the next, those of inner models included."""
    slot = graph.inputs[0]
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise ValueError("stream: expected a model with one input and one output")
    for node in graph.nodes:
        simple = isinstance(node.x, Ref) and node.mask is None and node.state is None and len(node.outputs) == 1
        if not simple or node.x.slot != slot:
            raise _refusal(node.layer, "the layers do not form a chain")
        slot = node.outputs[0][1]
        inner: Any = node.layer
        if hasattr(inner, "graph"):
            yield from _chain(inner.graph)
        else:
            yield node.layer
    if slot != graph.outputs[0]:
        raise ValueError("stream: the layers of the model do not form a chain")


def _refusal(layer: Layer, why: str) -> ValueError:
    return ValueError(
        f"stream: can't take single steps through layer {layer.name!r} ({layer.class_name()}): {why}. Chains of "
        "Embedding, GRU, Dense, activations, normalisation and Dropout can be streamed; use predict for others"
    )
