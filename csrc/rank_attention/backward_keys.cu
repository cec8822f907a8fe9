// Rank-grouped attention, backward: gradients of keys and values, as partial sums over parts of the queries.
//
// Grid (N / 64, parts, B h), 128 threads. A warp owns 16 keys and accumulates their gradients in registers; the block
// walks the queries of its part in tiles of 16. For 8 queries at a time, keys as rows of the products: scores, the
// five products v . dO, then p and p (y - E) (backward.cuh), which are the left factors of
//     grad_value += p in group g * dO_{1+g}, p in all * dO_0        grad_key += p (y - E) * q
// without leaving the registers. Products: 12 of the size Q N d. Nothing is atomic: adding the parts up in order, which
// is left to the caller, gives the same bits in every run. Measured fraction of the limit: not measured.
#include "backward.cuh"

constexpr int THREADS = 128;
constexpr int BLOCKS = DIM <= 64 ? 3 : 2;  // of a multiprocessor: what its registers hold

struct Shared {
  float keys[KEY_TILE][TILE_STRIDE];
  float values[KEY_TILE][TILE_STRIDE];
  float queries[QUERIES][TILE_STRIDE];
  float output_grads[OUTPUTS][QUERIES][TILE_STRIDE];
  Query block[QUERIES];
};
static_assert(sizeof(Shared) == SHARED_BYTES, "the launch must ask for this much shared memory");
static_assert(THREADS / 32 * 16 == KEY_TILE, "a warp has 16 keys");

// C of one product as A of the next.
__device__ __forceinline__ FragmentA as_factor(const float (&c)[4]) {
  FragmentA a;
  a.set<false>(0, c[0]);
  a.set<false>(1, c[2]);
  a.set<false>(2, c[1]);
  a.set<false>(3, c[3]);
  return a;
}

// Adds what 8 queries, from `first` of the tile on, give to the gradients of a warp's 16 keys.
__device__ __forceinline__ void add_queries(const Shared& shared, int first, int first_key, int keys, float scale,
                                            int warp, int lane, float (&grad_key)[DIM / 8][4],
                                            float (&grad_value)[DIM / 8][4]) {
  float score[4] = {}, products[OUTPUTS][4] = {};
#pragma unroll 2
  for (int k = 0; k < DIM; k += 8) {
    multiply_add<true>(score, rows_a(&shared.keys[16 * warp][k], lane), rows_b(&shared.queries[first][k], lane));
    const FragmentA value = rows_a(&shared.values[16 * warp][k], lane);
#pragma unroll
    for (int o = 0; o < OUTPUTS; ++o)
      multiply_add(products[o], value, rows_b(&shared.output_grads[o][first][k], lane));
  }
  float in_group[4], in_all[4], grads[4];
  int groups[4];  // in the order of A
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const Query& query = shared.block[first + 2 * (lane % 4) + e % 2];
    const Weight weight = weight_of(score[e] * scale, first_key + lane / 4 + 8 * (e / 2), keys, query);
    const float all[OUTPUTS] = {products[0][e], products[1][e], products[2][e], products[3][e], products[4][e]};
    in_group[e] = weight.value;
    in_all[e] = weight.value * query.share[weight.group];
    grads[e] = weight.value * (combine(all, weight, query) - query.mean[weight.group]);
    groups[e % 2 * 2 + e / 2] = weight.group;
  }
  const FragmentA score_grads = as_factor(grads), weights = as_factor(in_group), all_weights = as_factor(in_all);
#pragma unroll
  for (int t = 0; t < DIM / 8; ++t) {
    multiply_add(grad_key[t], score_grads, columns_b(&shared.queries[first][8 * t], lane));
    multiply_add(grad_value[t], all_weights, columns_b(&shared.output_grads[0][first][8 * t], lane));
  }
#pragma unroll
  for (int g = 0; g < GROUPS; ++g) {
    const FragmentA selected = weights.only(groups, g);
#pragma unroll
    for (int t = 0; t < DIM / 8; ++t)
      multiply_add(grad_value[t], selected, columns_b(&shared.output_grads[1 + g][first][8 * t], lane));
  }
}

// As in backward_queries.cu; means are read, grad_key and grad_value (parts, B, h, N, d) written. A part is
// `part_queries` long, a multiple of 16.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    rank_attention_backward_keys(const Element* __restrict__ query, const Element* __restrict__ key,
                                 const Element* __restrict__ value, const Element* __restrict__ grad,
                                 const Row* __restrict__ rows, const float* __restrict__ means,
                                 float* __restrict__ grad_key, float* __restrict__ grad_value, int queries, int keys,
                                 int part_queries, int scale_bits) {
  DYNAMIC_SHARED(memory);
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const float scale = __int_as_float(scale_bits);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first_key = blockIdx.x * KEY_TILE, warp_key = first_key + 16 * warp;
  const size_t head = blockIdx.z, queries_before = head * queries;
  const size_t output_size = static_cast<size_t>(gridDim.z) * queries * DIM;
  const int end = min(static_cast<int>(blockIdx.y + 1) * part_queries, queries);

  load_tile<KEY_TILE, THREADS>(shared.keys[0], key + head * keys * DIM, first_key, keys);
  load_tile<KEY_TILE, THREADS>(shared.values[0], value + head * keys * DIM, first_key, keys);
  float key_sums[DIM / 8][4] = {}, value_sums[DIM / 8][4] = {};
  for (int start = blockIdx.y * part_queries; start < end; start += QUERIES) {
    __syncthreads();
    load_queries<THREADS>(shared.queries[0], shared.output_grads, query + queries_before * DIM,
                          grad + queries_before * DIM, output_size, start, queries);
    load_block<THREADS>(shared.block, rows + queries_before, means + queries_before * OUTPUTS, start, queries);
    __syncthreads();
    if (warp_key < keys)
#pragma unroll 1
      for (int first = 0; first < QUERIES; first += 8)
        add_queries(shared, first, warp_key, keys, scale, warp, lane, key_sums, value_sums);
  }

  const size_t keys_before = (static_cast<size_t>(blockIdx.y) * gridDim.z + head) * keys;
#pragma unroll
  for (int t = 0; t < DIM / 8; ++t)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int k = warp_key + 8 * half + lane / 4;
      if (k >= keys) continue;
      const size_t place = (keys_before + k) * DIM + 8 * t + 2 * (lane % 4);
      *reinterpret_cast<float2*>(grad_key + place) =
          make_float2(scale * key_sums[t][2 * half], scale * key_sums[t][2 * half + 1]);
      *reinterpret_cast<float2*>(grad_value + place) =
          make_float2(value_sums[t][2 * half], value_sums[t][2 * half + 1]);
    }
}
