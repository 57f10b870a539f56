/* The limit to aim at: training steps whose every size is a compile-time constant.

   static_c_rival.py builds this file once per problem and defines
     REAL              float or double
     BATCH, BLOCK      samples per step, and per pass through the layers (a divisor)
     N_BATCHES, N_IN, N_OUT
     LAYERS(F)         F(i, o, n_in, n_out, ld) per layer: from level i to level o; ld is the row stride of level i
     HIDDEN(F)         the same without the last layer;  LAST(F) the last one
     BACKWARD(F)       the same from the last to the second layer;  FIRST(F) the first one
     TANH or RELU, MSE or CROSS_ENTROPY.

   Samples are rows. The SIMD lanes run along the outputs of a layer, so that rows are padded to whole vectors; the
   padding stays zero throughout. A layer with one output keeps its weights contiguous and runs along its inputs. */
#include <math.h>
#include <string.h>

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define ROWS 8
#elif defined(__AVX2__)
#define VECTOR_BYTES 32
#define ROWS 4
#else
#define VECTOR_BYTES 16
#define ROWS 4
#endif
#define LANES ((int)(VECTOR_BYTES / sizeof(REAL)))
#define PAD(n) (((n) + LANES - 1) / LANES * LANES)
#define INLINE static inline __attribute__((always_inline))
#define ALIGNED __attribute__((aligned(64)))
typedef REAL vec __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));

#define N_WEIGHTS(n_in, n_out) ((n_out) == 1 ? PAD(n_in) : (n_in) * PAD(n_out))
#define OFFSETS(i, o, n_in, n_out, ld) w##o, b##o = w##o + N_WEIGHTS(n_in, n_out), end##o = b##o + PAD(n_out) - 1,
enum { LAYERS(OFFSETS) N_PARAMS };

static REAL params[N_PARAMS] ALIGNED, grads[N_PARAMS] ALIGNED, m[N_PARAMS] ALIGNED, v[N_PARAMS] ALIGNED;
#define LEVEL(i, o, n_in, n_out, ld) static REAL h##o[BLOCK * PAD(n_out)] ALIGNED, dz##o[BLOCK * PAD(n_out)] ALIGNED;
LAYERS(LEVEL)
#define TRANSPOSED(i, o, n_in, n_out, ld) static REAL wt##o[((n_out) + LANES) * PAD(n_in)] ALIGNED;
BACKWARD(TRANSPOSED)

static const REAL *x_all, *y_all;
static const int *labels_all;
static long n_done;

/* A ROWS x VECTORS register tile of c = start + a @ b; start is a row, c itself, or nothing. */
enum start { FROM_ZERO, FROM_ROW, FROM_C };
INLINE void tile(const int rows, const int vectors, const int n_k, const REAL *a, const int a_row, const int a_k,
                 const REAL *b, const int ldb, REAL *c, const int ldc, const REAL *row, const enum start from) {
    vec sum[16][2];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int u = 0; u < vectors; u++)
            sum[r][u] = from == FROM_ROW ? *(const vec *)(row + u * LANES)
                      : from == FROM_C   ? *(const vec *)(c + r * ldc + u * LANES) : (vec){0};
    for (int k = 0; k < n_k; k++) {
        vec column[2];
#pragma GCC unroll 2
        for (int u = 0; u < vectors; u++) column[u] = *(const vec *)(b + k * ldb + u * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            const REAL element = a[r * a_row + k * a_k];
#pragma GCC unroll 2
            for (int u = 0; u < vectors; u++) sum[r][u] += element * column[u];
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int u = 0; u < vectors; u++) *(vec *)(c + r * ldc + u * LANES) = sum[r][u];
}

/* c (n_m, n_n) = start + a (n_m, n_k) @ b (n_k, n_n), n_n whole vectors. */
INLINE void product(const int n_m, const int n_n, const int n_k, const REAL *a, const int a_row, const int a_k,
                    const REAL *b, const int ldb, REAL *c, const int ldc, const REAL *row, const enum start from) {
#define TILES(rows, vectors) \
    for (; i + (rows) <= n_m; i += (rows)) \
        tile(rows, vectors, n_k, a + i * a_row, a_row, a_k, b + n, ldb, c + i * ldc + n, ldc, row + n, from);
    long n = 0;
    for (; n + 2 * LANES <= n_n; n += 2 * LANES) { long i = 0; TILES(ROWS, 2) TILES(2, 2) TILES(1, 2) }
    for (; n < n_n; n += LANES) { long i = 0; TILES(2 * ROWS, 1) TILES(4, 1) TILES(1, 1) }
}

