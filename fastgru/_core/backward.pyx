"""Gradients of one GRU layer and direction: back through time row by row, then the weights over all steps at once."""

import numpy as np

cimport numpy as cnp
from cython.parallel cimport prange
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from fastgru._core.gru cimport Job, PackedGRU, cache_at, length_of, longest_first, time_of, x_at
from fastgru._core.isa cimport threads_for
from fastgru._core.memory cimport aligned, round_up
from fastgru._core.table cimport (
    FG_MAX_ROWS,
    FG_KC,
    fg_backward_scratch,
    fg_gru_backward,
    fg_outer_scratch,
    fg_packed_size,
    fg_table,
)

from fastgru._core.packing import pack_panels, padded_range

cnp.import_array()


# The forward job, and the arrays of its gradients; strides in floats, NULL where nothing is wanted or given.
cdef struct Back:
    Job job                        # y points at the forward pass's y, cache at what it kept
    const fg_gru_backward *gru
    const float *dy
    const float *dh_n              # (N, H)
    float *dx                      # strides of its own, as x has
    float *dh0                     # (N, H)
    int64_t dy_row, dy_time, dx_row, dx_time
    int64_t workspace


cdef inline int64_t at(const Job *j, int64_t row, int64_t t, int64_t row_stride, int64_t time_stride) noexcept nogil:
    if j.offsets != NULL:
        return (j.offsets[row] + t) * time_stride
    return row * row_stride + t * time_stride


cdef inline const float *state_before(const Job *j, int64_t row, int64_t step, int64_t length,
                                      const float *zeros) noexcept nogil:
    """The state that a row's step started from: the previous output, or h0."""
    if step > 0:
        return j.y + at(j, row, time_of(j, row, step - 1, length), j.y_row, j.y_time)
    return j.h0 + row * j.h0_row if j.h0 != NULL else zeros


cdef void back_rows(const Back *b, int64_t first, int64_t stride, int64_t count, float *workspace) noexcept nogil:
    """Rows order[first], order[first + stride], ... from their last step to their first; slots as in run_rows."""
    cdef const Job *j = &b.job
    cdef int64_t H = b.gru.hidden_size, W = j.table.width
    cdef int64_t padded = round_up(round_up(H, W), 16)
    cdef float *scratch = workspace
    cdef float *zeros = scratch + round_up(fg_backward_scratch(W, H), 16)
    cdef float *dh = zeros + round_up(H, 16)                     # (slots, padded)
    cdef float *cache[FG_MAX_ROWS]
    cdef const float *dy[FG_MAX_ROWS]
    cdef const float *h[FG_MAX_ROWS]
    cdef float *dx[FG_MAX_ROWS]
    cdef int64_t row[FG_MAX_ROWS]
    cdef int64_t step[FG_MAX_ROWS]                               # steps still to be done
    cdef int64_t length[FG_MAX_ROWS]
    cdef int64_t active = 0, taken = 0, i, r, t
    memset(zeros, 0, H * sizeof(float))
    while True:
        while active < j.slots and taken < count:
            r = first + taken * stride
            if j.order != NULL:
                r = j.order[r]
            taken += 1
            row[active], length[active] = r, length_of(j, r)
            step[active] = length[active]
            memset(dh + active * padded, 0, padded * sizeof(float))
            if b.dh_n != NULL:
                memcpy(dh + active * padded, b.dh_n + r * H, H * sizeof(float))
            if length[active] == 0:
                memcpy(b.dh0 + r * H, dh + active * padded, H * sizeof(float))
            else:
                active += 1
        if active == 0:
            break
        for i in range(active):
            step[i] -= 1
            t = time_of(j, row[i], step[i], length[i])
            cache[i] = cache_at(j, row[i], step[i])
            h[i] = state_before(j, row[i], step[i], length[i], zeros)
            if b.dy != NULL:
                dy[i] = b.dy + at(j, row[i], t, b.dy_row, b.dy_time)
            dx[i] = b.dx + at(j, row[i], t, b.dx_row, b.dx_time)
        j.table.gru_step_backward(dh, padded, dx, cache, dy if b.dy != NULL else NULL, h, b.gru, active, scratch)
        i = 0
        while i < active:
            if step[i] > 0:
                i += 1
                continue
            memcpy(b.dh0 + row[i] * H, dh + i * padded, H * sizeof(float))
            active -= 1
            if i < active:
                memcpy(dh + i * padded, dh + active * padded, padded * sizeof(float))
            row[i], step[i], length[i] = row[active], step[active], length[active]


