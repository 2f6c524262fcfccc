"""The map over the anatomy, on slices through the brain.

Never a surface, never a midline profile, and of a whole head only what `faces.find_visible` allows: no picture that a
face could be told from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.ndimage import gaussian_filter

from neuroray.platform.evaluate import faces
from neuroray.platform.evaluate.style import styled
from neuroray.platform.explain.maps import Explanation
from neuroray.platform.models.layers.slices import AXES
from neuroray.storage.scan import Scan

BACKDROP = "#07090b"
_LIGHT, _DIM, _WARM, _COOL = "#e8edf1", "#93a0ac", "#ffb36b", "#7db7ee"
# Depths below the top of the head, in mm: from under the vertex to the height of the orbits; down to the skull base.
_SHALLOWEST_MM, _DEEPEST_MM, _SKULL_BASE_MM = 16.0, 92.0, 150.0
_NUM_COLUMNS, _NUM_ROWS = 5, 2
# A voxelwise gradient is grain to the eye; it is smoothed for the picture alone, never in the file.
_SMOOTHING_FWHM_MM = 6.0
_FWHM_PER_SIGMA = 2.3548
_WIDTH_IN, _GAP_IN, _MARGIN_IN, _TITLE_IN, _BAR_IN = 9.0, 0.06, 0.18, 0.24, 0.66


@dataclass(frozen=True, slots=True, kw_only=True)
class _Box:
    """The part of the world that a picture shows, in mm along x, y, z."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]

    def size_mm(self, axis: int) -> float:
        return self.high[axis] - self.low[axis]


@dataclass(frozen=True, slots=True, kw_only=True)
class VoxelMap:
    """What is drawn over the anatomy.

    Attributes:
        values: On the grid of the scan; 0 where there is nothing to say.
        quantity: What a value is, in words and unit.
        is_signed: Whether values may be below 0.
    """

    values: Float[np.ndarray, "x y z"]
    quantity: str
    is_signed: bool


@styled
def draw_overlay(scan: Scan, explanation: Explanation) -> Figure:
    """Bands beside their curve where the map is one value a slice, else axial planes."""
    if explanation.is_slicewise:
        return _draw_bands(scan, explanation)
    shown = VoxelMap(values=explanation.values, quantity=explanation.quantity, is_signed=explanation.is_signed)
    return _draw_montage(scan, shown)


@styled
def draw_map(scan: Scan, voxel_map: VoxelMap) -> Figure:
    """Axial planes of a volume (of a run: its mean image) with the map over them."""
    return _draw_montage(scan, voxel_map)


def find_head(scan: Scan) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """The box around what is not air, in world mm along x, y, z (an oblique scan: along its own axes).

    A plane counts as head where a hundredth of it is bright: more than noise makes, less than the least cap of a head.
    """
    volume = _finite(scan)
    bright = volume > 0.15 * np.quantile(volume, 0.995)
    low, high = [], []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        planes = np.flatnonzero(bright.mean(axis=others) > 0.01)
        first, last = (planes.min(), planes.max()) if len(planes) else (0, volume.shape[axis] - 1)
        low.append(world_mm(scan, axis, first - 0.5))
        high.append(world_mm(scan, axis, last + 0.5))
    return (low[0], low[1], low[2]), (high[0], high[1], high[2])


def world_mm(scan: Scan, axis: int, index: float) -> float:
    """World coordinate, along one axis, of a plane of the grid, taken at its middle."""
    point = np.array([*((length - 1) / 2 for length in scan.grid_shape), 1.0])
    point[axis] = index
    return float(scan.affine[axis] @ point)


