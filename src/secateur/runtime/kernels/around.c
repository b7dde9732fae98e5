/* What a layer built like Llama's does to one token beside its matrices: norms, turned heads, attention, the gate.
 *
 * Everything is computed in float32 and rounded where the modules of the model round (x of `dtype`): norms before and after
 * their weight, the gate after its activation and after the product, attention once.
 */
#include <math.h>

#include "simd.h"

typedef uint32_t vu __attribute__((vector_size(4 * VL), may_alias));

/* e^x to 2 units in the last place, at least e^-87 and at most e^88; NaN stays NaN.  Powers of 2 beside a polynomial for
 * e^r, |r| <= ln 2 / 2 (Cephes, expf). */
INLINE vf exponential(vf x) {
    const vf low = all(-87.0f), high = all(88.0f), round = all(0x1.8p23f);
    vn under = x < low, over = x > high;
    x = (vf)(((vn)x & ~under) | ((vn)low & under));
    x = (vf)(((vn)x & ~over) | ((vn)high & over));
    const vf times = muladd(x, all(0x1.715476p0f), round); /* the whole number stands in its lowest bits */
    const vf n = times - round;
    const vf r = muladd(n, all(2.12194440e-4f), muladd(n, all(-0.693359375f), x)); /* ln 2 in two parts */
    vf p = all(1.9875691500e-4f);
    p = muladd(p, r, all(1.3981999507e-3f));
    p = muladd(p, r, all(8.3334519073e-3f));
    p = muladd(p, r, all(4.1665795894e-2f));
    p = muladd(p, r, all(1.6666665459e-1f));
    p = muladd(p, r, all(5.0000001201e-1f));
    p = muladd(p, r * r, r) + all(1);
    return p * (vf)(((vu)times + 127) << 23);
}

/* The nearest of bfloat16, ties to even, as a float; NaN stays NaN. */
INLINE vf rounded(vf v, int64_t dtype) {
    const vu bits = (vu)v, nan = (vu)((bits & 0x7fffffff) > 0x7f800000);
    if (dtype == SECATEUR_F32) return v;
    return (vf)((((bits + 0x7fff + (bits >> 16 & 1)) & ~nan) | ((bits | 0x400000) & nan)) & 0xffff0000);
}

/* The first `left` of a vector to y[at], rounded. */
INLINE void store_some(void *y, int64_t dtype, int64_t at, int64_t left, vf v) {
    typedef uint16_t halves __attribute__((vector_size(2 * VL)));
    const halves upper = __builtin_convertvector((vu)rounded(v, dtype) >> 16, halves);
    if (dtype == SECATEUR_F32) memcpy((float *)y + at, &v, (size_t)(left < VL ? left : VL) * 4);
    else memcpy((uint16_t *)y + at, &upper, (size_t)(left < VL ? left : VL) * 2);
}

INLINE void norm_as(const void *x, const void *weight, void *y, int64_t count, float epsilon, int64_t dtype) {
    vf squares[4] = {all(0), all(0), all(0), all(0)};
    for (int64_t i = 0; i < count; i += 4 * VL)
        for (int k = 0; k < 4; k++) {
            const vf v = x_vector(x, dtype, i + k * VL, count - i - k * VL);
            squares[k] = muladd(v, v, squares[k]);
        }
    const float mean = sum((squares[0] + squares[1]) + (squares[2] + squares[3])) / (float)count;
    const vf factor = all(1 / sqrtf(mean + epsilon));
    for (int64_t i = 0; i < count; i += VL) {
        const vf v = rounded(x_vector(x, dtype, i, count - i) * factor, dtype);
        store_some(y, dtype, i, count - i, v * x_vector(weight, dtype, i, count - i));
    }
}

/* (a, b) -> (a cos + b sin, b cos + a sin) in halves of each head; the sign is in the sines. */
INLINE void turn_as(void *x, const void *cos, const void *sin, int64_t heads, int64_t size, int64_t dtype) {
    const int64_t half = size / 2;
    for (int64_t h = 0; h < heads; h++)
        for (int64_t d = 0; d < half; d += VL) {
            const int64_t at = h * size + d, left = half - d;
            const vf a = x_vector(x, dtype, at, left), b = x_vector(x, dtype, at + half, left);
            const vf first = muladd(a, x_vector(cos, dtype, d, left), b * x_vector(sin, dtype, d, left));
            const vf second = muladd(b, x_vector(cos, dtype, d + half, left), a * x_vector(sin, dtype, d + half, left));
            store_some(x, dtype, at, left, first);
            store_some(x, dtype, at + half, left, second);
        }
}

INLINE void gate_as(void *x, const void *up, int64_t count, int64_t dtype) {
    for (int64_t i = 0; i < count; i += VL) {
        const vf v = x_vector(x, dtype, i, count - i);
        const vf open = rounded(v / (all(1) + exponential(-v)), dtype);
        store_some(x, dtype, i, count - i, open * x_vector(up, dtype, i, count - i));
    }
}

INLINE void add_as(void *x, const void *more, int64_t count, int64_t dtype) {
    for (int64_t i = 0; i < count; i += VL)
        store_some(x, dtype, i, count - i, x_vector(x, dtype, i, count - i) + x_vector(more, dtype, i, count - i));
}

