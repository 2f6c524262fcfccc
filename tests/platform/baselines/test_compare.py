import dataclasses
import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from neuroray.platform.baselines.compare import CompareConfig, choose_baselines, compare
from neuroray.platform.baselines.errors import BaselineError
from neuroray.platform.baselines.model_answers import find_predictions, read_model_answers
from neuroray.platform.baselines.parcels import ParcelConfig
from neuroray.platform.baselines.question import ask, ask_as_run, locate_run
from neuroray.platform.baselines.table import describe_comparison, render_markdown, write_comparison
from neuroray.platform.data.splits import SIDES, SplitConfig

SPLIT = SplitConfig(num_parts=6, test_parts=2, num_folds=3)
CONFIG = CompareConfig(parcels=ParcelConfig(num_regions=4), num_resamples=300)


def _metric(comparison, predictor, name):
    (answers,) = [answers for answers in comparison.answers if answers.name == predictor]
    return answers.metrics[name]


@pytest.fixture(scope="module")
def sexes(planted):
    return compare(ask(planted, "sex", SPLIT), planted, CONFIG, names=["mean", "anatomy", "logistic"])


@pytest.fixture(scope="module")
def minds(planted):
    return compare(ask(planted, "cognition", SPLIT), planted, CONFIG, names=["mean", "ridge"])


def test_everybody_is_judged_once_and_never_with_their_family(planted):
    question = ask(planted, "sex", SPLIT)
    judged = [scan_id for _, split in question.folds for scan_id in split.test]
    assert sorted(judged) == sorted(record.scan_id for record in planted.records())
    for _, split in question.folds:
        groups = [{question.groups[scan_id] for scan_id in split.side(side)} for side in SIDES]
        assert not groups[0] & groups[1]
        assert not groups[0] & groups[2]


def test_a_column_of_many_numbers_is_a_measure_and_one_of_words_is_not(planted):
    assert ask(planted, "cognition", SPLIT).kind == "regression"
    question = ask(planted, "sex", SPLIT)
    assert (question.kind, question.classes) == ("classification", ("F", "M"))


def test_planted_sex_is_found_in_connectivity_and_not_in_anatomy(sexes):
    assert _metric(sexes, "logistic", "auc").low > 0.85
    assert _metric(sexes, "anatomy", "auc").against(0.5) == "includes"


def test_planted_cognition_is_found(minds):
    assert _metric(minds, "ridge", "pearson_r").low > 0.5
    assert _metric(minds, "ridge", "r2").low > 0.2


def test_the_mean_has_no_correlation_with_anything_even_over_folds(minds):
    assert np.isnan(_metric(minds, "mean", "pearson_r").value)
    assert -0.2 < _metric(minds, "mean", "r2").value <= 0


def test_the_table_holds_what_scikit_learn_finds_in_the_predictions(sexes):
    (answers,) = [answers for answers in sexes.answers if answers.name == "logistic"]
    expected = roc_auc_score(sexes.truths, answers.predictions[:, 1])
    assert _metric(sexes, "logistic", "auc").value == pytest.approx(expected)


@pytest.mark.parametrize(
    ("target", "name", "metric", "chance"), [("sex", "logistic", "auc", 0.5), ("cognition", "ridge", "pearson_r", 0.0)]
)
def test_with_shuffled_labels_there_is_nothing_to_find(planted, target, name, metric, chance):
    found = []
    for seed in range(4):
        question = ask(planted, target, dataclasses.replace(SPLIT, shuffle_labels_seed=seed))
        assert question.is_shuffled
        found.append(_metric(compare(question, planted, CONFIG, names=[name]), name, metric).value)
    # Over 60 people a correlation strays by 0.13 and an AUC by 0.075; four shuffles of the same people halve that.
    # Constant answers, where the strongest penalty wins, have no correlation: they are at chance as well.
    assert abs(np.nan_to_num(found, nan=chance).mean() - chance) < 3 * (0.065 if chance == 0 else 0.04)


def test_shuffled_values_are_the_same_values(planted):
    plain, shuffled = (ask(planted, "cognition", dataclasses.replace(SPLIT, shuffle_labels_seed=s)) for s in (None, 1))
    assert sorted(plain.values.values()) == sorted(shuffled.values.values())
    moved = [plain.values[scan_id] != shuffled.values[scan_id] for scan_id in plain.values]
    assert np.mean(moved) > 0.8