def _draw_montage(scan: Scan, voxel_map: VoxelMap) -> Figure:
    box = _frame_head(scan)
    shown = _find_shown(scan)
    values = _smooth(scan, voxel_map)
    planes = _choose_planes(scan, voxel_map.values, box)
    width = (_WIDTH_IN - 2 * _MARGIN_IN - (_NUM_COLUMNS - 1) * _GAP_IN) / _NUM_COLUMNS
    height = width * box.size_mm(1) / box.size_mm(0)
    num_rows = -(-len(planes) // _NUM_COLUMNS)
    figure = Figure(figsize=(_WIDTH_IN, num_rows * (height + _TITLE_IN) + _BAR_IN + _MARGIN_IN))
    _free_layout(figure)
    magnitude = np.abs(values[:, :, planes][values[:, :, planes] != 0])
    scale = float(np.quantile(magnitude, 0.995)) if len(magnitude) else 1.0
    colours, norm = _colours(scale or 1.0, is_signed=voxel_map.is_signed)
    for number, plane in enumerate(planes):
        row, column = divmod(number, _NUM_COLUMNS)
        bottom = _BAR_IN + (num_rows - 1 - row) * (height + _TITLE_IN)
        axes = _add_axes(figure, _MARGIN_IN + column * (width + _GAP_IN), bottom, width, height)
        look = {"colours": colours, "norm": norm, "interpolation": "bilinear"}
        _draw_plane(axes, scan, values, shown=shown, axis=2, index=plane, **look)
        _frame(axes, box, 0, 1, title=f"z = {world_mm(scan, 2, plane):.0f} mm")
        if not number:
            _mark_sides(axes)
    _add_scale(figure, colours, norm, voxel_map.quantity)
    _tell_hidden(figure, scan, shown)
    return figure


def _draw_bands(scan: Scan, explanation: Explanation) -> Figure:
    """Planes that cut all slices, and beside them, over the same millimetres, their curve."""
    along = AXES[explanation.profile.axis]
    # Axial slices are cut by coronal planes through the middle of the head, the others by axial ones above the eyes.
    cut, across, up = (1, 0, 2) if along == 2 else (2, 0, 1)
    box = _frame_head(scan, explanation.profile.position_mm if along == 2 else None)
    shown = _find_shown(scan)
    curve_in, label_in = 1.9, 0.62
    width = (_WIDTH_IN - 2 * _MARGIN_IN - 2 * _GAP_IN - curve_in - label_in) / 3
    height = width * box.size_mm(up) / box.size_mm(across)
    figure = Figure(figsize=(_WIDTH_IN, height + _TITLE_IN + _BAR_IN + 0.3))
    _free_layout(figure)
    colours, norm = _colours(_band_scale(explanation), is_signed=explanation.is_signed)
    for number, plane in enumerate(_cutting_planes(scan, cut, box)):
        axes = _add_axes(figure, _MARGIN_IN + number * (width + _GAP_IN), _BAR_IN + 0.2, width, height)
        _draw_plane(axes, scan, explanation.values, shown=shown, axis=cut, index=plane, colours=colours, norm=norm)
        _frame(axes, box, across, up, title=f"{'xyz'[cut]} = {world_mm(scan, cut, plane):.0f} mm")
        if not number:
            _mark_sides(axes)
    left = _MARGIN_IN + 3 * width + 2 * _GAP_IN + label_in
    curve = _add_axes(figure, left, _BAR_IN + 0.2, curve_in, height)
    _draw_curve(curve, explanation)
    if along != 0:
        curve.set_ylim(box.low[up], box.high[up])
    _add_scale(figure, colours, norm, explanation.quantity, width_in=3 * width + 2 * _GAP_IN)
    _tell_hidden(figure, scan, shown)
    return figure


def _band_scale(explanation: Explanation) -> float:
    """Where the colours end: even attention lies in their middle, so that it does not look like a finding."""
    largest = float(np.abs(explanation.values).max())
    if explanation.method == "attention":
        largest = max(largest, 2 / (len(explanation.profile.weight) * explanation.profile.spacing_mm))
    return largest or 1.0


def _draw_curve(axes: Axes, explanation: Explanation) -> None:
    """Attention density, or what is lost, over the slice axis; upright where the slices lie across the picture."""
    profile = explanation.profile
    upright = AXES[profile.axis] != 0
    is_attention = explanation.method == "attention"
    amount = 100 * (profile.weight / profile.spacing_mm if is_attention else profile.probability_change)
    order = np.argsort(profile.position_mm)
    position, amount = profile.position_mm[order], amount[order]
    colour = _WARM if is_attention else _COOL
    what = "attention per mm (%)" if is_attention else f"“{explanation.target}” lost without it (points)"
    where = f"{'xyz'[AXES[profile.axis]]} (mm)"
    fill, points = (axes.fill_betweenx, (amount, position)) if upright else (axes.fill_between, (position, amount))
    fill(position, 0, amount, color=colour, alpha=0.22, lw=0)
    axes.plot(*points, color=colour, lw=1.4)
    axes.set(**dict(zip(("xlabel", "ylabel") if upright else ("ylabel", "xlabel"), (what, where), strict=True)))
    reference = 100 / (len(position) * profile.spacing_mm) if is_attention else 0.0
    (axes.axvline if upright else axes.axhline)(reference, color=_DIM, lw=0.8, ls=(0, (4, 3)))
    axes.set_facecolor(BACKDROP)
    axes.spines[:].set_color(_DIM)
    axes.tick_params(colors=_DIM, labelcolor=_LIGHT)
    axes.xaxis.label.set_color(_LIGHT)
    axes.yaxis.label.set_color(_LIGHT)


def _draw_plane(
    axes: Axes,
    scan: Scan,
    values: Float[np.ndarray, "x y z"],
    *,
    shown: Bool[np.ndarray, "x y z"],
    axis: int,
    index: int,
    colours: Colormap,
    norm: Normalize,
    interpolation: str = "nearest",
) -> None:
    """One plane in world millimetres, the person's left on the left."""
    volume = np.where(shown, _finite(scan), 0)
    low, high = np.quantile(volume[volume > 0] if (volume > 0).any() else volume, [0.02, 0.995])
    across, up = (other for other in range(3) if other != axis)
    extent = (*_edges_mm(scan, across), *_edges_mm(scan, up))
    anatomy = np.take(volume, index, axis=axis).T
    axes.imshow(anatomy, cmap="gray", vmin=low, vmax=high, extent=extent, origin="lower", interpolation="bicubic")
    amount = np.take(values, index, axis=axis).T
    # Air is not tinted: there is no anatomy in it.
    head = np.clip(3 * gaussian_filter((anatomy > 0.12 * high).astype(float), 1.5) - 1, 0, 1)
    head = head * np.take(shown, index, axis=axis).T
    tint = colours(norm(amount))
    strength = np.abs(amount) / max(abs(float(norm.vmin or 0)), abs(float(norm.vmax or 1)))
    tint[..., 3] = np.clip(0.05 + 0.8 * strength, 0, 0.78) * (amount != 0) * head
    axes.imshow(tint, extent=extent, origin="lower", interpolation=interpolation)


def _find_shown(scan: Scan) -> Bool[np.ndarray, "x y z"]:
    """What may be shown: of a brain all, of a whole head no face, of a scan that may lie anyhow nothing."""
    volume = _finite(scan)
    brain = faces.find_masked_brain(volume, scan.zooms_mm)
    visible = None if faces.is_lost(scan.flags) else faces.find_visible(faces.find_head(volume), scan.zooms_mm, brain)
    return np.zeros(volume.shape, bool) if visible is None else visible.allowed


def _tell_hidden(figure: Figure, scan: Scan, shown: Bool[np.ndarray, "x y z"]) -> None:
    if not shown.any():
        lost = "its header does not say how the scan lies, so a face could not be kept out"
        why = lost if faces.is_lost(scan.flags) else "no head was found in the scan"
        figure.text(0.5, 0.5, f"Not shown: {why}", color=_LIGHT, fontsize=9, ha="center", va="center")


def _colours(scale: float, *, is_signed: bool) -> tuple[Colormap, Normalize]:
    if is_signed:
        stops = ["#5ab4ff", "#2f6fb8", "#9aa3ab", "#d1553a", "#ffab70"]
        return LinearSegmentedColormap.from_list("signed", stops), Normalize(-scale, scale)
    stops = ["#5b2a6e", "#b8324f", "#f08536", "#ffdf73"]
    return LinearSegmentedColormap.from_list("amount", stops), Normalize(0, scale)


def _smooth(scan: Scan, voxel_map: VoxelMap) -> Float[np.ndarray, "x y z"]:
    values = np.asarray(voxel_map.values, dtype=float)
    if not voxel_map.is_signed:
        return values
    return gaussian_filter(values, [_SMOOTHING_FWHM_MM / _FWHM_PER_SIGMA / zoom for zoom in scan.zooms_mm])


def _choose_planes(scan: Scan, values: Float[np.ndarray, "x y z"], box: _Box) -> list[int]:
    """Axial planes, evenly spaced from under the vertex to above the orbits, as far as the model looked."""
    looked = np.flatnonzero(np.any(values != 0, axis=(0, 1)))
    top = _plane_at(scan, 2, box.high[2] - _SHALLOWEST_MM)
    bottom = _plane_at(scan, 2, box.high[2] - _DEEPEST_MM)
    if len(looked) and looked.max() > bottom and looked.min() < top:
        bottom, top = max(bottom, int(looked.min())), min(top, int(looked.max()))
    # Two full rows, or one: planes are shown once.
    number = _NUM_COLUMNS * (_NUM_ROWS if top - bottom >= _NUM_COLUMNS * _NUM_ROWS else 1)
    return sorted({round(plane) for plane in np.linspace(bottom, top, number)})


def _cutting_planes(scan: Scan, axis: int, box: _Box) -> list[int]:
    """Three planes: through the middle of the head (coronal), or above the eyes (axial)."""
    if axis == 2:
        places = [box.high[2] - depth for depth in (85.0, 65.0, 45.0)]
    else:
        middle = (box.low[1] + box.high[1]) / 2
        places = [middle + offset for offset in (-28.0, -10.0, 8.0)]
    return [_plane_at(scan, axis, place) for place in places]


def _plane_at(scan: Scan, axis: int, place_mm: float) -> int:
    step = world_mm(scan, axis, 1) - world_mm(scan, axis, 0)
    return int(np.clip(round((place_mm - world_mm(scan, axis, 0)) / step), 0, scan.grid_shape[axis] - 1))


def _edges_mm(scan: Scan, axis: int) -> tuple[float, float]:
    return world_mm(scan, axis, -0.5), world_mm(scan, axis, scan.grid_shape[axis] - 0.5)


def _frame_head(scan: Scan, position_mm: Float[np.ndarray, " slice"] | None = None) -> _Box:
    """The head with a small margin, down to the skull base, or as deep as slices were looked at."""
    low, high = find_head(scan)
    floor = high[2] - _SKULL_BASE_MM if position_mm is None else min(high[2] - _SKULL_BASE_MM, position_mm.min() - 3)
    bottom = max(floor, world_mm(scan, 2, -0.5))
    return _Box(low=(low[0] - 4, low[1] - 4, bottom), high=(high[0] + 4, high[1] + 4, high[2] + 4))


def _frame(axes: Axes, box: _Box, across: int, up: int, *, title: str) -> None:
    axes.set(xlim=(box.low[across], box.high[across]), ylim=(box.low[up], box.high[up]), aspect="auto")
    axes.set_axis_off()
    axes.set_title(title, color=_DIM, fontsize=7.5, fontweight="normal", pad=4, loc="center")


def _free_layout(figure: Figure) -> None:
    """Axes stay where they are put: pictures and curve must share their millimetres."""
    figure.set_layout_engine("none")
    figure.set_facecolor(BACKDROP)


def _add_axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place given in inches."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def _mark_sides(axes: Axes) -> None:
    for place, side in ((0.04, "L"), (0.96, "R")):
        axes.text(place, 0.06, side, transform=axes.transAxes, color=_LIGHT, fontsize=8, ha="center", va="center")


def _add_scale(figure: Figure, colours: Colormap, norm: Normalize, label: str, *, width_in: float = 0.0) -> None:
    """The colour bar below the pictures, as wide as they are."""
    # Narrower than the pictures by half a number at each end, so that the outer numbers are not cut off.
    axes = _add_axes(figure, _MARGIN_IN + 0.12, 0.46, (width_in or _WIDTH_IN - 2 * _MARGIN_IN) - 0.24, 0.08)
    bar = figure.colorbar(ScalarMappable(norm=norm, cmap=colours), cax=axes, orientation="horizontal")
    bar.set_label(label, color=_LIGHT, fontsize=8)
    axes.tick_params(colors=_DIM, labelcolor=_LIGHT, labelsize=7)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.ticklabel_format(axis="x", scilimits=(-2, 3), useMathText=True)
    axes.xaxis.get_offset_text().set(color=_LIGHT, fontsize=7)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]  # a Spine; the stubs call it a float


def _finite(scan: Scan) -> Float[np.ndarray, "x y z"]:
    return np.nan_to_num(np.asarray(scan.voxels, dtype=np.float32), nan=0.0, posinf=0.0, neginf=0.0)
