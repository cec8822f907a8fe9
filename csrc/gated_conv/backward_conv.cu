// Gated convolution, backward, second of two kernels: through the convolution.
//
//     grad_x[i](p)          += sum over o, tap of kernel[o, i, tap] * grad_c[o](p - tap)
//     grad_kernel[o, i, tap] = sum over p of x[i](p) * grad_c[o](p - tap)
//     grad_bias[o]           = sum over p of grad_c[o](p)
// where `tap` is the step (ky - 1, kx - 1). Both sums over grad_c meet the same pairs of pixels, so one walk serves
// both: a thread owns two of the four channels i of a group, with their 72 weights and the 72 sums of the weights'
// gradients, in registers. Two neighbouring lanes share a group. At its end a block adds up its warps in shared memory,
// one after the other, and writes one part of the sums; torch adds the parts. Nothing is atomic: two runs give the same
// bits.
//
// gated_conv.cuh says the rest. Limits for a batch of 8 NYU maps in the head (C = 1024, 120x160) on an
// H100: bfloat16 moves 1.26 GB (0.42 ms at 3.0 TB/s) and takes about 105 instructions for an element, 72 of them
// multiplications (0.56 ms of issue at 1.76 GHz). The five calls of T have 1.47 times that limit, 0.82 ms, and took
// 1.06: 77 %.
#include "gated_conv.cuh"

constexpr int OWNED = 2;  // channels of a thread
constexpr int HALVES = GROUP / OWNED;
constexpr int LANES = BLOCK_GROUPS * HALVES;
constexpr int SETS = THREADS / LANES;  // strips that a block walks at the same time
constexpr int OWNED_WEIGHTS = GROUP * OWNED * TAPS;
constexpr int SUMS = OWNED_WEIGHTS + GROUP;  // of a thread
static_assert(LANES == 32, "a warp is a set");

// Sums over the pixels of a thread, or of a block. Weights [o][own i][ky][kx].
struct Sums {
  float weight[OWNED_WEIGHTS], bias[GROUP];
};

