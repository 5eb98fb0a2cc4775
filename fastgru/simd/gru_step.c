/* One time step of a block of rows. The equations are in fastgru/reference.py:
 *   r = σ(x_r + h_r)   z = σ(x_z + h_z)   n = φ(x_n + r h_n)  or  φ(x_n + U_n (r h))   h' = n + z (h - n)
 * sums hold [r z n h_n] of each row, W floats each. */

enum { R_ = 0, Z_ = VEC_WIDTH, N_ = 2 * VEC_WIDTH, HN_ = 3 * VEC_WIDTH, ROW_ = 4 * VEC_WIDTH };

/* A decaying state would become subnormal, and arithmetic on it many times slower on most CPUs: it is set to 0 well
 * before, where it no longer counts in any sum with normal numbers. NaN stays. */
static FG_INLINE vec flush(vec h) { return v_select_lt(v_abs(h), v_set1(0x1p-100f), v_zero(), h); }

static FG_INLINE vec load_units(const float *p, int64_t n) { return n >= VEC_WIDTH ? v_load(p) : v_loadn(p, n); }

static FG_INLINE void store_units(float *p, vec v, int64_t n)
{
    if (n >= VEC_WIDTH)
        v_store(p, v);
    else
        v_storen(p, v, n);
}

/* Where the cache of a row keeps a gate (0 n, 1 r, 2 z, 3 q) of the units from `unit` on: [n r z q] of each vector stand
 * beside each other. With the gates H apart, rows a power of two apart would share few cache sets, and lose their lines
 * between one vector and the next. */
static FG_INLINE float *kept(float *cache, int64_t gate, int64_t unit, int64_t left)
{
    return cache + 4 * unit + gate * (left < VEC_WIDTH ? left : VEC_WIDTH);
}

/* r and z of n rows, in place in the sums */
static FG_INLINE void recurrent_gates(const int n, fg_act recurrent, float *s)
{
    vec g[2 * 2];
    FG_UNROLL
    for (int i = 0; i < n; i++) {
        g[2 * i] = v_load(s + i * ROW_ + R_);
        g[2 * i + 1] = v_load(s + i * ROW_ + Z_);
    }
    activations(2 * n, recurrent, g);
    FG_UNROLL
    for (int i = 0; i < n; i++) {
        v_store(s + i * ROW_ + R_, g[2 * i]);
        v_store(s + i * ROW_ + Z_, g[2 * i + 1]);
    }
}

/* n and h' of n cells. A cell is one row's part of one group: cell i belongs to row i * next_row, and its units start at
 * unit + i * next_unit. */
static FG_INLINE void new_states(const int n, fg_act act, float *const *y, float *const *cache, const float *const *h,
                                 const float *s, const float *xn, int64_t next_xn, int64_t next_row, int64_t next_unit,
                                 int64_t H, int64_t unit)
{
    const int64_t left = H - unit;
    vec g[MAX_TOGETHER];
    EACH g[i] = v_fma(v_load(s + i * ROW_ + R_), v_load(s + i * ROW_ + HN_), v_load(xn + i * next_xn));
    activations(n, act, g);
    if (cache)
        for (int i = 0; i < n; i++) {
            const int64_t at = unit + i * next_unit, units = H - at;
            float *c = cache[i * next_row];
            for (int64_t line = 0; line < 4 * VEC_WIDTH; line += 16)
                FG_PREFETCH(c + 4 * (at + VEC_WIDTH) + line); /* the next group's: their product hides the way to memory */
            store_units(kept(c, 0, at, units), g[i], units);
            store_units(kept(c, 1, at, units), v_load(s + i * ROW_ + R_), units);
            store_units(kept(c, 2, at, units), v_load(s + i * ROW_ + Z_), units);
            store_units(kept(c, 3, at, units), v_load(s + i * ROW_ + HN_), units);
        }
    EACH {
        vec old = load_units(h[i * next_row] + unit + i * next_unit, left - i * next_unit);
        g[i] = v_fma(v_load(s + i * ROW_ + Z_), v_sub(old, g[i]), g[i]);
    }
    EACH store_units(y[i * next_row] + unit + i * next_unit, flush(g[i]), left - i * next_unit);
}

