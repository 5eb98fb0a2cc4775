"""Live comparison of gradients with PyTorch's autograd and with TensorFlow under Keras 3: same weights, same masks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_training import assert_gradient, upstream, weight_gradients, whole
from test_parity_keras import framework, randomise
from test_parity_keras_layers import CASES, Built, tensors

from fastgru import Model, Sequential, gates, layers, load
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


def leaves_of(x: Any) -> list[Any]:
    return list(x.values()) if isinstance(x, dict) else list(x) if isinstance(x, (list, tuple)) else [x]


def expected_gradients(k: Any, model: Any, x: Any) -> tuple[list[Array], list[Array], dict[int, Array], list[Any]]:
    """Outputs in training, upstream gradients, TensorFlow's gradient of each variable by id, and of the inputs."""
    import tensorflow as tf

    inputs = tensors(x, k)
    watched = [v for v in leaves_of(inputs) if v.dtype == tf.float32]
    three = k.__version__.startswith("3")
    variables = [v.value if three else v for v in model.trainable_variables]
    with tf.GradientTape() as tape:
        tape.watch(watched)
        outputs = leaves_of(model(inputs, training=True))
        douts = upstream([np.asarray(y, np.float32) for y in outputs])
        total = tf.add_n([tf.reduce_sum(y * d) for y, d in zip(outputs, douts, strict=True)])
    found = tape.gradient(total, [*variables, *watched])
    dense = [None if g is None else np.asarray(tf.convert_to_tensor(g)) for g in found]
    by_id = {id(v): g for v, g in zip(model.trainable_variables, dense, strict=False) if g is not None}
    return [np.asarray(y, np.float32) for y in outputs], douts, by_id, dense[len(variables) :]


def weights_in_order(layer: Any) -> list[Any]:
    """A Keras layer's variables as `get_weights` of ours gives them: each layer's own, then those inside it."""
    if hasattr(layer, "layers"):
        return [v for inner in layer.layers for v in weights_in_order(inner)]
    return list(layer.weights)


@pytest.mark.parametrize(("build", "name"), CASES)
def test_keras_model(build: Callable[[Any], Built], name: str, tmp_path: Path) -> None:
    k = framework(name)
    theirs, x = build(k)
    for layer in theirs.layers:
        if hasattr(layer, "rate"):
            layer.rate = 0.0
    randomise(theirs)
    path = tmp_path / "model.keras"
    theirs.save(path)
    ours = load(path)
    assert isinstance(ours, Model)
    outputs, douts, by_id, dinputs = expected_gradients(k, theirs, x)
    step = TrainingStep()
    y, _, back = ours.train(x, None, step)
    found = y if isinstance(y, list) else [y]
    for f, e in zip(found, outputs, strict=True):
        np.testing.assert_allclose(np.asarray(f, np.float32), e, rtol=1e-5, atol=5e-6)
    dx = back(douts if isinstance(y, list) else douts[0])
    checked = 0
    for layer in ours.layers:
        if not layer.get_weights():
            continue
        twin = theirs.get_layer(layer.name)
        for found, variable in zip(weight_gradients(layer, step), weights_in_order(twin), strict=True):
            right = by_id.pop(id(variable), None)
            if right is not None or found is not None:
                assert_gradient(found, right, f"{layer.name}: {variable.name}", atol=1e-5)
                checked += 1
    assert not by_id
    assert checked or not theirs.trainable_variables
    floats_in = [g for g, v in zip(leaves_of(dx), leaves_of(x), strict=True) if v.dtype == np.float32]
    for found, right in zip(floats_in, dinputs, strict=True):
        if right is not None or found is not None:
            assert_gradient(found, right, "input", atol=1e-5)
