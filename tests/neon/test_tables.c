/* Every table of kernels that this processor can run against the scalar one, bit for bit, without Python: also for
 * processors that are only emulated. Weights are packed here from the words of table.h, not by the code under test.
 * Whatever a kernel may write is surrounded by guard words. tools/test_neon.py compiles and runs this.
 *
 * Letters: N rows, K inputs of a product, M outputs, I input_size, H hidden_size, W vector width, G = ceil(H / W). */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "table.h"

static const uint32_t GUARD = 0x7fc0dead; /* a NaN that no kernel makes */
enum { MARGIN = 32 };                     /* floats on either side: wider than any vector */

static uint64_t random_state = 1;
static long compared, failed;

static uint32_t next(void) /* splitmix64 */
{
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    return (uint32_t)((z ^ z >> 27) * 0x94d049bb133111ebu >> 32);
}

static int64_t below(int64_t n) { return next() % n; }
static float uniform(void) { return (float)(int32_t)next() * 0x1p-31f; } /* -1 ... 1 */

#define PICK(list) list[below((int64_t)(sizeof list / sizeof *list))]

/* --- guarded memory ------------------------------------------------------------------------------------------------ */

/* `rows` rows of `size` floats, guards between and around them; 64-byte aligned if there is one row */
typedef struct {
    float *base, *first;
    int64_t rows, size, stride;
} room;

static room make_room(int64_t rows, int64_t size)
{
    room r = {NULL, NULL, rows, size, size + MARGIN};
    int64_t total = MARGIN + rows * r.stride;
    r.base = aligned_alloc(64, (size_t)(total * 4 + 63) / 64 * 64);
    if (!r.base)
        abort();
    for (int64_t i = 0; i < total; i++)
        memcpy(r.base + i, &GUARD, 4);
    r.first = r.base + MARGIN;
    return r;
}

static float *row_of(const room *r, int64_t row) { return r->first + row * r->stride; }

static void fill(room *r)
{
    for (int64_t row = 0; row < r->rows; row++)
        for (int64_t i = 0; i < r->size; i++)
            row_of(r, row)[i] = uniform();
}

static int is_guard(const float *p) { return memcmp(p, &GUARD, 4) == 0; }

static int guards_stand(const room *r)
{
    for (int64_t i = 0; i < MARGIN; i++) {
        if (!is_guard(r->base + i))
            return 0;
        for (int64_t row = 0; row < r->rows; row++)
            if (!is_guard(row_of(r, row) + r->size + i))
                return 0;
    }
    return 1;
}

static void drop(room *r) { free(r->base); }

/* equal bits, any two NaN being equal */
static int same(const float *a, const float *b, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (memcmp(a + i, b + i, 4) != 0 && !(isnan(a[i]) && isnan(b[i])))
            return 0;
    return 1;
}

static void check(int good, const char *isa, const char *what)
{
    compared++;
    if (!good && failed++ < 20)
        printf("FAILED %s: %s\n", isa, what);
}

static int same_rooms(const room *a, const room *b, int64_t size)
{
    for (int64_t row = 0; row < a->rows; row++)
        if (!same(row_of(a, row), row_of(b, row), size))
            return 0;
    return 1;
}

/* --- packing, by table.h ------------------------------------------------------------------------------------------- */

/* `lanes` names the row of w (·, K) behind each of `vecs` * W outputs, -1 for none */
static room pack(const float *w, int64_t K, const int64_t *lanes, int64_t vecs, int64_t W)
{
    room packed = make_room(1, vecs * W * K);
    float *to = packed.first;
    for (int64_t v0 = 0, V; v0 < vecs; v0 += V) {
        V = fg_panel_width(vecs - v0);
        for (int64_t k = 0; k < K; k++)
            for (int64_t lane = v0 * W; lane < (v0 + V) * W; lane++)
                *to++ = lanes[lane] < 0 ? 0.0f : w[lanes[lane] * K + k];
    }
    return packed;
}

