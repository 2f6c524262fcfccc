"""Label maps by the names of scans, what their numbers mean, and files that are none or lie elsewhere."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from neuroray.storage.label_maps import LabelMapError, find_label_maps, name_structure, read_label_map
from neuroray.storage.nifti import read_scan
from neuroray.storage.profiles.transform import NativeGrid
from neuroray.storage.table_file import TableError

# From right to left and from front to back, so that a reader has to turn it.
AFFINE = np.array([[-1.5, 0, 0, 20], [0, -2.0, 0, 30], [0, 0, 1.0, -5], [0, 0, 0, 1]])


def write(path: Path, labels: np.ndarray | None = None, affine: np.ndarray = AFFINE) -> Path:
    """Hippocampi of 6 and 4 voxels and an amygdala of 5, or what is given."""
    if labels is None:
        labels = np.zeros((7, 9, 11), np.int16)
        labels[1, 2, :6], labels[5, 2, :4], labels[3, 3, :5] = 17, 53, 18
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(labels, affine), path)
    return path


def grid(tmp_path: Path) -> NativeGrid:
    """Of the scan, as an ingest keeps it: in RAS+ order."""
    voxels = np.random.default_rng(0).uniform(1, 2, (7, 9, 11)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, AFFINE), tmp_path / "scan.nii.gz")
    scan = read_scan(tmp_path / "scan.nii.gz")
    return NativeGrid(shape=scan.grid_shape, affine=scan.affine)


def test_files_are_found_by_the_scans_id_or_as_its_dseg(tmp_path: Path) -> None:
    mine = write(tmp_path / "sub-01_ses-01_T1w.nii.gz")
    other = write(tmp_path / "deep" / "sub-01_ses-02_T1w_synthseg.mgz")
    dseg = write(tmp_path / "sub-02" / "anat" / "sub-02_desc-aseg_dseg.nii.gz")
    write(tmp_path / "sub-02" / "anat" / "sub-02_space-MNI152_desc-aseg_dseg.nii.gz")  # not in the scan's space
    write(tmp_path / "sub-02" / "anat" / "sub-02_desc-brain_mask.nii.gz")
    write(tmp_path / "sub-020_ses-01_dseg.nii.gz")  # nobody's
    write(tmp_path / "sub-02_ses-01_dseg.nii.gz")  # another visit of the same person
    ids = ["sub-01_ses-01_T1w", "sub-01_ses-02_T1w", "sub-02_T1w", "sub-03_T1w", "loose"]
    write(tmp_path / "other_dseg.nii.gz")  # has no person in its name
    (tmp_path / "sub-03_T1w.txt").write_text("no volume")
    assert find_label_maps(tmp_path, ids) == {
        "sub-01_ses-01_T1w": mine,
        "sub-01_ses-02_T1w": other,
        "sub-02_T1w": dseg,
    }


def test_the_longest_id_owns_a_file_and_two_files_are_one_too_many(tmp_path: Path) -> None:
    long = write(tmp_path / "a_b_labels.nii")
    assert find_label_maps(tmp_path, ["a", "a_b"]) == {"a_b": long}
    write(tmp_path / "a_b_other.nii")
    with pytest.raises(LabelMapError, match="a_b has several label maps"):
        find_label_maps(tmp_path, ["a", "a_b"])
    chosen = write(tmp_path / "a_b_dseg.nii")
    assert find_label_maps(tmp_path, ["a", "a_b"]) == {"a_b": chosen}
    with pytest.raises(LabelMapError, match="no folder"):
        find_label_maps(tmp_path / "nowhere", ["a"])


def test_volumes_are_of_both_sides_in_ml(tmp_path: Path) -> None:
    found = read_label_map(write(tmp_path / "map.nii.gz"), grid(tmp_path))
    assert sorted(found.structures) == ["amygdala", "hippocampus"]
    assert found.volume_ml("hippocampus") == pytest.approx(10 * 3 / 1000)
    assert found.volume_ml("amygdala") == pytest.approx(5 * 3 / 1000)
    # Turned as the scan is: the file's last voxel along x is the first.
    assert found.mask("hippocampus")[5, 6, :6].all()
    floats = np.asarray(nib.load(tmp_path / "map.nii.gz").dataobj).astype(np.float32)
    again = read_label_map(write(tmp_path / "floats.nii.gz", floats), grid(tmp_path))
    assert np.array_equal(again.labels, found.labels)


def test_a_table_says_what_numbers_mean_and_nearer_ones_go_first(tmp_path: Path) -> None:
    path = write(tmp_path / "sub-1" / "sub-1_desc-mine_dseg.nii.gz")
    (tmp_path / "dseg.tsv").write_text("index\tname\n17\tLeft-Amygdala\n18\tctx-lh-insula\n53\tBrain-Stem\n")
    found = read_label_map(path, grid(tmp_path), root=tmp_path)
    assert found.structures == {"amygdala": {17}, "cortex": {18}}
    assert found.volume_ml("amygdala") == pytest.approx(6 * 3 / 1000)
    (tmp_path / "sub-1" / "desc-other_dseg.tsv").write_text("index\tname\n17\tnothing\n")  # of another map
    assert read_label_map(path, grid(tmp_path), root=tmp_path).structures == found.structures
    (tmp_path / "sub-1" / "sub-1_desc-mine_dseg.tsv").write_text("name\tindex\nLeft thalamus\t53\n")
    assert read_label_map(path, grid(tmp_path), root=tmp_path).structures == {"thalamus": {53}}
    # A table of segmentations is not of a file that is called otherwise.
    plain = write(tmp_path / "sub-1" / "sub-1_T1w.nii.gz")
    assert sorted(read_label_map(plain, grid(tmp_path), root=tmp_path).structures) == ["amygdala", "hippocampus"]


def test_names_of_other_programs_are_understood() -> None:
    told = {
        "Left-Hippocampus": "hippocampus",
        "right hippocampus": "hippocampus",
        "Right-Lateral-Ventricle": "lateral ventricles",
        "left inferior lateral ventricle": None,
        "Left-Inf-Lat-Vent": None,
        "3rd-Ventricle": None,
        "Left-Cerebral-White-Matter": "white matter",
        "WM": "white matter",
        "WM-hypointensities": None,
        "left cerebellum white matter": None,
        "Right-Cerebellum-Cortex": None,
        "ctx-rh-parahippocampal": "cortex",
        "left cerebral cortex": "cortex",
        "Left-Thalamus-Proper": "thalamus",
        "hypothalamus": None,
        "Brain-Stem": None,
    }
    assert {name: name_structure(name) for name in told} == told


def test_what_is_no_label_map_of_the_scan_is_refused(tmp_path: Path) -> None:
    own = grid(tmp_path)

    def refuse(match: str, labels: np.ndarray | None = None, affine: np.ndarray = AFFINE) -> LabelMapError:
        with pytest.raises(LabelMapError, match=match) as refused:
            read_label_map(write(tmp_path / "map.nii.gz", labels, affine), own)
        return refused.value

    moved = AFFINE.copy()
    moved[2, 3] += 0.5
    assert "resample_from_to" in str(refuse("another grid", affine=moved))
    refuse("another grid", affine=AFFINE @ np.diag([1, 1, 1.01, 1]))
    refuse("another grid", labels=np.full((7, 9, 12), 17, np.int16) + np.arange(12, dtype=np.int16))
    unknown = np.zeros((7, 9, 11), np.int16)
    unknown[2:4] = 99
    assert "99" in str(refuse("names no structure", labels=unknown))
    refuse("no label map.*\n?.*broken", labels=np.random.default_rng(0).uniform(0, 9, (7, 9, 11)).astype(np.float32))
    refuse("different numbers", labels=np.arange(693, dtype=np.int16).reshape(7, 9, 11))
    refuse("no label map.*\n?.*volumes", labels=np.random.default_rng(0).integers(0, 9, (7, 9, 11, 2)).astype(np.int16))


def test_tables_without_numbers_or_names_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "sub-1_dseg.nii.gz")
    table = tmp_path / "sub-1_dseg.tsv"
    table.write_text("number\tname\n17\thippocampus\n")
    with pytest.raises(LabelMapError, match="columns index and name"):
        read_label_map(path, grid(tmp_path))
    table.write_text("index\tname\nseventeen\thippocampus\n")
    with pytest.raises(LabelMapError, match="no number"):
        read_label_map(path, grid(tmp_path))
    table.write_text("")
    with pytest.raises(TableError):
        read_label_map(path, grid(tmp_path))
