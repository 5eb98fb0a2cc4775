"""The readers that are fuzzed: their honest files, how these are changed, and what reads them."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import fuzz_checkpoints
import fuzz_mutations as mutations
from fuzz_guard import NAME
from fuzz_hdf5 import hdf5
from fuzz_pickles import LEGACY, PICKLE

import fastgru
from fastgru import formats, loading

# loaded before the watch begins: first bytes that change may lead to any of them
from fastgru.formats import keras, keras_h5, keras_weights, pytorch, pytorch_legacy, torchscript  # noqa: F401
from fastgru.formats.untrusted import Source
from fastgru.models import onnx as onnx_models  # noqa: F401

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"


def _load(data: bytes) -> Any:
    """Do what fastgru.load does, from the bytes on."""
    return loading.from_file(formats.read_bytes(data, NAME))


@dataclass(frozen=True)
class Reader:
    """One reader.

    Attributes
    ----------
    seeds : callable
        Returns the honest files, golden ones and those made of them.
    mutate : callable
        Changes one.
    target : callable
        Reads one: returns, or raises FormatError.
    folder : str
        Where the target may open files; "": nowhere.
    needs : str
        The optional package without which there is nothing to fuzz.
    warm : bool
        Whether the honest files are read once before the watch begins, so that what the readers import is loaded.
    """

    name: str
    seeds: Callable[[], list[bytes]]
    mutate: mutations.Mutation
    target: Callable[[bytes], Any] = _load
    folder: str = ""
    needs: str = ""
    warm: bool = True

    def missing(self) -> str:
        """Return the package that is not installed here, or ""."""
        return self.needs if self.needs and importlib.util.find_spec(self.needs) is None else ""

    def read_seeds(self, seeds: list[bytes]) -> None:
        """Read the honest files; some are there to be refused."""
        for data in seeds if self.warm else ():
            try:
                self.target(data)
            except fastgru.FormatError:
                pass


def _golden(*patterns: str, start: bytes = b"") -> list[bytes]:
    folders = (GOLDEN, GOLDEN / "refused")
    paths = sorted({path for folder in folders for pattern in patterns for path in folder.glob(pattern)})
    return [data for path in paths if (data := path.read_bytes()).startswith(start)]


def _any(*choices: mutations.Mutation) -> mutations.Mutation:
    def mutate(rng: Random, data: bytes) -> bytes:
        return rng.choice(choices)(rng, data)

    return mutate


def _inside(name: str, data: bytes) -> mutations.Mutation:
    """Return how a member of an archive is changed."""
    if data[:4] == b"\x89HDF":
        return hdf5
    if name.endswith(".json"):
        return mutations.edit_json
    return PICKLE if name.endswith(".pkl") else mutations.plain


_members = mutations.zip_members(_inside)

# ----------------------------------------------------------------------------------------------- safetensors


def _own_files() -> list[bytes]:
    """Return PyTorch's safetensors, and our own of some Keras models and, where they can be read, ONNX models."""
    found = _golden("*.safetensors")
    names = ["k3_nested.keras", "k3_rnn_cells.keras", "k3_op_nodes.keras", "k3_norms.keras"]
    if importlib.util.find_spec("onnx"):
        names += [path.name for path in sorted(GOLDEN.glob("onnx_*.onnx"))[::3]]
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            target = Path(folder) / "own.safetensors"
            fastgru.load(GOLDEN / name).save(target)
            found.append(target.read_bytes())
    return found


def _sign(header: dict[str, Any], data: bytes) -> None:
    """Put the checksum of our own files in place, as a forger would (formats/safetensors.py)."""
    about = header.get("__metadata__")
    if isinstance(about, dict) and "fastgru.sha256" in about:
        rest = {key: value for key, value in about.items() if key != "fastgru.sha256"}
        tensors = {key: value for key, value in header.items() if key != "__metadata__"}
        text = json.dumps({**tensors, "__metadata__": rest}, sort_keys=True, separators=(",", ":"))
        about["fastgru.sha256"] = hashlib.sha256(text.encode("ascii") + data).hexdigest()


# ------------------------------------------------------------------------------- weights without architecture


