"""``fastgru train`` and ``fastgru evaluate``: what fit gives; nothing trained or written where a key, a file or a
number is wrong."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastgru
from fastgru import Sequential, cli, layers
from fastgru.runs import command, config
from fastgru.training import optimizers

if sys.version_info < (3, 11):
    pytest.importorskip("tomli", reason="tomli is not installed: pip install fastgru")

CONFIG = """\
output = "model.safetensors"
epochs = 3
batch_size = 16
seed = 4
loss = "sparse_categorical_crossentropy"
optimizer = {class = "Adam", learning_rate = 0.01, clipnorm = 1.0}
metrics = ["accuracy", {class = "F1Score", average = "macro", name = "f1"}]

[data]
train = "train.npz"
test = "test.npz"
validation_split = 0.25

[model]
layers = [
  {class = "Input", shape = [6, 2]},
  {class = "Bidirectional", layer = {class = "GRU", units = 5}},
  {class = "Dense", units = 3, activation = "softmax"},
]
"""
NAMES = [f"s{t}{c}" for t in range(6) for c in "ab"]


def data(rows: int, seed: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, rows)
    x = rng.normal(size=(rows, 6, 2)) + y[:, None, None]
    return np.round(x, 3).astype(np.float32), y


def write_csv(path: Path, x: Any, y: Any, separator: str = ",") -> None:
    lines = [separator.join([*NAMES, "y"])]
    lines += [separator.join([*(f"{v:.9g}" for v in row.ravel()), str(c)]) for row, c in zip(x, y, strict=True)]
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run.toml").write_text(CONFIG)
    for name, rows, seed in (("train", 80, 0), ("test", 30, 1)):
        x, y = data(rows, seed)
        np.savez(tmp_path / f"{name}.npz", x=x, y=y)
        np.save(tmp_path / f"{name}-x.npy", x)
        np.save(tmp_path / f"{name}-y.npy", y)
        write_csv(tmp_path / f"{name}.csv", x, y)
        write_csv(tmp_path / f"{name}.tsv", x, y, "\t")
    return tmp_path


def change(folder: Path, *changes: tuple[str, str]) -> None:
    """Replace text in the config."""
    text = (folder / "run.toml").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "run.toml").write_text(text)


def train(folder: Path, *options: str) -> int:
    return cli.main(["train", str(folder / "run.toml"), *options])


def by_hand(epochs: int = 3) -> Any:
    model = Sequential(
        [layers.Input((6, 2)), layers.Bidirectional(layers.GRU(5)), layers.Dense(3, activation="softmax")]
    )
    model.compile(optimizers.Adam(0.01, clipnorm=1.0), "sparse_categorical_crossentropy", ["accuracy", "f1"])
    history = model.fit(*data(80, 0), epochs=epochs, batch_size=16, seed=4, validation_split=0.25, verbose=0)
    return model, history


FILES = {
    "npz": ('"train.npz"', '"test.npz"'),
    "csv": ('"train.csv"', '"test.csv"'),
    "tsv": ('"train.tsv"', '"test.tsv"'),
    "npy": ('{x = "train-x.npy", y = "train-y.npy"}', '{x = "test-x.npy", y = "test-y.npy"}'),
}


@pytest.mark.parametrize("kind", FILES)
def test_as_fit(folder: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    change(folder, ('"train.npz"', FILES[kind][0]), ('"test.npz"', FILES[kind][1]), ("[6, 2]", "[-1, 2]"))
    assert train(folder) == 0
    model, history = by_hand()
    saved = fastgru.load(folder / "model.safetensors")
    for a, b in zip(saved.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    out = capsys.readouterr().out
    table = [line.split() for line in out.splitlines() if re.match(r" *(epoch|\d+) ", line)]
    assert table[0] == ["epoch", *history.history]
    assert [float(row[1]) for row in table[1:]] == pytest.approx(history.history["loss"], rel=1e-3)
    loss, accuracy, f1 = model.evaluate(*data(30, 1))
    assert f"test: loss {loss:.4g}, accuracy {accuracy:.4g}, f1 {f1:.4g}" in out


@pytest.mark.parametrize("kind", FILES)
def test_evaluate(folder: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(folder, "--quiet") == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    given = ["test-x.npy", "--labels", "test-y.npy"] if kind == "npy" else [f"test.{kind}"]
    given = [str(folder / part) if "." in part else part for part in given]
    options = ["--loss", "sparse_categorical_crossentropy", "--metrics", "accuracy", "auc"]
    assert cli.main(["evaluate", str(folder / "model.safetensors"), *given, *options]) == 0
    model = fastgru.load(folder / "model.safetensors")
    model.compile("sgd", "sparse_categorical_crossentropy", ["accuracy", "auc"])
    loss, accuracy, auc = model.evaluate(*data(30, 1))
    assert capsys.readouterr().out == f"30 rows: loss {loss:.4g}, accuracy {accuracy:.4g}, auc {auc:.4g}\n"


def test_fine_tuning(folder: Path) -> None:
    assert train(folder) == 0
    kept = fastgru.load(folder / "model.safetensors")
    text = (folder / "run.toml").read_text()
    (folder / "run.toml").write_text(
        text[: text.index("[model]")].replace("model.s", "tuned.s") + '[model]\nload = "model.safetensors"\n'
    )
    assert train(folder) == 0
    kept.compile(optimizers.Adam(0.01, clipnorm=1.0), "sparse_categorical_crossentropy")
    kept.fit(*data(80, 0), epochs=3, batch_size=16, seed=4, validation_split=0.25, verbose=0)
    for a, b in zip(fastgru.load(folder / "tuned.safetensors").get_weights(), kept.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_early_stopping_a_log_and_a_schedule(folder: Path) -> None:
    change(
        folder,
        ("learning_rate = 0.01", "learning_rate = {class = 'Warmup', then = 0.01, steps = 5}"),
        (
            "[data]",
            "callbacks = [{class = 'EarlyStopping', monitor = 'val_f1', min_delta = 9, patience = 1},"
            " {class = 'CSVLogger', filename = 'log.csv'}]\nclass_weight = {0 = 1.0, 1 = 2.0, 2 = 1}\n[data]",
        ),
    )
    assert train(folder) == 0
    assert len((folder / "log.csv").read_text().splitlines()) == 3  # a title, and two epochs of three


def test_columns_are_those_of_training_in_any_order(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(folder, ("train.npz", "train.csv"), ("test.npz", "test.csv"))
    assert train(folder, "--quiet") == 0
    right = capsys.readouterr().out
    lines = [line.split(",") for line in (folder / "test.csv").read_text().splitlines()]
    (folder / "test.csv").write_text(
        "\n".join(",".join(["id" if i == 0 else "7", *r[::-1]]) for i, r in enumerate(lines))
    )
    assert train(folder, "--quiet") == 0
    assert capsys.readouterr().out == right


def test_a_folder_with_braces(folder: Path) -> None:
    named = folder / "{run}"
    named.mkdir()
    for path in folder.glob("t*.npz"):
        path.rename(named / path.name)
    callback = "callbacks = [{class = 'ModelCheckpoint', filepath = '{epoch}.safetensors'}]\n[data]"
    (named / "run.toml").write_text(CONFIG.replace("[data]", callback))
    assert train(named) == 0
    assert {path.name for path in named.glob("?.safetensors")} == {"1.safetensors", "2.safetensors", "3.safetensors"}


def test_columns_labels_and_weights_by_name(folder: Path) -> None:
    rng = np.random.default_rng(0)
    lines = [",".join(f"{v:.3f}" for v in row) for row in rng.normal(size=(20, 6))]
    (folder / "t.csv").write_text("w,a,b,c,u,v\n" + "\n".join(lines).replace("-", ""))
    (folder / "run.toml").write_text(
        """
