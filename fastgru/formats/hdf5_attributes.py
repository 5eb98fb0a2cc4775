"""HDF5 attributes: names, numbers and strings in the headers of groups and datasets.

Read here and not by pyfive, which allocates what an attribute declares before it looks at the bytes, and fails on
honest files whose global heap ends in fewer than 16 free bytes. (HDF5 file format specification 3.0, IV.A.2.m, the
attribute message; III.E, the global heap.)
"""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np

from .untrusted import LIMITS

__all__ = ["GlobalHeaps", "attribute"]

_UNDEFINED = 0xFFFFFFFFFFFFFFFF


class GlobalHeaps:
    """The collections of variable-length values of one file, each indexed once."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._collections: dict[int, dict[int, tuple[int, int]]] = {}
        self._steps_left = LIMITS.reads

    def value(self, address: int, index: int, length: int) -> bytes:
        """Return the first `length` bytes of an object; b"" for the null address."""
        if address in (0, _UNDEFINED) or not length:
            return b""
        if address not in self._collections:
            self._collections[address] = self._index(address)
        begin, size = self._collections[address][index]
        if length > size:
            raise ValueError(f"a value of {length} bytes in a heap object of {size}")
        return self._data[begin : begin + length].tobytes()

    def _index(self, address: int) -> dict[int, tuple[int, int]]:
        signature, version, size = struct.unpack_from("<4sB3xQ", self._data, address)
        end = address + size
        if signature != b"GCOL" or version != 1 or end > len(self._data):
            raise ValueError("a global heap expected")
        objects: dict[int, tuple[int, int]] = {}
        at = address + 16
        while at + 16 <= end:
            index, length = struct.unpack_from("<H6xQ", self._data, at)
            if index == 0:  # the free space that ends a collection
                break
            if length > end - at - 16:
                raise ValueError("a global heap object beyond its heap")
            objects[index] = (at + 16, length)
            at += 16 + -(-length // 8) * 8
            self._steps_left -= 1
            if self._steps_left < 0:
                raise ValueError("too many global heap objects")
        return objects


def attribute(message: bytes, heaps: GlobalHeaps) -> tuple[str, Any]:
    """Return (name, value) of an attribute message.

    Returns
    -------
    tuple of (str, value)
        str for a string, list of str for an array of strings, ndarray for numbers, None for any other type.

    Raises
    ------
    ValueError, struct.error, KeyError, UnicodeDecodeError
        If the message is malformed or declares more than it holds.
    """
    version, flags, name_size, type_size, space_size = struct.unpack_from("<BBHHH", message)
    if version not in (1, 2, 3):
        raise ValueError(f"attribute message version {version}")
    pad = 8 if version == 1 else 1
    at = 9 if version == 3 else 8
    name = message[at : at + name_size].split(b"\0")[0].decode("utf-8")
    at += -(-name_size // pad) * pad
    datatype = message[at : at + type_size]
    at += -(-type_size // pad) * pad
    dims = _dims(message[at : at + space_size])
    at += -(-space_size // pad) * pad
    if flags & 3 or dims is None:  # a shared datatype or dataspace, or no value at all
        return name, None
    kind, bits, _, _, itemsize = struct.unpack_from("<BBBBI", datatype)
    count = math.prod(dims)
    values = message[at : at + count * itemsize]
    if len(values) != count * itemsize:
        raise ValueError(f"attribute {name!r} declares {count} × {itemsize} bytes")
    kind &= 0x0F
    if kind in (0, 1) and itemsize in (1, 2, 4, 8):
        letter = "f" if kind == 1 else "i" if bits & 8 else "u"
        order = ">" if bits & 1 else "<"
        return name, np.frombuffer(values, f"{order}{letter}{itemsize}").reshape(dims)
    if kind == 3 and itemsize:
        parts = [values[i : i + itemsize] for i in range(0, len(values), itemsize)]
    elif kind == 9 and bits & 0x0F == 1 and itemsize == 16:
        ids = struct.iter_unpack("<IQI", values)
        parts = [heaps.value(address, index, length) for length, address, index in ids]
    else:
        return name, None
    strings = [part.split(b"\0")[0].decode("utf-8") for part in parts]
    return name, strings if dims else strings[0]


def _dims(message: bytes) -> tuple[int, ...] | None:
    """Return the shape of a dataspace message; None for a null dataspace."""
    version, rank, _, kind = struct.unpack_from("<BBBB", message)
    if version not in (1, 2) or rank > LIMITS.rank:
        raise ValueError(f"dataspace version {version}, rank {rank}")
    if version == 2 and kind == 2:
        return None
    return struct.unpack_from(f"<{rank}Q", message, 8 if version == 1 else 4)
