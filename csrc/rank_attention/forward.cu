// Rank-grouped attention, forward: five outputs, and what the backward pass needs of each query.
//
// Grid (Q / 32, B h), 256 threads. A block keeps the scores of its 32 queries with all keys in shared memory:
//   1. scores, keys in tiles of 64: a warp multiplies 16 queries with a quarter of the tile;
//   2. ranks, a warp four queries in turn, scores in registers (select.cuh); 2^(score - largest of its group) and the
//      group take the score's place;
//   3. outputs, values in tiles of 64: one product for each group with the weights of the other groups set to zero. A
//      warp owns 16 queries and a quarter of the channels, or with 16-bit inputs half of them and every second step
//      along the keys, so that fewer warps pick the same weights. Columns of ones beside the values give the sums of
//      weights, one column a group.
// Tiles are copied one ahead, the first values while queries are ranked.
//
// Limit: instructions, most of them comparisons, which run at half rate. Per query at N = 300, d = 64 a warp has about
// 950 in phase 2, and with 16-bit inputs (float32) 120 (250) in phase 1, 330 (1,300) in phase 3. Four
// calls of T (288,000 queries) are 0.44 ms of issue in bfloat16 on an H100, and took 0.94: 46 %.
#include "select.cuh"

constexpr int QUERIES = 32;
constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;
constexpr int SLICES = WARPS / (QUERIES / 16);  // warps that share 16 queries
constexpr int KEY_SLICES = ELEMENT != 0 && DIM <= 64 ? 2 : 1;  // in phase 3: twice the sums of a warp
constexpr int CHANNEL_SLICES = SLICES / KEY_SLICES;
constexpr int CHANNEL_TILES = (DIM / 8 + CHANNEL_SLICES - 1) / CHANNEL_SLICES;

constexpr int SUM_PARTS = OUTPUTS * CHANNEL_TILES + 1;

struct Shared {
  union {
    struct {
      float scores[QUERIES][SCORE_STRIDE];  // from phase 2 on weights and groups
      Element queries[QUERIES][TILE_STRIDE];
      Element tiles[2][KEY_TILE][TILE_STRIDE];
    };
    float4 sums[WARPS / 2][SUM_PARTS][32];  // at the end: of the second slices
  };
  float largest[QUERIES][OUTPUTS];  // score of each group, or what its weights were divided by the power of instead
};
static_assert(sizeof(Shared) == SHARED_BYTES, "the launch must ask for this much shared memory");

struct Problem {
  int queries, keys;
  int bounds[GROUPS];
  float scale;  // in units of log2(e)
};

// ---- weights and groups in the place of a row of scores
//
// float32: one word a key. 16 bits: weights, then groups; every other four rows are moved by 16 bytes, so that eight
// rows are read without bank conflicts.

__device__ __forceinline__ Element* weights_of(Shared& shared, int query) {
  return reinterpret_cast<Element*>(shared.scores[query]) + (ELEMENT == 0 ? 0 : (query & 4) * 2);
}

// For two neighbouring keys. The lowest three bits of `bases` are their groups.
__device__ __forceinline__ void store_weights(Element* to, const float (&weights)[2], const unsigned (&bases)[2]) {
#if ELEMENT == 0
  store_pair(to, __uint_as_float(tag(weights[0], bases[0])), __uint_as_float(tag(weights[1], bases[1])));
#else
  store_pair(to, weights[0], weights[1]);
  *reinterpret_cast<unsigned*>(to + KEYS_PADDED) = (bases[0] & 7u) | (bases[1] << 16 & 0x70000u);
#endif
}

// Of 16 queries and a step of keys.
__device__ __forceinline__ void load_weights(FragmentA& weights, Groups& groups, Shared& shared, int first_query,
                                             int first_key, int lane) {
#if ELEMENT == 0
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float2 pair = *reinterpret_cast<const float2*>(
        &shared.scores[first_query + 8 * half + lane / 4][first_key + 2 * (lane % 4)]);
    const unsigned words[2] = {__float_as_uint(pair.x), __float_as_uint(pair.y)};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      weights.set(half + 2 * i, weight_of(words[i]));
      groups.words[half + 2 * i] = group_of(words[i]);
    }
  }
