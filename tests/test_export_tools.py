"""tools/export_keras.py and tools/export_torch.py: run where the framework lives, read here, equal outputs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastgru
from fastgru import formats

TOOLS = Path(__file__).parent.parent / "tools"
pytestmark = pytest.mark.skipif(not TOOLS.is_dir(), reason="tools/ does not lie beside the tests here")


def run(*command: Any, status: int = 0) -> str:
    """Run Python with these arguments; return what it printed. PYTHONPATH is not handed on: no fastgru is needed."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    words = [sys.executable, *map(str, command)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == status, done.stdout + done.stderr[-3000:]
    return done.stdout if status == 0 else done.stderr


SEVERAL = """
import contextlib, io, json, sys
sys.path.insert(0, sys.argv[1])
tool = __import__(sys.argv[2])
results = {}
for name, arguments in json.loads(sys.argv[3]).items():
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = tool.main(arguments)
    results[name] = [status, said.getvalue()]
print(json.dumps(results))
"""


def exports(tool: str, jobs: dict[str, list[Any]]) -> dict[str, tuple[int, str]]:
    """Run a tool's main for each job, one process for all (a framework takes seconds to import): status and words."""
    text = json.dumps({name: [str(a) for a in arguments] for name, arguments in jobs.items()})
    done = run("-c", SEVERAL, TOOLS, f"export_{tool}", text)
    return {name: tuple(result) for name, result in json.loads(done.splitlines()[-1]).items()}


@pytest.mark.parametrize("tool", ["keras", "torch"])
def test_the_tools_stand_alone(tool: str) -> None:
    text = (TOOLS / f"export_{tool}.py").read_text()
    assert "import fastgru" not in text and "from fastgru" not in text


# ------------------------------------------------------------------------------------------------- PyTorch

MODULE = """
import torch

class Net(torch.nn.Module):
    def __init__(self, inputs=6, hidden=8):
        super().__init__()
        self.embed = torch.nn.Embedding(9, inputs)
        self.rnn = torch.nn.GRU(inputs, hidden, num_layers=2, bidirectional=True, batch_first=True)
        self.cell = torch.nn.GRUCell(inputs, hidden)
        self.head = torch.nn.Linear(2 * hidden, 3)

    def forward(self, ids):
        y, _ = self.rnn(self.embed(ids))
        return self.head(y)

def normed():
    net = Net()
    torch.nn.utils.parametrizations.weight_norm(net.rnn, "weight_hh_l0")
    torch.nn.utils.parametrizations.spectral_norm(net.head, "weight")
    return net
"""

MAKE_TORCH = """
import sys, numpy as np, torch
import torch.nn.utils.prune
sys.path.insert(0, sys.argv[1])
from net import Net, normed
torch.manual_seed(0)
folder = sys.argv[1] + "/"
net = Net().eval()
x, h0 = torch.randn(3, 5, 6), torch.randn(4, 3, 8)

def expect(name, net):
    with torch.no_grad():
        y, h_n = net.rnn(x, h0)
        cell = net.cell(x[:, 0])
        head = net.head(y)
    np.savez(folder + name + ".npz", x=x, h0=h0, y=y, h_n=h_n, cell=cell, head=head)

torch.save(net, folder + "module.pt")
expect("module", net)
state = {"module." + k: v for k, v in net.state_dict().items()}
torch.save({"epoch": 3, "state_dict": state}, folder + "checkpoint.pt")
expect("checkpoint", net)
torch.jit.script(net).save(folder + "script.pt")
expect("script", net)

import warnings
warnings.simplefilter("ignore")
torch.backends.quantized.engine = "qnnpack" if "fbgemm" not in torch.backends.quantized.supported_engines else "fbgemm"
quantised = torch.ao.quantization.quantize_dynamic(
    net, {torch.nn.GRU, torch.nn.GRUCell, torch.nn.Linear}, dtype=torch.qint8)
torch.save(quantised, folder + "quantised.pt")
expect("quantised", quantised)

old = Net().eval()
torch.nn.utils.weight_norm(old.rnn, "weight_ih_l1_reverse")
torch.nn.utils.weight_norm(old.head, "weight", dim=None)
torch.nn.utils.prune.l1_unstructured(old.cell, "weight_hh", 0.5)
with torch.no_grad():
    old.rnn.weight_ih_l1_reverse_g *= 1.5
torch.save(old, folder + "old_norm.pt")
state = {k: v for k, v in old.state_dict().items() if "cell" not in k}
expect("old_norm", old)
torch.save(state, folder + "old_norm_state.pt")

new = normed().eval()
with torch.no_grad():
    new.rnn.parametrizations.weight_hh_l0.original0 *= 1.5
torch.save(new.state_dict(), folder + "new_norm.pt")
expect("new_norm", new)
state = {k: v for k, v in new.state_dict().items() if k.startswith("rnn")}
torch.save(state, folder + "new_norm_state.pt")

half = Net().eval().to(torch.bfloat16)
torch.save(half, folder + "half.pt")
torch.jit.freeze(torch.jit.script(net)).save(folder + "frozen.pt")
"""


