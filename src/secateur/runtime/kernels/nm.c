/* N:4: n entries kept of every 4, so that where a row starts needs no table; bits as in bitmask. */
#include "rows.h"

FAMILY(nm, NM)
