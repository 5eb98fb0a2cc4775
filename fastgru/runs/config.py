"""What a CONFIG.toml says, checked: each key known, each value of its kind, paths from the file's folder."""

from __future__ import annotations

import difflib
import inspect
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from .. import layers
from ..formats import FormatError
from ..layers.base import Layer
from ..training import callbacks, losses, metrics, optimizers, schedules

#: What may be named by ``class``, by the place where it may stand.
LAYERS = {name: getattr(layers, name) for name in layers.__all__ if isinstance(getattr(layers, name), type)}
LAYERS = {name: kind for name, kind in LAYERS.items() if issubclass(kind, Layer) and kind is not Layer}
LOSSES = {kind.__name__: kind for kind in losses.LOSSES.values()}
OPTIMIZERS = {kind.__name__: kind for kind in optimizers.OPTIMIZERS.values()}
METRICS = {name: getattr(metrics, name) for name in metrics.__all__ if name[0].isupper()}
METRICS = {name: kind for name, kind in METRICS.items() if name not in ("Metric", "LossMetric")}
SCHEDULES = {
    kind.__name__: kind
    for kind in (
        schedules.CosineDecay,
        schedules.ExponentialDecay,
        schedules.PiecewiseConstantDecay,
        schedules.Warmup,
    )
}
CALLBACKS = {kind.__name__: kind for kind in (callbacks.CSVLogger, callbacks.EarlyStopping, callbacks.ModelCheckpoint)}
#: Arguments that are files of the run, named from the folder of the config.
_PATHS = ("filepath", "filename")
_SIZES = ("units", "input_dim", "output_dim")


@dataclass
class Data:
    """Which files, and what in them is which; each of train, validation and test is a file or a file for each part."""

    train: Any
    validation: Any = None
    test: Any = None
    validation_split: float = 0.0
    x: list[str] | None = None
    y: list[str] | None = None
    sample_weight: str | None = None


@dataclass
class Config:
    """One run. ``layers`` or ``load`` say the model."""

    path: str
    data: Data
    layers: list[Layer]
    load: str | None
    loss: Any
    optimizer: Any
    metrics: list[Any]
    output: str
    epochs: int
    batch_size: int = 32
    seed: int = 0
    shuffle: bool = True
    class_weight: dict[int, float] | None = None
    checkpoint: str | None = None
    checkpoint_every: int | None = None
    callbacks: list[Any] = field(default_factory=list)


def read(path: str) -> Config:
    """Read a file.

    Raises
    ------
    FormatError
        If it is not TOML, or says what is not known, naming the key and the nearest one that is.
    """
    try:
        with open(path, "rb") as file:
            values = _toml(file.read().decode("utf-8"))
    except (ValueError, RecursionError) as error:  # bad UTF-8, bad TOML, brackets thousands deep
        raise FormatError(f"{path}: expected TOML, found {error}") from error
    try:
        return _config(path, values)
    except (ValueError, TypeError) as error:
        raise FormatError(f"{path}: {error}") from error


