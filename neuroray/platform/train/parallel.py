"""The team of processes that trains one model: FSDP2 over their parameters, whole batches over their outputs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """The processes of a run, seen from one of them.

    Attributes:
        rank: This process's number; rank 0 leads: it alone writes logs and manifests.
        world_size: How many there are.
        device: Where this one computes.
        is_grouped: Whether torch.distributed connects them. In process, without Ray, it does not: nothing is sharded,
            and every exchange below is the identity.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    is_grouped: bool = False

    @property
    def is_lead(self) -> bool:
        """True on the one process that writes."""
        return self.rank == 0

    def broadcast[T](self, value: T) -> T:
        """The lead's value, on every rank; it must pickle."""
        if not self.is_grouped:
            return value
        box = [value if self.is_lead else None]
        dist.broadcast_object_list(box, src=0, device=self._exchange_device)
        return cast(T, box[0])

    def gather[T](self, value: T) -> list[T]:
        """Every rank's value, by rank, on every rank; it must pickle."""
        if not self.is_grouped:
            return [value]
        box: list[Any] = [None] * self.world_size
        dist.all_gather_object(box, value)
        return box

    @property
    def _exchange_device(self) -> torch.device | None:
        return self.device if self.device.type == "cuda" else None


def join_team(*, use_gpu: bool) -> Team:
    """The team that this process is in: the process group that Ray Train (or torchrun) set up, else itself alone."""
    is_grouped = dist.is_available() and dist.is_initialized()
    index = torch.cuda.current_device() if use_gpu else 0
    return Team(
        rank=dist.get_rank() if is_grouped else 0,
        world_size=dist.get_world_size() if is_grouped else 1,
        device=torch.device("cuda", index) if use_gpu else torch.device("cpu"),
        is_grouped=is_grouped,
    )


def shard(module: nn.Module, blocks: Sequence[nn.Module], team: Team) -> nn.Module:
    """Spreads the parameters over the team: each block is one unit, what is left goes with the root.

    The module must hold the same values on every rank (built from the same seed). The mesh is explicit because FSDP2
    would otherwise choose a GPU wherever it sees one, also under gloo.
    """
    module.to(team.device)
    if team.is_grouped:
        # Imported here: these cost a second or two that a run in process need not pay.
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(team.device.type, (team.world_size,))
        for block in blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(module, mesh=mesh)
    return module


def drop_gathered(module: nn.Module) -> None:
    """Lets go of whole parameters that a forward pass has left in place, before their shards are written to."""
    if dist.is_available() and dist.is_initialized():
        from torch.distributed.fsdp import FSDPModule

        for part in module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()


def gather_rows(rows: Shaped[Tensor, "row ..."], num_rows: Sequence[int], team: Team) -> Shaped[Tensor, "all_rows ..."]:
    """Every rank's rows under each other, in rank order, differentiable.

    With it every rank computes the loss of the whole batch. The gradient of rank r's own rows is scaled by the world
    size, because FSDP averages parameter gradients over ranks: (1/n) sum_r n dL/drows_r drows_r/dp = dL/dp, exactly
    the gradient of one process with the whole batch, also where ranks hold different numbers of rows and where the
    loss relates rows to each other (a contrastive one).

    Args:
        rows: This rank's rows.
        num_rows: How many rows each rank has; known to all from the plan, so that it costs no exchange.
        team: The ranks.
    """
    if not team.is_grouped:
        return rows
    return cast(Tensor, _GatherRows.apply(rows, tuple(num_rows), team))


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, num_rows: tuple[int, ...], team: Team) -> Tensor:
        ctx.start, ctx.stop = sum(num_rows[: team.rank]), sum(num_rows[: team.rank + 1])
        ctx.world_size = team.world_size
        # Collectives want equal shapes: pad to the longest, cut afterwards.
        padded = rows.new_zeros((max(num_rows), *rows.shape[1:]))
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in num_rows]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, num_rows, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0][ctx.start : ctx.stop] * ctx.world_size, None, None


def sum_over_ranks(counts: Shaped[Tensor, " ..."]) -> Shaped[Tensor, " ..."]:
    """The sum of what all ranks have, where there are several."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(counts)
    return counts


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draws inside come from `seed` alone, and leave the generator outside as it was."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
