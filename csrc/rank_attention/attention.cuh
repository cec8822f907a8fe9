// Shared by the kernels of rank-grouped attention.
//
// For each query, all keys are ranked by their score s = scale * q . k (descending, equal scores by key index). Ranks
// below k1, below k2, k3 and k4 make the groups 0 to 3, the rest of the keys is "group" 4. Output 0 is the softmax
// attention over all keys, output 1 + g that inside group g. Groups are disjoint: with the sums Z_g and maxima m_g
// of each, output 0 is the mean of the five group outputs weighted with Z_g exp(m_g).
//
// A query's groups are described by four thresholds (struct Row): a key is below threshold g if its score is
// smaller, or equal and its index beyond ties[g]. Thresholds lie between two scores wherever those differ, so that
// nothing hangs on the last bit when scores are computed again in the backward pass; equal keys have equal scores
// in all kernels because their products are summed in the same order.
//
// All products run on tensor cores as tf32 (m16n8k8). 16-bit numbers fit into tf32, their scores are those of
// float32. Float32 numbers are divided into two tf32 parts and multiplied as three products, relative error 2^-21.
//
// Compile with -DDIM=d, a multiple of 16; -DKEY_SLOTS=n for up to 32 n keys; -DELEMENT=0 (float32), 1 (bfloat16) or
// 2 (float16), the type of the inputs; -DCHANNELS_FIRST=1 if tensors of the size of the queries are (..., d, Q), 0 if
// they are (..., Q, d).
#pragma once

#ifndef SA2DEPTH_EMULATED  // tests run the same sources on the CPU, with their own versions of what follows
#define DYNAMIC_SHARED(name) extern __shared__ float4 name[]

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ unsigned to_tf32(float x) {
  unsigned y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ void mma_tf32(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ float half_to_float(unsigned short x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
  return y;
}

__device__ __forceinline__ unsigned short float_to_half(float x) {
  unsigned short y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
  return y;
}
#endif

constexpr int GROUPS = 4;
constexpr int OUTPUTS = GROUPS + 1;
constexpr int KEYS_PADDED = 32 * KEY_SLOTS;
constexpr int KEY_TILE = 64;           // keys in shared memory at once
constexpr int TILE_STRIDE = DIM + 4;   // floats of a row of a tile: fragments are read without bank conflicts
constexpr int SCORE_STRIDE = KEYS_PADDED + 8;
constexpr float LOG2_E = 1.4426950408889634f;
constexpr unsigned ALL_LANES = ~0u;
constexpr int NO_TIE = 0x3fff;  // beyond all keys; a pair of them is no NaN if somebody looks at it as a float
constexpr unsigned NO_TIES = NO_TIE << 16 | NO_TIE;
static_assert(DIM % 16 == 0, "channels of a head");
static_assert(KEY_SLOTS >= 1 && KEY_SLOTS <= 16, "a warp keeps the scores of a row in registers");

__device__ __forceinline__ float minus_infinity() { return __uint_as_float(0xff800000u); }

// ---- input and output types

#if ELEMENT == 0
using Element = float;
__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float narrow(float x) { return x; }
#else
using Element = unsigned short;
__device__ __forceinline__ float widen(unsigned short x) {
#if ELEMENT == 1
  return __uint_as_float(static_cast<unsigned>(x) << 16);
#else
  return half_to_float(x);
#endif
}
__device__ __forceinline__ unsigned short narrow(float x) {
#if ELEMENT == 1
  const unsigned bits = __float_as_uint(x);
  if (x != x) return 0x7fc0;
  return static_cast<unsigned short>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);  // to nearest, ties to even
#else
  return float_to_half(x);
#endif
}
#endif

// ---- matrix products of a warp
//
// With l the lane, c = l % 4 and r = l / 4, a 16x8 by 8x8 product has in each lane A at (r, c), (r + 8, c),
// (r, c + 4), (r + 8, c + 4); B at (c, r), (c + 4, r); C at (r, 2c), (r, 2c + 1), (r + 8, 2c), (r + 8, 2c + 1).
// Where the summed index counts rows of a tile it is permuted, which a sum does not notice: index c stands for row
// 2c, index c + 4 for row 2c + 1. So a lane's values of C are values of A of the next product.

constexpr bool TWO_PARTS = ELEMENT == 0;

struct Part {
  unsigned high, low;
};

// `exact`: x is known to fit into tf32 if inputs are 16 bits wide.
template <bool exact>
__device__ __forceinline__ Part split(float x) {
  if (TWO_PARTS) {
    const unsigned high = (__float_as_uint(x) + 0x1000u) & 0xffffe000u;
    return {high, __float_as_uint(x - __uint_as_float(high))};
  }
  return {exact ? __float_as_uint(x) : to_tf32(x), 0u};
}

struct FragmentA {
  unsigned high[4], low[4];
  template <bool exact>
  __device__ __forceinline__ void set(int i, float x) {
    const Part part = split<exact>(x);
    high[i] = part.high;
    low[i] = part.low;
  }
  // Keeps what belongs to a group, zero for the rest.
  __device__ __forceinline__ FragmentA only(const int (&groups)[4], int group) const {
    FragmentA result;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      result.high[i] = groups[i] == group ? high[i] : 0u;
      result.low[i] = TWO_PARTS && groups[i] == group ? low[i] : 0u;
    }
    return result;
  }
};

