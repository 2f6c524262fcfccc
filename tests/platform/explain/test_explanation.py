import dataclasses

import nibabel as nib
import numpy as np
import pytest
import torch
from contracts.finished_run import make_head_scan, tiny_config

from neuroray.platform.evaluate.loaded import load_slice_model
from neuroray.platform.evaluate.slice_model import SliceModel
from neuroray.platform.explain.explanation import METHODS, check_map, explain, slice_importance
from neuroray.platform.explain.faithfulness import correlate_maps, delete_slices, leave_out_each, scramble
from neuroray.platform.explain.maps import ExplainError
from neuroray.platform.explain.saliency import log_odds, multiply_gradient
from neuroray.platform.models.layers.encoder import SliceEncoderConfig
from neuroray.platform.models.layers.slices import SliceStackConfig, slice_positions_mm, stack_slices
from neuroray.storage.nifti import read_scan, write_map, write_scan
from neuroray.storage.scan import Scan, ScanError
from neuroray.storage.store import ScanStore

CARD = {"classes": ["control", "patient"], "target": "diagnosis", "modality": "T1w", "model_name": "dinoatten3d"}


def load_tiny(**changes) -> SliceModel:
    torch.manual_seed(0)
    module = tiny_config(**changes).build().eval().requires_grad_(False)
    with torch.no_grad():
        # As drawn, all slices weigh almost alike; tests want weights that differ.
        module.head.attention.score.weight.mul_(20)
    return SliceModel(module=module, card=CARD, provenance={})


@pytest.fixture(scope="module")
def model():
    return load_tiny()


@pytest.fixture(scope="module")
def scan():
    return make_head_scan(np.random.default_rng(0), is_patient=True)


@pytest.fixture(scope="module")
def fitted(finished_run):
    return load_slice_model(finished_run.folder / "model"), ScanStore(finished_run.store)


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
def test_attention_per_mm_integrates_to_one_along_the_slice_axis(axis):
    model = load_tiny(slices=SliceStackConfig(axis=axis, num_slices=7, image_size=32))
    flat = np.diag([3.0, 5.0, 7.0, 1.0])
    scan = dataclasses.replace(make_head_scan(np.random.default_rng(1), is_patient=False), affine=flat)
    found = explain(model, scan, method="attention")
    along = {"sagittal": 0, "coronal": 1, "axial": 2}[axis]
    line = np.moveaxis(found.values, along, -1)[3, 4].astype(float)
    assert line.sum() * scan.zooms_mm[along] == pytest.approx(1.0, abs=1e-5)
    assert (np.moveaxis(found.values, along, -1) == line.astype(np.float32)).all()
    assert np.flatnonzero(line).tolist() == found.profile.slice_index.tolist()


def test_slices_beyond_a_short_scan_carry_nothing():
    model = load_tiny(slices=SliceStackConfig(num_slices=30, image_size=32))
    scan = make_head_scan(np.random.default_rng(1), is_patient=False)
    found = explain(model, scan, method="attention")
    assert found.profile.slice_index.tolist() == list(range(scan.grid_shape[2]))
    assert found.profile.weight.sum() == pytest.approx(1.0, abs=1e-6)


def test_patch_attention_integrates_to_one_and_each_slice_to_its_weight(model, scan):
    found = explain(model, scan, method="attention_patch")
    litres_of_voxel = np.prod(scan.zooms_mm) / 1000
    assert found.values.min() >= 0
    assert found.values.sum(dtype=float) * litres_of_voxel == pytest.approx(1.0, abs=1e-5)
    per_slice = found.values.sum(axis=(0, 1), dtype=float)[found.profile.slice_index] * litres_of_voxel
    assert per_slice == pytest.approx(found.profile.weight, abs=1e-6)


def test_a_convolutional_backbone_has_no_patch_attention_and_the_message_says_what_works(scan):
    encoder = SliceEncoderConfig(backbone="resnet10t", readout="pool")
    model = load_tiny(encoder=encoder)
    with pytest.raises(ExplainError, match=r"needs a vision transformer.*occlusion"):
        explain(model, scan, method="attention_patch")
    assert np.isfinite(explain(model, scan, method="gradient_x_input").values).all()


def test_the_encoder_with_gradients_gives_what_the_frozen_one_gives(model, scan):
    images = stack_slices(torch.tensor(scan.voxels), model.slices).images.clone().requires_grad_(True)
    encoder = model.module.encoder
    opened = encoder.encode(images)
    assert torch.equal(opened.detach(), encoder(images))
    assert opened.requires_grad
    assert not encoder(images).requires_grad


