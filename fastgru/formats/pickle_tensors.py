"""A pickle, read as data: nothing is imported, called or looked up by name.

pickletools.genops splits the bytes into opcodes; the machine here runs them on dicts, lists and three inert
records (`Global`, `Stub`, `Persistent`). "Import os.system and call it" becomes a Stub that remembers the name and
the arguments, and can do nothing. What a Stub means is for the caller (`pytorch.py`) to decide from a fixed table.
"""

from __future__ import annotations

import codecs
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .untrusted import LIMITS, REMEDIES, Source

__all__ = ["Global", "Stub", "describe", "load"]

# pickletools decodes the opcode UNICODE with it: loaded here, so that no file makes Python import anything
codecs.lookup("raw-unicode-escape")

# A tripwire, not the fence (nothing is ever called): an honest checkpoint never names these.
_ATTACKS = frozenset(
    """os posix nt subprocess sys pty socket shutil ctypes importlib runpy code commands webbrowser pickle _pickle
    marshal timeit pdb""".split()
)
_ATTACK_BUILTINS = frozenset(
    "eval exec compile __import__ open input breakpoint execfile apply globals locals vars exit quit".split()
)


@dataclass(frozen=True)
class Global:
    """A name that the pickle asks for. Only a name."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Stub:
    """What calling `function` would have made. Equal only to itself, as an object of unknown kind must be."""

    function: Global
    arguments: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)
    values: list[Any] = field(default_factory=list)

    def __repr__(self) -> str:  # the fields may be nested without end
        return f"Stub({self.function})"


class _Mark:
    pass


_MARK = _Mark()

Reduce = Callable[[Global, tuple[Any, ...]], Any]
Persist = Callable[[tuple[Any, ...]], Any]


def load(source: Source, member: str, file: Any, *, reduce: Reduce, persistent: Persist) -> Any:
    """Run one pickle from `file` (read, readline, tell) and return its value, leaving `file` after the STOP.

    Parameters
    ----------
    source, member : Source, str
        For errors.
    reduce : callable
        Called with (Global, arguments) for each REDUCE or NEWOBJ; returns the value, or NotImplemented for an
        inert Stub.
    persistent : callable
        Called with the tuple of a persistent id; returns the value that stands for it.

    Raises
    ------
    FormatError
        If the pickle is broken, asks for code that only an attack asks for, or does what no checkpoint does.
    """
    machine = _Machine(source, member, reduce, persistent)
    with source.parsing(member, "a pickle"):
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if count > LIMITS.pickle_opcodes:
                raise source.refuse(
                    member,
                    expected=f"at most {LIMITS.pickle_opcodes} opcodes",
                    found="more",
                    remedy=REMEDIES["bomb"],
                )
            machine.step(opcode.name, argument)
    return machine.result()


class _Machine:
    """The pickle machine: a stack with marks, and a memo."""

    def __init__(self, source: Source, member: str, reduce: Reduce, persistent: Persist) -> None:
        self._source = source
        self._member = member
        self._reduce = reduce
        self._persistent = persistent
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def result(self) -> Any:
        if len(self._stack) != 1:
            raise self._refuse("one value on the stack at STOP", str(len(self._stack)))
        return self._stack[0]

    def _refuse(self, expected: str, found: str, remedy: str = "damaged") -> Exception:
        return self._source.refuse(self._member, expected=expected, found=found, remedy=REMEDIES[remedy])

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise self._refuse("a value", "a mark")
        return value

    def _pop_mark(self) -> list[Any]:
        at = len(self._stack) - 1
        while at >= 0 and self._stack[at] is not _MARK:
            at -= 1
        if at < 0:
            raise self._refuse("a mark", "none")
        values = self._stack[at + 1 :]
        del self._stack[at:]
        return values

    def _top(self) -> Any:
        value = self._stack[-1]
        if value is _MARK:
            raise self._refuse("a value", "a mark")
        return value

    def step(self, name: str, argument: Any) -> None:
        """Run one opcode; `argument` is what genops decoded."""
        if name in _PUSH_ARGUMENT:
            self._stack.append(argument)
        elif name in _PUSH_CONSTANT:
            self._stack.append(_PUSH_CONSTANT[name]())
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[int(argument)] = self._top()
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._top()
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self._stack.append(self._memo[int(argument)])
        elif name in ("PROTO", "FRAME", "STOP"):
            pass
        else:
            method = getattr(self, f"_op_{name.lower()}", None)
            if method is None:
                raise self._refuse("opcodes of a checkpoint", name)
            method(argument)

    # -- stack

    def _op_mark(self, _: Any) -> None:
        self._stack.append(_MARK)

    def _op_pop(self, _: Any) -> None:
        self._stack.pop()

    def _op_pop_mark(self, _: Any) -> None:
        self._pop_mark()

    def _op_dup(self, _: Any) -> None:
        self._stack.append(self._top())

    # -- containers

    def _op_tuple(self, _: Any) -> None:
        values = tuple(self._pop_mark())
        self._stack.append(values)

    def _op_tuple1(self, _: Any) -> None:
        self._stack.append((self._pop(),))

    def _op_tuple2(self, _: Any) -> None:
        second, first = self._pop(), self._pop()
        self._stack.append((first, second))

    def _op_tuple3(self, _: Any) -> None:
        third, second, first = self._pop(), self._pop(), self._pop()
        self._stack.append((first, second, third))

    def _op_list(self, _: Any) -> None:
        values = self._pop_mark()
        self._stack.append(values)

    def _op_dict(self, _: Any) -> None:
        values = self._pop_mark()
        made: dict[Any, Any] = {}
        self._set_items(made, values)
        self._stack.append(made)

    def _op_frozenset(self, _: Any) -> None:
        values = self._pop_mark()
        self._stack.append(Stub(Global("builtins", "frozenset"), (values,)))

    def _op_append(self, _: Any) -> None:
        value = self._pop()
        self._extend([value])

    def _op_appends(self, _: Any) -> None:
        self._extend(self._pop_mark())

    def _extend(self, values: list[Any]) -> None:
        target = self._top()
        if isinstance(target, Stub):
            target.values.extend(values)
        elif type(target) is list:
            target.extend(values)
        else:
            raise self._refuse("a list to append to", type(target).__name__)

    def _op_additems(self, _: Any) -> None:
        values = self._pop_mark()
        target = self._top()
        if not isinstance(target, Stub):  # EMPTY_SET makes a Stub
            raise self._refuse("a set to add to", type(target).__name__)
        target.values.extend(values)

    def _op_setitem(self, _: Any) -> None:
        value, key = self._pop(), self._pop()
        self._set_items(self._top(), [key, value])

    def _op_setitems(self, _: Any) -> None:
        values = self._pop_mark()
        self._set_items(self._top(), values)

    def _set_items(self, target: Any, values: list[Any]) -> None:
        if isinstance(target, Stub):  # an instance of an unknown dict class
            target = target.items
        if type(target) is not dict:  # CVE-2026-24747: SETITEM on a tensor
            raise self._refuse("a dict to set items of", type(target).__name__)
        if len(values) % 2:
            raise self._refuse("keys and values in pairs", f"{len(values)} values")
        for key, value in zip(values[::2], values[1::2], strict=True):
            target[_key(key)] = value

    # -- names and objects

    def _global(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise self._refuse("a global named by strings", "something else")
        builtin = module in ("builtins", "__builtin__")
        if module in _ATTACKS or (builtin and name in _ATTACK_BUILTINS):
            raise self._refuse("data", f"the global {module}.{name}", "attack")
        self._stack.append(Global(module, name))

    def _op_global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._global(module, name)

    def _op_stack_global(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        self._global(module, name)

    def _call(self, function: Any, arguments: Any) -> None:
        if not isinstance(arguments, tuple):
            raise self._refuse("arguments as a tuple", type(arguments).__name__)
        if isinstance(function, Stub):  # a method of an unknown object
            function = Global(function.function.module, f"{function.function.name}()")
        if not isinstance(function, Global):
            raise self._refuse("a global to call", describe(function))
        value = self._reduce(function, arguments)
        if value is NotImplemented:
            value = Stub(function, arguments)
        self._stack.append(value)

    def _op_reduce(self, _: Any) -> None:
        arguments, function = self._pop(), self._pop()
        self._call(function, arguments)

    _op_newobj = _op_reduce

    def _op_newobj_ex(self, _: Any) -> None:
        _keywords, arguments, function = self._pop(), self._pop(), self._pop()
        self._call(function, arguments)

    def _op_inst(self, argument: str) -> None:
        arguments = tuple(self._pop_mark())
        self._op_global(argument)
        self._call(self._pop(), arguments)

    def _op_obj(self, _: Any) -> None:
        values = self._pop_mark()
        self._call(values[0], tuple(values[1:]))

    def _op_build(self, _: Any) -> None:
        state = self._pop()
        target = self._top()
        if isinstance(target, Stub):
            target.state = state
        # other targets are plain data: an OrderedDict's attributes (_metadata) say nothing about tensors

    def _op_binpersid(self, _: Any) -> None:
        identity = self._pop()
        if not isinstance(identity, tuple):
            raise self._refuse("a persistent id as a tuple", type(identity).__name__)
        self._stack.append(self._persistent(identity))


def describe(value: Any) -> str:
    """Return a short text of an unpickled value. Its own repr may be exponentially long."""
    if isinstance(value, (str, bytes)):
        return repr(value[:60])
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    if isinstance(value, (tuple, list)):
        items = (describe(item) if not isinstance(item, (tuple, list, dict)) else "…" for item in value[:8])
        return f"({', '.join(items)}{', …' if len(value) > 8 else ''})"
    if isinstance(value, Global):
        return str(value)[:120]
    return type(value).__name__


def _key(key: Any) -> Any:
    """Return a dict key that hashes in constant time: nested tuples can take 2^100 steps."""
    if key is None or isinstance(key, (str, int, float, bool, bytes, Global, Stub)):
        return key
    if isinstance(key, tuple) and all(isinstance(part, (str, int, float, bool)) for part in key):
        return key
    return Stub(Global("builtins", type(key).__name__), (key,))


def _empty_set() -> Stub:
    return Stub(Global("builtins", "set"))


_PUSH_CONSTANT: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": _empty_set,
}
_PUSH_ARGUMENT = frozenset(
    """INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE
    BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8""".split()
)
