"""The usual ways in which two copies of one GRU come to differ, each tested rather than guessed.

A suspect is a change of one side's weights, or of how they are run. It is named only if the change makes both sides
equal, and what remains is measured by running them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .. import gates
from ..layers.base import Array
from .grus import Activation, DirectedGRU

__all__ = ["bfloat16", "rounding", "suspects"]

Pair = tuple[DirectedGRU, DirectedGRU]
_GATES = ("reset", "update", "new")


def bfloat16(x: Array) -> Array:
    """x rounded to bfloat16, to nearest even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    kept = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return np.where(np.isfinite(x), kept.astype(np.uint32).view(np.float32), x)


def _float16(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return x.astype(np.float16).astype(np.float32)


def rounding(a: Array, b: Array) -> str | None:
    """ "" if equal, "float32 rounding", "float16" or "bfloat16" if b is a as that leaves it (or a is b), else None."""
    if a.shape != b.shape:
        return None
    if np.array_equal(a, b, equal_nan=True):
        return ""
    if a.dtype.kind != "f" or b.dtype.kind != "f":
        return None
    a, b = a.astype(np.float32), b.astype(np.float32)
    for name, narrow in (("float16", _float16), ("bfloat16", bfloat16)):
        if np.array_equal(narrow(a), b, equal_nan=True) or np.array_equal(a, narrow(b), equal_nan=True):
            return name
    if np.allclose(a, b, rtol=4e-7, atol=1e-12, equal_nan=True):
        return "float32 rounding"
    return None


# ------------------------------------------------------------------------------------- changes of the weights


@dataclass(frozen=True)
class _Explanation:
    """What was done to one side to get the other: names of the suspects, and the corrected weights."""

    names: tuple[str, ...]
    corrected: gates.Weights

    @property
    def harmless(self) -> bool:
        return self.names in ((), (_SPLIT_HARMLESS,))


Change = Callable[[Array], Array]


def _blocks(a: Array, change: Change | None) -> Array:
    return a if change is None else np.concatenate([change(block) for block in np.split(a, 3)])


def _transpose(block: Array) -> Array:
    return block.T


def _read_as_plain(block: Array) -> Array:
    """What a plain Keras reader makes of a gate of CuDNNGRU's, undone: (H, I) by memory instead of by transposing."""
    return np.ascontiguousarray(block.T).reshape(block.shape)


def _read_as_cudnn(block: Array) -> Array:
    """The other way round."""
    return np.ascontiguousarray(block.reshape(block.shape[::-1]).T)


#: Name of the suspect, and what undoes it in a gate's block of weight_ih (None: nothing) and of weight_hh.
_LAYOUTS: tuple[tuple[str, Change | None, Change | None], ...] = (
    ("", None, None),
    ("transposed kernel: weight_hh, gate by gate", None, _transpose),
    ("transposed kernel: weight_ih, gate by gate", _transpose, None),
    ("transposed kernels: weight_ih and weight_hh, gate by gate", _transpose, _transpose),
    ("CuDNN: one side's weights are CuDNNGRU's layout taken for the plain one", _read_as_plain, _transpose),
    ("CuDNN: one side's weights are the plain layout taken for CuDNNGRU's", _read_as_cudnn, _transpose),
)


def _reorder(a: Array | None, order: tuple[int, ...]) -> Array | None:
    if a is None or order == (0, 1, 2):
        return a
    blocks = np.split(a, 3)
    return np.concatenate([blocks[i] for i in order])


def _explain(a: gates.Weights, b: gates.Weights, reset_after: bool) -> _Explanation | None:
    """The fewest changes of b's weights that make them a's; None if these do not explain it."""
    found: list[_Explanation] = []
    for order, negated in itertools.product(itertools.permutations(range(3)), ("", "before", "after")):
        moved = gates.negate_update(b) if negated == "before" else b
        moved = gates.Weights(*(_reorder(w, order) for w in moved))  # type: ignore[arg-type]
        moved = gates.negate_update(moved) if negated == "after" else moved
        split = _biases(a, moved, reset_after)
        if split is None:
            continue
        for layout, change_ih, change_hh in _LAYOUTS:
            ih, hh = _blocks(moved.weight_ih, change_ih), _blocks(moved.weight_hh, change_hh)
            levels = [rounding(a.weight_ih, ih), rounding(a.weight_hh, hh)]
            if None in levels:
                continue
            names = [layout, split]
            if order != (0, 1, 2):
                theirs = ", ".join(_GATES[order.index(i)] for i in range(3))
                names.append(f"gate order: where B has its reset, update and new gates, A has its {theirs}")
            if negated:
                names.append(
                    "update-gate convention: B's update gate is A's negated (z keeps the old state, or admits the new)"
                )
            names += [f"rounding: one side's weights are the other's in {x}" for x in dict.fromkeys(levels) if x]
            kept = tuple(name for name in names if name)
            biases = a[2:] if split else moved[2:]
            found.append(_Explanation(kept, gates.Weights(ih, hh, *biases)))
    return min(found, key=lambda e: len(e.names), default=None)


_SPLIT_HARMLESS = "bias split: the sums of the two biases are equal, their parts are not; harmless"
_SPLIT = (
    "bias split: the sums of the two biases are equal, the new gate's parts are not; with reset_after "
    "the recurrent part is multiplied by r, so this changes the output"
)


def _biases(a: gates.Weights, b: gates.Weights, reset_after: bool) -> str | None:
    """ "" if the biases are equal, the name of the suspect if only their split is, None if they differ."""
    zeros = np.zeros(len(a.weight_hh), np.float32)
    ours = [zeros if v is None else v for v in (a.bias_ih, a.bias_hh)]
    theirs = [zeros if v is None else v for v in (b.bias_ih, b.bias_hh)]
    if all(rounding(x, y) is not None for x, y in zip(ours, theirs, strict=True)):
        return ""
    sums = ours[0] + ours[1], theirs[0] + theirs[1]
    if not np.allclose(*sums, rtol=1e-5, atol=1e-6):
        return None
    new = slice(2 * len(zeros) // 3, None)
    matters = reset_after and not all(
        np.allclose(x[new], y[new], rtol=1e-5, atol=1e-6) for x, y in zip(ours, theirs, strict=True)
    )
    return _SPLIT if matters else _SPLIT_HARMLESS


# ------------------------------------------------------------------------------------------ how they are run


def _shown(activation: Activation) -> str:
    name, alpha, beta = activation
    return f"{name}({alpha:.4g}, {beta:g})" if alpha or beta else name


def _variants(a: DirectedGRU, b: DirectedGRU) -> Iterator[str]:
    if a.reset_after != b.reset_after:
        where = {True: "after", False: "before"}
        yield (
            f"reset placement: A applies the reset gate {where[a.reset_after]} the recurrent product, "
            f"B {where[b.reset_after]} it"
        )
    ours, theirs = a.recurrent_activation, b.recurrent_activation
    if ours != theirs and ours[0] == theirs[0] == "hard_sigmoid":
        yield (
            f"hard_sigmoid's definition: A clips {ours[1]:.4g} x + {ours[2]:g}, B {theirs[1]:.4g} x + {theirs[2]:g} "
            "(Keras up to 2 and ONNX by default: 0.2 x + 0.5; Keras 3: x/6 + 0.5)"
        )
    elif ours != theirs:
        yield f"recurrent_activation: A has {_shown(ours)}, B {_shown(theirs)}"
    if a.activation != b.activation:
        yield f"activation: A has {_shown(a.activation)}, B {_shown(b.activation)}"


def _inputs(gru: DirectedGRU) -> Array:
    """x (4, 6, I) that reaches every part of the activations."""
    scale = np.array([0.5, 1.0, 3.0, 10.0], np.float32)[:, None, None]
    x: Array = np.random.default_rng(7).standard_normal((4, 6, gru.sizes[0])).astype(np.float32)
    return x * scale


def _error(a: Array, b: Array) -> float:
    return float(np.max(np.abs(a - b), initial=0.0))


# ------------------------------------------------------------------------------------------------ the whole


def suspects(pairs: Sequence[Pair], atol: float = 0.0) -> list[str]:
    """One line for each suspect that explains why the GRUs of two files differ by more than ``atol``."""
    found: list[str] = []
    swapped = _swapped(pairs)
    for ours, theirs in swapped:
        found.append(f"{_title(ours, theirs)}: swapped directions: A's forward weights are B's backward ones")
    for a, b in pairs:
        if (a.layer, b.layer) not in swapped and a.sizes == b.sizes:
            found += [f"{_title(a.name, b.name)}: {line}" for line in _of_pair(a, b, atol)]
    return found


def _title(a: str, b: str) -> str:
    return a if a == b else f"{a} / {b}"


def _of_pair(a: DirectedGRU, b: DirectedGRU, atol: float) -> Iterator[str]:
    x = _inputs(a)
    before = _error(a.run(x), b.run(x))
    variants = list(_variants(a, b))
    explanation: _Explanation | None = _Explanation((), b.weights)
    if not _close(a.weights, b.weights, atol):
        explanation = _explain(a.weights, b.weights, a.reset_after and b.reset_after)
    if explanation is None:
        yield from variants
        yield f"other weights, which no usual mistake (order, sign, layout, rounding) explains{_apart(before)}"
        return
    lines = [*variants, *explanation.names]
    yield from lines[:-1]
    if lines:
        # B's weights corrected, run as A's are: what is left?
        after = _error(a.run(x), a.run(x, explanation.corrected))
        undone = f" ({after:.2g} with that corrected in B)" if after < before / 2 else ""
        yield f"{lines[-1]}{_apart(before)}{undone}"


def _apart(error: float) -> str:
    return f"; on its own, this GRU's outputs differ by up to {error:.2g}"


def _close(a: gates.Weights, b: gates.Weights, atol: float) -> bool:
    for x, y in zip(a, b, strict=True):
        if x is not None or y is not None:
            x = np.zeros_like(y) if x is None else x
            y = np.zeros_like(x) if y is None else y
            if not bool(np.all((np.abs(x - y) <= atol) | ((x != x) & (y != y)))):
                return False
    return True


def _swapped(pairs: Sequence[Pair]) -> set[tuple[str, str]]:
    """Layers whose two directions are exchanged on the other side."""
    layers: dict[tuple[str, str], list[Pair]] = {}
    for a, b in pairs:
        if a.layer and b.layer:
            layers.setdefault((a.layer, b.layer), []).append((a, b))
    found = set()
    for names, both in layers.items():
        if len(both) == 2:
            (a0, b0), (a1, b1) = both
            if not (_same(a0, b0) and _same(a1, b1)) and _same(a0, b1) and _same(a1, b0):
                found.add(names)
    return found


def _same(a: DirectedGRU, b: DirectedGRU) -> bool:
    explained = _explain(a.weights, b.weights, a.reset_after) if a.sizes == b.sizes else None
    return explained is not None and explained.harmless
