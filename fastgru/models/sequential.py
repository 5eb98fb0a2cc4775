"""Layers one after the other, also made by hand."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ..graph import chain
from ..layers.base import Layer
from ..layers.core import Input
from .model import Model


class Sequential(Model):
    """Layers one after the other.

    Parameters
    ----------
    layers
        Layers, or `layers.Input` first to say the shape. More come by `add`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastgru import layers
    >>> model = Sequential([layers.GRU(8, return_sequences=True), layers.Dense(1)])
    >>> model.predict(np.zeros((2, 5, 3))).shape
    (2, 5, 1)
    """

    def __init__(self, layers: Sequence[Layer] = (), name: str | None = None) -> None:
        super().__init__(chain([]), {}, [Input(name="input")], ["input"], None, name or "sequential")
        for layer in layers:
            self.add(layer)

    def add(self, layer: Layer) -> None:
        """Append a layer; one without a name gets its class's, numbered."""
        if not isinstance(layer, Layer):
            raise TypeError(f"add: expected a layer, found {type(layer).__name__}")
        if isinstance(layer, Input):
            if self._layers:
                raise ValueError("add: expected Input as the first layer")
            layer.name = layer.name or "input"
            self.inputs = (layer,)
            return
        base = _snake_case(layer.class_name())
        if not layer.name:
            taken = sum(1 for known in self._layers if re.fullmatch(rf"{base}(_\d+)?", known))
            layer.name = f"{base}_{taken}" if taken else base
        if layer.name in self._layers:
            raise ValueError(f"add: expected layer names that differ, found {layer.name!r} twice")
        self._layers[layer.name] = layer
        self.graph = chain(list(self._layers.values()))
        self.output_names = (layer.name,)
        self.inputs[0].exact = True
        self._one_batch = None

    def get_config(self) -> dict[str, Any]:
        entries = [
            {"class_name": layer.class_name(), "config": {**layer.get_config(), **_frozen(layer)}}
            for layer in [self.inputs[0], *self._layers.values()]
            if not (isinstance(layer, Input) and layer.shape is None)
        ]
        return {"name": self.name, "layers": entries} if self._entry is None else super().get_config()

    def class_name(self) -> str:
        return "Sequential"


def _frozen(layer: Layer) -> dict[str, Any]:
    """What a config says of a layer that training leaves alone."""
    return {} if layer.trainable else {"trainable": False}


def _snake_case(name: str) -> str:
    name = re.sub(r"(.)([A-Z][a-z0-9]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
