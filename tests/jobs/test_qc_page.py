"""The quality page in a real browser: it sorts, enlarges, fits its window, and complains of nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from neuroray.jobs import qc
from neuroray.storage.scan import Scan
from neuroray.storage.store import ScanStore

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]

_WATCH = """<script>
const problems = [];
addEventListener("error", event => problems.push(event.message));
addEventListener("securitypolicyviolation", event => problems.push(event.violatedDirective));
for (const name of ["error", "warn"]) console[name] = (...words) => problems.push(words.join(" "));
</script>"""
_ACT = """<script>
addEventListener("load", () => {
  const heads = [...document.querySelectorAll("table.sortable th")];
  const find = text => heads.findIndex(head => head.textContent.startsWith(text));
  const ids = () => [...document.querySelectorAll("table.sortable tbody tr")].map(row => row.cells[0].textContent);
  const sort = text => { heads[find(text)].firstElementChild.click(); return [ids(), heads[find(text)].ariaSort]; };
  const outcome = { first: ids(), up: sort("Median inside"), down: sort("Median inside"), names: sort("Scan") };
  document.querySelector("button.picture").click();
  outcome.enlarged = document.querySelector("dialog").open && document.querySelector("dialog img").src.length > 1000;
  document.querySelector("dialog img").click();
  outcome.closed = !document.querySelector("dialog").open;
  outcome.overflow = document.documentElement.scrollWidth - innerWidth;
  outcome.pictures = [...document.querySelectorAll("article img")].map(image => image.src.length);
  outcome.problems = problems;
  const pre = document.createElement("pre");
  pre.id = "outcome";
  pre.textContent = JSON.stringify(outcome);
  document.body.append(pre);
});
</script>"""


def make_store(folder: Path) -> ScanStore:
    """Heads whose brightness falls as their number rises, and one that nothing is known of."""
    store = ScanStore.create(folder / "store")
    shape = (41, 49, 45)
    grid = np.indices(shape) - np.array(shape).reshape(3, 1, 1, 1) / 2
    inside = ((grid / np.array([15, 19, 17]).reshape(3, 1, 1, 1)) ** 2).sum(axis=0) < 1
    for index, level in enumerate((1100, 1000, 990, 980, 970, 400)):
        draw = np.random.default_rng(index)
        folds = ndimage.gaussian_filter(draw.normal(size=shape), 1.2)
        values = inside * (level + 60 * folds / folds.std()) + np.abs(draw.normal(0, 6, shape))
        scan = Scan(voxels=values.astype(np.int16), affine=np.diag([4.0, 4.0, 4.0, 1.0]))
        store.write(scan, scan_id=f"head-{index}", subject=f"p{index}", modality="T1w")
    return store


def open_page(page: Path, folder: Path, width: int) -> dict:
    """What `_ACT` saw of a page."""
    text = page.read_text().replace("<head>", f"<head>{_WATCH}", 1).replace("</body>", f"{_ACT}</body>", 1)
    watched = folder / "watched.html"
    watched.write_text(text)
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += [f"--window-size={width},900", "--virtual-time-budget=5000", "--dump-dom", watched.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<pre id="outcome">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    return json.loads(unescape(found.group(1)))


@pytest.mark.parametrize("width", [1280, 500])
def test_the_page_sorts_enlarges_and_complains_of_nothing(tmp_path: Path, width: int):
    store = make_store(tmp_path)
    qc.run(qc.Args(store=store.uri, out=str(tmp_path / "qc")))
    outcome = open_page(tmp_path / "qc/qc.html", tmp_path, width)
    names = [f"head-{index}" for index in range(6)]
    assert outcome["first"][0] == "head-5", "the one that stands apart comes first"
    assert outcome["down"] == [names, "descending"]
    assert outcome["up"] == [names[::-1], "ascending"]
    assert outcome["names"] == [names, "ascending"]
    assert (outcome["enlarged"], outcome["closed"]) == (True, True)
    assert len(outcome["pictures"]) == 6
    assert min(outcome["pictures"]) > 1000
    assert outcome["overflow"] <= 0
    assert outcome["problems"] == []
