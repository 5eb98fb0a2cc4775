"""ONNX Runtime runs what is exported and gives what the model gives, and what the source's framework recorded.

Only shapes with N, T >= 1: for empty ones ONNX Runtime aborts the process.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_drop_in import assert_close, golden_models, outputs_of, pairs_of

from fastgru import layers, nn
from fastgru.convert import onnx_operations
from fastgru.convert.to_onnx import onnx_model
from fastgru.formats import FormatError
from fastgru.graph import Graph, Node, Ref
from fastgru.layers.operations import OPERATIONS, Operation
from fastgru.loading import load
from fastgru.models import Model, Sequential, walk

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'fastgru[parity]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed: pip install 'fastgru[parity]'")
pytestmark = pytest.mark.parity("onnxruntime")


def session(model: Any, opset: int = 17) -> Any:
    data = onnx_model(model, opset=opset)
    onnx.checker.check_model(data, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def close(found: Any, expected: Any, atol: float = 3e-6) -> None:
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol * max(1.0, float(np.abs(expected).max())))


ACTIVATIONS = (
    "tanh sigmoid relu softsign softplus linear elu hard_sigmoid".split()
    + [("hard_sigmoid", 1 / 6, 0.5), ("elu", 0.7), ("leaky_relu", 0.3), ("thresholded_relu", 0.4)]
    + [("affine", 0.6, -0.1), ("scaled_tanh", 1.3, 0.7)]
)
#: Gates that can't blow up over time.
BOUNDED = ["tanh", "softsign", "hard_sigmoid", ("hard_sigmoid", 1 / 6, 0.5), ("scaled_tanh", 0.9, 0.7)]


@pytest.mark.parametrize("seed", range(40))
def test_random_torch_grus(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pick = lambda values: values[int(rng.integers(len(values)))]  # noqa: E731
    settings = {
        "num_layers": pick((1, 1, 2, 3)),
        "bias": pick((True, True, False)),
        "batch_first": pick((False, True)),
        "bidirectional": pick((False, True)),
        "reset_after": pick((True, False)),
        "activation": pick(("tanh", *ACTIVATIONS)),
        "recurrent_activation": pick(("sigmoid", "sigmoid", *BOUNDED)),
    }
    inputs, hidden = int(rng.integers(1, 40)), int(rng.integers(1, 40))
    gru = nn.GRU(inputs, hidden, **settings)
    scale = 0.5 / max(inputs, hidden) ** 0.5  # larger weights are chaotic
    gru.load_state_dict({k: scale * rng.standard_normal(v.shape) for k, v in gru.state_dict().items()})
    run = session(gru, opset=pick((17, 18, 21)))
    layers = settings["num_layers"] * (1 + settings["bidirectional"])
    for rows, steps in ((1, 1), (3, 5)):
        x = rng.standard_normal((rows, steps, inputs) if gru.batch_first else (steps, rows, inputs)).astype(np.float32)
        h0 = rng.standard_normal((layers, rows, hidden)).astype(np.float32)
        for found, expected in zip(run.run(["y", "h_n"], {"x": x, "h0": h0}), gru(x, h0), strict=True):
            close(found, expected)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("place", ["activation", "recurrent_activation"])
def test_activations(activation: Any, place: str) -> None:
    rng = np.random.default_rng(2)
    gru = nn.GRU(4, 7, bidirectional=True, **{place: activation})
    x, h0 = (rng.standard_normal(s).astype(np.float32) for s in ((2, 3, 4), (2, 3, 7)))
    for found, expected in zip(session(gru).run(None, {"x": x, "h0": h0}), gru(x, h0), strict=True):
        close(found, expected)


@pytest.mark.parametrize("reset_after", [True, False])
def test_torch_cell(reset_after: bool) -> None:
    rng = np.random.default_rng(1)
    cell = nn.GRUCell(6, 9, reset_after=reset_after, activation="relu")
    x, h0 = (rng.standard_normal((4, n)).astype(np.float32) for n in (6, 9))
    close(session(cell).run(["h_n"], {"x": x, "h0": h0})[0], cell(x, h0))


# -- files of Keras and PyTorch: ONNX Runtime gives what their frameworks recorded ----------

#: Files that ONNX can't express, and why.
REFUSED = {
    "k3_stateful": "stateful: an ONNX model keeps no state between calls",
    "tfk_stateful": "stateful: an ONNX model keeps no state between calls",
    "k3_variants": "expected an activation that ONNX's GRU has .* found selu",
    "tfk_new_variants": "expected an activation that ONNX's GRU has .* found selu",
    "tfk_time_major": "time_major: only batch-major layers are exported",
}
KINDS = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_}


def run_model(run: Any, x: Any, dictionary: bool) -> Any:
    """What ``Model.predict`` would return for the same input."""
    ends = {end.name: KINDS[end.type] for end in run.get_inputs()}
    given = x if isinstance(x, dict) else dict(zip(ends, x if isinstance(x, list) else [x], strict=True))
    found = run.run(None, {name: np.asarray(value).astype(ends[name]) for name, value in given.items()})
    if dictionary:
        return dict(zip([end.name for end in run.get_outputs()], found, strict=True))
    return found if len(found) > 1 else found[0]


def check_file(path: Path, expected: Path) -> None:
    stem = expected.name.removesuffix(".expected.npz")
    with np.load(expected) as arrays:
        model = load(path, prefix=str(arrays["prefix"]) if "prefix" in arrays.files else None)
        if path.stem in REFUSED:
            with pytest.raises(FormatError, match=f"^ONNX: layer '.*: .*{REFUSED[path.stem]}"):
                onnx_model(model)
            return
        if isinstance(model, Model):
            run = session(model)
            for x, ys in pairs_of(model, arrays):
                own = model.predict(x)
                found = run_model(run, x, isinstance(own, dict))
                for a, b, y in zip(outputs_of(found, arrays), outputs_of(own, arrays), ys, strict=True):
                    assert_close(a, y, stem)
                    close(a, b, 1e-6)
            return
        if isinstance(model, nn.GRU):
            model.batch_first = True
        run = session(model)
        names = [end.name for end in run.get_outputs()]
        x = arrays["x"].astype(np.float32)
        h0 = arrays["h0"] if "h0" in arrays.files else np.zeros_like(arrays["h_n"])
        found = run.run(names, {"x": x, "h0": h0.astype(np.float32)})
        for name, value in zip(names, found, strict=True):
            assert_close(value, arrays[name], stem)


@pytest.mark.parametrize("pair", golden_models(), ids=lambda p: p[0].name)
def test_golden(pair: tuple[Path, Path]) -> None:
    check_file(*pair)


# -- hand-made layers: ONNX Runtime gives what `predict` gives ------------------------------

RNG = np.random.default_rng(5)
ROWS, STEPS, WIDTH, UNITS = 4, 6, 3, 5
X = RNG.standard_normal((ROWS, STEPS, WIDTH)).astype(np.float32)
OPSETS = (17, 18, 21)


def build(*stack: layers.Layer, shape: tuple[int | None, ...] = (None, WIDTH), x: Any = X) -> Sequential:
    """A model whose weights are drawn at a first call, then moved away from zeros and ones."""
    model = Sequential([layers.Input(shape), *stack])
    model.predict(x)
    rng = np.random.default_rng(11)
    for layer in walk(model):
        if layer.weights:
            layer.set_weights([np.abs(w + 0.3 * rng.standard_normal(w.shape)) for w in layer.get_weights()])
    return model


def agree(model: Model, x: Any, opset: int = 17) -> None:
    expected = model.predict(x)
    found = run_model(session(model, opset), x, isinstance(expected, dict))
    for a, b in zip(outputs_of(found, None), outputs_of(expected, None), strict=True):
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
        close(np.nan_to_num(a), np.nan_to_num(b))


NAMES = (
    "linear sigmoid tanh hard_sigmoid relu softsign elu selu softplus leaky_relu softmax log_softmax exponential silu "
    "swish gelu relu6 mish hard_silu hard_swish log_sigmoid hard_tanh tanh_shrink celu"
).split()
SINGLE = [
    *(layers.Activation(name) for name in NAMES),
    *(layers.Activation(spec) for spec in ACTIVATIONS if isinstance(spec, tuple) and len(spec) == 3),
    layers.Activation("hard_sigmoid", dialect=layers.Dialect.of("2.2.4")),
    layers.Activation(layers.LeakyReLU(0.3)),
    layers.ReLU(),
    layers.ReLU(1.5, 0.1, 0.2),
    layers.ReLU(6.0, 0.1),
    layers.LeakyReLU(0.25),
    layers.ThresholdedReLU(0.3),
    layers.ELU(0.6),
    layers.PReLU(shared_axes=1),
    layers.Softmax(),
    layers.Softmax([1, 2]),
    layers.Softmax(1),
    layers.Dense(4, "relu"),
    layers.Dense(4, layers.ELU(0.5), use_bias=False),
    layers.Dropout(0.5),
    layers.BatchNormalization(),
    layers.BatchNormalization(center=False, scale=False),
    layers.LayerNormalization(),
    layers.LayerNormalization(scale=False),
    layers.LayerNormalization(center=False),
    layers.LayerNormalization(rms_scaling=True),
    layers.GlobalAveragePooling1D(),
    layers.GlobalAveragePooling1D(keepdims=True),
    layers.GlobalAveragePooling1D("channels_first"),
    layers.GlobalMaxPooling1D(),
    layers.Reshape((-1, 1)),
    layers.Permute((2, 1)),
    layers.TimeDistributed(layers.Dense(4, "tanh")),
    layers.TimeDistributed(layers.BatchNormalization()),
    layers.TimeDistributed(layers.RepeatVector(3)),
    layers.TimeDistributed(Sequential([layers.Input((WIDTH,)), layers.Dense(4), layers.Dense(2, "relu")])),
]


@pytest.mark.parametrize("layer", SINGLE, ids=lambda v: f"{v.class_name()}-{v.describe()}")
def test_one_layer(layer: layers.Layer) -> None:
    layer.name = ""
    agree(build(layer), X * 2, opset=OPSETS[len(layer.describe()) % 3])


FIXED = [
    layers.Flatten(),
    layers.Reshape((WIDTH, STEPS)),
    layers.Reshape((2, -1)),
    layers.BatchNormalization(axis=1),
    layers.LayerNormalization(axis=1),
    layers.LayerNormalization(axis=[1, 2]),
    layers.PReLU(),
]


@pytest.mark.parametrize("layer", FIXED, ids=lambda v: f"{v.class_name()}-{v.describe()}")
def test_one_layer_on_fixed_sizes(layer: layers.Layer) -> None:
    layer.name = ""
    agree(build(layer, shape=(STEPS, WIDTH)), X)


MERGES = [layers.Add, layers.Subtract, layers.Multiply, layers.Average, layers.Maximum, layers.Minimum]
OTHERS = [
    lambda **k: layers.Concatenate(**k),
    lambda **k: layers.Concatenate(axis=1, **k),
    lambda **k: layers.Dot(2, **k),
    lambda **k: layers.Dot(1, normalize=True, **k),
    lambda **k: layers.Dot([2, -1], **k),
]
DIALECTS = [layers.Dialect.of(v) for v in ("2.2.4", "2.2.4-tf", "3.0.0", "3.15.0")]


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda d: f"{d.version}{'team' * d.team}")
@pytest.mark.parametrize("masked", [(), (0,), (1,), (0, 1)], ids=str)
@pytest.mark.parametrize("make", [*MERGES, *OTHERS])
def test_merges(make: Any, masked: tuple[int, ...], dialect: layers.Dialect) -> None:
    """Two inputs, masked or not, merged, then read by layers that look at the mask of the result."""
    merge = make(dialect=dialect, name="merge")
    pool = layers.GlobalAveragePooling1D(name="pool")
    masks = [layers.Masking(0.0, name=f"masking_{i}") for i in range(2)]
    nodes = [
        Node(masks[i] if i in masked else layers.Dropout(0.1, name=f"d{i}"), Ref(i), ((0, 2 + i),)) for i in (0, 1)
    ]
    nodes += [Node(merge, [Ref(2), Ref(3)], ((0, 4),)), Node(pool, Ref(4), ((0, 5),))]
    ends = [layers.Input((None, WIDTH), name=name) for name in "ab"]
    model = Model(Graph(tuple(nodes), (0, 1), (4, 5), 6), {n.layer.name: n.layer for n in nodes}, ends, ["m", "p"])
    b = RNG.standard_normal(X.shape).astype(np.float32)
    agree(model, [padded(X, 0), padded(b, 1)])


def padded(x: Any, seed: int) -> Any:
    """Steps of zeros anywhere in a row; one row holds nothing else."""
    rng = np.random.default_rng(seed)
    x = x.copy()
    x[rng.random(x.shape[:2]) < 0.4] = 0
    x[1] = 0
    x[2, :2] = 0
    x[3, -2:] = 0
    return x


def recurrent(seed: int) -> tuple[layers.RNN | layers.Bidirectional, int]:
    """A random recurrent layer with weights, and how many initial states it takes."""
    rng = np.random.default_rng(seed)
    flag = lambda: bool(rng.integers(2))  # noqa: E731
    dialect = DIALECTS[int(rng.integers(4))]
    own = {"return_sequences": flag(), "return_state": flag(), "zero_output_for_mask": flag(), "dialect": dialect}
    kind = {"reset_after": flag(), "use_bias": flag(), "dialect": dialect}
    kind["activation"] = ("tanh", "relu", "hard_sigmoid")[int(rng.integers(3))]
    kind["recurrent_activation"] = ("sigmoid", "hard_sigmoid")[int(rng.integers(2))]

    def half(backwards: bool, units: int) -> layers.RNN:
        cells = [layers.GRUCell(units, name=f"c{i}", **kind) for i in range(int(rng.integers(1, 3)))]
        if len(cells) == 2:
            return layers.RNN(cells, go_backwards=backwards, **own)
        return layers.GRU(units, go_backwards=backwards, **own, **{k: v for k, v in kind.items() if k != "dialect"})

    backwards = flag()
    layer: Any = half(backwards, UNITS)
    count = len(layer.cells)
    if seed % 2:
        mode = ("concat", "sum", "mul", "ave", None)[int(rng.integers(5))]
        second = half(not backwards, UNITS if mode != "concat" or flag() else UNITS + 2)
        count = 2 * count if len(second.cells) == count else 0  # unequal stacks take no states here
        layer = layers.Bidirectional(layer, mode, second, dialect=dialect)
    layer.name = "layer"
    layer.build((ROWS, STEPS, WIDTH), rng)
    layer.set_weights([0.4 * rng.standard_normal(w.shape) for w in layer.get_weights()])
    return layer, count


@pytest.mark.parametrize("seed", range(120))
def test_recurrent_layers_with_masks_and_states(seed: int) -> None:
    """Masks with leading, trailing, inner and nothing but padding, with and without initial states."""
    layer, count = recurrent(seed)
    rng = np.random.default_rng(seed)
    masked, with_state = bool(seed // 2 % 2), bool(seed // 4 % 2) and count > 0
    units = [c.units for h in halves_of(layer) for c in h.cells]
    ends = [layers.Input((None, WIDTH), name="x")]
    ends += [layers.Input((n,), name=f"h{i}") for i, n in enumerate(units)] if with_state else []
    first = layers.Masking(name="masking") if masked else layers.Dropout(0.1, name="dropout")
    slot, last = len(ends), len(ends) + 1
    outputs = tuple((i, last + i) for i in range(layer.output_count()))
    state = [Ref(i + 1) for i in range(len(units))] if with_state else None
    nodes = (Node(first, Ref(0), ((0, slot),)), Node(layer, Ref(slot), outputs, state=state))
    graph = Graph(nodes, tuple(range(slot)), tuple(s for _, s in outputs), last + len(outputs))
    model = Model(graph, {"first": first, "layer": layer}, ends, [f"y{i}" for i in range(len(outputs))])
    given = [padded(X, seed), *(rng.standard_normal((ROWS, n)).astype(np.float32) for n in units)]
    agree(model, given if with_state else given[0], OPSETS[seed % 3])


def halves_of(layer: Any) -> list[layers.RNN]:
    both = isinstance(layer, layers.Bidirectional)
    return [layer.forward_layer, layer.backward_layer] if both else [layer]


# -- op nodes -------------------------------------------------------------------------------

A, B = Ref(0), Ref(1)
#: Operation, positional arguments (A and B are the inputs), named arguments.
CALLS: list[tuple[str, list[Any], dict[str, Any]]] = [
    *((name, [A, B], {}) for name in "Add Subtract Multiply Divide TrueDivide Maximum Minimum".split()),
    *((name, [A, 0.5], {}) for name in "Add Subtract Multiply Divide Maximum Minimum".split()),
    *((name, [2, A], {}) for name in "Add Subtract Multiply Divide Maximum Minimum".split()),
    ("Add", [A, np.arange(WIDTH, dtype=np.float32)], {}),
    ("Power", [A, 2], {}),
    ("Power", [A, 3.0], {}),
    *((name, [A], {}) for name in "Negative Absolute Abs Square Exp Sign Floor Round Sin Cos Reciprocal".split()),
    *((name, [Ref(2)], {}) for name in "Sqrt Rsqrt Log".split()),  # A squared
    *((name, [A, B], {}) for name in "Equal NotEqual Greater GreaterEqual Less LessEqual".split()),
    *((name, [A, B], {}) for name in "LogicalAnd LogicalOr".split()),
    ("LogicalNot", [A], {}),
    *(
        (name, [A], {"axis": axis})
        for name in "Mean Sum Prod Max Min Any All".split()
        for axis in (None, 1, -1, [0, 2])
    ),
    *((name, [A], {"axis": 1, "keepdims": True}) for name in "Mean Sum Prod Max Min Any All".split()),
    ("Cast", [A], {"dtype": "int32"}),
    ("Cast", [A], {"dtype": "bool"}),
    ("Cast", [A], {"dtype": "float16"}),
    ("GetItem", [A, -1], {}),
    ("GetItem", [A, (slice(None), -1)], {}),
    ("GetItem", [A, (slice(None), slice(1, None, 2))], {}),
    ("GetItem", [A, (slice(None), slice(None, None, -1), 0)], {}),
    ("GetItem", [A, (slice(None), slice(-2, None, -2), slice(0, -1))], {}),
    ("GetItem", [A, (slice(None), slice(None), slice(2, None, -1))], {}),
    ("GetItem", [A, (Ellipsis, None, 1)], {}),
    ("GetItem", [A, (slice(None), None, 2, Ellipsis)], {}),
    ("GetItem", [A, [None, 0, None, slice(None), 1, None]], {}),
    ("Where", [Ref(3), A, B], {}),  # A > B
    ("Where", [Ref(3), 1.0, A], {}),
    ("Clip", [A], {"x_min": -0.5, "x_max": 0.7}),
    ("Clip", [A, -0.5, None], {}),
    ("Reshape", [A], {"newshape": [-1, STEPS * WIDTH]}),
    ("Reshape", [A], {"newshape": [-1, WIDTH, STEPS]}),
    ("Reshape", [A], {"newshape": [None, 2, -1]}),
    ("Reshape", [A], {"newshape": [ROWS, STEPS * WIDTH]}),
    ("ExpandDims", [A], {"axis": -1}),
    ("ExpandDims", [A], {"axis": 1}),
    ("ExpandDims", [A], {"axis": [0, 2]}),
    ("Squeeze", [Ref(4)], {"axis": -1}),  # the last column of A, kept as a column
    ("Squeeze", [Ref(4)], {"axis": [2]}),
    ("Transpose", [A], {}),
    ("Transpose", [A], {"axes": [0, 2, 1]}),
    ("Swapaxes", [A, 1, -1], {}),
    ("Concatenate", [[A, B]], {"axis": 1}),
    ("Concatenate", [[A, B]], {}),
    ("Stack", [[A, B]], {"axis": 1}),
    ("Stack", [[A, B]], {"axis": -1}),
    ("Repeat", [A, 3], {"axis": 1}),
    ("Repeat", [A, 2], {"axis": -1}),
    ("Tile", [A, [1, 2, 3]], {}),
    ("Tile", [A, [2, 1]], {}),
    ("Flip", [A], {"axis": 1}),
    ("Flip", [A], {}),
    ("ZerosLike", [A], {}),
    ("OnesLike", [A], {}),
    ("Matmul", [A, Ref(5)], {}),  # B with its last axes swapped
    *((name, [A], {}) for name in "Softmax LogSoftmax Relu Relu6 LeakyRelu Sigmoid Tanh HardSigmoid Softplus".split()),
    *((name, [A], {}) for name in "Softsign Elu Selu Silu Gelu Identity StopGradient".split()),
    ("Gelu", [A], {"approximate": False}),
    ("Elu", [A], {"alpha": 0.4}),
    ("LeakyRelu", [A], {"negative_slope": 0.1}),
    ("Softmax", [A], {"axis": 1}),
]


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("call", CALLS, ids=lambda c: f"{c[0]}{c[1][1:]}{c[2]}")
def test_operations(call: tuple[str, list[Any], dict[str, Any]], free: bool) -> None:
    name, positional, named = call
    if free and name == "Reshape" and named["newshape"] == [ROWS, STEPS * WIDTH]:
        free = False
    made = [
        Node(Operation("Square", {}, "square"), ([A], {}), ((0, 2),)),
        Node(Operation("Greater", {}, "greater"), ([A, B], {}), ((0, 3),)),
        Node(Operation("GetItem", {}, "column"), ([A, (slice(None), slice(None), slice(2, 3))], {}), ((0, 4),)),
        Node(Operation("Transpose", {"axes": [0, 2, 1]}, "swap"), ([B], {}), ((0, 5),)),
        Node(Operation(name, {}, "op"), (positional, named), ((0, 6),)),
    ]
    shape = (None if free else STEPS, WIDTH)
    ends = [layers.Input(shape, name=end) for end in "ab"]
    model = Model(Graph(tuple(made), (0, 1), (6,), 7), {n.layer.name: n.layer for n in made}, ends, ["op"])
    b = RNG.standard_normal(X.shape).astype(np.float32)
    b[0] = X[0]
    agree(model, [X, b], OPSETS[len(str(call)) % 3])


def test_whole_numbers_stay_whole() -> None:
    """ids + 1 reach an Embedding as int64; a comparison of ids makes a mask."""
    embedding = layers.Embedding(9, 4, name="embedding")
    embedding.build((), np.random.default_rng(0))
    gru = layers.GRU(3, name="gru")
    gru.build((0, 0, 4), np.random.default_rng(0))
    nodes = (
        Node(Operation("Add", {}, "add"), ([A, 1], {}), ((0, 1),)),
        Node(Operation("NotEqual", {}, "not_equal"), ([A, 0], {}), ((0, 2),)),
        Node(embedding, Ref(1), ((0, 3),)),
        Node(gru, Ref(3), ((0, 4),), mask=Ref(2)),
        Node(Operation("Sum", {"axis": 1}, "sum"), ([Ref(1)], {}), ((0, 5),)),
    )
    names = {n.layer.name: n.layer for n in nodes}
    model = Model(Graph(nodes, (0,), (4, 5), 6), names, [layers.Input((None,), "int32", "ids")], ["gru", "sum"])
    agree(model, np.array([[1, 2, 3, 0], [0, 7, 0, 2], [0, 0, 0, 0]]))


def test_every_exported_operation_is_tested() -> None:
    assert {call[0] for call in CALLS} == set(onnx_operations.OPERATIONS)
    assert set(OPERATIONS) - set(onnx_operations.OPERATIONS) == {"FloorDivide", "Mod", "Log1p"}
