"""Losses, optimisers and metrics with Keras 3's names, formulas and defaults, on layers and arrays."""
