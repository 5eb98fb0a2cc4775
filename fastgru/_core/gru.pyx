"""One GRU layer and direction: packed weights, and the loops over rows and time."""

import numpy as np

cimport numpy as cnp
from cython.parallel cimport parallel, prange
from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from fastgru._core.isa cimport find, parse_activation, threads_for
from fastgru._core.memory cimport aligned, round_up
from fastgru._core.table cimport FG_MAX_ROWS, fg_gru, fg_step_scratch, fg_table

from fastgru._core.packing import gru_lanes, pack_panels, pack_vector, unpack_panels

cnp.import_array()

cdef extern from *:
    """
    #ifdef _OPENMP
    #include <omp.h>
    static void fg_barrier(void)
    {
    #ifdef _MSC_VER
    #pragma omp barrier
    #else
        _Pragma("omp barrier")
    #endif
    }
    #else
    static void fg_barrier(void) {}
    static int omp_get_thread_num(void) { return 0; }
    static int omp_get_num_threads(void) { return 1; }
    #endif
    """
    void fg_barrier() noexcept nogil
    int omp_get_thread_num() noexcept nogil
    int omp_get_num_threads() noexcept nogil


cdef inline float *y_at(const Job *j, int64_t row, int64_t t) noexcept nogil:
    if j.offsets != NULL:
        return j.y + (j.offsets[row] + t) * j.y_time
    return j.y + row * j.y_row + t * j.y_time


cdef void fill_padding(const Job *j, int64_t row) noexcept nogil:
    """Write y at the steps of one row that were not computed, in the order of processing."""
    cdef int64_t H = j.gru.hidden_size, n = length_of(j, row), i, t, done = 0
    cdef const float *previous = NULL
    if n == j.steps:
        return
    for i in range(j.steps):
        t = j.steps - 1 - i if j.reverse else i
        if done < n and t == time_of(j, row, done, n):
            previous = y_at(j, row, t)
            done += 1
        elif previous != NULL and j.repeat:
            memcpy(y_at(j, row, t), previous, H * sizeof(float))
        else:
            memset(y_at(j, row, t), 0, H * sizeof(float))


cdef void project(const Job *j, float **rows, const float **x, float *ahead, int64_t n, float *scratch) noexcept nogil:
    """The input's share of the gates of `n` (row, step) pairs, into `ahead` (n, 3GW)."""
    cdef int64_t i, W = j.table.width, first = j.gru.x[0].vecs * W
    cdef int64_t stride = first + (0 if j.gru.reset_after else j.gru.x[1].vecs * W)
    for i in range(n):
        rows[i] = ahead + i * stride
    j.table.linear(rows, x, &j.gru.x[0], first, n, scratch)
    if not j.gru.reset_after:
        for i in range(n):
            rows[i] += first
        j.table.linear(rows, x, &j.gru.x[1], stride - first, n, scratch)


