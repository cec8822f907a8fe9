"""The four-direction selective scan, forward and backward, in chunks of tokens that are walked side by side.

For direction k, channel c and state n, along the tokens in the order of the direction:
    dt_t = softplus(W_dt[k, c] . r_t + bias[k, c])
    h_t  = exp(dt_t A[k, c, n]) h_{t-1} + dt_t x_t B_t[n]          A = -exp(a_log)
    y_t  = sum_n C_t[n] h_t
r, B and C are one row of ``projected`` for each token and direction. Backward, with g the gradient of y, the state's
gradient is G_t = g_t C_t + P_{t+1}, and P_t = exp(dt_t A) G_t is what a token hands to the one before it.

A direction is an order in which the rows of a token-major tensor are visited. Programs of one warp own a chunk of
tokens and 32 channels of one direction of one image: a thread holds all states of its channel in registers.
    chunk_ends        the state after each chunk from a zero start (or, ADJOINT, what its first token hands back)
    join_chunks       from these, chunk after chunk, the state before (behind) each chunk
    scan_chunks       what the direction adds to each token
    scan_chunks_backward   all gradients of a chunk's tokens; states are recomputed, first to the start of each burst
                      of tokens, then inside the burst, whose states are all in registers
    sum_directions    the four directions' shares and the skip

Arithmetic is float32; shares of directions have the type of x.
"""

import triton
import triton.language as tl

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
DIRECTIONS: tl.constexpr = tl.constexpr(4)
STAGES: tl.constexpr = tl.constexpr(3)  # rows are loaded so many tokens ahead, less one


@triton.jit
def _softplus(x):
    """log(1 + exp(x)): the polynomial is log(1 + e) / e on [0, 1], relative error 4e-8."""
    e = tl.exp2(-tl.abs(x) * LOG2_E)
    p = 5.105825790e-03 * e - 2.899195635e-02
    p = p * e + 7.738073832e-02
    p = p * e - 1.359060023e-01
    p = p * e + 1.907130958e-01
    p = p * e - 2.483394546e-01
    p = p * e + 3.331793432e-01
    p = p * e - 4.999943569e-01
    p = p * e + 9.999999652e-01
    return p * e + tl.maximum(x, 0.0)


@triton.jit
def _softplus_slope(y):
    """Derivative of softplus where it has the value y: 1 - exp(-y), without cancellation for small y."""
    p = 1.0 / 720 - y * (1.0 / 5040)
    p = 1.0 / 120 - y * p
    p = 1.0 / 24 - y * p
    p = 1.0 / 6 - y * p
    p = 0.5 - y * p
    p = 1.0 - y * p
    return tl.where(y < 0.35, p * y, 1.0 - tl.exp2(-y * LOG2_E))


