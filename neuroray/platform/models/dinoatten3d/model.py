"""DinoAtten3D: a volume's slices through a frozen encoder, pooled by attention, embedded and classified."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from neuroray.config import Config, ConfigError, without_effect
from neuroray.kernels.attention_pool import attention_pool
from neuroray.platform.models.errors import ModelError
from neuroray.platform.models.layers.encoder import SliceEncoderConfig
from neuroray.platform.models.layers.slices import SliceFeatures, SliceStackConfig, stack_slices

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Shaped

TrainScope = Literal["all", "released"]
"""Which parameters learn: the whole head, or only the embedding layers, as in the authors' scripts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DinoAtten3DConfig(Config):
    """DinoAtten3D; the defaults are the paper's sizes (24,705 attention, 131,456 embedding, 258 classifier parameters).

    Attributes:
        slices: How a volume becomes pictures.
        encoder: The frozen 2D encoder.
        hidden: Width of the attention's hidden layer.
        gated: Gated attention (Ilse et al. 2018) in place of the released plain tanh form.
        embedding: Widths of the embedding layers, each followed by ReLU; the last is the embedding's.
        num_classes: K.
        standardise: Subtract each channel's mean and divide by its spread between training scans (`fit_scale`). The
            authors do not; random encoders, whose channels differ far more along a head than between people, need it.
        feature_dropout: Of slice vectors, before attention; the authors have none.
        embedding_dropout: After each embedding layer but the last; the authors have none.
        attention_impl: Implementation of the pooling, see `neuroray.kernels.attention_pool`.
    """

    slices: SliceStackConfig = field(default_factory=SliceStackConfig)
    encoder: SliceEncoderConfig = field(default_factory=SliceEncoderConfig)
    hidden: int = 64
    gated: bool = False
    embedding: tuple[int, ...] = (256, 128)
    num_classes: int = 2
    standardise: bool = False
    feature_dropout: float = 0.0
    embedding_dropout: float = 0.0
    attention_impl: str = without_effect("auto")

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise ConfigError("num_classes is too small", given=self.num_classes, expected="at least 2")
        if not self.embedding or min(self.hidden, *self.embedding) < 1:
            raise ConfigError(
                "hidden and embedding are widths of layers",
                given=f"hidden {self.hidden}, embedding {self.embedding}",
                expected="at least one embedding layer, each width at least 1",
            )
        for name in ("feature_dropout", "embedding_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is no fraction", given=getattr(self, name), expected="0 <= fraction < 1")

    def build(self, *, load_weights: bool = True) -> DinoAtten3D:
        """Encoder and head; the head's initial weights are drawn from torch's global generator.

        Args:
            load_weights: False leaves an encoder by name or file empty, for a checkpoint that brings its weights.

        Raises:
            ModelError: an unknown backbone, or weights that are missing or wrong.
        """
        return DinoAtten3D(self, load_weights=load_weights)

    def build_head(self) -> DinoAtten3DHead:
        """All that learns: takes the encoder's vectors, so that an encoder is not needed to train."""
        return DinoAtten3DHead(self)


class DinoAtten3DOutput(NamedTuple):
    """What the model says of each volume. A tuple, so that parallel wrappers find the tensors in it.

    Attributes:
        logits: `batch class`.
        embedding: `batch dimension`, after ReLU, so never negative; not normalised.
        attention: `batch slice`: weights that sum to 1 over a volume's slices; exactly 0 where masked.
    """

    logits: Float[Tensor, "batch class"]
    embedding: Float[Tensor, "batch dimension"]
    attention: Float[Tensor, "batch slice"]


