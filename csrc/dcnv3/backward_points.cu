// DCNv3, backward: gradients of offset and mask. On the way it clears the sums of dcnv3_backward_input, which runs
// next.
//
// With d_c the product of the output's gradient and the input at corner c, summed over the group's channels, the
// mask's gradient is the d_c interpolated, and the slopes of that along x and y, times the mask and the scale, are the
// offset's. A logit's gradient is the mask times what the mask's differs from its mean over the points. gather.cuh says
// who does what: each thread multiplies its own channels, shuffles add up the threads of a pair, and the sums go back
// through shared memory, from where they are written in the order of memory. Nothing is atomic: two runs give the same
// bits.
//
// Limits for a batch of 8 NYU maps at 1/4 of T (120x160, C = 64) on an H100: bfloat16 moves 145 MB (48 us), of which 39
// are cleared, and takes about 1700 instructions for 8 channels (70 us of issue); float: 1200 for 4 channels (100 us).
// The 30 calls of T in bfloat16 have 11 times that limit, 0.77 ms, and took 1.24: 62 %.
#include "gather.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 4)
    dcnv3_backward_points(const Value* __restrict__ grad, const Value* __restrict__ input,
                          const Point* __restrict__ points, Point* __restrict__ grad_points,
                          float4* __restrict__ cleared, long long cleared_count, int height, int width, int rows,
                          int columns, int stride, int first, int dilation, float scale) {
  // Of each point first: distances right and below, upper left pixel, bits of the corners that exist. Then: gradient
  // along x, along y (both to be multiplied by the scale), and of the mask.
  __shared__ float4 prepared[PAIRS * POINTS];
  __shared__ float shares[PAIRS * POINTS];  // mask
  __shared__ float means[PAIRS];            // of the masks' gradients, weighted with the masks
  const Geometry geometry{height, width, rows, columns, stride, first, dilation, scale};
  const Block block(geometry);
  const int own = threadIdx.x / LANES, part = threadIdx.x % LANES;
  const Pair pair(block, own, geometry);

  const long long blocks = static_cast<long long>(gridDim.x) * gridDim.y * gridDim.z;
  const long long own_block = (static_cast<long long>(blockIdx.z) * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  for (long long i = own_block * THREADS + threadIdx.x; i < cleared_count; i += blocks * THREADS)
    cleared[i] = make_float4(0.f, 0.f, 0.f, 0.f);

  const Fetched fetched(points + block.pixel * POINT_ROW, pair, part);
  float4 raw_gradient = make_float4(0.f, 0.f, 0.f, 0.f);
  if (pair.exists) {
    grad += block.pixel * CHANNELS + pair.pixel * CHANNELS + pair.group * GROUP_CHANNELS;
    raw_gradient = __ldg(reinterpret_cast<const float4*>(grad) + part);
  }
#pragma unroll
  for (int i = 0; i < SHARE; ++i) {
    const int point = part + i * LANES;
    if (point >= POINTS) break;
    const Place place(fetched.offset[i], point, pair.row, pair.column, geometry);
    const int left = place.x >= 0, right = place.x + 1 < width, top = place.y >= 0, bottom = place.y + 1 < height;
    const int exist = (top & left) | (top & right) << 1 | (bottom & left) << 2 | (bottom & right) << 3;
    prepared[own * POINTS + point] =
        make_float4(place.right, place.below, __int_as_float(place.y * width + place.x),
                    __int_as_float(pair.exists && place.inside ? exist : 0));
    shares[own * POINTS + point] = fetched.mask[i];
  }
  __syncwarp();

  const Channels channels(input, block, pair.group, part, geometry);
  float gradient[VECTOR];
  unpack(raw_gradient, gradient, Value());
  float mean = 0.f;
#pragma unroll 1  // 32 warps a multiprocessor hide the latency; unrolled, registers spill
  for (int point = 0; point < POINTS; ++point) {
    const float4 place = prepared[own * POINTS + point];
    const unsigned exist = __float_as_uint(place.w);
    const bool wanted[4] = {(exist & 1) != 0, (exist & 2) != 0, (exist & 4) != 0, (exist & 8) != 0};
    float4 raw[4];
    channels.read(static_cast<int>(__float_as_uint(place.z)), wanted, raw);
    float product[4] = {};
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      float value[VECTOR];
      unpack(raw[corner], value, Value());
#pragma unroll
      for (int c = 0; c < VECTOR; ++c) product[corner] = fmaf(gradient[c], value[c], product[corner]);
    }
    const float right = place.x, below = place.y;
    const float slope_above = product[1] - product[0], slope_below = product[3] - product[2];
    const float above = fmaf(right, slope_above, product[0]);
    float along_y = fmaf(right, slope_below, product[2]) - above;
    float along_x = fmaf(below, slope_below - slope_above, slope_above);
    float sampled = fmaf(below, along_y, above);
#pragma unroll
    for (int other = LANES / 2; other > 0; other /= 2) {
      along_x += __shfl_xor_sync(~0u, along_x, other);
      along_y += __shfl_xor_sync(~0u, along_y, other);
      sampled += __shfl_xor_sync(~0u, sampled, other);
    }
    const float share = shares[own * POINTS + point];
    mean = fmaf(share, sampled, mean);
    // Every thread of the pair has read this point: its part of the sums came from there.
    if (part == 0) prepared[own * POINTS + point] = make_float4(along_x * share, along_y * share, sampled, share);
  }
  if (part == 0) means[own] = mean;
  __syncwarp();

  // Written in the order of memory: neighbouring lanes, neighbouring points.
  constexpr int WARP_PAIRS = 32 / LANES, WARP_POINTS = WARP_PAIRS * POINTS;
  const int first_pair = threadIdx.x / 32 * WARP_PAIRS;
  grad_points += block.pixel * POINT_ROW;
  for (int i = threadIdx.x % 32; i < WARP_POINTS; i += 32) {
    const int member = first_pair + i / POINTS, point = i % POINTS;
    const Pair written(block, member, geometry);
    if (!written.exists) continue;
    const float4 sums = prepared[member * POINTS + point];
    Point* row = grad_points + written.pixel * POINT_ROW;
    store_offset(row + offset_at(written.group, point), sums.x * scale, sums.y * scale);
    store(row + mask_at(written.group, point), SOFTMAX ? sums.w * (sums.z - means[member]) : sums.z);
  }
  if (POINT_ROW > USED_ROW && pair.exists && pair.group == 0)
    for (int i = USED_ROW + part; i < POINT_ROW; i += LANES) store(grad_points + pair.pixel * POINT_ROW + i, 0.f);
}
