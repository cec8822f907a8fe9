// One file of csrc/selective_scan, -DKERNELS="forward.cu", as a library for ctypes.
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
  KERNEL(scan_forward);
  KERNEL(segment_ends);
  KERNEL(adjoint_segment_ends);
#elif defined EMULATE_BACKWARD
  KERNEL(scan_backward);
#elif defined EMULATE_TO_TOKENS
  KERNEL(to_tokens);
#elif defined EMULATE_SUM_DIRECTIONS
  KERNEL(sum_directions);
#endif
  return 1;
}