class SliceAttention(nn.Module):
    """Attention pooling with its own parameters: Linear, tanh (optionally gated), Linear to one score per slice."""

    def __init__(self, channels: int, hidden: int, *, gated: bool, impl: str) -> None:
        super().__init__()
        self.project = nn.Linear(channels, hidden)
        self.gate = nn.Linear(channels, hidden) if gated else None
        self.score = nn.Linear(hidden, 1)
        self.impl = impl

    def forward(
        self, features: Float[Tensor, "batch slice channel"], mask: Bool[Tensor, "batch slice"]
    ) -> tuple[Float[Tensor, "batch channel"], Float[Tensor, "batch slice"]]:
        """The weighted sum of each volume's slices, and the weights."""
        batch, num_slices, _ = features.shape
        pooled = attention_pool(
            features.flatten(0, 1),
            torch.arange(batch + 1, device=features.device) * num_slices,
            self.project.weight,
            self.score.weight,
            None if self.gate is None else self.gate.weight,
            bias_v=self.project.bias,
            bias_u=None if self.gate is None else self.gate.bias,
            bias_w=self.score.bias,
            mask=mask.flatten(),
            impl=self.impl,
        )
        return pooled.pooled[:, 0], pooled.weights.view(batch, num_slices)


class DinoAtten3DHead(nn.Module):
    """Attention pooling, embedding layers and classifier: the part that learns."""

    feature_mean: Tensor
    feature_scale: Tensor

    def __init__(self, config: DinoAtten3DConfig) -> None:
        super().__init__()
        self.config = config
        self.num_channels = config.encoder.resolve_channels(config.slices.image_size)
        if config.standardise:
            self.register_buffer("feature_mean", torch.zeros(self.num_channels))
            self.register_buffer("feature_scale", torch.ones(self.num_channels))
        self.attention = SliceAttention(
            self.num_channels, config.hidden, gated=config.gated, impl=config.attention_impl
        )
        widths = (self.num_channels, *config.embedding)
        self.embedding = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        self.classifier = nn.Linear(config.embedding[-1], config.num_classes)

    def forward(
        self, features: Float[Tensor, "batch slice channel"], mask: Bool[Tensor, "batch slice"] | None = None
    ) -> DinoAtten3DOutput:
        """Classifies volumes by their slices' vectors, whatever the order of the slices.

        Args:
            features: Vectors of the encoder; cast to the head's dtype.
            mask: True where a slice counts; what lies elsewhere has no influence, not even NaN. None: all count.

        Raises:
            ModelError: another number of channels, a mask of another shape, or a volume without slices.
        """
        mask = self._check(features, mask)
        features = features.to(self.classifier.weight.dtype)
        if self.config.standardise:
            features = (features - self.feature_mean) / self.feature_scale
        features = functional.dropout(features, self.config.feature_dropout, self.training)
        embedding, attention = self.attention(features, mask)
        for layer in self.embedding:
            if layer is not self.embedding[0]:
                embedding = functional.dropout(embedding, self.config.embedding_dropout, self.training)
            embedding = functional.relu(layer(embedding))
        return DinoAtten3DOutput(self.classifier(embedding), embedding, attention)

    def fit_scale(self, scans: Iterable[Float[Tensor, "slice channel"]]) -> None:
        """Takes the statistics for `standardise` from the training scans; channels alike in all scans stay.

        The spread is that of the scans' mean vectors: what differs between people, which the spread of single slices,
        most of it the change from neck to crown that all people share, would drown.

        Args:
            scans: Vectors of one scan after another, without masked slices; only sums of them are kept.

        Raises:
            ModelError: the configuration does not standardise, or there are no slices.
        """
        num_scans, total, squares = 0, torch.zeros(self.num_channels).double(), torch.zeros(self.num_channels).double()
        for features in scans:
            if len(features):
                average = features.double().mean(0)
                num_scans += 1
                total += average
                squares += average.square()
        if not self.config.standardise or num_scans == 0:
            raise ModelError(
                "there is nothing to standardise by",
                given=f"standardise {self.config.standardise}, {num_scans} scans with slices",
                expected="standardise on and at least one slice",
            )
        mean = total / num_scans
        scale = (squares / num_scans - mean.square()).clamp_min(0).sqrt()
        self.feature_mean.copy_(mean)
        # Below this the sums have no digits left: such a channel is constant, and dividing would blow up rounding.
        self.feature_scale.copy_(torch.where(scale > 1e-6 * mean.abs() + 1e-12, scale, 1.0))

    def trainable_parameters(self, scope: TrainScope) -> list[nn.Parameter]:
        """The parameters that learn: all of them, or, as in the authors' ten scripts, the embedding layers alone.

        With "released", attention and classifier stay as they were drawn: parity with the release, nothing to want.
        """
        return list((self if scope == "all" else self.embedding).parameters())

    def _check(self, features: Tensor, mask: Tensor | None) -> Tensor:
        if features.ndim != 3 or features.shape[-1] != self.num_channels:
            expected = f"batch slice channel with {self.num_channels} channels"
            raise ModelError("slice vectors do not fit the head", given=tuple(features.shape), expected=expected)
        if mask is None:
            mask = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
        if mask.shape != features.shape[:2]:
            raise ModelError("the mask does not fit", given=tuple(mask.shape), expected=tuple(features.shape[:2]))
        if not bool(mask.any(1).all()):
            empty = torch.nonzero(~mask.any(1)).flatten().tolist()
            raise ModelError("a volume has no slice to look at", given=f"batch rows {empty}", expected="one or more")
        return mask


