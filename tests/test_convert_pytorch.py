"""Weights by PyTorch's names: which tensors, which bytes, what is refused. No framework is needed here."""

from __future__ import annotations

import io
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_layers import normal

from fastgru import layers, nn
from fastgru.convert.to_pytorch import modules, state_dict
from fastgru.formats import FormatError, read
from fastgru.formats.pytorch_writer import write_pytorch
from fastgru.loading import load
from fastgru.models import Model, Sequential


def model_of(*parts: Any, width: int = 3) -> Sequential:
    """A model with drawn weights, biases too."""
    model = Sequential([layers.Input((None, width)), *parts])
    model.predict(normal(2, 4, width))
    rng = np.random.default_rng(5)
    # a variance, among the vectors, is not negative
    model.set_weights([rng.uniform(-1.0 * (w.ndim > 1), 1.0, w.shape).astype(np.float32) for w in model.get_weights()])
    return model


class TestWriter:
    def test_bytes_of_the_archive(self, tmp_path: Path) -> None:
        write_pytorch(tmp_path / "m.pt", {"a": normal(3, 5), "b": np.arange(4), "empty": np.zeros((0, 2), np.float32)})
        data = (tmp_path / "m.pt").read_bytes()
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = [info.filename for info in archive.infolist()]
            for info in archive.infolist():
                assert info.compress_type == zipfile.ZIP_STORED
                extra = int.from_bytes(data[info.header_offset + 28 : info.header_offset + 30], "little")
                assert (info.header_offset + 30 + len(info.filename) + extra) % 64 == 0
            opcodes = [op.name for op, _, _ in pickletools.genops(archive.read("archive/data.pkl"))]
        storages = [f"archive/data/{i}" for i in range(3)]
        assert names == ["archive/data.pkl", "archive/byteorder", *storages, "archive/version"]
        assert opcodes[0] == "PROTO" and opcodes.count("BINPERSID") == 3

    @pytest.mark.parametrize("dtype", "f8 f4 f2 i8 i4 i2 i1 u1 b1 c8 c16 >f4".split())
    def test_dtypes_come_back(self, dtype: str, tmp_path: Path) -> None:
        value = (10 * normal(3, 4)).astype(dtype)
        write_pytorch(tmp_path / "m.pt", {"w": value, "scalar": value[0, 0].reshape(())})
        found = read(tmp_path / "m.pt").tensors
        np.testing.assert_array_equal(found["w"], value)
        assert found["w"].dtype == np.dtype(dtype).newbyteorder("=") and found["scalar"].shape == ()

    def test_a_dtype_without_a_storage(self, tmp_path: Path) -> None:
        with pytest.raises(FormatError, match=r"m\.pt: tensor 'w': expected one of .*found uint16"):
            write_pytorch(tmp_path / "m.pt", {"w": np.zeros(2, np.uint16)})
        assert not list(tmp_path.iterdir())

    def test_a_name_that_is_no_text(self, tmp_path: Path) -> None:
        """A pickle of Python may hold half of a surrogate pair, which UTF-8 can't."""
        with pytest.raises(FormatError, match=r"m\.pt: tensor 'rnn\.\\ud800w': expected a name that is Unicode text"):
            write_pytorch(tmp_path / "m.pt", {"a": np.ones(3), "rnn.\ud800w": np.zeros(2)})
        assert not list(tmp_path.iterdir())

    def test_the_same_memory_stays_one_storage(self, tmp_path: Path) -> None:
        table = normal(6, 4)
        write_pytorch(tmp_path / "m.pt", {"in": table, "out": table, "copy": table.copy(), "turned": table.T})
        with zipfile.ZipFile(tmp_path / "m.pt") as archive:
            assert sum("/data/" in name for name in archive.namelist()) == 3
        found = read(tmp_path / "m.pt").tensors
        assert np.shares_memory(found["in"], found["out"]) and not np.shares_memory(found["in"], found["copy"])
        np.testing.assert_array_equal(found["turned"], table.T)

    def test_the_same_tensors_give_the_same_bytes(self, tmp_path: Path) -> None:
        for name in ("a.pt", "b.pt"):
            write_pytorch(tmp_path / name, {"w": normal(3, 4)})
        assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()

    def test_a_failure_leaves_the_old_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        target = tmp_path / "m.pt"
        write_pytorch(target, {"w": np.ones(3)})
        before = target.read_bytes()

        def broken(*_: Any) -> None:
            raise OSError("disk full")

        monkeypatch.setattr("fastgru.formats.replacing.os.fsync", broken)
        with pytest.raises(OSError, match="disk full"):
            write_pytorch(target, {"w": np.zeros(3)})
        assert target.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["m.pt"]


