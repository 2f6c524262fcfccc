"""The predictor: a folder in, an answer out, and a word about what is unlike training."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from neuroray.platform.models import MODELS
from neuroray.serve.predictor import Predictor, PredictorError, load_predictor, read_model_card
from neuroray.storage.checkpoint import load_weights
from neuroray.storage.faults import StoreError
from neuroray.storage.nifti import read_scan
from neuroray.storage.profiles import ProfileError, find_profile, prepare
from neuroray.storage.profiles.stored import StoredProfile
from neuroray.storage.scan import Scan, ScanError


@pytest.fixture(scope="module")
def predictor(model_folder: Path) -> Predictor:
    return load_predictor(str(model_folder))


@pytest.fixture(scope="module")
def t1(real_t1: Path) -> Scan:
    return read_scan(real_t1)


def test_the_answer_is_the_models_own(predictor: Predictor, t1: Scan, model_folder: Path) -> None:
    state, config, _ = load_weights(model_folder)
    model = MODELS["dinoatten3d"].from_json(config["model"]).build(load_weights=False).eval()
    model.load_state_dict(state)
    with torch.inference_mode():
        output = model(torch.tensor(np.asarray(t1.voxels, np.float32))[None], spacing_mm=t1.zooms_mm)
    answer = predictor.predict(t1)
    expected = torch.softmax(output.logits[0].double(), dim=-1)
    # The same operations in the same order, but for softmax: equal to a few units in the last place of float32.
    assert list(answer.probabilities.values()) == pytest.approx(expected.tolist(), abs=1e-6)
    weights = [row.weight for row in answer.attention]
    assert weights == pytest.approx(output.attention[0].tolist(), abs=1e-6)
    assert sum(weights) == pytest.approx(1.0, abs=1e-5)  # seven float32 numbers


def test_the_label_is_the_most_probable_class(predictor: Predictor, t1: Scan) -> None:
    answer = predictor.predict(t1)
    assert answer.classes == ("control", "patient")
    assert answer.probabilities[answer.label] == max(answer.probabilities.values())
    assert sum(answer.probabilities.values()) == pytest.approx(1.0, abs=1e-12)  # float64


def test_the_same_scan_gives_the_same_answer(predictor: Predictor, t1: Scan) -> None:
    assert predictor.predict(t1) == predictor.predict(t1)


def test_slices_are_placed_in_the_world(predictor: Predictor, t1: Scan) -> None:
    answer = predictor.predict(t1)
    middle = t1.grid_shape[2] // 2
    assert [row.slice_index for row in answer.attention] == list(range(middle - 3, middle + 4))
    centre = np.array([*((length - 1) / 2 for length in t1.grid_shape[:2]), middle, 1.0])
    assert answer.attention[3].position_mm == pytest.approx((t1.affine @ centre)[2], abs=1e-6)  # float64


def test_a_run_folder_answers_with_its_exported_model(model_folder: Path, predictor: Predictor, tmp_path: Path) -> None:
    shutil.copytree(model_folder, tmp_path / "model")
    (tmp_path / "config.json").write_text(json.dumps({"model_name": "dinoatten3d"}))
    assert load_predictor(str(tmp_path)).card == predictor.card


def test_a_run_that_has_not_ended_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_name": "dinoatten3d"}))
    with pytest.raises(PredictorError, match="no finished model"):
        load_predictor(str(tmp_path))


def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(PredictorError, match="there is no model"):
        load_predictor(str(tmp_path))


@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [("model_name", "oracle", "cannot answer"), ("format", 2, "does not read such"), ("classes", None, "not whole")],
)
def test_a_foreign_config_is_refused(model_folder: Path, tmp_path: Path, field: str, value: object, fault: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(model_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {field: value}))
    with pytest.raises(PredictorError, match=fault):
        load_predictor(str(folder))


def test_weights_that_changed_are_refused(model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(model_folder, folder)
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(StoreError, match="not the file"):
        load_predictor(str(folder))


def test_the_card_needs_no_weights(model_folder: Path, predictor: Predictor, tmp_path: Path) -> None:
    shutil.copy(model_folder / "config.json", tmp_path)
    card = read_model_card(str(tmp_path))
    assert card == predictor.card
    assert card.fingerprints["weights_sha256"].startswith(card.version)
    assert set(card.fingerprints) == {"weights_sha256", "encoder_sha256", "feature_fingerprint"}


def test_a_time_series_is_refused(predictor: Predictor, t1: Scan) -> None:
    series = dataclasses.replace(t1, voxels=np.stack([t1.voxels] * 3), repetition_time_s=2.0)
    with pytest.raises(ScanError, match="not for time series; given 3 frames"):
        predictor.predict(series)


def test_a_scan_like_those_of_training_raises_no_warning(predictor: Predictor, t1: Scan) -> None:
    assert predictor.predict(t1).warnings == ()


def test_other_voxels_are_told(predictor: Predictor, t1: Scan) -> None:
    coarse = dataclasses.replace(t1, affine=t1.affine @ np.diag([1.0, 1.0, 1.1, 1.0]))
    (warning,) = predictor.predict(coarse).warnings
    assert warning == "voxels of 2 x 2 x 2.2 mm; the model was trained on 1.9 x 1.9 x 1.9 mm to 2.1 x 2.1 x 2.1 mm"


def test_a_part_of_a_head_is_told(predictor: Predictor, t1: Scan) -> None:
    slab = dataclasses.replace(t1, voxels=t1.voxels[:, :, 60:65])
    field, missing = predictor.predict(slab).warnings
    assert field == "a field of view of 192 x 256 x 10 mm, which is not that of a whole head"
    assert missing == "2 of the slices that the model looks at lie outside this scan"


def test_a_segmentation_is_told(predictor: Predictor, t1: Scan) -> None:
    labels = dataclasses.replace(t1, voxels=(np.asarray(t1.voxels) > 50).astype(np.uint8))
    (warning,) = predictor.predict(labels).warnings
    assert "looks like a segmentation" in warning


def test_flags_of_the_scan_are_passed_on(predictor: Predictor, t1: Scan) -> None:
    flagged = dataclasses.replace(t1, flags=("no orientation in the header",))
    assert predictor.predict(flagged).warnings == ("no orientation in the header",)


def test_a_model_without_a_record_of_spacing_does_not_warn_of_it(model_folder: Path, tmp_path: Path, t1: Scan) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(model_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    del config["spacing_mm"]
    (folder / "config.json").write_text(json.dumps(config))
    coarse = dataclasses.replace(t1, affine=t1.affine @ np.diag([1.0, 1.0, 1.1, 1.0]))
    assert load_predictor(str(folder)).predict(coarse).warnings == ()


def test_the_answer_names_the_profile_that_the_scan_went_through(predictor: Predictor, t1: Scan) -> None:
    answer = predictor.predict(t1)
    assert (answer.profile, answer.profile_sha256) == ("native", find_profile("native").fingerprint())
    assert answer.to_json()["profile_sha256"] == predictor.card.profile_sha256


@pytest.mark.skipif(importlib.util.find_spec("ants") is None, reason="ANTs is not installed")
def test_a_scan_goes_through_the_profile_of_the_training(model_folder: Path, t1: Scan, tmp_path: Path) -> None:
    profile = dataclasses.replace(find_profile("n4"), shrink_factor=2, num_iterations=(5,))
    coarse = dataclasses.replace(
        t1, voxels=np.ascontiguousarray(t1.voxels[::2, ::2, ::2]), affine=t1.affine @ np.diag([2.0, 2.0, 2.0, 1.0])
    )
    folder = with_profile(model_folder, tmp_path / "model", StoredProfile.of(profile))
    answer = load_predictor(str(folder)).predict(coarse)
    assert (answer.profile, answer.profile_sha256) == ("n4", profile.fingerprint())
    plain = load_predictor(str(model_folder))
    assert answer.probabilities == plain.predict(prepare(coarse, profile).scan).probabilities
    assert answer.probabilities != plain.predict(coarse).probabilities


def test_a_profile_that_cannot_be_repeated_here_is_told_at_once(model_folder: Path, tmp_path: Path) -> None:
    elsewhere = StoredProfile(
        options=find_profile("fmri_minimal").to_json(), sha256="ab" * 32, made_with={"nilearn": "0.1"}
    )
    folder = with_profile(model_folder, tmp_path / "model", elsewhere)
    with pytest.raises(ProfileError, match=r"would not give the same result here.*nilearn 0\.1"):
        load_predictor(str(folder))
    assert read_model_card(str(folder)).profile == "fmri_minimal"


def with_profile(model_folder: Path, folder: Path, profile: StoredProfile) -> Path:
    shutil.copytree(model_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"profile": profile.to_json()}))
    return folder


def test_a_cropped_head_another_contrast_and_far_coarser_voxels_are_told(predictor: Predictor, t1: Scan) -> None:
    cropped = dataclasses.replace(t1, voxels=t1.voxels[:, :, :-30])
    assert any("cut off at the top" in note for note in predictor.predict(cropped).warnings)
    voxels = np.asarray(t1.voxels, dtype=np.float32)
    inverted = dataclasses.replace(t1, voxels=np.where(voxels > 40, np.clip(400 - voxels, 0, None), voxels))
    assert any("does not look T1-weighted" in note for note in predictor.predict(inverted).warnings)
    coarse = dataclasses.replace(t1, voxels=voxels[::3, ::3, ::3], affine=t1.affine @ np.diag([3.0, 3.0, 3.0, 1.0]))
    assert any("more than twice as coarse" in note for note in predictor.predict(coarse).warnings)
