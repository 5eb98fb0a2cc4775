"""Pickles made worse, opcode by opcode: dropped, repeated, swapped, moved, with other arguments, or new ones."""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable
from random import Random

from fuzz_mutations import Mutation, number, plain

# what an attacker, or a bug, would put in
SNIPPETS = (
    b"cos\nsystem\n",
    b"cbuiltins\neval\n",
    b"c__builtin__\ngetattr\n",
    b"\x8c\x05posix\x8c\x06system\x93",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_tensor_v3\n",
    b"ctorch._utils\n_rebuild_parameter\n",
    b"ctorch._tensor\n_rebuild_from_type_v2\n",
    b"ccollections\nOrderedDict\n",
    b"ccollections\ndefaultdict\n",
    b"ctorch\nSize\n",
    b"ctorch\nFloatStorage\n",
    b"ctorch\nfloat32\n",
    b"ctorch.nn.parameter\nParameter\n",
    b"X\x07\x00\x00\x00storage",
    b"X\x03\x00\x00\x00cpu",
    b"}X\x04\x00\x00\x00conj\x88s",
    b"}X\x03\x00\x00\x00neg\x88s",
    b"}X\x0b\x00\x00\x00_parameters}s",
    b"}X\x08\x00\x00\x00_modules}s",
    b"G\x7f\xf0\x00\x00\x00\x00\x00\x00",
    b"\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"I01\n",
    b"L99999999999999999999L\n",
    b"S'x'\n",
    b"(K\x00K\x01t",
)
SINGLE = b"(.012NOQR]}()ab\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94\x97\x98desltu"


def split(data: bytes, pickles: int = 1) -> tuple[list[bytes], bytes]:
    """Return the opcodes of the first pickles as pieces of bytes, and what follows them."""
    starts: list[int] = []
    end = 0
    try:
        for _ in range(pickles):
            for opcode, _, at in pickletools.genops(data[end:]):
                starts.append(end + (at or 0))
                if len(starts) > 20_000:
                    raise ValueError
                stop = end + (at or 0) + 1 if opcode.name == "STOP" else None
            end = stop if stop is not None else end
    except Exception:  # genops raises many things; what is parsed so far is good enough
        pass
    if not starts:
        return [], data
    finish = max(end, starts[-1])
    ends = [*starts[1:], finish]
    return [data[a:b] for a, b in zip(starts, ends, strict=True)], data[finish:]


def _argument(rng: Random, op: bytes) -> bytes:
    """Change the argument of an opcode, keeping its length prefix right most of the time."""
    code, rest = op[:1], op[1:]
    if code in b"KMJhjqr" and rest:
        old = int.from_bytes(rest, "little")
        value = number(rng, old, 64)
        if code in b"KMJ" and rng.random() < 0.5:  # a larger integer than the opcode can hold
            return b"\x8a\x09" + (value & ((1 << 64) - 1)).to_bytes(9, "little")
        return code + (value & ((1 << 8 * len(rest)) - 1)).to_bytes(len(rest), "little")
    if code in b"XBT" and len(rest) >= 4:
        text = _text(rng, rest[4:])
        size = len(text) if rng.random() < 0.9 else number(rng, len(text), 64) & 0xFFFFFFFF
        return code + struct.pack("<I", size) + text
    if code in b"\x8cCU" and rest:
        text = _text(rng, rest[1:])[:255]
        return code + bytes((len(text),)) + text
    if code in b"ciISVFLgp" and rest:
        return code + _text(rng, rest[:-1]).replace(b"\n", b"\n" if rng.random() < 0.5 else b"") + b"\n"
    return code + plain(rng, rest) if rest else bytes((rng.choice(SINGLE),))


def _text(rng: Random, text: bytes) -> bytes:
    kind = rng.randrange(5)
    if kind == 0:
        return plain(rng, text)
    if kind == 1:
        return rng.choice((b"", b"0", b"1", b"storage", b"weight_hh_l0", b"x" * 300, b"x" * 5000, b"\xff\xfe", b"../x"))
    if kind == 2:
        return text + rng.choice((b"x", b".0", b"\n", b"\0"))
    return text[1:] if kind == 3 else text.swapcase()


def pickles(count: int = 1) -> Mutation:
    """Return a mutation of `count` pickles in a row and of what follows them."""

    def mutate(rng: Random, whole: bytes) -> bytes:
        ops, tail = split(whole, count)
        if not ops or rng.random() < 0.1:
            return plain(rng, whole)
        for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
            _edit(rng, ops)
            if not ops:
                break
        if tail and rng.random() < 0.1:
            tail = plain(rng, tail)
        return b"".join(ops) + tail

    return mutate


def _edit(rng: Random, ops: list[bytes]) -> None:
    i, j = rng.randrange(len(ops)), rng.randrange(len(ops))
    span = rng.choice((1, 1, 2, 4, 16, 64))
    kind = rng.randrange(9)
    if kind == 0:
        del ops[i : i + span]
    elif kind == 1:
        ops[i:i] = ops[i : i + span] * rng.choice((1, 1, 2, 50))
    elif kind == 2:
        ops[i], ops[j] = ops[j], ops[i]
    elif kind == 3:
        ops[j:j] = ops[i : i + span]
    elif kind == 4:
        ops.insert(i, bytes((rng.choice(SINGLE),)))
    elif kind == 5:
        ops.insert(i, rng.choice(SNIPPETS))
    else:
        ops[i] = _argument(rng, ops[i])


PICKLE: Callable[[Random, bytes], bytes] = pickles(1)
LEGACY: Callable[[Random, bytes], bytes] = pickles(5)
