"""ONNX's own tests for runtimes, through `fastgru.integrations.onnx_backend`: of GRU, and of every operator here."""

from __future__ import annotations

import functools
import re
from typing import Any

import numpy as np
import pytest

from fastgru.formats import FormatError
from fastgru.integrations import onnx_backend
from fastgru.layers.onnx_operators import OPERATORS

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'fastgru[onnx]'")

GRU = ("defaults", "with_initial_bias", "seq_length", "batchwise", "reverse", "bidirectional")


@functools.cache
def cases() -> dict[str, Any]:
    """ONNX's node tests by name. Making them all takes some seconds."""
    from onnx.backend.test.loader import load_model_tests

    with np.errstate(all="ignore"):
        return {case.name: case for case in load_model_tests(kind="node")}


def as_array(value: Any) -> Any:
    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def check(case: Any) -> None:
    prepared = onnx_backend.prepare(case.model, "CPU")
    for inputs, expected in case.data_sets:
        outputs = prepared.run([as_array(v) for v in inputs])
        assert len(outputs) == len(expected)
        for found, value in zip(outputs, map(as_array, expected), strict=True):
            assert found.shape == value.shape
            if value.dtype.kind == "f" or value.dtype.name == "bfloat16":
                assert found.dtype == np.float32
            else:
                assert found.dtype == value.dtype
            np.testing.assert_allclose(found.astype(np.float64), value.astype(np.float64), case.rtol, case.atol)


@pytest.mark.parametrize("name", GRU)
def test_gru(name: str) -> None:
    check(cases()[f"test_gru_{name}"])


def test_every_case_of_gru_is_named_above() -> None:
    known = {name for name in cases() if re.search("gru", name)}
    assert {f"test_gru_{name}" for name in GRU} == known


def is_about_us(case: Any) -> bool:
    """Whether all of a test is within what is promised: operators of the table, numbers that NumPy has, opset 7 on."""
    model = case.model
    oldest = 9 if any(n.op_type == "Scan" for n in model.graph.node) else 7  # Scan was another operator before 9
    if any(o.domain == "" and o.version < oldest for o in model.opset_import):
        return False
    kinds = {v.type.tensor_type.elem_type for v in [*model.graph.input, *model.graph.output]}
    plain = kinds <= {
        1,
        2,
        3,
        4,
        5,
        6,
        7,
        9,
        12,
        13,
    }  # halves and doubles are computed in float32: not to ONNX's letter
    known = all(n.op_type in (*OPERATORS, "Constant") and n.domain == "" for n in model.graph.node)
    return plain and known and "training" not in case.name


def test_every_operator() -> None:
    """All of ONNX's tests of nodes whose operators are in our table, whatever the opset that they are written for."""
    ours = [case for case in cases().values() if is_about_us(case)]
    failed = {}
    for case in ours:
        try:
            check(case)
        except (AssertionError, ValueError, TypeError) as error:
            failed[case.name] = str(error)[:300]
    assert not failed
    assert len(ours) > 300
    tested = {node.op_type for case in ours for node in case.model.graph.node}
    doubles = {"Einsum"}  # ONNX tests it on those alone; test_onnx_windows.py does on floats
    assert {name for name in OPERATORS if onnx.defs.has(name)} - doubles <= tested


def test_devices() -> None:
    assert onnx_backend.supports_device("CPU") and not onnx_backend.supports_device("CUDA")
    model = cases()["test_gru_defaults"].model
    assert onnx_backend.is_compatible(model)
    with pytest.raises(ValueError, match="CUDA"):
        onnx_backend.prepare(model, "CUDA")


def test_run_model_and_run_node() -> None:
    case = cases()["test_gru_seq_length"]
    inputs, expected = case.data_sets[0]
    node = case.model.graph.node[0]
    for outputs in (
        onnx_backend.run_model(case.model, inputs),
        onnx_backend.run_node(node, inputs),
        onnx_backend.run_node(node, inputs, opset_version=14, num_threads=1),
    ):
        np.testing.assert_allclose(outputs[0], expected[0], 1e-3, 1e-7)
    add = onnx.helper.make_node("Add", ["a", "a"], ["y"])
    assert onnx_backend.run_node(add, [np.ones(2, np.float32)])[0].tolist() == [2, 2]
    with pytest.raises(ValueError, match="expected 1 for"):
        onnx_backend.run_node(add, [np.ones(2), np.ones(2)])


def test_what_is_not_supported_is_not_compatible() -> None:
    node = onnx.helper.make_node("NonMaxSuppression", ["a", "b"], ["y"])
    with pytest.raises(FormatError, match="NonMaxSuppression"):
        onnx_backend.run_node(node, [np.ones((1, 1, 4), np.float32), np.ones((1, 1, 1), np.float32)])