#else
  const Element* from = weights_of(shared, first_query + lane % 16) + first_key + lane / 16 * 8;
  load_matrices(weights.words, from);
  load_matrices(groups.words, from + KEYS_PADDED);
#endif
}

// ---- phases

// Phase 1 for a tile of keys, `start` the first of them.
__device__ __forceinline__ void compute_scores(Shared& shared, const Element* tile, int start, float scale, int warp,
                                               int lane) {
  constexpr int TILES = KEY_TILE / 8 / SLICES;
  const int first_query = warp / SLICES * 16, first_key = warp % SLICES * TILES * 8;
  float c[TILES][4] = {};
#pragma unroll 4
  for (int k = 0; k < DIM; k += STEP) {
    const FragmentA a = rows_a(&shared.queries[first_query][k], lane);
    FragmentB b[TILES];
    rows_b(b, tile + first_key * TILE_STRIDE + k, lane);
#pragma unroll
    for (int t = 0; t < TILES; ++t) multiply_add(c[t], a, b[t]);
  }
#pragma unroll
  for (int t = 0; t < TILES; ++t)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      *reinterpret_cast<float2*>(
          &shared.scores[first_query + 8 * half + lane / 4][start + first_key + 8 * t + 2 * (lane % 4)]) =
          make_float2(c[t][2 * half] * scale, c[t][2 * half + 1] * scale);
}

// 2^(score - largest of the group) for all keys of a query, and the groups.
template <bool ties>
__device__ __forceinline__ void weigh(Element* to, const float (&score)[KEY_SLOTS], const Selection& selected,
                                      const unsigned (&base_of)[OUTPUTS], int lane) {
#pragma unroll
  for (int slot = 0; slot < KEY_SLOTS; slot += 2) {
    float weights[2];
    unsigned bases[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float value = score[slot + i];
      bases[i] = base_of[0];
#pragma unroll
      for (int g = 0; g < GROUPS; ++g) {
        bool beyond = !(value >= selected.threshold[g]);
        if (ties) {
          const int last = selected.ties[g / 2] >> 16 * (g % 2) & 0xffff;
          beyond = beyond || (value == selected.threshold[g] && key_of(slot + i, lane) > last);
        }
        bases[i] = beyond ? base_of[g + 1] : bases[i];
      }
      weights[i] = exp2_fast(value - __uint_as_float(bases[i]));
    }
    store_weights(to + key_of(slot, lane), weights, bases);
  }
}

// Phase 2 for one query.
__device__ __forceinline__ void rank_query(Shared& shared, Row* __restrict__ row, const Problem& problem, int query,
                                           int lane) {
  float score[KEY_SLOTS];
#pragma unroll
  for (int slot = 0; slot < KEY_SLOTS; slot += 2) {
    const float2 pair = *reinterpret_cast<const float2*>(&shared.scores[query][key_of(slot, lane)]);
    score[slot] = is_key(slot, lane, problem.keys) ? pair.x : minus_infinity();
    score[slot + 1] = is_key(slot + 1, lane, problem.keys) ? pair.y : minus_infinity();
  }
  __syncwarp();  // all have read what is now overwritten, twice
  const Selection selected = select(score, shared.scores[query], problem.keys, problem.bounds, lane);

  // The group hides in the last bits of its largest score: found together, and as good to divide by.
  unsigned base_of[OUTPUTS];
#pragma unroll
  for (int g = 0; g < OUTPUTS; ++g) {
    // no key may be left for the last
    const float largest = selected.largest[g] == minus_infinity() ? selected.largest[0] : selected.largest[g];
    base_of[g] = (__float_as_uint(largest) & ~7u) | g;
  }
  __syncwarp();
  Element* to = weights_of(shared, query);
  if (selected.ties[0] != NO_TIES || selected.ties[1] != NO_TIES)
    weigh<true>(to, score, selected, base_of, lane);
  else
    weigh<false>(to, score, selected, base_of, lane);
  if (lane > 0) return;
#pragma unroll
  for (int g = 0; g < OUTPUTS; ++g) shared.largest[query][g] = __uint_as_float(base_of[g]);
  if (row == nullptr) return;
#pragma unroll
  for (int g = 0; g < GROUPS; ++g) row->threshold[g] = selected.threshold[g];
  row->ties[0] = selected.ties[0];
  row->ties[1] = selected.ties[1];
  row->unused = 0.f;
}

