"""Which variables a Keras architecture has, under which key each is filed, and in which order Keras lists them.

A config says only layer classes and sizes. From it this page makes a tree of `LayerPlan`, the shape of the object
tree that Keras walked when it saved. `keras.py` looks its leaves up by path, `keras_h5.py` by order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .untrusted import LIMITS, REMEDIES, Source

__all__ = [
    "LayerPlan",
    "Variable",
    "check_bias",
    "class_and_config",
    "layer_configs",
    "plan_model",
    "policy",
]

Config = dict[str, Any]
Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Variable:
    """One variable of a layer: its key in `ModelFile.tensors`, and what its config says about it."""

    key: str
    trainable: bool
    shapes: tuple[Shape, ...]
    """Shapes that may stand in a file; None is any size. More than one for a bias whose rank tells the variant."""

    @property
    def name(self) -> str:
        return self.key.rsplit("/", 1)[-1]

    def fits(self, shape: tuple[int, ...]) -> bool:
        return any(
            len(shape) == len(allowed)
            and all(want is None or want == have for want, have in zip(allowed, shape, strict=True))
            for allowed in self.shapes
        )

    @property
    def expected(self) -> str:
        shown = [str(tuple("?" if n is None else n for n in s)).replace("'", "") for s in self.shapes]
        return "shape " + " or ".join(shown)


@dataclass(frozen=True)
class LayerPlan:
    """A layer with variables of its own, of its children, or neither.

    `slot` is the attribute of the parent that holds it; None for a member of the parent's list
    (`container`), whose groups are numbered by class. `trainable` is None for a model that does not
    say. A GRU's cell has its layer's key: files know the cell, users do not.
    """

    key: str
    class_name: str
    config: Config
    trainable: bool | None = True
    slot: str | None = None
    own: tuple[Variable, ...] = ()
    children: tuple[LayerPlan, ...] = ()
    container: str = ""
    known: bool = True
    label: str = ""
    """What errors call the class: a user's class with its module."""
    operation: bool = False
    """An op node of Keras 3: it stands among the layers but takes no number."""

    @property
    def name(self) -> str:
        return self.key.rsplit("/", 1)[-1]

    def __str__(self) -> str:
        return self.label or self.class_name

    def variables(self) -> Iterator[Variable]:
        yield from self.own
        for child in self.children:
            yield from child.variables()

    def plans(self) -> Iterator[LayerPlan]:
        yield self
        for child in self.children:
            yield from child.plans()


def policy(config: Config) -> str:
    """Return the name of a layer's dtype policy ("float32", "mixed_float16", "bfloat16", …)."""
    dtype = config.get("dtype", "float32")
    while isinstance(dtype, dict):  # Keras 3 and tf.keras 2.4+ serialise the policy object
        dtype = dtype.get("config", dtype.get("name", ""))
        if isinstance(dtype, dict) and "name" in dtype:
            dtype = dtype["name"]
    return dtype if isinstance(dtype, str) else "float32"


def _is_framework(entry: Config) -> bool:
    """Whether an entry's class is Keras' own and not a user's class of the same name."""
    module = entry.get("module")
    registered = entry.get("registered_name")
    if isinstance(registered, str) and ">" in registered:
        return False
    return not isinstance(module, str) or module.split(".")[0] in (
        "keras",
        "tf_keras",
        "tensorflow",
    )


def is_op_node(entry: Config) -> bool:
    """Whether an entry of config["layers"] is an operation of Keras 3 (`x * y`) and not a layer of that name."""
    module = entry.get("module")
    return isinstance(module, str) and ".ops" in module and module.startswith("keras")


# ------------------------------------------------------------------------------------- layers with variables


def _units(config: Config) -> int | None:
    units = config.get("units")
    return units if isinstance(units, int) and units >= 0 else None


def _times(units: int | None, factor: int) -> int | None:
    return None if units is None else units * factor


def _gru_variables(config: Config) -> list[tuple[str, bool, tuple[Shape, ...]]]:
    units = _units(config)
    gates, six = _times(units, 3), _times(units, 6)
    found: list[tuple[str, bool, tuple[Shape, ...]]] = [
        ("kernel", True, ((None, gates),)),
        ("recurrent_kernel", True, ((units, gates),)),
    ]
    if config.get("use_bias", True):
        # rank tells the variant: (2, 3H) reset-after, (3H,) reset-before, (6H,) CuDNNGRU's layout
        found.append(("bias", True, ((2, gates), (gates,), (six,))))
    return found


def _dense(config: Config) -> list[tuple[str, bool, tuple[Shape, ...]]]:
    units = _units(config)
    found: list[tuple[str, bool, tuple[Shape, ...]]] = [("kernel", True, ((None, units),))]
    if config.get("use_bias", True):
        found.append(("bias", True, ((units,),)))
    return found


