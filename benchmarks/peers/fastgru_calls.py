"""fastgru: a function on packed weights, and the module shaped as in PyTorch. Both allocate their results."""

from __future__ import annotations

import numpy as np
import shapes

NAME = "fastgru"
CONFIGURATIONS = ("ops.gru", "nn.GRU")
COUNTED = True


def version() -> str:
    import fastgru

    return f"{fastgru.__version__} ({fastgru.build_info()['isa']})"


def prepare(case: shapes.Case, threads: int, configuration: str) -> shapes.Run:
    import fastgru

    x, lengths = shapes.inputs(case, 0), shapes.lengths(case)
    state = [np.zeros((case.layers, case.N, case.H), np.float32)]
    if configuration == "nn.GRU":
        module = fastgru.nn.GRU(case.I, case.H, case.layers, batch_first=True, reset_after=case.reset_after)
        module.load_state_dict(shapes.weights(case))

        def call() -> np.ndarray:
            return module(x, None, lengths, num_threads=threads)[0]

        def step() -> np.ndarray:
            y, state[0] = module(x, state[0], num_threads=threads)
            return y
    else:
        packed = [fastgru.ops.pack_gru(*w, reset_after=case.reset_after) for w in shapes.layers(case)]

        def call() -> np.ndarray:
            y = x
            for layer in packed:
                y, _ = fastgru.ops.gru(y, layer, lengths=lengths, num_threads=threads)
            return y

        def step() -> np.ndarray:
            y, h = fastgru.ops.gru(x, packed[0], h0=state[0][0], num_threads=threads)
            state[0] = h[None]
            return y

    feed = lambda new: np.copyto(x, new)  # noqa: E731
    if case.kind == "step":
        return shapes.Run(feed, step, lambda y: y, lambda: state[0][0])
    return shapes.Run(feed, call, lambda y: y)
