/* Products with a bias and nothing after it: dense layers, and inputs of many time steps projected ahead. */

/* scratch: FG_MAX_ROWS * 4 * VEC_WIDTH floats */
static void linear_in_place(float *const *y, const float *const *x, const fg_linear *m, int64_t outputs, int64_t rows,
                            float *scratch)
{
    const float *w = m->weight;
    for (int64_t v0 = 0; v0 < m->vecs;) {
        int64_t V = fg_panel_width(m->vecs - v0), panels = panels_together(rows, m->vecs - v0, V);
        int64_t row_stride = 4 * VEC_WIDTH, last = (V - 1) * VEC_WIDTH;
        const float *start = m->start + v0 * VEC_WIDTH;
        sums io = {start, start + last, 0, V * VEC_WIDTH, 0, V * VEC_WIDTH, scratch, row_stride, rows * row_stride, last};
        product(x, rows, m->inputs, w, panels, V, io, w + panels * V * VEC_WIDTH * m->inputs);
        for (int64_t p = 0; p < panels; p++)
            for (int64_t r = 0; r < rows; r++)
                for (int64_t v = 0; v < V; v++) {
                    int64_t first = (v0 + p * V + v) * VEC_WIDTH;
                    vec sum = v_load(scratch + (p * rows + r) * row_stride + v * VEC_WIDTH);
                    if (outputs - first >= VEC_WIDTH)
                        v_store(y[r] + first, sum);
                    else
                        v_storen(y[r] + first, sum, outputs - first);
                }
        v0 += panels * V;
        w += panels * V * VEC_WIDTH * m->inputs;
    }
}

static void linear(float *const *y, const float *const *x, const fg_linear *m, int64_t outputs, int64_t rows,
                   float *scratch)
{
    const float *at[FG_MAX_ROWS];
    x = gather(at, scratch + FG_MAX_ROWS * 4 * VEC_WIDTH, x, rows, m->inputs, m->vecs / 3);
    linear_in_place(y, x, m, outputs, rows, scratch);
}
