"""Live comparison of gradients with PyTorch's autograd and with TensorFlow under Keras 3: same weights, same masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers_training import assert_gradient, upstream, weight_gradients, whole

from fastgru import Sequential, gates, layers
from fastgru.graph.training import train
from fastgru.layers import TrainingStep

Array = np.ndarray
GRU_NAMES = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


def step_of(model: Any, inputs: list[Array]) -> tuple[Any, Any, TrainingStep]:
    """Outputs, their upstream gradients, and the step with the gradients of the weights."""
    step = TrainingStep()
    outputs, _, back = train(model.graph, inputs, [None] * len(inputs), step)
    douts = upstream(outputs)
    back(douts)
    return outputs, douts, step


@pytest.mark.parity("torch")
def test_embedding_gru_dense() -> None:
    torch = pytest.importorskip("torch")
    ids = np.random.default_rng(0).integers(0, 11, (6, 7))
    model = Sequential([layers.Embedding(11, 4), layers.GRU(5), layers.Dense(3, activation="softmax")])
    model.predict(ids)
    embedding, gru, dense = model.layers
    (y,), (dy,), step = step_of(model, [ids])

    table = torch.tensor(embedding.weights["embeddings"], requires_grad=True)
    twin = torch.nn.GRU(4, 5, batch_first=True)
    for name, value in zip(GRU_NAMES, gru.cells[0].canonical(), strict=True):
        getattr(twin, name).data = torch.tensor(np.ascontiguousarray(value))
    kernel, bias = (torch.tensor(dense.weights[name], requires_grad=True) for name in ("kernel", "bias"))
    expected = torch.softmax(twin(table[torch.tensor(ids)])[1][0] @ kernel + bias, -1)
    np.testing.assert_allclose(y, expected.detach().numpy(), atol=3e-6)
    (expected * torch.tensor(dy)).sum().backward()

    assert_gradient(whole(step.gradients[embedding]["embeddings"]), table.grad, "embeddings")
    canonical = gates.Weights(*(getattr(twin, name).grad.numpy() for name in GRU_NAMES))
    for found, right in zip(weight_gradients(gru, step), gates.to_keras(canonical, reset_after=True), strict=True):
        assert_gradient(found, right, "gru")
    assert_gradient(step.gradients[dense]["kernel"], kernel.grad, "kernel")
    assert_gradient(step.gradients[dense]["bias"], bias.grad, "bias")
