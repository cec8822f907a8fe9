// Depthwise convolution of 3x3, backward: gradients of weight and bias, as sums over parts of the image.
//
// direct.cuh says who does what. A block walks every `chunks`-th tile of its slab: `rows` rows of as many columns
// as its threads have. A thread keeps the sums of the taps of its channels in registers, and three rows of the output's
// gradient, which an input row meets through the three rows of the kernel. The columns of a block add up in shared
// memory at the end. Nothing is atomic: sum_chunks.cu adds up the blocks in a fixed order.
//
// Bound by memory: input and the output's gradient once, 39 MB for a batch of 8 NYU maps at 1/4 of T (120x160, C = 64)
// in bfloat16 (13 us at 3.0 TB/s on an H100), 160 instructions for 8 outputs of a thread (8 us of issue). The 35
// calls of T have 21 times that limit, 0.27 ms, and took 0.50: 55 %.
#include "direct.cuh"

constexpr int SLOTS = TAPS + 1;  // of a channel: its taps, its bias

// parts (chunks, SLOTS, C). Grid: slabs * chunks. `column_tiles` and `row_tiles` cover the image.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    depthwise_conv_backward_weight_3x3(const Value* __restrict__ grad, const Value* __restrict__ input,
                                       float* __restrict__ parts, int images, int height, int width, int channels,
                                       int vectors, int column_tiles, int row_tiles, int rows, int chunks) {
  __shared__ float4 shared_sums[THREADS * SLOTS];  // [column][slot][vector]
  const int slabs = channels / (4 * vectors), slab = blockIdx.x % slabs, chunk = blockIdx.x / slabs;
  const int across = THREADS / vectors, own = threadIdx.x / vectors, vector = threadIdx.x % vectors;

  float sums[SLOTS][4] = {};
  for (int tile = chunk; tile < images * column_tiles * row_tiles; tile += chunks) {
    const int column = (tile % column_tiles * across + own) * OWN;
    const int begin = tile / column_tiles % row_tiles * rows, end = min(begin + rows, height);
    const size_t image = static_cast<size_t>(tile / column_tiles / row_tiles) * height * width * channels +
                         (slab * vectors + vector) * 4;
    if (own >= across || column >= width) continue;

    // an input row, and the row of the output's gradient below it
    const int input_end = min(end + 1, height);
    Reader<WIDE> input_reader(input + image, begin - 1, column - 1, width, channels);
    Reader<OWN> grad_reader(grad + image, begin, column, width, channels);
    Row<WIDE> inputs[AHEAD];
    Row<OWN> grads[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; ++i) {
      const int row = begin - 1 + i;
      input_reader.read(inputs[i], row >= 0 && row < input_end, width, channels);
      grad_reader.read(grads[i], row + 1 < end, width, channels);
    }
    float around[3][OWN][4] = {};  // the output's gradient above, at and below the input row
#pragma unroll 2
    for (int row = begin - 1; row <= end; ++row) {
      const Row<WIDE> input_now = inputs[0];
      const Row<OWN> grad_now = grads[0];
#pragma unroll
      for (int i = 0; i + 1 < AHEAD; ++i) {
        inputs[i] = inputs[i + 1];
        grads[i] = grads[i + 1];
      }
      input_reader.read(inputs[AHEAD - 1], row + AHEAD < input_end, width, channels);
      grad_reader.read(grads[AHEAD - 1], row + AHEAD + 1 < end, width, channels);
#pragma unroll
      for (int x = 0; x < OWN; ++x) {
        unpack_four(grad_now.raw[x], around[2][x], Value());
#pragma unroll
        for (int c = 0; c < 4; ++c) sums[TAPS][c] += around[2][x][c];
      }
#pragma unroll
      for (int s = 0; s < WIDE; ++s) {
        float value[4];
        unpack_four(input_now.raw[s], value, Value());
#pragma unroll
        for (int j = 0; j < 3; ++j) {
          if (s - j < 0 || s - j >= OWN) continue;
#pragma unroll
          for (int i = 0; i < 3; ++i)  // the row of the kernel
#pragma unroll
            for (int c = 0; c < 4; ++c)
              sums[i * 3 + j][c] = fmaf(around[2 - i][s - j][c], value[c], sums[i * 3 + j][c]);
        }
      }
#pragma unroll
      for (int i = 0; i < 2 * OWN * 4; ++i)
        around[i / 8][i / 4 % OWN][i % 4] = around[i / 8 + 1][i / 4 % OWN][i % 4];
    }
  }

  if (own < across)
#pragma unroll
    for (int slot = 0; slot < SLOTS; ++slot)
      shared_sums[(own * SLOTS + slot) * vectors + vector] =
          make_float4(sums[slot][0], sums[slot][1], sums[slot][2], sums[slot][3]);
  __syncthreads();
  const int slab_channels = 4 * vectors;
  for (int i = threadIdx.x; i < SLOTS * slab_channels; i += THREADS) {
    float sum = 0.f;
    for (int other = 0; other < across; ++other)
      sum += reinterpret_cast<const float*>(shared_sums)[other * SLOTS * slab_channels + i];
    parts[(static_cast<size_t>(chunk) * SLOTS + i / slab_channels) * channels + slab * slab_channels +
          i % slab_channels] = sum;
  }
}
