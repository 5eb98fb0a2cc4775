"""ONNX files → config and tensors: what is read, and what is refused."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastgru
from fastgru import formats
from fastgru.formats.untrusted import LIMITS

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'fastgru[onnx]'")
helper, TensorProto = onnx.helper, onnx.TensorProto


def model_of(nodes: Any = None, tensors: Any = (), opset: int = 17, inputs: Any = None, **graph: Any) -> Any:
    """A ModelProto: y = x + c by default, c the first of ``tensors``."""
    if nodes is None:
        nodes = [helper.make_node("Add", ["x", "c"], ["y"], name="sum")]
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", None, 3])] if inputs is None else inputs
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    made = helper.make_graph(nodes, "g", ends, [y], list(tensors), **graph)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def read(model: Any) -> formats.ModelFile:
    return formats.read_bytes(model if isinstance(model, bytes) else model.SerializeToString(), "m.onnx")


def tensor(value: Any, name: str = "c") -> Any:
    return onnx.numpy_helper.from_array(np.asarray(value), name)


C = tensor(np.arange(3, dtype=np.float32))


# -- what is read ------------------------------------------------------------------------------


def test_nsnet2(shared: Path) -> None:
    """A published speech enhancer: two GRUs of 400 units between dense layers, exported by PyTorch 1.6."""
    folder = shared / "models" / "onnx_nsnet2"
    model = fastgru.load(folder / "nsnet2-20ms-baseline.onnx")
    expected = np.load(folder / "nsnet2-20ms-baseline_expected.npz")
    x = {name[3:]: value for name, value in expected.items() if name.startswith("in_")}
    y = model.predict(x)  # type: ignore[union-attr]
    reference = expected["out_output"]
    assert np.abs(y - reference).max() <= 2e-5 * max(1, np.abs(reference).max())
    grus = [v for v in model.layers if v.class_name() == "GRU"]  # type: ignore[union-attr]
    assert [v.describe() for v in grus] == ["400 → 400, reset_after"] * 2


def test_config_and_tensors() -> None:
    constant = helper.make_node("Constant", [], ["k"], value_floats=[1.0, 2.0])
    gather = helper.make_node("Gather", ["x", "i"], ["y"], axis=-1)
    model = model_of([constant, gather], [tensor(np.array([0, 2]), "i")])
    model.producer_name, model.producer_version = "me", "1.2"
    file = read(model)
    assert file.format == "onnx" and file.version == "me 1.2" and file.config is not None
    assert file.config["class_name"] == "OnnxGraph"
    assert file.config["config"] == {
        "name": "g",
        "opset": 17,
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["n", None, 3]}],
        "outputs": ["y"],
        "output_shapes": [None],
        "nodes": [
            {"name": "Gather_1", "op": "Gather", "inputs": ["x", "i"], "outputs": ["y"], "attributes": {"axis": -1}}
        ],
    }
    assert set(file.tensors) == {"i", "k"} and file.tensors["k"].dtype == np.float32


KINDS = "float32 float64 float16 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool".split()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("raw", [True, False])
def test_element_types(kind: str, raw: bool) -> None:
    value = np.array([[0, 1, 1], [2, 0, 1.5 if "float" in kind else 3]]).astype(kind)
    data = value.tobytes() if raw else value.ravel().tolist()
    element = helper.np_dtype_to_tensor_dtype(value.dtype)
    proto = helper.make_tensor("c", element, value.shape, data, raw=raw)
    found = read(model_of(tensors=[proto])).tensors["c"]
    assert found.dtype == value.dtype and np.array_equal(found, value)


@pytest.mark.parametrize("raw", [True, False])
def test_bfloat16_becomes_float32(raw: bool) -> None:
    value = np.array([1.0, -2.5, 0.125], np.float32)
    bits = (value.view(np.uint32) >> 16).astype("<u2")
    proto = TensorProto(name="c", data_type=TensorProto.BFLOAT16, dims=[3])
    if raw:
        proto.raw_data = bits.tobytes()
    else:
        proto.int32_data.extend(bits.tolist())
    found = read(model_of(tensors=[proto])).tensors["c"]
    assert found.dtype == np.float32 and np.array_equal(found, value)


def test_scalars_and_empty_tensors() -> None:
    tensors = [tensor(np.float32(2)), tensor(np.zeros((0, 3), np.float32), "empty")]
    file = read(model_of(tensors=tensors))
    assert file.tensors["c"].shape == () and file.tensors["empty"].shape == (0, 3)


def test_an_initialiser_that_is_also_an_input_is_a_constant() -> None:
    """Up to IR version 3 all of them were."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 3])
    c = helper.make_tensor_value_info("c", TensorProto.FLOAT, [3])
    file = read(model_of(tensors=[C], inputs=[x, c]))
    assert file.config is not None and [v["name"] for v in file.config["config"]["inputs"]] == ["x"]


