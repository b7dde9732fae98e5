/* x of one slab, laid out for the way that will multiply it; which way that is, is chosen here. */
#ifndef SECATEUR_PREPARE_H
#define SECATEUR_PREPARE_H

#include "many.h"
#include "whole.h"

#if SECATEUR_PATH

INLINE void lay_out_as(job *j, const void *x, int64_t dtype) {
    const int64_t cols = j->m->cols;
    float *out = j->x;
    for (int64_t b = 0; b < j->batch;) {
        const int taken = group_of(j->batch - b);
        for (int64_t c = 0; c < j->chunks; c++)
            for (int i = 0; i < taken; i++)
                for (int k = 0; k < CHUNK; k += 2 * VL, out += 2 * VL) {
                    const int64_t column = c * CHUNK + k, at = (b + i) * cols + column;
                    vf first = x_vector(x, dtype, at, cols - column);
                    vf second = x_vector(x, dtype, at + VL, cols - column - VL);
                    if (j->pairs) pair(&first, &second);
                    store(out, first);
                    store(out + VL, second);
                }
        b += taken;
    }
}
#endif

INLINE int64_t padded_lanes(int64_t batch) { /* to 1, 2, 4 or 8 vectors */
    int64_t lanes = VL;
    while (lanes < batch) lanes *= 2;
    return lanes;
}

/* x [batch, cols] -> [chunks * CHUNK, lanes]: a few columns of all rows at a time, for the caches' sake. */
INLINE void transpose_as(job *j, const void *x, int64_t dtype) {
    enum { WIDE = 16 };
    const int64_t cols = j->m->cols, lanes = j->lanes;
    for (int64_t c = 0; c < j->chunks * CHUNK; c += WIDE) {
        float *out = j->x + c * lanes;
        if (lanes > j->batch) memset(out, 0, (size_t)(WIDE * lanes) * 4);
        for (int64_t b = 0; b < j->batch; b++) {
            float part[WIDE];
            for (int k = 0; k < WIDE; k += VL) store(part + k, x_vector(x, dtype, b * cols + c + k, cols - c - k));
            for (int k = 0; k < WIDE; k++) out[k * lanes + b] = part[k];
        }
    }
}

#if SECATEUR_PATH
/* Whether dot products with every column of W cost less than one step for each kept entry; from times measured. */
INLINE int dot_wins(const job *j) {
    const secateur_matrix *m = j->m;
    if (m->kind == SECATEUR_DENSE || m->kind == SECATEUR_NM) return j->batch < 2 * VL;
    const double entries = (double)m->count * (m->kind == SECATEUR_TILE4 ? 4 : 1);
    const double kept = CHUNK * entries / ((double)m->rows * (double)m->cols);
    return 2.5 + 1.2 * (double)j->batch < 4 + kept * (0.4 + 0.3 * (double)(j->lanes / VL));
}

/* The same for pairs of bfloat16. */
INLINE int pairs_win(const job *j) {
    const secateur_matrix *m = j->m;
    const double entries = (double)m->count * (m->kind == SECATEUR_TILE4 ? 4 : 1);
    const double kept = CHUNK * entries / ((double)m->rows * (double)m->cols);
    return j->batch < VL || 2.5 + 0.8 * (double)j->batch < 12 + kept * (0.4 + 0.35 * (double)(j->lanes / VL));
}
#endif

static void transpose(job *j, const void *x, int64_t dtype) {
#define CALL(t) transpose_as(j, x, t)
    FOR_DTYPE(CALL);
#undef CALL
}

#if SECATEUR_PATH
static void lay_out(job *j, const void *x, int64_t dtype) {
#define CALL(t) lay_out_as(j, x, t)
    FOR_DTYPE(CALL);
#undef CALL
}
#endif

#if SECATEUR_PATH
/* x as it is, for pairs; zeros behind the last column. */
static void copy_pairs(job *j, const uint16_t *x) {
    const int64_t cols = j->m->cols;
    uint16_t *out = (uint16_t *)j->x;
    for (int64_t b = 0; b < j->batch;) {
        const int taken = group_of(j->batch - b);
        for (int64_t c = 0; c < j->chunks; c++)
            for (int i = 0; i < taken; i++, out += CHUNK) {
                const int64_t left = cols - c * CHUNK;
                if (left < CHUNK) memset(out, 0, CHUNK * 2);
                memcpy(out, x + (b + i) * cols + c * CHUNK, (size_t)(left < CHUNK ? left : CHUNK) * 2);
            }
        b += taken;
    }
}
#endif

static void prepare(job *j, const void *x, int64_t dtype) {
    const secateur_matrix *m = j->m;
#if SECATEUR_PATH
    const int grouped = m->group && (SECATEUR_PATH == 2 || m->kind == SECATEUR_TILE16); /* int8 there: as floats */
    const int whole = j->batch == 1 && (m->dtype == SECATEUR_I4 || (m->dtype == SECATEUR_I8 && !grouped));
    if (m->kind == SECATEUR_TILE16 && whole && in_digits(j, x, dtype, measure(x, dtype, m->cols))) return;
#endif
    j->lanes = padded_lanes(j->batch);
    if (m->kind == SECATEUR_TILE16) {
        j->way = WAY_TILE;
        j->lanes = j->batch;
        transpose(j, x, dtype);
        return;
    }
#if SECATEUR_PATH
    const int halves = m->dtype == SECATEUR_BF16 && dtype == SECATEUR_BF16;
    const int paired = halves && (SECATEUR_PATH == 2 ? j->pairs_do : j->batch == 1);
    const int tiny = SECATEUR_PATH == 2 && paired; /* are there numbers which that instruction takes for zero? */
    const int any = m->kind == SECATEUR_DENSE && !(whole || tiny); /* nothing cut: any x will do */
    const range r = any ? (range){0, 0, 1} : measure(x, dtype, j->batch * m->cols);
    const int dot = (r.finite || m->kind == SECATEUR_DENSE) && (j->batch == 1 || dot_wins(j));
    j->pairs = PAIRS(m->dtype);
    if (whole && in_digits(j, x, dtype, r)) return;
    if (paired && (tiny ? r.finite && r.most > 0x1p-90f && pairs_win(j) : dot)) {
        j->way = WAY_PAIRS;
        copy_pairs(j, x);
        return;
    }
    if (dot) {
        j->way = WAY_DOT;
        lay_out(j, x, dtype);
        return;
    }
#endif
    j->way = j->batch == 1 ? WAY_ONE : WAY_MANY;
    if (j->way == WAY_ONE) j->lanes = 1;
    transpose(j, x, dtype);
}

#endif
