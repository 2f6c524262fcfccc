"""Where brains lie: registered ones overlap, others are told apart, and what is kept of it comes back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from contracts.brain_cohort import draw_brain, tiny_tokenizer, write_brain_cohort
from scipy import ndimage

from neuroray.platform.data.brain_place import BrainPlace, UnregisteredError, learn_place
from neuroray.platform.data.tokens import extract_tokens, load_tokenizer
from neuroray.platform.train.loop import fit, prepare_run
from neuroray.platform.train.recipe import LoopConfig
from neuroray.storage.bids import Participant
from neuroray.storage.locations import Location
from neuroray.storage.scan import Scan
from neuroray.storage.store import ScanStore

SHAPE = (22, 27, 19)


def draw(seed: int, *, long: float = 1.0) -> np.ndarray:
    """An ellipsoid, bright at its front, on -1."""
    generator = np.random.default_rng(seed)
    axes = [np.linspace(-1, 1, length) for length in SHAPE]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    inside = (x / 0.6) ** 2 + (y / (0.8 * long)) ** 2 + (z / 0.5) ** 2 < 1 + 0.03 * generator.normal()
    return np.where(inside, 0.3 + 0.4 * y + 0.1 * generator.normal(size=SHAPE), -1).clip(-1, 1).astype(np.float32)


@pytest.fixture(scope="module")
def place() -> BrainPlace:
    return learn_place((f"scan-{seed}", draw(seed)) for seed in range(9))


def test_registered_brains_overlap(place: BrainPlace) -> None:
    assert place.least > 0.9
    assert place.require(draw(40)) > 0.9
    assert max(place.brightness.shape) <= 16


@pytest.mark.parametrize(
    "move",
    [
        lambda volume: ndimage.shift(volume, (0, 9, 0), order=1, cval=-1),
        lambda volume: np.roll(volume, 6, axis=0),
        lambda volume: ndimage.rotate(volume, 70, (0, 1), reshape=False, order=1, cval=-1),
        lambda volume: np.full_like(volume, -1),
    ],
)
def test_brains_that_lie_elsewhere_are_refused(place: BrainPlace, move: object) -> None:
    assert callable(move)
    with pytest.raises(UnregisteredError, match=r"not registered as the scans of the training.*mni_affine"):
        place.require(np.ascontiguousarray(move(draw(3))))


def test_it_comes_back_from_json_to_a_shade(place: BrainPlace) -> None:
    again = BrainPlace.from_json(json.loads(json.dumps(place.to_json())))
    np.testing.assert_allclose(again.brightness, place.brightness, atol=0.5 / 255 + 1e-6)
    assert again.measure(draw(5)) == pytest.approx(place.measure(draw(5)), abs=0.01)
    assert again.least == place.least


def test_some_that_lie_elsewhere_than_the_others_are_named() -> None:
    volumes = [(f"scan-{seed}", draw(seed)) for seed in range(8)]
    volumes.append(("scan-odd", np.roll(draw(8), 7, axis=1)))
    with pytest.raises(UnregisteredError, match=r"1 of 9 scans.*scan-odd with an overlap of 0\.\d\d.*--min-overlap 0"):
        learn_place(volumes)
    insisted = BrainPlace.from_json(learn_place(volumes, required=0.0).to_json())
    assert insisted.least < 0.8
    assert insisted.require(np.full_like(draw(1), -1)) == 0


def add_scan(store: ScanStore, voxels: np.ndarray) -> str:
    person = Participant(subject="900", sex="F", age_years=60.0)
    store.write(
        Scan(voxels=voxels, affine=np.diag([4.0, 4.0, 4.0, 1.0])),
        scan_id="sub-900_ses-01_T1w",
        subject="900",
        session="01",
        modality="T1w",
        participant=person,
    )
    return "sub-900_ses-01_T1w"


def test_no_stage_starts_on_scans_that_are_not_registered(tmp_path: Path) -> None:
    store = write_brain_cohort(tmp_path / "store", num_people=4)
    few = LoopConfig(batch_size=3, num_epochs=1, select_by="val_psnr")
    fit(tiny_tokenizer(loop=few), store=store.uri, out=str(tmp_path / "tokenizer"))
    ball = draw_brain((17, 19, 17), 4.0, 60.0, np.random.default_rng(1))
    odd = add_scan(store, np.ascontiguousarray(np.roll(ball, 4, axis=0)))
    with pytest.raises(UnregisteredError, match=odd):
        extract_tokens(ScanStore(store.uri), load_tokenizer(str(tmp_path / "tokenizer")), [odd])
    # Whichever side of the split the person comes to, for training people alone are looked at.
    recipe = tiny_tokenizer()
    refused = 0
    for fold in range(2):
        split = type(recipe.split)(**{**recipe.split.to_json(), "fold": fold})
        try:
            prepare_run(tiny_tokenizer(split=split), store=store.uri, folder=Location(str(tmp_path / f"run-{fold}")))
        except UnregisteredError:
            refused += 1
    assert refused >= 1
