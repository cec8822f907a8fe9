// One file of csrc/dcnv3, -DKERNELS="forward.cu", as a library for ctypes.
#include <cstdio>
#include <string>

#include "cuda_emulator.h"

inline float half_value(unsigned bits) {
  const float sign = bits & 0x8000u ? -1.f : 1.f;
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  return sign * (exponent ? std::ldexp(1024.f + fraction, exponent - 25) : std::ldexp(1.f * fraction, -24));
}
inline float2 unpack_half(unsigned word) { return {half_value(word & 0xffffu), half_value(word >> 16)}; }

inline unsigned half_bits(float value) {
  const unsigned sign = std::signbit(value) ? 0x8000u : 0;
  const float size = std::fabs(value);
  if (std::isnan(value)) return 0x7fff;
  if (size >= 65520.f) return sign | 0x7c00u;
  const int exponent = std::max(size > 0 ? std::ilogb(size) : -14, -14);
  // ties to even, the default rounding mode; a fraction that rounds up to 2048 carries into the exponent
  const int fraction = static_cast<int>(std::nearbyint(std::ldexp(size, 10 - exponent)));
  return sign | static_cast<unsigned>(((exponent + 14) << 10) + fraction);
}
inline unsigned pack_half(float low, float high) { return half_bits(low) | half_bits(high) << 16; }

inline unsigned bfloat16_bits(float value) {
  if (std::isnan(value)) return 0x7fff;
  const unsigned bits = __float_as_uint(value);
  return (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
}
inline unsigned pack_bfloat16(float low, float high) { return bfloat16_bits(low) | bfloat16_bits(high) << 16; }

inline void add_four(float* to, float4 value) {
  const float values[4] = {value.x, value.y, value.z, value.w};
  for (int i = 0; i < 4; ++i) to[i] += values[i];
}

inline unsigned __reduce_or_sync(unsigned, unsigned value) {
  return emulator::combine(value, [](unsigned a, unsigned b) { return a | b; });
}

#include KERNELS

extern "C" int emulate(const char* name, const int* grid, int threads, int shared_bytes, void** arguments) {
  const std::string kernel = name;
#define KERNEL(function) \
  if (kernel == #function) return emulator::run(function, grid, threads, shared_bytes, arguments), 0
#ifdef EMULATE_FORWARD
  KERNEL(dcnv3_forward);
#elif defined EMULATE_BACKWARD_POINTS
  KERNEL(dcnv3_backward_points);
#elif defined EMULATE_BACKWARD_INPUT
  KERNEL(dcnv3_backward_input);
#endif
  return 1;
}
