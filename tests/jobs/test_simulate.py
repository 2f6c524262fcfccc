"""The simulate job: its record, its answer, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from neuroray.jobs import cli
from neuroray.jobs.simulate import Args, run
from neuroray.storage.simulate import SimulationError

SMALL = {"num_subjects": 1, "spacing_mm": 12.0, "longitudinal_fraction": 0.0, "workers": 1}


def test_the_record_says_what_was_simulated_and_a_second_run_makes_nothing(tmp_path: Path) -> None:
    first = run(Args(out=str(tmp_path), seed=7, **SMALL))
    record = json.loads((tmp_path / "run.json").read_text())
    assert (record["status"], record["seed"], record["config"]["spacing_mm"]) == ("done", 7, 12.0)
    assert (first["num_scans"], first["num_simulated"]) == (1, 1)
    second = run(Args(out=str(tmp_path), seed=7, **SMALL))
    assert (second["num_scans"], second["num_simulated"]) == (1, 0)


def test_a_bucket_is_no_place_to_simulate_into(tmp_path: Path) -> None:
    with pytest.raises(SimulationError, match="local folder"):
        run(Args(out="s3://bucket/cohort", **SMALL))


def test_the_command_line_answers_as_json_and_refuses_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--num-subjects", "1", "--spacing-mm", "12", "--workers", "1"]
    with pytest.raises(SystemExit) as left:
        cli.main(["simulate", str(tmp_path / "out"), *small, "--json"])
    assert left.value.code == 0
    assert json.loads(capsys.readouterr().out)["num_subjects"] == 1
    with pytest.raises(SystemExit) as left:
        cli.main(["simulate", str(tmp_path / "out"), *small, "--seed", "1"])
    assert left.value.code == 1
    told = capsys.readouterr().err.strip()
    assert "seed" in told
    assert "\n" not in told
