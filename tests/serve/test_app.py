"""A real Ray Serve on loopback: what a client gets over the wire."""

from __future__ import annotations

import base64
import concurrent.futures
import dataclasses
import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import nibabel
import numpy as np
import pytest
from ray import serve

from neuroray.jobs.serve import Server, start_server
from neuroray.serve.config import ServeConfig, ServeError
from neuroray.serve.predictor import load_predictor
from neuroray.storage.nifti import map_to_source, read_scan, write_scan

pytestmark = [pytest.mark.ray, pytest.mark.slow]

MAX_UPLOAD_BYTES = 6 * 2**20


@pytest.fixture(scope="module")
def server(ray_session: Any, model_folder: Path) -> Iterator[Server]:
    config = ServeConfig(
        models={"tiny": str(model_folder)},
        max_upload_bytes=MAX_UPLOAD_BYTES,
        max_queued_requests=4,
        num_ingress_cpus=0.5,
        num_cpus=0.5,
    )
    with start_server(config) as started:
        yield started


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    # Not by a proxy that the environment may name.
    with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as opened:
        yield opened


def post(client: httpx.Client, data: bytes, filename: str = "scan.nii.gz") -> httpx.Response:
    return client.post("/v1/models/tiny/predict", files={"file": (filename, data)})


def test_a_real_t1_is_answered_as_the_predictor_answers(
    client: httpx.Client, model_folder: Path, real_t1: Path
) -> None:
    response = post(client, real_t1.read_bytes())
    assert response.status_code == 200, response.text
    expected = load_predictor(str(model_folder)).predict(read_scan(real_t1))
    # Another process with another number of threads may sum in another order: float32 logits agree to about 1e-6.
    assert response.json()["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)
    assert response.json()["label"] == expected.label
    assert [row["slice_index"] for row in response.json()["attention"]] == [
        row.slice_index for row in expected.attention
    ]
    assert response.json()["model"]["version"] == expected.model.version


def test_a_volume_above_the_message_cap_arrives_whole(
    client: httpx.Client, model_folder: Path, real_t1: Path, tmp_path: Path
) -> None:
    # 25 MB decoded: Serve's messages between deployments end at 4 MiB when it sends by value.
    scan = read_scan(real_t1)
    large = dataclasses.replace(
        scan, voxels=scan.voxels.repeat(2, axis=0).repeat(2, axis=1).repeat(2, axis=2), source=None, encoding=None
    )
    write_scan(large, tmp_path / "large.nii.gz")
    response = post(client, (tmp_path / "large.nii.gz").read_bytes())
    assert response.status_code == 200, response.text
    expected = load_predictor(str(model_folder)).predict(read_scan(tmp_path / "large.nii.gz"))
    assert response.json()["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)


def test_a_map_comes_through_from_the_replica(client: httpx.Client, model_folder: Path, real_t1: Path) -> None:
    files, data = {"file": ("scan.nii.gz", real_t1.read_bytes())}, {"explain": "true", "sex": "F"}
    response = client.post("/v1/models/tiny/predict", files=files, data=data)
    assert response.status_code == 200, response.text
    expected = load_predictor(str(model_folder)).explain(read_scan(real_t1))
    assert response.json()["map"]["facts"] == expected.facts
    sent = nibabel.nifti1.Nifti1Image.from_bytes(
        gzip.decompress(base64.b64decode(response.json()["map"]["nifti_base64"]))
    )
    # Between processes float32 sums differ in the last places.
    np.testing.assert_allclose(
        sent.get_fdata(), map_to_source(expected.values, expected.grid), rtol=1e-4, atol=1e-6 * expected.values.max()
    )
    assert response.json()["warnings"] == ["the sex of the person: not used by this model"]


def test_a_web_page_gets_the_scan_errors_text(client: httpx.Client, hard_folder: Path) -> None:
    response = post(client, (hard_folder / "html_error_page.nii.gz").read_bytes())
    assert response.status_code == 422
    assert response.json()["error"] == "ScanError"
    assert response.json()["fault"].startswith("upload.nii.gz")


def test_a_refusal_by_the_models_replica_reaches_the_client(client: httpx.Client, real_t1: Path) -> None:
    (bold,) = real_t1.parents[1].glob("func/*_bold.nii.gz")
    response = post(client, bold.read_bytes())
    assert response.status_code == 422
    assert response.json()["fault"] == "this model answers for T1w volumes, not for time series"


@pytest.mark.parametrize("size_bytes", [MAX_UPLOAD_BYTES + 1, 5 * MAX_UPLOAD_BYTES])
def test_an_upload_that_is_too_large_is_413(client: httpx.Client, size_bytes: int) -> None:
    response = post(client, bytes(size_bytes))
    assert response.status_code == 413
    assert response.json()["error"] == "UploadTooLargeError"


def test_an_unknown_model_is_404(client: httpx.Client) -> None:
    response = client.post("/v1/models/oracle/predict", files={"file": ("scan.nii", b"")})
    assert response.status_code == 404
    assert response.json()["expected"] == "one of tiny"


def test_health_page_and_models_answer(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {"status": "ok", "models": ["tiny"]}
    assert client.get("/docs").status_code == 200
    assert [model["name"] for model in client.get("/v1/models").json()["models"]] == ["tiny"]


def test_requests_at_once_are_answered_or_turned_away(client: httpx.Client, real_t1: Path) -> None:
    data = real_t1.read_bytes()
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        responses = list(pool.map(lambda _: post(client, data), range(12)))
    answered = [response for response in responses if response.status_code == 200]
    refused = [response for response in responses if response.status_code == 503]
    assert len(answered) + len(refused) == 12
    assert answered
    assert len({response.text for response in answered}) == 1
    assert all(response.json()["error"] == "OverloadedError" for response in refused)
    assert all(response.headers["retry-after"] for response in refused)


def test_it_listens_on_loopback_only(server: Server) -> None:
    port = int(server.url.rsplit(":", 1)[1])
    listening = [
        line.split()[1].split(":")[0]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if line.split()[3] == "0A" and int(line.split()[1].split(":")[1], 16) == port
    ]
    assert listening == ["0100007F"]  # 127.0.0.1, little endian


def test_each_model_is_a_deployment_of_its_own(server: Server) -> None:
    assert set(serve.status().applications["neuroray"].deployments) == {"ingress", "model-tiny"}


def test_a_second_server_is_refused(server: Server, model_folder: Path) -> None:
    with (
        pytest.raises(ServeError, match="Serve runs on this Ray cluster already"),
        start_server(ServeConfig(models={"other": str(model_folder)})),
    ):
        pass
    assert httpx.get(f"{server.url}/healthz", trust_env=False).status_code == 200
