"""How much a run moved, in three numbers, and the range of them over the runs that a model was trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool
from scipy import ndimage

from neuroray.platform.evaluate.faces import find_masked_brain
from neuroray.platform.quality.examine import read_blocks
from neuroray.platform.quality.motion import estimate_motion, framewise_displacement
from neuroray.platform.quality.regions import find_regions
from neuroray.platform.quality.runs import Blocks, take_moments, take_series
from neuroray.storage.store import ScanStore

_RANGED = ("fd_mean_mm", "fd_max_mm", "dvars")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunMotion:
    """Motion of one run; the measures are those of `neuroray qc`.

    Attributes:
        fd_mean_mm: Mean framewise displacement (Power et al. 2012); None where the head was found in no step.
        fd_max_mm: The largest.
        dvars: Mean change from frame to frame inside the brain, the median of the mean image being 1000 (10 is 1 %);
            None of a single frame.
        num_lost: Steps into or out of a frame in which the head was not found, as an empty one.
    """

    fd_mean_mm: float | None
    fd_max_mm: float | None
    dvars: float | None
    num_lost: int

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return dataclasses.asdict(self)


def measure_motion(
    blocks: Blocks, spacing_mm: tuple[float, float, float], brain: Bool[np.ndarray, "x y z"] | None
) -> RunMotion:
    """Three passes over a run, some frames at a time; 60 ms a frame of 91 x 109 x 91.

    Args:
        blocks: Its frames.
        spacing_mm: Along x, y, z.
        brain: The mask that is stored with it; None: what is not 0 where it came masked, else the head.
    """
    moments = take_moments(blocks)
    mean = moments.mean.astype(np.float32)
    if brain is None or not brain.any():
        brain = find_masked_brain(mean, spacing_mm)
    inside = find_regions(mean, spacing_mm, brain).inside
    if moments.num_frames < 2 or not inside.any():
        return RunMotion(fd_mean_mm=None, fd_max_mm=None, dvars=None, num_lost=0)
    depth = np.asarray(ndimage.distance_transform_edt(inside, sampling=spacing_mm))
    dvars = take_series(blocks, moments, inside, depth).dvars
    steps = framewise_displacement(estimate_motion(blocks, mean, spacing_mm, inside))
    found = steps[np.isfinite(steps)]
    return RunMotion(
        fd_mean_mm=float(found.mean()) if len(found) else None,
        fd_max_mm=float(found.max()) if len(found) else None,
        dvars=float(dvars.mean()) if np.isfinite(dvars).all() else None,
        num_lost=len(steps) - len(found),
    )


def measure_stored_motion(store: ScanStore, scan_id: str) -> RunMotion:
    """Of a stored run.

    Raises:
        StoreError: an object of it is missing or damaged.
    """
    record = store.record(scan_id)
    x, y, z = record.zooms_mm[-3:]
    return measure_motion(lambda: read_blocks(store, record), (x, y, z), store.read_mask(scan_id))


def describe_range(found: Sequence[RunMotion]) -> dict[str, Any]:
    """Smallest and largest of each number among runs, for a model's card; None of one that no run has."""
    ranges: dict[str, Any] = {"num_runs": len(found)}
    for name in _RANGED:
        values = [value for value in (getattr(one, name) for one in found) if value is not None]
        ranges[name] = [min(values), max(values)] if values else None
    return ranges


def choose_spread(scan_ids: Sequence[str], most: int) -> list[str]:
    """At most so many, evenly over their order."""
    places = np.unique(np.linspace(0, len(scan_ids) - 1, min(most, len(scan_ids))).round().astype(int))
    return [scan_ids[int(place)] for place in places]


def compare_motion(found: RunMotion, trained: Mapping[str, Any] | None) -> tuple[str, ...]:
    """What lies above all that was measured in training, and frames without a head, in plain words.

    A run that moves less than those of the training is no trouble. Without a range nothing is compared.
    """
    told = []
    if found.num_lost:
        told.append(f"the head was not found in all frames: {found.num_lost} steps between frames have no motion")
    sentences = {
        "fd_mean_mm": "the head moved by {:.2f} mm from frame to frame on average",
        "fd_max_mm": "the head moved by {:.2f} mm between two frames",
        "dvars": "the signal jumped by DVARS {:.1f} from frame to frame on average",
    }
    for name, sentence in sentences.items():
        value, known = getattr(found, name), (trained or {}).get(name)
        # A hundredth more is what rounding to integers in a file makes.
        if value is not None and known is not None and value > 1.01 * known[1]:
            most = f"{known[1]:.1f}" if name == "dvars" else f"{known[1]:.2f} mm"
            runs = (trained or {})["num_runs"]
            told.append(f"{sentence.format(value)}; in {runs} runs of the training at most {most}")
    return tuple(told)
