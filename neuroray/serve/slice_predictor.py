"""A model of slices that answers for volumes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from neuroray.platform.evaluate.slice_model import SliceModel, SliceView
from neuroray.platform.evaluate.window_model import TargetAnswer
from neuroray.platform.models.layers.slices import slice_positions_mm
from neuroray.serve.caution import compare_spacing, find_faults, tell_unused
from neuroray.serve.encoded_predictor import EncodedPredictor
from neuroray.serve.maps import NUM_STEPS, AnswerMap, map_slices
from neuroray.serve.prediction import ModelCard, Prediction, Said, SliceWeight
from neuroray.storage.scan import Scan, ScanError


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceLook:
    """A scan as a model sees it.

    Attributes:
        scan: As its profile has prepared it.
        view: Its slices, encoded.
        notes: What speaks against the scan.
    """

    scan: Scan
    view: SliceView
    notes: tuple[str, ...]


class SlicePredictor(EncodedPredictor[SliceModel, SliceLook]):
    """A loaded model of slices; `predict` may be called any number of times, from one thread at a time.

    Attributes:
        card: What is told of the model.
    """

    def look(self, scan: Scan) -> SliceLook:
        """Prepares and encodes a scan.

        Raises:
            ScanError: as `predict`.
            ModelError: as `predict`.
        """
        _require_volume(scan, self.card)
        faults = find_faults(scan, self.card.modality)
        scan = self._prepare(scan)
        with torch.inference_mode():
            view = self._model.encode(scan)
        notes = (*faults, *compare_spacing(scan, self.card.spacing_mm), *_tell_missing(view))
        return SliceLook(scan=scan, view=view, notes=notes)

    def say(self, look: SliceLook, *, sex: str | None) -> Said:
        """The answer to what was seen; the sex makes no difference."""
        del sex
        with torch.inference_mode():
            answer = self._model.answer(look.view)
        probabilities = dict(zip(self.card.classes, answer.probabilities.tolist(), strict=True))
        return Said(
            targets=(TargetAnswer(name=self.card.target, probabilities=probabilities),),
            slice_weights=answer.slice_weights.cpu().numpy(),
        )

    def tell(self, look: SliceLook, said: Said, *, sex: str | None, age_years: float | None) -> Prediction:
        """The answer with all that is to be known of it."""
        assert said.slice_weights is not None
        return Prediction(
            model=self.card,
            targets=said.targets,
            attention_axis=self._model.slices.axis,
            attention=self._weigh_slices(look.scan, look.view, said.slice_weights),
            profile=self.card.profile,
            profile_sha256=self.card.profile_sha256,
            warnings=(*look.notes, *tell_unused(sex=sex, age_years=age_years)),
        )

    def explain(self, scan: Scan, *, num_steps: int = NUM_STEPS) -> AnswerMap:
        """Slice attention, which needs no path and so no steps.

        Raises:
            ScanError: as `predict`.
        """
        _require_volume(scan, self.card)
        scan = self._prepare(scan)
        return map_slices(self._model, scan)

    def _weigh_slices(self, scan: Scan, view: SliceView, weights: np.ndarray) -> tuple[SliceWeight, ...]:
        mask = view.mask.cpu()
        index = view.slice_index.cpu()[mask].numpy()
        position_mm = slice_positions_mm(scan.grid_shape, scan.affine, self._model.slices, index)
        rows = zip(index.tolist(), position_mm.tolist(), weights[mask.numpy()].tolist(), strict=True)
        return tuple(SliceWeight(slice_index=i, position_mm=mm, weight=weight) for i, mm, weight in rows)


def _require_volume(scan: Scan, card: ModelCard) -> None:
    if scan.is_timeseries:
        raise ScanError(
            f"this model answers for {card.modality} volumes, not for time series",
            given=f"{scan.num_frames} frames",
            expected="a three-dimensional scan",
            fix=f"send the {card.modality} of this person",
        )


def _tell_missing(view: SliceView) -> tuple[str, ...]:
    num_missing = int((~view.mask).sum())
    if not num_missing:
        return ()
    return (f"{num_missing} of the slices that the model looks at lie outside this scan",)
