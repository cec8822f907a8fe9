// Selective scan, forward: `scan_forward` writes what each direction adds to each token, `segment_ends` prepares
// it where one image is divided among several blocks (small batches); sum_directions.cu adds up.
//
// Grid (D / 64, 4 * segments, B), 256 threads; see scan.cuh for the recurrence and who owns what. Four warps prepare,
// four walk. The preparing warps are a tile of 32 tokens ahead: they copy B, C and r to shared memory and leave dt
// and dt * x there; each lane does so for its own tokens, which do not depend on each other. The walking warps only
// step through the recurrence and store y. So the special function units (exp2 of the walk) and the fused
// multiply-adds of the preparation are busy at the same time, though there are few warps: an H100 holds all blocks
// of a batch of 8 at once, two a multiprocessor.
//
// A batch of 8 NYU maps (120x160, D = 512) holds 5.0e9 state updates, each with one exp2: at an H100's 1.98 GHz
// 1.3 ms on the special function units, softplus included, 1.5 ms of issue slots, as much of shared-memory reads,
// 0.9 ms of memory in float and half of it in 16 bits. Measured 2.22 ms (H100 80GB, float): issue slots are busy 68 %
// of the time; 2.1 ms in 16 bits. Warps that prepare and walk in turn took 2.69 ms.
#include "scan.cuh"

constexpr int TILE = 32;  // tokens
constexpr int OWN = TILE / SPLIT;  // tokens of a tile that a lane prepares
static_assert(CHUNK % TILE == 0, "states are saved between tiles");

enum class Walk {
  OUTPUTS,       // y, and the states at the start of each chunk
  ENDS,          // only the state after the last token, from a zero start
  ADJOINT_ENDS,  // the same of the backward recurrence, from the last token to the first; x is the gradient of y
};

// Tile i is walked while tile i + 1 is prepared, the rows of i + 2 are copied, and the tokens of i + 3 are looked up.
struct Shared {
  float4 rows[3][TILE][ROW_PADDED / 4];
  float4 steps[2][TILE][STEP_ROW];  // dt and dt * x (x alone in the adjoint walk) of a channel pair
  int tokens[4][TILE];
};
static_assert(sizeof(Shared) == SHARED_BYTES, "the launch must ask for this much shared memory");

struct Task {
  Image size;
  int channels, start, stop, tiles;
  size_t first_token;

  __device__ Task(const Lane& lane, Image size, int channels, int segment_tokens)
      : size(size),
        channels(channels),
        start(lane.segment * segment_tokens),
        stop(min(start + segment_tokens, size.length())),
        tiles((stop - start + TILE - 1) / TILE),
        first_token(static_cast<size_t>(lane.image) * size.length()) {}
};

