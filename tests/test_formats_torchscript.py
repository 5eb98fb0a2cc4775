"""TorchScript archives: the tensors under the names of the module's state_dict, and none of the code."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastgru
from fastgru.formats import FormatError, read, read_bytes

GOLDEN = Path(__file__).parent / "golden"
FILES = sorted(GOLDEN.glob("torchscript_*.pt"))


def expected(path: Path) -> dict[str, Any]:
    with np.load(path.with_name(path.stem + ".expected.npz")) as data:
        return dict(data)


def crc(value: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(value).tobytes())


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(contents: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_golden(path: Path) -> None:
    want = expected(path)
    file = read(path)
    assert file.format == "torchscript" and file.config is None and "code" in file.notes[0]
    crcs = {name: crc(tensor) for name, tensor in file.tensors.items()}
    assert crcs == dict(zip(want["keys"].tolist(), want["crcs"].tolist(), strict=True))
    for prefix in (None, "rnn"):
        gru = fastgru.load(path, prefix=prefix)
        assert isinstance(gru, fastgru.nn.GRU) and gru.bidirectional and gru.num_layers == 2
        gru.batch_first = True
        y, h_n = gru(want["x"])
        np.testing.assert_allclose(y, want["y"], rtol=1e-5, atol=2e-6)
        np.testing.assert_allclose(h_n, want["h_n"], rtol=1e-5, atol=2e-6)


def test_the_code_is_never_read() -> None:
    """Whatever stands in code/, broken zip members included, changes nothing."""
    path = FILES[0]
    whole = members(path)
    changed = {name: b"import os; os.abort()" if "/code/" in name else data for name, data in whole.items()}
    assert read_bytes(zipped(changed)).tensors.keys() == read(path).tensors.keys()
    broken = bytearray(zipped(changed))
    at = broken.index(b"import os")
    broken[at] ^= 255  # its CRC is wrong now: who reads the member sees it
    assert read_bytes(bytes(broken)).tensors.keys() == read(path).tensors.keys()


def test_frozen_modules_are_refused_with_a_way_on() -> None:
    with pytest.raises(FormatError) as error:
        read(GOLDEN / "refused/torchscript_frozen.pt")
    for word in ("torchscript_frozen.pt", "without tensors", "freeze", "state_dict"):
        assert word in str(error.value), str(error.value)


def test_damage(golden: Path) -> None:
    whole = members(FILES[0])
    pickle = next(name for name in whole if name.endswith("/data.pkl"))
    storage = next(name for name in whole if name.endswith("/data/0"))
    for edited, word in (
        ({**whole, pickle: b""}, "pickle"),
        ({**whole, pickle: whole["".join([pickle.split("/")[0], "/constants.pkl"])]}, "TorchScript module"),
        ({**whole, storage: whole[storage][:-4]}, "data/0"),
        ({name: data for name, data in whole.items() if name != storage}, "no such member"),
        ({name: data for name, data in whole.items() if name != pickle}, "data.pkl"),
    ):
        with pytest.raises(FormatError, match=word):
            read_bytes(zipped(edited))


def test_modules_in_circles() -> None:
    """A module that holds itself, by hand: nothing PyTorch writes."""
    module = b"c__torch__\nNet\n)\x81q\x01}(X\x08\x00\x00\x00training\x89X\x04\x00\x00\x00selfh\x01ub."
    files = {"net/data.pkl": b"\x80\x02" + module, "net/code/x.py": b"", "net/constants.pkl": b"\x80\x02)."}
    with pytest.raises(FormatError, match="levels"):
        read_bytes(zipped(files))
    twice = module[:-3] + b"X\x01\x00\x00\x00ah\x01X\x01\x00\x00\x00bh\x01ub."  # doubles at each level
    with pytest.raises(FormatError, match="attributes"):
        read_bytes(zipped({**files, "net/data.pkl": b"\x80\x02" + twice}))


@pytest.mark.parity("torch")
def test_live(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is the judge")

    class Deep(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.cell = torch.nn.GRUCell(3, 4)
            self.stack = torch.nn.Sequential(torch.nn.Linear(4, 4, dtype=torch.float64), torch.nn.BatchNorm1d(4))
            self.tied = self.stack[0]
            self.register_buffer("gone", torch.ones(2), persistent=False)
            self.words = ["a", "b"]

        def forward(self, x):  # TorchScript takes a bare name for a tensor
            return self.cell(x)

    torch.manual_seed(0)
    deep = Deep().eval()
    half = torch.nn.Sequential(torch.nn.GRU(3, 4).to(torch.bfloat16))
    for i, module in enumerate(
        (
            torch.jit.script(deep),
            torch.jit.trace(deep, torch.ones(2, 3)),
            torch.jit.script(torch.nn.GRU(5, 6, num_layers=2)),
            torch.jit.script(half),
        )
    ):
        path = tmp_path / f"{i}.ptl"
        module.save(path) if i else module._save_for_lite_interpreter(str(path))
        want = torch.jit.load(path).state_dict() if i else module.state_dict()
        found = read(path).tensors
        assert list(found) == list(want) or set(found) == set(want)
        for name, tensor in want.items():
            np.testing.assert_array_equal(
                found[name], tensor.detach().float().numpy() if i == 3 else tensor.detach().numpy()
            )
    cell = fastgru.load(tmp_path / "1.ptl", prefix="cell")
    with torch.no_grad():
        x = torch.randn(2, 3)
        np.testing.assert_allclose(cell(x.numpy()), deep.cell(x).numpy(), rtol=1e-5, atol=2e-6)
