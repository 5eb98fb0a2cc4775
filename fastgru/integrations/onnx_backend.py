"""The interface of `onnx.backend.base.Backend`, as functions of this module, so that `onnx.backend.test` can judge us.

import fastgru.integrations.onnx_backend as backend
outputs = backend.prepare(model, "CPU").run(inputs)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..formats import FormatError, read_bytes
from ..models import Model

__all__ = ["Rep", "is_compatible", "prepare", "run_model", "run_node", "supports_device"]


class Rep:
    """A model that is ready to run: what `prepare` returns."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def run(self, inputs: Any, **options: Any) -> tuple[np.ndarray[Any, Any], ...]:
        """The outputs, in the order of the graph.

        Parameters
        ----------
        inputs
            A list of arrays in the order of the graph, a dict by name, or one array.
        **options
            ``num_threads``, as in `Model.predict`.
        """
        given = inputs if isinstance(inputs, (Mapping, list, tuple)) else [inputs]
        outputs = self.model.predict(given, **options)
        return tuple(outputs) if isinstance(outputs, list) else (outputs,)


def supports_device(device: str) -> bool:
    """True for "CPU", with or without a number after it."""
    return device.split(":")[0] == "CPU"


def is_compatible(model: Any, device: str = "CPU", **options: Any) -> bool:
    """Whether `prepare` takes the model."""
    try:
        prepare(model, device)
    except FormatError:
        return False
    return supports_device(device)


def prepare(model: Any, device: str = "CPU", **options: Any) -> Rep:
    """Read an ``onnx.ModelProto`` as `fastgru.load` reads a file.

    Raises
    ------
    FormatError
        For what is not supported, naming the node.
    ValueError
        For a device other than the CPU.
    """
    if not supports_device(device):
        raise ValueError(f"device: expected 'CPU', found {device!r}")
    return Rep(Model.from_model_file(read_bytes(model.SerializeToString(), "<ModelProto>")))


def run_model(model: Any, inputs: Any, device: str = "CPU", **options: Any) -> tuple[np.ndarray[Any, Any], ...]:
    """`prepare` and run once."""
    return prepare(model, device).run(inputs, **options)


def run_node(
    node: Any,
    inputs: Sequence[Any],
    device: str = "CPU",
    outputs_info: Sequence[tuple[Any, tuple[int, ...]]] | None = None,
    *,
    opset_version: int | None = None,
    **options: Any,
) -> tuple[np.ndarray[Any, Any], ...]:
    """Run one ``onnx.NodeProto`` on its inputs, in the order of those that it names.

    ``opset_version`` is what the node is written for: by default the newest that both onnx and fastgru know.
    """
    import onnx

    from ..formats.onnx import OPSETS

    opset = min(onnx.defs.onnx_opset_version(), OPSETS[-1]) if opset_version is None else opset_version
    names = list(dict.fromkeys(name for name in node.input if name))
    if len(names) != len(inputs):
        raise ValueError(f"inputs: expected {len(names)} for {names}, found {len(inputs)}")
    arrays = [np.asarray(value) for value in inputs]
    helper = onnx.helper
    ends = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in zip(names, arrays, strict=True)
    ]
    given = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in node.output if name]
    graph = helper.make_graph([node], "node", ends, given)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    return run_model(model, arrays, device, **options)
