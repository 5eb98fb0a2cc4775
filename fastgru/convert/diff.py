"""Two model files compared: tensor by tensor, by what they compute, and by the usual reasons why copies differ."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .. import formats, loading, nn
from ..formats import FormatError
from ..layers.base import Array
from ..models import Model
from .cases import Case, cases, score
from .cells import as_model
from .grus import DirectedGRU, grus_of
from .kinds import kinds_of, pair_up
from .refusals import about
from .report import Comparison, in_words
from .suspects import rounding, suspects

__all__ = ["Difference", "TensorDifference", "diff"]

Path = str | os.PathLike[str]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class TensorDifference:
    """One tensor of A and the one of B that it was compared with; None where one side has none.

    ``max_abs`` is the largest difference, ``relative`` that by the largest value of A; both None where shapes differ.
    ``note`` says what is known of it: "transposed", "float16", …
    """

    a: str | None
    b: str | None
    shape_a: Shape | None
    shape_b: Shape | None
    max_abs: float | None = None
    relative: float | None = None
    note: str = ""

    def equal(self, atol: float) -> bool:
        """Whether both are there and differ by no more than ``atol``."""
        return self.max_abs is not None and self.max_abs <= atol


@dataclass
class Difference:
    """What `diff` found.

    Parameters
    ----------
    a, b
        The paths.
    atol
        What tensors and outputs may differ by and be called equal; outputs, by float32 rounding at least.
    tensors
        Every tensor of either side. GRUs are in PyTorch's layout (gates r z n), whatever the file's own.
    outputs
        The whole models on each kind of input that fits both.
    suspects
        Named by testing them.
    notes
        What was not compared, and why.
    """

    a: str
    b: str
    atol: float = 0.0
    tensors: list[TensorDifference] = field(default_factory=list)
    outputs: list[Comparison] = field(default_factory=list)
    suspects: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """Whether every tensor has its equal, no variant differs, and all outputs agree."""
        within = all(c.within or c.max_error <= self.atol for c in self.outputs)
        return all(t.equal(self.atol) for t in self.tensors) and within and not self.suspects

    def lines(self) -> list[str]:
        """The report, a line each."""
        return [*self._table(), *self._behaviour(), *(f"likely cause: {s}" for s in self.suspects), *self._end()]

    def _table(self) -> list[str]:
        rows: list[tuple[str, ...]] = [("tensor", "shape", "largest difference", "relative to A's largest", "")]
        equal = 0
        for t in self.tensors:
            if t.max_abs == 0 and t.a is not None:
                equal += 1
                continue
            name = _both(t.a, t.b)
            shape = _both(t.shape_a, t.shape_b)
            missing = "only in A" if t.b is None else "only in B" if t.a is None else t.note
            numbers = ["–" if v is None else f"{v:.3g}" for v in (t.max_abs, t.relative)]
            rows.append((name, shape, *numbers, missing))
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        shown = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        head = [f"A: {self.a}", f"B: {self.b}", f"{equal} of {len(self.tensors)} tensors equal"]
        if len(shown) > 1:
            head[-1] += "; the others, as A ↔ B, those of GRUs in PyTorch's layout (gates r z n):"
        return [*head, *(shown if len(shown) > 1 else [])]

    def _behaviour(self) -> list[str]:
        return [f"outputs on {in_words(c.name)}: {_gap(c)}" for c in self.outputs]

    def _end(self) -> list[str]:
        verdict = (
            "different" if not self.equal else "equal" if self.outputs else "equal in tensors, outputs not compared"
        )
        return [*(f"note: {note}" for note in self.notes), verdict]


def _both(a: Any, b: Any) -> str:
    return " ↔ ".join(str(v) for v in dict.fromkeys((a, b)) if v is not None)


def _gap(outputs: Comparison) -> str:
    if not outputs.max_error:
        return "equal"
    rounding = "float32 rounding" if outputs.within else "more than float32 rounding"
    return f"differ by up to {outputs.max_error:.3g}, {rounding}"


def diff(
    a: Path,
    b: Path,
    *,
    config: Path | Mapping[str, Any] | None = None,
    prefix: str | None = None,
    atol: float = 0.0,
) -> Difference:
    """Compare two model files of any formats.

    Parameters
    ----------
    a, b
        The files.
    config
        The architecture of those that are Keras weights alone, as in `fastgru.load`.
    prefix
        Of those that are state_dicts: which GRU.
    atol
        What tensors and outputs may differ by and be called equal; outputs, by float32 rounding at least.

    Raises
    ------
    FormatError, OSError
        If a file can't be read, or a state_dict has no GRU at the prefix.
    ValueError
        For an atol below 0.
    """
    if not atol >= 0:
        raise ValueError(f"atol: expected a number of at least 0, found {atol}")
    sides = [_Side(path, config, prefix) for path in (a, b)]
    ours, theirs = sides
    found = Difference(ours.file.path, theirs.file.path, atol)
    found.notes += [note for side in sides for note in side.notes]
    pairs: list[tuple[DirectedGRU, DirectedGRU]] = []
    if ours.grus and theirs.grus:
        pairs = _match_grus(ours.grus, theirs.grus)
        found.tensors += [row for pair in pairs for row in _gru_rows(*pair)]
    used = [{n for pair in pairs for n in pair[i].tensors} for i in range(2)]
    rest = [{n: t for n, t in side.file.tensors.items() if n not in u} for side, u in zip(sides, used, strict=True)]
    if prefix is not None:
        rest = [{n: t for n, t in r.items() if s.file.config is not None} for r, s in zip(rest, sides, strict=True)]
    found.tensors += _other_rows(ours, theirs, *rest)
    graphs = [] if ours.family == theirs.family else [i for i, s in enumerate(sides) if s.family == "onnx"]
    for i in graphs:
        _set_aside(found, "ba"[i], "constants of the ONNX graph have no counterpart")
    if ours.family != theirs.family:  # PyTorch's BatchNorm counts batches of training, which no score uses
        counters = [t for t in found.tensors if "counter" in (ours.role(t.a), theirs.role(t.b)) and None in (t.a, t.b)]
        found.tensors = [t for t in found.tensors if t not in counters]
    found.suspects = suspects(pairs, atol)
    found.suspects += [f"{t.a} / {t.b}: transposed kernel" for t in found.tensors if t.note.startswith("transposed")]
    _compare_outputs(ours, theirs, found)
    for i in graphs:
        if found.outputs and all(c.within for c in found.outputs):
            _set_aside(
                found, "ab"[i], "tensors stand in the ONNX graph in another form, and only the outputs show them"
            )
    return found


class _Side:
    """One file, its model if it has one, its GRUs."""

    def __init__(self, path: Path, config: Path | Mapping[str, Any] | None, prefix: str | None) -> None:
        self.file = formats.read(path)
        if config is not None and self.file.format == "keras-weights":
            self.file = formats.read(path, config)
        self.notes: list[str] = []
        self.model: Model | nn.GRU | nn.GRUCell | None = None
        try:
            self.model = loading.from_file(self.file, prefix if self.file.config is None else None)
        except FormatError as error:
            why = "weights alone, --config gives the layers" if self.file.format == "keras-weights" else str(error)
            why = why.removeprefix(f"{self.file.path}: ")
            self.notes.append(f"{self.file.path}: only its tensors are compared: {why}")
        self.kinds = kinds_of(self.file, self.model is not None)
        self._chosen = prefix is not None
        self.grus = grus_of(self.file, self.model if isinstance(self.model, Model) else None)
        if prefix is not None and self.file.config is None:
            start = prefix if not prefix or prefix.endswith(".") else f"{prefix}."
            self.grus = [g for g in self.grus if all(n.startswith(start) for n in g.tensors)]
            if not self.grus:
                listed = ", ".join(map(repr, sorted(loading.find_grus(self.file.tensors)))) or "none"
                raise FormatError(f"{self.file.path}: expected a GRU at prefix {prefix!r}, found GRUs at {listed}")

    @property
    def family(self) -> str:
        """Whose layout the tensors have: a Dense kernel is (I, O) in Keras, (O, I) in PyTorch."""
        if self.file.config is None and self.file.format != "keras-weights":
            return "pytorch"
        return "onnx" if self.file.config and self.file.config.get("class_name") == "OnnxGraph" else "keras"

    def role(self, name: str | None) -> str:
        """What a tensor is for; "" for none, for parts of GRUs, and where it isn't known."""
        return self.kinds[name].role if name in self.kinds else ""

    @property
    def partial(self) -> bool:
        """Whether the model is the GRU alone of a state_dict that has more: what else it runs, no file says."""
        held = {n for gru in self.grus for n in gru.tensors}
        return self.file.config is None and not self._chosen and not held.issuperset(self.file.tensors)

    @property
    def layered(self) -> Model | None:
        return self.model if self.model is None or isinstance(self.model, Model) else as_model(self.model)


