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

/* the gates of one group of units (`left` of them exist), for every row; x_n comes from `xn`, the rest from `s` */
static FG_INLINE void gates(float *const *y, const float *const *h, const float *s, const float *xn, int64_t xn_row,
                            fg_act recurrent, fg_act act, int64_t unit, int64_t left, int64_t rows)
{
    for (int64_t row = 0; row < rows; row++, s += ROW_, xn += xn_row) {
        vec r = activation(recurrent, v_load(s + R_));
        vec z = activation(recurrent, v_load(s + Z_));
        vec n = activation(act, v_fma(r, v_load(s + HN_), v_load(xn)));
        vec old = load_units(h[row] + unit, left);
        store_units(y[row] + unit, flush(v_fma(z, v_sub(old, n), n)), left);
    }
}

static void step_reset_after(float *const *y, const float *const *x, const float *const *h, const float *projected,
                             int64_t projected_stride, const fg_gru *g, int64_t rows, float *scratch)
{
    const int64_t I = g->input_size, H = g->hidden_size, groups = g->h[0].vecs / 3, panel = rows * ROW_;
    const fg_act usual_recurrent = {FG_SIGMOID, 0, 0}, usual = {FG_TANH, 0, 0};
    const int is_usual = g->recurrent_activation.kind == FG_SIGMOID && g->activation.kind == FG_TANH;
    for (int64_t u = 0; u < groups;) {
        int64_t together = panels_together(rows, groups - u);
        const float *bias = g->x[0].start + u * 3 * VEC_WIDTH, *recurrent = g->recurrent_start + u * VEC_WIDTH;
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
            product(x, rows, I, g->x[0].weight + u * 3 * VEC_WIDTH * I, together, 3, x_io);
        }
        product(h, rows, H, g->h[0].weight + u * 3 * VEC_WIDTH * H, together, 3, io);
        for (int64_t p = 0; p < together; p++, u++) {
            const float *s = scratch + p * panel, *n = xn + p * xn_panel;
            int64_t unit = u * VEC_WIDTH, left = H - unit;
            if (is_usual && left >= VEC_WIDTH) /* constants here, so that the compiler makes a loop without branches */
                gates(y, h, s, n, xn_row, usual_recurrent, usual, unit, VEC_WIDTH, rows);
            else
                gates(y, h, s, n, xn_row, g->recurrent_activation, g->activation, unit, left, rows);
        }
    }
}

/* One pass of the step with reset before the product: sums of `vecs` vectors from x (or `projected`) and from h. */
static FG_INLINE int64_t pass_panels(const float *const *x, const float *const *h, const float *projected,
                                     int64_t projected_stride, const fg_linear *mx, const fg_linear *mh, int64_t v0,
                                     int64_t V, int64_t rows, float *scratch)
{
    int64_t left = mh->vecs - v0, together = V == 3 ? panels_together(rows, left / 3 - (left % 3 == 1)) : 1;
    int64_t panel = rows * ROW_, last = (V - 1) * VEC_WIDTH, wide = V * VEC_WIDTH;
    sums io = {scratch, scratch + last, ROW_, panel, ROW_, panel, scratch, ROW_, panel, last};
    if (projected) {
        io.start = projected + v0 * VEC_WIDTH;
        io.last = io.start + last;
        io.start_row = io.last_row = projected_stride;
        io.start_panel = io.last_panel = wide;
    } else {
        const float *bias = mx->start + v0 * VEC_WIDTH;
        sums x_io = {bias, bias + last, 0, wide, 0, wide, scratch, ROW_, panel, last};
        product(x, rows, mx->inputs, mx->weight + v0 * VEC_WIDTH * mx->inputs, together, V, x_io);
    }
    product(h, rows, mh->inputs, mh->weight + v0 * VEC_WIDTH * mh->inputs, together, V, io);
    return together;
}

static void step_reset_before(float *const *y, const float *const *x, const float *const *h, const float *projected,
                              int64_t projected_stride, const fg_gru *g, int64_t rows, float *scratch)
{
    const int64_t H = g->hidden_size, G = g->h[1].vecs, padded = G * VEC_WIDTH;
    const fg_act recurrent = g->recurrent_activation, act = g->activation;
    float *z = scratch + FG_MAX_ROWS * ROW_, *rh = z + FG_MAX_ROWS * padded;
    const float *reset[FG_MAX_ROWS];

    for (int64_t v0 = 0; v0 < 2 * G;) {
        int64_t V = fg_panel_width(2 * G - v0);
        int64_t together =
            pass_panels(x, h, projected, projected_stride, &g->x[0], &g->h[0], v0, V, rows, scratch);
        for (int64_t i = 0; i < together * V; i++, v0++) {
            const float *s = scratch + (i / V) * rows * ROW_ + (i % V) * VEC_WIDTH;
            int64_t unit = (v0 % G) * VEC_WIDTH;
            for (int64_t row = 0; row < rows; row++, s += ROW_) {
                vec gate = recurrent.kind == FG_SIGMOID ? sigmoid(v_load(s)) : activation(recurrent, v_load(s));
                if (v0 < G)
                    v_store(rh + row * padded + unit, v_mul(gate, load_units(h[row] + unit, H - unit)));
                else
                    v_store(z + row * padded + unit, gate);
            }
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
            int64_t unit = v0 * VEC_WIDTH;
            for (int64_t row = 0; row < rows; row++, s += ROW_) {
                vec n = act.kind == FG_TANH ? tanh_(v_load(s)) : activation(act, v_load(s));
                vec old = load_units(h[row] + unit, H - unit);
                vec new_h = v_fma(v_load(z + row * padded + unit), v_sub(old, n), n);
                store_units(y[row] + unit, flush(new_h), H - unit);
            }
        }
    }
}

static void gru_step(float *const *y, const float *const *x, const float *const *h, const float *projected,
                     int64_t projected_stride, const fg_gru *g, int64_t rows, float *scratch)
{
    (g->reset_after ? step_reset_after : step_reset_before)(y, x, h, projected, projected_stride, g, rows, scratch);
}
