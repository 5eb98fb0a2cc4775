"""Whole ONNX graphs: what exporters wrote, inputs and outputs, saving, and the kernels that the weights reach."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_onnx import FLOAT, INT64, graph_of, helper, onnx

import fastgru
from fastgru import formats, ops
from fastgru.cli import main
from fastgru.graph import sample_inputs
from fastgru.layers.onnx_gru import GRU
from fastgru.models import Model
from fastgru.models.onnx import OnnxModel

GOLDEN = sorted((Path(__file__).parent / "golden").glob("onnx_*.onnx"))


def listed(y: Any) -> list[Any]:
    return y if isinstance(y, list) else [y]


def expected_of(path: Path) -> tuple[list[Any], list[Any]]:
    recorded = np.load(path.with_suffix("").with_suffix(".expected.npz"))
    inputs, outputs = ([recorded[n] for n in sorted(recorded) if n[0] == letter and n[1:].isdigit()] for letter in "xy")
    return inputs, outputs


def assert_close(found: list[Any], expected: list[Any]) -> None:
    assert len(found) == len(expected)
    for f, e in zip(found, expected, strict=True):
        assert f.shape == e.shape and f.dtype == e.dtype
        assert np.abs(f - e).max(initial=0) <= 2e-5 * max(1, np.abs(e).max(initial=0))


def test_axes_of_one_name_have_one_size() -> None:
    ends = {"a": (FLOAT, ["n", 3]), "b": (FLOAT, [2, "n"]), "c": (FLOAT, ["m", "m"])}
    model = graph_of(
        [helper.make_node("MatMul", ["b", "a"], ["y"]), helper.make_node("Neg", ["c"], ["z"])], ends, ["y", "z"]
    )
    fitting = [np.ones((5, 3)), np.ones((2, 5)), np.ones((4, 4))]
    assert model.predict(fitting)[0].shape == (2, 3)
    with pytest.raises(
        ValueError, match=r"input 'b': expected 5 in axis 1, as in axis 0 of 'a': .* 'n'; found .*\(2, 4\)"
    ):
        model.predict([np.ones((5, 3)), np.ones((2, 4)), np.ones((4, 4))])
    with pytest.raises(ValueError, match=r"input 'c': expected 4 in axis 1, as in axis 0 of 'c'"):
        model.predict(dict(zip("abc", [*fitting[:2], np.ones((4, 5))], strict=True)))


# -- what exporters wrote ----------------------------------------------------------------------


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_golden(path: Path, tmp_path: Path) -> None:
    """The exporting framework's own outputs; the same after saving; and for twice the batch."""
    model = fastgru.load(path)
    assert isinstance(model, OnnxModel)
    x, y = expected_of(path)
    found = listed(model.predict(x))
    assert_close(found, y)
    model.save(tmp_path / "copy.safetensors")
    copy = fastgru.load(tmp_path / "copy.safetensors")
    assert isinstance(copy, OnnxModel)
    for again in (copy.predict(dict(zip([e.name for e in copy.inputs], x, strict=True))), model.predict(tuple(x))):
        assert all(map(np.array_equal, listed(again), found))
    assert {k: v.tobytes() for k, v in copy.all_tensors().items()} == {
        k: v.tobytes() for k, v in model.all_tensors().items()
    }
    assert copy.version == model.version and copy.count_params() == model.count_params()


