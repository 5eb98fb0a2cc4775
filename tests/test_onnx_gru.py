"""The GRU operator: every attribute against ONNX Runtime and, where that has no answer, against the equations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from fastgru import formats, gates, reference
from fastgru.models import Model

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'fastgru[onnx]'")

# operator's name → (ours, α's range or None, β's range or None)
ACTIVATIONS: dict[str, tuple[str, Any, Any]] = {
    "Relu": ("relu", None, None),
    "Tanh": ("tanh", None, None),
    "Sigmoid": ("sigmoid", None, None),
    "Affine": ("affine", (0.2, 0.9), (-0.3, 0.3)),
    "LeakyRelu": ("leaky_relu", (0.01, 0.5), None),
    "ThresholdedRelu": ("thresholded_relu", (0.1, 0.8), None),
    "ScaledTanh": ("scaled_tanh", (0.5, 1.5), (0.5, 1.5)),
    "HardSigmoid": ("hard_sigmoid", (0.1, 0.4), (0.3, 0.6)),
    "Elu": ("elu", (0.3, 1.2), None),
    "Softsign": ("softsign", None, None),
    "Softplus": ("softplus", None, None),
}
GATES = ("Sigmoid", "HardSigmoid")  # within 0 … 1: others let a state grow, and its rounding errors with it


@dataclass
class GRUNode:
    """One GRU node with all that it is given; `arrays` holds inputs and weights by the operator's names."""

    attributes: dict[str, Any]
    arrays: dict[str, Any]
    activations: list[tuple[str, float, float]]  # ours, σ and φ of each direction
    outputs: tuple[str, str] = ("Y", "Y_h")

    def model(self, constants: tuple[str, ...] = ("W", "R", "B")) -> Any:
        """A ModelProto of this node alone; what is not a constant is an input."""
        names = ["X", "W", "R", "B", "sequence_lens", "initial_h"]
        used = [n if n in self.arrays else "" for n in names]
        while not used[-1]:
            used.pop()
        node = onnx.helper.make_node("GRU", used, [*self.outputs], **self.attributes)
        kinds = {n: onnx.TensorProto.INT32 if n == "sequence_lens" else onnx.TensorProto.FLOAT for n in names}
        value_info = onnx.helper.make_tensor_value_info
        graph = onnx.helper.make_graph(
            [node],
            "gru",
            [value_info(n, kinds[n], self.arrays[n].shape) for n in used if n and n not in constants],
            [value_info(n, onnx.TensorProto.FLOAT, None) for n in self.outputs if n],
            [onnx.numpy_helper.from_array(self.arrays[n], n) for n in used if n in constants],
        )
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)])
        model.ir_version = 8
        return model

    def run(self, constants: tuple[str, ...] = ("W", "R", "B")) -> list[Any]:
        loaded = Model.from_model_file(formats.read_bytes(self.model(constants).SerializeToString()))
        y = loaded.predict({end.name: self.arrays[end.name] for end in loaded.inputs})
        return y if isinstance(y, list) else [y]

    def run_onnxruntime(self) -> list[Any]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        data = self.model().SerializeToString()
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        found: list[Any] = session.run(None, {v.name: self.arrays[v.name] for v in session.get_inputs()})
        return found

    def run_equations(self) -> list[Any]:
        """The reference in float64, with clipped activations where the node says so. Layouts as in the node."""
        a = self.arrays
        batch_first = self.attributes.get("layout", 0) == 1
        x = a["X"].astype(np.float64)
        x = x if batch_first else x.swapaxes(0, 1)
        ys, finals = [], []
        directions = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}
        for d, reverse in enumerate(directions[self.attributes.get("direction", "forward")]):
            weights = gates.from_onnx(a["W"][d], a["R"][d], a["B"][d] if "B" in a else None)
            wide = [None if w is None else w.astype(np.float64) for w in weights]
            sigma, phi = self.activations[2 * d : 2 * d + 2]
            start = a.get("initial_h")
            h0 = None if start is None else (start[:, d] if batch_first else start[d]).astype(np.float64)
            y, h_n = reference.gru(
                x,
                *wide,
                h0=h0,
                lengths=a.get("sequence_lens"),
                reverse=reverse,
                reset_after=bool(self.attributes.get("linear_before_reset", 0)),
                activation=phi,
                recurrent_activation=sigma,
            )
            if "sequence_lens" in a:
                h_n[a["sequence_lens"] == 0] = 0
            ys.append(y)
            finals.append(h_n)
        if batch_first:
            return [np.stack(ys, 2), np.stack(finals, 1)]
        return [np.stack(ys, 1).transpose(2, 1, 0, 3), np.stack(finals, 0)]


