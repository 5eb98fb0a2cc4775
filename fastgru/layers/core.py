"""Input, Embedding, Masking, Dense and TimeDistributed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import ops
from ..checks import size
from . import activations
from .base import NEWEST, Array, Dialect, Layer, Shape, as_float32, expect_shape, glorot_uniform
from .normalization import BatchNormalization
from .training_step import Back, SparseRows, TrainingStep

if TYPE_CHECKING:
    from .reader import Reader


class Input(Layer):
    """A model's input: its shape without the batch, and its dtype.

    Parameters
    ----------
    shape
        Sizes after the batch; None where any size fits.
    """

    def __init__(
        self,
        shape: Sequence[int | None] | None = None,
        dtype: str = "float32",
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        self.shape = None if shape is None else tuple(shape)
        self.dtype = dtype
        #: The layers behind it convert by themselves, so that large ids stay exact.
        self.exact = False
        self.ready = True

    @classmethod
    def from_config(cls, config: Mapping[str, Any], reader: Reader) -> Layer:
        whole = config.get("batch_shape") or config.get("batch_input_shape")
        dtype = config.get("dtype") or "float32"
        return cls(None if whole is None else whole[1:], str(dtype), config.get("name"))

    def get_config(self) -> dict[str, Any]:
        shape = None if self.shape is None else [None, *self.shape]
        return {"name": self.name, "batch_shape": shape, "dtype": self.dtype}

    def class_name(self) -> str:
        return "InputLayer"

    def cast(self, x: Array) -> Array:
        """``x`` in the declared dtype, as Keras casts inputs; half precisions become float32."""
        if self.dtype.startswith(("int", "uint")):
            return x if x.dtype.kind in "iu" else _whole(x, f"input {self.name!r}: the values")
        if self.dtype == "bool":
            return x.astype(bool)
        return x if self.exact else as_float32(x)

    def forward(self, x: Any, mask: Any, num_threads: int | None, initial_state: Any = None) -> tuple[Any, Any]:
        return x, mask

    def train(self, x: Any, mask: Any, step: TrainingStep, initial_state: Any = None) -> tuple[Any, Any, Back]:
        return x, mask, lambda dy: dy

    def describe(self) -> str:
        return f"{self.dtype} {'?' if self.shape is None else (None, *self.shape)}"


class Identity(Layer):
    """A layer that scoring leaves out."""

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name)
        self.ready = True

    def forward(self, x: Any, mask: Any, num_threads: int | None, initial_state: Any = None) -> tuple[Any, Any]:
        return x, mask

    def train(self, x: Any, mask: Any, step: TrainingStep, initial_state: Any = None) -> tuple[Any, Any, Back]:
        return x, mask, lambda dy: dy


def _whole(x: Array, where: str) -> Array:
    """``x`` as int64, truncated as in Keras. What int64 can't hold raises here: a cast would make up a number."""
    if x.dtype.kind == "f" and x.size:
        values = x.astype(np.float64, copy=False)
        worst = values.flat[np.abs(values).argmax()]  # the first NaN, if there is one
        if not abs(worst) < 2.0**63:
            found = "NaN" if np.isnan(worst) else f"{worst:g}"
            raise ValueError(f"{where} contain {found}; expected whole numbers")
    return x.astype(np.int64)


class Embedding(Layer):
    """Rows of a table. Ids outside ``0 … input_dim − 1`` raise; none wraps around.

    Ids may come as floats: fractions are cut off, as in Keras (2.7 is id 2), and NaN and inf raise.

    Parameters
    ----------
    input_dim, output_dim
        Rows and columns of the table.
    mask_zero
        Id 0 marks a padded step: the mask of the layers after it.
    """

    arguments = ("input_dim", "output_dim", "mask_zero")

    def __init__(self, input_dim: int, output_dim: int, mask_zero: bool = False, name: str | None = None) -> None:
        super().__init__(name)
        self.input_dim = int(input_dim)
        self.output_dim = int(output_dim)
        self.mask_zero = bool(mask_zero)

    def weight_names(self) -> tuple[str, ...]:
        return ("embeddings",)

    def check(self, weights: Mapping[str, Array]) -> None:
        expect_shape("embeddings", weights["embeddings"], (self.input_dim, self.output_dim))

    def prepare(self) -> None:
        self._table = np.ascontiguousarray(self.weights["embeddings"], np.float32)

    def build(self, shape: Shape, rng: np.random.Generator) -> None:
        table = rng.uniform(-0.05, 0.05, (self.input_dim, self.output_dim))
        self.assign({"embeddings": table.astype(np.float32)})

    def forward(self, x: Any, mask: Any, num_threads: int | None, initial_state: Any = None) -> tuple[Any, Any]:
        ids = self._ids(x)
        # Keras drops a mask here unless mask_zero; one that a caller gave explicitly is kept,
        # because ignoring the lengths that somebody passed would be a silent error.
        return self._table[ids], (ids != 0 if self.mask_zero else mask)

    def train(self, x: Any, mask: Any, step: TrainingStep, initial_state: Any = None) -> tuple[Any, Any, Back]:
        ids = self._ids(x)

        def back(dy: Array) -> None:
            if self.trainable:
                flat = ids.reshape(-1).astype(np.int64, copy=False)
                rows = SparseRows.summed(flat, dy.reshape(-1, self.output_dim), self.input_dim)
                step.add(self, "embeddings", rows)

        return *self.forward(ids, mask, None), back

    def _ids(self, x: Array) -> Array:
        if x.dtype.kind not in "iu":
            if x.dtype.kind not in "fb":
                raise TypeError(f"layer {self.name!r} (Embedding): expected integer ids, found {x.dtype}")
            x = _whole(x, f"layer {self.name!r} (Embedding): ids")
        if x.size:
            low, high = int(x.min()), int(x.max())
            if low < 0 or high >= self.input_dim:
                raise ValueError(
                    f"layer {self.name!r} (Embedding): expected ids in 0 … {self.input_dim - 1}, "
                    f"found {low if low < 0 else high}"
                )
        return x

    def describe(self) -> str:
        return f"{self.input_dim} → {self.output_dim}" + (", mask_zero" * self.mask_zero)


