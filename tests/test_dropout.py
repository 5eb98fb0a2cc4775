"""Layers that act in training only: how much they drop, which numbers they draw, and that gradients pass the mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers_core import assert_same
from helpers_layers import MASKS, mask_of, normal
from helpers_training import assert_derivative, assert_gradient, upstream, weight_gradients

from fastgru import layers
from fastgru.layers import Layer, TrainingStep

Array = np.ndarray
N, T, F, H = 4, 6, 3, 5


class Recorder(TrainingStep):
    """Keeps the masks it gives out."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.masks: list[Array] = []

    def keep(self, shape: tuple[int, ...], rate: float, seed: int | None = None) -> Array:
        self.masks.append(super().keep(shape, rate, seed))
        return self.masks[-1]


def through(layer: Layer, x: Any, step: TrainingStep | None = None, mask: Any = None) -> tuple[Array, Array, Array]:
    """Output, the gradient given to it, and that of x."""
    layer.ensure_ready(x)
    y, _, back = layer.train(x, mask, step or TrainingStep())
    dy = upstream(y)
    return y, dy, back(dy)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_drops_that_share_and_scales_the_rest(rate: float) -> None:
    x = np.ones((200, 50, 20), np.float32)
    y, dy, dx = through(layers.Dropout(rate), x)
    kept = y != 0
    assert abs(kept.mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / x.size)  # five standard deviations
    np.testing.assert_array_equal(y[kept], np.float32(1 / (1 - rate)))
    np.testing.assert_array_equal(dx, dy * y)
    # decisions don't hang together: neighbours along every axis agree as often as independent ones do
    chance = rate**2 + (1 - rate) ** 2
    for axis in range(3):
        ahead = np.take(kept, range(1, x.shape[axis]), axis)
        agree = (ahead == np.take(kept, range(x.shape[axis] - 1), axis)).mean()
        assert abs(agree - chance) < 0.01


def test_no_dropout_and_all_of_it() -> None:
    x = normal(3, 4)
    y, dy, dx = through(layers.Dropout(0.0), x)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(dx, dy)
    y, _, dx = through(layers.Dropout(1.0), x)
    assert not y.any() and not dx.any()
    with pytest.raises(ValueError, match="rate: expected 0 … 1, found 1.5"):
        layers.Dropout(1.5)


def test_scoring_and_masks_pass() -> None:
    x, mask = normal(N, T, F), mask_of("right")
    for layer in (layers.Dropout(0.5), layers.SpatialDropout1D(0.5), layers.AlphaDropout(0.5), layers.GaussianNoise(1)):
        assert layer.forward(x, mask, 1) == (x, mask)
        assert layer.train(x, mask, TrainingStep())[1] is mask


def test_spatial_dropout_decides_once_for_all_steps() -> None:
    y, dy, dx = through(layers.SpatialDropout1D(0.5), np.ones((50, 7, 20), np.float32))
    assert (y == y[:, :1]).all() and 0.4 < (y == 0).mean() < 0.6
    np.testing.assert_array_equal(dx, dy * y)
    with pytest.raises(ValueError, match=r"expected \(N, T, I\), found \(3, 4\)"):
        through(layers.SpatialDropout1D(0.5), normal(3, 4))


def test_noise_shape() -> None:
    y, _, _ = through(layers.Dropout(0.5, noise_shape=[None, 1, None]), np.ones((50, 7, 20), np.float32))
    assert (y == y[:, :1]).all() and (y != y[:1]).any()
    with pytest.raises(ValueError, match="noise_shape: expected 2 sizes"):
        through(layers.Dropout(0.5, noise_shape=[None, 1, None]), normal(3, 4))


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_alpha_dropout_keeps_mean_and_variance(rate: float) -> None:
    x = normal(1000, 500)
    y, dy, dx = through(layers.AlphaDropout(rate), x)
    assert abs(y.mean() - x.mean()) < 0.01 and abs(y.var() - x.var()) < 0.02
    dropped = dx == 0
    assert abs(dropped.mean() - rate) < 0.005
    a = (dx[~dropped] / dy[~dropped]).mean()
    np.testing.assert_allclose(y[~dropped], a * x[~dropped] + (y[~dropped] - a * x[~dropped]).mean(), atol=1e-5)