static room pack_bias(const float *b, const int64_t *lanes, int64_t vecs, int64_t W)
{
    room packed = make_room(1, vecs * W);
    for (int64_t i = 0; i < vecs * W; i++)
        packed.first[i] = lanes[i] < 0 ? 0.0f : b[lanes[i]];
    return packed;
}

/* rows 0 ... n-1 in their own order, then -1 up to `total` */
static int64_t *plain_lanes(int64_t n, int64_t total)
{
    int64_t *lanes = calloc((size_t)total, sizeof *lanes);
    if (!lanes)
        abort();
    for (int64_t i = 0; i < total; i++)
        lanes[i] = i < n ? i : -1;
    return lanes;
}

/* row of a matrix of gates behind unit `unit` of gate `gate`: -1 beyond H */
static int64_t lane_of(int64_t gate, int64_t unit, int64_t H) { return unit < H ? gate * H + unit : -1; }

/* lanes of the first or second pass over H units (see fg_gru in table.h); returns how many vectors */
static int64_t gate_lanes(int64_t *lanes, int reset_after, int pass, int64_t H, int64_t W)
{
    int64_t G = (H + W - 1) / W, n = 0;
    if (reset_after)
        for (int64_t g = 0; g < G; g++)
            for (int64_t gate = 0; gate < 3; gate++)
                for (int64_t i = 0; i < W; i++)
                    lanes[n++] = lane_of(gate, g * W + i, H);
    else
        for (int64_t gate = pass ? 2 : 0; gate < (pass ? 3 : 2); gate++)
            for (int64_t unit = 0; unit < G * W; unit++)
                lanes[n++] = lane_of(gate, unit, H);
    return n / W;
}

/* --- what is compared ---------------------------------------------------------------------------------------------- */

static const int64_t ROWS[] = {1, 1, 2, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 16, 17, 23, 32, 63, 64};
static const int64_t SIZES[] = {1, 2, 3, 4, 5, 7, 8, 9, 11, 12, 13, 15, 16, 17, 20, 23, 24, 25, 31, 32, 33, 40, 47, 48, 49,
                                63, 64, 65, 80};
static const int64_t LONG[] = {1, 2, 3, 5, 8, 17, 33, 64, 65, 111, 112, 113, 128, 129, 224, 225, 300};
static const fg_act ACTS[] = {
    {FG_TANH, 0, 0}, {FG_TANH, 0, 0}, {FG_TANH, 0, 0}, {FG_LINEAR, 0, 0}, {FG_SIGMOID, 0, 0}, {FG_HARD_SIGMOID, 0.2f, 0.5f},
    {FG_RELU, 0, 0}, {FG_SOFTSIGN, 0, 0}, {FG_ELU, 0.7f, 0}, {FG_SELU, 0, 0}, {FG_SOFTPLUS, 0, 0}, {FG_AFFINE, 0.6f, -0.1f},
    {FG_LEAKY_RELU, 0.3f, 0}, {FG_THRESHOLDED_RELU, 0.4f, 0}, {FG_SCALED_TANH, 1.3f, 0.7f}};
static const fg_act SIGMAS[] = {
    {FG_SIGMOID, 0, 0}, {FG_SIGMOID, 0, 0}, {FG_SIGMOID, 0, 0}, {FG_HARD_SIGMOID, 1.0f / 6, 0.5f}, {FG_TANH, 0, 0},
    {FG_SOFTSIGN, 0, 0}, {FG_RELU, 0, 0}};

/* y of a dense layer on one table */
static room run_linear(const fg_table *t, const float *w, const float *b, const room *x, int64_t M)
{
    int64_t W = t->width, vecs = (M + W - 1) / W, K = x->size;
    int64_t *lanes = plain_lanes(M, vecs * W);
    room weight = pack(w, K, lanes, vecs, W), start = pack_bias(b, lanes, vecs, W);
    room scratch = make_room(1, fg_linear_scratch(W, K)), y = make_room(x->rows, M);
    fg_linear m = {K, vecs, weight.first, start.first};
    float *ys[FG_MAX_ROWS];
    const float *xs[FG_MAX_ROWS];
    for (int64_t r = 0; r < x->rows; r++)
        ys[r] = row_of(&y, r), xs[r] = row_of(x, r);
    t->linear(ys, xs, &m, M, x->rows, scratch.first);
    check(guards_stand(&y) && guards_stand(&scratch), t->name, "linear writes beside y or scratch");
    drop(&weight), drop(&start), drop(&scratch), free(lanes);
    return y;
}

