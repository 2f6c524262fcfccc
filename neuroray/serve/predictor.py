"""A trained model as one object that answers for scans: loaded once, no HTTP and no Ray in here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from neuroray.errors import NeurorayError
from neuroray.platform.evaluate.loaded import LoadedModel, SliceView, load_model
from neuroray.platform.models.layers.slices import slice_positions_mm
from neuroray.storage.locations import Location
from neuroray.storage.profiles.agreement import read_model_profile
from neuroray.storage.profiles.profile import NATIVE, Profile
from neuroray.storage.profiles.steps import prepare
from neuroray.storage.scan import Scan, ScanError

_CONFIG_FILE = "config.json"
_EXPORT_FOLDER = "model"
_FORMAT = 1
_VERSION_DIGITS = 12

# Headers round voxel sizes by about a percent; what differs by less is the same.
_SPACING_TOLERANCE = 1.02
# A whole adult head with its neck is 150 to 300 mm long in every direction; less is a part of one, more is no head.
_FIELD_OF_VIEW_MM = (120.0, 330.0)
# An image of a head has hundreds of grey values, a segmentation at most about two hundred labels.
_FEWEST_VALUES = 32

_Bounds = tuple[tuple[float, ...], tuple[float, ...]]


class PredictorError(NeurorayError, ValueError):
    """A folder that holds no model that this version can answer with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What is told of a model beside its answers.

    Attributes:
        model_name: The architecture.
        version: The first digits of the SHA-256 of its weights: equal versions are equal models.
        classes: In the order of the logits.
        target: What the classes are values of.
        modality: BIDS suffix of the scans it was trained on.
        profile: Name of the preprocessing profile of its training scans.
        profile_sha256: Hash of that profile.
        spacing_mm: Smallest and largest voxel size along x, y, z among its training scans; None: not recorded.
        fingerprints: SHA-256 digests (hex) of weights, encoder and feature recipe, as far as the folder tells them.
    """

    model_name: str
    version: str
    classes: tuple[str, ...]
    target: str
    modality: str
    profile: str
    profile_sha256: str
    spacing_mm: _Bounds | None
    fingerprints: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceWeight:
    """How much one slice counted.

    Attributes:
        slice_index: Along the slice axis of the scan in RAS+ order, as its profile has prepared it.
        position_mm: World coordinate, along that axis, of the middle of the slice.
        weight: Attention weight; those of a scan sum to 1.
    """

    slice_index: int
    position_mm: float
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The answer for one scan.

    Attributes:
        model: Who answered.
        label: The most probable class.
        probabilities: Class to probability; they sum to 1.
        attention_axis: The plane of the slices: axial, coronal or sagittal.
        attention: One entry per slice that the model looked at.
        profile: Name of the preprocessing profile that the scan went through, that of the training scans.
        profile_sha256: Hash of that profile.
        warnings: Why the answer may deserve less trust, in plain words.
    """

    model: ModelCard
    label: str
    probabilities: dict[str, float]
    attention_axis: str
    attention: tuple[SliceWeight, ...]
    profile: str
    profile_sha256: str
    warnings: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """In the order of the model's outputs."""
        return self.model.classes

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return dataclasses.asdict(self)


class Predictor:
    """A loaded model of slices; `predict` may be called any number of times, from one thread at a time.

    Attributes:
        card: What is told of the model.
    """

    def __init__(self, card: ModelCard, model: LoadedModel, profile: Profile) -> None:
        self.card = card
        self._model = model
        self._profile = profile

    def predict(self, scan: Scan) -> Prediction:
        """Answers for one scan, as it was read; the same scan gives the same answer.

        It goes through the profile of the training scans first.

        Raises:
            ScanError: a time series where a volume is expected, or a scan that the profile cannot prepare.
            ModelError: a volume whose shape the model cannot take.
        """
        _require_volume(scan, self.card)
        warnings = _find_warnings_as_read(scan)
        if self._profile.name != NATIVE:
            scan = prepare(scan, self._profile).scan
        with torch.inference_mode():
            view = self._model.encode(scan)
            answer = self._model.answer(view)
        probabilities = dict(zip(self.card.classes, answer.probabilities.tolist(), strict=True))
        return Prediction(
            model=self.card,
            label=max(probabilities, key=lambda name: probabilities[name]),
            probabilities=probabilities,
            attention_axis=self._model.slices.axis,
            attention=self._weigh_slices(scan, view, answer.slice_weights),
            profile=self.card.profile,
            profile_sha256=self.card.profile_sha256,
            warnings=warnings + _find_warnings(scan, self.card, num_missing_slices=int((~view.mask).sum())),
        )

    def _weigh_slices(self, scan: Scan, view: SliceView, weights: torch.Tensor) -> tuple[SliceWeight, ...]:
        mask = view.mask.cpu()
        index = view.slice_index.cpu()[mask].numpy()
        position_mm = slice_positions_mm(scan.grid_shape, scan.affine, self._model.slices, index)
        rows = zip(index.tolist(), position_mm.tolist(), weights.cpu()[mask].tolist(), strict=True)
        return tuple(SliceWeight(slice_index=i, position_mm=mm, weight=weight) for i, mm, weight in rows)


