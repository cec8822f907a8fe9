// Rank-grouped attention, forward: five outputs, and what the backward pass needs to know of each query.
//
// Grid (Q / 32, B h), 256 threads. A block keeps the scores of its 32 queries with all keys in shared memory:
//   1. scores, keys in tiles of 64: a warp multiplies 16 queries with a quarter of the tile;
//   2. ranks, a warp four queries in turn, scores in registers (select.cuh); exp(score - largest of its group) and
//      the group take the score's place, in one word;
//   3. outputs, values in tiles of 64: a warp owns 16 queries and a quarter of the channels; one product for each
//      group with the weights of the other groups set to zero.
//
// Per query at N = 300, d = 64: about 1,500 instructions of a warp in phase 2, 340 tensor-core instructions for
// float32 inputs and 115 for 16 bits. Measured fraction of the limit: not measured.
#include "select.cuh"

constexpr int QUERIES = 32;
constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;
constexpr int SLICES = WARPS / (QUERIES / 16);  // of the keys of a tile, and of the channels
constexpr int CHANNEL_TILES = (DIM / 8 + SLICES - 1) / SLICES;
// Blocks of a multiprocessor: three if their shared memory fits into that of an H100, and their sums into registers.
constexpr int BLOCKS = DIM <= 64 && 3 * (SHARED_BYTES + 1024) <= 227 * 1024 ? 3 : 2;

struct Shared {
  float scores[QUERIES][SCORE_STRIDE];  // from phase 2 on weights and groups
  float queries[QUERIES][TILE_STRIDE];
  float tile[KEY_TILE][TILE_STRIDE];
  float in_group[QUERIES][GROUPS];  // factors of the sums of a group: for the group's output
  float in_all[QUERIES][OUTPUTS];   // and for output 0
};
static_assert(sizeof(Shared) == SHARED_BYTES, "the launch must ask for this much shared memory");

struct Problem {
  int queries, keys;
  int bounds[GROUPS];
  float scale;
};

__device__ __forceinline__ void compute_scores(Shared& shared, const Element* __restrict__ key, const Problem& problem,
                                               int warp, int lane) {
  const int first_query = warp / SLICES * 16, slice = warp % SLICES;
  Load<KEY_TILE, THREADS> load;
  load.from_rows(key, 0, problem.keys);
  for (int start = 0; start < problem.keys; start += KEY_TILE) {
    __syncthreads();
    load.to_rows(shared.tile[0]);
    __syncthreads();
    load.from_rows(key, start + KEY_TILE, problem.keys);  // the next tile comes while this one is multiplied
    constexpr int TILES = KEY_TILE / 8 / SLICES;
    float c[TILES][4] = {};
#pragma unroll 4
    for (int k = 0; k < DIM; k += 8) {
      const FragmentA a = rows_a(&shared.queries[first_query][k], lane);
#pragma unroll
      for (int t = 0; t < TILES; ++t)
        multiply_add(c[t], a, rows_b(&shared.tile[8 * (slice * TILES + t)][k], lane));
    }
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
      const int column = start + 8 * (slice * TILES + t) + 2 * (lane % 4);
      if (column >= KEYS_PADDED) continue;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float2 pair = make_float2(c[t][2 * half] * problem.scale, c[t][2 * half + 1] * problem.scale);
        if (column >= problem.keys) pair.x = minus_infinity();
        if (column + 1 >= problem.keys) pair.y = minus_infinity();
        *reinterpret_cast<float2*>(&shared.scores[first_query + 8 * half + lane / 4][column]) = pair;
      }
    }
  }
}

// Phase 2 for one query.
__device__ __forceinline__ void rank_query(Shared& shared, Row* __restrict__ row, const Problem& problem, int query,
                                           int lane) {
  float score[KEY_SLOTS];
#pragma unroll
  for (int i = 0; i < KEY_SLOTS; ++i) {
    const int key = 32 * i + lane;
    score[i] = key < problem.keys ? shared.scores[query][key] : minus_infinity();
  }
  const Selection selected = select(score, problem.keys, problem.bounds, lane);

  float sum[OUTPUTS] = {};
#pragma unroll
  for (int i = 0; i < KEY_SLOTS; ++i) {
    const int key = 32 * i + lane, group = group_of(score[i], key, selected.threshold, selected.ties);
    float largest = selected.largest[0];
#pragma unroll
    for (int g = 1; g < OUTPUTS; ++g) largest = group >= g ? selected.largest[g] : largest;
    const float weight = key < problem.keys ? exp_difference(score[i], largest) : 0.f;
#pragma unroll
    for (int g = 0; g < OUTPUTS; ++g) sum[g] += group == g ? weight : 0.f;
    shared.scores[query][key] = __uint_as_float(pack(weight, group));
  }
  float share[OUTPUTS], total = 0.f;
#pragma unroll
  for (int g = 0; g < OUTPUTS; ++g) {
    sum[g] = warp_sum(sum[g]);
    share[g] = exp_difference(selected.largest[g], selected.largest[0]);
    total = fmaf(share[g], sum[g], total);
  }
  if (lane > 0) return;
#pragma unroll
  for (int g = 0; g < OUTPUTS; ++g) {
    if (g < GROUPS) shared.in_group[query][g] = 1.f / sum[g];
    shared.in_all[query][g] = share[g] / total;
  }
  if (row != nullptr) {
    Row result;
#pragma unroll
    for (int g = 0; g < GROUPS; ++g) {
      result.threshold[g] = selected.threshold[g];
      result.log_sum[g] = selected.largest[g] + logf(sum[g]);
    }
    result.ties[0] = selected.ties[0];
    result.ties[1] = selected.ties[1];
    result.log_sum[GROUPS] = selected.largest[0] + logf(total);
    result.unused = 0.f;
    *row = result;
  }
}

