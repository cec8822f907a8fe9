// Shared by the kernels of DCNv3 with a 3x3 kernel.
//
// For output pixel (r, c), group g and kernel point k (columns first: point 3i + j is column i, row j) the sampling
// point is, in input pixels,
//     x = c * stride + first + ((i - 1) * dilation + dx) * scale        first = dilation - padding
//     y = r * stride + first + ((j - 1) * dilation + dy) * scale
// and the output is the sum over k of mask_k times the input sampled there bilinearly, zeros around it.
//
// Tensors: input (B, H, W, C), points (B, Ho, Wo, POINT_ROW), output (B, Ho, Wo, C). A row of points has the offsets
// of all groups (G, P, 2), their masks (G, P), and unused numbers. A "pair" is an output pixel with one of its
// groups; it has P points, and GROUP_CHANNELS channels share them.
//
// Compile with -DVALUE_TYPE=, -DPOINT_TYPE= (0 float, 1 bfloat16, 2 half: of input and output, of points),
// -DGROUP_CHANNELS=8, 16, 32 or 64, -DGROUPS=G, -DREMOVE_CENTER=0 or 1, -DPOINT_ROW= (numbers in a row of points),
// -DSOFTMAX=1 if the masks are logits (of a softmax over the points of a pair). Arithmetic is in float whatever the
// types.
#pragma once

#include "../half.cuh"

#ifndef SA2DEPTH_EMULATED  // tests run the same sources on the CPU, with their own versions of the code below
// The nearest number with 10 bits of fraction, as tensor cores read it.
__device__ __forceinline__ unsigned to_tf32(float x) {
  unsigned y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return y;
}

// c += a b for a 16x8 a, an 8x8 b. A lane has of a: rows lane / 4 and 8 below, columns lane % 4 and 4 to the right
// (rows first); of b: rows lane % 4 and 4 below in column lane / 4; of c: columns 2 (lane % 4) and the next, in rows
// lane / 4 and 8 below (columns first).
__device__ __forceinline__ void mma_tf32(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Adds four neighbours in global memory, 16-byte aligned; each of the four on its own is atomic.
__device__ __forceinline__ void add_four(float* to, float4 value) {
#if __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "f"(value.x),
               "f"(value.y), "f"(value.z), "f"(value.w)
               : "memory");
#else
  atomicAdd(to, value.x);
  atomicAdd(to + 1, value.y);
  atomicAdd(to + 2, value.z);
  atomicAdd(to + 3, value.w);
#endif
}
#endif

template <int type> struct TypeOf { using type_ = float; };
template <> struct TypeOf<1> { using type_ = Bfloat16; };
template <> struct TypeOf<2> { using type_ = Half; };
using Value = TypeOf<VALUE_TYPE>::type_;
using Point = TypeOf<POINT_TYPE>::type_;

constexpr int POINTS = 9 - REMOVE_CENTER;
constexpr int CHANNELS = GROUPS * GROUP_CHANNELS;
constexpr int USED_ROW = GROUPS * POINTS * 3;  // of a row of points
static_assert(POINT_ROW >= USED_ROW, "a row of points has all groups");

// Two neighbouring numbers in one word.
__device__ __forceinline__ float2 unpack(unsigned word, Bfloat16) {
  return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
}
__device__ __forceinline__ float2 unpack(unsigned word, Half) { return unpack_half(word); }
__device__ __forceinline__ unsigned pack(float low, float high, Bfloat16) { return pack_bfloat16(low, high); }
__device__ __forceinline__ unsigned pack(float low, float high, Half) { return pack_half(low, high); }

// One number, and two neighbouring ones that are aligned together.
__device__ __forceinline__ float load(const float* from) { return *from; }
template <class T>
__device__ __forceinline__ float load(const T* from) {
  return unpack(from->bits, T()).x;
}
__device__ __forceinline__ float2 load_two(const float* from) { return *reinterpret_cast<const float2*>(from); }
template <class T>
__device__ __forceinline__ float2 load_two(const T* from) {
  return unpack(*reinterpret_cast<const unsigned*>(from), T());
}
__device__ __forceinline__ void store(float* to, float value) { *to = value; }
template <class T>
__device__ __forceinline__ void store(T* to, float value) {
  to->bits = static_cast<unsigned short>(pack(value, 0.f, T()));
}
__device__ __forceinline__ void store_two(float* to, float low, float high) {
  *reinterpret_cast<float2*>(to) = make_float2(low, high);
}
template <class T>
__device__ __forceinline__ void store_two(T* to, float low, float high) {
  *reinterpret_cast<unsigned*>(to) = pack(low, high, T());
}

