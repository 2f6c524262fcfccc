"""BrainRotViT: the model contract for the whole model and for its heads, and the facts of the paper and its code."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from contracts.model_contract import Inputs, ModelContract
from torch import Tensor, nn
from torch.nn import functional

from neuroray.config import ConfigError
from neuroray.platform.models import MODELS
from neuroray.platform.models.brainrotvit import BrainRotViTConfig, BrainRotViTHead, encode_sex
from neuroray.platform.models.errors import ModelError
from neuroray.platform.models.layers.encoder import SliceEncoderConfig
from neuroray.platform.models.layers.resampled_slices import ResampledStackConfig


def small_config(**changes: Any) -> BrainRotViTConfig:
    parts = {
        "slices": ResampledStackConfig(num_slices=21, image_size=32),
        "encoder": SliceEncoderConfig(backbone="test_vit", readout="mean", batch_size=4),
        "kernels": ((4, 9), (3, 5), (2, 3)),
        "widths": (5, 3, 1),
        "hidden": (11, 7),
    }
    return BrainRotViTConfig(**{**parts, **changes})


class TestBrainRotViT(ModelContract):
    def make_config(self) -> BrainRotViTConfig:
        return small_config(mirror=True)

    def make_inputs(self, batch: int, generator: torch.Generator) -> Inputs:
        # Smooth, so that pictures differ in more than noise; in a dark field, so that there is a box to cut out.
        coarse = torch.rand(batch, 1, 5, 6, 4, generator=generator) + 0.5
        body = nn.functional.interpolate(coarse, (25, 28, 23), mode="trilinear")[:, 0]
        return {"volume": nn.functional.pad(body, (3, 4, 2, 3, 4, 1)), "sex": torch.tensor([0.0, 1.0, 0.5])[:batch]}

    def measure(self, outputs: dict[str, Tensor]) -> Tensor:
        return (outputs["outputs"] - torch.tensor([[3.0], [4.0], [5.0]])).square().mean()


class TestResidualHead(ModelContract):
    def make_config(self) -> BrainRotViTConfig:
        return small_config()

    def build(self, config: BrainRotViTConfig) -> BrainRotViTHead:
        return config.build_head()

    def make_inputs(self, batch: int, generator: torch.Generator) -> Inputs:
        return {
            "features": torch.randn(batch, 21, 64, generator=generator),
            "sex": torch.tensor([1.0, 0.0, float("nan")])[:batch],
        }

    def find_blocks(self, model: nn.Module) -> list[str]:
        return ["layers.0", "layers.1"]

    def measure(self, outputs: dict[str, Tensor]) -> Tensor:
        return (outputs["outputs"] - torch.tensor([[3.0], [4.0], [5.0]])).square().mean()


class TestPooledHead(TestResidualHead):
    def make_config(self) -> BrainRotViTConfig:
        small = {"kernels": ((2, 4), (2, 3), (1, 2)), "widths": (5, 3, 2)}
        return small_config(pool_slices=3, project=16, standardise=True, scale_outputs=True, num_outputs=3, **small)


@pytest.fixture(scope="module")
def paper_head() -> BrainRotViTHead:
    torch.manual_seed(0)
    return BrainRotViTConfig(encoder=SliceEncoderConfig(readout="mean", channels=768)).build_head().eval()


def test_the_paper_model_has_the_paper_parameters(paper_head: BrainRotViTHead) -> None:
    # Counted from the released layers; the first linear layer holds nearly all of them.
    assert sum(parameter.numel() for parameter in paper_head.parameters()) == 50_374_296
    by_block = [sum(p.numel() for p in block.parameters()) for block in paper_head.blocks]
    assert by_block == [4808 + 16, 2404 + 36, 49 + 5]


def test_the_blocks_make_maps_of_the_released_shapes(paper_head: BrainRotViTHead) -> None:
    maps, shapes = torch.zeros(1, 1, 160, 768), []
    with torch.no_grad():
        for block in paper_head.blocks:
            maps = block(maps)
            shapes.append(tuple(maps.shape[1:]))
    assert shapes == [(8, 150, 708), (4, 145, 693), (1, 143, 687)]
    assert paper_head.config.map_shapes()[1:] == [shape[1:] for shape in shapes]
    assert paper_head.layers[0].in_features == 98_241


def test_sex_enters_the_last_layer_alone(paper_head: BrainRotViTHead) -> None:
    features = torch.randn(1, 160, 768, generator=torch.Generator().manual_seed(0))
    sex = torch.tensor([0.3], requires_grad=True)
    (slope,) = torch.autograd.grad(paper_head(features, sex).outputs.sum(), sex)
    assert slope.item() == paper_head.answer.weight[0, 128].item()


def test_a_block_is_what_its_formula_says() -> None:
    block = small_config().build_head().blocks[1]
    maps = torch.randn(2, 5, 9, 12, generator=torch.Generator().manual_seed(0))
    activated = functional.silu(functional.conv2d(maps, block.conv.weight, block.conv.bias))
    main = functional.max_pool2d(activated, kernel_size=2, stride=1)
    skip = functional.conv2d(maps, block.skip.weight, block.skip.bias)
    expected = main + functional.interpolate(skip, main.shape[-2:], mode="nearest")
    # The same sums, ordered otherwise.
    torch.testing.assert_close(block(maps), expected, rtol=1e-5, atol=1e-6)


def test_without_a_sex_the_answer_is_the_mean_of_both() -> None:
    head = small_config().build_head().eval()
    features = torch.randn(3, 21, 64, generator=torch.Generator().manual_seed(0))
    male, female = (head(features, torch.full((3,), encode_sex(sex))).outputs for sex in "MF")
    assert not torch.allclose(male, female)
    for unknown in (None, torch.full((3,), float("nan")), torch.full((3,), encode_sex(None))):
        # float32 around values of 1
        torch.testing.assert_close(head(features, unknown).outputs, (male + female) / 2, rtol=1e-5, atol=1e-6)


def test_a_vector_is_the_mean_over_all_tokens_the_class_among_them() -> None:
    model = small_config().build().eval()
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    scaled = (images - 0.5) / 0.5
    tokens = model.encoder.backbone.forward_features(scaled)
    assert tokens.shape[1] == 1 + model.encoder.backbone.patch_embed.num_patches
    torch.testing.assert_close(model.encoder(images), tokens.mean(1))
    assert not torch.allclose(tokens[:, 0], tokens.mean(1), atol=1e-2)


def test_the_shares_of_tokens_in_an_age_sum_to_that_of_the_vector() -> None:
    model = small_config().build().eval()
    tokens = model.encoder.backbone.forward_features(torch.rand(21, 3, 32, 32)).detach().double()
    features = tokens.mean(1).requires_grad_()
    (gradient,) = torch.autograd.grad(model.head.double()(features[None]).outputs.sum(), features)
    shares = torch.einsum("stc,sc->st", tokens, gradient) / tokens.shape[1]
    torch.testing.assert_close(shares.sum(1), (features * gradient).sum(1))


def test_a_mirrored_head_has_the_rows_of_the_map_in_reverse() -> None:
    model = small_config(mirror=True).build().eval()
    volume = TestBrainRotViT().make_inputs(1, torch.Generator().manual_seed(0))["volume"][0]
    found, mirrored = model.encode(volume), model.encode(volume.flip(0))
    # Sums of the cubic spline in another order move a few grey values by one level of 255.
    torch.testing.assert_close(mirrored.features, found.features.flip(0), rtol=0, atol=5e-3)
    torch.testing.assert_close(mirrored.slice_place, len(volume) - 1 - found.slice_place.flip(0))


def test_the_mirror_average_answers_alike_for_a_map_and_its_reverse() -> None:
    head = small_config(mirror=True).build_head().eval()
    plain = dataclasses.replace(small_config(), mirror=False).build_head().eval()
    plain.load_state_dict(head.state_dict())
    features = torch.randn(2, 21, 64, generator=torch.Generator().manual_seed(0))
    both = head(features).outputs
    torch.testing.assert_close(head(features.flip(1)).outputs, both)
    torch.testing.assert_close((plain(features).outputs + plain(features.flip(1)).outputs) / 2, both)
    assert not torch.allclose(plain(features).outputs, plain(features.flip(1)).outputs, atol=1e-5)
    head.train()
    head.config = dataclasses.replace(head.config, dropout=0.0)
    plain.config = dataclasses.replace(plain.config, dropout=0.0)
    torch.testing.assert_close(head(features).outputs, plain.train()(features).outputs)


def test_flipped_storage_of_the_same_head_gives_the_same_map_once_it_is_in_ras() -> None:
    import nibabel

    model = small_config().build().eval()
    volume = TestBrainRotViT().make_inputs(1, torch.Generator().manual_seed(0))["volume"][0].numpy()
    ras = nibabel.Nifti1Image(volume, [[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]])
    stored = ras.as_reoriented(
        nibabel.orientations.ornt_transform([[0, 1], [1, 1], [2, 1]], [[0, -1], [1, -1], [2, 1]])
    )
    assert nibabel.aff2axcodes(stored.affine) == ("L", "P", "S")
    again = nibabel.as_closest_canonical(stored)
    found = model.encode(torch.tensor(again.get_fdata(dtype="float32")))
    torch.testing.assert_close(found.features, model.encode(torch.tensor(volume)).features, rtol=0, atol=0)


@pytest.mark.parametrize("depth", [2, 9, 30, 33])
def test_short_and_odd_stacks_become_maps_of_the_same_size(depth: int) -> None:
    model = small_config().build().eval()
    volume = torch.rand(depth, 20, 19) + 1
    volume[:, 0] = 0
    found = model.encode(volume)
    assert tuple(found.features.shape) == (21, 64)
    assert found.features.isfinite().all()
    assert found.mask.all()
    assert found.slice_index.tolist() == sorted(found.slice_index.tolist())
    assert (found.slice_index[0].item(), found.slice_index[-1].item()) == (0, depth - 1)


def test_voxels_of_any_shape_are_stretched_to_the_square() -> None:
    model = small_config().build().eval()
    volume = TestBrainRotViT().make_inputs(1, torch.Generator().manual_seed(0))["volume"]
    features = model.encode(volume[0]).features
    # Voxels of twice the height: every second one along z. The picture is the same, sampled less finely.
    coarse = model.encode(volume[0][:, :, ::2], spacing_mm=(1.0, 1.0, 2.0)).features
    other = model.encode(volume[0].transpose(1, 2)).features
    assert (coarse - features).norm() < 0.5 * (other - features).norm()


def test_the_level_is_what_it_answers_from_the_start() -> None:
    for config in (small_config(), small_config(scale_outputs=True)):
        head = config.build_head().eval()
        head.answer.weight.data.zero_()
        head.set_level(48.5, spread=17.0)
        assert torch.allclose(head(torch.randn(2, 21, 64)).outputs, torch.tensor(48.5))


def test_the_scale_of_the_map_is_that_between_people() -> None:
    head = small_config(standardise=True).build_head()
    maps = torch.randn(9, 21, 64, generator=torch.Generator().manual_seed(0)) * 3 + 5
    maps[:, 4, 7] = 2.5
    head.fit_scale(maps)
    torch.testing.assert_close(head.map_mean, maps.double().mean(0).float())
    expected = maps.double().std(0, correction=0).float()
    expected[4, 7] = 1.0
    torch.testing.assert_close(head.map_scale, expected)
    with pytest.raises(ModelError, match="nothing to standardise by"):
        head.fit_scale(maps[:1])
    with pytest.raises(ModelError, match="nothing to standardise by"):
        small_config().build_head().fit_scale(maps)


@pytest.mark.parametrize("shape", [(2, 20, 64), (2, 21, 63), (21, 64)])
def test_maps_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match="maps do not fit"):
        small_config().build_head()(torch.zeros(shape))


def test_sexes_of_another_number_are_refused() -> None:
    with pytest.raises(ModelError, match="one sex per map"):
        small_config().build_head()(torch.zeros(2, 21, 64), torch.zeros(3))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"widths": (8, 4)}, "every block has a kernel"),
        ({"hidden": ()}, "sizes are too small"),
        ({"dropout": 1.0}, "dropout is no fraction"),
        ({"pool_slices": 4}, "slices do not go into groups"),
    ],
)
def test_a_configuration_that_makes_no_model_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        small_config(**changes)


def test_kernels_larger_than_the_map_are_refused() -> None:
    with pytest.raises(ConfigError, match="larger than the map"):
        small_config(kernels=((4, 60), (3, 5), (2, 3))).build_head()


def test_it_is_registered_by_name() -> None:
    assert MODELS["brainrotvit"] is BrainRotViTConfig
    assert BrainRotViTConfig().encoder.backbone == "vit_base_patch16_224.orig_in21k_ft_in1k"
