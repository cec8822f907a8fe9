// Depthwise convolution, backward: adds up the blocks' sums of the gradients of weight and bias, in a fixed order.
//
// A block adds 32 neighbouring numbers; its 8 warps take every 8th chunk each and meet in shared memory. Reads the
// parts once, a few MB that the L2 still holds: about 3 us. Not measured.

constexpr int WARPS = 8;

// parts (chunks, taps + 1, C), weight_grad (C, taps), bias_grad (C) or missing. Grid: (taps + 1) * C / 32, rounded up.
extern "C" __global__ void __launch_bounds__(WARPS * 32)
    depthwise_conv_sum_chunks(const float* __restrict__ parts, float* __restrict__ weight_grad,
                              float* __restrict__ bias_grad, int chunks, int taps, int channels) {
  __shared__ float sums[WARPS][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int index = blockIdx.x * 32 + lane, count = (taps + 1) * channels;
  float sum = 0.f;
  if (index < count) {
#pragma unroll 4
    for (int chunk = warp; chunk < chunks; chunk += WARPS) sum += parts[static_cast<size_t>(chunk) * count + index];
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp || index >= count) return;
#pragma unroll
  for (int other = 1; other < WARPS; ++other) sum += sums[other][lane];
  const int tap = index / channels, channel = index % channels;
  if (tap < taps)
    weight_grad[static_cast<size_t>(channel) * taps + tap] = sum;
  else if (bias_grad)
    bias_grad[channel] = sum;
}
