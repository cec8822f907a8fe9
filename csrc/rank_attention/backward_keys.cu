// Rank-grouped attention, backward: gradients of keys and values, as partial sums over parts of the queries.
//
// Grid (N / 64, parts, B h), 128 threads. A warp owns 16 keys and accumulates their gradients in registers; the block
// walks the queries of its part in tiles of 16. For a step of queries at a time, keys as rows of the products: scores,
// the five products v . dO, then p and p (y - E) (backward.cuh), which are the left factors of
//     grad_value += p in group g * dO_{1+g}, p in all * dO_0        grad_key += p (y - E) * q
// without leaving the registers. Products: 12 of the size Q N d. Nothing is atomic: adding the parts up in order, which
// is left to the caller, gives the same bits in every run.
//
// Limit: instructions and tensor cores, with 16-bit inputs about 490 instructions of a warp for 16 queries and 16 keys
// (d = 64), 96 of them products. Four calls of T (288,000 queries, 300 keys) are 0.18 ms of
// issue in bfloat16 on an H100, and took 0.68: 26 %; the other limits were not examined.
#include "backward.cuh"

constexpr int QUERIES = 16;
constexpr int THREADS = 128;
constexpr int BLOCKS = DIM <= 64 ? 3 : 2;      // of a multiprocessor: what its registers hold
constexpr int BUFFERS = ELEMENT == 0 ? 1 : 2;  // queries with 16 bits are copied one tile ahead

struct Shared {
  Element keys[KEY_TILE][TILE_STRIDE];
  Element values[KEY_TILE][TILE_STRIDE];
  Block<QUERIES> blocks[BUFFERS];
};
static_assert(sizeof(Shared) == SHARED_BYTES, "the launch must ask for this much shared memory");
static_assert(THREADS / 32 * 16 == KEY_TILE, "a warp has 16 keys");
static_assert(QUERIES * QUERY_CHUNKS <= THREADS, "facts are copied in one step");

// Starts to copy what is known of queries, `left` of which exist.
__device__ __forceinline__ void copy_facts(Query* to, const Query* __restrict__ from, int left) {
  const int i = threadIdx.x;
  const bool exists = i / QUERY_CHUNKS < left;
  if (i < QUERIES * QUERY_CHUNKS)
    copy_async(reinterpret_cast<float4*>(to) + i, reinterpret_cast<const float4*>(from) + (exists ? i : 0), exists);
}

// Adds what a step of queries, from `first` of the block on, gives to the gradients of a warp's 16 keys.
__device__ __forceinline__ void add_queries(float (&grad_key)[DIM / 8][4], float (&grad_value)[DIM / 8][4],
                                            const Shared& shared, const Block<QUERIES>& block, int first, int warp,
                                            int warp_key, float scale, int lane) {
  float score[PARTS_OF_STEP][4] = {}, products[OUTPUTS][PARTS_OF_STEP][4] = {};
#pragma unroll 4
  for (int k = 0; k < DIM; k += STEP) {
    FragmentB b[PARTS_OF_STEP];
    rows_b(b, &block.queries[first][k], lane);
    const FragmentA key = rows_a(&shared.keys[16 * warp][k], lane);
#pragma unroll
    for (int part = 0; part < PARTS_OF_STEP; ++part) multiply_add<true>(score[part], key, b[part]);
    const FragmentA value = rows_a(&shared.values[16 * warp][k], lane);
#pragma unroll
    for (int o = 0; o < OUTPUTS; ++o) {
      rows_b(b, &block.output_grads[o][first][k], lane);
#pragma unroll
      for (int part = 0; part < PARTS_OF_STEP; ++part) multiply_add(products[o][part], value, b[part]);
    }
  }
  Weight weights_of[PARTS_OF_STEP][4];
  const Query* lane_query = block.facts + first + 2 * (lane % 4);
  const int lane_key = warp_key + lane / 4;
  if (__ballot_sync(ALL_LANES, block.facts[first + lane % STEP].has_ties))
    find_weights<true, false>(weights_of, score, products, scale, lane_query, lane_key);
  else
    find_weights<false, false>(weights_of, score, products, scale, lane_query, lane_key);
  float in_group[PARTS_OF_STEP][4], in_all[PARTS_OF_STEP][4], grads[PARTS_OF_STEP][4];
  int groups_of[PARTS_OF_STEP][4];
#pragma unroll
  for (int part = 0; part < PARTS_OF_STEP; ++part)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const Weight& weight = weights_of[part][e];
      in_group[part][e] = weight.value;
      in_all[part][e] = weight.value * weight.share;
      grads[part][e] = weight.grad;
      groups_of[part][e] = weight.group;
    }
  const FragmentA score_grads = as_factor(grads), weights = as_factor(in_group), all_weights = as_factor(in_all);
  const Groups groups = as_groups(groups_of);
  FragmentB b[2];
