"""safetensors: our own files whole or not at all, and nobody's header believed."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastgru.formats import FormatError, read, read_bytes, write_safetensors

KINDS = "f8 f4 f2 i8 i4 i2 i1 u8 u4 u2 u1 b1 c8".split()


def some_tensors() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(1)
    tensors = {kind: generator.integers(0, 2, (3, 5)).astype(kind) for kind in KINDS}
    tensors |= {"scalar": np.array(2.5, np.float32), "empty": np.zeros((0, 4), np.float32)}
    tensors["strided"] = generator.standard_normal((6, 4)).astype(np.float32)[::2, ::-1]
    tensors["big endian"] = np.arange(3, dtype=">f4")
    return tensors


def plain_file(header: Any, data: bytes, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def refuses(data: bytes, *words: str) -> None:
    with pytest.raises(FormatError) as error:
        read_bytes(data, "m.safetensors")
    for word in ("m.safetensors", *words):
        assert word in str(error.value), str(error.value)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "model with a space.bin"
    config = {"class_name": "Sequential", "config": {"name": "Grüße", "layers": []}}
    tensors = some_tensors()
    write_safetensors(path, tensors, {"config": json.dumps(config), "source_version": "2.13.1"})
    model = read(path)
    assert (model.format, model.version) == ("fastgru-safetensors", "2.13.1")
    assert model.config == config and model.metadata["source_version"] == "2.13.1"
    assert set(model.tensors) == set(tensors)
    for name, value in tensors.items():
        found = model.tensors[name]
        assert found.dtype == value.dtype.newbyteorder("=") and found.shape == value.shape
        assert found.flags.aligned
        np.testing.assert_array_equal(found, value)
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_the_official_package_is_the_judge(tmp_path: Path) -> None:
    official = pytest.importorskip("safetensors.numpy", reason="the official package is the judge")
    tensors = {name: value for name, value in some_tensors().items() if name != "c8"}
    write_safetensors(tmp_path / "ours", tensors)
    theirs = official.load_file(tmp_path / "ours")
    assert set(theirs) == set(tensors)
    for name, value in tensors.items():
        np.testing.assert_array_equal(theirs[name], value)
    contiguous = {k: np.ascontiguousarray(v).astype(v.dtype.newbyteorder("=")) for k, v in tensors.items()}
    official.save_file(contiguous, tmp_path / "theirs", metadata={"format": "pt"})
    model = read(tmp_path / "theirs")
    assert model.format == "pytorch-safetensors"
    for name, value in tensors.items():
        np.testing.assert_array_equal(model.tensors[name], value)


def test_tensors_view_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m"
    write_safetensors(path, {"w": np.arange(1000, dtype=np.float32)})
    found = read(path).tensors["w"]
    assert not found.flags.owndata and not found.flags.writeable


def test_every_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "m"
    write_safetensors(path, {"w": np.arange(6, dtype=np.float32)}, {"config": '{"a": 1}'})
    whole = path.read_bytes()
    read_bytes(whole)
    space = whole[8:].index(b"}    ") + 9  # padding of the header says nothing
    for at in [*range(space), *range(len(whole) - 24, len(whole))]:
        for flip in (1, 0x80):
            changed = bytearray(whole)
            changed[at] ^= flip
            with pytest.raises(FormatError):
                read_bytes(bytes(changed))
    for cut in range(len(whole)):
        with pytest.raises(FormatError):
            read_bytes(whole[:cut])
    refuses(whole[:-4] + bytes(4), "checksum", "SHA-256")


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_crash_leaves_the_old_file(tmp_path: Path, monkeypatch: Any, failing: str) -> None:
    path = tmp_path / "m"
    write_safetensors(path, {"w": np.zeros(3, np.float32)})
    old = path.read_bytes()

    def crash(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, failing, crash)
    with pytest.raises(OSError, match="disk full"):
        write_safetensors(path, {"w": np.ones(3, np.float32)})
    assert path.read_bytes() == old
    assert [item.name for item in tmp_path.iterdir()] == ["m"]


def test_what_cannot_be_written(tmp_path: Path) -> None:
    for bad in (np.array(["a"]), np.array([object()]), np.zeros(1, "M8[s]")):
        with pytest.raises(FormatError, match="'w'"):
            write_safetensors(tmp_path / "m", {"w": bad})
    with pytest.raises(FormatError, match="folder"):
        write_safetensors(tmp_path, {"w": np.zeros(1)})
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    write_safetensors(tmp_path / "real/m", {"w": np.zeros(1)})
    (tmp_path / "link").symlink_to(tmp_path / "real/m")
    write_safetensors(tmp_path / "link", {"w": np.ones(1)})
    assert (tmp_path / "link").is_symlink()
    assert read(tmp_path / "real/m").tensors["w"].item() == 1


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"{nonsense}",
        b'{"w": 1}',
        b'{"w": {}}',
        b"{" + b'"a":{' * 50_000,
        b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        {"w": entry(), "__metadata__": {"a": 1}},
        {"w": entry(), "__metadata__": [1]},
        {"w": entry("F33")},
        {"w": entry([])},
        {"w": entry("F64")},
        {"w": entry(shape=(3,))},
        {"w": entry(shape=(2**40, 2**40))},
        {"w": entry(shape=(-2,))},
        {"w": entry(shape=(2.0,))},
        {"w": entry(shape=(True, 2))},
        {"w": entry(shape="2")},
        {"w": entry(shape=[1] * 60 + [2])},
        {"w": entry(offsets=(4, 12))},
        {"w": entry(offsets=(8, 0))},
        {"w": entry(offsets=(0,))},
        {"w": entry(offsets=(0, 2**70))},
        {"w": entry(), "v": entry()},
        {"w": entry(shape=(1,), offsets=(0, 4))},
        {},
    ],
    ids=lambda value: str(value)[:60],
)
def test_headers_that_lie(header: Any) -> None:
    refuses(plain_file(header, bytes(8)), "expected")


def test_header_lengths_that_lie() -> None:
    good = {"w": entry()}
    for length in (0, 5, 10**6, 2**63, 2**64 - 1):
        refuses(plain_file(good, bytes(8), length), "expected")
