"""Sequences of different lengths without padding: one flat array and the offsets where each begins."""

from __future__ import annotations

import numpy as np

import fastgru

rng = np.random.default_rng(0)
lengths = rng.integers(1, 50, 200)
offsets = np.concatenate([[0], np.cumsum(lengths)])
x = rng.standard_normal((offsets[-1], 16)).astype(np.float32)

weights = fastgru.nn.GRU(16, 32).state_dict()  # random, by PyTorch's names
packed = fastgru.ops.pack_gru(*(weights[f"{name}_l0"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")))
y, h_n = fastgru.ops.gru(x, packed, offsets=offsets)
print(f"{len(lengths)} sequences, {len(x)} steps: y {y.shape}, last states {h_n.shape}")
assert np.array_equal(y[offsets[1:] - 1], h_n)
