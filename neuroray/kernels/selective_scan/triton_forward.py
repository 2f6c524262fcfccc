"""The forward kernels of the selective scan in Triton: summary of each chunk, carry over chunks, output.

Each thread holds all states of its channels: a tile is `state channel` with the channels along the threads, so sums
over states, softplus and the gate cost no exchange between threads. For that the compiler must see channels next to
each other in memory without knowing an alignment (it would give each thread four of them), hence
`do_not_specialize` on `stride`. The exponential unit (16 a cycle and multiprocessor, 128 other instructions) bounds
both passes: with fewer than 8 instructions to one exponential, nothing else is worth saving.

Columns of parameters and states are channels padded to whole blocks (`triton_plan.py`), so only what lies
`batch token channel` needs a mask. B and C by token come as float32, converted once instead of in every block.
"""

from __future__ import annotations

import triton
import triton.language as tl

# ruff: noqa: N803, N806 - the formula's own letters, and Triton's constants in capitals
# Triton's compiler, not Python, runs these functions: constants it folds, and branches it drops, look like errors.
# pyright: reportPossiblyUnboundVariable=false, reportAssignmentType=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def softplus(x):
    """log(1 + exp(x)) without cancellation, in float32; logarithm by its series in e / (2 + e), exact to 2e-8."""
    small = tl.exp2(-tl.abs(x) * LOG2_E)
    ratio = small / (2.0 + small)
    square = ratio * ratio
    series = 1 / 9 + square * (1 / 11 + square * (1 / 13 + square * (1 / 15)))
    series = 1.0 + square * (1 / 3 + square * (1 / 5 + square * (1 / 7 + square * series)))
    return tl.maximum(x, 0.0) + 2.0 * ratio * series


@triton.jit
def load_step(pointer, mask, bias, SOFTPLUS: tl.constexpr):
    """The time step of one token, zero in masked channels: there the state stays as it is."""
    step = tl.load(pointer, mask=mask, other=0.0).to(tl.float32) + bias
    if SOFTPLUS:
        step = softplus(step)
    return step


