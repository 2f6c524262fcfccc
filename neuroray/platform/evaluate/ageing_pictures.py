"""Strips of some held-out pairs for the page: brains alone, nobody's name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from neuroray.platform.evaluate.ageing_bench import Bench
from neuroray.platform.evaluate.ageing_evidence import CEILING, MODEL, JudgedPair
from neuroray.platform.evaluate.visits import Visit, place_grid
from neuroray.platform.generate.pictures import PictureRow, draw_strip, find_shown, to_dark_png
from neuroray.storage.scan import Scan

_NOTES = "Change: follow-up minus scan; both through the tokenizer; the model minus what it starts from."


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture of the page.

    Attributes:
        png: Itself.
        title: What it shows.
        caption: How to read it.
    """

    png: bytes
    title: str
    caption: str


def choose_pairs(judged: Sequence[JudgedPair]) -> list[JudgedPair]:
    """The pair with the longest gap, and of the others the one of which the model's error is the median."""
    longest = max(judged, key=lambda one: (abs(one.pair.gap_years), one.pair.previous.scan_id))
    others = sorted(
        (one for one in judged if one is not longest),
        key=lambda one: (one.scores[MODEL]["l1_brain"], one.pair.previous.scan_id),
    )
    return [longest, *others[len(others) // 2 : len(others) // 2 + 1]]


def draw_pair(bench: Bench, one: JudgedPair, *, which: str) -> Picture:
    """The scan, its true follow-up, that through the tokenizer, and the model's, with what changed beside each.

    Args:
        bench: Of the pair's fold.
        one: Which pair.
        which: How it was chosen, for the title.
    """
    previous, target = bench.read(one.pair.previous), bench.read(one.pair.target)
    told = bench.tell(previous, target)
    before, after = one.pair.ages_years
    rows = [
        PictureRow(label=f"scan\n{before:g} years", values=_lift(previous.volume, previous), change=None),
        _row(f"follow-up\n{after:g} years", target.volume, previous.volume, target, previous),
        _row("through the\ntokenizer", told[CEILING].volume, told[CEILING].start, target, previous),
        _row(f"the model\n{after:g} years", told[MODEL].volume, told[MODEL].start, previous, previous),
    ]
    x, y, z = previous.volume.shape
    seen = Scan(voxels=previous.volume, affine=place_grid(previous.record, (x, y, z)), flags=previous.record.flags)
    brain = previous.brain | target.brain
    shown = find_shown(seen, _lift(previous.volume, previous), brain)
    scores = one.scores[MODEL]
    return Picture(
        png=to_dark_png(draw_strip(seen, rows, shown, notes=_NOTES, units="from 0 to 1")),
        title=f"{which}: {abs(one.pair.gap_years):.1f} years, drawn with {scores['psnr_brain']:.1f} dB in the brain",
        caption="Axial planes of the brain on the model's grid, all in one grey scale; the person's left is on the "
        "left. Beside them what changed, all on one scale, white for nothing.",
    )


def _row(label: str, after: np.ndarray, before: np.ndarray, visit: Visit, previous: Visit) -> PictureRow:
    values = _lift(after, visit)
    return PictureRow(label=label, values=values, change=values - _lift(before, previous))


def _lift(volume: np.ndarray, visit: Visit) -> np.ndarray:
    """Values in [0, 1], and nothing around the brain."""
    return np.where(visit.brain, (volume + 1) / 2, 0).astype(np.float32)