def load_predictor(uri: str, *, device: str = "cpu") -> Predictor:
    """Loads a trained model, ready to answer.

    Args:
        uri: A RUN folder (its exported best model is taken) or an exported model folder; a path or `s3://`, `gs://`.
        device: Where to compute, as torch names it.

    Raises:
        PredictorError: the folder holds no model, or one of an architecture or format that this version does not know.
        ProfileError: scans cannot be prepared here as those of the training were.
        StoreError: the folder is incomplete, or its weights are not those that were saved.
    """
    folder, config = _find_model(uri)
    profile = read_model_profile(config).restore()
    return _LOADERS[config["model_name"]](folder, _make_card(config, uri), profile, device)


def read_model_card(uri: str) -> ModelCard:
    """What `load_predictor(uri).card` will be, without loading the weights.

    Raises:
        PredictorError: as `load_predictor`.
    """
    return _make_card(_find_model(uri)[1], uri)


def _load_slice_model(folder: Location, card: ModelCard, profile: Profile, device: str) -> Predictor:
    return Predictor(card, load_model(folder, device=device), profile)


_LOADERS: dict[str, Callable[[Location, ModelCard, Profile, str], Predictor]] = {
    "dinoatten3d": _load_slice_model,
}


def _find_model(uri: str) -> tuple[Location, dict[str, Any]]:
    """The folder of the weights and what stands in its config."""
    given = Location(uri)
    for folder in (given.child(_EXPORT_FOLDER), given):
        if folder.exists(_CONFIG_FILE):
            config = json.loads(folder.read_bytes(_CONFIG_FILE))
            _check_config(config, uri)
            return folder, config
    raise PredictorError(
        f"there is no model in {given.uri}",
        expected=f"a RUN folder with {_EXPORT_FOLDER}/{_CONFIG_FILE}, or an exported model folder",
        fix="name the folder that `neuroray train --out` wrote, after the training has ended",
    )


def _check_config(config: dict[str, Any], uri: str) -> None:
    if config.get("format") != _FORMAT:
        # A run's own config.json is its recipe, which has no format: the run has not exported a model yet.
        raise PredictorError(
            f"{uri} holds no finished model",
            given=f"format {config.get('format')}",
            expected=f"format {_FORMAT}",
            fix="let the training end, or use the version of neuroray that wrote this folder",
        )
    if config.get("model_name") not in _LOADERS:
        raise PredictorError(
            "this version cannot answer with this model",
            given=config.get("model_name"),
            expected=f"one of {', '.join(_LOADERS)}",
        )


def _make_card(config: dict[str, Any], uri: str) -> ModelCard:
    try:
        weights_sha256, spacing_mm = config["weights"]["sha256"], config.get("spacing_mm")
        profile = read_model_profile(config)
        others = {name: config[name] for name in ("encoder_sha256", "feature_fingerprint") if config.get(name)}
        return ModelCard(
            model_name=config["model_name"],
            version=weights_sha256[:_VERSION_DIGITS],
            classes=tuple(config["classes"]),
            target=config["target"],
            modality=config["modality"],
            profile=profile.name,
            profile_sha256=profile.sha256,
            spacing_mm=None if spacing_mm is None else (tuple(spacing_mm[0]), tuple(spacing_mm[1])),
            fingerprints={"weights_sha256": weights_sha256, **others},
        )
    except (KeyError, TypeError, IndexError) as fault:
        raise PredictorError(f"{_CONFIG_FILE} in {uri} is not whole", given=f"{type(fault).__name__} {fault}") from None


def _require_volume(scan: Scan, card: ModelCard) -> None:
    if scan.is_timeseries:
        raise ScanError(
            f"this model answers for {card.modality} volumes, not for time series",
            given=f"{scan.num_frames} frames",
            expected="a three-dimensional scan",
            fix=f"send the {card.modality} of this person",
        )


def _find_warnings_as_read(scan: Scan) -> tuple[str, ...]:
    """What speaks against the file, whatever is made of it."""
    warnings = list(scan.flags)
    field_mm = tuple(count * zoom for count, zoom in zip(scan.grid_shape, scan.zooms_mm, strict=True))
    shortest, longest = _FIELD_OF_VIEW_MM
    if min(field_mm) < shortest or max(field_mm) > longest:
        warnings.append(f"a field of view of {_tell_mm(field_mm)}, which is not that of a whole head")
    if len(np.unique(scan.voxels[::2, ::2, ::2])) < _FEWEST_VALUES:
        warnings.append(f"fewer than {_FEWEST_VALUES} different values: this looks like a segmentation, not an image")
    return tuple(warnings)


def _find_warnings(scan: Scan, card: ModelCard, *, num_missing_slices: int) -> tuple[str, ...]:
    """What speaks against the scan as the model sees it."""
    warnings = []
    zooms_mm = scan.zooms_mm
    if card.spacing_mm is not None and not _is_within(zooms_mm, card.spacing_mm):
        low, high = (_tell_mm(bound) for bound in card.spacing_mm)
        warnings.append(f"voxels of {_tell_mm(zooms_mm)}; the model was trained on {low} to {high}")
    if num_missing_slices:
        warnings.append(f"{num_missing_slices} of the slices that the model looks at lie outside this scan")
    return tuple(warnings)


def _is_within(zooms_mm: tuple[float, ...], bounds: _Bounds) -> bool:
    low, high = bounds
    return all(
        least / _SPACING_TOLERANCE <= zoom <= most * _SPACING_TOLERANCE
        for zoom, least, most in zip(zooms_mm, low, high, strict=True)
    )


def _tell_mm(lengths: tuple[float, ...]) -> str:
    return " x ".join(f"{length:.3g}" for length in lengths) + " mm"
