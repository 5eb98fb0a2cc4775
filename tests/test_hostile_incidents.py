"""One crafted file for each incident of other loaders: refused by `load`, for the reason that the file gives."""

from __future__ import annotations

import io
import json
import os
import struct
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from test_hostile import GOLDEN, add_layer, attack, evil_archive, hdf5_with, keras_with, members, zipped

import fastgru

MARSHALLED = {"class_name": "__lambda__", "config": {"code": "4wEAAAAAAAAA", "defaults": None, "closure": None}}


def refused(tmp_path: Path, data: bytes, *words: str) -> None:
    """`fastgru.load` refuses these bytes, with the file's name and these words."""
    path = tmp_path / "evil.model"
    path.write_bytes(data)
    with pytest.raises(fastgru.FormatError) as error:
        fastgru.load(path)
    for word in (str(path), *words):
        assert word in str(error.value), str(error.value)


def h5_with_layer(tmp_path: Path, entry: dict[str, Any]) -> bytes:
    """A legacy HDF5 model whose config has this layer as well."""

    def write(h5py: Any, group: Any) -> None:
        group["kernel:0"] = [[1.0] * 3] * 8
        config = json.loads(group.file.attrs["model_config"])
        config["config"]["layers"].append(entry)
        group.file.attrs["model_config"] = json.dumps(config)

    return hdf5_with(tmp_path / "made.h5", write)


def test_cve_2024_3660_code_in_a_lambda(tmp_path: Path) -> None:
    """Keras < 2.13 ran marshalled code of Lambda layers on loading."""
    entry = {
        "class_name": "Lambda",
        "config": {"name": "l", "function": ["4wEA", None, None], "function_type": "lambda"},
    }
    refused(tmp_path, keras_with(add_layer(entry)), "config.json:l", "class Lambda", "never run")


def test_cve_2025_9905_code_in_a_lambda_of_an_h5_file(tmp_path: Path) -> None:
    """Keras ignored safe_mode for .h5 and .hdf5."""
    entry = {"class_name": "Lambda", "config": {"name": "l", "function": MARSHALLED}}
    refused(tmp_path, h5_with_layer(tmp_path, entry), "model_config:l", "class Lambda", "never run")


@pytest.mark.parametrize(
    ("module", "name"), [("os", "system"), ("subprocess", "Popen"), ("builtins", "exec"), ("evil_module", "Layer")]
)
def test_cve_2025_1550_import_by_name(module: str, name: str, tmp_path: Path) -> None:
    """Keras imported any module that a config names, and called what it found there."""
    entry = {"module": module, "class_name": name, "registered_name": None, "config": {"name": "x", "command": "true"}}
    refused(tmp_path, keras_with(add_layer(entry)), name)
    whole = keras_with(lambda config: config.update(entry))
    refused(tmp_path, whole, "config.json", "expected a Sequential or functional model")


def test_cve_2025_8747_a_download_by_config(tmp_path: Path) -> None:
    """The way round the fix: functions of Keras itself, such as get_file."""
    config = {"name": "x", "fname": "evil", "origin": "http://localhost/evil"}
    entry = {"module": "keras.utils", "class_name": "get_file", "registered_name": None, "config": config}
    refused(tmp_path, keras_with(add_layer(entry)), "get_file")


def test_cve_2025_9906_a_config_that_switches_safety_off(tmp_path: Path) -> None:
    """A config could call keras.config.enable_unsafe_deserialization before its Lambda was read."""

    def edit(config: dict[str, Any]) -> None:
        switch = {
            "module": "keras.config",
            "class_name": "enable_unsafe_deserialization",
            "config": {"name": "s"},
        }
        config["config"]["layers"].insert(0, switch)

    refused(tmp_path, keras_with(edit), "enable_unsafe_deserialization")

    def and_use_it(config: dict[str, Any]) -> None:
        edit(config)
        add_layer({"class_name": "Lambda", "config": {"name": "l", "function": MARSHALLED}})(config)

    refused(tmp_path, keras_with(and_use_it), "class Lambda", "never run")


def test_cve_2026_1462_a_layer_that_loads_another_model(tmp_path: Path) -> None:
    """TFSMLayer loads the SavedModel at a path, and with it any TensorFlow operator."""
    for config in ({"name": "x", "filepath": "/tmp/evil"}, {"name": "x", "filepath": "http://localhost/evil"}):
        entry = {"module": "keras.layers", "class_name": "TFSMLayer", "config": config}
        refused(tmp_path, keras_with(add_layer(entry)), "config.json:x", "class TFSMLayer", "never run")


