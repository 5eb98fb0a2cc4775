/* Four floats of AArch64 NEON. Eight rows by three vectors are 24 of its 32 registers. */
#include <arm_neon.h>
#include <string.h>

#define VEC_WIDTH 4
#define VEC_ROWS 8

typedef float32x4_t vec;

static FG_INLINE vec v_zero(void) { return vdupq_n_f32(0.0f); }
static FG_INLINE vec v_set1(float f) { return vdupq_n_f32(f); }
static FG_INLINE vec v_load(const float *p) { return vld1q_f32(p); }
static FG_INLINE void v_store(float *p, vec v) { vst1q_f32(p, v); }

static FG_INLINE vec v_loadn(const float *p, int64_t n)
{
    float lanes[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    memcpy(lanes, p, (size_t)n * sizeof *p);
    return vld1q_f32(lanes);
}

static FG_INLINE void v_storen(float *p, vec v, int64_t n)
{
    float lanes[4];
    vst1q_f32(lanes, v);
    memcpy(p, lanes, (size_t)n * sizeof *p);
}

static FG_INLINE vec v_add(vec a, vec b) { return vaddq_f32(a, b); }
static FG_INLINE vec v_sub(vec a, vec b) { return vsubq_f32(a, b); }
static FG_INLINE vec v_mul(vec a, vec b) { return vmulq_f32(a, b); }
static FG_INLINE vec v_div(vec a, vec b) { return vdivq_f32(a, b); }
static FG_INLINE vec v_fma(vec a, vec b, vec c) { return vfmaq_f32(c, a, b); }
/* not vminq/vmaxq: theirs treat NaN and signed zeros differently */
static FG_INLINE vec v_min(vec a, vec b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
static FG_INLINE vec v_max(vec a, vec b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
static FG_INLINE vec v_abs(vec v) { return vabsq_f32(v); }
static FG_INLINE vec v_copysign(vec magnitude, vec sign) { return vbslq_f32(vdupq_n_u32(0x80000000u), sign, magnitude); }
static FG_INLINE vec v_select_lt(vec a, vec b, vec x, vec y) { return vbslq_f32(vcltq_f32(a, b), x, y); }

static FG_INLINE vec v_exp2_magic(vec m)
{
    uint32x4_t bits = vshlq_n_u32(vreinterpretq_u32_f32(m), 23);
    return vreinterpretq_f32_u32(vaddq_u32(bits, vdupq_n_u32(0x3f800000u)));
}
