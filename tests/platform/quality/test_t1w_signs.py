"""A whole T1-weighted head raises nothing; a cropped one, another contrast, CT, noise and a ball say what they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from neuroray.platform.evaluate.faces import find_head
from neuroray.platform.quality.t1w_signs import find_t1w_oddities, measure_head
from neuroray.storage.nifti import read_scan
from neuroray.storage.scan import Scan
from neuroray.storage.simulate import CohortConfig, simulate_cohort
from neuroray.storage.simulate.anatomy import load_tissues

PUMI = Path(__file__).parents[2] / "data/pumi/sub-001"
SPACING = (3.0, 3.0, 3.0)

# Signal of each tissue, white matter, grey matter, fluid, scalp and bone.
CONTRASTS = {
    "T1": (1.0, 0.7, 0.25, 0.9, 0.1),
    "stripped T1": (1.0, 0.7, 0.25, 0.0, 0.0),
    "T2": (0.4, 0.6, 1.0, 0.5, 0.08),
    "stripped T2": (0.4, 0.6, 1.0, 0.0, 0.0),
    "FLAIR": (0.6, 0.75, 0.12, 0.2, 0.05),
    "stripped FLAIR": (0.6, 0.75, 0.12, 0.0, 0.0),
    "PD": (0.75, 0.9, 0.95, 0.7, 0.1),
    "CT": (1030.0, 1038.0, 1010.0, 1050.0, 1900.0),
}


def make_head(contrast: str) -> np.ndarray:
    """The template's tissues with this signal, in noise of 2 %."""
    names = ("white", "grey", "csf", "scalp", "bone")
    weights = dict(zip(names, CONTRASTS[contrast], strict=True))
    volume = load_tissues(SPACING[0]).blend(weights)
    noise = np.random.default_rng(0).normal(0, 0.02 * volume.max(), volume.shape)
    volume = np.clip(volume + noise, 0, None).astype(np.float32)
    if contrast.startswith("stripped"):
        volume[load_tissues(SPACING[0]).blend({"white": 1.0, "grey": 1.0, "csf": 1.0}) < 0.5] = 0
    return volume


@pytest.fixture(scope="module")
def t1() -> Scan:
    return read_scan(PUMI / "anat/sub-001_T1w.nii.gz")


@pytest.mark.parametrize("contrast", ["T1", "stripped T1"])
def test_a_t1_weighted_head_raises_nothing(contrast: str) -> None:
    assert find_t1w_oddities(make_head(contrast), SPACING) == ()


def test_a_real_head_raises_nothing_at_its_own_and_at_half_its_spacing(t1: Scan) -> None:
    volume = np.asarray(t1.voxels, dtype=np.float32)
    assert find_t1w_oddities(volume, t1.zooms_mm) == ()
    fine = volume.repeat(2, axis=0).repeat(2, axis=1).repeat(2, axis=2)
    x, y, z = t1.zooms_mm
    assert find_t1w_oddities(fine, (x / 2, y / 2, z / 2)) == ()


@pytest.mark.parametrize("head", [True, False])
def test_simulated_people_of_all_sites_raise_nothing(head: bool, tmp_path: Path) -> None:
    simulate_cohort(CohortConfig(num_subjects=6, spacing_mm=4.0, head=head, longitudinal_fraction=0.0), tmp_path)
    scans = [read_scan(path) for path in sorted(tmp_path.rglob("*_T1w.nii.gz"))]
    assert len(scans) == 6
    assert [find_t1w_oddities(np.asarray(one.voxels, np.float32), one.zooms_mm) for one in scans] == [()] * 6


@pytest.mark.parametrize(
    ("contrast", "word"),
    [
        ("T2", "fluid looks brighter than white matter"),
        ("stripped T2", "fluid looks brighter than white matter"),
        ("FLAIR", "grey matter looks brighter than white matter"),
        ("stripped FLAIR", "grey matter looks brighter than white matter"),
        ("PD", "hardly any contrast between tissues"),
        ("CT", "hardly any contrast between tissues"),
    ],
)
def test_another_contrast_is_told(contrast: str, word: str) -> None:
    (found,) = find_t1w_oddities(make_head(contrast), SPACING)
    assert word in found


