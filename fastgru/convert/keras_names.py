"""What a Keras config names: whether Keras may be given a stranger's file, and in which precision it would compute.

Keras' loaders import modules and call classes by the names in a file, also where our reader sees only training matters
(an initialiser, a regulariser). So a source is loaded in Keras only if every name in it is one of these.
(CVE-2025-1550, CVE-2025-8747, CVE-2025-9905, CVE-2025-9906, CVE-2025-12058, CVE-2026-1462.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..formats.keras_plan import policy
from ..layers.operations import OPERATIONS
from ..layers.reader import LAYERS, MODELS

__all__ = ["foreign_names", "narrow_policies"]

_MODULES = (
    "keras",
    "keras.constraints",
    "keras.initializers",
    "keras.layers",
    "keras.mixed_precision",
    "keras.regularizers",
    "keras.src.engine",
    "keras.src.layers",
    "keras.src.models",
    "keras.src.ops",
)
_CLASSES = frozenset(
    (
        *LAYERS,
        *MODELS,
        *OPERATIONS,
        *"GRUCell StackedRNNCells TFOpLambda SlicingOpLambda".split(),
        *"DTypePolicy Policy ListWrapper TensorShape".split(),
        *"__ellipsis__ __keras_tensor__ __numpy__ __slice__ __tensor__ __tuple__".split(),
        *"Zeros Ones Constant Identity RandomNormal RandomUniform TruncatedNormal VarianceScaling Orthogonal".split(),
        *"GlorotNormal GlorotUniform HeNormal HeUniform LecunNormal LecunUniform".split(),
        *"L1 L2 L1L2 OrthogonalRegularizer MaxNorm MinMaxNorm NonNeg UnitNorm".split(),
    )
)


def foreign_names(config: Any) -> set[str]:
    """Modules, classes and registered names in a config that are not known to be harmless parts of Keras."""
    found: set[str] = set()
    for value in _mappings(config):
        module, kind, registered = (value.get(key) for key in ("module", "class_name", "registered_name"))
        if isinstance(module, str) and not _is_keras(module):
            found.add(module)
        if isinstance(kind, str) and kind not in _CLASSES:
            found.add(kind)
        if isinstance(registered, str) and ">" in registered:
            found.add(registered)
    return found


def _is_keras(module: str) -> bool:
    own = module.removeprefix("tf_").removeprefix("tensorflow.")
    return any(own == known or (known != "keras" and own.startswith(f"{known}.")) for known in _MODULES)


def narrow_policies(config: Any) -> str:
    """The half precisions in which Keras computes a model, by name; "" for none."""
    found = {policy(dict(value)) for value in _mappings(config) if "trainable" in value}
    return ", ".join(sorted(name for name in found if name.endswith("float16")))


def _mappings(config: Any) -> Iterator[Mapping[str, Any]]:
    """Every JSON object in a config."""
    stack = [config]
    while stack:
        value = stack.pop()
        if isinstance(value, Mapping):
            yield value
            stack += value.values()
        elif isinstance(value, list):
            stack += value
