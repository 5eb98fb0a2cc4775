"""Functions on arrays: validate, allocate, call the kernels.

Letters: N batch, T time, I input, H hidden, K → M of a product.

Arrays may be anything with the buffer, ``__array__`` or DLPack protocol (PyTorch CPU tensors too). Computation is in
float32; float64 and integers are rounded to it once on the way in. Results are equal bit for bit for any num_threads,
split of the batch, layout and padding. All functions are safe to call from several threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastgru import gates
from fastgru._core import arrays as _arrays
from fastgru._core import dense as _dense
from fastgru._core.dense import PackedDense
from fastgru._core.gru import PackedGRU
from fastgru._core.isa import check_activation
from fastgru.checks import (
    F32,
    I64,
    as_array,
    check_lengths,
    check_mask,
    check_offsets,
    float32,
    output,
    strided,
    whole_numbers,
)
from fastgru.gradients import Gradients, GRUCache, check_trainable, gru_backward

Activation = str | tuple[str, float, float] | tuple[str, float] | tuple[str]

__all__ = [
    "GRUCache",
    "Gradients",
    "PackedDense",
    "PackedGRU",
    "activate",
    "column_sums",
    "dense",
    "dense_backward",
    "gru",
    "gru_backward",
    "gru_final",
    "outer_sum",
    "pack_dense",
    "pack_gru",
    "sum_rows",
]


def pack_gru(
    weight_ih: Any,
    weight_hh: Any,
    bias_ih: Any = None,
    bias_hh: Any = None,
    *,
    reset_after: bool = True,
    update_gate: str = "old",
    activation: Activation = "tanh",
    recurrent_activation: Activation = "sigmoid",
    _isa: str | None = None,
) -> PackedGRU:
    """Lay the weights of one layer and direction out for this machine, once, for many calls of `gru`.

    Parameters
    ----------
    weight_ih : (3H, I), gates r z n as in PyTorch
    weight_hh : (3H, H)
    bias_ih, bias_hh : (3H,), optional
    reset_after : bool
        True: n = φ(W_n x + b_n + r ⊙ (U_n h + c_n)), as PyTorch and Keras 3 by default.
        False: U_n (r ⊙ h), the textbook's.
    update_gate : {"old", "new"}
        What z weighs: the old state (h' = (1-z) n + z h: PyTorch, Keras, ONNX), or the new one (Chung 2014, GRU4Rec).
    activation, recurrent_activation : str or (name, alpha, beta)
        φ and σ, out of linear, sigmoid, tanh, hard_sigmoid (0.2, 0.5), relu, softsign, elu (1), selu, softplus, affine,
        leaky_relu (0.01), thresholded_relu, scaled_tanh; in brackets what parameters are when not given.

    Raises
    ------
    TypeError, ValueError
        A weight that is no array of numbers or has another shape; an unknown activation; update_gate "new" with a σ for
        which σ(-a) = 1 - σ(a) does not hold.
    """
    weight_hh = strided(weight_hh, "weight_hh", ("3H", "H"))
    hidden = weight_hh.shape[1]
    if hidden < 1 or weight_hh.shape[0] != 3 * hidden:
        raise ValueError(f"weight_hh: expected shape (3H, H) with H >= 1, found {weight_hh.shape}")
    weight_ih = strided(weight_ih, "weight_ih", (3 * hidden, "I"))
    if weight_ih.shape[1] < 1:
        raise ValueError(f"weight_ih: expected shape ({3 * hidden}, I) with I >= 1, found {weight_ih.shape}")
    if bias_ih is not None:
        bias_ih = float32(bias_ih, "bias_ih", (3 * hidden,))
    if bias_hh is not None:
        bias_hh = float32(bias_hh, "bias_hh", (3 * hidden,))
    act, recurrent = _activation("activation", activation), _activation("recurrent_activation", recurrent_activation)
    weights = gates.Weights(weight_ih, weight_hh, bias_ih, bias_hh)
    if update_gate == "new":
        if not gates.has_mirror(recurrent):
            raise ValueError(
                f"update_gate: 'new' needs a recurrent_activation with σ(-a) = 1 - σ(a) (sigmoid, or hard_sigmoid with "
                f"beta 0.5), found {recurrent_activation!r}: negating the update gate would give another function"
            )
        weights = gates.negate_update(weights)
    elif update_gate != "old":
        raise ValueError(f"update_gate: expected 'old' or 'new', found {update_gate!r}")
    return PackedGRU(*weights, bool(reset_after), act, recurrent, _isa, update_gate)


def _activation(name: str, activation: Any) -> tuple[str, float, float]:
    try:
        return check_activation(activation)
    except ValueError as error:
        raise ValueError(str(error).replace("activation:", f"{name}:", 1)) from None


def _packed(weight_ih: Any, rest: tuple[Any, ...], variant: dict[str, Any]) -> PackedGRU:
    """The packed weights that a call gave, or packs now."""
    if not isinstance(weight_ih, PackedGRU):
        if rest[0] is None:
            raise TypeError(
                "weight_hh: expected an array (3H, H), found None; only the result of pack_gru stands alone"
            )
        return pack_gru(weight_ih, *rest, **variant)
    if any(w is not None for w in rest):
        raise ValueError("weight_hh, bias_ih, bias_hh: expected None beside packed weights, which hold them already")
    usual = {"reset_after": True, "update_gate": "old", "activation": "tanh", "recurrent_activation": "sigmoid"}
    for name, value in variant.items():
        if value != usual[name]:
            raise ValueError(f"{name}: the packed weights hold it already; give it to pack_gru instead")
    return weight_ih


def gru(
    x: Any,
    weight_ih: Any,
    weight_hh: Any = None,
    bias_ih: Any = None,
    bias_hh: Any = None,
    h0: Any = None,
    *,
    lengths: Any = None,
    mask: Any = None,
    offsets: Any = None,
    reset_after: bool = True,
    update_gate: str = "old",
    activation: Activation = "tanh",
    recurrent_activation: Activation = "sigmoid",
    reverse: bool = False,
    batch_first: bool = True,
    padding: str = "zero",
    num_threads: int | None = None,
    out: Any = None,
    return_cache: bool | str | GRUCache = False,
) -> Any:
    """Run one GRU layer in one direction.

    Parameters
    ----------
    x : (N, T, I), or (T, N, I) if not batch_first, or (ΣT, I) with offsets
    weight_ih, weight_hh, bias_ih, bias_hh
        As in `pack_gru`; or the result of `pack_gru` as weight_ih and None for the others: the variant comes from it.
    h0 : (N, H), optional
        The state before the first step; zeros if None.
    lengths : (N,), optional
        Valid steps of each row, 0 … T; the others are padding on the right.
    mask : bool (N, T), optional
        True at valid steps, anywhere; (N, T) also if not batch_first.
    offsets : (N+1,), optional
        Row i is x[offsets[i]:offsets[i+1]]: sequences one after another, as Arrow stores lists. At most one of lengths,
        mask and offsets may be given. Padding costs no arithmetic.
    reset_after, update_gate, activation, recurrent_activation
        The variant, as in `pack_gru`.
    reverse : bool
        Steps are taken from the last valid one to the first; y stays in the order of x.
    padding : {"zero", "keras"}
        y at padded steps: 0, or the previous output in order of processing (0 before the first).
    num_threads : int, optional
        At most so many threads; default `fastgru.get_num_threads()`. Rows are shared out. A single row (reset_after,
        H >= 128 or so) is shared out by its units only where num_threads is given: worth it on idle cores alone.
    out : float32 array of y's shape, optional
        Where y is written.
    return_cache : bool, "recompute" or GRUCache
        Also return what `gru_backward` needs: 16 H bytes for each valid step; with "recompute" nothing beyond x, y and
        the weights, and a second forward pass then. Until then x, h0 and y must not be changed in place. A cache that
        `gru_backward` has used gives its memory to this one.

    Returns
    -------
    y : float32 (N, T, H), (T, N, H) or (ΣT, H), as x
    h_n : float32 (N, H), the state after the last valid step; h0 for rows without any
    cache : GRUCache, only with return_cache

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what was expected and what was found.

    Notes
    -----
    The equations are in `fastgru.reference`. States smaller than 2**-100 become 0, so that a state which decays does
    not slow down to the speed of subnormal numbers.
    """
    variant = {
        "reset_after": reset_after,
        "update_gate": update_gate,
        "activation": activation,
        "recurrent_activation": recurrent_activation,
    }
    packed = _packed(weight_ih, (weight_hh, bias_ih, bias_hh), variant)
    if padding not in ("zero", "keras"):
        raise ValueError(f"padding: expected 'zero' or 'keras', found {padding!r}")
    x, h0, rows, steps, offsets = _inputs(x, h0, offsets, packed, batch_first)
    lengths, valid = _valid_steps(lengths, mask, offsets, rows, steps)
    hidden = packed.hidden_size
    shape = (*x.shape[:-1], hidden)
    y = np.empty(shape, np.float32) if out is None else output(out, "out", shape, (x, h0))
    h_n = np.empty((rows, hidden), np.float32)
    time_major = not batch_first and offsets is None
    options = (lengths, valid, offsets, time_major, bool(reverse), padding == "keras")
    if return_cache is False:
        packed.run(x, h0, y, h_n, *options, num_threads)
        return y, h_n
    cache = _new_cache(packed, x, h0, y, options, return_cache)
    packed.run(x, h0, y, h_n, *options, num_threads, cache.gates, cache.place, cache.step_first)
    return y, h_n, cache


def _new_cache(
    packed: PackedGRU, x: F32, h0: F32 | None, y: F32, options: tuple[Any, ...], return_cache: bool | str | GRUCache
) -> GRUCache:
    """Room for what the forward pass keeps."""
    reused = return_cache if isinstance(return_cache, GRUCache) else None
    if reused is None and return_cache is not True and return_cache != "recompute":
        raise ValueError(f"return_cache: expected True, False, 'recompute' or a used cache, found {return_cache!r}")
    check_trainable(packed.activation, packed.recurrent_activation)
    lengths, _, offsets, time_major, *_ = options
    counts = lengths if offsets is None else np.diff(offsets)
    place = step_first = None
    steps = y.size // packed.hidden_size
    if counts is not None:  # step by step, the rows that have it, longest first
        steps = int(counts.sum())
        place = np.empty(len(counts), np.int64)
        place[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
        having = len(counts) - np.cumsum(np.bincount(counts))  # rows that have step 0, 1, ...
        step_first = np.cumsum(having) - having
    kept, shape = None, (steps, 4 * packed.hidden_size)
    if reused is not None:
        kept = reused.take(shape)
    elif return_cache is True:
        kept = np.empty(shape, np.float32)
    return GRUCache(packed, x, h0, y, kept, place, step_first, *options)


def gru_final(
    x: Any,
    packed: PackedGRU,
    h0: Any = None,
    *,
    lengths: Any = None,
    mask: Any = None,
    offsets: Any = None,
    reverse: bool = False,
    batch_first: bool = True,
    num_threads: int | None = None,
) -> F32:
    """Only the final state h_n (N, H) of `gru`, without storing the sequence: parameters, errors and bits as there."""
    if not isinstance(packed, PackedGRU):
        raise TypeError(f"packed: expected the result of pack_gru, found {type(packed).__name__}")
    x, h0, rows, steps, offsets = _inputs(x, h0, offsets, packed, batch_first)
    lengths, valid = _valid_steps(lengths, mask, offsets, rows, steps)
    h_n = np.empty((rows, packed.hidden_size), np.float32)
    time_major = not batch_first and offsets is None
    packed.run(x, h0, None, h_n, lengths, valid, offsets, time_major, bool(reverse), False, num_threads)
    return h_n


def _inputs(
    x: Any, h0: Any, offsets: Any, packed: PackedGRU, batch_first: bool
) -> tuple[F32, F32 | None, int, int, I64 | None]:
    """x, h0, N, T and offsets, checked against each other."""
    if offsets is not None:
        x = float32(x, "x", ("ΣT", packed.input_size))
        offsets = check_offsets(offsets, x.shape[0])
        rows, steps = len(offsets) - 1, 0
    else:
        x = float32(x, "x", ("N", "T", packed.input_size) if batch_first else ("T", "N", packed.input_size))
        rows, steps = x.shape[:2] if batch_first else x.shape[1::-1]
    if h0 is not None:
        h0 = float32(h0, "h0", (rows, packed.hidden_size))
    return x, h0, rows, steps, offsets


def _valid_steps(lengths: Any, mask: Any, offsets: Any, rows: int, steps: int) -> tuple[I64 | None, I64 | None]:
    """Lengths and valid steps, from at most one of the three ways to say them."""
    if sum(a is not None for a in (lengths, mask, offsets)) > 1:
        raise ValueError("lengths, mask, offsets: expected at most one of them")
    if lengths is not None:
        return check_lengths(lengths, rows, steps), None
    return (None, None) if mask is None else check_mask(mask, rows, steps)


def pack_dense(weight: Any, bias: Any = None, *, _isa: str | None = None) -> PackedDense:
    """Lay a dense layer's weight (M, K) and bias (M,) or None out for this machine, for many calls of `dense`."""
    weight = strided(weight, "weight", ("M", "K"))
    if min(weight.shape) < 1:
        raise ValueError(f"weight: expected shape (M, K) with M, K >= 1, found {weight.shape}")
    if bias is not None:
        bias = float32(bias, "bias", (weight.shape[0],))
    return PackedDense(weight, bias, _isa)


def dense(x: Any, packed: PackedDense, *, num_threads: int | None = None) -> F32:
    """x Wᵀ + b: x (..., K) -> float32 (..., M), with the result of `pack_dense`."""
    if not isinstance(packed, PackedDense):
        raise TypeError(f"packed: expected the result of pack_dense, found {type(packed).__name__}")
    a = as_array(x, "x")
    a = float32(a, "x", (*a.shape[:-1], packed.input_size) if a.ndim else ("...", packed.input_size))
    rows = np.ascontiguousarray(a).reshape(-1, packed.input_size)
    y = np.empty((rows.shape[0], packed.output_size), np.float32)
    packed.run(rows, y, num_threads)
    return y.reshape(*a.shape[:-1], packed.output_size)


def outer_sum(a: Any, b: Any, *, num_threads: int | None = None, _isa: str | None = None) -> F32:
    """Σ a ⊗ b over all rows: a (..., M), b (..., N) -> float32 (M, N), the gradient of a dense layer's weights.

    Rows are added in order, in blocks of fixed length, whatever num_threads.
    """
    a, b = as_array(a, "a"), as_array(b, "b")
    if a.ndim < 1 or b.shape[:-1] != a.shape[:-1]:
        raise ValueError(f"b: expected shape {(*a.shape[:-1], 'N')}, as a has, found {b.shape}")
    return _arrays.outer_sum(_rows(a, "a"), _rows(b, "b"), num_threads, _isa)


def column_sums(a: Any, *, _isa: str | None = None) -> F32:
    """Σ over all rows: a (..., M) -> float32 (M,), the gradient of a bias; added as in `outer_sum`."""
    return _arrays.column_sums(_rows(as_array(a, "a"), "a"), _isa)


def sum_rows(values: Any, place: Any, count: int) -> F32:
    """values (R, U) added up, in the order in which they come, in rows place (R,) of float32 (count, U)."""
    values = np.ascontiguousarray(float32(values, "values", ("R", "U")))
    place = whole_numbers(place, "place", (values.shape[0],))
    if place.size and (place.min() < 0 or place.max() >= count):
        raise ValueError(f"place: expected 0 … {count - 1}, found {place.min()} … {place.max()}")
    return _arrays.sum_rows(values, place, count)


def _rows(a: Any, name: str) -> F32:
    """a (..., M) as contiguous float32 rows (R, M)."""
    a = float32(a, name, (*a.shape[:-1], a.shape[-1]) if a.ndim else ("...", "M"))
    return np.ascontiguousarray(a).reshape(-1, a.shape[-1])


def dense_backward(dy: Any, x: Any, weight: Any, *, num_threads: int | None = None) -> tuple[F32, F32, F32]:
    """Gradients of `dense`: dy (..., M), x (..., K), weight (M, K) -> dx (..., K), dweight (M, K), dbias (M,)."""
    weight = float32(weight, "weight", ("M", "K"))
    dx = dense(dy, pack_dense(weight.T), num_threads=num_threads)
    return dx, outer_sum(dy, x, num_threads=num_threads), column_sums(dy)


def activate(x: Any, activation: Activation, *, _isa: str | None = None) -> F32:
    """An activation (as in `pack_gru`) of every element: an array of any shape -> a new float32 array of that shape."""
    a = as_array(x, "x")
    a = np.ascontiguousarray(float32(a.reshape(-1), "x", ("n",))).reshape(a.shape)
    y = np.empty(a.shape, np.float32)
    _dense.activate(a, y, activation, _isa)
    return y
