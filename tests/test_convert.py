"""Conversions as a whole: which target, what is left behind, the report, and that the proof can fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_layers import normal

from fastgru import layers, nn
from fastgru.cli import main
from fastgru.convert import Mismatch, convert
from fastgru.convert.report import Comparison
from fastgru.formats import FormatError, read, write_safetensors
from fastgru.formats.pytorch_writer import write_pytorch
from fastgru.loading import load, load_state_dict
from fastgru.models import Model, Sequential

GOLDEN = Path(__file__).parent / "golden"
TEXT, TORCH = GOLDEN / "keras_text_gru.keras", GOLDEN / "torch_bigru.pt"


@pytest.fixture(autouse=True)
def no_frameworks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What frameworks say is in test_parity_convert.py; here they are not asked, installed or not."""
    monkeypatch.setattr("fastgru.convert.frameworks.check_source", lambda *_: None)
    monkeypatch.setattr("fastgru.convert.frameworks.check_target", lambda *_: None)
    monkeypatch.setattr("fastgru.convert.frameworks.Torch.load", lambda *_: None)


def stack() -> Sequential:
    """A model that every target can express."""
    model = Sequential([layers.Input((None, 3)), layers.GRU(4, return_sequences=True), layers.Dense(2)])
    model.predict(normal(2, 5, 3))
    rng = np.random.default_rng(3)
    model.set_weights([rng.standard_normal(w.shape).astype(np.float32) for w in model.get_weights()])
    return model


