"""NumPy: the inputs projected ahead in one product, or step by step; arrays reused where NumPy lets one."""

from __future__ import annotations

import numpy as np
import shapes

NAME = "NumPy"
CONFIGURATIONS = ("projected ahead", "step by step")
COUNTED = True


def version() -> str:
    return np.__version__


def prepare(case: shapes.Case, threads: int, configuration: str) -> shapes.Run:
    shapes.forward_only(case)
    H = case.H
    layers = [tuple(np.ascontiguousarray(a.T) for a in layer) for layer in shapes.layers(case)]
    x = np.zeros((case.T, case.N, case.I), np.float32)
    state = [np.zeros((case.N, H), np.float32)]
    ahead = configuration == "projected ahead"

    def call() -> np.ndarray:
        inputs = x
        for weight_ih, weight_hh, b, c in layers:
            y = np.empty((case.T, case.N, H), np.float32)
            gates = inputs @ weight_ih + b if ahead else None
            h = state[0]
            for t in range(case.T):
                of_x = gates[t] if gates is not None else inputs[t] @ weight_ih + b
                of_h = h @ weight_hh
                of_h += c
                rz = of_x[:, : 2 * H] + of_h[:, : 2 * H]
                rz *= 0.5  # σ(a) = (1 + tanh(a / 2)) / 2, the fastest that NumPy has
                np.tanh(rz, out=rz)
                rz += 1
                rz *= 0.5
                n = of_h[:, 2 * H :]
                n *= rz[:, :H]
                n += of_x[:, 2 * H :]
                np.tanh(n, out=n)
                h = np.multiply(rz[:, H:], h - n, out=y[t])
                h += n
            inputs = y
        if case.kind == "step":
            state[0] = h.copy()
        return y

    return shapes.Run(lambda new: np.copyto(x, new.swapaxes(0, 1)), call, lambda y: y.swapaxes(0, 1), lambda: state[0])
