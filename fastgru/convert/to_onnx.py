"""A model as an ONNX file, for ONNX Runtime and whatever else reads ONNX.

Batch and time stay free (dimensions "N" and "T"), inputs and outputs keep the model's names, all numbers are float32.
Masks, which ONNX lacks, become lengths of rows put in order (`onnx_masks`): exact, for every mask that a model makes
itself. What ONNX can't express (states kept between calls, selu inside a GRU) is refused, never approximated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .. import gates, nn
from .._core.isa import check_activation
from ..formats.untrusted import FormatError
from ..graph import Graph, Ref, leaves
from ..layers.base import Array, Layer
from ..layers.bidirectional import Bidirectional
from ..layers.core import Dense, Embedding, Identity, Masking, TimeDistributed
from ..layers.operations import Operation
from ..layers.recurrent import RNN
from ..models import Model
from ..models.onnx import OnnxModel
from .onnx_builder import Builder, Sizes, Value
from .onnx_graph import declared, run
from .onnx_rebuilt import rebuilt
from .onnx_recurrent import Direction, gru

__all__ = ["onnx_model"]

#: The first opset in which all that is written here exists (LayerNormalization).
_OLDEST_OPSET = 17
#: What ONNX Runtime 1.20 reads.
_NEWEST_IR = 10
#: The most that one protobuf message can hold.
_MOST_BYTES = 2**31 - 1


def onnx_model(model: Model | nn.GRU | nn.GRUCell, *, opset: int = 17) -> bytes:
    """The bytes of an ONNX file that computes what ``model`` does.

    Parameters
    ----------
    model
        A `Model` or `Sequential`: inputs and outputs by its names, batch first; ids are int64 where the model's input
        says no integer type of its own. `nn.GRU`: x (T, N, I), or (N, T, I) with batch_first, and h0 (L·D, N, H) →
        y and h_n in PyTorch's shapes; there are no lengths, and h0 must be given (zeros for none). `nn.GRUCell`:
        x (N, I), h0 (N, H) → h_n (N, H).
    opset : int
        Version of ONNX's operators, 17 or later. A model that was read from an ONNX file keeps its own.

    Returns
    -------
    bytes
        Needs ONNX IR version 10 at most. All outputs are float32.

    Raises
    ------
    FormatError
        Naming the layer and what of it ONNX can't express, or the size of a model beyond 2 GB.
    ImportError
        The package onnx is missing.
    ValueError
        An opset that is too old, or newer than the installed onnx.

    Notes
    -----
    Ids outside an Embedding's table raise here; ONNX's Gather counts negative ones from the end.
    Source: the operators at https://onnx.ai/onnx/operators, GRU above all.
    """
    try:
        import onnx
    except ImportError as error:
        raise ImportError("writing ONNX needs the package onnx: pip install 'fastgru[onnx]'") from error
    newest = onnx.defs.onnx_opset_version()
    if isinstance(opset, bool) or not isinstance(opset, int) or not _OLDEST_OPSET <= opset <= newest:
        raise ValueError(
            f"opset: expected {_OLDEST_OPSET} … {newest} (what onnx {onnx.__version__} knows), found {opset!r}"
        )
    if isinstance(model, OnnxModel):
        _check_size(model.all_tensors(), len(model.graph.nodes))
        again: bytes = rebuilt(model, _NEWEST_IR).SerializeToString()
        return again
    g = Builder(opset)
    name, inputs, outputs = _build(g, model)
    _check_size(g.tensors, len(g.steps))
    return _serialize(g, name, inputs, outputs)


def _build(g: Builder, model: Model | nn.GRU | nn.GRUCell) -> tuple[str, list[Value], list[Value]]:
    if isinstance(model, nn.GRU):
        return ("gru", *_torch_gru(g, model))
    if isinstance(model, nn.GRUCell):
        return ("gru_cell", *_torch_cell(g, model))
    if isinstance(model, Model):
        return (model.name or "model", *_keras_model(g, model))
    raise TypeError(f"model: expected a Model, nn.GRU or nn.GRUCell, found {type(model).__name__}")


# -- PyTorch's modules ----------------------------------------------------------------------


def _torch_gru(g: Builder, model: nn.GRU) -> tuple[list[Value], list[Value]]:
    directions = 2 if model.bidirectional else 1
    count, hidden = model.num_layers * directions, model.hidden_size
    sizes: Sizes = ("N", "T", model.input_size) if model.batch_first else ("T", "N", model.input_size)
    x, h0 = Value(g.unique("x"), sizes), Value(g.unique("h0"), (count, "N", hidden))
    names = [g.unique("y"), g.unique("h_n")]
    y, finals = g.transpose(x, (1, 0, 2)) if model.batch_first else x, []
    for layer in range(model.num_layers):
        both = [_torch_direction(model, f"_l{layer}{way}") for way in ("", "_reverse")[:directions]]
        start = g.part(h0, 0, layer * directions, (layer + 1) * directions) if model.num_layers > 1 else h0
        y, y_h = gru(g, y, both, start, f"_l{layer}")
        finals.append(y_h)
        if directions == 2:
            y = g.transpose(y, (0, 2, 1, 3))
            y = g.reshape(y, (0, 0, 2 * hidden), ("T", "N", 2 * hidden))
        else:
            y = g.squeeze(y, 1)
    y = g.transpose(y, (1, 0, 2)) if model.batch_first else y
    return [x, h0], g.named([y, g.concat(finals, 0)], names)


def _torch_cell(g: Builder, model: nn.GRUCell) -> tuple[list[Value], list[Value]]:
    x, h0 = Value(g.unique("x"), ("N", model.input_size)), Value(g.unique("h0"), ("N", model.hidden_size))
    name = g.unique("h_n")
    y_h = gru(g, g.unsqueeze(x, 0), [_torch_direction(model, "")], g.unsqueeze(h0, 0))[1]
    return [x, h0], g.named([g.squeeze(y_h, 0)], [name])


def _torch_direction(model: nn.GRU | nn.GRUCell, suffix: str) -> Direction:
    state = model.state_dict()
    parts = [state.get(name + suffix) for name in gates.Weights._fields]
    activation, recurrent = check_activation(model.activation), check_activation(model.recurrent_activation)
    weights = gates.Weights(parts[0], parts[1], parts[2], parts[3])  # type: ignore[arg-type]
    return Direction(model, weights, model.reset_after, activation, recurrent, suffix.endswith("_reverse"))


# -- Keras-shaped models --------------------------------------------------------------------


def _keras_model(g: Builder, model: Model) -> tuple[list[Value], list[Value]]:
    inputs = [replace(v, name=g.unique(v.name)) for v in (_end(model, i) for i in range(len(model.inputs)))]
    names = [g.unique(name) for name in model._output_keys or model.output_names]
    values = [declared(g, end, v) for end, v in zip(model.inputs, inputs, strict=True)]
    outputs = [g.floats(y) for y in run(g, model.graph, values)]
    return inputs, g.named(outputs, names)


def _end(model: Model, number: int) -> Value:
    """One input of the model: its name, sizes, and the kind of number that it takes."""
    end, slot = model.inputs[number], model.graph.inputs[number]
    shape = end.shape if end.shape is not None else _shape_for(model)
    alone = sum(e.shape is None or None in e.shape for e in model.inputs) == 1
    sizes: list[int | str | None] = ["N", *shape]
    for count, i in enumerate([i for i, n in enumerate(shape, 1) if n is None]):
        sizes[i] = ("T" if alone else f"T_{end.name}") if count == 0 else f"{end.name}_{i}"
    whole = end.dtype.startswith(("int", "uint")) or _takes_ids(model.graph, slot)
    return Value(end.name, tuple(sizes), "int64" if whole else "bool" if end.dtype == "bool" else "float32")


def _takes_ids(graph: Graph, slot: int) -> bool:
    """Whether only Embeddings read the value, and comparisons that make their masks; those of nested models too."""
    users = [n for n in graph.nodes if Ref(slot) in leaves((n.x, n.mask, n.state), Ref)]

    def takes(layer: Layer) -> bool:
        if isinstance(layer, Model) and len(layer.inputs) == 1:
            return _takes_ids(layer.graph, layer.graph.inputs[0])
        return isinstance(layer, Embedding) or getattr(layer, "operation", "") in ("Equal", "NotEqual")

    return any(not isinstance(n.layer, Operation) for n in users) and all(takes(n.layer) for n in users)


def _shape_for(model: Model) -> tuple[int | None, ...]:
    """The sizes after the batch, where the input says none: what the first layer of a chain takes."""
    first: Any = next((v for v in model.layers if not isinstance(v, (Identity, Masking))), None)
    if isinstance(first, Model) and first.inputs[0].shape is not None:
        return first.inputs[0].shape
    if isinstance(first, Embedding):
        return (None,)
    if isinstance(first, Bidirectional):
        first = first.forward_layer
    if isinstance(first, RNN) and first.ready:
        return (None, first.cells[0].width)
    if isinstance(first, TimeDistributed) and isinstance(first.layer, Dense) and first.layer.ready:
        return (None, first.layer._width)
    raise FormatError("ONNX: the model does not say the shape of its input; put layers.Input(shape) first")


# -- the file -------------------------------------------------------------------------------


def _check_size(tensors: Mapping[str, Array], steps: int) -> None:
    size = sum(a.nbytes for a in tensors.values()) + 4096 * (steps + len(tensors))
    if size > _MOST_BYTES:
        raise FormatError(f"ONNX: expected at most {_MOST_BYTES:,} bytes, found weights of {size:,}; split the model")


def _serialize(g: Builder, name: str, inputs: list[Value], outputs: list[Value]) -> bytes:
    import onnx
    from onnx import helper, numpy_helper

    kinds = {"float32": onnx.TensorProto.FLOAT, "int64": onnx.TensorProto.INT64, "bool": onnx.TensorProto.BOOL}

    def described(values: list[Value]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(v.name, kinds[v.kind], v.sizes) for v in values]

    graph = helper.make_graph(
        [helper.make_node(s.op, s.inputs, s.outputs, s.name, **s.attributes) for s in g.steps],
        name,
        described(inputs),
        described(outputs),
        [numpy_helper.from_array(array, tensor) for tensor, array in g.tensors.items()],
    )
    sets = [helper.make_opsetid("", g.opset)]
    oldest = helper.find_min_ir_version_for(sets)
    model = helper.make_model(graph, opset_imports=sets, ir_version=min(oldest, _NEWEST_IR), producer_name="fastgru")
    found: bytes = model.SerializeToString()
    return found
