// exp, softplus, logistic function and tanh on vectors, to float32 grade; errors below are the largest relative ones
// against float64 (tests/ops/test_cpu_library.py measures them).
#pragma once

#include "vector.h"

namespace {

constexpr float kLog2E = 1.44269504f;

// (2 ** f - 1) / f for |f| <= 1/2, within 1.6e-8. Times f plus 1, it is 1 at 0 without rounding: near 1, where a
// recurrence multiplies thousands of powers, they have no bias.
SA2_INLINE Vec exp2_slope(Vec f) {
    Vec p = broadcast(1.53533852e-4f);
    p = p * f + 1.33988727e-3f;
    p = p * f + 9.61843692e-3f;
    p = p * f + 5.55033237e-2f;
    p = p * f + 2.40226477e-1f;
    return p * f + 6.93147182e-1f;
}

// 2 ** x for x <= 0, within 1.3e-7; below 2 ** -126 it is between 0 and that.
SA2_INLINE Vec exp2_nonpositive(Vec x) {
#if defined(__AVX512F__)
    const __m512 whole = (__m512)x, part = _mm512_reduce_ps(whole, 0);  // x - nearest integer
    const Vec f = (Vec)part, power = exp2_slope(f) * f + 1.0f;
    const __m512 y = _mm512_scalef_ps((__m512)power, _mm512_sub_ps(whole, part));
    return (Vec)y;
#else
    x = larger(broadcast(-126.0f), x);
    const Vec to_integer = broadcast(12582912.0f);  // 1.5 * 2 ** 23: adding it leaves the integer in the low bits
    const Vec shifted = x + to_integer;
    const Vec f = x - (shifted - to_integer), power = exp2_slope(f) * f + 1.0f;
    const IntVec bits = (IntVec)power + ((IntVec)shifted << 23);
    return (Vec)bits;
#endif
}

// e ** x = scale * (1 + remainder) for -87 <= x <= 0; smaller x count as -87.
struct Exponential {
    Vec scale, remainder;
};

SA2_INLINE Exponential exponential_parts(Vec x) {
    x = larger(broadcast(-87.0f), x);
    const Vec to_integer = broadcast(12582912.0f);  // as above
    const Vec shifted = x * kLog2E + to_integer;
    const Vec n = shifted - to_integer;
    const Vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts; the first has few bits
    const Vec f = r * kLog2E;
    const IntVec exponent = ((IntVec)shifted << 23) + 0x3f800000;
    return {(Vec)exponent, exp2_slope(f) * f};
}

// e ** x for x <= 0, within 2.5e-7.
SA2_INLINE Vec exp_nonpositive(Vec x) {
    const Exponential e = exponential_parts(x);
    return e.scale + e.scale * e.remainder;
}

SA2_INLINE Vec magnitude_negated(Vec x) { return x > 0.0f ? -x : x; }

// log(1 + e ** x), within 4e-7; beyond |x| = 87 the smaller term is at its least.
SA2_INLINE Vec softplus(Vec x) {
    const Vec e = exp_nonpositive(magnitude_negated(x));
    const Vec z = e / (e + 2.0f);  // log(1 + e) = 2 artanh(z), z at most 1/3
    const Vec u = z * z;
    Vec p = broadcast(2.81783342e-1f);
    p = p * u + 2.79606014e-1f;
    p = p * u + 4.00249094e-1f;
    p = p * u + 6.66663170e-1f;
    p = p * u + 2.0f;
    return p * z + larger(x, Vec{});
}

// 1 / (1 + e ** -x), within 4e-7.
SA2_INLINE Vec sigmoid(Vec x) {
    const Vec e = exp_nonpositive(magnitude_negated(x));
    return (x > 0.0f ? broadcast(1.0f) : e) / (e + 1.0f);
}

// Within 5e-7, also near 0: e ** x - 1 is not the difference of two rounded numbers.
SA2_INLINE Vec tanh(Vec x) {
    const Exponential e = exponential_parts(magnitude_negated(x) * 2.0f);
    const Vec less_one = e.scale * e.remainder + (e.scale - 1.0f);
    const Vec positive = -less_one / (less_one + 2.0f);
    return x < 0.0f ? -positive : positive;
}

}  // namespace
