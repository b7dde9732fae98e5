/* WAY_DIGITS where there is AVX2 only: whole-number weights, one column of x, in integers.  x becomes whole numbers of 15 or
 * 29 bits, as many as make it as good as it was given (whole.h), in D words of 16 bits; VPMADDWD multiplies a word of 16
 * columns at once.  Sums are exact: without groups over 4,096 columns in 32 bits, then in 64; with groups over a chunk.
 */
#ifndef SECATEUR_WORDS_H
#define SECATEUR_WORDS_H

#include "dot.h"

#if SECATEUR_PATH == 1

#define FEW_CHUNKS 64 /* of 8 products of 2^14 by 2^7 in each lane: as many fit a sum of 32 bits */

/* The sums of a chunk of a row, `p` its values, for each word of x. */
INLINE void words_sums(const int kind, const int dtype, const int D, int64_t n, const char **p, uint64_t bits, const int16_t *x,
                       const int width, vi (*sums)[2]) {
    vi w[4];
    if (dtype == SECATEUR_I4) { /* the k-th: columns k, k + 4, ... */
        const vi low = _mm256_set1_epi16(15), v = _mm256_loadu_si256((const __m256i *)*p);
        w[0] = _mm256_and_si256(v, low);
        w[1] = _mm256_and_si256(_mm256_srli_epi16(v, 4), low);
        w[2] = _mm256_and_si256(_mm256_srli_epi16(v, 8), low);
        w[3] = _mm256_srli_epi16(v, 12);
        *p += 32;
    } else {
#pragma GCC unroll 4
        for (int q = 0; q < 4; q++) w[q] = fetch_i8(kind, n, p, bits >> 16 * q);
    }
#pragma GCC unroll 2
    for (int d = 0; d < D; d++) {
        vi m[4];
#pragma GCC unroll 4
        for (int q = 0; q < 4; q++) m[q] = _mm256_madd_epi16(w[q], _mm256_loadu_si256((const __m256i *)(x + d * CHUNK + 16 * q)));
        sums[d][0] = _mm256_add_epi32(m[0], m[1]);
        sums[d][1] = _mm256_add_epi32(m[2], m[3]);
        if (width == CHUNK) sums[d][0] = _mm256_add_epi32(sums[d][0], sums[d][1]);
    }
}

/* A chunk of R rows; `whole`: none of its columns is behind the last. */
INLINE void words_chunk(const job *j, const int kind, const int dtype, const int grouped, const int D, const int R,
                        const int whole, int64_t c, const char **p, const uint8_t **mask, const char *const *scales,
                        const int16_t *x, vi (*acc)[2], vf (*total)[2]) {
    const int width = grouped == NARROW_GROUPS && dtype != SECATEUR_I4 ? 32 : CHUNK, shift = j->group_shift - 1;
    const int32_t *offset = j->offsets + c * D * VL;
    char tail[CHUNK];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
        const uint64_t bits = kind == SECATEUR_DENSE ? 0 : mask_bits(j, kind, whole, mask[r], c);
        vi sums[2][2];
        if (kind == SECATEUR_DENSE && !whole) p[r] = end_of_row(j, dtype, p[r], tail);
        ask(kind, SECATEUR_I8, R, p[r]);
        words_sums(kind, dtype, D, j->m->n, &p[r], bits, x, width, sums);
        if (!grouped) {
#pragma GCC unroll 2
            for (int d = 0; d < D; d++) acc[r][d] = _mm256_add_epi32(acc[r][d], sums[d][0]);
            continue;
        }
        const int second = whole || 2 * c * 32 + 32 < j->m->cols;
        vf scale[2];
        if (grouped == WIDE_GROUPS) {
            scale[0] = all(load_either(scales[r], j->m->scale_dtype, c >> shift));
        } else {
            scale[0] = all(load_either(scales[r], j->m->scale_dtype, 2 * c));
            scale[1] = second ? all(load_either(scales[r], j->m->scale_dtype, 2 * c + 1)) : all(0);
            if (dtype == SECATEUR_I4) scale[0] = (vf)_mm256_blend_ps((__m256)scale[0], (__m256)scale[1], 0xf0);
        }
#pragma GCC unroll 2
        for (int d = 0; d < D; d++) {
            if (dtype == SECATEUR_I4)
                sums[d][0] = _mm256_sub_epi32(sums[d][0], _mm256_loadu_si256((const __m256i *)(offset + d * VL)));
            total[r][d] = muladd((vf)_mm256_cvtepi32_ps(sums[d][0]), scale[0], total[r][d]);
            if (width == 32) total[r][d] = muladd((vf)_mm256_cvtepi32_ps(sums[d][1]), scale[1], total[r][d]);
        }
    }
}

