"""Maps of a number told from slices: they add up, they lie where the effect is, mirrored scans have mirrored maps."""

from __future__ import annotations

import copy
import dataclasses

import nibabel
import numpy as np
import pytest
import torch
from contracts.measure_models import CONFIG, build_measure_model, draw_head_scan
from torch import nn

from neuroray.platform.explain.maps import ExplainError
from neuroray.platform.explain.measure_maps import explain_measure
from neuroray.platform.explain.randomisation import check_weights, slice_model_stages
from neuroray.platform.explain.token_maps import cut_pictures, multiply_tokens, roll_out_patches
from neuroray.platform.models.brainrotvit import BrainRotViTOutput
from neuroray.platform.models.layers.encoder import SliceEncoderConfig
from neuroray.storage.nifti import read_scan, write_map, write_scan
from neuroray.storage.scan import Scan, ScanError

HEADS = {
    "paper": {},
    "pooled": {"pool_slices": 2, "project": 32, "scale_outputs": True},
    "mirrored": {"mirror": True, "standardise": True},
    "half": {"encoder": dataclasses.replace(CONFIG.encoder, precision="bfloat16")},
    "patches": {"encoder": dataclasses.replace(CONFIG.encoder, readout="grid")},
    "quantiles": {"quantiles": (0.05, 0.5, 0.95), "mirror": True},
}


@pytest.mark.parametrize("head", HEADS)
def test_tokens_sum_to_the_vectors_times_the_gradient(head):
    model, scan = build_measure_model(**HEADS[head]), draw_head_scan()
    found = multiply_tokens(model, cut_pictures(model, scan).images)
    assert found.magnitude > 0
    assert found.completeness_error < 1e-4
    assert found.completeness_error_of_sum < 1e-4
    told = model.answer(model.encode(scan), None)
    # Twice through float32, the second time with tokens kept.
    assert found.value == pytest.approx(told.value, abs=1e-4)
    assert found.expected_sum == pytest.approx(_slope_towards_nothing(model, scan), rel=0.02)


def _slope_towards_nothing(model, scan):
    """The slope of the answer when the map of vectors is made larger as a whole: e . dA/de by finite differences."""
    features = model.encode(scan).double()
    model = dataclasses.replace(model, module=_doubled(model.module))
    step = 1e-5
    values = [model.answer(features * (1 + sign * step), None).value for sign in (1, -1)]
    return (values[0] - values[1]) / (2 * step)


def _doubled(module):
    return copy.deepcopy(module).double()


@pytest.mark.parametrize("method", ["grad_x_token", "rollout"])
@pytest.mark.parametrize(
    "changes", [{}, {"mirror": True}, {"slices": dataclasses.replace(CONFIG.slices, num_slices=45)}]
)
def test_the_map_on_voxels_keeps_the_sum_and_the_prefix_is_told_apart(method, changes):
    model, scan = build_measure_model(**changes), draw_head_scan()
    found = explain_measure(model, scan, method=method)
    told = found.to_json()
    assert told["completeness_error"] < 1e-4
    assert told["map_completeness_error"] < 1e-4
    assert told["prefix_tokens"]["sum"] != 0
    whole = told["expected_sum"] if method == "grad_x_token" else 1.0
    scale = told["map"]["sum_of_magnitudes"]
    assert found.values.sum(dtype=float) + told["prefix_tokens"]["sum"] == pytest.approx(whole, abs=1e-4 * scale)


class OneSided(nn.Module):
    """Looks at some slices only, and at those with one direction of their vectors."""

    def __init__(self, config, rows):
        super().__init__()
        self.config, self.rows = config, rows
        self.direction = nn.Parameter(torch.randn(config.num_channels, generator=torch.Generator().manual_seed(1)))

    def forward(self, features, sex=None):
        return BrainRotViTOutput((features[:, self.rows] @ self.direction).sum(1, keepdim=True))