class Masking(Layer):
    """Mark steps whose features all equal ``mask_value``, and zero them (NaN counts as valid)."""

    arguments = ("mask_value",)

    def __init__(self, mask_value: float = 0.0, name: str | None = None) -> None:
        super().__init__(name)
        number = activations._number(mask_value)
        self.mask_value = 0.0 if number is None else number
        self.ready = True

    def forward(self, x: Any, mask: Any, num_threads: int | None, initial_state: Any = None) -> tuple[Any, Any]:
        x = as_float32(x)
        valid = (x != np.float32(self.mask_value)).any(axis=-1)
        return np.where(valid[..., None], x, np.float32(0.0)), valid

    def train(self, x: Any, mask: Any, step: TrainingStep, initial_state: Any = None) -> tuple[Any, Any, Back]:
        y, valid = self.forward(x, mask, None)
        return y, valid, lambda dy: np.where(valid[..., None], dy, np.float32(0.0))

    def describe(self) -> str:
        return f"mask_value {self.mask_value:g}"


class Dense(Layer):
    """activation(x · kernel + bias) over the last axis; kernel (I, U), bias (U,)."""

    arguments = ("units", "activation", "use_bias")

    def __init__(
        self,
        units: int,
        activation: Any = None,
        use_bias: bool = True,
        name: str | None = None,
        *,
        dialect: Dialect = NEWEST,
    ) -> None:
        super().__init__(name)
        self.units = size(units, "units")
        self.activation = activation
        self.use_bias = bool(use_bias)
        self._layer = activation if isinstance(activation, Layer) else None
        self._dialect = dialect
        where = f"layer {self.name!r} (Dense)"
        self._apply = None if self._layer else activations.function(activation, dialect, where)
        self._dialect = dialect

    @classmethod
    def from_config(cls, config: Mapping[str, Any], reader: Reader) -> Layer:
        return cls(
            config["units"],
            reader.activation(config.get("activation")),
            config.get("use_bias", True),
            config.get("name"),
            dialect=reader.dialect,
        )

    def weight_names(self) -> tuple[str, ...]:
        return ("kernel", "bias") if self.use_bias else ("kernel",)

    def check(self, weights: Mapping[str, Array]) -> None:
        kernel = weights["kernel"]
        width = kernel.shape[0] if kernel.ndim == 2 else 0
        expect_shape("kernel", kernel, (width, self.units))
        if self.use_bias:
            expect_shape("bias", weights["bias"], (self.units,))

    def prepare(self) -> None:
        kernel = as_float32(self.weights["kernel"])
        bias = as_float32(self.weights["bias"]) if self.use_bias else None
        self._width = kernel.shape[0]
        self._packed = ops.pack_dense(kernel.T, bias)

    def build(self, shape: Shape, rng: np.random.Generator) -> None:
        weights = {"kernel": glorot_uniform(rng, (shape[-1], self.units))}
        if self.use_bias:
            weights["bias"] = np.zeros(self.units, np.float32)
        self.assign(weights)

    def forward(self, x: Any, mask: Any, num_threads: int | None, initial_state: Any = None) -> tuple[Any, Any]:
        y = self._product(x, num_threads)
        if self._layer is not None:
            return self._layer.forward(y, mask, num_threads)[0], mask
        return (y if self._apply is None else self._apply(y)), mask

    def _product(self, x: Any, num_threads: int | None) -> Array:
        if x.shape[-1] != self._width:
            raise ValueError(f"layer {self.name!r} (Dense): expected inputs of width {self._width}, found {x.shape}")
        return ops.dense(x, self._packed, num_threads=num_threads)

    def untrainable(self, through: bool = False) -> str:
        return "" if self._layer is None else self._layer.untrainable()

    def train(self, x: Any, mask: Any, step: TrainingStep, initial_state: Any = None) -> tuple[Any, Any, Back]:
        x, threads = as_float32(x), step.num_threads
        z = self._product(x, threads)
        if self._layer is not None:
            y, _, back_to_z = self._layer.train(z, mask, step)
        else:
            where = f"layer {self.name!r} (Dense)"
            y, back_to_z = activations.trained(self.activation, self._dialect, where)(z)
            step.note_logits(y, z, self.activation)
        kernel = as_float32(self.weights["kernel"])

        def back(dy: Any) -> Array:
            dz = back_to_z(dy)
            if self.trainable:
                step.add(self, "kernel", ops.outer_sum(x, dz, num_threads=threads))
                if self.use_bias:
                    step.add(self, "bias", ops.column_sums(dz))
            return ops.dense(dz, ops.pack_dense(kernel), num_threads=threads)

        return y, mask, back

    def describe(self) -> str:
        shown = self.activation if self._layer is None else self._layer.class_name()
        return f"{self._width if self.ready else '?'} → {self.units}" + (
            f", {shown}" if shown not in (None, "linear") else ""
        )


