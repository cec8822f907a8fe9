// Vectors of the path's native width, by the compilers' vector extensions: GCC and Clang, any processor.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t IntVec __attribute__((vector_size(kLanes * 4)));
typedef float UnalignedVec __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

#define SA2_INLINE inline __attribute__((always_inline))

SA2_INLINE Vec load(const float* from) { return *reinterpret_cast<const UnalignedVec*>(from); }
SA2_INLINE void store(float* to, Vec v) { *reinterpret_cast<UnalignedVec*>(to) = v; }
SA2_INLINE Vec broadcast(float x) { return x - Vec{}; }

// The first `count` lanes; the others are zero. `count` of kLanes or more is a whole vector.
SA2_INLINE Vec load(const float* from, int64_t count) {
    if (count >= kLanes) return load(from);
#if defined(__AVX512F__)
    const __m512 v = _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), from);
    return (Vec)v;
#else
    Vec v{};
    memcpy(&v, from, count * sizeof(float));
    return v;
#endif
}

SA2_INLINE void store(float* to, Vec v, int64_t count) {
    if (count >= kLanes) return store(to, v);
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), (__m512)v);
#else
    memcpy(to, &v, count * sizeof(float));
#endif
}

SA2_INLINE float sum(Vec v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)v);
#elif defined(__AVX2__)
    const __m256 whole = (__m256)v;
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(whole), _mm256_extractf128_ps(whole, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
#else
    float total = v[0];
    for (int lane = 1; lane < kLanes; ++lane) total += v[lane];
    return total;
#endif
}

// b where a is NaN.
SA2_INLINE Vec larger(Vec a, Vec b) {
#if defined(__AVX512F__)
    const __m512 v = _mm512_max_ps((__m512)a, (__m512)b);
    return (Vec)v;
#else
    return a > b ? a : b;
#endif
}

SA2_INLINE Vec smaller(Vec a, Vec b) {
#if defined(__AVX512F__)
    const __m512 v = _mm512_min_ps((__m512)a, (__m512)b);
    return (Vec)v;
#else
    return a < b ? a : b;
#endif
}

SA2_INLINE int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

}  // namespace
