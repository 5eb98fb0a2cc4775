/* Sixteen floats of AVX-512F. Eight rows by three vectors are 24 of its 32 registers. */
#include <immintrin.h>

#define VEC_WIDTH 16
#define VEC_ROWS 8

typedef __m512 vec;

static FG_INLINE __mmask16 v_lanes(int64_t n) { return (__mmask16)((1u << n) - 1u); }

static FG_INLINE vec v_zero(void) { return _mm512_setzero_ps(); }
static FG_INLINE vec v_set1(float f) { return _mm512_set1_ps(f); }
static FG_INLINE vec v_load(const float *p) { return _mm512_loadu_ps(p); }
static FG_INLINE void v_store(float *p, vec v) { _mm512_storeu_ps(p, v); }
static FG_INLINE vec v_loadn(const float *p, int64_t n) { return _mm512_maskz_loadu_ps(v_lanes(n), p); }
static FG_INLINE void v_storen(float *p, vec v, int64_t n) { _mm512_mask_storeu_ps(p, v_lanes(n), v); }
static FG_INLINE vec v_add(vec a, vec b) { return _mm512_add_ps(a, b); }
static FG_INLINE vec v_sub(vec a, vec b) { return _mm512_sub_ps(a, b); }
static FG_INLINE vec v_mul(vec a, vec b) { return _mm512_mul_ps(a, b); }
static FG_INLINE vec v_div(vec a, vec b) { return _mm512_div_ps(a, b); }
static FG_INLINE vec v_fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
static FG_INLINE vec v_min(vec a, vec b) { return _mm512_min_ps(a, b); }
static FG_INLINE vec v_max(vec a, vec b) { return _mm512_max_ps(a, b); }
static FG_INLINE vec v_abs(vec v) { return _mm512_abs_ps(v); }

static FG_INLINE vec v_copysign(vec magnitude, vec sign)
{
    const __m512i bit = _mm512_set1_epi32((int)0x80000000u); /* bitwise: sign ? sign bit : magnitude's other bits */
    return _mm512_castsi512_ps(
        _mm512_ternarylogic_epi32(bit, _mm512_castps_si512(sign), _mm512_castps_si512(magnitude), 0xca));
}

static FG_INLINE vec v_select_lt(vec a, vec b, vec x, vec y)
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}

static FG_INLINE vec v_exp2_magic(vec m)
{
    __m512i bits = _mm512_slli_epi32(_mm512_castps_si512(m), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(bits, _mm512_set1_epi32(0x3f800000)));
}
