"""Pictures of a sweep: the rows of its strip, and for each age the three planes through one place, on one scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.figure import Figure

from neuroray.platform.evaluate.style import styled
from neuroray.platform.generate.ages import name_age
from neuroray.platform.generate.pictures import (
    BACKDROP,
    PictureRow,
    find_shown,
    grey_range,
    largest_change,
    to_dark_png,
    write_text,
)
from neuroray.platform.generate.sweep import AgeSweep
from neuroray.storage.scan import Scan

_PANEL_IN, _GAP_IN, _TOP_IN, _BOTTOM_IN = 2.1, 0.06, 0.34, 0.34
# Left of the middle: the sagittal plane passes through a lateral ventricle, and not between the two.
_ASIDE_MM = 10.0
Shown = Bool[np.ndarray, "x y z"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where and how all ages are drawn, so that they can be compared.

    Attributes:
        index: The voxel through which the planes go.
        crop: What of the grid is drawn.
        grey: Darkest and brightest value.
        largest: The change that is fully red or blue.
    """

    index: tuple[int, int, int]
    crop: tuple[slice, slice, slice]
    grey: tuple[float, float]
    largest: float


def find_shown_of(sweep: AgeSweep) -> Shown:
    """What pictures of this scan may show; see `find_shown`."""
    scan = sweep.given.own_grid
    return find_shown(scan, np.nan_to_num(np.asarray(scan.voxels, np.float32)), sweep.brain)


def tell_notes(sweep: AgeSweep) -> str:
    """What changes of a strip are against."""
    if _keeps_detail(sweep):
        return "Ages: minus the scan, whose detail was kept. Reconstruction: what the tokenizer can draw of the scan."
    return "Ages: minus the tokenizer's reconstruction of the scan. Reconstruction: minus the scan."


def tell_rows(sweep: AgeSweep) -> list[PictureRow]:
    """The scan, its reconstruction, and each age.

    Beside the reconstruction stands what it has lost of the scan, by which changes of what is told of tokens are to be
    judged. Where the scan's detail is kept nothing of that is in the ages, and its scale would hide their changes.
    """
    now = f"{name_age(sweep.asked.age_years)} years"
    base = sweep.reconstruction
    lost = None if _keeps_detail(sweep) else base - sweep.prepared
    rows = [
        PictureRow(label=f"scan\n{now}", values=sweep.prepared, change=None),
        PictureRow(label=f"reconstructed\n{now}", values=base, change=lost),
    ]
    return rows + [
        PictureRow(label=f"generated\n{name_age(one.age_years)} years", values=one.values, change=sweep.change_to(one))
        for one in sweep.made
    ]


def draw_ages(sweep: AgeSweep) -> list[bytes]:
    """A PNG for each age: axial, coronal and sagittal plane, and below them what has changed; all on one scale."""
    shown, rows = find_shown_of(sweep), tell_rows(sweep)[2:]
    place = _choose_place(sweep, rows, shown)
    what = f"change against the {'scan' if _keeps_detail(sweep) else 'reconstruction'}"
    return [to_dark_png(_draw_age(sweep.given.own_grid, row, shown, place, what)) for row in rows]


def draw_change(sweep: AgeSweep, values: Float[np.ndarray, "x y z"]) -> bytes:
    """A PNG of a map over the reconstruction: three planes of either."""
    shown = find_shown_of(sweep)
    row = PictureRow(label="the scan, as the tokenizer draws it", values=sweep.reconstruction, change=values)
    told = "change per year over the ages told"
    figure = _draw_age(sweep.given.own_grid, row, shown, _choose_place(sweep, [row], shown), told)
    return to_dark_png(figure)


@styled
def _draw_age(scan: Scan, row: PictureRow, shown: Shown, place: _Place, what: str) -> Figure:
    x, y, z = (len(range(*one.indices(n))) for one, n in zip(place.crop, shown.shape, strict=True))
    wide, deep, high = (n * zoom for n, zoom in zip((x, y, z), scan.zooms_mm, strict=True))
    scale = _PANEL_IN / max(wide, deep, high)
    widths, heights = (wide * scale, wide * scale, deep * scale), (deep * scale, high * scale, high * scale)
    total = (sum(widths) + 2 * _GAP_IN, _TOP_IN + 2 * max(heights) + _GAP_IN + _BOTTOM_IN)
    figure = Figure(figsize=total, facecolor=BACKDROP)
    figure.set_layout_engine("none")
    change = np.zeros_like(row.values) if row.change is None else row.change
    for line, (values, cmap, limits) in enumerate(
        ((row.values, "gray", place.grey), (change, "RdBu_r", (-place.largest, place.largest)))
    ):
        left, bottom = 0.0, _BOTTOM_IN + (1 - line) * (max(heights) + _GAP_IN)
        for axis, (width, height) in enumerate(zip(widths, heights, strict=True)):
            panel = figure.add_axes((left / total[0], bottom / total[1], width / total[0], height / total[1]))
            panel.set_axis_off()
            image = _cut(np.where(shown, values, np.nan), axis, place)
            panel.imshow(image, cmap=cmap, vmin=limits[0], vmax=limits[1], origin="lower", aspect="auto")
            left += width + _GAP_IN
    write_text(figure, 0.06, total[1] - _TOP_IN / 2, row.label.replace("\n", ", "), size=9)
    told = f"{what}, blue {-place.largest:.3g} to red {place.largest:.3g}; left is left"
    write_text(figure, 0.06, _BOTTOM_IN / 2, told if shown.any() else "Not shown: a face could not be kept out", size=7)
    return figure


def _cut(values: Float[np.ndarray, "x y z"], axis: int, place: _Place) -> Float[np.ndarray, "row column"]:
    """Axial, coronal, sagittal for 0, 1, 2; the sagittal one looks to the left: the nose is on the left of it."""
    x, y, z = place.crop
    i, j, k = place.index
    return (values[x, y, k].T, values[x, j, z].T, values[i, y, z][::-1].T)[axis]


def _choose_place(sweep: AgeSweep, rows: Sequence[PictureRow], shown: Shown) -> _Place:
    spans = [np.flatnonzero(shown.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    ends = [(span[0], span[-1]) if len(span) else (0, n - 1) for span, n in zip(spans, shown.shape, strict=True)]
    x, y, z = (round((low + high) / 2) for low, high in ends)
    aside = max(0, x - round(_ASIDE_MM / sweep.given.own_grid.zooms_mm[0]))
    crop = [slice(int(low), int(high) + 1) for low, high in ends]
    return _Place(
        index=(aside, y, z),
        crop=(crop[0], crop[1], crop[2]),
        grey=grey_range(sweep.prepared, shown),
        largest=largest_change(rows, shown),
    )


def _keeps_detail(sweep: AgeSweep) -> bool:
    return sweep.asked.sampling.detail == "scan"
