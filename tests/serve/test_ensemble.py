"""A run of seeds or folds answers as one model, over files and HTTP: mean, spread, an interval of its own, one map."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts.age_cohort import tiny, write_age_cohort
from contracts.finished_run import make_finished_run, make_store
from fastapi.testclient import TestClient

from neuroray.jobs import evaluate, export, gap, predict
from neuroray.platform.data.splits import SplitConfig
from neuroray.platform.train.loop import fit
from neuroray.platform.train.recipe import LoopConfig
from neuroray.serve.config import ServeConfig
from neuroray.serve.packed_map import PackedReply, pack_reply
from neuroray.serve.predictor import PredictorError, load_predictor, read_model_card
from neuroray.serve.question import Question, ask_predictor
from neuroray.serve.routes import build_api
from neuroray.storage.nifti import write_scan
from neuroray.storage.scan import Scan
from neuroray.storage.store import ScanStore

SPLIT = SplitConfig(stratify_by="age_years", num_bins=2, num_parts=4, num_folds=2)
LOOP = LoopConfig(num_epochs=5, select_by="val_mae", checkpoint_every_steps=1000)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ScanStore:
    return write_age_cohort(tmp_path_factory.mktemp("cohort") / "store")


@pytest.fixture(scope="module")
def seeds(store: ScanStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeds")
    for seed in (0, 1):
        fit(tiny(split=SPLIT, loop=LOOP, seed=seed), store=store.uri, out=str(folder / f"seed-{seed}"))
    return folder


@pytest.fixture(scope="module")
def folds(store: ScanStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folds")
    for fold in (0, 1):
        split = dataclasses.replace(SPLIT, fold=fold)
        fit(tiny(split=split, loop=LOOP), store=store.uri, out=str(folder / f"fold-{fold}"))
    evaluate.run(evaluate.Args(run=str(folder), num_resamples=20))
    gap.run(gap.Args(run=str(folder), num_resamples=20))
    return folder


def test_seeds_answer_together_with_an_interval_once_they_were_judged(seeds: Path, store: ScanStore) -> None:
    scan = store.read("sub-004_T1w")
    each = [load_predictor(str(seeds / name)).predict(scan, sex="F").targets[0].value for name in ("seed-0", "seed-1")]
    before = load_predictor(str(seeds)).predict(scan, sex="F").targets[0]
    assert before.interval is None
    assert before.no_interval is not None
    assert "`neuroray evaluate RUN` does" in before.no_interval
    answer = evaluate.run(evaluate.Args(run=str(seeds), num_resamples=20))
    after = load_predictor(str(seeds)).predict(scan, sex="F").targets[0]
    assert after.value == pytest.approx(np.mean(each), abs=1e-4)  # float32 around values of 50
    assert (after.num_models, after.unit) == (2, "years")
    assert after.model_spread == pytest.approx(np.std(each, ddof=1), abs=1e-4)
    assert after.model_spread > 0
    found = json.loads((seeds / "ensemble.json").read_text())
    errors = np.sort(found["errors"]["0"])
    assert len(errors) == 15
    half_width = errors[int(np.ceil(16 * 0.9)) - 1]
    assert after.interval is not None
    assert after.interval.high - after.interval.low == pytest.approx(2 * half_width, rel=1e-6)
    # The very people whom the ensemble's intervals are to hold are counted in the report.
    report = json.loads(Path(answer["report_json"]).read_text())
    assert report["prediction_intervals"]["num_validation_people"] == 15
    assert report["prediction_intervals"]["mean_width"] == pytest.approx(2 * half_width, rel=1e-4)


def test_folds_answer_together_over_files_and_http(folds: Path, store: ScanStore, tmp_path: Path) -> None:
    scan = store.read("sub-004_T1w")
    write_scan(scan, tmp_path / "head.nii.gz")
    arguments = {"scans": (str(tmp_path / "head.nii.gz"),), "age_years": 44.0, "out": str(tmp_path / "out")}
    answer = predict.run(predict.Args(model=str(folds), explain=True, **arguments))
    (row,) = answer["predictions"]
    each = [load_predictor(str(folds / name)).predict(scan).targets[0].value for name in ("fold-0", "fold-1")]
    said = row["targets"][0]
    assert said["value"] == pytest.approx(np.mean(each), abs=1e-4)
    assert said["interval"]["low"] < said["value"] < said["interval"]["high"]
    assert said["interval"]["num_people"] == 30
    assert "over 2 models" in answer["text"]
    # One word on the unknown sex, not one of each model.
    assert sum("the sex is not known" in note for note in row["warnings"]) == 1
    assert (row["gap"]["fitted_on"], row["gap"]["num_controls"]) == ("held_out", 30)
    assert row["explanation"]["of"].endswith("of 2 models the one whose answer is nearest to the mean")
    told = _post(folds, (tmp_path / "head.nii.gz").read_bytes(), age_years="44")
    assert told["targets"][0]["value"] == pytest.approx(said["value"], abs=1e-4)
    assert told["targets"][0]["num_models"] == 2
    assert told["targets"][0]["interval"] == pytest.approx(said["interval"], abs=1e-4)
    assert told["model"]["num_models"] == 2
    assert told["gap"]["beheshti_years"] == pytest.approx(row["gap"]["beheshti_years"], abs=1e-4)


def test_the_exported_folder_of_folds_answers_alike(folds: Path, store: ScanStore, tmp_path: Path) -> None:
    answer = export.run(export.Args(run=str(folds), out=str(tmp_path / "out")))
    assert answer["num_models"] == 2
    assert answer["has_age_correction"]
    assert {"fold-0/model/model.safetensors", "fold-1/model/config.json", "ensemble.json"} < set(answer["files"])
    assert "2 trainings answer together" in (tmp_path / "out/README.md").read_text()
    scan = store.read("sub-007_T1w")
    said = [load_predictor(str(one)).predict(scan, sex="F", age_years=40.0) for one in (folds, tmp_path / "out")]
    assert said[0].targets == said[1].targets
    assert said[0].targets[0].interval is not None
    assert said[0].gap == said[1].gap
    export.run(export.Args(run=str(folds), out=str(tmp_path / "out")))
    with pytest.raises(export.ExportError, match="holds something else"):
        export.run(export.Args(run=str(folds / "fold-0"), out=str(tmp_path / "out")))
    found = json.loads((folds / "ensemble.json").read_text())
    other = tmp_path / "other"
    shutil.copytree(folds, other)
    (other / "ensemble.json").write_text(json.dumps(found | {"weights_sha256": ["0" * 64]}))
    with pytest.raises(export.ExportError, match="of other models"):
        export.run(export.Args(run=str(other), out=str(tmp_path / "again")))
    (other / "fold-1/model/config.json").unlink()
    with pytest.raises(export.ExportError, match=r"no finished run.*fold-1"):
        export.run(export.Args(run=str(other), out=str(tmp_path / "again")))


def _post(run: Path, data: bytes, **fields: str) -> dict[str, Any]:
    predictor = load_predictor(str(run))

    async def ask(name: str, scan: Scan, question: Question) -> PackedReply:
        return pack_reply(ask_predictor(predictor, scan, question), max_map_bytes=2**20)

    api = build_api(ServeConfig(models={"age": "x"}), cards={"age": read_model_card(str(run))}, ask=ask)
    with TestClient(api) as client:
        response = client.post("/v1/models/age/predict", files={"file": ("head.nii.gz", data)}, data=fields)
    assert response.status_code == 200, response.text
    return response.json()


def test_members_that_see_alike_keep_one_encoder(folds: Path) -> None:
    predictor: Any = load_predictor(str(folds))
    first, second = (one._model.module for one in predictor._answerers)
    assert first.encoder is second.encoder
    assert first.head is not second.head
    assert predictor.card == read_model_card(str(folds))
    assert len(predictor.card.members) == 2
    assert predictor.card.version not in {weights[:12] for weights in predictor.card.members}


def test_trainings_that_cannot_answer_together_are_refused(folds: Path, tmp_path: Path) -> None:
    (tmp_path / "seed-0").symlink_to(folds / "fold-0")
    with pytest.raises(PredictorError, match="one training in a folder of its own"):
        load_predictor(str(tmp_path))
    other = tmp_path / "seed-1" / "model"
    other.mkdir(parents=True)
    card = json.loads((folds / "fold-1/model/config.json").read_text())
    (other / "config.json").write_text(json.dumps(card | {"modality": "T2w"}))
    with pytest.raises(PredictorError, match="differ in modality"):
        read_model_card(str(tmp_path))
    (other / "config.json").unlink()
    with pytest.raises(PredictorError, match="no model in"):
        read_model_card(str(tmp_path))


def test_classes_of_folds_are_averaged_and_their_attention_too(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", num_subjects=20)
    split = SplitConfig(num_parts=5, num_folds=2)
    for fold in (0, 1):
        one = dataclasses.replace(split, fold=fold)
        make_finished_run(tmp_path / f"run/fold-{fold}", store, split=one, num_steps=5 + 20 * fold)
    scan = store.read("p001_T1w")
    each = [load_predictor(str(tmp_path / f"run/fold-{fold}")).predict(scan) for fold in (0, 1)]
    found = load_predictor(str(tmp_path / "run")).predict(scan)
    assert each[0].probabilities != each[1].probabilities
    for name in ("control", "patient"):
        expected = np.mean([one.probabilities[name] for one in each])
        assert found.probabilities[name] == pytest.approx(expected, abs=1e-6)
    weights = np.mean([[row.weight for row in one.attention] for one in each], axis=0)
    assert [row.weight for row in found.attention] == pytest.approx(weights.tolist(), abs=1e-6)
    assert found.targets[0].num_models == 2
