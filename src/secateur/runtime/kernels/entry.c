/* The interface: which path runs here, the work of one call cut into slabs of x and parts of W, and the checks. */
#include <stdlib.h>

#include "internal.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "masks are read as little-endian words"
#endif

#define TALL 16
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

typedef struct {
    const job *j;
    const path_table *table;
    int64_t units, parts;
} task;

static void run_part(void *context, int64_t part) {
    const task *t = context;
    const int64_t first = t->units * part / t->parts, last = t->units * (part + 1) / t->parts;
    if (first < last) t->table->run[t->j->m->kind](t->j, first, last, t->j->scratch + part * t->j->scratch_bytes);
}

static void only_bias(const secateur_matrix *m, void *y, int64_t batch, int64_t dtype) {
    job j = {.m = m, .y = y, .y_dtype = dtype};
    for (int64_t b = 0; b < batch; b++)
        for (int64_t row = 0; row < m->rows; row++) put(&j, b, row, 0);
}

static int64_t aligned(int64_t bytes) { return (bytes + 127) / 64 * 64; }

static const char nothing[OVERREAD]; /* where the values of an all-cut matrix are */

int secateur_linear(const secateur_matrix *matrix, const void *x, void *y, int64_t batch, int64_t dtype, int64_t threads) {
    secateur_matrix whole = *matrix;
    const secateur_matrix *m = &whole;
    if (!whole.values) whole.values = nothing;
    if (!sound(m) || batch < 0 || (dtype != SECATEUR_F32 && dtype != SECATEUR_BF16)) return SECATEUR_BAD;
    if (batch == 0 || m->rows == 0) return SECATEUR_OK;
    if (m->cols == 0) {
        only_bias(m, y, batch, dtype);
        return SECATEUR_OK;
    }
    const path_table *path = table();
    const int64_t width = dtype == SECATEUR_F32 ? 4 : 2, entry = entry_bytes(m->dtype);
    const int64_t tile = m->kind == SECATEUR_TILE16 ? TALL : m->kind == SECATEUR_TILE4 ? 4 : 1;
    const int64_t units = m->kind == SECATEUR_TILE16 ? (m->rows + TALL - 1) / TALL : m->rows;
    const int64_t bytes = m->dtype == SECATEUR_I4 ? m->rows * m->cols / 2 : m->count * tile * entry;
    job j = {.m = m, .y_dtype = dtype, .values_end = (const char *)m->values + bytes, .pairs_do = pairs_do()};
    j.mask_stride = ((m->kind == SECATEUR_TILE4 ? m->cols / 4 : m->cols) + 7) / 8;
    j.chunks = (m->cols + CHUNK - 1) / CHUNK;
    j.groups = m->group ? m->cols / m->group : 1;
    j.group_shift = m->group ? __builtin_ctzll((uint64_t)m->group) - 5 : 0;
    if (!m->group) j.group_shift = 62; /* any column's group is the row's */

    int64_t parts = threads <= 1 ? 1 : bytes / PART_BYTES;
    if (threads > 1 && parts < threads) parts = threads;
    const int64_t most = threads * (batch == 1 ? PARTS_OF_ONE : PARTS_A_THREAD);
    if (threads > 1 && parts > most) parts = most;
    if (parts > (units + STREAMS - 1) / STREAMS) parts = (units + STREAMS - 1) / STREAMS;
    const int64_t entry_or_index = entry > 4 || m->kind == SECATEUR_TILE16 ? 4 : entry;
    j.scratch_bytes = STREAMS * aligned(j.chunks * CHUNK * entry_or_index + OVERREAD);
    const int64_t slab = batch < path->slab ? batch : path->slab;
    int64_t lanes = slab; /* what prepare may pad it to */
    if (slab > 1 && m->kind != SECATEUR_TILE16)
        for (lanes = 16; lanes < slab;) lanes *= 2;
    int64_t x_bytes = aligned(j.chunks * CHUNK * lanes * 4);
    const int64_t digit_bytes = aligned((j.chunks + 1) * CHUNK * DIGITS); /* int4 takes two chunks at a time */
    if (slab == 1) x_bytes = 2 * digit_bytes;
    char *memory = 0;
    if (posix_memalign((void **)&memory, 64, (size_t)(x_bytes + parts * j.scratch_bytes)) != 0) return SECATEUR_MEMORY;
    j.x = (float *)memory;
    j.digits = (int8_t *)memory;
    j.offsets = (int32_t *)(memory + digit_bytes);
    j.scratch = memory + x_bytes;
    for (int64_t b = 0; b < batch; b += j.batch) {
        j.batch = batch - b < slab ? batch - b : slab;
        j.y = (char *)y + b * m->rows * width;
        path->prepare(&j, (const char *)x + b * m->cols * width, dtype);
        task t = {&j, path, units, parts};
        secateur_parallel(run_part, &t, parts, threads);
    }
    free(memory);
    return SECATEUR_OK;
}

typedef struct {
    const uint64_t *words;
    int64_t count, parts;
    uint64_t found;
} reading;

/* Four streams, as the kernels have. */
static void read_part(void *context, int64_t part) {
    reading *r = context;
    const int64_t first = r->count * part / r->parts, quarter = (r->count * (part + 1) / r->parts - first) / 4;
    uint64_t found[4] = {0, 0, 0, 0};
    for (int64_t i = 0; i + 8 <= quarter; i += 8)
        for (int k = 0; k < 4; k++) {
            const uint64_t *from = r->words + first + k * quarter + i;
            found[k] ^= (from[0] ^ from[1] ^ from[2] ^ from[3]) ^ (from[4] ^ from[5] ^ from[6] ^ from[7]);
        }
    __atomic_fetch_xor(&r->found, found[0] ^ found[1] ^ found[2] ^ found[3], __ATOMIC_RELAXED);
}

int64_t secateur_read(const void *memory, int64_t bytes, int64_t threads) {
    reading r = {memory, bytes / 8, threads < 1 ? 1 : threads, 0};
    secateur_parallel(read_part, &r, r.parts, threads);
    return (int64_t)r.found;
}
