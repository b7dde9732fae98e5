/* WAY_DOT: R rows of W, expanded in registers, times B columns of x, by dot products.  x must be finite where an entry
 * may be cut: there a zero is multiplied.  x is laid out [chunks][B][CHUNK] for each group of B columns.
 *
 * Streams of rows: row i of each quarter of the range go together (of each half, where W is sparse or x has more columns),
 * so that each stream runs through memory in order; rows next to each other would restart the processor's look-ahead at
 * each.  Four dense streams without a word are as fast as memory is; sparse ones, whose loads lie across cache lines, ask
 * ahead (how many and how far: by measurement on Zen 4).  x is read again for each R rows: where it is so long that the
 * level-1 cache does not keep it beside them, six sparse streams that ask less far take a quarter less time.
 */
#ifndef SECATEUR_DOT_H
#define SECATEUR_DOT_H

#include "simd.h"

#if SECATEUR_PATH

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

/* What is left of a dense row from p on, in `tail`, zeros behind it: what follows in memory is another row's. */
INLINE const char *end_of_row(const job *j, int dtype, const char *p, char *tail) {
    const int64_t left = j->m->cols % CHUNK * entry_bytes(dtype) / (dtype == SECATEUR_I4 ? 2 : 1);
    memset(tail, dtype == SECATEUR_I4 ? 0x88 : 0, (size_t)(CHUNK * entry_bytes(dtype)));
    memcpy(tail, p, (size_t)left);
    return tail;
}

#define STREAMS_OF(kind) ((kind) == SECATEUR_DENSE ? 4 : 2) /* for one column of x */

/* Whether rows are read STREAMS at a time because x, `bytes` of it a chunk, is too long for fewer (`most` KB were not: Zen 4,
 * 32 KB of level 1): sparse rows, with AVX2 dense ones.
 */
INLINE int in_many(const job *j, int kind, int64_t bytes, int64_t most) {
    return (kind == SECATEUR_DENSE) == (SECATEUR_PATH == 1) && j->chunks * bytes > most << 10;
}

/* Ask ahead for what a chunk of a sparse row takes of its values, about half of them kept; for its mask, eight bytes, the
 * processor does it unasked. */
INLINE void ask(int kind, int dtype, const int R, const char *values) {
    const char *ahead = values + (R > 2 ? NEAR : AHEAD);
    if (kind == SECATEUR_DENSE) return;
#pragma GCC unroll 2
    for (int at = 0; at < CHUNK / 2 * entry_bytes(dtype); at += 64) __builtin_prefetch(ahead + at);
}

/* Row i of the range's streams; where the last one has ended, row i again.  Each begins somewhat later in its part than the
 * one before and comes round: streams at the same place of parts of 2^n bytes get in each other's way in memory.
 */
INLINE void rows_of_streams(int64_t first, int64_t last, int64_t i, const int R, int64_t *row) {
    const int64_t part = (last - first + R - 1) / R;
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
        int64_t at = i + r * (part * 2 / (2 * R + 1));
        if (at >= first + part) at -= part;
        row[r] = at + r * part < last ? at + r * part : i;
    }
}

/* A chunk of R rows times one column of x, with AVX2: entries are used row by row as they come, so that all sums stay in the
 * sixteen registers.  Sparse ones wait for their instructions: asking ahead costs more than it gives (5%).  Where x is
 * bfloat16 its columns are taken apart as those of W are.
 */
INLINE void dot_one(const int kind, const int dtype, const int x_dtype, const int R, int64_t n, const char **p,
                    const marks *bits, const char *x, vf (*acc)[8][4]) {
    const int per_step = STEP(dtype) / VL, ways = R > 4 ? 1 : R > 2 ? 2 : 4;
#pragma GCC unroll 8
    for (int at = 0; at < CHUNK / VL; at += per_step) {
        vf xv[4];
        if (x_dtype == SECATEUR_BF16) {
            const vi raw = in_register(load_raw(x + 2 * at * VL));
            for (int v = 0; v < per_step; v++) xv[v] = floats(SECATEUR_BF16, raw, v);
        } else {
            for (int v = 0; v < per_step; v++) xv[v] = load((const float *)x + (at + v) * VL);
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const vi raw = fetch(kind, dtype, n, &p[r], marks_at(bits[r], at * VL));
            for (int v = 0; v < per_step; v++)
                acc[r][0][(at + v) % ways] = muladd(floats(dtype, raw, v), xv[v], acc[r][0][(at + v) % ways]);
        }
    }
}

/* A chunk of R rows times B columns of x, `x` its first; `whole`: none of its columns is behind the last.  For one column
 * of x the sums are spread over `ways`, where scales have groups over the chunk's two halves.
 */