// Sums of weighted values of 16 queries, those of a warp's channels; and of weights, those of group g in column g.
struct Sums {
  float channels[OUTPUTS][CHANNEL_TILES][4], weights[4];
};

// Phase 3 for a tile of values, `start` the first key.
__device__ __forceinline__ void add_values(Sums& sums, Shared& shared, const Element* tile, int start, int keys,
                                           int first_query, int key_slice, int first_channel, int lane) {
#pragma unroll 1
  for (int k = key_slice * STEP; k < KEY_TILE && start + k < keys; k += KEY_SLICES * STEP) {
    FragmentA weights;
    Groups groups;
    load_weights(weights, groups, shared, first_query, start + k, lane);
    FragmentB values[CHANNEL_TILES];
    columns_b(values, tile + k * TILE_STRIDE + first_channel, lane);
#pragma unroll
    for (int g = 0; g < OUTPUTS; ++g) {
      const FragmentA in_group = weights.only(groups, g);
      multiply_add(sums.weights, in_group, ones_b(g, lane));
#pragma unroll
      for (int t = 0; t < CHANNEL_TILES; ++t) multiply_add(sums.channels[g][t], in_group, values[t]);
    }
  }
}

// Adds the sums of the second slice of keys to those of the first. Shared memory is free.
__device__ __forceinline__ void add_slices(Sums& sums, float4 (&others)[SUM_PARTS][32], bool second, int lane) {
  float(&parts)[SUM_PARTS][4] = reinterpret_cast<float(&)[SUM_PARTS][4]>(sums);
  __syncthreads();
  if (second)
#pragma unroll
    for (int i = 0; i < SUM_PARTS; ++i)
      others[i][lane] = make_float4(parts[i][0], parts[i][1], parts[i][2], parts[i][3]);
  __syncthreads();
  if (second) return;
#pragma unroll
  for (int i = 0; i < SUM_PARTS; ++i) {
    const float4 other = others[i][lane];
    parts[i][0] += other.x;
    parts[i][1] += other.y;
    parts[i][2] += other.z;
    parts[i][3] += other.w;
  }
}

