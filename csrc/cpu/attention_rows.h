// What forward and backward of rank-grouped attention share: the call, packed keys, scores of a block of queries, and
// the groups and weights of a row.
#pragma once

#include "functions.h"
#include "kernels.h"
#include "rank_select.h"

namespace {

constexpr int64_t kBlockQueries = 32;
constexpr int64_t kPanel = 2 * kLanes;   // keys of a packed panel
constexpr int64_t kRows = 8;             // queries that a panel is multiplied with at once
constexpr int kParts = kGroups + 1;      // four groups and the rest
constexpr float kLargestScore = 3e38f;
constexpr int64_t kPartQueries = 1024;   // queries whose key gradients are summed together, whatever the threads

struct AttentionCall {
    const AttentionShape& shape;
    const float* query;
    AttentionStrides query_strides;
    const float *key, *value;
    float* output;
    AttentionStrides output_strides;
    // backward
    const float *saved, *grad;
    AttentionStrides grad_strides;
    float* grad_query;
    AttentionStrides grad_query_strides;
    // made here
    int64_t padded_keys, padded_dim, blocks, parts;
    float* packed_keys;    // (batch * heads, panels, dim, kPanel)
    float* padded_rows;    // keys (backward only) and values: (batch * heads, keys, padded_dim) each
    float* part_gradients; // (batch * heads, parts, 2, keys, padded_dim)
    float* scratch;
    int64_t scratch_size;  // floats a thread

