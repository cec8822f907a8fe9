// Gated convolution, forward: out = x * tanh(conv(x) + bias), one pass.
//
// gated_conv.cuh and walk.cuh say who does what. Limits for a batch of 8 NYU maps in the head (C = 1024, 120x160)
// on an H100: bfloat16 moves 0.63 GB (0.21 ms at 3.0 TB/s) and takes about 48 instructions for an element, 36 of them
// multiplications (0.26 ms of issue at 1.76 GHz); float moves 1.26 GB (0.42 ms). The five calls of T in bfloat16
// have 1.47 times the head's limit, 0.38 ms, and took 0.47: 81 %.
#include "walk.cuh"

struct Forward {
  Value* output;
  const Geometry& geometry;
  Value* at;  // in the row to be written next

  static constexpr int COPIES = 0;
  __device__ __forceinline__ void begin(long long first) { at = output + first; }
  __device__ __forceinline__ void copy(Four*, long long, const Strip&, bool) {}
  __device__ __forceinline__ void operator()(const Strip& strip, const Four (&center)[STRIP],
                                             const float (&c)[STRIP][GROUP], const Four*) {
    Four raw[STRIP];
#pragma unroll
    for (int s = 0; s < STRIP; ++s) {
      float value[GROUP];
      unpack(center[s], value, Value());
#pragma unroll
      for (int o = 0; o < GROUP; ++o) value[o] *= gate(c[s][o], Value());
      raw[s] = pack(value, Value());
    }
    store_row(at, strip, geometry.channels, raw);
    at += geometry.row_values();
  }
};

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    gated_conv_forward(const Value* __restrict__ x, const float* __restrict__ kernel, const float* __restrict__ bias,
                       Value* __restrict__ output, int height, int width, int channels, int segments,
                       int segment_rows, int strips) {
  const Geometry geometry{height, width, channels, segments, segment_rows, strips};
  Forward forward{output, geometry, nullptr};
  convolve(x, kernel, bias, geometry, forward);
}
