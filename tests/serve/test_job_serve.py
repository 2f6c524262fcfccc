"""`neuroray serve`: what it refuses, and one whole life of it as a process."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from neuroray.jobs.serve import name_models, start_server
from neuroray.serve.config import TOKEN_VARIABLE, ServeConfig, ServeError, digest_token

TOKEN = "a token of enough letters"


def test_a_model_is_called_by_its_architecture(model_folder: Path) -> None:
    assert name_models([str(model_folder)]) == {"dinoatten3d": str(model_folder)}


def test_a_model_can_be_given_a_name(model_folder: Path) -> None:
    assert name_models([f"one={model_folder}", f"two={model_folder}"]) == {
        "one": str(model_folder),
        "two": str(model_folder),
    }


def test_an_equals_sign_in_a_path_is_no_name(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "lr=1").symlink_to(model_folder)
    assert list(name_models([str(tmp_path / "lr=1")])) == ["dinoatten3d"]


def test_a_relative_path_is_made_whole(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model_folder.parent)
    assert name_models(["model", "b=model"]) == {"dinoatten3d": str(model_folder), "b": str(model_folder)}


def test_two_models_of_one_name_are_refused(model_folder: Path) -> None:
    with pytest.raises(ServeError, match="dinoatten3d-a=RUN"):
        name_models([str(model_folder), str(model_folder)])


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "server.example"])
def test_beyond_this_machine_a_token_is_needed(model_folder: Path, host: str) -> None:
    with (
        pytest.raises(ServeError, match="no token"),
        start_server(ServeConfig(models={"tiny": str(model_folder)}), host=host),
    ):
        pass


def test_a_proxy_that_listens_everywhere_needs_a_token(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    with (
        pytest.raises(ServeError, match="RAY_SERVE_ENABLE_HA_PROXY=1 and no token"),
        start_server(ServeConfig(models={"tiny": str(model_folder)})),
    ):
        pass


def test_a_port_that_is_taken_is_told(model_folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(ServeError, match=f"cannot listen on 127.0.0.1 port {port}"),
            start_server(ServeConfig(models={"tiny": str(model_folder)}), port=port),
        ):
            pass


@pytest.mark.ray
@pytest.mark.slow
def test_it_serves_until_it_is_told_to_stop(model_folder: Path, real_t1: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    command = [sys.executable, "-m", "neuroray", "serve", "--models", f"tiny={model_folder}", "--port", "0"]
    with subprocess.Popen(
        [*command, "--out", str(tmp_path / "out")],
        env=environment | {"HOME": str(tmp_path), TOKEN_VARIABLE: TOKEN},
        stdout=subprocess.PIPE,
        stderr=(tmp_path / "stderr").open("w"),
        text=True,
        start_new_session=True,
    ) as process:
        try:
            url = _read_url(process, tmp_path / "stderr")
            open_, guarded = _ask(url, real_t1, {}), _ask(url, real_t1, {"authorization": f"Bearer {TOKEN}"})
            process.send_signal(signal.SIGTERM)
            code = process.wait(60)
        finally:
            _end(process)
    assert open_.status_code == 401
    assert guarded.status_code == 200, guarded.text
    assert code == 0
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert record["status"] == "done"
    assert record["config"]["token_sha256"] == digest_token(TOKEN)
    assert not any(TOKEN in file.read_text(errors="replace") for file in tmp_path.rglob("*") if file.is_file())
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/healthz", trust_env=False)


def _read_url(process: subprocess.Popen[str], errors: Path) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        found = re.search(r"health +(http://127\.0\.0\.1:\d+)/healthz", line)
        if found:
            return found[1]
    pytest.fail(f"it did not come up:\n{errors.read_text()}")


def _ask(url: str, scan: Path, headers: dict[str, str]) -> Any:
    files = {"file": ("scan.nii.gz", scan.read_bytes())}
    return httpx.post(f"{url}/v1/models/tiny/predict", files=files, headers=headers, trust_env=False, timeout=60)


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
