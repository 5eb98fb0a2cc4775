"""fastgru: the function on packed weights with so many threads, or the module as it is (a Stream for single steps).

All but the stream allocate their results. Training packs the weights in every call, since they change between calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import shapes

NAME = "fastgru"
CONFIGURATIONS = ("ops.gru", "nn.GRU")
COUNTED = True


def version() -> str:
    import fastgru

    assert fastgru.load and fastgru.nn  # rooms are imported when they are first asked for: the cost is counted whole
    return f"{fastgru.__version__} ({fastgru.build_info()['isa']})"


def prepare(case: shapes.Case, threads: int, configuration: str) -> shapes.Run:
    import fastgru

    x, lengths = shapes.inputs(case, 0), shapes.lengths(case)
    if case.kind == "training":
        shapes.only("ops.gru", configuration)
        weights, dy = shapes.layers(case)[0], shapes.gradient(case)

        cache: Any = True  # then the used one, whose memory the next step takes
        y, dx = np.empty((*x.shape[:-1], case.H), np.float32), np.empty_like(x)

        def train() -> Any:
            nonlocal cache
            _, _, cache = fastgru.ops.gru(
                x, *weights, reset_after=case.reset_after, return_cache=cache, num_threads=threads, out=y
            )
            return fastgru.ops.gru_backward(dy, cache, num_threads=threads, out=dx)

        return shapes.Run(feed(x), train, lambda g: (g.dx, g.dweight_hh))
    if configuration == "nn.GRU":
        module = fastgru.nn.GRU(case.I, case.H, case.layers, batch_first=True, reset_after=case.reset_after)
        if case.time_major:
            module.batch_first = False
            x = x.swapaxes(0, 1).copy()
        module.load_state_dict(shapes.weights(case))
        if case.kind == "step":
            stream = module.stream(case.N, num_threads=threads)
            rows = x[0] if case.time_major else x[:, 0]
            return shapes.Run(feed(x), lambda: stream.step(rows), lambda y: y[:, None], lambda: stream.state[0].copy())
        swap: Any = (lambda a: a.swapaxes(0, 1)) if case.time_major else (lambda a: a)
        return shapes.Run(feed(swap(x)), lambda: module(x, None, lengths, num_threads=threads)[0], swap)
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
