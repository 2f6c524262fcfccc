"""The tokenizer's losses, each of every volume by itself: errors of voxels, the adversary; and the weights of all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from neuroray.config import Config, ConfigError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    Volume = Float[Tensor, "batch x y z"]
    PerVolume = Float[Tensor, " batch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VQVAELossConfig(Config):
    """Weights and options of the terms; a weight of 0 switches a term off.

    Attributes:
        l1_weight: Of the mean absolute error.
        l2_weight: Of the mean squared error, which decibels are of.
        brain_weight: How much a voxel of the brain counts in both, against one beside it.
        quantiser_weight: Of codebook and commitment.
        perceptual_weight: Of the distance between features by a frozen network; off by default, as a network's weights
            have to be at hand.
        perceptual_network: That network: a name of timm's, which sees slices; or of one of torchvision's for video
            (`r3d_18`, `mc3_18`, `r2plus1d_18`), which sees the volume.
        perceptual_weights: A local file of its weights, which the training reads; None: random ones, from
            `perceptual_seed`.
        perceptual_seed: Of random weights.
        perceptual_slices: Slices of each of the three planes and step, evenly spread; of a network that sees slices.
        adversarial_weight: Of the adversary.
        adversarial_kind: Scores by least squares, or by hinges.
        adversarial_epochs: Epochs before the adversary begins.
        adaptive: Scale the adversary's gradient at the reconstruction to that of the other terms, volume by volume.
        discriminator_channels: Of its first layer.
    """

    l1_weight: float = 1.0
    l2_weight: float = 0.0
    brain_weight: float = 1.0
    quantiser_weight: float = 1.0
    perceptual_weight: float = 0.0
    perceptual_network: str = "resnet18"
    perceptual_weights: str | None = None
    perceptual_seed: int = 0
    perceptual_slices: int = 4
    adversarial_weight: float = 0.01
    adversarial_kind: Literal["least_squares", "hinge"] = "least_squares"
    adversarial_epochs: float = 5.0
    adaptive: bool = True
    discriminator_channels: int = 32

    def __post_init__(self) -> None:
        weights = (
            self.l1_weight,
            self.l2_weight,
            self.quantiser_weight,
            self.perceptual_weight,
            self.adversarial_weight,
        )
        if min(*weights, self.adversarial_epochs) < 0 or min(self.l1_weight + self.l2_weight, self.brain_weight) <= 0:
            expected = "0 or more, and some error of voxels"
            raise ConfigError("weights are none", given=self.to_json(), expected=expected)
        if min(self.perceptual_slices, self.discriminator_channels) < 1:
            raise ConfigError("sizes are too small", given=self.to_json(), expected="at least 1")


def absolute_error(
    one: Volume, other: Volume, brain: Bool[Tensor, "batch x y z"] | None = None, brain_weight: float = 1.0
) -> PerVolume:
    """The mean over voxels, those of the brain weighted; None: all alike."""
    return _weigh((one - other).abs().flatten(1), brain, brain_weight)


def squared_error(
    one: Volume, other: Volume, brain: Bool[Tensor, "batch x y z"] | None = None, brain_weight: float = 1.0
) -> PerVolume:
    """The same of squares."""
    return _weigh((one - other).square().flatten(1), brain, brain_weight)


def _weigh(
    error: Float[Tensor, "batch voxel"], brain: Bool[Tensor, "batch x y z"] | None, brain_weight: float
) -> PerVolume:
    if brain is None or brain_weight == 1:
        return error.mean(1)
    weights = torch.where(brain.flatten(1), brain_weight, 1.0)
    return (weights * error).sum(1) / weights.sum(1)


def judge_real(scores: Float[Tensor, "batch u v w"], kind: str) -> PerVolume:
    """What the discriminator is to lower for real volumes."""
    flat = scores.float().flatten(1)
    return (functional.relu(1 - flat) if kind == "hinge" else (flat - 1).square()).mean(1)


def judge_made(scores: Float[Tensor, "batch u v w"], kind: str) -> PerVolume:
    """What the discriminator is to lower for made volumes."""
    flat = scores.float().flatten(1)
    return (functional.relu(1 + flat) if kind == "hinge" else flat.square()).mean(1)


def deceive(scores: Float[Tensor, "batch u v w"], kind: str) -> PerVolume:
    """What the tokenizer is to lower: made volumes that do not look real."""
    flat = scores.float().flatten(1)
    return (-flat if kind == "hinge" else (flat - 1).square()).mean(1)


def score_frozen(discriminator: nn.Module, volume: Volume) -> Float[Tensor, "batch u v w"]:
    """Scores whose gradient goes to the volume alone, not to the discriminator."""
    frozen: Mapping[str, Tensor] = {name: value.detach() for name, value in discriminator.named_parameters()}
    return functional_call(discriminator, dict(frozen), (volume,))


def balance_gradients(own: PerVolume, adversary: PerVolume, reconstruction: Volume) -> PerVolume:
    """By how much to scale the adversary so that it pulls at each reconstruction as hard as the other terms do.

    VQGAN's adaptive weight (Esser et al. 2021, equation 7), taken at the reconstruction in place of the last layer, so
    that every volume has its own and neither batch nor ranks change it. No gradient passes.
    """
    pulls = [
        torch.autograd.grad(term.sum(), reconstruction, retain_graph=True)[0].float().flatten(1).norm(dim=1)
        for term in (own, adversary)
    ]
    return (pulls[0] / (pulls[1] + 1e-4 * pulls[0] + 1e-12)).detach()
