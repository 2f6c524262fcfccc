"""`neuroray export` of a NeuroAR run: one folder that generates the same bytes without the run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from contracts.ageing_run import ages_of, train_ageing_run, write_ball
from safetensors.torch import load_file, save_file

from neuroray.jobs import export, generate
from neuroray.jobs.export import ExportError
from neuroray.platform.generate.ageing_model import load_ageing_model
from neuroray.serve.predictor import PredictorError, load_predictor
from neuroray.storage.faults import StoreError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_ageing_run(tmp_path_factory.mktemp("ageing"))


def test_the_folder_generates_what_the_run_did_when_the_run_is_gone(folder: Path, tmp_path: Path) -> None:
    scan, (low, high) = write_ball(tmp_path / "brain.nii.gz"), ages_of(folder / "run")
    shutil.copytree(folder / "run", tmp_path / "run")
    answer = export.run(export.Args(run=str(tmp_path / "run"), out=str(tmp_path / "model"), licence="CC0-1.0"))
    assert answer["verified"].startswith("same tokens and generated and volume")
    assert len(answer["probe"]["generated"]) == 2 * len(answer["probe"]["tokens"])
    assert answer["probe"]["volume"].startswith("SHA-256 ")
    for name in ("run", "model"):
        generate.run(
            generate.Args(
                run=str(tmp_path / name), scan=str(scan), out=str(tmp_path / f"out-{name}"), age_years=low, ages=(high,)
            )
        )
        shutil.rmtree(tmp_path / name)
    volume = f"age_{high:.6g}.nii.gz"
    assert (tmp_path / "out-run" / volume).read_bytes() == (tmp_path / "out-model" / volume).read_bytes()


def test_the_card_says_what_it_was_trained_on(folder: Path, tmp_path: Path) -> None:
    export.run(export.Args(run=str(folder / "run"), out=str(tmp_path / "model"), licence="CC0-1.0"))
    card = (tmp_path / "model" / "README.md").read_text()
    low, high = ages_of(folder / "run")
    assert f"{low:.4g} to {high:.4g} years" in card
    assert "no forecast for a person" in card
    assert "CC0-1.0" in card
    assert "error_to_copy" in card


def test_a_probe_tells_one_weight_apart_in_either_stage(folder: Path) -> None:
    first = load_ageing_model(str(folder / "run")).probe()
    for part, name in (("tokenizer", "volume"), ("transformer", "generated")):
        other = load_ageing_model(str(folder / "run"))
        with torch.no_grad():
            for weight in getattr(other, part).parameters():
                weight.mul_(-1.0)
        assert not torch.equal(first[name], other.probe()[name])


def test_damaged_weights_are_not_handed_on(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "run", tmp_path / "run")
    weights = tmp_path / "run" / "model" / "model.safetensors"
    tensors = load_file(weights)
    save_file({name: value + 1 if name.endswith("start") else value for name, value in tensors.items()}, weights)
    with pytest.raises(StoreError, match="is not the file"):
        export.run(export.Args(run=str(tmp_path / "run"), out=str(tmp_path / "model")))
    assert json.loads((tmp_path / "model" / "run.json").read_text())["status"] == "failed"


def test_several_trainings_of_brains_are_not_taken_for_one(folder: Path, tmp_path: Path) -> None:
    for number in range(2):
        shutil.copytree(folder / "run", tmp_path / "folds" / f"fold-{number}")
    with pytest.raises(ExportError, match=r"do not answer together.*fold-0"):
        export.run(export.Args(run=str(tmp_path / "folds"), out=str(tmp_path / "model")))
    assert not (tmp_path / "model").exists()
    with pytest.raises(PredictorError, match=r"whose mean would be none.*name one of them: .*fold-0"):
        load_predictor(str(tmp_path / "folds"))
    assert load_predictor(str(tmp_path / "folds/fold-1")).card.ageing is not None
