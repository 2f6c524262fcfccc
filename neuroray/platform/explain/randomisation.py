"""Does a map show the model or the scan? Weights are dealt out anew, or learned from shuffled labels."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from neuroray.platform.explain.faithfulness import correlate_maps
from neuroray.platform.explain.maps import ExplainError, SignedMap

Explain = Callable[[nn.Module], SignedMap]
"""Explains one scan with a module, everything else held."""

Stages = Sequence[tuple[str, Sequence[str]]]
"""Names, and the parts of a module (dots between attributes) whose weights are dealt out anew at each."""

_MOST_BLOCK_STAGES = 6

# Of BrainMT, from the answer down to the voxels.
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
    stages: Stages = BRAINMT_STAGES,
    found: SignedMap | None = None,
) -> dict[str, dict[str, float | None]]:
    """Rank correlation of the map with that of scrambled weights, from the head down, one stage after another.

    Adebayo et al. 2018's cascade. A correlation that stays near 1 to the end tells that the map shows the scan.

    Args:
        module: The model; left as it is.
        explain: Makes the map.
        seed: Same seed, same scramble.
        stages: What is scrambled, one after another.
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
        parts = [_find_part(scrambled, attribute) for attribute in attributes]
        if all(part is None for part in parts):
            raise ExplainError("the model has no such part", given=name, expected=", ".join(attributes))
        for part in parts:
            if part is not None:
                scramble_weights(part, generator)
        correlations[name] = compare_maps(before, explain(scrambled))
    return correlations


def slice_model_stages(module: Any) -> Stages:
    """Of a model of slices behind a transformer: the head, blocks from last to first, what makes tokens.

    Blocks go in at most six groups, for every stage encodes the scan once more.

    Raises:
        ExplainError: the encoder has no blocks.
    """
    blocks = getattr(module.encoder.backbone, "blocks", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList) or not len(blocks):
        raise ExplainError("the encoder has no blocks to scramble", given=module.encoder.config.backbone)
    lead = "encoder.backbone."
    stages: list[tuple[str, tuple[str, ...]]] = [("head", ("head",))]
    numbers = list(range(len(blocks), 0, -1))
    size = -(-len(blocks) // _MOST_BLOCK_STAGES)
    for start in range(0, len(numbers), size):
        chosen = numbers[start : start + size]
        name = f"block {chosen[0]}" if size == 1 else f"blocks {chosen[-1]}-{chosen[0]}"
        parts = [f"{lead}blocks.{number - 1}" for number in chosen]
        stages.append((name, (*parts, f"{lead}norm") if start == 0 else tuple(parts)))
    tokens = ("patch_embed", "cls_token", "reg_token", "pos_embed", "norm_pre")
    return (*stages, ("tokens", tuple(lead + name for name in tokens)))


def check_labels(module: nn.Module, shuffled: nn.Module, explain: Explain) -> dict[str, float | None]:
    """Rank correlation of the maps of a model and of one that learned the same people with shuffled labels.

    Near 1, the map would have been drawn for labels that mean nothing, too.

    Args:
        module: Trained on true labels.
        shuffled: The same recipe with `split.shuffle_labels_seed`.
        explain: Makes the map.
    """
    return compare_maps(explain(module), explain(shuffled))


def compare_maps(first: SignedMap, second: SignedMap) -> dict[str, float | None]:
    """Spearman correlations of the signed maps and of the magnitudes, where either is not 0."""
    return {
        "values": correlate_maps(first.values, second.values),
        "magnitudes": correlate_maps(first.magnitudes, second.magnitudes),
    }


@torch.no_grad()
def scramble_weights(part: nn.Module | torch.Tensor, generator: torch.Generator) -> None:
    """Deals out the entries of every parameter anew, in place: same values, nothing learned. Of a buffer its own."""
    for tensor in [part] if isinstance(part, torch.Tensor) else part.parameters():
        order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
        tensor.copy_(tensor.flatten()[order].view_as(tensor))


def _find_part(module: nn.Module, path: str) -> Any:
    """What lies at the end of a dotted path; None where the module has no such thing."""
    found: Any = module
    for name in path.split("."):
        found = getattr(found, name, None)
    return found
