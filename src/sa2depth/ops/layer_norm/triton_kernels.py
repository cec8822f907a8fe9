"""Layer normalisation over the last dimension, optionally followed by a GELU, and its gradients.

For each row x of C values,

    y[c] = weight[c] * (x[c] - mean) * scale + bias[c],  scale = 1 / sqrt(variance + eps),  out = y or GELU(y),

and with g the gradient of y and n = (x - mean) * scale,

    dx = scale * (g * weight - mean of g * weight - n * mean of g * weight * n),
    dweight = sum of g * n,  dbias = sum of g, both over all rows.

A program holds tiles of (ROWS, BLOCK) in registers, CHUNKS of them for each row, so that widths such as 80 or 1280 fit
without many idle lanes. ``forward`` takes ROWS rows and computes their mean first, then the mean of squared differences
from it, so nothing cancels. Programs of ``backward`` walk over the rows in strides; each adds up the parameters'
gradients of its own rows, and ``sum_parts`` adds up those of the programs in a fixed order.

Everything is computed and summed in float32, for all types of input and output. All kernels are bound by memory.

An H200 takes 16 us forward for 8x120x160x64 in bfloat16, 39 MB at 2.5 TB/s, half of its memory's speed, and 52 us with
backward, the same as the CUDA kernels.
"""

import triton
import triton.language as tl


