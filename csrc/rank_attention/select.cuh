// The four rank thresholds of a row of scores that a warp holds in registers: slots 2 i and 2 i + 1 of lane l are keys
// 64 i + 2 l and the next. All slots but the last two are keys for certain.
//
// The warp sorts a copy: each lane its slots, then lanes are merged in pairs, fours ... (bitonic: the first exchange of
// a merge is with the mirrored place, the others with lanes at half the distance, the last inside lanes). Instructions
// for n slots: 45 n for the exchanges and about 29 n (n = 10) inside lanes, whatever the scores are and without a
// branch. A search for each threshold takes more, and each of its steps waits for the one before.
#pragma once
#include "attention.cuh"

__device__ __forceinline__ int key_of(int slot, int lane) { return slot / 2 * 64 + 2 * lane + slot % 2; }
__device__ __forceinline__ bool is_key(int slot, int lane, int keys) {
  return slot < KEY_SLOTS - 2 || key_of(slot, lane) < keys;
}

// ---- sorting, descending

// Pairs of places to be compared in turn: Batcher's odd-even merge sort.
template <int count>
struct Network {
  int size = 0;
  int first[count * count] = {}, second[count * count] = {};

  __device__ constexpr Network() {
    for (int run = 1; run < count; run *= 2)
      for (int distance = run; distance > 0; distance /= 2)
        for (int start = distance % run; start + distance < count; start += 2 * distance)
          for (int i = start; i < start + distance && i + distance < count; ++i)
            if (i / (2 * run) == (i + distance) / (2 * run)) {
              first[size] = i;
              second[size++] = i + distance;
            }
  }
};

__device__ __forceinline__ void order(float& larger, float& smaller) {
  const float x = larger, y = smaller;
  larger = fmaxf(x, y);
  smaller = fminf(x, y);
}

// Sorts places `begin` to `begin + count`.
template <int count>
__device__ __forceinline__ void sort_slots(float (&x)[KEY_SLOTS], int begin) {
  constexpr Network<count> network;
#pragma unroll
  for (int i = 0; i < network.size; ++i) order(x[begin + network.first[i]], x[begin + network.second[i]]);
}

// Then lane l has ranks l n to l n + n - 1.
__device__ __forceinline__ void sort_warp(float (&x)[KEY_SLOTS], int lane) {
  sort_slots<KEY_SLOTS>(x, 0);
#pragma unroll
  for (int width = 2; width <= 32; width *= 2) {
#pragma unroll
    for (int distance = width / 2; distance > 0; distance /= 2) {
      const bool mirrored = distance == width / 2;
      const bool keeps_smaller = lane & distance;
      float other[KEY_SLOTS];
#pragma unroll
      for (int i = 0; i < KEY_SLOTS; ++i)
        other[i] = __shfl_xor_sync(ALL_LANES, x[mirrored ? KEY_SLOTS - 1 - i : i], mirrored ? width - 1 : distance);
#pragma unroll
      for (int i = 0; i < KEY_SLOTS; ++i) x[i] = (x[i] < other[i]) != keeps_smaller ? other[i] : x[i];
    }
    // a lane's slots rise and fall now: halves are told apart by one comparison, and sorted
#pragma unroll
    for (int i = 0; i < KEY_SLOTS / 2; ++i) order(x[i], x[i + KEY_SLOTS / 2]);
    sort_slots<KEY_SLOTS / 2>(x, 0);
    sort_slots<KEY_SLOTS / 2>(x, KEY_SLOTS / 2);
  }
}

// ---- thresholds

// The last key that is above a threshold, of those whose score equals it.
__device__ __forceinline__ int tied_key(const float (&score)[KEY_SLOTS], float threshold, int wanted) {
  int above = 0;
#pragma unroll
  for (int i = 0; i < KEY_SLOTS; ++i) above += score[i] > threshold;
  wanted -= static_cast<int>(__reduce_add_sync(ALL_LANES, static_cast<unsigned>(above)));
  int first = NO_TIE;  // key of the two slots' lane 0
  unsigned even = 0, odd = 0;
#pragma unroll
  for (int i = 0; i < KEY_SLOTS; i += 2) {
    const unsigned even_here = __ballot_sync(ALL_LANES, score[i] == threshold);
    const unsigned odd_here = __ballot_sync(ALL_LANES, score[i + 1] == threshold);
    const int count = __popc(even_here) + __popc(odd_here);
    if (first == NO_TIE) {
      if (wanted <= count) {
        first = 32 * i;
        even = even_here;
        odd = odd_here;
      } else {
        wanted -= count;
      }
    }
  }
  if (first == NO_TIE) return NO_TIE;
#pragma unroll 1
  for (int i = 0; i < 64; ++i) {
    wanted -= (i % 2 ? odd : even) >> i / 2 & 1;
    if (wanted == 0) return first + i;
  }
  return NO_TIE;
}

struct Selection {
  float threshold[GROUPS];
  unsigned ties[2];
  float largest[OUTPUTS];  // score of each group, the rest included
};

// `sorted` is a place in shared memory for a row, which all lanes have done with.
__device__ __forceinline__ Selection select(const float (&score)[KEY_SLOTS], float* sorted, int keys,
                                            const int (&bounds)[GROUPS], int lane) {
  float x[KEY_SLOTS];
#pragma unroll
  for (int i = 0; i < KEY_SLOTS; ++i) x[i] = score[i];
  sort_warp(x, lane);
#pragma unroll
  for (int i = 0; i < KEY_SLOTS; i += 2)
    *reinterpret_cast<float2*>(sorted + lane * KEY_SLOTS + i) = make_float2(x[i], x[i + 1]);
  __syncwarp();

  Selection result;
  result.ties[0] = result.ties[1] = NO_TIES;
  result.largest[0] = sorted[0];
#pragma unroll
  for (int g = 0; g < GROUPS; ++g) {
    if (bounds[g] >= keys) {  // the last group ends with the last key
      result.threshold[g] = result.largest[g + 1] = minus_infinity();
      continue;
    }
    const float above = sorted[bounds[g] - 1], below = sorted[bounds[g]];
    result.largest[g + 1] = below;
    const float middle = 0.5f * above + 0.5f * below;
    result.threshold[g] = middle > below && middle < above ? middle : above;
    if (above == below) {
      const unsigned last = static_cast<unsigned>(tied_key(score, above, bounds[g]));
      result.ties[g / 2] = g % 2 ? result.ties[g / 2] & 0xffffu | last << 16 : result.ties[g / 2] & 0xffff0000u | last;
    }
  }
  return result;
}
