"""Write the golden files of tests/golden with the frameworks themselves.

The script never imports fastgru: a golden file is what a framework says, not what we say.

    python tools/make_golden.py OUT_DIR [GROUP ...]

Groups: keras3, tfkeras, tf213 (run it in an environment of its own with tensorflow-cpu 2.13),
torch, onnx (PyTorch's two exporters, tf2onnx, and Keras 3's export, which uses that: torch, onnx, onnxscript, keras,
tensorflow, tf-keras, tf2onnx), synthetic (h5py and tf-keras: layouts of Keras releases that no longer install, written
from their documented form).

Each NAME.keras, NAME.h5, NAME.pt, … has one NAME.expected.npz beside it:

    versions      "key=value" strings: what wrote the file; "synthetic=…" says how one was built
    x0, x1, …     inputs, in the order of the file's inputs
    y0, y1, …     what the framework computed, in the order of the file's outputs
    input_names, output_names   for models that take or give dicts
    calls         "stateful": y0 is the output for x0, y1 the output for x1 after it
    keys, crcs    every variable: "layer/weight" and the CRC-32 of its little-endian bytes, each NaN
                  made np.nan

PyTorch: x, h0, y, h_n (batch_first) for the GRUs; keys, crcs of every tensor for the rest.
ONNX: what the model computed before it was exported, in its framework.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import numpy as np

SEED = 20240229

Built = tuple[Any, Any]  # a Keras model, and its input: an array, a list or a dict of arrays


def rng(salt: int = 0) -> np.random.Generator:
    return np.random.default_rng(SEED + salt)


def normal(*shape: int, salt: int = 0) -> np.ndarray:
    return rng(salt).standard_normal(shape).astype(np.float32)


def crc(value: Any) -> int:
    array = np.array(value, order="C")
    if array.dtype.kind in "fc":
        array[np.isnan(array)] = np.nan  # the sign and payload of a NaN are nobody's promise
    return zlib.crc32(array.astype(array.dtype.newbyteorder("<")).tobytes())


def checksums(weights: dict[str, Any]) -> dict[str, Any]:
    return {
        "keys": np.array(list(weights)),
        "crcs": np.array([crc(value) for value in weights.values()], np.uint32),
    }


def save_expected(out: Path, name: str, versions: dict[str, str], **arrays: Any) -> None:
    lines = [f"python={platform.python_version()}", f"numpy={np.__version__}"]
    lines += [f"{key}={value}" for key, value in versions.items()]
    np.savez_compressed(out / f"{name}.expected.npz", versions=np.array(lines), **arrays)


def numbered(prefix: str, values: Any) -> dict[str, np.ndarray]:
    if isinstance(values, dict):
        values = list(values.values())
    values = values if isinstance(values, (list, tuple)) else [values]
    return {f"{prefix}{i}": np.asarray(value) for i, value in enumerate(values)}


# ------------------------------------------------------------------------------------ Keras models
# Each builder takes the keras module (Keras 3, tf_keras or tf.keras) and returns model and input.


def text_gru(keras: Any) -> Built:
    """The demo's Keras model, trained a little and saved with its optimiser."""
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((12,), dtype="int32"),
            layers.Embedding(50, 16),
            layers.GRU(24, return_sequences=True),
            layers.Dropout(0.2),
            layers.GRU(16),
            layers.Dense(4, activation="softmax"),
        ],
        name="text_gru",
    )
    ids = rng().integers(0, 50, (256, 12)).astype(np.int32)
    target = (ids[:, -3:].sum(axis=1) % 4).astype(np.int32)
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(ids, target, epochs=3, batch_size=32, verbose=0)
    return model, ids[:16]


def reset_before(keras: Any, after: bool = False) -> Built:
    gru = keras.layers.GRU(20, reset_after=after, return_sequences=True)
    model = keras.Sequential([keras.Input((9, 7)), gru, keras.layers.Dense(3)], name="net")
    return model, normal(5, 9, 7)


def reset_after(keras: Any) -> Built:
    return reset_before(keras, after=True)


def variants(keras: Any) -> Built:
    """One input, many GRUs: activations, biases, directions, states."""
    layers = keras.layers
    x = keras.Input((6, 3), name="x")
    outputs = [
        layers.GRU(4, activation="relu", recurrent_activation="hard_sigmoid")(x),
        layers.GRU(4, use_bias=False, return_sequences=True)(x),
        layers.GRU(4, go_backwards=True, return_sequences=True, reset_after=False)(x),
        layers.GRU(4, activation="softsign", recurrent_activation="sigmoid", unroll=True)(x),
        layers.GRU(4, activation="elu", recurrent_activation="hard_sigmoid", reset_after=False)(x),
        layers.GRU(4, activation="selu", recurrent_activation="softplus")(x),
        layers.GRU(4, activation="linear", recurrent_activation="tanh", reset_after=False)(x),
    ]
    y, state = layers.GRU(4, return_sequences=True, return_state=True)(x)
    continued = layers.GRU(4, return_sequences=True)(y, initial_state=state)
    return keras.Model(x, [*outputs, y, state, continued], name="variants"), normal(4, 6, 3)


MASKS = np.array(
    [
        [1, 1, 1, 1, 1, 1],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 1, 1, 1, 1],
        [1, 1, 0, 0, 1, 1],
        [1, 0, 1, 0, 1, 0],
        [0, 0, 0, 0, 0, 0],
    ]
)


def embedding_masks(keras: Any) -> Built:
    """Every shape of mask, from mask_zero, through stacked GRUs and what mask passes or drops."""
    layers = keras.layers
    ids = keras.Input((6,), dtype="int32", name="ids")
    e = layers.Embedding(11, 5, mask_zero=True)(ids)
    seq = layers.GRU(4, return_sequences=True)(e)
    passed = layers.Activation("tanh")(layers.Dense(4)(layers.Dropout(0.5)(seq)))
    zeroed = layers.GRU(4, return_sequences=True, **zero_output(keras))(e)
    outputs = [
        seq,
        layers.GRU(3)(passed),
        layers.GRU(3, reset_after=False, go_backwards=True)(e),
        layers.GlobalAveragePooling1D()(layers.GRU(2, return_sequences=True)(e)),
        layers.Bidirectional(layers.GRU(3, return_sequences=True))(e),
        layers.Bidirectional(layers.GRU(3))(e),
        zeroed,
        layers.TimeDistributed(layers.Dense(2))(seq),
    ]
    values = (rng().integers(1, 11, MASKS.shape) * MASKS).astype(np.int32)
    # a row masked whole averages to 0/0: leave it to the GRUs' own model
    return keras.Model(ids, outputs, name="embedding_masks"), values[:5]


