"""What one node of an ONNX graph is: an operator's function on arrays, with the node's attributes, as a layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .base import Array, Layer
from .onnx_packs import Packs

#: (node, input, …) → an array, or a list of them. An input that is left out is None.
Function = Callable[..., Any]


_FLOAT = np.dtype(np.float32)


class Computed:
    """Stands for an input that is known only when the graph runs."""


@dataclass(frozen=True)
class NodeSpec:
    """What a file says of one node, beside the values that it gets.

    Attributes
    ----------
    name, op : str
        Its own name and its operator's.
    opset : int
        The version of the standard operators, which decides what attributes and inputs mean.
    attributes : mapping
        Plain numbers, strings and lists of them.
    outputs : tuple of bool
        For each output, whether somebody needs it.
    """

    name: str
    op: str
    opset: int
    attributes: Mapping[str, Any]
    outputs: tuple[bool, ...] = (True,)

    def integer(self, key: str, default: int) -> int:
        """An attribute that is a whole number."""
        value = self.attributes.get(key, default)
        if type(value) is not int:
            raise ValueError(f"attribute {key}: expected a whole number, found {value!r:.80}")
        return value

    def number(self, key: str, default: float) -> float:
        """An attribute that is a number."""
        value = self.attributes.get(key, default)
        if type(value) not in (int, float):
            raise ValueError(f"attribute {key}: expected a number, found {value!r:.80}")
        return float(value)

    def text(self, key: str, default: str) -> str:
        """An attribute that is a word."""
        value = self.attributes.get(key, default)
        if type(value) is not str:
            raise ValueError(f"attribute {key}: expected text, found {value!r:.80}")
        return value

    def integers(self, key: str) -> tuple[int, ...] | None:
        """An attribute that is a list of whole numbers; None where it is left out."""
        value = self.attributes.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or any(type(v) is not int for v in value):
            raise ValueError(f"attribute {key}: expected whole numbers, found {value!r:.80}")
        return tuple(value)

    def listed(self, key: str, kinds: tuple[type, ...]) -> list[Any]:
        """An attribute that is a list of elements of some types; empty where it is left out."""
        value = self.attributes.get(key, [])
        if not isinstance(value, list) or any(type(v) not in kinds for v in value):
            raise ValueError(f"attribute {key}: expected a list, found {value!r:.80}")
        return value


VARIADIC = 1 << 20  # inputs or outputs of an operator that takes any number


@dataclass(frozen=True)
class Operator:
    """A row of the table of operators.

    Attributes
    ----------
    run : Function
    inputs : (fewest, most)
        How many inputs it takes.
    attributes : tuple of str
        The attributes that it knows. A node with another one is refused: it may change what the node means.
    outputs : int
        The most outputs that it gives.
    rearranges : bool
        Its outputs hold no more elements than its inputs together, so that it can run once, at load, on constants.
    optional : tuple of int
        Where it takes any number of inputs: the places of those that may be left out nevertheless.
    """

    run: Function
    inputs: tuple[int, int]
    attributes: tuple[str, ...] = ()
    outputs: int = 1
    rearranges: bool = False
    optional: tuple[int, ...] = ()


class OnnxNode(Layer):
    """One node: runs its operator's function and names itself in errors."""

    def __init__(self, spec: NodeSpec, operator: Operator) -> None:
        super().__init__(spec.name)
        self.spec = spec
        self.operator = operator
        self.floats = 0  # among the constants that it is given
        self.ready = True

    def class_name(self) -> str:
        return self.spec.op

    def take_constants(self, inputs: Sequence[Array | None | Computed], packs: Packs) -> None:
        """Prepare what can be prepared once, given the inputs that are known: constants, and None for those left out.

        ``packs`` is the graph's, whose other nodes may have the same constants.

        Raises
        ------
        ValueError
            For constants and attributes that do not fit each other.
        """

    def take_bodies(self, bodies: Mapping[str, Any]) -> None:
        """Take the graphs in the attributes, which few operators have.

        Raises
        ------
        ValueError
            For other ones than the operator's, or of other numbers of inputs and outputs.
        """
        if bodies:
            raise ValueError(f"expected no graphs in attributes, found {sorted(bodies)}")

    def forward(self, x: Any, mask: Any, num_threads: int | None, initial_state: Any = None) -> tuple[Any, Any]:
        with np.errstate(all="ignore"):  # inf and NaN are results, as in any ONNX runtime
            return self.step(x, num_threads), None

    def step(self, x: Sequence[Any], num_threads: int | None) -> Any:
        """`run`, its outputs as arrays, its errors with the node's name; NumPy's warnings are the caller's."""
        try:
            y = self.run(x, num_threads)
        except (ValueError, TypeError, IndexError, OverflowError, MemoryError) as error:
            shapes = ", ".join("–" if v is None else f"{v.dtype} {v.shape}" for v in x)
            raise ValueError(f"{self.where()} on inputs of {shapes}: {error}") from error
        return [_float32(v) for v in y] if isinstance(y, (list, tuple)) else _float32(y)

    def run(self, x: Sequence[Any], num_threads: int | None) -> Any:
        """The output, or a list of them."""
        return self.operator.run(self.spec, *x)

    def count_params(self) -> int:
        return self.floats

    def where(self) -> str:
        """How errors name the node."""
        return f"node {self.name!r} ({self.spec.op})"

    def describe(self) -> str:
        shown = {key: value for key, value in self.spec.attributes.items() if not isinstance(value, dict)}
        return ", ".join(f"{key} {value}" for key, value in shown.items())


def _float32(value: Any) -> Any:
    """An array (NumPy gives scalars for arrays without axes), every float as float32."""
    if value is None or (type(value) is np.ndarray and value.dtype == _FLOAT):
        return value
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype.kind == "f" and array.dtype != np.float32 else array
