// Selective scan, backward: gradients of x (through dt * x), of dt before its softplus, of B and C, of A and D.
//
// With g the gradient of y, the state's gradient is G_t = g_t C_t + exp(dt_{t+1} A) G_{t+1}, walked from the last
// token to the first. Then dB_t = sum_c G_t dt_t x_t and dC_t = sum_c g_t h_t over all channels, and the exponent
// dt_t A gets e_t = G_t exp(dt_t A) h_{t-1}, from which dt and A have theirs.
//
// Grid (D / 64, 4 * segments, B), 128 threads, two blocks a multiprocessor; who owns what stands in scan.cuh. A block
// takes its chunks of 64 tokens from last to first:
//   1. each lane computes dt of its own tokens and puts dt, x and g into shared memory;
//   2. forward from the saved state of the chunk's start, keeping the states of every 8th token in shared memory;
//   3. for each 8 tokens, last to first: forward again with all states and decays in registers, then backward.
// dB and dC are summed over the channels of a warp by shuffles, over the four warps in shared memory, and written as
// one partial sum a block; adding the D / 64 partial sums up is left to the caller. Nothing is atomic: two runs give
// the same bits.
//
// A state update costs two exp2 and 28 issue slots, reductions included: 4.5 ms for a batch of 8 NYU maps (120x160,
// D = 512) at an H100's 1.98 GHz. Measured 8.1 ms (H100 80GB): issue slots are busy 56 % of the time; two
// warps a scheduler, all that registers and shared memory allow, do not hide the latencies of shuffles and exp2.
#include "scan.cuh"

constexpr int BURST = 8;  // tokens whose states are in registers
constexpr int BURSTS = CHUNK / BURST;
constexpr int GRAD_ROW = PAIRS + 4;  // of float2

// With one buffer of sums 98 KiB for rank 16: small enough for every GPU since 2020. Large ones have room for two
// buffers and still for two blocks, which saves a barrier for each burst: compile with -DSUM_BUFFERS=2.
struct Shared {
  float4 rows[CHUNK][ROW_PADDED / 4];
  float4 steps[CHUNK][STEP_ROW];          // dt and x of a channel pair
  float4 starts[BURSTS - 1][2][THREADS];  // states before each burst but the first
  float2 grads[CHUNK][GRAD_ROW];
  union {
    float4 weight[CHANNELS][WEIGHT_ROW / 4];  // while time steps are computed
    float sums[SUM_BUFFERS][WARPS][BURST][2 * STATES];  // after that: dB and dC of a warp's channels
  };
  int tokens[CHUNK];
};
static_assert(sizeof(Shared) == SHARED_BYTES, "the launch must ask for this much shared memory");

