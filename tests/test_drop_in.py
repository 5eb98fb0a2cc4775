"""Files that frameworks wrote give what the frameworks computed, from Python and from the shell."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastgru import nn
from fastgru.cli import main
from fastgru.loading import load
from fastgru.models import Model

GOLDEN = Path(__file__).parent / "golden"
#: How far a framework that computes in half precision is from the float32 result of its weights.
HALF = {"k3_mixed_float16": 4e-3, "tfk_mixed_float16": 4e-3, "k3_bfloat16": 3e-2, "k3_h5_bfloat16": 3e-2}


def needs_onnx(file: Path) -> None:
    if file.suffix == ".onnx":
        pytest.importorskip("onnx", reason="onnx is not installed: pip install 'fastgru[onnx]'")


def golden_models() -> list[tuple[Path, Path]]:
    """(model, expected) for every golden file that records outputs."""
    pairs = []
    for expected in sorted(GOLDEN.glob("*.expected.npz")):
        with np.load(expected) as arrays:
            recorded = {"y0", "y", "h_n"} & set(arrays.files)
        stem = expected.name.removesuffix(".expected.npz")
        files = [f for f in sorted(GOLDEN.glob(f"{stem}.*")) if f != expected]
        pairs += [(f, expected) for f in files if recorded]
    return pairs


SHARED = (
    ("keras_traffic_gru/gru.h5", "keras_traffic_gru/expected.npz"),
    ("keras_imdb_gru/imdb_gru_keras224.h5", "keras_imdb_gru/expected_keras224.npz"),
    ("keras_imdb_gru/imdb_gru_tfkeras.h5", "keras_imdb_gru/expected_tfkeras.npz"),
    ("keras3_asl_bigru/GRU_model_rel_best.keras", "keras3_asl_bigru/expected.npz"),
    ("torch_uzmorph_bigru/morph_bigru.pth", "torch_uzmorph_bigru/expected.npz"),
    ("torch_legacy_marl_commnet/central_v_commnet_2s3z_rnn_params.pkl", "torch_legacy_marl_commnet/expected.npz"),
)


def assert_close(found: Any, expected: np.ndarray, stem: str = "") -> None:
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    tolerance = HALF.get(stem, 2e-5) * max(1.0, float(np.nanmax(np.abs(expected), initial=0)))
    np.testing.assert_allclose(found, expected.astype(np.float32), rtol=0, atol=tolerance)


def numbered(arrays: Any, letter: str) -> list[np.ndarray]:
    return [arrays[f"{letter}{i}"] for i in range(len(arrays.files)) if f"{letter}{i}" in arrays.files]


def pairs_of(model: Model, arrays: Any) -> Iterator[tuple[Any, list[np.ndarray]]]:
    """(input, outputs in order) for each call that a file records."""
    xs, ys = numbered(arrays, "x"), numbered(arrays, "y")
    if "calls" in arrays.files:  # stateful: one call after the other
        for x, y in zip(xs, ys, strict=True):
            yield x, [y]
        return
    if "input_names" in arrays.files:
        yield dict(zip(arrays["input_names"].tolist(), xs, strict=True)), ys
    else:
        yield (xs if len(xs) > 1 else xs[0]), ys


def outputs_of(y: Any, arrays: Any) -> list[np.ndarray]:
    if isinstance(y, dict):
        return [y[name] for name in arrays["output_names"].tolist()]
    return y if isinstance(y, list) else [y]


def check(path: Path, expected: Path) -> None:
    stem = expected.name.removesuffix(".expected.npz")
    with np.load(expected) as arrays:
        if "x0" in arrays.files:
            model = load(path)
            assert isinstance(model, Model)
            for x, ys in pairs_of(model, arrays):
                for found, y in zip(outputs_of(model.predict(x), arrays), ys, strict=True):
                    assert_close(found, y, stem)
            return
        prefix = str(arrays["prefix"]) if "prefix" in arrays.files else None
        gru = load(path, prefix=prefix)
        if isinstance(gru, nn.GRUCell):
            assert_close(gru(arrays["x"], arrays["h0"]), arrays["h_n"], stem)
            return
        assert isinstance(gru, nn.GRU)
        gru.batch_first = True
        y, h_n = gru(arrays["x"], *(arrays[name] for name in ("h0",) if name in arrays.files))
        assert_close(y, arrays["y"], stem)
        assert_close(h_n, arrays["h_n"], stem)


@pytest.mark.parametrize("pair", golden_models(), ids=lambda p: p[0].name)
def test_golden(pair: tuple[Path, Path]) -> None:
    needs_onnx(pair[0])
    check(*pair)


@pytest.mark.parametrize("names", SHARED, ids=lambda n: n[0])
def test_shared(names: tuple[str, str], shared: Path) -> None:
    check(shared / "models" / names[0], shared / "models" / names[1])


@pytest.mark.parametrize("pair", golden_models(), ids=lambda p: p[0].name)
def test_golden_from_the_shell(pair: tuple[Path, Path], tmp_path: Path) -> None:
    needs_onnx(pair[0])
    check_shell(*pair, tmp_path)


@pytest.mark.parametrize("names", SHARED, ids=lambda n: n[0])
def test_shared_from_the_shell(names: tuple[str, str], shared: Path, tmp_path: Path) -> None:
    check_shell(shared / "models" / names[0], shared / "models" / names[1], tmp_path)


def check_shell(path: Path, expected: Path, tmp_path: Path) -> None:
    stem = expected.name.removesuffix(".expected.npz")
    source, target = tmp_path / "in.npz", tmp_path / "out.npz"
    with np.load(expected) as arrays:
        if "calls" in arrays.files:
            pytest.skip("a stateful model has one call per process")
        if "x0" not in arrays.files:
            np.savez(source, **{name: arrays[name] for name in ("x", "h0") if name in arrays.files})
            prefix = ["--prefix", str(arrays["prefix"])] if "prefix" in arrays.files else []
            assert main(["score", os.fspath(path), str(source), str(target), *prefix]) == 0
            with np.load(target) as found:
                assert_close(found["h_n"], arrays["h_n"], stem)
                if "y" in arrays.files:
                    assert_close(found["y"], arrays["y"], stem)
            return
        xs, ys = numbered(arrays, "x"), numbered(arrays, "y")
        if len(xs) == len(ys) == 1:
            source, target = tmp_path / "in.npy", tmp_path / "out.npy"
            np.save(source, xs[0])
            assert main(["score", os.fspath(path), str(source), str(target), "--batch-size", "2"]) == 0
            assert_close(np.load(target), ys[0], stem)
            return
        if "input_names" in arrays.files:
            np.savez(source, **dict(zip(arrays["input_names"].tolist(), xs, strict=True)))
        else:
            np.savez(source, *xs)
        rows = "1000"  # the golden graphs reduce over the batch in places
        assert main(["score", os.fspath(path), str(source), str(target), "--batch-size", rows]) == 0
        with np.load(target) as found:
            names = arrays["output_names"].tolist() if "output_names" in arrays.files else found.files
            for name, y in zip(names, ys, strict=True):
                assert_close(found[name], y, stem)
