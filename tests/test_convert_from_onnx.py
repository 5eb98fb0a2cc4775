"""Chains of layers found in ONNX graphs: the same predictions, and what is no such chain refused by its node."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastgru import layers, nn
from fastgru.convert.from_onnx import as_layers
from fastgru.convert.to_onnx import onnx_model
from fastgru.formats import FormatError, read_bytes
from fastgru.loading import from_file, load
from fastgru.models import Model, Sequential, walk
from fastgru.models.onnx import OnnxModel

pytest.importorskip("onnx", reason="onnx is not installed: pip install 'fastgru[onnx]'")

RNG = np.random.default_rng(3)
X = RNG.standard_normal((3, 5, 4)).astype(np.float32)
IDS = RNG.integers(0, 9, (3, 5))


def graph_of(model: Any) -> OnnxModel:
    found = from_file(read_bytes(onnx_model(model), "there.onnx"))
    assert isinstance(found, OnnxModel)
    return found


def built(*stack: layers.Layer, x: Any = X, shape: tuple[int | None, ...] = (None, 4)) -> Sequential:
    model = Sequential([layers.Input(shape, name="x"), *stack])
    model.predict(x)
    rng = np.random.default_rng(8)
    for layer in walk(model):
        if layer.weights:
            layer.set_weights(
                [rng.standard_normal(w.shape).astype(np.float32) * w.dtype.type(0.4) for w in layer.get_weights()]
            )
    return model


def half(**more: Any) -> layers.GRU:
    return layers.GRU(6, return_sequences=True, **more)


CHAINS: dict[str, list[layers.Layer]] = {
    "gru": [half()],
    "last": [layers.GRU(6)],
    "before": [half(reset_after=False, recurrent_activation="hard_sigmoid"), layers.Dense(2, use_bias=False)],
    "backwards": [half(go_backwards=True), layers.Dense(2, "relu")],
    "backwards last": [layers.GRU(6, go_backwards=True)],
    "no bias": [half(use_bias=False, activation="relu"), half(activation="linear"), half(activation=("elu", 0.5, 0.0))],
    "both": [layers.Bidirectional(half()), layers.Bidirectional(layers.GRU(3)), layers.Dense(2, "softmax")],
    "both differ": [layers.Bidirectional(half(activation="relu"), backward_layer=half(go_backwards=True))],
    "activations": [
        layers.Dense(5, "selu"),
        layers.Activation("tanh"),
        layers.ELU(0.6),
        layers.LeakyReLU(0.2),
        layers.ThresholdedReLU(0.1),
        layers.Activation(("hard_sigmoid", 0.2, 0.5)),
        layers.Activation("softplus"),
    ],
    "pooled": [half(), layers.GlobalAveragePooling1D(), layers.Dense(3)],
    "greatest": [half(), layers.Dropout(0.5), layers.GlobalMaxPooling1D(), layers.Dense(3, "log_softmax")],
}


@pytest.mark.parametrize("stack", CHAINS.values(), ids=CHAINS)
def test_chains_come_back(stack: list[layers.Layer]) -> None:
    model = built(*stack)
    found = as_layers(graph_of(model))
    np.testing.assert_allclose(found.predict(X), model.predict(X), rtol=0, atol=1e-6)
    assert found.inputs[0].name == "x" and found.inputs[0].shape == (None, 4)
    recurrent = [layer.class_name() for layer in walk(model) if "GRU" in layer.class_name()]
    assert [layer.class_name() for layer in walk(found) if "GRU" in layer.class_name()] == recurrent


def test_ids_come_back_as_an_embedding() -> None:
    model = built(layers.Embedding(9, 4), layers.GRU(5), layers.Dense(9), x=IDS, shape=(None,))
    found = as_layers(graph_of(model))
    assert [layer.class_name() for layer in found.layers] == ["Embedding", "GRU", "Dense"]
    np.testing.assert_allclose(found.predict(IDS), model.predict(IDS), rtol=0, atol=1e-6)
    for a, b in zip(found.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


REFUSED: dict[str, tuple[list[layers.Layer], str]] = {
    "mask": ([layers.Masking(), half()], r"node 'masking/Equal' \(Equal\): expected an operator that is a layer"),
    "sum": ([layers.Bidirectional(half(), "sum")], r"\(Gather\): expected rows of a table by the input's ids"),
    "permuted": ([layers.Permute((2, 1))], r"expected an output \(N, T, K\)"),
    "time first": ([layers.Permute((2, 1)), layers.Dense(2)], r"\(MatMul\): expected features on the last axis"),
    "flipped": ([layers.Bidirectional(half(go_backwards=True))], r"\(Slice\)|branches"),
}


@pytest.mark.parametrize(("stack", "why"), REFUSED.values(), ids=REFUSED)
def test_no_chains(stack: list[layers.Layer], why: str) -> None:
    model = built(*stack, shape=(5, 4))
    with pytest.raises(FormatError, match=f"^sequential: .*{why}.*; only a chain of layers leaves ONNX"):
        as_layers(graph_of(model))


def test_several_inputs_are_refused() -> None:
    with pytest.raises(FormatError, match="expected one input and one output, found 2 and 2"):
        as_layers(graph_of(nn.GRU(3, 4)))


def test_nsnet2(shared: Path) -> None:
    folder = shared / "models" / "onnx_nsnet2"
    model = load(folder / "nsnet2-20ms-baseline.onnx")
    assert isinstance(model, OnnxModel)
    found = as_layers(model)
    names = [layer.class_name() for layer in found.layers if layer.class_name() != "Activation"]
    assert names == ["Dense", "GRU", "GRU", "Dense", "Dense", "Dense"]
    with np.load(folder / "nsnet2-20ms-baseline_expected.npz") as arrays:
        np.testing.assert_allclose(found.predict(arrays["in_input"]), arrays["out_output"], rtol=0, atol=2e-5)


@pytest.mark.parity("torch")
@pytest.mark.parametrize("layer_count", [1, 2])
@pytest.mark.parametrize(("which", "both"), [("all", False), ("last", False), ("state", False), ("all", True)])
def test_what_pytorch_exports(which: str, layer_count: int, both: bool) -> None:
    """Its exporter computes h0 from the shape of the input, and takes the last state out of the stack of all."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'fastgru[parity]'")

    class Net(torch.nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(9, 6)
            self.gru = torch.nn.GRU(6, 8, layer_count, bidirectional=both, batch_first=True)
            self.out = torch.nn.Linear(8 * (1 + both), 3)

        def forward(self, ids: Any) -> Any:
            y, h_n = self.gru(self.table(ids))
            y = y if which == "all" else y[:, -1] if which == "last" else h_n[-1]
            return torch.softmax(self.out(torch.relu(y)), -1)

    net, data, ids = Net().eval(), io.BytesIO(), torch.from_numpy(IDS)
    free = {"ids": {0: "n", 1: "t"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (ids,), data, dynamo=False, opset_version=17, input_names=["ids"], dynamic_axes=free)
    model = from_file(read_bytes(data.getvalue(), "net.onnx"))
    assert isinstance(model, OnnxModel)
    found = as_layers(model)
    assert isinstance(found, Model)
    np.testing.assert_allclose(found.predict(IDS), net(ids).detach().numpy(), rtol=0, atol=1e-6)
    shorter = IDS[:2, :3]
    expected = net(torch.from_numpy(shorter)).detach().numpy()
    np.testing.assert_allclose(found.predict(shorter), expected, rtol=0, atol=1e-6)


@pytest.mark.parity("torch")
def test_norms_of_pytorch() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'fastgru[parity]'")

    class Net(torch.nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.before, self.after = torch.nn.LayerNorm(4), torch.nn.BatchNorm1d(8)
            self.gru, self.out = torch.nn.GRU(4, 8, batch_first=True), torch.nn.Linear(8, 3)
            for norm in (self.before, self.after):
                torch.nn.init.normal_(norm.weight)
                torch.nn.init.normal_(norm.bias)
            self.after.running_mean += torch.randn(8)
            self.after.running_var += torch.rand(8)

        def forward(self, x: Any) -> Any:
            return self.out(torch.nn.functional.leaky_relu(self.after(self.gru(self.before(x))[0][:, -1])))

    net, data = Net().eval(), io.BytesIO()
    free = {"x": {0: "n", 1: "t"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inputs = (torch.from_numpy(X),)
        torch.onnx.export(net, inputs, data, dynamo=False, opset_version=17, input_names=["x"], dynamic_axes=free)
    found = as_layers(from_file(read_bytes(data.getvalue(), "net.onnx")))  # type: ignore[arg-type]
    names = ["LayerNormalization", "GRU", "BatchNormalization", "LeakyReLU", "Dense"]
    assert [layer.class_name() for layer in found.layers] == names
    np.testing.assert_allclose(found.predict(X), net(torch.from_numpy(X)).detach().numpy(), rtol=0, atol=2e-6)


def test_what_tf2onnx_exports(golden: Path) -> None:
    """The last step is a slice of one, and initial states are expanded from the shape of the input."""
    model = load(golden / "onnx_tf2onnx_stack.onnx")
    assert isinstance(model, OnnxModel)
    found = as_layers(model)
    assert [layer.class_name() for layer in found.layers] == ["GRU", "GRU", "Dense", "Activation"]
    with np.load(golden / "onnx_tf2onnx_stack.expected.npz") as arrays:
        np.testing.assert_allclose(found.predict(arrays["x0"]), arrays["y0"], rtol=0, atol=2e-6)


def chain_of(nodes: list[Any], shape: list[Any], **constants: Any) -> OnnxModel:
    """A loaded graph x → … → y."""
    import onnx

    helper, FLOAT = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, shape)],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [onnx.numpy_helper.from_array(np.asarray(v, np.float32), n) for n, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    found = from_file(read_bytes(model.SerializeToString(), "chain.onnx"))
    assert isinstance(found, OnnxModel)
    return found


@pytest.mark.parametrize("fixed", [True, False])
def test_what_the_newer_exporter_of_pytorch_writes(fixed: bool) -> None:
    """Both halves of a GRU joined to a shape of plain numbers, or of sizes sliced out of others and multiplied."""
    from onnx.helper import make_node

    w, r, b = (RNG.standard_normal(s) for s in ((2, 15, 4), (2, 15, 5), (2, 30)))
    nodes = [
        make_node("Transpose", ["x"], ["a"], perm=[1, 0, 2]),
        make_node("GRU", ["a", "w", "r", "b"], ["g"], hidden_size=5, direction="bidirectional", linear_before_reset=1),
        make_node("Transpose", ["g"], ["t"], perm=[0, 2, 1, 3]),
        make_node("Reshape", ["t", "shape"], ["j"]),
        make_node("Transpose", ["j"], ["y"], perm=[1, 0, 2]),
    ]
    counted = [make_node("Shape", ["t"], ["s"], start=0)]
    for i, name in enumerate(("time", "batch", "two", "units")):
        ends = [make_node("Constant", [], [f"{name}{k}"], value_ints=[i + k]) for k in (0, 1)]
        counted += [*ends, make_node("Slice", ["s", f"{name}0", f"{name}1"], [name])]
    counted += [
        make_node("Mul", ["two", "units"], ["m"]),
        make_node("Concat", ["time", "batch", "m"], ["shape"], axis=0),
    ]
    literal = [make_node("Constant", [], ["shape"], value_ints=[6, 3, 10])]
    nodes[3:3] = literal if fixed else counted
    model = chain_of(nodes, [3, 6, 4] if fixed else ["N", "T", 4], w=w, r=r, b=b)
    found = as_layers(model)
    assert [layer.class_name() for layer in found.layers] == ["Bidirectional"]
    x = RNG.standard_normal((3, 6, 4)).astype(np.float32)
    np.testing.assert_allclose(found.predict(x), model.predict(x), rtol=0, atol=1e-6)
    if not fixed:  # sizes in another order join other axes
        counted[-1] = make_node("Concat", ["batch", "time", "m"], ["shape"], axis=0)
        with pytest.raises(FormatError, match=r"\(Reshape\): expected a shape that keeps all axes.*take any graph"):
            as_layers(chain_of(nodes[:3] + counted + nodes[-2:], ["N", "T", 4], w=w, r=r, b=b))
    else:
        nodes[3] = make_node("Constant", [], ["shape"], value_ints=[3, 6, 10])
        with pytest.raises(FormatError, match=r"\(Reshape\): expected a shape that keeps 2 sizes and ends with 10"):
            as_layers(chain_of(nodes, [3, 6, 4], w=w, r=r, b=b))


def test_pooling_over_all_steps_in_each_spelling() -> None:
    from onnx.helper import make_node

    for op, keep in (("GlobalAveragePool", 1), ("GlobalMaxPool", 1), ("ReduceMean", 1), ("ReduceMax", 0)):
        how = {} if op.startswith("Global") else {"axes": [2], "keepdims": keep}
        nodes = [
            make_node("Transpose", ["x"], ["a"], perm=[0, 2, 1]),
            make_node(op, ["a"], ["p"], **how),
            make_node("Squeeze" if keep else "Identity", ["p", "last"] if keep else ["p"], ["y"]),
            make_node("Constant", [], ["last"], value_ints=[-1]),
        ]
        model = chain_of([nodes[3], *nodes[:3]], ["N", "T", 4])
        found = as_layers(model)
        assert [layer.class_name() for layer in found.layers] == [
            "GlobalMaxPooling1D" if "Max" in op else "GlobalAveragePooling1D"
        ]
        np.testing.assert_allclose(found.predict(X), model.predict(X), rtol=0, atol=1e-6)


def test_what_is_added_along_another_axis_is_no_bias() -> None:
    """A square layer hides a bias along time from anyone who looks at sizes alone."""
    from onnx.helper import make_node

    weight, bias = RNG.standard_normal((4, 4)), RNG.standard_normal(4)
    turned = [
        make_node("MatMul", ["x", "w"], ["a"]),
        make_node("Transpose", ["a"], ["t"], perm=[0, 2, 1]),
        make_node("Add", ["t", "b"], ["s"]),
        make_node("Transpose", ["s"], ["y"], perm=[0, 2, 1]),
    ]
    with pytest.raises(FormatError, match="features on the last axis"):
        as_layers(chain_of(turned, ["N", 4, 4], w=weight, b=bias))
    column = [make_node("MatMul", ["x", "w"], ["a"]), make_node("Add", ["a", "b"], ["y"])]
    with pytest.raises(FormatError, match="expected a bias"):
        as_layers(chain_of(column, ["N", 4, 4], w=weight, b=bias[:, None]))
    model = chain_of(column, ["N", 4, 4], w=weight, b=bias)
    x = RNG.standard_normal((2, 4, 4)).astype(np.float32)
    assert np.allclose(as_layers(model).predict(x), model.predict(x), atol=1e-6)


def test_casts_that_change_values_are_no_part_of_a_chain() -> None:
    from onnx.helper import make_node

    nodes = [
        make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
        make_node("Cast", ["t"], ["i"], to=7),
        make_node("Cast", ["i"], ["f"], to=1),
        make_node("Transpose", ["f"], ["y"], perm=[0, 2, 1]),
    ]
    with pytest.raises(FormatError, match="cast to float32"):
        as_layers(chain_of(nodes, ["N", 3, 4]))


@pytest.mark.parametrize(("op", "attributes"), [("Transpose", {"perm": [0, 1, 7]}), ("ReduceMean", {"axes": [9]})])
def test_numbers_that_fit_no_axis_are_refused(op: str, attributes: dict[str, Any]) -> None:
    from onnx.helper import make_node

    with pytest.raises(FormatError, match=op):
        as_layers(chain_of([make_node(op, ["x"], ["y"], **attributes)], ["N", 3, 4]))
