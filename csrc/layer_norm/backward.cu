// Layer normalisation, backward: the gradient of the input in one pass, those of weight and bias as sums of blocks.
//
// layer_norm.cuh says who holds what. With g the gradient of y and n = (x - mean) * scale,
//     dx = scale * (g * weight - mean of g * weight - n * mean of g * weight * n),
//     dweight = sum of g * n,  dbias = sum of g, both over all rows.
// Blocks stay, and walk the rows in steps of all blocks; a thread keeps the sums of its channels in registers and reads
// two rows at once where it has 8 numbers of each. The teams of a block add up at the end, first by shuffles, then in
// shared memory. Nothing is atomic: the second kernel adds up the blocks in a fixed order.
//
// Bound by memory: input, the output's gradient and the input's gradient once, 59 MB for 153600 rows of 64 channels in
// bfloat16, 20 us at 3.0 TB/s on an H100; the sums of 640 blocks are 0.3 MB, 3 us for the second kernel. Measured:
// 41 us for both (forward and backward less forward), 56 % of that limit (a graph's replay, launches included).
#include "layer_norm.cuh"

// The derivative of what is applied to y.
__device__ __forceinline__ float slope(float y) {
#if GELU
  return 0.5f * (1.f + erff(y * 0.70710678118654752f)) + y * 0.39894228040143268f * expf(-0.5f * y * y);
#else
  return 1.f;
#endif
}

// Blocks of a multiprocessor, by the registers of a thread: as in ops/layer_norm/cuda.py.
__device__ constexpr int resident(int lanes, int values) {
  if (lanes > 128) return 1;
  if (GELU) return values > 16 ? 2 : 4;
  return values > 24 ? 2 : values > 16 ? 3 : values > 8 ? 4 : 5;
}

template <int LANES, int VALUES>
__device__ __forceinline__ void differentiate(const Output* __restrict__ grad, const Input* __restrict__ input,
                                              const float* __restrict__ weight, const float* __restrict__ bias,
                                              const float2* __restrict__ statistics, Input* __restrict__ input_grad,
                                              float* __restrict__ parts, long long grad_stride, long long stride,
                                              int rows, int channels, float share) {
  using Own = Team<LANES, VALUES>;
  constexpr int ROWS = VALUES == 8 ? 2 : 1;  // of a team at once
  constexpr int UNIT_THREADS = LANES < 32 ? 32 : LANES;  // who add up in shared memory: warps, or larger teams
  constexpr int UNITS = Own::THREADS / UNIT_THREADS;
  constexpr int ROOM = LANES * VALUES;  // for channels
  constexpr bool KEEPS_BIASES = VALUES <= 16;  // else there are too few registers: again for each row
  const Own team(channels);
  float weights[VALUES], biases[VALUES];
  team.load_parameters(weight, weights);
  if (GELU && KEEPS_BIASES) team.load_parameters(bias, biases);

  float weight_sums[VALUES] = {}, bias_sums[VALUES] = {};
  for (int top = blockIdx.x * (Own::TEAMS * ROWS); top < rows; top += gridDim.x * (Own::TEAMS * ROWS)) {
    const int first = top + threadIdx.x / LANES;
    Raw<Input> input_raw[ROWS][Own::VECTORS];
    Raw<Output> grad_raw[ROWS][Own::VECTORS];
    float2 known[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const int row = first + r * Own::TEAMS;
      team.load(input + row * stride, row < rows, input_raw[r]);
      team.load(grad + row * grad_stride, row < rows, grad_raw[r]);
      clear(known[r]);
      if (row < rows) known[r] = __ldg(statistics + row);
    }
    if (GELU && !KEEPS_BIASES) team.load_parameters(bias, biases);
    float normal[ROWS][VALUES], grads[ROWS][VALUES], means[2 * ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      team.template convert<Input>(input_raw[r], normal[r]);
      team.template convert<Output>(grad_raw[r], grads[r]);
      means[2 * r] = means[2 * r + 1] = 0.f;
#pragma unroll
      for (int i = 0; i < VALUES; ++i) {
        normal[r][i] = (normal[r][i] - known[r].x) * known[r].y;
        if (GELU) grads[r][i] *= slope(fmaf(normal[r][i], weights[i], biases[i]));
        weight_sums[i] = fmaf(grads[r][i], normal[r][i], weight_sums[i]);
        bias_sums[i] += grads[r][i];
        grads[r][i] *= weights[i];
        means[2 * r] += grads[r][i];
        means[2 * r + 1] = fmaf(grads[r][i], normal[r][i], means[2 * r + 1]);
      }
    }
    team.add_up(means);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const int row = first + r * Own::TEAMS;
      if (row >= rows) continue;
      const float mean = means[2 * r] * share, slant = means[2 * r + 1] * share;
#pragma unroll
      for (int i = 0; i < VALUES; ++i)
        grads[r][i] = known[r].y * (grads[r][i] - mean - normal[r][i] * slant);
      team.store(input_grad + static_cast<size_t>(row) * channels, grads[r]);
    }
  }
  if (!parts) return;

