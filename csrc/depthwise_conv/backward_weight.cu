// Depthwise convolution of 5x5 to 11x11, backward: gradients of weight and bias, as sums over parts of the image.
//
// A block owns a slab of channels and walks every `chunks`-th tile: SLAB channels, STRIP output columns, `rows` output
// rows. It has the output's gradient of the tile and the input with its margins in shared memory. A thread owns one
// channel and KERNEL_ROWS rows of the kernel (33 sums in registers for k = 11), and takes two rows of the output's
// gradient at a time into registers: 1320 multiply-adds for 160 reads with k = 11. Rows of the kernel are dealt to
// GROUPS groups of threads; there is one row too many, in whose first place the bias's gradient is summed. UNITS
// threads share the rows of the tile, and add up in shared memory at the end. Nothing is atomic: sum_chunks.cu adds up
// the blocks in a fixed order.
//
// The multiply-adds of the forward pass, 0.30 ms for the Modulators of T in a batch of 8 NYU images on an H100; 88 % of
// the issue slots of the sums, and 12 % more instructions copy tiles. Two blocks of 72 KiB and 256 threads share a
// multiprocessor. Measured 0.60 ms, half of the limit.
#include "tile.cuh"

constexpr int GROUPS = KERNEL_SIZE == 11 || KERNEL_SIZE == 7 ? 4 : 2;
constexpr int KERNEL_ROWS = (KERNEL_SIZE + 1) / GROUPS;
constexpr int UNITS = 64 / SLAB;  // a warp is all of one group
constexpr int THREADS = SLAB * UNITS * GROUPS;
constexpr int SLOTS = TAPS + 1;                           // of a channel: its taps, its bias
constexpr int SUMS = GROUPS * KERNEL_ROWS * KERNEL_SIZE;  // the same, and nothing in the rest of the spare row
static_assert(SLAB <= 16 && GROUPS * KERNEL_ROWS == KERNEL_SIZE + 1, "one spare row, in the last group");

// Adds the products of one input row with the upper row of the output's gradient, with the lower one, or with both.
template <bool UPPER, bool LOWER>
__device__ __forceinline__ void add_row(const float* row, const float (&upper_grad)[STRIP],
                                        const float (&lower_grad)[STRIP], float (&upper)[KERNEL_SIZE],
                                        float (&lower)[KERNEL_SIZE]) {
#pragma unroll
  for (int s = 0; s < WIDE; ++s) {
    const float value = row[s * SLAB];
#pragma unroll
    for (int j = 0; j < KERNEL_SIZE; ++j) {
      const int column = s - j;
      if (column < 0 || column >= STRIP) continue;
      if (UPPER) upper[j] = fmaf(upper_grad[column], value, upper[j]);
      if (LOWER) lower[j] = fmaf(lower_grad[column], value, lower[j]);
    }
  }
}

// parts (chunks, SLOTS, C). Grid: slabs * chunks. Threads: THREADS. Dynamic shared memory: two tiles, or UNITS * SUMS
// * SLAB floats if that is more.
extern "C" __global__ void __launch_bounds__(THREADS, THREADS > 128 ? 2 : 3)
    depthwise_conv_backward_weight(const Value* __restrict__ grad, const Value* __restrict__ input,
                                   float* __restrict__ parts, int images, int height, int width, int channels,
                                   int rows, int chunks) {
  DYNAMIC_SHARED(memory);
  float* input_tile = reinterpret_cast<float*>(memory);
  float* grad_tile = input_tile + (rows + KERNEL_SIZE - 1) * PITCH;
  const int slabs = channels / SLAB, slab = blockIdx.x % slabs, chunk = blockIdx.x / slabs;
  const int across = (width + STRIP - 1) / STRIP, down = (height + rows - 1) / rows;
  const int channel = threadIdx.x % SLAB, unit = threadIdx.x / SLAB % UNITS;
  // The group with the spare row has less to do: not always on the same schedulers of a multiprocessor, which holds a
  // block of the first half of the grid and one of the second.
  const int group = (threadIdx.x / SLAB / UNITS + (2 * blockIdx.x >= gridDim.x)) % GROUPS;
  const bool has_spare = group == GROUPS - 1;

  float sums[KERNEL_ROWS][KERNEL_SIZE] = {};
  for (int tile = chunk; tile < images * across * down; tile += chunks) {
    const int left = tile % across * STRIP, top = tile / across % down * rows;
    const size_t image = static_cast<size_t>(tile / across / down) * height * width * channels + slab * SLAB;
    __syncthreads();  // the tile before has been used
    load_tile<STRIP, OUTPUT_PITCH>(grad_tile, grad + image, rows, top, left, height, width, channels);
    load_tile<WIDE, PITCH>(input_tile, input + image, rows + KERNEL_SIZE - 1, top - MARGIN, left - MARGIN, height,
                           width, channels);
    __syncthreads();

#pragma unroll 1
    for (int y = 2 * unit; y < rows; y += 2 * UNITS) {
      float upper[STRIP], lower[STRIP];
#pragma unroll
      for (int x = 0; x < STRIP; ++x) {
        upper[x] = grad_tile[y * OUTPUT_PITCH + x * SLAB + channel];
        lower[x] = grad_tile[(y + 1) * OUTPUT_PITCH + x * SLAB + channel];
      }
      const float* row = input_tile + (y + group * KERNEL_ROWS) * PITCH + channel;
      // An input row meets one row of the kernel through the upper gradient, the row before through the lower one.
      add_row<true, false>(row, upper, lower, sums[0], sums[0]);
#pragma unroll
      for (int i = 1; i < KERNEL_ROWS - 1; ++i)
        add_row<true, true>(row + i * PITCH, upper, lower, sums[i], sums[i - 1]);
      constexpr int LAST = KERNEL_ROWS - 1;
      if (has_spare) {
        add_row<false, true>(row + LAST * PITCH, upper, lower, sums[LAST], sums[LAST - 1]);
#pragma unroll
        for (int x = 0; x < STRIP; ++x) sums[LAST][0] += upper[x] + lower[x];
      } else {
        add_row<true, true>(row + LAST * PITCH, upper, lower, sums[LAST], sums[LAST - 1]);
        add_row<false, true>(row + (LAST + 1) * PITCH, upper, lower, sums[LAST], sums[LAST]);
      }
    }
  }

  __syncthreads();
  float* shared_sums = input_tile;  // [unit][row and column of the kernel][channel]
#pragma unroll
  for (int i = 0; i < KERNEL_ROWS; ++i)
#pragma unroll
    for (int j = 0; j < KERNEL_SIZE; ++j)
      shared_sums[(unit * SUMS + (group * KERNEL_ROWS + i) * KERNEL_SIZE + j) * SLAB + channel] = sums[i][j];
  __syncthreads();
  for (int i = threadIdx.x; i < SLOTS * SLAB; i += THREADS) {
    float sum = 0.f;
#pragma unroll
    for (int other = 0; other < UNITS; ++other) sum += shared_sums[other * SUMS * SLAB + i];
    parts[(static_cast<size_t>(chunk) * SLOTS + i / SLAB) * channels + slab * SLAB + i % SLAB] = sum;
  }
}
