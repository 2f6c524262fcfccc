"""The memory that a rank would have: of the GPU that is there, of one that is named, or of this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from neuroray.platform.train.recipe import RecipeError, ScalingConfig

GPU_MEMORY_GB: dict[str, float] = {
    "b200": 180,
    "h200": 141,
    "h100": 80,
    "a100-80gb": 80,
    "a100-40gb": 40,
    "l40s": 48,
    "a10": 24,
    "v100-32gb": 32,
    "t4": 16,
}
"""As sold; taken as 10^9 bytes, which is a little less than such a card shows."""

_CGROUP = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What one rank computes on.

    Attributes:
        memory_bytes: Of it, for this rank alone; None: not known.
    """

    name: str
    is_gpu: bool
    memory_bytes: int | None


def choose_device(scaling: ScalingConfig, *, gpu: str | None = None, memory_gb: float | None = None) -> Device:
    """The device that a recipe would run on, or is to be held against.

    Args:
        scaling: Says whether a GPU is meant, and how many ranks share this machine's memory where none is.
        gpu: One of `GPU_MEMORY_GB`; None: what is here.
        memory_gb: 10^9 bytes of each rank, in place of what the device has.

    Raises:
        RecipeError: no such GPU is known, or a size that is none.
    """
    if memory_gb is not None and not memory_gb > 0:
        raise RecipeError("a device has memory", given=f"{memory_gb} GB", expected="more than 0")
    if gpu is not None and gpu.lower() not in GPU_MEMORY_GB:
        fix = "give its memory: --device-memory-gb"
        raise RecipeError("no such GPU is known", given=gpu, expected=f"one of {', '.join(GPU_MEMORY_GB)}", fix=fix)
    found = _name_device(scaling, gpu)
    if memory_gb is None:
        return found
    return Device(name=f"{found.name}, told {memory_gb:g} GB", is_gpu=found.is_gpu, memory_bytes=int(memory_gb * 1e9))


def _name_device(scaling: ScalingConfig, gpu: str | None) -> Device:
    if gpu is not None:
        return Device(name=gpu.lower(), is_gpu=True, memory_bytes=int(GPU_MEMORY_GB[gpu.lower()] * 1e9))
    if not scaling.use_gpu:
        ranks = max(1, scaling.worker_range[1])
        name = "this machine" if ranks == 1 else f"a share of this machine for each of {ranks} ranks"
        return Device(name=name, is_gpu=False, memory_bytes=_count_machine_bytes() // ranks)
    if not torch.cuda.is_available():
        return Device(name="a GPU that is not here", is_gpu=True, memory_bytes=None)
    return Device(name=torch.cuda.get_device_name(), is_gpu=True, memory_bytes=torch.cuda.mem_get_info()[1])


def _count_machine_bytes() -> int:
    """Of the machine, or of the container where that has a limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _CGROUP:
        if path.is_file() and path.read_text().strip().isdigit():
            return min(total, int(path.read_text()))
    return total
