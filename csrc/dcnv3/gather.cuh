// Which thread does what in the kernels that gather: dcnv3_forward and dcnv3_backward_points.
//
// A thread owns 16 bytes of channels of one pair, so a pair belongs to LANES neighbouring threads. A block of 256
// threads owns a rectangle of output pixels (whose points touch much the same input, which then comes from L1) and
// GROUPS_PER_BLOCK neighbouring groups. Work comes in two steps:
//   1. the threads of a pair divide its points among them; each leaves what the gathering needs of a point in shared
//      memory, so nothing about a point is computed twice;
//   2. all of them walk all points of the pair, with one 16-byte load for each corner.
// Warps do not wait for each other.
//
// Compile with -DGROUPS_PER_BLOCK=1, 2 or 4, a divisor of GROUPS.
#pragma once
#include "dcnv3.cuh"

constexpr int THREADS = 256;
constexpr int LANES = GROUP_CHANNELS / VECTOR;  // threads of a pair
constexpr int PAIRS = THREADS / LANES;
constexpr int SHARE = (POINTS + LANES - 1) / LANES;  // points that a thread prepares
constexpr int PIXELS = PAIRS / GROUPS_PER_BLOCK;
constexpr int TILE_WIDTH = PIXELS >= 32 ? 8 : PIXELS >= 8 ? 4 : PIXELS >= 4 ? 2 : 1;
constexpr int TILE_HEIGHT = PIXELS / TILE_WIDTH;
static_assert(LANES >= 1 && 32 % LANES == 0 && PIXELS >= 1, "group channels are a power of two from 8 to 64");
static_assert(GROUPS % GROUPS_PER_BLOCK == 0, "a block has whole groups");

// The block's place. Grid: groups and columns of tiles, groups first; rows of tiles; images.
struct Block {
  int group, column, row;  // the first of them
  size_t image, pixel;     // pixel: index of the first one in (B, Ho, Wo)

  __device__ explicit Block(const Geometry& geometry) {
    constexpr unsigned slabs = GROUPS / GROUPS_PER_BLOCK;
    group = blockIdx.x % slabs * GROUPS_PER_BLOCK;
    column = blockIdx.x / slabs * TILE_WIDTH;
    row = blockIdx.y * TILE_HEIGHT;
    image = blockIdx.z;
    pixel = (image * geometry.rows + row) * geometry.columns + column;
  }
};

// A pair of the block, 0 to PAIRS - 1.
struct Pair {
  int row, column, group;
  bool exists;
  int pixel;  // in (B, Ho, Wo), from the block's first one

  __device__ Pair(const Block& block, int pair, const Geometry& geometry) {
    const int tile_pixel = pair / GROUPS_PER_BLOCK;
    const int down = tile_pixel / TILE_WIDTH, across = tile_pixel % TILE_WIDTH;
    group = block.group + pair % GROUPS_PER_BLOCK;
    row = block.row + down;
    column = block.column + across;
    exists = row < geometry.rows && column < geometry.columns;
    pixel = down * geometry.columns + across;
  }
};

// The points that a thread prepares: part, part + LANES, ... of its pair; all loads at once. `rows` is the block's
// first row of points.
struct Fetched {
  float2 offset[SHARE];
  float mask[SHARE];

  __device__ Fetched(const Point* __restrict__ rows, const Pair& pair, int part) {
    const Point* row = rows + pair.pixel * POINT_ROW;
#pragma unroll
    for (int i = 0; i < SHARE; ++i) {
      const int point = part + i * LANES;
      const bool wanted = pair.exists && (POINTS % LANES == 0 || point < POINTS);
      offset[i] = make_float2(0.f, 0.f);
      mask[i] = 0.f;
      if (wanted) {
        offset[i] = load_offset(row + offset_at(pair.group, point));
        mask[i] = load(row + mask_at(pair.group, point));
      }
    }
    normalize<LANES, 1>(mask, part);
  }
};

// The channels of this thread in an image: addresses of a pixel and of its three neighbours.
struct Channels {
  static constexpr int PIXEL_BYTES = CHANNELS * sizeof(Value);
  const char* base;
  size_t row_bytes;

  __device__ Channels(const Value* input, const Block& block, int group, int part, const Geometry& geometry)
      : row_bytes(static_cast<size_t>(geometry.width) * PIXEL_BYTES) {
    base = reinterpret_cast<const char*>(input + group * GROUP_CHANNELS + part * VECTOR) +
           block.image * geometry.height * row_bytes;
  }

  // The four corners below and to the right of a pixel; one that is not wanted may lie outside and reads as zero.
  __device__ __forceinline__ void read(int pixel, const bool (&wanted)[4], float4 (&raw)[4]) const {
    const char* above = base + static_cast<long long>(pixel) * PIXEL_BYTES;
    const char* below = above + row_bytes;
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      raw[corner] = make_float4(0.f, 0.f, 0.f, 0.f);
      const char* from = (corner < 2 ? above : below) + corner % 2 * PIXEL_BYTES;
      if (wanted[corner]) raw[corner] = __ldg(reinterpret_cast<const float4*>(from));
    }
  }
};
