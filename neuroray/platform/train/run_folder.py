"""The run folder: written when a run starts, closed to any other run, and marked when the run is done."""

from __future__ import annotations

import dataclasses
import importlib
import json
from dataclasses import dataclass
from typing import Any

from neuroray.platform.data.splits import Split
from neuroray.platform.train.recipe import Recipe, RecipeError, describe_differences
from neuroray.platform.train.task import Cohort
from neuroray.storage.faults import MissingObjectError
from neuroray.storage.locations import Location

CONFIG_FILE, SPLITS_FILE, RESULT_FILE = "config.json", "splits.json", "result.json"
CHECKPOINTS, MODEL = "checkpoints", "model"

# Where the recipe class of each model lives; imported when a run is read back.
_RECIPE_TYPES = {
    "brainmt": "neuroray.platform.train.tasks.brainmt:BrainMTRecipe",
    "brainmt_masked": "neuroray.platform.train.tasks.brainmt_masked:MaskedBrainMTRecipe",
    "brainrotvit": "neuroray.platform.train.tasks.brainrotvit:BrainRotViTRecipe",
    "brainrotvit_classes": "neuroray.platform.train.tasks.brainrotvit_classes:BrainRotViTClassRecipe",
    "brainrotvit_encoder": "neuroray.platform.train.tasks.brainrotvit_encoder:BrainRotViTEncoderRecipe",
    "dinoatten3d": "neuroray.platform.train.tasks.dinoatten3d:DinoAtten3DRecipe",
    "neuroar": "neuroray.platform.train.tasks.neuroar:NeuroARRecipe",
    "neuroar_vqvae": "neuroray.platform.train.tasks.neuroar_vqvae:NeuroARVQVAERecipe",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FitResult:
    """What a run came to, as it is kept in `result.json`.

    Attributes:
        run: The run folder.
        model: The exported model folder in it.
        num_steps: Steps done.
        stopped_early: Whether patience ran out before the last epoch.
        best_step: The step whose weights were exported, chosen on the validation people.
        best_scores: What they reached there; no test person has been looked at.
        resumed_from: Steps that earlier attempts had done; 0: in one go.
        was_finished: Nothing was left to do.
    """

    run: str
    model: str
    num_steps: int
    stopped_early: bool
    best_step: int
    best_scores: dict[str, float]
    resumed_from: int = 0
    was_finished: bool = False

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return dataclasses.asdict(self)


def read_recipe(run: Location) -> Recipe:
    """The recipe that a run was started with.

    Raises:
        RecipeError: there is no run, or its model is not known.
    """
    data = read_json(run, CONFIG_FILE)
    if data is None:
        raise RecipeError("there is no run here", given=run.uri, expected=f"a folder with {CONFIG_FILE}")
    return recipe_type(data.get("model_name", "")).from_json(data)


def recipe_type(model_name: str) -> type[Recipe]:
    """The recipe class of a model.

    Raises:
        RecipeError: no such model.
    """
    if model_name not in _RECIPE_TYPES:
        raise RecipeError(
            "no recipe is known for this model", given=repr(model_name), expected=f"one of {', '.join(_RECIPE_TYPES)}"
        )
    module, _, name = _RECIPE_TYPES[model_name].partition(":")
    return getattr(importlib.import_module(module), name)


def choose_version(run: Location, recipe: Recipe) -> int | None:
    """The catalogue version that the recipe asks for, else that of the run in this folder; None: the newest.

    So the same command continues the same run, even when scans were added meanwhile.
    """
    if recipe.data.version is not None:
        return recipe.data.version
    data = read_json(run, CONFIG_FILE) or {}
    return data.get("data", {}).get("version")


def require_same_run(run: Location, recipe: Recipe, cohort: Cohort) -> None:
    """Nothing, where the folder is new or holds this very run.

    Raises:
        RecipeError: it holds a run of another recipe, catalogue version or split; each field that differs is named.
    """
    data = read_json(run, CONFIG_FILE)
    if data is None:
        return
    fix = "give the same recipe again, or choose another --out"
    if data.get("model_name") != recipe.model_name:
        raise RecipeError(f"{run.uri} holds a run of another model", given=data.get("model_name"), fix=fix)
    differences = describe_differences(type(recipe).from_json(data), recipe)
    if differences:
        raise RecipeError(f"{run.uri} holds another run", given="; ".join(differences), fix=fix)
    recorded = read_json(run, SPLITS_FILE)
    if recorded is not None and Split.from_json(recorded) != cohort.split:
        raise RecipeError(f"{run.uri} holds a run on other people", given=f"another {SPLITS_FILE}", fix=fix)


def write_start(run: Location, recipe: Recipe, cohort: Cohort) -> None:
    """Records what the run is, the recipe last: where it is, all is."""
    if read_json(run, CONFIG_FILE) is None:
        write_json(run, SPLITS_FILE, cohort.split.to_json())
        write_json(run, CONFIG_FILE, recipe.to_json())


def identity(recipe: Recipe, cohort: Cohort) -> dict[str, Any]:
    """What must agree between a checkpoint and the run that continues it."""
    return {"recipe": recipe.fingerprint(), "catalogue_version": cohort.version, "features": cohort.features}


def read_result(run: Location) -> FitResult | None:
    """The result of a finished run; None while it is not."""
    data = read_json(run, RESULT_FILE)
    return None if data is None else FitResult(**data)


def read_json(run: Location, name: str) -> dict[str, Any] | None:
    """One of the folder's JSON files; None where it is not there."""
    try:
        return json.loads(run.read_bytes(name))
    except MissingObjectError:
        return None


def write_json(run: Location, name: str, data: dict[str, Any]) -> None:
    """Writes one, whole."""
    run.write_bytes(name, (json.dumps(data, indent=2) + "\n").encode())
