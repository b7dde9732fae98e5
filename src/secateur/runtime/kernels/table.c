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
};

#if SECATEUR_PATH == 1
#define PLACE(b, i) ((b) >> (i)&1 ? __builtin_popcount((b) & ((1 << (i)) - 1)) : -1)
#define PLACES(b) {PLACE(b, 0), PLACE(b, 1), PLACE(b, 2), PLACE(b, 3), PLACE(b, 4), PLACE(b, 5), PLACE(b, 6), PLACE(b, 7)}
#define FOUR(b) PLACES(b), PLACES(b + 1), PLACES(b + 2), PLACES(b + 3)
#define SIXTEEN(b) FOUR(b), FOUR(b + 4), FOUR(b + 8), FOUR(b + 12)
#define SIXTYFOUR(b) SIXTEEN(b), SIXTEEN(b + 16), SIXTEEN(b + 32), SIXTEEN(b + 48)
const int8_t secateur_places[256][8] = {SIXTYFOUR(0), SIXTYFOUR(64), SIXTYFOUR(128), SIXTYFOUR(192)};
#endif
