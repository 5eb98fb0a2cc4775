"""HDF5 as Keras writes it, read from memory: groups, attributes, contiguous and compact datasets.

pyfive walks the object headers, links and B-trees. Values and attributes are read here, not by
pyfive: it zero-fills truncated data, reads external storage as if it were local, and takes every
2-byte float for IEEE half. Datasets that are chunked, filtered, external or virtual are refused
(1 KB of a declared chunk can inflate to 800 MB, and no Keras file has any); so are soft and
external links.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np

from .hdf5_attributes import GlobalHeaps, attribute
from .model_file import Tensor
from .untrusted import LIMITS, REMEDIES, ByteFile, Source

__all__ = ["SIGNATURE", "Dataset", "Group", "open_hdf5"]

SIGNATURE = b"\x89HDF\r\n\x1a\n"

# HDF5 header message types (specification, IV.A.2)
_DATATYPE, _EXTERNAL, _LAYOUT, _FILTERS, _ATTRIBUTE, _ATTRIBUTE_INFO = 3, 7, 8, 11, 12, 21
_UNDEFINED = 0xFFFFFFFFFFFFFFFF

# (size, bits of exponent, bits of mantissa, exponent bias) of the IEEE floats, as HDF5 describes them
_IEEE = {(2, 5, 10, 15): "f2", (4, 8, 23, 127): "f4", (8, 11, 52, 1023): "f8"}
_BFLOAT16 = (2, 8, 7, 127)


class _File(ByteFile):
    """What pyfive reads from, and the file's variable-length values."""

    def __init__(self, data: memoryview) -> None:
        # pyfive reads headers alone, each a few times: it never needs the file over and over
        super().__init__(data, most_bytes=4 * len(data) + LIMITS.slack)
        self.heaps = GlobalHeaps(data)


class _Node:
    """An object of the file; `_object` is pyfive's DataObjects."""

    def __init__(self, source: Source, file: _File, name: str, object_: Any) -> None:
        self._source = source
        self._file = file
        self._object = object_
        self._attrs: dict[str, Any] | None = None
        self.name = name

    @property
    def attrs(self) -> dict[str, Any]:
        """Attributes by name: str, list of str, ndarray; None for types that Keras never writes."""
        if self._attrs is None:
            with self._source.parsing(self.name, "HDF5 attributes"):
                self._attrs = self._read_attributes()
        return self._attrs

    def _read_attributes(self) -> dict[str, Any]:
        header = self._object
        for message in header.find_msg_type(_ATTRIBUTE_INFO):
            at = message["offset_to_message"]
            at += 4 if header.msg_data[at + 1] & 1 else 2
            if struct.unpack_from("<Q", header.msg_data, at)[0] != _UNDEFINED:
                raise self._source.refuse(
                    self.name,
                    expected="attributes in the object header",
                    found="dense attribute storage (a file written with libver='latest')",
                    remedy=REMEDIES["export_keras"],
                )
        found = {}
        for message in header.find_msg_type(_ATTRIBUTE):
            at = message["offset_to_message"]
            name, value = attribute(header.msg_data[at : at + message["size"]], self._file.heaps)
            found[name] = value
        return found


class Group(_Node):
    """A group: child objects by name. Children are opened when asked for."""

    def __init__(self, source: Source, file: _File, name: str, object_: Any) -> None:
        super().__init__(source, file, name, object_)
        with source.parsing(name, "an HDF5 group"):
            self._links: dict[str, Any] = object_.get_links()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._links)

    def __contains__(self, name: str) -> bool:
        return name in self._links

    def get(self, name: str) -> Group | Dataset | None:
        """Return the child `name`, or None if there is none."""
        if name not in self._links:
            return None
        target = self._links[name]
        path = f"{self.name.rstrip('/')}/{name}"
        if not isinstance(target, (int, np.integer)):
            raise self._source.refuse(
                path,
                expected="an object of this file",
                found="a soft or external link",
                remedy=REMEDIES["export_keras"],
            )
        return _open(self._source, self._file, path, int(target))

    def group(self, path: str) -> Group | None:
        """Return the group at a relative path, or None."""
        node: Group | Dataset | None = self
        for part in path.split("/"):
            if not isinstance(node, Group):
                return None
            node = node.get(part)
        return node if isinstance(node, Group) else None

    def dataset(self, path: str) -> Dataset | None:
        """Return the dataset at a relative path, or None."""
        *parents, last = path.split("/")
        parent = self.group("/".join(parents)) if parents else self
        node = parent.get(last) if parent is not None else None
        return node if isinstance(node, Dataset) else None


