"""What a layer is: a name, its weights as Keras stores them, and one call on arrays and masks.

Array dimensions: N rows, T time steps, I input features, U units.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..formats.untrusted import FormatError
from .training_step import Back, TrainingStep

if TYPE_CHECKING:
    from .reader import Reader

Array = NDArray[Any]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Dialect:
    """What the Keras version of a file decides about its layers.

    Parameters
    ----------
    version
        Keras version, e.g. ``(2, 2)``. Hand-made layers follow the newest Keras.
    team
        True for keras-team Keras (≤ 2.3), False for ``tf.keras`` and for Keras 3.
    """

    version: tuple[int, int] = (3, 15)
    team: bool = False

    @classmethod
    def of(cls, text: str) -> Dialect:
        """The dialect of a ``keras_version`` such as ``"2.2.4-tf"``; "" is the oldest."""
        numbers: list[int] = []
        for part in text.split("-")[0].split(".")[:2]:
            if not part.isdigit():
                break
            numbers.append(int(part))
        major = numbers[0] if numbers else 2
        minor = numbers[1] if len(numbers) > 1 else 0
        # tf.keras called itself 2.1.6-tf … 2.3.0-tf, then 2.4.0 onwards without the suffix.
        team = "-tf" not in text and (major, minor) < (2, 4)
        return cls((major, minor), team)

    @property
    def hard_sigmoid(self) -> tuple[str, float, float]:
        """clip(0.2 x + 0.5) up to Keras 2, clip(x / 6 + 0.5) from Keras 3."""
        return ("hard_sigmoid", 1.0 / 6.0 if self.version[0] >= 3 else 0.2, 0.5)

    @property
    def default_recurrent_activation(self) -> str:
        """hard_sigmoid in keras-team Keras before 2.3, sigmoid after and elsewhere."""
        return "hard_sigmoid" if self.team and self.version < (2, 3) else "sigmoid"

    @property
    def merges_or(self) -> bool:
        """Merge layers OR their masks from Keras 3.4; before, they AND those that exist."""
        return self.version >= (3, 4)

    @property
    def state_hides_mask(self) -> bool:
        """Keras 3 fills in a mask only for layers called on a single tensor: a GRU that is called
        with an initial state runs without one (and still hands it on)."""
        return self.version[0] >= 3

    @property
    def leading_state(self) -> bool:
        """Leading masked steps give the initial state (keras-team ≤ 2.2), not 0."""
        return self.team and self.version < (2, 3)

    @property
    def stored_state_wins(self) -> bool:
        """tf.keras 2 ignores a given initial state once a stateful layer's own is not 0."""
        return not self.team and self.version[0] < 3

    @property
    def bidirectional_zeroes(self) -> bool:
        """Bidirectional sets zero_output_for_mask; keras-team's repeats the last output."""
        return not self.team


NEWEST = Dialect()
_BUILDING = threading.Lock()
_DRAWS: ContextVar[np.random.Generator | None] = ContextVar("fastgru_initial_weights", default=None)


@contextmanager
def initial_weights_from(seed: int) -> Iterator[None]:
    """Inside, initial weights are drawn from a generator with this seed."""
    token = _DRAWS.set(np.random.default_rng(seed))
    try:
        yield
    finally:
        _DRAWS.reset(token)


