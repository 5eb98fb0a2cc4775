"""A model that came from an ONNX file, as an ONNX file again: the graph as it was, at its own opset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..formats.untrusted import FormatError
from ..layers.base import Array
from ..models.onnx import OnnxModel

if TYPE_CHECKING:
    import onnx


def rebuilt(model: OnnxModel, newest_ir: int) -> onnx.ModelProto:
    """The graph that ``model`` was read from, with the values of its constants in place of Constant nodes.

    Raises
    ------
    FormatError
        Where the file that was read held types that are not kept, or onnx's checker finds a fault.
    """
    import onnx
    from onnx import helper

    config = model.get_config()
    tensors, taken = model.all_tensors(), set[str]()
    inputs = [_described(entry) for entry in config["inputs"]]
    graph = helper.make_graph(
        [_node(entry, tensors, taken) for entry in config["nodes"]],
        str(config.get("name") or "graph"),
        inputs,
        [onnx.ValueInfoProto(name=name) for name in config["outputs"]],
    )
    graph.initializer.extend(_initializer(name, t) for name, t in tensors.items() if name not in taken)
    sets = [helper.make_opsetid("", config["opset"])]
    oldest = helper.find_min_ir_version_for(sets)
    proto = helper.make_model(graph, opset_imports=sets, ir_version=min(max(oldest, 4), newest_ir))
    proto.producer_name = "fastgru"
    try:
        # the operators tell the types of the outputs, and as a rule their shapes; not behind a Loop
        proto = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
        del proto.graph.value_info[:]
        for value, shape in zip(proto.graph.output, config.get("output_shapes", []), strict=False):
            tensor = value.type.tensor_type
            if shape is not None and not tensor.HasField("shape"):
                value.CopyFrom(helper.make_tensor_value_info(value.name, tensor.elem_type, shape))
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise FormatError(f"ONNX: model {model.name!r} can't be written again: {error}") from error
    return proto


def _described(entry: Mapping[str, Any], named: bool = True) -> onnx.ValueInfoProto:
    """An input or output as declared. ``named``: where any size fits it gets a name, as a model's inputs have."""
    import onnx
    from onnx import helper

    if entry["dtype"] is None:
        return onnx.ValueInfoProto(name=entry["name"])
    try:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(entry["dtype"]))
    except TypeError as error:
        raise FormatError(f"ONNX: value {entry['name']!r}: the type {entry['dtype']} is not written") from error
    shape = entry["shape"]
    if shape is not None and named:
        shape = [f"{entry['name']}_{i}" if n is None else n for i, n in enumerate(shape)]
    return helper.make_tensor_value_info(entry["name"], kind, shape)


def _initializer(name: str, tensor: Array) -> onnx.TensorProto:
    from onnx import numpy_helper

    return numpy_helper.from_array(np.ascontiguousarray(tensor).reshape(tensor.shape), name)


def _node(entry: Mapping[str, Any], tensors: Mapping[str, Array], taken: set[str]) -> onnx.NodeProto:
    import onnx
    from onnx import helper

    node = helper.make_node(entry["op"], entry["inputs"], entry["outputs"], entry["name"])
    for key, value in entry["attributes"].items():
        if isinstance(value, Mapping) and "graph" in value:
            value = _body(value["graph"], tensors, taken)
        elif isinstance(value, Mapping):
            kind = helper.np_dtype_to_tensor_dtype(np.dtype(value["dtype"]))
            value = helper.make_tensor("value", kind, [len(value["values"])], value["values"])
        if isinstance(value, list) and not value:
            node.attribute.append(helper.make_attribute(key, value, attr_type=onnx.AttributeProto.INTS))
        else:
            node.attribute.append(helper.make_attribute(key, value))
    return node


def _body(config: Mapping[str, Any], tensors: Mapping[str, Array], taken: set[str]) -> onnx.GraphProto:
    """The graph in an attribute, with its own constants, whose tensors are ``taken``."""
    from onnx import helper

    constants = config["constants"]
    taken.update(constants.values())
    return helper.make_graph(
        [_node(entry, tensors, taken) for entry in config["nodes"]],
        str(config.get("name") or "body"),
        [_described(entry, named=False) for entry in config["inputs"]],
        [_described(entry, named=False) for entry in config["outputs"]],
        [_initializer(name, tensors[key]) for name, key in constants.items()],
    )
