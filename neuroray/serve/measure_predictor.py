"""A model of slices that tells a measure, an age say, or classes, of volumes; it may take the sex into account."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from neuroray.platform.evaluate.slice_measure import SliceMeasureModel
from neuroray.platform.evaluate.window_model import TargetAnswer
from neuroray.serve.age_gap import caution_gap, measure_gap
from neuroray.serve.caution import compare_spacing, find_faults, tell_unused
from neuroray.serve.encoded_predictor import EncodedPredictor
from neuroray.serve.maps import NUM_STEPS, AnswerMap, map_measure
from neuroray.serve.prediction import Prediction, Said
from neuroray.storage.scan import Scan


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureLook:
    """A scan as a model sees it.

    Attributes:
        features: The map of its slices.
        notes: What speaks against the scan.
    """

    features: Float[Tensor, "slice channel"]
    notes: tuple[str, ...]


class MeasurePredictor(EncodedPredictor[SliceMeasureModel, MeasureLook]):
    """A loaded model; `predict` may be called any number of times, from one thread at a time.

    Attributes:
        card: What is told of the model.
    """

    def look(self, scan: Scan) -> MeasureLook:
        """Prepares and encodes a scan.

        Raises:
            ScanError: as `predict`.
            ModelError: as `predict`.
        """
        faults = find_faults(scan, self.card.modality)
        scan = self._prepare(scan)
        notes = (*faults, *compare_spacing(scan, self.card.spacing_mm))
        return MeasureLook(features=self._model.encode(scan), notes=notes)

    def say(self, look: MeasureLook, *, sex: str | None) -> Said:
        """The answer to what was seen."""
        answer = self._model.answer(look.features, sex)
        if sex in ("M", "F"):
            return Said(targets=(answer,))
        male, female = (_tell_number(self._model.answer(look.features, one)) for one in "MF")
        return Said(targets=(answer,), by_sex=(male, female))

    def tell(self, look: MeasureLook, said: Said, *, sex: str | None, age_years: float | None) -> Prediction:
        """The answer with all that is to be known of it."""
        del sex  # what was not told of it stands in what was said
        gap = measure_gap(said.targets, age_years, self.card.age_line, self.card.no_age_line)
        notes = [*look.notes, *self._compare_range(said.targets[0]), *caution_gap(gap, self.card.age_line)]
        notes += tell_unused(age_years=None if gap else age_years)
        if said.by_sex is not None:
            male, female = said.by_sex
            digits, of = (".2f", f", the probability of {self.card.classes[-1]}") if self.card.classes else (".1f", "")
            both = f"{male:{digits}} for a man and {female:{digits}} for a woman{of}"
            notes.append(f"the sex is not known: the answer is the mean of {both}")
        return Prediction(
            model=self.card,
            targets=said.targets,
            gap=gap,
            profile=self.card.profile,
            profile_sha256=self.card.profile_sha256,
            warnings=tuple(notes),
        )

    def explain(self, scan: Scan, *, num_steps: int = NUM_STEPS) -> AnswerMap:
        """Gradient times token, which needs no path and so no steps; the sex does not change it.

        Raises:
            ScanError: as `predict`.
            ExplainError: an encoder without tokens.
            ModelError: a volume in which nothing stands out.
        """
        del num_steps
        scan = self._prepare(scan)
        return map_measure(self._model.settle(scan, None), scan)

    def _compare_range(self, answer: TargetAnswer) -> list[str]:
        """Whether the answer lies among those of the people it was trained on."""
        low, high = self._model.card.get("people", {}).get("target_range", (float("-inf"), float("inf")))
        if answer.value is None or low <= answer.value <= high:
            return []
        unit = f" {answer.unit}" if answer.unit else ""
        return [f"{answer.value:.1f}{unit} lies beyond the people of the training, {low:g} to {high:g}{unit}"]


def _tell_number(answer: TargetAnswer) -> float:
    """The measure, or the probability of the last class."""
    if answer.value is not None:
        return answer.value
    return list(answer.probabilities.values())[-1]
