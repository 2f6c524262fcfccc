"""`export-nifti`: what comes out of a store is, bit for bit, what came in."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import importlib.util
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nibabel.nifti1 import Nifti1Extension

from neuroray.jobs import export_nifti, ingest
from neuroray.storage.faults import StoreError
from neuroray.storage.nifti import read_scan
from neuroray.storage.profiles import Prepared, find_profile
from neuroray.storage.scan import ScanError
from neuroray.storage.store import ScanStore

AFFINE = np.array([[0, 0, 2.5, -40], [-2, 0.1, 0, 50], [0.1, 3, 0, -60], [0, 0, 0, 1]])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Scaled int16 in another axis order, a pair, an MGH file and a time series."""
    folder = tmp_path / "source"
    folder.mkdir()
    stored = np.random.default_rng(0).integers(0, 4000, (9, 11, 7, 3)).astype(np.int16)
    scaled = nibabel.Nifti1Image(stored[..., 0], AFFINE)
    scaled.header["descrip"] = b"kept"
    scaled.header.extensions.append(Nifti1Extension("comment", b"kept too"))
    scaled.header.set_slope_inter(0.25, -3)
    nibabel.save(scaled, folder / "scaled.nii.gz")
    nibabel.save(nibabel.Nifti1Image(stored, AFFINE), folder / "series.nii.gz")
    nibabel.save(nibabel.Nifti1Pair(stored[..., 1], AFFINE), folder / "pair.hdr")
    third: Any = np.asarray(stored[..., 2], np.float32)
    nibabel.save(nibabel.MGHImage(third, AFFINE), folder / "surfer.mgz")
    return folder


def export(store: Path, out: Path, **options) -> export_nifti.Answer:
    return export_nifti.run(export_nifti.Args(store=str(store), out=str(out), **options))


def unpack(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix in (".gz", ".mgz") else path.read_bytes()


def test_header_and_voxels_come_out_as_they_went_in(source: Path, tmp_path: Path):
    ingest.run(ingest.Args(source=str(source), store=str(tmp_path / "store")))
    answer = export(tmp_path / "store", tmp_path / "out")
    assert answer.num_written == 4
    for name in ("scaled.nii.gz", "series.nii.gz", "surfer.mgz"):
        assert unpack(tmp_path / "out" / name) == unpack(source / name), name
    for ending in ("hdr", "img"):
        assert unpack(tmp_path / f"out/pair.{ending}.gz") == unpack(source / f"pair.{ending}")


def test_a_second_export_writes_nothing_and_what_differs_is_not_replaced(source: Path, tmp_path: Path):
    ingest.run(ingest.Args(source=str(source), store=str(tmp_path / "store")))
    export(tmp_path / "store", tmp_path / "out")
    assert export(tmp_path / "store", tmp_path / "out").num_written == 0
    changed = tmp_path / "out/scaled.nii.gz"
    changed.write_bytes(b"something else")
    with pytest.raises(ScanError, match="holds something else"):
        export(tmp_path / "store", tmp_path / "out")
    assert changed.read_bytes() == b"something else"
    export(tmp_path / "store", tmp_path / "out", overwrite=True)
    assert unpack(changed) == unpack(source / "scaled.nii.gz")


def test_only_the_people_asked_for_are_written_and_the_table_says_who(source: Path, tmp_path: Path):
    ingest.run(ingest.Args(source=str(source), store=str(tmp_path / "store")))
    answer = export(tmp_path / "store", tmp_path / "out", subject=("series",))
    assert answer.files == {"series": "series.nii.gz"}
    rows = list(csv.DictReader((tmp_path / "out/scans.tsv").open(), delimiter="\t"))
    assert [(row["scan_id"], row["subject"], row["sex"]) for row in rows] == [("series", "series", "n/a")]
    with pytest.raises(StoreError, match="no such people"):
        export(tmp_path / "store", tmp_path / "out", subject=("nobody",))


@pytest.mark.skipif(importlib.util.find_spec("ants") is None, reason="a store names the version of ANTs")
def test_what_a_profile_changed_comes_out_as_values_on_the_grid_where_it_lies(source: Path, tmp_path: Path):
    scan = read_scan(source / "scaled.nii.gz")
    divided = dataclasses.replace(scan, voxels=(scan.voxels / 3).astype(np.float32), encoding=None)
    resampled = dataclasses.replace(divided, affine=np.diag([4.0, 4.0, 4.0, 1.0]), source=None)
    store = ScanStore.create(tmp_path / "store")
    for name, changed in (("n4", divided), ("mni_affine", resampled)):
        prepared = Prepared(scan=changed, profile=find_profile(name))
        store.write(prepared, scan_id=name, subject="s", modality="T1w")
    export(tmp_path / "store", tmp_path / "out")
    for name, affine in (("n4", AFFINE), ("mni_affine", resampled.affine)):
        image: Any = nibabel.load(tmp_path / "out" / f"{name}.nii.gz")
        assert image.get_data_dtype() == np.float32
        # The header keeps affines in float32.
        np.testing.assert_allclose(image.affine, affine, atol=1e-5)
    again: Any = nibabel.load(tmp_path / "out" / "n4.nii.gz")
    assert again.header["descrip"].item() == b"kept"
    np.testing.assert_array_equal(read_scan(tmp_path / "out" / "n4.nii.gz").voxels, divided.voxels)
    rows = list(csv.DictReader((tmp_path / "out" / "scans.tsv").open(), delimiter="\t"))
    assert {row["scan_id"]: row["profile"] for row in rows} == {"n4": "n4", "mni_affine": "mni_affine"}