class TestNames:
    def test_a_stack_is_one_module(self) -> None:
        def both() -> layers.Bidirectional:
            return layers.Bidirectional(layers.GRU(4, return_sequences=True))

        model = model_of(both(), layers.Dropout(0.5), both())
        found = state_dict(model)
        expected = nn.GRU(3, 4, num_layers=2, bidirectional=True, batch_first=True)
        assert sorted(found) == sorted(expected.state_dict())
        expected.load_state_dict(found)
        x = normal(2, 5, 3)
        np.testing.assert_array_equal(expected(x)[0], model.predict(x))

    @pytest.mark.parametrize("last", [True, False])
    def test_the_last_layer_may_give_its_last_step(self, last: bool) -> None:
        found = state_dict(model_of(layers.GRU(4, return_sequences=True), layers.GRU(4, return_sequences=last)))
        assert [name for name in found if name.startswith("weight_hh")] == ["weight_hh_l0", "weight_hh_l1"]

    def test_cells_stacked_in_rnn_are_layers(self) -> None:
        found = state_dict(model_of(layers.RNN([layers.GRUCell(4), layers.GRUCell(4)])))
        assert "weight_hh_l1" in found

    def test_layers_of_other_sizes_keep_their_names(self) -> None:
        found = state_dict(model_of(layers.GRU(4, return_sequences=True), layers.GRU(5)))
        assert {name.split(".")[0] for name in found} == {"gru", "gru_1"} and "gru_1.weight_ih_l0" in found

    def test_every_layer_with_weights(self) -> None:
        model = model_of(
            layers.Dense(4, use_bias=False),
            layers.GRU(4, return_sequences=True, use_bias=False),
            layers.BatchNormalization(scale=False),
            layers.LayerNormalization(center=False),
            layers.TimeDistributed(layers.Dense(2)),
            layers.PReLU(shared_axes=[1]),
        )
        found = state_dict(model)
        assert list(found) == [
            "dense.weight",
            "gru.weight_ih_l0",
            "gru.weight_hh_l0",
            "batch_normalization.weight",
            "batch_normalization.bias",
            "batch_normalization.running_mean",
            "batch_normalization.running_var",
            "layer_normalization.weight",
            "layer_normalization.bias",
            "time_distributed.layer.weight",
            "time_distributed.layer.bias",
            "p_re_lu.weight",
        ]
        assert all(value.dtype == np.float32 and value.flags.c_contiguous for value in found.values())
        assert (found["batch_normalization.weight"] == 1).all() and (found["layer_normalization.bias"] == 0).all()
        assert found["dense.weight"].shape == (4, 3)
        assert "dense: torch.nn.Linear(in_features=3, out_features=4, bias=False)" in map(str, modules(model))

    def test_gru_and_cell_keep_theirs(self) -> None:
        for gru in (nn.GRU(3, 4, 2, bias=False, bidirectional=True), nn.GRUCell(3, 4)):
            expected = gru.state_dict()
            found = state_dict(gru)
            assert list(found) == list(expected)
            assert all(np.array_equal(found[name], expected[name]) for name in expected)

    def test_the_other_convention_is_turned(self) -> None:
        model = model_of(layers.GRU(4, return_sequences=True))
        turned = Sequential([layers.Input((None, 3)), gru := layers.GRU(4, return_sequences=True)])
        gru.cells[0].update_gate = "new"
        gru.assign(model.layers[0].weights)
        again = nn.GRU(3, 4, batch_first=True)
        again.load_state_dict(state_dict(turned))
        x = normal(2, 5, 3)
        np.testing.assert_allclose(again(x)[0], turned.predict(x), atol=1e-6)
        assert np.abs(model.predict(x) - turned.predict(x)).max() > 0.01


