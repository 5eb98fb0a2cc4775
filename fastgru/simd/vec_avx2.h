/* Eight floats of AVX2 with FMA. Four rows by three vectors are 12 of its 16 registers, and so are six by two: two FMA
 * pipes that take four cycles each are busy with 8 sums only if nothing is ever late. */
#include <immintrin.h>

#define VEC_WIDTH 8
#define VEC_ROWS 4
#define VEC_TALL 6

typedef __m256 vec;

/* loading from fg_lanes + 8 - n gives n lanes of ones, then zeros */
static const int32_t fg_lanes[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};

static FG_INLINE __m256i v_lanes(int64_t n)
{
    return _mm256_loadu_si256((const __m256i *)(const void *)(fg_lanes + 8 - n));
}

static FG_INLINE vec v_zero(void) { return _mm256_setzero_ps(); }
static FG_INLINE vec v_set1(float f) { return _mm256_set1_ps(f); }
static FG_INLINE vec v_load(const float *p) { return _mm256_loadu_ps(p); }
static FG_INLINE void v_store(float *p, vec v) { _mm256_storeu_ps(p, v); }
static FG_INLINE vec v_loadn(const float *p, int64_t n) { return _mm256_maskload_ps(p, v_lanes(n)); }
static FG_INLINE void v_storen(float *p, vec v, int64_t n) { _mm256_maskstore_ps(p, v_lanes(n), v); }
static FG_INLINE vec v_add(vec a, vec b) { return _mm256_add_ps(a, b); }
static FG_INLINE vec v_sub(vec a, vec b) { return _mm256_sub_ps(a, b); }
static FG_INLINE vec v_mul(vec a, vec b) { return _mm256_mul_ps(a, b); }
static FG_INLINE vec v_div(vec a, vec b) { return _mm256_div_ps(a, b); }
static FG_INLINE vec v_fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
static FG_INLINE vec v_min(vec a, vec b) { return _mm256_min_ps(a, b); }
static FG_INLINE vec v_max(vec a, vec b) { return _mm256_max_ps(a, b); }
static FG_INLINE vec v_abs(vec v) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v); }

static FG_INLINE vec v_copysign(vec magnitude, vec sign)
{
    const vec bit = _mm256_set1_ps(-0.0f);
    return _mm256_or_ps(_mm256_andnot_ps(bit, magnitude), _mm256_and_ps(bit, sign));
}

static FG_INLINE vec v_select_lt(vec a, vec b, vec x, vec y)
{
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}

static FG_INLINE vec v_exp2_magic(vec m)
{
    __m256i bits = _mm256_slli_epi32(_mm256_castps_si256(m), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(bits, _mm256_set1_epi32(0x3f800000)));
}
