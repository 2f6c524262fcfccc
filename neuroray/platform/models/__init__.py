"""The models: a config class by name, each with `build() -> nn.Module` and defaults of the paper's size."""

from neuroray.platform.models.brainmt import BrainMTConfig, MaskedBrainMTConfig
from neuroray.platform.models.brainrotvit import BrainRotViTConfig, SliceClassifierConfig
from neuroray.platform.models.dinoatten3d import DinoAtten3DConfig
from neuroray.platform.models.neuroar import NeuroARConfig, VQVAEConfig

MODELS: dict[
    str,
    type[BrainMTConfig]
    | type[MaskedBrainMTConfig]
    | type[BrainRotViTConfig]
    | type[SliceClassifierConfig]
    | type[DinoAtten3DConfig]
    | type[NeuroARConfig]
    | type[VQVAEConfig],
] = {
    "brainmt": BrainMTConfig,
    "brainmt_masked": MaskedBrainMTConfig,
    "brainrotvit": BrainRotViTConfig,
    "brainrotvit_classes": BrainRotViTConfig,
    "brainrotvit_encoder": SliceClassifierConfig,
    "dinoatten3d": DinoAtten3DConfig,
    "neuroar": NeuroARConfig,
    "neuroar_vqvae": VQVAEConfig,
}
