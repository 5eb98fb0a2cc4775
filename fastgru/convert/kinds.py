"""What each tensor of a file is for: its layer, as far as names tell, and its role in it.

Keras says the role by the tensor's name, PyTorch by its name and those beside it, ONNX by the operator that takes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..formats import ModelFile
from ..layers.base import Array

__all__ = ["Kind", "kinds_of", "pair_up"]


@dataclass(frozen=True)
class Kind:
    """``layer``: its path with "/" between the names, "" if not known. ``role``: "kernel", "gamma", …; "" if not."""

    layer: str
    role: str

    def like(self, other: Kind) -> bool:
        """Whether one may stand for the other; nobody knows what an unknown one is, so it stands for such alone."""
        return (
            self.role == other.role
            or other.role in _EITHER.get(self.role, ())
            or self.role in _EITHER.get(other.role, ())
        )


#: PyTorch calls them "weight", whatever the module: a role that may be one of several.
_EITHER = {"matrix": ("kernel", "embeddings"), "vector": ("gamma", "alpha")}
_KERAS = "kernel recurrent_kernel bias gamma beta moving_mean moving_variance embeddings alpha depthwise_kernel".split()
_PYTORCH = {"running_mean": "moving_mean", "running_var": "moving_variance", "num_batches_tracked": "counter"}
_CELL = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")

#: Operator → the role of each of its inputs.
_INPUTS: dict[str, tuple[str, ...]] = {
    "MatMul": ("kernel", "kernel"),
    "Gemm": ("kernel", "kernel", "bias"),
    "Conv": ("", "kernel", "bias"),
    "Gather": ("embeddings",),
    "PRelu": ("", "alpha"),
    "LayerNormalization": ("", "gamma", "beta"),
    "BatchNormalization": ("", "gamma", "beta", "moving_mean", "moving_variance"),
    "GRU": ("", "cell W", "cell R", "cell B"),
}
#: Operators that hand their first inputs' elements on: what takes the result says what these are.
_MOVES = ("Identity", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Slice", "Split", "Concat", "Flatten")


def kinds_of(file: ModelFile, graph_read: bool) -> dict[str, Kind]:
    """The kind of every tensor of a file; ``graph_read``: its graph, if it has one, could be read."""
    if (file.config or {}).get("class_name") == "OnnxGraph":
        takers = _takers((file.config or {})["config"]) if graph_read else {}
        return {name: _of_graph(name, np.asarray(t), takers.get(name, _NOBODY)) for name, t in file.tensors.items()}
    return {name: _of_names(name, file.tensors) for name in file.tensors}


def _of_names(name: str, tensors: Mapping[str, Array]) -> Kind:
    stem, _, last = name.replace("/", ".").rpartition(".")
    layer = stem.replace(".", "/")
    lead = name[: len(name) - len(last)]
    if last in _KERAS:
        in_cell = f"{lead}recurrent_kernel" in tensors
        if last != "bias" or in_cell or f"{lead}weight" not in tensors:
            return Kind(layer, f"cell {last}" if in_cell else last)
    if last.startswith(_CELL):
        return Kind(layer, f"cell {next(c for c in _CELL if last.startswith(c))}")
    weight = tensors.get(f"{lead}weight")
    if last == "bias":
        return Kind(layer, "beta" if weight is not None and weight.ndim == 1 else "bias")
    if last == "weight" and weight is not None:
        biased = f"{lead}bias" in tensors
        return Kind(layer, ("gamma" if biased else "vector") if weight.ndim == 1 else "kernel" if biased else "matrix")
    return Kind(layer, _PYTORCH.get(last, ""))


#: A role, and the name of the node that gives it to a value.
Taker = tuple[str, str]
_NOBODY: Taker = ("", "")


def _of_graph(name: str, tensor: Array, taker: Taker) -> Kind:
    if tensor.dtype.kind != "f":
        return Kind("", "constant of a graph")  # a shape, axes, a bound of a loop
    named = "" if ":" in name or name.startswith("/") else name
    path = (named or taker[1]).replace(".", "/").strip("/")
    return Kind(path.rpartition("/")[0], taker[0])


def _takers(graph: Mapping[str, Any]) -> dict[str, Taker]:
    """What takes each value, also where operators between them only move its elements: the first that has a role."""
    nodes = graph["nodes"]
    products = {output for node in nodes if node["op"] == "MatMul" for output in node["outputs"]}
    found: dict[str, Taker] = {}

    def use(name: str, taker: Taker) -> None:
        if taker[0] or name not in found:
            found[name] = taker

    for node in reversed(nodes):
        op, inputs = node["op"], node["inputs"]
        for value in node["attributes"].values():
            if isinstance(value, Mapping) and "graph" in value:
                for name, taker in _takers_in_body(node, value["graph"]).items():
                    use(name, taker)
        moved = next((found[output] for output in node["outputs"] if output in found), _NOBODY)
        for i, name in enumerate(inputs):
            role = (*_INPUTS.get(op, ())[i : i + 1], "")[0]
            if op == "Add" and not products.isdisjoint(n for n in inputs if n != name):
                role = "bias"
            use(name, moved if op in _MOVES and (i == 0 or op == "Concat") else (role, node["name"]))
    return found


def _takers_in_body(node: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Taker]:
    """As `_takers`, by the names that the body's values have outside of it."""
    outside = dict(body["constants"])
    if node["op"] != "If":
        outside |= {end["name"]: name for end, name in zip(body["inputs"], node["inputs"], strict=False)}
    return {outside.get(name, name): taker for name, taker in _takers(body).items()}


def pair_up(
    a: Mapping[str, Array], b: Mapping[str, Array], kinds: tuple[Mapping[str, Kind], Mapping[str, Kind]], turned: bool
) -> dict[str, str]:
    """Which tensor of B each of A is compared with. ``turned``: one side's (I, O) is the other's (O, I).

    The same name; the same layer and role; equal values of one kind, then of any; then order among those of one kind
    and shape, or of one kind and the shape transposed. What is of no kind that the other side has stays alone.
    """
    left = list(b)

    def same(x: str, y: str) -> bool:
        return kinds[0][x].like(kinds[1][y])

    def equal(x: str, y: str) -> bool:
        return np.array_equal(a[x], b[y]) or (
            turned and np.ndim(a[x]) == 2 and np.array_equal(np.transpose(a[x]), b[y])
        )

    rules: tuple[Callable[[str, str], bool], ...] = (
        lambda x, y: x == y,
        lambda x, y: same(x, y) and bool(kinds[0][x].role) and kinds[0][x].layer == kinds[1][y].layer != "",
        lambda x, y: same(x, y) and equal(x, y),
        lambda x, y: equal(x, y) and _telling(a[x]),
        lambda x, y: same(x, y) and np.shape(a[x]) == np.shape(b[y]),
        lambda x, y: same(x, y) and np.shape(a[x]) == np.shape(b[y])[::-1],
    )
    pairs: dict[str, str] = {}
    for fits in rules:
        for name in [n for n in a if n not in pairs]:
            partner = next((y for y in left if fits(name, y)), None)
            if partner is not None:
                pairs[name] = partner
                left.remove(partner)
    return {name: pairs[name] for name in a if name in pairs}


def _telling(tensor: Array) -> bool:
    """Whether equal values are no accident: not ones, not zeros, not a shape."""
    flat = np.ravel(tensor)
    return flat.dtype.kind == "f" and flat.size > 1 and bool(np.any(flat != flat[0]))