@triton.jit
def _token(position, direction, height, length):
    """The token at a position of a direction: along rows, along columns, both from the last token to the first."""
    forward = tl.where(direction >= 2, length - 1 - position, position)
    return tl.where(direction % 2 == 1, forward % height * (length // height) + forward // height, forward)


@triton.jit
def _neighbour(token, direction, height, length, BACK: tl.constexpr):
    """The token after (before, with BACK) one in the order of a direction; some token beyond the ends."""
    stride = tl.where(direction % 2 == 1, length // height, 1)
    if BACK:
        stride = -stride
    token += tl.where(direction >= 2, -stride, stride)
    token = tl.where(token >= length, token - (length - 1), token)
    return tl.where(token < 0, token + (length - 1), token)


@triton.jit
def _rates(a_log, direction, channel, channels, STATES: tl.constexpr, BLOCK_STATES: tl.constexpr):
    """A in units of log 2, (states, channels)."""
    state = tl.arange(0, BLOCK_STATES)[:, None]
    mask = (channel < channels)[None, :] & (state < STATES)
    place = (direction * STATES + state) * channels + channel[None, :]
    logarithms = tl.load(a_log + place, mask=mask, other=0.0)
    return -tl.exp2(logarithms * LOG2_E) * LOG2_E


@triton.jit
def _step_parameters(
    dt_weight, dt_bias, direction, channel, channels, RANK: tl.constexpr, BLOCK_RANK: tl.constexpr
):
    """W_dt, (rank, channels), and its bias."""
    place = tl.arange(0, BLOCK_RANK)[:, None]
    mask = (channel < channels)[None, :] & (place < RANK)
    weight = tl.load(
        dt_weight + (direction * RANK + place) * channels + channel[None, :], mask=mask, other=0.0
    )
    return weight, tl.load(dt_bias + direction * channels + channel, mask=channel < channels, other=0.0)


@triton.jit
def _time_step(row, weight, bias, RANK: tl.constexpr, BLOCK_RANK: tl.constexpr):
    place = tl.arange(0, BLOCK_RANK)
    low_rank = tl.load(row + place, mask=place < RANK, other=0.0)
    return _softplus(tl.sum(weight * low_rank[:, None], axis=0) + bias)


@triton.jit
def _of_states(row, STATES: tl.constexpr, BLOCK_STATES: tl.constexpr):
    """B or C of a token, (states, 1)."""
    state = tl.arange(0, BLOCK_STATES)
    return tl.load(row + state, mask=state < STATES, other=0.0)[:, None]


@triton.jit
def _state_places(group, channel, channels, STATES: tl.constexpr, BLOCK_STATES: tl.constexpr):
    """Where the states of a group (chunk and direction) lie, and which of them exist."""
    state = tl.arange(0, BLOCK_STATES)[:, None]
    return (group * STATES + state) * channels + channel[None, :], (channel < channels)[None, :] & (
        state < STATES
    )


@triton.jit(do_not_specialize=["height", "length", "channels"])
def chunk_ends(
    values,
    projected,
    dt_weight,
    dt_bias,
    a_log,
    ends,
    elapsed,
    height,
    length,
    channels,
    ADJOINT: tl.constexpr,
    CHUNK: tl.constexpr,
    STATES: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_STATES: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
):
    """``values``: x (B, L, D), or the gradient of y. Written: ends (B, chunks, 4, N, D); elapsed (B, chunks, 4, D)."""
    blocks = (channels + BLOCK_CHANNELS - 1) // BLOCK_CHANNELS
    ROW: tl.constexpr = RANK + 2 * STATES
    chunk, direction, image = tl.program_id(0) // blocks, tl.program_id(1), tl.program_id(2).to(tl.int64)
    channel = tl.program_id(0) % blocks * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    exists = channel < channels
    chunks = (length + CHUNK - 1) // CHUNK
    values += image * length * channels
    projected += (image * length * DIRECTIONS + direction) * ROW
    rate = _rates(a_log, direction, channel, channels, STATES, BLOCK_STATES)
    weight, bias = _step_parameters(dt_weight, dt_bias, direction, channel, channels, RANK, BLOCK_RANK)

    tokens = tl.minimum(CHUNK, length - chunk * CHUNK)
    first = chunk * CHUNK
    if ADJOINT:
        first += tokens - 1
    token = _token(first, direction, height, length)
    end = tl.zeros((BLOCK_STATES, BLOCK_CHANNELS), tl.float32)
    total = tl.zeros((BLOCK_CHANNELS,), tl.float32)
    for _ in tl.range(tokens, num_stages=STAGES):
        row = projected + token * (DIRECTIONS * ROW)
        value = tl.load(values + token * channels + channel, mask=exists, other=0.0).to(tl.float32)
        dt = _time_step(row, weight, bias, RANK, BLOCK_RANK)
        decay = tl.exp2(dt[None, :] * rate)
        if ADJOINT:
            c = _of_states(row + RANK + STATES, STATES, BLOCK_STATES)
            end = decay * (end + value[None, :] * c)
        else:
            b = _of_states(row + RANK, STATES, BLOCK_STATES)
            end = decay * end + (dt * value)[None, :] * b
        total += dt
        token = _neighbour(token, direction, height, length, ADJOINT)
    group = (image * chunks + chunk) * DIRECTIONS + direction
    place, mask = _state_places(group, channel, channels, STATES, BLOCK_STATES)
    tl.store(ends + place, end, mask=mask)
    tl.store(elapsed + group * channels + channel, total, mask=exists)


@triton.jit(do_not_specialize=["chunks"])
def join_chunks(
    states,
    elapsed,
    a_log,
    chunks,
    ADJOINT: tl.constexpr,
    CHANNELS: tl.constexpr,
    STATES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``states``: the ends of chunks, replaced by the states before them; ADJOINT: by what is handed back to them."""
    SIZE: tl.constexpr = STATES * CHANNELS
    direction, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = place < SIZE
    rate = -tl.exp2(tl.load(a_log + direction * SIZE + place, mask=mask, other=0.0) * LOG2_E) * LOG2_E
    group = image * chunks * DIRECTIONS + direction
    step = DIRECTIONS
    if ADJOINT:
        group += (chunks - 1) * DIRECTIONS
        step = -DIRECTIONS
    carried = tl.zeros((BLOCK,), tl.float32)
    end = tl.load(states + group * SIZE + place, mask=mask, other=0.0)
    passed = tl.load(elapsed + group * CHANNELS + place % CHANNELS, mask=mask, other=0.0)
    for chunk in range(chunks):
        # the next ones are under way while this one is worked on
        follows = mask & (chunk < chunks - 1)
        next_end = tl.load(states + (group + step) * SIZE + place, mask=follows, other=0.0)
        next_passed = tl.load(elapsed + (group + step) * CHANNELS + place % CHANNELS, mask=follows, other=0.0)
        tl.store(states + group * SIZE + place, carried, mask=mask)
        carried = tl.exp2(passed * rate) * carried + end
        end, passed = next_end, next_passed
        group += step


@triton.jit(do_not_specialize=["height", "length", "channels"])
def scan_chunks(
    x,
    projected,
    dt_weight,
    dt_bias,
    a_log,
    states,
    shares,
    height,
    length,
    channels,
    CHUNK: tl.constexpr,
    STATES: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_STATES: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
):
    """``states`` (B, chunks, 4, N, D): before each chunk. Written: shares (4, B, L, D) of the sum over directions."""
    blocks = (channels + BLOCK_CHANNELS - 1) // BLOCK_CHANNELS
    ROW: tl.constexpr = RANK + 2 * STATES
    chunk, direction, image = tl.program_id(0) // blocks, tl.program_id(1), tl.program_id(2).to(tl.int64)
    channel = tl.program_id(0) % blocks * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    exists = channel < channels
    chunks = (length + CHUNK - 1) // CHUNK
    x += image * length * channels
    shares += (direction.to(tl.int64) * tl.num_programs(2) + image) * length * channels
    projected += (image * length * DIRECTIONS + direction) * ROW
    rate = _rates(a_log, direction, channel, channels, STATES, BLOCK_STATES)
    weight, bias = _step_parameters(dt_weight, dt_bias, direction, channel, channels, RANK, BLOCK_RANK)
    group = (image * chunks + chunk) * DIRECTIONS + direction
    place, mask = _state_places(group, channel, channels, STATES, BLOCK_STATES)
    h = tl.load(states + place, mask=mask, other=0.0)

    token = _token(chunk * CHUNK, direction, height, length)
    for _ in tl.range(tl.minimum(CHUNK, length - chunk * CHUNK), num_stages=STAGES):
        row = projected + token * (DIRECTIONS * ROW)
        value = tl.load(x + token * channels + channel, mask=exists, other=0.0).to(tl.float32)
        b = _of_states(row + RANK, STATES, BLOCK_STATES)
        c = _of_states(row + RANK + STATES, STATES, BLOCK_STATES)
        dt = _time_step(row, weight, bias, RANK, BLOCK_RANK)
        h = tl.exp2(dt[None, :] * rate) * h + (dt * value)[None, :] * b
        share = tl.sum(h * c, axis=0).to(shares.dtype.element_ty)
        tl.store(shares + token * channels + channel, share, mask=exists)
        token = _neighbour(token, direction, height, length, False)


@triton.jit(do_not_specialize=["height", "length", "image", "batch"])
def scan_chunks_backward(
    x,
    projected,
    dt_weight,
    dt_bias,
    a_log,
    states,
    grad_y,
    handed_back,
    scratch,
    grad_x_shares,
    grad_steps,
    grad_b_and_c,
    grad_a,
    height,
    length,
    image,
    batch,
    CHUNK: tl.constexpr,
    BURST: tl.constexpr,
    CHANNELS: tl.constexpr,
    STATES: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_STATES: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
):
    """One image; programs take one (chunk, direction, block of channels) after the other, and share no memory.

    ``states`` (B, chunks, 4, N, D): before each chunk; ``handed_back``, alike: to its last token. ``scratch``, of each
    program: the states before each burst and the time steps of a chunk.

    Written: grad_x_shares (4, B, L, D); of this image, grad_steps (L, 4, D), of dt before its softplus, grad_b_and_c
    (blocks, L, 4, 2N), sums over a block's channels, and grad_a (chunks, 4, N, D), of A.
    """
    BLOCKS: tl.constexpr = (CHANNELS + BLOCK_CHANNELS - 1) // BLOCK_CHANNELS
    ROW: tl.constexpr = RANK + 2 * STATES
    BURSTS: tl.constexpr = CHUNK // BURST
    STATE_SIZE: tl.constexpr = BLOCK_STATES * BLOCK_CHANNELS
    chunks = (length + CHUNK - 1) // CHUNK
    image = tl.cast(image, tl.int64)
    lane = tl.arange(0, BLOCK_CHANNELS)
    state = tl.arange(0, BLOCK_STATES)
    scratch += tl.cast(tl.program_id(0), tl.int64) * (BURSTS * STATE_SIZE + CHUNK * BLOCK_CHANNELS)
    own_states = scratch + state[:, None] * BLOCK_CHANNELS + lane[None, :]
    own_steps = scratch + BURSTS * STATE_SIZE + lane
    x += image * length * CHANNELS
    grad_y += image * length * CHANNELS

    for item in range(tl.program_id(0), chunks * DIRECTIONS * BLOCKS, tl.num_programs(0)):
        block = item % BLOCKS
        direction = item // BLOCKS % 4
        chunk = item // BLOCKS // 4
        channel = block * BLOCK_CHANNELS + lane
        exists = channel < CHANNELS
        rows = projected + (image * length * DIRECTIONS + direction) * ROW
        share = grad_x_shares + (tl.cast(direction, tl.int64) * batch + image) * length * CHANNELS
        rate = _rates(a_log, direction, channel, CHANNELS, STATES, BLOCK_STATES)
        weight, bias = _step_parameters(dt_weight, dt_bias, direction, channel, CHANNELS, RANK, BLOCK_RANK)
        group = (image * chunks + chunk) * DIRECTIONS + direction
        place, mask = _state_places(group, channel, CHANNELS, STATES, BLOCK_STATES)
        h = tl.load(states + place, mask=mask, other=0.0)
        handed = tl.load(handed_back + place, mask=mask, other=0.0)
        rate_sum = tl.zeros((BLOCK_STATES, BLOCK_CHANNELS), tl.float32)

        # Forward through the chunk, for the time steps and for the states at the start of each burst.
        stop = tl.minimum(CHUNK, length - chunk * CHUNK)
        token = _token(chunk * CHUNK, direction, height, length)
        tl.debug_barrier()  # the item before has read its own
        for step in tl.range(stop, num_stages=STAGES):
            if step % BURST == 0:
                tl.store(own_states + step // BURST * STATE_SIZE, h)
            row = rows + token * (DIRECTIONS * ROW)
            value = tl.load(x + token * CHANNELS + channel, mask=exists, other=0.0).to(tl.float32)
            b = _of_states(row + RANK, STATES, BLOCK_STATES)
            dt = _time_step(row, weight, bias, RANK, BLOCK_RANK)
            tl.store(own_steps + step * BLOCK_CHANNELS, dt)
            h = tl.exp2(dt[None, :] * rate) * h + (dt * value)[None, :] * b
            token = _neighbour(token, direction, height, length, False)
        tl.debug_barrier()

        bursts = (stop + BURST - 1) // BURST
        for behind in range(bursts):
            burst = bursts - 1 - behind
            h = tl.load(own_states + burst * STATE_SIZE)
            token = _token(chunk * CHUNK + burst * BURST, direction, height, length)
            before, tokens = (), ()
            # Beyond the last token nothing is read, and dt is 0: states stay as they are.
            for i in tl.static_range(BURST):
                inside = exists & (burst * BURST + i < stop)
                row = rows + token * (DIRECTIONS * ROW)
                value = tl.load(x + token * CHANNELS + channel, mask=inside, other=0.0).to(tl.float32)
                b = _of_states(row + RANK, STATES, BLOCK_STATES)
                dt = tl.load(own_steps + (burst * BURST + i) * BLOCK_CHANNELS, mask=inside, other=0.0)
                before = before + (h,)  # noqa: RUF005 - Triton does not unpack
                tokens = tokens + (token,)  # noqa: RUF005
                h = tl.exp2(dt[None, :] * rate) * h + (dt * value)[None, :] * b
                token = _neighbour(token, direction, height, length, False)
            for i in tl.static_range(BURST - 1, -1, -1):
                token = tokens[i]
                valid = burst * BURST + i < stop
                inside = exists & valid
                row = rows + token * (DIRECTIONS * ROW)
                b = _of_states(row + RANK, STATES, BLOCK_STATES)
                c = _of_states(row + RANK + STATES, STATES, BLOCK_STATES)
                dt = tl.load(own_steps + (burst * BURST + i) * BLOCK_CHANNELS, mask=inside, other=0.0)
                value = tl.load(x + token * CHANNELS + channel, mask=inside, other=0.0).to(tl.float32)
                g = tl.load(grad_y + token * CHANNELS + channel, mask=inside, other=0.0).to(tl.float32)
                grad_c = tl.sum(h * g[None, :], axis=1)
                h = before[i]
                gradient = handed + g[None, :] * c
                grad_b = tl.sum(gradient * (dt * value)[None, :], axis=1)
                grad_product = tl.sum(gradient * b, axis=0)
                handed = tl.exp2(dt[None, :] * rate) * gradient
                exponent = handed * h
                rate_sum += exponent * dt[None, :]
                # rates are in units of log 2
                grad_dt = grad_product * value + tl.sum(exponent * rate, axis=0) * (1.0 / LOG2_E)
                tl.store(
                    share + token * CHANNELS + channel,
                    (grad_product * dt).to(grad_x_shares.dtype.element_ty),
                    mask=inside,
                )
                tl.store(
                    grad_steps + (token * DIRECTIONS + direction) * CHANNELS + channel,
                    grad_dt * _softplus_slope(dt),
                    mask=inside,
                )
                sums = grad_b_and_c + (
                    (tl.cast(block, tl.int64) * length + token) * DIRECTIONS + direction
                ) * (2 * STATES)
                tl.store(sums + state, grad_b, mask=valid & (state < STATES))
                tl.store(sums + STATES + state, grad_c, mask=valid & (state < STATES))
        place, mask = _state_places(chunk * DIRECTIONS + direction, channel, CHANNELS, STATES, BLOCK_STATES)
        tl.store(grad_a + place, rate_sum, mask=mask)


@triton.jit
def sum_directions(shares, x, d_skip, total, count, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """``total (B, L, D)``: shares (4, B, L, D) added up, and x times the sum of the directions' skips."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = place < count
    channel = place % CHANNELS
    skip = tl.load(d_skip + channel)
    for direction in tl.static_range(1, 4):
        skip += tl.load(d_skip + direction * CHANNELS + channel)
    result = skip * tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    for direction in tl.static_range(4):
        result += tl.load(shares + direction * count + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(total + place, result.to(total.dtype.element_ty), mask=mask)
