"""Models as ONNX files: what the checker says, names and shapes, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastgru import nn
from fastgru.convert import to_onnx
from fastgru.convert.to_onnx import onnx_model

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'fastgru[onnx]'")


def checked(model: Any, opset: int = 17) -> Any:
    """The file as onnx parses it, after its checker found nothing."""
    data = onnx_model(model, opset=opset)
    proto = onnx.load_model_from_string(data)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def ends(values: Any) -> dict[str, list[Any]]:
    return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}


@pytest.mark.parametrize("batch_first", [False, True])
def test_torch_gru_has_pytorchs_names_and_shapes(batch_first: bool) -> None:
    proto = checked(nn.GRU(3, 5, num_layers=2, bidirectional=True, batch_first=batch_first))
    first = ["N", "T"] if batch_first else ["T", "N"]
    assert ends(proto.graph.input) == {"x": [*first, 3], "h0": [4, "N", 5]}
    assert ends(proto.graph.output) == {"y": [*first, 10], "h_n": [4, "N", 5]}
    assert [n.op_type for n in proto.graph.node].count("GRU") == 2
    assert all(t.raw_data for t in proto.graph.initializer)


def test_torch_cell() -> None:
    proto = checked(nn.GRUCell(3, 5))
    assert ends(proto.graph.input) == {"x": ["N", 3], "h0": ["N", 5]}
    assert ends(proto.graph.output) == {"h_n": ["N", 5]}


@pytest.mark.parametrize("opset", range(17, onnx.defs.onnx_opset_version() + 1))
def test_every_opset_is_clean(opset: int) -> None:
    proto = checked(nn.GRU(3, 5), opset)
    assert proto.opset_import[0].version == opset
    assert proto.ir_version <= 10


@pytest.mark.parametrize("opset", [16, 1, 0, -1, True, 17.0, "17", onnx.defs.onnx_opset_version() + 1])
def test_other_opsets_are_refused(opset: Any) -> None:
    with pytest.raises(ValueError, match=r"^opset: expected 17 … \d+ .*, found"):
        onnx_model(nn.GRU(3, 5), opset=opset)


def test_activation_parameters_are_queues() -> None:
    gru = nn.GRU(3, 5, activation=("scaled_tanh", 1.5, 0.5), recurrent_activation=("hard_sigmoid", 1 / 6, 0.5))
    node = next(n for n in checked(gru).graph.node if n.op_type == "GRU")
    found = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert found["activations"] == [b"HardSigmoid", b"ScaledTanh"]
    np.testing.assert_allclose(found["activation_alpha"], [1 / 6, 1.5], rtol=1e-7)
    np.testing.assert_allclose(found["activation_beta"], [0.5, 0.5], rtol=1e-7)
    node = next(n for n in checked(nn.GRU(3, 5, activation=("elu", 0.7))).graph.node if n.op_type == "GRU")
    found = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert found["activations"] == [b"Sigmoid", b"Elu"] and "activation_beta" not in found


def test_selu_is_refused() -> None:
    with pytest.raises(ValueError, match="activation that ONNX's GRU has .* found selu"):
        onnx_model(nn.GRU(3, 5, activation="selu"))


def test_too_large_models_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(to_onnx, "_MOST_BYTES", 20_000)
    with pytest.raises(ValueError, match=r"^ONNX: expected at most 20,000 bytes, found weights of \d+,\d{3}"):
        onnx_model(nn.GRU(30, 50))


def test_other_objects_are_refused() -> None:
    with pytest.raises(TypeError, match="^model: expected a Model, nn.GRU or nn.GRUCell, found dict"):
        onnx_model({})  # type: ignore[arg-type]
