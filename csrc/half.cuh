// Numbers of 16 bits, for the kernels of all folders: two of them in a word, to floats and back.
#pragma once

struct Bfloat16 {
  unsigned short bits;
};
struct Half {
  unsigned short bits;
};

#ifndef SA2DEPTH_EMULATED  // tests run the same sources on the CPU, with their own versions of the code below
__device__ __forceinline__ float2 unpack_half(unsigned word) {
  float2 pair;
  asm("{.reg .f16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high;}"
      : "=f"(pair.x), "=f"(pair.y)
      : "r"(word));
  return pair;
}

__device__ __forceinline__ unsigned pack_half(float low, float high) {
  unsigned word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

__device__ __forceinline__ unsigned pack_bfloat16(float low, float high) {
  unsigned word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
#endif
