// DCNv3, backward: gradients of offset and mask.
//
// With d_c the product of the output's gradient and the input at corner c, summed over the group's channels, the
// mask's gradient is the d_c interpolated, and the slopes of that along x and y, times the mask and the scale, are the
// offset's. Who does what stands in gather.cuh: each thread multiplies its own channels, shuffles add up the threads of
// a pair, and the sums go back through shared memory, from where they are written in the order of memory. Nothing is
// atomic: two runs give the same bits.
//
// The traffic of the forward pass, with the output's gradient for the output, and gradients of offset and mask on top:
// for a batch of 8 NYU maps at 1/4 of T in bfloat16 172 MB (57 us on an H100), about 1650 instructions for 8 channels
// (68 us of issue), in float 1150 for 4 channels (95 us). Measured fraction of that limit: not measured.
#include "gather.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 4)
    dcnv3_backward_points(const Value* __restrict__ grad, const Value* __restrict__ input,
                          const Point* __restrict__ offset, const Point* __restrict__ mask,
                          Point* __restrict__ grad_offset, Point* __restrict__ grad_mask, int height, int width,
                          int rows, int columns, int stride, int first, int dilation, float scale) {
  // Of each point first: distances right and below, upper left pixel, bits of the corners that exist. Then: gradient
  // along x, along y (both to be multiplied by the scale), and of the mask.
  __shared__ float4 points[PAIRS * POINTS];
  __shared__ float shares[PAIRS * POINTS];  // mask
  const Geometry geometry{height, width, rows, columns, stride, first, dilation, scale};
  const Block block(geometry);
  const int own = threadIdx.x / LANES, part = threadIdx.x % LANES;
  const Pair pair(block, own, geometry);

  const Fetched fetched(offset + block.pair * POINTS * 2, mask + block.pair * POINTS, pair, part);
  float4 raw_gradient = make_float4(0.f, 0.f, 0.f, 0.f);
  if (pair.exists)
    raw_gradient =
        __ldg(reinterpret_cast<const float4*>(grad + block.pair * GROUP_CHANNELS) + pair.index * LANES + part);
#pragma unroll
  for (int i = 0; i < SHARE; ++i) {
    const int point = part + i * LANES;
    if (point >= POINTS) break;
    const Place place(fetched.offset[i], point, pair.row, pair.column, geometry);
    const int left = place.x >= 0, right = place.x + 1 < width, top = place.y >= 0, bottom = place.y + 1 < height;
    const int exist = (top & left) | (top & right) << 1 | (bottom & left) << 2 | (bottom & right) << 3;
    points[own * POINTS + point] =
        make_float4(place.right, place.below, __int_as_float(place.y * width + place.x),
                    __int_as_float(pair.exists && place.inside ? exist : 0));
    shares[own * POINTS + point] = fetched.mask[i];
  }
  __syncwarp();

  const Channels channels(input, block, pair.group, part, geometry);
  float gradient[VECTOR];
  unpack(raw_gradient, gradient, Value());
#pragma unroll 1  // 32 warps a multiprocessor hide the latency; unrolled, registers spill
  for (int point = 0; point < POINTS; ++point) {
    const float4 prepared = points[own * POINTS + point];
    const unsigned exist = __float_as_uint(prepared.w);
    const bool wanted[4] = {(exist & 1) != 0, (exist & 2) != 0, (exist & 4) != 0, (exist & 8) != 0};
    float4 raw[4];
    channels.read(static_cast<int>(__float_as_uint(prepared.z)), wanted, raw);
    float product[4] = {};
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      float value[VECTOR];
      unpack(raw[corner], value, Value());
#pragma unroll
      for (int c = 0; c < VECTOR; ++c) product[corner] = fmaf(gradient[c], value[c], product[corner]);
    }
    const float right = prepared.x, below = prepared.y;
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
    // Every thread of the pair has read this point: its part of the sums came from there.
    if (part == 0) {
      const float share = shares[own * POINTS + point];
      points[own * POINTS + point] = make_float4(along_x * share, along_y * share, sampled, 0.f);
    }
  }
  __syncwarp();

  // Written in the order of memory: neighbouring lanes, neighbouring points.
  constexpr int WARP_POINTS = 32 / LANES * POINTS;
  grad_offset += block.pair * POINTS * 2;
  grad_mask += block.pair * POINTS;
  for (int i = threadIdx.x % 32; i < WARP_POINTS; i += 32) {
    const int slot = threadIdx.x / 32 * WARP_POINTS + i;
    const Pair written(block, slot / POINTS, geometry);
    if (!written.exists) continue;
    const int at = written.index * POINTS + slot % POINTS;
    const float4 sums = points[slot];
    store_two(grad_offset + 2 * at, sums.x * scale, sums.y * scale);
    store(grad_mask + at, sums.z);
  }
}
