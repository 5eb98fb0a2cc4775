"""HDF5 made worse: the fields of superblocks, object headers, messages, heaps and B-trees of the files Keras writes.

(HDF5 file format specification 3.0: II superblock, III.A.1 B-trees, III.B symbol tables, III.D local heaps, III.E
global heaps, IV.A object headers.)
"""

from __future__ import annotations

import functools
import struct
from random import Random

from fuzz_mutations import _all, plain, put

Field = tuple[int, int]

_MESSAGE_TYPES = (0, 1, 2, 3, 5, 6, 7, 8, 10, 11, 12, 13, 16, 17, 18, 21, 22)


def hdf5(rng: Random, whole: bytes) -> bytes:
    """Change a few fields; swap them, point them at each other, or damage plain bytes."""
    fields, addresses, messages = _anatomy(whole)
    if not fields or rng.random() < 0.15:
        return plain(rng, whole)
    data = bytearray(whole)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        kind = rng.randrange(8)
        at, size = rng.choice(fields)
        if kind < 3:
            put(rng, data, at, size)
        elif kind == 3:  # an address that is another object's: circles, wrong kinds
            wide = [field for field in fields if field[1] == 8]
            at, _ = rng.choice(wide or fields)
            data[at : at + 8] = struct.pack("<Q", rng.choice(addresses))
        elif kind == 4:
            other, width = rng.choice(fields)
            if width == size:
                data[at : at + size], data[other : other + size] = data[other : other + size], data[at : at + size]
        elif kind == 5 and messages:
            at, size = rng.choice(messages)
            struct.pack_into("<H", data, at, rng.choice(_MESSAGE_TYPES))
        elif messages:  # in the body of a message: dataspace, datatype, layout, attribute
            at, size = rng.choice(messages)
            if size:
                put(rng, data, at + 8 + rng.randrange(size), rng.choice((1, 1, 2, 4, 8)))
    return bytes(data)


@functools.lru_cache(maxsize=512)
def _anatomy(data: bytes) -> tuple[tuple[Field, ...], tuple[int, ...], tuple[Field, ...]]:
    """Return (fields, addresses of structures, messages as (offset, size of the body)) of an HDF5 file."""
    if data[:4] != b"\x89HDF" or len(data) < 96:
        return (), (), ()
    fields: list[Field] = [(at, 1) for at in range(8, 16)]
    addresses = [0]
    headers: list[int] = []
    if data[8] == 0:
        fields += [(16, 2), (18, 2), (20, 4)] + [(at, 8) for at in (24, 32, 40, 48)]
        headers += _entry(data, 56, fields)
    else:
        fields += [(at, 8) for at in (12, 20, 28, 36)]
    for at in _all(data, b"TREE"):
        addresses.append(at)
        fields += [(at + 4, 1), (at + 5, 1), (at + 6, 2), (at + 8, 8), (at + 16, 8)]
        used = struct.unpack_from("<H", data, at + 6)[0] if at + 8 <= len(data) else 0
        fields += [(at + 24 + 8 * i, 8) for i in range(min(2 * used + 1, 20))]
    for at in _all(data, b"HEAP"):
        addresses.append(at)
        fields += [(at + 4, 1), (at + 8, 8), (at + 16, 8), (at + 24, 8)]
    for at in _all(data, b"SNOD"):
        addresses.append(at)
        fields += [(at + 4, 1), (at + 6, 2)]
        symbols = struct.unpack_from("<H", data, at + 6)[0] if at + 8 <= len(data) else 0
        for i in range(min(symbols, 16)):
            headers += _entry(data, at + 8 + 40 * i, fields)
    for at in _all(data, b"GCOL"):
        addresses.append(at)
        fields += [(at + 4, 1), (at + 8, 8)]
        fields += [field for i in range(4) for field in ((at + 16 + 32 * i, 2), (at + 24 + 32 * i, 8))]
    messages: list[Field] = []
    for at in headers:
        addresses.append(at)
        fields += [(at, 1), (at + 2, 2), (at + 4, 4), (at + 8, 4)]
        messages += _messages(data, at)
    fields += [field for at, _ in messages for field in ((at, 2), (at + 2, 2), (at + 4, 1))]
    inside = tuple((at, size) for at, size in fields if at + size <= len(data))
    return inside, tuple(addresses), tuple(messages)


def _entry(data: bytes, at: int, fields: list[Field]) -> list[int]:
    """Add the fields of a symbol table entry; return the address of its object header."""
    if at + 40 > len(data):
        return []
    fields += [(at, 8), (at + 8, 8), (at + 16, 4), (at + 24, 8), (at + 32, 8)]
    address: int = struct.unpack_from("<Q", data, at + 8)[0]
    return [address] if address + 16 <= len(data) and data[address] == 1 else []


def _messages(data: bytes, header: int) -> list[Field]:
    """Return the messages of a version 1 object header and of its continuations."""
    found: list[Field] = []
    count, _, size = struct.unpack_from("<HII", data, header + 2)
    blocks = [(header + 16, size)]
    while blocks and len(found) < min(count, 64):
        at, left = blocks.pop(0)
        while left >= 8 and at + 8 <= len(data) and len(found) < 64:
            kind, length = struct.unpack_from("<HH", data, at)
            body = min(length, len(data) - at - 8)
            found.append((at, body))
            if kind == 16 and body >= 16 and len(blocks) < 8:
                blocks.append(struct.unpack_from("<QQ", data, at + 8))
            at += 8 + length
            left -= 8 + length
    return found
