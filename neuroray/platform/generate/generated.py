"""From a scan to the same brain at other ages: prepared, told in tokens, decoded, laid back in the scan's own units."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int

from neuroray.platform.data.brain_place import Placement
from neuroray.platform.data.brain_volumes import HIGHEST, LOWEST, fit_grid, restore_grid, scale_brain
from neuroray.platform.generate.ageing_model import AgeingModel
from neuroray.platform.generate.ages import GenerationError
from neuroray.platform.models.neuroar.generate import SamplingConfig, generate_latent
from neuroray.storage.profiles import Profile, TemplateTransform, lay_back, prepare
from neuroray.storage.profiles.prepared import Prepared
from neuroray.storage.scan import Scan, ScanError

Volume = Float32[np.ndarray, "x y z"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanInTokens:
    """A scan as the model takes it, and what is needed to go back.

    Attributes:
        prepared: The scan after its profile.
        brain: What counts as brain, on the prepared grid.
        unit_range: Values that became -1 and 1, in the prepared scan's units.
        volume: On the model's grid, in [-1, 1].
        tokens: `1 token`, on the model's device.
        to_template: How it was brought to a template, where it was.
        own_grid: Of the file; its voxels stand for the shape, and for where the head is in pictures. Of a store's scan
            that was brought to a template they are 0, for the store does not keep them.
        placement: How its brain lies among those of the training; None for a model that does not say where they lay.
    """

    prepared: Scan
    brain: Bool[np.ndarray, "x y z"]
    unit_range: tuple[float, float]
    volume: Volume
    tokens: Int[torch.Tensor, "1 token"]
    to_template: TemplateTransform | None
    own_grid: Scan
    placement: Placement | None = None

    def restore(self, values: Volume) -> Volume:
        """From the model's grid and [-1, 1] to the file's grid and the scan's units; 0 outside the scan's brain.

        Outside the brain the model has seen -1 alone. Registered scans are interpolated linearly.
        """
        low, high = self.unit_range
        units = low + (restore_grid(values, self.prepared.grid_shape) + 1) * ((high - low) / 2)
        return self.lay(np.where(self.brain, units, 0).astype(np.float32))

    def restore_spread(self, spread: Volume) -> Volume:
        """As `restore`, of a standard deviation, which no shift moves."""
        low, high = self.unit_range
        units = restore_grid(spread, self.prepared.grid_shape, fill=0) * ((high - low) / 2)
        return self.lay(np.where(self.brain, units, 0).astype(np.float32))

    def lay(self, values: Volume) -> Volume:
        """From the prepared grid to the file's."""
        if self.to_template is None:
            return values
        return lay_back(values, self.prepared.affine, self.to_template).voxels.astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToldVolume:
    """The same brain at one age, as the model tells it.

    Attributes:
        volume: On the model's grid, in [-1, 1]; of several samples their mean.
        spread: Standard deviation over samples; None for one.
        tokens: `sample token`, on the model's device.
    """

    volume: Volume
    spread: Volume | None
    tokens: Int[torch.Tensor, "sample token"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BrainAtAge:
    """The same brain at one age.

    Attributes:
        age_years: The age.
        values: On the file's grid, in the scan's units; of several samples their mean.
        volume: The same on the model's grid, in [-1, 1].
        spread: Standard deviation over samples; None for one.
        changed_fraction: Tokens that differ from the scan's; of several samples the mean. None where something else
            than the chosen codes is decoded.
    """

    age_years: float
    values: Volume
    volume: Volume
    spread: Volume | None
    changed_fraction: float | None


def read_tokens_of(model: AgeingModel, scan: Scan, profile: Profile) -> ScanInTokens:
    """Prepares a scan as those of the training were, and encodes it.

    Raises:
        ScanError: no single volume, or one that the profile cannot prepare.
        PlanError: a brain without spread, or larger than the grid.
        UnregisteredError: a brain that lies elsewhere than those of the training.
    """
    _require_volume(model, scan)
    given = encode_prepared(model, prepare(scan, profile))
    own = dataclasses.replace(given.own_grid, voxels=scan.voxels, flags=scan.flags)
    return dataclasses.replace(given, own_grid=scan if given.to_template is None else own)


def encode_prepared(model: AgeingModel, prepared: Prepared) -> ScanInTokens:
    """Encodes a scan that its profile has prepared already, such as one of a store.

    Raises:
        ScanError: no single volume.
        PlanError: a brain without spread, or larger than the grid.
        UnregisteredError: a brain that lies elsewhere than those of the training.
    """
    scan = prepared.scan
    _require_volume(model, scan)
    scaled, brain = scale_brain(scan.voxels, prepared.mask)
    low, high = np.percentile(scan.voxels.astype(np.float32)[brain], [LOWEST, HIGHEST])
    volume = fit_grid(scaled, model.grid, brain=brain)
    placement = None if model.place is None else model.place.require(volume)
    own = scan
    if prepared.to_template is not None:
        native = prepared.to_template.native
        empty = np.zeros(native.shape, np.uint8)
        own = Scan(voxels=empty, affine=native.affine, source=native.source, flags=scan.flags)
    return ScanInTokens(
        prepared=scan,
        brain=brain,
        unit_range=(float(low), float(high)),
        volume=volume,
        tokens=model.tokenizer.encode(torch.from_numpy(volume.copy())[None].to(model.device)),
        to_template=prepared.to_template,
        own_grid=own,
        placement=placement,
    )


def reconstruct(model: AgeingModel, given: ScanInTokens) -> Volume:
    """What the tokenizer makes of the scan itself, on the model's grid in [-1, 1]: the best that any age can look."""
    return model.tokenizer.decode(given.tokens, model.grid, slab=model.slab)[0].cpu().numpy()


def generate_at_age(
    model: AgeingModel,
    given: ScanInTokens,
    ages_years: tuple[float, float],
    *,
    sampling: SamplingConfig,
    num_samples: int = 1,
    seed: int = 0,
) -> BrainAtAge:
    """The brain at the second age, by itself: which other ages are asked for changes no bit.

    Args:
        model: Which.
        given: The scan.
        ages_years: Of the scan and of the target.
        sampling: How codes are chosen.
        num_samples: Drawn one beside the other; each age starts from the same seed, so that ages share their noise.
        seed: Of the draws.

    Raises:
        GenerationError: see `check_sampling`.
    """
    told = tell_at_age(
        model,
        given.tokens,
        ages_years,
        sampling=sampling,
        num_samples=num_samples,
        seed=seed,
        volume=given.volume,
    )
    decodes_codes = model.complete(sampling).decode == "codes"
    return BrainAtAge(
        age_years=ages_years[1],
        values=given.restore(told.volume),
        volume=told.volume,
        spread=None if told.spread is None else given.restore_spread(told.spread),
        changed_fraction=float((told.tokens != given.tokens).float().mean()) if decodes_codes else None,
    )


def tell_at_age(
    model: AgeingModel,
    tokens: Int[torch.Tensor, "1 token"],
    ages_years: tuple[float, float],
    *,
    sampling: SamplingConfig,
    num_samples: int = 1,
    seed: int = 0,
    volume: Volume | None = None,
) -> ToldVolume:
    """`generate_at_age` before it is laid back onto the scan: what evaluations look at.

    Args:
        model: Which.
        tokens: Of the scan, by the model's tokenizer.
        ages_years: Of the scan and of the target.
        sampling: How codes are chosen.
        num_samples: Drawn one beside the other.
        seed: Of the draws.
        volume: The scan itself, on the model's grid in [-1, 1], where its detail is asked for.

    Raises:
        GenerationError: see `check_sampling`; detail of a scan that is not given.
    """
    check_sampling(sampling, num_samples)
    sampling = model.complete(sampling)
    ages = torch.tensor([ages_years] * num_samples, dtype=torch.float32, device=model.device)
    made, told = _draw(model, tokens, ages, sampling, seed)
    if sampling.detail == "scan":
        if volume is None:
            raise GenerationError("the scan's detail is asked for without the scan", fix="volume=")
        now, _ = _draw(model, tokens, ages[:, :1].expand(-1, 2), sampling, seed)
        made = np.clip(volume + (made - now), -1, 1)
    return ToldVolume(
        volume=made.mean(0, dtype=np.float32),
        spread=made.std(0, ddof=1) if num_samples > 1 else None,
        tokens=told,
    )


def _draw(
    model: AgeingModel, tokens: torch.Tensor, ages: torch.Tensor, sampling: SamplingConfig, seed: int
) -> tuple[Float32[np.ndarray, "row x y z"], Int[torch.Tensor, "row token"]]:
    generator = torch.Generator(device=model.device).manual_seed(seed)
    told = generate_latent(model.transformer, model.tokenizer.quantiser, tokens, ages, sampling, generator=generator)
    made = torch.cat([model.tokenizer.decode_latent(one[None], slab=model.slab) for one in told.latent])
    return made.cpu().numpy(), told.tokens


def check_sampling(sampling: SamplingConfig, num_samples: int) -> None:
    """Raises GenerationError for draws that are none, would all be the same, or are narrowed where nothing is drawn."""
    if num_samples < 1:
        raise GenerationError("at least one sample is made", given=num_samples)
    if not math.isfinite(sampling.temperature):
        raise GenerationError("the temperature is no number", given=sampling.temperature, fix="1, or 0 to draw nothing")
    narrowed = sampling.top_k > 0 or sampling.top_p < 1
    if sampling.temperature == 0 and (num_samples > 1 or narrowed):
        raise GenerationError(
            "without a temperature the likeliest code is always taken, so nothing is drawn",
            given=f"{num_samples} samples, top-k {sampling.top_k}, top-p {sampling.top_p:g}",
            fix="--temperature 1",
        )


def _require_volume(model: AgeingModel, scan: Scan) -> None:
    if scan.is_timeseries:
        raise ScanError(
            "brains are generated from single volumes, not from time series",
            given=f"{scan.num_frames} frames",
            expected=f"a {model.card['modality']} volume",
        )


def mean_absolute(values: Volume, where: Bool[np.ndarray, "x y z"]) -> float:
    """Over these voxels; 0 where there are none."""
    return float(np.abs(values[where]).mean(dtype=np.float64)) if where.any() else 0.0


def find_own_brain(given: ScanInTokens) -> Bool[np.ndarray, "x y z"]:
    """What counts as brain, on the file's grid."""
    return given.lay(given.brain.astype(np.float32)) > 0.5


def measure_reconstruction(given: ScanInTokens, made: Volume) -> float:
    """Signal-to-noise ratio in decibels over the brain, of values in [0, 1], as in the tokenizer's training."""
    inside = fit_grid(given.brain, (given.volume.shape[0], given.volume.shape[1], given.volume.shape[2]))
    error = float(np.square((made - given.volume)[inside] / 2).mean(dtype=np.float64))
    return -10 * float(np.log10(max(error, 1e-10)))
