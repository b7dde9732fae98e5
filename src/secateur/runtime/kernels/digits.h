/* WAY_DIGITS: whole-number weights, one column of x, in integers.  x becomes whole numbers of 15, 23 or 31 bits, as many as
 * make it as good as it was given (whole.h), split in D signed digits of 8 bits; VPDPBUSD multiplies a digit of 64
 * columns at once, and the sums are exact, so that their order does not matter.
 *
 * VPDPBUSD takes one side unsigned: the weights, plus 128 (128 alone where cut); 128 times the sum of x's digits is what
 * the sums start from, with a minus (job.bias).
 */
#ifndef SECATEUR_DIGITS_H
#define SECATEUR_DIGITS_H

#include "dot.h"

#if SECATEUR_PATH == 2

/* acc += w digit, in place: of the intrinsic GCC 12 makes two moves besides. */
INLINE void add_products(__m512i *acc, __m512i w, __m512i digit) {
#ifdef __AVX512VNNI__
    __asm__("vpdpbusd %2, %1, %0" : "+v"(*acc) : "v"(w), "v"(digit));
#else /* tests/runtime/avx512_in_c.h */
    *acc = _mm512_dpbusd_epi32(*acc, w, digit);
#endif
}

/* A chunk of R rows; `whole`: none of its columns is behind the last. */
INLINE void digits_chunk(const job *j, const int kind, const int D, const int R, const int whole, int64_t c, const char **p,
                         const uint8_t **mask, const int8_t *x, __m512i (*acc)[DIGITS]) {
    const __m512i offset = _mm512_set1_epi8(-128);
    __m512i digit[DIGITS];
    char tail[CHUNK];
#pragma GCC unroll 4
    for (int d = 0; d < D; d++) digit[d] = in_register(_mm512_loadu_si512(x + d * CHUNK));
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
        const char *from = kind == SECATEUR_DENSE && !whole ? end_of_row(j, SECATEUR_I8, p[r], tail) : p[r];
        __m512i w = _mm512_xor_si512(_mm512_loadu_si512(from), offset);
        if (kind == SECATEUR_DENSE) {
            p[r] += CHUNK;
        } else {
            const uint64_t bits = mask_bits(j, kind, whole, mask[r], c);
            ask(kind, SECATEUR_I8, R, p[r]);
            w = _mm512_mask_expand_epi8(offset, bits, w);
            p[r] += kind == SECATEUR_NM ? 16 * j->m->n : __builtin_popcountll(bits);
        }
#pragma GCC unroll 4
        for (int d = 0; d < D; d++) add_products(&acc[r][d], w, digit[d]);
    }
}

INLINE void digits_rows(const job *j, const int kind, const int D, const int R, const int64_t *row, char *scratch) {
    const int64_t full = j->m->cols / CHUNK;
    const char *p[STREAMS];
    const uint8_t *mask[STREAMS];
    __m512i acc[STREAMS][DIGITS];
    const int8_t *x = j->digits;
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
        p[r] = row_values(j, kind, SECATEUR_I8, row[r], scratch + r * (j->scratch_bytes / STREAMS));
        mask[r] = kind == SECATEUR_DENSE ? 0 : j->m->mask + row[r] * j->mask_stride;
#pragma GCC unroll 4
        for (int d = 0; d < DIGITS; d++) acc[r][d] = d < D ? _mm512_loadu_si512(j->bias[d]) : _mm512_setzero_si512();
    }
#pragma GCC unroll 2 /* 2% less time on sparse rows */
    for (int64_t c = 0; c < full; c++, x += D * CHUNK) digits_chunk(j, kind, D, R, 1, c, p, mask, x, acc);
    if (full < j->chunks) digits_chunk(j, kind, D, R, 0, full, p, mask, x, acc);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
        __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(acc[r][0], acc[r][1]), _mm512_unpackhi_epi32(acc[r][0], acc[r][1]));
        __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(acc[r][2], acc[r][3]), _mm512_unpackhi_epi32(acc[r][2], acc[r][3]));
        a = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
        const __m256i h = _mm256_add_epi32(_mm512_castsi512_si256(a), _mm512_extracti64x4_epi64(a, 1));
        int32_t s[4];
        _mm_storeu_si128((__m128i *)s, _mm_add_epi32(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1)));
        const int64_t total = (((int64_t)s[3] * 256 + s[2]) * 256 + s[1]) * 256 + s[0];
        put(j, 0, row[r], (float)((double)total * j->unit * scale_at(j, row[r], 0)));
    }
}

INLINE void digits_streams(const job *j, const int kind, const int D, const int R, int64_t first, int64_t last, char *scratch) {
    for (int64_t i = first; i < first + (last - first + R - 1) / R; i++) {
        int64_t row[STREAMS];
        rows_of_streams(first, last, i, R, row);
        digits_rows(j, kind, D, R, row, scratch);
    }
}

INLINE void digits_range(const job *j, const int kind, const int D, int64_t first, int64_t last, char *scratch) {
    const int many = D < DIGITS ? STREAMS : 4; /* the sums of six rows in four digits do not fit the registers */
    if (in_many(j, kind, D * CHUNK, 12)) digits_streams(j, kind, D, many, first, last, scratch);
    else digits_streams(j, kind, D, STREAMS_OF(kind), first, last, scratch);
}

