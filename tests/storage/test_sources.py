"""Every kind of source gives its scans with labels: derivatives, tables beside, buckets; what is left out counted."""

import json
from pathlib import Path

import pytest
from faulty_scans import DATA
from volume_samples import stored_numbers, write_analyze, write_nifti

from neuroray.storage.fetching import fetch_file
from neuroray.storage.locations import Location
from neuroray.storage.nifti import read_scan
from neuroray.storage.participants import TableError
from neuroray.storage.scan import ScanError
from neuroray.storage.sources import SourceListing, list_source

LIMIT_BYTES = 2**24


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"not looked into")


def make_derivatives(root: Path) -> Path:
    """What fMRIPrep leaves of one person, and the raw dataset around it."""
    (root / "participants.tsv").write_text("participant_id\tage\nsub-1\t31\n")
    derivatives = root / "derivatives/fmriprep"
    func = "sub-1/func/sub-1_task-rest_space-MNI152NLin2009cAsym"
    touch(
        derivatives,
        f"{func}_desc-preproc_bold.nii.gz",
        f"{func}_desc-brain_mask.nii.gz",
        f"{func}_boldref.nii.gz",
        "sub-1/anat/sub-1_desc-preproc_T1w.nii.gz",
        "sub-1/anat/sub-1_dseg.nii.gz",
        "sub-1/anat/sub-1_label-GM_probseg.nii.gz",
    )
    (derivatives / "dataset_description.json").write_text('{"Name": "x", "DatasetType": "derivative"}')
    (derivatives / f"{func}_desc-preproc_bold.json").write_text('{"RepetitionTime": 2.5}')
    return derivatives


def describe(listing: SourceListing) -> dict[str, tuple[str, float | None]]:
    return {
        scan.file.scan_id: (scan.file.subject, scan.participant.age_years if scan.participant else None)
        for scan in listing.scans
    }


def test_derivatives_give_scans_without_masks_and_labels_of_the_raw_dataset(tmp_path: Path):
    listing = list_source(str(make_derivatives(tmp_path)))
    bold = "sub-1_task-rest_space-MNI152NLin2009cAsym_desc-preproc_bold"
    assert describe(listing) == {"sub-1_desc-preproc_T1w": ("1", 31), bold: ("1", 31)}
    assert "4 masks, segmentations and references were left out" in listing.notices
    assert any("raw dataset around" in notice for notice in listing.notices)
    [file] = [scan.file for scan in listing.scans if scan.file.suffix == "bold"]
    assert (file.entities["space"], file.entities["desc"]) == ("MNI152NLin2009cAsym", "preproc")
    assert file.sidecar["RepetitionTime"] == 2.5


def test_only_takes_files_by_their_names(tmp_path: Path):
    derivatives = str(make_derivatives(tmp_path))
    assert [scan.file.suffix for scan in list_source(derivatives, only="*space-MNI*_bold*").scans] == ["bold"]
    with pytest.raises(ScanError, match="no scans are left"):
        list_source(derivatives, only="*_asl*")


def test_a_raw_dataset_keeps_what_a_derivative_leaves_out(tmp_path: Path):
    touch(tmp_path, "sub-1/anat/sub-1_dseg.nii.gz")
    (tmp_path / "dataset_description.json").write_text('{"Name": "x"}')
    assert [scan.file.suffix for scan in list_source(str(tmp_path)).scans] == ["dseg"]


def test_visits_have_labels_of_their_own(tmp_path: Path):
    touch(tmp_path, "sub-1/ses-a/anat/sub-1_ses-a_T1w.nii", "sub-1/ses-b/anat/sub-1_ses-b_T1w.nii")
    (tmp_path / "participants.tsv").write_text("participant_id\tsex\nsub-1\tF\n")
    (tmp_path / "sub-1/sub-1_sessions.tsv").write_text("session_id\tage\nses-a\t30\nses-b\t32.5\n")
    listing = list_source(str(tmp_path))
    assert describe(listing) == {"sub-1_ses-a_T1w": ("1", 30), "sub-1_ses-b_T1w": ("1", 32.5)}
    assert {scan.participant.sex for scan in listing.scans if scan.participant} == {"F"}


def test_the_one_table_beside_the_scans_is_taken_and_told(tmp_path: Path):
    touch(tmp_path, "anna_T1w.nii", "bert_T1w.nii")
    (tmp_path / "volumes.csv").write_text("MRID,702\nanna,1.5\n")  # says nothing of people
    (tmp_path / "covariates.csv").write_text("niftifile,age\nanna_T1w.nii,30\nbert_T1w.nii,40\n")
    expected = {"anna_T1w": ("anna", 30), "bert_T1w": ("bert", 40)}
    for source in (str(tmp_path), f"{tmp_path}/*.nii"):
        listing = list_source(source)
        assert describe(listing) == expected
        assert "labels come from covariates.csv, which lies beside the scans" in listing.notices
    assert describe(list_source(str(tmp_path), participants="none")) == {
        "anna_T1w": ("anna", None),
        "bert_T1w": ("bert", None),
    }


def test_between_two_tables_a_person_has_to_choose(tmp_path: Path):
    touch(tmp_path, "anna_T1w.nii")
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("id,age\nanna,30\n")
    listing = list_source(str(tmp_path))
    assert not listing.has_table
    assert "several tables lie beside the scans (a.csv, b.csv): name one with --participants" in listing.notices