/* The entry `at` columns behind p, in a dense row. */
INLINE int64_t entry_at(int dtype, const char *p, int64_t at) {
    if (dtype == SECATEUR_I4) return ((uint8_t)p[at / 2] >> 4 * (at % 2) & 15) - 8;
    return (int8_t)p[at];
}

/* What the large entries of chunk c add to R dense rows. */
INLINE void add_large(const job *j, const int kind, const int dtype, const int grouped, const int R, int64_t c,
                      const char *const *p, const int64_t *row, const large_entry **large, int64_t (*sums)[2], double *scaled) {
    for (; kind == SECATEUR_DENSE && (*large)->chunk == c; ++*large)
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const int64_t product = entry_at(dtype, p[r], (*large)->at) * (*large)->whole;
            if (grouped) scaled[r] += (double)product * scale_at(j, row[r], 2 * c + (*large)->at / 32);
            else sums[r][0] += product;
        }
}

INLINE int64_t sum_words(vi v) {
    int32_t lane[VL];
    int64_t total = 0;
    _mm256_storeu_si256((__m256i *)lane, v);
    for (int k = 0; k < VL; k++) total += lane[k];
    return total;
}

INLINE void words_rows(const job *j, const int kind, const int dtype, const int grouped, const int D, const int R,
                       const int64_t *row, char *scratch) {
    const int64_t full = j->m->cols / CHUNK;
    const char *p[STREAMS], *scales[STREAMS];
    const uint8_t *mask[STREAMS];
    const int16_t *x = (const int16_t *)j->digits;
    vi acc[STREAMS][2];
    vf total[STREAMS][2];
    int64_t sums[STREAMS][2] = {{0}};
    double larger[STREAMS] = {0}; /* with groups: what large entries add */
    const large_entry *large = j->large;
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
        p[r] = row_values(j, kind, dtype, row[r], scratch + r * (j->scratch_bytes / STREAMS));
        mask[r] = kind == SECATEUR_DENSE ? 0 : j->m->mask + row[r] * j->mask_stride;
        if (grouped) scales[r] = (const char *)j->m->scales + row[r] * j->groups * (j->m->scale_dtype == SECATEUR_F32 ? 4 : 2);
#pragma GCC unroll 2
        for (int d = 0; d < 2; d++) {
            acc[r][d] = _mm256_setzero_si256();
            total[r][d] = all(0);
        }
    }
    for (int64_t c = 0; c < j->chunks;) {
        const int64_t last = grouped || c + FEW_CHUNKS > full ? full : c + FEW_CHUNKS;
        for (; c < last; c++, x += D * CHUNK) {
            add_large(j, kind, dtype, grouped, R, c, p, row, &large, sums, larger);
            words_chunk(j, kind, dtype, grouped, D, R, 1, c, p, mask, scales, x, acc, total);
        }
        if (c == full && full < j->chunks) {
            add_large(j, kind, dtype, grouped, R, c, p, row, &large, sums, larger);
            words_chunk(j, kind, dtype, grouped, D, R, 0, c++, p, mask, scales, x, acc, total);
        }
        if (grouped) break;
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 2
            for (int d = 0; d < D; d++) {
                sums[r][d] += sum_words(acc[r][d]);
                acc[r][d] = _mm256_setzero_si256();
            }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
        double value = (double)(sums[r][0] + sums[r][1] * WORD);
        if (grouped) value = larger[r] + sum(total[r][0]) + (D > 1 ? (double)sum(total[r][1]) * WORD : 0);
        else value *= scale_at(j, row[r], 0);
        put(j, 0, row[r], (float)(value * j->unit));
    }
}

INLINE void words_streams(const job *j, const int kind, const int dtype, const int grouped, const int D, const int R,
                          int64_t first, int64_t last, char *scratch) {
    for (int64_t i = first; i < first + (last - first + R - 1) / R; i++) {
        int64_t row[STREAMS];
        rows_of_streams(first, last, i, R, row);
        words_rows(j, kind, dtype, grouped, D, R, row, scratch);
    }
}

INLINE void words_range(const job *j, const int kind, const int dtype, const int grouped, const int D, int64_t first,
                        int64_t last, char *scratch) {
    if (in_many(j, kind, D * CHUNK * 2, 8)) words_streams(j, kind, dtype, grouped, D, STREAMS, first, last, scratch);
    else words_streams(j, kind, dtype, grouped, D, STREAMS_OF(kind), first, last, scratch);
}

#endif
#endif