/* the gates of `panels` neighbouring groups for every row; x_n comes from `xn`, the rest from `s` */
static FG_INLINE void gates(float *const *y, float *const *cache, const float *const *h, float *s, const float *xn,
                            int64_t xn_row, int64_t xn_panel, fg_act recurrent, fg_act act, int64_t H, int64_t unit,
                            int64_t panels, int64_t rows)
{
    int64_t cell = 0;
    for (; cell + 2 <= panels * rows; cell += 2)
        recurrent_gates(2, recurrent, s + cell * ROW_);
    if (cell < panels * rows)
        recurrent_gates(1, recurrent, s + cell * ROW_);
    if (rows == 1 && panels > 1) { /* the groups of a single row stand beside each other as rows do otherwise */
        if (panels == 4)
            new_states(4, act, y, cache, h, s, xn, xn_panel, 0, VEC_WIDTH, H, unit);
        else if (panels == 3)
            new_states(3, act, y, cache, h, s, xn, xn_panel, 0, VEC_WIDTH, H, unit);
        else
            new_states(2, act, y, cache, h, s, xn, xn_panel, 0, VEC_WIDTH, H, unit);
        return;
    }
    for (; panels > 0; panels--, unit += VEC_WIDTH, xn += xn_panel) {
        const float *n = xn;
        int64_t row = 0;
        for (; row + 4 <= rows; row += 4, s += 4 * ROW_, n += 4 * xn_row)
            new_states(4, act, y + row, cache ? cache + row : NULL, h + row, s, n, xn_row, 1, 0, H, unit);
        for (; row < rows; row++, s += ROW_, n += xn_row)
            new_states(1, act, y + row, cache ? cache + row : NULL, h + row, s, n, xn_row, 1, 0, H, unit);
    }
}

static void step_reset_after(float *const *y, float *const *cache, const float *const *x, const float *const *h,
                             const float *projected, int64_t projected_stride, const fg_gru *g, int64_t rows, float *scratch)
{
    const int64_t I = g->input_size, H = g->hidden_size, groups = g->last_group, panel = rows * ROW_;
    const float *x_at[FG_MAX_ROWS], *h_at[FG_MAX_ROWS];
    float *dense = scratch + FG_MAX_ROWS * ROW_;
    if (!projected)
        x = gather(x_at, dense, x, rows, I, groups);
    h = gather(h_at, dense + FG_MAX_ROWS * fg_dense_stride(I), h, rows, H, groups);
    for (int64_t u = g->first_group; u < groups;) {
        int64_t together = panels_together(rows, 3 * (groups - u), 3);
        const float *bias = g->x[0].start + u * 3 * VEC_WIDTH, *recurrent = g->recurrent_start + u * VEC_WIDTH;
        const float *wx = g->x[0].weight + u * 3 * VEC_WIDTH * I, *wh = g->h[0].weight + u * 3 * VEC_WIDTH * H;
        const float *xn = scratch + N_;
        int64_t xn_row = ROW_, xn_panel = panel;
        sums io = {scratch, recurrent, ROW_, panel, 0, VEC_WIDTH, scratch, ROW_, panel, HN_};
        if (projected) {
            io.start = projected + u * 3 * VEC_WIDTH;
            io.start_row = xn_row = projected_stride;
            io.start_panel = xn_panel = 3 * VEC_WIDTH;
            xn = io.start + N_;
        } else {
            sums x_io = {bias, bias + N_, 0, 3 * VEC_WIDTH, 0, 3 * VEC_WIDTH, scratch, ROW_, panel, N_};
            product(x, rows, I, wx, together, 3, x_io, wh);
        }
        product(h, rows, H, wh, together, 3, io, u + together < groups ? wx + together * 3 * VEC_WIDTH * I : g->x[0].weight);
        gates(y, cache, h, scratch, xn, xn_row, xn_panel, g->recurrent_activation, g->activation, H, u * VEC_WIDTH,
              together, rows);
        u += together;
    }
}

