"""Conversions judged by the frameworks themselves: what they load and compute, against what the source's computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_parity import framework

from fastgru import nn
from fastgru.convert import convert
from fastgru.convert.to_pytorch import modules
from fastgru.formats import FormatError
from fastgru.loading import load, load_state_dict

GOLDEN = Path(__file__).parent / "golden"
KERAS_FILES = sorted(p for p in GOLDEN.iterdir() if p.suffix in (".keras", ".h5"))
TORCH_FILES = sorted(p for p in GOLDEN.iterdir() if p.name.startswith("torch_") and p.suffix != ".npz")
HALF = "mixed_float16", "bfloat16"


def numbered(expected: Any, letter: str) -> list[np.ndarray]:
    return [expected[f"{letter}{i}"] for i in range(sum(k[0] == letter and k[1:].isdigit() for k in expected.files))]


def outputs_of(model: Any, expected: Any) -> list[np.ndarray]:
    """What a live Keras model gives for the recorded inputs."""
    xs = numbered(expected, "x")
    if "calls" in expected.files:  # stateful: one call after the other
        return [np.asarray(model(x, training=False)) for x in xs]
    x: Any = xs[0] if len(xs) == 1 else xs
    if "input_names" in expected.files:
        x = dict(zip(map(str, expected["input_names"]), xs, strict=True))
    y = model(x, training=False)
    if isinstance(y, dict):
        y = [y[str(name)] for name in expected["output_names"]]
    return [np.asarray(v).astype(np.float32) for v in (y if isinstance(y, (list, tuple)) else [y])]


def assert_close(found: list[Any], expected: list[Any], atol: float) -> None:
    assert [np.shape(f) for f in found] == [np.shape(e) for e in expected]
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(f, e, rtol=0, atol=atol * max(1.0, float(np.abs(e).max(initial=0))))


# -- to Keras 3 ------------------------------------------------------------------------------

TO_KERAS_REFUSED = {
    "syn_team21": "hard_sigmoid",
    "syn_team22_frozen": "hard_sigmoid",
    "tfk_new_variants": "hard_sigmoid",
    "tfk_new_merged_masks": "a mask reaches a merge",
    "tfk_time_major": "time_major",
}


@pytest.mark.parity("keras")
@pytest.mark.parametrize("path", KERAS_FILES, ids=lambda p: p.name)
def test_keras_3_computes_what_the_source_did(path: Path, tmp_path: Path) -> None:
    """Files of Keras 2, tf.keras and Keras 3, written anew: Keras 3 against what their own Keras recorded."""
    keras = framework("keras")
    target = tmp_path / "m.keras"
    if path.stem in TO_KERAS_REFUSED:
        with pytest.raises(FormatError, match=TO_KERAS_REFUSED[path.stem]):
            convert(path, target)
        assert not target.exists()
        return
    convert(path, target)
    with np.load(path.with_name(f"{path.stem}.expected.npz")) as expected:
        found = outputs_of(keras.models.load_model(target), expected)
        assert_close(found, numbered(expected, "y"), 1e-2 if path.stem.endswith(HALF) else 1e-6)


@pytest.mark.parity("keras")
@pytest.mark.parametrize("name", ["k3_nested.keras", "tfk_bidirectional.h5", "tf213_misnamed.keras"])
def test_keras_3_takes_weights_alone(name: str, tmp_path: Path) -> None:
    """Into a model that Keras made of the .keras target, with other weights."""
    keras = framework("keras")
    convert(GOLDEN / name, tmp_path / "m.keras")
    convert(GOLDEN / name, tmp_path / "m.weights.h5")
    model = keras.models.load_model(tmp_path / "m.keras")
    model.set_weights([w + 1 for w in model.get_weights()])
    model.load_weights(tmp_path / "m.weights.h5")
    with np.load(GOLDEN / f"{name.rsplit('.', 1)[0]}.expected.npz") as expected:
        assert_close(outputs_of(model, expected), numbered(expected, "y"), 1e-6)


@pytest.mark.parity("keras")
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_keras_3_computes_what_pytorch_does(bidirectional: bool, bias: bool, tmp_path: Path) -> None:
    torch, keras = framework("torch"), framework("keras")
    torch.manual_seed(0)
    gru = torch.nn.GRU(5, 6, num_layers=3, bias=bias, bidirectional=bidirectional, batch_first=True)
    torch.save(gru.state_dict(), tmp_path / "m.pt")
    convert(tmp_path / "m.pt", tmp_path / "m.keras")
    x = torch.randn(4, 9, 5)
    model = keras.models.load_model(tmp_path / "m.keras")
    with torch.no_grad():
        expected = gru(x)[0].numpy()
    for y in (model.predict(x.numpy(), verbose=0), np.asarray(model(x.numpy()))):
        assert_close([y], [expected], 1e-6)


# -- to PyTorch ------------------------------------------------------------------------------


@pytest.mark.parity("torch")
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_torch_nn_gru_takes_a_keras_stack_whole(suffix: str, tmp_path: Path) -> None:
    torch = framework("torch")
    source = GOLDEN / "syn_cudnn_cudnngru.h5"
    convert(source, tmp_path / f"m{suffix}", to="pytorch")
    if suffix == ".pt":
        state = torch.load(tmp_path / "m.pt", weights_only=True)
        again = torch.load(tmp_path / "m.pt", weights_only=True, mmap=True)
        assert all(torch.equal(again[name], value) for name, value in state.items())
    else:
        tensors = pytest.importorskip("safetensors.torch", reason="the official package is the judge")
        state = tensors.load_file(tmp_path / "m.safetensors")
    gru = torch.nn.GRU(3, 4, batch_first=True)
    gru.load_state_dict(state, strict=True)
    with np.load(GOLDEN / "syn_cudnn_cudnngru.expected.npz") as expected, torch.no_grad():
        assert_close([gru(torch.from_numpy(expected["x0"]))[0].numpy()], [expected["y0"]], 1e-6)


@pytest.mark.parity("torch")
def test_a_network_written_by_hand(tmp_path: Path) -> None:
    """Embedding, two GRUs and a softmax head, as a person would write them, strictly loaded."""
    torch = framework("torch")
    convert(GOLDEN / "keras_text_gru.keras", tmp_path / "m.pt")

    class Net(torch.nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(50, 16)
            self.gru = torch.nn.GRU(16, 24, batch_first=True)
            self.gru_1 = torch.nn.GRU(24, 16, batch_first=True)
            self.dense = torch.nn.Linear(16, 4)

        def forward(self, ids: Any) -> Any:
            y, _ = self.gru(self.embedding(ids))
            _, h_n = self.gru_1(y)
            return torch.softmax(self.dense(h_n[0]), dim=-1)

    net = Net().eval()
    net.load_state_dict(torch.load(tmp_path / "m.pt", weights_only=True), strict=True)
    with np.load(GOLDEN / "keras_text_gru.expected.npz") as expected, torch.no_grad():
        found = net(torch.from_numpy(expected["x0"]).long()).numpy()
        assert_close([found], [expected["y0"]], 1e-6)


@pytest.mark.parity("torch")
def test_every_golden_keras_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each module of torch.nn on what its layer got, for all files that PyTorch can express; the others by reason."""
    framework("torch")
    monkeypatch.setattr("fastgru.convert.frameworks.check_source", lambda *_: None)
    proven, refused = 0, {"a mask": 0, "torch.nn.GRU": 0, "a slope": 0, "time_major": 0}
    for path in KERAS_FILES:
        try:
            report = convert(path, tmp_path / "m.pt", verify=True)
        except FormatError as error:
            reason = next(reason for reason in refused if f"): {reason}" in str(error))
            refused[reason] += 1
            continue
        (run,) = report.frameworks
        assert run.status == "run" and run.max_error is not None and run.scale is not None and run.scale > 0
        model = load(path)
        assert not isinstance(model, (nn.GRU, nn.GRUCell)) and len(report.layers) == len(modules(model))
        proven += 1
    assert (proven, refused) == (28, {"a mask": 10, "torch.nn.GRU": 9, "a slope": 3, "time_major": 1})


