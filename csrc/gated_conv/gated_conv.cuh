// Shared by the kernels of the gated convolution, out = x * tanh(c), with
//     c[o](y, x) = bias[o] + sum over i, ky, kx of kernel[o, i, ky, kx] * x[i](y + ky - 1, x + kx - 1)
// over the GROUP channels i of the group that channel o belongs to, zeros around the map.
//
// Tensors: maps are (B, H, W, C), kernel (C, GROUP, 3, 3) and bias (C) are float.
//
// Mapping, the same in all kernels: a block owns BLOCK_GROUPS groups, whose weights its threads keep in registers, and
// a share of the map. The map is cut into strips, STRIP columns wide and one segment of rows high; a thread walks down
// a strip and meets each row of it once, adding its share to the three rows of results that it belongs to. So nothing
// but the row at hand and the sums of two unfinished rows is alive, and a value is converted once for STRIP columns and
// three rows. Strips that lie side by side are walked at the same time, so that the columns which both need come from
// L1. A block takes one set of strips after the other, which makes the loading of weights cheap.
//
// So many registers leave room for two warps on each scheduler, too few to hide the latency of memory. So rows are
// copied to shared memory STAGES - 1 rows ahead, each thread for itself: nobody waits for anybody else.
//
// Compile with -DVALUE_TYPE= (0 float, 1 bfloat16, 2 half: of all maps). Arithmetic is in float whatever the type.
#pragma once

#include "../half.cuh"

#ifndef SA2DEPTH_EMULATED  // tests run the same sources on the CPU, with their own versions of the code below
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Copies sizeof(Raw) bytes to shared memory in the background; zeros if they do not exist.
template <class Raw>
__device__ __forceinline__ void copy_async(Raw* shared, const void* global, bool exists) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  constexpr int size = sizeof(Raw);
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(global), "n"(size),
               "r"(exists ? size : 0)
               : "memory");
}

// Ends a batch of copies of this thread.
__device__ __forceinline__ void end_batch() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for all batches of this thread but the `left` latest ones.
template <int left>
__device__ __forceinline__ void wait_for_batches() {
  asm volatile("cp.async.wait_group %0;" ::"n"(left) : "memory");
}

