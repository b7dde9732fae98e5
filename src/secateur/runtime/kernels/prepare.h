/* x of one slab, laid out for the way that will multiply it; which way that is, is chosen here.
 *
 * Whole-number weights and one column go the way of integers, with as many digits of 8 bits as it takes to be off by at
 * most 2^-20 of the usual entry to either side, which leaves the sum of a hundred entries as close to the truth as float32's
 * own rounding does; where x is bfloat16, whose entries are off by up to 2^-9 of themselves already, by 2^-12.  Where the
 * largest entry is so far from the usual one that four digits do not reach, floats do it.  What is usual is a mean that
 * some large entries do not move, because they may all stand where weights are cut.
 */
#ifndef SECATEUR_PREPARE_H
#define SECATEUR_PREPARE_H

#include <math.h>

#include "dot.h"
#include "many.h"

#define DIGITS_COLS 65536 /* a sum of twice as many products of two bytes can leave int32 */

typedef struct {
    float most, usual; /* of the magnitudes */
    int finite;
} range;

/* VL entries of x from `at` on, as floats; zeros after `left` of them. */
INLINE vf x_vector(const void *x, int64_t dtype, int64_t at, int64_t left) {
    float part[VL] = {0};
    if (__builtin_expect(left >= VL, 1))
        return dtype == SECATEUR_F32 ? load((const float *)x + at) : widen(SECATEUR_BF16, (const char *)x + at * 2);
    for (int64_t i = 0; i < left; i++) part[i] = load_either(x, dtype, at + i);
    return load(part);
}

#if SECATEUR_PATH
typedef int32_t vn __attribute__((vector_size(4 * VL), may_alias));

INLINE vf smaller(vf a, vf b) {
#if SECATEUR_PATH == 2
    return (vf)_mm512_min_ps((__m512)a, (__m512)b);
#else
    return (vf)_mm256_min_ps((__m256)a, (__m256)b);
#endif
}

INLINE range measure_as(const void *x, int64_t dtype, int64_t count) {
    enum { PARTS = 4 };
    vn most[PARTS] = {{0}, {0}, {0}, {0}};
    vf total[PARTS] = {all(0), all(0), all(0), all(0)};
    for (int64_t i = 0; i < count; i += PARTS * VL)
        for (int k = 0; k < PARTS; k++) {
            const vn size = (vn)x_vector(x, dtype, i + k * VL, count - i - k * VL) & 0x7fffffff;
            const vn larger = size > most[k]; /* sizes of floats, NaN above all, order as whole numbers */
            most[k] = (size & larger) | (most[k] & ~larger);
            total[k] += (vf)size;
        }
    /* Of the four sums that each lane has, the smallest: a large entry moves it only where all four have one. */
    const vf least = smaller(smaller(total[0], total[1]), smaller(total[2], total[3]));
    range out = {0, PARTS * sum(least) / (float)(count ? count : 1), 1};
    int32_t top = 0;
    for (int k = 0; k < PARTS * VL; k++) top = most[k / VL][k % VL] > top ? most[k / VL][k % VL] : top;
    memcpy(&out.most, &top, 4);
    out.finite = top < 0x7f800000;
    return out;
}

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

#if SECATEUR_PATH == 2
/* The whole number x is taken for, |whole| <= 2^(8 count - 2), so that the top digit does not overflow; its bytes are signed
 * digits. */
INLINE __m512i whole_number(vf x, __m512 factor) {
    const __m512i borrow = _mm512_set1_epi32(0x00808080);
    const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps((__m512)x, factor));
    return _mm512_xor_si512(_mm512_add_epi32(whole, borrow), borrow);
}

INLINE __m512 factor_of(job *j, range r) {
    int exponent;
    frexpf(r.most, &exponent);
    const int bits = 8 * j->count - 2;
    j->unit = ldexp(1, exponent - bits);
    return _mm512_set1_ps(ldexpf(1, bits - exponent));
}

/* Digits of x, lowest first, and where the sums start. */
INLINE void split_digits_as(job *j, const void *x, int64_t dtype, range r) {
    const __m512 factor = factor_of(j, r);
    const int D = j->count;
    __m512i total[DIGITS];
    int8_t *out = j->digits;
    for (int d = 0; d < D; d++) total[d] = _mm512_setzero_si512();
    for (int64_t c = 0; c < j->chunks; c++, out += D * CHUNK) {
        for (int q = 0; q < CHUNK; q += VL) {
            const vf plain = x_vector(x, dtype, c * CHUNK + q, j->m->cols - c * CHUNK - q);
            __m512i whole = whole_number(plain, factor);
            for (int d = 0; d < D; d++, whole = _mm512_srli_epi32(whole, 8))
                _mm_storeu_si128((__m128i *)(out + d * CHUNK + q), _mm512_cvtepi32_epi8(whole));
        }
        for (int d = 0; d < D; d++)
            total[d] = _mm512_dpbusd_epi32(total[d], _mm512_set1_epi8(1), _mm512_loadu_si512(out + d * CHUNK));
    }
    for (int d = 0; d < D; d++)
        _mm512_storeu_si512(j->bias[d], _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(total[d], 7)));
}

