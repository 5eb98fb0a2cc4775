"""What `fit` refuses to go on from, and what is left where it fails: other runs, hostile files, NaN, full disks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import helpers_checkpoint as run
import numpy as np
import pytest

import fastgru
from fastgru import FormatError, Sequential, layers
from fastgru.formats import read, write_safetensors
from fastgru.training import callbacks, losses, metrics, optimizers
from fastgru.training.callbacks import Callback
from fastgru.training.checkpoint import read_checkpoint
from fastgru.training.fit import NotFinite

HERE = Path(__file__).parent


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 6}, "seed is 5 and here 6"),
        ({"batch_size": 20}, "batch_size is 10 and here 20"),
        ({"shuffle": False}, "shuffle is True and here False"),
        (
            {"validation_split": 0.0},
            r"data x is \['float32 \[48, 6, 4\]'\] and here \['float32 \[60, 6, 4\]'\].* is given and here None",
        ),
        ({"sample_weight": None}, "data sample_weight is 'float32 .* and here None"),
        ({"callbacks": [callbacks.EarlyStopping()]}, r"callbacks is \[\] and here \['EarlyStopping'\]"),
    ],
)
def test_another_run(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    path = run.interrupted(tmp_path / "run")
    before, made = path.read_bytes(), run.model(run.adam())
    x, y, weights = run.data()
    given = {"sample_weight": weights, "epochs": 4, "batch_size": 10, "validation_split": 0.2, "verbose": 0, **options}
    with pytest.raises(ValueError, match=f"run: expected a checkpoint of this run, found one where .*{message}"):
        made.fit(x, y, checkpoint=path, resume=True, **given)
    assert path.read_bytes() == before
    assert made.optimizer.iterations == 0 and not any(layer.ready for layer in made.layers[:3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: m.compile(run.adam(), losses.SparseCategoricalCrossentropy(reduction="sum")),
            "loss reduction is 'sum_over_batch_size' and here 'sum'",
        ),
        (
            lambda m: m.compile(
                "adam", "sparse_categorical_crossentropy", ["accuracy", metrics.SparseTopKCategoricalAccuracy(2)]
            ),
            "optimizer learning_rate is",
        ),
        (
            lambda m: setattr(m.layers[3], "rate", 0.4),
            "layers dropout class is 'Dropout, rate 0.3' and here 'Dropout, rate 0.4'",
        ),
        (lambda m: setattr(m.layers[0], "trainable", False), "layers gru trainable is True and here False"),
    ],
)
def test_another_model(tmp_path: Path, change: Callable[[Any], Any], message: str) -> None:
    path, made = run.interrupted(tmp_path / "run"), run.model(run.adam())
    change(made)
    with pytest.raises(ValueError, match=message):
        run.fit(made, resume=path)


def test_other_layers(tmp_path: Path) -> None:
    path = run.interrupted(tmp_path / "run")
    made = Sequential([layers.GRU(9), layers.Dense(3, activation="softmax")])
    made.compile(run.adam(), "sparse_categorical_crossentropy", ["accuracy", metrics.SparseTopKCategoricalAccuracy(2)])
    with pytest.raises(ValueError, match=r"layers gru class .* kernel is \[4, 24\] and here \[4, 27\].* more"):
        run.fit(made, resume=path)


def test_arguments(tmp_path: Path) -> None:
    path, made = tmp_path / "run", run.model(run.adam())
    with pytest.raises(FileNotFoundError, match="no checkpoint to go on from; give checkpoint=PATH, resume=True"):
        run.fit(made, resume=path)
    with pytest.raises(ValueError, match="resume: True goes on from checkpoint=PATH, found none"):
        run.fit(made, resume=True)
    with pytest.raises(ValueError, match="checkpoint_every: expected at least 1, and checkpoint=PATH"):
        run.fit(made, checkpoint_every=3)
    with pytest.raises(FileNotFoundError, match="no such folder to write checkpoints to"):
        run.fit(made, checkpoint=tmp_path / "no" / "run")
    with pytest.raises(IsADirectoryError, match="checkpoint: expected a file, found a folder"):
        run.fit(made, checkpoint=tmp_path)
    run.interrupted(path)
    with pytest.raises(FileExistsError, match="another run's checkpoint; go on from it with resume=True, or delete it"):
        run.fit(made, checkpoint=path)
    with pytest.raises(FormatError, match="expected a model, found a checkpoint of training"):
        fastgru.load(path)
    assert fastgru.load_state_dict(path)["weights/gru/kernel"].shape == (4, 24)


def signed_again(path: Path, change: Callable[[Any, dict[str, Any]], Any]) -> None:
    """The same file with something changed in its facts or tensors, under a checksum that is right."""
    file = read(path)
    facts, tensors = json.loads(file.metadata["checkpoint"]), {k: v.copy() for k, v in file.tensors.items()}
    change(facts, tensors)
    write_safetensors(path, tensors, {"checkpoint": json.dumps(facts)})


HOSTILE: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "no position": lambda facts, tensors: facts.pop("epoch"),
    "another version": lambda facts, tensors: facts.update(version=2),
    "a negative batch": lambda facts, tensors: facts.update(batch=-1),
    "an epoch far ahead": lambda facts, tensors: facts.update(epoch=10**18),
    "a history of other epochs": lambda facts, tensors: facts["history"].update(epoch=[3]),
    "a batch that no epoch has": lambda facts, tensors: facts.update(batch=10**18),
    "an epoch in words": lambda facts, tensors: facts.update(epoch="2"),
    "a stop of another kind": lambda facts, tensors: facts.update(stopped=[1]),
    "a history of strings": lambda facts, tensors: facts.update(history={"epoch": [0], "history": {"loss": ["x"]}}),
    "no state of metrics": lambda facts, tensors: facts.update(metrics=[1]),
    "sums in words": lambda facts, tensors: facts.update(loss=["1", 2]),
    "a rate in words": lambda facts, tensors: facts.update(learning_rate="1"),
    "a rate below zero": lambda facts, tensors: facts.update(learning_rate=-1.0),
    "a weight of another shape": lambda facts, tensors: tensors.update({"weights/gru/kernel": np.zeros((4, 3), "f4")}),
    "a weight of another dtype": lambda facts, tensors: tensors.update({"weights/gru/kernel": np.zeros((4, 24))}),
    "a weight that is NaN": lambda facts, tensors: tensors["weights/gru/kernel"].fill(np.nan),
    "a weight less": lambda facts, tensors: tensors.pop("weights/gru/kernel"),
    "a slot of another shape": lambda facts, tensors: tensors.update(
        {"optimizer/momentum/gru/kernel": np.zeros(1, "f4")}
    ),
    "a slot of no weight": lambda facts, tensors: tensors.update({"optimizer/momentum/x/y": np.zeros(1, "f4")}),
    "no steps": lambda facts, tensors: tensors.pop("optimizer/iterations"),
    "steps below zero": lambda facts, tensors: tensors.update({"optimizer/iterations": np.array(-1)}),
    "states of a layer without": lambda facts, tensors: tensors.update({"states/gru/0": np.zeros((1, 8), "f4")}),
    "a best in words": lambda facts, tensors: facts["callbacks"][0].update(best=[]),
    "no best": lambda facts, tensors: facts["callbacks"][0].clear(),
    "a callback less": lambda facts, tensors: facts["callbacks"].clear(),
    "a metric less": lambda facts, tensors: facts["metrics"].pop(),
    "a sum too many": lambda facts, tensors: facts["metrics"][0].update(more=1.0),
    "a sum in a list": lambda facts, tensors: facts["metrics"][0].update(_total=[1]),
    "a sum in words": lambda facts, tensors: facts["metrics"][0].update(_total="x"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_files_that_contradict_themselves(tmp_path: Path, what: str) -> None:
    make = lambda: run.model(optimizers.SGD(0.1, 0.9))  # noqa: E731
    path = tmp_path / "run"
    with pytest.raises(run.Killed):
        options = {"seed": 5, "checkpoint": path, "checkpoint_every": 1}
        run.fit(make(), callbacks=[run.stopper(), run.Kill("batch", 7)], **options)
    signed_again(path, HOSTILE[what])
    with pytest.raises(FormatError, match=r"run: "):
        run.fit(make(), resume=path, callbacks=[run.stopper()])


def test_damaged_files(tmp_path: Path) -> None:
    path = run.interrupted(tmp_path / "run")
    good = path.read_bytes()
    for at in (0, 3, 9, 40, 600, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(FormatError, match="run"):
            run.fit(run.model(run.adam()), checkpoint=path, resume=True)
    for cut in (0, 7, 100, len(good) - 1):
        path.write_bytes(good[:cut])
        with pytest.raises(FormatError, match="run"):
            run.fit(run.model(run.adam()), checkpoint=path, resume=True)
    model = Sequential([layers.GRU(2)])
    model.predict(np.zeros((1, 2, 2), np.float32))
    model.save(path)
    with pytest.raises(FormatError, match="expected a checkpoint that fit wrote"):
        run.fit(run.model(run.adam()), resume=path)


# -- NaN, and disks that are full ------------------------------------------------------------------


def test_the_last_good_checkpoint_stays(tmp_path: Path) -> None:
    class Poison(Callback):
        def __init__(self, name: str) -> None:
            self.name = name

        def on_batch_end(self, batch: int, logs: Mapping[str, float]) -> None:
            if self.model.optimizer.iterations == 7:
                target = self.model.optimizer._state if self.name == "slot" else None
                array = target["gru/kernel"]["velocity"] if target else self.model.layers[0].weights["kernel"]
                array[0, 0] = np.inf

    for name, message in (("slot", "optimizer/velocity/gru/kernel"), ("weight", "weights/gru/kernel")):
        path = tmp_path / name
        with pytest.raises(NotFinite, match=f"epoch 1, before batch 2: {message}: .* is still the checkpoint before"):
            run.fit(run.model(run.adam()), seed=5, checkpoint=path, checkpoint_every=2, callbacks=[Poison(name)])
        saved = read_checkpoint(path)
        assert (saved.facts["epoch"], saved.facts["batch"]) == (1, 0)
        with pytest.raises(NotFinite, match="epoch 1, batch 2: .* layer 'gru': 'kernel' is not finite since the batch"):
            run.fit(run.model(run.adam()), seed=5, callbacks=[Poison("weight")])
    made = run.model(run.adam())
    assert run.different(run.outcome(made, run.fit(made, resume=path)), run.whole(run.adam)) == []


def test_the_layer_whose_output_is_not_finite_is_named() -> None:
    made = Sequential([layers.Dense(4), layers.Dense(3), layers.Dense(1)]).compile("sgd", "mse")
    x = np.ones((8, 4), np.float32)
    made.predict(x)
    made.layers[1].set_weights([np.full((4, 3), 1e38, np.float32), np.zeros(3, np.float32)])
    made.layers[0].set_weights([np.ones((4, 4), np.float32), np.zeros(4, np.float32)])
    with pytest.raises(NotFinite, match="epoch 0, batch 0: loss: .* layer 'dense_1' is the first whose output is not"):
        made.fit(x, np.ones(8), seed=0, verbose=0)


def test_weights_of_the_last_step_are_looked_at() -> None:
    made = Sequential([layers.Dense(1)]).compile(optimizers.SGD(1e30), "mse")
    with pytest.raises(NotFinite, match="epoch 0, after its last batch: layer 'dense': 'kernel' is not finite"):
        made.fit(np.full((4, 2), 1e5, np.float32), np.full(4, 1e5), seed=0, verbose=0)


FULL = """
import errno, resource, sys
sys.path.insert(0, sys.argv[2])
import helpers_checkpoint as run
path = sys.argv[1]
made = run.model(run.adam())
run.fit(made, seed=5, epochs=1, checkpoint=path)
before = open(path, "rb").read()
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    run.fit(run.model(run.adam()), epochs=2, checkpoint=path, resume=True)
except OSError as error:
    assert error.errno == errno.EFBIG and error.filename == path, error
    assert "the old file is as it was" in str(error), error