cdef void run_rows(const Job *j, int64_t first, int64_t stride, int64_t count, float *workspace) noexcept nogil:
    """Rows order[first], order[first + stride], ... through all their steps.

    Rows stand in slots. When a row's sequence ends, its slot takes the next row, so that cost follows the sum of the
    lengths. Few rows have the inputs of several steps projected together, as if they were rows.
    """
    cdef int64_t H = j.gru.hidden_size, W = j.table.width, width = round_up(H, W) * 3
    cdef float *scratch = workspace
    cdef float *zeros = scratch + round_up(fg_step_scratch(W, j.gru.input_size, H, j.gru.reset_after), 16)
    cdef float *states = zeros + round_up(H, 16)                                 # two for each slot, if y is NULL
    cdef float *ahead = states + (0 if j.y != NULL else round_up(2 * H, 16) * j.slots)
    cdef const float *x[FG_MAX_ROWS]
    cdef const float *h[FG_MAX_ROWS]
    cdef float *y[FG_MAX_ROWS]
    cdef float *cache[FG_MAX_ROWS]
    cdef int64_t row[FG_MAX_ROWS]
    cdef int64_t step[FG_MAX_ROWS]
    cdef int64_t length[FG_MAX_ROWS]
    cdef int64_t place[FG_MAX_ROWS]                                              # which states belong to a slot
    cdef int64_t active = 0, taken = 0, i, r, s, n, chunk, t
    memset(zeros, 0, H * sizeof(float))
    for i in range(j.slots):
        place[i] = i
    while True:
        while active < j.slots and taken < count:
            r = first + taken * stride
            if j.order != NULL:
                r = j.order[r]
            taken += 1
            row[active], step[active], length[active] = r, 0, length_of(j, r)
            h[active] = j.h0 + r * j.h0_row if j.h0 != NULL else zeros
            if length[active] == 0:
                memcpy(j.h_n + r * j.hn_row, h[active], H * sizeof(float))
            else:
                active += 1
        if active == 0:
            break

        chunk = 1
        if active < 2 * j.table.tile_rows:
            chunk = FG_MAX_ROWS // active
            for i in range(active):
                chunk = min(chunk, length[i] - step[i])
        if chunk > 1:
            n = 0
            for s in range(chunk):
                for i in range(active):
                    x[n] = x_at(j, row[i], time_of(j, row[i], step[i] + s, length[i]))
                    n += 1
            project(j, y, x, ahead, n, scratch)
        for s in range(chunk):
            for i in range(active):
                t = time_of(j, row[i], step[i], length[i])
                if chunk == 1:
                    x[i] = x_at(j, row[i], t)
                if j.y != NULL:
                    y[i] = y_at(j, row[i], t)
                    if j.cache != NULL:
                        cache[i] = cache_at(j, row[i], step[i])
                else:
                    y[i] = states + place[i] * round_up(2 * H, 16) + (step[i] & 1) * H
            if chunk == 1:
                j.table.gru_step(y, cache if j.cache != NULL else NULL, x, h, NULL, 0, j.gru, active, scratch)
            else:
                j.table.gru_step(y, cache if j.cache != NULL else NULL, NULL, h, ahead + s * active * width, width, j.gru, active, scratch)
            for i in range(active):
                h[i] = y[i]
                step[i] += 1

        i = 0
        while i < active:
            if step[i] < length[i]:
                i += 1
                continue
            memcpy(j.h_n + row[i] * j.hn_row, h[i], H * sizeof(float))
            active -= 1
            row[i], step[i], length[i], h[i] = row[active], step[active], length[active], h[active]
            place[i], place[active] = place[active], place[i]
    if j.y != NULL and j.lengths != NULL:
        for i in range(count):
            r = first + i * stride
            fill_padding(j, j.order[r] if j.order != NULL else r)


