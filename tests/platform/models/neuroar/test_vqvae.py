"""The tokenizer: the model contract, batches, sizes, what each loss is worth."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from contracts.model_contract import Inputs, ModelContract
from torch import Tensor, nn

from neuroray.config import ConfigError
from neuroray.platform.models.errors import ModelError
from neuroray.platform.models.neuroar import QuantiserConfig, VQVAEConfig
from neuroray.platform.models.neuroar.discriminator import PatchDiscriminator
from neuroray.platform.models.neuroar.loss import (
    VQVAELossConfig,
    absolute_error,
    balance_gradients,
    deceive,
    judge_made,
    judge_real,
    score_frozen,
)
from neuroray.platform.models.neuroar.perceptual import PerceptualDistance
from neuroray.platform.models.neuroar.vqvae import VQVAE, fold, unfold
from neuroray.platform.train.rehearsal import trace_peak

QUANTISER = QuantiserConfig(num_codes=30, code_dim=5, num_scales=3, num_refiners=3)


def small_config(**changes: Any) -> VQVAEConfig:
    parts = {
        "channels": 4,
        "multipliers": (1, 2, 3),
        "num_blocks": 1,
        "norm_groups": 2,
        "quantiser": QUANTISER,
    }
    return VQVAEConfig(**{**parts, **changes})


class TestVQVAEContract(ModelContract):
    update = "average"

    def make_config(self) -> VQVAEConfig:
        return small_config(quantiser=dataclasses.replace(QUANTISER, update=self.update))

    def make_inputs(self, batch: int, generator: torch.Generator) -> Inputs:
        return {"volume": torch.rand(batch, 8, 12, 4, generator=generator) * 2 - 1}

    def outputs(self, model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
        output = model(**inputs)._asdict()
        del output["tokens"]
        return output

    def measure(self, outputs: dict[str, Tensor]) -> Tensor:
        return outputs["reconstruction"].square().mean() + outputs["quantiser_loss"].mean()

    def test_bfloat16_is_finite_and_near(self) -> None:
        # Rounding changes which code is nearest, so only what comes before and after is compared.
        model, volume = self.make(), self.draw()["volume"]
        latent, tokens = model.encoder(volume[:, None]), model.encode(volume)
        decoded = model.decode(tokens, (8, 12, 4))
        model = model.bfloat16()
        assert model(volume.bfloat16()).reconstruction.isfinite().all()
        pairs = [(model.encoder(volume[:, None].bfloat16()), latent), (model.decode(tokens, (8, 12, 4)), decoded)]
        for rounded, exact in pairs:
            assert (rounded.float() - exact).abs().max() / exact.abs().max() < 0.15


class TestVQVAEByGradientContract(TestVQVAEContract):
    update = "gradient"


@pytest.fixture
def model() -> VQVAE:
    model = small_config().build().train()
    model(torch.rand(2, 8, 12, 4))  # takes codes from data: drawn ones are all far from what weights as drawn encode
    return model.eval()


def test_a_batch_changes_no_bit_of_tokens_and_volumes(model: VQVAE) -> None:
    volumes = torch.rand(5, 8, 12, 4) * 2 - 1
    tokens = model.encode(volumes)
    decoded = model.decode(tokens, (8, 12, 4))
    assert len(tokens.unique()) > 5
    for row in range(5):
        assert torch.equal(model.encode(volumes[row : row + 1])[0], tokens[row])
        assert torch.equal(model.decode(tokens[row : row + 1], (8, 12, 4))[0], decoded[row])


def test_encoding_and_decoding_is_the_forward_pass(model: VQVAE) -> None:
    volumes = (torch.rand(2, 8, 8, 8) * 2 - 1) * 3
    output = model(volumes)
    assert torch.equal(model.encode(volumes), output.tokens)
    expected = output.reconstruction.clamp(-1, 1)
    # One volume at a time against two.
    torch.testing.assert_close(model.decode(output.tokens, (8, 8, 8)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 4, 4), (8, 4, 12), (20, 16, 12)])
def test_any_size_that_the_factor_divides_has_the_tokens_of_its_scales(
    model: VQVAE, shape: tuple[int, int, int]
) -> None:
    tokens = model.encode(torch.rand(1, *shape))
    assert tokens.shape[1] == sum(x * y * z for x, y, z in model.config.scales(shape))
    assert model.decode(tokens, shape).shape == (1, *shape)


def test_folding_puts_neighbours_into_channels_and_back() -> None:
    volume = torch.arange(2.0 * 4 * 2 * 6).view(2, 4, 2, 6)
    folded = fold(volume, 2)
    assert torch.equal(folded[1, :, 1, 0, 2], volume[1, 2:4, 0:2, 4:6].flatten())
    assert torch.equal(unfold(folded, 2), volume)
    model = small_config(fold=2, multipliers=(1, 2)).build().eval()
    assert model.config.factor == 4
    assert model.decode(model.encode(torch.rand(1, 8, 4, 8)), (8, 4, 8)).shape == (1, 8, 4, 8)


def test_sizes_that_it_does_not_divide_are_refused(model: VQVAE) -> None:
    with pytest.raises(ModelError, match="a multiple of 4"):
        model(torch.rand(1, 8, 10, 8))
    with pytest.raises(ModelError, match="volumes come in a batch"):
        model(torch.rand(8, 8, 8))


def test_the_papers_grid_is_10_by_12_by_11() -> None:
    assert VQVAEConfig().latent_shape((160, 192, 176)) == (10, 12, 11)
    assert sum(x * y * z for x, y, z in VQVAEConfig().scales((160, 192, 176))) == 1536


def test_computing_blocks_again_changes_no_gradient() -> None:
    found = []
    for again in (False, True):
        torch.manual_seed(0)
        model = small_config(checkpoint=again).build().train()
        output = model(torch.linspace(-1, 1, 512).sin().view(1, 8, 8, 8))
        (output.reconstruction.square().mean() + output.quantiser_loss.mean()).backward()
        found.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_it_learns_to_reconstruct_two_volumes() -> None:
    torch.manual_seed(0)
    x, y, z = torch.meshgrid(*(torch.linspace(-1, 1, 16),) * 3, indexing="ij")
    volumes = torch.stack([(x.square() + y.square() + z.square() < r).float() * 2 - 1 for r in (0.4, 0.8)])
    model = small_config(channels=8, norm_groups=4).build().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    errors = []
    for _ in range(80):
        output = model(volumes)
        error = absolute_error(output.reconstruction, volumes)
        optimizer.zero_grad()
        (error + output.quantiser_loss).mean().backward()
        optimizer.step()
        errors.append(float(error.detach().mean()))
    assert errors[-1] < errors[0] / 3
    assert not torch.equal(*model.eval().encode(volumes))


@pytest.mark.parametrize("kind", ["least_squares", "hinge"])
def test_the_discriminator_is_to_tell_real_from_made(kind: str) -> None:
    low, high = torch.zeros(1, 2, 2, 2), torch.ones(1, 2, 2, 2)
    assert judge_real(high, kind) < judge_real(low, kind)
    assert judge_made(low, kind) < judge_made(high, kind)
    assert deceive(high, kind) < deceive(low, kind)
    assert float(judge_real(high, kind)) == 0


def test_the_adversarys_gradient_reaches_the_volume_and_not_the_discriminator() -> None:
    discriminator, volume = PatchDiscriminator(4), torch.randn(1, 20, 20, 20, requires_grad=True)
    scores = score_frozen(discriminator, volume)
    torch.testing.assert_close(scores, discriminator(volume))
    deceive(scores, "hinge").sum().backward()
    assert volume.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in discriminator.parameters())


def test_a_score_sees_a_patch_of_34_voxels() -> None:
    discriminator, volume = PatchDiscriminator(2), torch.randn(1, 80, 20, 20, requires_grad=True)
    for module in discriminator.modules():
        if isinstance(module, nn.GroupNorm):
            module.forward = lambda maps: maps  # means over the volume would see all of it
    scores = discriminator(volume)
    scores[0, scores.shape[1] // 2].sum().backward()
    seen = volume.grad.abs().sum((0, 2, 3)).nonzero()
    assert int(seen.max() - seen.min()) + 1 == 34


def test_balanced_the_adversary_pulls_as_hard_as_the_other_terms_on_every_volume() -> None:
    volume = torch.randn(3, 4, 4, 4, requires_grad=True)
    own, adversary = volume.square().flatten(1).sum(1), torch.tensor([1.0, 50, 0.7]) * volume.flatten(1).sum(1)
    weights = balance_gradients(own, adversary, volume)
    # Of an adversary that hardly pulls, not more than so many times what it does.
    assert (balance_gradients(own, 1e-9 * adversary, volume) <= 1e4).all()
    pull = torch.autograd.grad((weights * adversary).sum(), volume)[0].flatten(1).norm(dim=1)
    torch.testing.assert_close(pull, (2 * volume).detach().flatten(1).norm(dim=1), rtol=2e-3, atol=0)


def test_the_perceptual_distance_is_of_each_volume_by_itself_and_0_of_equals() -> None:
    distance = PerceptualDistance(VQVAELossConfig(perceptual_weight=1.0))
    one, other = torch.rand(2, 2, 36, 34, 33).unbind(0)
    both = distance(one, other)
    assert torch.equal(distance(one, one), torch.zeros(2))
    for row in range(2):
        torch.testing.assert_close(distance(one[row : row + 1], other[row : row + 1])[0], both[row])
    nearer = one + 0.1 * (other - one)
    assert (distance(one, nearer) < both).all()


def test_a_network_for_volumes_sees_what_slices_of_one_plane_do_not_share() -> None:
    distance = PerceptualDistance(VQVAELossConfig(perceptual_network="r3d_18"))
    volumes = torch.randn(2, 12, 10, 14)
    volumes.requires_grad_(True)
    other = volumes.detach().clone()
    other[1] = other[1].roll(1, 2)
    found = distance(volumes, other)
    assert found[0] == 0 < found[1] < 4
    alone = distance(volumes[1:], other[1:])
    torch.testing.assert_close(alone, found[1:], rtol=1e-4, atol=1e-6)
    (gradient,) = torch.autograd.grad(found.sum(), volumes)
    assert not gradient[0].any()
    assert gradient[1].any()


def test_a_network_for_volumes_takes_a_file_of_torchvisions_names() -> None:
    from torchvision.models.video import r3d_18

    torch.manual_seed(4)
    weights, config = r3d_18(weights=None).state_dict(), VQVAELossConfig(perceptual_network="r3d_18")
    one, other = torch.randn(2, 1, 8, 10, 6).unbind()
    given, drawn = PerceptualDistance(config, weights)(one, other), PerceptualDistance(config)(one, other)
    assert not torch.allclose(given, drawn)
    with pytest.raises(ModelError, match=r"weights do not fit r3d_18; given \d+ of its tensors missing"):
        PerceptualDistance(config, {"stem.0.weight": weights["stem.0.weight"]})


def test_a_perceptual_network_that_there_is_not_is_refused() -> None:
    with pytest.raises(ModelError, match="there is no such network"):
        PerceptualDistance(VQVAELossConfig(perceptual_network="no_such_network"))
    with pytest.raises(ModelError, match="do not fit"):
        PerceptualDistance(VQVAELossConfig(), {"conv1.weight": torch.zeros(64, 3, 7, 7)})


def test_settings_without_meaning_are_refused() -> None:
    with pytest.raises(ConfigError, match="weights are none"):
        VQVAELossConfig(l1_weight=0.0)
    with pytest.raises(ConfigError, match="too small"):
        VQVAEConfig(multipliers=())


TIED = {
    "multipliers": (1,),
    "fold": 4,
    "grid": (8, 12, 4),
    "reference": "mean",
    "places": True,
    "shortcut": True,
    "attention": False,
}


class TestTiedContract(TestVQVAEContract):
    """A model of registered volumes: the difference from their mean, places, principal components beside."""

    def make_config(self) -> VQVAEConfig:
        return small_config(**TIED)

    def build(self, config: VQVAEConfig) -> VQVAE:
        model = config.build()
        # What starts at 0 would hide what lies before it.
        with torch.no_grad():
            for sequence in (model.encoder, model.decoder):
                nn.init.normal_(sequence[-1].weight, std=0.05)
        return model

    def test_bfloat16_is_finite_and_near(self) -> None:
        model, volume = self.make(), self.draw()["volume"]
        assert model.bfloat16()(volume.bfloat16()).reconstruction.isfinite().all()


def draw_alike(number: int) -> Tensor:
    """Volumes that are one and the same but for few ways in which their cubes differ."""
    generator = torch.Generator().manual_seed(0)
    alike = torch.rand(8, 12, 4, generator=generator) - 0.5
    ways = torch.randn(3, 64, generator=generator) * 0.1
    amounts = torch.randn(number, 2, 3, 1, 3, generator=generator)
    return alike + unfold((amounts @ ways).movedim(-1, 1), 4)


def test_a_model_of_registered_volumes_starts_from_their_mean_and_components() -> None:
    volumes = draw_alike(9)
    model = small_config(**TIED).build().eval()
    model.start_from(volumes)
    torch.testing.assert_close(model.reference, volumes.mean(0))
    # Three ways are fewer than a code's five numbers: before any training, and unquantised, nothing is lost.
    torch.testing.assert_close(model._decode(model._encode(volumes)), volumes, rtol=0, atol=1e-4)
    # And what has no difference from the mean has a latent of the cubes' mean alone, the same everywhere.
    latent = model._encode(volumes.mean(0, keepdim=True))
    torch.testing.assert_close(latent, latent[..., :1, :1, :1].expand_as(latent), rtol=0, atol=1e-5)


def test_a_model_tied_to_a_size_takes_no_other() -> None:
    model = small_config(**TIED).build()
    with pytest.raises(ModelError, match="tied to another size"):
        model(torch.zeros(1, 8, 12, 8))
    with pytest.raises(ModelError, match="tied to another size"):
        model.start_from(torch.zeros(2, 8, 8, 4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference": "mean", "grid": None}, "needs the volumes' size"),
        ({"places": True, "grid": None}, "needs the volumes' size"),
        ({"shortcut": True, "multipliers": (1,), "fold": 1}, "not so many components"),
    ],
)
def test_what_belongs_to_places_needs_places(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small_config(**changes)


@pytest.mark.parametrize("slab", [1, 3, 7, 64])
@pytest.mark.parametrize("changes", [{}, {"fold": 2, "multipliers": (1, 2)}, {"num_blocks": 2, "attention": False}])
def test_decoded_in_slabs_a_volume_is_the_one_decoded_whole(changes: dict[str, Any], slab: int) -> None:
    torch.manual_seed(0)
    config = small_config(**changes)
    model = config.build().eval()
    latent = torch.randn(2, config.quantiser.code_dim, 5, 3, 4)
    whole = model.decode_latent(latent)
    # Means of norms in float64 here and in float32 there: a few units of the last place, through a dozen norms.
    torch.testing.assert_close(model.decode_latent(latent, slab=slab), whole, rtol=0, atol=2e-5)
    assert whole.std() > 0.01


def test_decoding_in_slabs_holds_less() -> None:
    config = small_config(channels=16, multipliers=(1, 2, 2))
    # By rehearsal: for slabs as thin as those of so small a volume torch's CPU convolutions take another, wasteful way.
    whole, slabs = (
        trace_peak(config.build, lambda model, slab=slab: model.decode_latent(torch.zeros(1, 5, 12, 8, 8), slab=slab))
        for slab in (None, 4)
    )
    assert slabs < 0.6 * whole
