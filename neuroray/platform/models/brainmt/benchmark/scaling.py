"""Peak memory and time of a step against the number of frames, each in a process of its own, and lines through them."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from neuroray.errors import NeurorayError
from neuroray.kernels.benchmark.machine import wait
from neuroray.platform.models.brainmt.benchmark.steps import run_step
from neuroray.platform.models.brainmt.config import BrainMTConfig
from neuroray.platform.models.brainmt.cost import count_step_flops
from neuroray.platform.models.brainmt.memory import StepSize, input_bytes, list_moments

_LIMIT_S = 1800


class ScalingError(NeurorayError, RuntimeError):
    """A process that measured came to no end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One number of frames.

    Attributes:
        peak_bytes: The most that a step added to model and input.
        predicted_bytes: The same by the memory model.
        largest: The moment at which that is held.
        seconds: Of each timed step.
        flops: Of a step, by arithmetic.
    """

    num_frames: int
    num_tokens: int
    peak_bytes: int
    predicted_bytes: int
    largest: str
    seconds: tuple[float, ...]
    flops: int

    @property
    def median_s(self) -> float:
        """Of the timed steps."""
        return float(np.median(self.seconds))


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A polynomial through points by least squares, constant first.

    Attributes:
        r2: Share of the spread that it explains.
        worst: Largest residual, as a share of what was measured there.
    """

    coefficients: tuple[float, ...]
    r2: float
    worst: float


def fit_polynomial(x: list[float], y: list[float], degree: int) -> Fit:
    """Through more points than coefficients, or the residuals say nothing."""
    if len(x) <= degree + 1:
        raise ScalingError("too few points for a line", given=len(x), expected=f"{degree + 2} or more")
    given = np.asarray(y)
    found = np.polynomial.Polynomial.fit(x, given, degree).convert()
    residuals = given - found(np.asarray(x))
    spread = ((given - given.mean()) ** 2).sum()
    return Fit(
        coefficients=tuple(map(float, found.coef)),
        r2=float(1 - (residuals**2).sum() / spread),
        worst=float((np.abs(residuals) / given).max()),
    )


def measure_point(config: BrainMTConfig, num_frames: int, *, device: str, bf16: bool, repeats: int) -> Point:
    """In a fresh process, so that no memory that an earlier step has left is counted or reused.

    Raises:
        ScalingError: the process failed, with its last words.
    """
    given = {"config": config.to_json(), "frames": num_frames, "device": device, "bf16": bf16, "repeats": repeats}
    command = [sys.executable, "-m", "neuroray.platform.models.brainmt.benchmark.scaling", json.dumps(given)]
    # Freed memory goes back at once: glibc's heap otherwise keeps pieces, up to as much again as the tensors take.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False, env=environment)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ScalingError(f"T={num_frames} could not be measured", given=last)
    found = json.loads(done.stdout.splitlines()[-1])
    size = StepSize(num_frames=num_frames, grid_shape=config.grid_shape, bf16=bf16, on_gpu=device == "cuda")
    totals = {one.name: one.total + 4 * one.num_gradients for one in list_moments(config, size)}
    largest = max(totals, key=lambda name: totals[name])
    return Point(
        num_frames=num_frames,
        num_tokens=config.num_tokens(num_frames),
        peak_bytes=found["peak_bytes"],
        predicted_bytes=totals[largest],
        largest=largest,
        seconds=tuple(found["seconds"]),
        flops=count_step_flops(config, num_frames).total,
    )


def main(given: str) -> None:
    """Measures one point and prints it; run by `measure_point`."""
    settings = json.loads(given)
    config, bf16 = BrainMTConfig.from_json(settings["config"]), settings["bf16"]
    device = torch.device(settings["device"])
    torch.manual_seed(0)
    model = config.build().to(device).train()
    # What is loaded with the first step belongs to no number of frames.
    run_step(model, torch.randn(1, 2, *config.grid_shape, device=device), bf16=bf16)
    voxels = torch.randn(1, settings["frames"], *config.grid_shape, device=device)
    before = _forget_peak(device)
    run_step(model, voxels, bf16=bf16)
    peak_bytes, seconds = _read_peak(device) - before, []
    for _ in range(settings["repeats"]):
        wait(device)
        start = time.perf_counter()
        run_step(model, voxels, bf16=bf16)
        wait(device)
        seconds.append(time.perf_counter() - start)
    assert input_bytes(StepSize(num_frames=settings["frames"], grid_shape=config.grid_shape)) == voxels.nbytes
    print(json.dumps({"peak_bytes": peak_bytes, "seconds": seconds}))


def _forget_peak(device: torch.device) -> int:
    """What is held now; the highest mark starts from here: of a GPU's tensors, or of the process."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _read_status("VmRSS")


def _read_peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _read_status("VmHWM")


def _read_status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))


if __name__ == "__main__":
    main(sys.argv[1])