def _pairs() -> list[bytes]:
    """Return weights of save_weights, each behind the JSON of its model."""
    found = []
    for path in sorted((GOLDEN / "weights_only").glob("*.h5")):
        config = path.with_name(path.name.split(".")[0] + ".json").read_bytes()
        found.append(_pair(config, path.read_bytes()))
    return found


def _pair(config: bytes, weights: bytes) -> bytes:
    return len(config).to_bytes(8, "little") + config + weights


def _split(data: bytes) -> tuple[bytes, bytes]:
    size = min(int.from_bytes(data[:8], "little"), len(data))
    return data[8 : 8 + size], data[8 + size :]


def _mutate_pair(rng: Random, data: bytes) -> bytes:
    config, weights = _split(data)
    if rng.random() < 0.5:
        return _pair(mutations.edit_json(rng, config), weights)
    return _pair(config, hdf5(rng, weights))


def _load_pair(data: bytes) -> Any:
    config, weights = _split(data)
    return loading.from_file(formats._read_weights(Source(NAME, weights), Source(NAME, config)))


# ------------------------------------------------------------------------------------------------------ ONNX

_FOLDER = tempfile.TemporaryDirectory(prefix="fastgru-fuzz-")
_INSIDE = os.path.join(os.path.realpath(_FOLDER.name), "model")


def _with_external_data() -> list[bytes]:
    """Return golden ONNX models whose tensors lie in files of the model's folder, and make these files.

    Beside the folder lies a file that no model may reach, and inside it are links to it.
    """
    import onnx
    from onnx.external_data_helper import convert_model_to_external_data

    os.makedirs(_INSIDE, exist_ok=True)
    Path(_FOLDER.name, "secret").write_bytes(bytes(1 << 16))
    for link, to in (("link", "../secret"), ("up", "..")):
        if not os.path.lexists(os.path.join(_INSIDE, link)):
            os.symlink(to, os.path.join(_INSIDE, link))
    found = []
    for path in sorted(GOLDEN.glob("onnx_*.onnx"))[:4]:
        model = onnx.load(path)
        convert_model_to_external_data(model, True, f"{path.stem}.bin", 0, False)
        onnx.save(model, os.path.join(_INSIDE, path.name))
        found.append(Path(_INSIDE, path.name).read_bytes())
    return found


_LOCATIONS = b"""../secret link up/secret /etc/passwd ../model/../secret ./link //etc/passwd .. . ../modelx/secret
sub/../../secret""".split()


def _relocate(rng: Random, data: bytes) -> bytes:
    """Point external data elsewhere: the name of a file inside becomes another, its length corrected."""
    return mutations.replace_text(rng, data, b".bin", _LOCATIONS)


def _load_beside(data: bytes) -> Any:
    return loading.from_file(formats._read(Source(NAME, data, _INSIDE)))


_safetensors = mutations.safetensors(_sign)
_checkpoint = mutations.safetensors(_sign, (2, 3, 4, 5))
READERS = (
    Reader("zip", lambda: _golden("*.keras", "*.pt")[::4], _any(mutations.zip_fields, mutations.plain)),
    Reader("keras", lambda: _golden("*.keras"), _any(_members, _members, _members, mutations.plain)),
    Reader("h5", lambda: _golden("*.h5"), _any(hdf5, hdf5, hdf5, mutations.plain)),
    Reader("weights", _pairs, _mutate_pair, _load_pair),
    Reader("pickle", lambda: _golden("torch_*", start=b"PK"), _members),
    Reader("torchscript", lambda: _golden("torchscript*"), _members),
    Reader("legacy", lambda: _golden("torch_*", start=b"\x80"), LEGACY),
    Reader("safetensors", _own_files, _any(_safetensors, _safetensors, _safetensors, mutations.plain)),
    Reader("checkpoint", fuzz_checkpoints.honest, _any(*[_checkpoint] * 7, mutations.plain), fuzz_checkpoints.go_on),
    Reader("onnx", lambda: _golden("*.onnx"), _any(*[mutations.protobuf] * 7, mutations.plain), needs="onnx"),
    Reader(
        "onnx-external",
        _with_external_data,
        _any(_relocate, mutations.protobuf),
        _load_beside,
        folder=_INSIDE,
        needs="onnx",
    ),
)
