"""A model of windows answers for runs: the mean of its windows, in the target's unit, and a word of what differs."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts.run_cohort import export_untrained, make_run, tiny_both, tiny_cognition, write_run_cohort
from fastapi.testclient import TestClient

from neuroray.jobs import export, predict
from neuroray.platform.data.collate import to_torch
from neuroray.platform.data.standardise import StandardiseConfig, standardise
from neuroray.platform.data.window_reader import WindowReader
from neuroray.platform.evaluate.loaded import load_slice_model, load_window_model
from neuroray.platform.evaluate.metrics import EvaluationError
from neuroray.serve.config import ServeConfig
from neuroray.serve.packed_map import PackedReply, pack_reply
from neuroray.serve.predictor import Predictor, load_predictor
from neuroray.serve.question import Question, ask_predictor
from neuroray.serve.routes import build_api
from neuroray.storage.nifti import write_scan
from neuroray.storage.scan import Scan, ScanError
from neuroray.storage.store import ScanStore


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ScanStore:
    return write_run_cohort(tmp_path_factory.mktemp("runs") / "store", num_people=12)


@pytest.fixture(scope="module")
def model_folder(store: ScanStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_untrained(tiny_both(), store, tmp_path_factory.mktemp("both") / "model")


@pytest.fixture(scope="module")
def predictor(model_folder: Path) -> Predictor:
    return load_predictor(str(model_folder))


@pytest.fixture(scope="module")
def run() -> Scan:
    """Of 11 frames: two windows of 6, which share one frame."""
    return make_run(3, is_woman=False, cognition=100.0)


@pytest.mark.parametrize("config", [StandardiseConfig(), StandardiseConfig(by="voxel", drift_degree=1)])
def test_a_run_from_a_file_is_answered_as_the_model_answers_from_the_store(
    store: ScanStore, tmp_path: Path, run: Scan, config: StandardiseConfig
) -> None:
    """Covering windows as the reader gives them, standardised as in training, their outputs averaged by hand."""
    model_folder = export_untrained(tiny_both(standardise=config), store, tmp_path / "model")
    predictor = load_predictor(str(model_folder))
    answer = predictor.predict(run)
    model = load_window_model(model_folder)
    items = model.cover("sub-003_bold", run.num_frames)
    assert [(item.start, item.stop) for item in items] == [(0, 6), (5, 11)]
    reader = WindowReader(store.uri, store.version, with_brain=True)
    with torch.no_grad():
        outputs = model.module(standardise(to_torch(reader.read_batch(items)), config=config)).outputs.double()
    sex, cognition = answer.targets
    men = torch.sigmoid(outputs[:, 0])
    known = {target.name: target for target in model.targets}["cognition"]
    numbers = outputs[:, 1] * known.std + known.mean
    # Both standardise in float32, from stored numbers and from values.
    assert sex.probabilities["M"] == pytest.approx(float(men.mean()), abs=1e-5)
    assert sex.spread == pytest.approx(float(men.std()), abs=1e-5)
    assert cognition.value == pytest.approx(float(numbers.mean()), abs=1e-3)
    assert cognition.spread == pytest.approx(float(numbers.std()), abs=1e-3)
    assert numbers.std() > 1e-4, "windows that all say the same would test nothing"
    assert (sex.num_windows, answer.label) == (2, sex.label)
    assert answer.attention == ()
    assert answer.warnings == predictor.predict(run).warnings


def test_what_is_unlike_the_training_runs_is_told(predictor: Predictor, run: Scan) -> None:
    assert not [text for text in predictor.predict(run).warnings if "frames" in text or "grid" in text]
    odd = dataclasses.replace(run, voxels=run.voxels[:4, :, :-1], repetition_time_s=0.8)
    told = "\n".join(predictor.predict(odd).warnings)
    assert "a grid of 17 x 19 x 18; the model was trained on 17 x 20 x 18" in told
    assert "a repetition time of 0.8 s; the model was trained on 2 s" in told
    assert "4 frames; the model looks at 6 at once" in told
    assert predictor.predict(odd).targets[0].spread is None
    unknown = predictor.predict(dataclasses.replace(run, repetition_time_s=None))
    assert any("does not say its repetition time" in text for text in unknown.warnings)
    large = np.diag([16.0, 8.0, 8.0, 1.0])
    stretched = predictor.predict(dataclasses.replace(run, affine=large))
    assert any("voxels of 16 x 8 x 8 mm" in text for text in stretched.warnings)


def test_a_volume_is_refused_and_so_is_a_run_without_a_signal(predictor: Predictor, run: Scan) -> None:
    with pytest.raises(ScanError, match=r"runs, not for single volumes.*send the bold run"):
        predictor.predict(Scan(voxels=run.voxels[0], affine=run.affine))
    flat = np.where(run.voxels > 0, 500, 0).astype(np.int16)
    with pytest.raises(ScanError, match="without spread"):
        predictor.predict(dataclasses.replace(run, voxels=flat))


def test_the_card_tells_of_every_target(predictor: Predictor) -> None:
    described = json.loads(json.dumps(predictor.card.to_json()))
    assert [target["name"] for target in described["targets"]] == ["sex", "cognition"]
    assert (described["classes"], described["profile"]) == (["F", "M"], "fmri_minimal")


def test_the_job_writes_a_column_for_each_target(model_folder: Path, run: Scan, tmp_path: Path) -> None:
    write_scan(run, tmp_path / "run.nii.gz")
    write_scan(Scan(voxels=run.voxels[0], affine=run.affine), tmp_path / "volume.nii.gz")
    files = (str(tmp_path / "run.nii.gz"), str(tmp_path / "volume.nii.gz"))
    answer = predict.run(predict.Args(model=str(model_folder), scans=files, out=str(tmp_path / "out")))
    assert (answer["exit_code"], answer["num_refused"]) == (1, 1)
    with (tmp_path / "out/predictions.csv").open(newline="") as file:
        good, bad = csv.DictReader(file)
    numbers = ["cognition", *(f"cognition_{part}" for part in ("low", "high", "level", "spread", "model_spread"))]
    said = ["label", "probability_F", "probability_M", *numbers]
    assert list(good) == ["scan", *said, "profile", "profile_sha256", "warnings", "refusal"]
    assert float(good["probability_F"]) + float(good["probability_M"]) == pytest.approx(1)
    assert float(good["cognition"]) == answer["predictions"][0]["targets"][1]["value"]
    assert bad["cognition"] == bad["label"] == ""
    assert "cognition" in answer["text"]
    assert "over windows" in answer["text"]
    assert "no interval: the model was saved without" in answer["text"]
    assert good["cognition_low"] == good["cognition_level"] == ""


def test_a_measure_alone_has_no_label(store: ScanStore, run: Scan, tmp_path: Path) -> None:
    folder = export_untrained(tiny_cognition(), store, tmp_path / "model")
    answer = load_predictor(str(folder)).predict(run)
    assert (answer.label, answer.probabilities, answer.classes) == (None, {}, ())
    assert answer.to_json()["targets"][0]["value"] == answer.targets[0].value


def test_the_service_takes_a_run_like_any_scan(predictor: Predictor, run: Scan, tmp_path: Path) -> None:
    async def ask(name: str, scan: Scan, question: Question) -> PackedReply:
        return pack_reply(ask_predictor(predictor, scan, question), max_map_bytes=2**20)

    config = ServeConfig(models={"tiny": "anywhere"})
    write_scan(run, tmp_path / "run.nii.gz")
    with TestClient(build_api(config, cards={"tiny": predictor.card}, ask=ask)) as client:
        listed = client.get("/v1/models").json()["models"][0]
        response = client.post(
            "/v1/models/tiny/predict", files={"file": ("run.nii.gz", (tmp_path / "run.nii.gz").read_bytes())}
        )
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    expected = predictor.predict(run)
    assert answer["targets"] == [target.to_json() for target in expected.targets]
    assert (answer["label"], answer["attention_axis"], answer["attention"]) == (expected.label, None, [])
    assert [target["kind"] for target in listed["targets"]] == ["class", "number"]


def test_an_exported_copy_answers_bit_for_bit(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/model").symlink_to(model_folder)
    answer = export.run(export.Args(run=str(tmp_path / "run"), out=str(tmp_path / "out")))
    assert len(answer["probe"]["outputs"]) == 2
    card = (tmp_path / "out/README.md").read_text()
    assert "sex" in card
    assert "cognition" in card
    assert "windows of 6 frames" in card
    assert load_predictor(str(tmp_path / "out")).card.targets == load_predictor(str(model_folder)).card.targets


def test_what_needs_slices_says_so(model_folder: Path) -> None:
    with pytest.raises(EvaluationError, match=r"models of slices.*brainmt, a model of windows"):
        load_slice_model(model_folder)