// The preparing warps. `elapsed` gets the sum of dt over the segment, if anybody wants it.
template <Walk walk>
__device__ __forceinline__ void prepare(Shared& shared, const Lane& lane, const Task& task,
                                        const Value* __restrict__ x, const float* __restrict__ projected,
                                        const float* __restrict__ dt_weight, const float* __restrict__ dt_bias,
                                        float* __restrict__ elapsed) {
  const int thread = threadIdx.x % THREADS;
  float weight[2][RANK];
  const size_t parameter_row = static_cast<size_t>(lane.direction) * task.channels + lane.channel;
#pragma unroll
  for (int j = 0; j < 2; ++j)
#pragma unroll
    for (int i = 0; i < RANK; ++i) weight[j][i] = dt_weight[(parameter_row + j) * RANK + i];
  const float2 bias = make_float2(dt_bias[parameter_row], dt_bias[parameter_row + 1]);

  auto find_tokens = [&](int tile) {
    if (thread < TILE) {
      const int place = tile * TILE + thread;
      // The adjoint walk starts behind the end of the last tile, so that tiles are the same in both walks.
      const int position =
          walk == Walk::ADJOINT_ENDS ? task.start + task.tiles * TILE - 1 - place : task.start + place;
      shared.tokens[tile % 4][thread] = tile < task.tiles ? task.size.token(position, lane.direction) : -1;
    }
  };
  auto copy_rows = [&](int tile) {
    for (int i = thread; i < TILE * (ROW / 4); i += THREADS) {
      const int t = i / (ROW / 4), part = i % (ROW / 4), token = shared.tokens[tile % 4][t];
      const size_t row = (task.first_token + max(token, 0)) * DIRECTIONS + lane.direction;
      const float4* from = reinterpret_cast<const float4*>(projected + row * ROW) + part;
      copy_async(&shared.rows[tile % 3][t][part], from, token >= 0);
    }
  };
  Two own[OWN];  // x of the lane's tokens
  auto load_own = [&](int tile) {
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
      const int token = shared.tokens[tile % 4][SPLIT * i + lane.q];
      own[i] = Two();
      if (token >= 0) load_two(x + (task.first_token + token) * task.channels + lane.channel, own[i]);
    }
  };
  float2 time = make_float2(0.f, 0.f);
  auto compute_steps = [&](int tile) {
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
      const int t = SPLIT * i + lane.q;
      const float2 before = time_step(shared.rows[tile % 3][t], weight, bias);
      const float2 dt = make_float2(softplus(before.x), softplus(before.y));
      const float2 value = unpack(own[i]);
      const float2 drive = walk == Walk::ADJOINT_ENDS ? value : make_float2(dt.x * value.x, dt.y * value.y);
      shared.steps[tile % 2][t][lane.pair] = make_float4(dt.x, dt.y, drive.x, drive.y);
      time.x += dt.x;
      time.y += dt.y;
    }
  };

  for (int tile = 0; tile < 3; ++tile) find_tokens(tile);
  meet<2 * THREADS>();
  copy_rows(0);
  copy_rows(1);
  load_own(0);
  wait_for_copies();
  meet<2 * THREADS>();
  compute_steps(0);
  load_own(1);
  for (int tile = 0; tile < task.tiles; ++tile) {
    meet<2 * THREADS>();
    if (tile + 1 == task.tiles) break;
    copy_rows(tile + 2);
    find_tokens(tile + 3);
    compute_steps(tile + 1);
    load_own(tile + 2);
    wait_for_copies();
  }

  if (walk != Walk::OUTPUTS) {
    time = team_sum(time);
    const size_t row = lane.state_row(lane.segment, lane.segments, task.channels);
    if (lane.q == 0) *reinterpret_cast<float2*>(elapsed + row) = time;
  }
}

// The walking warps.
template <Walk walk>
__device__ __forceinline__ void step_through(const Shared& shared, const Lane& lane, const Task& task,
                                             const float* __restrict__ a_log, float* __restrict__ ends,
                                             const float* __restrict__ elapsed, Value* __restrict__ total,
                                             Value* __restrict__ parts, float* __restrict__ states) {
  const int q = lane.q, length = task.size.length(), chunks = (length + CHUNK - 1) / CHUNK;
  float rate[2][OWNED], h[2][OWNED] = {};
  lane.rates(a_log, task.channels, rate);
  if (walk == Walk::OUTPUTS) carry_over(lane, ends, elapsed, rate, task.channels, 0, lane.segment, 1, h);
  Value* y = lane.of_direction(total, parts, length, task.channels) + task.first_token * task.channels + lane.channel;

  meet<2 * THREADS>();
  meet<2 * THREADS>();
  for (int tile = 0; tile < task.tiles; ++tile) {
    meet<2 * THREADS>();
    const auto& row = shared.rows[tile % 3];
    const int position = task.start + tile * TILE;
    if (walk == Walk::OUTPUTS && states != nullptr && position % CHUNK == 0)
      store_states(states, lane.state_row(position / CHUNK, chunks, task.channels), q, h);

#pragma unroll 2  // 1, 4 and 8 are slower by 4, 3 and 11 %
    for (int t = 0; t < TILE; t += SPLIT) {
      float out[2][SPLIT];
#pragma unroll
      for (int i = 0; i < SPLIT; ++i) {
        const float4 step = shared.steps[tile % 2][t + i][lane.pair];
        const float dt[2] = {step.x, step.y}, drive[2] = {step.z, step.w};
        float b[OWNED], c[OWNED];
        if (walk != Walk::ADJOINT_ENDS) load_b(row[t + i], q, b);
        if (walk != Walk::ENDS) load_c(row[t + i], q, c);
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          out[j][i] = 0.f;
#pragma unroll
          for (int n = 0; n < OWNED; ++n) {
            const float decay = exp2_fast(dt[j] * rate[j][n]);
            if (walk == Walk::ADJOINT_ENDS) {
              h[j][n] = decay * fmaf(drive[j], c[n], h[j][n]);
            } else {
              h[j][n] = fmaf(decay, h[j][n], drive[j] * b[n]);
              if (walk == Walk::OUTPUTS) out[j][i] = fmaf(h[j][n], c[n], out[j][i]);
            }
          }
        }
      }
      if (walk == Walk::OUTPUTS) {
        const float2 sum = make_float2(team_total(out[0], q), team_total(out[1], q));
        const int token = shared.tokens[tile % 4][t + q];
        if (token >= 0) store_two(y + static_cast<size_t>(token) * task.channels, sum.x, sum.y);
      }
    }
  }
  if (walk != Walk::OUTPUTS)
    store_states(ends, lane.state_row(lane.segment, lane.segments, task.channels), q, h);
}

