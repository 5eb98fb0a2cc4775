"""torch.save files in the zip format (PyTorch ≥ 1.6): data.pkl, and one member for each storage."""

from __future__ import annotations

import io

from .archive import Archive
from .model_file import ModelFile
from .pickle_tensors import load
from .state_dict import flatten
from .torch_tensors import StorageRef, Tensors, itemsize, reduce, storage_ref
from .untrusted import REMEDIES, Source

__all__ = ["read_pytorch_zip"]


def read_pytorch_zip(source: Source, archive: Archive) -> ModelFile:
    """Read a zip file of torch.save.

    Raises
    ------
    FormatError
        If it is TorchScript, holds no tensors, or storages and tensors do not fit each other.
    """
    pickles = [name for name in archive.names if name.endswith("/data.pkl") and name.count("/") == 1]
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in archive.names):
        raise source.refuse(
            "",
            expected="a state_dict saved by torch.save",
            found="a TorchScript archive",
            remedy=REMEDIES["torchscript"],
        )
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
    tensors, notes = flatten(source, member, value, Tensors(source, fetch, order == b"big"))
    return ModelFile("pytorch-zip", "", None, tensors, notes, source.name)
