/* Width 1: the specification of every vector operation (see vec.h). */
#include <math.h>
#include <string.h>

#define VEC_WIDTH 1
#define VEC_ROWS 4

typedef float vec;

static FG_INLINE vec v_zero(void) { return 0.0f; }
static FG_INLINE vec v_set1(float f) { return f; }
static FG_INLINE vec v_load(const float *p) { return *p; }
static FG_INLINE void v_store(float *p, vec v) { *p = v; }
static FG_INLINE vec v_loadn(const float *p, int64_t n) { (void)n; return *p; }
static FG_INLINE void v_storen(float *p, vec v, int64_t n) { (void)n; *p = v; }
static FG_INLINE vec v_add(vec a, vec b) { return a + b; }
static FG_INLINE vec v_sub(vec a, vec b) { return a - b; }
static FG_INLINE vec v_mul(vec a, vec b) { return a * b; }
static FG_INLINE vec v_div(vec a, vec b) { return a / b; }
static FG_INLINE vec v_fma(vec a, vec b, vec c) { return fmaf(a, b, c); }
static FG_INLINE vec v_min(vec a, vec b) { return a < b ? a : b; }
static FG_INLINE vec v_max(vec a, vec b) { return a > b ? a : b; }
static FG_INLINE vec v_abs(vec v) { return fabsf(v); }
static FG_INLINE vec v_copysign(vec magnitude, vec sign) { return copysignf(magnitude, sign); }
static FG_INLINE vec v_select_lt(vec a, vec b, vec x, vec y) { return a < b ? x : y; }

static FG_INLINE vec v_exp2_magic(vec m)
{
    uint32_t bits; /* the low byte of m's bits is n: shifted into the exponent, on top of the exponent of 1.0f */
    memcpy(&bits, &m, sizeof bits);
    bits = (bits << 23) + 0x3f800000u;
    memcpy(&m, &bits, sizeof bits);
    return m;
}
