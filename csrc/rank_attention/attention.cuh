// Shared by the kernels of rank-grouped attention.
//
// For each query, all keys are ranked by their score s = scale * q . k (descending, equal scores by key index). Ranks
// below k1, below k2, k3 and k4 make the groups 0 to 3, the rest of the keys is "group" 4. Output 0 is the softmax
// attention over all keys, output 1 + g that inside group g. Groups are disjoint: with the sums Z_g and maxima m_g
// of each, output 0 is the mean of the five group outputs weighted with Z_g exp(m_g).
//
// A query's groups are described by four thresholds (struct Row): a key is below threshold g if its score is
// smaller, or equal and its index beyond ties[g]. Thresholds lie between two scores wherever those differ, so that
// nothing depends on the last bit when scores are recomputed in the backward pass; equal keys have equal scores
// in all kernels because their products are summed in the same order. Scores carry a factor log2(e), so that
// exponentials are powers of two.
//
// All products run on tensor cores. 16-bit numbers are multiplied as they are (m16n8k16): the products are exact and
// summed in float32, so that scores are those of float32; probabilities and gradients of scores are rounded to 16 bits
// where they become factors. Float32 numbers are divided into two tf32 parts and multiplied as three products
// (m16n8k8), relative error 2^-21.
//
// Queries, keys, values and output gradients are matrices (rows, d) for each image and head, anywhere in memory as long
// as a row is contiguous and starts at a multiple of 16 bytes (struct Matrices). What is written is token-major:
// (..., B, Q, h, d).
//
// Compile with -DDIM=d, a multiple of 16; -DKEY_SLOTS=n, even, for up to 32 n keys; -DELEMENT=0 (float32), 1 (bfloat16)
// or 2 (float16), the type of the inputs.
#pragma once

#include "../half.cuh"

#ifndef SA2DEPTH_EMULATED  // tests run the same sources on the CPU, with their own versions of the code below
#define DYNAMIC_SHARED(name) extern __shared__ float4 name[]

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 16 bytes on their way to shared memory, zeros if they do not exist.
__device__ __forceinline__ void copy_async(float4* shared, const float4* global, bool exists) {
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(exists ? 16 : 0) : "memory");
}
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// 8x8 matrices of 16-bit numbers: lane l names a row of 16 bytes, row l % 8 of matrix l / 8, and gets numbers
// 2 (l % 4) and 2 (l % 4) + 1 of row l / 4 of each; the same of the transposed matrices.
__device__ __forceinline__ void load_matrices(unsigned (&to)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
               : "=r"(to[0]), "=r"(to[1])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row))));
}
__device__ __forceinline__ void load_matrices(unsigned (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row))));
}
__device__ __forceinline__ void load_transposed(unsigned (&to)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(to[0]), "=r"(to[1])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row))));
}
__device__ __forceinline__ void load_transposed(unsigned (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row))));
}

__device__ __forceinline__ void mma_tf32(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void mma_bfloat16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void mma_half(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// All bits of those halves that are equal. For small numbers, which as float16 are not normal but differ.
__device__ __forceinline__ unsigned equal_halves(unsigned a, unsigned b) {
  unsigned mask;
  asm("set.eq.u32.f16x2 %0, %1, %2;" : "=r"(mask) : "r"(a), "r"(b));
  return mask;
}
#endif

constexpr int GROUPS = 4;
constexpr int OUTPUTS = GROUPS + 1;
constexpr int KEYS_PADDED = 32 * KEY_SLOTS;
constexpr int KEY_TILE = 64;           // keys in shared memory at once
constexpr int SCORE_STRIDE = KEYS_PADDED + 8;  // floats of a row of scores: pairs are written without bank conflicts
constexpr float LOG2_E = 1.4426950408889634f;
constexpr unsigned ALL_LANES = ~0u;
constexpr int NO_TIE = 0x3fff;  // beyond all keys; a pair of them is no NaN if somebody looks at it as a float
constexpr unsigned NO_TIES = NO_TIE << 16 | NO_TIE;
static_assert(DIM % 16 == 0, "channels of a head");
// Blocks of a multiprocessor whose registers hold two: fewer if their shared memory does not fit into that of an H100.
constexpr int MOST_BLOCKS = 2 * (SHARED_BYTES + 1024) <= 227 * 1024 ? 2 : 1;
static_assert(KEY_SLOTS >= 2 && KEY_SLOTS <= 16 && KEY_SLOTS % 2 == 0, "a warp keeps the scores of a row in registers");

__device__ __forceinline__ float minus_infinity() { return __uint_as_float(0xff800000u); }

// ---- input and output types

#if ELEMENT == 0
using Element = float;
#else
using Element = unsigned short;  // its bits
__device__ __forceinline__ unsigned pack(float low, float high) {
  return ELEMENT == 1 ? pack_bfloat16(low, high) : pack_half(low, high);
}
__device__ __forceinline__ float2 unpack(unsigned word) {
  return ELEMENT == 1 ? make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u))
                      : unpack_half(word);
}
#endif

