/* One token through layers built like Llama's, whose matrices are all packed: one call instead of twenty a layer.
 *
 *     n = norm(h);  h += o(attention(turn(q(n)), K and turn(k(n)), V and v(n)))
 *     n = norm(h);  h += down(silu(gate(n)) * up(n))
 *
 * What stands on one line of x is multiplied in one round of the threads (q, k, v; gate, up).  around.c has the rest.
 */
#include <stdlib.h>

#include "internal.h"

typedef struct {
    const secateur_stack *s;
    const around_table *around;
    char *normed, *queries, *mixed, *gate, *up, *more; /* of dtype, one row each; keys and values behind the queries */
    float *parts;
    int64_t at, threads, width;
} step;

static int fits(const secateur_matrix *m, int64_t rows, int64_t cols) { return m && m->rows == rows && m->cols == cols; }

/* Whether a layer's half has matrices of the right shapes. */
static int has_half(const secateur_stack *s, int64_t half) {
    const secateur_layer *l = s->layers + half / 2;
    const int64_t heads = l->heads * s->size, shared = l->shared * s->size;
    if (half % 2)
        return l->inner > 0 && fits(l->gate, l->inner, s->hidden) && fits(l->up, l->inner, s->hidden) &&
               fits(l->down, s->hidden, l->inner) && l->after;
    if (l->shared < 1 || l->heads < l->shared || l->heads % l->shared) return 0;
    return fits(l->q, heads, s->hidden) && fits(l->k, shared, s->hidden) && fits(l->v, shared, s->hidden) &&
           fits(l->o, s->hidden, heads) && l->before && l->keys && l->values;
}

typedef struct {
    const around_table *around;
    attention a;
    int64_t dtype;
} attending;

static void attend_part(void *context, int64_t part) {
    const attending *t = context;
    t->around->attend(&t->a, part, t->dtype);
}

static int attend(const step *t, const secateur_layer *l, char *h) {
    const secateur_stack *s = t->s;
    const int64_t heads = l->heads * s->size, shared = l->shared * s->size, row = s->size * t->width;
    char *keys = t->queries + heads * t->width, *values = keys + shared * t->width;
    t->around->norm(h, l->before, t->normed, s->hidden, (float)l->before_epsilon, s->dtype);
    int code = secateur_products((const secateur_matrix *[]){l->q, l->k, l->v}, (void *[]){t->queries, keys, values}, 3,
                                 t->normed, s->dtype, t->threads);
    if (code) return code;
    t->around->turn(t->queries, (const char *)s->cos + t->at * row, (const char *)s->sin + t->at * row, l->heads + l->shared,
                    s->size, s->dtype);
    for (int64_t g = 0; g < l->shared; g++) {
        memcpy((char *)l->keys + (g * s->room + t->at) * row, keys + g * row, (size_t)row);
        memcpy((char *)l->values + (g * s->room + t->at) * row, values + g * row, (size_t)row);
    }
    attending all = {t->around, {t->queries, l->keys, l->values, l->shared, l->heads / l->shared, s->size, s->room, t->at + 1,
                                 PART_ROW(s->size), (float)s->scale, t->parts}, s->dtype};
    secateur_parallel(attend_part, &all, l->shared * SPANS(t->at + 1), t->threads);
    t->around->mix(&all.a, t->mixed, s->dtype);
    code = secateur_products(&l->o, (void *[]){t->more}, 1, t->mixed, s->dtype, t->threads);
    if (!code) t->around->add(h, t->more, s->hidden, s->dtype);
    return code;
}

static int feed(const step *t, const secateur_layer *l, char *h) {
    const secateur_stack *s = t->s;
    t->around->norm(h, l->after, t->normed, s->hidden, (float)l->after_epsilon, s->dtype);
    int code = secateur_products((const secateur_matrix *[]){l->gate, l->up}, (void *[]){t->gate, t->up}, 2, t->normed,
                                 s->dtype, t->threads);
    if (code) return code;
    t->around->gate(t->gate, t->up, l->inner, s->dtype);
    code = secateur_products(&l->down, (void *[]){t->more}, 1, t->gate, s->dtype, t->threads);
    if (!code) t->around->add(h, t->more, s->hidden, s->dtype);
    return code;
}

int secateur_step(const secateur_stack *s, void *hidden, int64_t first, int64_t last, int64_t at, int64_t threads) {
    if (s->dtype != SECATEUR_F32 && s->dtype != SECATEUR_BF16) return SECATEUR_BAD;
    if (s->hidden < 1 || s->size < 2 || s->size % 2 || s->size > HEAD || at < 0 || at >= s->room) return SECATEUR_BAD;
    if (first < 0 || last > 2 * s->count) return SECATEUR_BAD;
    int64_t heads = 0, both = 0, inner = 0; /* the most of any layer */
    for (int64_t half = first; half < last; half++) {
        const secateur_layer *l = s->layers + half / 2;
        if (!has_half(s, half)) return SECATEUR_BAD;
        if (half % 2) inner = inner > l->inner ? inner : l->inner;
        else heads = heads > l->heads ? heads : l->heads, both = both > l->shared ? both : l->shared;
    }
    both = heads + 2 * both;
    const int64_t width = entry_bytes(s->dtype);
    const int64_t rows[] = {s->hidden, both * s->size, heads * s->size, inner, inner, s->hidden};
    step t = {.s = s, .around = secateur_around(), .at = at, .threads = threads, .width = width};
    char **places[] = {&t.normed, &t.queries, &t.mixed, &t.gate, &t.up, &t.more};
    int64_t bytes = SPANS(at + 1) * heads * PART_ROW(s->size) * 4, begin[6];
    for (int k = 0; k < 6; k++) {
        begin[k] = (bytes + 63) / 64 * 64;
        bytes = begin[k] + rows[k] * width;
    }
    char *memory = malloc((size_t)bytes);
    if (!memory) return SECATEUR_MEMORY;
    t.parts = (float *)memory;
    for (int k = 0; k < 6; k++) *places[k] = memory + begin[k];
    int code = SECATEUR_OK;
    for (int64_t half = first; half < last && !code; half++)
        code = half % 2 ? feed(&t, s->layers + half / 2, hidden) : attend(&t, s->layers + half / 2, hidden);
    free(memory);
    return code;
}