# ------------------------------------------------------------------------------------------------ tensors


def _match_grus(a: list[DirectedGRU], b: list[DirectedGRU]) -> list[tuple[DirectedGRU, DirectedGRU]]:
    """By name and size, then by equal weights, then by order among those of one size, then by order."""
    pairs: dict[int, DirectedGRU] = {}
    left = list(b)
    rules = (
        lambda x, y: x.path == y.path and x.sizes == y.sizes,
        lambda x, y: x.sizes == y.sizes and x.same_weights(y),
        lambda x, y: x.sizes == y.sizes,
        lambda x, y: True,
    )
    for fits in rules:
        for i, ours in enumerate(a):
            partner = None if i in pairs else next((y for y in left if fits(ours, y)), None)
            if partner is not None:
                pairs[i] = partner
                left.remove(partner)
    return [(a[i], pairs[i]) for i in sorted(pairs)]


def _gru_rows(a: DirectedGRU, b: DirectedGRU) -> Iterable[TensorDifference]:
    for part, x, y in zip(a.weights._fields, a.weights, b.weights, strict=True):
        if x is None and y is None:
            continue
        # no bias is a bias of zeros
        absent = "A" if x is None else "B" if y is None else ""
        x = np.zeros_like(y) if x is None else x
        y = np.zeros_like(x) if y is None else y
        row = _row(f"{a.name} {part}", f"{b.name} {part}", x, y)
        yield replace(row, note=f"{absent} has none, that is zeros") if absent and row.max_abs != 0 else row


