"""Labelled structures: true volumes, places on the model's grid through the stored transform, pairs without maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from neuroray.platform.evaluate.labelled_regions import name_region, open_label_maps, surround, tell_labels
from neuroray.platform.evaluate.metrics import EvaluationError
from neuroray.platform.evaluate.visits import Visit, VisitPair, place_grid
from neuroray.storage.bids import Participant
from neuroray.storage.label_maps import LabelMap, LabelMapError
from neuroray.storage.profiles import NativeGrid, Prepared, TemplateTransform, find_profile
from neuroray.storage.scan import Scan
from neuroray.storage.store import ScanStore

NATIVE = np.array([[1.5, 0, 0, -30], [0, 2.0, 0, -28], [0, 0, 1.0, -20], [0, 0, 0, 1]])
NATIVE_SHAPE = (40, 30, 41)
TO_TEMPLATE = np.array([[1.1, 0.05, 0, 3], [-0.04, 0.95, 0.1, -4], [0, -0.1, 1.05, 2], [0, 0, 0, 1]])
GRID = np.array([[4.0, 0, 0, -38], [0, 4.0, 0, -36], [0, 0, 4.0, -30], [0, 0, 0, 1]])


def draw_labels(length: int = 12) -> np.ndarray:
    """A hippocampus with an amygdala right before it, and ventricles far off."""
    labels = np.zeros(NATIVE_SHAPE, np.int16)
    labels[10:16, 8 : 8 + length, 12:20] = 17
    labels[10:16, 4:8, 12:20] = 18
    labels[25:33, 10:20, 25:35] = 43
    return labels


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ScanStore:
    """Two people with two visits each, brought to a template and stretched by it."""
    made = ScanStore.create(str(tmp_path_factory.mktemp("store") / "store"))
    transform = TemplateTransform(
        template="T", affine=TO_TEMPLATE, native=NativeGrid(shape=NATIVE_SHAPE, affine=NATIVE)
    )
    for name, visit, age in (("a", 1, 60.0), ("a", 2, 66.0), ("b", 1, 70.0), ("b", 2, 73.0)):
        voxels = np.random.default_rng(visit).uniform(1, 2, (19, 18, 17)).astype(np.float32)
        made.write(
            Prepared(scan=Scan(voxels=voxels, affine=GRID), profile=find_profile("mni_grid"), to_template=transform),
            scan_id=f"sub-{name}_ses-{visit}_T1w",
            subject=name,
            modality="T1w",
            participant=Participant(subject=name, age_years=age),
        )
    return made


def pairs(store: ScanStore) -> list[VisitPair]:
    found = {record.scan_id: record for record in store.records()}
    return [
        VisitPair(previous=found[f"sub-{name}_ses-1_T1w"], target=found[f"sub-{name}_ses-2_T1w"]) for name in ("a", "b")
    ]


def write(folder: Path, name: str, labels: np.ndarray, affine: np.ndarray = NATIVE) -> None:
    folder.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(labels, affine), folder / f"{name}.nii.gz")


def see(record: Any) -> Visit:
    volume = np.zeros((20, 20, 16), np.float32)
    return Visit(record=record, volume=volume, brain=volume == 0, tokens=torch.zeros(1, 1, dtype=torch.int64))


def test_true_volumes_are_those_of_the_files_own_voxels(store: ScanStore, tmp_path: Path) -> None:
    for visit, length in ((1, 12), (2, 9)):
        write(tmp_path, f"sub-a_ses-{visit}_T1w", draw_labels(length))
    meter = open_label_maps(str(tmp_path), store, pairs(store))
    pair, without = pairs(store)
    changes = {"copy": {"hippocampus (labels)": 0.0}, "model": {"hippocampus (labels)": -0.25}}
    for told in changes.values():
        told |= {"amygdala (labels)": 0.0, "lateral ventricles (labels)": 1.0}
    measured: dict[str, dict[str, float]] = {name: {"fluid": 3.0} for name in ("previous", "target", "copy", "model")}
    meter.anchor(pair, measured, changes)
    # 6 by 12 or 9 by 8 voxels of 1.5 by 2 by 1 mm.
    before, after = 6 * 12 * 8 * 3 / 1000, 6 * 9 * 8 * 3 / 1000
    assert measured["previous"]["hippocampus (labels)"] == pytest.approx(before)
    assert measured["target"]["hippocampus (labels)"] == pytest.approx(after)
    assert measured["copy"]["hippocampus (labels)"] == pytest.approx(before)
    assert measured["model"]["hippocampus (labels)"] == pytest.approx(before - 0.25)
    assert measured["model"]["fluid"] == 3.0
    assert meter.shared(without) == []
    assert meter.places(see(without.previous), see(without.target)) == {}
    assert (meter.num_known, meter.num_pairs) == (1, 2)
    assert "1 of 2 pairs" in tell_labels(meter)
    assert "1 pairs without" in tell_labels(meter)
    assert meter.to_json()["structures"] == {"hippocampus": 2, "amygdala": 2, "lateral ventricles": 2}


def test_structures_are_looked_for_where_they_lie_in_the_template(store: ScanStore, tmp_path: Path) -> None:
    labels = draw_labels()
    for visit in (1, 2):
        write(tmp_path, f"sub-a_ses-{visit}_T1w", labels)
    meter, pair = open_label_maps(str(tmp_path), store, pairs(store)), pairs(store)[0]
    places = meter.places(see(pair.previous), see(pair.target))
    assert {name: tissue for name, (tissue, _) in places.items()} == {
        name_region("hippocampus"): "grey",
        name_region("amygdala"): "grey",
        name_region("lateral ventricles"): "fluid",
    }
    own, other = (np.argwhere(labels == number) for number in (17, 18))
    grid = place_grid(pair.previous, (20, 20, 16))
    place = places[name_region("hippocampus")][1]
    assert place is not None
    assert place.any()
    zooms = np.array([1.5, 2.0, 1.0])
    for index in np.ndindex(place.shape):
        world = np.linalg.solve(TO_TEMPLATE, grid @ [*index, 1.0])
        exact = np.linalg.solve(NATIVE, world)[:3]
        near = np.round(exact)
        if np.abs(exact - near).max() > 0.49:
            continue  # between two voxels: either may be nearest
        is_near = np.sqrt((((own - near) * zooms) ** 2).sum(axis=1).min()) <= 2.0
        assert bool(place[index]) == (is_near and not (other == near).all(axis=1).any()), index


def test_two_millimetres_around_are_millimetres_and_leave_neighbours_alone() -> None:
    labels = draw_labels().astype(np.int32)
    structures = {"hippocampus": frozenset({17}), "amygdala": frozenset({18}), "lateral ventricles": frozenset({43})}
    near = surround(LabelMap(labels=labels, affine=NATIVE, structures=structures), "hippocampus")
    rim = np.argwhere(near)
    # 1.5 mm voxels: one more; 2 mm: one more, but for the amygdala's side; 1 mm: two more.
    assert rim.min(axis=0).tolist() == [9, 8, 10]
    assert rim.max(axis=0).tolist() == [16, 20, 21]
    assert not near[labels == 18].any()
    assert near[9, 10, 15]
    assert not near[9, 10, 21]  # 1.5 mm and 2 mm to the side are 2.5 mm
    # Fluid may be looked for in grey matter.
    beside = labels.copy()
    beside[24, 10:20, 25:35] = 17
    assert surround(LabelMap(labels=beside, affine=NATIVE, structures=structures), "lateral ventricles")[24, 12, 30]


def test_maps_that_help_nobody_are_refused(store: ScanStore, tmp_path: Path) -> None:
    write(tmp_path / "one", "sub-a_ses-1_T1w", draw_labels())
    with pytest.raises(EvaluationError, match="no two visits") as refused:
        open_label_maps(str(tmp_path / "one"), store, pairs(store))
    assert "maps of 1 of 4 scans" in str(refused.value)
    # Each a structure that the other has not.
    write(tmp_path / "one", "sub-a_ses-2_T1w", np.where(draw_labels() == 17, 10, 0).astype(np.int16))
    with pytest.raises(EvaluationError, match="in common"):
        open_label_maps(str(tmp_path / "one"), store, pairs(store))
    # On the template's grid, where the store has the scan, and not on that of the file.
    write(tmp_path / "moved", "sub-a_ses-1_T1w", draw_labels()[:19, :18, :17] + np.int16(1), GRID)
    with pytest.raises(LabelMapError, match="another grid than its scan"):
        open_label_maps(str(tmp_path / "moved"), store, pairs(store))
