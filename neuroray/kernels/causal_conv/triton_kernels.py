"""The causal convolution's kernels in Triton: a program takes some channels through a chunk of tokens.

Each number is read once: a thread keeps the last taps - 1 tokens of its channels, and backward their gradients before
SiLU as well, so nothing is exchanged between threads. `AT_ONCE` tokens are fetched before the first of them is used.
Both kernels know tokens in the order in which they are walked, from the last to the first with `REVERSE`.

`weight_ptr` points to the taps and then the bias, float32, a row of channels each.
"""

from __future__ import annotations

import triton
import triton.language as tl

# ruff: noqa: N803 - Triton's constants in capitals
# ruff: noqa: RUF005 - Triton's tuples know +, not unpacking
# Triton's compiler, not Python, runs these functions: constants it folds, and branches it drops, look like errors.
# pyright: reportPossiblyUnboundVariable=false, reportAssignmentType=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportCallIssue=false

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def locate(num_chunks, length, channels, tokens, BLOCK: tl.constexpr):
    """A program's place among all, batch entry, channels and which of them there are, first token, number of tokens."""
    program = tl.program_id(0).to(tl.int64)
    num_blocks = tl.cdiv(channels, BLOCK)
    channel = (program % num_blocks) * BLOCK + tl.arange(0, BLOCK)
    slot = program // num_blocks
    first = slot % num_chunks * length
    return slot, slot // num_chunks, channel, channel < channels, first, tl.minimum(length, tokens - first)


@triton.jit
def find_token(token, tokens, REVERSE: tl.constexpr):
    """Where a token lies in memory."""
    if REVERSE:
        token = tokens - 1 - token
    return token


@triton.jit
def restrict(mask, condition):
    """The mask where a scalar condition holds, else nothing; the interpreter's `&` of the two gives integers."""
    return (mask & condition) != 0


@triton.jit
def load_token(pointer, stride, token, tokens, mask, REVERSE: tl.constexpr):
    """One token in float32; zeros before the first and after the last."""
    at = pointer + find_token(token, tokens, REVERSE) * stride
    return tl.load(at, mask=restrict(mask, (token >= 0) & (token < tokens)), other=0.0).to(tl.float32)


@triton.jit
def load_weights(weight_ptr, channels, channel, mask, TAPS: tl.constexpr):
    """The taps and then the bias."""
    weights = ()
    for k in tl.static_range(TAPS + 1):
        weights = weights + (tl.load(weight_ptr + k * channels + channel, mask=mask, other=0.0),)
    return weights


@triton.jit
def load_history(pointer, stride, first, tokens, mask, TAPS: tl.constexpr, REVERSE: tl.constexpr):
    """The taps - 1 tokens before the first."""
    history = ()
    for k in tl.static_range(TAPS - 1):
        history = history + (load_token(pointer, stride, first - (TAPS - 1) + k, tokens, mask, REVERSE),)
    return history


@triton.jit
def weigh(window, weights, TAPS: tl.constexpr):
    """Bias and weighed tokens, oldest first."""
    total = weights[TAPS]
    for k in tl.static_range(TAPS):
        total += weights[k] * window[k]
    return total


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + tl.exp2(-x * LOG2_E))


