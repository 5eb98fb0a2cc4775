"""`.keras` archives and `.weights.h5` files as Keras 3 writes them; needs h5py.

The weights lie in groups that mirror the object tree, a list's members numbered per class: the layout that `keras.py`
reads. (Keras: src/saving/saving_lib.py, `_save_state`.)
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .keras import snake_case
from .keras_plan import LayerPlan, plan_model
from .model_file import Tensor
from .replacing import replacing
from .untrusted import FormatError, Source

__all__ = ["KERAS_VERSION", "write_keras", "write_weights_h5"]

#: Whose spelling this is: what the config means is decided by it.
KERAS_VERSION = "3.15.1"
_DATE = (1980, 1, 1, 0, 0, 0)  # zip's zero: the same model gives the same bytes


def write_keras(path: str | os.PathLike[str], config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a whole model that `keras.models.load_model` reads. Either the whole file, or nothing.

    Parameters
    ----------
    path : str or path-like
        The target; replaced if it exists.
    config : mapping
        {"module", "class_name", "config", "registered_name"} in Keras 3's spelling.
    tensors : mapping of str to ndarray
        By the names in the config, as `ModelFile.tensors` has them.

    Raises
    ------
    FormatError
        If tensors and config do not fit each other, or h5py is not installed.
    """
    name = os.fspath(path)
    weights = _weights(name, config, tensors)
    # "compile_config": None is what Keras writes for a model that was never compiled
    entry = {**config, "compile_config": None}
    members = {
        "metadata.json": json.dumps({"keras_version": KERAS_VERSION}).encode(),
        "config.json": json.dumps(entry).encode(),
        "model.weights.h5": weights,
    }
    with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for member, data in members.items():
            archive.writestr(zipfile.ZipInfo(member, _DATE), data)


def write_weights_h5(path: str | os.PathLike[str], config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write what `model.load_weights` reads into a model of this config; arguments and errors as in `write_keras`."""
    weights = _weights(os.fspath(path), config, tensors)
    with replacing(path) as file:
        file.write(weights)


def _weights(name: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """The bytes of the HDF5 file."""
    try:
        import h5py
    except ImportError as error:
        raise FormatError(f"{name}: writing Keras files needs h5py: pip install 'fastgru[keras]'") from error
    source = Source(name, b"")
    plan = plan_model(source, "config.json", config)
    variables = list(_groups(plan, ""))
    expected = [key for _, _, keys in variables for key in keys]
    if sorted(expected) != sorted(tensors):
        differ = sorted(set(expected) ^ set(tensors)) or sorted(k for k in tensors if expected.count(k) != 1)
        found = f"a difference in {', '.join(differ[:4])}"
        raise source.refuse("", expected="a tensor for each variable of the config", found=found)
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for group, label, keys in variables:
            made = file.create_group(f"{group}/vars" if group else "vars")
            made.attrs["name"] = label
            for i, key in enumerate(keys):
                made.create_dataset(str(i), data=np.ascontiguousarray(tensors[key]), track_times=False)
    return buffer.getvalue()


def _groups(plan: LayerPlan, path: str) -> Iterator[tuple[str, str, list[str]]]:
    """(group, name of the layer, keys of its variables) of a layer and those inside it, as Keras walks them."""
    yield path, plan.name or str(plan.config.get("name", "")), [variable.key for variable in plan.own]
    lead = f"{path}/" if path else ""
    if not plan.container:
        for child in plan.children:
            yield from _groups(child, f"{lead}{child.slot}")
        return
    used: dict[str, int] = {}
    for child in plan.children:
        if child.operation:
            continue
        name = snake_case(child.class_name)
        count = used.get(name, 0)
        used[name] = count + 1
        yield from _groups(child, f"{lead}{plan.container}/{name}" + (f"_{count}" if count else ""))
