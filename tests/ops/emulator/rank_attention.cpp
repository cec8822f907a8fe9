// One file of csrc/rank_attention, -DKERNELS="forward.cu", as a library for ctypes.
#include <cstdio>
#include <string>

#include "cuda_emulator.h"

inline unsigned bfloat16_bits(float value) {
  if (std::isnan(value)) return 0x7fff;
  const unsigned bits = __float_as_uint(value);
  return (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
}
inline unsigned pack_bfloat16(float low, float high) { return bfloat16_bits(low) | bfloat16_bits(high) << 16; }
inline unsigned pack_half(float low, float high) {
  return float_to_half(low) | static_cast<unsigned>(float_to_half(high)) << 16;
}
inline float2 unpack_half(unsigned word) {
  return {half_to_float(static_cast<unsigned short>(word)), half_to_float(static_cast<unsigned short>(word >> 16))};
}
inline unsigned equal_halves(unsigned a, unsigned b) {
  const unsigned different = a ^ b;
  return (different & 0xffffu ? 0u : 0xffffu) | (different >> 16 ? 0u : 0xffff0000u);
}

inline float __shfl_sync(unsigned, float value, int other) {
  emulator::fibers[emulator::current].exchanged = value;
  emulator::wait(1);
  const float result = emulator::fibers[emulator::current / 32 * 32 + other].exchanged;
  emulator::wait(1);
  return result;
}

namespace emulator {
inline const void* rows[1024];  // that each thread names

// Matrices of 16-bit numbers from the rows that the lanes of a warp name.
template <int count>
void load(unsigned (&to)[count], const void* row, bool transposed) {
  const int self = current, first = self / 32 * 32, lane = self % 32;
  if (lane < 8 * count && reinterpret_cast<std::uintptr_t>(row) % 16) fail("a row of ldmatrix is not aligned\n");
  rows[self] = row;
  wait(1);
  for (int matrix = 0; matrix < count; ++matrix) {
    unsigned short pair[2];
    for (int i = 0; i < 2; ++i) {
      const int at = lane / 4, other = 2 * (lane % 4) + i;
      const auto* from = static_cast<const unsigned short*>(rows[first + 8 * matrix + (transposed ? other : at)]);
      pair[i] = from[transposed ? at : other];
    }
    to[matrix] = pair[0] | static_cast<unsigned>(pair[1]) << 16;
  }
  wait(1);
}

// m16n8k16 of 16-bit numbers.
template <class Value>
void multiply(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2], Value value) {
  const int self = current, first = self / 32 * 32, lane = self % 32;
  std::memcpy(factors[self].a, a, sizeof(a));
  std::memcpy(factors[self].b, b, sizeof(b));
  wait(1);
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
    double sum = c[i];
    for (int k = 0; k < 16; ++k) {
      const unsigned left = factors[first + row % 8 * 4 + k % 8 / 2].a[row / 8 + 2 * (k / 8)];
      const unsigned right = factors[first + column * 4 + k % 8 / 2].b[k / 8];
      sum += static_cast<double>(value(left >> 16 * (k % 2) & 0xffffu)) * value(right >> 16 * (k % 2) & 0xffffu);
    }
    c[i] = static_cast<float>(sum);
  }
  wait(1);
}
}  // namespace emulator

inline void load_matrices(unsigned (&to)[2], const void* row) { emulator::load(to, row, false); }
inline void load_matrices(unsigned (&to)[4], const void* row) { emulator::load(to, row, false); }
inline void load_transposed(unsigned (&to)[2], const void* row) { emulator::load(to, row, true); }
inline void load_transposed(unsigned (&to)[4], const void* row) { emulator::load(to, row, true); }
inline void mma_bfloat16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  emulator::multiply(c, a, b, [](unsigned bits) { return __uint_as_float(bits << 16); });
}
inline void mma_half(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  emulator::multiply(c, a, b, [](unsigned bits) { return half_to_float(static_cast<unsigned short>(bits)); });
}

#include KERNELS

extern "C" int emulate(const char* name, const int* grid, int threads, int shared_bytes, void** arguments) {
  const std::string kernel = name;
#define KERNEL(function) \
  if (kernel == #function) return emulator::run(function, grid, threads, shared_bytes, arguments), 0
#ifdef EMULATE_FORWARD
  KERNEL(rank_attention_forward);
#elif defined EMULATE_BACKWARD_QUERIES
  KERNEL(rank_attention_backward_queries);
#elif defined EMULATE_BACKWARD_KEYS
  KERNEL(rank_attention_backward_keys);
#endif
  return 1;
}