def test_there_are_golden_files() -> None:
    assert len(GOLDEN) >= 8


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_weights_are_packed_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scoring packs nothing: GRU and dense weights reached the kernels' layout at load, whatever nodes made them."""
    model = fastgru.load(path)
    assert isinstance(model, OnnxModel)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("packed while scoring")

    monkeypatch.setattr(ops, "pack_gru", refuse)
    monkeypatch.setattr(ops, "pack_dense", refuse)
    assert_close(listed(model.predict(expected_of(path)[0])), expected_of(path)[1])


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_no_blas(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fastgru.load(path)
    assert isinstance(model, OnnxModel)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("BLAS")

    for name in ("matmul", "dot", "einsum", "tensordot", "inner", "vdot"):
        monkeypatch.setattr(np, name, refuse)
    model.predict(expected_of(path)[0])


def test_golden_graphs_hold_gru_nodes() -> None:
    counts = {p.stem: sum(isinstance(v, GRU) for v in fastgru.load(p).layers) for p in GOLDEN}  # type: ignore[union-attr]
    assert counts["onnx_torch_tagger_11"] == 2 and counts["onnx_torch_packed_17"] == 1
    assert counts["onnx_tf2onnx_stack"] == 2 and counts["onnx_torch_dynamo_cell"] == 0


def test_samples_fit_the_named_axes() -> None:
    """Axes of one name get one size, so that two copies of a graph of several inputs can be compared."""
    model = fastgru.load(next(p for p in GOLDEN if p.stem == "onnx_torch_states_17"))
    assert isinstance(model, OnnxModel)
    samples = sample_inputs(model.graph, model.inputs)
    assert samples is not None
    assert samples[0].shape[1] == samples[1].shape[1] and samples[1].shape[::2] == (1, 8)
    model.predict(samples)


def check_export(layers: int, bidirectional: bool, path: Path, dynamo: bool) -> None:
    """Exported now: other sizes than at the export where the axes are dynamic."""
    import torch

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = torch.nn.GRU(5, 9, layers, bidirectional=bidirectional, batch_first=True)
            self.head = torch.nn.Linear(9 * (1 + bidirectional), 3)

        def forward(self, x: Any) -> Any:
            y, h_n = self.gru(x)
            return torch.sigmoid(self.head(y)), y.mean(1), h_n

    torch.manual_seed(layers)
    net, given = Net().eval(), torch.randn(2, 6, 5)
    how: dict[str, Any] = {} if dynamo else {"dynamic_axes": {"x": {0: "n", 1: "t"}}}
    torch.onnx.export(net, (given,), path, input_names=["x"], dynamo=dynamo, **how)
    for x in (given,) if dynamo else (given, torch.randn(4, 11, 5), torch.randn(1, 1, 5)):
        with torch.no_grad():
            expected = [v.numpy() for v in net(x)]
        assert_close(listed(fastgru.load(path).predict(x.numpy())), expected)  # type: ignore[union-attr]


@pytest.mark.parity("torch")
@pytest.mark.filterwarnings("ignore")  # the exporter speaks of its own future
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_pytorch_exports(layers: int, bidirectional: bool, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'fastgru[parity]'")
    check_export(layers, bidirectional, tmp_path / "net.onnx", dynamo=False)


@pytest.mark.filterwarnings("ignore")
def test_pytorch_dynamo_exports(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'fastgru[parity]'")
    pytest.importorskip("onnxscript", reason="onnxscript, which PyTorch's dynamo exporter needs, is not installed")
    check_export(2, True, tmp_path / "net.onnx", dynamo=True)


# -- inputs and outputs ------------------------------------------------------------------------


def test_inputs_by_list_dict_and_array() -> None:
    model = graph_of([helper.make_node("Sub", ["a", "b"], ["y"])], {"a": (FLOAT, ["n", 3]), "b": (FLOAT, None)}, ["y"])
    a, b = np.arange(6, dtype=np.float64).reshape(2, 3), np.ones((), np.int64)
    for x in ([a, b], (a, b), {"b": b, "a": a}):
        y = model.predict(x)
        assert y.dtype == np.float32 and np.array_equal(y, a - 1)
    assert [end.name for end in model.inputs] == ["a", "b"] and model.output_names == ("y",)
    assert model.inputs[0].describe() == "float32 (n, 3)"


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([np.ones((2, 3))], ValueError, r"list or dict of the inputs \['a', 'b'\], found 1 of them"),
        ({"a": np.ones((2, 3)), "c": np.ones(2)}, ValueError, r"expected the inputs \['a', 'b'\]"),
        ([np.ones((2, 4)), np.ones(2)], ValueError, r"input 'a': expected shape \(n, 3\), found \(2, 4\)"),
        ([np.ones(3), np.ones(2)], ValueError, r"input 'a': expected shape \(n, 3\)"),
        ([np.ones((2, 3)), np.full(2, 0.5)], ValueError, "input 'b': expected int64, found fractions"),
        ([np.ones((2, 3)), np.full(2, np.nan)], ValueError, "input 'b': expected int64"),
        ([np.full((2, 3), "x"), np.ones(2)], TypeError, "input 'a': expected numbers"),
        ([np.ones((2, 3)), np.full(2, 3)], ValueError, r"node 'take' \(Gather\).*indices: expected -2 … 1, found 3"),
    ],
)
def test_inputs_that_do_not_fit(x: Any, error: type[Exception], message: str) -> None:
    nodes = [helper.make_node("Gather", ["a", "b"], ["y"], name="take")]
    model = graph_of(nodes, {"a": (FLOAT, ["n", 3]), "b": (INT64, [None])}, ["y"])
    with pytest.raises(error, match=message):
        model.predict(x)


def test_padding_is_an_input_of_the_graph() -> None:
    model = graph_of([helper.make_node("Identity", ["x"], ["y"])], {"x": (FLOAT, [None, 3])}, ["y"])
    with pytest.raises(ValueError, match=r"lengths, mask: expected None.*\['x'\]"):
        model.predict(np.ones((2, 3)), lengths=[1, 1])


def test_integer_and_boolean_outputs_stay_what_they_are() -> None:
    nodes = [
        helper.make_node("ArgMax", ["x"], ["best"], axis=1, keepdims=0),
        helper.make_node("Greater", ["x", "zero"], ["positive"]),
        helper.make_node("Shape", ["x"], ["shape"]),
    ]
    model = graph_of(nodes, {"x": (FLOAT, [None, None])}, ["best", "positive", "shape"], zero=np.float32(0))
    best, positive, shape = model.predict(np.array([[1.0, -2.0, 3.0], [4.0, 0.0, -1.0]]))
    assert best.dtype == shape.dtype == np.int64 and positive.dtype == bool
    assert best.tolist() == [2, 0] and shape.tolist() == [2, 3] and positive[0].tolist() == [True, False, True]


def test_outputs_belong_to_the_caller() -> None:
    """An input, a constant or one value twice as outputs: what is written into them reaches nobody else."""
    nodes = [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Transpose", ["c"], ["t"], perm=[1, 0])]
    constant = np.arange(6, dtype=np.float32).reshape(2, 3)
    model = graph_of(nodes, {"x": (FLOAT, [None, 3])}, ["y", "x", "c", "t", "y"], c=constant)
    x = np.ones((2, 3), np.float32)
    first = model.predict(x)
    for y in first:
        y[...] = 7
    again = model.predict(x)
    assert np.array_equal(x, np.ones((2, 3)))
    for y, expected in zip(again, [x, x, constant, constant.T, x], strict=True):
        assert np.array_equal(y, expected)
    assert not any(np.shares_memory(a, b) for i, a in enumerate(first) for b in first[:i])


def test_batches_are_not_split() -> None:
    """Rows may meet in a graph: here each is divided by the sum over all."""
    nodes = [helper.make_node("ReduceSum", ["x", "axis"], ["s"]), helper.make_node("Div", ["x", "s"], ["y"])]
    model = graph_of(nodes, {"x": (FLOAT, [None, 1])}, ["y"], axis=np.array([0]))
    x = np.ones((4000, 1), np.float32)
    assert model.one_batch and np.allclose(model.predict(x, batch_size=10), 1 / 4000)


def test_half_and_double_weights_are_computed_in_float32() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Cast", ["h"], ["y"], to=FLOAT)]
    for kind, element in ((np.float16, onnx.TensorProto.FLOAT16), (np.float64, onnx.TensorProto.DOUBLE)):
        model = graph_of(nodes, {"x": (element, [None, 2])}, ["y"], w=np.array([[0.5], [0.25]], kind))
        y = model.predict(np.array([[1, 2]], kind))
        assert y.dtype == np.float32 and y.tolist() == [[1.0]]
        assert any("computed in float32" in note for note in model.notes)


# -- the graph ---------------------------------------------------------------------------------


def test_what_no_output_needs_cannot_refuse_the_model() -> None:
    nodes = [helper.make_node("NonMaxSuppression", ["x"], ["z"]), helper.make_node("Neg", ["x"], ["y"])]
    assert graph_of(nodes, {"x": (FLOAT, [None])}, ["y"]).predict(np.ones(2)).tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([("NonMaxSuppression", ["x"], ["y"], {})], "'NonMaxSuppression' is not supported; supported are Abs, Add"),
        ([("Neg", ["nowhere"], ["y"], {})], "found 'nowhere', which none does"),
        ([("Neg", ["h"], ["y"], {}), ("Neg", ["x"], ["h"], {})], "found 'h', which none does"),
        ([("Neg", ["x"], ["x"], {}), ("Neg", ["x"], ["y"], {})], "expected outputs of new names"),
        ([("Neg", ["x"], ["h"], {})], "expected outputs that a node gives, found 'y'"),
        ([("Neg", ["x", "x"], ["y"], {})], "expected 1 … 1 inputs, found 2"),
        ([("Neg", ["x"], ["y", "z"], {})], "expected 1 … 1 outputs, found 2"),
        ([("Sub", ["", "x"], ["y"], {})], "expected its first 2 inputs, found one left out"),
        ([("Neg", ["x"], ["y"], {"axis": 1})], r"expected the attributes \[\], found \['axis'\]"),
        ([("MatMul", ["x", "w", "w"], ["y"], {})], "expected 2 … 2 inputs, found 3"),
    ],
    ids=lambda v: str(v)[:40],
)
def test_graphs_that_are_refused(nodes: list[Any], message: str) -> None:
    made = [helper.make_node(op, i, o, **a) for op, i, o, a in nodes]
    with pytest.raises(formats.FormatError, match=message):
        graph_of(made, {"x": (FLOAT, [None])}, ["y"], w=np.ones((2, 2), np.float32))