@pytest.fixture(scope="module")
def torch_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[int, str]]]:
    """The folder of what PyTorch wrote, with NAME.safetensors beside it, and what the tool said for each."""
    pytest.importorskip("torch", reason="PyTorch writes the files")
    folder = tmp_path_factory.mktemp("torch")
    (folder / "net.py").write_text(MODULE)
    run("-c", MAKE_TORCH, folder)
    with_class = {"module": "Net", "checkpoint": "Net", "quantised": "Net", "new_norm": "normed", "old_norm": "Net"}
    with_class["half"] = "Net"
    jobs: dict[str, list[Any]] = {
        name: [folder / f"{name}.pt", folder / f"{name}.safetensors", "--module", f"{folder / 'net.py'}:{kind}"]
        for name, kind in with_class.items()
    }
    for name in ("script", "old_norm_state", "new_norm_state", "frozen"):
        jobs[name] = [folder / f"{name}.pt", folder / f"{name}.safetensors"]
    jobs["spectral"] = [folder / "new_norm.pt", folder / "spectral.safetensors"]
    jobs["suffix"] = [folder / "script.pt", folder / "suffix.pt"]
    jobs["absent"] = [folder / "module.pt", folder / "absent.safetensors", "--module", f"{folder / 'net.py'}:Absent"]
    return folder, exports("torch", jobs)


Done = tuple[Path, dict[str, tuple[int, str]]]


def check_torch(folder: Path, name: str, target: Path, atol: float, parts: str = "rnn cell head") -> None:
    """The exported GRU, cell and linear layer compute what PyTorch's did."""
    with np.load(folder / f"{name}.npz") as want:
        gru = fastgru.load(target, prefix="rnn")
        assert isinstance(gru, fastgru.nn.GRU) and gru.bidirectional and gru.num_layers == 2
        gru.batch_first = True
        y, h_n = gru(want["x"], want["h0"])
        np.testing.assert_allclose(y, want["y"], rtol=1e-4, atol=atol)
        np.testing.assert_allclose(h_n, want["h_n"], rtol=1e-4, atol=atol)
        if "cell" in parts:
            cell = fastgru.load(target, prefix="cell")
            np.testing.assert_allclose(cell(want["x"][:, 0]), want["cell"], rtol=1e-4, atol=atol)
        if "head" in parts:
            tensors = fastgru.load_state_dict(target)
            head = want["y"] @ tensors["head.weight"].T + tensors["head.bias"]
            np.testing.assert_allclose(head, want["head"], rtol=1e-4, atol=atol)


@pytest.mark.parity("torch")
@pytest.mark.parametrize(
    ("name", "words", "atol"),
    [
        ("module", ("a module of class Net", "GRU at prefix 'rnn': 6 → 8, batch_first"), 2e-6),
        ("script", ("TorchScript",), 2e-6),
        ("checkpoint", ("'state_dict'", "loaded into Net()"), 2e-6),
        # PyTorch rounds what goes into quantised products to 8 bits; the weights are the same
        ("quantised", ("dequantised: rnn (GRU)", "dequantised: head", "more exact"), 0.05),
        ("new_norm", ("folded: rnn.weight_hh_l0 (WeightNorm)", "folded: head.weight (SpectralNorm)"), 2e-6),
    ],
)
def test_torch(name: str, words: tuple[str, ...], atol: float, torch_files: Done) -> None:
    folder, results = torch_files
    status, said = results[name]
    assert status == 0, said
    for word in (*words, "wrote:"):
        assert word in said, said
    check_torch(folder, name, folder / f"{name}.safetensors", atol)
    assert formats.read(folder / f"{name}.safetensors").format == "pytorch-safetensors"


@pytest.mark.parity("torch")
def test_torch_quantised_weights_are_exact(torch_files: Done) -> None:
    """Every number is a whole multiple of its tensor's scale: at most 256 different ones."""
    tensors = fastgru.load_state_dict(torch_files[0] / "quantised.safetensors")
    for name in ("rnn.weight_ih_l0", "rnn.weight_hh_l1_reverse", "cell.weight_hh"):
        assert 20 < len(np.unique(tensors[name])) <= 256


