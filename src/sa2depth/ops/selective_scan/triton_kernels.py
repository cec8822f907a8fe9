"""The four-direction selective scan in chunks of tokens that are walked side by side: what both passes share, forward.

For direction k, channel c and state n, along the tokens in the order of the direction:
    dt_t = softplus(W_dt[k, c] . r_t + bias[k, c])
    h_t  = exp(dt_t A[k, c, n]) h_{t-1} + dt_t x_t B_t[n]          A = -exp(a_log)
    y_t  = sum_n C_t[n] h_t
r, B and C are one row of ``projected`` for each token and direction.

A direction is an order in which the rows of a token-major tensor are visited. Programs of one warp own a chunk of
tokens and 32 channels of one direction of one image: a thread holds all states of its channel in registers.
    chunk_ends        the state after each chunk from a zero start (ADJOINT: what its first token hands back)
    join_chunks       from these, chunk after chunk, the state before (behind) each chunk
    scan_chunks       what the direction adds to each token
    sum_directions    the four directions' shares and the skip

Arithmetic is float32; shares of directions have the type of x. An H100 takes 6.6 ms for 8x512x120x160 in bfloat16, of
which 2.4 are the first and 3.4 the last pass over the tokens, half of that one's issue slots' limit (146 instructions a
token): a thread waits for each token's row, though the next two are under way. The CUDA kernels take 2.5 ms.
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
def token_at(position, direction, height, length):
    """The token at a position of a direction: along rows, along columns, both from the last token to the first."""
    forward = tl.where(direction >= 2, length - 1 - position, position)
    return tl.where(direction % 2 == 1, forward % height * (length // height) + forward // height, forward)


@triton.jit
def neighbour(token, direction, height, length, BACK: tl.constexpr):
    """The token after (before, with BACK) one in the order of a direction; beyond the ends not always a token."""
    stride = tl.where(direction % 2 == 1, length // height, 1)
    if BACK:
        stride = -stride
    token += tl.where(direction >= 2, -stride, stride)
    token = tl.where(token >= length, token - (length - 1), token)
    return tl.where(token < 0, token + (length - 1), token)


@triton.jit
def rates(a_log, direction, channel, channels, STATES: tl.constexpr, BLOCK_STATES: tl.constexpr):
    """A in units of log 2, (states, channels)."""
    state = tl.arange(0, BLOCK_STATES)[:, None]
    mask = (channel < channels)[None, :] & (state < STATES)
    place = (direction * STATES + state) * channels + channel[None, :]
    logarithms = tl.load(a_log + place, mask=mask, other=0.0)
    return -tl.exp2(logarithms * LOG2_E) * LOG2_E


@triton.jit
def step_parameters(
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
def time_step(row, weight, bias, RANK: tl.constexpr, BLOCK_RANK: tl.constexpr):
    """A token's time step, (channels), from its row of ``projected``."""
    place = tl.arange(0, BLOCK_RANK)
    low_rank = tl.load(row + place, mask=place < RANK, other=0.0)
    return _softplus(tl.sum(weight * low_rank[:, None], axis=0) + bias)


@triton.jit
def of_states(row, STATES: tl.constexpr, BLOCK_STATES: tl.constexpr):
    """B or C of a token, (states, 1)."""
    state = tl.arange(0, BLOCK_STATES)
    return tl.load(row + state, mask=state < STATES, other=0.0)[:, None]


@triton.jit
def state_places(group, channel, channels, STATES: tl.constexpr, BLOCK_STATES: tl.constexpr):
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
    rate = rates(a_log, direction, channel, channels, STATES, BLOCK_STATES)
    weight, bias = step_parameters(dt_weight, dt_bias, direction, channel, channels, RANK, BLOCK_RANK)

    tokens = tl.minimum(CHUNK, length - chunk * CHUNK)
    first = chunk * CHUNK
    if ADJOINT:
        first += tokens - 1
    token = token_at(first, direction, height, length)
    end = tl.zeros((BLOCK_STATES, BLOCK_CHANNELS), tl.float32)
    total = tl.zeros((BLOCK_CHANNELS,), tl.float32)
    for _ in tl.range(tokens, num_stages=STAGES):
        row = projected + token * (DIRECTIONS * ROW)
        value = tl.load(values + token * channels + channel, mask=exists, other=0.0).to(tl.float32)
        dt = time_step(row, weight, bias, RANK, BLOCK_RANK)
        decay = tl.exp2(dt[None, :] * rate)
        if ADJOINT:
            c = of_states(row + RANK + STATES, STATES, BLOCK_STATES)
            end = decay * (end + value[None, :] * c)
        else:
            b = of_states(row + RANK, STATES, BLOCK_STATES)
            end = decay * end + (dt * value)[None, :] * b
        total += dt
        token = neighbour(token, direction, height, length, ADJOINT)
    group = (image * chunks + chunk) * DIRECTIONS + direction
    place, mask = state_places(group, channel, channels, STATES, BLOCK_STATES)
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
    rate = rates(a_log, direction, channel, channels, STATES, BLOCK_STATES)
    weight, bias = step_parameters(dt_weight, dt_bias, direction, channel, channels, RANK, BLOCK_RANK)
    group = (image * chunks + chunk) * DIRECTIONS + direction
    place, mask = state_places(group, channel, channels, STATES, BLOCK_STATES)
    h = tl.load(states + place, mask=mask, other=0.0)

    token = token_at(chunk * CHUNK, direction, height, length)
    for _ in tl.range(tl.minimum(CHUNK, length - chunk * CHUNK), num_stages=STAGES):
        row = projected + token * (DIRECTIONS * ROW)
        value = tl.load(x + token * channels + channel, mask=exists, other=0.0).to(tl.float32)
        b = of_states(row + RANK, STATES, BLOCK_STATES)
        c = of_states(row + RANK + STATES, STATES, BLOCK_STATES)
        dt = time_step(row, weight, bias, RANK, BLOCK_RANK)
        h = tl.exp2(dt[None, :] * rate) * h + (dt * value)[None, :] * b
        share = tl.sum(h * c, axis=0).to(shares.dtype.element_ty)
        tl.store(shares + token * channels + channel, share, mask=exists)
        token = neighbour(token, direction, height, length, False)


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
