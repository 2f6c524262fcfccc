import copy
import dataclasses
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from contracts.planted_runs import AFFINE, GRID, block_labels
from torch import nn

from neuroray.platform.data.atlas import load_roi_atlas
from neuroray.platform.explain.groups import average_maps, average_shares, lay_over
from neuroray.platform.explain.integrated import IntegratedConfig, attribute_window, make_reference, output_score
from neuroray.platform.explain.maps import ExplainError
from neuroray.platform.explain.randomisation import check_labels, check_weights, compare_maps, scramble_weights
from neuroray.platform.explain.runs import Share, Window, explain_run, share_by_label, share_by_network
from neuroray.platform.models.brainmt import BrainMTConfig
from neuroray.storage.nifti import read_scan, write_map, write_scan
from neuroray.storage.scan import Scan

SHAPE = (5, 7, 6, 3)


class Linear(nn.Module):
    """A weight per voxel and frame: its attributions are known."""

    def __init__(self, shape=SHAPE, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(2, *shape, generator=generator))
        self.batch_sizes = []

    def forward(self, voxels):
        self.batch_sizes.append(len(voxels))
        return SimpleNamespace(outputs=torch.einsum("btxyz,otxyz->bo", voxels, self.weight))


class Coupling(nn.Module):
    """The product of the mean courses of two blocks, over time: connectivity, and nothing else."""

    def __init__(self, labels):
        super().__init__()
        self.masks = torch.stack([torch.from_numpy(labels == number).float() for number in (1, 2)])

    def forward(self, voxels):
        courses = torch.einsum("btxyz,rxyz->btr", voxels, self.masks) / self.masks.sum((1, 2, 3))
        centred = courses - courses.mean(dim=1, keepdim=True)
        return SimpleNamespace(outputs=(centred[..., 0] * centred[..., 1]).sum(dim=1, keepdim=True))


