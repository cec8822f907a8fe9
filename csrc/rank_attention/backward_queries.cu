// Rank-grouped attention, backward: gradient of the queries, and E (backward.cuh) for the gradients of the keys.
//
// Grid (Q / 16, B h), 256 threads. A block keeps p and y of its 16 queries with all keys in shared memory:
//   1. keys, then values in a tile of 64, 8 a warp: scores again, p, the five products dO . v, y, and sums for D;
//   2. E from the sums of all warps, p (y - E) in place of y;
//   3. gradient = scale * sum of p (y - E) k, keys in tiles of 64: a warp owns half of the channels and every fourth
//      8 keys, the four sums are added at the end.
// Products: 7 of the size Q N d (scores 1, dO . v 5, gradient 1). Measured fraction of the limit: not measured.
#include "backward.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;
constexpr int HALVES = 2;                   // of the channels, in phase 3
constexpr int QUARTERS = WARPS / HALVES;    // of the keys
constexpr int CHANNEL_TILES = DIM / 8 / HALVES;
static_assert(KEY_TILE == 8 * WARPS, "a warp has 8 keys of a tile");

// The tile's place is used again when everybody has left it.
struct Shared {
  float weights[QUERIES][SCORE_STRIDE];  // p and its group
  float grads[QUERIES][SCORE_STRIDE];    // y, then p (y - E)
  float queries[QUERIES][TILE_STRIDE];
  float output_grads[OUTPUTS][QUERIES][TILE_STRIDE];
  union {
    float tile[KEY_TILE][TILE_STRIDE];            // keys or values
    float sums[WARPS][QUERIES][OUTPUTS];          // between phases 1 and 2: a warp's part of D_1 to D_4 and D_0
    float parts[QUARTERS][QUERIES][TILE_STRIDE];  // at the end: sums over the keys of a warp
  };
  Query block[QUERIES];
};
static_assert(sizeof(Shared) == SHARED_BYTES, "the launch must ask for this much shared memory");

// Phase 1 for a warp's 8 keys, `key` the first of them, with their values in the tile. Adds to the sums for D.
__device__ __forceinline__ void weigh(Shared& shared, const float (&score)[4], int key, int keys, float scale, int warp,
                                      int lane, float (&sums)[2][OUTPUTS]) {
  float products[OUTPUTS][4] = {};
#pragma unroll 2
  for (int k = 0; k < DIM; k += 8) {
    const FragmentB value = rows_b(&shared.tile[8 * warp][k], lane);
#pragma unroll
    for (int o = 0; o < OUTPUTS; ++o) multiply_add(products[o], rows_a(&shared.output_grads[o][0][k], lane), value);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int q = lane / 4 + 8 * half;
    const Query& query = shared.block[q];
    float2 words, grads;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int e = 2 * half + i;
      const Weight weight = weight_of(score[e] * scale, key + 2 * (lane % 4) + i, keys, query);
      const float all[OUTPUTS] = {products[0][e], products[1][e], products[2][e], products[3][e], products[4][e]};
      (i ? words.y : words.x) = __uint_as_float(pack(weight.value, weight.group));
      (i ? grads.y : grads.x) = combine(all, weight, query);
#pragma unroll
      for (int g = 0; g < GROUPS; ++g) sums[half][g] += weight.group == g ? weight.value * all[1 + g] : 0.f;
      sums[half][GROUPS] = fmaf(weight.value * query.share[weight.group], all[0], sums[half][GROUPS]);
    }
    *reinterpret_cast<float2*>(&shared.weights[q][key + 2 * (lane % 4)]) = words;
    *reinterpret_cast<float2*>(&shared.grads[q][key + 2 * (lane % 4)]) = grads;
  }
}

// E of a query, from the sums of all warps.
__device__ __forceinline__ void average(Shared& shared, float* __restrict__ means, int q, bool exists) {
  float total[OUTPUTS] = {};
#pragma unroll
  for (int w = 0; w < WARPS; ++w)
#pragma unroll
    for (int g = 0; g < OUTPUTS; ++g) total[g] += shared.sums[w][q][g];
#pragma unroll
  for (int g = 0; g < OUTPUTS; ++g) {
    const float mean = g < GROUPS ? fmaf(shared.block[q].share[g], total[GROUPS], total[g]) : total[GROUPS];
    shared.block[q].mean[g] = mean;
    if (exists) means[static_cast<size_t>(q) * OUTPUTS + g] = mean;
  }
}

