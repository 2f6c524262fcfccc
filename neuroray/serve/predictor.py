"""A trained model as one object that answers for scans: loaded once, no HTTP and no Ray in here."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any, Final, Protocol

import numpy as np

from neuroray.errors import NeurorayError
from neuroray.platform.evaluate.age_evidence import is_age
from neuroray.platform.evaluate.ensemble import Member, find_members, read_ensemble_calibration
from neuroray.platform.evaluate.loaded import CARD_FORMATS, load_measure_model, load_slice_model, load_window_model
from neuroray.platform.generate.ageing_model import CARD_FORMATS as AGEING_FORMATS
from neuroray.platform.generate.ageing_model import load_ageing_model
from neuroray.serve.age_gap import find_line
from neuroray.serve.ageing import AgeingPredictor
from neuroray.serve.ensemble_predictor import EnsemblePredictor
from neuroray.serve.maps import AnswerMap
from neuroray.serve.measure_predictor import MeasurePredictor
from neuroray.serve.prediction import AgeingFacts, ModelCard, Prediction, TargetCard
from neuroray.serve.run_predictor import RunPredictor
from neuroray.serve.slice_predictor import SlicePredictor
from neuroray.storage.locations import Location
from neuroray.storage.profiles.agreement import read_model_profile
from neuroray.storage.profiles.profile import Profile
from neuroray.storage.scan import Scan

_CONFIG_FILE = "config.json"
_EXPORT_FOLDER = "model"
_VERSION_DIGITS = 12


class PredictorError(NeurorayError, ValueError):
    """A folder that holds no model that this version can answer with."""


class Predictor(Protocol):
    """A loaded model; `predict` may be called any number of times, from one thread at a time."""

    @property
    def card(self) -> ModelCard:
        """What is told of the model."""
        ...

    def predict(self, scan: Scan, *, sex: str | None = None, age_years: float | None = None) -> Prediction:
        """Answers for one scan, as it was read; the same scan gives the same answer.

        It goes through the profile of the training scans first.

        Args:
            scan: A volume or a run, as the model was trained on.
            sex: `M` or `F` of the person, where it is known.
            age_years: Of the person at the time of the scan, where it is known.

        Raises:
            ScanError: a run where a volume is expected or the other way round, or a scan that the profile cannot
                prepare.
            ModelError: a scan whose shape the model cannot take.
        """
        ...

    def explain(self, scan: Scan, *, num_steps: int = ...) -> AnswerMap:
        """What the answer for one scan rests on: slice attention, or Integrated Gradients in so many steps.

        Raises:
            ScanError: as `predict`.
        """
        ...


def load_predictor(uri: str, *, device: str = "cpu") -> Predictor:
    """Loads a trained model, ready to answer.

    Args:
        uri: A RUN folder (its exported best model is taken; where it holds seeds or folds, they answer together) or an
            exported model folder; a path or `s3://`, `gs://`.
        device: Where to compute, as torch names it.

    Raises:
        PredictorError: the folder holds no model, or one of an architecture or format that this version does not know.
        ProfileError: scans cannot be prepared here as those of the training were.
        StoreError: the folder is incomplete, or its weights are not those that were saved.
    """
    members = _find_members(uri)
    if members:
        return _load_ensemble(uri, members, device)
    folder, config = _find_model(uri)
    card = _make_card(config, uri)
    profile = read_model_profile(config).restore()
    return _LOADERS[config["model_name"]](folder, card, profile, device)


def read_model_card(uri: str) -> ModelCard:
    """What `load_predictor(uri).card` will be, without loading the weights.

    Raises:
        PredictorError: as `load_predictor`.
    """
    members = _find_members(uri)
    if members:
        return _make_ensemble_card([_find_model(_below(uri, member))[1] for member in members], uri)
    return _make_card(_find_model(uri)[1], uri)


def _find_members(uri: str) -> tuple[Member, ...]:
    """As `find_ensemble`.

    Raises:
        PredictorError: trainings of brains at other ages, whose mean would be a blur and no brain.
    """
    members = find_ensemble(uri)
    if members and _find_model(_below(uri, members[0]))[1]["model_name"] == "neuroar":
        raise PredictorError(
            f"{uri} holds {len(members)} trainings that tell brains, whose mean would be none",
            given=", ".join(member.path for member in members),
            fix=f"name one of them: {_below(uri, members[0])}",
        )
    return members


def find_ensemble(uri: str) -> tuple[Member, ...]:
    """The trainings that answer together for a run folder; none where it holds a model of its own.

    Raises:
        PredictorError: a folder of one training alone, which is no ensemble.
    """
    given = Location(uri)
    if given.exists(f"{_EXPORT_FOLDER}/{_CONFIG_FILE}") or given.exists(_CONFIG_FILE):
        return ()
    members = find_members(given)
    if len(members) == 1:
        fix = f"name it: {_below(uri, members[0])}"
        raise PredictorError(f"{uri} holds one training in a folder of its own", given=members[0].path, fix=fix)
    return members


def _load_ensemble(uri: str, members: Sequence[Member], device: str) -> Predictor:
    opened = [_find_model(_below(uri, member)) for member in members]
    configs = [config for _, config in opened]
    card = _make_ensemble_card(configs, uri)
    profile = read_model_profile(configs[0]).restore()
    loaded: list[Any] = []
    for folder, config in opened:
        one: Any = _LOADERS[config["model_name"]](folder, card, profile, device)
        # As soon as it is loaded, so that no more than two encoders are in memory at a time.
        alike = next((other for other in loaded if other.sees_as == one.sees_as), None)
        if alike is not None and hasattr(one, "share_encoder"):
            one.share_encoder(alike)
        loaded.append(one)
    calibration, reason = read_ensemble_calibration(Location(uri), card.members)
    return EnsemblePredictor(card, loaded, members, calibration, reason)


def _below(uri: str, member: Member) -> str:
    return Location(uri).child(*member.path.split("/")).uri


def _make_ensemble_card(configs: Sequence[dict[str, Any]], uri: str) -> ModelCard:
    """What the members have in common.

    Raises:
        PredictorError: members of different models, targets, classes or preprocessing.
    """
    cards = [_make_card(config, uri) for config in configs]
    first = cards[0]
    for name in ("model_name", "classes", "targets", "modality", "profile_sha256"):
        if any(getattr(card, name) != getattr(first, name) for card in cards):
            raise PredictorError(
                f"the trainings in {uri} cannot answer together", given=f"they differ in {name}", fix="name one of them"
            )
    weights = tuple(card.fingerprints["weights_sha256"] for card in cards)
    together = hashlib.sha256(" ".join(weights).encode()).hexdigest()
    common = dict(set.intersection(*(set(card.fingerprints.items()) for card in cards)))
    bounds = [card.spacing_mm for card in cards if card.spacing_mm is not None]
    spacing_mm = None
    if len(bounds) == len(cards):
        low, high = (np.array([bound[side] for bound in bounds]) for side in (0, 1))
        spacing_mm = (tuple(low.min(axis=0).tolist()), tuple(high.max(axis=0).tolist()))
    return dataclasses.replace(
        first,
        version=together[:_VERSION_DIGITS],
        fingerprints={**common, "weights_sha256": together},
        spacing_mm=spacing_mm,
        members=weights,
        **(_find_age_line(configs[0], uri, weights) if first.tells_age else {}),
    )


def _load_slices(folder: Location, card: ModelCard, profile: Profile, device: str) -> Predictor:
    return SlicePredictor(card, load_slice_model(folder, device=device), profile)


def _load_runs(folder: Location, card: ModelCard, profile: Profile, device: str) -> Predictor:
    return RunPredictor(card, load_window_model(folder, device=device), profile)


def _load_measures(folder: Location, card: ModelCard, profile: Profile, device: str) -> Predictor:
    return MeasurePredictor(card, load_measure_model(folder, device=device), profile)


def _load_ageing(folder: Location, card: ModelCard, profile: Profile, device: str) -> Predictor:
    return AgeingPredictor(card, load_ageing_model(folder.uri, device=device), profile)


_LOADERS: Final = {
    "brainmt": _load_runs,
    "brainrotvit": _load_measures,
    "brainrotvit_classes": _load_measures,
    "dinoatten3d": _load_slices,
    "neuroar": _load_ageing,
}
_FORMATS: Final = {**CARD_FORMATS, "neuroar": AGEING_FORMATS}


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
    if config.get("format") is None:
        # A run's own config.json is its recipe, which has no format: the run has not exported a model yet.
        raise PredictorError(f"{uri} holds no finished model", given="no format", fix="let the training end")
    name = config.get("model_name")
    if name not in _LOADERS:
        raise PredictorError(
            "this version cannot answer with this model", given=name, expected=f"one of {', '.join(_LOADERS)}"
        )
    if config["format"] not in _FORMATS[name]:
        raise PredictorError(
            f"this version does not read such a model folder of {name}",
            given=f"format {config['format']}",
            expected=f"format {' or '.join(map(str, _FORMATS[name]))}",
            fix="use the version of neuroray that wrote it",
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
            targets=_describe_targets(config),
            modality=config["modality"],
            profile=profile.name,
            profile_sha256=profile.sha256,
            spacing_mm=None if spacing_mm is None else (tuple(spacing_mm[0]), tuple(spacing_mm[1])),
            fingerprints={"weights_sha256": weights_sha256, **others},
            ageing=_describe_ageing(config),
            **_find_age_line(config, uri, [weights_sha256]),
        )
    except (KeyError, TypeError, IndexError) as fault:
        raise PredictorError(f"{_CONFIG_FILE} in {uri} is not whole", given=f"{type(fault).__name__} {fault}") from None


def _find_age_line(config: dict[str, Any], uri: str, weights_sha256: Sequence[str]) -> dict[str, Any]:
    """Of a model that tells ages, by the fields of its card."""
    if not any(is_age(target.name) and target.kind == "number" for target in _describe_targets(config)):
        return {}
    line, reason = find_line(Location(uri), weights_sha256)
    return {"age_line": line, "no_age_line": reason}


def _describe_ageing(config: dict[str, Any]) -> AgeingFacts | None:
    if config["model_name"] != "neuroar":
        return None
    ages, gaps = config["age_range_years"], config["gap_range_years"]
    return AgeingFacts(
        age_range_years=(ages[0], ages[1]),
        gap_range_years=(gaps[0], gaps[1]),
        diagnoses=tuple(config.get("diagnoses", ())),
        tokenizer_sha256=config["tokenizer"]["sha256"],
    )


def _describe_targets(config: dict[str, Any]) -> tuple[TargetCard, ...]:
    """Of models of slices, which have one target, the classes stand for themselves; brains are no targets."""
    if config["model_name"] == "neuroar":
        return ()
    if "targets" not in config:
        return (TargetCard(name=config["target"], kind="class", classes=tuple(config["classes"])),)
    return tuple(
        TargetCard(name=one["name"], kind=one["kind"], classes=tuple(one.get("classes", ())), unit=one.get("unit", ""))
        for one in config["targets"]
    )
