"""DinoAtten3D's loss: cross entropy, supervised contrast and spread within classes; each can be switched off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn import functional

from neuroray.config import Config, ConfigError
from neuroray.platform.models.errors import ModelError

if TYPE_CHECKING:
    from jaxtyping import Float, Int


@dataclass(frozen=True, slots=True, kw_only=True)
class DinoAtten3DLossConfig(Config):
    """Weights and options of the three terms; the defaults are the released ones. A weight of 0 switches a term off.

    Attributes:
        cross_entropy_weight: Of the cross entropy.
        contrastive_weight: Of the supervised contrast (Khosla et al. 2020).
        variance_weight: Of the spread within classes.
        temperature: tau of the contrast.
        contrastive_average: "all": over every anchor, where one without another of its class counts 0 (as released).
            "valid": over the anchors that have one, for small batches of rare classes.
        variance_reduction: "mean" over dimensions (as released: at most 1 / dimensions, so next to nothing beside the
            other terms), or their "sum" (at most 1).
        class_weights: Of the cross entropy, one per class; None: all 1.
        label_smoothing: Of the cross entropy.
    """

    cross_entropy_weight: float = 1.0
    contrastive_weight: float = 1.0
    variance_weight: float = 0.1
    temperature: float = 0.07
    contrastive_average: Literal["all", "valid"] = "all"
    variance_reduction: Literal["mean", "sum"] = "mean"
    class_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        weights = (self.cross_entropy_weight, self.contrastive_weight, self.variance_weight)
        if min(weights) < 0 or max(weights) == 0:
            raise ConfigError(
                "the weights of the loss leave nothing to learn", given=weights, expected="0 or more, not all 0"
            )
        if not self.temperature > 0:
            raise ConfigError("temperature is not positive", given=self.temperature)
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError("label_smoothing is no fraction", given=self.label_smoothing)


def dinoatten3d_loss(
    logits: Float[Tensor, "batch class"],
    embedding: Float[Tensor, "batch dimension"],
    labels: Int[Tensor, " batch"],
    config: DinoAtten3DLossConfig,
) -> dict[str, Float[Tensor, ""]]:
    """The loss of a whole batch: across workers, of the batch gathered from all of them.

    Args:
        logits: Unnormalised class scores.
        embedding: Before normalisation; each row is divided by its length here, and a row of zeros stays zeros.
        labels: Class indices.
        config: Weights and options.

    Returns:
        `loss`, the weighted sum, and its terms before weighting: `cross_entropy`, `contrastive`, `variance`; a term
        that is switched off is 0. In float32 or float64, finite for every batch, one volume or classes of one included.

    Raises:
        ModelError: labels that do not fit the logits.
    """
    _check(logits, embedding, labels, config)
    directions = _normalise(embedding.to(torch.promote_types(embedding.dtype, torch.float32)))
    zero = directions.new_zeros(())
    terms = {"cross_entropy": zero, "contrastive": zero, "variance": zero}
    if config.cross_entropy_weight:
        terms["cross_entropy"] = _cross_entropy(logits, labels, config)
    if config.contrastive_weight:
        terms["contrastive"] = contrast_classes(
            directions, labels, temperature=config.temperature, average=config.contrastive_average
        )
    if config.variance_weight:
        terms["variance"] = measure_class_variance(directions, labels, reduction=config.variance_reduction)
    loss = (
        config.cross_entropy_weight * terms["cross_entropy"]
        + config.contrastive_weight * terms["contrastive"]
        + config.variance_weight * terms["variance"]
    )
    return {"loss": loss, **terms}


def contrast_classes(
    directions: Float[Tensor, "batch dimension"],
    labels: Int[Tensor, " batch"],
    *,
    temperature: float = 0.07,
    average: Literal["all", "valid"] = "all",
) -> Float[Tensor, ""]:
    """Supervised contrast of one view per volume (Khosla et al. 2020, equation 2), with no factor of temperatures.

    Per anchor: the mean over others of its class of -log softmax over all others. 0 where no anchor has another.
    """
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    alike = (labels[:, None] == labels[None, :]) & ~itself
    anchors = alike.any(1)
    similarity = (directions @ directions.T / temperature).masked_fill(itself, -torch.inf)[anchors]
    alike = alike[anchors]
    # An anchor that has another of its class has another at all, so this sum is never empty.
    log_probability = similarity - torch.logsumexp(similarity, 1, keepdim=True)
    per_anchor = -torch.where(alike, log_probability, 0.0).sum(1) / alike.sum(1)
    count = len(labels) if average == "all" else max(len(per_anchor), 1)
    return per_anchor.sum() / count


def measure_class_variance(
    directions: Float[Tensor, "batch dimension"],
    labels: Int[Tensor, " batch"],
    *,
    reduction: Literal["mean", "sum"] = "mean",
) -> Float[Tensor, ""]:
    """Mean squared distance from the class mean, averaged over the classes of the batch; a class of one counts 0.

    `reduction` says whether squared differences are averaged or summed over dimensions.
    """
    classes, member = labels.unique(return_inverse=True)
    counts = torch.bincount(member, minlength=len(classes))[:, None]
    centres = directions.new_zeros((len(classes), directions.shape[1])).index_add(0, member, directions) / counts
    squared = (directions - centres[member]).square()
    per_volume = squared.mean(1) if reduction == "mean" else squared.sum(1)
    return (per_volume / counts[member, 0]).sum() / len(classes)


def _cross_entropy(logits: Tensor, labels: Tensor, config: DinoAtten3DLossConfig) -> Tensor:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    weights = None if config.class_weights is None else logits.new_tensor(config.class_weights)
    return functional.cross_entropy(logits, labels, weight=weights, label_smoothing=config.label_smoothing)


def _normalise(embedding: Tensor) -> Tensor:
    length = embedding.norm(dim=1, keepdim=True)
    # A row of zeros has no direction: it stays zeros and passes no gradient, which a tiny divisor would blow up.
    seen = length > 1e-12
    return torch.where(seen, embedding / torch.where(seen, length, 1.0), 0.0)


def _check(logits: Tensor, embedding: Tensor, labels: Tensor, config: DinoAtten3DLossConfig) -> None:
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or embedding.shape[:1] != labels.shape:
        raise ModelError(
            "logits, embedding and labels are not of one batch",
            given=f"{tuple(logits.shape)}, {tuple(embedding.shape)}, {tuple(labels.shape)}",
            expected="batch class, batch dimension, batch",
        )
    if len(labels) == 0:
        raise ModelError("a batch of nothing has no loss", expected="one volume or more")
    num_classes = logits.shape[1]
    least, greatest = int(labels.min()), int(labels.max())
    if least < 0 or greatest >= num_classes:
        raise ModelError(
            "a label is no class of this model", given=f"{least} to {greatest}", expected=f"0 to {num_classes - 1}"
        )
    if config.class_weights is not None and len(config.class_weights) != num_classes:
        raise ModelError("class_weights are not one per class", given=config.class_weights, expected=num_classes)
