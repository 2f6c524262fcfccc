"""Connectivity as labels and as an answer: edges by hand, people by a formula, and the mean as what is to be beaten."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts.run_cohort import MODEL, tiny_cognition
from scipy.signal import detrend
from scipy.stats import pearsonr

from neuroray.jobs import connectivity
from neuroray.jobs import evaluate as evaluate_job
from neuroray.jobs.recipes import load_recipe
from neuroray.platform.baselines.errors import BaselineError
from neuroray.platform.baselines.network_edges import NETWORKS, list_edges, measure_edges
from neuroray.platform.baselines.series import CleaningConfig
from neuroray.platform.data.atlas import label_networks
from neuroray.platform.data.splits import SplitConfig
from neuroray.platform.data.windows import WindowConfig
from neuroray.platform.evaluate.connectome import compare_edges, list_edge_targets
from neuroray.platform.evaluate.loaded import load_window_model
from neuroray.platform.evaluate.window_protocol import judge_runs
from neuroray.platform.train.loop import fit
from neuroray.platform.train.recipe import LoopConfig
from neuroray.storage.participants import Participant
from neuroray.storage.profiles.profile import find_profile
from neuroray.storage.profiles.steps import prepare
from neuroray.storage.scan import Scan
from neuroray.storage.store import ScanStore

GRID = (17, 20, 18)
AFFINE = np.array([[10.0, 0, 0, -80], [0, 10.0, 0, -110], [0, 0, 10.0, -60], [0, 0, 0, 1]])
PICKED = ("fc_Auditory_DefaultMode", "fc_Auditory_Visual", "fc_CinguloOpercular_Visual", "fc_DefaultMode_Visual")


def _make_run(number: int) -> Scan:
    draw = np.random.default_rng(number)
    labels, names = label_networks(GRID, AFFINE)
    courses = np.c_[np.zeros(30), draw.standard_normal((30, len(names)))]
    courses[:, 3] += (number % 5 - 2) * courses[:, 13]
    voxels = 500 + 8 * courses[:, labels] + draw.normal(0, 6, (30, *GRID)) + 5 * np.arange(30)[:, None, None, None]
    voxels[:, labels == 0] = 0
    return Scan(voxels=voxels.astype(np.float32), affine=AFFINE, repetition_time_s=2.0)


def _write(store: ScanStore, number: int, **changes: Any) -> None:
    scan = dataclasses.replace(_make_run(number), **changes)
    person = Participant(subject=f"{number:03d}", sex="FM"[number % 2], extra={"handedness": "left"})
    store.write(
        prepare(scan, find_profile("fmri_minimal")),
        scan_id=f"run-{number:03d}",
        subject=person.subject,
        modality="bold",
        participant=person,
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ScanStore:
    store = ScanStore.create(tmp_path_factory.mktemp("networks") / "store")
    for number in range(20):
        _write(store, number)
    return store


@pytest.fixture(scope="module")
def labelled(store: ScanStore, tmp_path_factory: pytest.TempPathFactory) -> ScanStore:
    out = str(tmp_path_factory.mktemp("job"))
    answer = connectivity.run(connectivity.Args(store=store.uri, high_pass_hz=0.0, out=out))
    assert (answer["num_labelled"], answer["failed"], answer["exit_code"]) == (20, [], 0)
    again = connectivity.run(connectivity.Args(store=store.uri, high_pass_hz=0.0, out=out))
    assert (again["num_labelled"], again["catalogue_version"]) == (0, answer["catalogue_version"])
    return ScanStore(store.uri)


def test_an_edge_is_the_fisher_z_of_two_networks_mean_series(store: ScanStore) -> None:
    found = measure_edges(store, store.record("run-003"), CleaningConfig(high_pass_hz=0.0))
    labels, names = label_networks(GRID, AFFINE)
    assert names == NETWORKS
    assert tuple(found) == list_edges()
    voxels, brain = np.asarray(store.read("run-003").voxels, np.float64), store.read_mask("run-003")
    assert brain is not None
    one, other = (
        detrend(voxels[:, (labels == names.index(name) + 1) & brain].mean(axis=1)) for name in ("DefaultMode", "Visual")
    )
    assert found["fc_DefaultMode_Visual"] == pytest.approx(np.arctanh(pearsonr(one, other).statistic), abs=1e-6)


def test_labels_go_into_the_catalogue_beside_those_that_are_there(labelled: ScanStore) -> None:
    record = labelled.record("run-003")
    assert record.sex == "M"
    assert record.extra["handedness"] == "left"
    expected = measure_edges(labelled, record, CleaningConfig(high_pass_hz=0.0))
    assert {name: float(record.extra[name]) for name in list_edges()} == pytest.approx(expected, rel=1e-8)


def test_a_run_far_from_the_brain_is_listed_and_the_others_are_labelled(tmp_path: Path) -> None:
    store = ScanStore.create(tmp_path / "store")
    _write(store, 1)
    _write(store, 2, affine=AFFINE + np.array([[0, 0, 0, 900.0], [0] * 4, [0] * 4, [0] * 4]))
    answer = connectivity.run(connectivity.Args(store=store.uri, high_pass_hz=0.0, out=str(tmp_path / "out")))
    assert (answer["num_labelled"], answer["exit_code"]) == (1, 1)
    assert "do not lie in the image of run-002; given 0 of 13" in answer["failed"][0]["reason"]
    empty = ScanStore.create(tmp_path / "empty")
    with pytest.raises(connectivity.ConnectivityError, match="no runs; given 0 scans"):
        connectivity.run(connectivity.Args(store=empty.uri, out=str(tmp_path / "out")))
    volume = Scan(voxels=_make_run(1).voxels[0], affine=AFFINE)
    empty.write(volume, scan_id="v", subject="v", modality="T1w")
    with pytest.raises(BaselineError, match="v has no frames"):
        measure_edges(empty, empty.record("v"), CleaningConfig())


def test_a_person_is_judged_over_edges_and_against_the_mean() -> None:
    draw = np.random.default_rng(0)
    mean, own = draw.normal(size=40), draw.normal(size=40)
    truth = mean + 0.3 * own
    found = compare_edges(mean + 0.1 * own, truth, mean)
    assert found["r"] == pytest.approx(pearsonr(mean + 0.1 * own, truth).statistic)
    assert found["r_of_mean"] == pytest.approx(pearsonr(mean, truth).statistic)
    assert found["gain"] == pytest.approx(found["r"] - found["r_of_mean"])
    assert found["r_without_mean"] == pytest.approx(1)
    nothing = compare_edges(mean, truth, mean)
    assert (nothing["gain"], nothing["r_without_mean"]) == (0.0, 0.0)


def test_a_run_that_learned_edges_is_judged_over_all_of_them(labelled: ScanStore, tmp_path: Path) -> None:
    recipe = dataclasses.replace(
        tiny_cognition(),
        regress=PICKED,
        model=dataclasses.replace(MODEL, num_outputs=len(PICKED)),
        data=dataclasses.replace(
            tiny_cognition().data, target=PICKED[0], windows=WindowConfig(sampler="random", num_frames=6)
        ),
        split=SplitConfig(stratify_by=PICKED[0], num_bins=2, num_parts=5, num_folds=5),
        loop=LoopConfig(batch_size=4, num_epochs=1, select_by="val_loss"),
    )
    fit(recipe, store=labelled.uri, out=str(tmp_path / "run"))
    args = evaluate_job.Args(run=str(tmp_path / "run"), out=str(tmp_path / "out"), num_resamples=30)
    answer = evaluate_job.run(args)
    found = json.loads((tmp_path / "out/connectome.json").read_text())
    model = load_window_model(tmp_path / "run/model")
    split = json.loads((tmp_path / "run/splits.json").read_text())
    by_hand = []
    for scan_id, answers in judge_runs(model, labelled, split["test"]):
        extra = labelled.record(scan_id).extra
        truth = [float(extra[name]) for name in PICKED]
        by_hand.append(pearsonr([one.value for one in answers], truth).statistic)
    assert found["metrics"]["r"]["value"] == pytest.approx(np.mean(by_hand))
    assert found["metrics"]["r"]["low"] <= found["metrics"]["r"]["value"] <= found["metrics"]["r"]["high"]
    assert (found["num_edges"], found["num_scans"]) == (4, len(split["test"]))
    assert "r_without_mean" in answer["text"]
    assert "run-0" not in json.dumps(found)


def test_the_recipe_asks_for_all_pairs_of_networks() -> None:
    recipe: Any = load_recipe("brainmt:fc")
    assert recipe.regress == list_edges()
    assert recipe.model.num_outputs == len(recipe.regress) == 78
    assert list_edge_targets({"targets": [{"name": name} for name in recipe.regress]}) == recipe.regress
    assert list_edge_targets({"targets": [{"name": "sex"}, {"name": PICKED[0]}]}) == ()