INLINE void dot_chunk(const job *j, const int kind, const int dtype, const int x_dtype, const int grouped, const int B,
                      const int R, const int whole, int64_t c, const char **p, const uint8_t **mask,
                      const char *const *scales, const char *x, vf (*acc)[8][4]) {
    const int per_step = STEP(dtype) / VL, ways = B > 1 ? 1 : R == 2 && !grouped ? 4 : 2;
    const int width = grouped == WIDE_GROUPS ? CHUNK : 32; /* columns that surely share a scale */
    const int shift = j->group_shift - 1, one = SECATEUR_PATH == 1 && B == 1 && !grouped;
    uint64_t room[STREAMS];
    marks bits[STREAMS];
    float scale[STREAMS][2];
    vf part[STREAMS];
    vi raw[STREAMS];
    char tail[STREAMS][CHUNK * 4];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
        bits[r] = kind == SECATEUR_DENSE ? 0 : marks_of(j, kind, whole, mask[r], c, &room[r]);
        if (kind == SECATEUR_DENSE && !whole) p[r] = end_of_row(j, dtype, p[r], tail[r]);
        if (!one) ask(kind, dtype, R, p[r]);
        if (grouped == WIDE_GROUPS) {
            scale[r][0] = scale[r][1] = load_either(scales[r], j->m->scale_dtype, c >> shift);
        } else if (grouped) {
            scale[r][0] = load_either(scales[r], j->m->scale_dtype, 2 * c);
            scale[r][1] = whole || 2 * c * 32 + 32 < j->m->cols ? load_either(scales[r], j->m->scale_dtype, 2 * c + 1) : 0;
        }
    }
    if (one) {
        dot_one(kind, dtype, x_dtype, R, j->m->n, p, bits, x, acc);
        return;
    }
#pragma GCC unroll 8
    for (int at = 0; at < CHUNK / VL; at++) {
        const int v = at % per_step, done = at / per_step * STEP(dtype), half = at * VL / 32;
        vf f[STREAMS];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            if (v == 0) raw[r] = fetch(kind, dtype, j->m->n, &p[r], marks_at(bits[r], done));
            f[r] = floats(dtype, raw[r], v);
            if (grouped && B > 1) f[r] *= all(scale[r][half]);
        }
#pragma GCC unroll 8
        for (int b = 0; b < B; b++) {
            const vf xv = load((const float *)x + b * CHUNK + at * VL);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
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

INLINE void dot_rows(const job *j, const int kind, const int dtype, const int x_dtype, const int grouped, const int B,
                     const int R, const int64_t *row, const char *x, int64_t b0, char *scratch) {
    const int64_t full = j->m->cols / CHUNK;
    const char *p[STREAMS], *scales[STREAMS];
    const uint8_t *mask[STREAMS];
    vf acc[STREAMS][8][4];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
        p[r] = row_values(j, kind, dtype, row[r], scratch + r * (j->scratch_bytes / STREAMS));
        mask[r] = kind == SECATEUR_DENSE ? 0 : j->m->mask + row[r] * j->mask_stride;
        if (grouped) scales[r] = (const char *)j->m->scales + row[r] * j->groups * (j->m->scale_dtype == SECATEUR_F32 ? 4 : 2);
#pragma GCC unroll 8
        for (int b = 0; b < B; b++)
#pragma GCC unroll 4
            for (int w = 0; w < 4; w++) acc[r][b][w] = all(0);
    }
    for (int64_t c = 0; c < full; c++, x += B * CHUNK * entry_bytes(x_dtype))
        dot_chunk(j, kind, dtype, x_dtype, grouped, B, R, 1, c, p, mask, scales, x, acc);
    if (full < j->chunks) dot_chunk(j, kind, dtype, x_dtype, grouped, B, R, 0, full, p, mask, scales, x, acc);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int b = 0; b < B; b++) {
            const vf *v = acc[r][b];
            vf total = v[0];
            if (B == 1) total = (v[0] + v[1]) + (v[2] + v[3]);
            float value = sum(total) * FACTOR(dtype);
            if (!grouped && dtype >= SECATEUR_I8) value *= scale_at(j, row[r], 0);
            put(j, b0 + b, row[r], value);
        }
}

/* All columns of x over a range of rows, R at a time. */
INLINE void dot_columns(const job *j, const int kind, const int dtype, const int x_dtype, const int grouped, const int R,
                        int64_t first, int64_t last, char *scratch) {
    for (int64_t i = first; i < first + (last - first + R - 1) / R; i++) {
        int64_t row[STREAMS];
        const char *x = (const char *)j->x;
        rows_of_streams(first, last, i, R, row);
        for (int64_t b = 0; b < j->batch;) {
            const int taken = group_of(j->batch - b);
            if (R == 2 && taken == 8) dot_rows(j, kind, dtype, x_dtype, grouped, 8, 2, row, x, b, scratch);
            else if (R == 2 && taken == 4) dot_rows(j, kind, dtype, x_dtype, grouped, 4, 2, row, x, b, scratch);
            else dot_rows(j, kind, dtype, x_dtype, grouped, 1, R, row, x, b, scratch);
            b += taken;
            x += taken * j->chunks * CHUNK * entry_bytes(x_dtype);
        }
    }
}

INLINE void dot_range(const job *j, const int kind, const int dtype, const int grouped, int64_t first, int64_t last,
                      char *scratch) {
    const int x = SECATEUR_F32, many = j->batch == 1 && in_many(j, kind, CHUNK * 4, SECATEUR_PATH == 1 ? 8 : 16);
    if (many) dot_columns(j, kind, dtype, x, grouped, STREAMS, first, last, scratch);
    else if (j->batch == 1) dot_columns(j, kind, dtype, x, grouped, STREAMS_OF(kind), first, last, scratch);
    else dot_columns(j, kind, dtype, x, grouped, 2, first, last, scratch);
}

#endif
#endif
