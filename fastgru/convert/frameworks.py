"""The frameworks themselves, where they are installed: each is imported by the function that runs it, and nowhere else.

The target's framework must load the target and agree. The source's framework runs the source only if the file names
nothing but Keras' own modules, since its loader imports what a file names; what it can't load is said, and no error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .. import nn
from ..formats import ModelFile
from ..layers.base import Array, Dialect
from ..models import Model
from .cases import Case, cases, gru_cases, score
from .condition import moved
from .keras_names import foreign_names, narrow_policies
from .report import Comparison, FrameworkRun, Mismatch, Report, in_words
from .to_keras import batch_sizes
from .to_pytorch import Module, modules

__all__ = ["Torch", "check_source", "check_target", "rows_of"]

MISSING = "not installed"
_SAFE_TORCH = (2, 10)  # CVE-2025-32434, CVE-2026-24747
Predict = Callable[[list[Array]], list[Array]]
Loaded = tuple[str, Predict]
Source = Model | nn.GRU | nn.GRUCell


class Torch:
    """PyTorch's modules with the tensors of a file that was written."""

    def __init__(self, torch: Any, tensors: Mapping[str, Any], run: FrameworkRun) -> None:
        self._torch = torch
        self._tensors = tensors
        self._run = run

    @classmethod
    def load(cls, copy: ModelFile, report: Report) -> Torch | None:
        """torch.load of the file where it is a zip; None, and a line in the report, where PyTorch is missing."""
        run = FrameworkRun("PyTorch", "target")
        report.frameworks.append(run)
        try:
            import torch
        except ImportError:
            run.status = MISSING
            return None
        run.version = str(torch.__version__)
        if copy.format == "pytorch-zip":
            tensors = torch.load(copy.path, map_location="cpu", weights_only=True)
        else:
            tensors = {name: torch.from_numpy(np.array(value)) for name, value in copy.tensors.items()}
        return cls(torch, tensors, run)

    def module(self, part: Module) -> Callable[..., Any]:
        """The module, strictly loaded, on NumPy arrays."""
        torch = self._torch
        module = getattr(torch.nn, part.kind)(**part.arguments)
        lead = f"{part.name}." if part.name else ""
        own = {name: self._tensors[lead + name].to(torch.float32) for name in part.tensors}
        module.load_state_dict(own, strict=True)
        module.eval()

        def run(x: Array, h0: Array | None = None) -> Any:
            given = torch.from_numpy(np.ascontiguousarray(x))
            if part.kind == "Embedding":
                given = given.to(torch.int64)
            with torch.no_grad():
                y = module(given) if h0 is None else module(given, torch.from_numpy(np.ascontiguousarray(h0)))
            return tuple(v.numpy() for v in y) if isinstance(y, tuple) else y.numpy()

        return run

    def done(self, comparison: Comparison) -> None:
        """Put the largest error into the report."""
        self._run.max_error, self._run.scale = comparison.max_error, comparison.scale


def rows_of(model: Model) -> int | None:
    """The number of rows that the source's config fixes; None where it is free."""
    return next((size for size in batch_sizes(model).values() if size), None)


def check_target(
    kind: str, path: str, config: Mapping[str, Any] | None, model: Source, made: list[Case], report: Report
) -> None:
    """Run the target's framework on the target; the model's own scores are what it must give.

    Raises
    ------
    Mismatch
        If the framework can't load the target, or gives something else.
    """
    loaders: dict[str, tuple[str, Callable[[], Loaded]]] = {
        "keras": ("Keras", lambda: _keras(path)),
        "keras-weights": ("Keras", lambda: _keras_weights(path, config)),
        "onnx": ("ONNX Runtime", lambda: _onnxruntime(path)),
    }
    if kind not in loaders:
        return
    name, load = loaders[kind]
    run = FrameworkRun(name, "target")
    report.frameworks.append(run)
    try:
        errors = _compare(run, load, model, made)
    except Exception as failure:  # whatever a framework raises means that the target is no file of its own
        run.status = f"failed: {_first_line(failure)}"
        raise Mismatch(f"{report.target}: {name} can't run it: {_first_line(failure)}", report) from failure
    narrow = narrow_policies(config if config is not None else model._entry if isinstance(model, Model) else None)
    if errors and narrow and kind != "onnx":
        run.status = f"run in {narrow}, here in float32: not judged"
    else:
        _judge(run, errors, model, made, report)


