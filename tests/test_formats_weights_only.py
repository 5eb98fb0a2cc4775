"""Keras weights without their architecture: with a config they are the model, without one refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastgru
from fastgru.cli import main
from fastgru.formats import FormatError, read, write_safetensors
from fastgru.formats.keras_draft import ASK, CannotTell, draft
from fastgru.loading import draft_config

GOLDEN = Path(__file__).parent / "golden"
FILES = sorted(GOLDEN.glob("weights_only/*.h5"))
CHAINS = [path for path in FILES if "chain" in path.name]


def stem(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(".h5").removesuffix(".weights"))


def config_of(path: Path) -> Path:
    return Path(f"{stem(path)}.json")


def expected(path: Path) -> dict[str, Any]:
    with np.load(f"{stem(path)}.expected.npz") as data:
        return dict(data)


def crc(value: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(value).tobytes())


def numbered(found: dict[str, Any], letter: str) -> list[np.ndarray]:
    return [found[f"{letter}{i}"] for i in range(len([k for k in found if re.fullmatch(rf"{letter}\d+", k)]))]


def test_there_are_files_of_every_writer() -> None:
    assert {path.name.split("_")[0] for path in FILES} == {"k3", "tfk", "tf213"}
    assert {path.name.split(".", 1)[1] for path in FILES} == {"h5", "weights.h5"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_with_a_config_it_is_the_model(path: Path) -> None:
    want = expected(path)
    file = read(path, config_of(path))
    assert file.format == "keras-weights" and file.config is not None and file.version[0] in "23"
    crcs = {name: crc(tensor) for name, tensor in file.tensors.items()}
    assert crcs == dict(zip(want["keys"].tolist(), want["crcs"].tolist(), strict=True))
    model = fastgru.load(path, config=json.loads(config_of(path).read_text()))
    y = model.predict(numbered(want, "x"))
    for found, said in zip(y if isinstance(y, list) else [y], numbered(want, "y"), strict=True):
        # a bfloat16 model computes in half the digits in Keras, in float32 here
        atol = 0.02 if "bfloat16" in path.name else 2e-6
        np.testing.assert_allclose(found, said, rtol=1e-5, atol=atol)
    assert fastgru.load_state_dict(path, config_of(path)).keys() == file.tensors.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_without_one_the_tensors_are_named_as_stored(path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py is the judge")
    found = fastgru.load_state_dict(path)
    assert len(found) == len(expected(path)["keys"])
    with h5py.File(path) as file:
        for name, tensor in found.items():
            if "bfloat16" in path.name:
                assert file[name].dtype.itemsize == 2 and tensor.dtype == np.float32
            else:
                np.testing.assert_array_equal(tensor, file[name][()])


@pytest.mark.parametrize("path", CHAINS, ids=lambda path: path.name)
def test_without_one_load_says_what_is_missing(path: Path) -> None:
    with pytest.raises(FormatError) as error:
        fastgru.load(path)
    for word in (path.name, "save_weights", "embedding (11, 5)", "(8, 9) (3, 9) (9,)", "config="):
        assert word in str(error.value), str(error.value)
    for word in ("dense.activation", "embedding.mask_zero", ".recurrent_activation"):
        assert word in str(error.value), str(error.value)
    assert "to_json" in str(error.value) and "--draft" in str(error.value) and "model.save" in str(error.value)


def test_weights_that_are_no_chain_get_no_draft(golden: Path) -> None:
    path = golden / "weights_only/k3_nested.weights.h5"
    with pytest.raises(FormatError, match="functional"):
        draft_config(path)
    with pytest.raises(FormatError, match="save_weights") as error:
        fastgru.load(path)
    assert "--draft" not in str(error.value)


def fill(config: Any, answers: dict[str, Any]) -> None:
    """Answer a draft's questions; `answers` by layer name, then argument, or by argument for all."""
    if isinstance(config, dict):
        for key, value in config.items():
            if value == ASK:
                name = config.get("name", "")
                config[key] = answers.get(f"{name}.{key}", answers.get(key))
            else:
                fill(value, answers)
    elif isinstance(config, list):
        for item in config:
            fill(item, answers)


