"""The HTTP interface without Ray: statuses, limits, the token, and what is never told."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import gzip
import json
import logging
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from fastapi.testclient import TestClient

from neuroray.jobs import predict
from neuroray.platform.explain.maps import ExplainError
from neuroray.platform.models.errors import ModelError
from neuroray.serve.config import ServeConfig, digest_token
from neuroray.serve.packed_map import PackedReply, pack_reply
from neuroray.serve.predictor import Predictor, load_predictor
from neuroray.serve.question import Question, ask_predictor
from neuroray.serve.routes import LateError, OverloadedError, UnavailableError, build_api
from neuroray.storage.nifti import read_scan
from neuroray.storage.scan import Scan, ScanError

URL = "/v1/models/tiny/predict"
TOKEN = "a token of enough letters"


@pytest.fixture(scope="module")
def predictor(model_folder: Path) -> Predictor:
    return load_predictor(str(model_folder))


def make_client(predictor: Predictor, ask: Any = None, **changes: Any) -> TestClient:
    config = ServeConfig(models={"tiny": "anywhere"}, **changes)

    async def answer(name: str, scan: Scan, question: Question) -> PackedReply:
        return pack_reply(ask_predictor(predictor, scan, question), max_map_bytes=config.max_map_bytes)

    api = build_api(config, cards={"tiny": predictor.card}, ask=ask or answer)
    return TestClient(api, raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client(predictor: Predictor) -> Iterator[TestClient]:
    with make_client(predictor) as started:
        yield started


def post(client: TestClient, scan: bytes, filename: str = "scan.nii.gz", **options: Any) -> Any:
    return client.post(URL, files={"file": (filename, scan)}, **options)


def test_a_real_scan_is_answered_as_the_predictor_answers(
    client: TestClient, predictor: Predictor, real_t1: Path
) -> None:
    response = post(client, real_t1.read_bytes())
    assert response.status_code == 200
    answer, expected = response.json(), predictor.predict(read_scan(real_t1))
    assert answer["probabilities"] == expected.probabilities
    assert answer["label"] == expected.label
    assert answer["attention"] == [dataclasses.asdict(row) for row in expected.attention]
    assert answer["model"]["name"] == "tiny"
    assert answer["model"]["version"] == predictor.card.version


def test_the_map_is_the_one_that_predict_writes(
    client: TestClient, model_folder: Path, real_t1: Path, tmp_path: Path
) -> None:
    answer = post(client, real_t1.read_bytes(), data={"explain": "true"}).json()
    arguments = predict.Args(model=str(model_folder), scans=(str(real_t1),), out=str(tmp_path), explain=True)
    (expected,) = predict.run(arguments)["predictions"]
    sent = answer["map"]
    (tmp_path / "sent.nii.gz").write_bytes(base64.b64decode(sent["nifti_base64"]))
    assert (tmp_path / "sent.nii.gz").stat().st_size == sent["nifti_size_bytes"]
    ours, theirs = (nibabel.nifti1.load(tmp_path / name) for name in ("sent.nii.gz", "maps/1.nii.gz"))
    np.testing.assert_array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))
    np.testing.assert_array_equal(ours.affine, nibabel.nifti1.load(real_t1).affine)
    assert ours.shape == nibabel.nifti1.load(real_t1).shape
    assert base64.b64decode(sent["png_base64"]) == (tmp_path / "maps/1.png").read_bytes()
    assert sent["facts"] == {name: value for name, value in expected["explanation"].items() if name != "files"}
    assert answer["probabilities"] == expected["probabilities"]


@pytest.mark.parametrize("data", [{}, {"explain": "false"}, {"explain": ""}])
def test_without_the_option_there_is_no_map(client: TestClient, real_t1: Path, data: dict[str, str]) -> None:
    assert post(client, real_t1.read_bytes(), data=data).json()["map"] is None


def test_a_map_beyond_the_limit_stays_away_and_says_so(predictor: Predictor, real_t1: Path) -> None:
    answer = post(make_client(predictor, max_map_bytes=1000), real_t1.read_bytes(), data={"explain": "1"}).json()
    assert answer["map"]["nifti_base64"] is None
    assert answer["map"]["nifti_size_bytes"] > 1000
    assert "this service sends 1000 at most" in answer["map"]["no_nifti"]
    assert base64.b64decode(answer["map"]["png_base64"]).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        ({"explain": "maybe"}, "the field explain cannot be read"),
        ({"num_steps": "8.5"}, "the field num_steps cannot be read"),
        ({"num_steps": "100000"}, "a map cannot take so many steps"),
        ({"age_years": "forty"}, "the field age_years cannot be read"),
        ({"age_years": "nan"}, "not an age"),
        ({"age_years": "-3"}, "not an age"),
        ({"age_years": "540"}, "nobody is of this age"),
        ({"sex": "male"}, "not a sex that models know"),
        ({"ages_years": "40"}, "the form has fields that are not known, or twice"),
        ({"sex": ["M", "F"]}, "the form has fields that are not known, or twice"),
    ],
)
def test_options_that_make_no_sense_are_400(
    client: TestClient, real_t1: Path, data: dict[str, Any], fault: str
) -> None:
    response = post(client, real_t1.read_bytes(), data=data)
    assert response.status_code == 400
    assert response.json()["fault"] == fault


def test_an_age_in_months_is_told_as_years(client: TestClient) -> None:
    response = post(client, b"not even looked at", data={"age_years": "540"})
    assert response.json()["fix"] == "in months? 540 months are 45.0 years"


def test_options_in_the_url_are_refused_and_not_ignored(client: TestClient, real_t1: Path) -> None:
    response = client.post(f"{URL}?explain=true", files={"file": ("scan.nii.gz", real_t1.read_bytes())})
    assert response.status_code == 400
    assert "-F explain=true" in response.json()["fix"]


def test_what_is_told_of_the_person_and_not_used_is_said(client: TestClient, real_t1: Path) -> None:
    answer = post(client, real_t1.read_bytes(), data={"sex": "F", "age_years": "26"}).json()
    assert answer["warnings"] == ["the sex and the age of the person: not used by this model"]


@pytest.mark.parametrize("kind", ["web page", "cut short", "all zero", "another checksum"])
def test_a_broken_file_gets_the_scan_errors_own_text(
    client: TestClient, hard_folder: Path, real_t1: Path, tmp_path: Path, kind: str
) -> None:
    whole = real_t1.read_bytes()
    content = {
        "web page": (hard_folder / "html_error_page.nii.gz").read_bytes(),
        "all zero": (hard_folder / "T1_all_zero.nii.gz").read_bytes(),
        "cut short": whole[: len(whole) * 6 // 10],
        "another checksum": whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:],  # the checksum of gzip
    }[kind]
    response = post(client, content)
    assert response.status_code == 422
    # The same as reading the file under the name that it has inside the service.
    (tmp_path / "upload.nii.gz").write_bytes(content)
    with pytest.raises(ScanError) as refused:
        read_scan(tmp_path / "upload.nii.gz")
    assert response.json() == refused.value.to_json()
    assert "upload.nii.gz" in response.text
    assert str(tmp_path) not in response.text


def test_a_time_series_gets_its_own_text(client: TestClient, real_t1: Path) -> None:
    (bold,) = real_t1.parents[1].glob("func/*_bold.nii.gz")
    response = post(client, bold.read_bytes())
    assert response.status_code == 422
    assert response.json()["fault"] == "this model answers for T1w volumes, not for time series"
    assert response.json()["given"] == "20 frames"


def test_a_bomb_is_refused_by_the_volume_limit(predictor: Predictor, real_t1: Path) -> None:
    response = post(make_client(predictor, max_volume_bytes=2**20), real_t1.read_bytes())
    assert response.status_code == 422
    assert response.json()["error"] == "ScanError"


def test_an_upload_beyond_the_limit_is_413_by_its_header(predictor: Predictor) -> None:
    response = post(make_client(predictor, max_upload_bytes=1000), b"x" * 1001)
    assert response.status_code == 413
    assert response.json()["error"] == "UploadTooLargeError"
    assert "1000 bytes" in response.json()["expected"]


def test_an_upload_beyond_the_limit_is_413_without_a_header(predictor: Predictor) -> None:
    def stream() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.nii"\r\n\r\n'
        for _ in range(20):
            yield b"x" * 100

    client = make_client(predictor, max_upload_bytes=1000)
    headers = {"content-type": "multipart/form-data; boundary=b"}
    response = client.post(URL, content=stream(), headers=headers)
    assert response.status_code == 413


def test_an_upload_of_just_the_limit_is_read(predictor: Predictor, real_t1: Path) -> None:
    request = make_client(predictor).build_request("POST", URL, files={"file": ("a.nii.gz", real_t1.read_bytes())})
    size_bytes = len(request.read())
    assert (
        post(make_client(predictor, max_upload_bytes=size_bytes), real_t1.read_bytes(), "a.nii.gz").status_code == 200
    )
    assert (
        post(make_client(predictor, max_upload_bytes=size_bytes - 1), real_t1.read_bytes(), "a.nii.gz").status_code
        == 413
    )


@pytest.mark.parametrize("filename", ["scan.dcm", "scan.img", "scan", "scan.gz", "nii"])
def test_an_unknown_suffix_is_415(client: TestClient, filename: str) -> None:
    response = post(client, b"anything", filename)
    assert response.status_code == 415
    assert ".nii.gz" in response.json()["expected"]


def test_a_plain_file_may_be_sent_unpacked(client: TestClient, real_t1: Path) -> None:
    packed, plain = post(client, real_t1.read_bytes()), post(client, gzip.decompress(real_t1.read_bytes()), "SCAN.NII")
    assert plain.status_code == 200
    assert plain.json() == packed.json()


def test_an_unknown_model_is_404_and_the_known_ones_are_named(client: TestClient) -> None:
    response = client.post("/v1/models/oracle/predict", files={"file": ("scan.nii", b"")})
    assert response.status_code == 404
    assert response.json()["expected"] == "one of tiny"


@pytest.mark.parametrize(
    "request_",
    [
        {"json": {}},
        {"content": b"", "headers": {"content-type": "multipart/form-data; boundary=b"}},
        {"content": b"garbage", "headers": {"content-type": "multipart/form-data; boundary=b"}},
        {"content": b"garbage", "headers": {"content-type": "multipart/form-data"}},
        {"data": {"file": "text, not a file"}, "files": {"other": ("a.nii", b"")}},
        {"files": [("file", ("a.nii", b"")), ("file", ("b.nii", b""))]},
    ],
)
def test_a_request_without_one_file_is_400(client: TestClient, request_: dict[str, Any]) -> None:
    response = client.post(URL, **request_)
    assert response.status_code == 400
    assert set(response.json()) == {"error", "fault", "given", "expected", "fix"}


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (OverloadedError("full"), 503),
        (UnavailableError("down"), 503),
        (LateError("late"), 504),
        (ScanError("a time series"), 422),
        (ModelError("too flat"), 422),
        (ExplainError("gradients that are no numbers"), 422),
    ],
)
def test_what_the_model_says_becomes_a_status(
    predictor: Predictor, real_t1: Path, fault: Exception, status: int
) -> None:
    async def fail(name: str, scan: Scan, question: Question) -> PackedReply:
        raise fault

    response = post(make_client(predictor, fail), real_t1.read_bytes())
    assert response.status_code == status
    assert response.json()["error"] == type(fault).__name__
    assert ("retry-after" in response.headers) == (status == 503)


def test_a_bug_tells_nothing_of_the_inside(predictor: Predictor, real_t1: Path) -> None:
    async def fail(name: str, scan: Scan, question: Question) -> PackedReply:
        raise RuntimeError("secret path /var/secret")

    response = post(make_client(predictor, fail), real_t1.read_bytes())
    assert response.status_code == 500
    assert response.json()["error"] == "InternalError"
    assert "secret" not in response.text


def test_more_requests_than_allowed_are_turned_away(predictor: Predictor, real_t1: Path) -> None:
    inside, leave = threading.Event(), threading.Event()

    async def wait(name: str, scan: Scan, question: Question) -> PackedReply:
        inside.set()
        await asyncio.to_thread(leave.wait, 30)
        return PackedReply(prediction=predictor.predict(scan))

    statuses: list[int] = []
    with make_client(predictor, wait, max_queued_requests=1) as client:
        first = threading.Thread(target=lambda: statuses.append(post(client, real_t1.read_bytes()).status_code))
        first.start()
        assert inside.wait(30)
        assert post(client, real_t1.read_bytes()).status_code == 503
        assert client.get("/healthz").status_code == 200
        leave.set()
        first.join(30)
        assert statuses == [200]
        assert post(client, real_t1.read_bytes()).status_code == 200


@pytest.fixture(scope="module")
def guarded(predictor: Predictor) -> TestClient:
    return make_client(predictor, token_sha256=digest_token(TOKEN))


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {TOKEN}"}])
def test_without_the_token_nothing_is_answered(guarded: TestClient, headers: dict[str, str]) -> None:
    for response in (
        guarded.get("/v1/models", headers=headers),
        guarded.post(URL, headers=headers | {"content-type": "multipart/form-data; boundary=b"}, content=b"--b"),
    ):
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.json()["error"] == "UnauthorizedError"


def test_with_the_token_it_answers(guarded: TestClient, real_t1: Path) -> None:
    headers = {"authorization": f"Bearer {TOKEN}"}
    assert guarded.get("/v1/models", headers=headers).status_code == 200
    assert post(guarded, real_t1.read_bytes(), headers=headers).status_code == 200


def test_health_and_page_need_no_token(guarded: TestClient) -> None:
    assert guarded.get("/healthz").json() == {"status": "ok", "models": ["tiny"]}
    assert guarded.get("/docs").status_code == 200


def test_models_are_listed(client: TestClient, predictor: Predictor) -> None:
    (model,) = client.get("/v1/models").json()["models"]
    assert model["name"] == "tiny"
    assert model["kind"] == "dinoatten3d"
    assert model["classes"] == ["control", "patient"]
    assert model["fingerprints"] == predictor.card.fingerprints


@pytest.mark.parametrize("content", [None, b"\x1f\x8bnot gzip"])
def test_the_file_name_is_neither_logged_nor_told(
    client: TestClient, real_t1: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        response = post(client, content or real_t1.read_bytes(), "jane_doe_1961.nii.gz")
    assert response.status_code == (422 if content else 200)
    assert "jane" not in response.text
    # httpx, in this process, is the client.
    told = [record.getMessage() for record in caplog.records if not record.name.startswith("httpx")]
    assert not any("jane" in line for line in told)


def test_no_upload_is_left_on_the_disk(
    client: TestClient, real_t1: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert post(client, real_t1.read_bytes(), data={"explain": "true"}).status_code == 200
    assert post(client, b"broken").status_code == 422
    assert list(tmp_path.iterdir()) == []


def test_the_page_loads_nothing_from_anywhere(client: TestClient) -> None:
    response = client.get("/docs")
    assert "src=" not in response.text
    assert "<link" not in response.text
    assert "@import" not in response.text
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    nonce = policy.split("script-src 'nonce-")[1].split("'")[0]
    assert f'<script nonce="{nonce}">' in response.text
    assert nonce not in client.get("/docs").text


def test_the_page_tells_every_path_and_status(client: TestClient) -> None:
    page, described = client.get("/docs").text, client.get("/openapi.json").json()
    assert set(described["paths"]) == {"/healthz", "/v1/models", "/v1/models/{name}/predict"}
    for path in described["paths"]:
        assert f'<span class="path">{path}</span>' in page
    for field in ("file", "sex", "age_years", "explain", "num_steps"):
        assert f"<code>{field}</code>" in page
    for status in described["paths"]["/v1/models/{name}/predict"]["post"]["responses"]:
        assert f"<td>{status}</td>" in page
    assert "curl -F file=@scan.nii.gz http://HOST:PORT/v1/models/tiny/predict" in page


def test_openapi_examples_are_what_the_service_sends(client: TestClient, real_t1: Path) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    example = schemas["PredictionAnswer"]["examples"][0]
    answer = json.loads(post(client, real_t1.read_bytes(), data={"explain": "true"}).text)
    assert shape_of(example) == shape_of(answer)
    assert shape_of(example["map"]) == shape_of(answer["map"])


def shape_of(answer: dict[str, Any]) -> dict[str, Any]:
    """Names and types; maps whose keys are data count by their values. FastAPI leaves null out of its description."""
    told = {name: value for name, value in answer.items() if value is not None}
    return {name: shape_of(value) if name == "model" else type(value).__name__ for name, value in told.items()} | {
        "slice": {name: type(value).__name__ for name, value in (answer.get("attention") or [{}])[0].items()}
    }
