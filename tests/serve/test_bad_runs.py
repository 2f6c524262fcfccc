"""Broken runs sent for an answer: refused with a reason where there is none to give, else answered with a warning."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from contracts.run_cohort import export_untrained, make_run, tiny_both, write_run_cohort
from fastapi.testclient import TestClient

from neuroray.jobs import predict
from neuroray.serve.config import ServeConfig
from neuroray.serve.packed_map import PackedReply, pack_reply
from neuroray.serve.predictor import Predictor, load_predictor
from neuroray.serve.question import Question, ask_predictor
from neuroray.serve.routes import build_api
from neuroray.storage.nifti import write_scan
from neuroray.storage.scan import Scan


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("asked")
    store = write_run_cohort(folder / "store", num_people=12)
    return export_untrained(tiny_both(), store, folder / "model")


@pytest.fixture(scope="module")
def predictor(model: Path) -> Predictor:
    return load_predictor(str(model))


def _break(kind: str) -> Scan:
    run = make_run(3, is_woman=False, cognition=100.0)
    voxels = np.array(run.voxels, dtype=np.float32)
    if kind == "volume":
        return Scan(voxels=voxels[0], affine=run.affine)
    if kind == "short":
        voxels = voxels[:4]
    if kind == "all zero":
        voxels[:] = 0
    if kind == "all alike":
        voxels[voxels > 0] = 500
    if kind == "all nan":
        voxels[:] = np.nan
    if kind == "frozen":
        voxels[3:6] = voxels[2]
    if kind == "empty":
        voxels[3:6] = 0
    if kind == "nan":
        voxels[2, 5:8, 5:8, 5:8] = np.nan
    time_s = None if kind == "no repetition time" else 2.0
    return dataclasses.replace(run, voxels=voxels, repetition_time_s=time_s)


REFUSED = {
    "volume": "not for single volumes",
    "all zero": "the image is empty",
    "all nan": "the image is empty",
    "all alike": "a run without spread has no z-scores",
}
WARNED = {
    "short": "4 frames; the model looks at 6 at once",
    "frozen": "frames 2 to 5 (counted from 0) are identical",
    "empty": "the head was not found in all frames",
    "nan": "27 voxels were NaN or infinite and were set to 0",
    "no repetition time": "does not say its repetition time",
}


def test_predict_refuses_or_warns_and_every_number_is_finite(model: Path, tmp_path: Path) -> None:
    files = {kind: tmp_path / f"{kind.replace(' ', '_')}.nii.gz" for kind in [*REFUSED, *WARNED]}
    for kind, path in files.items():
        write_scan(_break(kind), path)
    args = predict.Args(model=str(model), scans=tuple(map(str, files.values())), out=str(tmp_path / "out"))
    answer = predict.run(args)
    found = dict(zip(files, answer["predictions"], strict=True))
    for kind, reason in REFUSED.items():
        assert reason in found[kind]["refusal"]["text"], kind
    for kind, warning in WARNED.items():
        assert found[kind]["refusal"] is None, found[kind]
        assert any(warning in text for text in found[kind]["warnings"]), (kind, found[kind]["warnings"])
        sex, cognition = found[kind]["targets"]
        assert np.isfinite([*sex["probabilities"].values(), cognition["value"]]).all(), kind
    assert (answer["num_refused"], answer["exit_code"]) == (len(REFUSED), 1)


@pytest.mark.parametrize("kind", [*REFUSED, "nan"])
def test_the_service_says_the_same(predictor: Predictor, tmp_path: Path, kind: str) -> None:
    async def ask(name: str, scan: Scan, question: Question) -> PackedReply:
        return pack_reply(ask_predictor(predictor, scan, question), max_map_bytes=2**20)

    write_scan(_break(kind), tmp_path / "run.nii.gz")
    with TestClient(build_api(ServeConfig(models={"tiny": "x"}), cards={"tiny": predictor.card}, ask=ask)) as client:
        response = client.post(
            "/v1/models/tiny/predict", files={"file": ("run.nii.gz", (tmp_path / "run.nii.gz").read_bytes())}
        )
    if kind in REFUSED:
        assert response.status_code == 422
        assert REFUSED[kind] in response.json()["fault"]
    else:
        assert response.status_code == 200
        assert any(WARNED[kind] in text for text in response.json()["warnings"])
