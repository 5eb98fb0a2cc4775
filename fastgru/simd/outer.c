/* Sums of outer products: gradients of weights and biases. The terms k are the valid (row, step) pairs of a batch, in one
 * order whatever the number of threads, which own rows of the result. */

EVERY_HEIGHT(beside)

static tiles_fn *const outer_panel[3][HEIGHT_MOST] = BY_HEIGHT(beside);

/* `count` <= 4 terms of a into its tiles, in each beside each other, so that whole cache lines are written; `next` are the
 * terms after them */
static FG_INLINE void pack_terms(float *packed, const float *const *a, const float *const *next, int64_t first, int64_t last,
                                 int64_t terms, int64_t count)
{
    int64_t m = first;
    if (count == 4)
        for (; m + VEC_ROWS <= last; m += VEC_ROWS, packed += terms * VEC_ROWS) {
            FG_PREFETCH(next[m / VEC_ROWS % 4] + m);
            FG_UNROLL
            for (int k = 0; k < 4; k++)
                memcpy(packed + k * VEC_ROWS, a[k] + m, VEC_ROWS * sizeof *packed);
        }
    for (; m < last; m += VEC_ROWS, packed += terms * VEC_ROWS)
        for (int64_t k = 0; k < count; k++)
            for (int64_t r = 0; r < VEC_ROWS && m + r < last; r++)
                packed[k * VEC_ROWS + r] = a[k][m + r];
}

/* `count` <= 4 terms added to `sums` (last - first) */
static FG_INLINE void add_terms(float *sums, const float *const *a, int64_t first, int64_t last, int64_t count)
{
    for (int64_t m = first; m < last; m += VEC_WIDTH, sums += VEC_WIDTH) {
        const int64_t left = last - m;
        vec sum = load_units(a[0] + m, left);
        if (count == 4)
            sum = v_add(v_add(sum, load_units(a[1] + m, left)), v_add(load_units(a[2] + m, left), load_units(a[3] + m, left)));
        else
            for (int64_t k = 1; k < count; k++)
                sum = v_add(sum, load_units(a[k] + m, left));
        v_store(sums, v_add(v_load(sums), sum));
    }
}

/* Columns some at a time and terms four at a time: a column of many rows a power of two apart would lose its cache lines
 * before its neighbours are read. */
enum { COLUMNS = 256 };

static void pack_outer(float *packed, float *sums, const float *const *a, int64_t M, int64_t terms)
{
    for (int64_t first = 0; first < M; first += COLUMNS) {
        const int64_t last = M - first < COLUMNS ? M : first + COLUMNS;
        float block[COLUMNS] = {0};
        for (int64_t k = 0; k < terms; k += 4) {
            const int64_t left = terms - k, count = left < 4 ? left : 4;
            if (packed)
                pack_terms(packed + first * terms + k * VEC_ROWS, a + k, a + (left < 8 ? k : k + 4), first, last, terms, count);
            if (sums)
                add_terms(block, a + k, first, last, count);
        }
        for (int64_t m = first; sums && m < last; m += VEC_WIDTH)
            store_units(sums + m, v_add(load_units(sums + m, last - m), v_load(block + m - first)), last - m);
    }
}

static void outer(float *out, int64_t out_stride, const float *packed, int64_t first, const float *const *b, int64_t M,
                  int64_t N, int64_t terms, float *scratch)
{
    const int64_t vecs = (N + VEC_WIDTH - 1) / VEC_WIDTH;
    float *panel = scratch;
    const float **rows = (const float **)(void *)(panel + 3 * VEC_WIDTH * FG_KC);
    for (int64_t k = 0; k < terms; k++)
        for (int64_t n = 0; n < 3 * VEC_WIDTH; n += 16)
            FG_PREFETCH(b[k] + n);
    for (int64_t m = 0; m < M; m++)
        rows[m] = packed + (first + m) / VEC_ROWS * VEC_ROWS * terms + (first + m) % VEC_ROWS;
    for (int64_t v0 = 0; v0 < vecs;) {
        const int64_t V = fg_panel_width(vecs - v0), wide = V * VEC_WIDTH, at = v0 * VEC_WIDTH;
        const int64_t height = tile_height(V), full = M / height;
        for (int64_t k = 0; k < terms; k++)
            for (int64_t v = 0; v < V; v++) {
                const int64_t n = at + v * VEC_WIDTH;
                FG_PREFETCH(b[k] + n + wide); /* the next panel's */
                v_store(panel + k * wide + v * VEC_WIDTH, load_units(b[k] + n, N - n));
            }
        float *to = out + at;
        sums io = {to, to + wide - VEC_WIDTH, out_stride, 0, out_stride, 0, to, out_stride, 0, wide - VEC_WIDTH};
        /* each tile fetches the columns of the next */
        block all = {rows, 0, terms, panel, 0, packed + (first + height) * terms, height, io};
        if (full)
            outer_panel[V - 1][height - 1](&all, 0, full);
        if (M % height)
            outer_panel[V - 1][M % height - 1](&all, full * height, 1);
        v0 += V;
    }
}

static void column_sums(float *out, const float *const *a, int64_t M, int64_t terms) { pack_outer(NULL, out, a, M, terms); }
