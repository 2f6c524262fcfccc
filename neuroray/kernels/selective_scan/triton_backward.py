"""The backward kernels of the selective scan in Triton: retrace each chunk, then walk it back.

With dy_t = dout_t silu(z_t) and the adjoint state g_t = C_t dy_t + a_{t+1} g_{t+1}, a_t = exp(dt_t A), the gradients
are sums over g_t, g_t h_{t-1} and dy_t h_t. `retrace` goes through a chunk as the forward pass does and leaves dz,
the adjoint that leaves the chunk and the state before every run of RUN tokens; `walk_back` recomputes the states of one
run at a time, keeping every fourth in scratch memory and four in registers.

Nothing is added atomically: what several programs contribute to lies side by side and is summed afterwards in a fixed
order, so that the same inputs give the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from neuroray.kernels.selective_scan.triton_forward import LOG2_E, load_step, locate

# ruff: noqa: N803, N806 - the formula's own letters, and Triton's constants in capitals
# Triton's compiler, not Python, runs these functions: constants it folds, and branches it drops, look like errors.
# pyright: reportPossiblyUnboundVariable=false, reportAssignmentType=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false

# Tokens of a run whose own values (not their states) are worked out together.
PART = tl.constexpr(8)
# By token and channel in scratch memory: step, step * u, dy; then the sums over states of g B and of g A a h.
VALUES = tl.constexpr(5)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit(do_not_specialize=["stride", "length", "num_chunks", "tokens"])
def retrace(
    u_ptr, delta_ptr, bias_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, dout_ptr, entering_ptr,
    y_ptr, dz_ptr, kept_ptr, leaving_ptr, sum_ptr, dD_ptr,
    u_batch, u_token, delta_batch, delta_token, z_batch, z_token, channels, tokens, span, stride,
    num_chunks, length, num_blocks, B_groups, B_blocks, C_groups, C_blocks,
    STATES: tl.constexpr, BLOCK: tl.constexpr, RUN: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr,
    B_FIXED: tl.constexpr, C_FIXED: tl.constexpr, GATED: tl.constexpr, KEEP_Y: tl.constexpr, ADD_Y: tl.constexpr,
):  # fmt: skip
    """Leaves dz (or, with KEEP_Y, the output before the gate), and what `walk_back` starts from."""
    place = locate(num_chunks, length, num_blocks, tokens, span, BLOCK, REVERSE)
    block, chunk, batch, column, channel, mask, token, count = place
    direction: tl.constexpr = -1 if REVERSE else 1
    state = tl.arange(0, STATES)
    tile = state[:, None] * stride + column.to(tl.int32)[None, :]
    slot = batch * num_chunks + chunk
    A = tl.load(A_ptr + tile)
    D = tl.load(D_ptr + column)
    bias = tl.load(bias_ptr + column)
    h = tl.load(entering_ptr + slot * STATES * stride + tile)
    u_at = u_ptr + batch * u_batch + token * u_token + channel
    delta_at = delta_ptr + batch * delta_batch + token * delta_token + channel
    z_at = z_ptr + batch * z_batch + token * z_token + channel
    row = batch * tokens + token
    at = row * channels + channel
    if B_FIXED:
        B = tl.load(B_ptr + tile)
    else:
        B_at = B_ptr + (row * B_groups + block // B_blocks) * STATES + state
    if C_FIXED:
        C = tl.load(C_ptr + tile)
    else:
        C_at = C_ptr + (row * C_groups + block // C_blocks) * STATES + state
    decay = tl.full([STATES, BLOCK], 1.0, tl.float32)
    leaving = tl.zeros([STATES, BLOCK], tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    dD = tl.zeros([BLOCK], tl.float32)
    kept_at = kept_ptr + slot * (length // RUN) * STATES * stride
    for first in range(0, count, RUN):
        tl.store(kept_at + tile, h)
        kept_at += STATES * stride
        for _ in range(0, tl.minimum(RUN, count - first)):
            u = tl.load(u_at, mask=mask, other=0.0).to(tl.float32)
            dy = tl.load(dout_ptr + at, mask=mask, other=0.0).to(tl.float32)
            step = load_step(delta_at, mask, bias, SOFTPLUS)
            if not B_FIXED:
                B = tl.load(B_at)[:, None]
                B_at += direction * B_groups * STATES
            if not C_FIXED:
                C = tl.load(C_at)[:, None]
                C_at += direction * C_groups * STATES
            a = tl.exp2(A * step[None, :])
            h = a * h + B * (step * u)[None, :]
            if GATED:
                y = tl.sum(C * h, 0) + D * u
                if ADD_Y:
                    y += tl.load(y_ptr + at, mask=mask, other=0.0)
                z = tl.load(z_at, mask=mask, other=0.0).to(tl.float32)
                z_at += direction * z_token
                sigmoid = 1.0 / (1.0 + tl.exp2(-z * LOG2_E))
                if KEEP_Y:
                    tl.store(y_ptr + at, y, mask=mask)
                else:
                    dz = dy * y * sigmoid * (1.0 + z * (1.0 - sigmoid))
                    tl.store(dz_ptr + at, dz.to(dz_ptr.dtype.element_ty), mask=mask)
                dy *= z * sigmoid
            decay *= a
            leaving += decay * (C * dy[None, :])
            total += step
            dD += dy * u
            u_at += direction * u_token
            delta_at += direction * delta_token
            at += direction * channels
    tl.store(leaving_ptr + slot * STATES * stride + tile, leaving)
    tl.store(sum_ptr + slot * stride + column, total)
    tl.store(dD_ptr + slot * stride + column, dD)


@triton.jit
def fill_run(scratch, u_at, delta_at, z_at, dout_at, bias, mask, SOFTPLUS: tl.constexpr, GATED: tl.constexpr,
             SIZE: tl.constexpr):  # fmt: skip
    """Writes step, step * u and dy of a run, once for all states; zeros where the mask is off."""
    step = load_step(delta_at, mask, bias[None, :], SOFTPLUS)
    step = tl.where(mask, step, 0.0)
    dy = tl.load(dout_at, mask=mask, other=0.0).to(tl.float32)
    if GATED:
        z = tl.load(z_at, mask=mask, other=0.0).to(tl.float32)
        dy *= z / (1.0 + tl.exp2(-z * LOG2_E))
    tl.store(scratch, step)
    tl.store(scratch + SIZE, step * tl.load(u_at, mask=mask, other=0.0).to(tl.float32))
    tl.store(scratch + 2 * SIZE, dy)


@triton.jit
def empty_run(
    scratch, dbias, u_at, du_at, ddelta_at, D, mask,
    SOFTPLUS: tl.constexpr, ADD_DU: tl.constexpr, ADD_DDELTA: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Stores du and ddelta of a run from the sums that `step_adjoint` left; gives ddelta_bias with this run's part."""
    step = tl.load(scratch)
    u = tl.load(u_at, mask=mask, other=0.0).to(tl.float32)
    into = tl.load(scratch + 3 * SIZE)
    ddelta = u * into + LN_2 * tl.load(scratch + 4 * SIZE)
    if SOFTPLUS:
        # The sigmoid, from its softplus; by a series where the subtraction would cancel.
        series = 1 / 2 - step * (1 / 6 - step * (1 / 24 - step * (1 / 120)))
        ddelta *= tl.where(step < 0.1, step * (1.0 - step * series), 1.0 - tl.exp2(-step * LOG2_E))
    ddelta = tl.where(mask, ddelta, 0.0)
    dbias += tl.sum(ddelta, 0)
    du = step * into + D[None, :] * tl.load(scratch + 2 * SIZE)
    if ADD_DU:
        du += tl.load(du_at, mask=mask, other=0.0).to(tl.float32)
    if ADD_DDELTA:
        ddelta += tl.load(ddelta_at, mask=mask, other=0.0).to(tl.float32)
    tl.store(du_at, du.to(du_at.dtype.element_ty), mask=mask)
    tl.store(ddelta_at, ddelta.to(ddelta_at.dtype.element_ty), mask=mask)
    return dbias


