"""DinoAtten3D: slices through a frozen 2D encoder, pooled by learned attention (arXiv 2509.12512)."""

from neuroray.platform.models.dinoatten3d.loss import DinoAtten3DLossConfig, dinoatten3d_loss
from neuroray.platform.models.dinoatten3d.model import (
    DinoAtten3D,
    DinoAtten3DConfig,
    DinoAtten3DHead,
    DinoAtten3DOutput,
)

__all__ = [
    "DinoAtten3D",
    "DinoAtten3DConfig",
    "DinoAtten3DHead",
    "DinoAtten3DLossConfig",
    "DinoAtten3DOutput",
    "dinoatten3d_loss",
]
