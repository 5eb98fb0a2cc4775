"""Sequential and Model: what Keras calls a model, scored by `predict`."""

from __future__ import annotations

import json
import mmap
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from . import formats
from .formats import FormatError, ModelFile
from .graph import Graph, GraphReader, chain, input_arrays, input_masks, learns, read_onnx_graph, train, untrainable
from .layers.base import NEWEST, Array, Dialect, Layer, Shape
from .layers.core import Input
from .layers.ignored import ignored
from .layers.onnx_input import OnnxInput, onnx_inputs
from .layers.reader import Reader
from .layers.training_step import Back, TrainingStep
from .streaming import ModelStream

#: Rows of a chunk when the caller names no batch size: enough work for the kernels, bounded memory.
_CHUNK_ROWS, _CHUNK_ELEMENTS = 1024, 1 << 20


class Model(Layer):
    """A graph of layers with one or several inputs and outputs.

    Made by `fastgru.load`; `Sequential` can also be made by hand. `predict` is safe to call from
    several Python threads.
    """

    call_arguments = ("training", "mask")

    def __init__(
        self,
        graph: Graph,
        layers: Mapping[str, Layer],
        inputs: Sequence[Input],
        output_names: Sequence[str],
        output_keys: Sequence[str] | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        self.graph = graph
        self._layers = dict(layers)
        self.inputs = tuple(inputs)
        self.output_names = tuple(output_names)
        self._output_keys = None if output_keys is None else tuple(output_keys)
        self._entry: dict[str, Any] | None = None
        self._one_batch: bool | None = None
        #: Where the model came from; empty for one made by hand.
        self.format = ""
        self.version = ""
        self.notes: tuple[str, ...] = ()

    # -- made from a file ------------------------------------------------------------------

    @staticmethod
    def from_model_file(file: ModelFile) -> Model:
        """The model that a Keras or ONNX file, or one of our own, holds.

        Raises
        ------
        FormatError
            For a layer that is not supported, missing or contradictory weights.
        """
        if file.config is None:
            raise FormatError(f"{file.path}: expected a model with a config, found only tensors")
        if file.config.get("class_name") == OnnxModel.CLASS:
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

    # -- layers and weights ----------------------------------------------------------------

    @property
    def layers(self) -> list[Layer]:
        """The layers, in the order of the config."""
        return list(self._layers.values())

    def get_layer(self, name: str) -> Layer:
        """The layer with this name."""
        if name not in self._layers:
            raise ValueError(f"get_layer: expected one of {list(self._layers)}, found {name!r}")
        return self._layers[name]

    def parts(self) -> dict[str, Layer]:
        return self._layers

    def build(self, shape: Shape, rng: np.random.Generator) -> None:
        self.ready = True  # each layer draws its weights when its first input arrives

    def get_config(self) -> dict[str, Any]:
        if self._entry is None:
            raise ValueError(f"model {self.name!r}: a model without a config cannot be saved")
        config: dict[str, Any] = self._entry["config"]
        return config

    def class_name(self) -> str:
        return "Functional" if self._entry is None else str(self._entry["class_name"])

    def output_count(self) -> int:
        return len(self.graph.outputs)

    # -- scoring ---------------------------------------------------------------------------

    def predict(
        self,
        x: Any,
        lengths: Any = None,
        mask: Any = None,
        batch_size: int | None = None,
        num_threads: int | None = None,
        verbose: bool | int = 0,
    ) -> Any:
        """Score ``x`` as ``keras.Model.predict`` does.

        Parameters
        ----------
        x
            An array (N, …); for several inputs a list in the file's order or a dict by input name.
        lengths
            (N,) valid steps of each row, 0 … T: the rest is padding on the right. For several
            inputs a list or dict like ``x``, None where an input has none.
        mask
            (N, T), True at valid steps. At most one of ``lengths`` and ``mask``. As in Keras, a
            Masking layer or an Embedding with mask_zero replaces it, and a GRU of a Keras 3 file
            that is called with an initial state runs without it.
        batch_size
            Rows scored at once. It bounds memory and does not change results; by default chosen.
        num_threads
            Threads for this call.
        verbose
            Show a progress bar.

        Returns
        -------
        float32 array for one output, a list of them in the file's order for several, a dict where
        the file declares one.

        Raises
        ------
        ValueError, TypeError
            For inputs of the wrong number, rank, width or dtype, and for ids out of range.
        """
        inputs = self._inputs(x)
        rows = inputs[0].shape[0]
        masks = [None] * len(inputs)
        if lengths is not None or mask is not None:
            masks = input_masks(inputs, lengths, mask, self.inputs)
        step = self._rows_at_once(inputs, batch_size)
        if rows <= step and not verbose:
            outputs = self.graph.run(inputs, masks, num_threads)[0]
            return self._finish([_result(y, inputs) for y in outputs])
        return self._finish(self._in_chunks(inputs, masks, rows, step, num_threads, verbose))

    def stream(self, batch_size: int = 1, *, num_threads: int | None = None) -> ModelStream:
        """A stream of single time steps for ``batch_size`` sequences, from zero states.

        For chains of layers that need no later step: each ``stream.step(x_t)`` returns what `predict` gives for the
        sequence so far. Raises ValueError naming the layer that makes it impossible.
        """
        return ModelStream(self.graph, batch_size, num_threads)

    def _in_chunks(
        self,
        inputs: list[Array],
        masks: list[Any],
        rows: int,
        step: int,
        num_threads: int | None,
        verbose: bool | int,
    ) -> list[Array]:
        results: list[Array] = []
        for low in _progress(range(0, max(rows, 1), step), verbose):
            part = slice(low, min(low + step, rows))
            outputs, _ = self.graph.run(
                [v[part] for v in inputs],
                [None if m is None else m[part] for m in masks],
                num_threads,
            )
            if not results:
                if step >= rows:
                    return [_result(y, inputs) for y in outputs]
                results = [np.empty((rows, *y.shape[1:]), np.float32) for y in outputs]
            for result, y in zip(results, outputs, strict=True):
                if y.shape[0] != part.stop - part.start:
                    raise ValueError(
                        f"predict: expected outputs of {part.stop - part.start} rows, found "
                        f"{y.shape}; the model mixes rows, score it in one batch with batch_size"
                    )
                result[part] = y
        return results

    def _finish(self, outputs: list[Array]) -> Any:
        if self._output_keys is not None:
            return dict(zip(self._output_keys, outputs, strict=True))
        return outputs[0] if len(outputs) == 1 else outputs

    def _rows_at_once(self, inputs: list[Array], batch_size: int | None) -> int:
        if batch_size is not None:
            if batch_size < 1:
                raise ValueError(f"batch_size: expected at least 1, found {batch_size}")
            return int(batch_size)
        if self.one_batch:
            return max(1, len(inputs[0]))
        size: int = max(1, *(v.size // max(1, len(v)) for v in inputs))
        return min(_CHUNK_ROWS, max(64, _CHUNK_ELEMENTS // size))

    @property
    def stateful(self) -> bool:
        """Whether a layer keeps its state from one call to the next."""
        return any(getattr(layer, "stateful", False) for layer in walk(self))

    @property
    def one_batch(self) -> bool:
        """Whether rows cannot be scored in parts: stateful layers, or time on the first axis."""
        if self._one_batch is None:
            layers = list(walk(self))
            self._one_batch = self.stateful or any(getattr(v, "time_major", False) for v in layers)
        return self._one_batch

    # -- inputs ----------------------------------------------------------------------------

    def _inputs(self, x: Any) -> list[Array]:
        """One checked array per input."""
        return input_arrays(x, self.inputs)

    def forward(self, x: Any, mask: Any, num_threads: int | None, initial_state: Any = None) -> tuple[Any, Any]:
        """As a layer of another model: outputs in the order of the config, with their masks."""
        outputs, shown = self.graph.run(self._inputs(x), self._masks(x, mask), num_threads)
        return (outputs[0], shown[0]) if len(outputs) == 1 else (outputs, shown)

    def learns(self) -> bool:
        """Whether any layer has weights that get gradients."""
        return learns(self.graph)

    def untrainable(self, through: bool = False) -> str:
        """Why the model cannot be trained, naming the layer; empty where it can."""
        return untrainable(self.graph, through)

    def train(self, x: Any, mask: Any, step: TrainingStep, initial_state: Any = None) -> tuple[Any, Any, Back]:
        """`forward` as in training, and the way back: see `Layer.train`.

        ``back`` returns the gradients of the inputs in the structure of ``x``: None for those that have none, or that
        are not reached because a layer before the first weights has no way back.
        """
        values, masks = self._inputs(x), self._masks(x, mask)
        whole = not untrainable(self.graph, True)
        outputs, shown, go_back = train(self.graph, values, masks, step, input_gradients=whole)

        def back(dy: Any) -> Any:
            dxs = go_back(dy if len(outputs) > 1 else [dy])
            dxs = [None if d is None else d.reshape(np.shape(v)) for d, v in zip(dxs, self._given(x), strict=True)]
            if isinstance(x, Mapping):
                return dict(zip([end.name for end in self.inputs], dxs, strict=True))
            return dxs if isinstance(x, (list, tuple)) else dxs[0]

        return (*((outputs[0], shown[0]) if len(outputs) == 1 else (outputs, shown)), back)

    def _given(self, x: Any) -> list[Any]:
        """What ``x`` holds for each input."""
        if isinstance(x, Mapping):
            return [x[end.name] for end in self.inputs]
        return list(x) if isinstance(x, (list, tuple)) else [x]

    def _masks(self, x: Any, mask: Any) -> list[Any]:
        """One mask, or None, for each input."""
        if isinstance(x, Mapping) and isinstance(mask, Mapping):
            return [mask[end.name] for end in self.inputs]
        return list(mask) if isinstance(mask, (list, tuple)) else [mask] * len(self.inputs)

    def __call__(
        self,
        x: Any,
        mask: Any = None,
        *,
        initial_state: Any = None,
        num_threads: int | None = None,
    ) -> Any:
        """As `predict`, in one batch."""
        return self.predict(x, mask=mask, batch_size=1 << 62, num_threads=num_threads)

    # -- what it is ------------------------------------------------------------------------

    def summary(self, print_fn: Callable[[str], Any] = print) -> None:
        """Print the layers, what varies in them, and their parameters."""
        rows = [("Layer", "Class", "What", "Parameters")]
        for depth, layer in _indented(self):
            name = "  " * depth + layer.name
            rows.append((name, layer.class_name(), layer.describe(), f"{layer.count_params():,}"))
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        print_fn(f"{self.class_name()} {self.name!r}")
        for row in rows:
            cells = [cell.ljust(w) for cell, w in zip(row[:3], widths, strict=False)]
            print_fn("  ".join([*cells, row[3].rjust(widths[3])]).rstrip())
        print_fn(f"Parameters: {self.count_params():,}")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write config and weights to one safetensors file, which `fastgru.load` reads.

        The file is complete or not there: it is written beside ``path``, synced, then renamed.
        """
        entry = {"class_name": self.class_name(), "config": self.get_config()}
        version = self.version if self._entry is not None else ".".join(map(str, NEWEST.version))
        about = {"config": json.dumps(entry), "source_version": version}
        formats.write_safetensors(path, self.all_tensors(), about)

    def all_tensors(self) -> dict[str, Array]:
        """The weights by the names that files of ours use: layer names joined by '/'."""
        return {k: v for name, layer in self._layers.items() for k, v in layer.tensors(name).items()}

    def describe(self) -> str:
        return f"{len(self._layers)} layers"


class Sequential(Model):
    """Layers one after the other.

    Parameters
    ----------
    layers
        Layers, or `layers.Input` first to say the shape. More come by `add`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastgru import layers
    >>> model = Sequential([layers.GRU(8, return_sequences=True), layers.Dense(1)])
    >>> model.predict(np.zeros((2, 5, 3))).shape
    (2, 5, 1)
    """

    def __init__(self, layers: Sequence[Layer] = (), name: str | None = None) -> None:
        super().__init__(chain([]), {}, [Input(name="input")], ["input"], None, name or "sequential")
        for layer in layers:
            self.add(layer)

    def add(self, layer: Layer) -> None:
        """Append a layer; one without a name gets its class's, numbered."""
        if not isinstance(layer, Layer):
            raise TypeError(f"add: expected a layer, found {type(layer).__name__}")
        if isinstance(layer, Input):
            if self._layers:
                raise ValueError("add: expected Input as the first layer")
            layer.name = layer.name or "input"
            self.inputs = (layer,)
            return
        base = _snake_case(layer.class_name())
        if not layer.name:
            taken = sum(1 for known in self._layers if re.fullmatch(rf"{base}(_\d+)?", known))
            layer.name = f"{base}_{taken}" if taken else base
        if layer.name in self._layers:
            raise ValueError(f"add: expected layer names that differ, found {layer.name!r} twice")
        self._layers[layer.name] = layer
        self.graph = chain(list(self._layers.values()))
        self.output_names = (layer.name,)
        self.inputs[0].exact = True
        self._one_batch = None

    def get_config(self) -> dict[str, Any]:
        entries = [
            {"class_name": layer.class_name(), "config": {**layer.get_config(), **_frozen(layer)}}
            for layer in [self.inputs[0], *self._layers.values()]
            if not (isinstance(layer, Input) and layer.shape is None)
        ]
        return {"name": self.name, "layers": entries} if self._entry is None else super().get_config()

    def class_name(self) -> str:
        return "Sequential"


class OnnxModel(Model):
    """The graph of an ONNX file. Always run whole: no axis is known to be the batch."""

    CLASS = "OnnxGraph"
    _ends: tuple[OnnxInput, ...] = ()
    _tensors: dict[str, Array] = {}

    @classmethod
    def from_onnx(cls, file: ModelFile) -> OnnxModel:
        """The model that an ONNX file, or one of our own made from it, holds."""
        config = (file.config or {}).get("config")
        if not isinstance(config, Mapping):
            raise FormatError(f"{file.path}: expected the config of an ONNX graph, found {str(config)[:80]}")
        read = read_onnx_graph(config, file.tensors, file.path)
        model = cls(read.graph, read.layers, read.inputs, read.output_names, name=str(config.get("name") or "onnx"))
        model._ends = read.inputs
        model._tensors = dict(file.tensors)
        model._entry = {"class_name": cls.CLASS, "config": config}
        model.format, model.version, model.notes = file.format, file.version, file.notes
        model._one_batch = model.ready = True
        return model

    def predict(
        self,
        x: Any,
        lengths: Any = None,
        mask: Any = None,
        batch_size: int | None = None,
        num_threads: int | None = None,
        verbose: bool | int = 0,
    ) -> Any:
        """Run the graph on ``x``: an array, a list in the file's order, or a dict by input name.

        Returns one array, or a list of them in the file's order: floats as float32, whole numbers and booleans as
        they are. ``batch_size`` is not used. Graphs that know padding take it as an input of their own, so
        ``lengths`` and ``mask`` raise ValueError.
        """
        if lengths is not None or mask is not None:
            raise ValueError(f"lengths, mask: expected None; an ONNX graph takes what its inputs are: {self._names()}")
        inputs = onnx_inputs(x, self._ends)
        outputs, _ = self.graph.run(inputs, [None] * len(inputs), num_threads)
        return self._finish([_own(y, [*inputs, *outputs[:i]]) for i, y in enumerate(outputs)])

    def _names(self) -> list[str]:
        return [end.name for end in self.inputs]

    def all_tensors(self) -> dict[str, Array]:
        return self._tensors

    def count_params(self) -> int:
        """The number of floats among the file's constants."""
        return sum(int(v.size) for v in self._tensors.values() if v.dtype.kind == "f")


def _frozen(layer: Layer) -> dict[str, Any]:
    """What a config says of a layer that training leaves alone."""
    return {} if layer.trainable else {"trainable": False}


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


def walk(model: Model) -> Iterator[Layer]:
    """Every layer of a model, those inside others included."""
    stack: list[Layer] = list(model.layers)
    while stack:
        layer = stack.pop()
        yield layer
        stack += layer.parts().values()


def _indented(model: Model, depth: int = 0) -> Iterator[tuple[int, Layer]]:
    for layer in model.layers:
        yield depth, layer
        if isinstance(layer, Model):
            yield from _indented(layer, depth + 1)


def _mapping(file: ModelFile) -> mmap.mmap | None:
    """The memory map that the tensors of a file view, if they do."""
    for tensor in file.tensors.values():
        base: Any = tensor
        while base is not None:
            if isinstance(base, mmap.mmap):
                return base
            base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
    return None


def _result(y: Any, inputs: list[Array]) -> Array:
    """float32, never the caller's own array."""
    if any(y is v or y.base is not None for v in inputs):
        return np.array(y, np.float32)
    return np.asarray(y, np.float32)


def _own(y: Array, others: list[Array]) -> Array:
    """An array that shares memory with nothing else, and can be written to."""
    shared = not (y.flags.writeable and y.flags.c_contiguous) or any(np.may_share_memory(y, v) for v in others)
    return np.array(y, order="C") if shared else y


def _progress(steps: range, verbose: bool | int) -> Any:
    if not verbose:
        return steps
    from tqdm import tqdm

    return tqdm(steps, unit="batch")


def _snake_case(name: str) -> str:
    name = re.sub(r"(.)([A-Z][a-z0-9]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
