"""PerceptualDistance: how far apart two volumes are in features of a frozen network, of slices or of the whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from neuroray.platform.models.errors import ModelError
from neuroray.platform.models.neuroar.loss import VQVAELossConfig

if TYPE_CHECKING:
    from jaxtyping import Float

    Volume = Float[Tensor, "batch x y z"]
    PerVolume = Float[Tensor, " batch"]

VOLUME_NETWORKS: Final = ("r3d_18", "mc3_18", "r2plus1d_18")
"""Networks of torchvision for video, whose three axes are taken for those of space."""


class PerceptualDistance:
    """Squared distances between normalised features (LPIPS, unweighted); no module, so that it is never saved.

    Args:
        config: Names the network.
        weights: Of it; None: random ones.

    Raises:
        ModelError: no such network, or weights that do not fit.
    """

    def __init__(self, config: VQVAELossConfig, weights: Mapping[str, Tensor] | None = None) -> None:
        self.sees_volumes = config.perceptual_network in VOLUME_NETWORKS
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.perceptual_seed)
            self._network = _Stages(config.perceptual_network) if self.sees_volumes else _build_of_timm(config)
        if weights is not None:
            missing = self._network.load_state_dict(weights, strict=False).missing_keys
            if missing:
                given = f"{len(missing)} of its tensors missing, such as {missing[0]}"
                raise ModelError(f"weights do not fit {config.perceptual_network}", given=given)
        self._network.eval().requires_grad_(False)
        self._num_slices = config.perceptual_slices

    def __call__(self, one: Volume, other: Volume) -> PerVolume:
        """The mean over places and layers, and over planes and slices of a network that sees those.

        Slices are evenly spread; where they begin is drawn from torch's generator in training, as `one` needs a
        gradient.
        """
        if next(self._network.parameters()).device != one.device:
            self._network.to(one.device)
        if self.sees_volumes:
            return self._compare(one[:, None], other[:, None], len(one))
        found = []
        for axis in (1, 2, 3):
            places = self._choose(one.shape[axis], is_drawn=one.requires_grad).to(one.device)
            left, right = (
                volume.index_select(axis, places).movedim(axis, 1).flatten(0, 1)[:, None] for volume in (one, other)
            )
            found.append(self._compare(left, right, len(one)))
        return torch.stack(found).mean(0)

    def _compare(self, one: Float[Tensor, "item 1 *grid"], other: Float[Tensor, "item 1 *grid"], rows: int) -> Tensor:
        distances = [
            (left - right).square().sum(1).flatten(1).mean(1).view(rows, -1).mean(1)
            for left, right in zip(self._look(one), self._look(other), strict=True)
        ]
        return torch.stack(distances).mean(0)

    def _look(self, grey: Float[Tensor, "item 1 *grid"]) -> list[Tensor]:
        pictures = grey.expand(-1, 3, *grey.shape[2:])
        return [functional.normalize(maps.float(), dim=1) for maps in self._network(pictures)]

    def _choose(self, size: int, *, is_drawn: bool) -> Tensor:
        number = min(self._num_slices, size)
        shift = float(torch.rand(())) if is_drawn else 0.5
        return ((torch.arange(number) + shift) * size / number).long().clamp_max(size - 1)


class _Stages(nn.Module):
    """The stem and the first two stages of a network for video; names of tensors are torchvision's."""

    def __init__(self, name: str) -> None:
        super().__init__()
        # Only here, for torchvision takes a second to import.
        from torchvision.models import video

        whole: Any = getattr(video, name)(weights=None)
        self.stem, self.layer1, self.layer2 = whole.stem, whole.layer1, whole.layer2

    def forward(self, volume: Float[Tensor, "batch 3 x y z"]) -> list[Tensor]:
        """Features of each stage."""
        found = [self.stem(volume)]
        for stage in (self.layer1, self.layer2):
            found.append(stage(found[-1]))
        return found


def _build_of_timm(config: VQVAELossConfig) -> nn.Module:
    import timm

    try:
        return timm.create_model(config.perceptual_network, features_only=True, out_indices=(1, 2, 3))
    except RuntimeError as fault:
        raise ModelError(
            "there is no such network, or there are no maps of it",
            given=config.perceptual_network,
            expected=f"a name of timm's, or {', '.join(VOLUME_NETWORKS)}",
            fix="resnet18",
        ) from fault
