/* Elementwise functions. Only vec.h's operations, so every ISA gives the same bits; tests try every float in [-100, 100]. */
#ifndef FASTGRU_ACTIVATIONS_H
#define FASTGRU_ACTIVATIONS_H

#include <math.h>

/* The common ones take n vectors at once, in place: one is a chain of some 60 cycles, and the CPU's window does not
 * reach far enough to overlap chains that stand behind each other. */
#define EACH FG_UNROLL for (int i = 0; i < n; i++)
enum { MAX_TOGETHER = 4 };

/* exp(t) = s (1 + p) with s = 2^k: k = round(t / ln 2), r = t - k ln 2 in two parts, p = r + r^2 q(r) with q the
 * degree-4 minimax polynomial of (e^r - 1 - r) / r^2 weighted for relative error (3.1e-9 for |r| <= ln(2)/2).
 * The caller keeps |t| at most 126 ln 2 and adds s and p up as suits it, with one rounding. NaN passes through p. */
static FG_INLINE void exp_parts(const int n, const vec *t, vec *s, vec *p)
{
    const vec magic = v_set1(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer in the low bits */
    vec r[MAX_TOGETHER], q[MAX_TOGETHER];
    EACH s[i] = v_fma(t[i], v_set1(0x1.715476p+0f), magic);
    EACH q[i] = v_sub(s[i], magic);
    EACH r[i] = v_fma(q[i], v_set1(-0x1.62e43p-1f), t[i]);
    EACH r[i] = v_fma(q[i], v_set1(0x1.05c61p-29f), r[i]);
    EACH q[i] = v_fma(v_set1(0x1.6a2252p-10f), r[i], v_set1(0x1.123b04p-7f));
    EACH q[i] = v_fma(q[i], r[i], v_set1(0x1.5558f8p-5f));
    EACH q[i] = v_fma(q[i], r[i], v_set1(0x1.555490p-3f));
    EACH q[i] = v_fma(q[i], r[i], v_set1(0x1.fffffcp-2f));
    EACH s[i] = v_exp2_magic(s[i]);
    EACH p[i] = v_fma(v_mul(r[i], r[i]), q[i], r[i]);
}

/* 1 / (1 + e^-x), the sum 1 + s + sp rounded twice. Below -126 ln 2 = -87.3365, where the result is no longer normal, it is 0. */
static FG_INLINE void sigmoids(const int n, vec *x)
{
    const vec one = v_set1(1.0f), limit = v_set1(0x1.5d589ep+6f), minus = v_set1(-0x1.5d589ep+6f);
    vec t[MAX_TOGETHER], s[MAX_TOGETHER], p[MAX_TOGETHER];
    EACH t[i] = v_max(minus, v_min(limit, v_sub(v_zero(), x[i])));
    exp_parts(n, t, s, p);
    EACH t[i] = v_fma(s[i], p[i], v_add(s[i], one));
    EACH t[i] = v_div(one, t[i]);
    EACH x[i] = v_select_lt(x[i], minus, v_zero(), t[i]);
}

/* On |x|, so that it is odd: 1 - 2 / (1 + e^2x), and below 0.55 x + x^3 p(x^2) with the degree-4 minimax polynomial of
 * (tanh x / x - 1) / x^2 (1.0e-9), since a quotient of two rounded sums does not rise steadily there. 1 from 9.25 on. */
static FG_INLINE void tanhs(const int n, vec *x)
{
    const vec one = v_set1(1.0f), two = v_set1(2.0f), limit = v_set1(18.5f), small = v_set1(0.55f);
    vec a[MAX_TOGETHER], t[MAX_TOGETHER], s[MAX_TOGETHER], p[MAX_TOGETHER];
    EACH a[i] = v_abs(x[i]);
    EACH t[i] = v_min(limit, v_add(a[i], a[i]));
    exp_parts(n, t, s, p);
    EACH t[i] = v_fma(s[i], p[i], v_add(s[i], one));
    EACH t[i] = v_sub(one, v_div(two, t[i]));
    EACH s[i] = v_mul(a[i], a[i]);
    EACH p[i] = v_fma(v_set1(-0x1.9b302ap-8f), s[i], v_set1(0x1.593d02p-6f));
    EACH p[i] = v_fma(p[i], s[i], v_set1(-0x1.b9287ap-5f));
    EACH p[i] = v_fma(p[i], s[i], v_set1(0x1.110d26p-3f));
    EACH p[i] = v_fma(p[i], s[i], v_set1(-0x1.55554ap-2f));
    EACH p[i] = v_fma(v_mul(s[i], a[i]), p[i], a[i]);
    EACH x[i] = v_copysign(v_select_lt(a[i], small, p[i], t[i]), x[i]);
}

static FG_INLINE vec hard_sigmoid(vec x, float alpha, float beta)
{
    return v_max(v_zero(), v_min(v_set1(1.0f), v_fma(v_set1(alpha), x, v_set1(beta))));
}

static FG_INLINE vec relu(vec x) { return v_max(v_zero(), x); }

/* The rarer ones, number by number through libm: right, and slower. Out of line, since the common ones stand in many
 * loops. */
static float scalar_activation(fg_act a, float x)
{
    switch (a.kind) {
    case FG_SOFTSIGN: return x / (1.0f + fabsf(x));
    case FG_ELU: return x < 0.0f ? a.alpha * expm1f(x) : x;
    case FG_SELU: return 1.05070098735548f * (x < 0.0f ? 1.67326324235438f * expm1f(x) : x);
    case FG_SOFTPLUS: return x > 20.0f ? x + expf(-x) : log1pf(expf(x));
    case FG_AFFINE: return a.alpha * x + a.beta;
    case FG_LEAKY_RELU: return x < 0.0f ? a.alpha * x : x;
    case FG_THRESHOLDED_RELU: return x <= a.alpha ? 0.0f : x;
    default: return x;
    }
}

static FG_NOINLINE void rare_activations(float *x, int n, fg_act a)
{
    for (int i = 0; i < n; i++)
        x[i] = scalar_activation(a, x[i]);
}

/* n vectors of any activation, in place */
static FG_INLINE void activations(const int n, fg_act a, vec *x)
{
    float lanes[MAX_TOGETHER * VEC_WIDTH];
    switch (a.kind) {
    case FG_LINEAR: break;
    case FG_SIGMOID: sigmoids(n, x); break;
    case FG_TANH: tanhs(n, x); break;
    case FG_HARD_SIGMOID: EACH x[i] = hard_sigmoid(x[i], a.alpha, a.beta); break;
    case FG_RELU: EACH x[i] = relu(x[i]); break;
    case FG_SCALED_TANH:
        EACH x[i] = v_mul(v_set1(a.beta), x[i]);
        tanhs(n, x);
        EACH x[i] = v_mul(v_set1(a.alpha), x[i]);
        break;
    default:
        EACH v_store(lanes + i * VEC_WIDTH, x[i]);
        rare_activations(lanes, n * VEC_WIDTH, a);
        EACH x[i] = v_load(lanes + i * VEC_WIDTH);
    }
}

/* the derivative, from the activation's own value y: enough for all of them while alpha > 0 */
static float scalar_slope(fg_act a, float y)
{
    switch (a.kind) {
    case FG_SOFTSIGN: return (1.0f - fabsf(y)) * (1.0f - fabsf(y));
    case FG_ELU: return y < 0.0f ? y + a.alpha : 1.0f;
    case FG_SELU: return y < 0.0f ? y + 1.05070098735548f * 1.67326324235438f : 1.05070098735548f;
    case FG_SOFTPLUS: return -expm1f(-y);
    case FG_AFFINE: return a.alpha;
    case FG_LEAKY_RELU: return y > 0.0f ? 1.0f : a.alpha;
    case FG_THRESHOLDED_RELU: return y == 0.0f ? 0.0f : 1.0f;
    default: return 1.0f;
    }
}

static FG_NOINLINE void rare_slopes(float *y, fg_act a)
{
    for (int lane = 0; lane < VEC_WIDTH; lane++)
        y[lane] = scalar_slope(a, y[lane]);
}

static FG_INLINE vec slope(fg_act a, vec y)
{
    const vec zero = v_zero(), one = v_set1(1.0f);
    float lanes[VEC_WIDTH];
    switch (a.kind) {
    case FG_LINEAR: return one;
    case FG_SIGMOID: return v_mul(y, v_sub(one, y));
    case FG_TANH: return v_fma(v_sub(zero, y), y, one);
    case FG_HARD_SIGMOID: return v_select_lt(zero, y, v_select_lt(y, one, v_set1(a.alpha), zero), zero);
    case FG_RELU: return v_select_lt(zero, y, one, zero);
    case FG_SCALED_TANH: return v_mul(v_set1(a.beta), v_sub(v_set1(a.alpha), v_div(v_mul(y, y), v_set1(a.alpha))));
    default:
        v_store(lanes, y);
        rare_slopes(lanes, a);
        return v_load(lanes);
    }
}

static void activate(float *y, const float *x, int64_t n, fg_act a)
{
    int64_t i = 0;
    vec v, together[MAX_TOGETHER];
    /* plain C gains nothing from several at once: its fma is mostly a call */
    for (; VEC_WIDTH > 1 && i + MAX_TOGETHER * VEC_WIDTH <= n; i += MAX_TOGETHER * VEC_WIDTH) {
        for (int j = 0; j < MAX_TOGETHER; j++)
            together[j] = v_load(x + i + j * VEC_WIDTH);
        activations(MAX_TOGETHER, a, together);
        for (int j = 0; j < MAX_TOGETHER; j++)
            v_store(y + i + j * VEC_WIDTH, together[j]);
    }
    for (; i + VEC_WIDTH <= n; i += VEC_WIDTH) {
        v = v_load(x + i);
        activations(1, a, &v);
        v_store(y + i, v);
    }
    if (i < n) {
        v = v_loadn(x + i, n - i);
        activations(1, a, &v);
        v_storen(y + i, v, n - i);
    }
}

#endif
