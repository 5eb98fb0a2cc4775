"""Bytes of strangers in, `ModelFile` out. Nothing in here runs code from a file or imports by a name in one.

`read` decides by content, never by suffix: `.net`, `.tar` and `.pkl` hide every format.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Mapping
from typing import Any

from .archive import Archive
from .hdf5 import SIGNATURE, open_hdf5
from .model_file import ModelFile
from .onnx import looks_like_onnx, read_onnx
from .safetensors import looks_like_safetensors, read_safetensors, write_safetensors
from .untrusted import REMEDIES, FormatError, Source

__all__ = ["FormatError", "ModelFile", "check_suffix", "read", "read_bytes", "write_safetensors"]

#: Suffixes that promise a file of somebody else's.
_OTHERS = (".keras", ".h5", ".hdf5", ".onnx", ".pt", ".pth", ".pkl", ".tflite", ".pb")


def check_suffix(path: str | os.PathLike[str]) -> None:
    """Refuse to save a model, which becomes a safetensors file, under a name that promises another format.

    Raises
    ------
    ValueError
        Saying how to convert.
    """
    name = os.fspath(path)
    root, suffix = os.path.splitext(name)
    if suffix.lower() in _OTHERS:
        own = f"{root}.safetensors"
        raise ValueError(
            f"{name}: expected a name that ends in .safetensors, the format that save writes, found {suffix}; save to "
            f"{own!r}, then: fastgru convert {own} {name}"
        )


def read(path: str | os.PathLike[str], config: str | os.PathLike[str] | Mapping[str, Any] | None = None) -> ModelFile:
    """Read a model file of any supported format.

    Parameters
    ----------
    path : str or path-like
        The file; its name and suffix do not matter.
    config : str, path-like or mapping
        For Keras weights without their architecture only: the JSON of ``model.to_json()`` (a file, or the JSON
        itself), or a ``.keras`` file of the same architecture.

    Returns
    -------
    ModelFile
        Architecture and tensors. Tensors of safetensors files view the memory-mapped file.

    Raises
    ------
    FormatError
        If the path is a folder, or the file is not a model, is damaged, contradicts itself, or would need code to
        be run.
    OSError
        If the file cannot be opened.
    """
    source = _open(path)
    if config is None:
        return _read(source)
    return _read_weights(source, config if isinstance(config, Mapping) else _open(config))


def _open(path: str | os.PathLike[str]) -> Source:
    name = os.fspath(path)
    if os.path.isdir(name):
        raise _refuse_folder(name)
    with open(name, "rb") as file:
        status = os.fstat(file.fileno())
        source = Source(name, b"")
        if not stat.S_ISREG(status.st_mode):
            raise source.refuse("", expected="a regular file", found="a pipe or device", remedy="copy it to a file")
        if status.st_size == 0:
            raise source.refuse("", expected="a model file", found="an empty file", remedy=REMEDIES["damaged"])
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return Source(name, data, os.path.dirname(name) or ".")


def read_bytes(data: bytes | bytearray | memoryview, name: str = "<bytes>") -> ModelFile:
    """Read a model file that is already in memory; `name` stands for the path in errors."""
    return _read(Source(name, data))


def _read(source: Source) -> ModelFile:
    with source.parsing("", "a model file"):  # the last net: nothing but FormatError leaves this room
        return _by_content(source)


def _read_weights(source: Source, config: Source | Mapping[str, Any]) -> ModelFile:
    from .keras_h5 import has_architecture
    from .keras_weights import read_architecture, read_keras_weights

    with source.parsing("", "Keras weights and their architecture"):
        root = open_hdf5(source) if bytes(source.data[:8]) == SIGNATURE else None
        if root is None or has_architecture(root):
            found = "a file with its own architecture" if root is not None else "another format"
            raise source.refuse("", expected="Keras weights alone, since a config is given", found=found)
        return read_keras_weights(source, root, read_architecture(config))


def _by_content(source: Source) -> ModelFile:
    head = bytes(source.data[:512])
    if head.startswith(b"PK\x03\x04"):
        return _read_zip(source)
    if head.startswith(SIGNATURE):
        from .keras_h5 import has_architecture, read_keras_h5
        from .keras_weights import read_keras_weights

        root = open_hdf5(source)
        return read_keras_h5(source, root) if has_architecture(root) else read_keras_weights(source, root, None)
    if looks_like_safetensors(source):
        return read_safetensors(source)
    if head[:1] == b"\x80" and len(head) > 2 and head[1] <= 5:
        from .pytorch_legacy import read_pytorch_legacy

        return read_pytorch_legacy(source)
    if looks_like_onnx(head):
        return read_onnx(source)
    raise _refuse_unknown(source, head)


def _read_zip(source: Source) -> ModelFile:
    archive = Archive(source)
    names = archive.names
    if "config.json" in archive and "model.weights.h5" in archive:
        from .keras import read_keras

        return read_keras(source, archive)
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        from .torchscript import read_torchscript

        return read_torchscript(source, archive)
    if any(name.endswith("/data.pkl") for name in names):
        from .pytorch import read_pytorch_zip

        return read_pytorch_zip(source, archive)
    found, remedy = "a zip archive of something else", REMEDIES["unknown"]
    if "config.json" in archive:
        found, remedy = "a .keras archive without model.weights.h5", REMEDIES["export_keras"]
    elif any(name.endswith(".npy") for name in names):
        found = "a NumPy .npz archive"
    elif "data.pkl" in archive or any(name.endswith(".pkl") for name in names):
        found, remedy = "an archive with pickles but no data.pkl", REMEDIES["export_torch"]
    raise source.refuse("", expected="a Keras or PyTorch model", found=found, remedy=remedy)


def _refuse_folder(name: str) -> FormatError:
    found = "a folder"
    if os.path.exists(os.path.join(name, "saved_model.pb")):
        found = "a TensorFlow SavedModel folder"
    return Source(name, b"").refuse("", expected="a model file", found=found, remedy=REMEDIES["folder"])


def _refuse_unknown(source: Source, head: bytes) -> FormatError:
    """Say what the bytes are, where they are a thing people mistake for a model."""
    found, remedy = f"bytes that start {head[:8]!r}", REMEDIES["unknown"]
    text = head.lstrip()[:64].lower()
    if head.startswith(b"version https://git-lfs"):
        found, remedy = "a Git LFS pointer", REMEDIES["lfs"]
    elif text.startswith((b"<!doctype", b"<html", b"<?xml")):
        found, remedy = "a web page", REMEDIES["html"]
    elif head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        found, remedy = "a compressed file", REMEDIES["compressed"]
    elif head[257:262] == b"ustar":
        found, remedy = "a tar archive", REMEDIES["tar"]
    elif text.startswith((b"{", b"[")):
        found = "JSON (an architecture without weights?)"
    elif head.startswith(b"\x93NUMPY"):
        found = "a NumPy .npy array"
    else:
        for offset in (512, 1024, 2048, 4096):  # where a user block may put the signature
            if bytes(source.data[offset : offset + 8]) == SIGNATURE:
                found, remedy = (
                    f"an HDF5 file behind a {offset}-byte user block",
                    REMEDIES["userblock"],
                )
    return source.refuse("", expected="a model file", found=found, remedy=remedy)