// Relative error up to 2^-11.
__device__ __forceinline__ float tanh_fast(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
#endif

template <int type> struct TypeOf { using type_ = float; };
template <> struct TypeOf<1> { using type_ = Bfloat16; };
template <> struct TypeOf<2> { using type_ = Half; };
using Value = TypeOf<VALUE_TYPE>::type_;

// Four and two neighbouring numbers as they lie in memory.
template <class T> struct RawOf {
  using Four = float2;
  using Two = float;
};
template <> struct RawOf<float> {
  using Four = float4;
  using Two = float2;
};
using Four = RawOf<Value>::Four;
using Two = RawOf<Value>::Two;

constexpr int GROUP = 4;
constexpr int TAPS = 9;
constexpr int GROUP_WEIGHTS = GROUP * GROUP * TAPS;
constexpr int BLOCK_GROUPS = 16;
constexpr int STRIP = 2;
constexpr int SEEN = STRIP + 2;  // columns that the results of a strip depend on
constexpr int THREADS = 128;
constexpr int STAGES = 4;        // rows in shared memory
// Weights of a group in shared memory, padded so that 16-byte reads of neighbouring groups lie in different banks.
constexpr int WEIGHT_ROW = GROUP_WEIGHTS + 4;
constexpr float LOG2_E = 1.4426950408889634f;

__device__ __forceinline__ float2 unpack_word(float raw, Bfloat16) {
  const unsigned word = __float_as_uint(raw);
  return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
}
__device__ __forceinline__ float2 unpack_word(float raw, Half) { return unpack_half(__float_as_uint(raw)); }
__device__ __forceinline__ float pack_word(float low, float high, Bfloat16) {
  return __uint_as_float(pack_bfloat16(low, high));
}
__device__ __forceinline__ float pack_word(float low, float high, Half) {
  return __uint_as_float(pack_half(low, high));
}

__device__ __forceinline__ void unpack(float4 raw, float (&out)[4], float) {
  out[0] = raw.x;
  out[1] = raw.y;
  out[2] = raw.z;
  out[3] = raw.w;
}
template <class T>
__device__ __forceinline__ void unpack(float2 raw, float (&out)[4], T) {
  const float2 low = unpack_word(raw.x, T()), high = unpack_word(raw.y, T());
  out[0] = low.x;
  out[1] = low.y;
  out[2] = high.x;
  out[3] = high.y;
}
__device__ __forceinline__ void unpack(float2 raw, float (&out)[2], float) {
  out[0] = raw.x;
  out[1] = raw.y;
}
template <class T>
__device__ __forceinline__ void unpack(float raw, float (&out)[2], T) {
  const float2 two = unpack_word(raw, T());
  out[0] = two.x;
  out[1] = two.y;
}

__device__ __forceinline__ float4 pack(const float (&in)[4], float) { return make_float4(in[0], in[1], in[2], in[3]); }
template <class T>
__device__ __forceinline__ float2 pack(const float (&in)[4], T) {
  return make_float2(pack_word(in[0], in[1], T()), pack_word(in[2], in[3], T()));
}
__device__ __forceinline__ float2 pack(const float (&in)[2], float) { return make_float2(in[0], in[1]); }
template <class T>
__device__ __forceinline__ float pack(const float (&in)[2], T) {
  return pack_word(in[0], in[1], T());
}

// tanh for a result of type T, and with it the slope 1 - tanh^2.
__device__ __forceinline__ float gate(float c, float) { return tanhf(c); }
__device__ __forceinline__ float gate(float c, Bfloat16) { return tanh_fast(c); }
__device__ __forceinline__ float gate(float c, Half) {
  const float e = exp2_fast(-2.f * LOG2_E * fabsf(c));
  return copysignf(__fdividef(1.f - e, 1.f + e), c);
}
__device__ __forceinline__ float2 gate_and_slope(float c, float) {
  const float t = tanhf(c);
  return make_float2(t, fmaf(-t, t, 1.f));
}
// Not from the fast tanh, whose error would be all that is left of the slope where the gate is nearly 1.
template <class T>
__device__ __forceinline__ float2 gate_and_slope(float c, T) {
  const float e = exp2_fast(-2.f * LOG2_E * fabsf(c));
  const float inverse = __fdividef(1.f, 1.f + e);
  return make_float2(copysignf((1.f - e) * inverse, c), 4.f * e * inverse * inverse);
}

// How the map is cut: `strips` of them all, numbered columns first, then segments, then images.
struct Geometry {
  int height, width, channels;
  int segments, segment_rows;  // of an image
  int strips;

  __device__ long long row_values() const { return static_cast<long long>(width) * channels; }
};

struct Strip {
  int column, first_row, end_row;
  bool exists[SEEN];  // columns of the map, from the one to the left of the strip on
  long long values;   // of the map before the strip's pixel in the first row of the image

  __device__ Strip(int index, const Geometry& geometry) {
    const int across = (geometry.width + STRIP - 1) / STRIP;
    column = index % across * STRIP;
    index /= across;
    first_row = index % geometry.segments * geometry.segment_rows;
    end_row = min(first_row + geometry.segment_rows, geometry.height);
    values = index / geometry.segments * geometry.height * geometry.row_values() +
             static_cast<long long>(column) * geometry.channels;
#pragma unroll
    for (int j = 0; j < SEEN; ++j) exists[j] = column + j - 1 >= 0 && column + j - 1 < geometry.width;
  }
};

// Copies pixels of one row of a strip, `count` of them from column `first` of the strip on, THREADS numbers apart;
// zeros outside the map and if the row does not exist. `from` is in that row, at the strip's column.
template <int first, int count, class Raw>
__device__ __forceinline__ void copy_row(Raw* to, const Value* from, const Strip& strip, bool row_exists,
                                         long long channels) {
#pragma unroll
  for (int j = 0; j < count; ++j)
    copy_async(to + j * THREADS, from + (first + j) * channels, row_exists && strip.exists[1 + first + j]);
}

template <class Raw>
__device__ __forceinline__ void store_row(Value* to, const Strip& strip, long long channels,
                                          const Raw (&raw)[STRIP]) {
#pragma unroll
  for (int s = 0; s < STRIP; ++s)
    if (strip.exists[1 + s]) *reinterpret_cast<Raw*>(to + s * channels) = raw[s];
}

__device__ constexpr int larger(int a, int b) { return a > b ? a : b; }

// The weights of the block's groups, to shared memory; groups that do not exist have none.
__device__ __forceinline__ void stage_weights(const float* __restrict__ kernel, int channels, float* staged) {
  const int first = blockIdx.x * BLOCK_GROUPS, exist = min(channels / GROUP - first, BLOCK_GROUPS);
  constexpr int vectors = GROUP_WEIGHTS / 4;
  const float4* from = reinterpret_cast<const float4*>(kernel) + static_cast<size_t>(first) * vectors;
  for (int i = threadIdx.x; i < exist * vectors; i += THREADS)
    reinterpret_cast<float4*>(staged)[i / vectors * (WEIGHT_ROW / 4) + i % vectors] = from[i];
  __syncthreads();
}
