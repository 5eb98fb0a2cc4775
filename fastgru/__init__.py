"""Load the GRU you already trained, or train one here, and score it fast on any CPU."""

__version__ = "0.1.0"
