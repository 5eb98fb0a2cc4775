"""safetensors: an 8-byte header length, a JSON header, and the bytes of the tensors. PyTorch's files and our own.

Our own files carry the architecture in `__metadata__["config"]` and a SHA-256 over header and tensors, which the
reader verifies. (Format: github.com/huggingface/safetensors, README.)
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from .float_formats import NARROW_FLOATS, widen
from .model_file import ModelFile, Tensor
from .replacing import replacing
from .untrusted import LIMITS, REMEDIES, FormatError, Source

__all__ = ["looks_like_safetensors", "read_safetensors", "write_safetensors"]

_DTYPES: dict[str, str] = {
    "F64": "f8",
    "F32": "f4",
    "F16": "f2",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "I64": "i8",
    "I32": "i4",
    "I16": "i2",
    "I8": "i1",
    "U64": "u8",
    "U32": "u4",
    "U16": "u2",
    "U8": "u1",
    "BOOL": "b1",
    "C64": "c8",
}
_NAMES = {np.dtype(kind): name for name, kind in _DTYPES.items() if kind not in NARROW_FLOATS}
_MARK = ("format", "fastgru")
_CHECKSUM = "fastgru.sha256"
_ALIGN = 64


def looks_like_safetensors(source: Source) -> bool:
    """Whether the file starts with a plausible header length and a brace."""
    if len(source) < 10 or source.data[8] != ord("{"):
        return False
    return bool(struct.unpack_from("<Q", source.data)[0] <= LIMITS.json_bytes)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key twice")
    return made


def read_safetensors(source: Source) -> ModelFile:
    """Read a safetensors file; tensors view its bytes where NumPy has their dtype and they are aligned.

    Raises
    ------
    FormatError
        If the header does not describe the file exactly: every byte of data in one tensor, none outside.
    """
    length = struct.unpack_from("<Q", source.data)[0]
    start = 8 + length
    if start > len(source):
        raise source.refuse(
            "header",
            expected=f"{length} bytes",
            found=f"{len(source) - 8}: the file is truncated",
            remedy=REMEDIES["damaged"],
        )
    with source.parsing("header", "JSON with each key once"):
        header = json.loads(str(source.data[8:start], "utf-8"), object_pairs_hook=_once)
        if not isinstance(header, dict):
            raise ValueError("not an object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise source.refuse("__metadata__", expected="strings", found="something else", remedy=REMEDIES["damaged"])
    data = source.data[start:]
    spans = _check_header(source, header, len(data))
    # either mark is enough: a flipped bit in one must not turn the checksum off
    own = metadata.get(_MARK[0]) == _MARK[1] or _CHECKSUM in metadata
    if own:
        _verify(source, header, metadata, data)
    tensors = {name: _array(source, name, data, *spans[name]) for name in header}
    if not own:
        return ModelFile("pytorch-safetensors", "", None, tensors, (), source.name, metadata=metadata)
    config = None
    if "config" in metadata:
        config = source.json("__metadata__.config", metadata["config"])
        if not isinstance(config, dict):
            raise source.refuse("__metadata__.config", expected="a JSON object", found=type(config).__name__)
    return ModelFile(
        "pytorch-safetensors" if metadata.get(_MARK[0]) == "pt" else "fastgru-safetensors",
        metadata.get("source_version", ""),
        config,
        tensors,
        (),
        source.name,
        metadata=metadata,
    )


_Span = tuple[str, tuple[int, ...], int, int]


def _check_header(source: Source, header: dict[str, Any], size: int) -> dict[str, _Span]:
    """Return {name: (dtype, shape, begin, end)} of a header whose spans tile the data exactly."""
    if len(header) > LIMITS.tensors:
        raise source.refuse(
            "header",
            expected=f"at most {LIMITS.tensors} tensors",
            found=str(len(header)),
            remedy=REMEDIES["bomb"],
        )
    spans: dict[str, _Span] = {}
    for name, entry in header.items():
        with source.parsing(f"tensor {name!r}", "dtype, shape and data_offsets"):
            dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            numbers = [*shape, begin, end]
            if not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers):
                raise ValueError(f"numbers {numbers}"[:100])
            if dtype not in _DTYPES or len(shape) > LIMITS.rank:
                raise ValueError(f"dtype {dtype!r}, {len(shape)} dimensions")
            kind = _DTYPES[dtype]
            width = NARROW_FLOATS[kind] if kind in NARROW_FLOATS else np.dtype(kind).itemsize
            if end - begin != math.prod(shape) * width:
                raise ValueError(f"{end - begin} bytes for {dtype} of shape {shape}")
            spans[name] = (kind, tuple(shape), begin, end)
    at = 0
    for name, (_, _, begin, end) in sorted(spans.items(), key=lambda item: item[1][2:]):
        if begin != at:
            raise source.refuse(
                f"tensor {name!r}",
                expected=f"data from byte {at}",
                found=f"from {begin}: a hole or an overlap",
                remedy=REMEDIES["damaged"],
            )
        at = end
    if at != size:
        raise source.refuse(
            "data",
            expected=f"{at} bytes",
            found=f"{size}" + (": the file is truncated" if size < at else ""),
            remedy=REMEDIES["damaged"],
        )
    return spans


def _array(
    source: Source,
    name: str,
    data: memoryview,
    kind: str,
    shape: tuple[int, ...],
    begin: int,
    end: int,
) -> Tensor:
    with source.parsing(f"tensor {name!r}", "tensor elements"):
        if kind in NARROW_FLOATS:
            return widen(data[begin:end], kind).reshape(shape)
        stored: Tensor = np.frombuffer(data[begin:end], np.dtype("<" + kind)).reshape(shape)
        native = stored.dtype.newbyteorder("=")
        return stored if stored.flags.aligned and stored.dtype == native else stored.astype(native)


# ------------------------------------------------------------------------------------------- our own files


def _digest(header: Mapping[str, Any], metadata: Mapping[str, str], chunks: Any) -> str:
    """Return the SHA-256 over the header without its checksum, and the bytes of the tensors."""
    rest = {key: value for key, value in metadata.items() if key != _CHECKSUM}
    head = {**header, "__metadata__": rest}
    digest = hashlib.sha256(json.dumps(head, sort_keys=True, separators=(",", ":")).encode("ascii"))
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def _verify(source: Source, header: dict[str, Any], metadata: dict[str, str], data: memoryview) -> None:
    found = _digest(header, metadata, [data])
    if metadata.get(_CHECKSUM) != found:
        raise source.refuse(
            "checksum",
            expected=f"SHA-256 {metadata.get(_CHECKSUM, '(absent)')}",
            found=f"{found}: the file was changed after it was written",
            remedy=REMEDIES["damaged"],
        )


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a model of our own, or tensors by PyTorch's names, with a checksum. Either the whole file, or nothing.

    Parameters
    ----------
    path : str or path-like
        The target; replaced if it exists.
    tensors : mapping of str to ndarray
        Any dtype that safetensors has (bool, integers, float16/32/64, complex64).
    metadata : mapping of str to str
        "config": the architecture as JSON; "source_version": the version of the framework it came from, which
        decides what the config means. "format" is "fastgru" unless it says "pt", which is what tools for PyTorch
        look for; "fastgru.sha256" is set here.

    Raises
    ------
    FormatError
        If a dtype cannot be written, or `path` is a folder.
    """
    target = os.fspath(path)
    header: dict[str, Any] = {}
    arrays: list[Tensor] = []
    at = 0
    # widest elements first: with no holes allowed, that alone keeps every tensor aligned
    for name, value in sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])):
        array = np.ascontiguousarray(value).reshape(np.shape(value))
        native = array.dtype.newbyteorder("=")
        if native not in _NAMES or name == "__metadata__":
            raise FormatError(
                f"{target}: tensor {name!r}: expected one of {', '.join(map(str, _NAMES))}, "
                f"found {array.dtype}; convert it first"
            )
        array = array.astype(native.newbyteorder("<"), copy=False)
        header[name] = {
            "dtype": _NAMES[native],
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        at += array.nbytes
        arrays.append(array)
    chunks = [array.reshape(-1).view(np.uint8).data for array in arrays]
    about = {_MARK[0]: _MARK[1], **(metadata or {})}
    about[_CHECKSUM] = _digest(header, about, chunks)
    text = json.dumps({"__metadata__": about, **header}, separators=(",", ":")).encode("ascii")
    text += b" " * (-(8 + len(text)) % _ALIGN)
    with replacing(target) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for chunk in chunks:
            file.write(chunk)
