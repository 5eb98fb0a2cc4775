"""Models as ONNX files: what the checker says, names and shapes, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_drop_in import SHARED, assert_close, golden_models, outputs_of, pairs_of

from fastgru import layers, nn
from fastgru.convert import to_onnx
from fastgru.convert.to_onnx import onnx_model
from fastgru.formats import FormatError, read_bytes
from fastgru.graph import Graph, Node, Ref
from fastgru.layers.operations import Operation
from fastgru.loading import from_file, load
from fastgru.models import Model, Sequential
from fastgru.models.onnx import OnnxModel

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


# -- Keras-shaped models --------------------------------------------------------------------


def test_names_and_free_sizes_of_a_model() -> None:
    model = Sequential([layers.Input((None, 3), name="x"), layers.GRU(4, return_sequences=True), layers.Dense(2)])
    model.predict(np.zeros((1, 2, 3)))
    proto = checked(model)
    assert ends(proto.graph.input) == {"x": ["N", "T", 3]}
    assert ends(proto.graph.output) == {"dense": ["N", "T", 2]}
    assert {t.name for t in proto.graph.initializer} >= {"gru/W", "gru/R", "gru/B", "dense/kernel", "dense/bias"}


def test_ids_are_int64_whatever_the_input_says() -> None:
    model = Sequential([layers.Input((None,), name="ids"), layers.Embedding(7, 3), layers.GRU(2)])
    model.predict(np.zeros((1, 2), int))
    (end,) = checked(model).graph.input
    assert end.type.tensor_type.elem_type == onnx.TensorProto.INT64


def test_ids_that_make_a_mask_by_themselves_are_int64_too() -> None:
    """Keras 3 writes a mask of its own as a node: ids != 0."""
    embedding, gru = layers.Embedding(7, 3, name="embedding"), layers.GRU(2, name="gru")
    embedding.build((), np.random.default_rng(0))
    gru.build((1, 1, 3), np.random.default_rng(0))
    differs = Operation("NotEqual", {}, "differs")
    nodes = (
        Node(differs, ([Ref(0), 0], {}), ((0, 1),)),
        Node(embedding, Ref(0), ((0, 2),)),
        Node(gru, Ref(2), ((0, 3),), mask=Ref(1)),
    )
    used = {n.layer.name: n.layer for n in nodes}
    model = Model(Graph(nodes, (0,), (3,), 4), used, [layers.Input((None,), name="ids")], ["gru"])
    data = onnx_model(model)
    (end,) = onnx.load_model_from_string(data).graph.input
    assert end.type.tensor_type.elem_type == onnx.TensorProto.INT64
    ids = np.array([[1, 2, 0], [0, 3, 4], [0, 0, 0]])
    np.testing.assert_allclose(read_back(data).predict(ids), model.predict(ids), rtol=0, atol=1e-6)


def test_an_input_without_a_shape_takes_what_the_first_layer_does() -> None:
    model = Sequential([layers.Dropout(0.1), layers.Bidirectional(layers.GRU(4))])
    model.predict(np.zeros((1, 2, 3)))
    assert ends(checked(model).graph.input) == {"input": ["N", "T", 3]}
    model = Sequential([layers.Dense(4)])
    model.predict(np.zeros((1, 3)))
    with pytest.raises(FormatError, match=r"^ONNX: .* put layers.Input\(shape\) first"):
        onnx_model(model)


def test_a_shared_layer_is_stored_once() -> None:
    gru, add = layers.GRU(3, name="gru"), layers.Add(name="add")
    gru.build((1, 1, 2), np.random.default_rng(0))
    nodes = (Node(gru, Ref(0), ((0, 2),)), Node(gru, Ref(1), ((0, 3),)), Node(add, [Ref(2), Ref(3)], ((0, 4),)))
    two = [layers.Input((None, 2), name=name) for name in "ab"]
    proto = checked(Model(Graph(nodes, (0, 1), (4,), 5), {"gru": gru, "add": add}, two, ["add"]))
    assert [t.name for t in proto.graph.initializer] == ["gru/W", "gru/R", "gru/B", "constant"]
    assert [n.op_type for n in proto.graph.node].count("GRU") == 2
    assert ends(proto.graph.input) == {"a": ["N", "T_a", 2], "b": ["N", "T_b", 2]}


def test_no_nodes_are_left_that_nothing_needs() -> None:
    """A mask that no layer looks at."""
    model = Sequential([layers.Input((5,)), layers.Embedding(7, 3, mask_zero=True), layers.Flatten(), layers.Dense(2)])
    model.predict(np.zeros((1, 5), int))
    assert [n.op_type for n in checked(model).graph.node] == ["Gather", "Flatten", "MatMul", "Add"]


def test_a_layer_without_weights_is_refused() -> None:
    model = Sequential([layers.Input((None, 3)), layers.GRU(4, name="mine")])
    with pytest.raises(FormatError, match=r"^ONNX: layer 'mine' \(GRU\): has no weights yet"):
        onnx_model(model)


def test_an_unknown_layer_is_refused_by_name() -> None:
    class Mine(layers.Layer):
        pass

    inner = Sequential([layers.Input((None, 3)), Mine("mine")], name="inner")
    with pytest.raises(FormatError, match="^ONNX: layer 'inner/mine' .Mine.: has no counterpart in ONNX"):
        onnx_model(Sequential([layers.Input((None, 3)), inner]))


@pytest.mark.parametrize("flag", ["stateful", "time_major"])
def test_what_onnx_has_not_is_refused(flag: str) -> None:
    gru = layers.GRU(4, name="mine", **{flag: True})
    gru.build((1, 1, 3), np.random.default_rng(0))
    with pytest.raises(FormatError, match=rf"^ONNX: layer 'mine' \(GRU\): {flag}"):
        onnx_model(Sequential([layers.Input((None, 3)), gru]))


# -- there and back -------------------------------------------------------------------------


def read_back(data: bytes) -> OnnxModel:
    model = from_file(read_bytes(data, "there.onnx"))
    assert isinstance(model, OnnxModel)
    return model


def listed(y: Any) -> list[Any]:
    return list(y.values()) if isinstance(y, dict) else list(y) if isinstance(y, (list, tuple)) else [y]


def there_and_back(path: Path, expected: Path) -> None:
    """fastgru.load → ONNX → fastgru, and ONNX → ONNX → fastgru, keep predictions within 1e-6."""
    with np.load(expected) as arrays:
        model = load(path, prefix=str(arrays["prefix"]) if "prefix" in arrays.files else None)
        try:
            data = onnx_model(model)
        except FormatError as error:
            assert "stateful" in str(error) or "time_major" in str(error) or "selu" in str(error)
            pytest.skip(f"refused: {error}")
        back = read_back(data)
        again = read_back(onnx_model(back))
        if isinstance(model, Model):
            calls = [(x, outputs_of(model.predict(x), arrays)) for x, _ in pairs_of(model, arrays)]
        else:
            x, h0 = (arrays[n].astype(np.float32) for n in ("x", "h0" if "h0" in arrays.files else "h_n"))
            x = x.swapaxes(0, 1) if isinstance(model, nn.GRU) else x
            calls = [([x, h0], listed(model(x, h0)))] if isinstance(model, nn.GRU) else [([x, h0], [model(x, h0)])]
    for x, ys in calls:
        for found, second, y in zip(listed(back.predict(x)), listed(again.predict(x)), ys, strict=True):
            np.testing.assert_allclose(found, y, rtol=0, atol=1e-6 * max(1.0, float(np.nanmax(np.abs(y)))))
            np.testing.assert_array_equal(found, second)


@pytest.mark.parametrize("pair", golden_models(), ids=lambda p: p[0].name)
def test_golden_there_and_back(pair: tuple[Path, Path]) -> None:
    there_and_back(*pair)


@pytest.mark.parametrize("names", SHARED, ids=lambda n: n[0])
def test_shared_there_and_back(names: tuple[str, str], shared: Path) -> None:
    there_and_back(shared / "models" / names[0], shared / "models" / names[1])


@pytest.mark.parametrize("rows", [0, 1, 3])
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_empty_batches_and_sequences_there_and_back(rows: int, steps: int) -> None:
    """ONNX Runtime can't be asked: it aborts the process."""
    stack = [
        layers.Masking(),
        layers.Bidirectional(layers.GRU(4, return_sequences=True)),
        layers.GRU(3),
        layers.Dense(2),
    ]
    model = Sequential([layers.Input((None, 3)), *stack])
    model.predict(np.zeros((1, 2, 3)))
    x = np.random.default_rng(0).standard_normal((rows, steps, 3)).astype(np.float32)
    x[:, 1:2] = 0
    np.testing.assert_allclose(read_back(onnx_model(model)).predict(x), model.predict(x), rtol=0, atol=1e-6)


# -- real files: ONNX Runtime itself gives what their frameworks recorded -------------------


@pytest.mark.parametrize("names", SHARED, ids=lambda n: n[0])
def test_shared_in_onnx_runtime(names: tuple[str, str], shared: Path) -> None:
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed: pip install 'fastgru[parity]'")
    from test_parity_onnx_export import check_file

    check_file(shared / "models" / names[0], shared / "models" / names[1])


def test_nsnet2_written_again(shared: Path) -> None:
    """A graph that came from ONNX keeps its opset and its bits."""
    runtime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed: pip install 'fastgru[parity]'")
    folder = shared / "models" / "onnx_nsnet2"
    data = onnx_model(load(folder / "nsnet2-20ms-baseline.onnx"))
    onnx.checker.check_model(data, full_check=True)
    assert onnx.load_model_from_string(data).opset_import[0].version == 11
    run = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
    with np.load(folder / "nsnet2-20ms-baseline_expected.npz") as arrays:
        (found,) = run.run(["output"], {"input": arrays["in_input"]})
        assert_close(found, arrays["out_output"])
