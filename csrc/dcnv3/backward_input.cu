// DCNv3, backward: gradient of the input, added to `total`, which dcnv3_backward_points has cleared.
//
// Adding 36 numbers for each element of the output, in global or in shared memory, is slow: each addition waits for the
// previous one. But all channels of a group are added with the same weights, so this is a product of matrices: for 8
// neighbouring outputs of a row, (input pixels x outputs) times (outputs x channels). Only the weights are scattered,
// one number for 16 channels, and tensor cores multiply.
//
// A warp owns SLAB channels of a group and a strip of output 8 pixels wide, and walks down its rows. It keeps the sums
// of a window of the input in registers: 16 columns and BAND rows around the row where it is. For each row
//   1. four lanes a pixel prepare its points, once for all channels;
//   2. the same four lanes scatter the weights into a sparse matrix in shared memory, [window row][column][output]. Of
//      the four corners of any point each has another parity of (row, column), and each lane adds those of one parity:
//      no two lanes meet;
//   3. window rows that got anything are multiplied, and cleared again. Weights (and float gradients) are split into
//      two numbers of 11 bits, which makes the products as good as float's;
//   4. the window's uppermost row goes to global memory, four channels an atomic, zeros left out, and the window moves
//      down.
// A point whose corners do not all lie in the window goes to global memory directly.
//
// For 8 outputs of 16 channels, of a group whose offsets are below one pixel, that is about 650 instructions and one
// and a half times the output as atomics. Limits for a batch of 8 NYU maps at 1/4 of T (120x160, C = 64) on an H100:
// 54 us of issue, 55 MB of atomics. The 30 calls of T in bfloat16 have 11 times that, 0.59 ms, and took 1.39: 43 %.
//
// With -DDETERMINISTIC=1 `total` is int64 in fixed point and `units` points to the number of its units in 1 (a power of
// two, small enough that nothing overflows): sums of integers do not depend on their order.
// A gradient that is not finite makes all of its window not finite.
#include "dcnv3.cuh"

constexpr int TILE = 8;                                   // outputs side by side
constexpr int COLUMNS = 16, BAND = 10;                    // of the window
constexpr int MARGIN = 4;                                 // from the window's first row or column to the output's
constexpr int SLAB = GROUP_CHANNELS < 16 ? GROUP_CHANNELS : 16;
constexpr int SLABS = CHANNELS / SLAB;
constexpr int WARPS = SLABS % 4 == 0 ? 4 : SLABS % 2 == 0 ? 2 : 1;  // of a block: neighbouring channels
constexpr int PARTS = 32 / TILE;                          // lanes of an output
constexpr int SHARE = (POINTS + PARTS - 1) / PARTS;       // points that a lane prepares
constexpr int HALVES = SLAB / 8;                          // products of 8 channels side by side
constexpr bool EXACT = sizeof(Value) == 2;                // the output's gradient fits into 11 bits
// Between rows of the matrix; 16 more than what they hold, so that the four corners of a point lie in different banks.
constexpr int MATRIX_ROW = COLUMNS * TILE + 16;

#if DETERMINISTIC
using Sum = unsigned long long;
__device__ __forceinline__ void add(Sum* to, float value, float unit) {
  if (value != 0.f) atomicAdd(to, static_cast<Sum>(__float2ll_rn(value * unit)));
}
#else
using Sum = float;
__device__ __forceinline__ void add(Sum* to, float value, float) {
  if (value != 0.f) atomicAdd(to, value);
}
#endif

// Adds neighbouring channels.
__device__ __forceinline__ void add(Sum* to, const float (&values)[2], float unit) {
  add(to, values[0], unit);
  add(to + 1, values[1], unit);
}
__device__ __forceinline__ void add(Sum* to, const float (&values)[4], float unit) {
#if DETERMINISTIC
#pragma unroll
  for (int i = 0; i < 4; ++i) add(to + i, values[i], unit);
#else
  if (values[0] != 0.f || values[1] != 0.f || values[2] != 0.f || values[3] != 0.f)
    add_four(to, make_float4(values[0], values[1], values[2], values[3]));
#endif
}

// A warp's place: warps run over channels first, then columns, strips of rows and images.
struct Strip {
  int group, channel, column, row, end;  // the first of its channels, columns and rows; the row after its last
  size_t image;
  bool exists;

  __device__ Strip(unsigned index, const Geometry& geometry, int images, int strip_rows) {
    const unsigned across = (geometry.columns + TILE - 1) / TILE;
    const unsigned down = (geometry.rows + strip_rows - 1) / strip_rows;
    channel = index % SLABS * SLAB;
    group = channel / GROUP_CHANNELS;
    index /= SLABS;
    column = index % across * TILE;
    index /= across;
    row = index % down * strip_rows;
    end = min(row + strip_rows, geometry.rows);
    image = index / down;
    exists = image < images;
  }
};

