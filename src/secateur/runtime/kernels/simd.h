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
typedef int32_t vn __attribute__((vector_size(4 * VL), may_alias));
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

/* VL entries of x from `at` on, as floats; zeros after `left` of them. */
INLINE vf x_vector(const void *x, int64_t dtype, int64_t at, int64_t left) {
    float part[VL] = {0};
    if (__builtin_expect(left >= VL, 1))
        return dtype == SECATEUR_F32 ? load((const float *)x + at) : widen(SECATEUR_BF16, (const char *)x + at * 2);
    for (int64_t i = 0; i < left; i++) part[i] = load_either(x, dtype, at + i);
    return load(part);
}

#if SECATEUR_PATH
/* Two vectors in order -> even entries, odd entries. */
INLINE void pair(vf *a, vf *b) {
#if SECATEUR_PATH == 2
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512 first = (__m512)*a, second = (__m512)*b;
    *a = (vf)_mm512_permutex2var_ps(first, even, second);
    *b = (vf)_mm512_permutex2var_ps(first, _mm512_add_epi32(even, _mm512_set1_epi32(1)), second);
#else
    const __m256 even = _mm256_shuffle_ps((__m256)*a, (__m256)*b, 0x88);
    const __m256 odd = _mm256_shuffle_ps((__m256)*a, (__m256)*b, 0xdd);
    *a = (vf)_mm256_permute4x64_pd((__m256d)even, 0xd8);
    *b = (vf)_mm256_permute4x64_pd((__m256d)odd, 0xd8);
#endif
}
#endif

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

/* What says which columns of a chunk are kept: a bit for each. */
typedef uint64_t marks;
INLINE marks marks_of(const job *j, int kind, int whole, const uint8_t *row, int64_t chunk, uint64_t *room) {
    (void)room;
    return mask_bits(j, kind, whole, row, chunk);
}
INLINE marks marks_at(marks m, int column) { return m >> column; }
INLINE vi load_raw(const void *p) { return _mm512_loadu_si512(p); }

INLINE vi fetch(int kind, int dtype, int64_t n, const char **p, marks bits) {
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
#define STEP(dtype) ((dtype) == SECATEUR_F32 ? 8 : 16)
#define PAIRS(dtype) ((dtype) == SECATEUR_I4 || (dtype) == SECATEUR_BF16 ? 16 : 0)
#define FACTOR(dtype) 1.0f

/* For each byte of mask: which packed entry goes to each of 8 columns, negative where none does; the same behind 8 others;
 * the two bytes of each entry.  The two bytes of each column that is kept.  For four bits of 1x4 tiles: the byte that goes to
 * each of 16 columns; the pair of entries of two bytes that goes to each pair of columns.
 */
extern const int8_t secateur_places[256][8], secateur_places_behind[256][8], secateur_pair_places[256][16];
extern const int8_t secateur_kept_places[256][16], secateur_tile_places[16][16];
extern const int32_t secateur_tile_pair_places[16][8];

/* What says which columns of a chunk are kept: a bit for each, read a byte at a time from where they lie, which takes fewer
 * instructions than taking a word of them apart. */
typedef const uint8_t *marks;
INLINE marks marks_of(const job *j, int kind, int whole, const uint8_t *row, int64_t chunk, uint64_t *room) {
    if (whole && kind != SECATEUR_TILE4) return row + chunk * (CHUNK / 8);
    *room = mask_bits(j, kind, whole, row, chunk);
    return (marks)room;
}
INLINE marks marks_at(marks m, int column) { return m + column / 8; }
INLINE vi load_raw(const void *p) { return _mm256_loadu_si256((const vi *)p); }

/* One load for all uses, not one for each (dense bfloat16 in the cache, four rows of x: 8% less time). */
INLINE vi in_register(vi v) {
    __asm__("" : "+x"(v));
    return v;
}

/* 16 bytes from each of two places. */
INLINE vi both(const void *low, const void *high) {
    const __m128i first = _mm_loadu_si128((const __m128i *)low), second = _mm_loadu_si128((const __m128i *)high);
    return _mm256_inserti128_si256(_mm256_castsi128_si256(first), second, 1);
}

/* The next 16 columns of bfloat16. */
INLINE vi fetch_bf16(int kind, int64_t n, const char **p, marks bytes) {
    const char *from = *p;
    if (kind == SECATEUR_DENSE) {
        *p += 32;
        return in_register(load_raw(from));
    }
    const uint64_t low = bytes[0], high = bytes[1];
    if (kind == SECATEUR_TILE4) {
        const uint64_t tiles = _pext_u64(low | high << 8, 0x1111);
        const vi places = _mm256_loadu_si256((const vi *)secateur_tile_pair_places[tiles]);
        *p += 8 * __builtin_popcountll(tiles);
        const vi v = _mm256_permutevar8x32_epi32(_mm256_loadu_si256((const vi *)from), places);
        return _mm256_andnot_si256(_mm256_srai_epi32(places, 31), v);
    }
    const vi places = both(secateur_pair_places[low], secateur_pair_places[high]);
    if (kind == SECATEUR_NM && n <= 2) { /* 16 bytes hold all 16 columns' */
        const vi behind = _mm256_inserti128_si256(_mm256_setzero_si256(), _mm_set1_epi8((char)(4 * n)), 1);
        *p += 8 * n;
        const vi v = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)from));
        return _mm256_shuffle_epi8(v, _mm256_add_epi8(places, behind));
    }
    const char *second = from + (kind == SECATEUR_NM ? 4 * n : 2 * __builtin_popcountll(low));
    *p = second + (kind == SECATEUR_NM ? 4 * n : 2 * __builtin_popcountll(high));
    return _mm256_shuffle_epi8(both(from, second), places);
}