def random_node(rng: np.random.Generator, *, layout: int = 0, shortest: int = 1, clip: bool = True) -> GRUNode:
    """A node with attributes, sizes and optional inputs drawn at random; N and T are at least 1."""
    n, t, i, h = (int(rng.integers(1, high)) for high in (6, 9, 12, 20))
    direction = str(rng.choice(["forward", "reverse", "bidirectional"]))
    d = 2 if direction == "bidirectional" else 1
    attributes: dict[str, Any] = {"hidden_size": h, "direction": direction}
    if rng.random() < 0.6:
        attributes["linear_before_reset"] = int(rng.integers(0, 2))
    if layout:
        attributes["layout"] = 1
    if clip and rng.random() < 0.3:
        attributes["clip"] = float(np.float32(rng.uniform(0.1, 2.0)))
    ours = [("sigmoid", 0.0, 0.0), ("tanh", 0.0, 0.0)] * d
    if rng.random() < 0.6:
        any_gate = rng.random() < 0.3
        t = min(t, 3) if any_gate else t
        ours = draw_activations(rng, d, attributes, list(ACTIVATIONS) if any_gate else list(GATES))

    def normal(*shape: int) -> Any:
        return (rng.standard_normal(shape) * 0.4).astype(np.float32)

    arrays = {"X": normal(n, t, i) if layout else normal(t, n, i), "W": normal(d, 3 * h, i), "R": normal(d, 3 * h, h)}
    if rng.random() < 0.7:
        arrays["B"] = normal(d, 6 * h)
    if rng.random() < 0.5:
        arrays["sequence_lens"] = rng.integers(shortest, t + 1, n).astype(np.int32)
    if rng.random() < 0.5:
        arrays["initial_h"] = normal(n, d, h) if layout else normal(d, n, h)
    return GRUNode(attributes, arrays, ours)


def draw_activations(
    rng: np.random.Generator, d: int, attributes: dict[str, Any], gates: list[str]
) -> list[tuple[str, float, float]]:
    """Activations with α and β in queues: one that takes none leaves the queues alone."""
    names, alphas, betas, ours = [], [], [], []
    for k in range(2 * d):
        name = str(rng.choice(gates if k % 2 == 0 else list(ACTIVATIONS)))
        mine, *ranges = ACTIVATIONS[name]
        drawn = [None if r is None else float(np.float32(rng.uniform(*r))) for r in ranges]
        alphas += [] if drawn[0] is None else [drawn[0]]
        betas += [] if drawn[1] is None else [drawn[1]]
        names.append(str(rng.choice([name, name.lower(), name.upper()])))
        ours.append((mine, drawn[0] or 0.0, drawn[1] or 0.0))
    attributes["activations"] = names
    attributes.update({"activation_alpha": alphas} if alphas else {})
    attributes.update({"activation_beta": betas} if betas else {})
    return ours


def error_of(found: list[Any], expected: list[Any]) -> float:
    """The largest difference, relative to max(1, |y|max) of its output."""
    worst = 0.0
    for f, e in zip(found, expected, strict=True):
        assert f.shape == e.shape and f.dtype == np.float32
        worst = max(worst, float(np.abs(f - e).max(initial=0) / max(1, np.abs(e).max(initial=0))))
    return worst


