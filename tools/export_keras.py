"""Export a Keras model for fastgru, where its framework lives. Needs Keras or tf-keras; fastgru is not needed.

    python export_keras.py SRC DST.safetensors [--custom FILE.py] [--keras keras|tf_keras]

SRC is a .keras or .h5 model, or a SavedModel folder that Keras 2 wrote (--keras tf_keras). DST holds its config and
weights in fastgru's own format: `fastgru.load(DST)`.

--custom names a file of yours whose classes and functions the model uses; it is run. A class derived from one of
Keras' own becomes that one, and Dense and Embedding layers that were quantised get their weights back. What was
exported is then rebuilt from Keras' own classes and compared with the model: if it computes something else, nothing is
written.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import json
import os
import struct
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

STOCK = "keras", "tf_keras", "tensorflow"
WEIGHTS = "kernel recurrent_kernel bias embeddings gamma beta moving_mean moving_variance alpha".split()


class CannotExport(Exception):
    """A model that fastgru's format can't hold; the message says what to do."""


def stock(layer: Any) -> type:
    """Return the nearest class of a layer that is Keras' own."""
    kind = next(cls for cls in type(layer).__mro__ if cls.__module__.split(".")[0] in STOCK)
    if kind.__name__ in ("Layer", "Model", "Operation"):
        raise CannotExport(
            f"layer {layer.name!r} has the class {type(layer).__name__}, whose code only Keras can run: build the "
            "model from Keras' own layers (Sequential or functional) with these weights, and export that"
        )
    return kind


def members(layer: Any) -> Iterator[tuple[str, Any]]:
    """Yield the layers inside one, by the path that fastgru files their weights under."""
    kind = stock(layer).__name__
    if kind in ("Sequential", "Functional"):
        yield from ((inner.name, inner) for inner in layer.layers)
    elif kind == "Bidirectional":
        yield from (("forward_layer", layer.forward_layer), ("backward_layer", layer.backward_layer))
    elif kind == "TimeDistributed":
        yield "layer", layer.layer
    elif kind == "RNN":
        yield "cell", layer.cell
    elif kind == "StackedRNNCells":
        yield from ((f"cells_{i}", cell) for i, cell in enumerate(layer.cells))
    elif kind == "GRU":
        yield "", layer.cell


