"""GRUCell: the weights and equations of one GRU, which `RNN` and `GRU` run over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import gates, ops
from .._core.isa import check_activation
from .._core.packing import transposed
from ..checks import size
from ..gradients import check_trainable
from .activations import gate_spec
from .base import NEWEST, Array, Dialect, Layer, Shape, as_float32, expect_shape, glorot_uniform
from .dropout import plain_rate, plain_seed
from .training_step import TrainingStep

if TYPE_CHECKING:
    from .reader import Reader


class GRUCell(Layer):
    """One GRU's weights and equations; `RNN` runs it over time.

    Parameters
    ----------
    units
        H.
    activation, recurrent_activation
        A Keras name or ``(name, alpha, beta)``. hard_sigmoid is clip(x/6 + .5), as in Keras 3.
    reset_after
        Apply the reset gate after (True) or before (False) the recurrent product.
    update_gate
        "old": z keeps the old state (Keras, PyTorch); "new": z admits the new one (Chung, 2014).
    dropout, recurrent_dropout
        In training: the rates at which inputs, and states on their way into the products, are dropped, one mask for all
        steps of a row (Gal and Ghahramani, 2016). As in Keras the gates share the inputs' mask, but with
        recurrent_dropout, or implementation 1, each gate has masks of its own.
    seed
        As in `Dropout`.
    """

    arguments = (
        "units",
        "activation",
        "recurrent_activation",
        "use_bias",
        "reset_after",
        "update_gate",
        "dropout",
        "recurrent_dropout",
        "seed",
        "implementation",
    )

    def __init__(
        self,
        units: int,
        activation: Any = "tanh",
        recurrent_activation: Any = "sigmoid",
        use_bias: bool = True,
        reset_after: bool = True,
        name: str | None = None,
        *,
        update_gate: str = "old",
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        seed: int | None = None,
        implementation: int = 2,
        dialect: Dialect = NEWEST,
    ) -> None:
        super().__init__(name)
        self.units = size(units, "units")
        self.activation = activation
        self.recurrent_activation = recurrent_activation
        self.use_bias = bool(use_bias)
        self.reset_after = bool(reset_after)
        self.update_gate = update_gate
        self.dropout = min(1.0, max(0.0, float(dropout)))
        self.recurrent_dropout = min(1.0, max(0.0, float(recurrent_dropout)))
        self.seed = seed
        self.implementation = int(implementation)
        where = f"layer {self.name!r} (GRU)"
        self._activation = gate_spec(activation, dialect, where)
        self._recurrent_activation = gate_spec(recurrent_activation, dialect, where)
        self.cudnn = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any], reader: Reader) -> GRUCell:
        return cls(
            config["units"],
            config.get("activation", "tanh"),
            config.get("recurrent_activation", reader.dialect.default_recurrent_activation),
            config.get("use_bias", True),
            # The key exists since keras-team 2.1.5; files without it are reset-before.
            config.get("reset_after", False),
            config.get("name"),
            update_gate=config.get("update_gate", "old"),
            dropout=plain_rate(config.get("dropout")),
            recurrent_dropout=plain_rate(config.get("recurrent_dropout")),
            seed=plain_seed(config.get("seed")),
            implementation=2 if config.get("implementation", 2) in (0, 2) else 1,
            dialect=reader.dialect,
        )

    def weight_names(self) -> tuple[str, ...]:
        names = ("kernel", "recurrent_kernel")
        return (*names, "bias") if self.use_bias else names

    def check(self, weights: Mapping[str, Array]) -> None:
        h = self.units
        kernel = weights["kernel"]
        expect_shape("kernel", kernel, (kernel.shape[0] if kernel.ndim else 0, 3 * h))
        expect_shape("recurrent_kernel", weights["recurrent_kernel"], (h, 3 * h))
        if self.use_bias:
            self._check_bias(weights["bias"])

    def _check_bias(self, bias: Array) -> None:
        h = self.units
        # Keras' rule: (2, 3H) reset-after, (3H,) reset-before, (6H,) written by CuDNNGRU.
        if bias.shape == (6 * h,) and self.reset_after:
            self.cudnn = True
            return
        expected = (6 * h,) if self.cudnn else (2, 3 * h) if self.reset_after else (3 * h,)
        if bias.shape != expected:
            kinds = {(2, 3 * h): "reset_after=True", (3 * h,): "reset_after=False"}
            found = kinds.get(bias.shape, "CuDNNGRU" if bias.shape == (6 * h,) else "no GRU")
            raise ValueError(
                f"bias: expected {expected} because the config says "
                f"reset_after={self.reset_after}, found {bias.shape}, which belongs to {found}; "
                "config and weights contradict each other"
            )

    def prepare(self) -> None:
        self.width = int(self.weights["kernel"].shape[0])
        self.packed = ops.pack_gru(
            *self.canonical(),
            reset_after=self.reset_after,
            update_gate=self.update_gate,
            activation=self._activation,
            recurrent_activation=self._recurrent_activation,
        )

    def canonical(self) -> gates.Weights:
        """The weights in PyTorch's layout."""
        w = {name: as_float32(value) for name, value in self.weights.items()}
        if self.cudnn:
            return gates.from_cudnn_gru(w["kernel"], w["recurrent_kernel"], w["bias"])
        return gates.from_keras(w["kernel"], w["recurrent_kernel"], w.get("bias"), reset_after=self.reset_after)

    def add_gradients(self, step: TrainingStep, owner: Layer, found: gates.Weights) -> None:
        """Leave gradients in PyTorch's layout as those of the weights that ``owner`` keeps in Keras'."""
        if not owner.trainable:
            return
        if self.cudnn:
            given: tuple[Array | None, ...] = gates.to_cudnn_gru(found)
        else:
            given = gates.to_keras(found, reset_after=self.reset_after)
        for name, gradient in zip(("kernel", "recurrent_kernel", "bias"), given, strict=True):
            if gradient is not None:
                step.add(owner, name, transposed(gradient.T) if gradient.ndim == 2 else gradient)

    def untrainable(self, through: bool = False) -> str:
        where = f"cannot train through layer {self.name!r} (GRU)"
        if 1.0 in (self.dropout, self.recurrent_dropout):
            return f"{where}: dropout: expected rates below 1, which drop something and keep something"
        try:
            check_trainable(check_activation(self._activation), check_activation(self._recurrent_activation))
        except ValueError as error:
            return f"{where}: {error}"
        return ""

    def build(self, shape: Shape, rng: np.random.Generator) -> None:
        h = self.units
        # Orthogonal recurrent kernel: Keras' default (Saxe et al., 2014).
        q, r = np.linalg.qr(rng.standard_normal((3 * h, h)))
        weights = {
            "kernel": glorot_uniform(rng, (shape[-1], 3 * h)),
            "recurrent_kernel": (q * np.sign(np.diag(r))).T.astype(np.float32),
        }
        if self.use_bias:
            weights["bias"] = np.zeros((2, 3 * h) if self.reset_after else 3 * h, np.float32)
        self.assign(weights)

    def describe(self) -> str:
        parts = [f"{self.width if self.ready else '?'} → {self.units}"]
        parts.append("CuDNN" if self.cudnn else f"reset_{'after' if self.reset_after else 'before'}")
        for label, spec, usual in (
            ("", self._activation, "tanh"),
            ("gates ", self._recurrent_activation, "sigmoid"),
        ):
            if spec != usual:
                shown = spec if isinstance(spec, str) else f"{spec[0]}({spec[1]:.3g}, {spec[2]:g})"
                parts.append(label + shown)
        return ", ".join(parts)


class StackedRNNCells:
    """Several cells that `RNN` runs as one, each feeding the next at every step."""

    def __init__(self, cells: Sequence[GRUCell], name: str | None = None) -> None:
        self.cells = list(cells)
        self.name = name or ""
