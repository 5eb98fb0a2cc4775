"""Runs that are left and gone on with: the same to the bit, whatever killed them; bad input, and full disks."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import helpers_checkpoint as run
import numpy as np
import pytest

from fastgru import Sequential, layers
from fastgru.models import training
from fastgru.training import callbacks, metrics, optimizers
from fastgru.training.checkpoint import Run, find_checkpoint, read_checkpoint
from fastgru.training.fit import Meter

HERE = Path(__file__).parent


OPTIMIZERS: dict[str, Callable[[], optimizers.Optimizer]] = {
    "adam, schedule, clipping": run.adam,
    "sgd, nesterov": lambda: optimizers.SGD(0.05, 0.9, nesterov=True, clipnorm=1.0),
    "rmsprop": lambda: optimizers.RMSprop(0.01, momentum=0.5, centered=True),
    "adagrad": lambda: optimizers.Adagrad(0.05),
    "adamw": lambda: optimizers.AdamW(0.01, amsgrad=True),
}
KILLS = {
    "in an epoch": ("batch", 7, 1),
    "in an epoch, between two saves": ("batch", 8, 2),
    "before the first batch is done": ("batch", 0, None),
    "before an epoch": ("begin", 3, None),
    "in an epoch, saved at epochs": ("batch", 13, None),
    "before an epoch's save": ("end", 2, 2),
}


def in_two(
    path: Path,
    kill: tuple[str, int, int | None],
    optimizer: Callable[[], Any],
    calls: Callable[[], list[Any]] = list,
    **options: Any,
) -> dict[str, Any]:
    """The outcome of a run that was ended and gone on with, by a model of its own."""
    kind, after, every = kill
    options |= {"checkpoint": path, "checkpoint_every": every, "resume": True}
    with pytest.raises(run.Killed):
        run.fit(run.model(optimizer()), seed=5, callbacks=[*calls(), run.Kill(kind, after)], **options)
    made = run.model(optimizer())
    return run.outcome(made, run.fit(made, callbacks=calls(), **options))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizers_go_on(tmp_path: Path, optimizer: str) -> None:
    make = OPTIMIZERS[optimizer]
    calls = lambda: [run.stopper()]  # noqa: E731
    assert run.different(in_two(tmp_path / "run", KILLS["in an epoch"], make, calls), run.whole(make, calls)) == []


@pytest.mark.parametrize("kill", KILLS)
def test_it_goes_on_from_anywhere(tmp_path: Path, kill: str) -> None:
    def calls() -> list[Any]:
        return [run.stopper(), callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.9)]

    make = OPTIMIZERS["sgd, nesterov"]
    assert run.different(in_two(tmp_path / "run", KILLS[kill], make, calls), run.whole(make, calls)) == []


@pytest.mark.parametrize(
    "options", [{"shuffle": False}, {"validation_split": 0.0}, {"class_weight": {0: 1, 1: 2, 2: 3}}]
)
def test_options(tmp_path: Path, options: dict[str, Any]) -> None:
    found = in_two(tmp_path / "run", KILLS["in an epoch"], run.adam, **options)
    assert run.different(found, run.whole(run.adam, **options)) == []


def _nothing(*args: Any) -> None:
    pass


def _with_facts(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[..., Any]:
    def find(*args: Any) -> Any:
        found = find_checkpoint(*args)
        return found if found is None else replace(found, facts={**found.facts, **change(found.facts)})

    return find


_set_state = optimizers.SGD.set_state
FORGETS: dict[str, tuple[Any, str, Any]] = {
    "slots": (optimizers.SGD, "set_state", lambda o, state: _set_state(o, {"iterations": state["iterations"]})),
    "steps": (optimizers.SGD, "set_state", lambda o, state: _set_state(o, {**state, "iterations": np.array(0)})),
    "sums": (Meter, "set_state", _nothing),
    "metrics": (metrics.Metric, "set_state", _nothing),
    "best": (callbacks.EarlyStopping, "set_state", _nothing),
    "rate": (Run, "_rate", _nothing),
    "batch": (training, "find_checkpoint", _with_facts(lambda facts: {"batch": 0})),
    "history": (
        training,
        "find_checkpoint",
        _with_facts(lambda facts: {"history": {**facts["history"], "history": {}}}),
    ),
}


@pytest.mark.parametrize("forgotten", FORGETS)
def test_the_comparison_bites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgotten: str) -> None:
    """Going on without any one thing is found out."""
    make = OPTIMIZERS["sgd, nesterov"]

    def calls() -> list[Any]:
        return [
            callbacks.EarlyStopping("loss", min_delta=10, patience=9, restore_best_weights=True),
            callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.9),
        ]

    expected = run.whole(make, calls)
    monkeypatch.setattr(*FORGETS[forgotten])
    assert run.different(in_two(tmp_path / "run", KILLS["in an epoch"], make, calls), expected)


def test_seeds_may_be_left_to_chance(tmp_path: Path) -> None:
    """The first checkpoint comes before the first step."""
    path = tmp_path / "run"
    run.interrupted(path, seed=None, callbacks=[run.Kill("batch", 0)])
    made, again = run.model(run.adam()), run.model(run.adam())
    found = run.outcome(made, run.fit(made, resume=path))
    seed = read_checkpoint(path).seed
    assert run.different(found, run.outcome(again, run.fit(again, seed=seed))) == []


def test_a_run_that_has_ended_goes_on_for_longer(tmp_path: Path) -> None:
    path, made = tmp_path / "run", run.model(run.adam())
    first = run.fit(made, seed=5, epochs=2, checkpoint=path)
    assert run.fit(run.model(run.adam()), epochs=2, checkpoint=path, resume=True) == first
    again = run.model(run.adam())
    found = run.outcome(again, run.fit(again, checkpoint=path, resume=True))
    assert run.different(found, run.whole(run.adam)) == []


def test_a_run_that_was_stopped_stays_so(tmp_path: Path) -> None:
    stop, path = callbacks.EarlyStopping("loss", min_delta=10, patience=1, restore_best_weights=True), tmp_path / "run"
    made, again = run.model(run.adam()), run.model(run.adam())
    first = run.outcome(made, run.fit(made, seed=5, checkpoint=path, callbacks=[stop]))
    stop = callbacks.EarlyStopping("loss", min_delta=10, patience=1, restore_best_weights=True)
    found = run.outcome(again, run.fit(again, checkpoint=path, resume=True, callbacks=[stop]))
    assert list(first["epoch"]) == [0, 1] and stop.stopped_epoch == 1
    assert run.different(found, first) == []


def test_states_of_stateful_layers(tmp_path: Path) -> None:
    def made() -> Any:
        model = Sequential([layers.GRU(5, stateful=True), layers.Dense(1)])
        model.predict(np.zeros((10, 6, 4), np.float32))
        model.set_weights([np.random.default_rng(i).normal(size=w.shape) for i, w in enumerate(model.get_weights())])
        model.reset_states()
        return model.compile("adam", "mse")

    x, y, _ = run.data()
    options = {"batch_size": 10, "epochs": 3, "shuffle": False, "verbose": 0, "seed": 0}
    one, two = made(), made()
    expected = run.outcome(one, one.fit(x, y, **options))
    with pytest.raises(run.Killed):
        options |= {"checkpoint": tmp_path / "run", "checkpoint_every": 1}
        made().fit(x, y, **options, callbacks=[run.Kill("batch", 8)])
    found = run.outcome(two, two.fit(x, y, **options, resume=True))
    assert run.different(found, expected) == []
    np.testing.assert_array_equal(one.layers[0].states[0], two.layers[0].states[0])


@pytest.mark.parametrize("kind", ["generator", "iterable", "numbered", "generator, validated by another"])
@pytest.mark.parametrize("kill", [("batch", 8, 2), ("begin", 2, None)], ids=["in an epoch", "before an epoch"])
def test_batches_are_drawn_again(tmp_path: Path, kind: str, kill: tuple[str, int, int | None]) -> None:
    """What gives batches is given anew; batches that were trained on are drawn and dropped, or not asked for."""
    x, y, weights = run.data()
    parts = [(x[i : i + 6], y[i : i + 6], weights[i : i + 6]) for i in range(0, 60, 6)]

    class Numbered:
        def __len__(self) -> int:
            return len(parts)

        def __getitem__(self, i: int) -> Any:
            return parts[i]

    class Iterable:  # another order each time
        def __init__(self) -> None:
            self._random = random.Random(0)

        def __iter__(self) -> Any:
            return iter(self._random.sample(parts, 10))

    def options() -> dict[str, Any]:
        made = {"numbered": Numbered, "iterable": Iterable}.get(kind, lambda: itertools.cycle(parts))()
        found = {"x": made, "epochs": 4, "verbose": 0, "num_threads": 1}
        steps = {"steps_per_epoch": 5} if kind != "iterable" else {}
        if "validated" in kind:
            steps |= {"validation_data": itertools.cycle(parts), "validation_steps": 3, "validation_freq": 2}
        return found | steps

    one, two = run.model(run.adam()), run.model(run.adam())
    expected = run.outcome(one, one.fit(**options(), seed=5))
    kept = {"checkpoint": tmp_path / "run", "checkpoint_every": kill[2], "resume": True}
    with pytest.raises(run.Killed):
        run.model(run.adam()).fit(**options(), **kept, seed=5, callbacks=[run.Kill(*kill[:2])])
    assert run.different(run.outcome(two, two.fit(**options(), **kept)), expected) == []


def test_a_log_has_each_epoch_once(tmp_path: Path) -> None:
    for name, kill in (("a.csv", None), ("b.csv", run.Kill("end", 2))):
        calls: list[Any] = [callbacks.CSVLogger(tmp_path / name), *([kill] if kill else [])]
        options = {"checkpoint": tmp_path / f"{name}.ckpt", "checkpoint_every": 2, "seed": 5}
        if kill is None:
            run.fit(run.model(run.adam()), callbacks=calls, **options)
        else:
            with pytest.raises(run.Killed):
                run.fit(run.model(run.adam()), callbacks=calls, **options)
            assert len((tmp_path / name).read_text().splitlines()) == 4
            run.fit(run.model(run.adam()), callbacks=calls[:1], resume=True, **options)
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()


def test_metrics_with_settings_of_all_kinds_go_on_within_an_epoch(tmp_path: Path) -> None:
    def make() -> Sequential:
        model = Sequential([layers.Input((3,)), layers.Dense(1, "sigmoid")])
        model.compile("sgd", "bce", [metrics.AUC(), metrics.Precision(), metrics.F1Score("micro", 0.5)])
        return model

    x = np.random.default_rng(0).normal(size=(24, 3)).astype(np.float32)
    options: dict[str, Any] = {"batch_size": 4, "epochs": 2, "verbose": 0, "seed": 5}
    kept: dict[str, Any] = {"checkpoint": tmp_path / "run", "checkpoint_every": 1, "resume": True}
    y = (x.sum(1) > 0).astype(int)
    with pytest.raises(run.Killed):
        make().fit(x, y, **options, **kept, callbacks=[run.Kill("batch", 3)])
    assert read_checkpoint(tmp_path / "run").facts["metrics"]
    assert make().fit(x, y, **options, **kept).history == make().fit(x, y, **options).history


@pytest.mark.parametrize("steps", [None, 2])
def test_data_that_changes_after_each_pass_is_told_of_those_before(tmp_path: Path, steps: int | None) -> None:
    x, y = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32), np.arange(12) % 3

    class Shuffled:
        def __init__(self) -> None:
            self.order, self.rng = np.arange(12), np.random.default_rng(1)

        def __len__(self) -> int:
            return 3

        def __getitem__(self, i: int) -> tuple[Any, Any]:
            rows = self.order[4 * i : 4 * i + 4]
            return x[rows], y[rows]

        def on_epoch_end(self) -> None:
            self.rng.shuffle(self.order)

    def outcome(epochs: int, **kept: Any) -> list[Any]:
        model = Sequential([layers.Input((3,)), layers.Dense(3, "softmax")])
        model.compile("sgd", "sparse_categorical_crossentropy")
        data: dict[str, Any] = {"validation_data": Shuffled(), "validation_freq": 2, "steps_per_epoch": steps}
        history = model.fit(Shuffled(), epochs=epochs, seed=5, verbose=0, **data, **kept)
        return [history.history, *(weight.tolist() for weight in model.get_weights())]

    outcome(3, checkpoint=tmp_path / "run")
    assert outcome(6, checkpoint=tmp_path / "run", resume=True) == outcome(6)


# -- real kills ------------------------------------------------------------------------------------


def start(path: Path, out: Path, *rest: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(HERE / "helpers_checkpoint.py"), str(path), str(out), *rest]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def killed_runs(folder: Path, kills: int, seed: int) -> tuple[int, int]:
    """Kill -9 runs at random moments until so many kills have struck; each run that ends is compared.

    Returns the number of kills in the middle of a save, and of runs that ended.
    """
    made = run.model(run.adam())
    stop = callbacks.EarlyStopping("val_loss", patience=run.EPOCHS, restore_best_weights=True)
    expected = run.outcome(made, run.fit(made, seed=11, callbacks=[stop]))
    chance = random.Random(seed)
    struck = in_saves = ended = 0
    while struck < kills or not ended:
        path, out = folder / f"run-{ended}.ckpt", folder / f"out-{ended}"
        child = start(path, out, "slow")
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        if struck < kills:
            time.sleep(chance.uniform(0.0, 0.8))
            if child.poll() is None:
                child.kill()
                struck += 1
                in_saves += any(folder.glob(f".{path.name}.*.tmp"))
        code = child.wait()
        child.stdout.close()
        if out.exists():
            with np.load(out) as found:
                assert run.different({key.replace("|", "/"): found[key] for key in found}, expected) == []
            ended += 1
        else:
            assert code == -signal.SIGKILL, code
    leftovers = [item.name for item in folder.iterdir() if item.name.endswith(".tmp")]
    assert len(leftovers) <= 1, leftovers  # of a run that ended after it had been written
    return in_saves, ended


@pytest.mark.skipif(os.name == "nt", reason="exit codes of kills")
def test_kill_9(tmp_path: Path) -> None:
    killed_runs(tmp_path, 4, seed=1)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="exit codes of kills")
def test_kill_9_fifty_times(tmp_path: Path) -> None:
    in_saves, ended = killed_runs(tmp_path, 50, seed=2)
    print(f"50 kills, {in_saves} of them in saves; {ended} runs ended")
    assert in_saves >= 5


def test_a_model_that_was_left_goes_on_itself(tmp_path: Path) -> None:
    """Though a callback had moved its learning rate when it was left."""

    def calls() -> list[Any]:
        return [callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.9)]

    made = run.model(OPTIMIZERS["adagrad"]())
    options: dict[str, Any] = {"checkpoint": tmp_path / "run", "resume": True, "seed": 5}
    with pytest.raises(run.Killed):
        run.fit(made, callbacks=[*calls(), run.Kill("batch", 13)], **options)
    found = run.outcome(made, run.fit(made, callbacks=calls(), **options))
    assert run.different(found, run.whole(OPTIMIZERS["adagrad"], calls)) == []