static void compare_linear(const fg_table *scalar, const fg_table *t)
{
    char what[80];
    int64_t N = PICK(ROWS), K = PICK(LONG), M = PICK(SIZES);
    room w = make_room(1, M * K), b = make_room(1, M), x = make_room(N, K);
    fill(&w), fill(&b), fill(&x);
    room expected = run_linear(scalar, w.first, b.first, &x, M), found = run_linear(t, w.first, b.first, &x, M);
    snprintf(what, sizeof what, "linear N=%d K=%d M=%d", (int)N, (int)K, (int)M);
    check(same_rooms(&found, &expected, M), t->name, what);
    drop(&w), drop(&b), drop(&x), drop(&expected), drop(&found);
}

/* One layer: weights in r z n, and what a step of it gives. */
typedef struct {
    int reset_after, projected, cached, with_dy;
    fg_act recurrent, act;
    int64_t N, I, H, shares;
    room w_ih, w_hh, bias, c_n, x, h, dh, dy; /* bias: b + c, with reset_after n's part b_n alone */
} layer;

typedef struct { room y, cache, dh, dx; } step;

/* dh and dx of gru_step_backward on one table, from the cache that it has just written */
static void run_backward(const fg_table *t, const layer *l, step *s, const float *const *h, const float *const *dy)
{
    int64_t W = t->width, H = l->H, G = (H + W - 1) / W, I = l->I, GI = (I + W - 1) / W;
    fg_gru_backward g = {.reset_after = l->reset_after, .recurrent_activation = l->recurrent, .activation = l->act,
                         .input_size = I, .hidden_size = H};
    int64_t *lanes = plain_lanes(H, G * W), *inputs = plain_lanes(I, GI * W);
    room packed[4];
    int passes = l->reset_after ? 1 : 2;
    for (int pass = 0; pass < passes; pass++) { /* transposes: (H, 3H), or (H, H) of n and (H, 2H) of r and z */
        int64_t first = l->reset_after || pass ? 0 : 2 * H, K = l->reset_after ? 3 * H : pass ? 2 * H : H;
        float *turned = malloc((size_t)(H * K) * sizeof *turned);
        for (int64_t unit = 0; unit < H; unit++)
            for (int64_t k = 0; k < K; k++)
                turned[unit * K + k] = l->w_hh.first[(first + k) * H + unit];
        packed[pass] = pack(turned, K, lanes, G, W);
        g.h[pass] = (fg_linear){K, G, packed[pass].first, NULL};
        free(turned);
    }
    float *turned = malloc((size_t)(3 * H * I) * sizeof *turned); /* (I, 3H) of n, r and z */
    for (int64_t i = 0; i < I; i++)
        for (int64_t k = 0; k < 3 * H; k++)
            turned[i * 3 * H + k] = l->w_ih.first[(k + 2 * H) % (3 * H) * I + i];
    packed[passes] = pack(turned, 3 * H, inputs, GI, W);
    packed[passes + 1] = make_room(1, GI * W);
    memset(packed[passes + 1].first, 0, (size_t)(GI * W) * 4);
    g.x = (fg_linear){3 * H, GI, packed[passes].first, packed[passes + 1].first};
    free(turned);
    room scratch = make_room(1, fg_backward_scratch(W, H)), wide = make_room(1, l->N * G * W);
    float *cache[FG_MAX_ROWS], *dx[FG_MAX_ROWS];
    for (int64_t r = 0; r < l->N; r++) {
        cache[r] = row_of(&s->cache, r), dx[r] = row_of(&s->dx, r);
        memset(wide.first + r * G * W, 0, (size_t)(G * W) * 4);
        memcpy(wide.first + r * G * W, row_of(&l->dh, r), (size_t)H * 4);
    }
    t->gru_step_backward(wide.first, G * W, dx, cache, dy, h, &g, l->N, scratch.first);
    check(guards_stand(&wide) && guards_stand(&s->cache) && guards_stand(&s->dx) && guards_stand(&scratch), t->name,
          "backward writes outside");
    for (int64_t r = 0; r < l->N; r++)
        memcpy(row_of(&s->dh, r), wide.first + r * G * W, (size_t)H * 4);
    for (int i = 0; i < passes + 2; i++)
        drop(&packed[i]);
    drop(&scratch), drop(&wide), free(lanes), free(inputs);
}