/* 8 bytes from each of two places. */
INLINE __m128i halves(const void *low, const void *high) {
    return (__m128i)_mm_loadh_pd((__m128d)_mm_loadl_epi64((const __m128i *)low), (const double *)high);
}

/* The next 16 columns of int8, as words of 16 bits. */
INLINE vi fetch_i8(int kind, int64_t n, const char **p, uint64_t bits) {
    const uint64_t low = bits & 0xff, high = bits >> 8 & 0xff;
    const char *from = *p;
    __m128i v = _mm_loadu_si128((const __m128i *)from), places;
    if (kind == SECATEUR_DENSE) {
        *p += 16;
        return _mm256_cvtepi8_epi16(v);
    }
    if (kind == SECATEUR_TILE4) {
        const uint64_t tiles = _pext_u64(bits, 0x1111);
        places = _mm_loadu_si128((const __m128i *)secateur_tile_places[tiles]);
        *p += 4 * __builtin_popcountll(tiles);
    } else if (kind == SECATEUR_NM) {
        const __m128i behind = _mm_set_epi64x(2 * n * 0x0101010101010101, 0);
        places = _mm_add_epi8(halves(secateur_places[low], secateur_places[high]), behind);
        *p += 4 * n;
    } else {
        const char *second = from + __builtin_popcountll(low);
        v = halves(from, second);
        places = halves(secateur_places[low], secateur_places_behind[high]);
        *p = second + __builtin_popcountll(high);
    }
    return _mm256_cvtepi8_epi16(_mm_shuffle_epi8(v, places));
}

INLINE vi fetch(int kind, int dtype, int64_t n, const char **p, marks bytes) {
    if (dtype == SECATEUR_BF16) return fetch_bf16(kind, n, p, bytes);
    if (dtype == SECATEUR_I8) return fetch_i8(kind, n, p, kind == SECATEUR_DENSE ? 0 : bytes[0] | (uint64_t)bytes[1] << 8);
    if (dtype == SECATEUR_I4) {
        const vi nibbles = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)*p));
        *p += 8;
        return nibbles;
    }
    const vi v = _mm256_loadu_si256((const vi *)*p);
    if (kind == SECATEUR_DENSE) {
        *p += 4 * 8;
        return v;
    }
    const uint64_t byte = bytes[0];
    *p += 4 * (kind == SECATEUR_NM ? 2 * n : __builtin_popcountll(byte));
    const vi places = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)secateur_places[byte]));
    return _mm256_andnot_si256(_mm256_srai_epi32(places, 31), _mm256_permutevar8x32_epi32(v, places));
}

INLINE vf floats(int dtype, vi raw, int v) {
    if (dtype == SECATEUR_F32) return (vf)raw;
    if (dtype == SECATEUR_I8) {
        const __m128i half = v ? _mm256_extracti128_si256(raw, 1) : _mm256_castsi256_si128(raw);
        return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(half));
    }
    if (dtype == SECATEUR_BF16)
        return (vf)(v ? _mm256_and_si256(raw, _mm256_set1_epi32((int)0xffff0000)) : _mm256_slli_epi32(raw, 16));
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