#pragma unroll
  for (int other = LANES; other < 32; other *= 2)  // teams of the same warp
#pragma unroll
    for (int i = 0; i < VALUES; ++i) {
      weight_sums[i] += __shfl_xor_sync(0xffffffffu, weight_sums[i], other);
      bias_sums[i] += __shfl_xor_sync(0xffffffffu, bias_sums[i], other);
    }
  float* own_parts = parts + static_cast<size_t>(blockIdx.x) * 2 * channels;
  if constexpr (UNITS == 1) {
#pragma unroll
    for (int i = 0; i < VALUES; ++i) {
      const int channel = team.channel(i / WIDTH) + i % WIDTH;
      if (channel >= channels) continue;
      own_parts[channel] = weight_sums[i];
      own_parts[channels + channel] = bias_sums[i];
    }
  } else {
    __shared__ float4 shared_sums[UNITS * 2 * ROOM / 4];  // [unit][weight or bias][channel]
    float* own_sums = reinterpret_cast<float*>(shared_sums) + threadIdx.x / UNIT_THREADS * 2 * ROOM;
    if (threadIdx.x % 32 < LANES)
#pragma unroll
      for (int i = 0; i < VALUES; ++i) {
        const int channel = team.channel(i / WIDTH) + i % WIDTH;
        own_sums[channel] = weight_sums[i];
        own_sums[ROOM + channel] = bias_sums[i];
      }
    __syncthreads();
    const float* sums = reinterpret_cast<const float*>(shared_sums);
    for (int channel = threadIdx.x; channel < channels; channel += Own::THREADS)
#pragma unroll
      for (int which = 0; which < 2; ++which) {
        float sum = 0.f;
#pragma unroll
        for (int unit = 0; unit < UNITS; ++unit) sum += sums[(unit * 2 + which) * ROOM + channel];
        own_parts[which * channels + channel] = sum;
      }
  }
}

// grad, input: rows `grad_stride` and `stride` numbers apart; input_grad (rows, C); parts (blocks, 2, C), or missing;
// `share` 1 / C. Grid: as many blocks as run at once, or fewer.
#define BACKWARD(lanes, values)                                                                                      \
  extern "C" __global__ void __launch_bounds__(block_threads(lanes), resident(lanes, values))                        \
      layer_norm_backward_##lanes##x##values(                                                                        \
          const Output* __restrict__ grad, const Input* __restrict__ input, const float* __restrict__ weight,        \
          const float* __restrict__ bias, const float2* __restrict__ statistics, Input* __restrict__ input_grad,     \
          float* __restrict__ parts, long long grad_stride, long long stride, int rows, int channels,                \
          float share) {                                                                                             \
    differentiate<lanes, values>(grad, input, weight, bias, statistics, input_grad, parts, grad_stride, stride,      \
                                 rows, channels, share);                                                             \
  }
TEAMS(BACKWARD)

constexpr int SUM_WARPS = 32;

// parts (blocks, 2, C), weight_grad and bias_grad (C). A block adds up 32 neighbouring numbers; each of its warps takes
// every 32nd part, and they meet in shared memory. Grid: 2 * C / 32, rounded up.
extern "C" __global__ void __launch_bounds__(SUM_WARPS * 32)
    layer_norm_sum_parts(const float* __restrict__ parts, float* __restrict__ weight_grad,
                         float* __restrict__ bias_grad, int blocks, int channels) {
  __shared__ float sums[SUM_WARPS][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int index = blockIdx.x * 32 + lane, count = 2 * channels;
  float sum = 0.f;
  if (index < count) {
#pragma unroll 4
    for (int block = warp; block < blocks; block += SUM_WARPS) sum += parts[static_cast<size_t>(block) * count + index];
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp || index >= count) return;
#pragma unroll
  for (int other = 1; other < SUM_WARPS; ++other) sum += sums[other][lane];
  if (index < channels)
    weight_grad[index] = sum;
  else
    bias_grad[index - channels] = sum;
}
