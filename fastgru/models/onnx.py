"""The graph of an ONNX file as a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..formats import FormatError, ModelFile
from ..graph.onnx_graph import read_onnx_graph
from ..layers.base import Array
from ..layers.onnx_control import turns
from ..layers.onnx_input import OnnxInput, onnx_inputs
from .model import Model


class OnnxModel(Model):
    """The graph of an ONNX file. Always run whole: no axis is known to be the batch."""

    _ends: tuple[OnnxInput, ...] = ()
    _tensors: dict[str, Array] = {}

    @classmethod
    def from_onnx(cls, file: ModelFile) -> OnnxModel:
        """The model that an ONNX file, or one of our own made from it, holds."""
        config = (file.config or {}).get("config")
        if not isinstance(config, Mapping):
            raise FormatError(f"{file.path}: expected the config of an ONNX graph, found {str(config)[:80]}")
        read = read_onnx_graph(config, file.tensors, file.path)
        model = cls(read.graph, read.layers, read.inputs, read.output_names, name=str(config.get("name") or "onnx"))
        model._ends = read.inputs
        model._tensors = dict(file.tensors)
        model._entry = {"class_name": "OnnxGraph", "config": config}
        model.format, model.version, model.notes = file.format, file.version, file.notes
        model._one_batch = model.ready = True
        return model

    def predict(
        self,
        x: Any,
        lengths: Any = None,
        mask: Any = None,
        batch_size: int | None = None,
        num_threads: int | None = None,
        verbose: bool | int | str = 0,
        steps: int | None = None,
    ) -> Any:
        """Run the graph on ``x``: an array, a list in the file's order, or a dict by input name.

        Returns one array, or a list of them in the file's order: floats as float32, whole numbers and booleans as
        they are. ``batch_size`` is not used. Graphs that know padding take it as an input of their own, so
        ``lengths`` and ``mask`` raise ValueError.
        """
        if lengths is not None or mask is not None:
            raise ValueError(f"lengths, mask: expected None; an ONNX graph takes what its inputs are: {self._names()}")
        inputs = onnx_inputs(x, self._ends)
        with turns():
            outputs, _ = self.graph.run(inputs, [None] * len(inputs), num_threads)
        return self._finish([_own(y, [*inputs, *outputs[:i]]) for i, y in enumerate(outputs)])

    def untrainable(self, through: bool = False) -> str:
        """Why the model cannot be trained: its nodes have no backward pass."""
        return (
            f"cannot train model {self.name!r}: it is an ONNX graph, whose nodes have no backward pass here; "
            "fastgru.convert to .keras gives layers, where the graph is a chain of them"
        )

    def train(self, x: Any, mask: Any, step: Any, initial_state: Any = None) -> Any:
        """Not possible: raises ValueError."""
        raise ValueError(self.untrainable())

    def _names(self) -> list[str]:
        return [end.name for end in self.inputs]

    def all_tensors(self) -> dict[str, Array]:
        return self._tensors

    def count_params(self) -> int:
        """The number of floats among the file's constants."""
        return sum(int(v.size) for v in self._tensors.values() if v.dtype.kind == "f")


def _own(y: Array, others: list[Array]) -> Array:
    """An array that shares memory with nothing else, and can be written to."""
    shared = not (y.flags.writeable and y.flags.c_contiguous) or any(np.may_share_memory(y, v) for v in others)
    return np.array(y, order="C") if shared else y
