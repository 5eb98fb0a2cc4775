"""TensorProto → array: the bytes inside the model, or in a file beside it. (Source: onnx/onnx.proto, TensorProto.)"""

from __future__ import annotations

import math
import mmap
import os
import stat
from typing import Any

import numpy as np

from .float_formats import widen
from .model_file import Tensor
from .untrusted import LIMITS, REMEDIES, Source

__all__ = ["ELEMENTS", "TensorReader"]

#: TensorProto.DataType → NumPy's name (and bfloat16, which it lacks), as far as GRU models use them.
ELEMENTS: dict[int, str] = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    16: "bfloat16",
}
_FIELDS = {"float32": "float_data", "float64": "double_data", "int64": "int64_data"}
_FIELDS |= {"uint32": "uint64_data", "uint64": "uint64_data"}  # all others, halves as bits, lie in int32_data
_EXTERNAL = 1  # TensorProto.DataLocation


class TensorReader:
    """Reads the tensors of one model; files with external data are mapped once."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._files: dict[str, memoryview] = {}
        self._external: dict[tuple[str, int, int, str], Tensor] = {}  # by location, offset, length and type
        self._held = len(source)
        self._declared = 0

    @property
    def files(self) -> tuple[str, ...]:
        """The real paths of the data files that were read."""
        return tuple(self._files)

    def read(self, proto: Any, member: str) -> Tensor:
        """The values of a TensorProto.

        Raises
        ------
        FormatError
            For an element type without numbers, a shape that contradicts the bytes, or data outside the folder.
        """
        if proto.data_type not in ELEMENTS:
            raise self._source.refuse(
                member,
                expected=f"elements of {', '.join(ELEMENTS.values())}",
                found=f"TensorProto.DataType {proto.data_type}",
                remedy="export the model in float32",
            )
        kind = ELEMENTS[proto.data_type]
        shape = tuple(proto.dims)
        if len(shape) > LIMITS.rank or any(n < 0 for n in shape):
            raise self._source.refuse(
                member, expected=f"a shape of at most {LIMITS.rank} sizes of 0 or more", found=f"{shape!s:.200}"
            )
        count = math.prod(shape)
        if proto.HasField("segment"):
            raise self._source.refuse(member, expected="a whole tensor", found="a segment of one")
        if proto.data_location == _EXTERNAL:
            values = self._outside(proto, member, kind, count, shape)
        elif proto.HasField("raw_data"):
            values = self._elements(member, kind, count, proto.raw_data, shape)
        else:
            values = self._listed(member, kind, count, proto, shape)
        return values.reshape(shape)

    def _elements(self, member: str, kind: str, count: int, data: Any, shape: tuple[int, ...]) -> Tensor:
        """Little-endian elements, viewed where NumPy can."""
        width = 2 if kind == "bfloat16" else np.dtype(kind).itemsize
        if len(data) != count * width:
            raise self._mismatch(member, f"{count * width} bytes", f"{len(data)}", kind, shape)
        if kind == "bfloat16":
            return widen(data, kind)
        if kind == "bool":
            return np.asarray(np.frombuffer(data, np.uint8) != 0)
        stored: Tensor = np.frombuffer(data, np.dtype(kind).newbyteorder("<"))
        native = stored.dtype.newbyteorder("=")
        return stored if stored.flags.aligned and stored.dtype == native else stored.astype(native)

    def _listed(self, member: str, kind: str, count: int, proto: Any, shape: tuple[int, ...]) -> Tensor:
        """Elements as numbers of the field for their type."""
        values = getattr(proto, _FIELDS.get(kind, "int32_data"))
        if len(values) != count:
            raise self._mismatch(member, f"{count} elements", f"{len(values)}", kind, shape)
        if kind in ("float16", "bfloat16"):
            bits = np.fromiter(values, np.int64, count).astype(np.uint16)
            return bits.view(np.float16) if kind == "float16" else widen(bits.astype("<u2").tobytes(), kind)
        with self._source.parsing(member, f"{kind} elements"):
            return np.fromiter(values, np.dtype(kind), count)

    def _mismatch(self, member: str, expected: str, found: str, kind: str, shape: tuple[int, ...]) -> Exception:
        return self._source.refuse(
            member, expected=f"{expected} for {kind} {shape}", found=found, remedy=REMEDIES["damaged"]
        )

    # -- external data ---------------------------------------------------------------------

    def _outside(self, proto: Any, member: str, kind: str, count: int, shape: tuple[int, ...]) -> Tensor:
        """Elements in a file of the model's own folder, made once for all tensors of the same bytes.

        Tensors without end may name the same bytes, so what they declare is added up.
        """
        location, offset, length, data = self._range(proto, member)
        self._declared += length
        most = LIMITS.bytes_for(self._held)
        if self._declared > most:
            raise self._source.refuse(
                member,
                expected=f"at most {most} bytes in all tensors, of files that hold {self._held}",
                found=f"{self._declared} up to this one",
                remedy=REMEDIES["bomb"],
            )
        place = (location, offset, length, kind)
        if place not in self._external:
            self._external[place] = self._elements(member, kind, count, data, shape)
        elif self._external[place].size != count:
            raise self._mismatch(member, f"{count} elements", f"{self._external[place].size}", kind, shape)
        return self._external[place]

    def _range(self, proto: Any, member: str) -> tuple[str, int, int, memoryview]:
        """Location, offset, length and bytes of one tensor."""
        entries = {entry.key: entry.value for entry in proto.external_data}
        location = entries.get("location", "")
        data = self._file(location, member)
        with self._source.parsing(member, "offset and length in whole numbers"):
            offset = int(entries.get("offset", "0"))
            length = int(entries.get("length", str(len(data) - offset)))
        if offset < 0 or length < 0 or offset + length > len(data):
            raise self._source.refuse(
                member,
                expected=f"external data within the {len(data)} bytes of {location!r}",
                found=f"offset {offset} and length {length}",
                remedy=REMEDIES["damaged"],
            )
        return location, offset, length, data[offset : offset + length]

    def _file(self, location: str, member: str) -> memoryview:
        if self._source.folder is None:
            raise self._source.refuse(
                member,
                expected="a tensor inside the model",
                found=f"external data in {location!r}, and the model was not read from a path",
                remedy=REMEDIES["external"],
            )
        folder = os.path.realpath(self._source.folder)
        inside = not os.path.isabs(location) and "\0" not in location and location != ""
        path = os.path.realpath(os.path.join(folder, location)) if inside else ""
        if not path.startswith(os.path.join(folder, "")):
            raise self._source.refuse(
                member,
                expected=f"external data inside the model's folder {folder!r}",
                found=f"the location {location!r}, which leads out of it",
                remedy=REMEDIES["external"],
            )
        if path not in self._files:  # by its real path: one file has names without end
            self._files[path] = self._map(path, location, member)
            self._held += len(self._files[path])
        return self._files[path]

    def _map(self, path: str, location: str, member: str) -> memoryview:
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        try:
            descriptor = os.open(path, flags)
        except OSError as error:
            raise self._source.refuse(
                member,
                expected=f"external data in {location!r}",
                found=f"{error.strerror}",
                remedy=REMEDIES["external"],
            ) from error
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise self._source.refuse(member, expected="a regular file", found=f"{location!r}, a pipe or device")
            if status.st_size == 0:
                return memoryview(b"")
            return memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))
        finally:
            os.close(descriptor)
