"""``fastgru train`` and ``fastgru evaluate``: their arguments, what they do and print."""

from __future__ import annotations

import argparse
import os
from collections import defaultdict
from string import Formatter
from typing import Any

from .. import loading, tables
from ..formats import FormatError
from ..layers.base import initial_weights_from
from ..models import Model, Sequential
from ..training import plot
from ..training.callbacks import EarlyStopping, ModelCheckpoint
from ..training.fit import History, NotFinite
from . import config as configs
from . import data as files
from .config import Config, Data
from .data import Rows

_TRAIN = """\
Train the model that CONFIG describes on the data it names, and write it to its output. All is checked before the first
step. Paths are those from the folder of CONFIG. A small one:

  output = "model.safetensors"
  epochs = 20
  loss = "sparse_categorical_crossentropy"
  optimizer = {class = "Adam", learning_rate = 0.01}
  metrics = ["accuracy", "f1"]
  checkpoint = "run.checkpoint"       # --resume goes on from it
  [data]
  train = "train.csv"                 # named columns: y, and all others are x; or .npz with x and y
  validation_split = 0.2
  [model]                             # or load = "model.keras" to go on with a trained one
  layers = [
    {class = "Input", shape = [8, 2]},
    {class = "GRU", units = 16},
    {class = "Dense", units = 3, activation = "softmax"},
  ]

docs/training.md has all keys.
"""


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to those of ``fastgru``."""
    train = commands.add_parser(
        "train",
        help="train a model as a CONFIG.toml says",
        description=_TRAIN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("config", metavar="CONFIG", help="a .toml file")
    train.add_argument(
        "--resume", action="store_true", help="go on from the checkpoint that CONFIG names, if it is there"
    )
    train.add_argument("--plot", metavar="OUT", help="draw loss and metrics: .svg, .png or .pdf; needs fastgru[plot]")
    train.add_argument("--num-threads", type=int, help="threads to use")
    train.add_argument("--quiet", action="store_true", help="no progress, no table, only the final numbers")
    train.set_defaults(run=_train)

    evaluate = commands.add_parser("evaluate", help="loss and metrics of a model on data with labels")
    evaluate.add_argument("model", metavar="MODEL")
    evaluate.add_argument("data", metavar="DATA", help=".npz, .csv or .tsv; or x as .npy, and y in --labels")
    evaluate.add_argument("--loss", required=True, help="e.g. mse, sparse_categorical_crossentropy")
    evaluate.add_argument("--metrics", nargs="+", default=[], metavar="NAME", help="e.g. accuracy f1 auc")
    evaluate.add_argument("--labels", metavar="FILE", help="y as .npy")
    evaluate.add_argument("--x", nargs="+", metavar="NAME", help="arrays or columns of the inputs")
    evaluate.add_argument("--y", nargs="+", metavar="NAME", help="array or columns of the labels (default: y)")
    evaluate.add_argument("--sample-weight", metavar="NAME", help="array or column of the rows' weights")
    evaluate.add_argument("--batch-size", type=int, default=32, help="rows at a time")
    evaluate.add_argument("--num-threads", type=int, help="threads to use")
    evaluate.set_defaults(run=_evaluate)


def _train(arguments: argparse.Namespace) -> int:
    config = configs.read(arguments.config)
    _check_targets(config, arguments)
    model = _model(config.load) if config.load else Sequential(config.layers)
    model.compile(config.optimizer, config.loss, config.metrics)
    sets: dict[str, Rows] = {}
    for name in ("train", "validation", "test"):
        if (found := getattr(config.data, name)) is not None:
            sets[name] = files.read(found, config.data, model, sets.get("train"))
    _check_callbacks(config, _check_data(config, model, sets))
    try:
        history = _fit(config, model, sets, arguments)
    except NotFinite as error:
        raise FormatError(f"{config.path}: {error}") from error
    model.save(config.output)
    if not arguments.quiet:
        print("\n".join(table(history)))
    for name in ("validation", "test"):
        if name in sets:
            print(f"{name}: {_shown(_measure(model, sets[name], config.batch_size, arguments.num_threads))}")
    if arguments.plot:
        plot.history(history, arguments.plot)
    print(f"written: {config.output}")
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    model = _model(arguments.model)
    model.compile("sgd", arguments.loss, arguments.metrics)
    given = {"x": arguments.data, "y": arguments.labels} if arguments.labels else arguments.data
    data = Data(given, x=arguments.x, y=arguments.y, sample_weight=arguments.sample_weight)
    rows = files.read(given, data, model)
    _check_rows(model, rows, None)
    found = _measure(model, rows, arguments.batch_size, arguments.num_threads)
    print(f"{len(rows.y)} rows: {_shown(found)}")
    return 0


def _model(path: str) -> Model:
    model = loading.load(path)
    if not isinstance(model, Model):
        raise FormatError(f"{path}: expected a model with its layers, found the weights of a {type(model).__name__}")
    return model


def _fit(config: Config, model: Model, sets: dict[str, Rows], arguments: argparse.Namespace) -> History:
    options: dict[str, Any] = {}
    if config.checkpoint:
        options = {"checkpoint": config.checkpoint, "checkpoint_every": config.checkpoint_every}
        options["resume"] = True if arguments.resume else None
    validation = sets.get("validation")
    try:
        return model.fit(
            sets["train"].inputs,
            sets["train"].y,
            sample_weight=sets["train"].sample_weight,
            validation_data=None if validation is None else (validation.inputs, validation.y, validation.sample_weight),
            validation_split=config.data.validation_split,
            class_weight=config.class_weight,
            batch_size=config.batch_size,
            epochs=config.epochs,
            shuffle=config.shuffle,
            callbacks=config.callbacks,
            seed=config.seed,
            num_threads=arguments.num_threads,
            verbose=not arguments.quiet,
            **options,
        )
    except KeyboardInterrupt:
        if config.checkpoint:
            raise KeyboardInterrupt("; the same command with --resume goes on") from None
        raise


# -- before it starts ----------------------------------------------------------------------


def _check_targets(config: Config, arguments: argparse.Namespace) -> None:
    """What is written can be, and replaces nothing that is read."""
    if not config.output.lower().endswith(".safetensors"):
        raise FormatError(
            f"{config.output}: output: expected a name that ends in .safetensors; fastgru convert writes other formats"
        )
    if arguments.resume and not config.checkpoint:
        raise FormatError(f"{config.path}: --resume goes on from a checkpoint; expected checkpoint = FILE, found none")
    if config.checkpoint and not arguments.resume and os.path.isfile(config.checkpoint):
        raise FormatError(
            f"{config.checkpoint}: checkpoint: the file is there already; go on from it with --resume, or delete it"
        )
    if arguments.plot:
        plot.check(arguments.plot)
    read = [config.path, *files.paths(config.data), *([config.load] if config.load else [])]
    written = [_written(config, i, call) for i, call in enumerate(config.callbacks)]
    targets = [path for path in (config.output, config.checkpoint, arguments.plot, *written) if path]
    for target in targets:
        tables.check_target(target)
        tables.check_apart(target, *read)
    if len({os.path.realpath(target) for target in targets}) < len(targets):
        raise FormatError(
            f"{config.path}: expected other files for output, checkpoint, plot and callbacks, found {targets}"
        )


def _written(config: Config, i: int, call: Any) -> str | None:
    """The file that a callback writes; of one an epoch the first."""
    if not isinstance(call, ModelCheckpoint):
        return getattr(call, "filename", None)
    try:
        return call.filepath.format_map(defaultdict[str, float](float, epoch=1))
    except (ValueError, LookupError, AttributeError) as error:
        raise FormatError(
            f"{config.path}: callbacks[{i}].filepath: expected a name that may hold {{epoch}}, found "
            f"{call.filepath!r}: {error}"
        ) from error


def _check_data(config: Config, model: Model, sets: dict[str, Rows]) -> set[str]:
    """What `fit` will measure. The weights are drawn as it would."""
    with initial_weights_from(config.seed):
        for rows in sets.values():
            names = _check_rows(model, rows, config.batch_size)
    validated = "validation" in sets or config.data.validation_split > 0
    return {*names, *(f"val_{name}" for name in names if validated)}


def _check_rows(model: Model, rows: Rows, batch_size: int | None) -> set[str]:
    """Whether the model, its loss and its metrics take the rows; the names of what is measured."""
    how = model._compiled
    assert how is not None
    try:
        y_pred = model.predict(_first(rows, 1))
    except (ValueError, TypeError) as error:
        raise FormatError(f"{rows.path}: {error}") from error
    if isinstance(y_pred, (list, dict)):
        raise FormatError(f"{rows.path}: expected a model of one output, found {len(model.output_names)}")
    files.check(rows, model, how.loss, y_pred)
    if batch_size is None:
        return set()
    try:
        return {*model.evaluate(_first(rows, batch_size), rows.y[:batch_size], return_dict=True)}
    except (ValueError, TypeError) as error:
        raise FormatError(f"{rows.path}: {error}") from error


def _first(rows: Rows, count: int) -> Any:
    parts = [x[:count] for x in rows.x]
    return parts[0] if len(parts) == 1 else parts


def _check_callbacks(config: Config, measured: set[str]) -> None:
    for i, call in enumerate(config.callbacks):
        if isinstance(call, ModelCheckpoint):
            for _, name, _, _ in Formatter().parse(call.filepath):
                if name is not None and name not in {"epoch", *measured}:
                    raise FormatError(
                        f"{config.path}: callbacks[{i}].filepath: expected {{epoch}} or one of "
                        f"{', '.join(sorted(measured))} in braces, found {name!r}"
                    )
        watches = isinstance(call, EarlyStopping) or (isinstance(call, ModelCheckpoint) and call.save_best_only)
        if watches and call.monitor not in measured:
            raise FormatError(
                f"{config.path}: callbacks[{i}].monitor: expected one of {', '.join(sorted(measured))}, "
                f"found {call.monitor!r}; val_ needs data.validation or data.validation_split"
            )


# -- what is printed -----------------------------------------------------------------------


def _measure(model: Model, rows: Rows, batch_size: int, num_threads: int | None) -> dict[str, float]:
    found: dict[str, float] = model.evaluate(
        rows.inputs,
        rows.y,
        sample_weight=rows.sample_weight,
        batch_size=batch_size,
        num_threads=num_threads,
        return_dict=True,
    )
    return found


def _shown(logs: dict[str, float]) -> str:
    return ", ".join(f"{key} {value:.4g}" for key, value in logs.items())


def table(history: History) -> list[str]:
    """Lines of a table: an epoch a line."""
    names = list(history.history)
    rows = [["epoch", *names]]
    for i, number in enumerate(history.epoch):
        rows.append([str(number + 1), *(f"{history.history[name][i]:.4g}" for name in names)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
