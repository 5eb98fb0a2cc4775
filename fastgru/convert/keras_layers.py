"""Layers in Keras 3's spelling: one config entry for each, as `keras.layers.deserialize` reads it.

What Keras 3 means otherwise than the Keras of the source (hard_sigmoid) and what it lacks (time_major) is refused.
Initialisers, regularisers and constraints are left out: they act in training only, and may be other people's code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import layers as keras
from ..formats.keras_plan import policy
from ..layers import activations
from ..layers.base import Dialect, Layer
from ..layers.cells import GRUCell
from ..layers.core import Identity, Input
from ..layers.merge import Merge
from ..layers.recurrent import RNN
from ..models import Model
from .refusals import refusal

__all__ = ["Scope", "entry", "input_entry", "layer_entry"]

TARGET = "Keras 3"
Entry = dict[str, Any]

#: Activations of one name and meaning in the engine and in Keras 3.
_NAMED = ("linear", "sigmoid", "tanh", "relu", "softsign", "elu", "selu", "softplus")
#: Those with numbers in the engine that are a name in Keras 3.
_NUMBERED = {
    ("hard_sigmoid", 1.0 / 6.0, 0.5): "hard_sigmoid",
    ("leaky_relu", 0.2, 0.0): "leaky_relu",
    ("elu", 1.0, 0.0): "elu",
}
#: Keras 3's own name for what older ones wrote.
_RENAMED = {"swish": "silu", "hard_swish": "hard_silu"}

#: Layers whose Keras arguments are their `arguments`, under the same names.
_PLAIN: tuple[type[Layer], ...] = (
    keras.BatchNormalization,
    keras.Dropout,  # and its kin
    keras.ELU,
    keras.Embedding,
    keras.Flatten,
    keras.GlobalAveragePooling1D,  # and GlobalMaxPooling1D
    keras.LayerNormalization,
    keras.LeakyReLU,
    keras.Masking,
    keras.Permute,
    keras.PReLU,
    keras.ReLU,
    keras.RepeatVector,
    keras.Reshape,
    keras.Softmax,
    Identity,
    Merge,
)
#: Training-only switches that Keras 3 may not know; left out where they are off.
_OPTIONAL = ("renorm", "rms_scaling", "noise_shape")


@dataclass(frozen=True)
class Scope:
    """What the source's own config says of the layers of one model, and the path of that model for errors.

    ``said`` holds each layer's config by name; it is empty for models made by hand.
    """

    dialect: Dialect
    path: str = ""
    said: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Model, dialect: Dialect, path: str) -> Scope:
        """The scope of the layers of ``model``."""
        own = (model._entry or {}).get("config")
        listed = own.get("layers") if isinstance(own, Mapping) else own
        said = {}
        for part in listed if isinstance(listed, list) else []:
            config = part.get("config")
            if isinstance(config, Mapping):
                said[str(part.get("name") or config.get("name") or "")] = config
        return cls(dialect, f"{path}/" if path else "", said)

    def refuse(self, layer: Layer, why: str, remedy: str = "") -> Exception:
        """The error for ``layer``, to be raised."""
        return refusal(TARGET, self.path + layer.name, layer, why, remedy)


def entry(class_name: str, config: Entry, module: str = "keras.layers") -> Entry:
    """{"module", "class_name", "config", "registered_name"}, as Keras 3 serialises an object."""
    return {"module": module, "class_name": class_name, "config": config, "registered_name": None}


def input_entry(end: Input, name: str, batch: int | None) -> Entry:
    """An InputLayer."""
    assert end.shape is not None
    config = {"batch_shape": [batch, *end.shape], "dtype": end.dtype, "sparse": False, "ragged": False, "name": name}
    return entry("InputLayer", config)


def layer_entry(layer: Layer, scope: Scope, said: Mapping[str, Any] | None = None) -> Entry:
    """The entry of a layer that is no model and no operation.

    ``said`` is the source's config of a layer inside another; None: as `scope` has it.

    Raises
    ------
    FormatError
        Naming the layer and what of it Keras 3 can't express.
    """
    given = scope.said.get(layer.name, {}) if said is None else said
    base = {"name": layer.name, "trainable": layer.trainable, "dtype": _policy(given)}
    for kinds, write in _WRITERS:
        if isinstance(layer, kinds):
            name, config = write(layer, scope, given)
            if name == "SpatialDropout1D":
                del base["trainable"]  # the one layer whose constructor does not take it
            return entry(name, {**base, **config})
    raise scope.refuse(layer, f"it has no layer {layer.class_name()}")


def _policy(said: Mapping[str, Any]) -> Entry:
    """The precision in which Keras computes the layer, as the source has it."""
    return entry("DTypePolicy", {"name": policy(dict(said)) or "float32"}, "keras")


# -- activations ---------------------------------------------------------------------------


def _activation(layer: Layer, spec: Any, scope: Scope) -> str:
    """A gate activation as the engine spells it, by Keras 3's name."""
    if spec in _NAMED:
        return str(spec)
    name, alpha, beta = spec
    for (known, *numbers), named in _NUMBERED.items():
        if name == known and np.array_equal(np.array([alpha, beta], np.float32), np.array(numbers, np.float32)):
            return named
    if name == "hard_sigmoid":
        why = f"its hard_sigmoid is clip({alpha:.3g}x + {beta:g}), that of Keras 3 clip(x/6 + 0.5)"
        raise scope.refuse(layer, why, "fastgru convert to .onnx keeps it")
    raise scope.refuse(layer, f"Keras 3 has no activation {name}({alpha:g}, {beta:g})")


