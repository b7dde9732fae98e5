/* WAY_PAIRS: bfloat16 weights times bfloat16 x.  VDPBF16PS multiplies 32 columns at once and adds the products, which are
 * exact in float32, to sums in float32; it takes numbers below 2^-126 for zero.  Streams, expanded rows and the layout of x
 * are WAY_DOT's (dot.h), x in bfloat16.
 */
#ifndef SECATEUR_PAIRS_H
#define SECATEUR_PAIRS_H

#include "dot.h"

#if SECATEUR_PATH == 2

#define WITH_PAIRS __attribute__((target("avx512bf16")))
#define HALF 32 /* columns that an instruction takes */

/* A chunk of R rows times B columns of x, `x` its first; `whole`: none of its columns is behind the last. */
WITH_PAIRS INLINE void pairs_chunk(const job *j, const int kind, const int B, const int R, const int whole, int64_t c,
                                   const char **p, const uint8_t **mask, const uint16_t *x, __m512 (*acc)[8][2]) {
    const char *from[STREAMS][2];
    uint64_t bits[STREAMS];
    char tail[STREAMS][CHUNK * 2];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
        from[r][0] = p[r];
        if (kind == SECATEUR_DENSE) {
            bits[r] = 0;
            if (!whole) from[r][0] = end_of_row(j, SECATEUR_BF16, p[r], tail[r]);
            from[r][1] = from[r][0] + HALF * 2;
            p[r] += CHUNK * 2;
            continue;
        }
        bits[r] = mask_bits(j, kind, whole, mask[r], c);
        ask(kind, SECATEUR_BF16, R, p[r]);
        from[r][1] = p[r] + 2 * (kind == SECATEUR_NM ? 8 * j->m->n : __builtin_popcountll(bits[r] & 0xffffffff));
        p[r] += 2 * (kind == SECATEUR_NM ? 16 * j->m->n : __builtin_popcountll(bits[r]));
    }
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
        __m512i w[STREAMS];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) w[r] = spread(kind, SECATEUR_BF16, from[r][half], bits[r] >> HALF * half);
#pragma GCC unroll 8
        for (int b = 0; b < B; b++) {
            const __m512bh xs = (__m512bh)_mm512_loadu_si512(x + b * CHUNK + HALF * half);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                __m512 *to = &acc[r][b][B == 1 ? half : 0];
                *to = _mm512_dpbf16_ps(*to, (__m512bh)w[r], xs);
            }
        }
    }
}

WITH_PAIRS INLINE void pairs_rows(const job *j, const int kind, const int B, const int R, const int64_t *row,
                                  const uint16_t *x, int64_t b0, char *scratch) {
    const int64_t full = j->m->cols / CHUNK;
    const char *p[STREAMS];
    const uint8_t *mask[STREAMS];
    __m512 acc[STREAMS][8][2];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
        p[r] = row_values(j, kind, SECATEUR_BF16, row[r], scratch + r * (j->scratch_bytes / STREAMS));
        mask[r] = kind == SECATEUR_DENSE ? 0 : j->m->mask + row[r] * j->mask_stride;
#pragma GCC unroll 8
        for (int b = 0; b < B; b++) acc[r][b][0] = acc[r][b][1] = _mm512_setzero_ps();
    }
    for (int64_t c = 0; c < full; c++, x += B * CHUNK) pairs_chunk(j, kind, B, R, 1, c, p, mask, x, acc);
    if (full < j->chunks) pairs_chunk(j, kind, B, R, 0, full, p, mask, x, acc);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int b = 0; b < B; b++)
            put(j, b0 + b, row[r], sum((vf)(B == 1 ? _mm512_add_ps(acc[r][b][0], acc[r][b][1]) : acc[r][b][0])));
}

/* All columns of x over a range of rows, R at a time. */
WITH_PAIRS INLINE void pairs_columns(const job *j, const int kind, const int R, int64_t first, int64_t last, char *scratch) {
    for (int64_t i = first; i < first + (last - first + R - 1) / R; i++) {
        int64_t row[STREAMS];
        const uint16_t *x = (const uint16_t *)j->x;
        rows_of_streams(first, last, i, R, row);
        for (int64_t b = 0; b < j->batch;) {
            const int taken = group_of(j->batch - b);
            if (R == 2 && taken == 8) pairs_rows(j, kind, 8, 2, row, x, b, scratch);
            else if (R == 2 && taken == 4) pairs_rows(j, kind, 4, 2, row, x, b, scratch);
            else pairs_rows(j, kind, 1, R, row, x, b, scratch);
            b += taken;
            x += taken * j->chunks * CHUNK;
        }
    }
}

WITH_PAIRS INLINE void pairs_range(const job *j, const int kind, int64_t first, int64_t last, char *scratch) {
    if (j->batch == 1 && in_many(j, kind, CHUNK * 2, 16)) pairs_columns(j, kind, STREAMS, first, last, scratch);
    else if (j->batch == 1) pairs_columns(j, kind, STREAMS_OF(kind), first, last, scratch);
    else pairs_columns(j, kind, 2, first, last, scratch);
}

#elif SECATEUR_PATH == 1

#define WITH_PAIRS

/* AVX2 has no such instruction: both are taken apart in registers.  What is gained is half of the bytes of x, which comes
 * from the level-2 cache again for every few rows of two thousand columns and more (docs/faster.md). */
INLINE void pairs_range(const job *j, const int kind, int64_t first, int64_t last, char *scratch) {
    dot_columns(j, kind, SECATEUR_BF16, SECATEUR_BF16, 0, STREAMS_OF(kind), first, last, scratch);
}

#endif
#endif
