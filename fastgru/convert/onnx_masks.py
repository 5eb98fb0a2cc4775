"""Masks in ONNX, which has none: the valid steps of each row are moved to its front, and lengths say how many.

ONNX's GRU takes lengths, so that a row whose steps stand in front of it is computed exactly, whatever its mask was.
Afterwards the outputs go back to the places of their steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np

from .onnx_builder import Builder, Value


@dataclass(frozen=True)
class Compact:
    """What moves steps to the front of their rows and back.

    ``mask`` (N, T) bool; ``order`` (N, T): the step that comes to each place, valid ones first; ``before`` (N, T): the
    number of valid steps before each step; ``count`` (N, 1): that of all; ``lengths`` (N,) int32: the same.
    """

    mask: Value
    order: Value
    before: Value
    count: Value
    lengths: Value

    def has_steps(self, g: Builder) -> Value:
        """(N, 1): whether a row has a valid step."""
        return g.binary("Greater", self.count, 0, "bool")


def compact(g: Builder, mask: Value) -> Compact:
    """The moves for one mask (N, T), made once however many layers look at it."""
    if mask.rank != 2:
        raise g.refuse(f"expected a mask (N, T), found {mask.sizes}")
    return g.once(("compact", mask.name), lambda: _compact(g, mask))


def _compact(g: Builder, mask: Value) -> Compact:
    valid = g.cast(mask, "int64")
    before = g.add("CumSum", [valid, g.constant(1)], mask.sizes, "int64", exclusive=1)
    count = g.reduce("ReduceSum", valid, [1], True)
    steps = g.add("Range", [g.constant(0), g.squeeze(g.size(mask, 1), 0), g.constant(1)], (mask.sizes[1],), "int64")
    behind = g.binary("Add", g.binary("Sub", steps, before), count)  # a padded step: after all valid ones
    place = g.add("Where", [mask, before, behind], mask.sizes, "int64")
    shape = g.add("Shape", [mask], (2,), "int64")
    numbers = g.add("Expand", [steps, shape], mask.sizes, "int64")
    order = g.add("ScatterElements", [valid, place, numbers], mask.sizes, "int64", axis=1)
    lengths = g.cast(g.squeeze(count, 1), "int32")
    return Compact(mask, order, before, count, lengths)


def to_front(g: Builder, x: Value, c: Compact) -> Value:
    """x (N, T, I) with each row's valid steps in front."""
    return _steps(g, x, c.order)


def to_places(g: Builder, y: Value, c: Compact, padding: str, reverse: bool, leading: Value | None) -> Value:
    """y (N, T, H) of `to_front` back at the steps; at padded ones 0, or with "keras" the output before it.

    "Before" is in processing order. What comes before the first valid step is ``leading`` (N, H), or 0.
    """
    place, shown = c.before, c.mask
    if padding == "keras" and reverse:
        shown = g.binary("Less", c.before, c.count, "bool")
    elif padding == "keras":
        last = g.binary("Add", g.binary("Sub", c.before, 1), g.cast(c.mask, "int64"))
        shown = g.binary("GreaterOrEqual", last, 0, "bool")
        place = g.binary("Max", last, 0)
    filler = g.constant(np.float32(0)) if leading is None else g.unsqueeze(leading, 1)
    return g.add("Where", [g.unsqueeze(shown, 2), _steps(g, y, place), filler], y.sizes)


def _steps(g: Builder, x: Value, numbers: Value) -> Value:
    """x[n, numbers[n, t]] for each row n."""
    return g.add("GatherND", [x, g.unsqueeze(numbers, 2)], x.sizes, batch_dims=1)


# -- masks of several values ----------------------------------------------------------------


def either(g: Builder, masks: list[Value | None]) -> Value | None:
    """OR; None if one is None."""
    known = [m for m in masks if m is not None]
    return reduce(lambda a, b: g.binary("Or", a, b, "bool"), known) if len(known) == len(masks) else None


def both(g: Builder, masks: list[Value | None]) -> Value | None:
    """AND of those that are not None."""
    known = [m for m in masks if m is not None]
    return reduce(lambda a, b: g.binary("And", a, b, "bool"), known) if known else None


def chosen(g: Builder, mask: Value, x: Value, other: Value) -> Value:
    """x where the mask (N, T) has its step, else ``other``."""
    wide = g.unsqueeze(mask, -1)
    return g.add("Where", [wide, x, other], g.broadcast(wide, x, other))


def all_valid(g: Builder, x: Value) -> Value:
    """A mask without padding for x (N, T, …)."""
    shape = g.add("Shape", [x], (x.rank - 1,), "int64", end=-1)
    return g.add("Expand", [g.constant(True), shape], x.sizes[:-1], "bool")