// The column of a product's channels that a lane has in its half, as a factor and as a sum (columns 2q and 2q + 1 of
// the halves together are 2 HALVES neighbouring channels, so that a lane adds them to global memory at once).
__device__ __forceinline__ int channel_of(int column, int half) {
  return column / 2 * 2 * HALVES + 2 * half + column % 2;
}

// An offset as it stands in memory.
template <class T> struct RawOffsetOf { using type = unsigned; };
template <> struct RawOffsetOf<float> { using type = float2; };
using RawOffset = RawOffsetOf<Point>::type;

__device__ __forceinline__ void fetch_offset(const float* from, float2* raw) {
  *raw = POINT_ROW % 2 == 0 ? load_two(from) : make_float2(from[0], from[1]);
}
template <class T>
__device__ __forceinline__ void fetch_offset(const T* from, unsigned* raw) {
  *raw = POINT_ROW % 2 == 0 ? *reinterpret_cast<const unsigned*>(from) : from[0].bits | from[1].bits << 16;
}
__device__ __forceinline__ float2 unpack(float2 raw, float) { return raw; }

// What a lane fetches ahead for one row of outputs: points part, part + PARTS, ... of its output, to be prepared, and
// its share of the gradients as a factor. As it stands in memory: whatever touched it now would wait for it.
struct Row {
  RawOffset offset[SHARE];
  Point mask[SHARE];
  Value grad[HALVES][2];
};

// Fetches rows one after the other.
struct Fetcher {
  const Point *offsets, *masks;  // of the lane's first point
  const Value* grads;            // of the lane's first output and channel
  size_t point_step, grad_step;  // to the next row
  int row, end;
  bool points_exist, outputs_exist[2];

  __device__ Fetcher(const Strip& strip, int lane, const Value* __restrict__ grad, const Point* __restrict__ points,
                     const Geometry& geometry)
      : point_step(static_cast<size_t>(geometry.columns) * POINT_ROW),
        grad_step(static_cast<size_t>(geometry.columns) * CHANNELS), row(strip.row), end(strip.end) {
    const int pixels = geometry.columns - strip.column, own = lane % TILE, part = lane / TILE;
    const size_t pixel = (strip.image * geometry.rows + row) * geometry.columns + strip.column;
    points += pixel * POINT_ROW + own * POINT_ROW;
    offsets = points + offset_at(strip.group, part);
    masks = points + mask_at(strip.group, part);
    grads = grad + pixel * CHANNELS + strip.channel + lane % 4 * CHANNELS + channel_of(lane / 4, 0);
    points_exist = own < pixels;
    for (int i = 0; i < 2; ++i) outputs_exist[i] = lane % 4 + 4 * i < pixels;
  }

  // The next row, or zeros after the last one.
  __device__ __forceinline__ void fetch(Row& next, int part) {
#pragma unroll
    for (int i = 0; i < SHARE; ++i) {
      next.offset[i] = RawOffset();
      next.mask[i] = Point();
      if (row < end && points_exist && part + i * PARTS < POINTS) {
        fetch_offset(offsets + 2 * i * PARTS, &next.offset[i]);
        next.mask[i] = masks[i * PARTS];
      }
    }
#pragma unroll
    for (int half = 0; half < HALVES; ++half)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        next.grad[half][i] = row < end && outputs_exist[i] ? grads[4 * i * CHANNELS + 2 * half] : Value();
    ++row;
    offsets += point_step;
    masks += point_step;
    grads += grad_step;
  }
};

// What a point adds along one axis: to the window's even and to its odd column (or row), each a weight and the place in
// the matrix, as an integer's bits. `cell` is the first of the two columns, `rest` the distance from there.
__device__ __forceinline__ float4 along(int cell, float rest, float factor, int step) {
  const bool odd = cell & 1;
  const float first = factor - factor * rest, second = factor * rest;
  return make_float4(odd ? second : first, __int_as_float((cell + 1 & ~1) * step), odd ? first : second,
                     __int_as_float((cell | 1) * step));
}

// A point outside the window: the pixel of its upper left corner, which may be -1, the distances from there, and its
// mask.
struct alignas(16) FarPoint {
  short x, y;
  float right, below, mask;
};

// Adds a far point: a lane 4 (or 2) channels of one corner. `total` is the image's first pixel, `grads` the output's,
// both from the warp's first channel.
__device__ __forceinline__ void add_far(Sum* __restrict__ total, const Value* __restrict__ grads, FarPoint point,
                                        int lane, float unit, const Geometry& geometry) {
  constexpr int WIDTH = 2 * HALVES;
  const int corner = lane / 4, channel = lane % 4 * WIDTH;
  if (corner >= 4) return;
  const int column = point.x + corner % 2, row = point.y + corner / 2;
  if (column < 0 || row < 0 || column >= geometry.width || row >= geometry.height) return;
  const float across = corner % 2 ? point.right : 1.f - point.right;
  const float down = corner / 2 ? point.below : 1.f - point.below;
  const float weight = point.mask * across * down;
  float values[WIDTH];
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) values[i] = weight * load(grads + channel + i);
  add(total + (static_cast<size_t>(row) * geometry.width + column) * CHANNELS + channel, values, unit);
}