@pytest.mark.parity("torch")
@pytest.mark.parametrize("path", TORCH_FILES, ids=lambda p: p.name)
def test_every_golden_pytorch_file(path: Path, tmp_path: Path) -> None:
    """Every container as .pt again: torch.load finds what it found in the source."""
    torch = framework("torch")
    if path.stem == "torch_tensors":
        with pytest.raises(FormatError, match="tensor 'dtype.uint16': expected one of .*, found uint16"):
            convert(path, tmp_path / "m.pt")
        return
    report = convert(path, tmp_path / "m.pt", verify=True)
    found = torch.load(tmp_path / "m.pt", weights_only=True)
    expected = load_state_dict(path)
    assert list(found) == list(expected) and report.tensors == len(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name].numpy(), value)


@pytest.mark.parity("torch")
def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    torch = framework("torch")
    table = torch.randn(6, 4)
    torch.save({"in.weight": table, "out.weight": table}, tmp_path / "a.pt")
    convert(tmp_path / "a.pt", tmp_path / "m.pt")
    found = torch.load(tmp_path / "m.pt", weights_only=True)
    assert found["in.weight"].data_ptr() == found["out.weight"].data_ptr()


# -- round trips -----------------------------------------------------------------------------


@pytest.mark.parity("torch")
@pytest.mark.parametrize("way", [(".pt",), (".keras",), (".keras", ".safetensors"), (".safetensors", ".keras")])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_pytorch_there_and_back(way: tuple[str, ...], bidirectional: bool, bias: bool, tmp_path: Path) -> None:
    """PyTorch → … → PyTorch: the same bits by the same names."""
    torch = framework("torch")
    pytest.importorskip("h5py", reason="it writes .keras")
    torch.manual_seed(1)
    gru = torch.nn.GRU(5, 6, num_layers=2, bias=bias, bidirectional=bidirectional, batch_first=True)
    path = tmp_path / "0.pt"
    torch.save(gru.state_dict(), path)
    for number, suffix in enumerate((*way, ".pt"), 1):
        source, path = path, tmp_path / f"{number}{suffix}"
        convert(source, path)
    again = torch.load(path, weights_only=True)
    assert list(again) == list(gru.state_dict())
    assert all(torch.equal(again[name], value) for name, value in gru.state_dict().items())


