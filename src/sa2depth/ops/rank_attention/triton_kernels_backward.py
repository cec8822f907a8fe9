"""Rank-grouped attention in Triton, backward. Names are those of the forward kernels.

Let p be the weight of a key inside its group g, f the share of the group in output 0, and e_o the product of the value
and the gradient of output o. The gradient of a score, its slope, is then

    p (y - E),   y = e_{1+g} + f e_0,   E = D_{1+g} + f D_0,   D_o = the product of output o and its gradient

and e_{1+g} and D_{1+g} are zero for the fifth group. Scores are recomputed; groups are read, so that all kernels agree.

- ``facts_kernel``: E and f of each query and group.
- ``slopes_kernel``: a program owns a tile of scores and writes p and slopes. They pass through memory, because the sums
  of the other two kernels would not fit into registers beside the products that make a slope.
- ``query_gradients_kernel``: a program owns some queries and walks over the keys.
- ``key_gradients_kernel``: a program owns some keys and walks over a part of the queries; the caller adds up the parts.

All sums are float32; p and slopes are rounded to the inputs' dtype. There are no atomics, so two runs give the same
bits.
"""

import triton
import triton.language as tl

from sa2depth.ops.rank_attention.triton_kernels import (
    NO_GROUP,
    SIZES,
    choose,
    first_row_at,
    load_five,
    load_rows,
    token_start,
)


@triton.jit
def _product(output, grad, row, exists, output_row, grad_row, DIM: tl.constexpr, CHANNELS: tl.constexpr):
    """Products of rows of an output and of its gradient."""
    channel = tl.arange(0, CHANNELS)[None, :]
    mask = exists[:, None] & (channel < DIM)
    left = tl.load(output + row[:, None] * output_row + channel, mask=mask, other=0.0).to(tl.float32)
    right = tl.load(grad + row[:, None] * grad_row + channel, mask=mask, other=0.0).to(tl.float32)
    return tl.sum(left * right, 1)


@triton.jit(do_not_specialize=SIZES)
def facts_kernel(
    output, grad, rows, facts, grad_output, grad_image, grad_head, grad_row, heads, queries, keys,
    DIM: tl.constexpr, CHANNELS: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of queries, B h). ``facts`` are planes like ``rows``: E of the groups, then their shares f."""
    first_query = tl.program_id(0) * QUERIES
    row = tl.arange(0, QUERIES)
    exists = row < queries - first_query
    place = tl.program_id(1).to(tl.int64) * queries + first_query
    plane = tl.num_programs(1).to(tl.int64) * queries
    rows += place + row
    facts += place + row
    output = token_start(output, heads, queries, first_query, DIM)
    grad = first_row_at(grad, grad_image, grad_head, grad_row, heads, first_query)
    overall = _product(output, grad, row, exists, heads * DIM, grad_row, DIM, CHANNELS)
    total = tl.load(rows + 10 * plane, mask=exists, other=0.0)
    for group in tl.static_range(5):
        share = tl.exp2(tl.load(rows + group * plane, mask=exists, other=0.0) - total)
        mean = share * overall
        if group < 4:
            output += plane * DIM
            grad += grad_output
            mean += _product(output, grad, row, exists, heads * DIM, grad_row, DIM, CHANNELS)
        tl.store(facts + group * plane, mean, mask=exists)
        tl.store(facts + (5 + group) * plane, share, mask=exists)


@triton.jit(do_not_specialize=SIZES)
def slopes_kernel(
    query, key, value, grad, rows, groups, facts, weights, slopes,
    query_image, query_head, query_row, key_image, key_head, key_row, value_image, value_head, value_row,
    grad_output, grad_image, grad_head, grad_row, group_row, heads, queries, keys, scale,
    DIM: tl.constexpr, CHUNK: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of queries times blocks of keys, B h). ``weights`` and ``slopes`` have the layout of ``groups``."""
    key_blocks = tl.cdiv(keys, KEYS)
    first_query, first_key = tl.program_id(0) // key_blocks * QUERIES, tl.program_id(0) % key_blocks * KEYS
    row, column = tl.arange(0, QUERIES), first_key + tl.arange(0, KEYS)[None, :]
    left, exists = queries - first_query, row < queries - first_query
    query = first_row_at(query, query_image, query_head, query_row, heads, first_query)
    grad = first_row_at(grad, grad_image, grad_head, grad_row, heads, first_query)
    key = first_row_at(key, key_image, key_head, key_row, heads, first_key)
    value = first_row_at(value, value_image, value_head, value_row, heads, first_key)
    score = tl.zeros([QUERIES, KEYS], tl.float32)
    products = (score, score, score, score, score)  # of values and the gradients of the five outputs
    for channel in range(0, DIM, CHUNK):
        dim = DIM - channel
        others = tl.trans(load_rows(key + channel, key_row, keys - first_key, dim, KEYS, CHUNK))
        queried = load_rows(query + channel, query_row, left, dim, QUERIES, CHUNK)
        score = tl.dot(queried, others, score, input_precision=PRECISION)
        others = tl.trans(load_rows(value + channel, value_row, keys - first_key, dim, KEYS, CHUNK))
        after, at = (), grad + channel
        for o in tl.static_range(5):
            upstream = load_rows(at, grad_row, left, dim, QUERIES, CHUNK)
            after += (tl.dot(upstream, others, products[o], input_precision=PRECISION),)
            at += grad_output
        products = after
    place = tl.program_id(1).to(tl.int64) * queries + first_query
    plane = tl.num_programs(1).to(tl.int64) * queries
    to = place * group_row + row[:, None] * group_row + column
    written = exists[:, None] & (column < keys)
    group = tl.load(groups + to, mask=written, other=NO_GROUP).to(tl.int32)
    weight = tl.exp2(score * scale - choose(group, load_five(rows + place + row, plane, exists)))
    slope = products[0] * choose(group, load_five(facts + 5 * plane + place + row, plane, exists))
    slope -= choose(group, load_five(facts + place + row, plane, exists))
    for member in tl.static_range(4):
        slope += tl.where(group == member, products[member + 1], 0.0)
    tl.store(weights + to, weight.to(weights.dtype.element_ty), mask=written)
    tl.store(slopes + to, (weight * slope).to(slopes.dtype.element_ty), mask=written)


