"""The page of an ingest: every refusal with its reason, a picture where one can be drawn, nothing from outside."""

import gzip
import io
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
from contracts.faced_head import FACE, SPACING_MM, make_head
from faulty_scans import DATA
from matplotlib.image import imread

from neuroray.jobs import ingest
from neuroray.jobs.ingest_report import forget
from neuroray.platform.quality.preview import draw_preview


@pytest.fixture
def cut_short(tmp_path: Path) -> Path:
    """A volume that is brighter slice by slice, of which two thirds are there."""
    voxels = np.tile(np.arange(1, 31, dtype=np.int16) * 10, (20, 24, 1))
    voxels[:10] += 5  # the left half is brighter
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([8.0, 8.0, 8.0, 1.0])), tmp_path / "whole.nii")
    content = (tmp_path / "whole.nii").read_bytes()
    (tmp_path / "whole.nii").unlink()
    path = tmp_path / "cut_T1w.nii.gz"
    path.write_bytes(gzip.compress(content[: 352 + 20 * 24 * 2 * 12]))
    return path


def test_a_file_cut_short_shows_its_highest_whole_slice_upright_and_nothing_in_front(cut_short: Path):
    png = draw_preview(cut_short)
    assert png is not None
    picture = imread(io.BytesIO(png))[..., 0]
    assert picture.shape == (24, 20)  # anterior is up, left is left
    # The top of the head is not in the file, so that how low the slice lies is not known.
    assert not picture[:11].any()
    assert picture[12:, :10].min() > picture[12:, 10:].max() > 0


@pytest.mark.parametrize("share", [0.35, 0.45, 0.55, 0.7, 1.0])
def test_no_picture_shows_any_of_a_face(tmp_path: Path, share: float):
    head = make_head()
    shown = np.where(head == FACE, 1000, 300 * (head > 0)).astype(np.int16)
    image = nibabel.Nifti1Image(shown, np.diag([*SPACING_MM, 1.0]))
    path = tmp_path / "head_T1w.nii"
    nibabel.save(image, path)
    path.write_bytes(path.read_bytes()[: 352 + int(share * shown.nbytes)])
    png = draw_preview(path)
    # All that is shown of it has one tone: the face is three times as bright.
    assert png is None or len(np.unique(imread(io.BytesIO(png))[..., 0])) <= 2
    assert png is not None or share < 1


def test_a_file_that_does_not_say_how_it_lies_has_no_picture(tmp_path: Path):
    image = nibabel.Nifti1Image((300 * (make_head() > 0)).astype(np.int16), None)
    image.header["sform_code"] = image.header["qform_code"] = 0
    nibabel.save(image, tmp_path / "lost_T1w.nii")
    assert draw_preview(tmp_path / "lost_T1w.nii") is None


@pytest.mark.parametrize("name", ["html_error_page.nii.gz", "T1_all_zero.nii.gz"])
def test_what_holds_no_picture_has_none(name: str):
    assert draw_preview(DATA / "hard" / name) is None


def test_the_page_shows_every_refusal_with_its_reason_and_needs_nothing_else(cut_short: Path, tmp_path: Path):
    (tmp_path / "<b>page_T1w.nii").write_text("<html>not found</html>")
    answer = ingest.run(ingest.Args(source=str(tmp_path), store=str(tmp_path / "store"), out=str(tmp_path / "out")))
    page = (tmp_path / "out/ingest_report.html").read_text()
    assert answer.exit_code == 1
    for refusal in answer.refused:
        assert refusal.reason["fix"]
    assert "&lt;b&gt;page_T1w.nii" in page
    assert "<b>page" not in page
    assert "the file is too short for what its header claims" in page or "ends within its voxels" in page
    assert page.count('<img src="data:image/png;base64,') == 1
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    assert "http://" not in page
    assert "https://" not in page


def test_who_is_forgotten_leaves_the_page_and_others_stay(cut_short: Path, tmp_path: Path):
    (tmp_path / "page_T1w.nii").write_text("<html>not found</html>")
    ingest.run(ingest.Args(source=str(tmp_path), store=str(tmp_path / "store"), out=str(tmp_path / "out")))
    assert forget(tmp_path / "out", set(), {cut_short.name})
    assert not forget(tmp_path / "out", set(), {cut_short.name})
    for name in ("ingest_report.html", "ingest_report.json"):
        text = (tmp_path / "out" / name).read_text()
        assert cut_short.name not in text
        assert "page_T1w.nii" in text
    assert "data:image" not in (tmp_path / "out/ingest_report.html").read_text()
