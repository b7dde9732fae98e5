/* dense: every entry, in float32, bfloat16, int8 or int4.  The yardstick for the others, and what is kept where it wins. */
#define OTHER_DTYPES \
    case SECATEUR_I4: rows_DENSE_I4(j, first, last, scratch); break;
#include "rows.h"

INT4_ROWS(DENSE)
FAMILY(dense, DENSE)
