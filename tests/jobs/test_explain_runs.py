import json

import nibabel as nib
import numpy as np
import pytest
from contracts.run_cohort import export_untrained, make_run, tiny_both, write_run_cohort

from neuroray.errors import NeurorayError
from neuroray.jobs import explain
from neuroray.storage.nifti import write_scan


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    store = write_run_cohort(folder / "store")
    return export_untrained(tiny_both(), store, folder / "run" / "model"), store


def test_a_stored_run_is_explained_in_its_own_unit(exported, tmp_path):
    model, store = exported
    record = store.records()[0]
    arguments = explain.Args(
        run=str(model), store=store.uri, subject=record.scan_id, target="cognition", out=str(tmp_path), num_steps=4
    )
    answer = explain.run(arguments)
    described = json.loads((tmp_path / "explain.json").read_text())
    assert described["target"].startswith("cognition")
    assert described["reference"] == "mean_frame"
    image = nib.load(tmp_path / "map.nii.gz")
    assert image.shape == record.shape[1:]
    np.testing.assert_allclose(image.affine, np.array(record.affine).reshape(4, 4), atol=1e-4)
    assert image.get_fdata().sum() == pytest.approx(described["map"]["sum"], rel=1e-4, abs=1e-6)
    assert len(described["time_course"]["signed"]) == record.shape[0]
    assert set(described["checks"]["map_correlation_after_scrambling"]) >= {"head", "frames"}
    assert "completeness error" in answer["text"]
    for name in ("networks.png", "overlay.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "run.json").read_text())["method"] == "integrated_gradients"


def test_a_file_is_explained_as_the_stored_run_and_the_other_class_with_the_sign_turned(exported, tmp_path):
    model, store = exported
    # The first of the cohort, as it was before the ingest.
    write_scan(make_run(0, is_woman=True, cognition=88.0), tmp_path / "run.nii.gz")
    sources = {
        "file": {"scan": str(tmp_path / "run.nii.gz")},
        "store": {"store": store.uri, "subject": "000"},
        "other": {"scan": str(tmp_path / "run.nii.gz")},
    }
    maps, named = {}, None
    for name, source in sources.items():
        out = tmp_path / name
        options = {"num_steps": 2, "skip_checks": True, "reference": "background"}
        target = {"F": "M", "M": "F"}[named] if name == "other" else None
        explain.run(explain.Args(run=str(model), out=str(out), target=target, **source, **options))
        described = json.loads((out / "explain.json").read_text())
        named = named or described["target"].removeprefix("log-odds of sex being ")
        maps[name] = nib.load(out / "map.nii.gz").get_fdata()
    assert named in ("F", "M")
    # float32 through the whole model, from stored integers here and from values there.
    tolerance = 1e-6 + 1e-3 * np.abs(maps["file"]).max()
    np.testing.assert_allclose(maps["file"], maps["store"], atol=tolerance)
    np.testing.assert_allclose(maps["file"], -maps["other"], atol=tolerance)


def test_what_does_not_fit_a_model_of_runs_is_refused(exported, tmp_path):
    model, store = exported
    subject = store.records()[0].subject
    shared = {"run": str(model), "store": store.uri, "subject": subject, "out": str(tmp_path)}
    with pytest.raises(NeurorayError, match="model of runs"):
        explain.run(explain.Args(**shared, method="occlusion"))
    with pytest.raises(NeurorayError, match=r"no such target.*cognition"):
        explain.run(explain.Args(**shared, target="height", num_steps=1))
    with pytest.raises(NeurorayError, match="a RUN folder"):
        explain.run(explain.Args(run=str(model), group=3, out=str(tmp_path)))
    with pytest.raises(NeurorayError, match="0 runs of this subject"):
        explain.run(explain.Args(run=str(model), store=store.uri, subject="nobody", out=str(tmp_path)))


def test_a_group_of_held_out_people_has_one_map(exported, tmp_path):
    from neuroray.platform.data.splits import SplitConfig, split_subjects

    model, store = exported
    run = model.parent
    split = split_subjects(
        store.records(), SplitConfig(num_parts=4, num_folds=2, stratify_by="sex"), catalogue_version=store.version
    )
    split.write_json(run / "splits.json")
    (run / "config.json").write_text(json.dumps({"data": {"store": store.uri}}))
    answer = explain.run(explain.Args(run=str(run), group=3, num_steps=2, target="cognition", out=str(tmp_path)))
    described = json.loads((tmp_path / "explain.json").read_text())
    assert described["num_runs"] == 3
    assert "3 runs explained" in answer["text"]
    assert (tmp_path / "group_overlay.png").read_bytes().startswith(b"\x89PNG")
    mean = nib.load(tmp_path / "group_magnitudes.nii.gz").get_fdata()
    # Each map is scaled to a sum of magnitudes of 1, all lie on one grid.
    assert mean.sum() == pytest.approx(1, abs=1e-4)
    text = (tmp_path / "explain.json").read_text()
    assert not any(scan_id in text for scan_id in split.test)
