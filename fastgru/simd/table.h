/* The contract between the kernels and everyone above them.
 *
 * Dimension letters: N rows, K inputs of a product, I input_size, H hidden_size, W the ISA's vector width in floats.
 * A *group* is W neighbouring hidden units; there are G = ceil(H / W). A *panel* is the weights of V <= 3 vectors of
 * outputs, stored (K, V*W), so that one step of k reads V vectors from consecutive memory.
 * Strides and sizes count floats, never bytes. No function allocates, fails, or keeps a pointer after it returns.
 *
 * Every output is one chain: start, plus the sums of blocks of fg_block(K) products, in order of k; inside a block one
 * FMA a term from 0. That order depends on neither tile, ISA, threads nor batch, so results are equal bit for bit.
 */
#ifndef FASTGRU_TABLE_H
#define FASTGRU_TABLE_H

#include <stdint.h>

#define FG_KC 112        /* products summed, at most, before they join the total; see docs/performance.md */
#define FG_MAX_ROWS 64   /* rows of one call: their sums stay in the L1 cache */
#define FG_MAX_PANELS 4  /* panels side by side when rows are too few to fill the FMA pipes */

enum fg_activation {
    FG_LINEAR, FG_SIGMOID, FG_TANH, FG_HARD_SIGMOID, FG_RELU, FG_SOFTSIGN, FG_ELU, FG_SELU, FG_SOFTPLUS,
    FG_AFFINE, FG_LEAKY_RELU, FG_THRESHOLDED_RELU, FG_SCALED_TANH, FG_ACTIVATION_COUNT
};

typedef struct {
    int32_t kind;        /* enum fg_activation */
    float alpha, beta;   /* read by the kinds that have them */
} fg_act;

/* x -> start + W x over `vecs` vectors of outputs. Panels are as wide as fg_panel_width says, left to right. */
typedef struct {
    int64_t inputs;      /* K >= 1 */
    int64_t vecs;        /* >= 1 */
    const float *weight; /* panels one after another, each (K, V*W); 64-byte aligned */
    const float *start;  /* (vecs * W): the bias, zeros if there is none */
} fg_linear;

/* One layer and direction in convention K (h' = n + z (h - n)), packed for one ISA.
 *   reset_after:  one pass. x.vecs = h.vecs = 3G in the order r0 z0 n0 r1 z1 n1 ...; `recurrent_start` is c_n (G * W).
 *   otherwise:    two passes. First r0 ... rG-1 z0 ... zG-1 (vecs = 2G), then n0 ... nG-1 on r*h (vecs = G).
 * h.start is not read: x.start holds b + c (reset_after: n's part of it holds b_n alone). */
typedef struct {
    int32_t reset_after;
    fg_act recurrent_activation, activation;
    int64_t input_size, hidden_size;
    fg_linear x[2], h[2];         /* [1] only where reset_after is 0 */
    const float *recurrent_start; /* NULL where reset_after is 0 */
    int64_t first_group, last_group; /* reset_after: the groups that a step computes, first <= u < last; else all */
} fg_gru;

/* Terms of each block but the last: K in equal parts of at most FG_KC, whole fours. Short chains keep the rounding error
 * down (about 0.7 to 1.0 times PyTorch's), equal ones keep a last block of a few terms from costing a whole one. */
static inline int64_t fg_block(int64_t inputs)
{
    int64_t blocks = (inputs + FG_KC - 1) / FG_KC;
    return ((inputs + blocks - 1) / blocks + 3) / 4 * 4;
}

/* The same layer for its gradients. dh's products: reset_after one of [da_r da_z dq] (3H) with U; otherwise first da_n (H)
 * with U_n, then [da_r da_z] (2H) with [U_r U_z]; start is not read.
 * dx is W with [da_n da_r da_z] (3H); its start is zeros. */
typedef struct {
    int32_t reset_after;
    fg_act recurrent_activation, activation;
    int64_t input_size, hidden_size;
    fg_linear h[2]; /* [1] only where reset_after is 0 */
    fg_linear x;
} fg_gru_backward;

/* vectors in the next panel when `left` remain: threes, and twos where a three would leave a slow single one */
static inline int64_t fg_panel_width(int64_t left)
{
    return left == 1 ? 1 : left == 2 || left == 4 ? 2 : 3;
}

