// Rank-grouped attention, backward: gradient of the queries, and what the gradients of keys look up.
//
// Grid (Q / 32, B h), 256 threads. First the facts of the block's 32 queries (backward.cuh), eight threads a query.
// Then keys and values in tiles of 64; a warp owns 16 queries and every fourth part of the tile: scores again, the five
// products dO . v, then p (y - E), the left factor of
//     grad_query += p (y - E) * k
// without leaving the registers. The four sums of a query are added at the end, in order.
// Products: 7 of the size Q N d (scores 1, dO . v 5, gradient 1).
//
// Limit: instructions, with 16-bit inputs about 370 of a warp for 16 queries and 16 keys (d = 64), half of them to find
// groups and weights. Four calls of T (288,000 queries, 300 keys) are 0.14 ms of issue in bfloat16 on an H100, and took
// 0.69: 20 %; the other limits were not examined.
#include "backward.cuh"

constexpr int QUERIES = 32;
constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;
constexpr int SLICES = WARPS / (QUERIES / 16);  // warps that share 16 queries
constexpr int BUFFERS = ELEMENT == 0 ? 1 : 2;   // tiles of 16 bits are copied one ahead
constexpr int LANES = THREADS / QUERIES;        // threads that find the facts of a query
static_assert(LANES == 8, "they are reduced by three exchanges");

struct Shared {
  Block<QUERIES> block;
  union {
    Element tiles[BUFFERS][2][KEY_TILE][TILE_STRIDE];          // keys and values
    float4 sums[QUERIES / 16][SLICES - 1][DIM / 8][32];  // at the end: of all slices but the first
  };
};
static_assert(sizeof(Shared) == SHARED_BYTES, "the launch must ask for this much shared memory");

// Facts of a block's queries, from their rows and outputs. `output` is output 0 of the first query.
__device__ __forceinline__ void find_facts(Block<QUERIES>& block, Query* __restrict__ facts,
                                           const Row* __restrict__ rows, const Element* __restrict__ output,
                                           size_t output_size, size_t output_row, int count) {
  const int q = threadIdx.x / LANES, lane = threadIdx.x % LANES;
  float products[OUTPUTS] = {};
#pragma unroll
  for (int o = 0; o < OUTPUTS; ++o) {
    if (q < count)
      for (int c = lane * CHUNK; c < DIM; c += LANES * CHUNK)
        products[o] += dot_chunk(output + o * output_size + q * output_row + c, &block.output_grads[o][q][c]);
    products[o] += __shfl_xor_sync(ALL_LANES, products[o], 4);
    products[o] += __shfl_xor_sync(ALL_LANES, products[o], 2);
    products[o] += __shfl_xor_sync(ALL_LANES, products[o], 1);
  }
  if (lane > 0) return;
  Query query = {};
  if (q < count) {
    const Row row = rows[q];
#pragma unroll
    for (int g = 0; g < OUTPUTS; ++g) {
      if (g < GROUPS) query.threshold[g] = row.threshold[g];
      const float share = exp2_fast(row.log_sum[g] - row.log_sum[GROUPS]);
      const float mean = fmaf(share, products[0], g < GROUPS ? products[1 + g] : 0.f);
      query.group[g] = make_float4(row.log_sum[g], share, mean, 0.f);
    }
    query.ties[0] = row.ties[0];
    query.ties[1] = row.ties[1];
    query.has_ties = row.ties[0] != NO_TIES || row.ties[1] != NO_TIES;
    facts[q] = query;
  }
  block.facts[q] = query;
}

// Adds what a step of keys, from `first` of the tile on, gives to the gradients of 16 queries.
__device__ __forceinline__ void add_keys(float (&sums)[DIM / 8][4], const Block<QUERIES>& block, const Element* keys,
                                         const Element* values, int first_query, int first, int first_key, float scale,
                                         bool ties, int lane) {
  float score[PARTS_OF_STEP][4] = {}, products[OUTPUTS][PARTS_OF_STEP][4] = {};
#pragma unroll 4
  for (int k = 0; k < DIM; k += STEP) {
    FragmentB b[PARTS_OF_STEP];
    rows_b(b, keys + first * TILE_STRIDE + k, lane);
    const FragmentA query = rows_a(&block.queries[first_query][k], lane);
#pragma unroll
    for (int part = 0; part < PARTS_OF_STEP; ++part) multiply_add(score[part], query, b[part]);
    rows_b(b, values + first * TILE_STRIDE + k, lane);
#pragma unroll
    for (int o = 0; o < OUTPUTS; ++o) {
      const FragmentA grad = rows_a(&block.output_grads[o][first_query][k], lane);
#pragma unroll
      for (int part = 0; part < PARTS_OF_STEP; ++part) multiply_add(products[o][part], grad, b[part]);
    }
  }
  Weight weights[PARTS_OF_STEP][4];
  const Query* lane_query = block.facts + first_query + lane / 4;
  const int lane_key = first_key + first + 2 * (lane % 4);
  if (ties)
    find_weights<true, true>(weights, score, products, scale, lane_query, lane_key);
  else
    find_weights<false, true>(weights, score, products, scale, lane_query, lane_key);
  float grads[PARTS_OF_STEP][4];
#pragma unroll
  for (int part = 0; part < PARTS_OF_STEP; ++part)
#pragma unroll
    for (int e = 0; e < 4; ++e) grads[part][e] = weights[part][e].grad;
  const FragmentA score_grads = as_factor(grads);
  FragmentB b[2];
#pragma unroll
  for (int t = 0; t < DIM / 8; t += 2) {
    columns_b(b, keys + first * TILE_STRIDE + 8 * t, lane);
    multiply_add(sums[t], score_grads, b[0]);
    multiply_add(sums[t + 1], score_grads, b[1]);
  }
}

