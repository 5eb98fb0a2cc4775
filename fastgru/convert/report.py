"""What a conversion did and how it was proven, for people (`lines`) and for programs (`to_json`)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..formats import FormatError
from ..layers.base import Array

__all__ = ["Comparison", "FrameworkRun", "Mismatch", "Report", "in_words"]

#: float32 rounding: what two right answers may differ by, times max(1, |y|).
TOLERANCE = 1e-5
#: What a badly conditioned model may make of that, at most.
_WORST = 10.0

#: The kinds of inputs of `cases`, for people.
_KINDS = {
    "random": "random inputs",
    "zeros": "inputs of zeros",
    "saturating": "random inputs times 50",
    "one step": "inputs of one time step",
    "masked": "inputs with masked steps",
    "lengths": "inputs with lengths",
}


def in_words(kind: str) -> str:
    """The name of a kind of inputs, and what was added to it, as a sentence has it."""
    name, comma, rest = kind.partition(",")
    return _KINDS.get(name, name) + comma + rest


@dataclass
class Comparison:
    """The largest difference between what two sides computed, and the largest value they compared.

    ``moved`` is what rounding in the layers does to these outputs (`condition`), where that was measured.
    """

    name: str
    what: str = ""
    max_error: float = 0.0
    scale: float = 0.0
    moved: float = 0.0

    def add(self, found: Array, expected: Array) -> None:
        """Take one more pair into account; a shape, a NaN or an infinity on one side alone is an infinite error."""
        found, expected = np.asarray(found), np.asarray(expected)
        if found.shape != expected.shape:
            self.max_error = float("inf")
            return
        if not expected.size:
            return
        same = (found == expected) | (np.isnan(found) & np.isnan(expected)) if found.dtype.kind == "f" else None
        with np.errstate(invalid="ignore"):
            error = np.abs(found.astype(np.float64) - expected.astype(np.float64))
        error = np.where(np.isnan(error), np.inf, error) if same is None else np.where(same, 0.0, error)
        self.max_error = max(self.max_error, float(np.where(np.isnan(error), np.inf, error).max()))
        finite = np.abs(expected[np.isfinite(expected)].astype(np.float64))
        self.scale = max(self.scale, float(finite.max(initial=0.0)))

    @property
    def within(self) -> bool:
        """Whether the two sides agree to float32 rounding."""
        return self.max_error <= self.allowed

    @property
    def allowed(self) -> float:
        """The largest error that is float32 rounding."""
        usual = TOLERANCE * max(1.0, self.scale)
        return max(usual, min(self.moved, _WORST * usual))

    def __str__(self) -> str:
        return f"{self.name}{f' ({self.what})' if self.what else ''}: max error {self.max_error:.3g}"


@dataclass
class FrameworkRun:
    """A framework's own computation beside ours; ``status`` is "run", or why it was not."""

    framework: str
    role: str
    version: str = ""
    status: str = "run"
    max_error: float | None = None
    scale: float | None = None
    moved: float | None = None

    def __str__(self) -> str:
        label = f"{self.role} in {self.framework}{f' {self.version}' if self.version else ''}"
        if self.max_error is None:
            return f"{label}: {self.status}"
        beside = f", rounding in the layers moves this model by {self.moved:.2g}" if self.moved else ""
        return f"{label}: max error {self.max_error:.3g}{beside}"


@dataclass
class Report:
    """One conversion.

    Parameters
    ----------
    source, target
        Paths.
    source_format, source_version, target_format
        What was read, which version of its framework wrote it, what was written.
    data_files
        What else of the source was read: external data of ONNX.
    tensors
        How many tensors the target holds.
    verified
        Whether the target was read back and compared.
    weights
        What the comparison of weights found, in words.
    inputs
        One comparison of the outputs for each kind of input.
    skipped
        The other kinds of input, and why there are no outputs to compare on them.
    layers
        One comparison for each layer that both sides have, over all inputs.
    frameworks
        The frameworks themselves.
    notes
        What the target does not hold, and what to know to use it.
    """

    source: str
    target: str
    source_format: str
    source_version: str
    target_format: str
    data_files: tuple[str, ...] = ()
    tensors: int = 0
    verified: bool = False
    weights: str = ""
    inputs: list[Comparison] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    layers: list[Comparison] = field(default_factory=list)
    frameworks: list[FrameworkRun] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def expect(self, comparisons: list[Comparison], exact: bool = False) -> None:
        """Raise Mismatch for the first comparison beyond float32 rounding, or (``exact``) beyond nothing."""
        for comparison in comparisons:
            if comparison.max_error > 0.0 if exact else not comparison.within:
                allowed = "none" if exact else f"at most {TOLERANCE:g} · {max(1.0, comparison.scale):.3g}"
                if comparison.moved:
                    allowed += f", or the {comparison.moved:.2g} by which rounding in the layers moves them"
                raise Mismatch(
                    f"{self.target}: scores differ from {self.source}: {comparison}, expected {allowed}", self
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers; an error that is no number is the string "inf"."""

        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: plain(item) for key, item in value.items()}
            if isinstance(value, (list, tuple)):
                return [plain(item) for item in value]
            return str(value) if isinstance(value, float) and not np.isfinite(value) else value

        made: dict[str, Any] = plain(asdict(self))
        return made

    def to_json(self) -> str:
        """As JSON."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    def lines(self) -> list[str]:
        """What the command line prints."""
        compared = f"; {self.weights}" if self.weights else ""
        first = f"{self.target}: {self.tensors} tensors from {self.source_format} to {self.target_format}{compared}"
        rows = [("layer", "class", "max error")] if self.layers else []
        rows += [(c.name, c.what, f"{c.max_error:.3g}") for c in self.layers]
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(2)]
        table = [f"  {row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}" for row in rows]
        inputs = [f"on {in_words(c.name)}: max error {c.max_error:.3g}" for c in self.inputs]
        inputs += [f"not on {in_words(kind)}: {why}" for kind, why in self.skipped.items()]
        return [first, *table, *inputs, *map(str, self.frameworks), *(f"note: {note}" for note in self.notes)]


class Mismatch(FormatError):
    """The target does not compute what the source does; ``report`` says where they part."""

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report
