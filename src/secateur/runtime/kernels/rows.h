/* The families whose rows stand alone, written out from the templates.  Each template becomes a function of its own: a
 * compiler that is given all of them in one takes minutes.
 */
#ifndef SECATEUR_ROWS_H
#define SECATEUR_ROWS_H

#include "digits.h"
#include "many.h"
#include "pairs.h"
#include "words.h"

#define ALONE static __attribute__((noinline)) void
#define ARGUMENTS const job *j, int64_t first, int64_t last, char *scratch

#define MANY_FUNCTION(kind, dtype, NB)                                \
    ALONE many_##kind##_##dtype##_##NB(ARGUMENTS) {                   \
        (void)scratch;                                                \
        many_range(j, SECATEUR_##kind, SECATEUR_##dtype, NB, first, last); \
    }
#define ONE_FUNCTION(kind, dtype)                                     \
    ALONE one_##kind##_##dtype(ARGUMENTS) {                           \
        (void)scratch;                                                \
        one_range(j, SECATEUR_##kind, SECATEUR_##dtype, first, last); \
    }
#if SECATEUR_PATH == 2
#define EIGHT_FUNCTION(kind, dtype)
#define EIGHT_CALL(kind, dtype)
#else
#define EIGHT_FUNCTION(kind, dtype) MANY_FUNCTION(kind, dtype, 8)
#define EIGHT_CALL(kind, dtype) \
    if (vectors == 8) many_##kind##_##dtype##_8(j, first, last, scratch);
#endif
#if SECATEUR_PATH
#define DOT_FUNCTION(kind, dtype, grouped)                                              \
    ALONE dot_##kind##_##dtype##_##grouped(ARGUMENTS) {                                 \
        dot_range(j, SECATEUR_##kind, SECATEUR_##dtype, grouped, first, last, scratch); \
    }
#define DOT_CALL(kind, dtype, grouped) dot_##kind##_##dtype##_##grouped(j, first, last, scratch)
#else
#define DOT_FUNCTION(kind, dtype, grouped)
#define DOT_CALL(kind, dtype, grouped) (void)0
#endif
#if SECATEUR_PATH
#define PAIRS_FUNCTION(kind)                                    \
    WITH_PAIRS ALONE pairs_##kind(ARGUMENTS) { pairs_range(j, SECATEUR_##kind, first, last, scratch); }
#define PAIRS_CALL(kind) pairs_##kind(j, first, last, scratch)
#else
#define PAIRS_FUNCTION(kind)
#define PAIRS_CALL(kind) (void)0
#endif
#if SECATEUR_PATH == 2
#define DIGITS_FUNCTION(kind, D)                                \
    ALONE digits_##kind##_##D(ARGUMENTS) { digits_range(j, SECATEUR_##kind, D, first, last, scratch); }
#define DIGITS4_FUNCTION(D)                                     \
    ALONE digits4_##D(ARGUMENTS) { digits4_range(j, D, first, last, scratch); }
#define DIGITS_CALL(kind, D) digits_##kind##_##D(j, first, last, scratch)
#define DIGITS4_CALL(D) digits4_##D(j, first, last, scratch)
#else
#define DIGITS_FUNCTION(kind, D)
#define DIGITS4_FUNCTION(D)
#define DIGITS_CALL(kind, D) (void)0
#define DIGITS4_CALL(D) (void)0
#endif
#if SECATEUR_PATH == 1
#define WORDS_FUNCTION(kind, dtype, grouped, D)                                              \
    ALONE words_##kind##_##dtype##_##grouped##_##D(ARGUMENTS) {                              \
        words_range(j, SECATEUR_##kind, SECATEUR_##dtype, grouped, D, first, last, scratch); \
    }
#define WORDS_CALL(kind, dtype, grouped, D) words_##kind##_##dtype##_##grouped##_##D(j, first, last, scratch)
#define WORDS_WAY (j->way == WAY_DIGITS)
#else
#define WORDS_FUNCTION(kind, dtype, grouped, D)
#define WORDS_CALL(kind, dtype, grouped, D) (void)0
#define WORDS_WAY 0
#endif
#define WORDS_FUNCTIONS(kind, dtype, grouped)                                              \
    WORDS_FUNCTION(kind, dtype, grouped, 1)                                                \
    WORDS_FUNCTION(kind, dtype, grouped, 2)
#define WORDS_CALLS(kind, dtype, grouped)                                                  \
    if (j->count == 1) WORDS_CALL(kind, dtype, grouped, 1);                                \
    else WORDS_CALL(kind, dtype, grouped, 2)

/* What every dtype has, and rows_KIND_DTYPE: the function for the way x is laid out for. */
#define EXACT_FUNCTIONS(kind, dtype)                                                       \
    MANY_FUNCTION(kind, dtype, 1)                                                          \
    MANY_FUNCTION(kind, dtype, 2)                                                          \
    MANY_FUNCTION(kind, dtype, 4)                                                          \
    EIGHT_FUNCTION(kind, dtype)                                                            \
    ONE_FUNCTION(kind, dtype)                                                              \
    static void exact_##kind##_##dtype(ARGUMENTS) {                                        \
        const int64_t vectors = j->lanes / VL;                                             \
        if (j->way == WAY_ONE) one_##kind##_##dtype(j, first, last, scratch);              \
        else if (vectors == 1) many_##kind##_##dtype##_1(j, first, last, scratch);         \
        else if (vectors == 2) many_##kind##_##dtype##_2(j, first, last, scratch);         \
        else if (vectors == 4) many_##kind##_##dtype##_4(j, first, last, scratch);         \
        EIGHT_CALL(kind, dtype)                                                            \
    }

