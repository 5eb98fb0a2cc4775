/* One kernel on one shape: what callgrind counts between the entry and the exit of `measured`.
 *
 *     driver         the cases' names, one a line
 *     driver NAME    runs it once
 *
 * Compiled with -DFG_TABLE=fg_table_ISA and linked with all.c of that instruction set. Weights are whatever: none of the
 * kernels branches on values. Letters: I input_size, H hidden_size, W vector width, G = ceil(H / W). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "table.h"

extern const fg_table FG_TABLE;

enum kind { STEP, PROJECTED, CACHED, BACKWARD, LINEAR, OUTER, COLUMN_SUMS, ACTIVATE };
typedef struct {
    const char *name;
    enum kind kind;
    int64_t rows, I, H; /* LINEAR: I -> H. OUTER, COLUMN_SUMS: rows are terms, (H, I) the gradient. ACTIVATE: H values */
    int32_t reset_after;
} shape;

static const shape shapes[] = {
    {"step, 16 rows, 128 -> 128", STEP, 16, 128, 128, 1},
    {"step, 16 rows, 100 -> 100", STEP, 16, 100, 100, 1},
    {"step, 8 rows, 256 -> 256", STEP, 8, 256, 256, 1},
    {"step, 7 rows, 30 -> 21", STEP, 7, 30, 21, 1},
    {"step, 1 row, 128 -> 128", STEP, 1, 128, 128, 1},
    {"step, 1 row projected, 128", PROJECTED, 1, 128, 128, 1},
    {"step, 1 row projected, 512", PROJECTED, 1, 512, 512, 1},
    {"step reset before, 16 rows, 128 -> 128", STEP, 16, 128, 128, 0},
    {"step reset before, 1 row projected, 128", PROJECTED, 1, 128, 128, 0},
    {"step with cache, 16 rows, 128 -> 128", CACHED, 16, 128, 128, 1},
    {"step backward, 16 rows, 128", BACKWARD, 16, 128, 128, 1},
    {"step backward reset before, 16 rows, 128", BACKWARD, 16, 128, 128, 0},
    {"linear, 16 rows, 128 -> 384", LINEAR, 16, 128, 384, 1},
    {"linear, 1 row, 100 -> 1000", LINEAR, 1, 100, 1000, 1},
    {"outer, 64 terms, 96 x 32", OUTER, 64, 32, 96, 1},
    {"column sums, 64 terms, 384", COLUMN_SUMS, 64, 1, 384, 1},
    {"tanh, 1000", ACTIVATE, 1, 1, 1000, FG_TANH},
    {"sigmoid, 1000", ACTIVATE, 1, 1, 1000, FG_SIGMOID},
};

static float *floats(int64_t n) /* aligned, between -0.5 and 0.5 */
{
    static uint32_t state = 1;
    float *p = aligned_alloc(64, (size_t)(n * 4 + 127) / 64 * 64);
    if (!p)
        abort();
    for (int64_t i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        p[i] = (float)(state >> 8) / (float)(1 << 24) - 0.5f;
    }
    return p;
}

static float **rows_of(int64_t rows, int64_t size)
{
    float **p = malloc((size_t)rows * sizeof *p);
    if (!p)
        abort();
    for (int64_t r = 0; r < rows; r++)
        p[r] = floats(size);
    return p;
}

static fg_linear layer(int64_t inputs, int64_t vecs)
{
    return (fg_linear){inputs, vecs, floats(inputs * vecs * FG_TABLE.width), floats(vecs * FG_TABLE.width)};
}

typedef struct {
    fg_gru forward;
    fg_gru_backward backward;
    fg_linear linear;
    float **x, **h, **y, **dx, **cache;
    float *projected, *dh, *out, *packed, *scratch;
    int64_t projected_stride, stride;
} data;

