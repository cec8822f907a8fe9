// Selective scan, backward: gradients of x (through dt * x), of r, B and C, of W_dt and its bias, of A and D.
//
// With g the gradient of y, the state's gradient is G_t = g_t C_t + exp(dt_{t+1} A) G_{t+1}, walked from the last
// token to the first. Then dB_t = sum_c G_t dt_t x_t and dC_t = sum_c g_t h_t over all channels, and the exponent
// dt_t A gets e_t = G_t exp(dt_t A) h_{t-1}, from which dt and A have theirs.
//
// Grid (D / 64, 4 * segments, B), 128 threads, two blocks a multiprocessor; scan.cuh says who owns what. A block
// takes its chunks of 64 tokens from last to first:
//   1. each lane computes dt of its own tokens and puts dt, dt * x and g into shared memory;
//   2. forward from the saved state of the chunk's start, keeping the states of every 8th token in shared memory;
//   3. for each 8 tokens, last to first: forward again with all states and decays in registers, then backward;
//   4. the gradients of dt before its softplus, which have taken the place of g in shared memory by then, are
//      multiplied on tensor cores with W_dt and with r, for the gradients of r and W_dt.
// dB and dC are summed over the channels of a warp by shuffles (float) or tensor cores (16 bits), over the four warps
// in shared memory. They and the gradient of r are written as one partial sum a block; adding the D / 64 partial sums
// up is left to the caller. Nothing is atomic: two runs give the same bits.
//
// Tensor cores multiply in tf32. Float values are split into two parts and multiplied as three products, relative
// error 2^-21; where values have 16 bits one product is exact enough.
//
// A state update costs two exp2 and 31 issue slots in float, 28 in 16 bits, all steps included: 4.7 and 4.3 ms for a
// batch of 8 NYU maps (120x160, D = 512) at an H100's 1.98 GHz. Measured 8.1 ms (H100 80GB, float, before step 4
// replaced writing the gradient of dt): issue slots were busy 56 % of the time; two warps a scheduler, all that
// registers and shared memory allow, do not hide the latencies of shuffles and exp2. As it is now it
// takes 8.4 ms in 16 bits, half of that limit.
#include "scan.cuh"