def _window(seed=0, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _tiny():
    torch.manual_seed(0)
    config = BrainMTConfig(
        grid_shape=(17, 20, 16), num_frames=5, width=4, mamba_depth=1, attention_depth=1, num_outputs=2
    )
    return config.build()


@pytest.mark.parametrize("reference", ["background", "mean_frame", "zeros"])
def test_of_a_linear_model_each_voxel_adds_its_weight_times_its_change(reference):
    module, voxels = Linear(), _window()
    config = IntegratedConfig(reference=reference, num_steps=3)
    found = attribute_window(module, voxels, config, score=output_score(1))
    expected = {"background": voxels.min(), "mean_frame": voxels.mean(dim=0), "zeros": 0.0}[reference]
    change = (voxels - expected).numpy() * module.weight[1].detach().numpy()
    np.testing.assert_allclose(found.values, change, atol=1e-5)
    # Sums of 630 float32 terms.
    assert found.completeness_error < 1e-4
    assert found.score - found.reference_score == pytest.approx(change.sum(), abs=1e-3)


def test_background_that_is_not_the_lowest_score_is_given():
    voxels = _window()
    assert (make_reference(voxels, "background", background=0.0) == 0).all()
    assert (make_reference(voxels, "background") == voxels.min()).all()
    module, config = Linear(), IntegratedConfig(reference="background", num_steps=2)
    found = attribute_window(module, voxels, config, score=output_score(0), background=0.0)
    np.testing.assert_allclose(found.values, (voxels * module.weight[0]).detach().numpy(), atol=1e-5)


def test_a_product_is_shared_between_its_factors_and_completes():
    labels = block_labels()
    module, voxels = Coupling(labels), _window(1, (12, *GRID))
    found = attribute_window(module, voxels, IntegratedConfig(num_steps=4), score=output_score(0))
    # Along a straight path to the mean frame, half of a product goes to either factor (Sundararajan et al., section 3).
    total = found.score - found.reference_score
    for number in (1, 2):
        assert found.values[:, labels == number].sum() == pytest.approx(total / 2, rel=1e-4)
    assert found.reference_score == pytest.approx(0, abs=1e-6)
    assert not found.values[:, labels == 3].any()


def test_no_more_than_one_window_is_in_the_model_at_a_time():
    module = Linear()
    attribute_window(module, _window(), IntegratedConfig(num_steps=7), score=output_score(0))
    assert set(module.batch_sizes) == {1}
    assert len(module.batch_sizes) >= 7


def test_padding_gets_nothing_and_changes_nothing():
    module, voxels = Linear(), _window()
    mask = torch.tensor([True, True, True, False, False])
    voxels[~mask] = voxels.min()
    for reference in ("background", "mean_frame", "zeros"):
        found = attribute_window(
            module, voxels, IntegratedConfig(reference=reference), score=output_score(0), frame_mask=mask
        )
        assert not found.values[3:].any()
        assert found.values[:3].any()
    held = make_reference(voxels, "mean_frame", mask)
    torch.testing.assert_close(held[1], voxels[:3].mean(dim=0))
    assert torch.equal(held[3:], voxels[3:])


def test_brainmt_is_explained_completely_and_left_as_it_was():
    module = _tiny().train()
    before = copy.deepcopy(module.state_dict())
    voxels = _window(2, (5, 17, 20, 16))
    found = attribute_window(module, voxels, IntegratedConfig(num_steps=24), score=output_score(1))
    assert found.values.shape == (5, 17, 20, 16)
    # The quadrature's error on a path with the kinks of rectifiers in it, not rounding; without a backward pass through
    # every layer the sum would be off by its own size.
    assert found.completeness_error < 0.01
    assert module.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    with torch.no_grad():
        assert found.score == pytest.approx(float(module.eval()(voxels[None]).outputs[0, 1]), abs=1e-6)


def test_more_nodes_complete_better():
    module, voxels = _tiny(), _window(3, (5, 17, 20, 16))
    few, many = (
        attribute_window(module, voxels, IntegratedConfig(num_steps=n, reference="zeros"), score=output_score(0))
        for n in (2, 24)
    )
    assert many.completeness_error_of_change < 0.1 * few.completeness_error_of_change


def test_what_cannot_be_explained_is_refused():
    with pytest.raises(ExplainError, match="only a window of frames"):
        attribute_window(Linear(), _window()[0], IntegratedConfig(), score=output_score(0))
    with pytest.raises(ExplainError, match=r"unknown reference.*mean_frame"):
        IntegratedConfig(reference="black")
    with pytest.raises(ExplainError, match="not all numbers"):
        attribute_window(Linear(), _window() * float("nan"), IntegratedConfig(), score=output_score(0))
    with pytest.raises(ExplainError, match="without windows"):
        explain_run(Linear(), [], IntegratedConfig(), score=output_score(0), target="x")


def test_windows_of_a_run_are_averaged_and_laid_out_in_time():
    module, config = Linear(), IntegratedConfig(reference="zeros", num_steps=1)
    first, second = _window(0), _window(1)
    mask = torch.tensor([True, True, True, True, False])
    windows = [Window(voxels=first), Window(voxels=second, first_frame=3, frame_mask=mask)]
    found = explain_run(module, windows, config, score=output_score(0), target="x", num_frames=9)
    weight = module.weight[0].detach().numpy()
    parts = [first.numpy() * weight, second.numpy()[:4] * weight[:4]]
    np.testing.assert_allclose(found.values, np.mean([part.sum(axis=0) for part in parts], axis=0), atol=1e-4)
    expected = [np.abs(part).sum(axis=0) for part in parts]
    np.testing.assert_allclose(found.magnitudes, np.mean(expected, axis=0), atol=1e-4)
    courses = [part.sum(axis=(1, 2, 3)) for part in parts]
    course = [*courses[0][:3], *((courses[0][3:] + courses[1][:2]) / 2), *courses[1][2:], np.nan, np.nan]
    np.testing.assert_allclose(found.time_course, course, atol=1e-4)
    described = found.to_json()
    assert described["time_course"]["signed"][-1] is None
    assert described["num_windows"] == 2
    assert described["reference_meaning"].startswith("every voxel at z = 0")


def test_connectivity_is_seen_against_the_mean_frame_where_it_is():
    labels = block_labels()
    run = explain_run(
        Coupling(labels),
        [Window(voxels=_window(5, (12, *GRID)))],
        IntegratedConfig(num_steps=4),
        score=output_score(0),
        target="coupling",
    )
    shares = {share.name: share for share in share_by_label(run, labels, ("one", "two", "three", "four"))}
    assert shares["one"].magnitude_fraction + shares["two"].magnitude_fraction == pytest.approx(1, abs=1e-5)
    assert shares["three"].density == 0
    assert sum(share.density for share in shares.values()) == pytest.approx(4, abs=1e-4)
    assert [share.num_voxels for share in shares.values()] == [72, 72, 72, 72]
    with pytest.raises(ExplainError, match="another grid"):
        share_by_label(run, labels[1:], ("one",))


def _mni_run(network):
    """A made-up explanation that lies on one network's regions, on a 4 mm grid in MNI152 space."""
    shape, affine = (46, 55, 46), np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = (-90, -126, -72)
    values = np.zeros(shape, dtype=np.float32)
    atlas = load_roi_atlas("seitzman")
    for centre, name in zip(atlas.centres_mm, atlas.networks, strict=True):
        if name == network:
            values[tuple(np.rint((np.linalg.inv(affine) @ [*centre, 1.0])[:3]).astype(int))] = 1.0
    return _made_up(values), affine


def _made_up(values):
    run = explain_run(
        Linear((2, *values.shape)),
        [Window(voxels=torch.zeros(2, *values.shape))],
        IntegratedConfig(reference="zeros", num_steps=1),
        score=output_score(0),
        target="x",
    )
    return dataclasses.replace(run, values=values.astype(np.float32), magnitudes=np.abs(values).astype(np.float32))


@pytest.mark.parametrize("network", ["DefaultMode", "FrontoParietal", "Visual"])
def test_a_map_on_a_networks_regions_is_named_after_it(network):
    run, affine = _mni_run(network)
    shares = share_by_network(run, affine)
    assert shares[0].name == network
    assert shares[0].magnitude_fraction > 0.9
    assert shares[0].density > 3


def test_a_map_goes_to_disk_on_the_grid_of_its_run(tmp_path):
    rng = np.random.default_rng(0)
    scan = Scan(voxels=rng.uniform(1, 2, (4, *GRID)).astype(np.float32), affine=AFFINE, repetition_time_s=2.0)
    write_scan(scan, tmp_path / "run.nii.gz")
    turned = nib.load(tmp_path / "run.nii.gz").as_reoriented([[1, -1], [2, 1], [0, -1]])
    nib.save(turned, tmp_path / "turned.nii.gz")
    read = read_scan(tmp_path / "turned.nii.gz")
    voxels = torch.from_numpy(np.asarray(read.voxels, dtype=np.float32))
    module = Linear(voxels.shape)
    run = explain_run(module, [Window(voxels=voxels)], IntegratedConfig(num_steps=1), score=output_score(0), target="x")
    write_map(run.values, read, tmp_path / "map.nii.gz")
    written = nib.load(tmp_path / "map.nii.gz")
    assert written.shape == turned.shape[:3]
    np.testing.assert_allclose(written.affine, turned.affine, atol=1e-5)
    np.testing.assert_array_equal(nib.as_closest_canonical(written).get_fdata(dtype=np.float32), run.values)


def test_a_groups_map_is_the_mean_of_scaled_maps_on_one_grid():
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, 7, 6, 5))
    moved = AFFINE.copy()
    moved[0, 3] += 9.0  # one voxel to the right
    group = average_maps([_made_up(first), _made_up(10 * second)], [AFFINE, moved])
    laid = np.zeros_like(second)
    laid[1:] = second[:-1]
    expected = (first / np.abs(first).sum() + laid / np.abs(second).sum()) / 2
    # Maps are kept in float32.
    np.testing.assert_allclose(group.values, expected, atol=1e-7)
    assert group.num_people == 2
    assert set(np.unique(group.agreement[1:])) <= {0.5, 1.0}
    with pytest.raises(ExplainError, match=r"1 maps, 2 affines"):
        average_maps([_made_up(first)], [AFFINE, AFFINE])


