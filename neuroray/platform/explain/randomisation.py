"""Does a map of a run show the model or the run? Weights are dealt out anew, or learned from shuffled labels."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from neuroray.platform.explain.faithfulness import correlate_maps
from neuroray.platform.explain.maps import ExplainError
from neuroray.platform.explain.runs import RunExplanation

Explain = Callable[[nn.Module], RunExplanation]
"""Explains one run with a module, everything else held."""

# Of BrainMT, from the answer down to the voxels; each name is an attribute of the module.
BRAINMT_STAGES = (
    ("head", ("head", "final_norm")),
    ("attention", ("attention_layers", "shared")),
    ("mamba", ("mamba_layers", "mamba_norm")),
    ("embedding", ("embedding",)),
    ("frames", ("frame_encoder",)),
)


def check_weights(
    module: nn.Module,
    explain: Explain,
    *,
    seed: int,
    stages: Sequence[tuple[str, Sequence[str]]] = BRAINMT_STAGES,
    found: RunExplanation | None = None,
) -> dict[str, dict[str, float | None]]:
    """Rank correlation of the map with that of scrambled weights, from the head down, one stage after another.

    Adebayo et al. 2018's cascade. A correlation that stays near 1 to the end tells that the map shows the run.

    Args:
        module: The model; left as it is.
        explain: Makes the map.
        seed: Same seed, same scramble.
        stages: Names, and the attributes of the module that are scrambled at each.
        found: The map of the untouched module, where it is at hand.

    Returns:
        By stage: `values` (signed) and `magnitudes`; None where a map is constant.

    Raises:
        ExplainError: the module has none of a stage's attributes.
    """
    before = explain(module) if found is None else found
    scrambled = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(seed)
    correlations = {}
    for name, attributes in stages:
        parts: list[Any] = [getattr(scrambled, attribute, None) for attribute in attributes]
        if all(part is None for part in parts):
            raise ExplainError("the model has no such part", given=name, expected=", ".join(attributes))
        for part in parts:
            if part is not None:
                scramble_weights(part, generator)
        correlations[name] = compare_maps(before, explain(scrambled))
    return correlations


def check_labels(module: nn.Module, shuffled: nn.Module, explain: Explain) -> dict[str, float | None]:
    """Rank correlation of the maps of a model and of one that learned the same people with shuffled labels.

    Near 1, the map would have been drawn for labels that mean nothing, too.

    Args:
        module: Trained on true labels.
        shuffled: The same recipe with `split.shuffle_labels_seed`.
        explain: Makes the map.
    """
    return compare_maps(explain(module), explain(shuffled))


def compare_maps(first: RunExplanation, second: RunExplanation) -> dict[str, float | None]:
    """Spearman correlations of the signed maps and of the magnitudes, where either is not 0."""
    return {
        "values": correlate_maps(first.values, second.values),
        "magnitudes": correlate_maps(first.magnitudes, second.magnitudes),
    }


@torch.no_grad()
def scramble_weights(part: nn.Module, generator: torch.Generator) -> None:
    """Deals out the entries of every parameter anew, in place: same values, nothing learned."""
    for tensor in part.parameters():
        order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
        tensor.copy_(tensor.flatten()[order].view_as(tensor))