/* For int4: 128 columns at a time, each digit's even columns, then its odd ones; and 8 times the sums of 8 columns. */
INLINE void split_digits4_as(job *j, const void *x, int64_t dtype, range r) {
    const __m512 factor = factor_of(j, r);
    const int D = j->count;
    int8_t *out = j->digits;
    int32_t *offset = j->offsets;
    for (int64_t c = 0; c < j->m->cols; c += 128, out += 2 * D * CHUNK) {
        for (int q = 0; q < 4; q++) {
            const int64_t at = c + 32 * q, left = j->m->cols - at;
            vf even = x_vector(x, dtype, at, left > 0 ? left : 0);
            vf odd = x_vector(x, dtype, at + VL, left > VL ? left - VL : 0);
            pair(&even, &odd);
            __m512i a = whole_number(even, factor), b = whole_number(odd, factor);
            for (int d = 0; d < D; d++, a = _mm512_srli_epi32(a, 8), b = _mm512_srli_epi32(b, 8)) {
                _mm_storeu_si128((__m128i *)(out + 2 * d * CHUNK + 16 * q), _mm512_cvtepi32_epi8(a));
                _mm_storeu_si128((__m128i *)(out + (2 * d + 1) * CHUNK + 16 * q), _mm512_cvtepi32_epi8(b));
            }
        }
        for (int half = 0; half < D / 2; half++, offset += 16) {
            const __m512i eight = _mm512_set1_epi8(8);
            __m512i t = _mm512_setzero_si512();
            for (int d = 1; d >= 0; d--) {
                t = _mm512_slli_epi32(t, 8);
                for (int k = 0; k < 2; k++)
                    t = _mm512_dpbusd_epi32(t, eight, _mm512_loadu_si512(out + (4 * half + 2 * d + k) * CHUNK));
            }
            _mm512_storeu_si512(offset, t);
        }
    }
}
#endif

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

/* The same for the two dtypes of x, each a loop of its own. */
#define FOR_DTYPE(call) (dtype == SECATEUR_F32 ? call(SECATEUR_F32) : call(SECATEUR_BF16))

static void transpose(job *j, const void *x, int64_t dtype) {
#define CALL(t) transpose_as(j, x, t)
    FOR_DTYPE(CALL);
#undef CALL
}
#if SECATEUR_PATH
static range measure(const void *x, int64_t dtype, int64_t count) {
#define CALL(t) measure_as(x, t, count)
    return FOR_DTYPE(CALL);
#undef CALL
}

static void lay_out(job *j, const void *x, int64_t dtype) {
#define CALL(t) lay_out_as(j, x, t)
    FOR_DTYPE(CALL);
#undef CALL
}
#endif
#if SECATEUR_PATH == 2
static void split_digits(job *j, const void *x, int64_t dtype, range r) {
#define CALL(t) split_digits_as(j, x, t, r)
    FOR_DTYPE(CALL);
#undef CALL
}

static void split_digits4(job *j, const void *x, int64_t dtype, range r) {
#define CALL(t) split_digits4_as(j, x, t, r)
    FOR_DTYPE(CALL);
#undef CALL
}

/* How many digits do as well as floats; 0: none. */
static int digits_for(const job *j, range r, int64_t dtype) {
    const float off = (dtype == SECATEUR_F32 ? 0x1p-20f : 0x1p-12f) * r.usual;
    if (!r.finite || !isfinite(r.usual) || r.most <= 0x1p-90f || j->m->cols > DIGITS_COLS) return 0;
    for (int count = 2; count <= DIGITS; count++) {
        if (count == 3 && j->m->dtype == SECATEUR_I4) continue; /* taken in twos */
        if (ldexpf(r.most, 1 - 8 * count) <= off) return count;
    }
    return 0;
}

/* WAY_DIGITS, where digits do as well as floats; whether they do. */
static int in_digits(job *j, const void *x, int64_t dtype, range r) {
    if (!(j->count = digits_for(j, r, dtype))) return 0;
    j->way = WAY_DIGITS;
    if (j->m->dtype == SECATEUR_I8) split_digits(j, x, dtype, r);
    else split_digits4(j, x, dtype, r);
    return 1;
}

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
#if SECATEUR_PATH == 2
    const int whole = j->batch == 1 && ((m->dtype == SECATEUR_I8 && !m->group) || m->dtype == SECATEUR_I4);
    if (m->kind == SECATEUR_TILE16 && whole && in_digits(j, x, dtype, measure(x, dtype, m->cols))) return;
#elif SECATEUR_PATH
    const int whole = 0;
#endif
    j->lanes = padded_lanes(j->batch);
    if (m->kind == SECATEUR_TILE16) {
        j->way = WAY_TILE;
        j->lanes = j->batch;
        transpose(j, x, dtype);
        return;
    }
#if SECATEUR_PATH
    const int paired = SECATEUR_PATH == 2 && j->pairs_do && m->dtype == SECATEUR_BF16 && dtype == SECATEUR_BF16;
    const int any = m->kind == SECATEUR_DENSE && !(whole || paired); /* nothing cut: any x will do */
    const range r = any ? (range){0, 0, 1} : measure(x, dtype, j->batch * m->cols);
    const int dot = (r.finite || m->kind == SECATEUR_DENSE) && (j->batch == 1 || dot_wins(j));
    j->pairs = PAIRS(m->dtype);
#if SECATEUR_PATH == 2
    if (whole && in_digits(j, x, dtype, r)) return;
    if (paired && r.finite && r.most > 0x1p-90f && pairs_win(j)) {
        j->way = WAY_PAIRS;
        copy_pairs(j, x);
        return;
    }
#endif
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
