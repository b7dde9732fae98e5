/* blocks: tiles kept or cut as a whole, a bit for each tile.  1x4 (a row's 4 columns) are rows with a shorter mask; 16x1
 * (16 rows of a column) are taken band by band: each kept tile, times one entry of x, onto the 16 sums of its rows.
 */
#include "rows.h"

FAMILY(tile4, TILE4)

void PATH(secateur_tile16)(ARGUMENTS);

#define TALL 16
#define PARTS (TALL / VL)  /* vectors a tile takes */
#define MOST_COLUMNS (SECATEUR_PATH == 2 ? 8 : SECATEUR_PATH == 1 ? 4 : 2)

/* The columns of a band's kept tiles. */
INLINE int64_t list_columns(const job *j, int64_t band, uint32_t *at) {
    const uint8_t *mask = j->m->mask + band * j->mask_stride;
    int64_t count = 0;
    for (int64_t c = 0; c < j->chunks; c++) {
        uint64_t bits = mask64(j, SECATEUR_TILE16, mask, c);
#if SECATEUR_PATH == 2
        const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        for (int q = 0; q < 4; q++, bits >>= 16) {
            const __m512i column = _mm512_add_epi32(lane, _mm512_set1_epi32((int)(c * CHUNK + 16 * q)));
            _mm512_storeu_si512(at + count, _mm512_maskz_compress_epi32((__mmask16)bits, column));
            count += __builtin_popcountll(bits & 0xffff);
        }
#else
        for (; bits; bits &= bits - 1) at[count++] = (uint32_t)(c * CHUNK + __builtin_ctzll(bits));
#endif
    }
    return count;
}

/* sums += a tile times its entries of x. */
INLINE void add_tile(const job *j, const int dtype, const int grouped, const int NB, int64_t band, uint32_t column,
                     const char *tile, int64_t b0, vf (*acc)[PARTS]) {
    const float *x = j->x + column * j->lanes + b0;
#pragma GCC unroll 4
    for (int q = 0; q < PARTS; q++) {
        vf w = widen(dtype, tile + q * VL * entry_bytes(dtype));
        if (grouped) {
            const int64_t at = (band * j->groups + (column >> 5 >> j->group_shift)) * TALL + q * VL;
            const int wide = j->m->scale_dtype == SECATEUR_F32;
            const char *scale = (const char *)j->m->scales + at * (wide ? 4 : 2);
            w *= wide ? widen(SECATEUR_F32, scale) : widen(SECATEUR_BF16, scale);
        }
#pragma GCC unroll 8
        for (int b = 0; b < NB; b++) acc[b][q] = muladd(w, all(x[b]), acc[b][q]);
    }
}

INLINE void put_band(const job *j, const int dtype, const int grouped, int64_t band, int64_t b, vf *acc) {
    const int64_t rows = j->m->rows - band * TALL < TALL ? j->m->rows - band * TALL : TALL;
    float value[TALL];
    for (int q = 0; q < PARTS; q++) store(value + q * VL, acc[q]);
    for (int64_t i = 0; i < rows; i++) {
        const int64_t row = band * TALL + i;
        put(j, b, row, dtype == SECATEUR_I8 && !grouped ? value[i] * scale_at(j, row, 0) : value[i]);
    }
}

