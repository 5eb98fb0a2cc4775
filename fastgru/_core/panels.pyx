"""Weights into the panels that the kernels read, and out of them: see fg_linear in simd/table.h."""

cimport numpy as cnp
from libc.stdint cimport int64_t

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
    cdef int64_t first = 0, columns, c, k, begin, end
    cdef float *panel
    cdef float *row
    with nogil:
        while first < vecs:
            columns = fg_panel_width(vecs - first) * width
            panel = panels + first * width * inputs
            begin = 0
            while begin < inputs:  # a cache line of every row at a time: the panel's floats of one row lie apart
                end = min(begin + 16, inputs)
                for c in range(columns):
                    if lane[first * width + c] < 0:
                        continue
                    row = rows + lane[first * width + c] * row_stride
                    if into:
                        for k in range(begin, end):
                            panel[k * columns + c] = row[k * stride]
                    else:
                        for k in range(begin, end):
                            row[k * stride] = panel[k * columns + c]
                begin = end
            first += columns // width
