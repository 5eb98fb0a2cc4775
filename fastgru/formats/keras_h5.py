"""Whole models in HDF5: Keras 2.x, tf.keras and Keras 3's legacy `.h5`.

The architecture is the root attribute `model_config`; the weights stand in `model_weights`, one group a layer, in
the order of `layer_names`, and in a layer in the order of its `weight_names`: all trainable, then all that are not,
over everything nested inside. Names are made up by each Keras in its own way, so only their last part is believed.
(Keras: src/legacy/saving/legacy_h5_format.py, `_legacy_weights`.)
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from .hdf5 import Dataset, Group
from .keras_plan import LayerPlan, Variable, check_bias, plan_model, policy
from .model_file import ModelFile, Tensor
from .untrusted import REMEDIES, Source

__all__ = ["has_architecture", "names_of", "read_keras_h5", "read_layer_groups"]

_Order = Callable[[LayerPlan], list[Variable]]


def has_architecture(root: Group) -> bool:
    """Whether an HDF5 file holds a whole model rather than weights or something else."""
    return _text(root.attrs, "model_config") is not None


def read_keras_h5(source: Source, root: Group) -> ModelFile:
    """Read a model saved as HDF5.

    Raises
    ------
    FormatError
        If the file has no architecture, a layer's weights are missing or unknown, or config and weights contradict
        each other.
    """
    attrs = root.attrs
    entry = source.json("model_config", _text(attrs, "model_config") or "")
    plan = plan_model(source, "model_config", entry)
    weights = root.group("model_weights")
    if weights is None:
        raise source.refuse(
            "model_weights",
            expected="the weights of the layers",
            found="no such group",
            remedy=REMEDIES["export_keras"],
        )
    version = str(attrs.get("keras_version") or weights.attrs.get("keras_version") or "")
    tensors = read_layer_groups(source, plan, weights, version)
    notes = []
    if "optimizer_weights" in root:
        notes.append("optimizer_weights ignored: training only")
    if "training_config" in attrs:
        notes.append("training_config (loss, metrics, optimizer) ignored: training only")
    return ModelFile("keras-h5", version, entry, tensors, tuple(notes), source.name)


def read_layer_groups(source: Source, plan: LayerPlan, weights: Group, version: str) -> dict[str, Tensor]:
    """Return the tensors of a planned model by its layers' names; `weights` is the group with `layer_names`."""
    return _Reader(source, weights, version).read(plan)


def _text(attrs: dict[str, Any], name: str) -> str | None:
    """Return an attribute that Keras may have split into name0, name1, … (64,512 bytes each)."""
    if name in attrs:
        value = attrs[name]
        return value if isinstance(value, str) else None
    parts: list[str] = []
    while isinstance(attrs.get(f"{name}{len(parts)}"), str):
        parts.append(attrs[f"{name}{len(parts)}"])
    return "".join(parts) or None


def names_of(source: Source, group: Group, name: str) -> list[str]:
    """Return a list attribute, split or whole; an empty list where Keras stored an empty array."""
    attrs = group.attrs
    if name in attrs:
        values = [attrs[name]]
    else:
        values = []
        while f"{name}{len(values)}" in attrs:
            values.append(attrs[f"{name}{len(values)}"])
        if not values:
            raise source.refuse(
                group.name,
                expected=f"an attribute {name}",
                found=", ".join(attrs) or "no attributes",
                remedy=REMEDIES["export_keras"],
            )
    names: list[str] = []
    for value in values:
        if isinstance(value, list):
            names += value
        elif isinstance(value, str) or np.size(value):
            raise source.refuse(
                group.name,
                expected=f"names in {name}",
                found=repr(value)[:80],
                remedy=REMEDIES["damaged"],
            )
    return names


# ----------------------------------------------------------------------------------------- order of variables


def _keras2(plan: LayerPlan, default: bool = True) -> list[Variable]:
    """Keras 2 and tf.keras: trainable_weights, then non_trainable_weights, each gathered child by child.

    `default` is the flag of models whose config does not say (tf.keras leaves it out).
    """
    return _trainable(plan, default) + _rest(plan, default)


def _keras2_frozen(plan: LayerPlan) -> list[Variable]:
    return _keras2(plan, default=False)


def _trainable(plan: LayerPlan, default: bool) -> list[Variable]:
    if not (default if plan.trainable is None else plan.trainable):
        return []
    found = [variable for variable in plan.own if variable.trainable]
    for child in plan.children:
        found += _trainable(child, default)
    return found


def _rest(plan: LayerPlan, default: bool) -> list[Variable]:
    """A frozen model lists what its children call trainable before what they do not."""
    thawed = [variable for variable in plan.own if variable.trainable]
    rest = [variable for variable in plan.own if not variable.trainable]
    for child in plan.children:
        thawed += _trainable(child, default)
        rest += _rest(child, default)
    return rest if (default if plan.trainable is None else plan.trainable) else thawed + rest


def _keras3(plan: LayerPlan) -> list[Variable]:
    """Keras 3: one walk over all variables, then those whose own layer is trainable come first."""
    if plan.trainable is False:
        return list(plan.variables())
    listed = [
        (variable.trainable and layer.trainable is not False, variable)
        for layer in plan.plans()
        for variable in layer.own
    ]
    return [v for first, v in listed if first] + [v for first, v in listed if not first]