// Adds a row of the window, as products leave it, to a row of the image; both may lie outside of each other. `total` is
// the image's first pixel, from the warp's first channel.
__device__ __forceinline__ void empty(const float (&sums)[HALVES][4], Sum* __restrict__ total, int row, int left,
                                      int lane, float unit, const Geometry& geometry) {
  if (row < 0 || row >= geometry.height) return;
  total += static_cast<size_t>(row) * geometry.width * CHANNELS + lane % 4 * 2 * HALVES;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int column = left + lane / 4 + 8 * i;
    if (column < 0 || column >= geometry.width) continue;
    float values[2 * HALVES];
#pragma unroll
    for (int j = 0; j < 2 * HALVES; ++j) values[j] = sums[j / 2][2 * i + j % 2];
    add(total + column * CHANNELS, values, unit);
  }
}

// total (B, H, W, C) float, or int64 with DETERMINISTIC. Grid: strips times SLABS, by WARPS.
extern "C" __global__ void __launch_bounds__(32 * WARPS, 12 / WARPS)
    dcnv3_backward_input(const Value* __restrict__ grad, const Point* __restrict__ points, Sum* __restrict__ total,
                         const float* __restrict__ units, int images, int strip_rows, int height, int width, int rows,
                         int columns, int stride, int first, int dilation, float scale) {
  __shared__ float4 matrices[WARPS][BAND * MATRIX_ROW / 4];
  __shared__ float4 points_across[WARPS][TILE * POINTS], points_down[WARPS][TILE * POINTS];
  __shared__ FarPoint far_points[WARPS][32];
  const Geometry geometry{height, width, rows, columns, stride, first, dilation, scale};
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const Strip strip(blockIdx.x * WARPS + warp, geometry, images, strip_rows);
  if (!strip.exists) return;  // warps do not wait for each other
  float* matrix = reinterpret_cast<float*>(matrices[warp]);
  float unit = 1.f;
  if (DETERMINISTIC) unit = *units;
  total += strip.image * height * width * CHANNELS + strip.channel;
  const int own = lane % TILE, part = lane / TILE;
  const int left = strip.column * stride + first - MARGIN;  // of the window

  // Of the lane's points, without offsets: where in the window.
  float window_x[SHARE], window_y[SHARE];
#pragma unroll
  for (int i = 0; i < SHARE; ++i) {
    const int point = part + i * PARTS, whole = REMOVE_CENTER && point >= 4 ? point + 1 : point;
    window_x[i] =
        fmaf(static_cast<float>((whole / 3 - 1) * dilation), scale, static_cast<float>(own * stride + MARGIN));
    window_y[i] = fmaf(static_cast<float>((whole % 3 - 1) * dilation), scale, static_cast<float>(MARGIN));
  }
  // The corners that the lane scatters: of its output, and of one parity. Outputs in the matrix stand as 0, 4, 1, 5,
  // ...: a lane's two factors side by side.
  const float2* across = reinterpret_cast<const float2*>(points_across[warp] + own * POINTS) + part % 2;
  const float2* down = reinterpret_cast<const float2*>(points_down[warp] + own * POINTS) + part / 2;
  float* scattered = matrix + own % 4 * 2 + own / 4;

  Fetcher fetcher(strip, lane, grad, points, geometry);
  Row fetched;
  fetcher.fetch(fetched, part);
  for (int i = lane; i < BAND * MATRIX_ROW / 4; i += 32) matrices[warp][i] = make_float4(0.f, 0.f, 0.f, 0.f);
  float sums[BAND][HALVES][4] = {};
  unsigned held = 0;  // rows of the window that have sums
#pragma unroll 1
  for (int row = strip.row; row < strip.end; ++row) {
    const int top = row * stride + first - MARGIN;  // of the window
    unsigned filled = 0;                            // rows of the window
    bool far[SHARE];
    float x[SHARE], y[SHARE], masks[SHARE];
#pragma unroll
    for (int i = 0; i < SHARE; ++i) masks[i] = load(&fetched.mask[i]);
    normalize<PARTS, TILE>(masks, part);
#pragma unroll
    for (int i = 0; i < SHARE; ++i) {
      const int point = part + i * PARTS;
      const float2 offset = unpack(fetched.offset[i], Point());
      x[i] = fmaf(offset.x, scale, window_x[i]);
      y[i] = fmaf(offset.y, scale, window_y[i]);
      const bool exists = fetcher.points_exist && point < POINTS;
      // cells outside the image get their share, too, and drop it; a coordinate that is not a number is nowhere
      const bool near = x[i] >= 0.f && x[i] < COLUMNS - 1 && y[i] >= 0.f && y[i] < BAND - 1;
      far[i] = exists && !near;
      const int cell_x = near ? static_cast<int>(x[i]) : 0, cell_y = near ? static_cast<int>(y[i]) : 0;
      const float mask = exists && near ? masks[i] : 0.f;
      if (point < POINTS) {
        points_across[warp][own * POINTS + point] = along(cell_x, near ? x[i] - cell_x : 0.f, 1.f, TILE);
        points_down[warp][own * POINTS + point] = along(cell_y, near ? y[i] - cell_y : 0.f, mask, MATRIX_ROW);
      }
      if (exists && near) filled |= 3u << cell_y;
    }
    filled = __reduce_or_sync(~0u, filled);
#pragma unroll
    for (int i = 0; i < SHARE; ++i) {
      if (!__ballot_sync(~0u, far[i])) continue;
      if (far[i]) {
        const float px = x[i] + left, py = y[i] + top, across_from = floorf(px), down_from = floorf(py);
        far[i] = px >= -1.f && px < width && py >= -1.f && py < height;
        far_points[warp][lane] = {static_cast<short>(across_from), static_cast<short>(down_from), px - across_from,
                                  py - down_from, masks[i]};
      }
      __syncwarp();
      const Value* grads = grad + ((strip.image * rows + row) * columns + strip.column) * CHANNELS + strip.channel;
      for (unsigned lanes = __ballot_sync(~0u, far[i]); lanes; lanes &= lanes - 1) {
        const int from = __ffs(lanes) - 1;
        add_far(total, grads + from % TILE * CHANNELS, far_points[warp][from], lane, unit, geometry);
      }
      __syncwarp();
    }

    __syncwarp();
    // All weights and places first: nothing can be read ahead once the matrix is written to.
    float weight[POINTS];
    int place[POINTS];
#pragma unroll
    for (int i = 0; i < POINTS; ++i) {
      const float2 column = across[2 * i], line = down[2 * i];
      weight[i] = column.x * line.x;
      place[i] = static_cast<int>(__float_as_uint(column.y) + __float_as_uint(line.y));
    }
    // a point that goes elsewhere adds zero to the window's first cells: cheaper than a branch
#pragma unroll
    for (int i = 0; i < POINTS; ++i) scattered[place[i]] += weight[i];
    __syncwarp();

    unsigned factors[HALVES][2], rests[HALVES][2];
#pragma unroll
    for (int half = 0; half < HALVES; ++half)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float gradient = load(&fetched.grad[half][i]);
        factors[half][i] = EXACT ? __float_as_uint(gradient) : to_tf32(gradient);
        rests[half][i] = __float_as_uint(gradient - __uint_as_float(factors[half][i]));
      }
    fetcher.fetch(fetched, part);
#pragma unroll
    for (int y = 0; y < BAND; ++y) {
      if (!(filled >> y & 1)) continue;
      // columns lane / 4 and 8 to the right, of outputs lane % 4 and lane % 4 + 4 each
      float2* near = reinterpret_cast<float2*>(matrix + y * MATRIX_ROW) + lane;
      const float2 one = near[0], other = near[COLUMNS * TILE / 4];
      near[0] = near[COLUMNS * TILE / 4] = make_float2(0.f, 0.f);
      const float weights[4] = {one.x, other.x, one.y, other.y};
      unsigned high[4], low[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        high[i] = EXACT ? __float_as_uint(weights[i]) & 0xffffe000u : to_tf32(weights[i]);
        low[i] = __float_as_uint(weights[i] - __uint_as_float(high[i]));
      }
#pragma unroll
      for (int half = 0; half < HALVES; ++half) {
        mma_tf32(sums[y][half], low, factors[half]);
        if (!EXACT) mma_tf32(sums[y][half], high, rests[half]);
        mma_tf32(sums[y][half], high, factors[half]);
      }
    }
    __syncwarp();

    held |= filled;
    for (int step = 0; step < stride; ++step) {
      if (held & 1) empty(sums[0], total, top + step, left, lane, unit, geometry);
      held >>= 1;
#pragma unroll
      for (int y = 0; y < BAND; ++y)
#pragma unroll
        for (int half = 0; half < HALVES; ++half)
#pragma unroll
          for (int i = 0; i < 4; ++i) sums[y][half][i] = y + 1 < BAND ? sums[y + 1][half][i] : 0.f;
    }
  }
#pragma unroll
  for (int y = 0; y + 1 < BAND; ++y)
    if (held >> y & 1) empty(sums[y], total, strip.end * stride + first - MARGIN + y, left, lane, unit, geometry);
}
