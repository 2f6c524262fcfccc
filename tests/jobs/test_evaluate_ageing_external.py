"""`neuroray evaluate --external` of a tiny run of NeuroAR: pairs of another store, who is left out, what is refused."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts.ageing_run import ages_of, train_ageing_run
from contracts.brain_cohort import draw_brain

from neuroray.jobs import evaluate
from neuroray.platform.evaluate.ageing_rows import ModelTeller
from neuroray.platform.evaluate.image_quality import compare_volumes
from neuroray.platform.evaluate.metrics import EvaluationError
from neuroray.platform.evaluate.visits import VisitReader
from neuroray.platform.generate.ageing_model import load_ageing_model
from neuroray.storage.bids import Participant
from neuroray.storage.profiles import Prepared, ProfileError, find_profile
from neuroray.storage.scan import Scan
from neuroray.storage.store import ScanStore


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_ageing_run(tmp_path_factory.mktemp("trained"), num_people=10, min_overlap=0.0)


def write_strangers(folder: Path, ages: Sequence[tuple[float, ...]], *, profile: str | None = None) -> ScanStore:
    """Somebody for each tuple, scanned at these ages."""
    store, generator = ScanStore.create(str(folder)), np.random.default_rng(11)
    for number, visits in enumerate(ages):
        for visit, age in enumerate(visits, start=1):
            scan = Scan(voxels=draw_brain((17, 19, 17), 7.0, age, generator), affine=np.diag([4.0, 4.0, 4.0, 1.0]))
            store.write(
                scan if profile is None else Prepared(scan=scan, profile=find_profile(profile)),
                scan_id=f"sub-x{number}_ses-{visit}_T1w",
                subject=f"x{number}",
                session=f"{visit}",
                modality="T1w",
                participant=Participant(subject=f"x{number}", age_years=age, diagnosis="strange"),
            )
    return store


@pytest.fixture(scope="module")
def strangers(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> ScanStore:
    """Two people with a pair within the training's ages, one with a third visit beyond them, one beyond altogether."""
    low, high = ages_of(trained / "run")
    folder = tmp_path_factory.mktemp("strangers") / "store"
    return write_strangers(folder, [(low + 1, low + 4), (low + 2, low + 5, high + 3), (high + 1, high + 4), (low + 1,)])


def ask(run: Path, out: Path, store: str | None, **changes: Any) -> dict[str, Any]:
    args = evaluate.Args(
        run=str(run), out=str(out), store=store, external=True, num_resamples=20, skip_example=True, **changes
    )
    return evaluate.run(args)


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return sorted(csv.DictReader(file), key=lambda row: row["previous"])