typedef struct {
    const char *name;
    int32_t width;     /* W */
    int32_t tile_rows; /* rows of the widest register tile; fewer than twice as many rows want their inputs projected ahead */

    /* y[r][0 .. outputs) = m->start + W x[r].
     *   y, x: `rows` <= FG_MAX_ROWS pointers; y[r] has room for `outputs` floats, (vecs-1)*W < outputs <= vecs*W
     *   scratch: fg_linear_scratch(W, K) floats, 64-byte aligned */
    void (*linear)(float *const *y, const float *const *x, const fg_linear *m, int64_t outputs, int64_t rows,
                   float *scratch);

    /* One time step of `rows` <= FG_MAX_ROWS rows: y[r][0 .. H) = h'.
     *   y: must not overlap any x or h
     *   x: `rows` pointers to I floats; NULL where `projected` is given
     *   h: `rows` pointers to H floats, the previous state
     *   projected: NULL, or row r at projected + r*stride: what `linear` gives for x[0] (all vecs*W of it), then x[1]
     *   cache: NULL, or `rows` pointers to 4H floats, written for gru_step_backward: n r z and q, which is
     *          U_n h + c_n (reset_after) or r*h
     *   scratch: fg_step_scratch(W, I, H, reset_after) floats, 64-byte aligned */
    void (*gru_step)(float *const *y, float *const *cache, const float *const *x, const float *const *h,
                     const float *projected, int64_t projected_stride, const fg_gru *g, int64_t rows, float *scratch);

    /* The step's gradients, in place. Let d = dh + dy be the gradient of h'.
     *   dh: (rows, dh_stride), in: the gradient that later steps handed back; out: that of h. dh_stride >= G*W, and the
     *       floats between H and G*W are scratch
     *   dx: `rows` pointers to I floats, the gradients of x
     *   cache: as gru_step left it; out: the gradients before the activations [da_n da_r da_z dq],
     *          H each, with dq = da_n * r (reset_after), or unchanged r*h
     *   dy: `rows` pointers to H floats, or NULL: zeros
     *   h: as given to gru_step
     *   scratch: fg_backward_scratch(W, H) floats, 64-byte aligned */
    void (*gru_step_backward)(float *dh, int64_t dh_stride, float *const *dx, float *const *cache,
                              const float *const *dy, const float *const *h, const fg_gru_backward *g, int64_t rows,
                              float *scratch);

    /* Columns of `terms` <= FG_KC rows laid out for `outer`; sums[m] += sum over k of a[k][m] unless NULL: gradients of biases.
     *   a: `terms` pointers to M floats
     *   packed: fg_packed_size(M) floats, 64-byte aligned */
    void (*pack_outer)(float *packed, float *sums, const float *const *a, int64_t M, int64_t terms);

    /* out[m][n] += sum over k of a[k][first + m] b[k][n]: gradients of weights.
     *   out: (M, out_stride), out_stride >= N rounded up to a multiple of W; what stands beyond N is scratch
     *   packed: columns `first` to first + M of it are read, for any first
     *   b: `terms` pointers to N floats
     *   scratch: fg_outer_scratch(W, M) floats, 64-byte aligned */
    void (*outer)(float *out, int64_t out_stride, const float *packed, int64_t first, const float *const *b, int64_t M,
                  int64_t N, int64_t terms, float *scratch);

    /* out[m] += sum over k of a[k][m], for terms <= FG_KC: gradients of biases */
    void (*column_sums)(float *out, const float *const *a, int64_t M, int64_t terms);

    /* y[0 .. n) = a(x[0 .. n)); y == x is allowed */
    void (*activate)(float *y, const float *x, int64_t n, fg_act a);
} fg_table;

/* Rows of a batch often lie a power of two apart, or nearly, and then share a few sets of the L1 cache. Many rows are
 * therefore copied side by side first, an odd number of cache lines each (5 % faster at H = 128, 27 % at H = 512). */
static inline int64_t fg_dense_stride(int64_t inputs) { return ((inputs + 15) / 16 | 1) * 16; }

/* floats of scratch that linear needs: the sums, and the rows */
static inline int64_t fg_linear_scratch(int64_t width, int64_t inputs)
{
    return FG_MAX_ROWS * (4 * width + fg_dense_stride(inputs));
}

/* floats of scratch that gru_step needs: the sums, rows of x and h, and without reset_after z and r*h of every row */
static inline int64_t fg_step_scratch(int64_t width, int64_t input_size, int64_t hidden_size, int32_t reset_after)
{
    int64_t padded = fg_dense_stride((hidden_size + width - 1) / width * width);
    return FG_MAX_ROWS * (4 * width + fg_dense_stride(input_size) + fg_dense_stride(hidden_size) +
                          (reset_after ? 0 : 2 * padded));
}

/* floats of scratch that gru_step_backward needs: the rows of gradients; sums of dx, or (not reset_after) of r*h */
static inline int64_t fg_backward_scratch(int64_t width, int64_t hidden_size)
{
    int64_t padded = (hidden_size + width - 1) / width * width, sums = FG_MAX_ROWS * 4 * width;
    int64_t reset = FG_MAX_ROWS * padded + padded;
    return FG_MAX_ROWS * fg_dense_stride(4 * hidden_size) + (sums > reset ? sums : reset);
}

/* floats of M columns that pack_outer lays out */
static inline int64_t fg_packed_size(int64_t M) { return (M + 7) / 8 * 8 * FG_KC; }

/* floats of scratch that outer needs: one panel of b, and pointers (two floats at most) to the packed columns */
static inline int64_t fg_outer_scratch(int64_t width, int64_t M) { return 3 * width * FG_KC + 2 * M + 16; }

/* dispatch.c */
int fg_isa_count(void);                  /* instruction sets compiled into this build, best first */
const fg_table *fg_isa(int i);
int fg_isa_runs(const fg_table *table);  /* 1 if this CPU and this operating system can run it */
int fg_isa_trusted(const fg_table *table); /* 1 if it may be chosen without being asked for */

#endif
