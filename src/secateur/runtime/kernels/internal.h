/* What the sources of this folder share: the job that is handed to the threads, and how a row is found. */
#ifndef SECATEUR_INTERNAL_H
#define SECATEUR_INTERNAL_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "secateur.h"

#define INLINE static inline __attribute__((always_inline))
#define SLAB 64       /* columns of x that one pass takes at most */
#define CHUNK 64      /* columns of W that one step takes */
#define OVERREAD 320  /* bytes that may be read past a row's last value: a vector, and what N:4 has for 60 columns more */
#define WORD 32768    /* what the upper word of an entry of x stands for (AVX2) */
#define DIGITS 4      /* of 8 bits, that an entry of x has at most in WAY_DIGITS */
#define STREAMS 6     /* rows of W that are read side by side at most, each from its own part of the matrix */
#define AHEAD 2048    /* bytes of values that are asked for before they are needed, of each of two streams */
#define NEAR 512      /* the same where there are more */

/* An entry of x that is multiplied by itself. */
typedef struct {
    int64_t chunk, at;    /* its column is chunk * CHUNK + at */
    int64_t whole;        /* the whole number it is taken for */
} large_entry;

/* How a slab of x is multiplied.  prepare.h chooses; x is laid out for it. */
enum {
    WAY_ONE,     /* scalar, one column of x */
    WAY_DOT,     /* rows of W expanded in registers, dot products with a few columns of x */
    WAY_PAIRS,   /* the same where W and x are bfloat16 */
    WAY_DIGITS,  /* the same for whole numbers and one column, in integers */
    WAY_MANY,    /* entry times a row of the transposed x, for many columns */
    WAY_TILE,    /* tiles of 16 rows */
};

typedef struct {
    const secateur_matrix *m;
    const char *values_end;
    int64_t mask_stride;  /* bytes of mask a row (or band) */
    int64_t chunks;       /* ceil(cols / CHUNK) */
    int64_t groups;       /* scales a row */
    int group_shift;      /* 32 << group_shift columns share a scale */
    int64_t batch;        /* columns of x in this slab, 1 .. SLAB */
    int64_t lanes;        /* WAY_MANY, WAY_TILE: batch padded; x is [chunks * CHUNK, lanes] */
    int64_t pairs;        /* WAY_DOT: x is laid out even columns, odd columns, this many at a time (0: as it is) */
    int way;
    int pairs_do;         /* the processor multiplies pairs of bfloat16 */
    int count;            /* WAY_DIGITS: digits an entry of x has, 2 to DIGITS; with AVX2 words, 1 or 2 */
    double unit;          /* WAY_DIGITS: value of the lowest digit's 1 */
    float *x;             /* as `way` wants it, 64-byte aligned */
    int8_t *digits;       /* [chunks, count, CHUNK], AVX2: words; AVX-512, int4: [ceil(cols / 128), count, 2, CHUNK] */
    int32_t bias[4][16];  /* what the digits' sums start from */
    int32_t *offsets;     /* int4: [ceil(cols / 128), count / 2, 16], AVX2: [chunks, count, 8]; what sums are too large by */
    char *scratch;        /* per part of the work: scratch_bytes */
    int64_t scratch_bytes;
    void *y;              /* row 0 of this slab */
    int64_t y_dtype;
    large_entry *large;   /* WAY_DIGITS, AVX2: in order of columns; the chunk of the one behind the last is -1 */
} job;

#define HEAD 512  /* entries that a head of attention has at most */
#define SPAN 128  /* positions that one part of the attention takes */
#define SPANS(seen) (((seen) + SPAN - 1) / SPAN)
#define PART_ROW(size) (((size) + 31) / 32 * 32 + 2) /* floats of a query in one part: largest score, sum of weights, sums */

/* Attention of one token, in parts: each has some positions of one head of keys and the queries that share it. */
typedef struct {
    const void *queries, *keys, *values; /* [shared, each, size], [shared, room, size] twice, of dtype */
    int64_t shared, each, size, room;
    int64_t seen;                        /* positions that are filled */
    int64_t stride;                      /* PART_ROW(size) */
    float scale;
    float *parts;                        /* [shared, spans, each, stride] */
} attention;

/* around.c; rows of `dtype` throughout. */
typedef struct {
    void (*norm)(const void *x, const void *weight, void *y, int64_t count, float epsilon, int64_t dtype);
    void (*turn)(void *x, const void *cos, const void *sin, int64_t heads, int64_t size, int64_t dtype);
    void (*gate)(void *x, const void *up, int64_t count, int64_t dtype);
    void (*add)(void *x, const void *more, int64_t count, int64_t dtype);
    void (*attend)(const attention *a, int64_t part, int64_t dtype);
    void (*mix)(const attention *a, void *mixed, int64_t dtype);
} around_table;

