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
from fastgru.convert.report import TOLERANCE, Comparison, FrameworkRun, Report
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


def test_a_model_whose_sizes_go_through_floats_is_not_measured() -> None:
    """A rounding of 6.0 below 6 is 5 steps: the graph can't run, which is said, and is no excuse."""
    from helpers_onnx import FLOAT, INT64, graph_of, helper

    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Cast", ["s"], ["f"], to=FLOAT),
        helper.make_node("Abs", ["f"], ["g"]),
        helper.make_node("Cast", ["g"], ["i"], to=INT64),
        helper.make_node("Tanh", ["x"], ["t"]),
        helper.make_node("Reshape", ["t", "i"], ["y"]),
    ]
    model = graph_of(nodes, {"x": (FLOAT, [5, 6])}, ["y"])
    case = case_of(model, "random")
    found, report = Comparison("x"), Report("a", "b", "onnx", "", "onnx")
    found.add(np.array([1.0]), np.array([1.1]))
    with pytest.raises(Mismatch):
        frameworks._judge(FrameworkRun("ONNX Runtime", "source"), [found], model, [case], report)
    assert "not measured on random inputs" in report.notes[0] and "Reshape" in report.notes[0]


def test_loops_share_their_turns_while_a_model_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they do in predict: two loops of 6 turns each are too many for 10."""
    import dataclasses

    from helpers_onnx import FLOAT, graph_of, helper, onnx

    from fastgru.convert.trace import run_through, trace
    from fastgru.layers import onnx_control

    monkeypatch.setattr(onnx_control, "LIMITS", dataclasses.replace(onnx_control.LIMITS, onnx_turns=10))
    info = helper.make_tensor_value_info
    ends = [info("t", onnx.TensorProto.INT64, []), info("c", onnx.TensorProto.BOOL, []), info("h", FLOAT, None)]
    steps = [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Neg", ["h"], ["g"])]
    body = helper.make_graph(steps, "body", ends, [info("d", onnx.TensorProto.BOOL, []), info("g", FLOAT, None)])
    nodes = [helper.make_node("Loop", ["n", "", a], [b], body=body) for a, b in (("x", "m"), ("m", "y"))]
    model = graph_of(nodes, {"x": (FLOAT, [2])}, ["y"], n=np.array(6))
    x = [np.ones(2, np.float32)]
    for run in (lambda: trace(model, x), lambda: run_through(model, x, lambda v: v)):
        with pytest.raises(ValueError, match="at most 10 turns of all loops"):
            run()