def _function(layer: Layer, value: Any, dialect: Dialect, scope: Scope, said: Mapping[str, Any]) -> Any:
    """The activation of a Dense or Activation layer: a name, or the entry of an activation layer."""
    if isinstance(value, Layer):
        inner = said.get("activation")
        config = inner.get("config") if isinstance(inner, Mapping) else None
        return layer_entry(value, scope, config if isinstance(config, Mapping) else {})
    if isinstance(value, Mapping):
        value = activations._function_name(value, layer.name)
    if isinstance(value, str) and value in activations._OTHERS:
        return _RENAMED.get(value, value)
    return _activation(layer, activations.gate_spec(value, dialect, layer.name), scope)


# -- layers --------------------------------------------------------------------------------


def _plain(layer: Layer, scope: Scope, said: Mapping[str, Any]) -> tuple[str, Entry]:
    config = {key: _value(getattr(layer, key)) for key in layer.arguments}
    return layer.class_name(), {k: v for k, v in config.items() if v or k not in _OPTIONAL}


def _value(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_value(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value


def _dense(layer: keras.Dense, scope: Scope, said: Mapping[str, Any]) -> tuple[str, Entry]:
    activation = _function(layer, layer.activation, layer._dialect, scope, said)
    return "Dense", {"units": layer.units, "activation": activation, "use_bias": layer.use_bias}


def _activation_layer(layer: keras.Activation, scope: Scope, said: Mapping[str, Any]) -> tuple[str, Entry]:
    return "Activation", {"activation": _function(layer, layer.activation, layer._dialect, scope, said)}


def _thresholded(layer: keras.ThresholdedReLU, scope: Scope, said: Mapping[str, Any]) -> tuple[str, Entry]:
    """Gone from Keras 3, whose ReLU with a threshold is the same function: x where x > theta, else 0."""
    return "ReLU", {"max_value": None, "negative_slope": 0.0, "threshold": layer.theta}


def _cell(cell: GRUCell, scope: Scope, layer: Layer, said: Mapping[str, Any]) -> Entry:
    # Keras' usual one draws an orthogonal matrix, for which TensorFlow has no bfloat16
    zeros = {"recurrent_initializer": "zeros"} if policy(dict(said)) == "bfloat16" else {}
    return {
        **zeros,
        "units": cell.units,
        "activation": _activation(layer, cell._activation, scope),
        "recurrent_activation": _activation(layer, cell._recurrent_activation, scope),
        "use_bias": cell.use_bias,
        "dropout": cell.dropout,
        "recurrent_dropout": cell.recurrent_dropout,
        "reset_after": cell.reset_after,
        "seed": getattr(cell, "seed", None),
    }


def _recurrent(layer: RNN, scope: Scope, said: Mapping[str, Any]) -> tuple[str, Entry]:
    flags = {key: getattr(layer, key) for key in RNN._own if key != "time_major"}
    if layer.time_major:
        raise scope.refuse(layer, "time_major=True, which it no longer has", "save it with time on the second axis")
    if isinstance(layer, keras.GRU):
        own = _cell(layer.cells[0], scope, layer, said)
        return "GRU", {**flags, **own, "unroll": bool(said.get("unroll", False))}
    dtype = _policy(said)
    cells = [
        entry("GRUCell", {"name": cell.name or f"cell_{i}", "dtype": dtype, **_cell(cell, scope, layer, said)})
        for i, cell in enumerate(layer.cells)
    ]
    stack = entry("StackedRNNCells", {"name": "stacked_rnn_cells", "dtype": dtype, "cells": cells})
    return "RNN", {**flags, "unroll": bool(said.get("unroll", False)), "cell": stack if layer.stacked else cells[0]}


def _bidirectional(layer: keras.Bidirectional, scope: Scope, said: Mapping[str, Any]) -> tuple[str, Entry]:
    if layer.forward_layer.go_backwards:
        raise scope.refuse(layer, "its first half runs backwards", "swap the halves and save the model again")

    def half(part: RNN, key: str) -> Entry:
        inner = said.get(key) or said.get("layer") or {}
        made = layer_entry(part, scope, inner.get("config", {}))
        # Keras 3 decides this one by itself, and warns of nothing
        made["config"]["zero_output_for_mask"] = part.return_sequences
        return made

    forward, backward = half(layer.forward_layer, "layer"), half(layer.backward_layer, "backward_layer")
    for made, direction in ((forward, "forward"), (backward, "backward")):
        name = str(made["config"]["name"]).removeprefix("forward_").removeprefix("backward_")
        made["config"]["name"] = f"{direction}_{name or 'gru'}"
    return "Bidirectional", {"merge_mode": layer.merge_mode, "layer": forward, "backward_layer": backward}


def _time_distributed(layer: keras.TimeDistributed, scope: Scope, said: Mapping[str, Any]) -> tuple[str, Entry]:
    if isinstance(layer.layer, Model):
        raise scope.refuse(layer, "a model inside TimeDistributed is not written", "call the model on (N·T, …) rows")
    inner = said.get("layer") or {}
    return "TimeDistributed", {"layer": layer_entry(layer.layer, scope, inner.get("config", {}))}


_Writer = Callable[[Any, Scope, Mapping[str, Any]], tuple[str, Entry]]
#: The first row that fits writes the layer.
_WRITERS: Sequence[tuple[type[Layer] | tuple[type[Layer], ...], _Writer]] = (
    (keras.Dense, _dense),
    (keras.Activation, _activation_layer),
    (keras.ThresholdedReLU, _thresholded),
    (RNN, _recurrent),
    (keras.Bidirectional, _bidirectional),
    (keras.TimeDistributed, _time_distributed),
    (_PLAIN, _plain),
)
