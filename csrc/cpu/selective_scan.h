// The four-direction selective scan: h = exp(dt A) h + dt B x, y = C h, along rows, columns and both reversed.
//
// A vector is channels of one token; states run one after another. Tokens stay in the order of the image's rows, a
// direction is an order of visiting them. A task owns some channels of one image and walks each direction chunk by
// chunk, all its channels in a chunk before the next, so that the chunk's projections stay in cache.
// Backward: from the states saved at the chunks' starts a chunk is scanned again, its states and decays kept in cache,
// then walked backwards. Gradients of projections are summed over channels lane by lane and across lanes once a chunk.
#pragma once

#include <math.h>

#include "functions.h"
#include "kernels.h"
#include "memory.h"

// Measured (one core of a Zen 4 EPYC, AVX-512; 120x160 tokens, 512 channels, 16 states): 250 ms, where the 14 vector
// operations of each of 39 million updates would take 90 at two a cycle. Backward 700 ms.
//
// Loops over states and ranks are unrolled (by hint: `#pragma GCC unroll`), so that states stay in registers.

namespace {

constexpr int kDirections = 4;
constexpr int kMostStates = 64, kMostRank = 64;
constexpr int64_t kAhead = 6;      // tokens between prefetch and use
constexpr int64_t kChannelPad = 16;  // rows of parameters and states are a multiple of this on every path

// Parameters with channels last and padded to whole vectors.
struct ScanCall {
    const ScanShape& shape;
    const float *x, *projected;
    float *output, *states;            // states: (batch, chunks, 4, states, padded channels) or null
    const float* saved;
    const float* grad;
    float *grad_x, *grad_projected;    // grad_projected: (parts, batch, tokens, 4, rank + 2 states)
    // made here
    int64_t tokens, chunks, blocks, padded, width, parts;
    // (4, states, padded) times log2(e); (4, rank, padded); (4, padded); (padded)
    const float *rate, *weight, *bias, *skip;
    float* gradients;                  // (batch, kinds of parameters, padded): see Gradients
    float* scratch;
    int64_t scratch_size;

    int64_t gradient_rows() const { return kDirections * (shape.states + shape.rank + 1) + 1; }
};

// Rows of the parameters' gradients of an image: rates, weights, biases of each direction, then the skip.
struct Gradients {
    float* start;
    int64_t states, rank, padded;
    float* rate(int64_t k, int64_t n) const { return start + (k * states + n) * padded; }
    float* weight(int64_t k, int64_t i) const { return start + (kDirections * states + k * rank + i) * padded; }
    float* bias(int64_t k) const { return start + (kDirections * (states + rank) + k) * padded; }
    float* skip() const { return start + kDirections * (states + rank + 1) * padded; }
};

// Tokens of a chunk in the order of a direction; returns how many.
inline int64_t chunk_tokens(const ScanShape& s, int64_t direction, int64_t chunk, int64_t* tokens) {
    const int64_t length = s.height * s.width, start = chunk * s.chunk;
    const int64_t count = length - start < s.chunk ? length - start : s.chunk;
    for (int64_t step = 0; step < count; ++step) {
        const int64_t at = direction >= 2 ? length - 1 - start - step : start + step;
        tokens[step] = direction % 2 ? at % s.height * s.width + at / s.height : at;
    }
    return count;
}

SA2_INLINE void prefetch(const float* from) { __builtin_prefetch(from); }

// What a block of channels of one direction needs. Sizes that are known when compiling are template arguments.
template <int kStates, int kRank>
struct ScanBlock {
    const ScanCall& call;
    int64_t image, direction, channel, here;  // `here`: channels that exist
    const int64_t states, rank;

    ScanBlock(const ScanCall& c, int64_t image_, int64_t direction_, int64_t block)
        : call(c), image(image_), direction(direction_), channel(block * kLanes),
          here(c.shape.channels - block * kLanes), states(kStates ? kStates : c.shape.states),
          rank(kRank ? kRank : c.shape.rank) {}

