// One file of csrc/layer_norm, -DKERNELS="forward.cu", as a library for ctypes.
#include <cstdio>
#include <string>

#include "cuda_emulator.h"

inline float2 unpack_half(unsigned word) {
  return {half_to_float(static_cast<unsigned short>(word)), half_to_float(static_cast<unsigned short>(word >> 16))};
}
inline unsigned pack_half(float low, float high) {
  return float_to_half(low) | static_cast<unsigned>(float_to_half(high)) << 16;
}

inline unsigned bfloat16_bits(float value) {
  if (std::isnan(value)) return 0x7fff;
  const unsigned bits = __float_as_uint(value);
  return (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
}
inline unsigned pack_bfloat16(float low, float high) { return bfloat16_bits(low) | bfloat16_bits(high) << 16; }

inline float inverse_root(float x) { return 1.f / std::sqrt(x); }

#include KERNELS

extern "C" int emulate(const char* name, const int* grid, int threads, int shared_bytes, void** arguments) {
  const std::string kernel = name;
#define KERNEL(function) \
  if (kernel == #function) return emulator::run(function, grid, threads, shared_bytes, arguments), 0
#ifdef EMULATE_FORWARD
#define TEAM(lanes, values) KERNEL(layer_norm_forward_##lanes##x##values);
  TEAMS(TEAM)
#elif defined EMULATE_BACKWARD
#define TEAM(lanes, values) KERNEL(layer_norm_backward_##lanes##x##values);
  TEAMS(TEAM)
  KERNEL(layer_norm_sum_parts);
#endif
  return 1;
}
