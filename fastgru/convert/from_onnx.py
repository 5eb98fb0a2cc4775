"""The chain of layers in an ONNX graph, so that Keras and PyTorch can have it.

A graph says less than layers do: what is a Dense layer in Keras is a MatMul and an Add. `as_layers` follows the value
from the graph's input to its output, and keeps account of which axis is which: batch, time, features (and directions,
between a GRU and what joins its halves). Whatever is no such chain is refused by its node.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import layers
from ..formats.untrusted import FormatError
from ..graph.plan import Node, Ref
from ..layers import onnx_gru
from ..layers.base import Array, as_float32
from ..layers.onnx_node import OnnxNode
from ..models import Sequential
from ..models.onnx import OnnxModel
from .from_onnx_gru import halves

__all__ = ["as_layers"]

#: Axes: batch N, time T, features K, directions D, the last step L alone.
Axes = tuple[str, ...]
_AXES = {"N": "batch", "T": "time", "K": "features", "D": "directions", "L": "last step"}
#: Operators that are an activation of Keras' by themselves, with the defaults of their attributes.
_PLAIN = {
    "Relu": "relu",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "Softsign": "softsign",
    "Softplus": "softplus",
    "Selu": "selu",
    "Exp": "exponential",
}
#: What computes the shape of zeros, as exporters do for initial states.
_COUNTING = ("Mul", "Reshape", "Gather", "Unsqueeze", "Squeeze", "Concat", "Slice", "Cast", "Identity")
_MOVING_ZEROS = ("Slice", "Transpose", "Squeeze", "Unsqueeze", "Expand", "Reshape", "Identity", "Cast")


def as_layers(model: OnnxModel) -> Sequential:
    """The layers of a graph that is a chain of them; batch on the first axis of input and output.

    Parameters
    ----------
    model
        A graph of Gather from a table (Embedding), MatMul and Add or Gemm (Dense), GRU with what moves its axes (GRU,
        Bidirectional), activations, ReduceMean and ReduceMax over time (pooling), in one line.

    Raises
    ------
    FormatError
        Naming the node that is none of these, or reads something else than the value before it.
    """
    return _Chain(model).read()


class _Chain:
    def __init__(self, model: OnnxModel) -> None:
        self._model = model
        self._stack: list[layers.Layer] = []
        self._head = -1  # the slot of the value that the layers so far give
        self._axes: Axes = ()
        self._directions = 1
        self._backwards = False  # the value's steps stand in input order, Keras gives them in processing order
        self._counts: set[int] = set()
        self._sizes: dict[str, int] = {}  # of axes, where the file fixes them
        self._products: dict[int, list[Axes]] = {}  # counts that are products of the sizes of axes, for each element
        self._zeros: set[int] = set()
        self._finals: set[int] = set()  # final states of GRUs below the last one
        self._node: OnnxNode | None = None

    def read(self) -> Sequential:
        graph = self._model.graph
        if len(graph.inputs) != 1 or len(graph.outputs) != 1:
            raise self._bad(f"expected one input and one output, found {len(graph.inputs)} and {len(graph.outputs)}")
        end = self._model._ends[0]
        rank = 0 if end.whole is None else len(end.whole)
        whole = end.dtype.startswith(("int", "uint"))
        if rank not in ((1, 2) if whole else (2, 3)):
            raise self._bad(f"input {end.name!r}: expected (N, K), (N, T, K) or ids (N, T), found {rank} axes")
        self._head, self._axes = graph.inputs[0], ("N", "T")[:rank] if whole else (*("N", "T")[: rank - 1], "K")
        self._sizes = {a: n for a, n in zip(self._axes, end.whole or (), strict=True) if isinstance(n, int)}
        for node in graph.nodes:
            assert isinstance(node.layer, OnnxNode)
            self._node = node.layer
            self._step(node, node.layer.spec.op)
        self._node = None
        if graph.outputs[0] != self._head or self._backwards or self._axes not in (("N", "T", "K"), ("N", "K")):
            raise self._bad(f"expected an output (N, T, K) or (N, K) of the last layer, found {self._named()}")
        sizes = [n if isinstance(n, int) else None for n in (end.whole or ())[1:]]
        first = layers.Input(sizes, "int64" if whole else "float32", end.name)
        return Sequential([first, *self._stack], name=self._model.name)

    # -- one node ----------------------------------------------------------------------------

    def _step(self, node: Node, op: str) -> None:
        slots = [v.slot for v in node.x if isinstance(v, Ref)]
        given = [slot for _, slot in node.outputs]
        if op == "Shape" or (op in _COUNTING and slots and self._counts.issuperset(slots)):
            self._counts.update(given)
            self._products.update(dict.fromkeys(given, self._counted(node, op)))
            return
        if self._is_zeros(node, op, slots):
            self._zeros.update(given)
            return
        known = {
            self._head,
            *self._zeros,
            *(self._counts if op == "Reshape" else ()),
            *(self._finals if op == "Concat" else ()),
        }
        if self._head not in slots or not known.issuperset(slots):
            raise self._bad("expected a node that reads the value before it and constants; this graph branches here")
        move = _MOVES.get(op)
        if move is None and self._backwards:
            raise self._bad("expected the steps of a reverse GRU turned round first, as Keras gives them")
        act = move or _LAYERS.get(op)
        if act is None:
            listed = ", ".join(sorted({*_MOVES, *_LAYERS}))
            raise self._bad(f"expected an operator that is a layer or part of one ({listed})")
        try:
            act(self, node)
        except (IndexError, ValueError, TypeError) as error:  # numbers from the file that fit no axis, no layer
            raise error if isinstance(error, FormatError) else self._bad(str(error)) from error
        used = [slot for index, slot in node.outputs if self._node is not None and self._node.spec.outputs[index]]
        self._finals.update(used[1:])  # a GRU's final states beside its sequence
        self._head = used[0]

    def _is_zeros(self, node: Node, op: str, slots: list[int]) -> bool:
        """Whether the node makes zeros, or moves them about."""
        spec = self._spec()
        if op == "ConstantOfShape":
            value = spec.attributes.get("value")
            return value is None or not any(value["values"])
        if op not in _MOVING_ZEROS or not set(slots) <= self._zeros | self._counts:
            return False
        first = node.x[0]
        return first.slot in self._zeros if isinstance(first, Ref) else not np.any(first)

    def _spec(self) -> Any:
        assert self._node is not None
        return self._node.spec

    def _bad(self, why: str) -> FormatError:
        where = "" if self._node is None else f"node {self._node.name!r} ({self._node.spec.op}): "
        return FormatError(
            f"{self._model.name}: {where}{why}; only a chain of layers leaves ONNX for another format. Convert what "
            "the graph was exported from (.keras, a state_dict), or to .onnx or .safetensors, which take any graph"
        )

    def _named(self) -> str:
        """The value's axes, in words."""
        return f"axes ({', '.join(_AXES[a] for a in self._axes)})"

    def _counted(self, node: Node, op: str) -> list[Axes]:
        """What each element of a computed shape is the product of: the sizes of these axes; [] if not known."""
        known = [self._products.get(v.slot, []) if isinstance(v, Ref) else [] for v in node.x]
        if op == "Shape" and self._is_head(node.x[0]):
            spec = self._spec()
            return [(a,) for a in self._axes[spec.integer("start", 0) : spec.attributes.get("end")]]
        if op == "Mul" and len(known[0]) == len(known[1]):
            return [x + y for x, y in zip(*known, strict=True)]
        if op == "Concat":
            return [axes for part in known for axes in part] if all(known) else []
        if op == "Slice":
            (start,), (end,) = (self._numbers(node, key, i)[:1] for i, key in enumerate(_SLICE[:2], 1))
            return known[0][start:end] if self._numbers(node, "steps", 4) in ([], [1]) else []
        if op in ("Gather", "Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze"):
            picked = node.x[1] if op == "Gather" else None
            places = range(len(known[0])) if picked is None else np.ravel(self._constant(picked, "indices")).tolist()
            return [known[0][i] for i in places] if known[0] else []
        return []

    def _is_head(self, value: Any) -> bool:
        return isinstance(value, Ref) and value.slot == self._head

    def _constant(self, value: Any, what: str) -> Array:
        if not isinstance(value, np.ndarray):
            raise self._bad(f"{what}: expected a constant")
        return value

    def _numbers(self, node: Node, key: str, place: int) -> list[int]:
        """Whole numbers from an attribute, or since a later opset from an input."""
        if len(node.x) > place and node.x[place] is not None:
            return [int(n) for n in self._constant(node.x[place], key).reshape(-1)]
        return list(self._spec().integers(key) or ())

    def _features_last(self) -> None:
        if self._axes[-1:] != ("K",):
            raise self._bad(f"expected features on the last axis, found {self._named()}")

    # -- nodes that move axes ----------------------------------------------------------------

    def _same(self, node: Node) -> None:
        if not self._is_head(node.x[0]):
            raise self._bad("expected the value before it as the first input")

    def _cast(self, node: Node) -> None:
        to = self._spec().integer("to", 0)
        if "K" in self._axes and to != _FLOAT:
            raise self._bad("expected a cast to float32")
        if "K" not in self._axes and to not in _WHOLE:
            raise self._bad("expected a cast of ids to int32 or int64")

    def _transpose(self, node: Node) -> None:
        order = self._spec().integers("perm") or tuple(range(len(self._axes)))[::-1]
        if sorted(order) != list(range(len(self._axes))):
            raise self._bad(f"attribute perm: expected a permutation of {len(self._axes)} axes, found {order}")
        self._axes = tuple(self._axes[i] for i in order)

    def _squeeze(self, node: Node) -> None:
        axes = {a % len(self._axes) for a in self._numbers(node, "axes", 1)}
        gone = [self._axes[a] for a in axes]
        if gone != ["L"] and (gone != ["D"] or self._directions != 1):
            raise self._bad("expected the axis of a GRU's one direction, or of a last step")
        self._axes = tuple(a for a in self._axes if a != gone[0])

    def _concat(self, node: Node) -> None:
        """PyTorch's h_n: the final states of all layers, of which the last one goes on."""
        if self._axes != ("D", "N", "K") or self._directions != 1 or not self._is_head(node.x[-1]):
            raise self._bad("expected the final states of GRUs of one direction, the last one last")
        if any(not isinstance(v, Ref) or v.slot not in {*self._finals, self._head} for v in node.x):
            raise self._bad("expected the final states of GRUs alone")
        if self._spec().integer("axis", 0) not in (0, -3):
            raise self._bad("expected the states along the first axis")

    def _reshape(self, node: Node) -> None:
        """Y (…, D, H) → (…, D·H): both directions side by side. The other sizes are kept, however the graph says it."""
        kept = self._axes[:-2]
        if self._axes[-2:] != ("D", "K"):
            raise self._bad(f"expected directions and features joined after a GRU, found {self._named()}")
        if isinstance(node.x[1], Ref):
            if self._products.get(node.x[1].slot) != [*((a,) for a in kept), ("D", "K")]:
                raise self._bad("expected a shape that keeps all axes but the last two, and joins these")
        else:
            shape, width = node.x[1].reshape(-1).tolist(), self._width() * self._directions
            fixed = [n == 0 or n == self._sizes.get(a) for n, a in zip(shape, kept, strict=False)]
            if len(shape) != len(kept) + 1 or not all(fixed) or shape[-1] not in (-1, width):
                raise self._bad(f"expected a shape that keeps {len(kept)} sizes and ends with {width}, found {shape}")
        self._axes, self._directions = (*kept, "K"), 1

    def _width(self) -> int:
        last = self._stack[-1]
        if isinstance(last, layers.Bidirectional):
            last = last.forward_layer
        assert isinstance(last, layers.GRU)
        return last.units

    def _slice(self, node: Node) -> None:
        """One that turns time round, after a reverse GRU, or takes the last step of a forward one."""
        starts, ends, axes, steps = (self._numbers(node, key, i) for i, key in enumerate(_SLICE, 1))
        last = self._stack[-1] if self._stack else None
        if starts != [-1] or len(axes) != 1 or self._axes[axes[0]] != "T":
            raise self._bad("expected a slice that turns the steps of a reverse GRU round, or takes its last step")
        if self._backwards and steps == [-1]:
            self._backwards = False
        elif steps in ([], [1]) and ends[0] >= _END and _is_forward(last):
            last.return_sequences = False  # type: ignore[union-attr]
            self._axes = tuple("L" if a == "T" else a for a in self._axes)
        else:
            raise self._bad("expected the last step of a forward GRU, or all steps of a reverse one turned round")

    # -- nodes that are layers ---------------------------------------------------------------

    def _gather(self, node: Node) -> None:
        """A table of rows (Embedding), or the last step of a sequence."""
        table, ids = node.x
        axis = self._spec().integer("axis", 0)
        last = self._stack[-1] if self._stack else None
        if self._is_head(ids) and axis == 0 and "K" not in self._axes:
            rows = as_float32(self._constant(table, "data"))
            if rows.ndim != 2:
                raise self._bad(f"data: expected a table (rows, columns), found {rows.shape}")
            self._add(layers.Embedding(*rows.shape), {"embeddings": rows})
            self._axes = (*self._axes, "K")
        elif np.array_equal(ids, np.int64(-1)) and self._axes[axis] == "D" and self._directions == 1:
            self._axes = tuple(a for a in self._axes if a != "D")  # PyTorch's h_n[-1]
        elif np.array_equal(ids, np.int64(-1)) and self._axes[axis] == "T" and _is_forward(last):
            last.return_sequences = False  # type: ignore[union-attr]
            self._axes = tuple(a for a in self._axes if a != "T")
        else:
            raise self._bad("expected rows of a table by the input's ids, or the last step or state of a forward GRU")

    def _matmul(self, node: Node) -> None:
        self._features_last()
        kernel = as_float32(self._constant(node.x[1], "B"))
        if not self._is_head(node.x[0]) or kernel.ndim != 2:
            raise self._bad("expected the value before it times a constant matrix")
        self._add(layers.Dense(kernel.shape[1], use_bias=False), {"kernel": kernel})

    def _gemm(self, node: Node) -> None:
        spec = self._spec()
        kernel, bias = as_float32(self._constant(node.x[1], "B")), (*node.x, None)[2]
        usual = (spec.number("alpha", 1.0), spec.number("beta", 1.0), spec.integer("transA", 0)) == (1, 1, 0)
        if not usual or not self._is_head(node.x[0]) or self._axes != ("N", "K"):
            raise self._bad("expected the value before it, (N, K), times a constant matrix, with alpha and beta of 1")
        kernel = kernel.T if spec.integer("transB", 0) else kernel
        self._add(layers.Dense(kernel.shape[1], use_bias=False), {"kernel": kernel})
        if bias is not None:
            self._bias(self._constant(bias, "C"))

    def _plus(self, node: Node) -> None:
        self._features_last()
        self._same_after_matmul(node)
        self._bias(self._constant(node.x[1] if self._is_head(node.x[0]) else node.x[0], "B"))

    def _same_after_matmul(self, node: Node) -> None:
        if not self._stack or not isinstance(self._stack[-1], layers.Dense) or self._stack[-1].use_bias:
            raise self._bad("expected a bias after a MatMul")

    def _bias(self, bias: Array) -> None:
        dense = self._stack.pop()
        assert isinstance(dense, layers.Dense)
        along_features = bias.size in (1, dense.units) and bias.shape[-1:] in ((), (bias.size,))
        if not along_features or bias.ndim > len(self._axes):
            raise self._bad(f"expected a bias ({dense.units},), found {bias.shape}")
        vector = np.broadcast_to(as_float32(bias).reshape(-1), (dense.units,)).copy()
        self._add(layers.Dense(dense.units), {"kernel": dense.weights["kernel"], "bias": vector})

    def _batch_norm(self, node: Node) -> None:
        if self._axes[1:2] != ("K",) or self._spec().integer("training_mode", 0):
            raise self._bad(f"expected features on the second axis, found {self._named()}")
        names = ("gamma", "beta", "moving_mean", "moving_variance")
        weights = {n: as_float32(self._constant(v, n)) for n, v in zip(names, node.x[1:], strict=True)}
        self._add(layers.BatchNormalization(epsilon=self._spec().number("epsilon", 1e-5)), weights)

    def _layer_norm(self, node: Node) -> None:
        self._features_last()
        if self._spec().integer("axis", -1) not in (-1, len(self._axes) - 1):
            raise self._bad("expected the last axis alone")
        weights = {n: as_float32(self._constant(v, n)) for n, v in zip(("gamma", "beta"), node.x[1:], strict=False)}
        epsilon = self._spec().number("epsilon", 1e-5)
        self._add(layers.LayerNormalization(epsilon=epsilon, center="beta" in weights), weights)

    def _activation(self, node: Node) -> None:
        self._add(layers.Activation(_PLAIN[self._spec().op]))

    def _numbered(self, node: Node) -> None:
        spec = self._spec()
        made: dict[str, Callable[[], layers.Layer]] = {
            "Elu": lambda: layers.ELU(spec.number("alpha", 1.0)),
            "LeakyRelu": lambda: layers.LeakyReLU(spec.number("alpha", 0.01)),
            "ThresholdedRelu": lambda: layers.ThresholdedReLU(spec.number("alpha", 1.0)),
            "HardSigmoid": lambda: layers.Activation(
                ("hard_sigmoid", spec.number("alpha", 0.2), spec.number("beta", 0.5))
            ),
        }
        self._add(made[spec.op]())

    def _softmax(self, node: Node) -> None:
        self._features_last()
        axis = self._spec().integer("axis", -1 if self._spec().opset >= 13 else 1)
        if axis not in (-1, len(self._axes) - 1):
            raise self._bad(f"expected the last axis, found {axis}")
        self._add(layers.Activation("softmax" if self._spec().op == "Softmax" else "log_softmax"))

    def _pool(self, node: Node) -> None:
        """Over time; an axis that is kept for it is one step."""
        spec = self._spec()
        everywhere = spec.op.startswith("Global")
        axes = list(self._axes[2:]) if everywhere else [self._axes[a] for a in self._numbers(node, "axes", 1)]
        if axes != ["T"]:
            raise self._bad(f"expected to pool over the time axis alone, found {self._named()}")
        mean = spec.op in ("ReduceMean", "GlobalAveragePool")
        self._add(layers.GlobalAveragePooling1D() if mean else layers.GlobalMaxPooling1D())
        kept = everywhere or spec.integer("keepdims", 1)
        self._axes = tuple("L" if a == "T" else a for a in self._axes if kept or a != "T")

    def _gru(self, node: Node) -> None:
        layer = node.layer
        assert isinstance(layer, onnx_gru.GRU)
        a = layer.attributes
        if self._axes != (("N", "T", "K") if a.batch_first else ("T", "N", "K")):
            raise self._bad(
                f"expected {'batch, time' if a.batch_first else 'time, batch'}, features as its input, found "
                f"{self._named()}: the first axis of the model's input must be the batch"
            )
        x, w, r, b, lengths, start = (*node.x, None, None, None)[:6]
        if not self._is_head(x) or lengths is not None or a.clip is not None:
            raise self._bad("expected a GRU without sequence_lens and clip")
        if not (start is None or (isinstance(start, Ref) and start.slot in self._zeros) or _all_zero(start)):
            raise self._bad("expected an initial_h of zeros or none")
        sequences = layer.spec.outputs[0]
        w, r = self._constant(w, "W"), self._constant(r, "R")
        made = halves(a, w, r, None if b is None else self._constant(b, "B"), sequences)
        if len(made) == 2:
            self._add(layers.Bidirectional(made[0], "concat", made[1]))
        else:
            self._add(made[0])
            self._backwards = a.reverses[0] and sequences
        self._directions = len(made)
        if a.batch_first:
            self._axes = ("N", "T", "D", "K") if sequences else ("N", "D", "K")
        else:
            self._axes = ("T", "D", "N", "K") if sequences else ("D", "N", "K")

    def _add(self, layer: layers.Layer, weights: dict[str, Array] | None = None) -> None:
        if weights is not None:
            try:
                layer.assign(weights)
            except ValueError as error:
                raise self._bad(str(error)) from error
        elif isinstance(layer, layers.Bidirectional):
            layer.assign({})
        self._stack.append(layer)


