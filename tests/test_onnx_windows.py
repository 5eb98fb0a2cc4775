"""Convolution and pooling in ONNX graphs against plain loops; what ONNX's own tests leave open."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from helpers_onnx import FLOAT, graph_of, helper


def convolved(
    x: np.ndarray, w: np.ndarray, group: int, stride: int, dilation: int, pads: tuple[int, int]
) -> np.ndarray:
    """One axis, a number at a time."""
    x = np.pad(x.astype(float), [(0, 0), (0, 0), pads])
    reach, wide, out = (w.shape[2] - 1) * dilation + 1, w.shape[1], len(w) // group
    y = np.zeros((len(x), len(w), (x.shape[2] - reach) // stride + 1))
    for n, m, t in itertools.product(*map(range, y.shape)):
        first = (m // out) * wide
        y[n, m, t] = np.sum(w[m] * x[n, first : first + wide, t * stride : t * stride + reach : dilation])
    return y


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize(
    ("group", "stride", "dilation", "pads"),
    [(1, 1, 1, (0, 0)), (1, 2, 1, (1, 1)), (1, 1, 2, (4, 0)), (2, 1, 1, (1, 0)), (4, 3, 2, (2, 2))],
)
def test_conv(constant: bool, group: int, stride: int, dilation: int, pads: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 4, 9)).astype(np.float32)
    w, b = rng.standard_normal((8, 4 // group, 3)).astype(np.float32), rng.standard_normal(8).astype(np.float32)
    how = {"group": group, "strides": [stride], "dilations": [dilation], "pads": list(pads)}
    ends: dict[str, Any] = {"x": (FLOAT, ["N", 4, "T"])} | ({} if constant else {"w": (FLOAT, w.shape)})
    model = graph_of(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"], **how)], ends, ["y"], b=b, **({"w": w} if constant else {})
    )
    expected = convolved(x, w, group, stride, dilation, pads) + b[:, None]
    np.testing.assert_allclose(model.predict([x] if constant else [x, w]), expected, atol=1e-5)
    assert model.predict([x[:0]] if constant else [x[:0], w]).shape == (0, *expected.shape[1:])


@pytest.mark.parametrize("keep", [0, 1])
def test_pooling_in_every_spelling_of_exporters(keep: int) -> None:
    """Over all steps: GlobalAveragePool of channels first (Keras, PyTorch), ReduceMean with and without the axis."""
    x = np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
        helper.make_node("GlobalAveragePool", ["t"], ["a"]),
        helper.make_node("GlobalMaxPool", ["t"], ["b"]),
        helper.make_node("MaxPool", ["t"], ["c", "place"], kernel_shape=[5]),
        helper.make_node("AveragePool", ["t"], ["d"], kernel_shape=[5]),
        helper.make_node("ReduceMean", ["t"], ["e"], axes=[-1], keepdims=keep),
    ]
    model = graph_of(nodes, {"x": (FLOAT, ["N", "T", 3])}, ["a", "b", "c", "place", "d", "e"])
    a, b, c, place, d, e = model.predict(x)
    for mean in (a, d):
        np.testing.assert_allclose(mean, x.mean(1)[..., None], rtol=1e-6)
    np.testing.assert_array_equal(b, x.max(1)[..., None])
    np.testing.assert_array_equal(c, b)
    assert np.array_equal(x.transpose(0, 2, 1).reshape(-1)[place], c) and place.dtype == np.int64
    np.testing.assert_allclose(e, x.mean(1)[..., None] if keep else x.mean(1), rtol=1e-6)


def test_windows_that_are_cut_off() -> None:
    """The mean of a last window that reaches beyond the padding is of what is in it."""
    x = np.arange(1, 7, dtype=np.float32).reshape(1, 1, 6)
    for padded, last in ((0, 6.0), (1, (5 + 6 + 0) / 3)):
        how = {"kernel_shape": [3], "strides": [2], "pads": [0, padded], "ceil_mode": 1, "count_include_pad": padded}
        model = graph_of([helper.make_node("AveragePool", ["x"], ["y"], **how)], {"x": (FLOAT, None)}, ["y"])
        y = model.predict(x)[0, 0]
        assert y[:2].tolist() == [2.0, 4.0] and y[2] == pytest.approx((5 + 6) / 2 if not padded else last)


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "message"),
    [
        ("MaxPool", ["x"], {"kernel_shape": [10**9], "pads": [10**9, 0]}, "expected to make at most"),
        ("MaxPool", ["x"], {"kernel_shape": [10**5], "pads": [10**5, 10**5]}, "expected to make at most"),
        ("AveragePool", ["x"], {"kernel_shape": [2], "pads": [10**10, 0]}, "expected to make at most"),
        ("AveragePool", ["x"], {"kernel_shape": [2], "dilations": [10**12]}, ""),
        ("AveragePool", ["x"], {"kernel_shape": [3], "ceil_mode": 1, "strides": [10**12]}, ""),
        ("Conv", ["x", "w"], {"pads": [10**10, 0]}, "expected to make at most"),
        ("Conv", ["x", "w"], {"pads": [0, -1]}, "pads of 0 or more"),
        ("Conv", ["x", "w"], {"strides": [0]}, "of 1 or more"),
        ("Conv", ["x", "w"], {"strides": [1, 1]}, "for 1 axes"),
        ("Conv", ["x", "w"], {"group": 2}, "channels for each of 2 groups"),
        ("Conv", ["x", "w"], {"kernel_shape": [5]}, "that of W"),
        ("MaxPool", ["x"], {"kernel_shape": [1, 1]}, "for 1 axes"),
        ("Einsum", ["x", "x", "x", "x"], {"equation": "abc,def,ghi,jkl->"}, "expected to make at most"),
        ("Einsum", ["x"], {"equation": "ab->a"}, "expected 3 axes"),
        ("Einsum", ["x"], {"equation": "a b%->a"}, "expected letters"),
        ("TopK", ["x", "many"], {}, "K: expected 0"),
    ],
)
def test_windows_and_sums_of_any_size(op: str, inputs: list[str], attributes: dict[str, Any], message: str) -> None:
    constants = {"w": np.ones((1, 2, 3), np.float32), "many": np.array([10**12])}
    used = {name: value for name, value in constants.items() if name in inputs}
    model = graph_of([helper.make_node(op, inputs, ["y"], **attributes)], {"x": (FLOAT, None)}, ["y"], **used)
    x = np.ones((1, 2, 300), np.float32)
    if not message:
        assert model.predict(x).size < 10
        return
    with pytest.raises(ValueError, match=message):
        model.predict(x)


def test_masks_by_places() -> None:
    """Rows chosen by a mask, and steps of an unrolled loop written to their places, as PyTorch exports them."""
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Greater", ["x", "zero"], ["m"]),
        helper.make_node("NonZero", ["m"], ["n"]),
        helper.make_node("Transpose", ["n"], ["p"], perm=[1, 0]),
        helper.make_node("GatherND", ["x", "p"], ["chosen"]),
        helper.make_node("Neg", ["chosen"], ["negative"]),
        helper.make_node("ScatterND", ["x", "p", "negative"], ["y"]),
        helper.make_node("Trilu", ["x"], ["lower"], upper=0),
    ]
    model = graph_of(nodes, {"x": (FLOAT, None)}, ["chosen", "y", "lower"], zero=np.float32(0))
    chosen, y, lower = model.predict(x)
    assert np.array_equal(chosen, x[x > 0]) and np.array_equal(y, -np.abs(x)) and np.array_equal(lower, np.tril(x))


@pytest.mark.parametrize("opset", [18, 21])
def test_group_normalization(opset: int) -> None:
    """A factor for each group, from opset 21 on for each channel."""
    x = np.random.default_rng(0).standard_normal((2, 6, 5)).astype(np.float32)
    scale, bias = np.arange(1.0, 7), np.arange(6.0)
    if opset < 21:
        scale, bias = scale[:3], bias[:3]
    node = helper.make_node("GroupNormalization", ["x", "s", "b"], ["y"], num_groups=3)
    model = graph_of(
        [node], {"x": (FLOAT, None)}, ["y"], opset=opset, s=scale.astype(np.float32), b=bias.astype(np.float32)
    )
    parts = x.reshape(2, 3, -1).astype(float)
    normal = (parts - parts.mean(2, keepdims=True)) / np.sqrt(parts.var(2, keepdims=True) + 1e-5)
    wide = [np.repeat(v, 6 // len(v))[:, None] for v in (scale, bias)]
    np.testing.assert_allclose(model.predict(x), normal.reshape(x.shape) * wide[0] + wide[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("equation", ["bth,h->bt", "bth,bsh->bts", "...h,kh->...k", "bth->hb", "bth,bth"])
def test_einsum(equation: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 5, 4)).astype(np.float32)
    others = {",h-": (4,), ",bsh": (2, 3, 4), ",kh": (3, 4), ",bth": (2, 5, 4)}
    shape = next((s for key, s in others.items() if key in equation), None)
    given = [x] if shape is None else [x, rng.standard_normal(shape).astype(np.float32)]
    ends = dict.fromkeys("ab"[: len(given)], (FLOAT, None))
    model = graph_of([helper.make_node("Einsum", list(ends), ["y"], equation=equation)], ends, ["y"])
    np.testing.assert_allclose(model.predict(given), np.einsum(equation, *given), atol=1e-6)


@pytest.mark.parametrize(("largest", "opset"), [(1, 9), (1, 17), (0, 17)])
def test_the_largest_few(largest: int, opset: int) -> None:
    """Of equal ones the first; before opset 10 their number is an attribute."""
    x = np.array([[3, 1, 3, 2], [0, 0, -1, 0]], np.float32)
    how, constants = ({"k": 2}, {}) if opset < 10 else ({"largest": largest}, {"k": np.array([2])})
    node = helper.make_node("TopK", ["x", *constants], ["y", "i"], **how)
    y, i = graph_of([node], {"x": (FLOAT, None)}, ["y", "i"], opset=opset, **constants).predict(x)
    assert i.tolist() == ([[0, 2], [0, 1]] if largest else [[1, 3], [2, 0]])
    assert np.array_equal(y, np.take_along_axis(x, i, 1))
