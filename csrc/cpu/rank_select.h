// The rank group of every score of a row, with exact counts: group g holds the ranks from bounds[g-1] to bounds[g] of
// a stable descending sort (equal scores by index), group 4 the rest. Found by counting, not by sorting: bisection on
// the scores' values, each count narrowing the search for all four bounds.
#pragma once

#include "vector.h"

namespace {

constexpr int kGroups = 4;

// How a bound divides a row: scores of at least `least` are above it; of those equal to `tied`, the first `ties` too.
struct Threshold {
    float least, tied;
    int64_t ties;
};

SA2_INLINE int64_t count_at_least(const float* scores, int64_t padded, float least) {
    IntVec count{};
    for (int64_t key = 0; key < padded; key += kLanes) count -= load(scores + key) >= broadcast(least);
    int64_t total = 0;
    for (int lane = 0; lane < kLanes; ++lane) total += count[lane];
    return total;
}

SA2_INLINE int64_t count_equal(const float* scores, int64_t keys, float value) {
    int64_t count = 0;
    for (int64_t key = 0; key < keys; ++key) count += scores[key] == value;
    return count;
}

// Scores beyond `keys` up to `padded`, a multiple of kLanes, are minus infinity; the others lie in [lowest, highest].
inline void find_thresholds(const float* scores, int64_t keys, int64_t padded, const int64_t bounds[kGroups],
                            float lowest, float highest, Threshold thresholds[kGroups]) {
    float low[kGroups], high[kGroups];          // count(>= low) >= bound > count(>= high)
    int64_t at_low[kGroups], at_high[kGroups];  // those counts
    for (int group = 0; group < kGroups; ++group) {
        low[group] = lowest;
        high[group] = __builtin_nextafterf(highest, __builtin_inff());
        at_low[group] = keys;
        at_high[group] = 0;
    }
    for (int group = 0; group < kGroups; ++group) {
        while (at_low[group] != bounds[group]) {
            const float middle = 0.5f * low[group] + 0.5f * high[group];
            if (!(middle > low[group] && middle < high[group])) break;  // nothing lies between: a tie
            const int64_t count = count_at_least(scores, padded, middle);
            for (int other = group; other < kGroups; ++other) {
                if (count >= bounds[other]) {
                    if (middle > low[other]) low[other] = middle, at_low[other] = count;
                } else if (middle < high[other]) {
                    high[other] = middle, at_high[other] = count;
                }
            }
        }
        if (at_low[group] == bounds[group])
            thresholds[group] = {low[group], 0.0f, 0};
        else
            thresholds[group] = {high[group], low[group], bounds[group] - at_high[group]};
    }
}

// Groups of all scores as `order` (key indices, group by group) and `starts` (of the five groups, and the end).
inline void partition_row(const float* scores, int64_t keys, int64_t padded, const int64_t bounds[kGroups],
                          float lowest, float highest, int32_t* order, int64_t starts[kGroups + 2]) {
    Threshold thresholds[kGroups];
    find_thresholds(scores, keys, padded, bounds, lowest, highest, thresholds);
    starts[0] = 0;
    bool ties = false;
    for (int group = 0; group < kGroups; ++group) {
        starts[group + 1] = bounds[group];
        ties |= thresholds[group].ties > 0;
    }
    starts[kGroups + 1] = keys;
    int64_t next[kGroups + 1];
    for (int group = 0; group <= kGroups; ++group) next[group] = starts[group];
    if (!ties) {
        for (int32_t key = 0; key < keys; ++key) {
            int group = 0;
            for (int bound = 0; bound < kGroups; ++bound) group += scores[key] < thresholds[bound].least;
            order[next[group]++] = key;
        }
        return;
    }
    int64_t left[kGroups];
    for (int group = 0; group < kGroups; ++group) left[group] = thresholds[group].ties;
    for (int32_t key = 0; key < keys; ++key) {
        int group = 0;
        for (int bound = 0; bound < kGroups; ++bound) {
            const Threshold& threshold = thresholds[bound];
            const bool above = scores[key] >= threshold.least ||
                               (left[bound] > 0 && scores[key] == threshold.tied && left[bound]-- > 0);
            group += !above;
        }
        order[next[group]++] = key;
    }
}

}  // namespace