// query (B, h, Q, d) or (B, h, d, Q); key, value (B, h, N, d); output (5, B, h, Q, d) or (5, B, h, d, Q); rows
// (B, h, Q), or null if there will be no backward pass. `scale` is a float's bits.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    rank_attention_forward(const Element* __restrict__ query, const Element* __restrict__ key,
                           const Element* __restrict__ value, Element* __restrict__ output, Row* __restrict__ rows,
                           int queries, int keys, int bound0, int bound1, int bound2, int bound3, int scale) {
  DYNAMIC_SHARED(memory);
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const Problem problem{queries, keys, {bound0, bound1, bound2, bound3}, __int_as_float(scale)};
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first_query = blockIdx.x * QUERIES;
  const size_t head = blockIdx.y, keys_before = head * keys, queries_before = head * queries;

  Load<QUERIES, THREADS> load;
  load.from_queries(query + queries_before * DIM, first_query, queries);
  load.to_queries(shared.queries[0]);
  compute_scores(shared, key + keys_before * DIM, problem, warp, lane);
  __syncthreads();

  for (int q = warp; q < QUERIES && first_query + q < queries; q += WARPS)
    rank_query(shared, rows == nullptr ? nullptr : rows + queries_before + first_query + q, problem, q, lane);

  const int block_query = warp / SLICES * 16, slice = warp % SLICES;
  float sums[OUTPUTS][CHANNEL_TILES][4] = {};
  for (int start = 0; start < keys; start += KEY_TILE) {
    Load<KEY_TILE, THREADS> tile_load;
    tile_load.from_rows(value + keys_before * DIM, start, keys);
    __syncthreads();
    tile_load.to_rows(shared.tile[0]);
    __syncthreads();
#pragma unroll 1
    for (int k = 0; k < KEY_TILE && start + k < keys; k += 8) {
      FragmentA weights;
      int groups[4];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float2 pair = *reinterpret_cast<const float2*>(
            &shared.scores[block_query + 8 * half + lane / 4][start + k + 2 * (lane % 4)]);
        const unsigned words[2] = {__float_as_uint(pair.x), __float_as_uint(pair.y)};
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          weights.set<false>(half + 2 * i, weight_of(words[i]));
          groups[half + 2 * i] = group_of(words[i]);
        }
      }
      FragmentB values[CHANNEL_TILES];
#pragma unroll
      for (int t = 0; t < CHANNEL_TILES; ++t) {
        const int tile = slice + t * SLICES;
        values[t] = columns_b(&shared.tile[k][8 * (tile < DIM / 8 ? tile : 0)], lane);
      }
#pragma unroll
      for (int g = 0; g < OUTPUTS; ++g) {
        const FragmentA in_group = weights.only(groups, g);
#pragma unroll
        for (int t = 0; t < CHANNEL_TILES; ++t)
          if (slice + t * SLICES < DIM / 8) multiply_add(sums[g][t], in_group, values[t]);
      }
    }
  }

  const size_t output_size = static_cast<size_t>(gridDim.y) * queries * DIM;
#pragma unroll
  for (int t = 0; t < CHANNEL_TILES; ++t) {
    const int tile = slice + t * SLICES;
    if (tile >= DIM / 8) continue;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int q = block_query + 8 * (i / 2) + lane / 4, column = 8 * tile + 2 * (lane % 4) + i % 2;
      if (first_query + q >= queries) continue;
      Element* to = output + queries_before * DIM + place_of(first_query + q, column, queries);
      float all = 0.f;
#pragma unroll
      for (int g = 0; g < OUTPUTS; ++g) {
        all = fmaf(sums[g][t][i], shared.in_all[q][g], all);
        if (g < GROUPS) to[(g + 1) * output_size] = narrow(sums[g][t][i] * shared.in_group[q][g]);
      }
      to[0] = narrow(all);
    }
  }
}