def test_errors_of_a_call_name_the_node() -> None:
    model = graph_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="head")],
        {"x": (FLOAT, None)},
        ["y"],
        w=np.ones((3, 2), np.float32),
    )
    with pytest.raises(
        ValueError, match=r"node 'head' \(MatMul\) on inputs of float32 \(2, 4\).*expected 3 in the last"
    ):
        model.predict(np.ones((2, 4)))


def test_nodes_of_one_name() -> None:
    nodes = [helper.make_node("Neg", ["x"], ["h"], name="n"), helper.make_node("Exp", ["h"], ["y"], name="n")]
    model = graph_of(nodes, {"x": (FLOAT, [None])}, ["y"])
    assert np.allclose(model.predict(np.ones(2)), np.exp(-1))
    assert [layer.name for layer in model.layers] == ["n", "n_1"]


def test_thousands_of_nodes_of_one_name_load_at_once() -> None:
    """Looking for a free name may not take longer with each node: this took a minute, and grew with the cube."""
    names = ["x", *(f"h{i}" for i in range(8000))]
    nodes = [helper.make_node("Identity", [a], [b], name="n") for a, b in zip(names, names[1:], strict=False)]
    assert graph_of(nodes, {"x": (FLOAT, [1])}, [names[-1]]).predict(np.ones(1)) == 1


