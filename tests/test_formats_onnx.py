"""ONNX files → config and tensors: what is read, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastgru
from fastgru import formats

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'fastgru[onnx]'")


def listed(y: Any) -> list[Any]:
    return y if isinstance(y, list) else [y]


def test_nsnet2(shared: Path) -> None:
    """A published speech enhancer: two GRUs of 400 units between dense layers, exported by PyTorch 1.6."""
    folder = shared / "models" / "onnx_nsnet2"
    model = fastgru.load(folder / "nsnet2-20ms-baseline.onnx")
    expected = np.load(folder / "nsnet2-20ms-baseline_expected.npz")
    x = {name[3:]: value for name, value in expected.items() if name.startswith("in_")}
    y = listed(model.predict(x))
    for name, found in zip(model.output_names, y, strict=True):
        reference = expected[f"out_{name}"]
        assert np.abs(found - reference).max() <= 2e-5 * max(1, np.abs(reference).max())


def test_what_is_no_onnx_model() -> None:
    with pytest.raises(formats.FormatError, match="ONNX"):
        formats.read_bytes(b"\x08\x07\x12\x07pytorch")
