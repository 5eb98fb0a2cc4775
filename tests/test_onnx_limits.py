"""ONNX graphs that ask for more than a model needs: the size of what a node makes, and how often weights are packed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastgru import formats
from fastgru.models import Model
from fastgru.models.onnx import OnnxModel

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'fastgru[onnx]'")
helper, FLOAT, INT64 = onnx.helper, onnx.TensorProto.FLOAT, onnx.TensorProto.INT64


def graph_of(nodes: list[Any], inputs: dict[str, Any], outputs: list[str], **constants: Any) -> OnnxModel:
    """A loaded model of some nodes. ``inputs``: name → (element type, shape)."""
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "test",
            [helper.make_tensor_value_info(n, *spec) for n, spec in inputs.items()],
            [helper.make_tensor_value_info(n, FLOAT, None) for n in outputs],
            [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
    )
    loaded = Model.from_model_file(formats.read_bytes(model.SerializeToString()))
    assert isinstance(loaded, OnnxModel)
    return loaded


@pytest.mark.parametrize(
    ("op", "inputs", "attributes"),
    [
        ("Expand", ["x", "huge"], {}),
        ("Tile", ["x", "huge"], {}),
        ("ConstantOfShape", ["huge"], {}),
        ("Pad", ["x", "pads"], {}),
        ("OneHot", ["ids", "huge", "values"], {}),
        ("Range", ["zero", "many", "one"], {}),
    ],
)
def test_no_node_makes_arrays_of_any_size(op: str, inputs: list[str], attributes: dict[str, Any]) -> None:
    constants: dict[str, Any] = {
        "huge": np.array([10**10]),
        "pads": np.array([0, 10**10]),
        "ids": np.array([1]),
        "values": np.array([0, 1], np.float32),
        "zero": np.array(0),
        "one": np.array(1),
        "many": np.array(10**10),
    }
    used = {name: value for name, value in constants.items() if name in inputs}
    nodes = [helper.make_node(op, inputs, ["made"], **attributes), helper.make_node("Size", ["made"], ["size"])]
    nodes += [helper.make_node("Cast", ["size"], ["count"], to=FLOAT), helper.make_node("Add", ["x", "count"], ["y"])]
    model = graph_of(nodes, {"x": (FLOAT, [1])}, ["y"], **used)
    with pytest.raises(ValueError, match=f"{op}.*expected to make at most"):
        model.predict(np.ones(1))


@pytest.mark.parametrize(
    ("op", "inputs"),
    [
        ("MatMul", ["column", "row"]),
        ("MatMul", ["stack", "others"]),
        ("MatMul", ["long", "packed"]),
        ("Gemm", ["column", "row"]),
        ("Add", ["column", "row"]),
        ("Max", ["x", "column", "row"]),
        ("Where", ["yes", "column", "row"]),
        ("Concat", ["long", "long"]),
        ("Gather", ["row", "ids"]),
        ("BatchNormalization", ["column", *["line"] * 4]),
        ("GRU", ["steps", "w", "r"]),
    ],
)
def test_no_node_makes_a_large_array_of_views(op: str, inputs: list[str]) -> None:
    """A number expanded to many places takes no memory; what is computed from it would."""
    wide = {"column": (70_000, 1), "row": (1, 70_000), "line": (70_000,)}
    wide |= {
        "stack": (1_000_000, 1, 1, 40),
        "others": (1_000, 40, 1),
        "long": (400_000_000, 1),
        "steps": (1, 400_000_000, 1),
    }
    nodes = [helper.make_node("Expand", ["x", f"to_{name}"], [name]) for name in wide]
    nodes.append(helper.make_node("Cast", ["column"], ["ids"], to=INT64))
    nodes.append(helper.make_node(op, inputs, ["y"], **({"axis": 0} if op == "Concat" else {})))
    constants: dict[str, Any] = {f"to_{name}": np.array(shape) for name, shape in wide.items()}
    constants |= {"yes": np.array([[True]]), "packed": np.ones((1, 2), np.float32)}
    constants |= {"w": np.ones((1, 6, 1), np.float32), "r": np.ones((1, 6, 2), np.float32)}
    model = graph_of(nodes, {"x": (FLOAT, [1])}, ["y"], **constants)
    with pytest.raises(ValueError, match=f"{op}.*expected to make at most"):
        model.predict(np.zeros(1))