/* One pass of the step with reset before the product: sums of the vectors from v0 on, as many as are taken together,
 * from x (or `projected`) and from h. Returns how many. Row r's vector i is at ((r * how many + i) * W) in the scratch. */
static int64_t pass_panels(const float *const *x, const float *const *h, const float *projected,
                           int64_t projected_stride, const fg_linear *mx, const fg_linear *mh, int64_t v0, int64_t rows,
                           float *scratch)
{
    const int64_t V = fg_panel_width(mh->vecs - v0), together = panels_together(rows, mh->vecs - v0, V);
    const int64_t wide = V * VEC_WIDTH, last = wide - VEC_WIDTH, row = together * wide;
    const float *wx = mx->weight + v0 * VEC_WIDTH * mx->inputs, *wh = mh->weight + v0 * VEC_WIDTH * mh->inputs;
    sums io = {scratch, scratch + last, row, wide, row, wide, scratch, row, wide, last};
    if (projected) {
        io.start = projected + v0 * VEC_WIDTH;
        io.last = io.start + last;
        io.start_row = io.last_row = projected_stride;
    } else {
        const float *bias = mx->start + v0 * VEC_WIDTH;
        sums x_io = {bias, bias + last, 0, wide, 0, wide, scratch, row, wide, last};
        product(x, rows, mx->inputs, wx, together, V, x_io, wh);
    }
    product(h, rows, mh->inputs, wh, together, V, io, wx + together * wide * mx->inputs);
    return together * V;
}

/* Cells of the variant with reset before: cell i's sum lies at s + i * s, it belongs to row i * row, and its units start
 * at i * unit beyond the first. Either the rows of one vector of units, or vectors of a single row. */
typedef struct {
    int64_t s, row, unit;
} next_cell;

/* r and then r*h into `out`, or z; the gate itself goes into the cache */
static FG_INLINE void first_pass(const int n, fg_act recurrent, float *out, int64_t out_row, float *const *cache,
                                 const float *s, const float *const *h, next_cell next, int is_reset, int64_t unit,
                                 int64_t left)
{
    vec g[MAX_TOGETHER];
    EACH g[i] = v_load(s + i * next.s);
    activations(n, recurrent, g);
    if (cache)
        for (int i = 0; i < n; i++)
            store_units(kept(cache[i * next.row], is_reset ? 1 : 2, unit + i * next.unit, left - i * next.unit), g[i],
                        left - i * next.unit);
    if (is_reset)
        EACH g[i] = v_mul(g[i], load_units(h[i * next.row] + unit + i * next.unit, left - i * next.unit));
    EACH v_store(out + i * (next.row * out_row + next.unit), g[i]);
}

/* n and h' */
static FG_INLINE void second_pass(const int n, fg_act act, float *const *y, float *const *cache, const float *s,
                                  const float *const *h, const float *z, const float *rh, int64_t padded,
                                  next_cell next, int64_t H, int64_t unit)
{
    const int64_t left = H - unit;
    vec g[MAX_TOGETHER];
    EACH g[i] = v_load(s + i * next.s);
    activations(n, act, g);
    if (cache)
        for (int i = 0; i < n; i++) {
            const int64_t at = unit + i * next.unit, units = H - at;
            float *c = cache[i * next.row];
            store_units(kept(c, 0, at, units), g[i], units);
            store_units(kept(c, 3, at, units), v_load(rh + i * (next.row * padded + next.unit)), units);
        }
    EACH {
        vec old = load_units(h[i * next.row] + unit + i * next.unit, left - i * next.unit);
        g[i] = v_fma(v_load(z + i * (next.row * padded + next.unit)), v_sub(old, g[i]), g[i]);
    }
    EACH store_units(y[i * next.row] + unit + i * next.unit, flush(g[i]), left - i * next.unit);
}