template <Walk walk>
__device__ __forceinline__ void scan(const Value* __restrict__ x, const float* __restrict__ projected,
                                     const float* __restrict__ dt_weight, const float* __restrict__ dt_bias,
                                     const float* __restrict__ a_log, float* __restrict__ ends,
                                     float* __restrict__ elapsed, Value* __restrict__ total,
                                     Value* __restrict__ parts, float* __restrict__ states, Image size, int channels,
                                     int segment_tokens) {
  DYNAMIC_SHARED(memory);
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const Lane lane(threadIdx.x % THREADS);
  const Task task(lane, size, channels, segment_tokens);
  if (threadIdx.x >= THREADS) {
    prepare<walk>(shared, lane, task, x, projected, dt_weight, dt_bias, elapsed);
  } else {
    step_through<walk>(shared, lane, task, a_log, ends, elapsed, total, parts, states);
  }
}

// x (B, L, D); projected (B, L, 4, R + 32); dt_weight (4, D, R); dt_bias (4, D); a_log (4, D, 16);
// ends (B, segments, 4, D, 16) and elapsed (B, segments, 4, D), read if there are several segments;
// Written: total (B, L, D), what the first direction adds, and parts (3, B, L, D), the other three; states
// (B, chunks, 4, D, 16) at the start of each chunk, unless null. `segment_tokens` is a multiple of CHUNK.
extern "C" __global__ void __launch_bounds__(2 * THREADS, 2)
    scan_forward(const Value* __restrict__ x, const float* __restrict__ projected,
                 const float* __restrict__ dt_weight, const float* __restrict__ dt_bias,
                 const float* __restrict__ a_log, float* __restrict__ ends, float* __restrict__ elapsed,
                 Value* __restrict__ total, Value* __restrict__ parts, float* __restrict__ states, int height,
                 int width, int channels, int segment_tokens) {
  scan<Walk::OUTPUTS>(x, projected, dt_weight, dt_bias, a_log, ends, elapsed, total, parts, states,
                      Image{height, width}, channels, segment_tokens);
}

// The first pass over several segments: fills ends and elapsed.
extern "C" __global__ void __launch_bounds__(2 * THREADS, 2)
    segment_ends(const Value* __restrict__ x, const float* __restrict__ projected,
                 const float* __restrict__ dt_weight, const float* __restrict__ dt_bias,
                 const float* __restrict__ a_log, float* __restrict__ ends, float* __restrict__ elapsed, int height,
                 int width, int channels, int segment_tokens) {
  scan<Walk::ENDS>(x, projected, dt_weight, dt_bias, a_log, ends, elapsed, nullptr, nullptr, nullptr,
                   Image{height, width}, channels, segment_tokens);
}

// The same for the backward recurrence; x is the gradient of y.
extern "C" __global__ void __launch_bounds__(2 * THREADS, 2)
    adjoint_segment_ends(const Value* __restrict__ x, const float* __restrict__ projected,
                         const float* __restrict__ dt_weight, const float* __restrict__ dt_bias,
                         const float* __restrict__ a_log, float* __restrict__ ends, float* __restrict__ elapsed,
                         int height, int width, int channels, int segment_tokens) {
  scan<Walk::ADJOINT_ENDS>(x, projected, dt_weight, dt_bias, a_log, ends, elapsed, nullptr, nullptr, nullptr,
                           Image{height, width}, channels, segment_tokens);
}