def _row(name_a: str, name_b: str, a: Array, b: Array, other_layout: bool = False) -> TensorDifference:
    """``other_layout``: one framework's (I, O) is the other's (O, I)."""
    shapes = a.shape, b.shape
    turned = a.ndim == 2 and a.T.shape == b.shape and rounding(a, b) is None
    if turned and other_layout and (a.shape != b.shape or rounding(a.T, b) is not None):
        a, turned = a.T, False
    notes = ["transposed"] if turned and rounding(a.T, b) is not None else []
    if a.shape != b.shape:
        return TensorDifference(name_a, name_b, *shapes, note=(notes or ["shapes differ"])[0])
    notes += [] if a.dtype == b.dtype else [f"{a.dtype} / {b.dtype}"]
    notes += [level for level in [rounding(a, b)] if level]
    distance = _distance(a, b)
    scale = float(np.max(np.abs(a), initial=0.0)) if a.dtype.kind in "fiu" else 0.0
    return TensorDifference(
        name_a, name_b, *shapes, distance, distance / scale if scale else distance, ", ".join(notes)
    )


def _distance(a: Array, b: Array) -> float:
    """The largest difference; a NaN or an infinity on one side alone is an infinite one."""
    wide = np.complex128 if "c" in a.dtype.kind + b.dtype.kind else np.float64
    with np.errstate(invalid="ignore", over="ignore"):
        same = (a == b) | ((a != a) & (b != b))
        gap = np.abs(a.astype(wide) - b.astype(wide))
    return float(np.max(np.where(same, 0.0, np.where(np.isnan(gap), np.inf, gap)), initial=0.0))


