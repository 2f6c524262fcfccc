"""What speaks against a scan, or against an answer for it, in plain words."""

from __future__ import annotations

import numpy as np

from neuroray.platform.quality.t1w_signs import find_t1w_oddities
from neuroray.serve.prediction import Bounds
from neuroray.storage.scan import Scan

# Headers round voxel sizes by about a percent; what differs by less is the same.
_SPACING_TOLERANCE = 1.02
# Of the coarsest voxels of the training: beyond, the answer is about another kind of picture.
_EXTREME = 2.0
# A whole adult head with its neck is 150 to 300 mm long in every direction; less is a part of one, more is no head.
_FIELD_OF_VIEW_MM = (120.0, 330.0)
# An image of a head has hundreds of grey values, a segmentation at most about two hundred labels.
_FEWEST_VALUES = 32


def find_faults(scan: Scan, modality: str) -> tuple[str, ...]:
    """What speaks against the file as it was read, for a model of such scans, whatever it makes of them.

    A volume for a model of T1w that is as large as a head and no segmentation is also looked at for what T1-weighted
    heads are not: cropped, of another contrast, CT, noise.
    """
    warnings = list(scan.flags)
    field_mm = tuple(count * zoom for count, zoom in zip(scan.grid_shape, scan.zooms_mm, strict=True))
    shortest, longest = _FIELD_OF_VIEW_MM
    if min(field_mm) < shortest or max(field_mm) > longest:
        warnings.append(f"a field of view of {_tell_mm(field_mm)}, which is not that of a whole head")
    volume = scan.voxels[scan.num_frames // 2] if scan.is_timeseries else scan.voxels
    if len(np.unique(volume[::2, ::2, ::2])) < _FEWEST_VALUES:
        warnings.append(f"fewer than {_FEWEST_VALUES} different values: this looks like a segmentation, not an image")
    if modality == "T1w" and not scan.is_timeseries and len(warnings) == len(scan.flags):
        warnings += find_t1w_oddities(volume, scan.zooms_mm)
    return tuple(warnings)


def compare_spacing(scan: Scan, trained_mm: Bounds | None) -> tuple[str, ...]:
    """Voxel sizes that were not among those of the training."""
    if trained_mm is None or is_within(scan.zooms_mm, trained_mm):
        return ()
    low, high = (_tell_mm(bound) for bound in trained_mm)
    told = f"voxels of {_tell_mm(scan.zooms_mm)}; the model was trained on {low} to {high}"
    coarse = any(length > _EXTREME * most for length, most in zip(scan.zooms_mm, trained_mm[1], strict=True))
    return (f"{told}: more than twice as coarse, what is small does not show in it" if coarse else told,)


def tell_unused(*, sex: str | None = None, age_years: float | None = None) -> tuple[str, ...]:
    """What was told of the person and made no difference."""
    given = [name for name, value in (("sex", sex), ("age", age_years)) if value is not None]
    return (f"the {' and the '.join(given)} of the person: not used by this model",) if given else ()


def is_within(lengths: tuple[float, ...], bounds: Bounds) -> bool:
    """Whether each lies between its bounds, give or take what headers round."""
    low, high = bounds
    return all(
        least / _SPACING_TOLERANCE <= length <= most * _SPACING_TOLERANCE
        for length, least, most in zip(lengths, low, high, strict=True)
    )


def _tell_mm(lengths: tuple[float, ...]) -> str:
    return " x ".join(f"{length:.3g}" for length in lengths) + " mm"
