"""A linear probe: which parameters are left to learn, and the scales that the training scans give what they read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from neuroray.platform.data.collate import to_torch
from neuroray.platform.data.standardise import StandardiseConfig, standardise
from neuroray.platform.data.window_reader import WindowReader
from neuroray.platform.data.windows import choose_windows
from neuroray.platform.models.brainmt import BrainMT
from neuroray.platform.models.brainmt.model import ProbeHead
from neuroray.platform.models.brainmt.moments import find_held
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
def fit_scales(
    module: BrainMT, recipe: Recipe, cohort: Cohort, reader: WindowReader, *, standard: StandardiseConfig
) -> None:
    """Finds components of moments, and a probe's scales, from every covering window of the training scans, on the CPU.

    On a GPU, where the recipe has one, the module is left there. Every rank does the same.

    Raises:
        ModelError: training scans that hold fewer frames than components.
    """
    if not isinstance(module.head, ProbeHead):
        return
    device = torch.device("cuda", torch.cuda.current_device()) if recipe.scaling.use_gpu else torch.device("cpu")
    module.to(device).eval()
    windows = choose_windows(cohort.split.train, cohort.num_frames, recipe.data.windows.covering(), seed=recipe.seed)
    assert isinstance(windows, tuple)  # covering ones are listed

    def look[T](tell: Callable[[Tensor], T]) -> Iterator[T]:
        for window in windows:
            batch = {name: values.to(device) for name, values in to_torch(reader.read_batch([window])).items()}
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.loop.precision == "bf16"):
                told = tell(standardise(batch, config=standard))
            yield told

    if module.moments is not None:
        logger.info("the frame encoder looks at %d windows of the training scans once, for components", len(windows))
        module.moments.fit(look(lambda one: (module.encode_frames(one)[0], find_held(one))), seed=recipe.seed)
    logger.info("the frozen encoder looks at %d windows of the training scans once, for a scale", len(windows))
    module.head.fit_scale(torch.cat(list(look(lambda one: module(one).embedding.float().cpu()))))
