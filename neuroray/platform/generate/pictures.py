"""The strip and the animation of a brain over ages, on axial planes of the scan's own grid, without a face."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from neuroray.platform.evaluate import faces
from neuroray.platform.evaluate.style import styled, to_png
from neuroray.storage.scan import Scan

BACKDROP, _LIGHT, _DIM = "#07090b", "#e8edf1", "#93a0ac"
_NUM_PLANES = 4
# Of the shown part's height, from below: through the ventricles and above, clear of what ends in single voxels.
_PLANES_FROM, _PLANES_TO = 0.36, 0.78
_PANEL_IN, _LABEL_IN, _TOP_IN, _BOTTOM_IN = 1.15, 0.95, 0.42, 0.42
_FRAME_MS = 900
_NOTES = "Ages: minus the tokenizer's reconstruction of the scan. Reconstruction: minus the scan."


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureRow:
    """One row of the strip.

    Attributes:
        label: Left of it.
        values: On the scan's grid, in its units.
        change: Drawn beside it; None: nothing is.
    """

    label: str
    values: Float[np.ndarray, "x y z"]
    change: Float[np.ndarray, "x y z"] | None


def find_shown(
    scan: Scan, volume: Float[np.ndarray, "x y z"], brain: Bool[np.ndarray, "x y z"]
) -> Bool[np.ndarray, "x y z"]:
    """What a picture may show: the brain; of a whole head no face; of a scan that may lie anyhow nothing."""
    if faces.is_lost(scan.flags):
        return np.zeros(volume.shape, bool)
    visible = faces.find_visible(faces.find_head(volume), scan.zooms_mm, brain)
    return np.zeros(volume.shape, bool) if visible is None else visible.allowed


@styled
def draw_strip(
    scan: Scan,
    rows: Sequence[PictureRow],
    shown: Bool[np.ndarray, "x y z"],
    *,
    notes: str = _NOTES,
    units: str = "in the scan's units",
) -> Figure:
    """A row each: planes, and beside them what has changed, all on one scale; the first row sets the grey.

    Args:
        scan: Whose grid it is.
        rows: From top to bottom.
        shown: What a picture may show.
        notes: Below: what changes are against.
        units: Of the values.
    """
    height = _panel_height(scan, shown)
    figure = Figure(
        figsize=(_LABEL_IN + 2 * _NUM_PLANES * _PANEL_IN, _TOP_IN + _BOTTOM_IN + len(rows) * height),
        facecolor=BACKDROP,
    )
    figure.set_layout_engine("none")
    grey, largest = grey_range(rows[0].values, shown), largest_change(rows, shown)
    planes = _choose_planes(shown)
    for number, row in enumerate(rows):
        bottom = _BOTTOM_IN + (len(rows) - 1 - number) * height
        write_text(figure, 0.06, bottom + height / 2, row.label, size=8)
        for column, plane in enumerate(planes):
            axes = _add_panel(figure, _LABEL_IN + column * _PANEL_IN, bottom, height)
            _draw(axes, scan, row.values, shown, plane, cmap="gray", limits=grey)
            if row.change is not None:
                left = _LABEL_IN + (_NUM_PLANES + column) * _PANEL_IN
                axes = _add_panel(figure, left, bottom, height)
                _draw(axes, scan, row.change, shown, plane, cmap="RdBu_r", limits=(-largest, largest))
    top = figure.get_size_inches()[1] - 0.2
    write_text(figure, _LABEL_IN, top, f"the brain, {units}; person's left on the left", size=8)
    told = f"change, blue {-largest:.3g} to red {largest:.3g}; white: none"
    write_text(figure, _LABEL_IN + _NUM_PLANES * _PANEL_IN, top, told, size=8)
    write_text(figure, _LABEL_IN, 0.2, notes if shown.any() else "Not shown: a face could not be kept out", size=7)
    return figure


@styled
def draw_frame(
    scan: Scan,
    row: PictureRow,
    shown: Bool[np.ndarray, "x y z"],
    grey: tuple[float, float],
    planes: Sequence[int],
) -> Figure:
    """The planes at one age, with the age above them."""
    height = _panel_height(scan, shown)
    size = (_NUM_PLANES * _PANEL_IN, _TOP_IN + height)
    figure = Figure(figsize=size, facecolor=BACKDROP)
    figure.set_layout_engine("none")
    for column, plane in enumerate(planes):
        axes = _add_panel(figure, column * _PANEL_IN, 0.0, height)
        _draw(axes, scan, row.values, shown, plane, cmap="gray", limits=grey)
    write_text(figure, 0.08, height + _TOP_IN / 2, row.label.replace("\n", ", "), size=10)
    return figure


def make_animation(scan: Scan, rows: Sequence[PictureRow], shown: Bool[np.ndarray, "x y z"]) -> bytes:
    """A GIF with a frame for each row, in their order, over and over; the same bytes each time."""
    grey, planes = grey_range(rows[0].values, shown), _choose_planes(shown)
    frames = [
        Image.open(io.BytesIO(to_dark_png(draw_frame(scan, row, shown, grey, planes)))).convert("L") for row in rows
    ]
    data = io.BytesIO()
    frames[0].save(data, format="GIF", save_all=True, append_images=frames[1:], duration=_FRAME_MS, loop=0)
    return data.getvalue()


def to_dark_png(figure: Figure) -> bytes:
    """A strip or a frame as PNG, on its own dark ground."""
    return to_png(figure, dots_per_inch=120, background=BACKDROP)


def _choose_planes(shown: Bool[np.ndarray, "x y z"]) -> list[int]:
    held = np.flatnonzero(shown.any(axis=(0, 1)))
    low, high = (held[0], held[-1]) if len(held) else (0, shown.shape[2] - 1)
    return [round(low + share * (high - low)) for share in np.linspace(_PLANES_FROM, _PLANES_TO, _NUM_PLANES)]


def grey_range(values: Float[np.ndarray, "x y z"], shown: Bool[np.ndarray, "x y z"]) -> tuple[float, float]:
    """What is black and what is white: 0 (or less) and the brightest half of a percent left aside."""
    inside = values[shown & np.isfinite(values)]
    if not inside.size:
        return 0.0, 1.0
    return min(0.0, float(np.quantile(inside, 0.005))), float(np.quantile(inside, 0.995))


def largest_change(rows: Sequence[PictureRow], shown: Bool[np.ndarray, "x y z"]) -> float:
    """The 99.5th percentile over all rows."""
    found = [np.abs(row.change[shown]) for row in rows if row.change is not None]
    largest = max((float(np.quantile(one, 0.995)) for one in found if one.size), default=0.0)
    return largest or 1.0


def _crop(shown: Bool[np.ndarray, "x y z"]) -> tuple[slice, slice]:
    spans = [np.flatnonzero(shown.any(axis=(1 - axis, 2))) for axis in (0, 1)]
    across, up = (slice(span[0], span[-1] + 1) if len(span) else slice(None) for span in spans)
    return across, up


def _panel_height(scan: Scan, shown: Bool[np.ndarray, "x y z"]) -> float:
    across, up = _crop(shown)
    x, y, _ = scan.zooms_mm
    width = len(range(*across.indices(shown.shape[0]))) * x
    return _PANEL_IN * len(range(*up.indices(shown.shape[1]))) * y / width


def _draw(
    axes: Axes,
    scan: Scan,
    values: Float[np.ndarray, "x y z"],
    shown: Bool[np.ndarray, "x y z"],
    plane: int,
    *,
    cmap: str,
    limits: tuple[float, float],
) -> None:
    across, up = _crop(shown)
    image = np.where(shown, values, np.nan)[across, up, plane].T
    x, y, _ = scan.zooms_mm
    axes.imshow(image, cmap=cmap, vmin=limits[0], vmax=limits[1], origin="lower", aspect=y / x)


def _add_panel(figure: Figure, left: float, bottom: float, height: float) -> Axes:
    across, up = figure.get_size_inches()
    axes = figure.add_axes((left / across, bottom / up, _PANEL_IN / across, height / up))
    axes.set_axis_off()
    axes.set_facecolor(BACKDROP)
    return axes


def write_text(figure: Figure, left: float, bottom: float, text: str, *, size: float) -> None:
    """A line of text that begins so many inches from the left and is centred so many above the bottom."""
    across, up = figure.get_size_inches()
    colour = _LIGHT if size >= 8 else _DIM
    figure.text(left / across, bottom / up, text, color=colour, fontsize=size, va="center", ha="left")
