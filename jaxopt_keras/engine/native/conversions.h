// Floats of 8 and 16 bits as float and back, to nearest, ties to even. For C and CUDA C++: FUNCTION is the storage class.
FUNCTION float from_bf16(uint16_t h) { return as_float((uint32_t)h << 16); }
FUNCTION uint16_t upper_half(float f) { return (uint16_t)(as_bits(f) >> 16); }

#if __CUDA_ARCH__ >= 800  // these differ from the others in the bits of NaN alone
FUNCTION uint16_t to_bf16(float f) {
  uint16_t h;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(f));
  return h;
}
FUNCTION float from_f16(uint16_t h) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
  return f;
}
FUNCTION uint16_t to_f16(float f) {
  uint16_t h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
  return h;
}
#else
FUNCTION uint16_t to_bf16(float f) {  // NaN stays NaN
  uint32_t u = as_bits(f);
  return f != f ? (uint16_t)(u >> 16 | 0x40) : (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
FUNCTION float from_f16(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000) << 16, size = (uint32_t)(h & 0x7fff) << 13;
  float normal = as_float(size + (112u << 23)), small = (float)(int32_t)(size >> 13) * 0x1p-24f;
  uint32_t bits = size >= 31u << 23 ? size + (224u << 23) : size < 1u << 23 ? as_bits(small) : as_bits(normal);
  return as_float(sign | bits);
}
FUNCTION uint16_t to_f16(float f) {
  uint32_t sign = as_bits(f) >> 16 & 0x8000, size = as_bits(f) & 0x7fffffff;
  uint32_t normal = (size - (112u << 23) + 0xfff + (size >> 13 & 1)) >> 13;
  uint32_t small = as_bits(as_float(size) + 0.5f) - as_bits(0.5f);  // in units of 2^-24
  uint32_t large = size > 255u << 23 ? 0x7e00 | (size >> 13 & 0x3ff) : 0x7c00;
  return (uint16_t)(sign | (size >= 0x477ff000 ? large : size < 113u << 23 ? small : normal));
}
#endif