# -- external data -----------------------------------------------------------------------------


def external(folder: Path, location: str, **entries: Any) -> Path:
    """A model in ``folder`` whose constant c (3 floats) lies at ``location``."""
    proto = TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        proto.external_data.add(key=key, value=str(value))
    folder.mkdir(exist_ok=True)
    path = folder / "m.onnx"
    path.write_bytes(model_of(tensors=[proto]).SerializeToString())
    return path


def test_external_data_beside_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = external(tmp_path / "model", "data.bin", offset=4, length=12)
    (tmp_path / "model" / "data.bin").write_bytes(np.arange(5, dtype="<f4").tobytes())
    assert formats.read(path).tensors["c"].tolist() == [1, 2, 3]
    y = fastgru.load(path).predict(np.zeros((1, 1, 3)))  # type: ignore[union-attr]
    assert y.tolist() == [[[1, 2, 3]]]
    monkeypatch.chdir(path.parent)
    assert formats.read("m.onnx").tensors["c"].tolist() == [1, 2, 3]


def test_external_data_without_a_length_goes_to_the_end(tmp_path: Path) -> None:
    path = external(tmp_path / "model", "sub/../data.bin", offset=8)
    (tmp_path / "model" / "data.bin").write_bytes(np.arange(5, dtype="<f4").tobytes())
    assert formats.read(path).tensors["c"].tolist() == [2, 3, 4]


@pytest.mark.parametrize(
    "location",
    ["../secret.bin", "sub/../../secret.bin", "ABSOLUTE", "link.bin", "linked/secret.bin", "", ".", "a\0b", "../model"],
)
def test_external_data_outside_of_the_folder(location: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(12))
    path = external(tmp_path / "model", str(secret) if location == "ABSOLUTE" else location)
    (path.parent / "link.bin").symlink_to(secret)
    (path.parent / "linked").symlink_to(tmp_path)
    with pytest.raises(formats.FormatError, match=r"initializer 'c': expected external data inside the model's folder"):
        formats.read(path)