def test_a_head_that_looks_at_some_slices_has_its_map_there_alone():
    model, scan = build_measure_model(), draw_head_scan()
    model.module.head = OneSided(CONFIG, slice(4, 7))
    found = explain_measure(model, scan)
    stack = cut_pictures(model, scan)
    place = stack.place.numpy()
    apart = place[1] - place[0]
    touched = np.flatnonzero(np.abs(found.values).sum(axis=(1, 2)))
    # A picture stands for half a distance to either side; a voxel for half of itself.
    assert touched.min() == np.ceil(place[4] - apart / 2 - 0.5 + 1e-9)
    assert touched.max() == np.floor(place[6] + apart / 2 + 0.5 - 1e-9)
    assert found.values.sum(dtype=float) + found.facts["prefix_tokens"]["sum"] == pytest.approx(found.answer, rel=1e-4)


def test_a_patch_that_the_head_looks_at_lies_where_it_is_in_the_head():
    """A grid readout keeps patches apart: a head that looks at one alone lights its voxels and no others."""
    encoder = SliceEncoderConfig(backbone="test_vit", readout="grid")
    model, scan = build_measure_model(encoder=encoder), draw_head_scan()
    head = OneSided(model.module.config, slice(0, 20))
    channels, grid = model.module.encoder.backbone.num_features, model.module.encoder.grid
    row, column = 2, 1
    place = row * grid[1] + column
    with torch.no_grad():
        kept = head.direction[place * channels : (place + 1) * channels].clone()
        head.direction.zero_()
        head.direction[place * channels : (place + 1) * channels] = kept
    model.module.head = head
    found = explain_measure(model, scan)
    box = cut_pictures(model, scan).box
    lit = [np.flatnonzero(np.abs(found.values).sum(axis=axes)) for axes in ((0, 2), (0, 1))]
    for voxels, part, at in zip(lit, box[1:], (row, column), strict=True):
        length = part.stop - part.start
        low, high = (part.start - 0.5 + length * edge / 4 for edge in (at, at + 1))
        assert abs(voxels.min() - 0.5 - low) <= 1
        assert abs(voxels.max() + 0.5 - high) <= 1
    assert found.facts["prefix_tokens"]["sum"] == 0
    assert found.values.sum(dtype=float) == pytest.approx(found.answer, rel=1e-4)


def test_a_mirrored_scan_has_the_mirrored_map():
    model, scan = build_measure_model(mirror=True), draw_head_scan()
    mirrored = dataclasses.replace(scan, voxels=np.ascontiguousarray(scan.voxels[::-1]))
    for method in ("grad_x_token", "rollout"):
        values = explain_measure(model, scan, method=method).values
        other = explain_measure(model, mirrored, method=method).values[::-1]
        # Grey values that the spline's rounding moves by a level of 8 bits.
        assert np.abs(values - other).max() < 0.02 * np.abs(values).max()
        assert np.corrcoef(values.ravel(), other.ravel())[0, 1] > 0.999


