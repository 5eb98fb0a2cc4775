"""Weights into the panels that the kernels read, and out of them: see fg_linear in simd/table.h."""

cimport numpy as cnp
from libc.stdint cimport int64_t
from libc.string cimport memcpy

from fastgru._core.table cimport fg_panel_width

cnp.import_array()


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
                    c += move_beside(panel + c, columns, rows, stride, lane + first * width + c, width, inputs, into)
            else:
                move_along(panel, columns, rows, row_stride, stride, lane + first * width, inputs, into)
            first += columns // width


cdef int64_t move_beside(float *panel, int64_t columns, float *rows, int64_t stride, const int64_t *lane, int64_t width,
                         int64_t inputs, bint into) noexcept nogil:
    """One vector of the panel, or one lane where the rows of a vector don't follow each other; how many were moved."""
    cdef int64_t count = width, c, k
    cdef float *row
    if lane[0] < 0:
        return 1
    for c in range(width):
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
