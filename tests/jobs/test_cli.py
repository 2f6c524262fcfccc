"""The command line: what it prints, and the code it leaves with."""

import dataclasses
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from neuroray.jobs import cli, logs


def leave_code(argv: list[str]) -> int:
    with pytest.raises(SystemExit) as leaving:
        cli.main(argv)
    code = leaving.value.code
    return 0 if code is None else int(code)


def test_an_unknown_job_is_wrong_use_and_the_likely_one_is_named(capsys):
    assert leave_code(["ingets", "a", "b"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "'ingets'" in said
    assert "neuroray ingest" in said


def test_wrong_arguments_are_told_in_one_line_with_code_2(capsys):
    assert leave_code(["inspect"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "A store (folder or s3://bucket/prefix) or a scan file" in said
    assert "neuroray inspect --help" in said


def test_a_failure_is_told_in_one_line_with_code_1(capsys, tmp_path: Path):
    assert leave_code(["inspect", str(tmp_path / "nowhere")]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "Traceback" not in said


def test_debug_shows_where_it_failed(capsys, tmp_path: Path):
    assert leave_code(["inspect", str(tmp_path / "nowhere"), "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_no_job_shows_the_jobs_and_is_wrong_use(capsys):
    assert leave_code([]) == 2
    shown = capsys.readouterr().out
    assert all(job in shown for job in cli.JOBS)


@pytest.mark.parametrize("job", sorted(cli.JOBS))
def test_every_job_has_help(job: str, capsys):
    assert leave_code([job, "--help"]) == 0
    assert f"neuroray {job}" in capsys.readouterr().out


@pytest.mark.parametrize("job", sorted(cli.JOBS))
def test_every_job_takes_a_place_for_its_record(job: str):
    names = {
        field.name
        for field in dataclasses.fields(importlib.import_module(f"neuroray.jobs.{job.replace('-', '_')}").Args)
    }
    assert "out" in names
    assert "json" in names or job == "serve"  # which answers over HTTP


def test_a_log_format_that_is_not_known_is_wrong_use(capsys):
    assert leave_code(["doctor", "--log", "xml"]) == 2
    assert "'xml'" in capsys.readouterr().err


def test_the_package_runs_as_a_module_and_answers_json():
    done = subprocess.run(
        [sys.executable, "-m", "neuroray", "doctor", "--json"], capture_output=True, text=True, timeout=120, check=False
    )
    answer = json.loads(done.stdout)
    assert done.returncode == int(any(finding["state"] == "missing" for finding in answer["findings"]))
    assert answer["versions"]["neuroray"]


def test_json_logs_are_one_object_a_line_and_draw_no_bar(capsys):
    import logging

    logs.set_up_logging(as_json=True)
    logging.getLogger("neuroray.here").info("stored %d", 3, extra={"facts": {"num_scans": 3}})
    assert list(logs.progress([1, 2], label="work")) == [1, 2]
    (line,) = capsys.readouterr().err.splitlines()
    said = json.loads(line)
    assert (said["message"], said["num_scans"], said["level"]) == ("stored 3", 3, "info")
    logs.set_up_logging(as_json=False)
