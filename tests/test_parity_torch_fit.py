"""Live comparison with PyTorch: the losses of 50 steps of training from the same weights and batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastgru import Sequential, layers
from fastgru.training import optimizers

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'fastgru[parity]'")
pytestmark = pytest.mark.parity("torch")


def keras_order(module: Any) -> list[np.ndarray]:
    """kernel, recurrent_kernel, bias of a torch.nn.GRU: its gates r z n become z r n."""
    own = [p.detach().numpy() for p in (module.weight_ih_l0, module.weight_hh_l0, module.bias_ih_l0, module.bias_hh_l0)]
    ih, hh, b_ih, b_hh = (np.concatenate([np.split(a, 3)[i] for i in (1, 0, 2)]) for a in own)
    return [ih.T, hh.T, np.stack([b_ih, b_hh])]


@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
def test_losses_of_pytorch_over_50_steps(name: str) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 96)
    x = (rng.normal(size=(96, 6, 4)) + y[:, None, None]).astype(np.float32)
    torch.manual_seed(0)
    grus = [torch.nn.GRU(4, 12, batch_first=True), torch.nn.GRU(12, 8, batch_first=True)]
    head = torch.nn.Linear(8, 3)
    mine = Sequential([layers.GRU(12, return_sequences=True), layers.GRU(8), layers.Dense(3, activation="softmax")])
    mine.compile(
        {"SGD": optimizers.SGD(0.05, 0.9), "Adagrad": optimizers.Adagrad(0.05)}[name], "sparse_categorical_crossentropy"
    )
    mine.predict(x[:1])

    def weights() -> list[np.ndarray]:
        return [
            *keras_order(grus[0]),
            *keras_order(grus[1]),
            head.weight.detach().numpy().T,
            head.bias.detach().numpy(),
        ]

    mine.set_weights([np.array(w) for w in weights()])
    parameters = [p for module in (*grus, head) for p in module.parameters()]
    theirs = (
        torch.optim.SGD(parameters, 0.05, momentum=0.9)
        if name == "SGD"
        else torch.optim.Adagrad(parameters, 0.05, initial_accumulator_value=0.1, eps=1e-7)  # as Keras has them
    )
    found, wanted = [], []
    for i in range(50):
        rows = np.arange(i * 16, i * 16 + 16) % 96
        out = grus[1](grus[0](torch.from_numpy(x[rows]))[0])[0][:, -1]
        loss = torch.nn.functional.cross_entropy(head(out), torch.from_numpy(y[rows]))
        theirs.zero_grad()
        loss.backward()
        theirs.step()
        wanted.append(loss.item())
        found.append(mine.train_on_batch(x[rows], y[rows]))
    assert wanted[-1] < 0.5 * wanted[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    for a, b in zip(mine.get_weights(), weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