def test_gradient_times_input_is_the_slope_of_the_log_odds():
    # Without 8 bits the pictures are smooth, and over the whole volume the scale hangs on two voxels alone.
    slices = SliceStackConfig(num_slices=7, image_size=32, quantise=False, normalisation="volume")
    model = load_tiny(slices=slices)
    scan = make_head_scan(np.random.default_rng(3), is_patient=True)
    model.module.double()
    found = multiply_gradient(model, scan, model.encode(scan), 1)
    grey = (scan.voxels - scan.voxels.min()) / (np.ptp(scan.voxels) + slices.epsilon)
    block = np.zeros(scan.grid_shape, dtype=bool)
    block[6:13, 6:13, 6:12] = (grey > 0.2)[6:13, 6:13, 6:12] & (grey < 0.95)[6:13, 6:13, 6:12]

    def score(share):
        moved = np.where(block, scan.voxels * (1 + share), scan.voxels).astype(np.float32)
        assert moved.max() == scan.voxels.max()
        return float(log_odds(model.answer(model.encode(dataclasses.replace(scan, voxels=moved))).logits[None], 1))

    slope = (score(1e-3) - score(-1e-3)) / 2e-3
    # float32 voxels moved by a thousandth, a curve of third order: about three digits.
    assert found.values[block].sum(dtype=float) == pytest.approx(slope, rel=5e-3)


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_gradient_times_input_sums_to_the_same_on_voxels_and_on_pixels(fit):
    model = load_tiny(slices=SliceStackConfig(num_slices=7, image_size=32, fit=fit))
    scan = make_head_scan(np.random.default_rng(4), is_patient=False)
    found = multiply_gradient(model, scan, model.encode(scan), 0)
    # Pixels are rounded to 8 bits, voxels are not: 1/255 of the greyscale, mostly cancelling.
    assert found.completeness_error < 4e-3
    assert found.values.min() < 0 < found.values.max()


def test_gradients_for_the_two_classes_are_opposite(model, scan):
    view = model.encode(scan)
    first, second = (multiply_gradient(model, scan, view, target).values for target in (0, 1))
    np.testing.assert_allclose(first, -second, atol=1e-9 + 1e-5 * np.abs(first).max())


def test_occlusion_is_the_probability_that_goes_with_the_slice(model, scan):
    found = explain(model, scan, method="occlusion", target="patient")
    view = model.encode(scan)
    for place in (0, 3, 6):
        mask = view.mask.clone()
        mask[place] = False
        without = model.answer(dataclasses.replace(view, mask=mask)).probabilities[1]
        expected = found.probabilities[1] - without
        # The pooled sums run in float32.
        assert found.profile.probability_change[place] == pytest.approx(expected, abs=1e-6)
        assert found.values[5, 5, found.profile.slice_index[place]] == pytest.approx(expected, abs=1e-6)


def test_the_target_is_the_likeliest_class_unless_named(model, scan):
    found = explain(model, scan, method="occlusion")
    assert found.target == model.classes[int(np.argmax(found.probabilities))]
    other = next(name for name in model.classes if name != found.target)
    assert explain(model, scan, method="occlusion", target=other).profile.probability_change == pytest.approx(
        -found.profile.probability_change, abs=1e-6
    )


def test_what_cannot_be_explained_is_refused(model, scan):
    with pytest.raises(ExplainError, match=r"unknown method.*occlusion"):
        explain(model, scan, method="grad_cam")
    with pytest.raises(ExplainError, match=r"no such class.*control, patient"):
        explain(model, scan, target="AD")
    series = Scan(voxels=np.ones((2, 4, 4, 4), dtype=np.float32), affine=np.eye(4))
    with pytest.raises(ScanError, match="time series"):
        explain(model, series)


@pytest.mark.parametrize("method", METHODS)
def test_a_map_lies_on_the_grid_of_the_file_whatever_its_axes(model, scan, method, tmp_path):
    write_scan(scan, tmp_path / "ras.nii.gz")
    image = nib.load(tmp_path / "ras.nii.gz")
    turned = image.as_reoriented([[1, -1], [2, 1], [0, -1]])
    nib.save(turned, tmp_path / "turned.nii.gz")
    straight, other = read_scan(tmp_path / "ras.nii.gz"), read_scan(tmp_path / "turned.nii.gz")
    found = explain(model, other, method=method)
    write_map(found.values, other, tmp_path / "map.nii.gz")
    written = nib.load(tmp_path / "map.nii.gz")
    assert written.shape == turned.shape
    np.testing.assert_allclose(written.affine, turned.affine, atol=1e-5)
    back = nib.as_closest_canonical(written).get_fdata(dtype=np.float32)
    np.testing.assert_array_equal(back, explain(model, straight, method=method).values)