/* Q queries of head `shared` over the positions of one part: what each has summed, its weight, its largest score. */
INLINE void attend_some(const attention *a, int64_t dtype, int64_t shared, int64_t first, int64_t seen, int64_t query,
                        float *out, const int Q) {
    float x[4][HEAD + 2 * VL], score[4][SPAN + VL];
    float most[4], total[4];
    const int64_t size = a->size, start = shared * a->room + first;
    for (int q = 0; q < Q; q++) {
        for (int64_t d = 0; d < size; d += VL)
            store(x[q] + d, x_vector(a->queries, dtype, (shared * a->each + query + q) * size + d, size - d));
        most[q] = -INFINITY;
    }
    for (int64_t p = 0; p < seen; p++) {
        vf dot[4] = {all(0), all(0), all(0), all(0)};
        for (int64_t d = 0; d < size; d += VL) {
            const vf key = x_vector(a->keys, dtype, (start + p) * size + d, size - d);
            for (int q = 0; q < Q; q++) dot[q] = muladd(key, load(x[q] + d), dot[q]);
        }
        for (int q = 0; q < Q; q++) {
            score[q][p] = a->scale * sum(dot[q]);
            if (score[q][p] > most[q]) most[q] = score[q][p];
        }
    }
    for (int q = 0; q < Q; q++) {
        vf sums = all(0);
        for (int k = 0; k < VL; k++) score[q][seen + k] = -INFINITY;
        for (int64_t p = 0; p < seen; p += VL) store(score[q] + p, exponential(load(score[q] + p) - all(most[q])));
        for (int k = 0; k < VL; k++) score[q][seen + k] = 0;
        for (int64_t p = 0; p < seen; p += VL) sums += load(score[q] + p);
        total[q] = sum(sums);
    }
    for (int64_t d = 0; d < size; d += 2 * VL) {
        vf mixed[4][2] = {{all(0), all(0)}, {all(0), all(0)}, {all(0), all(0)}, {all(0), all(0)}};
        for (int64_t p = 0; p < seen; p++)
            for (int k = 0; k < 2; k++) {
                const vf value = x_vector(a->values, dtype, (start + p) * size + d + k * VL, size - d - k * VL);
                for (int q = 0; q < Q; q++) mixed[q][k] = muladd(value, all(score[q][p]), mixed[q][k]);
            }
        for (int q = 0; q < Q; q++)
            for (int k = 0; k < 2; k++) store(out + q * a->stride + 2 + d + k * VL, mixed[q][k]);
    }
    for (int q = 0; q < Q; q++) {
        out[q * a->stride] = most[q];
        out[q * a->stride + 1] = total[q];
    }
}

INLINE void attend_as(const attention *a, int64_t part, int64_t dtype) {
    const int64_t spans = SPANS(a->seen), shared = part / spans, first = part % spans * SPAN;
    const int64_t seen = a->seen - first < SPAN ? a->seen - first : SPAN;
    for (int64_t query = 0; query < a->each; query += 4) {
        float *out = a->parts + (part * a->each + query) * a->stride;
        switch (a->each - query) {
        case 1: attend_some(a, dtype, shared, first, seen, query, out, 1); break;
        case 2: attend_some(a, dtype, shared, first, seen, query, out, 2); break;
        case 3: attend_some(a, dtype, shared, first, seen, query, out, 3); break;
        default: attend_some(a, dtype, shared, first, seen, query, out, 4);
        }
    }
}

/* The parts of all heads, each weighed by the share of its scores in the whole softmax. */
INLINE void mix_as(const attention *a, void *mixed, int64_t dtype) {
    const int64_t spans = SPANS(a->seen);
    for (int64_t head = 0; head < a->shared * a->each; head++) {
        const int64_t apart = a->each * a->stride; /* from a span to the next */
        float *out = a->parts + (head / a->each * spans * a->each + head % a->each) * a->stride;
        float most = -INFINITY, total = 0;
        for (int64_t s = 0; s < spans; s++) most = out[s * apart] > most ? out[s * apart] : most;
        for (int64_t s = 0; s < spans; s++) {
            const float share = expf(out[s * apart] - most);
            total += share * out[s * apart + 1];
            out[s * apart] = share;
        }
        for (int64_t d = 0; d < a->size; d += VL) {
            vf v = all(0);
            for (int64_t s = 0; s < spans; s++) v = muladd(all(out[s * apart]), load(out + s * apart + 2 + d), v);
            store_some(mixed, dtype, head * a->size + d, a->size - d, v / all(total));
        }
    }
}

#define BOTH(call) (dtype == SECATEUR_F32 ? call(SECATEUR_F32) : call(SECATEUR_BF16))
#define CALL(t) norm_as(x, weight, y, count, epsilon, t)
static void norm(const void *x, const void *weight, void *y, int64_t count, float epsilon, int64_t dtype) { BOTH(CALL); }
#undef CALL
#define CALL(t) turn_as(x, cos, sin, heads, size, t)
static void turn(void *x, const void *cos, const void *sin, int64_t heads, int64_t size, int64_t dtype) { BOTH(CALL); }
#undef CALL
#define CALL(t) gate_as(x, up, count, t)
static void gate(void *x, const void *up, int64_t count, int64_t dtype) { BOTH(CALL); }
#undef CALL
#define CALL(t) add_as(x, more, count, t)
static void add(void *x, const void *more, int64_t count, int64_t dtype) { BOTH(CALL); }
#undef CALL
#define CALL(t) attend_as(a, part, t)
static void attend(const attention *a, int64_t part, int64_t dtype) { BOTH(CALL); }
#undef CALL
#define CALL(t) mix_as(a, mixed, t)
static void mix(const attention *a, void *mixed, int64_t dtype) { BOTH(CALL); }
#undef CALL

const around_table PATH(secateur_around) = {norm, turn, gate, add, attend, mix};
