/* x as whole numbers, for WAY_DIGITS.
 *
 * Whole-number weights and one column go the way of integers, with as many digits as it takes to be off by at most 2^-20 of
 * the usual entry to either side, which leaves the sum of a hundred entries as close to the truth as float32's own rounding
 * does; where x is bfloat16, whose entries are off by up to 2^-9 of themselves already, by 2^-12.  Where the largest entry is
 * so far from the usual one that the most digits do not reach, floats do it.  What is usual is a mean that some large entries
 * do not move, because they may all stand where weights are cut.
 *
 * With AVX2 a few entries that one word does not reach (every row of a language model has some) are multiplied by themselves,
 * and the others go with one word instead of two.
 */
#ifndef SECATEUR_WHOLE_H
#define SECATEUR_WHOLE_H

#include <math.h>

#include "dot.h"

/* A function for the two dtypes of x, each a loop of its own. */
#define FOR_DTYPE(call) (dtype == SECATEUR_F32 ? call(SECATEUR_F32) : call(SECATEUR_BF16))

#if SECATEUR_PATH

/* |whole number| <= 2^WHOLE_BITS, so that the top digit does not overflow. */
#if SECATEUR_PATH == 2
#define FEWEST 2 /* digits of 8 bits (digits.h) */
#define MOST DIGITS
#define WHOLE_BITS(count) (8 * (count) - 2)
#define MOST_COLS 65536 /* a sum of twice as many products of two bytes can leave int32 */
#else
#define FEWEST 1 /* words of 15 bits (words.h) */
#define MOST 2
#define WHOLE_BITS(count) (14 * (count))
#define MOST_COLS INT64_MAX
#endif

typedef struct {
    float most, usual; /* of the magnitudes */
    int finite;
} range;

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

static range measure(const void *x, int64_t dtype, int64_t count) {
#define CALL(t) measure_as(x, t, count)
    return FOR_DTYPE(CALL);
#undef CALL
}

#if SECATEUR_PATH == 1
INLINE int64_t larger_as(const void *x, int64_t dtype, int64_t count, float reach) {
    int64_t found = 0;
    for (int64_t i = 0; i < count; i += VL) {
        const vf size = (vf)((vn)x_vector(x, dtype, i, count - i) & 0x7fffffff);
        const __m256 larger = _mm256_cmp_ps((__m256)size, _mm256_set1_ps(reach), _CMP_GT_OQ);
        found += __builtin_popcount((unsigned)_mm256_movemask_ps(larger));
    }
    return found;
}

/* Whether so few entries are larger that they cost less than another word for all.  In sparse rows, where their places have to
 * be counted first, they do not (2:4, an entry of a hundred: 1.31 -> 1.66 ms). */
static int few_larger(const job *j, const void *x, int64_t dtype, float most, float reach, int count) {
    const int64_t worth = j->m->cols / 32;
    if (j->m->kind != SECATEUR_DENSE && j->m->kind != SECATEUR_TILE16) return 0;
    if (reach <= 0x1p-90f || ldexpf(most, WHOLE_BITS(count) - 44) > reach) return 0; /* sums of their products fit in 64 bits */
#define CALL(t) larger_as(x, t, j->m->cols, reach)
    return FOR_DTYPE(CALL) <= worth;
#undef CALL
}
#endif

/* How many digits do as well as floats, 0: none; r->most becomes the largest entry that they reach, where it is smaller. */
static int digits_for(const job *j, const void *x, range *r, int64_t dtype) {
    const float off = (dtype == SECATEUR_F32 ? 0x1p-20f : 0x1p-12f) * r->usual;
    if (!r->finite || !isfinite(r->usual) || r->most <= 0x1p-90f || j->m->cols > MOST_COLS) return 0;
    for (int count = FEWEST; count <= MOST; count++) {
        if (SECATEUR_PATH == 2 && count == 3 && j->m->dtype == SECATEUR_I4) continue; /* taken in twos */
        if (ldexpf(r->most, -1 - WHOLE_BITS(count)) <= off) return count;
#if SECATEUR_PATH == 1
        const float reach = ldexpf(off, 1 + WHOLE_BITS(count));
        if (few_larger(j, x, dtype, r->most, reach, count)) {
            r->most = reach;
            return count;
        }
#else
        (void)x;
#endif
    }
    return 0;
}

/* What x is multiplied by to become whole numbers. */
INLINE float factor_of(job *j, range r) {
    int exponent;
    frexpf(r.most, &exponent);
    j->unit = ldexp(1, exponent - WHOLE_BITS(j->count));
    return ldexpf(1, WHOLE_BITS(j->count) - exponent);
}

