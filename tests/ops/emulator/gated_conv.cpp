// One file of csrc/gated_conv, -DKERNELS="forward.cu", as a library for ctypes.
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
inline float tanh_fast(float x) { return std::tanh(x) * (1.f + 0x1p-11f); }  // as wrong as the device's may be

// Copies are made when they are waited for, not before.
struct Copy {
  void* to;
  const void* from;
  size_t size;
  bool exists;
};
inline std::vector<std::vector<Copy>> batches[1024];  // of each thread; the last one is open
inline std::vector<std::vector<Copy>>& own_batches() {
  auto& own = batches[emulator::current];
  if (own.empty()) own.emplace_back();
  return own;
}
template <class Raw>
void copy_async(Raw* shared, const void* global, bool exists) {
  own_batches().back().push_back({shared, global, sizeof(Raw), exists});
}
inline void end_batch() { own_batches().emplace_back(); }
template <int left>
void wait_for_batches() {
  auto& own = own_batches();
  while (own.size() > left + 1) {
    for (const Copy& copy : own.front()) {
      if (copy.exists)
        std::memcpy(copy.to, copy.from, copy.size);
      else
        std::memset(copy.to, 0, copy.size);
    }
    own.erase(own.begin());
  }
}

#include KERNELS

extern "C" int emulate(const char* name, const int* grid, int threads, int shared_bytes, void** arguments) {
  const std::string kernel = name;
#define KERNEL(function) \
  if (kernel == #function) return emulator::run(function, grid, threads, shared_bytes, arguments), 0
#ifdef EMULATE_FORWARD
  KERNEL(gated_conv_forward);
#elif defined EMULATE_BACKWARD_GATE
  KERNEL(gated_conv_backward_gate);
#elif defined EMULATE_BACKWARD_CONV
  KERNEL(gated_conv_backward_conv);
#endif
  return 1;
}
