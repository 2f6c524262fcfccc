"""`neuroray evaluate` of a tiny run of NeuroAR: the three rows on all held-out pairs, their files, refusals."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import timm
import torch
from contracts.age_cohort import tiny, write_age_cohort
from contracts.ageing_run import train_ageing_run
from safetensors.torch import save_file

from neuroray.jobs import evaluate, export, generate
from neuroray.platform.data.brain_volumes import BrainVolumeReader, fit_grid, restore_grid, scale_brain
from neuroray.platform.data.plan import ReadItem
from neuroray.platform.data.tokens import load_tokenizer
from neuroray.platform.evaluate.ageing_rows import ModelTeller
from neuroray.platform.evaluate.brain_regions import share_tissues
from neuroray.platform.evaluate.generated_ages import load_run_age
from neuroray.platform.evaluate.image_quality import compare_volumes
from neuroray.platform.evaluate.loaded import load_measure_model
from neuroray.platform.evaluate.metrics import EvaluationError
from neuroray.platform.evaluate.perceptual import open_perceptual_meter
from neuroray.platform.evaluate.visits import VisitReader, place_grid
from neuroray.platform.generate.ageing_model import load_ageing_model
from neuroray.platform.train.loop import fit
from neuroray.platform.train.recipe import LoopConfig
from neuroray.storage.records import ScanRecord
from neuroray.storage.scan import Scan
from neuroray.storage.store import ScanStore


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_ageing_run(tmp_path_factory.mktemp("trained"), num_people=12, min_overlap=0.0)


def ask(trained: Path, out: Path, **changes: Any) -> dict[str, Any]:
    asked: dict[str, Any] = {"num_resamples": 200, **changes}
    return evaluate.run(evaluate.Args(run=str(trained / "run"), out=str(out), **asked))


@pytest.fixture(scope="module")
def asked(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("asked")
    return out, ask(trained, out)


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def find_pairs(trained: Path) -> list[tuple[Any, Any]]:
    """Younger and older visit of everybody on the test side who has two, worked out here once more."""
    store = ScanStore(trained / "store")
    splits = json.loads((trained / "run" / "splits.json").read_text())
    test = {scan_id for name in splits["test"] for scan_id in name.split(" ")}
    people: dict[str, list[Any]] = {}
    for record in sorted(store.records(), key=lambda one: one.age_years):
        if record.scan_id in test:
            people.setdefault(record.subject, []).append(record)
    return [(visits[0], visits[1]) for visits in people.values() if len(visits) == 2]


def test_every_held_out_pair_is_there_once_from_the_younger_to_the_older(
    trained: Path, asked: tuple[Path, dict[str, Any]]
) -> None:
    out, answer = asked
    pairs = {(one.scan_id, other.scan_id) for one, other in find_pairs(trained)}
    rows = read_rows(out / "pairs.csv")
    assert pairs
    assert {(row["previous"], row["target"]) for row in rows} == pairs
    assert len(rows) == len(pairs) == answer["num_pairs"]
    assert all(float(row["age_years"]) < float(row["target_age_years"]) for row in rows)


def test_the_three_rows_are_copy_ceiling_and_model(trained: Path, asked: tuple[Path, dict[str, Any]]) -> None:
    out, _ = asked
    store, model = ScanStore(trained / "store"), load_ageing_model(str(trained / "run"))
    read = BrainVolumeReader(store.uri, store.version, model.grid)
    row = read_rows(out / "pairs.csv")[0]
    first, second = (read(ReadItem(scan_id=row[name])) for name in ("previous", "target"))
    volumes = [torch.from_numpy(np.array(one["volume"]))[None] for one in (first, second)]
    tokens = [model.tokenizer.encode(volume) for volume in volumes]
    rebuilt = model.tokenizer.decode(tokens[1], model.grid)[0].numpy()
    for name, volume in (("copy", volumes[0][0].numpy()), ("ceiling", rebuilt)):
        for metric, value in compare_volumes(volume, second["volume"], second["brain"]).items():
            assert float(row[f"{name}_{metric}"]) == pytest.approx(value, rel=1e-7)
    same = float((tokens[0] == tokens[1]).float().mean())
    assert float(row["copy_token_accuracy"]) == pytest.approx(same)
    assert float(row["copy_changed_token_accuracy"]) == 0
    assert float(row["ceiling_changed_token_accuracy"]) == float(row["ceiling_token_accuracy"]) == 1


def test_the_model_is_judged_on_what_generate_writes(trained: Path, tmp_path: Path) -> None:
    store, model = ScanStore(trained / "store"), load_ageing_model(str(trained / "run"))
    first, second = find_pairs(trained)[0]
    visit = VisitReader(store, model.tokenizer, model.grid)(first)
    told = ModelTeller(model).tell(visit, second.age_years)
    scan = store.read(first.scan_id)
    nib.save(nib.Nifti1Image(scan.voxels, scan.affine), tmp_path / "scan.nii.gz")
    generate.run(
        generate.Args(
            run=str(trained / "run"),
            scan=str(tmp_path / "scan.nii.gz"),
            out=str(tmp_path / "out"),
            age_years=first.age_years,
            ages=(second.age_years,),
            allow_outside=True,
        )
    )
    made = np.asarray(nib.load(next((tmp_path / "out").glob("age_*[0-9].nii.gz"))).dataobj)
    brain = scan.voxels != 0
    low, high = (float(end) for end in np.percentile(scan.voxels[brain].astype(np.float32), [0.5, 99.5]))
    units = low + (restore_grid(told.volume, scan.grid_shape) + 1) * ((high - low) / 2)
    assert np.array_equal(made, np.where(brain, units, 0).astype(np.float32))


def test_means_and_differences_are_those_of_the_pairs(asked: tuple[Path, dict[str, Any]]) -> None:
    out, answer = asked
    rows, report = read_rows(out / "pairs.csv"), json.loads((out / "report.json").read_text())
    for metric in ("psnr_brain", "ssim_whole", "l1_brain"):
        copy, made = (np.array([float(row[f"{name}_{metric}"]) for row in rows]) for name in ("copy", "model"))
        assert report["whole"]["metrics"]["model"][metric]["value"] == pytest.approx(made.mean(), rel=1e-6)
        found = report["whole"]["less_copy"]["model"][metric]
        assert found["value"] == pytest.approx((made - copy).mean(), rel=1e-5, abs=1e-9)
        assert found["low"] <= found["value"] <= found["high"]
    assert sum(part["num_pairs"] for part in report["by_gap"].values()) == len(rows)
    assert answer["whole"] == report["whole"]
    assert "sub-" not in (out / "report.json").read_text()


def test_folds_are_pooled(trained: Path, asked: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    for number in (0, 1):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / f"fold-{number}").symlink_to(trained / "run")
    args = evaluate.Args(run=str(tmp_path / "run"), out=str(tmp_path / "out"), num_resamples=200, skip_example=True)
    found = evaluate.run(args)
    once = asked[1]
    # The same fold twice: twice the pairs of the same people, and the same means.
    assert (found["num_pairs"], found["num_people"]) == (2 * once["num_pairs"], once["num_people"])
    for metric in ("psnr_brain", "l1_whole", "changed_token_accuracy"):
        told, single = (one["whole"]["metrics"]["model"][metric]["value"] for one in (found, once))
        assert told == pytest.approx(single, rel=1e-9)


def test_backward_gives_the_older_scan(trained: Path, asked: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    ask(trained, tmp_path, backward=True)
    forward, backward = read_rows(asked[0] / "pairs.csv"), read_rows(tmp_path / "pairs.csv")
    assert {(row["target"], row["previous"]) for row in forward} == {(r["previous"], r["target"]) for r in backward}
    assert json.loads((tmp_path / "report.json").read_text())["direction"] == "backward"


def test_the_page_tells_every_row_and_nobodys_name(trained: Path, asked: tuple[Path, dict[str, Any]]) -> None:
    out, answer = asked
    page, report = (out / "report.html").read_text(), json.loads((out / "report.json").read_text())
    assert "sub-" not in page
    assert "http" not in re.sub(r"http://www.w3.org|base64,[\w+/=]*", "", page)
    for label in report["rows"].values():
        assert label.replace("'", "&#39;") in page
    assert page.count("<img") == 2  # the longest gap, and the median error
    assert list(report["rows"]) == ["copy", "ceiling", "model", "population", "latent"]
    assert f"{report['whole']['metrics']['model']['psnr_brain']['value']:.2f}" in page
    assert answer["regions"]["main"] == "fluid"  # these brains are in no template's space
    assert "not registered" in page
    # The hole in these brains grows by age, and is all their fluid.
    rows = read_rows(out / "pairs.csv")
    assert all(float(row["target_fluid_ml"]) > float(row["previous_fluid_ml"]) for row in rows)
    assert all(row["copy_fluid_change_ml"] == "0" for row in rows)
    changed = {name: float(rows[0][f"model_{name}_ml"]) for name in ("fluid", "grey", "white")}
    assert sum(changed.values()) == pytest.approx(sum(float(rows[0][f"copy_{one}_ml"]) for one in changed), rel=1e-5)


def test_twice_is_the_same_page_but_for_its_name(
    trained: Path, asked: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    ask(trained, tmp_path)
    for name in ("pairs.csv", "report.html"):
        assert (tmp_path / name).read_bytes() == (asked[0] / name).read_bytes()


def test_learning_from_generated_brains_is_compared_on_real_ones(trained: Path, tmp_path: Path) -> None:
    found = ask(trained, tmp_path, downstream=True, skip_example=True)["downstream"]
    splits = json.loads((trained / "run" / "splits.json").read_text())
    scans = {scan_id for name in splits["train"] for scan_id in name.split(" ")}
    assert found["num_real"] == len(scans)
    assert 0 < found["num_generated"] <= 2 * len(scans)
    assert found["num_judged"] == 2 * len(find_pairs(trained))
    assert {row: sorted(told) for row, told in found["metrics"].items()} == {
        "real": ["mae", "r2"],
        "real_and_generated": ["mae", "r2"],
    }
    assert "<img" not in (tmp_path / "report.html").read_text()


def test_a_run_that_tells_age_reads_it_off_every_row(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cohort = write_age_cohort(tmp_path / "cohort")
    fit(tiny(loop=LoopConfig(num_epochs=1, select_by="val_mae")), store=cohort.uri, out=str(tmp_path / "age"))
    found = ask(trained, tmp_path / "out", age_model=str(tmp_path / "age"), skip_example=True)["read_age"]
    assert found["reader"].startswith("brainrotvit (")
    # The two cohorts give people ids of one kind; who they are is not said.
    split = json.loads((tmp_path / "age" / "splits.json").read_text())
    known = {name.removeprefix("sub-").removesuffix("_T1w") for side in ("train", "val") for name in split[side]}
    judged = {first.subject for first, _ in find_pairs(trained)}
    said = [text for text in caplog.messages if "age model was trained" in text]
    assert len(said) == 1
    assert f"{len(judged & known)} of the {len(judged)} people judged here, if people of one id" in said[0]
    assert said[0] in json.loads((tmp_path / "out" / "report.json").read_text())["warnings"]
    assert list(found["rows"]) == ["target", "copy", "ceiling", "model", "population", "latent"]
    row = read_rows(tmp_path / "out" / "pairs.csv")[0]
    # What it says of the brain of the stored scan itself, on a scale of its own.
    store, model = ScanStore(trained / "store"), load_measure_model(tmp_path / "age" / "model")
    scan, record = store.read(row["previous"]), store.record(row["previous"])
    scaled, brain = scale_brain(scan.voxels, None)
    shown = Scan(voxels=np.where(brain, (scaled + 1) * 500, 0).astype(np.float32), affine=scan.affine)
    said = model.answer(model.encode(shown), record.sex).value
    assert float(row["previous_age_read_years"]) == pytest.approx(said, rel=1e-5)
    assert row["copy_age_read_years"] == row["previous_age_read_years"]
    card = {"profile": {"options": {"name": "n4"}, "sha256": "0" * 64, "made_with": {}}}
    with pytest.raises(EvaluationError, match="prepared otherwise"):
        load_run_age(str(tmp_path / "age"), card, device="cpu")


def test_a_tokenizer_is_judged_by_itself(trained: Path, tmp_path: Path) -> None:
    answer = evaluate.run(evaluate.Args(run=str(trained / "tokenizer"), out=str(tmp_path / "out"), num_resamples=200))
    store, tokenizer = ScanStore(trained / "store"), load_tokenizer(str(trained / "tokenizer"))
    read = BrainVolumeReader(store.uri, store.version, tokenizer.grid)
    rows = read_rows(tmp_path / "out" / "scans.csv")
    splits = json.loads((trained / "tokenizer" / "splits.json").read_text())
    assert [row["scan_id"] for row in rows] == sorted(splits["test"])
    row = read(ReadItem(scan_id=rows[0]["scan_id"]))
    volume = torch.from_numpy(np.array(row["volume"]))[None]
    made = tokenizer.model.decode(tokenizer.model.encode(volume), tokenizer.grid)[0].numpy()
    for name, value in compare_volumes(made, row["volume"], row["brain"]).items():
        assert float(rows[0][name]) == pytest.approx(value, rel=1e-7)
    tokens = torch.cat(
        [
            tokenizer.model.encode(torch.from_numpy(np.array(read(ReadItem(scan_id=name))["volume"]))[None])
            for name in splits["train"]
        ]
    )
    usage = answer["usage"]["train"]
    assert usage["used"] == pytest.approx(len(tokens.unique()) / 24)
    assert [scale["most"] for scale in usage["scales"]] == [24, 24, 24]
    share = torch.bincount(tokens[:, :8].flatten()).double() / tokens[:, :8].numel()
    entropy = -(share[share > 0] * share[share > 0].log()).sum()
    assert usage["scales"][0]["perplexity"] == pytest.approx(float(entropy.exp()))
    page = (tmp_path / "out" / "report.html").read_text()
    assert "sub-" not in page
    assert page.count("<img") == 1
    assert any("25" in warning for warning in answer["warnings"])


def test_perceptual_distance_stands_in_every_row_where_weights_are_given(
    trained: Path, asked: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    torch.manual_seed(2)
    save_file(timm.create_model("resnet10t", pretrained=False).state_dict(), tmp_path / "weights.safetensors")
    network = {"perceptual_weights": str(tmp_path / "weights.safetensors"), "perceptual_network": "resnet10t"}
    answer = ask(trained, tmp_path / "out", skip_example=True, **network)
    meter = open_perceptual_meter(network["perceptual_weights"], network="resnet10t")
    store, model = ScanStore(trained / "store"), load_ageing_model(str(trained / "run"))
    read = BrainVolumeReader(store.uri, store.version, model.grid)
    rows, report = read_rows(tmp_path / "out" / "pairs.csv"), json.loads((tmp_path / "out" / "report.json").read_text())
    for row in rows:
        first, second = (read(ReadItem(scan_id=row[name])) for name in ("previous", "target"))
        said = meter.measure(first["volume"], second["volume"], np.array(second["brain"]))
        assert float(row["copy_perceptual"]) == pytest.approx(said, rel=1e-6)
    for name in report["rows"]:
        mean = np.mean([float(row[f"{name}_perceptual"]) for row in rows])
        assert report["whole"]["metrics"][name]["perceptual"]["value"] == pytest.approx(mean, rel=1e-6)
        assert mean > 0
    assert report["perceptual"]["weights_sha256"] == meter.sha256
    assert report["measured"]["perceptual"]["better"] == "lower"
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Perceptual distance</th>" in page
    assert "Perceptual distance" in answer["text"]
    # Without weights it is nowhere but in the line that says so.
    without = json.loads((asked[0] / "report.json").read_text())
    assert without["perceptual"] is None
    assert "perceptual" not in without["measured"]
    assert (asked[0] / "report.html").read_text().count("erceptual") == asked[1]["text"].count("erceptual") == 2
    asked_tokenizer = evaluate.Args(
        run=str(trained / "tokenizer"), out=str(tmp_path / "t"), num_resamples=20, **network
    )
    found = evaluate.run(asked_tokenizer)
    scores = [float(row["perceptual"]) for row in read_rows(tmp_path / "t" / "scans.csv")]
    assert found["metrics"]["perceptual"]["value"] == pytest.approx(np.mean(scores), rel=1e-6)


def write_labels(store: ScanStore, record: Any, folder: Path) -> dict[str, np.ndarray]:
    """The hole as ventricles and a slab of the ball as hippocampus, one on its other side for the older."""
    voxels = store.read(record.scan_id).voxels
    is_older = record.session == "02"
    slab = np.zeros(voxels.shape, bool)
    slab[4 : 6 if is_older else 7, 5:14, 5:12] = True
    masks = {"hippocampus": slab, "lateral ventricles": (voxels > 0) & (voxels < 400)}
    labels = np.select([masks["lateral ventricles"], slab], [4, 53], 0).astype(np.int16)
    image = nib.Nifti1Image(labels, np.array(record.affine).reshape(4, 4))
    nib.save(image, folder / f"sub-{record.subject}_ses-{record.session}_dseg.nii.gz")
    return {"hippocampus": labels == 53, "lateral ventricles": labels == 4}


def sum_tissue(volume: np.ndarray, brain: np.ndarray, tissue: str, place: np.ndarray) -> float:
    """Voxels' worth of a tissue at a place."""
    shares = share_tissues(volume, brain)
    assert shares is not None
    return float(shares[tissue][place].sum(dtype=np.float64))


