import dataclasses

import numpy as np
import pytest
from contracts import faced_head
from contracts.finished_run import make_head_scan

from neuroray.platform.evaluate.style import to_png
from neuroray.platform.explain.faithfulness import Deletion
from neuroray.platform.explain.figures import draw_checks, draw_profile
from neuroray.platform.explain.maps import Explanation, SliceProfile
from neuroray.platform.explain.overlay import BACKDROP, draw_overlay, find_head, world_mm
from neuroray.storage.scan import Scan


def _explain(scan, *, axis="axial", is_slicewise=True, is_signed=False):
    along = {"sagittal": 0, "coronal": 1, "axial": 2}[axis]
    index = np.arange(scan.grid_shape[along] // 4, 3 * scan.grid_shape[along] // 4)
    weight = np.linspace(1, 3, len(index)) / np.linspace(1, 3, len(index)).sum()
    values = np.zeros(scan.grid_shape, dtype=np.float32)
    np.moveaxis(values, along, 0)[index] = weight[:, None, None]
    if is_signed:
        values[::2] *= -1
    profile = SliceProfile(
        axis=axis,
        spacing_mm=scan.zooms_mm[along],
        slice_index=index,
        position_mm=np.array([world_mm(scan, along, k) for k in index]),
        weight=weight,
        probability_change=weight - weight.mean(),
    )
    return Explanation(
        method="attention" if is_slicewise else "gradient_x_input",
        target="patient",
        classes=("control", "patient"),
        probabilities=np.array([0.2, 0.8]),
        values=values,
        quantity="amount",
        is_signed=is_signed,
        is_slicewise=is_slicewise,
        profile=profile,
    )


@pytest.fixture(scope="module")
def scan():
    return make_head_scan(np.random.default_rng(0), is_patient=False)


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
def test_bands_and_their_curve_share_their_millimetres(scan, axis):
    figure = draw_overlay(scan, _explain(scan, axis=axis))
    picture, curve = figure.axes[0], figure.axes[3]
    if axis == "sagittal":
        return
    assert curve.get_ylim() == picture.get_ylim()
    assert curve.get_position().y0 == pytest.approx(picture.get_position().y0)
    assert curve.get_position().y1 == pytest.approx(picture.get_position().y1)


def test_axial_planes_stay_above_the_orbits(scan):
    taller = dataclasses.replace(scan, voxels=np.pad(scan.voxels, ((0, 0), (0, 0), (40, 0)), mode="edge"))
    found = _explain(taller, is_slicewise=False)
    found = dataclasses.replace(found, values=np.ones(taller.grid_shape, dtype=np.float32))
    figure = draw_overlay(taller, found)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title().startswith("z = ")]
    top_mm = find_head(taller)[1][2]
    places = [float(title.split()[2]) for title in titles]
    assert len(places) > 3
    # Half a plane of 8 mm, for planes are chosen whole.
    assert min(places) >= top_mm - 92 - 4.5
    assert max(places) <= top_mm


def _brightest(figure):
    """Of the anatomy under every map."""
    return max(float(np.max(axes.images[0].get_array())) for axes in figure.axes if axes.images)


@pytest.mark.parametrize("axis", [None, "axial", "sagittal"])
@pytest.mark.parametrize("pitch", [-0.3, 0.0, 0.3])
def test_no_plane_shows_eyes_or_nose(axis, pitch):
    volume = faced_head.make_head(pitch)
    scan = Scan(voxels=volume, affine=np.diag([*faced_head.SPACING_MM, 1.0]))
    found = _explain(scan, axis=axis or "axial", is_slicewise=axis is not None)
    figure = draw_overlay(scan, dataclasses.replace(found, values=np.ones_like(found.values)))
    assert _brightest(figure) == pytest.approx(faced_head.SKULL), "the skull is shown, the face is brighter"
    for axes in (axes for axes in figure.axes if len(axes.images) == 2):
        cut, _, place_mm, _ = axes.get_title().split()
        plane = np.take(volume, round(float(place_mm) / 2.0), axis="xyz".index(cut)).T
        anatomy, tint = (np.asarray(image.get_array()) for image in axes.images)
        # Nor does the map draw what the anatomy leaves out.
        assert not tint[..., 3][(anatomy == 0) & (plane > 0)].any()


def test_of_a_scan_that_may_lie_anyhow_nothing_is_shown(scan):
    lost = dataclasses.replace(
        scan, flags=("no orientation in the header: the first axis was taken to run to the left",)
    )
    figure = draw_overlay(lost, _explain(lost, is_slicewise=False))
    assert _brightest(figure) == 0
    assert any("a face could not be kept out" in text.get_text() for text in figure.texts)


def test_a_masked_brain_is_shown_whole():
    """Its front lies where a head has its face, and is no face."""
    points = np.indices(faced_head.SHAPE).reshape(3, -1).T * faced_head.SPACING_MM - faced_head.CENTRE_MM
    brain = (((points / [62, 82, 65]) ** 2).sum(axis=1) < 1).reshape(faced_head.SHAPE)
    values = np.where(brain, 1.0 + 4.0 * (np.indices(faced_head.SHAPE)[1] > 88), 0).astype(np.float32)
    scan = Scan(voxels=values, affine=np.diag([*faced_head.SPACING_MM, 1.0]))
    figure = draw_overlay(scan, _explain(scan, axis="sagittal"))
    planes = [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]
    assert all((plane == 5.0).any() for plane in planes)


def test_the_head_is_found_in_noise(scan):
    low, high = find_head(scan)
    # The ball's radius is sqrt(0.9) of half the grid; a plane counts once a hundredth of it is bright.
    for axis in range(3):
        length = scan.grid_shape[axis] * scan.zooms_mm[axis]
        assert 0.75 * length < high[axis] - low[axis] <= length


@pytest.mark.parametrize("is_signed", [False, True])
def test_the_map_tints_the_picture_where_it_is_not_zero(scan, is_signed):
    found = _explain(scan, is_slicewise=False, is_signed=is_signed)
    nothing = dataclasses.replace(found, values=np.zeros_like(found.values))
    tinted, plain = (
        to_png(draw_overlay(scan, each), dots_per_inch=50, background=BACKDROP) for each in (found, nothing)
    )
    assert tinted != plain
    assert tinted == to_png(draw_overlay(scan, found), dots_per_inch=50, background=BACKDROP)


def test_a_blank_scan_can_be_drawn(scan):
    blank = dataclasses.replace(scan, voxels=np.zeros_like(scan.voxels))
    assert to_png(draw_overlay(blank, _explain(blank, is_slicewise=False)), dots_per_inch=50)


def test_the_profile_tells_its_spread_in_the_title(scan):
    found = _explain(scan)
    figure = draw_profile(found)
    assert f"{found.profile.effective_slices:.0f} of {len(found.profile.weight)} slices" in figure.axes[0].get_title(
        loc="left"
    )


@pytest.mark.parametrize(
    ("shift", "title"),
    [(-1.0, "The map names slices that the answer needs"), (1.0, "Slices named first speak against the answer")],
)
def test_the_title_of_the_deletion_curve_follows_the_test(shift, title):
    rng = np.random.default_rng(0)
    deletion = Deletion(
        fraction=np.linspace(0, 0.9, 10),
        most_first=np.full(10, shift),
        least_first=np.full(10, -shift),
        random=rng.normal(0, 0.1, (50, 10)),
    )
    figure = draw_checks(deletion, {"head": 0.2, "encoder": None}, "patient")
    assert figure.axes[0].get_title(loc="left") == title
