"""Live comparison with ONNX Runtime's GRU operator: both resets, directions, activations with α and β, lengths.

Only shapes with N, T >= 1 and lengths >= 1: for empty ones ONNX Runtime aborts the process.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers_core import Case, assert_close

from fastgru import ops

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'fastgru[parity]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed: pip install 'fastgru[parity]'")
pytestmark = pytest.mark.parity("onnxruntime")

ATOL = 3e-6  # two float32 computations meet: each is within 2e-6 of the exact result

# ours -> (operator's name, α or None, β or None)
ACTIVATIONS: dict[Any, tuple[str, float | None, float | None]] = {
    "tanh": ("Tanh", None, None),
    "sigmoid": ("Sigmoid", None, None),
    "relu": ("Relu", None, None),
    "hard_sigmoid": ("HardSigmoid", 0.2, 0.5),
    ("hard_sigmoid", 1 / 6, 0.5): ("HardSigmoid", 1 / 6, 0.5),
    "softsign": ("Softsign", None, None),
    "softplus": ("Softplus", None, None),
    ("elu", 0.7): ("Elu", 0.7, None),
    ("affine", 0.6, -0.1): ("Affine", 0.6, -0.1),
    ("leaky_relu", 0.3): ("LeakyRelu", 0.3, None),
    ("thresholded_relu", 0.4): ("ThresholdedRelu", 0.4, None),
    ("scaled_tanh", 1.3, 0.7): ("ScaledTanh", 1.3, 0.7),
}


def to_onnx(a: Any, hidden: int) -> Any:
    """Gates r z n to ONNX's z r n, along axis 0."""
    return np.concatenate([a[hidden : 2 * hidden], a[:hidden], a[2 * hidden :]])


def run_onnx(case: Case, a: dict[str, Any], lengths: Any = None) -> tuple[Any, Any]:
    """y (N, T, H) and h_n (N, H) of the GRU operator."""
    variant = {"reset_after": True, "activation": "tanh", "recurrent_activation": "sigmoid", **case.variant}
    # α and β are queues: an activation takes from each only if it uses it
    names, alphas, betas = [], [], []
    for ours in (variant["recurrent_activation"], variant["activation"]):
        name, alpha, beta = ACTIVATIONS[ours]
        names.append(name)
        alphas += [] if alpha is None else [alpha]
        betas += [] if beta is None else [beta]
    f32, i32 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT32
    node = onnx.helper.make_node(
        "GRU",
        ["X", "W", "R", "B", "lens" if lengths is not None else "", "h0"],
        ["Y", "Y_h"],
        hidden_size=case.H,
        linear_before_reset=int(variant["reset_after"]),
        direction="reverse" if case.reverse else "forward",
        activations=names,
        **({"activation_alpha": alphas} if alphas else {}),
        **({"activation_beta": betas} if betas else {}),
    )
    zeros = np.zeros(3 * case.H, np.float32)
    biases = [zeros if a[name] is None else to_onnx(a[name], case.H) for name in ("bias_ih", "bias_hh")]
    constants = {
        "W": to_onnx(a["weight_ih"], case.H)[None],
        "R": to_onnx(a["weight_hh"], case.H)[None],
        "B": np.concatenate(biases)[None],
    }
    inputs = {
        "X": np.ascontiguousarray(a["x"].transpose(1, 0, 2)),
        "h0": np.zeros((1, case.N, case.H), np.float32) if a["h0"] is None else a["h0"][None],
    }
    if lengths is not None:
        inputs["lens"] = np.asarray(lengths, np.int32)
    graph = onnx.helper.make_graph(
        [node],
        "gru",
        [onnx.helper.make_tensor_value_info(n, i32 if n == "lens" else f32, v.shape) for n, v in inputs.items()],
        [onnx.helper.make_tensor_value_info(n, f32, None) for n in ("Y", "Y_h")],
        [onnx.numpy_helper.from_array(np.ascontiguousarray(v), n) for n, v in constants.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)])
    model.ir_version = 8
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    y, h_n = session.run(None, inputs)
    return y[:, 0].transpose(1, 0, 2), h_n[0]


def compare(case: Case) -> None:
    assert case.N >= 1 and case.T >= 1
    a = case.arrays()
    lengths = np.maximum(a["lengths"], 1) if case.ragged == "lengths" else None
    expected = run_onnx(case, a, lengths)
    more = {} if lengths is None else {"lengths": lengths}
    found = ops.gru(a["x"], case.packed(), h0=a["h0"], reverse=case.reverse, **more)
    for f, e in zip(found, expected, strict=True):
        assert_close(f, e, ATOL)


@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("ragged", ["none", "lengths"])
@pytest.mark.parametrize("h0", [False, True])
def test_variants(reset_after: bool, reverse: bool, ragged: str, h0: bool) -> None:
    for N, T, I, H in ((1, 1, 1, 1), (1, 12, 5, 8), (2, 3, 7, 19), (5, 9, 6, 11), (20, 7, 33, 40), (3, 4, 130, 129)):
        compare(Case(N, T, I, H, ragged=ragged, h0=h0, reverse=reverse, variant={"reset_after": reset_after}))


@pytest.mark.parametrize("biases", ["none", "ih", "hh", "both"])
@pytest.mark.parametrize("reset_after", [True, False])
def test_biases(biases: str, reset_after: bool) -> None:
    compare(Case(4, 6, 5, 13, biases=biases, variant={"reset_after": reset_after}))


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("place", ["activation", "recurrent_activation"])
@pytest.mark.parametrize("reset_after", [True, False])
def test_activations(activation: Any, place: str, reset_after: bool) -> None:
    for N in (1, 6):
        compare(Case(N, 3, 5, 18, h0=True, variant={"reset_after": reset_after, place: activation}))


@pytest.mark.parametrize("reset_after", [True, False])
def test_both_activations_take_their_own_parameters(reset_after: bool) -> None:
    variant = {"recurrent_activation": ("hard_sigmoid", 1 / 6, 0.5), "activation": ("scaled_tanh", 1.3, 0.7)}
    compare(Case(4, 5, 6, 9, variant={**variant, "reset_after": reset_after}))


def test_the_comparison_bites() -> None:
    """Reset before and after differ by far more than the tolerance."""
    case = Case(4, 6, 5, 13)
    expected = run_onnx(case, case.arrays())[0]
    assert_close(case.run()[0], expected, ATOL)
    with pytest.raises(AssertionError):
        assert_close(Case(4, 6, 5, 13, variant={"reset_after": False}).run()[0], expected, ATOL)
