"""What `neuroray train --dry-run` says of memory and work: a forecast as text, and as part of a JSON answer."""

from __future__ import annotations

from typing import Any

from neuroray.platform.train.devices import choose_device
from neuroray.platform.train.forecast import USABLE, Forecast, Windows, forecast
from neuroray.platform.train.forecast_generation import GenerationForecast, forecast_generation
from neuroray.platform.train.loop import Run
from neuroray.platform.train.recipe import Recipe
from neuroray.platform.train.rehearsal import Grid
from neuroray.platform.train.tasks.neuroar import NeuroARRecipe

_HEAP = (
    "(glibc's heap can keep as much again; MALLOC_MMAP_THRESHOLD_=65536 in the environment makes it give memory back)"
)


def forecast_recipe(
    recipe: Recipe, run: Run | None, *, gpu: str | None = None, memory_gb: float | None = None
) -> dict[str, Any]:
    """The forecast as an answer: `text`, `forecast`, and an exit code of 1 where the recipe would not fit.

    Args:
        recipe: The run.
        run: The same on a store, whose grid and numbers of frames then count; None: those of the recipe.
        gpu: Name of a GPU to hold it against.
        memory_gb: Memory of a rank to hold it against.

    Raises:
        RecipeError: no such GPU.
    """
    device = choose_device(recipe.scaling, gpu=gpu, memory_gb=memory_gb)
    windows, grid = (None, None) if run is None else (_read_windows(recipe, run), _read_grid(run))
    found = forecast(recipe, device, windows=windows, grid=grid)
    answer = {"text": tell_forecast(found), "forecast": found.to_json(), "exit_code": int(found.fits is False)}
    if isinstance(recipe, NeuroARRecipe):
        generation = forecast_generation(recipe)
        answer["text"] += f"\n{_tell_generation(generation)}"
        answer["generation"] = generation.to_json()
    return answer


def tell_forecast(found: Forecast) -> str:
    """For a person."""
    lines = [_tell_input(found), "", *_tell_memory(found), *_tell_work(found), "", _tell_verdict(found)]
    if found.fits is False:
        told = [f"  {options:<40} peak {_gb(peak)}" for options, peak in found.fixes]
        lines += ["each of these would make it fit:" if len(told) > 1 else "this would make it fit:", *told]
        if not told:
            lines[-1] = "nothing tried would make it fit: another model, or another device"
    return "\n".join(lines)


def _read_windows(recipe: Recipe, run: Run) -> Windows | None:
    """The largest grid and, where scans are read whole, the longest run; None where the store has volumes."""
    grids = run.cohort.facts.get("grid_shapes")
    if not grids:
        return None
    x, y, z = (max(lengths) for lengths in zip(*grids, strict=True))
    frames = recipe.data.windows.num_frames or max(run.cohort.num_frames.values())
    return Windows(num_frames=frames, grid_shape=(x, y, z))


def _read_grid(run: Run) -> Grid | None:
    """Of the volumes on the store, for a tokenizer."""
    grid = run.cohort.facts.get("grid_shape")
    return None if grid is None else (grid[0], grid[1], grid[2])


def _tell_generation(found: GenerationForecast) -> str:
    grid = " x ".join(map(str, found.grid))
    moments = ", ".join(f"{name} {_gb(size)}" for name, size in found.working.items())
    return (
        f"generating one brain of {grid} in float32: peak {_gb(found.peak_bytes)}, of which {_gb(found.parameters)} "
        f"parameters; besides these {moments}"
    )


def _tell_input(found: Forecast) -> str:
    ranks = "one rank" if found.num_ranks == 1 else f"each of {found.num_ranks} ranks"
    if found.row is not None:
        return f"forecast for {ranks}: {found.num_parameters:,} parameters, {found.num_windows} {found.row} in a step"
    if found.windows is None:
        return f"forecast for {ranks}: {found.num_parameters:,} trained parameters; its activations are not modelled"
    grid = " x ".join(map(str, found.windows.grid_shape))
    frames = f"{found.num_windows} windows of {found.windows.num_frames} frames, {grid}, in a step"
    return f"forecast for {ranks}: {found.num_parameters:,} parameters, {frames}"


def _tell_memory(found: Forecast) -> list[str]:
    if not found.peaks:
        return [f"  {name:<40} {_gb(size)}" for name, size in found.state.items()]
    name, parts = next(iter(found.peaks.items()))
    others = ", ".join(f"{moment} {_gb(sum(held.values()))}" for moment, held in list(found.peaks.items())[1:])
    return [
        f"memory at its highest ({name}):",
        *(f"  {part:<40} {_gb(size)}" for part, size in parts.items()),
        f"  {'peak':<40} {_gb(sum(parts.values()))}",
        f"at other moments: {others}",
    ]


def _tell_work(found: Forecast) -> list[str]:
    if found.flops is None:
        return []
    passes = {"forward": found.flops.forward, "again": found.flops.again, "backward": found.flops.backward}
    lines = ["", f"operations of a step: {found.flops.total / 1e12:.4g} TFLOP"]
    for part, total in found.flops.by_part.items():
        each = ", ".join(f"{name} {counts[part] / 1e12:.3g}" for name, counts in passes.items())
        lines.append(f"  {part:<40} {total / 1e12:>8.3g}  {total / found.flops.total:>4.0%}  ({each})")
    return lines


def _tell_verdict(found: Forecast) -> str:
    memory, name = found.device.memory_bytes, found.device.name
    if memory is None:
        return f"held against nothing: {name}; name one (--gpu h200) or its memory (--device-memory-gb 80)"
    share = f"{_gb(memory)} of {name}, of which {USABLE:.0%} count as usable"
    if found.fits is None:
        return f"what is known would fit into {share}"
    verdict = f"fits into {share}" if found.fits else f"DOES NOT FIT into {share}"
    return verdict if found.device.is_gpu else f"{verdict}\n{_HEAP}"


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
