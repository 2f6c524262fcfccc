"""From a plan to the batches of one rank: on its device, with the rows of every rank counted."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import closing
from typing import Literal

from torch import Tensor

from neuroray.platform.data.collate import ITEM
from neuroray.platform.data.dataset import Feed, batch_stream
from neuroray.platform.data.plan import Plan, rank_slice
from neuroray.platform.data.readers import Reader
from neuroray.platform.train.parallel import Team
from neuroray.platform.train.step import RankBatch


def choose_feed(feed: Literal["auto", "ray", "direct"], team: Team) -> Feed:
    """`auto` reads by Ray Data on Ray's workers, and here everywhere else."""
    if feed != "auto":
        return feed
    ray = sys.modules.get("ray")  # not imported, not connected
    return "ray" if team.is_grouped and ray is not None and ray.is_initialized() else "direct"


def stream_batches(plan: Plan, reader: Reader, team: Team, *, feed: Feed, start_step: int = 0) -> Generator[RankBatch]:
    """This rank's batches from `start_step` to the end of the plan; closing it stops the reading ahead."""
    on_gpu = team.device.type == "cuda"
    stream = batch_stream(
        plan,
        reader,
        rank=team.rank,
        world_size=team.world_size,
        start_step=start_step,
        feed=feed,
        pin_memory=on_gpu,
        share=not on_gpu,
    )
    with closing(stream):  # pyright: ignore[reportArgumentType]: the stream is a generator
        for step, values in stream:
            epoch, indices = plan.batch(step)
            ranks = range(team.world_size)
            num_rows = tuple(len(rank_slice(indices, rank, team.world_size)) for rank in ranks)
            filled = values if num_rows[team.rank] else _stand_in(values)
            moved = {name: value.to(team.device, non_blocking=on_gpu) for name, value in filled.items()}
            yield RankBatch(step=step, epoch=epoch, values=moved, num_rows=num_rows)


def _stand_in(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """One row of ones for a rank that has none of a short batch; ones, so that a mask in it hides nothing.

    Its `item` is -1, which is none of the plan's.
    """
    ones = {name: value.new_ones((1, *value.shape[1:])) for name, value in values.items()}
    return {**ones, ITEM: -ones[ITEM]}
