from libc.stdint cimport int64_t

from fastgru._core.table cimport fg_gru, fg_table

# What one call works on. Strides count floats. Row i's step t of x lies at x + x_row(i) + t * x_time, and y likewise.
cdef struct Job:
    const fg_table *table
    const fg_gru *gru
    const float *x
    const float *h0            # (N, H), NULL: zeros
    float *y                   # NULL: only the last states are wanted
    float *h_n                 # (N, H)
    int64_t rows, steps        # N and T; T is not read where offsets are given
    int64_t x_row, x_time, y_row, y_time, h0_row, hn_row
    const int64_t *offsets     # (N+1) first step of each row in x and y, or NULL
    const int64_t *lengths     # (N) steps of each row, or NULL: all T
    const int64_t *valid       # (N, T) the first lengths[i] entries name row i's valid steps, or NULL: 0, 1, 2, ...
    const int64_t *order       # (N) rows, longest first, or NULL: as they come
    float *cache               # NULL, or (ΣT, 4H): what each valid step keeps for the backward pass, step by step
    const int64_t *place       # (N) where row i stands among those of a step, longest first; NULL: row i at i
    const int64_t *step_first  # (T) where the rows of a step begin in the cache; NULL: N rows for each
    bint reverse
    bint repeat                # at padded steps y repeats the previous output (Keras), else it is 0
    int64_t slots              # rows worked on side by side
    int64_t workspace          # floats of one thread


cdef inline int64_t length_of(const Job *j, int64_t row) noexcept nogil:
    if j.offsets != NULL:
        return j.offsets[row + 1] - j.offsets[row]
    return j.lengths[row] if j.lengths != NULL else j.steps


cdef inline int64_t time_of(const Job *j, int64_t row, int64_t step, int64_t length) noexcept nogil:
    if j.reverse:
        step = length - 1 - step
    return j.valid[row * j.steps + step] if j.valid != NULL else step


cdef inline float *cache_at(const Job *j, int64_t row, int64_t step) noexcept nogil:
    if j.place != NULL:
        return j.cache + (j.step_first[step] + j.place[row]) * 4 * j.gru.hidden_size
    return j.cache + (step * j.rows + row) * 4 * j.gru.hidden_size


cdef inline const float *x_at(const Job *j, int64_t row, int64_t t) noexcept nogil:
    if j.offsets != NULL:
        return j.x + (j.offsets[row] + t) * j.x_time
    return j.x + row * j.x_row + t * j.x_time


cdef class PackedGRU:
    cdef fg_gru gru
    cdef const fg_table *table
    cdef tuple arrays                      # what the pointers in `gru` point into
    cdef readonly str isa
    cdef readonly object activation, recurrent_activation
    cdef readonly str update_gate          # as the weights were given: "old" or "new"
    cdef readonly bint has_bias_ih, has_bias_hh

    cdef int execute(self, Job *j, int64_t longest, double total, object num_threads) except -1
    cdef int64_t workspace(self, bint states, int64_t slots, int64_t longest) noexcept


cdef object longest_first(object lengths)