    SA2_INLINE const float* parameters(const float* of, int64_t rows) const {
        return of + direction * rows * call.padded + channel;
    }
    SA2_INLINE const float* projections(int64_t token) const {
        return call.projected + ((image * call.tokens + token) * kDirections + direction) * call.width;
    }
    SA2_INLINE int64_t at(int64_t token) const {
        return (image * call.tokens + token) * call.shape.channels + channel;
    }
    SA2_INLINE Vec raw_time_step(const float* low_rank) const {
        const float* weight = parameters(call.weight, rank);
        Vec sums[2] = {load(parameters(call.bias, 1)), Vec{}};
#pragma GCC unroll 16
        for (int64_t i = 0; i < rank; ++i) sums[i % 2] += low_rank[i] * load(weight + i * call.padded);
        return sums[0] + sums[1];
    }

    SA2_INLINE void forward(const int64_t* tokens, int64_t count, float* state_memory) const {
        constexpr int kRoom = kStates ? kStates : kMostStates;
        const float* rate = parameters(call.rate, states);
        Vec state[kRoom];
#pragma GCC unroll 16
        for (int64_t n = 0; n < states; ++n) state[n] = load(state_memory + n * kLanes);
        const Vec skip = load(call.skip + channel);
        for (int64_t step = 0; step < count; ++step) {
            if (step + kAhead < count) {
                prefetch(call.x + at(tokens[step + kAhead]));
                prefetch(call.output + at(tokens[step + kAhead]));
            }
            const float* p = projections(tokens[step]);
            const float *b = p + rank, *c = b + states;
            const Vec x = load(call.x + at(tokens[step]), here);
            const Vec dt = softplus(raw_time_step(p));
            const Vec drive = dt * x;
            Vec total{};
#pragma GCC unroll 16
            for (int64_t n = 0; n < states; ++n) {
                const Vec decay = exp2_nonpositive(dt * load(rate + n * call.padded));
                state[n] = decay * state[n] + drive * b[n];
                total += state[n] * c[n];
            }
            float* y = call.output + at(tokens[step]);
            store(y, total + (direction ? load(y, here) : skip * x), here);
        }
#pragma GCC unroll 16
        for (int64_t n = 0; n < states; ++n) store(state_memory + n * kLanes, state[n]);
    }

    // Scan the chunk again: `before` and `decays` are (count, states) vectors, `before` one token longer.
    SA2_INLINE void replay(const int64_t* tokens, int64_t count, const float* saved, float* before, float* decays,
                           float* raw) const {
        constexpr int kRoom = kStates ? kStates : kMostStates;
        const float* rate = parameters(call.rate, states);
        Vec state[kRoom];
#pragma GCC unroll 16
        for (int64_t n = 0; n < states; ++n) {
            state[n] = load(saved + n * call.padded);
            store(before + n * kLanes, state[n]);
        }
        for (int64_t step = 0; step < count; ++step) {
            const float* p = projections(tokens[step]);
            const float* b = p + rank;
            const Vec bare = raw_time_step(p), dt = softplus(bare);
            const Vec drive = dt * load(call.x + at(tokens[step]), here);
            store(raw + 2 * step * kLanes, bare);
            store(raw + (2 * step + 1) * kLanes, dt);
            before += states * kLanes;
#pragma GCC unroll 16
            for (int64_t n = 0; n < states; ++n) {
                const Vec decay = exp2_nonpositive(dt * load(rate + n * call.padded));
                store(decays + n * kLanes, decay);
                state[n] = decay * state[n] + drive * b[n];
                store(before + n * kLanes, state[n]);
            }
            decays += states * kLanes;
        }
    }

