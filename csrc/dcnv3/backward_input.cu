// DCNv3, backward: gradient of the input, added to `total`, which the caller has filled with zeros.
//
// Adding 36 numbers for each element of the output to global memory would be bound by L2's atomics (1.4 GB at about
// 1 TB/s in the first sketch, for a batch of 8 NYU maps at 1/4 of T). So a warp first adds in shared memory. A team of
// lanes, one a channel (of one group), owns an 8x8 tile of output pixels and a window of the input around it, MARGIN
// pixels wider on each side. It walks the points of the tile one after the other, and no other lane ever touches a
// lane's channel of the window: plain loads and stores, in a fixed order. The window then goes to global memory, four
// channels an atomic, zeros left out. A point whose corners do not all lie in the window goes there directly.
//
// A block is one warp: two teams for 16 channels a group. Its window has 32 KiB for MARGIN 4 (6 blocks a
// multiprocessor) and 41 KiB for 5 (5 blocks): enough, because shared memory itself binds. A pixel of a warp costs 90
// of its cycles (a load and a store of each channel for 36 corners, and the prepared points) against 185 issue slots
// on four schedulers and a chain of 400 cycles: 120 us for a batch of 8 NYU maps at 1/4 of T (120x160, C = 64) on an
// H100. Then come atomics for what is not zero in the windows, about 90 MB where offsets are a pixel long. Measured
// fraction of that limit: not measured.
//
// With -DDETERMINISTIC=1 `total` is int64 in fixed point and `units` points to the number of its units in 1 (a power of
// two, small enough that nothing overflows): sums of integers do not depend on their order.
// Compile with -DMARGIN=.
#include "dcnv3.cuh"

constexpr int TILE = 8;
constexpr int WINDOW = TILE + 2 * MARGIN;
constexpr int CELLS = WINDOW * WINDOW;
constexpr int TEAM = GROUP_CHANNELS < 32 ? GROUP_CHANNELS : 32;  // lanes
constexpr int TEAMS = 32 / TEAM;                                 // of a warp
constexpr int ROW_POINTS = TILE * POINTS;
constexpr int PARTS = TEAM / TILE;                      // lanes that prepare the points of one pixel
constexpr int SHARE = (POINTS + PARTS - 1) / PARTS;     // points of a row of the tile that a lane prepares
static_assert(TEAM % TILE == 0 && TEAM % 4 == 0, "group channels are a power of two from 8 to 64");

#if DETERMINISTIC
using Sum = unsigned long long;
__device__ __forceinline__ void add(Sum* to, float value, float unit) {
  if (value != 0.f) atomicAdd(to, static_cast<Sum>(__float2ll_rn(value * unit)));
}
__device__ __forceinline__ void add(Sum* to, float4 value, float unit) {
  add(to, value.x, unit);
  add(to + 1, value.y, unit);
  add(to + 2, value.z, unit);
  add(to + 3, value.w, unit);
}
#else
using Sum = float;
__device__ __forceinline__ void add(Sum* to, float value, float) { atomicAdd(to, value); }
__device__ __forceinline__ void add(Sum* to, float4 value, float) {
  if (value.x != 0.f || value.y != 0.f || value.z != 0.f || value.w != 0.f) add_four(to, value);
}
#endif

// A team's place: teams run over channels first, then columns, rows and images.
struct Team {
  int channel, column, row;  // the first of its channels, the first pixel of its tile
  size_t image;
  bool exists;

  __device__ Team(unsigned index, const Geometry& geometry, int images) {
    const unsigned slabs = CHANNELS / TEAM;
    const unsigned across = (geometry.columns + TILE - 1) / TILE, down = (geometry.rows + TILE - 1) / TILE;
    channel = index % slabs * TEAM;
    index /= slabs;
    column = index % across * TILE;
    index /= across;
    row = index % down * TILE;
    image = index / down;
    exists = image < images;
  }
};

// What a lane fetches ahead for one row of the tile: points of pixel member % TILE, to be prepared, and the gradient of
// its channel.
struct Row {
  float2 offset[SHARE];
  float mask[SHARE];
  float grad[TILE];

