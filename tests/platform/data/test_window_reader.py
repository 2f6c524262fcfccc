"""Windows into batches: stored numbers, one array, z-scores as the formula says, on odd sizes."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neuroray.platform.data.collate import ITEM, RowError, size_bytes, stack_rows, to_torch
from neuroray.platform.data.dataset import batch_stream
from neuroray.platform.data.plan import Plan, PlanConfig, PlanError, ReadItem, StepRead
from neuroray.platform.data.readers import Buffers, read_step
from neuroray.platform.data.standardise import standardise
from neuroray.platform.data.window_reader import WindowReader
from neuroray.platform.data.windows import WindowConfig, choose_windows
from neuroray.storage.faults import StoreError
from neuroray.storage.scan import Encoding, Scan
from neuroray.storage.store import ScanStore

SLOPE, INTERCEPT = 0.5, -20.0


@pytest.fixture
def runs(tmp_path: Path) -> ScanStore:
    """Three masked runs: one in int16 as it is, one scaled, one on another grid; and a volume."""
    store = ScanStore.create(tmp_path / "runs")
    generator = np.random.default_rng(3)
    for name, shape in {"plain": (23, 7, 5, 9), "other-grid": (9, 6, 5, 9), "head": (7, 5, 9)}.items():
        voxels = generator.integers(1, 900, shape).astype(np.int16)
        voxels[..., :2] = 0
        scan = Scan(voxels=voxels, affine=np.eye(4), repetition_time_s=0.8 if len(shape) == 4 else None)
        store.write(scan, scan_id=name, subject=name, modality="bold")
    stored = generator.integers(0, 900, (17, 7, 5, 9)).astype(np.int16)
    stored[..., 3] = 40  # a value of 0
    values = (stored.astype(np.float64) * SLOPE + INTERCEPT).astype(np.float32)
    encoding = Encoding(dtype="int16", slope=SLOPE, intercept=INTERCEPT)
    scan = Scan(voxels=values, affine=np.eye(4), repetition_time_s=0.8, encoding=encoding)
    store.write(scan, scan_id="scaled", subject="scaled", modality="bold")
    return store


@pytest.fixture
def brain(monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """A mask that is not what is above 0, given by the store for every scan."""
    mask = np.zeros((7, 5, 9), bool)
    mask[2:5, 1:4, 3:8] = True
    monkeypatch.setattr(ScanStore, "read_mask", lambda self, scan_id: mask)
    return mask


def open_reader(store: ScanStore, **options: Any) -> WindowReader:
    return WindowReader(store.uri, store.version, **options)


def item(scan_id: str, start: int, stop: int, padding: int = 0) -> ReadItem:
    return ReadItem(scan_id=scan_id, start=start, stop=stop, padding=padding)


def test_a_batch_holds_stored_numbers_and_what_they_mean(runs: ScanStore) -> None:
    reader = open_reader(runs, labels={"plain": 1, "scaled": 0})
    batch = reader.read_batch([item("plain", 3, 11), item("scaled", 9, 17)])
    assert batch["voxels"].dtype == np.int16
    values = batch["voxels"] * batch["slope"][:, None, None, None, None] + batch["intercept"][:, None, None, None, None]
    assert np.array_equal(values[0], runs.read("plain").voxels[3:11])
    assert np.array_equal(values[1].astype(np.float32), runs.read("scaled").voxels[9:17])
    assert batch["slope"].tolist() == [1.0, SLOPE]
    known = [runs.read_statistics(name) for name in ("plain", "scaled")]
    assert batch["mean"].tolist() == [one.mean for one in known if one]
    assert batch["std"].tolist() == [one.std for one in known if one]
    assert batch["minimum"].tolist() == [one.min for one in known if one]
    assert batch["first_frame"].tolist() == [3, 9]
    assert batch["label"].tolist() == [1, 0]
    assert batch["frame_mask"].all()


def test_a_batch_read_at_once_is_the_stack_of_its_rows(runs: ScanStore, brain: np.ndarray) -> None:
    reader = open_reader(runs, labels={"plain": 1.5, "scaled": 2.5}, with_brain=True)
    items = [item("scaled", 0, 5), item("plain", 18, 22, padding=1), item("plain", 2, 7)]
    at_once = read_step(reader, StepRead(0, [4, 0, 1], items))
    stacked = stack_rows([reader(one) for one in items], items, [4, 0, 1])
    assert at_once.keys() == stacked.keys()
    for name, values in stacked.items():
        assert at_once[name].dtype == values.dtype, name
        assert np.array_equal(at_once[name], values), name
    assert sum(map(reader.size_bytes, items)) + 8 * 3 == size_bytes(at_once)


def test_padding_is_masked_and_zero(runs: ScanStore) -> None:
    batch = open_reader(runs).read_batch([item("plain", 20, 23, padding=4)])
    assert batch["frame_mask"].tolist() == [[True] * 3 + [False] * 4]
    assert (batch["voxels"][0, 3:] == 0).all()
    assert np.array_equal(batch["voxels"][0, :3], runs.read("plain").voxels[20:])


def test_z_scores_follow_the_formula_with_background_at_the_lowest(runs: ScanStore) -> None:
    batch = open_reader(runs).read_batch([item("plain", 0, 17), item("scaled", 0, 17)])
    found = standardise(to_torch(batch)).numpy()
    for index, name in enumerate(("plain", "scaled")):
        values, known = runs.read(name).voxels[:17].astype(np.float64), runs.read_statistics(name)
        assert known is not None
        expected = np.where(values == 0, known.min - known.mean, values - known.mean) / known.std
        # float32: the sum of two rounded numbers of up to 4
        assert np.abs(found[index] - expected).max() < 1e-6
    assert (found[1, ..., 3] == found[1].min()).all(), "a value of 0 is background, whatever is stored for it"


def test_with_a_brain_mask_all_outside_is_background_and_padding_too(runs: ScanStore, brain: np.ndarray) -> None:
    batch = open_reader(runs, with_brain=True).read_batch([item("plain", 20, 23, padding=9)])
    scores, inside = standardise(to_torch(batch), dtype=torch.float16)[0], torch.from_numpy(brain)
    known = runs.read_statistics("plain")
    assert known is not None
    lowest = np.float16((known.min - known.mean) / known.std)
    assert scores.dtype == torch.float16
    assert (scores[:, ~inside] == lowest).all()
    assert (scores[3:] == lowest).all()
    values = torch.from_numpy(runs.read("plain").voxels[20:].astype(np.float32))[:, inside]
    expected = ((values - known.mean) / known.std).half()
    torch.testing.assert_close(scores[:3, inside], expected, atol=1e-6, rtol=1e-3)  # 11 bits


def test_a_scan_without_spread_has_no_z_scores(runs: ScanStore) -> None:
    batch = to_torch(open_reader(runs).read_batch([item("plain", 0, 2)]))
    with pytest.raises(ValueError, match="without spread"):
        standardise({**batch, "std": torch.zeros_like(batch["std"])})


@pytest.mark.parametrize("other", [item("other-grid", 0, 8), item("plain", 0, 7)])
def test_windows_that_do_not_fit_are_told(runs: ScanStore, other: ReadItem) -> None:
    with pytest.raises(RowError, match=r"given int16 \(., ., 5, 9\), int16 \(8, 7, 5, 9\)"):
        open_reader(runs).read_batch([item("plain", 0, 8), other])


def test_what_cannot_be_read_is_told(runs: ScanStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match=r"scan plain .* has no brain mask"):
        open_reader(runs, with_brain=True).read_batch([item("plain", 0, 8)])
    monkeypatch.setattr(ScanStore, "read_statistics", lambda self, scan_id: None)
    with pytest.raises(
        StoreError, match=r"scan other-grid .* has no statistics; likely fix: ingest it with the profile"
    ):
        open_reader(runs).read_batch([item("other-grid", 0, 8)])
    with pytest.raises(PlanError, match="head has no frames"):
        open_reader(runs).read_batch([ReadItem(scan_id="head")])
    with pytest.raises(PlanError, match="frames 20 to 24"):
        open_reader(runs).read_batch([item("plain", 20, 24)])


def test_buffers_are_used_again_and_grow(runs: ScanStore) -> None:
    reader, buffers = open_reader(runs), Buffers()
    windows = [[item("plain", 3, 11), item("scaled", 9, 17)], [item("plain", 0, 5)], [item("plain", 0, 23)]]
    for items in windows:
        assert np.array_equal(reader.read_batch(items, buffers)["voxels"], reader.read_batch(items)["voxels"])
    first = reader.read_batch(windows[1], buffers)["voxels"]
    again = reader.read_batch(windows[0], buffers)["voxels"]
    assert np.shares_memory(first, again)


def test_a_pickled_reader_reads_the_same_without_statistics(runs: ScanStore) -> None:
    reader = pickle.loads(pickle.dumps(open_reader(runs, with_statistics=False)))
    row = reader(ReadItem(scan_id="plain"))
    assert np.array_equal(row["voxels"], runs.read("plain").voxels)
    assert row.keys() == {"voxels", "frame_mask", "first_frame", "slope", "intercept"}
    assert reader.size_bytes(ReadItem(scan_id="plain")) == size_bytes(row)


def test_a_stream_of_covering_windows_gives_every_frame_of_every_run(runs: ScanStore) -> None:
    counts = {"plain": 23, "scaled": 17}
    config = WindowConfig(sampler="cover", num_frames=5, tail="pad")
    plan = Plan(
        items=choose_windows(tuple(counts), counts, config), config=PlanConfig(batch_size=3, sampling="in_order")
    )
    frames: dict[str, list[np.ndarray]] = {"plain": [], "scaled": []}
    for rank in range(2):
        for _, batch in batch_stream(
            plan, open_reader(runs, with_statistics=False), rank=rank, world_size=2, feed="direct"
        ):
            for index, window, mask in zip(batch[ITEM], batch["voxels"], batch["frame_mask"], strict=True):
                one = plan.item(int(index), 0)
                frames[one.scan_id].append((one.start, window[mask].numpy()))
    for name, found in frames.items():
        joined = np.concatenate([window for _, window in sorted(found, key=lambda pair: pair[0])])
        stored = runs.read_stored(name, 0, counts[name]).frames
        assert np.array_equal(joined, stored)


@pytest.mark.ray
def test_windows_through_ray_are_the_same_bytes(runs: ScanStore, ray_session: Any) -> None:
    counts = {"plain": 23, "scaled": 17}
    config = WindowConfig(sampler="random", num_frames=6, per_scan=3)
    plan = Plan(items=choose_windows(tuple(counts), counts, config), config=PlanConfig(batch_size=4), num_epochs=2)
    labels = {"plain": (0.0, 101.5), "scaled": (1.0, 99.0)}  # of two targets
    reader = open_reader(runs, with_statistics=False, labels=labels)
    by_ray, direct = (list(batch_stream(plan, reader, feed=feed)) for feed in ("ray", "direct"))
    assert [step for step, _ in by_ray] == [step for step, _ in direct] == list(range(4))
    for (_, one), (_, other) in zip(by_ray, direct, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_frames_without_a_brain_and_values_that_are_no_numbers_become_background() -> None:
    generator = torch.Generator().manual_seed(0)
    voxels = torch.randint(100, 900, (1, 11, 3, 4, 5), generator=generator).float()
    brain = torch.zeros(1, 3, 4, 5, dtype=torch.bool)
    brain[0, 1:, :3, 1:4] = True
    voxels[0, 2] = 0  # not acquired
    voxels[0, 9][brain[0]] = 7  # all of one value
    voxels[0, 4, 2, 1, 2], voxels[0, 4, 1, 1, 1] = torch.nan, torch.inf
    one = torch.ones(1)
    batch = {"voxels": voxels, "frame_mask": torch.ones(1, 11, dtype=torch.bool), "brain": brain, "slope": one}
    batch |= {"intercept": 0 * one, "mean": 500 * one, "std": 200 * one, "minimum": 100 * one}
    scores = standardise(batch)
    assert (scores[0, [2, 9]] == -2).all()
    assert scores[0, 4, 2, 1, 2] == scores[0, 4, 1, 1, 1] == -2
    assert float(scores[0, 3, 1, 1, 1]) == pytest.approx((float(voxels[0, 3, 1, 1, 1]) - 500) / 200)
    whole = standardise({**batch, "voxels": voxels.nan_to_num(500, 500, 500).short()})
    assert torch.equal(whole[0, 5], scores[0, 5])
