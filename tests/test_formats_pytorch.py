"""torch.save files: every tensor under its dotted name, both containers, nothing run."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastgru.formats import FormatError, ModelFile, read, read_bytes

GOLDEN = Path(__file__).parent / "golden"
SAVED = sorted(
    path for path in GOLDEN.glob("torch_*.*") if path.suffix in (".pt", ".pkl", ".tar", ".net", ".safetensors")
)


def crc(value: np.ndarray) -> int:
    array = np.array(value, order="C")
    if array.dtype.kind in "fc":
        array[np.isnan(array)] = np.nan
    return zlib.crc32(array.astype(array.dtype.newbyteorder("<")).tobytes())


def zipped(contents: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


# A pickle is written here by Python's own pickler from stand-ins whose names are PyTorch's: no torch is needed.


class Named:
    """Pickles as `module.name(*arguments)`, or as the bare global where there are no arguments."""

    def __init__(self, module: str, name: str, *arguments: Any, call: bool = True) -> None:
        self.module, self.name, self.arguments, self.call = module, name, arguments, call


class StorageId:
    def __init__(self, kind: str, key: str, numel: int) -> None:
        self.kind, self.key, self.numel = kind, key, numel


class Pickler(pickle._Pickler):  # type: ignore[name-defined]  # the one in Python: its opcodes can be written by hand
    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, Named):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
            if obj.call:
                self.save(obj.arguments)
                self.write(pickle.REDUCE)
        elif isinstance(obj, StorageId):
            kind = Named("torch", obj.kind, call=False)
            self.save(("storage", kind, obj.key, "cpu", obj.numel))
            self.write(pickle.BINPERSID)
        else:
            super().save(obj, save_persistent_id)


def pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    Pickler(buffer, 2).dump(value)
    return buffer.getvalue()


def tensor(
    key: str = "0",
    numel: int = 6,
    offset: Any = 0,
    size: Any = (2, 3),
    stride: Any = (3, 1),
    kind: str = "FloatStorage",
) -> Named:
    return Named(
        "torch._utils",
        "_rebuild_tensor_v2",
        StorageId(kind, key, numel),
        offset,
        size,
        stride,
        False,
        OrderedDict(),
    )


SIX = np.arange(6, dtype="<f4")


def archive(value: Any, **storages: bytes) -> bytes:
    files = {f"archive/data/{key[1:]}": data for key, data in storages.items()}
    return zipped({"archive/data.pkl": pickled(value), **files})


def read_one(value: Any, **storages: bytes) -> ModelFile:
    return read_bytes(archive(value, **(storages or {"_0": SIX.tobytes()})), "net.pt")


def refuses(data: bytes, *words: str) -> None:
    with pytest.raises(FormatError) as error:
        read_bytes(data, "net.pt")
    for word in ("net.pt", *words):
        assert word in str(error.value), str(error.value)


# ------------------------------------------------------------------------------------------ golden


@pytest.mark.parametrize("path", SAVED, ids=lambda path: path.name)
def test_golden(path: Path) -> None:
    model = read(path)
    legacy = "legacy" in path.name
    kind = "safetensors" if path.suffix == ".safetensors" else "legacy" if legacy else "zip"
    assert model.format == f"pytorch-{kind}"
    assert model.config is None
    with np.load(path.with_name(path.stem + ".expected.npz")) as data:
        if "keys" not in data:  # the demo's: its outputs are the proof
            assert "weight_hh_l1_reverse" in model.tensors
            return
        want = dict(zip(data["keys"].tolist(), data["crcs"].tolist(), strict=True))
    assert {key: crc(value) for key, value in model.tensors.items()} == want


def test_golden_files_cover_the_containers() -> None:
    assert {read(path).format for path in SAVED} == {
        "pytorch-zip",
        "pytorch-legacy",
        "pytorch-safetensors",
    }


def test_tied_tensors_share_memory() -> None:
    for name in ("torch_tensors.pt", "torch_tensors_legacy.pt"):
        tensors = read(GOLDEN / name).tensors
        assert np.shares_memory(tensors["tied.a"], tensors["tied.b"])
        assert np.shares_memory(tensors["view.transposed"], tensors["view.row"])


def test_checkpoint_says_what_it_ignored() -> None:
    notes = " | ".join(read(GOLDEN / "torch_checkpoint.tar").notes)
    for word in ("'epoch'", "numpy", "'device'", "pathlib"):
        assert word in notes


def test_dtypes_are_kept() -> None:
    tensors = read(GOLDEN / "torch_tensors.pt").tensors
    for key, value in tensors.items():
        if key.startswith("dtype."):
            name = key.removeprefix("dtype.")
            narrow = name == "bfloat16" or name.startswith("float8")
            assert value.dtype == np.dtype("float32" if narrow else name)


def test_live(tmp_path: Path) -> None:
    """PyTorch itself is the judge of random views, in both containers."""
    torch = pytest.importorskip("torch", reason="PyTorch is the judge")
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(4, 5, 6, generator=generator)
    state: dict[str, Any] = {"base": base}
    for i in range(30):
        view = base.permute(*np.random.default_rng(i).permutation(3).tolist())
        start, step = i % 3, 1 + i % 2
        state[f"view{i}"] = view[start::step, ..., i % 4 :]
        state[f"copy{i}"] = {"deep": [view.clone().to(torch.float16), i]}
    for new in (True, False):
        path = tmp_path / f"{new}.anything"
        torch.save(state, path, _use_new_zipfile_serialization=new)
        tensors = read(path).tensors
        assert len(tensors) == 61
        for i in range(30):
            np.testing.assert_array_equal(tensors[f"view{i}"], state[f"view{i}"].numpy())
            deep = state[f"copy{i}"]["deep"][0].numpy()
            np.testing.assert_array_equal(tensors[f"copy{i}.deep.0"], deep)


# -------------------------------------------------------------------------------------- containers


def test_deflated_and_big_endian_archives() -> None:
    path = GOLDEN / "torch_tensors.pt"
    whole = members(path)
    want = {key: crc(value) for key, value in read(path).tensors.items()}
    deflated = read_bytes(zipped(whole, zipfile.ZIP_DEFLATED)).tensors
    assert {key: crc(value) for key, value in deflated.items()} == want
    backwards = read_bytes(zipped(dict(reversed(whole.items())))).tensors
    assert {key: crc(value) for key, value in backwards.items()} == want
    big = zipped(
        {
            "x/data.pkl": pickled({"w": tensor(), "b": tensor("1", 2, 0, (2,), (1,), "BFloat16Storage")}),
            "x/data/0": SIX.astype(">f4").tobytes(),
            "x/data/1": np.array([0x3F80, 0xC000], ">u2").tobytes(),
            "x/byteorder": b"big",
        }
    )
    tensors = read_bytes(big).tensors
    np.testing.assert_array_equal(tensors["w"], SIX.reshape(2, 3))
    np.testing.assert_array_equal(tensors["b"], np.array([1, -2], np.float32))


def test_old_file_without_byteorder_is_little() -> None:
    np.testing.assert_array_equal(read_one({"w": tensor()}).tensors["w"], SIX.reshape(2, 3))


def test_refused_containers() -> None:
    old = io.BytesIO()
    with tarfile.open(fileobj=old, mode="w") as archive_:
        for name in ("storages", "tensors", "pickle"):
            info = tarfile.TarInfo(name)
            info.size = 4
            archive_.addfile(info, io.BytesIO(b"\0\0\0\0"))
    refuses(old.getvalue(), "tar archive", "state_dict")
    refuses(pickle.dumps({"w": np.ones(2)}), "pickle", "state_dict")
    buffer = io.BytesIO()
    np.savez(buffer, w=np.ones(2))
    refuses(buffer.getvalue(), ".npz")
    refuses(zipped({"a/data.pkl": b"", "b/data.pkl": b""}), "one data.pkl")


# -------------------------------------------------------------------------------------- structures


def test_names() -> None:
    nested = {"a": [tensor(), {"b": tensor()}], 3: tensor(), "t": (tensor(),), "skip": None}
    assert list(read_one(nested).tensors) == ["a.0", "a.1.b", "3", "t.0"]
    assert list(read_one(tensor()).tensors) == [""]
    refuses(archive({"a.b": tensor(), "a": {"b": tensor()}}, _0=SIX.tobytes()), "two named 'a.b'")


def test_module_pickles() -> None:
    """A whole module gives its state_dict; what only its code could rebuild is refused by name."""

    def module(**parts: Any) -> Any:
        state = {"training": False, "_parameters": OrderedDict(), "_buffers": OrderedDict()}
        state |= {"_modules": OrderedDict(), "hook": Named("my.code", "hook", 1), **parts}
        return Built(Named("my.code", "Net"), state)

    inner = module(_parameters=OrderedDict(w=tensor(), none=None))
    buffers = {"_buffers": OrderedDict(kept=tensor(), gone=tensor())}
    net = module(
        _modules=OrderedDict(inner=inner, absent=None),
        _non_persistent_buffers_set=Named("__builtin__", "set", ["gone"]),
        **buffers,
    )
    assert set(read_one(net).tensors) == {"kept", "inner.w"}
    assert set(read_one({"net": net, "epoch": 1}).tensors) == {"net.kept", "net.inner.w"}
    odd = module(_modules=OrderedDict(script=Named("torch.jit", "load", "x")))
    refuses(archive(odd, _0=SIX.tobytes()), "'script'", "state_dict")
    odd = module(_parameters=OrderedDict(w=Named("my.code", "make", 3)))
    refuses(archive(odd, _0=SIX.tobytes()), "'w'", "my.code.Net")
    refuses(archive(Named("my.code", "Net"), _0=SIX.tobytes()), "my.code.Net", "state_dict")


class Built:
    """Pickles as `value` with BUILD(state)."""

    def __init__(self, value: Any, state: Any) -> None:
        self.value, self.state = value, state


_save = Pickler.save


def _save_built(self: Any, obj: Any, save_persistent_id: bool = True) -> None:
    if isinstance(obj, Built):
        self.save(obj.value)
        self.save(obj.state)
        self.write(pickle.BUILD)
    else:
        _save(self, obj, save_persistent_id)


Pickler.save = _save_built  # type: ignore[method-assign]  # one more kind of stand-in


def test_wrappers_of_tensors() -> None:
    empty: OrderedDict[str, Any] = OrderedDict()
    rebuild = Named("torch._utils", "_rebuild_tensor_v2", call=False)
    arguments = (StorageId("FloatStorage", "0", 6), 0, (2, 3), (3, 1), False, empty)
    plain = Named("torch", "Tensor", call=False)
    typed = Named("torch._tensor", "_rebuild_from_type_v2", rebuild, plain, arguments, {"tag": 1})
    version3 = Named(
        "torch._utils",
        "_rebuild_tensor_v3",
        StorageId("UntypedStorage", "0", 24),
        2,
        (2, 2),
        (2, 1),
        False,
        empty,
        Named("torch", "uint16", call=False),
    )
    value = {
        "parameter": Named("torch._utils", "_rebuild_parameter", tensor(), True, empty),
        "typed": typed,
        "v3": version3,
        "first": Named("torch._utils", "_rebuild_tensor", StorageId("FloatStorage", "0", 6), 1, (2,), (2,)),
        "sparse": Named("torch._utils", "_rebuild_sparse_tensor", 1, (tensor(), tensor())),
    }
    model = read_one(value)
    assert list(model.tensors) == ["parameter", "typed", "v3", "first"]
    assert model.tensors["v3"].tolist() == SIX.view("<u2")[2:6].reshape(2, 2).tolist()
    assert model.tensors["first"].tolist() == [1.0, 3.0]
    assert "_rebuild_sparse_tensor" in " ".join(model.notes)


@pytest.mark.parametrize(
    "bad",
    [
        {"numel": 7},
        {"numel": 5},
        {"numel": 2**62},
        {"numel": -1},
        {"offset": 1},
        {"offset": -1},
        {"offset": 2**70},
        {"size": (3, 3)},
        {"size": (2**40, 2**40)},
        {"size": (-2, 3)},
        {"size": (2, 3, 1)},
        {"size": (1,) * 40, "stride": (1,) * 40},
        {"stride": (4, 1)},
        {"stride": (-3, 1)},
        {"size": (2**31, 2**31), "stride": (0, 0)},
        {"size": "23", "stride": (3, 1)},
        {"size": (True, 3)},
        {"key": "../../etc/passwd"},
        {"key": "9"},
        {"kind": "DoubleStorage"},
        {"kind": "QInt8Storage"},
        {"kind": "os"},
    ],
    ids=str,
)
def test_storages_and_views_that_do_not_fit(bad: dict[str, Any]) -> None:
    refuses(archive({"w": tensor(**bad)}, _0=SIX.tobytes()), "expected")


def test_legacy_storages_that_do_not_fit() -> None:
    def legacy(numel: int, data: bytes, keys: Any = ("0",), told: int | None = None) -> bytes:
        system = {"protocol_version": 1001, "little_endian": True}
        parts = [0x1950A86A20F9469CFC6C, 1001, system, {"w": tensor(numel=numel)}, list(keys)]
        told = numel if told is None else told
        return b"".join(map(pickled, parts)) + struct.pack("<q", told) + data

    good = read_bytes(legacy(6, SIX.tobytes())).tensors["w"]
    np.testing.assert_array_equal(good, SIX.reshape(2, 3))
    refuses(legacy(6, SIX.tobytes()[:-1]), "storage 0", "end of the file")
    refuses(legacy(6, SIX.tobytes(), told=5), "storage 0", "5 elements")
    refuses(legacy(2**60, SIX.tobytes()), "storage 0")
    refuses(legacy(6, SIX.tobytes(), keys=("0", "1")), "storage 1")
    refuses(legacy(6, SIX.tobytes(), keys=()), "storage 0")
    refuses(legacy(6, SIX.tobytes(), keys=(7,)), "storage keys")


@pytest.mark.skipif(not os.environ.get("FASTGRU_SHARED"), reason="FASTGRU_SHARED is unset")
def test_models_that_others_trained() -> None:
    files = sorted(Path(os.environ["FASTGRU_SHARED"], "models").glob("torch*/*.p*"))
    assert len(files) >= 3
    for path in files:
        tensors = read(path).tensors
        assert any(".weight_hh" in key for key in tensors)
        assert all(np.isfinite(value).all() for value in tensors.values())
