"""Models in Keras 3's spelling: config, archive, refusals. Keras itself is asked in test_parity_convert.py."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_layers import normal

from fastgru import layers, nn
from fastgru.convert import convert
from fastgru.convert.cases import cases, score
from fastgru.convert.keras_names import foreign_names
from fastgru.convert.to_keras import batch_sizes, keras_config
from fastgru.formats import FormatError, read
from fastgru.formats.keras_writer import write_keras, write_weights_h5
from fastgru.loading import load
from fastgru.models import Model, Sequential

h5py = pytest.importorskip("h5py", reason="it writes HDF5: pip install 'fastgru[keras]'")


def model_of(*parts: Any, width: int = 3) -> Sequential:
    """A model with drawn weights, biases too."""
    model = Sequential([layers.Input((None, width)), *parts])
    model.predict(normal(2, 4, width))
    rng = np.random.default_rng(5)
    model.set_weights([rng.uniform(-1.0 * (w.ndim > 1), 1.0, w.shape).astype(np.float32) for w in model.get_weights()])
    return model


def there_and_back(model: Any, path: Path) -> Model:
    write_keras(path, *keras_config(model))
    found = load(path)
    assert isinstance(found, Model)
    return found


def same_scores(found: Model, expected: Model) -> None:
    for case in cases(expected, next(filter(None, batch_sizes(expected).values()), None)):
        if case.lengths is not None:
            continue  # what a caller's lengths mean to merges changed in Keras 3.4
        for x, y in zip(score(found, case), score(expected, case), strict=True):
            np.testing.assert_array_equal(x, y)


class TestArchive:
    def test_members_and_groups(self, tmp_path: Path) -> None:
        model = model_of(
            layers.Bidirectional(layers.GRU(4, return_sequences=True)),
            layers.Dense(3, name="gru"),  # a name that lies: groups go by class
            layers.GRU(4, name="dense"),
            layers.Dense(2, name="head"),
        )
        write_keras(tmp_path / "m.keras", *keras_config(model))
        with zipfile.ZipFile(tmp_path / "m.keras") as archive:
            assert archive.namelist() == ["metadata.json", "config.json", "model.weights.h5"]
            assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
            assert json.loads(archive.read("metadata.json"))["keras_version"].startswith("3.")
            entry = json.loads(archive.read("config.json"))
            with h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file:
                found: dict[str, Any] = {}
                file.visititems(lambda name, item: found.update({name: item[()]} if hasattr(item, "shape") else {}))
                names = {name: file[name].attrs["name"] for name in ("vars", "layers/dense/vars", "layers/gru/vars")}
        both = [f"layers/bidirectional/{half}_layer/cell/vars" for half in ("backward", "forward")]
        halves = [f"{group}/{i}" for group in both for i in range(3)]
        dense = [f"layers/dense{number}/vars/{i}" for number in ("", "_1") for i in range(2)]
        assert sorted(found) == sorted([*halves, *dense, *(f"layers/gru/cell/vars/{i}" for i in range(3))])
        assert names == {"vars": "sequential", "layers/dense/vars": "gru", "layers/gru/vars": "dense"}
        np.testing.assert_array_equal(found["layers/dense_1/vars/0"], model.get_layer("head").weights["kernel"])
        assert (entry["module"], entry["class_name"], entry["registered_name"]) == ("keras", "Sequential", None)
        first = entry["config"]["layers"][0]
        assert first["class_name"] == "InputLayer" and first["config"]["batch_shape"] == [None, None, 3]

    def test_the_same_model_gives_the_same_bytes(self, tmp_path: Path) -> None:
        model = model_of(layers.GRU(4), layers.Dense(2))
        for name in ("a.keras", "b.keras"):
            write_keras(tmp_path / name, *keras_config(model))
        assert (tmp_path / "a.keras").read_bytes() == (tmp_path / "b.keras").read_bytes()

    def test_weights_alone(self, tmp_path: Path) -> None:
        model = model_of(layers.GRU(4), layers.Dense(2))
        config, tensors = keras_config(model)
        write_weights_h5(tmp_path / "m.weights.h5", config, tensors)
        found = read(tmp_path / "m.weights.h5", config).tensors
        assert set(found) == set(tensors) and all(np.array_equal(found[key], tensors[key]) for key in tensors)

    @pytest.mark.parametrize("change", ["missing", "unknown"])
    def test_tensors_that_do_not_fit_the_config(self, change: str, tmp_path: Path) -> None:
        config, tensors = keras_config(model_of(layers.GRU(4)))
        if change == "missing":
            del tensors["gru/bias"]
        else:
            tensors["gru/other"] = tensors["gru/bias"]
        key = "gru/bias" if change == "missing" else "gru/other"
        with pytest.raises(FormatError, match=f"expected a tensor for each variable of the config, found .*{key}"):
            write_keras(tmp_path / "m.keras", config, tensors)
        assert not list(tmp_path.iterdir())

    def test_without_h5py(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "h5py", None)
        with pytest.raises(FormatError, match=r"m\.keras: writing Keras files needs h5py: pip install 'fastgru\[ker"):
            write_keras(tmp_path / "m.keras", *keras_config(model_of(layers.GRU(4))))


class TestModels:
    def test_every_layer(self, tmp_path: Path) -> None:
        model = Sequential(
            [
                layers.Input((6,), "int32"),
                layers.Embedding(9, 4, mask_zero=True),
                layers.SpatialDropout1D(0.2) if hasattr(layers, "SpatialDropout1D") else layers.Dropout(0.2),
                layers.Bidirectional(layers.GRU(4, return_sequences=True, reset_after=False), merge_mode="sum"),
                layers.RNN([layers.GRUCell(4), layers.GRUCell(5)], return_sequences=True),
                layers.BatchNormalization(scale=False),
                layers.LayerNormalization(center=False),
                layers.TimeDistributed(layers.Dense(4, "swish")),
                layers.PReLU(shared_axes=[1]),
                layers.Activation("hard_sigmoid"),
                layers.LeakyReLU(0.1),
                layers.ELU(0.5),
                layers.ReLU(max_value=2.0),
                layers.ThresholdedReLU(0.1),
                layers.Permute((2, 1)),
                layers.Reshape((6, 4)),
                layers.Softmax(),
                layers.GlobalAveragePooling1D(),
                layers.RepeatVector(3),
                layers.Flatten(),
                layers.Dense(2, ("elu", 1.0, 0.0)),
            ]
        )
        model.predict(np.ones((2, 6), int))
        same_scores(there_and_back(model, tmp_path / "m.keras"), model)

    @pytest.mark.parametrize("bidirectional", [False, True])
    @pytest.mark.parametrize("bias", [False, True])
    def test_gru_of_nn(self, bidirectional: bool, bias: bool, tmp_path: Path) -> None:
        gru = nn.GRU(3, 4, num_layers=2, bias=bias, bidirectional=bidirectional, batch_first=True)
        found = there_and_back(gru, tmp_path / "m.keras")
        x = normal(2, 5, 3)
        np.testing.assert_array_equal(found.predict(x), gru(x)[0])

    def test_cell_of_nn(self, tmp_path: Path) -> None:
        cell = nn.GRUCell(3, 4)
        x = normal(2, 1, 3)
        np.testing.assert_array_equal(there_and_back(cell, tmp_path / "m.keras").predict(x)[:, 0], cell(x[:, 0]))

    def test_the_engines_hard_sigmoid_is_not_that_of_keras_3(self) -> None:
        with pytest.raises(FormatError, match=r"its hard_sigmoid is clip\(0\.2x \+ 0\.5\), that of Keras 3"):
            keras_config(nn.GRU(3, 4, recurrent_activation="hard_sigmoid"))
        config, _ = keras_config(nn.GRU(3, 4, recurrent_activation=("hard_sigmoid", 1 / 6, 0.5)))
        assert config["config"]["layers"][1]["config"]["recurrent_activation"] == "hard_sigmoid"

    def test_the_other_convention_is_turned(self, tmp_path: Path) -> None:
        model = model_of(layers.GRU(4))
        gru = model.layers[0]
        assert isinstance(gru, layers.GRU)
        gru.cells[0].update_gate = "new"
        gru.assign(gru.weights)
        x = normal(2, 5, 3)
        np.testing.assert_allclose(there_and_back(model, tmp_path / "m.keras").predict(x), model.predict(x), atol=1e-6)

    def test_what_training_needs_goes_along(self) -> None:
        model = model_of(
            layers.GRU(4, dropout=0.3, recurrent_dropout=0.1, return_sequences=True),
            layers.BatchNormalization(momentum=0.7),
            layers.Dropout(0.4),
        )
        model.layers[0].trainable = False
        gru, norm, dropout = (entry["config"] for entry in keras_config(model)[0]["config"]["layers"][1:])
        assert (gru["dropout"], gru["recurrent_dropout"], gru["trainable"]) == (0.3, 0.1, False)
        assert norm["momentum"] == 0.7 and norm["trainable"] is True and dropout["rate"] == 0.4

    def test_a_model_without_the_shape_of_its_input(self) -> None:
        model = Sequential([layers.GRU(4), layers.Dense(2)])
        model.predict(normal(2, 5, 3))
        assert keras_config(model)[0]["config"]["layers"][0]["config"]["batch_shape"] == [None, None, 3]
        model = Sequential([layers.Flatten(), layers.Dense(2)])
        model.predict(normal(2, 5, 3))
        with pytest.raises(FormatError, match="'flatten' .*: the shape of the input is not in the file"):
            keras_config(model)

    def test_fixed_rows(self, golden: Path) -> None:
        model = load(golden / "k3_stateful.keras")
        assert isinstance(model, Model) and batch_sizes(model) == {"x": 2}
        with pytest.raises(FormatError, match="'gru' .*: a stateful layer needs the number of rows"):
            keras_config(model_of(layers.GRU(4, stateful=True)))


class TestRefused:
    @pytest.mark.parametrize(
        ("part", "why"),
        [
            (layers.GRU(4, time_major=True), "time_major=True, which it no longer has"),
            (layers.GRU(4, activation=("scaled_tanh", 1.5, 0.5)), r"Keras 3 has no activation scaled_tanh\(1\.5, 0"),
            (layers.GRU(4, activation=("elu", 0.5, 0.0)), r"Keras 3 has no activation elu\(0\.5, 0\)"),
            (layers.Bidirectional(layers.GRU(4, go_backwards=True)), "its first half runs backwards"),
            (layers.Dense(2, ("hard_sigmoid", 0.2, 0.5)), r"its hard_sigmoid is clip\(0\.2x"),
        ],
    )
    def test_layers(self, part: Any, why: str) -> None:
        part.name = "memory"
        with pytest.raises(FormatError, match=rf"^Keras 3 can't express layer 'memory' \(.*\): {why}"):
            keras_config(model_of(part))

    @pytest.mark.parametrize(
        ("name", "why"),
        [
            ("syn_team21.h5", r"'gru_1' \(GRU\): its hard_sigmoid is clip\(0\.2x \+ 0\.5\)"),
            ("syn_team22_frozen.h5", r"'inner/gru_1' \(GRU\): its hard_sigmoid"),
            ("tfk_new_variants.keras", r"'gru' \(GRU\): its hard_sigmoid"),
            ("tfk_new_merged_masks.keras", r"'add' \(Add\): a mask reaches a merge: Keras before 3\.4 ANDs masks"),
            ("tfk_time_major.h5", r"'gru' \(GRU\): time_major=True"),
        ],
    )
    def test_golden_models(self, name: str, why: str, golden: Path) -> None:
        with pytest.raises(FormatError, match=rf"^Keras 3 can't express layer {why}"):
            keras_config(load(golden / name))


GOLDEN = sorted(p for p in (Path(__file__).parent / "golden").iterdir() if p.suffix in (".keras", ".h5"))
REFUSED = "syn_team21 syn_team22_frozen tfk_new_variants tfk_new_merged_masks tfk_time_major".split()


@pytest.mark.parametrize("path", [p for p in GOLDEN if p.stem not in REFUSED], ids=lambda p: p.name)
def test_golden_models_come_back(path: Path, tmp_path: Path) -> None:
    """Our reader finds the same weights, to the bit, and scores the same, on every golden file but the refused."""
    model = load(path)
    assert isinstance(model, Model)
    found = there_and_back(model, tmp_path / "m.keras")
    same_scores(found, model)
    if "cudnn" not in path.name:
        expected = model.all_tensors()
        for key, value in found.all_tensors().items():
            np.testing.assert_array_equal(value, expected[key])


class TestWhatKerasMayBeGiven:
    """Keras' loaders import and call what a file names: a source runs there only if every name is known."""

    @pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.name)
    def test_golden_files_name_nothing_else(self, path: Path) -> None:
        config = read(path).config
        assert config is not None
        assert foreign_names({key: value for key, value in config.items() if key != "compile_config"}) == set()

    @pytest.mark.parametrize(
        ("hidden", "named"),
        [
            ({"module": "os", "class_name": "system", "config": {}}, "os"),
            ({"module": "keras.utils", "class_name": "get_file", "config": {}}, "keras.utils"),
            ({"module": "keras.layers", "class_name": "TorchModuleWrapper", "config": {}}, "TorchModuleWrapper"),
            ({"module": "keras.layers", "class_name": "StringLookup", "config": {}}, "StringLookup"),
            ({"class_name": "Lambda", "config": {}}, "Lambda"),
            ({"class_name": "function", "config": "eval", "module": "builtins"}, "builtins"),
            ({"class_name": "Zeros", "config": {}, "registered_name": "evil>Zeros"}, "evil>Zeros"),
        ],
    )
    def test_what_hides_where_only_training_looks(
        self, hidden: dict[str, Any], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def run(*_: Any) -> Any:
            raise AssertionError("a stranger's file was given to Keras")

        for loader in ("_keras", "_tf_keras"):
            monkeypatch.setattr(f"fastgru.convert.frameworks.{loader}", run)
        config, tensors = keras_config(model_of(layers.GRU(4)))
        config["config"]["layers"][1]["config"]["kernel_initializer"] = hidden
        assert named in foreign_names(config)
        write_keras(tmp_path / "in.keras", config, tensors)
        report = convert(tmp_path / "in.keras", tmp_path / "m.safetensors", verify=True)
        (source,) = report.frameworks
        assert source.role == "source" and source.status.startswith("not run: the file names ")
