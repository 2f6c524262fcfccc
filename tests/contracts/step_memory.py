"""The memory of one training step of BrainMT as it is: by torch's allocator, or by the process's highest mark."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from neuroray.platform.models.brainmt import BrainMT, BrainMTConfig
from neuroray.platform.models.brainmt.memory import StepSize


def run_step(model: BrainMT, voxels: torch.Tensor, *, bf16: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        outputs = model(voxels).outputs
    outputs.float().square().sum().backward()


def measure_allocated(config: BrainMTConfig, size: StepSize) -> int:
    """The most bytes of tensors, input and parameters left out, that torch held at once in a second step."""
    model = config.build().train()
    voxels = torch.randn(size.num_windows, size.num_frames, *size.grid_shape)
    run_step(model, voxels, bf16=size.bf16)
    model.zero_grad(set_to_none=True)
    return measure_highest(lambda: run_step(model, voxels, bf16=size.bf16))


def measure_highest(work: Callable[[], object]) -> int:
    """The most bytes of tensors that torch held at once, beyond those from before."""
    with torch.profiler.profile(profile_memory=True) as profiler:
        work()
    found = profiler.profiler
    assert found is not None
    assert found.kineto_results is not None
    events = [event for event in found.kineto_results.events() if event.name() == "[memory]"]
    held = highest = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest


def measure_resident(config: BrainMTConfig, size: StepSize) -> int:
    """The growth of a fresh process's resident set over a step, after a small one that loads what is loaded late.

    The process gives freed memory back at once: glibc's heap otherwise keeps pieces, and has been seen to hold twice as
    much as the tensors of a step.
    """
    given = json.dumps({"config": config.to_json(), "size": [size.num_frames, *size.grid_shape], "bf16": size.bf16})
    command = [sys.executable, __file__, given]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


def main(given: str) -> None:
    settings = json.loads(given)
    config = BrainMTConfig.from_json(settings["config"])
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = config.build().train()
    num_frames, *grid = settings["size"]
    run_step(model, torch.randn(1, 2, *grid), bf16=settings["bf16"])
    model.zero_grad(set_to_none=True)
    voxels = torch.randn(1, num_frames, *grid)
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _read_status("VmRSS")
    run_step(model, voxels, bf16=settings["bf16"])
    print(_read_status("VmHWM") - before)


def _read_status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))


if __name__ == "__main__":
    main(sys.argv[1])