cdef void back_thread(const Back *b, int64_t k, int64_t threads, float *workspace) noexcept nogil:
    """Thread k's share of the rows, as run_thread deals them."""
    cdef int64_t share
    workspace += k * b.workspace
    if b.job.order != NULL:
        back_rows(b, k, threads, (b.job.rows - k + threads - 1) // threads, workspace)
        return
    share = round_up((b.job.rows + threads - 1) // threads, b.job.table.tile_rows)
    back_rows(b, min(k * share, b.job.rows), 1, max(min(share, b.job.rows - k * share), 0), workspace)


# One product Σ a ⊗ b over all valid steps. a are the columns `first` to `last` of each step's cache; b is its x, its
# state before, or the q of its cache.
cdef enum Operand:
    INPUT, STATE, CACHED, OPERANDS

cdef struct Weight:
    float *out                     # (last - first, out_stride)
    int64_t out_stride, first, last, N
    Operand operand


cdef void weight_columns(const Back *b, const Weight *w, int n, float *sums, int64_t first, int64_t last,
                         float *scratch) noexcept nogil:
    """What columns first ... last of the cache give to every product, over every valid step in one order."""
    cdef const Job *j = &b.job
    cdef int64_t H = b.gru.hidden_size, terms = 0, row, step, length
    cdef const float *a[FG_KC]
    cdef const float *operand[OPERANDS][FG_KC]
    cdef float *kept
    cdef float *zeros = scratch
    if first >= last:
        return
    memset(zeros, 0, H * sizeof(float))
    scratch += round_up(H, 16)
    for row in range(j.rows):              # a row's steps stand beside each other
        length = length_of(j, row)
        for step in range(length):
            kept = cache_at(j, row, step)
            a[terms] = kept + first
            operand[<int>INPUT][terms] = x_at(j, row, time_of(j, row, step, length))
            operand[<int>STATE][terms] = state_before(j, row, step, length, zeros)
            operand[<int>CACHED][terms] = kept + 3 * H
            terms += 1
            if terms == FG_KC:
                add_block(b, w, n, sums, first, last, a, operand, terms, scratch)
                terms = 0
    if terms > 0:
        add_block(b, w, n, sums, first, last, a, operand, terms, scratch)


cdef inline void add_block(const Back *b, const Weight *w, int n, float *sums, int64_t first, int64_t last,
                           const float **a, const float *(*operand)[FG_KC], int64_t terms, float *scratch) noexcept nogil:
    """One block of terms: packed once, and multiplied by the operand of each product."""
    cdef float *packed = scratch
    cdef int64_t i, lo, hi
    scratch += fg_packed_size(last - first)
    b.job.table.pack_outer(packed, sums + first if sums != NULL else NULL, a, last - first, terms)
    for i in range(n):
        lo, hi = max(first, w[i].first), min(last, w[i].last)
        if lo < hi:
            b.job.table.outer(w[i].out + (lo - w[i].first) * w[i].out_stride, w[i].out_stride, packed, lo - first,
                              operand[<int>w[i].operand], hi - lo, w[i].N, terms, scratch)


cdef cnp.ndarray strided(object array):
    return <cnp.ndarray>array


def backward(PackedGRU packed, recurrent_parts, input_part, x, h0, y, cache, place, step_first, dy, dh_n, bint biases,
             out=None, lengths=None, valid=None, offsets=None, bint time_major=False, bint reverse=False, num_threads=None):
    """dx, dh0, dweight_ih, dweight_hh, dbias_ih, dbias_hh on validated arrays, layouts as in PackedGRU.run.

    Gates of dweight_ih and dbias_ih are in the cache's order n r z; without `biases` their sums are 0.

    recurrent_parts : [U^T (H, 3H)] with reset_after, else [U_n^T (H, H), [U_r U_z]^T (H, 2H)]. input_part : [W_n W_r W_z]^T
    (I, 3H). cache : float32 (ΣT, 4H) of the forward pass, overwritten; place, step_first : as in PackedGRU.run. dy : as y,
    or None. dh_n : C-contiguous (N, H), or None. biases : whether their gradients are wanted. out : where dx goes, or None.
    """
    cdef Back b
    cdef Weight w[3]
    cdef fg_gru_backward g
    cdef cnp.ndarray xs = x, ys = y, dys, dxs, hs
    cdef int batch = 1 if time_major else 0, n = 2
    cdef int64_t H = packed.gru.hidden_size, I = packed.gru.input_size, W = packed.table.width
    cdef int64_t N, threads, k, room, columns
    cdef int64_t *bound
    cdef double work
    cdef float *memory
    memset(&b, 0, sizeof(Back))
    b.job.table, b.job.gru = packed.table, &packed.gru
    N = (len(offsets) - 1) if offsets is not None else x.shape[batch]
    b.job.rows = N
    b.job.x, b.job.y = <const float *>cnp.PyArray_DATA(xs), <float *>cnp.PyArray_DATA(ys)
    b.job.cache = <float *>cnp.PyArray_DATA(strided(cache))
    if place is not None:
        b.job.place = <const int64_t *>cnp.PyArray_DATA(strided(place))
        b.job.step_first = <const int64_t *>cnp.PyArray_DATA(strided(step_first))
    b.job.reverse = reverse
    if h0 is not None:
        hs = h0
        b.job.h0, b.job.h0_row = <const float *>cnp.PyArray_DATA(hs), cnp.PyArray_STRIDE(hs, 0) // 4
    whole = lengths is None and offsets is None
    dx = out                               # 0 at padded steps
    if out is None:
        dx = (np.empty if whole else np.zeros)(x.shape, np.float32)
    elif lengths is not None:              # with offsets no step is padding
        np.asarray(dx)[...] = 0            # all of it, also where a subclass would not write
    dxs = dx
    dh0 = np.empty((N, H), np.float32)
    b.dx, b.dh0 = <float *>cnp.PyArray_DATA(dxs), <float *>cnp.PyArray_DATA(strided(dh0))
    if dy is not None:
        dys = dy
        b.dy = <const float *>cnp.PyArray_DATA(dys)
    if dh_n is not None:
        b.dh_n = <const float *>cnp.PyArray_DATA(strided(dh_n))
    if offsets is not None:
        b.job.offsets = <const int64_t *>cnp.PyArray_DATA(strided(offsets))
        b.job.x_time, b.job.y_time, b.dx_time = xs.strides[0] // 4, ys.strides[0] // 4, dxs.strides[0] // 4
        if dy is not None:
            b.dy_time = dys.strides[0] // 4
    else:
        b.job.steps = cnp.PyArray_DIM(xs, 1 - batch)
        b.job.x_row, b.job.x_time = xs.strides[batch] // 4, xs.strides[1 - batch] // 4
        b.job.y_row, b.job.y_time = ys.strides[batch] // 4, ys.strides[1 - batch] // 4
        b.dx_row, b.dx_time = dxs.strides[batch] // 4, dxs.strides[1 - batch] // 4
        if dy is not None:
            b.dy_row, b.dy_time = dys.strides[batch] // 4, dys.strides[1 - batch] // 4
        if lengths is not None:
            b.job.lengths = <const int64_t *>cnp.PyArray_DATA(strided(lengths))
        if valid is not None:
            b.job.valid = <const int64_t *>cnp.PyArray_DATA(strided(valid))
    counts = np.diff(offsets) if offsets is not None else lengths
    order = longest_first(counts) if counts is not None and N else None
    if order is not None:
        b.job.order = <const int64_t *>cnp.PyArray_DATA(strided(order))

    # the transposes, packed: dh from the gates, and dx from [da_n da_r da_z]
    cdef bint after = packed.gru.reset_after
    g.reset_after, g.input_size, g.hidden_size = after, I, H
    g.activation, g.recurrent_activation = packed.gru.activation, packed.gru.recurrent_activation
    hidden, inputs = padded_range(H, W), padded_range(I, W)
    recurrent = [pack_panels(part, hidden, W) for part in recurrent_parts]
    for k in range(len(recurrent)):
        g.h[k].inputs, g.h[k].vecs = recurrent_parts[k].shape[1], len(hidden) // W
        g.h[k].weight, g.h[k].start = <const float *>cnp.PyArray_DATA(strided(recurrent[k])), NULL
    input_weight, no_bias = pack_panels(input_part, inputs, W), np.zeros(len(inputs), np.float32)
    g.x.inputs, g.x.vecs = 3 * H, len(inputs) // W
    g.x.weight = <const float *>cnp.PyArray_DATA(strided(input_weight))
    g.x.start = <const float *>cnp.PyArray_DATA(strided(no_bias))
    b.gru = &g

    # [da_n da_r da_z] ⊗ x, and [da_r da_z dq] ⊗ h, or [da_r da_z] ⊗ h and da_n ⊗ (r h)
    dw_ih, dw_hh = np.zeros((3 * H, len(inputs)), np.float32), np.zeros((3 * H, len(hidden)), np.float32)
    column_sums = np.zeros(4 * H, np.float32)
    cdef float *sums = <float *>cnp.PyArray_DATA(strided(column_sums)) if biases else NULL
    w[0] = Weight(<float *>cnp.PyArray_DATA(strided(dw_ih)), len(inputs), 0, 3 * H, I, INPUT)
    w[1] = Weight(<float *>cnp.PyArray_DATA(strided(dw_hh)), len(hidden), H, 4 * H if after else 3 * H, H, STATE)
    if not after:
        w[2] = Weight(w[1].out + 2 * H * w[1].out_stride, len(hidden), 0, H, H, CACHED)
        n = 3

    work = <double>cache.shape[0] * 3 * H * (H + I)
    threads = threads_for(num_threads, max(N, 1), work)
    b.job.slots = min(round_up((N + threads - 1) // threads, packed.table.tile_rows), <int64_t>FG_MAX_ROWS)
    b.workspace = round_up(fg_backward_scratch(W, H), 16) + round_up(H, 16)
    b.workspace += b.job.slots * round_up(round_up(H, W), 16)
    if N and cache.shape[0]:
        room = b.workspace * threads
        memory = <float *>malloc(<size_t>(room + 16) * sizeof(float))
        if memory == NULL:
            raise MemoryError(f"no room for {4 * room} bytes of workspace")
        with nogil:
            if threads == 1:
                back_thread(&b, 0, 1, <float *>aligned(memory))
            else:
                for k in prange(threads, num_threads=threads, schedule="static", chunksize=1):
                    back_thread(&b, k, threads, <float *>aligned(memory))
            free(memory)
        columns = w[1].last                # shared out by the work that they are
        each = np.repeat([I, I + H, H], [H, 2 * H, H]) if after else np.full(3 * H, I + H)
        threads = threads_for(num_threads, columns // 8 + 1, work)
        ends = np.searchsorted(np.cumsum(each), np.arange(1, threads) * each.sum() / threads) // 8 * 8
        bounds = np.array([0, *ends, columns], np.int64)
        bound = <int64_t *>cnp.PyArray_DATA(strided(bounds))
        widest = int(np.diff(bounds).max())
        room = round_up(round_up(H, 16) + fg_packed_size(widest) + fg_outer_scratch(W, widest), 16)
        memory = <float *>malloc(<size_t>(room * threads + 16) * sizeof(float))
        if memory == NULL:
            raise MemoryError(f"no room for {4 * room * threads} bytes of workspace")
        with nogil:
            if threads == 1:
                weight_columns(&b, w, n, sums, 0, columns, <float *>aligned(memory))
            else:
                for k in prange(threads, num_threads=threads, schedule="static", chunksize=1):
                    weight_columns(&b, w, n, sums, bound[k], bound[k + 1], <float *>aligned(memory) + k * room)
            free(memory)
    elif N:
        dh0[...] = 0 if dh_n is None else dh_n
    return dx, dh0, dw_ih[:, :I], dw_hh[:, :H], column_sums[: 3 * H], column_sums[H:] if after else None
