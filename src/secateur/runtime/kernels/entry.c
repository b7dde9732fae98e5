/* The interface: which path runs here, the work of one call cut into slabs of x and parts of W, and the checks. */
#include <stdlib.h>

#include "internal.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "masks are read as little-endian words"
#endif

#define TALL 16
#define PRODUCTS 3             /* of one x, that secateur_products takes at most */
#define PART_BYTES (512 << 10) /* about what a part of the work reads */
#define PARTS_A_THREAD 8
#define PARTS_OF_ONE 2            /* the same for one row of x: a part's streams take their time to get going */

int64_t secateur_abi(void) { return SECATEUR_ABI; }

int64_t secateur_best(void) {
#ifdef SECATEUR_X86
    __builtin_cpu_init();
#define HAS(name) __builtin_cpu_supports(name)
    const int avx2 = HAS("avx2") && HAS("fma") && HAS("popcnt") && HAS("bmi") && HAS("bmi2");
    if (avx2 && HAS("avx512f") && HAS("avx512bw") && HAS("avx512vl") && HAS("avx512dq") && HAS("avx512vbmi") &&
        HAS("avx512vbmi2") && HAS("avx512vnni"))
        return SECATEUR_AVX512;
    if (avx2) return SECATEUR_AVX2;
#endif
    return SECATEUR_PORTABLE;
}

/* Whether VDPBF16PS is there too, which the path can do without. */
static int pairs_do(void) {
#ifdef SECATEUR_X86
    return __builtin_cpu_supports("avx512bf16") != 0;
#else
    return 0;
#endif
}

static int64_t chosen = -1;

int64_t secateur_path(void) {
    int64_t path = __atomic_load_n(&chosen, __ATOMIC_RELAXED);
    return path < 0 ? secateur_use(SECATEUR_AVX512) : path;
}

int64_t secateur_use(int64_t path) {
    const int64_t best = secateur_best();
    path = path < 0 ? 0 : path > best ? best : path;
    __atomic_store_n(&chosen, path, __ATOMIC_RELAXED);
    return path;
}

static const path_table *table(void) {
#ifdef SECATEUR_X86
    const int64_t path = secateur_path();
    if (path == SECATEUR_AVX512) return &secateur_table_avx512;
    if (path == SECATEUR_AVX2) return &secateur_table_avx2;
#endif
    return &secateur_table_portable;
}

const around_table *secateur_around(void) { return table()->around; }

/* What can be refused without reading the data. */
static int sound(const secateur_matrix *m) {
    const int whole = m->dtype == SECATEUR_I8 || m->dtype == SECATEUR_I4;
    const int floating = m->dtype == SECATEUR_F32 || m->dtype == SECATEUR_BF16;
    if (m->kind < 0 || m->kind >= SECATEUR_KINDS || m->rows < 0 || m->cols < 0 || m->count < 0) return 0;
    if (!whole && !floating) return 0;
    if (m->dtype == SECATEUR_I4 && (m->kind != SECATEUR_DENSE || !m->group)) return 0;
    const int empty = m->rows == 0 || m->cols == 0; /* then null stands for no scales at all */
    if (whole && ((!m->scales && !empty) || (m->scale_dtype != SECATEUR_F32 && m->scale_dtype != SECATEUR_BF16))) return 0;
    if (m->group && (m->group < 32 || (m->group & (m->group - 1)) || m->cols % m->group)) return 0;
    if (m->kind == SECATEUR_NM && (m->n < 1 || m->n > 4)) return 0;
    if ((m->kind == SECATEUR_NM || m->kind == SECATEUR_TILE4) && m->cols % 4) return 0;
    return 1;
}

/* One product, ready to be cut in parts. */
typedef struct {
    secateur_matrix m; /* its values are never null */
    job j;
    const path_table *table;
    int64_t units, parts;
    int64_t x_bytes, digit_bytes, slab;
} task;

