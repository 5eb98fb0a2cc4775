"""Keras weights without their architecture: `save_weights` of Keras 2 and tf.keras (.h5) and of Keras 3 (.weights.h5).

With the architecture's JSON, which the caller gives, such a file is a model. Without it there are only tensors: they
are named as stored, and `keras_draft.py` says what can be told from them. Old files hold one group a layer, in the
order of `layer_names`; new ones mirror the object tree, as inside a `.keras` archive.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .archive import Archive
from .hdf5 import Dataset, Group
from .keras import read_object_tree
from .keras_draft import questions
from .keras_h5 import names_of, read_layer_groups
from .keras_plan import plan_model
from .model_file import ModelFile
from .untrusted import LIMITS, REMEDIES, Source

__all__ = ["FORMAT", "Architecture", "read_architecture", "read_keras_weights"]

FORMAT = "keras-weights"

_OF_TRAINING = ("optimizer", "seed_generator", "_random_generator")
# What a config without a version is read as, told from what only one major version writes. Of Keras 3 the minor
# version matters only where two different masks meet in a merge layer: since 3.4 they are ORed.
_KERAS_2, _KERAS_3 = "2.12", "3.4"


@dataclass(frozen=True)
class Architecture:
    """What `model.to_json()` says: the entry {"class_name", "config"}, the Keras version or "", where it came from."""

    entry: dict[str, Any]
    version: str
    source: Source


def read_architecture(given: Source | Mapping[str, Any]) -> Architecture:
    """Read an architecture: the JSON of `model.to_json()`, a `config.json` of a `.keras` archive, or that archive.

    Raises
    ------
    FormatError
        If it is not JSON, no model, or still asks something ("?", as drafts do).
    """
    version = ""
    if isinstance(given, Mapping):
        source, entry = Source("config", b""), json.loads(json.dumps(dict(given)))
    elif bytes(given.data[:4]) == b"PK\x03\x04":
        source, archive = given, Archive(given)
        entry = source.json("config.json", archive.read("config.json"))
        if "metadata.json" in archive:
            metadata = source.json("metadata.json", archive.read("metadata.json"))
            version = str(metadata.get("keras_version", "")) if isinstance(metadata, dict) else ""
    else:
        source = given
        if bytes(source.data[:1]) not in (b"{", b" ", b"\n", b"\r", b"\t"):
            raise source.refuse(
                "", expected="the JSON of model.to_json()", found=f"bytes that start {bytes(source.data[:8])!r}"
            )
        entry = source.json("", bytes(source.data[: LIMITS.json_bytes + 1]))
    if not isinstance(entry, dict):
        raise source.refuse("", expected="the JSON of model.to_json()", found=type(entry).__name__)
    asked = questions(entry)
    if asked:
        raise source.refuse(
            "",
            expected='a value in place of each "?"',
            found=f"{len(asked)} left: {', '.join(asked[:8])}{', …' if len(asked) > 8 else ''}",
            remedy="the weights don't tell these; fill in what the training code says",
        )
    return Architecture(entry, _text(entry, "keras_version") or version, source)


def _text(found: Mapping[str, Any], name: str) -> str:
    value = found.get(name)
    return value if isinstance(value, str) else ""


def read_keras_weights(source: Source, root: Group, architecture: Architecture | None) -> ModelFile:
    """Read a file of `save_weights`.

    Parameters
    ----------
    architecture : Architecture or None
        Without one the result has no config, and tensors are named by their place in the file: "gru/gru/kernel:0",
        "layers/gru/cell/vars/0".

    Raises
    ------
    FormatError
        If the file is HDF5 of something else, or its weights are not those of the architecture.
    """
    attrs = root.attrs
    by_layer = "layer_names" in attrs or "layer_names0" in attrs
    if architecture is None:
        stored = _by_layer(source, root) if by_layer else _tree(source, root)
        tensors = {name: dataset.read() for name, dataset in _bounded(source, stored)}
        return ModelFile(FORMAT, _text(attrs, "keras_version"), None, tensors, _notes(root), source.name)
    entry, where = architecture.entry, architecture.source
    plan = plan_model(where, "", entry)
    notes = _notes(root)
    version = architecture.version or _text(attrs, "keras_version")
    if not version:
        version = _told_version(architecture)
        notes += (
            f"the config does not name its Keras version and is read as {version}: "
            'add "keras_version" to the JSON if it was another',
        )
    if by_layer:
        tensors = read_layer_groups(source, plan, root, _text(attrs, "keras_version") or version)
    else:
        _tree(source, root)  # refuses HDF5 of something else in its own words
        tensors = read_object_tree(source, plan, root, "")
    return ModelFile(FORMAT, version, entry, tensors, notes, source.name)


def _notes(root: Group) -> tuple[str, ...]:
    return ("optimizer state ignored: training only",) if "optimizer" in root else ()


def _told_version(architecture: Architecture) -> str:
    """Return the version that a config without one was written by, as far as that matters.

    model.to_json() of Keras 3 and the config.json of every .keras archive leave it out. What hard_sigmoid means
    depends on it, so a config that shows no mark of either is refused.
    """
    text = json.dumps(architecture.entry)
    module = _text(architecture.entry, "module")
    if module.startswith(("tf_keras", "tensorflow")) or re.search('"(batch_input_shape|time_major)":', text):
        return _KERAS_2
    if module.startswith("keras") or '"batch_shape":' in text:
        return _KERAS_3
    raise architecture.source.refuse(
        "", expected='"keras_version": "2.…" or "3.…" (hard_sigmoid differs between them)', found="no version"
    )


# ---------------------------------------------------------------------------------------- tensors as stored


def _by_layer(source: Source, root: Group) -> Iterator[tuple[str, Dataset]]:
    """Yield the weights of a file with `layer_names`, in its order."""
    for layer in names_of(source, root, "layer_names"):
        group = root.group(layer)
        for name in names_of(source, group, "weight_names") if group is not None else ():
            dataset = group.dataset(name) if group is not None else None
            if dataset is None:
                raise source.refuse(
                    f"/{layer}/{name}",
                    expected="a dataset of weight_names",
                    found="none",
                    remedy=REMEDIES["damaged"],
                )
            yield f"{layer}/{name}", dataset


def _tree(source: Source, root: Group) -> list[tuple[str, Dataset]]:
    """Return the variables of a file that mirrors the object tree: datasets called vars/0, vars/1, …"""
    found: list[tuple[str, Dataset]] = []
    visited = 0
    open_groups = [("", root, 0)]
    while open_groups:
        path, group, depth = open_groups.pop()
        children = []
        for name in sorted(group.names, key=_natural):
            visited += 1
            if visited > LIMITS.tensors or depth > LIMITS.nesting:
                raise source.refuse(
                    group.name,
                    expected=f"at most {LIMITS.tensors} objects, {LIMITS.nesting} levels deep",
                    found="more",
                    remedy=REMEDIES["bomb"],
                )
            if name in _OF_TRAINING:
                continue
            child = group.get(name)
            if isinstance(child, Group):
                children.append((f"{path}{name}/", child, depth + 1))
            elif child is not None:
                found.append((path + name, child))
        open_groups += reversed(children)
    if not found or not all(re.search(r"(^|/)vars/\d+$", name) for name, _ in found):
        remedy = "export_keras" if "model_weights" in root or "model_config" in root.attrs else "unknown"
        raise source.refuse(
            "",
            expected="a Keras model, or weights of save_weights",
            found="no readable model_config" if remedy == "export_keras" else "an HDF5 file of something else",
            remedy=REMEDIES[remedy],
        )
    return found


def _natural(name: str) -> list[Any]:
    """Sort gru_10 after gru_2."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name[:64])]


def _bounded(source: Source, stored: Any) -> Iterator[tuple[str, Dataset]]:
    """Yield each dataset while all of them together are no larger than the file that holds them."""
    left, names = len(source), set[str]()
    for name, dataset in stored:
        kind = dataset.dtype()
        width = 2 if kind in ("bfloat16", "opaque2") else np.dtype(kind).itemsize
        left -= math.prod(dataset.shape) * width
        if left < 0 or name in names or len(names) >= LIMITS.tensors:
            raise source.refuse(
                dataset.name,
                expected=f"tensors of {len(source)} bytes together, each stored once",
                found="more",
                remedy=REMEDIES["bomb"],
            )
        names.add(name)
        yield name, dataset
