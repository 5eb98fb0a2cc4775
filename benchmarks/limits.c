/* What one thread of this machine can do at best: fused multiply-adds, and reads of a buffer. Compiled for this very
 * processor. Independent accumulators hide the latency of an addition, or one measures that instead: FMA pipes x latency
 * is 8 on most x86 and 16 on some Arm processors. Time is the thread's own, which others on the machine don't lengthen. */
#include <time.h>

#if defined(__AVX512F__)
enum { WIDTH = 16, MANY = 24 };
#elif defined(__AVX__)
enum { WIDTH = 8, MANY = 12 };
#elif defined(__aarch64__)
enum { WIDTH = 4, MANY = 24 };
#else
enum { WIDTH = 4, MANY = 12 };
#endif
enum { BEST_OF = 5 };

typedef float vec __attribute__((vector_size(WIDTH * 4)));
typedef float loose_vec __attribute__((vector_size(WIDTH * 4), aligned(4)));

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* keeps a value, and everything that leads to it, alive */
#define USE(x) __asm__ volatile("" ::"m"(x))

static void multiply_add(long loops)
{
    vec acc[MANY], a, b;
    for (int i = 0; i < WIDTH; i++)
        a[i] = 0.5f, b[i] = 1.0f;
    __asm__ volatile("" : "+x"(a), "+x"(b)); /* unknown to the compiler */
    for (int i = 0; i < MANY; i++)
        acc[i] = b;
    for (long n = 0; n < loops; n++)
#pragma GCC unroll 32
        for (int i = 0; i < MANY; i++)
            acc[i] = acc[i] * a + b;
    for (int i = 0; i < MANY; i++)
        USE(acc[i]);
}

/* FLOP/s, the best of five; each takes about `seconds` */
double fma_peak(double seconds)
{
    long loops = 1000;
    double best = 0, took = 0;
    for (;; loops *= 2) {
        double start = now();
        multiply_add(loops);
        if ((took = now() - start) >= seconds / 2)
            break;
    }
    for (int i = 0; i < BEST_OF; i++) {
        double start = now();
        multiply_add(loops);
        double rate = 2.0 * WIDTH * MANY * (double)loops / (now() - start);
        best = rate > best ? rate : best;
    }
    return best;
}

/* all of p[0 .. n): `streams` places at once, MANY / streams vectors from each; returns the bytes read */
static inline __attribute__((always_inline)) double read_all(const float *p, long n, const int streams)
{
    const int each = MANY / streams;
    const long part = n / streams, step = each * WIDTH;
    long done = 0;
    vec acc[MANY] = {0};
    for (; done + step <= part; done += step)
#pragma GCC unroll 4
        for (int s = 0; s < streams; s++)
#pragma GCC unroll 32
            for (int i = 0; i < each; i++)
                acc[s * each + i] += *(const loose_vec *)(p + s * part + done + i * WIDTH);
    for (int i = 0; i < MANY; i++)
        USE(acc[i]);
    return 4.0 * (double)(done * streams);
}

static __attribute__((noinline)) double read_1(const float *p, long n) { return read_all(p, n, 1); }
static __attribute__((noinline)) double read_4(const float *p, long n) { return read_all(p, n, 4); }

/* bytes/s of reading p[0 .. n) again and again: the better of one and four streams, the best of five */
double read_bandwidth(const float *p, long n, double seconds)
{
    const long at_once = n < 1 << 18 ? (1 << 18) / n : 1; /* so that looking at the clock costs nothing */
    double best = 0;
    for (int k = 0; k < 2; k++)
        for (int i = 0; i <= BEST_OF; i++) { /* the first one fills the caches */
            double bytes = 0, start = now(), took;
            do
                for (long j = 0; j < at_once; j++) {
                    bytes += k ? read_4(p, n) : read_1(p, n);
                    __asm__ volatile("" ::: "memory");
                }
            while ((took = now() - start) < seconds);
            if (i && bytes / took > best)
                best = bytes / took;
        }
    return best;
}
