"""The Triton kernels of attention pooling: over tiles of rows, and no two programs add to one place.

Each volume is cut into tiles of rows. Volume v owns the slots from offsets[v] // tile + v on: enough for its tiles, and
known without looking at other volumes or waiting for the device. Slots without a tile do nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

# ruff: noqa: N803 - Triton's constants in capitals


@triton.jit
def _find_volume(offsets, slot, num_volumes, tile):
    """The last volume whose slots start at or before this one."""
    low = slot * 0
    high = low + num_volumes - 1
    while low < high:
        middle = (low + high + 1) // 2
        fits = tl.load(offsets + middle) // tile + middle <= slot
        low = tl.where(fits, middle, low)
        high = tl.where(fits, high, middle - 1)
    return low


@triton.jit
def _find_rows(offsets, slot, num_volumes, tile):
    """A slot's volume, its first row, the row after its last, its number within the volume, and the volume's tiles."""
    volume = _find_volume(offsets, slot, num_volumes, tile)
    begin = tl.load(offsets + volume)
    end = tl.load(offsets + volume + 1)
    turn = slot - begin // tile - volume
    first = begin + turn * tile
    return volume, first, tl.minimum(first + tile, end), turn, (end - begin + tile - 1) // tile


@triton.jit
def _take_tanh(x, STATE: tl.constexpr):
    tanh = 2 / (1 + tl.exp(-2 * x)) - 1
    if STATE == tl.float32:  # noqa: SIM300 - a constant of Triton's, on the side where it can be compared
        # Near 0 the subtraction loses digits; the series is exact to 6e-8 up to 0.2.
        square = x * x
        series = x * (1 + square * (-1 / 3 + square * (2 / 15 - square * (17 / 315))))
        tanh = tl.where(tl.abs(x) < 0.2, series, tanh)
    return tanh


@triton.jit
def _read_live(mask, rows, last, HAS_MASK: tl.constexpr):
    live = rows < last
    if HAS_MASK:
        live = live & (tl.load(mask + rows, mask=live, other=0) != 0)
    return live


@triton.jit
def _read_block(pointer, rows, columns, width, live, within, STATE: tl.constexpr):
    """A block of a matrix in the state's dtype, zeros outside: half precision is widened before any arithmetic."""
    seen = live[:, None] & within[None, :]
    return tl.load(pointer + rows[:, None] * width + columns[None, :], mask=seen, other=0).to(STATE)


@triton.jit
def _read_activations(projected, rows, units, hidden, live, GATED: tl.constexpr, STATE: tl.constexpr):
    """tanh of the half from V and sigmoid of the half from U (1 without a gate)."""
    within = units < hidden
    width = hidden
    if GATED:
        width = hidden * 2
    value = _take_tanh(_read_block(projected, rows, units, width, live, within, STATE), STATE)
    gate = value * 0 + 1
    if GATED:
        gate = 1 / (1 + tl.exp(-_read_block(projected, rows, units + hidden, width, live, within, STATE)))
    return value, gate


@triton.jit
def _read_mean(means, offsets, volume, head, num_heads, tile, STATE: tl.constexpr, BLOCK_TILES: tl.constexpr):
    """Sum of a volume's partial sums, in their order."""
    begin = tl.load(offsets + volume)
    count = (tl.load(offsets + volume + 1) - begin + tile - 1) // tile
    base = begin // tile + volume
    total = tl.zeros([BLOCK_TILES], STATE)
    for start in range(0, count, BLOCK_TILES):
        tiles = start + tl.arange(0, BLOCK_TILES)
        total += tl.load(means + (base + tiles) * num_heads + head, mask=tiles < count, other=0)
    return tl.sum(total)


@triton.jit(do_not_specialize=["num_volumes"])
def score_tiles(
    h,
    projected,
    w,
    bias_w,
    mask,
    offsets,
    scores,
    peaks,
    totals,
    sums,
    num_volumes,
    tile,
    hidden,
    channel,
    GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_MASK: tl.constexpr,
    STATE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
    BLOCK_CHANNEL: tl.constexpr,
):
    """Scores of a tile's rows; their maximum, and under it the sum of exponents and the rows' weighted sum."""
    slot = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    num_heads = tl.num_programs(1)
    channels = tl.program_id(2) * BLOCK_CHANNEL + tl.arange(0, BLOCK_CHANNEL)
    _, first, last, _, _ = _find_rows(offsets, slot, num_volumes, tile)
    # Programs of further channels score the same rows again, and leave the writing to the first.
    written = tl.where(tl.program_id(2) == 0, last, first)
    peak = tl.full((), float("-inf"), STATE)
    total = tl.full((), 0, STATE)
    gathered = tl.zeros([BLOCK_CHANNEL], STATE)
    for start in range(first, last, BLOCK_ROWS):
        rows = start + tl.arange(0, BLOCK_ROWS)
        live = _read_live(mask, rows, last, HAS_MASK)
        score = tl.zeros([BLOCK_ROWS], STATE)
        for unit in range(0, hidden, BLOCK_HIDDEN):
            units = unit + tl.arange(0, BLOCK_HIDDEN)
            value, gate = _read_activations(projected, rows, units, hidden, live, GATED, STATE)
            direction = tl.load(w + head * hidden + units, mask=units < hidden, other=0).to(STATE)
            score += tl.sum(value * gate * direction[None, :], 1)
        if HAS_BIAS:
            score += tl.load(bias_w + head).to(STATE)
        score = tl.where(live, score, float("-inf"))
        tl.store(scores + rows * num_heads + head, score, mask=rows < written)
        top = tl.maximum(peak, tl.max(score, 0))
        level = tl.where(top == float("-inf"), 0.0, top)
        share = tl.exp(score - level)
        fade = tl.exp(peak - level)
        total = total * fade + tl.sum(share, 0)
        values = _read_block(h, rows, channels, channel, live, channels < channel, STATE)
        gathered = gathered * fade + tl.sum(share[:, None] * values, 0)
        peak = top
    at = slot * num_heads + head
    tl.store(peaks + at, peak, mask=first < last)
    tl.store(totals + at, total, mask=first < last)
    tl.store(sums + at * channel + channels, gathered, mask=channels < tl.where(first < last, channel, 0))


