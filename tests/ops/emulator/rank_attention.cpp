// One file of csrc/rank_attention, -DKERNELS="forward.cu", as a library for ctypes.
#include <cstdio>
#include <string>

#include "cuda_emulator.h"
//
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