def zero_output(keras: Any) -> dict[str, bool]:
    return {"zero_output_for_mask": True}


def masking(keras: Any) -> Built:
    """Masking, all-masked rows included, with the final states."""
    layers = keras.layers
    x = keras.Input((6, 3), name="x")
    m = layers.Masking(-1.0)(x)
    y, state = layers.GRU(4, return_sequences=True, return_state=True)(m)
    outputs = [
        y,
        state,
        layers.GRU(4)(m),
        layers.Bidirectional(layers.GRU(3, return_sequences=True), merge_mode="sum")(m),
        layers.GRU(3, go_backwards=True, return_sequences=True)(m),
        layers.Flatten()(layers.GRU(2, return_sequences=True)(m)),
    ]
    values = normal(6, 6, 3)
    values[MASKS == 0] = -1.0
    return keras.Model(x, outputs, name="masking"), values


def merged_masks(keras: Any) -> Built:
    """What merges make of two different masks: Keras 2 ANDs them, Keras 3.4 and later ORs."""
    layers = keras.layers
    a = keras.Input((6, 3), name="a")
    b = keras.Input((6, 3), name="b")
    ma, mb = layers.Masking(0.0)(a), layers.Masking(0.0)(b)
    merges = [
        layers.Add()([ma, mb]),
        layers.Concatenate()([ma, mb]),
        layers.Average()([ma, mb]),
        layers.Subtract()([ma, mb]),
        layers.Add()([ma, b]),
        layers.Concatenate()([ma, b]),
    ]
    outputs = [layers.GRU(3, return_sequences=True)(merged) for merged in merges]
    va, vb = normal(6, 6, 3, salt=1), normal(6, 6, 3, salt=2)
    va[MASKS == 0] = 0.0
    vb[MASKS[::-1] == 0] = 0.0
    return keras.Model([a, b], outputs, name="merged_masks"), [va, vb]


def bidirectional(keras: Any) -> Built:
    """Every merge mode, and a backward layer of its own units and activation."""
    layers = keras.layers
    x = keras.Input((6, 3), name="x")
    outputs = []
    for mode in ("concat", "sum", "mul", "ave"):
        gru = layers.GRU(4, return_sequences=mode in ("concat", "mul"), reset_after=mode != "sum")
        outputs.append(layers.Bidirectional(gru, merge_mode=mode, name=f"merge_{mode}")(x))
    outputs += layers.Bidirectional(layers.GRU(3), merge_mode=None, name="merge_none")(x)
    own = layers.Bidirectional(
        layers.GRU(3, return_sequences=True),
        backward_layer=layers.GRU(5, return_sequences=True, go_backwards=True, activation="relu", reset_after=False),
        name="own_backward",
    )
    outputs.append(own(x))
    states = layers.Bidirectional(layers.GRU(3, return_state=True), name="with_states")(x)
    return keras.Model(x, [*outputs, *states], name="bidirectional"), normal(4, 6, 3)


def several(keras: Any) -> Built:
    """Several inputs and outputs, every merge, one GRU and one Dense used twice, a dead branch."""
    layers = keras.layers
    a = keras.Input((5, 3), name="first")
    b = keras.Input((5, 3), name="second")
    shared = layers.GRU(4, return_sequences=True, name="shared_gru")
    ya, yb = shared(a), shared(b)
    dense = layers.Dense(4, name="shared_dense")
    merges = [
        layers.Add()([ya, yb]),
        layers.Subtract()([ya, yb]),
        layers.Multiply()([ya, yb]),
        layers.Average()([ya, yb]),
        layers.Maximum()([ya, yb]),
        layers.Minimum()([ya, yb]),
        layers.Concatenate(axis=1)([dense(ya), dense(yb)]),
        layers.Dot(axes=(2, 2), normalize=True)([ya, yb]),
    ]
    layers.Dense(2, name="dead_end")(ya)
    last = layers.GRU(3, name="last")(layers.Concatenate()(merges[:3]))
    model = keras.Model([b, a], [last, *merges], name="several")
    return model, [normal(3, 5, 3, salt=1), normal(3, 5, 3, salt=2)]


def dicts(keras: Any) -> Built:
    """Inputs and outputs by name."""
    layers = keras.layers
    inputs = {"query": keras.Input((4, 3), name="query"), "bias": keras.Input((2,), name="bias")}
    h = layers.GRU(2, name="gru")(inputs["query"])
    outputs = {"sum": layers.Add(name="sum")([h, inputs["bias"]]), "state": h}
    x = {"query": normal(3, 4, 3), "bias": normal(3, 2, salt=1)}
    return keras.Model(inputs, outputs, name="dicts"), x


def nested(keras: Any) -> Built:
    """Models in models: one used twice, one frozen in part, BatchNormalization deep inside."""
    layers = keras.layers
    encoder = keras.Sequential(
        [
            keras.Input((5, 3)),
            layers.Dense(4, activation="tanh", name="project"),
            layers.BatchNormalization(name="encoder_bn"),
            layers.GRU(4, return_sequences=True, name="encoder_gru", trainable=False),
            layers.Dense(3, name="after"),
        ],
        name="encoder",
    )
    inner_x = keras.Input((5, 3), name="inner_x")
    inner_y = layers.GRU(3, name="gru")(encoder(inner_x))
    inner = keras.Model(inner_x, layers.BatchNormalization(name="bn")(inner_y), name="inner")
    frozen = keras.Sequential(
        [keras.Input((5, 3)), layers.GRU(3, name="g"), layers.BatchNormalization(name="b")],
        name="frozen",
    )
    frozen.trainable = False
    a = keras.Input((5, 3), name="a")
    b = keras.Input((5, 3), name="b")
    y = layers.Concatenate()([inner(a), inner(b), frozen(a)])
    model = keras.Model([a, b], layers.Dense(2, name="head")(y), name="outer")
    return model, [normal(3, 5, 3, salt=1), normal(3, 5, 3, salt=2)]


def rnn_cells(keras: Any) -> Built:
    """GRU cells inside RNN, stacked, and inside Bidirectional."""
    layers = keras.layers
    x = keras.Input((6, 3), name="x")

    def cell(units: int, **options: Any) -> Any:
        # tf.keras cannot save two cells of one name in one .h5 group
        return layers.GRUCell(units, name=f"cell{next(numbers)}", **options)

    numbers = itertools.count()
    outputs = [
        layers.RNN(cell(4), return_sequences=True)(x),
        layers.RNN([cell(4), cell(5, reset_after=False)])(x),
        layers.RNN(layers.StackedRNNCells([cell(3), cell(3), cell(2)]), return_sequences=True)(x),
        layers.Bidirectional(layers.RNN(cell(3, use_bias=False)))(x),
    ]
    masked = layers.Masking()(x)
    outputs.append(layers.RNN(cell(4), return_sequences=True, go_backwards=True)(masked))
    values = normal(6, 6, 3)
    values[MASKS == 0] = 0.0
    return keras.Model(x, outputs, name="rnn_cells"), values


