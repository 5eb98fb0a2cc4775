"""ONNX graphs made in tests; needs the onnx package."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastgru import formats
from fastgru.models import Model
from fastgru.models.onnx import OnnxModel

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'fastgru[onnx]'")
helper, FLOAT, INT64 = onnx.helper, onnx.TensorProto.FLOAT, onnx.TensorProto.INT64


def graph_of(
    nodes: list[Any], inputs: dict[str, Any], outputs: list[str], opset: int = 17, **constants: Any
) -> OnnxModel:
    """A loaded model of some nodes. ``inputs``: name → (element type, shape)."""
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "test",
            [helper.make_tensor_value_info(n, *spec) for n, spec in inputs.items()],
            [helper.make_tensor_value_info(n, FLOAT, None) for n in outputs],
            [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
    )
    loaded = Model.from_model_file(formats.read_bytes(model.SerializeToString()))
    assert isinstance(loaded, OnnxModel)
    return loaded