#ifndef SA2DEPTH_EMULATED
__device__ __forceinline__ void mma_tf32(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

constexpr int BURST = 8;  // tokens whose states are in registers
constexpr int BURSTS = CHUNK / BURST;
constexpr int GRAD_ROW = PAIRS + 4;  // of float2
constexpr int RANK_TILES = (RANK + 7) / 8;
constexpr bool TWO_PARTS = sizeof(Value) == 4;
// Tensor cores cut float down to tf32, by 3.5e-4 on average; where one part is all there is, this makes up for it.
constexpr float UNCUT = 1.00035f;
static_assert(BURST * STATES == THREADS, "each thread writes two sums of a burst");
static_assert(WARPS * 16 == CHUNK && WARPS * 16 == CHANNELS, "a warp multiplies 16 rows");

// With one buffer of sums 98 KiB for rank 16: small enough for every GPU since 2020. Large ones have room for two
// buffers and still for two blocks, which saves a barrier for each burst: compile with -DSUM_BUFFERS=2.
struct Shared {
  float4 rows[CHUNK][ROW_PADDED / 4];
  float4 steps[CHUNK][STEP_ROW];          // dt and dt * x of a channel pair
  float4 starts[BURSTS - 1][2][THREADS];  // states before each burst but the first
  float2 grads[CHUNK][GRAD_ROW];          // of y, later of dt
  union {
    float4 weight[CHANNELS][WEIGHT_ROW / 4];  // while time steps are computed
    float sums[SUM_BUFFERS][WARPS][BURST][2 * STATES];  // after that: dB and dC of a warp's channels
  };
  int tokens[CHUNK];
};
static_assert(sizeof(Shared) == SHARED_BYTES, "the launch must ask for this much shared memory");

// The factors of a 16x8 by 8x8 product. With l the lane, k = l % 4 and r = l / 4, a lane holds of the left matrix
// (r, k), (r + 8, k), (r, k + 4), (r + 8, k + 4), of the right one (k, r), (k + 4, r), of the product (r, 2k),
// (r, 2k + 1), (r + 8, 2k), (r + 8, 2k + 1).
template <int count>
struct Factor {
  unsigned high[count], low[count];

  __device__ __forceinline__ void set(int i, float value) {
    if (TWO_PARTS) {
      high[i] = (__float_as_uint(value) + 0x1000u) & 0xffffe000u;
      low[i] = __float_as_uint(value - __uint_as_float(high[i]));
    } else {
      high[i] = __float_as_uint(value * UNCUT);
    }
  }
};

__device__ __forceinline__ void multiply(float (&sum)[4], const Factor<4>& left, const Factor<2>& right) {
  if (TWO_PARTS) {
    mma_tf32(sum, left.high, right.low);
    mma_tf32(sum, left.low, right.high);
  }
  mma_tf32(sum, left.high, right.high);
}

// Sums over the teams of a warp, on tensor cores: a product with a matrix of zeros and ones adds up lanes that differ
// in l % 4 and leaves sums 2k and 2k + 1 in lanes with l % 4 = k; what is left to add is 4 lanes away. Sums are too
// small by what is cut off from the values.
struct Picks {
  unsigned right[2][2];

  __device__ Picks() {
#pragma unroll
    for (int i = 0; i < 4; ++i) right[i / 2][i % 2] = threadIdx.x % 32 / 8 == i ? __float_as_uint(1.f) : 0u;
  }

  // Which of eight sums this lane gets.
  __device__ static int own() { return 2 * (threadIdx.x % 4) + threadIdx.x / 4 % 2; }

  __device__ __forceinline__ float total(const float (&value)[8]) const {
    float sum[4] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      unsigned left[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) left[j] = __float_as_uint(value[4 * i + j]);
      mma_tf32(sum, left, right[i]);
    }
    const bool odd = own() % 2;
    return (odd ? sum[2] : sum[0]) + __shfl_xor_sync(~0u, odd ? sum[0] : sum[2], 4);
  }
};

