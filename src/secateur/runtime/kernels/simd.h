/* One vector of floats and how the next entries of a row become such vectors, for the path this file is built for:
 * -DSECATEUR_PATH=2 AVX-512 with VBMI2, =1 AVX2, =0 plain C on vectors of four (SSE2, NEON, ...).
 *
 * `fetch` takes the next STEP columns of a row: it spreads the packed entries over their columns (zeros between) and
 * moves the pointer behind them; `floats` makes the v-th of its vectors.  Which columns a vector holds: WAY_DOT's x is
 * laid out alike (job.pairs): in order, or even columns then odd columns where that is cheaper.
 */
#ifndef SECATEUR_SIMD_H
#define SECATEUR_SIMD_H

#include "internal.h"

#if SECATEUR_PATH == 2
#include <immintrin.h>
#define VL 16
#define PATH(name) name##_avx512
#elif SECATEUR_PATH == 1
#include <immintrin.h>
#define VL 8
#define PATH(name) name##_avx2
#else
#define VL 4
#define PATH(name) name##_portable
#endif

typedef float vf __attribute__((vector_size(4 * VL), may_alias));
typedef float vf_any __attribute__((vector_size(4 * VL), may_alias, aligned(4)));

INLINE vf load(const float *p) { return *(const vf_any *)p; }
INLINE void store(float *p, vf v) { *(vf_any *)p = v; }
INLINE vf all(float s) {
#if SECATEUR_PATH == 2
    return (vf)_mm512_set1_ps(s);
#elif SECATEUR_PATH == 1
    return (vf)_mm256_set1_ps(s);
#else
    return (vf){s, s, s, s};
#endif
}
INLINE vf muladd(vf a, vf b, vf c) {
#if SECATEUR_PATH == 2
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif SECATEUR_PATH == 1
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}
INLINE float sum(vf v) { /* in halves: the same order wherever it is built */
#if SECATEUR_PATH == 2
    __m256 a = _mm256_add_ps(_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1));
#elif SECATEUR_PATH == 1
    __m256 a = (__m256)v;
#endif
#if SECATEUR_PATH
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_shuffle_ps(b, b, 1)));
#else
    return (v[0] + v[2]) + (v[1] + v[3]);
#endif
}

/* VL packed entries, in order, as floats; may read OVERREAD bytes. */
INLINE vf widen(int dtype, const char *p) {
#if SECATEUR_PATH == 2
    if (dtype == SECATEUR_F32) return (vf)_mm512_loadu_ps(p);
    if (dtype == SECATEUR_BF16)
        return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16);
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
#elif SECATEUR_PATH == 1
    if (dtype == SECATEUR_F32) return (vf)_mm256_loadu_ps((const float *)p);
    if (dtype == SECATEUR_BF16)
        return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16);
    return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
#else
    typedef uint16_t halves __attribute__((vector_size(2 * VL)));
    typedef uint32_t words __attribute__((vector_size(4 * VL)));
    typedef int8_t bytes __attribute__((vector_size(VL)));
    halves half;
    bytes byte;
    if (dtype == SECATEUR_F32) return load((const float *)p);
    if (dtype == SECATEUR_BF16) {
        memcpy(&half, p, sizeof half);
        return (vf)(__builtin_convertvector(half, words) << 16);
    }
    memcpy(&byte, p, sizeof byte);
    return __builtin_convertvector(byte, vf);
#endif
}

#if SECATEUR_PATH == 2
typedef __m512i vi;
#define STEP(dtype) ((dtype) == SECATEUR_F32 ? 16 : (dtype) == SECATEUR_I8 ? 64 : 32)
#define PAIRS(dtype) ((dtype) == SECATEUR_BF16 || (dtype) == SECATEUR_I4 ? 32 : 0)
#define FACTOR(dtype) ((dtype) == SECATEUR_I8 ? 0x1p-24f : 1.0f) /* `floats` of int8: 2^24 times the entry, so x < 2^97 */

/* VPEXPAND waits for the old value of its target on Zen 4 even where it zeroes, and its form that reads memory is slow:
 * so the source is a register, and the target a zero the compiler cannot see through. */
INLINE __m512i in_register(__m512i v) {
    __asm__("" : "+v"(v));
    return v;
}

