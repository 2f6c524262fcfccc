"""`neuroray explain` of a NeuroAR run: the change per year on its own grid, checked against scrambled weights."""

from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from contracts.ageing_run import ages_of, train_ageing_run, write_ball
from contracts.small_transformer import small_config

from neuroray.jobs import explain, generate, predict
from neuroray.jobs.cli import UsageError
from neuroray.jobs.explain_ages import choose_stages
from neuroray.platform.explain.randomisation import check_weights
from neuroray.platform.generate.ages import GenerationError
from neuroray.storage.bids import Participant
from neuroray.storage.nifti import read_scan
from neuroray.storage.profiles.prepared import Prepared
from neuroray.storage.profiles.profile import ProfileError, find_profile
from neuroray.storage.scan import ScanError
from neuroray.storage.store import ScanStore


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = train_ageing_run(tmp_path_factory.mktemp("ageing"))
    write_ball(folder / "brain.nii.gz")
    return folder


def ask(folder: Path, out: Path, **options: Any) -> dict[str, Any]:
    options = {"scan": str(folder / "brain.nii.gz"), **options}
    return explain.run(explain.Args(run=str(folder / "run"), out=str(out), **options))


def test_the_map_is_the_slope_of_what_generate_writes(folder: Path, tmp_path: Path) -> None:
    low, high = ages_of(folder / "run")
    ages = tuple(float(age) for age in np.linspace(low, high, 5).round(2)[1:])
    answer = ask(folder, tmp_path / "out", age_years=low, ages=ages)
    told = generate.run(
        generate.Args(
            run=str(folder / "run"),
            scan=str(folder / "brain.nii.gz"),
            age_years=low,
            ages=(low, *ages),
            out=str(tmp_path / "generate"),
        )
    )
    files = [one["files"]["volume"] for one in told["ages"]]
    volumes = np.stack([np.asarray(nib.load(tmp_path / "generate" / name).dataobj) for name in files])
    centred = np.array([low, *ages]) - np.mean([low, *ages])
    expected = np.tensordot(centred / (centred**2).sum(), volumes.astype(np.float64), axes=1)
    image = nib.load(tmp_path / "out/map.nii.gz")
    # float32 sums of values of hundreds.
    np.testing.assert_allclose(np.asarray(image.dataobj), expected, atol=1e-3)
    np.testing.assert_array_equal(image.affine, nib.load(folder / "brain.nii.gz").affine)
    assert 0 <= answer["linear_share"] <= 1
    assert 0 <= answer["orders_as_linear"] <= 1
    scrambled = answer["checks"]["map_correlation_after_scrambling"]
    assert list(scrambled) == ["head", "blocks", "ages and previous scan"]
    assert all(one["values"] is None or one["values"] < 0.9 for one in scrambled.values())
    kept = json.loads((tmp_path / "out/explain.json").read_text())
    assert kept["regions_ml_per_year"] == answer["regions_ml_per_year"]
    assert (tmp_path / "out/overlay.png").read_bytes().startswith(b"\x89PNG")


def keep(store: ScanStore, file: Path, session: str, age_years: float | None, profile: str = "native") -> str:
    """Writes a file into a store, as ingest does."""
    scan_id = f"sub-9_ses-{session}_T1w"
    scan = read_scan(str(file))
    person = Participant(subject="9", age_years=age_years)
    details = {"subject": "9", "session": session, "modality": "T1w", "participant": person}
    store.write(Prepared(scan=scan, profile=find_profile(profile)), scan_id=scan_id, **details)
    return scan_id


def test_a_scan_of_a_store_is_explained_as_its_file_is(folder: Path, tmp_path: Path) -> None:
    low, high = ages_of(folder / "run")
    store = ScanStore.create(str(tmp_path / "store"))
    keep(store, folder / "brain.nii.gz", "01", low)
    of_file = ask(folder, tmp_path / "file", age_years=low, ages=(high,), seed=3)
    asked = {"scan": None, "store": store.uri, "ages": (high,), "seed": 3}
    of_store = ask(folder, tmp_path / "store_out", subject="sub-9", **asked)
    ours, theirs = (nib.load(tmp_path / name / "map.nii.gz") for name in ("store_out", "file"))
    np.testing.assert_array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))
    np.testing.assert_array_equal(ours.affine, theirs.affine)
    for name in ("age_years", "ages_years", "regions_ml_per_year", "checks", "reconstruction"):
        assert of_store[name] == of_file[name], name
    for name in ("overlay.png", "checks.png"):
        assert (tmp_path / "store_out" / name).read_bytes() == (tmp_path / "file" / name).read_bytes()


