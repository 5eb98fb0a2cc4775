"""`.keras` archives: metadata.json, config.json and model.weights.h5 in a zip file (Keras 3, tf.keras ≥ 2.12).

The weights lie in groups that mirror the object tree: `layers/gru_1/cell/vars/0`. A member of a list is called
snake_case(class), numbered per class in the order of config["layers"], whatever the layer's own name. tf.keras
2.12–2.14 have `_layer_checkpoint_dependencies` in place of `layers`, a dictionary that lists layers with weights
twice, so that their numbers go up by two. (Keras: src/saving/saving_lib.py, `_save_container_state`.)
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from .archive import Archive
from .hdf5 import Dataset, Group, open_hdf5
from .keras_plan import LayerPlan, Variable, check_bias, plan_model, policy
from .model_file import ModelFile, Tensor
from .untrusted import LIMITS, REMEDIES, Source

__all__ = ["read_keras", "read_object_tree"]

_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"


def read_keras(source: Source, archive: Archive) -> ModelFile:
    """Read a `.keras` archive.

    Raises
    ------
    FormatError
        If a member is missing or broken, a layer is unknown and has weights, a variable is missing or has another
        shape than its config says.
    """
    entry = source.json(_CONFIG, archive.read(_CONFIG))
    metadata = source.json(_METADATA, archive.read(_METADATA)) if _METADATA in archive else {}
    version = metadata.get("keras_version", "") if isinstance(metadata, dict) else ""
    plan = plan_model(source, _CONFIG, entry)
    weights = Source(source.name, archive.view(_WEIGHTS))
    root = open_hdf5(weights, _WEIGHTS)
    tensors = read_object_tree(weights, plan, root, _WEIGHTS)
    notes = []
    if "optimizer" in root:
        notes.append("optimizer state ignored: training only")
    if entry.get("compile_config"):
        notes.append("compile_config (loss, metrics, optimizer) ignored: training only")
    return ModelFile("keras-v3", str(version), entry, tensors, tuple(notes), source.name)


def read_object_tree(source: Source, plan: LayerPlan, root: Group, member: str) -> dict[str, Tensor]:
    """Return the tensors of a planned model by its layers' names; `root` is the group that mirrors the model."""
    reader = _Reader(source, plan, member)
    reader.layer(plan, root)
    return reader.tensors


def snake_case(name: str) -> str:
    """Return the group name Keras makes of a class name: GRUCell → gru_cell, PReLU → p_re_lu."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


class _Reader:
    def __init__(self, source: Source, plan: LayerPlan, member: str) -> None:
        self._source = source
        self._where = f"{member}: " if member else ""
        names = Counter(layer.name for layer in plan.plans() if layer.slot is None)
        self._repeated = {name for name, count in names.items() if count > 1}
        self.tensors: dict[str, Tensor] = {}

    def layer(self, plan: LayerPlan, group: Group | None) -> None:
        """Read the variables of a layer and its children from the layer's group."""
        if not plan.known:
            self._refuse_weights_of(plan, group)
            return
        if plan.own:
            self._variables(plan, group)
        if plan.container:
            self._members(plan, group)
        else:
            for child in plan.children:
                self.layer(child, group.group(child.slot) if group and child.slot else None)

    def _variables(self, plan: LayerPlan, group: Group | None) -> None:
        stored = group.group("vars") if group is not None else None
        names = stored.names if stored is not None else ()
        if stored is None or len(names) != len(plan.own):
            raise self._missing(plan, group, len(names))
        for i, variable in enumerate(plan.own):
            dataset = stored.get(str(i))
            if not isinstance(dataset, Dataset):
                raise self._missing(plan, group, len(names))
            self._keep(plan, variable, dataset)

    def _keep(self, plan: LayerPlan, variable: Variable, dataset: Dataset) -> None:
        shape = dataset.shape
        if not variable.fits(shape):
            raise self._source.refuse(
                dataset.name,
                expected=f"{variable.expected} for {variable.key}",
                found=f"shape {shape}",
                remedy="config.json and the weights must come from one model; save it again",
            )
        if variable.name == "bias" and plan.class_name in ("GRUCell", "CuDNNGRU"):
            check_bias(self._source, dataset.name, plan, shape)
        self.tensors[variable.key] = dataset.read("bfloat16" in policy(plan.config))

    def _missing(self, plan: LayerPlan, group: Group | None, found: int) -> Exception:
        names = ", ".join(variable.name for variable in plan.own)
        where = f"{group.name}/vars" if group is not None else f"{self._where}layer {plan.key!r}"
        return self._source.refuse(
            where,
            expected=f"the variables of layer {plan.key!r} ({names})",
            found=f"{found} variables" if found else "none",
            remedy=REMEDIES["shared" if plan.name in self._repeated else "export_keras"],
        )

    def _members(self, plan: LayerPlan, group: Group | None) -> None:
        members = plan.children
        inner = group.group(plan.container) if group is not None else None
        steps: tuple[int, ...] = (1,)
        if inner is None and group is not None and plan.container == "layers":
            inner = group.group("_layer_checkpoint_dependencies")
            steps = (2, 1)
        if inner is None:
            for member in members:
                self.layer(member, None)
            return
        numbered = [_number(members, step) for step in steps]
        # the rule that finds every layer that must have weights
        names = next(
            (
                names
                for names in numbered
                if all(n in inner for n, m in zip(names, members, strict=True) if any(m.variables()))
            ),
            numbered[-1],
        )
        for name, member in zip(names, members, strict=True):
            self.layer(member, inner.group(name))

    def _refuse_weights_of(self, plan: LayerPlan, group: Group | None) -> None:
        """Refuse an unknown layer that has variables, since what they mean is then unknown too."""
        if group is not None and _has_variables(group):
            raise self._source.refuse(
                f"{self._where}layer {plan.key!r}",
                expected="a layer whose weights are understood (GRU, Embedding, Dense, BatchNormalization, "
                "LayerNormalization, PReLU, and RNN, Bidirectional, TimeDistributed or models of these)",
                found=f"class {plan}",
                remedy="save a model without it, or compute its part in the framework",
            )


def _number(members: tuple[LayerPlan, ...], step: int) -> list[str]:
    """Return the group name of each member; layers with weights advance their class's count by `step`."""
    used: dict[str, int] = {}
    names = []
    for member in members:
        if member.operation:
            names.append("")
            continue
        name = snake_case(member.class_name)
        count = used.get(name, 0)
        names.append(f"{name}_{count}" if count else name)
        used[name] = count + (step if any(member.variables()) else 1)
    return names


def _has_variables(group: Group, depth: int = 0) -> bool:
    """Whether a group or a group below it holds variables, random seeds apart."""
    if depth > LIMITS.nesting:
        return True
    for name in group.names:
        if name in ("seed_generator", "_random_generator"):
            continue
        child: Any = group.get(name)
        if isinstance(child, Dataset) or (isinstance(child, Group) and _has_variables(child, depth + 1)):
            return True
    return False