    // `adjoint` is what the token behind the chunk hands back to the states, then what this chunk does.
    // `sums` gets the projections' gradients, (count, rank + 2 states) vectors to be summed across lanes.
    SA2_INLINE void backward(const int64_t* tokens, int64_t count, const float* before, const float* decays,
                             const float* raw, float* adjoint, float* sums, const Gradients& gradients) const {
        constexpr int kRoom = kStates ? kStates : kMostStates, kRankRoom = kRank ? kRank : kMostRank;
        const float *rate = parameters(call.rate, states), *weight = parameters(call.weight, rank);
        Vec back[kRoom], of_rate[kRoom], of_weight[kRankRoom], of_bias{}, of_skip{};
#pragma GCC unroll 16
        for (int64_t n = 0; n < states; ++n) {
            back[n] = load(adjoint + n * kLanes);
            of_rate[n] = Vec{};
        }
#pragma GCC unroll 16
        for (int64_t i = 0; i < rank; ++i) of_weight[i] = Vec{};
        const Vec skip = load(call.skip + channel);
        for (int64_t step = count - 1; step >= 0; --step) {
            const float* p = projections(tokens[step]);
            const float *b = p + rank, *c = b + states;
            const Vec x = load(call.x + at(tokens[step]), here), grad = load(call.grad + at(tokens[step]), here);
            const Vec bare = load(raw + 2 * step * kLanes), dt = load(raw + (2 * step + 1) * kLanes);
            const Vec drive = dt * x;
            float* sum_rank = sums + step * call.width * kLanes;
            float *sum_b = sum_rank + rank * kLanes, *sum_c = sum_b + states * kLanes;
            const float *h_before = before + step * states * kLanes, *h = h_before + states * kLanes;
            const float* decay = decays + step * states * kLanes;
            Vec of_drive{}, of_dt{};
#pragma GCC unroll 16
            for (int64_t n = 0; n < states; ++n) {
                const int64_t at_n = n * kLanes;
                const Vec g = back[n] + grad * c[n];  // gradient of this token's state
                store(sum_c + at_n, load(sum_c + at_n) + grad * load(h + at_n));
                store(sum_b + at_n, load(sum_b + at_n) + g * drive);
                of_drive += g * b[n];
                back[n] = g * load(decay + at_n);
                const Vec of_exponent = back[n] * load(h_before + at_n);
                of_rate[n] += of_exponent * dt;
                of_dt += of_exponent * load(rate + n * call.padded);
            }
            float* grad_x = call.grad_x + at(tokens[step]);
            store(grad_x, of_drive * dt + (direction ? load(grad_x, here) : skip * grad), here);
            // the rates hold a factor log2(e)
            const Vec of_raw = (of_drive * x + of_dt * (1.0f / kLog2E)) * sigmoid(bare);
            of_bias += of_raw;
            of_skip += grad * x;
#pragma GCC unroll 16
            for (int64_t i = 0; i < rank; ++i) {
                const int64_t at_i = i * kLanes;
                store(sum_rank + at_i, load(sum_rank + at_i) + of_raw * load(weight + i * call.padded));
                of_weight[i] += of_raw * p[i];
            }
        }
        const auto add = [this](float* to, Vec v) { store(to + channel, load(to + channel) + v); };
        for (int64_t n = 0; n < states; ++n) {
            store(adjoint + n * kLanes, back[n]);
            add(gradients.rate(direction, n), of_rate[n]);
        }
        for (int64_t i = 0; i < rank; ++i) add(gradients.weight(direction, i), of_weight[i]);
        add(gradients.bias(direction), of_bias);
        if (direction == 0) add(gradients.skip(), of_skip);
    }
};

SA2_INLINE void zero(float* from, int64_t count) { memset(from, 0, count * sizeof(float)); }

template <int kStates, int kRank>
void scan_forward_task(void* context, int64_t index, int thread) {
    const auto& call = *static_cast<const ScanCall*>(context);
    const ScanShape& s = call.shape;
    const int64_t image = index / call.parts, part = index % call.parts;
    const int64_t first = call.blocks * part / call.parts, last = call.blocks * (part + 1) / call.parts;
    auto* tokens = reinterpret_cast<int64_t*>(call.scratch + thread * call.scratch_size);
    float* state = reinterpret_cast<float*>(tokens + s.chunk);
    for (int64_t direction = 0; direction < kDirections; ++direction) {
        zero(state, call.padded * s.states);
        for (int64_t chunk = 0; chunk < call.chunks; ++chunk) {
            const int64_t count = chunk_tokens(s, direction, chunk, tokens);
            for (int64_t block = first; block < last; ++block) {
                float* own = state + block * kLanes * s.states;
                if (call.states) {
                    const int64_t row = ((image * call.chunks + chunk) * kDirections + direction) * s.states;
                    for (int64_t n = 0; n < s.states; ++n)
                        store(call.states + (row + n) * call.padded + block * kLanes, load(own + n * kLanes));
                }
                ScanBlock<kStates, kRank>(call, image, direction, block).forward(tokens, count, own);
            }
        }
    }
}

template <int kStates, int kRank>
void scan_backward_task(void* context, int64_t index, int thread) {
    const auto& call = *static_cast<const ScanCall*>(context);
    const ScanShape& s = call.shape;
    const int64_t image = index / call.parts, part = index % call.parts;
    const int64_t first = call.blocks * part / call.parts, last = call.blocks * (part + 1) / call.parts;
    auto* tokens = reinterpret_cast<int64_t*>(call.scratch + thread * call.scratch_size);
    float* adjoint = reinterpret_cast<float*>(tokens + s.chunk);
    float* before = adjoint + call.padded * s.states;
    float* decays = before + (s.chunk + 1) * s.states * kLanes;
    float* raw = decays + s.chunk * s.states * kLanes;
    float* sums = raw + 2 * s.chunk * kLanes;
    const Gradients gradients{call.gradients + image * call.gradient_rows() * call.padded, s.states, s.rank,
                              call.padded};
    float* grad_projected = call.grad_projected +
                            (part * s.batch + image) * call.tokens * kDirections * call.width;
    for (int64_t direction = 0; direction < kDirections; ++direction) {
        zero(adjoint, call.padded * s.states);
        for (int64_t chunk = call.chunks - 1; chunk >= 0; --chunk) {
            const int64_t count = chunk_tokens(s, direction, chunk, tokens);
            zero(sums, count * call.width * kLanes);
            const int64_t row = ((image * call.chunks + chunk) * kDirections + direction) * s.states;
            for (int64_t block = first; block < last; ++block) {
                const ScanBlock<kStates, kRank> scan(call, image, direction, block);
                scan.replay(tokens, count, call.saved + row * call.padded + block * kLanes, before, decays, raw);
                scan.backward(tokens, count, before, decays, raw, adjoint + block * kLanes * s.states, sums,
                              gradients);
            }
            for (int64_t step = 0; step < count; ++step) {
                float* to = grad_projected + (tokens[step] * kDirections + direction) * call.width;
                for (int64_t i = 0; i < call.width; ++i) to[i] = sum(load(sums + (step * call.width + i) * kLanes));
            }
        }
    }
}

// (4, channels, rows) to (4, rows, padded channels).
inline void transpose_channels(const float* from, int64_t channels, int64_t rows, int64_t padded, float* to) {
    for (int64_t direction = 0; direction < kDirections; ++direction)
        for (int64_t row = 0; row < rows; ++row)
            for (int64_t channel = 0; channel < channels; ++channel)
                to[(direction * rows + row) * padded + channel] =
                    from[(direction * channels + channel) * rows + row];
}

struct ScanParameters {
    MemoryOf memory;
    float *rate, *weight, *bias, *skip;

