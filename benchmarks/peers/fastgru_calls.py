"""fastgru: the function on packed weights with so many threads, or the module as it is (a Stream for single steps).

All but the stream allocate their results.
"""

from __future__ import annotations

from collections.abc import Callable

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
    if configuration == "nn.GRU":
        asked = None if threads == fastgru.get_num_threads() else threads
        module = fastgru.nn.GRU(case.I, case.H, case.layers, batch_first=True, reset_after=case.reset_after)
        module.load_state_dict(shapes.weights(case))
        if case.kind == "step":
            stream = module.stream(case.N, num_threads=asked)
            rows = x[:, 0]
            return shapes.Run(feed(x), lambda: stream.step(rows), lambda y: y[:, None], lambda: stream.state[0].copy())
        return shapes.Run(feed(x), lambda: module(x, None, lengths, num_threads=asked)[0], lambda y: y)
    packed = [fastgru.ops.pack_gru(*w, reset_after=case.reset_after) for w in shapes.layers(case)]
    state = [np.zeros((case.N, case.H), np.float32)]

    def call() -> shapes.F32:
        y = x
        for layer in packed:
            y, _ = fastgru.ops.gru(y, layer, lengths=lengths, num_threads=threads)
        return y

    def step() -> shapes.F32:
        y: shapes.F32
        y, state[0] = fastgru.ops.gru(x, packed[0], h0=state[0], num_threads=threads)
        return y

    return shapes.Run(feed(x), step if case.kind == "step" else call, lambda y: y, lambda: state[0])


def feed(x: shapes.F32) -> Callable[[shapes.F32], None]:
    return lambda new: np.copyto(x, new)
