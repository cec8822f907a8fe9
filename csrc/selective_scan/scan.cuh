// Shared by the kernels of the four-direction selective scan.
//
// For direction k, channel c and state n, along the tokens in the order of the direction:
//     dt_t = softplus(W_dt[k, c] . r_t + bias[k, c])
//     h_t  = exp(dt_t A[k, c, n]) h_{t-1} + dt_t x_t B_t[n]          A = -exp(a_log)
//     y_t  = sum_n C_t[n] h_t
// r, B and C are one row of `projected` for each token and direction. Tensors stay in the order of the image's
// rows (token-major, channels last); a direction is only an order in which their rows are visited.
//
// Mapping, the same in all scanning kernels: a block owns 64 channels of one image, one direction and one
// segment of its tokens. A team of SPLIT lanes owns two neighbouring channels; lane q of the team keeps 16 / SPLIT
// states of both in registers and walks the tokens in sequence. What is needed once for each token and channel (dt,
// loads, stores) is divided among the team: lane q does it for the tokens SPLIT * i + q. Lanes of a team are TEAMS
// apart in their warp, so that tensor cores can add up over teams.
//
// x, y and the gradients of both are Values (values.cuh), all else is float.
//
// Compile with -DRANK=R, the rank of dt, a multiple of 4, and -DVALUE_TYPE=.
#pragma once
#include "values.cuh"

#ifndef SA2DEPTH_EMULATED  // tests run the same sources on the CPU, with their own versions of the code below
#define DYNAMIC_SHARED(name) extern __shared__ float4 name[]

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Copies 16 bytes to shared memory in the background; zeros if there is no such row.
__device__ __forceinline__ void copy_async(float4* shared, const float4* global, bool exists) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(exists ? 16 : 0)
               : "memory");
}

__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// A barrier of the whole block that threads may reach at different places of the program.
template <int threads>
__device__ __forceinline__ void meet() {
  asm volatile("bar.sync 1, %0;" ::"n"(threads) : "memory");
}
#endif

constexpr int STATES = 16;
constexpr int DIRECTIONS = 4;
// Teams of 8 lanes would double the warps and halve the registers, but every value read from shared memory would
// serve half as many states: the backward pass then took 8.7 instead of 8.1 ms.
constexpr int SPLIT = 4;
constexpr int OWNED = STATES / SPLIT;      // states of a lane, for each of its two channels
constexpr int PAIRS = 32;                  // channel pairs of a block
constexpr int CHANNELS = 2 * PAIRS;        // channels of a block
constexpr int THREADS = SPLIT * PAIRS;     // that walk
constexpr int WARPS = THREADS / 32;
constexpr int TEAMS = 32 / SPLIT;          // of a warp
constexpr int CHUNK = 64;                  // tokens between two saved states
constexpr int ROW = RANK + 2 * STATES;     // floats of a projected token
// Rows in shared memory are padded so that the tokens of a team lie in different banks.
constexpr int ROW_PADDED = ROW + 4;
constexpr int STEP_ROW = PAIRS + 2;        // of float4
constexpr int WEIGHT_ROW = RANK + 4;
constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;
static_assert(OWNED == 4, "lanes load and store their states as float4");
static_assert(RANK % 4 == 0 && RANK > 0, "pad the rank with zeros to a multiple of 4");

struct Image {
  int height, width;
  __device__ int length() const { return height * width; }

  // The token at a position of a direction's walk, -1 beyond its end. Directions: along rows, along columns, and
  // both from the last token to the first.
  __device__ int token(int position, int direction) const {
    if (position >= length()) return -1;
    const int forward = direction >= 2 ? length() - 1 - position : position;
    return direction & 1 ? (forward % height) * width + forward / height : forward;
  }
};

// log(1 + exp(x)). The polynomial is log(1 + e) / e on [0, 1], relative error 4e-8.
__device__ __forceinline__ float softplus(float x) {
  const float e = exp2_fast(-fabsf(x) * LOG2_E);
  float p = 5.105825790e-03f;
  p = fmaf(p, e, -2.899195635e-02f);
  p = fmaf(p, e, 7.738073832e-02f);
  p = fmaf(p, e, -1.359060023e-01f);
  p = fmaf(p, e, 1.907130958e-01f);
  p = fmaf(p, e, -2.483394546e-01f);
  p = fmaf(p, e, 3.331793432e-01f);
  p = fmaf(p, e, -4.999943569e-01f);
  p = fmaf(p, e, 9.999999652e-01f);
  return fmaf(p, e, fmaxf(x, 0.f));
}

// Derivative of softplus at the point where it has the value y: 1 - exp(-y), without cancellation for small y.
__device__ __forceinline__ float softplus_slope(float y) {
  float p = 1.f / 5040.f;
  p = fmaf(p, -y, 1.f / 720.f);
  p = fmaf(p, -y, 1.f / 120.f);
  p = fmaf(p, -y, 1.f / 24.f);
  p = fmaf(p, -y, 1.f / 6.f);
  p = fmaf(p, -y, 0.5f);
  p = fmaf(p, -y, 1.f);
  return y < 0.35f ? p * y : 1.f - exp2_fast(-y * LOG2_E);
}

