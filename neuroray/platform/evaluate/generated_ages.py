"""How old generated brains look to another model: a trained one, or a regression fitted on real scans."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from jaxtyping import Float

from neuroray.platform.baselines.volume_predictors import fit_components
from neuroray.platform.data.brain_volumes import restore_grid
from neuroray.platform.evaluate.age_evidence import is_age
from neuroray.platform.evaluate.ageing_evidence import AgeRead, JudgedPair, draw_pairs
from neuroray.platform.evaluate.ageing_regions import weigh_change
from neuroray.platform.evaluate.intervals import Estimate, estimate
from neuroray.platform.evaluate.loaded import load_measure_model
from neuroray.platform.evaluate.metrics import EvaluationError
from neuroray.platform.evaluate.number_evidence import name_group
from neuroray.platform.evaluate.slice_measure import SliceMeasureModel
from neuroray.platform.evaluate.visits import Visit
from neuroray.storage.profiles.agreement import read_model_profile
from neuroray.storage.scan import Scan

TARGET, PREVIOUS = "target", "previous"
_COARSE_MM: Final = 8.0
# Of fewer, a regression on their voxels says nothing.
_FEWEST_PEOPLE: Final = 8
# Grey values that a network of images expects; [-1, 1] become 0 to this.
_BRIGHTEST: Final = 1000.0


class AgeReader(Protocol):
    """Tells an age from a volume on the model's grid."""

    @property
    def label(self) -> str:
        """What it is."""
        ...

    def read(self, volume: Float[np.ndarray, "x y z"], visit: Visit) -> float:
        """Years; of the person and in the space of this visit."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RidgeAge:
    """Ridge regression on principal components of coarse voxels, of real scans of the training people alone."""

    predict: Callable[[Float[np.ndarray, "row column"]], Float[np.ndarray, " row"]]
    step: int

    @property
    def label(self) -> str:
        """What it is."""
        return "ridge regression on principal components of coarse voxels, fitted on the training people's real scans"

    def read(self, volume: Float[np.ndarray, "x y z"], visit: Visit) -> float:
        """Years."""
        return float(self.predict(coarsen_volume(volume, self.step)[None])[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class RunAge:
    """A trained model of slices that tells age.

    It is shown the brain alone, of real and of generated scans alike: what it says of either is to be compared with
    each other, and not with what it says of whole heads.
    """

    model: SliceMeasureModel
    label: str

    def read(self, volume: Float[np.ndarray, "x y z"], visit: Visit) -> float:
        """Years."""
        units = np.where(visit.brain, (volume + 1) * (_BRIGHTEST / 2), 0).astype(np.float32)
        voxels = restore_grid(units, visit.record.shape, fill=0)
        scan = Scan(voxels=voxels, affine=np.array(visit.record.affine, dtype=np.float64).reshape(4, 4))
        value = self.model.answer(self.model.encode(scan), visit.record.sex).value
        assert value is not None  # a measure has one
        return value


def fit_ridge_age(visits: Sequence[Visit], *, seed: int) -> RidgeAge | None:
    """The regression; None where there are too few people for one."""
    groups = [name_group(visit.record.subject, visit.record.family_id) for visit in visits]
    if len(set(groups)) < _FEWEST_PEOPLE:
        return None
    step = find_step(visits[0])
    inputs = np.stack([coarsen_volume(visit.volume, step) for visit in visits])
    ages = np.array([visit.age_years for visit in visits])
    return RidgeAge(predict=fit_components(inputs, ages, np.array(groups), seed=seed), step=step)


def load_run_age(run: str, card: Mapping[str, Any], *, device: str) -> RunAge:
    """A run of `brainrotvit` that tells age.

    Args:
        run: Its folder, or its model folder.
        card: Of the model that is judged: both must have been trained on scans that were prepared alike.
        device: Where to compute.

    Raises:
        EvaluationError: it tells no age, or was trained on scans that were prepared otherwise.
        StoreError: there is none, or it is damaged.
    """
    folder = Path(run) / "model" if (Path(run) / "model").is_dir() else Path(run)
    model = load_measure_model(folder, device=device)
    target = model.targets[0].name
    if not is_age(target):
        raise EvaluationError("this model tells no age", given=target, expected="age_years", fix="--age-model OTHER")
    own, wanted = read_model_profile(model.card), read_model_profile(card)
    if own.sha256 != wanted.sha256:
        raise EvaluationError(
            "the age model was trained on scans that were prepared otherwise",
            given=f"{own.name} ({own.sha256[:8]})",
            expected=f"{wanted.name} ({wanted.sha256[:8]})",
            fix="train it on the same store, or leave --age-model out",
        )
    digest = json.loads((folder / "config.json").read_text())["weights"]["sha256"]
    return RunAge(model=model, label=f"{model.card['model_name']} ({digest[:8]})")


def find_step(visit: Visit) -> int:
    """So many voxels of the grid along each axis make a coarse one."""
    return max(1, round(_COARSE_MM / float(np.mean(visit.record.zooms_mm[:3]))))


def coarsen_volume(volume: Float[np.ndarray, "x y z"], step: int) -> Float[np.ndarray, " column"]:
    """Means over cubes; what is left over behind the last whole one is left out."""
    x, y, z = (length // step * step for length in volume.shape)
    cubes = volume[:x, :y, :z].reshape(x // step, step, y // step, step, z // step, step)
    return cubes.mean(axis=(1, 3, 5), dtype=np.float64).ravel()


def weigh_read_ages(
    judged: Sequence[JudgedPair], rows: Sequence[str], label: str, *, seed: int, num_resamples: int
) -> AgeRead:
    """Every row and the real follow-up, over pairs."""
    resamples = draw_pairs(judged, seed=seed, num_resamples=num_resamples)
    ages, gaps = (np.array(values) for values in zip(*_ages(judged), strict=True))
    found = {}
    for row in (TARGET, *rows):
        told = np.array([one.predicted_ages_years[row] for one in judged])
        starts = np.array([_start(one, row) for one in judged])
        found[row] = weigh_change(ages, told, resamples) | _weigh_rate(gaps, told - starts, resamples)
    return AgeRead(label=label, rows=found)


def _start(one: JudgedPair, row: str) -> float:
    """What is read off what the row tells of the scan's own age; of the real follow-up, off the previous scan."""
    return one.predicted_ages_years[PREVIOUS] if row == TARGET else one.predicted_starts_years[row]


def _ages(judged: Sequence[JudgedPair]) -> list[tuple[float, float]]:
    return [(one.pair.ages_years[1], one.pair.gap_years) for one in judged]


def _weigh_rate(
    gaps: Float[np.ndarray, " pair"], older: Float[np.ndarray, " pair"], resamples: Float[np.ndarray, "resample pair"]
) -> dict[str, Estimate]:
    """Least squares through no years at no gap."""

    def weigh(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {"years_per_year": weights @ (gaps * older) / (weights @ gaps**2)}

    return estimate(weigh, resamples)
