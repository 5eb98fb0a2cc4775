"""Live comparison with Keras 3 and tf-keras beyond the GRU's own settings: graphs, masks, merges,
wrappers, operations. Each model is built there, saved, loaded and scored here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_parity_keras import FRAMEWORKS, assert_close, framework, mask_of, randomise

from fastgru.loading import load
from fastgru.models import Model

ROWS, STEPS = 4, 6
Built = tuple[Any, Any]


def floats(*shape: int, seed: int = 0, mask: str | None = None) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((ROWS, *shape)).astype(np.float32)
    if mask is not None:
        x[~mask_of(mask)] = 0.0
    return x


def ids(top: int = 11, seed: int = 0, mask: str = "right") -> np.ndarray:
    x = np.random.default_rng(seed).integers(1, top, (ROWS, STEPS))
    return np.where(mask_of(mask), x, 0)


def text_classifier(k: Any) -> Built:
    m = k.Sequential(
        [
            k.layers.Embedding(11, 4, mask_zero=True),
            k.layers.SpatialDropout1D(0.2),
            k.layers.Bidirectional(k.layers.GRU(5, return_sequences=True)),
            k.layers.LayerNormalization(),
            k.layers.GRU(3),
            k.layers.Dense(2, activation="softmax"),
        ]
    )
    m(ids())
    return m, ids()


def tagger(k: Any) -> Built:
    x = k.Input((STEPS,), dtype="int32")
    h = k.layers.Embedding(11, 4, mask_zero=True)(x)
    h = k.layers.GRU(5, return_sequences=True)(h)
    h = k.layers.BatchNormalization()(h)
    h = k.layers.TimeDistributed(k.layers.Dense(7, activation="relu"))(h)
    h = k.layers.GRU(4, return_sequences=True)(h)  # the mask must still be there
    return k.Model(x, k.layers.Dense(3)(h)), ids()


def encoder_decoder(k: Any) -> Built:
    source, target = k.Input((None, 3), name="source"), k.Input((None, 2), name="target")
    _, state = k.layers.GRU(5, return_state=True)(source)
    seq, last = k.layers.GRU(5, return_sequences=True, return_state=True)(target, initial_state=state)
    m = k.Model([source, target], [k.layers.Dense(4)(seq), last])
    return m, [floats(STEPS, 3), floats(4, 2, seed=1)]


def bidirectional_states(k: Any) -> Built:
    x = k.Input((STEPS, 3))
    masked = k.layers.Masking()(x)
    y = k.layers.Bidirectional(k.layers.GRU(4, return_state=True, return_sequences=True))(x)
    z = k.layers.Bidirectional(k.layers.GRU(4, return_sequences=True), merge_mode="sum")(
        masked, initial_state=[y[1], y[2]]
    )
    w = k.layers.GRU(4, return_sequences=True)(z)  # Keras 3 ran z without the mask, but kept it
    return k.Model(x, [y[0], z, w]), floats(STEPS, 3, mask="left")


def stacked_cells(k: Any) -> Built:
    x = k.Input((STEPS, 3))
    cells = k.layers.StackedRNNCells([k.layers.GRUCell(4), k.layers.GRUCell(5, reset_after=False)])
    y = k.layers.RNN(cells, return_sequences=True, return_state=True)(k.layers.Masking()(x))
    return k.Model(x, list(y)), floats(STEPS, 3, mask="middle")


def bidirectional_rnn(k: Any) -> Built:
    x = k.Input((STEPS, 3))
    y = k.layers.Bidirectional(k.layers.RNN(k.layers.GRUCell(4), return_sequences=True))(x)
    return k.Model(x, y), floats(STEPS, 3)


def two_backward_units(k: Any) -> Built:
    x = k.Input((STEPS, 3))
    y = k.layers.Bidirectional(
        k.layers.GRU(4),
        backward_layer=k.layers.GRU(6, activation="relu", go_backwards=True),
    )(x)
    return k.Model(x, y), floats(STEPS, 3)


def shared_layer(k: Any) -> Built:
    a, b = k.Input((STEPS, 3), name="a"), k.Input((STEPS, 3), name="b")
    gru = k.layers.GRU(4)
    dense = k.layers.Dense(4)
    return (
        k.Model([a, b], k.layers.Dot(axes=1, normalize=True)([dense(gru(a)), dense(gru(b))])),
        [floats(STEPS, 3), floats(STEPS, 3, seed=1)],
    )


def nested_twice(k: Any) -> Built:
    inner_x = k.Input((STEPS, 3))
    inner = k.Model(inner_x, k.layers.GRU(4)(k.layers.Masking()(inner_x)), name="encoder")
    a, b = k.Input((STEPS, 3), name="a"), k.Input((STEPS, 3), name="b")
    y = k.layers.Subtract()([inner(a), inner(b)])
    out = k.Model([a, b], [y, inner(b)])
    return out, [floats(STEPS, 3, mask="right"), floats(STEPS, 3, seed=1, mask="left")]


def nested_sequential(k: Any) -> Built:
    head = k.Sequential([k.Input((4,)), k.layers.Dense(3, activation="tanh"), k.layers.Dense(2)])
    x = k.Input((STEPS, 3))
    h = k.layers.GRU(4, return_sequences=True)(x)
    # One model at two depths would be a shared layer, which Keras saves once and cannot reload.
    each = k.Sequential([k.Input((4,)), k.layers.Dense(3, activation="tanh"), k.layers.Dense(2)])
    return (
        k.Model(x, [k.layers.TimeDistributed(each)(h), head(k.layers.GRU(4)(h))]),
        floats(STEPS, 3),
    )


def nested_returns_two(k: Any) -> Built:
    inner_x = k.Input((STEPS, 3))
    seq, state = k.layers.GRU(4, return_sequences=True, return_state=True)(inner_x)
    inner = k.Model(inner_x, [seq, state], name="inner")
    x = k.Input((STEPS, 3))
    seq, state = inner(x)
    return k.Model(x, k.layers.GRU(4)(seq, initial_state=state)), floats(STEPS, 3)


def nested_masked(k: Any) -> Built:
    inner_x = k.Input((STEPS,), dtype="int32")
    inner = k.Model(inner_x, k.layers.Embedding(11, 3, mask_zero=True)(inner_x))
    x = k.Input((STEPS,), dtype="int32")
    return k.Model(x, k.layers.GRU(4)(inner(x))), ids(mask="left")


def dictionary(k: Any) -> Built:
    a, b = k.Input((STEPS, 3), name="zeta"), k.Input((5,), name="alpha")
    h = k.layers.Concatenate()([k.layers.GRU(4)(a), b])
    m = k.Model({"zeta": a, "alpha": b}, {"score": k.layers.Dense(1)(h), "h": h})
    return m, {"zeta": floats(STEPS, 3), "alpha": floats(5)}


def merges(k: Any) -> Built:
    x = k.Input((STEPS, 3))
    ls = k.layers
    a, b = ls.GRU(4, return_sequences=True)(x), ls.Dense(4)(x)
    outs = [
        ls.Add()([a, b, a]),
        ls.Subtract()([a, b]),
        ls.Multiply()([a, b]),
        ls.Average()([a, b]),
        ls.Maximum()([a, b]),
        ls.Minimum()([a, b]),
        ls.Concatenate()([a, b]),
        ls.Concatenate(axis=1)([a, b]),
        ls.Dot(axes=2)([a, b]),
        ls.Dot(axes=(1, 1))([a, b]),
        ls.Dot(axes=(2, 1))([a, ls.GRU(4)(x)]),
        ls.Add()([a, ls.GRU(4)(x)]) if k.__name__ == "tf_keras" else ls.Add()([a, a]),
    ]
    return k.Model(x, outs), floats(STEPS, 3)


def _masked_merge(k: Any, merge: Any, both: bool) -> Built:
    ls = k.layers
    a, b = k.Input((STEPS, 3), name="a"), k.Input((STEPS, 3), name="b")
    ma = ls.Masking()(a)
    mb = ls.Masking()(b) if both else b
    y = ls.GRU(4, return_sequences=True)(merge([ma, mb]))
    return k.Model([a, b], y), [floats(STEPS, 3, mask="right"), floats(STEPS, 3, seed=1, mask="alternating")]


def add_masked(k: Any) -> Built:
    return _masked_merge(k, k.layers.Add(), True)


def add_half_masked(k: Any) -> Built:
    return _masked_merge(k, k.layers.Add(), False)


def multiply_masked(k: Any) -> Built:
    return _masked_merge(k, k.layers.Multiply(), True)


def multiply_half_masked(k: Any) -> Built:
    return _masked_merge(k, k.layers.Multiply(), False)


def maximum_masked(k: Any) -> Built:
    return _masked_merge(k, k.layers.Maximum(), True)


def minimum_half_masked(k: Any) -> Built:
    return _masked_merge(k, k.layers.Minimum(), False)


def concatenate_masked(k: Any) -> Built:
    return _masked_merge(k, k.layers.Concatenate(), True)


def concatenate_half_masked(k: Any) -> Built:
    return _masked_merge(k, k.layers.Concatenate(), False)


def concatenate_time_masked(k: Any) -> Built:
    return _masked_merge(k, k.layers.Concatenate(axis=1), True)


def mask_dropped(k: Any) -> Built:
    ls = k.layers
    x = k.Input((STEPS, 3))
    m = ls.Masking()(x)
    outs = [
        ls.GRU(4)(ls.Reshape((STEPS, 3))(m)),
        ls.GRU(4)(ls.Permute((2, 1))(m)),
        ls.Flatten()(m),
        ls.GlobalAveragePooling1D()(ls.Dense(3)(m)),
        ls.GlobalMaxPooling1D()(ls.Dense(3)(m)),
        ls.GRU(4)(ls.Activation("tanh")(m)),
        ls.GRU(4)(ls.LayerNormalization()(m)),
        ls.GRU(4)(ls.BatchNormalization()(m)),
        ls.GRU(4)(ls.RepeatVector(3)(ls.GRU(2)(m))),
        ls.GRU(4)(ls.LeakyReLU()(m)),
    ]
    return k.Model(x, outs), floats(STEPS, 3, mask="left")


def activations(k: Any) -> Built:
    ls = k.layers
    x = k.Input((STEPS, 3))
    h = ls.Dense(4)(x)
    names = "relu sigmoid tanh hard_sigmoid softsign elu selu softplus softmax exponential gelu swish linear"
    outs = [ls.Activation(n)(h) for n in names.split()]
    outs += [
        ls.ReLU(max_value=0.5, negative_slope=0.1, threshold=0.1)(h),
        ls.LeakyReLU()(h),
        ls.ELU(0.7)(h),
        ls.PReLU()(h),
        ls.PReLU(shared_axes=[1])(h),
        ls.Softmax(axis=1)(h),
        ls.Dense(3, activation=ls.LeakyReLU(0.05))(h),
    ]
    return k.Model(x, outs), floats(STEPS, 3)


def normalisations(k: Any) -> Built:
    ls = k.layers
    x = k.Input((STEPS, 3))
    outs = [
        ls.BatchNormalization()(x),
        ls.BatchNormalization(axis=1, scale=False)(x),
        ls.BatchNormalization(center=False, epsilon=0.1)(x),
        ls.LayerNormalization()(x),
        ls.LayerNormalization(axis=[1, 2])(x),
        ls.LayerNormalization(scale=False, epsilon=0.1)(x),
    ]
    return k.Model(x, outs), floats(STEPS, 3)


def keras3_operations(k: Any) -> Built:
    x = k.Input((STEPS, 3))
    h = k.layers.GRU(4, return_sequences=True)(x)
    o = k.ops
    outs = [
        1.0 - h * 2.0 + 0.5 / (h * h + 1.0),
        h[:, -1],
        h[:, 1:5:2, ::-1],
        h[..., 0],
        o.mean(h, axis=1),
        o.max(h, axis=-1, keepdims=True),
        o.sum(h, axis=(1, 2)),
        o.min(h, axis=1),
        o.expand_dims(h, 1),
        o.squeeze(o.expand_dims(h, 2), 2),
        o.reshape(h, (-1, 24)),
        o.transpose(h, (0, 2, 1)),
        o.concatenate([h, x], axis=-1),
        o.stack([h, h], axis=1),
        o.where(h > 0, h, h * 0.1),
        o.sigmoid(h) + o.tanh(h) + o.relu(h),
        o.softmax(h, axis=1),
        o.abs(h) ** 2,
        o.matmul(h, o.transpose(h, (0, 2, 1))),
        o.cast(o.greater(h, 0.1), "float32"),
        o.clip(h, -0.1, 0.2),
        o.maximum(h, 0.05),
        -o.sqrt(o.square(h)),
    ]
    return k.Model(x, outs), floats(STEPS, 3)


def tensorflow_operations(k: Any) -> Built:
    import tensorflow as tf

    x = k.Input((STEPS, 3))
    h = k.layers.GRU(4, return_sequences=True)(x)
    outs = [
        1.0 - h * 2.0 + 0.5 / (h * h + 1.0),
        h[:, -1],
        h[:, 1:5:2, ::-1],
        tf.reduce_mean(h, axis=1),
        tf.reduce_max(h, axis=-1, keepdims=True),
        tf.reduce_sum(h, axis=[1, 2]),
        tf.expand_dims(h, 1),
        tf.squeeze(tf.expand_dims(h, 2), axis=[2]),
        tf.reshape(h, (-1, 24)),
        tf.transpose(h, perm=(0, 2, 1)),
        tf.concat([h, x], axis=-1),
        tf.stack([h, h], axis=1),
        tf.nn.sigmoid(h) + tf.math.tanh(h) + tf.nn.relu(h),
        tf.nn.softmax(h, axis=1),
        tf.matmul(h, tf.transpose(h, perm=(0, 2, 1))),
        tf.cast(tf.greater(h, 0.1), tf.float32),
        tf.clip_by_value(h, -0.1, 0.2),
        tf.maximum(h, 0.05),
        -tf.sqrt(tf.square(h)),
        tf.where(tf.greater(h, 0.0), h, h * 0.1),
    ]
    return k.Model(x, outs), floats(STEPS, 3)


def attention_by_hand(k: Any) -> Built:
    ls = k.layers
    x = k.Input((STEPS, 3))
    h = ls.Bidirectional(ls.GRU(4, return_sequences=True))(x)
    a = ls.Dense(1, activation="tanh")(h)
    a = ls.Activation("softmax")(ls.Flatten()(a))
    a = ls.Permute((2, 1))(ls.RepeatVector(8)(a))
    y = ls.GlobalAveragePooling1D()(ls.Multiply()([h, a]))
    return k.Model(x, ls.Dense(2)(y)), floats(STEPS, 3)


def hierarchical(k: Any) -> Built:
    ls = k.layers
    word = k.Input((STEPS,), dtype="int32")
    sentence = k.Model(word, ls.GRU(4)(ls.Embedding(11, 3, mask_zero=True)(word)))
    doc = k.Input((2, STEPS), dtype="int32")
    y = ls.GRU(3)(ls.TimeDistributed(sentence)(doc))
    return k.Model(doc, y), np.stack([ids(), ids(seed=1, mask="left")], axis=1)


def explicit_mask(k: Any) -> Built:
    x, m = k.Input((STEPS, 3), name="x"), k.Input((STEPS,), dtype="bool", name="m")
    y = k.layers.GRU(4, return_sequences=True)(x, mask=m)
    return k.Model([x, m], k.layers.GRU(3)(y)), [floats(STEPS, 3), mask_of("middle")]


def identity_output(k: Any) -> Built:
    x = k.Input((STEPS, 3))
    return k.Model(x, [x, k.layers.GRU(2)(x)]), floats(STEPS, 3)


MODELS: tuple[Callable[[Any], Built], ...] = (
    text_classifier,
    tagger,
    encoder_decoder,
    bidirectional_states,
    stacked_cells,
    bidirectional_rnn,
    two_backward_units,
    shared_layer,
    nested_twice,
    nested_sequential,
    nested_returns_two,
    nested_masked,
    dictionary,
    merges,
    add_masked,
    add_half_masked,
    multiply_masked,
    multiply_half_masked,
    maximum_masked,
    minimum_half_masked,
    concatenate_masked,
    concatenate_half_masked,
    concatenate_time_masked,
    mask_dropped,
    activations,
    normalisations,
    keras3_operations,
    tensorflow_operations,
    attention_by_hand,
    hierarchical,
    explicit_mask,
    identity_output,
)


def tensors(x: Any, k: Any) -> Any:
    import tensorflow as tf

    if isinstance(x, dict):
        return {n: tensors(v, k) for n, v in x.items()}
    if isinstance(x, list):
        return [tensors(v, k) for v in x]
    return tf.constant(x.astype(np.int32) if x.dtype == np.int64 else x)


#: keras.ops exists from Keras 3, which in turn refuses TensorFlow's functions in its graphs.
ONLY = {keras3_operations: "keras", tensorflow_operations: "tf_keras"}
CASES = [
    pytest.param(build, name, marks=pytest.mark.parity(name), id=f"{build.__name__}-{name}")
    for build in MODELS
    for name in FRAMEWORKS
    if ONLY.get(build, name) == name
]


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize(("build", "name"), CASES)
def test_model(build: Callable[[Any], Built], name: str, suffix: str, tmp_path: Path) -> None:
    k = framework(name)
    theirs, x = build(k)
    randomise(theirs)
    path = tmp_path / f"model{suffix}"
    theirs.save(path)
    ours = load(path)
    assert isinstance(ours, Model)
    expected = theirs(tensors(x, k))
    found = ours.predict(x)
    if isinstance(expected, dict):
        assert sorted(found) == sorted(expected)
        found, expected = [found[n] for n in expected], list(expected.values())
    assert_close(
        found, [np.asarray(e, np.float32) for e in expected] if isinstance(expected, (list, tuple)) else expected
    )
    again = tmp_path / "copy.safetensors"
    ours.save(again)
    copied = load(again).predict(x)
    copied = list(copied.values()) if isinstance(copied, dict) else copied
    first = ours.predict(x)
    first = list(first.values()) if isinstance(first, dict) else first
    for a, b in zip(copied, first, strict=True):
        np.testing.assert_array_equal(a, b)
