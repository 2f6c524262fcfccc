"""2D backbones by timm name: built without touching disk or network, and what is known of one before it is built."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from neuroray.platform.models.errors import ModelError

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

Readout = str
"""How a backbone's output becomes one vector: "cls", "mean", "pool" or "grid"; see `SliceEncoderConfig`."""

Backbone = Any
"""A timm model: an `nn.Module` with `forward_features`, `forward_head`, `num_features`; timm gives that no type."""


def describe_backbone(name: str) -> PretrainedCfg:
    """What timm knows of a backbone: native size, picture statistics, where its weights lie.

    Raises:
        ModelError: timm has no such backbone.
    """
    import timm

    try:
        known = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError:
        known = None
    if known is None:
        nearest = difflib.get_close_matches(name, [*timm.list_models(), *timm.list_pretrained()], n=3)
        raise ModelError(
            "timm has no such backbone",
            given=name,
            expected="a name that timm.list_models() or timm.list_pretrained() gives",
            fix=f"perhaps {', '.join(nearest)}" if nearest else "check the spelling",
        )
    return known


def create_backbone(name: str, readout: Readout, image_size: int, **options: Any) -> Backbone:
    """A timm model without a classifier (unless `options` ask for one), for square pictures of `image_size`.

    Args:
        name: timm name, with or without a tag.
        readout: "cls", "mean" and "grid" take all tokens after the final norm; "pool" keeps the model's own pooling.
        image_size: Height and width of the pictures.
        options: Passed on to `timm.create_model`.

    Raises:
        ModelError: an unknown name, or a picture size that the backbone cannot take.
    """
    import timm

    arguments: dict[str, Any] = {"num_classes": 0, **options}
    if describe_backbone(name).fixed_input_size:
        arguments["img_size"] = image_size
    if readout != "pool":
        # Without pooling timm keeps the final norm before the tokens are given out.
        arguments["global_pool"] = ""
    try:
        backbone = timm.create_model(name, **arguments)
    except AssertionError as fault:
        raise ModelError(f"{name} cannot be built so", given=f"image_size {image_size}, {readout}: {fault}") from fault
    patch_size = getattr(getattr(backbone, "patch_embed", None), "patch_size", (1, 1))
    if image_size % patch_size[0] or image_size % patch_size[1]:
        # timm would leave the last rows and columns of every picture out without a word.
        raise ModelError(
            f"{name} cuts pictures into patches",
            given=f"image_size {image_size}",
            expected=f"a multiple of {patch_size}",
        )
    return backbone


def create_random_backbone(name: str, readout: Readout, image_size: int, seed: int) -> Backbone:
    """The same with random weights that depend on the seed alone; the global generator is left as it was."""
    with _seeded_cpu_generator(seed):
        return create_backbone(name, readout, image_size)


def count_channels(name: str, readout: Readout, image_size: int) -> int:
    """Channels of the vector that a readout of square pictures gives, found without allocating weights.

    Raises:
        ModelError: timm has no such backbone, or it cannot take pictures of this size.
    """
    with torch.device("meta"):
        return measure_channels(create_backbone(name, readout, image_size), readout)


def measure_channels(backbone: Backbone, readout: Readout) -> int:
    """Channels of the vector that a readout of this backbone gives."""
    pooled = getattr(backbone, "head_hidden_size", None) if readout == "pool" else None
    num_patches = backbone.patch_embed.num_patches if readout == "grid" else 1
    return int(pooled or backbone.num_features) * int(num_patches)


def check_readout(backbone: Backbone, name: str, readout: Readout) -> None:
    """Raises ModelError where the backbone has no tokens, or no class token, and the readout wants them."""
    has_tokens = hasattr(backbone, "num_prefix_tokens")
    if readout == "pool" or (readout in ("mean", "grid") and has_tokens):
        return
    if not has_tokens:
        raise ModelError(f"{name} gives a map, not tokens", given=f'readout "{readout}"', fix='use readout "pool"')
    if getattr(backbone, "cls_token", None) is None:
        raise ModelError(f"{name} has no class token", given='readout "cls"', fix='use readout "mean" or "pool"')


@contextmanager
def _seeded_cpu_generator(seed: int) -> Iterator[None]:
    # torch.manual_seed would reseed every GPU as well, and fork_rng would have to save them all.
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        with torch.device("cpu"):
            yield
    finally:
        generator.set_state(state)
