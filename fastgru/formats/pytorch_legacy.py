"""torch.save files before PyTorch 1.6: five pickles in a row, then the storages.

magic number, protocol 1001, system information, the object, the list of storage keys; then for each key the number
of elements (int64) and the elements. (PyTorch: torch/serialization.py, `_legacy_save`.)
"""

from __future__ import annotations

import struct
from typing import Any

from .model_file import ModelFile
from .pickle_tensors import describe, load
from .state_dict import flatten
from .torch_tensors import StorageRef, Tensors, itemsize, reduce, storage_ref
from .untrusted import REMEDIES, ByteFile, Source

__all__ = ["read_pytorch_legacy"]

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001


def read_pytorch_legacy(source: Source) -> ModelFile:
    """Read a legacy file of torch.save.

    Raises
    ------
    FormatError
        If it is another pickle, holds no tensors, or storages and tensors do not fit each other.
    """
    file = ByteFile(source.data)
    storages: dict[str, StorageRef] = {}

    def persistent(identity: tuple[Any, ...]) -> Any:
        value = storage_ref(source, "object", identity)
        if isinstance(value, StorageRef):
            # the size of the whole storage, which only the id knows: the file repeats it as numel
            whole = StorageRef(value.key, value.dtype, identity[4])
            known = storages.setdefault(whole.key, whole)
            if known != whole:
                raise source.refuse(
                    f"storage {whole.key}",
                    expected=f"{known.numel} × {known.dtype}",
                    found=f"{whole.numel} × {whole.dtype}",
                    remedy=REMEDIES["damaged"],
                )
        return value

    def unpickle(member: str) -> Any:
        return load(source, member, file, reduce=reduce, persistent=persistent)

    magic = unpickle("magic number")
    if type(magic) is not int or magic != _MAGIC:
        raise source.refuse(
            "",
            expected="a file of torch.save",
            found="another pickle",
            remedy=REMEDIES["pickle"],
        )
    protocol = unpickle("protocol")
    if protocol != _PROTOCOL:
        raise source.refuse(
            "protocol",
            expected=str(_PROTOCOL),
            found=describe(protocol),
            remedy=REMEDIES["export_torch"],
        )
    system = unpickle("system information")
    big = isinstance(system, dict) and system.get("little_endian") is False
    value = unpickle("object")
    keys = unpickle("storage keys")
    places = _locate(source, keys, storages, file.tell(), ">" if big else "<")

    def fetch(storage: StorageRef) -> memoryview:
        if storage.key not in places:
            raise source.refuse(
                f"storage {storage.key}",
                expected="its elements in the file",
                found="none",
                remedy=REMEDIES["damaged"],
            )
        width = itemsize(storage.dtype)
        begin = places[storage.key] + storage.start * width
        return source.data[begin : begin + storage.numel * width]

    tensors, notes = flatten(source, "object", value, Tensors(source, fetch, big))
    return ModelFile("pytorch-legacy", "", None, tensors, notes, source.name)


def _locate(source: Source, keys: Any, storages: dict[str, StorageRef], at: int, order: str) -> dict[str, int]:
    """Return where each storage's elements begin, each checked to be as long as the pickle says."""
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise source.refuse(
            "storage keys",
            expected="a list of strings",
            found=describe(keys),
            remedy=REMEDIES["damaged"],
        )
    places: dict[str, int] = {}
    for key in keys:
        where = f"storage {key}"
        storage = storages.get(key)
        if storage is None:
            raise source.refuse(
                where,
                expected="a storage that the object names",
                found="none",
                remedy=REMEDIES["damaged"],
            )
        with source.parsing(where, "its number of elements"):
            numel = struct.unpack_from(order + "q", source.data, at)[0]
        end = at + 8 + storage.numel * itemsize(storage.dtype)
        if numel != storage.numel or end > len(source):
            found = f"{numel} elements" if numel != storage.numel else "the end of the file"
            raise source.refuse(
                where,
                expected=f"{storage.numel} × {storage.dtype}",
                found=found,
                remedy=REMEDIES["damaged"],
            )
        places[key] = at + 8
        at = end
    return places
