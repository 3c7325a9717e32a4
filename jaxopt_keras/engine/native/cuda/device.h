// What kernels need (render.py, kernel.py): arithmetic, access to memory, reductions. In CUDA C++ without a header of
// CUDA, for NVRTC, which defines __CUDACC_RTC__.
#ifdef __CUDACC_RTC__
typedef signed char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long long int64_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fffffff)
#define FLT_MAX 0x1.fffffep127f
#define DBL_MAX 0x1.fffffffffffffp1023
__device__ __forceinline__ float as_float(uint32_t u) { return __uint_as_float(u); }
__device__ __forceinline__ uint32_t as_bits(float f) { return __float_as_uint(f); }
__device__ __forceinline__ double as_double(const uint32_t* s) { return __hiloint2double(s[1], s[0]); }
#endif
#define FUNCTION __device__ __forceinline__
#include "conversions.h"

// float8_e4m3fn: without infinity, 0x7f is NaN, and so is what is greater than 464.
#if __CUDA_ARCH__ >= 890
FUNCTION float from_f8(uint8_t h) {
  uint32_t two;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(two) : "h"((uint16_t)h));
  return from_f16((uint16_t)two);
}
FUNCTION uint8_t to_f8(float f) {
  uint16_t two;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(two) : "f"(0.f), "f"(f));
  return (uint8_t)((as_bits(f) & 0x7fffffff) > 0x43e80000 ? 0x7f : two);
}
#else
FUNCTION float from_f8(uint8_t h) {
  uint32_t sign = (uint32_t)(h & 0x80) << 24, size = (uint32_t)(h & 0x7f) << 20;
  float normal = as_float(size + (120u << 23)), small = (float)(int32_t)(h & 7) * 0x1p-9f;
  return as_float(sign | ((h & 0x7f) == 0x7f ? 0x7fc00000u : size < 1u << 23 ? as_bits(small) : as_bits(normal)));
}
FUNCTION uint8_t to_f8(float f) {
  uint32_t sign = as_bits(f) >> 24 & 0x80, size = as_bits(f) & 0x7fffffff;
  uint32_t normal = (size - (120u << 23) + 0x7ffff + (size >> 20 & 1)) >> 20;
  uint32_t small = as_bits(as_float(size) + 0x1p14f) - as_bits(0x1p14f);  // in units of 2^-9
  return (uint8_t)(sign | (size > 0x43e80000 ? 0x7f : size < 121u << 23 ? small : normal));
}
#endif

FUNCTION int64_t as_int64(const uint32_t* s) { return (int64_t)((uint64_t)s[1] << 32 | s[0]); }
template <class A, class B> FUNCTION auto MAX(A a, B b) -> decltype(a + b) { return a >= b || a != a ? a : b; }
template <class A, class B> FUNCTION auto MIN(A a, B b) -> decltype(a + b) { return a <= b || a != a ? a : b; }
#if __CUDA_ARCH__ >= 800
FUNCTION float MAX(float a, float b) {  // one instruction, also for NaN
  float c;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));
  return c;
}
FUNCTION float MIN(float a, float b) {
  float c;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));
  return c;
}
#endif
template <class T> FUNCTION T SIGN(T s) { return s > 0 ? T(1) : s < 0 ? T(-1) : s; }
FUNCTION float MAX_OF(float) { return FLT_MAX; }
FUNCTION double MAX_OF(double) { return DBL_MAX; }
template <class T> FUNCTION int32_t TO_INT(T f, int low, int high) {  // clamped while it is a float, NaN as 0
  T n = f == f ? f : T(0);
  n = n > low ? n : T(low);
  return (int32_t)(n < high ? n : T(high));
}

// W elements: one access if `whole` (then `left` is 0 or W at least, and the address aligned), else one by one.
template <int bytes> struct Bytes;
template <> struct Bytes<1> { typedef uint8_t type; };
template <> struct Bytes<2> { typedef uint16_t type; };
template <> struct Bytes<4> { typedef uint32_t type; };
template <> struct Bytes<8> { typedef uint2 type; };
template <> struct Bytes<16> { typedef uint4 type; };
template <> struct Bytes<32> { typedef struct alignas(16) { uint4 low, high; } type; };
template <int W, class T> union Row {
  typename Bytes<W * sizeof(T)>::type bytes;
  T items[W];
};

template <int W, bool whole, class T> FUNCTION void load(T* to, const T* from, int left) {
  Row<W, T> row;
  if (whole) {
    if (left > 0) row.bytes = *(const decltype(row.bytes)*)from;
#pragma unroll
    for (int k = 0; k < W; k++) to[k] = left > 0 ? row.items[k] : T(0);
  } else {
#pragma unroll
    for (int k = 0; k < W; k++) to[k] = k < left ? from[k] : T(0);
  }
}

