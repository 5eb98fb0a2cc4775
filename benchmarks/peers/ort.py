"""ONNX Runtime with inputs and outputs bound, so that nothing is allocated or copied; its threads spinning or not."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import shapes

NAME = "ONNX Runtime"
CONFIGURATIONS = ("default", "no spinning")
COUNTED = True


def version() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)


def model(case: shapes.Case) -> bytes:
    """x (T, N, I), h0 (1, N, H), lengths (N) -> y0 … (T, 1, N, H), h_n (1, N, H)."""
    import onnx

    nodes, tensors, x = [], [], "x"
    for i, (weight_ih, weight_hh, bias_ih, bias_hh) in enumerate(shapes.layers(case)):
        swapped = [shapes.swap_gates(a) for a in (weight_ih, weight_hh, bias_ih, bias_hh)]
        values = {f"W{i}": swapped[0], f"R{i}": swapped[1], f"B{i}": np.concatenate(swapped[2:])}
        tensors += [onnx.numpy_helper.from_array(value[None], name) for name, value in values.items()]
        nodes.append(
            onnx.helper.make_node(
                "GRU",
                [x, *values, "lengths" if case.kind == "ragged" else "", "h0" if case.kind == "step" else ""],
                [f"y{i}", "h_n" if case.kind == "step" else ""],
                hidden_size=case.H,
                linear_before_reset=int(case.reset_after),
            )
        )
        x = f"x{i + 1}"
        if i + 1 < case.layers:
            tensors.append(onnx.numpy_helper.from_array(np.array([1]), f"axis{i}"))
            nodes.append(onnx.helper.make_node("Squeeze", [f"y{i}", f"axis{i}"], [x]))

    def value(name: str, *shape: int, kind: int = onnx.TensorProto.FLOAT) -> Any:
        return onnx.helper.make_tensor_value_info(name, kind, shape)

    inputs, outputs = [value("x", case.T, case.N, case.I)], [value(f"y{i}", case.T, 1, case.N, case.H)]
    if case.kind == "step":
        inputs.append(value("h0", 1, case.N, case.H))
        outputs.append(value("h_n", 1, case.N, case.H))
    if case.kind == "ragged":
        inputs.append(value("lengths", case.N, kind=onnx.TensorProto.INT32))
    graph = onnx.helper.make_graph(nodes, "gru", inputs, outputs, tensors)
    opset = onnx.helper.make_opsetid("", 14)
    return bytes(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString())


def prepare(case: shapes.Case, threads: int, configuration: str) -> shapes.Run:
    import onnxruntime

    shapes.forward_only(case)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    if configuration == "no spinning":
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model(case), options, ["CPUExecutionProvider"])
    x = np.zeros((case.T, case.N, case.I), np.float32)
    y = np.zeros((case.T, 1, case.N, case.H), np.float32)
    states = np.zeros((2, 1, case.N, case.H), np.float32)  # read and written in turn
    lengths = shapes.lengths(case)
    bindings = []
    for before, after in (states, states[::-1]):
        binding = session.io_binding()
        fed = {"x": x} | ({} if lengths is None else {"lengths": lengths.astype(np.int32)})
        written: dict[str, np.ndarray] = {f"y{case.layers - 1}": y}
        if case.kind == "step":
            fed["h0"], written["h_n"] = before, after
        for name, a in fed.items():
            binding.bind_input(name, "cpu", 0, a.dtype, a.shape, a.ctypes.data)
        for name, a in written.items():
            binding.bind_output(name, "cpu", 0, a.dtype, a.shape, a.ctypes.data)
        bindings.append((binding, fed))  # the session does not keep the arrays alive
    turns = itertools.cycle(range(2))
    last = [1]

    def call() -> Any:
        last[0] = next(turns)
        session.run_with_iobinding(bindings[last[0]][0])
        return y

    return shapes.Run(
        lambda new: np.copyto(x, new.swapaxes(0, 1)),
        call,
        lambda y: y[:, 0].swapaxes(0, 1),
        lambda: states[1 - last[0]][0],
    )
