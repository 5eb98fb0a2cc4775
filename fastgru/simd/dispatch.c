/* Which tables this build has, and which of them this machine can run. The CPU must have the instructions and the
 * operating system must save the registers: XCR0 holds 0x6 (SSE, AVX) for AVX, 0xE6 (and opmask, ZMM) for AVX-512;
 * a kernel or hypervisor that doesn't would corrupt them at the next context switch. */
#include <stddef.h>

#include "table.h"

#if defined(__x86_64__) || defined(_M_X64)
#define FG_X86 1
#if defined(_MSC_VER)
#include <immintrin.h>
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#endif

extern const fg_table fg_table_scalar;
#ifdef FG_HAVE_AVX2
extern const fg_table fg_table_avx2, fg_table_wide;
#endif
#ifdef FG_HAVE_AVX512
extern const fg_table fg_table_avx512;
#endif
#ifdef FG_HAVE_NEON
extern const fg_table fg_table_neon, fg_table_wide;
#endif

static const fg_table *const tables[] = {
#ifdef FG_HAVE_AVX512
    &fg_table_avx512,
#endif
#ifdef FG_HAVE_AVX2
    &fg_table_avx2, &fg_table_wide,
#endif
#ifdef FG_HAVE_NEON
    &fg_table_neon, &fg_table_wide,
#endif
    &fg_table_scalar,
};

int fg_isa_count(void) { return (int)(sizeof tables / sizeof *tables); }

const fg_table *fg_isa(int i) { return tables[i]; }

#ifdef FG_X86
static void cpuid(unsigned leaf, unsigned out[4])
{
#if defined(_MSC_VER)
    __cpuidex((int *)out, (int)leaf, 0);
#else
    if (!__get_cpuid_count(leaf, 0, &out[0], &out[1], &out[2], &out[3]))
        out[0] = out[1] = out[2] = out[3] = 0;
#endif
}

static unsigned xcr0(void)
{
#if defined(_MSC_VER)
    return (unsigned)_xgetbv(0);
#else
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
#endif
}

static int x86_runs(int avx512)
{
    unsigned leaf1[4], leaf7[4];
    cpuid(1, leaf1);
    cpuid(7, leaf7);
    const unsigned fma_osxsave_avx = 1u << 12 | 1u << 27 | 1u << 28, avx2 = 1u << 5, avx512f = 1u << 16;
    if ((leaf1[2] & fma_osxsave_avx) != fma_osxsave_avx || !(leaf7[1] & avx2) || (xcr0() & 0x6) != 0x6)
        return 0;
    return !avx512 || ((leaf7[1] & avx512f) && (xcr0() & 0xe6) == 0xe6);
}
#endif

int fg_isa_runs(const fg_table *table)
{
#ifdef FG_HAVE_AVX512
    if (table == &fg_table_avx512)
        return x86_runs(1);
#endif
#ifdef FG_HAVE_AVX2
    if (table == &fg_table_avx2 || table == &fg_table_wide)
        return x86_runs(0);
#endif
    (void)table;
    return 1; /* scalar needs nothing, NEON is part of AArch64 */
}

/* "wide" is for tests. AVX-512 waits for a recorded run of the tests on such hardware: FASTGRU_ISA=avx512 asks for it. */
int fg_isa_trusted(const fg_table *table)
{
#ifdef FG_HAVE_AVX512
    if (table == &fg_table_avx512)
        return 0;
#endif
#if defined(FG_HAVE_AVX2) || defined(FG_HAVE_NEON)
    if (table == &fg_table_wide)
        return 0;
#endif
    (void)table;
    return 1;
}
