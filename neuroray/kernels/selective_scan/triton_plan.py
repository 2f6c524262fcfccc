"""How a scan is cut into programs, and its parameters as the Triton kernels take them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from neuroray.kernels.selective_scan.inputs import ScanInputs

if TYPE_CHECKING:
    from jaxtyping import Float

# Channels of a program: one per thread of a warp.
BLOCK = 32
# States that one warp keeps in registers; more take more warps.
STATES_OF_WARP = 16
# Tokens between the states that the backward pass keeps; a multiple of 4.
RUN = 32
# Programs to give each multiprocessor: of the 8 to 25 that are resident together, one wave and a half or more.
PROGRAMS_OF_PROCESSOR = 32
# Runs of a chunk at most.
MAX_RUNS = 64
LOG2_E = math.log2(math.e)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Sizes of one scan.

    Channels are cut into `num_spans` spans, within which all share their B and their C; each span is padded to whole
    blocks. The padded channels are called columns. States are padded to a power of two: with B and C zero there, they
    stay zero.

    Attributes:
        length: Tokens of a chunk, a multiple of `run`; the last chunk may be shorter.
        run: Tokens between the states that the backward pass keeps.
    """

    batch: int
    tokens: int
    channels: int
    num_states: int
    padded_states: int
    num_spans: int
    num_columns: int
    length: int
    run: int

    @property
    def span(self) -> int:
        """Channels of a span."""
        return self.channels // self.num_spans

    @property
    def num_blocks(self) -> int:
        """Blocks of columns."""
        return self.num_columns // BLOCK

    @property
    def num_chunks(self) -> int:
        """Chunks of the tokens."""
        return -(-self.tokens // self.length)

    @property
    def num_programs(self) -> int:
        """Of every kernel but the one that carries states from chunk to chunk."""
        return self.batch * self.num_chunks * self.num_blocks

    @property
    def num_warps(self) -> int:
        """Of each program: a thread holds at most `STATES_OF_WARP` states."""
        return max(1, self.padded_states // STATES_OF_WARP)


class Operands(NamedTuple):
    """One direction as the kernels take it: padded float32 parameters; u, delta and z with adjacent channels.

    B and C are `state column`, or `batch token group state` where they change by token.
    """

    u: Float[Tensor, "batch token channel"]
    delta: Float[Tensor, "batch token channel"]
    z: Float[Tensor, "batch token channel"]
    A: Float[Tensor, "state column"]
    B: Float[Tensor, ...]
    C: Float[Tensor, ...]
    D: Float[Tensor, " column"]
    bias: Float[Tensor, " column"]


def count_processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; of a CPU, where the interpreter runs one program after another, one."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def choose_length(tokens: int, programs_of_chunk: int, processors: int) -> int:
    """Tokens of a chunk, a multiple of `RUN`: as many chunks as keep the processors busy, and none very short.

    Args:
        tokens: Of the sequence.
        programs_of_chunk: Programs that share a chunk: batch times blocks of columns.
        processors: Of the device.
    """
    num_chunks = max(1, processors * PROGRAMS_OF_PROCESSOR // programs_of_chunk)
    runs = math.ceil(tokens / (num_chunks * RUN))
    # The most keeps offsets within a chunk far below 2^31; the least makes the carry worth its launch.
    return RUN * min(max(2, runs), MAX_RUNS)


def make_plan(inputs: ScanInputs) -> Plan:
    """The plan for one direction."""
    batch, tokens, channels = inputs.u.shape
    groups = [tensor.shape[2] for tensor in (inputs.B, inputs.C) if tensor.ndim == 4]
    num_spans = math.lcm(*groups)
    blocks = num_spans * -(-(channels // num_spans) // BLOCK)
    return Plan(
        batch=batch,
        tokens=tokens,
        channels=channels,
        num_states=inputs.A.shape[1],
        padded_states=1 << (inputs.A.shape[1] - 1).bit_length(),
        num_spans=num_spans,
        num_columns=blocks * BLOCK,
        length=choose_length(tokens, batch * blocks, count_processors(inputs.u.device)),
        run=RUN,
    )


def make_operands(inputs: ScanInputs, plan: Plan) -> Operands:
    """The operands of one direction; copies parameters, and u, delta and z only if their channels are not adjacent."""
    ones = inputs.A.new_zeros(plan.channels)
    u = _join_channels(inputs.u)
    return Operands(
        u=u,
        delta=_join_channels(inputs.delta),
        z=u if inputs.z is None else _join_channels(inputs.z),
        A=lay_columns(inputs.A, plan) * LOG2_E,
        B=_lay_projection(inputs.B, plan),
        C=_lay_projection(inputs.C, plan),
        D=pad_columns(ones if inputs.D is None else inputs.D, plan),
        bias=pad_columns(ones if inputs.delta_bias is None else inputs.delta_bias, plan),
    )


def lay_columns(tensor: Float[Tensor, "*batch channel state"], plan: Plan) -> Float[Tensor, "*batch state column"]:
    """Padded, float32, states before columns."""
    return pad_columns(_pad_states(tensor, plan).transpose(-1, -2), plan)


def take_channels(tensor: Float[Tensor, "*batch state column"], plan: Plan) -> Float[Tensor, "*batch channel state"]:
    """What `lay_columns` laid out, without the padding."""
    return drop_padding(tensor, plan)[..., : plan.num_states, :].transpose(-1, -2)


def pad_columns(tensor: Float[Tensor, "*batch channel"], plan: Plan) -> Float[Tensor, "*batch column"]:
    """Each span padded with zeros, float32 and contiguous."""
    spans = tensor.float().unflatten(-1, (plan.num_spans, plan.span))
    missing = plan.num_columns // plan.num_spans - plan.span
    return functional.pad(spans, (0, missing)).flatten(-2).contiguous()


def drop_padding(tensor: Float[Tensor, "*batch column"], plan: Plan) -> Float[Tensor, "*batch channel"]:
    """What `pad_columns` padded."""
    return tensor.unflatten(-1, (plan.num_spans, -1))[..., : plan.span].flatten(-2)


def sum_blocks(partial: Float[Tensor, "block batch token state"], groups: int, plan: Plan) -> Tensor:
    """The gradient of B or C by token, `batch token group state`, from what each block of columns adds to it."""
    by_group = partial.unflatten(0, (groups, -1)).sum(1)
    return by_group[..., : plan.num_states].permute(1, 2, 0, 3)


def _lay_projection(tensor: Tensor, plan: Plan) -> Tensor:
    if tensor.ndim == 2:
        return lay_columns(tensor, plan)
    return _pad_states(tensor, plan).contiguous()


def _pad_states(tensor: Tensor, plan: Plan) -> Tensor:
    return functional.pad(tensor.float(), (0, plan.padded_states - plan.num_states))


def _join_channels(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