struct FragmentB {
  unsigned high[2], low[2];
  __device__ __forceinline__ void set(int i, float x) {
    const Part part = split<true>(x);
    high[i] = part.high;
    low[i] = part.low;
  }
};

// c += a b. `b_first` chooses the order of the small terms: a b and the transposed product give the same bits.
template <bool b_first = false>
__device__ __forceinline__ void multiply_add(float (&c)[4], const FragmentA& a, const FragmentB& b) {
  if (TWO_PARTS) {
    if (b_first) {
      mma_tf32(c, a.high, b.low);
      mma_tf32(c, a.low, b.high);
    } else {
      mma_tf32(c, a.low, b.high);
      mma_tf32(c, a.high, b.low);
    }
  }
  mma_tf32(c, a.high, b.high);
}

// A(i, k) = tile[i][k]; `tile` points to its first element.
__device__ __forceinline__ FragmentA rows_a(const float* tile, int lane) {
  const float* from = tile + lane / 4 * TILE_STRIDE + lane % 4;
  FragmentA a;
  a.set<true>(0, from[0]);
  a.set<true>(1, from[8 * TILE_STRIDE]);
  a.set<true>(2, from[4]);
  a.set<true>(3, from[8 * TILE_STRIDE + 4]);
  return a;
}

// B(k, i) = tile[i][k]
__device__ __forceinline__ FragmentB rows_b(const float* tile, int lane) {
  const float* from = tile + lane / 4 * TILE_STRIDE + lane % 4;
  FragmentB b;
  b.set(0, from[0]);
  b.set(1, from[4]);
  return b;
}

// B(k, i) = tile[k][i], k permuted
__device__ __forceinline__ FragmentB columns_b(const float* tile, int lane) {
  const float* from = tile + 2 * (lane % 4) * TILE_STRIDE + lane / 4;
  FragmentB b;
  b.set(0, from[0]);
  b.set(1, from[TILE_STRIDE]);
  return b;
}

// ---- tiles

// Four neighbours in memory.
__device__ __forceinline__ float4 load_four(const Element* __restrict__ from) {
#if ELEMENT == 0
  return *reinterpret_cast<const float4*>(from);
#else
  const uint2 packed = *reinterpret_cast<const uint2*>(from);
  return make_float4(widen(static_cast<unsigned short>(packed.x)), widen(static_cast<unsigned short>(packed.x >> 16)),
                     widen(static_cast<unsigned short>(packed.y)), widen(static_cast<unsigned short>(packed.y >> 16)));
#endif
}

// A thread's part of a tile of `rows` rows, on its way from global memory to floats in shared memory: all loads of
// a tile, or of several, are under way before the first is waited for. Rows beyond the end of a matrix are zero.
template <int rows, int threads>
struct Load {
  static constexpr int QUADS = rows * (DIM / 4);
  static constexpr int STEPS = (QUADS + threads - 1) / threads;
  float4 values[STEPS];