def test_a_link_within_the_folder_is_followed(tmp_path: Path) -> None:
    path = external(tmp_path / "model", "link.bin")
    (path.parent / "data.bin").write_bytes(bytes(12))
    (path.parent / "link.bin").symlink_to("data.bin")
    assert formats.read(path).tensors["c"].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"offset": 4}, "expected 12 bytes for float32"),
        ({"offset": 8, "length": 12}, "expected external data within the 12 bytes"),
        ({"offset": -4, "length": 12}, "found offset -4"),
        ({"offset": 1 << 70}, "found offset"),
        ({"offset": 0, "length": 1 << 62}, "found offset 0 and length"),
        ({"offset": 0, "length": 8}, "expected 12 bytes for float32"),
        ({"offset": "x"}, "expected offset and length in whole numbers"),
    ],
    ids=str,
)
def test_external_data_outside_of_its_file(entries: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = external(tmp_path / "model", "data.bin", **entries)
    (path.parent / "data.bin").write_bytes(bytes(12))
    with pytest.raises(formats.FormatError, match=message):
        formats.read(path)


def many_external(folder: Path, tensors: int, spelling: str = "data.bin", kind: int = TensorProto.FLOAT) -> Path:
    """A model of ``tensors`` constants that all are the first mebibyte of data.bin."""
    width = 2 if kind == TensorProto.BFLOAT16 else 4
    made = []
    for i in range(tensors):
        made.append(TensorProto(name=f"c{i}", data_type=kind, dims=[(1 << 20) // width], data_location=1))
        made[-1].external_data.add(key="location", value=spelling.format("./" * i))
    (folder / "data.bin").write_bytes(bytes(1 << 20))
    path = folder / "m.onnx"
    path.write_bytes(model_of([helper.make_node("Add", ["x", "c0"], ["y"])], made).SerializeToString())
    return path


@pytest.mark.parametrize("spelling", ["data.bin", "{}data.bin"])
def test_tensors_that_all_name_one_range_are_added_up(spelling: str, tmp_path: Path) -> None:
    """A hundred gigabytes are declared by few names of one mebibyte; a file of many spellings is one file."""
    path = many_external(tmp_path, 80, spelling)
    with pytest.raises(formats.FormatError, match=r"initializer 'c\d+': expected at most \d+ bytes in all tensors"):
        formats.read(path)


def test_tied_external_tensors_are_one_array(tmp_path: Path) -> None:
    tensors = formats.read(many_external(tmp_path, 32, kind=TensorProto.BFLOAT16)).tensors
    assert len(tensors) == 32 and all(np.shares_memory(tensors["c0"], value) for value in tensors.values())


def test_external_data_that_is_no_file(tmp_path: Path) -> None:
    path = external(tmp_path / "model", "data.bin")
    with pytest.raises(formats.FormatError, match="expected external data in 'data.bin', found No such file"):
        formats.read(path)
    (path.parent / "data.bin").mkdir()
    with pytest.raises(formats.FormatError, match="expected"):
        formats.read(path)
    (path.parent / "data.bin").rmdir()
    if hasattr(os, "mkfifo"):
        os.mkfifo(path.parent / "data.bin")
        with pytest.raises(formats.FormatError, match="a pipe or device"):
            formats.read(path)


def test_bytes_have_no_folder(tmp_path: Path) -> None:
    """A name given with bytes is for errors only: nothing beside it is opened."""
    path = external(tmp_path / "model", "data.bin")
    (path.parent / "data.bin").write_bytes(bytes(12))
    with pytest.raises(formats.FormatError, match="not read from a path"):
        formats.read_bytes(path.read_bytes(), str(path))


# -- what is refused ---------------------------------------------------------------------------


def with_domain(domain: str) -> Any:
    model = model_of([helper.make_node("FusedGRU", ["x"], ["y"], name="fused", domain=domain)])
    model.opset_import.add(domain=domain, version=1)
    return model


def with_body(op: str, *tensors: Any, depth: int = 1) -> Any:
    """A node with a graph inside, with another one inside, …"""
    body = helper.make_graph([], "body", [], [], list(tensors))
    for _ in range(depth):
        body = helper.make_graph([helper.make_node(op, ["x"], ["y"], name="turns", body=body)], "body", [], [])
    return model_of(body.node)


def changed(**fields: Any) -> Any:
    model = model_of(tensors=[C])
    for name, value in fields.items():
        setattr(model, name, value)
    return model


def with_input(kind: Any) -> Any:
    return model_of(tensors=[C], inputs=[helper.make_value_info("x", kind)])


def sparse() -> Any:
    model = model_of(tensors=[C])
    model.graph.sparse_initializer.add(dims=[3])
    return model


STRINGS = helper.make_tensor("c", TensorProto.STRING, [1], [b"a"])
REFUSED: list[tuple[Any, str]] = [
    (with_domain("com.microsoft"), r"node 'fused' \(FusedGRU\): expected operators of the standard domain, found com"),
    (with_body("Loop", C, C), r"node 'turns' \(Loop\): body: initializer 'c': expected a name of its own"),
    (with_body("Scan", STRINGS), r"\(Scan\): body: initializer 'c': expected elements of float32"),
    (with_body("If", depth=17), r"\(If\): body: .*expected graphs inside graphs at most 16 deep, found deeper ones"),
    (model_of(tensors=[C], opset=6), "opset_import: expected one opset of 7 … .., found 6"),
    (model_of(tensors=[C], opset=99), "opset_import: expected one opset of 7 … .., found 99"),
    (changed(ir_version=2), "ir_version: expected 3 … .., found 2"),
    (changed(ir_version=100), "ir_version: expected 3 … .., found 100"),
    (model_of(tensors=[STRINGS]), "initializer 'c': expected elements of float32, .*found TensorProto.DataType 8"),
    (model_of(tensors=[C, C]), "initializer 'c': expected a name of its own, found 'c' twice"),
    (model_of(tensors=[tensor(np.zeros(3), "")]), "expected a name of its own, found none"),
    (sparse(), "sparse_initializer: expected dense"),
    (with_input(helper.make_tensor_type_proto(TensorProto.STRING, [None])), "input 'x': expected a tensor of numbers"),
    (
        with_input(helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))),
        "input 'x': expected a tensor of numbers, found sequence_type",
    ),
    (
        model_of([helper.make_node("Constant", [], ["y"], value_string="a", name="k")]),
        r"node 'k' \(Constant\): expected a tensor or numbers, found value_string",
    ),
    (model_of([helper.make_node("Constant", [], ["c"], value=C)], [C]), "name of its own, found 'c' twice"),
    (
        model_of([helper.make_node("ConstantOfShape", ["x"], ["y"], value=C)]),
        r"ConstantOfShape\): value: expected one number, found a tensor of shape \(3,\)",
    ),
]


@pytest.mark.parametrize(("model", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_what_is_refused(model: Any, message: str) -> None:
    with pytest.raises(formats.FormatError, match=message) as error:
        read(model)
    assert str(error.value).startswith("m.onnx: ")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dims": [1 << 40]}, "expected 4398046511104 bytes for float32"),
        ({"dims": [1 << 62, 1 << 62]}, "expected"),
        ({"dims": [-3]}, "expected a shape of at most 32 sizes of 0 or more"),
        ({"dims": [1] * 33 + [3]}, "expected a shape of at most 32 sizes"),
        ({"dims": [2]}, r"expected 8 bytes for float32 \(2,\), found 12"),
        ({"raw_data": b""}, "expected 12 bytes for float32"),
        ({"data_type": TensorProto.INT64}, "expected 24 bytes for int64"),
        ({"data_type": 0}, "expected elements of"),
        ({"data_type": 99}, "expected elements of"),
        ({"segment": {"begin": 0, "end": 1}}, "expected a whole tensor, found a segment"),
    ],
    ids=str,
)
def test_shapes_are_checked_before_anything_is_allocated(fields: dict[str, Any], message: str) -> None:
    given = {"name": "c", "data_type": TensorProto.FLOAT, "dims": [3], "raw_data": bytes(12), **fields}
    with pytest.raises(formats.FormatError, match=message):
        read(model_of(tensors=[TensorProto(**given)]))


def test_listed_elements_must_be_as_many_as_the_shape_says() -> None:
    proto = TensorProto(name="c", data_type=TensorProto.INT8, dims=[1 << 50], int32_data=[1, 2])
    with pytest.raises(formats.FormatError, match="expected 1125899906842624 elements for int8"):
        read(model_of(tensors=[proto]))
    proto = TensorProto(name="c", data_type=TensorProto.INT8, dims=[2], int32_data=[1, 300])
    with pytest.raises(formats.FormatError, match="expected int8 elements"):
        read(model_of(tensors=[proto]))


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def test_a_million_empty_messages_are_counted_before_they_are_parsed() -> None:
    """Each of two bytes, a parser makes an object of a hundred and more of it: 2 MB would become 200."""
    data = b"\x08\x08" + field(7, b"\x0a\x00" * 1_000_000)
    started = time.perf_counter()
    with pytest.raises(formats.FormatError, match=f"more than {LIMITS.onnx_fields} fields"):
        read(data)
    assert time.perf_counter() - started < 5


def test_nesting_is_bounded() -> None:
    data = b""
    for _ in range(1000):  # graph → node → attribute → graph → …
        data = field(1, field(5, field(6, data)))
    with pytest.raises(formats.FormatError, match="nested deeper than 64"):
        read(b"\x08\x08" + field(7, data))


def test_every_cut_of_a_file_is_refused(golden: Path) -> None:
    data = (golden / "onnx_torch_states_17.onnx").read_bytes()
    read(data)
    accepted = []
    for size in range(1, len(data)):
        try:
            read(data[:size])
            accepted.append(size)
        except formats.FormatError:
            pass
    assert accepted == []


def test_damage_is_a_format_error_or_harmless(golden: Path) -> None:
    """One byte changed anywhere: FormatError at load, ValueError at the call, or some result. Nothing else."""
    rng = np.random.default_rng(0)
    data = (golden / "onnx_torch_packed_17.onnx").read_bytes()
    recorded = np.load(golden / "onnx_torch_packed_17.expected.npz")
    for place in rng.integers(0, len(data), 400):
        broken = bytearray(data)
        broken[place] = rng.integers(0, 256)
        try:
            model = fastgru.models.Model.from_model_file(formats.read_bytes(bytes(broken)))
            model.predict([recorded["x0"], recorded["x1"]])
        except ValueError:
            pass


def test_what_is_no_onnx_model() -> None:
    with pytest.raises(formats.FormatError, match="expected an ONNX model with a graph"):
        formats.read_bytes(b"\x08\x07\x12\x07pytorch")
    with pytest.raises(formats.FormatError, match="an ONNX model"):
        formats.read_bytes(b"\x08\x07\x12\x7fpytorch")


def test_without_the_onnx_package(monkeypatch: pytest.MonkeyPatch, golden: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(formats.FormatError, match=r'pip install "fastgru\[onnx\]"'):
        fastgru.load(golden / "onnx_torch_states_17.onnx")


def test_a_saved_copy_needs_no_onnx(monkeypatch: pytest.MonkeyPatch, golden: Path, tmp_path: Path) -> None:
    model = fastgru.load(golden / "onnx_torch_states_17.onnx")
    model.save(tmp_path / "m.safetensors")  # type: ignore[union-attr]
    monkeypatch.setitem(sys.modules, "onnx", None)
    recorded = np.load(golden / "onnx_torch_states_17.expected.npz")
    y, h_n = fastgru.load(tmp_path / "m.safetensors").predict([recorded["x0"], recorded["x1"]])  # type: ignore[union-attr]
    assert np.abs(y - recorded["y0"]).max() <= 2e-5 and np.abs(h_n - recorded["y1"]).max() <= 2e-5