def _toml(text: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(text)


def _config(path: str, values: dict[str, Any]) -> Config:
    folder = Path(path).resolve().parent
    known = ["data", "model", "loss", "optimizer", "metrics", "output", "epochs", "batch_size", "seed", "shuffle"]
    _known("", values, [*known, "class_weight", "checkpoint", "checkpoint_every", "callbacks"])
    for key in ("data", "model", "loss", "output", "epochs"):
        if key not in values:
            raise ValueError(f"{key}: expected it, found none")
    data, model = _table("data", values["data"]), _table("model", values["model"])
    _known("model", model, ["load", "layers"])
    if len(model) != 1:
        raise ValueError('model: expected layers, or load = "FILE", and not both')
    built = [
        _built(f"model.layers[{i}]", v, LAYERS) for i, v in enumerate(_list("model.layers", model.get("layers", [])))
    ]
    if "layers" in model and not built:
        raise ValueError("model.layers: expected at least one layer, found none")
    every = _number("checkpoint_every", values["checkpoint_every"], 1) if "checkpoint_every" in values else None
    if every is not None and "checkpoint" not in values:
        raise ValueError('checkpoint_every: expected checkpoint = "FILE" beside it, found none')
    weights = values.get("class_weight")
    return Config(
        path=path,
        data=_data(folder, data),
        layers=built,
        load=_file(folder, "model.load", model["load"]) if "load" in model else None,
        loss=_named("loss", values["loss"], LOSSES, losses.get),
        optimizer=_named("optimizer", values.get("optimizer", "rmsprop"), OPTIMIZERS, optimizers.get),
        metrics=[
            _named(f"metrics[{i}]", v, METRICS, metrics.check)
            for i, v in enumerate(_list("metrics", values.get("metrics", [])))
        ],
        output=_file(folder, "output", values["output"]),
        epochs=_number("epochs", values["epochs"], 1),
        batch_size=_number("batch_size", values.get("batch_size", 32), 1),
        seed=_number("seed", values.get("seed", 0), 0, 2**64 - 1),
        shuffle=_bool("shuffle", values.get("shuffle", True)),
        class_weight=None if weights is None else _class_weight(_table("class_weight", weights)),
        checkpoint=_file(folder, "checkpoint", values["checkpoint"]) if "checkpoint" in values else None,
        checkpoint_every=every,
        callbacks=[
            _built(f"callbacks[{i}]", _from_folder(folder, value), CALLBACKS)
            for i, value in enumerate(_list("callbacks", values.get("callbacks", [])))
        ],
    )


def _data(folder: Path, table: dict[str, Any]) -> Data:
    _known("data", table, list(Data.__dataclass_fields__))
    if "train" not in table:
        raise ValueError("data.train: expected a file, found none")
    files = {key: _files(folder, f"data.{key}", table[key]) for key in ("train", "validation", "test") if key in table}
    share = table.get("validation_split", 0.0)
    if type(share) not in (int, float) or not 0 <= share < 1:
        raise ValueError(f"data.validation_split: expected a number from 0 to below 1, found {share!r}")
    if share and "validation" in table:
        raise ValueError("data: expected one of validation and validation_split, found both")
    names = {key: _names(f"data.{key}", table[key]) for key in ("x", "y") if key in table}
    weight = _text("data.sample_weight", table["sample_weight"]) if "sample_weight" in table else None
    return Data(**files, **names, validation_split=float(share), sample_weight=weight)


def _files(folder: Path, where: str, value: Any) -> Any:
    """A path, or one for each part."""
    if not isinstance(value, dict):
        return _file(folder, where, value)
    _known(where, value, ["x", "y", "sample_weight"])
    if "x" not in value or "y" not in value:
        raise ValueError(f'{where}: expected a file, or {{x = "FILE.npy", y = "FILE.npy"}}, found {value!r}')
    return {key: _file(folder, f"{where}.{key}", path) for key, path in value.items()}


# -- objects -------------------------------------------------------------------------------


def _named(where: str, value: Any, kinds: Mapping[str, type], get: Any) -> Any:
    """What a name stands for, or a table with its class and arguments."""
    return _built(where, value, kinds) if isinstance(value, dict) else get(_text(where, value))


def _built(where: str, value: Any, kinds: Mapping[str, type]) -> Any:
    """``{class = "NAME", …}`` as an object, tables among its arguments too."""
    table = dict(_table(where, value))
    name = _text(f"{where}.class", table.pop("class", None))
    if name not in kinds:
        raise ValueError(
            f"{where}.class: expected one of {', '.join(sorted(kinds))}, found {name!r}{_near(name, kinds)}"
        )
    kind = kinds[name]
    frozen = issubclass(kind, Layer) and not _bool(f"{where}.trainable", table.pop("trainable", True))
    if kind is layers.Input and isinstance(shape := table.get("shape"), list):
        table["shape"] = [None if n == -1 else n for n in shape]  # TOML has no None
    hints = _arguments(kind)
    _known(f"{where} ({name})", table, hints)
    arguments = {key: _argument(f"{where}.{key}", v) for key, v in table.items()}
    for key, argument in arguments.items():
        if not _fits(argument, hints[key]):
            raise ValueError(f"{where}.{key} ({name}): expected {_hint(hints[key])}, found {table[key]!r}")
        if key in _SIZES and argument < 1:
            raise ValueError(f"{where}.{key} ({name}): expected at least 1, found {argument}")
    try:
        made = kind(**arguments)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where} ({name}): {error}") from error
    if frozen:
        made.trainable = False
    return made