  // From a matrix (count, DIM).
  __device__ __forceinline__ void from_rows(const Element* __restrict__ from, int first, int count) {
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
      const int i = step * threads + threadIdx.x, row = i / (DIM / 4), column = i % (DIM / 4) * 4;
      values[step] = make_float4(0.f, 0.f, 0.f, 0.f);
      if (i < QUADS && first + row < count)
        values[step] = load_four(from + static_cast<size_t>(first + row) * DIM + column);
    }
  }
  __device__ __forceinline__ void to_rows(float* tile) const {
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
      const int i = step * threads + threadIdx.x, row = i / (DIM / 4), column = i % (DIM / 4) * 4;
      if (i < QUADS) *reinterpret_cast<float4*>(tile + row * TILE_STRIDE + column) = values[step];
    }
  }

  // The same for a tensor of the size of the queries, (count, DIM) or (DIM, count).
  __device__ __forceinline__ void from_queries(const Element* __restrict__ from, int first, int count) {
#if CHANNELS_FIRST
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
      const int i = step * threads + threadIdx.x, row = i % (rows / 4) * 4, column = i / (rows / 4);
      const Element* place = from + static_cast<size_t>(column) * count + first + row;
      const int exist = i < QUADS ? count - first - row : 0;
      values[step] = make_float4(0.f, 0.f, 0.f, 0.f);
      if (count % 4 == 0) {  // quads are aligned, and whole or beyond the end
        if (exist > 0) values[step] = load_four(place);
      } else {
        if (exist > 0) values[step].x = widen(place[0]);
        if (exist > 1) values[step].y = widen(place[1]);
        if (exist > 2) values[step].z = widen(place[2]);
        if (exist > 3) values[step].w = widen(place[3]);
      }
    }
#else
    from_rows(from, first, count);
#endif
  }
  __device__ __forceinline__ void to_queries(float* tile) const {
#if CHANNELS_FIRST
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
      const int i = step * threads + threadIdx.x, row = i % (rows / 4) * 4, column = i / (rows / 4);
      if (i >= QUADS) continue;
      float* to = tile + row * TILE_STRIDE + column;
      to[0] = values[step].x;
      to[TILE_STRIDE] = values[step].y;
      to[2 * TILE_STRIDE] = values[step].z;
      to[3 * TILE_STRIDE] = values[step].w;
    }
#else
    to_rows(tile);
#endif
  }
};

template <int rows, int threads>
__device__ __forceinline__ void load_tile(float* tile, const Element* __restrict__ from, int first, int count) {
  Load<rows, threads> load;
  load.from_rows(from, first, count);
  load.to_rows(tile);
}

// Index of an element in such a tensor.
__device__ __forceinline__ size_t place_of(int query, int column, int count) {
  return CHANNELS_FIRST ? static_cast<size_t>(column) * count + query : static_cast<size_t>(query) * DIM + column;
}

// ---- groups

// What the backward pass needs to know of a query.
struct Row {
  float threshold[GROUPS];  // descending
  unsigned ties[2];         // four key indices of 16 bits
  float log_sum[OUTPUTS];   // of exp(score): groups 0 to 3, then all keys
  float unused;
};
constexpr int ROW_WORDS = sizeof(Row) / 4;

// Group of a key, 4 if it is in none.
__device__ __forceinline__ int group_of(float score, int key, const float (&threshold)[GROUPS],
                                        const unsigned (&ties)[2]) {
  int group = 0;
#pragma unroll
  for (int g = 0; g < GROUPS; ++g) group += !(score >= threshold[g]);
  if (ties[0] != NO_TIES || ties[1] != NO_TIES) {
#pragma unroll
    for (int g = 0; g < GROUPS; ++g) {
      const int last = ties[g / 2] >> 16 * (g % 2) & 0xffff;
      group += score == threshold[g] && key > last;
    }
  }
  return group;
}

// A weight in [0, 1] and its group in one word: multiplied with 2^-64, a weight leaves the upper three bits free.
// Weights below 2^-62 lose bits, which nobody sees beside the group's largest.
__device__ __forceinline__ unsigned pack(float weight, int group) {
  return __float_as_uint(weight * 5.421010862427522e-20f) | static_cast<unsigned>(group) << 29;
}
__device__ __forceinline__ float weight_of(unsigned word) {
  return __uint_as_float(word & 0x1fffffffu) * 18446744073709551616.f;
}
__device__ __forceinline__ int group_of(unsigned word) { return static_cast<int>(word >> 29); }

__device__ __forceinline__ float exp_difference(float a, float b) { return exp2_fast((a - b) * LOG2_E); }

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int other = 16; other > 0; other /= 2) x += __shfl_xor_sync(ALL_LANES, x, other);
  return x;
}