def test_gaussian_noise_and_dropout() -> None:
    x = normal(1000, 300)
    y, dy, dx = through(layers.GaussianNoise(0.3), x)
    noise = y - x
    assert abs(noise.mean()) < 0.003 and abs(noise.std() - 0.3) < 0.003
    assert abs((noise**4).mean() / noise.var() ** 2 - 3) < 0.1  # the fourth moment of a normal distribution
    np.testing.assert_array_equal(dx, dy)
    y, dy, dx = through(layers.GaussianDropout(0.2), np.ones_like(x))
    assert abs(y.mean() - 1) < 0.003 and abs(y.var() - 0.25) < 0.005
    np.testing.assert_array_equal(dx, dy * y)


# -- which numbers are drawn ---------------------------------------------------------------


def test_the_same_step_draws_the_same_and_others_do_not() -> None:
    x = np.ones((8, 100), np.float32)

    def drawn(layer_seed: int | None = None, before: int = 0, **options: int) -> Array:
        step = TrainingStep(**options)
        for _ in range(before):
            step.keep((3, 3), 0.5)
        return through(layers.Dropout(0.5, seed=layer_seed), x, step)[0]

    same = drawn(seed=3, number=7)
    np.testing.assert_array_equal(drawn(seed=3, number=7), same)
    others = [
        drawn(seed=4, number=7),
        drawn(seed=3, number=8),
        drawn(5, seed=3, number=7),
        drawn(None, 1, seed=3, number=7),
    ]
    others.append(drawn(seed=-3, number=7))
    for other in others:
        assert 0.3 < (other == same).mean() < 0.7


@pytest.mark.parametrize("shape", [(12, 5), (12, 3, 7), (12, 1, 16)])
@pytest.mark.parametrize("split", [1, 3, 4, 6])
def test_a_batch_that_is_split_draws_what_it_draws_whole(shape: tuple[int, ...], split: int) -> None:
    for draw in ("random_bits", "normal"):
        whole = getattr(TrainingStep(seed=1, number=2, rows=12), draw)(shape)
        parts = [
            getattr(TrainingStep(seed=1, number=2, rows=split, first_row=row), draw)((split, *shape[1:]))
            for row in range(0, 12, split)
        ]
        assert_same(np.concatenate(parts), whole, draw)
    # inside TimeDistributed every row of the batch is several
    inside = TrainingStep(seed=1, number=2, rows=12).random_bits((24, 5))
    parts = [
        TrainingStep(seed=1, number=2, rows=split, first_row=r).random_bits((2 * split, 5)) for r in range(0, 12, split)
    ]
    assert_same(np.concatenate(parts), inside, "rows that are several")


def test_the_bits_are_those_of_philox() -> None:
    """A checkpoint is continued on other machines and NumPy versions: the numbers are part of the format."""
    generator = np.random.Philox(key=[5, 0], counter=[0, 0, 9, 0])
    words = generator.random_raw(8)
    expected = np.stack([words & 0xFFFFFFFF, words >> 32], axis=1).reshape(2, 8).astype(np.uint32)
    assert_same(TrainingStep(seed=5, number=9).random_bits((2, 7)), np.ascontiguousarray(expected[:, :7]), "philox")