def test_whole_numbers_are_not_rounded_on_their_way_through_doubles() -> None:
    nodes = [helper.make_node("Cast", ["x"], ["d"], to=onnx.TensorProto.DOUBLE), helper.make_node("Neg", ["d"], ["y"])]
    model = graph_of(nodes, {"x": (INT64, [1])}, ["y"])
    assert model.predict(np.array([2**24])) == -(2**24)
    with pytest.raises(ValueError, match=r"2\*\*24"):
        model.predict(np.array([2**24 + 1]))


def test_what_is_left_out_of_a_concat_is_refused() -> None:
    with pytest.raises(fastgru.FormatError, match="expected its first 3 inputs"):
        graph_of([helper.make_node("Concat", ["x", "", "x"], ["y"], axis=0)], {"x": (FLOAT, [1])}, ["y"])


def test_pads_cut_off_no_more_than_there_is() -> None:
    model = graph_of(
        [helper.make_node("Pad", ["x", "pads"], ["y"])], {"x": (FLOAT, [3])}, ["y"], pads=np.array([0, -5])
    )
    with pytest.raises(ValueError, match="pads"):
        model.predict(np.ones(3))


def test_constants_do_not_multiply_at_load() -> None:
    """A constant joined with itself forty times over would be terabytes: that is left for the call."""
    names = ["c0", *(f"c{i}" for i in range(1, 41))]
    nodes = [helper.make_node("Concat", [a, a], [b], axis=0) for a, b in zip(names, names[1:], strict=False)]
    graph_of([*nodes, helper.make_node("Add", ["x", "c40"], ["y"])], {"x": (FLOAT, [None])}, ["y"], c0=np.ones(100))