def norms(keras: Any) -> Built:
    """Normalisations, activation layers, shapes and pooling around a GRU."""
    layers = keras.layers
    x = keras.Input((6, 4), name="x")
    h = layers.BatchNormalization()(x)
    h = layers.LayerNormalization()(layers.GRU(4, return_sequences=True)(h))
    h = layers.PReLU(shared_axes=[1])(h)
    h = layers.BatchNormalization(scale=False)(layers.LayerNormalization(center=False)(h))
    h = layers.TimeDistributed(layers.Dense(4, activation="relu"))(h)
    outputs = [
        layers.Softmax()(h),
        layers.LeakyReLU()(h),
        layers.ELU()(h),
        layers.ReLU(max_value=1.0)(h),
        layers.GlobalAveragePooling1D()(h),
        layers.GlobalMaxPooling1D()(h),
        layers.Reshape((4, 6))(h),
        layers.Permute((2, 1))(h),
        layers.Flatten()(h),
        layers.RepeatVector(3)(layers.GRU(2)(layers.SpatialDropout1D(0.1)(h))),
        layers.PReLU()(layers.GaussianNoise(0.1)(h)),
    ]
    return keras.Model(x, outputs, name="norms"), normal(3, 6, 4)


def misnamed(keras: Any) -> Built:
    """Layer names that lie about the order in which `.keras` numbers its groups."""
    layers = keras.layers
    x = keras.Input((5, 3), name="dense")
    h = layers.Bidirectional(layers.GRU(3, return_sequences=True), name="bidirectional_1")(x)
    h = layers.Bidirectional(layers.GRU(2, return_sequences=True), name="bidirectional")(h)
    h = layers.GRU(4, return_sequences=True, name="gru_2")(h)
    h = layers.GRU(4, return_sequences=True, name="gru")(h)
    h = layers.GRU(4, name="gru_1")(h)
    h = layers.Dense(4, name="gru_3")(h)
    return keras.Model(x, layers.Dense(4, name="dense_1")(h), name="model"), normal(3, 5, 3)


def op_nodes(keras: Any) -> Built:
    """Arithmetic on symbolic tensors: op nodes of Keras 3, named like the layers beside them."""
    layers, ops = keras.layers, keras.ops
    x = keras.Input((5, 4), name="x")
    y = layers.GRU(4, return_sequences=True)(x)
    gate = layers.Dense(4, activation="sigmoid")(x)
    h = y * gate + (1.0 - gate) * x
    h = layers.Add()([h / 2.0, layers.Multiply()([h, y])])
    z = layers.GRU(4, return_sequences=True)(h - y)
    outputs = [
        z[:, -1],
        z[:, 1:4:2, :3],
        ops.mean(z, axis=1),
        ops.squeeze(ops.expand_dims(ops.max(z, axis=1), 1), 1),
        ops.sum(z, axis=-1, keepdims=True),
        ops.reshape(z, (-1, 10, 2)),
        ops.transpose(z, (0, 2, 1)),
        -ops.maximum(ops.abs(z), 0.1),
        ops.concatenate([z, y], axis=-1),
    ]
    return keras.Model(x, outputs, name="op_nodes"), normal(3, 5, 4)


def tf_op_nodes(keras: Any) -> Built:
    """The same in tf.keras: TFOpLambda and SlicingOpLambda."""
    layers = keras.layers
    x = keras.Input((5, 4), name="x")
    y = layers.GRU(4, return_sequences=True)(x)
    gate = layers.Dense(4, activation="sigmoid")(x)
    h = y * gate + (1.0 - gate) * x
    z = layers.GRU(4, return_sequences=True)(layers.Add()([h / 2.0, layers.Multiply()([h, y])]))
    outputs = [z[:, -1], z[:, 1:4:2, :3], z - x]
    return keras.Model(x, outputs, name="tf_op_nodes"), normal(3, 5, 4)


def no_input_layer(keras: Any) -> Built:
    """A Sequential that was built by calling it."""
    model = keras.Sequential([keras.layers.GRU(4), keras.layers.Dense(2)], name="no_input")
    x = normal(3, 5, 3)
    model.build(x.shape) if version_of(keras).startswith("3") else model(x)
    return model, x


def stateful(keras: Any) -> Built:
    layers = keras.layers
    inputs = keras.Input(batch_shape=(2, 4, 3), name="x")
    h = layers.GRU(4, stateful=True, return_sequences=True)(inputs)
    return keras.Model(inputs, layers.GRU(3, stateful=True)(h), name="stateful"), normal(2, 4, 3)


def time_major(keras: Any) -> Built:
    """time_major=True of tf.keras: (T, N, I) in, (T, N, H) out."""
    gru = keras.layers.GRU(4, return_sequences=True, time_major=True)
    x = keras.Input(batch_shape=(5, 3, 2), name="x")
    return keras.Model(x, gru(x), name="time_major"), normal(5, 3, 2)


def with_policy(policy: str) -> Callable[[Any], Built]:
    def build(keras: Any) -> Built:
        if hasattr(keras, "config") and hasattr(keras.config, "set_dtype_policy"):
            set_policy = keras.config.set_dtype_policy
        else:
            set_policy = keras.mixed_precision.set_global_policy
        set_policy(policy)
        layers = keras.layers
        x = keras.Input((5, 3), name="x")
        start = {"recurrent_initializer": "zeros"}  # TensorFlow has no bfloat16 QR
        h = layers.BatchNormalization()(layers.GRU(4, return_sequences=True, **start)(x))
        h = layers.Bidirectional(layers.GRU(3, **start))(h)
        model = keras.Model(x, layers.Dense(2, dtype=policy)(h), name=policy)
        set_policy("float32")
        return model, normal(3, 5, 3)

    build.__name__ = policy
    return build


def version_of(keras: Any) -> str:
    if hasattr(keras, "__version__"):
        return str(keras.__version__)
    import keras as package  # tf.keras is a front of the package keras 2

    return str(package.__version__)