INLINE REAL sum_lanes(const vec x) {
    REAL sum = 0;
    for (int i = 0; i < LANES; i++) sum += x[i];
    return sum;
}

INLINE REAL activate(REAL z) {
#ifdef RELU
    return z > 0 ? z : 0;
#else
    /* Lambert's continued fraction of tanh to eleven terms: within 1e-6 everywhere. */
    z = z > 8 ? 8 : z < -8 ? -8 : z;
    const REAL s = z * z;
    const REAL p = 1 + s * (1.4285714e-1f + s * (4.6783626e-3f + s * (4.9142464e-5f + s * (1.5600782e-7f + s * 7.273092e-11f))));
    const REAL q = 1 + s * (4.7619048e-1f + s * (3.0075188e-2f + s * (5.5039560e-4f + s * (3.2761643e-6f + s * 4.8002407e-9f))));
    return z * p / q;
#endif
}

INLINE REAL derivative(const REAL h) {
#ifdef RELU
    return h > 0;
#else
    return 1 - h * h;
#endif
}

INLINE void forward(const int n_in, const int n_out, const int ld, const REAL *h, const REAL *w, const REAL *b, REAL *z,
                    const int hidden) {
    if (n_out == 1)
        for (int s = 0; s < BLOCK; s++) {
            vec sum = {0};
            for (int i = 0; i < PAD(n_in); i += LANES) sum += *(const vec *)(h + s * ld + i) * *(const vec *)(w + i);
            z[s * LANES] = b[0] + sum_lanes(sum);
        }
    else
        product(BLOCK, PAD(n_out), n_in, h, ld, 1, w, PAD(n_out), z, PAD(n_out), b, FROM_ROW);
    if (hidden)
        for (int i = 0; i < BLOCK * PAD(n_out); i++) z[i] = activate(z[i]);
}

/* dw and db of one layer: set by the first block of a step, added to by the others. */
INLINE void gradient(const int n_in, const int n_out, const int ld, const REAL *h, const REAL *dz, REAL *dw, REAL *db,
                     const int first) {
    if (first) memset(db, 0, PAD(n_out) * sizeof(REAL));
    for (int s = 0; s < BLOCK; s++)
        for (int n = 0; n < PAD(n_out); n++) db[n] += dz[s * PAD(n_out) + n];
    if (n_out == 1) {
        if (first) memset(dw, 0, PAD(n_in) * sizeof(REAL));
        for (int i = 0; i < n_in / LANES * LANES; i += LANES) {
            vec sum = {0};
            for (int s = 0; s < BLOCK; s++) sum += dz[s * LANES] * *(const vec *)(h + s * ld + i);
            *(vec *)(dw + i) += sum;
        }
        for (int i = n_in / LANES * LANES; i < n_in; i++)
            for (int s = 0; s < BLOCK; s++) dw[i] += dz[s * LANES] * h[s * ld + i];
    } else if (first)
        product(n_in, PAD(n_out), BLOCK, h, 1, ld, dz, PAD(n_out), dw, PAD(n_out), db, FROM_ZERO);
    else
        product(n_in, PAD(n_out), BLOCK, h, 1, ld, dz, PAD(n_out), dw, PAD(n_out), db, FROM_C);
}

/* wt (n_out, PAD(n_in)) = w.T */
INLINE void transpose(const int n_in, const int n_out, const REAL *w, REAL *wt) {
    for (int n = 0; n < n_out; n += LANES)
        for (int i = 0; i < n_in; i++)
            for (int lane = 0; lane < LANES; lane++) wt[(n + lane) * PAD(n_in) + i] = w[i * PAD(n_out) + n + lane];
}

/* dz of the level below, from its activations h and this layer's dz. */
INLINE void backward(const int n_in, const int n_out, const REAL *h, const REAL *w, const REAL *wt, const REAL *dz,
                     REAL *below) {
    if (n_out == 1)
        for (int s = 0; s < BLOCK; s++)
            for (int i = 0; i < PAD(n_in); i++) below[s * PAD(n_in) + i] = dz[s * LANES] * w[i];
    else if (BLOCK == 1)
        for (int i = 0; i < n_in; i++) {
            vec sum = {0};
            for (int n = 0; n < PAD(n_out); n += LANES) sum += *(const vec *)(dz + n) * *(const vec *)(w + i * PAD(n_out) + n);
            below[i] = sum_lanes(sum);
        }
    else
        product(BLOCK, PAD(n_in), n_out, dz, PAD(n_out), 1, wt, PAD(n_in), below, PAD(n_in), 0, FROM_ZERO);
    for (int i = 0; i < BLOCK * PAD(n_in); i++) below[i] *= derivative(h[i]);
}

