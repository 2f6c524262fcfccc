"""The machine: its name, versions, free memory, and what it can do at best."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch

COPIED_BYTES = 512 * 2**20


def name_machine(device: torch.device) -> str:
    """Model of the GPU, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return (found[1].strip() if found else platform.processor()) or platform.machine()


def name_file(device: torch.device) -> str:
    """`kernels-<machine>`, in lower case, for a file."""
    threads = f" {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return "kernels-" + re.sub(r"[^a-z0-9]+", "-", (name_machine(device) + threads).lower()).strip("-")


def describe_versions(device: torch.device) -> dict[str, str]:
    """Of all that decides the figures; packages that are absent are left out."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("triton", "mambapy", "mamba-ssm", "causal-conv1d", "transformers"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if device.type == "cuda":
        found |= {"cuda": str(torch.version.cuda), "driver": _ask("nvidia-smi", "--query-gpu=driver_version")}
    found["commit"] = _ask("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty")
    return found


def _ask(*command: str) -> str:
    options = ("--format=csv,noheader",) if command[0] == "nvidia-smi" else ()
    try:
        answer = subprocess.run([*command, *options], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return (answer.stdout.splitlines() or ["unknown"])[0].strip()


def count_free_bytes(device: torch.device) -> int:
    """Memory that nobody uses."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        found = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        found = None
    return int(found[1]) * 1024 if found else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def measure_copy_rate(device: torch.device) -> float:
    """Bytes read and written per second by a copy larger than every cache."""
    source = torch.ones(COPIED_BYTES // 4, device=device)
    target = torch.empty_like(source)
    seconds = measure_seconds(lambda: target.copy_(source), device)
    return 2 * COPIED_BYTES / seconds


def measure_seconds(run: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    """Shortest time of a call, after one to warm up: a bound is what the machine can do when nothing else runs."""
    found = []
    for _ in range(repeats + 1):
        wait(device)
        start = time.perf_counter()
        run()
        wait(device)
        found.append(time.perf_counter() - start)
    return min(found[1:])


def wait(device: torch.device) -> None:
    """Until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def read_gpu_clock_hz() -> float:
    """The highest clock of the multiprocessors; a GPU under load may run below it."""
    answer = re.match(r"(\d+) MHz", _ask("nvidia-smi", "--query-gpu=clocks.max.sm"))
    return float(answer[1]) * 1e6 if answer else float("nan")
