"""ONNX graphs that ask for more than a model needs: the size of what a node makes, and how often weights are packed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers_onnx import FLOAT, INT64, graph_of, helper, onnx

from fastgru.models.onnx import OnnxModel


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


@pytest.mark.parametrize(
    ("op", "inputs", "attributes"),
    [
        ("OneHot", ["none", "many", "values"], {}),
        ("ReduceSum", ["hidden", "axis"], {}),
        ("ReduceLogSumExp", ["hidden"], {"axes": [0]}),
        ("LayerNormalization", ["turned", "nothing"], {}),
        ("ArgMax", ["bytes"], {"axis": 0}),
        ("Cast", ["bytes"], {"to": FLOAT}),
        ("CastLike", ["bytes", "x"], {}),
        ("Sqrt", ["bytes"], {}),
        ("Sigmoid", ["bytes"], {}),
        ("Softmax", ["bytes"], {}),
        ("ReduceL2", ["bytes"], {"keepdims": 0}),
        ("Pow", ["bytes", "two"], {}),
        ("MatMul", ["flat", "tall"], {}),
        ("GRU", ["empty", "w", "r"], {"hidden_size": 1}),
    ],
)
def test_no_node_makes_a_large_array_of_small_ones(op: str, inputs: list[str], attributes: dict[str, Any]) -> None:
    """Of no elements, of elements of a byte, and matrices of one column, which are packed as a whole vector."""
    many, shapes = 800_000_000, {"hidden": (0, 800_000_000), "turned": (800_000_000, 0), "none": (0,)}
    nodes = [
        helper.make_node("ConstantOfShape", [f"to_{name}"], [name], value=helper.make_tensor("v", kind, [1], [0]))
        for name, kind in {"hidden": FLOAT, "turned": FLOAT, "none": INT64}.items()
    ]
    wide = {"bytes": (1, many), "flat": (1, many // 16), "tall": (many // 16, 1), "w": (1, 3, many // 16)}
    nodes.append(helper.make_node("Cast", ["x"], ["bit"], to=onnx.TensorProto.BOOL))
    for name in wide:
        nodes.append(helper.make_node("Expand", ["bit" if name == "bytes" else "x", f"to_{name}"], [name]))
    nodes.append(helper.make_node(op, inputs, ["large"], **attributes))
    nodes += [helper.make_node("Size", ["large"], ["size"]), helper.make_node("Cast", ["size"], ["count"], to=FLOAT)]
    nodes.append(helper.make_node("Add", ["x", "count"], ["y"]))
    constants: dict[str, Any] = {f"to_{name}": np.array(shape) for name, shape in {**shapes, **wide}.items()}
    constants |= {"many": np.array(many), "axis": np.array([0]), "values": np.array([0, 1], np.float32)}
    constants["two"] = np.array(2)
    constants |= {"nothing": np.ones(0, np.float32), "r": np.ones((1, 3, 1), np.float32)}
    constants["empty"] = np.ones((1, 0, 1), np.float32)
    model = graph_of(nodes, {"x": (FLOAT, [1])}, ["y"], **constants)
    with pytest.raises(ValueError, match=f"{op}.*expected to make at most"):
        model.predict(np.ones(1))


# -- weights that nodes share ------------------------------------------------------------------


def shared(op: str, count: int, biases: int = 1) -> OnnxModel:
    """A chain of ``count`` nodes with one set of weights, and ``biases`` vectors that go round."""
    rng = np.random.default_rng(0)
    size = 64
    constants: dict[str, Any] = {"w": rng.uniform(-0.1, 0.1, (size, size)).astype(np.float32)}
    if op == "GRU":
        constants["w"] = rng.uniform(-0.1, 0.1, (2, 3 * size, size)).astype(np.float32)
        constants["r"] = rng.uniform(-0.1, 0.1, (2, 3 * size, size)).astype(np.float32)
    width = (2, 6 * size) if op == "GRU" else (size,)
    constants |= {f"b{i}": rng.uniform(-0.1, 0.1, width).astype(np.float32) for i in range(biases)}
    nodes = []
    for i in range(count):
        given = [
            f"h{i}" if i else "x",
            *(["w", "r"] if op == "GRU" else ["w"]),
            *([f"b{i % biases}"] if op != "MatMul" else []),
        ]
        if op == "GRU":
            nodes.append(helper.make_node("GRU", given, [f"y{i}"], direction="bidirectional", hidden_size=size))
            nodes.append(helper.make_node("ReduceSum", [f"y{i}", "one"], [f"h{i + 1}"], keepdims=0))
            constants["one"] = np.array([1])
        else:
            nodes.append(helper.make_node(op, given, [f"h{i + 1}"], **({"transB": 1} if op == "Gemm" else {})))
    shape = [3, 2, size] if op == "GRU" else [2, size]
    return graph_of(nodes, {"x": (FLOAT, shape)}, [f"h{count}"], **constants)


def packed(model: OnnxModel) -> list[Any]:
    found = [getattr(layer, "_packed", None) for layer in model.layers if layer.class_name() != "ReduceSum"]
    return [cell for each in found if each is not None for cell in (each if isinstance(each, list) else [each])]


@pytest.mark.parametrize("op", ["GRU", "MatMul", "Gemm"])
def test_shared_weights_are_packed_once(op: str) -> None:
    model = shared(op, 50)
    assert len(packed(model)) == 50 * (2 if op == "GRU" else 1)
    assert len({id(cell) for cell in packed(model)}) == (2 if op == "GRU" else 1)


@pytest.mark.parametrize("op", ["GRU", "Gemm"])
def test_one_matrix_with_many_biases_is_packed_a_few_times(op: str) -> None:
    """Each bias would take a copy of the matrix: beyond a few, nodes pack when they run, to the same result."""
    size = 8 if op == "GRU" else 400
    model = shared(op, size, biases=size)
    made = {id(cell): cell for cell in packed(model)}
    held = sum(v.nbytes for v in model.all_tensors().values())
    assert sum(cell.nbytes for cell in made.values()) <= 8 * held + (2 << 20)
    if op == "Gemm":
        assert 0 < len(made) < size
    x = np.random.default_rng(1).uniform(-1, 1, model.inputs[0].whole).astype(np.float32)  # type: ignore[attr-defined]
    first = model.predict(x)
    for layer in model.layers:
        if hasattr(layer, "_packed"):
            layer._packed, layer._biased = None, False
    np.testing.assert_allclose(model.predict(x), first, rtol=1e-5, atol=1e-6)


def test_other_variants_are_packed_apart() -> None:
    """The same weights under other activations or another β are other cells."""
    w = np.random.default_rng(0).uniform(-1, 1, (1, 6, 2)).astype(np.float32)
    nodes = [
        helper.make_node("GRU", ["x", "w", "r"], ["y", "a"], hidden_size=2),
        helper.make_node("GRU", ["x", "w", "r"], ["z", "b"], hidden_size=2, linear_before_reset=1),
        helper.make_node("GRU", ["x", "w", "r"], ["u", "c"], hidden_size=2, activations=["Sigmoid", "Relu"]),
        helper.make_node("GRU", ["x", "w", "r"], ["v", "d"], hidden_size=2, clip=0.5),
        helper.make_node("Gemm", ["m", "g", "k"], ["e"]),
        helper.make_node("Gemm", ["m", "g", "k"], ["f"], beta=2.0),
        helper.make_node("MatMul", ["m", "g"], ["h"]),
    ]
    ends = {"x": (FLOAT, [3, 1, 2]), "m": (FLOAT, [1, 2])}
    g, k = np.eye(2, dtype=np.float32), np.ones(2, np.float32)
    model = graph_of(nodes, ends, list("abcdefh"), w=w, r=w, g=g, k=k)
    found = model.predict([np.ones((3, 1, 2)) * [[[1.0]], [[2.0]], [[3.0]]], np.ones((1, 2))])
    assert len({id(cell) for cell in packed(model)}) == 7
    assert len({round(float(y.reshape(-1)[0]), 6) for y in found}) == 7
