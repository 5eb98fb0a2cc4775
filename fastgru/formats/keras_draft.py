"""What the weights alone tell of a Keras model: a draft of its config, with a "?" where they are silent.

Names, ranks and sizes tell the layers of a plain chain (Embedding, GRU, Bidirectional of one, Dense), and the rank of
a GRU's bias tells the reset placement: (2, 3H) after, (3H,) before, (6H,) CuDNNGRU. No weight tells an activation, a
mask, a direction, or a layer without weights: a draft asks for these, and nothing loads before they are filled in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .untrusted import LIMITS

__all__ = ["ASK", "CannotTell", "draft", "questions"]

#: Stands in a draft for what the weights don't tell.
ASK = "?"

Shape = tuple[int, ...]
Config = dict[str, Any]


class CannotTell(ValueError):
    """The weights are not those of a plain chain."""


@dataclass
class _Layer:
    """One layer with weights; `parts` are its variables by name: of a Bidirectional, of each direction."""

    name: str
    parts: list[dict[str, Shape]] = field(default_factory=list)
    kind: str = ""
    width: int = 0
    """Features in; of an Embedding 0."""
    out: tuple[int, ...] = ()
    """Features out: more than one possibility for a Bidirectional, whose merge_mode is not stored."""


def draft(weights: Mapping[str, Shape], version: str = "") -> Config:
    """Return a Sequential's config for the weights of a file, "?" where it must be filled in.

    Parameters
    ----------
    weights : mapping of str to tuple of int
        Names as stored and shapes, in the file's order.
    version : str
        The Keras version that the file names, if it does.

    Raises
    ------
    CannotTell
        If the layers are not those of a chain, or their order can't be told: a config is then needed.
    """
    tree = all(re.search(r"(^|/)vars/\d+$", name) for name in weights)
    layers = _from_tree(weights) if tree else _from_groups(weights)
    for layer in layers:
        _classify(layer)
    if tree:
        layers = _in_order(layers)
    for before, after in zip(layers, layers[1:], strict=False):
        if after.width not in before.out:
            raise CannotTell(f"layer {after.name!r} takes {after.width} features after {before.name!r}: not a chain")
    entries = [_entry(layer, layers[i + 1 :]) for i, layer in enumerate(layers)]
    return {
        "class_name": "Sequential",
        "config": {"name": "model", "layers": entries},
        "keras_version": version or ASK,
    }


def questions(config: Mapping[str, Any]) -> list[str]:
    """Return "layer.argument" of everything that a draft leaves open."""
    return list(_asked(config, "", 0))


def _asked(value: Any, name: str, depth: int) -> Iterator[str]:
    if value == ASK:
        yield name
    if depth < LIMITS.nesting and isinstance(value, dict):
        layer = value.get("name") if isinstance(value.get("name"), str) else ""
        for key, item in value.items():
            yield from _asked(item, f"{layer}.{key}" if layer else key, depth + 1)
    elif depth < LIMITS.nesting and isinstance(value, list):
        for item in value:
            yield from _asked(item, name, depth + 1)


def _from_groups(weights: Mapping[str, Shape]) -> list[_Layer]:
    """Layers of a file with `layer_names`: "layer/any/path/kernel:0", in the order of the model."""
    layers: dict[str, _Layer] = {}
    for path, shape in weights.items():
        first, *_, last = path.split("/")
        name = re.sub(r"(_\d+)?(:\d+)?$", "", last)
        layer = layers.setdefault(first, _Layer(first))
        if not layer.parts or name in layer.parts[-1]:
            layer.parts.append({})
        layer.parts[-1][name] = shape
    return list(layers.values())


_GRU = ("kernel", "recurrent_kernel", "bias")
_VARIABLES = {"embedding": ("embeddings",), "dense": ("kernel", "bias"), "gru": _GRU, "cu_dnngru": _GRU}


def _from_tree(weights: Mapping[str, Shape]) -> list[_Layer]:
    """Layers of a file that mirrors the object tree: "layers/gru_1/cell/vars/0", in no order."""
    layers: dict[str, _Layer] = {}
    for path, shape in weights.items():
        match = re.fullmatch(
            r"(?:layers|_layer_checkpoint_dependencies)/(\w+?)(_\d+)?(?:/(forward|backward)_layer)?(?:/cell)?/vars/(\d+)",
            path,
        )
        kind = "gru" if match and match[3] and match[1] == "bidirectional" else match[1] if match else ""
        names = _VARIABLES.get(kind, ())
        if match is None or int(match[4]) >= len(names):
            raise CannotTell(f"{path} {shape} is no weight of Embedding, GRU, Bidirectional or Dense")
        layer = layers.setdefault(match[1] + (match[2] or ""), _Layer(match[1] + (match[2] or "")))
        side = 1 if match[3] == "backward" else 0
        while len(layer.parts) <= side:
            layer.parts.append({})
        layer.parts[side][names[int(match[4])]] = shape
    return list(layers.values())


def _classify(layer: _Layer) -> None:
    """Fill in kind and widths, or raise."""
    names = [tuple(part) for part in layer.parts]
    first = layer.parts[0]
    if names == [("embeddings",)] and len(first["embeddings"]) == 2:
        layer.kind, layer.out = "Embedding", (first["embeddings"][1],)
    elif names in ([("kernel",)], [("kernel", "bias")]) and len(first["kernel"]) == 2:
        layer.kind, layer.width, layer.out = "Dense", first["kernel"][0], (first["kernel"][1],)
    elif len(names) <= 2 and all(_is_gru(part) for part in layer.parts):
        layer.width, units = first["kernel"][0], first["recurrent_kernel"][0]
        layer.kind, layer.out = ("GRU", (units,)) if len(names) == 1 else ("Bidirectional", (2 * units, units))
        if len(names) == 2 and layer.parts[0] != layer.parts[1]:
            raise CannotTell(f"layer {layer.name!r} has two directions that differ")
    else:
        shown = ", ".join(f"{name} {shape}" for part in layer.parts for name, shape in part.items())
        raise CannotTell(f"layer {layer.name!r} ({shown}) is no Embedding, GRU, Bidirectional(GRU) or Dense")


def _is_gru(part: Mapping[str, Shape]) -> bool:
    if tuple(part) not in (_GRU, _GRU[:2]):
        return False
    kernel, recurrent = part["kernel"], part["recurrent_kernel"]
    units = recurrent[0] if recurrent else 0
    fits = len(kernel) == 2 and recurrent == (units, 3 * units) and kernel[1] == 3 * units
    return fits and part.get("bias", (3 * units,)) in ((2, 3 * units), (3 * units,), (6 * units,))


def _in_order(layers: Sequence[_Layer]) -> list[_Layer]:
    """Return the one order in which each layer takes what the one before gives.

    Groups are numbered within a class and not across classes. Two orders that fit, or none, tell nothing.
    """
    queues: dict[str, list[_Layer]] = {}
    for layer in layers:
        queues.setdefault(layer.kind, []).append(layer)
    orders: list[list[_Layer]] = []
    steps = 0

    def extend(taken: list[_Layer], at: dict[str, int]) -> None:
        nonlocal steps
        steps += 1
        if steps > 5000:
            raise CannotTell(f"{len(layers)} layers fit in more orders than can be tried")
        if len(taken) == len(layers):
            orders.append(list(taken))
        for kind, queue in queues.items():
            if len(orders) > 1 or at[kind] == len(queue):
                continue
            following = queue[at[kind]]
            if kind == "Embedding" if taken else kind != "Embedding" and "Embedding" in queues:
                continue  # ids come in first
            if not taken or following.width in taken[-1].out:
                extend([*taken, following], {**at, kind: at[kind] + 1})

    if len(layers) > 100:
        raise CannotTell(f"{len(layers)} layers: too many to try their orders")
    extend([], dict.fromkeys(queues, 0))
    if len(orders) != 1:
        names = ", ".join(layer.name for layer in layers)
        raise CannotTell(f"the order of {names} can't be told from their sizes")
    return orders[0]


def _entry(layer: _Layer, after: Sequence[_Layer]) -> Config:
    first = layer.parts[0]
    if layer.kind == "Embedding":
        rows, width = first["embeddings"]
        config: Config = {"name": layer.name, "input_dim": rows, "output_dim": width, "mask_zero": ASK}
    elif layer.kind == "Dense":
        config = {
            "name": layer.name,
            "units": layer.out[0],
            "use_bias": "bias" in first,
            "activation": ASK,
        }
    elif layer.kind == "GRU":
        return _gru(layer.name, first, after)
    else:
        inner = _gru(f"{layer.name}_gru", first, after)
        inner["config"]["go_backwards"] = False
        # only concat gives 2H features
        merge = "concat" if after and after[0].width == layer.out[0] else ASK
        config = {"name": layer.name, "layer": inner, "merge_mode": merge}
    return {"class_name": layer.kind, "config": config}


def _gru(name: str, part: Mapping[str, Shape], after: Sequence[_Layer]) -> Config:
    units = part["recurrent_kernel"][0]
    bias = part.get("bias")
    # a GRU takes sequences, so the layer before it gives them
    sequences: bool | str = True if after and after[0].kind in ("GRU", "Bidirectional") else ASK
    config: Config = {"name": name, "units": units, "return_sequences": sequences, "go_backwards": ASK}
    if bias == (6 * units,):
        return {"class_name": "CuDNNGRU", "config": config}
    config |= {"activation": ASK, "recurrent_activation": ASK, "use_bias": bias is not None}
    # without a bias nothing tells the reset placement
    config["reset_after"] = ASK if bias is None else len(bias) == 2
    return {"class_name": "GRU", "config": config}
