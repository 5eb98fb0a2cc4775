"""Tensors and storages as torch.save pickles describe them, and the arrays they become.

The pickle says which storages there are and how tensors view them; `TensorRef` and `StorageRef` record that, and
only when the pickle has ended are the storages found, measured and viewed. (PyTorch: torch/serialization.py,
torch/_utils.py `_rebuild_*`.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .float_formats import NARROW_FLOATS, widen
from .model_file import Tensor
from .pickle_tensors import Global, Stub, describe
from .untrusted import LIMITS, REMEDIES, Source

__all__ = ["DTYPES", "StorageRef", "TensorRef", "Tensors", "itemsize", "reduce", "storage_ref"]

# PyTorch's storage classes and dtype names → NumPy's (narrow floats that NumPy lacks keep PyTorch's name)
DTYPES: dict[str, str] = {
    "float64": "f8",
    "float32": "f4",
    "float16": "f2",
    "int64": "i8",
    "int32": "i4",
    "int16": "i2",
    "int8": "i1",
    "uint8": "u1",
    "uint16": "u2",
    "uint32": "u4",
    "uint64": "u8",
    "bool": "b1",
    "complex64": "c8",
    "complex128": "c16",
    **{name: name for name in NARROW_FLOATS},
}
_STORAGES: dict[str, str] = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "UntypedStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}


def itemsize(dtype: str) -> int:
    """Return the bytes of one element as stored."""
    return NARROW_FLOATS[dtype] if dtype in NARROW_FLOATS else np.dtype(DTYPES[dtype]).itemsize


@dataclass(frozen=True)
class StorageRef:
    """A storage named by a persistent id: `numel` elements of `dtype`, from element `start` of the stored `key`."""

    key: str
    dtype: str
    numel: int
    start: int = 0


@dataclass(frozen=True, eq=False)
class TensorRef:
    """A tensor as the pickle describes it; nothing is checked or allocated yet."""

    storage: StorageRef
    dtype: str
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    conj: bool = False
    neg: bool = False


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _tensor(arguments: tuple[Any, ...], dtype: Any = None, metadata: Any = None) -> Any:
    """Return the TensorRef of (storage, offset, size, stride, …), or NotImplemented if these are something else."""
    if len(arguments) < 4:
        return NotImplemented
    storage, offset, size, stride = arguments[:4]
    if not isinstance(storage, StorageRef):
        return NotImplemented
    if not isinstance(size, tuple) or not isinstance(stride, tuple) or len(size) != len(stride):
        raise ValueError(f"size {describe(size)} and stride {describe(stride)} of a tensor")
    if not _count(offset) or not all(map(_count, size)) or not all(map(_count, stride)):
        raise ValueError(f"offset {describe(offset)}, size {describe(size)}, stride {describe(stride)}")
    name = storage.dtype if dtype is None else str(getattr(dtype, "name", ""))
    if name not in DTYPES:
        return NotImplemented
    flags = metadata if isinstance(metadata, dict) else {}
    return TensorRef(storage, name, offset, size, stride, bool(flags.get("conj")), bool(flags.get("neg")))


def reduce(function: Global, arguments: tuple[Any, ...]) -> Any:
    """Return what a known constructor would make, as data; NotImplemented for every other name."""
    module, name = function.module, function.name
    if module == "torch._utils":
        if name == "_rebuild_tensor":
            return _tensor(arguments)
        if name == "_rebuild_tensor_v2":
            return _tensor(arguments, metadata=arguments[6] if len(arguments) > 6 else None)
        if name == "_rebuild_tensor_v3" and len(arguments) > 6:
            return _tensor(arguments, arguments[6], arguments[7] if len(arguments) > 7 else None)
        if name in (
            "_rebuild_parameter",
            "_rebuild_parameter_with_state",
            "_rebuild_device_tensor_from_cpu_tensor",
        ):
            return arguments[0] if arguments else NotImplemented
    elif module == "torch._tensor" and name in ("_rebuild_from_type", "_rebuild_from_type_v2"):
        if len(arguments) > 2 and isinstance(arguments[0], Global) and type(arguments[2]) is tuple:
            return reduce(arguments[0], arguments[2])
    elif module == "torch.nn.parameter" and name in ("Parameter", "Buffer"):
        return arguments[0] if arguments and isinstance(arguments[0], TensorRef) else NotImplemented
    elif module == "torch" and name == "Size":
        return arguments[0] if arguments and isinstance(arguments[0], tuple) else ()
    elif module in ("builtins", "__builtin__") and name in ("set", "frozenset"):
        if arguments and isinstance(arguments[0], list):
            return Stub(function, values=list(arguments[0]))
    elif module == "collections" and name in ("OrderedDict", "defaultdict", "Counter"):
        return _dict(arguments[1:] if name == "defaultdict" else arguments)
    return NotImplemented


def _dict(arguments: tuple[Any, ...]) -> Any:
    if not arguments:
        return {}
    first = arguments[0]
    if type(first) is dict:
        return dict(first)
    pairs = [tuple(pair) for pair in first] if isinstance(first, list) else None
    if pairs is None or not all(len(p) == 2 and isinstance(p[0], (str, int)) for p in pairs):
        return NotImplemented
    return dict(pairs)


def storage_ref(source: Source, member: str, identity: tuple[Any, ...]) -> Any:
    """Return what a persistent id stands for: a StorageRef, or the class of a 'module' id.

    ('storage', class, key, location, numel) in zip files; legacy files add view metadata (key, offset, numel).
    """
    if len(identity) >= 2 and identity[0] == "module":
        return identity[1]
    kind = identity[1] if len(identity) >= 5 and identity[0] == "storage" else None
    name = _STORAGES.get(kind.name) if isinstance(kind, Global) else None
    if name is None or not isinstance(identity[2], (str, int)) or not _count(identity[4]):
        raise source.refuse(
            member,
            expected="a persistent id of a storage",
            found=describe(identity),
            remedy=REMEDIES["export_torch"],
        )
    view = identity[5] if len(identity) > 5 else None
    if view is None:
        return StorageRef(str(identity[2]), name, identity[4])
    if not (isinstance(view, tuple) and len(view) == 3 and _count(view[1]) and _count(view[2])):
        raise source.refuse(
            member,
            expected="view metadata (key, offset, numel)",
            found=describe(view),
            remedy=REMEDIES["damaged"],
        )
    if view[1] + view[2] > identity[4]:
        raise source.refuse(
            member,
            expected=f"a view inside {identity[4]} elements",
            found=f"offset {view[1]}, numel {view[2]}",
            remedy=REMEDIES["damaged"],
        )
    return StorageRef(str(identity[2]), name, view[2], view[1])


class Tensors:
    """Turns TensorRefs into arrays; tensors of one storage share memory, as they did in PyTorch.

    Parameters
    ----------
    source : Source
        For errors and for the limit on what may be declared.
    fetch : callable
        Returns the bytes of a storage, checked to be exactly what its StorageRef says.
    big_endian : bool
        Byte order of the stored elements.
    """

    def __init__(
        self,
        source: Source,
        fetch: Callable[[StorageRef], memoryview],
        big_endian: bool = False,
    ) -> None:
        self._source = source
        self._fetch = fetch
        self._order = ">" if big_endian else "<"
        self._flat: dict[tuple[str, int, int, str], Tensor] = {}
        self._left = LIMITS.bytes_for(len(source))

    def __call__(self, name: str, ref: TensorRef) -> Tensor:
        """Return the tensor `name`: a read-only view of its storage."""
        where = f"tensor {name!r}"
        if len(ref.size) > LIMITS.rank:
            raise self._source.refuse(
                where,
                expected=f"at most {LIMITS.rank} dimensions",
                found=str(len(ref.size)),
                remedy=REMEDIES["bomb"],
            )
        width = itemsize(ref.dtype)
        self._left -= math.prod(ref.size) * width
        if self._left < 0:
            raise self._source.refuse(
                where,
                expected=f"at most {LIMITS.bytes_for(len(self._source))} bytes in all tensors",
                found=f"shape {ref.size} on a storage of {ref.storage.numel} elements",
                remedy=REMEDIES["bomb"],
            )
        held = ref.storage.numel * itemsize(ref.storage.dtype) // width
        span = 1 + sum((n - 1) * step for n, step in zip(ref.size, ref.stride, strict=True)) if all(ref.size) else 0
        if ref.offset + span > held:
            raise self._source.refuse(
                where,
                expected=f"elements inside its storage of {held}",
                found=f"offset {ref.offset}, shape {ref.size}, stride {ref.stride}",
                remedy=REMEDIES["damaged"],
            )
        if not all(ref.size):
            return np.zeros(ref.size, self._dtype(ref.dtype).newbyteorder("="))
        flat = self._elements(where, ref)
        strides = [step * flat.itemsize for step in ref.stride]
        view: Tensor = np.lib.stride_tricks.as_strided(flat[ref.offset :], ref.size, strides, writeable=False)
        view = view.conj() if ref.conj else view
        return -view if ref.neg else view

    def _dtype(self, name: str) -> np.dtype[Any]:
        return np.dtype("<f4" if name in NARROW_FLOATS else self._order + DTYPES[name])

    def _elements(self, where: str, ref: TensorRef) -> Tensor:
        """Return all elements of a storage as one flat native array, made once."""
        storage = ref.storage
        key = (storage.key, storage.start, storage.numel, ref.dtype)
        if key not in self._flat:
            data = self._fetch(storage)
            with self._source.parsing(where, "tensor elements"):
                width = itemsize(ref.dtype)
                whole = data[: len(data) // width * width]
                if ref.dtype in NARROW_FLOATS:
                    self._flat[key] = widen(whole, ref.dtype, self._order)
                else:
                    stored: Tensor = np.frombuffer(whole, self._dtype(ref.dtype))
                    # a copy: torch.save writes over a file in place, and a view of it would then kill the process
                    self._flat[key] = stored.astype(stored.dtype.newbyteorder("="))
        return self._flat[key]