@pytest.mark.parity("torch")
def test_torch_norms_and_pruning(torch_files: Done) -> None:
    folder, results = torch_files
    said = results["old_norm"][1]
    assert "weight_ih_l1_reverse (WeightNorm)" in said and "cell.weight_hh (pruned by L1Unstructured)" in said, said
    check_torch(folder, "old_norm", folder / "old_norm.safetensors", 2e-6, "rnn head cell")
    assert (fastgru.load_state_dict(folder / "old_norm.safetensors")["cell.weight_hh"] == 0).mean() == 0.5
    for name, parts in (("old_norm", "rnn head"), ("new_norm", "rnn")):
        assert "told by its names" in results[f"{name}_state"][1], results[f"{name}_state"]
        check_torch(folder, name, folder / f"{name}_state.safetensors", 2e-6, parts)


def test_torch_judged_by_the_official_package(torch_files: Done) -> None:
    official = pytest.importorskip("safetensors.torch", reason="the official package is the judge")
    target = torch_files[0] / "half.safetensors"
    want, found = official.load_file(target), fastgru.load_state_dict(target)
    assert set(found) == set(want)
    for name, tensor in want.items():
        assert str(tensor.dtype) == "torch.bfloat16"
        np.testing.assert_array_equal(found[name], tensor.float().numpy())


@pytest.mark.parity("torch")
def test_torch_refusals(torch_files: Done) -> None:
    folder, results = torch_files
    for name, word in (
        ("frozen", "freeze"),
        ("spectral", "--module"),
        ("suffix", ".safetensors"),
        ("absent", "Absent"),
    ):
        status, said = results[name]
        assert status == 1 and word in said, said
        assert not list(folder.glob(f"{name}.safetensors*"))
    said = run(TOOLS / "export_torch.py", folder / "module.pt", folder / "x.safetensors", status=1)
    assert "--module FILE.py:CLASS" in said and "Traceback" not in said


# --------------------------------------------------------------------------------------------------- Keras

CUSTOM = """
import {module} as keras

class MyGRU(keras.layers.GRU):
    def get_config(self):
        return {{**super().get_config(), "mine": 1}}

    def __init__(self, *args, mine=1, **options):
        super().__init__(*args, **options)

class Doubled(keras.layers.GRU):
    def call(self, sequences, initial_state=None, mask=None, training=False):
        return 2 * super().call(sequences, initial_state=initial_state, mask=mask, training=training)
"""

MAKE_KERAS = """
import sys, numpy as np
sys.path.insert(0, sys.argv[1])
import {module} as keras
from custom import MyGRU, Doubled
layers, folder = keras.layers, sys.argv[1] + "/"
ids = np.random.default_rng(0).integers(1, 9, (3, 6))

def save(name, gru, quantise=False):
    model = keras.Sequential([keras.Input((6,), dtype="int32"), layers.Embedding(9, 5), gru(4, return_sequences=True),
        layers.Bidirectional(layers.GRU(3)), layers.Dense(2, activation="tanh")])
    if quantise:
        model.quantize("int8")
    model.save(folder + name)
    np.savez(folder + name + ".npz", x=ids, y=model.predict(ids, verbose=0))

save("mine.keras", MyGRU)
save("doubled.keras", Doubled)
if {module!r} == "keras":
    save("int8.keras", layers.GRU, True)
else:
    save("saved_model", MyGRU)
"""


@pytest.mark.parametrize(
    "module",
    [
        pytest.param("keras", marks=pytest.mark.parity("keras")),
        pytest.param("tf_keras", marks=pytest.mark.parity("tf_keras")),
    ],
)
def test_keras(module: str, tmp_path: Path) -> None:
    pytest.importorskip(module, reason=f"{module} writes the files")
    custom = tmp_path / "custom.py"
    custom.write_text(CUSTOM.format(module=module))
    run("-c", MAKE_KERAS.format(module=module), tmp_path)
    names = ["mine.keras", "doubled.keras", "int8.keras" if module == "keras" else "saved_model"]
    jobs: dict[str, list[Any]] = {
        name: [tmp_path / name, tmp_path / f"{name}.safetensors", "--custom", custom, "--keras", module]
        for name in names
    }
    results = exports("keras", jobs)
    assert results["doubled.keras"][0] == 1 and "something else" in results["doubled.keras"][1], results
    assert not list(tmp_path.glob("doubled*.safetensors*"))
    for name in (names[0], names[2]):
        status, said = results[name]
        assert status == 0 and "checked:" in said, said
        assert "dequantised" in said if "int8" in name else "exported as GRU" in said
        with np.load(tmp_path / f"{name}.npz") as want:
            y = fastgru.load(tmp_path / f"{name}.safetensors").predict(want["x"])
            np.testing.assert_allclose(y, want["y"], rtol=1e-5, atol=0.01 if "int8" in name else 2e-6)