@triton.jit
def step_state(h, scratch, B_at, A, B, B_FIXED: tl.constexpr, STATES: tl.constexpr, SIZE: tl.constexpr):
    """The state one token on."""
    wide = scratch[None, :] + tl.zeros([STATES, 1], tl.int32)
    step = tl.load(wide)
    entering = tl.load(wide + SIZE)
    if not B_FIXED:
        B = tl.load(B_at)[:, None]
    return tl.exp2(A * step) * h + B * entering


@triton.jit
def step_adjoint(
    sums, before, after, scratch, index, count, places, rows, A, B, C,
    B_FIXED: tl.constexpr, C_FIXED: tl.constexpr, STATES: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """One token back: leaves the sums over states, stores or adds up those over channels, gives what goes further."""
    leaving, dA, dB, dC = sums
    B_at, C_at, dB_at, dC_at = places
    B_row, C_row, partial_row = rows
    present = tl.arange(0, STATES) * 0 + index < count
    # Beyond the last token the step is zero and changes nothing, whatever B and C are.
    index = tl.minimum(index, count - 1)
    wide = scratch[None, :] + tl.zeros([STATES, 1], tl.int32)
    step = tl.load(wide)
    entering = tl.load(wide + SIZE)
    dy = tl.load(wide + 2 * SIZE)
    if not B_FIXED:
        B = tl.load(B_at + index * B_row)[:, None]
    if not C_FIXED:
        C = tl.load(C_at + index * C_row)[:, None]
    adjoint = leaving + C * dy
    if C_FIXED:
        dC += after * dy
    else:
        tl.store(dC_at + index * partial_row, tl.sum(after * dy, 1), mask=present)
    if B_FIXED:
        dB += adjoint * entering
    else:
        tl.store(dB_at + index * partial_row, tl.sum(adjoint * entering, 1), mask=present)
    leaving = tl.exp2(A * step) * adjoint
    through_decay = leaving * before
    dA += through_decay * step
    pair = tl.join(tl.sum(adjoint * B, 0), tl.sum(A * through_decay, 0))
    tl.store(scratch[:, None] + (3 + tl.arange(0, 2))[None, :] * SIZE, pair)
    return leaving, dA, dB, dC


@triton.jit(do_not_specialize=["length", "num_chunks", "tokens"])
def walk_back(
    u_ptr, delta_ptr, bias_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, dout_ptr, kept_ptr, entering_ptr, scratch_ptr,
    du_ptr, ddelta_ptr, dA_ptr, dB_ptr, dC_ptr, dbias_ptr,
    u_batch, u_token, delta_batch, delta_token, z_batch, z_token, channels, tokens, span,
    num_chunks, length, num_blocks, B_groups, B_blocks, C_groups, C_blocks,
    STATES: tl.constexpr, BLOCK: tl.constexpr, RUN: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr,
    B_FIXED: tl.constexpr, C_FIXED: tl.constexpr, GATED: tl.constexpr, ADD_DU: tl.constexpr, ADD_DDELTA: tl.constexpr,
):  # fmt: skip
    """All gradients but dz and dD. `entering_ptr` holds the adjoint that enters each chunk from the one after it."""
    place = locate(num_chunks, length, num_blocks, tokens, span, BLOCK, REVERSE)
    block, chunk, batch, column, channel, mask, token, count = place
    direction: tl.constexpr = -1 if REVERSE else 1
    SIZE: tl.constexpr = RUN * BLOCK
    TILE: tl.constexpr = STATES * BLOCK
    state = tl.arange(0, STATES)
    lane = tl.arange(0, BLOCK)
    inside = tl.arange(0, PART)
    size = STATES * num_blocks * BLOCK
    tile = state[:, None] * (num_blocks * BLOCK) + column.to(tl.int32)[None, :]
    slot = batch * num_chunks + chunk
    A = tl.load(A_ptr + tile)
    row = batch * tokens + token
    # Blocks lie outermost in the partial sums: torch adds them up.
    partial_row = (block * (tl.num_programs(0) // (num_blocks * num_chunks)) + batch) * tokens + token
    u_ptr += batch * u_batch + token * u_token
    delta_ptr += batch * delta_batch + token * delta_token
    z_ptr += batch * z_batch + token * z_token
    at = row * channels
    channel = channel.to(tl.int32)[None, :]
    dB = tl.zeros([STATES, BLOCK], tl.float32)
    dC = tl.zeros([STATES, BLOCK], tl.float32)
    B = dB
    C = dC
    if B_FIXED:
        B = tl.load(B_ptr + tile)
    if C_FIXED:
        C = tl.load(C_ptr + tile)
    B_at = B_ptr + (row * B_groups + block // B_blocks) * STATES + state
    C_at = C_ptr + (row * C_groups + block // C_blocks) * STATES + state
    B_row = direction * B_groups * STATES
    C_row = direction * C_groups * STATES
    places = (B_at, C_at, dB_ptr + partial_row * STATES + state, dC_ptr + partial_row * STATES + state)
    rows = (B_row, C_row, direction * STATES)
    kept_ptr += slot * (length // RUN) * size
    # Of this program: the states before every fourth token of a run, then VALUES numbers by token and channel.
    states_at = scratch_ptr + tl.program_id(0).to(tl.int64) * (RUN // 4 * TILE + VALUES * SIZE)
    values_at = states_at + RUN // 4 * TILE
    states_at += state[:, None] * BLOCK + lane[None, :]
    values_tile = values_at + inside[:, None] * BLOCK + lane[None, :]
    values_at += lane
    leaving = tl.load(entering_ptr + slot * size + tile)
    dA = tl.zeros([STATES, BLOCK], tl.float32)
    dbias = tl.zeros([BLOCK], tl.float32)
    runs = tl.cdiv(count, RUN)
    for back in range(0, runs):
        run = runs - 1 - back
        first = run * RUN
        for part in range(0, RUN, PART):
            here = (first + part + inside)[:, None]
            valid = (here < count) & mask[None, :]
            far = here * direction
            fill_run(values_tile + part * BLOCK, u_ptr + (far * u_token + channel),
                     delta_ptr + (far * delta_token + channel), z_ptr + (far * z_token + channel),
                     dout_ptr + at + (far * channels + channel), tl.load(bias_ptr + column), valid,
                     SOFTPLUS, GATED, SIZE)  # fmt: skip
        h = tl.load(kept_ptr + run.to(tl.int64) * size + tile)
        last = (tl.minimum(RUN, count - first) - 1) // 4
        tl.debug_barrier()
        for four in range(0, last):
            tl.store(states_at + four * TILE, h)
            for k in tl.static_range(4):
                index = four * 4 + k
                h = step_state(
                    h, values_at + index * BLOCK, B_at + (first + index) * B_row, A, B, B_FIXED, STATES, SIZE
                )
        tl.store(states_at + last * TILE, h)
        tl.debug_barrier()
        for back_four in range(0, last + 1):
            four = last - back_four
            token_0 = first + four * 4
            token_1 = tl.minimum(token_0 + 1, count - 1)
            token_2 = tl.minimum(token_0 + 2, count - 1)
            token_3 = tl.minimum(token_0 + 3, count - 1)
            value = values_at + four * (4 * BLOCK)
            h0 = tl.load(states_at + four * TILE)
            h1 = step_state(h0, value, B_at + token_0 * B_row, A, B, B_FIXED, STATES, SIZE)
            h2 = step_state(h1, value + BLOCK, B_at + token_1 * B_row, A, B, B_FIXED, STATES, SIZE)
            h3 = step_state(h2, value + 2 * BLOCK, B_at + token_2 * B_row, A, B, B_FIXED, STATES, SIZE)
            h4 = step_state(h3, value + 3 * BLOCK, B_at + token_3 * B_row, A, B, B_FIXED, STATES, SIZE)
            sums = (leaving, dA, dB, dC)
            sums = step_adjoint(sums, h3, h4, value + 3 * BLOCK, token_0 + 3, count, places, rows, A, B, C,
                                B_FIXED, C_FIXED, STATES, SIZE)  # fmt: skip
            sums = step_adjoint(sums, h2, h3, value + 2 * BLOCK, token_0 + 2, count, places, rows, A, B, C,
                                B_FIXED, C_FIXED, STATES, SIZE)  # fmt: skip
            sums = step_adjoint(sums, h1, h2, value + BLOCK, token_0 + 1, count, places, rows, A, B, C,
                                B_FIXED, C_FIXED, STATES, SIZE)  # fmt: skip
            sums = step_adjoint(sums, h0, h1, value, token_0, count, places, rows, A, B, C,
                                B_FIXED, C_FIXED, STATES, SIZE)  # fmt: skip
            leaving, dA, dB, dC = sums
        tl.debug_barrier()
        for part in range(0, RUN, PART):
            here = (first + part + inside)[:, None]
            valid = (here < count) & mask[None, :]
            far = here * direction
            dbias = empty_run(values_tile + part * BLOCK, dbias, u_ptr + (far * u_token + channel),
                              du_ptr + at + (far * channels + channel), ddelta_ptr + at + (far * channels + channel),
                              tl.load(D_ptr + column), valid, SOFTPLUS, ADD_DU, ADD_DDELTA, SIZE)  # fmt: skip
        tl.debug_barrier()
    tl.store(dA_ptr + slot * size + tile, dA)
    tl.store(dbias_ptr + slot * (num_blocks * BLOCK) + column, dbias)
    if B_FIXED:
        tl.store(dB_ptr + slot * size + tile, dB)
    if C_FIXED:
        tl.store(dC_ptr + slot * size + tile, dC)
