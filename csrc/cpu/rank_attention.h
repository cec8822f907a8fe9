// Attention over all keys and inside four ranges of rank: blocks of queries, their scores in cache, nothing of size
// queries times keys in memory.
//
// The groups and the rest are disjoint, so every key is multiplied by its weight once: the output over all keys is the
// five parts' sum, weighted by exp(maximum of the part - maximum) and normalised once more. Scores are products in
// float32 in one order of summation for every key, so equal keys have equal scores. A row with a score that is not
// finite is NaN in all five outputs.
//
// Tasks are blocks of 32 queries of one head. Measured (one core of a Zen 4 EPYC, AVX-512; 19200 queries, 300 keys of
// width 64): 70 ms, of which the two products would take 15 at the 97 GFLOP/s that MKL reaches on that core; the rest
// is ranking, exponentials and the gather of values. Backward 170 ms.
//
// Backward: scores and groups are recomputed. With W_g = grad_g + c_g grad_all (c_g: the part's share of all weights)
// and p the weights inside the part, each key gets grad_value += p W_g and the score's gradient p (W_g . v - D_g).
#pragma once

#include "attention_rows.h"
#include "memory.h"

namespace {

// Outputs (kParts, kBlockQueries, padded_dim): over all keys first, then the groups.
inline void attend_row(const AttentionCall& call, const Row& row, const float* values, float* rest, float* outputs) {
    const int64_t dim = call.padded_dim, step = kBlockQueries * dim;
    for (int part = 0; part < kParts; ++part) {
        float* to = part < kGroups ? outputs + (part + 1) * step : rest;
        const int64_t start = row.starts[part];
        weighted_sum(values, dim, row.order + start, row.weights + start, row.starts[part + 1] - start, to);
    }
    for (int64_t channel = 0; channel < dim; channel += kLanes) {
        Vec total = load(rest + channel) * row.share[kGroups];
        for (int group = 0; group < kGroups; ++group)
            total += load(outputs + (group + 1) * step + channel) * row.share[group];
        store(outputs + channel, total);
    }
}

void attention_forward_block(void* context, int64_t index, int thread) {
    const auto& call = *static_cast<const AttentionCall*>(context);
    const AttentionShape& s = call.shape;
    Block block{index / call.blocks, index % call.blocks * kBlockQueries, kBlockQueries};
    if (block.first + block.count > s.queries) block.count = s.queries - block.first;
    const int64_t dim = call.padded_dim;
    Scratch scratch{call.scratch + thread * call.scratch_size};
    float* queries = scratch.take(kBlockQueries * dim);
    float* scores = scratch.take(kBlockQueries * call.padded_keys);
    float* outputs = scratch.take(kParts * kBlockQueries * dim);
    float* rest = scratch.take(dim);
    Row row = take_row(scratch, s.keys);

    memset(queries, 0, kBlockQueries * dim * sizeof(float));
    gather_rows(call.query + block.offset(s, call.query_strides), call.query_strides.query,
                call.query_strides.channel, block.count, s.dim, dim, queries);
    block_scores(call, queries, call.keys_of(block.image), scores);
    for (int64_t r = 0; r < block.count; ++r) {
        if (weigh_row(call, scores + r * call.padded_keys, row)) {
            attend_row(call, row, call.values_of(block.image), rest, outputs + r * dim);
        } else {
            for (int part = 0; part < kParts; ++part)
                for (int64_t channel = 0; channel < dim; ++channel)
                    outputs[(part * kBlockQueries + r) * dim + channel] = __builtin_nanf("");
        }
    }
    const AttentionStrides& to = call.output_strides;
    for (int part = 0; part < kParts; ++part)
        scatter_rows(outputs + part * kBlockQueries * dim, to.query, to.channel, block.count, s.dim, dim,
                     call.output + part * to.group + block.offset(s, to));
}

// Gradients of one row. `grads` and `outputs` are (kParts, kBlockQueries, padded_dim) at the row, all keys first.
inline void row_backward(const AttentionCall& call, const Row& row, int64_t image, const float* query,
                         const float* grads, const float* outputs, float* grad_query, float* grad_keys,
                         float* grad_values, float* mixed) {
    const int64_t dim = call.padded_dim, step = kBlockQueries * dim;
    const float *keys = call.key_rows_of(image), *values = call.values_of(image);
    Vec dot_all{};
    for (int64_t c = 0; c < dim; c += kLanes) dot_all += load(grads + c) * load(outputs + c);
    const float all = sum(dot_all);
    for (int64_t c = 0; c < dim; c += kLanes) store(grad_query + c, Vec{});
    for (int part = 0; part < kParts; ++part) {
        const float share = row.share[part];
        Vec dot{};
        for (int64_t c = 0; c < dim; c += kLanes) {
            Vec own{};
            if (part < kGroups) {
                own = load(grads + (part + 1) * step + c);
                dot += own * load(outputs + (part + 1) * step + c);
            }
            store(mixed + c, own + load(grads + c) * share);
        }
        const float mean = sum(dot) + share * all;
        for (int64_t at = row.starts[part]; at < row.starts[part + 1]; ++at) {
            const int64_t key = row.order[at] * dim;
            const float weight = row.weights[at];
            Vec product{};
            for (int64_t c = 0; c < dim; c += kLanes) {
                const Vec w = load(mixed + c);
                product += w * load(values + key + c);
                store(grad_values + key + c, load(grad_values + key + c) + w * weight);
            }
            const float grad_score = weight * (sum(product) - mean) * call.shape.scale;
            for (int64_t c = 0; c < dim; c += kLanes) {
                store(grad_query + c, load(grad_query + c) + load(keys + key + c) * grad_score);
                store(grad_keys + key + c, load(grad_keys + key + c) + load(query + c) * grad_score);
            }
        }
    }
}

// A part of an image's queries, block by block: its key and value gradients have one order of summation.
void attention_backward_part(void* context, int64_t index, int thread) {
    const auto& call = *static_cast<const AttentionCall*>(context);
    const AttentionShape& s = call.shape;
    const int64_t dim = call.padded_dim, image = index / call.parts, step = kBlockQueries * dim;
    Scratch scratch{call.scratch + thread * call.scratch_size};
    float* queries = scratch.take(step);
    float* scores = scratch.take(kBlockQueries * call.padded_keys);
    float* outputs = scratch.take(kParts * step);
    float* grads = scratch.take(kParts * step);
    float* grad_queries = scratch.take(step);
    float* mixed = scratch.take(dim);
    Row row = take_row(scratch, s.keys);
    float* grad_keys = call.part_gradients + index * 2 * s.keys * dim;
    float* grad_values = grad_keys + s.keys * dim;
    memset(grad_keys, 0, 2 * s.keys * dim * sizeof(float));

    const int64_t begin = index % call.parts * kPartQueries;
    const int64_t end = begin + kPartQueries < s.queries ? begin + kPartQueries : s.queries;
    for (int64_t first = begin; first < end; first += kBlockQueries) {
        const Block block{image, first, end - first < kBlockQueries ? end - first : kBlockQueries};
        memset(queries, 0, step * sizeof(float));
        gather_rows(call.query + block.offset(s, call.query_strides), call.query_strides.query,
                    call.query_strides.channel, block.count, s.dim, dim, queries);
        for (int part = 0; part < kParts; ++part) {
            const AttentionStrides &from = call.output_strides, &by = call.grad_strides;
            gather_rows(call.saved + part * from.group + block.offset(s, from), from.query, from.channel, block.count,
                        s.dim, dim, outputs + part * step);
            gather_rows(call.grad + part * by.group + block.offset(s, by), by.query, by.channel, block.count, s.dim,
                        dim, grads + part * step);
        }
        block_scores(call, queries, call.keys_of(image), scores);
        for (int64_t r = 0; r < block.count; ++r) {
            float* grad_query = grad_queries + r * dim;
            if (weigh_row(call, scores + r * call.padded_keys, row)) {
                row_backward(call, row, image, queries + r * dim, grads + r * dim, outputs + r * dim, grad_query,
                             grad_keys, grad_values, mixed);
            } else {
                for (int64_t c = 0; c < dim; ++c) grad_query[c] = grad_keys[c] = grad_values[c] = __builtin_nanf("");
            }
        }
        const AttentionStrides& to = call.grad_query_strides;
        scatter_rows(grad_queries, to.query, to.channel, block.count, s.dim, dim,
                     call.grad_query + block.offset(s, to));
    }
}

int attention_forward(const AttentionShape& shape, const float* query, const AttentionStrides& query_strides,
                      const float* key, const float* value, float* output, const AttentionStrides& output_strides,
                      int threads) {
    AttentionCall call{shape, query, query_strides, key, value, output, output_strides};
    size_call(call);
    const int64_t images = shape.batch * shape.heads;
    MemoryOf packed(images * call.padded_keys * shape.dim), rows(images * shape.keys * call.padded_dim);
    MemoryOf scratch(threads * call.scratch_size);
    if (!packed.floats || !rows.floats || !scratch.floats) return sa2::kNoMemory;
    call.packed_keys = packed.floats;
    call.padded_rows = rows.floats;
    call.scratch = scratch.floats;
    sa2::run_parallel(pack_keys, &call, images, threads);
    sa2::run_parallel(attention_forward_block, &call, images * call.blocks, threads);
    return sa2::kDone;
}

int attention_backward(const AttentionShape& shape, const float* query, const AttentionStrides& query_strides,
                       const float* key, const float* value, const float* output,
                       const AttentionStrides& output_strides, const float* grad,
                       const AttentionStrides& grad_strides, float* grad_query,
                       const AttentionStrides& grad_query_strides, float* grad_key, float* grad_value, int threads) {
    AttentionCall call{shape, query, query_strides, key, value, nullptr, output_strides,
                       output, grad, grad_strides, grad_query, grad_query_strides};
    size_call(call);
    const int64_t images = shape.batch * shape.heads, size = shape.keys * call.padded_dim;
    MemoryOf packed(images * call.padded_keys * shape.dim), rows(2 * images * size);
    MemoryOf scratch(threads * call.scratch_size), sums(images * call.parts * 2 * size);
    if (!packed.floats || !rows.floats || !scratch.floats || !sums.floats) return sa2::kNoMemory;
    call.packed_keys = packed.floats;
    call.padded_rows = rows.floats;
    call.scratch = scratch.floats;
    call.part_gradients = sums.floats;
    sa2::run_parallel(pack_keys, &call, images, threads);
    sa2::run_parallel(attention_backward_part, &call, images * call.parts, threads);
    for (int64_t image = 0; image < images; ++image)
        for (int64_t row = 0; row < shape.keys; ++row)
            for (int64_t channel = 0; channel < shape.dim; ++channel) {
                float of_key = 0.0f, of_value = 0.0f;
                for (int64_t part = 0; part < call.parts; ++part) {
                    const float* from = sums.floats + (image * call.parts + part) * 2 * size;
                    of_key += from[row * call.padded_dim + channel];
                    of_value += from[size + row * call.padded_dim + channel];
                }
                grad_key[(image * shape.keys + row) * shape.dim + channel] = of_key;
                grad_value[(image * shape.keys + row) * shape.dim + channel] = of_value;
            }
    return sa2::kDone;
}

}  // namespace
