"""Several seeds judged together: each one's numbers, their spread, and the mean of their answers, worked out again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts.run_cohort import tiny_both, write_run_cohort
from sklearn.metrics import mean_absolute_error, roc_auc_score

from neuroray.jobs import evaluate as job
from neuroray.platform.evaluate.evidence import Evaluation
from neuroray.platform.evaluate.metrics import EvaluationError
from neuroray.platform.evaluate.number_evidence import NumberEvaluation
from neuroray.platform.evaluate.protocol import evaluate
from neuroray.platform.evaluate.seeds import evaluate_seeds, find_seeds
from neuroray.platform.train.loop import fit
from neuroray.platform.train.recipe import LoopConfig

SETTINGS: dict[str, Any] = {"num_resamples": 40, "facts": {"versions": {"neuroray": "0"}, "made_at": "2026-01-01"}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of one epoch; the third has other test people and lies beside them."""
    folder = tmp_path_factory.mktemp("seeds")
    store = write_run_cohort(folder / "store")
    recipe = tiny_both(loop=LoopConfig(batch_size=4, num_epochs=1))
    for seed in (0, 10):
        fit(dataclasses.replace(recipe, seed=seed), store=store.uri, out=str(folder / "run" / f"seed-{seed}"))
    other = dataclasses.replace(recipe, seed=2, split=dataclasses.replace(recipe.split, fold=1))
    fit(other, store=store.uri, out=str(folder / "elsewhere"))
    return folder / "run"


def test_probabilities_are_averaged_and_every_seed_is_told(run: Path) -> None:
    each = [evaluate(run / name, **SETTINGS) for name in ("seed-0", "seed-10")]
    found = evaluate_seeds(run, **SETTINGS)
    assert isinstance(found, Evaluation)
    assert found.seeds is not None
    assert found.seeds.names == ("0", "10")
    values = [one.metrics["auc"].value for one in each]
    assert found.seeds.values["auc"] == tuple(values)
    assert found.seeds.mean("auc") == pytest.approx(np.mean(values))
    assert found.seeds.deviation("auc") == pytest.approx(abs(values[0] - values[1]) / np.sqrt(2))
    told = [one.probabilities for one in each if isinstance(one, Evaluation)]
    assert np.abs(told[0] - told[1]).max() > 1e-4, "two seeds that say the same would test nothing"
    np.testing.assert_allclose(found.probabilities, (told[0] + told[1]) / 2)
    assert found.metrics["auc"].value == pytest.approx(roc_auc_score(found.labels, found.probabilities[:, 1]))


def test_numbers_are_averaged_and_their_mean_has_no_interval(run: Path, tmp_path: Path) -> None:
    each = [evaluate(run / name, target="cognition", **SETTINGS) for name in ("seed-0", "seed-10")]
    answer = job.run(job.Args(run=str(run), target="cognition", out=str(tmp_path), num_resamples=40))
    report = json.loads((tmp_path / "report.json").read_text())
    said = [one.predicted for one in each if isinstance(one, NumberEvaluation)]
    truth = next(one.values for one in each if isinstance(one, NumberEvaluation))
    assert report["metrics"]["mae"]["value"] == pytest.approx(mean_absolute_error(truth, np.mean(said, axis=0)))
    assert report["seeds"]["seeds"] == ["0", "10"]
    assert report["seeds"]["metrics"]["mae"]["values"] == [one.metrics["mae"].value for one in each]
    assert "mean of 2 models" in report["no_prediction_intervals"]
    assert len(report["folds"][0]["weights_sha256"].split()) == 2
    page = (tmp_path / "report.html").read_text()
    assert "Seed 10" in page
    assert "Ensemble" in page
    assert "seeds " in answer["text"]


def test_seeds_on_other_people_and_a_single_one_are_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "seed-0").symlink_to(run / "seed-0")
    assert [path.name for path in find_seeds(tmp_path)] == ["seed-0"]
    with pytest.raises(EvaluationError, match="two or more; given seed-0"):
        evaluate_seeds(tmp_path, **SETTINGS)
    (tmp_path / "seed-2").symlink_to(run.parent / "elsewhere")
    with pytest.raises(EvaluationError, match="seed-2 was judged on other people or labels than seed-0"):
        evaluate_seeds(tmp_path, **SETTINGS)
    assert find_seeds(run / "seed-0") == []
