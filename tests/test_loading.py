"""`load` and `load_state_dict`: by content, by prefix, and errors that say what is there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_layers import normal

import fastgru
from fastgru import formats, nn
from fastgru.cli import main
from fastgru.formats import FormatError
from fastgru.loading import find_grus, load, load_state_dict
from fastgru.models import Model

GOLDEN = Path(__file__).parent / "golden"


def gru_weights(inputs: int = 3, hidden: int = 4, layers: int = 1, both: bool = False) -> dict[str, np.ndarray]:
    rng, found = np.random.default_rng(0), {}
    for layer in range(layers):
        width = inputs if layer == 0 else hidden * (2 if both else 1)
        for suffix in [f"_l{layer}", f"_l{layer}_reverse"][: 2 if both else 1]:
            for name, shape in (
                ("weight_ih", (3 * hidden, width)),
                ("weight_hh", (3 * hidden, hidden)),
                ("bias_ih", (3 * hidden,)),
                ("bias_hh", (3 * hidden,)),
            ):
                found[name + suffix] = rng.standard_normal(shape).astype(np.float32)
    return found


def cell_weights(inputs: int = 3, hidden: int = 4) -> dict[str, np.ndarray]:
    return {name.removesuffix("_l0"): value for name, value in gru_weights(inputs, hidden).items()}


def under(prefix: str, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {prefix + name: value for name, value in weights.items()}


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def make(tensors: dict[str, np.ndarray]) -> Path:
        path = tmp_path / "net.safetensors"
        formats.write_safetensors(path, tensors)
        return path

    return make


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_gru(layers: int, both: bool, bias: bool, write: Any) -> None:
    weights = gru_weights(3, 4, layers, both)
    if not bias:
        weights = {name: value for name, value in weights.items() if "bias" not in name}
    gru = load(write(under("a.b.", weights)))
    assert isinstance(gru, nn.GRU)
    assert (gru.num_layers, gru.bidirectional, gru.bias, gru.batch_first) == (layers, both, bias, False)
    expected = nn.GRU(3, 4, layers, bias, bidirectional=both)
    expected.load_state_dict(weights)
    x = normal(5, 2, 3)
    np.testing.assert_array_equal(gru(x)[0], expected(x)[0])


def test_cell(write: Any) -> None:
    cell = load(write(under("f_obs.", cell_weights())))
    assert isinstance(cell, nn.GRUCell)
    assert cell(normal(2, 3)).shape == (2, 4)


@pytest.mark.parametrize("prefix", ["enc.rnn", "enc.rnn."])
def test_prefix_with_or_without_its_dot(prefix: str, write: Any) -> None:
    path = write({**under("enc.rnn.", gru_weights(3, 4)), **under("dec.rnn.", gru_weights(5, 6))})
    gru = load(path, prefix=prefix)
    assert isinstance(gru, nn.GRU) and gru.hidden_size == 4


def test_several_grus_are_listed(write: Any) -> None:
    path = write({**under("enc.", gru_weights(3, 4)), **under("dec.", cell_weights(5, 6))})
    with pytest.raises(FormatError, match=r"found 2: 'dec.': GRUCell\(5, 6\), 'enc.': GRU\(3, 4\); choose one by pre"):
        load(path)
    with pytest.raises(FormatError, match=r"no GRU at prefix 'x\.'; found 'dec\.': GRUCell"):
        load(path, prefix="x")


def test_what_is_there_reads_as_the_module_prints() -> None:
    weights = {**under("a.", gru_weights(3, 4, 3, both=True)), **under("b.", cell_weights(5, 6))}
    plain = {name: value for name, value in gru_weights().items() if "bias" not in name}
    assert find_grus({**weights, **under("a.c.", plain)}) == {
        "a.": "GRU(3, 4, num_layers=3, bidirectional=True)",
        "b.": "GRUCell(5, 6)",
        "a.c.": "GRU(3, 4, bias=False)",
    }


def test_lstms_and_plain_rnns_are_not_grus(write: Any) -> None:
    lstm = {"l.weight_ih_l0": normal(16, 3), "l.weight_hh_l0": normal(16, 4)}
    rnn = {"r.weight_ih_l0": normal(4, 3), "r.weight_hh_l0": normal(4, 4)}
    assert find_grus({**lstm, **rnn}) == {}
    with pytest.raises(FormatError, match=r"expected the weights of a GRU .*found l.weight_hh_l0 \(16, 4\)"):
        load(write({**lstm, **rnn}))
    assert list(find_grus({**lstm, **under("g.", gru_weights())})) == ["g."]


@pytest.mark.parametrize(
    "names", [("weight_ih_l0_g", "weight_ih_l0_v"), ("parametrizations.weight_hh_l0.original0",) * 2]
)
def test_weight_norm_is_refused_by_name(names: tuple[str, str], write: Any) -> None:
    weights = under("rnn.", gru_weights())
    for dropped in ("weight_hh_l0", "weight_ih_l0"):
        del weights[f"rnn.{dropped}"]
    weights.update({f"rnn.{name}": normal(12, 1) for name in names})
    with pytest.raises(FormatError, match="is a weight under weight_norm: remove the parametrisation in PyTorch"):
        load(write(weights))


def test_contradictory_weights(write: Any) -> None:
    weights = gru_weights()
    weights["bias_ih_l0"] = normal(11)
    with pytest.raises(FormatError, match=r"net\.safetensors: GRU at prefix '': bias_ih_l0"):
        load(write(weights))
    del weights["bias_ih_l0"]
    with pytest.raises(FormatError, match="bias_hh_l0"):
        load(write(weights))


@pytest.mark.parametrize("name", ["model.net", "model.tar", "model", "model.pt"])
@pytest.mark.parametrize("file", ["keras_text_gru.keras", "tfk_masking.h5", "torch_bigru.pt"])
def test_the_suffix_never_matters(file: str, name: str, tmp_path: Path) -> None:
    shutil.copy(GOLDEN / file, tmp_path / name)
    assert isinstance(load(tmp_path / name), nn.GRU if file.startswith("torch") else Model)


def test_prefix_has_no_meaning_for_keras() -> None:
    with pytest.raises(FormatError, match="prefix: expected None, because this is a whole model, found 'gru'"):
        load(GOLDEN / "keras_text_gru.keras", prefix="gru")


def test_state_dicts(write: Any) -> None:
    tensors = {"a.ids": np.arange(4, dtype=np.int16), "flag": np.array(True), "half": normal(3).astype(np.float16)}
    found = load_state_dict(write(tensors))
    assert set(found) == set(tensors)
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"hello, this is no model", "expected a model file"),
        (b"PK\x03\x04" + b"\0" * 40, "zip"),
    ],
)
def test_not_a_model(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "m.keras"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=message):
        load(path)


def test_a_folder_and_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="a folder"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.h5")


@pytest.mark.parametrize("file", ["keras_text_gru.keras", "tfk_masking.h5", "torch_bigru.pt"])
@pytest.mark.parametrize("keep", [0.3, 0.7, 0.99])
def test_truncated(file: str, keep: float, tmp_path: Path) -> None:
    content = (GOLDEN / file).read_bytes()
    path = tmp_path / file
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(FormatError):
        load(path)


def test_the_public_face() -> None:
    assert fastgru.load is load and fastgru.load_state_dict is load_state_dict
    assert fastgru.Model is Model


REFUSED = sorted((GOLDEN / "refused").glob("*"))


@pytest.mark.parametrize("path", REFUSED, ids=lambda p: p.name)
def test_refused_by_name_and_with_a_way_on(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FormatError, match=rf"{re.escape(path.name)}: .*expected .*, found .*; "):
        load(path)
    np.save(tmp_path / "x.npy", normal(2, 3, 4))
    assert main(["score", str(path), str(tmp_path / "x.npy"), str(tmp_path / "y.npy")]) == 1
    assert path.name in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["x.npy"]
