"""ONNX Runtime runs what is exported and gives what the model gives, and what the source's framework recorded.

Only shapes with N, T >= 1: for empty ones ONNX Runtime aborts the process.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_drop_in import SHARED, assert_close, golden_models, outputs_of, pairs_of

from fastgru import nn
from fastgru.convert.to_onnx import onnx_model
from fastgru.formats import FormatError
from fastgru.loading import load
from fastgru.models import Model

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
    "k3_embedding_masks": "padded steps, because of the mask that its call names",
    "k3_masking": "padded steps, because of the mask that its call names",
    "k3_merged_masks": "padded steps, because of the mask that its call names",
    "k3_rnn_cells": "padded steps, because of the mask that its call names",
    "GRU_model_rel_best": "padded steps, because of the mask that its call names",
    "tf213_rnn_cells": "padded steps, because of the Masking layer 'masking'",
    "tfk_rnn_cells": "padded steps, because of the Masking layer 'masking'",
    "tfk_masking": "padded steps, because of the Masking layer 'masking'",
    "tfk_new_merged_masks": "padded steps, because of the Masking layer 'masking'",
    "tfk_new_embedding_masks": "padded steps, because of mask_zero of the Embedding 'embedding'",
    "k3_stateful": "stateful: an ONNX model keeps no state between calls",
    "tfk_stateful": "stateful: an ONNX model keeps no state between calls",
    "k3_variants": "expected an activation that ONNX's GRU has .* found selu",
    "tfk_new_variants": "expected an activation that ONNX's GRU has .* found selu",
    "tfk_time_major": "time_major: only batch-major layers are exported",
}
KINDS = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(bool)": np.bool_}


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
        found = run.run(names, {name: arrays[name].astype(np.float32) for name in ("x", "h0")})
        for name, value in zip(names, found, strict=True):
            assert_close(value, arrays[name], stem)


@pytest.mark.parametrize("pair", golden_models(), ids=lambda p: p[0].name)
def test_golden(pair: tuple[Path, Path]) -> None:
    check_file(*pair)


@pytest.mark.parametrize("names", SHARED, ids=lambda n: n[0])
def test_shared(names: tuple[str, str], shared: Path) -> None:
    check_file(shared / "models" / names[0], shared / "models" / names[1])