/* Two bands (far apart in memory, so that two streams come in), NB columns of x. */
INLINE void tile_bands(const job *j, const int dtype, const int grouped, const int NB, const int64_t *band,
                       const int64_t *count, uint32_t *const *at, int64_t b0) {
    const int64_t bytes = TALL * entry_bytes(dtype);
    const int U = NB == 1 ? 4 : NB == 2 ? 2 : 1;
    const char *p[2];
    vf acc[2][4][MOST_COLUMNS][PARTS];
    const int64_t most = count[0] > count[1] ? count[0] : count[1];
    for (int r = 0; r < 2; r++) {
        p[r] = (const char *)j->m->values + j->m->offsets[band[r]] * bytes;
        for (int u = 0; u < U; u++)
            for (int b = 0; b < NB; b++)
                for (int q = 0; q < PARTS; q++) acc[r][u][b][q] = all(0);
    }
    for (int64_t i = 0; i < most; i += U) {
#pragma GCC unroll 2
        for (int r = 0; r < 2; r++) {
#pragma GCC unroll 4
            for (int u = 0; u < U; u++, p[r] += bytes) {
                if (i + u >= count[r]) break;
                __builtin_prefetch(p[r] + AHEAD);
                add_tile(j, dtype, grouped, NB, band[r], at[r][i + u], p[r], b0, acc[r][u]);
            }
        }
    }
    for (int r = 0; r < 2; r++) {
        for (int b = 0; b < NB; b++) {
            for (int q = 0; q < PARTS; q++) {
                if (U > 1) acc[r][0][b][q] += acc[r][1][b][q];
                if (U > 2) acc[r][0][b][q] += acc[r][2][b][q] + acc[r][3][b][q];
            }
            put_band(j, dtype, grouped, band[r], b0 + b, acc[r][0][b]);
        }
    }
}

INLINE void tile_range(const job *j, const int dtype, const int grouped, int64_t first, int64_t last, char *scratch) {
    const int64_t half = (last - first + 1) / 2;
    uint32_t *at[2] = {(uint32_t *)scratch, (uint32_t *)(scratch + j->scratch_bytes / 2)};
    for (int64_t i = first; i < first + half; i++) {
        const int64_t band[2] = {i, i + half < last ? i + half : i};
        const int64_t count[2] = {list_columns(j, band[0], at[0]), list_columns(j, band[1], at[1])};
        int64_t b = 0;
        for (; j->batch - b >= MOST_COLUMNS; b += MOST_COLUMNS)
            tile_bands(j, dtype, grouped, MOST_COLUMNS, band, count, at, b);
        if (MOST_COLUMNS > 4 && j->batch - b >= 4) {
            tile_bands(j, dtype, grouped, MOST_COLUMNS > 4 ? 4 : 1, band, count, at, b);
            b += 4;
        }
        for (; j->batch - b >= 1; b += 1) tile_bands(j, dtype, grouped, 1, band, count, at, b);
    }
}

#if SECATEUR_PATH == 2
/* int8 and one column of x, in integers (digits.h).  Four kept tiles are 64 bytes, in the order that VPDPBUSD multiplies
 * with four digits of x for each row; so the digits of a band's kept columns are laid side by side first.
 *
 * They go to to[0 .. D-1], zeros behind them, what they sum to goes to `totals`; returns how many columns there are.  The
 * band's `tiles` are asked for meanwhile, or memory would wait: 0.36 -> 0.32 ms for 4096x4096 at 70%. */
INLINE int64_t pick_digits(const job *j, const int D, int64_t band, const char *tiles, int8_t *const *to, int32_t *totals) {
    const uint8_t *mask = j->m->mask + band * j->mask_stride;
    const int8_t *x = j->digits;
    int64_t count = 0;
    for (int64_t c = 0; c < j->chunks; c++, x += D * CHUNK) {
        const uint64_t bits = mask64(j, SECATEUR_TILE16, mask, c);
        __builtin_prefetch(tiles + c * 2 * CHUNK, 0, 2);
        __builtin_prefetch(tiles + c * 2 * CHUNK + CHUNK, 0, 2);
#pragma GCC unroll 4
        for (int d = 0; d < D; d++) {
            const __m512i zero = in_register(_mm512_setzero_si512()), all = in_register(_mm512_loadu_si512(x + d * CHUNK));
            _mm512_storeu_si512(to[d] + count, _mm512_mask_compress_epi8(zero, (__mmask64)bits, all));
        }
        count += __builtin_popcountll(bits);
    }
    for (int d = 0; d < D; d++) {
        __m512i total = _mm512_setzero_si512();
        _mm512_storeu_si512(to[d] + count, total);
        for (int64_t k = 0; k < count; k += CHUNK)
            total = _mm512_dpbusd_epi32(total, _mm512_set1_epi8(1), _mm512_loadu_si512(to[d] + k));
        totals[d] = _mm512_reduce_add_epi32(total);
    }
    return count;
}

