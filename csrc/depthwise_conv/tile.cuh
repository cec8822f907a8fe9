// Tiles of an image in shared memory, for kernels of 5x5 and more: pixels of SLAB channels, in float.
//
// A lane owns a channel, so a warp reads 32 neighbouring channels of one pixel or, where a slab is narrower, the same
// column of pixels that lie two rows apart. Rows are padded for the latter, so that those fall into different banks.
//
// Compile with -DKERNEL_SIZE=5, 7, 9 or 11, -DSLAB=8, 16 or 32 besides.
#pragma once
#include "depthwise_conv.cuh"

constexpr int TAPS = KERNEL_SIZE * KERNEL_SIZE;
constexpr int MARGIN = KERNEL_SIZE / 2;
constexpr int STRIP = 20;  // output columns of a tile: divides the widths of 640-pixel images at 1/4 to 1/32
constexpr int WIDE = STRIP + KERNEL_SIZE - 1;  // input columns of a tile
constexpr int PADDING = SLAB < 32 ? SLAB / 2 : 0;
constexpr int PITCH = WIDE * SLAB + PADDING, OUTPUT_PITCH = STRIP * SLAB + PADDING;
constexpr int VECTOR = 16 / sizeof(Value), VECTORS = SLAB / VECTOR;  // of a pixel

__device__ __forceinline__ void store_vector(float4* to, float4 raw, float) { *to = raw; }
template <class T>
__device__ __forceinline__ void store_vector(float4* to, float4 raw, T) {
  const float2 a = unpack(__float_as_uint(raw.x), T()), b = unpack(__float_as_uint(raw.y), T());
  const float2 c = unpack(__float_as_uint(raw.z), T()), d = unpack(__float_as_uint(raw.w), T());
  to[0] = make_float4(a.x, a.y, b.x, b.y);
  to[1] = make_float4(c.x, c.y, d.x, d.y);
}

// Copies `rows` x COLUMNS pixels, of which the first is (top, left), into rows of PITCH_ floats; what lies outside the
// image becomes zero. `image` is the slab's first channel of the image's first pixel. A warp copies whole rows, so that
// all but a few numbers are the same for each of them.
template <int COLUMNS, int PITCH_>
__device__ __forceinline__ void load_tile(float* tile, const Value* __restrict__ image, int rows, int top, int left,
                                          int height, int width, int channels) {
  constexpr int STEPS = (COLUMNS * VECTORS + 31) / 32, STEP_COLUMNS = 32 / VECTORS;  // of a warp in a row
  constexpr int AHEAD = STEPS < 8 ? 8 / STEPS : 1;                                   // rows in flight
  const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
  const int first = left + lane / VECTORS;
  bool exists[STEPS];
#pragma unroll
  for (int n = 0; n < STEPS; ++n) {
    const int x = first + n * STEP_COLUMNS;
    exists[n] = lane + 32 * n < COLUMNS * VECTORS && x >= 0 && x < width;
  }
  for (int row = threadIdx.x / 32; row < rows; row += AHEAD * warps) {
    float4 raw[AHEAD][STEPS];
#pragma unroll
    for (int r = 0; r < AHEAD; ++r) {
      const int y = top + row + r * warps;
      const bool inside = row + r * warps < rows && y >= 0 && y < height;
      const Value* from = image + (y * width + first) * channels + lane % VECTORS * VECTOR;
#pragma unroll
      for (int n = 0; n < STEPS; ++n, from += STEP_COLUMNS * channels) {
        raw[r][n] = make_float4(0.f, 0.f, 0.f, 0.f);
        if (inside && exists[n]) raw[r][n] = __ldg(reinterpret_cast<const float4*>(from));
      }
    }
#pragma unroll
    for (int r = 0; r < AHEAD; ++r) {
      if (row + r * warps >= rows) break;
      float* to = tile + (row + r * warps) * PITCH_ + lane * VECTOR;
#pragma unroll
      for (int n = 0; n < STEPS; ++n)
        if (lane + 32 * n < COLUMNS * VECTORS)
          store_vector(reinterpret_cast<float4*>(to + n * 32 * VECTOR), raw[r][n], Value());
    }
  }
}