static step run_step(const fg_table *t, const layer *l)
{
    int64_t W = t->width, H = l->H, G = (H + W - 1) / W, stride = 3 * G * W, used = 0;
    fg_gru g = {.reset_after = l->reset_after, .recurrent_activation = l->recurrent, .activation = l->act,
                .input_size = l->I, .hidden_size = H, .last_group = G};
    int64_t *lanes = plain_lanes(0, 3 * G * W);
    room packed[7];
    for (int pass = 0; pass < (l->reset_after ? 1 : 2); pass++) {
        int64_t vecs = gate_lanes(lanes, l->reset_after, pass, H, W);
        packed[used] = pack(l->w_ih.first, l->I, lanes, vecs, W);
        packed[used + 1] = pack(l->w_hh.first, H, lanes, vecs, W);
        packed[used + 2] = pack_bias(l->bias.first, lanes, vecs, W);
        g.x[pass] = (fg_linear){l->I, vecs, packed[used].first, packed[used + 2].first};
        g.h[pass] = (fg_linear){H, vecs, packed[used + 1].first, NULL};
        used += 3;
    }
    if (l->reset_after) {
        int64_t *units = plain_lanes(H, G * W);
        packed[used] = pack_bias(l->c_n.first, units, G, W);
        free(units);
        g.recurrent_start = packed[used++].first;
    }
    room scratch = make_room(1, fg_step_scratch(W, l->I, H, l->reset_after)), ahead = make_room(1, l->N * stride);
    step s = {make_room(l->N, H), make_room(l->N, 4 * H), make_room(l->N, H), make_room(l->N, l->I)};
    float *y[FG_MAX_ROWS], *cache[FG_MAX_ROWS], *sums[FG_MAX_ROWS];
    const float *x[FG_MAX_ROWS], *h[FG_MAX_ROWS], *dy[FG_MAX_ROWS];
    for (int64_t r = 0; r < l->N; r++) {
        y[r] = row_of(&s.y, r), cache[r] = row_of(&s.cache, r), sums[r] = ahead.first + r * stride;
        x[r] = row_of(&l->x, r), h[r] = row_of(&l->h, r), dy[r] = row_of(&l->dy, r);
    }
    if (l->projected) {
        int64_t first = g.x[0].vecs * W;
        t->linear(sums, x, &g.x[0], first, l->N, scratch.first);
        for (int64_t r = 0; r < l->N; r++)
            sums[r] += first;
        if (!l->reset_after)
            t->linear(sums, x, &g.x[1], stride - first, l->N, scratch.first);
    }
    const int64_t shares = l->reset_after ? l->shares : 1; /* a step may be taken in parts, as several threads do */
    for (int64_t share = 0; share < shares; share++) {
        g.first_group = share * G / shares, g.last_group = (share + 1) * G / shares;
        t->gru_step(y, l->cached ? cache : NULL, l->projected ? NULL : x, h, l->projected ? ahead.first : NULL, stride, &g,
                    l->N, scratch.first);
    }
    check(guards_stand(&s.y) && guards_stand(&s.cache) && guards_stand(&scratch) && guards_stand(&ahead), t->name,
          "gru_step writes outside");
    if (l->cached)
        run_backward(t, l, &s, h, l->with_dy ? dy : NULL);
    while (used > 0)
        drop(&packed[--used]);
    drop(&scratch), drop(&ahead), free(lanes);
    return s;
}

