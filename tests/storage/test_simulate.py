"""The simulated cohort: the same seed gives the same bytes, and what is planted is there."""

import csv
import hashlib
from pathlib import Path

from neuroray.jobs import simulate
from neuroray.storage.bids import find_scans
from neuroray.storage.nifti import read_scan
from neuroray.storage.participants import read_participants


def digest_tree(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != "run.json"
    }


def test_the_same_seed_gives_the_same_bytes_and_a_bids_folder_that_is_read_back(tmp_path: Path) -> None:
    for name in ("one", "two"):
        simulate.run(simulate.Args(out=str(tmp_path / name), num_subjects=4, seed=5, spacing_mm=6.0, workers=1))
    assert digest_tree(tmp_path / "one") == digest_tree(tmp_path / "two")
    people = read_participants(tmp_path / "one")
    assert {person.diagnosis for person in people} == {"control", "disease"}
    files = find_scans(tmp_path / "one")
    assert {file.suffix for file in files} == {"T1w"}
    assert all(read_scan(file.path).voxels.max() > 0 for file in files)
    with (tmp_path / "one/ground_truth/truth.tsv").open() as stream:
        assert list(csv.DictReader(stream, delimiter="\t"))