/* 64 bytes of packed entries from p on, those that `bits` asks for spread over their columns. */
INLINE vi spread(int kind, int dtype, const char *p, uint64_t bits) {
    const __m512i v = in_register(_mm512_loadu_si512(p));
    if (kind == SECATEUR_DENSE) return v;
    const __m512i zero = in_register(_mm512_setzero_si512());
    if (dtype == SECATEUR_F32) return _mm512_mask_expand_epi32(zero, (__mmask16)bits, v);
    if (dtype == SECATEUR_BF16) return _mm512_mask_expand_epi16(zero, (__mmask32)bits, v);
    return _mm512_mask_expand_epi8(zero, (__mmask64)bits, v);
}

INLINE vi fetch(int kind, int dtype, int64_t n, const char **p, uint64_t bits) {
    if (dtype == SECATEUR_I4) {
        const vi nibbles = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)*p));
        *p += 16;
        return nibbles;
    }
    const int step = STEP(dtype);
    const vi v = spread(kind, dtype, *p, bits);
    if (kind == SECATEUR_DENSE) *p += 64;
    else if (kind == SECATEUR_NM) *p += step / 4 * n * entry_bytes(dtype);
    else *p += __builtin_popcountll(step == 64 ? bits : bits & ((1ull << step % 64) - 1)) * entry_bytes(dtype);
    return v;
}

/* Bytes 16 v .. 16 v + 15, each on top of a lane of 32 bits. */
INLINE __m512i top_bytes(__m512i raw, int v) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i at = _mm512_slli_epi32(_mm512_add_epi32(lane, _mm512_set1_epi32(16 * v)), 24);
    return _mm512_maskz_permutexvar_epi8(0x8888888888888888ull, at, raw);
}

INLINE vf floats(int dtype, vi raw, int v) {
    if (dtype == SECATEUR_F32) return (vf)raw;
    if (dtype == SECATEUR_BF16)
        return (vf)(v ? _mm512_and_si512(raw, _mm512_set1_epi32((int)0xffff0000)) : _mm512_slli_epi32(raw, 16));
    if (dtype == SECATEUR_I8) return (vf)_mm512_cvtepi32_ps(top_bytes(raw, v));
    const __m512 table = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    return (vf)_mm512_permutexvar_ps(v ? _mm512_srli_epi32(raw, 4) : raw, table);
}

#elif SECATEUR_PATH == 1
typedef __m256i vi;
#define STEP(dtype) ((dtype) == SECATEUR_I4 ? 16 : 8)
#define PAIRS(dtype) ((dtype) == SECATEUR_I4 ? 16 : 0)
#define FACTOR(dtype) 1.0f

/* For each byte of mask: which packed entry goes to each of 8 columns, -1 where none does. */
extern const int8_t secateur_places[256][8];

INLINE vi fetch(int kind, int dtype, int64_t n, const char **p, uint64_t bits) {
    if (dtype == SECATEUR_I4) {
        const vi nibbles = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)*p));
        *p += 8;
        return nibbles;
    }
    vi v;
    if (dtype == SECATEUR_F32)
        v = _mm256_loadu_si256((const __m256i *)*p);
    else if (dtype == SECATEUR_BF16)
        v = _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)*p)), 16);
    else
        v = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)*p));
    if (kind == SECATEUR_DENSE) {
        *p += 8 * entry_bytes(dtype);
        return v;
    }
    const uint64_t byte = bits & 0xff;
    const vi places = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)secateur_places[byte]));
    v = _mm256_andnot_si256(_mm256_srai_epi32(places, 31), _mm256_permutevar8x32_epi32(v, places));
    *p += (kind == SECATEUR_NM ? 2 * n : __builtin_popcountll(byte)) * entry_bytes(dtype);
    return v;
}

INLINE vf floats(int dtype, vi raw, int v) {
    if (dtype == SECATEUR_I8) return (vf)_mm256_cvtepi32_ps(raw);
    if (dtype != SECATEUR_I4) return (vf)raw;
    const vi nibble = _mm256_and_si256(v ? _mm256_srli_epi32(raw, 4) : raw, _mm256_set1_epi32(15));
    return (vf)_mm256_cvtepi32_ps(_mm256_sub_epi32(nibble, _mm256_set1_epi32(8)));
}
#endif

/* x is laid out in groups of columns: as many of the most as fit, then ones. */
#define MOST_COLUMNS_DOT (SECATEUR_PATH == 2 ? 8 : 4)
INLINE int group_of(int64_t left) {
    return left >= MOST_COLUMNS_DOT ? MOST_COLUMNS_DOT : left >= 4 ? 4 : 1;
}

#endif
