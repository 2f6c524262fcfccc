"""What has to come of every hard file: those kept here, those made here, and the originals beside the checkout."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from faulty_scans import DATA, MAKERS, PUMI_BOLD, PUMI_T1, make_faulty_scan

from neuroray.storage.nifti import ScanError, read_scan
from neuroray.storage.scan import Scan

ORIGINALS = Path(__file__).parents[3] / "shared/data/hard"
KEPT = DATA / "hard"
# float32 headers place the corner of a 2 mm grid of 128 voxels to about 256 * 2**-24 = 2e-5 mm.
AFFINE_TOLERANCE_MM = 1e-4
MOST_MEMORY_BYTES = 20 * 2**20  # of a refusal: the buffers of one file, not the 2 GB or 70 TB that are claimed


def refused(*words: str) -> Callable[[Path], None]:
    def check(path: Path) -> None:
        tracemalloc.start()
        try:
            with pytest.raises(ScanError) as caught:
                read_scan(path)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        text = str(caught.value)
        assert text.startswith(f"{path.name}: ")
        assert str(path.parent) not in text
        assert caught.value.fix
        assert all(word in text for word in words), text
        assert peak < MOST_MEMORY_BYTES

    return check


def read(*, flagged: str | None, same_as: Path | None, then: Callable[[Scan], bool] = lambda scan: True):
    def check(path: Path) -> None:
        scan = read_scan(path)
        if flagged is None:
            assert scan.flags == ()
        else:
            assert any(flagged in flag for flag in scan.flags), scan.flags
        if same_as is not None:
            original = read_scan(same_as)
            assert np.array_equal(scan.voxels, original.voxels)
            assert np.abs(scan.affine - original.affine).max() < AFFINE_TOLERANCE_MM
        assert np.isfinite(scan.voxels).all()
        assert then(scan)

    return check


def _nan_became_zero(scan: Scan) -> bool:
    inside = read_scan(PUMI_T1).voxels[20:]
    num_cleared = scan.voxels.size - inside.size
    return (
        np.array_equal(scan.voxels[20:], inside)
        and not scan.voxels[:20].any()
        and any(flag.startswith(f"{num_cleared} ") for flag in scan.flags)
    )


OUTCOMES: dict[str, Callable[[Path], None]] = {
    "T1_gz_truncated60pct.nii.gz": refused("cut short"),
    "T1_gz_damaged_middle.nii.gz": refused("damaged"),
    "T1_gz_wrong_checksum.nii.gz": refused("damaged", "CRC"),
    "T1_wrong_magic.nii": refused("magic", r"b'xyz\x00'"),
    "html_error_page.nii.gz": refused("a web page", "download"),
    "T1_huge_dims.nii": refused("too large", "32767 x 32767 x 32767", "2147483648"),
    "gz_bomb_2GB_zeros.nii.gz": refused("too large", "bomb"),
    "T1_all_zero.nii.gz": refused("empty", "zero in every voxel"),
    "T1_slope_nan.nii.gz": read(
        flagged="slope of nan", same_as=PUMI_T1, then=lambda scan: scan.encoding is None and scan.voxels.dtype == "i2"
    ),
    "T1_no_sform_no_qform.nii.gz": read(flagged="no orientation in the header", same_as=None),
    "T1_float_nan_border.nii.gz": read(flagged="NaN", same_as=None, then=_nan_became_zero),
    "T1_LAS_flipped_same_world.nii.gz": read(
        flagged=None, same_as=PUMI_T1, then=lambda scan: bool(scan.source and scan.source.axis_flip[0])
    ),
    "T1_permuted_axes.nii.gz": read(
        flagged=None, same_as=PUMI_T1, then=lambda scan: bool(scan.source and scan.source.axis_order == (1, 2, 0))
    ),
    "T1_4D_one_frame.nii.gz": read(flagged="single frame", same_as=PUMI_T1, then=lambda scan: not scan.is_timeseries),
    "bold_TR_ms_units.nii.gz": read(flagged=None, same_as=PUMI_BOLD, then=lambda scan: scan.repetition_time_s == 2.52),
    "bold_one_frame.nii.gz": read(flagged="not a time series", same_as=None),
    "bold_time_first_axis.nii.gz": read(flagged="not a time series", same_as=None),
    "bold_frozen_frames.nii.gz": read(flagged="frames 4 to 19 (counted from 0) are identical", same_as=None),
    "AIL.nii.gz": read(flagged=None, same_as=KEPT / "orientations/RAS.nii.gz"),
    "LPI.nii.gz": read(flagged=None, same_as=KEPT / "orientations/RAS.nii.gz"),
    "PSR.nii.gz": read(flagged=None, same_as=KEPT / "orientations/RAS.nii.gz"),
    "RAS.nii.gz": read(flagged=None, same_as=KEPT / "orientations/RAS.nii.gz"),
}


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_a_made_hard_file_has_its_outcome(name: str, tmp_path: Path) -> None:
    OUTCOMES[name](make_faulty_scan(name, tmp_path))


@pytest.mark.parametrize("path", sorted(KEPT.rglob("*.nii.gz")), ids=lambda path: path.name)
def test_a_kept_hard_file_has_its_outcome(path: Path) -> None:
    OUTCOMES[path.name](path)


@pytest.mark.parametrize(
    "path", sorted(ORIGINALS.rglob("*.nii*")) or [None], ids=lambda path: getattr(path, "name", "-")
)
def test_an_original_hard_file_has_its_outcome(path: Path | None) -> None:
    if path is None:
        pytest.skip("no folder shared/data/hard beside the checkout; the same faults are made by faulty_scans.py")
    OUTCOMES[path.name](path)


def test_every_outcome_is_tested_from_the_repository_alone() -> None:
    kept = {path.name for path in KEPT.rglob("*.nii.gz")}
    assert set(OUTCOMES) == kept | set(MAKERS)
