/* WAY_DOT: R rows of W, expanded in registers, times B columns of x, by dot products.  x must be finite where an entry
 * may be cut: there a zero is multiplied.  x is laid out [chunks][B][CHUNK] for each group of B columns.
 *
 * Two streams of rows: rows `first + i` and `middle + i` go together, so that each stream runs through memory in order
 * and asks ahead for what it will need; rows next to each other would restart the processor's own look-ahead at each.
 */
#ifndef SECATEUR_DOT_H
#define SECATEUR_DOT_H

#include "simd.h"

#if SECATEUR_PATH

#define ROWS 2
#define NARROW_GROUPS 1 /* 32 columns share a scale */
#define WIDE_GROUPS 2   /* 64 or more do */

/* Where a row's packed values can be read with OVERREAD bytes to spare: the values themselves, or a copy. */
INLINE const char *row_values(const job *j, int kind, int dtype, int64_t row, char *scratch) {
    const char *values = j->m->values;
    const int64_t from = row_start(j->m, kind, dtype, row), to = row_start(j->m, kind, dtype, row + 1);
    if (__builtin_expect(values + to + OVERREAD <= j->values_end, 1)) return values + from;
    memcpy(scratch, values + from, (size_t)(to - from));
    memset(scratch + (to - from), 0, OVERREAD);
    return scratch;
}

INLINE void dot_rows(const job *j, const int kind, const int dtype, const int grouped, const int B,
                     const int64_t *row, const float *x, int64_t b0, char *scratch) {
    const int per_step = STEP(dtype) / VL, ways = grouped && B == 1 ? 2 : B == 1 ? 4 : 1;
    const int width = grouped == WIDE_GROUPS ? CHUNK : 32; /* columns that surely share a scale */
    const int64_t n = j->m->n, full = j->m->cols / CHUNK;
    const int shift = j->group_shift - 1;
    const char *p[ROWS], *scales[ROWS];
    const uint8_t *mask[ROWS];
    vf acc[ROWS][8][4];
    char tail[ROWS][CHUNK * 4 + OVERREAD];
    for (int r = 0; r < ROWS; r++) {
        p[r] = row_values(j, kind, dtype, row[r], scratch + r * (j->scratch_bytes / ROWS));
        mask[r] = kind == SECATEUR_DENSE ? 0 : j->m->mask + row[r] * j->mask_stride;
        if (grouped) scales[r] = (const char *)j->m->scales + row[r] * j->groups * (j->m->scale_dtype == SECATEUR_F32 ? 4 : 2);
        for (int b = 0; b < B; b++)
            for (int w = 0; w < ways; w++) acc[r][b][w] = all(0);
    }
    for (int64_t c = 0; c < j->chunks; c++, x += B * CHUNK) {
        uint64_t bits[ROWS];
        float scale[ROWS][2];
        vf part[ROWS] = {all(0), all(0)};
#pragma GCC unroll 2
        for (int r = 0; r < ROWS; r++) {
            if (kind != SECATEUR_DENSE) {
                bits[r] = mask64(j, kind, mask[r], c);
                if ((c & 7) == 0) __builtin_prefetch(mask[r] + c * (kind == SECATEUR_TILE4 ? 2 : 8) + AHEAD / 4);
            } else if (__builtin_expect(c == full, 0)) { /* what follows the last column is another row's */
                const size_t left = (size_t)((j->m->cols - c * CHUNK) * entry_bytes(dtype)) / (dtype == SECATEUR_I4 ? 2 : 1);
                memset(tail[r], dtype == SECATEUR_I4 ? 0x88 : 0, sizeof tail[r]);
                memcpy(tail[r], p[r], left);
                p[r] = tail[r];
            }
            if (grouped == WIDE_GROUPS) {
                scale[r][0] = scale[r][1] = load_either(scales[r], j->m->scale_dtype, c >> shift);
            } else if (grouped) {
                scale[r][0] = load_either(scales[r], j->m->scale_dtype, 2 * c);
                scale[r][1] = 2 * c * 32 + 32 < j->m->cols ? load_either(scales[r], j->m->scale_dtype, 2 * c + 1) : 0;
            }
        }
        vi raw[ROWS];
#pragma GCC unroll 8
        for (int at = 0; at < CHUNK / VL; at++) {
            const int v = at % per_step, done = at / per_step * STEP(dtype), half = at * VL / 32;
            vf f[ROWS];
#pragma GCC unroll 2
            for (int r = 0; r < ROWS; r++) {
                if (v == 0) {
                    raw[r] = fetch(kind, dtype, n, &p[r], kind == SECATEUR_DENSE ? 0 : bits[r] >> done);
                    if (done % 16 == 0) __builtin_prefetch(p[r] + AHEAD);
                }
                f[r] = floats(dtype, raw[r], v);
                if (grouped && B > 1) f[r] *= all(scale[r][half]);
            }
#pragma GCC unroll 8
            for (int b = 0; b < B; b++) {
                const vf xv = load(x + b * CHUNK + at * VL);
#pragma GCC unroll 2
                for (int r = 0; r < ROWS; r++) {
                    if (!grouped || B > 1) {
                        acc[r][b][at % ways] = muladd(f[r], xv, acc[r][b][at % ways]);
                        continue;
                    }
                    if (at * VL % width == 0) part[r] = f[r] * xv;
                    else part[r] = muladd(f[r], xv, part[r]);
                    if ((at + 1) * VL % width == 0) acc[r][0][half] = muladd(part[r], all(scale[r][half]), acc[r][0][half]);
                }
            }
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int b = 0; b < B; b++) {
            vf v = acc[r][b][0];
            if (ways > 1) v += acc[r][b][1];
            if (ways > 2) v += acc[r][b][2] + acc[r][b][3];
            float value = sum(v) * FACTOR(dtype);
            if (!grouped && dtype >= SECATEUR_I8) value *= scale_at(j, row[r], 0);
            put(j, b0 + b, row[r], value);
        }
}

/* All groups of columns over a range of rows.  An odd last row goes with itself. */
INLINE void dot_range(const job *j, const int kind, const int dtype, const int grouped, int64_t first, int64_t last,
                      char *scratch) {
    const int64_t half = (last - first + 1) / 2;
    for (int64_t i = first; i < first + half; i++) {
        const int64_t row[ROWS] = {i, i + half < last ? i + half : i};
        const float *x = j->x;
        for (int64_t b = 0; b < j->batch;) {
            const int taken = group_of(j->batch - b);
            if (taken == 8) dot_rows(j, kind, dtype, grouped, 8, row, x, b, scratch);
            else if (taken == 4) dot_rows(j, kind, dtype, grouped, 4, row, x, b, scratch);
            else dot_rows(j, kind, dtype, grouped, 1, row, x, b, scratch);
            b += taken;
            x += taken * j->chunks * CHUNK;
        }
    }
}

#endif
#endif
