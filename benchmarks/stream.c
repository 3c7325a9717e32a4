// The memory traffic of an optimizer's step without its arithmetic: some arrays are read, some updated in place.
#include <string.h>

// Inlined with constant counts, so that each case becomes one vectorized loop.
static inline __attribute__((always_inline)) void pass(long from, long to, int reads, int updates, float **x) {
  float sum = 0;
#pragma GCC ivdep
  for (long i = from; i < to; i++) {
    float read = 0;
    for (int k = 0; k < reads; k++) read += x[k][i];
    for (int k = 0; k < updates; k++) x[reads + k][i] = 0.5f * x[reads + k][i] + read;
    if (!updates) sum += read;
  }
  if (!updates) *(volatile float *)&sum = sum;  // otherwise the compiler removes the loop
}

#define CASE(r, u) case 8 * r + u: pass(from, to, r, u, x); break;

void stream(long size, int threads, int reads, int updates, float **x) {
#pragma omp parallel for num_threads(threads) schedule(static) if (size > 8192)
  for (int t = 0; t < threads; t++) {
    long from = size * t / threads, to = size * (t + 1) / threads;
    switch (8 * reads + updates) {
      CASE(1, 0) CASE(1, 1) CASE(1, 2) CASE(1, 3) CASE(1, 4) CASE(1, 5)
      CASE(2, 0) CASE(2, 1) CASE(2, 2) CASE(2, 3) CASE(3, 1)
      default: pass(from, to, reads, updates, x);
    }
  }
}

void copy(long size, int threads, float *to, const float *from) {
#pragma omp parallel for num_threads(threads) schedule(static) if (size > 8192)
  for (int t = 0; t < threads; t++) {
    long first = size * t / threads, last = size * (t + 1) / threads;
    memcpy(to + first, from + first, 4 * (last - first));
  }
}