/* The scales of 128 columns, `count` of them (1, 2 or 4), each in the lanes of its columns (8 a lane). */
INLINE __m512 scales_of(const char *from, int64_t dtype, int64_t count) {
    const __m512i lane = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    const __m512i pick = count == 4 ? lane : _mm512_srli_epi32(lane, 1);
    __m128i some = _mm_setzero_si128();
    if (count == 1) return _mm512_set1_ps(load_either(from, dtype, 0));
    if (dtype == SECATEUR_F32 && count == 4) memcpy(&some, from, 16);
    else if (dtype == SECATEUR_F32 || count == 4) memcpy(&some, from, 8);
    else memcpy(&some, from, 4);
    if (dtype != SECATEUR_F32) some = _mm_slli_epi32(_mm_cvtepu16_epi32(some), 16);
    return _mm512_permutexvar_ps(pick, _mm512_castps128_ps512(_mm_castsi128_ps(some)));
}

#define ROWS4 STREAMS_OF(SECATEUR_DENSE)

/* int4 in groups: 128 columns at a time, the even ones in the low halves of 64 bytes.  A group's sums for the two upper
 * and the two lower digits (D = 2: there are two) are put together (weights 0 to 15: they fit 32 bits), 8 times x's digits
 * taken off (job.offsets), made floats and scaled.  `whole`: none of the columns is behind the last.
 */
INLINE void digits4_chunk(const job *j, const int D, const int whole, int64_t c, const char **p, const char *const *scales,
                          const int8_t *x, const int32_t *offset, __m512 *acc) {
    const __m512i low = _mm512_set1_epi8(15);
    const int64_t count = j->m->group >= 128 ? 1 : 128 / j->m->group, width = j->m->scale_dtype == SECATEUR_F32 ? 4 : 2;
    const int64_t at = j->group_shift >= 2 ? c >> (j->group_shift - 2) : c * count;
    char tail[CHUNK], few[16];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS4; r++) {
        const char *from = p[r], *scaled = scales[r] + at * width;
        if (!whole) {
            memset(tail, 0x88, sizeof tail);
            memcpy(tail, from, (size_t)(j->m->cols % 128) / 2);
            memset(few, 0, sizeof few);
            memcpy(few, scaled, (size_t)((j->groups - at) * width));
            from = tail;
            scaled = few;
        }
        const __m512 scale = scales_of(scaled, j->m->scale_dtype, count);
        const __m512i v = _mm512_loadu_si512(from);
        p[r] += CHUNK;
        const __m512i even = _mm512_and_si512(v, low), odd = _mm512_and_si512(_mm512_srli_epi16(v, 4), low);
#pragma GCC unroll 2
        for (int half = 0; half < D / 2; half++) { /* the lower two digits, the upper two */
            const int8_t *digit = x + half * 4 * CHUNK;
            __m512i t = _mm512_dpbusd_epi32(_mm512_setzero_si512(), even, _mm512_loadu_si512(digit + 2 * CHUNK));
            t = _mm512_dpbusd_epi32(t, odd, _mm512_loadu_si512(digit + 3 * CHUNK));
            t = _mm512_slli_epi32(t, 8);
            t = _mm512_dpbusd_epi32(t, even, _mm512_loadu_si512(digit));
            t = _mm512_dpbusd_epi32(t, odd, _mm512_loadu_si512(digit + CHUNK));
            t = _mm512_sub_epi32(t, _mm512_loadu_si512(offset + 16 * half));
            const __m512 step = half ? _mm512_mul_ps(scale, _mm512_set1_ps(65536)) : scale;
            acc[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(t), step, acc[r]);
        }
    }
}

INLINE void digits4_rows(const job *j, const int D, const int64_t *row, char *scratch) {
    const int64_t full = j->m->cols / 128, width = j->m->scale_dtype == SECATEUR_F32 ? 4 : 2;
    const char *p[ROWS4], *scales[ROWS4];
    __m512 acc[ROWS4];
    const int8_t *x = j->digits;
    const int32_t *offset = j->offsets;
#pragma GCC unroll 4
    for (int r = 0; r < ROWS4; r++) {
        p[r] = row_values(j, SECATEUR_DENSE, SECATEUR_I4, row[r], scratch + r * (j->scratch_bytes / STREAMS));
        scales[r] = (const char *)j->m->scales + row[r] * j->groups * width;
        acc[r] = _mm512_setzero_ps();
    }
    for (int64_t c = 0; c < full; c++, x += 2 * D * CHUNK, offset += 8 * D)
        digits4_chunk(j, D, 1, c, p, scales, x, offset, acc);
    if (full * 128 < j->m->cols) digits4_chunk(j, D, 0, full, p, scales, x, offset, acc);
#pragma GCC unroll 4
    for (int r = 0; r < ROWS4; r++) put(j, 0, row[r], (float)((double)sum((vf)acc[r]) * j->unit));
}

INLINE void digits4_range(const job *j, const int D, int64_t first, int64_t last, char *scratch) {
    for (int64_t i = first; i < first + (last - first + ROWS4 - 1) / ROWS4; i++) {
        int64_t row[ROWS4];
        rows_of_streams(first, last, i, ROWS4, row);
        digits4_rows(j, D, row, scratch);
    }
}

#endif
#endif
