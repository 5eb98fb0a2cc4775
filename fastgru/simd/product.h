/* The one product under everything: sums[p][r] = start + W[p] x[r] for P panels side by side and all rows, in tiles of
 * R rows whose accumulators live in registers through one block of terms. */
#ifndef FASTGRU_PRODUCT_H
#define FASTGRU_PRODUCT_H

/* Where sums start and where they go. Vectors 0 … V-2 of a panel start at `start`, vector V-1 at `last`; they are
 * written at `out`, vector V-1 at out + out_last. A row stride of 0 gives all rows the same start: a bias. */
typedef struct {
    const float *start, *last;
    int64_t start_row, start_panel, last_row, last_panel;
    float *out;
    int64_t out_row, out_panel, out_last;
} sums;

/* a tile's rows, by its vectors */
enum { HEIGHT_1 = VEC_TALL, HEIGHT_2 = VEC_TALL, HEIGHT_3 = VEC_ROWS, HEIGHT_MOST = VEC_TALL };

static FG_INLINE int64_t tile_height(int64_t V) { return V == 3 ? HEIGHT_3 : V == 2 ? HEIGHT_2 : HEIGHT_1; }

/* one term of every accumulator: R x P x V fused multiply-adds. D is the distance between the terms of a row of x: 1, or
 * VEC_ROWS where rows were packed beside each other (outer.c). */
static FG_INLINE void term(const int R, const int P, const int V, const int D, vec acc[HEIGHT_MOST][FG_MAX_PANELS * 3],
                           const float *const xr[HEIGHT_MOST], int64_t k, const float *w, int64_t w_panel)
{
    vec b[FG_MAX_PANELS * 3];
    w += k * V * VEC_WIDTH;
    FG_UNROLL
    for (int p = 0; p < P; p++) {
        FG_UNROLL
        for (int v = 0; v < V; v++)
            b[p * V + v] = v_load(w + p * w_panel + v * VEC_WIDTH);
    }
    FG_UNROLL
    for (int r = 0; r < R; r++) {
        vec a = v_set1(xr[r][k * D]);
        FG_UNROLL
        for (int v = 0; v < P * V; v++)
            acc[r][v] = v_fma(a, b[v], acc[r][v]);
    }
}

/* What all tiles of one block of terms share. */
typedef struct {
    const float *const *x;
    int64_t k0, kc;         /* the block's first term, and how many */
    const float *w;
    int64_t w_panel;
    const float *ahead;     /* what comes next (of `product`: the next block's weights), fetched into the cache at the pace */
    int64_t advance;        /* at which this is used: so many floats for every term of a tile */
    sums io;
} block;

static FG_INLINE void tile(const int R, const int P, const int V, const int D, const block *b, const float *ahead, int64_t row)
{
    vec acc[HEIGHT_MOST][FG_MAX_PANELS * 3];
    const float *xr[HEIGHT_MOST];
    const sums *io = &b->io;
    const float *w = b->w + b->k0 * V * VEC_WIDTH;
    const int64_t kc = b->kc, w_panel = b->w_panel, advance = b->advance;
    FG_UNROLL
    for (int r = 0; r < R; r++) {
        xr[r] = b->x[row + r] + b->k0 * D;
        FG_UNROLL
        for (int v = 0; v < P * V; v++)
            acc[r][v] = v_zero();
        if (D > 1) { /* sums of a whole matrix, not of a few rows: they come from far */
            FG_PREFETCH(io->start + (row + r) * io->start_row);
            FG_PREFETCH(io->last + (row + r) * io->last_row + VEC_WIDTH - 1);
        }
    }
    for (int64_t k = 0; k < kc; k++) {
        FG_PREFETCH(ahead);
        ahead += advance;
        term(R, P, V, D, acc, xr, k, w, w_panel);
    }
    /* strides in locals: a store through a vector may change whatever *io holds, as far as the compiler knows */
    const float *start = io->start + row * io->start_row, *last = io->last + row * io->last_row;
    float *out = io->out + row * io->out_row;
    const int64_t start_row = io->start_row, last_row = io->last_row, out_row = io->out_row, out_last = io->out_last;
    const int64_t start_panel = io->start_panel, last_panel = io->last_panel, out_panel = io->out_panel;
    FG_UNROLL
    for (int r = 0; r < R; r++) {
        FG_UNROLL
        for (int p = 0; p < P; p++) {
            FG_UNROLL
            for (int v = 0; v < V - 1; v++)
                v_store(out + p * out_panel + v * VEC_WIDTH,
                        v_add(v_load(start + p * start_panel + v * VEC_WIDTH), acc[r][p * V + v]));
            v_store(out + p * out_panel + out_last, v_add(v_load(last + p * last_panel), acc[r][p * V + V - 1]));
        }
        start += start_row, last += last_row, out += out_row;
    }
}

/* `count` tiles of R rows, below each other. A function of its own for each shape keeps the registers of one out of the
 * way of another's. */
typedef void tiles_fn(const block *b, int64_t row, int64_t count);

enum { DISTANCE_along = 1, DISTANCE_beside = VEC_ROWS };

