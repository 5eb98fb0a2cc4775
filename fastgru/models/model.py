"""A graph of layers: predict, train, save, summary."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import formats
from ..formats import ModelFile
from ..graph import Graph, check_gradients, input_arrays, input_masks, learns, train, untrainable
from ..layers.base import NEWEST, Array, Layer, Shape
from ..layers.core import Input
from ..layers.training_step import Back, TrainingStep
from ..streaming import ModelStream
from ..training.progress import progress

if TYPE_CHECKING:
    from ..training.fit import Compiled, History
    from ..training.losses import Loss
    from ..training.metrics import Metric
    from ..training.optimizers import Optimizer

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
        self._compiled: Compiled | None = None
        #: Set during `fit`: it ends after this epoch.
        self.stop_training = False
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
        from .reading import read_model_file

        return read_model_file(file)

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
        config: dict[str, Any] = _trainable_now(self._entry["config"], self._layers)
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
        verbose: bool | int | str = 0,
        steps: int | None = None,
    ) -> Any:
        """Score ``x`` as ``keras.Model.predict`` does.

        Parameters
        ----------
        x
            An array (N, …); for several inputs a list in the file's order or a dict by input name. An input may be
            ragged: a list of arrays (T_i, …) of unequal length. Or what gives batches, as for `fit`.
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
            1 shows a progress bar.
        steps
            Batches to score, where ``x`` gives them, if not all.

        Returns
        -------
        float32 array for one output, a list of them in the file's order for several, a dict where
        the file declares one. Of ragged rows an output of steps is a list of arrays (T_i, …).

        Raises
        ------
        ValueError, TypeError
            For inputs of the wrong number, rank, width or dtype, and for ids out of range.
        """
        if not isinstance(x, np.ndarray) or x.dtype == object:
            from .feeding import predict

            found = predict(self, x, lengths, mask, batch_size, num_threads, verbose, steps)
            if found is not None:
                return found
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
        verbose: bool | int | str,
    ) -> list[Array]:
        results: list[Array] = []
        for low in progress(range(0, max(rows, 1), step), verbose):
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
        if not isinstance(step, TrainingStep):
            raise TypeError(f"step: expected a TrainingStep, found {type(step).__name__}")
        values, masks = self._inputs(x), self._masks(x, mask)
        whole = not untrainable(self.graph, True)
        outputs, shown, go_back = train(self.graph, values, masks, step, input_gradients=whole)
        shapes = [np.shape(y) for y in outputs]
        called = False

        def back(dy: Any) -> Any:
            nonlocal called
            if called:
                raise ValueError("back: expected one call, found a second; call train again for another way back")
            dys = [dy] if len(shapes) == 1 else dy
            check_gradients(dys, shapes)
            called = True
            dxs = go_back(list(dys))
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

    # -- training --------------------------------------------------------------------------

    def compile(
        self,
        optimizer: str | Optimizer = "rmsprop",
        loss: str | Loss | None = None,
        metrics: Sequence[str | Metric] = (),
    ) -> Model:
        """Say how `fit` trains: Keras' names, or objects of `fastgru.training`. Returns the model."""
        from .training import compiled

        self._compiled = compiled(optimizer, loss, metrics)
        return self

    @property
    def optimizer(self) -> Optimizer | None:
        """What `compile` was given."""
        return None if self._compiled is None else self._compiled.optimizer

    def fit(self, x: Any, y: Any = None, *more: Any, **options: Any) -> History:
        """Train on ``x`` and ``y``, or on batches: `fastgru.models.training.fit` says how; its options are Keras'."""
        from .training import fit

        return fit(self, x, y, *more, **options)

    def evaluate(self, x: Any, y: Any = None, *more: Any, **options: Any) -> Any:
        """[loss, metrics…] of ``x`` and ``y``, or a dict with ``return_dict=True``: see `fastgru.models.training`."""
        from .training import evaluate

        return evaluate(self, x, y, *more, **options)

    def train_on_batch(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        class_weight: Mapping[int, float] | None = None,
        return_dict: bool = False,
        *,
        seed: int = 0,
    ) -> Any:
        """One step on one batch. Returns loss and metrics of before it as `evaluate` does."""
        from .training import train_on_batch

        return train_on_batch(self, x, y, sample_weight, class_weight, return_dict, seed=seed)

    def test_on_batch(self, x: Any, y: Any = None, sample_weight: Any = None, return_dict: bool = False) -> Any:
        """Loss and metrics of one batch, as `evaluate` returns them."""
        from .training import test_on_batch

        return test_on_batch(self, x, y, sample_weight, return_dict)

    def reset_metrics(self) -> None:
        """Nothing: `train_on_batch` and `test_on_batch` measure each batch by itself, as Keras' do."""

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

        Raises
        ------
        ValueError
            For a name that promises another format (.keras, .h5, .onnx, .pt …), saying how to convert; if there are
            no weights yet, since the layers are built on the first data.
        """
        formats.check_suffix(path)
        if unbuilt := [name for name, layer in self._layers.items() if not layer.ready]:
            raise ValueError(f"layer {unbuilt[0]!r}: expected weights to save, found none; fit or predict makes them")
        self.write(path)

    def write(self, path: str | os.PathLike[str]) -> None:
        """`save` under any name."""
        entry = {"class_name": self.class_name(), "config": self.get_config()}
        version = self.version if self._entry is not None else ".".join(map(str, NEWEST.version))
        about = {"config": json.dumps(entry), "source_version": version}
        formats.write_safetensors(path, self.all_tensors(), about)

    def all_tensors(self) -> dict[str, Array]:
        """The weights by the names that files of ours use: layer names joined by '/'."""
        return {k: v for name, layer in self._layers.items() for k, v in layer.tensors(name).items()}

    def describe(self) -> str:
        return f"{len(self._layers)} layers"


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


def _trainable_now(config: Any, layers: Mapping[str, Layer]) -> Any:
    """A file's config of a model, with what training leaves alone now."""
    entries = config if isinstance(config, list) else config.get("layers", ())
    changed = []
    for entry in entries:
        inner = entry["config"]
        name = entry.get("name") if isinstance(inner, list) else inner.get("name") or entry.get("name")
        layer = layers.get(name)
        if isinstance(layer, Model):
            inner = _trainable_now(inner, layer._layers)
        if layer is None or not isinstance(inner, dict) or not (layer.weights or layer.parts()):
            pass  # an operation's config has no such key
        elif inner.get("trainable", True) is not layer.trainable:
            inner = {**inner, "trainable": layer.trainable}
        changed.append(entry if inner is entry["config"] else {**entry, "config": inner})
    if all(one is other for one, other in zip(changed, entries, strict=True)):
        return config
    return changed if isinstance(config, list) else {**config, "layers": changed}


def _result(y: Any, inputs: list[Array]) -> Array:
    """float32, never the caller's own array."""
    if any(y is v or y.base is not None for v in inputs):
        return np.array(y, np.float32)
    return np.asarray(y, np.float32)
