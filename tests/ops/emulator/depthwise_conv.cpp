// One file of csrc/depthwise_conv, -DKERNELS="forward.cu", as a library for ctypes.
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

#include KERNELS

extern "C" int emulate(const char* name, const int* grid, int threads, int shared_bytes, void** arguments) {
  const std::string kernel = name;
#define KERNEL(function) \
  if (kernel == #function) return emulator::run(function, grid, threads, shared_bytes, arguments), 0
#ifdef EMULATE_FORWARD
  KERNEL(depthwise_conv_forward);
#elif defined EMULATE_FORWARD_3X3
  KERNEL(depthwise_conv_forward_3x3);
#elif defined EMULATE_BACKWARD_WEIGHT
  KERNEL(depthwise_conv_backward_weight);
#elif defined EMULATE_BACKWARD_WEIGHT_3X3
  KERNEL(depthwise_conv_backward_weight_3x3);
#elif defined EMULATE_SUM_CHUNKS
  KERNEL(depthwise_conv_sum_chunks);
#endif
  return 1;
}
