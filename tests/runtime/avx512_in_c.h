/* AVX-512's instructions in plain C, as far as the kernels use them, so that their AVX-512 path is checked on a processor
 * without it (test_library.py).  To be included before a source that is compiled for AVX2: what Intel's intrinsics guide
 * says of each, a lane at a time.
 */
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __AVX512F__
#error "the compiler must not know AVX-512 here: it would use it by itself"
#endif

typedef union {
    __m512i i;
    __m512 f;
    __m512d d;
    __m256i half[2];
    __m256 half_f[2];
    __m128i quarter[4];
    __m128 quarter_f[4];
    int8_t s8[64];
    uint8_t u8[64];
    uint16_t u16[32];
    int32_t s32[16];
    uint32_t u32[16];
    uint64_t u64[8];
    float f32[16];
    double f64[8];
} lanes;

#define OVER(n) for (int i = 0; i < (n); i++)
#define FUNCTION static __attribute__((noinline, unused)) /* inlined, they make a file of megabytes and minutes */
/* name(ARGUMENTS): `each` for each of n lanes of the answer o, which is member `what` of it. */
#define EACH(type, what, name, n, each, ...)  \
    FUNCTION type in_c_##name(__VA_ARGS__) {  \
        lanes o;                              \
        OVER(n) each;                         \
        return o.what;                        \
    }
#define LANES(v) ((lanes){.i = (__m512i)(v)})

/* Memory */
FUNCTION __m512i in_c_loadu_si512(const void *p) {
    lanes o;
    memcpy(&o, p, 64);
    return o.i;
}
FUNCTION __m512 in_c_loadu_ps(const void *p) { return (__m512)in_c_loadu_si512(p); }
FUNCTION void in_c_storeu_si512(void *p, __m512i v) { memcpy(p, &v, 64); }
FUNCTION void in_c_storeu_pd(void *p, __m512d v) { memcpy(p, &v, 64); }

/* The same in every lane, and one by one */
EACH(__m512i, i, setzero_si512, 16, o.s32[i] = 0, void)
EACH(__m512, f, setzero_ps, 16, o.f32[i] = 0, void)
EACH(__m512d, d, setzero_pd, 8, o.f64[i] = 0, void)
EACH(__m512i, i, set1_epi8, 64, o.s8[i] = (int8_t)a, int a)
EACH(__m512i, i, set1_epi32, 16, o.s32[i] = a, int a)
EACH(__m512, f, set1_ps, 16, o.f32[i] = a, float a)
EACH(__m512d, d, set1_pd, 8, o.f64[i] = a, double a)
#define in_c_setr_epi32(...) ((lanes){.s32 = {__VA_ARGS__}}.i)
#define in_c_setr_ps(...) ((lanes){.f32 = {__VA_ARGS__}}.f)

/* Whole numbers */
EACH(__m512i, i, add_epi32, 16, o.u32[i] = LANES(a).u32[i] + LANES(b).u32[i], __m512i a, __m512i b)
EACH(__m512i, i, sub_epi32, 16, o.u32[i] = LANES(a).u32[i] - LANES(b).u32[i], __m512i a, __m512i b)
EACH(__m512i, i, and_si512, 16, o.u32[i] = LANES(a).u32[i] & LANES(b).u32[i], __m512i a, __m512i b)
EACH(__m512i, i, xor_si512, 16, o.u32[i] = LANES(a).u32[i] ^ LANES(b).u32[i], __m512i a, __m512i b)
EACH(__m512i, i, slli_epi32, 16, o.u32[i] = by > 31 ? 0 : LANES(a).u32[i] << by, __m512i a, unsigned by)
EACH(__m512i, i, srli_epi32, 16, o.u32[i] = by > 31 ? 0 : LANES(a).u32[i] >> by, __m512i a, unsigned by)
EACH(__m512i, i, srli_epi16, 32, o.u16[i] = (uint16_t)(by > 15 ? 0 : LANES(a).u16[i] >> by), __m512i a, unsigned by)
FUNCTION int in_c_reduce_add_epi32(__m512i a) {
    uint32_t total = 0;
    OVER(16) total += LANES(a).u32[i];
    return (int)total;
}
/* Four products of an unsigned byte and a signed one in each lane, not saturated. */
FUNCTION __m512i in_c_dpbusd_epi32(__m512i to, __m512i a, __m512i b) {
    lanes o = LANES(to), left = LANES(a), right = LANES(b);
    OVER(64) o.u32[i / 4] += (uint32_t)(left.u8[i] * right.s8[i]);
    return o.i;
}

/* Floats: fused where the instruction is, the second of two where they can't be compared */
EACH(__m512, f, add_ps, 16, o.f32[i] = LANES(a).f32[i] + LANES(b).f32[i], __m512 a, __m512 b)
EACH(__m512, f, mul_ps, 16, o.f32[i] = LANES(a).f32[i] * LANES(b).f32[i], __m512 a, __m512 b)
EACH(__m512, f, min_ps, 16, o.f32[i] = LANES(a).f32[i] < LANES(b).f32[i] ? LANES(a).f32[i] : LANES(b).f32[i], __m512 a, __m512 b)
EACH(__m512, f, fmadd_ps, 16, o.f32[i] = fmaf(LANES(a).f32[i], LANES(b).f32[i], LANES(c).f32[i]), __m512 a, __m512 b, __m512 c)
EACH(__m512d, d, fmadd_pd, 8, o.f64[i] = fma(LANES(a).f64[i], LANES(b).f64[i], LANES(c).f64[i]), __m512d a, __m512d b, __m512d c)

