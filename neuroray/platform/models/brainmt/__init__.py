"""BrainMT: whole-brain frames through convolutions, two-way Mamba and space-time attention (arXiv 2506.22591)."""

from neuroray.platform.models.brainmt.config import BrainMTConfig
from neuroray.platform.models.brainmt.masked_windows import MaskedBrainMT, MaskedBrainMTConfig
from neuroray.platform.models.brainmt.model import BrainMT, BrainMTOutput

__all__ = ["BrainMT", "BrainMTConfig", "BrainMTOutput", "MaskedBrainMT", "MaskedBrainMTConfig"]
