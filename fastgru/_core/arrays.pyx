"""Loops over whole arrays, in one module because each module costs a wheel 20 KB: weights into the panels that the kernels
read (see fg_linear in simd/table.h), sums over rows that gradients are made of, and steps of optimisers."""

import numpy as np

cimport numpy as cnp
from cython.parallel cimport prange
from libc.math cimport sqrtf
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from fastgru._core.isa cimport find, threads_for
from fastgru._core.memory cimport aligned, round_up
from fastgru._core.table cimport FG_KC, fg_outer_scratch, fg_packed_size, fg_panel_width, fg_table

cnp.import_array()


# --- panels


def move(cnp.ndarray packed, cnp.ndarray weight, cnp.ndarray lanes, int64_t width, bint into):
    """Rows of `weight` (M, K), which `lanes` names, into panels of `width` floats a vector, or back out of them.

    packed : contiguous float32. weight : float32, strides of whole floats. lanes : contiguous int64, -1 for no row.
    """
    cdef float *panels = <float *>cnp.PyArray_DATA(packed)
    cdef float *rows = <float *>cnp.PyArray_DATA(weight)
    cdef const int64_t *lane = <const int64_t *>cnp.PyArray_DATA(lanes)
    cdef int64_t vecs = cnp.PyArray_DIM(lanes, 0) // width, inputs = cnp.PyArray_DIM(weight, 1)
    cdef int64_t row_stride = cnp.PyArray_STRIDE(weight, 0) // 4, stride = cnp.PyArray_STRIDE(weight, 1) // 4
    cdef int64_t first = 0, columns, c
    cdef float *panel
    with nogil:
        while first < vecs:
            columns = fg_panel_width(vecs - first) * width
            panel = panels + first * width * inputs
            if row_stride == 1:            # the rows of a vector lie beside each other, as the panel wants them
                c = 0
                while c < columns:
                    c += move_beside(panel + c, columns, rows, stride, lane + first * width + c, width - c % width, inputs,
                                     into)
            else:
                move_along(panel, columns, rows, row_stride, stride, lane + first * width, inputs, into)
            first += columns // width


cdef int64_t move_beside(float *panel, int64_t columns, float *rows, int64_t stride, const int64_t *lane, int64_t left,
                         int64_t inputs, bint into) noexcept nogil:
    """The `left` lanes of a vector, or one where their rows don't follow each other; how many were moved."""
    cdef int64_t count = left, c, k
    cdef float *row
    if lane[0] < 0:
        return 1
    for c in range(left):
        if lane[c] != lane[0] + c:
            count = 1
    row = rows + lane[0]
    for k in range(inputs):
        if into:
            copy(panel + k * columns, row + k * stride, count)
        else:
            copy(row + k * stride, panel + k * columns, count)
    return count


cdef inline void copy(float *to, const float *source, int64_t count) noexcept nogil:
    if count == 8:                         # of constant size: no calls
        memcpy(to, source, 8 * sizeof(float))
    elif count == 16:
        memcpy(to, source, 16 * sizeof(float))
    else:
        memcpy(to, source, count * sizeof(float))


cdef void move_along(float *panel, int64_t columns, float *rows, int64_t row_stride, int64_t stride,
                     const int64_t *lane, int64_t inputs, bint into) noexcept nogil:
    """A panel, a cache line of every row at a time: the panel's floats of one row lie apart."""
    cdef int64_t begin = 0, end, c, k
    cdef float *row
    while begin < inputs:
        end = min(begin + 16, inputs)
        for c in range(columns):
            if lane[c] < 0:
                continue
            row = rows + lane[c] * row_stride
            if into:
                for k in range(begin, end):
                    panel[k * columns + c] = row[k * stride]
            else:
                for k in range(begin, end):
                    row[k * stride] = panel[k * columns + c]
        begin = end


# --- sums


cdef void outer_rows(const fg_table *table, float *out, int64_t stride, const float *a, const float *b, int64_t M,
                     int64_t N, int64_t R, int64_t first, int64_t count, float *scratch) noexcept nogil:
    """Rows first ... first + count of out, over the R rows of a and b in order."""
    cdef const float *left[FG_KC]
    cdef const float *right[FG_KC]
    cdef int64_t row = 0, terms, i
    while count > 0 and row < R:
        terms = min(<int64_t>FG_KC, R - row)
        for i in range(terms):
            left[i], right[i] = a + (row + i) * M + first, b + (row + i) * N
        table.pack_outer(scratch, NULL, left, count, terms)
        table.outer(out + first * stride, stride, scratch, 0, right, count, N, terms, scratch + fg_packed_size(count))
        row += terms