/* `part` of several products' parts, counted through. */
static void run_part(void *context, int64_t part) {
    task *t = context;
    for (; part >= t->parts; t++) part -= t->parts;
    const int64_t first = t->units * part / t->parts, last = t->units * (part + 1) / t->parts;
    if (first < last) t->table->run[t->m.kind](&t->j, first, last, t->j.scratch + part * t->j.scratch_bytes);
}

static void only_bias(const secateur_matrix *m, void *y, int64_t batch, int64_t dtype) {
    job j = {.m = m, .y = y, .y_dtype = dtype};
    for (int64_t b = 0; b < batch; b++)
        for (int64_t row = 0; row < m->rows; row++) put(&j, b, row, 0);
}

static int64_t aligned(int64_t bytes) { return (bytes + 127) / 64 * 64; }

static const char nothing[OVERREAD]; /* where the values of an all-cut matrix are */

/* What does not depend on x: how many parts, how much memory. */
static void plan(task *t, int64_t batch, int64_t dtype, int64_t threads) {
    const secateur_matrix *m = &t->m;
    const int64_t entry = entry_bytes(m->dtype);
    const int64_t tile = m->kind == SECATEUR_TILE16 ? TALL : m->kind == SECATEUR_TILE4 ? 4 : 1;
    const int64_t units = m->kind == SECATEUR_TILE16 ? (m->rows + TALL - 1) / TALL : m->rows;
    const int64_t bytes = m->dtype == SECATEUR_I4 ? m->rows * m->cols / 2 : m->count * tile * entry;
    job *j = &t->j;
    *j = (job){.m = m, .y_dtype = dtype, .values_end = (const char *)m->values + bytes, .pairs_do = pairs_do()};
    j->mask_stride = ((m->kind == SECATEUR_TILE4 ? m->cols / 4 : m->cols) + 7) / 8;
    j->chunks = (m->cols + CHUNK - 1) / CHUNK;
    j->groups = m->group ? m->cols / m->group : 1;
    j->group_shift = m->group ? __builtin_ctzll((uint64_t)m->group) - 5 : 0;
    if (!m->group) j->group_shift = 62; /* any column's group is the row's */

    int64_t parts = threads <= 1 ? 1 : bytes / PART_BYTES;
    if (threads > 1 && parts < threads) parts = threads;
    const int64_t most = threads * (batch == 1 ? PARTS_OF_ONE : PARTS_A_THREAD);
    if (threads > 1 && parts > most) parts = most;
    if (parts > (units + STREAMS - 1) / STREAMS) parts = (units + STREAMS - 1) / STREAMS;
    t->units = units;
    t->parts = parts;
    const int64_t entry_or_index = entry > 4 || m->kind == SECATEUR_TILE16 ? 4 : entry;
    j->scratch_bytes = STREAMS * aligned(j->chunks * CHUNK * entry_or_index + OVERREAD);
    t->slab = batch < t->table->slab ? batch : t->table->slab;
    int64_t lanes = t->slab; /* what prepare may pad it to */
    if (t->slab > 1 && m->kind != SECATEUR_TILE16)
        for (lanes = 16; lanes < t->slab;) lanes *= 2;
    t->digit_bytes = aligned((j->chunks + 1) * CHUNK * DIGITS); /* int4 takes two chunks at a time */
    t->x_bytes = t->slab == 1 ? 2 * t->digit_bytes : aligned(j->chunks * CHUNK * lanes * 4);
}

static int64_t memory_of(const task *t) { return t->x_bytes + t->parts * t->j.scratch_bytes; }

static void give(task *t, char *memory) {
    t->j.x = (float *)memory;
    t->j.digits = (int8_t *)memory;
    t->j.offsets = (int32_t *)(memory + t->digit_bytes);
    t->j.large = (large_entry *)(memory + t->digit_bytes + t->digit_bytes / 2);
    t->j.scratch = memory + t->x_bytes;
}