@triton.jit(do_not_specialize=["tokens", "length", "num_chunks"])
def convolve(
    x_ptr, weight_ptr, out_ptr, x_batch, x_token, channels, tokens, length, num_chunks,
    TAPS: tl.constexpr, BLOCK: tl.constexpr, AT_ONCE: tl.constexpr, SILU: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """The output."""
    _, batch, channel, mask, first, count = locate(num_chunks, length, channels, tokens, BLOCK)
    weights = load_weights(weight_ptr, channels, channel, mask, TAPS)
    x_at = x_ptr + batch * x_batch + channel
    out_at = out_ptr + batch * tokens * channels + channel
    history = load_history(x_at, x_token, first, tokens, mask, TAPS, REVERSE)
    for start in range(0, count, AT_ONCE):
        fetched = ()
        for i in tl.static_range(AT_ONCE):
            fetched = fetched + (load_token(x_at, x_token, first + start + i, tokens, mask, REVERSE),)
        for i in tl.static_range(AT_ONCE):
            window = history + (fetched[i],)
            history = window[1:]
            total = weigh(window, weights, TAPS)
            if SILU:
                total *= sigmoid(total)
            at = out_at + find_token(first + start + i, tokens, REVERSE) * channels
            tl.store(at, total.to(out_ptr.dtype.element_ty), mask=restrict(mask, start + i < count))


@triton.jit(do_not_specialize=["tokens", "length", "num_chunks"])
def differentiate(
    x_ptr, weight_ptr, dout_ptr, dx_ptr, sum_ptr,
    x_batch, x_token, dout_batch, dout_token, channels, tokens, length, num_chunks,
    TAPS: tl.constexpr, BLOCK: tl.constexpr, AT_ONCE: tl.constexpr, SILU: tl.constexpr, REVERSE: tl.constexpr,
    NEEDS_X: tl.constexpr,
):  # fmt: skip
    """The gradient of x, and each chunk's part of those of taps and bias.

    With g, the gradient before SiLU, of one token, that of x is whole for the token taps - 1 before it; so the walk
    goes on for taps - 1 tokens beyond the chunk.
    """
    slot, batch, channel, mask, first, count = locate(num_chunks, length, channels, tokens, BLOCK)
    weights = load_weights(weight_ptr, channels, channel, mask, TAPS)
    x_at = x_ptr + batch * x_batch + channel
    dout_at = dout_ptr + batch * dout_batch + channel
    dx_at = dx_ptr + batch * tokens * channels + channel
    history = load_history(x_at, x_token, first, tokens, mask, TAPS, REVERSE)
    earlier = ()
    sums = ()
    for _k in tl.static_range(TAPS - 1):
        earlier = earlier + (tl.zeros([BLOCK], tl.float32),)
    for _k in tl.static_range(TAPS + 1):
        sums = sums + (tl.zeros([BLOCK], tl.float32),)
    for start in range(0, count + TAPS - 1, AT_ONCE):
        fetched = ()
        for i in tl.static_range(AT_ONCE):
            fetched = fetched + (load_token(x_at, x_token, first + start + i, tokens, mask, REVERSE),)
        douts = ()
        for i in tl.static_range(AT_ONCE):
            douts = douts + (load_token(dout_at, dout_token, first + start + i, tokens, mask, REVERSE),)
        for i in tl.static_range(AT_ONCE):
            window = history + (fetched[i],)
            history = window[1:]
            g = douts[i]
            if SILU:
                total = weigh(window, weights, TAPS)
                s = sigmoid(total)
                g *= s * (1.0 + total * (1.0 - s))
            # A NaN before the end must not come back from where there is no token: 0 * NaN is NaN.
            g = tl.where(first + start + i < tokens, g, 0.0)
            own = tl.where(start + i < count, g, 0.0)
            added = ()
            for k in tl.static_range(TAPS):
                added = added + (sums[k] + tl.where(start + i < count, own * window[k], 0.0),)
            sums = added + (sums[TAPS] + own,)
            reach = earlier + (g,)
            earlier = reach[1:]
            if NEEDS_X:
                dx = weights[0] * g
                for k in tl.static_range(TAPS - 1):
                    dx += weights[TAPS - 1 - k] * reach[k]
                written = start + i - (TAPS - 1)
                at = dx_at + find_token(first + written, tokens, REVERSE) * channels
                wanted = restrict(mask, (written >= 0) & (written < count))
                tl.store(at, dx.to(dx_ptr.dtype.element_ty), mask=wanted)
    for k in tl.static_range(TAPS + 1):
        tl.store(sum_ptr + (slot * (TAPS + 1) + k) * channels + channel, sums[k], mask=mask)
