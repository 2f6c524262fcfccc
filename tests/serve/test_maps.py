"""The map beside an answer: on the scan's grid, of the stated answer, and how exact it is; refused as the answer is."""

from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from contracts.run_cohort import export_untrained, make_run, tiny_cognition, write_run_cohort
from fastapi.testclient import TestClient

from neuroray.jobs import predict
from neuroray.platform.evaluate.loaded import load_window_model
from neuroray.platform.explain.integrated import IntegratedConfig
from neuroray.platform.explain.run_overlay import average_anatomy, average_frames
from neuroray.platform.explain.window_answers import explain_prepared
from neuroray.serve.config import ServeConfig
from neuroray.serve.packed_map import PackedReply, pack_reply
from neuroray.serve.predictor import load_predictor
from neuroray.serve.question import Question, ask_predictor
from neuroray.serve.routes import build_api
from neuroray.storage.nifti import read_scan, write_scan
from neuroray.storage.profiles.profile import find_profile
from neuroray.storage.profiles.steps import prepare
from neuroray.storage.scan import Scan


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mapped")
    store = write_run_cohort(folder / "store", num_people=12)
    return export_untrained(tiny_cognition(), store, folder / "model")


def test_each_answered_file_gets_a_map_on_its_own_grid(model: Path, tmp_path: Path) -> None:
    run = make_run(3, is_woman=False, cognition=100.0)
    write_scan(run, tmp_path / "run.nii.gz")
    write_scan(Scan(voxels=run.voxels[0], affine=run.affine), tmp_path / "volume.nii.gz")
    files = (str(tmp_path / "volume.nii.gz"), str(tmp_path / "run.nii.gz"))
    answer = predict.run(
        predict.Args(model=str(model), scans=files, out=str(tmp_path / "out"), explain=True, num_steps=4)
    )
    refused, answered = json.loads((tmp_path / "out/predictions.json").read_text())["predictions"]
    assert "explanation" not in refused
    assert not (tmp_path / "out/maps/1.nii.gz").exists()
    told = answered["explanation"]
    prepared = prepare(read_scan(files[1]), find_profile("fmri_minimal"))
    expected = explain_prepared(load_window_model(model), prepared, IntegratedConfig(num_steps=4))
    image = nibabel.nifti1.Nifti1Image.from_filename(tmp_path / "out/maps/2.nii.gz")
    np.testing.assert_allclose(image.get_fdata(), expected.values, atol=1e-6 * np.abs(expected.values).max())
    np.testing.assert_allclose(image.affine, run.affine)
    assert told["completeness_error"] == max(expected.completeness_errors)
    assert (told["num_steps"], told["reference"], told["target"]) == (4, "mean_frame", "cognition")
    assert (tmp_path / "out/maps/2.png").read_bytes().startswith(b"\x89PNG")
    assert "map of cognition by integrated_gradients, completeness error" in answer["text"]
    with pytest.raises(Exception, match="not for single volumes"):
        load_predictor(str(model)).explain(read_scan(files[0]))


def test_the_service_sends_the_map_of_a_run_with_its_error(model: Path, tmp_path: Path) -> None:
    write_scan(make_run(3, is_woman=False, cognition=100.0), tmp_path / "run.nii.gz")
    predictor = load_predictor(str(model))

    async def ask(name: str, scan: Scan, question: Question) -> PackedReply:
        return pack_reply(ask_predictor(predictor, scan, question), max_map_bytes=2**20)

    with TestClient(build_api(ServeConfig(models={"tiny": "x"}), cards={"tiny": predictor.card}, ask=ask)) as client:
        files = {"file": ("run.nii.gz", (tmp_path / "run.nii.gz").read_bytes())}
        answer = client.post("/v1/models/tiny/predict", files=files, data={"explain": "true", "num_steps": "3"}).json()
    expected = predictor.explain(read_scan(tmp_path / "run.nii.gz"), num_steps=3)
    assert answer["map"]["facts"]["completeness_error"] == expected.facts["completeness_error"]
    assert answer["map"]["facts"]["num_steps"] == 3
    (tmp_path / "map.nii.gz").write_bytes(base64.b64decode(answer["map"]["nifti_base64"]))
    sent = nibabel.nifti1.Nifti1Image.from_filename(tmp_path / "map.nii.gz").get_fdata()
    np.testing.assert_allclose(sent, expected.values, atol=1e-6 * np.abs(expected.values).max())


def test_a_run_s_anatomy_is_its_mean_and_a_group_s_that_of_those_on_one_grid() -> None:
    run = make_run(1, is_woman=False, cognition=100.0)
    broken = np.array(run.voxels, dtype=np.float32)
    broken[2, 5, 5, 5] = np.nan
    mean = average_frames(dataclasses.replace(run, voxels=broken))
    expected = np.nan_to_num(broken).mean(axis=0)
    np.testing.assert_allclose(mean.voxels, expected, rtol=1e-6)
    assert not mean.is_timeseries
    other = dataclasses.replace(run, affine=np.diag([4.0, 8.0, 8.0, 1.0]))
    double = dataclasses.replace(run, voxels=run.voxels * 2)
    together = average_anatomy([run, other, double])
    plain = average_frames(run).voxels
    # Doubled and scaled by its median it is the same again; what lies elsewhere is left out.
    np.testing.assert_allclose(together.voxels, plain / np.median(plain[plain > 0]), rtol=1e-5)
