"""`stats`: counts of people and scans, each where it belongs, and nobody's name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from neuroray.jobs import stats
from neuroray.storage.participants import Participant
from neuroray.storage.scan import Scan
from neuroray.storage.store import ScanStore


def scan(*shape: int, repetition_time_s: float | None = None, flags: tuple[str, ...] = ()) -> Scan:
    values = np.random.default_rng(len(shape)).integers(1, 99, shape).astype(np.int16)
    affine = np.diag([2.0, 2.0, 2.5, 1.0])
    return Scan(voxels=values, affine=affine, repetition_time_s=repetition_time_s, flags=flags)


@pytest.fixture
def store(tmp_path: Path) -> ScanStore:
    store = ScanStore.create(tmp_path / "store")
    people = [
        Participant(subject="anna", session="1", age_years=30, sex="F", family_id="x", site="west"),
        Participant(subject="anna", session="2", age_years=34, sex="F", family_id="x", site="west"),
        Participant(subject="ben", age_years=59, sex="M", family_id="x", site="east", cognition=110),
    ]
    for index, person in enumerate(people):
        options = {"subject": person.subject, "session": person.session, "participant": person}
        store.write(scan(6, 7, 8, flags=("no header: odd",)), scan_id=f"t1-{index}", modality="T1w", **options)
    store.write(scan(5, 6, 7, 8, repetition_time_s=0.8), scan_id="run", subject="cleo", modality="bold")
    return store


def test_people_are_counted_once_and_scans_each(store: ScanStore, tmp_path: Path):
    answer = stats.run(stats.Args(store=store.uri, out=str(tmp_path / "out")))
    assert (answer.num_people, answer.num_scans, answer.num_families) == (3, 4, 1)
    assert answer.num_people_with_several_visits == 1
    assert answer.modalities == {"T1w": 3, "bold": 1}
    assert answer.people == {"sex": {"F": 1, "M": 1}, "diagnosis": {}, "site": {"west": 1, "east": 1}}
    assert (answer.age_years.known, answer.age_years.missing, answer.age_years.median) == (3, 1, 34)
    assert answer.ages_by_decade == {"30-39": 2, "40-49": 0, "50-59": 1}
    assert (answer.cognition.known, answer.cognition.deviation) == (1, None)
    assert answer.grids == {"6 x 7 x 8 at 2 x 2 x 2.5 mm": 4}
    assert (answer.repetition_times_s, answer.frames) == ({"0.8 s": 1}, {"5": 1})
    assert answer.flags == {"no header": 3}
    assert answer.values_bytes == 2 * 6 * 7 * 8 * (3 + 5)
    assert json.loads((tmp_path / "out/run.json").read_text())["num_people"] == 3


def test_nobody_is_named(store: ScanStore):
    told = str(stats.run(stats.Args(store=store.uri))) + json.dumps(stats.run(stats.Args(store=store.uri)).to_json())
    assert not any(name in told.replace(store.uri, "") for name in ("anna", "ben", "cleo", "t1-0"))


def test_an_empty_store_has_nobody(tmp_path: Path):
    answer = stats.run(stats.Args(store=ScanStore.create(tmp_path / "store").uri))
    assert (answer.num_people, answer.num_scans, answer.age_years.median) == (0, 0, None)
    assert "0 scans of 0 people" in str(answer)
