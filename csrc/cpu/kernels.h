// What the library's front (library.cpp) and its code paths (kernels.cpp, compiled once a path) agree on.
// Sizes and strides are in elements. The structures are mirrored in sa2depth/ops/runtime/cpp/library.py.
#pragma once

#include <stdint.h>

extern "C" {

struct Dcnv3Shape {
    int64_t batch, height, width;     // of the input (batch, height, width, groups * group_channels)
    int64_t out_height, out_width;
    int64_t groups, group_channels;
    int64_t kernel, stride, padding, dilation, remove_center;
    int64_t softmax;                  // the masks are logits
    int64_t row;                      // numbers of an output pixel in `points`
    float offset_scale;
};

struct AttentionShape {
    int64_t batch, heads, queries, keys, dim;
    int64_t bounds[4];                // ranks at which the four groups end, ascending
    float scale;
};

// Where element (batch, head, query, channel) of a tensor lies; `group` is the step between the five outputs.
struct AttentionStrides {
    int64_t group, batch, head, query, channel;
};

struct ScanShape {
    int64_t batch, height, width, channels, rank, states;
    int64_t chunk;                    // tokens between saved states
};

struct GatedConvShape {
    int64_t batch, channels, height, width;
};
}

namespace sa2 {

// 0, or one of these.
enum Status { kDone = 0, kPathMissing = 1, kNoMemory = 2 };

struct Kernels {
    int (*dcnv3_forward)(const Dcnv3Shape&, const float* input, const float* points, float* output, int threads);
    int (*dcnv3_backward)(const Dcnv3Shape&, const float* input, const float* points, const float* grad,
                          float* grad_input, float* grad_points, int threads);
    int (*attention_forward)(const AttentionShape&, const float* query, const AttentionStrides&, const float* key,
                             const float* value, float* output, const AttentionStrides&, int threads);
    int (*attention_backward)(const AttentionShape&, const float* query, const AttentionStrides&, const float* key,
                              const float* value, const float* output, const AttentionStrides&, const float* grad,
                              const AttentionStrides&, float* grad_query, const AttentionStrides&, float* grad_key,
                              float* grad_value, int threads);
    int (*scan_forward)(const ScanShape&, const float* x, const float* projected, const float* dt_weight,
                        const float* dt_bias, const float* a_log, const float* d_skip, float* output, float* states,
                        int threads);
    int (*scan_backward)(const ScanShape&, const float* x, const float* projected, const float* dt_weight,
                         const float* dt_bias, const float* a_log, const float* d_skip, const float* states,
                         const float* grad, float* grad_x, float* grad_projected, float* grad_dt_weight,
                         float* grad_dt_bias, float* grad_a_log, float* grad_d_skip, int threads);
    int (*gated_conv)(const GatedConvShape&, const float* x, const float* kernel, const float* bias, float* output,
                      int threads);
    void (*functions)(const float* x, int64_t count, float* exponential, float* softplus, float* sigmoid, float* tanh);
};

// Runs task(context, index, thread) for every index below `count`; thread is below `threads`.
using Task = void (*)(void* context, int64_t index, int thread);
void run_parallel(Task task, void* context, int64_t count, int threads);

// GOMP_parallel and omp_get_thread_num of an OpenMP runtime, whose pool run_parallel then uses.
using Fork = void (*)(void (*function)(void*), void* data, unsigned threads, unsigned flags);
using ThreadNumber = int (*)();
void use_pool(Fork fork, ThreadNumber number);

}  // namespace sa2
