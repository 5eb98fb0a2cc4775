"""Live frameworks, for the tests that compare with them."""

from __future__ import annotations

import importlib
import os
from typing import Any

import pytest


def framework(name: str) -> Any:
    """The framework, or a skip that says it is missing."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    if name == "keras":
        os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    try:
        return importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"{name} is not installed here ({error}): pip install 'fastgru[parity]'")
