"""DCNv3 in Triton: the output, the gradient of offsets and masks, and that of the input.

``points`` are ``(B, Ho, Wo, ROW)``: the offsets of all groups, their masks (or logits), and padding. A pair is an
output pixel and a group; it has ``POINTS`` sampling points. All arithmetic and all sums are float32.

``forward`` and ``backward_points``: a program owns the pairs of a rectangle of pixels and of ``BLOCK_GROUPS``
neighbouring groups, as a tile (pairs, channels of a group). It walks over the points and reads the four corners of
each, 16 bytes a thread. All lanes of a pair compute what depends on a point but not on the channel.

``backward_input``: all channels of a group are added with the same weights, so this is a matrix product. A program owns
a rectangle of pixels of one group and a window of the input around it. It builds the matrix of weights (window, pixels)
and multiplies it by the output's gradient (pixels, channels). Bilinear weights are products of two hat functions,
``max(0, 1 - distance)``, so the matrix is a sum over points of outer products: nothing is scattered. The window is then
added to memory with one atomic for each of its elements, instead of four for each point and element of the gradient.
Points with a corner outside the window use these four atomics. Sums are float32 in no fixed order; with ``EXACT`` they
are int64 in fixed point, for which the order does not matter. A gradient or mask that is not finite spreads over its
whole window.

An H100 takes 85 us forward for 8x120x160x64 in bfloat16, 41 % of its memory's speed (35 us for 106 MB; the CUDA kernel:
70 us), and 0.50 ms with backward (CUDA: 0.34).
"""

import triton
import triton.language as tl


@triton.jit
def _pairs(BLOCK_WIDTH: tl.constexpr, BLOCK_GROUPS: tl.constexpr, PAIRS: tl.constexpr, GROUPS: tl.constexpr):
    """Group, row and column of each pair of this program. Grid: groups, then columns; rows; images."""
    SLABS: tl.constexpr = GROUPS // BLOCK_GROUPS
    HEIGHT: tl.constexpr = PAIRS // BLOCK_GROUPS // BLOCK_WIDTH
    pair = tl.arange(0, PAIRS)
    pixel = pair // BLOCK_GROUPS
    group = tl.program_id(0) % SLABS * BLOCK_GROUPS + pair % BLOCK_GROUPS
    column = tl.program_id(0) // SLABS * BLOCK_WIDTH + pixel % BLOCK_WIDTH
    row = tl.program_id(1) * HEIGHT + pixel // BLOCK_WIDTH
    return group, row, column


