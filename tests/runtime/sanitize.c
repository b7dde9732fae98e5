/* Every kind, dtype and path on memory of exactly the size it needs, so that a sanitizer sees whatever reaches past it;
 * each product is compared with a slow one.  Built by CMakeLists.txt with -DSECATEUR_DRIVER, run by test_library.py.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../src/secateur/runtime/kernels/secateur.h"

static uint32_t state = 1;

static uint32_t number(uint32_t below) { /* Marsaglia's xorshift */
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state % below;
}

static float real(void) { return (float)number(2001) / 1000.0f - 1.0f; }

static void *exactly(int64_t bytes) { /* malloc(0) may be null: then what is passed is null */
    return bytes ? malloc((size_t)bytes) : 0;
}

typedef struct {
    secateur_matrix m;
    double *dense;        /* [rows, cols] */
    unsigned char *kept;  /* [rows, cols] */
} sample;

static float bf16(float value, uint16_t *bits) {
    uint32_t wide;
    memcpy(&wide, &value, 4);
    *bits = (uint16_t)(wide >> 16);
    wide &= 0xffff0000u;
    memcpy(&value, &wide, 4);
    return value;
}

static double put_entry(sample *s, int64_t i) { /* a random entry at place i of values; its number */
    if (s->m.dtype == SECATEUR_F32) return ((float *)s->m.values)[i] = real();
    if (s->m.dtype == SECATEUR_BF16) return bf16(real(), (uint16_t *)s->m.values + i);
    return ((int8_t *)s->m.values)[i] = (int8_t)((int)number(256) - 128);
}

