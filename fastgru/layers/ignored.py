"""What a Keras config says that scoring does not need, in words for `info`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TRAINING = ("initializer", "regularizer", "constraint")


def ignored(config: Any) -> tuple[str, ...]:
    """Notes on training-only arguments, and on a precision other than that of this engine."""
    found: dict[str, set[str]] = {kind: set() for kind in _TRAINING}
    policies: set[str] = set()
    rates: set[str] = set()
    stack = [config]
    while stack:
        value = stack.pop()
        if isinstance(value, list):
            stack += value
        elif isinstance(value, Mapping):
            stack += value.values()
            for key, item in value.items():
                kind = str(key).rpartition("_")[2]
                if kind in found and item is not None:
                    found[kind].add(_name(item))
                elif key == "dtype" and "trainable" in value:  # a layer's, not a tensor's
                    policies.add(_name(item))
                elif key in ("rate", "dropout", "recurrent_dropout") and item:
                    rates.add(key)
    notes = [f"{kind}s ({', '.join(sorted(names))}) ignored: training only" for kind, names in found.items() if names]
    if rates:
        notes.append("dropout ignored: training only")
    for policy in sorted(policies & {"mixed_float16", "mixed_bfloat16", "float16", "bfloat16", "float64"}):
        notes.append(f"dtype policy {policy}: Keras computes in it, here everything is computed in float32")
    return tuple(notes)


def _name(value: Any) -> str:
    """The name of a serialised object, given as a string or as {"class_name", "config"}."""
    if not isinstance(value, Mapping):
        return str(value)
    config = value.get("config")
    inner = config.get("name") if isinstance(config, Mapping) else None
    return str(inner or value.get("class_name") or "")
