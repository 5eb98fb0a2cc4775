"""Optimisers and schedules: Keras' weights after some steps; sparse gradients as whole ones; a state that goes on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers_parity import framework

from fastgru import Sequential, layers
from fastgru.layers import SparseRows
from fastgru.training import optimizers, schedules

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {}),
    "momentum": ("SGD", {"momentum": 0.9}),
    "nesterov": ("SGD", {"momentum": 0.8, "nesterov": True}),
    "adagrad": ("Adagrad", {"learning_rate": 0.1}),
    "rmsprop": ("RMSprop", {"learning_rate": 0.01}),
    "rmsprop centered": ("RMSprop", {"learning_rate": 0.01, "centered": True, "momentum": 0.5}),
    "adam": ("Adam", {"learning_rate": 0.01}),
    "amsgrad": ("Adam", {"learning_rate": 0.01, "amsgrad": True}),
    "adamw": ("AdamW", {"learning_rate": 0.01}),
    "decay": ("SGD", {"weight_decay": 0.1}),
    "clipnorm": ("SGD", {"clipnorm": 0.5}),
    "global_clipnorm": ("Adam", {"global_clipnorm": 0.5}),
    "clipvalue": ("SGD", {"clipvalue": 0.1}),
    "adam clipnorm": ("Adam", {"clipnorm": 0.5, "weight_decay": 0.01}),
    "adagrad global_clipnorm": ("Adagrad", {"global_clipnorm": 0.5, "weight_decay": 0.01}),
    "rmsprop clipvalue": ("RMSprop", {"clipvalue": 0.1, "weight_decay": 0.01}),
    "momentum decay": ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.05, "global_clipnorm": 1.0}),
    "adamw clipnorm": ("AdamW", {"weight_decay": 0.1, "clipnorm": 0.3}),
}
SHAPES = {"table": (9, 4), "kernel": (4, 6), "bias": (6,)}


def start(seed: int = 3) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Weights, and the gradients of some steps; of the table only rows 2, 5 and 6 get any."""
    rng = np.random.default_rng(seed)
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    steps = [{name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()} for _ in range(12)]
    for gradients in steps:
        gradients["table"][[0, 1, 3, 4, 7, 8]] = 0
    return weights, steps


def sparse(gradients: dict[str, Any]) -> dict[str, Any]:
    ids = np.array([2, 5, 6])
    return {**gradients, "table": SparseRows(ids, gradients["table"][ids], 9)}


def ours(case: str) -> optimizers.Optimizer:
    name, options = CASES[case]
    return getattr(optimizers, name)(**options)  # type: ignore[no-any-return]


@pytest.mark.parity("keras")
@pytest.mark.parametrize("case", CASES)
def test_weights_of_keras(case: str) -> None:
    keras = framework("keras")
    name, options = CASES[case]
    weights, steps = start()
    variables = [keras.Variable(w) for w in weights.values()]
    theirs = getattr(keras.optimizers, name)(**options)
    mine = ours(case)
    for gradients in steps:
        theirs.apply([keras.ops.convert_to_tensor(gradients[key]) for key in weights], variables)
        mine.apply(sparse(gradients), weights)
    for variable, found in zip(variables, weights.values(), strict=True):
        np.testing.assert_allclose(found, np.asarray(variable), rtol=1e-5, atol=1e-6)


@pytest.mark.parity("keras")
@pytest.mark.parametrize("case", CASES)
def test_an_embedding_of_keras(case: str) -> None:
    """Keras' own sparse gradients (IndexedSlices on TensorFlow), of ids that a batch holds once."""
    keras = framework("keras")
    name, options = CASES[case]
    rng = np.random.default_rng(4)
    ids = np.stack([rng.permutation(8)[:6].reshape(2, 3) for _ in range(5)])  # row 8 never
    y = rng.normal(size=(5, 2, 2)).astype(np.float32)
    theirs, mine = (
        sequential([a.Embedding(9, 4), a.Flatten(), a.Dense(2)])
        for sequential, a in ((keras.Sequential, keras.layers), (Sequential, layers))
    )
    theirs.compile(getattr(keras.optimizers, name)(**options), "mse")
    mine.compile(ours(case), "mse")
    mine.predict(ids[0])
    theirs.predict(ids[0], verbose=0)
    mine.set_weights(theirs.get_weights())
    for x, labels in zip(ids, y, strict=True):
        theirs.train_on_batch(x, labels)
        mine.train_on_batch(x, labels)
    for a, b in zip(mine.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("case", CASES)
def test_sparse_rows_move_a_table_as_the_whole_gradient_does(case: str) -> None:
    (whole, steps), (parts, _) = start(), start()
    a, b = ours(case), ours(case)
    for gradients in steps:
        a.apply(gradients, whole)
        b.apply(sparse(gradients), parts)
    for name in whole:
        np.testing.assert_array_equal(whole[name], parts[name])


@pytest.mark.parametrize("case", CASES)
def test_a_state_goes_on_bitwise(case: str) -> None:
    (whole, steps), (parts, _) = start(), start()
    a, b = ours(case), ours(case)
    for gradients in steps:
        a.apply(gradients, whole)
    for gradients in steps[:5]:
        b.apply(gradients, parts)
    kept = {key: np.array(value) for key, value in b.state().items()}
    c = ours(case)
    c.set_state(kept)
    for gradients in steps[5:]:
        c.apply(gradients, parts)
    for name in whole:
        np.testing.assert_array_equal(whole[name], parts[name])
    assert c.iterations == len(steps)


def test_a_state_of_another_kind_is_refused() -> None:
    weights, steps = start()
    adam = optimizers.Adam()
    adam.apply(steps[0], weights)
    with pytest.raises(ValueError, match=r"state: expected that of Adagrad, \['accumulator'\], found"):
        optimizers.Adagrad().set_state(adam.state())


@pytest.mark.parity("keras")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ExponentialDecay", {"initial_learning_rate": 0.1, "decay_steps": 7, "decay_rate": 0.5}),
        ("ExponentialDecay", {"initial_learning_rate": 0.1, "decay_steps": 7, "decay_rate": 0.5, "staircase": True}),
        ("CosineDecay", {"initial_learning_rate": 0.1, "decay_steps": 20, "alpha": 0.1}),
        ("CosineDecay", {"initial_learning_rate": 0.0, "decay_steps": 20, "warmup_target": 0.2, "warmup_steps": 5}),
        ("PiecewiseConstantDecay", {"boundaries": [3, 10], "values": [1.0, 0.5, 0.1]}),
    ],
)
def test_schedules_of_keras(name: str, options: dict[str, Any]) -> None:
    keras = framework("keras")
    theirs, mine = getattr(keras.optimizers.schedules, name)(**options), getattr(schedules, name)(**options)
    for step in range(30):
        assert mine(step) == pytest.approx(float(theirs(step)), rel=1e-5, abs=1e-8)


