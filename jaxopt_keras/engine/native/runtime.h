// The runtime of a rendered loop (render_c.py): arithmetic that C lacks, and a handler for XLA's FFI that runs the loop
// over many arrays in chunks, on XLA's own threads. Before it includes this file, the rendered source defines the
// numbers of inputs (NX) and outputs (NY) of a leaf, of words of scalars (NS) and of totals (NR), and for each array the
// size of an item and the number of elements that share it. After it, it defines loop().
#include <float.h>
#include <math.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "ffi.h"

#define PRAGMA(x) _Pragma(#x)
#define MAX(a, b) ({ __typeof__((a) + (b)) _a = (a), _b = (b); (_a >= _b || _a != _a) ? _a : _b; })
#define MIN(a, b) ({ __typeof__((a) + (b)) _a = (a), _b = (b); (_a <= _b || _a != _a) ? _a : _b; })
#define SIGN(a) ({ __typeof__(a) _s = (a); _s > 0 ? 1 : _s < 0 ? -1 : _s; })
#define MAX_OF(a) _Generic((a), double: DBL_MAX, default: FLT_MAX)
// To an integer of 16 bits at most: clamped while it is a float, NaN as 0.
#define TO_INT(a, low, high) ({ __typeof__(a) _f = (a), _n = _f == _f ? _f : 0, _l = _n > (low) ? _n : (low); \
  (int32_t)(_l < (high) ? _l : (high)); })