def _argument(where: str, value: Any) -> Any:
    """A layer or a schedule for a table with ``class``, also in lists; else the value."""
    if isinstance(value, dict):
        return _built(where, value, {**LAYERS, **SCHEDULES})
    return [_argument(f"{where}[{i}]", v) for i, v in enumerate(value)] if isinstance(value, list) else value


def _arguments(kind: type) -> dict[str, Any]:
    """Names that the constructor takes, those that it hands on to its bases included, and what each may be."""
    found: dict[str, Any] = {}
    for base in kind.__mro__:
        if "__init__" not in vars(base) or base is object:
            continue
        start = vars(base)["__init__"]
        parameters, hints = inspect.signature(start).parameters.values(), get_type_hints(start)
        for p in parameters:
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name != "self":
                found.setdefault(p.name, hints.get(p.name, Any))
        found.pop("dialect", None)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


def _fits(value: Any, hint: Any) -> bool:
    """Whether TOML's value may stand where a parameter has this type; types that TOML does not have are not judged."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    plain = [kind for kind in kinds if kind in (bool, int, float, str)]
    if value is None:
        return type(None) in kinds
    if isinstance(value, (bool, int, float, str)):
        return type(value) in plain or (type(value) is int and float in plain) or Any in kinds
    if isinstance(value, list):
        parts = [get_args(kind)[0] for kind in kinds if get_origin(kind) in (list, Sequence)]
        return Any in kinds or any(all(_fits(v, part) for v in value) for part in parts)
    return any(kind is Any or not isinstance(kind, type) or isinstance(value, kind) for kind in kinds)


def _hint(hint: Any) -> str:
    if isinstance(hint, type):
        return hint.__name__
    return str(hint).replace("typing.", "").replace("collections.abc.", "").replace(" | None", "")


def _from_folder(folder: Path, value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    found = {key: _file(folder, key, v) if key in _PATHS else v for key, v in value.items()}
    if "filepath" in found:  # braces in it are ModelCheckpoint's, those of the folder are not
        plain = Path(os.fspath(folder).replace("{", "{{").replace("}", "}}"))
        found["filepath"] = _file(plain, "filepath", value["filepath"])
    return found


# -- values --------------------------------------------------------------------------------


def _known(where: str, table: Mapping[str, Any], known: Iterable[str]) -> None:
    names = list(known)
    for key in table:
        if key not in names:
            place = f"{where}: " if where else ""
            raise ValueError(f"{place}unknown key {key!r}{_near(key, names)}; known are {', '.join(sorted(names))}")


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name.lower(), plain := {key.lower(): key for key in known}, 1, 0.5)
    return f"; did you mean {plain[near[0]]!r}?" if near else ""


def _table(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected a table, found {value!r}")
    return value


def _list(where: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{where}: expected a list, found {value!r}")
    return value


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{where}: expected a name, found {value!r}")
    return value


def _names(where: str, value: Any) -> list[str]:
    found = [_text(where, name) for name in (value if isinstance(value, list) else [value])]
    if not found or len(set(found)) < len(found):
        raise ValueError(f"{where}: expected names that differ, found {value!r}")
    return found


def _file(folder: Path, where: str, value: Any) -> str:
    return os.fspath(folder / _text(where, value))


def _number(where: str, value: Any, least: int, most: int | None = None) -> int:
    if type(value) is not int or value < least or (most is not None and value > most):
        limit = "" if most is None else f", at most {most}"
        raise ValueError(f"{where}: expected a whole number of at least {least}{limit}, found {value!r}")
    return value


def _bool(where: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{where}: expected true or false, found {value!r}")
    return value


def _class_weight(table: dict[str, Any]) -> dict[int, float]:
    for key, value in table.items():
        if not key.isdecimal() or type(value) not in (int, float):
            raise ValueError(f"class_weight: expected CLASS = WEIGHT, both numbers, found {key} = {value!r}")
    return {int(key): float(value) for key, value in table.items()}
