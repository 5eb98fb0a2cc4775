"""What rounding does to a badly conditioned model is measured, and is no excuse for a wrong kernel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastgru.convert import Mismatch, convert, frameworks
from fastgru.convert.cases import cases, score
from fastgru.convert.condition import moved
from fastgru.convert.report import TOLERANCE, Comparison
from fastgru.loading import load
from fastgru.models import Model

GOLDEN = Path(__file__).parent / "golden"
NORMS = GOLDEN / "k3_norms.keras"


def model_of(path: Path) -> Model:
    model = load(path)
    assert isinstance(model, Model)
    return model


def case_of(model: Model, kind: str) -> Any:
    return next(case for case in cases(model) if case.name == kind)


def test_two_normalisations_are_badly_conditioned_and_a_plain_stack_is_not() -> None:
    norms, plain = model_of(NORMS), model_of(GOLDEN / "keras_reset_after.keras")
    assert moved(norms, case_of(norms, "saturating")) > 2e-5  # ONNX Runtime is off by 1.5e-5
    assert moved(plain, case_of(plain, "random")) < 1e-5


def test_a_masked_step_stays_masked() -> None:
    """Rounding moves no exact zero: otherwise it would switch masks, which moves everything."""
    model = model_of(GOLDEN / "k3_merged_masks.keras")
    assert moved(model, case_of(model, "masked")) < 1e-5


def test_no_condition_excuses_everything() -> None:
    found = Comparison("x", moved=1e16)
    found.add(np.array([1.0]), np.array([1.0 + 11 * TOLERANCE]))
    assert not found.within
    found = Comparison("x", moved=1e16)
    found.add(np.array([np.nan]), np.array([1.0]))
    assert not found.within


def answers(change: Callable[[Any], Any]) -> Callable[[str], Any]:
    """A framework that gives what fastgru's model gives, with ``change`` made to its first GRU's weights."""
    model = model_of(NORMS)
    gru = next(layer for layer in model.layers if layer.class_name() == "GRU")
    gru.set_weights([change(w) for w in gru.get_weights()])

    class _Case:
        lengths = None

        def __init__(self, inputs: Any) -> None:
            self.inputs = inputs

    return lambda path: ("0", lambda inputs: score(model, _Case(inputs)))  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [0.0, 1e-4])
def test_a_kernel_off_by_little_still_fails(error: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx", reason="it writes .onnx")
    monkeypatch.setattr(frameworks, "_keras", lambda path: (_ for _ in ()).throw(ModuleNotFoundError()))
    spoilt = answers(lambda w: w + np.float32(error) if w.shape == (4, 12) else w)
    monkeypatch.setattr(frameworks, "_onnxruntime", spoilt)
    if not error:
        assert convert(NORMS, tmp_path / "m.onnx", verify=True).frameworks[0].max_error == 0
        return
    with pytest.raises(Mismatch, match=r"ONNX Runtime on .*, or the .* by which rounding in the layers moves them"):
        convert(NORMS, tmp_path / "m.onnx", verify=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parity("onnxruntime")
@pytest.mark.parametrize("name", ["k3_norms.keras", "tf213_norms.keras", "tfk_norms.h5"])
def test_onnx_runtime_on_two_normalisations(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed: pip install 'fastgru[parity]'")
    pytest.importorskip("onnx", reason="it writes .onnx")
    run = convert(GOLDEN / name, tmp_path / "m.onnx", verify=True).frameworks[0]
    assert run.framework == "ONNX Runtime" and run.max_error is not None and run.max_error < 1e-4
    assert run.moved is None or "rounding in the layers moves this model by" in str(run)
