"""What NeuroAR's second stage must refuse before it starts: damaged tokens, visits that were prepared differently."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from contracts.brain_cohort import TOKENIZER, draw_brain, tiny_tokenizer, write_brain_cohort

from neuroray.jobs import train
from neuroray.platform.data.tokens import TokenError, extract_tokens, load_tokenizer, open_tokens
from neuroray.platform.models.neuroar import NeuroARConfig
from neuroray.platform.train.loop import fit, prepare_run
from neuroray.platform.train.recipe import LoopConfig, RecipeError
from neuroray.platform.train.tasks.neuroar import NeuroARRecipe, use_tokenizer
from neuroray.storage.bids import Participant
from neuroray.storage.faults import StoreError
from neuroray.storage.features import FeatureSet
from neuroray.storage.locations import Location
from neuroray.storage.profiles.prepared import Prepared
from neuroray.storage.profiles.profile import ProfileError, find_profile
from neuroray.storage.scan import Scan
from neuroray.storage.store import ScanStore


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, its tokenizer and its tokens."""
    folder = tmp_path_factory.mktemp("made")
    store = write_brain_cohort(folder / "store", num_people=4)
    few = LoopConfig(batch_size=3, num_epochs=1, select_by="val_psnr")
    fit(tiny_tokenizer(loop=few), store=store.uri, out=str(folder / "tokenizer"))
    found = load_tokenizer(str(folder / "tokenizer"))
    extract_tokens(store, found, [record.scan_id for record in store.records()])
    return folder


@pytest.fixture
def own(made: Path, tmp_path: Path) -> Path:
    """The same, to be spoilt."""
    shutil.copytree(made, tmp_path / "own")
    return tmp_path / "own"


def start(folder: Path) -> None:
    recipe = NeuroARRecipe(
        name="tiny",
        model=NeuroARConfig(quantiser=TOKENIZER.quantiser, latent_shape=(5, 5, 5), width=16, depth=1, num_heads=2),
        split=tiny_tokenizer().split,
        loop=LoopConfig(batch_size=5, num_epochs=1, select_by="val_loss"),
        min_psnr_db=0.0,
    )
    store = str(folder / "store")
    prepare_run(use_tokenizer(recipe, str(folder / "tokenizer")), store=store, folder=Location(str(folder / "run")))


def test_whole_input_is_taken(own: Path) -> None:
    start(own)


def test_one_flipped_byte_in_the_token_cache_is_found_before_training(own: Path) -> None:
    chunks = [path for path in (own / "store/features").rglob("c/**/*") if path.is_file()]
    assert chunks
    for path in chunks:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(bytes(content))
    with pytest.raises(StoreError, match=r"fix: delete .*features.* and make them again: neuroray extract"):
        start(own)
    assert not (own / "run" / "model").exists()
    shutil.rmtree(own / "store" / "features")
    store = ScanStore(own / "store")
    extract_tokens(store, load_tokenizer(str(own / "tokenizer")), [record.scan_id for record in store.records()])
    start(own)


def test_tokens_of_another_codebook_are_found_before_training(own: Path) -> None:
    store, found = ScanStore(own / "store"), load_tokenizer(str(own / "tokenizer"))
    record = store.record("sub-002_ses-01_T1w")
    cache = open_tokens(store, found)
    before = cache.read(record.scan_id)
    too_large = dataclasses.replace(before, features=np.full_like(before.features, 24.0))
    assert isinstance(too_large, FeatureSet)
    shutil.rmtree(next(path for path in (own / "store").rglob("*") if path.is_dir() and path.name == "features"))
    fresh = open_tokens(ScanStore(own / "store"), found)
    for one in store.records():
        fresh.write(one, too_large)
    with pytest.raises(TokenError, match=r"_T1w are none of this tokenizer.*expected 160 whole numbers"):
        start(own)


def test_visits_with_different_preprocessing_are_refused(own: Path) -> None:
    store = ScanStore(own / "store")
    scan = Scan(
        voxels=draw_brain((17, 19, 17), 7.0, 70.0, np.random.default_rng(9)), affine=np.diag([4.0, 4.0, 4.0, 1.0])
    )
    prepared = Prepared(scan=scan, profile=find_profile("mni_affine"), mask=scan.voxels > 0)
    store.write(
        prepared,
        scan_id="sub-001_ses-03_T1w",
        subject="001",
        session="03",
        modality="T1w",
        participant=Participant(subject="001", sex="M", age_years=80.0),
    )
    with pytest.raises(ProfileError, match=r"not all prepared alike.*mni_affine"):
        start(own)


@pytest.fixture
def once(tmp_path: Path, made: Path) -> Path:
    """The same people, each with the first scan alone, and the tokenizer."""
    store, whole = ScanStore.create(tmp_path / "store"), ScanStore(made / "store")
    for record in whole.records():
        if record.session == "01":
            person = Participant(subject=record.subject, sex="F", age_years=record.age_years)
            details = {"subject": record.subject, "session": "01", "modality": "T1w", "participant": person}
            store.write(whole.read(record.scan_id), scan_id=record.scan_id, **details)
    shutil.copytree(made / "tokenizer", tmp_path / "tokenizer")
    return tmp_path


def test_people_with_one_session_alone_are_refused(once: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"have no two visits of one person; given 4 people with an age, 0 of them with two"
    ):
        start(once)


def test_a_tokenizer_that_reconstructs_too_little_is_refused_before_tokens_are_made(once: Path) -> None:
    asked = ["--store", str(once / "store"), "--out", str(once / "run"), "--encoder", str(once / "tokenizer")]
    with pytest.raises(RecipeError, match=r"does not reconstruct well enough.*expected 90 dB"):
        train.main(["neuroar/transformer:smoke", *asked, "--min-psnr-db", "90", "--extract"])
    assert not (once / "store/features").exists()
    assert not (once / "run").exists()


def test_people_with_one_session_alone_are_refused_before_tokens_are_made(once: Path) -> None:
    asked = ["--store", str(once / "store"), "--out", str(once / "run"), "--encoder", str(once / "tokenizer")]
    split = ["--split.num-parts", "4", "--split.num-folds", "2", "--min-psnr-db", "0"]
    with pytest.raises(RecipeError, match="have no two visits of one person"):
        train.main(["neuroar/transformer:smoke", *asked, *split, "--extract"])
    assert not (once / "store/features").exists()
    assert not (once / "run").exists()