// query (B, h, Q, d), key and value (B, h, N, d), grad (5, B, h, Q, d) by their distances; output (5, B, Q, h, d) and
// rows (B, h, Q) of the forward pass; facts (B, h, Q) and grad_query (B, Q, h, d) are written. `scale_bits` is a
// float's bits.
extern "C" __global__ void __launch_bounds__(THREADS, MOST_BLOCKS)
    rank_attention_backward_queries(const Element* __restrict__ query, const Element* __restrict__ key,
                                    const Element* __restrict__ value, const Element* __restrict__ grad,
                                    const Element* __restrict__ output, const Row* __restrict__ rows,
                                    Query* __restrict__ facts, Element* __restrict__ grad_query, long long query_image,
                                    long long query_head, long long query_row, long long key_image, long long key_head,
                                    long long key_row, long long value_image, long long value_head, long long value_row,
                                    long long grad_output, long long grad_image, long long grad_head,
                                    long long grad_row, int heads, int queries, int keys, int scale_bits) {
  DYNAMIC_SHARED(memory);
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const float scale = __int_as_float(scale_bits);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first_query = blockIdx.x * QUERIES, image_head = blockIdx.y;
  const int image = image_head / heads, head = image_head % heads;
  query += Matrices{query_image, query_head, query_row}.start(image_head, heads);
  key += Matrices{key_image, key_head, key_row}.start(image_head, heads);
  value += Matrices{value_image, value_head, value_row}.start(image_head, heads);
  grad += Matrices{grad_image, grad_head, grad_row}.start(image_head, heads);
  const size_t queries_before = static_cast<size_t>(image_head) * queries + first_query;
  const size_t token_size = static_cast<size_t>(heads) * DIM;
  const size_t written_before = (static_cast<size_t>(image) * queries + first_query) * token_size + head * DIM;

  const int tiles = (keys + KEY_TILE - 1) / KEY_TILE;
  const auto copy = [&](int tile) {
    if (tile == tiles) return;
    copy_rows<KEY_TILE, THREADS>(shared.tiles[tile % BUFFERS][0][0], key, key_row, tile * KEY_TILE, keys);
    copy_rows<KEY_TILE, THREADS>(shared.tiles[tile % BUFFERS][1][0], value, value_row, tile * KEY_TILE, keys);
  };
  copy_queries<THREADS>(shared.block, query, query_row, grad, grad_output, grad_row, first_query, queries);
  wait_for_copies();
  __syncthreads();
  copy(0);
  find_facts(shared.block, facts + queries_before, rows + queries_before, output + written_before,
             static_cast<size_t>(gridDim.y) * queries * DIM, token_size, queries - first_query);

  const int block_query = warp / SLICES * 16, slice = warp % SLICES;
  float sums[DIM / 8][4] = {};
#pragma unroll 1
  for (int tile = 0; tile < tiles; ++tile) {
    if (BUFFERS == 1 && tile > 0) {
      __syncthreads();
      copy(tile);
    }
    wait_for_copies();
    __syncthreads();
    if (BUFFERS == 2) copy(tile + 1);
    const bool ties = __ballot_sync(ALL_LANES, shared.block.facts[block_query + lane % 16].has_ties);
#pragma unroll 1
    for (int first = slice * STEP; first < KEY_TILE && tile * KEY_TILE + first < keys; first += SLICES * STEP)
      add_keys(sums, shared.block, shared.tiles[tile % BUFFERS][0][0], shared.tiles[tile % BUFFERS][1][0], block_query,
               first, tile * KEY_TILE, scale * LOG2_E, ties, lane);
  }

  __syncthreads();
  if (slice > 0)
#pragma unroll
    for (int t = 0; t < DIM / 8; ++t)
      shared.sums[block_query / 16][slice - 1][t][lane] = make_float4(sums[t][0], sums[t][1], sums[t][2], sums[t][3]);
  __syncthreads();
  if (slice > 0) return;
#pragma unroll
  for (int t = 0; t < DIM / 8; ++t) {
#pragma unroll
    for (int other = 0; other < SLICES - 1; ++other) {
      const float4 sum = shared.sums[block_query / 16][other][t][lane];
      sums[t][0] += sum.x;
      sums[t][1] += sum.y;
      sums[t][2] += sum.z;
      sums[t][3] += sum.w;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int q = block_query + 8 * half + lane / 4;
      if (first_query + q < queries)
        store_pair(grad_query + written_before + q * token_size + 8 * t + 2 * (lane % 4), scale * sums[t][2 * half],
                   scale * sums[t][2 * half + 1]);
    }
  }
}
