"""The simulated cohort: a valid BIDS folder, the same bytes every time, and a truth that the scans really hold."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest

from neuroray.storage.bids import find_scans, read_participants
from neuroray.storage.nifti import read_scan
from neuroray.storage.simulate import (
    CohortConfig,
    CohortSummary,
    SimulationError,
    bids_writer,
    read_truth,
    simulate_cohort,
    warp_to_scan,
)

CONFIG = CohortConfig(
    num_subjects=8, seed=3, modalities=("T1w", "bold"), spacing_mm=6.0, bold_spacing_mm=9.0, num_frames=12
)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CohortSummary]:
    root = tmp_path_factory.mktemp("cohort") / "bids"
    return root, simulate_cohort(CONFIG, root)


def hash_files(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read_table(path: Path) -> list[dict[str, str]]:
    names, *lines = (line.split("\t") for line in path.read_text().splitlines())
    return [dict(zip(names, line, strict=True)) for line in lines]


def test_every_file_name_is_one_that_bids_allows(cohort: tuple[Path, CohortSummary]) -> None:
    root, _ = cohort
    visit = r"sub-(?P<sub>\d{4})/(ses-(?P<ses>\d{2})/)?"
    name = r"sub-(?P=sub)(?(ses)_ses-(?P=ses))"
    allowed = (
        r"dataset_description\.json|README|participants\.(tsv|json)|\.bidsignore",
        rf"{visit}anat/{name}_T1w\.(nii\.gz|json)",
        rf"{visit}func/{name}_task-rest_bold\.(nii\.gz|json)",
        r"sub-(?P<sub>\d{4})/sub-(?P=sub)_sessions\.(tsv|json)",
    )
    ignored = tuple((root / ".bidsignore").read_text().split())
    for file in hash_files(root):
        if not file.startswith(ignored):
            assert any(re.fullmatch(pattern, file) for pattern in allowed), file


def test_the_folder_describes_itself(cohort: tuple[Path, CohortSummary]) -> None:
    root, _ = cohort
    description = json.loads((root / "dataset_description.json").read_text())
    assert {"Name", "BIDSVersion", "DatasetType"} <= set(description)
    people = read_table(root / "participants.tsv")
    assert set(json.loads((root / "participants.json").read_text())) == set(people[0])
    assert {row["participant_id"] for row in people} == {path.name for path in root.glob("sub-*")}
    for table in root.glob("sub-*/sub-*_sessions.tsv"):
        sessions = {row["session_id"] for row in read_table(table)}
        assert sessions == {path.name for path in table.parent.glob("ses-*")}
        assert set(json.loads(table.with_suffix(".json").read_text())) == set(read_table(table)[0])


def test_every_scan_has_a_sidecar_that_agrees_with_its_header(cohort: tuple[Path, CohortSummary]) -> None:
    root, summary = cohort
    paths = sorted(root.glob("sub-*/**/*.nii.gz"))
    assert len(paths) == summary.num_scans == summary.num_simulated
    for path in paths:
        sidecar = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
        header = nibabel.Nifti1Image.from_filename(path).header
        # NIfTI leaves a quaternion's fourth part to the root of what float32 leaves of 1: 3e-4 of a spacing, and more.
        np.testing.assert_allclose(header.get_sform(), header.get_qform(), atol=5e-3)
        if path.name.endswith("_bold.nii.gz"):
            assert sidecar["TaskName"] == "rest"
            assert header.get_zooms()[3] == pytest.approx(sidecar["RepetitionTime"])
            assert header.get_xyzt_units() == ("mm", "sec")
            assert header.get_data_shape()[3] == CONFIG.num_frames


def test_our_own_readers_take_all_of_it(cohort: tuple[Path, CohortSummary]) -> None:
    root, summary = cohort
    scans = find_scans(root)
    assert len(scans) == summary.num_scans
    truth = {(row["participant_id"], row["session_id"]): row for row in read_truth(root)}
    for person in read_participants(root).participants:
        if person.session is None:
            continue
        row = truth[f"sub-{person.subject}", f"ses-{person.session}"]
        assert (person.age_years, person.sex, person.diagnosis) == (row["age_years"], row["sex"], row["diagnosis"])
    for scan in scans:
        assert not read_scan(scan.path).flags


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_for_any_number_of_workers(
    cohort: tuple[Path, CohortSummary], tmp_path: Path
) -> None:
    simulate_cohort(CONFIG, tmp_path / "again", num_workers=2)
    assert hash_files(tmp_path / "again") == hash_files(cohort[0])


def test_a_cohort_grows_without_changing_who_is_there_and_mends_what_is_lost(
    cohort: tuple[Path, CohortSummary], tmp_path: Path
) -> None:
    small = dataclasses.replace(CONFIG, num_subjects=3)
    simulate_cohort(small, tmp_path)
    lost = next(tmp_path.glob("sub-0002/**/*_T1w.nii.gz"))
    lost.unlink()
    grown = simulate_cohort(dataclasses.replace(CONFIG, num_subjects=4), tmp_path)
    num_visits_of_fourth = len(list(tmp_path.glob("sub-0004/**/*_T1w.nii.gz")))
    assert grown.num_simulated == 2 + 2 * num_visits_of_fourth
    before = hash_files(cohort[0])
    for file, digest in hash_files(tmp_path).items():
        if file.startswith("sub-") or "/people/" in file:
            assert digest == before[file], file
    again = simulate_cohort(dataclasses.replace(CONFIG, num_subjects=4), tmp_path)
    assert again.num_simulated == 0


@pytest.mark.parametrize(
    "change", [{"seed": 4}, {"spacing_mm": 5.0}, {"modalities": ("T1w",)}, {"num_subjects": 7}], ids=str
)
def test_a_folder_with_another_cohort_is_left_alone(
    cohort: tuple[Path, CohortSummary], change: dict[str, object]
) -> None:
    before = hash_files(cohort[0])
    with pytest.raises(SimulationError, match=next(iter(change))):
        simulate_cohort(dataclasses.replace(CONFIG, **change), cohort[0])  # pyright: ignore[reportArgumentType] # fields by name
    assert hash_files(cohort[0]) == before


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SimulationError, match="not free"):
        simulate_cohort(CONFIG, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_another_seed_gives_other_people(cohort: tuple[Path, CohortSummary], tmp_path: Path) -> None:
    simulate_cohort(dataclasses.replace(CONFIG, seed=4, num_subjects=1, modalities=("T1w",)), tmp_path)
    ours, theirs = (next(root.glob("sub-0001/**/*_T1w.nii.gz")) for root in (cohort[0], tmp_path))
    assert ours.read_bytes() != theirs.read_bytes()


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_subjects": 0},
        {"seed": -1},
        {"modalities": ()},
        {"modalities": ("T1w", "T1w")},
        {"spacing_mm": 0.5},
        {"bold_spacing_mm": 40.0},
        {"num_frames": 1},
        {"longitudinal_fraction": 1.5},
        {"min_age_years": 80.0, "max_age_years": 40.0},
        {"disease_effect": -1.0},
    ],
    ids=str,
)
def test_what_cannot_be_simulated_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(SimulationError, match="cannot be simulated"):
        CohortConfig(**({"num_subjects": 2} | wrong))  # pyright: ignore[reportArgumentType] # fields by name


def test_planted_maps_lie_on_the_ventricles_of_every_site_and_session(cohort: tuple[Path, CohortSummary]) -> None:
    # World coordinates, storage order, pose and deformation must all be right for fluid to be dark exactly here.
    root, _ = cohort
    paths = sorted(root.glob("sub-*/**/*_T1w.nii.gz"))[-5:]  # all three sites, and both visits of one person
    people = {row["participant_id"]: row["site"] for row in read_table(root / "participants.tsv")}
    assert {people[path.name[:8]] for path in paths} == {"north", "east", "west"}
    for path in paths:
        scan = read_scan(path)
        place = {"affine": scan.affine, "shape": scan.grid_shape}
        ventricles = warp_to_scan(root, path.name, "ventricles", **place)
        around = warp_to_scan(root, path.name, "periventricular", **place)
        dark = np.average(scan.voxels, weights=ventricles**2)
        bright = np.average(scan.voxels, weights=around**2)
        assert dark < 0.75 * bright, path.name  # fluid has 0.2 to 0.25 of white matter's signal, blurred by 6 mm voxels


def test_a_map_for_a_scan_of_somebody_else_is_refused(cohort: tuple[Path, CohortSummary]) -> None:
    for name in ("sub-0099_T1w.nii.gz", "sub-0001_T2w.nii.gz", "scan.nii.gz"):
        with pytest.raises(SimulationError, match="no scan of this simulated cohort"):
            warp_to_scan(cohort[0], name, "ventricles", affine=np.eye(4), shape=(3, 3, 3))


def test_a_folder_without_truth_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SimulationError, match="no ground truth"):
        read_truth(tmp_path)


def test_a_scan_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object, __: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        bids_writer.write_scan_file(tmp_path / "sub-0001_T1w.nii.gz", b"half", {})
    assert not (tmp_path / "sub-0001_T1w.nii.gz").exists()


def test_scans_without_a_skull_are_empty_around_the_brain(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, num_subjects=1, head=False, modalities=("T1w",))
    simulate_cohort(config, tmp_path)
    path = next(tmp_path.glob("sub-*/**/*_T1w.nii.gz"))
    voxels = read_scan(path).voxels
    assert not voxels[0].any()
    assert 0.1 < (voxels > 0).mean() < 0.4  # a brain with its fluid has 1.4 to 2.2 of the grid's 9 litres
    assert json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())["SkullStripped"]
