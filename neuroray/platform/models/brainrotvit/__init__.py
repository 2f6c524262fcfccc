"""BrainRotViT: age from the map of a head's sagittal slices, by a residual CNN over a frozen ViT (arXiv 2511.15188)."""

from neuroray.platform.models.brainrotvit.classifier import SliceClassifierConfig
from neuroray.platform.models.brainrotvit.config import BrainRotViTConfig
from neuroray.platform.models.brainrotvit.model import BrainRotViT, BrainRotViTHead, BrainRotViTOutput, encode_sex

__all__ = [
    "BrainRotViT",
    "BrainRotViTConfig",
    "BrainRotViTHead",
    "BrainRotViTOutput",
    "SliceClassifierConfig",
    "encode_sex",
]
