// DCNv3, forward: one pass, nothing between input and output in memory.
//
// gather.cuh says who does what. For each point a thread leaves the four corner weights, mask included, and the
// upper left pixel; a corner that is outside, or does not count, has weight zero and is not read.
//
// Limits for a batch of 8 NYU maps at 1/4 of T (120x160, C = 64) on an H100: bfloat16 moves 72 MB (24 us at 3.0 TB/s;
// 106 MB with float offsets), reads 0.71 GB from L1 (24 us) and takes 1250 instructions for 8 channels (52 us of
// issue); float: 145 MB, 1.4 GB from L1, 700 instructions for 4 channels (58 us of issue). The 30 calls of T in
// bfloat16 have 11 times that limit, 0.57 ms, and took 0.75: 76 %.
#include "gather.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 4)
    dcnv3_forward(const Value* __restrict__ input, const Point* __restrict__ points, Value* __restrict__ output,
                  int height, int width, int rows, int columns, int stride, int first, int dilation, float scale) {
  __shared__ float4 weights[PAIRS * POINTS];
  __shared__ int pixels[PAIRS * POINTS];
  const Geometry geometry{height, width, rows, columns, stride, first, dilation, scale};
  const Block block(geometry);
  const int own = threadIdx.x / LANES, part = threadIdx.x % LANES;
  const Pair pair(block, own, geometry);

  const Fetched fetched(points + block.pixel * POINT_ROW, pair, part);
#pragma unroll
  for (int i = 0; i < SHARE; ++i) {
    const int point = part + i * LANES;
    if (point >= POINTS) break;
    const Place place(fetched.offset[i], point, pair.row, pair.column, geometry);
    const float share = place.inside ? fetched.mask[i] : 0.f;
    const bool left = place.x >= 0, right = place.x + 1 < width, top = place.y >= 0, bottom = place.y + 1 < height;
    const float below = share * place.below, above = share - below;
    const float below_right = below * place.right, above_right = above * place.right;
    weights[own * POINTS + point] = make_float4(
        top && left ? above - above_right : 0.f, top && right ? above_right : 0.f,
        bottom && left ? below - below_right : 0.f, bottom && right ? below_right : 0.f);
    pixels[own * POINTS + point] = place.y * width + place.x;
  }
  __syncwarp();
  if (!pair.exists) return;

  const Channels channels(input, block, pair.group, part, geometry);
  float sum[VECTOR] = {};
#pragma unroll
  for (int point = 0; point < POINTS; ++point) {
    const float4 weight = weights[own * POINTS + point];
    const float share[4] = {weight.x, weight.y, weight.z, weight.w};
    const bool wanted[4] = {weight.x != 0.f, weight.y != 0.f, weight.z != 0.f, weight.w != 0.f};
    float4 raw[4];
    channels.read(pixels[own * POINTS + point], wanted, raw);
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      float value[VECTOR];
      unpack(raw[corner], value, Value());
#pragma unroll
      for (int c = 0; c < VECTOR; ++c) sum[c] = fmaf(share[corner], value[c], sum[c]);
    }
  }
  output += block.pixel * CHANNELS + pair.pixel * CHANNELS + pair.group * GROUP_CHANNELS;
  reinterpret_cast<float4*>(output)[part] = pack(sum, Value());
}