@pytest.mark.parity("onnxruntime")
@pytest.mark.parametrize("block", range(5))
def test_random_nodes_agree_with_onnxruntime(block: int) -> None:
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed: pip install 'fastgru[parity]'")
    for seed in range(30 * block, 30 * block + 30):
        node = random_node(np.random.default_rng(seed))
        assert error_of(node.run(), node.run_onnxruntime()) <= 2e-5, f"seed {seed}: {node.attributes}"


@pytest.mark.parametrize("layout", [0, 1])
def test_equations(layout: int) -> None:
    """Layout 1 and lengths of 0, which ONNX Runtime doesn't have, against the reference in float64."""
    for seed in range(60):
        node = random_node(np.random.default_rng(1000 + seed), layout=layout, shortest=0, clip=False)
        assert error_of(node.run(), [y.astype(np.float32) for y in node.run_equations()]) <= 2e-5, f"seed {seed}"


def test_the_comparison_bites() -> None:
    node = random_node(np.random.default_rng(3), clip=False)
    expected = [y.astype(np.float32) for y in node.run_equations()]
    swapped = {**node.arrays, "W": node.arrays["W"][:, ::-1].copy()}
    assert error_of(node.run(), expected) <= 2e-5
    assert error_of(GRUNode(node.attributes, swapped, node.activations).run(), expected) > 1e-3


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("reset_after", [0, 1])
def test_clip_comes_before_every_activation(layout: int, reset_after: int) -> None:
    """With the bound far away nothing changes; with the bound near, all gates see it: n = tanh(±clip) at the most."""
    node = random_node(np.random.default_rng(5), layout=layout, shortest=0, clip=False)
    node.attributes["linear_before_reset"] = reset_after
    expected = node.run()
    node.attributes["clip"] = 1e6
    assert error_of(node.run(), expected) <= 1e-6
    one = GRUNode(
        {"hidden_size": 1, "clip": 0.5, "linear_before_reset": reset_after, "layout": layout},
        {"X": np.ones((1, 1, 1), np.float32), "W": np.full((1, 3, 1), 9, np.float32), "R": np.ones((1, 3, 1), "f4")},
        [],
    )
    z = 1 / (1 + np.exp(-0.5))
    assert np.allclose(one.run()[1], (1 - z) * np.tanh(0.5), atol=1e-6)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("layout", [0, 1])
def test_empty_batches_and_sequences(layout: int, clip: bool) -> None:
    for n, t in ((0, 3), (2, 0), (0, 0)):
        node = random_node(np.random.default_rng(7), layout=layout, clip=False)
        node.attributes |= {"direction": "forward"} | ({"clip": 1.0} if clip else {})
        node.attributes.pop("activations", None)
        node.attributes.pop("activation_alpha", None)
        node.attributes.pop("activation_beta", None)
        h, i = node.attributes["hidden_size"], node.arrays["X"].shape[2]
        node.arrays = {k: node.arrays[k][:1] for k in ("W", "R")}
        node.arrays["X"] = np.zeros((n, t, i) if layout else (t, n, i), np.float32)
        node.arrays["initial_h"] = np.ones((n, 1, h) if layout else (1, n, h), np.float32)
        y, y_h = node.run()
        assert y.shape == ((n, t, 1, h) if layout else (t, 1, n, h))
        assert y_h.shape == ((n, 1, h) if layout else (1, n, h))
        assert not y_h.any()  # a sequence without steps ends in 0, whatever it starts from


def test_absent_outputs() -> None:
    node = random_node(np.random.default_rng(11))
    y, y_h = node.run()
    node.outputs = ("", "Y_h")
    assert np.array_equal(node.run()[0], y_h)
    node.outputs = ("Y", "")
    assert np.array_equal(node.run()[0], y)


def test_computed_weights_are_packed_at_the_call() -> None:
    for seed in range(20):
        node = random_node(np.random.default_rng(seed))
        for constants in (("R",), ("W", "R"), ()):
            assert error_of(node.run(constants), node.run()) == 0