def test_a_warm_up_comes_before_what_follows() -> None:
    rate = schedules.Warmup(schedules.ExponentialDecay(0.1, 1, 0.5), 4)
    assert [rate(step) for step in range(7)] == pytest.approx([0, 0.025, 0.05, 0.075, 0.1, 0.05, 0.025])


def test_a_schedule_moves_the_steps() -> None:
    weights, rate = {"w": np.zeros(1, np.float32)}, schedules.PiecewiseConstantDecay([0], [1.0, 0.1])
    sgd = optimizers.SGD(rate)
    for _ in range(3):
        sgd.apply({"w": np.ones(1, np.float32)}, weights)
    assert weights["w"][0] == pytest.approx(-1.2)


def test_bad_input() -> None:
    weights, steps = start()
    with pytest.raises(ValueError, match="did you mean 'adagrad'"):
        optimizers.get("adagrat")
    with pytest.raises(TypeError, match="optimizer: expected a name"):
        optimizers.get(1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="clipnorm and clipvalue: expected at most one"):
        optimizers.SGD(clipnorm=1, clipvalue=1)
    with pytest.raises(ValueError, match="momentum: expected a number from 0 to below 1, found 1"):
        optimizers.SGD(momentum=1)
    for rate in (float("nan"), -1.0):
        with pytest.raises(ValueError, match="learning_rate: expected a finite number"):
            optimizers.SGD(rate)
    with pytest.raises(ValueError, match="learning_rate: expected a finite number of at least 0, found -1.0 at step 0"):
        optimizers.SGD(lambda step: -1.0).apply(steps[0], weights)
    with pytest.raises(ValueError, match=r"gradient of 'other': expected a weight of shape \(6,\), found none"):
        optimizers.SGD().apply({"other": weights["bias"]}, weights)
    with pytest.raises(ValueError, match=r"values: expected one value more than the 1 boundaries"):
        schedules.PiecewiseConstantDecay([1], [0.1])


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
def test_adam_rounds_as_numpy_does(amsgrad: bool, order: Any) -> None:
    """Bit for bit the formula in NumPy, whatever the memory order of the weight."""
    rng, adam = np.random.default_rng(0), optimizers.Adam(amsgrad=amsgrad)
    weight = np.array(rng.standard_normal((7, 11)), np.float32, order=order)
    w, m, v, hat = weight.copy(), *np.zeros((3, 7, 11), np.float32)
    for t in range(1, 6):
        g = rng.standard_normal(w.shape).astype(np.float32)
        adam.apply({"w": g}, {"w": weight})
        bias = (1 - float(adam.beta_2) ** t) ** 0.5 / (1 - float(adam.beta_1) ** t)
        m += (g - m) * (np.float32(1) - adam.beta_1)
        v += (g * g - v) * (np.float32(1) - adam.beta_2)
        np.maximum(hat, v, out=hat)
        w -= m * np.float32(np.float32(0.001) * bias) / (np.sqrt(hat if amsgrad else v) + adam.epsilon)
    assert np.array_equal(weight, w)


def test_adam_refuses_the_slots_of_another_weight() -> None:
    adam, state = optimizers.Adam(), {"iterations": np.array(1)}
    adam.set_state(state | {f"{slot}/w": np.zeros(5, np.float32) for slot in adam.slots})
    with pytest.raises(ValueError, match=r"expected C-contiguous float32 of 6 numbers, found float32 \(5,\)"):
        adam.apply({"w": np.ones(6, np.float32)}, {"w": np.ones(6, np.float32)})
