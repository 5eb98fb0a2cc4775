"""Keras files: every variable under its key with its values, whatever Keras wrote the file."""

from __future__ import annotations

import copy
import io
import json
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastgru.formats import FormatError, read, read_bytes

GOLDEN = Path(__file__).parent / "golden"
KERAS = sorted([*GOLDEN.glob("*.keras"), *GOLDEN.glob("*.h5")], key=lambda path: path.name)
ZIPPED = [path for path in KERAS if path.suffix == ".keras"]


def expected(path: Path) -> dict[str, int]:
    with np.load(path.with_name(path.stem + ".expected.npz")) as data:
        return dict(zip(data["keys"].tolist(), data["crcs"].tolist(), strict=True))


def crc(value: np.ndarray) -> int:
    array = np.array(value, order="C")
    if array.dtype.kind in "fc":
        array[np.isnan(array)] = np.nan
    return zlib.crc32(array.astype(array.dtype.newbyteorder("<")).tobytes())


def crcs(tensors: dict[str, np.ndarray]) -> dict[str, int]:
    return {key: crc(value) for key, value in tensors.items()}


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(contents: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def edited(path: Path, edit: Any) -> bytes:
    """Return the archive at `path` with its config changed in place by `edit`."""
    contents = members(path)
    config = json.loads(contents["config.json"])
    edit(config)
    contents["config.json"] = json.dumps(config).encode()
    return zipped(contents)


def layers_of(config: Any) -> dict[str, Any]:
    return {layer["config"]["name"]: layer["config"] for layer in config["config"]["layers"]}


def test_there_are_golden_files() -> None:
    assert len(KERAS) > 40


@pytest.mark.parametrize("path", KERAS, ids=lambda path: path.name)
def test_golden(path: Path) -> None:
    model = read(path)
    assert model.format == ("keras-v3" if path.suffix == ".keras" else "keras-h5")
    assert model.version[0] in "23"
    assert model.config is not None and model.config["class_name"] in (
        "Sequential",
        "Functional",
        "Model",
    )
    assert crcs(model.tensors) == expected(path)


@pytest.mark.parametrize("path", KERAS, ids=lambda path: path.name)
def test_suffix_and_place_do_not_matter(path: Path) -> None:
    assert crcs(read_bytes(path.read_bytes()).tensors) == expected(path)


def rename(node: Any, names: dict[str, str]) -> None:
    """Rename every layer of a config, and every reference to one, in place."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "name" and isinstance(value, str) and value in names:
                node[key] = names[value]
            elif key in ("inbound_nodes", "input_layers", "output_layers", "keras_history"):
                node[key] = replace(value, names)
            else:
                rename(value, names)
    elif isinstance(node, list):
        for item in node:
            rename(item, names)


def replace(node: Any, names: dict[str, str]) -> Any:
    if isinstance(node, str):
        return names.get(node, node)
    if isinstance(node, list):
        return [replace(item, names) for item in node]
    if isinstance(node, dict):
        return {key: replace(value, names) for key, value in node.items()}
    return node


def all_names(config: Any) -> list[str]:
    names = []
    for layer in config["config"]["layers"]:
        names.append(layer["config"]["name"])
        if "layers" in layer["config"]:
            names += all_names(layer)
    return names


@pytest.mark.parametrize("path", ZIPPED, ids=lambda path: path.name)
def test_renamed_layers_and_reordered_members(path: Path) -> None:
    """Names rotated among the layers, members in the other order and stored another way."""
    contents = members(path)
    config = json.loads(contents["config.json"])
    names = sorted(set(all_names(config)))
    turned = dict(zip(names, names[1:] + names[:1], strict=True))
    rename(config, turned)
    contents["config.json"] = json.dumps(config).encode()
    backwards = dict(reversed(contents.items()))
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        found = crcs(read_bytes(zipped(backwards, method)).tensors)
        want = {
            "/".join(turned.get(part, part) for part in key.split("/")[:-1]) + "/" + key.split("/")[-1]: value
            for key, value in expected(path).items()
        }
        assert found == want


@pytest.mark.parametrize("path", [path for path in KERAS if path.suffix == ".h5"], ids=lambda path: path.name)
def test_renamed_layers_in_h5(path: Path, tmp_path: Path) -> None:
    """As Keras does, layers and groups are matched by order: fresh names in the config load."""
    h5py = pytest.importorskip("h5py", reason="h5py edits the file")
    target = tmp_path / "renamed"
    target.write_bytes(path.read_bytes())
    with h5py.File(target, "r+") as file:
        text = file.attrs["model_config"]
        config = json.loads(text)
        layers = config["config"]
        layers = layers if isinstance(layers, list) else layers["layers"]
        names = {entry["config"]["name"]: f"new{i}" for i, entry in enumerate(layers)}
        for entry in layers:
            entry["config"]["name"] = names[entry["config"]["name"]]
            if "name" in entry:
                entry["name"] = names[entry["name"]]
        file.attrs["model_config"] = json.dumps(config)
    found = crcs(read(target).tensors)
    want = {"/".join([names[key.split("/")[0]], *key.split("/")[1:]]): value for key, value in expected(path).items()}
    assert found == want


def test_live_values(tmp_path: Path) -> None:
    """h5py is the judge of every dtype and layout that is read."""
    h5py = pytest.importorskip("h5py", reason="h5py is the judge")
    from fastgru.formats.hdf5 import Dataset, open_hdf5
    from fastgru.formats.untrusted import Source

    path = tmp_path / "values.h5"
    arrays: dict[str, Any] = {
        kind: np.arange(12).reshape(3, 4).astype(kind)
        for kind in "f2 f4 f8 >f4 >f8 i1 i2 >i4 i8 u1 u2 >u4 u8 ?".split()
    }
    arrays |= {"scalar": np.float32(3.5), "empty": np.zeros((0, 3), "f4"), "name/inside": np.ones(2)}
    with h5py.File(path, "w") as file:
        for name, value in arrays.items():
            file[name] = value
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple((5,))
        made = h5py.h5d.create(file.id, b"compact", h5py.h5t.IEEE_F32LE, space, plist)
        made.write(h5py.h5s.ALL, h5py.h5s.ALL, np.arange(5, dtype="f4"))
        arrays["compact"] = np.arange(5, dtype="f4")
        file.attrs["text"] = "Grüße"
        file.attrs["bytes"] = b"abc"
        file.attrs["names"] = [b"a", b"bcd"]
        file.attrs["texts"] = np.array(["x", "yz"], dtype=h5py.string_dtype())
        file.attrs["none"] = []
        file.attrs["many"] = np.arange(3)
        for i in range(40):  # more heap objects than one collection holds
            file.attrs[f"filler{i}"] = "x" * (97 * i)
    root = open_hdf5(Source("values.h5", path.read_bytes()))
    for name, value in arrays.items():
        dataset = root.dataset(name)
        assert isinstance(dataset, Dataset)
        found = dataset.read()
        assert found.shape == np.shape(value)
        assert found.dtype == np.asarray(value).dtype.newbyteorder("=")
        np.testing.assert_array_equal(found, value)
    assert root.attrs["text"] == "Grüße" and root.attrs["bytes"] == "abc"
    assert root.attrs["names"] == ["a", "bcd"] and root.attrs["texts"] == ["x", "yz"]
    assert root.attrs["none"].shape == (0,) and root.attrs["many"].tolist() == [0, 1, 2]
    assert all(root.attrs[f"filler{i}"] == "x" * (97 * i) for i in range(40))


def test_split_attributes(tmp_path: Path) -> None:
    """weight_names, layer_names and model_config above 64,512 bytes come in numbered parts."""
    h5py = pytest.importorskip("h5py", reason="h5py writes the file")
    path = tmp_path / "split.h5"
    names = [f"dense_{i:04}_" + "x" * 400 for i in range(200)]
    config = {
        "class_name": "Sequential",
        "config": {
            "name": "net",
            "layers": [
                {"class_name": "Dense", "config": {"name": name, "units": 1, "use_bias": False}} for name in names
            ],
        },
    }
    text = json.dumps(config).encode()

    def split(attrs: Any, name: str, values: list[Any], size: int) -> None:
        for i in range(0, len(values), size):
            attrs[f"{name}{i // size}"] = values[i : i + size]

    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = "2.3.0"
        split(file.attrs, "model_config", [text], 1)
        group = file.create_group("model_weights")
        split(group.attrs, "layer_names", [name.encode() for name in names], 100)
        for i, name in enumerate(names):
            layer = group.create_group(name)
            layer.attrs["weight_names0"] = [f"{name}/kernel:0".encode()]
            layer[f"{name}/kernel:0"] = np.full((1, 1), i, np.float32)
        del file.attrs["model_config0"]
        for i in range(0, len(text), 40000):
            file.attrs[f"model_config{i // 40000}"] = text[i : i + 40000]
    tensors = read(path).tensors
    assert [tensors[f"{name}/kernel"].item() for name in names] == list(range(200))


# --------------------------------------------------------------------------------- contradictions


def refuses(data: bytes, *words: str) -> None:
    with pytest.raises(FormatError) as error:
        read_bytes(data, "model.keras")
    for word in ("model.keras", *words):
        assert word in str(error.value), str(error.value)


@pytest.mark.parametrize(("name", "after"), [("reset_before", True), ("reset_after", False)])
def test_bias_contradicts_reset_after(name: str, after: bool) -> None:
    def edit(config: Any) -> None:
        gru = next(c for c in layers_of(config).values() if "reset_after" in c)
        gru["reset_after"] = after

    refuses(edited(GOLDEN / f"keras_{name}.keras", edit), f"reset_after={after}", "bias", "shape")


def test_missing_reset_after_is_before() -> None:
    def edit(config: Any) -> None:
        for layer in layers_of(config).values():
            layer.pop("reset_after", None)

    before = GOLDEN / "keras_reset_before.keras"
    assert crcs(read_bytes(edited(before, edit)).tensors) == expected(before)
    refuses(edited(GOLDEN / "keras_reset_after.keras", edit), "no reset_after key")


def test_config_and_weights_of_two_models() -> None:
    def units(config: Any) -> None:
        next(c for c in layers_of(config).values() if "reset_after" in c)["units"] = 21

    def bias(config: Any) -> None:
        next(c for c in layers_of(config).values() if "reset_after" in c)["use_bias"] = False

    def another(config: Any) -> None:
        gru = next(e for e in config["config"]["layers"] if e["class_name"] == "GRU")
        more = copy.deepcopy(gru)
        more["config"]["name"] = "one_more"
        config["config"]["layers"].append(more)

    path = GOLDEN / "keras_reset_after.keras"
    refuses(edited(path, units), "shape (?, 63)", "(7, 60)")
    refuses(edited(path, bias), "kernel, recurrent_kernel", "3 variables")
    refuses(edited(path, another), "one_more", "found none")


def test_broken_archives() -> None:
    path = GOLDEN / "keras_reset_after.keras"
    whole = members(path)
    for name in ("config.json", "model.weights.h5"):
        rest = {key: value for key, value in whole.items() if key != name}
        refuses(zipped(rest), "expected")
        refuses(zipped({**whole, name: b""}), name)
        refuses(zipped({**whole, name: whole[name][:-9]}), name)
    refuses(zipped({**whole, "config.json": b"[]"}), "config.json")
    refuses(zipped({**whole, "config.json": b'{"class_name": "Sequential"}'}), "config.json")
    refuses(zipped({**whole, "config.json": b"[" * 100_000}), "config.json")
    assert read_bytes(zipped({k: v for k, v in whole.items() if k != "metadata.json"})).version == ""


REFUSED = {
    "lambda.keras": ("Lambda", "never run"),
    "lambda_h5.h5": ("Lambda", "never run"),
    "custom_layer.keras": ("'scale'", "Scale"),
    "custom_layer_h5.h5": ("'scale'", "Scale"),
    "custom_gru.keras": ("class GRU", "not Keras' own"),
    "lstm.keras": ("'memory'", "LSTM", "GRU"),
    "shared_across.keras": ("'both'", "shared between an outer and a nested model"),
    "subclassed.keras": ("subclassed", "model.save"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_real_files_that_are_refused(name: str) -> None:
    with pytest.raises(FormatError) as error:
        read(GOLDEN / "refused" / name)
    for word in (name, *REFUSED[name]):
        assert word in str(error.value), str(error.value)


def shared_models() -> list[Path]:
    root = os.environ.get("FASTGRU_SHARED")
    return sorted(Path(root, "models").glob("keras*/*.*")) if root else []


@pytest.mark.skipif(not shared_models(), reason="FASTGRU_SHARED names no folder with models")
def test_models_that_others_trained() -> None:
    files = [path for path in shared_models() if path.suffix in (".h5", ".keras")]
    assert len(files) >= 4
    for path in files:
        model = read(path)
        grus = [key for key in model.tensors if key.endswith("/recurrent_kernel")]
        assert grus and all(np.isfinite(model.tensors[key]).all() for key in grus)
