"""Export a PyTorch model's weights for fastgru, where the model's own code lives. Needs PyTorch; fastgru is not needed.

    python export_torch.py SRC DST.safetensors [--module FILE.py:CLASS]

SRC is what torch.save or torch.jit.save wrote: a whole nn.Module, a state_dict or a checkpoint, a TorchScript archive.
DST holds plain tensors under the names of the module's state_dict: `fastgru.load(DST, prefix="encoder.rnn")`.

--module names the file with the model's classes, which a pickled module needs; with a state_dict, CLASS() is made and
the weights are loaded into it, so that what stands for a weight (a parametrisation, packed int8) becomes one.

Unlike fastgru's own readers, this runs the code that the file and FILE.py hold: use it on files of your own.

Done to the weights, and printed: dynamically quantised GRU, GRUCell and Linear are dequantised; weight_norm,
spectral_norm and other parametrisations are folded, pruning masks applied; what is no tensor is left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import struct
import sys
import zipfile
from typing import Any

import numpy as np
import torch

# PyTorch's dtypes → safetensors' names; others become float32
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
}


class CannotExport(Exception):
    """A file of which no plain weights can be made; the message says what to do."""


def say(text: str) -> None:
    print(text, flush=True)


# ------------------------------------------------------------------------------------------------- reading


def import_class(text: str) -> Any:
    """Import FILE.py, make its classes known as those of a script too, and return CLASS."""
    path, _, name = text.rpartition(":")
    if not path or not name.isidentifier():
        raise CannotExport(f"--module: expected FILE.py:CLASS, found {text!r}")
    stem = os.path.splitext(os.path.basename(path))[0]
    spec = importlib.util.spec_from_file_location(stem, path)
    if spec is None or spec.loader is None:
        raise CannotExport(f"--module: {path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[stem] = module
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    spec.loader.exec_module(module)
    # a module pickled by the training script itself names its classes __main__.Net
    for key, value in vars(module).items():
        if not key.startswith("__"):
            setattr(sys.modules["__main__"], key, value)
    if not hasattr(module, name):
        raise CannotExport(f"--module: {path} has no {name}")
    return getattr(module, name)


def read(path: str, make: Any) -> Any:
    """Return an nn.Module, or a mapping."""
    if zipfile.is_zipfile(path):
        names = zipfile.ZipFile(path).namelist()
        if any(name.endswith("/constants.pkl") for name in names):
            say("read: a TorchScript archive")
            return torch.jit.load(path, map_location="cpu")
    try:
        value = torch.load(path, map_location="cpu", weights_only=False)
    except (AttributeError, ModuleNotFoundError) as error:
        raise CannotExport(
            f"{path}: its classes are not here ({error}); name the file that has them: --module FILE.py:CLASS"
        ) from error
    if isinstance(value, torch.nn.Module):
        say(f"read: a module of class {type(value).__name__}")
        return value
    if not isinstance(value, dict):
        raise CannotExport(f"{path}: expected a module or a state_dict, found {type(value).__name__}")
    modules = {key: item for key, item in value.items() if isinstance(item, torch.nn.Module)}
    if modules:
        key = next(iter(modules))
        say(f"read: a checkpoint; its module is under {key!r}")
        return modules[key]
    state = value
    for key in ("state_dict", "model_state_dict", "model", "net", "module"):
        if make is not None and isinstance(value.get(key), dict):
            say(f"read: a checkpoint; its state_dict is under {key!r}")
            state = value[key]
            break
    if make is None:
        say("read: a state_dict or checkpoint")
        return state
    module = make()
    stripped = {key.removeprefix("module."): item for key, item in state.items()}  # of DataParallel
    module.load_state_dict(stripped if all(key.startswith("module.") for key in state) else state)
    say(f"read: a state_dict, loaded into {type(module).__name__}()")
    return module


# ------------------------------------------------------------------------------------------ plain weights


def fold(module: Any) -> None:
    """Turn parametrisations, norms and pruning masks into the weights that they stand for."""
    from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
    from torch.nn.utils.spectral_norm import SpectralNorm
    from torch.nn.utils.weight_norm import WeightNorm

    for name, part in module.named_modules():
        where = name or "the module"
        if parametrize.is_parametrized(part):
            for tensor, kinds in list(part.parametrizations.items()):
                shown = ", ".join(type(kind).__name__.lstrip("_") for kind in kinds)
                parametrize.remove_parametrizations(part, tensor, leave_parametrized=True)
                say(f"folded: {where}.{tensor} ({shown})")
        for hook in list(part._forward_pre_hooks.values()):
            kind = type(hook).__name__
            if isinstance(hook, WeightNorm):
                remove_weight_norm(part, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(part, hook.name)
            elif isinstance(hook, prune.BasePruningMethod):
                prune.remove(part, hook._tensor_name)
                say(f"folded: {where}.{hook._tensor_name} (pruned by {kind})")
                continue
            else:
                say(f"note: {where} runs the hook {kind} before its forward, which is not exported")
                continue
            say(f"folded: {where}.{hook.name} ({kind})")


def is_quantised(part: Any) -> bool:
    """Whether a module is one of PyTorch's quantised ones, by where its class lives."""
    return any(".quantized." in f"{cls.__module__}." for cls in type(part).__mro__)