def _other_rows(ours: _Side, theirs: _Side, a: Mapping[str, Array], b: Mapping[str, Array]) -> list[TensorDifference]:
    """The tensors ``a`` and ``b`` of both sides beside those of GRUs; which are compared, `pair_up` says."""
    turned = ours.family != theirs.family
    pairs = pair_up(a, b, (ours.kinds, theirs.kinds), turned)
    rows = [_row(x, y, np.asarray(a[x]), np.asarray(b[y]), turned) for x, y in pairs.items()]
    rows += [TensorDifference(name, None, np.shape(t), None) for name, t in a.items() if name not in pairs]
    taken = set(pairs.values())
    return rows + [TensorDifference(None, name, None, np.shape(t)) for name, t in b.items() if name not in taken]


def _set_aside(found: Difference, absent: str, why: str) -> None:
    """What only an ONNX graph has (shapes, axes, weights before they are put in order) is no difference, nor is what
    it has in another form (a normalisation as a factor and a shift)."""
    alone = [t for t in found.tensors if getattr(t, absent) is None]
    found.tensors = [t for t in found.tensors if getattr(t, absent) is not None]
    if alone:
        shown = ", ".join(str(t.a or t.b) for t in alone[:4]) + (", …" if len(alone) > 4 else "")
        found.notes.append(f"{len(alone)} {why}: {shown}")


# -------------------------------------------------------------------------------------------------- outputs


Outputs = list[Array]


def _compare_outputs(a: _Side, b: _Side, found: Difference) -> None:
    """Run both on the same inputs, as far as these fit both."""
    ours, theirs = a.layered, b.layered
    if ours is None or theirs is None:
        return
    if a.partial != b.partial and isinstance((b if a.partial else a).model, Model):
        found.notes.append(
            "outputs not compared: a state_dict does not say how its GRU and its other tensors go together"
        )
        return
    made = cases(ours) or cases(theirs)
    if not made:
        found.notes.append("outputs not compared: neither file says the shape of the inputs")
    for case in made:
        try:
            with about(a.file.path):
                firsts = list(_readings(a, ours, case, b))
            with about(b.file.path):
                seconds = list(_readings(b, theirs, case, a))
        except (ValueError, IndexError) as error:
            if case is made[0]:
                found.notes.append(f"outputs not compared: inputs that fit one model do not fit the other ({error})")
                return
            continue  # lengths or masks that one of them can't take
        pairs = [(x, y) for x in firsts for y in seconds if [v.shape for v in x] == [v.shape for v in y]]
        if not pairs:
            shapes = [" ".join(str(v.shape) for v in side[0]) for side in (firsts, seconds)]
            found.notes.append(f"outputs not compared: on the same inputs A gives the shape {shapes[0]}, B {shapes[1]}")
            return
        found.outputs.append(min((_comparison(case, x, y) for x, y in pairs), key=lambda c: c.max_error))


def _readings(side: _Side, model: Model, case: Case, other: _Side) -> Iterator[Outputs]:
    """What a side gives. A state_dict says neither its layout nor whether one takes all steps or the last: each
    reading counts, beside a file that does say it."""
    yield score(model, case)
    gru = side.model
    if not isinstance(gru, nn.GRU) or not isinstance(other.model, Model) or case.lengths is not None:
        return
    y = score(model, case)[0]
    hidden = gru.hidden_size
    yield [np.concatenate([y[:, -1, :hidden], y[:, 0, hidden:]], axis=-1)]
    time_first = Case(case.name, [x.swapaxes(0, 1) for x in case.inputs])
    yield [score(model, time_first)[0].swapaxes(0, 1)]


def _comparison(case: Case, a: Outputs, b: Outputs) -> Comparison:
    comparison = Comparison(case.name)
    for x, y in zip(a, b, strict=True):
        comparison.add(y, x)
    return comparison