#define TILES(R, P, V, D)                                                                                              \
    static FG_NOINLINE void tiles_##R##x##P##x##V##x##D(const block *b, int64_t row, int64_t count)                    \
    {                                                                                                                  \
        const float *ahead = b->ahead + (row + HEIGHT_##V - 1) / HEIGHT_##V * b->kc * b->advance;                      \
        for (; count > 0; count--, row += R) {                                                                         \
            tile(R, P, V, DISTANCE_##D, b, ahead, row);                                                                \
            ahead += b->kc * b->advance;                                                                               \
        }                                                                                                              \
    }

#define UP_TO_4(V, D) TILES(1, 1, V, D) TILES(2, 1, V, D) TILES(3, 1, V, D) TILES(4, 1, V, D)
#define UP_TO_6(V, D) UP_TO_4(V, D) TILES(5, 1, V, D) TILES(6, 1, V, D)
#define UP_TO_8(V, D) UP_TO_6(V, D) TILES(7, 1, V, D) TILES(8, 1, V, D)
#define FOUR(V, D) tiles_1x1x##V##x##D, tiles_2x1x##V##x##D, tiles_3x1x##V##x##D, tiles_4x1x##V##x##D
#define SIX(V, D) FOUR(V, D), tiles_5x1x##V##x##D, tiles_6x1x##V##x##D
#define EIGHT(V, D) SIX(V, D), tiles_7x1x##V##x##D, tiles_8x1x##V##x##D
#if VEC_ROWS == 8 && VEC_TALL == 8
#define EVERY_HEIGHT(D) UP_TO_8(1, D) UP_TO_8(2, D) UP_TO_8(3, D)
#define BY_HEIGHT(D) {{EIGHT(1, D)}, {EIGHT(2, D)}, {EIGHT(3, D)}}
#elif VEC_ROWS == 4 && VEC_TALL == 6
#define EVERY_HEIGHT(D) UP_TO_6(1, D) UP_TO_6(2, D) UP_TO_4(3, D)
#define BY_HEIGHT(D) {{SIX(1, D)}, {SIX(2, D)}, {FOUR(3, D)}}
#elif VEC_ROWS == 4 && VEC_TALL == 4
#define EVERY_HEIGHT(D) UP_TO_4(1, D) UP_TO_4(2, D) UP_TO_4(3, D)
#define BY_HEIGHT(D) {{FOUR(1, D)}, {FOUR(2, D)}, {FOUR(3, D)}}
#else
#error "write out the tiles of these heights"
#endif

EVERY_HEIGHT(along)
TILES(1, 2, 3, along) TILES(1, 3, 3, along) TILES(1, 4, 3, along) TILES(2, 2, 3, along) TILES(1, 2, 2, along)

static tiles_fn *const one_panel[3][HEIGHT_MOST] = BY_HEIGHT(along);
static tiles_fn *const one_row[FG_MAX_PANELS] = {tiles_1x1x3xalong, tiles_1x2x3xalong, tiles_1x3x3xalong,
                                                 tiles_1x4x3xalong};

/* How many panels, the next of width V and `left` vectors of them in all, to take side by side: a single row needs four
 * of them for enough independent chains, and none may be left over for later. */
static FG_INLINE int64_t panels_together(int64_t rows, int64_t left, int64_t V)
{
    int64_t threes = left / 3 - (left % 3 == 1);
    if (rows == 1 && V == 3)
        return threes == 5 ? 3 : threes < FG_MAX_PANELS ? threes : FG_MAX_PANELS;
    if (rows == 1 && V == 2)
        return left / 2;
    return rows == 2 && V == 3 && threes >= 2 ? 2 : 1;
}

/* All rows, all K terms: blocks of terms outside, so that one block of weights meets every row from the L1 cache while
 * the next one is fetched; `next` is what the caller will want after the last. Without fetching, the first tile of each
 * block waits for L2 or L3 (12 % of the time at H = 512). */
static void product(const float *const *x, int64_t rows, int64_t K, const float *w, int64_t panels, int64_t V, sums io,
                    const float *next)
{
    const int64_t height = tile_height(V), tiles = (rows + height - 1) / height, step = fg_block(K);
    /* one or two rows take each weight once, in order: the hardware's own prefetcher is better at that */
    const int64_t advance = rows <= 2 ? 0 : (V * VEC_WIDTH + tiles - 1) / tiles;
    block b = {x, 0, 0, w, K * V * VEC_WIDTH, NULL, advance, io};
    for (; b.k0 < K; b.k0 += step) {
        b.kc = K - b.k0 < step ? K - b.k0 : step;
        b.ahead = b.k0 + b.kc < K ? w + (b.k0 + b.kc) * V * VEC_WIDTH : next;
        if (rows == 1)
            (panels == 1 ? one_panel[V - 1][0] : V == 2 ? tiles_1x2x2xalong : one_row[panels - 1])(&b, 0, 1);
        else if (rows == 2 && panels == 2)
            tiles_2x2x3xalong(&b, 0, 1);
        else
            for (int64_t row = 0; row < rows;) { /* no tile of one row is left over: 5 = 3 + 2, 9 = 5 + 4 */
                int64_t left = rows - row;
                int64_t R = left >= 2 * height || left == height ? height : left < height ? left : (left + 1) / 2;
                int64_t count = left % height == 0 ? left / height : left >= 2 * height ? left / height - 1 : 1;
                one_panel[V - 1][R - 1](&b, row, count);
                row += R * count;
            }
        b.io.start = b.io.out; /* the next block goes on where this one ended */
        b.io.start_row = b.io.last_row = b.io.out_row;
        b.io.start_panel = b.io.last_panel = b.io.out_panel;
        b.io.last = b.io.out + b.io.out_last;
    }
}

/* x's rows side by side in `dense` (rows * fg_dense_stride(K) floats) and their addresses in `at`, or, where too few panels
 * would read them for the copy to pay, x itself. */
static const float *const *gather(const float **at, float *dense, const float *const *x, int64_t rows, int64_t K,
                                  int64_t panels)
{
    const int64_t stride = fg_dense_stride(K);
    if (rows < 2 * VEC_ROWS || panels < 4)
        return x;
    for (int64_t row = 0; row < rows; row++) {
        memcpy(dense + row * stride, x[row], (size_t)K * sizeof *dense);
        at[row] = dense + row * stride;
    }
    return at;
}

#endif
