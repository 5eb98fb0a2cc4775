"""If, Loop and Scan: against ONNX Runtime, and bodies made to hurt."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastgru
from fastgru import convert, formats, ops
from fastgru.formats import FormatError
from fastgru.formats.untrusted import LIMITS
from fastgru.layers import onnx_control
from fastgru.models import Model
from fastgru.models.onnx import OnnxModel

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'fastgru[onnx]'")
helper, node, P = onnx.helper, onnx.helper.make_node, onnx.TensorProto
KINDS: dict[str, tuple[Any, Any]] = {"i": (P.INT64, []), "b": (P.BOOL, []), "s": (P.FLOAT, []), "": (P.FLOAT, None)}
KINDS |= {"r": (P.FLOAT, [None]), "t": (P.FLOAT, [None, None, 3]), "v": (P.FLOAT, [3]), "m": (P.FLOAT, [None, 3])}


def ends(text: str) -> list[Any]:
    """Inputs or outputs: "t:i c:b s:s v:v m:m h" are a whole number, a boolean, a float, 3 of them, rows of 3, any."""
    parted = (word.partition(":") for word in text.split())
    return [helper.make_tensor_value_info(name, *KINDS[kind]) for name, _, kind in parted]


def graph(nodes: list[Any], inputs: str, outputs: str, **constants: Any) -> Any:
    tensors = [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()]
    return helper.make_graph(nodes, "g", ends(inputs), ends(outputs), tensors)


def model_of(made: Any, opset: int = 17) -> Any:
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def loaded(made: Any, opset: int = 17) -> OnnxModel:
    found = Model.from_model_file(formats.read_bytes(model_of(made, opset).SerializeToString(), "m.onnx"))
    assert isinstance(found, OnnxModel)
    return found


def listed(y: Any) -> list[Any]:
    return y if isinstance(y, list) else [y]


def agree(made: Any, x: dict[str, Any], tmp_path: Path, opset: int = 17) -> None:
    """As ONNX Runtime; the same after saving, and written as ONNX again."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

    def reference(data: bytes) -> list[Any]:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        found = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(None, x)
        return list(found)

    proto = model_of(made, opset)
    expected = reference(proto.SerializeToString())
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    model = loaded(made, opset)
    model.save(tmp_path / "copy.safetensors")
    convert.convert(tmp_path / "m.onnx", tmp_path / "again.onnx")
    copies = [fastgru.load(tmp_path / name) for name in ("copy.safetensors", "again.onnx")]
    for y in (*(listed(m.predict(x)) for m in (model, *copies)), reference((tmp_path / "again.onnx").read_bytes())):  # type: ignore[union-attr]
        assert len(y) == len(expected)
        for found, value in zip(y, expected, strict=True):
            assert found.shape == value.shape and found.dtype == value.dtype
            assert np.abs(found - value).max(initial=0) <= 2e-5 * max(1, np.abs(value).max(initial=0))


# -- against ONNX Runtime ----------------------------------------------------------------------

W = np.random.default_rng(0).standard_normal((3, 3)).astype(np.float32) / 2
X = np.random.default_rng(1).standard_normal((4, 3)).astype(np.float32)


def step(state: str = "h", out: str = "n", weights: str = "w") -> list[Any]:
    """out = tanh(state W + x), W and x from wherever they are."""
    return [
        node("MatMul", [state, weights], [f"{out}_p"]),
        node("Add", [f"{out}_p", "x"], [f"{out}_s"]),
        node("Tanh", [f"{out}_s"], [out]),
    ]


@pytest.mark.parity("onnxruntime")
@pytest.mark.parametrize(("trips", "start"), [("", ""), ("m", ""), ("", "go"), ("m", "go")])
@pytest.mark.parametrize("turns", [0, 1, 5])
@pytest.mark.parametrize("opset", [11, 17])
def test_loops_end_by_count_or_condition(trips: str, start: str, turns: int, opset: int, tmp_path: Path) -> None:
    """h ← tanh(h W + x) while t < until; x and until come from outside, W is in the body."""
    body = graph([*step(), node("Less", ["t", "until"], ["c"])], "t:i cc:b h", "c:b n n_p", w=W)
    loop = node("Loop", [trips, start, "x"], ["y", "parts"], name="turns", body=body)
    constants: dict[str, Any] = {"until": np.array(turns - 2), "m": np.array(turns), "go": np.array(turns > 0)}
    made = graph([loop], "x:m", "y:m parts:t", **{k: v for k, v in constants.items() if k in (trips, start, "until")})
    # parts of no turns have the declared shape, which is not known here
    agree(graph([loop], "x:m", "y:m", **constants) if turns == 0 else made, {"x": X}, tmp_path, opset)


