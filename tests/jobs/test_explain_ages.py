"""`neuroray explain` of a NeuroAR run: the change per year on its own grid, checked against scrambled weights."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from contracts.ageing_run import ages_of, train_ageing_run, write_ball

from neuroray.jobs import explain, generate, predict
from neuroray.jobs.cli import UsageError
from neuroray.platform.generate.ages import GenerationError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = train_ageing_run(tmp_path_factory.mktemp("ageing"))
    write_ball(folder / "brain.nii.gz")
    return folder


def ask(folder: Path, out: Path, **options: Any) -> dict[str, Any]:
    options = {"scan": str(folder / "brain.nii.gz"), **options}
    return explain.run(explain.Args(run=str(folder / "run"), out=str(out), **options))


def test_the_map_is_the_slope_of_what_generate_writes(folder: Path, tmp_path: Path) -> None:
    low, high = ages_of(folder / "run")
    ages = tuple(float(age) for age in np.linspace(low, high, 5).round(2)[1:])
    answer = ask(folder, tmp_path / "out", age_years=low, ages=ages)
    told = generate.run(
        generate.Args(
            run=str(folder / "run"),
            scan=str(folder / "brain.nii.gz"),
            age_years=low,
            ages=(low, *ages),
            out=str(tmp_path / "generate"),
        )
    )
    files = [one["files"]["volume"] for one in told["ages"]]
    volumes = np.stack([np.asarray(nib.load(tmp_path / "generate" / name).dataobj) for name in files])
    centred = np.array([low, *ages]) - np.mean([low, *ages])
    expected = np.tensordot(centred / (centred**2).sum(), volumes.astype(np.float64), axes=1)
    image = nib.load(tmp_path / "out/map.nii.gz")
    # float32 sums of values of hundreds.
    np.testing.assert_allclose(np.asarray(image.dataobj), expected, atol=1e-3)
    np.testing.assert_array_equal(image.affine, nib.load(folder / "brain.nii.gz").affine)
    assert 0 <= answer["linear_share"] <= 1
    assert 0 <= answer["orders_as_linear"] <= 1
    scrambled = answer["checks"]["map_correlation_after_scrambling"]
    assert list(scrambled) == ["head", "blocks", "ages and previous scan"]
    assert all(one["values"] is None or one["values"] < 0.9 for one in scrambled.values())
    kept = json.loads((tmp_path / "out/explain.json").read_text())
    assert kept["regions_ml_per_year"] == answer["regions_ml_per_year"]
    assert (tmp_path / "out/overlay.png").read_bytes().startswith(b"\x89PNG")


def test_predict_writes_the_same_map_beside_its_table(folder: Path, tmp_path: Path) -> None:
    low, high = ages_of(folder / "run")
    ask(folder, tmp_path / "explain", age_years=low, ages=(high,), skip_checks=True)
    scans = (str(folder / "brain.nii.gz"),)
    answer = predict.run(
        predict.Args(
            model=str(folder / "run"), scans=scans, age_years=low, ages=(high,), explain=True, out=str(tmp_path / "out")
        )
    )
    (row,) = answer["predictions"]
    assert row["explanation"]["method"] == "change_per_year"
    ours, theirs = (nib.load(tmp_path / name) for name in ("out/maps/1.nii.gz", "explain/map.nii.gz"))
    np.testing.assert_array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))
    picture = base64.b64encode((tmp_path / "out/maps/1.png").read_bytes()).decode()
    assert picture in (tmp_path / "out/predictions.html").read_text()


def test_what_such_a_run_cannot_be_asked_is_refused(folder: Path, tmp_path: Path) -> None:
    low, high = ages_of(folder / "run")
    with pytest.raises(GenerationError, match="no age is asked for"):
        ask(folder, tmp_path, age_years=low)
    with pytest.raises(GenerationError, match="needs another age"):
        ask(folder, tmp_path, age_years=low, ages=(low,))
    with pytest.raises(GenerationError, match="no such ages"):
        ask(folder, tmp_path, age_years=low, ages=(99.0,))
    with pytest.raises(UsageError, match=r"explained by its change per year.*given --method"):
        ask(folder, tmp_path, age_years=low, ages=(high,), method="attention")
