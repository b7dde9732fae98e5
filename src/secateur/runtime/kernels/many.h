/* WAY_MANY: for each kept entry, its value times a row of the transposed x [cols, lanes]; WAY_ONE the same for one
 * column, in scalars.  Cut entries are skipped, so this is exact for any x, and its work shrinks with the entries kept.
 *
 * x is taken in stretches that stay in the first-level cache while 64 rows of W pass over them.
 */
#ifndef SECATEUR_MANY_H
#define SECATEUR_MANY_H

#include "simd.h"

#define BAND 64       /* rows of W that share a stretch of x */
#define STRETCH 6144  /* floats of x in a stretch: 24 KiB */
#define MOST_VECTORS (SECATEUR_PATH == 2 ? 4 : 8)

/* `count` packed entries (at most 64) as floats, in order. */
INLINE void widen_all(const job *j, int dtype, const char *p, int count, float *out) {
    if (dtype == SECATEUR_I4) {
        for (int i = 0; i < count / 2; i++) {
            out[2 * i] = (float)(((const uint8_t *)p)[i] & 15) - 8;
            out[2 * i + 1] = (float)(((const uint8_t *)p)[i] >> 4) - 8;
        }
    } else if (__builtin_expect(p + count * entry_bytes(dtype) + OVERREAD <= j->values_end, 1)) {
        for (int i = 0; i < count; i += VL) store(out + i, widen(dtype, p + i * entry_bytes(dtype)));
    } else {
        for (int i = 0; i < count; i++)
            out[i] = dtype == SECATEUR_F32    ? ((const float *)p)[i]
                     : dtype == SECATEUR_BF16 ? from_bf16(((const uint16_t *)p)[i])
                                              : (float)((const int8_t *)p)[i];
    }
}

/* The entries of one chunk of a row as floats, scaled where groups have scales; moves *p behind them. */
INLINE int take_chunk(const job *j, int dtype, int64_t row, int64_t c, uint64_t bits, const char **p, float *out) {
    const int count = __builtin_popcountll(bits);
    widen_all(j, dtype, *p, count, out);
    *p += dtype == SECATEUR_I4 ? count / 2 : count * entry_bytes(dtype);
    if (dtype >= SECATEUR_I8 && j->m->group) {
        const int low = __builtin_popcountll(bits & 0xffffffff);
        const float first = scale_at(j, row, 2 * c), second = low < count ? scale_at(j, row, 2 * c + 1) : 0;
        for (int i = 0; i < low; i++) out[i] *= first;
        for (int i = low; i < count; i++) out[i] *= second;
    }
    return count;
}

/* acc += the entries of one chunk times their rows of x; NB vectors of columns. */
INLINE void add_chunk(const int dense, const int NB, uint64_t bits, int count, const float *w, const float *x, vf (*acc)[NB]) {
    const int U = NB == 1 ? 4 : NB == 2 ? 2 : 1;
    int i = 0;
    for (; i + U <= count; i += U) {
#pragma GCC unroll 4
        for (int u = 0; u < U; u++) {
            const int64_t at = dense ? i + u : __builtin_ctzll(bits);
            const float *from = x + at * NB * VL;
            const vf value = all(w[i + u]);
            bits &= bits - 1;
#pragma GCC unroll 8
            for (int b = 0; b < NB; b++) acc[u][b] = muladd(value, *(const vf *)(from + b * VL), acc[u][b]);
        }
    }
    for (; i < count; i++) {
        const int64_t at = dense ? i : __builtin_ctzll(bits);
        const vf value = all(w[i]);
        bits &= bits - 1;
#pragma GCC unroll 8
        for (int b = 0; b < NB; b++) acc[0][b] = muladd(value, *(const vf *)(x + at * NB * VL + b * VL), acc[0][b]);
    }
}

