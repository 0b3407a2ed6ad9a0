/* Products of a sparse matrix with minibatches, for graesser_update.py. Matrices are of float32, row by row; a minibatch
   has one row a unit and BATCH columns. The sparse matrix is kept densely: `at` are the places of its weights in there,
   `of` the rows of the minibatch that they are multiplied with, and `first` where each row's begin. */

#include <stdint.h>

#define BATCH 128
#define LANES 8
#define HALF (BATCH / 2 / LANES)

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t bits __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

/* out = weights × in + bias, negative values set to zero where there is a bias; or those of `gate` that are not positive. */
void product(int64_t rows, const int64_t *first, const int64_t *at, const int64_t *of, const float *weights,
             const float *bias, const float *gate, const float *in, float *out) {
    const vector zero = {0};
    for (int64_t row = 0; row < rows; row++)
        for (int half = 0; half < 2; half++) {
            const int64_t place = half * (BATCH / 2);
            vector sum[HALF];
            for (int v = 0; v < HALF; v++)
                sum[v] = zero + (bias ? bias[row] : 0.0f);
            for (int64_t k = first[row]; k < first[row + 1]; k++) {
                const float weight = weights[at[k]];
                const vector *other = (const vector *)(in + of[k] * BATCH + place);
                for (int v = 0; v < HALF; v++)
                    sum[v] += weight * other[v];
            }
            vector *found = (vector *)(out + row * BATCH + place);
            const vector *gates = (const vector *)((gate ? gate : out) + row * BATCH + place);
            for (int v = 0; v < HALF; v++) {
                found[v] = (vector)((bits)sum[v] & ((gate ? gates[v] : sum[v]) > zero));
            }
        }
}

/* gradient[at] += back × inᵀ at the places of the weights, + decay × weight. */
void gradient(int64_t rows, const int64_t *first, const int64_t *at, const int64_t *of, const float *weights, float decay,
              const float *back, const float *in, float *found) {
    for (int64_t row = 0; row < rows; row++) {
        const vector *mine = (const vector *)(back + row * BATCH);
        for (int64_t k = first[row]; k < first[row + 1]; k++) {
            const vector *other = (const vector *)(in + of[k] * BATCH);
            vector sum[4] = {{0}};
            for (int v = 0; v < BATCH / LANES; v += 4)
                for (int u = 0; u < 4; u++)
                    sum[u] += mine[v + u] * other[v + u];
            const vector all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
            float total = 0.0f;
            for (int u = 0; u < LANES; u++)
                total += all[u];
            found[at[k]] = total + decay * weights[at[k]];
        }
    }
}