// Gradients of r of the chunk's tokens, sums over the block's channels: each warp does 16 tokens. `weight` is that of
// the block's channels, `to` where those of the image's first token go.
__device__ __forceinline__ void low_rank_gradients(const Shared& shared, const float* __restrict__ weight,
                                                   Value* __restrict__ to) {
  const int k = threadIdx.x % 4, row = threadIdx.x % 32 / 4, t = threadIdx.x / 32 * 16 + row;
  float sum[RANK_TILES][4] = {};
#pragma unroll
  for (int base = 0; base < PAIRS; base += 4) {
    // A sum may take its terms in any order: here index k is the first channel of a pair, k + 4 the second.
    const float2 upper = shared.grads[t][base + k], lower = shared.grads[t + 8][base + k];
    Factor<4> left;
    left.set(0, upper.x);
    left.set(1, lower.x);
    left.set(2, upper.y);
    left.set(3, lower.y);
#pragma unroll
    for (int tile = 0; tile < RANK_TILES; ++tile) {
      const bool exists = RANK % 8 == 0 || 8 * tile + row < RANK;
      const float* from = weight + 2 * (base + k) * RANK + 8 * tile + row;
      Factor<2> right;
      right.set(0, exists ? from[0] : 0.f);
      right.set(1, exists ? from[RANK] : 0.f);
      multiply(sum[tile], left, right);
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int token = shared.tokens[t + 8 * half];
#pragma unroll
    for (int tile = 0; tile < RANK_TILES; ++tile) {
      const int column = 8 * tile + 2 * k;
      if (token >= 0 && column < RANK)
        store_two(to + static_cast<size_t>(token) * DIRECTIONS * ROW + column, sum[tile][2 * half],
                  sum[tile][2 * half + 1]);
    }
  }
}

// Adds the chunk's share to the gradient of W_dt, or writes it if it is the first; each warp does its own 16 channels.
// `to` is the row of the block's first channel.
__device__ __forceinline__ void add_weight_gradients(const Shared& shared, bool first, float* __restrict__ to) {
  const int k = threadIdx.x % 4, column = threadIdx.x % 32 / 4, pair = threadIdx.x / 32 * 8 + column;
  to += 2 * pair * RANK;
  float sum[RANK_TILES][4] = {};
  if (!first) {
#pragma unroll
    for (int tile = 0; tile < RANK_TILES; ++tile)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int r = 8 * tile + 2 * k;
        if (r >= RANK) continue;
        const float2 before = *reinterpret_cast<const float2*>(to + j * RANK + r);
        sum[tile][2 * j] = before.x;
        sum[tile][2 * j + 1] = before.y;
      }
  }
#pragma unroll
  for (int base = 0; base < CHUNK; base += 8) {
    // Row `column` of the left matrix is the first channel of a pair, row `column + 8` the second.
    const int t = base + k;
    const float2 upper = shared.grads[t][pair], lower = shared.grads[t + 4][pair];
    Factor<4> left;
    left.set(0, upper.x);
    left.set(1, upper.y);
    left.set(2, lower.x);
    left.set(3, lower.y);
#pragma unroll
    for (int tile = 0; tile < RANK_TILES; ++tile) {
      // Columns beyond the rank belong to B: they give sums that nobody stores.
      Factor<2> right;
      right.set(0, reinterpret_cast<const float*>(shared.rows[t])[8 * tile + column]);
      right.set(1, reinterpret_cast<const float*>(shared.rows[t + 4])[8 * tile + column]);
      multiply(sum[tile], left, right);
    }
  }
#pragma unroll
  for (int tile = 0; tile < RANK_TILES; ++tile)
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int r = 8 * tile + 2 * k;
      if (r < RANK)
        *reinterpret_cast<float2*>(to + j * RANK + r) = make_float2(sum[tile][2 * j], sum[tile][2 * j + 1]);
    }
}