def outer_sum(cnp.ndarray a, cnp.ndarray b, num_threads=None, isa=None):
    """Σ over rows of a (R, M) ⊗ b (R, N) -> (M, N): C-contiguous float32, already validated."""
    cdef const fg_table *table = find(isa)
    cdef int64_t R = cnp.PyArray_DIM(a, 0), M = cnp.PyArray_DIM(a, 1), N = cnp.PyArray_DIM(b, 1), k
    cdef int64_t stride = round_up(N, table.width)
    cdef int64_t threads = threads_for(num_threads, (M + 7) // 8, <double>R * <double>M * <double>N)
    cdef int64_t share = round_up((M + threads - 1) // threads, 8)  # threads own rows of the result
    cdef int64_t room = fg_packed_size(share) + round_up(fg_outer_scratch(table.width, share), 16)
    cdef cnp.ndarray result = np.zeros((M, stride), np.float32)
    cdef float *out = <float *>cnp.PyArray_DATA(result)
    cdef const float *left = <const float *>cnp.PyArray_DATA(a)
    cdef const float *right = <const float *>cnp.PyArray_DATA(b)
    cdef float *memory = <float *>malloc(<size_t>(room * threads + 16) * sizeof(float))
    if memory == NULL:
        raise MemoryError("no room for the workspace of a weight gradient")
    with nogil:
        if threads == 1:
            outer_rows(table, out, stride, left, right, M, N, R, 0, M, <float *>aligned(memory))
        else:
            for k in prange(threads, num_threads=threads, schedule="static", chunksize=1):
                outer_rows(table, out, stride, left, right, M, N, R, min(k * share, M), min(share, M - min(k * share, M)),
                           <float *>aligned(memory) + k * room)
        free(memory)
    return result if stride == N else np.ascontiguousarray(result[:, :N])


def column_sums(cnp.ndarray a, isa=None):
    """Σ over rows of a (R, M) -> (M,): C-contiguous float32, already validated."""
    cdef const fg_table *table = find(isa)
    cdef int64_t R = cnp.PyArray_DIM(a, 0), M = cnp.PyArray_DIM(a, 1), row = 0, terms, i
    cdef cnp.ndarray result = np.zeros(M, np.float32)
    cdef float *out = <float *>cnp.PyArray_DATA(result)
    cdef const float *base = <const float *>cnp.PyArray_DATA(a)
    cdef const float *rows[FG_KC]
    with nogil:
        while row < R:
            terms = min(<int64_t>FG_KC, R - row)
            for i in range(terms):
                rows[i] = base + (row + i) * M
            table.column_sums(out, rows, M, terms)
            row += terms
    return result


def sum_rows(cnp.ndarray values, cnp.ndarray place, int64_t count):
    """values (R, U) added up, in order, in row place[i] of `count`: C-contiguous float32, int64, already validated."""
    cdef int64_t R = cnp.PyArray_DIM(values, 0), U = cnp.PyArray_DIM(values, 1), row, i
    cdef cnp.ndarray result = np.zeros((count, U), np.float32)
    cdef float *out = <float *>cnp.PyArray_DATA(result)
    cdef const float *value = <const float *>cnp.PyArray_DATA(values)
    cdef const int64_t *where = <const int64_t *>cnp.PyArray_DATA(place)
    cdef float *into
    with nogil:
        for row in range(R):
            into = out + where[row] * U
            for i in range(U):
                into[i] += value[row * U + i]
    return result


# --- optimisers: one pass over a weight and what is kept for it, which NumPy would read and write ten times


cdef bint fits(cnp.ndarray array, int64_t size, bint written):
    if cnp.PyArray_TYPE(array) != cnp.NPY_FLOAT32 or cnp.PyArray_SIZE(array) != size:
        return False
    return cnp.PyArray_ISCARRAY(array) if written else cnp.PyArray_ISCARRAY_RO(array)


def adam(cnp.ndarray weight, cnp.ndarray gradient, cnp.ndarray momentum, cnp.ndarray velocity, velocity_hat,
         float rest_1, float rest_2, float rate, float epsilon):
    """m += (g - m) rest_1; v += (g² - v) rest_2; w -= m rate / (√v + ε), with the largest v so far where `velocity_hat` is given.

    Every operation rounds to float32, as NumPy's would.

    Raises
    ------
    ValueError
        Unless all arrays are C-contiguous float32 of one size.
    """
    for array in (weight, gradient, momentum, velocity, velocity_hat):
        if array is not None and not fits(array, cnp.PyArray_SIZE(weight), array is not gradient):
            raise ValueError(f"expected C-contiguous float32 of {weight.size} numbers, found {array.dtype} {array.shape}")
    cdef float *w = <float *>cnp.PyArray_DATA(weight)
    cdef float *m = <float *>cnp.PyArray_DATA(momentum)
    cdef float *v = <float *>cnp.PyArray_DATA(velocity)
    cdef float *hat = NULL
    cdef const float *g = <const float *>cnp.PyArray_DATA(gradient)
    cdef int64_t size = cnp.PyArray_SIZE(weight), i
    if velocity_hat is not None:
        hat = <float *>cnp.PyArray_DATA(<cnp.ndarray>velocity_hat)
    with nogil:
        if hat == NULL:
            for i in range(size):
                m[i] += (g[i] - m[i]) * rest_1
                v[i] += (g[i] * g[i] - v[i]) * rest_2
                w[i] -= m[i] * rate / (sqrtf(v[i]) + epsilon)
        else:
            for i in range(size):
                m[i] += (g[i] - m[i]) * rest_1
                v[i] += (g[i] * g[i] - v[i]) * rest_2
                hat[i] = hat[i] if hat[i] > v[i] else v[i]
                w[i] -= m[i] * rate / (sqrtf(hat[i]) + epsilon)