INLINE void put_digits(const job *j, const int D, int64_t band, const __m512i *sums, const int32_t *totals) {
    __m512d low = _mm512_setzero_pd(), high = low;
    double sum[TALL];
    for (int d = D - 1; d >= 0; d--) {
        const __m512i whole = _mm512_sub_epi32(sums[d], _mm512_set1_epi32(128 * totals[d]));
        low = _mm512_fmadd_pd(low, _mm512_set1_pd(256), _mm512_cvtepi32_pd(_mm512_castsi512_si256(whole)));
        high = _mm512_fmadd_pd(high, _mm512_set1_pd(256), _mm512_cvtepi32_pd(_mm512_extracti64x4_epi64(whole, 1)));
    }
    _mm512_storeu_pd(sum, low);
    _mm512_storeu_pd(sum + 8, high);
    for (int64_t row = band * TALL; row < (band + 1) * TALL && row < j->m->rows; row++)
        put(j, 0, row, (float)(sum[row % TALL] * j->unit * scale_at(j, row, 0)));
}

INLINE void tile_digits(const job *j, const int D, int64_t first, int64_t last, char *scratch) {
    const __m512i offset = _mm512_set1_epi8(-128);
    const int64_t half = (last - first + 1) / 2, room = j->chunks * CHUNK + OVERREAD; /* a list of columns takes four times that */
    int8_t order[CHUNK], *to[2][DIGITS];
    char end[CHUNK] = {0};
    for (int k = 0; k < CHUNK; k++) order[k] = (int8_t)(k % 4 * TALL + k / 4); /* a row's four entries together */
    for (int k = 0; k < 2 * DIGITS; k++) to[k / DIGITS][k % DIGITS] = (int8_t *)scratch + k * room;
    for (int64_t i = first; i < first + half; i++) {
        const int64_t band[2] = {i, i + half < last ? i + half : i};
        int32_t totals[2][DIGITS];
        int64_t count[2];
        const char *p[2];
        __m512i acc[2][DIGITS];
        for (int r = 0; r < 2; r++) {
            p[r] = (const char *)j->m->values + j->m->offsets[band[r]] * TALL;
            count[r] = pick_digits(j, D, band[r], p[r], to[r], totals[r]);
            for (int d = 0; d < D; d++) acc[r][d] = _mm512_setzero_si512();
        }
        for (int64_t k = 0; k < count[0] || k < count[1]; k += 4)
#pragma GCC unroll 2
            for (int r = 0; r < 2; r++) {
                const char *from = p[r];
                if (k >= count[r]) continue;
                if (__builtin_expect(from + CHUNK > j->values_end, 0))
                    from = memcpy(end, from, (size_t)(j->values_end - from));
                __builtin_prefetch(p[r] + 2 * AHEAD, 0, 2);
                p[r] += CHUNK;
                const __m512i plain = _mm512_xor_si512(_mm512_loadu_si512(from), offset);
                const __m512i w = _mm512_permutexvar_epi8(_mm512_loadu_si512(order), plain);
#pragma GCC unroll 4
                for (int d = 0; d < D; d++) {
                    int32_t four;
                    memcpy(&four, to[r][d] + k, 4);
                    acc[r][d] = _mm512_dpbusd_epi32(acc[r][d], w, _mm512_set1_epi32(four));
                }
            }
        for (int r = 0; r < 2; r++) put_digits(j, D, band[r], acc[r], totals[r]);
    }
}

#define TILE_DIGITS(D) ALONE tile_digits_##D(ARGUMENTS) { tile_digits(j, D, first, last, scratch); }
TILE_DIGITS(2)
TILE_DIGITS(3)
TILE_DIGITS(4)
#define TILE_DIGITS_CALL(D) tile_digits_##D(j, first, last, scratch)
#else
#define TILE_DIGITS_CALL(D) (void)0
#endif

#if SECATEUR_PATH == 1
/* The same with AVX2 (words.h): two kept tiles at a time, the entries of a row side by side, times words of x. */
#define FEW_TILES 512 /* as many fit a sum of 32 bits */