// x (B, L, D); projected (B, L, 4, R + 32); dt_weight (4, D, R); dt_bias (4, D); a_log (4, D, 16);
// states (B, chunks, 4, D, 16); grad_y (B, L, D); ends, elapsed: as adjoint_segment_ends leaves them, read if
// there are several segments.
// Written: grad_x (B, L, D) and grad_x_parts (3, B, L, D), what each direction adds through dt * x; grad_projected
// (D / 64, B, L, 4, R + 32), partial sums; grad_weight (B, segments, 4, D, R); grad_bias (B, segments, 4, D); grad_a
// (B, segments, 4, D, 16), of A itself; grad_skip (B, segments, 4, D).
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    scan_backward(const Value* __restrict__ x, const float* __restrict__ projected,
                  const float* __restrict__ dt_weight, const float* __restrict__ dt_bias,
                  const float* __restrict__ a_log, const float* __restrict__ states,
                  const Value* __restrict__ grad_y, const float* __restrict__ ends,
                  const float* __restrict__ elapsed, Value* __restrict__ grad_x, Value* __restrict__ grad_x_parts,
                  Value* __restrict__ grad_projected, float* __restrict__ grad_weight,
                  float* __restrict__ grad_bias, float* __restrict__ grad_a, float* __restrict__ grad_skip,
                  int height, int width, int channels, int segment_tokens) {
  DYNAMIC_SHARED(memory);
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const Image size{height, width};
  const Lane lane(threadIdx.x);
  const int q = lane.q, pair = lane.pair, warp = threadIdx.x / 32;
  const int length = size.length(), chunks = (length + CHUNK - 1) / CHUNK;
  const int chunk_tokens = segment_tokens / CHUNK;
  const int first_chunk = lane.segment * chunk_tokens, last_chunk = min(first_chunk + chunk_tokens, chunks) - 1;
  const size_t first_token = static_cast<size_t>(lane.image) * length;
  const size_t partial_token = static_cast<size_t>(blockIdx.x) * gridDim.z * length + first_token;
  const size_t parameter_row = static_cast<size_t>(lane.direction) * channels + lane.channel;
  const size_t segment_row = lane.state_row(lane.segment, lane.segments, channels);
  // from here on the rows of the image's first token, and the lane's channels of it
  const size_t first_place = first_token * channels + lane.channel;
  x += first_place;
  grad_y += first_place;
  grad_x = lane.of_direction(grad_x, grad_x_parts, length, channels) + first_place;
  projected += (first_token * DIRECTIONS + lane.direction) * ROW;
  grad_projected += (partial_token * DIRECTIONS + lane.direction) * ROW;

  float rate[2][OWNED], handed[2][OWNED] = {}, rate_sum[2][OWNED] = {};  // handed: exp(dt A) G of the token behind
  float2 skip_sum = make_float2(0.f, 0.f), bias_sum = skip_sum;
  lane.rates(a_log, channels, rate);
  carry_over(lane, ends, elapsed, rate, channels, lane.segments - 1, lane.segment, -1, handed);

  for (int chunk = last_chunk; chunk >= first_chunk; --chunk) {
    __syncthreads();  // everybody has left the chunk before
    if (threadIdx.x < CHUNK) shared.tokens[threadIdx.x] = size.token(chunk * CHUNK + threadIdx.x, lane.direction);
    __syncthreads();
    // Copies wait for nothing; the addresses of several at once would not fit into the registers.
#pragma unroll 1
    for (int i = threadIdx.x; i < CHUNK * (ROW / 4); i += THREADS) {
      const int t = i / (ROW / 4), part = i % (ROW / 4), token = shared.tokens[t];
      const float* row = projected + static_cast<size_t>(max(token, 0)) * DIRECTIONS * ROW;
      copy_async(&shared.rows[t][part], reinterpret_cast<const float4*>(row) + part, token >= 0);
    }
#pragma unroll 1
    for (int i = threadIdx.x; i < CHANNELS * (RANK / 4); i += THREADS) {
      const int channel = i / (RANK / 4), part = i % (RANK / 4);
      const size_t row = static_cast<size_t>(lane.direction) * channels + blockIdx.x * CHANNELS + channel;
      copy_async(&shared.weight[channel][part], reinterpret_cast<const float4*>(dt_weight + row * RANK) + part, true);
    }
    float h[2][OWNED];
    load_states(states, lane.state_row(chunk, chunks, channels), q, h);

    // 1. time steps
    const float2 bias = *reinterpret_cast<const float2*>(dt_bias + parameter_row);  // again, to save registers below
    Two own_x[8], own_g[8];
    auto load_own = [&](int base) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int token = shared.tokens[base + SPLIT * i + q];
        own_x[i] = own_g[i] = Two();
        if (token >= 0) {
          const size_t place = static_cast<size_t>(token) * channels;
          load_two(x + place, own_x[i]);
          load_two(grad_y + place, own_g[i]);
        }
      }
    };
    load_own(0);
    wait_for_copies();
    __syncthreads();
    float weight[2][RANK];
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int i = 0; i < RANK / 4; ++i) {
        const float4 part = shared.weight[2 * pair + j][i];
        weight[j][4 * i] = part.x;
        weight[j][4 * i + 1] = part.y;
        weight[j][4 * i + 2] = part.z;
        weight[j][4 * i + 3] = part.w;
      }