@pytest.mark.parity("onnxruntime")
@pytest.mark.parametrize("seed", range(12))
def test_random_loops(seed: int, tmp_path: Path) -> None:
    """Several carried values, weights that are carried unchanged, names that bodies side by side use twice, an If and
    a Loop inside, values from two graphs further out."""
    rng = np.random.default_rng(seed)
    turns, inner_turns = (int(n) for n in rng.integers(1, 6, 2))
    w = rng.standard_normal((3, 3)).astype(np.float32) / 2
    branches = {
        f"{name}_branch": graph([node(op, ["h", "k"], ["b"])], "", "b", k=np.float32(rng.standard_normal()))
        for name, op in (("then", "Mul"), ("else", "Sub"))
    }
    inner_body = graph([*step("v", "vn", "wc"), node("Identity", ["ic"], ["io"])], "it:i ic:b v", "io:b vn vn_p")
    body = graph(
        [
            node("Mod", ["t", "two"], ["r"]),
            node("Cast", ["r"], ["odd"], to=P.BOOL),
            node("If", ["odd"], ["hb"], **branches),
            node("Loop", ["im", "", "hb"], ["hl", "trail"], body=inner_body),
            node("ReduceSum", ["trail"], ["s"], keepdims=0),
            node("Add", ["total", "s"], ["sum"]),
            node("Identity", ["c"], ["co"]),
            node("Identity", ["wc"], ["wo"]),
        ],
        "t:i c:b h wc total",
        "co:b hl wo sum hl s",
        two=np.array(2),
        im=np.array(inner_turns),
    )
    loop = node("Loop", ["m", "", "x", "w", "zero"], ["h_n", "w_n", "all", "steps", "sums"], body=body)
    made = graph([loop], "x:m", "h_n:m w_n:m all:s steps:t sums:r", m=np.array(turns), w=w, zero=np.float32(0))
    agree(made, {"x": rng.standard_normal((int(rng.integers(1, 5)), 3)).astype(np.float32)}, tmp_path)


