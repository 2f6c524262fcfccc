"""Perceptual distance: how far apart two volumes, or their slices, are to a network with weights in a local file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Bool, Float

from neuroray.platform.evaluate.metrics import EvaluationError, Metric
from neuroray.platform.models.neuroar.loss import VQVAELossConfig
from neuroray.platform.models.neuroar.perceptual import PerceptualDistance

PERCEPTUAL: Final = "perceptual"
PERCEPTUAL_METRIC: Final = Metric(label="Perceptual distance", better="lower")
NUM_SLICES: Final = 8
"""Of each of the three planes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PerceptualMeter:
    """Measures what LPIPS (Zhang et al. 2018) does without the weights that it learned from people's judgements.

    Slices of both volumes, in three planes and evenly spread over the box of the brain, go through a frozen 2D network
    as grey pictures in [-1, 1]. At each place the channels of a layer's features are divided by their length; the
    squared differences are summed over channels, and their mean is taken over places, slices, layers (of a ResNet the
    first three stages) and planes. So it lies between 0 and 4. Networks and files give other numbers: only those of one
    file can be compared. It is no LPIPS, whose layers weigh channels by learned numbers. A network that sees volumes is
    shown the box as a whole.

    Attributes:
        network: Its name.
        sha256: Of the file of its weights.
        device: Where it computes.
        distance: The network at work.
    """

    network: str
    sha256: str
    device: str
    distance: PerceptualDistance = field(repr=False, compare=False)

    def measure(
        self, made: Float[np.ndarray, "x y z"], truth: Float[np.ndarray, "x y z"], brain: Bool[np.ndarray, "x y z"]
    ) -> float:
        """The distance of two volumes in [-1, 1], in the box around the brain of the truth."""
        box = tuple(slice(int(places.min()), int(places.max()) + 1) for places in np.nonzero(brain))
        one, other = (
            torch.from_numpy(np.ascontiguousarray(volume[box], dtype=np.float32))[None].to(self.device)
            for volume in (made, truth)
        )
        return float(self.distance(one, other)[0])

    def to_json(self) -> dict[str, Any]:
        """For report.json."""
        return {
            "network": self.network,
            "weights_sha256": self.sha256,
            "num_slices": None if self.distance.sees_volumes else NUM_SLICES,
            "stated": tell_perceptual(self),
        }


def open_perceptual_meter(file: str, *, network: str = "resnet18", device: str = "cpu") -> PerceptualMeter:
    """The meter, with its weights read: the same files as training's `--loss.perceptual-weights`.

    Args:
        file: A local file, `.safetensors` or what `torch.save` wrote of a state dict; tensors by the names of timm, or
            torchvision.
        network: timm name, or one of torchvision's for video (`VOLUME_NETWORKS`).
        device: Where to compute.

    Raises:
        EvaluationError: no such file, or one that holds no weights, or not those of the network.
        ModelError: there is no such network, or tensors of it are missing in the file.
    """
    weights, digest = _read_weights(file)
    config = VQVAELossConfig(perceptual_network=network, perceptual_slices=NUM_SLICES)
    try:
        distance = PerceptualDistance(config, weights)
    except RuntimeError as fault:
        raise EvaluationError(
            f"perceptual weights in {file} are of another network",
            given=str(fault).splitlines()[-1].strip(),
            expected=network,
            fix="--perceptual-network NAME, as timm calls the network that they are of",
        ) from None
    return PerceptualMeter(network=network, sha256=digest, device=device, distance=distance)


def keep_measured(table: Mapping[str, Metric], scores: Iterable[Mapping[str, float]]) -> dict[str, Metric]:
    """Metrics of a table, the perceptual distance only where some of these scores have it."""
    is_measured = any(PERCEPTUAL in one for one in scores)
    return {name: metric for name, metric in table.items() if name != PERCEPTUAL or is_measured}


def tell_perceptual(meter: PerceptualMeter | None) -> str:
    """What it is, or that it is left out, in a line."""
    if meter is None:
        return "No perceptual distance was measured: no network's weights were given (--perceptual-weights)."
    seen, mean = f"{NUM_SLICES} slices of each of three planes through the brain", "places, slices, layers and planes"
    if meter.distance.sees_volumes:
        seen, mean = "the volume in the box around the brain", "places and layers"
    return (
        f"Perceptual distance: features of {meter.network} (weights {meter.sha256[:8]}) of {seen}, channels at each "
        f"place divided by their length, squared differences summed over channels, then the mean over {mean}: LPIPS "
        "without its learned weights of channels, so not LPIPS's numbers."
    )


def _read_weights(file: str) -> tuple[dict[str, torch.Tensor], str]:
    path, given = Path(file), file
    expected = "a local file of a network's weights: .safetensors, or a state dict that torch.save wrote"
    if not path.is_file():
        raise EvaluationError("there are no perceptual weights here", given=given, expected=expected)
    found: Any = None
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    # What the two raise of a file that is none of theirs is not documented, and has no class in common.
    except Exception as fault:
        given = f"{file}: {str(fault).splitlines()[0] if str(fault) else type(fault).__name__}"
        raise EvaluationError("perceptual weights cannot be read", given=given, expected=expected) from None
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()) or not found:
        keys = ", ".join(list(map(str, found))[:3]) if isinstance(found, dict) else type(found).__name__
        raise EvaluationError("perceptual weights are no tensors by name", given=f"{file}: {keys}", expected=expected)
    broken = [name for name, value in found.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        given = f"{file}: {len(broken)} tensors, such as {broken[0]}"
        raise EvaluationError("perceptual weights are not finite", given=given, fix="fetch the file again")
    return found, hashlib.sha256(path.read_bytes()).hexdigest()
