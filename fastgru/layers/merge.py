"""Layers of several inputs: Concatenate, Add, Subtract, Multiply, Average, Maximum, Minimum, Dot.

What a merge does with masks changed in Keras 3.4: see `Dialect.merges_or`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import ops
from .base import NEWEST, Array, Dialect, Layer, as_float32
from .training_step import Back, TrainingStep, sum_to

if TYPE_CHECKING:
    from .reader import Reader


class Merge(Layer):
    """The inputs and masks of a merge; each merge below says how two arrays become one."""

    def __init__(self, name: str | None = None, *, dialect: Dialect = NEWEST) -> None:
        super().__init__(name)
        self._dialect = dialect
        self.ready = True

    @classmethod
    def from_config(cls, config: Mapping[str, Any], reader: Reader) -> Layer:
        known = {key: config[key] for key in cls.arguments if key in config}
        return cls(name=config.get("name"), dialect=reader.dialect, **known)

    def inputs(self, x: Any, mask: Any) -> tuple[list[Array], list[Any]]:
        """Inputs as float32 arrays and one mask (or None) for each."""
        if not isinstance(x, (list, tuple)) or not x:
            raise ValueError(
                f"layer {self.name!r} ({self.class_name()}): expected a list of inputs, found {type(x).__name__}"
            )
        masks = list(mask) if isinstance(mask, (list, tuple)) else [None] * len(x)
        return [as_float32(v) for v in x], masks

    def forward(self, x: Any, mask: Any, num_threads: int | None, initial_state: Any = None) -> tuple[Any, Any]:
        arrays, masks = self.inputs(x, mask)
        arrays = same_rank(arrays)
        try:
            np.broadcast_shapes(*(a.shape for a in arrays))
        except ValueError:
            raise ValueError(
                f"layer {self.name!r} ({self.class_name()}): expected inputs of one shape, found "
                f"{[a.shape for a in arrays]}"
            ) from None
        if all(m is None for m in masks):
            return self.merge(arrays), None
        if self._dialect.merges_or:
            return self.merge_masked(arrays, masks), _or_masks(masks)
        return self.merge(arrays), reduce(np.logical_and, [m for m in masks if m is not None])

    def merge(self, arrays: list[Array]) -> Array:
        """The merged array."""
        raise NotImplementedError

    def merge_masked(self, arrays: list[Array], masks: list[Any]) -> Array:
        """The merged array where Keras ≥ 3.4 looks at the masks too."""
        return self.merge(arrays)

    def train(self, x: Any, mask: Any, step: TrainingStep, initial_state: Any = None) -> tuple[Any, Any, Back]:
        y, shown = self.forward(x, mask, step.num_threads)
        given, masks = self.inputs(x, mask)
        if not self._dialect.merges_or:
            masks = [None] * len(given)
        arrays = same_rank(given)

        def back(dy: Array) -> list[Array]:
            found = self.unmerge(dy, arrays, masks)
            return [sum_to(d, a.shape).reshape(g.shape) for d, a, g in zip(found, arrays, given, strict=True)]

        return y, shown, back

    def unmerge(self, dy: Array, arrays: list[Array], masks: list[Any]) -> list[Array]:
        """The gradient of each input, before the sum over axes along which it was broadcast."""
        raise NotImplementedError


class Add(Merge):
    """The sum of the inputs."""

    def merge(self, arrays: list[Array]) -> Array:
        return reduce(np.add, arrays)

    def unmerge(self, dy: Array, arrays: list[Array], masks: list[Any]) -> list[Array]:
        return [dy] * len(arrays)


class Subtract(Merge):
    """The first input minus the second."""

    def merge(self, arrays: list[Array]) -> Array:
        if len(arrays) != 2:
            raise ValueError(f"layer {self.name!r} (Subtract): expected 2 inputs, found {len(arrays)}")
        return np.asarray(arrays[0] - arrays[1])

    def unmerge(self, dy: Array, arrays: list[Array], masks: list[Any]) -> list[Array]:
        return [dy, -dy]


class Average(Merge):
    """The mean of the inputs."""

    def merge(self, arrays: list[Array]) -> Array:
        return np.asarray(reduce(np.add, arrays) / np.float32(len(arrays)))

    def unmerge(self, dy: Array, arrays: list[Array], masks: list[Any]) -> list[Array]:
        return [dy / np.float32(len(arrays))] * len(arrays)


class Multiply(Merge):
    """The product of the inputs; from Keras 3.4 a masked input counts as 1."""

    def merge(self, arrays: list[Array]) -> Array:
        return reduce(np.multiply, arrays)

    def merge_masked(self, arrays: list[Array], masks: list[Any]) -> Array:
        product = self.merge(self._factors(arrays, masks))
        either = _or_masks(masks)
        return product if either is None else np.where(either[..., None], product, np.float32(0.0))

    def _factors(self, arrays: list[Array], masks: list[Any]) -> list[Array]:
        one = np.float32(1.0)
        return [a if m is None else np.where(m[..., None], a, one) for a, m in zip(arrays, masks, strict=True)]

    def unmerge(self, dy: Array, arrays: list[Array], masks: list[Any]) -> list[Array]:
        factors, either = self._factors(arrays, masks), _or_masks(masks)
        if either is not None:
            dy = np.where(either[..., None], dy, np.float32(0.0))
        found = []
        for i, mask in enumerate(masks):
            d = reduce(np.multiply, [f for j, f in enumerate(factors) if j != i], dy)
            found.append(d if mask is None else np.where(mask[..., None], d, np.float32(0.0)))
        return found


class Maximum(Merge):
    """The larger of the inputs; from Keras 3.4 a masked input gives way to the other."""

    def merge(self, arrays: list[Array]) -> Array:
        return reduce(self.choose, arrays)

    def merge_masked(self, arrays: list[Array], masks: list[Any]) -> Array:
        result, shown = arrays[0], masks[0]
        for x, mask in zip(arrays[1:], masks[1:], strict=True):
            if mask is not None:
                x = np.where(mask[..., None], x, result)
            if shown is not None:
                result = np.where(shown[..., None], result, x)
            shown = None if mask is None or shown is None else np.logical_or(shown, mask)
            result = self.choose(result, x)
        return result

    def choose(self, a: Array, b: Array) -> Array:
        """One of two."""
        return np.maximum(a, b)

    def first_wins(self, a: Array, b: Array) -> Array:
        """Where the choice is the first, which has the gradient of equals, as in TensorFlow."""
        return np.asarray(a >= b)

    def unmerge(self, dy: Array, arrays: list[Array], masks: list[Any]) -> list[Array]:
        every = np.ones(dy.shape, bool)
        result, shown, share = arrays[0], masks[0], [every]  # share[i]: where input i is what has been chosen so far
        for i, mask in enumerate(masks[1:], 1):
            valid = every if mask is None else mask[..., None]
            old = every if shown is None else shown[..., None]
            new = valid & ~(old & self.first_wins(result, arrays[i])) & every
            share = [s & ~new for s in share] + [new]
            result = np.where(new, arrays[i], result)
            shown = None if mask is None or shown is None else np.logical_or(shown, mask)
        return [np.where(s, dy, np.float32(0.0)) for s in share]


class Minimum(Maximum):
    """The smaller of the inputs; from Keras 3.4 a masked input gives way to the other."""

    def choose(self, a: Array, b: Array) -> Array:
        """One of two."""
        return np.minimum(a, b)

    def first_wins(self, a: Array, b: Array) -> Array:
        """Where the choice is the first."""
        return np.asarray(a <= b)


class Concatenate(Merge):
    """The inputs side by side along ``axis``."""

    arguments = ("axis",)

    def __init__(self, axis: int = -1, name: str | None = None, *, dialect: Dialect = NEWEST) -> None:
        super().__init__(name, dialect=dialect)
        self.axis = int(axis)

    def forward(self, x: Any, mask: Any, num_threads: int | None, initial_state: Any = None) -> tuple[Any, Any]:
        arrays, masks = self.inputs(x, mask)
        try:
            merged = np.concatenate(arrays, axis=self.axis)
        except ValueError:
            raise ValueError(
                f"layer {self.name!r} (Concatenate): expected inputs that agree but for axis "
                f"{self.axis}, found {[a.shape for a in arrays]}"
            ) from None
        if all(m is None for m in masks):
            return merged, None
        spread = [np.ones(a.shape[:-1], bool) if m is None else m for a, m in zip(arrays, masks, strict=True)]
        axis = self.axis % arrays[0].ndim
        if axis < arrays[0].ndim - 1:
            return merged, np.concatenate(spread, axis=axis)
        both = np.logical_or if self._dialect.merges_or else np.logical_and
        return merged, reduce(both, spread)

    def train(self, x: Any, mask: Any, step: TrainingStep, initial_state: Any = None) -> tuple[Any, Any, Back]:
        ends = np.cumsum([a.shape[self.axis] for a in x])[:-1]
        return *self.forward(x, mask, None), lambda dy: np.split(dy, ends, axis=self.axis)

    def describe(self) -> str:
        return f"axis {self.axis}"


class Dot(Merge):
    """Products summed over one axis of each of two inputs, row by row.

    Parameters
    ----------
    axes
        The axis of each input, or one for both; never the batch.
    normalize
        Divide by the lengths first (cosine similarity).
    """

    arguments = ("axes", "normalize")

    def __init__(
        self,
        axes: int | Sequence[int],
        normalize: bool = False,
        name: str | None = None,
        *,
        dialect: Dialect = NEWEST,
    ) -> None:
        super().__init__(name, dialect=dialect)
        self.axes = axes if isinstance(axes, int) else [int(a) for a in axes]
        self.normalize = bool(normalize)

    def forward(self, x: Any, mask: Any, num_threads: int | None, initial_state: Any = None) -> tuple[Any, Any]:
        a, b = ((_unit(v) if self.normalize else v) for v in self._moved(x))
        y = batched_product(a, b, num_threads)
        return (y.reshape(-1, 1) if y.ndim == 1 else y), None

    def _moved(self, x: Any) -> list[Array]:
        """Both inputs with the axis of the sum last."""
        arrays, _ = self.inputs(x, None)
        if len(arrays) != 2:
            raise ValueError(f"layer {self.name!r} (Dot): expected 2 inputs, found {len(arrays)}")
        pair = [self.axes] * 2 if isinstance(self.axes, int) else self.axes
        for array, axis in zip(arrays, pair, strict=True):
            if not -array.ndim <= axis < array.ndim or axis % array.ndim == 0:
                raise ValueError(
                    f"layer {self.name!r} (Dot): axes: expected axes after the batch, found "
                    f"{self.axes} for inputs {[a.shape for a in arrays]}"
                )
        moved = [np.moveaxis(array, axis, -1) for array, axis in zip(arrays, pair, strict=True)]
        a, b = moved
        if a.shape[0] != b.shape[0] or a.shape[-1] != b.shape[-1]:
            raise ValueError(
                f"layer {self.name!r} (Dot): axes {self.axes} of inputs {[v.shape for v in arrays]} differ in size"
            )
        return moved

    def train(self, x: Any, mask: Any, step: TrainingStep, initial_state: Any = None) -> tuple[Any, Any, Back]:
        moved = self._moved(x)
        a, b = ((_unit(v) if self.normalize else v) for v in moved)
        y = batched_product(a, b, step.num_threads)
        shape = y.shape
        pair = [self.axes] * 2 if isinstance(self.axes, int) else self.axes

        def back(dy: Array) -> list[Array]:
            found = []
            # y is (N, axes of a, axes of b): the sum for a runs over those of b, and the other way round
            flat = dy.reshape(shape[0], int(np.prod(a.shape[1:-1])), int(np.prod(b.shape[1:-1])))
            for own, other, d in ((a, b, flat), (b, a, flat.swapaxes(1, 2))):
                columns = other.reshape(len(other), -1, other.shape[-1]).swapaxes(1, 2)
                found.append(batched_product(np.ascontiguousarray(d), columns, step.num_threads).reshape(own.shape))
            if self.normalize:
                found = [_unit_back(d, v) for d, v in zip(found, moved, strict=True)]
            return [np.moveaxis(d, -1, axis) for d, axis in zip(found, pair, strict=True)]

        return (y.reshape(-1, 1) if y.ndim == 1 else y), None, back


def _unit(x: Array) -> Array:
    """x over its length along the last axis."""
    square = np.square(x).sum(axis=-1, keepdims=True)
    return np.asarray(x / np.sqrt(np.maximum(square, np.float32(1e-12))))


def _unit_back(dy: Array, x: Array) -> Array:
    """dx of `_unit`."""
    square = np.square(x).sum(axis=-1, keepdims=True)
    length = np.sqrt(np.maximum(square, np.float32(1e-12)))
    along = (dy * x).sum(axis=-1, keepdims=True) / np.square(length)
    return np.asarray((dy - np.where(square > 1e-12, x * along, np.float32(0.0))) / length)


def batched_product(a: Array, b: Array, num_threads: int | None) -> Array:
    """y[n, …, …] = Σ_k a[n, …, k] · b[n, …, k], without BLAS."""
    if a.ndim == 2 or b.ndim == 2:
        left = a if b.ndim == 2 else a.reshape(a.shape[0], *[1] * (b.ndim - 2), a.shape[-1])
        right = b if a.ndim == 2 else b.reshape(b.shape[0], *[1] * (a.ndim - 2), b.shape[-1])
        return np.asarray((left * right).sum(axis=-1))
    k = a.shape[-1]
    y = np.empty((a.shape[0], *a.shape[1:-1], *b.shape[1:-1]), np.float32)
    for row, (left, right) in enumerate(zip(a, b, strict=True)):
        packed = ops.pack_dense(np.ascontiguousarray(right.reshape(-1, k)))
        product = ops.dense(np.ascontiguousarray(left.reshape(-1, k)), packed)
        y[row] = product.reshape(y.shape[1:])
    return y


def same_rank(arrays: list[Array]) -> list[Array]:
    """Lower ranks get axes of size 1 after the batch, as Keras' merges do."""
    rank = max(a.ndim for a in arrays)
    return [a if a.ndim in (0, rank) else a.reshape(a.shape[0], *[1] * (rank - a.ndim), *a.shape[1:]) for a in arrays]


def _or_masks(masks: list[Any]) -> Any:
    return None if any(m is None for m in masks) else reduce(np.logical_or, masks)