INLINE void many_band(const job *j, const int kind, const int dtype, const int NB, int64_t first, int rows) {
    enum { U = 4 };
    const int used = NB == 1 ? 4 : NB == 2 ? 2 : 1;
    const secateur_matrix *m = j->m;
    const int64_t stretch = STRETCH / (NB * VL) / CHUNK > 0 ? STRETCH / (NB * VL) / CHUNK : 1;
    float sums[BAND][NB * VL] __attribute__((aligned(64)));
    float w[CHUNK + VL];
    const char *p[BAND];
    memset(sums, 0, sizeof sums[0] * (size_t)rows);
    for (int r = 0; r < rows; r++) p[r] = (const char *)m->values + row_start(m, kind, dtype, first + r);
    for (int64_t c0 = 0; c0 < j->chunks; c0 += stretch) {
        const int64_t c1 = c0 + stretch < j->chunks ? c0 + stretch : j->chunks;
        for (int r = 0; r < rows; r++) {
            const uint8_t *mask = kind == SECATEUR_DENSE ? 0 : m->mask + (first + r) * j->mask_stride;
            vf acc[U][NB];
            for (int u = 0; u < used; u++)
                for (int b = 0; b < NB; b++) acc[u][b] = u ? all(0) : load(&sums[r][b * VL]);
            for (int64_t c = c0; c < c1; c++) {
                const uint64_t bits = mask64(j, kind, mask, c);
                const int count = take_chunk(j, dtype, first + r, c, bits, &p[r], w);
                __builtin_prefetch(p[r] + 2 * CHUNK);
                add_chunk(kind == SECATEUR_DENSE, NB, bits, count, w, j->x + c * CHUNK * NB * VL, acc);
            }
            for (int b = 0; b < NB; b++) {
                vf v = acc[0][b];
                if (used > 1) v += acc[1][b];
                if (used > 2) v += acc[2][b] + acc[3][b];
                store(&sums[r][b * VL], v);
            }
        }
    }
    for (int r = 0; r < rows; r++) {
        const float scale = dtype >= SECATEUR_I8 && !m->group ? scale_at(j, first + r, 0) : 1;
        for (int64_t b = 0; b < j->batch; b++) put(j, b, first + r, sums[r][b] * scale);
    }
}

INLINE void many_range(const job *j, const int kind, const int dtype, const int NB, int64_t first, int64_t last) {
    for (int64_t r = first; r < last; r += BAND)
        many_band(j, kind, dtype, NB, r, (int)(last - r < BAND ? last - r : BAND));
}

/* One column of x, entry by entry: four sums, entry i onto sum i mod 4. */
INLINE void one_range(const job *j, const int kind, const int dtype, int64_t first, int64_t last) {
    const secateur_matrix *m = j->m;
    for (int64_t row = first; row < last; row++) {
        const uint8_t *mask = kind == SECATEUR_DENSE ? 0 : m->mask + row * j->mask_stride;
        const char *p = (const char *)m->values + row_start(m, kind, dtype, row);
        const float *x = j->x;
        float a[4] = {0, 0, 0, 0}, w[CHUNK + VL];
        vf dense[4] = {all(0), all(0), all(0), all(0)};
        for (int64_t c = 0; c < j->chunks; c++, x += CHUNK) {
            uint64_t bits = mask64(j, kind, mask, c);
            const int count = take_chunk(j, dtype, row, c, bits, &p, w);
            int i = 0;
            if (kind == SECATEUR_DENSE && count == CHUNK) {
#pragma GCC unroll 16
                for (int k = 0; k < CHUNK / VL; k++) dense[k & 3] = muladd(load(w + k * VL), load(x + k * VL), dense[k & 3]);
                continue;
            }
            for (; i + 4 <= count; i += 4) {
#pragma GCC unroll 4
                for (int k = 0; k < 4; k++, bits &= bits - 1) a[k] += w[i + k] * x[__builtin_ctzll(bits)];
            }
            for (; i < count; i++, bits &= bits - 1) a[0] += w[i] * x[__builtin_ctzll(bits)];
        }
        float value = (a[0] + a[2]) + (a[1] + a[3]);
        if (kind == SECATEUR_DENSE) value += sum((dense[0] + dense[2]) + (dense[1] + dense[3]));
        if (dtype >= SECATEUR_I8 && !m->group) value *= scale_at(j, row, 0);
        put(j, 0, row, value);
    }
}

#endif