def _embedding(config: Config) -> list[tuple[str, bool, tuple[Shape, ...]]]:
    rows, width = config.get("input_dim"), config.get("output_dim")
    shape = tuple(n if isinstance(n, int) else None for n in (rows, width))
    return [("embeddings", True, (shape,))]


def _normalization(config: Config) -> list[tuple[str, bool, tuple[Shape, ...]]]:
    ranks: tuple[Shape, ...] = tuple((None,) * rank for rank in range(1, 5))
    scaled = bool(config.get("rms_scaling"))  # LayerNormalization of Keras 3: a gamma alone
    found = [("gamma", True, ranks)] if scaled or config.get("scale", True) else []
    return found + ([("beta", True, ranks)] if config.get("center", True) and not scaled else [])


def _batch_normalization(config: Config) -> list[tuple[str, bool, tuple[Shape, ...]]]:
    moving: tuple[Shape, ...] = ((None,),)
    return _normalization(config) + [
        ("moving_mean", False, moving),
        ("moving_variance", False, moving),
    ]


def _prelu(config: Config) -> list[tuple[str, bool, tuple[Shape, ...]]]:
    return [("alpha", True, tuple((None,) * rank for rank in range(1, 6)))]


_OWN: dict[str, Callable[[Config], list[tuple[str, bool, tuple[Shape, ...]]]]] = {
    "BatchNormalization": _batch_normalization,
    "BatchNormalizationV1": _batch_normalization,
    "BatchNormalizationV2": _batch_normalization,
    "CuDNNGRU": _gru_variables,
    "Dense": _dense,
    "Embedding": _embedding,
    "GRUCell": _gru_variables,
    "GRUCellV2": _gru_variables,
    "LayerNormalization": _normalization,
    "PReLU": _prelu,
}
_GRU = ("GRU", "GRUV1", "GRUV2")
_MODELS = ("Sequential", "Functional", "Model")
_CODE = ("Lambda", "TFSMLayer")
# layers without variables that stand among the others in any model; one not listed here may have some
_PLAIN = frozenset(
    """InputLayer Activation ActivityRegularization Add AlphaDropout Average AveragePooling1D Concatenate Cropping1D
    Dot Dropout ELU Flatten GaussianDropout GaussianNoise GlobalAveragePooling1D GlobalMaxPooling1D Identity LeakyReLU
    Masking MaxPooling1D Maximum Minimum Multiply Permute ReLU RepeatVector Reshape SlicingOpLambda Softmax
    SpatialDropout1D Subtract TFOpLambda TensorFlowOpLayer ThresholdedReLU UpSampling1D ZeroPadding1D""".split()
)


def class_and_config(source: Source, member: str, entry: Any) -> tuple[str, Config]:
    """Return (class_name, config) of a serialised layer, checked to be what they claim."""
    if not isinstance(entry, dict) or not isinstance(entry.get("class_name"), str):
        raise source.refuse(
            member,
            expected='a layer as {"class_name": …, "config": …}',
            found=repr(entry)[:80],
            remedy=REMEDIES["damaged"],
        )
    config = entry.get("config")
    if isinstance(config, list) and entry["class_name"] == "Sequential":  # Keras before 2.2.3
        config = {"name": "", "layers": config}
    if not isinstance(config, dict):
        raise source.refuse(
            member,
            expected=f"a config for {entry['class_name']}",
            found=repr(config)[:80],
            remedy=REMEDIES["export_keras"],
        )
    return entry["class_name"], config


def layer_configs(source: Source, member: str, config: Config) -> list[Config]:
    """Return config["layers"] of a Sequential or functional model."""
    layers = config.get("layers")
    if not isinstance(layers, list):
        raise source.refuse(
            member,
            expected="a Sequential or functional model with its layers",
            found="a config without them (a subclassed model keeps its architecture in Python code)",
            remedy=REMEDIES["export_keras"].replace("save('", "save of a functional copy ('"),
        )
    return layers


