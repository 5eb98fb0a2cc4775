"""torch.save files in the zip format (PyTorch ≥ 1.6): data.pkl, and one member for each storage.

torch.jit.save writes the same container (`torchscript.py`).
"""

from __future__ import annotations

import io
from typing import Any

from .archive import Archive
from .model_file import ModelFile
from .pickle_tensors import load
from .state_dict import flatten
from .torch_tensors import StorageRef, Tensors, itemsize, reduce, storage_ref
from .untrusted import REMEDIES, Source

__all__ = ["open_pickle", "read_pytorch_zip"]


def read_pytorch_zip(source: Source, archive: Archive) -> ModelFile:
    """Read a zip file of torch.save.

    Raises
    ------
    FormatError
        If it holds no tensors, or storages and tensors do not fit each other.
    """
    member, value, tensor = open_pickle(source, archive)
    tensors, notes = flatten(source, member, value, tensor)
    return ModelFile("pytorch-zip", "", None, tensors, notes, source.name)


def open_pickle(source: Source, archive: Archive) -> tuple[str, Any, Tensors]:
    """Return the name of the archive's one data.pkl, what it holds as inert data, and what makes its tensors."""
    pickles = [name for name in archive.names if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise source.refuse(
            "",
            expected="one data.pkl",
            found=f"{len(pickles)}",
            remedy=REMEDIES["export_torch"],
        )
    member = pickles[0]
    top = member[: -len("data.pkl")]
    order = b"little"
    if top + "byteorder" in archive:
        order = archive.read(top + "byteorder").strip()
    if order not in (b"little", b"big"):
        raise source.refuse(
            top + "byteorder",
            expected="little or big",
            found=repr(order)[:40],
            remedy=REMEDIES["damaged"],
        )

    def fetch(storage: StorageRef) -> memoryview:
        name = f"{top}data/{storage.key}"
        wanted = storage.numel * itemsize(storage.dtype)
        found = archive.size(name) if name in archive else None
        if found != wanted:
            raise source.refuse(
                name,
                expected=f"{wanted} bytes ({storage.numel} × {storage.dtype})",
                found="no such member" if found is None else f"{found} bytes",
                remedy=REMEDIES["damaged"],
            )
        return archive.view(name)

    value = load(
        source,
        member,
        io.BytesIO(archive.read(member)),
        reduce=reduce,
        persistent=lambda identity: storage_ref(source, member, identity),
    )
    return member, value, Tensors(source, fetch, order == b"big")
