"""PyTorch in inference mode: the module, and torch.compile. Time-major, which it prefers; ragged rows packed.

Training is autograd through the module.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import shapes

NAME = "PyTorch"
CONFIGURATIONS = ("eager", "torch.compile")
COUNTED = True


def version() -> str:
    import torch

    return str(torch.__version__)


def prepare(case: shapes.Case, threads: int, configuration: str) -> shapes.Run:
    import torch

    torch.set_num_threads(threads)
    x = torch.zeros(case.T, case.N, case.I)
    lengths = shapes.lengths(case)
    step = case.kind == "step"
    module: Any = torch.nn.GRUCell(case.I, case.H) if step else torch.nn.GRU(case.I, case.H, case.layers)
    weights = {name[:-3] if step else name: torch.from_numpy(w) for name, w in shapes.weights(case).items()}
    module.load_state_dict(weights)
    module = quantize(module) if configuration == "int8" else module
    run = torch.compile(module) if configuration == "torch.compile" else module
    if case.kind == "training":
        shapes.only("eager", configuration)
        return training(case, module, x)
    state = [torch.zeros(case.N, case.H)]
    rows = None if lengths is None else torch.from_numpy(lengths)

    @torch.inference_mode()
    def call() -> Any:
        if step:
            state[0] = run(x[0], state[0])
            return state[0][None]
        if rows is None or configuration == "torch.compile":  # a packed sequence is no thing to compile: all steps
            return run(x)[0]
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, rows, enforce_sorted=False)
        return torch.nn.utils.rnn.pad_packed_sequence(run(packed)[0], total_length=case.T)[0]

    view = x.numpy().swapaxes(0, 1)
    return shapes.Run(
        lambda new: np.copyto(view, new), call, lambda y: y.numpy().swapaxes(0, 1), lambda: state[0].numpy()
    )


def training(case: shapes.Case, module: Any, x: Any) -> shapes.Run:
    """All gradients, as autograd.grad returns them."""
    import torch

    dy = torch.from_numpy(shapes.gradient(case).swapaxes(0, 1).copy())
    view = x.numpy().swapaxes(0, 1)
    wanted = [x.requires_grad_(), *module.parameters()]
    return shapes.Run(
        lambda new: np.copyto(view, new),
        lambda: torch.autograd.grad(module(x)[0], wanted, dy),
        lambda g: (g[0].numpy().swapaxes(0, 1), g[2].numpy()),
    )


def quantize(module: Any) -> Any:
    """Weights in int8, activations quantised call by call."""
    import warnings

    import torch

    quantize_dynamic: Any = torch.ao.quantization.quantize_dynamic
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is on its way out of torch
        inside = torch.nn.ModuleList([module])  # only what lies inside a module is replaced
        return quantize_dynamic(inside, {torch.nn.GRU, torch.nn.GRUCell}, dtype=torch.qint8)[0]
