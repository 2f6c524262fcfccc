"""Recipes of BrainMT."""

from __future__ import annotations

import dataclasses

from neuroray.platform.baselines.network_edges import list_edges
from neuroray.platform.data.augment import AugmentConfig
from neuroray.platform.data.splits import SplitConfig
from neuroray.platform.data.standardise import StandardiseConfig
from neuroray.platform.data.windows import WindowConfig
from neuroray.platform.models.brainmt import BrainMTConfig, MaskedBrainMTConfig
from neuroray.platform.train.frame_pretraining import PretrainConfig
from neuroray.platform.train.recipe import DataConfig, LoopConfig, OptimConfig
from neuroray.platform.train.tasks.brainmt import BrainMTRecipe
from neuroray.platform.train.tasks.brainmt_masked import MaskedBrainMTRecipe


def smoke() -> BrainMTRecipe:
    """A small model on windows of 32 frames of small runs: sex, of a dozen people or more, in a minute or two."""
    return BrainMTRecipe(
        name="brainmt:smoke",
        model=BrainMTConfig(
            grid_shape=(25, 30, 24), num_frames=32, width=16, mamba_depth=2, attention_depth=1, frames_at_once=16
        ),
        data=_windows("sex", 32),
        split=SplitConfig(stratify_by="sex", num_parts=5),
        optim=OptimConfig(
            name="adamw", lr=1e-3, weight_decay=0.05, schedule="cosine", warmup_epochs=2.0, clip_norm=1.0
        ),
        loop=LoopConfig(batch_size=4, num_epochs=8, checkpoint_every_steps=50),
    )


def smoke_cognition() -> BrainMTRecipe:
    """The small model on cognition."""
    return _regress_cognition(smoke(), "brainmt:smoke_cognition", num_bins=2)


def smoke_both() -> BrainMTRecipe:
    """The small model on sex and cognition at once."""
    return _learn_both(smoke(), "brainmt:smoke_both")


def small() -> BrainMTRecipe:
    """The model of `smoke` for some hundred people on a CPU, so that it learns from how they fluctuate: sex.

    Voxels are standardised over time; the frame encoder learns without labels first and is then held; the head sees how
    its channels vary together beside the CLS token; states of the scans begin with long memories; signs are flipped and
    noise is added, or so few people are known by heart.
    """
    return dataclasses.replace(
        smoke(),
        name="brainmt:small",
        model=dataclasses.replace(
            smoke().model, pool="moments", drop_path=0.0, time_steps="mamba", checkpoint=False, frames_at_once=64
        ),
        split=SplitConfig(stratify_by="sex", num_parts=10, test_parts=2),
        optim=dataclasses.replace(smoke().optim, warmup_epochs=1.0),
        # Looked at once, in the end: of a dozen people on the validation side the best look is mostly chance.
        loop=LoopConfig(batch_size=4, num_epochs=45, eval_every_epochs=45, checkpoint_every_steps=500),
        standardise=StandardiseConfig(by="voxel", drift_degree=2),
        augment=AugmentConfig(noise=1.0, flip_sign=True),
        pretrain=PretrainConfig(num_epochs=12),
        freeze="frames",
    )


def small_cognition() -> BrainMTRecipe:
    """The same on cognition."""
    return _regress_cognition(small(), "brainmt:small_cognition")


def small_both() -> BrainMTRecipe:
    """The same on sex and cognition at once."""
    return _learn_both(small(), "brainmt:small_both")


def base() -> BrainMTRecipe:
    """The paper's model in bfloat16, gradients clipped, until validation no longer improves: sex."""
    return dataclasses.replace(
        paper(),
        name="brainmt:base",
        optim=dataclasses.replace(paper().optim, clip_norm=1.0),
        loop=LoopConfig(batch_size=2, num_epochs=30, patience=8, precision="bf16"),
    )


def base_cognition() -> BrainMTRecipe:
    """The same on cognition."""
    return _regress_cognition(base(), "brainmt:base_cognition")


