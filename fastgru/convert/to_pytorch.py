"""A model's weights by PyTorch's names: what torch.nn modules of the same layers load.

A state_dict holds weights and no graph, so each layer with weights becomes the `torch.nn` module that computes it
(`Module`), and what no module computes is refused: reset-before, other activations, masks. (PyTorch 2.13:
torch/nn/modules/rnn.py, linear.py, sparse.py, batchnorm.py, normalization.py.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import nn
from ..graph import Graph, Ref
from ..layers.activations import PReLU
from ..layers.base import Array, Layer, as_float32
from ..layers.bidirectional import Bidirectional
from ..layers.cells import GRUCell
from ..layers.core import Dense, Embedding, Identity, Input, TimeDistributed
from ..layers.normalization import BatchNormalization, LayerNormalization
from ..layers.recurrent import RNN
from ..models import Model
from .cells import canonical
from .refusals import refusal
from .trace import masked_calls

__all__ = ["Module", "modules", "state_dict"]

_TARGET = "PyTorch"
_ONNX = "fastgru convert to .onnx can"


@dataclass(frozen=True)
class Module:
    """A layer as a module of torch.nn.

    Parameters
    ----------
    name
        Its name in the state_dict, "encoder.gru"; "" for a GRU that is the whole model.
    kind, arguments
        The class in torch.nn and what makes it.
    tensors
        Its own state_dict, float32.
    paths
        The layers (as in `trace`) whose work it does, first to last.
    note
        What the layer does beside the module, in words.
    """

    name: str
    kind: str
    arguments: dict[str, Any]
    tensors: dict[str, Array]
    paths: tuple[str, ...]
    note: str = ""

    def __str__(self) -> str:
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.arguments.items())
        label = f"{self.name}: " if self.name else ""
        return f"{label}torch.nn.{self.kind}({arguments})" + (f"; {self.note}" if self.note else "")


def state_dict(model: Model | nn.GRU | nn.GRUCell) -> dict[str, Array]:
    """The weights by PyTorch's names, float32.

    A model that is one stack of GRUs as torch.nn.GRU has it gets that module's own names (``weight_ih_l0`` …); in any
    other, a layer's name leads (``encoder.gru.weight_hh_l0``, ``dense.bias``).

    Raises
    ------
    FormatError
        For what PyTorch can't express, naming the layer and the reason.
    """
    named = {f"{m.name}.{key}" if m.name else key: t for m in modules(model) for key, t in m.tensors.items()}
    return {name: np.ascontiguousarray(as_float32(tensor)) for name, tensor in named.items()}


def modules(model: Model | nn.GRU | nn.GRUCell) -> list[Module]:
    """The modules of torch.nn that hold the model's weights; errors as in `state_dict`."""
    if not isinstance(model, Model):
        return [_own(model)]
    for path, layer, _ in masked_calls(model):
        if not isinstance(layer, (Dense, Embedding, Identity, TimeDistributed)):
            raise refusal(
                _TARGET,
                path,
                layer,
                "a mask reaches it, and torch.nn.GRU knows only the lengths of packed sequences, which are no weights",
                "for right padding, save the model without Masking or mask_zero and give the lengths to PyTorch",
            )
    whole = _stack(model)
    if whole is not None:
        return [whole]
    found = list(_modules(model, "", ""))
    names = [m.name for m in found]
    if len(set(names)) < len(names) or any("." in part for m in found for path in m.paths for part in path.split("/")):
        raise refusal(_TARGET, f"the layer names {names}", None, "a dot in a name divides modules; rename the layers")
    return found


def _own(gru: nn.GRU | nn.GRUCell) -> Module:
    if not gru.reset_after or (gru.activation, gru.recurrent_activation) != ("tanh", "sigmoid"):
        variant = "reset-before" if not gru.reset_after else f"{gru.activation}, {gru.recurrent_activation}"
        raise refusal(_TARGET, repr(gru), None, f"torch.nn.GRU is reset-after with tanh and sigmoid, not {variant}")
    sizes = {"input_size": gru.input_size, "hidden_size": gru.hidden_size}
    if isinstance(gru, nn.GRUCell):
        return Module("", "GRUCell", {**sizes, "bias": gru.bias}, dict(gru.state_dict()), ())
    arguments = {**sizes, "num_layers": gru.num_layers, "bias": gru.bias, "batch_first": gru.batch_first}
    return Module("", "GRU", {**arguments, "bidirectional": gru.bidirectional}, dict(gru.state_dict()), ())


# -- one GRU module ------------------------------------------------------------------------