@triton.jit(do_not_specialize=["num_volumes"])
def merge_tiles(
    offsets,
    scores,
    peaks,
    totals,
    sums,
    pooled,
    weights,
    log_sum_exp,
    num_volumes,
    tile,
    channel,
    STATE: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNEL: tl.constexpr,
):
    """A volume's log-sum-exp from its tiles; then each program writes its tile's weights and some of the channels."""
    slot = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    num_heads = tl.num_programs(1)
    volume, first, last, turn, count = _find_rows(offsets, slot, num_volumes, tile)
    base = (slot - turn) * num_heads + head
    peak = tl.full((), float("-inf"), STATE)
    for start in range(0, count, BLOCK_TILES):
        tiles = start + tl.arange(0, BLOCK_TILES)
        part = tl.load(peaks + base + tiles * num_heads, mask=tiles < count, other=float("-inf"))
        peak = tl.maximum(peak, tl.max(part, 0))
    level = tl.where(peak == float("-inf"), 0.0, peak)
    total = tl.full((), 0, STATE)
    for start in range(0, count, BLOCK_TILES):
        tiles = start + tl.arange(0, BLOCK_TILES)
        part = tl.load(peaks + base + tiles * num_heads, mask=tiles < count, other=float("-inf"))
        # A tile whose rows are all NaN has no maximum, but its total is NaN and stays so.
        total += tl.sum(
            tl.load(totals + base + tiles * num_heads, mask=tiles < count, other=0) * tl.exp(part - level), 0
        )
    # The fullest row contributes exp(0) = 1, so a total of zero can only mean that no row was seen.
    seen = total != 0
    exponent = tl.where(seen, tl.log(tl.where(seen, total, 1.0)) + level, float("-inf"))
    level = tl.where(seen, exponent, 0.0)
    out = volume * num_heads + head
    tl.store(log_sum_exp + out, exponent, mask=turn == 0)
    for start in range(first, last, BLOCK_ROWS):
        rows = start + tl.arange(0, BLOCK_ROWS)
        score = tl.load(scores + rows * num_heads + head, mask=rows < last, other=float("-inf"))
        weight = tl.where(score == float("-inf"), 0.0, tl.exp(score - level))
        tl.store(weights + rows * num_heads + head, weight, mask=rows < last)
    # A volume without rows still owns one slot, which writes its zeros.
    workers = tl.maximum(count, 1)
    stop = tl.where(turn < workers, channel, 0)
    for block in range(turn * BLOCK_CHANNEL, stop, workers * BLOCK_CHANNEL):
        channels = block + tl.arange(0, BLOCK_CHANNEL)
        merged = tl.zeros([BLOCK_CHANNEL], STATE)
        for start in range(0, count, BLOCK_TILES):
            tiles = start + tl.arange(0, BLOCK_TILES)
            part = tl.load(peaks + base + tiles * num_heads, mask=tiles < count, other=float("-inf"))
            share = tl.where(part == float("-inf"), 0.0, tl.exp(part - level))
            places = base + tiles * num_heads
            gathered = _read_block(sums, places, channels, channel, tiles < count, channels < channel, STATE)
            merged += tl.sum(share[:, None] * gathered, 0)
        # Where no tile has a maximum, only the level knows of a NaN.
        merged = tl.where(level == level, merged, level)
        tl.store(pooled + out * channel + channels, merged.to(pooled.dtype.element_ty), mask=channels < channel)