class _Planner:
    def __init__(self, source: Source, member: str) -> None:
        self._source = source
        self._member = member

    def plan(
        self, entry: Any, key: str, slot: str | None = None, depth: int = 0, default: bool | None = True
    ) -> LayerPlan:
        """Return the plan of one layer; `default` is the trainable flag of a layer whose config has none."""
        where = f"{self._member}:{key}" if key else self._member
        if depth > LIMITS.nesting or len(key) > LIMITS.name:
            raise self._source.refuse(
                self._member,
                expected=f"at most {LIMITS.nesting} levels of nesting, names of {LIMITS.name}",
                found="more",
                remedy=REMEDIES["bomb"],
            )
        class_name, config = class_and_config(self._source, where, entry)
        if class_name in _MODELS:
            default = None  # tf.keras does not save a model's own flag
        stated = config.get("trainable", default)
        trainable = stated if stated is None else bool(stated)
        if class_name in _CODE:
            raise self._source.refuse(
                where,
                expected="layers without code",
                found=f"class {class_name}",
                remedy=REMEDIES["lambda"],
            )
        if is_op_node(entry):
            return LayerPlan(key, class_name, config, trainable, slot, operation=True)
        if not _is_framework(entry):
            label = entry.get("registered_name") or class_name
            label = f"{label} of {entry.get('module')}, which is not Keras' own"
            return LayerPlan(key, class_name, config, trainable, slot, known=False, label=label)

        def child(part: str, attribute: str, name: str | None = None) -> LayerPlan:
            inner = config.get(part)
            return self.plan(inner, f"{key}/{name or attribute}", attribute, depth + 1, trainable)

        def with_children(*children: LayerPlan, container: str = "") -> LayerPlan:
            return LayerPlan(key, class_name, config, trainable, slot, (), children, container=container)

        if class_name in _GRU:
            cell = LayerPlan(key, "GRUCell", config, trainable, "cell", self._own(key, "GRUCell", config))
            return with_children(cell)
        if class_name == "RNN":
            return with_children(child("cell", "cell"))
        if class_name == "StackedRNNCells":
            cells = config.get("cells")
            cells = cells if isinstance(cells, list) else []
            members = [self.plan(cell, f"{key}/cells_{i}", None, depth + 1, trainable) for i, cell in enumerate(cells)]
            return with_children(*members, container="cells")
        if class_name == "Bidirectional":
            backward = "backward_layer" if config.get("backward_layer") else "layer"
            return with_children(child("layer", "forward_layer"), child(backward, "backward_layer"))
        if class_name == "TimeDistributed":
            return with_children(child("layer", "layer"))
        if class_name in _MODELS:
            return with_children(*self._members(where, key, config, depth), container="layers")
        if class_name in _OWN:
            own = self._own(key, class_name, config)
            return LayerPlan(key, class_name, config, trainable, slot, own)
        return LayerPlan(key, class_name, config, trainable, slot, known=class_name in _PLAIN)

    def _own(self, key: str, class_name: str, config: Config) -> tuple[Variable, ...]:
        return tuple(
            Variable(f"{key}/{name}", trainable, shapes) for name, trainable, shapes in _OWN[class_name](config)
        )

    def _members(self, where: str, key: str, config: Config, depth: int) -> list[LayerPlan]:
        plans: list[LayerPlan] = []
        seen: set[str] = set()
        for i, entry in enumerate(layer_configs(self._source, where, config)):
            inner = entry.get("config") if isinstance(entry, dict) else None
            name = entry.get("name") if isinstance(entry, dict) else None
            if not isinstance(name, str) and isinstance(inner, dict):
                name = inner.get("name")
            if not isinstance(name, str) or not name:  # a nested Sequential of Keras < 2.2.3
                name = f"layer_{i}"
            if name in seen:
                raise self._source.refuse(
                    f"{where}:{name}",
                    expected="each layer name once",
                    found="two layers of this name",
                    remedy=REMEDIES["export_keras"],
                )
            seen.add(name)
            plans.append(self.plan(entry, f"{key}/{name}" if key else name, None, depth + 1))
        return plans


def plan_model(source: Source, member: str, entry: Any) -> LayerPlan:
    """Plan the model that `entry`, the JSON of the file's `member`, describes.

    Raises
    ------
    FormatError
        If it is not a Sequential or functional model, holds a Lambda, or is malformed.
    """
    class_name, config = class_and_config(source, member, entry)
    if class_name not in _MODELS or not _is_framework(entry):
        layer_configs(source, member, config)  # says so if the layers themselves are missing
        raise source.refuse(
            member,
            expected="a Sequential or functional model",
            found=f"class {entry.get('registered_name') or class_name}, whose Python code is not in the file",
            remedy=REMEDIES["export_keras"],
        )
    with source.parsing(member, "a Keras architecture"):
        return _Planner(source, member).plan(entry, "")


def check_bias(source: Source, member: str, plan: LayerPlan, shape: tuple[int, ...]) -> None:
    """Refuse a GRU whose `reset_after` and bias contradict each other.

    The key exists since keras-team 2.1.5: without it the layer is reset-before (Keras 3 would fill in True and then
    choke on the bias). A (6H,) bias is CuDNNGRU's, which is always reset-after.
    """
    if plan.class_name == "CuDNNGRU":
        return
    units = _units(plan.config)
    after = bool(plan.config.get("reset_after", False))
    rank = "(2, 3·units)" if len(shape) == 2 else "(6·units,)" if units and shape == (6 * units,) else "(3·units,)"
    if after == (rank == "(3·units,)"):
        stated = f"reset_after={after}" if "reset_after" in plan.config else "no reset_after key"
        wanted = "(2, 3·units) or (6·units,)" if after else "(3·units,)"
        raise source.refuse(
            member,
            expected=f"a bias of shape {wanted} for {stated}",
            found=f"shape {shape}",
            remedy="correct reset_after in the config, or re-save the model",
        )