    const float* keys_of(int64_t image) const { return packed_keys + image * padded_keys * shape.dim; }
    const float* values_of(int64_t image) const { return padded_rows + image * shape.keys * padded_dim; }
    const float* key_rows_of(int64_t image) const {
        return values_of(image + shape.batch * shape.heads);
    }
};

void pack_keys(void* context, int64_t image, int) {
    auto& call = *static_cast<AttentionCall*>(context);
    const int64_t keys = call.shape.keys, dim = call.shape.dim;
    float* packed = call.packed_keys + image * call.padded_keys * dim;
    const float* from = call.key + image * keys * dim;
    for (int64_t panel = 0; panel < call.padded_keys; panel += kPanel)
        for (int64_t channel = 0; channel < dim; ++channel)
            for (int64_t lane = 0; lane < kPanel; ++lane)
                *packed++ = panel + lane < keys ? from[(panel + lane) * dim + channel] : 0.0f;
    const bool backward = call.grad != nullptr;
    for (int source = 0; source < 1 + backward; ++source) {
        const float* rows = (source ? call.key : call.value) + image * keys * dim;
        float* to = call.padded_rows + (image + source * call.shape.batch * call.shape.heads) * keys * call.padded_dim;
        for (int64_t row = 0; row < keys; ++row)
            for (int64_t channel = 0; channel < call.padded_dim; ++channel)
                to[row * call.padded_dim + channel] = channel < dim ? rows[row * dim + channel] : 0.0f;
    }
}

// (count, padded_dim) rows out of a strided tensor; zeros behind `dim`.
inline void gather_rows(const float* from, int64_t row_step, int64_t channel_step, int64_t count, int64_t dim,
                        int64_t padded_dim, float* to) {
    for (int64_t channel = 0; channel < dim; ++channel)
        for (int64_t row = 0; row < count; ++row)
            to[row * padded_dim + channel] = from[row * row_step + channel * channel_step];
    for (int64_t row = 0; row < count; ++row)
        for (int64_t channel = dim; channel < padded_dim; ++channel) to[row * padded_dim + channel] = 0.0f;
}

inline void scatter_rows(const float* from, int64_t row_step, int64_t channel_step, int64_t count, int64_t dim,
                         int64_t padded_dim, float* to) {
    for (int64_t channel = 0; channel < dim; ++channel)
        for (int64_t row = 0; row < count; ++row)
            to[row * row_step + channel * channel_step] = from[row * padded_dim + channel];
}

// Scores (kBlockQueries, padded_keys) of a block; minus infinity behind the last key.
inline void block_scores(const AttentionCall& call, const float* queries, const float* packed, float* scores) {
    const int64_t dim = call.shape.dim, keys = call.shape.keys;
    const Vec scale = broadcast(call.shape.scale);
    for (int64_t panel = 0; panel < call.padded_keys; panel += kPanel, packed += dim * kPanel) {
        for (int64_t first = 0; first < kBlockQueries; first += kRows) {
            Vec total[kRows][2] = {};
            const float* row = queries + first * call.padded_dim;
            for (int64_t channel = 0; channel < dim; ++channel) {
                const Vec left = load(packed + channel * kPanel), right = load(packed + channel * kPanel + kLanes);
                for (int64_t r = 0; r < kRows; ++r) {
                    const Vec q = broadcast(row[r * call.padded_dim + channel]);
                    total[r][0] += q * left;
                    total[r][1] += q * right;
                }
            }
            for (int64_t r = 0; r < kRows; ++r) {
                float* to = scores + (first + r) * call.padded_keys + panel;
                store(to, total[r][0] * scale);
                store(to + kLanes, total[r][1] * scale);
            }
        }
    }
    for (int64_t row = 0; row < kBlockQueries; ++row)
        for (int64_t key = keys; key < call.padded_keys; ++key)
            scores[row * call.padded_keys + key] = -__builtin_inff();
}

// The row's smallest and largest score; false if one is not finite, or nearly so.
SA2_INLINE bool finite_range(const float* scores, int64_t keys, float* lowest, float* highest) {
    float low = scores[0], high = scores[0];
    Vec lows = broadcast(low), highs = lows, poison{};
    int64_t key = 0;
    for (; key + kLanes <= keys; key += kLanes) {
        const Vec s = load(scores + key);
        lows = smaller(s, lows);
        highs = larger(s, highs);
        poison += s * 0.0f;  // NaN if s is infinite or NaN
    }
    float bad = sum(poison);
    for (int lane = 0; lane < kLanes; ++lane) {
        low = lows[lane] < low ? lows[lane] : low;
        high = highs[lane] > high ? highs[lane] : high;
    }
    for (; key < keys; ++key) {
        low = scores[key] < low ? scores[key] : low;
        high = scores[key] > high ? scores[key] : high;
        bad += scores[key] * 0.0f;
    }
    *lowest = low;
    *highest = high;
    return bad == 0.0f && low > -kLargestScore && high < kLargestScore;
}

// A row's groups: keys in their order, and their weights, which add up to 1 in each part.
struct Row {
    int32_t* order;
    float* weights;             // room for kLanes more
    int64_t starts[kParts + 1];
    float share[kParts];        // of the part in the softmax over all keys
};

// False if a score is not finite.
inline bool weigh_row(const AttentionCall& call, const float* scores, Row& row) {
    const int64_t keys = call.shape.keys;
    float lowest, highest;
    if (!finite_range(scores, keys, &lowest, &highest)) return false;
    partition_row(scores, keys, call.padded_keys, call.shape.bounds, lowest, highest, row.order, row.starts);
    float maximum[kParts], mass[kParts], total = 0.0f;
    for (int64_t at = 0; at < keys; ++at) row.weights[at] = scores[row.order[at]];
    for (int part = 0; part < kParts; ++part) {
        const int64_t start = row.starts[part], end = row.starts[part + 1];
        float most = -__builtin_inff();
        for (int64_t at = start; at < end; ++at) most = row.weights[at] > most ? row.weights[at] : most;
        Vec sums{};
        for (int64_t at = start; at < end; at += kLanes) {
            float* here = row.weights + at;
            const int64_t count = end - at;
            if (count >= kLanes) {
                const Vec p = exp_nonpositive(load(here) - most);
                store(here, p);
                sums += p;
            } else {
                Vec p = exp_nonpositive(load(here, count) - most);
                store(here, p, count);
                sums += load(here, count);
            }
        }
        maximum[part] = most;
        mass[part] = sum(sums);
        if (start == end) {
            row.share[part] = 0.0f;
            continue;
        }
        const Vec normalise = broadcast(1.0f / mass[part]);
        for (int64_t at = start; at < end; at += kLanes)
            store(row.weights + at, load(row.weights + at, end - at) * normalise, end - at);
        // the first part holds the row's maximum
        row.share[part] = mass[part] * exp_nonpositive(broadcast(most - maximum[0]))[0];
        total += row.share[part];
    }
    for (int part = 0; part < kParts; ++part) row.share[part] /= total;
    return true;
}

// Sum of weighted rows, `kVectors` vectors of channels.
template <int kVectors>
inline void weighted_sum(const float* rows, int64_t row_step, const int32_t* order, const float* weights,
                         int64_t count, float* out) {
    Vec total[kVectors] = {};
    for (int64_t at = 0; at < count; ++at) {
        const float* from = rows + order[at] * row_step;
        const Vec weight = broadcast(weights[at]);
        for (int part = 0; part < kVectors; ++part) total[part] += weight * load(from + part * kLanes);
    }
    for (int part = 0; part < kVectors; ++part) store(out + part * kLanes, total[part]);
}

inline void weighted_sum(const float* rows, int64_t dim, const int32_t* order, const float* weights, int64_t count,
                         float* out) {
    int64_t done = 0;
    for (; dim - done >= 8 * kLanes; done += 8 * kLanes)
        weighted_sum<8>(rows + done, dim, order, weights, count, out + done);
    rows += done;
    out += done;
    switch ((dim - done) / kLanes) {
        case 1: return weighted_sum<1>(rows, dim, order, weights, count, out);
        case 2: return weighted_sum<2>(rows, dim, order, weights, count, out);
        case 3: return weighted_sum<3>(rows, dim, order, weights, count, out);
        case 4: return weighted_sum<4>(rows, dim, order, weights, count, out);
        case 5: return weighted_sum<5>(rows, dim, order, weights, count, out);
        case 6: return weighted_sum<6>(rows, dim, order, weights, count, out);
        case 7: return weighted_sum<7>(rows, dim, order, weights, count, out);
        default: return;
    }
}

// A block of queries: which, and where its rows start in a tensor.
struct Block {
    int64_t image, first, count;

    int64_t offset(const AttentionShape& s, const AttentionStrides& strides) const {
        return image / s.heads * strides.batch + image % s.heads * strides.head + first * strides.query;
    }
};

// Memory of a thread, handed out in vectors.
struct Scratch {
    float* next;
    float* take(int64_t floats) {
        float* taken = next;
        next += round_up(floats, kLanes);
        return taken;
    }
};

inline Row take_row(Scratch& scratch, int64_t keys) {
    Row row;
    row.order = reinterpret_cast<int32_t*>(scratch.take(keys));
    row.weights = scratch.take(keys + kLanes);
    return row;
}

inline void size_call(AttentionCall& call) {
    const AttentionShape& s = call.shape;
    call.padded_keys = round_up(s.keys, kPanel);
    call.padded_dim = round_up(s.dim, kLanes);
    call.blocks = (s.queries + kBlockQueries - 1) / kBlockQueries;
    call.parts = (s.queries + kPartQueries - 1) / kPartQueries;
    const int64_t rows = kBlockQueries * (call.padded_dim * (2 + 2 * kParts) + call.padded_keys);
    call.scratch_size = rows + 2 * call.padded_dim + 2 * call.padded_keys + 8 * kLanes;
}

}  // namespace
