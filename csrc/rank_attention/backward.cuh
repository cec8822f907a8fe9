// Shared by the two backward kernels of rank-grouped attention.
//
// With p the weight of a key inside its group (for the rest: in output 0), f_g = Z_g exp(m_g) / Z the share of the
// group in output 0 (1 for the rest), and e_o = dO_o . v, the gradient of a score is
//     p (y - E_g),   y = e_{1+g} + f_g e_0,   E_g = D_{1+g} + f_g D_0,   D_o = sum of weights in output o times e_o
// where e_{1+g} and D_{1+g} are zero for the rest.
#pragma once
#include "attention.cuh"

constexpr int QUERIES = 16;

struct Query {
  Row row;
  float share[OUTPUTS];  // f
  float mean[OUTPUTS];   // E
};

struct Weight {
  float value;  // p
  int group;
};

__device__ __forceinline__ Weight weight_of(float score, int key, int keys, const Query& query) {
  const int group = group_of(score, key, query.row.threshold, query.row.ties);
  const float weight = key < keys ? fminf(exp_difference(score, query.row.log_sum[group]), 1.f) : 0.f;
  return {weight, group};
}

// y of one score, from the products of its value with the five output gradients.
__device__ __forceinline__ float combine(const float (&products)[OUTPUTS], const Weight& weight, const Query& query) {
  float own = 0.f;
#pragma unroll
  for (int g = 0; g < GROUPS; ++g) own = weight.group == g ? products[1 + g] : own;
  return fmaf(query.share[weight.group], products[0], own);
}

// Queries and output gradients of a block into tiles.
template <int threads>
__device__ __forceinline__ void load_queries(float* queries, float (*output_grads)[QUERIES][TILE_STRIDE],
                                             const Element* __restrict__ query, const Element* __restrict__ grad,
                                             size_t output_size, int first, int count) {
  Load<QUERIES, threads> loads[1 + OUTPUTS];
  loads[OUTPUTS].from_queries(query, first, count);
#pragma unroll
  for (int o = 0; o < OUTPUTS; ++o) loads[o].from_queries(grad + o * output_size, first, count);
  loads[OUTPUTS].to_queries(queries);
#pragma unroll
  for (int o = 0; o < OUTPUTS; ++o) loads[o].to_queries(output_grads[o][0]);
}

// Loads what is known of a block of queries; nothing for those beyond the end, whose gradients are zero.
template <int threads>
__device__ __forceinline__ void load_block(Query* to, const Row* __restrict__ rows, const float* __restrict__ means,
                                           int first, int count) {
  for (int q = threadIdx.x; q < QUERIES; q += threads) {
    Row row = {};
    const bool exists = first + q < count;
    if (exists) row = rows[first + q];
    to[q].row = row;
#pragma unroll
    for (int g = 0; g < OUTPUTS; ++g) {
      to[q].share[g] = exp_difference(row.log_sum[g], row.log_sum[GROUPS]);
      to[q].mean[g] = exists && means != nullptr ? means[static_cast<size_t>(first + q) * OUTPUTS + g] : 0.f;
    }
  }
}