static inline float as_float(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
static inline uint32_t as_bits(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }
static inline double as_double(const uint32_t* s) { double d; memcpy(&d, s, 8); return d; }
static inline int64_t as_int64(const uint32_t* s) { int64_t i; memcpy(&i, s, 8); return i; }
#define FUNCTION static inline
#include "conversions.h"

#if defined(NEEDS_LIBRARY) && defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__)
#define VECTOR __attribute__((simd("notinbranch"), const))
VECTOR float expf(float);
VECTOR float logf(float);
VECTOR float powf(float, float);
VECTOR double exp(double);
VECTOR double log(double);
VECTOR double pow(double, double);
#endif

static void loop(int64_t n, int64_t start, const uint32_t* S, char** X, char** Y, double* R);

enum { SUM, GREATEST, ALL, SOME };
static const int64_t size_x[] = SIZES_X, item_x[] = ITEMS_X, size_y[] = SIZES_Y, item_y[] = ITEMS_Y;
static const double starts[] = STARTS;
static const int combine[] = COMBINE;

#ifdef ROWS
enum { OPERANDS = NX + 1 };  // the last one: the row numbers
static const int gathered_x[] = GATHERED_X;  // whether an input is read in those rows; outputs always are written there
#else
enum { OPERANDS = NX };
#endif

// Arrays may be stored in packed buffers: the index of the buffer, or -1 for an array of its own.
#ifdef BUFFERS
static const int buffer_x[] = BUFFER_X, buffer_y[] = BUFFER_Y;
#else
enum { BUFFERS = 0 };
#endif

typedef struct {
  int64_t n;      // elements; with rows, those of a row
  int64_t units;  // of UNIT elements, the last one may be shorter; with rows, the rows
  int64_t first;  // index of its first unit among the units of all leaves
  const uint32_t* scalars;
  char *x[NX + 1], *y[NY + 1];
#ifdef ROWS
  const ROWS* rows;
  int64_t height;                  // rows of the gathered arrays
  int64_t row_x[NX], row_y[NY];    // bytes of a row
#endif
} Leaf;

typedef struct {
  atomic_int holders, arrived;
  atomic_llong done;
  int64_t leaves, units, chunks, size;  // size: units in a chunk
  int threads;
  Leaf* leaf;
  double* partial;  // of chunk c and leaf l at (c + l) * NR: unique, since chunks are in the order of leaves
  atomic_llong* next;
} Work;

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

#ifdef ROWS
static void run_units(Leaf* l, int64_t from, int64_t to, double* partial) {
  char *x[NX], *y[NY];
  for (int64_t r = from; r < to; r++) {
    int64_t i = l->rows[r];
    if (r + 2 < to && l->rows[r + 2] >= 0 && l->rows[r + 2] < l->height)  // rows are far apart in memory
      for (int k = 0; k < NX; k++)
        for (int64_t b = 0; gathered_x[k] && b < least(l->row_x[k], 1024); b += 64)
          __builtin_prefetch(l->x[k] + l->rows[r + 2] * l->row_x[k] + b, 1);
    if (i < 0 || i >= l->height) continue;
    for (int k = 0; k < NX; k++) x[k] = l->x[k] + (gathered_x[k] ? i : r) * l->row_x[k];
    for (int k = 0; k < NY; k++) y[k] = l->y[k] + i * l->row_y[k];
    loop(l->n, r * l->n, l->scalars, x, y, partial);
  }
}
#else
static void run_units(Leaf* l, int64_t from, int64_t to, double* partial) {
  int64_t start = from * UNIT, end = least(to * UNIT, l->n);
  if (end <= start) return;
  char *x[NX + 1], *y[NY + 1];
  for (int k = 0; k < NX; k++) x[k] = l->x[k] + start / item_x[k] * size_x[k];
  for (int k = 0; k < NY; k++) y[k] = l->y[k] + start / item_y[k] * size_y[k];
  loop(end - start, start, l->scalars, x, y, partial);
}
#endif

static void run_chunk(Work* w, int64_t c) {
  int64_t low = c * w->size, high = least(low + w->size, w->units), a = 0, b = w->leaves;
  while (b - a > 1) {  // the last leaf that starts at `low` or before
    int64_t middle = (a + b) / 2;
    if (w->leaf[middle].first <= low) a = middle; else b = middle;
  }
  for (; a < w->leaves && w->leaf[a].first < high; a++) {
    Leaf* l = w->leaf + a;
    run_units(l, low > l->first ? low - l->first : 0, least(high - l->first, l->units), w->partial + (c + a) * NR);
  }
}

static void release(Work* w) {
  if (atomic_fetch_sub(&w->holders, 1) == 1) free(w);
}

static void drain(void* data) {  // each thread runs its own range first, then what is left of the others
  Work* w = data;
  int me = atomic_fetch_add(&w->arrived, 1) % w->threads;
  for (int k = 0; k < w->threads; k++) {
    int r = (me + k) % w->threads;
    int64_t end = w->chunks * (r + 1) / w->threads, c;
    while ((c = atomic_fetch_add(&w->next[r], 1)) < end) {
      run_chunk(w, c);
      atomic_fetch_add_explicit(&w->done, 1, memory_order_release);
    }
  }
  release(w);
}

static void forget(const XLA_FFI_CallFrame* f, XLA_FFI_Error* error) {
  XLA_FFI_Error_Destroy_Args a = {.struct_size = sizeof a, .error = error};
  f->api->XLA_FFI_Error_Destroy(&a);
}

static int threads_of(const XLA_FFI_CallFrame* f) {
  int64_t n = 1;
  XLA_FFI_ThreadPool_NumThreads_Args a = {.struct_size = sizeof a, .ctx = f->ctx, .num_threads = &n};
  XLA_FFI_Error* error = f->api->XLA_FFI_ThreadPool_NumThreads(&a);
  if (error) return forget(f, error), 1;
  return n < 1 ? 1 : n > 1024 ? 1024 : (int)n;
}

static int64_t items(const XLA_FFI_Buffer* b) {
  int64_t n = 1;
  for (int64_t i = 0; i < b->rank; i++) n *= b->dims[i];
  return n;
}

static void run(const XLA_FFI_CallFrame* f, Work* w) {
  if (w->threads == 1) {
    for (int64_t c = 0; c < w->chunks; c++) run_chunk(w, c);
    return;
  }
  for (int k = 1; k < w->threads; k++) {
    atomic_fetch_add(&w->holders, 1);
    XLA_FFI_ThreadPool_Schedule_Args a = {.struct_size = sizeof a, .ctx = f->ctx, .task = drain, .data = w};
    XLA_FFI_Error* error = f->api->XLA_FFI_ThreadPool_Schedule(&a);
    if (error) forget(f, error), release(w);
  }
  atomic_fetch_add(&w->holders, 1);
  drain(w);
  for (int spins = 0; atomic_load_explicit(&w->done, memory_order_acquire) < w->chunks;)
    if (++spins > 1000) sched_yield();
}

// Operands: the scalars, one row for all leaves or one for each; with packed buffers, a table with a row for each leaf
// (its number of elements, and the starts of its arrays), and the buffers; then for each leaf its other arrays.
// Results: those of each leaf; the buffers that are written, in place; of each total a row, with a number for each leaf.
typedef struct {
  XLA_FFI_Buffer **in, **out;  // of the first leaf
  int64_t leaves, reads, writes;  // reads, writes: arrays of a leaf that are not in packed buffers
  XLA_FFI_Buffer *scalars, *table, **buffers;
} Call;

#ifdef BUFFERS
static int count_own(const int* buffer, int n) {
  int own = 0;
  for (int k = 0; k < n; k++) own += buffer[k] < 0;
  return own;
}

#endif

static int read_call(const XLA_FFI_CallFrame* f, Call* c) {
  XLA_FFI_Buffer** in = (XLA_FFI_Buffer**)f->args.args;
  int64_t written = 0;
  c->scalars = in[0], c->out = (XLA_FFI_Buffer**)f->rets.rets;
#ifdef BUFFERS
  c->reads = count_own(buffer_x, NX), c->writes = count_own(buffer_y, NY);
  c->table = in[1], c->buffers = in + 2, c->in = in + 2 + BUFFERS, c->leaves = c->table->dims[0];
  written = f->rets.size - c->writes * c->leaves - NR;
#else
  c->reads = OPERANDS, c->writes = NY, c->in = in + 1, c->leaves = (f->args.size - 1) / (OPERANDS ? OPERANDS : 1);
#endif
  return f->args.size == (c->in - in) + c->reads * c->leaves && written >= 0 && written <= BUFFERS &&
    f->rets.size == c->writes * c->leaves + written + NR;
}

static void describe(Leaf* l, const Call* c, int64_t i) {
  XLA_FFI_Buffer **in = c->in + i * c->reads, **out = c->out + i * c->writes;
#ifdef BUFFERS
  const uint32_t* at = (const uint32_t*)c->table->data + i * c->table->dims[1];
  l->n = *at++, l->units = (l->n + UNIT - 1) / UNIT;
  for (int k = 0; k < NX; k++)
    l->x[k] = buffer_x[k] < 0 ? (*in++)->data : (char*)c->buffers[buffer_x[k]]->data + *at++ * size_x[k];
  for (int k = 0; k < NY; k++)
    l->y[k] = buffer_y[k] < 0 ? (*out++)->data : (char*)c->buffers[buffer_y[k]]->data + *at++ * size_y[k];
#else
  for (int k = 0; k < NX; k++) l->x[k] = in[k]->data;
  for (int k = 0; k < NY; k++) l->y[k] = out[k]->data;
#ifdef ROWS
  l->rows = in[NX]->data, l->units = items(in[NX]), l->height = out[0]->dims[0];
  l->n = items(out[0]) / l->height * item_y[0];
  for (int k = 0; k < NX; k++) l->row_x[k] = l->n / item_x[k] * size_x[k];
  for (int k = 0; k < NY; k++) l->row_y[k] = l->n / item_y[k] * size_y[k];
#else
  l->n = items(in[0]) * item_x[0], l->units = (l->n + UNIT - 1) / UNIT;
#endif
#endif
}

XLA_FFI_Error* handler(XLA_FFI_CallFrame* f) {
  if (asks_for_version(f)) return 0;
  Call call;
  if (!read_call(f, &call)) return failure(f, "jaxopt_keras: the compiled loop does not fit its call");
  int64_t leaves = call.leaves;

  Leaf leaf;
  int64_t units = 0;
  for (int64_t i = 0; i < leaves; i++, units += leaf.units)
    describe(&leaf, &call, i);
#ifdef ROWS
  int64_t unit = leaf.n;
#else
  int64_t unit = UNIT;
#endif
  int threads = threads_of(f);
  int64_t least_size = 16384 / unit + 1, size = units / (threads * 8);
  size = size < least_size ? least_size : least(size, (1 << 20) / unit + 1);
  int64_t chunks = (units + size - 1) / size;
  if (chunks < 2) threads = 1;

  size_t at_next = (sizeof(Work) + 63) / 64 * 64, at_leaf = at_next + 64 * (threads / 8 + 1);
  size_t at_partial = at_leaf + (sizeof(Leaf) * leaves + 63) / 64 * 64;
  size_t partials = NR * (size_t)(chunks + leaves);
  char* memory = aligned_alloc(64, (at_partial + sizeof(double) * partials + 63) / 64 * 64);
  if (!memory) return failure(f, "jaxopt_keras: out of memory");
  Work* w = (Work*)memory;
  *w = (Work){.leaves = leaves, .units = units, .chunks = chunks, .size = size, .threads = threads};
  atomic_init(&w->holders, 1);
  w->next = (atomic_llong*)(memory + at_next), w->leaf = (Leaf*)(memory + at_leaf);
  w->partial = (double*)(memory + at_partial);
  for (int r = 0; r < threads; r++) atomic_init(&w->next[r], chunks * r / threads);
  for (size_t i = 0; i < partials; i++) w->partial[i] = starts[i % (NR ? NR : 1)];

  int64_t rows = call.scalars->dims[0], first = 0;
  for (int64_t i = 0; i < leaves; i++) {
    Leaf* l = w->leaf + i;
    describe(l, &call, i);
    l->scalars = (const uint32_t*)call.scalars->data + (rows > 1 ? i * (NS ? NS : 1) : 0);
    l->first = first, first += l->units;
  }
  run(f, w);

  for (int k = 0; k < NR; k++) {
    result_t* row = ((XLA_FFI_Buffer*)f->rets.rets[f->rets.size - NR + k])->data;
    for (int64_t i = 0; i < leaves; i++) {
      int64_t from = w->leaf[i].first, to = i + 1 < leaves ? w->leaf[i + 1].first : units;
      double a = starts[k];
      for (int64_t c = from / size; to > from && c <= (to - 1) / size; c++) {
        double b = w->partial[(c + i) * NR + k];
        a = combine[k] == SUM ? a + b : combine[k] == GREATEST ? MAX(b, a) : combine[k] == ALL ? a && b : a || b;
      }
      row[i] = (result_t)a;
    }
  }
  release(w);
  return 0;
}