def base_both() -> BrainMTRecipe:
    """The same on sex and cognition at once."""
    return _learn_both(base(), "brainmt:base_both")


def paper() -> BrainMTRecipe:
    """The paper's settings: 200 frames, AdamW 2e-4, decay 0.05, batches of 2, 20 epochs, 5 of them warm-up, cosine."""
    return BrainMTRecipe(
        name="brainmt:paper",
        model=BrainMTConfig(),
        data=_windows("sex", 200),
        split=SplitConfig(stratify_by="sex"),
        optim=OptimConfig(name="adamw", lr=2e-4, weight_decay=0.05, schedule="cosine", warmup_epochs=5.0),
        loop=LoopConfig(batch_size=2, num_epochs=20, patience=5, select_by="val_loss", precision="bf16"),
    )


def paper_cognition() -> BrainMTRecipe:
    """The paper's settings on cognition."""
    return _regress_cognition(paper(), "brainmt:paper_cognition", select_by="val_loss")


def pretrain() -> MaskedBrainMTRecipe:
    """Masked pretraining of the paper's model: no labels; hidden blocks of 8 frames are told from the rest."""
    like = base()
    return MaskedBrainMTRecipe(
        name="brainmt:pretrain",
        model=MaskedBrainMTConfig(encoder=like.model),
        data=_windows("", 200),
        split=SplitConfig(stratify_by=None),
        optim=like.optim,
        loop=dataclasses.replace(like.loop, num_epochs=100, patience=20, select_by="val_loss"),
    )


def pretrain_smoke() -> MaskedBrainMTRecipe:
    """Masked pretraining of the small model."""
    like = smoke()
    return MaskedBrainMTRecipe(
        name="brainmt:pretrain_smoke",
        model=MaskedBrainMTConfig(encoder=like.model),
        data=_windows("", 32),
        split=SplitConfig(stratify_by=None, num_parts=5),
        optim=like.optim,
        loop=dataclasses.replace(like.loop, num_epochs=20, select_by="val_loss"),
    )


def probe() -> BrainMTRecipe:
    """A linear probe of `pretrain` (`--init RUN`): only a linear map of the mean token learns; sex."""
    return _probe(base(), "brainmt:probe")


def probe_cognition() -> BrainMTRecipe:
    """The same on cognition."""
    return _regress_cognition(probe(), "brainmt:probe_cognition")


def probe_smoke() -> BrainMTRecipe:
    """A linear probe of `pretrain_smoke`."""
    return _probe(smoke(), "brainmt:probe_smoke")


def probe_smoke_cognition() -> BrainMTRecipe:
    """The same on cognition."""
    return _regress_cognition(probe_smoke(), "brainmt:probe_smoke_cognition", num_bins=2)


def released() -> BrainMTRecipe:
    """The model as its authors released it, which scans one way; their schedule, which never warms up, is not kept."""
    return _with_model(paper(), "brainmt:released", bidirectional=False)


def smoke_fc() -> BrainMTRecipe:
    """The small model on the connectivity between networks, which `neuroray connectivity` enters as labels."""
    return _learn_connectivity(smoke(), "brainmt:smoke_fc", num_bins=2)


def fc() -> BrainMTRecipe:
    """The paper's model on the connectivity between 13 networks: 78 measures at once."""
    return _learn_connectivity(base(), "brainmt:fc", num_bins=5)


def unidirectional() -> BrainMTRecipe:
    """Ablation of `base`: scans one way."""
    return _with_model(base(), "brainmt:unidirectional", bidirectional=False)


def no_conv() -> BrainMTRecipe:
    """Ablation of `base`: one linear map of cubes instead of the convolution stages."""
    return _with_model(base(), "brainmt:no_conv", frame_encoder="patch")


def no_transformer() -> BrainMTRecipe:
    """Ablation of `base`: no attention layers."""
    return _with_model(base(), "brainmt:no_transformer", attention_depth=0)