def dequantised(part: Any) -> dict[str, Any] | None:
    """Return the weights of a quantised module by the float module's names; None for one that has none such."""
    if not hasattr(part, "get_weight") and not callable(getattr(part, "weight", None)):
        return None
    if hasattr(part, "get_weight"):  # dynamic GRU, GRUCell, LSTM
        return {**part.get_weight(), **{k: v for k, v in part.get_bias().items() if v is not None}}
    bias = part.bias() if callable(part.bias) else part.bias
    return {"weight": part.weight(), **({} if bias is None else {"bias": bias})}


def plain(tensor: Any) -> Any:
    """Return a dense CPU tensor of a dtype that a file can hold."""
    tensor = tensor.detach()
    if tensor.is_quantized or (
        type(tensor) not in (torch.Tensor, torch.nn.Parameter) and hasattr(tensor, "dequantize")
    ):
        tensor = tensor.dequantize()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    tensor = tensor.cpu().resolve_conj().resolve_neg()
    return (tensor if tensor.dtype in DTYPES else tensor.to(torch.float32)).contiguous()


def of_module(module: Any) -> dict[str, Any]:
    """Return the tensors of a module's state_dict, quantised parts dequantised."""
    module.eval()  # spectral_norm's estimate moves at each use in training
    fold(module)
    found: dict[str, Any] = {}
    done: list[str] = []
    for name, part in module.named_modules():
        if any(name == prefix or name.startswith(f"{prefix}.") for prefix in done) or not is_quantised(part):
            continue
        weights = dequantised(part)
        if weights is None:
            continue
        done.append(name)
        found |= {f"{name}.{key}" if name else key: value for key, value in weights.items()}
        shown = ", ".join(f"{key} {tuple(value.shape)}" for key, value in weights.items())
        say(f"dequantised: {name or 'the module'} ({type(part).__name__}): {shown}")
    if done:
        say("note: PyTorch rounds the inputs of quantised layers too, fastgru does not: its outputs are the more exact")
    for key, value in module.state_dict().items():
        if any(not prefix or key.startswith(f"{prefix}.") for prefix in done):
            continue
        if isinstance(value, torch.Tensor):
            found[key] = value
        else:
            say(f"left out: {key}, a {type(value).__name__}")
    for name, part in module.named_modules():
        kind = getattr(part, "original_name", type(part).__name__)
        if kind in ("GRU", "GRUCell") and hasattr(part, "hidden_size"):
            first = (
                ", batch_first: set gru.batch_first = True in fastgru" if getattr(part, "batch_first", False) else ""
            )
            say(f"{kind} at prefix {name!r}: {part.input_size} → {part.hidden_size}{first}")
    return found


