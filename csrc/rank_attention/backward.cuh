// Shared by the two backward kernels of rank-grouped attention.
//
// With p the weight of a key inside its group (for the rest: in output 0), f_g = Z_g exp(m_g) / Z the share of the
// group in output 0 (1 for the rest), and e_o = dO_o . v, the gradient of a score is
//     p (y - E_g),   y = e_{1+g} + f_g e_0,   E_g = D_{1+g} + f_g D_0,   D_o = sum of weights in output o times e_o
// where e_{1+g} and D_{1+g} are zero for the rest. D_o is the product of an output with its gradient.
//
// Keys and queries beyond the end need no care: as rows of zeros they have finite weights and add nothing.
#pragma once
#include "attention.cuh"

// What the elements of a query look up, found by the first kernel.
struct alignas(16) Query {
  float threshold[GROUPS];
  unsigned ties[2];
  unsigned has_ties, unused;
  float4 group[OUTPUTS];  // logarithm of the sum of weights, f, E; nothing
};
constexpr int QUERY_CHUNKS = sizeof(Query) / 16;

// Of some queries.
template <int count>
struct Block {
  Element queries[count][TILE_STRIDE];
  Element output_grads[OUTPUTS][count][TILE_STRIDE];
  Query facts[count];
};

struct Weight {
  int group;
  float value, share, grad;  // p, f, p (y - E)
};

// Of a score, whose value's products with the five output gradients are given. `ties`: the query may have some.
template <bool ties>
__device__ __forceinline__ Weight weight_of(float score, int key, const float (&products)[OUTPUTS],
                                            const Query& query) {
  Weight weight;
  weight.group = 0;
  float own = products[1];  // e_{1+g}
#pragma unroll
  for (int g = 0; g < GROUPS; ++g) {
    bool beyond = !(score >= query.threshold[g]);
    if (ties) {
      const int last = query.ties[g / 2] >> 16 * (g % 2) & 0xffff;
      beyond = beyond || (score == query.threshold[g] && key > last);
    }
    weight.group = beyond ? g + 1 : weight.group;
    own = beyond ? (g + 1 < GROUPS ? products[g + 2 < OUTPUTS ? g + 2 : 0] : 0.f) : own;
  }
  const float4 facts = query.group[weight.group];
  weight.value = fminf(exp2_fast(score - facts.x), 1.f);
  weight.share = facts.y;
  weight.grad = weight.value * (fmaf(facts.y, products[0], own) - facts.z);
  return weight;
}

// The same for a lane's part of scores and products, C of matrix products. Queries are rows of C, or else columns;
// `first_key` and `first_query` belong to the lane's first row and column.
template <bool ties, bool query_rows>
__device__ __forceinline__ void find_weights(Weight (&weights)[PARTS_OF_STEP][4],
                                             const float (&score)[PARTS_OF_STEP][4],
                                             const float (&products)[OUTPUTS][PARTS_OF_STEP][4], float scale,
                                             const Query* first_query, int first_key) {
#pragma unroll
  for (int part = 0; part < PARTS_OF_STEP; ++part)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int row = 8 * (e / 2), column = 8 * part + e % 2;
      const float all[OUTPUTS] = {products[0][part][e], products[1][part][e], products[2][part][e],
                                  products[3][part][e], products[4][part][e]};
      weights[part][e] = weight_of<ties>(score[part][e] * scale, first_key + (query_rows ? column : row), all,
                                         first_query[query_rows ? row : column]);
    }
}

// Starts to copy queries and output gradients, from `first` on. `grad` is that of output 0.
template <int threads, int rows>
__device__ __forceinline__ void copy_queries(Block<rows>& block, const Element* __restrict__ query, long long query_row,
                                             const Element* __restrict__ grad, long long grad_output,
                                             long long grad_row, int first, int count) {
  copy_rows<rows, threads>(block.queries[0], query, query_row, first, count);
#pragma unroll
  for (int o = 0; o < OUTPUTS; ++o)
    copy_rows<rows, threads>(block.output_grads[o][0], grad + o * grad_output, grad_row, first, count);
}
