"""TensorFlow's names for operations in the graphs of tf.keras.

tf.keras saves the names of TensorFlow functions (class ``TFOpLambda``, function ``math.multiply``)
or, before 2.4, graph nodes (class ``TensorFlowOpLayer``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .base import Layer
from .operations import IGNORED, Operation, unknown

if TYPE_CHECKING:
    from .reader import Reader

#: TensorFlow's names for them (last part of TFOpLambda's function, or a graph node's op).
_TENSORFLOW = {
    "add": "Add",
    "AddV2": "Add",
    "subtract": "Subtract",
    "sub": "Subtract",
    "Sub": "Subtract",
    "multiply": "Multiply",
    "mul": "Multiply",
    "Mul": "Multiply",
    "divide": "Divide",
    "truediv": "Divide",
    "RealDiv": "Divide",
    "pow": "Power",
    "Pow": "Power",
    "maximum": "Maximum",
    "minimum": "Minimum",
    "negative": "Negative",
    "Neg": "Negative",
    "abs": "Absolute",
    "square": "Square",
    "sqrt": "Sqrt",
    "exp": "Exp",
    "log": "Log",
    "equal": "Equal",
    "not_equal": "NotEqual",
    "greater": "Greater",
    "greater_equal": "GreaterEqual",
    "less": "Less",
    "less_equal": "LessEqual",
    "logical_and": "LogicalAnd",
    "logical_or": "LogicalOr",
    "logical_not": "LogicalNot",
    "reduce_mean": "Mean",
    "reduce_sum": "Sum",
    "reduce_prod": "Prod",
    "reduce_max": "Max",
    "reduce_min": "Min",
    "reduce_any": "Any",
    "reduce_all": "All",
    "cast": "Cast",
    "getitem": "GetItem",
    "where": "Where",
    "clip_by_value": "Clip",
    "reshape": "Reshape",
    "expand_dims": "ExpandDims",
    "squeeze": "Squeeze",
    "transpose": "Transpose",
    "concat": "Concatenate",
    "stack": "Stack",
    "repeat": "Repeat",
    "tile": "Tile",
    "reverse": "Flip",
    "zeros_like": "ZerosLike",
    "ones_like": "OnesLike",
    "matmul": "Matmul",
    "softmax": "Softmax",
    "log_softmax": "LogSoftmax",
    "relu": "Relu",
    "relu6": "Relu6",
    "leaky_relu": "LeakyRelu",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "softplus": "Softplus",
    "softsign": "Softsign",
    "elu": "Elu",
    "selu": "Selu",
    "silu": "Silu",
    "swish": "Silu",
    "gelu": "Gelu",
    "identity": "Identity",
    "stop_gradient": "StopGradient",
}

#: TensorFlow's argument names, where they differ from Keras 3's.
_ARGUMENTS = {
    "input_tensor": "x",
    "value": "x",
    "input": "x",
    "logits": "x",
    "features": "x",
    "tensor": "x",
    "a": "x",
    "b": "y",
    "values": "xs",
    "slice_spec": "key",
    "shape": "newshape",
    "perm": "axes",
    "clip_value_min": "x_min",
    "clip_value_max": "x_max",
    "multiples": "repeats",
    "alpha": "negative_slope",
}
#: TensorFlow's defaults, where they differ from Keras 3's.
_DEFAULTS: dict[str, dict[str, Any]] = {"Concatenate": {"axis": 0}, "Gelu": {"approximate": False}}


def from_tensorflow(config: Mapping[str, Any], name: str, reader: Reader) -> Layer:
    """The operation of a TFOpLambda or SlicingOpLambda node."""
    symbol = str(config.get("function", ""))
    operation = _TENSORFLOW.get(symbol.split(".")[-1])
    if operation is None:
        raise unknown(symbol, name, reader, sorted(_TENSORFLOW))
    return Operation(operation, _DEFAULTS.get(operation, {}), name)


def tensorflow_arguments(operation: str, named: Mapping[str, Any]) -> dict[str, Any]:
    """TensorFlow's argument names translated to those of the table."""
    names = {**_ARGUMENTS, **({"x": "x1", "y": "x2"} if operation == "Where" else {})}
    if operation == "Elu":
        names["alpha"] = "alpha"
    return {names.get(k, k): v for k, v in named.items() if k not in IGNORED}


def from_graph_node(config: Mapping[str, Any], name: str, reader: Reader) -> Layer:
    """A TensorFlowOpLayer (tf.keras 2.0 … 2.3): elementwise arithmetic with constants only."""
    node = config.get("node_def")
    definition = json.loads(node) if isinstance(node, str) else node
    op = definition.get("op", "") if isinstance(definition, Mapping) else ""
    operation = _TENSORFLOW.get(op) or _TENSORFLOW.get(op.lower())
    elementwise = ("Add", "Subtract", "Multiply", "Divide", "Power", "Maximum", "Minimum")
    unary = ("Negative", "Absolute", "Square", "Sqrt", "Exp", "Log", "Sigmoid", "Tanh", "Relu")
    if operation not in (*elementwise, *unary):
        raise unknown(op, name, reader, [*elementwise, *unary])
    return GraphNode(operation, config.get("constants") or {}, name)


class GraphNode(Operation):
    """An operation whose constants stand at given positions among its inputs."""

    def __init__(self, operation: str, constants: Mapping[str, Any], name: str) -> None:
        super().__init__(operation, {}, name)
        self.constants = {int(k): np.asarray(v, np.float32) for k, v in constants.items()}

    def forward(self, x: Any, mask: Any, num_threads: int | None, initial_state: Any = None) -> tuple[Any, Any]:
        left = list(x) if isinstance(x, (list, tuple)) else [x]
        total = len(left) + len(self.constants)
        values = [self.constants[i] if i in self.constants else left.pop(0) for i in range(total)]
        return super().forward((values, {}), mask, num_threads)