def test_files_of_other_orientations_have_the_same_map_in_the_world(tmp_path):
    model, scan = build_measure_model(), draw_head_scan((31, 40, 27))
    write_scan(scan, tmp_path / "ras.nii.gz")
    flipped = np.ascontiguousarray(scan.voxels[::-1, ::-1])
    affine = scan.affine @ np.array([[-1, 0, 0, 30], [0, -1, 0, 39], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    _write_as_stored(flipped, affine, tmp_path / "lps.nii.gz")
    images = {}
    for name in ("ras", "lps"):
        read = read_scan(tmp_path / f"{name}.nii.gz")
        found = explain_measure(model, read)
        write_map(found.values, read, tmp_path / f"map_{name}.nii.gz")
        images[name] = _load(tmp_path / f"map_{name}.nii.gz")
    np.testing.assert_allclose(images["lps"].affine, affine, atol=1e-5)
    np.testing.assert_array_equal(images["lps"].get_fdata()[::-1, ::-1], images["ras"].get_fdata())


def _write_as_stored(voxels, affine, path):
    nibabel.nifti1.Nifti1Image(voxels, affine).to_filename(path)


def _load(path):
    return nibabel.nifti1.Nifti1Image.from_filename(path)


def test_rollout_gives_every_slice_the_same_and_sums_to_one():
    model, scan = build_measure_model(), draw_head_scan()
    images = cut_pictures(model, scan).images
    attentions = [block.attn for block in model.module.encoder.backbone.blocks]
    patches, prefix = roll_out_patches(model, images)
    assert [attention.fused_attn for attention in attentions] == [True] * len(attentions)
    np.testing.assert_allclose(patches.sum(axis=(1, 2)) + prefix, 1 / len(images), atol=1e-9)
    assert patches.min() > 0
    assert patches.std() > 1e-6


def test_what_has_no_tokens_is_refused_with_what_would_do():
    convolutional = SliceEncoderConfig(backbone="resnet10t", readout="pool")
    model, scan = build_measure_model(encoder=convolutional), draw_head_scan()
    for method in ("grad_x_token", "rollout"):
        with pytest.raises(ExplainError, match=r"maps by tokens need .*vision transformer"):
            explain_measure(model, scan, method=method)
    by_class = build_measure_model(encoder=SliceEncoderConfig(backbone="test_vit", readout="cls"))
    with pytest.raises(ExplainError, match='readout "cls"'):
        explain_measure(by_class, scan)
    with pytest.raises(ExplainError, match="grad_x_token, integrated_tokens, rollout"):
        explain_measure(by_class, scan, method="occlusion")


def test_the_sex_moves_the_answer_and_not_the_map():
    model, scan = build_measure_model(), draw_head_scan()
    man, woman = (explain_measure(model, scan, sex=sex) for sex in ("M", "F"))
    assert man.answer != woman.answer
    np.testing.assert_array_equal(man.values, woman.values)


def test_a_gradient_that_is_no_number_is_an_error():
    model = build_measure_model()
    model.module.head.answer.weight.fill_(torch.nan)
    with pytest.raises(ExplainError, match="no number"):
        multiply_tokens(model, cut_pictures(model, draw_head_scan()).images)


def test_a_run_has_no_such_map():
    scan = draw_head_scan()
    run = Scan(voxels=np.stack([scan.voxels] * 3), affine=scan.affine, repetition_time_s=2.0)
    with pytest.raises(ScanError, match="time series"):
        explain_measure(build_measure_model(), run)


def test_scrambled_weights_leave_little_of_the_map_from_the_head_on():
    model, scan = build_measure_model(), draw_head_scan()
    stages = slice_model_stages(model.module)
    names = [name for name, _ in stages]
    assert names[:3] == ["head", "block 6", "block 5"]
    assert names[-1] == "tokens"
    weights = {name: value.clone() for name, value in model.module.state_dict().items()}

    def explain(module, method="grad_x_token"):
        return explain_measure(dataclasses.replace(model, module=module), scan, method=method)

    correlations = check_weights(model.module, explain, seed=0, stages=stages)
    # Of 16 patches by 20 pictures, drawn at random: beyond 0.5 would be no chance.
    assert all(abs(value["values"]) < 0.5 for value in correlations.values())
    rollout = check_weights(model.module, lambda module: explain(module, "rollout"), seed=0, stages=stages)
    # Rollout does not look at the head at all, which the check says.
    assert rollout["head"]["values"] == pytest.approx(1, abs=1e-9)
    assert abs(rollout["tokens"]["values"]) < 0.9
    assert all(torch.equal(value, weights[name]) for name, value in model.module.state_dict().items())


def test_a_deep_encoder_is_scrambled_in_a_few_groups_that_hold_every_block():
    encoder = SliceEncoderConfig(backbone="vit_tiny_patch16_224", readout="mean")
    model = build_measure_model(encoder=encoder, slices=dataclasses.replace(CONFIG.slices, image_size=32))
    stages = slice_model_stages(model.module)
    assert [name for name, _ in stages][:3] == ["head", "blocks 11-12", "blocks 9-10"]
    parts = [part for _, parts in stages for part in parts]
    blocks = {f"encoder.backbone.blocks.{number}" for number in range(12)}
    assert {part for part in parts if ".blocks." in part} == blocks
    scrambled = set()
    for part in parts:
        try:
            found = model.module.get_submodule(part).parameters()
        except AttributeError:
            found = [getattr(model.module.encoder.backbone, part.rsplit(".", 1)[1], None)]
        scrambled |= {id(tensor) for tensor in found}
    assert {id(tensor) for tensor in model.module.parameters()} <= scrambled
