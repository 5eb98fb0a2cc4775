"""The table of ONNX operators against the standard's own, and what changed between opsets against ONNX Runtime.

That each operator computes what the standard says is in test_parity_onnx_backend.py.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from fastgru import formats, ops
from fastgru.formats.onnx import OPSETS
from fastgru.layers.onnx_operators import OPERATORS
from fastgru.layers.onnx_products import product
from fastgru.models import Model

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'fastgru[onnx]'")
helper, FLOAT = onnx.helper, onnx.TensorProto.FLOAT


def schemas() -> dict[str, list[Any]]:
    """The standard operators that some opset from 7 on knows, in all versions that it may mean."""
    found = defaultdict(list)
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "" and schema.since_version <= OPSETS[-1]:
            found[schema.name].append(schema)
    for name, versions in found.items():
        oldest = max((s.since_version for s in versions if s.since_version <= OPSETS[0]), default=0)
        found[name] = [s for s in versions if s.since_version >= oldest]
    return found


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_the_table_agrees_with_the_standard(name: str) -> None:
    """Inputs, outputs and attributes of every version: none that is not known, none that does not exist."""
    versions = schemas().get(name)
    if versions is None:
        pytest.skip(f"this onnx ({onnx.__version__}) has no {name} yet")
    operator = OPERATORS[name][1]
    assert {a for s in versions for a in s.attributes} <= set(operator.attributes)
    assert min(s.min_input for s in versions) == operator.inputs[0]
    assert max(min(s.max_input, 1 << 20) for s in versions) <= operator.inputs[1]
    assert max(min(s.max_output, 1 << 20) for s in versions) <= operator.outputs


X = np.linspace(-2, 3, 24, dtype=np.float32).reshape(2, 3, 4)

# operator, opset, attributes, further inputs: forms that later opsets changed
OLD_FORMS: list[tuple[str, int, dict[str, Any], list[Any]]] = [
    ("InstanceNormalization", 7, {}, [np.float32([1, 2, 3]), np.float32([0, 1, 2])]),
    ("Softmax", 11, {}, []),
    ("Softmax", 11, {"axis": 2}, []),
    ("Softmax", 12, {"axis": -1}, []),
    ("Softmax", 13, {"axis": 0}, []),
    ("LogSoftmax", 8, {"axis": 2}, []),
    ("LogSoftmax", 13, {}, []),
    ("Clip", 7, {"min": -1.0, "max": 0.5}, []),
    ("Clip", 10, {}, []),
    ("Clip", 11, {}, [np.float32(-1)]),
    ("Clip", 13, {}, [None, np.float32(1)]),
    ("Slice", 9, {"starts": [0, -3], "ends": [1, 100], "axes": [0, 2]}, []),
    ("Slice", 7, {"starts": [1], "ends": [2]}, []),
    ("Slice", 13, {}, [np.array([-1]), np.array([-(1 << 62)]), np.array([2]), np.array([-2])]),
    ("Squeeze", 11, {"axes": [0]}, []),
    ("Unsqueeze", 11, {"axes": [0, 4]}, []),
    ("Unsqueeze", 13, {}, [np.array([-1, 0])]),
    ("ReduceSum", 11, {"axes": [1], "keepdims": 0}, []),
    ("ReduceSum", 13, {"noop_with_empty_axes": 1}, []),
    ("ReduceSum", 13, {"keepdims": 0}, [np.array([-1, 0])]),
    ("ReduceMean", 13, {"axes": [-1]}, []),
    ("ReduceMax", 18, {"keepdims": 0}, [np.array([0, 2])]),
    ("ReduceMin", 12, {}, []),
    ("Pad", 10, {"pads": [0, 1, 0, 0, 0, 2], "value": 0.5}, []),
    ("Pad", 13, {}, [np.array([0, -1, 0, 0, 0, 2]), np.float32(9)]),
    ("Pad", 18, {"mode": "edge"}, [np.array([1, 2]), None, np.array([-1])]),
    ("Dropout", 7, {"ratio": 0.5}, []),
    ("Dropout", 12, {}, [np.float32(0.5)]),
    ("Flatten", 9, {"axis": 2}, []),
    ("Flatten", 13, {"axis": -1}, []),
    ("Flatten", 11, {"axis": 3}, []),
    ("Reshape", 13, {}, [np.array([0, -1])]),
    ("Shape", 13, {}, []),
    ("Shape", 15, {"start": -2, "end": 5}, []),
    ("ArgMax", 12, {"axis": -1, "select_last_index": 1}, []),
    ("CumSum", 11, {"exclusive": 1, "reverse": 1}, [np.array(1)]),
    ("BatchNormalization", 9, {}, [np.arange(1, 4, dtype="f4"), np.ones(3, "f4"), np.ones(3, "f4"), np.ones(3, "f4")]),
    ("BatchNormalization", 15, {"epsilon": 0.1}, [np.ones(3, "f4")] * 4),
    ("Add", 7, {}, [np.ones((3, 1), "f4")]),
    ("Pow", 12, {}, [np.array(2, np.int64)]),
    ("Gather", 11, {"axis": 1}, [np.array([[-1, 0]])]),
    ("Selu", 6 + 1, {"alpha": 1.5, "gamma": 0.5}, []),
    ("HardSigmoid", 8, {}, []),
    ("LeakyRelu", 8, {}, []),
]


def old_form(op: str, opset: int, attributes: dict[str, Any], more: list[Any]) -> Any:
    constants = {f"c{i}": v for i, v in enumerate(more) if v is not None}
    names = ["x", *(f"c{i}" if v is not None else "" for i, v in enumerate(more))]
    graph = helper.make_graph(
        [helper.make_node(op, names, ["y"], **attributes)],
        "g",
        [helper.make_tensor_value_info("x", FLOAT, [None, None, None])],
        [helper.make_empty_tensor_value_info("y")],
        [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.mark.parity("onnxruntime")
@pytest.mark.parametrize(("op", "opset", "attributes", "more"), OLD_FORMS, ids=lambda v: str(v)[:30])
def test_forms_of_old_opsets(op: str, opset: int, attributes: dict[str, Any], more: list[Any]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    data = old_form(op, opset, attributes, more).SerializeToString()
    x = X[:1] if op == "Squeeze" else X
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    expected = session.run(None, {"x": x})[0]
    y = Model.from_model_file(formats.read_bytes(data)).predict(x)
    assert y.shape == expected.shape and y.dtype == expected.dtype
    np.testing.assert_allclose(y, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((3,), (3,)),
        ((3,), (3, 4)),
        ((2, 3), (3,)),
        ((2, 3), (3, 4)),
        ((5, 2, 3), (3, 4)),
        ((2, 3), (5, 3, 4)),
        ((5, 1, 2, 3), (6, 3, 4)),
        ((1, 2, 3), (1, 3, 4)),
        ((5, 2, 3), (5, 3)),
        ((3,), (5, 3, 4)),
        ((0, 3), (3, 4)),
        ((2, 0), (0, 4)),
        ((5, 2, 3), (5, 3, 0)),
        ((7, 1, 2, 3), (1, 3, 2)),
    ],
)
def test_product_of_computed_arrays(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal(a).astype(np.float32), rng.standard_normal(b).astype(np.float32)
    if b == (5, 3):
        with pytest.raises(ValueError, match="sizes that fit"):
            product(x, y, None)
        return
    expected = np.matmul(x.astype(np.float64), y.astype(np.float64))
    found = product(x, y, 1)
    assert found.shape == expected.shape and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("transposed", [(0, 0), (1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("factors", [(1.0, 1.0), (0.5, 1.0), (1.0, 0.25), (0.5, 0.25)])
@pytest.mark.parametrize("bias", [None, (), (1,), (4,), (1, 4), (2, 1), (2, 4)])
@pytest.mark.parametrize("constant", ["", "b", "c", "bc"])
def test_gemm(transposed: tuple[int, int], factors: tuple[float, float], bias: Any, constant: str) -> None:
    rng = np.random.default_rng(0)
    values = {"a": rng.standard_normal((2, 3)), "b": rng.standard_normal((3, 4))}
    values |= {} if bias is None else {"c": rng.standard_normal(bias)}
    expected = factors[0] * values["a"] @ values["b"] + (0 if bias is None else factors[1] * values["c"])
    given = {k: v.astype(np.float32) for k, v in values.items()}
    given["a"], given["b"] = (v.T.copy() if t else v for v, t in zip((given["a"], given["b"]), transposed, strict=True))
    how = {"transA": transposed[0], "transB": transposed[1], "alpha": factors[0], "beta": factors[1]}
    graph = helper.make_graph(
        [helper.make_node("Gemm", list(given), ["y"], **how)],
        "g",
        [helper.make_tensor_value_info(n, FLOAT, v.shape) for n, v in given.items() if n not in constant],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [onnx.numpy_helper.from_array(v, n) for n, v in given.items() if n in constant],
    )
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]).SerializeToString()
    model = Model.from_model_file(formats.read_bytes(data))
    y = model.predict({end.name: given[end.name] for end in model.inputs})
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_a_constant_matrix_is_multiplied_by_the_dense_kernel() -> None:
    rng = np.random.default_rng(0)
    w, x = rng.standard_normal((64, 48)).astype(np.float32), rng.standard_normal((5, 7, 64)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", FLOAT, None)],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [onnx.numpy_helper.from_array(w, "w")],
    )
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]).SerializeToString()
    y = Model.from_model_file(formats.read_bytes(data)).predict(x)
    assert np.array_equal(y, ops.dense(x, ops.pack_dense(w.T.copy())))