output = "m.safetensors"
epochs = 1
loss = {class = "Huber", delta = 0.5}
metrics = ["mae"]
data = {train = "t.csv", x = ["b", "a"], y = ["u", "v"], sample_weight = "w"}
[model]
layers = [{class = "Input", shape = [2, 1]}, {class = "GRU", units = 3, trainable = false},
          {class = "Dense", units = 2}]
"""
    )
    assert train(folder, "--quiet") == 0
    values = np.loadtxt(folder / "t.csv", delimiter=",", skiprows=1)
    model = Sequential([layers.Input((2, 1)), layers.GRU(3), layers.Dense(2)])
    model.compile("rmsprop", fastgru.training.losses.Huber(0.5))
    model.layers[0].trainable = False
    x, y = values[:, [2, 1]].reshape(20, 2, 1), values[:, 4:]
    model.fit(x, y, sample_weight=values[:, 0], seed=0, verbose=0)
    for a, b in zip(fastgru.load(folder / "m.safetensors").get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_picture(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "matplotlib.figure", None)
        assert train(folder, "--plot", str(folder / "out.svg")) == 1
    assert "pip install 'fastgru[plot]'" in capsys.readouterr().err
    assert not (folder / "model.safetensors").exists()
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'fastgru[plot]'")
    assert train(folder, "--plot", str(folder / "out.svg")) == 0
    assert (folder / "out.svg").read_text().startswith("<?xml")


def test_resume(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that ends in its second epoch goes on as if it had not."""
    assert train(folder, "--resume") == 1
    assert "--resume goes on from a checkpoint; expected checkpoint = FILE" in capsys.readouterr().err
    change(folder, ("epochs = 3", 'epochs = 3\ncheckpoint = "run.checkpoint"\ncheckpoint_every = 1'))
    kept = optimizers.Adam.apply

    def killed(self: Any, *arguments: Any) -> None:
        if self.iterations == 6:  # of 4 an epoch
            raise KeyboardInterrupt
        kept(self, *arguments)

    with monkeypatch.context() as until:
        until.setattr(optimizers.Adam, "apply", killed)
        assert train(folder) == 130
    assert "fastgru: interrupted; the same command with --resume goes on\n" in capsys.readouterr().err
    assert not (folder / "model.safetensors").exists()
    assert train(folder) == 1
    assert (
        "run.checkpoint: checkpoint: the file is there already; go on from it with --resume" in capsys.readouterr().err
    )
    assert train(folder, "--resume") == 0
    for a, b in zip(fastgru.load(folder / "model.safetensors").get_weights(), by_hand()[0].get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert "  3  " in capsys.readouterr().out


def test_the_example(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    examples = Path(__file__).parent.parent / "examples"
    if not examples.is_dir():
        pytest.skip("the examples do not lie beside these tests")
    (tmp_path / "run.toml").write_text((examples / "train.toml").read_text())
    runpy.run_path(str(examples / "train.py"))["write"](tmp_path / "ramps")
    assert train(tmp_path, "--quiet") == 0
    found = re.search(r"test: loss [\d.]+, accuracy ([\d.]+)", capsys.readouterr().out)
    assert found and float(found[1]) > 0.9


def test_what_the_page_and_the_help_show_is_read(tmp_path: Path) -> None:
    page = Path(__file__).parent.parent / "docs" / "training.md"
    if not page.is_file():
        pytest.skip("docs/ does not lie beside these tests")
    shown = re.findall(r"^```toml\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    shown.append(re.findall(r"^  output.*?^  \]$", command._TRAIN, re.DOTALL | re.MULTILINE)[0])
    for text in shown:
        (tmp_path / "run.toml").write_text(text)
        assert len(config.read(str(tmp_path / "run.toml")).layers) == 3


def test_a_keras_model_and_ids_that_it_does_not_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    golden = Path(__file__).parent / "golden" / "keras_text_gru.keras"
    ids = np.random.default_rng(0).integers(1, 20, (32, 12))
    np.savez(tmp_path / "d.npz", tokens=ids, label=np.zeros((32, 4), np.float32))
    (tmp_path / "run.toml").write_text(
        f"output = 'm.safetensors'\nepochs = 1\nloss = 'mse'\nmodel.load = '{golden}'\n"
        "data = {train = 'd.npz', x = 'tokens', y = 'label', validation = 'd.npz'}\n"
    )
    assert train(tmp_path) == 0
    assert "validation: loss " in capsys.readouterr().out
    (tmp_path / "m.safetensors").unlink()
    ids[20, 3] = 100000
    np.savez(tmp_path / "d.npz", tokens=ids, label=np.zeros((32, 4), np.float32))
    assert train(tmp_path) == 1
    assert re.search(r"d.npz: x: expected ids 0 … \d+, found 1 … 100000", capsys.readouterr().err)
    assert not (tmp_path / "m.safetensors").exists()


BAD: dict[str, tuple[tuple[str, str], str]] = {
    "not TOML": (("epochs = 3", "epochs = "), "run.toml: expected TOML, found "),
    "key": (("epochs", "epoch"), "unknown key 'epoch'; did you mean 'epochs'?"),
    "data key": (("validation_split", "validaton"), "data: unknown key 'validaton'; did you mean 'validation'?"),
    "no key": (("epochs = 3\n", ""), "epochs: expected it, found none"),
    "kind": (("epochs = 3", "epochs = 3.5"), "epochs: expected a whole number of at least 1, found 3.5"),
    "layer": (('"GRU"', '"GRUU"'), "model.layers[1].layer.class: expected one of "),
    "layer near": (('"GRU"', '"GRUU"'), "found 'GRUU'; did you mean 'GRU'?"),
    "argument": (("units = 5", "unit = 5"), "(GRU): unknown key 'unit'; did you mean 'units'?"),
    "value": (('activation = "softmax"', 'activation = "sofmax"'), "model.layers[2] (Dense): "),
    "type": (("units = 5", 'units = "5"'), "model.layers[1].layer.units (GRU): expected int, found '5'"),
    "size": (("units = 5", "units = -5"), "model.layers[1].layer.units (GRU): expected at least 1, found -5"),
    "list": (("shape = [6, 2]", 'shape = ["6"]'), "model.layers[0].shape (Input): expected Sequence[int]"),
    "inner": (('layer = {class = "GRU", units = 5}', "layer = 5"), "layer (Bidirectional): expected RNN, found 5"),
    "rate": (("0.01", '"a"'), "optimizer.learning_rate (Adam): expected float | Callable[[int], float], found 'a'"),
    "optimizer": (('"Adam"', '"Adm"'), "optimizer.class: expected one of"),
    "clip": (("clipnorm", "clip_norm"), "optimizer (Adam): unknown key 'clip_norm'; did you mean 'clipnorm'?"),
    "loss": (("sparse_cat", "spars_cat"), "did you mean 'sparse_categorical_crossentropy'"),
    "metric": (('"accuracy"', '"acuracy"'), "did you mean 'accuracy'"),
    "average": (('"macro"', '"mcro"'), "metrics[1] (F1Score): average: expected"),
    "both": (("[model]", '[model]\nload = "model.keras"'), "model: expected layers, or load"),
    "no file": (("train.npz", "trian.npz"), "trian.npz: no such file"),
    "suffix": (("train.npz", "run.toml"), "expected a name that ends in .npy, .npz or .csv"),
    "name": (
        ('train = "train.npz"', 'train = "train.npz"\nx = "z"'),
        "expected the arrays ['z', 'y'], found ['x', 'y']",
    ),
    "column": (('train = "train.npz"', 'train = "train.csv"\ny = "z"'), "expected a column 'z', found s0a"),
    "output": (("model.safetensors", "model.keras"), "expected a name that ends in .safetensors; fastgru convert"),
    "replaces": (("model.safetensors", "train.safetensors"), "which is read"),
    "shape": (
        ("shape = [6, 2]", "shape = [6, 3]"),
        "train.npz: input 'input': expected (None, 6, 3), found (80, 6, 2)",
    ),
    "classes": (("units = 3", "units = 2"), "train.npz: y: expected classes 0 … 1"),
    "monitor": (
        ("[data]", "callbacks = [{class = 'EarlyStopping', monitor = 'val_acc'}]\n[data]"),
        "callbacks[0].monitor: expected one of accuracy, f1, loss, val_accuracy",
    ),
    "weights": (("[data]", "class_weight = {a = 1}\n[data]"), "class_weight: expected CLASS = WEIGHT"),
    "log": (("[data]", "callbacks = [{class = 'CSVLogger', filename = 'train.npz'}]\n[data]"), "which is read"),
    "same": (
        ("[data]", "callbacks = [{class = 'ModelCheckpoint', filepath = 'model.safetensors'}]\n[data]"),
        "expected other files for output, checkpoint, plot and callbacks",
    ),
    "braces": (
        ("[data]", "callbacks = [{class = 'ModelCheckpoint', filepath = '{los}.safetensors'}]\n[data]"),
        "callbacks[0].filepath: expected {epoch} or one of accuracy, f1, loss, val_accuracy",
    ),
    "frozen": (("units = 5", "units = 5, trainable = 'no'"), "layer.trainable: expected true or false, found 'no'"),
    "not frozen": (("0.01", "0.01, trainable = false"), "optimizer (Adam): unknown key 'trainable'"),
    "deep": (("epochs = 3", f"epochs = {'[' * 9999}"), "run.toml: expected TOML, found "),
    "seed": (("seed = 4", f"seed = {2**64}"), "seed: expected a whole number of at least 0, at most 1844674"),
    "folder": (("[data]", "checkpoint = '.'\n[data]"), ": expected a file, found a folder"),
    "negative rate": (("0.01", "-0.01"), "learning_rate: expected a finite number of at least 0, found -0.01"),
    "every": (("[data]", "checkpoint_every = 5\n[data]"), "checkpoint_every: expected checkpoint = "),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_trains_and_writes_nothing(
    folder: Path, case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change(folder, BAD[case][0])
    if case == "replaces":
        (folder / "train.safetensors").hardlink_to(folder / "train.npz")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr("fastgru.models.Model.fit", lambda *args, **options: pytest.fail("trained"))
    assert train(folder) == 1
    assert BAD[case][1] in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_bad_rows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, y = data(30, 1)
    x[3, 2, 1] = np.nan
    np.savez(folder / "test.npz", x=x, y=y)
    assert train(folder) == 1
    assert "test.npz: x: expected finite numbers, found nan at [3, 2, 1]" in capsys.readouterr().err
    np.savez(folder / "test.npz", x=x, y=y[:7])
    assert train(folder) == 1
    assert "test.npz: expected one number of rows, above 0, found {'y': 7, 'x[0]': 30}" in capsys.readouterr().err
    assert not (folder / "model.safetensors").exists()


def test_a_run_that_diverges_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(folder, ("learning_rate = 0.01, clipnorm = 1.0", "learning_rate = 1e38"))
    assert train(folder) == 1
    assert re.search(r"fastgru: .*run.toml: epoch \d+.*lower the learning rate", capsys.readouterr().err)
    assert not (folder / "model.safetensors").exists()
