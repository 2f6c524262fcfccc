import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from contracts.finished_run import make_finished_run, make_store

from neuroray.jobs import evaluate, explain
from neuroray.jobs.cli import UsageError
from neuroray.platform.data.splits import SplitConfig
from neuroray.storage.nifti import write_scan
from neuroray.storage.profiles import ProfileError
from neuroray.storage.profiles.profile import NATIVE_SHA256
from neuroray.storage.profiles.stored import StoredProfile
from neuroray.storage.scan import ScanError
from neuroray.storage.store import ScanStore


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judged")
    store = make_store(folder / "store", num_subjects=24)
    return make_finished_run(folder / "run", store, split=SplitConfig(num_parts=3, num_folds=3), num_steps=40)


def test_evaluate_writes_page_numbers_predictions_and_record(finished, tmp_path):
    out = tmp_path / "evaluate"
    answer = evaluate.run(evaluate.Args(run=str(finished.folder), out=str(out), num_resamples=100))
    assert sorted(path.name for path in out.iterdir()) == [
        "predictions.csv",
        "report.html",
        "report.json",
        "run.json",
    ]
    report, record = (json.loads((out / name).read_text()) for name in ("report.json", "run.json"))
    assert report["metrics"]["auc"]["value"] == answer["metrics"]["auc"]["value"]
    assert report["provenance"]["commands"] == [f"neuroray evaluate {finished.folder} --seed 0 --num-resamples 100"]
    assert (record["status"], record["seed"], record["num_people"]) == ("done", 0, report["num_people"])
    page = (out / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert "p001" not in page
    assert "p001" not in (out / "run.json").read_text() + (out / "report.json").read_text()


def test_explain_writes_the_map_on_the_grid_of_the_file(finished, tmp_path):
    scan = ScanStore(finished.store).read("p003_T1w")
    write_scan(scan, tmp_path / "scan.nii.gz")
    out = tmp_path / "explain"
    answer = explain.run(explain.Args(run=str(finished.folder), scan=str(tmp_path / "scan.nii.gz"), out=str(out)))
    written, source = nib.load(out / "map.nii.gz"), nib.load(tmp_path / "scan.nii.gz")
    assert written.shape == source.shape
    np.testing.assert_allclose(written.affine, source.affine, atol=1e-5)
    described = json.loads((out / "explain.json").read_text())
    assert described["checks"]["deletion"]["num_random_orders"] == 50
    assert described["map"]["maximum"] == pytest.approx(float(written.get_fdata().max()))
    assert answer["target"] in ("control", "patient")
    assert {"attention.png", "overlay.png", "checks.png", "run.json"} <= {path.name for path in out.iterdir()}


def test_a_subject_of_a_store_is_found_by_either_name(finished, tmp_path):
    for number, name in enumerate(("p003", "p003_T1w")):
        out = tmp_path / str(number)
        arguments = explain.Args(
            run=str(finished.folder),
            store=str(finished.store),
            subject=name,
            method="occlusion",
            out=str(out),
            skip_checks=True,
        )
        explain.run(arguments)
    first, second = (nib.load(tmp_path / name / "map.nii.gz").get_fdata() for name in "01")
    np.testing.assert_array_equal(first, second)
    assert not (tmp_path / "0" / "checks.png").exists()


def test_one_scan_must_be_named(finished, tmp_path):
    run, out = str(finished.folder), str(tmp_path)
    with pytest.raises(UsageError, match="name one scan"):
        explain.run(explain.Args(run=run, out=out))
    with pytest.raises(UsageError, match="name one scan"):
        explain.run(explain.Args(run=run, scan="a.nii", store="b", out=out))
    with pytest.raises(UsageError, match="--subject"):
        explain.run(explain.Args(run=run, store=str(finished.store), out=out))
    with pytest.raises(ScanError, match="no volume of this subject"):
        explain.run(explain.Args(run=run, store=str(finished.store), subject="nobody", out=out))


def test_scans_prepared_otherwise_than_those_of_the_training_are_refused(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished.folder, run)
    card = json.loads((run / "model/config.json").read_text())
    elsewhere = StoredProfile(options={"name": "mni_affine", "version": 1}, sha256="ab" * 32)
    (run / "model/config.json").write_text(json.dumps(card | {"profile": elsewhere.to_json()}))
    with pytest.raises(ProfileError, match=r"given \d+ native.*expected mni_affine \(abababab\)"):
        evaluate.run(evaluate.Args(run=str(run), num_resamples=10))
    with pytest.raises(ProfileError, match=r"given 1 native.*expected mni_affine"):
        explain.run(explain.Args(run=str(run), store=finished.store, subject="p003", out=str(tmp_path / "out")))


def test_what_was_judged_says_how_it_was_prepared(finished, tmp_path):
    out = tmp_path / "evaluate"
    evaluate.run(evaluate.Args(run=str(finished.folder), out=str(out), num_resamples=10, skip_example=True))
    text = (out / "report.json").read_text()
    assert '"profile": "native"' in text
    assert f'"profile_sha256": "{NATIVE_SHA256}"' in text
