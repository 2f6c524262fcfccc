from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from neuroray.platform.data.extract import ExtractionError, SliceExtractor, extract_features
from neuroray.platform.models.dinoatten3d import DinoAtten3DConfig
from neuroray.platform.models.layers.encoder import SliceEncoderConfig
from neuroray.platform.models.layers.slices import SliceStackConfig
from neuroray.storage.features import FeatureStore
from neuroray.storage.store import ScanStore

VOLUMES = ["scan-0", "scan-1", "scan-2", "scan-3"]


def make_config(seed: int = 0, num_slices: int = 6) -> DinoAtten3DConfig:
    return DinoAtten3DConfig(
        slices=SliceStackConfig(image_size=32, num_slices=num_slices),
        encoder=SliceEncoderConfig(backbone="test_vit", seed=seed),
    )


def test_features_are_what_the_model_encodes(store: ScanStore) -> None:
    config = make_config(num_slices=12)
    done = extract_features(store, config, VOLUMES)
    features = FeatureStore(store, done.fingerprint)
    model = config.build()
    for scan_id in VOLUMES:
        scan, found = store.read(scan_id), features.read(scan_id)
        volume = torch.from_numpy(scan.voxels.astype(np.float32))
        expected = model.encode(volume, spacing_mm=scan.zooms_mm)
        assert np.array_equal(found.features, expected.features.numpy())
        assert np.array_equal(found.mask, expected.mask.numpy())
        assert np.array_equal(found.slice_index, expected.slice_index.numpy())
    assert (done.extracted, done.num_present, done.num_slices) == (tuple(VOLUMES), 0, 12)
    assert done.num_channels == features.read("scan-0").features.shape[1]
    assert done.fingerprint == model.encoder.fingerprint(config.slices)


def test_positions_kept_with_features_are_world_coordinates_of_slice_middles(store: ScanStore) -> None:
    config = make_config()
    report = extract_features(store, config, ["scan-2"])
    kept = FeatureStore(store, report.fingerprint).read("scan-2")
    record = store.record("scan-2")
    affine = np.array(record.affine).reshape(4, 4)
    i, j = (record.shape[0] - 1) / 2, (record.shape[1] - 1) / 2
    expected = [(affine @ [i, j, k, 1])[2] if k >= 0 else np.nan for k in kept.slice_index]
    assert kept.position_mm.dtype == np.float32
    np.testing.assert_allclose(kept.position_mm, expected, rtol=1e-6)  # float32 keeps seven digits


def test_only_what_is_missing_is_made(store: ScanStore) -> None:
    extract_features(store, make_config(), VOLUMES[:2])
    seen: list[int] = []

    def track(made: Iterable[Any], total: int) -> Iterator[Any]:
        seen.append(total)
        return iter(made)

    again = extract_features(store, make_config(), [*VOLUMES, "scan-0"], track=track)
    assert (again.extracted, again.num_present, seen) == (("scan-2", "scan-3"), 2, [2])
    assert extract_features(store, make_config(), VOLUMES).extracted == ()


def test_another_encoder_has_features_of_its_own(store: ScanStore) -> None:
    first = extract_features(store, make_config(seed=0), VOLUMES[:1])
    second = extract_features(store, make_config(seed=1), VOLUMES[:1])
    assert first.fingerprint != second.fingerprint
    assert second.extracted == ("scan-0",)


def test_a_run_that_breaks_off_keeps_what_it_made(store: ScanStore) -> None:
    with pytest.raises(ExtractionError, match="scan-4 is no volume; given shape"):
        extract_features(store, make_config(), [*VOLUMES[:3], "scan-4", "scan-3"], commit_every=2)
    again = extract_features(store, make_config(), VOLUMES)
    assert (again.extracted, again.num_present) == (("scan-3",), 3)


def test_commits_come_in_groups(store: ScanStore, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    commit = FeatureStore.commit
    monkeypatch.setattr(
        FeatureStore, "commit", lambda self, records: (sizes.append(len(records)), commit(self, records))
    )
    extract_features(store, make_config(), VOLUMES, commit_every=3)
    assert sizes == [3, 1]


def test_an_encoder_that_turns_out_to_be_another_is_refused(store: ScanStore) -> None:
    with pytest.raises(ExtractionError, match="not the one that was asked for"):
        SliceExtractor(store.uri, store.version, make_config(seed=1), fingerprint="0" * 64)


@pytest.mark.ray
def test_an_actor_makes_the_same_features_and_its_errors_arrive_whole(ray_session: Any, store: ScanStore) -> None:
    with pytest.raises(ExtractionError, match="scan-4 is no volume"):
        extract_features(store, make_config(), [*VOLUMES, "scan-4"], num_workers=1)
    here = SliceExtractor(store.uri, store.version, make_config())
    made = here.features.records()
    assert len(made) >= 3  # two scans are read at a time, so that the last one can overtake one other at most
    for scan_id, by_actor in made.items():
        record = here.extract(store.record(scan_id), store.read(scan_id).voxels.astype(np.float32))
        # The group's path carries the digest of its arrays: the same bytes, the same path.
        assert by_actor.path == record.path
