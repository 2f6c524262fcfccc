"""Recipes of BrainRotViT: the second stage, on features that `neuroray extract` has made, and the first before it."""

from __future__ import annotations

import dataclasses

from neuroray.platform.models.brainrotvit import BrainRotViTConfig
from neuroray.platform.models.brainrotvit.classifier import SliceClassifierConfig
from neuroray.platform.models.brainrotvit.config import BACKBONE
from neuroray.platform.models.layers.encoder import SliceEncoderConfig
from neuroray.platform.models.layers.resampled_slices import ResampledStackConfig
from neuroray.platform.train.recipe import DataConfig, LoopConfig, OptimConfig
from neuroray.platform.train.tasks.brainrotvit import BrainRotViTRecipe
from neuroray.platform.train.tasks.brainrotvit_classes import BrainRotViTClassRecipe
from neuroray.platform.train.tasks.brainrotvit_encoder import BrainRotViTEncoderRecipe

_ENCODER = SliceEncoderConfig(backbone=BACKBONE, weights="timm", readout="mean", batch_size=16)
# Twice as fast on processors with instructions for it, a GPU among them; paper keeps float32.
_FAST_ENCODER = dataclasses.replace(_ENCODER, precision="bfloat16")


def smoke() -> BrainRotViTRecipe:
    """A small random encoder and small pictures: in a minute on any machine, without a download."""
    return BrainRotViTRecipe(
        name="brainrotvit:smoke",
        model=_pool(
            BrainRotViTConfig(
                slices=ResampledStackConfig(image_size=96),
                encoder=SliceEncoderConfig(backbone="test_vit", weights="random", readout="mean", batch_size=32),
                standardise=True,
                mirror=True,
            )
        ),
        optim=OptimConfig(name="adamw", lr=1e-3, weight_decay=1e-2, schedule="cosine"),
        # Looked at once, in the end: of a dozen people on the validation side the best look is mostly chance.
        loop=LoopConfig(num_epochs=40, eval_every_epochs=40, select_by="val_mae", checkpoint_every_steps=50),
        mirror_share=0.5,
    )


def small() -> BrainRotViTRecipe:
    """`smoke` for a hundred people or more: the random encoder's tokens stay side by side, 36 a slice.

    The mean of tokens that were never taught anything forgets where things are; a map 36 times as wide keeps it, and
    wants more people to learn from.
    """
    encoder = dataclasses.replace(smoke().model.encoder, readout="grid")
    model = dataclasses.replace(smoke().model, encoder=encoder)
    return dataclasses.replace(smoke(), name="brainrotvit:small", model=model)


def base() -> BrainRotViTRecipe:
    """The paper's CNN behind ViT-Base, in shuffled batches of 8, mirrored, until validation no longer improves."""
    return BrainRotViTRecipe(
        name="brainrotvit:base",
        model=BrainRotViTConfig(encoder=_FAST_ENCODER, mirror=True),
        optim=OptimConfig(name="adam", lr=5e-4),
        loop=LoopConfig(batch_size=8, num_epochs=100, select_by="val_mae", patience=15),
        mirror_share=0.5,
    )


def pooled() -> BrainRotViTRecipe:
    """`base` with a head that trains on a laptop: groups of 4 slices, channels mapped to 96, small layers."""
    return dataclasses.replace(
        base(),
        name="brainrotvit:pooled",
        model=_pool(base().model),
        optim=OptimConfig(name="adamw", lr=1e-3, weight_decay=1e-2),
        loop=LoopConfig(batch_size=16, num_epochs=100, select_by="val_mae", patience=20),
    )


def quantiles() -> BrainRotViTRecipe:
    """`pooled`, which learns the 5 %, 50 % and 95 % quantiles in place of the mean."""
    model = dataclasses.replace(pooled().model, num_outputs=3)
    return dataclasses.replace(pooled(), name="brainrotvit:quantiles", model=model, quantiles=(0.05, 0.5, 0.95))


def paper() -> BrainRotViTRecipe:
    """As the authors' script: one person a step in the same order, Adam 5e-4, no mirror; selected on validation."""
    return dataclasses.replace(
        base(),
        name="brainrotvit:paper",
        model=BrainRotViTConfig(encoder=_ENCODER),
        data=DataConfig(target="age_years", sampling="in_order"),
        loop=LoopConfig(batch_size=1, num_epochs=100, select_by="val_mae"),
        mirror_share=0.0,
    )


def diagnosis() -> BrainRotViTClassRecipe:
    """`pooled`, which learns a diagnosis of two classes in place of age, each class counting the same."""
    return BrainRotViTClassRecipe(
        name="brainrotvit:diagnosis",
        model=pooled().model,
        optim=pooled().optim,
        loop=LoopConfig(batch_size=16, num_epochs=100, select_by="val_auc", patience=20),
        mirror_share=0.5,
    )


def diagnosis_smoke() -> BrainRotViTClassRecipe:
    """The same with the small random encoder of `smoke`."""
    return dataclasses.replace(
        diagnosis(),
        name="brainrotvit:diagnosis_smoke",
        model=smoke().model,
        optim=smoke().optim,
        loop=LoopConfig(num_epochs=40, select_by="val_auc", checkpoint_every_steps=50),
    )


def diagnosis_paper() -> BrainRotViTClassRecipe:
    """The paper's CNN with a logit for each of CN, MCI and AD, weighed by class, on the encoder of age."""
    return dataclasses.replace(
        diagnosis(),
        name="brainrotvit:diagnosis_paper",
        model=dataclasses.replace(paper().model, num_outputs=3),
        optim=paper().optim,
        loop=LoopConfig(batch_size=8, num_epochs=100, select_by="val_balanced_accuracy"),
        mirror_share=0.0,
    )


def stage1() -> BrainRotViTEncoderRecipe:
    """The encoder: ViT-Base learns decade and sex of 32 slices a person by DoRA, 5 epochs; the last is taken."""
    return BrainRotViTEncoderRecipe(
        name="brainrotvit:stage1",
        model=SliceClassifierConfig(encoder=_ENCODER),
        # The authors take the last epoch: the only one that is looked at here.
        loop=LoopConfig(batch_size=8, num_epochs=5, eval_every_epochs=5, select_by="val_loss"),
    )


def stage1_smoke() -> BrainRotViTEncoderRecipe:
    """The same with the small transformer of `smoke`, all of it trained, from random weights."""
    return BrainRotViTEncoderRecipe(
        name="brainrotvit:stage1_smoke",
        model=SliceClassifierConfig(
            slices=ResampledStackConfig(num_slices=32, sampling="spread", normalisation="volume", image_size=96),
            encoder=smoke().model.encoder,
            tune="full",
        ),
        optim=OptimConfig(name="adamw", lr=1e-3, weight_decay=0.01),
        loop=LoopConfig(batch_size=32, num_epochs=5, select_by="val_loss", checkpoint_every_steps=500),
    )


def _pool(model: BrainRotViTConfig) -> BrainRotViTConfig:
    """Sizes that train on a laptop, and outputs in units of the target's spread."""
    small = {"kernels": ((5, 9), (3, 5), (2, 3)), "hidden": (64, 32)}
    return dataclasses.replace(model, pool_slices=4, project=96, input_dropout=0.2, scale_outputs=True, **small)