@triton.jit(do_not_specialize=SIZES)
def query_gradients_kernel(
    key, slopes, grad_query, key_image, key_head, key_row, group_row, heads, queries, keys, scale,
    DIM: tl.constexpr, CHANNELS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of queries, B h, tiles of channels)."""
    first_query, first_channel = tl.program_id(0) * QUERIES, tl.program_id(2) * CHANNELS
    row, channel = tl.arange(0, QUERIES)[:, None], first_channel + tl.arange(0, CHANNELS)[None, :]
    key = first_row_at(key, key_image, key_head, key_row, heads, first_query * 0) + first_channel
    place = tl.program_id(1).to(tl.int64) * queries + first_query
    slopes += place * group_row + row * group_row
    exists = row < queries - first_query
    sums = tl.zeros([QUERIES, CHANNELS], tl.float32)
    for start in range(0, keys, KEYS):
        column = start + tl.arange(0, KEYS)[None, :]
        slope = tl.load(slopes + column, mask=exists & (column < keys), other=0.0)
        others = load_rows(key + start * key_row, key_row, keys - start, DIM - first_channel, KEYS, CHANNELS)
        sums = tl.dot(slope, others, sums, input_precision=PRECISION)
    to = token_start(grad_query, heads, queries, first_query, DIM) + row * (heads * DIM) + channel
    tl.store(to, (sums * scale).to(grad_query.dtype.element_ty), mask=exists & (channel < DIM))


@triton.jit(do_not_specialize=[*SIZES, "part_queries"])
def key_gradients_kernel(
    query, grad, groups, facts, weights, slopes, sums,
    query_image, query_head, query_row, grad_output, grad_image, grad_head, grad_row, group_row,
    heads, queries, keys, part_queries, tiles, scale,
    DIM: tl.constexpr, CHANNELS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of keys, B h, parts times tiles of channels).

    ``sums (parts, 2, B, N, h, d)``: gradients of keys, then of values.
    """
    first_key = tl.program_id(0) * KEYS
    part, first_channel = tl.program_id(2) // tiles, tl.program_id(2) % tiles * CHANNELS
    first_query = part * part_queries
    end = tl.minimum(first_query + part_queries, queries)
    row, column = tl.arange(0, QUERIES), first_key + tl.arange(0, KEYS)[:, None]
    dim = DIM - first_channel
    query = first_row_at(query, query_image, query_head, query_row, heads, first_query) + first_channel
    grad = first_row_at(grad, grad_image, grad_head, grad_row, heads, first_query) + first_channel
    place = tl.program_id(1).to(tl.int64) * queries + first_query
    plane = tl.num_programs(1).to(tl.int64) * queries
    facts += 5 * plane + place + row
    at = place * group_row + row[None, :] * group_row + column
    key_sum = tl.zeros([KEYS, CHANNELS], tl.float32)
    value_sum = tl.zeros([KEYS, CHANNELS], tl.float32)
    for start in range(first_query, end, QUERIES):
        left = end - start
        exists = (row < left)[None, :] & (column < keys)
        slope = tl.load(slopes + at, mask=exists, other=0.0)
        others = load_rows(query, query_row, left, dim, QUERIES, CHANNELS)
        key_sum = tl.dot(slope, others, key_sum, input_precision=PRECISION)
        group = tl.load(groups + at, mask=exists, other=NO_GROUP).to(tl.int32)
        weight = tl.load(weights + at, mask=exists, other=0.0)
        upstream = grad
        for member in tl.static_range(4):
            upstream += grad_output
            others = load_rows(upstream, grad_row, left, dim, QUERIES, CHANNELS)
            own = tl.where(group == member, weight, 0.0)
            value_sum = tl.dot(own, others, value_sum, input_precision=PRECISION)
        share = tl.zeros([KEYS, QUERIES], tl.float32)
        for member in tl.static_range(5):
            of_group = tl.load(facts + member * plane, mask=row < left, other=0.0)[None, :]
            share = tl.where(group == member, of_group, share)
        own = (weight.to(tl.float32) * share).to(weight.dtype)
        others = load_rows(grad, grad_row, left, dim, QUERIES, CHANNELS)
        value_sum = tl.dot(own, others, value_sum, input_precision=PRECISION)
        query += QUERIES * query_row
        grad += QUERIES * grad_row
        facts += QUERIES
        at += QUERIES * group_row
    channel = first_channel + tl.arange(0, CHANNELS)[None, :]
    written = (column < keys) & (channel < DIM)
    size = tl.num_programs(1).to(tl.int64) * keys * DIM
    to = token_start(sums + 2 * part * size, heads, keys, first_key, DIM)
    to += tl.arange(0, KEYS)[:, None] * (heads * DIM) + channel
    tl.store(to, key_sum * scale, mask=written)
    tl.store(to + size, value_sum, mask=written)