/* A task for the matrix, where there is something to multiply: without columns y is the bias, or nothing. */
static int begin(task *t, const secateur_matrix *matrix, void *y, int64_t batch, int64_t dtype, int64_t threads) {
    t->m = *matrix;
    t->table = table();
    t->parts = 0;
    if (!t->m.values) t->m.values = nothing;
    if (!sound(&t->m) || batch < 0 || (dtype != SECATEUR_F32 && dtype != SECATEUR_BF16)) return SECATEUR_BAD;
    if (batch == 0 || t->m.rows == 0) return SECATEUR_OK;
    if (t->m.cols == 0) only_bias(&t->m, y, batch, dtype);
    else plan(t, batch, dtype, threads);
    return SECATEUR_OK;
}

int secateur_linear(const secateur_matrix *matrix, const void *x, void *y, int64_t batch, int64_t dtype, int64_t threads) {
    task t;
    const int code = begin(&t, matrix, y, batch, dtype, threads);
    if (code || t.parts == 0) return code;
    char *memory = 0;
    if (posix_memalign((void **)&memory, 64, (size_t)memory_of(&t)) != 0) return SECATEUR_MEMORY;
    give(&t, memory);
    const int64_t width = dtype == SECATEUR_F32 ? 4 : 2;
    for (int64_t b = 0; b < batch; b += t.j.batch) {
        t.j.batch = batch - b < t.slab ? batch - b : t.slab;
        t.j.y = (char *)y + b * t.m.rows * width;
        t.table->prepare(&t.j, (const char *)x + b * t.m.cols * width, dtype);
        secateur_parallel(run_part, &t, t.parts, threads);
    }
    free(memory);
    return SECATEUR_OK;
}

int secateur_products(const secateur_matrix *const *matrices, void *const *ys, int count, const void *x, int64_t dtype,
                      int64_t threads) {
    task tasks[PRODUCTS];
    int64_t bytes = 0, parts = 0;
    if (count > PRODUCTS) return SECATEUR_BAD;
    for (int i = 0; i < count; i++) {
        const int code = begin(tasks + i, matrices[i], ys[i], 1, dtype, threads);
        if (code) return code;
        if (tasks[i].parts) bytes += memory_of(tasks + i);
        parts += tasks[i].parts;
    }
    char *memory = 0;
    if (posix_memalign((void **)&memory, 64, (size_t)bytes + 64) != 0) return SECATEUR_MEMORY;
    char *next = memory;
    for (int i = 0; i < count; i++) {
        task *t = tasks + i;
        if (!t->parts) continue;
        give(t, next);
        next += memory_of(t);
        t->j.batch = 1;
        t->j.y = ys[i];
        t->table->prepare(&t->j, x, dtype);
    }
    secateur_parallel(run_part, tasks, parts, threads);
    free(memory);
    return SECATEUR_OK;
}

typedef uint64_t pair_of_words __attribute__((vector_size(16), aligned(8), may_alias));

typedef struct {
    const pair_of_words *pairs;
    int64_t count, parts;
    uint64_t found;
} reading;

/* Four streams, as the kernels have, each a line of memory at a time: memory, not this, is what should be waited for. */
static void read_part(void *context, int64_t part) {
    reading *r = context;
    const int64_t first = r->count * part / r->parts, quarter = (r->count * (part + 1) / r->parts - first) / 4;
    pair_of_words found[4] = {{0}, {0}, {0}, {0}};
    for (int64_t i = 0; i + 4 <= quarter; i += 4)
        for (int k = 0; k < 4; k++) {
            const pair_of_words *from = r->pairs + first + k * quarter + i;
            found[k] ^= (from[0] ^ from[1]) ^ (from[2] ^ from[3]);
        }
    const pair_of_words all = (found[0] ^ found[1]) ^ (found[2] ^ found[3]);
    __atomic_fetch_xor(&r->found, all[0] ^ all[1], __ATOMIC_RELAXED);
}

int64_t secateur_read(const void *memory, int64_t bytes, int64_t threads) {
    reading r = {memory, bytes / 16, threads < 1 ? 1 : threads, 0};
    secateur_parallel(read_part, &r, r.parts, threads);
    return (int64_t)r.found;
}
