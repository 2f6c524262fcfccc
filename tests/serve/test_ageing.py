"""A served NeuroAR: ages in a form, brains in an answer, the same as `neuroray generate` writes, and its refusals."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import nibabel
import numpy as np
import pytest
from contracts.ageing_run import ages_of, train_ageing_run, write_ball
from fastapi.testclient import TestClient
from PIL import Image

from neuroray.jobs import generate, predict
from neuroray.jobs.cli import UsageError
from neuroray.jobs.serve import start_server
from neuroray.serve.config import ServeConfig
from neuroray.serve.packed_map import PackedReply, pack_reply
from neuroray.serve.predictor import Predictor, load_predictor, read_model_card
from neuroray.serve.question import Question, QuestionError, ask_predictor
from neuroray.serve.routes import build_api
from neuroray.storage.nifti import read_scan, write_map
from neuroray.storage.scan import Scan


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_ageing_run(tmp_path_factory.mktemp("ageing"))


@pytest.fixture(scope="module")
def ball(folder: Path) -> Path:
    return write_ball(folder / "brain.nii.gz")


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Predictor:
    return load_predictor(str(folder / "run"))


def make_client(predictor: Predictor, **changes: Any) -> TestClient:
    config = ServeConfig(models={"neuroar": "anywhere"}, **changes)

    async def answer(name: str, scan: Scan, question: Question) -> PackedReply:
        return pack_reply(ask_predictor(predictor, scan, question), max_map_bytes=config.max_map_bytes)

    api = build_api(config, cards={"neuroar": predictor.card}, ask=answer)
    return TestClient(api, raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client(predictor: Predictor) -> Iterator[TestClient]:
    with make_client(predictor) as started:
        yield started


def post(client: TestClient, scan: Path, **fields: Any) -> Any:
    files = {"file": ("scan.nii.gz", scan.read_bytes())}
    return client.post("/v1/models/neuroar/predict", files=files, data={k: str(v) for k, v in fields.items()})


def decode(sent: dict[str, Any], folder: Path) -> Any:
    (folder / "sent.nii.gz").write_bytes(base64.b64decode(sent["nifti_base64"]))
    return nibabel.nifti1.load(folder / "sent.nii.gz")


def test_the_volumes_are_those_that_generate_writes(
    client: TestClient, folder: Path, ball: Path, tmp_path: Path
) -> None:
    low, high = ages_of(folder / "run")
    asked = (high, (low + high) / 2)
    response = post(client, ball, age_years=low, ages=f"{asked[0]}, {asked[1]}", files="all")
    assert response.status_code == 200
    told = response.json()
    written = generate.run(
        generate.Args(run=str(folder / "run"), scan=str(ball), out=str(tmp_path), age_years=low, ages=asked)
    )
    assert told["targets"] == []
    assert told["label"] is None
    assert told["warnings"] == written["warnings"]
    assert [one["age_years"] for one in told["ageing"]["ages"]] == list(asked)
    for one, expected in zip(told["ageing"]["ages"], written["ages"], strict=True):
        for name in ("volume", "difference"):
            ours, theirs = decode(one[name], tmp_path), nibabel.nifti1.load(tmp_path / expected["files"][name])
            np.testing.assert_array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))
            np.testing.assert_array_equal(ours.affine, nibabel.nifti1.load(ball).affine)
        facts = {name: value for name, value in expected.items() if name not in ("files", "age_years")}
        assert one["facts"] == facts
        assert one["spread"] is None
    assert base64.b64decode(told["ageing"]["strip_png_base64"]) == (tmp_path / "strip.png").read_bytes()
    reconstruction = {name: value for name, value in written["reconstruction"].items() if name != "file"}
    assert told["ageing"]["facts"]["reconstruction"] == reconstruction
    assert told["model"]["ages_years"] == [low, high]


def test_each_age_has_a_picture_of_one_size_and_they_differ(client: TestClient, folder: Path, ball: Path) -> None:
    low, high = ages_of(folder / "run")
    ages = post(client, ball, age_years=low, ages=f"{low} {high}", files="none").json()["ageing"]["ages"]
    pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(one["picture_png_base64"])))) for one in ages]
    assert pictures[0].shape == pictures[1].shape
    assert (pictures[0] != pictures[1]).any()
    assert all(one["volume"] is None for one in ages)


def test_drawn_brains_come_with_their_spread(client: TestClient, folder: Path, ball: Path, tmp_path: Path) -> None:
    low, high = ages_of(folder / "run")
    fields = {"age_years": low, "ages": high, "samples": 3, "temperature": 1.5, "seed": 4, "files": "all"}
    first, again = (post(client, ball, **fields).json()["ageing"] for _ in range(2))
    assert first == again
    spread = decode(first["ages"][0]["spread"], tmp_path)
    assert np.asarray(spread.dataobj).max() > 0
    assert first["facts"]["num_samples"] == 3
    other = post(client, ball, **{**fields, "seed": 5}).json()["ageing"]
    assert other["ages"][0]["volume"]["nifti_base64"] != first["ages"][0]["volume"]["nifti_base64"]


def test_volumes_beyond_the_limit_stay_away_and_say_so(predictor: Predictor, folder: Path, ball: Path) -> None:
    low, high = ages_of(folder / "run")
    small = make_client(predictor, max_map_bytes=1000)
    (one,) = post(small, ball, age_years=low, ages=high).json()["ageing"]["ages"]
    assert one["volume"]["nifti_base64"] is None
    assert one["volume"]["nifti_size_bytes"] > 1000
    assert "of 1000 that are sent here" in one["volume"]["no_nifti"]


@pytest.mark.parametrize(
    ("fields", "status", "told"),
    [
        ({}, 400, "no age is asked for"),
        ({"age_years": 60}, 400, "no age is asked for"),
        ({"ages": "60 65"}, 400, '-F "age_years=61.5"'),
        ({"age_years": 60, "ages": "nan"}, 400, "the target age is no number"),
        ({"age_years": 60, "ages": "-3"}, 400, "before birth"),
        ({"age_years": 60, "ages": "61 years"}, 400, "the field ages cannot be read"),
        ({"age_years": 60, "ages": " ".join(map(str, range(50, 70)))}, 400, "too much is asked at once"),
        ({"age_years": 60, "ages": "62", "samples": 2}, 400, '-F "temperature=1"'),
        ({"age_years": 60, "ages": "62", "top_p": 3}, 400, "sampling is none"),
        ({"age_years": 60, "ages": "62", "files": "some"}, 400, "no such files"),
        ({"age_years": 60, "ages": "140"}, 400, "beyond any person's"),
        ({"age_years": 60, "ages": "inf"}, 400, "the target age is no number"),
        ({"age_years": "nan", "ages": "62"}, 400, "not an age"),
        ({"age_years": -1, "ages": "62"}, 400, "not an age"),
        ({"age_years": 744, "ages": "62"}, 400, "744 months are 62.0 years"),
        ({"age_years": 60, "ages": "62", "temperature": "nan"}, 400, "the temperature is no number"),
        ({"age_years": 60, "ages": "62", "age_guidance": "nan"}, 400, "guidance is none"),
        ({"age_years": 60, "ages": "62", "seed": -1}, 400, "no such seed"),
        ({"age_years": 60, "ages": "99"}, 422, '-F "allow_outside=true"'),
        ({"age_years": 9, "ages": "62"}, 422, "the scan is a child's"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    client: TestClient, ball: Path, fields: dict[str, Any], status: int, told: str
) -> None:
    response = post(client, ball, **fields)
    assert response.status_code == status
    assert told in " ".join(str(part) for part in response.json().values())


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda voxels: np.roll(voxels, 6, axis=0), "not registered as the scans of the training were"),
        (lambda voxels: np.full_like(voxels, np.nan), "the image is empty"),
        (np.zeros_like, "the image is empty"),
        (lambda voxels: np.where(voxels > 0, 700, 0), "is the same everywhere"),
        (lambda voxels: np.stack([voxels] * 3, axis=-1), "not from time series"),
        (lambda _: np.random.default_rng(0).normal(500, 50, (40, 41, 42)), "does not fit the grid"),
    ],
)
def test_scans_that_nothing_can_be_told_of_are_refused_with_the_reason(
    client: TestClient, folder: Path, ball: Path, tmp_path: Path, spoil: Any, told: str
) -> None:
    low, high = ages_of(folder / "run")
    image = nibabel.nifti1.load(ball)
    voxels = np.ascontiguousarray(spoil(np.asarray(image.dataobj)), np.float32)
    nibabel.nifti1.save(nibabel.nifti1.Nifti1Image(voxels, image.affine), tmp_path / "spoilt.nii.gz")
    response = post(client, tmp_path / "spoilt.nii.gz", age_years=low, ages=high)
    answer = response.json()
    assert (response.status_code, told in answer["fault"]) == (422, True), answer
    assert answer["given"] is not None


def test_a_damaged_file_is_refused(client: TestClient, folder: Path, ball: Path, tmp_path: Path) -> None:
    low, high = ages_of(folder / "run")
    content = ball.read_bytes()
    (tmp_path / "short.nii.gz").write_bytes(content[: len(content) // 2])
    assert post(client, tmp_path / "short.nii.gz", age_years=low, ages=high).status_code in (400, 422)


def test_outside_ages_are_told_with_a_warning_where_that_is_allowed(
    client: TestClient, folder: Path, ball: Path
) -> None:
    low, _ = ages_of(folder / "run")
    response = post(client, ball, age_years=low, ages="99", allow_outside="true", files="none")
    assert response.status_code == 200
    assert any("nothing vouches" in one for one in response.json()["warnings"])


def test_other_models_refuse_ages_rather_than_ignore_them(model_folder: Path, ball: Path) -> None:
    other = load_predictor(str(model_folder))
    with pytest.raises(QuestionError, match=r"tells nothing of other ages; given ages"):
        ask_predictor(other, read_scan(ball), Question(age_years=60.0, ages=(70.0,)))


def test_predict_refuses_ages_of_other_models(model_folder: Path, ball: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"tells nothing of other ages; given dinoatten3d"):
        predict.run(predict.Args(model=str(model_folder), scans=(str(ball),), out=str(tmp_path), in_years=(5.0,)))


def test_the_card_is_known_without_the_weights(folder: Path, predictor: Predictor) -> None:
    card = read_model_card(str(folder / "run"))
    assert card == predictor.card
    assert card.ageing is not None
    assert card.ageing.age_range_years == ages_of(folder / "run")
    assert card.targets == ()


@pytest.mark.ray
@pytest.mark.slow
def test_a_real_service_tells_what_the_predictor_tells(
    ray_session: Any, folder: Path, ball: Path, predictor: Predictor, tmp_path: Path
) -> None:
    low, high = ages_of(folder / "run")
    config = ServeConfig(models={"neuroar": str(folder / "run")}, num_ingress_cpus=0.5, num_cpus=0.5)
    fields = {"age_years": str(low), "ages": str(high)}
    with (
        start_server(config) as server,
        # Not by a proxy that the environment may name.
        httpx.Client(base_url=server.url, timeout=120, trust_env=False) as remote,
    ):
        files = {"file": ("scan.nii.gz", ball.read_bytes())}
        told = remote.post("/v1/models/neuroar/predict", files=files, data=fields)
        refused = remote.post("/v1/models/neuroar/predict", files=files, data={**fields, "age_years": "9"})
        page = remote.get("/ageing")
    assert told.status_code == 200, told.text
    (one,) = told.json()["ageing"]["ages"]
    expected = ask_predictor(predictor, read_scan(ball), Question(age_years=low, ages=(high,))).ageing
    assert expected is not None
    # Another process with another number of threads may sum in another order; greedy codes are the same all the same,
    # and voxels of hundreds agree to float32.
    assert one["facts"]["changed_token_fraction"] == expected.made[0].changed_fraction
    write_map(expected.made[0].values, expected.given.own_grid, tmp_path / "expected.nii.gz")
    ours, theirs = decode(one["volume"], tmp_path), nibabel.nifti1.load(tmp_path / "expected.nii.gz")
    np.testing.assert_allclose(np.asarray(ours.dataobj), np.asarray(theirs.dataobj), atol=1e-2)
    assert refused.status_code == 422
    assert refused.json()["error"] == "UnseenError"
    assert page.status_code == 200
