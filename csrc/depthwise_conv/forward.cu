// Depthwise convolution of 5x5 to 11x11, forward; also its input's gradient, which is the same with flipped kernels.
//
// A block has a tile of the input in shared memory: SLAB channels, STRIP output columns and up to 512 / SLAB output
// rows, with the margins that the kernel needs. A thread owns one channel of two output rows, 40 sums in registers. It
// walks the k + 1 rows of input below each other; every value that it reads counts for both output rows, k times each:
// 440 multiply-adds for 41 reads with k = 11. Weights stay in memory's order, (SLAB, k, k): k * k is odd, so lanes that
// read the same tap of neighbouring channels fall into different banks.
//
// Bound by multiply-adds for k = 11: 8.9 G for the Modulators of T in a batch of 8 NYU images (0.30 ms on an H100 at
// 59 TFLOP/s). Of the issue slots they are 88 % in the loop, 78 % with the copy of the tile and the output; tiles cover
// 6 % more rows than there are; shared memory's bandwidth is half used. Two blocks of 115 KiB a multiprocessor overlap
// the copy of one tile with the sums of another. Measured 0.55 ms, 54 % of the limit.
#include "tile.cuh"

constexpr int THREADS = 256;  // at most

// Adds one input row to two output rows, each with its own row of the kernel, or to one of them.
template <bool UPPER, bool LOWER>
__device__ __forceinline__ void add_row(const float* row, const float (&upper_weights)[KERNEL_SIZE],
                                        const float (&lower_weights)[KERNEL_SIZE], float (&upper)[STRIP],
                                        float (&lower)[STRIP]) {
#pragma unroll
  for (int s = 0; s < WIDE; ++s) {
    const float value = row[s * SLAB];
#pragma unroll
    for (int j = 0; j < KERNEL_SIZE; ++j) {
      const int column = s - j;
      if (column < 0 || column >= STRIP) continue;
      if (UPPER) upper[column] = fmaf(upper_weights[j], value, upper[column]);
      if (LOWER) lower[column] = fmaf(lower_weights[j], value, lower[column]);
    }
  }
}

// A row of one channel's kernel, or of the kernel turned by 180 degrees.
__device__ __forceinline__ void read_weights(const float* kernel, int row, bool flipped,
                                             float (&weights)[KERNEL_SIZE]) {
  if (flipped) {
    const float* from = kernel + TAPS - 1 - row * KERNEL_SIZE;
#pragma unroll
    for (int j = 0; j < KERNEL_SIZE; ++j) weights[j] = from[-j];
  } else {
    const float* from = kernel + row * KERNEL_SIZE;
#pragma unroll
    for (int j = 0; j < KERNEL_SIZE; ++j) weights[j] = from[j];
  }
}

__device__ __forceinline__ void write_row(Value* to, const float (&values)[STRIP], int columns, int channels) {
  if (columns >= STRIP) {
#pragma unroll
    for (int x = 0; x < STRIP; ++x, to += channels) store(to, values[x]);
  } else {
#pragma unroll
    for (int x = 0; x < STRIP; ++x, to += channels)
      if (x < columns) store(to, values[x]);
  }
}

// Grid: slabs * strips, tiles of `rows` rows, images. Threads: SLAB * rows / 2, whole warps. `flipped` turns the
// kernels by 180 degrees; `bias` may be missing. Dynamic shared memory: a tile and the weights of a slab.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    depthwise_conv_forward(const Value* __restrict__ input, const float* __restrict__ weight,
                           const float* __restrict__ bias, Value* __restrict__ output, int height, int width,
                           int channels, int rows, int flipped) {
  DYNAMIC_SHARED(memory);
  float* weights = reinterpret_cast<float*>(memory);
  float* tile = weights + SLAB * TAPS;
  const int slabs = channels / SLAB, slab = blockIdx.x % slabs;
  const int left = blockIdx.x / slabs * STRIP, top = blockIdx.y * rows;
  const size_t image = static_cast<size_t>(blockIdx.z) * height * width * channels + slab * SLAB;

  const float4* slab_weights = reinterpret_cast<const float4*>(weight + slab * SLAB * TAPS);
#pragma unroll 4
  for (int i = threadIdx.x; i < SLAB * TAPS / 4; i += blockDim.x) memory[i] = __ldg(slab_weights + i);
  load_tile<WIDE, PITCH>(tile, input + image, rows + KERNEL_SIZE - 1, top - MARGIN, left - MARGIN, height, width,
                         channels);
  __syncthreads();

  const int channel = threadIdx.x % SLAB, own = threadIdx.x / SLAB * 2;  // upper of the two output rows
  if (top + own >= height) return;
  const float* row = tile + own * PITCH + channel;
  const float* kernel = weights + channel * TAPS;
  const float start = bias ? bias[slab * SLAB + channel] : 0.f;
  float upper[STRIP], lower[STRIP];
#pragma unroll
  for (int x = 0; x < STRIP; ++x) upper[x] = lower[x] = start;

  // The lower output row needs the row of the kernel that the upper one needed an input row before.
  float weights_now[KERNEL_SIZE], weights_before[KERNEL_SIZE];
  read_weights(kernel, 0, flipped, weights_before);
  add_row<true, false>(row, weights_before, weights_before, upper, lower);
#pragma unroll 1  // 495 instructions stay within the innermost instruction cache
  for (int i = 1; i < KERNEL_SIZE; ++i) {
    read_weights(kernel, i, flipped, weights_now);
    add_row<true, true>(row + i * PITCH, weights_now, weights_before, upper, lower);
#pragma unroll
    for (int j = 0; j < KERNEL_SIZE; ++j) weights_before[j] = weights_now[j];
  }
  add_row<false, true>(row + KERNEL_SIZE * PITCH, weights_before, weights_before, upper, lower);

  Value* to = output + image + ((top + own) * width + left) * channels + channel;
  write_row(to, upper, width - left, channels);
  if (top + own + 1 < height) write_row(to + width * channels, lower, width - left, channels);
}