typedef struct {
    int64_t tile; /* of the band */
    double whole; /* the whole number that its column of x is taken for */
} large_tile;

/* The words of x that a band's kept columns have, zeros behind them; returns how many columns there are.  `*kept`: those
 * whose entry is too large for its words, *many of them. */
INLINE int64_t pick_words(const job *j, const int D, int64_t band, int16_t *const *to, large_tile *kept, int64_t *many) {
    const uint8_t *mask = j->m->mask + band * j->mask_stride;
    const int16_t *x = (const int16_t *)j->digits;
    const large_entry *large = j->large;
    int64_t count = 0;
    for (int64_t c = 0; c < j->chunks; c++, x += D * CHUNK) {
        const uint64_t bits = mask64(j, SECATEUR_TILE16, mask, c);
        for (; large->chunk == c; large++) {
            const int64_t before = count + __builtin_popcountll(bits & ((1ull << large->at) - 1));
            kept[*many] = (large_tile){before, (double)large->whole};
            *many += bits >> large->at & 1;
        }
#pragma GCC unroll 8
        for (int k = 0; k < 8; k++) {
            const uint64_t byte = bits >> 8 * k & 0xff;
            const __m128i kept = _mm_loadu_si128((const __m128i *)secateur_kept_places[byte]);
#pragma GCC unroll 2
            for (int d = 0; d < D; d++) {
                const __m128i all = _mm_loadu_si128((const __m128i *)(x + d * CHUNK + 8 * k));
                _mm_storeu_si128((__m128i *)(to[d] + count), _mm_shuffle_epi8(all, kept));
            }
            count += __builtin_popcountll(byte);
        }
    }
    for (int d = 0; d < D; d++) to[d][count] = 0;
    return count;
}

/* sums += a tile times the whole number of its column, for each of them; after the others, when they are in the cache. */
INLINE void add_large_tiles(const large_tile *kept, int64_t many, const char *tiles, double *sums) {
    for (; many > 0; many--, kept++) {
        const __m256d whole = _mm256_set1_pd(kept->whole);
#pragma GCC unroll 4
        for (int k = 0; k < TALL; k += 4) {
            int32_t four;
            memcpy(&four, tiles + TALL * kept->tile + k, 4);
            const __m256d entries = _mm256_cvtepi32_pd(_mm_cvtepi8_epi32(_mm_cvtsi32_si128(four)));
            _mm256_storeu_pd(sums + k, _mm256_fmadd_pd(entries, whole, _mm256_loadu_pd(sums + k)));
        }
    }
}

/* sums += tiles first .. last - 1 of R bands (an even number of them), `tiles` theirs. */
INLINE void tile_pairs(const int D, const int R, int64_t first, int64_t last, const char **tiles, int16_t *const (*x)[2],
                       double (*sums)[TALL]) {
    while (first < last) {
        const int64_t stop = last - first > FEW_TILES ? first + FEW_TILES : last;
        vi acc[2][2][2];
#pragma GCC unroll 8
        for (int k = 0; k < 8; k++) acc[k / 4][k / 2 % 2][k % 2] = _mm256_setzero_si256();
        for (; first < stop; first += 2)
#pragma GCC unroll 2
            for (int r = 0; r < R; r++) {
                const __m128i a = _mm_loadu_si128((const __m128i *)tiles[r]);
                const __m128i b = _mm_loadu_si128((const __m128i *)(tiles[r] + TALL));
                const vi low = _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(a, b)), high = _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(a, b));
                __builtin_prefetch(tiles[r] + AHEAD);
                tiles[r] += 2 * TALL;
#pragma GCC unroll 2
                for (int d = 0; d < D; d++) {
                    int32_t two;
                    memcpy(&two, x[r][d] + first, 4);
                    acc[r][d][0] = _mm256_add_epi32(acc[r][d][0], _mm256_madd_epi16(low, _mm256_set1_epi32(two)));
                    acc[r][d][1] = _mm256_add_epi32(acc[r][d][1], _mm256_madd_epi16(high, _mm256_set1_epi32(two)));
                }
            }
