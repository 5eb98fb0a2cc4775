"""Training through graphs: what adds up, what stays frozen, what is refused and when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_core import assert_same
from helpers_layers import mask_of, normal
from helpers_training import upstream, weight_gradients, whole

from fastgru import Sequential, layers, load
from fastgru.graph import Graph, Node, Ref, chain, train, untrainable
from fastgru.layers import LogitGradient, TrainingStep
from fastgru.layers.operations import Operation
from fastgru.models import Model, walk

Array = np.ndarray
N, T, F = 4, 6, 3


def gradients(
    graph: Graph, inputs: list[Any], douts: Any = None, **options: Any
) -> tuple[list[Any], TrainingStep, Any]:
    """Gradients of the inputs, the step, and the outputs."""
    step = TrainingStep()
    outputs, _, back = train(graph, inputs, [None] * len(inputs), step, input_gradients=True, **options)
    return back(upstream(outputs) if douts is None else douts(outputs)), step, outputs


def test_a_chain() -> None:
    gru, dense = layers.GRU(5, return_sequences=True), layers.Dense(2)
    x = normal(N, T, F)
    (dx,), step, (y,) = gradients(chain([gru, dense]), [x])
    by_hand = TrainingStep()
    h, _, gru_back = gru.train(x, None, by_hand)
    z, _, dense_back = dense.train(h, None, by_hand)
    assert_same(z, y, "y")
    assert_same(gru_back(dense_back(upstream([y])[0])), dx, "dx")
    for layer in (gru, dense):
        assert set(step.gradients[layer]) == set(layer.weights)
        for name, gradient in step.gradients[layer].items():
            assert gradient.shape == layer.weights[name].shape and gradient.flags.c_contiguous
            assert_same(gradient, by_hand.gradients[layer][name], name)
    scored = Sequential([gru, dense]).predict(x)
    assert_same(y, scored, "training without dropout scores")


def test_a_slot_in_use_twice_and_a_shared_layer() -> None:
    """y = d(x) + d(d(x)) · d(x): every path adds up."""
    dense, add, multiply = layers.Dense(F, use_bias=False), layers.Add(), layers.Multiply()
    nodes = (
        Node(dense, Ref(0), ((0, 1),)),
        Node(dense, Ref(1), ((0, 2),)),
        Node(multiply, [Ref(1), Ref(2)], ((0, 3),)),
        Node(add, [Ref(1), Ref(3)], ((0, 4),)),
    )
    x = normal(N, F)
    dense.ensure_ready(x)
    (dx,), step, (y,) = gradients(Graph(nodes, (0,), (4,), 5), [x])
    w, dy = dense.weights["kernel"].astype(np.float64), upstream([y])[0]
    a = x @ w
    b = a @ w
    np.testing.assert_allclose(y, a + a * b, atol=1e-6)
    da = dy + dy * b + (dy * a) @ w.T
    np.testing.assert_allclose(dx, da @ w.T, atol=3e-6)
    np.testing.assert_allclose(step.gradients[dense]["kernel"], x.T @ da + a.T @ (dy * a), atol=3e-6)


def test_a_shared_embedding_adds_sparse_rows() -> None:
    table, add = layers.Embedding(9, 2), layers.Add()
    nodes = (Node(table, Ref(0), ((0, 2),)), Node(table, Ref(1), ((0, 3),)), Node(add, [Ref(2), Ref(3)], ((0, 4),)))
    a, b = np.array([[1, 1]]), np.array([[1, 8]])
    step = TrainingStep()
    outputs, _, back = train(Graph(nodes, (0, 1), (4,), 5), [a, b], [None, None], step)
    assert back([np.ones_like(outputs[0])]) == [None, None]
    rows = step.gradients[table]["embeddings"]
    np.testing.assert_array_equal(rows.ids, [1, 8])
    np.testing.assert_array_equal(rows.values, [[3, 3], [1, 1]])


def test_an_output_that_is_also_an_input_and_outputs_without_a_gradient() -> None:
    first, second = layers.Dense(3), layers.Dense(2)
    nodes = (Node(first, Ref(0), ((0, 1),)), Node(second, Ref(1), ((0, 2),)))
    graph = Graph(nodes, (0,), (1, 2), 3)
    x = normal(N, F)
    both, step, (h, y) = gradients(graph, [x])
    dh, dy = upstream([h, y])
    one, step_h, _ = gradients(graph, [x], lambda outputs: [dh, None])
    other, step_y, _ = gradients(graph, [x], lambda outputs: [None, dy])
    np.testing.assert_allclose(both[0], one[0] + other[0], atol=1e-6)
    assert second not in step_h.gradients
    for name in ("kernel", "bias"):
        sums = step_h.gradients[first][name] + step_y.gradients[first][name]
        np.testing.assert_allclose(step.gradients[first][name], sums, atol=1e-6)


def test_states_pass_gradients() -> None:
    """Encoder and decoder: the encoder learns through its final state alone."""
    encoder, decoder = layers.GRU(5, return_state=True), layers.GRU(5, return_sequences=True)
    nodes = (Node(encoder, Ref(0), ((0, 2), (1, 3))), Node(decoder, Ref(1), ((0, 4),), None, [Ref(3)]))
    x, z = normal(N, T, F), normal(N, 4, 2)
    found, step, (y,) = gradients(Graph(nodes, (0, 1), (4,), 5), [x, z])
    by_hand = TrainingStep()
    (_, h), _, encoder_back = encoder.train(x, None, by_hand)
    _, _, decoder_back = decoder.train(z, None, by_hand, [h])
    dz, (dh,) = decoder_back(upstream([y])[0])
    assert_same(found[1], dz, "dz")
    assert_same(found[0], encoder_back([None, dh]), "dx")
    for layer in (encoder, decoder):
        for a, b in zip(weight_gradients(layer, step), weight_gradients(layer, by_hand), strict=True):
            assert_same(a, b, layer.class_name())


def test_stateful_layers_hand_their_state_on_and_cut_the_gradient() -> None:
    layer, x = layers.GRU(5, stateful=True), normal(N, T, F)
    _, _, (first,) = gradients(chain([layer]), [x])
    assert_same(layer.states[0], first, "state")
    _, step, (second,) = gradients(chain([layer]), [x])
    plain = layers.GRU(5)
    plain.set_weights(layer.get_weights())
    other = TrainingStep()
    y, _, back = plain.train(x, None, other, [first])
    assert_same(second, y, "y")
    back(upstream([y])[0])
    for a, b in zip(weight_gradients(layer, step), weight_gradients(plain, other), strict=True):
        assert_same(a, b, "gradient")
    layer.reset_states()
    assert_same(gradients(chain([layer]), [x])[2][0], first, "after reset")


def test_masks_flow_as_in_scoring() -> None:
    ids = np.where(mask_of("right"), np.random.default_rng(0).integers(1, 9, (N, T)), 0)
    model = Sequential(
        [
            layers.Embedding(9, 4, mask_zero=True),
            layers.Dropout(0.0),
            layers.Bidirectional(layers.GRU(3, return_sequences=True)),
            layers.LayerNormalization(),
            layers.TimeDistributed(layers.Dense(3)),
            layers.GlobalAveragePooling1D(),
        ]
    )
    y, _, back = model.train(ids, None, step := TrainingStep())
    assert_same(y, model.predict(ids), "y")
    assert back(upstream(y)) is None
    rows = step.gradients[model.layers[0]]["embeddings"]
    assert not rows.values[rows.ids == 0].any()  # padding has no gradient
    x = normal(N, T, F)
    lengths = mask_of("right")
    other = Sequential([layers.GRU(4)])
    y, _, _ = other.train(x, lengths, TrainingStep())
    assert_same(y, other.predict(x, mask=lengths), "a mask given by the caller")


def test_frozen_layers_have_no_gradients_but_pass_them() -> None:
    x = normal(N, T, F)
    for frozen in (layers.Dense(4), layers.GRU(4, return_sequences=True), layers.RNN([layers.GRUCell(4)])):
        first, last = layers.Dense(3), layers.Dense(2)
        model = Sequential([first, frozen, last])
        model.predict(x)
        full, half = TrainingStep(), TrainingStep()
        y, _, back = model.train(x, None, full)
        back(upstream(y))
        frozen.trainable = False
        _, _, back = model.train(x, None, half)
        back(upstream(y))
        assert all(g is None for g in weight_gradients(frozen, half))
        for layer in (first, last):
            for a, b in zip(weight_gradients(layer, full), weight_gradients(layer, half), strict=True):
                assert_same(a, b, "beside a frozen layer")


def test_freezing_a_model_freezes_what_is_inside() -> None:
    inner = Sequential([layers.Dense(3), layers.Bidirectional(layers.GRU(2))])
    model = Sequential([inner, layers.Dense(1)])
    x = normal(N, T, F)
    model.predict(x)
    inner.trainable = False
    assert not any(layer.trainable for layer in walk(inner))
    step = TrainingStep()
    y, _, back = model.train(x, None, step)
    back(upstream(y))
    assert list(step.gradients) == [model.layers[1]]
    inner.layers[0].trainable = True
    assert inner.learns() and inner.layers[0].learns()


def test_a_frozen_layer_stays_frozen_in_a_file(tmp_path: Path) -> None:
    model = Sequential([layers.Input((T, F)), layers.GRU(2, return_sequences=True), layers.Dense(3)])
    model.predict(normal(N, T, F))
    model.layers[0].trainable = False
    model.save(tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    assert [layer.trainable for layer in again.layers] == [False, True]


def test_nested_models() -> None:
    inner = Sequential([layers.Dense(3, "tanh"), layers.GRU(2)])
    nested, flat = Sequential([inner, layers.Dense(1)]), Sequential([*inner.layers, layers.Dense(1)])
    x = normal(N, T, F)
    nested.predict(x)
    flat.predict(x)
    flat.layers[2].set_weights(nested.layers[1].get_weights())
    steps = TrainingStep(), TrainingStep()
    found = [m.train(x, None, s) for m, s in zip((nested, flat), steps, strict=True)]
    dy = upstream(found[0][0])
    assert_same(*(back(dy) for _, _, back in found), "dx")
    for layer in inner.layers:
        for a, b in zip(*(weight_gradients(layer, s) for s in steps), strict=True):
            assert_same(a, b, "gradient")


def test_the_same_bits_for_any_number_of_threads() -> None:
    ids = np.random.default_rng(0).integers(0, 50, (64, 40))
    model = Sequential(
        [
            layers.Embedding(50, 48),
            layers.SpatialDropout1D(0.2),
            layers.GRU(64, return_sequences=True, dropout=0.1),
            layers.BatchNormalization(),
            layers.GRU(64),
            layers.Dense(50, "softmax"),
        ]
    )
    model.predict(ids[:2])
    results = []
    for threads in (1, 2, 3):
        step = TrainingStep(seed=1, num_threads=threads)
        y, _, back = model.train(ids, None, step)
        back(upstream(y))
        found = [whole(g) for layer in model.layers for g in weight_gradients(layer, step) if g is not None]
        results.append([y, *found, *step.updates[model.layers[3]].values()])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert_same(a, b, "threads")


# -- logits --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("activation", "how"),
    [
        ("softmax", "dense"),
        ("softmax", "activation"),
        ("softmax", "layer"),
        ("sigmoid", "dense"),
        ("sigmoid", "activation"),
    ],
)
def test_a_loss_may_hand_over_the_gradient_of_logits(activation: str, how: str) -> None:
    last = {
        "dense": [layers.Dense(4, activation)],
        "activation": [layers.Dense(4), layers.Activation(activation)],
        "layer": [layers.Dense(4), layers.Softmax()],
    }[how]
    model = Sequential(last)
    x = normal(N, F)
    model.predict(x)
    step = TrainingStep()
    y, _, back = model.train(x, None, step)
    z = step.logits(y, activation)
    assert z is not None and step.logits(y, "tanh") is None and step.logits(y.copy(), activation) is None
    np.testing.assert_allclose(z, x @ last[0].weights["kernel"] + last[0].weights["bias"], atol=1e-6)
    dz = upstream(z)
    dx = back(LogitGradient(dz))
    np.testing.assert_allclose(dx, dz @ last[0].weights["kernel"].T, atol=1e-6)
    np.testing.assert_allclose(step.gradients[last[0]]["kernel"], x.T @ dz, atol=1e-6)


def test_logits_pass_where_the_output_is_saturated() -> None:
    model = Sequential([layers.Dense(1, "sigmoid", use_bias=False)])
    model.predict(np.ones((1, 1)))
    model.layers[0].set_weights([np.array([[30.0]], np.float32)])
    step = TrainingStep()
    y, _, back = model.train(np.ones((1, 1), np.float32), None, step)
    assert y == 1.0
    back(LogitGradient(np.ones((1, 1), np.float32)))
    assert step.gradients[model.layers[0]]["kernel"] == 1.0


def test_logits_of_an_output_that_is_used_again() -> None:
    first, second = layers.Dense(3, "softmax"), layers.Dense(2)
    nodes = (Node(first, Ref(0), ((0, 1),)), Node(second, Ref(1), ((0, 2),)))
    graph, x = Graph(nodes, (0,), (1, 2), 3), normal(N, F)
    _, _, (h, y) = gradients(graph, [x])
    dz, dy = upstream([h, y])
    both, step, _ = gradients(graph, [x], lambda outputs: [LogitGradient(dz), dy])
    one, step_z, _ = gradients(graph, [x], lambda outputs: [LogitGradient(dz), None])
    other, step_y, _ = gradients(graph, [x], lambda outputs: [None, dy])
    np.testing.assert_allclose(both[0], one[0] + other[0], atol=1e-6)
    sums = step_z.gradients[first]["kernel"] + step_y.gradients[first]["kernel"]
    np.testing.assert_allclose(step.gradients[first]["kernel"], sums, atol=1e-6)


def test_logits_of_a_nested_model_whose_output_is_used_again() -> None:
    first, second, x = layers.Dense(3, "softmax"), layers.Dense(2), normal(N, F)
    inner = Sequential([layers.Input((F,)), first])
    found = []
    for layer in (inner, first):
        nodes = (Node(layer, Ref(0), ((0, 1),)), Node(second, Ref(1), ((0, 2),)))
        dz, dy = upstream([np.zeros((N, 3)), np.zeros((N, 2))])
        (dx,), step, _ = gradients(Graph(nodes, (0,), (1, 2), 3), [x], lambda _, dz=dz, dy=dy: [LogitGradient(dz), dy])
        found.append((dx, step.gradients[first]["kernel"]))
    for nested, flat in zip(*found, strict=True):
        assert_same(nested, flat, "nested")


# -- what cannot be trained ----------------------------------------------------------------


class NoWayBack(layers.Layer):
    """A layer that only scores."""

    def __init__(self) -> None:
        super().__init__("odd")
        self.ready = True

    def forward(self, x: Any, mask: Any, num_threads: int | None, initial_state: Any = None) -> tuple[Any, Any]:
        return x, mask


class Witness(layers.Identity):
    """Says when work has begun."""

    def train(self, *args: Any) -> Any:
        raise AssertionError("this must not run")


def test_refused_before_any_work() -> None:
    refusal = r"cannot train through layer 'odd' \(NoWayBack\): it has no backward pass here"
    x = normal(N, F)
    for graph in (
        chain([Witness(), layers.Dense(2), NoWayBack()]),
        chain([Witness(), layers.Dense(2), layers.TimeDistributed(NoWayBack())]),
        chain([Witness(), layers.Dense(2), layers.Activation(NoWayBack())]),
        chain([Witness(), layers.Dense(2, activation=NoWayBack())]),
        chain([Witness(), layers.Dense(2), Sequential([NoWayBack(), layers.Dense(2)])]),
    ):
        with pytest.raises(ValueError, match=refusal):
            train(graph, [x], [None], TrainingStep())
    with pytest.raises(ValueError, match="cannot train through layer 'odd'"):
        NoWayBack().train(x, None, TrainingStep())
    operation = Operation("Prod", {"axis": 1}, "p")
    with pytest.raises(ValueError, match=r"cannot train through operation 'p' \(Prod\): only through Abs, "):
        train(chain([Witness(), layers.Dense(2), operation]), [x], [None], TrainingStep())
    renorm = layers.BatchNormalization(name="b", renorm=True)
    with pytest.raises(ValueError, match=r"'b' \(BatchNormalization\): renorm"):
        train(chain([Witness(), renorm]), [x], [None], TrainingStep())
    penalty = layers.ActivityRegularization(0.1, name="a")
    with pytest.raises(ValueError, match=r"'a' \(ActivityRegularization\): its penalty"):
        train(chain([Witness(), layers.Dense(2), penalty]), [x], [None], TrainingStep())


def test_a_gru_with_an_activation_that_hides_its_slope_is_refused() -> None:
    layer = layers.GRU(2, activation=("elu", -1.0, 0.0), name="g")
    with pytest.raises(
        ValueError, match=r"cannot train through layer 'g' \(GRU\): activation: no gradient through elu"
    ):
        train(chain([layer]), [normal(N, T, F)], [None], TrainingStep())


def test_what_no_gradient_has_to_pass_is_allowed() -> None:
    """Before the first weights, behind the last output, and on the way to a mask."""
    x = normal(N, T, F)
    odd, gru, other = NoWayBack(), layers.GRU(2), NoWayBack()
    nodes = (
        Node(odd, Ref(0), ((0, 1),)),
        Node(Operation("Greater", {}, "g"), ([Ref(0), 0.0], {}), ((0, 2),)),
        Node(Operation("Prod", {"axis": -1}, "p"), ([Ref(2)], {}), ((0, 3),)),
        Node(gru, Ref(1), ((0, 4),), Ref(3)),
        Node(other, Ref(4), ((0, 5),)),
    )
    graph = Graph(nodes, (0,), (4,), 6)
    assert untrainable(graph) == ""
    outputs, _, back = train(graph, [x], [None], step := TrainingStep())
    back(upstream(outputs))
    assert set(step.gradients) == {gru}
    with pytest.raises(ValueError, match="'odd'"):
        train(graph, [x], [None], TrainingStep(), input_gradients=True)
    frozen = chain([NoWayBack(), layers.Flatten()])
    assert untrainable(frozen) == ""


def test_a_model_names_its_layer() -> None:
    model = Sequential([layers.Dense(2), NoWayBack()])
    assert isinstance(model, Model)
    assert "'odd'" in model.untrainable()
    with pytest.raises(ValueError, match="'odd'"):
        model.train(normal(N, F), None, TrainingStep())
