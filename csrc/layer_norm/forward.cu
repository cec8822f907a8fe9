// Layer normalisation, forward: rows to normalised rows, and what the backward pass needs of each.
//
// layer_norm.cuh says who holds what. A team takes up to four rows at once, so that every thread has 64 bytes (128
// of float) on their way, and a block takes one set of rows: 64 rows of 64 channels. Blocks are short, and a free
// multiprocessor takes the next; weights and biases come from the caches while the rows come from memory.
//
// Bound by memory: input and output once, 39 MB for 153600 rows of 64 channels in bfloat16 (the first level of T in a
// batch of 8 NYU images), 13 us at 3.0 TB/s on an H100. About 15 instructions a number are 5 us of issue; GELU's erf
// adds as much again. Measured: 20 us, 65 % of that limit (a graph's replay, launch included).
#include "layer_norm.cuh"

__device__ __forceinline__ float activate(float y) {
#if GELU
  return 0.5f * y * (1.f + erff(y * 0.70710678118654752f));
#else
  return y;
#endif
}

// Blocks of a multiprocessor, by the registers of a thread.
__device__ constexpr int resident(int lanes, int values) {
  return lanes > 128 ? 2 : values > 24 ? 4 : values > 8 ? 5 : 6;
}

template <int LANES, int VALUES>
__device__ __forceinline__ void normalise(const Input* __restrict__ input, const float* __restrict__ weight,
                                          const float* __restrict__ bias, Output* __restrict__ output,
                                          float2* __restrict__ statistics, long long stride, int rows, int channels,
                                          float share, float eps) {
  using Own = Team<LANES, VALUES>;
  constexpr int ROWS = 32 / VALUES;  // of a team
  const Own team(channels);
  const int first = blockIdx.x * (Own::TEAMS * ROWS) + threadIdx.x / LANES;

  Raw<Input> raw[ROWS][Own::VECTORS];
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    const int row = first + r * Own::TEAMS;
    team.load(input + row * stride, row < rows, raw[r]);
  }
  float weights[VALUES], biases[VALUES];
  team.load_parameters(weight, weights);
  team.load_parameters(bias, biases);

  float values[ROWS][VALUES], mean[ROWS], scale[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    team.template convert<Input>(raw[r], values[r]);
    mean[r] = 0.f;
#pragma unroll
    for (int i = 0; i < VALUES; ++i) mean[r] += values[r][i];
  }
  team.add_up(mean);
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    mean[r] *= share;
    scale[r] = 0.f;
#pragma unroll
    for (int i = 0; i < VALUES; ++i) {
      values[r][i] -= mean[r];
      if (team.has(i / WIDTH)) scale[r] = fmaf(values[r][i], values[r][i], scale[r]);
    }
  }
  team.add_up(scale);

#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    const int row = first + r * Own::TEAMS;
    if (row >= rows) continue;
    const float factor = inverse_root(fmaf(scale[r], share, eps));
#pragma unroll
    for (int i = 0; i < VALUES; ++i) values[r][i] = activate(fmaf(values[r][i] * factor, weights[i], biases[i]));
    team.store(output + static_cast<size_t>(row) * channels, values[r]);
    if (statistics && team.lane == 0) statistics[row] = make_float2(mean[r], factor);
  }
}

// input: rows `stride` numbers apart; output (rows, C); statistics (rows) or missing; `share` 1 / C. Grid: teams of
// all blocks, times the rows of a team, cover the rows.
#define FORWARD(lanes, values)                                                                                       \
  extern "C" __global__ void __launch_bounds__(block_threads(lanes), resident(lanes, values))                        \
      layer_norm_forward_##lanes##x##values(                                                                         \
          const Input* __restrict__ input, const float* __restrict__ weight, const float* __restrict__ bias,         \
          Output* __restrict__ output, float2* __restrict__ statistics, long long stride, int rows, int channels,    \
          float share, float eps) {                                                                                  \
    normalise<lanes, values>(input, weight, bias, output, statistics, stride, rows, channels, share, eps);           \
  }
TEAMS(FORWARD)