@pytest.fixture(scope="module")
def asked(trained: Path, strangers: ScanStore, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("asked")
    return out, ask(trained / "run", out, strangers.uri)


def test_pairs_of_the_other_store_are_judged_by_the_runs_model(
    trained: Path, strangers: ScanStore, asked: tuple[Path, dict[str, Any]]
) -> None:
    out, answer = asked
    rows = read_rows(out / "pairs.csv")
    assert [(row["previous"], row["target"]) for row in rows] == [
        ("sub-x0_ses-1_T1w", "sub-x0_ses-2_T1w"),
        ("sub-x1_ses-1_T1w", "sub-x1_ses-2_T1w"),
    ]
    assert (answer["num_pairs"], answer["num_people"]) == (2, 2)
    model = load_ageing_model(str(trained / "run"))
    read = VisitReader(strangers, model.tokenizer, model.grid)
    first, second = (read(strangers.record(rows[0][name])) for name in ("previous", "target"))
    told = ModelTeller(model).tell(first, second.age_years)
    for name, value in compare_volumes(told.volume, second.volume, second.brain).items():
        assert float(rows[0][f"model_{name}"]) == pytest.approx(value, rel=1e-7)
    # What stands beside the model is learned from the run's own people.
    assert "population_psnr_brain" in rows[0]


def test_who_is_left_out_is_counted_and_the_page_says_whom_it_judged(
    trained: Path, asked: tuple[Path, dict[str, Any]]
) -> None:
    out, answer = asked
    low, high = ages_of(trained / "run")
    # Two pairs with the third visit of one, and the only pair of another.
    expected = f"3 of 5 pairs, and with them 1 people, are left out: their ages are not within the {low:g} to {high:g}"
    assert any(expected in note for note in answer["warnings"])
    report, page = json.loads((out / "report.json").read_text()), (out / "report.html").read_text()
    assert report["provenance"]["protocol"] == "external"
    assert report["provenance"]["num_models"] == 1
    assert report["folds"][0]["num_subjects"]["test"] == 2
    assert report["folds"][0]["num_subjects"]["train"] > 2
    assert "2 people of another cohort" in page
    assert "same store" not in page
    assert "sub-" not in page


def test_the_models_of_all_folds_are_averaged(
    trained: Path, strangers: ScanStore, asked: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    for number in (0, 1):
        (tmp_path / "run" / f"fold-{number}").symlink_to(trained / "run")
    found = ask(tmp_path / "run", tmp_path / "out", strangers.uri)
    # The same model twice says the same of the same pairs.
    assert found["num_pairs"] == 2
    once, twice = (read_rows(path / "pairs.csv") for path in (asked[0], tmp_path / "out"))
    for one, other in zip(once, twice, strict=True):
        for name in ("model_psnr_brain", "population_l1_brain", "model_fluid_change_ml", "copy_ssim_whole"):
            assert float(one[name]) == pytest.approx(float(other[name]), rel=1e-8)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["provenance"]["num_models"] == len(report["folds"]) == 2
    assert report["sweep"]["num_people"] == asked[1]["sweep"]["num_people"]


def test_without_the_trainings_store_baselines_are_left_out_and_it_is_said(
    trained: Path, strangers: ScanStore, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("splits.json", "metrics.jsonl", "result.json"):
        (run / name).write_bytes((trained / "run" / name).read_bytes())
    (run / "model").symlink_to(trained / "run" / "model")
    recipe = json.loads((trained / "run" / "config.json").read_text())
    recipe["data"]["store"] = str(tmp_path / "gone")
    (run / "config.json").write_text(json.dumps(recipe))
    found = ask(run, tmp_path / "out", strangers.uri)
    assert list(found["whole"]["metrics"]) == ["copy", "ceiling", "model"]
    assert any("could not be checked" in note for note in found["warnings"])
    assert any("out of reach: there is no mean change" in note for note in found["warnings"])
    with pytest.raises(EvaluationError, match="out of reach"):
        ask(run, tmp_path / "out", strangers.uri, downstream=True)


def test_cohorts_that_are_none_or_known_are_refused(trained: Path, tmp_path: Path) -> None:
    run, out = trained / "run", tmp_path / "out"
    low, high = ages_of(run)
    with pytest.raises(EvaluationError, match="no other cohort is named"):
        ask(run, out, None)
    with pytest.raises(EvaluationError, match="were trained on"):
        ask(run, out, str(trained / "store"))
    single = write_strangers(tmp_path / "single", [(low + 1,), (low + 2,)])
    with pytest.raises(EvaluationError, match="two visits at different ages"):
        ask(run, out, single.uri)
    beyond = write_strangers(tmp_path / "beyond", [(high + 1, high + 4), (low + 1, high + 2)])
    with pytest.raises(EvaluationError, match="ages that the training has seen"):
        ask(run, out, beyond.uri)
    other = write_strangers(tmp_path / "other", [(low + 1, low + 4)], profile="n4")
    with pytest.raises(ProfileError, match="prepared otherwise"):
        ask(run, out, other.uri)
    with pytest.raises(EvaluationError, match="a tokenizer is judged on its own split"):
        ask(trained / "tokenizer", out, single.uri)
