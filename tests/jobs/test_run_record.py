"""run.json: written whole, for what went well and for what did not."""

import json
from pathlib import Path

import pytest

from neuroray.jobs import doctor
from neuroray.jobs.run_record import record_run


def test_a_finished_job_leaves_what_ran_with_what_and_when(tmp_path: Path):
    with record_run(tmp_path / "out", job="train", args={"lr": 0.1}, seed=3) as record:
        record.add(catalogue_version=7)
    facts = json.loads((tmp_path / "out/run.json").read_text())
    assert (facts["job"], facts["args"], facts["seed"], facts["status"]) == ("train", {"lr": 0.1}, 3, "done")
    assert facts["catalogue_version"] == 7
    assert {"python", "neuroray", "ray", "torch"} <= set(facts["versions"])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["run.json"]


def test_a_failed_job_leaves_its_error_and_the_error_goes_on(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), record_run(tmp_path, job="train", args={}):
        raise ZeroDivisionError("by nought")
    facts = json.loads((tmp_path / "run.json").read_text())
    assert facts["status"] == "failed"
    assert facts["error"] == "ZeroDivisionError: by nought"


def test_a_job_that_is_killed_has_left_word_that_it_ran(tmp_path: Path):
    with record_run(tmp_path, job="train", args={"lr": 0.1}):
        facts = json.loads((tmp_path / "run.json").read_text())
    assert (facts["status"], facts["args"]) == ("running", {"lr": 0.1})


def test_what_a_job_only_looked_at_is_kept_where_that_is_asked_for(tmp_path: Path):
    answer = doctor.run(doctor.Args())
    assert not list(tmp_path.iterdir())
    kept = doctor.run(doctor.Args(out=str(tmp_path / "out")))
    facts = json.loads((tmp_path / "out/run.json").read_text())
    assert tuple(facts["findings"]) == kept.to_json()["findings"]
    assert kept.versions == answer.versions
    assert (facts["job"], facts["status"]) == ("doctor", "done")
