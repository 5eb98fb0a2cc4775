"""A file's config and tensors → a model."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from typing import Any

from ..formats import FormatError, ModelFile
from ..graph import GraphReader
from ..layers.base import Dialect
from ..layers.core import Input
from ..layers.ignored import ignored
from ..layers.reader import Reader
from .model import Model
from .sequential import Sequential


def read_model_file(file: ModelFile) -> Model:
    """`Model.from_model_file`."""
    if file.config is None:
        raise FormatError(f"{file.path}: expected a model with a config, found only tensors")
    if file.config.get("class_name") == "OnnxGraph":
        from .onnx import OnnxModel  # a hundred operators that only these files need

        return OnnxModel.from_onnx(file)
    reader = Reader(Dialect.of(file.version), file.path, _read_model)
    try:
        model = reader.layer(file.config)
    except RecursionError as error:
        raise FormatError(f"{file.path}: expected a config of usual depth, found endless nesting") from error
    if not isinstance(model, Model):
        raise FormatError(
            f"{file.path}: expected a Sequential or Functional model, found {file.config.get('class_name')!r}"
        )
    mapped = _mapping(file)
    for name, layer in model._layers.items():
        layer.load(file.tensors, name, file.path)
        if mapped is not None and hasattr(mapped, "madvise"):
            # The packed weights are what scoring reads: the file's pages may leave memory,
            # and come back by themselves when somebody asks for the weights.
            mapped.madvise(mmap.MADV_DONTNEED)
    model.ready = True
    model._entry = {key: file.config[key] for key in ("class_name", "config")}
    model.format, model.version = file.format, file.version
    model.notes = (*file.notes, *(n for n in ignored(file.config["config"]) if n not in file.notes))
    return model


def _read_model(entry: Mapping[str, Any], reader: Reader) -> Model:
    """The (perhaps nested) model of one config entry."""
    config = entry["config"]
    if isinstance(config, list):  # Keras ≤ 2.1
        config = {"name": entry.get("name"), "layers": config}
    name = str(config.get("name") or entry.get("name") or "model")
    if entry["class_name"] == "Sequential":
        model: Model = _read_sequential(config, name, reader)
    else:
        read = GraphReader(config, name, reader).read()
        model = Model(read.graph, read.layers, read.inputs, read.output_names, read.output_keys, name)
    model._entry = {"class_name": entry["class_name"], "config": entry["config"]}
    return model


def _read_sequential(config: Mapping[str, Any], name: str, reader: Reader) -> Sequential:
    entries = config.get("layers")
    if not isinstance(entries, list) or not entries:
        raise FormatError(f"{reader.path}: model {name!r}: expected a list of layers, found none")
    model = Sequential(name=name)
    for entry in entries:
        layer = reader.layer(entry)
        if not layer.name:
            layer.name = str(entry.get("name") or "")
        try:
            model.add(layer)
        except ValueError as error:
            raise FormatError(f"{reader.path}: model {name!r}: {error}") from error
        shape = entry["config"].get("batch_input_shape") if len(model._layers) == 1 else None
        if shape and model.inputs[0].shape is None and not isinstance(entry["config"], list):
            # Keras 2 Sequentials carry the input's shape in their first layer. The dtype there
            # is the layer's, not the input's.
            model.inputs = (Input(shape[1:], "float32", "input"),)
            model.inputs[0].exact = True
    return model


def _mapping(file: ModelFile) -> mmap.mmap | None:
    """The memory map that the tensors of a file view, if they do."""
    for tensor in file.tensors.values():
        base: Any = tensor
        while base is not None:
            if isinstance(base, mmap.mmap):
                return base
            base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
    return None