// query (B, h, Q, d), key and value (B, h, N, d) by their distances; output (5, B, Q, h, d); rows (B, h, Q), or null if
// there will be no backward pass. `scale` is a float's bits.
extern "C" __global__ void __launch_bounds__(THREADS, MOST_BLOCKS)
    rank_attention_forward(const Element* __restrict__ query, const Element* __restrict__ key,
                           const Element* __restrict__ value, Element* __restrict__ output, Row* __restrict__ rows,
                           long long query_image, long long query_head, long long query_row, long long key_image,
                           long long key_head, long long key_row, long long value_image, long long value_head,
                           long long value_row, int heads, int queries, int keys, int bound0, int bound1, int bound2,
                           int bound3, int scale) {
  DYNAMIC_SHARED(memory);
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const Problem problem{queries, keys, {bound0, bound1, bound2, bound3}, __int_as_float(scale) * LOG2_E};
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first_query = blockIdx.x * QUERIES, image_head = blockIdx.y;
  query += Matrices{query_image, query_head, query_row}.start(image_head, heads);
  key += Matrices{key_image, key_head, key_row}.start(image_head, heads);
  value += Matrices{value_image, value_head, value_row}.start(image_head, heads);
  if (rows != nullptr) rows += static_cast<size_t>(image_head) * queries + first_query;

  const int tiles = (keys + KEY_TILE - 1) / KEY_TILE;
  const auto copy = [&](int stage) {  // tiles of keys, then of values, in two places by turns
    Element* to = shared.tiles[stage % 2][0];
    if (stage < tiles)
      copy_rows<KEY_TILE, THREADS>(to, key, key_row, stage * KEY_TILE, keys);
    else if (stage < 2 * tiles)
      copy_rows<KEY_TILE, THREADS>(to, value, value_row, (stage - tiles) * KEY_TILE, keys);
  };
  copy_rows<QUERIES, THREADS>(shared.queries[0], query, query_row, first_query, queries);
  copy(0);
#pragma unroll 1
  for (int stage = 0; stage < tiles; ++stage) {
    wait_for_copies();
    __syncthreads();
    copy(stage + 1);
    compute_scores(shared, shared.tiles[stage % 2][0], stage * KEY_TILE, problem.scale, warp, lane);
  }
  __syncthreads();

#pragma unroll 1
  for (int q = warp; q < QUERIES && first_query + q < queries; q += WARPS)
    rank_query(shared, rows == nullptr ? nullptr : rows + q, problem, q, lane);

  const int block_query = warp / SLICES * 16, slice = warp % SLICES;
  const int key_slice = slice / CHANNEL_SLICES, channel_slice = slice % CHANNEL_SLICES;
  // the last slices overlap if channels cannot be divided: twice the same result
  const int first_channel = 8 * min(channel_slice * CHANNEL_TILES, DIM / 8 - CHANNEL_TILES);
  Sums sums = {};
#pragma unroll 1
  for (int stage = tiles; stage < 2 * tiles; ++stage) {
    wait_for_copies();
    __syncthreads();
    copy(stage + 1);
    add_values(sums, shared, shared.tiles[stage % 2][0], (stage - tiles) * KEY_TILE, keys, block_query, key_slice,
               first_channel, lane);
  }
  if (KEY_SLICES > 1) {
    add_slices(sums, shared.sums[warp / SLICES * CHANNEL_SLICES + channel_slice], key_slice > 0, lane);
    if (key_slice > 0) return;
  }

  const int image = image_head / heads, head = image_head % heads;
  const size_t output_size = static_cast<size_t>(gridDim.y) * queries * DIM;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int q = block_query + 8 * half + lane / 4;
    float weights[OUTPUTS];
#pragma unroll
    for (int g = 0; g < OUTPUTS; ++g)
      weights[g] = __shfl_sync(ALL_LANES, sums.weights[2 * half + g % 2], lane / 4 * 4 + g / 2);
    if (first_query + q >= queries) continue;
    float in_group[OUTPUTS], in_all[OUTPUTS], total = 0.f;
#pragma unroll
    for (int g = 0; g < OUTPUTS; ++g) {
      in_group[g] = 1.f / weights[g];
      in_all[g] = exp2_fast(shared.largest[q][g] - shared.largest[q][0]);
      total = fmaf(in_all[g], weights[g], total);
    }
    if (rows != nullptr && slice == 0 && lane % 4 == 0) {
#pragma unroll
      for (int g = 0; g < GROUPS; ++g)
        rows[q].log_sum[g] = shared.largest[q][g] + log2f(weights[g]);
      rows[q].log_sum[GROUPS] = shared.largest[q][0] + log2f(total);
    }
#pragma unroll
    for (int g = 0; g < OUTPUTS; ++g) in_all[g] /= total;
    Element* to = output + ((static_cast<size_t>(image) * queries + first_query + q) * heads + head) * DIM +
                  first_channel + 2 * (lane % 4);
#pragma unroll
    for (int t = 0; t < CHANNEL_TILES; ++t) {
      float all[2] = {};
#pragma unroll
      for (int g = 0; g < OUTPUTS; ++g) {
        const float* pair = &sums.channels[g][t][2 * half];
        all[0] = fmaf(pair[0], in_all[g], all[0]);
        all[1] = fmaf(pair[1], in_all[g], all[1]);
        if (g < GROUPS) store_pair(to + (g + 1) * output_size + 8 * t, pair[0] * in_group[g], pair[1] * in_group[g]);
      }
      store_pair(to + 8 * t, all[0], all[1]);
    }
  }
}
