"""Rank-grouped attention in Triton, forward: groups of the scores, and the five outputs.

A query's keys are divided into five groups by their rank: the four of the operator and the rest. Scores are in units of
log2(e), so that weights are powers of two. Values of a query are stored in planes ``(B h, Q)``: first the logarithm of
each group's sum of weights, then each group's largest score, then the logarithm of the sum over all keys.

- ``groups_kernel``: a program holds the scores of some queries with all keys, finds the four thresholds by bisection,
  breaks ties by the index of the key, and writes each key's group, its weight relative to that of the group's largest
  score, and the planes. The search ends when the right number of scores is above the threshold; if equal scores make
  that impossible, the threshold is the score at the end of the group.
- ``outputs_kernel``: a program owns some queries and some channels, walks over the keys, and adds up one product of
  weights and values for each group. Output 0 is the sum of the groups, each weighted by its share of all weights.

Scores, weights and all sums are float32. Matrix products have factors of the inputs' dtype, to which weights are
rounded; products of float32 have float32's full accuracy. Two runs give the same bits.

An H200 takes 1.50 ms forward for 8x19200 queries of 300 keys and 64 channels in bfloat16, about a fifth of the speed
that issue slots allow (the CUDA kernel: 0.49 ms), and 3.1 ms with backward (CUDA: 1.16). The bisection and the traffic
through memory make the difference.
"""

import triton
import triton.language as tl

SIZES = ["heads", "queries", "keys"]
NO_GROUP = tl.constexpr(5)
"""Group of elements beyond the last query or key, which have no weight."""


@triton.jit
def first_row_at(tensor, image_stride, head_stride, row_stride, heads, first_row):
    """Address of a row of one head of one image, both chosen by the program's second index."""
    place = tl.program_id(1).to(tl.int64)
    return (
        tensor
        + place // heads * image_stride
        + place % heads * head_stride
        + first_row.to(tl.int64) * row_stride
    )


@triton.jit
def token_start(tensor, heads, tokens, first, DIM: tl.constexpr):
    """The same in a tensor ``(B, tokens, h, d)``."""
    image, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    return tensor + ((image.to(tl.int64) * tokens + first) * heads + head) * DIM


