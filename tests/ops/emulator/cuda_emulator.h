// Just enough of CUDA to run the kernels of csrc/ on a CPU, one block after the other: each thread of a block is a
// fiber, barriers and shuffles switch between them. Blocks are whole warps. A test, not a way to compute: it is slow.
// Threads run one after the other, from the first to the last or (CUDA_EMULATOR_BACKWARDS) from the last to the first;
// a missing barrier shows as a difference between the two.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <utility>
#include <vector>

#define SA2DEPTH_EMULATED
#define __device__
#define __global__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
#define __shared__ static  // blocks run one after the other
#define DYNAMIC_SHARED(name) float4* name = reinterpret_cast<float4*>(emulator::dynamic_shared.data())

struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct dim3 { unsigned x = 1, y = 1, z = 1; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
using std::max;
using std::min;

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {
struct alignas(16) Line { char bytes[16]; };
inline std::vector<Line> dynamic_shared;
inline ucontext_t scheduler;

struct Fiber {
  ucontext_t context;
  std::vector<char> stack;
  int waits_for = 0;  // 0: running, 1: warp barrier, 2: block barrier
  bool done = false;
  float exchanged = 0;
};
inline std::vector<Fiber> fibers;
inline int current = 0;
inline bool backwards = false;  // threads run from the last to the first
inline void (*body)(void*);
inline void* body_argument;

inline void wait(int barrier) {
  const int self = current;
  fibers[self].waits_for = barrier;
  swapcontext(&fibers[self].context, &scheduler);
}

inline void enter() {
  body(body_argument);
  fibers[current].done = true;
  swapcontext(&fibers[current].context, &scheduler);
}

inline void fail(const char* why) {
  std::fputs(why, stderr);
  std::abort();
}

// Lets every thread of a group pass if all wait at the same barrier.
inline bool release(size_t first, size_t last, int barrier) {
  for (size_t i = first; i < last; ++i)
    if (fibers[i].done || fibers[i].waits_for != barrier) return false;
  for (size_t i = first; i < last; ++i) fibers[i].waits_for = 0;
  return true;
}

inline void run_block() {
  const size_t threads = blockDim.x;
  fibers.resize(threads);
  for (auto& fiber : fibers) {
    fiber.stack.resize(256 * 1024);
    fiber.done = false;
    fiber.waits_for = 0;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    makecontext(&fiber.context, enter, 0);
  }
  for (size_t finished = 0; finished < threads;) {
    bool progress = false;
    for (size_t turn = 0; turn < threads; turn += 32) {
      const size_t warp = backwards ? threads - 32 - turn : turn;
      // a warp goes on for as long as only its own barriers stop it
      do {
        for (size_t lane = 0; lane < 32; ++lane) {
          const size_t i = warp + (backwards ? 31 - lane : lane);
          if (fibers[i].done || fibers[i].waits_for) continue;
          progress = true;
          current = static_cast<int>(i);
          threadIdx.x = static_cast<unsigned>(i);
          swapcontext(&scheduler, &fibers[i].context);
          finished += fibers[i].done;
        }
      } while (release(warp, warp + 32, 1));
    }
    if (release(0, threads, 2)) progress = true;
    if (!progress && finished < threads) fail("emulated block hangs: threads wait at different barriers\n");
  }
}

template <class... Parameters, size_t... I>
void run_grid(void (*kernel)(Parameters...), void** arguments, std::index_sequence<I...>) {
  std::tuple<Parameters...> values{*static_cast<Parameters*>(arguments[I])...};
  auto call = [&] { kernel(std::get<I>(values)...); };
  body = [](void* argument) { (*static_cast<decltype(call)*>(argument))(); };
  body_argument = &call;
  for (blockIdx.z = 0; blockIdx.z < gridDim.z; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
        // poison, as on the device where nobody clears it
        std::memset(dynamic_shared.data(), 0xff, dynamic_shared.size() * sizeof(Line));
        run_block();
      }
}

// Runs a kernel over a grid; `arguments` points to each argument in turn.
template <class... Parameters>
void run(void (*kernel)(Parameters...), const int* grid, int threads, int shared_bytes, void** arguments) {
  backwards = std::getenv("CUDA_EMULATOR_BACKWARDS") != nullptr;
  gridDim = {static_cast<unsigned>(grid[0]), static_cast<unsigned>(grid[1]), static_cast<unsigned>(grid[2])};
  blockDim = {static_cast<unsigned>(threads), 1, 1};
  dynamic_shared.resize((shared_bytes + 15) / 16);
  run_grid(kernel, arguments, std::index_sequence_for<Parameters...>{});
}
}  // namespace emulator

inline void __syncthreads() { emulator::wait(2); }
inline void __syncwarp() { emulator::wait(1); }
template <int threads>
void meet() { emulator::wait(2); }
inline float __shfl_xor_sync(unsigned, float value, int other) {
  emulator::fibers[emulator::current].exchanged = value;
  emulator::wait(1);
  const float result = emulator::fibers[emulator::current ^ other].exchanged;
  emulator::wait(1);
  return result;
}
inline float exp2_fast(float x) { return std::exp2(x); }
inline void copy_async(float4* shared, const float4* global, bool exists) {
  *shared = exists ? *global : float4{0, 0, 0, 0};
}
inline void wait_for_copies() {}

// For the kernels of rank-grouped attention: votes, whole-warp reductions, tensor-core products, 16-bit numbers.
struct uint2 { unsigned x, y; };

inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline float __int_as_float(int bits) { return __uint_as_float(static_cast<unsigned>(bits)); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(unsigned x) { return __builtin_ffs(static_cast<int>(x)); }
inline long long __float2ll_rn(float x) { return std::llrint(x); }
template <class T>
T __ldg(const T* from) { return *from; }
template <class T>
void atomicAdd(T* to, T value) { *to += value; }  // threads take turns anyway
inline float __fdividef(float a, float b) { return a / b; }

namespace emulator {
inline unsigned given[1024];  // by each thread of the block to its warp
struct Factors { unsigned a[4], b[2]; };
inline Factors factors[1024];

// Combines what the lanes of a warp give, in the order of lanes.
template <class Function>
unsigned combine(unsigned value, Function function) {
  const int self = current, first = self / 32 * 32;
  given[self] = value;
  wait(1);
  unsigned result = given[first];
  for (int i = 1; i < 32; ++i) result = function(result, given[first + i]);
  wait(1);
  return result;
}
}  // namespace emulator

inline unsigned __reduce_add_sync(unsigned, unsigned value) {
  return emulator::combine(value, [](unsigned a, unsigned b) { return a + b; });
}
inline unsigned __reduce_max_sync(unsigned, unsigned value) {
  return emulator::combine(value, [](unsigned a, unsigned b) { return a > b ? a : b; });
}
inline unsigned __ballot_sync(unsigned, bool vote) {
  return emulator::combine(vote ? 1u << emulator::current % 32 : 0u, [](unsigned a, unsigned b) { return a | b; });
}

inline unsigned to_tf32(float x) {
  return std::isnan(x) ? 0x7fffffffu : (__float_as_uint(x) + 0x1000u) & 0xffffe000u;
}
// m16n8k8; the machine looks at the upper 19 bits of the factors only.
inline void mma_tf32(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  const int self = emulator::current, first = self / 32 * 32, lane = self % 32;
  std::memcpy(emulator::factors[self].a, a, sizeof(a));
  std::memcpy(emulator::factors[self].b, b, sizeof(b));
  emulator::wait(1);
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
    double sum = c[i];
    for (int k = 0; k < 8; ++k) {
      const unsigned left = emulator::factors[first + row % 8 * 4 + k % 4].a[row / 8 + 2 * (k / 4)];
      const unsigned right = emulator::factors[first + column * 4 + k % 4].b[k / 4];
      sum += static_cast<double>(__uint_as_float(left & 0xffffe000u)) * __uint_as_float(right & 0xffffe000u);
    }
    c[i] = static_cast<float>(sum);
  }
  emulator::wait(1);
}

inline float half_to_float(unsigned short bits) {
  _Float16 x;
  std::memcpy(&x, &bits, 2);
  return static_cast<float>(x);
}
inline unsigned short float_to_half(float x) {
  const _Float16 half = static_cast<_Float16>(x);
  unsigned short bits;
  std::memcpy(&bits, &half, 2);
  return bits;
}
