"""Bytes made worse: at random, and with knowledge of zip, JSON, safetensors and protobuf.

Each function takes a random generator and the bytes, and returns other bytes. What does not parse as the format it
expects (the corpus grows from mutated files) is changed as plain bytes.
"""

from __future__ import annotations

import copy
import io
import json
import struct
import warnings
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

Mutation = Callable[[Random, bytes], bytes]

EDGES = (0, 1, 2, 3, 4, 8, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 1 << 16, 1 << 20, 1 << 27, (1 << 31) - 1)
EDGES += (1 << 31, (1 << 32) - 1, 1 << 32, 1 << 40, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


def number(rng: Random, old: int, length: int) -> int:
    """Another number: an edge, a neighbour of the old one, its multiple, or one near the file's length."""
    kind = rng.randrange(6)
    if kind <= 1:
        return rng.choice(EDGES)
    if kind == 2:
        return max(0, old + rng.choice((-8, -2, -1, 1, 2, 8)))
    if kind == 3:
        return old * rng.choice((2, 3, 8, 256)) if rng.random() < 0.5 else old // 2
    if kind == 4:
        return max(0, length + rng.choice((-8, -1, 0, 1, 8)))
    return old ^ (1 << rng.randrange(max(8, old.bit_length() + 1)))


def put(rng: Random, data: bytearray, at: int, size: int) -> None:
    """Change the little-endian number of `size` bytes at `at`."""
    if at + size <= len(data):
        old = int.from_bytes(data[at : at + size], "little")
        data[at : at + size] = (number(rng, old, len(data)) & ((1 << 8 * size) - 1)).to_bytes(size, "little")


def plain(rng: Random, whole: bytes) -> bytes:
    """Bits flipped, numbers changed, spans copied, cut, repeated or filled, ends lost."""
    data = bytearray(whole)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        if not data:
            return rng.randbytes(rng.randrange(16))
        # headers are where the lies pay: half of all damage goes to the first and last KiB
        at = rng.randrange(len(data))
        if rng.random() < 0.5 and len(data) > 2048:
            at = rng.randrange(1024) if rng.random() < 0.5 else len(data) - 1 - rng.randrange(1024)
        kind = rng.randrange(9)
        size = rng.randrange(1, 64)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            put(rng, data, at, rng.choice((1, 2, 4, 8)))
        elif kind == 3:
            start = rng.randrange(len(data))
            data[at : at + size] = data[start : start + size]
        elif kind == 4:
            del data[at : at + size]
        elif kind == 5:
            data[at:at] = data[at : at + size]
        elif kind == 6:
            data[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif kind == 7:
            data[at : at + size] = bytes((rng.choice((0, 0xFF)),)) * size
        elif rng.random() < 0.2:
            del data[at:]
    return bytes(data)


# ------------------------------------------------------------------------------------------------------ JSON

WORDS = """Lambda TFSMLayer Sequential Functional Model GRU GRUCell CuDNNGRU RNN StackedRNNCells Bidirectional
TimeDistributed Dense Embedding BatchNormalization LayerNormalization PReLU Masking InputLayer Add Concatenate Permute
Reshape RepeatVector Activation Softmax LSTM OnnxGraph __lambda__ __tuple__ __numpy__ __tensor__ __keras_tensor__
__import__ os.system builtins exec linear hard_sigmoid tanh float16 bfloat16 float64 int64 mixed_float16 class_name
config module registered_name name units layers input_layers output_layers inbound_nodes dtype trainable reset_after
use_bias go_backwards return_sequences return_state stateful batch_input_shape batch_shape axis data_format epsilon
mask_zero input_dim output_dim cell cells layer backward_layer merge_mode compile_config build_config history epoch
batch stopped learning_rate metrics callbacks loss iterations""".split()


def _value(rng: Random) -> Any:
    kind = rng.randrange(12)
    if kind < 5:
        return rng.choice((None, True, False, 0, 1, -1, 2, 3, 1e308, -0.5, float("nan"), float("inf"), "", "x"))
    if kind == 5:
        return rng.choice((1, -1)) * rng.choice(EDGES) * rng.choice((1, 1, 1, 10**400))
    if kind == 6:
        return rng.choice(([], {}, [[]], {"": {}}, [None, None], [1, 2, 3], ["a", 0, 0]))
    if kind == 7:
        return rng.choice(("x" * 5000, "é\u0000\ud800", "../../etc/passwd", "a/b", "0", "{}", "nan"))
    if kind == 8:
        nested: Any = 0
        for _ in range(rng.choice((3, 70, 200))):
            nested = [nested] if rng.random() < 0.5 else {"config": nested, "class_name": rng.choice(WORDS)}
        return nested
    if kind == 9:
        inner = {"name": rng.choice(("x", "gru", "", 7)), "units": rng.choice((1, 3, -1, None))}
        return {"class_name": rng.choice(WORDS), "config": inner}
    return rng.choice(WORDS)


def _places(node: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Return every (container, key) below `node`."""
    stack = [node]
    while stack:
        node = stack.pop()
        keys: Any = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        found += [(node, key) for key in keys]
        stack += [node[key] for key in keys]
    return found


def edit_tree(rng: Random, tree: Any) -> Any:
    """Change a JSON value in place at some places: replace, remove, repeat, rename, move, count."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        places = _places(tree, [])
        if not places:
            return _value(rng)
        node, key = rng.choice(places)
        kind = rng.randrange(9)
        if kind <= 1:
            node[key] = _value(rng)
        elif kind == 2:
            del node[key]
        elif kind == 3 and isinstance(node, list):
            node.insert(rng.randrange(len(node) + 1), copy.deepcopy(node[key]))
        elif kind == 4 and isinstance(node, dict):
            node[rng.choice(WORDS)] = node.pop(key)
        elif kind == 5:
            other, place = rng.choice(places)
            node[key] = copy.deepcopy(other[place])
        elif kind == 6 and isinstance(node[key], (list, dict)):
            node[key] = [node[key]] if rng.random() < 0.5 else rng.choice(([], {}))
        elif isinstance(node[key], bool):
            node[key] = not node[key]
        elif isinstance(node[key], int):
            node[key] = node[key] + rng.choice((-1, 1)) if rng.random() < 0.5 else number(rng, abs(node[key]), 64)
        elif isinstance(node[key], str):
            node[key] = rng.choice((*WORDS, node[key] + "x", node[key][1:], node[key] + "/" + node[key]))
    return tree


def edit_json(rng: Random, text: bytes) -> bytes:
    try:
        tree = json.loads(text)
        return json.dumps(edit_tree(rng, tree)).encode()
    except (ValueError, RecursionError):
        return plain(rng, text)


# ------------------------------------------------------------------------------------------------------- zip

# header: {offset of a field: its width}
_LOCAL = {4: 2, 6: 2, 8: 2, 14: 4, 18: 4, 22: 4, 26: 2, 28: 2}
_CENTRAL = {4: 2, 6: 2, 8: 2, 10: 2, 16: 4, 20: 4, 24: 4, 28: 2, 30: 2, 32: 2, 34: 2, 36: 2, 38: 4, 42: 4}
_END = {4: 2, 6: 2, 8: 2, 10: 2, 12: 4, 16: 4, 20: 2}
_END64 = {4: 8, 12: 2, 14: 2, 16: 4, 20: 4, 24: 8, 32: 8, 40: 8, 48: 8}
_HEADERS = {b"PK\x03\x04": _LOCAL, b"PK\x01\x02": _CENTRAL, b"PK\x05\x06": _END, b"PK\x06\x06": _END64}


def _all(data: bytes, mark: bytes) -> list[int]:
    found, at = [], data.find(mark)
    while at >= 0 and len(found) < 200:
        found.append(at)
        at = data.find(mark, at + 1)
    return found


def zip_fields(rng: Random, whole: bytes) -> bytes:
    """Change fields and names of the headers of a zip file; the members stay."""
    places = [(at, fields) for mark, fields in _HEADERS.items() for at in _all(whole, mark)]
    if not places:
        return plain(rng, whole)
    data = bytearray(whole)
    for _ in range(rng.choice((1, 1, 2, 3))):
        at, fields = rng.choice(places)
        if rng.random() < 0.15 and fields is not _END:  # in the name
            data[(at + (46 if fields is _CENTRAL else 30) + rng.randrange(12)) % len(data)] = rng.randrange(256)
        else:
            offset = rng.choice(list(fields))
            put(rng, data, at + offset, fields[offset])
    return bytes(data)


def members(data: bytes) -> dict[str, bytes] | None:
    """Return the members of a zip file by name, or None if it is none."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
            if sum(info.file_size for info in infos) > 1 << 22:
                return None
            return {info.filename: archive.read(info) for info in infos}
    except Exception:
        return None


def pack(contents: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    """Return a zip file with right CRCs; names may repeat."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", method) as archive:
        warnings.simplefilter("ignore")  # duplicate names
        for name, data in contents:
            archive.writestr(zipfile.ZipInfo(name or "empty"), data, method)
    return buffer.getvalue()


def zip_members(inside: Callable[[str, bytes], Mutation]) -> Mutation:
    """Return a mutation of archives by their members; `inside(name, data)` says how a member's bytes change."""

    def mutate(rng: Random, whole: bytes) -> bytes:
        found = members(whole)
        if not found:
            return zip_fields(rng, whole)
        contents = list(found.items())
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            if not contents:
                break
            # what describes is changed more often than what holds tensors
            weights = [8 if inside(name, data) is not plain else 1 for name, data in contents]
            i = rng.choices(range(len(contents)), weights)[0]
            name, data = contents[i]
            kind = rng.randrange(20)
            if kind == 0:
                del contents[i]
            elif kind == 1:
                contents[i] = (rng.choice(("../" + name, name + "x", "/" + name, name[1:], name.upper())), data)
            elif kind == 2:
                contents.insert(rng.randrange(len(contents)), (rng.choice(list(found)), data))
            elif kind == 3:
                contents[i] = (name, rng.choice(contents)[1])
            elif kind == 4:
                zeros = bytes(rng.choice(EDGES[:14]))
                contents[i] = (name, rng.choice((b"", data[: len(data) // 2], data + data, zeros)))
            elif kind == 5 and rng.random() < 0.1:  # a bomb
                contents[i] = (name, data + bytes(rng.choice((1 << 20, 1 << 23, 1 << 25))))
                return pack(contents, zipfile.ZIP_DEFLATED)
            else:
                contents[i] = (name, inside(name, data)(rng, data))
        return pack(contents, zipfile.ZIP_DEFLATED if rng.random() < 0.2 else zipfile.ZIP_STORED)

    return mutate


# ----------------------------------------------------------------------------------------------- safetensors


def safetensors(sign: Callable[[dict[str, Any], bytes], None], kinds: tuple[int, ...] = (2,)) -> Mutation:
    """Return a mutation of safetensors headers with right lengths; `sign` puts our own checksum in place.

    Those of `kinds`, out of 0 … 5, change the JSON inside of our own files.
    """

    def mutate(rng: Random, whole: bytes) -> bytes:
        try:
            length = struct.unpack_from("<Q", whole)[0]
            header = json.loads(whole[8 : 8 + length])
            data = whole[8 + length :]
            kind = rng.randrange(6)
            if kind == 0:  # one span's end is the next one's begin
                _move_border(rng, header)
            elif kind == 1:
                data = plain(rng, data)
            elif kind in kinds and (key := _facts(header.get("__metadata__", {}))):
                config = header["__metadata__"][key].encode()
                header["__metadata__"][key] = edit_json(rng, config).decode("utf-8", "replace")
            else:
                edit_tree(rng, header)
            if rng.random() < 0.7:
                sign(header, data)
            text = json.dumps(header).encode()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error):
            return plain(rng, whole)
        return struct.pack("<Q", len(text)) + text + data

    return mutate


def _facts(about: dict[str, Any]) -> str | None:
    """The entry of our own files that holds JSON."""
    return next((key for key in ("config", "checkpoint") if key in about), None)


def _move_border(rng: Random, header: dict[str, Any]) -> None:
    entries = [entry for name, entry in header.items() if name != "__metadata__"]
    entry = rng.choice(entries)
    shape, dtype = entry["shape"], entry["dtype"]
    choice = rng.randrange(3)
    if choice == 0:
        entry["dtype"] = rng.choice(("F64", "F32", "F16", "BF16", "F8_E4M3", "I64", "I8", "BOOL", "C64", "F4", dtype))
    elif choice == 1 and shape:
        shape[rng.randrange(len(shape))] = number(rng, shape[0], 64)
    else:
        entry["shape"] = rng.choice(([*shape, 1], [1, *shape], shape[::-1], [], [0], [1] * 40))


# -------------------------------------------------------------------------------------------------- protobuf


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("a varint of more than 64 bits")


def _encode(value: int) -> bytes:
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)


def _fields(data: bytes) -> list[tuple[int, int, Any]]:
    """Return (number, wire type, value) of each field of a protobuf message; bytes stay bytes."""
    fields: list[tuple[int, int, Any]] = []
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        value: Any
        if wire == 0:
            value, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
            value, at = data[at : at + size], at + size
        elif wire == 2:
            size, at = _varint(data, at)
            value, at = data[at : at + size], at + size
        else:
            raise ValueError("a group")
        if at > len(data) or not 0 < key >> 3 < 1 << 12:
            raise ValueError("a field beyond its message")
        fields.append((key >> 3, wire, value))
    return fields


def _message(fields: list[tuple[int, int, Any]]) -> bytes:
    made = bytearray()
    for key, wire, value in fields:
        made += _encode(key << 3 | wire)
        if wire == 0:
            made += _encode(value & ((1 << 64) - 1))
        elif wire == 2:
            made += _encode(len(value)) + value
        else:
            made += value
    return bytes(made)


def protobuf(rng: Random, whole: bytes, depth: int = 0) -> bytes:
    """Change fields of a protobuf message and of the messages in it, with right lengths."""
    try:
        fields = _fields(whole)
    except (ValueError, IndexError):
        return plain(rng, whole)
    if not fields:
        return rng.randbytes(rng.randrange(8))
    i = rng.randrange(len(fields))
    key, wire, value = fields[i]
    if wire == 2 and depth < 8 and rng.random() < (0.9 if depth < 2 else 0.6):
        fields[i] = (key, wire, protobuf(rng, value, depth + 1))
        return _message(fields)
    kind = rng.randrange(8)
    if kind == 0:
        del fields[i]
    elif kind == 1:
        fields.insert(rng.randrange(len(fields) + 1), fields[i])
    elif kind == 2:
        j = rng.randrange(len(fields))
        fields[i], fields[j] = fields[j], fields[i]
    elif kind == 3:
        fields[i] = (rng.choice((key + 1, key - 1 or 1, rng.randrange(1, 24))), wire, value)
    elif kind == 4:
        other = rng.choice(fields)
        fields[i] = (key, other[1], other[2])
    elif wire == 0:
        fields[i] = (key, wire, number(rng, value, len(whole)))
    elif wire == 2:
        text = rng.choice((b"", b"GRU", b"../../etc/passwd", b"/etc/passwd", b"x" * 5000, rng.randbytes(8)))
        fields[i] = (key, wire, plain(rng, value) if rng.random() < 0.6 else text)
    else:
        fields[i] = (key, wire, rng.choice((bytes(len(value)), b"\xff" * len(value), rng.randbytes(len(value)))))
    return _message(fields)


def replace_text(rng: Random, whole: bytes, mark: bytes, texts: list[bytes]) -> bytes:
    """Replace one text that ends in `mark`, wherever it lies in a protobuf message, by one of `texts`."""
    left = rng.randrange(max(1, whole.count(mark)))

    def walk(data: bytes, depth: int) -> bytes:
        nonlocal left
        try:
            fields = _fields(data)
        except (ValueError, IndexError):
            return data
        for i, (key, wire, value) in enumerate(fields):
            if wire != 2 or mark not in value:
                continue
            if value.endswith(mark) and len(value) < 200 and b"\n" not in value[:4]:
                left -= 1
                if left < 0:
                    fields[i] = (key, wire, rng.choice(texts))
                    left = len(whole)
            elif depth < 12:
                fields[i] = (key, wire, walk(value, depth + 1))
        return _message(fields)

    return walk(whole, 0)