def test_laying_a_map_over_a_finer_grid_interpolates_between_voxels():
    values = np.arange(4.0)[:, None, None] * np.ones((4, 3, 3))
    fine = AFFINE @ np.diag([0.5, 1, 1, 1])
    found = lay_over(values, AFFINE, fine, (7, 3, 3))
    np.testing.assert_allclose(found[:, 1, 1], np.arange(7) / 2)


def test_networks_of_a_group_come_with_intervals_over_families():
    rng = np.random.default_rng(0)
    shares = [
        [
            Share(name="a", num_voxels=9, total=0.0, magnitude_fraction=0.6, density=2 + 0.1 * rng.standard_normal()),
            Share(name="b", num_voxels=9, total=0.0, magnitude_fraction=0.4, density=0.5),
        ]
        for _ in range(12)
    ]
    found = average_shares(shares, [f"f{k // 2}" for k in range(12)], num_resamples=200)
    assert list(found) == ["a", "b"]
    assert found["a"]["density"].value == pytest.approx(np.mean([each[0].density for each in shares]))
    assert found["a"]["density"].low < 2.05
    assert found["a"]["density"].high > found["a"]["density"].low
    assert found["b"]["density"].high == pytest.approx(0.5)


def _explain(voxels, steps=4):
    def explain(module):
        return explain_run(
            module, [Window(voxels=voxels)], IntegratedConfig(num_steps=steps), score=output_score(0), target="x"
        )

    return explain


