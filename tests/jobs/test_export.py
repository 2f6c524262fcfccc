import json
import shutil

import pytest
import torch
from contracts.finished_run import make_finished_run, make_store
from safetensors.torch import load_file

from neuroray.jobs.export import Args, ExportError, run
from neuroray.platform.data.splits import SplitConfig
from neuroray.platform.evaluate.loaded import load_model


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    store = make_store(folder / "store", num_subjects=20)
    return make_finished_run(folder / "run", store, split=SplitConfig(num_parts=3, num_folds=3), num_steps=2)


def _report() -> dict:
    found = {"value": 0.9, "low": 0.81, "high": 0.97}
    counts = {side: {"control": 7, "patient": 6} for side in ("train", "val", "test")}
    return {
        "classes": ["control", "patient"],
        "metrics": {"auc": found, "brier": {"value": None, "low": None, "high": None}},
        "num_scans": 13,
        "num_people": 13,
        "folds": [{"fold": 0, "counts": counts, "num_subjects": {"train": 13, "val": 13, "test": 13}}],
        "warnings": ["Only 6 scans of class “patient” were judged."],
        "provenance": {"catalogue_version": 1},
    }


def test_the_copy_rebuilds_itself_and_answers_bit_for_bit(finished, tmp_path):
    answer = run(Args(run=str(finished.folder), out=str(tmp_path / "out")))
    original, copy = load_model(finished.folder / "model"), load_model(tmp_path / "out")
    volume = torch.rand(1, 30, 31, 20)
    first, second = original.module(volume), copy.module(volume)
    assert torch.equal(first.logits, second.logits)
    assert torch.equal(first.attention, second.attention)
    assert len(answer["probe"]["logits"]) == 2
    assert answer["verified"].startswith("same logits and attention")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "run.json",
    ]


def test_the_same_model_may_be_exported_again(finished, tmp_path):
    arguments = Args(run=str(finished.folder), out=str(tmp_path / "out"))
    run(arguments)
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    run(arguments)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before


def test_another_model_is_not_overwritten(finished, tmp_path):
    out = tmp_path / "out"
    run(Args(run=str(finished.folder), out=str(out)))
    other = tmp_path / "other"
    shutil.copytree(finished.folder, other)
    config = json.loads((other / "model/config.json").read_text())
    (other / "model/config.json").write_text(json.dumps(config | {"target": "sex"}))
    kept = (out / "config.json").read_bytes()
    with pytest.raises(ExportError, match="holds something else"):
        run(Args(run=str(other), out=str(out)))
    assert (out / "config.json").read_bytes() == kept


def test_a_folder_with_other_things_is_not_written_to(finished, tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ExportError, match=r"thesis\.tex"):
        run(Args(run=str(finished.folder), out=str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_damaged_weights_are_not_handed_on(finished, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(finished.folder, broken)
    weights = broken / "model/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(OSError, match=r"model\.safetensors"):
        run(Args(run=str(broken), out=str(tmp_path / "out")))


def test_a_run_without_a_model_is_told(tmp_path):
    with pytest.raises(ExportError, match="no finished run"):
        run(Args(run=str(tmp_path)))


def test_the_card_carries_the_evaluation_with_intervals(finished, tmp_path):
    report = tmp_path / "report.json"
    report.write_text(json.dumps(_report()))
    run(Args(run=str(finished.folder), out=str(tmp_path / "out"), report=str(report), licence="CC0-1.0"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| Area under the ROC curve | 0.90 | 0.81 to 0.97 |" in card
    assert "| Brier score | not defined |  |" in card
    assert "| judged on | 7 | 6 | 13 |" in card
    assert "Weights: CC0-1.0." in card
    assert "weights are random" in card
    digest = json.loads((tmp_path / "out" / "config.json").read_text())["weights"]["sha256"]
    assert digest in card


def test_a_card_without_an_evaluation_says_so(finished, tmp_path):
    run(Args(run=str(finished.folder), out=str(tmp_path / "out")))
    assert "It has not been judged" in (tmp_path / "out" / "README.md").read_text()


def test_the_exported_tensors_are_those_of_the_run(finished, tmp_path):
    run(Args(run=str(finished.folder), out=str(tmp_path / "out")))
    first = load_file(finished.folder / "model/model.safetensors")
    second = load_file(tmp_path / "out/model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
