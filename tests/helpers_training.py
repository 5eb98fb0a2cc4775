"""What the tests of training share: one pass through a layer, gradients in Keras' order, central differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from helpers_gradients import STEP

from fastgru.layers import Layer, SparseRows, TrainingStep

Array = np.ndarray


def weight_gradients(layer: Layer, step: TrainingStep) -> list[Array | None]:
    """One gradient, or None, for each of ``layer.get_weights()``."""
    own = step.gradients.get(layer, {})
    assert set(own) <= set(layer.weight_names()), f"{layer.name}: unknown names in {sorted(own)}"
    found = [whole(own[name]) if name in own else None for name in layer.weight_names()]
    for part in layer.parts().values():
        found += weight_gradients(part, step)
    return found


def whole(gradient: Any) -> Array:
    return gradient.dense() if isinstance(gradient, SparseRows) else gradient


def upstream(y: Any, seed: int = 7) -> Any:
    """A gradient for every output."""
    rng = np.random.default_rng(seed)
    if isinstance(y, list):
        return [rng.standard_normal(v.shape).astype(np.float32) for v in y]
    return rng.standard_normal(y.shape).astype(np.float32)


def assert_derivative(found: Array, loss: Callable[[], float], a: Array, what: str, atol: float) -> None:
    """A gradient against differences by some elements of a large ``a``, and along directions that all take part in."""
    rng = np.random.default_rng(a.size)
    assert found.shape == a.shape and found.dtype == np.float32, f"{what}: {found.shape}, {found.dtype}"
    some = rng.choice(a.size, min(6, a.size), replace=False)
    directions = [*np.eye(a.size)[some], *rng.choice([-1.0, 1.0], (3, a.size)) / np.sqrt(a.size)]
    kept = a.copy()
    for v in directions:
        a[...] = kept + STEP * v.reshape(a.shape)
        up = loss()
        a[...] = kept - STEP * v.reshape(a.shape)
        right, right_now = (up - loss()) / (2 * STEP), float((found * v.reshape(a.shape)).sum())
        largest = max(1.0, float(np.abs(found).max()))
        assert abs(right_now - right) <= atol * largest + 1e-5 * abs(right), f"{what}: {right_now}, expected {right}"
    a[...] = kept


def assert_gradient(found: Any, right: Any, what: str = "", atol: float = 3e-6, rtol: float = 1e-5) -> None:
    """|found - right| <= atol max(1, largest) + rtol |right|: an element is a sum whose terms may cancel."""
    found, right = np.asarray(found), np.asarray(right)
    assert found.dtype == np.float32, f"{what}: {found.dtype}"
    assert found.shape == right.shape, f"{what}: expected {right.shape}, found {found.shape}"
    largest = float(np.abs(right).max(initial=1.0))
    np.testing.assert_allclose(found, right, rtol=rtol, atol=atol * largest, err_msg=what)