@pytest.mark.parametrize("path", CHAINS, ids=lambda path: path.name)
def test_a_draft_filled_in_scores_as_the_model(path: Path, tmp_path: Path) -> None:
    """Everything that the weights tell is right; what they don't is asked for, and only that."""
    config = draft_config(path)
    entries = {entry["config"]["name"]: entry["config"] for entry in config["config"]["layers"]}
    assert [entry["class_name"] for entry in config["config"]["layers"]] == [
        "Embedding",
        "Bidirectional",
        "GRU",
        "GRU",
        "Dense",
    ]
    embedding, both, before, after, dense = entries.values()
    assert (embedding["input_dim"], embedding["output_dim"], embedding["mask_zero"]) == (11, 5, ASK)
    inner = both["layer"]["config"]
    assert (inner["units"], inner["reset_after"], inner["return_sequences"], both["merge_mode"]) == (
        4,
        True,
        True,
        "concat",
    )
    assert (before["units"], before["reset_after"], before["return_sequences"]) == (3, False, True)
    assert (after["units"], after["reset_after"], after["return_sequences"]) == (4, True, ASK)
    assert (dense["units"], dense["use_bias"], dense["activation"]) == (2, True, ASK)

    with pytest.raises(FormatError) as error:
        fastgru.load(path, config=config)
    asked = {"mask_zero", "activation", "recurrent_activation", "return_sequences", "go_backwards"}
    for word in asked:
        assert f".{word}" in str(error.value), str(error.value)

    written = "2.21" if path.name.startswith("tf") else "3.15"
    answers: dict[str, Any] = {"mask_zero": True, "recurrent_activation": "sigmoid", "return_sequences": False}
    answers |= {"go_backwards": False, "activation": "tanh", "keras_version": written}
    answers |= {f"{inner['name']}.recurrent_activation": "hard_sigmoid", f"{dense['name']}.activation": "softmax"}
    fill(config, answers)
    target = tmp_path / "model.json"
    target.write_text(json.dumps(config))
    want = expected(path)
    np.testing.assert_allclose(fastgru.load(path, config=target).predict(want["x0"]), want["y0"], rtol=1e-5, atol=2e-6)


def test_bias_ranks() -> None:
    """(2, 3H) is after, (3H,) before, (6H,) CuDNNGRU; without a bias it is asked for."""
    for bias, after in (((2, 6), True), ((6,), False), (None, ASK)):
        weights = {"g/g/kernel:0": (3, 6), "g/g/recurrent_kernel:0": (2, 6)}
        entry = draft(weights | ({"g/g/bias:0": bias} if bias else {}))["config"]["layers"][0]
        assert entry["class_name"] == "GRU" and entry["config"]["reset_after"] is after
        assert entry["config"]["use_bias"] == (bias is not None)
    cudnn = {"g/kernel:0": (3, 6), "g/recurrent_kernel:0": (2, 6), "g/bias:0": (12,)}
    assert draft(cudnn)["config"]["layers"][0]["class_name"] == "CuDNNGRU"


@pytest.mark.parametrize(
    ("weights", "word"),
    [
        ({"l/kernel:0": (3, 8), "l/recurrent_kernel:0": (2, 8), "l/bias:0": (8,)}, "'l'"),  # an LSTM
        ({"c/kernel:0": (3, 2, 4), "c/bias:0": (4,)}, "'c'"),  # Conv1D
        ({"a/kernel:0": (3, 4), "b/kernel:0": (5, 4)}, "takes 5 features"),
        (
            {"layers/dense/vars/0": (4, 4), "layers/gru/cell/vars/0": (4, 12), "layers/gru/cell/vars/1": (4, 12)},
            "order",
        ),
        ({"layers/lstm/cell/vars/0": (4, 16)}, "lstm"),
        ({f"layers/dense_{i}/vars/0": (4, 4) for i in range(200)}, "200"),
        ({"gru/cell/vars/0": (3, 6)}, "gru/cell"),
    ],
    ids=str,
)
def test_what_no_draft_can_tell(weights: dict[str, tuple[int, ...]], word: str) -> None:
    with pytest.raises(CannotTell, match=re.escape(word)):
        draft(weights)


