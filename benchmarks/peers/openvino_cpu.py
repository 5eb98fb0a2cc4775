"""OpenVINO: one model of GRUSequences, compiled for latency or for throughput, in float32; tensors bound."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import shapes

NAME = "OpenVINO"
CONFIGURATIONS = ("latency", "throughput")
COUNTED = True


def version() -> str:
    import openvino

    return str(openvino.__version__).split("-")[0]


def model(case: shapes.Case) -> Any:
    """x (N, T, I), h0 (N, 1, H) -> y (N, 1, T, H), h_n (N, 1, H)."""
    import openvino
    from openvino import opset8 as op

    x = op.parameter([case.N, case.T, case.I], np.float32, name="x")
    h0 = op.parameter([case.N, 1, case.H], np.float32, name="h0")
    lengths = shapes.lengths(case)
    steps = op.constant(np.full(case.N, case.T, np.int32) if lengths is None else lengths.astype(np.int32))
    node: Any = x
    for i, weights in enumerate(shapes.layers(case)):
        weight_ih, weight_hh, b, c = (shapes.swap_gates(a) for a in weights)
        zr = 2 * case.H
        bias = np.concatenate([b[:zr] + c[:zr], b[zr:], c[zr:]]) if case.reset_after else b + c
        w, u, bias = (op.constant(a[None]) for a in (weight_ih, weight_hh, bias))
        node = op.squeeze(node.output(0), op.constant([1])) if i else node
        node = op.gru_sequence(
            node, h0, steps, w, u, bias, case.H, "forward", linear_before_reset=bool(case.reset_after)
        )
    return openvino.Model([node.output(0), node.output(1)], [x, h0], "gru")


def prepare(case: shapes.Case, threads: int, configuration: str) -> shapes.Run:
    import openvino

    shapes.forward_only(case)
    settings = {
        "PERFORMANCE_HINT": configuration.upper(),
        "INFERENCE_PRECISION_HINT": "f32",  # bfloat16 by default where the processor has it
        "INFERENCE_NUM_THREADS": threads,
    }
    compiled = openvino.Core().compile_model(model(case), "CPU", settings)
    x = np.zeros((case.N, case.T, case.I), np.float32)
    y = np.zeros((case.N, 1, case.T, case.H), np.float32)
    states = np.zeros((2, case.N, 1, case.H), np.float32)  # read and written in turn
    requests = []
    for before, after in (states, states[::-1]) if case.kind == "step" else [states]:
        request = compiled.create_infer_request()
        for i, a in enumerate((x, before)):
            request.set_input_tensor(i, openvino.Tensor(a, shared_memory=True))
        for i, a in enumerate((y, after)):
            request.set_output_tensor(i, openvino.Tensor(a, shared_memory=True))
        requests.append(request)
    turns = itertools.cycle(range(len(requests)))
    last = [1]

    def call() -> Any:
        last[0] = next(turns)
        requests[last[0]].start_async()
        requests[last[0]].wait()
        return y

    return shapes.Run(lambda new: np.copyto(x, new), call, lambda y: y[:, 0], lambda: states[1 - last[0]][:, 0])