def _stack(model: Model) -> Module | None:
    """The whole model as one torch.nn.GRU; None where it is more than that."""
    chain = _chain(model.graph, "")
    if chain is None:
        return None
    layers = [(path, layer) for path, layer in chain if not isinstance(layer, (Identity, Input))]
    if not layers or not all(isinstance(layer, (RNN, Bidirectional)) for _, layer in layers):
        return None
    parts = [_halves(layer) for _, layer in layers]
    if not all(half[0].return_sequences for half in parts[:-1]) or any(half[0].return_state for half in parts[:-1]):
        return None
    rows: list[list[GRUCell]] = []  # for each layer of the module, a cell a direction
    for (path, layer), halves in zip(layers, parts, strict=True):
        _check(path, layer)
        if len(halves) == 2 and len(halves[0].cells) > 1:
            return None  # Keras runs each direction's stack by itself, torch.nn.GRU joins them after every layer
        rows += [list(cells) for cells in zip(*(half.cells for half in halves), strict=True)]
    if len({(len(row), cell.units, cell.use_bias) for row in rows for cell in row}) > 1:
        return None
    return _gru("", rows, tuple(path for path, _ in layers), _last(parts[-1][0]))


def _chain(graph: Graph, prefix: str) -> list[tuple[str, Layer]] | None:
    """The layers of a model in which each feeds the next and nothing else, inner models unfolded."""
    slot, found = graph.inputs[0], []
    for node in graph.nodes:
        if node.x != Ref(slot) or node.mask is not None or node.state is not None or len(node.outputs) != 1:
            return None
        index, slot = node.outputs[0]
        layer, path = node.layer, f"{prefix}{node.layer.name}"
        inner = _chain(layer.graph, f"{path}/") if isinstance(layer, Model) else [(path, layer)]
        if inner is None or index:
            return None
        found += inner
    return found if len(graph.inputs) == len(graph.outputs) == 1 and slot == graph.outputs[0] else None


def _halves(layer: Layer) -> list[RNN]:
    if isinstance(layer, Bidirectional):
        return [layer.forward_layer, layer.backward_layer]
    assert isinstance(layer, RNN)
    return [layer]


def _last(layer: RNN) -> str:
    return "" if layer.return_sequences else "only the last step goes on"


def _gru(name: str, rows: list[list[GRUCell]], paths: tuple[str, ...], note: str) -> Module:
    tensors: dict[str, Array] = {}
    for i, row in enumerate(rows):
        for cell, direction in zip(row, ("", "_reverse"), strict=False):
            for part, value in canonical(cell)._asdict().items():
                if value is not None:
                    tensors[f"{part}_l{i}{direction}"] = value
    first = rows[0][0]
    arguments: dict[str, Any] = {"input_size": first.width, "hidden_size": first.units, "num_layers": len(rows)}
    arguments |= {"bias": first.use_bias, "batch_first": True, "bidirectional": len(rows[0]) == 2}
    return Module(name, "GRU", arguments, tensors, paths, note)


def _check(path: str, layer: Layer) -> None:
    """Refuse a recurrent layer that torch.nn.GRU does not compute."""
    halves = _halves(layer)
    for half in halves:
        for cell in half.cells:
            if not cell.reset_after:
                why = "torch.nn.GRU applies the reset gate after the recurrent product, this layer before"
                raise refusal(_TARGET, path, layer, why, _ONNX)
            used = (cell._activation, cell._recurrent_activation)
            if used != ("tanh", "sigmoid"):
                why = f"torch.nn.GRU has tanh and sigmoid, this layer {_spelt(used[0])} and {_spelt(used[1])}"
                raise refusal(_TARGET, path, layer, why, _ONNX)
        if half.time_major:
            raise refusal(_TARGET, path, layer, "time_major=True", "save it with time on the second axis")
    if halves[0].go_backwards:
        raise refusal(_TARGET, path, layer, "torch.nn.GRU runs backwards only as the second half of bidirectional=True")
    if isinstance(layer, Bidirectional):
        if layer.merge_mode != "concat":
            raise refusal(_TARGET, path, layer, f"merge_mode={layer.merge_mode!r}; torch.nn.GRU only concatenates")
        first, second = ([(c.units, c.use_bias) for c in half.cells] for half in halves)
        if first != second:
            raise refusal(_TARGET, path, layer, "its two directions differ in units or biases")


def _spelt(spec: Any) -> str:
    return spec if isinstance(spec, str) else f"{spec[0]}({spec[1]:.3g}, {spec[2]:g})"


# -- any model -----------------------------------------------------------------------------


