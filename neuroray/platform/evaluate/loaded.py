"""Trained models out of their folders, of whatever kind: of slices of a volume, or of windows of a run."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any, Final, Protocol

from torch import Tensor

from neuroray.platform.evaluate.metrics import EvaluationError
from neuroray.platform.evaluate.slice_measure import SliceClassModel, SliceMeasureModel
from neuroray.platform.evaluate.slice_model import SliceModel
from neuroray.platform.evaluate.window_model import WindowModel
from neuroray.platform.models import MODELS
from neuroray.storage.checkpoint import load_weights
from neuroray.storage.locations import Location

AnyModel = SliceMeasureModel | SliceModel | WindowModel

_KINDS: Final[dict[str, type[AnyModel]]] = {
    "brainmt": WindowModel,
    "brainrotvit": SliceMeasureModel,
    "brainrotvit_classes": SliceClassModel,
    "dinoatten3d": SliceModel,
}
CARD_FORMATS: Final[dict[str, tuple[int, ...]]] = {
    "brainmt": (1, 2),
    "brainrotvit": (1,),
    "brainrotvit_classes": (1,),
    "dinoatten3d": (1,),
}
"""Of each model's card, those that this version reads; a format 1 of brainmt says nothing of `standardise`."""
_WITHOUT_ANSWERS: Final = {
    "brainmt_masked": (
        "a pretrained encoder has no answers yet",
        "fine-tune it, or probe it: neuroray train brainmt:probe --init RUN",
    ),
    "neuroar_vqvae": (
        "a tokenizer has no answers of its own",
        "judge it: neuroray evaluate RUN; train the second stage: neuroray train neuroar/transformer:base",
    ),
    "neuroar": (
        "NeuroAR tells scans, not answers",
        "see them: neuroray generate RUN scan.nii.gz --age-years 61 --ages 70; judge them: neuroray evaluate RUN",
    ),
}


class LoadedModel(Protocol):
    """What all of them have; how each looks at a scan is its own."""

    @property
    def card(self) -> Mapping[str, Any]:
        """`config.json` of the model folder: `model_name`, `classes`, `target`, `modality`, fingerprints."""
        ...

    @property
    def provenance(self) -> Mapping[str, Any]:
        """How it came about."""
        ...

    def probe(self) -> dict[str, Tensor]:
        """What it answers on an input made up by itself, the same everywhere: two copies must agree bit for bit."""
        ...


def load_model(folder: Location | str | PathLike[str], *, device: str = "cpu") -> AnyModel:
    """Rebuilds a model from its folder alone.

    Raises:
        EvaluationError: see `require_answers`.
        StoreError: the folder is incomplete or its weights are not those that were saved.
    """
    state, card, provenance = load_weights(folder)
    name = require_answers(card)
    kind, config = _KINDS[name], MODELS[name].from_json(card["model"])
    module = kind.build(config)
    module.load_state_dict(state)
    module.requires_grad_(False)
    return kind(module=module.to(device).eval(), card=card, provenance=provenance)


def require_answers(card: Mapping[str, Any]) -> str:
    """The name of a model that can be asked.

    Raises:
        EvaluationError: a pretrained encoder, or a model, or a format of its folder, that this version does not know.
    """
    name = str(card.get("model_name"))
    known = ", ".join(_KINDS)
    if name in _WITHOUT_ANSWERS:
        fault, fix = _WITHOUT_ANSWERS[name]
        raise EvaluationError(fault, given=name, expected=known, fix=fix)
    if name not in _KINDS:
        raise EvaluationError("an unknown model", given=name, expected=f"one of {known}")
    if card.get("format") not in CARD_FORMATS[name]:
        raise EvaluationError(
            f"this version does not read such a model folder of {name}",
            given=f"format {card.get('format')}",
            expected=f"format {' or '.join(map(str, CARD_FORMATS[name]))}",
            fix="use the version of neuroray that wrote it",
        )
    return name


def load_slice_model(folder: Location | str | PathLike[str], *, device: str = "cpu") -> SliceModel:
    """`load_model`, for what can only be done with slices.

    Raises:
        EvaluationError: a model that has none, besides what `load_model` raises.
        StoreError: as `load_model`.
    """
    return _require(load_model(folder, device=device), SliceModel, "slices and their classes", example="dinoatten3d")


def load_window_model(folder: Location | str | PathLike[str], *, device: str = "cpu") -> WindowModel:
    """`load_model`, for what can only be done with windows of runs.

    Raises:
        EvaluationError: a model that has none, besides what `load_model` raises.
        StoreError: as `load_model`.
    """
    return _require(load_model(folder, device=device), WindowModel, "windows", example="brainmt")


def load_measure_model(folder: Location | str | PathLike[str], *, device: str = "cpu") -> SliceMeasureModel:
    """`load_model`, for what can only be done with a measure told from slices.

    Raises:
        EvaluationError: a model that tells none, besides what `load_model` raises.
        StoreError: as `load_model`.
    """
    return _require(load_model(folder, device=device), SliceMeasureModel, "slices and a measure", example="brainrotvit")


def load_target_model(
    folder: Location | str | PathLike[str], *, device: str = "cpu"
) -> SliceMeasureModel | WindowModel:
    """`load_model`, for models that answer target by target.

    Raises:
        EvaluationError: a model that does not, besides what `load_model` raises.
        StoreError: as `load_model`.
    """
    kinds = SliceMeasureModel | WindowModel
    return _require(load_model(folder, device=device), kinds, "targets", example="brainmt, brainrotvit")


_WHAT: Final[dict[type, str]] = {
    SliceMeasureModel: "slices and a measure",
    SliceClassModel: "slices and classes",
    SliceModel: "slices and their classes",
    WindowModel: "windows",
}


def _require(model: Any, kind: Any, what: str, *, example: str) -> Any:
    if not isinstance(model, kind):
        given = f"{model.card['model_name']}, a model of {_WHAT[type(model)]}"
        raise EvaluationError(f"this is done with models of {what}", given=given, expected=f"e.g. {example}")
    return model
