"""`fastgru diff`: every usual suspect is planted, and named; equal copies are equal whatever their format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastgru
from fastgru import formats, layers
from fastgru.cli import main
from fastgru.convert import convert
from fastgru.convert.diff import Difference, diff
from fastgru.convert.suspects import bfloat16, rounding

GOLDEN = Path(__file__).parent / "golden"
State = dict[str, np.ndarray]


def state(inputs: int = 4, hidden: int = 5, both: bool = True, seed: int = 0) -> State:
    rng, found = np.random.default_rng(seed), {}
    for suffix in ("_l0", "_l0_reverse")[: 1 + both]:
        shapes = {"weight_ih": (3 * hidden, inputs), "weight_hh": (3 * hidden, hidden)}
        shapes |= {"bias_ih": (3 * hidden,), "bias_hh": (3 * hidden,)}
        found |= {f"rnn.{n}{suffix}": rng.uniform(-0.5, 0.5, s).astype(np.float32) for n, s in shapes.items()}
    return found


def write(path: Path, tensors: State) -> Path:
    formats.write_safetensors(path, tensors)
    return path


def blocks(a: np.ndarray) -> list[np.ndarray]:
    return [part.copy() for part in np.split(a, 3)]


def of_l0(change: Callable[[str, np.ndarray], np.ndarray], tensors: State) -> State:
    return {n: change(n, t) if n.endswith("_l0") else t for n, t in tensors.items()}


def gate_order(_: str, a: np.ndarray) -> np.ndarray:
    r, z, n = blocks(a)
    return np.concatenate([z, r, n])


def rotated_gates(_: str, a: np.ndarray) -> np.ndarray:
    r, z, n = blocks(a)
    return np.concatenate([n, r, z])


def negated(_: str, a: np.ndarray) -> np.ndarray:
    r, z, n = blocks(a)
    return np.concatenate([r, -z, n])


def transposed(name: str, a: np.ndarray) -> np.ndarray:
    return np.concatenate([b.T for b in blocks(a)]) if "weight_hh" in name else a


def half(_: str, a: np.ndarray) -> np.ndarray:
    return a.astype(np.float16).astype(np.float32)


def brain(_: str, a: np.ndarray) -> np.ndarray:
    return bfloat16(a)


def gate_order_and_negated(name: str, a: np.ndarray) -> np.ndarray:
    return half(name, gate_order(name, negated(name, a)))


def split(gates: slice) -> Callable[[str, np.ndarray], np.ndarray]:
    def change(name: str, a: np.ndarray) -> np.ndarray:
        if "bias" not in name:
            return a
        moved = a.copy()
        moved[gates] += 0.25 if "bias_ih" in name else -0.25
        return moved

    return change


def lines(found: Difference) -> str:
    return "\n".join(found.lines())


@pytest.mark.parametrize(
    ("change", "words", "harmless"),
    [
        (gate_order, ("gate order", "reset, update and new gates", "update, reset, new"), False),
        (rotated_gates, ("gate order", "new, reset, update"), False),
        (negated, ("update-gate convention",), False),
        (transposed, ("transposed kernel: weight_hh",), False),
        (half, ("rounding", "float16"), None),
        (brain, ("rounding", "bfloat16"), None),
        (split(slice(0, 10)), ("bias split", "harmless"), True),
        (split(slice(10, 15)), ("bias split", "changes the output"), False),
        (gate_order_and_negated, ("gate order", "convention", "float16"), False),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_planted(change: Any, words: tuple[str, ...], harmless: bool | None, tmp_path: Path) -> None:
    plain = state()
    a, b = write(tmp_path / "a", plain), write(tmp_path / "b", of_l0(change, plain))
    for found in (diff(a, b), diff(b, a)):
        assert not found.equal
        said = [s for s in found.suspects if s.startswith("rnn.l0:")]
        assert len(said) == len(found.suspects), found.suspects
        for word in words:
            if word not in ("update, reset, new", "new, reset, update"):
                assert any(word in s for s in said), lines(found)
        worst = max(c.max_error for c in found.outputs)
        assert (worst < 1e-6) if harmless else (worst > 1e-4 if harmless is False else 0 < worst < 0.1), worst
        if harmless is False and "float16" not in words:
            assert "with that corrected in B" in said[-1]
            assert float(said[-1].rsplit("(", 1)[1].split()[0]) < 1e-6
    for word in words:
        assert word in lines(diff(a, b))


def test_directions(tmp_path: Path) -> None:
    plain = state()
    other = {n.removesuffix("_reverse") if n.endswith("_reverse") else f"{n}_reverse": t for n, t in plain.items()}
    found = diff(write(tmp_path / "a", plain), write(tmp_path / "b", other))
    assert [s for s in found.suspects if "swapped directions" in s] == found.suspects and found.suspects


def test_other_weights_are_not_explained_away(tmp_path: Path) -> None:
    found = diff(write(tmp_path / "a", state()), write(tmp_path / "b", state(seed=1)))
    assert len(found.suspects) == 2 and all("no usual mistake" in s for s in found.suspects)
    # a suspect that explains three of four tensors explains nothing
    changed = of_l0(gate_order, state())
    changed["rnn.weight_hh_l0"][3, 3] += 0.01
    found = diff(tmp_path / "a", write(tmp_path / "c", changed))
    assert len(found.suspects) == 1 and "no usual mistake" in found.suspects[0]


def test_equal_copies(tmp_path: Path) -> None:
    plain = state()
    a = write(tmp_path / "a", plain)
    assert diff(a, a).equal
    assert diff(a, write(tmp_path / "b", dict(reversed(plain.items())))).equal
    renamed = write(tmp_path / "c", {n.replace("rnn.", "net.encoder."): t for n, t in plain.items()})
    assert diff(a, renamed).equal
    wide = write(tmp_path / "d", {n: t.astype(np.float64) for n, t in plain.items()})
    assert diff(a, wide).equal
    near = write(tmp_path / "e", {n: t + np.float32(1e-6) for n, t in plain.items()})
    assert not diff(a, near).equal and not diff(a, near, atol=1e-7).equal and diff(a, near, atol=1e-3).equal


def test_missing_extra_and_shapes(tmp_path: Path) -> None:
    plain = state() | {"head.weight": np.ones((2, 10), np.float32), "only.a": np.ones(3), "wide": np.ones(4)}
    other = state() | {"head.weight": np.ones((2, 10), np.float32), "only.b": np.ones((2, 2)), "wide": np.ones(5)}
    found = diff(write(tmp_path / "a", plain), write(tmp_path / "b", other))
    rows = {(t.a, t.b): t for t in found.tensors}
    assert rows["only.a", None].max_abs is None and rows[None, "only.b"].shape_b == (2, 2)
    assert rows["wide", "wide"].note == "shapes differ" and rows["head.weight", "head.weight"].max_abs == 0
    text = lines(found)
    assert "only in A" in text and "only in B" in text and "9 of 12 tensors equal" in text
    bigger = diff(tmp_path / "a", write(tmp_path / "c", state(hidden=6)))
    assert not bigger.equal and any(t.note == "shapes differ" for t in bigger.tensors)


def test_values_that_are_no_numbers(tmp_path: Path) -> None:
    odd = np.array([np.nan, np.inf, 1.0, -np.inf], np.float32)
    a, b = write(tmp_path / "a", {"w": odd}), write(tmp_path / "b", {"w": np.array([0, np.inf, 1, 1], np.float32)})
    assert diff(a, a).tensors[0].max_abs == 0
    assert diff(a, b).tensors[0].max_abs == np.inf


def test_a_transposed_linear_layer(tmp_path: Path) -> None:
    w = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    found = diff(write(tmp_path / "a", {"w": w}), write(tmp_path / "b", {"w": np.ascontiguousarray(w.T)}))
    assert not found.equal and found.tensors[0].note == "transposed"
    assert "transposed kernel" in found.suspects[0]


# -------------------------------------------------------------------------------------- variants, formats


def saved(path: Path, **options: Any) -> Path:
    rng = np.random.default_rng(3)
    gru = layers.GRU(5, return_sequences=True, use_bias=False, name="gru", **options)
    model = fastgru.Sequential([layers.Input((None, 4)), gru, layers.Dense(2, name="dense")])
    model.predict(np.zeros((1, 2, 4)))
    shapes = [w.shape for w in model.get_weights()]
    model.set_weights([rng.uniform(-1, 1, s).astype(np.float32) for s in shapes])
    model.save(path)
    return path


@pytest.mark.parametrize(
    ("one", "other", "word"),
    [
        ({"reset_after": True}, {"reset_after": False}, "reset placement: A applies the reset gate after"),
        ({"reset_after": False}, {"reset_after": True}, "reset placement: A applies the reset gate before"),
        ({"activation": "relu"}, {"activation": "tanh"}, "activation: A has relu, B tanh"),
        ({}, {"recurrent_activation": "hard_sigmoid"}, "recurrent_activation: A has sigmoid, B hard_sigmoid"),
    ],
    ids=str,
)
def test_variants(one: dict[str, Any], other: dict[str, Any], word: str, tmp_path: Path) -> None:
    found = diff(saved(tmp_path / "a", **one), saved(tmp_path / "b", **other))
    assert all(t.max_abs == 0 for t in found.tensors) and not found.equal
    assert len(found.suspects) == 1 and word in found.suspects[0], found.suspects
    assert "(0 with that corrected in B)" in found.suspects[0]
    assert max(c.max_error for c in found.outputs) > 1e-3


def test_hard_sigmoid(tmp_path: Path) -> None:
    """The same config and weights, said to be of Keras 2 and of Keras 3."""
    path = GOLDEN / "weights_only/k3_chain.weights.h5"
    config = json.loads((GOLDEN / "weights_only/k3_chain.json").read_text())
    for name, version in (("a", "2.13.1"), ("b", "3.8.0")):
        model = fastgru.load(path, config={**config, "keras_version": version})
        assert isinstance(model, fastgru.Model)
        model.save(tmp_path / name)
    found = diff(tmp_path / "a", tmp_path / "b")
    assert all(t.max_abs == 0 for t in found.tensors) and not found.equal
    assert len(found.suspects) == 2 and all(
        "hard_sigmoid's definition: A clips 0.2 x + 0.5" in s for s in found.suspects
    )


def test_cudnn_layout_taken_for_the_plain_one(tmp_path: Path) -> None:
    path = GOLDEN / "syn_cudnn_cudnngru.h5"
    right = fastgru.load(path)
    assert isinstance(right, fastgru.Model)
    kernel, recurrent, bias = right.get_weights()
    gru = layers.GRU(4, return_sequences=True, name="gru")
    wrong = fastgru.Sequential([layers.Input((None, 3)), gru])
    wrong.predict(np.zeros((1, 2, 3)))
    wrong.set_weights([kernel, recurrent, bias.reshape(2, 12)])
    wrong.save(tmp_path / "wrong")
    found = diff(path, tmp_path / "wrong")
    assert any("CuDNN" in s for s in found.suspects) and "corrected in B" in found.suspects[-1], lines(found)
    assert any("CuDNN" in s for s in diff(tmp_path / "wrong", path).suspects)


@pytest.mark.parametrize("name", ["keras_text_gru.keras", "k3_bidirectional.keras", "tfk_nested.h5", "k3_rnn_cells.h5"])
def test_a_copy_in_our_format(name: str, tmp_path: Path) -> None:
    model = fastgru.load(GOLDEN / name)
    assert isinstance(model, fastgru.Model)
    model.save(tmp_path / "copy")
    found = diff(GOLDEN / name, tmp_path / "copy")
    assert found.equal and len(found.tensors) >= len(model.get_weights()) and found.outputs


def test_keras_and_pytorch(tmp_path: Path) -> None:
    """The layout of each is undone; what was forgotten by hand is named."""
    path = GOLDEN / "keras_reset_after.keras"
    convert(path, tmp_path / "right.pt")
    found = diff(path, tmp_path / "right.pt")
    assert found.equal, lines(found)
    tensors = fastgru.load_state_dict(tmp_path / "right.pt")
    forgotten = {n: gate_order(n, t) if "_l0" in n else t for n, t in tensors.items()}
    found = diff(path, write(tmp_path / "wrong", forgotten))
    assert not found.equal and any("gate order" in s for s in found.suspects), lines(found)
    single = saved(tmp_path / "single")
    convert(single, tmp_path / "single.pt")
    assert diff(single, tmp_path / "single.pt").equal


def test_a_state_dict_is_read_in_either_layout(tmp_path: Path) -> None:
    """The last step alone, as Keras gives it by default, is no difference."""
    gru = layers.Bidirectional(layers.GRU(5, name="gru"), name="both")
    model = fastgru.Sequential([layers.Input((7, 4)), gru])
    model.predict(np.zeros((1, 7, 4)))
    model.set_weights([np.random.default_rng(0).uniform(-1, 1, w.shape) for w in model.get_weights()])
    model.save(tmp_path / "model")
    convert(tmp_path / "model", tmp_path / "model.pt")
    found = diff(tmp_path / "model", tmp_path / "model.pt")
    assert found.equal and [c.name for c in found.outputs][:1] == ["random"], lines(found)


@pytest.mark.parametrize("name", ["keras_text_gru.keras", "k3_bidirectional.keras"])
def test_onnx(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="onnx writes the file")
    path = GOLDEN / name
    convert(path, tmp_path / "m.onnx")
    for found in (diff(path, tmp_path / "m.onnx"), diff(tmp_path / "m.onnx", path)):
        assert found.equal, lines(found)
        assert found.outputs and any("constants of the ONNX graph" in note for note in found.notes)
        # its GRUs are matched as GRUs: each of Keras' has four tensors in PyTorch's layout
        assert sum(bool(t.a and t.b and "weight_hh" in t.a + t.b) for t in found.tensors) >= 2


@pytest.mark.parity("torch")
def test_onnx_of_pytorch(tmp_path: Path) -> None:
    """PyTorch's own exporter against the state_dict: equal, and with another gate order named."""
    torch = pytest.importorskip("torch", reason="PyTorch exports the model")
    pytest.importorskip("onnx", reason="PyTorch's exporter needs it")
    torch.manual_seed(0)
    gru = torch.nn.GRU(4, 5, num_layers=2, bidirectional=True)
    torch.save(gru.state_dict(), tmp_path / "gru.pt")
    torch.onnx.export(gru, (torch.zeros(3, 2, 4),), tmp_path / "gru.onnx", dynamo=False, input_names=["x"])
    found = diff(tmp_path / "gru.pt", tmp_path / "gru.onnx")
    assert all(t.max_abs == 0 for t in found.tensors) and len(found.tensors) == 16, lines(found)
    assert not found.suspects
    wrong = {n: gate_order(n, t.numpy()) for n, t in gru.state_dict().items()}
    found = diff(tmp_path / "gru.onnx", write(tmp_path / "wrong", wrong))
    assert len(found.suspects) == 4 and all("gate order" in s for s in found.suspects), lines(found)


