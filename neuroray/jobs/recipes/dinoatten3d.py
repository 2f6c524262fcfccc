"""Recipes of DinoAtten3D."""

from __future__ import annotations

import dataclasses

from neuroray.platform.models.dinoatten3d import DinoAtten3DConfig
from neuroray.platform.models.layers.encoder import SliceEncoderConfig
from neuroray.platform.models.layers.slices import SliceStackConfig
from neuroray.platform.train.recipe import LoopConfig, OptimConfig
from neuroray.platform.train.tasks.dinoatten3d import DinoAtten3DRecipe


def smoke() -> DinoAtten3DRecipe:
    """A small random encoder and small pictures: in a minute on any machine, without a download."""
    return DinoAtten3DRecipe(
        name="dinoatten3d:smoke",
        model=DinoAtten3DConfig(
            slices=SliceStackConfig(num_slices=32, slice_spacing_mm=4.0, image_size=96, fit="pad"),
            encoder=SliceEncoderConfig(backbone="test_vit", weights="random", readout="grid"),
            standardise=True,
            feature_dropout=0.8,
        ),
        optim=OptimConfig(name="adamw", lr=3e-4, weight_decay=1e-2),
        loop=LoopConfig(num_epochs=30, checkpoint_every_steps=20),
    )


def base() -> DinoAtten3DRecipe:
    """The paper's model on DINOv2 ViT-S/14, all of the head trained, until validation no longer improves."""
    return DinoAtten3DRecipe(
        name="dinoatten3d:base",
        model=DinoAtten3DConfig(encoder=SliceEncoderConfig(weights="timm")),
        loop=LoopConfig(num_epochs=300, eval_every_epochs=2, patience=40),
    )


def paper() -> DinoAtten3DRecipe:
    """The paper's settings: Adam at 1e-3, batches of 16, 1000 epochs; selected on validation, not on the test."""
    return dataclasses.replace(
        base(),
        name="dinoatten3d:paper",
        optim=OptimConfig(name="adam", lr=1e-3),
        loop=LoopConfig(batch_size=16, num_epochs=1000, eval_every_epochs=10),
    )


def released() -> DinoAtten3DRecipe:
    """As the authors' scripts: only the embedding layers learn; attention and classifier stay as drawn."""
    return dataclasses.replace(paper(), name="dinoatten3d:released", train_scope="released")
