"""What a NeuroAR model is asked of a scan: held against its training, then told with all that speaks against it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from neuroray.platform.data.brain_place import LIKENESS_MARGIN
from neuroray.platform.generate.ageing_model import AgeingModel
from neuroray.platform.generate.ages import GenerationError, check_ages, compare_ages, compare_diagnosis
from neuroray.platform.generate.change_map import map_change
from neuroray.platform.generate.generated import ScanInTokens, check_sampling, encode_prepared, read_tokens_of
from neuroray.platform.generate.sweep import AgesAsked, AgeSweep, add_present, sweep_ages
from neuroray.platform.generate.sweep_pictures import draw_change
from neuroray.platform.models.neuroar.generate import require_guidance
from neuroray.serve.caution import compare_spacing, find_faults, tell_unused
from neuroray.serve.maps import NUM_STEPS, AnswerMap
from neuroray.serve.prediction import ModelCard, Prediction
from neuroray.storage.profiles.prepared import Prepared
from neuroray.storage.profiles.profile import Profile
from neuroray.storage.scan import Scan

# Beyond what the training's own scans differ by, and short of what is refused.
_OVERLAP_MARGIN: Final = 0.03
_LIKENESS_MARGIN: Final = LIKENESS_MARGIN / 2


def check_asked(model: AgeingModel, asked: AgesAsked) -> tuple[str, ...]:
    """What of the question the training has not seen, in words; needs no scan.

    Raises:
        GenerationError: ages or a diagnosis outside the training, where they are not allowed; draws that are none.
        ConfigError: guidance of a model that learned from no hidden rows.
    """
    check_sampling(asked.sampling, asked.num_samples)
    require_guidance(model.transformer.config, asked.sampling)
    ages = compare_ages(asked.age_years, asked.target_ages_years, model.card, allow_outside=asked.allow_outside)
    return (*ages, *compare_diagnosis(asked.diagnosis, model.card, allow_outside=asked.allow_outside))


def tell_ages(
    model: AgeingModel, profile: Profile, scan: Scan, asked: AgesAsked, *, track: Iterable[float] | None = None
) -> AgeSweep:
    """The brain of a scan at each age.

    Args:
        model: Which.
        profile: That of its training scans.
        scan: As it was read.
        asked: The ages and how they are told.
        track: The target ages, where somebody watches them go by.

    Raises:
        GenerationError: as `check_asked`.
        ScanError: no single volume, or one that the profile cannot prepare.
        PlanError: a brain without spread, larger than the grid, or elsewhere than those of the training.
    """
    notes = check_asked(model, asked)
    given = read_tokens_of(model, scan, profile)
    faults = find_faults(scan, model.card["modality"])
    warnings = (*faults, *_find_doubts(scan, given), *_compare(given, model), *_judge_place(given, model), *notes)
    return sweep_ages(model, given, asked, warnings=warnings, track=track)


def tell_ages_of_stored(model: AgeingModel, prepared: Prepared, asked: AgesAsked) -> AgeSweep:
    """The brain of a store's scan at each age, on the grid of the file that it was read from.

    Args:
        model: Which.
        prepared: The scan, prepared as those of the training were, with what the store knows about it.
        asked: The ages and how they are told.

    Raises:
        GenerationError: as `check_asked`.
        ScanError: no single volume.
        PlanError: a brain without spread, larger than the grid, or elsewhere than those of the training.
    """
    notes = check_asked(model, asked)
    given = encode_prepared(model, prepared)
    told = (*prepared.scan.flags, *_compare(given, model), *_judge_place(given, model), *notes)
    return sweep_ages(model, given, asked, warnings=told)


class AgeingPredictor:
    """A loaded NeuroAR; may be asked any number of times, from one thread at a time.

    Attributes:
        card: What is told of the model.
    """

    def __init__(self, card: ModelCard, model: AgeingModel, profile: Profile) -> None:
        self.card = card
        self._model = model
        self._profile = profile

    def predict(self, scan: Scan, *, sex: str | None = None, age_years: float | None = None) -> Prediction:
        """Nothing is told of a scan without other ages: see `tell_ages`.

        Raises:
            GenerationError: always.
        """
        check_ages(age_years, ())
        raise AssertionError

    def tell_ages(self, scan: Scan, asked: AgesAsked) -> AgeSweep:
        """The brain at each age; the scan is prepared and encoded once for all of them. See `tell_ages`."""
        return tell_ages(self._model, self._profile, scan, asked)

    def map_change(self, sweep: AgeSweep) -> AnswerMap:
        """The change per year over the present age and those told; see `map_change`.

        Raises:
            GenerationError: no other age than the present one.
        """
        found = map_change(add_present(self._model, sweep))
        png = draw_change(sweep, found.values)
        return AnswerMap(values=found.values, grid=sweep.given.own_grid, png=png, facts=found.to_json())

    def tell(self, sweep: AgeSweep, *, sex: str | None = None) -> Prediction:
        """Who answered, and with what warnings."""
        return Prediction(
            model=self.card,
            targets=(),
            profile=self.card.profile,
            profile_sha256=self.card.profile_sha256,
            warnings=(*sweep.warnings, *tell_unused(sex=sex)),
        )

    def explain(self, scan: Scan, *, num_steps: int = NUM_STEPS) -> AnswerMap:
        """There is no map without other ages: see `map_change`.

        Raises:
            GenerationError: always.
        """
        raise GenerationError("a change per year needs other ages", given="none", fix="--ages 65 70 75 80")


def _find_doubts(scan: Scan, given: ScanInTokens) -> tuple[str, ...]:
    """What the profile had to say of the scan, such as of its alignment."""
    return tuple(flag for flag in given.prepared.flags if flag not in scan.flags)


def _compare(given: ScanInTokens, model: AgeingModel) -> tuple[str, ...]:
    low, high = model.card["spacing_mm"]
    return compare_spacing(given.prepared, ((low[0], low[1], low[2]), (high[0], high[1], high[2])))


def _judge_place(given: ScanInTokens, model: AgeingModel) -> tuple[str, ...]:
    """How far from those of the training the brain lies, where it is not far enough to be refused."""
    place, found = model.place, given.placement
    if place is None or found is None:
        return ("the model does not say where the brains of its training lay: whether this one does was not checked",)
    if place.least_likeness is None:
        least, near = f"{place.least:.2f}", found.overlap >= place.least - _OVERLAP_MARGIN
    else:
        least = f"{place.least:.2f} and {place.least_likeness:.3f}"
        near = found.likeness >= place.least_likeness - _LIKENESS_MARGIN
    if near:
        return ()
    return (f"the brain lies among those of the training with {found}, theirs with {least} or more: look at it",)
