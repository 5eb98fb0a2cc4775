"""Load the GRU you already trained, or train one here, and score it fast on any CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastgru._core.isa import COMPILER, DEFAULT_ISA, OPENMP, get_num_threads, isa_names, set_num_threads

if TYPE_CHECKING:
    from fastgru import layers, nn, ops
    from fastgru.formats import FormatError
    from fastgru.loading import load, load_state_dict
    from fastgru.models import Model, Sequential

__version__ = "0.1.0"

__all__ = [
    "FormatError",
    "Model",
    "Sequential",
    "build_info",
    "get_num_threads",
    "layers",
    "load",
    "load_state_dict",
    "nn",
    "ops",
    "set_num_threads",
]

# Rooms are imported when they are first asked for (PEP 562): who scores arrays need not wait for file readers.
_HOME = {
    "FormatError": "formats",
    "Model": "models",
    "Sequential": "models",
    "layers": "",
    "load": "loading",
    "load_state_dict": "loading",
    "nn": "",
    "ops": "",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fastgru' has no attribute {name!r}")
    from importlib import import_module

    home = _HOME[name]
    found = getattr(import_module(f"fastgru.{home}"), name) if home else import_module(f"fastgru.{name}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})


def build_info() -> dict[str, Any]:
    """What this build is and what it runs here.

    Returns
    -------
    dict
        version, isa (the instruction set in use), isas (all that this build has and this machine can run), openmp,
        compiler.
    """
    return {
        "version": __version__,
        "isa": DEFAULT_ISA,
        "isas": isa_names(),
        "openmp": OPENMP,
        "compiler": COMPILER,
    }
