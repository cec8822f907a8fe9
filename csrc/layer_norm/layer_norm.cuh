// Shared by the kernels of layer normalisation: of each row x of C numbers,
//     y[c] = weight[c] * (x[c] - mean) / sqrt(variance + eps) + bias[c],    out = y, or GELU(y) with the exact erf.
//
// Tensors: input and its gradient Input, output and its gradient Output; weight, bias and their gradients float;
// statistics float2 (mean, 1 / sqrt(variance + eps)) of each row. Arithmetic is in float whatever the types. The mean
// comes first, then the mean of squared differences from it, so nothing cancels.
//
// Mapping, the same in all kernels: a team of LANES threads owns a row and holds it in registers, VALUES numbers a
// thread, in vectors of 16 bytes that the team reads side by side. Teams are parts of a warp where rows are short (four
// lanes for 32 channels), and several warps where they are long. Surplus threads of a team are idle.
//
// Compile with -DINPUT_TYPE, -DOUTPUT_TYPE=0 (float), 1 (bfloat16) or 2 (half), -DGELU=0 or 1. Output is never wider
// than Input.
#pragma once

#include "../half.cuh"

#ifndef SA2DEPTH_EMULATED  // tests run the same sources on the CPU, with their own versions of the code below
__device__ __forceinline__ float inverse_root(float x) { return rsqrtf(x); }
#endif

// LANES and VALUES of the teams, by the channels that they have room for; ops/layer_norm/cuda.py picks.
#define TEAMS(X)                                      \
  X(4, 8) X(8, 8) X(4, 24) X(16, 8) X(8, 24) X(32, 8) \
  X(16, 24) X(32, 16) X(32, 24) X(32, 32) X(64, 32) X(256, 32)

template <int type> struct TypeOf { using type_ = float; };
template <> struct TypeOf<1> { using type_ = Bfloat16; };
template <> struct TypeOf<2> { using type_ = Half; };
using Input = TypeOf<INPUT_TYPE>::type_;
using Output = TypeOf<OUTPUT_TYPE>::type_;
static_assert(sizeof(Output) <= sizeof(Input), "vectors are 16 bytes of Input, and no more of Output");

constexpr int WIDTH = 16 / sizeof(Input);  // numbers of a vector
__device__ constexpr int block_threads(int lanes) { return lanes > 128 ? lanes : 128; }

// A vector of WIDTH numbers as it lies in memory.
template <int bytes> struct RawOf { using type = float4; };
template <> struct RawOf<8> { using type = float2; };
template <class T> using Raw = typename RawOf<WIDTH * sizeof(T)>::type;

// Two neighbouring numbers in one word.
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

__device__ __forceinline__ void unpack(float4 raw, float* out, float) {
  out[0] = raw.x;
  out[1] = raw.y;
  out[2] = raw.z;
  out[3] = raw.w;
}
template <class T>
__device__ __forceinline__ void unpack(float2 raw, float* out, T) {
  const float2 low = unpack_word(raw.x, T()), high = unpack_word(raw.y, T());
  out[0] = low.x;
  out[1] = low.y;
  out[2] = high.x;
  out[3] = high.y;
}
template <class T>
__device__ __forceinline__ void unpack(float4 raw, float* out, T) {
  unpack(make_float2(raw.x, raw.y), out, T());
  unpack(make_float2(raw.z, raw.w), out + 4, T());
}

__device__ __forceinline__ void pack(const float* in, float4& raw, float) {
  raw = make_float4(in[0], in[1], in[2], in[3]);
}
template <class T>
__device__ __forceinline__ void pack(const float* in, float2& raw, T) {
  raw = make_float2(pack_word(in[0], in[1], T()), pack_word(in[2], in[3], T()));
}
template <class T>
__device__ __forceinline__ void pack(const float* in, float4& raw, T) {
  raw = make_float4(pack_word(in[0], in[1], T()), pack_word(in[2], in[3], T()), pack_word(in[4], in[5], T()),
                    pack_word(in[6], in[7], T()));
}

__device__ __forceinline__ void clear(float2& raw) { raw = make_float2(0.f, 0.f); }
__device__ __forceinline__ void clear(float4& raw) { raw = make_float4(0.f, 0.f, 0.f, 0.f); }

// A thread's part of a row: the numbers at (v * LANES + lane) * WIDTH + j, for v < VECTORS and j < WIDTH.
template <int LANES, int VALUES> struct Team {
  static constexpr int THREADS = block_threads(LANES), TEAMS = THREADS / LANES;  // of a block
  static constexpr int VECTORS = VALUES / WIDTH;

  int lane, channels;

  __device__ __forceinline__ explicit Team(int channels_) : lane(threadIdx.x % LANES), channels(channels_) {}

  __device__ __forceinline__ int channel(int v) const { return (v * LANES + lane) * WIDTH; }
  __device__ __forceinline__ bool has(int v) const { return channel(v) < channels; }

  // Zeros where the row has no channels, or if there is no row.
  template <class T>
  __device__ __forceinline__ void load(const T* row, bool exists, Raw<T> (&raw)[VECTORS]) const {
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
      clear(raw[v]);
      if (exists && has(v)) raw[v] = __ldg(reinterpret_cast<const Raw<T>*>(row + channel(v)));
    }
  }
  template <class T>
  __device__ __forceinline__ void convert(const Raw<T> (&raw)[VECTORS], float (&values)[VALUES]) const {
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) unpack(raw[v], values + v * WIDTH, T());
  }
  template <class T>
  __device__ __forceinline__ void store(T* row, const float (&values)[VALUES]) const {
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
      Raw<T> raw;
      pack(values + v * WIDTH, raw, T());
      if (has(v)) *reinterpret_cast<Raw<T>*>(row + channel(v)) = raw;
    }
  }

  // Weights or biases, which are float whatever the types; zeros where the row has no channels.
  __device__ __forceinline__ void load_parameters(const float* from, float (&values)[VALUES]) const {
#pragma unroll
    for (int v = 0; v < VECTORS; ++v)
#pragma unroll
      for (int j = 0; j < WIDTH; j += 4) {
        float4 raw;
        clear(raw);
        if (has(v)) raw = __ldg(reinterpret_cast<const float4*>(from + channel(v) + j));
        unpack(raw, values + v * WIDTH + j, float());
      }
  }

  // Replaces each number by its sum over the team, in all of its threads. All threads of the block come here together.
  template <int N>
  __device__ __forceinline__ void add_up(float (&sums)[N]) const {
#pragma unroll
    for (int other = (LANES < 32 ? LANES : 32) / 2; other; other /= 2)
#pragma unroll
      for (int i = 0; i < N; ++i) sums[i] += __shfl_xor_sync(0xffffffffu, sums[i], other);
    if constexpr (LANES > 32) {
      constexpr int WARPS = LANES / 32;
      __shared__ float shared_sums[N][THREADS / 32];
      const int warp = threadIdx.x / 32;
      __syncthreads();  // the sums before have been read
      if (threadIdx.x % 32 == 0)
#pragma unroll
        for (int i = 0; i < N; ++i) shared_sums[i][warp] = sums[i];
      __syncthreads();
#pragma unroll
      for (int i = 0; i < N; ++i) {
        sums[i] = 0.f;
#pragma unroll
        for (int w = 0; w < WARPS; ++w) sums[i] += shared_sums[i][warp / WARPS * WARPS + w];
      }
    }
  }
};
