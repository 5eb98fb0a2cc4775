"""Live comparison of gradients: PyTorch's autograd, and TensorFlow's tape over the GRU layers of Keras 3 and tf-keras.

The frameworks compute in float64, from our float32 weights. FASTGRU_PARITY=full runs ten times as many random cases.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from helpers_core import Case, assert_close
from helpers_gradients import (
    NAMES,
    WEIGHTS,
    assert_gradients,
    expected,
    gradients,
    in_layout,
    nearest_kink,
    upstream,
)
from helpers_parity import framework
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fastgru import gates, ops

TIMES = 10 if os.environ.get("FASTGRU_PARITY") == "full" else 1
SETTINGS = settings(deadline=None, derandomize=True, print_blob=False)
FAR = 1e-5  # from a kink, for float32 to stand on the same side of it


# --- PyTorch ---------------------------------------------------------------------------------------------------------


class TorchCase(Case):
    """No row without steps: PyTorch refuses to pack those."""

    def arrays(self) -> dict[str, Any]:
        a = super().arrays()
        return {**a, "lengths": np.maximum(a["lengths"], 1)}


@st.composite
def torch_cases(draw: st.DrawFn) -> TorchCase:
    return TorchCase(
        N=draw(st.integers(1, 20)),
        T=draw(st.integers(1, 12)),
        I=draw(st.integers(1, 40)),
        H=draw(st.integers(1, 40)),
        seed=draw(st.integers(0, 2**16)),
        biases=draw(st.sampled_from(("none", "both"))),
        ragged=draw(st.sampled_from(("none", "lengths"))),
        h0=draw(st.booleans()),
        reverse=draw(st.booleans()),
        batch_first=draw(st.booleans()),
    )


def autograd(torch: Any, case: Case, dy: Any, dh_n: Any) -> tuple[Any, ops.Gradients]:
    """y and the gradients of PyTorch, in the layout of the call; a reversed layer is half of a bidirectional one."""
    a, way = case.arrays(), "_reverse" if case.reverse else ""
    bias, turn = case.biases == "both", (lambda b: b if case.batch_first else b.transpose(0, 1))
    module = torch.nn.GRU(case.I, case.H, 1, bias, case.batch_first, 0.0, case.reverse).double()
    parameters = {name: getattr(module, f"{name}_l0{way}") for name in WEIGHTS if bias or name.startswith("weight")}
    for name, parameter in parameters.items():
        parameter.data.copy_(torch.from_numpy(a[name]))
    x = torch.from_numpy(a["x"]).double().requires_grad_()
    h0 = None if a["h0"] is None else torch.from_numpy(a["h0"]).double().requires_grad_()
    both = h0 if h0 is None else torch.stack([torch.zeros_like(h0), h0] if case.reverse else [h0])
    if case.ragged == "lengths":
        pack = torch.nn.utils.rnn.pack_padded_sequence
        y, h_n = module(pack(turn(x), a["lengths"], case.batch_first, enforce_sorted=False), both)
        y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, case.batch_first, total_length=case.T)
    else:
        y, h_n = module(turn(x), both)
    y, h_n = turn(y)[..., -case.H :], h_n[-1]
    loss = (h_n * (0 if dh_n is None else torch.from_numpy(dh_n))).sum()
    loss = loss + (y * (0 if dy is None else torch.from_numpy(dy))).sum()
    loss.backward()
    of = {name: parameters[name].grad.numpy() if name in parameters else None for name in WEIGHTS}
    dx = in_layout(case, x.grad.numpy())
    return in_layout(case, y.detach().numpy()), ops.Gradients(dx, None if h0 is None else h0.grad.numpy(), *of.values())


@pytest.mark.parity("torch")
def test_torch_autograd() -> None:
    torch = framework("torch")

    @settings(SETTINGS, max_examples=40 * TIMES)
    @given(torch_cases(), st.sampled_from(("both", "dy", "dh_n")))
    def run(case: TorchCase, losses: str) -> None:
        dy, dh_n = upstream(case)
        dy, dh_n = None if losses == "dh_n" else dy, None if losses == "dy" else dh_n
        y, right = autograd(torch, case, dy, dh_n)
        assert_close(case.run()[0], y)
        assert_gradients(gradients(case, dy, dh_n), right)

    run()


@pytest.mark.parity("torch")
@pytest.mark.parametrize("sizes", [(1, 40, 64, 64), (3, 2, 130, 17), (33, 12, 20, 100), (70, 6, 1, 129)])
@pytest.mark.parametrize("reverse", [False, True])
def test_torch_autograd_at_larger_sizes(sizes: tuple[int, ...], reverse: bool) -> None:
    torch = framework("torch")
    case = TorchCase(*sizes, ragged="lengths", h0=True, reverse=reverse)
    assert_gradients(gradients(case, *upstream(case)), autograd(torch, case, *upstream(case))[1])


@pytest.mark.parity("torch")
def test_torch_autograd_through_layers_of_both_directions() -> None:
    """Two bidirectional layers by hand: halves beside each other going forward, dx of both added going back."""
    torch = framework("torch")
    torch.manual_seed(0)
    N, T, I, H = 5, 9, 6, 11
    module = torch.nn.GRU(I, H, 2, batch_first=True, bidirectional=True)
    x, dy, lengths = torch.randn(N, T, I, requires_grad=True), torch.randn(N, T, 2 * H), [3, 9, 1, 7, 9]
    rows = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, True, enforce_sorted=False)
    y, _ = torch.nn.utils.rnn.pad_packed_sequence(module(rows)[0], True)
    y.backward(dy)
    state = {name: w.numpy() for name, w in module.state_dict().items()}
    names = [[f"{w}_l{layer}{way}" for w in WEIGHTS] for layer in (0, 1) for way in ("", "_reverse")]
    inputs, caches = x.detach().numpy(), []
    for layer in (0, 1):
        made = [
            ops.gru(
                inputs,
                *(state[n] for n in names[2 * layer + way]),
                lengths=lengths,
                reverse=way == 1,
                return_cache=True,
            )
            for way in (0, 1)
        ]
        inputs = np.concatenate([m[0] for m in made], axis=2)
        caches.append([m[2] for m in made])
    assert_close(inputs, y.detach().numpy())
    d, parameters = dy.numpy(), dict(module.named_parameters())
    for layer in (1, 0):
        halves = [ops.gru_backward(d[..., way * H : (way + 1) * H], caches[layer][way]) for way in (0, 1)]
        for way, g in enumerate(halves):
            right = [parameters[n].grad.numpy() for n in names[2 * layer + way]]
            assert_gradients(g, ops.Gradients(g.dx, None, *right))
        d = halves[0].dx + halves[1].dx
    assert_close(d, x.grad.numpy(), 3e-6 * max(1.0, float(x.grad.abs().max())))


@pytest.mark.parity("torch")
def test_torch_tensors_are_upstream_gradients() -> None:
    torch = framework("torch")
    case = TorchCase(4, 5, 3, 6, h0=True)
    dy, dh_n = map(torch.from_numpy, upstream(case))
    cache = case.call(ops.gru, case.packed(), return_cache=True)[2]
    assert_gradients(ops.gru_backward(dy, cache, dh_n), autograd(torch, case, *upstream(case))[1])
    cache = case.call(ops.gru, case.packed(), return_cache=True)[2]
    with pytest.raises(TypeError, match=r"^dy: can't be read as a NumPy array .*detach"):
        ops.gru_backward(dy.clone().requires_grad_(), cache)


# --- Keras 3 and tf-keras, over TensorFlow ---------------------------------------------------------------------------

HARD = {"keras": ("hard_sigmoid", 1 / 6, 0.5), "tf_keras": ("hard_sigmoid", 0.2, 0.5)}


class KerasCase(Case):
    """Masks with padding on one side, on both, or between; the first row may be all padding."""

    def arrays(self) -> dict[str, Any]:
        a, steps = super().arrays(), np.arange(self.T)
        first = np.minimum(np.random.default_rng(self.seed + 2).integers(0, self.T, self.N), self.T - a["lengths"])
        start = {0: 0 * first, 1: self.T - a["lengths"], 2: first}.get(self.seed % 4)
        if start is not None:
            a["mask"] = (steps >= start[:, None]) & (steps < (start + a["lengths"])[:, None])
        return a


@st.composite
def keras_cases(draw: st.DrawFn, name: str, reset_after: bool) -> KerasCase:
    biases = "both" if reset_after else "ih"
    return KerasCase(
        N=draw(st.integers(1, 6)),
        T=draw(st.integers(1, 6)),
        I=draw(st.integers(1, 9)),
        H=draw(st.integers(1, 9)),
        seed=draw(st.integers(0, 2**16)),
        biases=draw(st.sampled_from((biases, biases, "none"))),
        ragged=draw(st.sampled_from(("mask", "mask", "none"))),
        h0=draw(st.booleans()),
        reverse=draw(st.booleans()),
        padding=draw(st.sampled_from(("keras", "keras", "zero"))),
        variant={
            "reset_after": reset_after,
            "activation": draw(st.sampled_from(("tanh", "tanh", "relu", "softsign", "elu"))),
            "recurrent_activation": draw(st.sampled_from(("sigmoid", HARD[name]))),
        },
    )


def tape(keras: Any, tf: Any, case: Case, dy: Any, dh_n: Any) -> tuple[Any, ops.Gradients]:
    """y and the gradients of a Keras layer; one that goes backwards gives y in the order of processing."""
    a, v = case.arrays(), case.variant
    layer = keras.layers.GRU(
        case.H,
        activation=v["activation"],
        recurrent_activation=v["recurrent_activation"] if v["recurrent_activation"] == "sigmoid" else "hard_sigmoid",
        use_bias=case.biases != "none",
        reset_after=v["reset_after"],
        return_sequences=True,
        return_state=True,
        go_backwards=case.reverse,
        zero_output_for_mask=case.padding == "zero",
        dtype="float64",
    )
    layer.build((None, None, case.I))
    weights = gates.Weights(*(a[name] for name in WEIGHTS))
    layer.set_weights([w for w in gates.to_keras(weights, reset_after=v["reset_after"]) if w is not None])
    x = tf.constant(a["x"], tf.float64)
    h0 = None if a["h0"] is None else tf.constant(a["h0"], tf.float64)
    sources = [x, *([] if h0 is None else [h0])]
    with tf.GradientTape() as recorded:
        recorded.watch(sources)
        y, h_n = layer(x, initial_state=h0, mask=tf.constant(a["mask"]) if case.ragged == "mask" else None)
        y = tf.reverse(y, [1]) if case.reverse else y
        loss = tf.reduce_sum(y * dy) + tf.reduce_sum(h_n * dh_n)
    variables = [getattr(w, "value", w) if keras.__name__ == "keras" else w for w in layer.trainable_weights]
    dx, *rest = [g.numpy() for g in recorded.gradient(loss, [*sources, *variables], unconnected_gradients="zero")]
    dh0 = None if h0 is None else rest.pop(0)
    bias = rest[2] if len(rest) == 3 else None
    return y.numpy(), ops.Gradients(dx, dh0, *gates.from_keras(*rest[:2], bias, reset_after=v["reset_after"]))


@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.parity(n)) for n in ("keras", "tf_keras")])
def test_keras_tape(name: str, reset_after: bool) -> None:
    keras, tf = framework(name), framework("tensorflow")
    if keras.backend.backend() != "tensorflow":
        pytest.skip(f"Keras runs on {keras.backend.backend()} here, and the tape needs TensorFlow")

    @settings(SETTINGS, max_examples=16 * TIMES)
    @given(keras_cases(name, reset_after))
    def run(case: KerasCase) -> None:
        dy, dh_n = upstream(case)
        with nearest_kink() as distances:
            expected(case, dy, dh_n)
        assume(distances[-1] > FAR)
        y, right = tape(keras, tf, case, dy, dh_n)
        assert_close(case.run()[0], y)
        assert_gradients(gradients(case, dy, dh_n), right)

    run()


# --- the comparison --------------------------------------------------------------------------------------------------


@pytest.mark.parity("torch")
@pytest.mark.parametrize("name", NAMES)
def test_the_torch_comparison_bites(name: str) -> None:
    case = TorchCase(6, 5, 9, 7, ragged="lengths", h0=True)
    right = autograd(framework("torch"), case, *upstream(case))[1]
    bites(case, right, name)


@pytest.mark.parity("keras")
@pytest.mark.parametrize("reset_after", [True, False])
def test_the_keras_comparison_bites(reset_after: bool) -> None:
    keras, tf = framework("keras"), framework("tensorflow")
    if keras.backend.backend() != "tensorflow":
        pytest.skip(f"Keras runs on {keras.backend.backend()} here, and the tape needs TensorFlow")
    variant = {"reset_after": reset_after, "activation": "tanh", "recurrent_activation": "sigmoid"}
    biases = "both" if reset_after else "ih"
    case = KerasCase(6, 5, 9, 7, 2, biases, "mask", h0=True, padding="keras", variant=variant)
    right = tape(keras, tf, case, *upstream(case))[1]
    for name in NAMES if reset_after else NAMES[:5]:
        bites(case, right, name)


def bites(case: Case, right: ops.Gradients, name: str) -> None:
    """Zeros, gates (or rows) swapped, a sign, one element and a missing gradient are found; so is the other reset."""
    found = gradients(case, *upstream(case))
    assert_gradients(found, right)
    good = getattr(found, name)
    one = good.copy()
    one.flat[-1] += 1e-3
    for bad in (
        np.zeros_like(good),
        np.concatenate([good[len(good) // 3 :], good[: len(good) // 3]]),
        -good,
        one,
        None,
    ):
        with pytest.raises(AssertionError, match=f"^{name}: "):
            assert_gradients(found._replace(**{name: bad}), right)
    after = case.variant.get("reset_after", True)
    other = type(case)(**{**vars(case), "variant": {**case.variant, "reset_after": not after}})
    with pytest.raises(AssertionError):
        assert_gradients(gradients(other, *upstream(case)), right)