def test_many_equal_layers_end_soon() -> None:
    weights: dict[str, tuple[int, ...]] = {}
    for i in range(30):
        name = f"_{i}" if i else ""
        weights |= {f"layers/dense{name}/vars/0": (4, 4), f"layers/gru{name}/cell/vars/0": (4, 12)}
        weights |= {f"layers/gru{name}/cell/vars/1": (4, 12)}
    with pytest.raises(CannotTell, match="order"):
        draft(weights)


# ------------------------------------------------------------------------------------------ wrong pairs


def test_configs_that_are_not(golden: Path, tmp_path: Path) -> None:
    path = golden / "weights_only/k3_chain.weights.h5"
    config = json.loads(config_of(path).read_text())

    def refuses(given: Any, *words: str, file: Path = path) -> None:
        with pytest.raises(FormatError) as error:
            fastgru.load(file, config=given)
        for word in words:
            assert word in str(error.value), str(error.value)

    target = tmp_path / "model.json"
    for text, words in (
        ("", ("empty",)),
        ("[1]", ("model.json", "to_json")),
        ("{", ("model.json", "JSON")),
        ("{}", ("class_name",)),
        ('{"class_name": "GRU", "config": {"units": 3}}', ("Sequential or functional",)),
        ('{"class_name": "Sequential", "config": {"layers": []}}', ("keras_version",)),
        ("PK", ("model.json",)),
    ):
        target.write_text(text)
        refuses(target, *words)
    refuses(golden / "keras_text_gru.keras", "(50, 16) for embedding/embeddings", "(11, 5)")
    refuses(path, "to_json")
    refuses(config, "own architecture", file=golden / "k3_nested.h5")
    refuses(config, "another format", file=golden / "torch_bigru.pt")
    units = json.loads(json.dumps(config).replace('"units": 3', '"units": 5'))
    refuses(units, "(?, 15)")
    code = json.loads(json.dumps(config).replace('"Dense"', '"Lambda"'))
    refuses(code, "Lambda", "never run")
    with pytest.raises(FileNotFoundError):
        fastgru.load(path, config=tmp_path / "absent.json")


def test_a_keras_file_is_a_config_too(golden: Path, tmp_path: Path) -> None:
    """The weights of a later checkpoint with the archive of the model."""
    import zipfile

    path = golden / "keras_text_gru.keras"
    with zipfile.ZipFile(path) as archive:
        (tmp_path / "later.weights.h5").write_bytes(archive.read("model.weights.h5"))
    later = fastgru.load(tmp_path / "later.weights.h5", config=path)
    ids = np.arange(24).reshape(2, 12)
    assert isinstance(later, fastgru.Model) and later.version == fastgru.load(path).version
    np.testing.assert_array_equal(later.predict(ids), fastgru.load(path).predict(ids))


def test_hard_sigmoid_follows_the_version(golden: Path) -> None:
    """0.2x + 0.5 by Keras 2, x/6 + 0.5 by Keras 3; told by the config's marks where it names no version."""
    for name, alpha, marked in (("k3_chain", 1 / 6, "3.4"), ("tfk_chain", 0.2, "2.12")):
        path = golden / f"weights_only/{name}.weights.h5"
        config = json.loads(config_of(path).read_text())
        config.pop("keras_version", None)
        model = fastgru.load(path, config=config)
        assert isinstance(model, fastgru.Model)
        assert model.version == marked and any("keras_version" in note for note in model.notes)
        cell = model.layers[1].parts()["forward_layer"].cells[0]  # type: ignore[attr-defined]
        assert cell._recurrent_activation == ("hard_sigmoid", alpha, 0.5)
    told = fastgru.load(path, config={**config, "keras_version": "3.1.0"})
    assert isinstance(told, fastgru.Model) and told.version == "3.1.0"
    assert not any("keras_version" in note for note in told.notes)