static void compare_step(const fg_table *scalar, const fg_table *t)
{
    char what[160];
    layer l = {next() & 1, next() & 1, next() & 1, next() & 1, PICK(SIGMAS), PICK(ACTS), PICK(ROWS), 0, PICK(SIZES), 1 + below(3),
               {0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}};
    l.I = below(4) ? PICK(SIZES) : PICK(LONG);
    if (below(8) == 0)
        l.H = PICK(LONG);
    l.w_ih = make_room(1, 3 * l.H * l.I), l.w_hh = make_room(1, 3 * l.H * l.H), l.bias = make_room(1, 3 * l.H);
    l.c_n = make_room(1, l.H), l.x = make_room(l.N, l.I), l.h = make_room(l.N, l.H), l.dh = make_room(l.N, l.H);
    l.dy = make_room(l.N, l.H);
    fill(&l.w_ih), fill(&l.w_hh), fill(&l.bias), fill(&l.c_n), fill(&l.x), fill(&l.h), fill(&l.dh), fill(&l.dy);
    if (below(10) == 0) /* a broken input, a state about to become subnormal */
        row_of(&l.x, 0)[0] = NAN, row_of(&l.h, l.N - 1)[l.H - 1] = 0x1p-130f;
    step expected = run_step(scalar, &l), found = run_step(t, &l);
    snprintf(what, sizeof what, "gru_step N=%d I=%d H=%d reset_after=%d sigma=%d phi=%d projected=%d cached=%d", (int)l.N,
             (int)l.I, (int)l.H, l.reset_after, l.recurrent.kind, l.act.kind, l.projected, l.cached);
    check(same_rooms(&found.y, &expected.y, l.H), t->name, what);
    if (l.cached) {
        memcpy(what, "backward", 8);
        check(same_rooms(&found.cache, &expected.cache, 4 * l.H), t->name, what);
        check(same_rooms(&found.dh, &expected.dh, l.H), t->name, what);
        check(same_rooms(&found.dx, &expected.dx, l.I), t->name, what);
    }
    drop(&expected.y), drop(&expected.cache), drop(&expected.dh), drop(&found.y), drop(&found.cache), drop(&found.dh);
    drop(&expected.dx), drop(&found.dx);
    drop(&l.w_ih), drop(&l.w_hh), drop(&l.bias), drop(&l.c_n), drop(&l.x), drop(&l.h), drop(&l.dh), drop(&l.dy);
}

static void run_sums(const fg_table *t, room *out, room *bias, const room *a, const room *b, int64_t terms)
{
    int64_t M = a->size, N = b->size, W = t->width, stride = (N + W - 1) / W * W;
    room wide = make_room(1, M * stride), scratch = make_room(1, fg_outer_scratch(W, M));
    room packed = make_room(1, fg_packed_size(M));
    int64_t first = M / 3; /* in two parts, the second from the middle of a tile on */
    const float *as[FG_KC], *bs[FG_KC];
    for (int64_t k = 0; k < terms; k++)
        as[k] = row_of(a, k), bs[k] = row_of(b, k);
    for (int64_t m = 0; m < M; m++) {
        memset(wide.first + m * stride, 0, (size_t)stride * 4);
        memcpy(wide.first + m * stride, row_of(out, m), (size_t)N * 4);
    }
    t->pack_outer(packed.first, bias->first, as, M, terms);
    t->outer(wide.first, stride, packed.first, 0, bs, first, N, terms, scratch.first);
    t->outer(wide.first + first * stride, stride, packed.first, first, bs, M - first, N, terms, scratch.first);
    t->column_sums(bias->first, as, M, terms);
    check(guards_stand(&wide) && guards_stand(&scratch) && guards_stand(&packed) && guards_stand(bias), t->name, "outer writes outside");
    for (int64_t m = 0; m < M; m++)
        memcpy(row_of(out, m), wide.first + m * stride, (size_t)N * 4);
    drop(&wide), drop(&scratch), drop(&packed);
}

