"""The proof of a conversion: the target read back and compared, by weights, layer by layer, and in the frameworks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from .. import formats, loading, nn
from ..formats import FormatError, ModelFile
from ..layers.base import NEWEST, Array, Dialect
from ..layers.bidirectional import Bidirectional
from ..models import Model, Sequential, walk
from . import frameworks
from .cases import cases, gru_cases, score, skipped
from .cells import as_model
from .report import Comparison, Mismatch, Report
from .trace import Call, trace
from .verify_pytorch import compare_modules, compare_state_dict

__all__ = ["verify"]

Source = Model | nn.GRU | nn.GRUCell | ModelFile

_NO_SCORES = "the shape of the input is not in the file: no scores compared"


def verify(kind: str, path: str, file: ModelFile, model: Source, report: Report) -> None:
    """Read ``path`` back and compare it with the source; what was found goes into the report.

    Raises
    ------
    Mismatch
        Where they differ by more than float32 rounding, or, in our own format and in weights, at all.
    FormatError
        Where the target can't be read.
    """
    report.verified = True
    if file.format == "onnx" and isinstance(model, Sequential):
        _compare_graph(Model.from_model_file(file), model, report)
    if kind == "pytorch":
        copy = formats.read(path)
        same_tensors(copy.tensors, _expected(model), report)
        report.weights = "weights equal"
        if isinstance(model, ModelFile):
            for prefix in sorted(loading.find_grus(model.tensors)):
                try:
                    gru = loading.from_file(model, prefix)
                except FormatError as error:  # a state_dict may hold weights that are no GRU of ours, and keeps them
                    report.notes.append(f"not scored: {error}")
                    continue
                compare_state_dict(gru, copy.tensors, prefix, report)
        elif isinstance(model, Model):
            made = cases(model, frameworks.rows_of(model))
            if not made:
                report.notes.append(_NO_SCORES)
            compare_modules(model, copy, made, report)
        else:
            compare_state_dict(model, copy.tensors, "", report)
    else:
        assert not isinstance(model, ModelFile)
        _verify_model(kind, path, file, model, report)
    frameworks.check_source(file, model, report)


def _compare_graph(graph: Model, layers: Sequential, report: Report) -> None:
    """The layers that were found in an ONNX graph give what the graph gives."""
    for case in cases(layers):
        if case.lengths is None:
            outputs = Comparison(f"{case.name}, the graph beside its layers")
            for a, b in zip(score(layers, case), score(graph, case), strict=True):
                outputs.add(a, b)
            report.inputs.append(outputs)
    report.expect(report.inputs)


def _expected(model: Source) -> Mapping[str, Array]:
    from .to_pytorch import state_dict

    return model.tensors if isinstance(model, ModelFile) else state_dict(model)


def same_tensors(found: Mapping[str, Array], expected: Mapping[str, Array], report: Report) -> None:
    """Bit for bit: a file of weights has nothing to round."""
    for name in expected:
        a, b = expected[name], found.get(name)
        if b is None or a.shape != b.shape or not np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
            raise Mismatch(f"{report.target}: tensor {name!r} differs from {report.source}", report)


def _verify_model(kind: str, path: str, file: ModelFile, model: Model | nn.GRU | nn.GRUCell, report: Report) -> None:
    # ONNX takes PyTorch's own shapes, Keras knows rows of sequences
    side = model if isinstance(model, Model) or kind == "onnx" else as_model(model)
    config = None
    if kind == "keras-weights":
        from .to_keras import keras_config

        config = keras_config(model)[0]
    copy = Model.from_model_file(formats.read(path) if config is None else formats.read(path, config))
    exact = kind == "fastgru"
    if exact:
        assert isinstance(side, Model)
        same_tensors(copy.all_tensors(), side.all_tensors(), report)
        report.weights = "weights and scores equal"
    made = cases(side, frameworks.rows_of(side)) if isinstance(side, Model) else gru_cases(side)
    if not made:
        report.weights = "weights equal" if exact else ""
        report.notes.append(_NO_SCORES)
        return
    report.skipped = skipped(side, made)
    layers: dict[tuple[str, int], Comparison] = {}
    for case in made:
        if case.lengths is not None and (why := _other_lengths(kind, side)):
            report.skipped[case.name] = why
            continue
        outputs = Comparison(case.name)
        try:
            expected = score(side, case)
        except ValueError as error:
            if case.lengths is None:
                raise
            report.skipped[case.name] = f"the source takes none ({error})"
            continue
        for a, b in zip(score(copy, case), expected, strict=True):
            outputs.add(a, b)
        report.inputs.append(outputs)
        if case.lengths is None and isinstance(side, Model):
            found, original = trace(copy, case.inputs), trace(side, case.inputs)
            _compare_layers(_by_layer(found, original) if kind == "onnx" else found, original, layers)
    report.layers = list(layers.values())
    report.expect(report.layers + report.inputs, exact)
    frameworks.check_target(kind, path, config, side, [c for c in made if c.lengths is None], report)


def _other_lengths(kind: str, model: Source) -> str:
    """Why lengths that a caller gives mean something else in the target; "" where they mean the same.

    Keras 3.4 changed what merges do with masks, and Keras 3 what a GRU that is called with a state does: masks of the
    model's own are refused there, those of a caller are the caller's matter.
    """
    if kind == "onnx":
        return "an ONNX graph takes none beside its inputs"
    if kind == "fastgru" or not isinstance(model, Model):
        return ""
    dialect = NEWEST if model._entry is None else Dialect.of(model.version)
    if dialect.merges_or:
        return ""
    models = [model, *(layer for layer in walk(model) if isinstance(layer, Model))]
    states = any(node.state is not None or isinstance(node.x, list) for part in models for node in part.graph.nodes)
    team = dialect.team and any(isinstance(layer, Bidirectional) for layer in walk(model))
    changed = "merges or initial states" if states else "Bidirectional" if team else ""
    return f"what masks do at {changed} changed in Keras since the source" if changed else ""


def _compare_layers(found: list[Call], expected: list[Call], comparisons: dict[tuple[str, int], Comparison]) -> None:
    """Add each call of ``expected`` that ``found`` has too to the comparison of its layer and call."""
    theirs = dict(_numbered(found))
    for key, call in _numbered(expected):
        if key not in theirs:
            continue
        path, number = key
        name = path if number == 0 else f"{path} (call {number + 1})"
        comparison = comparisons.setdefault(key, Comparison(name, call.layer.class_name()))
        for a, b in zip(theirs[key].y, call.y, strict=True):
            comparison.add(a, b)


def _by_layer(nodes: list[Call], layers: list[Call]) -> list[Call]:
    """The nodes of an ONNX graph, named "layer/Operator", as calls of the layers that they came from.

    What a layer gives is what its last node gives; a layer whose nodes don't show that is left out.
    """
    groups: list[Call] = []
    for node in nodes:
        path = node.path.rpartition("/")[0]
        if groups and groups[-1].path == path:
            groups.pop()
        groups.append(replace(node, path=path))
    theirs, ours = Counter(call.path for call in groups), Counter(call.path for call in layers)
    shapes = {key: [np.shape(y) for y in call.y] for key, call in _numbered(layers)}
    return [
        call
        for key, call in _numbered(groups)
        if theirs[call.path] == ours[call.path] and shapes.get(key) == [np.shape(y) for y in call.y]
    ]


def _numbered(calls: list[Call]) -> Iterator[tuple[tuple[str, int], Call]]:
    seen: Counter[str] = Counter()
    for call in calls:
        yield (call.path, seen[call.path]), call
        seen[call.path] += 1
