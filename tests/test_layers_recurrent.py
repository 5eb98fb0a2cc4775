"""GRU, RNN over cells and Bidirectional against Keras' loop in NumPy (helpers_layers)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers_layers import MASKS, ROWS, STEPS, UNITS, WIDTH, close, mask_of, normal, run, weights

from fastgru import layers
from fastgru.formats import FormatError
from fastgru.layers import Dialect
from fastgru.layers.reader import Reader

X = normal(ROWS, STEPS, WIDTH, seed=1)
H0 = normal(ROWS, UNITS, seed=2)
KERAS2 = Dialect((2, 11))
TEAM = Dialect((2, 2), team=True)


def reader(dialect: Dialect) -> Reader:
    def no_models(entry: Any, reader: Reader) -> Any:
        raise AssertionError("not a model")

    return Reader(dialect, "file", no_models)


def gru(w: list[np.ndarray] | None = None, **arguments: Any) -> layers.GRU:
    layer = layers.GRU(UNITS, **arguments)
    layer.set_weights(weights(reset_after=arguments.get("reset_after", True)) if w is None else w)
    return layer


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("go_backwards", [False, True])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("start", [None, H0], ids=["zeros", "h0"])
def test_gru(mask: str, reset_after: bool, go_backwards: bool, zero: bool, start: Any) -> None:
    valid = mask_of(mask)
    common = {"reset_after": reset_after, "go_backwards": go_backwards, "zero_output_for_mask": zero}
    states = None if start is None else [start.astype(np.float64)]
    cell = (weights(reset_after=reset_after), {"reset_after": reset_after})
    y, (h_n,) = run(X, [cell], valid, states, go_backwards, zero)
    initial = {} if start is None else {"initial_state": start}
    found = gru(return_sequences=True, return_state=True, **common)(X, valid, **initial)
    close(found[0], y)
    close(found[1], h_n)
    close(gru(**common)(X, valid, **initial), y[:, -1])
    last, state = gru(return_state=True, **common)(X, valid, **initial)
    close(last, y[:, -1])
    close(state, h_n)


@pytest.mark.parametrize("activation", ["tanh", "relu", "softsign", "linear"])
@pytest.mark.parametrize("recurrent", ["sigmoid", "hard_sigmoid"])
@pytest.mark.parametrize("reset_after", [True, False])
def test_activations(activation: str, recurrent: str, reset_after: bool) -> None:
    kind = {"reset_after": reset_after, "activation": activation, "recurrent": recurrent}
    y, _ = run(X, [(weights(reset_after=reset_after), kind)])
    layer = gru(activation=activation, recurrent_activation=recurrent, reset_after=reset_after, return_sequences=True)
    close(layer(X), y, atol=1e-5)


def test_without_bias() -> None:
    w = weights()
    y, _ = run(X, [([w[0], w[1], np.zeros_like(w[2])], {"reset_after": True})])
    layer = layers.GRU(UNITS, use_bias=False)
    layer.set_weights(w[:2])
    close(layer(X), y[:, -1])


def test_update_gate_new_swaps_what_z_weighs() -> None:
    w = weights()
    mirrored = [v.copy() for v in w]
    for v in mirrored:
        v[..., :UNITS] *= -1  # z stands first in Keras' order
    close(gru(mirrored, update_gate="new")(X), gru(w)(X), atol=1e-6)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("go_backwards", [False, True])
def test_stacked_cells(mask: str, go_backwards: bool) -> None:
    first, second = weights(UNITS, WIDTH, True), weights(2, UNITS, False, seed=5)
    cells = [layers.GRUCell(UNITS), layers.GRUCell(2, reset_after=False)]
    layer = layers.RNN(
        layers.StackedRNNCells(cells), return_sequences=True, return_state=True, go_backwards=go_backwards
    )
    layer.set_weights([*first, *second])
    start = [H0, normal(ROWS, 2, seed=3)]
    y, states = run(
        X,
        [(first, {"reset_after": True}), (second, {"reset_after": False})],
        mask_of(mask),
        [s.astype(np.float64) for s in start],
        go_backwards,
    )
    found = layer(X, mask_of(mask), initial_state=start)
    close(found[0], y)
    for a, b in zip(found[1:], states, strict=True):
        close(a, b)


@pytest.mark.parametrize("mode", ["concat", "sum", "mul", "ave", None])
@pytest.mark.parametrize("sequences", [True, False])
@pytest.mark.parametrize("mask", ["none", "right", "middle", "all"])
def test_bidirectional(mode: str | None, sequences: bool, mask: str) -> None:
    first, second, valid = weights(), weights(seed=9), mask_of(mask)
    layer = layers.Bidirectional(layers.GRU(UNITS, return_sequences=sequences), mode)
    layer.set_weights([*first, *second])
    a, _ = run(X, [(first, {"reset_after": True})], valid, zero_output=sequences)
    b, _ = run(X, [(second, {"reset_after": True})], valid, go_backwards=True, zero_output=sequences)
    a, b = (a, b[:, ::-1]) if sequences else (a[:, -1], b[:, -1])
    found = layer(X, valid)
    if mode is None:
        close(found[0], a)
        close(found[1], b)
        return
    merged = {"concat": np.concatenate([a, b], -1), "sum": a + b, "mul": a * b, "ave": (a + b) / 2}
    close(found, merged[mode])


def test_bidirectional_around_a_backwards_layer_flips_both_halves() -> None:
    forward = layers.GRU(UNITS, return_sequences=True, go_backwards=True)
    layer = layers.Bidirectional(forward)
    layer.set_weights([*weights(), *weights(seed=9)])
    a, _ = run(X, [(weights(), {"reset_after": True})], go_backwards=True)
    b, _ = run(X, [(weights(seed=9), {"reset_after": True})])
    close(layer(X), np.concatenate([a, b[:, ::-1]], -1))


def test_bidirectional_of_old_keras_repeats_masked_outputs() -> None:
    valid = mask_of("right")
    both = weights() + weights(seed=9)
    old = layers.Bidirectional(layers.GRU(UNITS, return_sequences=True, dialect=TEAM), dialect=TEAM)
    old.set_weights(both)
    a, _ = run(X, [(weights(), {"reset_after": True})], valid)
    close(old(X, valid)[..., :UNITS], a)


def test_bidirectional_states_are_split_between_the_directions() -> None:
    layer = layers.Bidirectional(layers.GRU(UNITS, return_state=True))
    layer.set_weights([*weights(), *weights(seed=9)])
    start = [H0, normal(ROWS, UNITS, seed=3)]
    _, forward, backward = layer(X, initial_state=start)
    close(forward, run(X, [(weights(), {"reset_after": True})], None, [start[0].astype(float)])[1][0])
    last = run(X, [(weights(seed=9), {"reset_after": True})], None, [start[1].astype(float)], True)
    close(backward, last[1][0])


def test_leading_steps_give_the_initial_state_in_keras_team_2_2() -> None:
    valid = mask_of("left")
    assert valid is not None
    for backwards in (False, True):
        given = valid[:, ::-1] if backwards else valid
        layer = layers.GRU(UNITS, return_sequences=True, go_backwards=backwards, dialect=TEAM)
        layer.set_weights(weights())
        y = layer(X, given, initial_state=H0)
        leading = ~np.logical_or.accumulate(valid, axis=1)
        np.testing.assert_array_equal(y[leading], np.broadcast_to(H0[:, None], y.shape)[leading])


def test_time_major_is_the_same_with_axes_swapped() -> None:
    valid = mask_of("right")
    assert valid is not None
    plain, turned = gru(return_sequences=True), gru(return_sequences=True, time_major=True)
    y = plain(X, valid)
    np.testing.assert_array_equal(turned(np.swapaxes(X, 0, 1), valid.T), np.swapaxes(y, 0, 1))


def test_a_list_of_inputs_builds_by_the_first() -> None:
    assert layers.GRU(UNITS)([X, H0]).shape == (ROWS, UNITS)
    assert layers.GRU(UNITS)(X, np.ones((ROWS, STEPS)).tolist()).shape == (ROWS, UNITS)


def test_keras_2_passes_states_in_the_input_list() -> None:
    layer = gru()
    np.testing.assert_array_equal(layer([X, H0]), layer(X, initial_state=H0))


class TestStateful:
    def test_the_second_call_continues(self) -> None:
        layer = gru(stateful=True, return_sequences=True)
        first, second = layer(X[:, :2]), layer(X[:, 2:])
        whole = gru(return_sequences=True)(X)
        np.testing.assert_array_equal(np.concatenate([first, second], 1), whole)
        layer.reset_states()
        np.testing.assert_array_equal(layer(X[:, :2]), first)

    def test_another_number_of_rows_is_an_error(self) -> None:
        layer = gru(stateful=True)
        layer(X)
        with pytest.raises(ValueError, match=r"stateful with 4 rows, found 2; call reset_states"):
            layer(X[:2])

    def test_keras_3_takes_a_given_state(self) -> None:
        layer = gru(stateful=True)
        layer(X)
        np.testing.assert_array_equal(layer(X, initial_state=H0), gru()(X, initial_state=H0))

    def test_tf_keras_keeps_its_own_once_it_is_not_zero(self) -> None:
        layer = gru(stateful=True, dialect=KERAS2)
        first = layer(X, initial_state=H0)
        np.testing.assert_array_equal(first, gru()(X, initial_state=H0))
        np.testing.assert_array_equal(layer(X, initial_state=H0), gru()(X, initial_state=first))


class TestConfigs:
    def make(self, config: dict[str, Any], dialect: Dialect, name: str = "GRU") -> layers.GRU:
        layer = reader(dialect).layer({"class_name": name, "config": {"units": UNITS, **config}})
        assert isinstance(layer, layers.GRU)
        return layer

    def test_a_missing_reset_after_is_reset_before(self) -> None:
        layer = self.make({}, TEAM)
        assert not layer.cells[0].reset_after
        layer.set_weights(weights(reset_after=False))

    @pytest.mark.parametrize(
        ("dialect", "expected"),
        [(TEAM, 0.2), (KERAS2, 0.2), (Dialect.of(""), 0.2), (Dialect.of("3.0.0"), 1 / 6), (Dialect(), 1 / 6)],
    )
    def test_hard_sigmoid_by_version(self, dialect: Dialect, expected: float) -> None:
        cell = self.make({"recurrent_activation": "hard_sigmoid"}, dialect).cells[0]
        assert cell._recurrent_activation == ("hard_sigmoid", pytest.approx(expected), 0.5)

    def test_the_old_default_is_hard_sigmoid(self) -> None:
        assert self.make({}, TEAM).cells[0]._recurrent_activation == ("hard_sigmoid", 0.2, 0.5)
        assert self.make({}, Dialect((3, 0))).cells[0]._recurrent_activation == "sigmoid"

    @pytest.mark.parametrize("name", ["CuDNNGRU", "GRU"])
    def test_cudnn_layout(self, name: str) -> None:
        h, rng = UNITS, np.random.default_rng(0)
        w, u = rng.standard_normal((3, h, WIDTH)) * 0.4, rng.standard_normal((3, h, h)) * 0.4  # z r n
        b = (rng.standard_normal((2, 3 * h)) * 0.4).astype(np.float32)
        kernel = np.concatenate([m.reshape(WIDTH, h) for m in w], axis=1).astype(np.float32)
        recurrent = np.concatenate(list(u), axis=1).astype(np.float32)
        layer = self.make({"reset_after": True}, KERAS2, name)
        layer.set_weights([kernel, recurrent, b.reshape(-1)])
        plain = [np.concatenate([m.T for m in v], axis=1).astype(np.float32) for v in (w, u)]
        close(layer(X), run(X, [([*plain, b], {"reset_after": True})])[0][:, -1])

    @pytest.mark.parametrize(("reset_after", "shape"), [(True, (15,)), (False, (2, 15)), (False, (30,))])
    def test_bias_and_config_contradict(self, reset_after: bool, shape: tuple[int, ...]) -> None:
        layer = self.make({"reset_after": reset_after}, KERAS2)
        tensors = {"g/kernel": np.zeros((3, 15)), "g/recurrent_kernel": np.zeros((5, 15)), "g/bias": np.zeros(shape)}
        with pytest.raises(FormatError, match=r"model\.h5: layer 'g': bias: expected .* contradict each other"):
            layer.load(tensors, "g", "model.h5")

    def test_missing_weights_are_named(self) -> None:
        with pytest.raises(FormatError, match=r"model\.h5: layer 'g' \(GRU\): expected a tensor 'g/kernel', found o/x"):
            self.make({}, KERAS2).load({"o/x": np.zeros(1)}, "g", "model.h5")

    def test_other_cells_are_refused(self) -> None:
        cell = {"class_name": "LSTMCell", "config": {"units": 3, "name": "c"}}
        with pytest.raises(FormatError, match="cell 'c' is a LSTMCell"):
            reader(KERAS2).layer({"class_name": "RNN", "config": {"name": "r", "cell": cell}})
        inner = {"class_name": "Dense", "config": {"units": 3, "name": "d"}}
        with pytest.raises(FormatError, match=r"Bidirectional here runs GRU or RNN\(GRUCell\), found Dense"):
            reader(KERAS2).layer({"class_name": "Bidirectional", "config": {"name": "b", "layer": inner}})

    def test_an_unknown_activation_is_named(self) -> None:
        with pytest.raises(FormatError, match=r"layer 'g' \(GRU\).*activation 'swish'.*supported are linear"):
            self.make({"activation": "swish", "name": "g"}, KERAS2)

    def test_a_function_of_the_author_is_refused(self) -> None:
        mine = {"module": "builtins", "class_name": "function", "config": "mine", "registered_name": "function"}
        with pytest.raises(FormatError, match=r"'mine' is a Python function of the model's author"):
            self.make({"activation": mine}, Dialect())


class TestBadInput:
    def test_width(self) -> None:
        with pytest.raises(ValueError, match=r"\(GRU\): expected \(N, T, I\) with I = 3, found \(4, 6, 2\)"):
            gru()(X[..., :2])

    def test_state(self) -> None:
        with pytest.raises(ValueError, match=r"initial_state: expected \(4, 5\), found \(4, 3\)"):
            gru()(X, initial_state=H0[:, :3])
        with pytest.raises(ValueError, match="expected 1 initial states, found 2"):
            gru()(X, initial_state=[H0, H0])

    def test_mask(self) -> None:
        with pytest.raises(ValueError, match="mask"):
            gru()(X, np.ones((4, 5), bool))

    def test_weights(self) -> None:
        with pytest.raises(ValueError, match=r"kernel: expected shape \(3, 15\), found \(3, 14\)"):
            gru([np.zeros((3, 14)), *weights()[1:]])
        with pytest.raises(ValueError, match="expected 3 weights .* found 2"):
            gru(weights()[:2])
        with pytest.raises(ValueError, match="expected 3 weights, found 4"):
            gru([*weights(), np.zeros(1)])

    def test_directions(self) -> None:
        with pytest.raises(ValueError, match="expected directions that differ"):
            layers.Bidirectional(layers.GRU(3), backward_layer=layers.GRU(3))
        with pytest.raises(ValueError, match="expected one return_sequences for both"):
            layers.Bidirectional(layers.GRU(3), backward_layer=layers.GRU(3, return_sequences=True, go_backwards=True))
        with pytest.raises(ValueError, match="merge_mode: expected concat, sum, mul, ave or None, found 'max'"):
            layers.Bidirectional(layers.GRU(3), "max")


def test_made_by_hand_without_weights() -> None:
    layer = layers.GRU(UNITS)
    assert layer(X).shape == (ROWS, UNITS)
    kernel, recurrent, bias = layer.get_weights()
    assert kernel.shape == (WIDTH, 15) and bias.shape == (2, 15) and not bias.any()
    np.testing.assert_allclose(recurrent @ recurrent.T, np.eye(UNITS), atol=1e-5)
    assert layer.count_params() == 3 * 15 + 5 * 15 + 30