def weights(layer: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (key, layer, attribute) of every weight."""
    inner = list(members(layer))
    for name, part in inner:
        yield from weights(part, "/".join(filter(None, [path, name])))
    if not inner:
        for name in WEIGHTS:
            if hasattr(getattr(layer, name, None), "assign") or (
                getattr(layer, "_is_quantized", False) and name in ("kernel", "embeddings") and hasattr(layer, name)
            ):
                yield f"{path}/{name}", layer, name


def values(layer: Any, name: str) -> np.ndarray:
    """Return a weight; a quantised one as the layer itself applies it, to the identity."""
    if not getattr(layer, "_is_quantized", False) or name == "bias":
        value = np.asarray(getattr(layer, name))
        return value.astype(np.float32) if value.dtype.name == "bfloat16" else value
    print(f"dequantised: {layer.name}.{name}")
    if name == "embeddings":
        return np.asarray(layer(np.arange(layer.input_dim)), np.float32)
    activation, layer.activation = layer.activation, None
    width = layer.input_spec.axes[-1]
    y = np.asarray(layer(np.concatenate([np.eye(width), np.zeros((1, width))]).astype(np.float32)), np.float32)
    layer.activation = activation
    return y[:-1] - y[-1:]


def plain(entry: Any, layers: dict[str, Any]) -> Any:
    """Return a config with Keras' own classes in place of derived ones, and without quantisation."""
    if isinstance(entry, list):
        return [plain(item, layers) for item in entry]
    if not isinstance(entry, dict):
        return entry
    if entry.get("class_name") == "QuantizedDTypePolicy":
        return entry["config"]["source_name"]
    made = {key: plain(value, layers) for key, value in entry.items() if key != "quantization_config"}
    config = made.get("config")
    layer = layers.get(config.get("name", "")) if isinstance(config, dict) and "class_name" in made else None
    if layer is not None and made["class_name"].split(">")[-1] == type(layer).__name__:
        base = stock(layer)
        if base is not type(layer):
            print(f"class: {layer.name!r} is a {type(layer).__name__}, exported as {base.__name__}")
            known = base.get_config(layer)
            made["config"] = {key: value for key, value in config.items() if key in known}
            made |= {"class_name": base.__name__, "registered_name": None}
            if "module" in made:
                made["module"] = "keras.layers"
    return made


def every(layer: Any) -> Iterator[Any]:
    yield layer
    for _, inner in members(layer):
        yield from every(inner)


def write(path: str, tensors: dict[str, np.ndarray], config: Any, version: str) -> None:
    """Write fastgru's format: safetensors with the config and a checksum; whole or not at all."""
    names = {"<f8": "F64", "<f4": "F32", "<f2": "F16", "<i8": "I64", "<i4": "I32"}
    header, chunks, at = {}, [], 0
    for name, value in sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])):
        data = np.ascontiguousarray(value, value.dtype.newbyteorder("<")).tobytes()
        kind = names[value.dtype.newbyteorder("<").str]
        header[name] = {"dtype": kind, "shape": list(value.shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
        chunks.append(data)
    about = {"config": json.dumps(config), "source_version": version, "format": "fastgru"}
    head = json.dumps({**header, "__metadata__": about}, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(head.encode("ascii"))
    for data in chunks:
        digest.update(data)
    about["fastgru.sha256"] = digest.hexdigest()
    text = json.dumps({"__metadata__": about, **header}, separators=(",", ":")).encode("ascii")
    text += b" " * (-(8 + len(text)) % 64)
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(struct.pack("<Q", len(text)) + text + b"".join(chunks))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def sample(model: Any) -> list[np.ndarray]:
    """Return random inputs; ids within every Embedding's range."""
    rng = np.random.default_rng(0)
    rows = min((layer.input_dim for layer in every(model) if stock(layer).__name__ == "Embedding"), default=2)
    made = []
    for end in model.inputs:
        shape = [end.shape[0] or 4, *(7 if n is None else n for n in end.shape[1:])]
        whole = "int" in str(end.dtype)
        made.append(rng.integers(0, rows, shape) if whole else rng.standard_normal(shape).astype(np.float32))
    return made


def export(source: str, target: str, custom: str | None, package: str) -> None:
    keras = importlib.import_module(package)
    objects = {}
    if custom:
        spec = importlib.util.spec_from_file_location("custom_objects", custom)
        module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
        spec.loader.exec_module(module)  # type: ignore[union-attr]
        objects = {key: value for key, value in vars(module).items() if callable(value)}
    model = keras.models.load_model(source, custom_objects=objects, compile=False)
    print(f"read: {model.name!r} with {keras.__name__} {keras.__version__}")
    entry = plain(json.loads(model.to_json()), {layer.name: layer for layer in every(model)})
    found = {key: values(layer, name) for key, layer, name in weights(model)}
    copy = keras.models.model_from_json(json.dumps(entry))
    left = dict(found)
    for key, layer, name in weights(copy):
        getattr(layer, name).assign(left.pop(key))
    if left:
        raise CannotExport(f"{source}: weights without a place in the rebuilt model: {', '.join(left)}")
    x = sample(model)
    ours, theirs = (m.predict(x if len(x) > 1 else x[0], verbose=0) for m in (copy, model))
    ours, theirs = (list(y.values()) if isinstance(y, dict) else y for y in (ours, theirs))
    ours, theirs = (y if isinstance(y, list) else [y] for y in (ours, theirs))
    error = max(float(np.max(np.abs(a - b), initial=0.0)) for a, b in zip(ours, theirs, strict=True))
    quantised = any(getattr(layer, "_is_quantized", False) for layer in every(model))
    print(f"checked: rebuilt from Keras' own classes, outputs differ by up to {error:.3g}")
    if quantised:
        print("note: Keras rounds the inputs of quantised layers too, fastgru does not")
    elif not error <= 1e-4 * max(1.0, *(float(np.max(np.abs(y), initial=0.0)) for y in theirs)):
        raise CannotExport(f"{source}: its own classes compute something else than the Keras classes they derive from")
    write(target, found, {"class_name": entry["class_name"], "config": entry["config"]}, keras.__version__)
    print(f"wrote: {target}, {len(found)} tensors")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SRC")
    parser.add_argument("target", metavar="DST.safetensors")
    parser.add_argument("--custom", metavar="FILE.py", help="your classes and functions that the model uses")
    parser.add_argument("--keras", choices=("keras", "tf_keras"), default="keras", help="which package reads SRC")
    arguments = parser.parse_args(argv)
    try:
        export(arguments.source, arguments.target, arguments.custom, arguments.keras)
    except (CannotExport, OSError, ValueError, TypeError) as error:
        print(f"export_keras: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
