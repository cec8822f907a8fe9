// The four rank thresholds of a row of scores that a warp holds in registers: slot i of lane l is key 32 i + l.
//
// Each threshold is searched between a score that is too low and one that is too high: the number of scores from a
// trial value on is counted by all lanes, and the next trial interpolated. Three to four counts a threshold where
// scores are normally distributed, seven where they lie in two clusters or log-normally (simulated, N = 300 and 418);
// 2 n + 20 instructions each for n slots; the search ends as soon as a count is right. Every second round of a long search
// steps to the largest score below the upper end, an element of the row, which ends it when scores are equal.
#pragma once
#include "attention.cuh"

// Floats as unsigned numbers of the same order.
__device__ __forceinline__ unsigned ordered(float x) {
  const unsigned bits = __float_as_uint(x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float from_ordered(unsigned u) {
  return __uint_as_float(u & 0x80000000u ? u & 0x7fffffffu : ~u);
}
__device__ __forceinline__ float warp_max(float x) { return from_ordered(__reduce_max_sync(ALL_LANES, ordered(x))); }

__device__ __forceinline__ int count_from(const float (&score)[KEY_SLOTS], float bound) {
  int count = 0;
#pragma unroll
  for (int i = 0; i < KEY_SLOTS; ++i) count += score[i] >= bound;
  return static_cast<int>(__reduce_add_sync(ALL_LANES, static_cast<unsigned>(count)));
}

__device__ __forceinline__ float largest_below(const float (&score)[KEY_SLOTS], float bound) {
  float largest = minus_infinity();
#pragma unroll
  for (int i = 0; i < KEY_SLOTS; ++i) largest = score[i] < bound ? fmaxf(largest, score[i]) : largest;
  return warp_max(largest);
}

// Index of the `wanted`-th (from 1) key whose score equals a value.
__device__ __forceinline__ int tied_key(const float (&score)[KEY_SLOTS], float value, int wanted) {
  int first = NO_TIE;  // key of the slot's lane 0
  unsigned equal = 0;
#pragma unroll
  for (int i = 0; i < KEY_SLOTS; ++i) {
    const unsigned here = __ballot_sync(ALL_LANES, score[i] == value);
    const int count = __popc(here);
    if (first == NO_TIE) {
      if (wanted <= count) {
        first = 32 * i;
        equal = here;
      } else {
        wanted -= count;
      }
    }
  }
#pragma unroll 1
  for (; wanted > 1; --wanted) equal &= equal - 1;
  return equal ? first + __ffs(equal) - 1 : NO_TIE;
}

struct Bracket {
  float low, high;      // more than the wanted number of scores are >= low, fewer are >= high
  int at_low, at_high;  // how many

  __device__ __forceinline__ float interpolate(int wanted) const {
    return fmaf(high - low, __fdividef(static_cast<float>(at_low - wanted), static_cast<float>(at_low - at_high)), low);
  }
};

// A value that as many scores reach as wanted, or, if scores are equal, that of the wanted rank. Returns the count.
__device__ __forceinline__ int search(const float (&score)[KEY_SLOTS], int wanted, Bracket bracket, float& trial) {
  for (int round = 0;; ++round) {
    const bool step = wanted - bracket.at_high <= 1 || (round > 5 && round % 2) ||
                      !(trial > bracket.low && trial < bracket.high);
    if (step) trial = largest_below(score, bracket.high);
    const int count = count_from(score, trial);
    // the last two end a search among scores that are no numbers
    if (count == wanted || (step && count > wanted) || trial == minus_infinity() || round > 2000) return count;
    if (count > wanted) {
      bracket.low = trial;
      bracket.at_low = count;
    } else {
      bracket.high = trial;
      bracket.at_high = count;
    }
    trial = round > 6 ? from_ordered(ordered(bracket.low) / 2 + ordered(bracket.high) / 2)
                      : bracket.interpolate(wanted);
  }
}

struct Selection {
  float threshold[GROUPS];
  unsigned ties[2];
  float largest[OUTPUTS];  // score of each group, the rest included
};

__device__ __forceinline__ Selection select(const float (&score)[KEY_SLOTS], int keys, const int (&bounds)[GROUPS],
                                            int lane) {
  float largest = minus_infinity(), smallest = -minus_infinity();
#pragma unroll
  for (int i = 0; i < KEY_SLOTS; ++i) {
    largest = fmaxf(largest, score[i]);
    if (32 * i + lane < keys) smallest = fminf(smallest, score[i]);
  }
  largest = warp_max(largest);
  smallest = -warp_max(-smallest);
  // mean and deviation, of which the first trials are made
  float sum = 0.f, squares = 0.f;
#pragma unroll
  for (int i = 0; i < KEY_SLOTS; ++i) {
    const float below = 32 * i + lane < keys ? score[i] - largest : 0.f;
    sum += below;
    squares = fmaf(below, below, squares);
  }
  const float mean = __fdividef(warp_sum(sum), static_cast<float>(keys));
  const float variance = __fdividef(warp_sum(squares), static_cast<float>(keys)) - mean * mean;
  const float deviation = sqrtf(fmaxf(variance, 0.f));
  // quantiles of the normal distribution above which a tenth, three, five and seven tenths lie
  constexpr float quantile[GROUPS] = {1.2815516f, 0.5244005f, 0.f, -0.5244005f};

  Selection result;
  result.ties[0] = result.ties[1] = NO_TIES;
  result.largest[0] = largest;
  float high = from_ordered(ordered(largest) + 1);
  int at_high = 0;
#pragma unroll
  for (int g = 0; g < GROUPS; ++g) {
    const int wanted = bounds[g];
    float value = fmaf(quantile[g], deviation, largest + mean);
    int count;
    if (wanted >= keys) {  // the last group ends with the last key
      value = minus_infinity();
      count = wanted;
    } else if (at_high >= wanted) {  // the scores at the threshold before reach to this one
      value = high;
      count = at_high;
    } else {
      count = search(score, wanted, {smallest, high, keys, at_high}, value);
    }
    result.largest[g + 1] = value;
    if (count > wanted) {
      int equal = 0;
#pragma unroll
      for (int i = 0; i < KEY_SLOTS; ++i) equal += score[i] == value;
      equal = static_cast<int>(__reduce_add_sync(ALL_LANES, static_cast<unsigned>(equal)));
      const unsigned last = static_cast<unsigned>(tied_key(score, value, wanted - (count - equal)));
      result.ties[g / 2] = g % 2 ? result.ties[g / 2] & 0xffffu | last << 16 : result.ties[g / 2] & 0xffff0000u | last;
    } else {
      result.largest[g + 1] = largest_below(score, value);
      const float middle = 0.5f * value + 0.5f * result.largest[g + 1];
      if (middle > result.largest[g + 1] && middle < value) value = middle;
    }
    result.threshold[g] = high = value;
    at_high = count;
  }
  return result;
}
