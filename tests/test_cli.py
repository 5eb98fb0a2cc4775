"""The command line: info, convert and score, their output, their errors and their memory."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_layers import normal

from fastgru import layers, nn
from fastgru.cli import main
from fastgru.formats import FormatError, write_safetensors
from fastgru.loading import load, load_state_dict
from fastgru.models import Model, Sequential

GOLDEN = Path(__file__).parent / "golden"
TEXT = GOLDEN / "keras_text_gru.keras"
FILES = sorted(p for p in GOLDEN.iterdir() if p.is_file() and p.suffix != ".npz")


def command(*arguments: str | os.PathLike[str]) -> int:
    return main([os.fspath(a) for a in arguments])


def needs_onnx(file: Path) -> None:
    if file.suffix == ".onnx":
        pytest.importorskip("onnx", reason="onnx is not installed: pip install 'fastgru[onnx]'")


class TestInfo:
    def test_keras(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert command("info", TEXT) == 0
        out = capsys.readouterr().out
        assert f"{TEXT}: keras-v3, written by version 3." in out
        for part in ("input ", "output ", "Embedding", "GRU", "reset_after", "Parameters: ", "/recurrent_kernel ("):
            assert part in out

    def test_what_was_ignored(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert command("info", GOLDEN / "k3_mixed_float16.keras") == 0
        out = capsys.readouterr().out
        assert "note: dtype policy mixed_float16: Keras computes in it, here everything" in out
        assert "note: initializers (" in out

    def test_state_dict(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert command("info", GOLDEN / "torch_bigru.pt") == 0
        out = capsys.readouterr().out
        assert "pytorch-zip" in out and "weight_ih_l0_reverse" in out
        assert "GRU at prefix '': GRU(8, 16, num_layers=2, bidirectional=True)\n" in out

    @pytest.mark.parametrize("file", FILES, ids=lambda p: p.name)
    def test_every_golden_file(self, file: Path) -> None:
        needs_onnx(file)
        assert command("info", file) == 0


class TestConvert:
    @pytest.fixture(autouse=True)
    def _no_frameworks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What frameworks that may be installed say of the files is in test_parity_convert.py."""
        monkeypatch.setattr("fastgru.convert.frameworks.check_source", lambda *_: None)

    @pytest.mark.parametrize("file", FILES, ids=lambda p: p.name)
    def test_verified(self, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        if file.name == "torch_tensors.pt":
            pytest.skip("it holds a complex128 tensor, which safetensors has no type for")
        needs_onnx(file)
        assert command("convert", file, tmp_path / "m.safetensors", "--verify") == 0
        assert "equal" in capsys.readouterr().out
        assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]

    def test_target_name(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert command("convert", TEXT, tmp_path / "m.h5") == 1
        suffixes = ".safetensors, .pt, .pth, .weights.h5, .keras, .onnx"
        assert f"expected a name that ends in one of {suffixes}" in capsys.readouterr().err
        assert not list(tmp_path.iterdir())

    def test_errors_name_the_target(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        np.save(tmp_path / "x.npy", np.zeros((2, 12), int))
        score, convert = ("score", TEXT, tmp_path / "x.npy"), ("convert", TEXT)
        for arguments, name in ((score, "y.npy"), (score, "y.npz"), (score, "y.csv"), (convert, "m.safetensors")):
            target = tmp_path / "no" / name
            assert command(*arguments, target) == 1
            assert capsys.readouterr().err == f"fastgru: {target}: expected an existing folder to write into\n"

        with monkeypatch.context() as read_only:
            read_only.setattr("fastgru.tables.os.access", lambda folder, mode: False)
            assert command(*score, tmp_path / "y.npy") == 1
            assert "expected a folder that can be written into, found " in capsys.readouterr().err

        def denied(path: Any, mode: str = "r", **options: Any) -> Any:
            if "x" in mode:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return open(path, mode, **options)

        monkeypatch.setattr("fastgru.tables.open", denied, raising=False)
        monkeypatch.setattr("fastgru.formats.replacing.open", denied, raising=False)
        for arguments, name in ((score, "y.npy"), (score, "y.csv"), (convert, "m.safetensors")):
            assert command(*arguments, tmp_path / name) == 1
            assert capsys.readouterr().err == f"fastgru: {tmp_path / name}: Permission denied\n"
        assert [p.name for p in tmp_path.iterdir()] == ["x.npy"]

    def test_a_copy_that_differs_is_removed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def save(self: Model, path: str) -> None:
            model = load(GOLDEN / "keras_text_gru.keras")
            assert isinstance(model, Model)
            weights = model.get_weights()
            model.set_weights([w + 1 for w in weights])
            original(model, path)

        original = Model.write
        monkeypatch.setattr(Model, "write", save)
        assert command("convert", TEXT, tmp_path / "m.safetensors", "--verify") == 1
        assert "differs from" in capsys.readouterr().err
        assert not list(tmp_path.iterdir())


class TestScore:
    @pytest.fixture
    def ids(self) -> np.ndarray:
        return np.random.default_rng(0).integers(0, 20, (10, 12))

    @pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv"])
    @pytest.mark.parametrize("out", [".npy", ".npz", ".csv"])
    def test_formats(self, suffix: str, out: str, ids: np.ndarray, tmp_path: Path) -> None:
        source, target = tmp_path / f"x{suffix}", tmp_path / f"y{out}"
        if suffix == ".npy":
            np.save(source, ids)
        elif suffix == ".npz":
            np.savez(source, anything=ids)
        else:
            np.savetxt(source, ids, "%d", ",")
        assert command("score", TEXT, source, target, "--num-threads", "1", "--batch-size", "3") == 0
        model = load(TEXT)
        assert isinstance(model, Model)
        y = model.predict(ids)
        if out == ".csv":
            np.testing.assert_allclose(np.loadtxt(target, delimiter=","), y, rtol=1e-6)
        else:
            found = np.load(target)
            np.testing.assert_array_equal(found[found.files[0]] if out == ".npz" else found, y)

    def test_csv_lines_hold_the_features_step_by_step(self, tmp_path: Path) -> None:
        model = Sequential([layers.Input((None, 3)), layers.GRU(2)])
        x = normal(4, 5, 3)
        y = model.predict(x)
        model.save(tmp_path / "m.safetensors")
        np.savetxt(tmp_path / "x.csv", x.reshape(4, 15), "%.9g", ",")
        assert command("score", tmp_path / "m.safetensors", tmp_path / "x.csv", tmp_path / "y.npy") == 0
        np.testing.assert_allclose(np.load(tmp_path / "y.npy"), y, atol=1e-6)

    def test_lengths_in_an_npz(self, tmp_path: Path) -> None:
        model = Sequential([layers.Input((None, 3), name="x"), layers.GRU(2)])
        x, lengths = normal(4, 5, 3), np.array([5, 1, 0, 2])
        y = model.predict(x, lengths=lengths)
        model.save(tmp_path / "m.safetensors")
        np.savez(tmp_path / "x.npz", x=x, lengths=lengths)
        assert command("score", tmp_path / "m.safetensors", tmp_path / "x.npz", tmp_path / "y.npy") == 0
        np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), y)

    @pytest.mark.parametrize("given", [("lengths", 0), ("lengths", 1), ("mask", 0), ("both", 0)])
    def test_padding_of_several_inputs(
        self, given: tuple[str, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """NAME_lengths and NAME_mask, in chunks; a bare one does not say of which."""
        path = GOLDEN / "k3_nested.keras"
        model = load(path)
        assert isinstance(model, Model)
        ends = [end.name for end in model.inputs]
        assert len(ends) == 2
        rng, kind, one = np.random.default_rng(0), *given
        x = {e.name: rng.standard_normal((5, 5, 3)).astype(np.float32) for e in model.inputs}
        lengths = {name: rng.integers(0, 6, 5) for name in ends}
        if kind == "both":
            padding: dict[str, Any] = {"lengths": lengths}
        else:
            value = lengths[ends[one]] if kind == "lengths" else np.arange(5) < lengths[ends[one]][:, None]
            padding = {kind: {name: value if i == one else None for i, name in enumerate(ends)}}
        expected = model.predict(x, **padding)
        arrays = {f"{n}_{k}": v for k, part in padding.items() for n, v in part.items() if v is not None}
        np.savez(tmp_path / "x.npz", **x, **arrays)
        assert command("score", path, tmp_path / "x.npz", tmp_path / "y.npy", "--batch-size", "2") == 0
        np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), expected)
        assert not np.array_equal(expected, model.predict(x))
        np.savez(tmp_path / "x.npz", **x, lengths=lengths[ends[0]])
        assert command("score", path, tmp_path / "x.npz", tmp_path / "y.npy") == 1
        assert f"{ends[0]}_lengths" in capsys.readouterr().err

    @pytest.mark.parametrize("single", [False, True])
    def test_state_dict(self, single: bool, tmp_path: Path) -> None:
        gru = load(GOLDEN / "torch_bigru.pt")
        assert isinstance(gru, nn.GRU)
        gru.batch_first = True
        x = normal(*(() if single else (5,)), 7, gru.input_size)
        np.save(tmp_path / "x.npy", x)
        arguments = ["score", GOLDEN / "torch_bigru.pt", tmp_path / "x.npy"]
        assert command(*arguments, tmp_path / "y.npy", "--batch-size", "2") == 0
        y, h_n = gru(x)
        np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), y)
        assert command(*arguments, tmp_path / "y.npz") == 0
        found = np.load(tmp_path / "y.npz")
        np.testing.assert_array_equal(found["y"], y)
        np.testing.assert_array_equal(found["h_n"], h_n)

    @pytest.mark.parametrize(
        ("bad", "message"),
        [
            (np.full((2, 12), 10**6), "expected ids in 0 … "),
            (np.zeros((2, 3, 4, 5)), "input "),
            (np.array([["a"]]), "expected numbers"),
        ],
    )
    def test_errors_write_nothing(
        self, bad: np.ndarray, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        np.save(tmp_path / "x.npy", bad)
        assert command("score", TEXT, tmp_path / "x.npy", tmp_path / "y.npy") == 1
        err = capsys.readouterr().err
        assert err.startswith("fastgru: ") and message in err and "Traceback" not in err
        assert [p.name for p in tmp_path.iterdir()] == ["x.npy"]

    def test_other_errors(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        np.save(tmp_path / "x.npy", normal(2, 12))
        cases = (
            ((tmp_path / "none.keras", tmp_path / "x.npy", tmp_path / "y.npy"), "none.keras"),
            ((TEXT, tmp_path / "none.npy", tmp_path / "y.npy"), "none.npy"),
            ((TEXT, tmp_path, tmp_path / "y.npy"), "found a folder"),
            ((tmp_path, tmp_path / "x.npy", tmp_path / "y.npy"), "folder"),
            ((TEXT, tmp_path / "x.npy", tmp_path / "y.txt"), "ends in .npy, .npz or .csv"),
            ((TEXT, tmp_path / "x.npy", tmp_path / "y.npy", "--prefix", "a"), "a whole model takes no --prefix"),
        )
        for arguments, message in cases:
            assert command("score", *arguments) == 1
            assert message in capsys.readouterr().err
        for usage in (["score", "a"], ["bogus"], [], ["score", "a", "b", "c", "--num-threads", "0"]):
            with pytest.raises(SystemExit) as stop:
                main(usage)
            assert stop.value.code == 2

    @pytest.mark.parametrize("number", ["x", "0", "-1", "1.5"])
    def test_numbers_of_options(self, number: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            main(["score", "a", "b", "c", "--num-threads", number])
        assert f"expected a whole number of at least 1, found '{number}'" in capsys.readouterr().err

    def test_a_missing_file(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert command("info", tmp_path / "nope.keras") == 1
        assert capsys.readouterr().err == f"fastgru: {tmp_path / 'nope.keras'}: no such file\n"

    def test_errors_name_the_file_of_the_array(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for model in (GOLDEN / "torch_bigru.pt", GOLDEN / "keras_reset_after.keras"):
            for shape in ((2, 3, 999), (0, 3, 999)):
                np.save(tmp_path / "x.npy", np.zeros(shape))
                assert command("score", model, tmp_path / "x.npy", tmp_path / "y.npy") == 1
                err = capsys.readouterr().err
                assert err.startswith(f"fastgru: {tmp_path / 'x.npy'}: ") and "expected " in err

    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize("bad", ["nan", "inf", "-inf", "1e300"])
    @pytest.mark.parametrize("dtype", ["int32", "float32"])
    def test_ids_that_are_no_numbers(
        self, bad: str, dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        model = Sequential([layers.Input((None,), dtype), layers.Embedding(5, 2), layers.GRU(2)])
        model.predict(np.zeros((1, 2), np.int64))
        model.save(tmp_path / "m.safetensors")
        (tmp_path / "x.csv").write_text(f"1,2.9\n3,{bad}\n", encoding="utf-8")
        assert command("score", tmp_path / "m.safetensors", tmp_path / "x.csv", tmp_path / "y.npy") == 1
        found = {"nan": "NaN", "1e300": "1e+300"}.get(bad, bad)
        assert f"contain {found}; expected whole numbers" in capsys.readouterr().err

    def test_fractions_of_ids_are_cut_off(self) -> None:
        embedding = layers.Embedding(5, 2)
        embedding.set_weights([normal(5, 2)])
        np.testing.assert_array_equal(embedding(np.array([[2.7, -0.5]])), embedding(np.array([[2, 0]])))

    def test_several_grus(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        state = dict(load_state_dict(GOLDEN / "torch_bigru.pt"))
        both = {f"{part}.{name}": tensor for part in "ab" for name, tensor in state.items()}
        write_safetensors(tmp_path / "m.safetensors", both)
        np.save(tmp_path / "x.npy", normal(2, 3, 8))
        files = (tmp_path / "m.safetensors", tmp_path / "x.npy", tmp_path / "y.npy")
        assert command("score", *files) == 1
        assert "choose one with --prefix" in capsys.readouterr().err
        assert command("score", *files, "--prefix", "a") == 0

    def test_the_closing_line(self, ids: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        np.save(tmp_path / "x.npy", ids)
        assert command("score", TEXT, tmp_path / "x.npy", tmp_path / "y.npy") == 0
        printed = capsys.readouterr()
        assert f"10 rows → {tmp_path / 'y.npy'} (10, 4)\n" in printed.err and not printed.out
        assert command("score", TEXT, tmp_path / "x.npy", tmp_path / "y.npy", "--quiet") == 0
        assert capsys.readouterr().err == ""
        np.save(tmp_path / "x.npy", normal(1, 5, 8))
        for suffix, shapes in (("npz", "y (1, 5, 32), h_n (4, 1, 16)"), ("csv", "(1, 160)")):
            target = tmp_path / f"y.{suffix}"
            assert command("score", GOLDEN / "torch_bigru.pt", tmp_path / "x.npy", target) == 0
            assert f"1 row → {target} {shapes}\n" in capsys.readouterr().err

    def test_only_the_arrays_of_a_gru_are_looked_at(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        gru = load(GOLDEN / "torch_bigru.pt")
        assert isinstance(gru, nn.GRU)
        gru.batch_first = True
        x, h0 = np.asfortranarray(normal(3, 5, 8)), normal(4, 3, 16, seed=1)
        rest = {"about": np.array("text"), "objects": np.array([{}]), "none": np.array(0)}
        np.savez(tmp_path / "x.npz", x=x, h0=h0, **rest)
        assert command("score", GOLDEN / "torch_bigru.pt", tmp_path / "x.npz", tmp_path / "y.npy") == 0
        np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), gru(x, h0)[0])
        np.savez(tmp_path / "x.npz", x=x, h0=h0.swapaxes(0, 1))
        capsys.readouterr()
        assert command("score", GOLDEN / "torch_bigru.pt", tmp_path / "x.npz", tmp_path / "y.npy") == 1
        err = capsys.readouterr().err
        assert "h0: expected shape (4, 3, 16), found (3, 4, 16); h0 is (layers · directions, N, H)" in err

    @pytest.mark.parametrize("name", ["mask", "lengths", "h0", "x"])
    def test_a_single_array_of_any_name(self, name: str, ids: np.ndarray, tmp_path: Path) -> None:
        np.savez(tmp_path / "ids.npz", **{name: ids})
        assert command("score", TEXT, tmp_path / "ids.npz", tmp_path / "y.npy") == 0
        np.savez(tmp_path / "x.npz", **{name: normal(2, 3, 8)})
        assert command("score", GOLDEN / "torch_bigru.pt", tmp_path / "x.npz", tmp_path / "y.npy") == 0

    def test_what_is_read_is_not_written_over(
        self, ids: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        source = tmp_path / "x.npy"
        np.save(source, ids)
        (tmp_path / "link.npy").hardlink_to(source)
        for target in (source, tmp_path / "link.npy"):
            assert command("score", TEXT, source, target) == 1
            assert f"expected another file than {source}, which is read" in capsys.readouterr().err
        np.testing.assert_array_equal(np.load(source), ids)

    def test_help(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            main(["score", "--help"])
        out = capsys.readouterr().out
        for part in (
            "batch first",
            "is a title",
            "one array of any name",
            "flattened",
            "h0 (layers * directions, N, H)",
        ):
            assert part in " ".join(out.split())

    def test_npz_that_does_not_fit(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        np.savez(tmp_path / "x.npz", a=normal(2, 12), b=normal(2, 12))
        assert command("score", TEXT, tmp_path / "x.npz", tmp_path / "y.npy") == 1
        assert "expected an .npz file with the input 'input_layer', or a single array, found" in capsys.readouterr().err


def test_demo(golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[str]] = []

    def run(argv: list[str]) -> int:
        given.append(argv)
        return 0

    monkeypatch.setattr("fastgru.demo.main", run)
    assert command("demo") == command("demo", "--golden", golden) == 0
    assert given == [[], ["--golden", str(golden)]]
    monkeypatch.undo()
    assert command("demo", "--golden", tmp_path) == 2


def test_as_a_module(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "fastgru", "info", TEXT], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0 and "keras-v3" in run.stdout
    shutil.copy(TEXT, tmp_path / "broken.keras")
    (tmp_path / "broken.keras").write_bytes(TEXT.read_bytes()[:900])
    run = subprocess.run(
        [sys.executable, "-m", "fastgru", "info", tmp_path / "broken.keras"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 1 and run.stderr.startswith("fastgru: ") and "Traceback" not in run.stderr


PEAK = """
import resource, sys
from fastgru.cli import main
from tqdm import tqdm
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert main(sys.argv[1:]) == 0
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts in KiB on Linux only")
def test_a_million_rows_stay_on_disk(tmp_path: Path) -> None:
    model = Sequential([layers.Input((None,), "int32"), layers.Embedding(200_000, 32), layers.GRU(8)])
    model.predict(np.zeros((1, 4), np.int32))
    model.save(tmp_path / "m.safetensors")
    rows = 1_000_000
    x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.int32, (rows, 20))
    rng = np.random.default_rng(0)
    for i in range(0, rows, 50_000):
        x[i : i + 50_000] = rng.integers(0, 200_000, (50_000, 20))
    del x
    arguments = ["score", tmp_path / "m.safetensors", tmp_path / "x.npy", tmp_path / "y.npy", "--quiet"]
    run = subprocess.run(
        [sys.executable, "-c", PEAK, *arguments], capture_output=True, text=True, timeout=600, check=True
    )
    weights = 4 * model.count_params()
    chunk = 1024 * 20 * (4 + 8 + 1 + 32 * 4) + 1024 * 8 * 4
    slack = 8 << 20  # what the first call of NumPy's functions brings in
    assert int(run.stdout) <= 2 * weights + chunk + slack
    assert np.load(tmp_path / "y.npy", mmap_mode="r").shape == (rows, 8)


def test_format_errors_are_value_errors() -> None:
    assert issubclass(FormatError, ValueError)