def test_cve_2026_0897_a_shape_without_data(tmp_path: Path) -> None:
    """A few hundred bytes of HDF5 that declare terabytes; Keras allocated them."""

    def huge(h5py: Any, group: Any) -> None:
        group.create_dataset("kernel:0", (1 << 40, 3), "f4")

    data = hdf5_with(tmp_path / "made.h5", huge)
    tracemalloc.start()
    try:
        refused(tmp_path, data, "/kernel:0", f"expected {12 << 40} bytes for shape ({1 << 40}, 3), found 0 in the file")
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_cve_2025_32434_a_pickle_that_runs_code(protocol: int, tmp_path: Path) -> None:
    """torch.load(weights_only=True) could be led to run what the pickle names."""
    refused(tmp_path, evil_archive({"w": attack(os.system, "true")}, protocol), "data.pkl", "system", "nothing was run")


def test_cve_2025_32434_by_the_legacy_tar_format(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            archive.addfile(tarfile.TarInfo(name))
    refused(tmp_path, buffer.getvalue(), "a tar archive", "torch.save")


def test_cve_2026_24747_set_item_on_a_tensor(tmp_path: Path) -> None:
    """The weights_only unpickler applied SETITEM to what is no dict: memory corruption."""
    whole = members(GOLDEN / "torch_bare.pt")
    name = next(name for name in whole if name.endswith("data.pkl"))
    for tail in (b"K\x00K\x01s.", b"(K\x00K\x01u."):
        data = zipped({**whole, name: whole[name][:-1] + tail})
        refused(tmp_path, data, "data.pkl", "expected a dict to set items of, found TensorRef")


def test_cve_2026_24747_a_storage_of_another_size(tmp_path: Path) -> None:
    """... and believed the number of elements that the pickle gives."""
    whole = members(GOLDEN / "torch_bare.pt")
    name = next(name for name in whole if "/data/" in name)
    for data in (whole[name][:-4], whole[name] + bytes(4), b""):
        refused(tmp_path, zipped({**whole, name: data}), name, "bytes")


# ------------------------------------------------------------------------------------------------------ ONNX


@pytest.mark.parametrize("location", ["../secret", "ABSOLUTE", "link", "up/secret", "sub/../../secret"])
def test_cve_2024_5187_and_27318_external_data_outside_of_the_folder(location: str, tmp_path: Path) -> None:
    """onnx followed external data out of the model's folder: by .., by a path from the root, by a link."""
    onnx = pytest.importorskip("onnx", reason="ONNX models need the onnx package")
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(1 << 16))
    (folder / "link").symlink_to(secret)
    (folder / "up").symlink_to(tmp_path)
    model = onnx.load(GOLDEN / "onnx_torch_tagger_11.onnx")
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = 1
    tensor.external_data.add(key="location", value=str(secret) if location == "ABSOLUTE" else location)
    path = folder / "evil.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(fastgru.FormatError, match="expected external data inside the model's folder") as error:
        fastgru.load(path)
    assert str(path) in str(error.value) and "leads out of it" in str(error.value)


# ----------------------------------------------------------------------------------------- text that is not


def test_json_asks_for_no_codec(tmp_path: Path) -> None:
    """JSON in UTF-16 or UTF-32, for which Python would import a codec, is refused as text."""
    whole = members(GOLDEN / "keras_reset_after.keras")
    for codec in ("utf-16", "utf-32-be"):
        text = whole["config.json"].decode().encode(codec)
        refused(tmp_path, zipped({**whole, "config.json": text}), "config.json", "JSON")
    text = '{"a":{}}'.encode("utf-32-le")
    refused(tmp_path, struct.pack("<Q", len(text)) + text, "header", "JSON")


def test_a_name_without_end_is_cut(tmp_path: Path) -> None:
    def edit(config: dict[str, Any]) -> None:
        config["config"]["layers"].append({"class_name": "x" * 1_000_000, "config": {"name": "l"}})

    path = tmp_path / "evil.keras"
    path.write_bytes(keras_with(edit))
    with pytest.raises(fastgru.FormatError) as error:
        fastgru.load(path)
    assert str(path) in str(error.value) and len(str(error.value)) < 3100