#if SECATEUR_PATH == 2
/* The whole number x is taken for, its bytes are signed digits. */
INLINE __m512i whole_number(vf x, __m512 factor) {
    const __m512i borrow = _mm512_set1_epi32(0x00808080);
    const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps((__m512)x, factor));
    return _mm512_xor_si512(_mm512_add_epi32(whole, borrow), borrow);
}

/* Digits of x, lowest first, and where the sums start. */
INLINE void split_digits_as(job *j, const void *x, int64_t dtype, range r) {
    const __m512 factor = _mm512_set1_ps(factor_of(j, r));
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
    const __m512 factor = _mm512_set1_ps(factor_of(j, r));
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

#else
/* The next word of whole numbers: their lowest 15 bits, signed, or all that is left; *whole: what is left above. */
INLINE __m128i next_word(vi *whole, int last) {
    const vi word = last ? *whole : _mm256_srai_epi32(_mm256_slli_epi32(*whole, 17), 17);
    *whole = _mm256_srai_epi32(_mm256_sub_epi32(*whole, word), 15);
    return _mm_packs_epi32(_mm256_castsi256_si128(word), _mm256_extracti128_si256(word, 1));
}

/* For int4: a chunk's words in the order of its nibbles, every fourth column together; and 8 times the sums of 8 columns. */
INLINE void by_nibbles(int16_t *words, int32_t *offset) {
    int16_t plain[CHUNK];
    vi total = _mm256_setzero_si256();
    memcpy(plain, words, sizeof plain);
    for (int k = 0; k < 4; k++) {
        for (int i = 0; i < CHUNK / 4; i++) words[k * CHUNK / 4 + i] = plain[4 * i + k];
        const vi some = _mm256_loadu_si256((const vi *)(words + k * CHUNK / 4));
        total = _mm256_add_epi32(total, _mm256_madd_epi16(_mm256_set1_epi16(8), some));
    }
    _mm256_storeu_si256((vi *)offset, total);
}

/* Takes the entries that are larger than `most` out of eight of x, from column `at` on, and notes them. */
INLINE vf without_large(job *j, vf x, int64_t at, float most, __m256 factor, int *found) {
    const __m256 size = (__m256)((vn)x & 0x7fffffff), fit = _mm256_cmp_ps(size, _mm256_set1_ps(most), _CMP_LE_OQ);
    for (unsigned left = ~(unsigned)_mm256_movemask_ps(fit) & 0xff; left; left &= left - 1) {
        const int k = __builtin_ctz(left);
        j->large[(*found)++] = (large_entry){at / CHUNK, at % CHUNK + k, llrint((double)x[k] * _mm256_cvtss_f32(factor))};
    }
    return (vf)_mm256_and_ps((__m256)x, fit);
}

/* Words of x, lowest first. */
INLINE void split_words_as(job *j, const void *x, int64_t dtype, range r) {
    const __m256 factor = _mm256_set1_ps(factor_of(j, r));
    const int D = j->count;
    int found = 0;
    int16_t *out = (int16_t *)j->digits;
    for (int64_t c = 0; c < j->chunks; c++, out += D * CHUNK) {
        for (int q = 0; q < CHUNK; q += VL) {
            const vf plain = x_vector(x, dtype, c * CHUNK + q, j->m->cols - c * CHUNK - q);
            const vf some = without_large(j, plain, c * CHUNK + q, r.most, factor, &found);
            vi whole = _mm256_cvtps_epi32(_mm256_mul_ps((__m256)some, factor));
            for (int d = 0; d < D; d++) _mm_storeu_si128((__m128i *)(out + d * CHUNK + q), next_word(&whole, d == D - 1));
        }
        for (int d = 0; d < D && j->m->dtype == SECATEUR_I4; d++) by_nibbles(out + d * CHUNK, j->offsets + (c * D + d) * VL);
    }
    j->large[found].chunk = -1;
}

static void split_words(job *j, const void *x, int64_t dtype, range r) {
#define CALL(t) split_words_as(j, x, t, r)
    FOR_DTYPE(CALL);
#undef CALL
}
#endif

/* WAY_DIGITS, where digits do as well as floats; whether they do. */
static int in_digits(job *j, const void *x, int64_t dtype, range r) {
    if (!(j->count = digits_for(j, x, &r, dtype))) return 0;
    j->way = WAY_DIGITS;
#if SECATEUR_PATH == 1
    split_words(j, x, dtype, r);
#else
    if (j->m->dtype == SECATEUR_I8) split_digits(j, x, dtype, r);
    else split_digits4(j, x, dtype, r);
#endif
    return 1;
}

#endif
#endif
