"""Recipes of NeuroAR's first stage, the tokenizer: `neuroar/vqvae:smoke` and so on."""

from __future__ import annotations

import dataclasses

from neuroray.platform.data.splits import SplitConfig
from neuroray.platform.models.neuroar import QuantiserConfig, VQVAEConfig
from neuroray.platform.models.neuroar.loss import VQVAELossConfig
from neuroray.platform.train.recipe import LoopConfig, OptimConfig
from neuroray.platform.train.tasks.neuroar_vqvae import NeuroARVQVAERecipe


def smoke() -> NeuroARVQVAERecipe:
    """A small tokenizer for small volumes (4 mm), of three people or more: a minute or two on a CPU."""
    return NeuroARVQVAERecipe(
        name="neuroar/vqvae:smoke",
        model=VQVAEConfig(
            channels=48,
            multipliers=(1, 2),
            fold=4,
            num_blocks=1,
            norm_groups=8,
            checkpoint=False,
            quantiser=QuantiserConfig(num_codes=256, code_dim=16, num_scales=4, decay=0.9),
        ),
        loss=VQVAELossConfig(brain_weight=5.0, adversarial_epochs=30.0, discriminator_channels=8),
        split=SplitConfig(stratify_by=None, num_parts=3, num_folds=3),
        optim=OptimConfig(name="adamw", lr=3e-3, schedule="cosine", warmup_steps=5, clip_norm=1.0),
        loop=LoopConfig(batch_size=2, num_epochs=40, eval_every_epochs=10, select_by="val_psnr"),
    )


def small() -> NeuroARVQVAERecipe:
    """For a hundred people or so, registered, in volumes of 4 mm (`--profile mni_affine --profile-spacing-mm 4`).

    The network draws the difference from the mean of the training people, each cube of 4 voxels by its principal
    components and what is learned beside; the last three scales are on one grid, each on what those before it left.
    """
    finest = (9, 11, 10)
    return NeuroARVQVAERecipe(
        name="neuroar/vqvae:small",
        model=VQVAEConfig(
            channels=32,
            multipliers=(1,),
            fold=4,
            num_blocks=1,
            norm_groups=8,
            attention=False,
            grid=(36, 44, 40),
            reference="mean",
            places=True,
            shortcut=True,
            checkpoint=False,
            quantiser=QuantiserConfig(
                num_codes=1024,
                code_dim=32,
                scales=((1, 1, 1), (2, 3, 3), (5, 6, 5), finest, finest, finest),
                num_refiners=6,
                decay=0.99,
                revive_below=0.3,
                level_sizes=True,
                equal_scales=True,
            ),
        ),
        loss=VQVAELossConfig(l2_weight=5.0, brain_weight=5.0, adversarial_weight=0.0),
        split=SplitConfig(stratify_by=None, num_parts=10, test_parts=2, num_folds=5),
        optim=OptimConfig(name="adamw", lr=2e-3, weight_decay=0.01, schedule="cosine", warmup_steps=20, clip_norm=1.0),
        loop=LoopConfig(batch_size=4, num_epochs=12, eval_every_epochs=4, select_by="val_psnr"),
    )


def base() -> NeuroARVQVAERecipe:
    """For one GPU: one block a level, bfloat16, the adversary from epoch 5 on, until validation no longer improves.

    Scales are brought to one size and weigh the same in the codes' means, for else the coarse ones share a few codes.
    """
    quantiser = QuantiserConfig(revive_below=0.3, level_sizes=True, equal_scales=True)
    return dataclasses.replace(
        paper(),
        name="neuroar/vqvae:base",
        model=VQVAEConfig(num_blocks=1, quantiser=quantiser),
        loop=LoopConfig(batch_size=4, num_epochs=100, patience=15, precision="bf16", select_by="val_psnr"),
    )


def paper() -> NeuroARVQVAERecipe:
    """The paper's: downsampling 16, five scales, 2,048 codes, all four losses; widths and rates are choices.

    The perceptual network is a ResNet with random weights unless `--loss.perceptual-weights` names a file.
    """
    return NeuroARVQVAERecipe(
        name="neuroar/vqvae:paper",
        model=VQVAEConfig(),
        loss=VQVAELossConfig(brain_weight=5.0, perceptual_weight=0.001),
        optim=OptimConfig(name="adamw", lr=1e-4, weight_decay=0.0, warmup_steps=500, clip_norm=1.0),
        loop=LoopConfig(batch_size=8, num_epochs=200, precision="bf16", select_by="val_psnr"),
    )


def codes_512() -> NeuroARVQVAERecipe:
    """Ablation of `base`: 512 codes in place of 2,048; the second stage takes them from its `--encoder`."""
    return _with_codes(512)


def codes_1024() -> NeuroARVQVAERecipe:
    """Ablation of `base`: 1,024 codes."""
    return _with_codes(1024)


def codes_4096() -> NeuroARVQVAERecipe:
    """Ablation of `base`: 4,096 codes, as VAR has."""
    return _with_codes(4096)


def _with_codes(number: int) -> NeuroARVQVAERecipe:
    model = base().model
    quantiser = dataclasses.replace(model.quantiser, num_codes=number)
    model = dataclasses.replace(model, quantiser=quantiser)
    return dataclasses.replace(base(), name=f"neuroar/vqvae:codes_{number}", model=model)
