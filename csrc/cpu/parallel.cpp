// Threads: OpenMP where the compiler has it (PyTorch's own pool, if it brings the same runtime), else std::thread.
// The code paths reach this by pointer and use no templates of the standard library: an inline function that was
// compiled for AVX-512 must never be the copy that the linker keeps for all.
#include "kernels.h"

#ifdef _OPENMP
#include <omp.h>

namespace sa2 {

void run_parallel(Task task, void* context, int64_t count, int threads) {
    if (threads > count) threads = static_cast<int>(count);
    if (threads <= 1) {
        for (int64_t index = 0; index < count; ++index) task(context, index, 0);
        return;
    }
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t index = 0; index < count; ++index) task(context, index, omp_get_thread_num());
}

}  // namespace sa2

#else
#include <atomic>
#include <thread>
#include <vector>

namespace sa2 {

void run_parallel(Task task, void* context, int64_t count, int threads) {
    if (threads > count) threads = static_cast<int>(count);
    std::atomic<int64_t> next{0};
    const auto work = [&](int thread) {
        for (int64_t index = next++; index < count; index = next++) task(context, index, thread);
    };
    std::vector<std::thread> helpers;
    for (int thread = 1; thread < threads; ++thread) {
        try {
            helpers.emplace_back(work, thread);
        } catch (...) {
            break;  // no more threads to be had: those that run do the work
        }
    }
    work(0);
    for (auto& helper : helpers) helper.join();
}

}  // namespace sa2
#endif
