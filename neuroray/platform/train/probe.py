"""A linear probe: what the frozen encoder says of the training scans, and which parameters are left to learn."""

from __future__ import annotations

import logging

import torch
from jaxtyping import Float
from torch import Tensor

from neuroray.platform.data.collate import to_torch
from neuroray.platform.data.standardise import StandardiseConfig, standardise
from neuroray.platform.data.window_reader import WindowReader
from neuroray.platform.data.windows import choose_windows
from neuroray.platform.models.brainmt import BrainMT
from neuroray.platform.train.recipe import Recipe
from neuroray.platform.train.task import Cohort

logger = logging.getLogger(__name__)


def freeze_encoder(module: BrainMT) -> None:
    """Leaves only the head, and a norm right before it, to learn."""
    module.requires_grad_(False)
    for part in (module.head, module.final_norm):
        if part is not None:
            part.requires_grad_(True)


@torch.no_grad()
def embed_training_scans(
    module: BrainMT, recipe: Recipe, cohort: Cohort, reader: WindowReader, *, standard: StandardiseConfig
) -> Float[Tensor, "window channel"]:
    """What the head will take of every covering window of the training scans, one at a time, on the CPU.

    On a GPU, where the recipe has one, the module is left there. Every rank does the same.
    """
    use_gpu = recipe.scaling.use_gpu
    device = torch.device("cuda", torch.cuda.current_device()) if use_gpu else torch.device("cpu")
    module.to(device).eval()
    windows = choose_windows(cohort.split.train, cohort.num_frames, recipe.data.windows.covering(), seed=recipe.seed)
    assert isinstance(windows, tuple)  # covering ones are listed
    logger.info("the frozen encoder looks at %d windows of the training scans once, for a scale", len(windows))
    rows = []
    for window in windows:
        batch = {name: values.to(device) for name, values in to_torch(reader.read_batch([window])).items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.loop.precision == "bf16"):
            rows.append(module(standardise(batch, config=standard)).embedding.float().cpu())
    return torch.cat(rows)