def test_an_inverted_head_is_told(t1: Scan) -> None:
    volume = np.asarray(t1.voxels, dtype=np.float32)
    head = find_head(volume)
    inverted = np.where(head, np.clip(0.6 * volume[head].max() - volume, 0, None), volume)
    assert "fluid looks brighter" in find_t1w_oddities(inverted, t1.zooms_mm)[0]


def test_the_mean_of_a_real_epi_run_is_told() -> None:
    run = read_scan(PUMI / "func/sub-001_task-rest_bold.nii.gz")
    mean = np.asarray(run.voxels, dtype=np.float32).mean(axis=0)
    assert any("fluid looks brighter" in note for note in find_t1w_oddities(mean, run.zooms_mm))


def test_hounsfield_units_are_told() -> None:
    volume = make_head("CT") - 1000
    (found,) = find_t1w_oddities(volume.astype(np.float32), SPACING)
    assert "Hounsfield" in found


@pytest.mark.parametrize(
    ("side", "axis", "end", "lost_mm"),
    [("right", 0, -1, 40), ("left", 0, 0, 40), ("front", 1, -1, 50), ("back", 1, 0, 24), ("top", 2, -1, 20)],
)
def test_a_cropped_head_says_on_which_side(t1: Scan, side: str, axis: int, end: int, lost_mm: float) -> None:
    volume = np.asarray(t1.voxels, dtype=np.float32)
    shown = np.flatnonzero(find_head(volume).any(axis=tuple(other for other in range(3) if other != axis)))
    planes = round(lost_mm / t1.zooms_mm[axis])
    cut = slice(0, shown[-1] + 1 - planes) if end else slice(shown[0] + planes, None)
    index = tuple(cut if number == axis else slice(None) for number in range(3))
    found = find_t1w_oddities(volume[index], t1.zooms_mm)
    assert found[0] == f"the head is cut off at the {side} of the volume: parts of the brain may be missing"


def test_a_neck_that_is_cut_is_no_cut_but_a_missing_cerebellum_is(t1: Scan) -> None:
    volume = np.asarray(t1.voxels, dtype=np.float32)
    top = int(np.flatnonzero(find_head(volume).any(axis=(0, 1)))[-1])
    planes = [round(length / t1.zooms_mm[2]) for length in (150, 90)]
    assert find_t1w_oddities(volume[:, :, top - planes[0] :], t1.zooms_mm) == ()
    assert "cut off at the bottom" in find_t1w_oddities(volume[:, :, top - planes[1] :], t1.zooms_mm)[0]


def test_noise_a_ball_and_a_grain_are_no_heads() -> None:
    rng = np.random.default_rng(0)
    noise = np.abs(rng.normal(100, 20, (67, 71, 65))).astype(np.float32)
    assert find_t1w_oddities(noise, SPACING) != ()
    place = np.indices((71, 75, 71)) - 35
    distance_mm = 3 * np.sqrt((place**2).sum(axis=0))
    ball = (100.0 * (distance_mm < 80) + rng.normal(0, 4, distance_mm.shape)).astype(np.float32)
    assert "hardly any contrast" in find_t1w_oddities(ball, SPACING)[0]
    grain = (100.0 * (distance_mm < 25) + rng.normal(0, 4, distance_mm.shape)).astype(np.float32)
    assert "litres, which is not a head or brain" in find_t1w_oddities(grain, SPACING)[0]
    assert "nothing stands out" in find_t1w_oddities(np.zeros((40, 40, 40), np.float32), SPACING)[0]


def test_what_is_no_number_does_not_spread(t1: Scan) -> None:
    volume = np.array(t1.voxels, dtype=np.float32)
    volume[::7, ::5, ::3] = np.nan
    signs = measure_head(volume, t1.zooms_mm)
    assert signs is not None
    assert signs.balance is not None
    assert np.isfinite([signs.litres, signs.balance, signs.contrast or 0, signs.rise or 0]).all()