@triton.jit(do_not_specialize=["num_volumes"])
def differentiate_weights(
    h,
    mask,
    offsets,
    weights,
    d_weights,
    d_pooled,
    gains,
    means,
    d_h,
    num_volumes,
    tile,
    channel,
    num_heads,
    HAS_MASK: tl.constexpr,
    NEEDS_H: tl.constexpr,
    STATE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNEL: tl.constexpr,
):
    """Whole gradients of a tile's weights, their weighted sum, and the rows' gradient through the weighted sum."""
    slot = tl.program_id(0).to(tl.int64)
    volume, first, last, _, _ = _find_rows(offsets, slot, num_volumes, tile)
    for head in range(0, num_heads):
        mean = tl.full((), 0, STATE)
        for start in range(first, last, BLOCK_ROWS):
            rows = start + tl.arange(0, BLOCK_ROWS)
            live = _read_live(mask, rows, last, HAS_MASK)
            gain = tl.load(d_weights + rows * num_heads + head, mask=live, other=0).to(STATE)
            for block in range(0, channel, BLOCK_CHANNEL):
                channels = block + tl.arange(0, BLOCK_CHANNEL)
                within = channels < channel
                values = _read_block(h, rows, channels, channel, live, within, STATE)
                at = (volume * num_heads + head) * channel + channels
                gain += tl.sum(values * tl.load(d_pooled + at, mask=within, other=0).to(STATE)[None, :], 1)
            weight = tl.load(weights + rows * num_heads + head, mask=live, other=0)
            tl.store(gains + rows * num_heads + head, gain, mask=rows < last)
            mean += tl.sum(gain * weight, 0)
        tl.store(means + slot * num_heads + head, mean)
    if NEEDS_H:
        for start in range(first, last, BLOCK_ROWS):
            rows = start + tl.arange(0, BLOCK_ROWS)
            live = _read_live(mask, rows, last, HAS_MASK)
            for block in range(0, channel, BLOCK_CHANNEL):
                channels = block + tl.arange(0, BLOCK_CHANNEL)
                within = channels < channel
                through = tl.zeros([BLOCK_ROWS, BLOCK_CHANNEL], STATE)
                for head in range(0, num_heads):
                    at = (volume * num_heads + head) * channel + channels
                    weight = tl.load(weights + rows * num_heads + head, mask=live, other=0)
                    through += weight[:, None] * tl.load(d_pooled + at, mask=within, other=0).to(STATE)[None, :]
                through = tl.where(live[:, None], through, 0.0).to(d_h.dtype.element_ty)
                seen = (rows < last)[:, None] & within[None, :]
                tl.store(d_h + rows[:, None] * channel + channels[None, :], through, mask=seen)


@triton.jit(do_not_specialize=["num_volumes"])
def differentiate_scores(
    projected,
    w,
    mask,
    offsets,
    weights,
    gains,
    means,
    d_log_sum_exp,
    d_scores,
    d_projected,
    d_w,
    num_volumes,
    tile,
    hidden,
    num_heads,
    GATED: tl.constexpr,
    HAS_MASK: tl.constexpr,
    STATE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
):
    """Gradients of the scores and of the projections of up to `BLOCK_ROWS` rows, and their part of that of w.

    `tile` is the size of the tiles that `means` was added up over.
    """
    slot = tl.program_id(0).to(tl.int64)
    volume, first, last, _, _ = _find_rows(offsets, slot, num_volumes, BLOCK_ROWS)
    rows = first + tl.arange(0, BLOCK_ROWS)
    live = _read_live(mask, rows, last, HAS_MASK)
    for unit in range(0, hidden, BLOCK_HIDDEN):
        units = unit + tl.arange(0, BLOCK_HIDDEN)
        within = units < hidden
        value, gate = _read_activations(projected, rows, units, hidden, live, GATED, STATE)
        d_hidden = tl.zeros([BLOCK_ROWS, BLOCK_HIDDEN], STATE)
        for head in range(0, num_heads):
            at = rows * num_heads + head
            mean = _read_mean(means, offsets, volume, head, num_heads, tile, STATE, BLOCK_TILES)
            gain = tl.load(gains + at, mask=live, other=0) - mean
            gain += tl.load(d_log_sum_exp + volume * num_heads + head).to(STATE)
            d_score = tl.where(live, gain * tl.load(weights + at, mask=live, other=0), 0.0)
            direction = tl.load(w + head * hidden + units, mask=within, other=0).to(STATE)
            d_hidden += d_score[:, None] * direction[None, :]
            part = tl.sum(d_score[:, None] * value * gate, 0)
            tl.store(d_w + (slot * num_heads + head) * hidden + units, part, mask=within)
            tl.store(d_scores + at, d_score, mask=rows < tl.where(unit == 0, last, first))
        d_value = d_hidden * gate * (1 - value * value)
        width = hidden
        if GATED:
            width = hidden * 2
        at = rows[:, None] * width + units[None, :]
        seen = (rows < last)[:, None] & within[None, :]
        tl.store(d_projected + at, d_value.to(d_projected.dtype.element_ty), mask=seen)
        if GATED:
            d_gate = d_hidden * value * gate * (1 - gate)
            tl.store(d_projected + at + hidden, d_gate.to(d_projected.dtype.element_ty), mask=seen)