#pragma unroll
  for (int t = 0; t < DIM / 8; t += 2) {
    columns_b(b, &block.queries[first][8 * t], lane);
    multiply_add(grad_key[t], score_grads, b[0]);
    multiply_add(grad_key[t + 1], score_grads, b[1]);
    columns_b(b, &block.output_grads[0][first][8 * t], lane);
    multiply_add(grad_value[t], all_weights, b[0]);
    multiply_add(grad_value[t + 1], all_weights, b[1]);
  }
#pragma unroll
  for (int g = 0; g < GROUPS; ++g) {
    const FragmentA selected = weights.only(groups, g);
#pragma unroll
    for (int t = 0; t < DIM / 8; t += 2) {
      columns_b(b, &block.output_grads[1 + g][first][8 * t], lane);
      multiply_add(grad_value[t], selected, b[0]);
      multiply_add(grad_value[t + 1], selected, b[1]);
    }
  }
}

// As in backward_queries.cu; facts are read, grads (parts, 2, B, N, h, d) written: of keys, then of values. A part is
// `part_queries` long, a multiple of 16.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    rank_attention_backward_keys(const Element* __restrict__ query, const Element* __restrict__ key,
                                 const Element* __restrict__ value, const Element* __restrict__ grad,
                                 const Query* __restrict__ facts, float* __restrict__ grads, long long query_image,
                                 long long query_head, long long query_row, long long key_image, long long key_head,
                                 long long key_row, long long value_image, long long value_head, long long value_row,
                                 long long grad_output, long long grad_image, long long grad_head, long long grad_row,
                                 int heads, int queries, int keys, int part_queries, int scale_bits) {
  DYNAMIC_SHARED(memory);
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const float scale = __int_as_float(scale_bits);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first_key = blockIdx.x * KEY_TILE, warp_key = first_key + 16 * warp, image_head = blockIdx.z;
  query += Matrices{query_image, query_head, query_row}.start(image_head, heads);
  key += Matrices{key_image, key_head, key_row}.start(image_head, heads);
  value += Matrices{value_image, value_head, value_row}.start(image_head, heads);
  grad += Matrices{grad_image, grad_head, grad_row}.start(image_head, heads);
  facts += static_cast<size_t>(image_head) * queries;
  const int begin = blockIdx.y * part_queries, end = min(begin + part_queries, queries);

  const auto copy = [&](int block) {
    const int start = begin + block * QUERIES;
    if (start >= end) return;
    Block<QUERIES>& to = shared.blocks[block % BUFFERS];
    copy_queries<THREADS>(to, query, query_row, grad, grad_output, grad_row, start, queries);
    copy_facts(to.facts, facts + start, queries - start);
  };
  copy_rows<KEY_TILE, THREADS>(shared.keys[0], key, key_row, first_key, keys);
  copy_rows<KEY_TILE, THREADS>(shared.values[0], value, value_row, first_key, keys);
  copy(0);
  float key_sums[DIM / 8][4] = {}, value_sums[DIM / 8][4] = {};
#pragma unroll 1
  for (int block = 0; begin + block * QUERIES < end; ++block) {
    if (BUFFERS == 1 && block > 0) {
      __syncthreads();
      copy(block);
    }
    wait_for_copies();
    __syncthreads();
    if (BUFFERS == 2) copy(block + 1);
    if (warp_key < keys)
#pragma unroll 1
      for (int first = 0; first < QUERIES; first += STEP)
        add_queries(key_sums, value_sums, shared, shared.blocks[block % BUFFERS], first, warp, warp_key,
                    scale * LOG2_E, lane);
  }

  const int images = gridDim.z / heads, image = image_head / heads, head = image_head % heads;
  const size_t token_size = static_cast<size_t>(heads) * DIM, size = images * keys * token_size;
  float* to = grads + blockIdx.y * 2 * size + image * keys * token_size + head * DIM;
#pragma unroll
  for (int t = 0; t < DIM / 8; ++t)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int k = warp_key + 8 * half + lane / 4;
      if (k >= keys) continue;
      const size_t place = k * token_size + 8 * t + 2 * (lane % 4);
      *reinterpret_cast<float2*>(to + place) =
          make_float2(scale * key_sums[t][2 * half], scale * key_sums[t][2 * half + 1]);
      *reinterpret_cast<float2*>(to + size + place) = make_float2(value_sums[t][2 * half], value_sums[t][2 * half + 1]);
    }
}