def test_a_named_table_that_knows_nobody_is_refused_before_anything_is_stored(tmp_path: Path):
    touch(tmp_path, "scans/anna_T1w.nii")
    (tmp_path / "people.csv").write_text("id,age\n4711,30\n")
    with pytest.raises(TableError, match="knows none of the people"):
        list_source(str(tmp_path / "scans"), participants=str(tmp_path / "people.csv"))


@pytest.mark.skipif(
    not (DATA.parents[2] / "shared/data/mcic_gm_site1").is_dir(), reason="needs the real data beside the checkout"
)
@pytest.mark.parametrize(
    ("scans", "table", "num_scans", "first_age"),
    [
        ("mcic_gm_site1", None, 55, 46),
        ("mcic_gm_site1", "mcic_gm_site1/site1_covariates.csv", 55, 46),
        ("ixi10_2mm/nifti", "ixi10_2mm/lists/IXI_demog_n10.csv", 10, 38.78),
    ],
)
def test_real_cohorts_come_with_all_their_ages(scans: str, table: str | None, num_scans: int, first_age: float):
    shared = DATA.parents[2] / "shared/data"
    listing = list_source(str(shared / scans), participants=str(shared / table) if table else None)
    found = [scan.participant.age_years for scan in listing.scans if scan.participant]
    assert (len(found), len(listing.scans), found[0]) == (num_scans, num_scans, first_age)
    assert any(f"{num_scans} of {num_scans} scans were found" in notice for notice in listing.notices)


@pytest.mark.s3
def test_a_dataset_in_a_bucket_is_listed_like_one_on_disk(s3_bucket: str, tmp_path: Path):
    upload(DATA / "pumi", f"{s3_bucket}/study")
    here, there = list_source(str(DATA / "pumi")), list_source(f"{s3_bucket}/study")
    assert describe(there) == describe(here)
    assert there.notices == here.notices
    for one, other in zip(here.scans, there.scans, strict=True):
        assert (one.file.suffix, one.file.sidecar) == (other.file.suffix, other.file.sidecar)
        fetched = fetch_file(other.file, max_bytes=LIMIT_BYTES)
        assert fetched.sha256 == fetch_file(one.file, max_bytes=LIMIT_BYTES).sha256
        assert fetched.path.read_bytes() == one.file.path.read_bytes()
        fetched.discard()
        assert not fetched.path.exists()


@pytest.mark.s3
def test_globs_single_files_and_pairs_of_a_bucket_are_taken(s3_bucket: str, tmp_path: Path):
    (tmp_path / "a").mkdir()
    write_analyze(tmp_path / "a/pair.hdr", stored_numbers("int16"))
    write_nifti(tmp_path / "a/x_T1w.nii", stored_numbers("int16"))
    write_nifti(tmp_path / "a/y_T1w.nii", stored_numbers("int16"))
    upload(tmp_path, f"{s3_bucket}/study")
    assert list(describe(list_source(f"{s3_bucket}/study/a/x_T1w.nii"))) == ["x_T1w"]
    assert list(describe(list_source(f"{s3_bucket}/study/*/*_T1w.nii"))) == ["x_T1w", "y_T1w"]
    [pair] = [scan.file for scan in list_source(f"{s3_bucket}/study").scans if scan.file.scan_id == "pair"]
    assert not pair.is_suffix_known
    fetched = fetch_file(pair, max_bytes=LIMIT_BYTES)
    assert (read_scan(fetched.path).voxels == read_scan(tmp_path / "a/pair.hdr").voxels).all()
    fetched.discard()
    with pytest.raises(ScanError, match="there is nothing"):
        list_source(f"{s3_bucket}/elsewhere")


@pytest.mark.s3
def test_an_object_beyond_the_limit_is_not_fetched(s3_bucket: str, tmp_path: Path):
    (tmp_path / "big_T1w.nii").write_bytes(bytes(66 * 2**20))
    upload(tmp_path, f"{s3_bucket}/study")
    [scan] = list_source(f"{s3_bucket}/study").scans
    with pytest.raises(ScanError, match="too large to be fetched"):
        fetch_file(scan.file, max_bytes=2**20)


@pytest.mark.s3
def test_a_dicom_folder_of_a_bucket_is_one_series(s3_bucket: str, tmp_path: Path):
    pytest.importorskip("dcm2niix")
    from dicom_samples import write_series

    write_series(tmp_path / "anna/t1", stored_numbers("uint16", (5, 6, 7)) % 4000 + 1)
    upload(tmp_path, f"{s3_bucket}/dicom")
    [scan] = list_source(f"{s3_bucket}/dicom").scans
    assert (scan.file.scan_id, scan.file.subject, len(scan.file.objects)) == ("anna_t1", "anna", 7)


def upload(folder: Path, uri: str) -> None:
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        Location(uri).write_bytes(path.relative_to(folder).as_posix(), path.read_bytes())


def test_a_description_that_is_no_json_is_no_derivative(tmp_path: Path):
    touch(tmp_path, "sub-1/anat/sub-1_dseg.nii.gz")
    (tmp_path / "dataset_description.json").write_text(json.dumps({"Name": 1})[:-1])
    assert len(list_source(str(tmp_path)).scans) == 1