def test_slices_that_matter_most_are_found_by_deletion(fitted):
    model, store = fitted
    scan = store.read("p001_T1w")
    view = model.encode(scan)
    target = int(np.argmax(model.answer(view).probabilities))
    effect = leave_out_each(model, view, target)
    right = delete_slices(model, view, effect, target, seed=0)
    wrong = delete_slices(model, view, -effect, target, seed=0)
    assert right.area > 0 > wrong.area
    assert np.array_equal(right.most_first, wrong.least_first)
    assert right.most_first[0] == pytest.approx(right.random[:, 0], abs=1e-6)
    assert right.random_orders_as_steep < 0.5 < wrong.random_orders_as_steep


def test_deletion_ends_at_one_slice_and_starts_at_all(model, scan):
    view = model.encode(scan)
    importance = np.arange(7.0)
    found = delete_slices(model, view, importance, 0, seed=0)
    last = torch.zeros(7, dtype=torch.bool)
    last[0] = True
    alone = model.answer(dataclasses.replace(view, mask=last)).logits
    whole = model.answer(view).logits
    assert found.most_first[0] == pytest.approx(float(log_odds(whole[None], 0)), abs=1e-5)
    assert found.most_first[-1] == pytest.approx(float(log_odds(alone[None], 0)), abs=1e-5)
    assert found.fraction[0] == 0.0
    assert len(found.fraction) == 7


def test_log_odds_stay_exact_where_the_probability_is_one():
    logits = torch.tensor([[200.0, -50.0], [1.0, 1.0]])
    assert log_odds(logits, 0).tolist() == [250.0, 0.0]
    three = torch.tensor([[0.3, -0.2, 0.9]])
    p = three.softmax(-1)[0, 2]
    assert float(log_odds(three, 2)) == pytest.approx(float(torch.log(p / (1 - p))), abs=1e-6)


@pytest.mark.parametrize("part", ["head", "encoder"])
def test_scrambling_deals_out_the_same_numbers_and_leaves_the_original(model, part):
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    other = scramble(model, part, seed=3)
    for name, tensor in model.module.state_dict().items():
        assert torch.equal(tensor, before[name])
        again = other.module.state_dict()[name]
        if name.startswith(part):
            assert torch.equal(again.flatten().sort().values, tensor.flatten().sort().values)
        else:
            assert torch.equal(again, tensor)
    changed = [name for name in before if not torch.equal(other.module.state_dict()[name], before[name])]
    assert changed
    same = scramble(model, part, seed=3).module.state_dict()
    assert all(torch.equal(same[name], tensor) for name, tensor in other.module.state_dict().items())


def test_map_correlation_is_of_ranks_and_has_none_for_a_constant_map():
    first = np.arange(1.0, 28.0).reshape(3, 3, 3)
    assert correlate_maps(first, first**3) == pytest.approx(1.0)
    assert correlate_maps(first, -first) == pytest.approx(-1.0)
    assert correlate_maps(first, np.ones((3, 3, 3))) is None


def test_checks_come_with_every_map(fitted):
    model, store = fitted
    scan = store.read("p001_T1w")
    found = explain(model, scan, method="attention_patch")
    deletion, checks = check_map(model, scan, found, seed=0)
    assert set(checks["map_correlation_after_scrambling"]) == {"head", "encoder"}
    assert all(abs(value) < 0.95 for value in checks["map_correlation_after_scrambling"].values())
    assert checks["deletion"]["area_random_minus_most_first"] == deletion.area
    again = check_map(model, scan, found, seed=0, view=model.encode(scan))[1]
    assert again == checks


def test_importance_of_slices_is_the_sum_of_the_map_over_each(model, scan):
    found = explain(model, scan, method="attention")
    size = np.prod(scan.grid_shape[:2])
    assert slice_importance(found) == pytest.approx(size * found.profile.weight / found.profile.spacing_mm, rel=1e-5)


def test_profile_says_where_slices_lie_and_how_spread_they_are(model, scan):
    found = explain(model, scan)
    profile = found.profile
    assert profile.position_mm == pytest.approx(
        slice_positions_mm(scan.grid_shape, scan.affine, model.slices, profile.slice_index)
    )
    assert 1 <= profile.effective_slices <= len(profile.weight)
    even = dataclasses.replace(profile, weight=np.full(7, 1 / 7))
    assert (even.entropy_fraction, even.effective_slices) == pytest.approx((1.0, 7.0))
