// Threads: the pool of the OpenMP runtime that PyTorch computes with, else std::thread. The library links no OpenMP:
// the runtime that a compiler would link (the system's libgomp, clang's libomp) is often another one than PyTorch's
// (wheels bring their own), and each would keep a pool of threads that wait for work on the same cores. So the caller
// hands over the two functions of that runtime that a parallel region needs; GNU's, LLVM's and Intel's all have them.
// The code paths reach this by pointer and use no templates of the standard library: an inline function that was
// compiled for AVX-512 must never be the copy that the linker keeps for all.
#include "kernels.h"

#include <atomic>
#include <thread>
#include <vector>

namespace {

sa2::Fork fork_pool = nullptr;
sa2::ThreadNumber thread_number = nullptr;

struct Loop {
    sa2::Task task;
    void* context;
    int64_t count;
    std::atomic<int64_t> next{0};

    void work(int thread) {
        for (int64_t index = next++; index < count; index = next++) task(context, index, thread);
    }
};

void in_pool(void* loop) { static_cast<Loop*>(loop)->work(thread_number()); }

void in_own_threads(Loop& loop, int threads) {
    std::vector<std::thread> helpers;
    for (int thread = 1; thread < threads; ++thread) {
        try {
            helpers.emplace_back(&Loop::work, &loop, thread);
        } catch (...) {
            break;  // no more threads are available: those that run do the work
        }
    }
    loop.work(0);
    for (auto& helper : helpers) helper.join();
}

}  // namespace

namespace sa2 {

void use_pool(Fork fork, ThreadNumber number) {
    fork_pool = number ? fork : nullptr;
    thread_number = number;
}

// Each thread takes the next index when it is done with one: a thread whose core is busy with other work takes fewer.
void run_parallel(Task task, void* context, int64_t count, int threads) {
    if (threads > count) threads = static_cast<int>(count);
    Loop loop{task, context, count};
    if (threads <= 1)
        loop.work(0);
    else if (fork_pool)
        fork_pool(in_pool, &loop, static_cast<unsigned>(threads), 0);
    else
        in_own_threads(loop, threads);
}

}  // namespace sa2
