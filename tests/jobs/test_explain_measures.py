"""`neuroray explain` of a run that tells ages: a map on the file's own grid that adds up, of a file or of a store."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from contracts.age_cohort import tiny, write_age_cohort
from contracts.measure_models import draw_head_scan

from neuroray.errors import NeurorayError
from neuroray.jobs import explain
from neuroray.platform.train.loop import fit
from neuroray.platform.train.recipe import LoopConfig
from neuroray.storage.nifti import write_scan
from neuroray.storage.profiles import NativeGrid, Prepared, TemplateTransform, find_profile
from neuroray.storage.store import ScanStore


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ScanStore:
    return write_age_cohort(tmp_path_factory.mktemp("cohort") / "store")


@pytest.fixture(scope="module")
def run(store: ScanStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    fit(tiny(loop=LoopConfig(num_epochs=2, select_by="val_mae")), store=store.uri, out=str(folder))
    return folder


@pytest.mark.parametrize("method", [None, "rollout"])
def test_a_file_gets_a_map_on_its_own_grid_that_adds_up(method, store: ScanStore, run: Path, tmp_path: Path) -> None:
    path = tmp_path / "head.nii.gz"
    write_scan(store.read("sub-004_T1w"), path)
    answer = explain.run(explain.Args(run=str(run), scan=str(path), method=method, out=str(tmp_path / "out")))
    described = json.loads((tmp_path / "out/explain.json").read_text())
    image = nibabel.nifti1.Nifti1Image.from_filename(tmp_path / "out/map.nii.gz")
    own = nibabel.nifti1.Nifti1Image.from_filename(path)
    assert image.shape == own.shape
    np.testing.assert_allclose(image.affine, own.affine)
    whole = described["expected_sum"] if method is None else 1.0
    scale = described["map"]["sum_of_magnitudes"]
    total = image.get_fdata().sum() + described["prefix_tokens"]["sum"]
    assert total == pytest.approx(whole, abs=1e-4 * scale)
    assert described["method"] == (method or "grad_x_token")
    assert "completeness error" in answer["text"]
    names = [share["name"] for share in described["tissues"]]
    assert {"white matter", "ventricles"} <= set(names)
    assert sum(share["total"] for share in described["tissues"]) == pytest.approx(
        described["map"]["sum"], abs=1e-5 * scale
    )
    assert "does not see to it" in described["space_assumed"]
    checked = described["checks"]["map_correlation_after_scrambling"]
    assert next(iter(checked)) == "head"
    assert (checked["head"]["values"] > 0.999) == (method == "rollout")
    for name in ("overlay.png", "slices.png", "checks.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "out/map_native.nii.gz").exists()


def test_a_stored_scan_is_explained_as_its_file_and_its_sex_is_known(store: ScanStore, run: Path, tmp_path: Path):
    write_scan(store.read("sub-003_T1w"), tmp_path / "head.nii.gz")
    file = {"scan": str(tmp_path / "head.nii.gz"), "sex": "M"}
    stored = {"store": store.uri, "subject": "003"}
    seen = {}
    for name, source in (("file", file), ("store", stored)):
        explain.run(explain.Args(run=str(run), out=str(tmp_path / name), **source))
        described = json.loads((tmp_path / name / "explain.json").read_text())
        image = nibabel.nifti1.Nifti1Image.from_filename(tmp_path / name / "map.nii.gz")
        seen[name] = (image.get_fdata(), described["answer"], described["sex"])
    np.testing.assert_array_equal(seen["file"][0], seen["store"][0])
    assert seen["file"][1:] == seen["store"][1:]
    assert seen["store"][2] == "M"


def test_what_does_not_fit_is_refused_with_what_does(store: ScanStore, run: Path, tmp_path: Path) -> None:
    shared = {"run": str(run), "store": store.uri, "subject": "003", "out": str(tmp_path)}
    with pytest.raises(NeurorayError, match="grad_x_token, integrated_tokens, rollout, paper_fused"):
        explain.run(explain.Args(**shared, method="occlusion"))
    with pytest.raises(NeurorayError, match=r"another number.*cognition.*age_years"):
        explain.run(explain.Args(**shared, target="cognition"))


@pytest.mark.parametrize("method", [None, "paper_fused"])
def test_a_group_of_test_people_has_mean_maps_by_decade(method, store: ScanStore, run: Path, tmp_path: Path) -> None:
    answer = explain.run(explain.Args(run=str(run), group=4, method=method, out=str(tmp_path)))
    described = json.loads((tmp_path / "explain.json").read_text())
    split = json.loads((run / "splits.json").read_text())
    assert described["num_people"] == 4
    assert sum(one["num_people"] for one in described["decades"].values()) == 4
    mean = _read(tmp_path / "group_values.nii.gz")
    # The mean of all is that of the decades, each with its people.
    parts = [one["num_people"] * _read(tmp_path / one["map"]) for one in described["decades"].values()]
    np.testing.assert_allclose(np.sum(parts, axis=0) / 4, mean, atol=1e-5 * np.abs(mean).max())
    agreement = _read(tmp_path / "group_agreement.nii.gz")
    assert 0 <= agreement.min() <= agreement.max() <= 1
    for name in ("group_overlay.png", "group_parts.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    if method is None:
        assert described["completeness_error_largest"] < 1e-4
        assert described["map"]["sum"] == pytest.approx(mean.sum(), rel=1e-4)
    assert "4 people explained" in answer["text"]
    text = (tmp_path / "explain.json").read_text()
    assert not any(scan_id in text for scan_id in split["test"])


def test_a_difference_from_training_people_adds_up_to_that_of_the_answers(run: Path, store: ScanStore, tmp_path: Path):
    arguments = {"run": str(run), "method": "integrated_tokens", "against": 3, "skip_checks": True}
    answer = explain.run(explain.Args(**arguments, store=store.uri, subject="003", out=str(tmp_path / "one")))
    described = json.loads((tmp_path / "one/explain.json").read_text())
    assert described["reference_people"] == 3
    difference = described["answer"] - described["reference_answer"]
    scale = described["map"]["sum_of_magnitudes"]
    total = described["map"]["sum"] + described["prefix_tokens"]["sum"]
    assert total == pytest.approx(difference, abs=1e-2 * scale)  # 128 nodes over the kinks of a tiny head
    assert "the model says of the mean of 3 people" in answer["text"]
    explain.run(explain.Args(**arguments, group=2, out=str(tmp_path / "group")))
    assert json.loads((tmp_path / "group/explain.json").read_text())["num_people"] == 2
    with pytest.raises(NeurorayError, match="a run's train people"):
        explain.run(explain.Args(**arguments | {"run": str(run / "model")}, store=store.uri, subject="003"))


def test_a_scan_in_a_template_has_its_map_there_and_over_itself_with_the_same_sum(run: Path, tmp_path: Path) -> None:
    head = draw_head_scan((30, 36, 32), spacing_mm=6.0)
    # The person lies turned and a tenth smaller than the template, on voxels of another size.
    native = np.diag([4.0, 5.0, 4.5, 1.0])
    native[:3, 3] = -native[:3, :3] @ (np.array([44, 42, 40]) - 1) / 2
    to_template = np.array([[1.1, 0.1, 0, 2], [-0.1, 1.1, 0, -3], [0, 0, 1.1, 1], [0, 0, 0, 1.0]])
    transform = TemplateTransform(
        template="MNI", affine=to_template, native=NativeGrid(shape=(44, 42, 40), affine=native)
    )
    store = ScanStore.create(tmp_path / "store")
    prepared = Prepared(scan=head, profile=find_profile("mni_affine"), to_template=transform)
    store.write(prepared, scan_id="a", subject="s", modality="T1w")
    model = tmp_path / "model"
    shutil.copytree(run / "model", model)
    card = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(card | {"profile": store.read_profile("a").to_json()}))
    arguments = explain.Args(run=str(model), store=store.uri, subject="s", skip_checks=True, out=str(tmp_path / "out"))
    explain.run(arguments)
    described = json.loads((tmp_path / "out/explain.json").read_text())
    assert described["space_assumed"].startswith("MNI152, on whose grid the profile mni_affine")
    laid = nibabel.nifti1.Nifti1Image.from_filename(tmp_path / "out/map_native.nii.gz")
    assert laid.shape == (44, 42, 40)
    np.testing.assert_allclose(laid.affine, native, atol=1e-4)
    found = described["map_native"]
    scale = described["map"]["sum_of_magnitudes"]
    assert laid.get_fdata().sum() == pytest.approx(found["sum"], abs=1e-4 * scale)
    error = abs(found["sum"] - described["map"]["sum"]) / scale
    assert found["completeness_error"] == pytest.approx(error, abs=1e-4)
    # Linear between blocks of a patch each; the head lies within both grids.
    assert error < 0.02


def _read(path: Path) -> np.ndarray:
    return nibabel.nifti1.Nifti1Image.from_filename(path).get_fdata()
