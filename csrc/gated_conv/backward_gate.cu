// Gated convolution, backward, first of two kernels: through the gate.
//
// With t = tanh(c) recomputed from x (nothing but x is kept for the backward pass), and g the gradient of the output:
//     grad_c = g * x * (1 - t^2), the gradient of the convolution's result,
//     grad_x = g * t, the part of x's gradient that does not go through the convolution: backward_conv.cu adds the
//     rest.
//
// gated_conv.cuh and walk.cuh say who does what. Limits for a batch of 8 NYU maps in the head (C = 1024, 120x160)
// on an H100: bfloat16 moves 1.26 GB (0.42 ms at 3.0 TB/s) and takes about 66 instructions for an element (0.35 ms of
// issue at 1.76 GHz). The five calls of T have 1.47 times that limit, 0.62 ms, and took 0.71: 87 %.
#include "walk.cuh"

struct Backward {
  const Value* grad;
  Value* grad_c;
  Value* grad_x;
  const Geometry& geometry;
  long long at;  // index in the row to be written next

  static constexpr int COPIES = STRIP;
  __device__ __forceinline__ void begin(long long first) { at = first; }
  __device__ __forceinline__ void copy(Four* to, long long first, const Strip& strip, bool exists) {
    copy_row<0, STRIP>(to, grad + first, strip, exists, geometry.channels);
  }
  __device__ __forceinline__ void operator()(const Strip& strip, const Four (&center)[STRIP],
                                             const float (&c)[STRIP][GROUP], const Four* copied) {
    Four through_conv[STRIP], direct[STRIP];
#pragma unroll
    for (int s = 0; s < STRIP; ++s) {
      float value[GROUP], gradient[GROUP], gated[GROUP];
      unpack(center[s], value, Value());
      unpack(copied[s * THREADS], gradient, Value());
#pragma unroll
      for (int o = 0; o < GROUP; ++o) {
        const float2 both = gate_and_slope(c[s][o], Value());
        gated[o] = gradient[o] * both.x;
        value[o] *= gradient[o] * both.y;
      }
      direct[s] = pack(gated, Value());
      through_conv[s] = pack(value, Value());
    }
    store_row(grad_x + at, strip, geometry.channels, direct);
    store_row(grad_c + at, strip, geometry.channels, through_conv);
    at += geometry.row_values();
  }
};

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    gated_conv_backward_gate(const Value* __restrict__ x, const float* __restrict__ kernel,
                             const float* __restrict__ bias, const Value* __restrict__ grad,
                             Value* __restrict__ grad_c, Value* __restrict__ grad_x, int height, int width,
                             int channels, int segments, int segment_rows, int strips) {
  const Geometry geometry{height, width, channels, segments, segment_rows, strips};
  Backward backward{grad, grad_c, grad_x, geometry, 0};
  convolve(x, kernel, bias, geometry, backward);
}
