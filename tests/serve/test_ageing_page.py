"""The page with the ageing slider: there where such a model is served, and at work in a real browser."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from contracts.ageing_run import ages_of, train_ageing_run, write_ball
from fastapi.testclient import TestClient

from neuroray.serve.config import ServeConfig
from neuroray.serve.packed_map import PackedReply, pack_reply
from neuroray.serve.predictor import load_predictor
from neuroray.serve.question import Question, ask_predictor
from neuroray.serve.routes import build_api
from neuroray.storage.scan import Scan

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# The page's own script runs against a recorded answer: what it sends is kept, what it shows is read off.
_STUB = """<script>
const problems = [], sent = [];
addEventListener("error", event => problems.push(event.message));
console.error = (...words) => problems.push(words.join(" "));
window.fetch = async (url, options) => {
  sent.push({ url, fields: [...options.body.entries()].map(([name, value]) => [name, String(value.name || value)]) });
  return { ok: ANSWER.targets !== undefined, status: 200, json: async () => ANSWER };
};
</script>"""
_ACT = """<script>
addEventListener("load", async () => {
  const form = document.getElementById("ask"), fill = (name, value) => { form.elements[name].value = value; };
  const files = new DataTransfer();
  files.items.add(new File(["x"], "scan.nii.gz"));
  form.elements.scan.files = files.files;
  fill("age", AGES[0]); fill("from", AGES[0]); fill("to", AGES[1]); fill("count", 3);
  form.elements.volumes.checked = true;
  form.requestSubmit();
  await new Promise(resolve => setTimeout(resolve, 300));
  const look = () => [document.getElementById("now").textContent, document.getElementById("picture").src.length];
  const slider = document.getElementById("age"), seen = [look()];
  slider.value = 2;
  slider.dispatchEvent(new Event("input"));
  seen.push(look());
  const outcome = { problems, sent, seen, state: document.getElementById("state").textContent,
    hidden: document.getElementById("viewer").hidden, max: slider.max,
    rows: [...document.querySelectorAll("#rows tr")].map(row => [...row.cells].map(one => one.textContent)),
    links: [...document.querySelectorAll("#rows a")].map(link => [link.download, link.href.length]),
    notes: document.querySelectorAll("#notes li").length,
    overflow: document.documentElement.scrollWidth - innerWidth };
  const pre = document.createElement("pre");
  pre.id = "outcome";
  pre.textContent = JSON.stringify(outcome);
  document.body.append(pre);
});
</script>"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[TestClient, Path]:
    folder = train_ageing_run(tmp_path_factory.mktemp("ageing"))
    predictor = load_predictor(str(folder / "run"))

    async def answer(name: str, scan: Scan, question: Question) -> PackedReply:
        return pack_reply(ask_predictor(predictor, scan, question), max_map_bytes=2**26)

    api = build_api(ServeConfig(models={"brains": "x"}), cards={"brains": predictor.card}, ask=answer)
    return TestClient(api), folder


def act(page: str, answer: dict[str, Any], ages: tuple[float, float], folder: Path, width: int) -> dict[str, Any]:
    """What `_ACT` saw of the page."""
    known = f"<script>const ANSWER = {json.dumps(answer)}, AGES = {json.dumps(ages)};</script>"
    text = page.replace("<head>", f"<head>{known}{_STUB}", 1).replace("</body>", f"{_ACT}</body>", 1)
    (folder / "watched.html").write_text(text)
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += [f"--window-size={width},900", "--virtual-time-budget=5000", "--dump-dom"]
    done = subprocess.run(
        [*command, (folder / "watched.html").as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    found = re.search(r'<pre id="outcome">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    return json.loads(unescape(found.group(1)))


def test_the_page_is_there_and_loads_nothing(served: tuple[TestClient, Path]) -> None:
    client, folder = served
    response = client.get("/ageing")
    low, _ = ages_of(folder / "run")
    assert response.status_code == 200
    assert f"brains ({round(low, 1):g} to" in response.text
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert not re.search(r"""(src|href)=["'](https?:)?//""", response.text)
    assert 'href="ageing"' in client.get("/docs").text


def test_it_is_not_there_for_other_models(model_folder: Path) -> None:
    async def answer(name: str, scan: Scan, question: Question) -> PackedReply:
        raise AssertionError

    card = load_predictor(str(model_folder)).card
    with TestClient(build_api(ServeConfig(models={"tiny": "x"}), cards={"tiny": card}, ask=answer)) as client:
        assert client.get("/ageing").status_code == 404
        assert 'href="ageing"' not in client.get("/docs").text


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [1280, 500])
def test_the_slider_moves_through_the_ages(served: tuple[TestClient, Path], tmp_path: Path, width: int) -> None:
    client, folder = served
    low, high = ages_of(folder / "run")
    asked = [round(low + index * (high - low) / 2, 2) for index in range(3)]
    scan = write_ball(tmp_path / "scan.nii.gz")
    fields = {"age_years": str(low), "ages": " ".join(map(str, asked))}
    told = client.post(
        "/v1/models/brains/predict", files={"file": ("scan.nii.gz", scan.read_bytes())}, data=fields
    ).json()
    seen = act(client.get("/ageing").text, told, (low, high), tmp_path, width)
    assert seen["problems"] == []
    assert seen["hidden"] is False
    assert seen["max"] == "2"
    (sent,) = seen["sent"]
    assert sent["url"] == "v1/models/brains/predict"
    kept = dict(sent["fields"])
    assert kept["file"] == "scan.nii.gz"
    assert [float(one) for one in kept["ages"].split()] == pytest.approx(asked, abs=0.011)
    assert (kept["age_years"], kept["files"]) == (str(low), "volumes")
    assert "allow_outside" not in kept
    assert seen["seen"][0][0].startswith(f"{asked[0]:g} years")
    assert seen["seen"][1][0].startswith(f"{asked[2]:g} years")
    pictures = [len(base64.b64decode(one["picture_png_base64"])) for one in told["ageing"]["ages"]]
    assert min(size for _, size in seen["seen"]) > min(pictures)
    assert [float(row[0]) for row in seen["rows"]] == pytest.approx(asked, abs=0.011)
    fluid = told["ageing"]["ages"][1]["facts"]["regions_ml"]["fluid"]
    assert float(seen["rows"][1][1]) == pytest.approx(fluid, abs=0.006)
    assert len(seen["links"]) == 3
    assert seen["notes"] == len(told["warnings"])
    assert "is reconstructed with" in seen["state"]
    assert seen["overflow"] <= 0


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_refusal_is_told_in_its_own_words(served: tuple[TestClient, Path], tmp_path: Path) -> None:
    client, _ = served
    scan = write_ball(tmp_path / "scan.nii.gz")
    told = client.post(
        "/v1/models/brains/predict",
        files={"file": ("scan.nii.gz", scan.read_bytes())},
        data={"age_years": "9", "ages": "60"},
    ).json()
    seen = act(client.get("/ageing").text, told, (9.0, 60.0), tmp_path, 1280)
    assert seen["hidden"] is True
    assert seen["state"].startswith("the scan is a child's")
    assert "given: 9" in seen["state"]