def test_scrambled_weights_change_a_map_that_shows_the_model():
    module, voxels = _tiny(), _window(4, (5, 17, 20, 16))
    before = copy.deepcopy(module.state_dict())
    found = check_weights(module, _explain(voxels), seed=0)
    assert list(found) == ["head", "attention", "mamba", "embedding", "frames"]
    assert abs(found["frames"]["values"]) < 0.5
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert check_weights(module, _explain(voxels), seed=0) == found
    assert check_weights(module, _explain(voxels), seed=1) != found


def test_a_map_that_shows_the_run_alone_is_found_out():
    module, voxels = Linear(), _window(6)
    with torch.no_grad():
        module.weight.fill_(1.0)  # the map is the run itself, and dealing out equal weights changes nothing
    found = compare_maps(_explain(voxels)(module), _explain(voxels)(_scrambled(module)))
    assert found["values"] == pytest.approx(1.0)


def _scrambled(module):
    other = copy.deepcopy(module)
    scramble_weights(other, torch.Generator().manual_seed(0))
    return other


def test_a_stage_that_the_model_lacks_is_an_error():
    with pytest.raises(ExplainError, match=r"no such part.*head"):
        check_weights(Linear(), _explain(_window()), seed=0)


def test_a_model_of_shuffled_labels_is_compared_with_the_real_one():
    voxels = _window(7)
    real, shuffled = Linear(seed=0), Linear(seed=1)
    assert check_labels(real, copy.deepcopy(real), _explain(voxels))["values"] == pytest.approx(1.0)
    # 126 voxels of independent weights: ranks correlate by 0.09 by chance.
    assert abs(check_labels(real, shuffled, _explain(voxels))["values"]) < 0.4
