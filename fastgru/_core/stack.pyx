"""A stack of layers in one or both directions: the call path of nn.GRU, in NumPy's C API because a microsecond counts."""

cimport numpy as cnp
from libc.stdint cimport int64_t
from libc.string cimport memset

from fastgru._core.gru cimport Job, PackedGRU, longest_first
from fastgru._core.isa cimport threads_for

cnp.import_array()


cdef bint ready(object a, int ndim, int64_t last) noexcept:
    """Whether an object can be handed to C as it is: float32 in this machine's order, the last axis contiguous."""
    cdef cnp.ndarray x
    cdef int i
    if not cnp.PyArray_CheckExact(a):
        return False
    x = <cnp.ndarray>a
    if cnp.PyArray_TYPE(x) != cnp.NPY_FLOAT32 or not cnp.PyArray_ISBEHAVED_RO(x) or cnp.PyArray_NDIM(x) != ndim:
        return False
    if cnp.PyArray_DIM(x, ndim - 1) != last:
        return False
    if cnp.PyArray_SIZE(x) == 0:           # its strides mean nothing, and are often 0
        return True
    if last > 1 and cnp.PyArray_STRIDE(x, ndim - 1) != sizeof(float):
        return False
    for i in range(ndim - 1):
        if cnp.PyArray_DIM(x, i) > 1 and cnp.PyArray_STRIDE(x, i) % <int64_t>sizeof(float):
            return False
    return True


cdef class Stack:
    """Packed layers, layer by layer and in each forward then backward. Read-only, safe to use from several threads."""

    cdef readonly tuple layers
    cdef int64_t directions, input_size, hidden_size

    def __cinit__(self, layers, int64_t directions):
        self.layers = tuple(layers)
        self.directions = directions
        self.input_size, self.hidden_size = self.layers[0].input_size, self.layers[0].hidden_size

    def run(self, x, h0, lengths, bint batch_first, num_threads):
        """y and h_n as nn.GRU returns them, or None where x or h0 must be converted, or refused, by the caller first.

        lengths is None or validated: int64 (N), 0 … T.
        """
        cdef Job j
        cdef PackedGRU layer
        cdef cnp.ndarray xs, y, h_n, start
        cdef int ndim, batch, d
        cdef int64_t i, rows, longest, count = len(self.layers), H = self.hidden_size, D = self.directions
        cdef cnp.npy_intp dims[3]
        cdef double total
        cdef bint single
        if not cnp.PyArray_CheckExact(x):
            return None
        ndim = cnp.PyArray_NDIM(<cnp.ndarray>x)
        if ndim != 3 and ndim != 2 or not ready(x, ndim, self.input_size):
            return None
        single = ndim == 2
        batch = 0 if batch_first else 1
        xs = <cnp.ndarray>x
        rows = 1 if single else cnp.PyArray_DIM(xs, batch)
        if h0 is not None:
            if not ready(h0, ndim, H):
                return None
            start = <cnp.ndarray>h0
            if cnp.PyArray_DIM(start, 0) != count or (not single and cnp.PyArray_DIM(start, 1) != rows):
                return None

        dims[0], dims[1], dims[2] = count, rows, H
        if single:
            dims[1] = H
        h_n = cnp.PyArray_EMPTY(ndim, dims, cnp.NPY_FLOAT32, 0)
        dims[0], dims[1], dims[2] = cnp.PyArray_DIM(xs, 0), cnp.PyArray_DIM(xs, 1), D * H
        if single:
            dims[1] = D * H
        memset(&j, 0, sizeof(Job))
        j.rows, j.hn_row = rows, H
        j.steps = longest = cnp.PyArray_DIM(xs, 0 if single else 1 - batch)
        total = <double>rows * <double>longest
        order = None
        if lengths is not None and rows:
            j.lengths = <const int64_t *>cnp.PyArray_DATA(<cnp.ndarray>lengths)
            longest, total = lengths.max(), lengths.sum()
            order = longest_first(lengths)
            j.order = <const int64_t *>cnp.PyArray_DATA(<cnp.ndarray>order) if order is not None else NULL
        threads_for(num_threads, 1, 0)     # refuses a bad num_threads also where there are no rows
        i = 0
        while i < count:
            y = cnp.PyArray_EMPTY(ndim, dims, cnp.NPY_FLOAT32, 0)
            j.x = <const float *>cnp.PyArray_DATA(xs)
            j.x_row = 0 if single else cnp.PyArray_STRIDE(xs, batch) // <int64_t>sizeof(float)
            j.x_time = cnp.PyArray_STRIDE(xs, 0 if single else 1 - batch) // <int64_t>sizeof(float)
            j.y_row = 0 if single else cnp.PyArray_STRIDE(y, batch) // <int64_t>sizeof(float)
            j.y_time = cnp.PyArray_STRIDE(y, 0 if single else 1 - batch) // <int64_t>sizeof(float)
            for d in range(D):
                j.y = <float *>cnp.PyArray_DATA(y) + d * H
                j.h_n = <float *>cnp.PyArray_DATA(h_n) + i * rows * H
                if h0 is not None:
                    j.h0 = <const float *>(<char *>cnp.PyArray_DATA(start) + i * cnp.PyArray_STRIDE(start, 0))
                    j.h0_row = 0 if single else cnp.PyArray_STRIDE(start, 1) // <int64_t>sizeof(float)
                j.reverse = d == 1
                layer = <PackedGRU>self.layers[i]
                if rows:
                    layer.execute(&j, longest, total, num_threads)
                i += 1
            xs = y
        return y, h_n