def _orders(version: str) -> list[_Order]:
    """Return the orders to try, the one of this Keras version first."""
    major = re.match(r"\d+", version)
    if major and int(major[0]) >= 3:
        return [_keras3, _keras2, _keras2_frozen]
    return [_keras2, _keras2_frozen, _keras3]


def _last_part(name: str) -> str:
    """Return the variable's name: "a/gru/kernel_1:0" → "kernel" (TF 1 made names unique by a number)."""
    return re.sub(r"(_\d+)?(:\d+)?$", "", name.rsplit("/", 1)[-1])


def _named(variables: list[Variable], names: list[str]) -> int:
    """Return how many weight names have the name of the layer they would go to in their path."""
    return sum(variable.key.split("/")[-2] in name.split("/") for variable, name in zip(variables, names, strict=True))


class _Reader:
    def __init__(self, source: Source, weights: Group, version: str) -> None:
        self._source = source
        self._weights = weights
        self._orders = _orders(version)

    def read(self, plan: LayerPlan) -> dict[str, Tensor]:
        """Return the tensors of all layers, layers matched by order as Keras itself does."""
        layers = [child for child in plan.children if any(child.variables()) or not child.known]
        groups: list[tuple[str, Group, list[str]]] = []
        for name in names_of(self._source, self._weights, "layer_names"):
            group = self._weights.group(name)
            if group is None:
                raise self._source.refuse(
                    f"{self._weights.name}/{name}",
                    expected="a group of layer_names",
                    found="none",
                    remedy=REMEDIES["damaged"],
                )
            names = names_of(self._source, group, "weight_names")
            if names:
                groups.append((name, group, names))
        stored = {name for name, _, _ in groups}
        # an unknown layer counts only if it stored something under its name
        layers = [layer for layer in layers if layer.known or layer.key in stored]
        if len(layers) != len(groups):
            raise self._source.refuse(
                self._weights.name,
                expected=f"weights of {len(layers)} layers ({_some([p.key for p in layers])})",
                found=f"{len(groups)} ({_some([name for name, _, _ in groups])})",
                remedy=REMEDIES["export_keras"],
            )
        tensors: dict[str, Tensor] = {}
        for layer, (_, group, names) in zip(layers, groups, strict=True):
            tensors.update(self._layer(layer, group, names))
        return tensors

    def _layer(self, plan: LayerPlan, group: Group, names: list[str]) -> dict[str, Tensor]:
        unknown = [layer for layer in plan.plans() if not layer.known]
        if not plan.known:
            raise self._unknown(plan, group)
        datasets = []
        for name in names:
            dataset = group.dataset(name)
            if dataset is None:
                raise self._source.refuse(
                    f"{group.name}/{name}",
                    expected="a dataset of weight_names",
                    found="none",
                    remedy=REMEDIES["damaged"],
                )
            datasets.append(dataset)
        found = [(_last_part(name), dataset.shape) for name, dataset in zip(names, datasets, strict=True)]
        fitting = [
            variables
            for variables in (order(plan) for order in self._orders)
            if len(variables) == len(found)
            and all(
                name in (variable.name, "param") and variable.fits(shape)
                for variable, (name, shape) in zip(variables, found, strict=True)
            )
        ]
        if fitting:
            # equal layers frozen in part fit in several orders: most layer names in their paths wins, then version
            best = max(fitting, key=lambda variables: _named(variables, names))
            return self._values(plan, best, datasets)
        if unknown:
            raise self._unknown(unknown[0], group)
        expected = [f"{v.key} {v.expected}" for v in self._orders[0](plan)]
        raise self._source.refuse(
            group.name,
            expected=f"{len(expected)} weights ({_some(expected)})",
            found=f"{len(found)} ({_some([f'{name} {shape}' for name, shape in found])})",
            remedy=f"config and weights must come from one model; {REMEDIES['export_keras']}",
        )

    def _values(self, plan: LayerPlan, variables: list[Variable], datasets: list[Dataset]) -> dict[str, Tensor]:
        layers = {variable.key: layer for layer in plan.plans() for variable in layer.own}
        tensors: dict[str, Tensor] = {}
        for variable, dataset in zip(variables, datasets, strict=True):
            layer = layers[variable.key]
            if variable.name == "bias" and layer.class_name in ("GRUCell", "CuDNNGRU"):
                check_bias(self._source, dataset.name, layer, dataset.shape)
            tensors[variable.key] = dataset.read("bfloat16" in policy(layer.config))
        return tensors

    def _unknown(self, plan: LayerPlan, group: Group) -> Exception:
        return self._source.refuse(
            f"{group.name}: layer {plan.key!r}",
            expected="layers whose weights are understood (GRU, Embedding, Dense, BatchNormalization, "
            "LayerNormalization, PReLU, and RNN, Bidirectional, TimeDistributed or models of these)",
            found=f"class {plan}",
            remedy="save a model without it, or compute its part in the framework",
        )


def _some(items: list[str]) -> str:
    return ", ".join(items[:6]) + (", …" if len(items) > 6 else "")