# -- inside the GRU ------------------------------------------------------------------------


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def keras_gru(
    x: Array,
    w: list[Array],
    inputs: list[Array],
    states: list[Array],
    mask: Any,
    after: bool,
    backwards: bool,
    h: Array,
) -> tuple[Array, Array]:
    """keras/src/layers/rnn/gru.py, implementation 1, in float64; masks in Keras' order z r h."""
    kernel, recurrent, bias = w
    units = recurrent.shape[0]
    (kz, kr, kn), (uz, ur, un) = np.split(kernel, 3, 1), np.split(recurrent, 3, 1)
    bz, br, bn = np.split(bias[0] if after else bias, 3)
    cz, cr, cn = np.split(bias[1] if after else np.zeros(3 * units), 3)
    iz, ir, i_n = inputs or [1.0] * 3
    sz, sr, sn = states or [1.0] * 3
    y, out = np.zeros((*x.shape[:2], units)), np.zeros_like(h)
    order = range(x.shape[1] - 1, -1, -1) if backwards else range(x.shape[1])
    for place, t in enumerate(order):
        v = x[:, t]
        z = sigmoid(v * iz @ kz + bz + h * sz @ uz + cz)
        r = sigmoid(v * ir @ kr + br + h * sr @ ur + cr)
        inner = r * (h * sn @ un + cn) if after else (r * (h * sn)) @ un
        n = np.tanh(v * i_n @ kn + bn + inner)
        new = z * h + (1 - z) * n
        valid = True if mask is None else mask[:, t, None]
        h, out = np.where(valid, new, h), np.where(valid, new, out)
        y[:, place] = out
    return y, h


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("sequences", [True, False])
def test_recurrent_dropout(kind: str, dropout: float, after: bool, sequences: bool) -> None:
    x, mask, h0 = normal(N, T, F), mask_of(kind), normal(N, H, seed=1)
    backwards = MASKS.index(kind) % 2 == 1
    layer = layers.GRU(
        H,
        return_sequences=sequences,
        return_state=True,
        go_backwards=backwards,
        reset_after=after,
        dropout=dropout,
        recurrent_dropout=0.3,
    )
    layer.ensure_ready(x)
    layer.set_weights([0.5 * normal(*w.shape, seed=i) for i, w in enumerate(layer.get_weights())])
    step = Recorder(seed=2)
    y, _, back = layer.train(x, mask, step, [h0])
    masks = [m.astype(np.float64) for m in step.masks]  # r z n, inputs before states
    assert len(masks) == (6 if dropout else 3)
    assert len({m.tobytes() for m in masks}) == len(masks)  # one for each gate
    r_z_n = [masks[:3], masks[3:]] if dropout else [[], masks]
    inputs, states = ([m[1], m[0], m[2]] if m else [] for m in r_z_n)
    wide = [v.astype(np.float64) for v in (x, *layer.get_weights(), h0)]

    def outputs() -> list[Array]:
        found, h_n = keras_gru(wide[0], wide[1:4], inputs, states, mask, after, backwards, wide[4])
        return [found if sequences else found[:, -1], h_n]

    for found, right in zip(y, outputs(), strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-5, atol=3e-6)
    dy = upstream(y)

    def loss() -> float:
        return float(sum((v * d).sum() for v, d in zip(outputs(), dy, strict=True)))

    dx, (dh0,) = back(dy)
    for i, found in enumerate([dx, *weight_gradients(layer, step), dh0]):
        assert_derivative(found, loss, wide[i], f"gradient {i}", 1e-5)


@pytest.mark.parametrize("sequences", [True, False])
def test_dropout_of_inputs_is_one_mask_for_all_steps_and_gates(sequences: bool) -> None:
    x = normal(N, T, F)
    layer = layers.GRU(H, return_sequences=sequences, dropout=0.4)
    layer.ensure_ready(x)
    step = Recorder()
    y, _, back = layer.train(x, None, step)
    (keep,) = step.masks
    assert keep.shape == (N, F)
    np.testing.assert_array_equal(y, layer.forward(x * keep[:, None], None, None)[0])
    dy = upstream(y)
    plain = layers.GRU(H, return_sequences=sequences)
    plain.set_weights(layer.get_weights())
    other = TrainingStep()
    _, _, plain_back = plain.train(x * keep[:, None], None, other)
    np.testing.assert_array_equal(back(dy), plain_back(dy) * keep[:, None])
    for found, right in zip(weight_gradients(layer, step), weight_gradients(plain, other), strict=True):
        np.testing.assert_array_equal(found, right)


