"""`ray job submit --working-dir .` against a real head that asks for a token."""

from __future__ import annotations

import urllib.error
import urllib.request
from typing import Any

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_job_runs_from_the_working_dir(head: Any) -> None:
    job = head.submit("python", "-m", "neuroray", "--version")
    assert job.returncode == 0, job.stdout + job.stderr
    assert "neuroray 0." in job.stdout


def test_without_the_token_nothing_is_told(head: Any) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{head.address}/api/jobs/")
    assert refused.value.code == 401
