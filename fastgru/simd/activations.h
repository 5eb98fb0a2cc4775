/* Elementwise functions. Only vec.h's operations, so every ISA gives the same bits; tests try every float in [-100, 100]. */
#ifndef FASTGRU_ACTIVATIONS_H
#define FASTGRU_ACTIVATIONS_H

#include <math.h>

/* exp(t) = s (1 + p) with s = 2^n: n = round(t / ln 2), r = t - n ln 2 in two parts, p = r + r^2 q(r) with q the
 * degree-4 minimax polynomial of (e^r - 1 - r) / r^2 weighted for relative error (3.1e-9 for |r| <= ln(2)/2).
 * The caller keeps t in [-87.34, 87.34] and adds s and p up as suits it, with one rounding. NaN passes through p. */
static FG_INLINE void exp_parts(vec t, vec *s, vec *p)
{
    const vec magic = v_set1(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer in the low bits */
    vec m = v_fma(t, v_set1(0x1.715476p+0f), magic);
    vec n = v_sub(m, magic);
    vec r = v_fma(n, v_set1(-0x1.62e43p-1f), t);
    r = v_fma(n, v_set1(0x1.05c61p-29f), r);
    vec q = v_set1(0x1.6a2252p-10f);
    q = v_fma(q, r, v_set1(0x1.123b04p-7f));
    q = v_fma(q, r, v_set1(0x1.5558f8p-5f));
    q = v_fma(q, r, v_set1(0x1.555490p-3f));
    q = v_fma(q, r, v_set1(0x1.fffffcp-2f));
    *s = v_exp2_magic(m);
    *p = v_fma(v_mul(r, r), q, r);
}

/* 1 / (1 + e^-x), the sum 1 + s + sp rounded twice. Below -87.33, where the result is no longer normal, it is 0. */
static FG_INLINE vec sigmoid(vec x)
{
    const vec one = v_set1(1.0f), limit = v_set1(87.33f);
    vec s, p;
    vec t = v_sub(v_zero(), x);
    t = v_max(v_set1(-87.33f), v_min(limit, t));
    exp_parts(t, &s, &p);
    vec y = v_div(one, v_fma(s, p, v_add(s, one)));
    return v_select_lt(x, v_set1(-87.33f), v_zero(), y);
}

/* (e^2x - 1) / (e^2x + 1) on |x|, so that it is odd and small x keep their relative accuracy; 1 from |x| = 9.25 on */
static FG_INLINE vec tanh_(vec x)
{
    const vec one = v_set1(1.0f);
    vec s, p;
    vec t = v_abs(x);
    t = v_min(v_set1(18.5f), v_add(t, t));
    exp_parts(t, &s, &p);
    return v_copysign(v_div(v_fma(s, p, v_sub(s, one)), v_fma(s, p, v_add(s, one))), x);
}

static FG_INLINE vec hard_sigmoid(vec x, float alpha, float beta)
{
    return v_max(v_zero(), v_min(v_set1(1.0f), v_fma(v_set1(alpha), x, v_set1(beta))));
}

static FG_INLINE vec relu(vec x) { return v_max(v_zero(), x); }

/* the rarer ones, lane by lane through libm: right, and slower */
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

static FG_INLINE vec activation(fg_act a, vec x)
{
    float lanes[VEC_WIDTH];
    switch (a.kind) {
    case FG_LINEAR: return x;
    case FG_SIGMOID: return sigmoid(x);
    case FG_TANH: return tanh_(x);
    case FG_HARD_SIGMOID: return hard_sigmoid(x, a.alpha, a.beta);
    case FG_RELU: return relu(x);
    case FG_SCALED_TANH: return v_mul(v_set1(a.alpha), tanh_(v_mul(v_set1(a.beta), x)));
    default:
        v_store(lanes, x);
        for (int i = 0; i < VEC_WIDTH; i++)
            lanes[i] = scalar_activation(a, lanes[i]);
        return v_load(lanes);
    }
}

static void activate(float *y, const float *x, int64_t n, fg_act a)
{
    int64_t i = 0;
    for (; i + VEC_WIDTH <= n; i += VEC_WIDTH)
        v_store(y + i, activation(a, v_load(x + i)));
    if (i < n)
        v_storen(y + i, activation(a, v_loadn(x + i, n - i)), n - i);
}

#endif
