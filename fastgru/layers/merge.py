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


class Add(Merge):
    """The sum of the inputs."""

    def merge(self, arrays: list[Array]) -> Array:
        return reduce(np.add, arrays)


class Subtract(Merge):
    """The first input minus the second."""

    def merge(self, arrays: list[Array]) -> Array:
        if len(arrays) != 2:
            raise ValueError(f"layer {self.name!r} (Subtract): expected 2 inputs, found {len(arrays)}")
        return np.asarray(arrays[0] - arrays[1])


class Average(Merge):
    """The mean of the inputs."""

    def merge(self, arrays: list[Array]) -> Array:
        return np.asarray(reduce(np.add, arrays) / np.float32(len(arrays)))


class Multiply(Merge):
    """The product of the inputs; from Keras 3.4 a masked input counts as 1."""

    def merge(self, arrays: list[Array]) -> Array:
        return reduce(np.multiply, arrays)

    def merge_masked(self, arrays: list[Array], masks: list[Any]) -> Array:
        one, zero = np.float32(1.0), np.float32(0.0)
        shown = [a if m is None else np.where(m[..., None], a, one) for a, m in zip(arrays, masks, strict=True)]
        product = self.merge(shown)
        either = _or_masks(masks)
        return product if either is None else np.where(either[..., None], product, zero)


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


class Minimum(Maximum):
    """The smaller of the inputs; from Keras 3.4 a masked input gives way to the other."""

    def choose(self, a: Array, b: Array) -> Array:
        """One of two."""
        return np.minimum(a, b)


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
        arrays, _ = self.inputs(x, mask)
        if len(arrays) != 2:
            raise ValueError(f"layer {self.name!r} (Dot): expected 2 inputs, found {len(arrays)}")
        pair = [self.axes] * 2 if isinstance(self.axes, int) else self.axes
        moved = []
        for array, axis in zip(arrays, pair, strict=True):
            if not -array.ndim <= axis < array.ndim or axis % array.ndim == 0:
                raise ValueError(
                    f"layer {self.name!r} (Dot): axes: expected axes after the batch, found "
                    f"{self.axes} for inputs {[a.shape for a in arrays]}"
                )
            array = np.moveaxis(array, axis, -1)
            if self.normalize:
                square = np.square(array).sum(axis=-1, keepdims=True)
                array = array / np.sqrt(np.maximum(square, np.float32(1e-12)))
            moved.append(array)
        a, b = moved
        if a.shape[0] != b.shape[0] or a.shape[-1] != b.shape[-1]:
            raise ValueError(
                f"layer {self.name!r} (Dot): axes {self.axes} of inputs {[v.shape for v in arrays]} differ in size"
            )
        y = batched_product(a, b, num_threads)
        return (y.reshape(-1, 1) if y.ndim == 1 else y), None


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