@triton.jit
def locate(num_chunks, length, num_blocks, tokens, span, BLOCK: tl.constexpr, REVERSE: tl.constexpr):
    """Which block, chunk and batch entry a program has; its columns, channels and mask; its first token and step."""
    program = tl.program_id(0).to(tl.int64)
    block = program % num_blocks
    chunk = (program // num_blocks) % num_chunks
    batch = program // num_blocks // num_chunks
    column = block * BLOCK + tl.arange(0, BLOCK)
    blocks_of_span = tl.cdiv(span, BLOCK)
    within = (block % blocks_of_span) * BLOCK + tl.arange(0, BLOCK)
    channel = (block // blocks_of_span) * span + within
    # Chunks are cut from the first token on in either direction, so that both can be summarised together.
    place = chunk
    if REVERSE:
        place = num_chunks - 1 - chunk
    token = place * length
    count = tl.minimum(length, tokens - token).to(tl.int32)
    if REVERSE:
        token += count - 1
    return block, chunk, batch, column, channel, within < span, token, count


@triton.jit(do_not_specialize=["stride", "length", "num_chunks", "tokens"])
def summarise(
    u_ptr, delta_ptr, bias_ptr, A_ptr, B_ptr, end_ptr, sum_ptr,
    u_batch, u_token, delta_batch, delta_token, tokens, span, stride,
    num_chunks, length, num_blocks, B_groups, B_blocks,
    STATES: tl.constexpr, BLOCK: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr,
    B_FIXED: tl.constexpr,
):  # fmt: skip
    """The state at the end of each chunk that starts from zero, and the sum of its time steps."""
    place = locate(num_chunks, length, num_blocks, tokens, span, BLOCK, REVERSE)
    block, chunk, batch, column, channel, mask, token, count = place
    direction: tl.constexpr = -1 if REVERSE else 1
    state = tl.arange(0, STATES)
    tile = state[:, None] * stride + column.to(tl.int32)[None, :]
    A = tl.load(A_ptr + tile)
    bias = tl.load(bias_ptr + column)
    u_at = u_ptr + batch * u_batch + token * u_token + channel
    delta_at = delta_ptr + batch * delta_batch + token * delta_token + channel
    if B_FIXED:
        B = tl.load(B_ptr + tile)
    else:
        B_at = B_ptr + ((batch * tokens + token) * B_groups + block // B_blocks) * STATES + state
    h = tl.zeros([STATES, BLOCK], tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for _ in range(0, count):
        step = load_step(delta_at, mask, bias, SOFTPLUS)
        entering = step * tl.load(u_at, mask=mask, other=0.0).to(tl.float32)
        if B_FIXED:
            h = tl.exp2(A * step[None, :]) * h + B * entering[None, :]
        else:
            h = tl.exp2(A * step[None, :]) * h + tl.load(B_at)[:, None] * entering[None, :]
            B_at += direction * B_groups * STATES
        total += step
        u_at += direction * u_token
        delta_at += direction * delta_token
    slot = batch * num_chunks + chunk
    tl.store(end_ptr + slot * STATES * stride + tile, h)
    tl.store(sum_ptr + slot * stride + column, total)


@triton.jit(do_not_specialize=["stride", "length", "num_chunks", "tokens"])
def summarise_both(
    u_ptr, delta_ptr, bias_ptr, A_ptr, B_ptr, back_B_ptr, end_ptr, back_end_ptr, sum_ptr, back_sum_ptr,
    u_batch, u_token, delta_batch, delta_token, tokens, span, stride, num_chunks, length, num_blocks,
    B_groups, B_blocks, back_B_groups, back_B_blocks,
    STATES: tl.constexpr, BLOCK: tl.constexpr, SOFTPLUS: tl.constexpr, B_FIXED: tl.constexpr,
    BACK_B_FIXED: tl.constexpr,
):  # fmt: skip
    """`summarise` for both directions, which share all but B, from one reading and one exponential.

    On the way ahead the product of decays so far is what a token's input suffers on the way back.
    """
    place = locate(num_chunks, length, num_blocks, tokens, span, BLOCK, False)
    block, chunk, batch, column, channel, mask, token, count = place
    state = tl.arange(0, STATES)
    tile = state[:, None] * stride + column.to(tl.int32)[None, :]
    A = tl.load(A_ptr + tile)
    bias = tl.load(bias_ptr + column)
    u_at = u_ptr + batch * u_batch + token * u_token + channel
    delta_at = delta_ptr + batch * delta_batch + token * delta_token + channel
    row = batch * tokens + token
    if B_FIXED:
        B = tl.load(B_ptr + tile)
    else:
        B_at = B_ptr + (row * B_groups + block // B_blocks) * STATES + state
    if BACK_B_FIXED:
        back_B = tl.load(back_B_ptr + tile)
    else:
        back_B_at = back_B_ptr + (row * back_B_groups + block // back_B_blocks) * STATES + state
    h = tl.zeros([STATES, BLOCK], tl.float32)
    back_h = tl.zeros([STATES, BLOCK], tl.float32)
    decay = tl.full([STATES, BLOCK], 1.0, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for _ in range(0, count):
        step = load_step(delta_at, mask, bias, SOFTPLUS)
        entering = (step * tl.load(u_at, mask=mask, other=0.0).to(tl.float32))[None, :]
        if not B_FIXED:
            B = tl.load(B_at)[:, None]
            B_at += B_groups * STATES
        if not BACK_B_FIXED:
            back_B = tl.load(back_B_at)[:, None]
            back_B_at += back_B_groups * STATES
        a = tl.exp2(A * step[None, :])
        h = a * h + B * entering
        back_h += decay * (back_B * entering)
        decay *= a
        total += step
        u_at += u_token
        delta_at += delta_token
    slot = batch * num_chunks + chunk
    back_slot = batch * num_chunks + num_chunks - 1 - chunk
    tl.store(end_ptr + slot * STATES * stride + tile, h)
    tl.store(sum_ptr + slot * stride + column, total)
    tl.store(back_end_ptr + back_slot * STATES * stride + tile, back_h)
    tl.store(back_sum_ptr + back_slot * stride + column, total)


@triton.jit(do_not_specialize=["stride", "num_chunks"])
def carry(
    A_ptr, end_ptr, sum_ptr, initial_ptr, last_ptr, stride, num_chunks,
    STATES: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Replaces the end of each chunk by what enters the chunk, for one state; ROWS chunks are fetched at a time."""
    program = tl.program_id(0).to(tl.int64)
    blocks = stride // BLOCK
    column = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    batch = program // blocks // STATES
    entry = (program // blocks % STATES) * stride + column
    size = STATES * stride.to(tl.int64)
    A = tl.load(A_ptr + entry)
    value = tl.load(initial_ptr + batch * size + entry)
    row = tl.arange(0, ROWS)
    for first in range(0, num_chunks, ROWS):
        chunk = first + row
        present = (chunk < num_chunks)[:, None]
        if REVERSE:
            chunk = num_chunks - 1 - chunk
        slot = (batch * num_chunks + chunk)[:, None]
        end = tl.load(end_ptr + slot * size + entry[None, :], mask=present, other=0.0)
        decay = tl.exp2(A[None, :] * tl.load(sum_ptr + slot * stride + column[None, :], mask=present, other=0.0))
        entering = end
        for index in tl.static_range(ROWS):
            here = (row == index)[:, None]
            entering = tl.where(here, value[None, :], entering)
            value = tl.sum(tl.where(here, decay, 0.0), 0) * value + tl.sum(tl.where(here, end, 0.0), 0)
        tl.store(end_ptr + slot * size + entry[None, :], entering, mask=present)
    tl.store(last_ptr + batch * size + entry, value)


@triton.jit(do_not_specialize=["stride", "length", "num_chunks", "tokens"])
def emit(
    u_ptr, delta_ptr, bias_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, entering_ptr, added_ptr, out_ptr,
    u_batch, u_token, delta_batch, delta_token, z_batch, z_token, channels, tokens, span, stride,
    num_chunks, length, num_blocks, B_groups, B_blocks, C_groups, C_blocks,
    STATES: tl.constexpr, BLOCK: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr,
    B_FIXED: tl.constexpr, C_FIXED: tl.constexpr, GATED: tl.constexpr, ADDED: tl.constexpr,
):  # fmt: skip
    """The output of every token, from the state that enters its chunk; with ADDED, what `added_ptr` holds is in it."""
    place = locate(num_chunks, length, num_blocks, tokens, span, BLOCK, REVERSE)
    block, chunk, batch, column, channel, mask, token, count = place
    direction: tl.constexpr = -1 if REVERSE else 1
    state = tl.arange(0, STATES)
    tile = state[:, None] * stride + column.to(tl.int32)[None, :]
    A = tl.load(A_ptr + tile)
    D = tl.load(D_ptr + column)
    bias = tl.load(bias_ptr + column)
    h = tl.load(entering_ptr + (batch * num_chunks + chunk) * STATES * stride + tile)
    u_at = u_ptr + batch * u_batch + token * u_token + channel
    delta_at = delta_ptr + batch * delta_batch + token * delta_token + channel
    z_at = z_ptr + batch * z_batch + token * z_token + channel
    row = batch * tokens + token
    out_at = row * channels + channel
    if B_FIXED:
        B = tl.load(B_ptr + tile)
    else:
        B_at = B_ptr + (row * B_groups + block // B_blocks) * STATES + state
    if C_FIXED:
        C = tl.load(C_ptr + tile)
    else:
        C_at = C_ptr + (row * C_groups + block // C_blocks) * STATES + state
    for _ in range(0, count):
        u = tl.load(u_at, mask=mask, other=0.0).to(tl.float32)
        step = load_step(delta_at, mask, bias, SOFTPLUS)
        entering = step * u
        if B_FIXED:
            h = tl.exp2(A * step[None, :]) * h + B * entering[None, :]
        else:
            h = tl.exp2(A * step[None, :]) * h + tl.load(B_at)[:, None] * entering[None, :]
            B_at += direction * B_groups * STATES
        if C_FIXED:
            y = tl.sum(C * h, 0) + D * u
        else:
            y = tl.sum(tl.load(C_at)[:, None] * h, 0) + D * u
            C_at += direction * C_groups * STATES
        if ADDED:
            y += tl.load(added_ptr + out_at, mask=mask, other=0.0).to(tl.float32)
        if GATED:
            z = tl.load(z_at, mask=mask, other=0.0).to(tl.float32)
            y *= z / (1.0 + tl.exp2(-z * LOG2_E))
            z_at += direction * z_token
        tl.store(out_ptr + out_at, y.to(out_ptr.dtype.element_ty), mask=mask)
        u_at += direction * u_token
        delta_at += direction * delta_token
        out_at += direction * channels