@triton.jit
def _load_offset(place, wanted, EVEN: tl.constexpr):
    """An offset; both values are loaded at once if pairs are aligned."""
    number: tl.constexpr = place.dtype.element_ty
    if not EVEN:
        x = tl.load(place, mask=wanted, other=0.0).to(tl.float32)
        y = tl.load(place + 1, mask=wanted, other=0.0).to(tl.float32)
    elif number == tl.float32:
        both = tl.load(place.to(tl.pointer_type(tl.int64)), mask=wanted, other=0)
        x = both.to(tl.int32).to(tl.float32, bitcast=True)
        y = (both >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    else:
        both = tl.load(place.to(tl.pointer_type(tl.int32)), mask=wanted, other=0)
        x = both.to(tl.int16).to(number, bitcast=True).to(tl.float32)
        y = (both >> 16).to(tl.int16).to(number, bitcast=True).to(tl.float32)
    return x, y


@triton.jit
def _load_masks(place, wanted, POINTS: tl.constexpr, SOFTMAX: tl.constexpr):
    """The masks of all points, as a tuple."""
    masks = ()
    for point in tl.static_range(POINTS):
        masks += (tl.load(place + point, mask=wanted, other=0.0).to(tl.float32),)
    if SOFTMAX:
        largest = masks[0]
        for point in tl.static_range(1, POINTS):
            largest = tl.maximum(largest, masks[point])
        total = tl.zeros_like(largest)
        for point in tl.static_range(POINTS):
            total += tl.exp(masks[point] - largest)
        factor = 1.0 / total
        shares = ()
        for point in tl.static_range(POINTS):
            shares += (tl.exp(masks[point] - largest) * factor,)
        masks = shares
    return masks


@triton.jit
def _coordinates(
    offsets, wanted, start_x, start_y, dilation, scale,
    point: tl.constexpr, REMOVE_CENTER: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Coordinates of a point, for a kernel with its middle at the start."""
    WHOLE: tl.constexpr = point + (1 if REMOVE_CENTER and point >= 4 else 0)
    x, y = _load_offset(offsets + 2 * point, wanted, EVEN)
    x = (x + (dilation * (WHOLE // 3 - 1)).to(tl.float32)) * scale + start_x
    y = (y + (dilation * (WHOLE % 3 - 1)).to(tl.float32)) * scale + start_y
    return x, y


@triton.jit
def _corners(x, y, wanted, height, width):
    """The upper left pixel of points, their distances from it along both sides, and masks of the four corners.

    Corners outside the input do not exist, and a point that is NaN has none. At whole coordinates, where slopes jump,
    the upper left pixel is the one at the point, also at -1.
    """
    inside = wanted & (x >= -1.0) & (x < width.to(tl.float32)) & (y >= -1.0) & (y < height.to(tl.float32))
    x = tl.where(inside, x, 0.0)
    y = tl.where(inside, y, 0.0)
    left = tl.floor(x)
    top = tl.floor(y)
    column = left.to(tl.int32)
    row = top.to(tl.int32)
    has_left = inside & (column >= 0)
    has_right = inside & (column + 1 < width)
    has_top = row >= 0
    has_bottom = row + 1 < height
    exist = (has_top & has_left, has_top & has_right, has_bottom & has_left, has_bottom & has_right)
    return row * width + column, x - left, y - top, exist


@triton.jit
def _corner_weights(right, below, exist, mask):
    """Weights of the corners, including the mask; zero if a corner does not exist."""
    lower = mask * below
    upper = mask - lower
    weights = (upper - upper * right, upper * right, lower - lower * right, lower * right)
    present = ()
    for corner in tl.static_range(4):
        present += (tl.where(exist[corner], weights[corner], 0.0),)
    return present


@triton.jit(do_not_specialize=["height", "width", "rows", "columns", "stride", "first", "dilation"])
def forward(
    input, points, output, height, width, rows, columns, stride, first, dilation, scale,
    GROUPS: tl.constexpr, GROUP_CHANNELS: tl.constexpr, ROW: tl.constexpr, REMOVE_CENTER: tl.constexpr,
    SOFTMAX: tl.constexpr, PAIRS: tl.constexpr, BLOCK_WIDTH: tl.constexpr, BLOCK_GROUPS: tl.constexpr,
):  # fmt: skip
    """The output. Grid: see ``_pairs``."""
    POINTS: tl.constexpr = 9 - REMOVE_CENTER
    CHANNELS: tl.constexpr = GROUPS * GROUP_CHANNELS
    group, row, column = _pairs(BLOCK_WIDTH, BLOCK_GROUPS, PAIRS, GROUPS)
    exists = (row < rows) & (column < columns)
    image = tl.program_id(2).to(tl.int64)
    input += image * height * width * CHANNELS
    points += image * rows * columns * ROW
    output += image * rows * columns * CHANNELS

    pixel = row * columns + column
    channel = tl.arange(0, GROUP_CHANNELS)
    points_row = points + pixel * ROW
    offsets = points_row + group * (2 * POINTS)
    masks = _load_masks(points_row + (2 * GROUPS + group) * POINTS, exists, POINTS, SOFTMAX)
    start_x = (column * stride + first).to(tl.float32)
    start_y = (row * stride + first).to(tl.float32)
    total = tl.zeros((PAIRS, GROUP_CHANNELS), tl.float32)
    for point in tl.static_range(POINTS):
        x, y = _coordinates(
            offsets, exists, start_x, start_y, dilation, scale, point, REMOVE_CENTER, ROW % 2 == 0
        )
        cell, right, below, exist = _corners(x, y, exists, height, width)
        weights = _corner_weights(right, below, exist, masks[point])
        place = cell * CHANNELS + group * GROUP_CHANNELS
        for corner in tl.static_range(4):
            at = input + (place + (corner // 2 * width + corner % 2) * CHANNELS)[:, None] + channel[None, :]
            # values with weight zero are not read, because they may be infinite
            value = tl.load(at, mask=(weights[corner] != 0.0)[:, None], other=0.0)
            total += weights[corner][:, None] * value.to(tl.float32)
    at = output + (pixel * CHANNELS + group * GROUP_CHANNELS)[:, None] + channel[None, :]
    tl.store(at, total.to(output.dtype.element_ty), mask=exists[:, None])


@triton.jit(do_not_specialize=["height", "width", "rows", "columns", "stride", "first", "dilation"])
def backward_points(
    grad, input, points, grad_points, height, width, rows, columns, stride, first, dilation, scale,
    GROUPS: tl.constexpr, GROUP_CHANNELS: tl.constexpr, ROW: tl.constexpr, REMOVE_CENTER: tl.constexpr,
    SOFTMAX: tl.constexpr, PAIRS: tl.constexpr, BLOCK_WIDTH: tl.constexpr, BLOCK_GROUPS: tl.constexpr,
):  # fmt: skip
    """Gradients of offsets and masks, all of ``grad_points``. Grid: see ``_pairs``."""
    POINTS: tl.constexpr = 9 - REMOVE_CENTER
    CHANNELS: tl.constexpr = GROUPS * GROUP_CHANNELS
    USED: tl.constexpr = GROUPS * POINTS * 3
    group, row, column = _pairs(BLOCK_WIDTH, BLOCK_GROUPS, PAIRS, GROUPS)
    exists = (row < rows) & (column < columns)
    image = tl.program_id(2).to(tl.int64)
    input += image * height * width * CHANNELS
    grad += image * rows * columns * CHANNELS
    points += image * rows * columns * ROW
    grad_points += image * rows * columns * ROW

    pixel = row * columns + column
    channel = tl.arange(0, GROUP_CHANNELS)
    points_row = points + pixel * ROW
    offsets = points_row + group * (2 * POINTS)
    masks = _load_masks(points_row + (2 * GROUPS + group) * POINTS, exists, POINTS, SOFTMAX)
    start_x = (column * stride + first).to(tl.float32)
    start_y = (row * stride + first).to(tl.float32)
    at = grad + (pixel * CHANNELS + group * GROUP_CHANNELS)[:, None] + channel[None, :]
    gradient = tl.load(at, mask=exists[:, None], other=0.0).to(tl.float32)
    # results: a row for each pair, a column for each point
    own = tl.arange(0, 16)[None, :]
    along_x = tl.zeros((PAIRS, 16), tl.float32)
    along_y = tl.zeros((PAIRS, 16), tl.float32)
    of_masks = tl.zeros((PAIRS, 16), tl.float32)
    shares = tl.zeros((PAIRS, 16), tl.float32)
    for point in tl.static_range(POINTS):
        x, y = _coordinates(
            offsets, exists, start_x, start_y, dilation, scale, point, REMOVE_CENTER, ROW % 2 == 0
        )
        cell, right, below, exist = _corners(x, y, exists, height, width)
        place = cell * CHANNELS + group * GROUP_CHANNELS
        products = ()
        for corner in tl.static_range(4):
            at = input + (place + (corner // 2 * width + corner % 2) * CHANNELS)[:, None] + channel[None, :]
            value = tl.load(at, mask=exist[corner][:, None], other=0.0).to(tl.float32)
            products += (tl.sum(gradient * value, axis=1, keep_dims=True),)
        right = right[:, None]
        below = below[:, None]
        slope_above = products[1] - products[0]
        slope_below = products[3] - products[2]
        above = products[0] + right * slope_above
        slope_y = products[2] + right * slope_below - above
        slope_x = slope_above + below * (slope_below - slope_above)
        sampled = above + below * slope_y
        along_x = tl.where(own == point, slope_x, along_x)
        along_y = tl.where(own == point, slope_y, along_y)
        of_masks = tl.where(own == point, sampled, of_masks)
        shares = tl.where(own == point, masks[point][:, None], shares)
    along_x *= shares * scale
    along_y *= shares * scale
    if SOFTMAX:
        mean = tl.sum(shares * of_masks, axis=1, keep_dims=True)
        of_masks = shares * (of_masks - mean)

    TYPE: tl.constexpr = grad_points.dtype.element_ty
    to = grad_points + pixel * ROW
    wanted = exists[:, None] & (own < POINTS)
    tl.store((to + (2 * GROUPS + group) * POINTS)[:, None] + own, of_masks.to(TYPE), mask=wanted)
    own = tl.arange(0, 32)[None, :]
    along = tl.reshape(tl.join(along_x, along_y), (PAIRS, 32))
    wanted = exists[:, None] & (own < 2 * POINTS)
    tl.store((to + group * (2 * POINTS))[:, None] + own, along.to(TYPE), mask=wanted)
    if ROW > USED:
        REST: tl.constexpr = triton.next_power_of_2(ROW - USED)
        own = tl.arange(0, REST)[None, :]
        wanted = (exists & (group == 0))[:, None] & (own < ROW - USED)
        tl.store(to[:, None] + USED + own, tl.zeros((PAIRS, REST), TYPE), mask=wanted)


@triton.jit
def _near(x, y, WINDOW_WIDTH: tl.constexpr, WINDOW_HEIGHT: tl.constexpr):
    """True if all corners lie in the window; false for NaN."""
    return (x >= 0.0) & (x < WINDOW_WIDTH - 1) & (y >= 0.0) & (y < WINDOW_HEIGHT - 1)


@triton.jit
def _either(first, second):
    return first | second


@triton.jit
def _add(at, value, wanted, unit, EXACT: tl.constexpr):
    """Add values to sums; EXACT skips zeros."""
    if EXACT:
        tl.atomic_add(at, (value * unit).to(tl.int64), mask=wanted & (value != 0.0), sem="relaxed")
    else:
        tl.atomic_add(at, value, mask=wanted, sem="relaxed")


@triton.jit(do_not_specialize=["height", "width", "rows", "columns", "stride", "first", "dilation"])
def backward_input(
    grad, points, sums, units, height, width, rows, columns, stride, first, dilation, scale,
    margin_x, margin_y,
    GROUPS: tl.constexpr, GROUP_CHANNELS: tl.constexpr, ROW: tl.constexpr, REMOVE_CENTER: tl.constexpr,
    SOFTMAX: tl.constexpr, EXACT: tl.constexpr, BLOCK_WIDTH: tl.constexpr, PIXELS: tl.constexpr,
    WINDOW_WIDTH: tl.constexpr, WINDOW_HEIGHT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``sums`` are zeros, float32 or, with ``EXACT``, int64; ``units`` then points to the number of units in 1.

    Grid: groups, then columns of pixels; rows; images. The margins are the distances from the window's first row and
    column to the first pixel.
    """
    POINTS: tl.constexpr = 9 - REMOVE_CENTER
    CHANNELS: tl.constexpr = GROUPS * GROUP_CHANNELS
    WINDOW: tl.constexpr = WINDOW_WIDTH * WINDOW_HEIGHT
    WIDE: tl.constexpr = GROUP_CHANNELS if GROUP_CHANNELS > 16 else 16  # of the matrices
    group = tl.program_id(0) % GROUPS
    own = tl.arange(0, PIXELS)
    first_column = tl.program_id(0) // GROUPS * BLOCK_WIDTH
    first_row = tl.program_id(1) * (PIXELS // BLOCK_WIDTH)
    column = first_column + own % BLOCK_WIDTH
    row = first_row + own // BLOCK_WIDTH
    exists = (row < rows) & (column < columns)
    image = tl.program_id(2).to(tl.int64)
    grad += image * rows * columns * CHANNELS + group * GROUP_CHANNELS
    points += image * rows * columns * ROW
    sums += image * height * width * CHANNELS + group * GROUP_CHANNELS
    unit = 1.0
    if EXACT:
        unit = tl.load(units)

    pixel = row * columns + column
    points_row = points + pixel * ROW
    offsets = points_row + group * (2 * POINTS)
    masks = _load_masks(points_row + (2 * GROUPS + group) * POINTS, exists, POINTS, SOFTMAX)
    # relative to the window
    left = first_column * stride + first - margin_x
    top = first_row * stride + first - margin_y
    start_x = (column * stride + first - left).to(tl.float32)
    start_y = (row * stride + first - top).to(tl.float32)
    across = tl.arange(0, WINDOW_WIDTH)[:, None].to(tl.float32)
    down = tl.arange(0, WINDOW_HEIGHT)[:, None].to(tl.float32)
    weights = tl.zeros((WINDOW_HEIGHT, WINDOW_WIDTH, PIXELS), tl.float32)
    far = tl.zeros((PIXELS,), tl.int32)
    for point in tl.static_range(POINTS):
        x, y = _coordinates(
            offsets, exists, start_x, start_y, dilation, scale, point, REMOVE_CENTER, ROW % 2 == 0
        )
        near = _near(x, y, WINDOW_WIDTH, WINDOW_HEIGHT)
        far |= (exists & ~near).to(tl.int32) << point
        share = tl.where(exists & near, masks[point], 0.0)
        near_x = tl.where(near, x, 0.0)
        near_y = tl.where(near, y, 0.0)
        hats_x = tl.maximum(1.0 - tl.abs(across - near_x[None, :]), 0.0) * share[None, :]
        hats_y = tl.maximum(1.0 - tl.abs(down - near_y[None, :]), 0.0)
        weights += hats_y[:, None, :] * hats_x[None, :, :]

    channel = tl.arange(0, WIDE)
    at = grad + (pixel * CHANNELS)[:, None] + channel[None, :]
    own_channels = (channel < GROUP_CHANNELS)[None, :]
    gradient = tl.load(at, mask=exists[:, None] & own_channels, other=0.0).to(tl.float32)
    products = tl.dot(tl.reshape(weights, (WINDOW, PIXELS)), gradient, input_precision=PRECISION)

    cell = tl.arange(0, WINDOW)
    cell_row = top + cell // WINDOW_WIDTH
    cell_column = left + cell % WINDOW_WIDTH
    inside = (cell_row >= 0) & (cell_row < height) & (cell_column >= 0) & (cell_column < width)
    # most of the window's border is zero and is not added
    filled = inside & (tl.sum(tl.abs(products), axis=1) != 0.0)
    at = sums + ((cell_row * width + cell_column) * CHANNELS)[:, None] + channel[None, :]
    _add(at, products, filled[:, None] & own_channels, unit, EXACT)

    far_points = tl.reduce(far, 0, _either)
    for point in tl.static_range(POINTS):
        if (far_points >> point) & 1:
            x, y = _coordinates(
                offsets, exists, start_x, start_y, dilation, scale, point, REMOVE_CENTER, ROW % 2 == 0
            )
            wanted = exists & ~_near(x, y, WINDOW_WIDTH, WINDOW_HEIGHT)
            far_cell, right, below, exist = _corners(
                x + left.to(tl.float32), y + top.to(tl.float32), wanted, height, width
            )
            shares = _corner_weights(right, below, exist, masks[point])
            for corner in tl.static_range(4):
                place = (far_cell + (corner // 2 * width + corner % 2)) * CHANNELS
                far_at = sums + place[:, None] + channel[None, :]
                value = shares[corner][:, None] * gradient
                _add(far_at, value, (shares[corner] != 0.0)[:, None] & own_channels, unit, EXACT)
