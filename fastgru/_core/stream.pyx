"""A stack of layers, one time step a call: the state stays inside, nothing is allocated."""

import numpy as np

cimport numpy as cnp
from libc.stdint cimport int64_t
from libc.string cimport memset

from fastgru._core.gru cimport Job, PackedGRU
from fastgru._core.isa cimport threads_for
from fastgru._core.stack cimport ready

cnp.import_array()


cdef bint meets(cnp.ndarray x, cnp.ndarray own) noexcept:
    """Whether x (N, I) may lie in an array of the stream's own."""
    cdef char *first = <char *>cnp.PyArray_DATA(x)
    cdef char *last = first + (cnp.PyArray_DIM(x, 0) - 1) * cnp.PyArray_STRIDE(x, 0)
    cdef char *start = <char *>cnp.PyArray_DATA(own)
    if last < first:
        first, last = last, first
    last += cnp.PyArray_DIM(x, 1) * sizeof(float)
    return first < start + cnp.PyArray_NBYTES(own) and start < last


cdef class Stream:
    """One step at a time through a stack of GRU layers. Made by `nn.GRU.stream`.

    One stream belongs to one sequence (or batch of them) and to one thread at a time; streams of one model share its
    weights.

    Attributes
    ----------
    state : float32 (L, N, H)
        The state of each layer, to be read and written in place.
    batch_size : int
        N.
    """

    cdef tuple layers
    cdef readonly object state
    cdef readonly int64_t batch_size
    cdef object outputs                    # (L, N, H): each layer's output of this step
    cdef object output                     # its last (N, H), handed out again and again
    cdef object convert, num_threads

    def __cinit__(self, layers, int64_t batch_size, convert, num_threads=None):
        """`convert` makes float32 (N, I) of an x that can't be used as it is, or raises."""
        threads_for(num_threads, 1, 0)     # refuses a bad one now
        self.layers = tuple(layers)
        self.batch_size, self.convert, self.num_threads = batch_size, convert, num_threads
        hidden = self.layers[0].hidden_size
        self.state = np.zeros((len(self.layers), batch_size, hidden), np.float32)
        self.outputs = np.zeros((len(self.layers), batch_size, hidden), np.float32)
        self.output = self.outputs[-1 + len(self.layers)]

    def step(self, x):
        """Take one time step.

        Parameters
        ----------
        x : (N, I)

        Returns
        -------
        y : float32 (N, H)
            The last layer's output. The same array is filled again by the next step: copy what is to be kept.

        Raises
        ------
        TypeError, ValueError
            Naming what was expected and what was found.
        """
        cdef Job j
        cdef PackedGRU layer = <PackedGRU>self.layers[0]
        cdef int64_t i, N = self.batch_size, H = layer.gru.hidden_size
        cdef float *state = <float *>cnp.PyArray_DATA(<cnp.ndarray>self.state)
        cdef float *outputs = <float *>cnp.PyArray_DATA(<cnp.ndarray>self.outputs)
        if not ready(x, 2, layer.gru.input_size) or cnp.PyArray_DIM(<cnp.ndarray>x, 0) != N:
            x = self.convert(x)
        if meets(<cnp.ndarray>x, <cnp.ndarray>self.state) or meets(<cnp.ndarray>x, <cnp.ndarray>self.outputs):
            x = np.array(x)                # an output fed back: a step may not write what it still reads
        memset(&j, 0, sizeof(Job))
        j.rows, j.steps, j.h0_row, j.hn_row, j.y_row = N, 1, H, H, H
        j.x = <const float *>cnp.PyArray_DATA(<cnp.ndarray>x)
        j.x_row = cnp.PyArray_STRIDE(<cnp.ndarray>x, 0) // <int64_t>sizeof(float)
        for i in range(len(self.layers)):
            layer = <PackedGRU>self.layers[i]
            # a row's state is written only after its step, from y: reading and writing it in one place is safe
            j.h0, j.h_n, j.y = state + i * N * H, state + i * N * H, outputs + i * N * H
            layer.execute(&j, 1, <double>N, self.num_threads)
            j.x, j.x_row = j.y, H
        return self.output

    def reset(self, rows=None):
        """Set the state of some rows (a number, a list, a slice, a boolean mask), or of all, to zero."""
        if rows is None:
            self.state[...] = 0
        else:
            self.state[:, rows] = 0