  __device__ __forceinline__ void fetch(const Team& team, int tile_row, int member, const Value* __restrict__ grads,
                                        const Point* __restrict__ offsets, const Point* __restrict__ masks,
                                        const Geometry& geometry) {
    const int row = team.row + tile_row, pixels = geometry.columns - team.column;
    const bool row_exists = team.exists && tile_row < TILE && row < geometry.rows;
    // of the row's first pixel; from there on int is enough
    const size_t pixel = (team.image * geometry.rows + row) * geometry.columns + team.column;
    const size_t first_point = (pixel * GROUPS + team.channel / GROUP_CHANNELS) * POINTS;
    const int own = member % TILE, part = member / TILE, at = own * GROUPS * POINTS + part;
#pragma unroll
    for (int i = 0; i < SHARE; ++i) {
      if (!row_exists || own >= pixels || part + i * PARTS >= POINTS) continue;
      offset[i] = load_two(offsets + 2 * (first_point + at + i * PARTS));
      mask[i] = load(masks + first_point + at + i * PARTS);
    }
    grads += pixel * CHANNELS + team.channel + member;
#pragma unroll
    for (int i = 0; i < TILE; ++i) grad[i] = row_exists && i < pixels ? load(grads + i * CHANNELS) : 0.f;
  }
};

// Where a prepared point goes: a cell of the window if not negative; nowhere; or, below that, a pixel of the image, its
// row and column counted from -1 and packed into 15 bits each.
constexpr int NOWHERE = -1;

struct Prepared {
  float4 weights;  // of the corners, mask included
  int target;
};

__device__ __forceinline__ Prepared prepare(float2 offset, float share, int point, int row, int column,
                                            const Team& team, const Geometry& geometry) {
  Prepared prepared{make_float4(0.f, 0.f, 0.f, 0.f), NOWHERE};
  if (!team.exists || row >= geometry.rows || column >= geometry.columns) return prepared;
  const Place place(offset, point, row, column, geometry);
  if (!place.inside) return prepared;
  const float below = share * place.below, above = share - below;
  const float below_right = below * place.right, above_right = above * place.right;
  prepared.weights = make_float4(above - above_right, above_right, below - below_right, below_right);
  const int x = place.x - (team.column * geometry.stride + geometry.first - MARGIN);
  const int y = place.y - (team.row * geometry.stride + geometry.first - MARGIN);
  const bool near = x >= 0 && x < WINDOW - 1 && y >= 0 && y < WINDOW - 1;
  prepared.target = near ? y * WINDOW + x : NOWHERE - 1 - ((place.y + 1) << 15 | (place.x + 1));
  return prepared;
}

// Adds one channel of a point outside the window; `total` is that channel of the image's first pixel.
__device__ __forceinline__ void add_far(Sum* __restrict__ total, int target, float4 weights, float grad, float unit,
                        const Geometry& geometry) {
  const int place = NOWHERE - 1 - target;
  const int x = (place & 0x7fff) - 1, y = (place >> 15) - 1;
  const float weight[4] = {weights.x, weights.y, weights.z, weights.w};
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    const int column = x + corner % 2, row = y + corner / 2;
    if (column < 0 || row < 0 || column >= geometry.width || row >= geometry.height) continue;
    const size_t pixel = static_cast<size_t>(row) * geometry.width + column;
    add(total + pixel * CHANNELS, weight[corner] * grad, unit);
  }
}