static void compare_sums(const fg_table *scalar, const fg_table *t)
{
    char what[80];
    int64_t M = PICK(SIZES), N = PICK(SIZES), terms = 1 + below(FG_KC);
    room a = make_room(terms, M), b = make_room(terms, N);
    room expected = make_room(M, N), found = make_room(M, N), bias = make_room(1, M), bias_found = make_room(1, M);
    fill(&a), fill(&b), fill(&expected), fill(&bias);
    memcpy(found.first, expected.first, (size_t)((M - 1) * expected.stride + N) * 4);
    memcpy(bias_found.first, bias.first, (size_t)M * 4);
    run_sums(scalar, &expected, &bias, &a, &b, terms);
    run_sums(t, &found, &bias_found, &a, &b, terms);
    snprintf(what, sizeof what, "outer or column_sums M=%d N=%d terms=%d", (int)M, (int)N, (int)terms);
    check(same_rooms(&found, &expected, N) && same_rooms(&bias_found, &bias, M), t->name, what);
    drop(&a), drop(&b), drop(&expected), drop(&found), drop(&bias), drop(&bias_found);
}

static void compare_activate(const fg_table *scalar, const fg_table *t, int64_t n)
{
    char what[80];
    for (size_t i = 0; i < sizeof ACTS / sizeof *ACTS; i++) {
        room x = make_room(1, n), expected = make_room(1, n), found = make_room(1, n);
        for (int64_t k = 0; k < n; k++) {
            uint32_t bits = next(); /* any float there is, or one of usual size */
            memcpy(x.first + k, &bits, 4);
            if (k % 3)
                x.first[k] = uniform() * (k % 3 == 1 ? 10.0f : 100.0f);
        }
        scalar->activate(expected.first, x.first, n, ACTS[i]);
        t->activate(found.first, x.first, n, ACTS[i]);
        snprintf(what, sizeof what, "activate kind=%d n=%d", ACTS[i].kind, (int)n);
        check(same(found.first, expected.first, n) && guards_stand(&found), t->name, what);
        t->activate(x.first, x.first, n, ACTS[i]); /* in place */
        check(same(x.first, expected.first, n) && guards_stand(&x), t->name, what);
        drop(&x), drop(&expected), drop(&found);
    }
}

int main(int argc, char **argv)
{
    long cases = argc > 1 ? atol(argv[1]) : 1000;
    const fg_table *scalar = NULL;
    int others = 0;
    for (int i = 0; i < fg_isa_count(); i++)
        if (strcmp(fg_isa(i)->name, "scalar") == 0)
            scalar = fg_isa(i);
    if (!scalar || scalar->width != 1 || !fg_isa_runs(scalar) || !fg_isa_trusted(scalar)) {
        printf("FAILED: no scalar table\n");
        return 1;
    }
    for (int i = 0; i < fg_isa_count(); i++) {
        const fg_table *t = fg_isa(i);
        if (!fg_isa_runs(t)) {
            printf("%s: this processor can't run it, not tested\n", t->name);
            continue;
        }
        check(strcmp(t->name, "wide") != 0 || !fg_isa_trusted(t), t->name, "wide is for tests and must not be chosen");
        compared = 0;
        random_state = 1;
        for (long k = 0; k < cases; k++) {
            compare_step(scalar, t);
            if (k % 2)
                compare_linear(scalar, t);
            if (k % 4 == 0)
                compare_sums(scalar, t);
        }
        for (int64_t n = 0; n < 40; n++)
            compare_activate(scalar, t, n);
        compare_activate(scalar, t, 20 * cases + 3);
        printf("%s (%d lanes, %d rows): %ld comparisons with scalar%s\n", t->name, t->width, t->tile_rows, compared,
               failed ? "" : ", equal bit for bit");
        others += t != scalar;
    }
    if (!others)
        printf("FAILED: nothing but scalar ran\n");
    return failed || !others;
}
