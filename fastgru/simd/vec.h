/* One vector of VEC_WIDTH floats. vec_scalar.h is the specification: every other header implements exactly these
 * operations with the same result in every lane, bit for bit, NaN payloads aside.
 *
 *   v_zero() v_set1(f) v_load(p) v_store(p, v)         unaligned
 *   v_loadn(p, n) v_storen(p, v, n)                    the first n lanes, 0 < n <= VEC_WIDTH; other lanes 0 / untouched,
 *                                                      no byte beyond them is read or written
 *   v_add v_sub v_mul v_div                            rounded once
 *   v_fma(a, b, c)                                     a*b + c, rounded once: the only way to fuse (-ffp-contract=off)
 *   v_min(a, b) v_max(a, b)                            a < b ? a : b, a > b ? a : b: NaN in b comes out, so constants
 *                                                      stand first
 *   v_abs(v) v_copysign(magnitude, sign)
 *   v_select_lt(a, b, x, y)                            a < b ? x : y: NaN gives y
 *   v_exp2_magic(m)                                    2^n where m = 1.5 * 2^23 + n, -126 <= n <= 127
 *
 * VEC_ROWS is the height of a tile three vectors wide: VEC_ROWS * 3 accumulators, 3 weights and a broadcast must fit the
 * registers. VEC_TALL is that of narrower ones, where it is another.
 */
#ifndef FASTGRU_VEC_H
#define FASTGRU_VEC_H

#if defined(_MSC_VER) && !defined(__clang__)
#define FG_INLINE __forceinline
#define FG_NOINLINE __declspec(noinline)
#define FG_UNROLL
#define FG_PREFETCH(p) ((void)(p))
#else
#define FG_PREFETCH(p) __builtin_prefetch(p)
#define FG_INLINE inline __attribute__((always_inline))
#define FG_NOINLINE __attribute__((noinline))
#if defined(FG_ISA_WIDE)
#define FG_UNROLL /* it runs in tests alone: 25 KB of a wheel are worth more than its speed */
#elif defined(__clang__)
#define FG_UNROLL _Pragma("clang loop unroll(full)")
#else
#define FG_UNROLL _Pragma("GCC unroll 32")
#endif
#endif

#if defined(FG_ISA_SCALAR)
#define FG_ISA_NAME scalar
#include "vec_scalar.h"
#elif defined(FG_ISA_AVX2)
#define FG_ISA_NAME avx2
#include "vec_avx2.h"
#elif defined(FG_ISA_AVX512)
#define FG_ISA_NAME avx512
#include "vec_avx512.h"
#elif defined(FG_ISA_NEON)
#define FG_ISA_NAME neon
#include "vec_neon.h"
#elif defined(FG_ISA_WIDE)
#define FG_ISA_NAME wide
#include "vec_wide.h"
#else
#error "compile all.c with one of FG_ISA_SCALAR, _WIDE, _AVX2, _AVX512, _NEON"
#endif
#ifndef VEC_TALL
#define VEC_TALL VEC_ROWS
#endif

#endif
