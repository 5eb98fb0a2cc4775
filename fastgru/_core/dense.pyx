"""y = W x + b for dense layers, and the elementwise functions, on the same kernels as the GRU."""

import numpy as np

cimport numpy as cnp
from cython.parallel cimport prange
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc

from fastgru._core.isa cimport find, parse_activation, threads_for
from fastgru._core.memory cimport aligned, round_up
from fastgru._core.table cimport FG_MAX_ROWS, fg_act, fg_linear, fg_linear_scratch, fg_table

from fastgru._core.packing import pack_panels, pack_vector, padded_range

cnp.import_array()


cdef void run_blocks(const fg_table *table, const fg_linear *m, float *y, const float *x, int64_t outputs, int64_t N,
                     int64_t first, int64_t step, float *scratch) noexcept nogil:
    """Blocks first, first + step, ... of FG_MAX_ROWS rows."""
    cdef float *ys[FG_MAX_ROWS]
    cdef const float *xs[FG_MAX_ROWS]
    cdef int64_t i, row = first * FG_MAX_ROWS, rows
    while row < N:
        rows = min(<int64_t>FG_MAX_ROWS, N - row)
        for i in range(rows):
            ys[i] = y + (row + i) * outputs
            xs[i] = x + (row + i) * m.inputs
        table.linear(ys, xs, m, outputs, rows, scratch)
        row += step * FG_MAX_ROWS


cdef class PackedDense:
    """Weights of one dense layer in the layout of one instruction set. Made by `fastgru.ops.pack_dense`. Read-only."""

    cdef fg_linear linear
    cdef const fg_table *table
    cdef tuple arrays
    cdef readonly str isa
    cdef readonly int64_t output_size

    def __cinit__(self, weight, bias, isa):
        """Validated float32 weight (M, K) and bias (M) or None."""
        self.table = find(isa)
        self.isa = self.table.name.decode()
        W = self.table.width
        self.output_size = weight.shape[0]
        lanes = padded_range(self.output_size, W)
        self.arrays = pack_panels(weight, lanes, W), pack_vector(bias, lanes)
        self.linear.inputs, self.linear.vecs = weight.shape[1], len(lanes) // W
        self.linear.weight = <const float *>cnp.PyArray_DATA(self.arrays[0])
        self.linear.start = <const float *>cnp.PyArray_DATA(self.arrays[1])

    @property
    def input_size(self):
        """K."""
        return self.linear.inputs

    @property
    def nbytes(self):
        """Bytes of the packed weights."""
        return sum(a.nbytes for a in self.arrays)

    def __reduce__(self):
        raise TypeError("a PackedDense belongs to one instruction set: pickle the weights, and pack them where they are used")

    def run(self, cnp.ndarray x, cnp.ndarray y, num_threads=None):
        """y (N, M) = x (N, K) Wᵀ + b: C-contiguous float32, already validated."""
        cdef int64_t N = cnp.PyArray_DIM(x, 0), K = self.linear.inputs, M = self.output_size, k
        cdef int64_t blocks = (N + FG_MAX_ROWS - 1) // FG_MAX_ROWS
        cdef int64_t scratch = round_up(fg_linear_scratch(self.table.width, K), 16)
        cdef int64_t threads = threads_for(num_threads, blocks, <double>N * <double>K * <double>M)
        cdef const float *xs = <const float *>cnp.PyArray_DATA(x)
        cdef float *ys = <float *>cnp.PyArray_DATA(y)
        cdef float *room
        if N == 0:
            return
        room = <float *>malloc(<size_t>(scratch * threads + 16) * sizeof(float))
        if room == NULL:
            raise MemoryError("no room for the workspace of a dense layer")
        with nogil:
            if threads == 1:
                run_blocks(self.table, &self.linear, ys, xs, M, N, 0, 1, <float *>aligned(room))
            else:
                for k in prange(threads, num_threads=threads, schedule="static", chunksize=1):
                    run_blocks(self.table, &self.linear, ys, xs, M, N, k, threads, <float *>aligned(room) + k * scratch)
            free(room)


def activate(cnp.ndarray x, cnp.ndarray y, activation, isa=None):
    """y = activation(x) for C-contiguous float32 arrays of one size."""
    cdef fg_act act = parse_activation(activation)
    cdef const fg_table *table = find(isa)
    cdef const float *xs = <const float *>cnp.PyArray_DATA(x)
    cdef float *ys = <float *>cnp.PyArray_DATA(y)
    cdef int64_t n = cnp.PyArray_SIZE(x)
    with nogil:
        table.activate(ys, xs, n, act)