class TimeDistributed(Layer):
    """Apply a layer to each time step: ``(N, T, …)`` scored as ``(N·T, …)`` rows."""

    def __init__(self, layer: Layer, name: str | None = None, *, dialect: Dialect = NEWEST) -> None:
        super().__init__(name)
        self.layer = layer
        self._dialect = dialect

    @classmethod
    def from_config(cls, config: Mapping[str, Any], reader: Reader) -> Layer:
        return cls(reader.layer(config["layer"]), config.get("name"), dialect=reader.dialect)

    def get_config(self) -> dict[str, Any]:
        inner = {"class_name": self.layer.class_name(), "config": self.layer.get_config()}
        return {"name": self.name, "layer": inner}

    def parts(self) -> dict[str, Layer]:
        return {"layer": self.layer}

    def build(self, shape: Shape, rng: np.random.Generator) -> None:
        self.layer.build((shape[0], *shape[2:]), rng)
        self.assign({})

    def forward(self, x: Any, mask: Any, num_threads: int | None, initial_state: Any = None) -> tuple[Any, Any]:
        if x.ndim < 3:
            raise ValueError(f"layer {self.name!r} (TimeDistributed): expected (N, T, …), found {x.shape}")
        n, t = x.shape[:2]
        y, inner = self.layer.forward(x.reshape(n * t, *x.shape[2:]), None, num_threads)
        if mask is None and inner is not None:
            mask = inner.reshape(n, t, *inner.shape[1:])
        return y.reshape(n, t, *y.shape[1:]), mask

    def train(self, x: Any, mask: Any, step: TrainingStep, initial_state: Any = None) -> tuple[Any, Any, Back]:
        n, t = x.shape[:2]
        shown = None
        if _has_batch_statistics(self.layer):
            if self._dialect.version[0] >= 3:
                return self._train_by_step(x, mask, step)
            shown = None if mask is None else mask.reshape(n * t, *mask.shape[2:])
        y, inner, inner_back = self.layer.train(x.reshape(n * t, *x.shape[2:]), shown, step)
        if mask is None and inner is not None:
            mask = inner.reshape(n, t, *inner.shape[1:])

        def back(dy: Array) -> Array | None:
            dx = inner_back(dy.reshape(y.shape))
            return None if dx is None else dx.reshape(x.shape)

        return y.reshape(n, t, *y.shape[1:]), mask, back

    def _train_by_step(self, x: Array, mask: Any, step: TrainingStep) -> tuple[Any, Any, Back]:
        """Keras 3 calls the layer for one time step after the other: a batch's statistics are then those of a step."""
        calls = [self.layer.train(x[:, t], None if mask is None else mask[:, t], step) for t in range(x.shape[1])]

        def back(dy: Array) -> Array | None:
            dxs = [inner_back(dy[:, t]) for t, (_, _, inner_back) in enumerate(calls)]
            return None if dxs[0] is None else np.stack(dxs, axis=1)

        return np.stack([y for y, _, _ in calls], axis=1), mask, back

    def describe(self) -> str:
        return f"{self.layer.class_name()} {self.layer.describe()}".strip()


def _has_batch_statistics(layer: Layer) -> bool:
    """Whether a layer, or one inside it, normalises by what the whole batch holds."""
    if isinstance(layer, BatchNormalization):
        return layer.trainable
    return any(_has_batch_statistics(part) for part in layer.parts().values())