#pragma GCC unroll 2
        for (int r = 0; r < R; r++)
#pragma GCC unroll 2
            for (int d = 0; d < D; d++) {
                int32_t part[TALL];
                _mm256_storeu_si256((vi *)part, acc[r][d][0]);
                _mm256_storeu_si256((vi *)(part + VL), acc[r][d][1]);
                for (int k = 0; k < TALL; k++) sums[r][k] += d ? (double)part[k] * WORD : part[k];
            }
    }
}

INLINE void tile_words(const job *j, const int D, int64_t first, int64_t last, char *scratch) {
    const int64_t half = (last - first + 1) / 2, room = j->chunks * CHUNK * 2 + OVERREAD;
    int16_t *to[2][2];
    for (int k = 0; k < 4; k++) to[k / 2][k % 2] = (int16_t *)(scratch + k * room);
    large_tile *kept[2] = {(large_tile *)(scratch + 4 * room), (large_tile *)(scratch + 5 * room)};
    for (int64_t i = first; i < first + half; i++) {
        const int64_t band[2] = {i, i + half < last ? i + half : i};
        int64_t count[2], many[2] = {0, 0};
        double sums[2][TALL] = {{0}};
        const char *p[2], *tiles[2];
        for (int r = 0; r < 2; r++) {
            p[r] = tiles[r] = (const char *)j->m->values + j->m->offsets[band[r]] * TALL;
            count[r] = pick_words(j, D, band[r], to[r], kept[r], &many[r]);
        }
        const int64_t side_by_side = (count[0] < count[1] ? count[0] : count[1]) & ~1;
        tile_pairs(D, 2, 0, side_by_side, p, to, sums);
        for (int r = 0; r < 2; r++) {
            const int64_t even = count[r] & ~1;
            char end[2 * TALL] = {0};
            const char *tile = end;
            tile_pairs(D, 1, side_by_side, even, p + r, to + r, sums + r);
            if (even == count[r]) continue;
            memcpy(end, p[r], TALL);
            tile_pairs(D, 1, even, even + 2, &tile, to + r, sums + r);
        }
        for (int r = 0; r < 2; r++) {
            add_large_tiles(kept[r], many[r], tiles[r], sums[r]);
            for (int64_t row = band[r] * TALL; row < (band[r] + 1) * TALL && row < j->m->rows; row++)
                put(j, 0, row, (float)(sums[r][row % TALL] * j->unit * scale_at(j, row, 0)));
        }
    }
}

#define TILE_WORDS(D) ALONE tile_words_##D(ARGUMENTS) { tile_words(j, D, first, last, scratch); }
TILE_WORDS(1)
TILE_WORDS(2)
#define TILE_WORDS_CALL(D) tile_words_##D(j, first, last, scratch)
#else
#define TILE_WORDS_CALL(D) (void)0
#endif

#define TILE_FUNCTION(dtype, grouped)                                                     \
    ALONE tile_##dtype##_##grouped(ARGUMENTS) {                                           \
        tile_range(j, SECATEUR_##dtype, grouped, first, last, scratch);                   \
    }
TILE_FUNCTION(F32, 0)
TILE_FUNCTION(BF16, 0)
TILE_FUNCTION(I8, 0)
TILE_FUNCTION(I8, 1)

void PATH(secateur_tile16)(ARGUMENTS) {
    if (j->m->dtype == SECATEUR_F32) tile_F32_0(j, first, last, scratch);
    else if (j->m->dtype == SECATEUR_BF16) tile_BF16_0(j, first, last, scratch);
    else if (WORDS_WAY && j->count == 1) TILE_WORDS_CALL(1);
    else if (WORDS_WAY) TILE_WORDS_CALL(2);
    else if (j->way == WAY_DIGITS && j->count == 2) TILE_DIGITS_CALL(2);
    else if (j->way == WAY_DIGITS && j->count == 3) TILE_DIGITS_CALL(3);
    else if (j->way == WAY_DIGITS) TILE_DIGITS_CALL(4);
    else if (j->m->group) tile_I8_1(j, first, last, scratch);
    else tile_I8_0(j, first, last, scratch);
}
