"""The first stage: a transformer learns to tell decade of age and sex from single slices, and becomes the encoder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from torch import Tensor, nn

from neuroray.config import Config, ConfigError
from neuroray.platform.models.brainrotvit.config import BACKBONE
from neuroray.platform.models.errors import ModelError
from neuroray.platform.models.layers.dora import DoraLinear
from neuroray.platform.models.layers.encoder import SliceEncoderConfig
from neuroray.platform.models.layers.resampled_slices import ResampledStackConfig

if TYPE_CHECKING:
    from jaxtyping import Float

NUM_DECADES = 10
AGE_SEX_CLASSES = tuple(f"{10 * decade:03d}{sex}" for decade in range(NUM_DECADES) for sex in "FM")
"""Labels by index: decade of the age in years, three digits, and sex. Those of nobody never are a target."""

Tune = Literal["head", "dora", "full"]


def age_sex_class(age_years: float, sex: str) -> str:
    """The label of a person: 19.99 and M make `010M`; from 90 on all are of one decade.

    Raises:
        ModelError: an age below 0, or a sex that is neither M nor F.
    """
    if not age_years >= 0 or sex not in ("M", "F"):
        raise ModelError("no age and sex", given=f"{age_years}, {sex}", expected="0 or more years, M or F")
    decade = min(int(age_years // 10), NUM_DECADES - 1)
    return f"{10 * decade:03d}{sex}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceClassifierConfig(Config):
    """The first stage; the defaults are the authors'.

    Attributes:
        slices: Which slices a person is shown by: 32 stored ones over the box, grey values by volume.
        encoder: The transformer and where its weights begin; `readout` and `precision` are those of its later use.
        tune: What learns besides the classifier: nothing ("head"), low-rank updates of queries and values ("dora"),
            everything ("full").
        rank: Of the updates.
        alpha: They are scaled by `alpha / rank`.
        adapter_dropout: Of what goes into them.
    """

    slices: ResampledStackConfig = field(
        default_factory=lambda: ResampledStackConfig(num_slices=32, sampling="spread", normalisation="volume")
    )
    encoder: SliceEncoderConfig = field(
        default_factory=lambda: SliceEncoderConfig(backbone=BACKBONE, readout="mean", batch_size=16)
    )
    tune: Tune = "dora"
    rank: int = 8
    alpha: float = 16.0
    adapter_dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.alpha > 0 or not 0 <= self.adapter_dropout < 1:
            given = f"rank {self.rank}, alpha {self.alpha}, adapter_dropout {self.adapter_dropout}"
            raise ConfigError("these make no adapter", given=given)

    def build(self, *, load_weights: bool = True) -> SliceClassifier:
        """Backbone, adapters and classifier; what is new is drawn from torch's global generator.

        Raises:
            ModelError: an unknown backbone, one without fused attention, or weights that are missing or wrong.
        """
        return SliceClassifier(self, load_weights=load_weights)


class SliceClassifierOutput(NamedTuple):
    """What it says of each picture. A tuple, so that parallel wrappers find the tensors in it."""

    logits: Float[Tensor, "batch class"]


class SliceClassifier(nn.Module):
    """A timm transformer that learns, with a linear classifier on its class token."""

    def __init__(self, config: SliceClassifierConfig, *, load_weights: bool = True) -> None:
        super().__init__()
        self.config = config
        encoder = config.encoder.build(config.slices.image_size, load_weights=load_weights)
        self.mean, self.std = encoder.mean, encoder.std
        self.backbone = encoder.backbone
        if getattr(self.backbone, "cls_token", None) is None:
            raise ModelError(f"{config.encoder.backbone} has no class token to classify by")
        self.classifier = nn.Linear(int(self.backbone.num_features), len(AGE_SEX_CLASSES))
        self.backbone.requires_grad_(config.tune == "full")
        if config.tune == "dora":
            self._add_adapters()

    def forward(self, images: Float[Tensor, "batch 1 height width"]) -> SliceClassifierOutput:
        """Classifies grey pictures in 0..1."""
        mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        tokens = self.backbone.forward_features((images.expand(-1, 3, -1, -1) - mean) / std)
        return SliceClassifierOutput(self.classifier(tokens[:, 0]))

    def encoder_state(self) -> dict[str, Tensor]:
        """The backbone's weights under timm's names, adapters merged: what an encoder takes as its file."""
        state = self.backbone.state_dict()
        for index, block in enumerate(self.backbone.blocks):
            if isinstance(block.attn.qkv, DoraLinear):
                lead = f"blocks.{index}.attn.qkv."
                state = {name: value for name, value in state.items() if not name.startswith(lead)}
                state |= {lead + name: value for name, value in block.attn.qkv.merge().state_dict().items()}
        return {name: value.detach().contiguous() for name, value in state.items()}

    def _add_adapters(self) -> None:
        settings = {"rank": self.config.rank, "alpha": self.config.alpha, "dropout": self.config.adapter_dropout}
        for block in self.backbone.blocks:
            qkv = getattr(getattr(block, "attn", None), "qkv", None)
            if not isinstance(qkv, nn.Linear) or qkv.out_features % 3:
                name = self.config.encoder.backbone
                raise ModelError(f"{name} does not make queries, keys and values by one layer", fix='tune "full"')
            width = qkv.out_features // 3
            block.attn.qkv = DoraLinear(qkv, ((0, width), (2 * width, 3 * width)), **settings)
