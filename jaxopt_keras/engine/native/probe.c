// The least that asks for everything that loops ask for: the runtime, its library, wide vectors. Never called: where
// this compiles and loads, loops do.
#define NEEDS_LIBRARY
#define BLOCK 1
#define UNIT 4096
enum { NX = 1, NY = 1, NS = 0, NR = 0 };
#define SIZES_X { sizeof(int8_t) }
#define ITEMS_X { 1 }
#define SIZES_Y { sizeof(float) }
#define ITEMS_Y { 1 }
#define STARTS { 0 }
#define COMBINE { SUM }
typedef float result_t;
#include "runtime.h"
static void loop(int64_t n, int64_t start, const uint32_t* S, char** X, char** Y, double* R) {
  for (int64_t i = 0; i < n; i++) ((float*)Y[0])[i] = expf(((int8_t*)X[0])[i]);
}