class TestTargets:
    @pytest.mark.parametrize(
        ("name", "to", "found"),
        [
            ("m.safetensors", None, "fastgru-safetensors"),
            ("m.SAFETENSORS", None, "fastgru-safetensors"),
            ("m.safetensors", "pytorch", "pytorch-safetensors"),
            ("m.pt", None, "pytorch-zip"),
            ("m.pth", None, "pytorch-zip"),
            ("m.bin", "pytorch", "pytorch-zip"),
            ("m.keras", None, "keras-v3"),
            ("m.bin", "keras", "keras-v3"),
            ("m.onnx", None, "onnx"),
            ("m.keras", "onnx", "onnx"),
        ],
    )
    def test_the_suffix_decides_unless_told(self, name: str, to: str | None, found: str, tmp_path: Path) -> None:
        pytest.importorskip({"keras-v3": "h5py", "onnx": "onnx"}.get(found, "numpy"), reason="it writes this format")
        report = convert(TEXT, tmp_path / name, to=to)
        assert read(tmp_path / name).format == found
        assert (report.source_format, report.verified) == ("keras-v3", False) and report.tensors >= 8
        assert [p.name for p in tmp_path.iterdir()] == [name]

    @pytest.mark.parametrize(("name", "to"), [("m.h5", None), ("m", None), ("m.pt", "tensorflow"), ("m.bin", None)])
    def test_unknown_ones_are_listed(self, name: str, to: str | None, tmp_path: Path) -> None:
        listed = (
            "fastgru, pytorch, keras-weights, keras, onnx" if to else r"\.pt, \.pth, \.weights\.h5, \.keras, \.onnx"
        )
        with pytest.raises(FormatError, match=f"{name}: expected .*{listed}"):
            convert(TEXT, tmp_path / name, to=to)
        assert not list(tmp_path.iterdir())

    def test_a_state_dict_stays_one_and_whole(self, tmp_path: Path) -> None:
        source = GOLDEN / "torch_checkpoint.tar"
        for name in ("m.pt", "m.safetensors"):
            report = convert(source, tmp_path / name, verify=True)
            expected, found = load_state_dict(source), load_state_dict(tmp_path / name)
            assert report.tensors == len(expected) and set(found) == set(expected)
            assert all(
                np.array_equal(found[key], expected[key]) and found[key].dtype == expected[key].dtype for key in found
            )

    def test_what_a_state_dict_holds_beside_the_gru_is_named(self, tmp_path: Path) -> None:
        gru = nn.GRU(3, 4)
        more = {"encoder.weight": normal(5, 3), "decoder.bias": normal(2)}
        write_pytorch(tmp_path / "all.pt", {**{f"rnn.{k}": v for k, v in gru.state_dict().items()}, **more})
        for prefix in (None, "rnn", "rnn."):
            for target in ("m.safetensors", "m.onnx") if prefix is None else ("m.pt",):
                pytest.importorskip("onnx" if target == "m.onnx" else "numpy", reason="it writes this format")
                report = convert(tmp_path / "all.pt", tmp_path / target, prefix=prefix)
                named = [note for note in report.notes if note.startswith("left out")]
                whole = prefix is None and target != "m.onnx"  # a state_dict that stays one keeps everything
                assert len(named) == (not whole) and all("encoder.weight, decoder.bias" in note for note in named)

    def test_opset_belongs_to_onnx(self, tmp_path: Path) -> None:
        with pytest.raises(FormatError, match="opset: expected none"):
            convert(TEXT, tmp_path / "m.pt", opset=17)

    def test_modules_that_only_pytorch_could_run_are_named(self, tmp_path: Path) -> None:
        report = convert(TEXT, tmp_path / "m.pt", verify=True)
        assert any("by their weights alone" in note and "embedding" in note for note in report.notes)

    def test_one_gru_out_of_a_state_dict(self, tmp_path: Path) -> None:
        source = GOLDEN / "torch_cell.pt"
        for name in ("m.pt", "m.safetensors"):
            convert(source, tmp_path / name, prefix="core.cell", verify=True)
            assert sorted(load_state_dict(tmp_path / name)) == ["bias_hh", "bias_ih", "weight_hh", "weight_ih"]
            assert isinstance(load(tmp_path / name), nn.GRUCell)
        with pytest.raises(FormatError, match="no GRU at prefix 'other.'"):
            convert(source, tmp_path / "m.pt", prefix="other")
        with pytest.raises(FormatError, match="prefix: expected none for a file with a whole model, found 'gru'"):
            convert(TEXT, tmp_path / "m.pt", prefix="gru")

    def test_safetensors_of_pytorch_say_so_and_keep_the_checksum(self, tmp_path: Path) -> None:
        convert(TORCH, tmp_path / "m.safetensors")
        file = read(tmp_path / "m.safetensors")
        assert file.metadata["format"] == "pt" and file.format == "pytorch-safetensors"
        data = bytearray((tmp_path / "m.safetensors").read_bytes())
        data[-1] ^= 1
        (tmp_path / "m.safetensors").write_bytes(data)
        with pytest.raises(FormatError, match="checksum"):
            read(tmp_path / "m.safetensors")

    def test_the_official_package_reads_pytorchs_names(self, tmp_path: Path) -> None:
        official = pytest.importorskip("safetensors.numpy", reason="the official package is the judge")
        convert(TEXT, tmp_path / "m.safetensors", to="pytorch")
        found = official.load_file(tmp_path / "m.safetensors")
        expected = load_state_dict(tmp_path / "m.safetensors")
        assert set(found) == set(expected) and "gru_1.weight_hh_l0" in found
        assert all(np.array_equal(found[name], expected[name]) for name in expected)


