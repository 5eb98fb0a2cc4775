from libc.stdint cimport int32_t, int64_t

cdef extern from "table.h" nogil:
    enum:
        FG_MAX_ROWS
        FG_KC

    ctypedef struct fg_act:
        int32_t kind
        float alpha, beta

    ctypedef struct fg_linear:
        int64_t inputs, vecs
        const float *weight
        const float *start

    ctypedef struct fg_gru:
        int32_t reset_after
        fg_act recurrent_activation, activation
        int64_t input_size, hidden_size
        fg_linear x[2]
        fg_linear h[2]
        const float *recurrent_start
        int64_t first_group, last_group

    ctypedef struct fg_gru_backward:
        int32_t reset_after
        fg_act recurrent_activation, activation
        int64_t input_size, hidden_size
        fg_linear h[2]
        fg_linear x

    ctypedef struct fg_table:
        const char *name
        int32_t width
        int32_t tile_rows
        void (*linear)(float **y, const float **x, const fg_linear *m, int64_t outputs, int64_t rows,
                       float *scratch) noexcept nogil
        void (*gru_step)(float **y, float **cache, const float **x, const float **h, const float *projected,
                         int64_t projected_stride, const fg_gru *g, int64_t rows, float *scratch) noexcept nogil
        void (*gru_step_backward)(float *dh, int64_t dh_stride, float **dx, float **cache, const float **dy,
                                  const float **h, const fg_gru_backward *g, int64_t rows,
                                  float *scratch) noexcept nogil
        void (*pack_outer)(float *packed, float *sums, const float **a, int64_t M, int64_t terms) noexcept nogil
        void (*outer)(float *out, int64_t out_stride, const float *packed, int64_t first, const float **b, int64_t M,
                      int64_t N, int64_t terms, float *scratch) noexcept nogil
        void (*column_sums)(float *out, const float **a, int64_t M, int64_t terms) noexcept nogil
        void (*activate)(float *y, const float *x, int64_t n, fg_act a) noexcept nogil

    int64_t fg_panel_width(int64_t left)
    int64_t fg_linear_scratch(int64_t width, int64_t inputs)
    int64_t fg_step_scratch(int64_t width, int64_t input_size, int64_t hidden_size, int32_t reset_after)
    int64_t fg_backward_scratch(int64_t width, int64_t hidden_size)
    int64_t fg_packed_size(int64_t M)
    int64_t fg_outer_scratch(int64_t width, int64_t M)
    int fg_isa_count()
    const fg_table *fg_isa(int i)
    int fg_isa_runs(const fg_table *table)
    int fg_isa_trusted(const fg_table *table)
