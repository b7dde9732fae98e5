/* The plain C interface of the kernels: y[batch, rows] = x[batch, cols] W^T + bias, with W packed as io/packed.py
 * lays it out.  Everything a caller may use is here; the rest of this folder is how.
 *
 * Meaning of a cut weight: it is not there.  Its place in x is not multiplied, so a NaN or an infinity that stands
 * there does not reach y.  A kept weight is multiplied, whatever its value.
 */
#ifndef SECATEUR_H
#define SECATEUR_H

#include <stdint.h>

#define SECATEUR_ABI 2

enum { SECATEUR_BITMASK, SECATEUR_NM, SECATEUR_TILE4, SECATEUR_TILE16, SECATEUR_DENSE, SECATEUR_KINDS };
enum { SECATEUR_F32, SECATEUR_BF16, SECATEUR_I8, SECATEUR_I4 };  /* of values; x, y and scales: the first two */
enum { SECATEUR_OK, SECATEUR_BAD, SECATEUR_MEMORY };             /* what the functions return */
enum { SECATEUR_PORTABLE, SECATEUR_AVX2, SECATEUR_AVX512 };      /* the paths */

/* All fields are 8 bytes, in this order: runtime/ops.py writes them with struct.pack. */
typedef struct {
    const void *values;      /* the kept entries, row after row (I4: two columns a byte, the even one low, +8) */
    const uint8_t *mask;     /* bits, little end first: of entries, or of tiles; not read for DENSE */
    const int64_t *offsets;  /* BITMASK, TILE4: entries (tiles) before each row; TILE16: tiles before each band */
    const void *scales;      /* I8, I4: [rows, cols / group], [rows] when group is 0; TILE16: [bands, groups, 16] */
    const float *bias;       /* [rows] or null */
    int64_t rows, cols;
    int64_t count;           /* entries (tiles) in values, all rows together */
    int64_t kind, dtype, scale_dtype;
    int64_t n;               /* NM: entries kept of every 4 */
    int64_t group;           /* columns that share a scale: 0 (the row), or a multiple of 32 that divides cols */
} secateur_matrix;

/* x [batch, cols] and y [batch, rows] are contiguous, both float32 or both bfloat16 (`dtype`).  Mask, offsets and count
 * must agree: that is for the caller to see to (io/packed.py: check), it is not looked at again. */
int secateur_linear(const secateur_matrix *matrix, const void *x, void *y, int64_t batch, int64_t dtype,
                    int64_t threads);

/* A layer built like Llama's; a half whose matrices are null is not run here. */
typedef struct {
    const secateur_matrix *q, *k, *v, *o, *gate, *up, *down;
    const void *before, *after;            /* weights of the norms, [hidden] */
    void *keys, *values;                   /* [shared, room, size], written at the token's position */
    double before_epsilon, after_epsilon;
    int64_t heads, shared, inner;          /* heads of queries, of keys and values; width of the MLP */
} secateur_layer;

/* Rows, norms, keys, values, cosines and sines are of `dtype`. All fields are 8 bytes (runtime/native.py). */
typedef struct {
    const secateur_layer *layers;
    const void *cos, *sin;                 /* [room, size]; the first half of each row of sines negative */
    double scale;                          /* of the scores */
    int64_t count, dtype, hidden, size, room; /* layers; ...; entries of a head; positions that keys have */
} secateur_stack;

/* One token at position `at` through the halves first .. last-1 of the layers (attention is the half 2 i, the gated MLP
 * 2 i + 1): `hidden` [hidden] becomes what they make of it. */
int secateur_step(const secateur_stack *stack, void *hidden, int64_t first, int64_t last, int64_t at, int64_t threads);

/* Reads all of it once, with so many threads: what memory can deliver.  Returns an exclusive or of its words. */
int64_t secateur_read(const void *memory, int64_t bytes, int64_t threads);

int64_t secateur_abi(void);
int64_t secateur_best(void);           /* the best path this processor can run */
int64_t secateur_path(void);           /* the path in use */
int64_t secateur_use(int64_t path);    /* use that path (at most the best); returns the one now in use */

/* The OpenMP runtime of the host program, as the address of its GOMP_parallel: work then runs on its threads, so that
 * no second pool stands beside it.  Null: a pool of our own. */
void secateur_set_gomp(void *gomp_parallel);

#endif
