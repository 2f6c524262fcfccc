"""`export-nifti`: what comes out of a store is, bit for bit, what came in."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nibabel.nifti1 import Nifti1Extension

from neuroray.jobs import export_nifti, ingest
from neuroray.storage.faults import StoreError
from neuroray.storage.scan import ScanError

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
