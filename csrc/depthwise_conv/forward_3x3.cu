// Depthwise convolution of 3x3, forward; also its input's gradient, which is the same with flipped kernels.
//
// direct.cuh says who does what. A thread keeps the weights of its channels and the sums of three output rows in
// registers: an input row is the last of one, the middle of the next, the first of the one after.
//
// Bound by memory: input once and output once, 39 MB for a batch of 8 NYU maps at 1/4 of T (120x160, C = 64) in
// bfloat16 (13 us at 3.0 TB/s on an H100), 125 instructions for 8 outputs of a thread (6 us of issue). The
// 35 calls of T have 21 times that limit, 0.27 ms, and took 0.38: 71 %.
#include "direct.cuh"

// Grid: slabs * column tiles, chunks of `rows` rows, images. `flipped` turns the kernels by 180 degrees; `bias` may be
// missing.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    depthwise_conv_forward_3x3(const Value* __restrict__ input, const float* __restrict__ weight,
                               const float* __restrict__ bias, Value* __restrict__ output, int height, int width,
                               int channels, int vectors, int rows, int flipped) {
  __shared__ float4 weights[MOST_VECTORS * TAPS];
  const int slabs = channels / (4 * vectors), slab = blockIdx.x % slabs;
  const int across = THREADS / vectors, own = threadIdx.x / vectors, vector = threadIdx.x % vectors;
  const int column = (blockIdx.x / slabs * across + own) * OWN;
  const int begin = blockIdx.y * rows, end = min(begin + rows, height);
  const int channel = (slab * vectors + vector) * 4;
  const size_t image = static_cast<size_t>(blockIdx.z) * height * width * channels + channel;
  const bool exists = own < across && column < width;

  const int input_end = exists ? min(end + 1, height) : 0;
  Reader<WIDE> reader(input + image, begin - 1, column - 1, width, channels);
  Row<WIDE> ahead[AHEAD];
#pragma unroll
  for (int i = 0; i < AHEAD; ++i) {
    const int row = begin - 1 + i;
    reader.read(ahead[i], row >= 0 && row < input_end, width, channels);
  }

  const float4* slab_weights = reinterpret_cast<const float4*>(weight) + slab * vectors * TAPS;
#pragma unroll
  for (int n = 0; n < (MOST_VECTORS * TAPS + THREADS - 1) / THREADS; ++n) {
    const int i = threadIdx.x + n * THREADS;
    if (i < vectors * TAPS) weights[i] = __ldg(slab_weights + i);
  }
  __syncthreads();
  if (!exists) return;

  float own_weights[4 * TAPS], start[4];  // [channel][tap]
#pragma unroll
  for (int i = 0; i < TAPS; ++i) {
    const float4 four = weights[vector * TAPS + i];
    own_weights[4 * i] = four.x;
    own_weights[4 * i + 1] = four.y;
    own_weights[4 * i + 2] = four.z;
    own_weights[4 * i + 3] = four.w;
  }
  if (flipped) {
#pragma unroll
    for (int i = 0; i < 4 * TAPS; ++i) {
      const int other = i / TAPS * TAPS + TAPS - 1 - i % TAPS;
      const float here = own_weights[i];
      if (i < other) own_weights[i] = own_weights[other], own_weights[other] = here;
    }
  }
  const float4 four = bias ? *reinterpret_cast<const float4*>(bias + channel) : make_float4(0.f, 0.f, 0.f, 0.f);
  start[0] = four.x;
  start[1] = four.y;
  start[2] = four.z;
  start[3] = four.w;

  float sums[3][OWN][4];  // of the output rows above, at and below the input row
#pragma unroll
  for (int i = 0; i < 2 * OWN * 4; ++i) sums[i / 8][i / 4 % OWN][i % 4] = start[i % 4];
  Value* to = output + image + (begin * width + column) * channels;
  const bool has_second = column + 1 < width;
#pragma unroll 3
  for (int row = begin - 1; row <= end; ++row) {
    const Row<WIDE> now = ahead[0];
#pragma unroll
    for (int i = 0; i + 1 < AHEAD; ++i) ahead[i] = ahead[i + 1];
    reader.read(ahead[AHEAD - 1], row + AHEAD < input_end, width, channels);
#pragma unroll
    for (int i = 0; i < OWN * 4; ++i) sums[2][i / 4][i % 4] = start[i % 4];
#pragma unroll
    for (int s = 0; s < WIDE; ++s) {
      float value[4];
      unpack_four(now.raw[s], value, Value());
#pragma unroll
      for (int j = 0; j < 3; ++j) {
        if (s - j < 0 || s - j >= OWN) continue;
#pragma unroll
        for (int i = 0; i < 3; ++i)  // the row of the kernel
#pragma unroll
          for (int c = 0; c < 4; ++c)
            sums[2 - i][s - j][c] = fmaf(own_weights[c * TAPS + i * 3 + j], value[c], sums[2 - i][s - j][c]);
      }
    }
    if (row > begin) {
      *reinterpret_cast<Four*>(to) = pack_four(sums[0][0], Value());
      if (has_second) *reinterpret_cast<Four*>(to + channels) = pack_four(sums[0][1], Value());
      to += width * channels;
    }
#pragma unroll
    for (int i = 0; i < 2 * OWN * 4; ++i) sums[i / 8][i / 4 % OWN][i % 4] = sums[i / 8 + 1][i / 4 % OWN][i % 4];
  }
}
