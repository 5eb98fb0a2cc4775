"""Live comparison of gradients with PyTorch's autograd and with TensorFlow under Keras 3: same weights, same masks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_training import assert_gradient, upstream, weight_gradients, whole
from test_parity_keras import CASES as GRU_CASES
from test_parity_keras import FULL, STEPS, WIDTH, build, framework, label, mask_of, randomise, sequences
from test_parity_keras_layers import CASES, Built, encoder_decoder, tensors

from fastgru import Model, Sequential, gates, layers, load
from fastgru.graph.training import train
from fastgru.layers import LogitGradient, TrainingStep

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


@pytest.mark.parity("torch")
@pytest.mark.parametrize("padded", [False, True])
def test_two_bidirectional_layers_norms_and_pooling(padded: bool) -> None:
    torch = pytest.importorskip("torch")
    x, lengths = np.random.default_rng(0).standard_normal((6, 7, 4)).astype(np.float32), np.array([7, 3, 1, 7, 5, 2])
    mask = np.arange(7) < lengths[:, None] if padded else None
    model = Sequential(
        [
            layers.Bidirectional(layers.GRU(5, return_sequences=True)),
            layers.Bidirectional(layers.GRU(3, return_sequences=True)),
            layers.LayerNormalization(epsilon=1e-5),
            layers.GlobalAveragePooling1D(),
            layers.BatchNormalization(epsilon=1e-5),
            layers.Dense(2, "gelu"),
        ]
    )
    model.predict(x)
    step = TrainingStep()
    y, _, back = model.train(x, mask, step)
    dy = upstream(y)
    dx = back(dy)

    twin = torch.nn.GRU(4, 5, batch_first=True, bidirectional=True)
    second = torch.nn.GRU(10, 3, batch_first=True, bidirectional=True)
    norm, batch, dense = torch.nn.LayerNorm(6), torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 2)
    torch.nn.init.zeros_(dense.bias)
    for layer, gru in zip(model.layers[:2], (twin, second), strict=True):
        for part, end in ((layer.forward_layer, ""), (layer.backward_layer, "_reverse")):
            for name, value in zip(GRU_NAMES, part.cells[0].canonical(), strict=True):
                getattr(gru, name + end).data = torch.tensor(np.ascontiguousarray(value))
    dense.weight.data = torch.tensor(model.layers[5].weights["kernel"].T.copy())
    fed = torch.tensor(x, requires_grad=True)

    def run(gru: Any, v: Any) -> Any:
        if not padded:
            return gru(v)[0]
        packed = torch.nn.utils.rnn.pack_padded_sequence(v, lengths, batch_first=True, enforce_sorted=False)
        return torch.nn.utils.rnn.pad_packed_sequence(gru(packed)[0], batch_first=True)[0]

    h = norm(run(second, run(twin, fed)))
    shown = torch.ones(6, 7, 1) if mask is None else torch.tensor(mask[..., None], dtype=torch.float32)
    expected = torch.nn.functional.gelu(dense(batch((h * shown).sum(1) / shown.sum(1))))
    np.testing.assert_allclose(y, expected.detach().numpy(), atol=1e-5)
    (expected * torch.tensor(dy)).sum().backward()

    assert_gradient(dx, fed.grad, "x", 1e-5)
    for layer, gru in zip(model.layers[:2], (twin, second), strict=True):
        found = weight_gradients(layer, step)
        for i, end in enumerate(("", "_reverse")):
            canonical = gates.Weights(*(getattr(gru, name + end).grad.numpy() for name in GRU_NAMES))
            right = gates.to_keras(canonical, reset_after=True)
            for f, r in zip(found[3 * i : 3 * i + 3], right, strict=True):
                assert_gradient(f, r, layer.name + end, 1e-5)
    for layer, module in zip((model.layers[2], model.layers[4]), (norm, batch), strict=True):
        assert_gradient(step.gradients[layer]["gamma"], module.weight.grad, "gamma", 1e-5)
        assert_gradient(step.gradients[layer]["beta"], module.bias.grad, "beta", 1e-5)
    assert_gradient(step.gradients[model.layers[5]]["kernel"], dense.weight.grad.T, "kernel", 1e-5)


@pytest.mark.parity("torch")
def test_losses_of_50_steps_of_plain_descent() -> None:
    """Gradients applied, weights packed anew, and again: what PyTorch's SGD does from the same weights."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((32, 8, 4)).astype(np.float32), rng.integers(0, 3, 32)
    model = Sequential([layers.GRU(6), layers.Dense(3, "softmax")])
    model.predict(x)
    gru, dense = model.layers
    twin, head = torch.nn.GRU(4, 6, batch_first=True), torch.nn.Linear(6, 3)
    for name, value in zip(GRU_NAMES, gru.cells[0].canonical(), strict=True):
        getattr(twin, name).data = torch.tensor(np.ascontiguousarray(value))
    head.weight.data = torch.tensor(dense.weights["kernel"].T.copy())
    head.bias.data.zero_()
    optimizer = torch.optim.SGD([*twin.parameters(), *head.parameters()], lr=0.5)
    ours, theirs = [], []
    for number in range(50):
        step = TrainingStep(number=number)
        y, _, back = model.train(x, None, step)
        ours.append(-np.log(y[np.arange(32), labels]).mean())
        back(LogitGradient((y - np.eye(3, dtype=np.float32)[labels]) / np.float32(32)))
        for layer in model.layers:
            moved = {n: w - np.float32(0.5) * step.gradients[layer][n] for n, w in layer.weights.items()}
            layer.assign(moved)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(head(twin(torch.tensor(x))[1][0]), torch.tensor(labels))
        loss.backward()
        optimizer.step()
        theirs.append(loss.item())
    assert ours[-1] < 0.8 * ours[0]
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