REFUSED = {
    "reset before": ([layers.GRU, {"reset_after": False}], "applies the reset gate after the recurrent product"),
    "relu": ([layers.GRU, {"activation": "relu"}], "has tanh and sigmoid, this layer relu and sigmoid"),
    "hard_sigmoid": ([layers.GRU, {"recurrent_activation": "hard_sigmoid"}], "tanh and hard_sigmoid(0.167, 0.5)"),
    "backwards": ([layers.GRU, {"go_backwards": True}], "runs backwards only as the second half"),
    "time_major": ([layers.GRU, {"time_major": True}], "time_major=True"),
}


class TestRefused:
    @pytest.mark.parametrize("what", REFUSED)
    def test_a_gru(self, what: str) -> None:
        (kind, options), why = REFUSED[what]
        for parts in ([], [layers.Dense(2)]):
            model = model_of(kind(4, return_sequences=True, name="memory", **options), *parts)
            with pytest.raises(FormatError) as refused:
                state_dict(model)
            assert str(refused.value).startswith("PyTorch can't express layer 'memory' (GRU): ")
            assert why in str(refused.value)

    @pytest.mark.parametrize("mode", ["sum", "mul", "ave"])
    def test_merge_modes(self, mode: str) -> None:
        model = model_of(layers.Bidirectional(layers.GRU(4), merge_mode=mode))
        with pytest.raises(FormatError, match=f"merge_mode='{mode}'; torch.nn.GRU only concatenates"):
            state_dict(model)

    def test_halves_that_differ(self) -> None:
        model = model_of(layers.Bidirectional(layers.GRU(4), backward_layer=layers.GRU(5, go_backwards=True)))
        with pytest.raises(FormatError, match="two directions differ"):
            state_dict(model)

    def test_masks(self) -> None:
        with pytest.raises(FormatError, match=r"'gru' \(GRU\): a mask reaches it.*lengths"):
            state_dict(model_of(layers.Masking(), layers.GRU(4)))
        # a mask that nothing looks at changes nothing
        assert "gru.weight_ih_l0" in state_dict(
            model_of(layers.GRU(4, return_sequences=True), layers.Masking(), layers.Dense(2))
        )

    def test_cells_of_other_sizes_in_one_layer(self) -> None:
        with pytest.raises(FormatError, match="of different units; torch.nn.GRU stacks layers of one hidden_size"):
            state_dict(model_of(layers.RNN([layers.GRUCell(4), layers.GRUCell(5)])))

    @pytest.mark.parametrize("gru", [nn.GRU(3, 4, reset_after=False), nn.GRUCell(3, 4, activation="relu")])
    def test_variants_of_nn(self, gru: nn.GRU | nn.GRUCell) -> None:
        with pytest.raises(FormatError, match="torch.nn.GRU is reset-after with tanh and sigmoid, not "):
            state_dict(gru)

    def test_a_slope_for_each_step(self) -> None:
        model = Sequential([layers.Input((4, 3)), layers.PReLU()])
        model.predict(normal(2, 4, 3))
        with pytest.raises(FormatError, match="a slope for each step"):
            state_dict(model)


def test_golden_models(golden: Path) -> None:
    """What real files give, and for what reason the others are refused."""
    converted, reasons = [], []
    for path in sorted([*golden.glob("*.keras"), *golden.glob("*.h5")]):
        model = load(path)
        assert isinstance(model, Model)
        try:
            state_dict(model)
            converted.append(path.name)
        except FormatError as error:
            reasons.append(str(error).split("): ")[1].split(";")[0])
    assert all(
        reason.startswith(("a mask reaches", "torch.nn.GRU ", "a slope for each step", "time_major", "merge_mode"))
        for reason in reasons
    )
    assert len(converted) >= 25 and len(reasons) >= 15