    ScanParameters(const ScanShape& s, int64_t padded, const float* dt_weight, const float* dt_bias,
                   const float* a_log, const float* d_skip)
        : memory((kDirections * (s.states + s.rank + 1) + 1) * padded) {
        rate = memory.floats;
        if (!rate) return;
        zero(rate, (kDirections * (s.states + s.rank + 1) + 1) * padded);
        weight = rate + kDirections * s.states * padded;
        bias = weight + kDirections * s.rank * padded;
        skip = bias + kDirections * padded;
        transpose_channels(a_log, s.channels, s.states, padded, rate);
        // padded channels get the rate 0 times log2(e); it is never read
        for (int64_t i = 0; i < kDirections * s.states * padded; ++i) rate[i] = -expf(rate[i]) * kLog2E;
        transpose_channels(dt_weight, s.channels, s.rank, padded, weight);
        transpose_channels(dt_bias, s.channels, 1, padded, bias);
        for (int64_t direction = 0; direction < kDirections; ++direction)
            for (int64_t channel = 0; channel < s.channels; ++channel)
                skip[channel] += d_skip[direction * s.channels + channel];
    }
};

// Tasks of an image: enough for the threads, but no more, because each reads all projections.
inline void size_call(ScanCall& call, const ScanParameters& parameters, int threads) {
    const ScanShape& s = call.shape;
    call.tokens = s.height * s.width;
    call.chunks = (call.tokens + s.chunk - 1) / s.chunk;
    call.padded = round_up(s.channels, kChannelPad);
    call.blocks = round_up(s.channels, kLanes) / kLanes;
    call.width = s.rank + 2 * s.states;
    call.rate = parameters.rate;
    call.weight = parameters.weight;
    call.bias = parameters.bias;
    call.skip = parameters.skip;
    call.parts = (threads + s.batch - 1) / s.batch;
    if (call.parts > 16) call.parts = 16;
    if (call.parts > call.blocks) call.parts = call.blocks;
}

int scan_forward(const ScanShape& shape, const float* x, const float* projected, const float* dt_weight,
                 const float* dt_bias, const float* a_log, const float* d_skip, float* output, float* states,
                 int threads) {
    const ScanParameters parameters(shape, round_up(shape.channels, kChannelPad), dt_weight, dt_bias, a_log, d_skip);
    if (!parameters.rate) return sa2::kNoMemory;
    ScanCall call{shape, x, projected, output, states};
    size_call(call, parameters, threads);
    call.scratch_size = 2 * shape.chunk + call.padded * shape.states + 16;
    const MemoryOf scratch(threads * call.scratch_size);
    if (!scratch.floats) return sa2::kNoMemory;
    call.scratch = scratch.floats;
    const bool usual = shape.states == 16 && shape.rank == 16;
    sa2::run_parallel(usual ? scan_forward_task<16, 16> : scan_forward_task<0, 0>, &call, shape.batch * call.parts,
                      threads);
    return sa2::kDone;
}

// Sums of the images' parameter gradients, in the parameters' own layout.
inline void write_parameter_gradients(const ScanCall& call, float* grad_dt_weight, float* grad_dt_bias,
                                      float* grad_a_log, float* grad_d_skip) {
    const ScanShape& s = call.shape;
    const Gradients all{call.gradients, s.states, s.rank, call.padded};
    const int64_t size = call.gradient_rows() * call.padded;
    for (int64_t image = 1; image < s.batch; ++image)
        for (int64_t i = 0; i < size; ++i) call.gradients[i] += call.gradients[image * size + i];
    for (int64_t k = 0; k < kDirections; ++k)
        for (int64_t channel = 0; channel < s.channels; ++channel) {
            const int64_t at = k * s.channels + channel;
            for (int64_t n = 0; n < s.states; ++n) {
                const float rate = call.rate[(k * s.states + n) * call.padded + channel] / kLog2E;
                grad_a_log[at * s.states + n] = all.rate(k, n)[channel] * rate;
            }
            for (int64_t i = 0; i < s.rank; ++i) grad_dt_weight[at * s.rank + i] = all.weight(k, i)[channel];
            grad_dt_bias[at] = all.bias(k)[channel];
            grad_d_skip[at] = all.skip()[channel];
        }
}

int scan_backward(const ScanShape& shape, const float* x, const float* projected, const float* dt_weight,
                  const float* dt_bias, const float* a_log, const float* d_skip, const float* states,
                  const float* grad, float* grad_x, float* grad_projected, float* grad_dt_weight,
                  float* grad_dt_bias, float* grad_a_log, float* grad_d_skip, int threads) {
    const ScanParameters parameters(shape, round_up(shape.channels, kChannelPad), dt_weight, dt_bias, a_log, d_skip);
    if (!parameters.rate) return sa2::kNoMemory;
    ScanCall call{shape, x, projected, nullptr, nullptr, states, grad, grad_x, grad_projected};
    size_call(call, parameters, threads);
    call.scratch_size = 2 * shape.chunk + call.padded * shape.states + 16 +
                        kLanes * ((2 * shape.chunk + 1) * shape.states + shape.chunk * (2 + call.width));
    const int64_t size = shape.batch * call.tokens * kDirections * call.width;
    const MemoryOf scratch(threads * call.scratch_size), gradients(shape.batch * call.gradient_rows() * call.padded);
    const MemoryOf partial(call.parts > 1 ? call.parts * size : 0);
    if (!scratch.floats || !gradients.floats || !partial.floats) return sa2::kNoMemory;
    zero(gradients.floats, shape.batch * call.gradient_rows() * call.padded);
    call.scratch = scratch.floats;
    call.gradients = gradients.floats;
    if (call.parts > 1) call.grad_projected = partial.floats;
    const bool usual = shape.states == 16 && shape.rank == 16;
    sa2::run_parallel(usual ? scan_backward_task<16, 16> : scan_backward_task<0, 0>, &call,
                      shape.batch * call.parts, threads);
    if (call.parts > 1)
        for (int64_t i = 0; i < size; ++i) {
            float total = 0.0f;
            for (int64_t part = 0; part < call.parts; ++part) total += partial.floats[part * size + i];
            grad_projected[i] = total;
        }
    write_parameter_gradients(call, grad_dt_weight, grad_dt_bias, grad_a_log, grad_d_skip);
    return sa2::kDone;
}

}  // namespace