def test_hdf5_of_something_else(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py writes the file")
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["table/values"] = np.zeros(3)
    with pytest.raises(FormatError, match="something else"):
        read(tmp_path / "data.h5")
    with h5py.File(tmp_path / "links.h5", "w") as file:
        group = file.create_group("layers/gru/vars")
        group["0"] = np.zeros(1000)
        for i in range(1, 40):
            group[str(i)] = group["0"]
    with pytest.raises(FormatError, match="stored once"):
        read(tmp_path / "links.h5")
    with h5py.File(tmp_path / "circle.h5", "w") as file:
        group = file.create_group("layers")
        group["again"] = group
    with pytest.raises(FormatError, match="levels"):
        read(tmp_path / "circle.h5")


# ---------------------------------------------------------------------------------------- command line


def test_command_line(golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, config = golden / "weights_only/tf213_chain.weights.h5", str(golden / "weights_only/tf213_chain.json")
    want = expected(path)
    assert main(["info", str(path)]) == 0
    out = capsys.readouterr().out
    assert "keras-weights" in out and "bidirectional/forward_layer/cell/vars/0 (5, 12)" in out
    assert "--config" in out and "--draft" in out
    assert main(["info", str(path), "--config", config]) == 0
    assert "4 → 3, reset_before" in capsys.readouterr().out.replace("8 →", "4 →")
    np.save(tmp_path / "x.npy", want["x0"])
    assert main(["score", str(path), str(tmp_path / "x.npy"), str(tmp_path / "y.npy")]) == 1
    assert "--config" in capsys.readouterr().err
    assert main(["score", str(path), str(tmp_path / "x.npy"), str(tmp_path / "y.npy"), "--config", config]) == 0
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), want["y0"], rtol=1e-5, atol=2e-6)
    target = str(tmp_path / "model.safetensors")
    assert main(["convert", str(path), target, "--config", config, "--verify"]) == 0
    np.testing.assert_allclose(fastgru.load(target).predict(want["x0"]), want["y0"], rtol=1e-5, atol=2e-6)
    capsys.readouterr()
    drafted = str(tmp_path / "draft.json")
    assert main(["info", str(path), "--draft", drafted]) == 0
    assert '"?"' in capsys.readouterr().out and json.loads(Path(drafted).read_text())["class_name"] == "Sequential"
    assert main(["info", str(path), "--draft", drafted]) == 1  # it may hold answers by now
    assert "exists" in capsys.readouterr().err
    assert main(["info", str(golden / "k3_nested.h5"), "--draft", drafted]) == 1
    write_safetensors(tmp_path / "net.safetensors", {"w": np.zeros(3)})
    assert main(["score", str(tmp_path / "net.safetensors"), "x", "y.npy", "--config", config]) == 1


# ------------------------------------------------------------------------------------------------ live

LIVE = """
import sys, json, numpy as np
import {module} as keras
layers, folder, legacy = keras.layers, sys.argv[1], {legacy}
x = keras.Input((5, 3), name="x")
m = layers.Masking()(x)
y = layers.GRU(4, return_sequences=True, activation="relu", recurrent_activation="hard_sigmoid")(m)
z = layers.Bidirectional(layers.GRU(3, reset_after=False))(y)
y = layers.BatchNormalization()(layers.GRU(4, use_bias=False, trainable=False)(y))
model = keras.Model(x, [layers.Dense(2, activation="tanh")(layers.Concatenate()([y, z])), z])
rng = np.random.default_rng(0)
model.set_weights([rng.uniform(0.1, 0.9, w.shape) for w in model.get_weights()])
value = rng.standard_normal((4, 5, 3)).astype("float32")
value[1, 3:] = 0
model.compile("sgd", "mse")
model.fit(value, model.predict(value, verbose=0), verbose=0)
names = ["a.weights.h5"] + (["b.h5"] if legacy else [])
for name in names:
    model.save_weights(folder + "/" + name)
open(folder + "/model.json", "w").write(model.to_json())
y0, y1 = model.predict(value, verbose=0)
np.savez(folder + "/expected.npz", x0=value, y0=y0, y1=y1)
"""


@pytest.mark.parametrize(
    "module",
    [
        pytest.param("keras", marks=pytest.mark.parity("keras")),
        pytest.param("tf_keras", marks=pytest.mark.parity("tf_keras")),
    ],
)
def test_live(module: str, tmp_path: Path) -> None:
    pytest.importorskip(module, reason=f"{module} is the judge")
    code = LIVE.format(module=module, legacy=module == "tf_keras")
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    with np.load(tmp_path / "expected.npz") as want:
        for path in sorted(tmp_path.glob("*.h5")):
            found = fastgru.load(path, config=tmp_path / "model.json").predict(want["x0"])
            for y, name in zip(found, ("y0", "y1"), strict=True):
                np.testing.assert_allclose(y, want[name], rtol=1e-5, atol=2e-5)
