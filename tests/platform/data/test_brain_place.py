"""Where brains lie: registered ones overlap, others are told apart, and what is kept of it comes back."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
from contracts.brain_cohort import draw_brain, tiny_tokenizer, write_brain_cohort
from scipy import ndimage

from neuroray.platform.data.benchmark_place import age_brain, list_moves, measure, render
from neuroray.platform.data.brain_place import BrainPlace, UnregisteredError, learn_place
from neuroray.platform.data.brain_volumes import fit_grid, scale_brain
from neuroray.platform.data.tokens import extract_tokens, load_tokenizer
from neuroray.platform.train.loop import fit, prepare_run
from neuroray.platform.train.recipe import LoopConfig
from neuroray.storage.bids import Participant
from neuroray.storage.locations import Location
from neuroray.storage.profiles.template import load_brain_template
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
    assert place.require(draw(40)).overlap > 0.9
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
    one, other = again.measure(draw(5)), place.measure(draw(5))
    assert one.overlap == pytest.approx(other.overlap, abs=0.01)
    assert one.likeness == pytest.approx(other.likeness, abs=0.01)
    assert (again.least, again.least_likeness) == (place.least, place.least_likeness)
    assert again.required_likeness == place.required_likeness


def test_some_that_lie_elsewhere_than_the_others_are_named() -> None:
    volumes = [(f"scan-{seed}", draw(seed)) for seed in range(8)]
    volumes.append(("scan-odd", np.roll(draw(8), 7, axis=1)))
    with pytest.raises(
        UnregisteredError, match=r"1 of 9 scans.*scan-odd with an overlap of 0\.\d\d, a.*--min-overlap 0"
    ):
        learn_place(volumes)
    insisted = BrainPlace.from_json(learn_place(volumes, required=0.0).to_json())
    assert insisted.least < 0.8
    assert insisted.require(np.full_like(draw(1), -1)).overlap == 0


@pytest.fixture(scope="module")
def heads() -> list[np.ndarray]:
    """The template's brain, bent by a few mm, brighter here and darker there: registered people, 4 mm."""
    template = load_brain_template(4.0)
    generator = np.random.default_rng(0)
    places = np.indices(template.voxels.shape).astype(np.float32)
    made = []
    for _ in range(12):
        bend = [ndimage.gaussian_filter(generator.normal(size=template.voxels.shape), 3) * 25 for _ in range(3)]
        shade = 1 + ndimage.gaussian_filter(generator.normal(size=template.voxels.shape), 3)
        bent = ndimage.map_coordinates(template.voxels, places + np.array(bend), order=1)
        voxels = np.where(template.mask, bent * shade, 0).astype(np.float32)
        made.append(fit_grid(scale_brain(voxels, template.mask)[0], (36, 44, 40)))
    return made


@pytest.fixture(scope="module")
def head_place(heads: list[np.ndarray]) -> BrainPlace:
    return learn_place((f"scan-{number}", volume) for number, volume in enumerate(heads[:9]))


def test_people_whom_a_place_does_not_know_pass_and_so_do_very_old_brains(
    heads: list[np.ndarray], head_place: BrainPlace
) -> None:
    for volume in heads[9:]:
        aged = age_brain(volume)
        assert (aged > -1).sum() < 0.9 * (volume > -1).sum()
        assert head_place.require(volume).overlap > head_place.require(aged).overlap > 0.8


@pytest.mark.parametrize("name", ["moved by 10 mm", "moved by 12 mm", "turned by 20 degrees", "upside down"])
def test_brains_that_are_moved_or_turned_are_refused_in_every_direction(
    name: str, heads: list[np.ndarray], head_place: BrainPlace
) -> None:
    moves = dict(list_moves(4.0))[name]
    for move in moves:
        moved = np.ascontiguousarray(move(heads[10]))
        with pytest.raises(
            UnregisteredError, match=r"a likeness of 0\.\d{3}; expected.*a likeness of 0\.9\d\d or more"
        ):
            head_place.require(moved)
    # By its overlap alone most of them would pass.
    assert name == "upside down" or max(head_place.measure(move(heads[10])).overlap for move in moves) > 0.8


def test_a_model_from_before_likeness_was_learned_keeps_its_old_rule(
    heads: list[np.ndarray], head_place: BrainPlace
) -> None:
    card = {name: value for name, value in head_place.to_json().items() if "likeness" not in name}
    old = BrainPlace.from_json(card)
    moved = dict(list_moves(4.0))["moved by 10 mm"][0](heads[10])
    assert old.require(moved).overlap > 0.8
    assert old.required_likeness is None


def test_one_moved_scan_among_the_trainings_is_named_and_moves_no_bound(
    heads: list[np.ndarray], head_place: BrainPlace
) -> None:
    moved = dict(list_moves(4.0))["moved by 10 mm"][0](heads[11])
    with pytest.raises(UnregisteredError, match=r"1 of 10 scans.*given scan-odd with.*a likeness of 0\.9\d\d or more"):
        learn_place([*((f"scan-{number}", volume) for number, volume in enumerate(heads[:9])), ("scan-odd", moved)])
    insisted = learn_place([("scan-odd", moved), ("scan-0", heads[0])] * 5, required=0.0)
    assert insisted.required_likeness is None
    few = learn_place((f"scan-{number}", volume) for number, volume in enumerate(heads[:7]))
    assert few.required_likeness is None  # of too few people to tell


def test_the_page_of_moves_is_made_of_a_store(heads: list[np.ndarray], tmp_path: Path) -> None:
    store = ScanStore.create(str(tmp_path / "store"))
    for number, volume in enumerate(heads):
        scan = Scan(voxels=np.where(volume > -1, volume + 2, 0), affine=np.diag([4.0, 4.0, 4.0, 1.0]))
        store.write(scan, scan_id=f"sub-{number:02d}_T1w", subject=f"{number:02d}", modality="T1w")
    found = measure(argparse.Namespace(store=store.uri, grid_shape=None, known=0.75, scan=[]))
    rows = {row["name"]: row["free"] for row in found["rows"]}
    assert (found["known_people"], rows["moved by 10 mm"]["number"]) == (9, 18)
    assert (rows["as it is"]["refused"], rows["moved by 10 mm"]["refused"]) == (0, 1)
    assert "| moved by 10 mm |" in render(found)


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
