"""Does a map tell what the answer rests on? Slices are deleted in its order, and weights are scrambled under it."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.stats import rankdata
from torch import Tensor, nn

from neuroray.platform.evaluate.slice_model import SliceModel, SliceView
from neuroray.platform.explain.saliency import log_odds

NUM_RANDOM_ORDERS = 50
# Rank correlations take at most this many voxels, evenly spaced: more change the third digit and cost seconds.
_MOST_VOXELS = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Deletion:
    """The target's log-odds while slices are taken away in one order or another, down to the last one.

    Attributes:
        fraction: Of the slices taken away.
        most_first: Starting with the slice that the map holds most important.
        least_first: The other way round.
        random: In orders drawn at random.
    """

    fraction: Float[np.ndarray, " point"]
    most_first: Float[np.ndarray, " point"]
    least_first: Float[np.ndarray, " point"]
    random: Float[np.ndarray, "order point"]

    @property
    def area(self) -> float:
        """Mean drop of `most_first` below the mean of the random orders: above 0, the map names slices that matter."""
        return float(np.mean(self.random.mean(axis=0) - self.most_first))

    @property
    def random_orders_as_steep(self) -> float:
        """Share of random orders that lie as low, on average, as `most_first`: what chance would do."""
        return float(np.mean(self.random.mean(axis=1) <= self.most_first.mean()))

    def to_json(self) -> dict[str, Any]:
        """Curves and verdicts; the random orders as mean and middle 95 %."""
        low, high = np.quantile(self.random, [0.025, 0.975], axis=0)
        return {
            "score": "log-odds of the target class",
            "fraction_deleted": self.fraction.tolist(),
            "most_first": self.most_first.tolist(),
            "least_first": self.least_first.tolist(),
            "random_mean": self.random.mean(axis=0).tolist(),
            "random_low": low.tolist(),
            "random_high": high.tolist(),
            "num_random_orders": len(self.random),
            "area_random_minus_most_first": self.area,
            "random_orders_as_steep": self.random_orders_as_steep,
        }


def delete_slices(
    model: SliceModel, view: SliceView, importance: Float[np.ndarray, " shown"], target: int, *, seed: int
) -> Deletion:
    """Masks slices out of the pooling one after another and watches the target's log-odds; the last slice stays.

    Args:
        model: The model.
        view: The scan's slices.
        importance: Of each slice that is not masked, in order; only its ranks count.
        target: Class index.
        seed: Of the random orders.
    """
    shown = np.flatnonzero(view.mask.cpu().numpy())
    rng = np.random.default_rng(seed)
    falling = shown[np.argsort(-importance, kind="stable")]
    orders = [falling, falling[::-1], *(rng.permutation(shown) for _ in range(NUM_RANDOM_ORDERS))]
    curves = np.stack([_delete_in_order(model, view, order, target) for order in orders])
    fraction = np.arange(len(shown)) / len(shown)
    return Deletion(fraction=fraction, most_first=curves[0], least_first=curves[1], random=curves[2:])


def leave_out_each(model: SliceModel, view: SliceView, target: int) -> Float[np.ndarray, " shown"]:
    """Probability of the target minus that without each slice, exactly; one entry per slice that is not masked.

    For a scan with a single slice, what goes is what is above an even guess.
    """
    shown = torch.nonzero(view.mask).flatten()
    whole = score_masks(model, view, view.mask[None]).softmax(-1)[0, target]
    if len(shown) == 1:
        return np.array([float(whole) - 1 / len(model.classes)])
    masks = view.mask.repeat(len(shown), 1)
    masks[torch.arange(len(shown)), shown] = False
    return (whole - score_masks(model, view, masks).softmax(-1)[:, target]).cpu().numpy()


@torch.no_grad()
def score_masks(model: SliceModel, view: SliceView, masks: Bool[Tensor, "batch slice"]) -> Float[Tensor, "batch class"]:
    """Logits, in float64, of one scan's vectors under many masks."""
    features = view.features.to(model.device)[None].expand(len(masks), -1, -1)
    return model.module.head(features, masks.to(model.device)).logits.double()


def scramble(model: SliceModel, part: str, *, seed: int) -> SliceModel:
    """The model with the entries of every tensor of one part dealt out anew: same values, nothing learned.

    Args:
        model: Left as it is.
        part: `head` or `encoder`.
        seed: Same seed, same scramble.
    """
    module = copy.deepcopy(model.module)
    generator = torch.Generator().manual_seed(seed)
    chosen: nn.Module = getattr(module, part)
    with torch.no_grad():
        for tensor in chosen.parameters():
            order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
            tensor.copy_(tensor.flatten()[order].view_as(tensor))
    return dataclasses.replace(model, module=module)


def correlate_maps(first: Float[np.ndarray, "x y z"], second: Float[np.ndarray, "x y z"]) -> float | None:
    """Spearman correlation where either map is not 0; None where one of them is constant there."""
    somewhere = np.flatnonzero((first != 0) | (second != 0))
    chosen = somewhere[:: max(1, len(somewhere) // _MOST_VOXELS)]
    left, right = first.ravel()[chosen], second.ravel()[chosen]
    if len(chosen) < 3 or np.ptp(left) == 0 or np.ptp(right) == 0:
        return None
    # Spearman's correlation is Pearson's on ranks.
    return float(np.corrcoef(rankdata(left), rankdata(right))[0, 1])


def _delete_in_order(model: SliceModel, view: SliceView, order: np.ndarray, target: int) -> np.ndarray:
    masks = view.mask.cpu().repeat(len(order), 1)
    for step, gone in enumerate(order[:-1]):
        masks[step + 1 :, int(gone)] = False
    return log_odds(score_masks(model, view, masks), target).cpu().numpy()