def test_a_scan_of_a_store_that_cannot_be_told_is_refused(folder: Path, tmp_path: Path) -> None:
    low, high = ages_of(folder / "run")
    store = ScanStore.create(str(tmp_path / "store"))
    one = keep(store, folder / "brain.nii.gz", "01", low)
    two = keep(store, folder / "brain.nii.gz", "02", None)
    other = keep(store, folder / "brain.nii.gz", "03", low, "n4")
    asked = {"scan": None, "store": store.uri, "ages": (high,)}
    with pytest.raises(UsageError, match=f"3 scans.*{one}, {two}"):
        ask(folder, tmp_path, subject="9", **asked)
    with pytest.raises(GenerationError, match=r"age at which the scan was made is not given.*--age-years"):
        ask(folder, tmp_path, subject=two, **asked)
    with pytest.raises(ProfileError, match="prepared otherwise"):
        ask(folder, tmp_path, subject=other, **asked)
    with pytest.raises(ScanError, match=f"no volume of this subject.*given nobody; expected.*{one}"):
        ask(folder, tmp_path, subject="nobody", **asked)
    assert not (tmp_path / "map.nii.gz").exists()


@dataclasses.dataclass(frozen=True)
class Told:
    values: np.ndarray

    @property
    def magnitudes(self) -> np.ndarray:
        return np.abs(self.values)


def test_a_map_of_the_training_peoples_average_change_is_gone_when_that_is_scrambled() -> None:
    transformer = small_config(head="nearest").build().requires_grad_(False)
    transformer.head.drift.normal_(generator=torch.Generator().manual_seed(0))
    stages = choose_stages(transformer)
    assert [name for name, _ in choose_stages(small_config().build())] == [name for name, _ in stages[1:]]
    found = check_weights(transformer, lambda one: Told(one.head.drift.numpy().copy()), seed=0, stages=stages[:2])
    # Of 92 numbers in another order a correlation is 0.1 by chance.
    assert abs(found["average change"]["values"]) < 0.5


def test_predict_writes_the_same_map_beside_its_table(folder: Path, tmp_path: Path) -> None:
    low, high = ages_of(folder / "run")
    ask(folder, tmp_path / "explain", age_years=low, ages=(high,), skip_checks=True)
    scans = (str(folder / "brain.nii.gz"),)
    answer = predict.run(
        predict.Args(
            model=str(folder / "run"), scans=scans, age_years=low, ages=(high,), explain=True, out=str(tmp_path / "out")
        )
    )
    (row,) = answer["predictions"]
    assert row["explanation"]["method"] == "change_per_year"
    ours, theirs = (nib.load(tmp_path / name) for name in ("out/maps/1.nii.gz", "explain/map.nii.gz"))
    np.testing.assert_array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))
    picture = base64.b64encode((tmp_path / "out/maps/1.png").read_bytes()).decode()
    assert picture in (tmp_path / "out/predictions.html").read_text()


def test_what_such_a_run_cannot_be_asked_is_refused(folder: Path, tmp_path: Path) -> None:
    low, high = ages_of(folder / "run")
    with pytest.raises(GenerationError, match="no age is asked for"):
        ask(folder, tmp_path, age_years=low)
    with pytest.raises(GenerationError, match="needs another age"):
        ask(folder, tmp_path, age_years=low, ages=(low,))
    with pytest.raises(GenerationError, match="no such ages"):
        ask(folder, tmp_path, age_years=low, ages=(99.0,))
    with pytest.raises(UsageError, match=r"explained by its change per year.*given --method"):
        ask(folder, tmp_path, age_years=low, ages=(high,), method="attention")