def test_labelled_structures_are_measured_where_labels_are(trained: Path, tmp_path: Path) -> None:
    store, pairs = ScanStore(trained / "store"), find_pairs(trained)
    maps = tmp_path / "maps"
    maps.mkdir()
    told = {one.scan_id: write_labels(store, one, maps) for pair in pairs[1:] for one in pair}
    answer = ask(trained, tmp_path / "out", skip_example=True, label_maps=str(maps))
    rows = {row["previous"]: row for row in read_rows(tmp_path / "out" / "pairs.csv")}
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    regions = report["regions"]["rows"]
    assert report["regions"]["labels"]["num_pairs"] == len(pairs) - 1
    assert report["regions"]["labels"]["num_pairs_without"] == 1
    assert rows[pairs[0][0].scan_id]["target_hippocampus (labels)_ml"] == ""
    model = load_ageing_model(str(trained / "run"))
    read = VisitReader(store, model.tokenizer, model.grid)
    true, predicted = [], []
    for first, second in pairs[1:]:
        row, visit = rows[first.scan_id], read(first)
        made = ModelTeller(model).tell(visit, second.age_years)
        for structure, tissue in (("hippocampus", "grey"), ("lateral ventricles", "fluid")):
            region = f"{structure} (labels)"
            before, after = (float(told[one.scan_id][structure].sum()) * 0.064 for one in (first, second))
            assert float(row[f"previous_{region}_ml"]) == pytest.approx(before)
            assert float(row[f"target_{region}_ml"]) == pytest.approx(after)
            assert row[f"copy_{region}_change_ml"] == "0"
            # Voxels are of 4 mm, so that nothing but the label itself is within 2 mm.
            place = fit_grid(told[first.scan_id][structure], model.grid)
            sums = [
                sum_tissue(volume, brain, tissue, place)
                for volume, brain in (
                    (made.volume, visit.brain),
                    (made.start, visit.brain),
                    *((one.volume, one.brain) for one in (read(second), visit)),
                )
            ]
            change, real = (sums[0] - sums[1]) * 0.064, (sums[2] - sums[3]) * 0.064
            assert float(row[f"model_{region}_change_ml"]) == pytest.approx(change, rel=1e-5, abs=1e-9)
            assert float(row[f"real_{region}_change_ml"]) == pytest.approx(real, rel=1e-5, abs=1e-9)
            assert float(row[f"model_{region}_ml"]) == pytest.approx(before + change, rel=1e-6)
            if structure == "hippocampus":
                true.append(after - before)
                predicted.append(change)
    found = regions["hippocampus (labels)"]["model"]
    assert found["num_pairs"] == len(pairs) - 1 >= 2
    assert found["change"]["mae"]["value"] == pytest.approx(np.abs(np.subtract(predicted, true)).mean(), rel=1e-5)
    assert found["volume_error_ml"]["value"] == pytest.approx(found["change"]["mae"]["value"], rel=1e-5)
    assert regions["fluid"]["model"]["num_pairs"] == len(pairs)
    assert next(iter(regions["hippocampus (labels)"])) == "real"
    assert "real" not in regions["fluid"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"Hippocampus (labels), {len(pairs) - 1} pairs" in page
    assert "hippocampus (labels): predicted and true change" in answer["text"]


def test_a_tokenizer_is_not_asked_what_it_cannot_tell(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="neuroar_vqvae is not judged") as refused:
        evaluate.run(
            evaluate.Args(run=str(trained / "tokenizer"), out=str(tmp_path), backward=True, age_model=str(trained))
        )
    assert "--backward --age-model" in str(refused.value)
    with pytest.raises(EvaluationError, match="no finished run"):
        evaluate.run(evaluate.Args(run=str(tmp_path / "nowhere"), out=str(tmp_path), backward=True))


def test_the_model_card_takes_the_evaluation(trained: Path, asked: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    report = str(asked[0] / "report.json")
    export.run(export.Args(run=str(trained / "run"), out=str(tmp_path / "out"), report=report, licence="CC0-1.0"))
    card = next((tmp_path / "out").glob("*.md")).read_text()
    told = json.loads(Path(report).read_text())["whole"]["metrics"]
    for row in ("copy", "ceiling", "model"):
        assert f"{told[row]['psnr_brain']['value']:.2f} dB" in card


def test_a_target_is_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="has no target"):
        ask(trained, tmp_path, target="age_years")


def test_people_without_two_visits_are_no_evidence(trained: Path, tmp_path: Path) -> None:
    copied = tmp_path / "run"
    copied.mkdir()
    for path in ("config.json", "metrics.jsonl", "result.json"):
        (copied / path).write_bytes((trained / "run" / path).read_bytes())
    (copied / "model").symlink_to(trained / "run" / "model")
    splits = json.loads((trained / "run" / "splits.json").read_text())
    splits["test"] = [splits["test"][0].split(" ")[0]]
    (copied / "splits.json").write_text(json.dumps(splits))
    with pytest.raises(EvaluationError, match="two visits at different ages"):
        evaluate.run(evaluate.Args(run=str(copied), out=str(tmp_path / "out")))


def test_the_grids_place_in_the_world_is_the_scans() -> None:
    affine = np.array([[4.0, 0, 0, -30], [0, 3.0, 0, 11], [0, 0, 2.0, 7], [0, 0, 0, 1]])
    record = ScanRecord(
        scan_id="a", subject="a", modality="T1w", path="", shape=(17, 19, 22), dtype="float32", zooms_mm=(4, 3, 2),
        affine=tuple(affine.ravel()), voxels_sha256="", manifest_sha256="", size_bytes=0, written_at="",
    )  # fmt: skip
    voxels = np.zeros((17, 19, 22), np.float32)
    voxels[5, 6, 9] = 1
    index = np.argwhere(fit_grid(voxels, (20, 20, 20)) == 1)[0]
    world = place_grid(record, (20, 20, 20)) @ [*index, 1]
    assert world == pytest.approx(Scan(voxels=voxels, affine=affine).affine @ [5, 6, 9, 1])