#define FLOAT_ROWS(kind, dtype)                                                            \
    EXACT_FUNCTIONS(kind, dtype)                                                           \
    DOT_FUNCTION(kind, dtype, 0)                                                           \
    static void rows_##kind##_##dtype(ARGUMENTS) {                                         \
        if (j->way == WAY_DOT) DOT_CALL(kind, dtype, 0);                                   \
        else exact_##kind##_##dtype(j, first, last, scratch);                              \
    }

#define BF16_ROWS(kind)                                                                    \
    EXACT_FUNCTIONS(kind, BF16)                                                            \
    DOT_FUNCTION(kind, BF16, 0)                                                            \
    PAIRS_FUNCTION(kind)                                                                   \
    static void rows_##kind##_BF16(ARGUMENTS) {                                            \
        if (j->way == WAY_PAIRS) PAIRS_CALL(kind);                                         \
        else if (j->way == WAY_DOT) DOT_CALL(kind, BF16, 0);                               \
        else exact_##kind##_BF16(j, first, last, scratch);                                 \
    }

#define INT8_ROWS(kind)                                                                    \
    EXACT_FUNCTIONS(kind, I8)                                                              \
    DOT_FUNCTION(kind, I8, 0)                                                              \
    DOT_FUNCTION(kind, I8, 1)                                                              \
    DOT_FUNCTION(kind, I8, 2)                                                              \
    DIGITS_FUNCTION(kind, 2)                                                               \
    DIGITS_FUNCTION(kind, 3)                                                               \
    DIGITS_FUNCTION(kind, 4)                                                               \
    WORDS_FUNCTIONS(kind, I8, 0)                                                           \
    WORDS_FUNCTIONS(kind, I8, 1)                                                           \
    WORDS_FUNCTIONS(kind, I8, 2)                                                           \
    static void rows_##kind##_I8(ARGUMENTS) {                                              \
        if (WORDS_WAY) {                                                                   \
            if (j->m->group > 32) { WORDS_CALLS(kind, I8, 2); }                            \
            else if (j->m->group) { WORDS_CALLS(kind, I8, 1); }                            \
            else { WORDS_CALLS(kind, I8, 0); }                                             \
        } else if (j->way == WAY_DIGITS) {                                                 \
            if (j->count == 2) DIGITS_CALL(kind, 2);                                       \
            else if (j->count == 3) DIGITS_CALL(kind, 3);                                  \
            else DIGITS_CALL(kind, 4);                                                     \
        } else if (j->way == WAY_DOT) {                                                    \
            if (j->m->group > 32) DOT_CALL(kind, I8, 2);                                   \
            else if (j->m->group) DOT_CALL(kind, I8, 1);                                   \
            else DOT_CALL(kind, I8, 0);                                                    \
        } else {                                                                           \
            exact_##kind##_I8(j, first, last, scratch);                                    \
        }                                                                                  \
    }

#define INT4_ROWS(kind)                                                                    \
    EXACT_FUNCTIONS(kind, I4)                                                              \
    DOT_FUNCTION(kind, I4, 1)                                                              \
    DOT_FUNCTION(kind, I4, 2)                                                              \
    DIGITS4_FUNCTION(2)                                                                    \
    DIGITS4_FUNCTION(4)                                                                    \
    WORDS_FUNCTIONS(kind, I4, 1)                                                           \
    WORDS_FUNCTIONS(kind, I4, 2)                                                           \
    static void rows_##kind##_I4(ARGUMENTS) {                                              \
        if (WORDS_WAY) {                                                                   \
            if (j->m->group > 32) { WORDS_CALLS(kind, I4, 2); }                            \
            else { WORDS_CALLS(kind, I4, 1); }                                             \
        } else if (j->way == WAY_DIGITS && j->count == 2) DIGITS4_CALL(2);                 \
        else if (j->way == WAY_DIGITS) DIGITS4_CALL(4);                                    \
        else if (j->way != WAY_DOT) exact_##kind##_I4(j, first, last, scratch);            \
        else if (j->m->group > 32) DOT_CALL(kind, I4, 2);                                  \
        else DOT_CALL(kind, I4, 1);                                                        \
    }

/* A family's function: float32, bfloat16 and int8 rows of one kind. */
#define FAMILY(name, kind)                                                                 \
    FLOAT_ROWS(kind, F32)                                                                  \
    BF16_ROWS(kind)                                                                        \
    INT8_ROWS(kind)                                                                        \
    void PATH(secateur_##name)(ARGUMENTS);                                                 \
    void PATH(secateur_##name)(ARGUMENTS) {                                                \
        switch (j->m->dtype) {                                                             \
            case SECATEUR_F32: rows_##kind##_F32(j, first, last, scratch); break;          \
            case SECATEUR_BF16: rows_##kind##_BF16(j, first, last, scratch); break;        \
            case SECATEUR_I8: rows_##kind##_I8(j, first, last, scratch); break;            \
            OTHER_DTYPES                                                                   \
        }                                                                                  \
    }
#ifndef OTHER_DTYPES
#define OTHER_DTYPES
#endif

#endif
