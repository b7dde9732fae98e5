/* bitmask: a bit for each entry, the kept entries row after row, and where each row starts. */
#include "rows.h"

FAMILY(bitmask, BITMASK)