// grad_x is read and written in place: each element by one thread. kernel_parts (parts, C, GROUP, 3, 3), bias_parts
// (parts, C). Grid: groups / BLOCK_GROUPS, parts.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    gated_conv_backward_conv(const Value* __restrict__ x, const float* __restrict__ kernel,
                             const Value* __restrict__ grad_c, Value* grad_x, float* __restrict__ kernel_parts,
                             float* __restrict__ bias_parts, int height, int width, int channels, int segments,
                             int segment_rows, int strips) {
  // First the weights; then rows of grad_c, [stage][pixel][thread], and after them rows of x and grad_x, likewise; then
  // the sums of the block, [sum][lane].
  constexpr int c_size = SEEN * THREADS, x_size = 2 * STRIP * THREADS;  // of a stage
  constexpr int rows_bytes = STAGES * (c_size * sizeof(Four) + x_size * sizeof(Two));
  constexpr int others_bytes = larger(BLOCK_GROUPS * WEIGHT_ROW, SUMS * LANES) * sizeof(float);
  __shared__ float4 shared[larger(rows_bytes, others_bytes) / sizeof(float4)];
  float* staged = reinterpret_cast<float*>(shared);
  Four* own_c = reinterpret_cast<Four*>(shared) + threadIdx.x;
  Two* own_x = reinterpret_cast<Two*>(reinterpret_cast<Four*>(shared) + STAGES * c_size) + threadIdx.x;
  const Geometry geometry{height, width, channels, segments, segment_rows, strips};
  const int lane = threadIdx.x % LANES, set = threadIdx.x / LANES;
  const int member = lane / HALVES, half = lane % HALVES, group = blockIdx.x * BLOCK_GROUPS + member;
  const bool exists = group < channels / GROUP;

  stage_weights(kernel, channels, staged);
  float weight[OWNED_WEIGHTS];
#pragma unroll
  for (int n = 0; n < OWNED_WEIGHTS; ++n) {
    constexpr int each = OWNED * TAPS;  // weights of one o
    weight[n] = staged[member * WEIGHT_ROW + (n / each * HALVES + half) * each + n % each];
  }
  __syncthreads();

  const long long stride = channels;  // of pixels
  const long long row_values = geometry.row_values();
  Sums total = {};
  const int end = exists ? strips : 0;
  for (int index = blockIdx.y * SETS + set; index < end; index += gridDim.y * SETS) {
    const Strip strip(index, geometry);
    const int last_row = min(strip.end_row, height - 1);  // to be read
    float sum[3][STRIP][OWNED] = {};    // grad_x: the row above the one at hand, that row, the row below
    float value[3][STRIP][OWNED] = {};  // x, of the same rows; zero in rows that are not of this strip
    int row = max(strip.first_row - 1, 0);
    long long next = strip.values + row * row_values + group * GROUP;  // in the row of grad_c to be copied
    Value* result_at = grad_x + (strip.values + strip.first_row * row_values + group * GROUP + half * OWNED);
    if (row == strip.first_row) {
#pragma unroll
      for (int s = 0; s < STRIP; ++s)
        if (strip.exists[1 + s])
          unpack(*reinterpret_cast<const Two*>(x + next + half * OWNED + s * stride), value[1][s], Value());
    }
    auto copy = [&](int copied_row) {
      const int stage = copied_row % STAGES;
      copy_row<-1, SEEN>(own_c + stage * c_size, grad_c + next, strip, copied_row <= last_row, stride);
      // with it the row of x below, and the row of grad_x above
      const long long own = next + half * OWNED;
      Two* to = own_x + stage * x_size;
      copy_row<0, STRIP>(to, x + own + row_values, strip, copied_row + 1 < strip.end_row, stride);
      copy_row<0, STRIP>(to + STRIP * THREADS, grad_x + own - row_values, strip,
                         copied_row > strip.first_row && copied_row <= strip.end_row, stride);
      next += row_values;
      end_batch();
    };
#pragma unroll
    for (int ahead = 0; ahead < STAGES - 1; ++ahead) copy(row + ahead);

#pragma unroll 1
    for (; row <= strip.end_row; ++row) {
      wait_for_batches<STAGES - 2>();
      const Four* copied_c = own_c + row % STAGES * c_size;
      const Two* copied_x = own_x + row % STAGES * x_size;
      Four raw[SEEN];
#pragma unroll
      for (int j = 0; j < SEEN; ++j) raw[j] = copied_c[j * THREADS];
#pragma unroll
      for (int s = 0; s < STRIP; ++s) unpack(copied_x[s * THREADS], value[2][s], Value());
      copy(row + STAGES - 1);  // over the row above, which has been used
      const float counts = row >= strip.first_row && row < strip.end_row ? 1.f : 0.f;
#pragma unroll
      for (int j = 0; j < SEEN; ++j) {
        float gradient[GROUP];
        unpack(raw[j], gradient, Value());
        if (j > 0 && j <= STRIP) {
#pragma unroll
          for (int o = 0; o < GROUP; ++o) total.bias[o] = fmaf(gradient[o], counts, total.bias[o]);
        }
#pragma unroll
        for (int ky = 0; ky < 3; ++ky) {
#pragma unroll
          for (int s = 0; s < STRIP; ++s) {
            const int kx = s + 2 - j;
            if (kx < 0 || kx > 2) continue;
#pragma unroll
            for (int o = 0; o < GROUP; ++o) {
#pragma unroll
              for (int i = 0; i < OWNED; ++i) {
                const int n = ((o * OWNED + i) * 3 + ky) * 3 + kx;
                sum[ky][s][i] = fmaf(weight[n], gradient[o], sum[ky][s][i]);
                total.weight[n] = fmaf(value[ky][s][i], gradient[o], total.weight[n]);
              }
            }
          }
        }
      }
      if (row > strip.first_row) {  // the row above is complete
        Two packed[STRIP];
#pragma unroll
        for (int s = 0; s < STRIP; ++s) {
          float result[OWNED];
          unpack(copied_x[(STRIP + s) * THREADS], result, Value());
#pragma unroll
          for (int i = 0; i < OWNED; ++i) result[i] += sum[0][s][i];
          packed[s] = pack(result, Value());
        }
        store_row(result_at, strip, stride, packed);
        result_at += row_values;
      }
#pragma unroll
      for (int s = 0; s < STRIP; ++s) {
#pragma unroll
        for (int i = 0; i < OWNED; ++i) {
          sum[0][s][i] = sum[1][s][i];
          sum[1][s][i] = sum[2][s][i];
          sum[2][s][i] = 0.f;
          value[0][s][i] = value[1][s][i];
          value[1][s][i] = value[2][s][i];
        }
      }
    }
    wait_for_batches<0>();  // before others go to the same places
  }

  for (int turn = 0; turn < SETS; ++turn) {
    __syncthreads();  // the rows have been read, or the set before has added
    if (set != turn) continue;
#pragma unroll
    for (int n = 0; n < SUMS; ++n) {
      const float mine = n < OWNED_WEIGHTS ? total.weight[n] : total.bias[n - OWNED_WEIGHTS];
      staged[n * LANES + lane] = turn ? staged[n * LANES + lane] + mine : mine;
    }
  }
  __syncthreads();
  const int first_group = blockIdx.x * BLOCK_GROUPS, exist = min(channels / GROUP - first_group, BLOCK_GROUPS);
  const size_t first_channel = static_cast<size_t>(blockIdx.y) * channels + first_group * GROUP;
  for (int n = threadIdx.x; n < exist * GROUP_WEIGHTS; n += THREADS) {
    const int rest = n % GROUP_WEIGHTS, o = rest / (GROUP * TAPS), i = rest / TAPS % GROUP;
    const int from = (o * OWNED + i % OWNED) * TAPS + rest % TAPS;
    kernel_parts[first_channel * GROUP * TAPS + n] = staged[from * LANES + n / GROUP_WEIGHTS * HALVES + i / OWNED];
  }
  for (int n = threadIdx.x; n < exist * GROUP; n += THREADS)
    bias_parts[first_channel + n] = staged[(OWNED_WEIGHTS + n % GROUP) * LANES + n / GROUP * HALVES];
}
