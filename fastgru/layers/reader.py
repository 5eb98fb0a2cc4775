"""Keras configs → layers. Classes come from one literal table; nothing is imported by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..formats.untrusted import FormatError
from . import (
    activations,
    bidirectional,
    cells,
    core,
    dropout,
    merge,
    normalization,
    operations,
    pooling,
    recurrent,
    shaping,
    tensorflow_operations,
)
from .base import Dialect, Layer

#: Where Keras' own classes live; another module means a class of the model's author.
_KERAS_MODULES = ("keras", "tf_keras", "tensorflow", "builtins")

Factory = Callable[[Mapping[str, Any], "Reader"], Layer]

LAYERS: dict[str, Factory] = {
    "InputLayer": core.Input.from_config,
    "Embedding": core.Embedding.from_config,
    "Masking": core.Masking.from_config,
    "Dense": core.Dense.from_config,
    "TimeDistributed": core.TimeDistributed.from_config,
    "Dropout": dropout.Dropout.from_config,
    "SpatialDropout1D": dropout.SpatialDropout1D.from_config,
    "AlphaDropout": dropout.AlphaDropout.from_config,
    "GaussianDropout": dropout.GaussianDropout.from_config,
    "GaussianNoise": dropout.GaussianNoise.from_config,
    "ActivityRegularization": dropout.ActivityRegularization.from_config,
    "Identity": core.Identity.from_config,
    "GRU": recurrent.GRU.from_config,
    "CuDNNGRU": recurrent.GRU.from_cudnn_config,
    "RNN": recurrent.RNN.from_config,
    "Bidirectional": bidirectional.Bidirectional.from_config,
    "Activation": activations.Activation.from_config,
    "ReLU": activations.ReLU.from_config,
    "LeakyReLU": activations.LeakyReLU.from_config,
    "ThresholdedReLU": activations.ThresholdedReLU.from_config,
    "PReLU": activations.PReLU.from_config,
    "ELU": activations.ELU.from_config,
    "Softmax": activations.Softmax.from_config,
    "BatchNormalization": normalization.BatchNormalization.from_config,
    "BatchNormalizationV1": normalization.BatchNormalization.from_config,
    "BatchNormalizationV2": normalization.BatchNormalization.from_config,
    "LayerNormalization": normalization.LayerNormalization.from_config,
    "Add": merge.Add.from_config,
    "Subtract": merge.Subtract.from_config,
    "Multiply": merge.Multiply.from_config,
    "Average": merge.Average.from_config,
    "Maximum": merge.Maximum.from_config,
    "Minimum": merge.Minimum.from_config,
    "Concatenate": merge.Concatenate.from_config,
    "Dot": merge.Dot.from_config,
    "GlobalAveragePooling1D": pooling.GlobalAveragePooling1D.from_config,
    "GlobalMaxPooling1D": pooling.GlobalMaxPooling1D.from_config,
    "GlobalAvgPool1D": pooling.GlobalAveragePooling1D.from_config,
    "GlobalMaxPool1D": pooling.GlobalMaxPooling1D.from_config,
    "Flatten": shaping.Flatten.from_config,
    "Reshape": shaping.Reshape.from_config,
    "Permute": shaping.Permute.from_config,
    "RepeatVector": shaping.RepeatVector.from_config,
}
MODELS = ("Sequential", "Functional", "Model")
_CELLS = ("GRUCell", "StackedRNNCells")


def _is_operation(entry: Mapping[str, Any], class_name: str, config: Mapping[str, Any], module: str) -> bool:
    """Whether a Keras 3 entry is an op node, whose class may be named like a layer's (Add).

    .keras files tell by the module; .h5 files leave that out, but every layer has "trainable".
    """
    if module:
        return ".ops" in module and module.split(".")[0] == "keras"
    nodes = entry.get("inbound_nodes")
    called = isinstance(nodes, list) and nodes and isinstance(nodes[0], Mapping) and "args" in nodes[0]
    return bool(called) and class_name in operations.OPERATIONS and "trainable" not in config


@dataclass(frozen=True)
class Reader:
    """Makes layers from configs: the file's dialect, its path for errors, how models are made."""

    dialect: Dialect
    path: str
    model: Callable[[Mapping[str, Any], Reader], Layer]

    def layer(self, entry: Any) -> Layer:
        """The layer of ``{"class_name": …, "config": …}``.

        Raises
        ------
        FormatError
            For a class outside the table, Lambda, or a config that lacks or contradicts something.
        """
        name, class_name, config = self._open(entry)
        module = str(entry.get("module") or "")
        if _is_operation(entry, class_name, config, module):
            return operations.from_keras3(class_name, config, name, self)
        if class_name in ("TFOpLambda", "SlicingOpLambda"):
            return tensorflow_operations.from_tensorflow(config, name, self)
        if class_name == "TensorFlowOpLayer":
            return tensorflow_operations.from_graph_node(config, name, self)
        self._refuse_foreign(entry, name, class_name, module)
        try:
            layer = self.model(entry, self) if class_name in MODELS else LAYERS[class_name](config, self)
            if config.get("trainable") is False:
                layer.trainable = False
            return layer
        except FormatError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            missing = f"key {error} is missing" if isinstance(error, KeyError) else str(error)
            raise FormatError(
                f"{self.path}: layer {name!r} ({class_name}): its config is not one that Keras writes: {missing}"
            ) from error

    def rnn(self, entry: Any) -> recurrent.RNN:
        """A layer that Bidirectional can run: GRU or RNN over GRU cells."""
        name, class_name, _ = self._open(entry)
        layer = self.layer(entry)
        if not isinstance(layer, recurrent.RNN):
            raise FormatError(
                f"{self.path}: layer {name!r}: Bidirectional here runs GRU or RNN(GRUCell), found {class_name}"
            )
        return layer

    def cell(self, entry: Any) -> cells.GRUCell | cells.StackedRNNCells:
        """The cell, or stack of cells, of an RNN layer."""
        if isinstance(entry, list):
            return cells.StackedRNNCells([self._single(e) for e in entry])
        name, class_name, config = self._open(entry)
        if class_name == "StackedRNNCells":
            stack = [self._single(e) for e in config.get("cells", ())]
            return cells.StackedRNNCells(stack, name)
        return self._single(entry)

    def _single(self, entry: Any) -> cells.GRUCell:
        name, class_name, config = self._open(entry)
        if class_name != "GRUCell":
            raise FormatError(
                f"{self.path}: cell {name!r} is a {class_name}; RNN here runs {_CELLS[0]} and {_CELLS[1]} of them"
            )
        cell = cells.GRUCell.from_config(config, self)
        cell.trainable = config.get("trainable") is not False
        return cell

    def activation(self, value: Any) -> Any:
        """A function's name, or the layer where the activation is one (LeakyReLU() and such)."""
        if isinstance(value, Mapping) and isinstance(value.get("config"), Mapping):
            return self.layer(value)
        return value

    def value(self, value: Any) -> Any:
        """A constant of a config: numbers, lists, and what Keras writes for slices and arrays."""
        if isinstance(value, list):
            return [self.value(v) for v in value]
        if not isinstance(value, Mapping):
            return value
        kind, config = value.get("class_name"), value.get("config")
        if kind == "__ellipsis__":
            return Ellipsis
        if kind == "__slice__" and isinstance(config, Mapping):
            return slice(*(self.value(config.get(k)) for k in ("start", "stop", "step")))
        if kind in ("__tensor__", "__numpy__") and isinstance(config, Mapping):
            return operations.constant(config)
        if set(value) == {"start", "stop", "step"}:
            return slice(value["start"], value["stop"], value["step"])
        if kind in ("DTypePolicy", "Policy"):
            return value
        return {k: self.value(v) for k, v in value.items()}

    def _open(self, entry: Any) -> tuple[str, str, Mapping[str, Any]]:
        config = entry.get("config") if isinstance(entry, Mapping) else None
        class_name = entry.get("class_name") if isinstance(entry, Mapping) else None
        if class_name in MODELS and isinstance(config, list):
            config = {"layers": config}  # Keras 2.1 and before: a Sequential is a list
        if not isinstance(class_name, str) or not isinstance(config, Mapping):
            raise FormatError(f"{self.path}: expected a layer as {{'class_name', 'config'}}, found {str(entry)[:80]}")
        return str(entry.get("name") or config.get("name") or class_name), class_name, config

    def _refuse_foreign(self, entry: Mapping[str, Any], name: str, class_name: str, module: str) -> None:
        registered = str(entry.get("registered_name") or "")
        foreign = bool(module) and module.split(".")[0] not in _KERAS_MODULES
        foreign = foreign or (">" in registered and registered.split(">")[0] not in _KERAS_MODULES)
        if class_name == "Lambda":
            raise FormatError(
                f"{self.path}: layer {name!r} (Lambda) holds Python code of the model's author, "
                "and nothing from a file is executed. Replace it in Keras by a layer or by "
                "keras.ops, save again, and load that"
            )
        if foreign or (class_name not in LAYERS and class_name not in MODELS):
            what = f"{module}.{class_name}" if foreign and module else class_name
            raise FormatError(
                f"{self.path}: layer {name!r} has the class {what}, which is not supported; "
                f"supported are {', '.join(sorted({*LAYERS, *MODELS}))}. Cut the model before "
                "this layer and save that, or rewrite the layer in terms of these"
            )
