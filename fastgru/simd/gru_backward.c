/* The gradients of one time step; the equations are in fastgru/reference.py. The cache holds [n r z q] of a row, H each,
 * and the gradients take their places: [da_n da_r da_z dq]. */

/* what does not need a product: da_n, da_z, and with reset_after da_r and dq; dh becomes d*z */
static FG_INLINE void gate_gradients(float *dh, float *cache, const float *dy, const float *h,
                                     const fg_gru_backward *g, int64_t unit)
{
    const int64_t H = g->hidden_size, left = H - unit;
    const vec one = v_set1(1.0f);
    float *c = cache + unit;
    vec n = load_units(c, left), z = load_units(c + 2 * H, left);
    vec d = v_load(dh);
    if (dy)
        d = v_add(d, load_units(dy + unit, left));
    vec da_n = v_mul(v_mul(d, v_sub(one, z)), slope(g->activation, n));
    vec da_z = v_mul(v_mul(d, v_sub(load_units(h + unit, left), n)), slope(g->recurrent_activation, z));
    v_store(dh, v_mul(d, z));
    if (g->reset_after) {
        vec r = load_units(c + H, left), q = load_units(c + 3 * H, left);
        store_units(c + H, v_mul(v_mul(da_n, q), slope(g->recurrent_activation, r)), left);
        store_units(c + 3 * H, v_mul(da_n, r), left);
    }
    store_units(c, da_n, left);
    store_units(c + 2 * H, da_z, left);
}

/* out[r] = start + U^T a[r], `cached` floats into the cache: U's packed transpose in m. out may be start. */
static void back_product(float *out, const float *start, int64_t stride, int64_t start_row, float *const *cache,
                         int64_t cached, const fg_linear *m, int64_t rows, float *dense)
{
    const float *w = m->weight, *in_cache[FG_MAX_ROWS], *at[FG_MAX_ROWS];
    for (int64_t row = 0; row < rows; row++)
        in_cache[row] = cache[row] + cached;
    const float *const *a = gather(at, dense, in_cache, rows, m->inputs, m->vecs / 3);
    for (int64_t v0 = 0; v0 < m->vecs;) {
        const int64_t V = fg_panel_width(m->vecs - v0), together = panels_together(rows, m->vecs - v0, V);
        const int64_t wide = V * VEC_WIDTH, last = wide - VEC_WIDTH, first = v0 * VEC_WIDTH;
        sums io = {start + first, start + first + last, start_row, wide, start_row, wide, out + first, stride, wide, last};
        product(a, rows, m->inputs, w, together, V, io, w + together * wide * m->inputs);
        v0 += together * V;
        w += together * wide * m->inputs;
    }
}

static void gru_step_backward(float *dh, int64_t dh_stride, float *const *cache, const float *const *dy,
                              const float *const *h, const fg_gru_backward *g, int64_t rows, float *scratch)
{
    const int64_t H = g->hidden_size, padded = g->h[0].vecs * VEC_WIDTH;
    for (int64_t row = 0; row < rows; row++)
        for (int64_t unit = 0; unit < H; unit += VEC_WIDTH)
            gate_gradients(dh + row * dh_stride + unit, cache[row], dy ? dy[row] : NULL, h[row], g, unit);
    if (g->reset_after) {
        back_product(dh, dh, dh_stride, dh_stride, cache, H, &g->h[0], rows, scratch);
        return;
    }
    float *drh = scratch + FG_MAX_ROWS * fg_dense_stride(3 * H), *zeros = drh + FG_MAX_ROWS * padded;
    for (int64_t i = 0; i < padded; i++)
        zeros[i] = 0.0f;
    back_product(drh, zeros, padded, 0, cache, 0, &g->h[0], rows, scratch);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t unit = 0; unit < H; unit += VEC_WIDTH) {
            float *c = cache[row] + H + unit, *to = dh + row * dh_stride + unit;
            vec r = load_units(c, H - unit), d = v_load(drh + row * padded + unit);
            v_store(to, v_fma(d, r, v_load(to)));
            d = v_mul(v_mul(d, load_units(h[row] + unit, H - unit)), slope(g->recurrent_activation, r));
            store_units(c, d, H - unit);
        }
    back_product(dh, dh, dh_stride, dh_stride, cache, H, &g->h[1], rows, scratch);
}