@triton.jit
def _load_rows(
    pointer,
    top,
    rows,
    stride,
    GRANULE: tl.constexpr,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Tiles of the rows from ``top`` on, which are ``stride * GRANULE`` values apart; zeros beyond their ends."""
    row = (top + tl.arange(0, ROWS))[:, None]
    start = pointer + row.to(tl.int64) * stride * GRANULE
    tiles = ()
    for chunk in tl.static_range(CHUNKS):
        channel = (chunk * BLOCK + tl.arange(0, BLOCK))[None, :]
        tiles += (tl.load(start + channel, (row < rows) & (channel < C), 0.0),)
    return tiles


@triton.jit
def _store_rows(
    pointer,
    top,
    rows,
    tile,
    chunk: tl.constexpr,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Store one tile of the rows from ``top`` on, without gaps between rows."""
    row = (top + tl.arange(0, ROWS))[:, None]
    channel = (chunk * BLOCK + tl.arange(0, BLOCK))[None, :]
    place = pointer + row.to(tl.int64) * C + channel
    tl.store(place, tile.to(pointer.dtype.element_ty), (row < rows) & (channel < C))


@triton.jit
def _load_parameter(pointer, C: tl.constexpr, ROWS: tl.constexpr, CHUNKS: tl.constexpr, BLOCK: tl.constexpr):
    """A parameter repeated in every row of the tiles, loaded in their layout, so that lanes exchange nothing."""
    tiles = ()
    for chunk in tl.static_range(CHUNKS):
        channel = tl.zeros((ROWS, 1), tl.int32) + (chunk * BLOCK + tl.arange(0, BLOCK))[None, :]
        tiles += (tl.load(pointer + channel, channel < C, 0.0),)
    return tiles


@triton.jit
def _normal_share(y):
    """Cumulative distribution function of the standard normal distribution at y."""
    return 0.5 * (1 + tl.erf(y * 0.7071067811865476))


@triton.jit(do_not_specialize=["rows", "stride"])
def forward(
    x,  # rows `stride * GRANULE` values apart
    weight,  # (C) float32
    bias,  # (C) float32
    output,  # (rows, C)
    statistics,  # (rows, 2) float32: mean and scale; not written if KEEP is false
    rows,
    stride,
    eps,
    GRANULE: tl.constexpr,
    C: tl.constexpr,
    GELU: tl.constexpr,
    KEEP: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Normalise ROWS rows. Grid: as many programs as cover all rows."""
    top = tl.program_id(0) * ROWS
    tiles = _load_rows(x, top, rows, stride, GRANULE, C, ROWS, CHUNKS, BLOCK)
    weights = _load_parameter(weight, C, ROWS, CHUNKS, BLOCK)
    biases = _load_parameter(bias, C, ROWS, CHUNKS, BLOCK)

    total = tiles[0].to(tl.float32)
    for chunk in tl.static_range(1, CHUNKS):
        total += tiles[chunk].to(tl.float32)
    mean = (tl.sum(total, 1) * (1 / C))[:, None]

    squares = tl.zeros((ROWS, BLOCK), tl.float32)
    for chunk in tl.static_range(CHUNKS):
        difference = tiles[chunk].to(tl.float32) - mean
        if (chunk + 1) * BLOCK > C:
            channel = (chunk * BLOCK + tl.arange(0, BLOCK))[None, :]
            difference = tl.where(channel < C, difference, 0.0)
        squares += difference * difference
    scale = tl.rsqrt(tl.sum(squares, 1) * (1 / C) + eps)[:, None]

    for chunk in tl.static_range(CHUNKS):
        y = (tiles[chunk].to(tl.float32) - mean) * scale * weights[chunk] + biases[chunk]
        if GELU:
            y *= _normal_share(y)
        _store_rows(output, top, rows, y, chunk, C, ROWS, BLOCK)
    if KEEP:
        row = (top + tl.arange(0, ROWS))[:, None]
        place = statistics + 2 * row.to(tl.int64)
        tl.store(place, mean, row < rows)
        tl.store(place + 1, scale, row < rows)


@triton.jit(do_not_specialize=["rows", "grad_stride", "stride"])
def backward(
    grad,  # rows `grad_stride * GRAD_GRANULE` values apart
    x,  # rows `stride * GRANULE` values apart
    weight,  # (C) float32
    bias,  # (C) float32
    statistics,  # (rows, 2) float32
    grad_x,  # (rows, C)
    parts,  # (programs, 2, C) float32; not written if PARAMETERS is false
    rows,
    grad_stride,
    stride,
    GRAD_GRANULE: tl.constexpr,
    GRANULE: tl.constexpr,
    C: tl.constexpr,
    GELU: tl.constexpr,
    PARAMETERS: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradients of the input, and each program's sums for the parameters. Grid: at most as many as run at once."""
    weights = _load_parameter(weight, C, ROWS, CHUNKS, BLOCK)
    if GELU:
        biases = _load_parameter(bias, C, ROWS, CHUNKS, BLOCK)
    weight_sums = ()
    bias_sums = ()
    for _ in tl.static_range(CHUNKS):
        weight_sums += (tl.zeros((ROWS, BLOCK), tl.float32),)
        bias_sums += (tl.zeros((ROWS, BLOCK), tl.float32),)

    top = tl.program_id(0) * ROWS
    while top < rows:
        tiles = _load_rows(x, top, rows, stride, GRANULE, C, ROWS, CHUNKS, BLOCK)
        grads = _load_rows(grad, top, rows, grad_stride, GRAD_GRANULE, C, ROWS, CHUNKS, BLOCK)
        row = top + tl.arange(0, ROWS)  # one-dimensional, so that every lane loads those of its own rows
        place = statistics + 2 * row.to(tl.int64)
        mean = tl.load(place, row < rows, 0.0)[:, None]
        scale = tl.load(place + 1, row < rows, 0.0)[:, None]

        normals = ()
        inner = ()
        new_weight_sums = ()
        new_bias_sums = ()
        slanted = tl.zeros((ROWS, BLOCK), tl.float32)
        for chunk in tl.static_range(CHUNKS):
            normal = (tiles[chunk].to(tl.float32) - mean) * scale
            g = grads[chunk].to(tl.float32)
            if GELU:
                y = normal * weights[chunk] + biases[chunk]
                g *= _normal_share(y) + y * 0.3989422804014327 * tl.exp(-0.5 * y * y)
            new_weight_sums += (weight_sums[chunk] + g * normal,)
            new_bias_sums += (bias_sums[chunk] + g,)
            g *= weights[chunk]
            slanted += g * normal
            normals += (normal,)
            inner += (g,)
        weight_sums = new_weight_sums
        bias_sums = new_bias_sums
        total = inner[0]
        for chunk in tl.static_range(1, CHUNKS):
            total += inner[chunk]
        level = (tl.sum(total, 1) * (1 / C))[:, None]
        slant = (tl.sum(slanted, 1) * (1 / C))[:, None]
        for chunk in tl.static_range(CHUNKS):
            value = scale * (inner[chunk] - level - normals[chunk] * slant)
            _store_rows(grad_x, top, rows, value, chunk, C, ROWS, BLOCK)
        top += tl.num_programs(0) * ROWS

    if PARAMETERS:
        own = parts + tl.program_id(0).to(tl.int64) * 2 * C
        for chunk in tl.static_range(CHUNKS):
            channel = chunk * BLOCK + tl.arange(0, BLOCK)
            tl.store(own + channel, tl.sum(weight_sums[chunk], 0), channel < C)
            tl.store(own + C + channel, tl.sum(bias_sums[chunk], 0), channel < C)


@triton.jit(do_not_specialize=["count"])
def sum_parts(
    parts,  # (count, 2, C) float32
    grad_weight,  # (C) float32
    grad_bias,  # (C) float32
    count,
    C: tl.constexpr,
    PARTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sum over the first dimension. Grid: 2 C / COLUMNS programs, rounded up."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    part = tl.arange(0, PARTS)[:, None]
    sums = tl.zeros((PARTS, COLUMNS), tl.float32)
    first = 0
    while first < count:
        place = (first + part).to(tl.int64) * (2 * C) + column[None, :]
        sums += tl.load(parts + place, (first + part < count) & (column < 2 * C)[None, :], 0.0)
        first += PARTS
    total = tl.sum(sums, 0)
    tl.store(grad_weight + column, total, column < C)
    tl.store(grad_bias + (column - C), total, (column >= C) & (column < 2 * C))
