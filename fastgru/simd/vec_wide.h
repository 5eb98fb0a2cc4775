/* Twice the machine's native width, in two halves, with AVX-512's tile height: on x86-64 this is AVX-512's code path
 * (width 16, 8 rows) on any AVX2 machine, so that its tiles and tails are tested where AVX-512 is not to be had. */
#define vec half
#define v_lanes h_lanes
#define v_zero h_zero
#define v_set1 h_set1
#define v_load h_load
#define v_store h_store
#define v_loadn h_loadn
#define v_storen h_storen
#define v_add h_add
#define v_sub h_sub
#define v_mul h_mul
#define v_div h_div
#define v_fma h_fma
#define v_min h_min
#define v_max h_max
#define v_abs h_abs
#define v_copysign h_copysign
#define v_select_lt h_select_lt
#define v_exp2_magic h_exp2_magic
#if defined(__aarch64__) || defined(_M_ARM64)
#include "vec_neon.h"
enum { HALF_WIDTH = VEC_WIDTH };
#undef VEC_WIDTH
#define VEC_WIDTH 8
#else
#include "vec_avx2.h"
enum { HALF_WIDTH = VEC_WIDTH };
#undef VEC_WIDTH
#define VEC_WIDTH 16
#endif
#undef vec
#undef v_lanes
#undef v_zero
#undef v_set1
#undef v_load
#undef v_store
#undef v_loadn
#undef v_storen
#undef v_add
#undef v_sub
#undef v_mul
#undef v_div
#undef v_fma
#undef v_min
#undef v_max
#undef v_abs
#undef v_copysign
#undef v_select_lt
#undef v_exp2_magic
#undef VEC_ROWS
#undef VEC_TALL
#define VEC_ROWS 8

typedef struct { half lo, hi; } vec;

static FG_INLINE vec v_pair(half lo, half hi) { vec v = {lo, hi}; return v; }
static FG_INLINE vec v_zero(void) { return v_pair(h_zero(), h_zero()); }
static FG_INLINE vec v_set1(float f) { return v_pair(h_set1(f), h_set1(f)); }
static FG_INLINE vec v_load(const float *p) { return v_pair(h_load(p), h_load(p + HALF_WIDTH)); }
static FG_INLINE void v_store(float *p, vec v) { h_store(p, v.lo); h_store(p + HALF_WIDTH, v.hi); }

static FG_INLINE vec v_loadn(const float *p, int64_t n)
{
    return n <= HALF_WIDTH ? v_pair(h_loadn(p, n), h_zero())
                           : v_pair(h_load(p), h_loadn(p + HALF_WIDTH, n - HALF_WIDTH));
}

static FG_INLINE void v_storen(float *p, vec v, int64_t n)
{
    h_storen(p, v.lo, n < HALF_WIDTH ? n : HALF_WIDTH);
    if (n > HALF_WIDTH)
        h_storen(p + HALF_WIDTH, v.hi, n - HALF_WIDTH);
}

static FG_INLINE vec v_add(vec a, vec b) { return v_pair(h_add(a.lo, b.lo), h_add(a.hi, b.hi)); }
static FG_INLINE vec v_sub(vec a, vec b) { return v_pair(h_sub(a.lo, b.lo), h_sub(a.hi, b.hi)); }
static FG_INLINE vec v_mul(vec a, vec b) { return v_pair(h_mul(a.lo, b.lo), h_mul(a.hi, b.hi)); }
static FG_INLINE vec v_div(vec a, vec b) { return v_pair(h_div(a.lo, b.lo), h_div(a.hi, b.hi)); }
static FG_INLINE vec v_fma(vec a, vec b, vec c) { return v_pair(h_fma(a.lo, b.lo, c.lo), h_fma(a.hi, b.hi, c.hi)); }
static FG_INLINE vec v_min(vec a, vec b) { return v_pair(h_min(a.lo, b.lo), h_min(a.hi, b.hi)); }
static FG_INLINE vec v_max(vec a, vec b) { return v_pair(h_max(a.lo, b.lo), h_max(a.hi, b.hi)); }
static FG_INLINE vec v_abs(vec v) { return v_pair(h_abs(v.lo), h_abs(v.hi)); }
static FG_INLINE vec v_copysign(vec m, vec s) { return v_pair(h_copysign(m.lo, s.lo), h_copysign(m.hi, s.hi)); }

static FG_INLINE vec v_select_lt(vec a, vec b, vec x, vec y)
{
    return v_pair(h_select_lt(a.lo, b.lo, x.lo, y.lo), h_select_lt(a.hi, b.hi, x.hi, y.hi));
}

static FG_INLINE vec v_exp2_magic(vec m) { return v_pair(h_exp2_magic(m.lo), h_exp2_magic(m.hi)); }