@pytest.mark.parity("keras")
@pytest.mark.parametrize("name", ["keras_text_gru", "keras_reset_after", "k3_misnamed"])
def test_keras_by_way_of_onnx(name: str, tmp_path: Path) -> None:
    """Keras → ONNX → Keras and PyTorch: layers found again in the graph, and the numbers with them."""
    keras = framework("keras")
    pytest.importorskip("onnx", reason="it writes .onnx")
    convert(GOLDEN / f"{name}.keras", tmp_path / "m.onnx")
    convert(tmp_path / "m.onnx", tmp_path / "again.keras")
    with np.load(GOLDEN / f"{name}.expected.npz") as expected:
        found = outputs_of(keras.models.load_model(tmp_path / "again.keras"), expected)
        assert_close(found, numbered(expected, "y"), 1e-6)
    convert(tmp_path / "m.onnx", tmp_path / "onnx.pt")
    convert(GOLDEN / f"{name}.keras", tmp_path / "keras.pt")
    first, second = load_state_dict(tmp_path / "onnx.pt"), load_state_dict(tmp_path / "keras.pt")
    assert sorted(crc for crc in map(np.ndarray.tobytes, first.values())) == sorted(
        crc for crc in map(np.ndarray.tobytes, second.values())
    )


# -- the proof itself ------------------------------------------------------------------------


@pytest.mark.parity("keras")
def test_the_frameworks_of_both_sides_are_run(tmp_path: Path) -> None:
    framework("keras"), framework("tf_keras"), framework("torch"), framework("onnxruntime")
    runs = {}
    for source, target in (
        ("k3_embedding_masks.keras", "m.keras"),
        ("tfk_nested.h5", "m.weights.h5"),
        ("torch_legacy.pt", "m.keras"),
        ("torch_bigru.pt", "m.onnx"),
        ("keras_text_gru.keras", "m.onnx"),
        ("k3_mixed_float16.keras", "m.keras"),
        ("onnx_tf2onnx_stack.onnx", "m.keras"),
    ):
        report = convert(GOLDEN / source, tmp_path / target, verify=True)
        runs[source, target] = {(run.framework, run.role): run for run in report.frameworks}
        for run in report.frameworks:
            assert run.version and run.max_error is not None
            assert run.status == "run" or (run.status.startswith("run in mixed_float16") and run.max_error < 1e-2)
    assert [set(found) for found in runs.values()] == [
        {("Keras", "source"), ("Keras", "target")},
        {("tf-keras", "source"), ("Keras", "target")},
        {("PyTorch", "source"), ("Keras", "target")},
        {("PyTorch", "source"), ("ONNX Runtime", "target")},
        {("Keras", "source"), ("ONNX Runtime", "target")},
        {("Keras", "source"), ("Keras", "target")},
        {("ONNX Runtime", "source"), ("Keras", "target")},
    ]