INLINE void loss_derivative(const REAL *z, REAL *dz, const long sample) {
    const int ld = PAD(N_OUT);
    for (int s = 0; s < BLOCK; s++) {
#ifdef MSE
        for (int n = 0; n < N_OUT; n++)
            dz[s * ld + n] = (REAL)2 / (BATCH * N_OUT) * (z[s * ld + n] - y_all[(sample + s) * N_OUT + n]);
#else
        REAL highest = z[s * ld], sum = 0;
        for (int n = 1; n < N_OUT; n++) highest = z[s * ld + n] > highest ? z[s * ld + n] : highest;
        for (int n = 0; n < N_OUT; n++) sum += dz[s * ld + n] = sizeof(REAL) == 4 ? expf(z[s * ld + n] - highest) : exp(z[s * ld + n] - highest);
        for (int n = 0; n < N_OUT; n++) dz[s * ld + n] /= sum * BATCH;
        dz[s * ld + labels_all[sample + s]] -= (REAL)1 / BATCH;
#endif
    }
}

static __attribute__((noinline)) void adam(void) {
    const double n = (double)++n_done;
    const REAL rate = (REAL)(LEARNING_RATE / (1 - pow(BETA1, n))), scale = (REAL)(1 / sqrt(1 - pow(BETA2, n)));
    const REAL beta1 = (REAL)BETA1, beta2 = (REAL)BETA2, eps = (REAL)EPS;
    for (int i = 0; i < N_PARAMS; i++) {
        m[i] = beta1 * m[i] + (1 - beta1) * grads[i];
        v[i] = beta2 * v[i] + (1 - beta2) * grads[i] * grads[i];
        params[i] -= rate * m[i] / ((sizeof(REAL) == 4 ? sqrtf(v[i]) : sqrt(v[i])) * scale + eps);
    }
}

static __attribute__((noinline)) void block(const long sample, const int first) {
    const REAL *h0 = x_all + sample * N_IN;
#define FORWARD(i, o, n_in, n_out, ld) forward(n_in, n_out, ld, h##i, params + w##o, params + b##o, h##o, 1);
#define FORWARD_LAST(i, o, n_in, n_out, ld) forward(n_in, n_out, ld, h##i, params + w##o, params + b##o, h##o, 0); \
                                            loss_derivative(h##o, dz##o, sample);
#define GRADIENT(i, o, n_in, n_out, ld) gradient(n_in, n_out, ld, h##i, dz##o, grads + w##o, grads + b##o, first);
#define LAYER_BACKWARD(i, o, n_in, n_out, ld) GRADIENT(i, o, n_in, n_out, ld) \
                                              backward(n_in, n_out, h##i, params + w##o, wt##o, dz##o, dz##i);
    HIDDEN(FORWARD)
    LAST(FORWARD_LAST)
    BACKWARD(LAYER_BACKWARD)
    FIRST(GRADIENT)
}

void train(const long n_steps) {
    for (long i = 0; i < n_steps; i++) {
#define TRANSPOSE(i, o, n_in, n_out, ld) if ((n_out) > 1 && BLOCK > 1) transpose(n_in, n_out, params + w##o, wt##o);
        BACKWARD(TRANSPOSE)
        const long sample = n_done % N_BATCHES * BATCH;
        block(sample, 1);
        for (int s = BLOCK; s < BATCH; s += BLOCK) block(sample + s, 0);
        adam();
    }
}

/* Copies between the padded parameters and a flat vector of w (n_in, n_out), then b, per layer. */
#define COPY_WEIGHTS(n_in, n_out, w, expression) \
    for (int r = 0; r < (n_in); r++) for (int n = 0; n < (n_out); n++, flat++) { \
        REAL *element = (w) + ((n_out) == 1 ? r : r * PAD(n_out) + n); expression; }
#define COPY_LAYER(o, n_in, n_out, expression) \
    COPY_WEIGHTS(n_in, n_out, params + w##o, expression) \
    for (int n = 0; n < (n_out); n++, flat++) { REAL *element = params + b##o + n; expression; }

void start(const REAL *flat, const REAL *x, const REAL *y, const int *labels) {
    memset(params, 0, sizeof params), memset(grads, 0, sizeof grads), memset(m, 0, sizeof m), memset(v, 0, sizeof v);
    x_all = x, y_all = y, labels_all = labels, n_done = 0;
#define LOAD(i, o, n_in, n_out, ld) COPY_LAYER(o, n_in, n_out, *element = *flat)
    LAYERS(LOAD)
}

void finish(REAL *flat) {
#define STORE(i, o, n_in, n_out, ld) COPY_LAYER(o, n_in, n_out, *flat = *element)
    LAYERS(STORE)
}
