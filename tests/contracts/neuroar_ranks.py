"""What ranks of NeuroAR's tests do, importable by name."""

from __future__ import annotations

import torch
from torch import Tensor

from neuroray.platform.models.neuroar.quantiser import MultiScaleQuantiser
from neuroray.platform.models.neuroar.quantiser_config import QuantiserConfig
from neuroray.platform.train.loop import Run, train_worker
from neuroray.platform.train.parallel import join_team


def observe_share(latent: Tensor) -> dict[str, Tensor]:
    """The codebook's state after some steps, in which codes die and are revived, on this rank's rows of the batch."""
    team = join_team(use_gpu=False)
    torch.manual_seed(0)
    config = QuantiserConfig(num_codes=24, code_dim=5, num_scales=3, decay=0.6, revive_below=0.5)
    quantiser = MultiScaleQuantiser(config).train()
    rows = latent.tensor_split(team.world_size)[team.rank]
    for step in range(6):
        quantiser(rows * (1 + 0.3 * step))
    return {name: value.detach().clone() for name, value in quantiser.codebook.state_dict().items()}


def train_run(run: Run) -> None:
    """Trains it to the end, on all ranks together."""
    train_worker(run)
