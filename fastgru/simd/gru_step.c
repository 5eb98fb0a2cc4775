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
 * unit + i * next_unit, of which `left` - i * next_unit exist. */
static FG_INLINE void new_states(const int n, fg_act act, float *const *y, const float *const *h, const float *s,
                                 const float *xn, int64_t next_xn, int64_t next_row, int64_t next_unit, int64_t unit,
                                 int64_t left)
{
    vec g[MAX_TOGETHER];
    EACH g[i] = v_fma(v_load(s + i * ROW_ + R_), v_load(s + i * ROW_ + HN_), v_load(xn + i * next_xn));
    activations(n, act, g);
    EACH {
        vec old = load_units(h[i * next_row] + unit + i * next_unit, left - i * next_unit);
        g[i] = v_fma(v_load(s + i * ROW_ + Z_), v_sub(old, g[i]), g[i]);
    }
    EACH store_units(y[i * next_row] + unit + i * next_unit, flush(g[i]), left - i * next_unit);
}

/* the gates of `panels` neighbouring groups for every row; x_n comes from `xn`, the rest from `s` */
static FG_INLINE void gates(float *const *y, const float *const *h, float *s, const float *xn, int64_t xn_row,
                            int64_t xn_panel, fg_act recurrent, fg_act act, int64_t unit, int64_t left, int64_t panels,
                            int64_t rows)
{
    int64_t cell = 0;
    for (; cell + 2 <= panels * rows; cell += 2)
        recurrent_gates(2, recurrent, s + cell * ROW_);
    if (cell < panels * rows)
        recurrent_gates(1, recurrent, s + cell * ROW_);
    if (rows == 1 && panels > 1) { /* the groups of a single row stand beside each other as rows do otherwise */
        if (panels == 4)
            new_states(4, act, y, h, s, xn, xn_panel, 0, VEC_WIDTH, unit, left);
        else if (panels == 3)
            new_states(3, act, y, h, s, xn, xn_panel, 0, VEC_WIDTH, unit, left);
        else
            new_states(2, act, y, h, s, xn, xn_panel, 0, VEC_WIDTH, unit, left);
        return;
    }
    for (; panels > 0; panels--, unit += VEC_WIDTH, left -= VEC_WIDTH, xn += xn_panel) {
        const float *n = xn;
        int64_t row = 0;
        for (; row + 4 <= rows; row += 4, s += 4 * ROW_, n += 4 * xn_row)
            new_states(4, act, y + row, h + row, s, n, xn_row, 1, 0, unit, left);
        for (; row < rows; row++, s += ROW_, n += xn_row)
            new_states(1, act, y + row, h + row, s, n, xn_row, 1, 0, unit, left);
    }
}

static void step_reset_after(float *const *y, const float *const *x, const float *const *h, const float *projected,
                             int64_t projected_stride, const fg_gru *g, int64_t rows, float *scratch)
{
    const int64_t I = g->input_size, H = g->hidden_size, groups = g->h[0].vecs / 3, panel = rows * ROW_;
    for (int64_t u = 0; u < groups;) {
        int64_t together = panels_together(rows, groups - u);
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
        gates(y, h, scratch, xn, xn_row, xn_panel, g->recurrent_activation, g->activation, u * VEC_WIDTH,
              H - u * VEC_WIDTH, together, rows);
        u += together;
    }
}

/* One pass of the step with reset before the product: sums of `vecs` vectors from x (or `projected`) and from h. */
static FG_INLINE int64_t pass_panels(const float *const *x, const float *const *h, const float *projected,
                                     int64_t projected_stride, const fg_linear *mx, const fg_linear *mh, int64_t v0,
                                     int64_t V, int64_t rows, float *scratch)
{
    int64_t left = mh->vecs - v0, together = V == 3 ? panels_together(rows, left / 3 - (left % 3 == 1)) : 1;
    int64_t panel = rows * ROW_, last = (V - 1) * VEC_WIDTH, wide = V * VEC_WIDTH;
    const float *wx = mx->weight + v0 * VEC_WIDTH * mx->inputs, *wh = mh->weight + v0 * VEC_WIDTH * mh->inputs;
    sums io = {scratch, scratch + last, ROW_, panel, ROW_, panel, scratch, ROW_, panel, last};
    if (projected) {
        io.start = projected + v0 * VEC_WIDTH;
        io.last = io.start + last;
        io.start_row = io.last_row = projected_stride;
        io.start_panel = io.last_panel = wide;
    } else {
        const float *bias = mx->start + v0 * VEC_WIDTH;
        sums x_io = {bias, bias + last, 0, wide, 0, wide, scratch, ROW_, panel, last};
        product(x, rows, mx->inputs, wx, together, V, x_io, wh);
    }
    product(h, rows, mh->inputs, wh, together, V, io, wx + together * wide * mx->inputs);
    return together;
}

