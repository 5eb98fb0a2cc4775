"""What the attributes of ONNX's GRU say. (Source: onnx/docs/Operators.md; α and β as ONNX Runtime hands them out.)"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .onnx_node import NodeSpec

#: Lower-case name → the engine's name, default α, default β. None: it takes none; NaN: the file must give it, because
#: runtimes disagree about the default.
ACTIVATIONS: dict[str, tuple[str, float | None, float | None]] = {
    "relu": ("relu", None, None),
    "tanh": ("tanh", None, None),
    "sigmoid": ("sigmoid", None, None),
    "affine": ("affine", math.nan, math.nan),
    "leakyrelu": ("leaky_relu", 0.01, None),
    "thresholdedrelu": ("thresholded_relu", math.nan, None),
    "scaledtanh": ("scaled_tanh", math.nan, math.nan),
    "hardsigmoid": ("hard_sigmoid", 0.2, 0.5),
    "elu": ("elu", 1.0, None),
    "softsign": ("softsign", None, None),
    "softplus": ("softplus", None, None),
}
KEYS = (
    "activation_alpha",
    "activation_beta",
    "activations",
    "clip",
    "direction",
    "hidden_size",
    "layout",
    "linear_before_reset",
)

Activation = tuple[str, float, float]


@dataclass(frozen=True)
class GRUAttributes:
    """One GRU node's attributes.

    Attributes
    ----------
    reverses : tuple of bool
        For each direction, whether it runs from the last step to the first.
    activations : tuple of (σ, φ)
        For each direction.
    clip : float or None
        The bound of what goes into every activation.
    reset_after : bool
    batch_first : bool
        Layout 1: X (N, T, I), Y (N, T, D, H), states (N, D, H); else X (T, N, I), Y (T, D, N, H), states (D, N, H).
    hidden_size : int or None
    """

    reverses: tuple[bool, ...]
    activations: tuple[tuple[Activation, Activation], ...]
    clip: float | None
    reset_after: bool
    batch_first: bool
    hidden_size: int | None


def read_attributes(node: NodeSpec) -> GRUAttributes:
    """The attributes of a GRU node.

    Raises
    ------
    ValueError
        For a value outside of the standard, or an activation without the α or β that it needs.
    """
    directions = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
    direction = node.text("direction", "forward")
    if direction.lower() not in directions:
        raise ValueError(f"attribute direction: expected one of {', '.join(directions)}, found {direction!r}")
    reverses = directions[direction.lower()]
    flags = {}
    for key in ("layout", "linear_before_reset"):
        value = node.integer(key, 0)
        # writers before opset 14 knew no layout, and any number but 0 means that the reset comes after
        if key == "layout" and value not in (0, 1):
            raise ValueError(f"attribute layout: expected 0 or 1, found {value}")
        flags[key] = value != 0
    clip = None if "clip" not in node.attributes else node.number("clip", 0.0)
    if clip is not None and not clip > 0:
        raise ValueError(f"attribute clip: expected a number above 0, found {clip}")
    hidden = None if "hidden_size" not in node.attributes else node.integer("hidden_size", 0)
    if hidden is not None and hidden < 1:
        raise ValueError(f"attribute hidden_size: expected at least 1, found {hidden}")
    return GRUAttributes(
        reverses,
        _activations(node, len(reverses)),
        clip,
        flags["linear_before_reset"],
        flags["layout"],
        hidden,
    )


def _activations(node: NodeSpec, directions: int) -> tuple[tuple[Activation, Activation], ...]:
    """σ and φ of each direction. α and β are queues: an activation takes from each only if it uses it."""
    names = node.listed("activations", (str,)) or ["Sigmoid", "Tanh"] * directions
    if len(names) != 2 * directions:
        raise ValueError(f"attribute activations: expected {2 * directions}, found {names!s:.120}")
    alphas = [float(v) for v in node.listed("activation_alpha", (int, float))]
    betas = [float(v) for v in node.listed("activation_beta", (int, float))]
    found = []
    for name in names:
        if name.lower() not in ACTIVATIONS:
            raise ValueError(f"attribute activations: expected some of {', '.join(ACTIVATIONS)}, found {name!r}")
        ours, alpha, beta = ACTIVATIONS[name.lower()]
        found.append((ours, _take(alphas, alpha, name, "alpha"), _take(betas, beta, name, "beta")))
    for key, left in (("activation_alpha", alphas), ("activation_beta", betas)):
        if left:
            raise ValueError(f"attribute {key}: expected as many as the activations use, found {len(left)} more")
    return tuple(zip(found[::2], found[1::2], strict=True))


def _take(queue: list[float], default: float | None, name: str, key: str) -> float:
    """The next α or β for an activation that uses one; its default once the queue is empty."""
    if default is None:
        return 0.0
    if queue:
        return queue.pop(0)
    if math.isnan(default):
        raise ValueError(f"attribute activation_{key}: expected one for {name}, found none; runtimes disagree about it")
    return default