@triton.jit
def load_rows(start, row_stride, count, dim, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """A tile of rows, with zeros beyond the first ``count`` rows and beyond the last channel."""
    rows, channels = tl.arange(0, ROWS), tl.arange(0, CHANNELS)
    exists = (rows[:, None] < count) & (channels[None, :] < dim)
    return tl.load(start + rows[:, None] * row_stride + channels[None, :], mask=exists, other=0.0)


@triton.jit
def _products(
    left, right, left_row, right_row, left_rows, right_rows, DIM: tl.constexpr, CHUNK: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Products of rows with rows, summed in chunks of channels; zeros beyond the last rows."""
    sums = tl.zeros([LEFT, RIGHT], tl.float32)
    for channel in range(0, DIM, CHUNK):
        rows = load_rows(left + channel, left_row, left_rows, DIM - channel, LEFT, CHUNK)
        others = load_rows(right + channel, right_row, right_rows, DIM - channel, RIGHT, CHUNK)
        sums = tl.dot(rows, tl.trans(others), sums, input_precision=PRECISION)
    return sums


@triton.jit
def _count_both(scores, threshold, other):
    """The number of scores that reach one threshold and, in the upper 16 bits, the number that reach the other."""
    reached = tl.where(scores >= threshold[:, None], 1, 0) + tl.where(scores >= other[:, None], 65536, 0)
    return tl.sum(reached, 1)


@triton.jit
def _inside(low, middle, high, count, end):
    """True if a search must continue: its count is not right yet, and there is a value left to try."""
    return (middle > low) & (middle < high) & (count != end)


@triton.jit
def _narrow(first, second, low, high, count, ends):
    """One step of bisection for each end; the last result says if another is needed."""
    middle, reached = (), ()
    for g in tl.static_range(4):
        middle += (0.5 * low[g] + 0.5 * high[g],)
    for pair in tl.static_range(0, 4, 2):
        both = _count_both(first, middle[pair], middle[pair + 1])
        both += _count_both(second, middle[pair], middle[pair + 1])
        reached += (both & 0xFFFF, both >> 16)
    lows, highs, counts = (), (), ()
    unsettled = tl.zeros(low[0].shape, tl.int1)
    for g in tl.static_range(4):
        inside = _inside(low[g], middle[g], high[g], count[g], ends[g])
        enough = inside & (reached[g] >= ends[g])
        new_low = tl.where(enough, middle[g], low[g])
        new_high = tl.where(inside & (reached[g] < ends[g]), middle[g], high[g])
        new_count = tl.where(enough, reached[g], count[g])
        unsettled |= _inside(new_low, 0.5 * new_low + 0.5 * new_high, new_high, new_count, ends[g])
        lows += (new_low,)
        highs += (new_high,)
        counts += (new_count,)
    return lows, highs, counts, tl.max(unsettled.to(tl.int32), 0)


@triton.jit
def _last_tied(first, second, threshold, end, keys, FIRST: tl.constexpr, SECOND: tl.constexpr):
    """The last key before the end among those whose score equals the threshold."""
    first_key, second_key = tl.arange(0, FIRST)[None, :], FIRST + tl.arange(0, SECOND)[None, :]
    level = threshold[:, None]
    above = tl.sum((first > level).to(tl.int32), 1) + tl.sum((second > level).to(tl.int32), 1)
    low, high = above * 0 - 1, above * 0 + keys - 1  # low < result <= high
    for _ in range(10):  # enough for 1024 keys
        middle = (low + high) // 2
        tied = tl.sum(((first == level) & (first_key <= middle[:, None])).to(tl.int32), 1)
        tied += tl.sum(((second == level) & (second_key <= middle[:, None])).to(tl.int32), 1)
        enough = above + tied >= end
        high = tl.where(enough, middle, high)
        low = tl.where(enough, low, middle)
    return high


@triton.jit
def _beyond(scores, key, threshold, last):
    """1 for keys below a threshold, and for keys on it after the last one that still belongs above."""
    taken = (scores > threshold[:, None]) | ((scores == threshold[:, None]) & (key <= last[:, None]))
    return tl.where(taken, 0, 1)


@triton.jit
def _largest(group: tl.constexpr, first, second, first_groups, second_groups):
    """Largest score of a group; minus infinity if it has no key."""
    largest = tl.max(tl.where(first_groups == group, first, -float("inf")), 1)
    return tl.maximum(largest, tl.max(tl.where(second_groups == group, second, -float("inf")), 1))


@triton.jit
def choose(groups, numbers):
    """For each element the value of its group, from five values for each query."""
    chosen = tl.where(groups == 0, numbers[0], numbers[4])
    for group in tl.static_range(1, 4):
        chosen = tl.where(groups == group, numbers[group], chosen)
    return chosen


@triton.jit
def _log_sum(group: tl.constexpr, largest, first, second, first_groups, second_groups):
    """Logarithm of the sum of a group's weights, which are given relative to the largest one."""
    weight = tl.sum(tl.where(first_groups == group, first, 0.0), 1)
    weight += tl.sum(tl.where(second_groups == group, second, 0.0), 1)
    return largest + tl.log2(weight)


@triton.jit(do_not_specialize=[*SIZES, "end0", "end1", "end2", "end3"])
def groups_kernel(
    query, key, rows, groups, weights,
    query_image, query_head, query_row, key_image, key_head, key_row, group_row,
    heads, queries, keys, end0, end1, end2, end3, scale,
    DIM: tl.constexpr, CHUNK: tl.constexpr, QUERIES: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of queries, B h). The keys are held in two tiles, of ``FIRST`` and ``SECOND``."""
    first_query = tl.program_id(0) * QUERIES
    query = first_row_at(query, query_image, query_head, query_row, heads, first_query)
    key = first_row_at(key, key_image, key_head, key_row, heads, first_query * 0)
    left = queries - first_query
    first = scale * _products(
        query, key, query_row, key_row, left, keys, DIM, CHUNK, QUERIES, FIRST, PRECISION
    )
    second = scale * _products(
        query,
        key + FIRST * key_row,
        query_row,
        key_row,
        left,
        keys - FIRST,
        DIM,
        CHUNK,
        QUERIES,
        SECOND,
        PRECISION,
    )
    first_key, second_key = tl.arange(0, FIRST)[None, :], FIRST + tl.arange(0, SECOND)[None, :]
    first = tl.where(first_key < keys, first, -float("inf"))
    second = tl.where(second_key < keys, second, -float("inf"))

    highest = tl.maximum(tl.max(first, 1), tl.max(second, 1))
    lowest = tl.minimum(
        tl.min(tl.where(first_key < keys, first, float("inf")), 1),
        tl.min(tl.where(second_key < keys, second, float("inf")), 1),
    )
    ends = (end0, end1, end2, end3)
    # All scores reach `low`, none reaches `high`; without a query both are equal, so there is nothing to search.
    above = highest + (highest - lowest) * (1 / 256) + tl.abs(highest) * 1e-6 + 1e-37
    row = tl.arange(0, QUERIES)
    above = tl.where(row < left, above, lowest)
    every = tl.zeros([QUERIES], tl.int32) + keys
    low, high, count = (
        (lowest, lowest, lowest, lowest),
        (above, above, above, above),
        (every, every, every, every),
    )
    going = 1
    while going > 0:
        low, high, count, going = _narrow(first, second, low, high, count, ends)

    last = (every, every, every, every)
    tied = (count[0] != end0) | (count[1] != end1) | (count[2] != end2) | (count[3] != end3)
    if tl.max((tied & (row < left)).to(tl.int32), 0) > 0:
        last = ()
        for g in tl.static_range(4):
            last += (_last_tied(first, second, low[g], ends[g], keys, FIRST, SECOND),)
    first_groups = tl.zeros([QUERIES, FIRST], tl.int32)
    second_groups = tl.zeros([QUERIES, SECOND], tl.int32)
    for g in tl.static_range(4):
        first_groups += _beyond(first, first_key, low[g], last[g])
        second_groups += _beyond(second, second_key, low[g], last[g])
    first_groups = tl.where(first_key < keys, first_groups, NO_GROUP)
    second_groups = tl.where(second_key < keys, second_groups, NO_GROUP)

    place = tl.program_id(1).to(tl.int64) * queries + first_query
    groups += place * group_row + row[:, None] * group_row
    exists = row[:, None] < left
    # also write the padding of a row, so that everything that is returned has been written
    tl.store(groups + first_key, first_groups.to(tl.int8), mask=exists & (first_key < group_row))
    tl.store(groups + second_key, second_groups.to(tl.int8), mask=exists & (second_key < group_row))

    largest, largest_columns = (), ()
    for group in tl.static_range(5):
        largest += (_largest(group, first, second, first_groups, second_groups),)
        largest_columns += (largest[group][:, None],)
    first = tl.exp2(first - choose(first_groups, largest_columns))
    second = tl.exp2(second - choose(second_groups, largest_columns))
    weights += place * group_row + row[:, None] * group_row
    tl.store(weights + first_key, first.to(weights.dtype.element_ty), mask=exists & (first_key < keys))
    tl.store(weights + second_key, second.to(weights.dtype.element_ty), mask=exists & (second_key < keys))
    rows += place + row
    plane = tl.num_programs(1).to(tl.int64) * queries
    total = tl.zeros([QUERIES], tl.float32)
    for group in tl.static_range(5):
        log_sum = _log_sum(group, largest[group], first, second, first_groups, second_groups)
        total += tl.exp2(log_sum - highest)
        tl.store(rows + group * plane, log_sum, mask=row < left)
        tl.store(rows + (5 + group) * plane, largest[group], mask=row < left)
    tl.store(rows + 10 * plane, highest + tl.log2(total), mask=row < left)


@triton.jit
def load_five(planes, plane, exists):
    """The values of each query in five planes, as columns."""
    loaded = ()
    for group in tl.static_range(5):
        loaded += (tl.load(planes + group * plane, mask=exists, other=0.0)[:, None],)
    return loaded


@triton.jit(do_not_specialize=SIZES)
def outputs_kernel(
    value, rows, groups, weights, output, value_image, value_head, value_row, group_row, heads, queries, keys,
    DIM: tl.constexpr, CHANNELS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of queries, B h, tiles of channels). ``output (5, B, Q, h, d)``."""
    first_query, first_channel = tl.program_id(0) * QUERIES, tl.program_id(2) * CHANNELS
    row, channel = tl.arange(0, QUERIES), first_channel + tl.arange(0, CHANNELS)[None, :]
    value = first_row_at(value, value_image, value_head, value_row, heads, first_query * 0) + first_channel
    place = tl.program_id(1).to(tl.int64) * queries + first_query
    plane = tl.num_programs(1).to(tl.int64) * queries
    groups += place * group_row + row[:, None] * group_row
    weights += place * group_row + row[:, None] * group_row
    exists = row < queries - first_query
    none = tl.zeros([QUERIES, CHANNELS], tl.float32)
    sums = (none, none, none, none, none)
    for start in range(0, keys, KEYS):
        column = start + tl.arange(0, KEYS)[None, :]
        there = exists[:, None] & (column < keys)
        group = tl.load(groups + column, mask=there, other=NO_GROUP)
        weight = tl.load(weights + column, mask=there, other=0.0)
        values = load_rows(
            value + start * value_row, value_row, keys - start, DIM - first_channel, KEYS, CHANNELS
        )
        after = ()
        for member in tl.static_range(5):
            own = tl.where(group == member, weight, 0.0)
            after += (tl.dot(own, values, sums[member], input_precision=PRECISION),)
        sums = after

    rows += place + row
    logs = load_five(rows, plane, exists)
    largest = load_five(rows + 5 * plane, plane, exists)
    total = tl.load(rows + 10 * plane, mask=exists, other=0.0)[:, None]
    output = token_start(output, heads, queries, first_query, DIM) + row[:, None] * (heads * DIM) + channel
    written = exists[:, None] & (channel < DIM)
    overall = none
    for member in tl.static_range(5):
        overall += tl.exp2(largest[member] - total) * sums[member]
        if member < 4:
            own = tl.exp2(largest[member] - logs[member]) * sums[member]
            tl.store(output + (member + 1) * plane * DIM, own.to(output.dtype.element_ty), mask=written)
    tl.store(output, overall.to(output.dtype.element_ty), mask=written)