static double scale(const sample *s, int64_t row, int64_t column) {
    const secateur_matrix *m = &s->m;
    if (!m->scales) return 1;
    const int64_t groups = m->group ? m->cols / m->group : 1, g = m->group ? column / m->group : 0;
    int64_t at = row * groups + g;
    if (m->group && m->kind == SECATEUR_TILE16) at = (row / 16 * groups + g) * 16 + row % 16;
    if (m->scale_dtype == SECATEUR_F32) return ((const float *)m->scales)[at];
    const uint32_t wide = (uint32_t)((const uint16_t *)m->scales)[at] << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

static sample make(int64_t kind, int64_t dtype, int64_t rows, int64_t cols, int64_t group, int64_t scale_dtype, uint32_t percent) {
    sample s = {.m = {.rows = rows, .cols = cols, .kind = kind, .dtype = dtype, .group = group, .scale_dtype = scale_dtype}};
    secateur_matrix *m = &s.m;
    const int64_t bands = (rows + 15) / 16, units = kind == SECATEUR_TILE16 ? bands : rows;
    const int64_t bits = kind == SECATEUR_TILE4 ? cols / 4 : cols, stride = (bits + 7) / 8;
    const int64_t tile = kind == SECATEUR_TILE4 ? 4 : kind == SECATEUR_TILE16 ? 16 : 1;
    unsigned char *mask = calloc((size_t)(units * stride + 1), 1), *exact = 0;
    int64_t *offsets = exactly(8 * units);
    m->n = kind == SECATEUR_NM ? 1 + number(4) : 0;
    s.dense = calloc((size_t)(rows * cols + 1), sizeof(double));
    s.kept = calloc((size_t)(rows * cols + 1), 1);
    for (int64_t u = 0; u < units; u++) {
        offsets[u] = m->count;
        for (int64_t i = 0; i < bits; i++) {
            int keep = number(100) < percent || kind == SECATEUR_DENSE;
            if (kind == SECATEUR_NM) keep = (i + u) % 4 < m->n;
            if (keep) mask[u * stride + i / 8] |= (unsigned char)(1 << i % 8);
            m->count += keep;
        }
    }
    const int64_t size = dtype == SECATEUR_F32 ? 4 : dtype == SECATEUR_BF16 ? 2 : 1;
    const int64_t bytes = dtype == SECATEUR_I4 ? rows * cols / 2 : m->count * tile * size;
    m->values = exactly(bytes);
    if (kind != SECATEUR_DENSE && units > 0 && stride > 0) memcpy(exact = exactly(units * stride), mask, (size_t)(units * stride));
    m->mask = exact;
    m->offsets = kind == SECATEUR_NM || kind == SECATEUR_DENSE ? 0 : offsets;
    if (!m->offsets) free(offsets);
    if (dtype >= SECATEUR_I8) {
        const int64_t count = !group ? rows : kind == SECATEUR_TILE16 ? bands * (cols / group) * 16 : rows * (cols / group);
        m->scales = exactly(count * (scale_dtype == SECATEUR_F32 ? 4 : 2));
        for (int64_t i = 0; i < count; i++) {
            if (scale_dtype == SECATEUR_F32) ((float *)m->scales)[i] = real() + 1.5f;
            else bf16(real() + 1.5f, (uint16_t *)m->scales + i);
        }
    }
    int64_t next = 0;
    for (int64_t u = 0; u < units; u++)
        for (int64_t i = 0; i < bits; i++) {
            if (!(mask[u * stride + i / 8] >> i % 8 & 1)) continue;
            for (int64_t k = 0; k < tile; k++, next++) {
                const int64_t row = kind == SECATEUR_TILE16 ? u * 16 + k : u, col = kind == SECATEUR_TILE4 ? i * 4 + k : i;
                double value;
                if (dtype == SECATEUR_I4) {
                    unsigned char *byte = (unsigned char *)m->values + next / 2;
                    const uint32_t nibble = number(16);
                    *byte = (unsigned char)(next % 2 ? (*byte & 15) | nibble << 4 : nibble);
                    value = (double)nibble - 8;
                } else {
                    value = put_entry(&s, next);
                }
                if (row >= rows) continue; /* what fills the last band */
                s.dense[row * cols + col] = value * scale(&s, row, col);
                s.kept[row * cols + col] = 1;
            }
        }
    free(mask);
    return s;
}

static void discard(sample *s) {
    free((void *)s->m.values);
    free((void *)s->m.mask);
    free((void *)s->m.offsets);
    free((void *)s->m.scales);
    free(s->dense);
    free(s->kept);
}

static int64_t products, wrong;

static void compare(const sample *s, int64_t batch, int64_t threads, int64_t dtype, int with_nan) {
    const int64_t rows = s->m.rows, cols = s->m.cols, size = dtype == SECATEUR_F32 ? 4 : 2;
    float *plain = malloc((size_t)(batch * cols) * 4 + 4);
    void *x = exactly(batch * cols * size), *y = exactly(batch * rows * size);
    for (int64_t i = 0; i < batch * cols; i++) {
        plain[i] = with_nan && i == cols / 2 ? NAN : real();
        if (products % 2 && i % 41 == 3) plain[i] *= 40; /* few enough to be multiplied by themselves (kernels/whole.h) */
        if (dtype == SECATEUR_F32) ((float *)x)[i] = plain[i];
        else plain[i] = bf16(plain[i], (uint16_t *)x + i);
    }
    if (secateur_linear(&s->m, x, y, batch, dtype, threads) != SECATEUR_OK) {
        printf("refused\n");
        wrong++;
    }
    for (int64_t b = 0; b < batch; b++)
        for (int64_t row = 0; row < rows; row++) {
            double sum = s->m.bias ? s->m.bias[row] : 0, most = fabs(sum), square = 0, usual = 0;
            for (int64_t c = 0; c < cols; c++) {
                const double term = s->dense[row * cols + c] * plain[b * cols + c];
                const double w = s->dense[row * cols + c];
                if (s->kept[row * cols + c]) sum += term, most += fabs(term), square += w * w;
                if (!isnan(plain[b * cols + c])) usual += fabs(plain[b * cols + c]) / (double)cols;
            }
            float found;
            if (dtype == SECATEUR_F32) {
                found = ((float *)y)[b * rows + row];
            } else {
                const uint32_t wide = (uint32_t)((uint16_t *)y)[b * rows + row] << 16;
                memcpy(&found, &wide, 4);
            }
            double slack = 3e-6 * most + (dtype == SECATEUR_F32 ? 0 : fabs(sum) / 256) + 1e-30;
            if (dtype == SECATEUR_BF16 && s->m.scales) slack += 5 * 0x1p-12 * sqrt(square) * usual; /* x as digits */
            if (isnan(sum) ? !isnan(found) : !(fabs(found - sum) <= slack)) {
                if (wrong++ < 10)
                    printf("kind %d dtype %d [%d, %d] group %d batch %d path %d: %g, not %g\n", (int)s->m.kind,
                           (int)s->m.dtype, (int)rows, (int)cols, (int)s->m.group, (int)batch, (int)secateur_path(), found, sum);
            }
        }
    products++;
    free(plain);
    free(x);
    free(y);
}

static void times(const sample *s, const double *x, double *y) {
    for (int64_t row = 0; row < s->m.rows; row++) {
        y[row] = 0;
        for (int64_t c = 0; c < s->m.cols; c++) y[row] += s->dense[row * s->m.cols + c] * x[c];
    }
}

enum { HIDDEN = 44, HEADS = 6, SHARED = 2, SIZE = 10, INNER = 37, ROOM = 140, MATRICES = 7 };

/* One layer, token by token in float32: against sums in double. */
static void layer(int64_t threads) {
    static const int64_t shapes[MATRICES][2] = {{HEADS * SIZE, HIDDEN}, {SHARED * SIZE, HIDDEN}, {SHARED * SIZE, HIDDEN},
                                                {HIDDEN, HEADS * SIZE}, {INNER, HIDDEN}, {INNER, HIDDEN}, {HIDDEN, INNER}};
    sample w[MATRICES];
    for (int k = 0; k < MATRICES; k++) {
        w[k] = make(SECATEUR_BITMASK, SECATEUR_F32, shapes[k][0], shapes[k][1], 0, 0, 50);
    }
    const size_t row = SIZE * 4;
    float *norms = exactly(2 * HIDDEN * 4), *cosines = exactly(ROOM * row), *sines = exactly(ROOM * row), *hidden = exactly(HIDDEN * 4);
    float *keys = exactly(SHARED * ROOM * row), *values = exactly(SHARED * ROOM * row);
    static double k_of[ROOM][SHARED * SIZE], v_of[ROOM][SHARED * SIZE];
    for (int i = 0; i < 2 * HIDDEN; i++) norms[i] = real();
    for (int i = 0; i < ROOM * SIZE; i++) {
        const double angle = 0.1 * (double)(i / SIZE) * (double)(i % (SIZE / 2) + 1);
        cosines[i] = (float)cos(angle);
        sines[i] = (float)(i % SIZE < SIZE / 2 ? -sin(angle) : sin(angle));
    }
    const secateur_layer l = {&w[0].m, &w[1].m, &w[2].m, &w[3].m, &w[4].m, &w[5].m, &w[6].m, norms, norms + HIDDEN, keys, values,
                              1e-6, 1e-5, HEADS, SHARED, INNER};
    const secateur_stack stack = {&l, cosines, sines, 0.5, 1, SECATEUR_F32, HIDDEN, SIZE, ROOM};
    for (int at = 0; at < ROOM; at++) {
        double h[HIDDEN], n[HIDDEN], q[HEADS * SIZE], mixed[HEADS * SIZE], gate[INNER], up[INNER], more[HIDDEN];
        for (int i = 0; i < HIDDEN; i++) h[i] = hidden[i] = real();
        if (secateur_step(&stack, hidden, 0, 2, at, threads) != SECATEUR_OK) wrong++;
        for (int half = 0; half < 2; half++) {
            double square = half ? 1e-5 : 1e-6;
            for (int i = 0; i < HIDDEN; i++) square += h[i] * h[i] / HIDDEN;
            for (int i = 0; i < HIDDEN; i++) n[i] = h[i] / sqrt(square) * norms[half * HIDDEN + i];
            if (half) {
                times(w + 4, n, gate);
                times(w + 5, n, up);
                for (int i = 0; i < INNER; i++) gate[i] *= up[i] / (1 + exp(-gate[i]));
                times(w + 6, gate, more);
            } else {
                times(w, n, q);
                times(w + 1, n, k_of[at]);
                times(w + 2, n, v_of[at]);
                for (int head = 0; head < HEADS + SHARED; head++) {
                    double *x = head < HEADS ? q + head * SIZE : k_of[at] + (head - HEADS) * SIZE;
                    for (int i = 0; i < SIZE / 2; i++) {
                        const double a = x[i], b = x[i + SIZE / 2], c = cosines[at * SIZE + i];
                        const double sine = sines[at * SIZE + SIZE / 2 + i];
                        x[i] = a * c - b * sine;
                        x[i + SIZE / 2] = b * c + a * sine;
                    }
                }
                for (int head = 0; head < HEADS; head++) {
                    const int own = head / (HEADS / SHARED) * SIZE;
                    double total = 0;
                    for (int i = 0; i < SIZE; i++) mixed[head * SIZE + i] = 0;
                    for (int p = 0; p <= at; p++) {
                        double score = 0;
                        for (int i = 0; i < SIZE; i++) score += q[head * SIZE + i] * k_of[p][own + i];
                        const double share = exp(0.5 * score);
                        total += share;
                        for (int i = 0; i < SIZE; i++) mixed[head * SIZE + i] += share * v_of[p][own + i];
                    }
                    for (int i = 0; i < SIZE; i++) mixed[head * SIZE + i] /= total;
                }
                times(w + 3, mixed, more);
            }
            for (int i = 0; i < HIDDEN; i++) h[i] += more[i];
        }
        for (int i = 0; i < HIDDEN; i++)
            if (!(fabs(hidden[i] - h[i]) <= 2e-5 * (1 + fabs(h[i]))) && wrong++ < 10)
                printf("a layer, position %d, path %d: %g, not %g\n", at, (int)secateur_path(), hidden[i], h[i]);
        products++;
    }
    for (int k = 0; k < MATRICES; k++) discard(w + k);
    free(norms);
    free(cosines);
    free(sines);
    free(hidden);
    free(keys);
    free(values);
}

int main(void) {
    static const int64_t shapes[][2] = {{0, 64}, {1, 1}, {3, 0}, {5, 3}, {7, 64}, {17, 96}, {33, 100}, {20, 132}, {48, 256}, {9, 320},
                                       {13, 8260}};
    static const int64_t batches[] = {0, 1, 2, 5, 9, 16, 35, 64, 66};
    for (int64_t path = 0; path <= secateur_best(); path++) {
        secateur_use(path);
        for (int64_t threads = 1; threads < 4; threads++) layer(threads);
        for (int64_t kind = 0; kind < SECATEUR_KINDS; kind++)
            for (int64_t dtype = 0; dtype <= SECATEUR_I4; dtype++)
                for (size_t shape = 0; shape < sizeof shapes / sizeof *shapes; shape++)
                    for (int64_t group = 0; group <= 128; group = group ? group * 2 : 32) {
                        const int64_t rows = shapes[shape][0], cols = shapes[shape][1];
                        if ((kind == SECATEUR_NM || kind == SECATEUR_TILE4) && cols % 4) continue;
                        if (dtype == SECATEUR_I4 && (kind != SECATEUR_DENSE || !group)) continue;
                        if (group && (dtype < SECATEUR_I8 || cols % group)) continue;
                        static const uint32_t percents[] = {0, 30, 60, 100};
                        sample s = make(kind, dtype, rows, cols, group, number(2), percents[number(4)]);
                        float *bias = number(2) ? exactly(rows * 4) : 0;
                        for (int64_t i = 0; bias && i < rows; i++) bias[i] = real();
                        s.m.bias = bias;
                        for (int k = 0; k < 3; k++) {
                            const int64_t batch = batches[number(sizeof batches / sizeof *batches)];
                            compare(&s, k ? batch : 1, 1 + number(3), number(2), number(4) == 0);
                        }
                        free(bias);
                        discard(&s);
                    }
    }
    printf("%d products on %d paths, %s\n", (int)products, (int)secateur_best() + 1,
           wrong ? "some wrong" : "all as they should be");
    return wrong != 0;
}