// Sum of the products of four (float32) or eight neighbours, at addresses that are multiples of 16 bytes.
__device__ __forceinline__ float dot_chunk(const Element* a, const Element* b) {
  const float4 left = *reinterpret_cast<const float4*>(a), right = *reinterpret_cast<const float4*>(b);
  const float lefts[4] = {left.x, left.y, left.z, left.w}, rights[4] = {right.x, right.y, right.z, right.w};
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#if ELEMENT == 0
    sum = fmaf(lefts[i], rights[i], sum);
#else
    const float2 x = unpack(__float_as_uint(lefts[i])), y = unpack(__float_as_uint(rights[i]));
    sum = fmaf(x.x, y.x, fmaf(x.y, y.y, sum));
#endif
  }
  return sum;
}
constexpr int CHUNK = 16 / sizeof(Element);  // elements that are copied at once
constexpr int TILE_STRIDE = DIM + CHUNK;     // elements of a row of a tile: fragments are read without bank conflicts
constexpr int STEP = ELEMENT == 0 ? 8 : 16;  // depth of a product
constexpr int PARTS_OF_STEP = STEP / 8;      // C that make an A

// Two neighbours, at an address that is aligned for both.
__device__ __forceinline__ void store_pair(Element* to, float first, float second) {
#if ELEMENT == 0
  *reinterpret_cast<float2*>(to) = make_float2(first, second);
#else
  *reinterpret_cast<unsigned*>(to) = pack(first, second);
#endif
}

// Distances between images, heads and rows, in elements.
struct Matrices {
  long long image, head, row;
  __device__ __forceinline__ long long start(int image_head, int heads) const {
    return image_head / heads * image + image_head % heads * head;
  }
};

// ---- matrix products of a warp
//
// With l the lane, c = l % 4 and r = l / 4, a 16x8 product has in each lane C at (r, 2c), (r, 2c + 1), (r + 8, 2c),
// (r + 8, 2c + 1).
// 16 bits, 16 deep: A at rows r, r + 8, r, r + 8 has the pairs of columns 2c, 2c, 2c + 8, 2c + 8; B the pairs of rows
// 2c and 2c + 8 of column r. Two neighbouring C make an A.
// tf32, 8 deep: A at (r, c), (r + 8, c), (r, c + 4), (r + 8, c + 4); B at (c, r), (c + 4, r). Where the summed index
// counts rows of a tile it is permuted, which a sum does not notice: index c stands for row 2c, index c + 4 for row
// 2c + 1. So a lane's values of C are values of A of the next product.

// Group numbers of the elements of A, two in a word if these are 16 bits wide.
struct Groups {
  unsigned words[4];
};

#if ELEMENT == 0
struct Part {
  unsigned high, low;
};
__device__ __forceinline__ Part split(float x) {
  const unsigned high = (__float_as_uint(x) + 0x1000u) & 0xffffe000u;
  return {high, __float_as_uint(x - __uint_as_float(high))};
}

struct FragmentA {
  unsigned high[4], low[4];
  __device__ __forceinline__ void set(int i, float x) {
    const Part part = split(x);
    high[i] = part.high;
    low[i] = part.low;
  }
  // Keeps what belongs to a group, zero for the rest.
  __device__ __forceinline__ FragmentA only(const Groups& groups, unsigned group) const {
    FragmentA result;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      result.high[i] = groups.words[i] == group ? high[i] : 0u;
      result.low[i] = groups.words[i] == group ? low[i] : 0u;
    }
    return result;
  }
};

struct FragmentB {
  unsigned high[2], low[2];
  __device__ __forceinline__ void set(int i, float x) {
    const Part part = split(x);
    high[i] = part.high;
    low[i] = part.low;
  }
};

