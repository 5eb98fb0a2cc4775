"""Every golden `.keras` file with other sizes: Keras builds the resized config anew, saves it, and both score it."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_parity_keras import assert_close, randomise

from fastgru.graph import sample_inputs
from fastgru.loading import load

pytestmark = pytest.mark.parity("keras")
GOLDEN = sorted((Path(__file__).parent / "golden").glob("k*.keras"))
#: Files that Keras itself can't resize like this (numbers in Reshape and slices, a width that must equal an input's, a
#: fixed batch), and two that it computes in half precision.
FIXED = {"k3_op_nodes", "k3_norms", "k3_dicts", "k3_stateful", "k3_bfloat16", "k3_mixed_float16"}


def resized(node: Any, more: int) -> Any:
    """A config whose layers have `more` units, output columns and table rows."""
    if isinstance(node, dict):
        grown = {key: resized(value, more) for key, value in node.items()}
        inner = node.get("config")
        if node.get("class_name") in ("GRU", "GRUCell", "Dense", "Embedding") and isinstance(inner, dict):
            for key in ("units", "output_dim", "input_dim"):
                if isinstance(inner.get(key), int):
                    grown["config"][key] = inner[key] + more
            grown.pop("build_config", None)
        elif "build_config" in grown:
            grown.pop("build_config")
        return grown
    return [resized(item, more) for item in node] if isinstance(node, list) else node


@pytest.mark.parametrize("path", [p for p in GOLDEN if p.stem not in FIXED], ids=lambda path: path.stem)
@pytest.mark.parametrize("more", [1, 6])
def test_other_sizes(path: Path, more: int, tmp_path: Path) -> None:
    keras = pytest.importorskip("keras", reason="Keras builds the resized model")
    entry = resized(json.loads(zipfile.ZipFile(path).read("config.json")), more)
    theirs = keras.saving.deserialize_keras_object(entry)
    sample = load(path)
    inputs = sample_inputs(sample.graph, sample.inputs)
    assert inputs is not None
    theirs.predict(inputs if len(inputs) > 1 else inputs[0], verbose=0)  # builds what has no Input layer
    randomise(theirs)
    expected = theirs.predict(inputs if len(inputs) > 1 else inputs[0], verbose=0)
    theirs.save(tmp_path / "resized.keras")
    found = load(tmp_path / "resized.keras").predict(inputs if len(inputs) > 1 else inputs[0])
    for a, b in zip(_leaves(found), _leaves(expected), strict=True):
        assert_close(a, np.asarray(b, np.float32))


def _leaves(y: Any) -> list[Any]:
    if isinstance(y, dict):
        return [leaf for key in sorted(y) for leaf in _leaves(y[key])]
    return [leaf for item in y for leaf in _leaves(item)] if isinstance(y, (list, tuple)) else [y]