// total (B, H, W, C) float, or int64 with DETERMINISTIC. Grid: teams / TEAMS, rounded up.
extern "C" __global__ void __launch_bounds__(32)
    dcnv3_backward_input(const Value* __restrict__ grad, const Point* __restrict__ offset,
                         const Point* __restrict__ mask, Sum* __restrict__ total, const float* __restrict__ units,
                         int images, int height, int width, int rows, int columns, int stride, int first,
                         int dilation, float scale) {
  __shared__ float4 window[CELLS * 32 / 4];  // [cell][lane]
  __shared__ float4 weights[TEAMS * ROW_POINTS];
  __shared__ int targets[TEAMS * ROW_POINTS];
  const Geometry geometry{height, width, rows, columns, stride, first, dilation, scale};
  const int lane = threadIdx.x, member = lane % TEAM;
  const Team team(blockIdx.x * TEAMS + lane / TEAM, geometry, images);
  float unit = 1.f;
  if (DETERMINISTIC) unit = *units;
  Sum* image = total + team.image * height * width * CHANNELS + team.channel;

  Row fetched;
  fetched.fetch(team, 0, member, grad, offset, mask, geometry);
  for (int i = lane; i < CELLS * 32 / 4; i += 32) window[i] = make_float4(0.f, 0.f, 0.f, 0.f);
  for (int tile_row = 0; tile_row < TILE; ++tile_row) {
    __syncwarp();  // the points of the row before have been walked
#pragma unroll
    for (int i = 0; i < SHARE; ++i) {
      const int own = member % TILE, point = member / TILE + i * PARTS;
      if (point >= POINTS) break;
      const Prepared prepared = prepare(fetched.offset[i], fetched.mask[i], point, team.row + tile_row,
                                        team.column + own, team, geometry);
      const int slot = lane / TEAM * ROW_POINTS + own * POINTS + point;
      weights[slot] = prepared.weights;
      targets[slot] = prepared.target;
    }
    float gradient[TILE];
#pragma unroll
    for (int i = 0; i < TILE; ++i) gradient[i] = fetched.grad[i];
    __syncwarp();
    fetched.fetch(team, tile_row + 1, member, grad, offset, mask, geometry);

#pragma unroll
    for (int i = 0; i < TILE; ++i) {
      // All points of the pixel at once: nothing can be read ahead once the window is written to.
      float4 weight[POINTS];
      int target[POINTS], lowest = 0;
      const int slot = lane / TEAM * ROW_POINTS + i * POINTS;
#pragma unroll
      for (int point = 0; point < POINTS; ++point) {
        weight[point] = weights[slot + point];
        target[point] = targets[slot + point];
        lowest = min(lowest, target[point]);
      }
#pragma unroll
      for (int point = 0; point < POINTS; ++point) {
        // a point that goes elsewhere adds zero to the first cell: cheaper than a branch
        const float value = target[point] >= 0 ? gradient[i] : 0.f;
        float* cell = reinterpret_cast<float*>(window) + max(target[point], 0) * 32 + lane;
        const float a = cell[0], b = cell[32], c = cell[WINDOW * 32], d = cell[(WINDOW + 1) * 32];
        cell[0] = fmaf(weight[point].x, value, a);
        cell[32] = fmaf(weight[point].y, value, b);
        cell[WINDOW * 32] = fmaf(weight[point].z, value, c);
        cell[(WINDOW + 1) * 32] = fmaf(weight[point].w, value, d);
      }
      if (lowest < NOWHERE) {
        unsigned far = 0;
#pragma unroll
        for (int point = 0; point < POINTS; ++point) far |= (target[point] < NOWHERE ? 1u : 0u) << point;
        for (; far; far &= far - 1) {
          const int from = slot + __ffs(far) - 1;
          add_far(image + member, targets[from], weights[from], gradient[i], unit, geometry);
        }
      }
    }
  }
  __syncwarp();

  if (!team.exists) return;
  // A team empties four cells at a time, a quarter of its lanes each.
  const int quarter = TEAM / 4, quad = member % quarter;
  const int left = team.column * stride + first - MARGIN, top = team.row * stride + first - MARGIN;
  for (int cell = member / quarter; cell < CELLS; cell += 4) {
    const int x = left + cell % WINDOW, y = top + cell / WINDOW;
    if (x < 0 || y < 0 || x >= width || y >= height) continue;
    const size_t pixel = static_cast<size_t>(y) * width + x;
    add(image + pixel * CHANNELS + 4 * quad, window[cell * 8 + lane / TEAM * quarter + quad], unit);
  }
}