def of_mapping(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return the tensors of a checkpoint by dotted names."""
    found: dict[str, Any] = {}
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        name = f"{prefix}{key}"
        if isinstance(item, torch.Tensor):
            found[name] = item
        elif isinstance(item, (dict, list, tuple)):
            found |= of_mapping(item, f"{name}.")
        elif "ScriptObject" in type(item).__name__:
            raise CannotExport(f"{name}: packed weights of a quantised module; give --module FILE.py:CLASS")
        elif item is not None:
            say(f"left out: {name}, a {type(item).__name__}")
    return found


def fold_names(tensors: dict[str, Any]) -> dict[str, Any]:
    """Fold weight_norm in a state_dict without its module: g · v / ‖v‖, the norm over all axes but g's."""
    found = dict(tensors)
    for name in tensors:
        if name.endswith("_g") and name[:-1] + "v" in tensors:
            target, other = name[:-2], name[:-1] + "v"
        elif name.endswith(".original0") and ".parametrizations." in f".{name}":
            head, _, tail = f".{name.removesuffix('.original0')}".rpartition(".parametrizations.")
            target = f"{head}.{tail}".lstrip(".")
            other = name.removesuffix("0") + "1"
        else:
            continue
        g, v = tensors[name], tensors.get(other)
        axes = [i for i in range(g.dim()) if g.shape[i] == 1] if g.dim() else None
        if v is None or g.dim() not in (0, v.dim()) or (axes is not None and len(axes) < g.dim() - 1):
            raise CannotExport(
                f"{name}: a parametrisation that names and shapes don't tell; give --module FILE.py:CLASS"
            )
        norm = v.float().norm() if axes is None else v.float().norm(dim=axes, keepdim=True)
        found[target] = (v.float() * (g.float() / norm)).to(v.dtype)
        del found[name], found[other]
        say(f"folded: {target} (weight_norm, told by its names)")
    left = [name for name in found if ".parametrizations." in f".{name}"]
    if left:
        raise CannotExport(f"{left[0]}: a parametrisation that only its module can undo; give --module FILE.py:CLASS")
    return found


# ------------------------------------------------------------------------------------------------- writing


def write(path: str, tensors: dict[str, Any]) -> None:
    """Write a safetensors file (github.com/huggingface/safetensors), whole or not at all."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    chunks = []
    at = 0
    # widest elements first: no holes are allowed, and each tensor is aligned so
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):
        raw = tensor.reshape(-1).view(torch.uint8).numpy() if tensor.numel() else np.zeros(0, np.uint8)
        if sys.byteorder == "big":
            raw = raw.reshape(-1, tensor.element_size())[:, ::-1].reshape(-1)
        data = raw.tobytes()
        shape = list(tensor.shape)
        assert len(data) == math.prod(shape) * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
        chunks.append(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for data in chunks:
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SRC")
    parser.add_argument("target", metavar="DST.safetensors")
    parser.add_argument("--module", metavar="FILE.py:CLASS", help="where the model's classes are")
    arguments = parser.parse_args(argv)
    try:
        if not arguments.target.endswith(".safetensors"):
            raise CannotExport(f"{arguments.target}: expected a name that ends in .safetensors")
        make = import_class(arguments.module) if arguments.module else None
        value = read(arguments.source, make)
        found = of_module(value) if isinstance(value, torch.nn.Module) else fold_names(of_mapping(value))
        if not found:
            raise CannotExport(
                f"{arguments.source}: no weights in it (a frozen TorchScript module has them in its code: "
                "save it before torch.jit.freeze)"
            )
        tensors = {}
        for name, tensor in found.items():
            tensors[name] = plain(tensor)
            if tensors[name].dtype != tensor.dtype and not tensor.is_quantized:
                say(f"converted: {name} from {tensor.dtype} to {tensors[name].dtype}")
        write(arguments.target, tensors)
    except (CannotExport, OSError) as error:
        print(f"export_torch: {error}", file=sys.stderr)
        return 1
    count = sum(tensor.numel() for tensor in tensors.values())
    say(f"wrote: {arguments.target}, {len(tensors)} tensors, {count:,} numbers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