extern const around_table secateur_around_portable, secateur_around_avx2, secateur_around_avx512;

typedef struct {
    int64_t slab;                                     /* columns of x a pass takes at most */
    void (*prepare)(job *, const void *x, int64_t x_dtype);
    void (*run[SECATEUR_KINDS])(const job *, int64_t first, int64_t last, char *scratch);
    const around_table *around;
} path_table;

extern const path_table secateur_table_portable, secateur_table_avx2, secateur_table_avx512;
const around_table *secateur_around(void); /* of the path in use */

/* y[i] = W[i] x + bias[i] for one row x that all have, in one round of the threads. */
int secateur_products(const secateur_matrix *const *matrices, void *const *ys, int count, const void *x, int64_t dtype,
                      int64_t threads);

/* Work split in parts 0 .. parts-1, each done once, by at most `threads` threads. */
typedef void (*part_function)(void *context, int64_t part);
void secateur_parallel(part_function function, void *context, int64_t parts, int64_t threads);

INLINE float from_bf16(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

INLINE uint16_t to_bf16(float value) { /* to the nearest, ties to even; NaN stays NaN */
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

INLINE float load_either(const void *base, int64_t dtype, int64_t i) {
    return dtype == SECATEUR_F32 ? ((const float *)base)[i] : from_bf16(((const uint16_t *)base)[i]);
}

/* y[b, row] = value + bias[row] */
INLINE void put(const job *j, int64_t b, int64_t row, float value) {
    if (j->m->bias) value += j->m->bias[row];
    if (j->y_dtype == SECATEUR_F32)
        ((float *)j->y)[b * j->m->rows + row] = value;
    else
        ((uint16_t *)j->y)[b * j->m->rows + row] = to_bf16(value);
}

INLINE int64_t entry_bytes(int64_t dtype) {
    return dtype == SECATEUR_F32 ? 4 : dtype == SECATEUR_BF16 ? 2 : 1;
}

/* Bytes of values in front of a row. */
INLINE int64_t row_start(const secateur_matrix *m, int kind, int dtype, int64_t row) {
    if (dtype == SECATEUR_I4) return row * (m->cols / 2);
    const int64_t entries = kind == SECATEUR_DENSE ? row * m->cols
                            : kind == SECATEUR_NM  ? row * (m->cols / 4 * m->n)
                            : row >= m->rows       ? m->count
                                                   : m->offsets[row];
    return entries * (kind == SECATEUR_TILE4 ? 4 : 1) * entry_bytes(dtype);
}

/* The scale of a row's 32 columns from 32 * half on. */
INLINE float scale_at(const job *j, int64_t row, int64_t half) {
    return load_either(j->m->scales, j->m->scale_dtype, row * j->groups + (half >> j->group_shift));
}

/* 16 bits of tiles to 64 bits of entries. */
INLINE uint64_t spread4(uint64_t tiles) {
#ifdef __BMI2__
    return __builtin_ia32_pdep_di(tiles, 0x1111111111111111ull) * 15;
#else
    uint64_t bits = tiles & 0xffff;
    bits = (bits | bits << 24) & 0x000000ff000000ffull;
    bits = (bits | bits << 12) & 0x000f000f000f000full;
    bits = (bits | bits << 6) & 0x0303030303030303ull;
    bits = (bits | bits << 3) & 0x1111111111111111ull;
    return bits * 15;
#endif
}

/* The bits of 64 columns from 64 * chunk on; past the last column there are none.  `row` is the row's mask; `whole`: the
 * chunk has all of its columns.
 */
INLINE uint64_t mask_bits(const job *j, int kind, int whole, const uint8_t *row, int64_t chunk) {
    const int64_t left = j->m->cols - chunk * CHUNK;
    uint64_t bits = 0;
    if (kind == SECATEUR_DENSE) return whole ? ~0ull : (1ull << left) - 1;
    if (kind == SECATEUR_TILE4) {
        if (whole) {
            uint16_t tiles;
            memcpy(&tiles, row + chunk * 2, 2);
            return spread4(tiles);
        }
        memcpy(&bits, row + chunk * 2, (size_t)((left / 4 + 7) / 8));
        return spread4(bits & ((1ull << left / 4) - 1));
    }
    if (whole) {
        memcpy(&bits, row + chunk * 8, 8);
        return bits;
    }
    memcpy(&bits, row + chunk * 8, (size_t)((left + 7) / 8));
    return bits & ((1ull << left) - 1);
}

INLINE uint64_t mask64(const job *j, int kind, const uint8_t *row, int64_t chunk) {
    return mask_bits(j, kind, __builtin_expect((chunk + 1) * CHUNK <= j->m->cols, 1), row, chunk);
}

#endif
