"""Recipes of NeuroAR's second stage, the transformer: `neuroar/transformer:smoke` and so on, with `--encoder RUN`."""

from __future__ import annotations

import dataclasses

from neuroray.jobs.recipes import neuroar_vqvae
from neuroray.platform.models.neuroar import NeuroARConfig
from neuroray.platform.train.recipe import LoopConfig, OptimConfig
from neuroray.platform.train.tasks.neuroar import NeuroARRecipe


def smoke() -> NeuroARRecipe:
    """A small transformer for the tokens of `neuroar/vqvae:smoke`, whose reconstructions need not be good."""
    tokenizer = neuroar_vqvae.smoke()
    return NeuroARRecipe(
        name="neuroar/transformer:smoke",
        model=NeuroARConfig(
            quantiser=tokenizer.model.quantiser,
            latent_shape=(7, 8, 6),
            width=64,
            depth=3,
            num_heads=4,
            gamma=0.1,
            num_age_periods=16,
        ),
        split=tokenizer.split,
        optim=OptimConfig(name="adamw", lr=2e-3, weight_decay=0.05, schedule="cosine", warmup_steps=5, clip_norm=2.0),
        loop=LoopConfig(batch_size=4, num_epochs=40, eval_every_epochs=10, select_by="val_loss"),
        direction="both",
        with_same=True,
        min_psnr_db=0.0,
    )


def small() -> NeuroARRecipe:
    """For the tokens of `neuroar/vqvae:small`, on a CPU: it starts as a copy of the previous scan and learns change."""
    tokenizer = neuroar_vqvae.small()
    return NeuroARRecipe(
        name="neuroar/transformer:small",
        model=NeuroARConfig(
            quantiser=tokenizer.model.quantiser,
            latent_shape=(9, 11, 10),
            width=32,
            depth=1,
            num_heads=4,
            gamma=0.1,
            dropout=0.5,
            head="nearest",
            age_periods_years=(4.0, 128.0),
            num_age_periods=8,
            age_dropout=0.0,
            previous_dropout=0.0,
        ),
        split=tokenizer.split,
        optim=OptimConfig(name="adamw", lr=3e-4, weight_decay=0.1, schedule="cosine", warmup_steps=20, clip_norm=2.0),
        loop=LoopConfig(batch_size=4, num_epochs=3, select_by="val_loss"),
        direction="both",
        decode="vectors",
        detail="scan",
    )


def base() -> NeuroARRecipe:
    """For one GPU: width 512, 16 blocks, bfloat16, both directions of time."""
    return dataclasses.replace(
        paper(),
        name="neuroar/transformer:base",
        model=dataclasses.replace(
            paper().model, width=512, depth=16, num_heads=8, quantiser=neuroar_vqvae.base().model.quantiser
        ),
        direction="both",
        loop=dataclasses.replace(paper().loop, patience=15, num_epochs=100),
    )


def paper() -> NeuroARRecipe:
    """The paper's: 32 blocks, AdaLN and cross-attention by age in each; width and rates are choices, mostly VAR's."""
    return NeuroARRecipe(
        name="neuroar/transformer:paper",
        model=NeuroARConfig(),
        optim=OptimConfig(
            name="adamw", lr=1e-4, weight_decay=0.05, schedule="cosine", warmup_epochs=2.0, clip_norm=2.0
        ),
        loop=LoopConfig(batch_size=16, num_epochs=200, precision="bf16", select_by="val_loss"),
    )


def sequence() -> NeuroARRecipe:
    """`base` with the previous scan as tokens of its own, whose work is done once for many target ages."""
    return _with_model("sequence", previous="sequence")


def no_adaln() -> NeuroARRecipe:
    """Ablation of `base`: ages by cross-attention alone."""
    return _with_model("no_adaln", adaln="none")


def no_cross_attention() -> NeuroARRecipe:
    """Ablation of `base`: ages by AdaLN alone."""
    return _with_model("no_cross_attention", cross_attention=False)


def no_previous() -> NeuroARRecipe:
    """Ablation of `base`: the previous scan is not shown."""
    return _with_model("no_previous", previous="none")


def token_wise() -> NeuroARRecipe:
    """Ablation of `base`: tokens one by one within each scale, 1,536 passes for a brain in place of five."""
    return _with_model("token_wise", order="token")


def _with_model(variant: str, **changes: object) -> NeuroARRecipe:
    model = dataclasses.replace(base().model, **changes)
    return dataclasses.replace(base(), name=f"neuroar/transformer:{variant}", model=model)
