"""Several ranks on this machine, connected by gloo, for what must be the same sharded and unsharded."""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_ranks(function: Callable[..., Any], *args: Any, world_size: int = 2) -> list[Any]:
    """Calls `function(*args)` on every rank, in fresh processes; returns what each gave back.

    The function must be importable by name: from the package, or from `tests/contracts`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        mp.spawn(_run_rank, (world_size, scratch, function, args), nprocs=world_size)
        return [pickle.loads(Path(scratch, f"rank-{rank}").read_bytes()) for rank in range(world_size)]


def _run_rank(rank: int, world_size: int, scratch: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{scratch}/meeting", rank=rank, world_size=world_size)
    try:
        Path(scratch, f"rank-{rank}").write_bytes(pickle.dumps(function(*args)))
    finally:
        dist.destroy_process_group()