/* bfloat16: the odd product first, each fused; what is below 2^-126 is zero, read or written. */
FUNCTION float in_c_no_tiny(float a) { return fabsf(a) < 0x1p-126f ? copysignf(0, a) : a; }
FUNCTION float in_c_bfloat16(uint16_t bits) {
    const uint32_t word = (uint32_t)bits << 16;
    float a;
    memcpy(&a, &word, 4);
    return in_c_no_tiny(a);
}
FUNCTION __m512 in_c_dpbf16_ps(__m512 to, __m512bh a, __m512bh b) {
    lanes o = LANES(to), left = LANES(a), right = LANES(b);
    for (int i = 0; i < 16; i++)
        for (int k = 2 * i + 1; k >= 2 * i; k--)
            o.f32[i] = in_c_no_tiny(
                fmaf(in_c_bfloat16(left.u16[k]), in_c_bfloat16(right.u16[k]), in_c_no_tiny(o.f32[i])));
    return o.f;
}

/* From one type to another */
FUNCTION int32_t in_c_nearest(float a) { return a >= -0x1p31f && a < 0x1p31f ? (int32_t)lrintf(a) : INT32_MIN; }
EACH(__m512i, i, cvtps_epi32, 16, o.s32[i] = in_c_nearest(LANES(a).f32[i]), __m512 a)
EACH(__m512, f, cvtepi32_ps, 16, o.f32[i] = (float)LANES(a).s32[i], __m512i a)
EACH(__m512d, d, cvtepi32_pd, 8, o.f64[i] = ((lanes){.half = {a}}).s32[i], __m256i a)
EACH(__m128i, quarter[0], cvtepi32_epi8, 16, o.u8[i] = (uint8_t)LANES(a).u32[i], __m512i a)
EACH(__m512i, i, cvtepi8_epi32, 16, o.s32[i] = ((lanes){.quarter = {a}}).s8[i], __m128i a)
EACH(__m512i, i, cvtepu8_epi32, 16, o.s32[i] = ((lanes){.quarter = {a}}).u8[i], __m128i a)
EACH(__m512i, i, cvtepu16_epi32, 16, o.s32[i] = ((lanes){.half = {a}}).u16[i], __m256i a)

/* Parts; what is not said of the rest is made a number that would be noticed. */
#define in_c_castsi512_si256(v) (LANES(v).half[0])
#define in_c_castps512_ps256(v) (LANES(v).half_f[0])
#define in_c_extracti64x4_epi64(v, k) (LANES(v).half[k])
#define in_c_extractf32x8_ps(v, k) (LANES(v).half_f[k])
FUNCTION __m512 in_c_castps128_ps512(__m128 v) {
    lanes o;
    memset(&o, 0xff, sizeof o);
    o.quarter_f[0] = v;
    return o.f;
}

/* From lane to lane */
EACH(__m512, f, permutexvar_ps, 16, o.f32[i] = LANES(a).f32[LANES(from).u32[i] & 15], __m512i from, __m512 a)
EACH(__m512, f, permutex2var_ps, 16, o.f32[i] = LANES(LANES(from).u32[i] & 16 ? b : a).f32[LANES(from).u32[i] & 15], __m512 a,
     __m512i from, __m512 b)
EACH(__m512i, i, permutexvar_epi8, 64, o.u8[i] = LANES(a).u8[LANES(from).u8[i] & 63], __m512i from, __m512i a)
EACH(__m512i, i, maskz_permutexvar_epi8, 64, o.u8[i] = bits >> i & 1 ? LANES(a).u8[LANES(from).u8[i] & 63] : 0, uint64_t bits,
     __m512i from, __m512i a)
EACH(__m512i, i, unpacklo_epi32, 16, o.u32[i] = LANES(i & 1 ? b : a).u32[i / 4 * 4 + i % 4 / 2], __m512i a, __m512i b)
EACH(__m512i, i, unpackhi_epi32, 16, o.u32[i] = LANES(i & 1 ? b : a).u32[i / 4 * 4 + i % 4 / 2 + 2], __m512i a, __m512i b)
EACH(__m512i, i, unpacklo_epi64, 8, o.u64[i] = LANES(i & 1 ? b : a).u64[i / 2 * 2], __m512i a, __m512i b)
EACH(__m512i, i, unpackhi_epi64, 8, o.u64[i] = LANES(i & 1 ? b : a).u64[i / 2 * 2 + 1], __m512i a, __m512i b)

/* Expand: the next of v's first lanes where a bit is set.  Compress: those lanes together, at the front. */
#define EXPAND(type, n, of)                                                             \
    FUNCTION __m512i in_c_mask_expand_##type(__m512i to, uint64_t bits, __m512i v) {    \
        lanes o = LANES(to), all = LANES(v);                                            \
        for (int i = 0, k = 0; i < (n); i++)                                            \
            if (bits >> i & 1) o.of[i] = all.of[k++];                                   \
        return o.i;                                                                     \
    }                                                                                   \
    FUNCTION __m512i in_c_mask_compress_##type(__m512i to, uint64_t bits, __m512i v) {  \
        lanes o = LANES(to), all = LANES(v);                                            \
        for (int i = 0, k = 0; i < (n); i++)                                            \
            if (bits >> i & 1) o.of[k++] = all.of[i];                                   \
        return o.i;                                                                     \
    }
EXPAND(epi8, 64, u8)
EXPAND(epi16, 32, u16)
EXPAND(epi32, 16, u32)
#define in_c_maskz_compress_epi32(bits, v) in_c_mask_compress_epi32(in_c_setzero_si512(), bits, v)