@pytest.mark.parity("torch")
def test_activations_of_torch() -> None:
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    names: dict[Any, Any] = {
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "relu": torch.relu,
        "softsign": f.softsign,
        "elu": f.elu,
        "selu": f.selu,
        "softplus": f.softplus,
        "softmax": lambda v: torch.softmax(v, -1),
        "log_softmax": lambda v: torch.log_softmax(v, -1),
        "silu": f.silu,
        "gelu": f.gelu,
        "relu6": f.relu6,
        "mish": f.mish,
        "hard_silu": f.hardswish,
        "log_sigmoid": f.logsigmoid,
        "hard_tanh": f.hardtanh,
        "tanh_shrink": f.tanhshrink,
        "celu": f.celu,
        "hard_sigmoid": f.hardsigmoid,
        ("leaky_relu", 0.01, 0.0): f.leaky_relu,
    }
    x = 4 * np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32)
    for name, function in names.items():
        fed = torch.tensor(x, requires_grad=True)
        y, _, back = layers.Activation(name).train(x, None, TrainingStep())
        expected = function(fed)
        np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-5, atol=1e-6)
        dy = upstream(y)
        (expected * torch.tensor(dy)).sum().backward()
        assert_gradient(back(dy), fed.grad, str(name))


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


def compare(k: Any, theirs: Any, x: Any, path: Path) -> None:
    """Outputs in training, every gradient, and the moving statistics of a model that Keras built."""
    theirs.save(path)
    ours = load(path)
    assert isinstance(ours, Model)
    outputs, douts, by_id, dinputs = expected_gradients(k, theirs, x)
    step = TrainingStep()
    y, _, back = ours.train(x, None, step)
    found = y if isinstance(y, list) else [y]
    for f, e in zip(found, outputs, strict=True):
        np.testing.assert_allclose(np.asarray(f, np.float32), e, rtol=1e-5, atol=5e-6 * max(1.0, np.abs(e).max()))
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
        for name, value in step.updates.get(layer, {}).items():
            np.testing.assert_allclose(value, np.asarray(getattr(twin, name)), rtol=1e-5, atol=1e-6, err_msg=name)
    assert not by_id
    assert checked or not theirs.trainable_variables
    floats_in = [g for g, v in zip(leaves_of(dx), leaves_of(x), strict=True) if v.dtype == np.float32]
    for found, right in zip(floats_in, dinputs, strict=True):
        if right is not None or found is not None:
            assert_gradient(found, right, "input", atol=1e-5)


def batch_statistics_by_step(k: Any) -> Built:
    ls = k.layers
    x = k.Input((STEPS, WIDTH))
    each = k.Sequential([k.Input((WIDTH,)), ls.Dense(4, "tanh"), ls.BatchNormalization()])
    h = ls.TimeDistributed(ls.BatchNormalization(momentum=0.9))(x)
    return k.Model(x, ls.GRU(3)(ls.TimeDistributed(each)(h))), sequences(1, "none")


def batch_statistics_by_step_masked(k: Any) -> Built:
    ls = k.layers
    x = k.Input((STEPS, WIDTH))
    h = ls.TimeDistributed(ls.BatchNormalization(momentum=0.9))(ls.Masking()(x))
    return k.Model(x, ls.GRU(3, return_sequences=True)(h)), sequences(1, "middle")


def scaled_by_deviation(k: Any) -> Built:
    x = k.Input((STEPS, WIDTH))
    return k.Model(x, k.layers.LayerNormalization(rms_scaling=True, epsilon=0.01)(x)), sequences(1, "none")


MORE = [
    pytest.param(build, name, marks=pytest.mark.parity(name), id=f"{build.__name__}-{name}")
    for build, name in (
        (batch_statistics_by_step, "keras"),
        (batch_statistics_by_step, "tf_keras"),
        (batch_statistics_by_step_masked, "keras"),
        (batch_statistics_by_step_masked, "tf_keras"),
        (scaled_by_deviation, "keras"),
    )
]