class TestErrors:
    def test_the_source_is_not_overwritten(self, tmp_path: Path) -> None:
        source = tmp_path / "m.safetensors"
        stack().save(source)
        before = source.read_bytes()
        with pytest.raises(FormatError, match="expected another file than"):
            convert(source, source)
        assert source.read_bytes() == before

    def test_the_data_of_the_source_is_not_overwritten(self, tmp_path: Path) -> None:
        onnx = pytest.importorskip("onnx", reason="it writes the file")
        model = onnx.load(GOLDEN / "onnx_tf2onnx_stack.onnx")
        onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.onnx", size_threshold=0)
        before = (tmp_path / "w.onnx").read_bytes()
        (tmp_path / "link.onnx").symlink_to("w.onnx")
        for target in ("w.onnx", "link.onnx", "m.onnx"):
            with pytest.raises(FormatError, match=rf"{target}: expected another file than .*, which is read"):
                convert(tmp_path / "m.onnx", tmp_path / target)
        source, target, data = (str(tmp_path / name) for name in ("m.onnx", "x.onnx", "w.onnx"))
        assert main(["convert", source, target, "--report", data]) == 1
        assert (tmp_path / "w.onnx").read_bytes() == before and before
        assert not (tmp_path / "x.onnx").exists()  # asked before anything is written

    @pytest.mark.parametrize("verified", [False, True])
    @pytest.mark.parametrize(("name", "target"), [("keras_reset_before.keras", "m.pt"), ("torch_bigru.pt", "m.keras")])
    def test_refusals_name_the_source(self, name: str, target: str, verified: bool, tmp_path: Path) -> None:
        pytest.importorskip("h5py", reason="it writes .keras")
        options: dict[str, Any] = {"prefix": "other"} if target == "m.keras" else {}
        with pytest.raises(FormatError) as error:
            convert(GOLDEN / name, tmp_path / target, verify=verified, **options)
        assert str(error.value).startswith(f"{GOLDEN / name}: ") and str(error.value).count(name) == 1

    def test_an_opset_is_the_targets(self, tmp_path: Path) -> None:
        pytest.importorskip("onnx", reason="it knows the opsets")
        with pytest.raises(FormatError, match=r"m\.onnx: opset: expected 17 … "):
            convert(TEXT, tmp_path / "m.onnx", opset=5, verify=True)

    def test_a_missing_source_is_named(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for options in ([], ["--verify"]):
            assert main(["convert", str(tmp_path / "none.pt"), str(tmp_path / "m.pt"), *options]) == 1
            assert capsys.readouterr().err == f"fastgru: {tmp_path / 'none.pt'}: no such file\n"

    @pytest.mark.parametrize("verified", [False, True])
    def test_a_target_that_cannot_be_written_is_named(self, verified: bool, tmp_path: Path, monkeypatch: Any) -> None:
        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("fastgru.formats.replacing.os.fsync", full)
        with pytest.raises(OSError, match="No space left") as error:
            convert(TEXT, tmp_path / "m.pt", verify=verified)
        assert error.value.filename == str(tmp_path / "m.pt") and not list(tmp_path.iterdir())

    @pytest.mark.parametrize("verified", [False, True])
    def test_a_refusal_leaves_the_old_target(self, verified: bool, tmp_path: Path) -> None:
        target = tmp_path / "m.pt"
        target.write_bytes(b"old")
        with pytest.raises(FormatError, match="PyTorch can't express layer 'gru'"):
            convert(GOLDEN / "keras_reset_before.keras", target, verify=verified)
        assert target.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["m.pt"]

    @pytest.mark.parametrize(("module", "name"), [("h5py", "m.keras"), ("h5py", "m.weights.h5"), ("onnx", "m.onnx")])
    def test_a_missing_package_is_named(self, module: str, name: str, tmp_path: Path, monkeypatch: Any) -> None:
        monkeypatch.setitem(__import__("sys").modules, module, None)
        with pytest.raises(FormatError, match=rf"{name}: writing .* needs .*{module}.*pip install 'fastgru\["):
            convert(TEXT, tmp_path / name)
        assert not list(tmp_path.iterdir())


class TestProof:
    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        (tmp_path / "in").mkdir()
        stack().save(tmp_path / "in" / "m.safetensors")
        return tmp_path / "in" / "m.safetensors"

    @pytest.mark.parametrize("name", ["m.safetensors", "m.pt", "m.keras", "m.weights.h5", "m.onnx"])
    def test_every_target(self, name: str, source: Path, tmp_path: Path) -> None:
        package = {"m.keras": "h5py", "m.weights.h5": "h5py", "m.onnx": "onnx"}.get(name, "numpy")
        pytest.importorskip(package, reason="it writes this format")
        report = convert(source, tmp_path / name, verify=True)
        assert report.verified and {"random", "zeros", "saturating"} <= {c.name for c in report.inputs}
        assert "one step" in {c.name for c in report.inputs}
        assert all(c.within for c in [*report.inputs, *report.layers])
        assert {c.name for c in report.layers} >= {"gru"}
        assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["in", name])

    @pytest.mark.parametrize("name", ["m.pt", "m.keras", "m.weights.h5", "m.safetensors"])
    @pytest.mark.parametrize("change", ["gates", "bias", "kernel"])
    def test_it_bites(
        self, name: str, change: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A target with two gates exchanged, without its recurrent bias, or a kernel off by 1e-4 is not let through."""
        pytest.importorskip("h5py", reason="it writes .keras")

        def spoil(tensors: Any) -> dict[str, Any]:
            spoilt = {key: np.array(value) for key, value in tensors.items()}
            key = next(
                k for k in spoilt if k.endswith("bias_hh_l0" if "weight_hh" in str(list(spoilt)) else "gru/bias")
            )
            wide = next(k for k in spoilt if "recurrent_kernel" in k or "weight_hh" in k)
            if change == "gates":
                axis = 1 if "recurrent" in wide else 0
                a, b, c = np.split(spoilt[wide], 3, axis=axis)
                spoilt[wide] = np.concatenate([b, a, c], axis=axis)
            elif change == "bias":
                spoilt[key] = spoilt[key] * 0
            else:
                spoilt[wide] += np.float32(1e-4)
            return spoilt

        if name == "m.pt":
            monkeypatch.setattr(
                "fastgru.convert.targets.write_pytorch", lambda path, tensors: write_pytorch(path, spoil(tensors))
            )
        elif name == "m.safetensors":
            monkeypatch.setattr(Model, "all_tensors", _spoilt_tensors(Model.all_tensors, spoil))
        else:
            from fastgru.convert import to_keras

            right = to_keras.keras_config
            monkeypatch.setattr(to_keras, "keras_config", lambda m: (right(m)[0], spoil(right(m)[1])))
        target = tmp_path / name
        target.write_bytes(b"old")
        with pytest.raises(Mismatch, match=rf"{name}: (scores differ|tensor '.*' differs) from") as error:
            convert(source, target, verify=True)
        assert ".tmp" not in str(error.value) and error.value.report.verified
        assert target.read_bytes() == b"old" and sorted(p.name for p in tmp_path.iterdir()) == sorted(["in", name])

    def test_kinds_of_inputs_that_were_not_run_are_said(self, source: Path, tmp_path: Path) -> None:
        pytest.importorskip("onnx", reason="it writes .onnx")
        every = {"random", "zeros", "saturating", "one step", "masked", "lengths"}
        reasons = {"m.onnx": ("lengths", "an ONNX graph takes none"), "m.pt": ("lengths", "they are no weights")}
        for name, (kind, why) in reasons.items():
            report = convert(source, tmp_path / name, verify=True)
            assert {c.name for c in report.inputs} | set(report.skipped) == every
            assert report.skipped[kind].startswith(why) and report.skipped["masked"] == "no layer masks steps"
            assert any(line.startswith(f"not on inputs with lengths: {why}") for line in report.lines())
        report = convert(TEXT, tmp_path / "m.safetensors", verify=True)
        assert set(report.skipped) == {"saturating", "one step", "masked"}
        assert report.skipped["saturating"] == "all inputs are ids"
        assert set(convert(TORCH, tmp_path / "again.pt", verify=True).skipped) == {"masked", "lengths"}

    def test_masks_and_lengths_are_among_the_inputs(self, tmp_path: Path) -> None:
        pytest.importorskip("h5py", reason="it writes .keras")
        report = convert(GOLDEN / "k3_embedding_masks.keras", tmp_path / "m.keras", verify=True)
        assert {"masked", "lengths"} <= {c.name for c in report.inputs}

    @pytest.mark.parametrize(
        ("found", "expected", "error", "within"),
        [
            ([1.0, 2.0], [1.0, 2.0], 0.0, True),
            ([1.0, np.nan], [1.0, np.nan], 0.0, True),
            ([1.0, np.inf], [1.0, np.inf], 0.0, True),
            ([1.0, np.nan], [1.0, 2.0], np.inf, False),
            ([1.0, np.inf], [1.0, 2.0], np.inf, False),
            ([1.0, 2.0], [1.0, np.nan], np.inf, False),
            ([0.0], [2e-5], 2e-5, False),
            ([1000.0], [1000.005], 0.005, True),
            ([[1.0]], [1.0], np.inf, False),
            ([0.0, 0.0], [1.0, 1.0], 1.0, False),
        ],
    )
    def test_comparison(self, found: Any, expected: Any, error: float, within: bool) -> None:
        comparison = Comparison("x")
        comparison.add(np.array(found), np.array(expected))
        assert comparison.max_error == pytest.approx(error) and comparison.within == within


def _spoilt_tensors(right: Any, spoil: Any) -> Any:
    calls: list[Any] = []

    def all_tensors(self: Model) -> Any:
        calls.append(self)
        return spoil(right(self)) if len(calls) == 1 else right(self)  # the first call writes

    return all_tensors


class TestCommandLine:
    def test_report(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        target, out = tmp_path / "m.pt", tmp_path / "out.json"
        assert main(["convert", str(TEXT), str(target), "--verify", "--report", str(out)]) == 0
        printed = capsys.readouterr().out.splitlines()
        assert printed[0] == f"{target}: 11 tensors from keras-v3 to PyTorch state_dict; weights equal"
        assert printed[1].split() == ["layer", "class", "max", "error"] and "on random inputs: max error 0" in printed
        assert any(line.startswith("note: gru: torch.nn.GRU(input_size=16, hidden_size=24, ") for line in printed)
        report = json.loads(out.read_text())
        assert report["source"] == str(TEXT) and report["target"] == str(target)
        assert (report["source_format"], report["target_format"]) == ("keras-v3", "PyTorch state_dict")
        assert report["verified"] is True and report["frameworks"] == []
        assert {"name", "what", "max_error", "scale", "moved"} == set(report["layers"][0]) == set(report["inputs"][0])

    def test_a_failed_proof_is_reported(self, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
        monkeypatch.setattr("fastgru.convert.report.TOLERANCE", -1.0)
        pytest.importorskip("h5py", reason="it writes .keras")
        out = tmp_path / "out.json"
        assert main(["convert", str(TEXT), str(tmp_path / "m.keras"), "--verify", "--report", str(out)]) == 1
        assert "scores differ from" in capsys.readouterr().err
        assert json.loads(out.read_text())["layers"] and [p.name for p in tmp_path.iterdir()] == ["out.json"]

    def test_help_lists_the_formats(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            main(["convert", "--help"])
        text = capsys.readouterr().out
        assert all(part in text for part in (".weights.h5", ".onnx", "--to {fastgru,pytorch,", "--report OUT.json"))


def test_a_tied_table_is_still_tied(tmp_path: Path) -> None:
    table = normal(6, 4)
    gru = nn.GRU(4, 4).state_dict()
    write_safetensors(tmp_path / "in.safetensors", {"in": table, "out": table, **gru})
    convert(tmp_path / "in.safetensors", tmp_path / "m.pt", verify=True)
    convert(tmp_path / "m.pt", tmp_path / "again.pt", verify=True)
    found = load_state_dict(tmp_path / "again.pt")
    np.testing.assert_array_equal(found["in"], found["out"])