def test_weights_alone() -> None:
    old, new = (GOLDEN / f"weights_only/tfk_chain{suffix}" for suffix in (".h5", ".weights.h5"))
    found = diff(old, new)
    assert found.equal and not found.outputs and "weights alone" in found.notes[0]
    with_config = diff(old, new, config=GOLDEN / "weights_only/tfk_chain.json")
    assert with_config.equal and with_config.outputs and not with_config.notes


# ------------------------------------------------------------------------------------------- command line


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = str(write(tmp_path / "a", state())), str(write(tmp_path / "b", of_l0(gate_order, state())))
    assert main(["diff", a, a]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "equal"
    assert main(["diff", a, b]) == 1
    out = capsys.readouterr().out
    assert "likely cause: rnn.l0: gate order" in out and out.splitlines()[-1] == "different"
    assert "outputs on random inputs: differ by up to" in out and "more than float32 rounding" in out
    assert "rnn.l0 weight_ih  (15, 4)" in out and "largest difference" in out
    assert main(["diff", a, str(tmp_path / "absent")]) == 2
    assert "absent" in capsys.readouterr().err
    (tmp_path / "junk").write_bytes(b"junk")
    assert main(["diff", a, str(tmp_path / "junk")]) == 2
    two = state() | {n.replace("rnn", "dec"): t for n, t in state(seed=1).items()}
    both = str(write(tmp_path / "two", two))
    assert main(["diff", a, both, "--prefix", "rnn"]) == 0, capsys.readouterr().out
    assert main(["diff", a, both]) == 1
    assert main(["diff", str(GOLDEN / "weights_only/tf213_chain.h5"), str(GOLDEN / "weights_only/tfk_chain.h5")]) == 0


def test_rounding() -> None:
    a = np.array([1.0, 1 / 3, 65519.0, 1e-8], np.float32)
    assert rounding(a, a) == "" and rounding(a, a * np.float32(1.001)) is None
    assert rounding(a, a.astype(np.float16).astype(np.float32)) == "float16" == rounding(half("", a), a)
    assert rounding(a, bfloat16(a)) == "bfloat16"
    assert rounding(a, np.nextafter(a, np.float32(2))) == "float32 rounding"
    np.testing.assert_array_equal(bfloat16(np.array([1.00390625, 1.01171875, np.inf])), [1.0, 1.015625, np.inf])


def test_a_prefix_that_is_in_neither_file_is_no_equality(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (str(write(tmp_path / name, state())) for name in ("a.safetensors", "b.safetensors"))
    assert main(["diff", a, b, "--prefix", "foo"]) == 2
    assert "expected a GRU at prefix 'foo', found GRUs at" in capsys.readouterr().err
    assert main(["diff", a, b, "--atol", "-1"]) == 2
    assert "atol: expected a number of at least 0" in capsys.readouterr().err


# ------------------------------------------------------------------------------- what is compared with what


@pytest.mark.parametrize("name", ["k3_norms.keras", "k3_nested.keras", "tfk_norms.h5"])
def test_onnx_of_norms_and_shared_layers(name: str, tmp_path: Path) -> None:
    """A normalisation is a factor and a shift in the graph, a GRU that is called twice two nodes; neither differs."""
    pytest.importorskip("onnx", reason="onnx writes the file")
    convert(GOLDEN / name, tmp_path / "m.onnx")
    for found in (diff(GOLDEN / name, tmp_path / "m.onnx"), diff(tmp_path / "m.onnx", GOLDEN / name)):
        assert found.equal and any("in another form" in note for note in found.notes), lines(found)


def test_layers_of_transposed_shapes(tmp_path: Path) -> None:
    """(3, 4) and (4, 3) kernels stand in PyTorch's file as each other's shapes."""
    convert(GOLDEN / "k3_nested.keras", tmp_path / "m.pt")
    for found in (
        diff(GOLDEN / "k3_nested.keras", tmp_path / "m.pt"),
        diff(tmp_path / "m.pt", GOLDEN / "k3_nested.keras"),
    ):
        assert found.equal, lines(found)


def test_only_tensors_of_one_kind_are_compared(tmp_path: Path) -> None:
    """A gamma is no bias, whatever their shapes; one that has no partner stays alone."""
    rng = np.random.default_rng(0)
    vectors = {n: rng.standard_normal(5).astype(np.float32) for n in ("gamma", "beta", "bias", "mean", "other")}
    kernel = np.ones((5, 5), np.float32)
    norm = {"norm.weight": vectors["gamma"], "norm.bias": vectors["beta"]}
    head = {"head.weight": kernel, "head.bias": vectors["bias"]}
    mean = {"bn.running_mean": vectors["mean"]}
    a = write(tmp_path / "a", norm | mean)
    b = write(tmp_path / "b", {f"net.{n}": t for n, t in (head | mean).items()})
    rows = {(t.a, t.b) for t in diff(a, b).tensors}
    assert rows == {
        ("norm.weight", None),
        ("norm.bias", None),
        ("bn.running_mean", "net.bn.running_mean"),
        (None, "net.head.weight"),
        (None, "net.head.bias"),
    }
    # other names, other order: by kind, equal values first
    second = {f"n2.{n.partition('.')[2]}": t + 1 for n, t in norm.items()}
    a = write(tmp_path / "a", norm | second)
    b = write(tmp_path / "b", {f"x{n}": t for n, t in (second | norm).items()})
    assert diff(a, b).equal


@pytest.mark.parity("torch")
@pytest.mark.parametrize("opset", [13, 17])
def test_onnx_of_a_network_beside_its_state_dict(opset: int, tmp_path: Path) -> None:
    """LayerNorm, BatchNorm and Linear as wide as the GRU: each is found, in either spelling of the norm."""
    torch = pytest.importorskip("torch", reason="PyTorch exports the model")
    pytest.importorskip("onnx", reason="PyTorch's exporter needs it")

    class Net(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.gru, self.norm = torch.nn.GRU(6, 6, batch_first=True), torch.nn.LayerNorm(6)
            self.batch, self.head = torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 6)

        def forward(self, x: Any) -> Any:
            return self.head(self.batch(self.norm(self.gru(x)[0])[:, -1]))

    torch.manual_seed(0)
    net = Net().eval()
    for p in (*net.norm.parameters(), *net.batch.parameters(), net.batch.running_mean):
        torch.nn.init.normal_(p)
    torch.save(net.state_dict(), tmp_path / "m.pt")
    onnx = tmp_path / "m.onnx"
    torch.onnx.export(net, (torch.zeros(2, 4, 6),), onnx, dynamo=False, opset_version=opset, input_names=["x"])
    for found in (diff(tmp_path / "m.pt", onnx), diff(onnx, tmp_path / "m.pt")):
        assert found.equal and len(found.tensors) == 12 and not found.outputs, lines(found)
        assert any("does not say how" in note for note in found.notes)
    wrong = {n: t.numpy() * (2 if n == "norm.weight" else 1) for n, t in net.state_dict().items()}
    found = diff(write(tmp_path / "wrong", wrong), onnx)
    assert not found.equal and [t.a for t in found.tensors if t.max_abs != 0] == ["norm.weight"], lines(found)