@pytest.mark.parametrize(("build", "name"), [*CASES, *MORE])
def test_keras_model(build: Callable[[Any], Built], name: str, tmp_path: Path) -> None:
    k = framework(name)
    theirs, x = build(k)
    for layer in theirs.layers:
        if hasattr(layer, "rate"):
            layer.rate = 0.0  # so that both compute the same
    randomise(theirs)
    compare(k, theirs, x, tmp_path / "model.keras")


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(c, marks=pytest.mark.parity(c["framework"]), id=label(c))
        for c in (GRU_CASES if FULL else GRU_CASES[::5])
    ],
)
def test_keras_gru(case: dict[str, Any], tmp_path: Path) -> None:
    compare(framework(case["framework"]), build(case), sequences(1, case["mask"]), tmp_path / "model.keras")


@pytest.mark.parity("keras")
@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("kind", ["none", "middle"])
def test_keras_recurrent_dropout(kind: str, dropout: float, after: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keras' own layer with the masks that were drawn here."""
    k = framework("keras")
    import tensorflow as tf

    options = {"reset_after": after, "dropout": dropout, "recurrent_dropout": 0.3, "return_sequences": True}
    x, mask = sequences(1, kind), mask_of(kind)
    ours, theirs = layers.GRU(5, **options), k.layers.GRU(5, **options)
    ours.ensure_ready(x)
    theirs.build(x.shape)
    rng = np.random.default_rng(0)
    ours.set_weights([0.5 * rng.standard_normal(w.shape).astype(np.float32) for w in ours.get_weights()])
    theirs.set_weights(ours.get_weights())
    drawn: list[Array] = []
    keep = TrainingStep.keep
    monkeypatch.setattr(TrainingStep, "keep", lambda self, *a: drawn.append(keep(self, *a)) or drawn[-1])
    step = TrainingStep(seed=5)
    y, _, back = ours.train(x, mask, step)
    dy = upstream(y)
    dx = back(dy)

    def in_keras_order(masks: list[Array]) -> list[Any]:
        return [tf.constant(masks[i]) for i in (1, 0, 2)]

    groups = [drawn[:3], drawn[3:]] if dropout else [drawn[:0], drawn]
    cell = theirs.cell
    monkeypatch.setattr(cell, "get_dropout_mask", lambda step_input: in_keras_order(groups[0]) if dropout else None)
    monkeypatch.setattr(cell, "get_recurrent_dropout_mask", lambda step_input: in_keras_order(groups[1]))
    fed = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(fed)
        expected = theirs(fed, mask=tf.constant(mask), training=True)
        total = tf.reduce_sum(expected * dy)
    np.testing.assert_allclose(y, expected.numpy(), rtol=1e-5, atol=3e-6)
    right = tape.gradient(total, [fed, *(v.value for v in theirs.trainable_variables)])
    for found, g in zip([dx, *weight_gradients(ours, step)], right, strict=True):
        assert_gradient(found, g.numpy(), "recurrent dropout", 1e-5)


@pytest.mark.parity("keras")
@pytest.mark.parametrize("implementation", [1, 2])
def test_keras_dropout_masks_have_these_shapes(implementation: int) -> None:
    """One mask for all gates, or three, for all steps: what the layers here draw as well."""
    k = framework("keras")
    x = sequences(1, "none")

    class Recorder(TrainingStep):
        shapes: list[tuple[int, ...]] = []

        def keep(self, shape: tuple[int, ...], rate: float, seed: int | None = None) -> Array:
            self.shapes.append(shape)
            return super().keep(shape, rate, seed)

    for dropout, recurrent in ((0.5, 0.0), (0.5, 0.5), (0.0, 0.5)):
        theirs = k.layers.GRU(5, dropout=dropout, recurrent_dropout=recurrent, implementation=implementation)
        theirs.build(x.shape)
        found = []
        for rate, width, get in (
            (dropout, 3, theirs.cell.get_dropout_mask),
            (recurrent, 5, theirs.cell.get_recurrent_dropout_mask),
        ):
            masks = get(np.ones((4, width), np.float32)) if rate else []
            found += [tuple(m.shape) for m in (masks if isinstance(masks, list) else [masks])]
        Recorder.shapes = []
        ours = layers.GRU(5, dropout=dropout, recurrent_dropout=recurrent, implementation=implementation)
        ours.ensure_ready(x)
        ours.train(x, None, Recorder())
        assert found == Recorder.shapes


@pytest.mark.parity("keras")
def test_the_checker_bites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    k = framework("keras")
    theirs, x = encoder_decoder(k)
    randomise(theirs)
    compare(k, theirs, x, tmp_path / "model.keras")

    def swapped(found: gates.Weights, *, reset_after: bool) -> tuple[Array, ...]:
        r, z, n = np.split(found.weight_hh, 3)
        return found.weight_ih.T, np.concatenate([r, z, n]).T, np.stack([found.bias_ih, found.bias_hh])

    monkeypatch.setattr(gates, "to_keras", swapped)
    with pytest.raises(AssertionError, match="kernel"):
        compare(k, theirs, x, tmp_path / "model.keras")