// c += a b. `b_first` chooses the order of the small terms: a b and the transposed product give the same bits.
template <bool b_first = false>
__device__ __forceinline__ void multiply_add(float (&c)[4], const FragmentA& a, const FragmentB& b) {
  if (b_first) {
    mma_tf32(c, a.high, b.low);
    mma_tf32(c, a.low, b.high);
  } else {
    mma_tf32(c, a.low, b.high);
    mma_tf32(c, a.high, b.low);
  }
  mma_tf32(c, a.high, b.high);
}

// A(i, k) = tile[i][k]; `tile` points to its first element.
__device__ __forceinline__ FragmentA rows_a(const Element* tile, int lane) {
  const float* from = tile + lane / 4 * TILE_STRIDE + lane % 4;
  FragmentA a;
  a.set(0, from[0]);
  a.set(1, from[8 * TILE_STRIDE]);
  a.set(2, from[4]);
  a.set(3, from[8 * TILE_STRIDE + 4]);
  return a;
}

// B(k, i) = tile[i][k]
__device__ __forceinline__ FragmentB rows_b(const Element* tile, int lane) {
  const float* from = tile + lane / 4 * TILE_STRIDE + lane % 4;
  FragmentB b;
  b.set(0, from[0]);
  b.set(1, from[4]);
  return b;
}

// B(k, i) = tile[k][i], k permuted
__device__ __forceinline__ FragmentB columns_b(const Element* tile, int lane) {
  const float* from = tile + 2 * (lane % 4) * TILE_STRIDE + lane / 4;
  FragmentB b;
  b.set(0, from[0]);
  b.set(1, from[TILE_STRIDE]);
  return b;
}

// Eight columns side by side.
template <int count>
__device__ __forceinline__ void rows_b(FragmentB (&b)[count], const Element* tile, int lane) {
#pragma unroll
  for (int i = 0; i < count; ++i) b[i] = rows_b(tile + 8 * i * TILE_STRIDE, lane);
}
template <int count>
__device__ __forceinline__ void columns_b(FragmentB (&b)[count], const Element* tile, int lane) {
#pragma unroll
  for (int i = 0; i < count; ++i) b[i] = columns_b(tile + 8 * i, lane);
}

// B(k, i) = 1 for one i
__device__ __forceinline__ FragmentB ones_b(int column, int lane) {
  FragmentB b;
  b.set(0, lane / 4 == column ? 1.f : 0.f);
  b.set(1, lane / 4 == column ? 1.f : 0.f);
  return b;
}

// C of products as A of the next.
__device__ __forceinline__ FragmentA as_factor(const float (&c)[1][4]) {
  FragmentA a;
  a.set(0, c[0][0]);
  a.set(1, c[0][2]);
  a.set(2, c[0][1]);
  a.set(3, c[0][3]);
  return a;
}
__device__ __forceinline__ Groups as_groups(const int (&group)[1][4]) {
  return {{static_cast<unsigned>(group[0][0]), static_cast<unsigned>(group[0][2]), static_cast<unsigned>(group[0][1]),
           static_cast<unsigned>(group[0][3])}};
}

#else

struct FragmentA {
  unsigned words[4];
  // Keeps what belongs to a group, zero for the rest.
  __device__ __forceinline__ FragmentA only(const Groups& groups, unsigned group) const {
    FragmentA result;
#pragma unroll
    for (int i = 0; i < 4; ++i) result.words[i] = words[i] & equal_halves(groups.words[i], group << 16 | group);
    return result;
  }
};

struct FragmentB {
  unsigned words[2];
};

// c += a b; a b and the transposed product give the same bits, with `b_first` too.
template <bool b_first = false>
__device__ __forceinline__ void multiply_add(float (&c)[4], const FragmentA& a, const FragmentB& b) {
#if ELEMENT == 1
  mma_bfloat16(c, a.words, b.words);
#else
  mma_half(c, a.words, b.words);
#endif
}

// A(i, k) = tile[i][k]; `tile` points to its first element.
__device__ __forceinline__ FragmentA rows_a(const Element* tile, int lane) {
  FragmentA a;
  load_matrices(a.words, tile + lane % 16 * TILE_STRIDE + lane / 16 * 8);
  return a;
}

