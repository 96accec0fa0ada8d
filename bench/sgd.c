/* Dense(64, relu) → Dense(classes, softmax) trained by plain SGD on one core: what the hardware gives without a framework.

   Vectors of 16 floats are GNU C; the compiler maps them to whatever registers there are. Weights are updated in place. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef float lanes __attribute__((vector_size(64), aligned(4)));

enum { LANES = 16, UNITS = 64, PARTS = UNITS / LANES, TILE = 4, BLOCK = 32, CHUNK = 112 };

static lanes at(const float *p) { return *(const lanes *)p; }

/* hidden (BLOCK, UNITS) += rows (n, columns) · kernel (columns, UNITS), four rows at a time; a chunk of the kernel stays
   in the first-level cache while all rows pass by */
static void forward(const float *const *rows, int n, int columns, const float *kernel, float (*hidden)[UNITS]) {
    for (int first = 0; first < columns; first += CHUNK) {
        const int last = first + CHUNK < columns ? first + CHUNK : columns;
        for (int r = 0; r < n; r += TILE) {
            lanes sum[TILE][PARTS];
            for (int t = 0; t < TILE; t++)
                for (int p = 0; p < PARTS; p++) sum[t][p] = at(hidden[r + t] + p * LANES);
            for (int i = first; i < last; i++)
                for (int t = 0; t < TILE; t++)
                    for (int p = 0; p < PARTS; p++)
                        sum[t][p] += rows[r + t][i] * at(kernel + i * UNITS + p * LANES);
            for (int t = 0; t < TILE; t++) memcpy(hidden[r + t], sum[t], sizeof sum[t]);
        }
    }
}

/* kernel (columns, UNITS) += transposed rows (n, columns) · delta (n, UNITS), four columns at a time */
static void backward(const float *const *rows, int n, int columns, float *kernel, float (*delta)[UNITS]) {
    for (int i = 0; i < columns; i += TILE) {
        lanes sum[TILE][PARTS];
        memcpy(sum, kernel + i * UNITS, sizeof sum);
        for (int r = 0; r < n; r++)
            for (int t = 0; t < TILE; t++)
                for (int p = 0; p < PARTS; p++) sum[t][p] += rows[r][i + t] * at(delta[r] + p * LANES);
        memcpy(kernel + i * UNITS, sum, sizeof sum);
    }
}

/* The output layer of one row: adds its loss, adds `scale` times its gradient to `into`, and turns its hidden activations
   into `scale` times their gradient. */
static float output(float *hidden, int label, int classes, float scale, const float *kernel, const float *bias,
                    float *into_kernel, float *into_bias) {
    lanes score = at(bias);
    for (int u = 0; u < UNITS; u++) score += hidden[u] * at(kernel + u * LANES);
    float most = score[0], total = 0, p[LANES] = {0};
    for (int c = 1; c < classes; c++) most = score[c] > most ? score[c] : most;
    memcpy(p, &score, sizeof p);
    const float mine = p[label];
    for (int c = 0; c < LANES; c++) p[c] = expf(p[c] - most);
    for (int c = 0; c < LANES; c++) total += p[c] = c < classes ? p[c] : 0;
    for (int c = 0; c < LANES; c++) p[c] *= scale / total;
    p[label] -= scale;
    const lanes delta = at(p);
    for (int u = 0; u < UNITS; u++) {
        const float active = hidden[u];
        const lanes product = delta * at(kernel + u * LANES);
        float back = 0;
        for (int c = 0; c < LANES; c++) back += product[c];
        *(lanes *)(into_kernel + u * LANES) += active * delta;
        hidden[u] = active > 0 ? back : 0;
    }
    *(lanes *)into_bias += delta;
    return logf(total) + most - mine;
}

/* One epoch; gives the mean loss, each batch's as it was before its step.

   x (n, columns), columns a multiple of 4; y (n) below classes, at most 16; order (n); w1 (columns, 64), b1 (64),
   w2 (64, 16), b2 (16), of which the lanes from `classes` on are not used. Negative if there is no memory. */
double epoch(const float *x, const int32_t *y, const int32_t *order, int n, int columns, int classes, int batch,
             float rate, float *w1, float *b1, float *w2, float *b2) {
    const size_t size = (size_t)columns * UNITS;
    float *step1 = calloc(size, sizeof *step1), *nothing = calloc(columns, sizeof *nothing);
    double loss = step1 && nothing ? 0 : -n;
    for (int start = 0; start < n && step1 && nothing; start += batch) {
        const int stop = start + batch < n ? start + batch : n;
        const float scale = -rate / (stop - start);
        /* one block's rows have all been seen before the first weight changes */
        float *into = stop - start <= BLOCK ? w1 : step1;
        float step2[UNITS * LANES] = {0}, stepb2[LANES] = {0}, stepb1[UNITS] = {0};
        for (int b = start; b < stop; b += BLOCK) {
            const float *rows[BLOCK];
            float hidden[BLOCK][UNITS];
            const int count = b + BLOCK < stop ? BLOCK : stop - b, padded = (count + TILE - 1) / TILE * TILE;
            for (int r = 0; r < padded; r++) {
                rows[r] = r < count ? x + (size_t)order[b + r] * columns : nothing;
                memcpy(hidden[r], b1, sizeof hidden[r]);
            }
            forward(rows, padded, columns, w1, hidden);
            for (int r = 0; r < count; r++) {
                for (int u = 0; u < UNITS; u++) hidden[r][u] = hidden[r][u] > 0 ? hidden[r][u] : 0;
                loss += output(hidden[r], y[order[b + r]], classes, scale, w2, b2, step2, stepb2);
                for (int u = 0; u < UNITS; u++) stepb1[u] += hidden[r][u];
            }
            backward(rows, count, columns, into, hidden);
        }
        if (into == step1)
            for (size_t i = 0; i < size; i++) w1[i] += step1[i], step1[i] = 0;
        for (int i = 0; i < UNITS * LANES; i++) w2[i] += step2[i];
        for (int c = 0; c < LANES; c++) b2[c] += stepb2[c];
        for (int u = 0; u < UNITS; u++) b1[u] += stepb1[u];
    }
    free(step1);
    free(nothing);
    return loss / n;
}
