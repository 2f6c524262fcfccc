"""What a training step of BrainMT holds in memory, moment by moment, by arithmetic on the configuration.

Sizes follow the code of the layers: what autograd keeps of each, and what lies beside it where most is held. A change
to a layer changes them; the tests hold them against what torch allocates. Numbers are in bytes; `a` is the size of an
activation, 2 under autocast to bfloat16, else 4. Not counted: what a library takes for itself (cuDNN's workspace).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from neuroray.platform.models.brainmt.config import token_grid
from neuroray.platform.models.brainmt.cost import count_parameters, list_convolutions

if TYPE_CHECKING:
    from neuroray.platform.models.brainmt.config import BrainMTConfig

_FLOAT = 4
_TOKENS_BETWEEN_STATES = 64
"""The scan in C++ keeps a state before so many tokens."""
_PROGRAMS = 132 * 32
_COLUMNS = 32
"""Of the scan in Triton on an H100 or H200: programs that it makes, and channels of each."""
_RUN = 32
"""Tokens between the states that Triton's backward keeps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSize:
    """What a step works on.

    Attributes:
        num_frames: Of a window.
        grid_shape: Of a frame, along x, y, z.
        num_windows: Of one rank that pass through together.
        bf16: Whether autocast computes in bfloat16.
        on_gpu: Whether the Triton kernels run, or those in C++.
    """

    num_frames: int
    grid_shape: tuple[int, int, int]
    num_windows: int = 1
    bf16: bool = False
    on_gpu: bool = False

    @property
    def activation_bytes(self) -> int:
        """Of one number between layers."""
        return 2 if self.bf16 else _FLOAT

    def count_tokens(self) -> int:
        """Of all windows, CLS tokens included."""
        return self.num_windows * (1 + self.num_frames * math.prod(token_grid(self.grid_shape)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A moment of a step at which much is held.

    Attributes:
        name: What happens.
        kept: Held for the backward pass of other layers.
        working: Held for this alone: what is computed again, gradients on their way, copies.
        num_gradients: Parameters that have a gradient by now.
    """

    name: str
    kept: int
    working: int
    num_gradients: int

    @property
    def total(self) -> int:
        """Activations of the moment."""
        return self.kept + self.working


def input_bytes(size: StepSize) -> int:
    """Of the standardised windows, float32."""
    return _FLOAT * size.num_windows * size.num_frames * math.prod(size.grid_shape)


def list_moments(config: BrainMTConfig, size: StepSize) -> list[Moment]:
    """The moments of one forward and backward pass that may be the largest, in their order."""
    counts = count_parameters(config)
    late = counts["head"] + counts["shared"] + counts["attention"]
    stream, half = _stream_bytes(config, size), _activations(size, config.num_channels)
    frames_kept, mamba_kept, norm_kept, attention_kept = _kept(config, size)
    found = [Moment(name="positions added", kept=frames_kept, working=4 * stream + half, num_gradients=0)]
    if config.attention_depth:
        mixed = mamba_kept if config.checkpoint else mamba_kept + mamba_saved(config, size)
        kept = frames_kept + mixed + norm_kept + attention_kept
        working = attention_working(config, size)
        found.append(Moment(name="last attention layer", kept=kept, working=working, num_gradients=counts["head"]))
    if config.mamba_depth:
        kept, working = frames_kept + mamba_kept, mamba_working(config, size)
        found.append(Moment(name="last Mamba layer", kept=kept, working=working, num_gradients=late))
        first = frames_kept + (stream if config.checkpoint else 0)
        done = late + counts["mamba"]
        found.append(Moment(name="first Mamba layer", kept=first, working=working, num_gradients=done))
    # When the last chunk is worked on, the others have given gradients; a single one has not.
    done = sum(counts.values()) - (counts["frames"] if _count_chunk(config, size) == _count_frames(size) else 0)
    frames = conv_working(config, size) + half
    found.append(Moment(name="convolutions", kept=frames_kept, working=frames, num_gradients=done))
    return found


def validation_bytes(config: BrainMTConfig, size: StepSize) -> int:
    """The most that a forward pass without gradients holds: in a Mamba layer, or else in an attention layer."""
    stream, inner = _stream_bytes(config, size), config.inner_channels
    if config.mamba_depth:
        directions = 2 if config.bidirectional else 1
        # As in training, less the states; stream and output that go on; two directions are summed in float32.
        added = _FLOAT * size.count_tokens() * inner if size.bf16 and config.bidirectional else 0
        layer = mamba_saved(config, size) - directions * _kept_states(config, size) + 2 * stream + added
    else:
        layer = attention_saved(config, size) + 2 * stream if config.attention_depth else 4 * stream
    return max(layer, _count_chunk(config, size) * conv_saved(config, size) + _activations(size, config.num_channels))


def mamba_saved(config: BrainMTConfig, size: StepSize) -> int:
    """What one Mamba layer keeps for its backward pass, however it is computed."""
    a, tokens, inner = size.activation_bytes, size.count_tokens(), config.inner_channels
    directions = 2 if config.bidirectional else 1
    selected = config.delta_rank + 2 * config.state_size
    norm = _stream_bytes(config, size) * (1 if size.on_gpu else 2) + _activations(size, config.num_channels)
    # In and out of the mixer: x, gate and what was scanned; of each direction u and delta.
    by_token = a * tokens * (inner * (3 + 2 * directions) + selected * directions)
    return norm + by_token + directions * _kept_states(config, size)


def mamba_working(config: BrainMTConfig, size: StepSize) -> int:
    """While the scans of one layer are differentiated: what it keeps, less what it scanned, and their gradients."""
    a, tokens, inner, states = size.activation_bytes, size.count_tokens(), config.inner_channels, config.state_size
    directions = 2 if config.bidirectional else 1
    arriving = _stream_bytes(config, size) + _activations(size, config.num_channels)
    gradients = a * tokens * inner * (2 + 2 * directions)
    # B and C in float32, and their gradients.
    mixing = directions * 2 * _FLOAT * tokens * 2 * states
    saved = mamba_saved(config, size) - a * tokens * inner
    scratch = _scan_scratch(config, size) if size.on_gpu else 0
    return saved + arriving + gradients + mixing + scratch


def attention_saved(config: BrainMTConfig, size: StepSize) -> int:
    """What one attention layer keeps for its backward pass; scores are not among it."""
    channels, hidden = config.num_channels, int(config.mlp_ratio * config.num_channels)
    statistics = _FLOAT * size.count_tokens() * config.num_heads
    return _activations(size, 6 * channels + 2 * hidden) + _stream_bytes(config, size) + statistics


def attention_working(config: BrainMTConfig, size: StepSize) -> int:
    """While its MLP, or else its attention, is differentiated."""
    channels, hidden = config.num_channels, int(config.mlp_ratio * config.num_channels)
    stream = _stream_bytes(config, size)
    arriving = stream + _activations(size, channels * (2 if size.bf16 else 1))
    by_mlp = attention_saved(config, size) + _activations(size, hidden)
    # Gradients of query, key and value, then the same joined; flash attention on a GPU sums the query's in float32.
    by_attention = _activations(size, (5 + 1 + 6) * channels) + (stream if size.on_gpu else 0)
    return arriving + max(by_mlp, by_attention)


def conv_saved(config: BrainMTConfig, size: StepSize) -> int:
    """What the frame encoder keeps of one frame for its backward pass."""
    a, maps = size.activation_bytes, list_convolutions(config, size.grid_shape)
    cast = 2 * math.prod(size.grid_shape) if size.bf16 else 0
    if config.frame_encoder == "patch":
        return cast + _FLOAT * math.prod(16 * length for length in token_grid(size.grid_shape))
    stem, wide, narrow = maps[0].size, maps[1].size, maps[4].size
    # Of a unit: what enters both norms and the GELU, in float32, what enters the second convolution, and the sum.
    unit = 3 * _FLOAT + 2 * a
    return cast + a * stem + (a + unit) * (wide + narrow)


def conv_working(config: BrainMTConfig, size: StepSize) -> int:
    """While a chunk of frames is differentiated, at the deepest convolution or the widest.

    Libraries lay what enters a convolution, and its gradients, out anew: two more copies of the widest map, three of
    the largest weights.
    """
    chunk, a = _count_chunk(config, size), size.activation_bytes
    maps = list_convolutions(config, size.grid_shape)
    weights = 3 * a * max(one.taps * one.inputs * one.outputs for one in maps)
    at_last = conv_saved(config, size) + a * maps[-1].size
    if config.frame_encoder == "patch":
        return chunk * at_last + weights
    stem, wide = maps[0].size, maps[1].size
    at_unit = a * stem + 10 * a * wide
    at_stem = 4 * a * stem + a * wide
    # Without checkpoints all frames' own were counted as kept.
    again = 1 if config.checkpoint else 0
    return max(again * chunk * at_last + weights, chunk * at_unit, chunk * at_stem)


def _kept(config: BrainMTConfig, size: StepSize) -> tuple[int, int, int, int]:
    """Kept by the frame encoder, by the Mamba layers, by the norm after them, by the attention layers.

    Without checkpoints the layer that is worked on is left out: it counts what it keeps as its own.
    """
    stream, half = _stream_bytes(config, size), _activations(size, config.num_channels)
    norm = stream * (1 if size.on_gpu else 2)
    if not config.checkpoint:
        mamba = stream + max(0, config.mamba_depth - 1) * mamba_saved(config, size)
        attention = max(0, config.attention_depth - 1) * attention_saved(config, size)
        return _count_frames(size) * conv_saved(config, size), mamba, norm, attention
    # The second layer's residual stream is what entered the first.
    depth = config.mamba_depth
    mamba = stream + max(0, depth - 1) * half + max(0, depth - 2) * stream
    return 0, mamba, norm, config.attention_depth * stream


def _count_frames(size: StepSize) -> int:
    return size.num_windows * size.num_frames


def _count_chunk(config: BrainMTConfig, size: StepSize) -> int:
    return min(config.frames_at_once or _count_frames(size), _count_frames(size))


def _kept_states(config: BrainMTConfig, size: StepSize) -> int:
    """States that one direction's forward pass leaves for its backward pass."""
    if size.on_gpu:
        chunks = max(1, _PROGRAMS * _COLUMNS // (size.num_windows * config.inner_channels)) * size.num_windows
    else:
        chunks = -(-size.count_tokens() // _TOKENS_BETWEEN_STATES)
    return _FLOAT * chunks * config.state_size * config.inner_channels


def _scan_scratch(config: BrainMTConfig, size: StepSize) -> int:
    """Of the Triton scan's backward pass (`triton_impl.list_scratch`), of one direction: the other takes the same."""
    places = size.count_tokens() * config.inner_channels
    states = places // _RUN * config.state_size
    by_block = 2 * (places // _COLUMNS) * config.state_size
    return _FLOAT * (states + by_block + (places if config.bidirectional else 0))


def _stream_bytes(config: BrainMTConfig, size: StepSize) -> int:
    """The residual stream: all tokens in float32."""
    return _FLOAT * size.count_tokens() * config.num_channels


def _activations(size: StepSize, channels: int) -> int:
    return size.activation_bytes * size.count_tokens() * channels
