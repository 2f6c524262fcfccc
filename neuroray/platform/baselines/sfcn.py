"""A small fully convolutional network of volumes, after SFCN (Peng et al. 2021)."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from neuroray.platform.baselines.network_training import NetworkRecipe, Rows, Side, fit_network, num_outputs
from neuroray.platform.baselines.predictors import Task
from neuroray.platform.baselines.volume_predictors import PredictVolumes, VolumeFeatures, VolumeSample

_CHANNELS = (8, 16, 32, 32)  # a quarter to an eighth of the paper's 32, 64, 128, 256, 256
_TOP = 32
_SMALLEST = 2
_DROPOUT = 0.5
_RECIPE = NetworkRecipe(num_epochs=60, patience=15, batch_size=8, lr=3e-3, weight_decay=1e-3)


class SmallSFCN(nn.Module):
    """Blocks of convolution, batch norm, ReLU and pooling; a 1 x 1 x 1 block; the mean over space; dropout; one layer.

    Four blocks for the paper's five (a coarse grid has nothing left to pool), fewer channels, and one number in place
    of forty bins of age.
    """

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        pairs = zip((1, *_CHANNELS), _CHANNELS, strict=False)
        self.blocks = nn.ModuleList(self._block(before, after) for before, after in pairs)
        self.top = nn.Sequential(nn.Conv3d(_CHANNELS[-1], _TOP, 1), nn.BatchNorm3d(_TOP), nn.ReLU())
        self.drop = nn.Dropout(_DROPOUT)
        self.head = nn.Linear(_TOP, num_outputs)

    def forward(self, volumes: Float[Tensor, "row x y z"]) -> Float[Tensor, "row output"]:
        """Logits, or a standardised measure."""
        hidden = volumes[:, None]
        for block in self.blocks:
            hidden = block(hidden)
            # What is left of a small grid is not pooled away: batch norm needs more than one number of a batch of one.
            if min(hidden.shape[2:]) > _SMALLEST:
                hidden = functional.max_pool3d(hidden, 2, ceil_mode=True)
        hidden = self.top(hidden)
        return self.head(self.drop(hidden.mean(dim=(2, 3, 4))))

    @staticmethod
    def _block(before: int, after: int) -> nn.Module:
        return nn.Sequential(nn.Conv3d(before, after, 3, padding=1), nn.BatchNorm3d(after), nn.ReLU())


def fit_sfcn(train: VolumeSample, val: VolumeSample, task: Task) -> PredictVolumes:
    """Trains it on the training side, stopped by the validation side; volumes are scaled by the training side's."""
    shift, scale = train.features.volumes.mean(), train.features.volumes.std() or np.float32(1.0)

    def rows(features: VolumeFeatures) -> Rows:
        return lambda chosen: torch.from_numpy((features.volumes[chosen] - shift) / scale)

    with torch.random.fork_rng():
        torch.manual_seed(task.seed)
        module = SmallSFCN(num_outputs(task))
        learned, watched = (Side(values=sample.values, rows=rows(sample.features)) for sample in (train, val))
        predict = fit_network(module, learned, watched, task, _RECIPE)
    return lambda features: predict(rows(features), len(features.volumes))
