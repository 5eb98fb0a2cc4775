"""The frameworks themselves, where they are installed: each is imported by the function that runs it, and nowhere else.

The target's framework must load the target and agree. The source's framework is run on the source only if the file
names nothing but Keras' own modules (its loader imports what a file names), and what it can't load is said, not failed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..formats import ModelFile
from ..layers.base import Array
from ..models import Model
from .cases import Case
from .report import Comparison, FrameworkRun, Report
from .to_pytorch import Module

__all__ = ["Torch", "check_source", "check_target", "rows_of"]

MISSING = "not installed"
Predict = Callable[[list[Array]], list[Array]]


class Torch:
    """PyTorch's modules with the tensors of a file that was written."""

    def __init__(self, torch: Any, tensors: Mapping[str, Any], run: FrameworkRun) -> None:
        self._torch = torch
        self._tensors = tensors
        self._run = run

    @classmethod
    def load(cls, copy: ModelFile, report: Report) -> Torch | None:
        """torch.load of the file where it is a zip; None, and a line in the report, where PyTorch is missing."""
        run = FrameworkRun("PyTorch", "target")
        report.frameworks.append(run)
        try:
            import torch
        except ImportError:
            run.status = MISSING
            return None
        run.version = str(torch.__version__)
        if copy.format == "pytorch-zip":
            tensors = torch.load(copy.path, map_location="cpu", weights_only=True)
        else:
            tensors = {name: torch.from_numpy(np.array(value)) for name, value in copy.tensors.items()}
        return cls(torch, tensors, run)

    def module(self, part: Module) -> Callable[..., Any]:
        """The module, strictly loaded, on NumPy arrays."""
        torch = self._torch
        module = getattr(torch.nn, part.kind)(**part.arguments)
        lead = f"{part.name}." if part.name else ""
        own = {name: self._tensors[lead + name].to(torch.float32) for name in part.tensors}
        module.load_state_dict(own, strict=True)
        module.eval()

        def run(x: Array, h0: Array | None = None) -> Any:
            given = torch.from_numpy(np.ascontiguousarray(x))
            if part.kind == "Embedding":
                given = given.to(torch.int64)
            with torch.no_grad():
                y = module(given) if h0 is None else module(given, torch.from_numpy(np.ascontiguousarray(h0)))
            return tuple(v.numpy() for v in y) if isinstance(y, tuple) else y.numpy()

        return run

    def done(self, comparison: Comparison) -> None:
        """Put the largest error into the report."""
        self._run.max_error, self._run.scale = comparison.max_error, comparison.scale


def rows_of(model: Model) -> int | None:
    """The batch size that a stateful model's config fixes; None where rows are free."""
    return None


def check_target(
    kind: str, path: str, config: Mapping[str, Any] | None, model: Model, made: list[Case], report: Report
) -> None:
    """Run the target's framework on the target."""


def check_source(file: ModelFile, model: Any, report: Report) -> None:
    """Run the source's framework on the source."""
