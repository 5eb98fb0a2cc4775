"""GRUs shaped as in torch.nn: the same arguments, weight names, shapes and results, on NumPy arrays, for inference.

Source of the semantics: torch/nn/modules/rnn.py (PyTorch 2.13).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fastgru import ops
from fastgru._core.stack import Stack
from fastgru._core.stream import Stream
from fastgru.checks import F32, as_array, check_lengths, float32
from fastgru.ops import Activation, PackedGRU

__all__ = ["GRU", "GRUCell"]


def _size(value: Any, name: str) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or value.__index__() < 1:
        raise ValueError(f"{name}: expected a whole number >= 1, found {value!r}")
    return int(value.__index__())


class _Weights:
    """Named weights of one module: shapes fixed at construction, values by load_state_dict."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], hidden_size: int) -> None:
        rng = np.random.default_rng()
        limit = hidden_size**-0.5  # PyTorch's initialisation
        self._shapes = shapes
        self._values: dict[str, F32] = {
            name: rng.uniform(-limit, limit, shape).astype(np.float32) for name, shape in shapes.items()
        }

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the packed weights, which belong to one machine's instruction set."""
        return {name: value for name, value in self.__dict__.items() if name != "_stack"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._pack()

    def state_dict(self) -> dict[str, F32]:
        """Copies of the weights by PyTorch's names, float32."""
        return {name: value.copy() for name, value in self._values.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take the weights from a mapping of PyTorch's names to arrays or tensors; all of them, and no others.

        Raises
        ------
        KeyError
            Names are missing or unknown. Nothing is changed then, nor by the next two.
        TypeError, ValueError
            A weight is no array of numbers, or has another shape.
        """
        missing = [name for name in self._shapes if name not in state_dict]
        unknown = [name for name in state_dict if name not in self._shapes]
        if missing or unknown:
            raise KeyError(f"state_dict: missing {missing or 'none'}, unknown {unknown or 'none'}")
        values = {name: float32(state_dict[name], name, shape).copy() for name, shape in self._shapes.items()}
        self._values = values
        self._pack()

    def _pack(self) -> None:
        raise AssertionError("each module packs its own weights")

    def _packed(self, suffix: str, **variant: Any) -> PackedGRU:
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        return ops.pack_gru(*(self._values.get(name + suffix) for name in names), **variant)


def _shapes(suffix: str, inputs: int, hidden: int, bias: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "weight_ih" + suffix, (3 * hidden, inputs)
    yield "weight_hh" + suffix, (3 * hidden, hidden)
    if bias:
        yield "bias_ih" + suffix, (3 * hidden,)
        yield "bias_hh" + suffix, (3 * hidden,)


class GRU(_Weights):
    """A stack of GRU layers, as torch.nn.GRU.

    Parameters
    ----------
    input_size, hidden_size, num_layers : int >= 1
    bias : bool
    batch_first : bool
        x and y are (N, T, ·) instead of (T, N, ·). A plain attribute, read at each call.
    bidirectional : bool
        Each layer runs both ways; y holds both outputs side by side.
    reset_after, activation, recurrent_activation
        Beyond PyTorch: the variant, as in `fastgru.ops.pack_gru`.

    Examples
    --------
    >>> gru = GRU(3, 5, num_layers=2, batch_first=True)
    >>> y, h_n = gru(np.zeros((4, 7, 3), np.float32))
    >>> y.shape, h_n.shape
    ((4, 7, 5), (2, 4, 5))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        bidirectional: bool = False,
        *,
        reset_after: bool = True,
        activation: Activation = "tanh",
        recurrent_activation: Activation = "sigmoid",
    ) -> None:
        self.input_size, self.hidden_size = _size(input_size, "input_size"), _size(hidden_size, "hidden_size")
        self.num_layers = _size(num_layers, "num_layers")
        self.bias, self.batch_first, self.bidirectional = bool(bias), batch_first, bool(bidirectional)
        self.reset_after, self.activation = bool(reset_after), activation
        self.recurrent_activation = recurrent_activation
        directions = 2 if bidirectional else 1
        self._suffixes = [
            f"_l{layer}{direction}" for layer in range(self.num_layers) for direction in ("", "_reverse")[:directions]
        ]
        shapes: dict[str, tuple[int, ...]] = {}
        for i, suffix in enumerate(self._suffixes):
            inputs = self.input_size if i < directions else directions * self.hidden_size
            shapes.update(_shapes(suffix, inputs, self.hidden_size, self.bias))
        super().__init__(shapes, self.hidden_size)
        self._pack()

    def __repr__(self) -> str:
        extra = "".join(
            f", {name}={getattr(self, name)!r}"
            for name, usual in (("num_layers", 1), ("bias", True), ("bidirectional", False), ("reset_after", True))
            if getattr(self, name) != usual
        )
        return f"GRU({self.input_size}, {self.hidden_size}{extra}, batch_first={self.batch_first})"

    def _pack(self) -> None:
        variant = {
            "reset_after": self.reset_after,
            "activation": self.activation,
            "recurrent_activation": self.recurrent_activation,
        }
        layers = [self._packed(suffix, **variant) for suffix in self._suffixes]
        self._stack = Stack(layers, 2 if self.bidirectional else 1)

    def __call__(
        self, x: Any, h0: Any = None, lengths: Any = None, *, num_threads: int | None = None
    ) -> tuple[F32, F32]:
        """Run the stack; D is 2 if bidirectional, else 1, L is num_layers.

        Parameters
        ----------
        x : (T, N, I), or (N, T, I) with batch_first, or (T, I) for one sequence
        h0 : (L·D, N, H), or (L·D, H) for one sequence, optional
        lengths : (N,), optional
            Valid steps of each row, 0 … T. y is 0 beyond them, and keeps T steps. As if x were packed in PyTorch.
        num_threads : int, optional

        Returns
        -------
        y : float32, as x with D·H in its last axis
        h_n : float32 (L·D, N, H), or (L·D, H) for one sequence

        Raises
        ------
        TypeError, ValueError
            Naming the argument, what was expected and what was found.
        """
        if lengths is None:
            result = self._stack.run(x, h0, None, self.batch_first, num_threads)
            if result is not None:
                return result
        a = as_array(x, "x")
        single, shape = a.ndim == 2, ("N", "T") if self.batch_first else ("T", "N")
        a = float32(a, "x", (("T",) if single else shape) + (self.input_size,))
        rows, steps = (1, a.shape[0]) if single else a.shape[:2] if self.batch_first else a.shape[1::-1]
        if h0 is not None:
            layers, hidden = len(self._suffixes), self.hidden_size
            h0 = float32(h0, "h0", (layers, hidden) if single else (layers, rows, hidden))
        if lengths is not None:
            if single:
                raise ValueError("lengths: expected None for one sequence (2-D x): give x[:length] instead")
            lengths = check_lengths(lengths, rows, steps)
        result = self._stack.run(a, h0, lengths, self.batch_first, num_threads)
        assert result is not None
        return result

    def stream(self, batch_size: int = 1, *, num_threads: int | None = None) -> Stream:
        """A stream of single time steps for `batch_size` sequences, from a zero state.

        Examples
        --------
        >>> stream = GRU(3, 5).stream()
        >>> stream.step(np.zeros((1, 3), np.float32)).shape, stream.state.shape
        ((1, 5), (1, 1, 5))
        """
        if self.bidirectional:
            raise ValueError("stream: a bidirectional GRU needs the whole sequence before its first output")
        rows = _size(batch_size, "batch_size")

        def convert(x: Any) -> F32:
            return float32(x, "x", (rows, self.input_size))

        return Stream(self._stack.layers, rows, convert, num_threads)


class GRUCell(_Weights):
    """One step of one layer, as torch.nn.GRUCell; parameters as in `GRU`.

    Examples
    --------
    >>> cell = GRUCell(3, 5)
    >>> cell(np.zeros((4, 3), np.float32)).shape
    (4, 5)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        reset_after: bool = True,
        activation: Activation = "tanh",
        recurrent_activation: Activation = "sigmoid",
    ) -> None:
        self.input_size, self.hidden_size = _size(input_size, "input_size"), _size(hidden_size, "hidden_size")
        self.bias, self.reset_after = bool(bias), bool(reset_after)
        self.activation, self.recurrent_activation = activation, recurrent_activation
        super().__init__(dict(_shapes("", self.input_size, self.hidden_size, self.bias)), self.hidden_size)
        self._pack()

    def __repr__(self) -> str:
        return f"GRUCell({self.input_size}, {self.hidden_size})"

    def _pack(self) -> None:
        layer = self._packed(
            "",
            reset_after=self.reset_after,
            activation=self.activation,
            recurrent_activation=self.recurrent_activation,
        )
        self._stack = Stack([layer], 1)

    def __call__(self, x: Any, h: Any = None, *, num_threads: int | None = None) -> F32:
        """x (N, I) or (I,), h (N, H) or (H,) or None for zeros -> h' of h's shape, float32."""
        a = as_array(x, "x")
        single = a.ndim == 1
        a = float32(a, "x", (self.input_size,) if single else ("N", self.input_size))
        if h is not None:
            h = float32(h, "h", (self.hidden_size,) if single else (a.shape[0], self.hidden_size))[None]
        # one step of a stack of one: (T=1, N, I), or (T=1, I)
        result = self._stack.run(a[None], h, None, False, num_threads)
        assert result is not None
        new_h: F32 = result[1][0]
        return new_h