class DinoAtten3D(nn.Module):
    """The whole model, from RAS+ volumes to logits."""

    def __init__(self, config: DinoAtten3DConfig, *, load_weights: bool = True) -> None:
        super().__init__()
        self.config = config
        self.encoder = config.encoder.build(config.slices.image_size, load_weights=load_weights)
        self.head = config.build_head()

    def encode(
        self, volume: Shaped[Tensor, "x y z"], *, spacing_mm: Sequence[float] | Tensor | None = None
    ) -> SliceFeatures:
        """Vectors of one volume's slices: what the feature store keeps. No gradient passes.

        Args:
            volume: RAS+, any real dtype; see `stack_slices` for what happens to NaN.
            spacing_mm: Voxel size along x, y, z; None takes voxels as cubes.

        Raises:
            ModelError: see `stack_slices`.
        """
        images, mask, slice_index = stack_slices(volume, self.config.slices, spacing_mm=spacing_mm)
        encoded = self.encoder(images[mask])
        features = encoded.new_zeros((len(mask), encoded.shape[1]))
        features[mask] = encoded
        return SliceFeatures(features, mask, slice_index, slice_index.double())

    def forward(
        self,
        volume: Shaped[Tensor, "batch x y z"],
        *,
        spacing_mm: Float[Tensor, "batch 3"] | Sequence[float] | None = None,
    ) -> DinoAtten3DOutput:
        """Classifies volumes.

        Args:
            volume: RAS+; each volume is encoded by itself, so that a batch changes nothing.
            spacing_mm: One voxel size for each volume, or one (three numbers) for all.

        Raises:
            ModelError: see `stack_slices` and `DinoAtten3DHead`.
        """
        if volume.ndim != 4 or len(volume) == 0:
            raise ModelError("volumes come in a batch", given=f"shape {tuple(volume.shape)}", expected="batch x y z")
        spacings = _share_spacing(spacing_mm, len(volume))
        encoded = [self.encode(one, spacing_mm=spacing) for one, spacing in zip(volume, spacings, strict=True)]
        return self.head(torch.stack([one.features for one in encoded]), torch.stack([one.mask for one in encoded]))


def _share_spacing(spacing_mm: Tensor | Sequence[float] | None, batch: int) -> list[Tensor | None]:
    if spacing_mm is None:
        return [None] * batch
    spacing = torch.as_tensor(spacing_mm, dtype=torch.float64)
    if spacing.shape not in ((3,), (batch, 3)):
        raise ModelError("spacing_mm does not fit", given=tuple(spacing.shape), expected=f"(3,) or ({batch}, 3)")
    return list(spacing.expand(batch, 3))