static data prepare(const shape *s)
{
    const fg_act sigmoid = {FG_SIGMOID, 0, 0}, tanh = {FG_TANH, 0, 0};
    const int64_t W = FG_TABLE.width, G = (s->H + W - 1) / W, I = s->I, H = s->H;
    const int64_t first = s->reset_after ? 3 * G : 2 * G, second = 3 * G - first;
    data d;
    memset(&d, 0, sizeof d);
    d.x = rows_of(s->rows, I), d.h = rows_of(s->rows, H), d.y = rows_of(s->rows, H + W);
    d.stride = G * W;
    if (s->kind == STEP || s->kind == PROJECTED || s->kind == CACHED) {
        d.forward = (fg_gru){.reset_after = s->reset_after, .recurrent_activation = sigmoid, .activation = tanh,
                             .input_size = I, .hidden_size = H, .x = {layer(I, first)}, .h = {layer(H, first)},
                             .last_group = G};
        if (s->reset_after)
            d.forward.recurrent_start = floats(G * W);
        else
            d.forward.x[1] = layer(I, second), d.forward.h[1] = layer(H, second);
        d.projected_stride = 3 * G * W;
        d.projected = s->kind == PROJECTED ? floats(s->rows * d.projected_stride) : NULL;
        d.cache = s->kind == CACHED ? rows_of(s->rows, 4 * H) : NULL;
        d.scratch = floats(fg_step_scratch(W, I, H, s->reset_after));
    } else if (s->kind == BACKWARD) {
        d.backward = (fg_gru_backward){.reset_after = s->reset_after, .recurrent_activation = sigmoid, .activation = tanh,
                                       .input_size = I, .hidden_size = H, .x = layer(3 * H, (I + W - 1) / W),
                                       .h = {layer(s->reset_after ? 3 * H : H, G)}};
        if (!s->reset_after)
            d.backward.h[1] = layer(2 * H, G);
        d.cache = rows_of(s->rows, 4 * H), d.dx = rows_of(s->rows, I);
        d.dh = floats(s->rows * d.stride);
        d.scratch = floats(fg_backward_scratch(W, H));
    } else if (s->kind == LINEAR) {
        d.linear = layer(I, G);
        d.scratch = floats(fg_linear_scratch(W, I));
    } else {
        d.out = floats((H + W) * (I + W));
        d.packed = floats(fg_packed_size(H));
        d.scratch = floats(fg_outer_scratch(W, H));
    }
    return d;
}

#if defined(__clang__)
__attribute__((noinline))
#else
__attribute__((noipa))
#endif
void measured(const shape *s, data *d)
{
    const float *const *x = (const float *const *)d->x, *const *h = (const float *const *)d->h;
    const int64_t W = FG_TABLE.width;
    switch (s->kind) {
    case STEP: case PROJECTED: case CACHED:
        FG_TABLE.gru_step(d->y, d->cache, d->projected ? NULL : x, h, d->projected, d->projected_stride, &d->forward,
                          s->rows, d->scratch);
        break;
    case BACKWARD:
        FG_TABLE.gru_step_backward(d->dh, d->stride, d->dx, d->cache, h, h, &d->backward, s->rows, d->scratch);
        break;
    case LINEAR: FG_TABLE.linear(d->y, x, &d->linear, s->H, s->rows, d->scratch); break;
    case OUTER:
        FG_TABLE.pack_outer(d->packed, NULL, h, s->H, s->rows);
        FG_TABLE.outer(d->out, (s->I + W - 1) / W * W, d->packed, 0, x, s->H, s->I, s->rows, d->scratch);
        break;
    case COLUMN_SUMS: FG_TABLE.column_sums(d->out, h, s->H, s->rows); break;
    case ACTIVATE: FG_TABLE.activate(d->y[0], h[0], s->H, (fg_act){s->reset_after, 0, 0}); break;
    }
}

int main(int argc, char **argv)
{
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        if (argc < 2) {
            puts(shapes[i].name);
        } else if (strcmp(argv[1], shapes[i].name) == 0) {
            data d = prepare(&shapes[i]);
            measured(&shapes[i], &d);
            return 0;
        }
    }
    return argc < 2 ? 0 : 2;
}