def shallow() -> BrainMTRecipe:
    """Ablation of `base`: half as many layers of each kind."""
    return _with_model(base(), "brainmt:shallow", mamba_depth=6, attention_depth=4)


def deep() -> BrainMTRecipe:
    """Ablation of `base`: twice as many Mamba layers."""
    return _with_model(base(), "brainmt:deep", mamba_depth=24)


def frames_10() -> BrainMTRecipe:
    """Ablation of `base`: windows of 10 frames."""
    return _with_frames(10)


def frames_50() -> BrainMTRecipe:
    """Ablation of `base`: windows of 50 frames."""
    return _with_frames(50)


def frames_100() -> BrainMTRecipe:
    """Ablation of `base`: windows of 100 frames."""
    return _with_frames(100)


def frames_300() -> BrainMTRecipe:
    """Ablation of `base`: windows of 300 frames."""
    return _with_frames(300)


def frames_400() -> BrainMTRecipe:
    """Ablation of `base`: windows of 400 frames."""
    return _with_frames(400)


def _windows(target: str, num_frames: int) -> DataConfig:
    return DataConfig(modality="bold", target=target, windows=WindowConfig(sampler="random", num_frames=num_frames))


def _with_model(recipe: BrainMTRecipe, name: str, **changes: object) -> BrainMTRecipe:
    return dataclasses.replace(recipe, name=name, model=dataclasses.replace(recipe.model, **changes))


def _probe(recipe: BrainMTRecipe, name: str) -> BrainMTRecipe:
    """Every window once an epoch, always the same; a strong decay, for a linear map of many channels fits anything."""
    probed = _with_model(recipe, name, pool="mean", head="probe")
    return dataclasses.replace(
        probed,
        freeze="encoder",
        standardise=StandardiseConfig(by="voxel"),
        data=dataclasses.replace(probed.data, windows=probed.data.windows.covering()),
        optim=OptimConfig(name="adamw", lr=3e-3, weight_decay=1.0, schedule="cosine", warmup_epochs=1.0),
        loop=dataclasses.replace(probed.loop, num_epochs=30, patience=None),
    )


def _with_frames(num_frames: int) -> BrainMTRecipe:
    recipe = _with_model(base(), f"brainmt:frames_{num_frames}", num_frames=num_frames)
    return dataclasses.replace(recipe, data=_windows(recipe.data.target, num_frames))


def _regress_cognition(
    recipe: BrainMTRecipe, name: str, *, num_bins: int = 5, select_by: str = "val_r"
) -> BrainMTRecipe:
    return dataclasses.replace(
        recipe,
        name=name,
        classify=(),
        regress=("cognition",),
        data=dataclasses.replace(recipe.data, target="cognition"),
        split=dataclasses.replace(recipe.split, stratify_by="cognition", num_bins=num_bins),
        loop=dataclasses.replace(recipe.loop, select_by=select_by),
    )


def _learn_connectivity(recipe: BrainMTRecipe, name: str, *, num_bins: int) -> BrainMTRecipe:
    """People are dealt by the first edge, and weights are selected by the loss of all."""
    edges = list_edges()
    return dataclasses.replace(
        recipe,
        name=name,
        classify=(),
        regress=edges,
        model=dataclasses.replace(recipe.model, num_outputs=len(edges)),
        data=dataclasses.replace(recipe.data, target=edges[0]),
        split=dataclasses.replace(recipe.split, stratify_by=edges[0], num_bins=num_bins),
        loop=dataclasses.replace(recipe.loop, select_by="val_loss"),
    )


def _learn_both(recipe: BrainMTRecipe, name: str) -> BrainMTRecipe:
    """Sex first; people of whom only the other is known take part too."""
    return dataclasses.replace(
        recipe,
        name=name,
        regress=("cognition",),
        model=dataclasses.replace(recipe.model, num_outputs=2),
        split=dataclasses.replace(recipe.split, keep_unlabelled=True),
    )