def test_the_slow_path_without_dropping_is_the_fast_one() -> None:
    """Masks of ones: the products of every gate by itself give what the kernels give."""

    class Ones(TrainingStep):
        def keep(self, shape: tuple[int, ...], rate: float, seed: int | None = None) -> Array:
            return np.ones(shape, np.float32)

    x, mask = normal(N, T, F), mask_of("middle")
    for options in (
        {"update_gate": "new"},
        {"reset_after": False, "recurrent_activation": "hard_sigmoid"},
        {"use_bias": False, "activation": "relu"},
        {"zero_output_for_mask": True, "go_backwards": True},
        {"time_major": True},
    ):
        slow = layers.GRU(H, return_sequences=True, recurrent_dropout=0.5, dropout=0.5, **options)
        fast = layers.GRU(H, return_sequences=True, **options)
        v, m = (x, mask) if "time_major" not in options else (x.swapaxes(0, 1), mask.T)
        slow.ensure_ready(v)
        fast.set_weights(slow.get_weights())
        steps = (Ones(), Ones())
        found = [layer.train(v, m, step) for layer, step in zip((slow, fast), steps, strict=True)]
        np.testing.assert_allclose(found[0][0], found[1][0], atol=2e-6)
        dy = upstream(found[0][0])
        dxs = [back(dy) for _, _, back in found]
        np.testing.assert_allclose(dxs[0], dxs[1], atol=5e-6)
        for a, b in zip(*(weight_gradients(x, s) for x, s in zip((slow, fast), steps, strict=True)), strict=True):
            assert_gradient(a, b, str(options), 5e-6)


def test_masks_of_stacked_and_bidirectional_layers_are_their_own() -> None:
    x = normal(N, T, F)
    cells = [layers.GRUCell(F, dropout=0.5), layers.GRUCell(F, dropout=0.5)]
    for layer in (layers.RNN(cells), layers.Bidirectional(layers.GRU(H, dropout=0.5))):
        layer.ensure_ready(x)
        step = Recorder()
        layer.train(x, None, step)
        first, second = step.masks
        assert first.shape == second.shape == (N, F) and (first != second).any()


def test_the_same_bits_for_any_number_of_threads() -> None:
    x = normal(40, 30, 64)
    layer = layers.GRU(64, return_sequences=True, dropout=0.2, recurrent_dropout=0.2)
    layer.ensure_ready(x)
    results = []
    for threads in (1, 2, 3):
        step = TrainingStep(seed=4, num_threads=threads)
        y, _, back = layer.train(x, None, step)
        results.append([y, back(upstream(y)), *weight_gradients(layer, step)])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert_same(a, b, "threads")


def test_rates_of_one_are_refused_before_any_work() -> None:
    layer = layers.GRU(H, dropout=1.0, name="g")
    with pytest.raises(ValueError, match=r"cannot train through layer 'g' \(GRU\): dropout"):
        layers_graph_train(layer)


def layers_graph_train(layer: Layer) -> None:
    from fastgru.graph import chain, train

    train(chain([layer]), [normal(N, T, F)], [None], TrainingStep())


def test_config_comes_back() -> None:
    from fastgru import Sequential
    from fastgru.layers.reader import Reader

    reader = Reader(layers.Dialect(), "m", lambda entry, reader: Sequential())
    for layer in (
        layers.Dropout(0.3, [None, 1], 5, "d"),
        layers.SpatialDropout1D(0.3, 5, "s"),
        layers.AlphaDropout(0.3, None, 5, "a"),
        layers.GaussianDropout(0.3, 5, "g"),
        layers.GaussianNoise(0.3, 5, "n"),
        layers.GRU(H, dropout=0.1, recurrent_dropout=0.2, seed=7, name="r"),
    ):
        again = reader.layer({"class_name": layer.class_name(), "config": layer.get_config()})
        assert type(again) is type(layer)
        assert {**again.get_config(), "noise_shape": None} == {**layer.get_config(), "noise_shape": None}
    strange = {"rate": "high", "seed": {"class_name": "SeedGenerator"}, "noise_shape": [0], "name": "d"}
    assert reader.layer({"class_name": "Dropout", "config": strange}).get_config()["rate"] == 0.0


def test_the_checker_bites(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastgru.layers import gate_dropout

    real = gate_dropout._Gates.backward

    def forgets_a_mask(self: Any, t: int, d: Array) -> Array:
        masks, self.state_masks = self.state_masks, []
        found = real(self, t, d)
        self.state_masks = masks
        return found

    test_recurrent_dropout("none", 0.4, True, True)
    monkeypatch.setattr(gate_dropout._Gates, "backward", forgets_a_mask)
    with pytest.raises(AssertionError):
        test_recurrent_dropout("none", 0.4, True, True)