class Dataset(_Node):
    """A dataset whose values lie in the file as they are."""

    @property
    def shape(self) -> tuple[int, ...]:
        with self._source.parsing(self.name, "an HDF5 dataspace"):
            shape = self._object.shape
            dims = tuple(int(size) for size in (() if shape is None else shape))
        if len(dims) > LIMITS.rank:
            raise self._source.refuse(
                self.name,
                expected=f"at most {LIMITS.rank} dimensions",
                found=str(len(dims)),
                remedy=REMEDIES["bomb"],
            )
        return dims

    def dtype(self) -> str:
        """Return the NumPy type string of the values, "bfloat16", or "opaque2" for two bytes of unknown meaning."""
        with self._source.parsing(self.name, "an HDF5 datatype"):
            header = self._object
            at = header.find_msg_type(_DATATYPE)[0]["offset_to_message"]
            kind, bits0, _, _, size = struct.unpack_from("<BBBBI", header.msg_data, at)
            order = ">" if bits0 & 1 else "<"
            kind &= 0x0F
            if kind == 0 and size in (1, 2, 4, 8):
                return f"{order}{'i' if bits0 & 8 else 'u'}{size}"
            if kind == 1:
                exponent, mantissa = header.msg_data[at + 13], header.msg_data[at + 15]
                bias = struct.unpack_from("<I", header.msg_data, at + 16)[0]
                layout = (size, exponent, mantissa, bias)
                if layout in _IEEE:
                    return order + _IEEE[layout]
                if layout == _BFLOAT16 and order == "<":
                    return "bfloat16"
            if kind == 5 and size == 2:
                return "opaque2"
            if kind == 8:
                base = header.msg_data[at + 8] & 0x0F  # h5py stores bool as an enum of int8
                if base == 0 and size == 1:
                    return "|b1"
        raise self._source.refuse(
            self.name,
            expected="integers, IEEE floats or bfloat16",
            found=f"HDF5 datatype class {kind} of {size} bytes",
            remedy=REMEDIES["export_keras"],
        )

    def read(self, opaque_is_bfloat16: bool = False) -> Tensor:
        """Return the values as a new array (bfloat16 as float32).

        Parameters
        ----------
        opaque_is_bfloat16 : bool
            What the caller's config says of two-byte opaque values; an attribute dtype="bfloat16" says it too.
        """
        kind = self.dtype()
        if kind == "opaque2":
            if not opaque_is_bfloat16 and self.attrs.get("dtype") != "bfloat16":
                raise self._source.refuse(
                    self.name,
                    expected="a dtype for opaque 2-byte values in the file or its config",
                    found="none",
                    remedy=REMEDIES["export_keras"],
                )
            kind = "bfloat16"
        shape = self.shape
        dtype = np.dtype("<u2" if kind == "bfloat16" else kind)
        count = math.prod(shape)
        data = self._stored(count * dtype.itemsize)
        with self._source.parsing(self.name, "dataset values"):
            values = np.frombuffer(data, dtype, count).reshape(shape)
            if kind == "bfloat16":
                return (values.astype(np.uint32) << 16).view(np.float32)
            return values.astype(dtype.newbyteorder("="))

    def _stored(self, nbytes: int) -> memoryview | bytes:
        """Return exactly the `nbytes` bytes of the values, checked to lie inside the file."""
        header = self._object
        if header.find_msg_type(_EXTERNAL):
            raise self._refuse_layout("external storage")
        if header.find_msg_type(_FILTERS):
            with self._source.parsing(self.name, "an HDF5 filter pipeline"):
                filters = [entry["filter_id"] for entry in header.filter_pipeline or []]
            names = {
                1: "gzip",
                2: "shuffle",
                3: "fletcher32",
                4: "szip",
                5: "nbit",
                6: "scaleoffset",
            }
            raise self._refuse_layout("filters " + ", ".join(names.get(int(f), f"number {f}") for f in filters))
        with self._source.parsing(self.name, "an HDF5 data layout"):
            at = header.find_msg_type(_LAYOUT)[0]["offset_to_message"]
            version, layout = struct.unpack_from("<BB", header.msg_data, at)
            if version in (3, 4) and layout == 0:
                size = struct.unpack_from("<H", header.msg_data, at + 2)[0]
                stored: memoryview | bytes = header.msg_data[at + 4 : at + 4 + size]
                address = 0
            elif version in (3, 4) and layout == 1:
                address, size = struct.unpack_from("<QQ", header.msg_data, at + 2)
                if address == _UNDEFINED and nbytes == 0:
                    return b""
                stored = self._source.data[address : address + size] if address < _UNDEFINED else b""
            else:
                kinds = {0: "compact", 1: "contiguous", 2: "chunked", 3: "virtual"}
                found = f"{kinds.get(layout, 'unknown')} layout, version {version}"
                raise self._refuse_layout(found)
        if size < nbytes or len(stored) < nbytes:
            raise self._source.refuse(
                self.name,
                expected=f"{nbytes} bytes for shape {self.shape}",
                found=f"{min(size, len(stored))} in the file",
                remedy=REMEDIES["damaged"],
            )
        return stored[:nbytes]

    def _refuse_layout(self, found: str) -> Exception:
        return self._source.refuse(self.name, expected="contiguous values", found=found, remedy=REMEDIES["h5_layout"])


