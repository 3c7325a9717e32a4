// A grid of a GPU, played on a CPU: runs the source of a kernel as it is. Thread blocks run one after the other, forwards
// or backwards. The threads of a block are fibers that meet at barriers and shuffles. A thread that does not arrive where
// the others of its warp or block wait is an error. Included before the source; cuda_grid.py adds `enter` after it.
#include <float.h>
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include "ffi.h"

#define __global__
#define __device__ static
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define __shared__ static
#define __constant__ static
#define __restrict__
struct Size { unsigned x, y, z; };
struct alignas(8) uint2 { uint32_t x, y; };
struct alignas(16) uint4 { uint32_t x, y, z, w; };
static Size threadIdx, blockIdx, blockDim, gridDim;
static inline float as_float(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
static inline uint32_t as_bits(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }
static inline double as_double(const uint32_t* s) { double d; memcpy(&d, s, 8); return d; }

enum { READY, AT_WARP, AT_BLOCK, DONE };
enum { THREADS = 256, STACK = 1 << 16 };
struct Fiber {
  ucontext_t context;
  int state;
  uint64_t sent;
};
static Fiber fibers[THREADS];
static ucontext_t scheduler;
static char* stacks;

static void wait_at(int state) {
  Fiber* me = fibers + threadIdx.x;
  me->state = state;
  swapcontext(&me->context, &scheduler);
}
static inline void __syncthreads() { wait_at(AT_BLOCK); }
static inline void __syncwarp() { wait_at(AT_WARP); }
static inline void __threadfence() {}
template <class T> static inline T __ldcg(const T* x) { return *x; }
template <class T> static inline T __shfl_xor_sync(unsigned mask, T x, int o) {
  static_assert(sizeof(T) <= 8, "");
  if (mask != ~0u) abort();
  const unsigned me = threadIdx.x;
  memcpy(&fibers[me].sent, &x, sizeof x);
  wait_at(AT_WARP);
  memcpy(&x, &fibers[me ^ o].sent, sizeof x);
  wait_at(AT_WARP);  // no thread sends again before all have received
  return x;
}
static inline uint32_t atomicInc(uint32_t* at, uint32_t last) {
  const uint32_t old = *at;
  *at = old >= last ? 0 : old + 1;
  return old;
}

static void enter();
static void run_fiber() {
  enter();
  fibers[threadIdx.x].state = DONE;
  swapcontext(&fibers[threadIdx.x].context, &scheduler);
}

static int all_at(int state, int from, int to) {
  for (int t = from; t < to; t++)
    if (fibers[t].state != state) return 0;
  return 1;
}

static void release(int from, int to) {
  for (int t = from; t < to; t++) fibers[t].state = READY;
}

static int run_warp(int from) {  // whether a thread could run
  int ran = 0;
  for (int t = from; t < from + 32; t++)
    if (fibers[t].state == READY) threadIdx.x = t, ran = 1, swapcontext(&scheduler, &fibers[t].context);
  if (all_at(AT_WARP, from, from + 32)) release(from, from + 32);
  return ran;
}

static int run_block() {  // whether all threads come to the end
  for (int t = 0; t < THREADS; t++) {
    ucontext_t* c = &fibers[t].context;
    getcontext(c);
    c->uc_stack.ss_sp = stacks + (size_t)t * STACK, c->uc_stack.ss_size = STACK, c->uc_link = 0;
    fibers[t].state = READY;
    makecontext(c, run_fiber, 0);
  }
  while (!all_at(DONE, 0, THREADS)) {
    int ran = 0;
    for (int from = 0; from < THREADS; from += 32)  // a warp goes as far as it can before the next one starts
      while (run_warp(from)) ran = 1;
    if (all_at(AT_BLOCK, 0, THREADS)) release(0, THREADS);
    else if (!ran) return 0;
  }
  return 1;
}

// The attribute: the number of thread blocks, whether they run backwards, then the table of the kernel.
static XLA_FFI_Buffer** operands;
static XLA_FFI_Buffer** results;
static int64_t count;
static uint32_t* table();
static void begin(int64_t pointers);
static char* pointer(int64_t k) { return (char*)(k < count ? operands[k] : results[k - count])->data; }

static pthread_mutex_t alone = PTHREAD_MUTEX_INITIALIZER;
extern "C" XLA_FFI_Error* handler(XLA_FFI_CallFrame* f) {
  if (asks_for_version(f)) return 0;
  pthread_mutex_lock(&alone);
  const XLA_FFI_Array* numbers = (const XLA_FFI_Array*)f->attrs.attrs[0];
  const int64_t *at = (const int64_t*)numbers->data, blocks = at[0], backwards = at[1];
  for (int64_t k = 2; k < (int64_t)numbers->size; k++) table()[k - 2] = (uint32_t)at[k];
  operands = (XLA_FFI_Buffer**)f->args.args, results = (XLA_FFI_Buffer**)f->rets.rets, count = f->args.size;
  begin(count + f->rets.size);
  gridDim = {(unsigned)blocks, 1, 1}, blockDim = {THREADS, 1, 1};
  if (!stacks) stacks = (char*)malloc((size_t)THREADS * STACK);
  int done = 1;
  for (int64_t b = 0; b < blocks && done; b++) {
    blockIdx.x = backwards ? blocks - 1 - b : b;
    done = run_block();
  }
  pthread_mutex_unlock(&alone);
  return done ? 0 : failure(f, "threads of a block wait for others that do not arrive");
}