// B(k, i) = tile[i][k]
__device__ __forceinline__ FragmentB rows_b(const Element* tile, int lane) {
  FragmentB b;
  load_matrices(b.words, tile + lane % 8 * TILE_STRIDE + lane / 8 % 2 * 8);
  return b;
}

// B(k, i) = tile[k][i]
__device__ __forceinline__ FragmentB columns_b(const Element* tile, int lane) {
  FragmentB b;
  load_transposed(b.words, tile + lane % 16 * TILE_STRIDE);
  return b;
}

// Eight columns side by side, two times eight with one instruction.
template <int count>
__device__ __forceinline__ void rows_b(FragmentB (&b)[count], const Element* tile, int lane) {
#pragma unroll
  for (int i = 0; i + 1 < count; i += 2) {
    unsigned words[4];
    load_matrices(words, tile + (8 * i + lane / 16 * 8 + lane % 8) * TILE_STRIDE + lane / 8 % 2 * 8);
    b[i] = {{words[0], words[1]}};
    b[i + 1] = {{words[2], words[3]}};
  }
  if (count % 2) b[count - 1] = rows_b(tile + 8 * (count - 1) * TILE_STRIDE, lane);
}
template <int count>
__device__ __forceinline__ void columns_b(FragmentB (&b)[count], const Element* tile, int lane) {
#pragma unroll
  for (int i = 0; i + 1 < count; i += 2) {
    unsigned words[4];
    load_transposed(words, tile + lane % 16 * TILE_STRIDE + 8 * i + lane / 16 * 8);
    b[i] = {{words[0], words[1]}};
    b[i + 1] = {{words[2], words[3]}};
  }
  if (count % 2) b[count - 1] = columns_b(tile + 8 * (count - 1), lane);
}

// B(k, i) = 1 for one i
__device__ __forceinline__ FragmentB ones_b(int column, int lane) {
  constexpr unsigned one = ELEMENT == 1 ? 0x3f80u : 0x3c00u;
  const unsigned word = lane / 4 == column ? one << 16 | one : 0u;
  return {{word, word}};
}

// C of products as A of the next.
__device__ __forceinline__ FragmentA as_factor(const float (&c)[2][4]) {
  return {{pack(c[0][0], c[0][1]), pack(c[0][2], c[0][3]), pack(c[1][0], c[1][1]), pack(c[1][2], c[1][3])}};
}
__device__ __forceinline__ Groups as_groups(const int (&group)[2][4]) {
  Groups groups;
#pragma unroll
  for (int i = 0; i < 4; ++i)
    groups.words[i] = static_cast<unsigned>(group[i / 2][i % 2 * 2] | group[i / 2][i % 2 * 2 + 1] << 16);
  return groups;
}
#endif

// ---- tiles

// Starts to copy `rows` rows of a matrix, from `first` on, into a tile. Those beyond the end, `count`, are zero.
template <int rows, int threads>
__device__ __forceinline__ void copy_rows(Element* tile, const Element* __restrict__ from, long long stride, int first,
                                          int count) {
  constexpr int ROW_CHUNKS = DIM / CHUNK;
#pragma unroll
  for (int step = 0; step < (rows * ROW_CHUNKS + threads - 1) / threads; ++step) {
    const int i = step * threads + threadIdx.x, row = i / ROW_CHUNKS, column = i % ROW_CHUNKS * CHUNK;
    if (rows * ROW_CHUNKS % threads && i >= rows * ROW_CHUNKS) break;
    const bool exists = first + row < count;
    const Element* place = from + (exists ? (first + row) * stride + column : 0);
    copy_async(reinterpret_cast<float4*>(tile + row * TILE_STRIDE + column), reinterpret_cast<const float4*>(place),
               exists);
  }
}

// ---- groups

// What the backward pass needs of a query.
struct Row {
  float threshold[GROUPS];  // descending
  unsigned ties[2];         // four key indices of 16 bits
  float log_sum[OUTPUTS];   // of 2^score: groups 0 to 3, then all keys
  float unused;
};

// A weight and its group in one word: the lowest three bits of a float are 2^-21 of it at most.
__device__ __forceinline__ unsigned tag(float weight, unsigned group) {
  return (__float_as_uint(weight) & ~7u) | (group & 7u);
}
__device__ __forceinline__ float weight_of(unsigned word) { return __uint_as_float(word & ~7u); }
__device__ __forceinline__ unsigned group_of(unsigned word) { return word & 7u; }