def _model_of(comparison, name):
    (answers,) = [answers for answers in comparison.answers if answers.name == name]
    return dict(zip(comparison.judged, answers.predictions.tolist(), strict=True))


def test_a_model_that_says_what_a_baseline_says_does_not_differ_from_it(planted, sexes):
    model = _model_of(sexes, "logistic")
    both = compare(ask(planted, "sex", SPLIT), planted, CONFIG, names=["logistic", "mean"], model=model)
    found = {(each.baseline, each.metric): each for each in both.differences}
    same = found["logistic", "auc"]
    assert (same.found.value, same.found.low, same.found.high, same.p_value) == (0, 0, 0, 1)
    better = found["mean", "auc"]
    assert better.found.low > 0.3
    # No resample of 300 has the mean in front.
    assert better.p_value == pytest.approx(2 / 300)
    assert better.found.value == pytest.approx(_metric(both, "model", "auc").value - _metric(both, "mean", "auc").value)
    assert "Model minus baseline" in render_markdown(both)


def test_a_model_without_an_error_has_an_exact_interval_and_not_none(planted):
    question = ask(planted, "sex", SPLIT)
    truth = {
        (fold, scan_id): (1 - question.values[scan_id], question.values[scan_id])
        for fold, split in question.folds
        for scan_id in split.test
    }
    auc = _metric(compare(question, planted, CONFIG, names=["mean"], model=truth), "model", "auc")
    assert (auc.value, auc.high, auc.kind) == (1.0, 1.0, "exact")
    # Clopper and Pearson for 30 disjoint pairs, all in the right order: 0.025 ** (1 / 30).
    assert auc.low == pytest.approx(0.025 ** (1 / 30))


def test_a_model_judged_on_others_is_refused(planted, sexes):
    model = _model_of(sexes, "logistic")
    model.pop(next(iter(model)))
    with pytest.raises(BaselineError, match=r"other scans.*1 fewer"):
        compare(ask(planted, "sex", SPLIT), planted, CONFIG, names=["mean"], model=model)


def test_what_cannot_be_asked_is_refused(planted):
    with pytest.raises(BaselineError, match="nothing to predict in modality"):
        ask(planted, "modality", SPLIT)
    with pytest.raises(BaselineError, match=r"no runs.*T1w"):
        ask(planted, "sex", SPLIT, modality="T1w")
    question = ask(planted, "sex", SPLIT)
    with pytest.raises(BaselineError, match=r"no baseline ridge for classification.*logistic"):
        choose_baselines(question, ["ridge"])
    assert set(choose_baselines(question, None)[0]) >= {"mean", "anatomy", "logistic", "brainnetcnn"}


def test_what_may_be_handed_on_names_nobody(sexes, tmp_path):
    paths = write_comparison(sexes, tmp_path, facts={"store": "somewhere"})
    people = [scan_id for _, scan_id in sexes.judged]
    for name in ("baselines.json", "baselines.csv", "baselines.md"):
        text = paths[name].read_text()
        assert not any(scan_id in text or scan_id.split("_")[0] in text for scan_id in people)
    assert all(scan_id in paths["baselines_predictions.csv"].read_text() for scan_id in people)
    described = json.loads(paths["baselines.json"].read_text())
    assert described["store"] == "somewhere"
    assert described["num_scans"] == 60
    assert described["num_groups"] == 55
    logistic = next(row for row in described["answers"] if row["name"] == "logistic")
    assert logistic["metrics"]["auc"]["value"] == _metric(sexes, "logistic", "auc").value


def test_what_is_undefined_is_null_and_said_so(minds):
    described = describe_comparison(minds)
    mean = next(row for row in described["answers"] if row["name"] == "mean")
    assert mean["metrics"]["pearson_r"]["value"] is None
    assert "undefined" in render_markdown(minds)