#pragma unroll 1
    for (int base = 0; base < CHUNK; base += 8 * SPLIT) {
      if (base > 0) load_own(base);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int t = base + SPLIT * i + q;
        const float2 before = time_step(shared.rows[t], weight, bias);
        const float2 value = unpack(own_x[i]), grad = unpack(own_g[i]);
        const float2 dt = make_float2(softplus(before.x), softplus(before.y));
        shared.steps[t][pair] = make_float4(dt.x, dt.y, dt.x * value.x, dt.y * value.y);
        shared.grads[t][pair] = grad;
        skip_sum.x = fmaf(value.x, grad.x, skip_sum.x);
        skip_sum.y = fmaf(value.y, grad.y, skip_sum.y);
      }
    }
    __syncwarp();  // a team's steps and gradients are its own

    // 2. states before each burst
#pragma unroll 1
    for (int burst = 0; burst < BURSTS - 1; ++burst) {
#pragma unroll
      for (int i = 0; i < BURST; ++i) {
        const int t = burst * BURST + i;
        const float4 step = shared.steps[t][pair];
        const float dt[2] = {step.x, step.y}, drive[2] = {step.z, step.w};
        float b[OWNED];
        load_b(shared.rows[t], q, b);
#pragma unroll
        for (int j = 0; j < 2; ++j)
#pragma unroll
          for (int n = 0; n < OWNED; ++n)
            h[j][n] = fmaf(exp2_fast(dt[j] * rate[j][n]), h[j][n], drive[j] * b[n]);
      }
#pragma unroll
      for (int j = 0; j < 2; ++j)
        shared.starts[burst][j][threadIdx.x] = make_float4(h[j][0], h[j][1], h[j][2], h[j][3]);
    }

    // 3. backward
    const Picks picks;
    // Which of the sums over teams a lane gets: of dB if it is less than OWNED, else of dC.
    const int bc = TWO_PARTS ? threadIdx.x % TEAMS : Picks::own();
    const int bc_place = bc / OWNED * STATES + OWNED * q + bc % OWNED;
