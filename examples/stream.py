"""One step at a time, as a live signal arrives: the state is kept between the calls.

The weights are random here; `cell.load_state_dict` takes those of torch.nn.GRUCell.
"""

from __future__ import annotations

import time

import numpy as np

import fastgru

cell = fastgru.nn.GRUCell(40, 128)
h = np.zeros((1, 128), np.float32)
frames = np.random.default_rng(0).standard_normal((2000, 1, 40)).astype(np.float32)
start = time.perf_counter()
for frame in frames:
    h = cell(frame, h)
print(f"{1e6 * (time.perf_counter() - start) / len(frames):.1f} µs a step; |h| up to {np.abs(h).max():.3f}")