def check_source(file: ModelFile, model: Source | ModelFile, report: Report) -> None:
    """Run the source's framework on the source, and hold our reading of it against that."""
    if file.format in ("keras-v3", "keras-h5"):
        assert isinstance(model, Model)
        new = Dialect.of(file.version).version[0] >= 3
        name, load = ("Keras", _keras) if new else ("tf-keras", _tf_keras)
        _source(name, lambda: load(file.path), file, model, report)
    elif file.format == "onnx":
        assert isinstance(model, Model)
        _source("ONNX Runtime", lambda: _onnxruntime(file.path), file, model, report)
    elif file.format.startswith("pytorch"):
        _torch_source(file, model, report)


def _torch_source(file: ModelFile, model: Source | ModelFile, report: Report) -> None:
    """What torch.load reads is what we read; a GRU computes the same on it."""
    run = FrameworkRun("PyTorch", "source")
    report.frameworks.append(run)
    try:
        import torch
    except ImportError:
        run.status = MISSING
        return
    run.version = str(torch.__version__)
    if tuple(int(n) for n in run.version.split(".")[:2]) < _SAFE_TORCH:
        run.status = "not run: torch.load before 2.10 can be made to run code, weights_only or not"
        return
    try:
        loaded = {} if file.format == "pytorch-safetensors" else _flat(torch.load(file.path, "cpu", weights_only=True))
    except Exception as failure:  # a module or a checkpoint with more than tensors in it needs code to be run
        run.status = f"failed: {_first_line(failure)}"
        return
    differ = [name for name, value in loaded.items() if not _equal(value, file.tensors.get(name))]
    if differ:
        run.status = f"tensor {differ[0]!r} differs"
        raise Mismatch(f"{report.source}: tensor {differ[0]!r}: PyTorch reads another value", report)
    if not isinstance(model, (nn.GRU, nn.GRUCell)):
        run.status = f"read: {len(loaded)} tensors equal"
        return
    own = {name: torch.from_numpy(value) for name, value in model.state_dict().items()}
    part = modules(model)[0]
    module = Torch(torch, own, run).module(part)
    error = Comparison("PyTorch")
    for case in gru_cases(model):
        found = module(*case.inputs)
        for a, b in zip(found if isinstance(found, tuple) else (found,), score(model, case), strict=True):
            error.add(a, b)
    run.max_error, run.scale = error.max_error, error.scale
    report.expect([error])


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """The tensors of nested dicts by dotted names, as `fastgru.load_state_dict` has them."""
    if isinstance(value, Mapping):
        found: dict[str, Any] = {}
        for key, item in value.items():
            found.update(_flat(item, f"{name}.{key}" if name else str(key)))
        return found
    return {name: value} if hasattr(value, "is_floating_point") else {}


def _equal(theirs: Any, ours: Array | None) -> bool:
    """Bit for bit; half precisions that NumPy lacks as float32."""
    if ours is None or tuple(theirs.shape) != ours.shape:
        return False
    theirs = theirs.detach().resolve_conj().resolve_neg()
    narrow = theirs.is_floating_point() and (theirs.element_size() == 1 or "bfloat16" in str(theirs.dtype))
    value = (theirs.float() if narrow else theirs).numpy()
    return bool(np.array_equal(value, ours, equal_nan=value.dtype.kind in "fc"))


def _source(name: str, load: Callable[[], Loaded], file: ModelFile, model: Model, report: Report) -> None:
    run = FrameworkRun(name, "source")
    report.frameworks.append(run)
    config = {key: value for key, value in (file.config or {}).items() if key != "compile_config"}  # not asked for
    foreign = sorted(foreign_names(config)) if file.format != "onnx" else []  # operators are no code of an author
    made = [case for case in cases(model, rows_of(model)) if case.lengths is None]
    if foreign or not made:
        run.status = f"not run: the file names {foreign[0]}" if foreign else "not run: no inputs are known to fit"
        return
    try:
        errors = _compare(run, load, model, made)
    except Exception as failure:  # an old file that a new framework no longer reads is no fault of the conversion
        run.status = f"failed: {_first_line(failure)}"
        return
    narrow, dialect = narrow_policies(file.config), Dialect.of(file.version)
    if errors and narrow:
        run.status = f"run in {narrow}, here in float32: not judged"
    elif errors and name == "tf-keras" and dialect.team:
        run.status = f"run in place of Keras {file.version or '2'}: not judged"
    else:
        _judge(run, errors, model, made, report)


