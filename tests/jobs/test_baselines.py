import csv
import json

import pytest
from contracts.planted_runs import make_runs

from neuroray.jobs.cli import main


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_runs(tmp_path_factory.mktemp("runs") / "store", num_subjects=40)


def _run(arguments):
    with pytest.raises(SystemExit) as leaving:
        main([*arguments, "--debug"])
    return leaving.value.code


SMALL = ["--parcels.num-regions", "4", "--num-resamples", "100", "--split.num-parts", "4", "--split.num-folds", "2"]


def test_a_store_and_a_target_give_a_table(store, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["baselines", store.uri, "--target", "sex", "--baselines", "mean", "logistic", "--out", str(out)]
    assert _run([*arguments, *SMALL, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["kind"] == "classification"
    assert answer["metrics"]["logistic"]["auc"]["value"] > 0.8
    written = json.loads((out / "baselines.json").read_text())
    assert written["catalogue_version"] == store.version
    assert len(written["folds"]) == 2
    with (out / "baselines.csv").open() as file:
        rows = {(row["predictor"], row["metric"]): float(row["value"]) for row in csv.DictReader(file)}
    assert rows["logistic", "auc"] == pytest.approx(answer["metrics"]["logistic"]["auc"]["value"])
    assert json.loads((out / "run.json").read_text())["status"] == "done"


def test_a_run_gives_its_splits_and_its_models_answers(store, tmp_path, capsys):
    from neuroray.platform.baselines.question import ask
    from neuroray.platform.data.splits import SplitConfig

    question = ask(store, "cognition", SplitConfig(num_parts=4, num_folds=2), all_folds=False)
    ((_, split),) = question.folds
    run = tmp_path / "run"
    (run / "evaluate").mkdir(parents=True)
    split.write_json(run / "splits.json")
    data = {"target": "cognition", "modality": "bold", "store": store.uri, "version": store.version}
    (run / "config.json").write_text(json.dumps({"data": data}))
    rows = "".join(f"0,{scan_id},{question.values[scan_id]},{question.values[scan_id]}\n" for scan_id in split.test)
    (run / "evaluate" / "predictions.csv").write_text(f"fold,scan_id,value,predicted\n{rows}")
    assert _run(["baselines", "--run", str(run), "--baselines", "ridge", "mean", *SMALL[:4], "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    # The made-up model knows the truth.
    assert answer["metrics"]["model"]["mae"]["value"] == 0
    table = (run / "baselines" / "baselines.md").read_text()
    assert "**Model (run)**" in table
    assert "Model minus baseline" in table


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["STORE"], "a run or a target"),
        (["STORE", "--target", "sex"], "--out FOLDER"),
        (["--target", "sex", "--out", "OUT"], "no store"),
        (["STORE", "--target", "sex", "--out", "OUT", "--baselines", "ridge"], "no baseline ridge for classification"),
    ],
)
def test_wrong_use_is_told_in_one_line(store, tmp_path, capsys, arguments, complaint):
    words = {"STORE": store.uri, "OUT": str(tmp_path / "out")}
    with pytest.raises(SystemExit) as leaving:
        main(["baselines", *(words.get(word, word) for word in arguments)])
    assert leaving.value.code != 0
    assert complaint in capsys.readouterr().err
