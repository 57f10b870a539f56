/* The limit to aim at: the prediction of one sample, of which every size is a compile-time constant.

   embedding.py builds this file once per network and defines N_PARAMS, WIDEST, TANH or RELU, and
     LAYERS(HIDDEN, LAST)   HIDDEN(from, to, start, n_in, n_out) for each hidden layer, LAST(...) for the last one:
                            from one buffer to another, parameters from `start` on, as fastbp lays them out,
   and KEPT as 1 where sums are to be made in the order of their terms, one fused multiply-add after the other. */
#include <math.h>
#include <time.h>

#define INLINE static inline __attribute__((always_inline))

static float params[N_PARAMS] __attribute__((aligned(64)));

float *get_params(void) { return params; }

INLINE float activate(float z) {
#ifdef RELU
    return z > 0 ? z : 0;
#else
    /* Lambert's continued fraction of tanh to eleven terms: within 1e-6 everywhere. */
    z = z > 8 ? 8 : z < -8 ? -8 : z;
    const float s = z * z;
    const float p = 1 + s * (1.4285714e-1f + s * (4.6783626e-3f + s * (4.9142464e-5f + s * (1.5600782e-7f + s * 7.273092e-11f))));
    const float q = 1 + s * (4.7619048e-1f + s * (3.0075188e-2f + s * (5.5039560e-4f + s * (3.2761643e-6f + s * 4.8002407e-9f))));
    return z * p / q;
#endif
}

INLINE void dense(const float *restrict x, const float *restrict w, float *restrict z, const int n_in, const int n_out) {
    const float *restrict b = w + n_in * n_out;
    if (n_out == 1) {
        float sum = b[0];
        for (int k = 0; k < n_in; k++) sum = KEPT ? fmaf(x[k], w[k], sum) : sum + x[k] * w[k];
        z[0] = sum;
        return;
    }
    for (int j = 0; j < n_out; j++) z[j] = b[j];
    for (int k = 0; k < n_in; k++)
        for (int j = 0; j < n_out; j++)
            z[j] = KEPT ? fmaf(x[k], w[k * n_out + j], z[j]) : z[j] + x[k] * w[k * n_out + j];
}

#define HIDDEN(from, to, start, n_in, n_out)                                                                          \
    dense(from, params + start, to, n_in, n_out);                                                                     \
    for (int j = 0; j < n_out; j++) to[j] = activate(to[j]);
#define LAST(from, to, start, n_in, n_out) dense(from, params + start, to, n_in, n_out);

__attribute__((noinline)) void predict(const float *restrict x, float *restrict out) {
    float a[WIDEST] __attribute__((aligned(64))), c[WIDEST] __attribute__((aligned(64)));
    LAYERS(HIDDEN, LAST)
}

/* Return the nanoseconds of one of n predictions. */
double nanoseconds(const float *x, float *out, const long n) {
    struct timespec start, stop;
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (long i = 0; i < n; i++) {
        predict(x, out);
        __asm__ volatile("" ::: "memory");
    }
    clock_gettime(CLOCK_MONOTONIC, &stop);
    return (1e9 * (stop.tv_sec - start.tv_sec) + (stop.tv_nsec - start.tv_nsec)) / n;
}
