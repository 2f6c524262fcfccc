"""What a model of brains at other ages must beat: the training people's mean change, in voxels and in latent space."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32

from neuroray.platform.baselines.errors import BaselineError
from neuroray.platform.evaluate.ageing_rows import Told
from neuroray.platform.evaluate.visits import Visit, VisitPair
from neuroray.platform.models.neuroar.vqvae import VQVAE

Read = Callable[..., Visit]

POPULATION, LATENT = "population", "latent"
BRAIN_CHANGE_LABELS = {
    POPULATION: "Population: the training people's mean change of each voxel, by gap and age",
    LATENT: "Linear: the training people's mean rate in the tokenizer's latent space",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PopulationChange:
    """A regression, voxel by voxel, of the change on the gap and on the gap times the age, through no change at no gap.

    Attributes:
        coefficients: `2 x y z`: per year at the mean age, and per year and year of age.
        mean_age_years: Of the training pairs.
    """

    coefficients: Float32[np.ndarray, "2 x y z"]
    mean_age_years: float

    @property
    def name(self) -> str:
        """Of its row."""
        return POPULATION

    def tell(self, visit: Visit, age_years: float) -> Told:
        """The scan plus the mean change, within the range of values."""
        first, second = _regressors((visit.age_years, age_years), self.mean_age_years)
        change = np.float32(first) * self.coefficients[0] + np.float32(second) * self.coefficients[1]
        volume = np.clip(visit.volume + change, -1, 1)
        return Told(volume=np.where(visit.brain, volume, -1).astype(np.float32), start=visit.volume)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentChange:
    """One rate of change per year in the latent space before quantisation, the same for everybody.

    As the population's prior of MRExtrap (arXiv 2508.19482), which is all that one scan of a person leaves of it.

    Attributes:
        tokenizer: Whose latents, in eval mode.
        rate: `1 channel x y z`, per year.
    """

    tokenizer: VQVAE
    rate: Float[torch.Tensor, "1 channel x y z"]

    @property
    def name(self) -> str:
        """Of its row."""
        return LATENT

    def tell(self, visit: Visit, age_years: float) -> Told:
        """The person's latent moved on, and decoded."""
        latent = find_latent(self.tokenizer, visit)
        moved = latent + (age_years - visit.age_years) * self.rate
        return Told(volume=self._decode(moved), start=self._decode(latent))

    def _decode(self, latent: Float[torch.Tensor, "1 channel x y z"]) -> Float32[np.ndarray, "x y z"]:
        return self.tokenizer.decode_latent(latent)[0].cpu().numpy()


def fit_population_change(pairs: Iterable[VisitPair], read: Read) -> PopulationChange:
    """Least squares over the training pairs, read one after the other: two volumes of sums are all that is kept.

    Raises:
        BaselineError: no pairs.
    """
    pairs = list(pairs)
    _require(pairs)
    mean_age = float(np.mean([np.mean(pair.ages_years) for pair in pairs]))
    regressors = np.array([_regressors(pair.ages_years, mean_age) for pair in pairs])
    products = np.zeros((2, *read(pairs[0].previous).volume.shape))
    for pair, row in zip(pairs, regressors, strict=True):
        products += np.multiply.outer(row, read(pair.target).volume - read(pair.previous).volume)
    # The least solution where all pairs have one gap and age, so that nothing is made up from rounding.
    solved = np.tensordot(np.linalg.pinv(regressors.T @ regressors, rcond=1e-10), products, axes=1)
    return PopulationChange(coefficients=solved.astype(np.float32), mean_age_years=mean_age)


def fit_latent_change(pairs: Iterable[VisitPair], read: Read, tokenizer: VQVAE) -> LatentChange:
    """The rate of least squares through no change at no gap.

    Raises:
        BaselineError: no pairs.
    """
    pairs = list(pairs)
    _require(pairs)
    total, weight = None, 0.0
    for pair in pairs:
        change = find_latent(tokenizer, read(pair.target)) - find_latent(tokenizer, read(pair.previous))
        part = pair.gap_years * change
        total = part if total is None else total + part
        weight += pair.gap_years**2
    assert total is not None
    return LatentChange(tokenizer=tokenizer, rate=total / weight)


def find_latent(tokenizer: VQVAE, visit: Visit) -> Float[torch.Tensor, "1 channel x y z"]:
    """What the quantiser is given."""
    volume = torch.from_numpy(visit.volume)[None].to(next(tokenizer.parameters()).device)
    return tokenizer.encode_latent(volume)


def _regressors(ages_years: tuple[float, float], mean_age_years: float) -> tuple[float, float]:
    gap = ages_years[1] - ages_years[0]
    return gap, gap * (float(np.mean(ages_years)) - mean_age_years)


def _require(pairs: list[VisitPair]) -> None:
    if not pairs:
        raise BaselineError("there are no training pairs to learn a change from", expected="people with two visits")
