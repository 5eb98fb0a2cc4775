"""Narrow floating-point formats that NumPy lacks, widened to float32 exactly."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from .model_file import Tensor

__all__ = ["NARROW_FLOATS", "widen"]

NARROW_FLOATS: dict[str, int] = {
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2": 1,
    "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
}
"""Bytes of one element, by PyTorch's name of the dtype."""


def widen(data: Any, dtype: str, order: str = "<") -> Tensor:
    """Return the elements of `data` (bytes-like) as a new float32 array; every value is exact.

    Parameters
    ----------
    data : bytes-like
        A whole number of elements.
    dtype : str
        A key of `NARROW_FLOATS`.
    order : str
        "<" or ">", the byte order of bfloat16.
    """
    if dtype == "bfloat16":
        bits: Tensor = np.frombuffer(data, order + "u2").astype(np.uint32)
        bits <<= 16
        return bits.view(np.float32)
    return _table(dtype)[np.frombuffer(data, np.uint8)]


@cache
def _table(dtype: str) -> Tensor:
    """Return the 256 values of an 8-bit float format (OCP 8-bit floating point; the fnuz kinds: arXiv 2206.02915).

    fn: no infinities, all ones is NaN. fnuz: no infinities and no negative zero, whose code is the one NaN; the
    bias is one higher. e8m0fnu: a power of two, no sign.
    """
    codes = np.arange(256)
    if dtype == "float8_e8m0fnu":
        values = np.ldexp(np.ones(256), codes - 127)
        values[255] = np.nan
        return values.astype(np.float32)
    mantissa_bits = 2 if "e5m2" in dtype else 3
    bias = (1 << (6 - mantissa_bits)) - 1 + dtype.endswith("fnuz")
    magnitude = codes & 0x7F
    exponent, mantissa = magnitude >> mantissa_bits, magnitude & ((1 << mantissa_bits) - 1)
    fraction = mantissa / (1 << mantissa_bits)
    values = np.where(exponent > 0, np.ldexp(1 + fraction, exponent - bias), np.ldexp(fraction, 1 - bias))
    if dtype == "float8_e5m2":
        top = exponent == 31
        values[top] = np.where(mantissa[top] == 0, np.inf, np.nan)
    elif dtype == "float8_e4m3fn":
        values[magnitude == 0x7F] = np.nan
    values = np.where(codes >= 128, -values, values)
    if dtype.endswith("fnuz"):
        values[0x80] = np.nan
    return values.astype(np.float32)