#pragma unroll 1
    for (int burst = BURSTS - 1; burst >= 0; --burst) {
      float state[BURST + 1][2][OWNED], decay[BURST][2][OWNED];  // state[i]: before token i
      if (burst == 0) {
        load_states(states, lane.state_row(chunk, chunks, channels), q, state[0]);
      } else {
#pragma unroll
        for (int j = 0; j < 2; ++j) unpack(shared.starts[burst - 1][j][threadIdx.x], state[0][j]);
      }
#pragma unroll
      for (int i = 0; i < BURST; ++i) {
        const int t = burst * BURST + i;
        const float4 step = shared.steps[t][pair];
        const float dt[2] = {step.x, step.y}, drive[2] = {step.z, step.w};
        float b[OWNED];
        load_b(shared.rows[t], q, b);
#pragma unroll
        for (int j = 0; j < 2; ++j)
#pragma unroll
          for (int n = 0; n < OWNED; ++n) {
            decay[i][j][n] = exp2_fast(dt[j] * rate[j][n]);
            state[i + 1][j][n] = fmaf(decay[i][j][n], state[i][j][n], drive[j] * b[n]);
          }
      }

      // the weights, or the last sums in this buffer, have been read
      if (SUM_BUFFERS == 1 || burst == BURSTS - 1) __syncthreads();
      auto& sums = shared.sums[burst % SUM_BUFFERS];
#pragma unroll
      for (int base = BURST - SPLIT; base >= 0; base -= SPLIT) {
        const int own = burst * BURST + base + q, token = shared.tokens[own];
        const size_t place = static_cast<size_t>(max(token, 0)) * channels;
        Two own_x;  // again; it is needed at the end only, when it will have come
        load_two(x + place, own_x);
        float drive_grad[2][SPLIT], exponent_grad[2][SPLIT];  // of dt * x, and of dt through the decay (times log2 e)
#pragma unroll
        for (int k = SPLIT - 1; k >= 0; --k) {
          const int i = base + k, t = burst * BURST + i;
          const float4 step = shared.steps[t][pair];
          const float2 grad = shared.grads[t][pair];
          const float dt[2] = {step.x, step.y}, drive[2] = {step.z, step.w};
          const float g[2] = {grad.x, grad.y};
          float b[OWNED], c[OWNED], bc_grad[2 * OWNED] = {};
          load_b(shared.rows[t], q, b);
          load_c(shared.rows[t], q, c);
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            drive_grad[j][k] = exponent_grad[j][k] = 0.f;
#pragma unroll
            for (int n = 0; n < OWNED; ++n) {
              const float total = fmaf(g[j], c[n], handed[j][n]);
              bc_grad[n] = fmaf(total, drive[j], bc_grad[n]);
              bc_grad[OWNED + n] = fmaf(g[j], state[i + 1][j][n], bc_grad[OWNED + n]);
              drive_grad[j][k] = fmaf(total, b[n], drive_grad[j][k]);
              handed[j][n] = total * decay[i][j][n];
              const float exponent = handed[j][n] * state[i][j][n];
              exponent_grad[j][k] = fmaf(exponent, rate[j][n], exponent_grad[j][k]);
              rate_sum[j][n] = fmaf(exponent, dt[j], rate_sum[j][n]);
            }
          }
          // as many teams in a warp as values: each gets the total of one
          sums[warp][i][bc_place] = TWO_PARTS ? scattered_total<1>(bc_grad, bc) : picks.total(bc_grad);
        }
        const float4 step = shared.steps[own][pair];
        const float2 value = unpack(own_x);
        const float2 drive_total = make_float2(team_total(drive_grad[0], q), team_total(drive_grad[1], q));
        const float2 exponent_total = make_float2(team_total(exponent_grad[0], q), team_total(exponent_grad[1], q));
        const float2 dt_grad =
            make_float2(softplus_slope(step.x) * fmaf(drive_total.x, value.x, exponent_total.x * LN_2),
                        softplus_slope(step.y) * fmaf(drive_total.y, value.y, exponent_total.y * LN_2));
        bias_sum.x += dt_grad.x;
        bias_sum.y += dt_grad.y;
        shared.grads[own][pair] = dt_grad;  // the team has read what was there before its totals were exchanged
        if (token >= 0) store_two(grad_x + place, drive_total.x * step.x, drive_total.y * step.y);
      }

      __syncthreads();
      const int t = threadIdx.x / STATES, value = threadIdx.x % STATES * 2, token = shared.tokens[burst * BURST + t];
      float2 sum = make_float2(0.f, 0.f);
#pragma unroll
      for (int w = 0; w < WARPS; ++w) {
        const float2 part = *reinterpret_cast<const float2*>(&sums[w][t][value]);
        sum.x += part.x;
        sum.y += part.y;
      }
      if (!TWO_PARTS) sum = make_float2(sum.x * UNCUT, sum.y * UNCUT);
      if (token >= 0)
        store_two(grad_projected + static_cast<size_t>(token) * DIRECTIONS * ROW + RANK + value, sum.x, sum.y);
    }

    // 4. products; the last barrier was behind the last gradient of dt
    const size_t first_row = static_cast<size_t>(lane.direction) * channels + blockIdx.x * CHANNELS;
    low_rank_gradients(shared, dt_weight + first_row * RANK, grad_projected);
    add_weight_gradients(shared, chunk == last_chunk, grad_weight + (segment_row - 2 * pair) * RANK);
  }

  store_states(grad_a, segment_row, q, rate_sum);
  skip_sum = team_sum(skip_sum);
  bias_sum = team_sum(bias_sum);
  if (q == 0) {
    *reinterpret_cast<float2*>(grad_skip + segment_row) = skip_sum;
    *reinterpret_cast<float2*>(grad_bias + segment_row) = bias_sum;
  }
}