template <int W, bool whole, class T> FUNCTION void store(T* to, const T* from, int left) {
  Row<W, T> row;
  if (whole) {
#pragma unroll
    for (int k = 0; k < W; k++) row.items[k] = from[k];
    if (left > 0) *(decltype(row.bytes)*)to = row.bytes;
  } else {
#pragma unroll
    for (int k = 0; k < W; k++)
      if (k < left) to[k] = from[k];
  }
}

// The rows of an array that a sparse gradient touches: the place of element `k` of the rows with the numbers N. Nothing is
// left of a row that there is not.
struct Rows { uint32_t length, height; };  // of the array
template <class T> FUNCTION size_t place_of(const T* N, Rows rows, uint32_t k, int& left) {
  const int64_t row = left > 0 ? N[k / rows.length] : -1;
  if (row < 0 || row >= rows.height) left = 0;
  return left > 0 ? row * rows.length + k % rows.length : 0;
}

// Reductions over the G threads of a group, which are neighbours in a warp: each gets the result.
template <int G> FUNCTION uint32_t group_max(uint32_t x) {
  for (int o = G / 2; o; o /= 2) x = MAX(x, __shfl_xor_sync(~0u, x, o));
  return x;
}
template <int G, class T> FUNCTION T group_sum(T x) {
  for (int o = G / 2; o; o /= 2) x += __shfl_xor_sync(~0u, x, o);
  return x;
}
template <int G> FUNCTION int group_all(int x) {
  for (int o = G / 2; o; o /= 2) x &= __shfl_xor_sync(~0u, x, o);
  return x;
}
template <int G> FUNCTION int group_any(int x) {
  for (int o = G / 2; o; o /= 2) x |= __shfl_xor_sync(~0u, x, o);
  return x;
}

// The last k with first[k] <= b.
FUNCTION uint32_t find(const uint32_t* first, uint32_t n, uint32_t b) {
  uint32_t low = 0, high = n;
  while (high - low > 1) {
    const uint32_t middle = (low + high) / 2;
    if (first[middle] <= b) low = middle; else high = middle;
  }
  return low;
}

enum { SUM, GREATEST, ALL, SOME };
FUNCTION double start_of(int how) { return how == GREATEST ? -INFINITY : how == ALL; }
FUNCTION double combined(int how, double a, double b) {
  return how == SUM ? a + b : how == GREATEST ? MAX(b, a) : how == ALL ? double(a && b) : double(a || b);
}

// One partial total for each thread block, in a fixed order of its threads.
template <int N> FUNCTION void combine_block(double* R, const int* how, double* partial) {
  __shared__ double part[32][N];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int k = 0; k < N; k++) {
    for (int o = 16; o; o /= 2) R[k] = combined(how[k], R[k], __shfl_xor_sync(~0u, R[k], o));
    if (lane == 0) part[warp][k] = R[k];
  }
  __syncthreads();
  if (threadIdx.x == 0)
    for (int k = 0; k < N; k++) {
      for (int w = 1; w < blockDim.x / 32; w++) R[k] = combined(how[k], R[k], part[w][k]);
      partial[(size_t)blockIdx.x * N + k] = R[k];
    }
}

// Whether this is the last thread block of which a thread arrives here: what the others did before is done.
FUNCTION bool has_arrived_last(uint32_t* arrived) {
  __threadfence();
  return atomicInc(arrived, gridDim.x - 1) == gridDim.x - 1;  // the last one sets it to 0 again
}

// The same for all threads of a block. The last block can read what the others have written before.
FUNCTION bool is_last(uint32_t* arrived) {
  __shared__ bool last;
  if (threadIdx.x == 0) last = has_arrived_last(arrived);
  __syncthreads();
  if (last) __threadfence();
  return last;
}

// A total of one array: a warp combines the partial totals of its chunks, in a fixed order. They are read past the first
// cache, several at a time.
FUNCTION double combine_warp(int how, double a) {
  for (int o = 16; o; o /= 2) a = combined(how, a, __shfl_xor_sync(~0u, a, o));
  return a;
}
FUNCTION double combine_chunks(int how, const double* partial, int n, uint32_t from, uint32_t to) {
  double a = start_of(how);
#pragma unroll 8
  for (uint32_t c = from + threadIdx.x % 32; c < to; c += 32) a = combined(how, a, __ldcg(partial + (size_t)c * n));
  return combine_warp(how, a);
}

template <class T> FUNCTION void store_first(T* to, double a) {  // by the first thread of a warp
  if (threadIdx.x % 32 == 0) *to = a;
}

// A total of all arrays, from theirs.
template <class T> FUNCTION double combine_leaves(int how, const T* row, uint32_t leaves) {
  double a = start_of(how);
  for (uint32_t l = threadIdx.x % 32; l < leaves; l += 32) a = combined(how, a, row[l]);
  return combine_warp(how, a);
}
