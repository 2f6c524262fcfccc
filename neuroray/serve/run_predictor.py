"""A model of windows that answers for runs: covering windows, averaged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from neuroray.platform.evaluate.window_model import WindowModel
from neuroray.platform.quality.run_motion import RunMotion, compare_motion, measure_motion
from neuroray.serve.age_gap import caution_gap, measure_gap
from neuroray.serve.caution import compare_spacing, find_faults, tell_unused
from neuroray.serve.maps import NUM_STEPS, AnswerMap, map_run
from neuroray.serve.prediction import ModelCard, Prediction, Said
from neuroray.storage.profiles.prepared import Prepared
from neuroray.storage.profiles.profile import Profile
from neuroray.storage.profiles.steps import prepare
from neuroray.storage.scan import Scan, ScanError

_FRAMES_AT_ONCE = 16
# Headers round repetition times to milliseconds.
_TIME_TOLERANCE = 1.01


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLook:
    """A run as a model sees it.

    Attributes:
        prepared: By its profile.
        motion: Of the head.
        notes: What speaks against the run.
    """

    prepared: Prepared
    motion: RunMotion
    notes: tuple[str, ...]


class RunPredictor:
    """A loaded model of windows; `predict` may be called any number of times, from one thread at a time.

    Attributes:
        card: What is told of the model.
    """

    def __init__(self, card: ModelCard, model: WindowModel, profile: Profile) -> None:
        self.card = card
        self._model = model
        self._profile = profile

    def predict(self, scan: Scan, *, sex: str | None = None, age_years: float | None = None) -> Prediction:
        """Answers for one run, as it was read; the same run gives the same answer.

        It goes through the profile of the training runs first, then through the model in windows that leave no frame
        out; what is told is their mean, and how much they differ.

        Args:
            scan: A run.
            sex: Not used, which is said where it is given.
            age_years: Of the person, where it is known: what a predicted age is held against. A model of something else
                does not use it, and says so.

        Raises:
            ScanError: a volume where a run is expected, or a run that the profile cannot prepare.
            ModelError: frames whose shape the model cannot take.
        """
        look = self.look(scan)
        return self.tell(look, self.say(look, sex=sex), sex=sex, age_years=age_years)

    @property
    def sees_as(self) -> str:
        """Models that see alike share their looks, and the profile's work."""
        return self.card.profile_sha256

    def look(self, scan: Scan) -> RunLook:
        """Prepares a run.

        Raises:
            ScanError: as `predict`.
        """
        self._require_run(scan)
        faults = find_faults(scan, self.card.modality)
        prepared = prepare(scan, self._profile)
        motion = _measure_motion(prepared)
        notes = (
            *faults,
            *compare_spacing(scan, self.card.spacing_mm),
            *self._compare_run(scan),
            *compare_motion(motion, self._model.card.get("runs", {}).get("motion")),
        )
        return RunLook(prepared=prepared, motion=motion, notes=notes)

    def say(self, look: RunLook, *, sex: str | None) -> Said:
        """The answer to what was seen; the sex makes no difference."""
        del sex
        return Said(targets=self._model.read(self._model.compute(self._model.cut(look.prepared))))

    def tell(self, look: RunLook, said: Said, *, sex: str | None, age_years: float | None) -> Prediction:
        """The answer with all that is to be known of it."""
        gap = measure_gap(said.targets, age_years, self.card.age_line, self.card.no_age_line)
        return Prediction(
            model=self.card,
            targets=said.targets,
            gap=gap,
            profile=self.card.profile,
            profile_sha256=self.card.profile_sha256,
            motion=look.motion,
            warnings=(
                *look.notes,
                *caution_gap(gap, self.card.age_line),
                *tell_unused(sex=sex, age_years=None if gap else age_years),
            ),
        )

    def explain(self, scan: Scan, *, num_steps: int = NUM_STEPS) -> AnswerMap:
        """What the answer for one run rests on; takes `num_steps` forward and backward passes of each window.

        Raises:
            ScanError: as `predict`.
            ExplainError: gradients that are no numbers.
        """
        self._require_run(scan)
        return map_run(self._model, prepare(scan, self._profile), num_steps=num_steps)

    def _require_run(self, scan: Scan) -> None:
        if not scan.is_timeseries:
            raise ScanError(
                f"this model answers for {self.card.modality} runs, not for single volumes",
                given=f"one volume of {' x '.join(map(str, scan.grid_shape))}",
                expected="a four-dimensional scan",
                fix=f"send the {self.card.modality} run of this person",
            )

    def _compare_run(self, scan: Scan) -> list[str]:
        """In what the run differs from those of the training."""
        facts, found = self._model.card.get("runs", {}), []
        grids = [tuple(grid) for grid in facts.get("grid_shapes", ())]
        if grids and scan.grid_shape not in grids:
            told = ", ".join(" x ".join(map(str, grid)) for grid in grids[:3])
            found.append(f"a grid of {' x '.join(map(str, scan.grid_shape))}; the model was trained on {told}")
        found += _compare_times(scan.repetition_time_s, facts.get("repetition_time_s"))
        wanted = self._model.num_frames
        if wanted is not None and scan.num_frames < wanted:
            found.append(f"{scan.num_frames} frames; the model looks at {wanted} at once, the others are left empty")
        return found


def _measure_motion(prepared: Prepared) -> RunMotion:
    """Of the run as it is stored when it is ingested, so that it compares with those of the training."""
    scan = prepared.scan

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, scan.num_frames, _FRAMES_AT_ONCE):
            yield np.asarray(scan.voxels[start : start + _FRAMES_AT_ONCE])

    x, y, z = scan.zooms_mm
    return measure_motion(blocks, (x, y, z), None if prepared.mask is None else np.asarray(prepared.mask))


def _compare_times(repetition_time_s: float | None, trained_s: list[float] | None) -> list[str]:
    if repetition_time_s is None:
        return ["the file does not say its repetition time: its frames may lie closer or farther than in training"]
    if trained_s is None:
        return []
    low, high = trained_s
    if low / _TIME_TOLERANCE <= repetition_time_s <= high * _TIME_TOLERANCE:
        return []
    trained = f"{low:g} s" if low == high else f"{low:g} to {high:g} s"
    return [f"a repetition time of {repetition_time_s:g} s; the model was trained on {trained}"]
