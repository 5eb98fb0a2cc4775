"""TorchScript archives (torch.jit.save): the tensors of the module, and none of its code.

The container is torch.save's. data.pkl holds the module as objects of classes that live in `code/`, which is not
opened: a class is a name here, and its attributes are data. (PyTorch: torch/csrc/jit/serialization/pickler.cpp,
`pushIValue` for objects.)
"""

from __future__ import annotations

from typing import Any

from .archive import Archive
from .model_file import ModelFile, Tensor
from .pickle_tensors import Stub
from .pytorch import open_pickle
from .torch_tensors import TensorRef, Tensors
from .untrusted import LIMITS, REMEDIES, Source

__all__ = ["read_torchscript"]


def read_torchscript(source: Source, archive: Archive) -> ModelFile:
    """Read a file of torch.jit.save: names and tensors as `torch.jit.load(path).state_dict()` gives them.

    Attributes that are plain tensors, neither parameter nor buffer, come with them: which is which stands in the code.

    Raises
    ------
    FormatError
        If it holds no module, or a module without tensors (a frozen one), or storages and tensors do not fit.
    """
    member, value, tensor = open_pickle(source, archive)
    if not isinstance(value, Stub) or not isinstance(value.state, dict):
        found = str(value.function) if isinstance(value, Stub) else type(value).__name__
        raise source.refuse(member, expected="a TorchScript module", found=found, remedy=REMEDIES["export_torch"])
    tensors: dict[str, Tensor] = {}
    left_out: list[str] = []
    _walk(source, member, value, tensor, tensors, left_out)
    if not tensors:
        packed = f", with {', '.join(left_out[:4])}" if left_out else ""
        raise source.refuse(
            member,
            expected="a TorchScript module with weights",
            found=f"a module without tensors{packed}",
            remedy=REMEDIES["export_torch" if left_out else "frozen"],
        )
    notes = ["TorchScript: the code in the file is not read"]
    if left_out:
        shown = ", ".join(left_out[:3]) + (", …" if len(left_out) > 3 else "")
        notes.append(f"{len(left_out)} × quantised or custom weights ignored: {shown}")
    return ModelFile("torchscript", "", None, tensors, tuple(notes), source.name)


def _is_module(value: Any) -> bool:
    """Whether an object is a module: those have the attribute `training` (unless frozen), other classes hardly."""
    return isinstance(value, Stub) and isinstance(value.state, dict) and "training" in value.state


def _walk(
    source: Source, member: str, root: Stub, make: Tensors, tensors: dict[str, Tensor], left_out: list[str]
) -> None:
    """Collect the tensors of a module and of those inside it, in the order of the file.

    Lists of tensors (`_flat_weights` of a GRU) repeat what stands by name.
    """
    waiting: list[tuple[str, Stub, int]] = [("", root, 0)]
    seen = 0
    while waiting:
        prefix, module, depth = waiting.pop()
        inner: list[tuple[str, Stub, int]] = []
        for key, value in module.state.items():
            seen += 1
            name = f"{prefix}{str(key)[: LIMITS.name]}"
            if depth > LIMITS.nesting or seen > LIMITS.tensors or len(name) > LIMITS.name:
                raise source.refuse(
                    member,
                    expected=f"at most {LIMITS.nesting} levels, {LIMITS.tensors} attributes, names of {LIMITS.name}",
                    found="more",
                    remedy=REMEDIES["bomb"],
                )
            if isinstance(value, TensorRef):
                if name in tensors:
                    raise source.refuse(member, expected="each tensor under its own name", found=f"two named {name!r}")
                tensors[name] = make(name, value)
            elif _is_module(value):
                inner.append((f"{name}.", value, depth + 1))
            elif isinstance(value, Stub) and value.function.module.startswith("__torch__.torch.classes"):
                left_out.append(f"{name} ({value.function})")
        waiting += reversed(inner)
