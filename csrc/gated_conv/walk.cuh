// The convolution, for the kernels that do something with its result at each pixel.
//
// A thread owns a whole group, so that a value is loaded and converted for four results at once: its 144 weights stay
// in registers. The 288 multiplications for a row of the strip form 24 chains that do not depend on each other.
#pragma once
#include "gated_conv.cuh"

constexpr int SETS = THREADS / BLOCK_GROUPS;  // strips that a block walks at the same time

// Walks the strips of this thread and calls
//     consume.begin(first), at the start of each strip, with the index of the thread's first value in it,
//     consume.copy(to, first, strip, exists), for each row, ahead of its turn: starts to copy Consume::COPIES pixels of
//         another map, from this index on,
//     consume(strip, center, c, copied), for each row that exists, with x and c of its pixels, and what was copied.
// Grid: groups / BLOCK_GROUPS, and shares of the map.
template <class Consume>
__device__ __forceinline__ void convolve(const Value* __restrict__ x, const float* __restrict__ kernel,
                                         const float* __restrict__ bias, const Geometry& geometry, Consume& consume) {
  // first the weights, then rows: [stage][pixel][thread]
  constexpr int stage_size = (SEEN + Consume::COPIES) * THREADS;
  constexpr int rows_size = STAGES * stage_size * sizeof(Four) / sizeof(float4);
  __shared__ float4 shared[larger(rows_size, BLOCK_GROUPS * WEIGHT_ROW / 4)];
  stage_weights(kernel, geometry.channels, reinterpret_cast<float*>(shared));
  const int member = threadIdx.x % BLOCK_GROUPS, group = blockIdx.x * BLOCK_GROUPS + member;
  float weight[GROUP_WEIGHTS];
#pragma unroll
  for (int i = 0; i < GROUP_WEIGHTS / 4; ++i) {
    const float4 four = shared[member * (WEIGHT_ROW / 4) + i];
    weight[4 * i] = four.x;
    weight[4 * i + 1] = four.y;
    weight[4 * i + 2] = four.z;
    weight[4 * i + 3] = four.w;
  }
  __syncthreads();
  if (group >= geometry.channels / GROUP) return;
  const float4 start = reinterpret_cast<const float4*>(bias)[group];
  const float initial[GROUP] = {start.x, start.y, start.z, start.w};

  Four* own = reinterpret_cast<Four*>(shared) + threadIdx.x;
  const long long channels = geometry.channels;
  const long long row_values = geometry.row_values();
  for (int index = blockIdx.y * SETS + threadIdx.x / BLOCK_GROUPS; index < geometry.strips;
       index += gridDim.y * SETS) {
    const Strip strip(index, geometry);
    int row = max(strip.first_row - 1, 0);
    long long next = strip.values + row * row_values + group * GROUP;  // in the row to be copied
    const int last_row = min(strip.end_row, geometry.height - 1);      // to be read
    consume.begin(strip.values + strip.first_row * row_values + group * GROUP);
    auto copy = [&](int copied_row) {
      Four* to = own + copied_row % STAGES * stage_size;
      copy_row<-1, SEEN>(to, x + next, strip, copied_row <= last_row, channels);
      consume.copy(to + SEEN * THREADS, next - row_values, strip,
                   copied_row > strip.first_row && copied_row <= strip.end_row);
      next += row_values;
      end_batch();
    };
#pragma unroll
    for (int ahead = 0; ahead < STAGES - 1; ++ahead) copy(row + ahead);
    // Sums of the row above the one at hand, of that row, and of the row below.
    float sum[3][STRIP][GROUP];
#pragma unroll
    for (int i = 0; i < 3 * STRIP * GROUP; ++i)
      sum[i / STRIP / GROUP][i / GROUP % STRIP][i % GROUP] = initial[i % GROUP];
    Four center[STRIP] = {};  // x in the row above
#pragma unroll 1
    for (; row <= strip.end_row; ++row) {
      wait_for_batches<STAGES - 2>();
      const Four* copied = own + row % STAGES * stage_size;
      Four raw[SEEN];
#pragma unroll
      for (int j = 0; j < SEEN; ++j) raw[j] = copied[j * THREADS];
      copy(row + STAGES - 1);  // over the row above, which has been used
#pragma unroll
      for (int j = 0; j < SEEN; ++j) {
        float value[GROUP];
        unpack(raw[j], value, Value());
#pragma unroll
        for (int above = 0; above < 3; ++above) {
#pragma unroll
          for (int i = 0; i < GROUP; ++i) {
#pragma unroll
            for (int s = 0; s < STRIP; ++s) {
              const int kx = j - s, ky = 2 - above;
              if (kx < 0 || kx > 2) continue;
#pragma unroll
              for (int o = 0; o < GROUP; ++o)
                sum[above][s][o] = fmaf(weight[((o * GROUP + i) * 3 + ky) * 3 + kx], value[i], sum[above][s][o]);
            }
          }
        }
      }
      // the row above is complete
      if (row > strip.first_row) consume(strip, center, sum[0], copied + SEEN * THREADS);
#pragma unroll
      for (int s = 0; s < STRIP; ++s) {
        center[s] = raw[s + 1];
#pragma unroll
        for (int o = 0; o < GROUP; ++o) {
          sum[0][s][o] = sum[1][s][o];
          sum[1][s][o] = sum[2][s][o];
          sum[2][s][o] = initial[o];
        }
      }
    }
    wait_for_batches<0>();  // before others go to the same places
  }
}