class Layer:
    """A layer: Keras' arguments by Keras' names, weights in Keras' layout.

    Parameters
    ----------
    name
        Unique within its model; a model names the layers that have none.
    """

    #: The arguments that a Keras config may carry for this class.
    arguments: tuple[str, ...] = ()
    #: The names of call arguments after the first, in Keras' order.
    call_arguments: tuple[str, ...] = ("training", "mask")

    def __init__(self, name: str | None = None) -> None:
        self.name = name or ""
        self.weights: dict[str, Array] = {}
        self.ready = False
        self._trainable = True

    # -- made from a file ------------------------------------------------------------------

    @classmethod
    def from_config(cls, config: Mapping[str, Any], reader: Reader) -> Layer:
        """The layer that a Keras config describes; unknown (training) arguments are left out."""
        known = {key: config[key] for key in cls.arguments if key in config}
        return cls(name=config.get("name"), **known)

    def get_config(self) -> dict[str, Any]:
        """Keras' arguments, from which `from_config` makes the same layer."""
        return {"name": self.name, **{key: getattr(self, key) for key in self.arguments}}

    def class_name(self) -> str:
        """The name this layer has in Keras configs."""
        return type(self).__name__

    # -- weights ---------------------------------------------------------------------------

    def weight_names(self) -> tuple[str, ...]:
        """Names of this layer's own weights in the order in which Keras stores them."""
        return ()

    def parts(self) -> dict[str, Layer]:
        """The layers inside this one, by the path under which a file keeps their weights."""
        return {}

    def load(self, tensors: Mapping[str, Array], path: str, file: str = "") -> None:
        """Take the weights named ``path/…`` out of ``tensors``.

        Raises
        ------
        FormatError
            When a tensor is missing or has another shape.
        """
        names = self.weight_names()
        found: dict[str, Array] = {}
        for name in names:
            key = f"{path}/{name}"
            if key not in tensors:
                have = sorted(k for k in tensors if k.startswith(f"{path}/")) or sorted(tensors)
                raise FormatError(
                    f"{file}: layer {path!r} ({self.class_name()}): expected a tensor {key!r}, "
                    f"found {', '.join(have[:8]) or 'none'}; the file lacks weights that its "
                    "config needs"
                )
            found[name] = tensors[key]
        for part, layer in self.parts().items():
            layer.load(tensors, f"{path}/{part}", file)
        try:
            self.assign(found)
        except ValueError as error:
            raise FormatError(f"{file}: layer {path!r}: {error}") from error

    def tensors(self, path: str) -> dict[str, Array]:
        """All weights, by the names under which `load` finds them."""
        found = {f"{path}/{name}": value for name, value in self.weights.items()}
        for part, layer in self.parts().items():
            found.update(layer.tensors(f"{path}/{part}"))
        return found

    def get_weights(self) -> list[Array]:
        """Copies of the weights in Keras' order and layout, as ``keras.Layer.get_weights()``."""
        own = [np.array(self.weights[name]) for name in self.weight_names() if name in self.weights]
        return own + [w for part in self.parts().values() for w in part.get_weights()]

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Set all weights, in Keras' order and layout, as ``keras.Layer.set_weights()``; they are copied."""
        left = self._take([np.array(w) for w in weights])
        if left:
            raise ValueError(f"layer {self.name!r}: expected {len(weights) - len(left)} weights, found {len(weights)}")

    def _take(self, weights: list[Array]) -> list[Array]:
        names = self.weight_names()
        if len(weights) < len(names):
            raise ValueError(
                f"layer {self.name!r} ({self.class_name()}): expected {len(names)} weights "
                f"{list(names)}, found {len(weights)}"
            )
        rest = weights[len(names) :]
        for part in self.parts().values():
            rest = part._take(rest)
        self.assign(dict(zip(names, weights, strict=False)))
        return rest

    def assign(self, weights: Mapping[str, Array]) -> None:
        """Check and keep ``weights``, then pack them for scoring."""
        self.check(weights)
        self.weights = dict(weights)
        self.prepare()
        self.ready = True

    def check(self, weights: Mapping[str, Array]) -> None:
        """Raise ValueError naming tensor, expected and found shape."""

    def prepare(self) -> None:
        """Put the weights into the form in which the kernels read them, once."""

    def build(self, shape: Shape, rng: np.random.Generator) -> None:
        """Draw initial weights for inputs of ``shape`` as Keras' default initialisers do."""
        self.assign({})

    def count_params(self) -> int:
        """The number of parameters, those of inner layers included."""
        own = sum(int(w.size) for w in self.weights.values())
        return own + sum(part.count_params() for part in self.parts().values())

    # -- scoring ---------------------------------------------------------------------------

    def forward(self, x: Any, mask: Any, num_threads: int | None, initial_state: Any = None) -> tuple[Any, Any]:
        """Output and output mask. ``x`` is an array, or a list where the layer takes several."""
        raise NotImplementedError

    def ensure_ready(self, x: Any) -> None:
        """Draw initial weights when none were given, once, whichever thread comes first."""
        if not self.ready:
            first = x[0] if isinstance(x, (list, tuple)) else x
            with _BUILDING:
                if not self.ready:
                    self.build(np.shape(first), _DRAWS.get() or np.random.default_rng())

    def __call__(
        self,
        x: Any,
        mask: Any = None,
        *,
        initial_state: Any = None,
        num_threads: int | None = None,
    ) -> Any:
        """Score ``x`` (an array, or a list of arrays); returns the output without its mask."""
        values = [np.asarray(v) for v in x] if isinstance(x, (list, tuple)) else np.asarray(x)
        self.ensure_ready(values)
        if mask is not None and not isinstance(x, (list, tuple)):
            mask = np.asarray(mask).astype(bool)
        return self.forward(values, mask, num_threads, initial_state)[0]

    # -- training --------------------------------------------------------------------------

    @property
    def trainable(self) -> bool:
        """Whether training moves the weights; setting it sets it for the layers inside too, as in Keras."""
        return self._trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        self._trainable = bool(value)
        for part in self.parts().values():
            part.trainable = value

    def trainable_names(self) -> tuple[str, ...]:
        """The own weights that get gradients, in Keras' order."""
        return self.weight_names() if self.trainable else ()

    def learns(self) -> bool:
        """Whether this layer or one inside it has weights that get gradients."""
        return bool(self.trainable_names()) or any(part.learns() for part in self.parts().values())

    def untrainable(self, through: bool = False) -> str:
        """Why no gradient passes, naming the layer; empty where one does. ``through``: the inputs' is wanted too."""
        if type(self).train is Layer.train:
            return f"cannot train through layer {self.name!r} ({self.class_name()}): it has no backward pass here"
        return next(filter(None, (part.untrainable(through) for part in self.parts().values())), "")

    def train(self, x: Any, mask: Any, step: TrainingStep, initial_state: Any = None) -> tuple[Any, Any, Back]:
        """`forward` as in training (dropout, statistics of the batch), and the way back.

        Returns
        -------
        y, mask
            As `forward` returns them.
        back
            Called at most once with the gradient of y (of a list: None where an output has none). It adds the
            gradients of the weights to ``step`` and returns that of x in the structure of x, None for what has none;
            with an ``initial_state`` a pair: that, and a list of the states' gradients.
        """
        raise ValueError(self.untrainable())

    def output_count(self) -> int:
        """How many arrays a call returns."""
        return 1

    def describe(self) -> str:
        """One line on what varies between layers of this class."""
        return ""

    def reset_states(self) -> None:
        """Forget the states of stateful layers."""
        for part in self.parts().values():
            part.reset_states()

    def reset_state(self) -> None:
        """Keras 3's other name of `reset_states`."""
        self.reset_states()


def as_float32(x: Any) -> Array:
    """``x`` as float32; an array that is float32 already is not copied."""
    array: Array = np.asarray(x)
    return array if array.dtype == np.float32 else array.astype(np.float32)


def expect_shape(name: str, array: Array, expected: Shape) -> None:
    """Raise ValueError unless ``array`` has the shape ``expected``."""
    if array.shape != expected:
        raise ValueError(f"{name}: expected shape {expected}, found {array.shape}")


def glorot_uniform(rng: np.random.Generator, shape: Shape) -> Array:
    """Uniform in ±√(6 / (fan_in + fan_out)): Keras' default for kernels (Glorot, 2010)."""
    limit = np.sqrt(6.0 / max(1, shape[0] + shape[-1]))
    return rng.uniform(-limit, limit, shape).astype(np.float32)