// The 16 bytes of channels that a thread owns: VECTOR of them.
constexpr int VECTOR = 16 / sizeof(Value);

__device__ __forceinline__ void unpack(float4 raw, float (&out)[4], float) {
  out[0] = raw.x;
  out[1] = raw.y;
  out[2] = raw.z;
  out[3] = raw.w;
}
template <class T>
__device__ __forceinline__ void unpack(float4 raw, float (&out)[8], T) {
  const float words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 two = unpack(__float_as_uint(words[i]), T());
    out[2 * i] = two.x;
    out[2 * i + 1] = two.y;
  }
}
__device__ __forceinline__ float4 pack(const float (&in)[4], float) { return make_float4(in[0], in[1], in[2], in[3]); }
template <class T>
__device__ __forceinline__ float4 pack(const float (&in)[8], T) {
  float words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) words[i] = __uint_as_float(pack(in[2 * i], in[2 * i + 1], T()));
  return make_float4(words[0], words[1], words[2], words[3]);
}

// Where the points of a group stand in a row.
__device__ __forceinline__ int offset_at(int group, int point) { return (group * POINTS + point) * 2; }
__device__ __forceinline__ int mask_at(int group, int point) { return (2 * GROUPS + group) * POINTS + point; }

// An offset. Rows of an odd number of points start at odd places: their pairs are not aligned.
__device__ __forceinline__ float2 load_offset(const Point* from) {
  return POINT_ROW % 2 == 0 ? load_two(from) : make_float2(load(from), load(from + 1));
}
__device__ __forceinline__ void store_offset(Point* to, float x, float y) {
  if (POINT_ROW % 2 == 0) {
    store_two(to, x, y);
  } else {
    store(to, x);
    store(to + 1, y);
  }
}

// Makes masks of what was read as masks. Of each pair, PARTS lanes, STEP apart, have points part, part + PARTS, ...;
// all lanes of the warp take part.
template <int PARTS, int STEP, int SHARE>
__device__ __forceinline__ void normalize(float (&mask)[SHARE], int part) {
  if (!SOFTMAX) return;
  float largest = mask[0], sum = 0.f;
#pragma unroll
  for (int i = 1; i < SHARE; ++i)
    if (part + i * PARTS < POINTS) largest = fmaxf(largest, mask[i]);
#pragma unroll
  for (int other = STEP; other < STEP * PARTS; other *= 2)
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, other));
#pragma unroll
  for (int i = 0; i < SHARE; ++i) {
    mask[i] = part + i * PARTS < POINTS ? expf(mask[i] - largest) : 0.f;
    sum += mask[i];
  }
#pragma unroll
  for (int other = STEP; other < STEP * PARTS; other *= 2) sum += __shfl_xor_sync(~0u, sum, other);
  const float factor = __fdividef(1.f, sum);
#pragma unroll
  for (int i = 0; i < SHARE; ++i) mask[i] *= factor;
}

struct Geometry {
  int height, width;  // of the input
  int rows, columns;  // of the output
  int stride, first, dilation;
  float scale;
};

// Where a sampling point lies: its upper left pixel, which may be -1, and the distance from there. A point whose four
// corners are all outside the input is not inside, nor is one that is not a number. On whole coordinates, where slopes
// jump, the pixel is the one to the right and below; so a point at -1 is inside: it reads zero, with a slope. Offsets
// of a new network are zero, and all points of its first column and row lie there.
struct Place {
  int x, y;
  float right, below;
  bool inside;

  __device__ Place(float2 offset, int point, int row, int column, const Geometry& geometry) {
    const int whole = REMOVE_CENTER && point >= 4 ? point + 1 : point;
    const float dilation = static_cast<float>(geometry.dilation);
    const float px = fmaf(fmaf(static_cast<float>(whole / 3 - 1), dilation, offset.x), geometry.scale,
                          static_cast<float>(column * geometry.stride + geometry.first));
    const float py = fmaf(fmaf(static_cast<float>(whole % 3 - 1), dilation, offset.y), geometry.scale,
                          static_cast<float>(row * geometry.stride + geometry.first));
    inside = px >= -1.f && px < static_cast<float>(geometry.width) && py >= -1.f &&
             py < static_cast<float>(geometry.height);
    const float left = floorf(px), top = floorf(py);
    right = inside ? px - left : 0.f;
    below = inside ? py - top : 0.f;
    x = inside ? static_cast<int>(left) : 0;
    y = inside ? static_cast<int>(top) : 0;
  }
};
