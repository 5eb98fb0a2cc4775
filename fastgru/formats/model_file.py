"""What every reader returns: an architecture, the tensors, and what was left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["ModelFile", "Tensor"]

Tensor = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class ModelFile:
    """A model file, read but not yet understood.

    Attributes
    ----------
    format : str
        "keras-v3" (.keras), "keras-h5", "pytorch-zip", "pytorch-legacy", "pytorch-safetensors", "onnx" or
        "fastgru-safetensors".
    version : str
        The version of the framework that wrote it, or "" where the file does not say. For a file of our own it is
        the version of the framework that the model first came from, since that decides what its config means.
    config : dict or None
        The architecture as the file has it, {"class_name": …, "config": …}; None for bare state_dicts.
    tensors : dict of str to ndarray
        Values exactly as stored, of the stored dtype (bfloat16 and float8, which NumPy lacks, as float32). Keras:
        "layer/weight" by the names in the config ("gru_1/kernel", "bidirectional/forward_layer/kernel",
        "inner_model/gru/bias"). PyTorch: dotted names. ONNX: initialisers and constants by their names. Treat the
        arrays as read-only: some view the file.
    notes : tuple of str
        What was ignored, and why.
    path : str
        The file.
    metadata : mapping of str to str
        The `__metadata__` of a safetensors file; empty for other formats.
    data_files : tuple of str
        The other files that tensors lie in: external data of ONNX. Real paths.
    """

    format: str
    version: str
    config: dict[str, Any] | None
    tensors: dict[str, Tensor]
    notes: tuple[str, ...]
    path: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    data_files: tuple[str, ...] = ()