def _judge(run: FrameworkRun, errors: list[Comparison], model: Source, made: list[Case], report: Report) -> None:
    """Expect float32 rounding of the outputs, or where these differ by more, what rounding in the layers comes to."""
    for comparison, case in zip(errors, made, strict=bool(errors)):
        if not comparison.within and isinstance(model, Model):
            try:
                comparison.moved = moved(model, case)
            except (ValueError, TypeError, IndexError) as error:  # sizes of a graph that go through floats
                why = _first_line(error)
                report.notes.append(f"not measured on {in_words(case.name)}: what rounding in the layers does: {why}")
            run.moved = max(run.moved or 0.0, comparison.moved)
    report.expect(errors)


def _compare(run: FrameworkRun, load: Callable[[], Loaded], model: Source, made: list[Case]) -> list[Comparison]:
    """The largest difference between the framework and us on each case; none where it is not installed."""
    try:
        run.version, predict = load()
    except ImportError as error:
        run.status = MISSING if isinstance(error, ModuleNotFoundError) else f"not run: {error}"
        return []
    comparisons = [Comparison(f"{run.framework} on {in_words(case.name)}") for case in made]
    for comparison, case in zip(comparisons, made, strict=True):
        for a, b in zip(predict(case.inputs), score(model, case), strict=True):
            comparison.add(a, b)
    run.max_error = max((c.max_error for c in comparisons), default=0.0)
    run.scale = max((c.scale for c in comparisons), default=0.0)
    return comparisons


def _first_line(error: Exception) -> str:
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip() or "no message"
    return f"{type(error).__name__}: {text.splitlines()[0].split('. ')[0][:200]}"


# -- the frameworks ------------------------------------------------------------------------------


def _keras(path: str) -> Loaded:
    import keras

    if not path.endswith((".keras", ".h5")):
        raise ImportError("Keras loads names that end in .keras or .h5 only")
    return str(keras.__version__), _predict(keras.models.load_model(path, compile=False))


def _keras_weights(path: str, config: Mapping[str, Any] | None) -> Loaded:
    import keras

    if not path.endswith(".weights.h5"):
        raise ImportError("Keras loads weights from names that end in .weights.h5 only")
    model = keras.models.model_from_json(json.dumps(config))
    model.load_weights(path)
    return str(keras.__version__), _predict(model)


def _tf_keras(path: str) -> Loaded:
    import tf_keras

    if not path.endswith((".keras", ".h5")):
        raise ImportError("tf-keras loads names that end in .keras or .h5 only")
    return str(tf_keras.__version__), _predict(tf_keras.models.load_model(path, compile=False))


def _predict(model: Any) -> Predict:
    """A loaded Keras model as a function of the inputs in the file's order."""

    def predict(inputs: list[Array]) -> list[Array]:
        for layer in model.layers:
            if getattr(layer, "stateful", False):
                (layer.reset_state if hasattr(layer, "reset_state") else layer.reset_states)()
        names = [str(t.name).split(":")[0] for t in model.inputs]
        struct = getattr(model, "input", None)
        x: Any = inputs[0] if len(inputs) == 1 else list(inputs)
        if isinstance(struct, Mapping):
            by_name = dict(zip(names, inputs, strict=True))
            x = {key: by_name[str(t.name).split(":")[0]] for key, t in struct.items()}
        y = model(x, training=False)
        listed = list(y.values()) if isinstance(y, Mapping) else y if isinstance(y, (list, tuple)) else [y]
        # Keras on PyTorch gives tensors that a gradient could go through
        arrays = [np.asarray(v.detach().cpu() if hasattr(v, "detach") else v) for v in listed]
        return [array.astype(np.float32) for array in arrays]

    return predict


def _onnxruntime(path: str) -> Loaded:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    kinds = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": bool}
    ends = session.get_inputs()

    def predict(inputs: list[Array]) -> list[Array]:
        feed = {end.name: x.astype(kinds[end.type]) for end, x in zip(ends, inputs, strict=True)}
        return list(session.run(None, feed))

    return str(onnxruntime.__version__), predict