def test_stream_says_why_not() -> None:
    model = graph_of([helper.make_node("Neg", ["x"], ["y"], name="n")], {"x": (FLOAT, [None, 3])}, ["y"])
    with pytest.raises(ValueError, match="stream: can't take single steps through layer 'n'"):
        model.stream()


def test_summary_names_every_node(golden: Path) -> None:
    lines: list[str] = []
    model = fastgru.load(golden / "onnx_torch_tagger_11.onnx")
    assert isinstance(model, OnnxModel)
    model.summary(lines.append)
    assert any("GRU" in line and "6 → 8, reset_after, bidirectional" in line for line in lines)
    assert lines[-1] == f"Parameters: {model.count_params():,}"


@pytest.mark.parametrize("key", ["opset", "inputs", "outputs", "nodes"])
@pytest.mark.parametrize("value", [None, 3, "x", [3], {"a": 1}, [{"name": "x"}], [None]])
def test_configs_of_our_own_files_that_lie(key: str, value: Any, golden: Path, tmp_path: Path) -> None:
    """A safetensors file may hold any config: what is no graph is a FormatError."""
    if (key, value) == ("opset", 3):
        pytest.skip("an opset is a number")
    file = formats.read(golden / "onnx_torch_dynamo_cell.onnx")
    assert file.config is not None
    file.config["config"][key] = value
    with pytest.raises(formats.FormatError):
        Model.from_model_file(file)


# -- the command line --------------------------------------------------------------------------


def test_score_nsnet2(shared: Path, tmp_path: Path) -> None:
    folder = shared / "models" / "onnx_nsnet2"
    recorded = np.load(folder / "nsnet2-20ms-baseline_expected.npz")
    np.save(tmp_path / "x.npy", recorded["in_input"])
    model = str(folder / "nsnet2-20ms-baseline.onnx")
    assert main(["score", model, str(tmp_path / "x.npy"), str(tmp_path / "y.npy"), "--quiet"]) == 0
    assert_close([np.load(tmp_path / "y.npy")], [recorded["out_output"]])


def test_score_and_info_of_several_inputs(golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Inputs and outputs that don't share their first axis: time first, and layers first."""
    path = golden / "onnx_torch_states_17.onnx"
    x, y = expected_of(path)
    np.savez(tmp_path / "x.npz", x0=x[0], x1=x[1])
    files = [str(path), str(tmp_path / "x.npz"), str(tmp_path / "y.npz")]
    assert main(["score", *files, "--quiet"]) == 0
    with np.load(tmp_path / "y.npz") as written:
        assert_close([written[name] for name in written.files], y)
    assert main(["score", *files[:2], str(tmp_path / "y.npy")]) == 1
    assert "write them to a .npz file" in capsys.readouterr().err
    assert main(["info", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "onnx, written by version pytorch" in shown and "input 'x0': float32 (time, batch, 6)" in shown


def test_a_graph_cannot_be_trained_and_says_so() -> None:
    model = fastgru.load(GOLDEN[0])
    with pytest.raises(ValueError, match="it is an ONNX graph, whose nodes have no backward pass"):
        model.train(np.zeros((1, 1)), None, None)  # type: ignore[union-attr, arg-type]
