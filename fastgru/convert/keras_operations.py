"""Operations (``x + 1``, ``x[:, -1]``) as Keras 3 saves them: an op class, what makes it, and what it is called on."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..layers.operations import OPERATIONS, Operation
from ..layers.tensorflow_operations import GraphNode

__all__ = ["constant", "operation_call", "operation_entry"]

_REDUCTION = ("axis", "keepdims")
#: Arguments that belong to the op object; all others are given in the call.
_MADE_WITH: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("Mean", "Sum", "Prod", "Max", "Min", "Any", "All"), _REDUCTION),
    "Clip": ("x_min", "x_max"),
    "Reshape": ("newshape",),
    "ExpandDims": ("axis",),
    "Squeeze": ("axis",),
    "Transpose": ("axes",),
    "Swapaxes": ("axis1", "axis2"),
    "Concatenate": ("axis",),
    "Stack": ("axis",),
    "Repeat": ("repeats", "axis"),
    "Tile": ("repeats",),
    "Flip": ("axis",),
    "Softmax": ("axis",),
    "LogSoftmax": ("axis",),
    "LeakyRelu": ("negative_slope",),
    "Elu": ("alpha",),
    "Gelu": ("approximate",),
    "Cast": ("dtype",),
}
_NN = "Softmax LogSoftmax Relu Relu6 LeakyRelu Sigmoid HardSigmoid Softplus Softsign Elu Selu Silu Gelu".split()
_MODULES = dict.fromkeys(_NN, "nn") | {"Cast": "core", "StopGradient": "core", "Rsqrt": "math"}
_DTYPES = {"f": "float32", "i": "int64", "u": "uint8", "b": "bool"}


def operation_entry(operation: Operation, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of an op node; ``arguments`` are those of `operation_call` that belong to the object."""
    name = operation.operation
    if name == "Identity":  # Keras 3 has no such op, but a layer
        config = {"name": operation.name, "trainable": True, "dtype": "float32"}
        return {"module": "keras.layers", "class_name": name, "config": config, "registered_name": None}
    module = f"keras.src.ops.{_MODULES.get(name, 'numpy')}"
    config = {"name": operation.name, **arguments}
    return {"module": module, "class_name": name, "config": config, "registered_name": name}


def operation_call(operation: Operation, x: Any) -> tuple[dict[str, Any], list[Any]]:
    """What makes the op object, and the arguments of its call in Keras' order.

    ``x`` is the input of its node: (positional, named), or for a `GraphNode` the inputs between its constants.
    """
    if isinstance(operation, GraphNode):
        given = x[0] if isinstance(x, tuple) else x
        left = [v for part in given for v in (part if isinstance(part, list) else [part])]
        total = len(left) + len(operation.constants)
        return {}, [operation.constants[i] if i in operation.constants else left.pop(0) for i in range(total)]
    positional, named = x
    signature = inspect.signature(OPERATIONS[operation.operation]).parameters
    given = {**operation.parameters, **dict(zip(signature, positional, strict=False)), **named}
    made_with = _MADE_WITH.get(operation.operation, ())
    made = {key: given.get(key, signature[key].default) for key in made_with}
    if "axis" in made and isinstance(made["axis"], tuple):
        made["axis"] = list(made["axis"])
    return made, [given[key] for key in signature if key in given and key not in made_with]


def constant(value: Any, tensor: Callable[[Any], Any]) -> Any:
    """A call's argument in Keras 3's JSON; ``tensor`` spells what is no constant."""
    if isinstance(value, slice):
        config = {key: constant(getattr(value, key), tensor) for key in ("start", "stop", "step")}
        return {"class_name": "__slice__", "config": config}
    if value is Ellipsis:
        return {"class_name": "__ellipsis__", "config": {}}
    if isinstance(value, np.ndarray):
        dtype = _DTYPES.get(value.dtype.kind, "float32")
        return {"class_name": "__numpy__", "config": {"value": value.tolist(), "dtype": dtype}}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple)):
        return [constant(v, tensor) for v in value]
    if isinstance(value, Mapping):
        return {str(k): constant(v, tensor) for k, v in value.items()}
    return value if value is None or isinstance(value, (bool, int, float, str)) else tensor(value)
