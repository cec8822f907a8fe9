// The C interface of the library, called through ctypes (sa2depth/ops/runtime/cpp/library.py). No PyTorch headers:
// pointers to contiguous float32 tensors, sizes, a number of threads. `path` is one of those that sa2depth_cpu_paths()
// offers. Every function returns 0, or a Status.
#include "kernels.h"

namespace sa2 {
extern const Kernels portable, avx2, avx512;
}

namespace {

enum Path { kPortable = 0, kAvx2 = 1, kAvx512 = 2 };

const sa2::Kernels* kernels_of(int path);

#ifdef SA2_X86
bool machine_has(int path) {
    __builtin_cpu_init();
    if (path == kAvx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (path == kAvx512)
        return machine_has(kAvx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return path == kPortable;
}

const sa2::Kernels* kernels_of(int path) {
    if (path < kPortable || path > kAvx512 || !machine_has(path)) return nullptr;
    return path == kAvx512 ? &sa2::avx512 : path == kAvx2 ? &sa2::avx2 : &sa2::portable;
}
#else
const sa2::Kernels* kernels_of(int path) { return path == kPortable ? &sa2::portable : nullptr; }
#endif

}  // namespace

#define SA2_EXPORT extern "C" __attribute__((visibility("default")))
#define SA2_CALL(function, ...)                                   \
    const sa2::Kernels* kernels = kernels_of(path);               \
    return kernels ? kernels->function(__VA_ARGS__) : sa2::kPathMissing

// Hash of the sources that it was built from.
SA2_EXPORT const char* sa2depth_cpu_version() { return SA2_SOURCES; }

// Before the first call: the pool of threads to compute with. Without it every call starts threads of its own.
SA2_EXPORT void sa2depth_cpu_use_pool(sa2::Fork fork, sa2::ThreadNumber number) { sa2::use_pool(fork, number); }

// Bit p: this machine can run path p (0 portable, 1 AVX2 and FMA, 2 AVX-512).
SA2_EXPORT int sa2depth_cpu_paths() {
    int paths = 0;
    for (int path = kPortable; path <= kAvx512; ++path) paths |= (kernels_of(path) != nullptr) << path;
    return paths;
}

SA2_EXPORT int sa2depth_dcnv3_forward(int path, const Dcnv3Shape* shape, const float* input, const float* points,
                                      float* output, int threads) {
    SA2_CALL(dcnv3_forward, *shape, input, points, output, threads);
}

SA2_EXPORT int sa2depth_dcnv3_backward(int path, const Dcnv3Shape* shape, const float* input, const float* points,
                                       const float* grad, float* grad_input, float* grad_points, int threads) {
    SA2_CALL(dcnv3_backward, *shape, input, points, grad, grad_input, grad_points, threads);
}

SA2_EXPORT int sa2depth_attention_forward(int path, const AttentionShape* shape, const float* query,
                                          const AttentionStrides* query_strides, const float* key,
                                          const float* value, float* output, const AttentionStrides* output_strides,
                                          int threads) {
    SA2_CALL(attention_forward, *shape, query, *query_strides, key, value, output, *output_strides, threads);
}

SA2_EXPORT int sa2depth_attention_backward(int path, const AttentionShape* shape, const float* query,
                                           const AttentionStrides* query_strides, const float* key,
                                           const float* value, const float* output,
                                           const AttentionStrides* output_strides, const float* grad,
                                           const AttentionStrides* grad_strides, float* grad_query,
                                           const AttentionStrides* grad_query_strides, float* grad_key,
                                           float* grad_value, int threads) {
    SA2_CALL(attention_backward, *shape, query, *query_strides, key, value, output, *output_strides, grad,
             *grad_strides, grad_query, *grad_query_strides, grad_key, grad_value, threads);
}

SA2_EXPORT int sa2depth_scan_forward(int path, const ScanShape* shape, const float* x, const float* projected,
                                     const float* dt_weight, const float* dt_bias, const float* a_log,
                                     const float* d_skip, float* output, float* states, int threads) {
    SA2_CALL(scan_forward, *shape, x, projected, dt_weight, dt_bias, a_log, d_skip, output, states, threads);
}

SA2_EXPORT int sa2depth_scan_backward(int path, const ScanShape* shape, const float* x, const float* projected,
                                      const float* dt_weight, const float* dt_bias, const float* a_log,
                                      const float* d_skip, const float* states, const float* grad, float* grad_x,
                                      float* grad_projected, float* grad_dt_weight, float* grad_dt_bias,
                                      float* grad_a_log, float* grad_d_skip, int threads) {
    SA2_CALL(scan_backward, *shape, x, projected, dt_weight, dt_bias, a_log, d_skip, states, grad, grad_x,
             grad_projected, grad_dt_weight, grad_dt_bias, grad_a_log, grad_d_skip, threads);
}

SA2_EXPORT int sa2depth_gated_conv(int path, const GatedConvShape* shape, const float* x, const float* kernel,
                                   const float* bias, float* output, int threads) {
    SA2_CALL(gated_conv, *shape, x, kernel, bias, output, threads);
}

// exp (of min(x, 0)), softplus, logistic function and tanh of `count` numbers, for the tests of their accuracy.
SA2_EXPORT int sa2depth_functions(int path, const float* x, int64_t count, float* exponential, float* softplus,
                                  float* sigmoid, float* tanh) {
    const sa2::Kernels* kernels = kernels_of(path);
    if (!kernels) return sa2::kPathMissing;
    kernels->functions(x, count, exponential, softplus, sigmoid, tanh);
    return sa2::kDone;
}