// Sums of `count` values over `count` lanes, whose numbers differ in steps of `stride`; lane e of them gets the total
// of value e.
template <int stride, int count>
__device__ __forceinline__ float scattered_total(const float (&value)[count], int e) {
  if constexpr (count == 1) {
    return value[0];
  } else {
    constexpr int half = count / 2;
    const bool upper = e & half;
    float rest[half];
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float sent = upper ? value[i] : value[half + i];
      rest[i] = (upper ? value[half + i] : value[i]) + __shfl_xor_sync(~0u, sent, half * stride);
    }
    return scattered_total<stride>(rest, e);
  }
}

// The same over a team, for one value a token.
__device__ __forceinline__ float team_total(const float (&value)[SPLIT], int q) {
  return scattered_total<TEAMS>(value, q);
}

__device__ __forceinline__ void unpack(float4 v, float (&out)[4]) {
  out[0] = v.x;
  out[1] = v.y;
  out[2] = v.z;
  out[3] = v.w;
}

__device__ __forceinline__ void load(const float* from, float (&out)[4]) {
  unpack(*reinterpret_cast<const float4*>(from), out);
}

__device__ __forceinline__ void store(float* to, const float (&v)[4]) {
  *reinterpret_cast<float4*>(to) = make_float4(v[0], v[1], v[2], v[3]);
}

// A lane's share of B or C from a projected row.
__device__ __forceinline__ void load_b(const float4* row, int q, float (&b)[OWNED]) {
  load(reinterpret_cast<const float*>(row) + RANK + OWNED * q, b);
}

__device__ __forceinline__ void load_c(const float4* row, int q, float (&c)[OWNED]) {
  load(reinterpret_cast<const float*>(row) + RANK + STATES + OWNED * q, c);
}

// dt before the softplus, for two channels.
__device__ __forceinline__ float2 time_step(const float4* row, const float (&weight)[2][RANK], float2 bias) {
  float2 sum = bias;
#pragma unroll
  for (int i = 0; i < RANK / 4; ++i) {
    float r[4];
    unpack(row[i], r);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      sum.x = fmaf(r[j], weight[0][4 * i + j], sum.x);
      sum.y = fmaf(r[j], weight[1][4 * i + j], sum.y);
    }
  }
  return sum;
}

// The sum over a team, in all its lanes.
__device__ __forceinline__ float2 team_sum(float2 value) {
#pragma unroll
  for (int other = TEAMS; other < 32; other *= 2) {
    value.x += __shfl_xor_sync(~0u, value.x, other);
    value.y += __shfl_xor_sync(~0u, value.y, other);
  }
  return value;
}

// Where a lane stands: its team, its channels, and its share of the parameters.
struct Lane {
  int q, pair, channel, direction, image, segment, segments;

  // `thread` counts from 0 to THREADS - 1.
  __device__ explicit Lane(int thread)
      : q(thread % 32 / TEAMS),
        pair(thread / 32 * TEAMS + thread % TEAMS),
        channel(blockIdx.x * CHANNELS + 2 * pair),
        direction(blockIdx.y % DIRECTIONS),
        image(blockIdx.z),
        segment(blockIdx.y / DIRECTIONS),
        segments(gridDim.y / DIRECTIONS) {}

  // A times log2(e), so that the decay is exp2(dt * rate).
  __device__ void rates(const float* __restrict__ a_log, int channels, float (&rate)[2][OWNED]) const {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const size_t row = static_cast<size_t>(direction) * channels + channel + j;
      load(a_log + row * STATES + OWNED * q, rate[j]);
#pragma unroll
      for (int n = 0; n < OWNED; ++n) rate[j][n] = -expf(rate[j][n]) * LOG2_E;
    }
  }

  // Where this direction writes: the first one `first` (B, L, D), the others their part of `others` (3, B, L, D). So
  // `first` can become the sum of all.
  template <class T>
  __device__ T* of_direction(T* first, T* others, int length, int channels) const {
    return direction == 0 ? first : others + static_cast<size_t>(direction - 1) * gridDim.z * length * channels;
  }

  // Index of this lane's first channel in tensors (B, count, 4, D): one row for each segment or chunk.
  __device__ size_t state_row(int index, int count, int channels) const {
    return ((static_cast<size_t>(image) * count + index) * DIRECTIONS + direction) * channels + channel;
  }
};

__device__ __forceinline__ void load_states(const float* __restrict__ from, size_t row, int q,
                                            float (&h)[2][OWNED]) {
#pragma unroll
  for (int j = 0; j < 2; ++j) load(from + (row + j) * STATES + OWNED * q, h[j]);
}

__device__ __forceinline__ void store_states(float* __restrict__ to, size_t row, int q, const float (&h)[2][OWNED]) {
#pragma unroll
  for (int j = 0; j < 2; ++j) store(to + (row + j) * STATES + OWNED * q, h[j]);
}

// Carries a state through the segments from `first` until before `last`, in steps of `step`: what a segment adds
// when it starts from zero, plus what came in times exp(A * sum of dt).
__device__ __forceinline__ void carry_over(const Lane& lane, const float* __restrict__ ends,
                                           const float* __restrict__ elapsed, const float (&rate)[2][OWNED],
                                           int channels, int first, int last, int step, float (&h)[2][OWNED]) {
  for (int segment = first; segment != last; segment += step) {
    const size_t row = lane.state_row(segment, lane.segments, channels);
    float end[2][OWNED];
    load_states(ends, row, lane.q, end);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float time = elapsed[row + j];
#pragma unroll
      for (int n = 0; n < OWNED; ++n) h[j][n] = fmaf(exp2_fast(time * rate[j][n]), h[j][n], end[j][n]);
    }
  }
}
