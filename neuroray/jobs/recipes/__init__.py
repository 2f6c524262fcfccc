"""Recipes: one module per model, one function per run; `model:variant`, or `file.py:function` for one's own."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from neuroray.platform.train.recipe import Recipe, RecipeError

# Model to module; a module is imported when one of its recipes is asked for.
RECIPES = {
    "brainmt": "neuroray.jobs.recipes.brainmt",
    "brainrotvit": "neuroray.jobs.recipes.brainrotvit",
    "dinoatten3d": "neuroray.jobs.recipes.dinoatten3d",
    "neuroar/vqvae": "neuroray.jobs.recipes.neuroar_vqvae",
    "neuroar/transformer": "neuroray.jobs.recipes.neuroar_transformer",
}


def load_recipe(name: str) -> Recipe:
    """The recipe of a name: `dinoatten3d:smoke`, or `./mine.py:run` for a function in a file of one's own.

    Raises:
        RecipeError: no such model, file or function, or a function that returns something else.
    """
    place, _, variant = name.rpartition(":")
    if not place:
        raise RecipeError(
            "a recipe is named model:variant", given=repr(name), expected=f"one of {', '.join(list_recipes())}"
        )
    module = _load_file(Path(place)) if place.endswith(".py") else _load_model(place, name)
    variants = list_variants(module)
    if variant not in variants:
        raise RecipeError(f"{place} has no recipe {variant!r}", expected=f"one of {', '.join(sorted(variants))}")
    recipe = variants[variant]()
    if not isinstance(recipe, Recipe):
        raise RecipeError(f"{name} returned no recipe", given=type(recipe).__name__, expected="a Recipe")
    return recipe


def list_recipes() -> list[str]:
    """The names of all recipes that come with the package."""
    return [f"{model}:{name}" for model, module in RECIPES.items() for name in sorted(list_variants(_import(module)))]


def list_variants(module: ModuleType) -> dict[str, Callable[[], Recipe]]:
    """The public functions that a module defines itself and that can be called without arguments."""
    return {
        name: function
        for name, function in vars(module).items()
        if inspect.isfunction(function)
        and function.__module__ == module.__name__
        and not name.startswith("_")
        and not any(p.default is p.empty for p in inspect.signature(function).parameters.values())
    }


def _import(module: str) -> ModuleType:
    return importlib.import_module(module)


def _load_model(model: str, name: str) -> ModuleType:
    if model not in RECIPES:
        raise RecipeError(
            f"no recipe is called {name!r}", expected=f"one of {', '.join(list_recipes())}, or ./file.py:function"
        )
    return _import(RECIPES[model])


def _load_file(path: Path) -> ModuleType:
    """Imports a person's own file, and lets Ray's workers have it, who cannot import it, by value."""
    if not path.is_file():
        raise RecipeError("there is no such file of recipes", given=path, expected="a Python file")
    name = f"neuroray_recipes_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise RecipeError("this file cannot be imported", given=path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise RecipeError(f"{path} cannot be imported", given=f"{type(error).__name__}: {error}") from error
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(module)
    return module
