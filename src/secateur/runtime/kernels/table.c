/* The functions of one path. */
#include "prepare.h"

#define DECLARE(name) void PATH(secateur_##name)(const job *j, int64_t first, int64_t last, char *scratch);
DECLARE(bitmask)
DECLARE(nm)
DECLARE(tile4)
DECLARE(tile16)
DECLARE(dense)

const path_table PATH(secateur_table) = {
    .slab = MOST_VECTORS * VL,
    .prepare = prepare,
    .run = {PATH(secateur_bitmask), PATH(secateur_nm), PATH(secateur_tile4), PATH(secateur_tile16), PATH(secateur_dense)},
    .around = &PATH(secateur_around),
};

#if SECATEUR_PATH == 1
/* Tables of what AVX-512 has instructions for: simd.h says what each holds.  PLACE(b, i): how many bits of b are below bit i,
 * CUT where that is not set; KTH(b, k): which bit is the k-th that is set.
 */
#define CUT (-128)
#define PLACE(b, i) ((b) >> (i)&1 ? __builtin_popcount((b) & ((1 << (i)) - 1)) : CUT)
#define ABOVE(b, k, i) (__builtin_popcount((b) & ((2 << (i)) - 1)) <= (k))
#define KTH(b, k)                                                                                                     \
    (ABOVE(b, k, 0) + ABOVE(b, k, 1) + ABOVE(b, k, 2) + ABOVE(b, k, 3) + ABOVE(b, k, 4) + ABOVE(b, k, 5) +            \
     ABOVE(b, k, 6) + ABOVE(b, k, 7))
#define EIGHT(b) {OF(b, 0), OF(b, 1), OF(b, 2), OF(b, 3), OF(b, 4), OF(b, 5), OF(b, 6), OF(b, 7)}
#define FOUR(b) {OF(b, 0), OF(b, 1), OF(b, 2), OF(b, 3)}
#define TIMES4(ROW, b) ROW(b), ROW(b + 1), ROW(b + 2), ROW(b + 3)
#define TIMES16(ROW, b) TIMES4(ROW, b), TIMES4(ROW, b + 4), TIMES4(ROW, b + 8), TIMES4(ROW, b + 12)
#define TIMES64(ROW, b) TIMES16(ROW, b), TIMES16(ROW, b + 16), TIMES16(ROW, b + 32), TIMES16(ROW, b + 48)
#define TIMES256(ROW) TIMES64(ROW, 0), TIMES64(ROW, 64), TIMES64(ROW, 128), TIMES64(ROW, 192)

#define OF(b, i) PLACE(b, i)
const int8_t secateur_places[256][8] = {TIMES256(EIGHT)};
#undef OF
#define OF(b, i) (PLACE(b, i) == CUT ? CUT : 8 + PLACE(b, i))
const int8_t secateur_places_behind[256][8] = {TIMES256(EIGHT)};
#undef OF
#define OF(b, i) (PLACE(b, i) == CUT ? CUT : 2 * PLACE(b, i)), (PLACE(b, i) == CUT ? CUT : 2 * PLACE(b, i) + 1)
const int8_t secateur_pair_places[256][16] = {TIMES256(EIGHT)};
#undef OF
#define OF(b, k) (2 * KTH(b, k)), (2 * KTH(b, k) + 1)
const int8_t secateur_kept_places[256][16] = {TIMES256(EIGHT)};
#undef OF
#define BYTE(b, t, i) (PLACE(b, t) == CUT ? CUT : 4 * PLACE(b, t) + (i))
#define OF(b, t) BYTE(b, t, 0), BYTE(b, t, 1), BYTE(b, t, 2), BYTE(b, t, 3)
const int8_t secateur_tile_places[16][16] = {TIMES16(FOUR, 0)};
#undef OF
#define OF(b, t) (PLACE(b, t) == CUT ? CUT : 2 * PLACE(b, t)), (PLACE(b, t) == CUT ? CUT : 2 * PLACE(b, t) + 1)
const int32_t secateur_tile_pair_places[16][8] = {TIMES16(FOUR, 0)};
#endif