def test_alpha_and_beta_are_queues() -> None:
    """Sigmoid takes none, so the first α and β are Affine's; the second α is LeakyRelu's."""
    node = random_node(np.random.default_rng(13), clip=False)
    node.attributes |= {
        "direction": "bidirectional",
        "activations": ["Sigmoid", "AFFINE", "hardsigmoid", "LeakyRelu"],
        "activation_alpha": [0.5, 0.25, 0.125],
        "activation_beta": [0.0625, 0.5],
    }
    h, i = node.attributes["hidden_size"], node.arrays["X"].shape[2]
    rng = np.random.default_rng(1)
    shapes = {"W": (2, 3 * h, i), "R": (2, 3 * h, h), "B": (2, 6 * h)}
    node.arrays = {"X": node.arrays["X"]} | {k: rng.normal(0, 0.3, s).astype(np.float32) for k, s in shapes.items()}
    node.activations = [
        ("sigmoid", 0.0, 0.0),
        ("affine", 0.5, 0.0625),
        ("hard_sigmoid", 0.25, 0.5),
        ("leaky_relu", 0.125, 0.0),
    ]
    assert error_of(node.run(), [y.astype(np.float32) for y in node.run_equations()]) <= 2e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activations": ["Sigmoid", "ThresholdedRelu"]}, "activation_alpha: expected one for ThresholdedRelu"),
        ({"activations": ["Sigmoid", "Affine"], "activation_alpha": [0.5]}, "activation_beta: expected one for Affine"),
        ({"activation_alpha": [0.5]}, "activation_alpha: expected as many as the activations use"),
        ({"activations": ["Sigmoid"]}, "activations: expected 2"),
        ({"activations": ["Sigmoid", "Swish"]}, "found 'Swish'"),
        ({"direction": "both"}, "direction: expected one of"),
        ({"layout": 2}, "layout: expected 0 or 1, found 2"),
        ({"clip": 0.0}, "clip: expected a number above 0"),
        ({"hidden_size": 7}, r"W: expected shape \(1, 21"),
        ({"hidden_size": 0}, "hidden_size: expected at least 1"),
        ({"output_sequence": 1}, r"found \['output_sequence'\]"),
    ],
    ids=str,
)
def test_what_is_refused_at_load(change: dict[str, Any], message: str) -> None:
    arrays = {"X": np.zeros((2, 1, 3)), "W": np.zeros((1, 12, 3)), "R": np.zeros((1, 12, 4))}
    node = GRUNode({"hidden_size": 4, **change}, {k: v.astype(np.float32) for k, v in arrays.items()}, [])
    with pytest.raises(formats.FormatError, match=message):
        node.run()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("X", np.zeros((2, 1, 5)), "X: expected"),
        ("sequence_lens", np.array([3], np.int32), r"sequence_lens: expected 0 … 2, found 3"),
        ("sequence_lens", np.array([-1], np.int32), "sequence_lens: expected 0 … 2"),
        ("sequence_lens", np.array([1, 1], np.int32), "sequence_lens: expected 1 whole numbers"),
        ("initial_h", np.zeros((1, 2, 4)), "initial_h: expected"),
        ("W", np.zeros((1, 9, 3)), "W: expected shape"),
        ("B", np.zeros((1, 12)), "B: expected shape"),
    ],
    ids=str,
)
def test_what_is_refused_at_the_call(name: str, value: Any, message: str) -> None:
    arrays = {"X": np.zeros((2, 1, 3)), "W": np.zeros((1, 12, 3)), "R": np.zeros((1, 12, 4)), name: value}
    arrays = {k: v if v.dtype == np.int32 else v.astype(np.float32) for k, v in arrays.items()}
    with pytest.raises(ValueError, match=message) as error:
        GRUNode({"hidden_size": 4}, arrays, []).run(constants=())
    assert "GRU" in str(error.value)