def _open(source: Source, file: _File, name: str, address: int) -> Group | Dataset:
    from pyfive.dataobjects import DataObjects

    with source.parsing(name, "an HDF5 object"):
        object_ = DataObjects(file, address)
        is_dataset = bool(object_.is_dataset)
    kind: type[Group] | type[Dataset] = Dataset if is_dataset else Group
    return kind(source, file, name, object_)


def open_hdf5(source: Source, member: str = "") -> Group:
    """Open the HDF5 file in `source.data` and return its root group.

    Parameters
    ----------
    source : Source
        The bytes; `member` names them inside the file when they are part of an archive.

    Raises
    ------
    FormatError
        If the signature is not at byte 0, the file is shorter than its superblock says, or it does not parse.
    """
    data = source.data
    with source.parsing(member, "an HDF5 superblock"):
        if bytes(data[:8]) != SIGNATURE:
            raise source.refuse(
                member,
                expected="an HDF5 file",
                found="another signature",
                remedy=REMEDIES["damaged"],
            )
        version = data[8]
        # base address and end-of-file address stand at these offsets (specification, II)
        if version not in (0, 2, 3):
            raise source.refuse(
                member,
                expected="superblock version 0, 2 or 3",
                found=str(version),
                remedy=REMEDIES["export_keras"],
            )
        base, end = (24, 40) if version == 0 else (12, 28)
        base = struct.unpack_from("<Q", data, base)[0]
        end = struct.unpack_from("<Q", data, end)[0]
    if base != 0:
        raise source.refuse(
            member,
            expected="base address 0",
            found=str(base),
            remedy=REMEDIES["userblock"],
        )
    if end > len(data):
        raise source.refuse(
            member,
            expected=f"{end} bytes",
            found=f"{len(data)}: the file is truncated",
            remedy=REMEDIES["damaged"],
        )
    from pyfive.misc_low_level import SuperBlock

    file = _File(data)
    with source.parsing(member, "an HDF5 superblock"):
        root = SuperBlock(file, 0).offset_to_dataobjects
    group = _open(source, file, f"{member}:/" if member else "/", root)
    if not isinstance(group, Group):
        raise source.refuse(member, expected="a root group", found="a dataset", remedy=REMEDIES["damaged"])
    return group