/* r and then r*h, or z, of one vector of units */
static FG_INLINE void first_pass(const int n, fg_act recurrent, float *out, int64_t out_row, const float *s,
                                 const float *const *h, int is_reset, int64_t unit, int64_t left)
{
    vec g[MAX_TOGETHER];
    EACH g[i] = v_load(s + i * ROW_);
    activations(n, recurrent, g);
    if (is_reset)
        EACH g[i] = v_mul(g[i], load_units(h[i] + unit, left));
    EACH v_store(out + i * out_row, g[i]);
}

/* n and h' of one vector of units */
static FG_INLINE void second_pass(const int n, fg_act act, float *const *y, const float *s, const float *const *h,
                                  const float *z, int64_t z_row, int64_t unit, int64_t left)
{
    vec g[MAX_TOGETHER];
    EACH g[i] = v_load(s + i * ROW_);
    activations(n, act, g);
    EACH g[i] = v_fma(v_load(z + i * z_row), v_sub(load_units(h[i] + unit, left), g[i]), g[i]);
    EACH store_units(y[i] + unit, flush(g[i]), left);
}

static void step_reset_before(float *const *y, const float *const *x, const float *const *h, const float *projected,
                              int64_t projected_stride, const fg_gru *g, int64_t rows, float *scratch)
{
    const int64_t H = g->hidden_size, G = g->h[1].vecs, padded = G * VEC_WIDTH;
    float *z = scratch + FG_MAX_ROWS * ROW_, *rh = z + FG_MAX_ROWS * padded;
    const float *reset[FG_MAX_ROWS];

    for (int64_t v0 = 0; v0 < 2 * G;) {
        int64_t V = fg_panel_width(2 * G - v0);
        int64_t together =
            pass_panels(x, h, projected, projected_stride, &g->x[0], &g->h[0], v0, V, rows, scratch);
        for (int64_t i = 0; i < together * V; i++, v0++) {
            const float *s = scratch + (i / V) * rows * ROW_ + (i % V) * VEC_WIDTH;
            const int is_reset = v0 < G;
            const int64_t unit = (is_reset ? v0 : v0 - G) * VEC_WIDTH;
            float *out = (is_reset ? rh : z) + unit;
            int64_t row = 0;
            for (; row + 4 <= rows; row += 4)
                first_pass(4, g->recurrent_activation, out + row * padded, padded, s + row * ROW_, h + row, is_reset,
                           unit, H - unit);
            for (; row < rows; row++)
                first_pass(1, g->recurrent_activation, out + row * padded, padded, s + row * ROW_, h + row, is_reset,
                           unit, H - unit);
        }
    }
    for (int64_t row = 0; row < rows; row++)
        reset[row] = rh + row * padded;
    for (int64_t v0 = 0; v0 < G;) {
        int64_t V = fg_panel_width(G - v0);
        const float *ahead = projected ? projected + 2 * padded : NULL;
        int64_t together =
            pass_panels(x, reset, ahead, projected_stride, &g->x[1], &g->h[1], v0, V, rows, scratch);
        for (int64_t i = 0; i < together * V; i++, v0++) {
            const float *s = scratch + (i / V) * rows * ROW_ + (i % V) * VEC_WIDTH;
            const int64_t unit = v0 * VEC_WIDTH;
            int64_t row = 0;
            for (; row + 4 <= rows; row += 4)
                second_pass(4, g->activation, y + row, s + row * ROW_, h + row, z + row * padded + unit, padded, unit,
                            H - unit);
            for (; row < rows; row++)
                second_pass(1, g->activation, y + row, s + row * ROW_, h + row, z + row * padded + unit, padded, unit,
                            H - unit);
        }
    }
}

static void gru_step(float *const *y, const float *const *x, const float *const *h, const float *projected,
                     int64_t projected_stride, const fg_gru *g, int64_t rows, float *scratch)
{
    (g->reset_after ? step_reset_after : step_reset_before)(y, x, h, projected, projected_stride, g, rows, scratch);
}