def weights_of(layer: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yield ("layer/weight", variable) of a live layer, by its own attributes and names."""
    kind = type(layer).__name__
    if kind in ("Sequential", "Functional", "Model"):
        for inner in layer.layers:
            yield from weights_of(inner, f"{key}/{inner.name}" if key else inner.name)
    elif kind == "Bidirectional":
        yield from weights_of(layer.forward_layer, f"{key}/forward_layer")
        yield from weights_of(layer.backward_layer, f"{key}/backward_layer")
    elif kind == "TimeDistributed":
        yield from weights_of(layer.layer, f"{key}/layer")
    elif kind == "RNN":
        yield from weights_of(layer.cell, f"{key}/cell")
    elif kind == "StackedRNNCells":
        for i, cell in enumerate(layer.cells):
            yield from weights_of(cell, f"{key}/cells_{i}")
    elif kind == "GRU":
        yield from weights_of(layer.cell, key)
    else:
        for name in ("kernel recurrent_kernel bias embeddings gamma beta moving_mean moving_variance alpha").split():
            variable = getattr(layer, name, None)
            if hasattr(variable, "assign"):
                yield f"{key}/{name}", variable


def as_stored(variable: Any) -> np.ndarray:
    """The variable's values; bfloat16 as float32."""
    value = np.asarray(variable)
    return value.astype(np.float32) if value.dtype.name == "bfloat16" else value


def randomize(model: Any) -> None:
    """Give every variable its own values: zero biases and unit scales hide a swap."""
    generator = rng(7)
    for key, variable in weights_of(model, ""):
        values = generator.uniform(-0.5, 0.5, tuple(variable.shape))
        if key.endswith(("gamma", "moving_variance")):
            values = values + 1.0
        variable.assign(values.astype(as_stored(variable).dtype))


def deflate(path: Path) -> None:
    """Re-pack a zip file with its members compressed: an eighth of the size, and still a model."""
    with zipfile.ZipFile(path) as archive:
        members = [(info, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for info, data in members:
            archive.writestr(info.filename, data)


def save_keras(out: Path, keras: Any, prefix: str, build: Callable[[Any], Built], *suffixes: str) -> None:
    """Build, randomise unless it was trained, save under each suffix, record what predict says."""
    keras.backend.clear_session()
    if hasattr(keras.utils, "set_random_seed"):
        keras.utils.set_random_seed(SEED)
    model, x = build(keras)
    if build is not text_gru:
        randomize(model)
    name = prefix + build.__name__
    more: dict[str, Any] = {}
    if build is stateful:
        xs = [x, x[:, ::-1].copy()]
        more |= numbered("x", xs) | numbered("y", [model.predict(v, verbose=0) for v in xs])
        more["calls"] = np.array("stateful")
    else:
        size = {"batch_size": len(x)} if build is time_major else {}
        y = model.predict(x, verbose=0, **size)
        for side, values in (("input", x), ("output", y)):
            if isinstance(values, dict):
                more[f"{side}_names"] = np.array(list(values))
        more |= numbered("x", x) | numbered("y", y)
        more = {key: as_stored(value) for key, value in more.items()}
    for suffix in suffixes:
        model.save(out / f"{name}{suffix}")
        if suffix == ".keras":
            deflate(out / f"{name}{suffix}")
    versions = {"writer": keras.__name__, "keras": version_of(keras)}
    if version_of(keras).startswith("3"):
        versions["backend"] = keras.config.backend()
    weights = {key: as_stored(variable) for key, variable in weights_of(model, "")}
    save_expected(out, name, versions, **more, **checksums(weights))


def group_keras3(out: Path) -> None:
    import keras

    for build in (text_gru, reset_before, reset_after):
        save_keras(out, keras, "keras_", build, ".keras")
    for build in (bidirectional, nested, rnn_cells):
        save_keras(out, keras, "k3_", build, ".keras", ".h5")
    only = (variants, several, norms, misnamed, embedding_masks, masking, merged_masks, dicts)
    only += (op_nodes, no_input_layer, stateful)
    policies = [with_policy(p) for p in ("mixed_float16", "bfloat16", "float64")]
    for build in (*only, *policies):
        save_keras(out, keras, "k3_", build, ".keras")
    save_keras(out, keras, "k3_h5_", with_policy("bfloat16"), ".h5")


def keras3_refused(out: Path) -> None:
    """Real files that no reader can honour; in refused/, without expected values."""
    import keras

    layers = keras.layers
    refused = out / "refused"
    refused.mkdir(exist_ok=True)

    def save(name: str, *outputs: Any, suffix: str = ".keras") -> None:
        model = keras.Model(x, list(outputs))
        randomize(model)
        model.save(refused / f"{name}{suffix}")
        if suffix == ".keras":
            deflate(refused / f"{name}{suffix}")

    class Scale(layers.Layer):
        def build(self, shape: Any) -> None:
            self.factor = self.add_weight(shape=(shape[-1],), name="factor")

        def call(self, value: Any) -> Any:
            return value * self.factor

    class GRU(layers.GRU):
        """A user's class under a known name."""

    x = keras.Input((4, 3), name="x")
    save("lambda", layers.GRU(2)(layers.Lambda(lambda value: value * 2.0)(x)))
    save("lambda_h5", layers.GRU(2)(layers.Lambda(lambda value: value * 2.0)(x)), suffix=".h5")
    save("custom_layer", Scale(name="scale")(layers.GRU(2)(x)))
    save("custom_layer_h5", Scale(name="scale")(layers.GRU(2)(x)), suffix=".h5")
    save("custom_gru", GRU(2)(x))
    save("lstm", layers.LSTM(2, name="memory")(x))
    shared = layers.GRU(3, return_sequences=True, name="both")
    inner = keras.Sequential([keras.Input((4, 3)), shared, layers.Dense(3)], name="inner")
    save("shared_across", shared(inner(x)))

    class Subclassed(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.gru = layers.GRU(2)

        def call(self, value: Any) -> Any:
            return self.gru(value)

    model = Subclassed()
    model(normal(1, 4, 3))
    model.save(refused / "subclassed.keras")
    deflate(refused / "subclassed.keras")
    model.save_weights(refused / "only.weights.h5")


def chain(keras: Any) -> Built:
    """A plain chain, of which weights alone tell most."""
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((6,), dtype="int32"),
            layers.Embedding(11, 5, mask_zero=True),
            layers.Bidirectional(layers.GRU(4, return_sequences=True, recurrent_activation="hard_sigmoid")),
            layers.GRU(3, return_sequences=True, reset_after=False),
            layers.GRU(4),
            layers.Dense(2, activation="softmax"),
        ],
        name="chain",
    )
    ids = (rng().integers(1, 11, MASKS.shape) * MASKS).astype(np.int32)
    return model, ids[:5]


def save_weights_only(out: Path, keras: Any, prefix: str, build: Callable[[Any], Built], *suffixes: str) -> None:
    """weights_only/NAME.json (to_json) and NAME.weights.h5 or NAME.h5 (save_weights), and what predict says."""
    keras.backend.clear_session()
    model, x = build(keras)
    randomize(model)
    name, folder = prefix + build.__name__, out / "weights_only"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(model.to_json())
    for suffix in suffixes:
        model.save_weights(folder / f"{name}{suffix}")
    weights = {key: as_stored(variable) for key, variable in weights_of(model, "")}
    runs = numbered("x", x) | numbered("y", model.predict(x, verbose=0))
    runs = {key: as_stored(value) for key, value in runs.items()}
    versions = {"writer": keras.__name__, "keras": version_of(keras)}
    save_expected(folder, name, versions, **runs, **checksums(weights))


def keras3_weights(out: Path) -> None:
    import keras

    for build in (chain, nested):
        save_weights_only(out, keras, "k3_", build, ".weights.h5")
    save_weights_only(out, keras, "k3_", with_policy("bfloat16"), ".weights.h5")


def tfkeras_weights(out: Path) -> None:
    import tf_keras as keras

    for build in (chain, nested):
        save_weights_only(out, keras, "tfk_", build, ".weights.h5", ".h5")


def tf213_weights(out: Path) -> None:
    from tensorflow import keras

    if version_of(keras).startswith("2.13"):
        for build in (chain, misnamed):
            save_weights_only(out, keras, "tf213_", build, ".weights.h5", ".h5")


def group_tfkeras(out: Path) -> None:
    import tf_keras as keras

    for build in (bidirectional, nested, rnn_cells, norms, masking, dicts):
        save_keras(out, keras, "tfk_", build, ".h5")
    for build in (tf_op_nodes, no_input_layer, stateful, time_major):
        save_keras(out, keras, "tfk_", build, ".h5")
    for build in (misnamed, nested, variants, several, embedding_masks, merged_masks):
        save_keras(out, keras, "tfk_new_", build, ".keras")
    save_keras(out, keras, "tfk_", with_policy("mixed_float16"), ".h5")


def group_tf213(out: Path) -> None:
    """tensorflow-cpu 2.13: the `.keras` files of the release that counted layers twice."""
    from tensorflow import keras

    if not version_of(keras).startswith("2.13"):
        print(f"tf213: skipped, this is keras {version_of(keras)}")
        return
    for build in (misnamed, nested, rnn_cells, norms, bidirectional):
        save_keras(out, keras, "tf213_", build, ".keras")
    save_keras(out, keras, "tf213_h5_", nested, ".h5")


# ---------------------------------------------------------------------------------------- PyTorch


def torch_bigru(out: Path) -> None:
    """The demo's PyTorch model: two layers, both directions, trained a little."""
    import torch

    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    gru = torch.nn.GRU(8, 16, num_layers=2, bidirectional=True, batch_first=True)
    head = torch.nn.Linear(32, 1)
    optimizer = torch.optim.Adam([*gru.parameters(), *head.parameters()], lr=0.01)
    for step in range(30):
        x = torch.from_numpy(normal(32, 11, 8, salt=step))
        loss = torch.nn.functional.mse_loss(head(gru(x)[0])[..., 0], x.cumsum(1).mean(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.save(gru.state_dict(), out / "torch_bigru.pt")
    x, h0 = torch.from_numpy(normal(6, 11, 8, salt=99)), torch.from_numpy(normal(4, 6, 16, salt=98))
    with torch.no_grad():
        y, h_n = gru(x, h0)
    versions = {"writer": "torch", "torch": torch.__version__}
    save_expected(out, "torch_bigru", versions, x=x, h0=h0, y=y, h_n=h_n)


def torch_gru_files(out: Path) -> None:
    """One GRU in every container: legacy, protocols 4 and 5, safetensors, whole modules."""
    import torch

    torch.manual_seed(SEED)
    gru = torch.nn.GRU(5, 7, num_layers=2, batch_first=True)
    x, h0 = torch.from_numpy(normal(3, 6, 5, salt=1)), torch.from_numpy(normal(2, 3, 7, salt=2))
    with torch.no_grad():
        y, h_n = gru(x, h0)
    run = {"x": x, "h0": h0, "y": y, "h_n": h_n}
    state = gru.state_dict()
    old = {"_use_new_zipfile_serialization": False}
    torch.save(state, out / "torch_legacy.pt", **old)
    torch.save(state, out / "torch_legacy_protocol4.pkl", pickle_protocol=4, **old)
    torch.save(state, out / "torch_protocol5.pt", pickle_protocol=5)
    torch.save(gru, out / "torch_module.pt")
    torch.save(gru, out / "torch_module_legacy.net", **old)
    for name in ("legacy", "legacy_protocol4", "protocol5", "module", "module_legacy"):
        save_torch(out, f"torch_{name}", state, **run)

    cell = torch.nn.GRUCell(4, 6)
    x, h = torch.from_numpy(normal(3, 4, salt=3)), torch.from_numpy(normal(3, 6, salt=4))
    with torch.no_grad():
        state = {f"core.cell.{key}": value for key, value in cell.state_dict().items()}
        torch.save(state, out / "torch_cell.pt")
        save_torch(out, "torch_cell", state, x=x, h0=h, h_n=cell(x, h))

    from safetensors.torch import save_file

    halves = {"half": gru.half().state_dict(), "bfloat16": gru.bfloat16().state_dict()}
    for name, state in halves.items():
        state = {f"rnn.{key}": value for key, value in state.items()}
        torch.save(state, out / f"torch_{name}.pt")
        save_torch(out, f"torch_{name}", state)
        save_file(state, out / f"torch_st_{name}.safetensors", metadata={"format": "pt"})
        save_torch(out, f"torch_st_{name}", state)


def save_torch(out: Path, name: str, tensors: dict[str, Any], **run: Any) -> None:
    """Record what `tensors` (dotted name → tensor) hold; bfloat16 and float8 as float32."""
    import torch

    def plain(tensor: Any) -> np.ndarray:
        tensor = tensor.detach().resolve_conj().resolve_neg()
        narrow = tensor.dtype == torch.bfloat16 or "float8" in str(tensor.dtype)
        return (tensor.to(torch.float32) if narrow else tensor).numpy()

    weights = checksums({key: plain(tensor) for key, tensor in tensors.items()})
    versions = {"writer": "torch", "torch": torch.__version__}
    save_expected(out, name, versions, **{k: np.asarray(v) for k, v in run.items()}, **weights)


def torchscript(out: Path) -> None:
    """torch.jit.save of a scripted and of a traced net, and of a frozen one, whose weights are in the code."""
    import torch

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(9, 4)
            self.rnn = torch.nn.GRU(4, 5, num_layers=2, bidirectional=True, batch_first=True)
            self.register_buffer("scale", torch.full((1,), 0.5))
            self.heads = torch.nn.ModuleList([torch.nn.Linear(10, 2), torch.nn.Linear(10, 3)])

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            y, _ = self.rnn(self.embed(ids) * self.scale)
            return torch.cat([self.heads[0](y), self.heads[1](y)], dim=-1)

    torch.manual_seed(SEED)
    net, ids = Net().eval(), torch.from_numpy(rng().integers(0, 9, (3, 6)))
    with torch.no_grad():
        x = net.embed(ids) * net.scale
        y, h_n = net.rnn(x)
    for name, module in (("script", torch.jit.script(net)), ("trace", torch.jit.trace(net, ids))):
        module.save(out / f"torchscript_{name}.pt")
        deflate(out / f"torchscript_{name}.pt")
        save_torch(out, f"torchscript_{name}", module.state_dict(), x=x, y=y, h_n=h_n)
    (out / "refused").mkdir(exist_ok=True)
    torch.jit.freeze(torch.jit.script(net)).save(out / "refused/torchscript_frozen.pt")
    deflate(out / "refused/torchscript_frozen.pt")


def torch_tensors(out: Path) -> None:
    """Every dtype, and every way in which a tensor can view a storage."""
    import torch

    base = torch.from_numpy(normal(6, 8))
    other = base.clone()
    values = [0.0, -0.0, 1.0, -1.5, 0.0078125, 300.0, -448.0, float("inf"), float("nan")]
    special = torch.tensor(values)
    tensors = {
        "view.transposed": base.t(),
        "view.sliced": base[1:5:2, 2:7:3],
        "view.row": base[3],
        "view.expanded": other[:, :1].expand(6, 4),
        "view.scalar": base[2, 2],
        "tied.a": other,
        "tied.b": other,
        "empty": torch.zeros(0, 3),
        "conj": torch.complex(base, -base).conj(),
        "neg": torch.complex(base, base).conj().imag,
        "parameter": torch.nn.Parameter(base[:2].clone()),
    }
    for name in (
        "float16 bfloat16 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool complex64 "
        "complex128 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz"
    ).split():
        dtype = getattr(torch, name)
        source = special if dtype.is_floating_point or dtype.is_complex else torch.arange(9)
        tensors[f"dtype.{name}"] = source.to(dtype)
    tensors["dtype.float8_e8m0fnu"] = torch.tensor([0.5, 1.0, 4096.0]).to(torch.float8_e8m0fnu)
    tagged = base[4:].clone()
    tagged.origin = "an attribute makes it _rebuild_from_type_v2"
    tensors["tagged"] = tagged
    torch.save(tensors, out / "torch_tensors.pt")
    save_torch(out, "torch_tensors", tensors)
    old = {key: value for key, value in tensors.items() if "dtype" not in key}
    torch.save(old, out / "torch_tensors_legacy.pt", _use_new_zipfile_serialization=False)
    save_torch(out, "torch_tensors_legacy", old)
    torch.save(base, out / "torch_bare.pt")
    save_torch(out, "torch_bare", {"": base})


def torch_checkpoint(out: Path) -> None:
    """A training checkpoint: model and optimiser, and whatever else people put there."""
    import collections
    import pathlib

    import torch

    torch.manual_seed(SEED)
    rnn = torch.nn.ModuleDict({"rnn": torch.nn.GRU(3, 4), "head": torch.nn.Linear(4, 2)})
    torch.nn.utils.parametrizations.weight_norm(rnn["head"])
    optimizer = torch.optim.Adam(rnn.parameters())
    rnn["head"](rnn["rnn"](torch.ones(5, 1, 3))[0]).sum().backward()
    optimizer.step()
    state, moments = rnn.state_dict(), optimizer.state_dict()
    extra = [torch.arange(3), {"deep": torch.ones(2)}]
    checkpoint = {
        "epoch": 3,
        "model": state,
        "optimizer": moments,
        "extra": extra,
        "numpy": np.arange(4.0),
        "numpy_scalar": np.float64(0.5),
        "set": {1, 2},
        "frozen": frozenset({1}),
        "complex": 1 + 2j,
        "slice": slice(1, 2),
        "counter": collections.Counter("aab"),
        "default": collections.defaultdict(list, {"a": [1]}),
        "path": pathlib.PurePosixPath("/tmp/x"),
        "args": argparse.Namespace(hidden=4, name="net"),
        "size": torch.Size([1, 2]),
        "device": torch.device("cpu"),
        "dtype": torch.float16,
        "bytes": bytearray(b"abc"),
    }
    expected = {f"model.{key}": value for key, value in state.items()}
    for index, moment in moments["state"].items():
        expected |= {f"optimizer.state.{index}.{key}": value for key, value in moment.items()}
    expected |= {"extra.0": extra[0], "extra.1.deep": extra[1]["deep"]}
    torch.save(checkpoint, out / "torch_checkpoint.tar")
    save_torch(out, "torch_checkpoint", expected)
    torch.save(checkpoint, out / "torch_checkpoint_p4.pt", pickle_protocol=4)
    save_torch(out, "torch_checkpoint_p4", expected)


# ------------------------------------------------------------------------------------------- ONNX


def onnx_torch(out: Path) -> None:
    """GRU networks as torch.onnx.export writes them: TorchScript's exporter at three opsets, and dynamo's."""
    import torch
    from torch import nn

    class Tagger(nn.Module):
        """Embedding, two bidirectional layers, a head at every step, and the states."""

        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(20, 6), nn.Linear(16, 5)
            self.gru = nn.GRU(6, 8, num_layers=2, bidirectional=True, batch_first=True)

        def forward(self, ids: torch.Tensor) -> Any:
            y, h_n = self.gru(self.embed(ids))
            return torch.log_softmax(self.head(y), -1), h_n

    class Classifier(nn.Module):
        """Normalisations before and after, the last step only."""

        def __init__(self) -> None:
            super().__init__()
            self.before, self.after = nn.LayerNorm(6), nn.BatchNorm1d(8)
            self.gru, self.head = nn.GRU(6, 8, batch_first=True), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> Any:
            y, _ = self.gru(self.before(x))
            return torch.softmax(self.head(torch.relu(self.after(y[:, -1]))), 1)

    class Packed(nn.Module):
        """Lengths, through a packed sequence."""

        def __init__(self) -> None:
            super().__init__()
            self.gru, self.head = nn.GRU(6, 8, bidirectional=True, batch_first=True), nn.Linear(16, 2)

        def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> Any:
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
            y, h_n = self.gru(packed)
            return self.head(nn.utils.rnn.pad_packed_sequence(y, batch_first=True)[0]), h_n

    torch.manual_seed(SEED)
    ids, lengths = rng(31).integers(0, 20, (3, 7)), np.array([7, 4, 2])
    x, states = normal(3, 7, 6, salt=32), normal(1, 7, 8, salt=33)
    two = {0: "batch", 1: "time"}
    save_onnx(out, "tagger_11", Tagger(), [ids], opset_version=11, dynamic_axes={"x0": two})
    save_onnx(out, "classifier_13", Classifier(), [x], opset_version=13, dynamic_axes={"x0": two})
    axes = {"x0": {0: "time", 1: "batch"}, "x1": {1: "batch"}}
    save_onnx(out, "states_17", nn.GRU(6, 8), [x, states], opset_version=17, dynamic_axes=axes)
    axes = {"x0": two, "x1": {0: "batch"}}
    save_onnx(out, "packed_17", Packed(), [x, lengths], opset_version=17, dynamic_axes=axes)
    save_onnx(out, "dynamo_tagger", Tagger(), [ids], dynamo=True)
    save_onnx(out, "dynamo_cell", nn.GRUCell(6, 8), [x[:, 0], states[0, :3]], dynamo=True)


def save_onnx(out: Path, name: str, module: Any, inputs: list[np.ndarray], *, dynamo: bool = False, **how: Any) -> None:
    import onnx
    import torch

    module.eval()
    given = tuple(torch.from_numpy(value) for value in inputs)
    with torch.no_grad():
        y = module(*given)
    names = [f"x{i}" for i in range(len(inputs))]
    path = out / f"onnx_torch_{name}.onnx"
    how |= {"external_data": False} if dynamo else {}
    torch.onnx.export(module, given, path, input_names=names, dynamo=dynamo, **how)
    model = onnx.load(path)  # without the lines of the sources and of this machine's folders
    for node in model.graph.node:
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
    for value in [*model.graph.value_info, *model.graph.input, *model.graph.output]:
        value.ClearField("metadata_props")
    model.graph.ClearField("metadata_props")
    onnx.save(model, path)
    versions = {"writer": "torch.onnx", "torch": torch.__version__, "onnx": onnx.__version__}
    save_expected(out, path.stem, versions, **numbered("x", inputs), **numbered("y", y))


def onnx_tf2onnx(out: Path) -> None:
    """GRU layers of tf.keras as tf2onnx writes them, where it finds the GRU in TensorFlow's graph."""
    import onnx
    import tensorflow as tf
    import tf2onnx
    import tf_keras as keras

    layers = keras.layers
    nets = {
        "stack": [layers.GRU(8, return_sequences=True), layers.GRU(6), layers.Dense(3, activation="softmax")],
        "bidirectional": [layers.Bidirectional(layers.GRU(8, return_sequences=True)), layers.LayerNormalization()],
    }
    for name, net in nets.items():
        keras.utils.set_random_seed(SEED)
        model, x = keras.Sequential([keras.Input((7, 5)), *net]), normal(3, 7, 5, salt=34)
        path = out / f"onnx_tf2onnx_{name}.onnx"
        signature = [tf.TensorSpec((None, 7, 5), tf.float32, name="x0")]
        tf2onnx.convert.from_function(tf.function(model), signature, opset=15, output_path=str(path))
        versions = {"writer": f"tf2onnx {tf2onnx.__version__}", "tf_keras": keras.__version__, "onnx": onnx.__version__}
        save_expected(out, path.stem, versions, x0=x, y0=model.predict(x, verbose=0))


def onnx_keras3(out: Path) -> None:
    """GRU layers of Keras 3 as its export writes them, through tf2onnx: as Loops, the masks inside."""
    import keras
    import onnx
    import tf2onnx

    layers = keras.layers
    gru = layers.GRU(6, return_sequences=True, name="g")
    first, last = layers.GRU(6, return_sequences=True, reset_after=False, name="f"), layers.GRU(5, name="l")
    ids = rng(35).integers(1, 20, (4, 7)).astype(np.int32)
    for row, padding in enumerate((slice(4, 7), slice(0, 2), slice(2, 4))):
        ids[row, padding] = 0
    nets = {
        "masked": ([layers.Embedding(20, 5, mask_zero=True, name="e"), layers.Bidirectional(gru, name="b")], ids),
        "stack": ([first, last], normal(3, 7, 5, salt=36)),
    }
    for name, (net, x) in nets.items():
        keras.utils.set_random_seed(SEED)
        end = keras.Input(x.shape[1:], dtype=x.dtype.name, name="x0")
        model = keras.Sequential([end, *net, layers.Dense(3, name="d")], name="m")
        y = model.predict(x, verbose=0)
        path = out / f"onnx_keras3_{name}.onnx"
        model.export(path, format="onnx", verbose=False)
        proto = onnx.load(path)  # without the shapes of all that lies between: they are most of the file
        graphs = [proto.graph]
        while graphs:
            graph = graphs.pop()
            del graph.value_info[:]
            graphs += [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
        onnx.save(proto, path)
        versions = {"writer": f"tf2onnx {tf2onnx.__version__}", "keras": keras.__version__, "onnx": onnx.__version__}
        save_expected(out, path.stem, versions, x0=x, y0=y)


# -------------------------------------------------------------------------------------- synthetic


def write_team_h5(path: Path, config: Any, version: str, layers: dict[str, dict[str, Any]]) -> None:
    """Write an .h5 of keras-team Keras 2: layer → {weight name: values}, in that order."""
    import json

    import h5py

    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = version.encode()
        file.attrs["backend"] = b"tensorflow"
        file.attrs["model_config"] = json.dumps(config).encode()
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [name.encode() for name in layers]
        group.attrs["keras_version"] = version.encode()
        group.attrs["backend"] = b"tensorflow"
        for name, weights in layers.items():
            layer = group.create_group(name)
            layer.attrs["weight_names"] = [weight.encode() for weight in weights]
            for weight, value in weights.items():
                layer.create_dataset(weight, data=value)


def plain_config(config: Any) -> Any:
    """A tf-keras config as keras-team wrote it: class Model, no module, no registered name."""
    if isinstance(config, dict):
        kept = {k: v for k, v in config.items() if k not in ("module", "registered_name")}
        if kept.get("class_name") == "Functional":
            kept["class_name"] = "Model"
        return {key: plain_config(value) for key, value in kept.items()}
    return [plain_config(item) for item in config] if isinstance(config, (list, tuple)) else config


def synthetic_team21(out: Path) -> None:
    """Keras 2.1: Sequential config is a list, GRU has no reset_after, hard_sigmoid."""
    import tf_keras as keras

    keras.backend.clear_session()
    options = {"reset_after": False, "recurrent_activation": "hard_sigmoid"}
    layers = [
        keras.layers.GRU(5, return_sequences=True, name="gru_1", **options),
        keras.layers.GRU(4, name="gru_2", **options),
        keras.layers.Dense(2, name="dense_1"),
    ]
    model = keras.Sequential([keras.Input((6, 3)), *layers])
    randomize(model)
    entries = []
    for layer in layers:
        config = layer.get_config()
        for key in ("reset_after", "time_major", "dtype"):
            config.pop(key, None)
        entries.append({"class_name": type(layer).__name__, "config": plain_config(config)})
    entries[0]["config"]["batch_input_shape"] = [None, 6, 3]
    stored = {
        layer.name: {
            f"{layer.name}/{key.split('/')[-1]}:0": np.asarray(variable)
            for key, variable in weights_of(layer, layer.name)
        }
        for layer in layers
    }
    config = {"class_name": "Sequential", "config": entries}
    write_team_h5(out / "syn_team21.h5", config, "2.1.4", stored)
    save_synthetic(out, "syn_team21", keras, model, normal(4, 6, 3))


def save_synthetic(out: Path, name: str, keras: Any, model: Any, x: Any, **own: Any) -> None:
    versions = {
        "writer": "h5py",
        "computed_by": f"tf_keras {version_of(keras)}",
        "synthetic": "built to the documented layout of a release that no longer installs",
    }
    weights = own or {key: np.asarray(v) for key, v in weights_of(model, "")}
    y = model.predict(x, verbose=0)
    save_expected(out, name, versions, **numbered("x", x), **numbered("y", y), **checksums(weights))


def synthetic_team22_frozen(out: Path) -> None:
    """Keras 2.2: a frozen nested model lists its trainable weights, then BatchNorm statistics."""
    import tf_keras as keras

    keras.backend.clear_session()
    layers = keras.layers
    gru = {"recurrent_activation": "hard_sigmoid", "reset_after": False}
    inner = keras.Sequential(
        [
            keras.Input((5, 4)),
            layers.BatchNormalization(name="bn_1"),
            layers.Bidirectional(layers.GRU(4, return_sequences=True, name="gru_1", **gru)),
            layers.BatchNormalization(name="bn_2"),
        ],
        name="inner",
    )
    x = keras.Input((5, 4), name="x")
    model = keras.Model(x, layers.Dense(2, name="dense_1")(inner(x)), name="outer")
    randomize(model)
    config = plain_config({"class_name": "Model", "config": model.get_config()})
    # in keras-team Keras, freezing a model sets no flag on its layers
    found = next(e for e in config["config"]["layers"] if e["class_name"] == "Sequential")
    found["config"]["trainable"] = False
    inside = {key: np.asarray(v) for key, v in weights_of(inner, "")}
    statistics = ("moving_mean", "moving_variance")
    order = sorted(inside, key=lambda key: key.endswith(statistics))
    names = {key: key.replace("/", "_", key.count("/") - 1) + ":0" for key in order}
    dense = {f"dense_1/{w.name.split('/')[-1]}": np.asarray(w) for w in model.layers[-1].weights}
    stored = {"x": {}, "inner": {names[key]: inside[key] for key in order}, "dense_1": dense}
    write_team_h5(out / "syn_team22_frozen.h5", config, "2.2.4", stored)
    save_synthetic(out, "syn_team22_frozen", keras, model, normal(3, 5, 4))


def synthetic_cudnn(out: Path) -> None:
    """CuDNNGRU's layout under its own class and, as also met, under class GRU."""
    import tf_keras as keras
    from tf_keras.src.saving.legacy.hdf5_format import preprocess_weights_for_loading

    units, width = 4, 3
    generator = rng(5)
    stored = [
        generator.uniform(-0.5, 0.5, shape).astype(np.float32)
        for shape in ((width, 3 * units), (units, 3 * units), (6 * units,))
    ]
    names = ("kernel", "recurrent_kernel", "bias")
    for kind in ("CuDNNGRU", "GRU"):
        keras.backend.clear_session()
        layer = keras.layers.GRU(units, return_sequences=True, name="gru")
        model = keras.Sequential([keras.Input((6, width)), layer], name="net")
        layer.set_weights(preprocess_weights_for_loading(layer, list(stored), "2"))
        config = plain_config(layer.get_config())
        if kind == "CuDNNGRU":
            unsaid = """activation recurrent_activation use_bias dropout recurrent_dropout unroll
                implementation reset_after time_major"""
            config = {key: value for key, value in config.items() if key not in unsaid.split()}
        config["batch_input_shape"] = [None, 6, width]
        entry = {"class_name": kind, "config": config}
        name = f"syn_cudnn_{kind.lower()}"
        write_team_h5(
            out / f"{name}.h5",
            {"class_name": "Sequential", "config": {"name": "net", "layers": [entry]}},
            "2.2.4",
            {"gru": {f"gru/{n}:0": v for n, v in zip(names, stored, strict=True)}},
        )
        own = {f"gru/{n}": v for n, v in zip(names, stored, strict=True)}
        save_synthetic(out, name, keras, model, normal(3, 6, width), **own)


GROUPS: dict[str, list[Callable[[Path], None]]] = {
    "keras3": [group_keras3, keras3_refused, keras3_weights],
    "tfkeras": [group_tfkeras, tfkeras_weights],
    "tf213": [group_tf213, tf213_weights],
    "torch": [torch_bigru, torch_gru_files, torch_tensors, torch_checkpoint, torchscript],
    "onnx": [onnx_torch, onnx_tf2onnx, onnx_keras3],
    "synthetic": [synthetic_team21, synthetic_team22_frozen, synthetic_cudnn],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("groups", nargs="*", help=f"of {', '.join(GROUPS)}; all if left out")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for group in arguments.groups or GROUPS:
        for make in GROUPS[group]:
            print(f"{group}: {make.__name__}", flush=True)
            make(arguments.out)


if __name__ == "__main__":
    main()