_END = 2**31 - 1  # and more: "to the end" in exporters' slices
_FLOAT, _WHOLE = 1, (6, 7)  # of TensorProto.DataType
_SLICE = ("starts", "ends", "axes", "steps")
_MOVES: dict[str, Callable[[_Chain, Node], None]] = {
    "Identity": _Chain._same,
    "Dropout": _Chain._same,
    "Cast": _Chain._cast,
    "Transpose": _Chain._transpose,
    "Squeeze": _Chain._squeeze,
    "Concat": _Chain._concat,
    "Reshape": _Chain._reshape,
    "Slice": _Chain._slice,
}
_LAYERS: dict[str, Callable[[_Chain, Node], None]] = {
    "Gather": _Chain._gather,
    "MatMul": _Chain._matmul,
    "Gemm": _Chain._gemm,
    "Add": _Chain._plus,
    "GRU": _Chain._gru,
    "BatchNormalization": _Chain._batch_norm,
    "LayerNormalization": _Chain._layer_norm,
    "Softmax": _Chain._softmax,
    "LogSoftmax": _Chain._softmax,
    "ReduceMean": _Chain._pool,
    "ReduceMax": _Chain._pool,
    "GlobalAveragePool": _Chain._pool,
    "GlobalMaxPool": _Chain._pool,
    **dict.fromkeys(_PLAIN, _Chain._activation),
    **dict.fromkeys(("Elu", "LeakyRelu", "ThresholdedRelu", "HardSigmoid"), _Chain._numbered),
}


def _all_zero(value: Any) -> bool:
    return isinstance(value, np.ndarray) and not value.any()


def _is_forward(layer: Any) -> bool:
    return isinstance(layer, layers.GRU) and layer.return_sequences and not layer.go_backwards