static void step_reset_before(float *const *y, float *const *cache, const float *const *x, const float *const *h,
                              const float *projected, int64_t projected_stride, const fg_gru *g, int64_t rows, float *scratch)
{
    const int64_t I = g->input_size, H = g->hidden_size, G = g->h[1].vecs, padded = fg_dense_stride(G * VEC_WIDTH);
    const next_cell by_vector = {VEC_WIDTH, 0, VEC_WIDTH};
    const fg_act recurrent = g->recurrent_activation, act = g->activation;
    float *z = scratch + FG_MAX_ROWS * ROW_, *rh = z + FG_MAX_ROWS * padded, *dense = rh + FG_MAX_ROWS * padded;
    const float *reset[FG_MAX_ROWS], *x_at[FG_MAX_ROWS], *h_at[FG_MAX_ROWS];
    if (!projected)
        x = gather(x_at, dense, x, rows, I, G);
    h = gather(h_at, dense + FG_MAX_ROWS * fg_dense_stride(I), h, rows, H, G);

    for (int64_t v0 = 0; v0 < 2 * G;) {
        int64_t vecs = pass_panels(x, h, projected, projected_stride, &g->x[0], &g->h[0], v0, rows, scratch);
        const next_cell by_row = {vecs * VEC_WIDTH, 1, 0};
        for (int64_t i = 0; i < vecs;) {
            const int is_reset = v0 + i < G;
            const int64_t unit = (v0 + i - (is_reset ? 0 : G)) * VEC_WIDTH;
            const int64_t alike = is_reset && vecs > G - v0 ? G - v0 : vecs; /* r and z may share a panel */
            const float *s = scratch + i * VEC_WIDTH;
            float *out = (is_reset ? rh : z) + unit;
            int64_t row = 0;
            if (rows == 1 && alike - i >= 4) {
                first_pass(4, recurrent, out, 0, cache, s, h, by_vector, is_reset, unit, H - unit);
                i += 4;
                continue;
            }
            for (; row + 4 <= rows; row += 4)
                first_pass(4, recurrent, out + row * padded, padded, cache ? cache + row : NULL, s + row * by_row.s,
                           h + row, by_row, is_reset, unit, H - unit);
            for (; row < rows; row++)
                first_pass(1, recurrent, out + row * padded, padded, cache ? cache + row : NULL, s + row * by_row.s,
                           h + row, by_row, is_reset, unit, H - unit);
            i++;
        }
        v0 += vecs;
    }
    for (int64_t row = 0; row < rows; row++)
        reset[row] = rh + row * padded;
    for (int64_t v0 = 0; v0 < G;) {
        const float *ahead = projected ? projected + 2 * G * VEC_WIDTH : NULL;
        int64_t vecs = pass_panels(x, reset, ahead, projected_stride, &g->x[1], &g->h[1], v0, rows, scratch);
        const next_cell by_row = {vecs * VEC_WIDTH, 1, 0};
        for (int64_t i = 0; i < vecs;) {
            const int64_t unit = (v0 + i) * VEC_WIDTH;
            const float *s = scratch + i * VEC_WIDTH;
            int64_t row = 0;
            if (rows == 1 && vecs - i >= 4) {
                second_pass(4, act, y, cache, s, h, z + unit, rh + unit, padded, by_vector, H, unit);
                i += 4;
                continue;
            }
            for (; row + 4 <= rows; row += 4)
                second_pass(4, act, y + row, cache ? cache + row : NULL, s + row * by_row.s, h + row,
                            z + row * padded + unit, rh + row * padded + unit, padded, by_row, H, unit);
            for (; row < rows; row++)
                second_pass(1, act, y + row, cache ? cache + row : NULL, s + row * by_row.s, h + row,
                            z + row * padded + unit, rh + row * padded + unit, padded, by_row, H, unit);
            i++;
        }
        v0 += vecs;
    }
}

static void gru_step(float *const *y, float *const *cache, const float *const *x, const float *const *h,
                     const float *projected, int64_t projected_stride, const fg_gru *g, int64_t rows, float *scratch)
{
    (g->reset_after ? step_reset_after : step_reset_before)(y, cache, x, h, projected, projected_stride, g, rows, scratch);
}
