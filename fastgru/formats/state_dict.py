"""From whatever a checkpoint holds to {dotted name: tensor}."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .model_file import Tensor
from .pickle_tensors import Global, Stub
from .torch_tensors import TensorRef
from .untrusted import LIMITS, REMEDIES, Source

__all__ = ["flatten"]


def flatten(
    source: Source, member: str, value: Any, tensor: Callable[[str, Any], Tensor]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return (tensors, notes) of an unpickled checkpoint.

    Keys of nested dicts are joined by '.', items of lists and tuples are '0', '1', …, a bare tensor is under ''.
    A pickled nn.Module gives what its state_dict() would.

    Parameters
    ----------
    value : object
        Dicts, lists, tuples, Stubs and references to tensors.
    tensor : callable
        Makes the array of (name, reference).

    Raises
    ------
    FormatError
        If there is no tensor, two have one name, or a module holds what only its own code could make.
    """
    walk = _Walk(source, member, tensor)
    walk.visit("", value, 0)
    if not walk.tensors:
        stub = value.function if isinstance(value, Stub) else type(value).__name__
        raise source.refuse(
            member,
            expected="tensors",
            found=f"none in an object of {stub}",
            remedy=REMEDIES["export_torch"],
        )
    return walk.tensors, walk.notes()


class _Walk:
    def __init__(self, source: Source, member: str, tensor: Callable[[str, Any], Tensor]) -> None:
        self._source = source
        self._member = member
        self._make = tensor
        self._nodes = 0
        self._path: set[int] = set()
        self._ignored: dict[str, list[str]] = {}
        self.tensors: dict[str, Tensor] = {}

    def visit(self, name: str, value: Any, depth: int) -> None:
        self._nodes += 1
        if depth > LIMITS.nesting or self._nodes > LIMITS.pickle_nodes or len(name) > LIMITS.name:
            raise self._source.refuse(
                self._member,
                expected=f"at most {LIMITS.nesting} levels, {LIMITS.pickle_nodes} values, names of {LIMITS.name}",
                found="more",
                remedy=REMEDIES["bomb"],
            )
        if isinstance(value, TensorRef):
            self._keep(name, value)
        elif isinstance(value, (dict, list, tuple, Stub)):
            if id(value) in self._path:  # an object that holds itself
                return
            self._path.add(id(value))
            if isinstance(value, Stub):
                self._stub(name, value, depth)
            else:
                self._items(name, value, depth)
            self._path.discard(id(value))
        elif value is not None:
            self._ignore(name, type(value).__name__)

    def _items(self, name: str, value: Any, depth: int) -> None:
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in pairs:
            self.visit(_join(name, key), item, depth + 1)

    def _stub(self, name: str, stub: Stub, depth: int) -> None:
        state = stub.state
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[0], dict):
            state = state[0]  # (dict, slots)
        if isinstance(state, dict) and ("_parameters" in state or "_modules" in state):
            self._module(name, stub, state, depth)
        elif isinstance(state, dict) or stub.items or stub.values:
            for part in (state, stub.items, stub.values):
                if isinstance(part, (dict, list)):
                    self._items(name, part, depth)
        else:
            self._ignore(name, str(stub.function))

    def _module(self, name: str, stub: Stub, state: dict[Any, Any], depth: int) -> None:
        """Walk a pickled nn.Module as its state_dict() would."""
        transient = state.get("_non_persistent_buffers_set")
        skip = transient.values if isinstance(transient, Stub) else []
        for part in ("_parameters", "_buffers", "_modules"):
            entries = state.get(part) or {}
            if not isinstance(entries, dict):
                raise self._not_inert(name, stub, part)
            for key, item in entries.items():
                if item is None or (part == "_buffers" and key in skip):
                    continue
                is_module = isinstance(item, Stub) and isinstance(item.state, (dict, tuple))
                if not (is_module if part == "_modules" else isinstance(item, TensorRef)):
                    raise self._not_inert(_join(name, key), stub, part)
                self.visit(_join(name, key), item, depth + 1)

    def _not_inert(self, name: str, stub: Stub, part: str) -> Exception:
        return self._source.refuse(
            self._member,
            expected=f"{part} of {stub.function} as plain tensors and modules",
            found=f"{name!r}, which only the model's own code can rebuild",
            remedy=REMEDIES["export_torch"],
        )

    def _keep(self, name: str, value: Any) -> None:
        if name in self.tensors:
            raise self._source.refuse(
                self._member,
                expected="each tensor under its own name",
                found=f"two named {name!r}",
                remedy=REMEDIES["export_torch"],
            )
        if len(self.tensors) >= LIMITS.tensors:
            raise self._source.refuse(
                self._member,
                expected=f"at most {LIMITS.tensors} tensors",
                found="more",
                remedy=REMEDIES["bomb"],
            )
        self.tensors[name] = self._make(name, value)

    def _ignore(self, name: str, kind: str) -> None:
        self._ignored.setdefault(kind, []).append(name)

    def notes(self) -> tuple[str, ...]:
        """Return one line per kind of value that is not a tensor."""
        lines = []
        for kind, names in self._ignored.items():
            shown = ", ".join(repr(name) for name in names[:3]) + (", …" if len(names) > 3 else "")
            lines.append(f"{len(names)} × {kind} ignored, not a tensor: {shown}")
        return tuple(lines)


def _join(name: str, key: Any) -> str:
    if isinstance(key, int) and not isinstance(key, bool) and abs(key) > 1 << 64:
        key = "int"  # its decimal digits would take quadratic time
    elif isinstance(key, (Global, Stub)):
        key = str(key)
    return f"{name}.{key}" if name else str(key)