def _modules(layer: Layer, path: str, name: str) -> Iterator[Module]:
    """The modules of a layer and of those inside it."""
    if isinstance(layer, Model):
        for part in layer.layers:
            inner = f"{path}/{part.name}" if path else part.name
            yield from _modules(part, inner, inner.replace("/", "."))
    elif isinstance(layer, (RNN, Bidirectional)):
        yield from _recurrent(layer, path, name)
    elif isinstance(layer, TimeDistributed):
        yield from _modules(layer.layer, path, f"{name}.layer")
    elif isinstance(layer, (Dense, Embedding, BatchNormalization, LayerNormalization, PReLU)):
        if layer.weight_names():
            yield _simple(layer, path, name)
    elif layer.weights or layer.weight_names() or layer.parts():
        raise refusal(_TARGET, path, layer, "no module of torch.nn holds its weights")


def _recurrent(layer: RNN | Bidirectional, path: str, name: str) -> Iterator[Module]:
    """One module; or one a cell and direction, where cells stacked in an RNN are more than torch.nn.GRU stacks."""
    _check(path, layer)
    halves = _halves(layer)
    cells = [half.cells for half in halves]
    if len({(cell.units, cell.use_bias) for cell in cells[0]}) == 1 and (len(cells) == 1 or len(cells[0]) == 1):
        rows = [list(row) for row in zip(*cells, strict=True)]
        yield _gru(name, rows, (path,), _last(halves[0]))
        return
    why = "cells stacked in one RNN layer, of different units" if len(cells) == 1 else "a stack of cells a direction"
    raise refusal(_TARGET, path, layer, f"{why}; torch.nn.GRU stacks layers of one hidden_size, both directions joined")


def _simple(layer: Layer, path: str, name: str) -> Module:
    w = {key: as_float32(value) for key, value in layer.weights.items()}
    if isinstance(layer, Dense):
        outputs, inputs = w["kernel"].T.shape
        arguments: dict[str, Any] = {"in_features": inputs, "out_features": outputs, "bias": layer.use_bias}
        tensors = {"weight": w["kernel"].T, **({"bias": w["bias"]} if layer.use_bias else {})}
        used = layer.activation.class_name() if isinstance(layer.activation, Layer) else layer.activation
        return Module(name, "Linear", arguments, tensors, (path,), "" if used in (None, "linear") else f"then {used}")
    if isinstance(layer, Embedding):
        sizes = {"num_embeddings": layer.input_dim, "embedding_dim": layer.output_dim}
        return Module(name, "Embedding", sizes, {"weight": w["embeddings"]}, (path,))
    if isinstance(layer, BatchNormalization):
        running = {"running_mean": w["moving_mean"], "running_var": w["moving_variance"]}
        affine, learned = _affine(w, running["running_mean"].shape)
        arguments = {"num_features": len(w["moving_mean"]), "eps": layer.epsilon, "affine": affine}
        return Module(name, "BatchNorm1d", arguments, {**learned, **running}, (path,), _axes(layer.axis))
    if isinstance(layer, LayerNormalization):
        return _layer_norm(layer, w, path, name)
    alpha = w["alpha"]
    if alpha.size != alpha.shape[-1]:
        raise refusal(_TARGET, path, layer, "a slope for each step; torch.nn.PReLU has one for each feature at most")
    note = _axes(-1) if alpha.size > 1 else ""
    return Module(name, "PReLU", {"num_parameters": alpha.size}, {"weight": alpha.reshape(-1)}, (path,), note)


def _layer_norm(layer: LayerNormalization, w: dict[str, Array], path: str, name: str) -> Module:
    known = w["gamma"] if "gamma" in w else w["beta"]
    if layer.rms_scaling:  # Keras divides by the standard deviation, torch.nn.RMSNorm by the root mean square
        raise refusal(_TARGET, path, layer, "rms_scaling, which torch.nn.RMSNorm means differently")
    _, learned = _affine(w, known.shape)
    shape = {"normalized_shape": list(known.shape), "eps": layer.epsilon}
    return Module(name, "LayerNorm", shape, learned, (path,))


def _affine(w: dict[str, Array], shape: tuple[int, ...]) -> tuple[bool, dict[str, Array]]:
    """gamma and beta as weight and bias: PyTorch has both or neither, so that one alone gets ones or zeros beside."""
    if "gamma" not in w and "beta" not in w:
        return False, {}
    ones, zeros = np.ones(shape, np.float32), np.zeros(shape, np.float32)
    return True, {"weight": w.get("gamma", ones), "bias": w.get("beta", zeros)}


def _axes(axis: int) -> str:
    return f"it takes its features on axis 1, the layer on axis {axis}"
