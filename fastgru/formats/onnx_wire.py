"""A walk over the bytes of a protobuf message before it is parsed: a parser spends a hundred bytes and more on an empty
message of two, so messages are counted first. It also tells a cut file from a whole one.

(Encoding: protobuf.dev/programming-guides/encoding.)
"""

from __future__ import annotations

from typing import Any

from .untrusted import LIMITS

__all__ = ["check_messages"]


def check_messages(data: memoryview, message: Any) -> None:
    """Walk every field of a message and of those inside it.

    Parameters
    ----------
    data : memoryview of bytes
        The whole message.
    message : protobuf Descriptor
        Its type, which says what fields are messages themselves.

    Raises
    ------
    ValueError
        For a field that ends behind its message, messages nested deeper or more fields than `LIMITS` allows, text that
        is not UTF-8.
    """
    inner_of: dict[str, dict[int, Any]] = {}
    texts_of: dict[str, set[int]] = {}
    left = LIMITS.onnx_fields
    stack = [(0, len(data), message, 0)]
    while stack:
        at, end, kind, depth = stack.pop()
        if kind.full_name not in inner_of:
            inner_of[kind.full_name] = {f.number: f.message_type for f in kind.fields if f.message_type is not None}
            texts_of[kind.full_name] = {f.number for f in kind.fields if f.type == f.TYPE_STRING}
        inner, texts = inner_of[kind.full_name], texts_of[kind.full_name]
        while at < end:
            left -= 1
            if left < 0:
                raise ValueError(f"more than {LIMITS.onnx_fields} fields")
            tag = data[at]
            at += 1
            if tag > 127:
                tag, at = _varint(data, at - 1, end)
            wire = tag & 7
            if wire == 0:
                _, at = _varint(data, at, end)
            elif wire == 2:
                size = data[at] if at < end else 128
                at += 1
                if size > 127:
                    size, at = _varint(data, at - 1, end)
                if size <= end - at and tag >> 3 in inner:
                    if depth == LIMITS.nesting:
                        raise ValueError(f"messages nested deeper than {LIMITS.nesting}")
                    stack.append((at, at + size, inner[tag >> 3], depth + 1))
                elif size <= end - at and tag >> 3 in texts:
                    str(data[at : at + size], "utf-8")  # protobuf hands on other bytes as they are
                at += size
            elif wire in (1, 5):
                at += 8 if wire == 1 else 4
            else:
                raise ValueError(f"a field of wire type {wire}")
            if at > end:
                raise ValueError(f"a field that ends {at - end} bytes behind its message: the file is truncated")


def _varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    """A number of base 128, least first, and the place behind it."""
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        if byte < 128:
            return value | byte << shift, at
        value |= (byte & 127) << shift
        shift += 7
    raise ValueError("a number that doesn't end: the file is truncated")