def _write_run(folder, store, target, *, num_folds):
    """A run as `neuroray train` leaves it, without its model."""
    config = dataclasses.replace(SPLIT, num_folds=num_folds)
    question = ask(store, target, config)
    for index, split in question.folds:
        fold = folder / f"fold-{index}" if num_folds > 1 else folder
        fold.mkdir(parents=True)
        split.write_json(fold / "splits.json")
        data = {"target": target, "store": store.uri, "modality": "bold", "version": store.version}
        (fold / "config.json").write_text(json.dumps({"name": "x", "data": data}))
    return question


@pytest.mark.parametrize("num_folds", [1, 3])
@pytest.mark.parametrize("target", ["sex", "cognition"])
def test_a_runs_own_splits_are_taken(planted, tmp_path, target, num_folds):
    asked = _write_run(tmp_path / "run", planted, target, num_folds=num_folds)
    assert ask_as_run(tmp_path / "run", planted) == dataclasses.replace(
        asked, groups=ask_as_run(tmp_path / "run", planted).groups
    )
    assert locate_run(tmp_path / "run") == (planted.uri, planted.version)


def test_another_target_of_a_run_is_asked_on_the_runs_own_sides(planted, tmp_path):
    asked = _write_run(tmp_path / "run", planted, "sex", num_folds=3)
    besides = ask_as_run(tmp_path / "run", planted, target="cognition")
    assert (besides.target, besides.kind, besides.classes) == ("cognition", "regression", ())
    assert [split.test for _, split in besides.folds] == [split.test for _, split in asked.folds]
    assert besides.values == {record.scan_id: record.cognition for record in planted.records()}
    back = ask_as_run(_run_of(planted, tmp_path / "other", "cognition"), planted, target="sex")
    assert back.classes == ("F", "M")
    assert back.values == ask(planted, "sex", SPLIT).values


def test_another_target_of_shuffled_labels_is_refused(planted, tmp_path):
    question = ask(planted, "sex", dataclasses.replace(SPLIT, shuffle_labels_seed=1))
    folder = tmp_path / "run"
    folder.mkdir()
    question.folds[0][1].write_json(folder / "splits.json")
    (folder / "config.json").write_text(json.dumps({"name": "x", "data": {"target": "sex", "store": planted.uri}}))
    with pytest.raises(BaselineError, match=r"shuffled.*--target cognition"):
        ask_as_run(folder, planted, target="cognition")


def _run_of(store, folder, target):
    _write_run(folder, store, target, num_folds=1)
    return folder


@pytest.mark.parametrize(
    ("target", "header", "row"), [("cognition", "predicted", "1"), ("sex", "probability_F,probability_M", "1,0")]
)
def test_predictions_of_another_target_are_refused(planted, tmp_path, target, header, row):
    question = ask(planted, target, SPLIT)
    scan_id = next(iter(question.values))
    truth = "value" if target == "cognition" else "label"
    path = tmp_path / "predictions.csv"
    path.write_text(f"fold,scan_id,{truth},{header}\n0,{scan_id},-1,{row}\n")
    with pytest.raises(BaselineError, match=rf"other truths than those of {target}.*neuroray evaluate"):
        read_model_answers(path, question)


def test_where_there_is_no_run_it_is_said(planted, tmp_path):
    with pytest.raises(BaselineError, match=r"no run in.*splits.json"):
        ask_as_run(tmp_path, planted)


def test_a_models_answers_are_read_by_class_and_fold(planted, tmp_path):
    question = ask(planted, "sex", SPLIT)
    folder = tmp_path / "evaluate"
    folder.mkdir()
    path = folder / "predictions.csv"
    path.write_text("fold,scan_id,label,probability_M,probability_F\n0,a,F,0.25,0.75\n2,b,M,1,0\n")
    assert find_predictions(tmp_path, None) == path
    assert read_model_answers(path, question) == {(0, "a"): (0.75, 0.25), (2, "b"): (0.0, 1.0)}
    measure = ask(planted, "cognition", SPLIT)
    with pytest.raises(BaselineError, match=r"does not answer for cognition.*predicted"):
        read_model_answers(path, measure)
    path.write_text("fold,scan_id,value,predicted\n0,a,99,101.5\n")
    assert read_model_answers(path, measure) == {(0, "a"): (101.5,)}
    assert find_predictions(tmp_path / "nowhere", None) is None
    with pytest.raises(BaselineError, match="no predictions"):
        find_predictions(None, str(tmp_path / "no.csv"))
