"""Every recipe that comes with the package is whole, and trains what it says."""

from __future__ import annotations

import json
import pickle

import pytest

from neuroray.jobs.recipes import list_recipes, load_recipe
from neuroray.platform.models import MODELS
from neuroray.platform.train.run_folder import recipe_type


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_survives_json_and_pickle(name: str):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.model_name in MODELS
    read = recipe_type(recipe.model_name).from_json(json.loads(json.dumps(recipe.to_json())))
    assert read == recipe
    assert read.fingerprint() == recipe.fingerprint()
    assert pickle.loads(pickle.dumps(recipe)) == recipe


def test_no_two_recipes_are_the_same_run():
    prints = {load_recipe(name).fingerprint() for name in list_recipes()}
    assert len(prints) == len(list_recipes())


@pytest.mark.parametrize(
    ("name", "num_trained"),
    [
        # The paper's sizes: attention 24,705, embedding 131,456, classifier 258.
        ("dinoatten3d:base", 24_705 + 131_456 + 258),
        ("dinoatten3d:paper", 24_705 + 131_456 + 258),
        ("dinoatten3d:released", 131_456),
    ],
)
def test_dinoatten3d_trains_the_parameters_of_the_paper(name: str, num_trained: int):
    module = load_recipe(name).task().build()
    assert sum(p.numel() for p in module.parameters() if p.requires_grad) == num_trained
