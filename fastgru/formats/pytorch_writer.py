"""The zip file that torch.save writes for a state_dict, without torch.

`data.pkl` is a pickle of protocol 2 that rebuilds an OrderedDict of tensors, each a view of a storage; a storage's
bytes are the member `data/KEY`, stored, and aligned to 64 bytes so that `torch.load(mmap=True)` can map them.
(PyTorch: torch/serialization.py `_save`, torch/_utils.py `_rebuild_tensor_v2`, caffe2/serialize/inline_container.cc
`getPadding`.)
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np

from .model_file import Tensor
from .replacing import replacing
from .untrusted import FormatError

__all__ = ["write_pytorch"]

_TOP = "archive"
_ALIGN = 64
_LOCAL_HEADER = 30
_DATE = (1980, 1, 1, 0, 0, 0)  # zip's zero: the same tensors give the same bytes
_STORAGES = {
    np.dtype("f8"): "DoubleStorage",
    np.dtype("f4"): "FloatStorage",
    np.dtype("f2"): "HalfStorage",
    np.dtype("i8"): "LongStorage",
    np.dtype("i4"): "IntStorage",
    np.dtype("i2"): "ShortStorage",
    np.dtype("i1"): "CharStorage",
    np.dtype("u1"): "ByteStorage",
    np.dtype("b1"): "BoolStorage",
    np.dtype("c8"): "ComplexFloatStorage",
    np.dtype("c16"): "ComplexDoubleStorage",
}


def write_pytorch(path: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> None:
    """Write a state_dict that `torch.load(path, weights_only=True)` reads. Either the whole file, or nothing.

    Parameters
    ----------
    path : str or path-like
        The target; replaced if it exists.
    tensors : mapping of str to ndarray
        Kept in order. Arrays that are the same memory stay one storage, as tied weights are in PyTorch.

    Raises
    ------
    FormatError
        If PyTorch has no storage class for a dtype, or a name has no UTF-8.
    """
    storages: list[Tensor] = []
    keys: dict[tuple[int, str, tuple[int, ...], tuple[int, ...]], str] = {}
    parts = [b"\x80\x02ccollections\nOrderedDict\n)R("]
    kept = dict(tensors)  # all alive at once, or two could have had the same memory one after the other
    for name, value in kept.items():
        native = value.dtype.newbyteorder("=")
        if native not in _STORAGES:
            listed = ", ".join(str(kind) for kind in _STORAGES)
            raise FormatError(
                f"{os.fspath(path)}: tensor {name!r}: expected one of {listed}, found {value.dtype}; convert it first"
            )
        try:
            text = _text(name)
        except UnicodeEncodeError as error:
            raise FormatError(
                f"{os.fspath(path)}: tensor {name!r}: expected a name that is Unicode text, found a lone surrogate at "
                f"character {error.start}; rename it first"
            ) from error
        place = (value.__array_interface__["data"][0], value.dtype.str, value.shape, value.strides)
        if place not in keys or value.size == 0:
            keys[place] = str(len(storages))
            storages.append(np.ascontiguousarray(value).reshape(-1).astype(native.newbyteorder("<"), copy=False))
        parts += [text, _tensor(_STORAGES[native], keys[place], value.shape)]
    pickle = b"".join([*parts, b"u."])
    with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _member(file, archive, "data.pkl", pickle)
        _member(file, archive, "byteorder", b"little")
        for key, storage in enumerate(storages):
            _member(file, archive, f"data/{key}", storage.view(np.uint8).data)
        _member(file, archive, "version", b"3\n")


def _text(value: str) -> bytes:
    data = value.encode("utf-8")
    return b"X" + struct.pack("<I", len(data)) + data


def _integer(value: int) -> bytes:
    if value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(8, "little")  # LONG1; a leading zero bit keeps it positive, as sizes are below 2**63
    return b"\x8a\x08" + data


def _tuple(items: list[bytes]) -> bytes:
    return b"(" + b"".join(items) + b"t"


def _tensor(storage: str, key: str, shape: tuple[int, ...]) -> bytes:
    """`_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, backward_hooks)`, contiguous."""
    size = int(np.prod(shape, dtype=object))
    strides = [int(np.prod(shape[i + 1 :], dtype=object)) for i in range(len(shape))]
    identity = [_text("storage"), f"ctorch\n{storage}\n".encode("ascii"), _text(key), _text("cpu"), _integer(size)]
    arguments = [
        _tuple(identity) + b"Q",
        _integer(0),
        _tuple([_integer(n) for n in shape]),
        _tuple([_integer(n) for n in strides]),
        b"\x89",
        b"ccollections\nOrderedDict\n)R",
    ]
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + _tuple(arguments) + b"R"


def _member(file: BinaryIO, archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    """Append a member whose data begins at a multiple of 64 bytes; the header's extra field "FB" takes up the rest."""
    info = zipfile.ZipInfo(f"{_TOP}/{name}", _DATE)
    begin = file.tell() + _LOCAL_HEADER + len(info.filename)
    if len(data) * 1.05 > zipfile.ZIP64_LIMIT:
        begin += 20  # zipfile then puts the 64-bit sizes before our field
    info.extra = b"FB" + struct.pack("<H", -(begin + 4) % _ALIGN)
    info.extra += b"Z" * (-(begin + 4) % _ALIGN)
    info.file_size = len(data)
    with archive.open(info, "w") as member:
        member.write(data)
