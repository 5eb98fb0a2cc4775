"""PyTorch's dynamic int8 quantisation: shown, because it is another precision, and not counted."""

from __future__ import annotations

from peers import pytorch

NAME = "PyTorch int8"
CONFIGURATIONS = ("int8",)
COUNTED = False
version, prepare = pytorch.version, pytorch.prepare
