"""NeuroAR: the same brain at a later age, generated scale by scale (arXiv 2507.22954)."""

from neuroray.platform.models.neuroar.quantiser_config import QuantiserConfig
from neuroray.platform.models.neuroar.transformer_config import NeuroARConfig
from neuroray.platform.models.neuroar.vqvae_config import VQVAEConfig

__all__ = ["NeuroARConfig", "QuantiserConfig", "VQVAEConfig"]