@pytest.mark.parity("onnxruntime")
@pytest.mark.parametrize("back", [(0, 0), (1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize(("opset", "axes"), [(9, (0, 0)), (9, (1, 0)), (17, (0, 1)), (17, (-1, -1)), (17, (1, -2))])
def test_scans(back: tuple[int, int], axes: tuple[int, int], opset: int, tmp_path: Path) -> None:
    body = graph(
        [node("MatMul", ["h", "w"], ["p"]), node("Add", ["p", "s"], ["q"]), node("Tanh", ["q"], ["n"])],
        "h:v s:v",
        "n:v q:v",
    )
    how: dict[str, Any] = {"scan_input_axes": axes[:1], "scan_output_axes": axes[1:], "num_scan_inputs": 1}
    how |= {"scan_input_directions": back[:1], "scan_output_directions": back[1:]}
    made = graph([node("Scan", ["h0", "x"], ["y", "all"], body=body, **how)], "x:m h0:v", "y:v all:m", w=W)
    x = np.random.default_rng(2).standard_normal((3, 3)).astype(np.float32)
    agree(made, {"x": x, "h0": X[0]}, tmp_path, opset)


@pytest.mark.parity("onnxruntime")
@pytest.mark.parametrize("sign", [1, -1])
def test_if_takes_values_from_outside(sign: int, tmp_path: Path) -> None:
    """Branches give a value from outside, a constant, and one name from both."""
    then = graph([node("Identity", ["x"], ["a"]), node("Exp", ["h"], ["b"])], "", "a b")
    other = graph([node("MatMul", ["x", "w"], ["a"]), node("Identity", ["k"], ["b"])], "", "a b", k=W)
    nodes = [
        node("ReduceSum", ["x"], ["s"], keepdims=0),
        node("Greater", ["s", "zero"], ["c"]),
        node("Neg", ["x"], ["h"]),
        node("If", ["c"], ["y", "z"], then_branch=then, else_branch=other),
    ]
    agree(graph(nodes, "x:m", "y:m z:m", zero=np.float32(0), w=W), {"x": sign * np.abs(X)}, tmp_path)


def test_no_turns_give_what_is_declared() -> None:
    body = graph([node("Add", ["h", "x"], ["n"]), node("Cast", ["t"], ["k"], to=P.INT32)], "t:i c:b h", "c:b n n")
    body.output.extend([helper.make_tensor_value_info("k", P.INT32, [2, "any"]), onnx.ValueInfoProto(name="n")])
    body.output[2].CopyFrom(helper.make_tensor_value_info("n", P.FLOAT16, [4]))
    loop = node("Loop", ["zero", "", "x"], ["y", "a", "b", "d"], body=body)
    y, a, b, d = loaded(graph([loop], "x", "y a b d", zero=np.array(0))).predict(X)
    assert np.array_equal(y, X) and a.shape == (0, 4) and a.dtype == np.float32
    assert b.shape == (0, 2, 0) and b.dtype == np.int32 and d.shape == (0,)


def test_constants_of_bodies_become_tensors_of_their_own(tmp_path: Path) -> None:
    """Bodies side by side use one name; so does a Constant node of the graph around them, after them."""
    branches = [graph([node("Add", ["x", "k"], ["b"])], "", "b", k=np.float32(n)) for n in (1, 2)]
    nodes = [
        node("If", ["yes"], ["u"], then_branch=branches[0], else_branch=branches[1]),
        node("Constant", [], ["k_1"], value_float=10.0),
        node("Add", ["u", "k_1"], ["y"]),
    ]
    made = graph(nodes, "x", "y", yes=np.array(False))
    file = formats.read_bytes(model_of(made).SerializeToString())
    assert sorted(file.tensors) == ["k", "k_1", "k_2", "yes"] and file.tensors["k_1"] == 10
    model = loaded(made)
    assert model.predict(np.float32(0)) == 12
    model.save(tmp_path / "m.safetensors")
    assert fastgru.load(tmp_path / "m.safetensors").predict(np.float32(0)) == 12  # type: ignore[union-attr]


def test_weights_carried_unchanged_are_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    body = graph([*step(weights="wc"), node("Identity", ["wc"], ["wo"])], "t:i c:b h wc", "c:b n wo")
    model = loaded(graph([node("Loop", ["m", "", "x", "w"], ["y", "v"], body=body)], "x", "y", m=np.array(3), w=W))
    monkeypatch.setattr(ops, "pack_dense", lambda *_: pytest.fail("packed while scoring"))
    model.predict(X)


# -- Keras' exports ----------------------------------------------------------------------------


def test_keras_export_on_the_command_line(golden: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from fastgru.cli import main

    path = golden / "onnx_keras3_masked.onnx"
    assert main(["info", str(path)]) == 0
    assert "body of" in capsys.readouterr().out
    assert main(["convert", str(path), str(tmp_path / "again.onnx"), "--verify"]) == 0
    assert main(["convert", str(path), str(tmp_path / "again.keras")]) == 1
    assert "only a chain of layers leaves ONNX" in capsys.readouterr().err
    with np.load(golden / "onnx_keras3_masked.expected.npz") as recorded:
        y = fastgru.load(tmp_path / "again.onnx").predict(recorded["x0"])  # type: ignore[union-attr]
        assert np.abs(y - recorded["y0"]).max() <= 2e-5


# -- bodies made to hurt -----------------------------------------------------------------------


def loop_of(body: Any, inputs: list[str] | None = None, outputs: list[str] | None = None, **constants: Any) -> Any:
    loop = node("Loop", ["m", "", "x"] if inputs is None else inputs, outputs or ["y"], name="turns", body=body)
    return graph([loop], "x", "y", m=np.array(3), **constants)


ADD = node("Add", ["h", "x"], ["n"])
SEQUENCE = helper.make_value_info("s", helper.make_sequence_type_proto(helper.make_tensor_type_proto(P.FLOAT, None)))


def with_attribute(made: Any, name: str, value: Any) -> Any:
    made.node[0].attribute.append(helper.make_attribute(name, value))
    return made


def with_sequence() -> Any:
    body = graph([ADD], "t:i c:b h", "c:b n")
    body.output.append(SEQUENCE)
    return loop_of(body)


BAD: list[tuple[Any, str]] = [
    (loop_of(graph([ADD], "t:i c:b", "c:b n")), "'turns' .*found 'h', which none does"),
    (
        loop_of(graph([ADD], "t:i c:b h u", "c:b n")),
        r"node 'turns' \(Loop\): attribute body: inputs: expected 3, found 4",
    ),
    (loop_of(graph([], "t:i c:b h", "c:b")), "attribute body: outputs: expected 2 or more, found 1"),
    (loop_of(graph([], "", "")), "attribute body: inputs: expected 3, found 0"),
    (loop_of(graph([ADD], "t:i c:b h", "c:b n"), outputs=["y", "z"]), "outputs: expected 3 or more, found 2"),
    (loop_of(graph([ADD], "t:i c:b h", "c:b n z")), "'turns' .*found 'z', which none does"),
    (
        loop_of(graph([node("Neg", ["x"], ["n"])], "t:i c:b x", "c:b n")),
        r"\(Loop\): body: inputs: expected names that differ, found",
    ),
    (loop_of(graph([ADD], "t:i c:b h", "c:b n", x=W)), r"body: constants: expected new names, found \['x'\]"),
    (
        loop_of(graph([node("Add", ["h", "h"], ["x"])], "t:i c:b h", "c:b x")),
        r"body: .*outputs of new names, found \['x'",
    ),
    (loop_of(graph([node("Neg", ["h"], ["m"])], "t:i c:b h", "c:b m")), "expected outputs of new names"),
    (
        loop_of(graph([ADD], "t:i c:b h", "c:b n"), inputs=["m", "", ""]),
        "expected its first 3 inputs, found one left out",
    ),
    (loop_of(graph([ADD], "t:i c:b h", "c:b n"), inputs=["m"]), r"expected 2 … \d+ inputs, found 1"),
    (with_attribute(loop_of(graph([ADD], "t:i c:b h", "c:b n")), "more", graph([], "", "")), "expected the graphs"),
    (
        graph([node("Loop", ["m", "", "x"], ["y"])], "x", "y", m=np.array(1)),
        r"expected the graphs \['body'\].*found \[\]",
    ),
    (graph([node("Loop", ["m", "", "x"], ["y"], body=3)], "x", "y", m=np.array(1)), r"expected the graphs \['body'\]"),
    (graph([node("Neg", ["x"], ["y"], body=graph([], "", ""))], "x", "y"), "expected no graphs in attributes"),
    (with_sequence(), "body: output 's': expected a tensor of numbers, found sequence_type"),
    (
        graph([node("If", ["x"], ["y"], then_branch=graph([], "", ""), else_branch=graph([], "", ""))], "x", "y"),
        "attribute .*_branch: outputs: expected 1 or more, found 0",
    ),
    (
        graph([node("Scan", ["x"], ["y"], num_scan_inputs=2, body=graph([], "h", "h"))], "x", "y"),
        "num_scan_inputs: expected 1 … 1, found 2",
    ),
    (
        graph(
            [node("Scan", ["x"], ["y"], num_scan_inputs=1, scan_input_axes=[0, 1], body=graph([], "h", "h"))], "x", "y"
        ),
        "attribute scan_input_axes: expected 1, found 2",
    ),
    (
        loop_of(graph([node("NonMaxSuppression", ["h"], ["n"], name="odd")], "t:i c:b h", "c:b n")),
        r"node 'odd' \(NonMaxSuppression\): the operator .* is not supported",
    ),
]


@pytest.mark.parametrize(("made", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_bodies_that_are_refused(made: Any, message: str) -> None:
    with pytest.raises(FormatError, match=message) as error:
        loaded(made)
    assert str(error.value).startswith("m.onnx: ")


def test_the_scan_of_opset_8_is_refused() -> None:
    scan = node("Scan", ["", "x"], ["y"], num_scan_inputs=1, body=graph([], "h", "h"))
    with pytest.raises(FormatError, match=r"node '' \(Scan\): expected|opset 9 or later"):
        loaded(graph([scan], "x", "y"), 8)


def nested(depth: int) -> Any:
    made, name = graph([node("Neg", ["x"], ["b"])], "", "b"), "b"
    for i in range(depth):
        name = f"b{i}" if i < depth - 1 else "y"
        made = graph([node("If", ["yes"], [name], then_branch=made, else_branch=graph([], "", "x"))], "", name)
    return graph(list(made.node), "x", "y", yes=np.array(True))


def test_depth_is_bounded(tmp_path: Path) -> None:
    deepest = loaded(nested(LIMITS.onnx_depth))
    assert np.array_equal(deepest.predict(X), -X)
    with pytest.raises(FormatError, match=f"graphs inside graphs at most {LIMITS.onnx_depth} deep, found deeper ones"):
        loaded(nested(LIMITS.onnx_depth + 1))
    deepest.save(tmp_path / "m.safetensors")
    assert np.array_equal(fastgru.load(tmp_path / "m.safetensors").predict(X), -X)  # type: ignore[union-attr]
    entry: Any = {"name": "n", "op": "If", "inputs": ["x"], "outputs": ["y"], "attributes": {}}
    for _ in range(60):
        body = {"name": "b", "inputs": [], "outputs": [], "nodes": [entry], "constants": {}}
        entry = {**entry, "attributes": {"then_branch": {"graph": body}}}
    config = {"opset": 17, "inputs": [], "outputs": ["y"], "nodes": [entry]}
    file = formats.ModelFile("fastgru-safetensors", "", {"class_name": "OnnxGraph", "config": config}, {}, (), "own")
    with pytest.raises(FormatError, match="own: .*at most 16 deep"):
        Model.from_model_file(file)


@pytest.mark.parametrize("key", ["inputs", "outputs", "nodes", "constants", "the graph"])
@pytest.mark.parametrize(
    "value", [None, 3, "x", [3], {"a": 1}, [{"name": "x"}], [None], {"w": "nowhere"}, {"w": ["w"]}]
)
def test_bodies_of_our_own_files_that_lie(key: str, value: Any) -> None:
    made = loop_of(graph(step(), "t:i c:b h", "c:b n", w=W))
    file = formats.read_bytes(model_of(made).SerializeToString())
    assert file.config is not None
    body = file.config["config"]["nodes"][0]["attributes"]["body"]
    if key == "the graph":
        body["graph"] = value
    else:
        body["graph"][key] = value
    with pytest.raises(FormatError):
        Model.from_model_file(file)


@pytest.mark.parametrize("trips", ["", "m"])
@pytest.mark.parametrize("deep", [False, True])
def test_no_loop_is_endless(trips: str, deep: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one whose condition stays true, nor one of 2**62 turns, nor one inside another."""
    monkeypatch.setattr(onnx_control, "LIMITS", dataclasses.replace(LIMITS, onnx_turns=1000))
    body = graph([node("Neg", ["h"], ["n"])], "t:i c:b h", "c:b n")
    if deep:
        inner = node(
            "Loop", ["some", "", "h"], ["n"], body=graph([node("Neg", ["v"], ["vn"])], "it:i ic:b v", "ic:b vn")
        )
        body = graph([inner], "t:i c:b h", "c:b n")
    loop = node("Loop", [trips, "", "x"], ["y"], name="turns", body=body)
    model = loaded(graph([loop], "x", "y", m=np.array(1 << 62), some=np.array(300)))
    for _ in range(2):  # every call has all of them
        with pytest.raises(ValueError, match=r"node 'turns' \(Loop\).*expected at most 1000 turns"):
            model.predict(X)
    short = loaded(graph([node("Loop", ["k", "", "x"], ["y"], body=body)], "x", "y", k=np.array(2), some=np.array(300)))
    assert np.array_equal(short.predict(X), X)


def test_loops_beside_each_other_share_the_turns_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a file of many loops, a hundred bytes each, would run for as many times as long."""
    monkeypatch.setattr(onnx_control, "LIMITS", dataclasses.replace(LIMITS, onnx_turns=1000))
    body = graph([node("Neg", ["h"], ["n"])], "t:i c:b h", "c:b n")
    ends = ["x", "a", "b", "y"]
    loops = [node("Loop", ["m", "", ends[i]], [ends[i + 1]], name=f"loop{i}", body=body) for i in range(3)]
    with pytest.raises(ValueError, match=r"node 'loop2' \(Loop\).*expected at most 1000 turns of all loops in a call"):
        loaded(graph(loops, "x", "y", m=np.array(400))).predict(X)
    fits = loaded(graph(loops, "x", "y", m=np.array(300)))
    for _ in range(2):  # every call has all of them
        assert np.array_equal(fits.predict(X), X)


def test_what_turns_give_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays and their number, over all outputs; what nobody needs is not kept."""
    body = graph([node("Expand", ["h", "size"], ["n"])], "t:i c:b h", "c:b h n n")
    constants: dict[str, Any] = {"size": np.array([1 << 28]), "m": np.array(1 << 40)}
    every = graph([node("Loop", ["m", "", "x"], ["y", "a", "b"], name="turns", body=body)], "x", "a b", **constants)
    with pytest.raises(ValueError, match=r"'turns' .*expected to make at most 2147483648 bytes"):
        loaded(every).predict(np.ones(1))
    constants["m"] = np.array(20)
    few = graph([node("Loop", ["m", "", "x"], ["y", "a", "b"], body=body)], "x", "y", **constants)
    assert loaded(few).predict(np.ones(1)) == 1
    growing = graph([node("Concat", ["h", "h"], ["n"], axis=0)], "t:i c:b h", "c:b n")
    with pytest.raises(ValueError, match=r"\(Concat\).*expected to make at most"):
        monkeypatch.setattr("fastgru.layers.onnx_shaping.LIMITS", dataclasses.replace(LIMITS, onnx_made=1 << 20))
        loaded(graph([node("Loop", ["m", "", "x"], ["y"], body=growing)], "x", "y", m=np.array(60))).predict(np.ones(1))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            graph([node("Cast", ["t"], ["b"], to=P.INT64)], "t:i c:b h", "b:i h"),
            "cond: expected one boolean, found int64",
        ),
        (
            graph([node("Cast", ["h"], ["b"], to=P.BOOL)], "t:i c:b h", "b:b h"),
            r"cond: expected one boolean, found bool \(4, 3\)",
        ),
        (
            graph([node("Concat", ["h", "x"], ["n"], axis=0)], "t:i c:b h", "c:b n n"),
            r"one type and shape in every turn, found float32 \(8, 3\) and float32 \(12, 3\)",
        ),
        (
            graph([node("MatMul", ["h", "h"], ["n"], name="inner")], "t:i c:b h", "c:b n"),
            r"'turns' .*node 'inner' \(MatMul\)",
        ),
    ],
    ids=["cond type", "cond shape", "shapes", "inner"],
)
def test_errors_of_turns_name_the_node(body: Any, message: str) -> None:
    loop = node("Loop", ["m", "", "x"], ["y", "all"][: len(body.output) - 1], name="turns", body=body)
    model = loaded(graph([loop], "x", " ".join(loop.output), m=np.array(3)))
    with pytest.raises(ValueError, match=message):
        model.predict(X)


def test_thousands_of_bodies_load_at_once() -> None:
    """Scopes and captured names may cost no more than the file is long."""
    nodes = []
    for i in range(2000):
        branch = graph([node("Add", [f"h{i}", "k"], ["b"])], "", "b", k=np.float32(i))
        nodes.append(node("If", ["yes"], [f"h{i + 1}"], then_branch=branch, else_branch=branch))
    nodes.insert(0, node("Neg", ["x"], ["h0"]))
    model = loaded(graph(nodes, "x", "h2000", yes=np.array(True)))
    assert model.predict(np.float32(0)) == sum(range(2000))


def test_weights_that_many_nodes_and_bodies_use_are_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A megabyte packed once for each of a thousand nodes would be a gigabyte."""
    w = np.eye(512, dtype=np.float32)
    packed = []
    pack = ops.pack_dense
    monkeypatch.setattr(ops, "pack_dense", lambda *a: packed.append(1) or pack(*a))
    nodes = [node("Identity", ["x"], ["h0"])]
    for i in range(0, 40, 2):
        branch = graph([node("MatMul", [f"h{i}", "w"], ["b"])], "", "b")
        nodes.append(node("If", ["yes"], [f"h{i + 1}"], then_branch=branch, else_branch=branch))
        nodes.append(node("MatMul", [f"h{i + 1}", "w"], [f"h{i + 2}"]))
    model = loaded(graph(nodes, "x", "h40", yes=np.array(True), w=w))
    assert len(packed) == 1
    x = np.arange(512, dtype=np.float32)[None]
    assert np.array_equal(model.predict(x), x)
