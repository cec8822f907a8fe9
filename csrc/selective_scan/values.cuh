// The numbers that tensors of the size of the tokens hold; arithmetic is in float whatever they are.
//
// Compile with -DVALUE_TYPE= 0 (float), 1 (bfloat16) or 2 (half).
#pragma once

#include "../half.cuh"

template <int type> struct TypeOf { using type_ = float; };
template <> struct TypeOf<1> { using type_ = Bfloat16; };
template <> struct TypeOf<2> { using type_ = Half; };
using Value = TypeOf<VALUE_TYPE>::type_;

// Two neighbouring numbers as they lie in memory, zeros at first. Loads stay in flight until somebody unpacks them.
template <class T>
struct RawTwo {
  unsigned word = 0;
};
template <>
struct RawTwo<float> {
  float2 pair = {0.f, 0.f};
};
using Two = RawTwo<Value>;

__device__ __forceinline__ void load_two(const float* from, RawTwo<float>& to) {
  to.pair = *reinterpret_cast<const float2*>(from);
}
template <class T>
__device__ __forceinline__ void load_two(const T* from, RawTwo<T>& to) {
  to.word = *reinterpret_cast<const unsigned*>(from);
}

__device__ __forceinline__ float2 unpack(RawTwo<float> two) { return two.pair; }
__device__ __forceinline__ float2 unpack(RawTwo<Bfloat16> two) {
  return make_float2(__uint_as_float(two.word << 16), __uint_as_float(two.word & 0xffff0000u));
}
__device__ __forceinline__ float2 unpack(RawTwo<Half> two) { return unpack_half(two.word); }

__device__ __forceinline__ RawTwo<float> pack(float low, float high, float) { return {make_float2(low, high)}; }
__device__ __forceinline__ RawTwo<Bfloat16> pack(float low, float high, Bfloat16) { return {pack_bfloat16(low, high)}; }
__device__ __forceinline__ RawTwo<Half> pack(float low, float high, Half) { return {pack_half(low, high)}; }

__device__ __forceinline__ void store_two(float* to, float low, float high) {
  *reinterpret_cast<float2*>(to) = make_float2(low, high);
}
template <class T>
__device__ __forceinline__ void store_two(T* to, float low, float high) {
  *reinterpret_cast<unsigned*>(to) = pack(low, high, T()).word;
}