else:
    raise SystemExit("expected an OSError")
assert open(path, "rb").read() == before
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
again = run.model(run.adam())
found = run.outcome(again, run.fit(again, epochs=2, checkpoint=path, resume=True))
once = run.model(run.adam())
assert run.different(found, run.outcome(once, run.fit(once, seed=5, epochs=2))) == []
print("whole")
"""


@pytest.mark.skipif(os.name == "nt", reason="RLIMIT_FSIZE is POSIX'")
@pytest.mark.parametrize("most", [100, 6000])
def test_a_file_that_may_not_grow(tmp_path: Path, most: int) -> None:
    path = os.path.realpath(tmp_path / "run")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", FULL, path, str(HERE), str(most)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout == "whole\n", done.stderr
    assert os.listdir(tmp_path) == ["run"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mounts a tmpfs")
def test_a_full_disk(tmp_path: Path) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", tmp_path], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        path, made = tmp_path / "run", run.model(run.adam())
        run.fit(made, seed=5, epochs=1, checkpoint=path)
        before = path.read_bytes()
        (tmp_path / "rest").write_bytes(b"x" * (64 * 1024 - len(before) - 12288))
        with pytest.raises(OSError, match="No space left on device; the old file is as it was") as error:
            run.fit(run.model(run.adam()), epochs=2, checkpoint=path, resume=True)
        assert error.value.filename == os.path.realpath(path)
        assert path.read_bytes() == before and sorted(os.listdir(tmp_path)) == ["rest", "run"]
    finally:
        subprocess.run(["umount", tmp_path], check=True)