// query, grad_query (B, h, Q, d) or (B, h, d, Q); key, value (B, h, N, d); grad (5, B, h, Q, d) or (5, B, h, d, Q);
// rows (B, h, Q) of the forward pass; means (B, h, Q, 5), written. `scale_bits` is a float's bits.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    rank_attention_backward_queries(const Element* __restrict__ query, const Element* __restrict__ key,
                                    const Element* __restrict__ value, const Element* __restrict__ grad,
                                    const Row* __restrict__ rows, float* __restrict__ means,
                                    Element* __restrict__ grad_query, int queries, int keys, int scale_bits) {
  DYNAMIC_SHARED(memory);
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const float scale = __int_as_float(scale_bits);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first_query = blockIdx.x * QUERIES;
  const size_t head = blockIdx.y, queries_before = head * queries;
  const size_t output_size = static_cast<size_t>(gridDim.y) * queries * DIM;
  key += head * keys * DIM;
  value += head * keys * DIM;

  load_queries<THREADS>(shared.queries[0], shared.output_grads, query + queries_before * DIM,
                        grad + queries_before * DIM, output_size, first_query, queries);
  load_block<THREADS>(shared.block, rows + queries_before, nullptr, first_query, queries);

  float sums[2][OUTPUTS] = {};
  for (int start = 0; start < keys; start += KEY_TILE) {
    const bool has_keys = start + 8 * warp < keys;
    Load<KEY_TILE, THREADS> key_load, value_load;
    key_load.from_rows(key, start, keys);
    value_load.from_rows(value, start, keys);
    __syncthreads();
    key_load.to_rows(shared.tile[0]);
    __syncthreads();
    float score[4] = {};
    if (has_keys)
#pragma unroll 4
      for (int k = 0; k < DIM; k += 8)
        multiply_add(score, rows_a(&shared.queries[0][k], lane), rows_b(&shared.tile[8 * warp][k], lane));
    __syncthreads();
    value_load.to_rows(shared.tile[0]);
    __syncthreads();
    if (has_keys) weigh(shared, score, start + 8 * warp, keys, scale, warp, lane, sums);
  }
  __syncthreads();
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int g = 0; g < OUTPUTS; ++g) {
      float sum = sums[half][g];
      sum += __shfl_xor_sync(ALL_LANES, sum, 1);
      sum += __shfl_xor_sync(ALL_LANES, sum, 2);
      if (lane % 4 == 0) shared.sums[warp][8 * half + lane / 4][g] = sum;
    }
  __syncthreads();
  if (threadIdx.x < QUERIES)
    average(shared, means + (queries_before + first_query) * OUTPUTS, threadIdx.x, first_query + threadIdx.x < queries);
  __syncthreads();

  const int padded = (keys + 7) / 8 * 8;
  for (int q = warp; q < QUERIES; q += WARPS)
    for (int k = lane; k < padded; k += 32) {
      const unsigned word = __float_as_uint(shared.weights[q][k]);
      shared.grads[q][k] = weight_of(word) * (shared.grads[q][k] - shared.block[q].mean[group_of(word)]);
    }

  const int half = warp % HALVES, quarter = warp / HALVES;
  float c[CHANNEL_TILES][4] = {};
  for (int start = 0; start < keys; start += KEY_TILE) {
    __syncthreads();
    load_tile<KEY_TILE, THREADS>(shared.tile[0], key, start, keys);
    __syncthreads();
#pragma unroll 1
    for (int k = 8 * quarter; k < KEY_TILE && start + k < keys; k += 8 * QUARTERS) {
      FragmentA a;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float2 pair =
            *reinterpret_cast<const float2*>(&shared.grads[8 * i + lane / 4][start + k + 2 * (lane % 4)]);
        a.set<false>(i, pair.x);
        a.set<false>(2 + i, pair.y);
      }
#pragma unroll
      for (int t = 0; t < CHANNEL_TILES; ++t)
        multiply_add(c[t], a, columns_b(&shared.tile[k][8 * (half * CHANNEL_TILES + t)], lane));
    }
  }
  __syncthreads();
#pragma unroll
  for (int t = 0; t < CHANNEL_TILES; ++t)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      shared.parts[quarter][8 * (i / 2) + lane / 4][8 * (half * CHANNEL_TILES + t) + 2 * (lane % 4) + i % 2] = c[t][i];
  __syncthreads();
  for (int i = threadIdx.x; i < QUERIES * DIM; i += THREADS) {
    const int q = CHANNELS_FIRST ? i % QUERIES : i / DIM, column = CHANNELS_FIRST ? i / QUERIES : i % DIM;
    float sum = 0.f;
#pragma unroll
    for (int part = 0; part < QUARTERS; ++part) sum += shared.parts[part][q][column];
    if (first_query + q < queries)
      grad_query[queries_before * DIM + place_of(first_query + q, column, queries)] = narrow(scale * sum);
  }
}
