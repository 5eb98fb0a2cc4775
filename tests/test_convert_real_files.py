"""Real models that others trained, converted: the target's framework against what the source's recorded.

Apart from the parity cases, which may not be skipped: the files are not part of the project.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_parity import framework

from fastgru.convert import convert
from fastgru.formats import FormatError


def assert_close(found: list[Any], expected: list[Any], atol: float = 2e-6) -> None:
    assert [np.shape(f) for f in found] == [np.shape(e) for e in expected]
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(f, e, rtol=0, atol=atol * max(1.0, float(np.abs(e).max(initial=0))))


MASKED = "'bidirectional_8' .*: a mask reaches it"
BEFORE = "'gru_1' .*: torch.nn.GRU applies the reset gate after"
SHARED: dict[str, tuple[str, dict[str, str]]] = {
    "keras3_asl_bigru/GRU_model_rel_best.keras": ("expected", {".pt": MASKED}),
    "keras_imdb_gru/imdb_gru_keras224.h5": ("expected_keras224", {".pt": BEFORE, ".keras": "hard_sigmoid is clip"}),
    "keras_imdb_gru/imdb_gru_tfkeras.h5": ("expected_tfkeras", {".pt": "has tanh and sigmoid, this layer relu"}),
    "keras_traffic_gru/gru.h5": ("expected", {".pt": BEFORE, ".keras": "hard_sigmoid is clip"}),
    "onnx_nsnet2/nsnet2-20ms-baseline.onnx": ("nsnet2-20ms-baseline_expected", {}),
}


@pytest.mark.parametrize("suffix", [".keras", ".onnx", ".pt"])
@pytest.mark.parametrize("name", SHARED)
def test_models_of_others(name: str, suffix: str, shared: Path, tmp_path: Path) -> None:
    """The target's framework against what the source's recorded; weights for PyTorch against PyTorch's modules."""
    record, refused = SHARED[name]
    source, target = shared / "models" / name, tmp_path / f"m{suffix}"
    if suffix in refused:
        with pytest.raises(FormatError, match=refused[suffix]):
            convert(source, target)
        return
    with np.load(source.with_name(f"{record}.npz")) as file:
        x, expected = (file["x0"], file["y0"]) if "x0" in file.files else (file["in_input"], file["out_output"])
    if suffix == ".keras":
        keras = framework("keras")
        convert(source, target)
        found = np.asarray(keras.models.load_model(target)(x, training=False))
    elif suffix == ".onnx":
        ort = framework("onnxruntime")
        convert(source, target)
        session = ort.InferenceSession(str(target), providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {session.get_inputs()[0].name: x})
    else:
        framework("torch")
        (run,) = [run for run in convert(source, target, verify=True).frameworks if run.role == "target"]
        assert run.status == "run" and run.scale is not None and run.max_error is not None
        assert run.max_error <= 1e-5 * max(1.0, run.scale)
        return
    assert_close([found], [expected])


@pytest.mark.parametrize("name", ["torch_uzmorph_bigru/morph_bigru.pth", "torch_legacy_marl_commnet/*rnn_params.pkl"])
@pytest.mark.parametrize("suffix", [".pt", ".keras", ".onnx"])
def test_grus_of_others(name: str, suffix: str, shared: Path, tmp_path: Path) -> None:
    """With their recorded h0: a Keras layer takes it as initial_state, an ONNX graph as an input."""
    if suffix == ".onnx":
        pytest.importorskip("onnx", reason="onnx is not installed: pip install 'fastgru[onnx]'")
    (source,) = (shared / "models").glob(name)
    with np.load(source.parent / "expected.npz") as file:
        recorded = {key: file[key] for key in file.files}
    prefix, x, h0 = str(recorded["prefix"]), recorded["x"], recorded["h0"]
    target = tmp_path / f"m{suffix}"
    convert(source, target, prefix=prefix)
    cell = x.ndim == 2
    expected = [recorded["h_n"]] if cell else [recorded["y"], recorded["h_n"]]
    if suffix == ".pt":
        torch = framework("torch")
        state = torch.load(target, weights_only=True)
        gru = torch.nn.GRUCell(64, 64) if cell else torch.nn.GRU(64, 64, 2, bidirectional=True, batch_first=True)
        gru.load_state_dict(state, strict=True)
        with torch.no_grad():
            y = gru(torch.from_numpy(x), torch.from_numpy(h0))
        found = [y.numpy()] if cell else [part.numpy() for part in y]
    elif suffix == ".keras":
        model = framework("keras").models.load_model(target)
        if cell:
            found = [np.asarray(model.layers[0](x[:, None], initial_state=h0))[:, 0]]
        else:
            y = x
            for i, layer in enumerate(model.layers):
                y = layer(y, initial_state=[h0[2 * i], h0[2 * i + 1]])
            found, expected = [np.asarray(y)], expected[:1]
    else:
        ort = framework("onnxruntime")
        session = ort.InferenceSession(str(target), providers=["CPUExecutionProvider"])
        x = x if cell else x.transpose(1, 0, 2)
        found = session.run(None, {"x": x, "h0": h0})
        if not cell:
            found[0] = found[0].transpose(1, 0, 2)
    # of morph_bigru PyTorch's own record is 7e-6 off what float64 gives, Keras' answer 1.1e-5
    assert_close(found, expected, 2e-6 if cell or suffix == ".pt" else 2e-5)
