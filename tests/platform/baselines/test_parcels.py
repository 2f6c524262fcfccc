import numpy as np
import pytest
from contracts.planted_runs import AFFINE, GRID, block_labels
from scipy import ndimage
from sklearn.metrics import adjusted_rand_score

from neuroray.platform.baselines.errors import BaselineError
from neuroray.platform.baselines.parcels import ParcelConfig, make_parcels
from neuroray.platform.baselines.series import CleaningConfig
from neuroray.platform.data.atlas import label_spheres, load_roi_atlas
from neuroray.storage.profiles.profile import find_profile
from neuroray.storage.profiles.steps import prepare
from neuroray.storage.scan import Scan
from neuroray.storage.store import ScanStore

CLEANING = CleaningConfig()


class Watched:
    """A store that remembers whose voxels were read."""

    def __init__(self, store):
        self.store, self.seen = store, set()

    def record(self, scan_id):
        return self.store.record(scan_id)

    def read_mask(self, scan_id):
        self.seen.add(scan_id)
        return self.store.read_mask(scan_id)

    def read_window(self, scan_id, start, stop):
        self.seen.add(scan_id)
        return self.store.read_window(scan_id, start, stop)


@pytest.mark.parametrize("method", ["ward", "kmeans"])
def test_regions_are_what_fluctuates_alike(planted, method):
    train = [record.scan_id for record in planted.records()][:20]
    found = make_parcels(planted, train, ParcelConfig(method=method, num_regions=4), CLEANING)
    labels = block_labels()
    assert found.num_regions == 4
    np.testing.assert_array_equal(found.labels > 0, labels > 0)
    # Twenty runs, of 16 projections each, against noise of half the signal: no voxel is in doubt.
    assert adjusted_rand_score(labels[labels > 0], found.labels[labels > 0]) == 1.0


def test_regions_of_ward_hang_together(tmp_path):
    rng, store = np.random.default_rng(0), ScanStore.create(tmp_path / "store")
    for number in range(2):
        voxels = np.zeros((30, *GRID), dtype=np.float32)
        voxels[:, 1:8, 1:9, 1:7] = 500 + rng.standard_normal((30, 7, 8, 6))
        scan = Scan(voxels=voxels, affine=AFFINE, repetition_time_s=2.0)
        run = prepare(scan, find_profile("fmri_minimal"))
        store.write(run, scan_id=f"run-{number}", subject=f"p{number}", modality="bold")
    found = make_parcels(store, ["run-0", "run-1"], ParcelConfig(num_regions=7), CLEANING)
    assert found.num_regions == 7
    for number in range(1, 8):
        assert ndimage.label(found.labels == number)[1] == 1


def test_only_the_training_people_are_looked_at(planted):
    scan_ids = [record.scan_id for record in planted.records()]
    watched = Watched(planted)
    make_parcels(watched, scan_ids[:7], ParcelConfig(num_regions=4), CLEANING)
    assert watched.seen == set(scan_ids[:7])
    watched.seen.clear()
    make_parcels(watched, scan_ids[:21], ParcelConfig(num_regions=4, max_runs=5), CLEANING)
    assert len(watched.seen) == 5
    assert {scan_ids[0], scan_ids[20]} <= watched.seen


def test_the_same_people_give_the_same_regions_in_any_order(planted):
    train = [record.scan_id for record in planted.records()][:9]
    first = make_parcels(planted, train, ParcelConfig(num_regions=6), CLEANING)
    again = make_parcels(planted, train[::-1], ParcelConfig(num_regions=6), CLEANING)
    np.testing.assert_array_equal(first.labels, again.labels)


def test_spheres_follow_each_runs_own_affine(planted):
    found = make_parcels(planted, [], ParcelConfig(method="power"), CLEANING)
    assert found.num_regions == 264
    record = planted.records()[0]
    np.testing.assert_array_equal(found.place(record), label_spheres(load_roi_atlas("power"), GRID, AFFINE))


def test_more_regions_than_voxels_are_refused(planted):
    with pytest.raises(BaselineError, match=r"fewer voxels than regions.*288"):
        make_parcels(planted, ["p000_bold"], ParcelConfig(num_regions=500), CLEANING)


def test_training_runs_on_different_grids_are_refused(tmp_path):
    store = ScanStore.create(tmp_path / "store")
    for number, shape in enumerate([(5, 4, 4, 4), (5, 4, 4, 5)]):
        scan = Scan(voxels=np.ones(shape, dtype=np.float32), affine=AFFINE, repetition_time_s=2.0)
        store.write(scan, scan_id=f"run-{number}", subject=f"p{number}", modality="bold")
    with pytest.raises(BaselineError, match=r"different grids.*seitzman"):
        make_parcels(store, ["run-0", "run-1"], ParcelConfig(num_regions=3), CLEANING)
    with pytest.raises(BaselineError, match=r"no brain mask.*fmri_minimal"):
        make_parcels(store, ["run-0"], ParcelConfig(num_regions=3), CLEANING)
