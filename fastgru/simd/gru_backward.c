/* The gradients of one time step; the equations are in fastgru/reference.py. [n r z q] come from the cache as gru_step
 * left them (`kept`), and the gradients take their places, gate after gate: [da_n da_r da_z dq], H each. */

/* what does not need a product: da_n, da_z, and with reset_after da_r and dq, into `da`; dh becomes d*z */
static FG_INLINE void gate_gradients(float *dh, float *da, float *cache, const float *dy, const float *h,
                                     const fg_gru_backward *g, int64_t unit)
{
    const int64_t H = g->hidden_size, left = H - unit;
    const vec one = v_set1(1.0f);
    vec n = load_units(kept(cache, 0, unit, left), left), r = load_units(kept(cache, 1, unit, left), left);
    vec z = load_units(kept(cache, 2, unit, left), left), q = load_units(kept(cache, 3, unit, left), left);
    vec d = v_load(dh);
    if (dy)
        d = v_add(d, load_units(dy + unit, left));
    vec da_n = v_mul(v_mul(d, v_sub(one, z)), slope(g->activation, n));
    vec da_z = v_mul(v_mul(d, v_sub(load_units(h + unit, left), n)), slope(g->recurrent_activation, z));
    v_store(dh, v_mul(d, z));
    if (g->reset_after) {
        const vec dq = v_mul(da_n, r);
        r = v_mul(v_mul(da_n, q), slope(g->recurrent_activation, r));
        q = dq;
    }
    da += unit;
    store_units(da, da_n, left);
    store_units(da + H, r, left);
    store_units(da + 2 * H, da_z, left);
    store_units(da + 3 * H, q, left);
}

/* out[r] = start + m a[r]. out may be start. */
static void back_product(float *out, const float *start, int64_t stride, int64_t start_row, const float *const *a,
                         const fg_linear *m, int64_t rows)
{
    const float *w = m->weight;
    for (int64_t v0 = 0; v0 < m->vecs;) {
        const int64_t V = fg_panel_width(m->vecs - v0), together = panels_together(rows, m->vecs - v0, V);
        const int64_t wide = V * VEC_WIDTH, last = wide - VEC_WIDTH, first = v0 * VEC_WIDTH;
        const float *from = start + first;
        sums io = {from, from + last, start_row, wide, start_row, wide, out + first, stride, wide, last};
        product(a, rows, m->inputs, w, together, V, io, w + together * wide * m->inputs);
        v0 += together * V;
        w += together * wide * m->inputs;
    }
}

/* dh through the reset gate of the variant that resets before its product: from da_n, and da_r in place of r */
static void back_through_reset(float *dh, int64_t dh_stride, float *da, int64_t stride, float *const *cache,
                               const float *const *da_n, const float *const *h, const fg_gru_backward *g, int64_t rows,
                               float *scratch)
{
    const int64_t H = g->hidden_size, padded = g->h[0].vecs * VEC_WIDTH;
    float *drh = scratch, *zeros = drh + FG_MAX_ROWS * padded;
    for (int64_t i = 0; i < padded; i++)
        zeros[i] = 0.0f;
    back_product(drh, zeros, padded, 0, da_n, &g->h[0], rows);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t unit = 0; unit < H; unit += VEC_WIDTH) {
            float *da_r = da + row * stride + H + unit, *to = dh + row * dh_stride + unit;
            vec r = load_units(da_r, H - unit), d = v_load(drh + row * padded + unit);
            v_store(to, v_fma(d, r, v_load(to)));
            d = v_mul(v_mul(d, load_units(h[row] + unit, H - unit)), slope(g->recurrent_activation, r));
            store_units(da_r, d, H - unit);
            store_units(cache[row] + H + unit, d, H - unit);
        }
}

static void gru_step_backward(float *dh, int64_t dh_stride, float *const *dx, float *const *cache,
                              const float *const *dy, const float *const *h, const fg_gru_backward *g, int64_t rows,
                              float *scratch)
{
    const int64_t H = g->hidden_size, stride = fg_dense_stride(4 * H);
    const float *all[FG_MAX_ROWS], *recurrent[FG_MAX_ROWS]; /* [da_n da_r da_z], [da_r da_z dq] */
    float *da = scratch;
    scratch += FG_MAX_ROWS * stride;
    for (int64_t row = 0; row < rows; row++) {
        const int64_t next = row + 1 < rows ? row + 1 : row; /* rows lie too far apart for the hardware to foresee */
        float *to = da + row * stride;
        all[row] = to, recurrent[row] = to + H;
        for (int64_t unit = 0; unit < H; unit += VEC_WIDTH) {
            for (int64_t line = 0; line < 4 * VEC_WIDTH; line += 16)
                FG_PREFETCH(cache[next] + 4 * unit + line);
            FG_PREFETCH(h[next] + unit);
            if (dy)
                FG_PREFETCH(dy[next] + unit);
            gate_gradients(dh + row * dh_stride + unit, to, cache[row], dy ? dy[row] : NULL, h[row], g, unit);
        }
        memcpy(cache[row], to, (size_t)(4 * H) * sizeof *to);
    }
    if (!g->reset_after)
        back_through_reset(dh, dh_stride, da, stride, cache, all, h, g, rows, scratch);
    back_product(dh, dh, dh_stride, dh_stride, recurrent, &g->h[!g->reset_after], rows);
    linear_in_place(dx, all, &g->x, g->input_size, rows, scratch);
}
