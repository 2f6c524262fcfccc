"""What a recipe will take of a device: memory part by part, operations of a step, and what would make it fit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from neuroray.platform.models.brainmt import BrainMTConfig
from neuroray.platform.models.brainmt.cost import (
    StepFlops,
    attention_layer_parameters,
    count_parameters,
    count_step_flops,
    mamba_layer_parameters,
)
from neuroray.platform.models.brainmt.memory import StepSize, input_bytes, list_moments, validation_bytes
from neuroray.platform.train.devices import Device
from neuroray.platform.train.recipe import Recipe
from neuroray.platform.train.rehearsal import Grid, describe_module, rehearse
from neuroray.platform.train.task import RehearsableTask

_FLOAT = 4
_STORED = 2
"""Bytes of a stored voxel: runs are int16 mostly."""

USABLE = 0.92
"""Share of a device that tensors can fill before its allocator finds no piece large enough: assumed, not measured."""

PROCESS_BYTES = 600_000_000
"""Of a CUDA context, or of Python with torch on a CPU, where 450 MB were seen: assumed."""

_LAID_OUT = "maps laid out anew by convolutions"
_CHECKPOINTS = "--model.checkpoint (or no --model.no-checkpoint)"
"""Which of the two there is depends on the recipe: the command line has a flag for what is not its default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """What a rank is fed.

    Attributes:
        num_frames: Of a window.
        grid_shape: Of a frame, along x, y, z.
    """

    num_frames: int
    grid_shape: tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Per rank, in bytes.

    Attributes:
        device: What it is held against.
        num_ranks: Over which parameters are spread.
        num_windows: Of one rank in one step.
        windows: What they are, for a model of runs.
        row: What they are in words, for another model whose step is known.
        state: What stays from step to step: parameters, optimiser state, average of the weights, process.
        peaks: At each moment of a step, what is held by part, `state` included; largest first.
        flops: Operations of a step.
        fixes: Changes of the command line that would make it fit, each with its peak; empty where it fits.
    """

    device: Device
    num_ranks: int
    num_parameters: int
    num_windows: int
    windows: Windows | None
    row: str | None = None
    state: dict[str, int]
    peaks: dict[str, dict[str, int]]
    flops: StepFlops | None
    fixes: tuple[tuple[str, int], ...] = ()

    @property
    def peak_bytes(self) -> int | None:
        """The most that is held at once; None where activations are not known."""
        return max((sum(parts.values()) for parts in self.peaks.values()), default=None)

    @property
    def fits(self) -> bool | None:
        """Whether the device can hold it; None where either is not known."""
        if self.device.memory_bytes is None:
            return None
        held = self.peak_bytes if self.peak_bytes is not None else sum(self.state.values())
        if held > USABLE * self.device.memory_bytes:
            return False
        return True if self.peak_bytes is not None else None

    def to_json(self) -> dict[str, Any]:
        """All of it, with what follows from it."""
        found = dataclasses.asdict(self) | {"peak_bytes": self.peak_bytes, "fits": self.fits}
        if self.flops is not None:
            found["flops"] |= {"total": self.flops.total, "by_part": self.flops.by_part}
        return found | {"fixes": [{"options": options, "peak_bytes": peak} for options, peak in self.fixes]}


def forecast(
    recipe: Recipe,
    device: Device,
    *,
    windows: Windows | None = None,
    grid: Grid | None = None,
) -> Forecast:
    """Predicts by arithmetic, or by a rehearsal on tensors without memory; no data is read.

    Args:
        recipe: The run.
        device: Of each rank.
        windows: What is read; those of the recipe and of its model's grid when not given.
        grid: Of the volumes that a tokenizer reads; the recipe's or the paper's when not given.
    """
    found = _predict(recipe, device, windows or grid)
    if found.fits is not False or not found.peaks:
        return found
    return dataclasses.replace(found, fixes=_find_fixes(recipe, device, found.windows or grid))


def _predict(recipe: Recipe, device: Device, given: Windows | Grid | None) -> Forecast:
    windows = given if isinstance(given, Windows) else None
    if isinstance(recipe.task(), RehearsableTask):
        return _predict_by_rehearsal(recipe, device, None if isinstance(given, Windows) else given)
    config: Any = getattr(recipe, "model", None)
    workers = recipe.scaling.worker_range[0]
    num_ranks = max(1, workers)
    num_windows = math.ceil(recipe.loop.batch_size / num_ranks)
    is_known = recipe.model_name == "brainmt" and isinstance(config, BrainMTConfig)
    total = sum(count_parameters(config).values()) if is_known else _build_and_count(recipe)
    state = _count_state(recipe, total, num_ranks)
    described: dict[str, Any] = {
        "device": device,
        "num_ranks": num_ranks,
        "num_parameters": total,
        "num_windows": num_windows,
    }
    if not is_known:
        return Forecast(**described, windows=None, state=state, peaks={}, flops=None)
    windows = windows or Windows(
        num_frames=recipe.data.windows.num_frames or config.num_frames, grid_shape=config.grid_shape
    )
    peaks = _find_peaks(recipe, config, device, windows, num_windows, state)
    if workers:
        gathered = _count_gathered(config)
        peaks = {name: parts | {"parameters gathered from all ranks": gathered} for name, parts in peaks.items()}
    flops = count_step_flops(config, windows.num_frames, windows.grid_shape, num_windows=num_windows)
    ordered = dict(sorted(peaks.items(), key=lambda one: -sum(one[1].values())))
    return Forecast(**described, windows=windows, state=state, peaks=ordered, flops=flops)


def _predict_by_rehearsal(recipe: Recipe, device: Device, grid: Grid | None) -> Forecast:
    num_ranks, passes = max(1, recipe.scaling.worker_range[0]), recipe.optim.passes
    num_rows = math.ceil(recipe.loop.batch_size / num_ranks)
    module = describe_module(recipe, grid)
    state = _count_state(recipe, module.num_parameters, num_ranks)
    if recipe.scaling.worker_range[0]:
        # The root's with their gradients, and two units', one of them fetched ahead, with those of one.
        gathered = 2 * module.root + min(3 * module.largest_block, 2 * module.num_parameters)
        state |= {"parameters gathered from all ranks": _FLOAT * gathered}
    step = rehearse(recipe, math.ceil(num_rows / passes), grid=grid, training=True, on_gpu=device.is_gpu)
    gradients, activations = step.peak(num_ranks)
    share = state["parameters"]
    peaks = {
        "forward and backward": {
            **state,
            "gradients": share if passes > 1 else gradients,
            "activations": activations,
            _LAID_OUT: step.laid_out,
        },
        "update": {**state, "gradients": share, "working memory": share if device.is_gpu else 0},
    }
    if passes > 1:  # else training holds all that validation does, and what it keeps besides
        judged = rehearse(recipe, num_rows, grid=grid, training=False, on_gpu=device.is_gpu)
        peaks["validation"] = {**state, "activations": judged.peak(1)[1], _LAID_OUT: judged.laid_out}
    flops = {phase: {part: passes * count for part, count in parts.items()} for phase, parts in step.flops.items()}
    return Forecast(
        device=device,
        num_ranks=num_ranks,
        num_parameters=module.num_parameters,
        num_windows=num_rows,
        windows=None,
        row=module.row,
        state=state,
        peaks=dict(sorted(peaks.items(), key=lambda one: -sum(one[1].values()))),
        flops=StepFlops(**flops),
    )


def _count_state(recipe: Recipe, num_parameters: int, num_ranks: int) -> dict[str, int]:
    share = math.ceil(_FLOAT * num_parameters / num_ranks)
    average = {"average of the weights": share} if recipe.optim.average_decay is not None else {}
    # Adam and AdamW keep two moments of each.
    return {"parameters": share, "optimiser state": 2 * share, **average, "process": PROCESS_BYTES}


def _find_peaks(
    recipe: Recipe,
    config: BrainMTConfig,
    device: Device,
    windows: Windows,
    num_windows: int,
    state: dict[str, int],
) -> dict[str, dict[str, int]]:
    passes, num_ranks = recipe.optim.passes, max(1, recipe.scaling.worker_range[0])
    at_once = math.ceil(num_windows / passes)
    whole = StepSize(
        num_frames=windows.num_frames,
        grid_shape=windows.grid_shape,
        num_windows=num_windows,
        bf16=recipe.loop.precision == "bf16",
        on_gpu=device.is_gpu,
    )
    size = dataclasses.replace(whole, num_windows=at_once)
    total = sum(count_parameters(config).values())
    stored = {"stored windows": input_bytes(whole) * _STORED // _FLOAT}
    scores = {"standardised windows": input_bytes(size)}
    peaks = {
        moment.name: {
            **state,
            "gradients": math.ceil(_FLOAT * (total if passes > 1 else moment.num_gradients) / num_ranks),
            **stored,
            **scores,
            "kept for the backward pass": moment.kept,
            "working memory": moment.working,
        }
        for moment in list_moments(config, size)
    }
    share = state["parameters"]
    validating = {"standardised windows": input_bytes(whole), "working memory": validation_bytes(config, whole)}
    return peaks | {
        "validation": {**state, **stored, **validating},
        # On a GPU the optimiser takes all parameters in one go, with a copy of them as its own.
        "update": {**state, **stored, "gradients": share, "working memory": share if device.is_gpu else 0},
    }


def _count_gathered(config: BrainMTConfig) -> int:
    """Whole parameters beside the shards: the root's with their gradients, and two layers', one fetched ahead."""
    counts = count_parameters(config)
    root = sum(number for part, number in counts.items() if part not in ("mamba", "attention"))
    layer = max(
        mamba_layer_parameters(config) if config.mamba_depth else 0,
        attention_layer_parameters(config) if config.attention_depth else 0,
    )
    return _FLOAT * (2 * root + 3 * layer)


def _build_and_count(recipe: Recipe) -> int:
    return sum(one.numel() for one in recipe.task().build().parameters() if one.requires_grad)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    """One change of the command line.

    Attributes:
        options: As a person gives it.
        apply: What it does to a recipe.
        num_frames: Of the windows afterwards; None: as many as before.
        joins: Whether it is tried together with others; what spares no more than another one does is not.
    """

    options: str
    apply: Callable[[Any], Any]
    num_frames: int | None = None
    joins: bool = True

    @property
    def kind(self) -> str:
        """What it is about."""
        return self.options.split()[0]


def _find_fixes(recipe: Recipe, device: Device, windows: Windows | Grid | None) -> tuple[tuple[str, int], ...]:
    """The smallest change of each kind that suffices alone; where none does, the first that do together.

    In the order of what they cost: time first, then what a step is.
    """
    alone: dict[str, tuple[str, int]] = {}
    changes = _list_changes(recipe, windows)
    for change in changes:
        found = None if change.kind in alone else _try(recipe, device, windows, [change])
        if found is not None:
            alone[change.kind] = found
    if alone:
        return tuple(alone.values())
    strongest = list({change.kind: change for change in changes if change.joins}.values())
    for number in range(2, len(strongest) + 1):
        together = _try(recipe, device, windows, strongest[:number])
        if together is not None:
            return (together,)
    return ()


def _list_changes(recipe: Any, windows: Windows | Grid | None) -> list[_Change]:
    """Of each kind from the smallest to the largest."""
    loop, model, most = recipe.loop, recipe.model, recipe.scaling.worker_range[1]
    found: list[_Change] = []
    if not getattr(model, "checkpoint", True):
        found.append(_Change(options=_CHECKPOINTS, apply=_set("model", checkpoint=True)))
    if isinstance(windows, Windows):
        chunk = model.frames_at_once or windows.num_frames * loop.batch_size
        for count in sorted({chunk // 2, chunk // 4, chunk // 16, 1} - {0, chunk}, reverse=True):
            options = f"--model.frames-at-once {count}"
            found.append(_Change(options=options, apply=_set("model", frames_at_once=count)))
    for passes in range(recipe.optim.passes + 1, loop.batch_size + 1):
        found.append(_Change(options=f"--optim.passes {passes}", apply=_set("optim", passes=passes)))
    if loop.precision == "fp32":
        found.append(_Change(options="--loop.precision bf16", apply=_set("loop", precision="bf16")))
    for size in range(loop.batch_size - 1, max(0, most - 1), -1):
        options = f"--loop.batch-size {size}"
        found.append(_Change(options=options, apply=_set("loop", batch_size=size), joins=False))
    for workers in (2, 4, 8, 16):
        if most < workers <= loop.batch_size:
            apply = _set("scaling", num_workers=workers)
            found.append(_Change(options=f"--workers {workers}", apply=apply, joins=False))
    return [*found, *(_list_shorter(recipe, windows) if isinstance(windows, Windows) else [])]


def _list_shorter(recipe: Recipe, windows: Windows) -> list[_Change]:
    found: list[_Change] = []
    for share in (0.75, 0.5, 0.25, 0.1):
        frames = max(1, int(share * windows.num_frames))
        options = f"--data.windows.num-frames {frames}"
        if recipe.data.windows.num_frames is None:
            options += " --data.windows.sampler random"
        found.append(_Change(options=options, apply=lambda given: given, num_frames=frames))
    return found


def _set(part: str, **values: Any) -> Callable[[Any], Any]:
    def change(recipe: Any) -> Any:
        return dataclasses.replace(recipe, **{part: dataclasses.replace(getattr(recipe, part), **values)})

    return change


def _try(recipe: Any, device: Device, windows: Windows | Grid | None, changes: list[_Change]) -> tuple[str, int] | None:
    """All their options and the peak that is left; None: it does not fit."""
    for change in changes:
        recipe = change.apply(recipe)
        if isinstance(windows, Windows):
            windows = dataclasses.replace(windows, num_frames=change.num_frames or windows.num_frames)
    found = _predict(recipe, device, windows)
    if not found.fits or found.peak_bytes is None:
        return None
    return " ".join(change.options for change in changes), found.peak_bytes