cdef void run_thread(const Job *j, int64_t k, int64_t threads, float *workspace) noexcept nogil:
    """Thread k's share: contiguous rows, whole tiles of them; with an order, every threads-th, which evens lengths out."""
    cdef int64_t share, first
    workspace += k * j.workspace
    if j.order != NULL:
        run_rows(j, k, threads, (j.rows - k + threads - 1) // threads, workspace)
        return
    share = (j.rows + threads - 1) // threads
    if share > j.table.tile_rows:
        share = round_up(share, j.table.tile_rows)
    first = min(k * share, j.rows)
    run_rows(j, first, 1, min(share, j.rows - first), workspace)


cdef void run_split(const Job *j, int64_t k, int64_t threads, float *workspace) noexcept nogil:
    """A single row, its groups of hidden units shared out to the threads, which wait for each other after every step."""
    cdef int64_t H = j.gru.hidden_size, W = j.table.width, width = round_up(H, W) * 3, length = length_of(j, 0)
    cdef int64_t share = round_up((j.gru.last_group + threads - 1) // threads, 4), step = 0, chunk, s, first, last
    cdef float *scratch = workspace + k * j.workspace
    cdef float *zeros = workspace + round_up(fg_step_scratch(W, j.gru.input_size, H, 1), 16)   # the first thread's
    cdef float *states = zeros + round_up(H, 16)
    cdef float *ahead = states + (0 if j.y != NULL else round_up(2 * H, 16))
    cdef const float *x[FG_MAX_ROWS]
    cdef float *y[FG_MAX_ROWS]
    cdef float *cache
    cdef const float *h = j.h0 if j.h0 != NULL else zeros
    cdef fg_gru mine = j.gru[0]
    mine.first_group, mine.last_group = min(k * share, j.gru.last_group), min((k + 1) * share, j.gru.last_group)
    if k == 0:
        memset(zeros, 0, H * sizeof(float))
    while step < length:
        chunk = min(<int64_t>FG_MAX_ROWS, length - step)
        first, last = chunk * k // threads, chunk * (k + 1) // threads
        if length == 1:                    # no steps to project ahead: the step does it, which is shared out by units
            x[0] = x_at(j, 0, time_of(j, 0, 0, 1))
            last = first
        for s in range(last - first):
            x[s] = x_at(j, 0, time_of(j, 0, step + first + s, length))
        if last > first:
            project(j, y, x, ahead + first * width, last - first, scratch)
        fg_barrier()
        for s in range(chunk):
            if j.y != NULL:
                y[0] = y_at(j, 0, time_of(j, 0, step, length))
            else:
                y[0] = states + (step & 1) * H
            cache = cache_at(j, 0, step) if j.cache != NULL else NULL
            j.table.gru_step(y, &cache if j.cache != NULL else NULL, x if length == 1 else NULL, &h,
                             NULL if length == 1 else ahead + s * width, width, &mine, 1, scratch)
            h = y[0]
            step += 1
            fg_barrier()
    if k == 0:
        memcpy(j.h_n, h, H * sizeof(float))
        if j.y != NULL and j.lengths != NULL:
            fill_padding(j, 0)


cdef int64_t choose_slots(const Job *j, int64_t longest, double total, int64_t threads) noexcept nogil:
    """Just enough slots that the longest row and the sum of all take equally long; whole tiles, evenly filled blocks."""
    cdef int64_t rows = <int64_t>(total / (<double>max(longest, 1) * <double>threads)) + 1
    cdef int64_t blocks
    rows = min(rows, (j.rows + threads - 1) // threads)
    blocks = (rows + FG_MAX_ROWS - 1) // FG_MAX_ROWS
    return min(round_up((rows + blocks - 1) // blocks, j.table.tile_rows), FG_MAX_ROWS)


cdef object longest_first(object lengths):
    """Row numbers int64 (N), the longest first; None where all are equally long and need no order."""
    if lengths.min() == lengths.max():
        return None
    return np.argsort(-lengths, kind="stable").astype(np.int64, copy=False)


cdef class PackedGRU:
    """Weights of one GRU layer and direction in the layout of one instruction set. Made by `fastgru.ops.pack_gru`.

    Read-only, and safe to use from several threads at once.
    """

    def __cinit__(self, weight_ih, weight_hh, bias_ih, bias_hh, bint reset_after, activation, recurrent_activation, isa,
                 update_gate="old"):
        """Float32 weights in convention K, already validated: (3H, I), (3H, H), (3H) or None, (3H) or None."""
        cdef int64_t H = weight_hh.shape[1]
        self.table = find(isa)
        self.isa = self.table.name.decode()
        W = self.table.width
        self.activation, self.recurrent_activation = activation, recurrent_activation
        self.gru.reset_after = reset_after
        self.gru.activation = parse_activation(activation)
        self.gru.recurrent_activation = parse_activation(recurrent_activation)
        self.gru.input_size, self.gru.hidden_size = weight_ih.shape[1], H
        self.update_gate = update_gate
        self.has_bias_ih, self.has_bias_hh = bias_ih is not None, bias_hh is not None
        passes, n = self._lanes()
        self.gru.first_group, self.gru.last_group = 0, len(n) // W
        bias = bias_ih
        if bias_hh is not None:
            bias = bias_hh.copy() if bias_ih is None else bias_ih + bias_hh
            if reset_after:                # n's recurrent bias stands inside r * (...): it stays apart
                bias[2 * H:] = 0 if bias_ih is None else bias_ih[2 * H:]
        arrays = []
        for i, lanes in enumerate(passes):
            for weight in (weight_ih, weight_hh):
                arrays.append(pack_panels(weight, lanes, W))
            arrays.append(pack_vector(bias, lanes))
            self.gru.x[i].inputs, self.gru.h[i].inputs = weight_ih.shape[1], H
            self.gru.x[i].vecs = self.gru.h[i].vecs = len(lanes) // W
            self.gru.x[i].weight = <const float *>cnp.PyArray_DATA(arrays[3 * i])
            self.gru.h[i].weight = <const float *>cnp.PyArray_DATA(arrays[3 * i + 1])
            self.gru.x[i].start = <const float *>cnp.PyArray_DATA(arrays[3 * i + 2])
            self.gru.h[i].start = NULL
        self.gru.recurrent_start = NULL
        if reset_after:
            arrays.append(pack_vector(bias_hh, n))
            self.gru.recurrent_start = <const float *>cnp.PyArray_DATA(arrays[3])
        self.arrays = tuple(arrays)

    def _lanes(self):
        return gru_lanes(self.gru.hidden_size, self.table.width, bool(self.gru.reset_after))

    def weights(self):
        """weight_ih (3H, I) and weight_hh (3H, H) in convention K, unpacked."""
        H, I, W = self.gru.hidden_size, self.gru.input_size, self.table.width
        weight_ih, weight_hh = np.empty((3 * H, I), np.float32), np.empty((3 * H, H), np.float32)
        for i, lanes in enumerate(self._lanes()[0]):
            unpack_panels(self.arrays[3 * i], lanes, I, W, weight_ih)
            unpack_panels(self.arrays[3 * i + 1], lanes, H, W, weight_hh)
        return weight_ih, weight_hh

    @property
    def input_size(self):
        """I."""
        return self.gru.input_size

    @property
    def hidden_size(self):
        """H."""
        return self.gru.hidden_size

    @property
    def reset_after(self):
        """Whether the reset gate multiplies U_n h + c_n (True) or h (False)."""
        return bool(self.gru.reset_after)

    @property
    def nbytes(self):
        """Bytes of the packed weights."""
        return sum(a.nbytes for a in self.arrays)

    def __repr__(self):
        return (f"<PackedGRU {self.input_size} -> {self.hidden_size}, reset_after={self.reset_after}, "
                f"{self.recurrent_activation}/{self.activation}, {self.isa}>")

    def __reduce__(self):
        raise TypeError("a PackedGRU belongs to one instruction set: pickle the weights, and pack them where they are used")

    def run(self, x, h0, y, h_n, lengths=None, valid=None, offsets=None, bint time_major=False, bint reverse=False,
            bint repeat=False, num_threads=None, cache=None, place=None, step_first=None):
        """Run the layer on validated arrays; `fastgru.ops` is the checked way here.

        x, y : float32 (N, T, I) and (N, T, H), or (T, N, ...) if `time_major`, or (ΣT, ...) with `offsets`; the last axis
            contiguous. y None: only h_n is wanted. h0 (None: zeros) and h_n: (N, H), last axis contiguous.
        lengths : int64 (N), each 0 … T. valid : int64 (N, T), the valid steps of each row. offsets : int64 (N+1).
        cache : float32 (ΣT, 4H) to fill for the backward pass; for rows of different lengths with place : int64 (N) and
            step_first : int64 (T), as Job has them.
        """
        cdef Job j
        cdef cnp.ndarray xa = x, ya, ha, hn = h_n
        cdef int64_t longest = 0
        cdef double total = 0
        cdef int batch = 1 if time_major else 0
        order = None
        memset(&j, 0, sizeof(Job))
        j.x = <const float *>cnp.PyArray_DATA(xa)
        j.h_n, j.hn_row = <float *>cnp.PyArray_DATA(hn), cnp.PyArray_STRIDE(hn, 0) // 4
        j.rows = cnp.PyArray_DIM(hn, 0)
        j.reverse, j.repeat = reverse, repeat
        threads_for(num_threads, 1, 0)     # refuses a bad num_threads also where there are no rows
        if j.rows == 0:
            return
        if h0 is not None:
            ha = h0
            j.h0, j.h0_row = <const float *>cnp.PyArray_DATA(ha), cnp.PyArray_STRIDE(ha, 0) // 4
        if y is not None:
            ya = y
            j.y = <float *>cnp.PyArray_DATA(ya)
        if offsets is not None:
            j.offsets = <const int64_t *>cnp.PyArray_DATA(<cnp.ndarray>offsets)
            j.x_time = cnp.PyArray_STRIDE(xa, 0) // 4
            j.y_time = cnp.PyArray_STRIDE(ya, 0) // 4 if y is not None else 0
            counts = np.diff(offsets)
        else:
            j.steps = longest = cnp.PyArray_DIM(xa, 1 - batch)
            total = <double>j.rows * <double>j.steps
            j.x_row, j.x_time = cnp.PyArray_STRIDE(xa, batch) // 4, cnp.PyArray_STRIDE(xa, 1 - batch) // 4
            if y is not None:
                j.y_row, j.y_time = cnp.PyArray_STRIDE(ya, batch) // 4, cnp.PyArray_STRIDE(ya, 1 - batch) // 4
            counts = lengths
            if lengths is not None:
                j.lengths = <const int64_t *>cnp.PyArray_DATA(<cnp.ndarray>lengths)
                if valid is not None:
                    j.valid = <const int64_t *>cnp.PyArray_DATA(<cnp.ndarray>valid)
        if counts is not None:
            longest, total = counts.max(), counts.sum()
            order = longest_first(counts)
            j.order = <const int64_t *>cnp.PyArray_DATA(<cnp.ndarray>order) if order is not None else NULL
        if cache is not None:
            j.cache = <float *>cnp.PyArray_DATA(<cnp.ndarray>cache)
            if place is not None:
                j.place = <const int64_t *>cnp.PyArray_DATA(<cnp.ndarray>place)
                j.step_first = <const int64_t *>cnp.PyArray_DATA(<cnp.ndarray>step_first)
        self.execute(&j, longest, total, num_threads)

    cdef int execute(self, Job *j, int64_t longest, double total, object num_threads) except -1:
        """Do a job whose table, gru, slots and workspace are not set yet; `total` steps in all, `longest` in one row."""
        cdef int64_t H = self.gru.hidden_size, threads, k, room, parts = j.rows
        cdef bint split
        cdef double work
        cdef float *memory
        j.table, j.gru = self.table, &self.gru
        # A barrier a step is a gamble on a busy machine (a thread that lost its core holds the others up for
        # milliseconds), so a single row is split only for callers who name the number of threads.
        split = j.rows == 1 and longest > 0 and self.gru.reset_after and num_threads is not None
        work = total * 3 * H * (H + self.gru.input_size)
        if split:
            parts = self.gru.last_group // 8   # a thread with fewer groups would mostly wait
            work *= 4                          # one row waits for its weights: each multiply-add takes that much longer
        threads = threads_for(num_threads, parts, work)
        j.slots = choose_slots(j, longest, total, threads)
        j.workspace = room = self.workspace(j.y == NULL, j.slots, longest)
        memory = <float *>malloc(<size_t>(room * threads + 16) * sizeof(float))
        if memory == NULL:
            raise MemoryError(f"no room for {4 * room * threads} bytes of workspace")
        with nogil:
            if threads == 1:               # no parallel region at all: safe after a fork, and inside other runtimes
                run_thread(j, 0, 1, <float *>aligned(memory))
            elif split:
                with parallel(num_threads=threads):
                    run_split(j, omp_get_thread_num(), omp_get_num_threads(), <float *>aligned(memory))
            else:
                for k in prange(threads, num_threads=threads, schedule="static", chunksize=1):
                    run_thread(j, k, threads, <float *>aligned(memory))
            free(memory)
        return 0

    cdef int64_t workspace(self, bint states, int64_t slots, int64_t longest) noexcept:
        """Floats that run_rows needs: scratch, a row of zeros, states without y, inputs projected ahead."""
        cdef int64_t H = self.gru.hidden_size, W = self.table.width
        cdef int64_t n = round_up(fg_step_scratch(W, self.gru.input_size, H, self.gru.reset_after), 16) + round_up(H, 16)
        if states:
            n += round_up(2 * H, 16) * slots
        if longest > 1:                    # FG_MAX_ROWS pairs at most, and no more than there are
            n += min(<int64_t>FG_MAX_ROWS, slots * longest) * round_up(H, W) * 3
        return round_up(n, 16)
