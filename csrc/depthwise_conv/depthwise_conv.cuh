// Shared by the kernels of depthwise convolution: every channel c has a k x k kernel of its own, and
//     output[b, y, x, c] = bias[c] + sum over i, j of weight[c, i, j] * input[b, y + i - k/2, x + j - k/2, c]
// with zeros around the image.
//
// Tensors: input, output and their gradients (B, H, W, C) of Value; weight (C, k, k), bias (C) and their gradients
// float. Arithmetic is in float whatever Value is.
//
// Compile with -DVALUE_TYPE=0 (float), 1 (bfloat16) or 2 (half).
#pragma once

#include "../half.cuh"

#ifndef SA2DEPTH_EMULATED  // tests run the same sources on the CPU, with their own versions of the code below
#define DYNAMIC_SHARED(name) extern __shared__ float4 name[]
#endif

template <int type> struct TypeOf { using type_ = float; };
template <> struct TypeOf<1> { using type_ = Bfloat16; };
template <> struct TypeOf<2> { using type_ = Half; };
using Value = TypeOf<VALUE_TYPE>::type_;

// Two neighbouring numbers in one word.
__device__ __forceinline__ float2 unpack(unsigned word, Bfloat16) {
  return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
}
__device__ __forceinline__ float2 unpack(unsigned word, Half) { return unpack_half(word); }
__device__ __forceinline__ unsigned pack(float low, float high, Bfloat16) { return pack_bfloat16(low, high); }
__device__ __forceinline__ unsigned pack(float low, float high, Half) { return pack_half(low, high); }

__device__ __forceinline__ void store(float* to, float value) { *to = value; }
template <class T>
__device__ __forceinline__ void store(T* to, float value) {
  to->bits = static_cast<unsigned short>(pack(value, 0.f, T()));
}

// Four neighbouring channels as they lie in memory: 16 bytes of float, else 8.
template <class T> struct FourOf { using type_ = float2; };
template <> struct FourOf<float> { using type_ = float4; };
using Four = FourOf<Value>::type_;

__device__ __forceinline__ void unpack_four(float4 raw, float (&out)[4], float) {
  out[0] = raw.x;
  out[1] = raw.y;
  out[2] = raw.z;
  out[3] = raw.w;
}
template <class T>
__device__ __forceinline__ void unpack_four(float2 raw, float (&out)[4], T) {
  const float2 low = unpack(__float_as_uint(raw.x), T()), high = unpack(__float_as_uint(raw.y), T());
  out[0] = low.x;
  out[1] = low.y;
  out[2] = high.x;
  out[3] = high.y;
}
__device__ __forceinline__ float4 pack_four(const float (&in)[4], float) {
  return make_float4(in[0], in[1], in[2], in[3]);
}
template <class T>
__device__ __forceinline__ float2 pack_four(const float (&in)[4], T) {
  return make_float2(__uint_as_float(pack(in[0], in[1], T())), __uint_as_float(pack(in[2], in[3], T())));
}

__device__ __forceinline__ float4 nothing(float) { return make_float4(0.f, 0.f, 0.f, 0.f); }
template <class T>
__device__ __forceinline__ float2 nothing(T) {
  return make_float2(0.f, 0.f);
}
// Zeros where there is no pixel.
__device__ __forceinline__ Four load_four(const Value* from, bool exists) {
  return exists ? __ldg(reinterpret_cast<const Four*>(from)) : nothing(Value());
}