// x (B, L, D); projected (B, L, 4, R + 32); dt_weight (4, D, R); dt_bias (4, D); a_log (4, D, 16);
// states (B, chunks, 4, D, 16); grad_y (B, L, D); ends, elapsed: as adjoint_segment_ends leaves them, read if
// there are several segments.
// Written: grad_x (4, B, L, D), what each direction adds through dt * x; grad_dt (4, B, L, D), before the softplus;
// grad_bc (D / 64, B, L, 4, 32), partial sums; grad_a (B, segments, 4, D, 16), of A itself; grad_skip
// (B, segments, 4, D).
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    scan_backward(const float* __restrict__ x, const float* __restrict__ projected,
                  const float* __restrict__ dt_weight, const float* __restrict__ dt_bias,
                  const float* __restrict__ a_log, const float* __restrict__ states,
                  const float* __restrict__ grad_y, const float* __restrict__ ends,
                  const float* __restrict__ elapsed, float* __restrict__ grad_x, float* __restrict__ grad_dt,
                  float* __restrict__ grad_bc, float* __restrict__ grad_a, float* __restrict__ grad_skip, int height,
                  int width, int channels, int segment_tokens) {
  DYNAMIC_SHARED(memory);
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const Image size{height, width};
  const Lane lane(threadIdx.x);
  const int q = lane.q, pair = lane.pair, warp = threadIdx.x / 32, team = pair % TEAMS;
  const int length = size.length(), chunks = (length + CHUNK - 1) / CHUNK;
  const int chunk_tokens = segment_tokens / CHUNK;
  const int first_chunk = lane.segment * chunk_tokens, last_chunk = min(first_chunk + chunk_tokens, chunks) - 1;
  const size_t first_token = static_cast<size_t>(lane.image) * length;
  const size_t direction_token = static_cast<size_t>(lane.direction) * gridDim.z * length + first_token;
  const size_t partial_token = static_cast<size_t>(blockIdx.x) * gridDim.z * length + first_token;
  const size_t parameter_row = static_cast<size_t>(lane.direction) * channels + lane.channel;

  const float2 bias = make_float2(dt_bias[parameter_row], dt_bias[parameter_row + 1]);
  float rate[2][OWNED], handed[2][OWNED] = {}, rate_sum[2][OWNED] = {};  // handed: exp(dt A) G of the token behind
  float2 skip_sum = make_float2(0.f, 0.f);
  lane.rates(a_log, channels, rate);
  carry_over(lane, ends, elapsed, rate, channels, lane.segments - 1, lane.segment, -1, handed);

  for (int chunk = last_chunk; chunk >= first_chunk; --chunk) {
    __syncthreads();  // everybody has left the chunk before
    if (threadIdx.x < CHUNK) shared.tokens[threadIdx.x] = size.token(chunk * CHUNK + threadIdx.x, lane.direction);
    __syncthreads();
    for (int i = threadIdx.x; i < CHUNK * (ROW / 4); i += THREADS) {
      const int t = i / (ROW / 4), part = i % (ROW / 4), token = shared.tokens[t];
      const size_t row = (first_token + max(token, 0)) * DIRECTIONS + lane.direction;
      copy_async(&shared.rows[t][part], reinterpret_cast<const float4*>(projected + row * ROW) + part, token >= 0);
    }
    for (int i = threadIdx.x; i < CHANNELS * (RANK / 4); i += THREADS) {
      const int channel = i / (RANK / 4), part = i % (RANK / 4);
      const size_t row = static_cast<size_t>(lane.direction) * channels + blockIdx.x * CHANNELS + channel;
      copy_async(&shared.weight[channel][part], reinterpret_cast<const float4*>(dt_weight + row * RANK) + part, true);
    }
    float h[2][OWNED];
    load_states(states, lane.state_row(chunk, chunks, channels), q, h);

    // 1. time steps
    float2 own_x[8], own_g[8];
    auto load_own = [&](int base) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int token = shared.tokens[base + SPLIT * i + q];
        own_x[i] = own_g[i] = make_float2(0.f, 0.f);
        if (token >= 0) {
          const size_t place = (first_token + token) * channels + lane.channel;
          own_x[i] = *reinterpret_cast<const float2*>(x + place);
          own_g[i] = *reinterpret_cast<const float2*>(grad_y + place);
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
        shared.steps[t][pair] = make_float4(softplus(before.x), softplus(before.y), own_x[i].x, own_x[i].y);
        shared.grads[t][pair] = own_g[i];
        skip_sum.x = fmaf(own_x[i].x, own_g[i].x, skip_sum.x);
        skip_sum.y = fmaf(own_x[i].y, own_g[i].y, skip_sum.y);
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
        const float dt[2] = {step.x, step.y}, drive[2] = {step.x * step.z, step.y * step.w};
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
        const float dt[2] = {step.x, step.y}, drive[2] = {step.x * step.z, step.y * step.w};
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
        float drive_grad[2][SPLIT], exponent_grad[2][SPLIT];  // of dt * x, and of dt through the decay (times log2 e)
#pragma unroll
        for (int k = SPLIT - 1; k >= 0; --k) {
          const int i = base + k, t = burst * BURST + i;
          const float4 step = shared.steps[t][pair];
          const float2 grad = shared.grads[t][pair];
          const float dt[2] = {step.x, step.y}, drive[2] = {step.x * step.z, step.y * step.w};
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
          const float bc_total = scattered_total<SPLIT>(bc_grad, team);
          sums[warp][i][team / OWNED * STATES + OWNED * q + team % OWNED] = bc_total;
        }
        const int t = burst * BURST + base + q, token = shared.tokens[t];
        const float4 step = shared.steps[t][pair];
        const float2 drive_total = make_float2(team_total(drive_grad[0], q), team_total(drive_grad[1], q));
        const float2 exponent_total = make_float2(team_total(exponent_grad[0], q), team_total(exponent_grad[1], q));
        if (token >= 0) {
          const size_t place = (direction_token + token) * channels + lane.channel;
          *reinterpret_cast<float2*>(grad_x + place) = make_float2(drive_total.x * step.x, drive_total.y * step.y);
          *reinterpret_cast<float2*>(grad_dt + place) =
              make_float2(softplus_slope(step.x) * fmaf(drive_total.x, step.z, exponent_total.x * LN_2),
                          softplus_slope(step.y) * fmaf(drive_total.y, step.w, exponent_total.y * LN_2));
        }
      }

      __syncthreads();
#pragma unroll
      for (int i = threadIdx.x; i < BURST * 2 * STATES; i += THREADS) {
        const int t = i / (2 * STATES), value = i % (2 * STATES), token = shared.tokens[burst * BURST + t];
        float sum = 0.f;
#pragma unroll
        for (int w = 0; w < WARPS; ++w) sum += sums[w][t][value];
        if (token >= 0) grad_bc[((partial_token + token) * DIRECTIONS + lane.direction) * 2 * STATES + value] = sum;
      }
    }
  }

  const size_t row = lane.state_row(lane.segment, lane.segments, channels);
  store_states(grad_a, row, q, rate_sum);
#pragma unroll
  for (int other = 1; other < SPLIT; other *= 2) {
    skip_sum.x += __shfl_xor_sync(~0u, skip_sum.x, other);
    skip_sum.y += __shfl_xor_sync(~0u, skip_sum.y, other);
  }
  if (q == 0) *reinterpret_cast<float2*>(grad_skip + row) = skip_sum;
}
