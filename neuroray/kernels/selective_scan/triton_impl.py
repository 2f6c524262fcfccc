"""The selective scan by the Triton kernels: launches, gradients, and where it can run.

Triton itself is imported with the first scan, so that this module can be asked for its obstacle on any machine.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from neuroray.kernels.selective_scan.inputs import ScanInputs
from neuroray.kernels.selective_scan.triton_plan import (
    BLOCK,
    Operands,
    Plan,
    drop_padding,
    lay_columns,
    make_operands,
    make_plan,
    sum_blocks,
    take_channels,
)

if TYPE_CHECKING:
    from jaxtyping import Float

# Chunks that the carry fetches at a time.
CARRY_ROWS = 16
# Numbers by token and channel that `walk_back` keeps of a run, its VALUES.
SCRATCH_VALUES = 5
_SHAREABLE = ("u", "delta", "z")
_NUM_FIELDS = len(ScanInputs._fields)


def find_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the Triton kernels cannot run for a device and a state dtype; None: they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if dtype != torch.float32:
        return f"the Triton kernels keep the state in float32, not {str(dtype).removeprefix('torch.')}"
    if device.type != "cuda" and not _is_interpreted():
        return f"the inputs lie on {device.type}; the Triton kernels run on a CUDA device"
    return None


def scan(inputs: ScanInputs) -> tuple[Float[Tensor, "batch token channel"], Float[Tensor, "batch channel state"]]:
    """One direction: output and last state, differentiable in every input."""
    return _Scan.apply(*inputs)  # pyright: ignore[reportReturnType]


def both(ahead: ScanInputs, back: ScanInputs) -> Float[Tensor, "batch token channel"]:
    """Both directions, summed in float32 and gated once."""
    shared = {name: None for name in _SHAREABLE if getattr(back, name) is getattr(ahead, name)}
    output, _ = _Scan.apply(*ahead, *back._replace(**shared))  # pyright: ignore[reportGeneralTypeIssues]
    return output


def list_scratch(inputs: ScanInputs, plan: Plan, *, second: bool = False) -> dict[str, tuple[int, ...]]:
    """Shapes of all float32 memory that one direction's backward takes beside inputs, outputs and their gradients.

    In bfloat16 at 50,401 tokens, 1,024 channels and 16 states on 132 multiprocessors it comes to 0.48 GB, with the
    gradients of u, delta and z to 0.79 GB: inputs and output are 0.42 GB.

    Args:
        inputs: What is scanned.
        plan: How.
        second: Whether another direction was summed with this one.
    """
    slots = plan.batch * plan.num_chunks
    states = (plan.padded_states, plan.num_columns)
    by_token = (plan.num_blocks, plan.batch, plan.tokens, plan.padded_states)
    program = plan.run * BLOCK * SCRATCH_VALUES + plan.run // 4 * plan.padded_states * BLOCK
    shapes: dict[str, tuple[int, ...]] = {
        "kept": (slots * (plan.length // plan.run), *states),
        "leaving": (slots, *states),
        "sums": (slots, plan.num_columns),
        "scratch": (plan.num_programs, program),
        "dA": (slots, *states),
        "dB": (slots, *states) if inputs.B.ndim == 2 else by_token,
        "dC": (slots, *states) if inputs.C.ndim == 2 else by_token,
        "dD": (slots, plan.num_columns),
        "dbias": (slots, plan.num_columns),
    }
    if second:
        shapes["y"] = tuple(inputs.u.shape)
    return shapes


class _Scan(torch.autograd.Function):
    """One direction, or two of which the second has None for what it shares with the first."""

    @staticmethod
    def forward(ctx: Any, *fields: Any) -> tuple[Tensor, Tensor]:
        directions = _split(fields)
        plans = [make_plan(inputs) for inputs in directions]
        with _on_device(fields[0]):
            operands = [make_operands(inputs, plan) for inputs, plan in zip(directions, plans, strict=True)]
            summaries = _summarise(directions, plans, operands)
            out = last = None
            for inputs, plan, own, (entering, sums) in zip(directions, plans, operands, summaries, strict=True):
                last = _carry(own, plan, entering, sums, inputs.initial_state, reverse=False)
                out = _emit(inputs, plan, own, entering, added=out, is_last=inputs is directions[-1])
        entering = [states for states, _ in summaries]
        ctx.save_for_backward(*[field if isinstance(field, Tensor) else None for field in fields], *entering)
        ctx.options = [None if isinstance(field, Tensor) else field for field in fields]
        ctx.plans = plans
        assert out is not None
        assert last is not None
        return out, take_channels(last, plans[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride] - once_differentiable's own
        dout, dlast = grad_outputs
        num_fields = len(ctx.options)
        saved = ctx.saved_tensors
        fields = [option if tensor is None else tensor for tensor, option in zip(saved, ctx.options, strict=False)]
        directions = _split(fields)
        dout = dout.contiguous()
        with _on_device(dout):
            gradients = _run_backward(directions, ctx.plans, saved[num_fields:], dout, dlast)
        return tuple(
            None if gradient is None or field is None else gradient.to(field.dtype)
            for field, gradient in zip(fields, gradients, strict=True)
        )


def _split(fields: Sequence[Any]) -> list[ScanInputs]:
    """The directions, the second one completed with what it shares."""
    first = ScanInputs(*fields[:_NUM_FIELDS])
    if len(fields) == _NUM_FIELDS:
        return [first]
    second = ScanInputs(*fields[_NUM_FIELDS:])
    shared = {name: getattr(first, name) for name in _SHAREABLE if getattr(second, name) is None}
    return [first, second._replace(**shared)]


def _summarise(
    directions: list[ScanInputs], plans: list[Plan], operands: list[Operands]
) -> list[tuple[Tensor, Tensor]]:
    """For each direction the end state of every chunk, and the sum of its steps."""
    kernels = _load("triton_forward")

    made = []
    for plan, own in zip(plans, operands, strict=True):
        slots = plan.batch * plan.num_chunks
        made.append((own.A.new_empty(slots, *own.A.shape), own.A.new_empty(slots, plan.num_columns)))
    if len(directions) == 2 and plans[0] == plans[1] and _share_steps(*directions):
        (first, second), (ahead, back), plan = directions, operands, plans[0]
        kernels.summarise_both[(plan.num_programs,)](
            *(ahead.u, ahead.delta, ahead.bias, ahead.A, ahead.B, back.B, made[0][0], made[1][0], made[0][1]),
            *(made[1][1], *ahead.u.stride()[:2], *ahead.delta.stride()[:2]),
            *(plan.tokens, plan.span, plan.num_columns, plan.num_chunks, plan.length, plan.num_blocks),
            *(*_count_groups(first.B, plan), *_count_groups(second.B, plan)),
            **{name: value for name, value in _list_options(first, plan).items() if name != "REVERSE"},
            **_fix(B=first.B, BACK_B=second.B),
        )
        return made
    for inputs, plan, own, (entering, sums) in zip(directions, plans, operands, made, strict=True):
        kernels.summarise[(plan.num_programs,)](
            *(own.u, own.delta, own.bias, own.A, own.B, entering, sums),
            *(*own.u.stride()[:2], *own.delta.stride()[:2]),
            *(plan.tokens, plan.span, plan.num_columns, plan.num_chunks, plan.length, plan.num_blocks),
            *_count_groups(inputs.B, plan),
            **_list_options(inputs, plan),
            **_fix(B=inputs.B),
        )
    return made


def _share_steps(first: ScanInputs, second: ScanInputs) -> bool:
    """Whether both directions decay alike and read the same u."""
    return all(getattr(first, name) is getattr(second, name) for name in ("u", "delta", "A", "delta_bias"))


def _emit(
    inputs: ScanInputs, plan: Plan, operands: Operands, entering: Tensor, *, added: Tensor | None, is_last: bool
) -> Tensor:
    """The output, gated with what `added` holds; of a direction that another follows, in float32 and not gated."""
    kernels = _load("triton_forward")

    out = inputs.u.new_empty(inputs.u.shape, dtype=inputs.u.dtype if is_last else torch.float32)
    kernels.emit[(plan.num_programs,)](
        *(operands.u, operands.delta, operands.bias, operands.A, operands.B, operands.C, operands.D, operands.z),
        *(entering, out if added is None else added, out),
        *(*operands.u.stride()[:2], *operands.delta.stride()[:2], *operands.z.stride()[:2], plan.channels),
        *(plan.tokens, plan.span, plan.num_columns, plan.num_chunks, plan.length, plan.num_blocks),
        *(*_count_groups(inputs.B, plan), *_count_groups(inputs.C, plan)),
        **_list_options(inputs, plan),
        **_fix(B=inputs.B, C=inputs.C),
        GATED=is_last and inputs.z is not None,
        ADDED=added is not None,
    )
    return out


def _run_backward(
    directions: list[ScanInputs], plans: list[Plan], entering: Sequence[Tensor], dout: Tensor, dlast: Tensor
) -> list[Tensor | None]:
    """Gradients in the order of the fields; None for what the second direction shares."""
    first = directions[0]
    dz = None if first.z is None else torch.empty_like(first.z, memory_format=torch.contiguous_format)
    found: list[Tensor | None] = []
    targets: dict[str, Tensor] = {}
    memory: dict[str, Tensor] = {}
    for inputs, plan, states in zip(directions, plans, entering, strict=True):
        is_last = inputs is directions[-1]
        shared = {name: bool(found) and getattr(inputs, name) is getattr(first, name) for name in ("u", "delta")}
        for name, is_shared in shared.items():
            if not is_shared:
                targets[name] = torch.empty_like(getattr(inputs, name), memory_format=torch.contiguous_format)
        memory = {name: memory[name] for name in ("y",) if name in memory}
        for name, shape in list_scratch(inputs, plan, second=len(directions) == 2).items():
            if name not in memory:
                memory[name] = dout.new_empty(shape, dtype=torch.float32)
        operands = make_operands(inputs, plan)
        _retrace(inputs, plan, operands, states, dout, dz, memory, keep=not is_last, add=bool(found))
        dlast_here = dlast if len(directions) == 1 else None
        dinitial = _carry(operands, plan, memory["leaving"], memory["sums"], dlast_here, reverse=True)
        _walk_back(inputs, plan, operands, dout, memory, targets, shared)
        gradients = _collect(inputs, plan, memory, dinitial)
        gradients |= {name: None if shared[name] else targets[name] for name in targets}
        gradients["z"] = None if found else dz
        found.extend(gradients.get(name) for name in ScanInputs._fields)
    return found


def _carry(
    operands: Operands, plan: Plan, ends: Tensor, sums: Tensor, initial: Tensor | None, *, reverse: bool
) -> Float[Tensor, "batch state column"]:
    """Replaces the end of each chunk in `ends` by what enters it; gives what leaves the last one."""
    kernels = _load("triton_forward")

    shape = (plan.batch, *operands.A.shape)
    first = operands.A.new_zeros(shape) if initial is None else lay_columns(initial, plan)
    last = torch.empty_like(first)
    grid = (plan.batch * plan.padded_states * plan.num_blocks,)
    kernels.carry[grid](
        *(operands.A, ends, sums, first, last, plan.num_columns, plan.num_chunks),
        STATES=plan.padded_states,
        BLOCK=BLOCK,
        ROWS=CARRY_ROWS,
        REVERSE=reverse,
        num_warps=1,
        enable_fp_fusion=True,
    )
    return last


def _retrace(
    inputs: ScanInputs, plan: Plan, operands: Operands, entering: Tensor, dout: Tensor, dz: Tensor | None,
    memory: dict[str, Tensor], *, keep: bool, add: bool,
) -> None:  # fmt: skip
    kernels = _load("triton_backward")

    kernels.retrace[(plan.num_programs,)](
        *(operands.u, operands.delta, operands.bias, operands.A, operands.B, operands.C, operands.D, operands.z),
        *(dout, entering, memory.get("y", memory["sums"]), dout if dz is None else dz),
        *(memory["kept"], memory["leaving"], memory["sums"], memory["dD"]),
        *(*operands.u.stride()[:2], *operands.delta.stride()[:2], *operands.z.stride()[:2], plan.channels),
        *(plan.tokens, plan.span, plan.num_columns, plan.num_chunks, plan.length, plan.num_blocks),
        *(*_count_groups(inputs.B, plan), *_count_groups(inputs.C, plan)),
        **_list_options(inputs, plan),
        **_fix(B=inputs.B, C=inputs.C),
        RUN=plan.run,
        GATED=dz is not None,
        KEEP_Y=keep,
        ADD_Y=add,
    )


def _walk_back(
    inputs: ScanInputs, plan: Plan, operands: Operands, dout: Tensor, memory: dict[str, Tensor],
    targets: dict[str, Tensor], shared: dict[str, bool],
) -> None:  # fmt: skip
    kernels = _load("triton_backward")

    kernels.walk_back[(plan.num_programs,)](
        *(operands.u, operands.delta, operands.bias, operands.A, operands.B, operands.C, operands.D, operands.z),
        *(dout, memory["kept"], memory["leaving"], memory["scratch"], targets["u"], targets["delta"]),
        *(memory["dA"], memory["dB"], memory["dC"], memory["dbias"]),
        *(*operands.u.stride()[:2], *operands.delta.stride()[:2], *operands.z.stride()[:2], plan.channels),
        *(plan.tokens, plan.span, plan.num_chunks, plan.length, plan.num_blocks),
        *(*_count_groups(inputs.B, plan), *_count_groups(inputs.C, plan)),
        **_list_options(inputs, plan),
        **_fix(B=inputs.B, C=inputs.C),
        RUN=plan.run,
        GATED=inputs.z is not None,
        ADD_DU=shared["u"],
        ADD_DDELTA=shared["delta"],
    )


def _collect(inputs: ScanInputs, plan: Plan, memory: dict[str, Tensor], dinitial: Tensor) -> dict[str, Tensor | None]:
    """The gradients of parameters and of the initial state, summed over the programs in a fixed order."""
    projections = [
        take_channels(memory[f"d{name}"].sum(0), plan)
        if tensor.ndim == 2
        else sum_blocks(memory[f"d{name}"], tensor.shape[2], plan)
        for name, tensor in (("B", inputs.B), ("C", inputs.C))
    ]
    return {
        "A": take_channels(memory["dA"].sum(0), plan),
        "B": projections[0],
        "C": projections[1],
        "D": drop_padding(memory["dD"].sum(0), plan),
        "delta_bias": drop_padding(memory["dbias"].sum(0), plan),
        "initial_state": take_channels(dinitial, plan),
    }


def _load(module: str) -> Any:
    # With the first scan and not before: triton may be absent.
    return importlib.import_module(f"neuroray.kernels.selective_scan.{module}")


def _list_options(inputs: ScanInputs, plan: Plan) -> dict[str, Any]:
    """What every kernel over tokens is specialised on."""
    return {
        "STATES": plan.padded_states,
        "BLOCK": BLOCK,
        "SOFTPLUS": inputs.delta_softplus,
        "REVERSE": inputs.reverse,
        "num_warps": plan.num_warps,
        "enable_fp_fusion": True,
    }


def _count_groups(tensor: Tensor, plan: Plan) -> tuple[int, int]:
    """Groups of B or C, and blocks of columns in each."""
    groups = 1 if tensor.ndim == 2 else tensor.shape[2]
    return groups, plan.num_blocks // groups


def _fix(**tensors: Tensor) -> dict[str, bool]:
    return {f"{name}_FIXED": tensor.ndim == 2 for name, tensor in tensors.items()}


def _on_device(tensor: Tensor) -> AbstractContextManager[Any]:
    # Triton launches on the current device, whatever the tensors are on.
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _is_interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")
