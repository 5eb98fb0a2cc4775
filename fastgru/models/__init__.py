"""What Keras calls a model, scored by `predict`: `Sequential`, and `Model`, any graph of layers."""

from .model import Model, walk
from .sequential import Sequential

__all__ = ["Model", "Sequential", "walk"]
