"""The only place that permutes, transposes or negates gates. Canonical: PyTorch layout, order r z n, convention K.

Sources: keras/src/layers/rnn/gru.py (order z r n, kernels transposed), torch/nn/modules/rnn.py (order r z n), Chung et
al. 2014, arXiv 1412.3555 (convention C: z weighs the new state).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Weights(NamedTuple):
    """One layer and direction: weight_ih (3H, I), weight_hh (3H, H), bias_ih and bias_hh (3H) or None."""

    weight_ih: Array
    weight_hh: Array
    bias_ih: Array | None
    bias_hh: Array | None


def _swap_first_two(a: Array) -> Array:
    """z r n to r z n, and back: blocks along axis 0."""
    h, rest = divmod(len(a), 3)
    if rest:
        raise ValueError(f"expected three gates of one size, found {a.shape}")
    return np.concatenate([a[h : 2 * h], a[:h], a[2 * h :]])


def from_keras(kernel: Array, recurrent_kernel: Array, bias: Array | None, *, reset_after: bool) -> Weights:
    """Keras GRU weights in canonical form.

    Parameters
    ----------
    kernel : (I, 3H), gates z r n
    recurrent_kernel : (H, 3H)
    bias : (2, 3H) with reset_after (input and recurrent bias), (3H,) without, or None
    reset_after : bool

    Raises
    ------
    ValueError
        The shape of the bias contradicts reset_after.
    """
    bias_ih = bias_hh = None
    if bias is not None:
        expected = (2, kernel.shape[1]) if reset_after else (kernel.shape[1],)
        if bias.shape != expected:
            raise ValueError(f"bias: expected {expected} for reset_after={reset_after}, found {bias.shape}")
        bias_ih, *rest = [_swap_first_two(b) for b in bias.reshape(-1, kernel.shape[1])]
        bias_hh = rest[0] if rest else None
    return Weights(_swap_first_two(kernel.T), _swap_first_two(recurrent_kernel.T), bias_ih, bias_hh)


def to_keras(weights: Weights, *, reset_after: bool) -> tuple[Array, Array, Array | None]:
    """The inverse of `from_keras`: kernel (I, 3H), recurrent_kernel (H, 3H), bias as Keras wants it (None: no bias)."""
    kernel = _swap_first_two(weights.weight_ih).T
    recurrent_kernel = _swap_first_two(weights.weight_hh).T
    if weights.bias_ih is None and weights.bias_hh is None:
        return kernel, recurrent_kernel, None
    zeros = np.zeros(kernel.shape[1], kernel.dtype)
    b = zeros if weights.bias_ih is None else _swap_first_two(weights.bias_ih)
    c = zeros if weights.bias_hh is None else _swap_first_two(weights.bias_hh)
    return kernel, recurrent_kernel, np.stack([b, c]) if reset_after else b + c


def to_onnx(weights: Weights) -> tuple[Array, Array, Array | None]:
    """One direction of ONNX's GRU operator, gates z r n: W (3H, I), R (3H, H), B (6H,) or None without biases."""
    w, r = _swap_first_two(weights.weight_ih), _swap_first_two(weights.weight_hh)
    if weights.bias_ih is None and weights.bias_hh is None:
        return w, r, None
    zeros = np.zeros(w.shape[0], w.dtype)
    return w, r, np.concatenate([zeros if b is None else _swap_first_two(b) for b in weights[2:]])


def from_cudnn_gru(kernel: Array, recurrent_kernel: Array, bias: Array) -> Weights:
    """Weights that CuDNNGRU stored, in canonical form (always reset-after, tanh and sigmoid).

    kernel (I, 3H) and recurrent_kernel (H, 3H) hold each gate's PyTorch matrix in the memory of an (I, H) block;
    bias (6H,) is [input z r n, recurrent z r n].
    """
    inputs, hidden = kernel.shape[0], recurrent_kernel.shape[0]
    if bias.shape != (6 * hidden,):
        raise ValueError(f"bias: expected ({6 * hidden},) for CuDNNGRU, found {bias.shape}")
    ih = [np.ascontiguousarray(block).reshape(hidden, inputs) for block in np.split(kernel, 3, axis=1)]
    hh = [np.ascontiguousarray(block).reshape(hidden, hidden) for block in np.split(recurrent_kernel, 3, axis=1)]
    b, c = np.split(bias, 2)
    return Weights(
        np.concatenate([ih[1], ih[0], ih[2]]),
        np.concatenate([hh[1], hh[0], hh[2]]),
        _swap_first_two(b),
        _swap_first_two(c),
    )


def from_onnx(weight: Array, recurrence: Array, bias: Array | None) -> Weights:
    """W (3H, I), R (3H, H) and B (6H,) of one direction of ONNX's GRU, gates z r n, in canonical form.

    B is [input z r n, recurrent z r n], or None. (Source: onnx/docs/Operators.md, GRU.)
    """
    b, c = (None, None) if bias is None else np.split(bias, 2)
    return Weights(
        _swap_first_two(weight),
        _swap_first_two(recurrence),
        None if b is None else _swap_first_two(b),
        None if c is None else _swap_first_two(c),
    )


def to_cudnn_gru(weights: Weights) -> tuple[Array, Array, Array]:
    """The inverse of `from_cudnn_gru`; both biases must be there."""

    def blocks(weight: Array) -> Array:
        r, z, n = np.split(weight, 3)
        return np.concatenate([np.ascontiguousarray(g).reshape(g.shape[::-1]) for g in (z, r, n)], axis=1)

    assert weights.bias_ih is not None and weights.bias_hh is not None
    biases = np.concatenate([_swap_first_two(weights.bias_ih), _swap_first_two(weights.bias_hh)])
    return blocks(weights.weight_ih), blocks(weights.weight_hh), biases


def has_mirror(recurrent_activation: tuple[str, float, float]) -> bool:
    """Whether σ(-a) = 1 - σ(a): only then are conventions C and K the same model with the update gate negated."""
    name, _, beta = recurrent_activation
    return name == "sigmoid" or (name == "hard_sigmoid" and beta == 0.5)


def negate_update(weights: Weights) -> Weights:
    """Convention C (h' = (1-z) h + z n) to K (h' = (1-z) n + z h), or back: W_z, U_z, b_z, c_z change sign."""

    def negated(a: Array | None) -> Array | None:
        if a is None:
            return None
        a = a.copy()
        hidden = a.shape[0] // 3
        a[hidden : 2 * hidden] *= -1
        return a

    ih, hh = negated(weights.weight_ih), negated(weights.weight_hh)
    assert ih is not None and hh is not None
    return Weights(ih, hh, negated(weights.bias_ih), negated(weights.bias_hh))


def for_backward(weights: Weights, *, reset_after: bool) -> tuple[list[Array], Array]:
    """The transposed matrices that carry gradients back, in the order of the kernels' cache (n r z, and q for U_n h).

    Returns [U^T (H, 3H)] with reset_after, else [U_n^T (H, H), [U_r U_z]^T (H, 2H)]; and [W_n W_r W_z]^T (I, 3H).
    """
    hidden = weights.weight_hh.shape[1]
    hh, ih = weights.weight_hh, weights.weight_ih
    recurrent = [hh.T] if reset_after else [hh[2 * hidden :].T, hh[: 2 * hidden].T]
    return recurrent, np.concatenate([ih[2 * hidden :], ih[: 2 * hidden]]).T


def from_cache_order(a: Array) -> Array:
    """Blocks n r z along axis 0 to r z n."""
    hidden = a.shape[0] // 3
    return np.concatenate([a[hidden:], a[:hidden]])
