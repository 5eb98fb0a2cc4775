"""Sums over rows that gradients are made of: products of two arrays row by row, and column sums."""

import numpy as np

cimport numpy as cnp
from cython.parallel cimport prange
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc

from fastgru._core.isa cimport find, threads_for
from fastgru._core.memory cimport aligned, round_up
from fastgru._core.table cimport FG_KC, fg_outer_scratch, fg_packed_size, fg_table

cnp.import_array()


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
