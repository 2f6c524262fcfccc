"""The models: a config class by name, each with `build() -> nn.Module` and defaults of the paper's size."""

from neuroray.platform.models.dinoatten3d import DinoAtten3DConfig

MODELS: dict[str, type[DinoAtten3DConfig]] = {
    "dinoatten3d": DinoAtten3DConfig,
}
